"""What the loops of training and unlearning share: batches, random shifts, the check of a loss."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F


def shift(images: Tensor, *, pixels: int, generator: torch.Generator) -> Tensor:
    """Shift a batch ``[N, C, H, W]`` by one random offset of at most `pixels` each way, zeros moving in."""
    if pixels == 0:
        return images
    down, right = torch.randint(0, 2 * pixels + 1, (2,), generator=generator).tolist()
    height, width = images.shape[-2:]
    return F.pad(images, [pixels] * 4)[..., down : down + height, right : right + width]


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


def finite(loss: Tensor) -> float:
    """Return a loss as a number, and refuse one that is not finite.

    Raises:
        FloatingPointError: NaN or infinite, so every later number would be worthless.
    """
    value = loss.item()
    if not torch.isfinite(loss):
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
