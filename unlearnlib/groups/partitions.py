"""Split a group of items into parts: near, moderate and far, in every order, or at random."""

import torch
from torch import Tensor

from unlearnlib.pipeline import seeds

PARTS = ("near", "moderate", "far")


def partition(distances: Tensor) -> dict[str, Tensor]:
    """Split items by distance at one standard deviation around the mean.

    near is below μ - σ, far above μ + σ, moderate the rest; σ is that of the items themselves
    (divided by their number). Of normal distances 15.87 %, 68.27 % and 15.87 % are expected.

    Args:
        distances: ``[N]``.

    Returns:
        positions int64 for ``near``, ``moderate`` and ``far``; a part may be empty.

    Raises:
        ValueError: no items.
    """
    if len(distances) == 0:
        raise ValueError("the group is empty, so it has no parts; give at least one distance")
    centre, spread = distances.mean(), distances.std(correction=0)
    near, far = distances < centre - spread, distances > centre + spread
    masks = (near, ~(near | far), far)
    return {name: mask.nonzero().squeeze(1) for name, mask in zip(PARTS, masks, strict=True)}


def random_split(
    count: int, *, sizes: tuple[int, ...] | None = None, seed: int
) -> tuple[Tensor, ...]:
    """Split a group at random: the control that tells order by distance from mere stepping.

    Args:
        count: items of the group.
        sizes: of the parts, for example those of `partition`; three as equal as can be without it.
        seed: of the draw.

    Returns:
        positions int64 of each part, ascending; together 0 ... count - 1.

    Raises:
        ValueError: fewer than three items for three parts, or sizes of another sum.
    """
    if sizes is None:
        if count < 3:
            raise ValueError(f"3 parts of {count} items to split: give at least 3 items")
        sizes = tuple(len(part) for part in torch.arange(count).tensor_split(3))
    if sum(sizes) != count or min(sizes) < 0:
        raise ValueError(f"sizes={sizes} of {count} items: give parts that sum up to {count}")
    order = torch.randperm(count, generator=seeds.stream(seed, "random split"))
    return tuple(part.sort().values for part in order.split(sizes))
