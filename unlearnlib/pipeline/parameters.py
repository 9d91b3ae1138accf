"""Parameters of a profile: what `params/base.yaml` sets, and what the profile's own file changes.

A mapping of the profile is merged with that of ``base.yaml``, key by key, at any depth; a list or a
plain value replaces the one there. A mapping that holds ``_replace_: true`` replaces the one there as
a whole. Every stage is handed the keys that its notebook declares, not one too many or too few.
"""

import re
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from unlearnlib.pipeline.paths import root

Sections = dict[str, dict[str, Any]]

BASE = "base"
REPLACE = "_replace_"
# notebooks that are handed the section of another one: gold has the recipe of its original
SECTIONS = {"retrain": "train"}

# what YAML 1.1 leaves a string and YAML 1.2, which DVC reads, makes a number
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)e[-+]?\d+", re.IGNORECASE)


class ParameterError(ValueError):
    """A parameter file that is wrong in itself, or that a notebook disagrees with."""


def load(profile: str) -> Sections:
    """Read the parameters of a profile: `params/base.yaml`, changed by `params/<profile>.yaml`.

    Returns:
        One dict for each section: `study`, and one named as each notebook without its number.

    Raises:
        ParameterError: there is no such profile, a file is no YAML, a key is given twice, a section
            is no mapping, or a number is written so that YAML reads a string.
    """
    return merged(read(BASE), changes(profile))


def profiles() -> list[str]:
    """List the names of the profiles: the files in `params/` that are one."""
    names = {path.stem for path in (root() / "params").glob("*.yaml")}
    return sorted(names - {BASE, "profiles"})


def changes(profile: str) -> Sections:
    """Read what a profile changes, see `load`."""
    if profile not in profiles():
        raise ParameterError(
            f"no profile {profile!r}; there are: {', '.join(profiles()) or 'none'}"
        )
    return read(profile)


def read(name: str) -> Sections:
    """Read `params/<name>.yaml` alone, see `load`."""
    file = f"params/{name}.yaml"
    try:
        # the name of the file is that of the messages
        loader = _Loader((root() / file).read_text(encoding="utf-8"))
        loader.name = file
        sections = loader.get_single_data() or {}
    except FileNotFoundError as error:
        raise ParameterError(f"there is no {file}, which holds every key") from error
    except yaml.YAMLError as error:
        raise ParameterError(f"{file} is not what YAML can read: {error}") from error
    if not isinstance(sections, dict):
        raise ParameterError(f"{file} holds no sections but {type(sections).__name__}")
    for section, keys in sections.items():
        if not isinstance(keys, dict):
            raise ParameterError(
                f"section {section!r} of {file} holds no keys; write `{section}: {{}}`"
            )
        _check_numbers(keys, f"{file}: {section}")
    return sections


def merged(base: dict[str, Any], changed: dict[str, Any]) -> dict[str, Any]:
    """Merge two mappings into a new one, in the order of `base`, see the head of this module."""
    if changed.get(REPLACE):
        base = {}
    result = dict(base)
    for key, value in changed.items():
        if isinstance(value, dict):
            former = base.get(key)
            value = merged(former if isinstance(former, dict) else {}, value)
        if key != REPLACE:
            result[key] = value
    return result


def for_notebook(profile: str, stem: str, declared: Iterable[str]) -> dict[str, Any]:
    """Return the parameters of a notebook: its own section, and shared keys that it declares.

    A key of the notebook's own section wins over a shared one.

    Args:
        profile: name of the profile.
        stem: name of the notebook without suffix, as in `12_gkt`.
        declared: names in the notebook's `parameters` cell; `profile` may be among them and is
            left to the caller.

    Returns:
        the values, in the order of `declared`.

    Raises:
        ParameterError: a key is declared and not set, or set and not declared; or what `load` raises.
    """
    sections, name, declared = load(profile), section_of(stem), list(declared)
    where = f"params/{profile}.yaml over params/{BASE}.yaml"
    if name not in sections:
        hint = suggestion(name, sections)
        raise ParameterError(f"{where} has no section {name!r} for {stem}.ipynb{hint}")
    own, shared = sections[name], sections.get("study", {})
    for key in own.keys() - set(declared):
        hint = suggestion(key, declared)
        raise ParameterError(f"{stem}.ipynb declares no {key!r}, which {where} sets{hint}")
    available = shared | own
    for key in set(declared) - available.keys() - {"profile"}:
        hint = suggestion(key, available)
        raise ParameterError(f"{where} sets no {key!r}, which {stem}.ipynb declares{hint}")
    return {key: available[key] for key in declared if key in available}


def section_of(stem: str) -> str:
    """Name the section of a notebook, given by its name without suffix."""
    name = re.sub(r"^\d+_", "", stem)
    return SECTIONS.get(name, name)


def resolved(profile: str) -> Path:
    """Name the file with all parameters of a profile, which the stages depend on."""
    return root() / "build" / "params" / f"{profile}.yaml"


def text(sections: Sections) -> str:
    """Write parameters as YAML without references, in their order."""
    return yaml.dump(
        sections, Dumper=_Plain, sort_keys=False, default_flow_style=False, allow_unicode=True
    )


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return what a name was perhaps meant to be, as the end of a message."""
    close = get_close_matches(name, sorted(map(str, known)), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def number_hint(text: str) -> str:
    """Return how to write a number that is a text, as the end of a message."""
    if _NUMBER.fullmatch(text):
        return f"; that is a text to YAML, write {_spelt(text)}"
    try:
        float(text)
    except ValueError:
        return ""
    return "; that is a text, leave its quotation marks out"


class _Loader(yaml.SafeLoader):
    """Reads YAML whose mappings give each key once; the standard says so, PyYAML does not mind."""

    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        given = set()
        for key, _ in node.value:
            if key.value in given:
                raise ParameterError(
                    f"{self.name}, line {key.start_mark.line + 1}: the key {key.value!r} is given "
                    "twice; leave one of them"
                )
            given.add(str(key.value))
        return node


class _Plain(yaml.SafeDumper):
    """Writes no anchors, so that every value stands where it counts."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _check_numbers(value: Any, where: str) -> None:
    """Raise ParameterError if YAML left a string where a number was meant, at any depth."""
    if isinstance(value, list | dict):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in items:
            _check_numbers(item, f"{where}.{key}")
    elif isinstance(value, str) and _NUMBER.fullmatch(value):
        raise ParameterError(f"{where} = {value}: a string to YAML; write it as {_spelt(value)}")


def _spelt(number: str) -> str:
    """Spell a number with exponent so that YAML 1.1 takes it: with a point and a sign."""
    digits, exponent = re.split("[eE]", number)
    point = digits if "." in digits else f"{digits}.0"
    return f"{point}e{exponent if exponent[0] in '+-' else f'+{exponent}'}"
