"""Systems of many parameters and few rows, solved exactly in the space of the rows.

On a network of tens of thousands of parameters and a few hundred curvature images the Gauss-Newton
matrix has far more columns than rank, so that

    A = X^T X + d I,    X = (R_i^T J_i)_i / sqrt(N)  [N (K-1), P],

where d holds the penalty λ and the damping together. X, of `curvature.rooted_jacobian`, is formed
once for a network; the block of any subset of the parameters and its normal matrix are solved in the
space of X's rows (Woodbury), as many unknowns as N (K-1).
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from unlearnlib.influence.solvers import Solution, SolveError, cholesky, conjugate_gradient


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
        """Compute ``A v`` for ``[P]`` or columns ``[P, M]``, in float64."""
        inner = self._forward(v.double())
        if self.core is not None:
            inner = self.core.matrix @ inner
        return self._backward(inner) + self.damping * v

    def inverse(self, b: Tensor) -> Tensor:
        """Compute ``A^-1 b`` for ``[P]`` or columns, without looking at the residual."""
        inner = self._forward(b)
        solved = torch.cholesky_solve(inner.reshape(len(inner), -1), self.lower)
        return (b - self._backward(solved.view_as(inner))) / self.damping

    def solve(self, b: Tensor) -> Solution:
        """Solve ``A x = b`` for ``[P]`` or columns ``[P, M]``.

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
        total = w.new_zeros(self.rows.shape[1], *w.shape[1:])
        for part, weights in zip(self.rows.split(256), w.split(256), strict=True):
            total += part.double().T @ weights
        return total
