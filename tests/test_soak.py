"""The soak copies the project without results, compares what counts, and finds what is left."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import soak


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with code, data and results."""
    root = tmp_path / "project"
    for name in (
        "unlearnlib/data/sources.py", "unlearnlib/__pycache__/x.pyc", "data/quick/dataset.npz",
        "runs/quick/train/seed0.pt", "reports/quick/index.html", "dvc.yaml", "dvc.lock",
    ):  # fmt: skip
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    monkeypatch.setenv("UNLEARNLIB_ROOT", str(root))
    return root


def test_the_copy_has_the_code_and_no_result(project: Path, tmp_path: Path) -> None:
    copy = soak.copied(tmp_path)
    files = {file.relative_to(copy).as_posix() for file in copy.rglob("*") if file.is_file()}
    assert files == {"unlearnlib/data/sources.py", "dvc.yaml"}
    assert " " in copy.name and not copy.name.isascii()


def test_what_a_run_left_is_compared_but_for_its_time(project: Path) -> None:
    metrics = project / "reports/quick/metrics/provenance.json"
    metrics.parent.mkdir()
    metrics.write_text('{"time": "now", "seeds": 1}')
    (project / "runs/quick/train/seed0.json").write_text("seconds")
    before = soak.outcome(project)
    assert set(before) == {
        "runs/quick/train/seed0.pt", "data/quick/dataset.npz", "reports/quick/index.html",
        "reports/quick/metrics/provenance.json",
    }  # fmt: skip
    metrics.write_text('{"time": "later", "seeds": 1}')
    (project / "runs/quick/train/seed0.json").write_text("other seconds")
    assert soak._compared(before, soak.outcome(project)) == {"files": 4, "differing": []}
    metrics.write_text('{"time": "later", "seeds": 2}')
    (project / "runs/quick/train/seed0.pt").unlink()
    differing = soak._compared(before, soak.outcome(project))["differing"]
    assert differing == ["reports/quick/metrics/provenance.json", "runs/quick/train/seed0.pt"]


def test_nothing_is_left_to_start_from(project: Path) -> None:
    soak.forget(project)
    left = {file.relative_to(project).as_posix() for file in project.rglob("*") if file.is_file()}
    assert left == {"unlearnlib/data/sources.py", "unlearnlib/__pycache__/x.pyc", "dvc.yaml"}


def test_processes_and_half_written_files_are_found(project: Path) -> None:
    (project / "runs" / ".seed0.pt.x.partial").touch()
    assert soak.leftovers(project) == ["runs/.seed0.pt.x.partial"]
    env = os.environ | {"UNLEARNLIB_ROOT": str(project)}
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], env=env) as child:
        time.sleep(0.5)
        assert child.pid in {process.pid for process in soak.processes(project)}
        child.kill()
        child.wait()
        assert child.pid not in {process.pid for process in soak.processes(project)}
