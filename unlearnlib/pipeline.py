"""Run the study: choose the profile that plain ``dvc`` commands see, and hand over to DVC.

python -m unlearnlib.pipeline standard
"""

import subprocess
import sys

import yaml

from unlearnlib import parameters
from unlearnlib.paths import root, write_atomic


def select(profile: str) -> None:
    """Name `profile` in ``params/profiles.yaml``, which ``dvc.yaml`` reads; leave it if it is there.

    Raises:
        ParameterError: there is no such profile.
    """
    parameters.load(profile)
    file = root() / "params" / "profiles.yaml"
    lines = file.read_text(encoding="utf-8").splitlines()
    if yaml.safe_load("\n".join(lines))["profiles"] != [profile]:
        comments = [line for line in lines if line.startswith("#")]
        write_atomic(file, "\n".join([*comments, f"profiles: [{profile}]", ""]).encode())


def main(arguments: list[str]) -> int:
    """Reproduce one profile and return DVC's exit code."""
    try:
        select(*(arguments or ["quick"]))
    except parameters.ParameterError as error:
        print(error, file=sys.stderr)
        return 1
    return subprocess.run(
        [sys.executable, "-m", "dvc", "repro"], cwd=root(), check=False
    ).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
