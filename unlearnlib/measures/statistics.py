"""Summarise repeats: means with 95 % intervals, and mixed models with corrected tests."""

import warnings
from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.stats import t as student
from statsmodels.formula import api as smf
from statsmodels.regression.linear_model import RegressionResultsWrapper
from statsmodels.regression.mixed_linear_model import MixedLMResultsWrapper
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.weightstats import DescrStatsW

from unlearnlib.measures.equivalence import equivalence

Fitted = MixedLMResultsWrapper | RegressionResultsWrapper


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


def mixed_model(table: pd.DataFrame, formula: str, *, groups: Sequence[str]) -> Fitted:
    """Fit a linear model with a random intercept for each combination of some columns, by REML.

    Observations of one combination count as repeats of their residual, so what is nested in a
    combination (sizes drawn from one another) should be averaged before.

    Where the intercepts do not vary, their variance is zero, which can make the equations singular:
    then the plain linear model is fitted, which is the same model at that boundary.

    Args:
        table: one row an observation.
        formula: of the fixed effects, such as ``"value ~ percent"``.
        groups: columns whose combinations have something in common, such as label and seed.

    Raises:
        ValueError: fewer than two combinations, so that no intercept can vary.
    """
    combination = table[list(groups)].astype(str).agg(" ".join, axis=1)
    if combination.nunique() < 2:
        raise ValueError(f"one combination of {list(groups)} alone; run more seeds or labels")
    with warnings.catch_warnings():
        # an intercept that does not vary lies on the boundary: the model is then the plain one
        warnings.simplefilter("ignore")
        model = smf.mixedlm(formula, table.assign(combination=combination), groups="combination")
        try:
            return model.fit(reml=True, method=["lbfgs", "powell"])
        except np.linalg.LinAlgError:
            return smf.ols(formula, table).fit()


def size_effects(table: pd.DataFrame, *, values: Sequence[str]) -> pd.DataFrame:
    """Estimate how scores move with the share removed, for each mode, with label and seed as groups.

    Args:
        table: with ``mode``, ``label``, ``seed``, ``percent`` and the scores.
        values: columns of scores.

    Returns:
        a row for each mode with several sizes and each score: ``groups`` (how many), ``effect`` of ten percent more, its
        95 % interval ``low`` and ``high`` (Student's t), ``p`` and ``p_holm``, corrected over all rows.
    """
    rows = []
    for mode, cell in table.groupby("mode"):
        for value in values if cell["percent"].nunique() > 1 else []:
            scaled = cell.assign(value=cell[value], share=cell["percent"] / 10)
            fitted = mixed_model(scaled, "value ~ share", groups=["label", "seed"])
            rows.append(
                {"mode": mode, "score": value} | _effect(fitted, "share", cell, ["label", "seed"])
            )
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


def _p_of_zero(gaps: pd.Series) -> float:
    """Test whether a mean is zero; NaN for one value, 0 or 1 for values that do not vary."""
    if len(gaps) < 2:
        return float("nan")
    described = DescrStatsW(gaps.to_numpy())
    if described.std_mean < 1e-12 * max(abs(described.mean), 1e-300):
        return float(described.mean == 0)
    return float(described.ttest_mean()[1])


def _p_of_margin(gaps: pd.Series, margin: float) -> float:
    return equivalence(gaps, margin=margin).p if len(gaps) > 1 else float("nan")


def _effect(
    fitted: Fitted, name: str, table: pd.DataFrame, groups: Sequence[str]
) -> dict[str, float]:
    """Read a coefficient with Student's t at one degree of freedom less than there are groups.

    The normal quantiles of the fit are too narrow for a handful of groups.
    """
    count = len(table[list(groups)].drop_duplicates())
    effect, error = fitted.params[name], fitted.bse[name]
    half = student.ppf(0.975, count - 1) * error
    p = 2 * student.sf(abs(effect / error), count - 1)
    return {"groups": count, "effect": effect, "low": effect - half, "high": effect + half, "p": p}


def holm(table: pd.DataFrame) -> pd.DataFrame:
    """Add a column ``p_holm``, the column ``p`` corrected over all rows; NaN counts as 1."""
    return table.assign(p_holm=multipletests(table["p"].fillna(1.0), method="holm")[1])
