"""Train the models of the group study, and retrain them without a group."""

from pathlib import Path
from typing import Any

import torch

from unlearnlib.data import datasets
from unlearnlib.data.requests import Request
from unlearnlib.measures import accuracy
from unlearnlib.models import checkpoints
from unlearnlib.models.training import Recipe, train


def run(
    *,
    data: Path,
    model: str,
    width: float,
    recipe: Recipe,
    request: Request | None,
    seed: int,
    start: Path | None = None,
) -> dict[str, Any]:
    """Train one model of a sweep on the training split, with or without a group of its items.

    Args:
        data: file of the data set.
        model: a name in `architectures.ARCHITECTURES`.
        width: see `architectures.build`.
        recipe: see `training.Recipe`; its ``l2`` is that of the influence functions.
        request: the group that is left out; None for an original model.
        seed: of the first weights and of the order of the images, which pairs a retrained model
            with the original of its seed.
        start: file of a model to start from instead (warm start).

    Returns:
        ``model`` (packed), ``losses`` by epoch, ``train_images``, ``shape`` of an image, and
        ``scores`` of `accuracy.measure`, where without a request "self" is the whole training
        split.
    """
    dataset = datasets.load(data)
    network, facts = train(
        dataset, model=model, width=width, recipe=recipe, request=request, seed=seed, start=start
    )
    images, labels = datasets.split(dataset, "train")
    group = torch.arange(len(labels)) if request is None else request.positions(labels)
    return facts | {
        "model": checkpoints.pack(network),
        "scores": accuracy.measure(network, dataset, group),
        "shape": list(images.shape[1:]),
    }
