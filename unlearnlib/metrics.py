"""Measure what a classifier still knows, from its confusion matrix on data it was not tuned on."""

from collections.abc import Iterable

import torch
from sklearn.metrics import confusion_matrix
from torch import Tensor, nn

from unlearnlib import models


def confusion(network: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Count predictions: int64 ``[K, K]``, true classes in rows, predicted ones in columns."""
    predicted = models.predict(network, images).argmax(1)
    return torch.from_numpy(
        confusion_matrix(labels, predicted, labels=range(models.num_classes(network)))
    )


def retain_accuracy(counts: Tensor, forget_classes: Iterable[int]) -> float:
    """Compute the accuracy in percent on images of the classes that stay."""
    kept = [k for k in range(len(counts)) if k not in set(forget_classes)]
    return _accuracy(counts, kept)


def forget_accuracy(counts: Tensor, forget_classes: Iterable[int]) -> float:
    """Compute the accuracy in percent on images of the classes to forget; a gold model has 0."""
    return _accuracy(counts, sorted(forget_classes))


def _accuracy(counts: Tensor, chosen: list[int]) -> float:
    total = counts[chosen].sum().item()
    if total == 0:
        raise ValueError(f"no image of the classes {chosen}; evaluate on data that has some")
    return 100 * counts[chosen, chosen].sum().item() / total
