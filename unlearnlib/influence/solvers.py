"""Solve linear systems with a curvature matrix, and refuse every answer that is not one.

Two kinds of system share one interface: `Dense` holds the matrix and its Cholesky factor, which
every group shares; `MatrixFree` holds a product ``v -> A v`` and solves by preconditioned conjugate
gradients. Both add ``damping`` times the identity to what they are given.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

Operator = Callable[[Tensor], Tensor]


class SolveError(ArithmeticError):
    """A linear system without a trustworthy solution."""


@dataclass(frozen=True, eq=False)
class Solution:
    """Hold a solution and how good it is.

    Attributes:
        x: the solution, the shape of the right-hand side.
        residual: ``‖b - A x‖ / ‖b‖``, computed from x itself; of several columns the largest.
        iterations: of conjugate gradients; 0 for a direct solve.
        converged: whether the residual is within the tolerance. Always true for what this module
            returns, since the rest raises; kept for tables.
    """

    x: Tensor
    residual: float
    iterations: int
    converged: bool


class System(Protocol):
    """A symmetric positive definite system A, given as one matrix or as one product."""

    damping: float

    def apply(self, v: Tensor) -> Tensor:
        """Compute ``A v``."""

    def solve(self, b: Tensor) -> Solution:
        """Solve ``A x = b``."""

    def block(self, mask: Tensor) -> "System":
        """Return the block ``A_φφ`` of the parameters in a mask."""

    def normal(self, mask: Tensor) -> "System":
        """Return the normal matrix ``A_φ: A_:φ`` of least squares over the parameters in a mask."""


@dataclass(frozen=True, eq=False)
class Dense:
    """A system whose matrix is in memory; factored at the first solve, once for all groups.

    Attributes:
        matrix: symmetric ``[P, P]``, without damping.
        damping: added to the diagonal.
        tolerance: largest relative residual that a solution may have.
    """

    matrix: Tensor
    damping: float = 0.0
    tolerance: float = 1e-6

    @cached_property
    def lower(self) -> Tensor:
        """The Cholesky factor of the damped matrix."""
        return cholesky(self.matrix, damping=self.damping)

    def apply(self, v: Tensor) -> Tensor:
        """Compute ``A v`` for one vector ``[P]`` or columns ``[P, M]``."""
        return self.matrix @ v + self.damping * v

    def inverse(self, b: Tensor) -> Tensor:
        """Compute ``A^-1 b`` without looking at the residual: a preconditioner."""
        columns = b.to(self.lower).reshape(len(b), -1)
        return torch.cholesky_solve(columns, self.lower).view_as(b).to(b.dtype)

    def solve(self, b: Tensor) -> Solution:
        """Solve ``A x = b`` for one vector ``[P]`` or columns ``[P, M]``.

        Raises:
            SolveError: not positive definite, singular, not finite, or a residual above tolerance.
        """
        b = b.to(self.matrix)
        _check_finite(b, "the right-hand side")
        x = self.inverse(b)
        residual = _relative(b - self.apply(x), b)
        if not residual <= self.tolerance:
            raise SolveError(
                f"the direct solve left a relative residual of {residual:.1e}, above "
                f"{self.tolerance:.1e}; raise the damping above {self.damping:g}"
            )
        return Solution(x, residual, 0, True)

    def block(self, mask: Tensor) -> "Dense":
        """Return the block ``A_φφ`` of the parameters in a bool mask ``[P]``."""
        return Dense(self.matrix[mask][:, mask], self.damping, self.tolerance)

    def normal(self, mask: Tensor) -> "Dense":
        """Return the normal matrix ``A_φ: A_:φ`` of a bool mask ``[P]``, without further damping."""
        columns = self.matrix[:, mask]
        rows = mask.nonzero().squeeze(1)
        columns[rows, torch.arange(len(rows))] += self.damping
        return Dense(columns.T @ columns, 0.0, self.tolerance)


@dataclass(frozen=True, eq=False)
class MatrixFree:
    """A system known by its product alone, solved by `conjugate_gradient`.

    Attributes:
        operator: ``v -> A v`` for ``[P]``, symmetric, without damping.
        damping: added to A.
        preconditioner: ``r -> M^-1 r`` with M near the damped A, such as `Dense.inverse`.
        tolerance: relative residual to reach.
        max_iterations: products after which to give up.
    """

    operator: Operator
    damping: float = 0.0
    preconditioner: Operator | None = None
    tolerance: float = 1e-6
    max_iterations: int = 500

    def apply(self, v: Tensor) -> Tensor:
        """Compute ``A v``, damped."""
        return self.operator(v) + self.damping * v

    def solve(self, b: Tensor) -> Solution:
        """Solve ``A x = b`` for one vector ``[P]``, see `conjugate_gradient`."""
        return conjugate_gradient(
            self.apply,
            b,
            preconditioner=self.preconditioner,
            tolerance=self.tolerance,
            max_iterations=self.max_iterations,
        )

    def block(self, mask: Tensor) -> "MatrixFree":
        """Return the block ``A_φφ`` of the parameters in a bool mask ``[P]``."""
        return self._restricted(restrict(self.operator, mask), self.damping, mask, times=1)

    def normal(self, mask: Tensor) -> "MatrixFree":
        """Return the normal matrix ``A_φ: A_:φ`` of a bool mask ``[P]``, without further damping."""
        square = restrict(lambda v: self.apply(self.apply(v)), mask)
        return self._restricted(square, 0.0, mask, times=2)

    def _restricted(
        self, operator: Operator, damping: float, mask: Tensor, *, times: int
    ) -> "MatrixFree":
        """Return a system on the mask, preconditioned by so many powers of the restricted inverse."""
        inverse = self.preconditioner and restrict(self.preconditioner, mask)
        power = (lambda r: inverse(inverse(r))) if inverse and times == 2 else inverse
        return MatrixFree(operator, damping, power, self.tolerance, self.max_iterations)


def restrict(operator: Operator, mask: Tensor) -> Operator:
    """Turn a product on ``[P]`` into the one of its block on the true entries of a bool mask."""
    return lambda v: operator(embed(v, mask))[mask]


def embed(values: Tensor, mask: Tensor) -> Tensor:
    """Put values ``[|φ|]`` at the true entries of a bool mask ``[P]``, and zeros elsewhere."""
    full = values.new_zeros(len(mask))
    full[mask] = values
    return full


def conjugate_gradient(
    operator: Operator,
    b: Tensor,
    *,
    preconditioner: Operator | None = None,
    tolerance: float = 1e-6,
    max_iterations: int = 500,
) -> Solution:
    """Solve ``A x = b`` by preconditioned conjugate gradients (Hestenes & Stiefel 1952).

    The residual that ends the iteration is computed afresh from x, since the recurrence drifts away
    from it in single precision; where they disagree the iteration starts again from x.

    Args:
        operator: ``v -> A v``, symmetric positive definite.
        b: ``[P]``; its dtype is that of the recurrence, so give float64.
        preconditioner: ``r -> M^-1 r``, symmetric positive definite.
        tolerance: relative residual to reach.
        max_iterations: products in the recurrence after which to give up.

    Raises:
        SolveError: A or M is not positive definite, a value is not finite, or no convergence.
    """
    _check_finite(b, "the right-hand side")
    precondition = preconditioner or (lambda r: r)
    x, iterations = torch.zeros_like(b), 0
    residual = b.clone()
    while (relative := _relative(residual, b)) > tolerance:
        if iterations >= max_iterations:
            raise SolveError(
                f"conjugate gradients left a relative residual of {relative:.1e} after {iterations} "
                f"iterations, above {tolerance:.1e}; raise the damping, the tolerance or "
                "max_iterations, or give a preconditioner"
            )
        step, used = _run(
            operator, residual, precondition, tolerance * b.norm(), max_iterations - iterations
        )
        x, iterations = x + step, iterations + used
        residual = b - operator(x)
        _check_finite(residual, "the product with the curvature")
    return Solution(x, relative, iterations, True)


def _run(
    operator: Operator, b: Tensor, precondition: Operator, target: Tensor, limit: int
) -> tuple[Tensor, int]:
    """Run the recurrence until its own residual is within target; return x and the iterations."""
    x, r = torch.zeros_like(b), b.clone()
    z = precondition(r)
    p, rz = z, _positive(r @ z, "the preconditioner")
    for iteration in range(1, limit + 1):
        product = operator(p)
        alpha = rz / _positive(p @ product, "the curvature")
        x, r = x + alpha * p, r - alpha * product
        if r.norm() <= target:
            return x, iteration
        z = precondition(r)
        rz, before = _positive(r @ z, "the preconditioner"), rz
        p = z + rz / before * p
    return x, limit


def _positive(quadratic: Tensor, name: str) -> Tensor:
    """Return a quadratic form, and refuse one that is not above zero."""
    _check_finite(quadratic, f"the product with {name}")
    if quadratic <= 0:
        raise SolveError(
            f"{name} is not positive definite: a direction has the quadratic form "
            f"{quadratic.item():.1e}; raise the damping, or take the Gauss-Newton matrix, which "
            "has no negative eigenvalue"
        )
    return quadratic


def cholesky(matrix: Tensor, *, damping: float = 0.0) -> Tensor:
    """Factor ``matrix + damping I`` as ``L L^T``.

    Args:
        matrix: symmetric ``[P, P]``.
        damping: added to the diagonal.

    Raises:
        SolveError: not finite, or not positive definite to working precision.
    """
    _check_finite(matrix, "the matrix")
    damped = matrix.clone()
    damped.diagonal().add_(damping)
    lower, failed = torch.linalg.cholesky_ex(damped)
    pivots = lower.diagonal() ** 2
    # rounding turns the zero pivots of a singular matrix into tiny ones, positive half of the time
    floor = len(matrix) * torch.finfo(matrix.dtype).eps * damped.diagonal().abs().max()
    if failed or pivots.min() <= floor:
        raise SolveError(
            f"the matrix is singular or indefinite at damping {damping:g}; raise the damping, "
            "for example to 1e-3"
        )
    return lower


def _relative(residual: Tensor, b: Tensor) -> float:
    """Return ``‖residual‖ / ‖b‖``, of several columns the largest; 0 where b is 0."""
    norms, scales = residual.norm(dim=0), b.norm(dim=0)
    # a column of zeros has the solution zero, whose residual is zero as well
    return torch.where(scales > 0, norms / scales, norms).max().item()


def _check_finite(values: Tensor, name: str) -> None:
    if not torch.isfinite(values).all():
        raise SolveError(
            f"{name} holds values that are not finite; raise the damping, and look at the loss "
            "and the weights of the network"
        )
