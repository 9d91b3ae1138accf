"""Many independent runs, one file each: a re-run is a resume, and only what changed runs again."""

import ctypes
import gc
import hashlib
import inspect
import io
import json
import random
import re
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import torch
from threadpoolctl import threadpool_limits

from unlearnlib.pipeline import fingerprint
from unlearnlib.pipeline.paths import root, write_atomic
from unlearnlib.pipeline.progress import report

Spec = dict[str, Any]
RunOne = Callable[[Spec], dict]

# seeds and thread counts belong to the process, and a dask worker may run several threads
_ALONE = threading.Lock()


class SweepError(RuntimeError):
    """Some runs of a sweep failed; those that finished are kept."""


def sweep(
    specs: Iterable[Spec],
    run_one: RunOne,
    *,
    store: Path,
    workers: int = 1,
    engine: str = "loky",
    retries: int = 1,
) -> list[dict]:
    """Run `run_one(spec)` for every spec whose result is not in `store` yet.

    A result is reused while the spec, the content of the files that it names and the code of
    `run_one` are the same. Each run has one thread and the seed of its own spec, so that results
    depend neither on the number of workers nor on the order.

    Args:
        specs: flat dicts of JSON values and paths, each with a unique `name`, which becomes the
            name of its file, and an integer `seed`.
        run_one: function at the top level of a module; returns a dict of tensors, numbers,
            strings, and dicts and lists of them.
        store: folder of this sweep alone: other `.pt` files in it are deleted on success.
        workers: processes; 1 runs in this one.
        engine: `loky` for this machine, `dask` for the cluster of the current dask client, or of
            `$DASK_SCHEDULER_ADDRESS`.
        retries: how often to repeat a run that raises.

    Returns:
        For each spec, in order, `spec` (paths as strings from the root), `seconds` and `result`.

    Raises:
        SweepError: runs failed, or the code changed meanwhile, or the engine is not there.
        ValueError: a spec or `run_one` is not as described above.
        FileNotFoundError: a file that a spec names is absent.
    """
    specs = list(specs)
    _check(specs, run_one)
    store = store.resolve()
    code = fingerprint.code(run_one.__module__)
    file_digest = cache(_file_digest)
    keys = {spec["name"]: _key(spec, run_one, code, file_digest) for spec in specs}
    records = {name: _read(_file(store, name), key) for name, key in keys.items()}
    missing = [spec for spec in specs if records[spec["name"]] is None]
    tasks = [
        joblib.delayed(_run)(spec, run_one, store, keys[spec["name"]], code, retries)
        for spec in missing
    ]
    _raise_failures(store, _execute(tasks, workers, engine))
    for name in (spec["name"] for spec in missing):
        records[name] = _read(_file(store, name), keys[name])
    _prune(store, set(keys))
    return [
        {"spec": _portable(spec)}
        | {key: records[spec["name"]][key] for key in ("seconds", "result")}
        for spec in specs
    ]


def _file(store: Path, name: str) -> Path:
    return store / f"{name}.pt"


def _check(specs: list[Spec], run_one: RunOne) -> None:
    """Raise ValueError unless specs and function are such that a file can stand for a result."""
    importable = inspect.isfunction(run_one) and run_one.__qualname__.isidentifier()
    if not importable or run_one.__module__ == "__main__":
        raise ValueError(f"{run_one!r}: a sweep needs a function at the top level of a module")
    names = set()
    for spec in specs:
        name, seed = spec.get("name"), spec.get("seed")
        if not isinstance(name, str) or not re.fullmatch(r"\w[\w.+=-]*", name, re.ASCII):
            raise ValueError(f"spec {spec}: 'name' must be a plain file name")
        if type(seed) is not int:
            raise ValueError(f"spec {name!r}: 'seed' must be an integer, not {seed!r}")
        if name.casefold() in names:
            raise ValueError(f"two specs are named {name!r}; give each its own name")
        names.add(name.casefold())


def _key(spec: Spec, run_one: RunOne, code: str, file_digest: Callable[[Path], str]) -> str:
    """Return the SHA-256 of all that the result depends on."""
    inputs = {k: {"sha256": file_digest(v)} if isinstance(v, Path) else v for k, v in spec.items()}
    return _digest({"spec": inputs, "function": run_one.__qualname__, "code": code}).hex()


def _digest(value: dict) -> bytes:
    """Return the SHA-256 of a dict of JSON values."""
    try:
        text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{error}: a spec holds finite JSON values and paths only: {value}"
        ) from None
    return hashlib.sha256(text.encode()).digest()


def _file_digest(path: Path) -> str:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is an input of the sweep: run the stage that writes it")
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _portable(spec: Spec) -> Spec:
    """Return the spec with paths as strings that mean the same on every machine."""
    return {k: _from_root(v) if isinstance(v, Path) else v for k, v in spec.items()}


def _from_root(path: Path) -> str:
    full = path.resolve()
    return full.relative_to(root()).as_posix() if full.is_relative_to(root()) else full.name


def _read(path: Path, key: str) -> dict | None:
    """Return the record in `path`, or None if it is absent, made by something else, or damaged."""
    if not path.is_file():
        return None
    try:
        record = torch.load(path, weights_only=True, map_location="cpu")
        return record if record["key"] == key and {"seconds", "result"} <= set(record) else None
    except Exception as error:
        report(f"{path.name} is damaged and will be computed again ({type(error).__name__})")
        return None


def _execute(tasks: list, workers: int, engine: str) -> Iterator[tuple[str, str | None]]:
    """Run the tasks and yield each one's name and failure as it ends."""
    if not tasks:
        return
    started = time.monotonic()
    with _engine(engine, workers) as parallel:
        try:
            for done, (name, failure) in enumerate(parallel(tasks), 1):
                ending = f"failed: {failure}" if failure else "done"
                seconds = time.monotonic() - started
                report(f"{name} {ending}, {done}/{len(tasks)} {seconds:.0f} s")
                yield name, failure
        except BrokenProcessPool as error:
            raise SweepError(
                "a worker died, perhaps for lack of memory: finished runs are kept, run again"
                f" with fewer than {workers} workers ({type(error).__name__})"
            ) from error


@contextmanager
def _engine(engine: str, workers: int) -> Iterator[joblib.Parallel]:
    """Give a joblib runner of one thread a task, on this machine or on a dask cluster."""
    options = {"return_as": "generator_unordered", "batch_size": 1}
    if engine == "loky":
        with joblib.parallel_config("loky", inner_max_num_threads=1):
            yield joblib.Parallel(n_jobs=workers, **options)
    elif engine == "dask":
        with _dask_client() as client, joblib.parallel_config("dask", client=client):
            yield joblib.Parallel(n_jobs=-1, **options)
    else:
        raise ValueError(f"engine {engine!r}: use 'loky' or 'dask'")


@contextmanager
def _dask_client() -> Iterator[Any]:
    """Give the current dask client, or one made for the while."""
    try:
        from dask import config
        from distributed import Client, get_client
    except ImportError:
        raise SweepError(
            "engine 'dask' needs a package that is not installed: pip install distributed,"
            " or use engine 'loky'"
        ) from None
    try:
        yield get_client()
    except ValueError:
        address = config.get("scheduler-address", None)
        with Client(address) if address else Client(threads_per_worker=1) as client:
            yield client


@cache
def _code_of_this_process(module_name: str) -> str:
    """Return the code as it was when this process first ran it: what is in memory stays so."""
    return fingerprint.code(module_name)


def _run(
    spec: Spec, run_one: RunOne, store: Path, key: str, code: str, retries: int
) -> tuple[str, str | None]:
    """Run one spec and store the record; return its name and, on failure, the error."""
    for _ in range(retries + 1):
        try:
            if _code_of_this_process(run_one.__module__) != code:
                raise SweepError(
                    f"{run_one.__module__} changed meanwhile; restart to run the new code"
                )
            with _ALONE, _one_thread(), _seeded(spec):
                started = time.perf_counter()
                result = _plain(run_one(dict(spec)))
                seconds = time.perf_counter() - started
            record = {"key": key, "spec": _portable(spec), "seconds": seconds, "result": result}
            write_atomic(_file(store, spec["name"]), _to_bytes(record))
            del result, record
            _give_back_memory()
            return spec["name"], None
        except Exception as error:
            failure = _last_line(error)
    return spec["name"], failure


def _give_back_memory() -> None:
    """Return freed memory to the system, where the C library is glibc.

    A worker that keeps much more than after its first run is one that leaks, to loky, which starts
    another in its place: seconds of imports for many runs.
    """
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def _last_line(error: Exception) -> str:
    """Return the last line of a traceback and where it arose."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    line = traceback.format_exception_only(error)[-1].strip()
    return f"{line} ({Path(place.filename).name}:{place.lineno})"


@contextmanager
def _one_thread() -> Iterator[None]:
    """Compute with one thread: the last bits of a sum depend on how many share it."""
    threads = torch.get_num_threads()
    try:
        with threadpool_limits(1):
            torch.set_num_threads(1)
            yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def _seeded(spec: Spec) -> Iterator[None]:
    """Seed every generator from the spec without its paths, and leave the caller's as they were.

    On dask draw from torch and numpy only: the threads of a dask worker draw from `random` too.
    """
    plain = {k: v for k, v in spec.items() if not isinstance(v, Path)}
    seed = int.from_bytes(_digest(plain)[:4])
    python_state, numpy_state = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            random.seed(seed)
            np.random.seed(seed)
            torch.manual_seed(seed)
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)


def _plain(value: Any) -> Any:
    """Copy a result into what `torch.load(weights_only=True)` accepts, tensors without history."""
    if isinstance(value, torch.Tensor):
        return value.detach().cpu().clone()
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise TypeError(
        f"a result holds a {type(value).__name__}; return tensors, numbers, strings,"
        " and dicts and lists of them (torch.as_tensor, .item())"
    )


def _to_bytes(record: dict) -> bytes:
    """Serialise a record; through memory, since a file's name would become part of its bytes."""
    buffer = io.BytesIO()
    torch.save(record, buffer)
    return buffer.getvalue()


def _raise_failures(store: Path, outcomes: Iterator[tuple[str, str | None]]) -> None:
    """Wait for all outcomes and raise SweepError if any of them is a failure."""
    outcomes = list(outcomes)
    failures = [f"  {name}: {failure}" for name, failure in outcomes if failure]
    if failures:
        raise SweepError(
            f"{len(failures)} of {len(outcomes)} runs failed in {_from_root(store)}; the others are"
            " kept, so run again to resume:\n" + "\n".join(failures)
        )


def _prune(store: Path, names: set[str]) -> None:
    """Delete files of former specs and what interrupted writes left."""
    if not store.is_dir():
        return
    for path in store.iterdir():
        stale = path.suffix == ".pt" and path.stem not in names
        if path.is_file() and (stale or path.suffix == ".partial"):
            path.unlink()
