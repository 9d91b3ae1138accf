"""One arena: the same forget requests, given to every method that can serve them.

A method belongs to a family (`requests.FAMILIES`), which says what it reads beside the original
model; each family has its run here, but for the methods without data, whose run is
`zero_shot.methods.run`. All start from an original model of the same architecture, trained on the
regularised objective that influence assumes, and are compared with a model that was retrained
without the items.

A run of one method for one request leaves its ``model``; a run of influence, which serves many
requests from one curvature, leaves ``models`` by request and method. `Unlearned` says where to find
one of them, so that nobody else need know.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor, nn

from unlearnlib.arena.baselines import Baseline
from unlearnlib.data import datasets
from unlearnlib.data.requests import Request, rest
from unlearnlib.influence import curvature, estimators
from unlearnlib.influence.criteria import CRITERIA
from unlearnlib.influence.curvature import Objective
from unlearnlib.influence.estimators import Estimator, Removal, Update
from unlearnlib.influence.scale import Rule, choose_scale, judge
from unlearnlib.influence.solvers import Dense
from unlearnlib.models import checkpoints, training
from unlearnlib.pipeline import clock, records, seeds
from unlearnlib.pipeline.records import Record

Part = tuple[Tensor, Tensor]  # images [N, C, H, W] and labels [N]
JUDGED = 1000  # forgotten items, and validation images, that choose a scale


@dataclass(frozen=True)
class Unlearned:
    """Say where an unlearned model is.

    Attributes:
        file: of the run.
        keys: that lead to the packed model inside its result.
    """

    file: Path
    keys: tuple[str, ...] = ("model",)

    def seconds(self, record: Record) -> float:
        """Read from the record of the run what the method took alone, shared parts in full."""
        parts = ("unlearning",)
        if self.keys != ("model",):
            parts = ("curvature", "/".join(self.keys[1:]))
        return sum(record.timings[part] for part in parts)


def networks_of(unlearned: Mapping[str, Unlearned]) -> dict[str, nn.Module]:
    """Load unlearned models by name, each file once.

    Raises:
        RecordError: a file that is no record of a run.
        CheckpointError: no model in it.
    """
    results: dict[Path, dict[str, Any]] = {}
    found = {}
    for name, one in unlearned.items():
        if one.file not in results:
            results[one.file] = records.result(one.file)
        packed = results[one.file]
        for key in one.keys:
            packed = packed[key]
        found[name] = checkpoints.unpack(packed)
    return found


# ---------------------------------------------------------------------------------- with data


def run_baseline(
    *,
    method: Baseline,
    settings: Any,
    request: Request,
    original: Path,
    data: Path,
    items: int | None,
    retained_items: int,
    seed: int,
) -> dict[str, Any]:
    """Unlearn with the data at hand, see `baselines`.

    Args:
        method: an entry of `baselines.BASELINES`, or another.
        settings: of the class that the method names.
        request: what is to go.
        original: file of the model.
        data: file of the data set.
        items: training items, see `training.training_items`.
        retained_items: how many of those that stay it may read, drawn at random.
        seed: of the draw and the method.

    Returns:
        ``model`` (packed), and ``train_images``, how many it was handed.

    Raises:
        ValueError: a request that the data cannot serve.
    """
    images, labels = training.training_items(datasets.load(data), items=items)
    gone = request.positions(labels)
    kept = rest(len(labels), gone)
    order = torch.randperm(len(kept), generator=seeds.stream(seed, "retained items"))
    some = kept[order[:retained_items]]
    network, parts = checkpoints.load(original), [(images[p], labels[p]) for p in (gone, some)]
    with clock.timed("unlearning"):
        unlearned = method.unlearn(network, *parts, settings=settings, seed=seed)
    return {"model": checkpoints.pack(unlearned), "train_images": len(gone) + len(some)}


# ---------------------------------------------------------------------------------- influence


@dataclass(frozen=True)
class Influence:
    """What the estimators of the arena have in common.

    Attributes:
        curvature_items: items of the random sample C that the curvature is formed on.
        third_items: items that estimate the third derivative, the first of C.
        ratio: share of the parameters that an estimator over a subset may change.
        rule: by which the scaled estimators choose their scale.
        l2: λ of the trained objective.
        damping: added to the diagonal of the curvature.
    """

    curvature_items: Annotated[int, Ge(1)]
    third_items: Annotated[int, Ge(1)]
    ratio: Annotated[float, Gt(0), Le(1)]
    rule: Rule
    l2: Annotated[float, Ge(0)]
    damping: Annotated[float, Ge(0)]


def run_influence(
    *,
    original: Path,
    data: Path,
    items: int | None,
    requests: dict[str, Request],
    methods: list[Estimator],
    settings: Influence,
    seed: int,
) -> dict[str, Any]:
    """Unlearn several requests by influence, with every estimator, from one original model.

    The Gauss-Newton matrix is formed once, on a random sample C of the items, and shared by all
    requests. The curvature of the forgotten items is that of those in C, so that what is taken out
    of the matrix was in it, and Newton's system is never indefinite.

    Args:
        original: file of the model.
        data: file of the data set.
        items: training items, see `training.training_items`.
        requests: what is to go, by name.
        methods: estimators; each serves the requests that it can.
        settings: see `Influence`.
        seed: of what is drawn.

    Returns:
        by request and method the packed ``models`` and the ``scales`` of the updates; ``residual``,
        the largest relative residual of a solve.
    """
    dataset, network = datasets.load(data), checkpoints.load(original).eval()
    images, labels = training.training_items(dataset, items=items)
    objective = Objective(network, images, labels, l2=settings.l2)
    with clock.timed("curvature"):
        sample, system = _curvature(objective, settings, seed=seed)
    found: dict[str, Any] = {"models": {}, "scales": {}, "residual": 0.0}
    for name, request in requests.items():
        found["models"][name], found["scales"][name] = {}, {}
        removal = _removal(objective, request.positions(labels), system, sample, settings, seed)
        for method in methods:
            if method.cannot(request):
                continue
            part = f"{name}/{method.name}"
            moved, scale, residual = _moved(method, removal, dataset, settings.rule, part)
            found["models"][name][method.name] = checkpoints.pack(moved)
            found["scales"][name][method.name] = scale
            found["residual"] = max(found["residual"], residual)
    return found


def _curvature(objective: Objective, settings: Influence, *, seed: int) -> tuple[Tensor, Dense]:
    """Draw the sample, and form and factor its curvature, once for all requests."""
    order = torch.randperm(objective.items, generator=seeds.stream(seed, "curvature sample"))
    sample = order[: settings.curvature_items]
    system = Dense(curvature.gauss_newton(objective, index=sample), settings.damping)
    system.solve(curvature.flatten(objective.network))
    return sample, system


def _removal(
    objective: Objective,
    group: Tensor,
    system: Dense,
    sample: Tensor,
    settings: Influence,
    seed: int,
) -> Removal:
    """Put together what the estimators may read of a request."""

    def mask() -> Tensor:
        own = objective.inputs[group], objective.targets[group]
        chosen = CRITERIA["top_gradients"]
        return chosen.select(objective.network, *own, ratio=settings.ratio, seed=seed)

    third = sample[: settings.third_items]
    return Removal(objective, group, system, sample=sample, mask=mask, third_items=third)


def _moved(
    method: Estimator, removal: Removal, dataset: datasets.Dataset, rule: Rule, part: str
) -> tuple[nn.Module, float, float]:
    """Move the model by an estimate; return it, the scale, and the residual of the solves.

    The seconds that the method would take alone, but for the curvature, are added to `part`.
    """
    update, seconds = method.timed(removal)
    clock.add(part, seconds)
    with clock.timed(part):
        scale = _scale(update, removal, dataset, rule) if method.scaled else 1.0
        moved = estimators.apply_update(removal.objective.network, update.delta, scale)
    return moved, scale, update.residual


def _scale(update: Update, removal: Removal, dataset: datasets.Dataset, rule: Rule) -> float:
    """Choose the scale on forgotten training items and on validation images that stay."""
    objective, group = removal.objective, removal.group[:JUDGED]
    forgotten = objective.inputs[group], objective.targets[group]
    images, labels = datasets.split(dataset, "validation")
    stay = ~torch.isin(labels, forgotten[1].unique())
    staying = images[stay][:JUDGED], labels[stay][:JUDGED]
    at = judge(objective.network, update.delta, forgotten=forgotten, staying=staying)
    return choose_scale(at, rule)[0]
