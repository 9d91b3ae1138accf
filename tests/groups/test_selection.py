"""Thin systems against the dense ones, the rule for the step's length, and the sweep's tasks."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from influence_tasks import EXACT, small_net
from torch import Tensor, nn
from toys import lines

from unlearnlib.data import datasets, removal
from unlearnlib.groups import selection
from unlearnlib.influence import curvature, estimators
from unlearnlib.influence.curvature import SQUARED, Objective
from unlearnlib.influence.solvers import Dense, SolveError
from unlearnlib.models import models, retraining
from unlearnlib.pipeline.sweep import sweep

MASK = torch.arange(88) % 3 == 1
GROUP = torch.tensor([1, 5, 8, 20])
INDEX = torch.arange(0, 30, 2)


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=EXACT, atol=EXACT)


def both(damping: float = 0.01) -> tuple[Objective, selection.Thin, Dense]:
    """Give the system of a small net in thin and in dense form; 45 rows for 88 parameters."""
    objective = small_net()
    rows = selection.rooted_jacobian(objective, index=INDEX)
    thin = selection.Thin(rows, objective.l2 + damping)
    return objective, thin, Dense(curvature.gauss_newton(objective, index=INDEX), damping)


# ------------------------------------------------------------------------------ thin systems


@pytest.mark.parametrize("chunk", [1, 4, 100])
def test_the_rooted_jacobian_squares_to_the_gauss_newton_matrix(chunk: int):
    objective = small_net()
    rows = selection.rooted_jacobian(objective, index=INDEX, chunk=chunk)
    assert rows.shape == (15 * 3, 88)
    matrix = curvature.gauss_newton(replace(objective, l2=0.0), index=INDEX)
    close(rows.T @ rows, matrix)


def test_the_rooted_jacobian_of_a_linear_map_is_known():
    network = nn.Linear(3, 2).double().eval()
    inputs = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)).double()
    objective = Objective(network, inputs, torch.zeros(5, 2), loss=SQUARED)
    rows = selection.rooted_jacobian(objective)
    expected = torch.block_diag(inputs.T @ inputs, inputs.T @ inputs) / 5
    close((rows.T @ rows)[:6, :6], expected)


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
        estimators.estimate(name, objective, GROUP, system, mask=MASK) for system in (thin, dense)
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
    objective, thin, _ = both()
    with pytest.raises(SolveError, match=r"singular at damping 0; raise the damping"):
        replace(thin, damping=0.0)
    with pytest.raises(SolveError, match="not finite"):
        thin.solve(torch.full((88,), torch.nan))
    with pytest.raises(ValueError, match="empty index selects no items; give at least one"):
        selection.rooted_jacobian(objective, index=torch.tensor([], dtype=torch.long))
    training = replace(objective, network=objective.network.train())
    with pytest.raises(ValueError, match=r"training mode; call network.eval\(\)"):
        selection.rooted_jacobian(training)


# ------------------------------------------------------------------------- length of the step


def test_the_scale_is_the_smallest_within_the_limit():
    # self accuracy falls to the limit at exactly 10
    chosen, curve = selection.choose_scale(
        lambda scale: (100 - 9.9 * scale, 90.0), [1, 2, 4, 8, 16, 32], self_limit=1, bisections=12
    )
    assert 10 <= chosen < 10.01
    assert [point["scale"] for point in curve] == sorted({point["scale"] for point in curve})
    assert len(curve) == 6 + 12
    assert curve[0] == {"scale": 1, "self_accuracy": 90.1, "validation_accuracy": 90.0}


def test_a_first_scale_within_the_limit_is_not_bisected():
    chosen, curve = selection.choose_scale(
        lambda scale: (0.0, 90.0), [1, 2], self_limit=1, bisections=5
    )
    assert (chosen, len(curve)) == (1, 2)


def test_without_a_scale_within_the_limit_the_two_accuracies_decide():
    judged = {1: (99.0, 98.0), 2: (30.0, 90.0), 4: (20.0, 50.0), 8: (float("nan"),) * 2}
    reversed_nan = judged | {1: (float("nan"),) * 2}
    assert selection.choose_scale(reversed_nan.get, [1, 2, 4], self_limit=1, bisections=5)[0] == 2
    chosen, curve = selection.choose_scale(judged.get, list(judged)[:3], self_limit=1, bisections=5)
    assert (chosen, len(curve)) == (2, 3)
    # what overflows is neither within the limit nor best
    chosen, _ = selection.choose_scale(judged.get, list(judged), self_limit=1, bisections=5)
    assert chosen == 2


@pytest.mark.parametrize("scales", [[], [0, 1], [2, 1], [-1, 1], [1, 1]])
def test_scales_that_are_no_grid_are_refused(scales: list[float]):
    with pytest.raises(ValueError, match="factors above 0 in ascending order"):
        selection.choose_scale(lambda _: (0, 0), scales, self_limit=1, bisections=0)


# ---------------------------------------------------------------------------------- the tasks


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path | float]:
    """Train a compact net on bright lines, with and without class 3."""
    folder = tmp_path_factory.mktemp("subsets")
    recipe = {"epochs": 40, "batch_size": 20, "learning_rate": 0.01, "l2": 1e-3}
    spec = {"data": lines(folder / "toy.npz"), "model": "compact", "width": 1.0, "seed": 0}
    group = {"mode": "coherent", "label": 3, "size": 20, "seed": 0}
    sweep(
        [
            {"name": "original"} | spec | recipe,
            {"name": "retrained", "group": group} | spec | recipe,
        ],
        retraining.run,
        store=folder,
    )
    paths = {name: folder / f"{name}.pt" for name in ("original", "retrained")}
    return paths | {"data": spec["data"], "l2": 1e-3, "seed": 0}


def criteria_spec(trained: dict, **changes: object) -> dict:
    return (
        trained
        | {
            "label": 3, "dampings": [0.01], "curvature_images": 60, "curvature_of": "all", "gradient_images": None,
            "score_images": 20, "validation_images": 30, "scales": [1, 4, 16, 64], "self_limit": 5.0, "bisections": 4,
            "cases": [["gif", "top_outputs", 0.3], ["fif", "random", 0.3]],
        }
        | changes
    )  # fmt: skip


def test_gif_forgets_a_class_and_keeps_the_others(trained):
    result = selection.run(criteria_spec(trained))
    original, retrained, gif, fif = result["rows"]
    assert [row["estimator"] for row in result["rows"]] == ["original", "retrain", "gif", "fif"]
    assert original["self_accuracy"] == pytest.approx(100)
    assert retrained["self_accuracy"] == 0
    for row in (gif, fif):
        assert row["self_accuracy"] <= 5
        assert row["self_loss"] > original["self_loss"] + 1
        assert row["residual"] < 1e-6
        assert row["parameters"] == pytest.approx(0.3 * 4874, abs=3)
    assert gif["test_accuracy"] > 85
    curve = [point for point in result["curve"] if point["estimator"] == "gif"]
    assert gif["scale"] in [point["scale"] for point in curve]


def test_the_task_is_what_the_library_computes_by_hand(trained):
    spec = criteria_spec(trained, cases=[["gif", "random", 0.2]], scales=[2.0], self_limit=100.0)
    row = selection.run(spec)["rows"][2]
    dataset = datasets.load(trained["data"])
    images, labels = datasets.split(dataset, "train")
    network = models.load(trained["original"]).eval()
    objective = Objective(network, images, labels, l2=1e-3)
    group = (labels == 3).nonzero().squeeze(1)
    index = selection.random_group(200, size=60, seed=0)
    dense = Dense(curvature.gauss_newton(objective, index=index), 0.01)
    mask = selection.select("random", network, images[group], labels[group], ratio=0.2, seed=0)
    update = estimators.estimate("gif", objective, group, dense, mask=mask)
    scores = removal.measure(estimators.apply_update(network, update.delta, 2.0), dataset, group)
    assert row["self_loss"] == pytest.approx(scores["self_loss"], rel=1e-3)
    assert row["all_test_accuracy"] == pytest.approx(scores["test_accuracy"], abs=1e-3)
    assert row["update_norm"] == pytest.approx(2 * update.delta.norm().item(), rel=1e-3)


def test_the_curvature_of_what_stays_holds_no_item_of_the_class(trained):
    labels = datasets.split(datasets.load(trained["data"]), "train")[1]
    for source, most in (("all", 199), ("kept", 179)):
        spec = {"label": 3, "curvature_of": source, "curvature_images": most, "seed": 1}
        index = selection._curvature_items(labels, spec)
        assert len(index.unique()) == most
        assert (labels[index] == 3).any() == (source == "all")


def test_the_damping_is_the_one_that_keeps_the_most_validation_accuracy(trained):
    spec = criteria_spec(trained, dampings=[0.01, 1e6], cases=[["gif", "random", 0.3]])
    result = selection.run(spec)
    # so damped that no scale of the grid forgets the class
    assert result["damping"] == 0.01
    assert result["rows"][2]["damping"] == 0.01
    assert {point["damping"] for point in result["curve"]} == {0.01, 1e6}
    twice = selection.run(spec | {"dampings": [0.01, 0.02]})
    judged = {p["validation_accuracy"] for p in twice["curve"] if p["self_accuracy"] <= 5}
    assert judged == {100.0}  # equals, of which the larger is taken
    assert twice["damping"] == 0.02
    alone = selection.run(criteria_spec(trained, cases=[["gif", "random", 0.3]]))
    assert result["rows"][2]["self_loss"] == alone["rows"][2]["self_loss"]


def test_the_measure_leaves_the_class_out_of_the_test(trained):
    dataset = datasets.load(trained["data"])
    network = models.load(trained["original"])
    scores = selection.measure(network, dataset, 3)
    images, labels = datasets.split(dataset, "test")
    right = models.predict(network, images).argmax(1) == labels
    assert scores["test_accuracy"] == pytest.approx(100 * right[labels != 3].double().mean())
    assert scores["all_test_accuracy"] == pytest.approx(100 * right.double().mean())


def test_a_gradient_from_some_items_estimates_the_sum(trained):
    images, labels = datasets.split(datasets.load(trained["data"]), "train")
    objective = Objective(models.load(trained["original"]).eval(), images, labels, l2=1e-3)
    group = (labels == 3).nonzero().squeeze(1)
    request = {"mode": "coherent", "label": 3, "seed": 0}
    whole = selection._group_gradient(objective, group, request | {"size": None})
    same = selection._group_gradient(objective, group, request | {"size": 20})
    part = selection._group_gradient(objective, group, request | {"size": 10})
    close(whole, same)
    drawn = removal.draw(labels, request | {"size": 10})
    close(part, 2 * curvature.gradient_sum(objective, index=drawn))


def larger_spec(trained: dict, **changes: object) -> dict:
    group = {"mode": "coherent", "label": 3, "size": 10, "seed": 0}
    shape = {"group": group, "dampings": [1e-9, 0.5, 50.0], "curvature_images": 30}
    return trained | shape | {"tolerance": 1e-3, "max_iterations": 8} | changes


def test_larger_networks_raise_the_damping_until_a_solution_holds(trained):
    result = selection.run_larger(larger_spec(trained))
    assert result["parameters"] == 4874
    for kind in ("gauss_newton", "hessian"):
        rows = [row for row in result["rows"] if row["curvature"] == kind]
        assert [row["damping"] for row in rows] == [1e-9, 0.5, 50.0][: len(rows)]
        assert len(rows) > 1
        for row in rows[:-1]:
            assert "raise the damping" in row["outcome"]
            assert "self_loss" not in row
        assert rows[-1]["outcome"] == "solved"
        assert rows[-1]["residual"] <= 1e-3
        assert rows[-1]["iterations"] >= 1
        assert rows[-1]["self_loss"] > result["before"]["self_loss"]


def test_larger_networks_agree_with_a_dense_solve(trained):
    spec = larger_spec(trained, dampings=[1.0], tolerance=1e-6)
    row = selection.run_larger(spec)["rows"][0]
    images, labels = datasets.split(datasets.load(trained["data"]), "train")
    objective = Objective(models.load(trained["original"]).eval(), images, labels, l2=1e-3)
    index = selection.random_group(200, size=30, seed=0)
    dense = Dense(curvature.gauss_newton(objective, index=index), 1.0)
    group = removal.draw(labels, spec["group"])
    update = estimators.estimate("first_order", objective, group, dense)
    assert row["update_norm"] == pytest.approx(update.delta.norm().item(), rel=1e-4)


def test_a_missing_estimator_or_too_many_images_are_refused(trained):
    with pytest.raises(ValueError, match="size=5000 of 199 items"):
        selection.run(criteria_spec(trained, curvature_images=5000))
    with pytest.raises(ValueError, match="unknown curvature_of 'none'; choose one of"):
        selection.run(criteria_spec(trained, curvature_of="none"))
    with pytest.raises(ValueError, match="unknown estimator 'lif'; choose one of"):
        selection.run(criteria_spec(trained, cases=[["lif", "random", 0.1]]))
