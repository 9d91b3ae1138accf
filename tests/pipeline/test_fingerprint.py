"""Fingerprints follow what code does through its imports, and not how it is written down."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from unlearnlib.pipeline import fingerprint

FILES = {
    "__init__.py": "",
    "top.py": "from . import left\nfrom .right import area\nimport json\nraise RuntimeError\n",
    "left.py": "def turn():\n    import study.deep\n    return study.deep\n",
    "right.py": "from unlearnlib.pipeline.paths import root\ndef area(side):\n    return side * side\n",
    "deep.py": "import study.top\n",
    "apart.py": "x = 1\n",
}


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Write a small package whose modules import each other in every way."""
    folder = tmp_path / "study"
    folder.mkdir()
    for name, text in FILES.items():
        (folder / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    yield folder
    sys.modules.pop("study", None)


def test_closure_follows_every_kind_of_import(study: Path) -> None:
    ours = {path.name for path in fingerprint.closure("study.top") if path.parent == study}
    assert ours == {"__init__.py", "top.py", "left.py", "right.py", "deep.py"}


def test_closure_includes_unlearnlib_and_nothing_installed(study: Path) -> None:
    others = {path.name for path in fingerprint.closure("study.top") if path.parent != study}
    assert others == {"__init__.py", "paths.py"}


def test_closure_of_a_module_here() -> None:
    names = [path.name for path in fingerprint.closure("unlearnlib.pipeline.fingerprint")]
    assert names == ["__init__.py", "__init__.py", "fingerprint.py"]


def test_notebook_code_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)
    with pytest.raises(ValueError, match="move the code into unlearnlib"):
        fingerprint.closure("__main__")
    with pytest.raises(ValueError, match="absent"):
        fingerprint.code("unlearnlib.absent")


@pytest.mark.parametrize(
    "text",
    [
        "from unlearnlib.pipeline.paths import root\n\n\ndef area(side):\n    return (side * side)  # m2\n",
        '"""Areas."""\nfrom unlearnlib.pipeline.paths import root\ndef area(side):\n    "Square."\n'
        "    return side * side\n",
    ],
)
def test_prose_and_formatting_do_not_count(study: Path, text: str) -> None:
    before = fingerprint.code("study.top")
    (study / "right.py").write_text(text)
    assert fingerprint.code("study.top") == before


@pytest.mark.parametrize("name", ["top.py", "deep.py", "right.py", "__init__.py"])
def test_code_anywhere_in_the_closure_counts(study: Path, name: str) -> None:
    before = fingerprint.code("study.top")
    (study / name).write_text(FILES[name] + "extra = 1\n")
    assert fingerprint.code("study.top") != before


def test_code_outside_the_closure_does_not_count(study: Path) -> None:
    before = fingerprint.code("study.top")
    (study / "apart.py").write_text("x = 2\n")
    assert fingerprint.code("study.top") == before


def test_a_string_that_is_no_docstring_counts(study: Path) -> None:
    (study / "top.py").write_text("from . import left\n'docstring?'\n")
    before = fingerprint.code("study.top")
    (study / "top.py").write_text("from . import left\n'other'\n")
    assert fingerprint.code("study.top") != before
