"""The convex control: multinomial logistic regression, where removal has one exact answer.

The loss is strictly convex with a penalty, so retraining without a group ends at one minimum
whatever the start, and the Gauss-Newton matrix is the Hessian. What an influence estimator misses
here it misses by its own approximation, not by the training (Koh et al. 2019, section 4).
"""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from unlearnlib.data import datasets
from unlearnlib.groups.geometry import coherent_group, distances, random_group
from unlearnlib.influence import curvature
from unlearnlib.influence.curvature import Objective
from unlearnlib.influence.estimators import apply_update, estimate, without
from unlearnlib.influence.solvers import Dense, Operator, conjugate_gradient
from unlearnlib.models.architectures import Logistic

KINDS = ("random", "coherent", "neighbours")
# name in tables: estimator of `influence`, with its third-derivative term or not, and its scale
ESTIMATORS = {
    "first_order": ("first_order", False, 1.0),
    "newton": ("newton", False, 1.0),
    "second_order": ("second_order", False, 1.0),
    "second_order_third": ("second_order", True, 1.0),
    "first_order_x1.5": ("first_order", False, 1.5),
    "first_order_x2": ("first_order", False, 2.0),
    "first_order_x3": ("first_order", False, 3.0),
}


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


def draw(
    kind: str, images: Tensor, labels: Tensor, *, size: int, seed: int, label: int | None = None
) -> Tensor:
    """Draw a group of one kind.

    Args:
        kind: ``random``, ``coherent`` (from one class) or ``neighbours``: the images nearest in
            pixels to one drawn at random, that one among them, whatever their class.
        images: ``[N, ...]``.
        labels: ``[N]``.
        size: items of the group.
        seed: of the draw.
        label: class of a coherent group.

    Returns:
        positions int64 ``[size]``.

    Raises:
        ValueError: unknown kind, or a size that the class or the data cannot give.
    """
    if kind not in KINDS:
        raise ValueError(f"unknown kind {kind!r}; choose one of {list(KINDS)}")
    if kind == "coherent":
        return coherent_group(labels, label=label, size=size, seed=seed)
    if kind == "random":
        return random_group(len(labels), size=size, seed=seed)
    if not 1 <= size < len(labels):
        raise ValueError(f"size={size} of {len(labels)} items: give 1 to {len(labels) - 1}")
    pixels = images.flatten(1)
    anchor = random_group(len(labels), size=1, seed=seed)
    return distances(pixels, pixels[anchor[0]]).argsort(stable=True)[:size]


def sizes(percents: list[float], *, items: int, most: int) -> list[int]:
    """Turn percentages of the items into group sizes, without those above ``most``.

    Raises:
        ValueError: no percentage, or one that is not above 0 and below 100.
    """
    if not percents or not all(0 < percent < 100 for percent in percents):
        raise ValueError(f"percents={percents}: give at least one, each above 0 and below 100")
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


def fit(dataset: datasets.Dataset, *, items: int, pool: int, l2: float, seed: int) -> Fit:
    """Fit the regression to a random part of the training split, to convergence.

    Args:
        dataset: its test split serves the test loss alone.
        items: n, training images, drawn at random.
        pool: height and width of the squares of pixels that are averaged.
        l2: λ, on weights and biases alike.
        seed: of the draw.

    Raises:
        ValueError: more items than there are, or a pool that does not divide the images.
    """
    images, labels = datasets.split(dataset, "train")
    if not 1 < items <= len(labels):
        raise ValueError(f"items={items} of {len(labels)} training images: give 2 to {len(labels)}")
    chosen = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))[:items]
    inputs = _pooled(images[chosen], pool)
    network = Logistic(num_classes=datasets.NUM_CLASSES, side=inputs.shape[-1]).double().eval()
    curvature.assign(network, torch.zeros_like(curvature.flatten(network)))
    objective = Objective(network, inputs, labels[chosen], l2=l2, batch_size=2000)
    minimum = minimise(objective)
    images, labels = datasets.split(dataset, "test")
    test = replace(objective, inputs=_pooled(images, pool), targets=labels, l2=0.0)
    matrix = curvature.gauss_newton(replace(objective, batch_size=200))
    slope = curvature.gradient_sum(test) / test.items
    return Fit(objective, test, slope, Dense(matrix), minimum)


def _pooled(images: Tensor, pool: int) -> Tensor:
    if pool < 1 or images.shape[-1] % pool:
        raise ValueError(f"pool={pool} does not divide {images.shape[-1]} pixels; give 1, 2 or 4")
    return F.avg_pool2d(images.double(), pool)


def removal(fitted: Fit, group: Tensor) -> dict[str, Any]:
    """Compare every estimator with exact retraining for one group.

    Returns:
        ``steps`` and ``gradient_norm`` of retraining; ``actual``: its ``norm`` ``‖δ‖``, and the
        changes of mean cross-entropy on the group (``self``) and on the test images (``test``), in
        nats; ``estimates``: for each estimator the same three as predicted, evaluated at θ̂ + δ,
        ``linear``, the change of the test loss to first order in δ, and ``parameter_error``
        ``‖δ - δ*‖ / ‖δ*‖``, ``cosine``, ``residual`` of its solves and ``seconds``.
    """
    started = time.perf_counter()
    kept = without(fitted.objective, group)
    retrained = apply_update(kept.network, torch.zeros_like(fitted.system.matrix[0]))
    minimum = minimise(replace(kept, network=retrained), preconditioner=fitted.system.inverse)
    seconds = time.perf_counter() - started
    exact = curvature.flatten(retrained) - curvature.flatten(kept.network)
    rows = {}
    for name, (estimator, third, scale) in ESTIMATORS.items():
        started = time.perf_counter()
        update = estimate(
            estimator, fitted.objective, group, fitted.system, kind="hessian", third=third
        )
        spent = time.perf_counter() - started
        delta = scale * update.delta
        rows[name] = _changes(fitted, group, delta) | _errors(delta, exact)
        rows[name] |= {
            "linear": (fitted.slope @ delta).item(),
            "residual": update.residual,
            "seconds": spent,
        }
    return {
        "steps": minimum.steps,
        "gradient_norm": minimum.gradient_norm,
        "seconds": seconds,
        "actual": _changes(fitted, group, exact),
        "estimates": rows,
    }


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


def run(spec: dict[str, Any]) -> dict[str, Any]:
    """Run one task of the control: a fit, and the groups of one kind.

    Args:
        spec: ``data`` (file of the data set), ``seed`` (of the training images and the groups),
            ``items``, ``pool`` and ``l2`` as in `fit`, ``kind``, ``labels`` (of coherent groups)
            and ``percents`` of the items.

    Returns:
        ``minimum``: gradient norm and steps of the fit; ``groups``: for each ``label`` (-1 where
        there is none) and ``size`` what `removal` returns.
    """
    options = {key: spec[key] for key in ("items", "pool", "l2", "seed")}
    fitted = fit(datasets.load(spec["data"]), **options)
    groups = [
        {"label": -1 if label is None else label, "size": len(group)} | removal(fitted, group)
        for label, group in _groups(fitted.objective, spec)
    ]
    return {"minimum": vars(fitted.minimum).copy(), "groups": groups}


def _groups(objective: Objective, spec: dict[str, Any]) -> Iterator[tuple[int | None, Tensor]]:
    """Draw the groups of a task: label and positions, smallest first."""
    for label in spec["labels"] if spec["kind"] == "coherent" else [None]:
        most = objective.items - 1
        if label is not None:
            most = int((objective.targets == label).sum())
        for number, size in enumerate(sizes(spec["percents"], items=objective.items, most=most)):
            # another seed for each size, so that no group contains the one before
            yield (
                label,
                draw(
                    spec["kind"], objective.inputs, objective.targets, size=size, label=label,
                    seed=1000 * spec["seed"] + number,
                ),
            )  # fmt: skip


def table_rows(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """List the results of a sweep of `run`, a row for each group and estimator."""
    return [
        {
            "kind": record["spec"]["kind"],
            "label": group["label"] if group["label"] >= 0 else math.nan,
            "size": group["size"],
            "percent": 100 * group["size"] / record["spec"]["items"],
            "seed": record["spec"]["seed"],
            "estimator": name,
            "parameter_error": row["parameter_error"],
            "cosine": row["cosine"],
        }
        | {
            f"{side}_{key}": values[key]
            for key in ("norm", "self", "test")
            for side, values in (("predicted", row), ("actual", group["actual"]))
        }
        | {"predicted_test_linear": row["linear"]}
        | {"residual": row["residual"], "seconds": row["seconds"]}
        | {"retrain_seconds": group["seconds"], "retrain_gradient_norm": group["gradient_norm"]}
        for record in records
        for group in record["result"]["groups"]
        for name, row in group["estimates"].items()
    ]
