"""Groups: hand-made distances, neighbours and parts."""

import pytest
import torch
from scipy.spatial.distance import cosine, euclidean
from scipy.stats import norm
from sklearn.neighbors import NearestNeighbors

from unlearnlib.groups import geometry

FEATURES = torch.tensor([[0.0, 1], [10, 0], [4, 1], [12, 0], [2, 1], [11, 3]])
LABELS = torch.tensor([0, 1, 0, 1, 0, 1])


def test_distances_are_to_the_centroid_of_ones_own_class():
    # the centroids are (2, 1) and (11, 1)
    expected = torch.tensor([2, 2**0.5, 2, 2**0.5, 0, 2]).double()
    torch.testing.assert_close(geometry.centroid_distances(FEATURES, LABELS), expected)


@pytest.mark.parametrize(("metric", "oracle"), [("euclidean", euclidean), ("cosine", cosine)])
def test_distances_are_scipys(metric: str, oracle):
    generator = torch.Generator().manual_seed(0)
    features, anchor = torch.randn(9, 4, generator=generator), torch.randn(4, generator=generator)
    measured = geometry.distances(features, anchor, metric=metric)
    assert measured.tolist() == pytest.approx([oracle(row, anchor) for row in features], rel=1e-5)


def test_cosine_distance_has_no_scale():
    scaled = FEATURES * torch.tensor([1.0, 2, 3, 4, 5, 6])[:, None]
    anchor = torch.tensor([1.0, 1])
    torch.testing.assert_close(
        geometry.distances(scaled, anchor, metric="cosine"),
        geometry.distances(FEATURES, anchor, metric="cosine"),
    )


def test_parts_are_cut_at_one_deviation():
    # mean 4, variance 38 / 10, so the cuts are at 2.05 and 5.95
    distances = torch.tensor([4.0, 4, 4, 4, 4, 4, 4, 9, 1, 2])
    parts = geometry.partition(distances)
    assert {name: part.tolist() for name, part in parts.items()} == {
        "near": [8, 9],
        "moderate": [0, 1, 2, 3, 4, 5, 6],
        "far": [7],
    }


def test_equal_distances_are_all_moderate():
    parts = geometry.partition(torch.full((5,), 3.0))
    assert [len(part) for part in parts.values()] == [0, 5, 0]


def test_normal_distances_have_the_normal_shares():
    drawn = torch.randn(100_000, generator=torch.Generator().manual_seed(0))
    shares = [len(part) / 100_000 for part in geometry.partition(drawn).values()]
    assert shares == pytest.approx([norm.cdf(-1), 1 - 2 * norm.cdf(-1), norm.cdf(-1)], abs=5e-3)


def test_neighbours_stay_within_the_label_and_come_in_order():
    anchor = torch.tensor([3.5, 1])
    find = {"label": 0, "anchor": anchor}
    assert geometry.neighbours(FEATURES, LABELS, k=2, **find).tolist() == [2, 4]
    assert geometry.neighbours(FEATURES, LABELS, k=2, farthest=True, **find).tolist() == [0, 4]
    assert geometry.neighbours(FEATURES, LABELS, label=1, k=3).tolist() == [1, 3, 5]


def test_neighbours_are_scikit_learns():
    generator = torch.Generator().manual_seed(0)
    features, labels = torch.randn(60, 5, generator=generator), torch.arange(60) % 3
    anchor = features[1]
    inside = (labels == 1).nonzero().squeeze(1)
    for metric in geometry.METRICS:
        oracle = NearestNeighbors(n_neighbors=20, metric=metric).fit(features[inside])
        order = inside[oracle.kneighbors(anchor[None], return_distance=False)[0]]
        options = {"label": 1, "anchor": anchor, "metric": metric}
        assert torch.equal(geometry.neighbours(features, labels, k=7, **options), order[:7])
        farthest = geometry.neighbours(features, labels, k=7, farthest=True, **options)
        assert torch.equal(farthest, order.flip(0)[:7])


def test_groups_are_drawn_without_repeats_from_where_they_should_be():
    labels = torch.arange(50) % 5
    group = geometry.coherent_group(labels, label=3, size=6, seed=1)
    assert len(group.unique()) == 6
    assert set(labels[group].tolist()) == {3}
    assert torch.equal(group, geometry.coherent_group(labels, label=3, size=6, seed=1))
    assert not torch.equal(group, geometry.coherent_group(labels, label=3, size=6, seed=2))
    assert len(geometry.coherent_group(labels, label=3, size=10, seed=1)) == 10
    drawn = geometry.random_group(50, size=49, seed=0)
    assert len(drawn.unique()) == 49
    assert drawn.max() < 50


def test_a_random_split_covers_the_group_in_equal_parts():
    parts = geometry.random_split(11, seed=0)
    assert [len(part) for part in parts] == [4, 4, 3]
    assert torch.cat(parts).sort().values.tolist() == list(range(11))
    assert not torch.equal(parts[0], geometry.random_split(11, seed=1)[0])
    assert [len(part) for part in geometry.random_split(11, sizes=(2, 8, 1), seed=0)] == [2, 8, 1]


def test_there_are_six_orders():
    assert len(set(geometry.orders())) == 6
    assert geometry.orders()[0] == ("near", "moderate", "far")
    assert {frozenset(order) for order in geometry.orders()} == {frozenset(geometry.PARTS)}


def test_a_mask_becomes_positions():
    assert geometry.check_group(torch.tensor([True, False, True]), 3).tolist() == [0, 2]


# ------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize("size", [0, 4, -1])
def test_a_size_the_class_does_not_have_is_refused(size: int):
    with pytest.raises(ValueError, match=rf"k={size} of 3 items of label 0: give 1 to 3"):
        geometry.neighbours(FEATURES, LABELS, label=0, k=size)
    with pytest.raises(ValueError, match=rf"size={size} of 3 items of label 0: give 1 to 3"):
        geometry.coherent_group(LABELS, label=0, size=size, seed=0)


def test_an_empty_class_or_group_is_refused():
    with pytest.raises(ValueError, match="k=1 of no items of label 7: choose another"):
        geometry.neighbours(FEATURES, LABELS, label=7, k=1)
    with pytest.raises(ValueError, match="group is empty"):
        geometry.partition(torch.empty(0))
    with pytest.raises(ValueError, match="group is empty"):
        geometry.distances(torch.empty(0, 2), torch.zeros(2))


def test_a_random_group_leaves_an_item():
    with pytest.raises(ValueError, match="size=50 of 49 items that may go.*give 1 to 49"):
        geometry.random_group(50, size=50, seed=0)


@pytest.mark.parametrize("sizes", [(1, 2), (), (6, 6, -1)])
def test_parts_of_another_sum_are_refused(sizes: tuple[int, ...]):
    with pytest.raises(ValueError, match=r"sizes=.*sum up to 11"):
        geometry.random_split(11, sizes=sizes, seed=0)


def test_too_few_items_for_three_parts_are_refused():
    with pytest.raises(ValueError, match="parts=3 of 2 items to split"):
        geometry.random_split(2, seed=0)


def test_an_unknown_metric_or_a_zero_vector_is_refused():
    with pytest.raises(ValueError, match=r"'manhattan'.*euclidean.*cosine"):
        geometry.distances(FEATURES, FEATURES[0], metric="manhattan")
    with pytest.raises(ValueError, match=r"not finite.*zero vectors"):
        geometry.distances(FEATURES, torch.zeros(2), metric="cosine")
