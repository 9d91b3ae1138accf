"""Training: every shift and every image is used, runs repeat, and nothing goes wrong silently."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from tolerances import ATOL, RTOL
from torch import nn
from torch.nn import functional as F
from toys import lines, states_equal, stripes, tiny

from unlearnlib.data import datasets
from unlearnlib.models import loops, models, training

RECIPE = {"epochs": 3, "batch_size": 16, "learning_rate": 0.01, "weight_decay": 0.01}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ----------------------------------------------------------------------- shifts and batches


def moved(images: np.ndarray, down: int, right: int) -> np.ndarray:
    """Move pictures by rolling them, with zeros where the other side came in."""
    out = np.roll(images, (down, right), (2, 3))
    rows, columns = np.indices(out.shape[2:])
    height, width = out.shape[2:]
    inside = (rows - down >= 0) & (rows - down < height)
    return out * (inside & (columns - right >= 0) & (columns - right < width))


def test_shift_moves_the_whole_batch_and_reaches_every_offset():
    images, randomness = torch.rand(3, 2, 5, 4) + 1, generator()
    offsets = [(down, right) for down in (-1, 0, 1) for right in (-1, 0, 1)]
    expected = [moved(images.numpy(), *offset) for offset in offsets]
    seen = set()
    for _ in range(100):
        found = loops.shift(images, pixels=1, generator=randomness).numpy()
        (match,) = [i for i, e in enumerate(expected) if np.array_equal(found, e)]
        seen.add(match)
    assert seen == set(range(9))


def test_no_shift_draws_nothing():
    images, randomness = torch.rand(3, 1, 5, 5), generator()
    assert loops.shift(images, pixels=0, generator=randomness) is images
    assert torch.equal(randomness.get_state(), generator().get_state())


def test_an_epoch_of_batches_is_a_new_order_of_all_indices():
    found = list(loops.batches(12, batch_size=4, steps=9, generator=generator()))
    epochs = [torch.cat(found[i : i + 3]).tolist() for i in (0, 3, 6)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(12))] * 3
    assert epochs[0] != epochs[1] != epochs[2]


def test_a_remainder_waits_for_a_new_order():
    found = list(loops.batches(7, batch_size=3, steps=5, generator=generator()))
    assert [len(index) for index in found] == [3] * 5
    assert len(set(torch.cat(found[:2]).tolist())) == len(set(torch.cat(found[2:4]).tolist())) == 6


def test_a_batch_is_at_most_all_there_is():
    (found,) = loops.batches(3, batch_size=8, steps=1, generator=generator())
    assert sorted(found.tolist()) == [0, 1, 2]


# ------------------------------------------------------------------------------------ the fit


def one_cycle(step: int, total: int, peak: float) -> float:
    """Compute the rate of a cosine one-cycle schedule that rises for a quarter of the steps."""
    rise, last = 0.25 * total - 1, total - 1
    if step <= rise:
        start, end, share = peak / 25, peak, step / rise
    else:
        start, end, share = peak, peak / 25 / 1e4, (step - rise) / (last - rise)
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2


def test_weight_decay_is_decoupled_and_follows_the_one_cycle_rate():
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 3, bias=False))
    before, images = network[1].weight.detach().clone(), torch.zeros(8, 1, 2, 2)
    options = {"epochs": 5, "batch_size": 2, "learning_rate": 0.5, "weight_decay": 0.1, "seed": 0}
    losses = training.fit(network, images, torch.zeros(8, dtype=torch.long), **options)
    factor = math.prod(1 - 0.1 * one_cycle(step, 20, 0.5) for step in range(20))
    torch.testing.assert_close(network[1].weight, factor * before, rtol=RTOL, atol=ATOL)
    assert losses == pytest.approx([math.log(3)] * 5, rel=RTOL)


def test_the_loss_of_an_epoch_is_the_mean_before_each_step():
    images, labels = stripes(32)
    network = nn.Sequential(nn.Flatten(), nn.Linear(images[0].numel(), 4))
    expected = F.cross_entropy(network(images), labels).item()
    options = RECIPE | {"learning_rate": 1e-9, "epochs": 1, "batch_size": 4}
    (loss,) = training.fit(network, images, labels, seed=0, **options)
    assert loss == pytest.approx(expected, rel=RTOL)


def test_the_loss_falls_and_the_classes_are_learnt(monkeypatch: pytest.MonkeyPatch):
    network, (images, labels) = tiny(monkeypatch), stripes(128)
    options = RECIPE | {"epochs": 8, "learning_rate": 0.03}
    losses = training.fit(network, images, labels, seed=0, **options)
    assert len(losses) == 8
    assert losses[-1] < losses[0] / 2
    held, truth = stripes(64, seed=1)
    assert (models.predict(network, held).argmax(1) == truth).float().mean() > 0.9


def test_a_network_is_put_in_training_mode(monkeypatch: pytest.MonkeyPatch):
    network = tiny(monkeypatch)
    before = network.first_norm.running_mean.clone()
    training.fit(network.eval(), *stripes(32), seed=0, **RECIPE)
    assert network.training
    assert not torch.equal(network.first_norm.running_mean, before)


def fitted(monkeypatch: pytest.MonkeyPatch, **changed) -> nn.Module:
    network = tiny(monkeypatch)
    options = RECIPE | {"seed": 0, "shift_pixels": 1} | changed
    training.fit(network, *stripes(48), **options)
    return network


def test_the_seed_decides_the_weights(monkeypatch: pytest.MonkeyPatch):
    network = fitted(monkeypatch)
    assert states_equal(network, fitted(monkeypatch))
    assert not states_equal(network, fitted(monkeypatch, seed=1))
    assert not states_equal(network, fitted(monkeypatch, shift_pixels=0))


def test_training_without_images_is_refused(monkeypatch: pytest.MonkeyPatch):
    images, labels = stripes(0)
    with pytest.raises(ValueError, match=r"no images to train on; forget fewer classes"):
        training.fit(tiny(monkeypatch), images, labels, seed=0, **RECIPE)


def test_a_loss_that_is_not_finite_stops_training(monkeypatch: pytest.MonkeyPatch):
    images, labels = stripes(32)
    images[5] = math.nan
    with pytest.raises(FloatingPointError, match=r"the loss is nan; lower the learning rate"):
        training.fit(tiny(monkeypatch), images, labels, seed=0, **RECIPE)


def test_finite_returns_the_number_or_raises():
    assert loops.finite(torch.tensor(2.5)) == 2.5
    for value in (math.nan, math.inf, -math.inf):
        with pytest.raises(FloatingPointError, match=f"the loss is {value}"):
            loops.finite(torch.tensor(value))


# -------------------------------------------------------------------------- a run of a sweep


def test_a_run_leaves_classes_out_and_tests_the_rest(tmp_path: Path):
    dataset = lines(tmp_path / "mnist.npz")
    spec = RECIPE | {"data": dataset, "without": [0, 3], "model": "lenet5", "width": 0.5}
    spec |= {"seed": 0, "shift_pixels": 0, "epochs": 6}
    torch.manual_seed(0)
    result = training.run(spec)
    assert result["train_images"] == 160
    assert result["shape"] == [1, 28, 28]
    assert len(result["losses"]) == 6
    network = models.unpack(result["model"])
    assert network.architecture["width"] == 0.5
    images, labels = datasets.split(datasets.load(dataset), "validation")
    predicted = network.eval()(images).argmax(1)
    kept = (labels != 0) & (labels != 3)
    expected = 100 * (predicted == labels)[kept].float().mean().item()
    assert result["validation_accuracy"] == pytest.approx(expected)
    assert expected > 90
    assert not torch.isin(predicted, torch.tensor([0, 3])).any()


@pytest.mark.parametrize("count", range(1, 9))
def test_a_cycle_has_any_number_of_steps_and_ends_low(count: int):
    network = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
    schedule, rates = loops.one_cycle(optimizer, 1.0, steps=count), []
    for _ in range(count):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step() if len(rates) < count else None
    assert rates[-1] < 1e-3 or count == 1
