"""Shares of a sweep, for job arrays: many processes, on many machines, over one folder of results.

With ``$UNLEARNLIB_SHARD`` at ``2/8``, as ``runner run --shard 2/8`` has it, a sweep makes every
eighth of its runs, from the second on, and nothing else. A notebook ends at the first sweep that
lacks runs of other shares, since it can go on only from all of them.
"""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass

VARIABLE = "UNLEARNLIB_SHARD"


class OtherShardsMissing(RuntimeError):
    """This share of a sweep is done, and runs of other shares are not."""


@dataclass(frozen=True)
class Shard:
    """A share of the runs of each sweep.

    Attributes:
        number: 1, 2, ... of the share.
        count: of all shares.
    """

    number: int
    count: int

    def own(self, names: Iterable[str]) -> list[str]:
        """Return the runs of this share, from all runs in order."""
        return [name for place, name in enumerate(names) if place % self.count == self.number - 1]

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"


def parse(text: str) -> Shard:
    """Read a share such as ``2/8``.

    Raises:
        ValueError: it is none, in words.
    """
    found = re.fullmatch(r"([1-9]\d{0,5})/([1-9]\d{0,5})", text, re.ASCII)
    if not found or int(found[1]) > int(found[2]):
        raise ValueError(
            f"shard {text!r}: give a share such as 2/8, its number and how many there are"
        )
    return Shard(int(found[1]), int(found[2]))


def current() -> Shard | None:
    """Return the share that the environment names; None for all runs.

    Raises:
        ValueError: see `parse`.
    """
    text = os.environ.get(VARIABLE)
    return parse(text) if text else None
