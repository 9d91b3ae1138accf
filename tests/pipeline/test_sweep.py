"""Sweeps: each run once, the same whatever the workers, and nothing stale reused."""

import os
import random
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from joblib.externals.loky import get_reusable_executor

from unlearnlib.pipeline import sweep as sweep_module
from unlearnlib.pipeline.sweep import SweepError, sweep


def draw(spec: dict) -> dict:
    """Draw from every generator, and leave a mark of having run."""
    if "log" in spec:
        with open(spec["log"], "a") as log:
            log.write(spec["name"] + "\n")
    product = torch.randn(300, 300) @ torch.randn(300, 300)
    return {
        "noise": [product.sum(), np.random.rand(), random.random()],
        "threads": torch.get_num_threads(),
        "twice": 2 * spec.get("x", 0),
    }


def wait_and_draw(spec: dict) -> dict:
    """Give others time to seed the generator in between."""
    time.sleep(0.05)
    return {"noise": torch.rand(1).item()}


def fail_at_first(spec: dict) -> dict:
    """Fail until the file that the spec names exists."""
    if not os.path.exists(spec["flag"]):
        open(spec["flag"], "w").close()
        raise RuntimeError("first try")
    return {}


def fail_if_odd(spec: dict) -> dict:
    """Fail for odd seeds."""
    if spec["seed"] % 2:
        raise ValueError(f"seed {spec['seed']} is odd")
    return {"seed": spec["seed"]}


def read_file(spec: dict) -> dict:
    """Read the file that the spec names."""
    return {"text": spec["source"].read_text(), "noise": torch.rand(1)}


def return_array(spec: dict) -> dict:
    """Return what cannot be stored safely."""
    return {"array": np.zeros(2)}


def die(spec: dict) -> dict:
    """End the process as the kernel does when memory runs out."""
    os._exit(1)


def interrupt_second(spec: dict) -> dict:
    """Press Ctrl-C in the second run."""
    if spec["seed"] == 1:
        raise KeyboardInterrupt
    return {"seed": spec["seed"]}


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Name a store inside a temporary project."""
    monkeypatch.setenv("UNLEARNLIB_ROOT", str(tmp_path))
    monkeypatch.setenv("UNLEARNLIB_PROGRESS", str(tmp_path / "progress"))
    return tmp_path / "runs" / "quick" / "sweep"


def specs(count: int, **more: object) -> list[dict]:
    """Make specs that differ by name and seed."""
    return [{"name": f"run-{seed}", "seed": seed, **more} for seed in range(count)]


def results(records: list[dict]) -> list:
    """Return the numbers of `draw`, comparable with ==."""
    return [[float(value) for value in record["result"]["noise"]] for record in records]


def test_records_come_in_the_order_of_the_specs(store: Path) -> None:
    given = [{"name": name, "seed": 0, "x": x} for name, x in [("b", 1), ("a", 2), ("c", 3)]]
    records = sweep(given, draw, store=store)
    assert [record["spec"] for record in records] == given
    assert [record["result"]["twice"] for record in records] == [2, 4, 6]
    assert all(record["seconds"] > 0 for record in records)
    assert sorted(path.name for path in store.iterdir()) == ["a.pt", "b.pt", "c.pt"]


def test_number_of_workers_changes_nothing(store: Path) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    alone = sweep(specs(3), draw, store=store / "alone")
    assert torch.get_num_threads() == 2
    torch.set_num_threads(threads)
    shared = sweep(specs(3), draw, store=store / "shared", workers=2)
    assert results(alone) == results(shared)
    assert {record["result"]["threads"] for record in alone + shared} == {1}


def test_threads_of_one_process_do_not_share_a_seed(store: Path) -> None:
    alone = sweep(specs(4), wait_and_draw, store=store / "alone")
    arguments = [
        (spec, wait_and_draw, store, "key", sweep_module._code_of_this_process(__name__))
        for spec in specs(4)
    ]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda given: sweep_module._run(*given, 0), arguments))
    for record in alone:
        stored = torch.load(store / f"{record['spec']['name']}.pt", weights_only=True)
        assert stored["result"] == record["result"]


def test_runs_differ_and_leave_the_callers_generators_alone(store: Path) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    noise = results(sweep(specs(2), draw, store=store))
    assert all(first != second for first, second in zip(*noise, strict=True))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()
    assert random.getstate() == before[2]


def test_only_new_specs_run_and_former_ones_go(store: Path, tmp_path: Path) -> None:
    log = str(tmp_path / "log")
    first = sweep(specs(3, log=log), draw, store=store)
    (store / ".run-1.pt.0.partial").touch()
    (store / "README.md").touch()
    (store / "folder.pt").mkdir()
    again = sweep(specs(4, log=log)[1:], draw, store=store)
    assert Path(log).read_text().split() == ["run-0", "run-1", "run-2", "run-3"]
    assert results(again)[:2] == results(first)[1:]
    names = {path.name for path in store.iterdir()}
    assert names == {"run-1.pt", "run-2.pt", "run-3.pt", "README.md", "folder.pt"}


def test_a_changed_value_runs_again(store: Path) -> None:
    sweep(specs(1, x=1), draw, store=store)
    assert sweep(specs(1, x=2), draw, store=store)[0]["result"]["twice"] == 4


def test_changed_code_runs_again(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = sweep(specs(1), draw, store=store)[0]["seconds"]
    assert sweep(specs(1), draw, store=store)[0]["seconds"] == first
    monkeypatch.setattr(sweep_module.fingerprint, "code", lambda name: "other code")
    sweep_module._code_of_this_process.cache_clear()
    assert sweep(specs(1), draw, store=store)[0]["seconds"] != first
    sweep_module._code_of_this_process.cache_clear()


def test_code_that_changed_after_it_was_loaded_is_not_run_under_its_new_name(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep(specs(1), draw, store=store)
    monkeypatch.setattr(sweep_module.fingerprint, "code", lambda name: "edited on disk")
    with pytest.raises(SweepError, match="restart"):
        sweep(specs(2), draw, store=store)


def test_another_function_of_the_same_module_runs_again(store: Path) -> None:
    sweep(specs(1), draw, store=store)
    with pytest.raises(SweepError, match="AttributeError|KeyError"):
        sweep(specs(1), fail_at_first, store=store)


def test_files_count_by_content_and_are_stored_by_their_place(store: Path, tmp_path: Path) -> None:
    source, twin = tmp_path / "in" / "a.txt", tmp_path / "in" / "b.txt"
    source.parent.mkdir()
    source.write_text("one")
    twin.write_text("one")
    first = sweep(specs(1, source=source), read_file, store=store)[0]
    same = sweep(specs(1, source=twin), read_file, store=store)[0]
    assert first["spec"]["source"] == "in/a.txt"
    assert (same["seconds"], same["spec"]["source"]) == (first["seconds"], "in/b.txt")
    source.write_text("two")
    changed = sweep(specs(1, source=source), read_file, store=store)[0]
    assert changed["result"]["text"] == "two"
    assert changed["result"]["noise"] == first["result"]["noise"]
    assert str(tmp_path).encode() not in (store / "run-0.pt").read_bytes()


def test_an_absent_file_is_named(store: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"teacher\.pt .* run the stage"):
        sweep(specs(1, source=tmp_path / "teacher.pt"), read_file, store=store)


@pytest.mark.parametrize("damage", [b"", b"not torch", None])
def test_a_damaged_file_is_made_again(store: Path, tmp_path: Path, damage: bytes | None) -> None:
    first = sweep(specs(1), draw, store=store)
    target = store / "run-0.pt"
    target.write_bytes(target.read_bytes()[:-200] if damage is None else damage)
    assert results(sweep(specs(1), draw, store=store)) == results(first)
    assert "run-0.pt is damaged" in (tmp_path / "progress").read_text()


def test_a_file_that_would_run_code_is_not_loaded(tmp_path: Path) -> None:
    record = {"key": "key", "seconds": 0.0, "result": {}}
    foreign = tmp_path / "foreign.pt"
    torch.save(record, foreign)
    assert sweep_module._read(foreign, "key") == record
    torch.save(record | {"result": Path("x")}, foreign)
    assert sweep_module._read(foreign, "key") is None


def test_equal_records_have_equal_bytes(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "perf_counter", lambda: 0.0)
    sweep(specs(1), draw, store=store / "a")
    sweep(specs(1), draw, store=store / "b")
    assert (store / "a/run-0.pt").read_bytes() == (store / "b/run-0.pt").read_bytes()


def test_a_failed_run_is_tried_again(store: Path, tmp_path: Path) -> None:
    given = specs(1, flag=str(tmp_path / "flag"))
    with pytest.raises(SweepError, match="first try"):
        sweep(given, fail_at_first, store=store, retries=0)
    (tmp_path / "flag").unlink()
    assert sweep(given, fail_at_first, store=store)[0]["result"] == {}


@pytest.mark.parametrize("workers", [1, 2])
def test_failures_are_collected_and_the_rest_kept(store: Path, workers: int) -> None:
    store.mkdir(parents=True)
    (store / "former.pt").touch()
    with pytest.raises(SweepError) as caught:
        sweep(specs(4), fail_if_odd, store=store, workers=workers, retries=0)
    message = str(caught.value)
    assert "2 of 4 runs failed in runs/quick/sweep" in message
    assert "run-1: ValueError: seed 1 is odd (test_sweep.py:" in message
    assert "run-3: ValueError: seed 3 is odd" in message
    assert {path.name for path in store.iterdir()} == {"run-0.pt", "run-2.pt", "former.pt"}


def test_a_dead_worker_is_explained(store: Path) -> None:
    with pytest.raises(SweepError, match="a worker died.*fewer than 2"):
        sweep(specs(2), die, store=store, workers=2)


def test_an_interrupt_leaves_whole_files_only(store: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        sweep(specs(3), interrupt_second, store=store)
    assert [path.name for path in store.iterdir()] == ["run-0.pt"]
    torch.load(store / "run-0.pt", weights_only=True)


def test_an_interrupt_while_a_file_is_written_leaves_none(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(handle: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        sweep(specs(1), draw, store=store)
    assert list(store.iterdir()) == []


def test_results_are_copies_without_history_or_unseen_storage(store: Path) -> None:
    plain = sweep_module._plain({"w": torch.ones(1000, requires_grad=True)[:2], "n": (1, "a")})
    assert plain["n"] == [1, "a"]
    assert not plain["w"].requires_grad
    assert plain["w"].untyped_storage().nbytes() == 8


def test_a_result_that_cannot_be_loaded_safely_is_refused(store: Path) -> None:
    with pytest.raises(SweepError, match="ndarray; return tensors"):
        sweep(specs(1), return_array, store=store)


def test_dask_without_dask_names_the_remedy(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(SweepError, match="pip install distributed"):
        sweep(specs(1), draw, store=store, engine="dask")
    with pytest.raises(ValueError, match="'loky' or 'dask'"):
        sweep(specs(1), draw, store=store, engine="slurm")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"seed": 0}, "name"),
        ({"name": "../a", "seed": 0}, "name"),
        ({"name": "a", "seed": None}, "seed"),
        ({"name": "a", "seed": 0, "x": float("nan")}, "finite"),
        ({"name": "a", "seed": 0, "x": np.float32(1)}, "float32"),
        ({"name": "RUN-0", "seed": 0}, "own name"),
    ],
)
def test_bad_specs_are_refused(store: Path, spec: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sweep([*specs(1), spec], draw, store=store)


def test_functions_that_workers_cannot_import_are_refused(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def inner(spec: dict) -> dict:
        return {}

    for function in (inner, lambda spec: {}, partial(draw)):
        with pytest.raises(ValueError, match="top level of a module"):
            sweep(specs(1), function, store=store)
    monkeypatch.setattr(draw, "__module__", "__main__")
    with pytest.raises(ValueError, match="top level of a module"):
        sweep(specs(1), draw, store=store)


def test_progress_counts_runs(store: Path, tmp_path: Path) -> None:
    sweep(specs(2), draw, store=store)
    lines = (tmp_path / "progress").read_text().splitlines()
    assert [line.rsplit(" ", 2)[0] for line in lines] == ["run-0 done, 1/2", "run-1 done, 2/2"]


def grow(spec: dict) -> dict:
    """Use much memory for a second, more than the run before; tell who did."""
    blocks = [torch.ones(2**20) for _ in range(spec["x"])]  # 4 MB each
    time.sleep(1.1)
    return {"who": os.getpid(), "blocks": len(blocks)}


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
    tasks = [{"name": f"r{n}", "seed": n, "x": size} for n, size in enumerate(sizes)]
    records = sweep(tasks, grow, store=store, workers=2)
    assert len({record["result"]["who"] for record in records}) == 2
