"""Summaries: intervals against scipy, and no interval where there is nothing to tell it from."""

import math

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from unlearnlib import stats

VALUES = [97.1, 96.2, 98.4, 97.7]


@pytest.mark.parametrize("level", [0.95, 0.5])
@pytest.mark.parametrize("count", [2, 4])
def test_mean_interval_is_students(count: int, level: float):
    chosen = VALUES[:count]
    expected = scipy.stats.t.interval(
        level, count - 1, loc=np.mean(chosen), scale=scipy.stats.sem(chosen)
    )
    mean, *interval = stats.mean_interval(chosen, level=level)
    assert mean == pytest.approx(np.mean(chosen))
    assert interval == pytest.approx(expected)


def test_the_level_is_95_percent():
    assert stats.mean_interval(VALUES) == stats.mean_interval(VALUES, level=0.95)


@pytest.mark.filterwarnings("error")
def test_one_repeat_has_no_interval():
    mean, low, high = stats.mean_interval([97.1])
    assert mean == 97.1
    assert math.isnan(low)
    assert math.isnan(high)


def test_equal_repeats_have_an_interval_of_no_width():
    assert stats.mean_interval([2.0, 2.0, 2.0]) == pytest.approx((2, 2, 2))


def test_no_repeats_are_an_error():
    with pytest.raises(ValueError, match="no repeats to summarise; run at least one seed"):
        stats.mean_interval([])


def test_summarise_keeps_the_order_of_rows_and_leaves_gaps_out():
    table = pd.DataFrame(
        {
            "method": ["retrain", "gkt", "gkt", "noise", "retrain", "gkt"],
            "accuracy": [99.0, 97.0, 95.0, math.nan, 98.0, math.nan],
            "seed": [0, 0, 1, 0, 1, 2],
        }
    )
    found = stats.summarise(table, by="method", value="accuracy")
    assert list(found.index) == ["retrain", "gkt", "noise"]
    assert list(found.columns) == ["mean", "low", "high", "n"]
    assert found["n"].to_list() == [2, 2, 0]
    half = scipy.stats.t.ppf(0.975, 1) * scipy.stats.sem([99, 98])
    assert found.loc["retrain"].to_list() == pytest.approx([98.5, 98.5 - half, 98.5 + half, 2])
    assert found.loc["gkt", "mean"] == 96
    assert found.loc["noise", ["mean", "low", "high"]].isna().all()


@pytest.mark.parametrize(
    ("numbers", "digits", "expected"),
    [
        ((97.123, 96.723, 97.523), 2, "97.12 ± 0.40"),
        ((97.123, 96.723, 97.523), 0, "97 ± 0"),
        ((97.125, math.nan, math.nan), 1, "97.1"),
        ((math.nan, math.nan, math.nan), 2, "-"),
    ],
)
def test_a_mean_is_written_with_half_its_interval(numbers: tuple, digits: int, expected: str):
    assert stats.with_interval(*numbers, digits=digits) == expected
