"""The simple ways to unlearn with data."""

import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F
from toys import states_equal, stripes, taught, tiny

from unlearnlib.arena import baselines
from unlearnlib.arena.baselines import BASELINES, Ascent, Erasure, Saliency, Scrubbing
from unlearnlib.influence import curvature
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


# ------------------------------------------------------------------------------------- SCRUB

SCRUBBING = Scrubbing(
    epochs=8, max_epochs=4, batch_size=16, forget_batch_size=16, learning_rate=0.05, alpha=0.1,
    gamma=1.0, temperature=1.0,
)  # fmt: skip


def test_scrub_drives_what_is_forgotten_away_and_holds_the_rest(monkeypatch: pytest.MonkeyPatch):
    network, (forgotten, retained) = taught(monkeypatch), parts()
    moved, held = (
        baselines.scrub(network, forgotten, retained, settings=settings, seed=0)
        for settings in (SCRUBBING, replace(SCRUBBING, max_epochs=0))
    )
    assert accuracy(moved, forgotten) < 0.5
    assert accuracy(moved, retained) > 0.9
    # without max-steps nothing drives the items away
    assert accuracy(held, forgotten) > 0.9
    assert not moved.training
    assert states_equal(network, taught(monkeypatch))


def test_scrub_alternates_in_the_first_epochs_and_never_asks_for_forgotten_labels(
    monkeypatch: pytest.MonkeyPatch,
):
    (images, labels), retained = parts()
    settings = replace(SCRUBBING, epochs=3, max_epochs=2, forget_batch_size=8, batch_size=32)
    order = list(baselines._alternating(len(images), len(retained[0]), settings=settings, seed=0))
    kinds = [bool((index < len(images)).all()) for index in order]
    assert kinds == [True] * 4 + [False] * 3 + [True] * 4 + [False] * 3 + [False] * 3
    assert all((index >= len(images)).all() for index, k in zip(order, kinds, strict=True) if not k)
    for run in (range(4), range(7, 11)):  # a pass sees each item once
        seen = torch.cat([order[step] for step in run])
        assert seen.sort().values.tolist() == list(range(32))
    found = [
        baselines.scrub(taught(monkeypatch), (images, some), retained, settings=settings, seed=0)
        for some in (labels, torch.full_like(labels, 3))
    ]
    assert states_equal(*found)


def test_the_losses_of_scrub_are_those_of_the_paper(monkeypatch: pytest.MonkeyPatch):
    """-T² KL on forgotten items, α T² KL + γ CE on retained ones, by hand."""
    network, (forgotten, retained) = taught(monkeypatch), parts()
    settings = Scrubbing(epochs=1, max_epochs=1, batch_size=16, forget_batch_size=16, alpha=0.5)
    # a student unlike its teacher
    monkeypatch.setattr(
        baselines.networks, "frozen", lambda _: tiny(monkeypatch, seed=5).requires_grad_(False)
    )
    found = {}

    def spy(optimizer, order, loss_of, **options):
        found["defaults"] = optimizer.defaults
        found["batches"] = [(index, loss_of(index).item()) for index in list(order)[1:3]]
        return []

    monkeypatch.setattr(baselines, "descend", spy)
    baselines.scrub(network, forgotten, retained, settings=settings, seed=0)
    wanted = {"lr": 5e-4, "momentum": 0.9, "weight_decay": 5e-4}
    assert wanted.items() <= found["defaults"].items()
    images, labels = (torch.cat(pair) for pair in zip(forgotten, retained, strict=True))
    teacher, student = tiny(monkeypatch, seed=5), taught(monkeypatch).train()
    (first, away), (second, near) = found["batches"]
    assert (first < 32).all()
    assert (second >= 32).all()
    for index, loss in ((first, away), (second, near)):
        with torch.no_grad():
            p, q = (f(images[index]).double().div(4).softmax(1) for f in (teacher, student))
            apart = 16 * (p * (p / q).log()).sum(1).mean()
            error = F.cross_entropy(student(images[index]), labels[index])
        expected = -apart if index is first else 0.5 * apart + 0.99 * error
        assert loss == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize("empty", [0, 1])
def test_scrub_needs_items_of_both_kinds(empty: int, monkeypatch: pytest.MonkeyPatch):
    both = list(parts())
    both[empty] = both[empty][0][:0], both[empty][1][:0]
    with pytest.raises(ValueError, match="no forgotten or no retained items"):
        baselines.scrub(taught(monkeypatch), *both, settings=SCRUBBING, seed=0)


def test_scrub_has_no_more_passes_away_than_passes():
    with pytest.raises(ValueError, match="max_epochs=4 of epochs=3"):
        Scrubbing(epochs=3, max_epochs=4)


# ------------------------------------------------------------------------------------- SalUn

SALIENCY = Saliency(**vars(RECIPE), share=0.5)


def test_salun_forgets_and_moves_salient_parameters_alone(monkeypatch: pytest.MonkeyPatch):
    network, (forgotten, retained) = taught(monkeypatch), parts()
    # a penalty and averaged weights would move the others too
    for changes in ({}, {"l2": 0.1}, {"weight_decay": 0.1, "average": 0.5}):
        settings = replace(SALIENCY, **changes)
        moved = baselines.salun(network, forgotten, retained, settings=settings, seed=0)
        chosen = baselines.salient(network, forgotten, share=0.5)
        before, after = (curvature.flatten(one) for one in (network, moved))
        assert torch.equal(before[~chosen], after[~chosen])
        assert (before[chosen] != after[chosen]).float().mean() > 0.95
        assert not moved.training
    assert states_equal(network, taught(monkeypatch))
    moved = baselines.salun(network, forgotten, retained, settings=SALIENCY, seed=0)
    assert accuracy(moved, forgotten) < 0.1
    assert accuracy(moved, retained) > 0.9
    assert not moved._forward_pre_hooks


def test_salun_with_all_parameters_is_random_labelling(monkeypatch: pytest.MonkeyPatch):
    network, (forgotten, retained) = taught(monkeypatch), parts()
    whole = baselines.salun(
        network, forgotten, retained, settings=replace(SALIENCY, share=1.0), seed=0
    )
    plain = baselines.random_labels(network, forgotten, retained, settings=RECIPE, seed=0)
    assert states_equal(whole, plain)


def test_salient_parameters_have_the_largest_gradients(monkeypatch: pytest.MonkeyPatch):
    network, (forgotten, _) = taught(monkeypatch), parts()
    by_hand = taught(monkeypatch)
    by_hand.zero_grad()
    F.cross_entropy(by_hand(forgotten[0]), forgotten[1]).backward()
    sizes = torch.cat([p.grad.flatten() for p in by_hand.parameters()]).abs()
    for share in (0.1, 0.5):
        chosen = baselines.salient(network, forgotten, share=share)
        assert chosen.sum() == round(share * len(sizes))
        assert sizes[chosen].min() >= sizes[~chosen].max() * (1 - 1e-4)
    with pytest.raises(ValueError, match="no gradient to choose by"):
        baselines.salient(network, (forgotten[0][:0], forgotten[1][:0]), share=0.5)


def test_what_stands_in_the_registry_has_its_settings():
    expected = {"scrub": Scrubbing, "salun": Saliency, "delete": Erasure, "random_labels": Recipe}
    assert {name: BASELINES[name].settings for name in expected} == expected


# ------------------------------------------------------------------------------- what is refused


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
