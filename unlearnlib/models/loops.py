"""What every loop that trains a network shares: batches, shifts, schedules, and the loop itself."""

import math
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from unlearnlib.pipeline.progress import track


def descend(
    optimizer: torch.optim.Optimizer,
    order: Iterable[Tensor],
    loss_of: Callable[[Tensor], Tensor | None],
    *,
    schedule: torch.optim.lr_scheduler.LRScheduler | None = None,
    after: Callable[[int], None] | None = None,
    label: str = "training",
) -> list[float]:
    """Take a step of an optimiser for each batch of positions: the study's one training loop.

    Args:
        optimizer: of the parameters that the loss depends on.
        order: positions ``[B]`` of each batch, as of `batches`.
        loss_of: the loss of a batch, a scalar with its graph; None where a batch is to be skipped.
        schedule: of the learning rate, stepped after each step that was taken.
        after: called after each step that was taken, with its number from 1 on.
        label: of the progress.

    Returns:
        the loss before each step that was taken.

    Raises:
        FloatingPointError: a loss that is not finite.
    """
    losses = []
    for index in track(list(order), label):
        if (loss := loss_of(index)) is None:
            continue
        losses.append(finite(loss))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if schedule is not None:
            schedule.step()
        if after is not None:
            after(len(losses))
    return losses


def batches(
    count: int, *, batch_size: int, steps: int, generator: torch.Generator
) -> Iterator[Tensor]:
    """Yield `steps` index tensors of `batch_size`, epoch after epoch in new random orders."""
    size, order = min(batch_size, count), torch.empty(0, dtype=torch.long)
    for _ in range(steps):
        if len(order) < size:
            order = torch.randperm(count, generator=generator)
        yield order[:size]
        order = order[size:]


def shift(images: Tensor, *, pixels: int, generator: torch.Generator) -> Tensor:
    """Shift a batch ``[N, C, H, W]`` by one offset of at most `pixels` each way; zeros move in."""
    if pixels == 0:
        return images
    down, right = torch.randint(0, 2 * pixels + 1, (2,), generator=generator).tolist()
    height, width = images.shape[-2:]
    return F.pad(images, [pixels] * 4)[..., down : down + height, right : right + width]


def finite(loss: Tensor) -> float:
    """Return a loss as a number, and refuse one that is not finite.

    Raises:
        FloatingPointError: NaN or infinite, so every later number would be worthless.
    """
    value = loss.item()
    if not math.isfinite(value):
        raise FloatingPointError(
            f"the loss is {value}; lower the learning rate and look at the inputs"
        )
    return value


def one_cycle(
    optimizer: torch.optim.Optimizer, rate: float, *, steps: int
) -> torch.optim.lr_scheduler.OneCycleLR:
    """Make a one-cycle learning rate: up to `rate` over a quarter of the steps, then down."""
    rise = 0.25 if steps != 4 else 0.3  # torch divides by the end of the rise, 0.25 * 4 - 1
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=rise)
