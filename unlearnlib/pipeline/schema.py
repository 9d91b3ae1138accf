"""Settings from plain values, strictly: no key too many, no text for a number, no value out of range.

Settings are dataclasses beside their code, with ranges as ``Annotated[int, Ge(1)]`` and rules across
fields in ``__post_init__``. Pydantic reads both. It is imported where it is needed: the library's
science does without it.
"""

import json
import re
import reprlib
import types
from collections.abc import Mapping
from dataclasses import dataclass, is_dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar, Union, get_args, get_origin, get_type_hints

from unlearnlib.pipeline.parameters import ParameterError, number_hint, suggestion

if TYPE_CHECKING:
    from pydantic import BaseModel
    from pydantic_core import ErrorDetails

Built = TypeVar("Built")
Keys = tuple[str | int, ...]

# dataclasses inside a model are read as it says
STRICT = {"strict": True, "extra": "forbid", "frozen": True, "allow_inf_nan": False}
ABSENT = object()
_UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")
# what pydantic says before what it asks for
_SUBJECT = re.compile(r"^(Input|List|Tuple|Dictionary) | after validation")
_WORDS = {"a valid array": "a list", "a valid dictionary": "a mapping", "an object": "a mapping"}
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 60
_SHORT.maxlist = _SHORT.maxtuple = _SHORT.maxdict = 12


@dataclass(frozen=True)
class Problem:
    """Say what is wrong with a value.

    Attributes:
        keys: that lead to it.
        why: what is wrong and what is allowed.
        value: the value; `ABSENT` where there is none or where `why` names it.
    """

    keys: Keys
    why: str
    value: Any = ABSENT

    def within(self, *keys: str | int) -> "Problem":
        """Return the same problem of what stands under some keys."""
        return Problem((*keys, *self.keys), self.why, self.value)

    def __str__(self) -> str:
        """Write ``path = value: why``."""
        value = "" if self.value is ABSENT else f" = {_SHORT.repr(self.value)}"
        path = ".".join(map(str, self.keys))
        return f"{path}{value}: {self.why}" if path else self.why


def build(settings: type[Built], given: Mapping[str, Any]) -> Built:
    """Build a settings dataclass, nested ones too, from plain values.

    >>> build(gkt.Transfer, {"pseudo_batches": 12, "snapshots": 6})

    Args:
        settings: a dataclass.
        given: values by the name of the field; a mapping for a nested dataclass.

    Raises:
        ParameterError: with every problem: an unknown or a missing key, another type, a value out of
            range, NaN, or what ``__post_init__`` refuses.
        ModuleNotFoundError: without pydantic.
    """
    built, problems = check(settings, dict(given))
    if problems:
        what = f"{settings.__module__}.{settings.__qualname__}"
        raise ParameterError("\n  ".join([f"{what}:", *map(str, problems)]))
    return built


def check(kind: Any, given: Any) -> tuple[Any, list[Problem]]:
    """Read a plain value as a type, strictly.

    Args:
        kind: a type or annotation: of a number, a list, a mapping, a dataclass or a model.
        given: plain values, as YAML or JSON have them.

    Returns:
        the value, None where it is none of that type; and all that is wrong with it.
    """
    try:
        from pydantic import ValidationError
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "settings from plain values need pydantic: pip install 'unlearnlib[study]', or build the "
            "settings yourself"
        ) from error
    try:
        text = json.dumps({"value": given})
    except TypeError as error:
        return None, [Problem((), f"not a plain value ({error})", given)]
    try:
        # as JSON, in which a tuple is a list and strictness asks for nothing that YAML lacks
        return _holder(kind).model_validate_json(text).value, []
    except ValidationError as error:
        details = error.errors(include_url=False)
        return None, [_problem(kind, one) for one in details]


@cache
def _holder(kind: Any) -> "type[BaseModel]":
    from pydantic import create_model

    return create_model("Holder", __config__=STRICT, value=(kind, ...))


def _problem(kind: Any, detail: "ErrorDetails") -> Problem:
    """Put a problem that pydantic found into words."""
    keys, found = tuple(detail["loc"][1:]), detail["type"]
    of_key = keys[-1:] == ("[key]",)
    keys = keys[:-1] if of_key else keys
    if found in ("missing", "missing_argument"):
        return Problem(keys, "is missing; give it a value")
    if found in _UNKNOWN:
        known = _names(kind, keys[:-1])
        hint = suggestion(str(keys[-1]), known) or f"; there are {', '.join(known) or 'none'}"
        return Problem(keys, f"no such key{hint}", detail["input"])
    if found == "value_error":
        # of a mapping the message names the keys at fault, and their values
        value = ABSENT if of_key or isinstance(detail["input"], dict) else detail["input"]
        return Problem(keys, str(detail["ctx"]["error"]), value)
    asked = f"{_asked(detail['msg'])}{_hint(detail)}"
    return Problem(keys, f"the name {asked}") if of_key else Problem(keys, asked, detail["input"])


def _hint(detail: "ErrorDetails") -> str:
    """Return what a text was perhaps meant to be, as the end of a message."""
    given = detail["input"]
    if not isinstance(given, str):
        return ""
    if detail["type"] == "literal_error":
        return suggestion(given, re.findall("'([^']+)'", detail["ctx"]["expected"]))
    if detail["type"] in ("int_type", "float_type"):
        return number_hint(given)
    return ""


def _asked(message: str) -> str:
    """Leave of a message of pydantic what it asks for, in words of YAML."""
    for theirs, ours in _WORDS.items():
        message = message.replace(theirs, ours)
    return _SUBJECT.sub("", message)


def _names(kind: Any, keys: Keys) -> list[str]:
    """List the names of the fields of what stands under some keys of a type."""
    for key in keys:
        kind = _under(kind, key)
    return list(_fields(kind))


def _under(kind: Any, key: str | int) -> Any:
    """Return the type of what stands under a key, None where nothing is known of it."""
    for one in _alternatives(kind):
        if key in (fields := _fields(one)):
            return fields[key]
        if get_origin(one) in (list, tuple, dict):
            return next(inner for inner in reversed(get_args(one)) if inner is not Ellipsis)
    return None


def _alternatives(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)


def _fields(kind: Any) -> dict[str, Any]:
    """Return the types of the fields of a dataclass or model by name, none of another type."""
    for one in _alternatives(kind):
        if is_dataclass(one):
            hints = get_type_hints(one)
            return {name: hints[name] for name in one.__dataclass_fields__}
        if hasattr(one, "model_fields"):
            hints = get_type_hints(one)
            return {name: hints[name] for name in one.model_fields}
    return {}
