"""Summaries: intervals against scipy, and no interval where there is nothing to tell it from."""

import math

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from unlearnlib.measures import statistics

VALUES = [97.1, 96.2, 98.4, 97.7]


@pytest.mark.parametrize("level", [0.95, 0.5])
@pytest.mark.parametrize("count", [2, 4])
def test_mean_interval_is_students(count: int, level: float):
    chosen = VALUES[:count]
    expected = scipy.stats.t.interval(
        level, count - 1, loc=np.mean(chosen), scale=scipy.stats.sem(chosen)
    )
    mean, *interval = statistics.mean_interval(chosen, level=level)
    assert mean == pytest.approx(np.mean(chosen))
    assert interval == pytest.approx(expected)


def test_the_level_is_95_percent():
    assert statistics.mean_interval(VALUES) == statistics.mean_interval(VALUES, level=0.95)


@pytest.mark.filterwarnings("error")
def test_one_repeat_has_no_interval():
    mean, low, high = statistics.mean_interval([97.1])
    assert mean == 97.1
    assert math.isnan(low)
    assert math.isnan(high)


def test_equal_repeats_have_an_interval_of_no_width():
    assert statistics.mean_interval([2.0, 2.0, 2.0]) == pytest.approx((2, 2, 2))


def test_no_repeats_are_an_error():
    with pytest.raises(ValueError, match="no repeats to summarise; run at least one seed"):
        statistics.mean_interval([])


def test_summarise_keeps_the_order_of_rows_and_leaves_gaps_out():
    table = pd.DataFrame(
        {
            "method": ["retrain", "gkt", "gkt", "noise", "retrain", "gkt"],
            "accuracy": [99.0, 97.0, 95.0, math.nan, 98.0, math.nan],
            "seed": [0, 0, 1, 0, 1, 2],
        }
    )
    found = statistics.summarise(table, by="method", value="accuracy")
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
    assert statistics.with_interval(*numbers, digits=digits) == expected


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1.0, 3.0], "2.00 ± 12.71"),  # Student's t at one degree of freedom, 12.706, times 1
        ([1.0, math.nan, 3.0], "2.00 ± 12.71"),
        ([2.0, 2.0, 2.0], "2.00 ± 0.00"),
        ([2.5], "2.50"),
        ([math.nan], "-"),
        ([], "-"),
    ],
)
def test_repeats_are_written_as_mean_and_half_the_interval(values: list, expected: str):
    assert statistics.written(values) == expected


def test_repeats_are_written_with_as_many_digits_as_asked():
    assert statistics.written([1.0, 3.0], digits=0) == "2 ± 13"


# ------------------------------------------------------------------------------- repeats


def repeats(slope: float, *, noise: float = 0.1, seed: int = 0) -> pd.DataFrame:
    """Draw scores that rise with the share removed, from a level of their own in each repeat."""
    randomness = np.random.default_rng(seed)
    rows = [
        {"mode": "coherent", "label": label, "seed": s, "percent": percent, "score": 0.0}
        for label in ("0", "8")
        for s in range(8)
        for percent in (10.0, 20.0, 40.0, 60.0)
    ]
    table = pd.DataFrame(rows)
    level = table.groupby(["label", "seed"]).ngroup() * 1.0
    table["score"] = level + slope * table["percent"] + noise * randomness.normal(size=len(table))
    return table


def test_the_size_effect_is_the_mean_slope_of_the_repeats_whatever_their_levels():
    table = repeats(0.03)
    found = statistics.size_effects(table, values=["score"])
    assert found["label"].tolist() == ["0", "8"]
    cell = table[table["label"] == "8"]
    slopes = [scipy.stats.linregress(r["percent"] / 10, r["score"]).slope
              for _, r in cell.groupby("seed")]  # fmt: skip
    test = scipy.stats.ttest_1samp(slopes, 0)
    row = found.iloc[1]
    assert row["n"] == 8
    assert row["effect"] == pytest.approx(np.mean(slopes))
    assert row["p"] == pytest.approx(test.pvalue)
    assert row[["low", "high"]].tolist() == pytest.approx(list(test.confidence_interval()))
    assert (found["p_holm"] < 1e-4).all()
    assert (statistics.size_effects(repeats(0.0), values=["score"])["p_holm"] > 0.01).all()


def test_a_mode_of_one_size_has_no_size_effect():
    table = repeats(0.03)
    alone = table[table["percent"] == 10.0].assign(mode="random")
    found = statistics.size_effects(pd.concat([table, alone]), values=["score"])
    assert set(found["mode"]) == {"coherent"}


def test_levels_are_compared_with_the_reference_by_repeat():
    randomness = np.random.default_rng(1)
    levels = {"random": 0.0, "near": 0.5, "far": 0.0}
    rows = [
        {"mode": "coherent", "label": label, "seed": seed, "order": order, "score": seed + shift}
        for label in ("0", "8")
        for seed in range(8)
        for order, shift in levels.items()
    ]
    table = pd.DataFrame(rows)
    table["score"] += 0.05 * randomness.normal(size=len(table))
    options = {"value": "score", "by": "order", "within": ["mode"]}
    found = statistics.paired(table, reference="random", margin=0.2, **options).set_index("order")
    wide = table.groupby(["seed", "order"])["score"].mean().unstack()
    gaps = wide["near"] - wide["random"]  # labels of a seed are one repeat
    test = scipy.stats.ttest_1samp(gaps, 0)
    assert found.loc["near", "n"] == 8
    assert found.loc["near", "effect"] == pytest.approx(gaps.mean())
    assert found.loc["near", "p"] == pytest.approx(test.pvalue)
    assert found.loc["near", ["low", "high"]].tolist() == pytest.approx(
        list(test.confidence_interval())
    )
    assert found.loc["near", "p_holm"] < 1e-4 < 0.05 < found.loc["far", "p_holm"]
    assert found.loc["far", "p_equivalent"] < 1e-4 < 0.5 < found.loc["near", "p_equivalent"]
    assert "p_equivalent" not in statistics.paired(table, reference="far", **options)
    with pytest.raises(ValueError, match="no order 'absent'"):
        statistics.paired(table, reference="absent", **options)


def test_a_single_repeat_has_no_test_and_gaps_that_do_not_vary_are_sure():
    rows = {"mode": ["a"] * 4, "seed": [0, 0, 1, 1], "x": ["r", "s"] * 2, "score": [1.0, 2.0] * 2}
    options = {"value": "score", "by": "x", "reference": "r", "within": ["mode"]}
    assert statistics.paired(pd.DataFrame(rows), **options)["p"].tolist() == [0.0]
    alone = statistics.paired(pd.DataFrame(rows)[:2], margin=1.0, **options).iloc[0]
    assert (alone["n"], alone["effect"]) == (1, 1.0)
    assert np.isnan([alone["low"], alone["p"]]).all()
    assert alone["p_holm"] == 1.0


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([98.0, 99.0], "98.50 [92.15, 100.00]"),
        ([0.0, 1.0], "0.50 [0.00, 6.85]"),
        ([97.0], "97.00"),
        ([float("nan")], "-"),
    ],
)
def test_no_interval_of_a_percentage_leaves_0_and_100(values: list[float], expected: str):
    assert statistics.written_percent(values) == expected


def test_a_count_of_none_is_written_with_its_limit():
    assert statistics.written_share([0.0] * 3, hits=0, total=2940) == "≤ 0.1 % (0 of 2,940)"
    assert scipy.stats.binom.cdf(0, 2940, 1 - 0.05 ** (1 / 2940)) == pytest.approx(0.05)
    assert statistics.written_share([0.0, 2.0], hits=1, total=100) == "1.00 [0.00, 13.71]"
