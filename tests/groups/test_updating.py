"""Group updates: each estimator is that of the library, and steps start where the last one ended."""

from pathlib import Path

import pytest
import torch
from toys import lines

from unlearnlib.data import removal
from unlearnlib.groups import geometry, updating
from unlearnlib.influence import criteria, curvature, estimators
from unlearnlib.influence.solvers import Dense
from unlearnlib.models import models, retraining

RECIPE = {"epochs": 12, "batch_size": 20, "learning_rate": 0.01, "l2": 1e-3}
COHERENT = {"mode": "coherent", "label": 3, "size": 12, "seed": 0}
RANDOM = {"mode": "random", "label": None, "size": 40, "seed": 0}


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """A trained network of few parameters, its curvature, and all that the runs ask for."""
    folder = tmp_path_factory.mktemp("updating")
    basic = {"data": lines(folder / "mnist.npz"), "l2": RECIPE["l2"], "seed": 0}
    trained = retraining.run(basic | RECIPE | {"model": "compact", "width": 0.25})
    basic["original"] = stored(folder / "original.pt", trained)
    basic["curvature"] = stored(folder / "curvature.pt", updating.run_curvature(basic))
    basic |= {"damping": 0.05, "requests": [COHERENT, RANDOM], "ratio": 0.2, "third_items": 200}
    return basic | {"step_items": 150, "step_tolerance": 1e-6, "features": basic["original"]}


def stored(path: Path, result: dict) -> Path:
    torch.save({"key": "", "spec": {}, "seconds": 0.0, "result": result}, path)
    return path


def test_the_stored_curvature_is_the_gauss_newton_matrix(spec: dict):
    _, objective = updating.objective_of(spec)
    system = updating.system_of(spec)
    torch.testing.assert_close(
        system.matrix, curvature.gauss_newton(objective), rtol=1e-5, atol=1e-6
    )
    assert system.damping == 0.05
    slope = models.load_result(spec["curvature"])["slope"]
    assert slope == pytest.approx(curvature.gradient_sum(objective).norm().item() / 200)


@pytest.mark.parametrize("name", [*estimators.ESTIMATORS, updating.SECOND])
def test_one_step_is_the_estimators(spec: dict, name: str):
    dataset, objective = updating.objective_of(spec)
    system = updating.system_of(spec)
    rows = updating.run_one_step(spec | {"estimators": [name]})["rows"]
    assert [row["estimator"] for row in rows] == ["none", name] * 2
    for request, before, row in zip((COHERENT, RANDOM), rows[::2], rows[1::2], strict=True):
        group, options = removal.draw(objective.targets, request), {}
        if name in estimators.PARTIAL:
            chosen = objective.inputs[group], objective.targets[group]
            options["mask"] = criteria.select(
                "top_gradients", objective.network, *chosen, ratio=0.2, seed=0
            )
        known = "second_order" if name == updating.SECOND else name
        update = estimators.estimate(
            known, objective, group, system, third=name == updating.SECOND, **options
        )
        assert row["change"] == pytest.approx(update.delta.norm().item(), rel=1e-4)
        moved = estimators.apply_update(objective.network, update.delta)
        expected = removal.measure(moved, dataset, group)
        assert {key: row[key] for key in expected} == pytest.approx(expected, rel=1e-3)
        assert request.items() <= row.items()
        assert row["residual"] < 1e-5
        assert row["self_loss"] > before["self_loss"]


def test_steps_recompute_gradient_and_curvature_where_they_are(spec: dict):
    _, objective = updating.objective_of(spec)
    system = updating.system_of(spec)
    first, second = torch.arange(0, 10), torch.arange(10, 25)
    whole = spec | {"step_items": 10**6}
    solvers = system, updating.explicit_inverse(system)
    network, row = updating.follow(
        objective, solvers, [("a", first), ("b", second)], spec=whole, done={}
    )
    update = estimators.estimate("first_order", objective, first, system)
    moved = estimators.apply_update(objective.network, update.delta)
    rest = estimators.without(
        curvature.Objective(moved, objective.inputs, objective.targets, l2=objective.l2), first
    )
    local = Dense(curvature.gauss_newton(rest), system.damping)
    update = estimators.estimate("first_order", rest, torch.arange(15), local)
    expected = curvature.flatten(estimators.apply_update(moved, update.delta))
    torch.testing.assert_close(curvature.flatten(network), expected, rtol=1e-3, atol=1e-5)
    assert 0 < row["residual"] < 1e-6
    assert row["iterations"] > 0


def test_orders_share_what_they_have_in_common(spec: dict):
    _, objective = updating.objective_of(spec)
    system, done = updating.system_of(spec), {}
    solvers = system, updating.explicit_inverse(system)
    a, b, c = (("a", torch.arange(5)), ("b", torch.arange(5, 9)), ("c", torch.arange(9, 15)))
    one, _ = updating.follow(objective, solvers, [a, b, c], spec=spec, done=done)
    updating.follow(objective, solvers, [a, c], spec=spec, done=done)
    assert set(done) == {("a",), ("a", "b"), ("a", "b", "c"), ("a", "c")}
    again, _ = updating.follow(objective, solvers, [a, b, c], spec=spec, done=done)
    assert again is one


def test_every_scheme_removes_the_whole_group_or_its_moderate_part():
    parts = geometry.partition(torch.randn(60, generator=torch.Generator().manual_seed(0)))
    found = list(updating.schemes(parts, 60, seed=0))
    assert [name for name, *_ in found] == [
        *["three_step"] * 6, "moderate_only", "random_split",
    ]  # fmt: skip
    for scheme, order, steps in found:
        positions = torch.cat([part for _, part in steps]).sort().values
        expected = parts["moderate"] if scheme == "moderate_only" else torch.arange(60)
        assert torch.equal(positions, expected)
        if scheme == "three_step":
            assert [name for name, _ in steps] == order.split("-")


def test_a_run_of_steps_has_a_row_for_each_scheme(spec: dict):
    rows = updating.run_steps(spec | {"requests": [COHERENT]})["rows"]
    assert len(rows) == 8
    assert len({row["order"] for row in rows}) == 8
    for row in rows:
        assert row["near"] + row["moderate"] + row["far"] == 12
        assert row["residual"] <= 1e-5


def test_scales_multiply_the_update(spec: dict):
    options = {"scales": [0.0, 1.0, 50.0], "clean_items": 50}
    rows = updating.run_scaling(spec | options | {"requests": [COHERENT]})["rows"]
    single = updating.run_one_step(spec | {"estimators": ["first_order"], "requests": [COHERENT]})
    none, first = single["rows"]
    assert rows[0]["self_loss"] == pytest.approx(none["self_loss"], rel=1e-5)
    assert rows[1]["self_loss"] == pytest.approx(first["self_loss"], rel=1e-5)
    assert rows[2]["self_loss"] > rows[1]["self_loss"]
    assert rows[0]["clean_accuracy"] > 90 > rows[2]["self_accuracy"]
    assert rows[0]["relabelled_accuracy"] < 20


def test_relabelled_items_have_another_label_each_equally_likely():
    labels = torch.zeros(3000, dtype=torch.long)
    found = updating.relabel(labels, classes=4, seed=0)
    counts = found.bincount(minlength=4)
    assert counts[0] == 0
    assert (counts[1:] > 900).all()
    assert torch.equal(found, updating.relabel(labels, classes=4, seed=0))
