"""Scaling: scales multiply the update, and lies are told at random."""

from dataclasses import asdict

import pytest
import torch
from group_tasks import COHERENT, fitted

from unlearnlib.groups import estimators, scaling
from unlearnlib.groups.estimators import Fitted
from unlearnlib.groups.scaling import Settings
from unlearnlib.influence.estimators import ESTIMATORS, Removal, apply_update
from unlearnlib.measures import accuracy

FIRST = ESTIMATORS["first_order"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Fitted:
    return fitted(tmp_path_factory.mktemp("scaling"))


def test_scales_are_those_of_the_deck_and_longer_ones():
    found = Settings(divisors=4, factors=(2, 10.0), clean_items=1).scales
    assert found == [0.0, 0.25, 1 / 3, 0.5, 1.0, 2.0, 10.0]
    assert {type(scale) for scale in found} == {float}


@pytest.mark.parametrize("factors", [(2.0, 2.0), (10.0, 2.0)])
def test_factors_that_do_not_ascend_are_refused(factors: tuple[float, ...]):
    with pytest.raises(ValueError, match=r"factors=.*ascending order"):
        Settings(divisors=1, factors=factors, clean_items=1)


def test_scales_multiply_the_update(model: Fitted):
    settings = Settings(divisors=1, factors=(50.0,), clean_items=50)
    rows = scaling.run(
        fitted=model, requests=[COHERENT], estimator=FIRST, settings=settings, seed=0
    )["rows"]
    assert [row["scale"] for row in rows] == [0.0, 1.0, 50.0]
    dataset, objective = estimators.objective_of(model)
    group = COHERENT.positions(objective.targets)
    update = FIRST.update(Removal(objective, group, estimators.system_of(model)))
    for row in rows:
        moved = apply_update(objective.network, update.delta, row["scale"])
        expected = accuracy.measure(moved, dataset, group)
        assert {key: row[key] for key in expected} == pytest.approx(expected, rel=1e-5)
        assert asdict(COHERENT).items() <= row.items()
    assert rows[2]["self_loss"] > rows[1]["self_loss"] > rows[0]["self_loss"]
    assert rows[0]["clean_accuracy"] > 90 > rows[2]["self_accuracy"]
    assert rows[0]["relabelled_accuracy"] < 20


def test_relabelled_items_have_another_label_each_equally_likely():
    labels = torch.zeros(3000, dtype=torch.long)
    found = scaling.relabel(labels, classes=4, seed=0)
    counts = found.bincount(minlength=4)
    assert counts[0] == 0
    assert (counts[1:] > 900).all()
    assert torch.equal(found, scaling.relabel(labels, classes=4, seed=0))
