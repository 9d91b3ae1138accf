"""Parameters of a profile, handed to each notebook without a key too many or too few."""

import re
from difflib import get_close_matches

import yaml

from unlearnlib.pipeline.paths import root

# what YAML 1.1 leaves a string and YAML 1.2, which DVC reads, makes a number
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)e[-+]?\d+", re.IGNORECASE)


class ParameterError(ValueError):
    """The parameter file and the notebook disagree."""


def load(profile: str) -> dict:
    """Read `params/<profile>.yaml`.

    Returns:
        One dict for each section: `study`, and one named as each notebook without its number.

    Raises:
        ParameterError: there is no such profile, or a section is no mapping, or a number is
            written so that YAML reads a string.
    """
    files = {path.stem: path for path in (root() / "params").glob("*.yaml")}
    # the list of profiles is no profile
    files.pop("profiles", None)
    if profile not in files:
        raise ParameterError(
            f"no profile {profile!r}; there are: {', '.join(sorted(files)) or 'none'}"
        )
    sections = yaml.safe_load(files[profile].read_text(encoding="utf-8"))
    for name, section in sections.items():
        if not isinstance(section, dict):
            raise ParameterError(
                f"section {name!r} of params/{profile}.yaml holds no keys; write `{name}: {{}}`"
            )
        for key, value in section.items():
            _check_number(f"{name}.{key}", value)
    return sections


def for_notebook(profile: str, stem: str, declared: set[str]) -> dict:
    """Return the parameters of a notebook: its own section, and shared keys that it declares.

    A key of the notebook's own section wins over a shared one.

    Args:
        profile: name of the profile.
        stem: name of the notebook without suffix, as in `12_gkt`.
        declared: names in the notebook's `parameters` cell; `profile` may be among them and is
            left to the caller.

    Raises:
        ParameterError: a key is declared and not set, or set and not declared.
    """
    sections = load(profile)
    name = re.sub(r"^\d+_", "", stem)
    where = f"params/{profile}.yaml"
    if name not in sections:
        hint = _suggestion(name, sections)
        raise ParameterError(f"{where} has no section {name!r} for {stem}.ipynb{hint}")
    own, shared = sections[name], sections.get("study", {})
    for key in own.keys() - declared:
        hint = _suggestion(key, declared)
        raise ParameterError(f"{stem}.ipynb declares no {key!r}, which {where} sets{hint}")
    available = shared | own
    for key in declared - available.keys() - {"profile"}:
        hint = _suggestion(key, available)
        raise ParameterError(f"{where} sets no {key!r}, which {stem}.ipynb declares{hint}")
    return {key: value for key, value in available.items() if key in declared}


def _suggestion(name: str, known: set[str] | dict) -> str:
    """Return what the name was perhaps meant to be, as the end of a message."""
    close = get_close_matches(name, sorted(map(str, known)), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _check_number(name: str, value: object) -> None:
    """Raise ParameterError if YAML left a string where a number was meant, at any depth."""
    if isinstance(value, list | dict):
        for item in value.values() if isinstance(value, dict) else value:
            _check_number(name, item)
    elif isinstance(value, str) and _NUMBER.fullmatch(value):
        raise ParameterError(
            f"{name}: {value} is a string to YAML; write it with a point and a sign, as 1.0e-3"
        )
