"""Sweeps: each run once, the same whatever the workers, and nothing stale reused."""

import builtins
import errno
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import psutil
import pytest
import torch
from dask import config as dask_config
from distributed import Client, LocalCluster
from joblib.externals.loky import get_reusable_executor

from unlearnlib.pipeline import clock, paths, records, seeds
from unlearnlib.pipeline import sweep as sweep_module
from unlearnlib.pipeline.records import Record
from unlearnlib.pipeline.registry import Named
from unlearnlib.pipeline.shards import OtherShardsMissing
from unlearnlib.pipeline.sweep import SweepError, sweep


def draw(*, seed: int, x: int = 0, log: str | None = None, name: str = "") -> dict:
    """Draw from every generator, and leave a mark of having run."""
    if log:
        with open(log, "a") as marks:
            marks.write(f"{name or seed}\n")
    product = torch.randn(300, 300) @ torch.randn(300, 300)
    return {
        "noise": [product.sum(), float(np.random.rand()), random.random()],
        "threads": torch.get_num_threads(),
        "twice": 2 * x,
    }


def draw_too(*, seed: int) -> dict:
    """Draw as `draw` does."""
    return draw(seed=seed)


def wait_and_draw(*, seed: int) -> dict:
    """Give others time to seed the generator in between."""
    time.sleep(0.05)
    return {"noise": torch.rand(1).item()}


def fail_at_first(*, flag: str, seed: int) -> dict:
    """Fail until the file of that name exists."""
    if not os.path.exists(flag):
        open(flag, "w").close()
        raise RuntimeError("first try")
    return {"noise": torch.rand(1).item()}


def fail_if_odd(*, seed: int) -> dict:
    """Fail for odd seeds."""
    if seed % 2:
        raise ValueError(f"seed {seed} is odd")
    return {"seed": seed}


def mark_and_raise(*, log: str, seed: int, error: str) -> dict:
    """Leave a mark of having run, and fail."""
    with open(log, "a") as marks:
        marks.write(f"{seed}\n")
    raise getattr(builtins, error)("failed")


def fill_disk_at_second(*, log: str, seed: int, number: int) -> dict:
    """Leave a mark of having run; meet an error of the file system in the second run."""
    with open(log, "a") as marks:
        marks.write(f"{seed}\n")
    if seed == 1:
        raise OSError(number, os.strerror(number))
    time.sleep(0.5 if seed else 0)
    return {"seed": seed}


def read_files(*, sources: Any, seed: int = 0) -> dict:
    """Read the files among the values of a dict or the items of a list, at any depth."""
    return {"texts": texts(sources), "noise": torch.rand(1)}


def texts(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: texts(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [texts(item) for item in value]
    return value.read_text() if isinstance(value, Path) else value


def return_array(*, seed: int) -> dict:
    """Return what cannot be stored safely."""
    return {"array": np.zeros(2)}


def return_list(*, seed: int) -> dict:
    """Return what is no result."""
    return [1, 2]


def die(*, seed: int) -> dict:
    """End the process as the kernel does when memory runs out."""
    os._exit(1)


def interrupt_second(*, seed: int) -> dict:
    """Press Ctrl-C in the second run."""
    if seed == 1:
        raise KeyboardInterrupt
    return {"seed": seed}


def measure(*, seed: int) -> dict:
    """Take some time in parts."""
    with clock.timed("all"):
        for _ in range(2):
            with clock.timed("part"):
                time.sleep(0.02)
    return {}


def positional(seed: int) -> dict:
    """Take an argument that may be given by position."""
    return {}


def anything(**arguments: object) -> dict:
    """Take whatever is given."""
    return {}


def where(*, seed: int) -> dict:
    return {"root": str(paths.root())}


def who(*, seed: int) -> dict:
    """Tell which process it is."""
    time.sleep(0.3)
    return {"who": os.getpid()}


@dataclass(frozen=True)
class Settings:
    """Settings of a run, with a file and a remark that two equal ones may differ in."""

    steps: int
    source: Path | None = None
    inner: "Settings | None" = None
    remark: str = field(default="", compare=False)


@dataclass(frozen=True)
class Others:
    """Settings of another class with the same fields."""

    steps: int
    source: Path | None = None
    inner: Settings | None = None


@dataclass(frozen=True)
class Way(Named):
    """A way to compute something."""

    compute: Callable[[int], int]


def double(x: int) -> int:
    return 2 * x


def triple(x: int) -> int:
    return 3 * x


DOUBLE = Way("double", "twice as much", double)


def use(*, seed: int, settings: Any = None, way: Way | None = None, function: Any = None) -> dict:
    """Use what is given."""
    return {
        "steps": getattr(settings, "steps", 0),
        "way": way.compute(21) if way else 0,
        "function": function(21) if callable(function) and not isinstance(function, type) else 0,
        "now": time.time(),
    }


def say(*, seed: int, word: str) -> dict:
    """Return strings that are the same object or not, as chance has it."""
    made = "".join(["li", "teral"])
    return {"a": "literal", "b": made, "c": word, "literal": [word, made], made: torch.ones(2)}


def grow(*, seed: int, blocks: int) -> dict:
    """Use much memory for a second, more than the run before; tell who did."""
    held = [torch.ones(2**20) for _ in range(blocks)]  # 4 MB each
    time.sleep(1.1)
    return {"who": os.getpid(), "blocks": len(held)}


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Name a store inside a temporary project."""
    monkeypatch.setenv("UNLEARNLIB_ROOT", str(tmp_path))
    monkeypatch.setenv("UNLEARNLIB_PROGRESS", str(tmp_path / "progress"))
    sweep_module._loaded.cache_clear()
    return tmp_path / "runs" / "quick" / "sweep"


def tasks(count: int, **more: object) -> dict[str, dict]:
    """Make tasks that differ by name and seed."""
    return {f"run-{seed}": {"seed": seed, **more} for seed in range(count)}


def noises(found: dict[str, Record]) -> list:
    """Return the numbers of `draw`, comparable with ==."""
    return [[float(value) for value in record.result["noise"]] for record in found.values()]


def files(folder: Path) -> set[str]:
    """Name what lies in a folder."""
    return {path.name for path in folder.iterdir()} if folder.is_dir() else set()


# ------------------------------------------------------------------------- runs and records


def test_records_come_by_name_in_the_order_of_the_tasks(store: Path) -> None:
    given = {name: {"seed": 0, "x": x} for name, x in [("b", 1), ("a", 2), ("c", 3)]}
    found = sweep(draw, given, store=store)
    assert list(found) == ["b", "a", "c"] == [record.name for record in found.values()]
    assert [record.result["twice"] for record in found.values()] == [2, 4, 6]
    assert [record.arguments for record in found.values()] == list(given.values())
    assert all(record.seconds > 0 for record in found.values())
    assert found["a"].versions["torch"] == torch.__version__
    assert files(store) == {f"{name}.{suffix}" for name in "abc" for suffix in ("pt", "json")}


def test_number_of_workers_changes_nothing(store: Path) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    alone = sweep(draw, tasks(3), store=store / "alone")
    assert torch.get_num_threads() == 2
    torch.set_num_threads(threads)
    shared = sweep(draw, tasks(3), store=store / "shared", workers=2)
    assert noises(alone) == noises(shared)
    assert {found[name].result["threads"] for found in (alone, shared) for name in found} == {1}
    for name in alone:
        both = [(store / folder / f"{name}.pt").read_bytes() for folder in ("alone", "shared")]
        assert both[0] == both[1]


def test_threads_of_one_process_do_not_share_a_seed(store: Path) -> None:
    alone = sweep(wait_and_draw, tasks(4), store=store / "alone")
    given = [
        (name, wait_and_draw, args, store, "key", {}, 0, paths.root())
        for name, args in tasks(4).items()
    ]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda arguments: sweep_module._run(*arguments), given))
    for name, record in alone.items():
        assert records.result(store / f"{name}.pt") == record.result


def test_runs_differ_and_leave_the_callers_generators_alone(store: Path) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    first, second = noises(sweep(draw, tasks(2), store=store))
    assert all(a != b for a, b in zip(first, second, strict=True))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()
    assert random.getstate() == before[2]


def test_digits_follow_from_seed_and_function_alone(store: Path) -> None:
    plain = sweep(draw, {"a": {"seed": 3}}, store=store / "plain")
    more = sweep(draw, {"b": {"seed": 3, "x": 1}, "c": {"seed": 4}}, store=store / "more")
    assert noises(more)[0] == noises(plain)[0] != noises(more)[1]
    other = sweep(draw_too, {"a": {"seed": 3}}, store=store / "other")
    assert noises(other) != noises(plain)
    random.seed(seeds.derive(3, "test_sweep.draw"))
    assert noises(plain)[0][2] == random.random()


def test_no_more_processes_start_than_there_are_runs(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def parallel(n_jobs: int, **options: object) -> joblib.Parallel:
        asked.append(n_jobs)
        return made(n_jobs=n_jobs, **options)

    made = joblib.Parallel
    monkeypatch.setattr(sweep_module.joblib, "Parallel", parallel)
    sweep(draw, tasks(2), store=store, workers=8)
    sweep(draw, tasks(3), store=store, workers=8)
    sweep(draw, tasks(3), store=store, workers=8)
    assert asked == [2, 1]


def test_workers_share_the_runs(store: Path) -> None:
    found = sweep(who, tasks(4), store=store, workers=2)
    assert len({record.result["who"] for record in found.values()} - {os.getpid()}) == 2


def test_workers_that_served_another_project_serve_this_one(
    store: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Worker processes stay between sweeps; relative paths are those of the caller's folder."""
    for folder in (tmp_path / "one", tmp_path / "two"):
        folder.mkdir()
        monkeypatch.setenv("UNLEARNLIB_ROOT", str(folder))
        found = sweep(where, tasks(4), store=store / folder.name, workers=2)
        assert {record.result["root"] for record in found.values()} == {str(folder)}


def test_a_sweep_of_no_runs_leaves_a_folder_that_git_keeps(store: Path) -> None:
    assert sweep(draw, {}, store=store) == {} and files(store) == {".gitkeep"}
    sweep(draw, tasks(1), store=store)
    assert files(store) == {"run-0.pt", "run-0.json"}


def test_seconds_and_timings_lie_beside_the_result(store: Path) -> None:
    record = sweep(measure, tasks(1), store=store)["run-0"]
    assert record.timings["all"] >= record.timings["part"] >= 0.04
    assert record.seconds >= record.timings["all"]
    facts = json.loads((store / "run-0.json").read_text())
    assert (facts["timings"], facts["seconds"]) == (record.timings, record.seconds)
    assert torch.load(store / "run-0.pt", weights_only=True) == {}


def test_the_same_run_leaves_the_same_bytes(store: Path) -> None:
    given = {"a": {"seed": 0, "word": "literal"}}
    bytes_of = []
    for folder, workers in (("one", 1), ("two", 1), ("three", 2)):
        # another object than the literal, as when it comes from a file of parameters
        given = {"a": {"seed": 0, "word": "".join(list("literal"))}, "b": {"seed": 1, "word": "x"}}
        sweep(say, given, store=store / folder, workers=workers)
        bytes_of.append((store / folder / "a.pt").read_bytes())
    assert bytes_of[0] == bytes_of[1] == bytes_of[2]


def test_progress_counts_runs(store: Path, tmp_path: Path) -> None:
    sweep(draw, tasks(2), store=store)
    lines = (tmp_path / "progress").read_text().splitlines()
    assert [line.rsplit(" ", 2)[0] for line in lines] == ["run-0 done, 1/2", "run-1 done, 2/2"]


# ------------------------------------------------------------------------- what runs again


def test_only_new_tasks_run(store: Path, tmp_path: Path) -> None:
    log = str(tmp_path / "log")
    first = sweep(draw, tasks(3, log=log), store=store)
    last = dict(list(tasks(4, log=log).items())[1:])
    again = sweep(draw, last, store=store)
    assert Path(log).read_text().split() == ["0", "1", "2", "3"]
    assert noises(again)[:2] == noises(first)[1:]


def test_a_changed_value_runs_again(store: Path) -> None:
    sweep(draw, tasks(1, x=1), store=store)
    assert sweep(draw, tasks(1, x=2), store=store)["run-0"].result["twice"] == 4


def test_changed_code_runs_again(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = tasks(1, log=str(tmp_path / "log"))
    for code in ("one", "one", "other"):
        monkeypatch.setattr(sweep_module.fingerprint, "of", lambda thing, code=code: code)
        monkeypatch.setattr(sweep_module, "_loaded", sweep_module.fingerprint.of)
        sweep(draw, given, store=store)
    assert (tmp_path / "log").read_text().split() == ["0", "0"]


def test_code_that_changed_after_it_was_loaded_is_not_run_under_its_new_name(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = tmp_path / "edited.py"
    module.write_text(
        "def helper():\n    return 1\ndef run(*, seed):\n    return {'x': helper()}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import edited

    monkeypatch.delitem(sys.modules, "edited")
    monkeypatch.setitem(sys.modules, "edited", edited)
    assert sweep(edited.run, tasks(1), store=store)["run-0"].result == {"x": 1}
    module.write_text(module.read_text() + "def unrelated():\n    return 0\n")
    assert sweep(edited.run, tasks(2), store=store)["run-1"].result == {"x": 1}
    module.write_text(module.read_text().replace("return 1", "return 2"))
    with pytest.raises(SweepError, match="edited changed meanwhile; restart"):
        sweep(edited.run, tasks(2), store=store)
    # and what another function hands on is looked at as well
    with pytest.raises(SweepError, match="edited changed meanwhile; restart"):
        sweep(use, {"a": {"seed": 0, "function": edited.helper}}, store=store / "other")


def test_another_function_of_the_same_module_runs_again(store: Path) -> None:
    first = sweep(draw, tasks(1), store=store)
    assert noises(sweep(draw_too, tasks(1), store=store)) != noises(first)


@pytest.mark.parametrize(
    "nest",
    [
        lambda path: path,
        lambda path: [path, path],
        lambda path: {"a": {"b": [1, (path, None)]}},
    ],
)
def test_files_count_by_content_at_any_depth(
    store: Path, tmp_path: Path, nest: Callable[[Path], Any]
) -> None:
    source, twin = tmp_path / "in" / "a.txt", tmp_path / "in" / "b.txt"
    source.parent.mkdir()
    source.write_text("one")
    twin.write_text("one")

    def read(path: Path) -> Record:
        return sweep(read_files, {"a": {"sources": nest(path)}}, store=store)["a"]

    first, written = read(source), (store / "a.pt").stat().st_mtime_ns
    read(twin)
    assert (store / "a.pt").stat().st_mtime_ns == written
    assert "in/a.txt" in json.dumps(first.arguments)
    source.write_text("two")
    changed = read(source)
    assert changed.result["texts"] == json.loads(json.dumps(texts(nest(source))))
    assert "two" in json.dumps(changed.result["texts"])
    assert changed.result["noise"] == first.result["noise"]
    written = [path.read_bytes() for path in store.iterdir()]
    assert not any(str(tmp_path).encode() in content for content in written)


def test_an_absent_file_is_named(store: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"teacher\.pt .* run the stage"):
        sweep(read_files, {"a": {"sources": [tmp_path / "teacher.pt"]}}, store=store)


def test_dataclasses_count_by_class_and_fields(store: Path, tmp_path: Path) -> None:
    source = tmp_path / "a.txt"
    source.write_text("one")

    def when(settings: object) -> float:
        return sweep(use, {"a": {"seed": 0, "settings": settings}}, store=store)["a"].result["now"]

    first = when(Settings(2, source, Settings(3)))
    assert when(Settings(2, source, Settings(3), remark="of no account")) == first
    others = [Settings(1, source, Settings(3)), Settings(2, source, Settings(4)), Settings(2)]
    assert len({first, *map(when, others), when(Others(2))}) == 5
    assert when({"steps": 2}) not in (when(Settings(2)), when(Others(2)))
    source.write_text("two")
    assert when(Settings(2, source, Settings(3))) != first
    facts = records.arguments(store / "a.pt")
    assert facts["settings"]["source"] == "a.txt"
    assert facts["settings"]["inner"]["steps"] == 3


def test_registry_entries_and_functions_count_by_their_code(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def told(**given: object) -> dict:
        return sweep(use, {"a": {"seed": 0, **given}}, store=store)["a"].result

    first = told(way=DOUBLE)
    assert first["way"] == 42
    assert records.arguments(store / "a.pt")["way"] == "double"
    assert told(way=Way("double", "with another title", double)) == first
    assert told(way=Way("double", "twice as much", triple))["way"] == 63
    assert told(function=double)["function"] == 42
    assert told(function=triple)["function"] == 63
    assert records.arguments(store / "a.pt")["function"] == f"{__name__}:triple"
    assert told(function=Settings)["now"] != told(function=Others)["now"]
    real = sweep_module.fingerprint.of
    changed = lambda thing: "other" if thing is double else real(thing)  # noqa: E731
    monkeypatch.setattr(sweep_module.fingerprint, "of", changed)
    monkeypatch.setattr(sweep_module, "_loaded", changed)
    assert told(way=DOUBLE)["now"] != first["now"]


def test_arguments_of_different_kinds_differ(tmp_path: Path) -> None:
    source = tmp_path / "a.txt"
    source.write_text("one")
    digest = sweep_module._file_digest(source)
    values = [
        *(0, 0.0, False, None, "", "0", [], {}, [0], {"0": 0}, [[0]], Others(0), Settings(0)),
        *(source, digest, {"file": digest}, {"a": 1, "b": 2}, {"b": 2, "a": 1}, double, "double"),
    ]
    keys = [sweep_module._Keys(anything).of("a", {"x": value}) for value in values]
    assert len(set(keys)) == len(values)
    assert sweep_module._Keys(anything).of("a", {"y": 1, "x": 0}) == sweep_module._Keys(
        anything
    ).of("b", {"x": 0, "y": 1})


# ------------------------------------------------------------------- set aside, and damage


def test_results_are_set_aside_and_come_back(store: Path, tmp_path: Path) -> None:
    log = str(tmp_path / "log")
    aside = tmp_path / "build" / "set_aside" / "runs" / "quick" / "sweep"
    first = sweep(draw, tasks(3, log=log), store=store)
    (store / ".run-1.pt.0.partial").touch()
    (store / "README.md").touch()
    (store / "folder.pt").mkdir()
    (store / "foreign.pt").write_bytes(b"of somebody else")
    assert sweep(draw, {}, store=store) == {}
    assert files(store) == {"README.md", "folder.pt", ".gitkeep"}
    assert len(files(aside)) == 7
    assert b"of somebody else" in {path.read_bytes() for path in aside.iterdir()}
    again = sweep(draw, tasks(3, log=log), store=store)
    assert noises(again) == noises(first)
    assert Path(log).read_text().split() == ["0", "1", "2"]
    assert len(files(aside)) == 1


def test_each_result_of_a_task_that_changes_to_and_fro_is_kept(store: Path, tmp_path: Path) -> None:
    log = str(tmp_path / "log")
    for x in (1, 2, 3, 1, 2, 3):
        found = sweep(draw, {"a": {"seed": 0, "x": x, "log": log, "name": f"x{x}"}}, store=store)
        assert found["a"].result["twice"] == 2 * x
    assert Path(log).read_text().split() == ["x1", "x2", "x3"]
    assert files(store) == {"a.pt", "a.json"}


def test_a_store_outside_the_project_is_set_aside_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNLEARNLIB_ROOT", str(tmp_path / "project"))
    sweep(draw, tasks(1), store=tmp_path / "elsewhere")
    sweep(draw, {}, store=tmp_path / "elsewhere")
    assert len(files(tmp_path / "project" / "build" / "set_aside" / "elsewhere")) == 2


@pytest.mark.parametrize("damage", [b"", b"not torch", None])
@pytest.mark.parametrize("suffix", ["pt", "json"])
def test_a_damaged_file_is_made_again(
    store: Path, tmp_path: Path, damage: bytes | None, suffix: str
) -> None:
    first = sweep(draw, tasks(1), store=store)
    target = store / f"run-0.{suffix}"
    target.write_bytes(target.read_bytes()[:-200] if damage is None else damage)
    assert noises(sweep(draw, tasks(1), store=store)) == noises(first)
    assert "run-0.pt is damaged" in (tmp_path / "progress").read_text()


def test_a_flipped_bit_is_noticed(store: Path, tmp_path: Path) -> None:
    first = sweep(draw, tasks(1), store=store)
    target = store / "run-0.pt"
    content = target.read_bytes()
    for place in range(0, len(content), max(1, len(content) // 7)):
        flipped = bytearray(content)
        flipped[place] ^= 1
        target.write_bytes(flipped)
        assert noises(sweep(draw, tasks(1), store=store)) == noises(first)
        assert target.read_bytes() == content


def test_a_result_without_facts_counts_as_none(store: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    sweep(draw, tasks(1, log=str(log)), store=store)
    (store / "run-0.json").unlink()
    sweep(draw, tasks(1, log=str(log)), store=store)
    (store / "run-0.pt").unlink()
    sweep(draw, tasks(1, log=str(log)), store=store)
    assert log.read_text().split() == ["0", "0", "0"]


def test_a_file_that_would_run_code_is_not_loaded(store: Path) -> None:
    sweep(draw, tasks(1), store=store)
    torch.save({"x": partial(print, "run")}, store / "run-0.pt")
    assert sweep(draw, tasks(1), store=store)["run-0"].result["threads"] == 1


# -------------------------------------------------------------------------------- failures


def test_a_failed_run_is_tried_again_from_the_same_seed(store: Path, tmp_path: Path) -> None:
    given = tasks(1, flag=str(tmp_path / "flag"))
    with pytest.raises(SweepError, match="first try"):
        sweep(fail_at_first, given, store=store, retries=0)
    at_once = sweep(fail_at_first, given, store=store, retries=0)
    (tmp_path / "flag").unlink()
    again = sweep(fail_at_first, given, store=store / "again")
    assert again["run-0"].result == at_once["run-0"].result


@pytest.mark.parametrize(
    ("error", "times"),
    [(OSError, 2), (MemoryError, 2), (RuntimeError, 2), (ValueError, 1), (TypeError, 1)],
)
def test_only_an_error_that_may_pass_is_tried_again(
    store: Path, tmp_path: Path, error: type[Exception], times: int
) -> None:
    log = tmp_path / "log"
    with pytest.raises(SweepError, match="run-0: .*failed"):
        sweep(mark_and_raise, tasks(1, log=str(log), error=error.__name__), store=store)
    assert log.read_text().split() == ["0"] * times


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_full_disk_ends_the_sweep_and_keeps_what_is_finished(
    store: Path, tmp_path: Path, number: int, workers: int
) -> None:
    log = tmp_path / "log"
    given = tasks(8, log=str(log), number=number)
    said = rf"runs/quick/sweep cannot be written: make room.*{os.strerror(number)}.*run again"
    with pytest.raises(SweepError, match=said):
        sweep(fill_disk_at_second, given, store=store, workers=workers)
    assert log.read_text().split().count("1") == 1
    assert "7" not in log.read_text()
    assert workers == 2 or files(store) == {"run-0.pt", "run-0.json"}


def test_a_result_that_finds_no_room_is_computed_once(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    log = tmp_path / "log"
    monkeypatch.setattr(os, "fsync", fill)
    with pytest.raises(SweepError, match="runs/quick/sweep cannot be written: make room"):
        sweep(draw, tasks(3, log=str(log)), store=store)
    assert log.read_text().split() == ["0"]
    assert files(store) == set()


@pytest.mark.parametrize("workers", [1, 2])
def test_failures_are_collected_and_the_rest_kept(store: Path, workers: int) -> None:
    store.mkdir(parents=True)
    (store / "former.pt").touch()
    with pytest.raises(SweepError) as caught:
        sweep(fail_if_odd, tasks(4), store=store, workers=workers, retries=0)
    message = str(caught.value)
    assert "2 of 4 runs failed in runs/quick/sweep" in message
    assert "run-1: ValueError: seed 1 is odd (test_sweep.py:" in message
    assert "run-3: ValueError: seed 3 is odd" in message
    kept = {"run-0.pt", "run-0.json", "run-2.pt", "run-2.json", "former.pt"}
    assert files(store) == kept


def test_a_dead_worker_is_explained(store: Path) -> None:
    with pytest.raises(SweepError, match="a worker died.*fewer than 2"):
        sweep(die, tasks(2), store=store, workers=2)


def test_an_interrupt_leaves_whole_files_only(store: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        sweep(interrupt_second, tasks(3), store=store)
    assert files(store) == {"run-0.pt", "run-0.json"}
    assert records.result(store / "run-0.pt") == {"seed": 0}


def test_an_interrupt_while_a_file_is_written_leaves_none(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(handle: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        sweep(draw, tasks(1), store=store)
    assert files(store) == set()


def test_an_interrupt_between_result_and_facts_leaves_what_counts_as_none(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, write = str(tmp_path / "log"), records.write_atomic

    def interrupt(path: Path, content: bytes) -> None:
        if path.suffix == ".json":
            raise KeyboardInterrupt
        write(path, content)

    monkeypatch.setattr(records, "write_atomic", interrupt)
    for x in (0, 1):
        with pytest.raises(KeyboardInterrupt):
            sweep(draw, tasks(1, log=log, x=x), store=store)
    monkeypatch.undo()
    monkeypatch.setenv("UNLEARNLIB_ROOT", str(tmp_path))
    assert sweep(draw, tasks(1, log=log), store=store)["run-0"].result["twice"] == 0
    assert Path(log).read_text().split() == ["0", "0", "0"]


def test_a_result_that_is_no_result_is_refused(store: Path) -> None:
    with pytest.raises(SweepError, match="ndarray; return tensors"):
        sweep(return_array, tasks(1), store=store)
    with pytest.raises(SweepError, match="return_list returned a list; return a dict"):
        sweep(return_list, tasks(1), store=store)
    assert files(store) == set()


def test_dask_without_dask_names_the_remedy(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(SweepError, match="pip install distributed"):
        sweep(draw, tasks(1), store=store, engine="dask")
    with pytest.raises(ValueError, match="'loky' or 'dask'"):
        sweep(draw, tasks(1), store=store, engine="slurm")


def listening() -> set[str]:
    """The addresses at which this process and those that it started listen."""
    here = psutil.Process()
    found = {
        connection.laddr.ip
        for process in [here, *here.children(recursive=True)]
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    return found - {"127.0.0.1", "::1"}


def test_dask_on_this_machine_gives_the_same_and_listens_to_it_alone(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And starts no more workers than there are runs."""
    seen, last_alive = [], sweep_module._last_alive

    def look(client: Client, before: float) -> float:
        seen.append((listening() - before_it, len(client.nthreads())))
        return last_alive(client, before)

    monkeypatch.setattr(sweep_module, "_LOOK", 0.2)
    monkeypatch.setattr(sweep_module, "_last_alive", look)
    before_it = listening()
    alone = sweep(wait_and_draw, tasks(1), store=store / "alone")
    shared = sweep(wait_and_draw, tasks(1), store=store / "shared", workers=12, engine="dask")
    assert {name: record.result for name, record in alone.items()} == {
        name: record.result for name, record in shared.items()
    }
    assert seen
    assert all(addresses == set() and workers <= 1 for addresses, workers in seen)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalCluster]:
    """A cluster without workers whose client is the current one, looked at often."""
    monkeypatch.setattr(sweep_module, "_LOOK", 0.1)
    options = {"n_workers": 0, "threads_per_worker": 1, "dashboard_address": None}
    with LocalCluster(**options) as made, Client(made):
        yield made


def test_a_dask_cluster_without_workers_is_given_up(
    store: Path, cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep_module, "_PATIENCE", 0.5)
    with pytest.raises(SweepError, match="has had no workers for 1 s: .* start workers and then"):
        sweep(draw, tasks(2), store=store, engine="dask")
    assert files(store) == set()


def test_a_dask_worker_that_dies_is_explained(store: Path, cluster: LocalCluster) -> None:
    cluster.scheduler.allowed_failures = 0
    cluster.scale(1)
    with pytest.raises(SweepError, match="a dask worker died.*finished runs are kept"):
        sweep(die, tasks(1), store=store, engine="dask")


SCHEDULER = """
import time
from distributed import LocalCluster
cluster = LocalCluster(n_workers=0, dashboard_address=None)
print(cluster.scheduler_address, flush=True)
time.sleep(60)
"""


@pytest.fixture
def scheduler(request: pytest.FixtureRequest) -> Iterator[tuple[subprocess.Popen, str]]:
    """A scheduler in a process of its own, where modules are found as here, and its address."""
    where = os.environ | {"PYTHONPATH": os.pathsep.join(getattr(request, "param", sys.path))}
    command = [sys.executable, "-c", SCHEDULER]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=where) as process:
        address = process.stdout.readline().strip()
        options = {"scheduler-address": address, "distributed.comm.timeouts.connect": "1s"}
        with dask_config.set(options):
            yield process, address
        process.kill()


def test_a_dask_scheduler_that_dies_or_is_not_there_is_said(
    store: Path, scheduler: tuple[subprocess.Popen, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    process, address = scheduler
    looked = []

    def kill(client: Client, before: float) -> float:
        looked.append(before)
        process.kill()
        return before

    monkeypatch.setattr(sweep_module, "_LOOK", 0.1)
    monkeypatch.setattr(sweep_module, "_last_alive", kill)
    with pytest.raises(SweepError, match="the dask scheduler is gone.*start it again"):
        sweep(draw, tasks(1), store=store, engine="dask")
    assert looked
    with pytest.raises(SweepError, match=f"no dask scheduler answers at {address}.*unset"):
        sweep(draw, tasks(1), store=store, engine="dask")
    assert files(store) == set()


@pytest.mark.parametrize("scheduler", [[]], ids=["without our modules"], indirect=True)
def test_a_dask_cluster_of_another_environment_is_said(
    store: Path, scheduler: tuple[subprocess.Popen, str]
) -> None:
    with pytest.raises(SweepError, match="cannot take the runs: install the environment of this"):
        sweep(draw, tasks(1), store=store, engine="dask")


# -------------------------------------------------------------- what is refused beforehand


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("../a", {"seed": 0}, r"task '\.\./a': the name must be a plain file name"),
        ("", {"seed": 0}, "plain file name"),
        (".a", {"seed": 0}, "plain file name"),
        (3, {"seed": 0}, "plain file name"),
        ("RUN-0", {"seed": 0}, "two tasks are named 'RUN-0' but for the case"),
        ("a", {"seed": None}, "task 'a': seed=None is not an integer"),
        ("a", {"seed": True}, "task 'a': seed=True is not an integer"),
        ("a", {"seed": 0, "x": float("nan")}, r"task 'a': x=nan: a task holds finite numbers"),
        ("a", {"seed": 0, "x": [1, {"b": float("inf")}]}, r"task 'a': x\.1\.b=inf: .*finite"),
        ("a", {"seed": 0, "x": np.float32(1)}, "float32"),
        ("a", {"seed": 0, "x": torch.zeros(1)}, "a task holds"),
        ("a", {"seed": 0, "x": {1: 2}}, "a task holds"),
        ("a", {"seed": 0, "x": partial(double)}, "a task holds"),
        ("a", {"seed": 0, "x": lambda: 0}, "task 'a': x: .*not at the top level of a module"),
        (
            "a",
            {"seed": 0, "sneed": 1},
            r"task 'a': got an unexpected keyword argument 'sneed'.*draw",
        ),
        ("a", {"x": 1}, "task 'a': missing a required argument: 'seed'.*draw"),
    ],
)
def test_bad_tasks_are_refused_before_anything_runs(
    store: Path, tmp_path: Path, name: Any, arguments: dict, message: str
) -> None:
    log = tmp_path / "log"
    with pytest.raises(ValueError, match=message):
        sweep(draw, {**tasks(1, log=str(log)), name: arguments}, store=store)
    assert not log.exists()
    assert files(store) == set()


@pytest.mark.parametrize("run", [positional, anything])
def test_runs_without_named_arguments_are_refused(store: Path, run: Callable[..., dict]) -> None:
    with pytest.raises(ValueError, match=f"{run.__name__}.*takes keyword arguments alone"):
        sweep(run, tasks(1), store=store)


@pytest.mark.parametrize("workers", [0, -1, "a", 1.0, True, None])
def test_a_number_of_workers_is_a_number(store: Path, workers: Any) -> None:
    with pytest.raises(ValueError, match="workers=.*at least 1"):
        sweep(draw, tasks(1), store=store, workers=workers)


def test_functions_that_workers_cannot_import_are_refused(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def inner(*, seed: int) -> dict:
        return {}

    for function in (inner, lambda *, seed: {}, partial(draw)):
        with pytest.raises(ValueError, match="top level of a module"):
            sweep(function, tasks(1), store=store)
    monkeypatch.setattr(draw, "__module__", "__main__")
    with pytest.raises(ValueError, match="top level of a module"):
        sweep(draw, tasks(1), store=store)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="of glibc's malloc")
def test_a_worker_outlives_runs_that_need_much_memory(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # as in unlearnlib.pipeline.runner: what is freed stays with the process
    monkeypatch.setenv("MALLOC_MMAP_MAX_", "0")
    monkeypatch.setenv("MALLOC_TOP_PAD_", str(2**28))
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", str(2**33))
    get_reusable_executor().shutdown(wait=True)
    sizes = [1, 1, 150, 150, 1, 1]
    given = {f"r{n}": {"seed": n, "blocks": size} for n, size in enumerate(sizes)}
    found = sweep(grow, given, store=store, workers=2)
    assert len({record.result["who"] for record in found.values()}) == 2


SHARE = """
import sys, time
from pathlib import Path
sys.path[:0] = [{tests!r}]
from test_sweep import wait_and_draw
from unlearnlib.pipeline.shards import OtherShardsMissing
from unlearnlib.pipeline.sweep import sweep
tasks = {{f"seed{{seed}}": dict(seed=seed) for seed in range(7)}}
while True:
    try:
        print(sorted(sweep(wait_and_draw, tasks, store=Path({store!r}))))
        break
    except OtherShardsMissing as missing:
        print(missing, file=sys.stderr)
        time.sleep(0.05)
"""


def test_two_shares_at_once_fill_one_folder_with_the_same_bytes(tmp_path: Path):
    store, alone = tmp_path / "runs" / "shared", tmp_path / "runs" / "alone"
    script = SHARE.format(tests=str(Path(__file__).parent), store=str(store))
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script], text=True, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, env=os.environ | {"UNLEARNLIB_SHARD": f"{number}/2"},
        )
        for number in (1, 2)
    ]  # fmt: skip
    told = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], told
    assert told[0][0] == told[1][0] == f"{[f'seed{seed}' for seed in range(7)]}\n"
    sweep(wait_and_draw, {f"seed{seed}": dict(seed=seed) for seed in range(7)}, store=alone)
    assert {f.name: f.read_bytes() for f in store.glob("*.pt")} == {
        f.name: f.read_bytes() for f in alone.glob("*.pt")
    }


def test_a_share_leaves_what_it_does_not_know_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    store = tmp_path / "runs" / "shared"
    sweep(wait_and_draw, {"other": dict(seed=9), "seed1": dict(seed=5)}, store=store)
    half = store / ".seed1.pt.x.partial"
    half.touch()
    kept = (store / "seed1.pt").read_bytes()
    monkeypatch.setenv("UNLEARNLIB_SHARD", "1/2")
    with pytest.raises(OtherShardsMissing, match="shard 1/2 of .* is done; 1 of 2 runs are for"):
        sweep(wait_and_draw, {"seed0": dict(seed=0), "seed1": dict(seed=1)}, store=store)
    assert half.exists() and (store / "other.pt").exists()
    assert (store / "seed1.pt").read_bytes() == kept  # stale, but another share's to replace
    monkeypatch.setenv("UNLEARNLIB_SHARD", "2/2")
    found = sweep(wait_and_draw, {"seed0": dict(seed=0), "seed1": dict(seed=1)}, store=store)
    assert sorted(found) == ["seed0", "seed1"]


def test_a_share_that_is_none_stops_the_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("UNLEARNLIB_SHARD", "5/4")
    with pytest.raises(ValueError, match="shard '5/4': give a share such as 2/8"):
        sweep(wait_and_draw, {"seed0": dict(seed=0)}, store=tmp_path / "runs")
