"""Provenance: versions, hardware and revision are those of this run."""

import json
import os
import platform
import subprocess
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch

from unlearnlib.pipeline import provenance


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand in a folder that is no git checkout, whatever is above it."""
    monkeypatch.setenv("UNLEARNLIB_ROOT", str(tmp_path))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    return tmp_path


def git(folder: Path, *words: str) -> str:
    identity = ["-c", "user.name=Nobody", "-c", "user.email=nobody@example.org"]
    command = ["git", *identity, *words]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout


def test_the_revision_is_the_commit_that_is_checked_out(root: Path):
    git(root, "init")
    git(root, "commit", "--allow-empty", "--message", "first")
    head = git(root, "rev-parse", "HEAD").strip()
    assert provenance.revision() == head[:12]
    git(root, "commit", "--allow-empty", "--message", "second")
    assert provenance.revision() != head[:12]


def test_the_revision_tells_that_the_code_differs_from_the_commit(root: Path):
    git(root, "init")
    git(root, "commit", "--allow-empty", "--message", "first")
    (root / "reports").mkdir()
    (root / "reports" / "new.csv").write_text("")
    assert not provenance.revision().endswith("+")
    (root / "unlearnlib").mkdir()
    (root / "unlearnlib" / "new.py").write_text("")
    assert provenance.revision().endswith("+")


def test_without_a_commit_or_git_the_revision_is_unknown(
    root: Path, monkeypatch: pytest.MonkeyPatch
):
    assert provenance.revision() == "unknown"
    git(root, "init")
    assert provenance.revision() == "unknown"
    monkeypatch.setenv("PATH", str(root))
    assert provenance.revision() == "unknown"


def test_the_processor_is_read_where_the_system_tells(monkeypatch: pytest.MonkeyPatch):
    text = "processor\t: 0\nmodel name\t: Some CPU @ 2: fast\nmodel name\t: Other\n"
    monkeypatch.setattr(Path, "is_file", lambda self: True)
    monkeypatch.setattr(Path, "read_text", lambda self: text)
    assert provenance.processor() == "Some CPU @ 2: fast"


def test_the_processor_is_the_platforms_elsewhere(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Path, "is_file", lambda self: False)
    monkeypatch.setattr(platform, "processor", lambda: "")
    assert provenance.processor() == platform.machine()


def test_the_device_is_the_graphics_card_or_the_cpu(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert provenance.accelerator() == "CPU"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Some card")
    assert provenance.accelerator() == "Some card"


def test_describe_collects_what_made_a_run(root: Path):
    found = provenance.describe(profile="quick", data_source="MNIST-5k", seeds=[0, 1])
    assert (found["profile"], found["data_source"], found["seeds"]) == (
        "quick",
        "MNIST-5k",
        [0, 1],
    )
    versions = found["versions"]
    assert versions.pop("torch").partition("+")[0] == torch.__version__.partition("+")[0]
    assert versions == {
        "python": platform.python_version(),
        "torchvision": version("torchvision"),
        "numpy": np.__version__,
        "scikit-learn": version("scikit-learn"),
    }
    hardware = found["hardware"]
    assert hardware["cores"] == os.cpu_count()
    assert hardware["processor"] == provenance.processor()
    assert hardware["device"] == provenance.accelerator()
    assert found["code_revision"] == "unknown"
    when = datetime.strptime(found["time"], "%Y-%m-%d %H:%M UTC").replace(tzinfo=UTC)
    assert timedelta(0) <= datetime.now(UTC) - when < timedelta(minutes=2)


def test_a_description_can_be_written(root: Path):
    found = provenance.describe(profile="quick", data_source="MNIST-5k", seeds=[0, 1])
    provenance.write_json(root / "metrics" / "run.json", found)
    assert json.loads((root / "metrics" / "run.json").read_text()) == found


def test_json_is_indented_readable_text(tmp_path: Path):
    provenance.write_json(tmp_path / "a.json", {"α": [1, 2.5], "b": None})
    text = (tmp_path / "a.json").read_bytes().decode()
    assert text == '{\n  "α": [\n    1,\n    2.5\n  ],\n  "b": null\n}\n'


def test_what_is_no_json_leaves_the_old_file(tmp_path: Path):
    provenance.write_json(tmp_path / "a.json", {"old": 1})
    with pytest.raises(TypeError):
        provenance.write_json(tmp_path / "a.json", {"new": torch.zeros(1)})
    assert json.loads((tmp_path / "a.json").read_text()) == {"old": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_metrics_are_a_file_each_and_old_ones_go(tmp_path: Path):
    provenance.write_metrics(tmp_path / "m", {"a": {"x": 1.0}, "b": {"x": 2.0}})
    provenance.write_metrics(tmp_path / "m", {"b": {"x": 3.0}})
    assert [path.name for path in (tmp_path / "m").iterdir()] == ["b.json"]
    assert json.loads((tmp_path / "m" / "b.json").read_text()) == {"x": 3.0}
