"""Where everything lives, found from the root and never from the working directory."""

import os
import platform
import re
import uuid
from dataclasses import dataclass
from pathlib import Path

from unlearnlib.pipeline import watch


def root() -> Path:
    """Return the project's folder: `$UNLEARNLIB_ROOT`, or the one above that holds `dvc.yaml`.

    Raises:
        FileNotFoundError: there is neither.
    """
    if chosen := os.environ.get("UNLEARNLIB_ROOT"):
        return Path(chosen).resolve()
    for folder in Path(__file__).resolve().parents:
        if (folder / "dvc.yaml").is_file():
            return folder
    raise FileNotFoundError(
        f"no dvc.yaml above {Path(__file__).parent}; set UNLEARNLIB_ROOT to the project's folder"
    )


@dataclass(frozen=True)
class Place:
    """Name the files of one profile."""

    profile: str

    @property
    def data(self) -> Path:
        """The data set that `01_data` wrote."""
        return root() / "data" / self.profile / "dataset.npz"

    @property
    def runs(self) -> Path:
        """What runs left: checkpoints, histories, snapshots."""
        return root() / "runs" / self.profile

    @property
    def reports(self) -> Path:
        """What people read."""
        return root() / "reports" / self.profile

    @property
    def tables(self) -> Path:
        """Tables, as CSV."""
        return self.reports / "tables"

    @property
    def metrics(self) -> Path:
        """Metrics, as JSON."""
        return self.reports / "metrics"

    @property
    def notebooks(self) -> Path:
        """Executed notebooks."""
        return self.reports / "notebooks"

    @property
    def pages(self) -> Path:
        """HTML pages, one for each notebook."""
        return self.reports / "pages"

    def scratch(self, stage: str) -> Path:
        """Return the folder for what `stage` can make again and nobody else reads."""
        return root() / "build" / self.profile / stage

    def run(self, stage: str, name: str) -> Path:
        """Return the file in which `stage` keeps `name`."""
        return self.runs / stage / f"{name}.pt"


def place(profile: str) -> Place:
    """Return where the files of `profile` live.

    Raises:
        ValueError: the name has other characters than a-z, 0-9, `_` and `-`.
    """
    if not re.fullmatch(r"[a-z0-9_-]+", profile):
        raise ValueError(f"profile {profile!r}: use lower-case letters, digits, '_' and '-' only")
    return Place(profile)


def write_atomic(path: Path, content: bytes) -> None:
    """Write `content` to `path` at once or not at all, and make its folder.

    A reader, or a run after a power cut, sees the old file or the new one, never half of one. What
    a killed process of this machine left of it goes.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # the new file must be on the same file system as the old one
    writer = f"{platform.node()}-{os.getpid()}"
    partial = path.with_name(f".{path.name}.{writer}.{uuid.uuid4().hex}.partial")
    try:
        with partial.open("xb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    _remove_leftovers(path)


def _remove_leftovers(path: Path) -> None:
    name = re.compile(
        re.escape(f".{path.name}.{platform.node()}-") + r"(\d+)\.[0-9a-f]{32}\.partial"
    )
    for file in path.parent.glob(".*.partial"):
        if (left := name.fullmatch(file.name)) and not watch.is_there(int(left[1])):
            file.unlink(missing_ok=True)
