"""Things with a name that many places read: methods, estimators, metrics, data sets.

Each is one object beside its code. A registry is what they register in, a mapping in the order of
registration. Notebooks, the arena, own models, tables and the league read the registry and nothing
else, so that a new entry is known everywhere.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Generic, TypeVar


@dataclass(frozen=True)
class Named:
    """Something with a name for tables and files, and a title for people.

    Attributes:
        name: lower case, with underscores.
        title: as figures and pages write it; two things may differ in no more than that, which
            changes no result.
    """

    name: str
    title: str = field(compare=False)


Entry = TypeVar("Entry", bound=Named)


class Registry(Mapping[str, Entry], Generic[Entry]):
    """Hold entries of one kind by name, in the order in which they were registered."""

    def __init__(self, kind: str, *entries: Entry) -> None:
        """Make a registry.

        Args:
            kind: what its entries are, for messages.
            entries: to register.
        """
        self.kind = kind
        self._entries: dict[str, Entry] = {}
        for entry in entries:
            self.register(entry)

    def register(self, entry: Entry) -> Entry:
        """Add an entry, and return it.

        Raises:
            ValueError: there is another one of that name.
        """
        if self._entries.get(entry.name, entry) != entry:
            raise ValueError(f"two {self.kind}s are named {entry.name!r}; rename one of them")
        self._entries[entry.name] = entry
        return entry

    def unregister(self, name: str) -> None:
        """Take an entry out again, as a test does that had put it in."""
        del self._entries[name]

    def __getitem__(self, name: str) -> Entry:
        """Return the entry of that name.

        Raises:
            UnknownNameError: there is none; the message lists those that are there.
        """
        if name not in self._entries:
            close = get_close_matches(str(name), self._entries, n=1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise UnknownNameError(
                f"unknown {self.kind} {name!r}; {hint}choose one of {list(self._entries)}"
            )
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries


class UnknownNameError(KeyError, ValueError):
    """A name that is not in a registry."""

    def __str__(self) -> str:
        """Write the message as it is; KeyError would put it in quotation marks."""
        return str(self.args[0])
