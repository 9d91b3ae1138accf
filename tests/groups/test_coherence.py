"""Coherence: explicit influences of small nets, brute force over pairs, and hand-made groups."""

from pathlib import Path

import influence_tasks
import numpy as np
import pandas as pd
import pytest
import torch
import toys
from scipy import stats
from scipy.spatial.distance import cdist

from unlearnlib.groups import coherence
from unlearnlib.groups.coherence import Settings
from unlearnlib.influence import curvature, estimators
from unlearnlib.influence.solvers import Dense
from unlearnlib.models import architectures


def rows(count: int = 30, size: int = 6, *, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, size, generator=generator, dtype=torch.float64)


# ----------------------------------------------------------------------------------- influences


def test_grams_are_those_of_explicit_influences():
    objective = influence_tasks.logistic(60)
    matrix = curvature.gauss_newton(objective)
    index = torch.tensor([3, 1, 40, 7, 22])
    grams, residual = coherence.influence_grams(objective, Dense(matrix, 0.01), index, chunk=2)
    damped = matrix + 0.01 * torch.eye(len(matrix)).double()
    item = torch.linalg.solve(damped, curvature.item_gradients(objective, index=index).T).T
    loss = item - torch.linalg.solve(damped, objective.l2 * curvature.flatten(objective.network))
    torch.testing.assert_close(grams["item"], item @ item.T)
    torch.testing.assert_close(grams["loss"], loss @ loss.T)
    assert residual < 1e-10
    torch.testing.assert_close(coherence.norms(grams["item"]), item.norm(dim=1))


def test_the_norm_is_that_of_a_removal_without_its_scale():
    objective = influence_tasks.ridge()
    system = Dense(curvature.gauss_newton(objective), 0.0)
    grams, _ = coherence.influence_grams(objective, system, torch.tensor([4]))
    gradient = curvature.gradient_sum(objective, index=torch.tensor([4]))
    update = estimators.first_order(gradient, system, items=objective.items, removed=1)
    expected = (objective.items - 1) * update.delta.norm()
    assert coherence.norms(grams["item"]).item() == pytest.approx(expected.item())


# -------------------------------------------------------------------------------------- groups


def test_coherence_of_equal_orthogonal_and_opposite_influences():
    equal, orthogonal = torch.ones(4, 3).double(), torch.eye(4).double()
    opposite = torch.tensor([[1.0, 0], [-1, 0]]).double()
    assert coherence.coherence(equal @ equal.T, torch.arange(4)) == pytest.approx(1)
    assert coherence.coherence(orthogonal, torch.arange(4)) == pytest.approx(0.5)
    assert coherence.coherence(opposite @ opposite.T, torch.arange(2)) == pytest.approx(0)


def test_coherence_is_the_norm_of_the_sum_over_the_sum_of_norms():
    x, group = rows(), torch.tensor([2, 5, 17])
    expected = x[group].sum(0).norm() / x[group].norm(dim=1).sum()
    assert coherence.coherence(x @ x.T, group) == pytest.approx(expected.item())


def test_random_groups_are_of_the_size_and_repeatable():
    gram = torch.eye(20).double()
    options = {"size": 5, "repeats": 50, "seed": 0}
    drawn = coherence.random_coherences(gram, **options)
    # orthogonal influences of equal norm: 1 / sqrt(m) for every group of m
    torch.testing.assert_close(drawn, torch.full((50,), 5**-0.5).double())
    x = rows(20)
    first = coherence.random_coherences(x @ x.T, **options)
    torch.testing.assert_close(first, coherence.random_coherences(x @ x.T, **options))
    assert first.std() > 0
    everything = coherence.random_coherences(x @ x.T, size=20, repeats=3, seed=0)
    whole = coherence.coherence(x @ x.T, torch.arange(20))
    torch.testing.assert_close(everything, torch.full((3,), whole).double())


# ------------------------------------------------------------------------ neighbours of an item


def test_groups_are_measured_as_by_explicit_influences():
    x, groups = rows(), torch.tensor([[2, 5, 17], [0, 1, 29]])
    found = coherence.measure(x @ x.T, groups)
    for number, group in enumerate(groups):
        inside = x[group]
        assert found["norm_of_sum"][number] == pytest.approx(inside.sum(0).norm().item())
        assert found["mean_norm"][number] == pytest.approx(inside.norm(dim=1).mean().item())
        angles = 1 - cdist(inside.numpy(), inside.numpy(), "cosine")
        assert found["cosine"][number] == pytest.approx((angles.sum() - 3) / 6)


def test_an_item_without_influence_is_orthogonal_to_all():
    x = torch.tensor([[1.0, 0], [2, 0], [0, 0]]).double()
    found = coherence.measure(x @ x.T, torch.tensor([[0, 1, 2], [0, 2, 1]]))
    torch.testing.assert_close(found["cosine"], torch.full((2,), 1 / 3).double())


def test_pairs_need_two_items():
    with pytest.raises(ValueError, match="groups of 1 items have no pairs; give at least 2"):
        coherence.measure(torch.eye(3).double(), torch.tensor([[0]]))


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_neighbours_are_those_of_the_item_and_not_of_the_centroid(metric: str):
    features = rows(20, 4)
    near, far = coherence.around(features, torch.tensor([7, 0]), k=5, metric=metric)
    apart = torch.from_numpy(cdist(features.numpy(), features.numpy(), metric))
    for line, anchor in enumerate([7, 0]):
        order = [i for i in apart[anchor].argsort().tolist() if i != anchor]
        assert near[line].tolist() == order[:5]
        assert far[line].tolist() == order[::-1][:5]


def test_all_but_the_anchor_are_the_most_neighbours_there_are():
    with pytest.raises(ValueError, match="k=6 of 5 items of label 0: give 1 to 5"):
        coherence.around(rows(6, 2), torch.tensor([1]), k=6, metric="euclidean")


def anchored(contrasts: dict[str, list[float]]) -> pd.DataFrame:
    """Make measured anchors of which every measure has the given contrasts, by space."""
    return pd.DataFrame(
        {"label": 0, "seed": 0, "items": 9, "neighbours": 2, "metric": "cosine", "gradient": "loss",
         "space": space, "anchor": anchor, "norm_of_sum_nearest": 2.0,
         "norm_of_sum_farthest": 2 * np.exp(value), "mean_norm_nearest": 1.0,
         "mean_norm_farthest": np.exp(-value), "cosine_nearest": 0.5 + value,
         "cosine_farthest": 0.5}
        for space, values in contrasts.items()
        for anchor, value in enumerate(values)
    )  # fmt: skip


def test_the_space_with_the_larger_contrast_tells_more():
    compact, vit = [0.5, 0.6, 0.7, 0.6], [0.1, 0.2, 0.1, 0.3]
    found = coherence.conventions(anchored({"compact": compact, "vit": vit})).set_index("measure")
    assert list(found.index) == list(coherence.MEASURES)
    assert found["verdict"].to_list() == ["holds"] * 3  # whichever the direction of the contrast
    assert found.loc["norm_of_sum", "compact"] == pytest.approx(0.6)
    assert found.loc["mean_norm", "compact"] == pytest.approx(-0.6)
    assert found.loc["cosine", "vit"] == pytest.approx(0.175)
    expected = stats.ttest_rel(compact, vit).confidence_interval()
    row = found.loc["mean_norm"]
    assert row["difference"] == pytest.approx(0.425)
    assert (row["difference_low"], row["difference_high"]) == pytest.approx(tuple(expected))
    turned = coherence.conventions(anchored({"compact": vit, "vit": compact}))
    assert turned["verdict"].to_list() == ["reverses"] * 3
    mixed = coherence.conventions(anchored({"compact": compact, "vit": [0.9, 0.3, 0.8, 0.5]}))
    assert mixed["verdict"].to_list() == ["undecided"] * 3


def test_spaces_that_cannot_be_paired_are_refused():
    table = anchored({"compact": [0.5, 0.6], "vit": [0.1, 0.2]})
    with pytest.raises(ValueError, match=r"features of \['compact'\]: give two spaces"):
        coherence.conventions(table[table["space"] == "compact"])
    with pytest.raises(ValueError, match="an anchor without a contrast in one space; measure"):
        coherence.conventions(table.iloc[:-1])
    with pytest.raises(ValueError, match="norm_of_sum of .*look for groups without influence"):
        coherence.conventions(table.assign(norm_of_sum_nearest=0.0))


# ---------------------------------------------------------------------------------- comparisons


def test_delta_is_the_share_of_pairs_by_brute_force():
    near, far = rows(12, 1)[:, 0], rows(9, 1, seed=1)[:, 0] + 0.7
    found = coherence.compare(near, far)
    signs = (far[:, None] - near[None, :]).sign()
    assert found["delta"] == pytest.approx(signs.mean().item())
    expected = stats.mannwhitneyu(near.numpy(), far.numpy()).pvalue
    assert found["p"] == pytest.approx(expected)


def test_delta_is_signed_by_the_farthest():
    low, high = torch.arange(5.0), torch.arange(10.0, 15)
    assert coherence.compare(low, high)["delta"] == 1
    assert coherence.compare(high, low)["delta"] == -1
    assert coherence.compare(low, low)["delta"] == pytest.approx(0)


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_similar_features_with_similar_influences_correlate(metric: str):
    # on a circle the angle decides both the distance and the cosine of features and influences
    angles = torch.linspace(0, 3, 40).double()
    x = torch.stack([angles.cos(), angles.sin()], 1)
    options = {"metric": metric, "pairs": 500, "seed": 0}
    assert coherence.similarity_correlation(x, x @ x.T, **options) > 0.999
    mirrored = torch.stack([angles.cos(), angles.sin()], 1) * (-1.0) ** torch.arange(40)[:, None]
    other = coherence.similarity_correlation(x, mirrored @ mirrored.T, **options)
    assert abs(other) < 0.3


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_the_correlation_over_many_pairs_is_that_over_all(metric: str):
    features, x = rows(25, 4), rows(25, 4) + rows(25, 4, seed=1)
    above = torch.triu_indices(25, 25, 1)
    similarity = -cdist(features.numpy(), features.numpy(), metric)[above[0], above[1]]
    cosine = 1 - cdist(x.numpy(), x.numpy(), "cosine")[above[0], above[1]]
    expected = stats.spearmanr(similarity, cosine).statistic
    found = coherence.similarity_correlation(features, x @ x.T, metric=metric, pairs=20_000, seed=0)
    assert found == pytest.approx(expected, abs=0.03)


def test_clusters_that_are_shells_agree_with_the_parts():
    # an inner shell, a thick middle and an outer shell, all on one ray: k-means cuts by distance
    radii = torch.cat([torch.full((16,), 0.0), torch.full((68,), 10.0), torch.full((16,), 20.0)])
    features = torch.stack([radii, torch.zeros(100)], 1) + 0.01 * rows(100, 2)
    found = coherence.clusters(features, metric="euclidean", seed=0)
    # centred on the middle, so near is the middle and far both ends: no chance agreement
    assert found["silhouette_clusters"] > 0.99
    assert found["silhouette_clusters"] > found["silhouette_parts"]
    assert 0 < found["adjusted_rand"] < 1


def test_clusters_of_a_sphere_have_nothing_to_do_with_the_parts():
    features = rows(600, 8)
    found = coherence.clusters(features, metric="euclidean", seed=0)
    assert abs(found["adjusted_rand"]) < 0.05


# ------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda k: coherence.coherence(k, torch.arange(0)), "the group is empty"),
        (lambda k: coherence.coherence(0 * k, torch.arange(2)), "all 0"),
        (lambda k: coherence.random_coherences(k, size=31, repeats=1, seed=0), "size=31"),
        (lambda k: coherence.random_coherences(k, size=3, repeats=0, seed=0), "repeats=0"),
        (lambda k: coherence.compare(k[0], k[0][:0]), "30 nearest and 0 farthest"),
        (
            lambda k: coherence.similarity_correlation(k, k, metric="taxi", pairs=9, seed=0),
            "unknown metric 'taxi'",
        ),
        (
            lambda k: coherence.similarity_correlation(k, k, metric="cosine", pairs=2, seed=0),
            "pairs=2",
        ),
        (lambda k: coherence.clusters(k[:3], metric="cosine", seed=0), "3 items for 3 clusters"),
        (
            lambda k: coherence.clusters(
                torch.tensor([[-1.0], [1]] * 3), metric="euclidean", seed=0
            ),
            "same distance",
        ),
    ],
)
def test_what_cannot_be_compared_is_refused(call, message: str):
    x = rows()
    with pytest.raises(ValueError, match=message):
        call(x @ x.T)


# ------------------------------------------------------------------------------------------ run


SETTINGS = {"pools": ((12, 3), (18, 7)), "curvature_items": 40, "repeats": 20, "pairs": 50,
            "anchors": 4}  # fmt: skip


@pytest.fixture
def arguments(tmp_path: Path) -> dict:
    """All that a run asks for."""
    torch.manual_seed(0)
    spaces = {
        name: toys.record(tmp_path / f"{name}.pt", architectures.build(name, width=0.25))
        for name in ("compact", "vit")
    }
    return {
        "data": toys.lines(tmp_path / "dataset.npz"), "original": spaces["compact"],
        "spaces": spaces, "label": 3, "seed": 0, "l2": 0.01, "damping": 0.01,
        "settings": Settings(**SETTINGS),
    }  # fmt: skip


def test_a_run_has_a_row_for_each_pool_space_metric_and_gradient(arguments: dict):
    result = coherence.run(**arguments)
    keys = {
        (row["items"], row["neighbours"], row["space"], row["metric"], row["gradient"])
        for row in result["rows"]
    }
    assert len(keys) == len(result["rows"]) == 2 * 2 * 2 * 2
    assert {key[:2] for key in keys} == {(12, 3), (18, 7)}
    assert result["residual"] < 1e-6
    assert {len(values) for values in result["distances"].values()} == {18}
    # a sweep stores plain numbers only
    assert {type(value) for row in result["rows"] for value in row.values()} == {int, float, str}
    assert result["norms"]["item"].shape == result["losses"].shape == (18,)


def test_a_run_compares_the_ends_of_the_largest_pool(arguments: dict):
    result = coherence.run(**arguments)
    row = next(row for row in result["rows"] if row["items"] == 18 and row["gradient"] == "loss")
    order = result["distances"][f"{row['space']}-{row['metric']}"].argsort()
    norms = result["norms"]["loss"]
    expected = coherence.compare(norms[order[:7]], norms[order[-7:]])
    assert row["delta"] == pytest.approx(expected["delta"])


def test_a_smaller_pool_is_measured_as_if_it_were_drawn_alone(arguments: dict):
    alone = Settings(**SETTINGS | {"pools": ((12, 3),)})
    rows = coherence.run(**arguments | {"settings": alone})["rows"]
    among = [row for row in coherence.run(**arguments)["rows"] if row["items"] == 12]
    for one, other in zip(rows, among, strict=True):
        numbers = {key for key, value in one.items() if not isinstance(value, str)}
        assert {key: one[key] for key in one.keys() - numbers}.items() <= other.items()
        expected = {key: other[key] for key in numbers}
        assert {key: one[key] for key in numbers} == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"pools": ((18, 9),)}, "9 neighbours of 18 items.*would overlap; give 2 to 8"),
        ({"pools": ((18, 1),)}, "1 neighbours of 18 items.*no pairs; give 2 to 8"),
        ({"anchors": 13}, "anchors=13 of 12 items: give 2 to 12"),
    ],
)
def test_pools_that_cannot_be_are_refused(changed: dict, message: str):
    with pytest.raises(ValueError, match=message):
        Settings(**SETTINGS | changed)


def test_a_run_measures_the_neighbours_of_anchors(arguments: dict):
    result = coherence.run(**arguments)
    found = pd.DataFrame(result["anchors"])
    assert len(found) == 2 * 2 * 2 * 2 * 4
    assert {type(value) for row in result["anchors"] for value in row.values()} == {int, float, str}
    # the same anchors in both spaces, which pairs them
    for _, cell in found.groupby(coherence.CONVENTION):
        compact, vit = (set(part["anchor"]) for _, part in cell.groupby("space"))
        assert compact == vit and len(compact) == 4
    table = coherence.conventions(found.assign(label=3, seed=0))
    assert len(table) == 2 * 2 * 2 * 3 and set(table["anchors"]) == {4}


def test_a_run_refuses_a_pool_above_its_class(arguments: dict):
    settings = Settings(**SETTINGS | {"pools": ((21, 5),)})
    with pytest.raises(ValueError, match="size=21 of 20 items"):
        coherence.run(**arguments | {"settings": settings})
