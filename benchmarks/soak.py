"""Run a part of the study in several surroundings, and interrupt it: the bytes must stay the same.

python -m benchmarks.soak                                # all of it, and benchmarks/soak.json
python -m benchmarks.soak --interruptions 4 --seed 1     # fewer, at other moments; nothing is written

A copy of the project lies in a folder of its own, whose name has a space and an umlaut, without git
and without results. There the part is run undisturbed; then in other surroundings; then again and
again with something killed on the way, until a run comes to its end.
"""

import argparse
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from unlearnlib.pipeline import provenance
from unlearnlib.pipeline.paths import root, write_atomic

PROFILE = "quick"
STAGES = ("retrain", "masking", "gkt")  # and what they need
INTERRUPTIONS = 20
BETWEEN = 4  # interruptions of a run before it may come to its end
LONGEST = 1800  # seconds that a run may take
RESULTS = {".git", ".venv", "runs", "data", "build", "logs", "dvc.lock"}  # are not copied
SURROUNDINGS: dict[str, dict[str, str]] = {
    "other hash seeds": {"PYTHONHASHSEED": "4321"},
    "two threads allowed": {"OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "2"},
    "plain C locale": {"LANG": "C", "LC_ALL": "C"},
    "no home, another time zone": {"HOME": "/nonexistent", "TZ": "Asia/Kathmandu"},
}
ONE_WORKER = "one worker"  # a parameter, and so shown in notebooks


@dataclass(frozen=True)
class Blow:
    """What is sent, and to whom.

    Attributes:
        name: in words.
        number: of the signal.
        target: ``command``, the ``tree`` of it and all below, a ``runner``, ``kernel`` or ``worker``.
    """

    name: str
    number: signal.Signals
    target: str


BLOWS = [
    Blow("kill -9 of everything", signal.SIGKILL, "tree"),
    Blow("kill -9 of the command alone", signal.SIGKILL, "command"),
    Blow("kill -9 of the runner alone", signal.SIGKILL, "runner"),
    Blow("kill -9 of the kernel alone", signal.SIGKILL, "kernel"),
    Blow("kill -9 of a worker alone", signal.SIGKILL, "worker"),
    Blow("SIGINT, as by Ctrl-C", signal.SIGINT, "command"),
    Blow("SIGTERM", signal.SIGTERM, "command"),
    Blow("SIGHUP, as by a closed terminal", signal.SIGHUP, "command"),
]


# ------------------------------------------------------------------------------- a copy to run


def copied(into: Path) -> Path:
    """Copy the project without results, and return the copy."""
    target = into / "a stüdy"

    def ignored(folder: str, names: list[str]) -> list[str]:
        if Path(folder) == root():
            return [name for name in names if name in RESULTS]
        return names if Path(folder) == root() / "reports" else ["__pycache__"]

    shutil.copytree(root(), target, ignore=ignored)
    return target


def command(copy: Path, **variables: str) -> subprocess.Popen:
    """Start the part of the study in the copy."""
    own = {"PYTHONPATH": str(copy), "UNLEARNLIB_ROOT": str(copy), "DVC_NO_ANALYTICS": "1"}
    with (copy / "log.txt").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "unlearnlib.pipeline", PROFILE, *STAGES],
            cwd=copy, env=os.environ | own | variables, stdout=log, stderr=log,
            start_new_session=True,
        )  # fmt: skip


def whole(copy: Path, **variables: str) -> float:
    """Run the part to its end; return the seconds that it took.

    Raises:
        RuntimeError: it failed; with the end of what it printed.
    """
    started = time.monotonic()
    code = command(copy, **variables).wait(LONGEST)
    seconds = time.monotonic() - started
    if code:
        told = (copy / "log.txt").read_text(encoding="utf-8", errors="replace")
        raise RuntimeError(f"the run in {copy} ended with {code}:\n{told[-3000:]}")
    return seconds


def forget(copy: Path) -> None:
    """Delete every result of the copy."""
    for name in ("runs", "data", "build", "dvc.lock", f"reports/{PROFILE}", ".dvc/cache"):
        shutil.rmtree(copy / name, ignore_errors=True)
        (copy / name).unlink(missing_ok=True)


def outcome(copy: Path) -> dict[str, str]:
    """Return the SHA-256 of what a run left, by path; times of runs are not compared."""
    files = [*(copy / "runs").rglob("*.pt"), *(copy / "data").rglob("*.npz")]
    files += [file for file in (copy / "reports" / PROFILE).rglob("*") if file.is_file()]
    return {
        file.relative_to(copy).as_posix(): hashlib.sha256(_timeless(file)).hexdigest()
        for file in sorted(files)
    }


def _timeless(file: Path) -> bytes:
    content = file.read_bytes()
    if file.name == "provenance.json":
        return re.sub(rb'"time": "[^"]*"', b"", content)
    return content


def leftovers(copy: Path) -> list[str]:
    """List half-written files."""
    return [str(file.relative_to(copy)) for file in copy.rglob("*.partial")]


def processes(copy: Path) -> list[psutil.Process]:
    """List processes that work in the copy or for it, and live."""
    found = []
    for process in psutil.process_iter():
        try:
            works = str(copy) in process.environ().get("UNLEARNLIB_ROOT", "")
            if works and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


# ------------------------------------------------------------------------------- surroundings


def surroundings(copy: Path, expected: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    """Run the part anew in other surroundings, and compare."""
    for name, variables in SURROUNDINGS.items():
        forget(copy)
        whole(copy, **variables)
        yield {"case": name, **_compared(expected, outcome(copy))}
    forget(copy)
    profile = copy / "params" / f"{PROFILE}.yaml"
    before = profile.read_text(encoding="utf-8")
    profile.write_text(before.replace("study:\n", "study:\n  workers: 1\n", 1), encoding="utf-8")
    whole(copy)
    # notebooks show their parameters, so that the models alone can be the same
    runs = {path: digest for path, digest in expected.items() if path.startswith(("runs", "data"))}
    seen = {path: digest for path, digest in outcome(copy).items() if path in runs}
    profile.write_text(before, encoding="utf-8")
    yield {"case": ONE_WORKER, **_compared(runs, seen)}


def _compared(expected: Mapping[str, str], seen: Mapping[str, str]) -> dict[str, Any]:
    differing = sorted(
        path for path in expected.keys() | seen.keys() if expected.get(path) != seen.get(path)
    )
    return {"files": len(expected), "differing": differing}


# ------------------------------------------------------------------------------ interruptions


def struck(copy: Path, blow: Blow, after: float) -> dict[str, Any] | None:
    """Start the part, strike after some seconds, and see what is left.

    Returns:
        the case, the stage that ran, ``orphans`` a while later, and whether a traceback was printed; None if the run
        had ended before, or there was nothing to strike.
    """
    before = (copy / "log.txt").stat().st_size
    process = command(copy)
    try:
        process.wait(after)
        return None
    except subprocess.TimeoutExpired:
        pass
    targets = _targets(process, blow.target)
    for target in targets:
        target.send_signal(blow.number)
    if not targets:
        process.wait(LONGEST)
        return None
    process.wait(LONGEST)
    deadline = time.monotonic() + 60
    while (left := processes(copy)) and time.monotonic() < deadline:
        time.sleep(0.5)
    told = (copy / "log.txt").read_bytes()[before:].decode("utf-8", "replace")
    stages = re.findall(r"Running stage '([^']+)'", told)
    return {
        "blow": blow.name, "seconds": round(after, 1),
        "stage": stages[-1].partition("@")[0] if stages else "before the first",
        "orphans": [str(one) for one in left],
        "traceback": "Traceback" in told,
    }  # fmt: skip


def _targets(process: subprocess.Popen, kind: str) -> list[psutil.Process]:
    top = psutil.Process(process.pid)
    if kind == "command":
        return [top]
    below = top.children(recursive=True)
    if kind == "tree":
        return [top, *below]
    marks = {"runner": "pipeline.runner", "kernel": "ipykernel", "worker": "loky"}
    found = []
    for one in below:
        try:
            words = " ".join(one.cmdline())
        except psutil.NoSuchProcess:
            continue
        if marks[kind] in words and not words.startswith(("/bin/sh", "sh ")):
            found.append(one)
    return found[-1:]


def interruptions(
    copy: Path, expected: Mapping[str, str], *, count: int, seconds: float, seed: int
) -> Iterator[dict[str, Any]]:
    """Strike so many times at moments spread over the run, then let each run come to its end."""
    chance, done = random.Random(seed), 0
    while done < count:
        forget(copy)
        cases: list[dict[str, Any]] = []
        wanted = min(BETWEEN, count - done)
        for _ in range(3 * wanted):  # some come too early or too late
            if len(cases) == wanted:
                break
            blow = BLOWS[(done + len(cases)) % len(BLOWS)]
            case = struck(copy, blow, chance.uniform(0.05, 1.0) * seconds / BETWEEN)
            if case:
                cases.append(case)
        whole(copy)
        ended = _compared(expected, outcome(copy))
        half = leftovers(copy)
        for case in cases:
            yield case | ended | {"half-written": half}
        if not cases:
            raise RuntimeError("nothing could be struck; the run is too short")
        done += len(cases)


# ------------------------------------------------------------------------------- command line


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; the exit code is 1 where bytes differ or something was left."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.soak", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--interruptions", type=int, default=INTERRUPTIONS, metavar="N")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--skip-surroundings", action="store_true")
    options = parser.parse_args(arguments)
    everything = options.interruptions == INTERRUPTIONS and not options.skip_surroundings
    found: dict[str, list[dict[str, Any]]] = {"surroundings": [], "interruptions": []}
    with tempfile.TemporaryDirectory() as folder:
        copy = copied(Path(folder))
        seconds = whole(copy)
        expected = outcome(copy)
        print(f"undisturbed: {len(expected)} files in {seconds:.0f} s", flush=True)
        if not options.skip_surroundings:
            for case in surroundings(copy, expected):
                found["surroundings"].append(case)
                print(case, flush=True)
        if options.interruptions:
            cases = interruptions(
                copy, expected, count=options.interruptions, seconds=seconds, seed=options.seed
            )
            for case in cases:
                found["interruptions"].append(case)
                print(case, flush=True)
    if everything:
        about = provenance.describe(profile=PROFILE, data_source="mnist-5k", seeds=[options.seed])
        kept = {key: about[key] for key in ("versions", "hardware", "code_revision", "time")}
        content = {**found, "stages": list(STAGES), "seconds": round(seconds), "about": kept}
        write_atomic(
            root() / "benchmarks" / "soak.json", (json.dumps(content, indent=2) + "\n").encode()
        )
    bad = [
        case
        for case in [*found["surroundings"], *found["interruptions"]]
        if case["differing"] or case.get("orphans") or case.get("half-written")
    ]
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
