"""One step: each estimator is that of the library, on the stored curvature."""

from dataclasses import asdict, replace

import pytest
import torch
from group_tasks import COHERENT, RANDOM, fitted

from unlearnlib.groups import estimators
from unlearnlib.groups.estimators import Fitted, Settings
from unlearnlib.influence import curvature
from unlearnlib.influence.criteria import CRITERIA
from unlearnlib.influence.estimators import ESTIMATORS, Removal, apply_update
from unlearnlib.measures import accuracy
from unlearnlib.pipeline import clock, records

SETTINGS = Settings(ratio=0.2, third_items=200, rif_items=200)
CRITERION = CRITERIA["top_gradients"]
NAMES = [name for name, estimator in ESTIMATORS.items() if not estimator.scaled]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Fitted:
    return fitted(tmp_path_factory.mktemp("estimators"))


def run(model: Fitted, names: list[str], *, seed: int = 0, **changes: int) -> list[dict]:
    settings = replace(SETTINGS, **changes)
    return estimators.run(
        fitted=model, requests=[COHERENT, RANDOM], estimators=[ESTIMATORS[name] for name in names],
        criterion=CRITERION, settings=settings, seed=seed,
    )["rows"]  # fmt: skip


def test_the_stored_curvature_is_the_gauss_newton_matrix(model: Fitted):
    _, objective = estimators.objective_of(model)
    system = estimators.system_of(model)
    torch.testing.assert_close(
        system.matrix, curvature.gauss_newton(objective), rtol=1e-5, atol=1e-6
    )
    assert system.damping == 0.05
    slope = records.result(model.curvature)["slope"]
    assert slope == pytest.approx(curvature.gradient_sum(objective).norm().item() / 200)


@pytest.mark.parametrize("name", NAMES)
def test_one_step_is_the_estimators(model: Fitted, name: str):
    dataset, objective = estimators.objective_of(model)
    system, rows = estimators.system_of(model), run(model, [name])
    assert [row["estimator"] for row in rows] == ["none", name] * 2
    for request, before, row in zip((COHERENT, RANDOM), rows[::2], rows[1::2], strict=True):
        group = request.positions(objective.targets)
        chosen = objective.inputs[group], objective.targets[group]
        mask = CRITERION.select(objective.network, *chosen, ratio=0.2, seed=0)
        update = ESTIMATORS[name].update(Removal(objective, group, system, mask=mask))
        assert row["change"] == pytest.approx(update.delta.norm().item(), rel=1e-4)
        moved = apply_update(objective.network, update.delta)
        expected = accuracy.measure(moved, dataset, group)
        assert {key: row[key] for key in expected} == pytest.approx(expected, rel=1e-3)
        assert asdict(request).items() <= row.items()
        assert row["residual"] < 1e-5
        assert row["self_loss"] > before["self_loss"]
        untouched = accuracy.measure(objective.network, dataset, group)
        assert {key: before[key] for key in untouched} == pytest.approx(untouched)


def test_the_third_derivative_is_estimated_on_items_of_its_own(model: Fitted):
    # the sample follows the seed of the run alone, and is no group of that seed
    _, objective = estimators.objective_of(model)
    system, settings = estimators.system_of(model), replace(SETTINGS, third_items=40)
    drawn = [
        estimators.removal_of(request, objective, system, CRITERION, settings, seed=0)
        for request in (COHERENT, RANDOM)
    ]
    assert torch.equal(drawn[0].third_items, drawn[1].third_items)
    assert len(drawn[1].third_items.unique()) == 40
    assert torch.isin(drawn[1].group, drawn[1].third_items).sum() < 30
    whole, part, again, other = (
        run(model, ["second_order_cubic"], third_items=items, seed=seed)[1]["change"]
        for items, seed in ((200, 0), (40, 0), (40, 0), (40, 1))
    )
    assert part == again
    assert len({whole, part, other}) == 3


def test_items_are_removed_one_by_one_from_small_groups_alone(model: Fitted):
    _, objective = estimators.objective_of(model)
    sizes = [len(request.positions(objective.targets)) for request in (COHERENT, RANDOM)]
    smaller, larger = sorted(sizes)
    assert smaller < larger
    for most, expected in ((larger, 2), (smaller, 1), (smaller - 1, 0)):
        names = [row["estimator"] for row in run(model, ["first_order", "rif"], rif_items=most)]
        assert names.count("rif") == expected
        assert names.count("first_order") == 2


def test_what_each_estimator_takes_is_told_apart_from_what_it_finds(model: Fitted):
    with clock.collected() as timings:
        rows = run(model, ["first_order", "fif"])
    parts = {f"{r.name}/{name}" for r in (COHERENT, RANDOM) for name in ("first_order", "fif")}
    assert set(timings) == parts
    assert all(seconds > 0 for seconds in timings.values())
    assert not any("seconds" in row for row in rows)
