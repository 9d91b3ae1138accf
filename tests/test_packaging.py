"""Packaging: what is installed by name alone is enough for the science."""

import ast
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SCIENCE = ["data", "models", "zero_shot", "influence", "groups", "measures", "arena", "own"]
ABSENT = [
    *("IPython", "PIL", "altair", "bs4", "dask", "distributed", "dvc", "ipykernel", "jinja2"),
    *(
        "jupyter",
        "jupyter_client",
        "kronfluence",
        "matplotlib",
        "mlxtend",
        "nbclient",
        "nbconvert",
        "nbformat",
    ),
    *("papermill", "playwright", "pydantic", "pytest", "seaborn", "timm", "torchvision"),
]
# packages of ours that only some calls need, which say so where they are absent
LATE = {"kronfluence", "mlxtend", "torchvision", "timm", "pydantic", "pydantic_core"}
PROGRAM = """
import importlib, pkgutil, sys
from importlib.abc import MetaPathFinder

absent = set({absent!r})

class Missing(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in absent:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Missing())
names = [
    module.name
    for room in {rooms!r}
    for module in pkgutil.iter_modules(importlib.import_module(f"unlearnlib.{{room}}").__path__,
                                       f"unlearnlib.{{room}}.")
]
for name in names:
    importlib.import_module(name)
assert not absent & {{name.partition(".")[0] for name in sys.modules}}
print(*names)
"""


def test_every_module_of_the_science_imports_without_what_is_extra() -> None:
    program = PROGRAM.format(absent=ABSENT, rooms=SCIENCE)
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    files = [file for room in SCIENCE for file in (ROOT / "unlearnlib" / room).glob("*.py")]
    modules = {".".join(file.relative_to(ROOT).with_suffix("").parts) for file in files}
    assert set(done.stdout.split()) == {m for m in modules if not m.endswith("__init__")}


def imported(folder: Path) -> set[str]:
    """The packages of others that the modules of a folder import, anywhere in them."""
    found = set()
    for file in folder.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                found.add(node.module.partition(".")[0])
    return found - set(sys.stdlib_module_names) - {"unlearnlib"}


def distributions(packages: set[str]) -> set[str]:
    known = packages_distributions()
    return {canonicalize_name(known[package][0]) for package in packages if package in known}


def asked_for(*extras: str) -> set[str]:
    texts = [*PROJECT["dependencies"]]
    for extra in extras:
        texts += PROJECT["optional-dependencies"][extra]
    return {canonicalize_name(Requirement(text).name) for text in texts}


@pytest.mark.parametrize("room", SCIENCE)
def test_what_the_science_imports_is_a_dependency(room: str) -> None:
    packages = imported(ROOT / "unlearnlib" / room)
    assert distributions(packages - LATE) <= asked_for()
    assert distributions(packages & LATE) <= asked_for("study")


@pytest.mark.parametrize("room", ["pipeline", "report"])
def test_what_the_rest_imports_is_an_extra(room: str) -> None:
    found = distributions(imported(ROOT / "unlearnlib" / room))
    # pydantic_core is the part of pydantic that its types come from
    assert found - {"pydantic-core"} <= asked_for("study", "cluster")


def test_no_dependency_is_idle() -> None:
    folders = [folder for folder in (ROOT / "unlearnlib").iterdir() if folder.is_dir()]
    used = distributions(set().union(*map(imported, folders)))
    assert asked_for() <= used


def test_settings_from_plain_values_name_the_remedy_where_pydantic_is_absent() -> None:
    program = """
import sys
sys.modules["pydantic"] = None
from unlearnlib.pipeline.schema import build
from unlearnlib.zero_shot import gkt
build(gkt.Settings, {})
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert re.search(r"ModuleNotFoundError: .*pip install 'unlearnlib\[study\]'", done.stderr)
