"""Checkpoints: networks are read back as they were written, and nothing else is taken for one."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from toys import CLASSES, SHAPE, states_equal, stripes, taught, tiny

from unlearnlib.data.requests import Classes
from unlearnlib.models import architectures, checkpoints
from unlearnlib.models.checkpoints import CheckpointError
from unlearnlib.pipeline import records
from unlearnlib.pipeline.records import Record


def write(path: Path, model: object = None, **result: object) -> Path:
    """Write a record as a sweep does."""
    records.write(path, Record(path.stem, {"model": model} | result, 1.0), key="")
    return path


def disguise(path: Path) -> Path:
    """Describe whatever bytes a file has as the result of a run."""
    write(path.with_name("other.pt"))
    facts = json.loads(records.facts_file(path.with_name("other.pt")).read_text())
    facts["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    records.facts_file(path).write_text(json.dumps(facts))
    return path


def test_pack_and_unpack_return_the_network(monkeypatch: pytest.MonkeyPatch):
    network = tiny(monkeypatch)
    packed = checkpoints.pack(network)
    assert states_equal(checkpoints.unpack(packed), network)
    assert checkpoints.unpack(packed).architecture == network.architecture
    with torch.no_grad():
        network.classifier.weight.zero_()
    assert checkpoints.unpack(packed).classifier.weight.abs().sum() > 0


def test_half_precision_is_widened(monkeypatch: pytest.MonkeyPatch):
    network = tiny(monkeypatch)
    packed = checkpoints.pack(network)
    for name, tensor in packed["state_dict"].items():
        if tensor.is_floating_point():
            packed["state_dict"][name] = tensor.half()
    found = checkpoints.unpack(packed)
    assert {p.dtype for p in found.parameters()} == {torch.float32}
    assert found.first_norm.num_batches_tracked == network.first_norm.num_batches_tracked == 3
    for name, tensor in found.state_dict().items():
        expected = network.state_dict()[name]
        torch.testing.assert_close(tensor, expected, rtol=2**-11, atol=2**-24)
    assert not states_equal(found, network)


def test_load_reads_what_a_run_left(tmp_path: Path):
    network = architectures.build("lenet5", width=0.5)
    path = write(tmp_path / "run.pt", checkpoints.pack(network), losses=[1.0])
    assert states_equal(checkpoints.load(path, model="lenet5", width=0.5), network)
    assert records.result(path)["losses"] == [1.0]


class Trap:
    """An object whose unpickling writes a file."""

    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self):
        return Path.write_text, (self.target, "gotcha")


def test_a_pickle_with_objects_is_refused_and_not_run(tmp_path: Path):
    target, path = tmp_path / "gotcha", tmp_path / "run.pt"
    torch.save({"model": Trap(target)}, path)
    with pytest.raises(CheckpointError, match=r"run\.pt is no file of tensors.*delete it"):
        checkpoints.load(disguise(path))
    assert not target.exists()


@pytest.mark.parametrize(
    "content", [b"", b"hello", b"a,b\n1,2\n", b"\x80\x02", b"PK\x03\x04abc", b"X\x05", b"{}"]
)
def test_what_is_no_torch_file_is_refused(tmp_path: Path, content: bytes):
    path = tmp_path / "run.pt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"run\.pt is no file of tensors \S*.*\(.+\)"):
        checkpoints.load(disguise(path))


def test_a_file_that_is_not_what_was_written_is_refused(tmp_path: Path):
    path = write(tmp_path / "run.pt", checkpoints.pack(architectures.build("lenet5", width=0.5)))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"run\.pt is not the result that was written"):
        checkpoints.load(path)
    with pytest.raises(CheckpointError, match=r"run\.pt is no file of tensors"):
        checkpoints.load(disguise(path))


def test_an_absent_file_is_named(tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"run\.pt does not exist; run the stage"):
        checkpoints.load(tmp_path / "run.pt")
    torch.save({"model": None}, tmp_path / "run.pt")
    with pytest.raises(CheckpointError, match=r"run\.pt was not finished; run the stage"):
        checkpoints.load(tmp_path / "run.pt")


@pytest.mark.parametrize("content", [[1, 2], torch.zeros(2), 3])
def test_what_is_no_result_is_refused(tmp_path: Path, content: object):
    torch.save(content, tmp_path / "run.pt")
    with pytest.raises(CheckpointError, match="not the result of a run"):
        checkpoints.load(disguise(tmp_path / "run.pt"))


@pytest.mark.parametrize("model", [None, [1], {"weight": torch.zeros(2)}, {"architecture": 3}])
def test_a_record_without_model_is_refused(tmp_path: Path, model: object):
    with pytest.raises(CheckpointError, match=r"run\.pt holds no model"):
        checkpoints.load(write(tmp_path / "run.pt", model), model="lenet5")


def test_another_architecture_is_refused(tmp_path: Path):
    path = write(tmp_path / "run.pt", checkpoints.pack(architectures.build("lenet5", width=0.5)))
    with pytest.raises(CheckpointError, match=r"'width': 0\.5.*\{'width': 1\.0\} was asked"):
        checkpoints.load(path, model="lenet5", width=1.0)
    with pytest.raises(CheckpointError, match=r"\{'model': 'allcnn'\} was asked"):
        checkpoints.load(path, model="allcnn")


def damaged(packed: dict, kind: str) -> dict:
    architecture, state = packed["architecture"], packed["state_dict"]
    if kind == "other shape":
        return {"architecture": architecture | {"width": 1.0}, "state_dict": state}
    if kind == "a weight short":
        return packed | {"state_dict": dict(list(state.items())[1:])}
    if kind == "no weights":
        return {"architecture": architecture}
    if kind == "unknown option":
        return packed | {"architecture": architecture | {"depth": 3}}
    if kind == "unknown model":
        return packed | {"architecture": architecture | {"model": "resnet"}}
    return packed | {"state_dict": dict.fromkeys(state, "text")}


@pytest.mark.parametrize(
    "kind",
    ["other shape", "a weight short", "no weights", "unknown option", "unknown model", "text"],
)
def test_weights_that_do_not_fit_are_refused(tmp_path: Path, kind: str):
    packed = damaged(checkpoints.pack(architectures.build("lenet5", width=0.5)), kind)
    with pytest.raises(CheckpointError, match=r"(?s)run\.pt: no usable model.*run the stage"):
        checkpoints.load(write(tmp_path / "run.pt", packed))


# -------------------------------------------------------------------------------- the teacher


def test_load_teacher_returns_it_frozen_with_the_shape_of_its_images(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    network, (images, labels) = taught(monkeypatch), stripes(40, seed=1)
    path = write(tmp_path / "run.pt", checkpoints.pack(network.train()), shape=list(SHAPE))
    teacher, shape = checkpoints.load_teacher(path, Classes([3, 0]))
    assert shape == SHAPE
    assert not teacher.training
    assert not any(p.requires_grad for p in teacher.parameters())
    assert (teacher(images).argmax(1) == labels).float().mean() > 0.9


@pytest.mark.parametrize(
    ("forgotten", "message"),
    [([12], "holds 12, not one of the classes 0 to 3"), (range(CLASSES), "is every class")],
)
def test_load_teacher_checks_the_request(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, forgotten: list, message: str
):
    path = write(tmp_path / "run.pt", checkpoints.pack(tiny(monkeypatch)), shape=list(SHAPE))
    with pytest.raises(ValueError, match=message):
        checkpoints.load_teacher(path, Classes(forgotten))


def test_a_teacher_comes_from_a_training(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    path = write(tmp_path / "run.pt", checkpoints.pack(tiny(monkeypatch)))
    with pytest.raises(CheckpointError, match=r"run\.pt holds no shape of images; name a file"):
        checkpoints.load_teacher(path, Classes([0]))
