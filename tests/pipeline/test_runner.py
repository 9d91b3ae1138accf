"""The runner: what a stage is given, what it leaves, and what it says when it fails."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import nbformat
import psutil
import pytest
import yaml
from conftest import ROOT
from nbformat import v4

from unlearnlib.pipeline import parameters, runner
from unlearnlib.pipeline.parameters import ParameterError

LIBRARY = Path(runner.__file__).parents[2]
PARAMETERS = "profile = 'none'\nseeds: list[int] | None = None  # a comment with a = in it"
LOOK_AROUND = """
import os, sys
import unlearnlib
print(profile, seeds, sys.executable, os.getcwd(), sep='|')
print(unlearnlib.__file__, list({'a', 'b', 'c', 'd', 'e'}), sep='|', flush=True)
print('a warning', file=sys.stderr)
"""
REPORT = """
import time
from unlearnlib.pipeline.progress import report
for step in range(3):
    report(f'step {step}')
    print(step, flush=True)
    time.sleep(0.05)
"""
DRAW = """
import matplotlib.pyplot as plt
plt.plot([1, 2])
plt.show()
"""
WAIT = """
import os, subprocess, sys, time
from unlearnlib.pipeline.progress import report
child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])
report(f'waiting {os.getpid()} {child.pid}')
time.sleep(60)
"""


def notebook(*sources: str, parameters: str = PARAMETERS) -> nbformat.NotebookNode:
    """Make a notebook of a title, a parameters cell and cells of code."""
    first = v4.new_code_cell(parameters, metadata={"tags": ["parameters"]})
    cells = [v4.new_markdown_cell("# Title"), first, *map(v4.new_code_cell, sources)]
    return v4.new_notebook(cells=cells)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Write a project of four notebooks, named as some of ours, in a folder with a difficult name.

    The kernelspec that Jupyter would find there starts nothing, and the reader's own settings
    would spoil the run.
    """
    root = tmp_path_factory.mktemp("a {b} c")
    notebooks = {
        "15_evaluation": notebook(LOOK_AROUND, REPORT, DRAW, "1 + 1"),
        "17_gkt_curves": notebook("print('so far')", "raise ValueError('what\\nwent wrong')", "0"),
        "24_group_retrain": notebook("import os\nos._exit(1)"),
        "31_group_comparison": notebook(WAIT, parameters=f"{PARAMETERS}\nlevel = None"),
    }
    (root / "notebooks").mkdir()
    for stem, content in notebooks.items():
        nbformat.write(content, root / "notebooks" / f"{stem}.ipynb")
    shutil.copytree(ROOT / "params", root / "params")
    spec = root / "jupyter" / "kernels" / "python3" / "kernel.json"
    spec.parent.mkdir(parents=True)
    spec.write_text(json.dumps({"argv": ["false"], "display_name": "x", "language": "python"}))
    startup = root / "ipython" / "profile_default" / "startup" / "00.py"
    startup.parent.mkdir(parents=True)
    startup.write_text("print = None")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNLEARNLIB_ROOT", str(root))
        patch.setenv("JUPYTER_PATH", str(root / "jupyter"))
        patch.setenv("MPLBACKEND", "agg")
        patch.setenv("IPYTHONDIR", str(root / "ipython"))
        yield root


@pytest.fixture(scope="module")
def executed(project: Path) -> nbformat.NotebookNode:
    """Run the good notebook once."""
    return nbformat.read(runner.run("15_evaluation", "quick"), as_version=4)


def text(cell: nbformat.NotebookNode) -> str:
    """Return what a cell printed, which must be in one piece."""
    (output,) = cell.outputs
    return output.text


def runs(pid: int) -> bool:
    """Tell whether a process is there and not merely waiting to be buried."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_it_runs_where_and_with_what_it_should(
    project: Path, executed: nbformat.NotebookNode
) -> None:
    first, second = text(executed.cells[3]).splitlines()
    assert first == f"quick|[0, 1]|{sys.executable}|{project}"
    assert second.startswith(f"{LIBRARY / 'unlearnlib' / '__init__.py'}|")


def test_a_stored_notebook_holds_outputs_and_nothing_of_its_run(
    project: Path, executed: nbformat.NotebookNode
) -> None:
    nbformat.validate(executed)
    code = [cell for cell in executed.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == [1, 2, 3, 4, 5, 6]
    assert [cell.id for cell in executed.cells] == [f"cell-{number}" for number in range(1, 8)]
    assert [cell.metadata for cell in executed.cells[:4]] == [
        {},
        {"tags": ["parameters"]},
        {"tags": ["injected-parameters"]},
        {},
    ]
    assert executed.metadata == runner._METADATA
    assert text(executed.cells[4]) == "0\n1\n2\n"
    assert "image/png" in executed.cells[5].outputs[-1].data
    stored = (project / "reports/quick/notebooks/15_evaluation.ipynb").read_text()
    assert "papermill" not in stored
    assert not (project / "build/failed/quick-15_evaluation.ipynb").exists()


def test_a_second_run_gives_the_same_bytes_and_shows_progress(
    project: Path, executed: nbformat.NotebookNode, capfd: pytest.CaptureFixture[str]
) -> None:
    target = project / "reports/quick/notebooks/15_evaluation.ipynb"
    before = target.read_bytes()
    target.unlink()
    assert runner.main(["run", "15_evaluation", "--profile", "quick"]) == 0
    assert target.read_bytes() == before
    shown = capfd.readouterr()
    assert shown.out == ""
    lines = shown.err.splitlines()
    assert lines[0] == "15_evaluation (quick) starts"
    assert [line for line in lines if line.startswith("  step")] == [
        f"  step {i}" for i in range(3)
    ]
    assert "a warning" in lines
    assert re.fullmatch(r"15_evaluation \(quick\) took \d+ s", lines[-1])
    assert len(lines) == 6


def test_a_failure_says_why_and_keeps_what_there_was(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    former = project / "reports/quick/notebooks/17_gkt_curves.ipynb"
    former.parent.mkdir(parents=True, exist_ok=True)
    former.write_text("former")
    assert runner.main(["run", "17_gkt_curves"]) == 1
    message = capsys.readouterr().err
    assert message.endswith(
        "17_gkt_curves failed: ValueError: what\nwent wrong\n"
        "The notebook so far: build/failed/quick-17_gkt_curves.ipynb\n"
    )
    assert former.read_text() == "former"
    kept = (project / "build/failed/quick-17_gkt_curves.ipynb").read_text()
    assert "so far" in kept
    assert "went wrong" in kept


def test_a_kernel_that_dies_is_a_failure(project: Path) -> None:
    with pytest.raises(
        runner.NotebookError, match="(?s)24_group_retrain failed: .*died.*build/failed/"
    ):
        runner.run("24_group_retrain", "quick")


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_a_terminated_run_leaves_no_process(project: Path) -> None:
    command = [sys.executable, "-m", "unlearnlib.pipeline.runner", "run", "31_group_comparison"]
    environment = os.environ | {"PYTHONPATH": str(LIBRARY)}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    assert process.stderr.readline() == "31_group_comparison (quick) starts\n"
    waiting = process.stderr.readline()
    assert waiting.startswith("  waiting ")
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=30)[1]
    assert process.returncode == 130
    assert said.endswith("interrupted\n")
    assert not [pid for pid in waiting.split()[1:] if runs(int(pid))]
    assert not (project / "reports/quick/notebooks/31_group_comparison.ipynb").exists()


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project of one notebook, with our parameters."""
    monkeypatch.setenv("UNLEARNLIB_ROOT", str(tmp_path))
    (tmp_path / "notebooks").mkdir()
    nbformat.write(notebook("0"), tmp_path / "notebooks/15_evaluation.ipynb")
    shutil.copytree(ROOT / "params", tmp_path / "params")
    return tmp_path


def declare(root: Path, parameters: str) -> None:
    """Write another parameters cell."""
    nbformat.write(notebook("0", parameters=parameters), root / "notebooks" / "15_evaluation.ipynb")


def test_parameters_and_notebook_must_agree(small: Path) -> None:
    declare(small, "profile = 'quick'\nsedes = []")
    with pytest.raises(ParameterError, match="no 'sedes'.*did you mean 'seeds'"):
        runner.run("15_evaluation", "quick")
    nbformat.write(notebook("0"), small / "notebooks/31_group_comparison.ipynb")
    with pytest.raises(ParameterError, match="declares no 'level'"):
        runner.run("31_group_comparison", "quick")


def test_the_parameters_of_a_profile_are_written_once_they_are_checked(small: Path) -> None:
    assert runner.main(["parameters", "--profile", "quick"]) == 0
    file = small / "build/params/quick.yaml"
    written = yaml.safe_load(file.read_text())
    assert written == parameters.load("quick")
    assert written["study"]["width"] == 0.0625
    assert written["study"]["model"] == "allcnn"


def test_a_parameter_that_cannot_be_stops_every_notebook(
    small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = small / "params" / "quick.yaml"
    file.write_text(file.read_text().replace("pseudo_batches: 12", "pseudo_batches: 0"))
    for command in (["parameters"], ["run", "15_evaluation"]):
        assert runner.main(command) == 1
        assert "params/quick.yaml: gkt.settings.pseudo_batches = 0: " in capsys.readouterr().err
    assert not (small / "build").exists()
    assert not (small / "reports").exists()


def test_a_profile_is_checked_again_only_where_it_changed(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(runner, "resolve", asked.append)
    runner._check("quick")
    parameters.resolved("quick").parent.mkdir(parents=True)
    parameters.resolved("quick").write_text(parameters.text(parameters.load("quick")))
    runner._check("quick")
    assert asked == ["quick"]
    file = small / "params" / "base.yaml"
    file.write_text(file.read_text().replace("workers: 2", "workers: 3"))
    runner._check("quick")
    assert asked == ["quick", "quick"]


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ([], "0 cells tagged"),
        (["profile = 1", "x = 1"], "2 cells tagged"),
        (["seeds = [0]"], "needs a line: profile ="),
    ],
)
def test_there_must_be_one_cell_of_parameters(cells: list[str], message: str) -> None:
    tagged = [v4.new_code_cell(source, metadata={"tags": ["parameters"]}) for source in cells]
    with pytest.raises(ParameterError, match=message):
        runner._declared(v4.new_notebook(cells=tagged), "15_evaluation")


def test_an_unknown_notebook_is_answered_with_a_near_one(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert runner.main(["run", "1_good"]) == 1
    assert "no notebook '1_good'; there is 15_evaluation" in capsys.readouterr().err


def test_sources_are_stripped_and_rewritten_only_when_they_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNLEARNLIB_ROOT", str(tmp_path))
    source, built = (
        tmp_path / "notebooks/15_evaluation.ipynb",
        tmp_path / "build/notebooks/15_evaluation.ipynb",
    )
    source.parent.mkdir()
    built.parent.mkdir(parents=True)
    (built.parent / "09_former.ipynb").touch()
    nbformat.write(notebook("1 + 1"), source)
    assert runner.main(["sources"]) == 0
    assert list(built.parent.iterdir()) == [built]
    os.utime(built, (1, 1))

    saved = notebook("1 + 1")
    saved.cells[2].outputs = [v4.new_output("stream", name="stdout", text="2")]
    saved.cells[2].execution_count = 7
    saved.cells[2].metadata = {"scrolled": True, "execution": {"iopub.status.busy": "now"}}
    saved.metadata = {"language_info": {"name": "python", "version": "3.11.99"}}
    nbformat.write(saved, source)
    runner.sources()
    assert built.stat().st_mtime == 1

    nbformat.write(notebook("1 + 2"), source)
    runner.sources()
    assert "1 + 2" in built.read_text()


def test_the_built_notebook_runs_and_an_older_one_is_mentioned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("UNLEARNLIB_ROOT", str(tmp_path))
    (tmp_path / "notebooks").mkdir()
    nbformat.write(notebook("'built'"), tmp_path / "notebooks/15_evaluation.ipynb")
    runner.sources()
    assert runner._open("15_evaluation").cells[2].source == "'built'"
    assert capsys.readouterr().err == ""
    nbformat.write(notebook("'edited'"), tmp_path / "notebooks/15_evaluation.ipynb")
    assert runner._open("15_evaluation").cells[2].source == "'built'"
    assert "notebooks/15_evaluation.ipynb is newer than its copy" in capsys.readouterr().err


def test_canonical_drops_widgets_and_keeps_attachments_and_output_metadata() -> None:
    view = v4.new_output("display_data", {runner._WIDGET: {}, "text/plain": "slider"})
    figure = v4.new_output("display_data", {"image/png": "AA=="}, metadata={"alt": "a curve"})
    cells = [
        v4.new_markdown_cell("![](attachment:a.png)", attachments={"a.png": {"image/png": "AA=="}}),
        v4.new_code_cell("x", outputs=[view, figure], execution_count=1),
    ]
    given = v4.new_notebook(cells=cells, metadata={"widgets": {"state": 1}})
    clean = nbformat.reads(runner.canonical(given).decode(), as_version=4)
    assert clean.cells[0].attachments == {"a.png": {"image/png": "AA=="}}
    assert [output.metadata for output in clean.cells[1].outputs] == [{"alt": "a curve"}]
    assert "widgets" not in clean.metadata


SHARES = """
from pathlib import Path
from unlearnlib.pipeline.sweep import sweep
import draws
found = sweep(draws.draw, {f"seed{s}": dict(seed=s) for s in range(5)}, store=Path("runs/none/draws"))
print(len(found))
"""


def test_a_share_of_the_runs_is_made_alone_and_the_last_one_ends_the_notebook(
    small: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    (small / "draws.py").write_text("def draw(*, seed: int) -> dict:\n    return {'seed': seed}\n")
    nbformat.write(notebook(SHARES), small / "notebooks" / "15_evaluation.ipynb")
    monkeypatch.setenv("PYTHONPATH", str(small))
    monkeypatch.setenv("UNLEARNLIB_SHARD", "")
    stored = small / "reports" / "quick" / "notebooks" / "15_evaluation.ipynb"

    def made() -> list[str]:
        return sorted(file.stem for file in (small / "runs/none/draws").glob("*.pt"))

    assert runner.main(["run", "15_evaluation", "--shard", "1/2"]) == 0
    assert made() == ["seed0", "seed2", "seed4"]
    assert "2 of 5 runs are for other shards; run 15_evaluation again" in capfd.readouterr().err
    assert not stored.exists() and not list((small / "build/failed").glob("*"))
    assert runner.main(["run", "15_evaluation", "--shard", "2/2"]) == 0
    assert made() == [f"seed{seed}" for seed in range(5)]
    assert stored.exists()


@pytest.mark.parametrize("shard", ["0/2", "3/2", "2", "a/b", "1/0", "-1/2"])
def test_a_share_that_is_none_is_refused(
    small: Path, shard: str, capfd: pytest.CaptureFixture
) -> None:
    assert runner.main(["run", "15_evaluation", f"--shard={shard}"]) == 1
    assert f"shard '{shard}': give a share such as 2/8" in capfd.readouterr().err
