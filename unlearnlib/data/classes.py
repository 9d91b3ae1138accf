"""Forget requests by class: which classes go, and which images that leaves."""

from collections.abc import Iterable
from numbers import Integral

import torch
from torch import Tensor


def check_forget_classes(forget_classes: Iterable[int], num_classes: int) -> tuple[int, ...]:
    """Return the classes to forget, sorted, after checking them.

    Raises:
        ValueError: empty, repeated, out of range, not whole numbers, or every class.
    """
    remedy = f"give a list of different classes from 0 to {num_classes - 1}, for example [0]"
    if isinstance(forget_classes, str) or not isinstance(forget_classes, Iterable):
        raise ValueError(f"forget_classes={forget_classes!r} is not a list: {remedy}")
    classes = list(forget_classes)
    if not classes:
        raise ValueError(f"forget_classes=[] is empty, so there is nothing to forget: {remedy}")
    for value in classes:
        if isinstance(value, bool) or not isinstance(value, Integral):
            raise ValueError(f"forget_classes holds {value!r}, not a whole number: {remedy}")
        if not 0 <= value < num_classes:
            raise ValueError(f"forget_classes holds {value}, not one of the classes: {remedy}")
        if classes.count(value) > 1:
            raise ValueError(f"forget_classes={classes} holds {value} more than once: {remedy}")
    if len(classes) == num_classes:
        raise ValueError(
            f"forget_classes={classes} is every class, so none is left to retain: {remedy}"
        )
    return tuple(sorted(int(value) for value in classes))


def forget_mask(labels: Tensor, forget_classes: Iterable[int]) -> Tensor:
    """Return bool [N], true where the label is one of the classes to forget."""
    return torch.isin(
        labels, torch.tensor(list(forget_classes), dtype=labels.dtype, device=labels.device)
    )


def without_classes(x: Tensor, y: Tensor, forget_classes: Iterable[int]) -> tuple[Tensor, Tensor]:
    """Return the images and labels whose class is retained, in their order."""
    keep = ~forget_mask(y, forget_classes)
    return x[keep], y[keep]


def class_counts(labels: Tensor, num_classes: int) -> Tensor:
    """Count the items of each class: int64 [num_classes].

    Raises:
        ValueError: a label outside 0 ... num_classes - 1.
    """
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
        raise ValueError(
            f"labels run from {int(labels.min())} to {int(labels.max())}: "
            f"expected 0 to {num_classes - 1}"
        )
    return torch.bincount(labels, minlength=num_classes)
