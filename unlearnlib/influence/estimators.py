"""Estimate what removing a group of items does to a trained network, without training again.

S has n items, U is the group to remove, m = |U| and p = m/n. The target of every estimator is the
minimum of the mean loss over what stays, with the same penalty λ:

    θ_-U = argmin (1/(n-m)) Σ_{S∖U} ℓ_i(θ) + λ/2 ‖θ‖².

Conventions, the same for all:

* Sign: an estimator returns ``δ ≈ θ_-U - θ̂``, to be *added* to θ̂ (`apply_update`). The sum
  ``g_U`` enters with a plus: to remove items is to go up their loss.
* Scale: the whole removal, not a derivative per unit of weight. The mean over what stays is
  renormalised, hence ``1/(n-m)`` and not ``1/n``.
* Penalty: it belongs to every item's loss, ``g_U = Σ_U (∇ℓ_u + λ θ̂)``, as in `curvature`. Without
  ``m λ θ̂`` the estimate is that of a penalty that grows by ``n/(n-m)``.
* Damping counts as curvature of every item, like the penalty, but has no gradient: it holds θ near
  θ̂ (Bae et al. 2022). A mean over U is damped as much as the mean over S.

All of them take θ̂ for a minimum. H is the Hessian or the generalised Gauss-Newton matrix of the
mean over S, whichever the system holds.

The formulas come first, each with what it reads as arguments. `ESTIMATORS` has them by name: an
`Estimator` computes its update from a `Removal`, which makes what several of them read once.
"""

import copy
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TypeVar

import torch
from torch import Tensor, nn

from unlearnlib.data.requests import Classes, Method
from unlearnlib.influence import curvature
from unlearnlib.influence.curvature import Objective
from unlearnlib.influence.solvers import (
    Dense,
    MatrixFree,
    Operator,
    Solution,
    SolveError,
    System,
    embed,
)
from unlearnlib.pipeline.registry import Registry

Made = TypeVar("Made")


@dataclass(frozen=True, eq=False)
class Update:
    """Hold a change of parameters and the solves that it took.

    Attributes:
        delta: ``[P]``, float64, to be added to the parameters.
        solutions: a record of each.
    """

    delta: Tensor
    solutions: tuple[Solution, ...]

    @property
    def residual(self) -> float:
        """The largest relative residual of the solves."""
        return max(solution.residual for solution in self.solutions)

    @property
    def iterations(self) -> int:
        """The iterations of conjugate gradients in all."""
        return sum(solution.iterations for solution in self.solutions)


def first_order(
    gradient: Tensor, system: System, *, items: int, removed: int, renormalise: bool = True
) -> Update:
    """Estimate the removal by ``δ = (1/(n-m)) H^-1 g_U``.

    The derivative of θ̂ in the weights, times their change. Koh & Liang 2017, equation 1, give
    ``-H^-1 ∇ℓ_u`` for the weight of one item; to remove it is to change that weight by ``-1/n``,
    the others' staying as they are, and a group's changes add up (Koh et al. 2019). Where the
    weights of the others grow to ``1/(n-m)`` meanwhile, as in a mean over fewer items, the
    derivative has ``1/(n-m)`` instead of ``1/n`` (Basu et al. 2020). At m = n/2 the two differ
    twofold.

    Args:
        gradient: ``g_U`` ``[P]``, of `curvature.gradient_sum`.
        system: H over all of S.
        items: n.
        removed: m.
        renormalise: false for ``1/n``, as published in 2017.

    Raises:
        ValueError: m below 1 or not below n.
        SolveError: no trustworthy solution.
    """
    _check_sizes(items, removed)
    solution = system.solve(gradient)
    scale = items - removed if renormalise else items
    return Update(solution.x / scale, (solution,))


def newton(
    gradient: Tensor,
    kept: System,
    *,
    items: int,
    removed: int,
    training_gradient: Tensor | None = None,
) -> Update:
    """Take one Newton step on what stays: ``δ = (1/(n-m)) H_{S∖U}^-1 g_U``.

    Koh et al. 2019 and Guo et al. 2020, who put the penalty on the sum. At a minimum of L the
    sum of the gradients over S∖U is ``-g_U``. Exact where the loss is quadratic.

    Args:
        gradient: ``g_U`` ``[P]``.
        kept: H over S∖U, see `kept_system`.
        items: n.
        removed: m.
        training_gradient: ``n ∇L`` over S ``[P]`` where θ̂ is no minimum: the step then starts from
            the true gradient, ``g_U - n ∇L``, and goes on with the unfinished training as well.

    Raises:
        ValueError: m below 1 or not below n.
        SolveError: no trustworthy solution.
    """
    _check_sizes(items, removed)
    slope = gradient if training_gradient is None else gradient - training_gradient
    solution = kept.solve(slope)
    return Update(solution.x / (items - removed), (solution,))


def second_order(
    gradient: Tensor,
    system: System,
    group_curvature: Operator,
    *,
    items: int,
    removed: int,
    third: Operator | None = None,
) -> Update:
    """Expand the path of removal to second order (Basu et al. 2020, theorem 1).

    Let the weight of U fall as ``1-s`` while that of the rest grows so that their sum stays n. The
    minimum θ(s) satisfies ``(1 + s p/(1-p)) ∇L(θ) - s/(n(1-p)) g_U(θ) = 0`` and reaches θ_-U at
    s = 1. Two derivatives at s = 0, with ``H_U`` the *sum* of the group's Hessians:

        θ'  = 1/(n(1-p)) H^-1 g_U = d
        θ'' = 2/(1-p) H^-1 (H_U/n - p H) d - H^-1 ∇³L[d, d]

    so that ``δ = θ' + θ''/2`` is

        (1-2p)/((1-p)² n) H^-1 g_U + 1/((1-p)² n²) H^-1 H_U H^-1 g_U - 1/2 H^-1 ∇³L[d, d].

    The published formula is the first two terms. Its coefficients are right for this path, with the
    penalty in g_U and H_U: the Taylor polynomial where the loss is quadratic, and the first two
    terms of the Neumann series of the Newton step in ``(H_U/n - p H)/(1-p)``, how far the group's
    curvature is from the mean (so that it is the whole Newton step where they are equal, and may
    diverge for p above 1/2). The third term is of the same order in p; the paper drops it,
    assuming third derivatives to be small. With cross-entropy they are not, so that the published
    formula is a second-order approximation of the Newton step, and only with `third` one of θ_-U.

    Args:
        gradient: ``g_U`` ``[P]``.
        system: H over all of S.
        group_curvature: product with the *mean* curvature of U, damped as `system`.
        items: n.
        removed: m.
        third: ``v -> ∇³L[v, v]`` over all of S, of `curvature.third_operator`; without it the
            published formula.

    Raises:
        ValueError: m below 1 or not below n.
        SolveError: no trustworthy solution.
    """
    first = first_order(gradient, system, items=items, removed=removed)
    d, p = first.delta, removed / items
    right = p / (1 - p) * group_curvature(d)
    if third is not None:
        right = right - third(d) / 2
    correction = system.solve(right)
    delta = (1 - 2 * p) / (1 - p) * d + correction.x
    return Update(delta, (*first.solutions, correction))


def rif(
    parts: Iterable[tuple[Tensor, Tensor]], system: System, *, items: int, shared: float
) -> Update:
    """Add up what removing each item alone does (rescaled influence, Rubinstein & Hopkins 2025).

    arXiv 2506.06656. To remove item i alone, one Newton step goes to
    ``δ_i = 1/(n-1) H_{S∖i}^-1 g_i = (n H - H_i)^-1 g_i``, exact where the loss is quadratic, with
    the item's curvature ``H_i = X_i^T X_i + c I``, ``X_i^T X_i = J_i^T Λ_i J_i``. What every item
    holds, ``c = λ`` + damping, goes to ``n B = n H - c I``, and the rest by Woodbury:

        δ_i = (n B)^-1 g_i + (n B)^-1 X_i^T (I - L_i)^-1 X_i (n B)^-1 g_i,
        L_i = X_i (n B)^-1 X_i^T.

    The eigenvalues of L_i, those of the K x K matrix ``Λ_i J_i (n B)^-1 J_i^T``, are the leverages
    of the item, below 1. Of a gradient ``J_i^T r`` without penalty the sum of both terms is
    ``(n B)^-1 J_i^T (I - Λ_i J_i (n B)^-1 J_i^T)^-1 r``, and for one output the influence divided
    by ``1 - L_i``, as published. The update is

        δ = Σ_U δ_i,

    to be *added* to θ̂ like all others. Each δ_i has ``1/(n-1)``, the mean over what stays without
    i; removals that happen together know nothing of one another. So at small leverage the sum is
    ``1/n H^-1 g_U``, and lies below `first_order` by ``(n-m)/n``: use it for small groups, and for
    what single items do.

    Args:
        parts: of the group, chunk by chunk: gradients ``∇ℓ_i + λ θ̂`` ``[M, P]``, of
            `curvature.item_gradients`, and X ``[M, R, P]``, of `curvature.item_roots`.
        system: H over all of S.
        items: n.
        shared: c.

    Raises:
        SolveError: no trustworthy solution, or a leverage of 1 or more.
    """
    apart = system.at(system.damping - shared / items)
    sums, solutions = [], []
    for gradients, roots in parts:
        leverages, slopes, solved = _inner(apart, gradients, roots)
        pushed = _divide(leverages / items, slopes / items)
        sums.append((gradients + (roots.mT @ pushed)[:, :, 0]).sum(0))
        solutions += solved
    ended = apart.solve(torch.stack(sums).sum(0))
    return Update(ended.x / items, (*solutions, ended))


def _inner(
    system: System, gradients: Tensor, roots: Tensor
) -> tuple[Tensor, Tensor, tuple[Solution, ...]]:
    """Compute ``X_i B^-1 X_i^T`` ``[M, R, R]`` and ``X_i B^-1 g_i`` ``[M, R, 1]``, see `rif`.

    The record of the solves follows, without its columns, which are larger than all else; none of a
    matrix in memory, whose factor the solve of the sum puts to the test.
    """
    if isinstance(system, Dense):
        half = system.whiten(roots)
        return half @ half.mT, half @ system.whiten(gradients)[:, :, None], ()
    solved = system.solve(roots.flatten(0, 1).T)
    inverted = solved.x.T.view_as(roots)
    record = replace(solved, x=torch.empty(0))
    return roots @ inverted.mT, inverted @ gradients[:, :, None], (record,)


def _divide(leverages: Tensor, slopes: Tensor) -> Tensor:
    """Solve ``(I - L_i) w_i = s_i`` for each item: L ``[M, R, R]``, s and w ``[M, R, 1]``."""
    left = torch.eye(leverages.shape[-1]).to(leverages) - leverages
    lower, failed = torch.linalg.cholesky_ex((left + left.mT) / 2)
    if failed.any():
        largest = torch.linalg.eigvalsh(leverages).max().item()
        raise SolveError(
            f"an item has leverage {largest:.2f}, where its share of the curvature is below 1: the "
            "system lacks what the item adds to it; form it on the items of the group too, or "
            "raise the damping"
        )
    return torch.cholesky_solve(slopes, lower)


# ------------------------------------------------------------- over a subset of the parameters


def pif(gradient: Tensor, system: System, mask: Tensor, *, items: int, removed: int) -> Update:
    """Project the full first-order solution: ``δ_φ = (1/(n-m)) [H^-1 g_U]_φ`` (Lyu et al. 2023).

    Zero outside φ. The entries are those of a change of *all* parameters, most of which then does
    not happen.

    Args:
        gradient: ``g_U`` ``[P]``.
        system: H over all of S.
        mask: bool ``[P]``, true in φ.
        items: n.
        removed: m.
    """
    full = first_order(gradient, system, items=items, removed=removed)
    curvature.check_mask(mask, len(gradient))
    return Update(full.delta * mask, full.solutions)


def fif(gradient: Tensor, system: System, mask: Tensor, *, items: int, removed: int) -> Update:
    """Solve with the block: ``δ_φ = (1/(n-m)) H_φφ^-1 g_φ``, the rest frozen (Lyu et al. 2023).

    Arguments as in `pif`. The first-order change of the minimum over φ alone.
    """
    curvature.check_mask(mask, len(gradient))
    return _on_subset(system.block(mask), gradient[mask], mask, items, removed)


def gif(gradient: Tensor, system: System, mask: Tensor, *, items: int, removed: int) -> Update:
    """Solve by least squares with all rows (Lyu et al. 2023, generalized influence function).

    ``δ_φ = (1/(n-m)) (H_φ: H_:φ)^-1 H_φ: g_U``, the minimum over δ_φ of
    ``‖H_:φ δ_φ - g_U/(n-m)‖``. The paper writes ``-(H_φ: H_:φ)^-1 H_φ: g`` for the derivative in
    an *added* weight; a removal is a negative weight, which turns the sign. Arguments as in `pif`.
    """
    curvature.check_mask(mask, len(gradient))
    right = system.apply(gradient)[mask]
    return _on_subset(system.normal(mask), right, mask, items, removed)


def _on_subset(system: System, right: Tensor, mask: Tensor, items: int, removed: int) -> Update:
    _check_sizes(items, removed)
    solution = system.solve(right)
    return Update(embed(solution.x, mask) / (items - removed), (solution,))


def _check_sizes(items: int, removed: int) -> None:
    if not 1 <= removed < items:
        raise ValueError(
            f"a group of {removed} of {items} items: remove at least 1 and at most {items - 1}"
        )


# ------------------------------------------------------------------------------- curvature


def kept_system(
    system: System, group_curvature: Operator | Tensor, *, items: int, removed: int
) -> System:
    """Return H over S∖U from those over S and U: ``(n H - m H̄_U) / (n - m)``.

    Args:
        system: H over S.
        group_curvature: H̄_U, the *mean* curvature of U: its matrix without damping, for a dense
            system, or its product, damped as `system`.
        items: n.
        removed: m.

    Returns:
        a dense system from a matrix; else one by product, preconditioned with the inverse of H
        over S, so that few iterations do where the group is small or like the rest.
    """
    _check_sizes(items, removed)
    if isinstance(group_curvature, Tensor):
        if not isinstance(system, Dense):
            raise ValueError(
                "a group's matrix needs a Dense system; give the group's product instead"
            )
        left = (items * system.matrix - removed * group_curvature) / (items - removed)
        return Dense(left, system.damping, system.tolerance)

    def product(v: Tensor) -> Tensor:
        return (items * system.apply(v) - removed * group_curvature(v)) / (items - removed)

    if isinstance(system, Dense):
        return MatrixFree(product, 0.0, system.inverse, system.tolerance)
    return replace(system, operator=product, damping=0.0)


def damped(operator: Operator, damping: float) -> Operator:
    """Add damping to a product: ``v -> A v + damping v``."""
    return lambda v: operator(v) + damping * v


# ----------------------------------------------------------------------------- what is read


@dataclass(eq=False)
class Removal:
    """The removal of a group U from S, with all that an estimator may read of it, made once.

    A system over a random sample C of S stands for one over S. The curvature of U is then that of
    C∩U: what is taken out of C must have been in it, or the rest would be indefinite, and directions
    that only U has seen would let the second order grow without bound. Where C holds nothing of U,
    the system's own curvature stands for that of U, so that all expansions agree.

    Attributes:
        objective: over all of S, at θ̂.
        group: positions of U ``[m]``; given as such, or as a bool mask ``[n]``.
        system: H over S, or over a sample of it, with damping.
        sample: C, the positions that the system's curvature was formed on; None for all of S.
        kind: curvature of the group, a name in `curvature.CURVATURES`; as in the system.
        mask: bool ``[P]``, the subset φ of the parameters, which partial estimators need; or a
            function that chooses it, called when it is first read.
        third_items: positions that estimate the third derivative; None for all of S.
        given_gradient: g_U ``[P]`` where it is not to be summed over all of U.
        seconds: that the parts took which several estimators share, once they are made.

    Raises:
        ValueError: see `check_group`; a curvature that is unknown.
    """

    objective: Objective
    group: Tensor
    system: System
    sample: Tensor | None = None
    kind: str = "gauss_newton"
    mask: Tensor | Callable[[], Tensor] | None = None
    third_items: Tensor | None = None
    given_gradient: Tensor | None = None
    seconds: dict[str, float] = field(default_factory=dict, init=False)
    _updates: dict[Callable, tuple[Update, float]] = field(
        default_factory=dict, init=False, repr=False
    )

    def __post_init__(self) -> None:
        self.group = check_group(self.group, self.objective.items)
        curvature.check_kind(self.kind)

    @property
    def items(self) -> int:
        """n, the items of S."""
        return self.objective.items

    @property
    def removed(self) -> int:
        """m, the items of U."""
        return len(self.group)

    @property
    def sizes(self) -> dict[str, int]:
        """Both as keywords of the formulas: ``items`` and ``removed``."""
        return {"items": self.items, "removed": self.removed}

    @cached_property
    def gradient(self) -> Tensor:
        """g_U ``[P]``."""
        if self.given_gradient is not None:
            return self._made("gradient", lambda: self.given_gradient)
        return self._made(
            "gradient", lambda: curvature.gradient_sum(self.objective, index=self.group)
        )

    @cached_property
    def phi(self) -> Tensor:
        """The subset of the parameters: bool ``[P]``.

        Raises:
            ValueError: there is none.
        """
        if self.mask is None:
            raise ValueError("mask=None: an estimator over a subset takes a mask of parameters")
        return self._made("phi", self.mask if callable(self.mask) else lambda: self.mask)

    @cached_property
    def inside(self) -> Tensor:
        """Positions of U that its curvature is read from, those in the sample: ``[c]``."""
        if self.sample is None:
            return self.group
        return self.group[torch.isin(self.group, self.sample)]

    @cached_property
    def group_matrix(self) -> Tensor | None:
        """Mean curvature of U as a matrix ``[P, P]``, undamped; None where its product does.

        It is formed beside a dense system over a sample: what of the sample only U has seen keeps
        no curvature but damping, which makes conjugate gradients slow.
        """
        formed = isinstance(self.system, Dense) and self.kind == "gauss_newton"
        if self.sample is None or not formed or len(self.inside) == 0:
            return None
        return curvature.gauss_newton(self.objective, index=self.inside)

    @cached_property
    def group_curvature(self) -> Operator:
        """The product with the *mean* curvature of U, damped as the system."""
        return self._made("group_curvature", self._group_product)

    def _group_product(self) -> Operator:
        if len(self.inside) == 0:
            return self.system.apply
        if (matrix := self.group_matrix) is not None:
            return damped(lambda v: matrix @ v, self.system.damping)
        product = curvature.curvature_operator(self.kind, self.objective, index=self.inside)
        return damped(product, self.system.damping)

    @cached_property
    def kept_system(self) -> System:
        """H over S∖U, or over C∖U.

        Raises:
            ValueError: nothing of the sample is left.
        """
        if len(self.inside) == 0:
            return self.system
        of_group = self.group_curvature if self.group_matrix is None else self.group_matrix
        drawn = self.items if self.sample is None else len(self.sample)
        return kept_system(self.system, of_group, items=drawn, removed=len(self.inside))

    @cached_property
    def third(self) -> Operator:
        """The product ``v -> ∇³L[v, v]``, see `curvature.third_operator`."""
        return curvature.third_operator(self.objective, index=self.third_items)

    def _made(self, name: str, make: Callable[[], Made]) -> Made:
        """Make a part that estimators share, and note the seconds."""
        started = time.perf_counter()
        made = make()
        self.seconds[name] = time.perf_counter() - started
        return made


def check_group(group: Tensor, items: int) -> Tensor:
    """Return the positions of a group, int64 ``[M]``, after checking them.

    Args:
        group: positions ``[M]``, or a bool mask ``[items]``.
        items: how many there are in all.

    Raises:
        ValueError: empty, not smaller than the data, repeated or out of range.
    """
    remedy = f"give different positions from 0 to {items - 1}, fewer than {items} of them"
    if group.dtype == torch.bool:
        if group.shape != (items,):
            raise ValueError(f"a mask of shape {tuple(group.shape)} for {items} items: {remedy}")
        group = group.nonzero().squeeze(1)
    if group.ndim != 1 or group.is_floating_point():
        raise ValueError(f"a group of {group.dtype} and shape {tuple(group.shape)}: {remedy}")
    if len(group) == 0:
        raise ValueError(f"the group is empty, so there is nothing to forget: {remedy}")
    if len(group) >= items:
        raise ValueError(f"a group of {len(group)} leaves nothing of {items} items: {remedy}")
    if int(group.min()) < 0 or int(group.max()) >= items:
        raise ValueError(
            f"the group reaches from {int(group.min())} to {int(group.max())}: {remedy}"
        )
    if len(group.unique()) < len(group):
        raise ValueError(f"the group holds an item more than once: {remedy}")
    return group.long()


# ------------------------------------------------------------------------------------ by name


@dataclass(frozen=True, kw_only=True)
class Estimator(Method):
    """An influence estimator: how the parameters change when a group is removed.

    Attributes:
        function: computes the update.
        partial: whether it changes a subset of the parameters alone, and needs a mask.
        curved: whether it reads the curvature of the group.
        by_item: whether it solves for every item of the group, so that its cost grows with them.
        scaled: whether the caller is to choose a scale of the update, see `influence.scale`.
    """

    family: str = "influence"
    reads: str = field(default="gradients and curvature of the same items", compare=False)
    function: Callable[[Removal], Update]
    partial: bool = False
    curved: bool = False
    by_item: bool = False
    scaled: bool = False

    def update(self, removal: Removal) -> Update:
        """Estimate what a removal does to the parameters, at scale 1; once a removal.

        Raises:
            ValueError: no mask where one is needed, or nothing left of the sample.
            SolveError: no trustworthy solution.
        """
        return self.timed(removal)[0]

    def timed(self, removal: Removal) -> tuple[Update, float]:
        """Return the update, and the seconds that it would take alone, shared parts included."""
        if self.partial and removal.mask is None:
            raise ValueError(
                f"estimator {self.name!r} with mask=None: it changes a subset of the parameters, so "
                "give the removal a mask of them"
            )
        parts = ["gradient", *(["phi"] * self.partial), *(["group_curvature"] * self.curved)]
        for part in parts:
            getattr(removal, part)
        if self.function not in removal._updates:
            started = time.perf_counter()
            update = self.function(removal)
            removal._updates[self.function] = update, time.perf_counter() - started
        update, seconds = removal._updates[self.function]
        return update, seconds + sum(removal.seconds[part] for part in parts)


def scaled(estimator: Estimator) -> Estimator:
    """Return the variant whose scale is chosen on validation images, such as ``gif_scaled``.

    Its update is that of the estimator; who calls it moves along it by `scale.choose_scale`.
    """
    return replace(
        estimator,
        name=f"{estimator.name}_scaled",
        title=f"{estimator.title}, scaled",
        reads=f"{estimator.reads}, and validation images",
        scaled=True,
        serves=(Classes,),
        why_not="the scale that forgets is known for classes only: a group may stay well predicted",
    )


def _first_order(removal: Removal) -> Update:
    return first_order(removal.gradient, removal.system, **removal.sizes)


def _newton(removal: Removal) -> Update:
    return newton(removal.gradient, removal.kept_system, **removal.sizes)


def _second_order(removal: Removal) -> Update:
    return second_order(removal.gradient, removal.system, removal.group_curvature, **removal.sizes)


def _second_order_cubic(removal: Removal) -> Update:
    return second_order(
        removal.gradient,
        removal.system,
        removal.group_curvature,
        third=removal.third,
        **removal.sizes,
    )


def _rif(removal: Removal, *, chunk: int = 100) -> Update:
    """Add up the Newton steps of the items, each from the curvature that `Removal` says."""
    objective, system, inside = removal.objective, removal.system, removal.inside
    outside = removal.group[~torch.isin(removal.group, inside)]
    drawn = removal.items if removal.sample is None else len(removal.sample)
    updates = []
    if len(inside):
        parts = (
            (curvature.item_gradients(objective, index=i), curvature.item_roots(objective, index=i))
            for i in inside.split(chunk)
        )
        shared = objective.l2 + system.damping
        updates.append(rif(parts, system, items=drawn, shared=shared))
    if len(outside):
        # without curvature of their own to take out
        solution = system.solve(curvature.gradient_sum(objective, index=outside))
        updates.append(Update(solution.x / (drawn - 1), (solution,)))
    delta = sum(update.delta for update in updates) * (drawn - 1) / (removal.items - 1)
    return Update(delta, tuple(s for update in updates for s in update.solutions))


def _pif(removal: Removal) -> Update:
    return pif(removal.gradient, removal.system, removal.phi, **removal.sizes)


def _fif(removal: Removal) -> Update:
    return fif(removal.gradient, removal.system, removal.phi, **removal.sizes)


def _gif(removal: Removal) -> Update:
    return gif(removal.gradient, removal.system, removal.phi, **removal.sizes)


_UNSCALED = (
    Estimator("first_order", "first order", function=_first_order),
    Estimator("newton", "Newton", function=_newton, curved=True),
    Estimator("second_order", "second order", function=_second_order, curved=True),
    Estimator(
        "second_order_cubic",
        "second order, third derivative",
        function=_second_order_cubic,
        curved=True,
    ),
    Estimator("rif", "RIF", function=_rif, by_item=True),
    Estimator("pif", "PIF", function=_pif, partial=True),
    Estimator("fif", "FIF", function=_fif, partial=True),
    Estimator("gif", "GIF", function=_gif, partial=True),
)
ESTIMATORS: Registry[Estimator] = Registry("estimator", *_UNSCALED, *map(scaled, _UNSCALED))


# ------------------------------------------------------------------------------------ updates


def apply_update(network: nn.Module, delta: Tensor, scale: float = 1.0) -> nn.Module:
    """Return a copy of a network at ``θ + scale δ``; the original stays as it is.

    Args:
        network: the model to unlearn from; buffers and training mode are copied too.
        delta: ``[P]``, of an estimator.
        scale: factor on the update; 1 is the estimate itself, a divisor k is ``1/k``.

    Raises:
        ValueError: a delta of another length, or a delta or scale that is not finite.
    """
    if not torch.isfinite(delta * scale).all():
        raise ValueError(
            f"scale {scale} times the update is not finite; give a finite scale, and raise the "
            "damping if the update itself is not finite"
        )
    moved = copy.deepcopy(network)
    theta = curvature.flatten(network)
    if delta.shape != theta.shape:
        raise ValueError(f"an update of shape {tuple(delta.shape)} for {len(theta)} parameters")
    curvature.assign(moved, theta.double() + scale * delta.double())
    return moved


def without(objective: Objective, group: Tensor) -> Objective:
    """Return the objective over S∖U, at the same parameters.

    Raises:
        ValueError: see `check_group`.
    """
    keep = torch.ones(objective.items, dtype=torch.bool)
    keep[check_group(group, objective.items)] = False
    return replace(objective, inputs=objective.inputs[keep], targets=objective.targets[keep])
