"""Evaluate what runs left, on test data: the only place where unlearned models meet data."""

from typing import Any

import torch

from unlearnlib.data import datasets
from unlearnlib.measures import accuracy
from unlearnlib.models import models


def run(spec: dict[str, Any]) -> dict[str, Any]:
    """Evaluate one run of any stage on the test split.

    Args:
        spec: ``run`` (file of the run) and ``data`` (file of the data set).

    Returns:
        ``final``, the confusion matrix ``[K, K]`` of the delivered model; ``models``, those of
        further models of the run by name; and the curve of its snapshots: ``pseudo_batches`` and
        ``curve`` ``[S, K, K]``.
    """
    images, labels = datasets.split(datasets.load(spec["data"]), "test")
    result = models.load_result(spec["run"])

    def count(packed: dict[str, Any]) -> torch.Tensor:
        return accuracy.confusion(models.unpack(packed), images, labels)

    snapshots = result.get("snapshots", [])
    return {
        "final": count(result["model"]),
        "models": {name: count(result[name]) for name in ("restored",) if name in result},
        "pseudo_batches": [snapshot["pseudo_batch"] for snapshot in snapshots],
        "curve": [count(snapshot["model"]) for snapshot in snapshots],
    }
