"""Evaluate what runs left, on test data: the only place where unlearned models meet data."""

from pathlib import Path
from typing import Any

import torch

from unlearnlib.data import datasets
from unlearnlib.measures import accuracy
from unlearnlib.models import checkpoints
from unlearnlib.pipeline import records


def run(*, model: Path, data: Path) -> dict[str, Any]:
    """Evaluate one run of any stage on the test split.

    Args:
        model: file of the run.
        data: file of the data set.

    Returns:
        ``final``, the confusion matrix ``[K, K]`` of the delivered model; ``models``, those of
        further models of the run by name; and the curve of its snapshots: ``pseudo_batches`` and
        ``curve`` ``[S, K, K]``.

    Raises:
        CheckpointError: a file that is not what a run left, or that holds no model.
        DataError: a data set that is absent or damaged.
    """
    images, labels = datasets.split(datasets.load(data), "test")
    delivered, result = checkpoints.load(model), records.result(model)

    def count(packed: dict[str, Any]) -> torch.Tensor:
        return accuracy.confusion(checkpoints.unpack(packed), images, labels)

    snapshots = result.get("snapshots", [])
    further = {name: kept for name, kept in result.items() if name != "model" and _is_model(kept)}
    return {
        "final": accuracy.confusion(delivered, images, labels),
        "models": {name: count(packed) for name, packed in further.items()},
        "pseudo_batches": [snapshot["pseudo_batch"] for snapshot in snapshots],
        "curve": [count(snapshot["model"]) for snapshot in snapshots],
    }


def _is_model(value: Any) -> bool:
    return isinstance(value, dict) and {"architecture", "state_dict"} <= value.keys()
