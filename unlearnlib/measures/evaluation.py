"""Evaluate what runs left, on data that no run has seen: there alone unlearned models meet data."""

from pathlib import Path
from typing import Any

import torch

from unlearnlib.data import datasets
from unlearnlib.measures import accuracy
from unlearnlib.models import checkpoints, networks
from unlearnlib.pipeline import records


def run(*, model: Path, data: Path, split: str = "test") -> dict[str, Any]:
    """Evaluate one run of any stage.

    Args:
        model: file of the run.
        data: file of the data set.
        split: ``test``, or ``validation`` for runs that something is developed on.

    Returns:
        ``final``, the confusion matrix ``[K, K]`` of the delivered model; ``models``, those of
        further models of the run by name; and the curve of its snapshots: ``pseudo_batches`` and
        ``curve`` ``[S, K, K]``.

    Raises:
        CheckpointError: a file that is not what a run left, or that holds no model.
        DataError: a data set that is absent or damaged.
    """
    images, labels = datasets.split(datasets.load(data), split)
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


def keeps_pictures(run: Path) -> bool:
    """Tell whether a run kept images that it drew, with the class that its teacher sees in each."""
    result = records.result(run)
    return "image_labels" in result and len(result["images"]) > 0


def run_judged(*, run: Path, judge: Path) -> dict[str, Any]:
    """Ask a classifier that had no part in them about the images that a run drew.

    Args:
        run: a file with ``images``, bytes ``[n, C, H, W]``, and ``image_labels`` ``[n]``, the class
            that the run's teacher sees in each.
        judge: file of a gold model of another seed, which has seen some of the classes alone.

    Returns:
        ``images``, how many are of a class that the judge has seen; of these in percent:
        ``agreement``, where it sees the teacher's class, and its mean ``confidence``.

    Raises:
        CheckpointError: a file that holds no model.
    """
    result, network = records.result(run), checkpoints.load(judge).eval()
    gone = (records.arguments(judge).get("request") or {}).get("classes", [])
    known = ~torch.isin(result["image_labels"], torch.tensor(gone, dtype=torch.long))
    images, seen = result["images"][known].float() / 255, result["image_labels"][known]
    if len(images) == 0:
        return {"images": 0, "agreement": float("nan"), "confidence": float("nan")}
    confidence, predicted = networks.predict(network, images).softmax(1).max(1)
    return {
        "images": len(images),
        "agreement": 100 * (predicted == seen).double().mean().item(),
        "confidence": 100 * confidence.double().mean().item(),
    }


def _is_model(value: Any) -> bool:
    return isinstance(value, dict) and {"architecture", "state_dict"} <= value.keys()
