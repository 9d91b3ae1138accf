"""Processes end with the one they work for, even one that is killed and cannot tell them."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from unlearnlib.pipeline import watch

SWEEP = """
from pathlib import Path
from test_watch import linger
from unlearnlib.pipeline.sweep import sweep
sweep(linger, {f"run{k}": dict(folder=FOLDER, seed=k) for k in (0, 1)}, store=Path(FOLDER) / "runs",
      workers=2)
"""
SLEEPER = """
import time
from unlearnlib.pipeline import watch
watch.interrupt_with_command()
try:
    time.sleep(60)
except KeyboardInterrupt:
    raise SystemExit(7)
"""


def linger(*, folder: str, seed: int) -> dict:
    """Write down which process it is, and take long."""
    (Path(folder) / f"{os.getpid()}.pid").touch()
    time.sleep(60)
    return {}


def until(met: Callable[[], bool], *, seconds: float = 30) -> bool:
    end = time.monotonic() + seconds
    while not met() and time.monotonic() < end:
        time.sleep(0.1)
    return met()


def running(number: int) -> bool:
    try:
        return psutil.Process(number).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def started(code: str, **variables: str) -> subprocess.Popen:
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    env = os.environ | {"PYTHONPATH": path} | variables
    return subprocess.Popen([sys.executable, "-c", code], env=env, stderr=subprocess.DEVNULL)


def test_workers_end_with_the_process_that_is_killed(tmp_path: Path) -> None:
    process = started(SWEEP.replace("FOLDER", repr(str(tmp_path))))
    assert until(lambda: len(list(tmp_path.glob("*.pid"))) == 2)
    workers = [int(file.stem) for file in tmp_path.glob("*.pid")]
    assert all(map(running, workers)) and process.pid not in workers
    process.kill()
    process.wait()
    assert until(lambda: not any(map(running, workers)), seconds=15)


@pytest.mark.parametrize("before", ["", "import signal; signal.signal(2, signal.SIG_IGN)"])
def test_a_stage_ends_with_the_command_that_is_killed(before: str) -> None:
    # a command in the background of a shell script is told to ignore SIGINT, and so are its stages
    command = started("import time; time.sleep(60)")
    stage = started(f"{before}\n{SLEEPER}", **{watch.COMMAND: str(command.pid)})
    with pytest.raises(subprocess.TimeoutExpired):
        stage.wait(4)
    command.send_signal(signal.SIGKILL)
    command.wait()
    assert stage.wait(15) == 7


def test_a_stage_without_a_command_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(watch.COMMAND, raising=False)
    asked = []
    monkeypatch.setattr(watch, "watch", lambda *given: asked.append(given))
    watch.interrupt_with_command()
    assert not asked
