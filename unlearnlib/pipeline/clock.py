"""Seconds of the parts of a run, kept apart from its result.

A result holds nothing that differs between two equal runs. What took how long is measured here and
lands in the record beside it (`records.Record.timings`).
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_timings: ContextVar[dict[str, float] | None] = ContextVar("timings", default=None)


@contextmanager
def timed(name: str) -> Iterator[None]:
    """Add the seconds that the context takes to the part `name` of the run that is under way.

    Outside a run it does nothing. Contexts may be nested, and each counts in full.
    """
    started = time.perf_counter()
    try:
        yield
    finally:
        add(name, time.perf_counter() - started)


def add(name: str, seconds: float) -> None:
    """Add seconds to the part `name` of the run that is under way."""
    if (timings := _timings.get()) is not None:
        timings[name] = timings.get(name, 0.0) + seconds


@contextmanager
def collected() -> Iterator[dict[str, float]]:
    """Collect what `timed` measures while the context is open, by name."""
    timings: dict[str, float] = {}
    token = _timings.set(timings)
    try:
        yield timings
    finally:
        _timings.reset(token)
