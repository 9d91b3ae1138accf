"""What a notebook reads from the stages before it, made on the spot where it is absent."""

import subprocess
import sys
from typing import Any

import yaml

from unlearnlib.pipeline.paths import Place, place, root


def ready(stem: str, profile: str) -> Place:
    """Return where the files of a profile live, once all that a notebook reads is there.

    In a new clone a notebook that is opened by hand finds nothing yet: then the stages that write
    what it reads run first, and those before them. After ``make repro`` nothing runs.

    Args:
        stem: name of the notebook without suffix, as in `12_gkt`.
        profile: name of the profile.

    Raises:
        ValueError: the name of the profile is malformed.
        RuntimeError: one of those stages failed.
    """
    here = place(profile)
    if stages := _absent(stem, profile):
        print(f"{stem} reads what these stages write, so they run first, once: {', '.join(stages)}")
        command = [sys.executable, "-m", "unlearnlib.pipeline", profile, *stages]
        running = subprocess.Popen(
            command, cwd=root(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        for line in running.stdout or ():
            print(line, end="", flush=True)
        if running.wait():
            raise RuntimeError(
                f"a stage before {stem} failed, for the reason above; when it is mended, run this "
                f"cell again, or in a terminal: python {' '.join(command[1:])}"
            )
    return here


def _absent(stem: str, profile: str) -> list[str]:
    """List the stages whose outputs a notebook reads and that are not there."""
    file = root() / "dvc.yaml"
    if not file.is_file():  # a copy of the results without the pipeline
        return []
    stages = yaml.safe_load(file.read_text(encoding="utf-8"))["stages"]
    built = f"build/notebooks/{stem}.ipynb"
    (reads,) = (stage["deps"] for stage in stages.values() if built in stage["deps"])
    absent = [dep for dep in reads if dep != built and not (root() / _of(dep, profile)).exists()]
    return [name for name, stage in stages.items() if any(_writes(stage, dep) for dep in absent)]


def _writes(stage: dict[str, Any], path: str) -> bool:
    """Tell whether a path is an output of a stage, or inside one."""
    return any(path == out or path.startswith(f"{out}/") for out in _outs(stage))


def _outs(stage: dict[str, Any]) -> list[str]:
    """List what a stage writes, each a path or a path with its options."""
    outs = stage.get("outs", [])
    return [path for out in outs for path in ([out] if isinstance(out, str) else out)]


def _of(path: str, profile: str) -> str:
    return path.replace("${item.profile}", profile)
