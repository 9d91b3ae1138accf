"""Say what a run was made with, so that a number can be traced."""

import json
import os
import platform
import subprocess
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from unlearnlib.pipeline.paths import root, write_atomic


def describe(*, profile: str, data_source: str, seeds: list[int]) -> dict[str, Any]:
    """Collect profile, data source, seeds, versions, hardware, code revision and time."""
    return {
        "profile": profile,
        "data_source": data_source,
        "seeds": seeds,
        "versions": {"python": platform.python_version()} | _versions(),
        "hardware": {"processor": processor(), "cores": os.cpu_count(), "device": accelerator()},
        "code_revision": revision(),
        "time": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


def _versions() -> dict[str, str]:
    """Read the versions of the packages that results depend on, those that are installed."""
    found = {}
    for name in ("torch", "torchvision", "numpy", "scikit-learn"):
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def processor() -> str:
    """Name the processor, as far as the system tells."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def accelerator() -> str:
    """Name the device that runs use."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"


def revision() -> str:
    """Return the commit that is checked out, ``unknown`` outside a git checkout.

    ``+`` is appended when a notebook or the library differs from that commit.
    """
    try:
        changed = _git("status", "--porcelain", "--", "notebooks", "unlearnlib")
        return _git("rev-parse", "--short=12", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(*arguments: str) -> str:
    options = {"cwd": root(), "capture_output": True, "text": True, "check": True}
    return subprocess.run(["git", *arguments], **options).stdout.strip()


def write_metrics(folder: Path, rows: dict[str, dict[str, float]]) -> None:
    """Write a file for each row, a line of what `dvc metrics show` prints; those of others go.

    Args:
        folder: of the metrics.
        rows: values by name, by row.
    """
    for name, values in rows.items():
        write_json(folder / f"{name}.json", values)
    for old in set(folder.glob("*.json")) - {folder / f"{name}.json" for name in rows}:
        old.unlink()


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a dict as indented JSON, at once or not at all."""
    write_atomic(path, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())
