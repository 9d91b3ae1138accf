"""The executed notebooks, executed again: what their checked cells show must be the same.

A cell is checked when it has the tag `nbval-check-output`.
"""

import os
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from conftest import ROOT
from nbformat import NotebookNode

STEMS = sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))
EXECUTED = Path("reports/quick/notebooks")
TAG = "nbval-check-output"
KINDS = ("text/html", "text/markdown")


def checked(path: Path) -> dict[str, NotebookNode]:
    """Return a notebook's checked cells by the names that nbval gives them."""
    code = [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]
    named = {f"Cell {number}": cell for number, cell in enumerate(code)}
    return {name: cell for name, cell in named.items() if TAG in cell.metadata.get("tags", [])}


def shown(cell: NotebookNode) -> str:
    """Return the tables, prose and prints of a cell: of a figure, nbval sees the title only."""
    return "".join(
        output.get("text", "") + "".join(output.get("data", {}).get(kind, "") for kind in KINDS)
        for output in cell.outputs
    ).strip()


def nbval(root: Path, *options: str) -> tuple[str, set[tuple[str, str]]]:
    """Execute the notebooks of the quick profile in `root` again.

    Returns:
        nbval's report, empty when every cell passed, and the stem and cell of those that did.
    """
    environment = os.environ | {
        "UNLEARNLIB_ROOT": str(root),
        "OMP_NUM_THREADS": "1",
        # as in unlearnlib.pipeline.runner: neither the order of a set nor a reader's settings may show
        "PYTHONHASHSEED": "0",
        "IPYTHONDIR": str(root / "ipython"),
    }
    environment.pop("MNIST_DIR", None)
    command = [
        *(sys.executable, "-m", "pytest", "--nbval-lax", "--nbval-current-env", *options),
        *("--nbval-cell-timeout=300", "--nbval-kernel-startup-timeout=300"),
        *(f"--nbval-sanitize-with={ROOT / 'tests' / 'nbval.cfg'}", "--color=no"),
        *(f"--junitxml={root / 'nbval.xml'}", f"--rootdir={root}", str(root / EXECUTED)),
    ]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    cases = ET.parse(root / "nbval.xml").iter("testcase")
    passed = {(c.get("classname").split(".")[-2], c.get("name")) for c in cases if not len(c)}
    return done.stdout if done.returncode else "", passed


@pytest.fixture
def study(tables: Path, tmp_path: Path) -> Iterator[Path]:
    """Copy all that the notebooks of the quick profile read and write, which is then left alone."""
    shutil.copytree(ROOT / "params", tmp_path / "params")
    for folder in ("data", "runs", "reports", "build"):
        # scratch work in build/ that was deleted is made again
        if (ROOT / folder / "quick").is_dir():
            shutil.copytree(ROOT / folder / "quick", tmp_path / folder / "quick")
    for profile in ("standard", "fashion"):  # which one page of every profile compares
        tables_of = Path("reports") / profile / "tables"
        shutil.copytree(ROOT / tables_of, tmp_path / tables_of)
    yield tmp_path
    shutil.rmtree(tmp_path)


@pytest.mark.parametrize("stem", STEMS)
def test_every_notebook_has_checked_cells(stem: str) -> None:
    cells = checked(ROOT / "notebooks" / f"{stem}.ipynb")
    assert cells, f"{stem}: give the cell with the main result the tag {TAG!r}"


def test_what_is_to_be_compared_is_there(tables: Path) -> None:
    assert sorted(path.stem for path in (ROOT / EXECUTED).glob("*.ipynb")) == STEMS
    for stem in STEMS:
        cells = checked(ROOT / EXECUTED / f"{stem}.ipynb").values()
        sources = checked(ROOT / "notebooks" / f"{stem}.ipynb").values()
        assert [cell.source for cell in cells] == [cell.source for cell in sources]
        # nbval compares nothing where a cell was not executed
        assert all(cell.execution_count and shown(cell) for cell in cells), stem


def test_executed_again_the_notebooks_show_the_same(study: Path) -> None:
    report, passed = nbval(study, "-n", "2", "--dist", "loadscope")
    assert not report, report
    cells = {(stem, name) for stem in STEMS for name in checked(study / EXECUTED / f"{stem}.ipynb")}
    assert cells <= passed
    assert {stem for stem, _ in cells} == set(STEMS)


def test_a_number_that_differs_is_noticed(study: Path) -> None:
    for path in (study / EXECUTED).glob("*.ipynb"):
        if path.stem != "03_retrain":
            path.unlink()
    (path,) = (study / EXECUTED).glob("*.ipynb")
    (cell,) = checked(path).values()
    (accuracy, *_) = re.findall(r"\d+\.\d+", shown(cell))
    path.write_text(path.read_text().replace(accuracy, f"{float(accuracy) + 0.01:.2f}"))
    report, passed = nbval(study)
    assert "Cell outputs differ" in report
    assert passed and not {name for _, name in passed} & set(checked(path))
