"""Groups: hand-made distances and neighbours."""

import pytest
import torch
from scipy.spatial.distance import cosine, euclidean
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


@pytest.mark.parametrize("size", [0, 4, -1])
def test_a_size_the_class_does_not_have_is_refused(size: int):
    with pytest.raises(ValueError, match=rf"k={size} of 3 items of label 0: give 1 to 3"):
        geometry.neighbours(FEATURES, LABELS, label=0, k=size)


def test_an_unknown_metric_or_a_zero_vector_is_refused():
    with pytest.raises(ValueError, match=r"'manhattan'.*euclidean.*cosine"):
        geometry.distances(FEATURES, FEATURES[0], metric="manhattan")
    with pytest.raises(ValueError, match=r"not finite.*zero vectors"):
        geometry.distances(FEATURES, torch.zeros(2), metric="cosine")


def test_an_empty_class_or_group_is_refused():
    with pytest.raises(ValueError, match="k=1 of no items of label 7: choose another"):
        geometry.neighbours(FEATURES, LABELS, label=7, k=1)
    with pytest.raises(ValueError, match="group is empty"):
        geometry.distances(torch.empty(0, 2), torch.zeros(2))
