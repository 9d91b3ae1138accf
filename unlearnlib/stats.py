"""Summarise repeats: means with 95 % intervals."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from statsmodels.stats.weightstats import DescrStatsW


def mean_interval(values: Sequence[float], *, level: float = 0.95) -> tuple[float, float, float]:
    """Compute the mean of repeats and its two-sided Student t interval.

    Args:
        values: one number a repeat, n of them.
        level: coverage.

    Returns:
        mean, lower and upper limit; the limits are NaN where n is 1.

    Raises:
        ValueError: no values.
    """
    if len(values) == 0:
        raise ValueError("no repeats to summarise; run at least one seed")
    described = DescrStatsW(np.asarray(values, dtype=float))
    if len(values) == 1:
        return float(described.mean), float("nan"), float("nan")
    low, high = described.tconfint_mean(alpha=1 - level)
    return float(described.mean), float(low), float(high)


def summarise(table: pd.DataFrame, *, by: str, value: str) -> pd.DataFrame:
    """Summarise a column by group: columns ``mean``, ``low``, ``high``, ``n``, in order of rows."""
    rows = {
        name: (*mean_interval(group.dropna().to_list() or [np.nan]), group.count())
        for name, group in table.groupby(by, sort=False)[value]
    }
    return pd.DataFrame.from_dict(rows, orient="index", columns=["mean", "low", "high", "n"])


def with_interval(mean: float, low: float, high: float, *, digits: int = 2) -> str:
    """Write a mean with the half-width of its interval, such as ``97.12 ± 0.40``."""
    if np.isnan(mean):
        return "-"
    return f"{mean:.{digits}f}" + ("" if np.isnan(low) else f" ± {(high - low) / 2:.{digits}f}")
