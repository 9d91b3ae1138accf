"""Solvers: answers agree with dense algebra, and what is no answer is refused."""

import numpy as np
import pytest
import scipy.linalg
import torch
from influence_tasks import dense_hessian, small_net
from tolerances import RTOL
from torch import Tensor

from unlearnlib.influence import curvature, solvers
from unlearnlib.influence.solvers import (
    Dense,
    MatrixFree,
    Operator,
    SolveError,
    conjugate_gradient,
)
from unlearnlib.influence.thin import Thin


def positive(size: int = 30, *, condition: float = 1e3, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(size, size, generator=generator).double()).Q
    return basis * torch.logspace(0, -np.log10(condition), size).double() @ basis.T


def right(size: int = 30, *, seed: int = 1) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)).double()


def test_a_dense_solve_is_scipys():
    matrix, b = positive(), right()
    solution = Dense(matrix, damping=0.01).solve(b)
    expected = scipy.linalg.solve(matrix.numpy() + 0.01 * np.eye(30), b.numpy(), assume_a="pos")
    torch.testing.assert_close(solution.x, torch.from_numpy(expected), rtol=1e-9, atol=0)
    assert solution.residual < 1e-12
    assert solution.converged
    assert solution.iterations == 0


def test_columns_are_solved_together():
    matrix = positive()
    columns = torch.stack([right(seed=1), right(seed=2), torch.zeros(30).double()], 1)
    solution = Dense(matrix).solve(columns)
    torch.testing.assert_close(matrix @ solution.x, columns, rtol=1e-9, atol=1e-12)
    assert solution.x[:, 2].abs().max() == 0


def test_the_matrix_is_factored_once_for_all_groups(monkeypatch: pytest.MonkeyPatch):
    calls, factor = [], solvers.cholesky
    monkeypatch.setattr(solvers, "cholesky", lambda *a, **k: calls.append(1) or factor(*a, **k))
    system = Dense(positive(), damping=0.01)
    for seed in range(3):
        system.solve(right(seed=seed))
    assert len(calls) == 1


def test_products_of_whitened_rows_are_those_with_the_inverse():
    system = Dense(positive(), damping=0.01)
    rows = torch.randn(2, 3, 30, generator=torch.Generator().manual_seed(2)).double()
    whitened = system.whiten(rows)
    expected = rows[0] @ system.solve(rows[1].T).x
    torch.testing.assert_close(whitened[0] @ whitened[1].T, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("preconditioned", [False, True])
def test_conjugate_gradients_agree_with_the_dense_solve(preconditioned: bool):
    matrix, b = positive(), right()
    near = Dense(matrix + 0.02 * positive(seed=5), damping=0.01)
    system = MatrixFree(
        lambda v: matrix @ v, 0.01, near.inverse if preconditioned else None, tolerance=1e-8
    )
    solution = system.solve(b)
    expected = Dense(matrix, damping=0.01).solve(b).x
    assert (solution.x - expected).norm() <= 1e-4 * expected.norm()
    assert solution.residual <= 1e-8
    actual = (b - system.apply(solution.x)).norm() / b.norm()
    assert solution.residual == pytest.approx(actual.item(), rel=1e-6)


def test_a_preconditioner_saves_iterations():
    matrix, b = positive(condition=1e5), right()
    near = Dense(matrix + 1e-6 * torch.eye(30).double())
    plain = conjugate_gradient(lambda v: matrix @ v, b)
    helped = conjugate_gradient(lambda v: matrix @ v, b, preconditioner=near.inverse)
    assert helped.iterations < plain.iterations / 4


def test_a_perfect_preconditioner_needs_one_iteration():
    matrix = positive()
    inverse = Dense(matrix).inverse
    assert conjugate_gradient(lambda v: matrix @ v, right(), preconditioner=inverse).iterations == 1


def test_the_residual_reported_is_the_true_one_in_single_precision():
    matrix, b = positive(condition=1e4), right()
    single = matrix.float()
    solution = conjugate_gradient(lambda v: (single @ v.float()).double(), b, tolerance=1e-4)
    assert (b - matrix @ solution.x).norm() / b.norm() <= 2e-4


def test_no_right_hand_side_needs_no_iteration():
    solution = conjugate_gradient(lambda v: v, torch.zeros(4))
    assert (solution.iterations, solution.residual) == (0, 0.0)
    assert not solution.x.any()


def test_blocks_and_normal_matrices_are_those_of_the_damped_matrix():
    matrix, mask = positive(), torch.arange(30) % 3 == 0
    damped = matrix + 0.1 * torch.eye(30).double()
    block, normal = damped[mask][:, mask], damped[:, mask].T @ damped[:, mask]
    near = Dense(matrix, damping=0.2)
    for system in (Dense(matrix, 0.1), MatrixFree(lambda v: matrix @ v, 0.1, near.inverse)):
        for part, expected in ((system.block(mask), block), (system.normal(mask), normal)):
            v = right(10)
            torch.testing.assert_close(part.apply(v), expected @ v, rtol=1e-9, atol=1e-12)
            x = torch.linalg.solve(expected, v)
            torch.testing.assert_close(part.solve(v).x, x, rtol=RTOL, atol=1e-4)


# ------------------------------------------------------------- several right-hand sides


def counted(operator: Operator) -> tuple[Operator, list[int]]:
    """Note how many columns each product has."""
    widths: list[int] = []

    def product(v: Tensor) -> Tensor:
        widths.append(v.shape[1] if v.ndim == 2 else 1)
        return operator(v)

    return product, widths


def curved(count: int) -> tuple[Operator, Operator, Tensor, Tensor]:
    """Give H of a small net by product, its preconditioner, item gradients, and H as a matrix."""
    objective, damping = small_net(), 1.0
    dense = Dense(curvature.gauss_newton(objective), damping)
    hessian = curvature.hessian_operator(objective)
    gradients = curvature.item_gradients(objective, index=torch.arange(count)).T
    matrix = dense_hessian(objective) + damping * torch.eye(88).double()
    return lambda v: hessian(v) + damping * v, dense.inverse, gradients, matrix


def test_columns_of_the_hessian_are_solved_as_by_the_dense_matrix():
    operator, inverse, gradients, matrix = curved(16)
    found = conjugate_gradient(operator, gradients, preconditioner=inverse, tolerance=1e-11)
    expected = torch.linalg.solve(matrix, gradients)
    torch.testing.assert_close(found.x, expected, rtol=1e-8, atol=1e-10)
    actual = (gradients - matrix @ found.x).norm(dim=0) / gradients.norm(dim=0)
    np.testing.assert_allclose(found.residuals, actual, atol=1e-13)
    assert found.residual == max(found.residuals) <= 1e-11
    assert len(found.residuals) == 16


def test_the_number_of_products_does_not_grow_with_the_right_hand_sides():
    taken = {}
    for count in (1, 4, 16):
        operator, inverse, gradients, _ = curved(count)
        product, widths = counted(operator)
        found = conjugate_gradient(product, gradients, preconditioner=inverse)
        taken[count] = len(widths)
        assert widths[0] == count
        # those of the recurrence, and one for the residuals
        assert len(widths) == found.iterations + 1
    assert taken[16] <= taken[1] + 2
    one_by_one, widths = counted(operator)
    for b in gradients.T:
        conjugate_gradient(one_by_one, b, preconditioner=inverse)
    assert len(widths) > 10 * taken[16]


def test_columns_that_have_converged_are_left_out_of_later_products():
    matrix = positive(condition=10)
    easy = torch.linalg.eigh(matrix)[1][:, 7]
    columns = torch.stack([right(seed=1), easy, torch.zeros(30).double(), right(seed=2)], 1)
    product, widths = counted(lambda v: matrix @ v)
    found = conjugate_gradient(product, columns)
    torch.testing.assert_close(matrix @ found.x, columns, rtol=0, atol=1e-5)
    # an eigenvector is solved by one product and zeros by none
    assert (widths[0], widths[1]) == (3, 2)
    assert found.residuals[2] == 0


def test_columns_that_search_together_need_fewer_iterations_than_the_hardest_alone():
    matrix = positive(60, condition=1e4)
    columns = torch.stack([right(60, seed=seed) for seed in range(12)], 1)
    alone = [conjugate_gradient(lambda v: matrix @ v, b).iterations for b in columns.T]
    together = conjugate_gradient(lambda v: matrix @ v, columns)
    # twelve directions span the sixty dimensions in five products
    assert together.iterations <= 6 < min(alone) / 4
    torch.testing.assert_close(matrix @ together.x, columns, rtol=0, atol=2e-5)


def test_columns_that_depend_on_each_other_are_solved():
    matrix, one, two = positive(), right(seed=1), right(seed=2)
    columns = torch.stack([one, two, one + two, one - 2 * two, 1e-9 * one], 1)
    product, widths = counted(lambda v: matrix @ v)
    found = conjugate_gradient(product, columns, tolerance=1e-10)
    expected = Dense(matrix).solve(columns).x
    torch.testing.assert_close(found.x / columns.norm(dim=0), expected / columns.norm(dim=0))
    assert widths[0] == 2


def test_many_columns_are_solved_in_blocks(monkeypatch: pytest.MonkeyPatch):
    matrix = positive()
    columns = torch.stack([right(seed=seed) for seed in range(7)], 1)
    whole = conjugate_gradient(lambda v: matrix @ v, columns, tolerance=1e-10).x
    monkeypatch.setattr(solvers, "BLOCK", 3)
    product, widths = counted(lambda v: matrix @ v)
    found = conjugate_gradient(product, columns, tolerance=1e-10)
    torch.testing.assert_close(found.x, whole)
    assert max(widths) == 3
    assert len(found.residuals) == 7


@pytest.mark.parametrize("columns", [1, 8, 11])
def test_every_system_solves_columns_as_it_solves_vectors(columns: int):
    matrix, mask = positive(), torch.arange(30) % 3 == 0
    b = torch.stack([right(seed=seed) for seed in range(columns)], 1)
    near = Dense(matrix, damping=0.2)
    free = MatrixFree(lambda v: matrix @ v, 0.1, near.inverse, tolerance=1e-10)
    thin = Thin(torch.linalg.cholesky(matrix).T, 0.1, tolerance=1e-10)
    for system in (Dense(matrix, 0.1), free, thin):
        parts = (system, b), (system.block(mask), b[mask]), (system.normal(mask), b[mask])
        for part, right_sides in parts:
            found = part.solve(right_sides)
            one_by_one = torch.stack([part.solve(v).x for v in right_sides.T], 1)
            torch.testing.assert_close(found.x, one_by_one, rtol=1e-6, atol=1e-8)
            assert len(found.residuals) == columns


def test_a_column_that_does_not_converge_is_refused_by_its_number():
    matrix = positive(condition=1e6)
    easy = torch.linalg.eigh(matrix)[1][:, 3]
    system = MatrixFree(lambda v: matrix @ v, max_iterations=5)
    system.solve(torch.stack([easy, 2 * easy], 1))
    remedy = (
        r"residual of \S+ after 5 iterations for column 1 of 3, above 1.0e-06; raise the damping"
    )
    with pytest.raises(SolveError, match=remedy):
        system.solve(torch.stack([easy, right(), 2 * easy], 1))


def test_a_column_along_negative_curvature_is_refused_by_its_number():
    values, vectors = torch.linalg.eigh(positive())
    values[0] = -0.25
    matrix = vectors * values @ vectors.T
    message = r"form -2.5e-01 for column 1 of 2; raise the damping, or take the Gauss-Newton"
    with pytest.raises(SolveError, match=message):
        MatrixFree(lambda v: matrix @ v).solve(vectors[:, [5, 0]])


# ------------------------------------------------------------------------------ refusals


def test_a_singular_matrix_needs_damping():
    thin = torch.randn(30, 20, generator=torch.Generator().manual_seed(0)).double()
    matrix = thin @ thin.T
    with pytest.raises(SolveError, match=r"singular.*damping 0;.*raise the damping"):
        Dense(matrix).solve(right())
    assert Dense(matrix, damping=1e-3).solve(right()).residual < 1e-6


@pytest.mark.parametrize("rank", range(1, 30, 4))
def test_rounding_does_not_hide_a_singular_matrix(rank: int):
    thin = torch.randn(30, rank, generator=torch.Generator().manual_seed(rank)).double()
    with pytest.raises(SolveError, match="singular"):
        Dense(thin @ thin.T).solve(right())


def test_indefinite_curvature_is_refused():
    matrix = positive() - 0.2 * torch.eye(30).double()
    with pytest.raises(SolveError, match=r"singular or indefinite.*raise the damping"):
        Dense(matrix).solve(right())
    with pytest.raises(SolveError, match=r"curvature is not positive definite.*raise the damping"):
        MatrixFree(lambda v: matrix @ v).solve(right())
    with pytest.raises(SolveError, match="the preconditioner is not positive definite"):
        conjugate_gradient(lambda v: v, right(), preconditioner=lambda r: -r)


def test_an_unconverged_solve_is_refused_with_its_residual():
    matrix = positive(condition=1e6)
    with pytest.raises(SolveError, match=r"residual of \S+ after 5 iterations.*damping"):
        MatrixFree(lambda v: matrix @ v, max_iterations=5).solve(right())


def test_a_tolerance_beyond_the_precision_ends():
    single = positive(condition=1e6).float()
    with pytest.raises(SolveError, match="after 100 iterations"):
        conjugate_gradient(
            lambda v: (single @ v.float()).double(), right(), tolerance=1e-13, max_iterations=100
        )


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(bad: float):
    b = right()
    b[3] = bad
    with pytest.raises(SolveError, match=r"right-hand side .*not finite"):
        conjugate_gradient(lambda v: v, b)
    with pytest.raises(SolveError, match=r"right-hand side .*not finite"):
        Dense(positive()).solve(b)
    with pytest.raises(SolveError, match=r"matrix .*not finite"):
        Dense(positive() * bad).solve(right())
    with pytest.raises(SolveError, match=r"curvature .*not finite.*raise the damping"):
        MatrixFree(lambda v: v * bad).solve(right())


def test_embed_and_restrict_are_each_others_inverse():
    mask = torch.tensor([True, False, True])
    values = torch.tensor([2.0, 5.0])
    assert solvers.embed(values, mask).tolist() == [2, 0, 5]
    assert solvers.restrict(lambda v: 3 * v, mask)(values).tolist() == [6, 15]
