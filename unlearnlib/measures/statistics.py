"""Summarise repeats: means with 95 % intervals, and paired differences with corrected tests."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.weightstats import DescrStatsW

from unlearnlib.measures.equivalence import equivalence


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


def written(values: Sequence[float], *, digits: int = 2) -> str:
    """Write repeats as their mean and half its 95 % interval; ``-`` where there is none."""
    found = [value for value in values if not np.isnan(value)]
    return with_interval(*mean_interval(found), digits=digits) if found else "-"


def written_percent(values: Sequence[float], *, digits: int = 2) -> str:
    """Write repeats of a percentage as their mean and 95 % interval, cut to 0 and 100.

    Such as ``98.06 [97.44, 98.68]``; without brackets for one repeat, ``-`` for none.
    """
    found = [value for value in values if not np.isnan(value)]
    if not found:
        return "-"
    mean, low, high = mean_interval(found)
    if np.isnan(low):
        return f"{mean:.{digits}f}"
    return f"{mean:.{digits}f} [{max(low, 0):.{digits}f}, {min(high, 100):.{digits}f}]"


def written_share(values: Sequence[float], *, hits: int, total: int) -> str:
    """Write a percentage that may be zero: a count of none is no proof that there is none.

    Args:
        values: percentages, one a repeat.
        hits: items that count, all repeats together.
        total: items, all repeats together.

    Returns:
        ``≤ 0.1 % (0 of 2,940)`` where none counts, with the upper 95 % limit of Clopper and Pearson
        (1934), one-sided; else what `written_percent` does.
    """
    if hits:
        return written_percent(values)
    limit = 100 * (1 - 0.05 ** (1 / total))
    return f"≤ {limit:.2g} % (0 of {total:,})"


def size_effects(table: pd.DataFrame, *, values: Sequence[str]) -> pd.DataFrame:
    """Estimate how scores move with the share removed: a slope for each repeat, and their mean.

    Sizes of one repeat are nested in one another and share a model; the slope takes them together, so
    that a repeat counts once. Labels stay apart.

    Args:
        table: with ``mode``, ``label``, ``seed``, ``percent`` and the scores.
        values: columns of scores.

    Returns:
        a row for each mode and label with several sizes and each score: ``n`` repeats, ``effect`` of
        ten percent more by least squares, the 95 % interval of its mean, ``low`` to ``high``, ``p``
        (Student's t) and ``p_holm``, corrected over all rows.
    """
    rows = []
    for (mode, label), cell in table.groupby(["mode", "label"]):
        for value in values if cell["percent"].nunique() > 1 else []:
            slopes = [
                np.polynomial.polynomial.polyfit(repeat["percent"] / 10, repeat[value], 1)[1]
                for _, repeat in cell.groupby("seed")
            ]
            effect, low, high = mean_interval(slopes)
            told = {"n": len(slopes), "effect": effect, "low": low, "high": high}
            told["p"] = _p_of_zero(slopes)
            rows.append({"mode": mode, "label": label, "score": value} | told)
    return holm(pd.DataFrame(rows))


def paired(
    table: pd.DataFrame,
    *,
    value: str,
    by: str,
    reference: str,
    within: Sequence[str],
    margin: float | None = None,
    unit: str = "seed",
) -> pd.DataFrame:
    """Compare each level of a factor with a reference level, paired by what is a repeat.

    Whatever else there is of one repeat (labels that share a model, sizes nested in one another) is
    averaged first: it is not independent.

    Args:
        table: one row an observation.
        value: column of the score.
        by: column of the factor.
        reference: its level to compare with.
        within: columns whose combinations are analysed apart.
        margin: difference that would not matter; for a test of equivalence (TOST).
        unit: column of the repeats.

    Returns:
        a row for each part and level: ``n`` pairs; ``effect``, the mean difference to the reference,
        with its 95 % interval ``low`` to ``high`` and ``p`` (Student's t); ``p_holm``, corrected over
        all rows; and with a margin ``p_equivalent``, corrected too.

    Raises:
        ValueError: a part without the reference.
    """
    rows = []
    for part, cell in table.groupby(list(within)):
        means = cell.pivot_table(index=unit, columns=by, values=value, sort=False)
        if reference not in means:
            raise ValueError(f"no {by} {reference!r} in {part} to compare with")
        for level in means.columns.drop(reference):
            gaps = (means[level] - means[reference]).dropna()
            effect, low, high = mean_interval(gaps)
            found = {"n": len(gaps), "effect": effect, "low": low, "high": high}
            found["p"] = _p_of_zero(gaps)
            if margin is not None:
                found["p_equivalent"] = _p_of_margin(gaps, margin)
            named = dict(zip(within, part, strict=True)) | {by: level, "reference": reference}
            rows.append(named | found)
    told = holm(pd.DataFrame(rows))
    if margin is not None:
        corrected = holm(told[["p_equivalent"]].rename(columns={"p_equivalent": "p"}))
        told["p_equivalent"] = corrected["p_holm"]
    return told


def _p_of_zero(gaps: Sequence[float]) -> float:
    """Test whether a mean is zero; NaN for one value, 0 or 1 for values that do not vary."""
    if len(gaps) < 2:
        return float("nan")
    described = DescrStatsW(np.asarray(gaps, dtype=float))
    if described.std_mean < 1e-12 * max(abs(described.mean), 1e-300):
        return float(described.mean == 0)
    return float(described.ttest_mean()[1])


def _p_of_margin(gaps: pd.Series, margin: float) -> float:
    return equivalence(gaps, margin=margin).p if len(gaps) > 1 else float("nan")


def holm(table: pd.DataFrame) -> pd.DataFrame:
    """Add a column ``p_holm``, the column ``p`` corrected over all rows; NaN counts as 1."""
    return table.assign(p_holm=multipletests(table["p"].fillna(1.0), method="holm")[1])
