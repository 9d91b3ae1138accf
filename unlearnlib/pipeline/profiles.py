"""Run the study: choose the profile that plain ``dvc`` commands see, and hand over to DVC.

python -m unlearnlib.pipeline standard
python -m unlearnlib.pipeline quick train retrain   # these stages and what they need
"""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from typing import Any

import yaml

from unlearnlib.pipeline import parameters, watch
from unlearnlib.pipeline.paths import root, write_atomic

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class LockError(RuntimeError):
    """``dvc.lock`` is not what DVC can read; the message names the remedy."""


def select(profile: str) -> None:
    """Name `profile` in ``params/profiles.yaml``, which ``dvc.yaml`` reads; leave it if it is there.

    Raises:
        ParameterError: there is no such profile, or it has a parameter that cannot be. Then the file
            stays as it is.
    """
    parameters.load(profile)
    # what cannot be read is said before the rooms are imported, which takes seconds
    from unlearnlib.pipeline import checks

    checks.check(profile)
    file = root() / "params" / "profiles.yaml"
    lines = file.read_text(encoding="utf-8").splitlines()
    if yaml.safe_load("\n".join(lines))["profiles"] != [profile]:
        comments = [line for line in lines if line.startswith("#")]
        write_atomic(file, "\n".join([*comments, f"profiles: [{profile}]", ""]).encode())


def main(arguments: list[str]) -> int:
    """Reproduce a profile, or some stages of it, and return DVC's exit code."""
    profile, *stages = arguments or ["quick"]
    try:
        _check_lock()
        select(profile)
    except (LockError, parameters.ParameterError) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    # DVC looks for git in the folders above too, and without it needs to be told so
    in_git = any((folder / ".git").exists() for folder in [root(), *root().parents])
    if not in_git and (code := _dvc("config", "--local", "core.no_scm", "true")):
        return code
    return _dvc("repro", *(f"{stage}@{profile}" for stage in stages))


def _check_lock() -> None:
    """Raise LockError if DVC cannot read ``dvc.lock``, as after a write that was cut short."""
    file = root() / "dvc.lock"
    if not file.is_file():
        return
    from dvc.exceptions import DvcException
    from dvc.schema import COMPILED_LOCKFILE_SCHEMA
    from dvc.utils import strictyaml

    try:
        strictyaml.load(str(file), COMPILED_LOCKFILE_SCHEMA)
    except DvcException as error:
        raise LockError(
            f"dvc.lock cannot be read, perhaps because its writing was cut short ({error}). Run"
            " `git checkout dvc.lock`, or delete the file: stages then run again, but take the runs"
            " that are stored"
        ) from error


def _dvc(*arguments: str) -> int:
    """Run a command of DVC and return its exit code."""
    # stages call `python`, which must be this one even where the environment is not activated
    search = os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", "")])
    command = [sys.executable, "-m", "dvc", *arguments]
    own = {"PATH": search, watch.COMMAND: str(os.getpid())}
    return _run(command, cwd=root(), env=os.environ | own)


def _run(command: list[str], **options: Any) -> int:
    """Run a command and return its exit code; what would end this process interrupts the command.

    The command has a process group of its own, all of which is interrupted: DVC then waits for its
    stage, and this process for DVC, so that no stage goes on unseen.
    """
    child, taken = None, []

    def take(number: int, frame: object) -> None:
        if former[number] is not signal.SIG_IGN:
            print("interrupted: the stage that runs is ended", file=sys.stderr, flush=True)
            taken.append(number)
            pass_on()

    def pass_on() -> None:
        if taken and child:
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGINT)

    former = {number: signal.getsignal(number) for number in _ENDING}
    # a signal that is ignored is taken too: the command would ignore it otherwise
    for number in _ENDING:
        signal.signal(number, take)
    try:
        child = subprocess.Popen(command, start_new_session=True, **options)
        pass_on()
        code = child.wait()
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
    return 128 + taken[0] if taken else code
