"""Registries: entries by name, in order, one of each, and a helpful word for a wrong name."""

import pickle
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from unlearnlib.pipeline.registry import Named, Registry, UnknownNameError


@dataclass(frozen=True)
class Metric(Named):
    """A metric, for the tests."""

    compute: Callable[[list[float]], float]


LARGEST = Metric("largest", "largest value", max)
SMALLEST = Metric("smallest", "smallest value", min)


@pytest.fixture
def metrics() -> Registry[Metric]:
    """Make a registry of two."""
    return Registry("metric", SMALLEST, LARGEST)


def test_entries_are_found_by_name_in_their_order(metrics: Registry[Metric]) -> None:
    assert list(metrics) == ["smallest", "largest"]
    assert list(metrics.values()) == [SMALLEST, LARGEST]
    assert metrics["largest"].compute([1, 3, 2]) == 3
    assert len(metrics) == 2
    assert "largest" in metrics
    assert "absent" not in metrics
    assert metrics.get("absent") is None


def test_registering_returns_the_entry(metrics: Registry[Metric]) -> None:
    total = Metric("total", "sum", sum)
    assert metrics.register(total) is total
    assert list(metrics) == ["smallest", "largest", "total"]


def test_two_of_a_name_are_refused(metrics: Registry[Metric]) -> None:
    with pytest.raises(ValueError, match="two metrics are named 'largest'; rename one of them"):
        metrics.register(Metric("largest", "another", sum))
    assert metrics["largest"] is LARGEST
    with pytest.raises(ValueError, match="two metrics are named 'largest'"):
        Registry("metric", LARGEST, Metric("largest", "another", min))


def test_the_same_again_is_no_second_one(metrics: Registry[Metric]) -> None:
    metrics.register(Metric("largest", "with another title", max))
    assert list(metrics) == ["smallest", "largest"]


def test_an_entry_can_be_taken_out(metrics: Registry[Metric]) -> None:
    metrics.unregister("largest")
    assert list(metrics) == ["smallest"]
    metrics.register(Metric("largest", "another", sum))
    assert metrics["largest"].compute([1, 3, 2]) == 6


@pytest.mark.parametrize("kind", [KeyError, ValueError, UnknownNameError])
def test_a_wrong_name_tells_the_right_ones(metrics: Registry[Metric], kind: type) -> None:
    with pytest.raises(kind) as caught:
        metrics["larges"]
    assert str(caught.value) == (
        "unknown metric 'larges'; did you mean 'largest'? choose one of ['smallest', 'largest']"
    )
    with pytest.raises(kind, match=r"^unknown metric 3; choose one of"):
        metrics[3]


def test_the_error_survives_the_way_from_a_worker(metrics: Registry[Metric]) -> None:
    with pytest.raises(UnknownNameError) as caught:
        metrics["absent"]
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_entries_cannot_be_changed_through_the_mapping(metrics: Registry[Metric]) -> None:
    with pytest.raises(TypeError):
        metrics["largest"] = SMALLEST
    with pytest.raises(TypeError):
        del metrics["largest"]
    with pytest.raises(AttributeError):
        LARGEST.name = "x"


def test_a_title_makes_no_difference() -> None:
    assert Metric("largest", "one", max) == Metric("largest", "other", max)
    assert Metric("largest", "one", max) != Metric("largest", "one", min)
