"""Versions: pyproject.toml, requirements.lock, environment.yml and what is installed agree."""

import re
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
# `make env` installs all of them
DEPENDENCIES = [
    Requirement(text) for texts in (PROJECT["dependencies"], *EXTRAS.values()) for text in texts
]
LOCK_TEXT = (ROOT / "requirements.lock").read_text()
LOCK_LINES = [line for line in LOCK_TEXT.splitlines() if line and not line.startswith("#")]
CONDA = yaml.safe_load((ROOT / "environment.yml").read_text())


def applies(requirement: Requirement, extra: str = "") -> bool:
    environment = default_environment() | {"extra": extra}
    return requirement.marker is None or requirement.marker.evaluate(environment)


def locked_here() -> dict[str, Requirement]:
    """Return the lines of the lock that count on this machine, by canonical name."""
    pinned = [Requirement(line) for line in LOCK_LINES]
    return {canonicalize_name(pin.name): pin for pin in pinned if applies(pin)}


def version(pin: Requirement) -> str:
    (clause,) = pin.specifier
    return clause.version


def test_lock_is_pinned_and_names_no_host() -> None:
    pins = [line for line in LOCK_LINES if re.match(r"[\w.-]+==[\w.!+]+( ;|$)", line)]
    assert pins == LOCK_LINES
    assert not re.search(r"://|@|(?m:^\s*-)|\.(com|org|io|net)\b", LOCK_TEXT)


def test_lock_pins_each_package_once() -> None:
    pins = [Requirement(line) for line in LOCK_LINES]
    here = [canonicalize_name(pin.name) for pin in pins if applies(pin)]
    assert len(here) == len(set(here))


@pytest.mark.parametrize("dependency", DEPENDENCIES, ids=str)
def test_lock_satisfies_pyproject(dependency: Requirement) -> None:
    pin = locked_here()[canonicalize_name(dependency.name)]
    assert dependency.specifier.contains(version(pin), prereleases=True)


def test_installed_packages_are_those_of_the_lock() -> None:
    wrong = {
        name: f"installed {found}, locked {version(pin)}"
        for name, pin in locked_here().items()
        if not pin.specifier.contains(found := metadata.version(name), prereleases=True)
    }
    assert not wrong, f"{wrong}: run make env"


def test_lock_is_complete_and_has_nothing_else() -> None:
    """`make env` installs without resolving, so the lock must hold all that anything needs."""
    pins, seen, unmet, queue = locked_here(), set(), [], list(DEPENDENCIES)
    while queue:
        need = queue.pop()
        name = canonicalize_name(need.name)
        if name not in pins or not need.specifier.contains(version(pins[name]), prereleases=True):
            unmet.append(str(need))
        elif (name, str(need.extras)) not in seen:
            seen.add((name, str(need.extras)))
            further = map(Requirement, metadata.requires(name) or [])
            queue += [more for more in further if any(applies(more, e) for e in ("", *need.extras))]
    assert not unmet
    assert {name for name, _ in seen} == set(pins)


def test_no_package_is_asked_for_twice() -> None:
    names = [canonicalize_name(dependency.name) for dependency in DEPENDENCIES]
    assert len(names) == len(set(names))


def test_an_environment_has_what_notebooks_and_their_tests_need() -> None:
    needed = {"jupyter", "papermill", "torch", "torchvision", "seaborn", "statsmodels", "nbval"}
    assert needed <= locked_here().keys()


def test_conda_gets_the_same_versions() -> None:
    conda = [entry for entry in CONDA["dependencies"] if isinstance(entry, str)]
    (pip,) = [entry["pip"] for entry in CONDA["dependencies"] if isinstance(entry, dict)]
    assert pip == ["-r requirements.lock", "-e ."]
    assert CONDA["channels"] == ["conda-forge", "nodefaults"]
    # the interpreter is all that conda chooses; anything else would escape the lock
    interpreter, *others = conda
    assert others == ["pip"]
    name, conda_python = interpreter.split("=")
    assert name == "python"
    supported = SpecifierSet(PROJECT["requires-python"])
    minors = [f"3.{minor}" for minor in range(30) if supported.contains(f"3.{minor}.99")]
    assert minors == [conda_python]


def test_makefile_asks_for_the_same_python() -> None:
    (asked,) = re.findall(
        r"^PYTHON_VERSION := (\S+)$", (ROOT / "Makefile").read_text(), re.MULTILINE
    )
    assert f"python={asked}" in CONDA["dependencies"]
