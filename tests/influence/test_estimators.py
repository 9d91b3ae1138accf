"""Influence estimators: exact on ridge regression, near exact retraining on logistic regression."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from influence_tasks import (
    EXACT,
    dense_hessian,
    design,
    logistic,
    newton_minimum,
    removal_weights,
    ridge,
    ridge_minimum,
    small_net,
)
from scipy.stats import spearmanr
from torch import Tensor
from torch.func import jacfwd, jacrev

from unlearnlib.data.requests import Classes, Group
from unlearnlib.influence import curvature, estimators
from unlearnlib.influence.curvature import Objective
from unlearnlib.influence.estimators import ESTIMATORS, Estimator, Removal, Update
from unlearnlib.influence.solvers import Dense, MatrixFree, Solution, SolveError, System

GROUP = torch.tensor([3, 17, 4, 21, 9, 30, 11])
MASK = torch.arange(12) % 3 == 1


def close(actual: Tensor, expected: Tensor, *, tolerance: float = EXACT) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def estimate(
    name: str, objective: Objective, group: Tensor, system: System, **options: object
) -> Update:
    """Estimate a removal by the name of an estimator."""
    return ESTIMATORS[name].update(Removal(objective, group, system, **options))


def systems(objective: Objective, *, damping: float = 0.0) -> list:
    """Give the same system in every form: dense, by product, by product with preconditioner."""
    dense = Dense(curvature.gauss_newton(objective), damping)
    options = {"damping": damping, "tolerance": 1e-12}
    return [
        dense,
        MatrixFree(curvature.hessian_operator(objective), **options),
        MatrixFree(
            curvature.gauss_newton_operator(objective), preconditioner=dense.inverse, **options
        ),
    ]


def change(objective: Objective, group: Tensor) -> Tensor:
    """Retrain exactly without the group, and return by how much the parameters change."""
    weights = removal_weights(objective.items, group, 1.0)
    return newton_minimum(objective, weights) - curvature.flatten(objective.network)


def draw(items: int, size: int, seed: int) -> Tensor:
    return torch.randperm(items, generator=torch.Generator().manual_seed(seed))[:size]


# ------------------------------------------------------------------------ ridge regression


def ridge_pieces() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Compute by numpy the Hessians over S and U (mean, with penalty) and g_U, weights first."""
    objective = ridge()
    x, group = design(objective).numpy(), GROUP.numpy()
    theta = curvature.flatten(objective.network).numpy()
    weights = np.vstack([theta[:10].reshape(2, 5).T, theta[10:]])
    errors = x @ weights - objective.targets.numpy()
    gradient = x[group].T @ errors[group] + len(group) * 0.1 * weights
    of_all, of_group = (rows.T @ rows / len(rows) + 0.1 * np.eye(6) for rows in (x, x[group]))
    return of_all, of_group, gradient


def flat(matrix: np.ndarray) -> Tensor:
    """Flatten [6, 2] coefficients as the network does: weight [2, 5], then bias [2]."""
    return torch.from_numpy(np.concatenate([matrix[:5].T.reshape(-1), matrix[5]]))


@pytest.mark.parametrize("form", [0, 1, 2])
def test_ridge_first_order_is_its_closed_form(form: int):
    objective = ridge()
    hessian, _, gradient = ridge_pieces()
    update = estimate("first_order", objective, GROUP, systems(objective)[form])
    close(update.delta, flat(np.linalg.solve(hessian, gradient) / 33))
    assert update.residual < 1e-11


@pytest.mark.parametrize("form", [0, 1, 2])
def test_ridge_newton_is_exact_retraining(form: int):
    objective = ridge()
    update = estimate("newton", objective, GROUP, systems(objective)[form])
    retrained = ridge_minimum(objective, removal_weights(40, GROUP, 1.0))
    close(update.delta, retrained - curvature.flatten(objective.network))
    assert update.delta.norm() > 0.1


@pytest.mark.parametrize("form", [0, 1, 2])
def test_ridge_second_order_is_the_taylor_polynomial_of_the_exact_path(form: int):
    objective = ridge()

    def path(s: Tensor) -> Tensor:
        return ridge_minimum(objective, removal_weights(40, GROUP, s))

    start = torch.tensor(0.0).double()
    taylor = jacrev(path)(start) + jacfwd(jacrev(path))(start) / 2
    for name in ("second_order", "second_order_cubic"):
        update = estimate(name, objective, GROUP, systems(objective)[form])
        close(update.delta, taylor)
        assert len(update.solutions) == 2


def test_ridge_second_order_has_the_published_coefficients():
    objective, (hessian, of_group, gradient) = ridge(), ridge_pieces()
    share, first = 7 / 40, np.linalg.solve(hessian, gradient)
    second = np.linalg.solve(hessian, 7 * of_group @ first)
    published = ((1 - 2 * share) / 40 * first + second / 40**2) / (1 - share) ** 2
    update = estimate("second_order", objective, GROUP, systems(objective)[0])
    close(update.delta, flat(published))


def test_the_convention_of_2017_is_one_over_n():
    objective, (hessian, _, gradient) = ridge(), ridge_pieces()
    update = estimators.first_order(
        curvature.gradient_sum(objective, index=GROUP),
        systems(objective)[0],
        items=40,
        removed=7,
        renormalise=False,
    )
    close(update.delta, flat(np.linalg.solve(hessian, gradient) / 40))


def test_without_the_penalty_in_the_gradient_newton_is_not_retraining():
    objective = ridge()
    bare = curvature.gradient_sum(replace(objective, l2=0.0), index=GROUP)
    of_group = curvature.gauss_newton(objective, index=GROUP)
    kept = estimators.kept_system(systems(objective)[0], of_group, items=40, removed=7)
    exact = estimators.newton(
        bare + 7 * 0.1 * curvature.flatten(objective.network), kept, items=40, removed=7
    )
    close(exact.delta, change(objective, GROUP))
    wrong = estimators.newton(bare, kept, items=40, removed=7)
    assert (wrong.delta - exact.delta).norm() > 0.05 * exact.delta.norm()


@pytest.mark.parametrize("form", [0, 1, 2])
def test_ridge_estimates_over_a_subset_are_their_closed_forms(form: int):
    objective, system = ridge(), systems(ridge())[form]
    matrix = dense_hessian(objective).numpy()
    gradient = curvature.gradient_sum(objective, index=GROUP).numpy() / 33
    mask = MASK.numpy()
    block = np.linalg.solve(matrix[mask][:, mask], gradient[mask])
    squares = np.linalg.lstsq(matrix[:, mask], gradient, rcond=None)[0]
    expected = {"pif": np.linalg.solve(matrix, gradient)[mask], "fif": block, "gif": squares}
    for name, values in expected.items():
        update = estimate(name, objective, GROUP, system, mask=MASK)
        close(update.delta[MASK], torch.from_numpy(values))
        assert not update.delta[~MASK].any()
    assert not np.allclose(block, squares, rtol=0.01)


def test_fif_is_the_first_order_change_of_the_minimum_over_the_subset():
    objective = ridge()
    theta = curvature.flatten(objective.network)
    hessian = dense_hessian(objective)

    def path(s: Tensor) -> Tensor:
        weights = removal_weights(40, GROUP, s)
        moved = estimators.apply_update(objective.network, 0 * theta)
        rows = curvature.item_gradients(replace(objective, network=moved))
        slope = (weights[:, None] * rows).sum(0) / 40
        return theta[MASK] - torch.linalg.solve(hessian[MASK][:, MASK], slope[MASK])

    derivative = (path(1e-4) - path(-1e-4)) / 2e-4
    update = estimate("fif", objective, GROUP, systems(objective)[0], mask=MASK)
    close(update.delta[MASK], derivative)


@pytest.mark.parametrize("name", ["pif", "fif", "gif"])
def test_over_all_parameters_they_are_first_order(name: str):
    objective = ridge()
    everything = torch.ones(12, dtype=torch.bool)
    for system in systems(objective, damping=0.03):
        update = estimate(name, objective, GROUP, system, mask=everything)
        close(update.delta, estimate("first_order", objective, GROUP, system).delta)


def test_damping_is_the_minimum_held_near_the_start():
    # a proximal term δ/2 ‖θ - θ̂‖² on both objectives: exact for a quadratic loss
    objective, damping = ridge(), 0.5
    theta = curvature.flatten(objective.network)
    kept = estimators.without(objective, GROUP)
    slope = curvature.gradient_sum(kept) / kept.items
    held = -torch.linalg.solve(dense_hessian(kept) + damping * torch.eye(12).double(), slope)
    for system in systems(objective, damping=damping):
        close(estimate("newton", objective, GROUP, system).delta, held)
    assert held.norm() < change(objective, GROUP).norm()
    assert theta.norm() > 0


def test_damped_second_order_is_exact_for_a_group_like_the_rest():
    # U holds each item of its complement's pattern once, so that both curvatures are equal
    part = ridge(20)
    objective = replace(
        part,
        inputs=torch.cat([part.inputs] * 2),
        targets=torch.cat([part.targets, part.targets + 1]),
    )
    network = estimators.apply_update(part.network, torch.zeros(12))
    curvature.assign(network, ridge_minimum(objective, torch.ones(40).double()))
    objective, group = replace(objective, network=network), torch.arange(20, 40)
    for system in systems(objective, damping=0.2):
        newton = estimate("newton", objective, group, system).delta
        assert newton.norm() > 0.1
        close(estimate("second_order", objective, group, system).delta, newton)
        close(estimate("first_order", objective, group, system).delta, newton)


def test_newton_from_an_unfinished_training_reaches_the_minimum():
    objective = ridge()
    network = estimators.apply_update(objective.network, torch.ones(12).double())
    moved = replace(objective, network=network)
    kept = Dense(dense_hessian(estimators.without(moved, GROUP)))
    update = estimators.newton(
        curvature.gradient_sum(moved, index=GROUP),
        kept,
        items=40,
        removed=7,
        training_gradient=curvature.gradient_sum(moved),
    )
    retrained = ridge_minimum(objective, removal_weights(40, GROUP, 1.0))
    close(curvature.flatten(estimators.apply_update(network, update.delta)), retrained)


def test_a_dense_group_matrix_and_its_product_give_the_same_step():
    objective, sizes = small_net(), {"items": 30, "removed": 7}
    group = GROUP % 30
    gradient = curvature.gradient_sum(objective, index=group.unique())
    system = Dense(curvature.gauss_newton(objective), damping=0.1)
    matrix = curvature.gauss_newton(objective, index=group)
    dense = estimators.kept_system(system, matrix, **sizes)
    free = estimators.kept_system(system, lambda v: matrix @ v + 0.1 * v, **sizes)
    assert isinstance(free, MatrixFree)
    direct, iterated = (estimators.newton(gradient, s, **sizes) for s in (dense, free))
    close(iterated.delta, direct.delta, tolerance=1e-5)
    assert 1 < iterated.iterations < 40


def alone(name: str, objective: Objective, group: Tensor, system: System, **options) -> Tensor:
    """Add up the updates for each item of a group alone."""
    return sum(estimate(name, objective, item, system, **options).delta for item in group[:, None])


@pytest.mark.parametrize("form", [0, 1, 2])
def test_ridge_rif_is_the_sum_of_exact_retrainings_without_each_item(form: int):
    objective = ridge()
    theta, system = curvature.flatten(objective.network), systems(objective)[form]
    exact = [
        ridge_minimum(objective, removal_weights(40, item, 1.0)) - theta for item in GROUP[:, None]
    ]
    for item, expected in zip(GROUP[:, None], exact, strict=True):
        update = estimate("rif", objective, item, system)
        close(update.delta, expected)
    update = estimate("rif", objective, GROUP, system)
    close(update.delta, sum(exact))
    assert update.residual < 1e-11
    # the leverages are not small: to ignore them is to fall short
    ignorant = alone("first_order", objective, GROUP, system)
    assert (ignorant - sum(exact)).norm() > 0.03 * sum(exact).norm()
    # which is not the removal of all of them together
    assert (update.delta - change(objective, GROUP)).norm() > 0.05 * sum(exact).norm()


def test_rif_is_the_published_quotient_for_one_output_without_penalty():
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(12, 4, generator=generator).double()
    network = torch.nn.Linear(4, 1, bias=False).double().eval()
    targets = x[:, :1] ** 2
    objective = Objective(network, x, targets, loss=curvature.SQUARED)
    curvature.assign(network, torch.linalg.lstsq(x, targets).solution[:, 0])
    residuals = x @ curvature.flatten(network) - targets[:, 0]
    inverse, group = torch.linalg.inv(x.T @ x), torch.tensor([1, 5, 6])
    leverages = (x @ inverse * x).sum(1)
    influences = (x @ inverse) * residuals[:, None]
    expected = (influences / (1 - leverages)[:, None])[group].sum(0)
    update = estimate("rif", objective, group, Dense(curvature.gauss_newton(objective)))
    close(update.delta, expected)
    assert leverages[group].max() > 0.2


@pytest.mark.parametrize("damping", [0.0, 0.03])
def test_rif_in_chunks_is_the_sum_of_newton_steps_for_each_item(damping: float):
    objective = ridge()
    for system in systems(objective, damping=damping):
        removal = Removal(objective, GROUP, system)
        expected = alone("newton", objective, GROUP, system)
        for chunk in (1, 3, 100):
            update = estimators._rif(removal, chunk=chunk)
            close(update.delta, expected)
            # a record of each chunk, without its columns, where there is no factor; and of the sum
            sizes = [solution.x.numel() for solution in update.solutions]
            chunks = 0 if isinstance(system, Dense) else -(-7 // chunk)
            assert sizes == [0] * chunks + [12]


# -------------------------------------------------------------------- logistic regression


@pytest.fixture(scope="module")
def convex() -> tuple[Objective, Dense]:
    objective = logistic()
    return objective, Dense(curvature.gauss_newton(objective))


def test_logistic_second_order_is_the_taylor_polynomial_only_with_the_third_derivative(convex):
    objective, system = convex
    group = torch.arange(0, 60, 3)

    def path(s: Tensor) -> Tensor:
        return newton_minimum(objective, removal_weights(200, group, s), steps=3)

    start = torch.tensor(0.0).double()
    slope, bend = jacrev(path)(start), jacfwd(jacrev(path))(start)
    close(estimate("first_order", objective, group, system).delta, slope)
    whole = estimate("second_order_cubic", objective, group, system, kind="hessian")
    close(whole.delta, slope + bend / 2)
    published = estimate("second_order", objective, group, system, kind="hessian")
    missing = (published.delta - slope - bend / 2).norm()
    assert missing > 0.1 * (bend / 2).norm()


def test_logistic_rif_of_an_item_is_the_newton_downdate(convex):
    objective, system = convex
    x = torch.cat([objective.inputs.flatten(1), torch.ones(200, 1).double()], 1)
    p = objective.network(objective.inputs).softmax(1).detach()
    for item in (0, 31, 77):
        # the Hessian without the item, weights and biases in the order [class, pixel]
        whole = sum(
            torch.kron(p[i].diag() - p[i].outer(p[i]), x[i].outer(x[i]))
            for i in range(200) if i != item
        ) + 199 * objective.l2 * torch.eye(15).double()  # fmt: skip
        error = p[item] - torch.eye(3)[objective.targets[item]]
        weight, bias = objective.network.parameters()
        theta = torch.cat([weight, bias[:, None]], 1).detach().reshape(-1)
        gradient = torch.kron(error, x[item]) + objective.l2 * theta
        step = torch.linalg.solve(whole, gradient).view(3, 5)
        expected = torch.cat([step[:, :4].reshape(-1), step[:, 4]])
        update = estimate("rif", objective, torch.tensor([item]), system)
        close(update.delta, expected)
        exact = change(objective, torch.tensor([item]))
        assert (update.delta - exact).norm() < 0.05 * exact.norm()


def errors(convex, group: Tensor) -> dict[str, float]:
    objective, system = convex
    exact = change(objective, group)
    removal = Removal(objective, group, system)
    estimates = {name: e.update(removal).delta for name, e in ESTIMATORS.items() if not e.partial}
    return {name: ((d - exact).norm() / exact.norm()).item() for name, d in estimates.items()}


@pytest.mark.parametrize(("size", "most"), [(2, 0.01), (10, 0.03), (40, 0.1)])
def test_newton_is_nearly_exact_on_logistic_regression(convex, size: int, most: float):
    found = errors(convex, draw(200, size, size))
    assert found["newton"] < most
    assert found["newton"] < found["first_order"]


@pytest.mark.parametrize("size", [10, 20, 50])
def test_second_order_with_the_third_derivative_is_nearer_than_first_for_every_group(
    convex, size: int
):
    for seed in range(3):
        for group in (draw(200, size, seed), 3 * draw(66, size, seed)):
            found = errors(convex, group)
            assert found["second_order_cubic"] < found["first_order"]


def test_the_published_second_order_is_nearer_on_average_but_not_for_every_group(convex):
    found = [errors(convex, 3 * draw(66, size, seed)) for size in (20, 50) for seed in range(3)]
    mean = {name: np.mean([each[name] for each in found]) for name in found[0]}
    assert mean["second_order"] < 0.7 * mean["first_order"]
    # the third derivative that it drops is of the order of what it adds
    assert found[0]["second_order"] > found[0]["first_order"] > 4 * found[0]["second_order_cubic"]


def test_first_order_ranks_groups_as_exact_retraining_does(convex):
    objective, system = convex
    groups = [draw(200, 2 + 2 * seed, seed) for seed in range(25)]
    pairs = {"first_order": [], "newton": []}
    for group in groups:
        exact = change(objective, group)
        slope = curvature.gradient_sum(objective, index=group)
        for name, found in pairs.items():
            delta = estimate(name, objective, group, system).delta
            found.append(((slope @ delta).item(), (slope @ exact).item()))
    for name, least in (("first_order", 0.95), ("newton", 0.99)):
        predicted, actual = zip(*pairs[name], strict=True)
        assert spearmanr(predicted, actual).statistic >= least
    assert np.polyfit(*zip(*pairs["newton"], strict=True), 1)[0] == pytest.approx(1, abs=0.05)


def test_removal_raises_the_loss_of_the_group_and_lowers_that_of_the_rest(convex):
    objective, system = convex
    group = torch.arange(0, 60, 3)
    for name in ("first_order", "newton", "second_order", "second_order_cubic"):
        delta = estimate(name, objective, group, system).delta
        moved = replace(objective, network=estimators.apply_update(objective.network, delta))
        kept, kept_before = (estimators.without(o, group) for o in (moved, objective))
        before = curvature.mean_loss(objective, index=group)
        assert curvature.mean_loss(moved, index=group) > before
        assert curvature.mean_loss(kept) < curvature.mean_loss(kept_before)


# -------------------------------------------------------------------------- small network


def test_conjugate_gradients_agree_with_the_dense_solve_on_a_net():
    objective, group = small_net(), torch.tensor([1, 5, 8, 20])
    dense = Dense(curvature.gauss_newton(objective), damping=0.05)
    free = MatrixFree(curvature.gauss_newton_operator(objective), damping=0.05)
    mask = torch.arange(88) % 4 == 0
    for name in [name for name, entry in ESTIMATORS.items() if not entry.scaled]:
        expected, update = (
            estimate(name, objective, group, system, mask=mask) for system in (dense, free)
        )
        assert (update.delta - expected.delta).norm() <= 1e-4 * expected.delta.norm()
        assert 0 < update.residual <= 1e-6
        assert update.iterations > 0


def test_an_indefinite_hessian_asks_for_damping():
    objective = small_net()
    lowest = torch.linalg.eigvalsh(dense_hessian(objective)).min().item()
    assert lowest < 0
    free = MatrixFree(curvature.hessian_operator(objective))
    with pytest.raises(SolveError, match=r"not positive definite.*raise the damping"):
        estimate("first_order", objective, torch.tensor([1, 2]), free)
    estimate("first_order", objective, torch.tensor([1, 2]), replace(free, damping=0.1 - lowest))


# --------------------------------------------------------------------- what removals share


def sampled(count: int = 20, *, damping: float = 0.1) -> tuple[Objective, Tensor, Dense]:
    """Give a net, positions of a sample of its items, and the damped curvature of those."""
    objective = small_net()
    sample = draw(objective.items, count, 1)
    return objective, sample, Dense(curvature.gauss_newton(objective, index=sample), damping)


def test_over_a_sample_the_group_has_the_curvature_of_its_items_in_the_sample():
    objective, sample, system = sampled()
    group = draw(30, 9, 2)
    inside = group[torch.isin(group, sample)]
    assert 2 < len(inside) < len(group)
    kept = sample[~torch.isin(sample, group)]
    eye = 0.1 * torch.eye(88).double()
    of_kept = curvature.gauss_newton(objective, index=kept) + eye
    of_group = curvature.gauss_newton(objective, index=inside) + eye
    gradient = curvature.gradient_sum(objective, index=group)
    removal = Removal(objective, group, system, sample=sample)
    newton = ESTIMATORS["newton"].update(removal).delta
    close(newton, torch.linalg.solve(of_kept, gradient) / 21)
    hessian = system.matrix + eye
    first = torch.linalg.solve(hessian, gradient) / 21
    second = (1 - 18 / 30) * first + 9 / 30 * torch.linalg.solve(hessian, of_group @ first)
    close(ESTIMATORS["second_order"].update(removal).delta, second / (1 - 9 / 30))
    # by products alone they are the same
    free = MatrixFree(
        curvature.gauss_newton_operator(objective, index=sample), 0.1, tolerance=1e-12
    )
    for name, expected in (("newton", newton), ("second_order", second / (1 - 9 / 30))):
        close(estimate(name, objective, group, free, sample=sample).delta, expected)


def test_over_a_sample_rif_is_the_sum_of_newton_steps_from_the_same_sample():
    objective, sample, system = sampled()
    group = draw(30, 9, 2)
    assert 2 < int(torch.isin(group, sample).sum()) < 9
    expected = alone("newton", objective, group, system, sample=sample)
    close(estimate("rif", objective, group, system, sample=sample).delta, expected)
    outside = group[~torch.isin(group, sample)]
    expected = alone("first_order", objective, outside, system, sample=sample)
    close(estimate("rif", objective, outside, system, sample=sample).delta, expected)


def test_an_item_that_the_curvature_has_not_seen_is_refused_by_its_leverage():
    objective, _, system = sampled(3, damping=1e-3)
    with pytest.raises(SolveError, match=r"has leverage [1-9]\S+, where .* form it on the items"):
        estimate("rif", objective, torch.arange(20, 30), system)


def test_a_group_outside_the_sample_has_the_curvature_of_the_sample():
    objective, sample, system = sampled()
    group = torch.arange(30)[~torch.isin(torch.arange(30), sample)][:4]
    first = estimate("first_order", objective, group, system, sample=sample).delta
    for name in ("newton", "second_order"):
        close(estimate(name, objective, group, system, sample=sample).delta, first)


def test_a_group_that_holds_the_whole_sample_leaves_no_curvature():
    objective, sample, system = sampled(4)
    with pytest.raises(ValueError, match="group of 4 of 4 items"):
        estimate("newton", objective, torch.arange(29), system, sample=torch.arange(4))


def test_the_third_derivative_comes_from_the_items_that_are_given(convex):
    objective, system = convex
    group, some = torch.arange(0, 60, 3), torch.arange(0, 200, 2)
    removal = Removal(objective, group, system, third_items=some)
    first, published = (
        ESTIMATORS[name].update(removal).delta for name in ("first_order", "second_order")
    )
    cubic = curvature.third_operator(objective, index=some)(first)
    expected = published - torch.linalg.solve(system.matrix, cubic) / 2
    close(ESTIMATORS["second_order_cubic"].update(removal).delta, expected)
    whole = estimate("second_order_cubic", objective, group, system).delta
    assert (whole - expected).norm() > 1e-3 * whole.norm()


def test_a_gradient_that_is_given_takes_the_place_of_the_sum():
    objective, system = ridge(), systems(ridge())[0]
    gradient = curvature.gradient_sum(objective, index=GROUP)
    update = estimate("gif", objective, GROUP, system, mask=MASK, given_gradient=3 * gradient)
    close(update.delta, 3 * estimate("gif", objective, GROUP, system, mask=MASK).delta)


def test_what_estimators_share_is_made_once_and_its_seconds_count_for_each(monkeypatch):
    objective, sample, system = sampled()
    made = {"gradient_sum": 0, "gauss_newton": 0, "mask": 0}

    def counted(name: str) -> None:
        function = getattr(curvature, name)

        def call(*args: object, **options: object) -> Tensor:
            made[name] += 1
            return function(*args, **options)

        monkeypatch.setattr(curvature, name, call)

    counted("gradient_sum")
    counted("gauss_newton")

    def mask() -> Tensor:
        made["mask"] += 1
        return torch.arange(88) % 4 == 0

    removal = Removal(objective, GROUP % 30, system, sample=sample, mask=mask)
    for estimator in ESTIMATORS.values():
        update, seconds = estimator.timed(removal)
        assert estimator.update(removal) is update
        parts = ["gradient", *["group_curvature"] * estimator.curved]
        assert seconds > sum(removal.seconds[part] for part in parts) > 0
    # RIF sums the gradients of the items outside the sample apart
    assert made == {"gradient_sum": 2, "gauss_newton": 1, "mask": 1}


# ------------------------------------------------------------------------------- the registry


def test_a_scaled_estimator_has_the_same_update_and_serves_classes_alone():
    objective, system = ridge(), systems(ridge())[0]
    removal = Removal(objective, GROUP, system, mask=MASK)
    plain, scaled = ESTIMATORS["gif"], ESTIMATORS["gif_scaled"]
    assert (plain.scaled, scaled.scaled) == (False, True)
    assert scaled.title == "GIF, scaled"
    assert scaled.update(removal) is plain.update(removal)
    group = Group("random", None, 3)
    assert plain.cannot(group) is None
    assert "classes only" in scaled.cannot(group)
    assert scaled.cannot(Classes([0])) is None


def halved(removal: Removal) -> Update:
    """Go half as far as nothing but the gradient says."""
    solution = Solution(removal.gradient, 0.0, 0, True)
    return Update(removal.gradient / 2 / (removal.items - removal.removed), (solution,))


def test_an_estimator_of_ones_own_is_known_by_its_name():
    mine = Estimator("halved", "half a gradient", function=halved)
    try:
        ESTIMATORS.register(mine)
        ESTIMATORS.register(estimators.scaled(mine))
        assert list(ESTIMATORS)[-2:] == ["halved", "halved_scaled"]
        assert ESTIMATORS["halved"].family == "influence"
        objective = ridge()
        gradient = curvature.gradient_sum(objective, index=GROUP)
        for name in ("halved", "halved_scaled"):
            update = estimate(name, objective, GROUP, systems(objective)[0])
            close(update.delta, gradient / 66)
    finally:
        for name in ("halved", "halved_scaled"):
            ESTIMATORS.unregister(name)


# ---------------------------------------------------------------------------------- updates


def test_an_update_moves_a_copy():
    network = small_net().network
    before = curvature.flatten(network)
    delta = torch.arange(88.0).double()
    moved = estimators.apply_update(network, delta, scale=0.25)
    close(curvature.flatten(moved), before + delta / 4)
    close(curvature.flatten(network), before)
    assert torch.equal(moved[1].running_mean, network[1].running_mean)
    assert not moved.training
    assert next(moved.parameters()).data_ptr() != next(network.parameters()).data_ptr()


def test_a_wrong_update_is_refused():
    network, delta = small_net().network, torch.ones(88)
    with pytest.raises(ValueError, match=r"shape \(3,\) for 88 parameters"):
        estimators.apply_update(network, torch.ones(3))
    with pytest.raises(ValueError, match=r"scale nan.*finite scale"):
        estimators.apply_update(network, delta, scale=float("nan"))
    with pytest.raises(ValueError, match=r"not finite.*raise the damping"):
        estimators.apply_update(network, delta * float("inf"))


@pytest.mark.parametrize(
    ("group", "message"),
    [
        (torch.empty(0, dtype=torch.long), "group is empty"),
        (torch.zeros(40, dtype=torch.bool), "group is empty"),
        (torch.arange(40), "group of 40 leaves nothing of 40"),
        (torch.arange(50), "group of 50 leaves nothing of 40"),
        (torch.tensor([3, 3]), "more than once"),
        (torch.tensor([40]), "reaches from 40"),
        (torch.tensor([-1]), "reaches from -1"),
        (torch.tensor([1.0]), "float32"),
        (torch.ones(5, dtype=torch.bool), r"mask of shape \(5,\) for 40"),
    ],
)
def test_a_wrong_group_is_refused(group: Tensor, message: str):
    objective = ridge()
    with pytest.raises(ValueError, match=rf"{message}.*from 0 to 39"):
        estimate("newton", objective, group, systems(objective)[0])
    with pytest.raises(ValueError, match=message):
        estimators.without(objective, group)


def test_a_wrong_estimator_mask_or_size_is_refused():
    objective, system = ridge(), systems(ridge())[0]
    with pytest.raises(ValueError, match=r"'lissa'.*first_order.*gif"):
        estimate("lissa", objective, GROUP, system)
    with pytest.raises(ValueError, match=r"'gif' with mask=None.*give the removal a mask"):
        estimate("gif", objective, GROUP, system)
    with pytest.raises(ValueError, match="true for at least one parameter"):
        estimate("pif", objective, GROUP, system, mask=MASK & False)
    with pytest.raises(ValueError, match="unknown curvature 'fisher'"):
        estimate("newton", objective, GROUP, system, kind="fisher")
    for removed in (0, 40, 41):
        with pytest.raises(ValueError, match=rf"group of {removed} of 40 items"):
            estimators.first_order(torch.ones(12).double(), system, items=40, removed=removed)


def test_no_damping_on_a_singular_matrix_is_refused():
    objective = replace(ridge(), l2=0.0, inputs=torch.ones(40, 5).double())
    system = Dense(curvature.gauss_newton(objective))
    with pytest.raises(SolveError, match=r"singular.*damping 0;.*raise the damping"):
        estimate("first_order", objective, GROUP, system)
