"""Workers of a SLURM cluster for the sweeps: a dask scheduler here, and jobs that join it.

python -m unlearnlib.pipeline.cluster --jobs 4      # leave it running, and follow what it prints
python -m unlearnlib.pipeline.cluster --script      # only show the job that would be submitted

The scheduler is reachable from the network that ``interface`` names, as the workers must reach it;
where others share that network, have dask encrypt and identify (``distributed.comm`` in dask's own
configuration). The dashboard listens to this machine alone.
"""

import argparse
import sys
import threading
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from unlearnlib.pipeline.paths import root

FILE = Path("params") / "cluster" / "slurm.yaml"


class ClusterError(RuntimeError):
    """A cluster that cannot be started, with what to do about it."""


def settings(path: Path) -> dict[str, Any]:
    """Read what a job is to be, as dask-jobqueue spells it.

    Raises:
        ClusterError: no such file, or a key that dask-jobqueue does not know.
    """
    jobqueue, config = _packages()
    if not path.is_file():
        raise ClusterError(f"no file {path}; copy {FILE} and adapt it")
    found = (yaml.safe_load(path.read_text(encoding="utf-8")) or {}).get("jobqueue", {})
    given = found.get("slurm")
    if not isinstance(given, dict):
        raise ClusterError(f"{path}: needs the section jobqueue.slurm, as {FILE} has it")
    known = config.get("jobqueue.slurm")
    for key in given:
        if key not in known:
            near = get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(sorted(known))}"
            raise ClusterError(f"{path}: dask-jobqueue knows no key {key!r}; {hint}")
    return {key.replace("-", "_"): value for key, value in given.items()}


def start(path: Path) -> Any:
    """Start a scheduler whose workers are SLURM jobs; none is submitted yet.

    Returns:
        a `dask_jobqueue.SLURMCluster`.

    Raises:
        ClusterError: see `settings`; or the scheduler cannot start.
    """
    asked = settings(path)
    jobqueue, _ = _packages()
    (root() / str(asked.get("log_directory") or ".")).mkdir(parents=True, exist_ok=True)
    try:
        return jobqueue.SLURMCluster(
            **asked, python=sys.executable, scheduler_options={"dashboard_address": "127.0.0.1:0"}
        )
    except (ValueError, OSError, RuntimeError) as error:
        raise ClusterError(f"{path}: the scheduler cannot start: {error}") from error


def _packages() -> tuple[Any, Any]:
    try:
        import dask_jobqueue
        from dask import config
    except ImportError:
        raise ClusterError(
            "jobs need packages that are not installed: pip install dask-jobqueue, or the extra"
            " `cluster`"
        ) from None
    return dask_jobqueue, config


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("file", nargs="?", type=Path, default=root() / FILE, help="of settings")
    parser.add_argument("--jobs", type=int, default=1, help="to submit, at least 1")
    parser.add_argument("--script", action="store_true", help="show a job and submit none")
    options = parser.parse_args(arguments)
    if options.jobs < 1:
        parser.error(f"--jobs {options.jobs}: give at least 1")
    try:
        cluster = start(options.file)
    except ClusterError as error:
        print(error, file=sys.stderr)
        return 1
    with cluster:
        if options.script:
            print(cluster.job_script(), end="")
            return 0
        cluster.scale(jobs=options.jobs)
        print(
            f"{options.jobs} jobs are asked for. With `engine: dask` under `study` in the profile:\n"
            f"DASK_SCHEDULER_ADDRESS={cluster.scheduler_address} dvc repro",
            flush=True,
        )
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            return 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
