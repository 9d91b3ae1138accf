"""Forget groups by influence: one step with every estimator, several steps, and scaled updates.

The runs of group unlearning on a network whose curvature matrix fits in memory. S is the whole
training split; H is its damped Gauss-Newton matrix at θ̂, formed and stored once a model
(`run_curvature`) and shared by every group. Conventions as in `influence`.
"""

import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from unlearnlib.data import datasets, removal
from unlearnlib.groups import geometry
from unlearnlib.influence import criteria, curvature, estimators
from unlearnlib.influence.curvature import Objective
from unlearnlib.influence.estimators import Update
from unlearnlib.influence.solvers import Dense, MatrixFree, Operator
from unlearnlib.models import models
from unlearnlib.models.architectures import penultimate

Row = dict[str, Any]
SECOND = "second_order_cubic"  # with the third-derivative term, beside the published second_order
SCHEMES = ("one_step", "three_step", "moderate_only", "random_split")


def objective_of(spec: dict[str, Any]) -> tuple[datasets.Dataset, Objective]:
    """Load data set and network of a spec as the objective over the training split, at θ̂."""
    dataset = datasets.load(spec["data"])
    network = models.load(spec["original"]).eval()
    images, labels = datasets.split(dataset, "train")
    return dataset, Objective(network, images, labels, l2=spec["l2"], batch_size=1000)


def run_curvature(spec: dict[str, Any]) -> dict[str, Any]:
    """Form the Gauss-Newton matrix of one model over the whole training split.

    Args:
        spec: ``original`` (file of the model), ``data`` (file of the data set), ``l2``.

    Returns:
        ``matrix`` ``[P, P]``, float32, penalty included, without damping; and the norm of the mean
        gradient, ``slope``, which is 0 at a minimum.
    """
    _, objective = objective_of(spec)
    slope = curvature.gradient_sum(objective).norm().item() / objective.items
    return {"matrix": curvature.gauss_newton(objective).float(), "slope": slope}


def system_of(spec: dict[str, Any]) -> Dense:
    """Load the stored curvature of a spec, with its damping."""
    matrix = models.load_result(spec["curvature"])["matrix"]
    return Dense(matrix.double(), spec["damping"])


# ---------------------------------------------------------------------------------- one step


def run_one_step(spec: dict[str, Any]) -> dict[str, Any]:
    """Remove each group of a list in one step, with every estimator.

    Args:
        spec: ``original``, ``data``, ``l2``; ``curvature`` (file of `run_curvature`), ``damping``,
            ``requests`` (list, see `removal.draw`), ``estimators`` (names in
            `estimators.ESTIMATORS`, and `SECOND`), ``ratio`` of the parameters that pif, fif and
            gif may change, chosen by `criteria.top_gradients`, and ``third_items``, how many
            items, drawn at random by ``seed``, estimate the third derivative. That seed must be
            none of the requests': equal seeds draw a random group and the sample alike.

    Returns:
        ``rows``: a dict of numbers for each group and estimator: the request, the scores of
        `removal.measure`, ``change`` (‖δ‖₂), ``residual``, ``iterations`` and ``seconds``. The
        original model is among them as estimator ``none``.
    """
    dataset, objective = objective_of(spec)
    system, rows = system_of(spec), []
    for request in spec["requests"]:
        group = removal.draw(objective.targets, request)
        untouched = removal.measure(objective.network, dataset, group)
        rows.append(request | {"estimator": "none"} | untouched)
        for name in spec["estimators"]:
            started = time.perf_counter()
            update = one_step(name, objective, group, system, spec=spec)
            seconds = time.perf_counter() - started
            moved = estimators.apply_update(objective.network, update.delta)
            scores = removal.measure(moved, dataset, group)
            rows.append(request | {"estimator": name, "seconds": seconds} | scores | facts(update))
    return {"rows": rows}


def one_step(
    name: str, objective: Objective, group: Tensor, system: Dense, *, spec: dict[str, Any]
) -> Update:
    """Estimate the removal of a group by the name of an estimator, see `run_one_step`."""
    if name in estimators.PARTIAL:
        images, labels = objective.inputs[group], objective.targets[group]
        mask = criteria.select(
            "top_gradients", objective.network, images, labels, ratio=spec["ratio"], seed=0
        )
        return estimators.estimate(name, objective, group, system, mask=mask)
    if name != SECOND:
        return estimators.estimate(name, objective, group, system)
    sample = _sample(objective.items, spec["third_items"], spec["seed"])
    return estimators.second_order(
        curvature.gradient_sum(objective, index=group),
        system,
        estimators.damped(curvature.gauss_newton_operator(objective, index=group), system.damping),
        items=objective.items,
        removed=len(group),
        third=curvature.third_operator(objective, index=sample),
    )


def facts(update: Update) -> Row:
    """Tell how large an update is, and how well its systems were solved."""
    return {
        "change": update.delta.norm().item(),
        "residual": update.residual,
        "iterations": update.iterations,
    }


def _sample(items: int, count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(items, generator=generator)[:count]


# -------------------------------------------------------------------------------- many steps


def run_steps(spec: dict[str, Any]) -> dict[str, Any]:
    """Remove each group of a list in several steps, by distance and at random.

    The distances of the group's items to the centroid of their class split it at one standard
    deviation into near, moderate and far (`geometry.partition`). Schemes: all six orders of the three
    parts, ``moderate_only``, and, as the control, a random split into three equal parts. After each
    step gradient and curvature are computed anew at the moved parameters.

    Args:
        spec: as in `run_one_step`, without ``estimators``; ``features`` (file of the model whose
            features measure the distances), ``step_items`` and ``step_tolerance`` (see `follow`).

    Returns:
        ``rows``: as in `run_one_step`, with ``scheme`` and ``order``, and the sizes of the parts
        as ``near``, ``moderate`` and ``far``.
    """
    dataset, objective = objective_of(spec)
    system, labels = system_of(spec), objective.targets
    solvers = system, explicit_inverse(system)
    features = penultimate(models.load(spec["features"]), objective.inputs)
    distances, rows = geometry.centroid_distances(features, labels), []
    for request in spec["requests"]:
        group = removal.draw(labels, request)
        parts = geometry.partition(distances[group])
        sizes = {name: len(part) for name, part in parts.items()}
        done: dict[tuple, tuple[nn.Module, Row]] = {}
        for scheme, order, steps in schemes(parts, len(group), seed=request["seed"]):
            steps = [(name, group[part]) for name, part in steps if len(part)]
            network, row = follow(objective, solvers, steps, spec=spec, done=done)
            scores = removal.measure(network, dataset, group)
            rows.append(request | {"scheme": scheme, "order": order} | row | scores | sizes)
    return {"rows": rows}


def schemes(
    parts: dict[str, Tensor], count: int, *, seed: int
) -> Iterator[tuple[str, str, list[tuple[str, Tensor]]]]:
    """Yield the name of each scheme, its order and its steps, the named positions in the group."""
    for order in geometry.orders():
        yield "three_step", "-".join(order), [(name, parts[name]) for name in order]
    yield "moderate_only", "moderate", [("moderate", parts["moderate"])]
    thirds = geometry.random_split(count, seed=seed)
    yield "random_split", "random", [(f"third {i}", part) for i, part in enumerate(thirds)]


def follow(
    objective: Objective,
    solvers: tuple[Dense, Operator],
    steps: list[tuple[str, Tensor]],
    *,
    spec: dict[str, Any],
    done: dict[tuple, tuple[nn.Module, Row]],
) -> tuple[nn.Module, Row]:
    """Remove parts one after the other, each by first order at the parameters reached so far.

    The first step has the stored curvature. Later ones have the Gauss-Newton matrix at the moved
    parameters over a sample of what stays, by conjugate gradients with the inverse of the stored
    one as preconditioner.

    Args:
        objective: over all of S, at θ̂.
        solvers: its curvature, and the product with the inverse that preconditions later ones.
        steps: names and positions in S of the parts.
        spec: ``step_items`` of the sample, ``step_tolerance`` of the solve, and ``seed``.
        done: what was computed for each sequence of names, which orders share; added to.

    Returns:
        the network at the end, and the facts of all its steps: the largest residual, and the sums
        of iterations and seconds.
    """
    names = tuple(name for name, _ in steps)
    if names in done:
        return done[names]
    *before, (_, part) = steps
    if not before:
        network, row = objective.network, {"residual": 0.0, "iterations": 0, "seconds": 0.0}
    else:
        network, row = follow(objective, solvers, before, spec=spec, done=done)
    started = time.perf_counter()
    gone = torch.cat([torch.empty(0, dtype=torch.long), *(other for _, other in before)])
    here = Objective(network, objective.inputs, objective.targets, l2=objective.l2, batch_size=1000)
    local = solvers[0] if not before else _moved(here, *solvers, gone, spec=spec)
    gradient = curvature.gradient_sum(here, index=part)
    sizes = {"items": objective.items - len(gone), "removed": len(part)}
    update = estimators.first_order(gradient, local, **sizes)
    moved = estimators.apply_update(network, update.delta)
    found = facts(update)
    row = {
        "residual": max(row["residual"], found["residual"]),
        "iterations": row["iterations"] + found["iterations"],
        "seconds": row["seconds"] + time.perf_counter() - started,
    }
    done[names] = moved, row
    return moved, row


def _moved(
    here: Objective, system: Dense, precondition: Operator, gone: Tensor, *, spec: dict[str, Any]
) -> MatrixFree:
    """Return the damped Gauss-Newton matrix at moved parameters, over a sample of what stays."""
    kept = removal.rest(here.items, gone)
    sample = kept[_sample(len(kept), spec["step_items"], spec["seed"])]
    product = curvature.gauss_newton_operator(here, index=sample)
    return MatrixFree(product, system.damping, precondition, spec["step_tolerance"])


def explicit_inverse(system: Dense) -> Operator:
    """Return the product with ``A^-1``, formed once in single precision: a fast preconditioner."""
    inverse = torch.cholesky_inverse(system.lower).float()
    return lambda r: (inverse @ r.float()).to(r.dtype)


# ------------------------------------------------------------------------------------ scaling


def run_scaling(spec: dict[str, Any]) -> dict[str, Any]:
    """Scale the first-order update of each group of a list, and measure along the way.

    Args:
        spec: as in `run_one_step`, without ``estimators``; ``scales``, factors on the update, and
            ``clean_items``, how many of the items that stay are measured.

    Returns:
        ``rows``: a dict for each group and scale, with the scores of `removal.measure`, and the
        same as ``clean_...`` on items that stay and as ``relabelled_...`` on the group under
        other labels, drawn at random: what a model says that was told lies about it.
    """
    dataset, objective = objective_of(spec)
    system, labels, rows = system_of(spec), objective.targets, []
    for request in spec["requests"]:
        group = removal.draw(labels, request)
        kept = removal.rest(objective.items, group)
        clean = kept[_sample(len(kept), spec["clean_items"], request["seed"])]
        lies = relabel(labels[group], classes=int(labels.max()) + 1, seed=request["seed"])
        update = estimators.estimate("first_order", objective, group, system)
        for scale in spec["scales"]:
            moved = estimators.apply_update(objective.network, update.delta, scale)
            further = {
                "clean": removal.score(moved, objective.inputs[clean], labels[clean]),
                "relabelled": removal.score(moved, objective.inputs[group], lies),
            }
            scores = {f"{part}_{key}": v for part, s in further.items() for key, v in s.items()}
            found = {"scale": scale, "residual": update.residual}
            rows.append(request | found | removal.measure(moved, dataset, group) | scores)
    return {"rows": rows}


def relabel(labels: Tensor, *, classes: int, seed: int) -> Tensor:
    """Give each item ``[N]`` one of the other labels, all equally likely."""
    generator = torch.Generator().manual_seed(seed)
    shift = torch.randint(1, classes, labels.shape, generator=generator)
    return (labels + shift) % classes
