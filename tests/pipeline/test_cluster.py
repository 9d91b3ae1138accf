"""Workers under SLURM: the job that would be submitted, and what is refused before."""

import sys
from pathlib import Path

import pytest
import yaml
from conftest import ROOT

from unlearnlib.pipeline import cluster

OWN = {"interface": "lo"}  # a scheduler of a test listens to this machine alone


def written(tmp_path: Path, **changes: object) -> Path:
    """Write the project's settings with changes."""
    found = yaml.safe_load((ROOT / cluster.FILE).read_text())
    found["jobqueue"]["slurm"] |= OWN | changes
    path = tmp_path / "slurm.yaml"
    path.write_text(yaml.safe_dump(found))
    return path


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNLEARNLIB_ROOT", str(tmp_path))
    monkeypatch.chdir(tmp_path)


def test_a_job_is_what_the_file_asks_for(tmp_path: Path, capsys: pytest.CaptureFixture):
    path = written(tmp_path, queue="long", account="lab", walltime="02:00:00", cores=4, processes=4)
    assert cluster.main([str(path), "--script"]) == 0
    script = capsys.readouterr().out
    lines = script.splitlines()
    assert lines[0] == "#!/usr/bin/env bash"
    for wanted in ("-p long", "-A lab", "-t 02:00:00", "--cpus-per-task=4"):
        assert f"#SBATCH {wanted}" in lines
    assert any(line.startswith("#SBATCH -o build/slurm/") for line in lines)
    assert "export OMP_NUM_THREADS=1" in lines
    assert lines[-1].startswith(f"{sys.executable} -m distributed.cli.dask_worker tcp://127.0.0.1:")
    assert "--nworkers 4" in lines[-1] and "--nthreads 1" in lines[-1]
    assert (tmp_path / "build" / "slurm").is_dir()


def test_the_dashboard_listens_to_this_machine_alone(tmp_path: Path):
    with cluster.start(written(tmp_path)) as started:
        assert started.dashboard_link.startswith("http://127.0.0.1:")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"jobqueue": {"slurm": {"qeue": "long"}}}, "no key 'qeue'; did you mean 'queue'?"),
        ({"jobqueue": {"slurm": {"zzz": 1}}}, "no key 'zzz'; there are account, "),
        ({"slurm": {"queue": "long"}}, "needs the section jobqueue.slurm"),
        ({}, "needs the section jobqueue.slurm"),
        ({"jobqueue": {"slurm": {"cores": None, "memory": None}}}, "the scheduler cannot start: "),
    ],
)
def test_what_cannot_be_a_job_is_refused(
    tmp_path: Path, content: dict, message: str, capsys: pytest.CaptureFixture
):
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump(content))
    assert cluster.main([str(path), "--script"]) == 1
    assert message in capsys.readouterr().err


def test_a_file_that_is_not_there_and_no_jobs_are_refused(capsys: pytest.CaptureFixture):
    assert cluster.main(["none.yaml"]) == 1
    assert "no file none.yaml; copy params/cluster/slurm.yaml" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cluster.main(["--jobs", "0"])
    assert "--jobs 0: give at least 1" in capsys.readouterr().err


def test_without_the_package_the_remedy_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    monkeypatch.setitem(sys.modules, "dask_jobqueue", None)
    assert cluster.main([str(written(tmp_path))]) == 1
    assert "pip install dask-jobqueue" in capsys.readouterr().err


def test_a_folder_in_params_is_no_profile():
    from unlearnlib.pipeline import parameters

    assert "slurm" not in parameters.profiles()
