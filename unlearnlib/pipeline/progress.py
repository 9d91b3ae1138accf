"""Progress that reaches the terminal and leaves no trace in a notebook's stored outputs."""

import contextlib
import os
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")


def report(message: str) -> None:
    """Append `message` as one line to the file `$UNLEARNLIB_PROGRESS`; without it, do nothing.

    Several processes may report to the same file.
    """
    target = os.environ.get("UNLEARNLIB_PROGRESS")
    if not target:
        return
    line = " ".join(message.splitlines()) + "\n"
    # no computation should die because nobody listens any more
    with contextlib.suppress(OSError):
        handle = os.open(target, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(handle, line.encode())
        finally:
            os.close(handle)


def track(iterable: Iterable[Item], label: str, every_seconds: float = 10) -> Iterator[Item]:
    """Yield the items and report `label 40/200 12 s` every so many seconds and at the end.

    An iterable without a length reports `label 40 12 s`.
    """
    total = f"/{len(iterable)}" if hasattr(iterable, "__len__") else ""
    started = reported = time.monotonic()
    done = 0
    for item in iterable:
        yield item
        done += 1
        now = time.monotonic()
        if now - reported >= every_seconds:
            report(f"{label} {done}{total} {now - started:.0f} s")
            reported = now
    report(f"{label} {done}{total} {time.monotonic() - started:.0f} s")
