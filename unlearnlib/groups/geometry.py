"""Say which items lie near an anchor in a feature space, and which far from it."""

import torch
from scipy.spatial.distance import cdist
from torch import Tensor

METRICS = ("euclidean", "cosine")


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


def _check_size(name: str, size: int, most: int, of: str) -> None:
    if not 1 <= size <= most:
        remedy = f"give 1 to {most}" if most >= 1 else "choose another"
        raise ValueError(f"{name}={size} of {max(most, 0) or 'no'} {of}: {remedy}")
