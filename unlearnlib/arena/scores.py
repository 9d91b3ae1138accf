"""Measure what the arena's methods left, against the retrained model of the same request."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge
from torch import Tensor

from unlearnlib.arena.decoys import decoys
from unlearnlib.arena.unlearning import Unlearned, networks_of
from unlearnlib.data import datasets
from unlearnlib.data.requests import Request
from unlearnlib.measures import membership, relearning
from unlearnlib.measures.evidence import Said, evidence, sets_of
from unlearnlib.measures.metrics import Compute, measured
from unlearnlib.models import checkpoints

# sets whose margins are kept for the ensembles, and the ending of their metrics
SETS = {"forgotten": "forget", "test": "retain"}


@dataclass(frozen=True)
class Settings:
    """How much is looked at.

    Attributes:
        most: forgotten, and kept, training images at most.
        margins: images of a set whose margins are kept, the first ones.
        relearning: how models are made to learn again.
    """

    most: Annotated[int, Ge(1)]
    margins: Annotated[int, Ge(1)]
    relearning: relearning.Settings


def run(
    *,
    data: Path,
    items: int | None,
    request: Request,
    references: Mapping[str, Path],
    unlearned: Mapping[str, Unlearned],
    metrics: Mapping[str, Compute],
    settings: Settings,
    keep: bool,
    seed: int,
) -> dict[str, Any]:
    """Measure all models of one request and one original model, and decoys between it and gold.

    Args:
        data: file of the data set.
        items: training items, see `training.training_items`.
        request: what was to go.
        references: files of the original and the retrained models, by name.
        unlearned: where the unlearned models are, by method.
        metrics: what is computed, by name, see `metrics.computed`.
        settings: see `Settings`.
        keep: whether the models, and their curves of relearning, belong to the result.
        seed: of what is drawn while measuring.

    Returns:
        ``scores`` by model and metric, without those that do not apply, of which ``reasons`` holds
        why; ``margins`` by model and set; and, if they are to be kept, packed ``models`` and
        ``relearning`` curves.
    """
    sets = sets_of(datasets.load(data), request, items=items, most=settings.most)
    models = {name: checkpoints.load(path) for name, path in references.items()}
    models |= decoys(models, sets.kept[0])
    found = evidence(models | networks_of(unlearned), sets, seed=seed, lessons=settings.relearning)
    values = {
        name: {metric: measured(compute, one) for metric, compute in metrics.items()}
        for name, one in found.items()
    }
    result: dict[str, Any] = {
        "scores": {
            n: {m: v for m, (v, why) in row.items() if not why} for n, row in values.items()
        },
        "reasons": {n: {m: why for m, (_, why) in row.items() if why} for n, row in values.items()},
        "margins": {n: margins_of(one.said, most=settings.margins) for n, one in found.items()},
    }
    if keep:
        result["models"] = {n: checkpoints.pack(one.said.network) for n, one in found.items()}
        result["relearning"] = {n: one.said.relearning_curve for n, one in found.items()}
    return result


def margins_of(said: Said, *, most: int) -> dict[str, Tensor]:
    """Compute the margins of the first `most` images of some sets, in half precision."""
    return {
        name: membership.margins(
            said.logits(name)[:most], getattr(said.sets, name)[1][:most]
        ).half()
        for name in SETS
    }
