"""Is an unlearned model as good as a retrained one? Equivalence tests, power and rankings.

A difference that is not significant proves nothing: few seeds make every method pass. The two
one-sided tests turn the burden of proof around: a method passes where its difference to gold is
shown to be smaller than a margin that was stated beforehand.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import friedmanchisquare, nct, rankdata, studentized_range
from scipy.stats import t as student
from statsmodels.stats.weightstats import DescrStatsW


@dataclass(frozen=True)
class Equivalence:
    """Hold the result of two one-sided tests.

    Attributes:
        mean: of the differences.
        low: lower limit of their 1 - 2 alpha interval; equivalence is its lying within the margin.
        high: upper limit.
        p: the larger of the two p-values.
        n: differences.
    """

    mean: float
    low: float
    high: float
    p: float
    n: int


def equivalence(differences: Sequence[float], *, margin: float, alpha: float = 0.05) -> Equivalence:
    """Test whether a mean difference lies within ± margin (TOST, Schuirmann 1987), paired by seed.

    Differences that do not vary at all have no test; then p is 0 within the margin and 1 outside.

    Args:
        differences: unlearned minus retrained, one a seed.
        margin: the largest difference that does not matter, above 0.
        alpha: level of each test.

    Raises:
        ValueError: fewer than two differences, or no margin.
    """
    values = np.asarray(differences, dtype=float)
    if len(values) < 2 or not np.isfinite(values).all():
        raise ValueError(f"differences {list(differences)}: give at least two, all finite")
    if not margin > 0:
        raise ValueError(f"margin={margin}: state a difference above 0 that would not matter")
    described = DescrStatsW(values)
    if described.std_mean < 1e-12:
        inside = abs(described.mean) < margin
        return Equivalence(
            described.mean, described.mean, described.mean, float(not inside), len(values)
        )
    p, *_ = described.ttost_mean(-margin, margin)
    low, high = described.tconfint_mean(alpha=2 * alpha)
    return Equivalence(float(described.mean), float(low), float(high), float(p), len(values))


def power(
    deviation: float, *, n: int, margin: float, mean: float = 0.0, alpha: float = 0.05
) -> float:
    """Approximate how often the two one-sided tests pass (Phillips 1990, by non-central t).

    Args:
        deviation: standard deviation of a difference.
        n: differences.
        margin: as in `equivalence`.
        mean: true difference.
        alpha: level of each test.

    Returns:
        probability.

    Raises:
        ValueError: fewer than two differences.
    """
    if n < 2:
        raise ValueError(f"n={n}: a test needs at least 2 seeds")
    if abs(mean) >= margin:
        return alpha if deviation > 0 else 0.0
    if deviation < 1e-9 * margin:
        return 1.0
    error, critical = deviation / math.sqrt(n), student.ppf(1 - alpha, n - 1)
    below, above = (nct.sf(critical, n - 1, (margin + s * mean) / error) for s in (-1, 1))
    return float(max(0.0, below + above - 1))


def seeds_needed(
    deviation: float,
    *,
    margin: float,
    mean: float = 0.0,
    alpha: float = 0.05,
    wanted: float = 0.8,
    most: int = 1000,
) -> float:
    """Find the smallest number of seeds with which equivalence would be shown.

    Args:
        deviation: standard deviation of a difference.
        margin: as in `equivalence`.
        mean: true difference, in practice the observed one.
        alpha: level of each test.
        wanted: power.
        most: where to give up.

    Returns:
        a number from 2, or infinity: the difference is as large as the margin, or more than `most`
        seeds would be needed.
    """
    if abs(mean) >= margin:
        return math.inf
    enough = (
        n
        for n in range(2, most + 1)
        if power(deviation, n=n, margin=margin, mean=mean, alpha=alpha) >= wanted
    )
    return float(next(enough, math.inf))


@dataclass(frozen=True, eq=False)
class Ranking:
    """Hold mean ranks of methods over blocks, 1 the best.

    Attributes:
        ranks: mean rank by method, ascending.
        blocks: requests and seeds that every method served.
        p: of Friedman's test that all methods are alike.
        critical_difference: Nemenyi's; mean ranks that are nearer than this cannot be told apart.
    """

    ranks: pd.Series
    blocks: int
    p: float
    critical_difference: float


def ranking(scores: pd.DataFrame, *, alpha: float = 0.05) -> Ranking:
    """Rank methods within blocks and compare their mean ranks (Demšar 2006).

    Args:
        scores: a row a block, a column a method, smaller is better, complete.
        alpha: level of the critical difference.

    Raises:
        ValueError: fewer than three methods or two blocks, or a missing score.
    """
    blocks, methods = scores.shape
    if methods < 3 or blocks < 2 or scores.isna().any(axis=None):
        raise ValueError(
            f"{methods} methods in {blocks} blocks, {int(scores.isna().sum().sum())} scores "
            "missing: rank at least three methods over two blocks that all of them served"
        )
    ranks = pd.DataFrame(rankdata(scores, axis=1), columns=scores.columns).mean().sort_values()
    p = friedmanchisquare(*scores.to_numpy().T).pvalue
    q = studentized_range.ppf(1 - alpha, methods, np.inf) / math.sqrt(2)
    difference = q * math.sqrt(methods * (methods + 1) / (6 * blocks))
    return Ranking(ranks, blocks, float(p), float(difference))
