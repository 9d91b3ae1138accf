"""Groups: parts by distance, at random, and their orders."""

import pytest
import torch
from scipy.stats import norm

from unlearnlib.groups import partitions


def test_parts_are_cut_at_one_deviation():
    # mean 4, variance 38 / 10, so the cuts are at 2.05 and 5.95
    distances = torch.tensor([4.0, 4, 4, 4, 4, 4, 4, 9, 1, 2])
    parts = partitions.partition(distances)
    assert {name: part.tolist() for name, part in parts.items()} == {
        "near": [8, 9],
        "moderate": [0, 1, 2, 3, 4, 5, 6],
        "far": [7],
    }


def test_equal_distances_are_all_moderate():
    parts = partitions.partition(torch.full((5,), 3.0))
    assert [len(part) for part in parts.values()] == [0, 5, 0]


def test_normal_distances_have_the_normal_shares():
    drawn = torch.randn(100_000, generator=torch.Generator().manual_seed(0))
    shares = [len(part) / 100_000 for part in partitions.partition(drawn).values()]
    assert shares == pytest.approx([norm.cdf(-1), 1 - 2 * norm.cdf(-1), norm.cdf(-1)], abs=5e-3)


def test_a_random_split_covers_the_group_in_equal_parts():
    parts = partitions.random_split(11, seed=0)
    assert [len(part) for part in parts] == [4, 4, 3]
    assert torch.cat(parts).sort().values.tolist() == list(range(11))
    assert not torch.equal(parts[0], partitions.random_split(11, seed=1)[0])
    assert [len(part) for part in partitions.random_split(11, sizes=(2, 8, 1), seed=0)] == [2, 8, 1]


# ------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize("sizes", [(1, 2), (), (6, 6, -1)])
def test_parts_of_another_sum_are_refused(sizes: tuple[int, ...]):
    with pytest.raises(ValueError, match=r"sizes=.*sum up to 11"):
        partitions.random_split(11, sizes=sizes, seed=0)


def test_too_few_items_for_three_parts_are_refused():
    with pytest.raises(ValueError, match="3 parts of 2 items to split"):
        partitions.random_split(2, seed=0)


def test_an_empty_group_has_no_parts():
    with pytest.raises(ValueError, match="group is empty"):
        partitions.partition(torch.empty(0))
