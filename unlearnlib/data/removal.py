"""Requests to remove a group of training items, and what is measured of a model that did."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unlearnlib.data import datasets
from unlearnlib.groups.geometry import coherent_group, random_group
from unlearnlib.models import models

MODES = ("coherent", "random")
MEASURES = ("accuracy", "loss")


def draw(labels: Tensor, request: dict[str, Any]) -> Tensor:
    """Draw the group of a request from the labels ``[N]`` of the training items.

    Args:
        labels: class numbers.
        request: ``mode`` (``coherent``: from one class; ``random``: from all), ``label`` of a
            coherent group, ``size``, and ``seed`` of the draw.

    Returns:
        positions int64 ``[size]``, ascending.

    Raises:
        ValueError: unknown mode, or a size that the class or the data cannot give.
    """
    mode, size, seed = (request[key] for key in ("mode", "size", "seed"))
    if mode not in MODES:
        raise ValueError(f"unknown mode {mode!r}; choose one of {list(MODES)}")
    if mode == "coherent":
        return coherent_group(labels, label=request["label"], size=size, seed=seed)
    return random_group(len(labels), size=size, seed=seed)


def score(network: nn.Module, images: Tensor, labels: Tensor) -> dict[str, float]:
    """Measure ``accuracy`` in percent and mean cross-entropy ``loss`` in nats."""
    logits = models.predict(network, images)
    correct = (logits.argmax(1) == labels).float().mean()
    return {"accuracy": 100 * correct.item(), "loss": F.cross_entropy(logits, labels).item()}


def measure(network: nn.Module, dataset: datasets.Dataset, group: Tensor) -> dict[str, float]:
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


def rest(count: int, group: Tensor) -> Tensor:
    """Return the positions that stay when a group goes: int64 ``[count - M]``, ascending."""
    keep = torch.ones(count, dtype=torch.bool)
    keep[group] = False
    return keep.nonzero().squeeze(1)
