"""Progress goes to the file that the runner names, and nowhere else."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from unlearnlib.pipeline import progress


@pytest.fixture
def target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Name a file for reports."""
    monkeypatch.setenv("UNLEARNLIB_PROGRESS", str(tmp_path / "progress"))
    return tmp_path / "progress"


def test_reports_are_lines(target: Path) -> None:
    progress.report("one")
    progress.report("two\nof them")
    assert target.read_text() == "one\ntwo of them\n"


def test_nothing_is_printed(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("UNLEARNLIB_PROGRESS", raising=False)
    progress.report("nobody listens")
    assert capfd.readouterr() == ("", "")


def test_a_listener_that_went_away_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNLEARNLIB_PROGRESS", str(tmp_path / "gone" / "progress"))
    assert list(progress.track([1, 2], "still here")) == [1, 2]


def test_lines_of_several_writers_do_not_mix(target: Path) -> None:
    messages = [str(digit) * 2000 for digit in range(10)] * 20
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(progress.report, messages))
    assert sorted(target.read_text().splitlines()) == sorted(messages)


def test_track_yields_and_counts(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 1000, 4))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    assert list(progress.track("abcde", "letters", every_seconds=8)) == list("abcde")
    assert target.read_text().splitlines() == [
        "letters 2/5 8 s",
        "letters 4/5 16 s",
        "letters 5/5 24 s",
    ]


def test_track_takes_iterables_without_a_length(target: Path) -> None:
    assert list(progress.track(iter("ab"), "letters")) == ["a", "b"]
    assert target.read_text() == "letters 2 0 s\n"
