"""Train the models of the group study, and retrain them without a group."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from unlearnlib.data import datasets
from unlearnlib.data.requests import Request
from unlearnlib.influence.curvature import Objective, gradient_sum
from unlearnlib.measures import accuracy
from unlearnlib.models import checkpoints, networks
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
        split, with ``class_accuracy`` in percent on all that a group was drawn from, removed or not:
        its class, or for a random group the whole training split. An original model's has
        ``gradient_norm``, too: ``‖∇L‖`` of the objective, how far from a minimum it is.
    """
    dataset = datasets.load(data)
    network, facts = train(
        dataset, model=model, width=width, recipe=recipe, request=request, seed=seed, start=start
    )
    images, labels = datasets.split(dataset, "train")
    everything = torch.arange(len(labels))
    group = everything if request is None else request.positions(labels)
    label = getattr(request, "label", None)
    source = everything if label is None else everything[labels == label]
    of_source = accuracy.score(network, images[source], labels[source])["accuracy"]
    if request is None:
        objective = Objective(network, images, labels, l2=recipe.l2)
        facts |= {"gradient_norm": gradient_sum(objective).norm().item() / len(labels)}
    return facts | {
        "model": checkpoints.pack(network),
        "scores": accuracy.measure(network, dataset, group) | {"class_accuracy": of_source},
        "shape": list(images.shape[1:]),
    }


def original_levels(
    originals: Mapping[int, Path], dataset: datasets.Dataset, *, labels: Iterable[int]
) -> pd.DataFrame:
    """Measure the originals on what groups are drawn from: each class, and everything.

    Args:
        originals: files of the models, by seed.
        dataset: the data set.
        labels: classes.

    Returns:
        ``class_accuracy`` in percent on training items, by label as in `tables.tidy`, and seed.
    """
    images, truth = datasets.split(dataset, "train")
    sources = {"all": torch.ones_like(truth, dtype=torch.bool)}
    sources |= {str(label): truth == label for label in labels}
    rows = {}
    for seed, path in originals.items():
        predicted = networks.predict(checkpoints.load(path), images)
        for label, mine in sources.items():
            found = accuracy.percent_correct(predicted[mine], truth[mine])
            rows[label, seed] = {"class_accuracy": found}
    return pd.DataFrame(rows).T.rename_axis(["label", "seed"])
