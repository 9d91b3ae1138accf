"""Records: what was written comes back, and what was not is refused with a remedy."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from unlearnlib.pipeline import records
from unlearnlib.pipeline.records import Record, RecordError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Write a record of a run."""
    target = tmp_path / "runs" / "seed0.v1.pt"
    record = Record(
        "seed0.v1",
        {"w": torch.arange(3), "n": [1, 2.5, None, "α"]},
        seconds=1.23456789,
        timings={"part": 0.98765432},
        arguments={"seed": 0, "data": "data/x.npz"},
        versions={"python": "3.11"},
    )
    records.write(target, record, key="the key")
    return target


def test_a_record_comes_back(path: Path) -> None:
    record = records.read(path)
    assert record.name == "seed0.v1"
    assert torch.equal(record.result.pop("w"), torch.arange(3))
    assert record.result == {"n": [1, 2.5, None, "α"]}
    assert (record.seconds, record.timings) == (1.2346, {"part": 0.9877})
    assert record.arguments == {"seed": 0, "data": "data/x.npz"}
    assert record.versions == {"python": "3.11"}


def test_parts_of_a_record_come_back(path: Path) -> None:
    assert records.result(path)["n"] == [1, 2.5, None, "α"]
    assert records.seconds(path) == 1.2346
    assert records.arguments(path) == {"seed": 0, "data": "data/x.npz"}
    assert records.key(path) == "the key"


def test_facts_are_readable_and_the_result_holds_none_of_them(path: Path) -> None:
    facts = json.loads(records.facts_file(path).read_text(encoding="utf-8"))
    assert records.facts_file(path).name == "seed0.v1.json"
    assert facts.keys() == {"key", "sha256", "seconds", "timings", "arguments", "versions"}
    assert torch.load(path, weights_only=True).keys() == {"w", "n"}
    before = path.read_bytes()
    record = records.read(path)
    other = Record("seed0.v1", record.result, 99.0, {"part": 98.0}, {"seed": 1}, {})
    records.write(path, other, key="another key")
    assert path.read_bytes() == before


def test_seconds_need_no_result(path: Path) -> None:
    path.write_bytes(b"half")
    assert records.seconds(path) == 1.2346


@pytest.mark.parametrize("read", [records.read, records.result, records.seconds, records.arguments])
def test_an_absent_record_names_the_remedy(tmp_path: Path, read: object) -> None:
    with pytest.raises(RecordError, match=r"a\.pt does not exist; run the stage that writes it"):
        read(tmp_path / "a.pt")


def test_an_absent_record_has_no_key(tmp_path: Path) -> None:
    assert records.key(tmp_path / "a.pt") is None
    (tmp_path / "a.pt").mkdir()
    assert records.key(tmp_path / "a.pt") is None


def test_a_result_without_facts_was_not_finished(path: Path) -> None:
    records.facts_file(path).unlink()
    assert records.key(path) is None
    with pytest.raises(RecordError, match="was not finished; run the stage that writes it"):
        records.read(path)


def test_facts_without_a_result_are_no_record(path: Path) -> None:
    path.unlink()
    assert records.key(path) is None
    with pytest.raises(RecordError, match="does not exist; run the stage that writes it"):
        records.read(path)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"key": "a"}'])
def test_damaged_facts_name_the_remedy(path: Path, text: str) -> None:
    records.facts_file(path).write_text(text)
    for read in (records.read, records.seconds, records.key):
        with pytest.raises(RecordError, match=r"seed0\.v1\.json is .*delete seed0\.v1\.\* there"):
            read(path)


@pytest.mark.parametrize("change", [lambda b: b[:-1], lambda b: b + b"x", lambda b: b"\0" + b[1:]])
def test_a_changed_result_names_the_remedy(path: Path, change: object) -> None:
    path.write_bytes(change(path.read_bytes()))
    for read in (records.read, records.result, records.key):
        with pytest.raises(
            RecordError, match="not the result that was written .*delete it and run"
        ):
            read(path)


def signed(path: Path, content: bytes) -> Path:
    """Write bytes with facts that describe them."""
    path.write_bytes(content)
    facts = json.loads(records.facts_file(path).read_text())
    digest = records.hashlib.sha256(content).hexdigest()
    records.facts_file(path).write_text(json.dumps(facts | {"sha256": digest}))
    return path


def test_a_file_that_would_run_code_is_refused(path: Path) -> None:
    content = records.to_bytes({"model": nn.Linear(2, 2), "x": Path("x")})
    with pytest.raises(RecordError, match="no file of tensors and plain values .*delete it"):
        records.read(signed(path, content))
    with pytest.raises(RecordError, match="no file of tensors and plain values"):
        records.read(signed(path, b"not torch"))


def test_what_is_no_dict_is_refused(path: Path) -> None:
    with pytest.raises(RecordError, match="holds list, not the result of a run; delete it"):
        records.read(signed(path, records.to_bytes([1])))


def test_plain_results_are_copies_without_history_or_unseen_storage() -> None:
    weights = torch.ones(1000, requires_grad=True)
    plain = records.plain({"w": weights[:2], "p": nn.Parameter(torch.ones(2)), "n": (1, "a")})
    assert plain["n"] == [1, "a"]
    assert not plain["w"].requires_grad
    assert plain["w"].untyped_storage().nbytes() == 8
    assert type(plain["p"]) is torch.Tensor


@pytest.mark.parametrize("value", [{1}, torch.nn.ReLU(), Path("x"), object(), 1j, b"x"])
def test_what_cannot_be_loaded_safely_names_the_remedy(value: object) -> None:
    with pytest.raises(TypeError, match=f"a result holds a {type(value).__name__}; return tensors"):
        records.plain({"a": [value]})


def test_equal_results_have_equal_bytes_whoever_holds_their_strings() -> None:
    made = "".join(["wo", "rd"])
    same = records.to_bytes(records.plain({"a": "word", "word": ["word"]}))
    assert records.to_bytes(records.plain({"a": made, "word": ["word"]})) == same
    assert records.to_bytes(records.plain({"a": "word", made: ["".join(list("word"))]})) == same
