"""Steps: they start where the last one ended, and orders share what they have in common."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict

import pytest
import torch
from group_tasks import COHERENT, RANDOM, fitted

from unlearnlib.groups import estimators, geometry, partitions, steps
from unlearnlib.groups.estimators import Fitted
from unlearnlib.groups.steps import Settings, Walk
from unlearnlib.influence import curvature
from unlearnlib.influence.curvature import Objective
from unlearnlib.influence.estimators import apply_update, first_order, without
from unlearnlib.influence.solvers import Dense
from unlearnlib.models import checkpoints
from unlearnlib.models.networks import penultimate
from unlearnlib.pipeline import clock


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Fitted:
    return fitted(tmp_path_factory.mktemp("steps"))


def walk(model: Fitted, *, items: int = 150, seed: int = 0) -> Walk:
    _, objective = estimators.objective_of(model)
    system = estimators.system_of(model)
    settings = Settings(step_items=items, step_tolerance=1e-6, draws=2, ordered_sizes=())
    return Walk(objective, system, steps.explicit_inverse(system), settings, seed)


def one_step(objective: Objective, group: torch.Tensor, system: Dense) -> torch.nn.Module:
    gradient = curvature.gradient_sum(objective, index=group)
    update = first_order(gradient, system, items=objective.items, removed=len(group))
    return apply_update(objective.network, update.delta)


def test_steps_recompute_gradient_and_curvature_where_they_are(model: Fitted):
    there = walk(model, items=10**6)
    objective, system = there.objective, there.system
    first, second = torch.arange(0, 10), torch.arange(10, 25)
    found = there.follow([("a", first), ("b", second)])
    moved = one_step(objective, first, Dense(curvature.gauss_newton(objective), system.damping))
    rest = without(Objective(moved, objective.inputs, objective.targets, l2=objective.l2), first)
    local = Dense(curvature.gauss_newton(rest), system.damping)
    expected = curvature.flatten(one_step(rest, torch.arange(15), local))
    torch.testing.assert_close(curvature.flatten(found.network), expected, rtol=1e-3, atol=1e-5)
    assert 0 < found.residual < 1e-6
    assert found.iterations > 0
    assert found.seconds > there.follow([("a", first)]).seconds > 0


def test_later_curvatures_are_of_items_drawn_by_the_seed(model: Fitted):
    parts = [("a", torch.arange(0, 10)), ("b", torch.arange(10, 25))]
    ends = [
        curvature.flatten(walk(model, items=20, seed=seed).follow(parts).network)
        for seed in (0, 0, 1)
    ]
    assert torch.equal(ends[0], ends[1])
    assert not torch.equal(ends[0], ends[2])


def test_orders_share_what_they_have_in_common(model: Fitted):
    there = walk(model)
    a, b, c = (("a", torch.arange(5)), ("b", torch.arange(5, 9)), ("c", torch.arange(9, 15)))
    one = there.follow([a, b, c])
    there.follow([a, c])
    assert set(there.reached) == {("a",), ("a", "b"), ("a", "b", "c"), ("a", "c")}
    assert there.follow([a, b, c]) is one


def listed(orders: Sequence[str]) -> tuple[dict[str, torch.Tensor], list[steps.Scheme]]:
    parts = partitions.partition(torch.randn(60, generator=torch.Generator().manual_seed(0)))
    return parts, list(steps.schemes(parts, orders, draws=2, seed=0))


def test_every_scheme_removes_the_whole_group_or_its_moderate_part():
    parts, found = listed(steps.ORDERS)
    counts = Counter(scheme.name for scheme in found)
    assert counts == {
        "all_at_once": 1, "moderate_only": 1, "three_step": 6, "size_matched": 12, "equal_thirds": 2
    }  # fmt: skip
    assert len({scheme.key for scheme in found}) == len(found)
    for scheme in found:
        positions = torch.cat([part for _, part in scheme.steps]).sort().values
        expected = parts["moderate"] if scheme.name == "moderate_only" else torch.arange(60)
        assert torch.equal(positions, expected)
        if scheme.name == "three_step":
            assert [name for name, _ in scheme.steps] == scheme.order.split("-")


def test_the_control_has_the_sizes_of_the_split_in_the_same_order():
    parts, found = listed(steps.ORDERS)
    controls = [scheme for scheme in found if scheme.name == "size_matched"]
    for control in controls:
        wanted = [len(parts[name]) for name in control.order.split("-")]
        assert [len(part) for _, part in control.steps] == wanted
    draws = [next(s for s in controls if s.draw == draw).steps[0][1].tolist() for draw in (0, 1)]
    assert draws[0] != draws[1]
    assert draws[0] != parts["near"].tolist()
    thirds = [scheme for scheme in found if scheme.name == "equal_thirds"]
    assert [[len(part) for _, part in scheme.steps] for scheme in thirds] == [[20, 20, 20]] * 2


def test_there_are_six_orders_and_the_first_goes_from_near_to_far():
    assert len(set(steps.ORDERS)) == 6
    assert steps.ORDERS[0] == "near-moderate-far"
    assert {frozenset(order.split("-")) for order in steps.ORDERS} == {frozenset(partitions.PARTS)}


def test_a_run_takes_the_orders_that_it_is_given(model: Fitted):
    settings = Settings(
        step_items=50, step_tolerance=0.1, draws=1, ordered_sizes=(12,), orders=steps.ORDERS[::5]
    )
    options = {"features": model.original, "settings": settings, "seed": 0}
    rows = steps.run(fitted=model, requests=[COHERENT], **options)["rows"]
    stepped = [row["order"] for row in rows if row["scheme"] == "three_step"]
    assert stepped == ["near-moderate-far", "far-moderate-near"]


def test_groups_of_other_sizes_go_from_near_to_far_alone():
    _, found = listed(steps.ORDERS[:1])
    ordered = [scheme for scheme in found if scheme.name in ("three_step", "size_matched")]
    assert {scheme.order for scheme in ordered} == {"near-moderate-far"}
    assert len(ordered) == 3


def test_a_run_of_steps_has_a_row_for_each_scheme(model: Fitted):
    settings = Settings(step_items=150, step_tolerance=1e-6, draws=1, ordered_sizes=(12,))
    options = {"features": model.original, "settings": settings, "seed": 0}
    with clock.collected() as timings:
        rows = steps.run(fitted=model, requests=[COHERENT], **options)["rows"]
    assert len(rows) == 2 + 6 + 6 + 1
    keys = {"/".join([COHERENT.name, r["scheme"], r["order"], str(r["draw"])]) for r in rows}
    assert set(timings) == keys
    for row in rows:
        assert row["near"] + row["moderate"] + row["far"] == 12
        assert row["residual"] <= 1e-5
        assert asdict(COHERENT).items() <= row.items()
        assert "seconds" not in row


def test_a_run_follows_the_parts_by_distance_in_the_features_it_is_given(model: Fitted):
    settings = Settings(step_items=150, step_tolerance=1e-6, draws=1, ordered_sizes=())
    rows = steps.run(
        fitted=model, features=model.original, requests=[RANDOM], settings=settings, seed=0
    )["rows"]
    there = walk(model)
    labels = there.objective.targets
    seen = penultimate(checkpoints.load(model.original), there.objective.inputs)
    group = RANDOM.positions(labels)
    parts = partitions.partition(geometry.centroid_distances(seen, labels)[group])
    assert {name: rows[0][name] for name in parts} == {n: len(p) for n, p in parts.items()}
    end = there.follow([(name, group[parts[name]]) for name in ("near", "moderate", "far")])
    logits = end.network(there.objective.inputs[group])
    expected = torch.nn.functional.cross_entropy(logits, labels[group]).item()
    (row,) = (row for row in rows if row["scheme"] == "three_step")
    assert row["self_loss"] == pytest.approx(expected, rel=1e-3)
