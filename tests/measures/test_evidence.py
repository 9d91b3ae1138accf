"""The images that measure, and what models say of them."""

import pytest
import torch
from toys import lines

from unlearnlib.data import datasets
from unlearnlib.data.requests import Classes, Group, Request
from unlearnlib.measures import relearning
from unlearnlib.measures.evidence import Evidence, Sets, evidence, sets_of
from unlearnlib.models import architectures, networks

CLASS, GROUP, COHERENT = Classes([0]), Group("random", None, 20, 3), Group("coherent", 2, 7, 3)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> datasets.Dataset:
    return datasets.load(lines(tmp_path_factory.mktemp("data") / "toy.npz", test=100))


def sets(dataset: datasets.Dataset, request: Request = CLASS, *, most: int = 50) -> Sets:
    return sets_of(dataset, request, items=None, most=most)


def models() -> dict[str, torch.nn.Module]:
    torch.manual_seed(0)
    names = ("original", "retrain", "other")
    return {name: architectures.build("allcnn", width=0.05).eval() for name in names}


def found(dataset: datasets.Dataset, *, steps: int = 2) -> dict[str, Evidence]:
    lessons = relearning.Settings(steps=steps, batch_size=8, learning_rate=0.01)
    return evidence(models(), sets(dataset), seed=0, lessons=lessons)


def test_sets_of_a_class_and_of_a_group(dataset: datasets.Dataset):
    of_class, of_group = sets(dataset), sets(dataset, GROUP)
    assert of_class.forgotten[1].unique().tolist() == of_class.unseen[1].unique().tolist() == [0]
    assert 0 not in of_class.test[1]
    assert 0 not in of_class.kept[1]
    assert len(of_class.unseen[1]) + len(of_class.test[1]) == len(of_class.everything[1])
    assert (of_class.classes, of_group.classes) == ((0,), ())
    assert len(of_group.test[1]) == len(of_group.everything[1])
    assert len(of_group.forgotten[1]) == 20
    assert sets(dataset, COHERENT).unseen[1].unique().tolist() == [2]


def test_no_item_is_both_forgotten_and_kept_and_there_are_no_more_than_asked_for(
    dataset: datasets.Dataset,
):
    some = sets(dataset, GROUP, most=15)
    parts = [{image.numpy().tobytes() for image in part[0]} for part in (some.forgotten, some.kept)]
    assert [len(part) for part in parts] == [15, 15]
    assert not parts[0] & parts[1]
    assert torch.equal(some.kept[0], sets(dataset, GROUP, most=15).kept[0])


def test_what_is_said_of_a_set_is_said_of_its_images(dataset: datasets.Dataset):
    one = found(dataset)["other"].said
    for name in ("forgotten", "kept", "everything", "unseen", "test"):
        images, labels = getattr(one.sets, name)
        logits = networks.predict(one.network, images)
        torch.testing.assert_close(one.logits(name), logits)
        right = (logits.argmax(1) == labels).double().mean().item()
        assert one.accuracy(name) == pytest.approx(100 * right)
        assert len(one.features(name)) == len(images)
    assert one.counts.diag().sum() == round(one.accuracy("everything"))
    assert one.counts.sum(1).tolist() == [10] * 10


def test_all_models_have_the_same_gold_and_original_beside_them(dataset: datasets.Dataset):
    rows = found(dataset)
    assert list(rows) == ["original", "retrain", "other"]
    for one in rows.values():
        assert one.gold is rows["retrain"].said
        assert one.original is rows["original"].said


def test_relearning_is_watched_once_up_to_where_the_original_was(dataset: datasets.Dataset):
    one = found(dataset)["other"].said
    assert one.relearning_curve is one.relearning_curve
    original = found(dataset)["original"].said
    assert one.until == pytest.approx(0.95 * original.accuracy("forgotten"))
    expected = relearning.relearning_curve(
        one.network,
        one.sets.forgotten,
        one.sets.kept,
        settings=one.lessons,
        seed=0,
        until=one.until,
    )
    assert one.relearning_curve == expected
    assert one.relearn_time == relearning.relearn_time(expected, until=one.until)


def test_what_returns_is_asked_once_and_learned_from_kept_items(dataset: datasets.Dataset):
    one = found(dataset)["other"].said
    expected = relearning.returned_accuracy(
        one.network, one.sets.forgotten, one.sets.kept, settings=one.lessons, seed=0
    )
    assert one.returned_accuracy == expected
    one.sets.kept[0].fill_(float("nan"))  # it is not computed again
    assert one.returned_accuracy == expected


def test_an_untrained_network_is_the_same_for_all_and_none_of_them(dataset: datasets.Dataset):
    rows = found(dataset)
    before = torch.random.get_rng_state()
    said = [one.untrained for one in rows.values()]
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(said[0], other) for other in said)
    assert not any(torch.allclose(said[0], one.said.logits("forgotten")) for one in rows.values())
