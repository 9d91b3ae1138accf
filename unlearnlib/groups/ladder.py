"""The ladder from a retrained network down to its influence estimate.

Retraining and influence functions answer different questions of a deep network, which Bae et al.
2022 ("If influence functions are the answer, then what is the question?") take apart step by step:

====================  ==============================================  =====================
rung                  what it is                                      gap to the next
====================  ==============================================  =====================
``seed_mean``         mean over seeds of what ``cold`` changes        luck of a seed
``cold``              trained without U from fresh weights            warm start
``warm``              trained without U from θ̂, same recipe           proximity
``proximal``          as warm, with a term that holds θ near θ̂        non-convergence
``pbrf``              proximal Bregman response, see `respond`        linearisation
``newton``            its first Gauss-Newton step                     curvature of the group
``second_order``      two terms of that step's series                 second term
``first_order``       one term
====================  ==============================================  =====================

The first rung has no network, see `with_seed_mean`. S has n items, U has m of them. Gradients at θ̂ are those of all items; curvature is that of a random
sample C of S.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from math import isfinite, nan
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import torch
from annotated_types import Ge, Gt, Lt
from scipy.optimize import Bounds, OptimizeResult, minimize
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from unlearnlib.data import datasets
from unlearnlib.data.datasets import Dataset
from unlearnlib.data.requests import Group, rest
from unlearnlib.groups.tables import SCORES
from unlearnlib.influence import curvature
from unlearnlib.influence.curvature import Objective
from unlearnlib.influence.estimators import Estimator, Removal, apply_update
from unlearnlib.influence.solvers import Dense, SolveError
from unlearnlib.measures.accuracy import percent_correct
from unlearnlib.measures.fidelity import jensen_shannon
from unlearnlib.models import checkpoints, networks
from unlearnlib.models.training import Recipe, fit
from unlearnlib.pipeline import clock, records, seeds
from unlearnlib.pipeline.records import Record

GROUP = ["mode", "label", "size"]  # columns that name a group, but for its seed
RETRAINED = ("cold", "warm")
ESTIMATED = ("newton", "second_order", "first_order")  # names of estimators
RUNGS = ("original", *RETRAINED, "proximal", "pbrf", *ESTIMATED)
GAPS = {
    "warm start": ("cold", "warm"),
    "proximity": ("warm", "proximal"),
    "non-convergence": ("proximal", "pbrf"),
    "linearisation": ("pbrf", "newton"),
    "curvature of the group": ("newton", "second_order"),
    "second term": ("second_order", "first_order"),
}
RUNAWAY = 10.0  # growth of a gradient, and steps of its size, after which there is no minimum near


@dataclass(frozen=True)
class Settings:
    """How far the proximal rungs are followed, and on how much.

    Attributes:
        curvature_items: c, images of the sample that the curvature is formed on; at most all.
        proximal_epochs: passes over the images that stay, of the proximal rung.
        proximal_items: images that stay, and of the group, in the response function.
        iterations: of L-BFGS in the response function, at most.
        tolerance: of its gradient norm at the end, relative to the one at the start, see `respond`.
    """

    curvature_items: Annotated[int, Ge(1)]
    proximal_epochs: Annotated[int, Ge(1)]
    proximal_items: Annotated[int, Ge(1)]
    iterations: Annotated[int, Ge(1)]
    tolerance: Annotated[float, Gt(0), Lt(1)]


@dataclass(frozen=True, eq=False)
class Setting:
    """Hold what the groups of one original model share.

    Attributes:
        objective: over S, at θ̂.
        order: ``[n]``, positions of S in a random order.
        sample: C, positions ``[c]``, the first of them.
        system: the Gauss-Newton matrix of C, damped and factored.
    """

    objective: Objective
    order: Tensor
    sample: Tensor
    system: Dense


def prepare(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    l2: float,
    damping: float,
    curvature_items: int,
    seed: int,
) -> Setting:
    """Form and factor the curvature at an original model.

    Args:
        network: the original model, θ̂.
        images: ``[n, C, H, W]``, all that it was trained on.
        labels: ``[n]``.
        l2: λ of its training.
        damping: added to the curvature, and weight of ``‖θ - θ̂‖² / 2`` in the proximal rungs.
        curvature_items: c, images of the sample; all where there are no more.
        seed: of the sample.

    Raises:
        ValueError: an empty sample.
        SolveError: a singular matrix; raise the damping.
    """
    if curvature_items < 1:
        raise ValueError(f"curvature_items={curvature_items}: give at least 1, such as 10000")
    objective = Objective(network.eval(), images, labels, l2=l2, batch_size=500)
    order = torch.randperm(len(labels), generator=seeds.stream(seed, "curvature sample"))
    sample = order[:curvature_items]
    matrix = curvature.gauss_newton(objective, index=sample)
    system = Dense(matrix, damping)
    return Setting(objective, order, sample, system)


# --------------------------------------------------------------------------- proximal rungs


def train_near(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    damping: float,
    recipe: Recipe,
    seed: int,
) -> nn.Module:
    """Train a copy by `training.fit`, with ``damping/2 ‖θ - θ̂‖²`` added to the loss.

    Args:
        network: at θ̂; stays as it is.
        images: ``[N, C, H, W]`` that stay.
        labels: ``[N]``.
        damping: weight of the proximal term.
        recipe: of the training.
        seed: of the order of the images.

    Raises:
        FloatingPointError: a loss that is not finite.
    """
    trained = copy.deepcopy(network)
    for p, anchor in zip(trained.parameters(), network.parameters(), strict=True):
        p.register_hook(
            lambda slope, p=p, anchor=anchor: slope + damping * (p.detach() - anchor.detach())
        )
    fit(trained, images, labels, recipe=recipe, seed=seed)
    return trained.eval()


@dataclass(frozen=True, eq=False)
class Response:
    """Hold where a minimisation ended, and whether that is a minimum.

    Attributes:
        delta: ``[P]``, float64, the way from the start.
        gradient_start: norm of the gradient at the start.
        gradient_end: norm at the end.
        iterations: of L-BFGS.
        tolerance: of the second norm, relative to the first.
    """

    delta: Tensor
    gradient_start: float
    gradient_end: float
    iterations: int
    tolerance: float

    @property
    def gradient_ratio(self) -> float:
        """The norm at the end over that at the start; 0 at a minimum."""
        return self.gradient_end / self.gradient_start if self.gradient_start else 0.0

    @property
    def converged(self) -> bool:
        """Whether the ratio is within the tolerance; not where it is NaN."""
        return self.gradient_ratio <= self.tolerance

    @property
    def reason(self) -> str | None:
        """Why there is no response, in words; None for one that converged."""
        if self.converged:
            return None
        return (
            f"not converged: gradient norm at {self.gradient_ratio:.2g} of its start after "
            f"{self.iterations} iterations, above {self.tolerance:g}"
        )


def minimise(
    objective: Callable[[Tensor], tuple[float, Tensor]],
    size: int,
    *,
    iterations: int,
    tolerance: float,
) -> Response:
    """Minimise a function from 0 by L-BFGS, in coordinates in which its curvature there is near 1.

    The line search holds the strong Wolfe conditions (Moré & Thuente 1994), so that no step leads
    up. The first step that it tries is ``-g``, which in such coordinates is Newton's; no coordinate
    moves by more than `RUNAWAY` times its norm. The search ends at the first point whose gradient is
    within the tolerance, and where the gradient has grown `RUNAWAY` times, as it does where there is
    no minimum.

    Args:
        objective: value and gradient ``[P]``, float64, at a point ``[P]``.
        size: P.
        iterations: at most.
        tolerance: of the norm of the gradient, relative to the one at 0.

    Returns:
        where it ended, converged or not: see `Response.converged`.

    Raises:
        ValueError: no iterations, or a tolerance not between 0 and 1.
        SolveError: a value or gradient at 0 that is not finite.
    """
    if iterations < 1 or not 0 < tolerance < 1:
        raise ValueError(
            f"iterations={iterations}, tolerance={tolerance}: give at least 1 iteration and a "
            "tolerance between 0 and 1, such as 0.05"
        )
    start = torch.zeros(size, dtype=torch.float64)
    value, slope = objective(start)
    scale = slope.norm().item()
    if not isfinite(value + scale):
        raise SolveError(
            f"the objective starts at {value:.3e} with a gradient norm of {scale:.3e}; look at the "
            "weights of the network"
        )
    if scale == 0:
        return Response(start, 0.0, 0.0, 0, tolerance)
    norms = [1.0]

    def scaled(u: np.ndarray) -> tuple[float, np.ndarray]:
        value, slope = objective(scale * torch.from_numpy(u))
        norms.append(slope.norm().item() / scale)
        return value / scale**2, (slope / scale).numpy()

    def stop(intermediate_result: OptimizeResult) -> None:  # scipy asks for this name
        if not tolerance < norms[-1] < RUNAWAY:
            raise StopIteration

    found = minimize(
        scaled, start.numpy(), jac=True, method="L-BFGS-B", callback=stop,
        bounds=Bounds(-RUNAWAY, RUNAWAY),
        options={"maxiter": iterations, "maxfun": 20 * iterations, "maxcor": 20, "ftol": 0.0,
                 "gtol": 0.0},
    )  # fmt: skip
    end = scale * float(np.linalg.norm(found.jac))
    return Response(scale * torch.from_numpy(found.x), scale, end, int(found.nit), tolerance)


def respond(
    setting: Setting, group: Tensor, *, items: int, iterations: int, tolerance: float
) -> Response:
    """Compute the proximal Bregman response (Bae et al. 2022, for a group, renormalised).

    It is the minimum of

        (1/(n-m)) [Σ_S D(f(θ, x), f(θ̂, x)) - Σ_U ℓ_u(θ)] + penalty + damping/2 ‖θ - θ̂‖²

    where D is the Bregman divergence of the cross-entropy in the logits f: the Kullback-Leibler
    divergence of the softmax at θ from that at θ̂. On U the two terms leave
    ``(e_y - p̂_u)^T f(θ, x_u)``, linear in the logits, so that U has a gradient and no curvature.
    The penalty is treated as part of every item's loss: λ/2 ‖θ - θ̂‖² for each of S, minus λ/2 ‖θ‖²
    for each of U. With that the Gauss-Newton step from θ̂ is the Newton step of `influence`.

    Sums run over fixed samples, ``items`` of S∖U, those of C first, and of U, plus a linear term
    that makes the gradient at θ̂ that of all items. The minimum is sought by `minimise` from θ̂, in
    coordinates in which the curvature at θ̂ is the identity. There the relative norm of the gradient,
    ``‖g‖² = g^T H^-1 g``, is about the distance to the minimum, relative to that of θ̂: 0.05 means
    5 % of the way are left. Networks with ReLU and max pooling have kinks, at which a
    gradient does not vanish even at a minimum; each is the work of one item, so that a larger sample
    lowers that floor.

    The term of U is not bounded below where U is large: what is found is a minimum near θ̂ if
    there is one, and else no response at all, which more items or more damping may mend.

    Args:
        setting: see `prepare`.
        group: U ``[m]``.
        items: images of each sample.
        iterations: of L-BFGS, at most.
        tolerance: of the gradient at the end, relative to that at θ̂.

    Returns:
        `Response` from θ̂, its gradient norms in the metric above. Whether it is one says
        `Response.converged`.

    Raises:
        ValueError: no items, or as in `minimise`.
        SolveError: as in `minimise`.
    """
    if items < 1:
        raise ValueError(f"items={items}: give at least 1, such as 10000")
    objective, lower = setting.objective, setting.system.lower
    left = objective.items - len(group)
    gradient = -curvature.gradient_sum(objective, index=group) / left
    kept = setting.order[~torch.isin(setting.order, group)][:items]
    sampled = _sampled(objective, kept, _spread(group, items), len(group) / left)
    theta = curvature.flatten(objective.network).double()
    correction = gradient - sampled(theta)[1]
    weight = objective.l2 + setting.system.damping

    def step(z: Tensor) -> Tensor:
        return torch.linalg.solve_triangular(lower.T, z[:, None], upper=True)[:, 0]

    def whitened(z: Tensor) -> tuple[float, Tensor]:
        delta = step(z)
        value, slope = sampled(theta + delta)
        value += (correction @ delta + weight / 2 * delta @ delta).item()
        slope = slope + correction + weight * delta
        return value, torch.linalg.solve_triangular(lower, slope[:, None], upper=False)[:, 0]

    found = minimise(whitened, len(theta), iterations=iterations, tolerance=tolerance)
    return replace(found, delta=step(found.delta))


def _spread(group: Tensor, items: int) -> Tensor:
    """Take at most so many of a group, evenly over its order."""
    if len(group) <= items:
        return group
    return group[torch.linspace(0, len(group) - 1, items).long()]


def _sampled(
    objective: Objective, kept: Tensor, removed: Tensor, share: float
) -> Callable[[Tensor], tuple[float, Tensor]]:
    """Return the part of the proximal objective that is no polynomial in θ, with its gradient.

    Args:
        objective: at θ̂.
        kept: the sample of S∖U.
        removed: the sample of U.
        share: m / (n-m), the weight of the mean over U.
    """
    network = objective.network
    inputs, outside = objective.inputs[kept], objective.inputs[removed]
    targets = networks.predict(network, inputs).softmax(1)
    outputs = networks.predict(network, outside)
    slopes = F.one_hot(objective.targets[removed], outputs.shape[1]) - outputs.softmax(1)
    parts = [
        *_chunks(inputs, -targets / len(kept), partial(torch.log_softmax, dim=1)),
        *_chunks(outside, share * slopes / len(removed), torch.nn.Identity()),
    ]

    def value(theta: Tensor) -> tuple[float, Tensor]:
        theta = theta.detach().to(inputs.dtype, copy=True).requires_grad_()
        total, slope = 0.0, torch.zeros(len(theta), dtype=torch.float64)
        for images, weights, of_logits in parts:
            logits = functional_call(network, curvature.unflatten(network, theta), (images,))
            part = (weights * of_logits(logits)).double().sum()
            total += part.item()
            slope += torch.autograd.grad(part, theta)[0].double()
        return total, slope

    return value


def _chunks(
    inputs: Tensor, weights: Tensor, of_logits: Callable[[Tensor], Tensor]
) -> list[tuple[Tensor, Tensor, Callable[[Tensor], Tensor]]]:
    """Cut inputs and the weights of what is made of their logits, so that memory stays small."""
    pairs = zip(inputs.split(2000), weights.split(2000), strict=True)
    return [(images, rows, of_logits) for images, rows in pairs]


# ---------------------------------------------------------------------------------- measures


def logit_distance(one: Tensor, other: Tensor) -> float:
    """Compute the root mean square difference of logits ``[N, K]``, each row centred.

    A constant added to all logits of an item does not change its softmax, so it does not count.
    """
    difference = one.double() - other.double()
    return (difference - difference.mean(1, keepdim=True)).square().mean().sqrt().item()


def compare(
    outputs: dict[str, dict[str, Tensor]], labels: dict[str, Tensor]
) -> tuple[dict[str, dict[str, float]], dict[str, Tensor]]:
    """Measure rungs by what they say of the removed items ("self") and of the test images.

    Args:
        outputs: by rung and part, logits ``[N, K]``; in the order of `RUNGS`.
        labels: by part ``[N]``.

    Returns:
        by rung ``self_loss`` and ``test_loss`` in nats, ``self_accuracy`` and ``test_accuracy`` in
        percent, ``item_correlation``: Spearman's, over the removed items, of the changes of their
        loss from the original with those of the cold retraining (NaN for a constant). And for each
        part, ``divergence_<part>`` and ``distance_<part>`` ``[R, R]`` of all pairs of rungs.
    """
    losses = {
        rung: F.cross_entropy(parts["self"].double(), labels["self"], reduction="none")
        for rung, parts in outputs.items()
    }
    wanted = losses["cold"] - losses["original"]
    scores = {}
    for rung, parts in outputs.items():
        scores[rung] = {"item_correlation": _rank(losses[rung] - losses["original"], wanted)}
        for part, logits in parts.items():
            scores[rung] |= {
                f"{part}_accuracy": percent_correct(logits, labels[part]),
                f"{part}_loss": F.cross_entropy(logits.double(), labels[part]).item(),
            }
    measures = {"divergence": jensen_shannon, "distance": logit_distance}
    pairs = {
        f"{name}_{part}": torch.tensor(
            [[measure(a[part], b[part]) for b in outputs.values()] for a in outputs.values()]
        )
        for name, measure in measures.items()
        for part in labels
    }
    return scores, pairs


def _rank(changes: Tensor, wanted: Tensor) -> float:
    if len(changes) < 2 or changes.eq(changes[0]).all() or wanted.eq(wanted[0]).all():
        return nan
    return float(spearmanr(changes.numpy(), wanted.numpy()).statistic)


# ------------------------------------------------------------------------------------- climb


def run(
    *,
    data: Path,
    original: Path,
    models: dict[str, dict[str, Path]],
    requests: list[Group],
    estimators: list[Estimator],
    recipe: Recipe,
    damping: float,
    settings: Settings,
    seed: int,
) -> dict[str, Any]:
    """Climb the ladder for all groups of one original model.

    Args:
        data: file of the data set.
        original: file of the model.
        models: by name of the request and of `RETRAINED`, files of the retrained models.
        requests: the groups.
        estimators: those of `ESTIMATED`.
        recipe: of the original and the retrained models; its ``l2`` is λ.
        damping: see `prepare`.
        settings: see `Settings`.
        seed: of the sample, and of the order of the images in the proximal rung.

    Returns:
        ``groups``: for each request, in order, ``request``, and ``rungs`` and ``pairs`` of
        `compare`, where a rung also has ``shift`` (``‖θ - θ̂‖``; of no use for ``cold``), and where
        they apply ``residual`` and what `response_rung` lists. A response that did not converge
        has no other numbers, and NaN in ``pairs``. Timings are by ``<request>/<rung>``, and
        ``curvature``.
    """
    dataset = datasets.load(data)
    with clock.timed("curvature"):
        setting = prepare(
            checkpoints.load(original), *datasets.split(dataset, "train"),
            l2=recipe.l2, damping=damping, curvature_items=settings.curvature_items, seed=seed,
        )  # fmt: skip
    groups = []
    for request in requests:
        retrained = {rung: checkpoints.load(models[request.name][rung]) for rung in RETRAINED}
        rungs = {"original": Rung(setting.objective.network, {})}
        rungs |= {name: Rung(network.eval(), {}) for name, network in retrained.items()}
        rungs |= _proximal(setting, request, recipe, settings, seed)
        rungs |= _estimated(setting, request, estimators)
        groups.append({"request": asdict(request)} | _compared(setting, dataset, request, rungs))
    return {"groups": groups}


@dataclass(frozen=True, eq=False)
class Rung:
    """Hold the network of a rung, None where there is none, and what its making left."""

    network: nn.Module | None
    facts: dict[str, Any]


def _proximal(
    setting: Setting, request: Group, recipe: Recipe, settings: Settings, seed: int
) -> dict[str, Rung]:
    """Make the rungs between retraining and influence."""
    objective, damping = setting.objective, setting.system.damping
    group = request.positions(objective.targets)
    kept = rest(objective.items, group)
    shorter = replace(recipe, epochs=settings.proximal_epochs)
    with clock.timed(f"{request.name}/proximal"):
        near = train_near(
            objective.network, objective.inputs[kept], objective.targets[kept],
            damping=damping, recipe=shorter, seed=seed,
        )  # fmt: skip
    with clock.timed(f"{request.name}/pbrf"):
        found = respond(
            setting, group, items=settings.proximal_items, iterations=settings.iterations,
            tolerance=settings.tolerance,
        )  # fmt: skip
    return {"proximal": Rung(near, {}), "pbrf": response_rung(objective.network, found)}


def response_rung(network: nn.Module, found: Response) -> Rung:
    """Move a network by a response, if it is one; of one that did not converge only facts stay.

    The facts are ``gradient_start``, ``gradient_end``, their ``gradient_ratio``, ``iterations``,
    and ``reason``, None where it converged.
    """
    names = ("gradient_start", "gradient_end", "gradient_ratio", "iterations", "reason")
    moved = apply_update(network, found.delta) if found.converged else None
    return Rung(moved, {name: getattr(found, name) for name in names})


def removal_of(setting: Setting, group: Tensor) -> Removal:
    """Return what the estimators read to remove a group ``[m]``, curvatures from the sample."""
    return Removal(setting.objective, group, setting.system, sample=setting.sample)


def _estimated(setting: Setting, request: Group, estimators: list[Estimator]) -> dict[str, Rung]:
    """Make the rungs of the influence estimators."""
    removal = removal_of(setting, request.positions(setting.objective.targets))
    rungs = {}
    for estimator in estimators:
        update, seconds = estimator.timed(removal)
        clock.add(f"{request.name}/{estimator.name}", seconds)
        moved = apply_update(setting.objective.network, update.delta)
        rungs[estimator.name] = Rung(moved, {"residual": update.residual})
    return rungs


def _compared(
    setting: Setting, dataset: Dataset, request: Group, rungs: dict[str, Rung]
) -> dict[str, Any]:
    """Compare all rungs of one group."""
    objective = setting.objective
    group = request.positions(objective.targets)
    test_images, test_labels = datasets.split(dataset, "test")
    parts = {"self": objective.inputs[group], "test": test_images}
    there = [name for name in RUNGS if rungs[name].network is not None]
    outputs = {
        name: {part: networks.predict(rungs[name].network, x) for part, x in parts.items()}
        for name in there
    }
    scores, pairs = compare(outputs, {"self": objective.targets[group], "test": test_labels})
    theta = curvature.flatten(objective.network)
    for name in there:
        shift = (curvature.flatten(rungs[name].network) - theta).norm().item()
        scores[name] |= {"shift": shift}
    scores = {name: scores.get(name, {}) | rungs[name].facts for name in RUNGS}
    return {"rungs": scores, "pairs": {name: _padded(m, there) for name, m in pairs.items()}}


def _padded(matrix: Tensor, there: list[str]) -> Tensor:
    """Spread a matrix over some rungs onto all of `RUNGS`, NaN for the others."""
    at = torch.tensor([RUNGS.index(name) for name in there])
    whole = torch.full((len(RUNGS), len(RUNGS)), nan, dtype=matrix.dtype)
    whole[at[:, None], at] = matrix
    return whole


# ------------------------------------------------------------------------------------- table


def table_rows(
    found: Mapping[str, Record], models: Mapping[str, Mapping[str, Path]], *, items: int
) -> list[dict[str, Any]]:
    """List the results of a sweep of `run`, a row for each group and rung.

    Args:
        found: records of the sweep.
        models: files of the retrained models, as in `run`, of all requests of the sweep.
        items: n, training items, for the percentages.

    Returns:
        beside the scores ``seconds`` of the rung, and ``<measure>_<part>_to_<other>``: the distance
        to the ``original``, to the ``cold`` retraining and to the ``next`` rung down the ladder.
    """
    rows = []
    for record in found.values():
        for group in record.result["groups"]:
            request = Group(**group["request"])
            seconds = _seconds(record, request, models[request.name])
            share = {"percent": 100 * request.size / items, "seed": request.seed}
            named = {"mode": request.mode, "label": request.label, "size": request.size} | share
            rows += [
                named
                | {"rung": rung, "seconds": seconds.get(rung, nan)}
                | scores
                | _distances(group["pairs"], RUNGS.index(rung))
                for rung, scores in group["rungs"].items()
            ]
    return rows


def _seconds(record: Record, request: Group, models: Mapping[str, Path]) -> dict[str, float]:
    """Read what each rung of a group took, where something was computed for it."""
    made = {rung: record.timings.get(f"{request.name}/{rung}", nan) for rung in RUNGS}
    return made | {rung: records.seconds(models[rung]) for rung in RETRAINED}


def check_converged(table: pd.DataFrame, *, limit: float) -> str:
    """Count the responses that did not converge, and refuse a table with too many of them.

    Args:
        table: of `table_rows`.
        limit: largest share, from 0 to 1.

    Returns:
        how many there are, in words.

    Raises:
        SolveError: a larger share.
    """
    responses = table[table["rung"] == "pbrf"]
    failed = responses[responses["reason"].notna()]
    share = len(failed) / max(len(responses), 1)
    said = f"{len(failed)} of {len(responses)} responses did not converge"
    if share > limit:
        raise SolveError(
            f"{said}, {share:.0%}, above unconverged_limit={limit:g}; raise proximal_items, "
            f"iterations or damping. The first: {failed['reason'].iloc[0]}"
        )
    return said


def _distances(pairs: dict[str, Tensor], rung: int) -> dict[str, float]:
    others = {"original": RUNGS.index("original"), "cold": RUNGS.index("cold"), "next": rung + 1}
    return {
        f"{name}_to_{other}": matrix[rung, at].item()
        for name, matrix in pairs.items()
        for other, at in others.items()
        if at < len(RUNGS)
    }


# ------------------------------------------------------------------------------ over seeds


def with_seed_mean(table: pd.DataFrame) -> pd.DataFrame:
    """Add the rung ``seed_mean``: what retraining does to a score in the mean over seeds.

    The outcome of one retraining is one draw from a distribution, whose mean is what an estimate
    can be asked for: the expected change, the mean of d-TDA (arXiv 2506.12965). The paper holds the
    group fixed and varies the randomness of training. Here each seed draws its own group of the
    same kind and size as well, so that the mean runs over draws and training alike.

    Args:
        table: of `table_rows`, with ``original`` and ``cold`` of every group and seed.

    Returns:
        the table with a row more for each group and seed, behind the original's. Its scores are
        those of the seed's original plus the mean over seeds of (cold retrain - original), in
        percent and nats; ``<score>_error`` is the standard error of that mean, NaN for one seed;
        ``seeds`` how many there are.

    Raises:
        ValueError: a group and seed without one of the two.
    """
    table = table.reset_index(drop=True)
    added = []
    for key, group in table.groupby(GROUP, sort=False, dropna=False):
        original, cold = (group[group["rung"] == rung] for rung in ("original", "cold"))
        if sorted(original["seed"]) != sorted(cold["seed"]):
            raise ValueError(
                f"the group {key} has originals of seeds {original['seed'].to_list()} and cold "
                f"retrains of {cold['seed'].to_list()}: give both of every seed"
            )
        changes = cold.set_index("seed")[SCORES] - original.set_index("seed")[SCORES]
        rows = original[[*GROUP, "percent", "seed"]].assign(rung="seed_mean", seeds=len(changes))
        rows[SCORES] = original[SCORES] + changes.mean()
        rows[[f"{score}_error" for score in SCORES]] = changes.sem().to_list()
        added.append(rows.set_axis(rows.index + 0.5))
    return pd.concat([table, *added]).sort_index().reset_index(drop=True)


def explained(table: pd.DataFrame) -> pd.DataFrame:
    """Measure how much of the change of losses each rung makes, and how far it is from it.

    A change is the loss of a rung less that of the original of the same group and seed.

    Args:
        table: of `with_seed_mean`.

    Returns:
        a row for each mode and rung but the original: ``groups`` (groups and seeds that have the
        rung) and ``left_out`` (those that have not); and for ``self`` and ``test``
        ``<part>_share``, the sum of its changes over that of the cold retrain, of the groups that
        it has; ``<part>_to_seed`` and ``<part>_to_mean``, the root mean square, in nats, of its
        change less that of the cold retrain of the same seed, and less the mean over seeds;
        and ``<part>_error``, that of the standard errors of the mean. NaN where no group is left.
    """
    wide = table.set_index([*GROUP, "seed", "rung"])
    rows = []
    for mode, rung in table[["mode", "rung"]].drop_duplicates().itertuples(index=False):
        if rung == "original":
            continue
        row: dict[str, Any] = {"mode": mode, "rung": rung}
        for part in ("self", "test"):
            losses = wide.loc[[mode], f"{part}_loss"].unstack("rung")
            error = wide.loc[[mode], f"{part}_loss_error"].unstack("rung")["seed_mean"]
            there = losses[rung].notna()
            row |= {"groups": int(there.sum()), "left_out": int((~there).sum())}
            changes = losses.sub(losses["original"], axis=0)[there]
            rest = {"seed": changes["cold"], "mean": changes["seed_mean"]}
            row[f"{part}_share"] = _ratio(changes[rung].sum(), changes["cold"].sum(), there.any())
            row |= {f"{part}_to_{name}": _rms(changes[rung] - one) for name, one in rest.items()}
            row[f"{part}_error"] = _rms(error[there])
        rows.append(row)
    return pd.DataFrame(rows)


def _ratio(change: float, whole: float, known: bool) -> float:
    return change / whole if known else nan


def _rms(values: pd.Series) -> float:
    return float((values**2).mean() ** 0.5)
