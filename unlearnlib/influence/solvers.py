"""Solve linear systems with a curvature matrix, and refuse every answer that is not one.

Two kinds of system share one interface: `Dense` holds the matrix and its Cholesky factor, which
every group shares; `MatrixFree` holds a product ``v -> A v`` and solves by preconditioned conjugate
gradients. Both add ``damping`` times the identity to what they are given, and take one right-hand
side ``[P]`` or several as columns ``[P, M]``, which are then solved together.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NoReturn, Protocol

import torch
from torch import Tensor

Operator = Callable[[Tensor], Tensor]
BLOCK = 64  # right-hand sides that search together


class SolveError(ArithmeticError):
    """A linear system without a trustworthy solution."""


@dataclass(frozen=True, eq=False)
class Solution:
    """Hold a solution and how good it is.

    Attributes:
        x: the solution, the shape of the right-hand side.
        residual: ``‖b - A x‖ / ‖b‖``, computed from x itself; of several columns the largest.
        iterations: of conjugate gradients; of several columns the most. 0 for a direct solve.
        converged: whether the residual is within the tolerance. Always true for what this module
            returns, since the rest raises; kept for tables.
        residuals: that of each column, where the right-hand side had columns.
    """

    x: Tensor
    residual: float
    iterations: int
    converged: bool
    residuals: tuple[float, ...] = ()


class System(Protocol):
    """A symmetric positive definite system A, given as one matrix or as one product."""

    damping: float

    def apply(self, v: Tensor) -> Tensor:
        """Compute ``A v`` for one vector ``[P]`` or columns ``[P, M]``."""

    def solve(self, b: Tensor) -> Solution:
        """Solve ``A x = b`` for one vector ``[P]`` or columns ``[P, M]``."""

    def at(self, damping: float) -> "System":
        """Return the system at another damping."""

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

    def whiten(self, rows: Tensor) -> Tensor:
        """Compute ``C^-1 v`` for rows ``v`` ``[..., P]``, with ``A = C C^T``, by one triangular solve.

        Products of whitened rows are those with the inverse, ``(C^-1 a)·(C^-1 b) = a·A^-1 b``, for
        a quarter of what `solve` takes. No residual is looked at.
        """
        flat = rows.to(self.lower).reshape(-1, rows.shape[-1])
        whitened = torch.linalg.solve_triangular(self.lower.mT, flat, upper=True, left=False)
        return whitened.view_as(rows)

    def solve(self, b: Tensor) -> Solution:
        """Solve ``A x = b`` for one vector ``[P]`` or columns ``[P, M]``.

        Raises:
            SolveError: not positive definite, singular, not finite, or a residual above tolerance.
        """
        b = b.to(self.matrix)
        _check_finite(b, "the right-hand side")
        x = self.inverse(b)
        relative = _relative(b - self.apply(x), b)
        if not (relative <= self.tolerance).all():
            raise SolveError(
                f"the direct solve left a relative residual of {relative.max():.1e}, above "
                f"{self.tolerance:.1e}; raise the damping above {self.damping:g}"
            )
        return _solution(x, relative, 0)

    def at(self, damping: float) -> "Dense":
        """Return the system at another damping, to be factored anew."""
        return replace(self, damping=damping)

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
        operator: ``v -> A v``, symmetric, without damping; for ``[P]``, and for columns ``[P, M]``
            where several right-hand sides are to be solved together.
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
        """Solve ``A x = b`` for one vector ``[P]`` or columns, see `conjugate_gradient`."""
        return conjugate_gradient(
            self.apply,
            b,
            preconditioner=self.preconditioner,
            tolerance=self.tolerance,
            max_iterations=self.max_iterations,
        )

    def at(self, damping: float) -> "MatrixFree":
        """Return the system at another damping, with the same preconditioner."""
        return replace(self, damping=damping)

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
    """Put values ``[|φ|]`` at the true entries of a bool mask ``[P]``, and zeros elsewhere.

    Columns ``[|φ|, M]`` become columns ``[P, M]``.
    """
    full = values.new_zeros(len(mask), *values.shape[1:])
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
    """Solve ``A x = b`` by preconditioned conjugate gradients (Hestenes & Stiefel 1952), in blocks.

    Columns search together (O'Leary 1980): each gains from the directions of all, so that sixteen
    take fewer iterations than one, and an iteration takes one product with one direction for each
    column that has not converged. Directions are kept orthonormal (Dubrulle 2001), and those that
    others contain are dropped, which is what makes blocks of dependent columns safe. At most
    `BLOCK` columns search together; one column is solved as ever.

    The residual that ends the iteration is computed afresh from x, since the recurrence drifts away
    from it in single precision; where they disagree the iteration starts again from x.

    Args:
        operator: ``v -> A v``, symmetric positive definite, for what has the shape of b, of columns
            also fewer than b has.
        b: ``[P]`` or columns ``[P, M]``; its dtype is that of the recurrence, so give float64.
        preconditioner: ``r -> M^-1 r``, symmetric positive definite, likewise.
        tolerance: relative residual to reach, in every column.
        max_iterations: products in the recurrence after which to give up.

    Raises:
        SolveError: A or M is not positive definite, a value is not finite, or no convergence, in
            any column, which the message names.
    """
    _check_finite(b, "the right-hand side")
    precondition = preconditioner or (lambda r: r)
    if b.ndim == 1:
        operator, precondition = _one_column(operator), _one_column(precondition)
    columns = b.reshape(len(b), -1)
    x, residual = torch.zeros_like(columns), columns.clone()
    iterations = torch.zeros(columns.shape[1], dtype=torch.long)
    target = tolerance * columns.norm(dim=0)
    while len(active := _above(relative := _relative(residual, columns), tolerance)):
        if (left := max_iterations - int(iterations[active].max())) <= 0:
            _refuse(relative, iterations, tolerance)
        for block in active.split(BLOCK):
            iterations += _run(operator, precondition, x, residual, target, block, limit=left)
            residual[:, block] = columns[:, block] - operator(x[:, block])
        _check_finite(residual, "the product with the curvature")
    relative = relative if b.ndim == 2 else relative[0]
    return _solution(x.view_as(b), relative, int(iterations.max()))


def _one_column(operator: Operator) -> Operator:
    """Turn a product for ``[P]`` into one for ``[P, 1]``."""
    return lambda v: operator(v[:, 0])[:, None]


def _above(relative: Tensor, tolerance: float) -> Tensor:
    """Return the numbers of the columns whose residual is above the tolerance."""
    return (relative > tolerance).nonzero().squeeze(1)


def _run(
    operator: Operator,
    precondition: Operator,
    x: Tensor,
    residual: Tensor,
    target: Tensor,
    active: Tensor,
    *,
    limit: int,
) -> Tensor:
    """Run the recurrence from x until its own residuals are within target; x moves in place.

    Args:
        operator, precondition: see `conjugate_gradient`.
        x: ``[P, M]``.
        residual: ``[P, M]``, at x.
        target: ``[M]``, norm to reach.
        active: numbers of the columns to run, together.
        limit: iterations at most.

    Returns:
        the iterations that each column took ``[M]``.
    """
    count = x.shape[1]
    used, r = torch.zeros(count, dtype=torch.long), residual[:, active]
    z, now = _preconditioned(precondition, r, active, count), active
    p = _directions(z)
    for _ in range(limit):
        product = operator(p)
        factor = _factored(p.T @ product, p.T @ z, now, count)
        alpha = torch.cholesky_solve(p.T @ r, factor)
        x[:, active] += p @ alpha
        r = r - product @ alpha
        used[now] += 1
        going = r.norm(dim=0) > target[active]
        if not going.any():
            break
        now = active[going]
        z = _preconditioned(precondition, r[:, going], now, count)
        p = _directions(z - p @ torch.cholesky_solve(product.T @ z, factor))
    return used


def _directions(z: Tensor) -> Tensor:
    """Span columns ``[P, M]`` by orthonormal ones, fewer where they depend on each other."""
    lengths = z.norm(dim=0)
    unit = z[:, lengths > 0] / lengths[lengths > 0]
    basis, sizes, _ = torch.linalg.svd(unit, full_matrices=False)
    return basis[:, sizes > sizes[0] * torch.finfo(z.dtype).eps ** 0.5]


def _factored(projected: Tensor, seen: Tensor, active: Tensor, columns: int) -> Tensor:
    """Factor ``P^T A P`` of orthonormal directions P, and refuse one that is not above zero.

    Args:
        projected: ``P^T A P``.
        seen: the directions of the active columns in terms of P.
        active: numbers of these.
        columns: how many right-hand sides there are.
    """
    _check_finite(projected, "the product with the curvature")
    symmetric = (projected + projected.T) / 2
    lower, failed = torch.linalg.cholesky_ex(symmetric)
    if failed:
        values, vectors = torch.linalg.eigh(symmetric)
        nearest = (vectors[:, 0] @ seen).abs() / seen.norm(dim=0)
        _refuse_direction("the curvature", values[0], active[nearest.argmax()], columns)
    return lower


def _preconditioned(operator: Operator, r: Tensor, active: Tensor, columns: int) -> Tensor:
    """Precondition residuals, and refuse a preconditioner that is not above zero along one."""
    z = operator(r)
    quadratics = (r * z).sum(0)
    _check_finite(quadratics, "the product with the preconditioner")
    lowest, where = quadratics.min(0)
    if lowest <= 0:
        _refuse_direction("the preconditioner", lowest, active[where], columns)
    return z


def _refuse_direction(name: str, form: Tensor, column: Tensor, columns: int) -> NoReturn:
    """Raise for a direction in which something is not positive definite."""
    raise SolveError(
        f"{name} is not positive definite: a direction has the quadratic form "
        f"{form.item():.1e}{_place(column, columns)}; raise the damping, or take the "
        "Gauss-Newton matrix, which has no negative eigenvalue"
    )


def _refuse(relative: Tensor, iterations: Tensor, tolerance: float) -> NoReturn:
    """Raise for the column with the largest residual."""
    largest, where = relative.max(0)
    raise SolveError(
        f"conjugate gradients left a relative residual of {largest:.1e} after "
        f"{int(iterations[where])} iterations{_place(where, len(relative))}, above {tolerance:.1e}; "
        "raise the damping, the tolerance or max_iterations, or give a preconditioner"
    )


def _place(column: Tensor, columns: int) -> str:
    """Say which of several right-hand sides a message is about, counted from 0."""
    return f" for column {int(column)} of {columns}" if columns > 1 else ""


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


def _relative(residual: Tensor, b: Tensor) -> Tensor:
    """Return ``‖residual‖ / ‖b‖`` of each column, a scalar of one vector; 0 where b is 0."""
    norms, scales = residual.norm(dim=0), b.norm(dim=0)
    # a column of zeros has the solution zero, whose residual is zero as well
    return torch.where(scales > 0, norms / scales, norms)


def _solution(x: Tensor, relative: Tensor, iterations: int) -> Solution:
    """Record a solution and its residuals, those of columns or a scalar."""
    residuals = tuple(relative.tolist()) if relative.ndim else ()
    return Solution(x, relative.max().item(), iterations, True, residuals)


def _check_finite(values: Tensor, name: str) -> None:
    if not torch.isfinite(values).all():
        raise SolveError(
            f"{name} holds values that are not finite; raise the damping, and look at the loss "
            "and the weights of the network"
        )
