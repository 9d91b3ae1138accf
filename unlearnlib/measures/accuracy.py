"""Measure what a classifier still knows: accuracy, loss, confusions, calibration."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unlearnlib.data import datasets
from unlearnlib.data.datasets import Dataset
from unlearnlib.models import architectures, networks

MEASURES = ("accuracy", "loss")


def score(network: nn.Module, images: Tensor, labels: Tensor) -> dict[str, float]:
    """Measure ``accuracy`` in percent and mean cross-entropy ``loss`` in nats."""
    logits = networks.predict(network, images)
    return {
        "accuracy": percent_correct(logits, labels),
        "loss": F.cross_entropy(logits, labels).item(),
    }


def percent_correct(logits: Tensor, labels: Tensor) -> float:
    """Compute the share of logits ``[N, K]`` whose largest is that of the label ``[N]``, in percent."""
    return 100 * (logits.argmax(1) == labels).double().mean().item()


def measure(network: nn.Module, dataset: Dataset, group: Tensor) -> dict[str, float]:
    """Measure a model on the removed items ("self"), on validation and on test images.

    Args:
        network: the model, original, retrained or updated.
        dataset: whose training split the group belongs to.
        group: positions in the training split.

    Returns:
        ``self_accuracy``, ``self_loss`` and the same of ``validation`` and ``test``: accuracies
        in percent, mean cross-entropies in nats, without the penalty.
    """
    images, labels = datasets.split(dataset, "train")
    parts = {
        "self": (images[group], labels[group]),
        "validation": datasets.split(dataset, "validation"),
        "test": datasets.split(dataset, "test"),
    }
    scores = {name: score(network, *part) for name, part in parts.items()}
    return {f"{name}_{key}": scores[name][key] for name in parts for key in MEASURES}


def confusion(network: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Count predictions: int64 ``[K, K]``, true classes in rows, predicted ones in columns."""
    predicted = networks.predict(network, images).argmax(1)
    return pairs(labels, predicted, classes=architectures.num_classes(network))


def pairs(labels: Tensor, predicted: Tensor, *, classes: int) -> Tensor:
    """Count pairs of classes: int64 ``[K, K]``, true ones in rows, predicted ones in columns."""
    cells = torch.bincount(labels * classes + predicted, minlength=classes**2)
    return cells.reshape(classes, classes)


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


def nearest_mean(features: Tensor, labels: Tensor, asked: Tensor) -> Tensor:
    """Classify features by the nearest class mean, in Euclidean distance.

    What the read-out of a network in neural collapse says, too (Papyan et al. 2020, NC4); where
    it says otherwise, it is misaligned with the features (Gao et al. 2026, arXiv 2604.08271).

    Args:
        features: ``[N, D]`` that the means are taken of.
        labels: ``[N]``, their classes; each counts alike, however many items it has.
        asked: ``[M, D]``.

    Returns:
        the class ``[M]`` whose mean is the nearest.

    Raises:
        ValueError: no features, or features that are the same for every item.
    """
    if len(features) == 0 or torch.equal(features, features[:1].expand_as(features)):
        raise ValueError("features that are the same for every item have no nearest class mean")
    classes = labels.unique()
    means = torch.stack([features[labels == k].double().mean(0) for k in classes])
    return classes[torch.cdist(asked.double(), means).argmin(1)]


def confusion_shift(counts: Tensor, reference: Tensor) -> Tensor:
    """Compute how far each true class is answered otherwise than by a reference model.

    The total variation distance between the rows of two confusion matrices, each row as shares of
    its class: the percentage of a class's images that would have to get another answer.

    Args:
        counts: int64 ``[K, K]``, of `confusion`.
        reference: the same of the other model, on the same images.

    Returns:
        percent ``[K]``, NaN for a class without images.

    Raises:
        ValueError: matrices of different shapes, or of different images.
    """
    if counts.shape != reference.shape or not torch.equal(counts.sum(1), reference.sum(1)):
        raise ValueError("two confusion matrices of different images; evaluate both on the same")
    shares = [c.double() / c.sum(1, keepdim=True) for c in (counts, reference)]
    return 100 * (shares[0] - shares[1]).abs().sum(1) / 2


def calibration_error(logits: Tensor, labels: Tensor, *, bins: int = 15) -> float:
    """Compute the expected calibration error in percent (Guo et al. 2017, equation 3).

    Args:
        logits: ``[N, K]``.
        labels: ``[N]``.
        bins: of equal width, over the confidence of the predicted class.

    Returns:
        the mean over items of the gap between confidence and accuracy of their bin, 0 to 100.

    Raises:
        ValueError: no items.
    """
    if len(labels) == 0:
        raise ValueError("no items to calibrate on; give at least one")
    confidence, predicted = logits.double().softmax(1).max(1)
    # a confidence on a border belongs to the bin below it
    place = (confidence * bins).ceil().long().clamp(1, bins) - 1
    gap = (predicted == labels).double() - confidence
    sums = torch.zeros(bins, dtype=torch.float64).index_add(0, place, gap)
    return 100 * sums.abs().sum().item() / len(labels)
