"""The convex control: multinomial logistic regression, where removal has one exact answer.

The loss is strictly convex with a penalty, so retraining without a group ends at one minimum
whatever the start, and the Gauss-Newton matrix is the Hessian. What an influence estimator misses
here it misses by its own approximation, not by the training (Koh et al. 2019, section 4).
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
from annotated_types import Ge, Gt, Le, MinLen
from torch import Tensor
from torch.nn import functional as F

from unlearnlib.data import datasets
from unlearnlib.data.requests import Group, RequestError
from unlearnlib.groups.geometry import distances
from unlearnlib.influence import curvature
from unlearnlib.influence.criteria import Criterion
from unlearnlib.influence.curvature import Objective
from unlearnlib.influence.estimators import Estimator, Removal, apply_update, without
from unlearnlib.influence.solvers import Dense, Operator, conjugate_gradient
from unlearnlib.models.architectures import Logistic
from unlearnlib.pipeline import clock, seeds
from unlearnlib.pipeline.records import Record

KINDS = ("random", "coherent", "neighbours")
LONGER = (1.5, 2.0, 3.0)  # times the step of the first order: does a longer one mend it?


@dataclass(frozen=True)
class Settings:
    """One regression, and the sizes of the groups that are removed from it.

    Attributes:
        items: n, training images, drawn at random.
        pool: height and width of the squares of pixels that are averaged.
        l2: λ, on weights and biases alike.
        percents: of n that a group takes.
        ratio: share of the parameters that partial estimators (pif, fif, gif) may change.

    Raises:
        ValueError: a percentage that is not above 0 and below 100.
    """

    items: Annotated[int, Ge(2)]
    pool: Annotated[int, Ge(1)]
    l2: Annotated[float, Gt(0)]
    percents: Annotated[tuple[float, ...], MinLen(1)]
    ratio: Annotated[float, Gt(0), Le(1)]

    def __post_init__(self) -> None:
        if not self.percents or not all(0 < percent < 100 for percent in self.percents):
            raise ValueError(
                f"percents={list(self.percents)}: give at least one, each above 0 and below 100"
            )


class ConvergenceError(ArithmeticError):
    """A minimisation that did not reach its tolerance."""


@dataclass(frozen=True)
class Minimum:
    """Say how a minimisation ended.

    Attributes:
        gradient_norm: ``‖∇L‖`` at the end.
        steps: Newton steps taken.
    """

    gradient_norm: float
    steps: int


def minimise(
    objective: Objective,
    *,
    preconditioner: Operator | None = None,
    tolerance: float = 1e-8,
    max_steps: int = 50,
) -> Minimum:
    """Minimise a convex objective in place by Newton's method with backtracking.

    Each step solves with the exact Hessian by conjugate gradients, to a relative residual of 1e-3,
    and is halved until the loss falls by Armijo's rule (Nocedal & Wright 2006, algorithm 7.1).

    Args:
        objective: convex, with a network in float64.
        preconditioner: see `solvers.conjugate_gradient`.
        tolerance: ``‖∇L‖`` to reach, of the *mean* loss with its penalty.
        max_steps: Newton steps after which to give up.

    Raises:
        ConvergenceError: the tolerance is not reached.
        SolveError: no step, as the Hessian is not positive definite to working precision.
    """
    for step in range(max_steps + 1):
        gradient = curvature.gradient_sum(objective) / objective.items
        norm = gradient.norm().item()
        if norm <= tolerance:
            return Minimum(norm, step)
        hessian = curvature.hessian_operator(objective)
        solution = conjugate_gradient(
            hessian, gradient, preconditioner=preconditioner, tolerance=1e-3
        )
        if step == max_steps or not _descend(objective, -solution.x, gradient):
            break
    raise ConvergenceError(
        f"the gradient's norm is {norm:.1e} after {step} Newton steps, above {tolerance:.1e}; raise "
        "the penalty, the tolerance or max_steps, and use a network in float64"
    )


def _descend(objective: Objective, direction: Tensor, gradient: Tensor) -> bool:
    """Move by the longest of 1, 1/2, 1/4 ... times a direction that lowers the loss enough."""
    theta, before = curvature.flatten(objective.network), curvature.mean_loss(objective)
    slope = (gradient @ direction).item()
    # near the minimum the loss falls by less than rounding shows
    slack = 1e-14 * max(1.0, abs(before))
    for halvings in range(40):
        step = 0.5**halvings
        curvature.assign(objective.network, theta + step * direction)
        if curvature.mean_loss(objective) <= before + 1e-4 * step * slope + slack:
            return True
    curvature.assign(objective.network, theta)
    return False


# --------------------------------------------------------------------------------- groups


@dataclass(frozen=True)
class Neighbours:
    """Ask for the images nearest in pixels to one drawn at random, whatever their class.

    Attributes:
        size: items, the one drawn among them.
        seed: of the draw.
    """

    size: int
    seed: int = 0

    mode = "neighbours"
    label = None

    def positions(self, images: Tensor) -> Tensor:
        """Find the group among images ``[N, ...]``: positions int64 ``[size]``, nearest first.

        Raises:
            RequestError: no size, or all items.
        """
        if not 1 <= self.size < len(images):
            raise RequestError(
                f"size={self.size} of {len(images)} items: give 1 to {len(images) - 1}"
            )
        pixels = images.flatten(1)
        (anchor,) = Group("random", None, 1, self.seed).positions(torch.zeros(len(images)).long())
        return distances(pixels, pixels[anchor]).argsort(stable=True)[: self.size]


def draw(request: Group | Neighbours, objective: Objective) -> Tensor:
    """Draw a group from the items of an objective: positions int64 ``[size]``."""
    if isinstance(request, Neighbours):
        return request.positions(objective.inputs)
    return request.positions(objective.targets)


def groups(
    kind: str, targets: Tensor, *, percents: Sequence[float], labels: Sequence[int], seed: int
) -> Iterator[Group | Neighbours]:
    """List the groups of one kind, smallest first, as far as the items of a class reach.

    Each size has another seed, so that no group contains the one before.

    Args:
        kind: ``random``, ``coherent`` (from one class) or ``neighbours``.
        targets: ``[n]``, classes of the items.
        percents: of n that a group takes.
        labels: classes of the coherent groups.
        seed: of the draws.

    Raises:
        ValueError: unknown kind.
    """
    if kind not in KINDS:
        raise ValueError(f"unknown kind {kind!r}; choose one of {list(KINDS)}")
    for label in labels if kind == "coherent" else [None]:
        most = len(targets) - 1 if label is None else int((targets == label).sum())
        for number, size in enumerate(sizes(percents, items=len(targets), most=most)):
            drawn = seeds.derive(seed, "convex group", number)
            if kind == "neighbours":
                yield Neighbours(size, drawn)
            else:
                yield Group(kind, label, size, drawn)


def sizes(percents: Sequence[float], *, items: int, most: int) -> list[int]:
    """Turn percentages of the items into group sizes, without those above ``most``."""
    counts = [max(1, round(items * percent / 100)) for percent in percents]
    return [count for count in counts if count <= most]


# ----------------------------------------------------------------------------- the control


@dataclass(frozen=True, eq=False)
class Fit:
    """Hold a regression at its minimum, and what every group shares.

    Attributes:
        objective: over S, at θ̂.
        test: over the test images, without penalty.
        slope: gradient ``[P]`` of the test loss at θ̂.
        system: the Hessian over S, factored, without damping.
        minimum: how the fit ended.
    """

    objective: Objective
    test: Objective
    slope: Tensor
    system: Dense
    minimum: Minimum


def fit(dataset: datasets.Dataset, *, settings: Settings, seed: int) -> Fit:
    """Fit the regression to a random part of the training split, to convergence.

    Args:
        dataset: its test split serves the test loss alone.
        settings: see `Settings`.
        seed: of the draw of the images.

    Raises:
        ValueError: more items than there are, or a pool that does not divide the images.
    """
    images, labels = datasets.split(dataset, "train")
    if not settings.items <= len(labels):
        raise ValueError(
            f"items={settings.items} of {len(labels)} training images: give 2 to {len(labels)}"
        )
    generator = seeds.stream(seed, "items of the regression")
    chosen = torch.randperm(len(labels), generator=generator)[: settings.items]
    inputs = _pooled(images[chosen], settings.pool)
    network = Logistic(num_classes=dataset.num_classes, side=inputs.shape[-1]).double().eval()
    curvature.assign(network, torch.zeros_like(curvature.flatten(network)))
    objective = Objective(network, inputs, labels[chosen], l2=settings.l2, batch_size=2000)
    minimum = minimise(objective)
    images, labels = datasets.split(dataset, "test")
    test = replace(objective, inputs=_pooled(images, settings.pool), targets=labels, l2=0.0)
    matrix = curvature.gauss_newton(replace(objective, batch_size=200))
    slope = curvature.gradient_sum(test) / test.items
    return Fit(objective, test, slope, Dense(matrix), minimum)


def _pooled(images: Tensor, pool: int) -> Tensor:
    if images.shape[-1] % pool:
        raise ValueError(f"pool={pool} does not divide {images.shape[-1]} pixels; give 1, 2 or 4")
    return F.avg_pool2d(images.double(), pool)


def compare(
    fitted: Fit, removal: Removal, estimators: Sequence[Estimator], *, name: str
) -> dict[str, Any]:
    """Compare estimators with exact retraining for one group.

    Partial estimators are compared with the same retraining of all parameters, which is what they
    stand for; a minimum over their subset alone is another one.

    Args:
        fitted: the regression.
        removal: of the group, see `removal_of`.
        estimators: to compare; the first order also at the scales of `LONGER`.
        name: of the group; the seconds of ``<name>/retrain`` and ``<name>/<estimator>`` are timed.

    Returns:
        ``steps`` and ``gradient_norm`` of retraining; ``actual``: its ``norm`` ``‖δ‖``, and the
        changes of mean cross-entropy on the group (``self``) and on the test images (``test``), in
        nats; ``estimates``: by name, which for a longer step ends in its scale (``_x2``), the
        ``estimator``, the same three as predicted, evaluated at θ̂ + δ, ``linear``, the change of
        the test loss to first order in δ, and ``parameter_error`` ``‖δ - δ*‖ / ‖δ*‖``, ``cosine``
        and ``residual`` of its solves.
    """
    group, rows = removal.group, {}
    with clock.timed(f"{name}/retrain"):
        exact, minimum = _retrained(fitted, group)
    for estimator in estimators:
        update, seconds = estimator.timed(removal)
        clock.add(f"{name}/{estimator.name}", seconds)
        for scale in (1.0, *LONGER) if estimator.name == "first_order" else (1.0,):
            row = estimator.name if scale == 1 else f"{estimator.name}_x{scale:g}"
            facts = {"estimator": estimator.name, "residual": update.residual}
            rows[row] = facts | _measured(fitted, group, scale * update.delta, exact)
    return {
        "steps": minimum.steps,
        "gradient_norm": minimum.gradient_norm,
        "actual": _changes(fitted, group, exact),
        "estimates": rows,
    }


def removal_of(
    group: Tensor, fitted: Fit, criterion: Criterion, *, ratio: float, seed: int
) -> Removal:
    """Put together what the estimators read to remove one group.

    Args:
        group: positions ``[m]``.
        fitted: the regression.
        criterion: how partial estimators choose the parameters that they may change.
        ratio: their share.
        seed: of the random part of the criterion.
    """
    objective = fitted.objective

    def mask() -> Tensor:
        images, labels = objective.inputs[group], objective.targets[group]
        return criterion.select(objective.network, images, labels, ratio=ratio, seed=seed)

    # the network is linear in its parameters, so that the Hessian is the Gauss-Newton matrix
    return Removal(objective, group, fitted.system, kind="hessian", mask=mask)


def _retrained(fitted: Fit, group: Tensor) -> tuple[Tensor, Minimum]:
    """Minimise without a group, and return the exact change of the parameters."""
    kept = without(fitted.objective, group)
    retrained = apply_update(kept.network, torch.zeros_like(fitted.system.matrix[0]))
    minimum = minimise(replace(kept, network=retrained), preconditioner=fitted.system.inverse)
    return curvature.flatten(retrained) - curvature.flatten(kept.network), minimum


def _measured(fitted: Fit, group: Tensor, delta: Tensor, exact: Tensor) -> dict[str, float]:
    linear = {"linear": (fitted.slope @ delta).item()}
    return _changes(fitted, group, delta) | _errors(delta, exact) | linear


def _changes(fitted: Fit, group: Tensor, delta: Tensor) -> dict[str, float]:
    """Measure what a change of parameters does: its norm, and the changes of two losses."""
    objective = fitted.objective
    own = replace(
        objective, inputs=objective.inputs[group], targets=objective.targets[group], l2=0.0
    )
    moved = apply_update(objective.network, delta)
    changes = {
        name: curvature.mean_loss(replace(part, network=moved)) - curvature.mean_loss(part)
        for name, part in (("self", own), ("test", fitted.test))
    }
    return {"norm": delta.norm().item()} | changes


def _errors(delta: Tensor, exact: Tensor) -> dict[str, float]:
    return {
        "parameter_error": ((delta - exact).norm() / exact.norm()).item(),
        "cosine": F.cosine_similarity(delta, exact, dim=0).item(),
    }


def run(
    *,
    data: Path,
    settings: Settings,
    estimators: Sequence[Estimator],
    criterion: Criterion,
    kind: str,
    labels: Sequence[int],
    seed: int,
) -> dict[str, Any]:
    """Run one task of the control: a fit, and the groups of one kind.

    Args:
        data: file of the data set.
        settings: see `Settings`.
        estimators: to compare; the first order also at the scales of `LONGER`.
        criterion: how partial estimators choose the parameters that they may change.
        kind: a name in `KINDS`.
        labels: classes of the coherent groups.
        seed: of the training images, the groups and the random part of the criterion.

    Returns:
        ``minimum``: gradient norm and steps of the fit; ``groups``: for each ``label`` (None where
        there is none) and ``size`` what `compare` returns.
    """
    fitted = fit(datasets.load(data), settings=settings, seed=seed)
    objective = fitted.objective
    asked = groups(kind, objective.targets, percents=settings.percents, labels=labels, seed=seed)
    rows = []
    for request in asked:
        facts = {"label": request.label, "size": request.size}
        group = draw(request, objective)
        removal = removal_of(group, fitted, criterion, ratio=settings.ratio, seed=seed)
        found = compare(fitted, removal, estimators, name=_name(**facts))
        rows.append(facts | found)
    return {"minimum": vars(fitted.minimum).copy(), "groups": rows}


def _name(*, label: int | None, size: int) -> str:
    """Name a group among those of a task."""
    return f"{size}" if label is None else f"label{label}-{size}"


def table_rows(found: dict[str, Record]) -> list[dict[str, Any]]:
    """List the results of a sweep of `run`, a row for each group and estimator."""
    return [
        _facts(record, group)
        | {"estimator": name, "parameter_error": row["parameter_error"], "cosine": row["cosine"]}
        | {
            f"{side}_{key}": values[key]
            for key in ("norm", "self", "test")
            for side, values in (("predicted", row), ("actual", group["actual"]))
        }
        | {"predicted_test_linear": row["linear"], "residual": row["residual"]}
        | _seconds(record, group, row["estimator"])
        | {"retrain_gradient_norm": group["gradient_norm"]}
        for record in found.values()
        for group in record.result["groups"]
        for name, row in group["estimates"].items()
    ]


def _facts(record: Record, group: dict[str, Any]) -> dict[str, Any]:
    return {
        "kind": record.arguments["kind"],
        "label": math.nan if group["label"] is None else group["label"],
        "size": group["size"],
        "percent": 100 * group["size"] / record.arguments["settings"]["items"],
        "seed": record.arguments["seed"],
    }


def _seconds(record: Record, group: dict[str, Any], estimator: str) -> dict[str, float]:
    """Look up what an estimate took, at whatever scale, and what exact retraining did."""
    name = _name(label=group["label"], size=group["size"])
    return {
        "seconds": record.timings[f"{name}/{estimator}"],
        "retrain_seconds": record.timings[f"{name}/retrain"],
    }
