"""Attribution of single items: its sums against plain loops, and the score against known ranks."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from group_tasks import RECIPE, fitted
from scipy.stats import spearmanr
from toys import lines

from unlearnlib.data import datasets
from unlearnlib.groups import attribution, estimators
from unlearnlib.groups.attribution import Parts, Settings
from unlearnlib.groups.estimators import Fitted
from unlearnlib.influence import curvature
from unlearnlib.influence.solvers import Operator
from unlearnlib.measures.membership import margins
from unlearnlib.models.training import Recipe

PARTS = Parts(parts=6, share=0.5, trainings=2, queries=20)
SETTINGS = Settings(projection=8, sample=60, dampings=(0.02, 0.2), tolerance=1e-3, iterations=100)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Fitted:
    return fitted(tmp_path_factory.mktemp("attribution"))


@pytest.fixture(scope="module")
def found(model: Fitted) -> dict:
    return attribution.run_attributions(fitted=model, parts=PARTS, settings=SETTINGS, seed=0)


def gradient_of_margin(network: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Compute the gradient of log p / (1 - p) of one item by autograd alone."""
    p = network(x[None]).double().softmax(1)[0, y]
    parts = torch.autograd.grad((p / (1 - p)).log(), list(network.parameters()))
    return torch.cat([part.flatten() for part in parts]).double()


def test_gradients_of_margins_are_those_of_the_log_odds(model: Fitted):
    _, objective = estimators.objective_of(model)
    network, images, labels = objective.network, objective.inputs[:7], objective.targets[:7]
    ((gradients, own),) = attribution.item_margins(network, images, labels)
    for row, p, x, y in zip(gradients, own, images, labels, strict=True):
        expected = gradient_of_margin(network, x, y)
        torch.testing.assert_close(row, expected, rtol=1e-3, atol=1e-4)
        assert p == pytest.approx(network(x[None]).softmax(1)[0, y].item(), rel=1e-4)
    # and the gradient of the loss is theirs, times -(1 - p)
    unpenalised = curvature.Objective(network, images, labels)
    losses = curvature.item_gradients(unpenalised)
    torch.testing.assert_close(-(1 - own)[:, None] * gradients, losses, rtol=1e-3, atol=1e-5)


def test_attributions_add_up_what_the_items_of_a_part_do(model: Fitted, found: dict):
    dataset, objective = estimators.objective_of(model)
    assert found["refused"] == {}
    assert set(found["foretold"]) == set(attribution.TITLES) - {"ekfac"}
    asked = torch.cat(
        [g for g, _ in attribution.item_margins(objective.network, *PARTS.asked(dataset))]
    )
    for number, told in zip(PARTS.numbers, found["foretold"]["dot"], strict=True):
        gone = PARTS.left_out(number, objective.items).positions(objective.targets)
        kept = torch.tensor([i for i in range(objective.items) if i not in set(gone.tolist())])
        assert len(kept) == objective.items // 2
        penalty = len(kept) * objective.l2 * curvature.flatten(objective.network).double()
        total = curvature.gradient_sum(objective, index=kept) - penalty
        expected = -(asked @ total) / objective.items
        torch.testing.assert_close(told.double(), expected, rtol=1e-3, atol=1e-5)


def test_a_curvature_stands_between_query_and_items(model: Fitted, found: dict):
    dataset, objective = estimators.objective_of(model)
    gone = PARTS.left_out(attribution.FIRST, objective.items).positions(objective.targets)
    everything = torch.arange(objective.items)
    kept = everything[~torch.isin(everything, gone)]
    unpenalised = curvature.Objective(objective.network, objective.inputs, objective.targets)
    right = curvature.gradient_sum(unpenalised, index=kept)
    damped = curvature.gauss_newton(objective) + model.damping * torch.eye(len(right)).double()
    asked = torch.cat(
        [g for g, _ in attribution.item_margins(objective.network, *PARTS.asked(dataset))]
    )
    expected = -(asked @ torch.linalg.solve(damped, right)) / objective.items
    torch.testing.assert_close(
        found["foretold"]["newton"][0].double(), expected, rtol=1e-2, atol=1e-4
    )
    # Hessian and Gauss-Newton matrix are those of the same items, and differ
    told = found["foretold"]
    assert not torch.allclose(told["hessian_sample"], told["newton_sample"], rtol=1e-2)
    assert not torch.allclose(told["newton_sample"], told["newton"], rtol=1e-2)


def test_projected_gradients_follow_traks_formula(model: Fitted):
    _, objective = estimators.objective_of(model)
    network, images, labels = objective.network, objective.inputs, objective.targets
    generator = torch.Generator().manual_seed(0)
    projection = torch.randn(len(curvature.flatten(network)), 5, generator=generator).double()
    members = torch.rand(3, len(labels), generator=generator) < 0.5
    found = attribution.read(network, images, labels, members, projection=projection)
    rows = list(attribution.item_margins(network, images, labels))
    features = torch.cat([gradients for gradients, _ in rows]) @ projection
    own = torch.cat([p for _, p in rows])
    asked = torch.cat([gradients for gradients, _ in rows])[:4]
    told = attribution._projected(asked, found)
    inverse = torch.linalg.inv(features.T @ features)
    each = (asked @ projection) @ inverse @ (features * (1 - own)[:, None]).T  # τ_i, [4, n]
    expected = torch.stack([each[:, inside].sum(1) for inside in members], 1)
    torch.testing.assert_close(told, expected, rtol=1e-6, atol=1e-9)


def test_a_solve_that_does_not_hold_is_told_and_is_no_number(model: Fitted):
    impossible = replace(SETTINGS, tolerance=1e-12, iterations=1)
    found = attribution.run_attributions(fitted=model, parts=PARTS, settings=impossible, seed=0)
    assert set(found["refused"]) == {"0.02", "0.2"}
    assert all("residual" in why for why in found["refused"].values())
    assert "hessian_sample" not in found["foretold"]
    assert {"newton", "newton_sample"} <= set(found["foretold"])
    assert found["damping"] == 0.02


def test_the_damping_grows_until_the_hessian_holds(model: Fitted, monkeypatch: pytest.MonkeyPatch):
    """A curvature lower by 1 than the Gauss-Newton matrix is indefinite up to a damping of 1."""
    made = curvature.gauss_newton_operator

    def lowered(objective: curvature.Objective, *, index: torch.Tensor) -> Operator:
        return lambda v: made(objective, index=index)(v) - v

    monkeypatch.setattr(curvature, "hessian_operator", lowered)
    settings = replace(SETTINGS, dampings=(0.1, 3.0, 30.0))
    found = attribution.run_attributions(fitted=model, parts=PARTS, settings=settings, seed=0)
    assert list(found["refused"]) == ["0.1"]
    assert "not positive definite" in found["refused"]["0.1"]
    assert found["damping"] == 3.0
    # both of the sample have that damping, so that they differ in the curvature alone
    plain = attribution.run_attributions(
        fitted=model, parts=PARTS, settings=replace(settings, dampings=(4.0,)), seed=0
    )
    told = found["foretold"]
    torch.testing.assert_close(
        told["newton_sample"], plain["foretold"]["hessian_sample"], rtol=1e-2, atol=1e-5
    )


def test_models_of_a_part_never_see_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    data = lines(tmp_path / "dataset.npz")
    seen = []
    fit = attribution.train

    def spy(dataset: datasets.Dataset, **how: object) -> tuple:
        seen.append((how["request"], how["seed"]))
        return fit(dataset, **how)

    monkeypatch.setattr(attribution, "train", spy)
    found = attribution.run_part(
        data=data, model="compact", width=0.25, recipe=Recipe(1, 20, 0.01, l2=RECIPE.l2),
        parts=PARTS, number=1003,
    )  # fmt: skip
    assert found["margins"].shape == (2, 20)
    assert [request for request, _ in seen] == [PARTS.left_out(1003, 200)] * 2
    assert len({seed for _, seed in seen}) == 2
    assert seen[0][0].size == 100
    assert not torch.equal(*found["margins"])


def test_queries_are_the_same_for_all_and_there(tmp_path: Path):
    dataset = datasets.load(lines(tmp_path / "dataset.npz"))
    one, other = (PARTS.asked(dataset)[0] for _ in range(2))
    assert torch.equal(one, other)
    with pytest.raises(ValueError, match=r"queries=99999: there are \d+ test images"):
        Parts(6, 0.5, 2, 99999).asked(dataset)


# ------------------------------------------------------------------------------------ the score


def test_the_score_is_spearmans_over_the_parts():
    rng = np.random.default_rng(0)
    foretold, actual = rng.normal(size=(2, 30, 4))
    expected = [spearmanr(a, b).statistic for a, b in zip(foretold.T, actual.T, strict=True)]
    assert attribution.scores(foretold, actual) == pytest.approx(expected)
    assert attribution.scores(actual**3, actual) == pytest.approx(np.ones(4))
    assert np.isnan(attribution.scores(np.ones((30, 4)), actual)).all()


def test_the_interval_covers_what_parts_and_queries_leave_open():
    rng = np.random.default_rng(1)
    actual = rng.normal(size=(40, 50))
    foretold = actual + rng.normal(size=(40, 50))
    mean, low, high = attribution.interval(foretold, actual, draws=200)
    assert low < mean < high
    assert low > 0.5
    assert high < 0.85
    few = attribution.interval(foretold[:8], actual[:8], draws=200)
    assert few[2] - few[1] > 1.5 * (high - low)


def test_the_ceiling_is_what_noise_leaves_possible():
    """With true values of variance 1 and noise of variance 4, five trainings have reliability 5/9."""
    rng = np.random.default_rng(2)
    true = rng.normal(size=(400, 1, 40))
    said = true + 2 * rng.normal(size=(400, 5, 40))
    assert attribution.ceiling(said) == pytest.approx((5 / 9) ** 0.5, abs=0.03)
    reached = np.nanmean(attribution.scores(true[:, 0], said.mean(1)))
    assert attribution.ceiling(said) == pytest.approx(reached, abs=0.03)
    assert attribution.ceiling(rng.normal(size=(3, 2, 5)) * [[[1], [-1]]]) >= 0
    foretold, actual = attribution.single_training(said)
    assert np.nanmean(attribution.scores(foretold, actual)) < reached


def test_margins_are_differentiable_item_by_item():
    logits = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1, 2, 3, 0, 1])
    p = logits.double().softmax(1).gather(1, labels[:, None])[:, 0]
    torch.testing.assert_close(margins(logits, labels), (p / (1 - p)).log(), rtol=1e-6, atol=1e-6)
    each = torch.vmap(lambda z, y: margins(z[None], y[None])[0])(logits, labels)
    torch.testing.assert_close(each, margins(logits, labels))


def test_attributions_are_compared_alone_and_together():
    rng = np.random.default_rng(3)
    said = torch.tensor(rng.normal(size=(30, 1, 20)) + rng.normal(size=(30, 4, 20)))
    actual = said.mean(1)
    foretold = {
        seed: {"newton": actual + torch.tensor(rng.normal(size=(30, 20))), "dot": -actual}
        for seed in range(4)
    }
    foretold[2]["trak"] = actual  # one model alone has it: no row
    table = attribution.compared(foretold, said, draws=50)
    assert table.index.to_list() == ["dot", "newton", "training"]
    assert table.loc["dot", ["alone", "score"]].to_list() == pytest.approx([-1, -1])
    newton = table.loc["newton"]
    assert newton["models"] == 4
    assert newton["lowest"] <= newton["alone"] <= newton["highest"] < newton["score"]
    assert newton["low"] < newton["score"] < newton["high"]
    single = attribution.interval(*attribution.single_training(said.numpy()), draws=50)
    assert table.loc["training", "score"] == pytest.approx(single[0])
