"""A notebook that is opened first of all finds what it reads."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import ROOT

from unlearnlib.pipeline import upstream

ITEM = "${item.profile}"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a project of three stages, of which a notebook reads one, and that one another."""
    monkeypatch.setenv("UNLEARNLIB_ROOT", str(tmp_path))
    monkeypatch.setenv("DVC_NO_ANALYTICS", "1")
    monkeypatch.setenv("PATH", "/usr/bin:/bin")  # no environment is activated
    subprocess.run(
        [sys.executable, "-m", "dvc", "init", "-q", "--no-scm"], cwd=tmp_path, check=True
    )
    shutil.copytree(ROOT / "params", tmp_path / "params")
    (tmp_path / "params" / "profiles.yaml").write_text("# comment\nprofiles: []\n")
    read, made = f"data/{ITEM}/read.txt", f"runs/{ITEM}/made"
    stages = {
        "first": stage(writes(read, "seed"), [], [{read: {"cache": False}}]),
        "second": stage(writes(f"{made}/a.txt", "model"), [read], [{made: {"cache": False}}]),
        "third": stage("exit 1", ["build/notebooks/03_third.ipynb", made], []),
        "fourth": stage("exit 1", ["build/notebooks/04_fourth.ipynb", f"tables/{ITEM}.csv"], []),
        "fifth": stage("exit 1", ["build/notebooks/05_fifth.ipynb", f"{made}/a.txt"], []),
        "broken": stage("exit 3", [], [f"tables/{ITEM}.csv"]),
    }
    content = {"vars": ["params/profiles.yaml"], "stages": stages}
    (tmp_path / "dvc.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return tmp_path


def stage(command: str, deps: list[str], outs: list) -> dict:
    return {"matrix": {"profile": "${profiles}"}, "cmd": command, "deps": deps, "outs": outs}


def writes(path: str, text: str) -> str:
    """Return a command of this Python, which is not on the path."""
    code = f"from pathlib import Path; f = Path('{path}'); f.parent.mkdir(parents=True); "
    return f"python -c \"{code}f.write_text('{text}')\""


def test_stages_before_a_notebook_run_once(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    here = upstream.ready("03_third", "standard")
    assert (here.runs / "made" / "a.txt").read_text() == "model"
    assert here.data.with_name("read.txt").read_text() == "seed"
    assert "03_third reads what these stages write" in (said := capsys.readouterr().out)
    assert "second@standard" in said  # of DVC
    assert not (project / "runs" / "quick").exists()
    upstream.ready("03_third", "standard")
    assert capsys.readouterr().out == ""


def test_a_stage_that_fails_is_named_with_the_remedy(project: Path) -> None:
    with pytest.raises(
        RuntimeError, match=r"before 04_fourth failed.*unlearnlib.pipeline quick broken"
    ):
        upstream.ready("04_fourth", "quick")


def test_a_file_in_the_folder_that_a_stage_writes_is_made_by_that_stage(project: Path) -> None:
    assert upstream._absent("05_fifth", "quick") == ["second"]
    file = project / "runs" / "quick" / "made" / "a.txt"
    file.parent.mkdir(parents=True)
    file.touch()
    assert upstream._absent("05_fifth", "quick") == []
    assert upstream._absent("05_fifth", "standard") == ["second"]


def test_a_copy_without_the_pipeline_is_left_alone(project: Path) -> None:
    (project / "dvc.yaml").unlink()
    assert upstream.ready("03_third", "quick").profile == "quick"
