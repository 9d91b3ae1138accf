"""Parameter cells: readable, short, and of the same values."""

import ast
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

from unlearnlib.pipeline import cells, parameters
from unlearnlib.pipeline.parameters import ParameterError

WRITTEN = """\
profile = "quick"  # names the folders
# of every seed = one run
seeds = [0, 1]
text: str = "a = b # c"  # with a = sign, and a # sign
λ: float | None = 1e-3
mapping = {  # of the λ = 1 method
    "λ": [1, 2], "key=1": "#1",  # inside
    "nested": {"a": -1.5}}  # fmt: skip
empty = {}

# a heading

one = other = (1 + 2)
if True:
    inner = 1
"""


def test_a_cell_is_read_with_every_value_whole_and_its_comments() -> None:
    assert cells.assigned(WRITTEN) == {
        "profile": ('"quick"', "names the folders"),
        "seeds": ("[0, 1]", "of every seed = one run"),
        "text": ('"a = b # c"', "with a = sign, and a # sign"),
        "λ": ("1e-3", ""),
        "mapping": (
            '{"λ": [1, 2], "key=1": "#1", "nested": {"a": -1.5}}',
            "of the λ = 1 method inside",
        ),
        "empty": ("{}", ""),
        "one": ("1 + 2", ""),
        "other": ("1 + 2", ""),
    }
    with pytest.raises(SyntaxError):
        cells.assigned("a = [1")


NESTED = {
    "first": {"method": "gkt", "settings": {"pseudo_batches": 50, "batch_size": 64, "a" * 30: 1}},
    "second": {"method": "deep", "settings": {"drawing": {"b" * 40: 0.1, "c" * 30: [1, 2, 3]}}},
    "third": {},
    "flags": [True, False, None, "text with \"quotes\" and 'more'", "λ"],
    "long": list(range(100)),
}


def value_of(source: str, name: str = "x") -> Any:
    """Return what a statement assigns, from its text alone."""
    (statement,) = ast.parse(source).body
    assert statement.targets[0].id == name
    return ast.literal_eval(statement.value)


@pytest.mark.parametrize(
    "value",
    [1, 0.001, 1e-7, None, "a", "it's", [], {}, [0], [1.5] * 60, {"a": 1}, NESTED, {"k": NESTED}],
)
@pytest.mark.parametrize("comment", ["", "what it is", "a comment that is long " * 4])
def test_a_value_is_written_as_it_is_within_the_width(value: Any, comment: str) -> None:
    written = cells.assignment("x", value, comment.strip())
    assert value_of(written) == value
    assert max(map(len, written.splitlines())) <= cells.WIDTH
    assert comment.strip() in written


def test_a_short_value_has_its_comment_behind_it() -> None:
    assert cells.assignment("x", [1, 2], "of all") == "x = [1, 2]  # of all"


def test_a_long_value_is_filled_and_left_alone_by_the_formatter() -> None:
    value = {"alpha": 1, "beta": list(range(40)), "gamma": "c" * 20}
    lines = cells.assignment("x", value, "what it is").splitlines()
    assert lines[0] == "x = {  # what it is"
    assert lines[1].startswith('    "alpha": 1, "beta": [0, 1, 2')
    assert lines[-1].endswith("}  # fmt: skip")
    assert len(lines) == 4


def test_comments_are_those_of_the_section() -> None:
    text = (
        "a: # of the section\n  x: 1 # null: all\n  y: # of y\n    x: 2 # inner\n  z: 3\n"
        "b:\n  x: 5 # another\n"
    )
    assert cells.comments(text, "a") == {"x": "None: all", "y": "of y", "z": ""}
    assert cells.comments(text, "b") == {"x": "another"}
    assert cells.comments(text, "c") == {}


def test_names_are_listed_in_the_order_of_the_cell() -> None:
    source = "profile = 'quick'\nb: int | None = None  # a = 1\na = [0]\nb = 2"
    assert cells.declared(source) == ["profile", "b", "a"]


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the notebooks and parameters."""
    for folder in ("notebooks", "params"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    monkeypatch.setenv("UNLEARNLIB_ROOT", str(tmp_path))
    return tmp_path


def parameters_cell(path: Path) -> str:
    (cell,) = [
        cell
        for cell in json.loads(path.read_text())["cells"]
        if "parameters" in cell["metadata"].get("tags", [])
    ]
    return "".join(cell["source"])


def test_the_command_writes_every_cell_once(
    house: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = house / "params" / "quick.yaml"
    file.write_text(file.read_text().replace("\nstudy:\n", "\nstudy:\n  workers: 7\n", 1))
    path = house / "notebooks" / "12_gkt.ipynb"
    before = json.loads(path.read_text())
    assert cells.main(["12_gkt"]) == 0
    assert capsys.readouterr().out == "notebooks/12_gkt.ipynb\n"
    after = json.loads(path.read_text())
    assert "workers = 7  # processes, one thread each" in parameters_cell(path)
    changed = [a != b for a, b in zip(before["cells"], after["cells"], strict=True)]
    assert sum(changed) == 1
    assert path.read_text() == json.dumps(after, indent=1, ensure_ascii=False) + "\n"
    stamp = path.stat().st_mtime_ns
    assert cells.main(["12_gkt"]) == 0
    assert capsys.readouterr().out == ""
    assert path.stat().st_mtime_ns == stamp


def test_a_notebook_that_declares_another_key_is_named_and_left(
    house: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = house / "notebooks" / "12_gkt.ipynb"
    path.write_text(path.read_text().replace("factor_seeds = ", "facto_seeds = ", 1))
    before = path.read_text()
    assert cells.main(["12_gkt"]) == 1
    assert "declares no 'factor_seeds'" in capsys.readouterr().err
    assert path.read_text() == before


def test_an_unknown_notebook_is_refused(house: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cells.main(["12_gtk"])
    assert "no notebook 12_gtk" in capsys.readouterr().err


def test_a_notebook_without_such_a_cell_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "99_none.ipynb"
    file.write_text(json.dumps({"cells": []}))
    with pytest.raises(ParameterError, match="0 cells tagged"):
        cells.write(file)


@pytest.mark.parametrize(
    "path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem
)
def test_every_cell_is_what_the_command_writes(path: Path) -> None:
    source = parameters_cell(path)
    assert source == cells.cell(path.stem, cells.declared(source)), "run make cells"
    assert len(source.splitlines()) <= 30
    assert max(map(len, source.splitlines())) <= cells.WIDTH


def test_every_key_of_the_base_is_explained() -> None:
    """Behind the key, or, of a mapping, behind its own keys."""
    text = (ROOT / "params" / "base.yaml").read_text()
    for section, keys in parameters.read("base").items():
        said = cells.comments(text, section)
        bare = [key for key, value in keys.items() if not (said[key] or isinstance(value, dict))]
        assert not bare, section
