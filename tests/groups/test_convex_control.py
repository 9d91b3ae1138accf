"""The convex control: exact minima, and estimators against them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from influence_tasks import logistic, newton_minimum, removal_weights
from sklearn.linear_model import LogisticRegression
from toys import lines

from unlearnlib.data import datasets
from unlearnlib.data.requests import Group, RequestError
from unlearnlib.groups import convex_control
from unlearnlib.groups.convex_control import Neighbours, Settings, minimise
from unlearnlib.influence import curvature
from unlearnlib.influence.criteria import CRITERIA
from unlearnlib.influence.estimators import ESTIMATORS, without
from unlearnlib.pipeline.sweep import sweep

GROUP = torch.arange(0, 24, 3)


def zeroed(objective: curvature.Objective) -> curvature.Objective:
    curvature.assign(objective.network, 0 * curvature.flatten(objective.network))
    return objective


def test_the_minimum_is_that_of_scikit_learn():
    objective = zeroed(logistic())
    ended = minimise(objective, tolerance=1e-10)
    assert ended.gradient_norm <= 1e-10
    # its penalty leaves the bias free, so that a constant column stands in for it
    inputs = torch.cat([objective.inputs.flatten(1), torch.ones(objective.items, 1)], 1)
    strength = 1 / (objective.items * objective.l2)
    oracle = LogisticRegression(C=strength, fit_intercept=False, tol=1e-12, max_iter=10_000)
    expected = oracle.fit(inputs.numpy(), objective.targets.numpy()).coef_
    weight, bias = (p.detach().numpy() for p in objective.network.parameters())
    np.testing.assert_allclose(np.c_[weight, bias], expected, atol=1e-5)


def test_retraining_from_the_fit_is_exact():
    objective = logistic()
    weights = removal_weights(objective.items, GROUP, 1.0)
    expected = newton_minimum(objective, weights)
    kept = without(objective, GROUP)
    minimise(kept, tolerance=1e-12)
    torch.testing.assert_close(curvature.flatten(kept.network), expected, rtol=0, atol=1e-9)


def test_a_minimum_takes_no_step():
    assert minimise(logistic()).steps == 0


def test_an_unfinished_minimisation_is_refused():
    with pytest.raises(
        convex_control.ConvergenceError, match="after 1 Newton steps.*raise the penalty"
    ):
        minimise(zeroed(logistic()), max_steps=1)


def test_single_precision_ends_in_an_error_and_not_in_a_wrong_answer():
    objective = zeroed(logistic())
    single = replace(objective, network=objective.network.float(), inputs=objective.inputs.float())
    with pytest.raises(convex_control.ConvergenceError, match="float64"):
        minimise(single, tolerance=1e-12, max_steps=3)


# --------------------------------------------------------------------------------- groups


def test_neighbours_are_the_nearest_of_all_classes():
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(30, 1, 3, 3, generator=generator).double()
    labels = torch.arange(30) % 3
    group = Neighbours(7, seed=4).positions(images)
    gaps = torch.cdist(images.flatten(1), images.flatten(1)[group[:1]])[:, 0]
    assert gaps[group].max() < gaps[torch.isin(torch.arange(30), group, invert=True)].min()
    assert len(labels[group].unique()) > 1
    assert not torch.equal(group, Neighbours(7, seed=5).positions(images))


def asked(kind: str, *percents: float, seed: int = 0) -> list:
    """List the groups of a kind among 200 items of ten classes."""
    targets = torch.arange(200) % 10
    options = {"percents": percents, "labels": [1, 4], "seed": seed}
    return list(convex_control.groups(kind, targets, **options))


def test_coherent_groups_end_where_their_class_ends():
    found = asked("coherent", 0.1, 1, 5, 25)
    assert [(group.label, group.size) for group in found] == [
        (label, size) for label in (1, 4) for size in (1, 2, 10)
    ]
    assert all(isinstance(group, Group) and group.mode == "coherent" for group in found)


def test_groups_of_different_sizes_are_not_nested():
    labels = torch.arange(200) % 10
    small, large = (group.positions(labels) for group in asked("random", 10, 50))
    assert (len(small), len(large)) == (20, 100)
    assert not torch.isin(small, large).all()
    again, other = (asked("random", 10, seed=seed)[0].positions(labels) for seed in (0, 1))
    assert torch.equal(small, again)
    assert not torch.equal(small, other)
    assert all(isinstance(group, Neighbours) for group in asked("neighbours", 10, 50))


def test_bad_groups_are_refused():
    with pytest.raises(ValueError, match="unknown kind 'odd'; choose one of"):
        asked("odd", 5)
    for size in (0, 30):
        with pytest.raises(RequestError, match=f"size={size} of 30 items: give 1 to 29"):
            Neighbours(size).positions(torch.zeros(30, 1, 2, 2))
    for percents in ((), (1, 100), (0,)):
        with pytest.raises(ValueError, match="above 0 and below 100"):
            Settings(items=80, pool=7, l2=0.05, percents=percents, ratio=0.2)


# ----------------------------------------------------------------------------- the control


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lines(tmp_path_factory.mktemp("convex") / "mnist.npz")


SETTINGS = Settings(items=80, pool=7, l2=0.05, percents=(2.5, 10.0), ratio=0.2)
CRITERION = CRITERIA["top_gradients"]
UNSCALED = [estimator for estimator in ESTIMATORS.values() if not estimator.scaled]


def task(path: Path, *, kind: str = "random", seed: int = 0, **changes: object) -> dict:
    settings = replace(SETTINGS, **changes)
    shared = {"data": path, "settings": settings, "estimators": UNSCALED, "labels": [1]}
    return shared | {"criterion": CRITERION, "kind": kind, "seed": seed}


def test_the_system_is_the_hessian(small: Path):
    fitted = convex_control.fit(datasets.load(small), settings=SETTINGS, seed=0)
    v = torch.linspace(-1, 1, len(fitted.system.matrix)).double()
    product = curvature.hessian_operator(fitted.objective)(v)
    torch.testing.assert_close(fitted.system.apply(v), product)
    assert fitted.minimum.gradient_norm <= 1e-8


def test_a_run_measures_what_it_says(small: Path):
    result = convex_control.run(**task(small))
    assert [group["size"] for group in result["groups"]] == [2, 8]
    for group in result["groups"]:
        errors = {name: row["parameter_error"] for name, row in group["estimates"].items()}
        assert errors["newton"] < errors["first_order"]
        assert errors["second_order_cubic"] < errors["first_order"]
        assert group["gradient_norm"] <= 1e-8
        assert group["actual"]["self"] > 0
        newton = group["estimates"]["newton"]
        assert newton["cosine"] > 0.99
        assert newton["self"] == pytest.approx(group["actual"]["self"], rel=0.1)
        # the triangle inequality ties the error to the norms
        gap = abs(newton["norm"] - group["actual"]["norm"]) / group["actual"]["norm"]
        assert gap <= newton["parameter_error"]
        first, longer = (group["estimates"][name] for name in ("first_order", "first_order_x2"))
        assert longer["norm"] == pytest.approx(2 * first["norm"])
        assert longer["linear"] == pytest.approx(2 * first["linear"])
        # twice the step has the linear part twice and the rest about four times
        rest = [row["test"] - row["linear"] for row in (first, longer)]
        assert rest[1] == pytest.approx(4 * rest[0], rel=0.2)


def test_partial_estimators_change_their_share_and_are_judged_by_all_parameters(small: Path):
    fitted = convex_control.fit(datasets.load(small), settings=SETTINGS, seed=0)
    group = torch.arange(0, 80, 9)
    removal = convex_control.removal_of(group, fitted, CRITERION, ratio=0.2, seed=4)
    images, labels = fitted.objective.inputs[group], fitted.objective.targets[group]
    network = fitted.objective.network
    mask = CRITERION.select(network, images, labels, ratio=0.2, seed=4)
    assert int(mask.sum()) == 34  # two classes of ten, 16 pixels and a bias each
    assert torch.equal(removal.phi, mask)
    found = convex_control.compare(fitted, removal, UNSCALED, name="all")["estimates"]
    weights = removal_weights(80, group, 1.0)
    exact = newton_minimum(fitted.objective, weights) - curvature.flatten(network)
    missed = (exact[~mask].norm() / exact.norm()).item()
    for name in ("pif", "fif", "gif"):
        delta = ESTIMATORS[name].update(removal).delta
        assert not delta[~mask].any()
        assert found[name]["norm"] == pytest.approx(delta.norm().item())
        # what they may not change is missing from them
        assert found[name]["parameter_error"] > missed > 0.3
    # least squares leave less of the equations than the projection and the block
    right = removal.gradient / 71
    rest = {
        name: (fitted.system.apply(ESTIMATORS[name].update(removal).delta) - right).norm()
        for name in ("pif", "fif", "gif")
    }
    assert min(rest, key=rest.get) == "gif"


def test_rif_is_newton_for_one_item_and_falls_short_for_many(small: Path):
    one, many = convex_control.run(**task(small, percents=(1.25, 25.0)))["groups"]
    assert one["size"] == 1
    estimates = one["estimates"]
    for key in ("parameter_error", "self", "test"):
        assert estimates["rif"][key] == pytest.approx(estimates["newton"][key], rel=1e-5)
    assert estimates["rif"]["parameter_error"] < estimates["first_order"]["parameter_error"]
    errors = {name: row["parameter_error"] for name, row in many["estimates"].items()}
    assert errors["newton"] < errors["rif"]


def test_the_table_has_a_row_for_each_group_and_estimator(small: Path, tmp_path: Path):
    tasks = {
        "coherent": task(small, kind="coherent", percents=(2.5, 90.0)),
        "random": task(small, percents=(2.5,), seed=3),
    }
    found = sweep(convex_control.run, tasks, store=tmp_path)
    rows = convex_control.table_rows(found)
    names = ["first_order", "first_order_x1.5", "first_order_x2", "first_order_x3"]
    names += ["newton", "second_order", "second_order_cubic", "rif", "pif", "fif", "gif"]
    assert [row["estimator"] for row in rows] == 2 * names
    assert {(row["label"], row["size"], row["percent"]) for row in rows[:11]} == {(1, 2, 2.5)}
    assert {(row["kind"], row["seed"], row["size"]) for row in rows[11:]} == {("random", 3, 2)}
    assert all(np.isnan(row["label"]) for row in rows[11:])
    assert all(row["seconds"] > 0 and row["retrain_seconds"] > 0 for row in rows)
    group = found["random"].result["groups"][0]["estimates"]["newton"]
    assert rows[15]["predicted_self"] == group["self"]
    assert "seconds" not in group


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"items": 201}, "give 2 to 200"), ({"pool": 3}, "pool=3 does not divide 28")],
)
def test_bad_fits_are_refused(small: Path, changes: dict, message: str):
    with pytest.raises(ValueError, match=message):
        convex_control.run(**task(small, **changes))
