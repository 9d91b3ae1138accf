"""Forget groups in one step of influence, with every estimator.

For a network whose curvature matrix fits in memory. S is the whole training split; H is its damped
Gauss-Newton matrix at θ̂, formed and stored once a model (`run_curvature`) and shared by every group,
here, in `steps` and in `scaling`. Conventions as in `influence.estimators`.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor

from unlearnlib.data import datasets
from unlearnlib.data.requests import Group
from unlearnlib.influence import curvature
from unlearnlib.influence.criteria import Criterion
from unlearnlib.influence.curvature import Objective
from unlearnlib.influence.estimators import Estimator, Removal, Update, apply_update
from unlearnlib.influence.solvers import Dense
from unlearnlib.measures import accuracy
from unlearnlib.models import checkpoints
from unlearnlib.pipeline import clock, records, seeds

Row = dict[str, Any]


# ------------------------------------------------------------------------- stored curvature


@dataclass(frozen=True)
class Fitted:
    """A trained model and its stored curvature.

    Attributes:
        data: file of the data set.
        original: file of the model.
        curvature: file that `run_curvature` left of it.
        l2: λ of its training.
        damping: added to the diagonal of the curvature.
    """

    data: Path
    original: Path
    curvature: Path
    l2: float
    damping: float


def run_curvature(*, data: Path, original: Path, l2: float) -> dict[str, Any]:
    """Form the Gauss-Newton matrix of one model over the whole training split.

    Args:
        data: file of the data set.
        original: file of the model.
        l2: λ of its training.

    Returns:
        ``matrix`` ``[P, P]``, float32, penalty included, without damping; and the norm of the mean
        gradient, ``slope``, which is 0 at a minimum.
    """
    _, objective = _objective(data, original, l2)
    slope = curvature.gradient_sum(objective).norm().item() / objective.items
    return {"matrix": curvature.gauss_newton(objective).float(), "slope": slope}


def objective_of(fitted: Fitted) -> tuple[datasets.Dataset, Objective]:
    """Load data set and model as the objective over the training split, at θ̂."""
    return _objective(fitted.data, fitted.original, fitted.l2)


def _objective(data: Path, original: Path, l2: float) -> tuple[datasets.Dataset, Objective]:
    dataset = datasets.load(data)
    network = checkpoints.load(original).eval()
    images, labels = datasets.split(dataset, "train")
    return dataset, Objective(network, images, labels, l2=l2, batch_size=1000)


def system_of(fitted: Fitted) -> Dense:
    """Load the stored curvature, with its damping."""
    return Dense(records.result(fitted.curvature)["matrix"].double(), fitted.damping)


# ---------------------------------------------------------------------------------- one step


@dataclass(frozen=True)
class Settings:
    """What some of the estimators ask for.

    Attributes:
        ratio: share of the parameters that partial estimators (pif, fif, gif) may change.
        third_items: items that estimate the third derivative, drawn at random; at most all.
        rif_items: the largest group that RIF is asked about, which solves for every item of it.
    """

    ratio: Annotated[float, Gt(0), Le(1)]
    third_items: Annotated[int, Ge(1)]
    rif_items: Annotated[int, Ge(0)]


def run(
    *,
    fitted: Fitted,
    requests: list[Group],
    estimators: list[Estimator],
    criterion: Criterion,
    settings: Settings,
    seed: int,
) -> dict[str, Any]:
    """Remove each group of a list in one step, with every estimator.

    Args:
        fitted: the model that forgets.
        requests: the groups.
        estimators: entries of `influence.estimators.ESTIMATORS`.
        criterion: how partial estimators choose the parameters that they may change.
        settings: see `Settings`.
        seed: of the items of the third derivative, and of the random part of the criterion.

    Returns:
        ``rows``: a dict of numbers for each group and estimator: the request, the scores of
        `accuracy.measure`, and those of `facts`; none where an estimator is not asked. The original model is among them as estimator
        ``none``. Timings are by ``<request>/<estimator>``.
    """
    dataset, objective = objective_of(fitted)
    system, rows = system_of(fitted), []
    for request in requests:
        removal = removal_of(request, objective, system, criterion, settings, seed=seed)
        untouched = accuracy.measure(objective.network, dataset, removal.group)
        rows.append(asdict(request) | {"estimator": "none"} | untouched)
        for estimator in estimators:
            if estimator.by_item and removal.removed > settings.rif_items:
                continue
            update, seconds = estimator.timed(removal)
            clock.add(f"{request.name}/{estimator.name}", seconds)
            moved = apply_update(objective.network, update.delta)
            scores = accuracy.measure(moved, dataset, removal.group)
            rows.append(asdict(request) | {"estimator": estimator.name} | scores | facts(update))
    return {"rows": rows}


def removal_of(
    request: Group,
    objective: Objective,
    system: Dense,
    criterion: Criterion,
    settings: Settings,
    *,
    seed: int,
) -> Removal:
    """Put together what the estimators read to remove one group, see `run`."""
    group = request.positions(objective.targets)

    def mask() -> Tensor:
        images, labels = objective.inputs[group], objective.targets[group]
        ratio = settings.ratio
        return criterion.select(objective.network, images, labels, ratio=ratio, seed=seed)

    order = torch.randperm(objective.items, generator=seeds.stream(seed, "third derivative"))
    third = order[: settings.third_items]
    return Removal(objective, group, system, mask=mask, third_items=third)


def facts(update: Update) -> Row:
    """Tell how large an update is, and how well its systems were solved.

    Returns:
        ``change`` (‖δ‖₂), ``residual`` (the largest of the solves) and ``iterations``.
    """
    return {
        "change": update.delta.norm().item(),
        "residual": update.residual,
        "iterations": update.iterations,
    }
