"""Parts of a run are timed where somebody collects, and nowhere else."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from unlearnlib.pipeline import clock


@pytest.fixture
def hands(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """Set the clock by hand."""
    now = [100.0]
    monkeypatch.setattr(clock.time, "perf_counter", lambda: now[0])
    return now


def test_parts_of_one_name_add_up(hands: list[float]) -> None:
    with clock.collected() as timings:
        for seconds in (1.0, 2.5):
            with clock.timed("part"):
                hands[0] += seconds
        hands[0] += 10
        clock.add("other", 4.0)
    assert timings == {"part": 3.5, "other": 4.0}


def test_nested_parts_count_in_full(hands: list[float]) -> None:
    with clock.collected() as timings, clock.timed("outer"):
        hands[0] += 1
        with clock.timed("inner"):
            hands[0] += 2
    assert timings == {"inner": 2.0, "outer": 3.0}


def test_a_part_that_fails_counts(hands: list[float]) -> None:
    def fail() -> None:
        with clock.timed("part"):
            hands[0] += 1
            raise ValueError("on purpose")

    with clock.collected() as timings, pytest.raises(ValueError, match="on purpose"):
        fail()
    assert timings == {"part": 1.0}


def test_outside_a_run_nothing_happens() -> None:
    with clock.timed("part"):
        pass
    clock.add("part", 1.0)
    with clock.collected() as timings:
        pass
    clock.add("part", 1.0)
    assert timings == {}


def test_an_inner_run_keeps_its_own(hands: list[float]) -> None:
    with clock.collected() as outer:
        with clock.collected() as inner:
            clock.add("part", 1.0)
        clock.add("part", 2.0)
    assert (inner, outer) == ({"part": 1.0}, {"part": 2.0})


def test_runs_in_threads_do_not_mix() -> None:
    def run(number: int) -> dict[str, float]:
        with clock.collected() as timings:
            for _ in range(5):
                clock.add("part", number)
                time.sleep(0.001)
        return timings

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(run, range(4)))
    assert found == [{"part": 5.0 * number} for number in range(4)]


def test_seconds_are_those_of_the_wall() -> None:
    with clock.collected() as timings, clock.timed("part"):
        time.sleep(0.05)
    assert 0.045 <= timings["part"] < 5
