"""What a run leaves: its result in one file, and what is known of the run in another beside it.

``<name>.pt`` holds the result alone, tensors and plain values, the same bytes for the same run:
what later stages depend on. ``<name>.json`` is for people and for the sweep: the key that says what
the result was made from, the digest of the result, seconds, arguments and versions. Pipelines
ignore it, so that running again and getting the same bytes invalidates nothing.
"""

import hashlib
import io
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from unlearnlib.pipeline.paths import write_atomic


class RecordError(ValueError):
    """A file that is not what a run left; the message names the remedy."""


@dataclass(frozen=True, eq=False)
class Record:
    """Hold the result of a run and what is known of the run.

    Attributes:
        name: of the run, and of its files.
        result: what the run returned.
        seconds: wall time.
        timings: seconds of its parts, see `clock`.
        arguments: keywords of the run as plain values, paths as text from the root.
        versions: of Python and torch.
    """

    name: str
    result: dict[str, Any]
    seconds: float
    timings: dict[str, float] = field(default_factory=dict)
    arguments: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)


def facts_file(path: Path) -> Path:
    """Name the file with what is known of the run whose result is in `path`."""
    return path.with_suffix(".json")


def write(path: Path, record: Record, *, key: str) -> None:
    """Write a record: first the result, then the facts with its digest, each at once or not at all.

    Between the two a reader sees a result that its facts do not describe, which counts as none.
    """
    content = to_bytes(record.result)
    facts = {
        "key": key,
        "sha256": hashlib.sha256(content).hexdigest(),
        "seconds": round(record.seconds, 4),
        "timings": {name: round(seconds, 4) for name, seconds in record.timings.items()},
        "arguments": record.arguments,
        "versions": record.versions,
    }
    write_atomic(path, content)
    text = json.dumps(facts, indent=1, ensure_ascii=False, allow_nan=False)
    write_atomic(facts_file(path), (text + "\n").encode())


def read(path: Path) -> Record:
    """Read what a run left in `path`.

    Raises:
        RecordError: absent, unreadable, unsafe, or changed since it was written.
    """
    facts = _facts(path)
    return Record(
        path.stem,
        _unpacked(path, _content(path, facts["sha256"])),
        *(facts[name] for name in ("seconds", "timings", "arguments", "versions")),
    )


def result(path: Path) -> dict[str, Any]:
    """Read the result alone, see `read`."""
    return read(path).result


def seconds(path: Path) -> float:
    """Read how long the run took that left `path`, without its result.

    Raises:
        RecordError: absent or unreadable.
    """
    return float(_facts(path)["seconds"])


def arguments(path: Path) -> dict[str, Any]:
    """Read the arguments of the run that left `path`, see `Record`.

    Raises:
        RecordError: absent or unreadable.
    """
    return dict(_facts(path)["arguments"])


def key(path: Path) -> str | None:
    """Return the key under which `path` was written, or None where there is no whole record.

    Raises:
        RecordError: the result is not the one that was written.
    """
    if not (path.is_file() and facts_file(path).is_file()):
        return None
    facts = _facts(path)
    _content(path, facts["sha256"])
    return str(facts["key"])


def to_bytes(content: dict[str, Any]) -> bytes:
    """Serialise a result; through memory, since a file's name would become part of its bytes."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def plain(value: Any) -> Any:
    """Copy a result into what `torch.load(weights_only=True)` accepts, tensors without history.

    Equal strings become one object: whether two are the same one would show in the bytes.

    Raises:
        TypeError: something else than tensors, numbers, strings, and dicts and lists of them.
    """
    if isinstance(value, torch.Tensor):
        return value.detach().cpu().clone()
    if isinstance(value, dict):
        return {plain(name): plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if type(value) is str:
        return sys.intern(value)
    if value is None or type(value) in (bool, int, float):
        return value
    raise TypeError(
        f"a result holds a {type(value).__name__}; return tensors, numbers, strings,"
        " and dicts and lists of them (torch.as_tensor, .item())"
    )


def _facts(path: Path) -> dict[str, Any]:
    remedy = f"delete {path.stem}.* there and run the stage that writes it"
    try:
        facts = json.loads(facts_file(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        what = "was not finished" if path.is_file() else "does not exist"
        raise RecordError(f"{path} {what}; run the stage that writes it") from error
    except (OSError, ValueError) as error:
        raise RecordError(f"{facts_file(path)} is damaged ({error}); {remedy}") from error
    wanted = {"key", "sha256", "seconds", "timings", "arguments", "versions"}
    if not isinstance(facts, dict) or not wanted <= facts.keys():
        raise RecordError(f"{facts_file(path)} is not the record of a run; {remedy}")
    return facts


def _content(path: Path, digest: str) -> bytes:
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise RecordError(f"{path} does not exist; run the stage that writes it") from error
    if hashlib.sha256(content).hexdigest() != digest:
        raise RecordError(
            f"{path} is not the result that was written (its SHA-256 differs from that in "
            f"{facts_file(path).name}); delete it and run the stage that writes it"
        )
    return content


def _unpacked(path: Path, content: bytes) -> dict[str, Any]:
    try:
        found = torch.load(io.BytesIO(content), weights_only=True, map_location="cpu")
    except Exception as error:  # foreign bytes make the unpickler fail in any way it can
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise RecordError(
            f"{path} is no file of tensors and plain values ({reason}); "
            "delete it and run the stage that writes it"
        ) from error
    if not isinstance(found, dict):
        raise RecordError(
            f"{path} holds {type(found).__name__}, not the result of a run; "
            "delete it and run the stage that writes it"
        )
    return found
