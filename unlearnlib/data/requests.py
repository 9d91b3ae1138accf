"""Requests: what is to be forgotten, and which methods can serve them.

There are two kinds. `Classes` names whole classes: all items of them, whoever holds the data.
`Group` draws items from the training split, from one class (coherent) or from all (random), or has
them picked by what models say of them (`Picked`). A request is made once, from parameters, and handed on as it is; what is wrong with it is said here.
What a model or a data set cannot serve is said by `check`, which needs no data, and again where it
is drawn.

=============  ==========================================  ==========================
family         reads beside the original model             serves
=============  ==========================================  ==========================
``data``       the forgotten and the retained items        every request
``influence``  gradients and curvature of the same items   every request
``zero_shot``  nothing                                     classes, but not groups
=============  ==========================================  ==========================
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from unlearnlib.pipeline import seeds
from unlearnlib.pipeline.registry import Named

FAMILIES = {"data": "with data", "zero_shot": "zero-shot", "influence": "influence"}
MODES = ("coherent", "random")
PICKED = ("hard", "influential")  # by what, see `arena.picking`


class RequestError(ValueError):
    """A request that nobody can serve; the message names the value and what is allowed."""


# --------------------------------------------------------------------------------- classes


@dataclass(frozen=True)
class Classes:
    """Ask for whole classes to be forgotten.

    Attributes:
        classes: class numbers, ascending; given in any order and as any iterable.

    Raises:
        RequestError: empty, repeated, below 0, or not whole numbers.
    """

    classes: tuple[int, ...]

    def __post_init__(self) -> None:
        remedy = "give a list of different class numbers, for example [0]"
        if isinstance(self.classes, (str, bytes, Mapping)) or not isinstance(
            self.classes, Iterable
        ):
            raise RequestError(f"classes={self.classes!r} is not a list: {remedy}")
        given = list(self.classes)
        if not given:
            raise RequestError(f"classes=[] is empty, so there is nothing to forget: {remedy}")
        for value in given:
            if isinstance(value, bool) or not isinstance(value, Integral):
                raise RequestError(f"classes holds {value!r}, not a whole number: {remedy}")
            if value < 0:
                raise RequestError(f"classes holds {value}, below 0: {remedy}")
            if given.count(value) > 1:
                raise RequestError(f"classes={given} holds {value} more than once: {remedy}")
        object.__setattr__(self, "classes", tuple(sorted(int(value) for value in given)))

    @property
    def name(self) -> str:
        """``class_0``, or ``classes_1_7``."""
        return f"class{'es' * (len(self.classes) > 1)}_{'_'.join(map(str, self.classes))}"

    def check(self, num_classes: int) -> "Classes":
        """Return the request, if a model or data of so many classes can serve it.

        Raises:
            RequestError: a class that is not there, or all that there are.
        """
        if self.classes[-1] >= num_classes:
            raise RequestError(
                f"classes holds {self.classes[-1]}, not one of the classes 0 to {num_classes - 1}"
            )
        if len(self.classes) == num_classes:
            raise RequestError(
                f"classes={list(self.classes)} is every class, so none is left to retain: give at "
                f"most {num_classes - 1} of them"
            )
        return self

    def retained(self, num_classes: int) -> list[int]:
        """List the classes that stay."""
        return [k for k in range(num_classes) if k not in self.classes]

    def mask(self, labels: Tensor) -> Tensor:
        """Return bool ``[N]``, true where the label ``[N]`` is one of the classes."""
        wanted = torch.tensor(self.classes, dtype=labels.dtype, device=labels.device)
        return torch.isin(labels, wanted)

    def positions(self, labels: Tensor) -> Tensor:
        """Return the positions of the items to forget among labels ``[N]``: int64, ascending.

        Raises:
            RequestError: no item of these classes, or no other.
        """
        gone = self.mask(labels)
        if not gone.any() or gone.all():
            raise RequestError(
                f"{self.name}: {int(gone.sum())} of {len(labels)} items are of these classes; give "
                "data that has some of them and some of others"
            )
        return gone.nonzero().squeeze(1)


# ---------------------------------------------------------------------------------- groups


@dataclass(frozen=True)
class Group:
    """Ask for a group of training items to be forgotten, drawn by a seed.

    Draws of one seed are nested: a smaller group is part of a larger one of the same label.

    Attributes:
        mode: ``coherent``, from one class, or ``random``, from all items.
        label: class of a coherent group; None for a random one.
        size: items.
        seed: of the draw.

    Raises:
        RequestError: unknown mode, a label where none belongs or none where one does, no size.
    """

    mode: str
    label: int | None
    size: int
    seed: int = 0

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise RequestError(f"mode={self.mode!r}: choose one of {list(MODES)}")
        if (self.mode == "coherent") != (self.label is not None):
            raise RequestError(
                f"mode={self.mode!r} with label={self.label!r}: a coherent group has the number of "
                "its class, a random one has None"
            )
        if self.label is not None and (type(self.label) is not int or self.label < 0):
            raise RequestError(f"label={self.label!r}: give a class number")
        for name, least in (("size", 1), ("seed", 0)):
            value = getattr(self, name)
            if type(value) is not int or value < least:
                raise RequestError(f"{name}={value!r}: give a whole number from {least}")

    @property
    def source(self) -> str:
        """What the group is drawn from: ``label8`` or ``random``."""
        return "random" if self.label is None else f"label{self.label}"

    @property
    def name(self) -> str:
        """Such as ``coherent-label8-100-seed0``."""
        source = "all" if self.label is None else f"label{self.label}"
        return f"{self.mode}-{source}-{self.size}-seed{self.seed}"

    def positions(self, labels: Tensor) -> Tensor:
        """Draw the group from the labels ``[N]`` of training items: int64 ``[size]``, ascending.

        Raises:
            RequestError: more items than the class has, or so many that none stays.
        """
        counts = torch.bincount(labels) if len(labels) else torch.zeros(1, dtype=torch.int64)
        self.check(counts.tolist())
        if self.label is None:
            members = torch.arange(len(labels))
        else:
            members = (labels == self.label).nonzero().squeeze(1)
        order = torch.randperm(len(members), generator=seeds.stream(self.seed, "group"))
        return members[order[: self.size]].sort().values

    def check(self, counts: list[int]) -> "Group":
        """Return the request, if training items of so many a class can serve it.

        Raises:
            RequestError: more items than the class has, or so many that none stays.
        """
        total, held, of = sum(counts), sum(counts), "items"
        if self.label is not None:
            held = counts[self.label] if self.label < len(counts) else 0
            of = f"items of class {self.label}"
        most = min(held, total - 1)
        if self.size <= most:
            return self
        remedy = f"give 1 to {most}" if most > 0 else f"choose a class from 0 to {len(counts) - 1}"
        stay = ", and one of all must stay" if most < held else ""
        raise RequestError(f"size={self.size} of {held or 'no'} {of}{stay}: {remedy}")


@dataclass(frozen=True)
class Picked(Group):
    """Ask for the training items with the highest scores of a kind to be forgotten.

    Attributes:
        mode: an entry of `PICKED`.
        label: None; items come from all classes.
        size: items.
        seed: unused, 0.
        items: their positions, ascending; empty before they are picked.

    Raises:
        RequestError: see `Group`; or other than `size` items.
    """

    label: int | None = None
    size: int = 0
    items: tuple[int, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        if self.mode not in PICKED:
            raise RequestError(f"mode={self.mode!r}: choose one of {list(PICKED)}")
        if self.label is not None or self.seed:
            raise RequestError(
                f"mode={self.mode!r} with label={self.label!r} and seed={self.seed!r}: such a group "
                "is neither of one class nor drawn; leave them out"
            )
        Group("random", None, self.size)  # its checks of the size
        if self.items and len(self.items) != self.size:
            raise RequestError(f"{len(self.items)} items for size={self.size}: give as many")

    @property
    def name(self) -> str:
        """Such as ``hard-500``."""
        return f"{self.mode}-{self.size}"

    def positions(self, labels: Tensor) -> Tensor:
        """Return the positions of the items among the labels ``[N]``: int64 ``[size]``, ascending.

        Raises:
            RequestError: not picked yet, or items that are not there.
        """
        if not self.items:
            raise RequestError(f"{self.name}: not picked yet; run the notebook 40_arena_models")
        if self.items[-1] >= len(labels):
            raise RequestError(f"{self.name}: no item {self.items[-1]} among {len(labels)}")
        self.check(torch.bincount(labels).tolist())
        return torch.tensor(self.items)


Request = Classes | Group


def parse(given: Mapping[str, Any]) -> Request:
    """Make a request from parameters: ``{classes: [...]}``, or the attributes of `Group` or `Picked`.

    Raises:
        RequestError: neither, or what they raise.
    """
    remedy = f"give classes alone, or mode, label, size and seed, or mode ({' or '.join(PICKED)}) and size"
    if not isinstance(given, Mapping):
        raise RequestError(f"a request is a mapping, not {given!r}: {remedy}")
    if set(given) == {"classes"}:
        return Classes(given["classes"])
    if given.get("mode") in PICKED and {"mode", "size"} <= set(given) <= {
        "mode",
        "size",
        "label",
        "seed",
    }:
        return Picked(**given)
    if {"mode", "size"} <= set(given) <= {"mode", "label", "size", "seed"}:
        return Group(**{"label": None, "seed": 0} | dict(given))
    raise RequestError(f"a request with the keys {list(given)}: {remedy}")


def rest(count: int, positions: Tensor) -> Tensor:
    """Return the positions that stay when some go: int64 ``[count - M]``, ascending."""
    keep = torch.ones(count, dtype=torch.bool)
    keep[positions] = False
    return keep.nonzero().squeeze(1)


# --------------------------------------------------------------------------------- methods


@dataclass(frozen=True)
class Method(Named):
    """Say of a way to unlearn what it reads and which requests it serves.

    Attributes:
        family: a key of `FAMILIES`.
        reads: beside the original model, in words.
        serves: kinds of requests.
        why_not: why it serves no others, in words that follow its name.

    Raises:
        ValueError: unknown family.
    """

    family: str
    reads: str = field(compare=False)
    serves: tuple[type, ...] = (Classes, Group)
    why_not: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        if self.family not in FAMILIES:
            raise ValueError(f"{self.name}: family={self.family!r}: choose one of {list(FAMILIES)}")

    def cannot(self, request: Request) -> str | None:
        """Tell why the method cannot serve a request, or return None where it can."""
        return None if isinstance(request, self.serves) else self.why_not
