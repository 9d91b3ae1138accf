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
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from scipy.optimize import minimize
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from unlearnlib.data import datasets, removal
from unlearnlib.influence import curvature, estimators
from unlearnlib.influence.curvature import Objective
from unlearnlib.influence.solvers import Dense, Operator, SolveError, System
from unlearnlib.measures.fidelity import jensen_shannon
from unlearnlib.models import models, retraining

RUNGS = (
    "original",
    "cold",
    "warm",
    "proximal",
    "pbrf",
    "newton",
    "second_order",
    "first_order",
)
GAPS = {
    "warm start": ("cold", "warm"),
    "proximity": ("warm", "proximal"),
    "non-convergence": ("proximal", "pbrf"),
    "linearisation": ("pbrf", "newton"),
    "curvature of the group": ("newton", "second_order"),
    "second term": ("second_order", "first_order"),
}
_SAMPLE_SEED = 1_000_000


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
    # the draw of a random group of the same seed must not be that of the sample
    generator = torch.Generator().manual_seed(_SAMPLE_SEED + seed)
    order = torch.randperm(len(labels), generator=generator)
    sample = order[:curvature_items]
    matrix = curvature.gauss_newton(objective, index=sample)
    system = Dense(matrix, damping)
    return Setting(objective, order, sample, system)


# --------------------------------------------------------------------------- influence steps


def kept_curvature(setting: Setting, group: Tensor) -> System:
    """Return the curvature of S∖U as that of C∖U, which is positive definite.

    ``(n H_C - m H_U) / (n - m)``, with the sample's curvature minus that of *all* of U, may be
    indefinite, as C does not hold all of U. The mean over C∖U estimates the same and is a sum of
    squares.

    Raises:
        ValueError: nothing of C is left.
    """
    inside = _inside(setting, group)
    if len(inside) == 0:
        return setting.system
    # what only U has seen keeps no curvature but damping, so that conjugate gradients are slow
    return estimators.kept_system(
        setting.system,
        curvature.gauss_newton(setting.objective, index=inside),
        items=len(setting.sample),
        removed=len(inside),
    )


def group_curvature(setting: Setting, group: Tensor) -> Operator:
    """Return the product with the mean curvature of U, damped, as that of C∩U.

    A curvature of all of U beside one of C would have directions that C has not seen, in which the
    second order grows without bound. Where C holds nothing of U it is that of C.
    """
    inside = _inside(setting, group)
    if len(inside) == 0:
        return setting.system.apply
    product = curvature.gauss_newton_operator(setting.objective, index=inside)
    return estimators.damped(product, setting.system.damping)


def _inside(setting: Setting, group: Tensor) -> Tensor:
    return group[torch.isin(group, setting.sample)]


def steps(setting: Setting, group: Tensor) -> dict[str, dict[str, Any]]:
    """Estimate the removal of a group by each influence estimator of the ladder.

    Returns:
        by rung: ``delta`` ``[P]``, ``residual`` of its solves and ``seconds``.
    """
    objective = setting.objective
    started = time.perf_counter()
    gradient = curvature.gradient_sum(objective, index=group)
    shared = time.perf_counter() - started
    counts = {"items": objective.items, "removed": len(group)}
    of_group = group_curvature(setting, group)
    calls: dict[str, Callable[[], estimators.Update]] = {
        "newton": lambda: estimators.newton(gradient, kept_curvature(setting, group), **counts),
        "second_order": lambda: estimators.second_order(
            gradient, setting.system, of_group, **counts
        ),
        "first_order": lambda: estimators.first_order(gradient, setting.system, **counts),
    }
    found = {}
    for name, call in calls.items():
        started = time.perf_counter()
        update = call()
        found[name] = {
            "delta": update.delta,
            "residual": update.residual,
            "seconds": shared + time.perf_counter() - started,
        }
    return found


# --------------------------------------------------------------------------- proximal rungs


def train_near(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    damping: float,
    l2: float,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
) -> nn.Module:
    """Train a copy as `retraining.fit` does, with ``damping/2 ‖θ - θ̂‖²`` added to the loss.

    Args:
        network: at θ̂; stays as it is.
        images: ``[N, C, H, W]`` that stay.
        labels: ``[N]``.
        damping: weight of the proximal term.
        l2: λ.
        epochs: passes over the images.
        batch_size: images a step.
        learning_rate: peak of the one-cycle rate of Adam.
        seed: of the order of the images.

    Raises:
        FloatingPointError: a loss that is not finite.
    """
    trained = copy.deepcopy(network)
    for p, anchor in zip(trained.parameters(), network.parameters(), strict=True):
        p.register_hook(
            lambda slope, p=p, anchor=anchor: slope + damping * (p.detach() - anchor.detach())
        )
    retraining.fit(
        trained, images, labels, epochs=epochs, batch_size=batch_size,
        learning_rate=learning_rate, l2=l2, seed=seed,
    )  # fmt: skip
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
    targets = models.predict(network, inputs).softmax(1)
    outputs = models.predict(network, outside)
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
            correct = (logits.argmax(1) == labels[part]).double().mean()
            loss = F.cross_entropy(logits.double(), labels[part])
            scores[rung] |= {f"{part}_accuracy": 100 * correct.item(), f"{part}_loss": loss.item()}
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
        return float("nan")
    return float(spearmanr(changes.numpy(), wanted.numpy()).statistic)


def run(spec: dict[str, Any]) -> dict[str, Any]:
    """Climb the ladder for all groups of one original model.

    Args:
        spec: ``data`` (file of the data set), ``original`` (file of the model), ``groups``:
            requests as in `removal.draw`; for the i-th of them ``cold_i`` and ``warm_i``, files of
            the retrained models; ``l2``, ``damping``, ``curvature_items``, ``seed`` as in
            `prepare`; ``proximal_epochs``, ``batch_size`` and ``learning_rate`` as in `train_near`;
            ``proximal_items`` and ``iterations`` as in `respond`.

    Returns:
        ``groups``: for each request ``rungs`` and ``pairs`` of `compare`, where a rung also has
        ``shift`` (``‖θ - θ̂‖``; of no use for ``cold``), ``seconds``, and where they apply
        ``residual``, ``gradient_ratio`` and ``iterations``; ``curvature_seconds``.
    """
    dataset = datasets.load(spec["data"])
    options = {key: spec[key] for key in ("l2", "damping", "curvature_items", "seed")}
    started = time.perf_counter()
    setting = prepare(models.load(spec["original"]), *datasets.split(dataset, "train"), **options)
    seconds = time.perf_counter() - started
    groups = [
        _climb(setting, dataset, request, spec, spec[f"cold_{i}"], spec[f"warm_{i}"])
        for i, request in enumerate(spec["groups"])
    ]
    return {"groups": groups, "curvature_seconds": seconds}


def _climb(
    setting: Setting,
    dataset: datasets.Dataset,
    request: dict[str, Any],
    spec: dict[str, Any],
    cold: Path,
    warm: Path,
) -> dict[str, Any]:
    """Make and compare every rung for one group."""
    objective = setting.objective
    group = removal.draw(objective.targets, request)
    rungs: dict[str, tuple[nn.Module, dict[str, Any]]] = {"original": (objective.network, {})}
    for name, path in (("cold", cold), ("warm", warm)):
        rungs[name] = (models.load(path).eval(), {"seconds": models.load_record(path)["seconds"]})
    kept = removal.rest(objective.items, group)
    started = time.perf_counter()
    near = train_near(
        objective.network, objective.inputs[kept], objective.targets[kept],
        epochs=spec["proximal_epochs"],
        **{key: spec[key] for key in ("damping", "l2", "batch_size", "learning_rate", "seed")},
    )  # fmt: skip
    rungs["proximal"] = (near, {"seconds": time.perf_counter() - started})
    started = time.perf_counter()
    response = respond(setting, group, items=spec["proximal_items"], iterations=spec["iterations"])
    extra = vars(response) | {"seconds": time.perf_counter() - started}
    rungs["pbrf"] = (estimators.apply_update(objective.network, extra.pop("delta")), extra)
    for name, step in steps(setting, group).items():
        rungs[name] = (estimators.apply_update(objective.network, step.pop("delta")), step)
    test_images, test_labels = datasets.split(dataset, "test")
    parts = {"self": objective.inputs[group], "test": test_images}
    outputs = {
        name: {part: models.predict(rungs[name][0], images) for part, images in parts.items()}
        for name in RUNGS
    }
    scores, pairs = compare(outputs, {"self": objective.targets[group], "test": test_labels})
    theta = curvature.flatten(objective.network)
    return {
        "rungs": {
            name: scores[name]
            | {"shift": (curvature.flatten(rungs[name][0]) - theta).norm().item()}
            | rungs[name][1]
            for name in RUNGS
        },
        "pairs": pairs,
    }


def table_rows(records: list[dict[str, Any]], *, items: int) -> list[dict[str, Any]]:
    """List the results of a sweep of `run`, a row for each group and rung.

    Args:
        records: of the sweep.
        items: n, training items, for the percentages.

    Returns:
        beside the scores ``<measure>_<part>_to_<other>``: the distance to the ``original``, to the
        ``cold`` retraining and to the ``next`` rung down the ladder.
    """
    return [
        {
            "mode": request["mode"], "label": request.get("label"), "size": request["size"],
            "percent": 100 * request["size"] / items, "seed": record["spec"]["seed"], "rung": rung,
        }
        | scores
        | _distances(group["pairs"], RUNGS.index(rung))
        for record in records
        for request, group in zip(
            record["spec"]["groups"], record["result"]["groups"], strict=True
        )
        for rung, scores in group["rungs"].items()
    ]  # fmt: skip


def _distances(pairs: dict[str, Tensor], rung: int) -> dict[str, float]:
    others = {"original": RUNGS.index("original"), "cold": RUNGS.index("cold"), "next": rung + 1}
    return {
        f"{name}_to_{other}": matrix[rung, at].item()
        for name, matrix in pairs.items()
        for other, at in others.items()
        if at < len(RUNGS)
    }
