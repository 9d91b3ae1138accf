"""Selection of parameters on a small net: what the runs compute, and what they refuse."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from influence_tasks import EXACT
from toys import lines

from unlearnlib.data import datasets
from unlearnlib.data.requests import Classes, Group
from unlearnlib.groups import selection
from unlearnlib.groups.selection import Case, LargerSettings, Settings
from unlearnlib.influence import curvature
from unlearnlib.influence.criteria import CRITERIA
from unlearnlib.influence.curvature import Objective
from unlearnlib.influence.estimators import ESTIMATORS, Removal, apply_update
from unlearnlib.influence.scale import Rule
from unlearnlib.influence.solvers import Dense
from unlearnlib.measures import accuracy
from unlearnlib.models import checkpoints, networks, training
from unlearnlib.models.training import Recipe
from unlearnlib.pipeline.sweep import sweep

CLASS = Classes([3])
RULE = Rule(scales=(1.0, 4.0, 16.0, 64.0), self_limit=5.0, bisections=4)
SETTINGS = Settings(
    l2=1e-3,
    dampings=(0.01,),
    curvature_images=60,
    curvature_of="all",
    gradient_images=None,
    score_images=20,
    validation_images=30,
    rule=RULE,
)


def case(estimator: str, criterion: str, ratio: float) -> Case:
    return Case(ESTIMATORS[estimator], CRITERIA[criterion], ratio)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Train a compact net on bright lines, with and without class 3."""
    folder = tmp_path_factory.mktemp("selection")
    recipe = Recipe(epochs=40, batch_size=20, learning_rate=0.01, l2=1e-3)
    data = lines(folder / "toy.npz")
    shared = {"data": data, "model": "compact", "width": 1.0, "recipe": recipe, "seed": 0}
    requests = {"original": None, "retrained": CLASS}
    tasks = {name: shared | {"request": request} for name, request in requests.items()}
    sweep(training.run, tasks, store=folder)
    return {"data": data} | {name: folder / f"{name}.pt" for name in requests}


def objective_of(trained: dict[str, Path]) -> Objective:
    images, labels = datasets.split(datasets.load(trained["data"]), "train")
    return Objective(checkpoints.load(trained["original"]).eval(), images, labels, l2=1e-3)


def task(trained: dict[str, Path], *cases: Case, **changes: object) -> dict[str, object]:
    settings = replace(SETTINGS, **changes)
    cases = cases or (case("gif", "top_outputs", 0.3), case("fif", "random", 0.3))
    return trained | {"request": CLASS, "cases": cases, "settings": settings, "seed": 0}


def test_gif_forgets_a_class_and_keeps_the_others(trained):
    result = selection.run(**task(trained))
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
    rule = Rule(scales=(2.0,), self_limit=100.0, bisections=0)
    row = selection.run(**task(trained, case("gif", "random", 0.2), rule=rule))["rows"][2]
    objective, dataset = objective_of(trained), datasets.load(trained["data"])
    labels = objective.targets
    group = (labels == 3).nonzero().squeeze(1)
    index = selection.curvature_items(labels, CLASS, SETTINGS, seed=0)
    assert len(index.unique()) == 60
    dense = Dense(curvature.gauss_newton(objective, index=index), 0.01)
    mask = CRITERIA["random"].select(
        objective.network, objective.inputs[group], labels[group], ratio=0.2, seed=0
    )
    update = ESTIMATORS["gif"].update(Removal(objective, group, dense, mask=mask))
    moved = apply_update(objective.network, update.delta, 2.0)
    scores = accuracy.measure(moved, dataset, group)
    assert row["self_loss"] == pytest.approx(scores["self_loss"], rel=1e-3)
    assert row["all_test_accuracy"] == pytest.approx(scores["test_accuracy"], abs=1e-3)
    assert row["update_norm"] == pytest.approx(2 * update.delta.norm().item(), rel=1e-3)


def test_the_curvature_of_what_stays_holds_no_item_of_the_class(trained):
    labels = objective_of(trained).targets
    for source, most in (("all", 200), ("kept", 180)):
        settings = replace(SETTINGS, curvature_of=source, curvature_images=most)
        index = selection.curvature_items(labels, CLASS, settings, seed=1)
        assert len(index.unique()) == most
        assert (labels[index] == 3).any() == (source == "all")


def test_the_damping_is_the_one_that_keeps_the_most_validation_accuracy(trained):
    only = case("gif", "random", 0.3)
    result = selection.run(**task(trained, only, dampings=(0.01, 1e6)))
    # so damped that no scale of the grid forgets the class
    assert result["damping"] == 0.01
    assert result["rows"][2]["damping"] == 0.01
    assert {point["damping"] for point in result["curve"]} == {0.01, 1e6}
    twice = selection.run(**task(trained, only, dampings=(0.01, 0.02)))
    judged = {p["validation_accuracy"] for p in twice["curve"] if p["self_accuracy"] <= 5}
    assert judged == {100.0}  # equals, of which the larger is taken
    assert twice["damping"] == 0.02
    alone = selection.run(**task(trained, only))
    assert result["rows"][2]["self_loss"] == alone["rows"][2]["self_loss"]


def test_the_measure_leaves_the_class_out_of_the_test(trained):
    dataset = datasets.load(trained["data"])
    network = checkpoints.load(trained["original"])
    images, labels = datasets.split(dataset, "test")
    right = networks.predict(network, images).argmax(1) == labels
    for request in (CLASS, Classes([3, 7])):
        scores = selection.measure(network, dataset, request)
        stay = ~request.mask(labels)
        assert scores["test_accuracy"] == pytest.approx(100 * right[stay].double().mean())
        assert scores["all_test_accuracy"] == pytest.approx(100 * right.double().mean())


def test_a_gradient_from_some_items_estimates_the_sum(trained):
    objective = objective_of(trained)
    group = (objective.targets == 3).nonzero().squeeze(1)
    rows = curvature.item_gradients(objective, index=group)
    whole, same, part = (
        selection.group_gradient(objective, group, items=items, seed=0) for items in (None, 20, 10)
    )
    for found in (whole, same):
        torch.testing.assert_close(found, rows.sum(0), rtol=1e-4, atol=1e-5)
    # 20 of 20 is the sum; of 10 of them some subset has twice the sum as its estimate
    again = selection.group_gradient(objective, group, items=10, seed=0)
    torch.testing.assert_close(part, again, rtol=EXACT, atol=EXACT)
    weights = torch.linalg.lstsq(rows.T, part[:, None], driver="gelsd").solution[:, 0]
    np.testing.assert_allclose(weights.sort().values, [0] * 10 + [2] * 10, atol=1e-2)


def test_the_tables_join_the_seeds_and_say_what_a_solve_took(trained, tmp_path):
    tasks = {f"seed{seed}": task(trained, dampings=(0.01, 0.1)) | {"seed": seed} for seed in (0, 4)}
    found = sweep(selection.run, tasks, store=tmp_path)
    rows, curve = selection.tables(found)
    assert rows["seed"].tolist() == [0] * 4 + [4] * 4
    assert set(curve["seed"]) == {0, 4}
    assert rows["seconds"].notna().tolist() == 2 * [False, False, True, True]
    assert (rows["seconds"].dropna() > 0).all()
    assert "seconds" not in found["seed0"].result["rows"][2]
    assert found["seed4"].timings["shared"] > 0


def test_a_wrong_estimator_or_too_many_images_are_refused(trained):
    with pytest.raises(ValueError, match="curvature_images=5000 of 200 items: give 1 to 200"):
        selection.run(**task(trained, curvature_images=5000))
    with pytest.raises(ValueError, match="gradient_images=21 of 20 items: give 1 to 20"):
        selection.run(**task(trained, gradient_images=21))
    with pytest.raises(ValueError, match=r"'newton' changes all parameters.*'pif', 'fif', 'gif'"):
        case("newton", "random", 0.1)


# ---------------------------------------------------------------------------- larger networks

LARGER = LargerSettings(
    l2=1e-3, dampings=(1e-9, 0.5, 50.0), curvature_images=30, tolerance=1e-3, max_iterations=8
)
GROUP = Group("coherent", 3, 10)


def larger(trained: dict[str, Path], **changes: object) -> dict[str, object]:
    paths = {name: trained[name] for name in ("data", "original")}
    return paths | {"request": GROUP, "settings": replace(LARGER, **changes), "seed": 0}


def test_larger_networks_raise_the_damping_until_a_solution_holds(trained):
    result = selection.run_larger(**larger(trained))
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
    # the curvature of all items, since the draw of some is the library's own
    options = {"dampings": (1.0,), "tolerance": 1e-6, "curvature_images": 200}
    row = selection.run_larger(**larger(trained, **options))["rows"][0]
    objective = objective_of(trained)
    dense = Dense(curvature.gauss_newton(objective), 1.0)
    group = GROUP.positions(objective.targets)
    update = ESTIMATORS["first_order"].update(Removal(objective, group, dense))
    assert row["update_norm"] == pytest.approx(update.delta.norm().item(), rel=1e-4)


def test_the_table_of_larger_networks_has_a_row_for_each_attempt(trained, tmp_path):
    found = sweep(selection.run_larger, {"one": larger(trained)}, store=tmp_path)
    table = selection.larger_table(found)
    result = found["one"].result
    assert table["outcome"].tolist() == [row["outcome"] for row in result["rows"]]
    assert set(table["model"]) == {"original"}  # the stem of its file, up to the first dash
    assert table[["mode", "size", "seed"]].drop_duplicates().to_numpy().tolist() == [
        ["coherent", 10, 0]
    ]
    assert set(table["self_loss_before"]) == {result["before"]["self_loss"]}
    assert (table["seconds"] > 0).all()
