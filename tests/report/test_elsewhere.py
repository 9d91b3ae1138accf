"""A finding holds on both data sets, on one, on neither, or cannot be told; and was predicted or not."""

from dataclasses import replace
from pathlib import Path

import pytest

from unlearnlib.pipeline.paths import root
from unlearnlib.report import elsewhere
from unlearnlib.report.elsewhere import PredictionError, beside, comparison
from unlearnlib.report.findings import FINDINGS, Estimate, Found

ABOVE = replace(FINDINGS["collapse"], side="above", bound=50)


def found(low: float, high: float, finding=ABOVE) -> Found:
    return Found(finding, Estimate((low + high) / 2, low, high, 3))


@pytest.mark.parametrize(
    ("here", "there", "expected"),
    [
        ((60, 70), (65, 75), "holds"),
        ((80, 90), (60, 70), "holds, weaker"),
        ((60, 70), (80, 90), "holds, stronger"),
        ((60, 70), (10, 20), "reverses"),
        ((10, 20), (60, 70), "reverses"),
        ((10, 20), (1, 30), "holds on neither"),
        ((60, 70), (40, 70), "cannot tell"),
        ((40, 60), (1, 2), "cannot tell"),
    ],
)
def test_what_becomes_of_a_finding(here: tuple, there: tuple, expected: str):
    assert comparison(found(*here), found(*there)) == expected


def test_weaker_is_nearer_to_the_bound_on_every_side():
    below = replace(ABOVE, side="below", bound=50)
    assert comparison(found(1, 2, below), found(30, 40, below)) == "holds, weaker"
    within = replace(ABOVE, side="within", bound=50)
    assert comparison(found(-2, 2, within), found(-40, -30, within)) == "holds, weaker"
    assert comparison(found(-40, -30, within), found(1, 2, within)) == "holds, stronger"
    assert comparison(found(1, 2), None) == comparison(None, found(1, 2)) == "not run"


def test_findings_stand_side_by_side_with_their_predictions():
    here = {"collapse": found(60, 70), "prior": found(60, 70, FINDINGS["prior"])}
    there = {"collapse": found(10, 20)}
    told = beside(here, there, {"collapse": ("does not hold", "a reason")})
    assert list(told.index) == ["collapse", "prior"]  # those that either has
    assert told.loc["collapse", "becomes"] == "reverses"
    assert told.loc["collapse", ["predicted", "because", "came true"]].tolist() == [
        "does not hold", "a reason", "yes"
    ]  # fmt: skip
    assert told.loc["prior", ["there", "becomes", "predicted", "came true"]].tolist() == [
        "not run", "not run", "-", "-"
    ]  # fmt: skip
    wrong = beside(here, there, {"collapse": ("holds", "a reason")})
    assert wrong.loc["collapse", "came true"] == "no"
    assert "n = 3" in told.loc["collapse", "here"]


def test_every_finding_was_predicted_with_a_reason():
    assert list(elsewhere.predictions(root() / "params" / "predictions.csv")) == list(FINDINGS)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("colapse,holds,x", "no finding 'colapse'"),
        ("collapse,perhaps,x", "has the verdict 'perhaps'; give one of"),
        ("collapse,holds,", "collapse has no `because`"),
    ],
)
def test_a_prediction_that_cannot_be_judged_is_refused(tmp_path: Path, row: str, message: str):
    (tmp_path / "predictions.csv").write_text(f"finding,verdict,because\n{row}\n")
    with pytest.raises(PredictionError, match=message):
        elsewhere.predictions(tmp_path / "predictions.csv")
