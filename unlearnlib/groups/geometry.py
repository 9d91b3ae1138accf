"""Choose groups of items to forget: by class, at random, by nearness, and split into steps."""

from itertools import permutations

import torch
from scipy.spatial.distance import cdist
from torch import Tensor

METRICS = ("euclidean", "cosine")
PARTS = ("near", "moderate", "far")


def check_group(group: Tensor, items: int) -> Tensor:
    """Return the positions of a group, int64 ``[M]``, after checking them.

    Args:
        group: positions ``[M]``, or a bool mask ``[items]``.
        items: how many there are in all.

    Raises:
        ValueError: empty, not smaller than the data, repeated or out of range.
    """
    remedy = f"give different positions from 0 to {items - 1}, fewer than {items} of them"
    if group.dtype == torch.bool:
        if group.shape != (items,):
            raise ValueError(f"a mask of shape {tuple(group.shape)} for {items} items: {remedy}")
        group = group.nonzero().squeeze(1)
    if group.ndim != 1 or group.is_floating_point():
        raise ValueError(f"a group of {group.dtype} and shape {tuple(group.shape)}: {remedy}")
    if len(group) == 0:
        raise ValueError(f"the group is empty, so there is nothing to forget: {remedy}")
    if len(group) >= items:
        raise ValueError(f"a group of {len(group)} leaves nothing of {items} items: {remedy}")
    if int(group.min()) < 0 or int(group.max()) >= items:
        raise ValueError(
            f"the group reaches from {int(group.min())} to {int(group.max())}: {remedy}"
        )
    if len(group.unique()) < len(group):
        raise ValueError(f"the group holds an item more than once: {remedy}")
    return group.long()


def coherent_group(labels: Tensor, *, label: int, size: int, seed: int) -> Tensor:
    """Draw a group from one class: positions int64 ``[size]``, in ascending order.

    Raises:
        ValueError: no size, or more than the class has.
    """
    members = (labels == label).nonzero().squeeze(1)
    _check_size("size", size, len(members), f"items of label {label}")
    return members[_draw(len(members), size, seed)]


def random_group(items: int, *, size: int, seed: int) -> Tensor:
    """Draw a group from all items, one of which stays: positions int64 ``[size]``, ascending.

    Raises:
        ValueError: no size, or all items.
    """
    _check_size("size", size, items - 1, f"items that may go, since one of {items} must stay")
    return _draw(items, size, seed)


def _draw(count: int, size: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(count, generator=generator)[:size].sort().values


def _check_size(name: str, size: int, most: int, of: str) -> None:
    if not 1 <= size <= most:
        remedy = f"give 1 to {most}" if most >= 1 else "choose another"
        raise ValueError(f"{name}={size} of {max(most, 0) or 'no'} {of}: {remedy}")


# ------------------------------------------------------------------------------ distances


def distances(features: Tensor, anchor: Tensor, *, metric: str = "euclidean") -> Tensor:
    """Measure how far features ``[N, D]`` are from one anchor ``[D]``: float64 ``[N]``.

    Args:
        features: rows to measure.
        anchor: the point to measure from.
        metric: ``euclidean``, or ``cosine``: one minus the cosine of the angle.

    Raises:
        ValueError: unknown metric, no rows, or a zero vector, which has no angle.
    """
    if metric not in METRICS:
        raise ValueError(f"unknown metric {metric!r}; choose one of {list(METRICS)}")
    if len(features) == 0:
        raise ValueError("the group is empty, so there are no distances; give at least one row")
    measured = torch.from_numpy(
        cdist(features.double().numpy(), anchor.double().numpy()[None], metric)[:, 0]
    )
    if not torch.isfinite(measured).all():
        raise ValueError(
            f"{metric} distances are not finite; look for NaN and zero vectors in the features, "
            "or take 'euclidean'"
        )
    return measured


def centroid_distances(features: Tensor, labels: Tensor, *, metric: str = "euclidean") -> Tensor:
    """Measure how far each item is from the mean of its own class.

    Args:
        features: ``[N, D]``.
        labels: ``[N]``.
        metric: see `distances`.

    Returns:
        float64 ``[N]``.

    Raises:
        ValueError: as in `distances`.
    """
    measured = torch.empty(len(features), dtype=torch.float64)
    for label in labels.unique():
        members = features[labels == label]
        measured[labels == label] = distances(members, members.double().mean(0), metric=metric)
    return measured


def neighbours(
    features: Tensor,
    labels: Tensor,
    *,
    label: int,
    k: int,
    anchor: Tensor | None = None,
    metric: str = "euclidean",
    farthest: bool = False,
) -> Tensor:
    """Find the k items of a label that are nearest to an anchor, or farthest from it.

    Args:
        features: ``[N, D]``.
        labels: ``[N]``.
        label: the class to search.
        k: how many.
        anchor: ``[D]``; the mean of the class without it.
        metric: see `distances`.
        farthest: from the far end instead.

    Returns:
        positions int64 ``[k]``, nearest first (farthest first); ties in the order of the items.

    Raises:
        ValueError: k below 1 or above the size of the class.
    """
    members = (labels == label).nonzero().squeeze(1)
    _check_size("k", k, len(members), f"items of label {label}")
    anchor = features[members].double().mean(0) if anchor is None else anchor
    measured = distances(features[members], anchor, metric=metric)
    return members[measured.argsort(descending=farthest, stable=True)[:k]]


# ---------------------------------------------------------------------------------- steps


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
        _check_size("parts", 3, count, "items to split")
        sizes = tuple(len(part) for part in torch.arange(count).tensor_split(3))
    if sum(sizes) != count or min(sizes) < 0:
        raise ValueError(f"sizes={sizes} of {count} items: give parts that sum up to {count}")
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return tuple(part.sort().values for part in order.split(sizes))


def orders() -> list[tuple[str, ...]]:
    """List the six orders in which near, moderate and far can be forgotten."""
    return list(permutations(PARTS))
