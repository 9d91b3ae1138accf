"""What several tests of the whole study share: its commands and an executed quick profile."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def run(*command: str) -> str:
    """Run a module of this environment in the repository, with `python` being this interpreter."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = os.environ | {"PATH": path, "DVC_NO_ANALYTICS": "1"}
    environment.pop("MNIST_DIR", None)
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def tables() -> Iterator[Path]:
    """Bring the quick profile up to date; nothing runs where it already is."""
    selected = ROOT / "params" / "profiles.yaml"
    before = selected.read_bytes()
    try:
        run("unlearnlib.pipeline", "quick")
        yield ROOT / "reports" / "quick" / "tables"
    finally:
        selected.write_bytes(before)
