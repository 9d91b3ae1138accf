"""Clusters: samples of known shape, and what the tests themselves are sure of."""

from pathlib import Path

import pytest
import torch
import toys
from matplotlib.cbook import boxplot_stats
from scipy import stats

from unlearnlib.groups import clusters, geometry, partitions
from unlearnlib.models import architectures


def drawn(count: int, *, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def ideal(count: int) -> torch.Tensor:
    """Return the quantiles of a normal distribution: as normal as a sample can be."""
    return torch.from_numpy(stats.norm.ppf((torch.arange(count).numpy() + 0.5) / count))


def test_an_ideal_sample_is_normal_by_every_measure():
    found = clusters.describe(ideal(1000), seed=0)
    assert found["shapiro_w"] > 0.999 and found["shapiro_p"] > 0.5
    assert found["dagostino_p"] > 0.5
    assert found["skewness"] == pytest.approx(0, abs=1e-9)
    assert found["excess_kurtosis"] == pytest.approx(0, abs=0.05)
    assert found["qq_correlation"] == pytest.approx(1, abs=1e-3)
    for part in partitions.PARTS:
        assert found[f"{part}_percent"] == pytest.approx(100 * clusters.EXPECTED[part], abs=0.3)


def test_the_moments_of_an_exponential_sample_are_its_own():
    at = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    found = clusters.describe(-torch.log1p(-at), seed=0)
    # skewness 2, excess kurtosis 6; nothing is below mean - deviation, exp(-2) above
    assert found["skewness"] == pytest.approx(2, abs=0.05)
    assert found["excess_kurtosis"] == pytest.approx(6, abs=0.5)
    assert found["near_percent"] == pytest.approx(0, abs=0.01)
    assert found["far_percent"] == pytest.approx(13.534, abs=0.01)
    assert found["mean"] == pytest.approx(1, abs=1e-3)
    assert found["deviation"] == pytest.approx(1, abs=1e-3)


def test_the_qq_correlation_is_that_of_a_straight_line_fit():
    values = drawn(80) ** 3
    (theory, ordered), _ = stats.probplot(values.numpy())
    expected = stats.pearsonr(theory, ordered).statistic
    assert clusters.describe(values, seed=0)["qq_correlation"] == pytest.approx(expected)


def test_shapiro_sees_no_more_values_than_it_is_valid_for():
    values = drawn(6000)
    assert clusters.shapiro(values, seed=0)["shapiro_n"] == 5000
    assert clusters.shapiro(values, seed=0) == clusters.shapiro(values, seed=0)
    assert clusters.shapiro(values, seed=0) != clusters.shapiro(values, seed=1)
    assert clusters.shapiro(values[:300], seed=0)["shapiro_w"] == pytest.approx(
        stats.shapiro(values[:300].numpy()).statistic
    )


def test_rejection_grows_with_the_sample_and_is_rare_for_a_normal_one():
    skewed = drawn(4000).mul(0.3).exp()
    options = {"draws": 40, "seed": 0}
    shares = [clusters.rejection(skewed, size=size, **options) for size in (20, 100, 1000)]
    assert shares == sorted(shares) and shares[0] < 60 and shares[-1] == 100
    assert clusters.rejection(drawn(4000, seed=3), size=200, **options) < 20


def test_boxes_are_those_of_matplotlib():
    values = drawn(300) ** 2
    (expected,) = boxplot_stats(values.numpy())
    for key, value in clusters.box(values).items():
        assert value == pytest.approx(expected[key])


def test_quantiles_of_a_normal_sample_lie_on_the_diagonal():
    theory, sample = clusters.quantiles(5 + 3 * ideal(5000), count=21)
    assert theory == pytest.approx(sample, abs=0.01)


def test_the_published_numbers_are_whole():
    shares = [clusters.PUBLISHED[f"{part}_percent"] for part in partitions.PARTS]
    assert sum(shares) == pytest.approx(100)
    # two degrees of freedom: the published statistic has the published p-value
    assert stats.chi2.sf(clusters.PUBLISHED["dagostino_k2"], 2) == pytest.approx(
        clusters.PUBLISHED["dagostino_p"], rel=1e-2
    )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (torch.arange(19.0), "19 values"),
        (torch.full((30,), 2.0), "all equal or not finite"),
        (torch.cat([torch.arange(30.0), torch.tensor([float("nan")])]), "not finite"),
    ],
)
def test_what_has_no_shape_is_refused(values: torch.Tensor, message: str):
    with pytest.raises(ValueError, match=message):
        clusters.describe(values, seed=0)


@pytest.mark.parametrize(("size", "draws"), [(2, 1), (51, 1), (10, 0)])
def test_parts_that_cannot_be_drawn_are_refused(size: int, draws: int):
    with pytest.raises(ValueError, match=f"size={size}, draws={draws}: give 3 to 50"):
        clusters.rejection(drawn(50), size=size, draws=draws, seed=0)


def test_a_run_has_a_row_for_every_label_and_metric(tmp_path: Path):
    file = toys.lines(tmp_path / "dataset.npz")
    torch.manual_seed(0)
    original = toys.record(tmp_path / "original.pt", architectures.build("compact"))
    settings = clusters.Settings(points=9, sizes=(10, 5000), draws=3)
    result = clusters.run(data=file, original=original, settings=settings, seed=0)
    keys = [(row["metric"], row["label"]) for row in result["rows"]]
    assert keys == [(metric, label) for metric in geometry.METRICS for label in range(10)]
    assert {row["n"] for row in result["rows"]} == {20}
    assert len(result["boxes"]) == len(result["quantiles"]) == len(keys)
    assert {row["size"] for row in result["rejections"]} == {10}
    assert {len(values) for values in result["quantiles"]} == {9}
    # a sweep stores plain numbers only
    rows = result["rows"] + result["boxes"] + result["rejections"]
    assert {type(value) for row in rows for value in row.values()} == {int, float, str}
