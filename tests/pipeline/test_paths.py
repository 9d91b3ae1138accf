"""Paths follow the root, wherever the process stands."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from unlearnlib.pipeline import paths


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make an empty folder the project."""
    monkeypatch.setenv("UNLEARNLIB_ROOT", str(tmp_path))
    return tmp_path


def test_root_is_read_when_it_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert paths.root() == tmp_path
    monkeypatch.setenv("UNLEARNLIB_ROOT", str(tmp_path / "else where"))
    assert paths.root() == tmp_path / "else where"


def test_root_without_variable_is_the_folder_with_dvc_yaml(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("UNLEARNLIB_ROOT")
    monkeypatch.setattr(paths, "__file__", str(tmp_path / "unlearnlib" / "paths.py"))
    is_file = Path.is_file  # whatever else lies above the temporary folder
    monkeypatch.setattr(
        Path, "is_file", lambda path: path.is_relative_to(tmp_path) and is_file(path)
    )
    with pytest.raises(FileNotFoundError, match="UNLEARNLIB_ROOT"):
        paths.root()
    (tmp_path / "dvc.yaml").touch()
    assert paths.root() == tmp_path


def test_place_names_the_folders_of_a_profile(project: Path) -> None:
    place = paths.place("quick")
    assert place.data == project / "data/quick/dataset.npz"
    assert place.runs == project / "runs/quick"
    assert place.run("gkt", "student-0") == project / "runs/quick/gkt/student-0.pt"
    for folder in ("tables", "metrics", "notebooks", "pages"):
        assert getattr(place, folder) == project / "reports/quick" / folder


@pytest.mark.parametrize("profile", ["", "Quick", "../quick", "a b", "quick\n"])
def test_place_rejects_names_that_are_no_folder(profile: str) -> None:
    with pytest.raises(ValueError, match="profile"):
        paths.place(profile)


def test_write_atomic_makes_folders_and_replaces(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b.bin"
    paths.write_atomic(target, b"first")
    os.link(target, tmp_path / "reader")
    paths.write_atomic(target, b"second")
    assert target.read_bytes() == b"second"
    assert (tmp_path / "reader").read_bytes() == b"first"
    assert list(target.parent.iterdir()) == [target]


def test_write_atomic_keeps_the_old_file_when_writing_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "b.bin"
    target.write_bytes(b"old")

    def full_disk(handle: int) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(paths.os, "fsync", full_disk)
    with pytest.raises(OSError, match="no space"):
        paths.write_atomic(target, b"new")
    assert list(tmp_path.iterdir()) == [target]
    assert target.read_bytes() == b"old"


def test_what_a_killed_process_left_half_written_goes(tmp_path: Path) -> None:
    """What is another machine's, or of a process that lives, stays."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    node, code = platform.node(), 32 * "a"
    names = [f".b.{node}-{process.pid}.{code}.partial", f".b.{node}-{os.getpid()}.{code}.partial"]
    names += [
        f".b.elsewhere-{process.pid}.{code}.partial",
        f".c.{node}-{process.pid}.{code}.partial",
    ]
    for name in names:
        (tmp_path / name).touch()
    paths.write_atomic(tmp_path / "b", b"whole")
    assert {path.name for path in tmp_path.iterdir()} == {"b", *names[1:]}
