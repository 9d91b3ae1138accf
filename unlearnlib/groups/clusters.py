"""Judge how far distances are from a normal distribution, and what that does to parts at ±σ.

Tests alone say little: at thousands of items they reject any distribution that is not exactly
normal. Each p-value therefore stands beside measures of size that do not grow with n.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from annotated_types import Ge, MinLen
from scipy import stats
from torch import Tensor

from unlearnlib.data import datasets
from unlearnlib.groups import geometry, partitions
from unlearnlib.models import checkpoints, networks
from unlearnlib.pipeline import seeds

SHAPIRO_LIMIT = 5000  # scipy and Royston 1995: p-values are not valid above
EXPECTED = dict(
    zip(
        partitions.PARTS,
        (stats.norm.cdf(-1), 1 - 2 * stats.norm.cdf(-1), stats.norm.cdf(-1)),
        strict=True,
    )
)
# Koh 2023, "Implementation of Group Unlearning", slides on the composition of a-priori clusters:
# one class, whose number and size are not given
PUBLISHED = {
    "shapiro_w": 0.97536,
    "shapiro_p": 2.28e-22,
    "dagostino_k2": 69.2155,
    "dagostino_p": 9.33e-16,
    "near_percent": 15.63,
    "moderate_percent": 68.90,
    "far_percent": 15.47,
}


def shapiro(values: Tensor, *, seed: int) -> dict[str, float]:
    """Test normality by Shapiro & Wilk (1965), on a random part of more than 5,000 values.

    Returns:
        ``shapiro_n`` (how many were tested), ``shapiro_w`` (1 for a normal sample), ``shapiro_p``.
    """
    generator = seeds.stream(seed, "tested values")
    drawn = values[torch.randperm(len(values), generator=generator)[:SHAPIRO_LIMIT]]
    found = stats.shapiro(drawn.numpy())
    return {
        "shapiro_n": len(drawn),
        "shapiro_w": float(found.statistic),
        "shapiro_p": float(found.pvalue),
    }


def describe(values: Tensor, *, seed: int) -> dict[str, float]:
    """Describe a sample's distance from normality.

    Args:
        values: ``[N]``, for instance distances to a centroid.
        seed: of the part that `shapiro` draws.

    Returns:
        ``n``, ``mean``, ``deviation`` (σ, divided by N); the keys of `shapiro`; ``dagostino_k2``
        and ``dagostino_p`` (D'Agostino & Pearson 1973); and the sizes: ``skewness`` and
        ``excess_kurtosis`` (moments, both 0 for a normal distribution), ``qq_correlation`` (of the
        sorted values with normal quantiles at Filliben's positions, 1 for a normal sample) and
        ``near_percent``, ``moderate_percent`` and ``far_percent`` of `partitions.partition`.

    Raises:
        ValueError: fewer than 20 values, values that are not finite, or all equal.
    """
    values = values.double()
    if len(values) < 20:
        raise ValueError(
            f"{len(values)} values: the test by skewness and kurtosis needs 20 or more; take a "
            "larger group"
        )
    if not torch.isfinite(values).all() or values.min() == values.max():
        raise ValueError(
            "values that are all equal or not finite have no shape to test; look for NaN and for "
            "features that are constant"
        )
    array = values.numpy()
    omnibus, (_, line) = stats.normaltest(array), stats.probplot(array)
    parts = partitions.partition(values)
    return {
        "n": len(values),
        "mean": float(array.mean()),
        "deviation": float(array.std()),
        **shapiro(values, seed=seed),
        "dagostino_k2": float(omnibus.statistic),
        "dagostino_p": float(omnibus.pvalue),
        "skewness": float(stats.skew(array)),
        "excess_kurtosis": float(stats.kurtosis(array)),
        "qq_correlation": float(line[2]),
        **{f"{name}_percent": 100 * len(part) / len(values) for name, part in parts.items()},
    }


def rejection(values: Tensor, *, size: int, draws: int, seed: int, level: float = 0.05) -> float:
    """Measure how often Shapiro-Wilk rejects normality of a part of the values, in percent.

    Parts are drawn without replacement, so that the share speaks of these values.

    Args:
        values: ``[N]``.
        size: values in a part.
        draws: parts.
        seed: of the draws.
        level: of the test.

    Raises:
        ValueError: a size below 3, above N or above the limit of the test, or no draws.
    """
    most = min(len(values), SHAPIRO_LIMIT)
    if not 3 <= size <= most or draws < 1:
        raise ValueError(f"size={size}, draws={draws}: give 3 to {most} values and 1 draw or more")
    generator = seeds.stream(seed, "parts of the values", size)
    parts = (values[torch.randperm(len(values), generator=generator)[:size]] for _ in range(draws))
    rejected = sum(float(stats.shapiro(part.double().numpy()).pvalue) < level for part in parts)
    return 100 * rejected / draws


def quantiles(values: Tensor, *, count: int) -> tuple[list[float], list[float]]:
    """Compute the points of a probability plot: normal quantiles and standardised sample quantiles.

    Args:
        values: ``[N]``.
        count: points, at the probabilities ``(i - 1/2) / count``.
    """
    at = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    standard = (values.double() - values.double().mean()) / values.double().std(correction=0)
    return stats.norm.ppf(at.numpy()).tolist(), standard.quantile(at).tolist()


def box(values: Tensor) -> dict[str, float]:
    """Summarise values as the dict of `Axes.bxp`: quartiles, whiskers at 1.5 quartile ranges."""
    low, middle, high = values.double().quantile(torch.tensor([0.25, 0.5, 0.75]).double()).tolist()
    reach = 1.5 * (high - low)
    inside = values[(values >= low - reach) & (values <= high + reach)]
    ends = {"whislo": inside.min().item(), "whishi": inside.max().item()}
    return {"q1": low, "med": middle, "q3": high, **ends}


# ------------------------------------------------------------------------------------------ run


@dataclass(frozen=True)
class Settings:
    """How distributions are drawn and how often they are tested.

    Attributes:
        points: of a probability plot.
        sizes: of the samples that show how a test grows with n; above a class they are left out.
        draws: such samples a size.
    """

    points: Annotated[int, Ge(2)]
    sizes: Annotated[tuple[Annotated[int, Ge(3)], ...], MinLen(1)]
    draws: Annotated[int, Ge(1)]


def run(*, data: Path, original: Path, settings: Settings, seed: int) -> dict[str, Any]:
    """Describe the distances to the class centroid in one feature space of a sweep.

    Args:
        data: file of the data set.
        original: file of the model whose features are the space.
        settings: see `Settings`.
        seed: of all draws.

    Returns:
        ``rows`` of `describe` with ``label`` and ``metric``, ``boxes`` and ``quantiles`` in the
        same order, ``rejections`` with ``label``, ``metric``, ``size`` and ``percent``.
    """
    images, labels = datasets.split(datasets.load(data), "train")
    features = networks.penultimate(checkpoints.load(original), images)
    result: dict[str, Any] = {"rows": [], "boxes": [], "quantiles": [], "rejections": []}
    for metric in geometry.METRICS:
        distances = geometry.centroid_distances(features, labels, metric=metric)
        for label in labels.unique().tolist():
            mine, key = distances[labels == label], {"label": label, "metric": metric}
            result["rows"].append(key | describe(mine, seed=seed))
            result["boxes"].append(box(mine))
            result["quantiles"].append(quantiles(mine, count=settings.points)[1])
            result["rejections"] += [key | row for row in _rejections(mine, settings, seed)]
    return result


def _rejections(values: Tensor, settings: Settings, seed: int) -> Iterator[dict[str, Any]]:
    for size in settings.sizes:
        if size <= min(len(values), SHAPIRO_LIMIT):
            percent = rejection(values, size=size, draws=settings.draws, seed=seed)
            yield {"size": size, "percent": percent}
