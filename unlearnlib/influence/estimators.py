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
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from unlearnlib.groups.geometry import check_group
from unlearnlib.influence import curvature
from unlearnlib.influence.curvature import Objective
from unlearnlib.influence.solvers import Dense, MatrixFree, Operator, Solution, System, embed


@dataclass(frozen=True, eq=False)
class Update:
    """Hold a change of parameters and the solves that it took.

    Attributes:
        delta: ``[P]``, float64, to be added to the parameters.
        solutions: one or two records.
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


# ------------------------------------------------------------------------------------ by name


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


WHOLE = ("first_order", "newton", "second_order")
PARTIAL: dict[str, Callable[..., Update]] = {"pif": pif, "fif": fif, "gif": gif}
ESTIMATORS = (*WHOLE, *PARTIAL)


def estimate(
    estimator: str,
    objective: Objective,
    group: Tensor,
    system: System,
    *,
    kind: str = "gauss_newton",
    mask: Tensor | None = None,
    third: bool = False,
) -> Update:
    """Estimate by name what the removal of a group does to the parameters.

    Args:
        estimator: a name in `ESTIMATORS`.
        objective: over all of S, at θ̂.
        group: positions of U ``[M]``, or a bool mask ``[n]``.
        system: H over S, with damping; `Dense` or `MatrixFree`.
        kind: curvature of the group, ``gauss_newton`` or ``hessian``; as in `system`.
        mask: bool ``[P]``, the subset φ; needed by ``pif``, ``fif`` and ``gif``, and only by them.
        third: give ``second_order`` its third-derivative term.

    Raises:
        ValueError: unknown estimator, empty group or one not smaller than S, mask where none
            belongs or none where one does.
        SolveError: no trustworthy solution.
    """
    if estimator not in ESTIMATORS:
        raise ValueError(f"unknown estimator {estimator!r}; choose one of {list(ESTIMATORS)}")
    if (mask is None) == (estimator in PARTIAL):
        raise ValueError(
            f"estimator {estimator!r} with mask={'none' if mask is None else 'given'}: "
            f"{list(PARTIAL)} take a mask of parameters, {list(WHOLE)} do not"
        )
    group = check_group(group, objective.items)
    sizes = {"items": objective.items, "removed": len(group)}
    gradient = curvature.gradient_sum(objective, index=group)
    if estimator in PARTIAL:
        return PARTIAL[estimator](gradient, system, mask, **sizes)
    if estimator == "first_order":
        return first_order(gradient, system, **sizes)
    of_group = damped(curvature.curvature_operator(kind, objective, index=group), system.damping)
    if estimator == "newton":
        return newton(gradient, kept_system(system, of_group, **sizes), **sizes)
    cubic = curvature.third_operator(objective) if third else None
    return second_order(gradient, system, of_group, third=cubic, **sizes)


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
        ValueError: see `geometry.check_group`.
    """
    keep = torch.ones(objective.items, dtype=torch.bool)
    keep[check_group(group, objective.items)] = False
    return replace(objective, inputs=objective.inputs[keep], targets=objective.targets[keep])
