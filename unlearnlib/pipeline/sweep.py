"""Many independent runs, one file each: a re-run is a resume, and only what changed runs again."""

import ctypes
import dataclasses
import errno
import gc
import hashlib
import inspect
import json
import math
import os
import platform
import random
import re
import shutil
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import CancelledError
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import torch
from threadpoolctl import threadpool_limits

from unlearnlib.pipeline import clock, fingerprint, records, seeds, shards, watch
from unlearnlib.pipeline.paths import root
from unlearnlib.pipeline.progress import report
from unlearnlib.pipeline.records import Record, RecordError
from unlearnlib.pipeline.registry import Named
from unlearnlib.pipeline.shards import OtherShardsMissing, Shard

Run = Callable[..., dict[str, Any]]
Arguments = Mapping[str, Any]
Outcome = tuple[str, str | None]

# seeds and thread counts belong to the process, and a dask worker may run several threads
_ALONE = threading.Lock()

# of an error that meets every run that writes: no space, no quota, a file system to read from only
_NO_WRITING = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
# what may pass; RuntimeError is also how torch says that memory ran out
_MAY_PASS = (OSError, MemoryError, RuntimeError)
# seconds between looks at a dask cluster, and without any worker after which it is given up
_LOOK = 5.0
_PATIENCE = 60.0


class SweepError(RuntimeError):
    """Runs of a sweep failed or could not be stored; those that finished are kept."""


def sweep(
    run: Run,
    tasks: Mapping[str, Arguments],
    *,
    store: Path,
    workers: int = 1,
    engine: str = "loky",
    retries: int = 1,
) -> dict[str, Record]:
    """Call ``run(**arguments)`` for every task whose result is not in `store` yet.

    A result is reused while the arguments, the content of the files that they name at any depth,
    and the code that `run` and functions and classes among the arguments reach are the same. Each
    run has one thread, and torch, numpy and random are seeded from its argument ``seed`` and the
    name of `run`: results depend neither on the number of workers, nor on the order, nor on
    arguments that a run does not look at.

    Results that are not asked for, because their task is not there or has changed, are set aside in
    ``build/set_aside`` and come back when they are asked for again; nothing is deleted.

    Args:
        run: function at the top level of a module, with keyword arguments alone; returns a dict of
            tensors, numbers, strings, and dicts and lists of them.
        tasks: by name (which becomes the name of its file) the arguments of each run: finite
            numbers, strings, paths, dataclasses, functions and classes, and lists, tuples and dicts
            of them.
        store: folder of this sweep alone.
        workers: processes, no more than there are runs; 1 runs in this one. Those of a dask cluster
            that is there already are its own.
        engine: ``loky`` for this machine, ``dask`` for the cluster of the current dask client, or
            of ``$DASK_SCHEDULER_ADDRESS``, or else one on this machine that listens to it alone.
        retries: how often to repeat a run that raises what may pass: OSError, MemoryError or
            RuntimeError. Any other error would come again, and a full disk ends the sweep at once.

    Returns:
        the record of each task by name, in the order of the tasks.

    Raises:
        SweepError: runs failed, or results cannot be written, or the code changed meanwhile, or the
            engine is not there, or its workers or its scheduler died.
        OtherShardsMissing: this process makes a share of the runs alone, see `shards`, and others are
            not there yet.
        ValueError: a task, `run`, or the number of workers is not as described above.
        FileNotFoundError: a file that a task names is absent.
    """
    if type(workers) is not int or workers < 1:
        raise ValueError(f"workers={workers!r}: give the number of processes, at least 1")
    _check(run, tasks)
    store = store.resolve()
    keys_of = _Keys(run)
    keys = {name: keys_of.of(name, arguments) for name, arguments in tasks.items()}
    shard = shards.current()
    wanted = shard.own(keys) if shard else list(keys)
    missing = [name for name in wanted if not _found(store, name, keys[name])]
    jobs = [
        joblib.delayed(_run)(
            name, run, dict(tasks[name]), store, keys[name], keys_of.code, retries, root()
        )
        for name in missing
    ]
    _raise_failures(store, _execute(jobs, min(workers, max(1, len(jobs))), engine))
    if shard:
        _check_others(store, keys, shard)
    else:
        _clean_up(store, set(keys))
        _keep_folder(store, empty=not keys)
    return {name: records.read(_file(store, name)) for name in tasks}


def _check_others(store: Path, keys: Mapping[str, str], shard: Shard) -> None:
    """Raise OtherShardsMissing where other shares are not done; leave their files alone."""
    lacking = [name for name, key in keys.items() if _known(_file(store, name)) != key]
    if lacking:
        raise OtherShardsMissing(
            f"shard {shard} of {_from_root(store)} is done; {len(lacking)} of {len(keys)} runs are for "
            "other shards"
        )


def _file(store: Path, name: str) -> Path:
    return store / f"{name}.pt"


# ------------------------------------------------------------------------------------ tasks


def _keep_folder(store: Path, *, empty: bool) -> None:
    """Let a stage find its folder where it asks for no run, and git keep it, by an empty file."""
    mark = store / ".gitkeep"
    if empty:
        store.mkdir(parents=True, exist_ok=True)
        mark.touch()
    else:
        mark.unlink(missing_ok=True)


def _check(run: Run, tasks: Mapping[str, Arguments]) -> None:
    """Raise ValueError unless tasks and function are such that a file can stand for a result."""
    importable = inspect.isfunction(run) and run.__qualname__.isidentifier()
    if not importable or run.__module__ == "__main__":
        raise ValueError(f"{run!r}: a sweep needs a function at the top level of a module")
    signature, names = inspect.signature(run), set()
    if not all(p.kind is p.KEYWORD_ONLY for p in signature.parameters.values()):
        raise ValueError(f"{run.__qualname__}{signature}: a run takes keyword arguments alone")
    for name, arguments in tasks.items():
        if not isinstance(name, str) or not re.fullmatch(r"\w[\w.+=-]*", name, re.ASCII):
            raise ValueError(f"task {name!r}: the name must be a plain file name")
        if name.casefold() in names:
            raise ValueError(f"two tasks are named {name!r} but for the case; rename one")
        names.add(name.casefold())
        try:
            signature.bind(**arguments)
        except TypeError as error:
            raise ValueError(f"task {name!r}: {error} of {run.__qualname__}{signature}") from None
        if "seed" in arguments and type(arguments["seed"]) is not int:
            raise ValueError(f"task {name!r}: seed={arguments['seed']!r} is not an integer")


class _Keys:
    """Make keys of tasks: the SHA-256 of all that a result depends on.

    Attributes:
        code: fingerprint of the run and of each function and class that its tasks hand it.
    """

    def __init__(self, run: Run) -> None:
        self.code: dict[fingerprint.Thing, str] = {}
        self._run = run
        self._file_digest = cache(_file_digest)

    def of(self, name: str, arguments: Arguments) -> str:
        """Return the key of a task."""
        content = {
            "function": self._run.__qualname__,
            "code": self._code(self._run),
            "arguments": {
                word: self._encoded(value, f"task {name!r}: {word}")
                for word, value in sorted(arguments.items())
            },
        }
        text = json.dumps(content, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def _code(self, thing: fingerprint.Thing) -> str:
        if thing not in self.code:
            self.code[thing] = fingerprint.of(thing)
        return self.code[thing]

    def _encoded(self, value: Any, where: str) -> Any:
        """Return JSON that stands for an argument; each kind differs from every other.

        Files count by their content, functions and classes by their code, dataclasses by their
        class and the fields that they are compared by, dicts by their order too.
        """
        if value is None or type(value) in (bool, int, str):
            return value
        if isinstance(value, float) and math.isfinite(value):
            return float(value)
        if isinstance(value, Path):
            return {"file": self._file_digest(value)}
        if isinstance(value, type) or inspect.isfunction(value):
            return {"code": self._code_of_argument(value, where)}
        if dataclasses.is_dataclass(value):
            fields = {
                f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.compare
            }
            code = self._code_of_argument(type(value), where)
            return {"class": code, "fields": self._encoded(fields, where)}
        if isinstance(value, Mapping) and all(type(key) is str for key in value):
            return {"dict": [[k, self._encoded(v, f"{where}.{k}")] for k, v in value.items()]}
        if isinstance(value, (list, tuple)):
            return [self._encoded(item, f"{where}.{n}") for n, item in enumerate(value)]
        raise ValueError(
            f"{where}={value!r}: a task holds finite numbers, strings, paths, dataclasses, "
            "functions and classes, and lists, tuples and dicts of them, only"
        )

    def _code_of_argument(self, thing: fingerprint.Thing, where: str) -> str:
        try:
            return self._code(thing)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None


def _file_digest(path: Path) -> str:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is an input of the sweep: run the stage that writes it")
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def portable(value: Any) -> Any:
    """Return an argument as plain values that mean the same on every machine, for the record."""
    if isinstance(value, Path):
        return _from_root(value)
    if isinstance(value, Named):
        return value.name
    if isinstance(value, type) or inspect.isfunction(value):
        return f"{value.__module__}:{value.__qualname__}"
    if dataclasses.is_dataclass(value):
        return {f.name: portable(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: portable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [portable(item) for item in value]
    return value


def _from_root(path: Path) -> str:
    full = path.resolve()
    return full.relative_to(root()).as_posix() if full.is_relative_to(root()) else full.name


# ------------------------------------------------------------------------------------ store


def _known(path: Path) -> str | None:
    """Return the key of the record in `path`, or None if it is absent or damaged."""
    try:
        return records.key(path)
    except RecordError as error:
        report(f"{path.name} is damaged: {error}")
        return None


def _found(store: Path, name: str, key: str) -> bool:
    """Tell whether a task has its result, which may have been set aside; set another one aside."""
    path = _file(store, name)
    if (known := _known(path)) == key:
        return True
    if known is not None:
        _set_aside(path, known)
    kept = _aside(path, key)
    if kept.is_file() and _known(kept) == key:
        _move(kept, path)
        return True
    return False


def _aside(path: Path, key: str) -> Path:
    """Name the place in `build` of a result that is not asked for."""
    store = path.parent
    inner = store.relative_to(root()) if store.is_relative_to(root()) else Path(store.name)
    return root() / "build" / "set_aside" / inner / f"{path.stem}.{key[:16]}.pt"


def _set_aside(path: Path, key: str) -> None:
    report(f"{path.name} is not asked for and set aside")
    _move(path, _aside(path, key))


def _clean_up(store: Path, names: set[str]) -> None:
    """Set aside what was not asked for, and delete what interrupted writes left."""
    for path in list(store.iterdir()) if store.is_dir() else []:
        if path.name.startswith(".") and path.suffix == ".partial":
            path.unlink()
        elif path.suffix == ".pt" and path.is_file() and path.stem not in names:
            # whatever is no record is known by its content
            _set_aside(path, _known(path) or _file_digest(path))


def _move(path: Path, target: Path) -> None:
    """Move a record, its result first: until its facts follow it counts as none."""
    target.parent.mkdir(parents=True, exist_ok=True)
    for file, goal in ((path, target), (records.facts_file(path), records.facts_file(target))):
        if file.is_file():
            shutil.move(file, goal)


# ------------------------------------------------------------------------------------- runs


def _execute(jobs: list, workers: int, engine: str) -> Iterator[Outcome]:
    """Run the jobs and yield each one's name and failure as it ends."""
    if not jobs:
        return
    started = time.monotonic()
    for done, (name, failure) in enumerate(_outcomes(jobs, workers, engine), 1):
        ending = f"failed: {failure}" if failure else "done"
        seconds = time.monotonic() - started
        report(f"{name} {ending}, {done}/{len(jobs)} {seconds:.0f} s")
        yield name, failure


def _outcomes(jobs: list, workers: int, engine: str) -> Iterator[Outcome]:
    """Run the jobs, one thread each, on this machine or on a dask cluster."""
    if engine == "loky":
        yield from _on_this_machine(jobs, workers)
    elif engine == "dask":
        with _dask_client(workers) as client, client.as_current():
            yield from _on_dask(jobs, client)
    else:
        raise ValueError(f"engine {engine!r}: use 'loky' or 'dask'")


def _on_this_machine(jobs: list, workers: int) -> Iterator[Outcome]:
    options = {"return_as": "generator_unordered", "batch_size": 1}
    own = {"initializer": watch.exit_with_parent, "initargs": (os.getpid(),)}
    try:
        with joblib.parallel_config("loky", inner_max_num_threads=1, **own):
            yield from joblib.Parallel(n_jobs=workers, **options)(jobs)
    except BrokenProcessPool as error:
        raise SweepError(
            "a worker died, perhaps for lack of memory: finished runs are kept, run again"
            f" with fewer than {workers} workers ({type(error).__name__})"
        ) from error


def _on_dask(jobs: list, client: Any) -> Iterator[Outcome]:
    """Run the jobs on the cluster of a dask client, and look now and then whether it is there.

    joblib's own backend waits for ever for a cluster that is gone.

    Raises:
        SweepError: its scheduler is gone, all workers are, one died again and again, or it has another
            environment.
    """
    from distributed import KilledWorker, wait

    waiting = {client.submit(job, *given, pure=False, **named) for job, given, named in jobs}
    alive = time.monotonic()
    try:
        while waiting:
            try:
                done, waiting = wait(waiting, timeout=_LOOK, return_when="FIRST_COMPLETED")
                yield from (future.result() for future in done)
                alive = time.monotonic()
            except TimeoutError:
                alive = _last_alive(client, alive)
    except KilledWorker as error:
        raise SweepError(
            "a dask worker died, perhaps for lack of memory: finished runs are kept, run again with"
            " more memory for each"
        ) from error
    except (CancelledError, OSError) as error:
        raise SweepError(
            "the dask scheduler is gone, or its cluster was restarted: finished runs are kept, start"
            f" it again and then the study ({type(error).__name__})"
        ) from error
    except SweepError:
        raise
    except Exception as error:  # runs return their own: this one is the cluster's
        raise SweepError(
            "the dask cluster cannot take the runs: install the environment of this machine there"
            f" ({_last_line(error)})"
        ) from error
    finally:
        if client.status == "running":
            client.cancel(list(waiting))


def _last_alive(client: Any, before: float) -> float:
    """Return when a dask cluster had workers, now or at a time before.

    Raises:
        SweepError: too long ago.
    """
    now = time.monotonic()
    if client.nthreads():
        return now
    if now - before > _PATIENCE:
        raise SweepError(
            f"the dask cluster has had no workers for {now - before:.0f} s: finished runs are kept,"
            " start workers and then the study again"
        )
    return before


@contextmanager
def _dask_client(workers: int) -> Iterator[Any]:
    """Give the current dask client, or one made for the while.

    Raises:
        SweepError: dask is not installed, or no scheduler answers.
    """
    try:
        from dask import config
        from distributed import Client, get_client
    except ImportError:
        raise SweepError(
            "engine 'dask' needs a package that is not installed: pip install distributed,"
            " or use engine 'loky'"
        ) from None
    try:
        client = get_client()
    except ValueError:
        client = None
    if client is not None:
        yield client
        return
    # a dashboard for others on the network would tell them what runs here, and let them stop it
    here = {"host": "127.0.0.1", "dashboard_address": "127.0.0.1:8787"}
    address = config.get("scheduler-address", None)
    try:
        client = (
            Client(address) if address else Client(n_workers=workers, threads_per_worker=1, **here)
        )
    except OSError as error:
        raise SweepError(
            f"no dask scheduler answers at {address or 'this machine'} ({error}): start it, or unset"
            " DASK_SCHEDULER_ADDRESS, or use engine 'loky'"
        ) from error
    with client:
        yield client


_loaded = cache(fingerprint.loaded)


def _run(
    name: str,
    run: Run,
    arguments: dict[str, Any],
    store: Path,
    key: str,
    code: Mapping[fingerprint.Thing, str],
    retries: int,
    project: Path,
) -> tuple[str, str | None]:
    """Do one task and store the record; return its name and, on failure, the error.

    A worker outlives its sweep and serves the next one, which may be of another project's folder.

    Raises:
        SweepError: no other run could do better.
    """
    for _ in range(retries + 1):
        try:
            _check_memory(code)
            with _ALONE, _one_thread(), _seeded(run, arguments), clock.collected() as timings:
                if root() != project:
                    os.environ["UNLEARNLIB_ROOT"] = str(project)
                started = time.perf_counter()
                result = records.plain(_dict(run, run(**arguments)))
                seconds = time.perf_counter() - started
            versions = {"python": platform.python_version(), "torch": torch.__version__}
            record = Record(name, result, seconds, timings, portable(arguments), versions)
            records.write(_file(store, name), record, key=key)
            del result, record
            _give_back_memory()
            return name, None
        except SweepError:
            raise
        except Exception as error:
            if isinstance(error, OSError) and error.errno in _NO_WRITING:
                raise SweepError(
                    f"{store} cannot be written: make room on its disk ({error});"
                    " finished runs are kept, so run again to resume"
                ) from None
            failure = _last_line(error)
            if not isinstance(error, _MAY_PASS):
                break
    return name, failure


def _dict(run: Run, result: Any) -> dict[str, Any]:
    if not isinstance(result, dict):
        raise TypeError(f"{run.__qualname__} returned a {type(result).__name__}; return a dict")
    return result


def _check_memory(code: Mapping[fingerprint.Thing, str]) -> None:
    """Raise SweepError if this process holds other code than that of the key."""
    for thing, wanted in code.items():
        if _loaded(thing) != wanted:
            raise SweepError(f"{thing.__module__} changed meanwhile; restart to run the new code")


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
def _seeded(run: Run, arguments: Arguments) -> Iterator[None]:
    """Seed every generator for a run, and leave the caller's as they were.

    The seed follows from the run's own and from its name, so that runs of one kind and seed are
    paired, and a student does not start from the weights that its teacher started from.

    On dask draw from torch and numpy only: the threads of a dask worker draw from `random` too.
    """
    name = f"{run.__module__.rpartition('.')[2]}.{run.__qualname__}"
    seed = seeds.derive(arguments.get("seed", 0), name)
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


def _raise_failures(store: Path, outcomes: Iterator[tuple[str, str | None]]) -> None:
    """Wait for all outcomes and raise SweepError if any of them is a failure."""
    outcomes = list(outcomes)
    failures = [f"  {name}: {failure}" for name, failure in outcomes if failure]
    if failures:
        raise SweepError(
            f"{len(failures)} of {len(outcomes)} runs failed in {_from_root(store)}; the others are"
            " kept, so run again to resume:\n" + "\n".join(failures)
        )
