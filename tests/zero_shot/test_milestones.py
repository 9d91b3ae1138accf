"""What the curves say: milestones of made curves, and claims with known answers."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import ttest_1samp

from unlearnlib.data.requests import Classes
from unlearnlib.zero_shot import milestones


def curve(retain: list[float], forget: list[float], **keys: object) -> pd.DataFrame:
    at = range(10, 10 * len(retain) + 1, 10)
    table = pd.DataFrame({"pseudo_batch": at, "retain_accuracy": retain, "forget_accuracy": forget})
    return table.assign(**({"method": "gkt", "seed": 0, "forget_classes": "0"} | keys))


COLLAPSING = curve([40, 60, 92, 98, 98.5], [0, 0, 1, 30, 80])


def test_a_run_is_summed_up():
    found = milestones.of_run(COLLAPSING)
    assert (found["to 50 %"], found["to 90 %"], found["to 97 %"]) == (20, 30, 40)
    assert found["collapse"] == 50
    assert (found["best"], found["best at"]) == (92, 30)
    assert (found["last retain"], found["last forget"]) == (98.5, 80)


def test_what_never_came_is_no_number():
    found = milestones.of_run(curve([10, 20], [5, 5]))
    assert np.isnan([found["to 50 %"], found["collapse"], found["best"], found["best at"]]).all()


def test_runs_are_summed_up_by_method_seed_and_classes():
    parts = [COLLAPSING, curve([60], [0], seed=1), curve([70], [0], forget_classes="7")]
    found = milestones.of_all(pd.concat(parts, ignore_index=True))
    assert found[["seed", "forget_classes"]].to_numpy().tolist() == [[0, "0"], [1, "0"], [0, "7"]]
    assert found["last retain"].tolist() == [98.5, 60, 70]


def test_differences_are_paired_by_seed():
    table = pd.DataFrame(
        {"method": list("aabb"), "seed": [0, 1, 1, 0], "value": [5.0, np.nan, 1.0, 2.0]}
    )
    options = {"method": "a", "reference": "b", "value": "value"}
    assert milestones.paired(table, **options).to_dict() == {0: 3.0}
    assert milestones.paired(table, **options, never=9.0).to_dict() == {0: 3.0, 1: 8.0}


def test_claims_get_a_one_sided_test_and_a_verdict():
    found = milestones.claims(
        {
            "down": ([-5.0, -5.2, -4.9, -5.1], -1),
            "wrong": ([5.0, 5.2, 4.9, 5.1], -1),
            "open": ([-1.0, 2.0, -3.0, 0.5], -1),
            "alone": ([-4.0], -1),
            "alike": ([2.0, 2.0, 2.0], 1),
        }
    )
    assert found["verdict"].to_dict() == {
        "down": "holds", "wrong": "reverses", "open": "not shown", "alone": "not shown",
        "alike": "holds",
    }  # fmt: skip
    expected = ttest_1samp([-5.0, -5.2, -4.9, -5.1], 0, alternative="less").pvalue
    assert found.loc["down", "p"] == pytest.approx(expected)
    assert (found["p_holm"] >= found["p"].fillna(1)).all()
    assert found["n"].to_dict()["alone"] == 1


@pytest.mark.parametrize(
    ("percent", "expected"), [(76, 0.5), (95, 15.5), (99, np.nan), (30, np.nan), (98, 30)]
)
def test_forget_accuracy_is_read_at_equal_retain_accuracy(percent: float, expected: float):
    found = milestones.at_equal(COLLAPSING, percent)
    assert found == pytest.approx(expected, nan_ok=True)


def test_what_a_student_knows_of_a_class_stands_beside_what_it_was_shown():
    """Class 1 is to go, and the last snapshot has not forgotten it."""
    accepted = [[8, 0, 2], [9, 0, 1], [0, 0, 99], [0, 0, 99]]  # by pseudo-batch and class
    first = torch.tensor([[5, 5, 0], [9, 0, 1], [0, 0, 10]])  # a row a true class
    second = torch.tensor([[9, 0, 1], [10, 0, 0], [6, 0, 4]])
    collapsed = torch.tensor([[10, 0, 0], [0, 10, 0], [0, 0, 10]])
    counts, request = [first, second, collapsed], Classes([1])
    found = milestones.by_class(accepted, [1, 2, 4], [second, first, collapsed], request)
    assert found.index.to_list() == [0, 2]
    # of those that have forgotten, one knows 13 of the 20 others, and the next 15
    assert found["share"].to_list() == pytest.approx([85, 15])
    assert found["accuracy"].to_list() == pytest.approx([50, 100])
    again = milestones.by_class(accepted, [1, 2, 4], counts, request)
    assert again["share"].to_list() == pytest.approx([80, 20])
    assert milestones.by_class(accepted, [4], [collapsed], request).empty
