"""Equivalence tests against their intervals and simulations, rankings against Demšar's example."""

import math

import numpy as np
import pandas as pd
import pytest

from unlearnlib.measures import equivalence as eq


@pytest.mark.parametrize("shift", [0.0, 0.6, 0.9, 2.0])
def test_a_test_passes_where_the_interval_lies_within_the_margin(shift: float):
    values = np.random.default_rng(0).normal(shift, 0.3, 8)
    found = eq.equivalence(values, margin=1.0)
    assert (found.p < 0.05) == (found.low > -1 and found.high < 1)
    assert found.mean == pytest.approx(values.mean())


def test_a_difference_that_is_not_significant_is_not_equivalence():
    values = [-6.0, 0.1, 5.0]  # about zero, and says nothing
    assert eq.equivalence(values, margin=1.0).p > 0.05


def test_differences_that_do_not_vary():
    assert eq.equivalence([0.0, 0.0, 0.0], margin=1.0).p == 0
    assert eq.equivalence([2.0, 2.0], margin=1.0).p == 1


@pytest.mark.parametrize(("n", "mean"), [(4, 0.0), (10, 0.4)])
def test_power_is_how_often_a_simulation_passes(n: int, mean: float):
    draws = np.random.default_rng(0).normal(mean, 0.5, (2000, n))
    passed = np.mean([eq.equivalence(row, margin=1.0).p < 0.05 for row in draws])
    assert eq.power(0.5, n=n, margin=1.0, mean=mean) == pytest.approx(passed, abs=0.03)


def test_seeds_needed_is_the_first_number_with_enough_power():
    n = eq.seeds_needed(1.0, margin=1.0)
    assert eq.power(1.0, n=int(n), margin=1.0) >= 0.8 > eq.power(1.0, n=int(n) - 1, margin=1.0)
    assert eq.seeds_needed(1.0, margin=1.0, mean=1.0) == math.inf
    assert eq.seeds_needed(0.0, margin=1.0) == eq.seeds_needed(1e-16, margin=1.0) == 2
    assert eq.seeds_needed(100.0, margin=1.0, most=20) == math.inf


def test_ranking_of_demsars_example():
    # Demšar 2006, table 6: 4 classifiers on 14 data sets, mean ranks 3.143, 2.000, 2.893, 1.964
    table = """.763 .768 .771 .798 .599 .591 .590 .569 .954 .971 .968 .967 .628 .661 .654 .657
    .882 .888 .886 .898 .936 .931 .916 .931 .661 .668 .609 .685 .583 .583 .563 .625 .775 .838 .866
    .875 1.000 1.000 1.000 1.000 .940 .962 .965 .962 .619 .666 .614 .669 .972 .981 .9751 .975 .957
    .978 .946 .970"""
    accuracy = np.array(table.split(), dtype=float).reshape(14, 4)
    scores = pd.DataFrame(-accuracy, columns=["C4.5", "C4.5+m", "C4.5+cf", "C4.5+m+cf"])
    found = eq.ranking(scores)
    expected = {"C4.5": 3.143, "C4.5+m": 2.000, "C4.5+cf": 2.893, "C4.5+m+cf": 1.964}
    assert found.ranks.to_dict() == pytest.approx(expected, abs=0.001)
    assert found.critical_difference == pytest.approx(2.569 * math.sqrt(4 * 5 / (6 * 14)), abs=1e-3)
    assert found.blocks == 14
    assert found.p < 0.05


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: eq.equivalence([1.0], margin=1.0), "at least two"),
        (lambda: eq.equivalence([1.0, math.nan], margin=1.0), "finite"),
        (lambda: eq.equivalence([1.0, 2.0], margin=0.0), "above 0"),
        (lambda: eq.power(1.0, n=1, margin=1.0), "at least 2 seeds"),
        (lambda: eq.ranking(pd.DataFrame({"a": [1, 2], "b": [1, 2]})), "at least three methods"),
        (
            lambda: eq.ranking(pd.DataFrame({"a": [1, 2], "b": [1, None], "c": [1, 2]})),
            "1 scores missing",
        ),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
