"""Run the study: choose the profile that plain ``dvc`` commands see, and hand over to DVC.

python -m unlearnlib.pipeline standard
python -m unlearnlib.pipeline quick train retrain   # these stages and what they need
"""

import os
import subprocess
import sys

import yaml

from unlearnlib.pipeline import parameters
from unlearnlib.pipeline.paths import root, write_atomic


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
        select(profile)
    except parameters.ParameterError as error:
        print(error, file=sys.stderr)
        return 1
    # stages call `python`, which must be this one even where the environment is not activated
    search = os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", "")])
    targets = [f"{stage}@{profile}" for stage in stages]
    return subprocess.run(
        [sys.executable, "-m", "dvc", "repro", *targets],
        cwd=root(),
        env=os.environ | {"PATH": search},
        check=False,
    ).returncode
