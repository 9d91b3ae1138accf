"""Forget a class by an update of a share of a network's parameters: criteria, dampings and scales.

The generalized influence function (Lyu et al. 2023, arXiv 2312.05586) changes the parameters φ that
a criterion of `influence.criteria` chose. The systems are those of `influence.thin`: exact, although
the network has far more parameters than the curvature has rows.

Removing a class is no small perturbation. The update therefore gives a direction, and `scale` says
how far to go along it. For the same reason the curvature may be taken over what stays, as in
Newton's step: over all items, the curvature of the class itself holds back the directions that
forget it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pandas as pd
import torch
from annotated_types import Ge, Gt, Le, MinLen
from torch import Tensor, nn

from unlearnlib.data import datasets
from unlearnlib.data.requests import Classes, Group
from unlearnlib.influence import curvature, scale
from unlearnlib.influence.criteria import Criterion
from unlearnlib.influence.curvature import Objective
from unlearnlib.influence.estimators import ESTIMATORS, Estimator, Removal, Update, apply_update
from unlearnlib.influence.scale import Rule
from unlearnlib.influence.solvers import MatrixFree, SolveError
from unlearnlib.influence.thin import Thin
from unlearnlib.measures import accuracy
from unlearnlib.models import checkpoints, networks
from unlearnlib.pipeline import clock, seeds
from unlearnlib.pipeline.records import Record

Row = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """A way to update a share of the parameters.

    Attributes:
        estimator: one over a subset of the parameters.
        criterion: what chooses them.
        ratio: share of each layer's parameters.

    Raises:
        ValueError: an estimator of all parameters.
    """

    estimator: Estimator
    criterion: Criterion
    ratio: Annotated[float, Gt(0), Le(1)]

    def __post_init__(self) -> None:
        if not self.estimator.partial:
            partial = [name for name, entry in ESTIMATORS.items() if entry.partial]
            raise ValueError(
                f"estimator {self.estimator.name!r} changes all parameters; choose one of {partial}"
            )

    @property
    def facts(self) -> Row:
        """The case as columns of a table."""
        return {
            "estimator": self.estimator.name,
            "criterion": self.criterion.name,
            "modification_ratio": self.ratio,
        }


@dataclass(frozen=True)
class Settings:
    """What all cases of a network share.

    Attributes:
        l2: λ of the trained objective.
        dampings: candidates, added to the curvature beside λ.
        curvature_images: training items of the curvature.
        curvature_of: which they are drawn from, ``all`` items or those that are ``kept``.
        gradient_images: items to forget that their gradient is estimated from; None for all.
        score_images: items to forget that score the units and judge a scale, at most.
        validation_images: of the other classes, which judge it too, at most.
        rule: of the scale.
    """

    l2: Annotated[float, Ge(0)]
    dampings: Annotated[tuple[float, ...], MinLen(1)]
    curvature_images: Annotated[int, Ge(1)]
    curvature_of: Literal["all", "kept"]
    gradient_images: Annotated[int, Ge(1)] | None
    score_images: Annotated[int, Ge(1)]
    validation_images: Annotated[int, Ge(1)]
    rule: Rule


def measure(network: nn.Module, dataset: datasets.Dataset, request: Classes) -> dict[str, float]:
    """Measure a model that is to forget classes.

    Returns:
        ``self_accuracy`` and ``self_loss`` on the training images of the classes,
        ``test_accuracy`` and ``test_loss`` on the test images of the *others*, and
        ``all_test_accuracy`` on all test images: percent, and mean cross-entropy in nats.
    """
    images, labels = datasets.split(dataset, "train")
    group = request.mask(labels)
    own = accuracy.score(network, images[group], labels[group])
    images, labels = datasets.split(dataset, "test")
    stay = ~request.mask(labels)
    others = accuracy.score(network, images[stay], labels[stay])
    gone = accuracy.score(network, images[~stay], labels[~stay])
    share = stay.double().mean().item()
    both = share * others["accuracy"] + (1 - share) * gone["accuracy"]
    named = {f"self_{key}": value for key, value in own.items()}
    named |= {f"test_{key}": value for key, value in others.items()}
    return named | {"all_test_accuracy": both}


def run(
    *,
    data: Path,
    original: Path,
    retrained: Path,
    request: Classes,
    cases: Sequence[Case],
    settings: Settings,
    seed: int,
) -> dict[str, Any]:
    """Forget classes with one network by every case: estimator, criterion and modification ratio.

    The group is all training items of the classes. The rows of the curvature and the gradient are
    computed once; each case then takes one solve and the judging of its scales. The damping is
    chosen without test data too: the first case is solved with each candidate, and the one that
    keeps the highest validation accuracy at its scale, of equals the larger, serves every case.

    Args:
        data: file of the data set.
        original: file of the model to unlearn from.
        retrained: file of the one that never saw the classes.
        request: what to forget.
        cases: at least one.
        settings: see `Settings`.
        seed: of all draws.

    Returns:
        ``rows``, one for the original, the retrained model and each case; ``curve``, the judged
        scales of each case, and of the first one at each damping; ``damping``, the chosen one.

    Raises:
        ValueError: more items asked for than there are.
        SolveError: no trustworthy solution.
    """
    with clock.timed("shared"):
        task = _task(datasets.load(data), original, request, settings, seed)
        system, row, curve = _choose_damping(task, cases[0])
    rows = [
        {"estimator": name} | measure(network, task.dataset, request)
        for name, network in (
            ("original", task.objective.network),
            ("retrain", checkpoints.load(retrained)),
        )
    ]
    rows.append(_measured(task, row))
    for case in cases[1:]:
        row, judged = _forget(task, system, case)
        rows.append(_measured(task, row))
        curve += judged
    return {"rows": rows, "curve": curve, "damping": row["damping"]}


@dataclass(frozen=True, eq=False)
class _Task:
    """Hold what the cases of one network share.

    Attributes:
        dataset: the data set.
        request: what to forget.
        settings: see `Settings`.
        seed: of all draws.
        objective: over the training split, at θ̂.
        group: positions of all items to forget.
        rows: of the curvature, see `curvature.rooted_jacobian`.
        gradient: g_U ``[P]``, or its estimate.
        scorers: positions of items to forget that score units and judge a scale.
    """

    dataset: datasets.Dataset
    request: Classes
    settings: Settings
    seed: int
    objective: Objective
    group: Tensor
    rows: Tensor
    gradient: Tensor
    scorers: Tensor


def _task(
    dataset: datasets.Dataset, original: Path, request: Classes, settings: Settings, seed: int
) -> _Task:
    """Compute what the cases share: rows of the curvature, and the gradient of the classes."""
    images, labels = datasets.split(dataset, "train")
    network = networks.frozen(checkpoints.load(original))
    objective = Objective(network, images, labels, l2=settings.l2)
    group = request.positions(labels)
    index = curvature_items(labels, request, settings, seed=seed)
    scored = min(settings.score_images, len(group))
    return _Task(
        dataset=dataset,
        request=request,
        settings=settings,
        seed=seed,
        objective=objective,
        group=group,
        rows=curvature.rooted_jacobian(objective, index=index),
        gradient=group_gradient(objective, group, items=settings.gradient_images, seed=seed),
        scorers=_draw(group, "score_images", scored, seed=seed),
    )


def curvature_items(labels: Tensor, request: Classes, settings: Settings, *, seed: int) -> Tensor:
    """Draw the items of the curvature: positions ``[N]``.

    Raises:
        ValueError: more than there are.
    """
    source = torch.arange(len(labels))
    if settings.curvature_of == "kept":
        source = source[~request.mask(labels)]
    return _draw(source, "curvature_images", settings.curvature_images, seed=seed)


def group_gradient(objective: Objective, group: Tensor, *, items: int | None, seed: int) -> Tensor:
    """Sum the gradients of a group, or estimate the sum from so many of its items.

    Raises:
        ValueError: more than there are.
    """
    if items is None:
        return curvature.gradient_sum(objective, index=group)
    drawn = _draw(group, "gradient_images", items, seed=seed)
    return curvature.gradient_sum(objective, index=drawn) * (len(group) / len(drawn))


def _draw(source: Tensor, name: str, count: int, *, seed: int) -> Tensor:
    """Draw some positions of a source, ascending."""
    if count > len(source):
        raise ValueError(f"{name}={count} of {len(source)} items: give 1 to {len(source)}")
    order = torch.randperm(len(source), generator=seeds.stream(seed, name))
    return source[order[:count]].sort().values


def _choose_damping(task: _Task, case: Case) -> tuple[Thin, Row, list[Row]]:
    """Solve a case with each damping; return the best one's system and row, and all curves."""
    settings = task.settings
    found: list[tuple[Thin, Row]] = []
    curve: list[Row] = []
    system = Thin(task.rows, 1.0)
    for damping in settings.dampings:
        system = system.at(settings.l2 + damping)
        row, judged = _forget(task, system, case)
        found.append((system, row))
        curve += judged

    def quality(pair: tuple[Thin, Row]) -> tuple[bool, float, float]:
        system, row = pair
        forgotten = row["judged_self"] <= settings.rule.self_limit
        return forgotten, row["judged_validation"], system.damping

    system, row = max(found, key=quality)
    return system, row, curve


def _forget(task: _Task, system: Thin, case: Case) -> tuple[Row, list[Row]]:
    """Solve one case and choose its scale; return its row, with the update, and its curve."""
    named = case.facts | {"damping": round(system.damping - task.settings.l2, 12)}
    removal = Removal(
        task.objective,
        task.group,
        system,
        mask=lambda: _chosen(task, case),
        given_gradient=task.gradient,
    )
    update, seconds = case.estimator.timed(removal)
    clock.add(_timing(named), seconds)
    chosen, judged = scale.choose_scale(_judge(task, update.delta), task.settings.rule)
    at = next(point for point in judged if point["scale"] == chosen)
    row = named | {
        "scale": chosen,
        "parameters": int(removal.phi.sum()),
        "residual": update.residual,
        "update_norm": chosen * update.delta.norm().item(),
        "judged_self": at["self_accuracy"],
        "judged_validation": at["validation_accuracy"],
        "delta": update.delta,
    }
    return row, [named | point for point in judged]


def _chosen(task: _Task, case: Case) -> Tensor:
    """Choose the parameters of a case: bool ``[P]``."""
    objective = task.objective
    own, labels = objective.inputs[task.scorers], objective.targets[task.scorers]
    return case.criterion.select(
        objective.network, own, labels, ratio=case.ratio, seed=task.seed, loss=objective.loss
    )


def _judge(task: _Task, delta: Tensor) -> scale.Judge:
    """Judge by forgotten training items and by validation images of the other classes."""
    objective = task.objective
    images, labels = datasets.split(task.dataset, "validation")
    stay = (~task.request.mask(labels)).nonzero().squeeze(1)[: task.settings.validation_images]
    return scale.judge(
        objective.network,
        delta,
        forgotten=(objective.inputs[task.scorers], objective.targets[task.scorers]),
        staying=(images[stay], labels[stay]),
    )


def _measured(task: _Task, row: Row) -> Row:
    """Replace the update of a row by what the updated model scores."""
    moved = apply_update(task.objective.network, row["delta"], row["scale"])
    kept = {key: value for key, value in row.items() if key != "delta"}
    return kept | measure(moved, task.dataset, task.request)


def _timing(row: Row) -> str:
    """Name the seconds of a solve."""
    return f"{row['estimator']} {row['criterion']} {row['modification_ratio']:g} {row['damping']:g}"


def tables(found: dict[str, Record]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Join the results of a sweep of `run`, with the ``seed`` of each.

    Returns:
        ``rows``, with the ``seconds`` of each solve, and ``curve``.
    """
    rows = [
        {"seed": record.arguments["seed"]}
        | row
        | {"seconds": record.timings[_timing(row)] if "criterion" in row else float("nan")}
        for record in found.values()
        for row in record.result["rows"]
    ]
    curve = [
        {"seed": record.arguments["seed"]} | point
        for record in found.values()
        for point in record.result["curve"]
    ]
    return pd.DataFrame(rows), pd.DataFrame(curve)


# ---------------------------------------------------------------------------- larger networks


@dataclass(frozen=True)
class LargerSettings:
    """How systems are solved that are known by their product alone.

    Attributes:
        l2: λ of the trained objective.
        dampings: tried in this order until a solve holds.
        curvature_images: training items of the curvature.
        tolerance: relative residual to reach.
        max_iterations: of conjugate gradients.
    """

    l2: Annotated[float, Ge(0)]
    dampings: Annotated[tuple[float, ...], MinLen(1)]
    curvature_images: Annotated[int, Ge(1)]
    tolerance: Annotated[float, Gt(0)]
    max_iterations: Annotated[int, Ge(1)]


def run_larger(
    *, data: Path, original: Path, request: Group, settings: LargerSettings, seed: int
) -> dict[str, Any]:
    """Remove a group from a network whose curvature is known by its product alone.

    First order at scale 1 by conjugate gradients without a preconditioner, for both kinds of
    curvature. Where a system has no trustworthy solution (`SolveError`: indefinite, or not
    converged) the message is kept and the next damping is tried, which is the remedy it names.

    Args:
        data: file of the data set.
        original: file of the model to unlearn from.
        request: the group.
        settings: see `LargerSettings`.
        seed: of the draw of the curvature's items.

    Returns:
        ``rows``: for each attempt ``curvature``, ``damping``, ``outcome`` (``solved`` or the
        message), and where solved ``residual``, ``iterations``, ``update_norm`` and the scores of
        `accuracy.measure`; ``parameters``; ``before``, the scores of the original.
    """
    dataset = datasets.load(data)
    network = networks.frozen(checkpoints.load(original))
    images, labels = datasets.split(dataset, "train")
    objective = Objective(network, images, labels, l2=settings.l2)
    group = request.positions(labels)
    gradient = curvature.gradient_sum(objective, index=group)
    count = settings.curvature_images
    sample = _draw(torch.arange(len(labels)), "curvature_images", count, seed=seed)
    rows = []
    for kind in curvature.CURVATURES:
        operator = curvature.curvature_operator(kind, objective, index=sample)
        for damping in settings.dampings:
            system = MatrixFree(
                operator, damping, None, settings.tolerance, settings.max_iterations
            )
            removal = Removal(
                objective, group, system, sample=sample, kind=kind, given_gradient=gradient
            )
            with clock.timed(f"{kind}/{damping:g}"):
                row, update = _attempt(removal)
            rows.append({"curvature": kind, "damping": damping} | row)
            if update is not None:
                rows[-1] |= accuracy.measure(apply_update(network, update.delta), dataset, group)
                break
    before = accuracy.measure(network, dataset, group)
    return {"rows": rows, "parameters": len(gradient), "before": before}


def _attempt(removal: Removal) -> tuple[Row, Update | None]:
    """Solve, or say why not."""
    try:
        update = ESTIMATORS["first_order"].update(removal)
    except SolveError as error:
        return {"outcome": str(error)}, None
    return {
        "outcome": "solved",
        "residual": update.residual,
        "iterations": update.iterations,
        "update_norm": update.delta.norm().item(),
    }, update


def larger_table(found: dict[str, Record]) -> pd.DataFrame:
    """List the attempts of a sweep of `run_larger`, with what was asked for and the seconds.

    Returns:
        a row for each attempt: ``model``, ``parameters``, ``mode``, ``size`` and ``seed``, what
        `run_larger` says of it, ``seconds``, and the scores of the original as ``..._before``.
    """
    return pd.DataFrame(
        [
            _asked(record)
            | row
            | {"seconds": record.timings[f"{row['curvature']}/{row['damping']:g}"]}
            | {
                f"{key}_before": value
                for key, value in record.result["before"].items()
                if "validation" not in key
            }
            for record in found.values()
            for row in record.result["rows"]
        ]
    )


def _asked(record: Record) -> Row:
    request = record.arguments["request"]
    return {
        "model": Path(record.arguments["original"]).stem.partition("-")[0],
        "parameters": record.result["parameters"],
        "mode": request["mode"],
        "size": request["size"],
        "seed": record.arguments["seed"],
    }
