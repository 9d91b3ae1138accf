"""The ladder: proximal responses against dense minima, and distances against scipy."""

import re
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch
from group_tasks import trained
from influence_tasks import logistic
from torch import Tensor
from toys import lines

from unlearnlib.data.requests import Group
from unlearnlib.groups import ladder
from unlearnlib.groups.ladder import Setting, Settings
from unlearnlib.influence import curvature
from unlearnlib.influence.estimators import ESTIMATORS, without
from unlearnlib.influence.solvers import Dense
from unlearnlib.models.training import Recipe
from unlearnlib.pipeline import clock, records
from unlearnlib.pipeline.records import Record

DAMPING = 0.1
GROUP = torch.tensor([3, 17, 4, 90, 51, 30, 111, 8])


def setting(*, sample: Tensor | None = None) -> Setting:
    """Prepare a converged convex task, with all items in the sample unless told otherwise."""
    objective = logistic()
    order = torch.arange(objective.items)
    sample = order if sample is None else sample
    system = Dense(curvature.gauss_newton(objective, index=sample), DAMPING)
    return Setting(objective, order, sample, system)


def steps(prepared: Setting, group: Tensor) -> dict[str, Tensor]:
    """Estimate a removal by each influence estimator of the ladder: its deltas ``[P]``."""
    removal = ladder.removal_of(prepared, group)
    return {name: ESTIMATORS[name].update(removal).delta for name in ladder.ESTIMATED}


def minimum(prepared: Setting, *, bregman: bool) -> Tensor:
    """Minimise a proximal objective as it is defined, over all items, by dense Newton steps."""
    objective = prepared.objective
    start = curvature.flatten(objective.network)
    left = objective.items - len(GROUP)
    inside = torch.zeros(objective.items).double()
    inside[GROUP] = 1

    def logits(theta: Tensor) -> Tensor:
        named = curvature.unflatten(objective.network, theta)
        return torch.func.functional_call(objective.network, named, (objective.inputs,))

    old = logits(start).log_softmax(1).detach()

    def value(theta: Tensor) -> Tensor:
        new = logits(theta).log_softmax(1)
        losses = -new.gather(1, objective.targets[:, None])[:, 0]
        total = losses @ (1 - inside) + left * objective.l2 / 2 * theta @ theta
        if bregman:
            divergence = (old.exp() * (old - new)).sum(1) + objective.l2 / 2 * (
                theta - start
            ).square().sum()
            total = divergence.sum() - (losses + objective.l2 / 2 * theta @ theta) @ inside
        return total / left + DAMPING / 2 * (theta - start).square().sum()

    theta = start.clone()
    for _ in range(12):
        slope = torch.func.grad(value)(theta)
        theta = theta - torch.linalg.solve(torch.func.hessian(value)(theta), slope)
    return theta - start


def test_the_response_is_the_minimum_of_its_definition():
    prepared = setting()
    found = ladder.respond(prepared, GROUP, items=200, iterations=60, tolerance=1e-5)
    expected = minimum(prepared, bregman=True)
    torch.testing.assert_close(found.delta, expected, rtol=1e-4, atol=1e-6)
    assert found.converged and found.reason is None


def test_training_near_ends_at_the_minimum_of_its_definition():
    prepared = setting()
    objective, expected = prepared.objective, minimum(prepared, bregman=False)
    kept = without(objective, GROUP)
    recipe = Recipe(epochs=300, batch_size=kept.items, learning_rate=0.01, l2=objective.l2)
    near = ladder.train_near(
        objective.network, kept.inputs, kept.targets, damping=DAMPING, recipe=recipe, seed=0
    )
    moved = curvature.flatten(near) - curvature.flatten(objective.network)
    torch.testing.assert_close(moved, expected, rtol=0, atol=1e-2 * expected.norm().item())
    assert not near.training


def test_newton_is_the_first_gauss_newton_step_of_the_response():
    prepared = setting()
    newton = steps(prepared, GROUP)["newton"]
    objective = prepared.objective
    left = without(objective, GROUP)
    matrix = curvature.gauss_newton(left) + DAMPING * torch.eye(len(newton)).double()
    right = curvature.gradient_sum(objective, index=GROUP) / left.items
    torch.testing.assert_close(newton, torch.linalg.solve(matrix, right), rtol=1e-4, atol=1e-7)


def test_the_sample_keeps_gradients_exact():
    # a response on a sample starts along the exact gradient, whatever the sample
    whole, part = setting(), setting(sample=torch.arange(0, 200, 2))
    one = ladder.respond(whole, GROUP, items=200, iterations=60, tolerance=1e-3).delta
    other = ladder.respond(part, GROUP, items=60, iterations=60, tolerance=1e-3).delta
    assert torch.nn.functional.cosine_similarity(one, other, dim=0) > 0.95


def test_curvature_without_a_group_is_positive_definite():
    prepared = setting(sample=torch.arange(0, 60))
    group = torch.cat([torch.arange(0, 50), torch.arange(100, 190)])
    kept = ladder.removal_of(prepared, group).kept_system
    basis = torch.eye(len(prepared.system.matrix)).double()
    matrix = torch.stack([kept.apply(v) for v in basis])
    expected = curvature.gauss_newton(prepared.objective, index=torch.arange(50, 60))
    torch.testing.assert_close(matrix, expected + DAMPING * basis)
    assert torch.linalg.eigvalsh(matrix).min() > 0


def test_a_group_outside_the_sample_leaves_its_curvature():
    prepared = setting(sample=torch.arange(0, 60))
    group = torch.arange(60, 90)
    assert ladder.removal_of(prepared, group).kept_system is prepared.system
    # to all intents the group is then like the rest, for which every estimate is the same
    found = steps(prepared, group)
    for name in ("newton", "second_order"):
        torch.testing.assert_close(found[name], found["first_order"])


OPTIONS = {"items": 50, "iterations": 5, "tolerance": 0.01}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"items": 0}, "items=0: give at least 1"),
        ({"iterations": 0}, "iterations=0.*give at least 1 iteration"),
        ({"tolerance": 0.0}, "tolerance=0.0: give.*between 0 and 1"),
        ({"tolerance": 1.0}, "tolerance=1.0: give.*between 0 and 1"),
    ],
)
def test_a_response_that_nothing_could_reach_is_refused(changed: dict, message: str):
    with pytest.raises(ValueError, match=message):
        ladder.respond(setting(), GROUP, **OPTIONS | changed)


def test_the_sample_is_independent_of_a_random_group_of_its_seed():
    objective = logistic()
    prepared = ladder.prepare(
        objective.network, objective.inputs, objective.targets, l2=0.1, damping=0.1,
        curvature_items=100, seed=3,
    )  # fmt: skip
    group = Group("random", None, 100, seed=3).positions(objective.targets)
    assert 35 < torch.isin(group, prepared.sample).sum() < 65
    assert len(prepared.sample.unique()) == 100


def test_an_empty_sample_is_refused():
    objective = logistic()
    with pytest.raises(ValueError, match="curvature_items=0"):
        ladder.prepare(
            objective.network, objective.inputs, objective.targets, l2=0.1, damping=0.1,
            curvature_items=0, seed=0,
        )  # fmt: skip


def test_a_response_that_is_not_finite_is_refused():
    prepared = setting()
    network = prepared.objective.network
    curvature.assign(network, float("nan") * curvature.flatten(network))
    with pytest.raises(ladder.SolveError, match="starts at nan.*look at the weights"):
        ladder.respond(prepared, GROUP, **OPTIONS)


# ---------------------------------------------------------------------------- minimisation


def quadratic(*, spread: float = 30.0) -> tuple[Callable[[Tensor], tuple[float, Tensor]], Tensor]:
    """Draw a convex quadratic and its minimum, in closed form."""
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(8, 8, generator=generator, dtype=torch.float64)
    matrix = root @ root.T + torch.linspace(1, spread, 8).diag()
    right = torch.randn(8, generator=generator, dtype=torch.float64)

    def value(x: Tensor) -> tuple[float, Tensor]:
        slope = matrix @ x - right
        return (x @ (slope - right) / 2).item(), slope

    return value, torch.linalg.solve(matrix, right)


def test_a_quadratic_is_minimised():
    value, expected = quadratic()
    found = ladder.minimise(value, 8, iterations=100, tolerance=1e-8)
    torch.testing.assert_close(found.delta, expected, rtol=1e-6, atol=1e-9)
    assert found.converged and found.iterations < 60
    assert found.gradient_start == pytest.approx(value(0 * expected)[1].norm().item())
    assert found.gradient_end == pytest.approx(value(found.delta)[1].norm().item())
    assert found.gradient_ratio == found.gradient_end / found.gradient_start <= 1e-8


def test_the_first_step_is_newtons_where_the_curvature_is_the_identity():
    # of a gradient so small that a step of length 1 would leave the neighbourhood
    slope = 1e-3 * torch.ones(5).double()
    asked = []

    def value(x: Tensor) -> tuple[float, Tensor]:
        asked.append(x.norm().item())
        return (x @ x / 2 + slope @ x).item(), x + slope

    found = ladder.minimise(value, 5, iterations=10, tolerance=0.01)
    torch.testing.assert_close(found.delta, -slope)
    assert max(asked) == pytest.approx(slope.norm().item())


def test_the_search_ends_at_the_tolerance():
    value, _ = quadratic()
    rough, fine = (ladder.minimise(value, 8, iterations=99, tolerance=t) for t in (0.1, 1e-6))
    assert rough.converged and fine.converged
    assert rough.iterations < fine.iterations
    assert fine.gradient_ratio <= 1e-6 < rough.gradient_ratio <= 0.1


def test_a_search_that_is_capped_too_early_says_that_it_did_not_converge():
    value, _ = quadratic()
    found = ladder.minimise(value, 8, iterations=2, tolerance=1e-6)
    assert not found.converged
    assert found.iterations == 2
    assert re.fullmatch(
        r"not converged: gradient norm at 0?\.?\d+ of its start after 2 iterations, above 1e-06",
        found.reason,
    )


@pytest.mark.parametrize("power", [1, 3])
def test_a_search_without_a_minimum_ends_unconverged(power: int):
    # falls for ever along one direction, at the same slope or at a growing one
    def value(x: Tensor) -> tuple[float, Tensor]:
        x = x.detach().requires_grad_()
        total = x.square().sum() / 2 - 2 * x[0].abs() ** power - 3 * x[0] - x[0] ** 2 / 2
        return total.item(), torch.autograd.grad(total, x)[0]

    found = ladder.minimise(value, 3, iterations=500, tolerance=0.01)
    assert not found.converged and found.reason.startswith("not converged")
    assert found.delta.abs().max() <= ladder.RUNAWAY * found.gradient_start  # was not followed


def test_a_search_that_starts_at_the_minimum_stays():
    found = ladder.minimise(lambda x: ((x @ x).item(), 2 * x), 3, iterations=5, tolerance=0.1)
    assert found.converged and found.iterations == 0 and not found.delta.any()


# ---------------------------------------------------------------------------------- measures


def test_logits_are_compared_up_to_a_constant():
    one = torch.tensor([[1.0, 2.0, 3.0]])
    assert ladder.logit_distance(one, one + 5) == pytest.approx(0)
    moved = one + torch.tensor([[3.0, 0.0, -3.0]])
    assert ladder.logit_distance(one, moved) == pytest.approx(6**0.5)


def test_rungs_are_scored_against_the_cold_retraining():
    labels = torch.arange(6) % 3
    start, target = torch.zeros(6, 3), torch.randn(6, 3, generator=torch.manual_seed(0))
    outputs = {"original": start, "cold": target, "newton": 0.5 * target, "far": -target}
    scores, pairs = ladder.compare(
        {name: {"self": x, "test": x} for name, x in outputs.items()},
        {"self": labels, "test": labels},
    )
    assert scores["cold"]["item_correlation"] == pytest.approx(1)
    assert scores["newton"]["item_correlation"] > 0.7 > scores["far"]["item_correlation"]
    assert scores["original"]["item_correlation"] != scores["original"]["item_correlation"]
    assert scores["original"]["self_loss"] == pytest.approx(torch.tensor(3.0).log().item())
    matrix = pairs["distance_self"]
    assert torch.equal(matrix, matrix.T)
    assert matrix[0, 2] == pytest.approx(ladder.logit_distance(start, 0.5 * target))


# ----------------------------------------------------------------------------------- a climb


def climb(folder: Path, **changed: float) -> dict:
    """Train an original model and retrain it, cold and warm; return what a climb asks for."""
    data, request = lines(folder / "dataset.npz"), Group("coherent", 1, 8, seed=0)
    recipe = Recipe(epochs=3, batch_size=20, learning_rate=0.01, l2=0.001)
    original = trained(data, folder / "original.pt", recipe=recipe)
    starts = {"cold": {}, "warm": {"start": original}}
    models = {
        request.name: {
            rung: trained(data, folder / f"{rung}.pt", recipe=recipe, request=request, **start)
            for rung, start in starts.items()
        }
    }
    settings = {"curvature_items": 60, "proximal_epochs": 1, "proximal_items": 200}
    return {
        "data": data, "original": original, "models": models, "requests": [request],
        "estimators": [ESTIMATORS[name] for name in ladder.ESTIMATED], "recipe": recipe,
        "damping": 0.05, "seed": 0,
        "settings": Settings(**settings | {"iterations": 50, "tolerance": 0.2} | changed),
    }  # fmt: skip


def table_of(arguments: dict) -> tuple[pd.DataFrame, dict]:
    """Run a climb, and return its table by rung and its result."""
    with clock.collected() as timings:
        result = records.plain(ladder.run(**arguments))
    found = {"seed0": Record("seed0", result, 9.0, timings)}
    rows = ladder.table_rows(found, arguments["models"], items=200)
    return pd.DataFrame(rows).set_index("rung"), result


def test_a_climb_reaches_every_rung(tmp_path: Path):
    arguments = climb(tmp_path)
    table, result = table_of(arguments)
    rows = table.to_dict("index")
    assert tuple(rows) == ladder.RUNGS
    assert rows["cold"]["divergence_test_to_cold"] == pytest.approx(0, abs=1e-9)
    assert rows["cold"]["percent"] == 4
    assert rows["cold"]["seconds"] == 1  # as the retraining took
    assert rows["original"]["seconds"] != rows["original"]["seconds"]
    pairs = result["groups"][0]["pairs"]["divergence_test"]
    assert rows["pbrf"]["divergence_test_to_next"] == pytest.approx(pairs[4, 5].item())
    assert rows["original"]["shift"] == 0
    for rung in ("pbrf", *ladder.ESTIMATED):
        assert rows[rung]["self_loss"] > rows["original"]["self_loss"]
        assert rows[rung]["seconds"] > 0
    assert rows["newton"]["residual"] < 1e-5
    assert rows["pbrf"]["gradient_ratio"] <= 0.2 and pd.isna(rows["pbrf"]["reason"])
    again = ladder.run(**arguments)
    assert records.to_bytes(records.plain(again)) == records.to_bytes(result)


def test_a_response_that_was_capped_is_no_number_in_the_table(tmp_path: Path):
    table, _ = table_of(climb(tmp_path, iterations=1, tolerance=1e-9))
    assert tuple(table.index) == ladder.RUNGS
    row = table.loc["pbrf"]
    assert row["reason"].startswith("not converged: gradient norm at")
    assert row["iterations"] == 1
    assert row["gradient_end"] / row["gradient_start"] == pytest.approx(row["gradient_ratio"])
    known = ["mode", "label", "size", "percent", "seed", "seconds", "reason", "iterations"]
    known += ["gradient_start", "gradient_end", "gradient_ratio"]
    assert row.drop(known).isna().all()  # no score, no shift, no distance
    # nor in what its neighbours are measured by
    assert table.loc["proximal", ["divergence_test_to_next", "distance_self_to_next"]].isna().all()
    others = table.drop("pbrf")
    assert others[["self_loss", "shift", "divergence_test_to_cold"]].notna().all().all()
    assert others["reason"].isna().all()


def responses(*reasons: str | None) -> pd.DataFrame:
    rows = [{"rung": "pbrf", "reason": reason} for reason in reasons]
    return pd.DataFrame([*rows, {"rung": "newton", "reason": None}])


def test_too_many_unconverged_responses_end_the_stage():
    table = responses(None, None, None, "not converged: x")
    assert ladder.check_converged(table, limit=0.25) == "1 of 4 responses did not converge"
    with pytest.raises(
        ladder.SolveError, match="1 of 4.*25%, above unconverged_limit=0.2; raise.*not converged: x"
    ):
        ladder.check_converged(table, limit=0.2)
    assert ladder.check_converged(responses(None), limit=0) == "0 of 1 responses did not converge"


# ----------------------------------------------------------------------------------- over seeds


def seeds_table(**changed: float) -> pd.DataFrame:
    """Make a table of two groups and three seeds by hand: originals at 1, cold at 1 + change."""
    luck = {"random": [0.1, 0.2, 0.6], "coherent": [2.0, 3.0, 4.0]}
    rows = []
    for mode, changes in luck.items():
        for seed, change in enumerate(changes):
            rungs = {"original": 0.0, "cold": change, "newton": 0.3} | changed
            rows += [
                {"mode": mode, "label": pd.NA if mode == "random" else 8, "size": 5, "percent": 1.0,
                 "seed": seed, "rung": rung}
                | dict.fromkeys(ladder.SCORES, 1 + value)
                for rung, value in rungs.items()
            ]  # fmt: skip
    return pd.DataFrame(rows).astype({"label": "Int64"})


def test_the_mean_over_seeds_is_a_rung_with_its_standard_error():
    table = ladder.with_seed_mean(seeds_table())
    assert table["rung"].to_list() == ["original", "seed_mean", "cold", "newton"] * 6
    found = table[table["rung"] == "seed_mean"].set_index(["mode", "seed"])
    for seed in range(3):
        assert found.loc[("random", seed), "self_loss"] == pytest.approx(1.3)
        assert found.loc[("coherent", seed), "test_loss"] == pytest.approx(4.0)
    # standard deviations 0.2646 and 1, over the root of three
    assert found.loc[("random", 0), "self_loss_error"] == pytest.approx(0.07**0.5 / 3**0.5)
    assert found.loc[("coherent", 2), "test_accuracy_error"] == pytest.approx(3**-0.5)
    assert set(found["seeds"]) == {3}
    assert set(found["percent"]) == {1.0}


def test_the_mean_over_one_seed_has_no_error():
    table = seeds_table()
    found = ladder.with_seed_mean(table[table["seed"] == 1])
    mean = found[found["rung"] == "seed_mean"]
    assert set(mean["seeds"]) == {1} and mean["self_loss_error"].isna().all()


def test_a_mean_over_seeds_without_a_retrain_is_refused():
    table = seeds_table()
    gone = (table["mode"] == "random") & (table["seed"] == 2) & (table["rung"] == "cold")
    with pytest.raises(
        ValueError, match=r"'random'.*seeds \[0, 1, 2\] and cold retrains of \[0, 1\]: give both"
    ):
        ladder.with_seed_mean(table[~gone])


def test_rungs_are_measured_against_their_seed_and_against_the_mean():
    found = ladder.explained(ladder.with_seed_mean(seeds_table())).set_index(["mode", "rung"])
    newton, cold = found.loc[("random", "newton")], found.loc[("random", "cold")]
    assert newton["self_share"] == pytest.approx(0.9 / 0.9)
    assert newton["self_to_mean"] == pytest.approx(0)
    assert newton["self_to_seed"] == pytest.approx(((0.2**2 + 0.1**2 + 0.3**2) / 3) ** 0.5)
    assert cold["self_to_seed"] == 0
    assert cold["self_to_mean"] == pytest.approx(newton["self_to_seed"])
    assert newton["test_error"] == pytest.approx((0.07 / 3) ** 0.5)
    assert found.loc[("coherent", "newton"), "test_share"] == pytest.approx(0.1)
    assert found.loc[("coherent", "seed_mean"), "self_share"] == pytest.approx(1)
    assert set(found["groups"]) == {3} and set(found["left_out"]) == {0}
    assert "original" not in found.index.get_level_values("rung")


def test_a_rung_that_a_seed_lacks_leaves_that_seed_out():
    table = seeds_table(pbrf=0.5)
    lacking = (table["rung"] == "pbrf") & (table["mode"] == "random") & (table["seed"] == 2)
    lacking |= (table["rung"] == "pbrf") & (table["mode"] == "coherent")
    table.loc[lacking, ladder.SCORES] = float("nan")
    found = ladder.explained(ladder.with_seed_mean(table)).set_index(["mode", "rung"])
    some, none = found.loc[("random", "pbrf")], found.loc[("coherent", "pbrf")]
    assert (some["groups"], some["left_out"]) == (2, 1)
    assert some["self_share"] == pytest.approx(1.0 / 0.3)  # of the cold retrains of seeds 0 and 1
    assert some["self_to_seed"] == pytest.approx(((0.4**2 + 0.3**2) / 2) ** 0.5)
    assert (none["groups"], none["left_out"]) == (0, 3)
    assert none.filter(regex="self|test").isna().all()
