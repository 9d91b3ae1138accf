"""The ladder from a retrained network down to its influence estimate.

Retraining and influence functions answer different questions of a deep network, which Bae et al.
2022 ("If influence functions are the answer, then what is the question?") take apart step by step:

====================  ==============================================  =====================
rung                  what it is                                      gap to the next
====================  ==============================================  =====================
``cold``              trained without U from fresh weights            warm start
``warm``              trained without U from θ̂, same recipe           proximity
``proximal``          as warm, with a term that holds θ near θ̂        non-convergence
``pbrf``              proximal Bregman response, see `respond`        linearisation
``newton``            its first Gauss-Newton step                     curvature of the group
``second_order``      two terms of that step's series                 second term
``first_order``       one term
====================  ==============================================  =====================

S has n items, U has m of them. Gradients at θ̂ are those of all items; curvature is that of a random
sample C of S.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from math import nan
from pathlib import Path
from typing import Annotated, Any

import torch
from annotated_types import Ge
from scipy.optimize import minimize
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from unlearnlib.data import datasets
from unlearnlib.data.datasets import Dataset
from unlearnlib.data.requests import Group, rest
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


@dataclass(frozen=True)
class Settings:
    """How far the proximal rungs are followed, and on how much.

    Attributes:
        curvature_items: c, images of the sample that the curvature is formed on; at most all.
        proximal_epochs: passes over the images that stay, of the proximal rung.
        proximal_items: images that stay, and of the group, in the response function.
        iterations: of L-BFGS in the response function, at most.
    """

    curvature_items: Annotated[int, Ge(1)]
    proximal_epochs: Annotated[int, Ge(1)]
    proximal_items: Annotated[int, Ge(1)]
    iterations: Annotated[int, Ge(1)]


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
    """Hold where the proximal Bregman response ended.

    Attributes:
        delta: ``[P]``, float64, from θ̂.
        gradient_ratio: norm of the gradient at the end over that at θ̂, both in the metric of the
            inverse curvature, ``‖g‖² = g^T H^-1 g``; 0 at a minimum.
        iterations: of L-BFGS.
    """

    delta: Tensor
    gradient_ratio: float
    iterations: int


def respond(setting: Setting, group: Tensor, *, items: int, iterations: int) -> Response:
    """Compute the proximal Bregman response (Bae et al. 2022, for a group, renormalised).

    It is the minimum of

        (1/(n-m)) [Σ_S D(f(θ, x), f(θ̂, x)) - Σ_U ℓ_u(θ)] + penalty + damping/2 ‖θ - θ̂‖²

    where D is the Bregman divergence of the cross-entropy in the logits f: the Kullback-Leibler
    divergence of the softmax at θ from that at θ̂. On U the two terms leave
    ``(e_y - p̂_u)^T f(θ, x_u)``, linear in the logits, so that U has a gradient and no curvature.
    The penalty is treated as part of every item's loss: λ/2 ‖θ - θ̂‖² for each of S, minus λ/2 ‖θ‖²
    for each of U. With that the Gauss-Newton step from θ̂ is the Newton step of `influence`.

    Sums run over fixed samples, ``items`` of S∖U, those of C first, and of U, plus a linear term
    that makes the gradient at θ̂ that of all items. The minimum is sought by L-BFGS from θ̂, in coordinates in
    which the curvature at θ̂ is the identity.

    Args:
        setting: see `prepare`.
        group: U ``[m]``.
        items: images of each sample.
        iterations: at most.

    Raises:
        ValueError: no items, or no iterations.
        SolveError: it ends at no lower value, or at one that is not finite.
    """
    if items < 1 or iterations < 1:
        raise ValueError(f"items={items}, iterations={iterations}: give at least 1 of both")
    objective, lower = setting.objective, setting.system.lower
    left = objective.items - len(group)
    gradient = -curvature.gradient_sum(objective, index=group) / left
    kept = setting.order[~torch.isin(setting.order, group)][:items]
    sampled = _sampled(objective, kept, _spread(group, items), len(group) / left)
    theta = curvature.flatten(objective.network).double()
    correction = gradient - sampled(theta)[1]
    weight = objective.l2 + setting.system.damping

    def whitened(z: Any) -> tuple[float, Any]:
        z = torch.from_numpy(z)
        delta = torch.linalg.solve_triangular(lower.T, z[:, None], upper=True)[:, 0]
        value, slope = sampled(theta + delta)
        value += (correction @ delta + weight / 2 * delta @ delta).item()
        slope = slope + correction + weight * delta
        back = torch.linalg.solve_triangular(lower, slope[:, None], upper=False)[:, 0]
        return value, back.numpy()

    start = torch.zeros_like(theta).numpy()
    value, slope = whitened(start)
    found = minimize(
        whitened, start, jac=True, method="L-BFGS-B",
        options={"maxiter": iterations, "maxcor": 20, "ftol": 0.0, "gtol": 1e-6 * abs(slope).max()},
    )  # fmt: skip
    if not found.fun < value:
        raise SolveError(
            f"the proximal objective went from {value:.3e} to {found.fun:.3e}; raise the damping "
            f"above {setting.system.damping:g}, or the number of images"
        )
    z = torch.from_numpy(found.x)
    delta = torch.linalg.solve_triangular(lower.T, z[:, None], upper=True)[:, 0]
    ratio = torch.from_numpy(found.jac).norm() / torch.from_numpy(slope).norm()
    return Response(delta, ratio.item(), int(found.nit))


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

    def value(theta: Tensor) -> tuple[float, Tensor]:
        theta = theta.detach().to(inputs.dtype, copy=True).requires_grad_()
        parameters = curvature.unflatten(network, theta)
        logits = functional_call(network, parameters, (inputs,))
        total = -(targets * logits.log_softmax(1)).sum(1).double().mean()
        logits = functional_call(network, parameters, (outside,))
        total = total + share * (slopes * logits).sum(1).double().mean()
        return total.item(), torch.autograd.grad(total, theta)[0].double()

    return value


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
        they apply ``residual``, ``gradient_ratio`` and ``iterations``. Timings are by
        ``<request>/<rung>``, and ``curvature``.
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
    """Hold the network of a rung, and the numbers that its making left."""

    network: nn.Module
    facts: dict[str, float]


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
        options = {"items": settings.proximal_items, "iterations": settings.iterations}
        found = respond(setting, group, **options)
    facts = {"gradient_ratio": found.gradient_ratio, "iterations": found.iterations}
    response = apply_update(objective.network, found.delta)
    return {"proximal": Rung(near, {}), "pbrf": Rung(response, facts)}


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
    outputs = {
        name: {part: networks.predict(rungs[name].network, x) for part, x in parts.items()}
        for name in RUNGS
    }
    scores, pairs = compare(outputs, {"self": objective.targets[group], "test": test_labels})
    theta = curvature.flatten(objective.network)
    for name in RUNGS:
        shift = (curvature.flatten(rungs[name].network) - theta).norm().item()
        scores[name] |= {"shift": shift} | rungs[name].facts
    return {"rungs": scores, "pairs": pairs}


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


def _distances(pairs: dict[str, Tensor], rung: int) -> dict[str, float]:
    others = {"original": RUNGS.index("original"), "cold": RUNGS.index("cold"), "next": rung + 1}
    return {
        f"{name}_to_{other}": matrix[rung, at].item()
        for name, matrix in pairs.items()
        for other, at in others.items()
        if at < len(RUNGS)
    }
