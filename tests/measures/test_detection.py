"""Detection: a planted difference is found, an absent one is not, and the numbers are known ones."""

import math

import numpy as np
import pytest
from scipy.stats import norm, ranksums

from unlearnlib.measures import detection, membership


def test_what_never_overlaps_is_told_and_what_is_the_same_is_not():
    apart = detection.detection([0.1, 0.2, 0.3], [1.0, 2.0, 3.0])
    assert (apart.auc, apart.models, apart.n) == (1, 5, 3)
    same = detection.detection([0.0, 0.0, 0.0], [0.0, 0.0, 0.0])
    assert (same.auc, same.models) == (0.5, math.inf)
    nearer = detection.detection([1.0, 2.0], [0.1, 0.2])
    assert (nearer.auc, nearer.models) == (0, math.inf)


@pytest.mark.parametrize("shift", [0.8, 1.5])
def test_so_many_models_have_the_power_that_was_wanted(shift: float):
    """Simulated rank-sum tests of normal distances reject as often as Noether's formula says."""
    auc = norm.cdf(shift / math.sqrt(2))
    count = int(detection.models_needed(auc))
    random = np.random.default_rng(0)
    tests = [
        ranksums(random.normal(shift, 1, count), random.normal(0, 1, count), "greater").pvalue
        for _ in range(600)
    ]
    assert 0.7 < np.mean(np.array(tests) < 0.05) < 0.9


def mean_gap(one: np.ndarray, other: np.ndarray) -> float:
    return float(abs(one.mean() - other.mean()))


@pytest.mark.parametrize(("shift", "low", "high"), [(0.0, 0.0, 0.2), (2.0, 0.9, 1.0)])
def test_ensembles_have_power_where_a_difference_was_planted(shift: float, low: float, high: float):
    random = np.random.default_rng(1)
    gold, second, other = (random.normal(0, 1, (40, 30)) for _ in range(3))
    found = detection.power_of_ensembles(
        gold, second, other + shift * 0.1, compare=mean_gap, models=20, draws=100
    )
    assert low <= found.power <= high
    assert found.models == 20


def test_more_models_have_more_power_in_klom():
    random = np.random.default_rng(2)
    gold, second, other = (random.normal(0, 1, (64, 40)) for _ in range(3))
    few, many = (
        detection.power_of_ensembles(
            gold, second, other + 0.6, models=models, draws=40,
            compare=lambda a, b: membership.klom(a, b).mean(),
        )
        for models in (4, 32)
    )  # fmt: skip
    assert many.power > few.power
    assert many.auc > 0.95


@pytest.mark.parametrize(
    ("change", "message"),
    [({"models": 9}, "models=9 of 5"), ({"models": 1}, "2 to 5"), ({"draws": 1}, "at least 2")],
)
def test_bad_draws_are_refused(change: dict, message: str):
    three = [np.zeros((5, 2))] * 3
    with pytest.raises(ValueError, match=message):
        detection.power_of_ensembles(
            *three, **{"compare": mean_gap, "models": 2, "draws": 5} | change
        )


def test_bad_distances_are_refused():
    with pytest.raises(ValueError, match="not finite"):
        detection.detection([0.0, math.nan], [1.0, 2.0])
    with pytest.raises(ValueError, match="at least 2"):
        detection.detection([0.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="power=1.5"):
        detection.models_needed(0.9, power=1.5)
