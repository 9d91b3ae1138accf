"""Which measure can tell? How well a distance from gold separates what is not gold from what is.

A measure of unlearning is a test, and a test has power. The null is gold against gold: how far a
second retrained model is from the first by the measure. The alternative is a model that is known
not to be gold. Where the two distributions of distances overlap, a good value proves nothing.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import norm

from unlearnlib.measures import membership
from unlearnlib.pipeline import seeds

Compare = Callable[[np.ndarray, np.ndarray], float]


@dataclass(frozen=True)
class Detection:
    """Hold how well a measure tells an alternative from gold, one model at a time.

    Attributes:
        auc: area under the ROC curve, the probability that the alternative is farther from gold than
            a second gold is; 0.5 for guessing.
        low: limit of its 95 % interval (DeLong et al. 1988).
        high: the same.
        models: of each kind, with which a rank-sum test would have the wanted power, see
            `models_needed`.
        n: distances of the smaller kind.
    """

    auc: float
    low: float
    high: float
    models: float
    n: int


def detection(
    null: Sequence[float], alternative: Sequence[float], *, level: float = 0.05, power: float = 0.8
) -> Detection:
    """Compare distances from gold: those of a second gold, and those of an alternative.

    Args:
        null: a distance for each second gold, at least two.
        alternative: a distance for each other model, at least two.
        level: of the one-sided test.
        power: that is wanted.

    Raises:
        ValueError: fewer than two of a kind, or values that are not finite.
    """
    low, high = (np.asarray(part, dtype=float) for part in (null, alternative))
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise ValueError("distances that are not finite; leave out what a measure says nothing of")
    area = membership.area_under_curve(high, low)
    needed = models_needed(area.auc, level=level, power=power)
    return Detection(area.auc, area.low, area.high, needed, min(len(low), len(high)))


def models_needed(auc: float, *, level: float = 0.05, power: float = 0.8) -> float:
    """Compute how many models of each kind a one-sided rank-sum test needs (Noether 1987).

    ``(z_{1-level} + z_power)² / (6 (auc - 1/2)²)`` of each kind, rounded up. Where the two never
    overlap it is 5; so few that the normal approximation is at its end.

    Args:
        auc: probability that the alternative is the farther one.
        level: of the test.
        power: that is wanted.

    Returns:
        a whole number, or infinity where the alternative is not farther.

    Raises:
        ValueError: probabilities outside (0, 1).
    """
    for name, value in {"level": level, "power": power}.items():
        if not 0 < value < 1:
            raise ValueError(f"{name}={value}: give a probability between 0 and 1")
    if not auc > 0.5:
        return math.inf
    sizes = norm.ppf(1 - level) + norm.ppf(power)
    return float(math.ceil(sizes**2 / (6 * (auc - 0.5) ** 2)))


@dataclass(frozen=True)
class Power:
    """Hold how often a measure of distributions tells an alternative from gold.

    Attributes:
        models: of each kind.
        auc: probability that the alternative is farther from gold than second golds are.
        power: how often it is beyond what 95 % of the comparisons of golds reach.
    """

    models: int
    auc: float
    power: float


def power_of_ensembles(
    gold: np.ndarray,
    second: np.ndarray,
    alternative: np.ndarray,
    *,
    compare: Compare,
    models: int,
    draws: int,
    level: float = 0.05,
    seed: int = 0,
) -> Power:
    """Estimate the power of a measure that compares so many models of two kinds.

    Draws models of each kind without replacement, compares second golds with golds (the null), and
    the alternative with the same golds. Draws overlap, the more so the nearer `models` is to all
    there are, where the estimate says how these models compare and not how others would.

    Args:
        gold: margins ``[G, N]``, a row a model, in the order of seeds.
        second: those of second golds ``[S, N]``.
        alternative: ``[A, N]``.
        compare: ``compare(models of a kind, golds)``, the larger the farther.
        models: of each kind in a comparison.
        draws: comparisons.
        level: share of the null that may be called an alternative.
        seed: of the draws.

    Raises:
        ValueError: more models than there are, or fewer than two draws.
    """
    least = min(map(len, (gold, second, alternative)))
    if not 2 <= models <= least or draws < 2:
        raise ValueError(
            f"models={models} of {least} and draws={draws}: give 2 to {least} models and at least 2 "
            "draws"
        )
    random = np.random.default_rng(seeds.derive(seed, "draws of models"))
    found = []
    for _ in range(draws):
        golds, others, seconds = (
            part[random.permutation(len(part))[:models]] for part in (gold, alternative, second)
        )
        found.append((compare(seconds, golds), compare(others, golds)))
    null, values = np.array(found).T
    auc = membership.area_under_curve(values, null).auc
    return Power(models, auc, float((values > np.quantile(null, 1 - level)).mean()))
