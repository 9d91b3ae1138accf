"""Update a share of a network's parameters: thin systems, the length of the step, and a sweep.

The generalized influence function (Lyu et al. 2023, arXiv 2312.05586) changes the parameters φ that
a criterion of `selection` chose. On a network of tens of thousands of parameters and a few hundred
curvature images the Gauss-Newton matrix has far more columns than rank, so that

    A = X^T X + d I,    X = (R_i^T J_i)_i / sqrt(N)  [N (K-1), P],

where d holds the penalty λ and the damping together. X is formed once for a network; the block of
any φ and its normal matrix are solved in the space of X's rows (Woodbury), as many unknowns as
N (K-1). Signs and scales are those of `influence`: an update is *added*, and it is the whole
removal, ``1/(n-m)`` of a solve.

Removing a class is no small perturbation. The update therefore gives a direction, and `choose_scale`
says how far to go along it. For the same reason the curvature may be taken over what stays, as in
Newton's step: over all items, the curvature of the class itself holds back the directions that
forget it.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from math import inf, nan
from typing import Any, NamedTuple

import torch
from numpy import nan_to_num
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap

from unlearnlib.data import datasets, removal
from unlearnlib.groups.geometry import random_group
from unlearnlib.influence import curvature, estimators
from unlearnlib.influence.criteria import select
from unlearnlib.influence.curvature import Objective
from unlearnlib.influence.solvers import (
    MatrixFree,
    Solution,
    SolveError,
    cholesky,
    conjugate_gradient,
)
from unlearnlib.models import architectures, models

ARCHITECTURES = architectures.ARCHITECTURES  # those of `architectures` are known from here on

# ------------------------------------------------------------------------------ thin systems


def rooted_jacobian(
    objective: Objective, *, index: Tensor | None = None, chunk: int = 10
) -> Tensor:
    """Form X with ``X^T X = (1/N) Σ_i J_i^T Λ_i J_i``, the Gauss-Newton matrix without the penalty.

    Args:
        objective: with a network in evaluation mode.
        index: ``[N]``, the items of the mean; all without it.
        chunk: items at once; beside X itself memory grows with it.

    Returns:
        ``[N R, P]`` in the network's precision, R the rank of the loss's curvature: K - 1 for
        cross-entropy over K classes.

    Raises:
        ValueError: no items, or a network in training mode.
    """
    network, theta = objective.network, curvature.flatten(objective.network)
    if network.training:
        raise ValueError(f"{type(network).__name__} is in training mode; call network.eval() first")
    order = torch.arange(objective.items) if index is None else index
    if len(order) == 0:
        raise ValueError("an empty index selects no items; give at least one position")

    def logits(theta: Tensor, inputs: Tensor) -> Tensor:
        return functional_call(network, curvature.unflatten(network, theta), (inputs,))

    def one(x: Tensor, columns: Tensor) -> Tensor:
        pull = vjp(lambda theta: logits(theta, x[None])[0], theta)[1]
        return vmap(lambda column: pull(column)[0], in_dims=1)(columns)

    rows = theta.new_empty(0, len(theta))
    for number, part in enumerate(order.split(chunk)):
        inputs = objective.inputs[part].to(theta)
        root = objective.loss.root(logits(theta, inputs))
        if number == 0:  # written in place: to join chunks would need twice the memory
            rows = theta.new_empty(len(order), root.shape[2], len(theta))
        rows[number * chunk : number * chunk + len(part)] = vmap(one)(inputs, root)
    return rows.flatten(0, 1).div_(len(order) ** 0.5)


class Core(NamedTuple):
    """Hold C ``[M, M]``, what stands between the rows of a thin system, and its inverse."""

    matrix: Tensor
    inverse: Tensor


@dataclass(frozen=True, eq=False)
class Thin:
    """A system ``A = X^T C X + d I`` of many parameters and few rows; see `solvers.System`.

    Solved exactly in the space of rows,

        A^-1 = (I - X^T (d C^-1 + X X^T)^-1 X) / d,

    and that inverse preconditions conjugate gradients on the product itself, which takes one or two
    iterations and records the true residual.

    Attributes:
        rows: X ``[M, P]``, in any precision; sums run in float64.
        damping: d above 0: penalty and damping together.
        core: C; the identity without it.
        tolerance: largest relative residual that a solution may have.

    Raises:
        SolveError: d is not above 0, so that the system is singular.
    """

    rows: Tensor
    damping: float
    core: Core | None = None
    tolerance: float = 1e-6

    def __post_init__(self) -> None:
        if not self.damping > 0:
            raise SolveError(
                f"a thin system is singular at damping {self.damping:g}; raise the damping or the "
                "penalty above 0, for example to 1e-2"
            )

    @cached_property
    def gram(self) -> Tensor:
        """``X X^T`` ``[M, M]``, float64, summed over chunks of columns."""
        total = self.rows.new_zeros(len(self.rows), len(self.rows), dtype=torch.float64)
        for columns in self.rows.split(2000, dim=1):
            columns = columns.double()
            total.addmm_(columns, columns.T)
        return total

    @cached_property
    def lower(self) -> Tensor:
        """The Cholesky factor of ``d C^-1 + X X^T``."""
        if self.core is None:
            return cholesky(self.gram, damping=self.damping)
        return cholesky(self.gram + self.damping * self.core.inverse)

    @cached_property
    def squared(self) -> Core:
        """The core of ``A² - d² I``: ``C X X^T C + 2 d C``."""
        if self.core is None:
            matrix = self.gram.clone()
            matrix.diagonal().add_(2 * self.damping)
        else:
            of_rows = self.core.matrix
            matrix = of_rows @ self.gram @ of_rows + 2 * self.damping * of_rows
        return Core(matrix, torch.cholesky_inverse(cholesky(matrix)))

    def at(self, damping: float) -> "Thin":
        """Return the system at another damping, which shares ``X X^T``."""
        other = replace(self, damping=damping)
        vars(other)["gram"] = self.gram
        return other

    def apply(self, v: Tensor) -> Tensor:
        """Compute ``A v`` for ``[P]``, in float64."""
        inner = self._forward(v.double())
        if self.core is not None:
            inner = self.core.matrix @ inner
        return self._backward(inner) + self.damping * v

    def inverse(self, b: Tensor) -> Tensor:
        """Compute ``A^-1 b`` for ``[P]`` without looking at the residual."""
        inner = torch.cholesky_solve(self._forward(b)[:, None], self.lower)[:, 0]
        return (b - self._backward(inner)) / self.damping

    def solve(self, b: Tensor) -> Solution:
        """Solve ``A x = b`` for ``[P]``.

        Raises:
            SolveError: not positive definite, not finite, or a residual above the tolerance.
        """
        return conjugate_gradient(
            self.apply,
            b.double(),
            preconditioner=self.inverse,
            tolerance=self.tolerance,
            max_iterations=20,
        )

    def block(self, mask: Tensor) -> "Thin":
        """Return the block ``A_φφ`` of the parameters in a bool mask ``[P]``."""
        return replace(self, rows=self.rows[:, mask])

    def normal(self, mask: Tensor) -> "Thin":
        """Return the normal matrix ``A_φ: A_:φ`` of a bool mask ``[P]``, without further damping."""
        return replace(self, rows=self.rows[:, mask], damping=self.damping**2, core=self.squared)

    def _forward(self, v: Tensor) -> Tensor:
        return torch.cat([part.double() @ v for part in self.rows.split(256)])

    def _backward(self, w: Tensor) -> Tensor:
        total = w.new_zeros(self.rows.shape[1])
        for part, weights in zip(self.rows.split(256), w.split(256), strict=True):
            total += part.double().T @ weights
        return total


# ------------------------------------------------------------------------- length of the step

Judge = Callable[[float], tuple[float, float]]


def choose_scale(
    judge: Judge, scales: list[float], *, self_limit: float, bisections: int
) -> tuple[float, list[dict[str, float]]]:
    """Choose how far to go along an update, without test data.

    The rule: of a grid of scales, take the smallest at which the accuracy on the forgotten training
    items is at most `self_limit`, and halve the (logarithmic) gap below it `bisections` times,
    keeping the half whose upper end is within the limit. Where no scale of the grid gets there,
    take the one with the largest difference between the validation accuracy on the classes that
    stay and the accuracy on the forgotten items.

    Args:
        judge: ``scale -> (self accuracy, validation accuracy)``, in percent; NaN where the model
            overflows.
        scales: the grid, ascending, above 0; all of it is judged.
        self_limit: percent.
        bisections: further scales.

    Returns:
        the scale, and the curve: ``scale``, ``self_accuracy`` and ``validation_accuracy`` of all
        that was judged, ascending.

    Raises:
        ValueError: no scales, or scales that are not ascending and above 0.
    """
    ascending = all(a < b for a, b in zip([0.0, *scales], scales, strict=False))
    if not scales or not ascending:
        raise ValueError(f"scales={scales}: give factors above 0 in ascending order, as [1, 2, 4]")
    judged = {scale: judge(scale) for scale in scales}
    within = [scale for scale in scales if judged[scale][0] <= self_limit]
    if within:
        chosen = within[0]
        below = [0.0, *scales][scales.index(chosen)]
    else:
        differences = {scale: others - own for scale, (own, others) in judged.items()}
        chosen = max(scales, key=lambda scale: nan_to_num(differences[scale], nan=-inf))
        below = 0.0
    for _ in range(bisections if below else 0):
        middle = (below * chosen) ** 0.5
        judged[middle] = judge(middle)
        below, chosen = (below, middle) if judged[middle][0] <= self_limit else (middle, chosen)
    return chosen, [
        {"scale": scale, "self_accuracy": judged[scale][0], "validation_accuracy": judged[scale][1]}
        for scale in sorted(judged)
    ]


# ------------------------------------------------------------------------------- the criteria


def measure(network: nn.Module, dataset: datasets.Dataset, label: int) -> dict[str, float]:
    """Measure a model that is to forget a class.

    Returns:
        ``self_accuracy`` and ``self_loss`` on the training images of the class,
        ``test_accuracy`` and ``test_loss`` on the test images of the *other* classes, and
        ``all_test_accuracy`` on all test images: percent, and mean cross-entropy in nats.
    """
    images, labels = datasets.split(dataset, "train")
    group = labels == label
    own = removal.score(network, images[group], labels[group])
    images, labels = datasets.split(dataset, "test")
    stay = labels != label
    others = removal.score(network, images[stay], labels[stay])
    gone = removal.score(network, images[~stay], labels[~stay])
    share = stay.double().mean().item()
    both = share * others["accuracy"] + (1 - share) * gone["accuracy"]
    named = {f"self_{key}": value for key, value in own.items()}
    named |= {f"test_{key}": value for key, value in others.items()}
    return named | {"all_test_accuracy": both}


def run(spec: dict[str, Any]) -> dict[str, Any]:
    """Forget a class with one network by every case: estimator, criterion and modification ratio.

    The group is all training items of the class. The rows of the curvature and the gradient are
    computed once; each case then takes one solve and the judging of its scales. The damping is
    chosen without test data too: the first case is solved with each candidate, and the one that
    keeps the highest validation accuracy at its scale, of equals the larger, serves every case.

    Args:
        spec: ``data``, ``original`` and ``retrained`` (files); ``label`` to forget; ``cases``,
            lists of estimator (``gif``, ``fif`` or ``pif``), criterion and ratio; ``l2``;
            ``dampings``, the candidates; ``curvature_images``, how many training items form the
            curvature, and ``curvature_of`` which they are drawn from: ``all``, or those ``kept``;
            ``gradient_images``, items of the class that its gradient is estimated from, None for
            all; ``score_images``, as many items of the class score the units and judge a scale;
            ``validation_images`` of the other classes judge it too; ``scales``, ``self_limit`` and
            ``bisections`` of `choose_scale`; ``seed`` of all draws.

    Returns:
        ``rows``, one for the original, the retrained model and each case; ``curve``, the judged
        scales of each case, and of the first one at each damping; ``damping``, the chosen one;
        ``shared_seconds`` of what the cases share.

    Raises:
        ValueError: unknown estimator or criterion, or more items asked for than there are.
        SolveError: no trustworthy solution.
    """
    if unknown := {case[0] for case in spec["cases"]} - set(estimators.PARTIAL):
        raise ValueError(
            f"unknown estimator {sorted(unknown)[0]!r}; choose one of {list(estimators.PARTIAL)}"
        )
    started = time.perf_counter()
    task = _task(spec)
    first, *others = spec["cases"]
    system, row, curve = _choose_damping(task, first)
    shared = time.perf_counter() - started
    rows = [
        {"estimator": name} | measure(network, task.dataset, spec["label"])
        for name, network in (
            ("original", task.objective.network),
            ("retrain", models.load(spec["retrained"])),
        )
    ]
    rows.append(_measured(task, row))
    for case in others:
        row, judged = _forget(task, system, case)
        rows.append(_measured(task, row))
        curve += judged
    return {"rows": rows, "curve": curve, "damping": row["damping"], "shared_seconds": shared}


@dataclass(frozen=True, eq=False)
class _Task:
    """Hold what the cases of one network share."""

    spec: dict[str, Any]
    dataset: datasets.Dataset
    objective: Objective
    rows: Tensor
    gradient: Tensor
    removed: int
    scorers: Tensor


def _task(spec: dict[str, Any]) -> _Task:
    """Compute what the cases share: rows of the curvature, and the gradient of the class."""
    dataset = datasets.load(spec["data"])
    images, labels = datasets.split(dataset, "train")
    original = models.frozen(models.load(spec["original"]))
    objective = Objective(original, images, labels, l2=spec["l2"])
    request = {"mode": "coherent", "label": spec["label"], "seed": spec["seed"]}
    group = (labels == spec["label"]).nonzero().squeeze(1)
    index = _curvature_items(labels, spec)
    return _Task(
        spec=spec,
        dataset=dataset,
        objective=objective,
        rows=rooted_jacobian(objective, index=index),
        gradient=_group_gradient(objective, group, request | {"size": spec["gradient_images"]}),
        removed=len(group),
        scorers=removal.draw(labels, request | {"size": min(spec["score_images"], len(group))}),
    )


def _choose_damping(
    task: _Task, case: list[Any]
) -> tuple[Thin, dict[str, Any], list[dict[str, float]]]:
    """Solve a case with each damping; return the best one's system and row, and all curves."""
    spec, found, curve = task.spec, [], []
    system = Thin(task.rows, 1.0)
    for damping in spec["dampings"]:
        system = system.at(spec["l2"] + damping)
        row, judged = _forget(task, system, case)
        found.append((system, row))
        curve += judged

    def quality(pair: tuple[Thin, dict[str, Any]]) -> tuple[bool, float, float]:
        system, row = pair
        forgotten = row["judged_self"] <= spec["self_limit"]
        return forgotten, row["judged_validation"], system.damping

    system, row = max(found, key=quality)
    return system, row, curve


def _forget(
    task: _Task, system: Thin, case: list[Any]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Solve one case and choose its scale; return its row, with the update, and its curve."""
    started = time.perf_counter()
    (estimator, criterion, ratio), spec, objective = case, task.spec, task.objective
    own, labels = objective.inputs[task.scorers], objective.targets[task.scorers]
    mask = select(criterion, objective.network, own, labels, ratio=ratio, seed=spec["seed"])
    update = estimators.PARTIAL[estimator](
        task.gradient, system, mask, items=objective.items, removed=task.removed
    )
    seconds = time.perf_counter() - started
    scale, judged = choose_scale(
        _judge(task, update.delta),
        spec["scales"],
        self_limit=spec["self_limit"],
        bisections=spec["bisections"],
    )
    named = {"estimator": estimator, "criterion": criterion, "modification_ratio": ratio}
    named["damping"] = round(system.damping - spec["l2"], 12)
    at = next(point for point in judged if point["scale"] == scale)
    row = named | {
        "scale": scale,
        "parameters": int(mask.sum()),
        "residual": update.residual,
        "update_norm": scale * update.delta.norm().item(),
        "seconds": seconds,
        "judged_self": at["self_accuracy"],
        "judged_validation": at["validation_accuracy"],
        "delta": update.delta,
    }
    return row, [named | point for point in judged]


def _measured(task: _Task, row: dict[str, Any]) -> dict[str, Any]:
    """Replace the update of a row by what the updated model scores."""
    moved = estimators.apply_update(task.objective.network, row["delta"], row["scale"])
    kept = {key: value for key, value in row.items() if key != "delta"}
    return kept | measure(moved, task.dataset, task.spec["label"])


SOURCES = ("all", "kept")


def _curvature_items(labels: Tensor, spec: dict[str, Any]) -> Tensor:
    """Draw the items of the curvature: positions ``[N]``."""
    if spec["curvature_of"] not in SOURCES:
        raise ValueError(
            f"unknown curvature_of {spec['curvature_of']!r}; choose one of {list(SOURCES)}"
        )
    source = torch.arange(len(labels))
    if spec["curvature_of"] == "kept":
        source = removal.rest(len(labels), labels == spec["label"])
    return source[random_group(len(source), size=spec["curvature_images"], seed=spec["seed"])]


def _group_gradient(objective: Objective, group: Tensor, request: dict[str, Any]) -> Tensor:
    """Sum the gradients of a group, or estimate the sum from some of its items."""
    if request["size"] is None:
        return curvature.gradient_sum(objective, index=group)
    drawn = removal.draw(objective.targets, request)
    return curvature.gradient_sum(objective, index=drawn) * (len(group) / len(drawn))


def _judge(task: _Task, delta: Tensor) -> Judge:
    """Return the judge of `choose_scale`: forgotten training items and staying validation images."""
    spec, objective = task.spec, task.objective
    forgotten = objective.inputs[task.scorers], objective.targets[task.scorers]
    images, labels = datasets.split(task.dataset, "validation")
    stay = (labels != spec["label"]).nonzero().squeeze(1)[: spec["validation_images"]]
    staying = images[stay], labels[stay]

    def judge(scale: float) -> tuple[float, float]:
        moved = estimators.apply_update(objective.network, delta, scale)
        scores = [removal.score(moved, *part) for part in (forgotten, staying)]
        # logits that overflow would count as the first class
        own, others = (s["accuracy"] if s["loss"] < float("inf") else nan for s in scores)
        return own, others

    return judge


# ---------------------------------------------------------------------------- larger networks


def run_larger(spec: dict[str, Any]) -> dict[str, Any]:
    """Remove a group from a network whose curvature is known by its product alone.

    First order at scale 1 by conjugate gradients without a preconditioner, for both kinds of
    curvature. Where a system has no trustworthy solution (`SolveError`: indefinite, or not
    converged) the message is kept and the next damping is tried, which is the remedy it names.

    Args:
        spec: ``data`` and ``original`` (files); ``group``, a request as in `removal.draw`; ``l2``;
            ``dampings``, ascending; ``curvature_images``, training items of the curvature;
            ``tolerance`` and ``max_iterations`` of `solvers.MatrixFree`; ``seed`` of their draw.

    Returns:
        ``rows``: for each attempt ``curvature``, ``damping``, ``outcome`` (``solved`` or the
        message), ``seconds``, and where solved ``residual``, ``iterations``, ``update_norm`` and
        the scores of `removal.measure`; ``parameters``; ``before``, the scores of the original.
    """
    dataset = datasets.load(spec["data"])
    original = models.frozen(models.load(spec["original"]))
    images, labels = datasets.split(dataset, "train")
    objective = Objective(original, images, labels, l2=spec["l2"])
    group = removal.draw(labels, spec["group"])
    gradient = curvature.gradient_sum(objective, index=group)
    index = random_group(len(labels), size=spec["curvature_images"], seed=spec["seed"])
    rows = []
    for kind in curvature.CURVATURES:
        operator = curvature.curvature_operator(kind, objective, index=index)
        for damping in spec["dampings"]:
            system = MatrixFree(operator, damping, None, spec["tolerance"], spec["max_iterations"])
            row, update = _attempt(gradient, system, items=len(labels), removed=len(group))
            rows.append({"curvature": kind, "damping": damping} | row)
            if update is not None:
                moved = estimators.apply_update(original, update.delta)
                rows[-1] |= removal.measure(moved, dataset, group)
                break
    return {
        "rows": rows,
        "parameters": len(gradient),
        "before": removal.measure(original, dataset, group),
    }


def _attempt(
    gradient: Tensor, system: MatrixFree, *, items: int, removed: int
) -> tuple[dict[str, Any], estimators.Update | None]:
    """Solve, or say why not."""
    started = time.perf_counter()
    try:
        update = estimators.first_order(gradient, system, items=items, removed=removed)
    except SolveError as error:
        return {"outcome": str(error), "seconds": time.perf_counter() - started}, None
    return {
        "outcome": "solved",
        "seconds": time.perf_counter() - started,
        "residual": update.residual,
        "iterations": update.iterations,
        "update_norm": update.delta.norm().item(),
    }, update
