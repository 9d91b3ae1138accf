"""The simple ways to unlearn with data."""

import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F
from toys import states_equal, stripes, taught

from unlearnlib.arena import baselines
from unlearnlib.arena.baselines import Ascent, Erasure
from unlearnlib.models.training import Recipe

RECIPE = Recipe(epochs=4, batch_size=16, learning_rate=0.02)
ASCENT = Ascent(steps=200, batch_size=16, learning_rate=0.05)


def parts() -> tuple:
    images, labels = stripes(128)
    gone = labels == 0
    return (images[gone], labels[gone]), (images[~gone], labels[~gone])


def accuracy(network: torch.nn.Module, part: tuple) -> float:
    return (network(part[0]).argmax(1) == part[1]).float().mean().item()


@pytest.mark.parametrize(
    ("name", "settings"), [("random_labels", RECIPE), ("gradient_ascent", ASCENT)]
)
def test_what_is_forgotten_goes(
    name: str, settings: Recipe | Ascent, monkeypatch: pytest.MonkeyPatch
):
    network, (forgotten, retained) = taught(monkeypatch), parts()
    method = baselines.BASELINES[name]
    assert isinstance(settings, method.settings)
    moved = method.unlearn(network, forgotten, retained, settings=settings, seed=0)
    assert accuracy(network, forgotten) > 0.9
    assert accuracy(moved, forgotten) < 0.6
    assert states_equal(network, taught(monkeypatch))
    assert not moved.training
    if name == "random_labels":
        assert accuracy(moved, forgotten) < 0.1
        assert accuracy(moved, retained) > 0.9


def test_fine_tuning_reads_what_stays_alone(monkeypatch: pytest.MonkeyPatch):
    network, (forgotten, retained) = taught(monkeypatch), parts()
    nonsense = torch.full_like(forgotten[0], math.nan), forgotten[1]
    tuned = [
        baselines.fine_tune(network, f, retained, settings=RECIPE, seed=0)
        for f in (forgotten, nonsense)
    ]
    assert states_equal(*tuned)
    assert accuracy(tuned[0], retained) > 0.9


def test_ascent_ends_at_guessing(monkeypatch: pytest.MonkeyPatch):
    network, (forgotten, retained) = taught(monkeypatch), parts()
    moved, longer = (
        baselines.gradient_ascent(network, forgotten, retained, settings=settings, seed=0)
        for settings in (ASCENT, replace(ASCENT, steps=400))
    )
    assert states_equal(moved, longer)
    assert F.cross_entropy(moved(forgotten[0]), forgotten[1]) > math.log(4) / 2


# ------------------------------------------------------------------------------------ DELETE

ERASURE = Erasure(epochs=10, batch_size=16, learning_rate=0.02)


def test_delete_reads_what_is_forgotten_alone(monkeypatch: pytest.MonkeyPatch):
    network, (forgotten, retained) = taught(monkeypatch), parts()
    nonsense = torch.full_like(retained[0], math.nan), retained[1]
    kept, frozen = (
        baselines.delete(
            network, forgotten, nonsense, seed=0,
            settings=replace(ERASURE, freeze_statistics=freeze),
        )
        for freeze in (False, True)
    )  # fmt: skip
    for moved in (kept, frozen):
        assert accuracy(moved, forgotten) < 0.1
        assert not moved.training
    # batches of one class are centred in training mode, which is what keeps the others apart
    assert accuracy(kept, retained) > 0.9 > accuracy(frozen, retained)
    assert torch.equal(frozen.first_norm.running_mean, network.first_norm.running_mean)
    assert not torch.equal(kept.first_norm.running_mean, network.first_norm.running_mean)
    assert states_equal(network, taught(monkeypatch))


def test_delete_masks_the_label_of_each_image_with_the_published_settings(
    monkeypatch: pytest.MonkeyPatch,
):
    """KL(softmax(mask(z)) ‖ p) to what the original says without the label, by hand."""
    network, (images, labels) = taught(monkeypatch), stripes(16)
    found, plain = [], baselines.descend

    def spy(optimizer, order, loss_of, **options):
        found.append((optimizer.defaults, list(order)))
        found.append(loss_of(found[0][1][0]).item())
        return plain(optimizer, found[0][1], loss_of, **options)

    monkeypatch.setattr(baselines, "descend", spy)
    settings = Erasure(batch_size=16)
    part = images, labels
    baselines.delete(network, part, part, settings=settings, seed=0)
    (defaults, order), loss = found
    assert (defaults["lr"], defaults["momentum"], len(order)) == (1e-3, 0.9, 20)
    copied = taught(monkeypatch).train()
    with torch.no_grad():
        logits, answers = network(images), copied(images)
    rows = []
    for z, y, p in zip(logits, labels.tolist(), answers.softmax(1), strict=True):
        others = [k for k in range(4) if k != y]
        wanted = z[others].softmax(0)
        rows.append((wanted * (wanted / p[others]).log()).sum())
    assert loss == pytest.approx(torch.stack(rows).mean().item(), rel=1e-4)


def test_nothing_to_distil_on_is_refused(monkeypatch: pytest.MonkeyPatch):
    (images, labels), retained = parts()
    with pytest.raises(ValueError, match="no items to forget, so nothing to distil on"):
        baselines.delete(
            taught(monkeypatch), (images[:0], labels[:0]), retained, settings=ERASURE, seed=0
        )


def test_wrong_labels_are_those_of_what_stays(monkeypatch: pytest.MonkeyPatch):
    images, labels = stripes(64)
    one_class = labels == 0
    with pytest.raises(ValueError, match="no class is left"):
        baselines.random_labels(
            taught(monkeypatch), (images[one_class], labels[one_class]),
            (images[one_class], labels[one_class]), settings=RECIPE, seed=0,
        )  # fmt: skip


def test_nothing_to_climb_is_refused(monkeypatch: pytest.MonkeyPatch):
    forgotten, retained = parts()
    with pytest.raises(ValueError, match="no items to forget"):
        baselines.gradient_ascent(
            taught(monkeypatch),
            (forgotten[0][:0], forgotten[1][:0]),
            retained,
            settings=ASCENT,
            seed=0,
        )


def test_the_penalty_is_that_of_the_settings(monkeypatch: pytest.MonkeyPatch):
    network, (forgotten, retained) = taught(monkeypatch), parts()
    norms = [
        sum(p.square().sum().item() for p in tuned.parameters())
        for l2 in (0.0, 1.0)
        for tuned in [
            baselines.fine_tune(
                network, forgotten, retained, settings=replace(RECIPE, l2=l2), seed=0
            )
        ]
    ]
    assert norms[1] < 0.9 * norms[0]
