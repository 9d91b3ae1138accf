"""Collection: the same tests under the same names in every process, so that some can share them."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def collected(seed: str) -> list[str]:
    """List the names of all tests, as a process sees them in which sets have another order."""
    options = ["--collect-only", "-q", "-o", "addopts=", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, "tests"],
        cwd=ROOT,
        env=os.environ | {"PYTHONHASHSEED": seed, "PYTEST_ADDOPTS": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return [line for line in done.stdout.splitlines() if "::" in line]


def test_names_depend_neither_on_the_hash_seed_nor_on_the_time() -> None:
    """Or else `pytest -n 2` refuses to run: its workers would disagree on what there is."""
    first, second = map(collected, ["1", "2"])
    assert first == second
    assert len(first) > 2000
    assert len(set(first)) == len(first)
    assert not [name for name in first if " at 0x" in name]


def test_what_is_skipped_is_said_with_its_reason() -> None:
    options = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]
    assert "-rs" in options["ini_options"]["addopts"].split()
