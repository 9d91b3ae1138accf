"""Loops: every batch is used, every shift is reached, and nothing goes wrong silently."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from unlearnlib.models import loops


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


# ------------------------------------------------------------------------- rates and losses


def one_cycle(step: int, total: int, peak: float) -> float:
    """Compute the rate of a cosine one-cycle schedule that rises for a quarter of the steps."""
    rise, last = 0.25 * total - 1, total - 1
    if step <= rise:
        start, end, share = peak / 25, peak, step / rise
    else:
        start, end, share = peak, peak / 25 / 1e4, (step - rise) / (last - rise)
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2


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


def test_a_cycle_rises_for_a_quarter_of_the_steps_and_falls_to_nothing():
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=1.0)
    schedule, rates = loops.one_cycle(optimizer, 0.5, steps=20), []
    for _ in range(20):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([one_cycle(step, 20, 0.5) for step in range(20)])


def test_finite_returns_the_number_or_raises():
    assert loops.finite(torch.tensor(2.5)) == 2.5
    for value in (math.nan, math.inf, -math.inf):
        with pytest.raises(FloatingPointError, match=f"the loss is {value}"):
            loops.finite(torch.tensor(value))


# ----------------------------------------------------------------------------------- the loop


def square(start: float) -> tuple[nn.Parameter, torch.optim.Optimizer]:
    """Return a number and plain gradient descent on it, at rate 0.1."""
    number = nn.Parameter(torch.tensor(start))
    return number, torch.optim.SGD([number], lr=0.1)


def test_a_step_is_taken_for_each_batch_and_losses_are_from_before_it():
    number, optimizer = square(1.0)
    order = [torch.tensor([k]) for k in range(3)]
    losses = loops.descend(optimizer, iter(order), lambda index: index[0] * number.square())
    # gradients 2 k x: nothing at first, then factors 0.8 and 0.6
    assert losses == pytest.approx([0.0, 1.0, 2 * 0.8**2])
    assert number.item() == pytest.approx(0.8 * 0.6)


def test_a_batch_that_is_skipped_takes_no_step_and_no_rate():
    number, optimizer = square(1.0)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    losses = loops.descend(
        optimizer,
        [torch.tensor([k]) for k in (0, 1, 0, 1)],
        lambda index: number.square() if index[0] else None,
        schedule=schedule,
    )
    assert losses == pytest.approx([1.0, 0.8**2])
    assert number.item() == pytest.approx(0.8 * 0.9)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.025)


def test_gradients_of_one_batch_do_not_reach_the_next():
    number, optimizer = square(1.0)
    number.grad = torch.tensor(100.0)
    loops.descend(optimizer, [torch.tensor([0])], lambda _: number.square())
    assert number.item() == pytest.approx(0.8)


def test_a_loss_that_is_not_finite_ends_the_loop_before_its_step():
    number, optimizer = square(1.0)
    with pytest.raises(FloatingPointError, match="the loss is nan; lower the learning rate"):
        loops.descend(
            optimizer,
            [torch.tensor([k]) for k in (1, 0)],
            lambda index: number * (index[0] / index[0]),
        )
    assert number.item() == pytest.approx(0.9)


def test_progress_has_the_label(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("UNLEARNLIB_PROGRESS", str(tmp_path / "progress"))
    number, optimizer = square(1.0)
    loops.descend(optimizer, [torch.tensor([0])] * 3, lambda _: number.square(), label="tuning")
    assert (tmp_path / "progress").read_text().startswith("tuning 3/3 ")
