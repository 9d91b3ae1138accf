"""Thin systems against the dense ones."""

from dataclasses import replace

import pytest
import torch
from influence_tasks import EXACT, small_net
from torch import Tensor

from unlearnlib.influence import curvature
from unlearnlib.influence.curvature import Objective
from unlearnlib.influence.estimators import ESTIMATORS, Removal
from unlearnlib.influence.solvers import Dense, SolveError
from unlearnlib.influence.thin import Thin

MASK = torch.arange(88) % 3 == 1
GROUP = torch.tensor([1, 5, 8, 20])
INDEX = torch.arange(0, 30, 2)


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=EXACT, atol=EXACT)


def both(damping: float = 0.01) -> tuple[Objective, Thin, Dense]:
    """Give the system of a small net in thin and in dense form; 45 rows for 88 parameters."""
    objective = small_net()
    thin = Thin(curvature.rooted_jacobian(objective, index=INDEX), objective.l2 + damping)
    return objective, thin, Dense(curvature.gauss_newton(objective, index=INDEX), damping)


def test_a_thin_system_is_the_dense_one():
    objective, thin, dense = both()
    gradient = curvature.gradient_sum(objective, index=GROUP)
    part = gradient[MASK]
    pairs = [(thin, dense, gradient), (thin.at(0.5), Dense(dense.matrix, 0.48), gradient)]
    pairs += [(thin.block(MASK), dense.block(MASK), part)]
    pairs += [(thin.normal(MASK), dense.normal(MASK), part)]
    some = torch.arange(len(part)) % 2 == 0
    pairs += [(thin.normal(MASK).block(some), dense.normal(MASK).block(some), part[some])]
    pairs += [(thin.normal(MASK).normal(some), dense.normal(MASK).normal(some), part[some])]
    for one, other, b in pairs:
        close(one.apply(b), other.apply(b))
        close(one.solve(b).x, other.solve(b).x)
        assert one.solve(b).residual < 1e-6
        assert one.solve(b).iterations <= 2


@pytest.mark.parametrize("name", ["pif", "fif", "gif"])
def test_estimates_over_a_subset_agree_with_the_dense_matrix(name: str):
    objective, thin, dense = both()
    found, expected = (
        ESTIMATORS[name].update(Removal(objective, GROUP, system, mask=MASK))
        for system in (thin, dense)
    )
    close(found.delta, expected.delta)
    assert found.delta.norm() > 0.01
    # an independent form: numpy's least squares with all rows
    matrix = dense.matrix + 0.01 * torch.eye(88).double()
    gradient = curvature.gradient_sum(objective, index=GROUP)[:, None] / 26
    if name == "gif":
        close(found.delta[MASK], torch.linalg.lstsq(matrix[:, MASK], gradient).solution[:, 0])


def test_single_precision_rows_leave_a_residual_within_the_tolerance():
    objective, thin, _ = both()
    single = replace(thin, rows=thin.rows.float())
    gradient = curvature.gradient_sum(objective, index=GROUP)
    for system in (single, single.block(MASK), single.normal(MASK)):
        b = gradient if len(gradient) == system.rows.shape[1] else gradient[MASK]
        solution = system.solve(b)
        assert (b - system.apply(solution.x)).norm() <= 1e-6 * b.norm()


def test_a_thin_system_refuses_what_has_no_solution():
    _, thin, _ = both()
    with pytest.raises(SolveError, match=r"singular at damping 0; raise the damping"):
        replace(thin, damping=0.0)
    with pytest.raises(SolveError, match="not finite"):
        thin.solve(torch.full((88,), torch.nan))
