"""M-M noise: noise that raises or lowers the loss, and a fine-tuning that says what it drifts."""

import math
from pathlib import Path

import pytest
import scipy.stats
import torch
from tolerances import RTOL
from torch import Tensor, nn
from torch.nn import functional as F
from toys import CLASSES, SHAPE, record, states_equal, statistics_by_hand, stripes, taught, tiny

from unlearnlib.data.requests import Classes
from unlearnlib.models import architectures, checkpoints, networks
from unlearnlib.pipeline import schema
from unlearnlib.pipeline.parameters import ParameterError
from unlearnlib.zero_shot import method, methods, mm_noise

SMALL = {
    "per_class": 4,
    "noise_steps": 5,
    "steps": 4,
    "batch_size": 8,
    "repair_steps": 3,
}
LABELS = torch.tensor([0, 1, 1, 2, 3, 3, 0, 2])


def learn(model: nn.Module, *, maximise: bool, **changed) -> Tensor:
    settings = mm_noise.Settings(**(SMALL | {"penalty": 0.0, "noise_steps": 30} | changed))
    options = {"shape": SHAPE, "generator": torch.Generator().manual_seed(0)}
    return mm_noise.learn_noise(model, LABELS, maximise=maximise, settings=settings, **options)


def unlearn(model: nn.Module, *, seed: int = 0, **changed) -> method.Outcome:
    settings = mm_noise.Settings(**(SMALL | changed))
    shape = SHAPE if model.architecture["model"] == "tiny" else (1, 28, 28)
    return mm_noise.unlearn(model, Classes([1, 3]), shape=shape, settings=settings, seed=seed)


def tune(model: nn.Module, images: Tensor, labels: Tensor, *, steps: int, **changed) -> None:
    """Fine-tune on images with their labels."""
    wanted = F.one_hot(labels, CLASSES).float()
    mm_noise.tune(
        model, images, lambda index, _: wanted[index], torch.arange(len(images)),
        steps=steps, rate=0.02, settings=mm_noise.Settings(**changed), generator=torch.Generator(),
    )  # fmt: skip


def restored(outcome: method.Outcome) -> nn.Module:
    return checkpoints.unpack(outcome.facts["restored"])


def error(model: nn.Module, images: Tensor) -> float:
    return F.cross_entropy(model(images), LABELS).item()


# ---------------------------------------------------------------------------------- the noise


def test_noise_starts_as_standard_normal_pixels(monkeypatch: pytest.MonkeyPatch):
    model = networks.frozen(taught(monkeypatch))
    found = learn(model, maximise=True, noise_steps=0)
    assert found.shape == (len(LABELS), *SHAPE)
    assert scipy.stats.kstest(found.flatten().numpy(), "norm").pvalue > 0.01


def test_noise_raises_or_lowers_the_loss(monkeypatch: pytest.MonkeyPatch):
    model = networks.frozen(taught(monkeypatch))
    start = error(model, learn(model, maximise=True, noise_steps=0))
    raised, lowered = (learn(model, maximise=maximise) for maximise in (True, False))
    assert error(model, raised) > 2 * start
    assert error(model, lowered) < start / 2
    assert not raised.requires_grad


def test_one_step_is_adam_on_loss_and_penalty(monkeypatch: pytest.MonkeyPatch):
    model = networks.frozen(taught(monkeypatch))
    for maximise in (True, False):
        start = learn(model, maximise=maximise, noise_steps=0).requires_grad_(True)
        size = (start**2).flatten(1).sum(1).mean()
        loss = F.cross_entropy(model(start), LABELS) * (-1 if maximise else 1) + 0.3 * size
        (slope,) = torch.autograd.grad(loss, start)
        expected = start - 0.1 * slope / (slope.abs() + 1e-8)  # the first step of Adam
        found = learn(model, maximise=maximise, noise_steps=1, penalty=0.3)
        torch.testing.assert_close(found, expected.detach(), rtol=RTOL, atol=1e-4)


def test_only_noise_that_lowers_the_loss_follows_the_statistics(monkeypatch: pytest.MonkeyPatch):
    model = networks.frozen(taught(monkeypatch))
    plain, led = (learn(model, maximise=False, statistics_weight=w) for w in (0.0, 5.0))
    assert statistics_by_hand(model, led) < statistics_by_hand(model, plain) / 2
    plain, led = (learn(model, maximise=True, statistics_weight=w) for w in (0.0, 5.0))
    assert torch.equal(plain, led)


def test_noise_is_shifted_when_it_is_learnt_and_when_it_teaches(monkeypatch: pytest.MonkeyPatch):
    asked, shift = [], mm_noise.shift

    def note(images: Tensor, *, pixels: int, generator: torch.Generator) -> Tensor:
        asked.append((len(images), pixels))
        return shift(images, pixels=pixels, generator=generator)

    monkeypatch.setattr(mm_noise, "shift", note)
    first, again, still = (unlearn(tiny(monkeypatch), jitter=jitter) for jitter in (2, 2, 0))
    # five steps on N_f, five on N_r, four of fine-tuning and three of repair
    assert asked[:17] == [(8, 2)] * 17
    assert asked[34:] == [(8, 0)] * 17
    assert torch.equal(first.images, again.images)
    assert not torch.equal(first.images, still.images)


def test_a_loss_that_is_not_finite_raises(monkeypatch: pytest.MonkeyPatch):
    model = networks.frozen(tiny(monkeypatch))
    model.classifier.bias[0] = math.nan
    for maximise in (True, False):
        with pytest.raises(FloatingPointError, match="the loss is nan"):
            learn(model, maximise=maximise)
    with pytest.raises(FloatingPointError, match="the loss is nan"):
        tune(model, *stripes(8), steps=1)


# -------------------------------------------------------------------------------- fine-tuning


def test_fine_tuning_learns_its_images(monkeypatch: pytest.MonkeyPatch):
    model, (images, labels) = tiny(monkeypatch), stripes(32)
    before = F.cross_entropy(model.train()(images), labels).item()
    networks.frozen(model)
    tune(model, images, labels, steps=30, batch_size=16)
    assert F.cross_entropy(model.train()(images), labels).item() < before / 2


def test_frozen_statistics_do_not_drift_and_are_used(monkeypatch: pytest.MonkeyPatch):
    frozen = unlearn(tiny(monkeypatch), freeze_statistics=True)
    assert frozen.facts["drift"] == [0.0, 0.0]
    assert states_equal(frozen.network, restored(frozen))
    free = unlearn(tiny(monkeypatch))
    assert min(free.facts["drift"]) > 0
    assert not torch.equal(frozen.network.first.weight, free.network.first.weight)


def test_drift_is_the_norm_of_what_the_running_means_moved(monkeypatch: pytest.MonkeyPatch):
    result, model = unlearn(tiny(monkeypatch)), tiny(monkeypatch)
    names = ("second_norm", "first_norm")
    for drift, name in zip(result.facts["drift"], names, strict=True):
        moved = getattr(result.network, name).running_mean - getattr(model, name).running_mean
        assert drift == pytest.approx(math.sqrt((moved**2).sum().item()), rel=RTOL)


def test_statistics_are_restored_and_nothing_else(monkeypatch: pytest.MonkeyPatch):
    original, model = tiny(monkeypatch), tiny(monkeypatch, seed=1)
    before = [checkpoints.unpack(checkpoints.pack(network)) for network in (original, model)]
    mended = mm_noise.restore_statistics(model, original)
    for name in ("first_norm", "second_norm"):
        found, source = getattr(mended, name), getattr(original, name)
        assert torch.equal(found.running_mean, source.running_mean)
        assert torch.equal(found.running_var, source.running_var)
    weights = dict(mended.named_parameters())
    assert all(torch.equal(weights[name], value) for name, value in model.named_parameters())
    assert not torch.equal(mended.first_norm.running_mean, model.first_norm.running_mean)
    assert all(states_equal(*pair) for pair in zip(before, (original, model), strict=True))


# ---------------------------------------------------------------------------------- the method


def test_the_model_that_is_given_does_not_change(monkeypatch: pytest.MonkeyPatch):
    model = tiny(monkeypatch)
    before = checkpoints.unpack(checkpoints.pack(model))
    result = unlearn(model)
    assert states_equal(model, before)
    assert not torch.equal(result.network.first.weight, model.first.weight)
    assert not result.network.training


def noted(monkeypatch: pytest.MonkeyPatch) -> tuple[list, list]:
    """Note what noise is learnt and what is fine-tuned on."""
    learnt, tuned = [], []
    learn_noise, plain = mm_noise.learn_noise, mm_noise.tune

    def learn_and_note(model: nn.Module, labels: Tensor, **options) -> Tensor:
        drawn = learn_noise(model, labels, **options)
        learnt.append((options["maximise"], labels.tolist(), drawn))
        return drawn

    def tune_and_note(
        model: nn.Module, images: Tensor, wanted: mm_noise.Targets, chosen: Tensor, **options
    ) -> None:
        answers = wanted(chosen, images[chosen])
        tuned.append((images[chosen], answers, options["steps"], options["rate"]))
        plain(model, images, wanted, chosen, **options)

    monkeypatch.setattr(mm_noise, "learn_noise", learn_and_note)
    monkeypatch.setattr(mm_noise, "tune", tune_and_note)
    return learnt, tuned


def test_noise_is_learnt_by_class_and_the_repair_sees_retain_classes_only(
    monkeypatch: pytest.MonkeyPatch,
):
    learnt, tuned = noted(monkeypatch)
    result = unlearn(tiny(monkeypatch), rate=0.01, repair_rate=0.002)
    forgotten, retained = [1] * 4 + [3] * 4, [0] * 4 + [2] * 4
    assert [entry[:2] for entry in learnt] == [(True, forgotten), (False, retained)]
    both = sorted(forgotten + retained)
    assert [entry[1].argmax(1).tolist() for entry in tuned] == [both, retained]
    assert all(torch.equal(entry[1].max(1).values, torch.ones(len(entry[1]))) for entry in tuned)
    assert [entry[2:] for entry in tuned] == [(4, 0.01), (3, 0.002)]
    assert torch.equal(tuned[1][0], learnt[1][2])
    assert torch.equal(tuned[0][0][4:8], learnt[0][2][:4])
    assert result.facts["learnt_for"].tolist() == both
    assert result.facts["anti"].tolist() == [label in (1, 3) for label in both]
    assert torch.equal(result.images, method.pictures(tuned[0][0]))
    assert result.facts["check"] == []


def test_what_the_original_sees_in_the_noise_is_kept(monkeypatch: pytest.MonkeyPatch):
    _, tuned = noted(monkeypatch)
    result = unlearn(tiny(monkeypatch))
    says = tiny(monkeypatch)(tuned[0][0]).softmax(1).max(1)
    assert torch.equal(result.facts["image_labels"], says.indices)
    torch.testing.assert_close(result.facts["confidence"], says.values)


def test_with_masked_answers_stand_ins_of_every_class_teach_what_is_left(
    monkeypatch: pytest.MonkeyPatch,
):
    learnt, tuned = noted(monkeypatch)
    model = tiny(monkeypatch)
    result = unlearn(model, masked_answers=True)
    anti, stand_ins = [1] * 4 + [3] * 4, [0] * 4 + [2] * 4 + [1, 3] * 5  # one of five is held out
    assert [entry[:2] for entry in learnt] == [(True, anti), (False, stand_ins)]
    (everything, answers, *_), (repaired, kept, *_) = tuned
    assert len(everything) == 8 + 8 + 8
    assert torch.equal(repaired, learnt[1][2][:16])
    assert not (everything[:, None] == learnt[1][2][16:]).flatten(2).all(2).any()
    assert sorted(answers[:16].max(1).values.eq(1).nonzero()[:, 0].tolist()) == [
        *range(4, 8), *range(12, 16),
    ]  # fmt: skip
    expected = model(repaired).softmax(1)
    expected[:, [1, 3]] = 0
    torch.testing.assert_close(kept, expected / expected.sum(1, keepdim=True))
    held = learnt[1][2][16:]
    share = result.network(held).softmax(1)[:, [1, 3]].sum(1).mean().item()
    assert result.facts["check"] == [pytest.approx(share, rel=RTOL)]


@pytest.mark.parametrize(("limit", "rounds"), [(1.0, 1), (0.0, 3)])
def test_rounds_go_on_until_the_check_is_passed(
    monkeypatch: pytest.MonkeyPatch, limit: float, rounds: int
):
    _, tuned = noted(monkeypatch)
    options = {"masked_answers": True, "rounds": 3, "forget_limit": limit}
    result = unlearn(tiny(monkeypatch), **options)
    assert len(result.facts["check"]) == rounds
    assert len(tuned) == 2 * rounds


def test_rounds_without_a_check_are_refused():
    with pytest.raises(ValueError, match="rounds=2 without masked_answers.*masked_answers=True"):
        mm_noise.Settings(rounds=2)


def test_masked_answers_take_a_class_away_and_leave_the_others(monkeypatch: pytest.MonkeyPatch):
    model, (images, labels) = taught(monkeypatch), stripes(80, seed=3)
    settings = mm_noise.Settings(
        per_class=16, noise_steps=60, penalty=0.001, statistics_weight=0.1, freeze_statistics=True,
        masked_answers=True, steps=60, batch_size=32, repair_steps=40, one_cycle=True, rounds=3,
        forget_limit=0.02,
    )  # fmt: skip
    outcome = mm_noise.unlearn(model, Classes([1]), shape=SHAPE, settings=settings, seed=0)
    predicted, gone = outcome.network(images).argmax(1), labels == 1
    assert (predicted[gone] == 1).float().mean() < 0.1
    assert (predicted[~gone] == labels[~gone]).float().mean() > 0.8
    assert outcome.facts["check"][-1] <= 0.02


def test_without_anti_samples_stand_ins_alone_teach(monkeypatch: pytest.MonkeyPatch):
    learnt, tuned = noted(monkeypatch)
    unlearn(tiny(monkeypatch), masked_answers=True, anti_samples=False)
    assert all(torch.equal(images, learnt[1][2][:16]) for images, *_ in tuned)


def test_each_remedy_is_tried_alone_and_left_out_alone():
    remedies = {"frozen": {"freeze_statistics": True}, "gentle": {"rate": 0.001, "steps": 9}}
    gentle = {"rate": 0.001, "steps": 9}
    assert mm_noise.variants(remedies) == {
        "mm_noise": {},
        "mm_noise_frozen": {"freeze_statistics": True},
        "mm_noise_gentle": gentle,
        "mm_noise_repaired": {"freeze_statistics": True, **gentle},
        "mm_noise_repaired_without_frozen": gentle,
        "mm_noise_repaired_without_gentle": {"freeze_statistics": True},
    }


def test_one_cycle_ends_at_a_rate_of_0(monkeypatch: pytest.MonkeyPatch):
    rates, descend = [], mm_noise.descend

    def note(optimizer, order, loss_of, *, schedule=None, label: str) -> list[float]:
        found = descend(optimizer, order, loss_of, schedule=schedule, label=label)
        if label == "fine-tuning":
            rates.append(optimizer.param_groups[0]["lr"])
        return found

    monkeypatch.setattr(mm_noise, "descend", note)
    for one_cycle in (True, False):
        options = {"steps": 20, "repair_steps": 10, "rate": 0.01, "repair_rate": 0.002}
        unlearn(tiny(monkeypatch), one_cycle=one_cycle, **options)
    assert max(rates[:2]) < 2e-4
    assert rates[2:] == [0.01, 0.002]


def test_no_repair_is_no_step(monkeypatch: pytest.MonkeyPatch):
    one, other = (unlearn(tiny(monkeypatch), repair_steps=0, one_cycle=c) for c in (True, False))
    assert not states_equal(one.network, other.network)


def test_few_pictures_of_each_kind_are_kept(monkeypatch: pytest.MonkeyPatch):
    result = unlearn(tiny(monkeypatch), per_class=12)
    assert result.facts["learnt_for"].bincount().tolist() == [4] * CLASSES
    assert result.images.shape == (16, *SHAPE)
    assert result.images.dtype == torch.uint8
    result = unlearn(tiny(monkeypatch), per_class=12, masked_answers=True)
    assert result.facts["learnt_for"].bincount().tolist() == [4, 8, 4, 8]
    assert result.facts["anti"].sum() == 8


def test_the_seed_decides_the_model(monkeypatch: pytest.MonkeyPatch):
    model = tiny(monkeypatch)
    first, again, other = (unlearn(model, seed=seed) for seed in (0, 0, 1))
    assert states_equal(first.network, again.network)
    assert torch.equal(first.images, again.images)
    assert not states_equal(first.network, other.network)


def test_a_model_without_batch_norm_has_nothing_to_drift():
    torch.manual_seed(0)
    model = architectures.build("lenet5", width=0.5)
    result = unlearn(model)
    assert result.facts["drift"] == []
    assert states_equal(result.network, restored(result))
    assert not states_equal(result.network, model)
    assert result.images.shape == (40, 1, 28, 28)


@pytest.mark.parametrize("settings", [{"statistics_weight": 1.0}, {"freeze_statistics": True}])
def test_remedies_that_need_batch_norm_say_so(settings: dict):
    with pytest.raises(ValueError, match="LeNet5 has no BatchNorm"):
        unlearn(architectures.build("lenet5", width=0.5), **settings)


def test_a_run_of_a_sweep_packs_both_models(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    model = tiny(monkeypatch)
    original = record(tmp_path / "original.pt", model)
    found, expected = (
        methods.run(
            original=original, method=mm_noise.METHOD, request=Classes([3, 1]),
            settings=mm_noise.Settings(**SMALL), seed=0,
        ),
        unlearn(model),
    )  # fmt: skip
    assert states_equal(checkpoints.unpack(found["model"]), expected.network)
    assert states_equal(checkpoints.unpack(found["restored"]), restored(expected))
    assert found["drift"] == expected.facts["drift"]
    assert torch.equal(found["images"], expected.images)
    assert torch.equal(found["confidence"], expected.facts["confidence"])


@pytest.mark.parametrize(
    "wrong",
    [
        {"per_class": 0},
        {"steps": 0},
        {"noise_steps": -1},
        {"rate": 0.0},
        {"penalty": -0.1},
        {"jitter": -1},
        {"forget_limit": 1.1},
        {"rounds": 0},
    ],
)
def test_settings_that_cannot_be_are_refused(wrong: dict):
    assert schema.build(mm_noise.Settings, SMALL) == mm_noise.Settings(**SMALL)
    with pytest.raises(ParameterError, match=next(iter(wrong))):
        schema.build(mm_noise.Settings, SMALL | wrong)


def test_only_what_mends_the_method_needs_statistics():
    assert mm_noise.Settings(**SMALL).needs == ()
    for changed in ({"statistics_weight": 0.1}, {"freeze_statistics": True}):
        assert mm_noise.Settings(**(SMALL | changed)).needs == (method.statistics,)
