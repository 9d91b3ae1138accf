"""Models: built as described, looked into without a trace, and read back as they were written."""

import contextlib
import math
from pathlib import Path

import pytest
import torch
from tolerances import ATOL, RTOL
from torch import nn
from toys import CLASSES, SHAPE, Tiny, states_equal, stripes, taught, tiny

from unlearnlib.models import models


def parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def write(path: Path, model: dict | None = None, **result) -> Path:
    """Write a record as a sweep does."""
    torch.save({"key": "", "spec": {}, "seconds": 1.0, "result": {"model": model} | result}, path)
    return path


# ------------------------------------------------------------------------------ architectures


def test_allcnn_is_the_published_network():
    network = models.build("allcnn")
    kernels = [9, 9, 9, 9, 9, 9, 9, 1]
    filters = [1, 96, 96, 96, 192, 192, 192, 192, 192]
    weights = sum(a * b * k for a, b, k in zip(filters, filters[1:], kernels, strict=False))
    assert parameters(network) == weights + 2 * sum(filters[1:]) + 192 * 10 + 10
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    assert [c.out_channels for c in convolutions] == filters[1:]
    assert [c.stride[0] for c in convolutions] == [1, 1, 2, 1, 1, 2, 1, 1]
    assert len(models.batch_norms(network)) == len(models.activation_layers(network)) == 8


@pytest.mark.parametrize(("channels", "side", "classes"), [(1, 28, 10), (3, 20, 7)])
def test_allcnn_maps_images_to_logits(channels: int, side: int, classes: int):
    network = models.build("allcnn", width=0.0625, channels=channels, num_classes=classes)
    images = torch.rand(5, channels, side, side)
    assert network(images).shape == (5, classes)
    assert network.features(images).shape == (5, 12, side // 4, side // 4)
    assert models.num_classes(network) == classes


def test_lenet5_has_61706_parameters():
    network = models.build("lenet5")
    assert parameters(network) == 61_706
    assert network(torch.rand(3, 1, 28, 28)).shape == (3, 10)


@pytest.mark.parametrize("model", ["allcnn", "lenet5"])
@pytest.mark.parametrize("width", [0, -1, 1e-4, math.nan])
def test_a_width_without_filters_is_refused(model: str, width: float):
    with pytest.raises(ValueError, match=r"width .* leaves no filter.*above 0"):
        models.build(model, width=width)


def test_an_unknown_model_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match=r"'resnet'.*allcnn.*lenet5"):
        models.build("resnet")


def test_fresh_like_is_the_same_architecture_with_other_weights():
    network = models.build("allcnn", width=0.0625, channels=2, num_classes=3)
    fresh = models.fresh_like(network)
    assert fresh.architecture == network.architecture
    assert not torch.equal(fresh.classifier.weight, network.classifier.weight)


def test_frozen_stops_training_and_gradients():
    network = models.frozen(models.build("lenet5", width=0.5))
    assert not network.training
    assert not any(p.requires_grad for p in network.parameters())


@pytest.mark.parametrize("training", [True, False])
def test_predict_evaluates_in_batches_and_leaves_the_network_as_it_was(
    monkeypatch: pytest.MonkeyPatch, training: bool
):
    network, images = tiny(monkeypatch), torch.rand(7, *SHAPE)
    expected, before = network.eval()(images), models.unpack(models.pack(network))
    found = models.predict(network.train(training), images, batch_size=3)
    torch.testing.assert_close(found, expected.detach(), rtol=RTOL, atol=ATOL)
    assert not found.requires_grad
    assert network.training is training
    assert states_equal(network, before)


# ----------------------------------------------------------------------------- looking inside


def hooks(network: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in network.modules())


def test_record_outputs_sees_named_layers_and_goes_away():
    network = models.build("lenet5", width=0.5)
    images = torch.rand(2, 1, 28, 28)
    with models.record_outputs(network, ["features.1", "hidden"]) as outputs:
        network(torch.rand(4, 1, 28, 28))
        network(images)
    torch.testing.assert_close(outputs["features.1"], network.features[:2](images))
    torch.testing.assert_close(outputs["hidden"], network.hidden(network.features(images)))
    assert outputs["hidden"].requires_grad
    network(torch.rand(4, 1, 28, 28))
    assert len(outputs["hidden"]) == 2
    assert hooks(network) == 0


@pytest.mark.parametrize("kind", ["outputs", "inputs"])
def test_hooks_go_away_after_an_error(kind: str):
    network = models.build("lenet5", width=0.5)

    def recording() -> contextlib.AbstractContextManager:
        if kind == "inputs":
            return models.record_inputs([network.hidden])
        return models.record_outputs(network, ["hidden"])

    with recording():
        assert hooks(network) == 1
    with pytest.raises(RuntimeError), recording():
        network(torch.rand(1, 5, 28, 28))
    assert hooks(network) == 0


def test_a_missing_layer_is_named_with_those_there_are():
    network = models.build("lenet5", width=0.5)
    with (
        pytest.raises(ValueError, match=r"no layer \['hiden'\] in LeNet5.*'hidden'"),
        models.record_outputs(network, ["hidden", "hiden"]),
    ):
        pass
    assert hooks(network) == 0


def test_record_inputs_follows_the_order_of_the_modules_not_of_the_calls(
    monkeypatch: pytest.MonkeyPatch,
):
    network, images = tiny(monkeypatch), torch.rand(3, *SHAPE)
    norms = models.batch_norms(network)
    assert norms == [network.second_norm, network.first_norm]
    with models.record_inputs(norms) as fed:
        network(torch.rand(5, *SHAPE))
        network(images)
    assert len(fed) == 2
    first = network.first(images)
    torch.testing.assert_close(fed[1], first)
    hidden = network.first_act(network.first_norm(first))
    torch.testing.assert_close(fed[0], network.second(hidden))
    assert hooks(network) == 0


def test_batch_norms_are_found_by_type_if_they_keep_statistics():
    network = nn.ModuleDict(
        {
            "a": nn.BatchNorm1d(2),
            "b": nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2)),
            "c": nn.BatchNorm3d(2),
            "d": nn.BatchNorm2d(2, track_running_stats=False),
            "e": nn.GroupNorm(1, 2),
        }
    )
    expected = [network["a"], network["b"][1], network["c"]]
    assert models.batch_norms(network) == models.tracked_batch_norms(network) == expected


def test_a_model_without_batch_norm_is_refused_with_the_remedy():
    network = models.build("lenet5", width=0.5)
    with pytest.raises(ValueError, match=r"LeNet5 has no BatchNorm.*weight and prior steps to 0"):
        models.batch_norms(network)
    assert models.tracked_batch_norms(network) == []


def test_activation_layers_are_named():
    assert models.activation_layers(models.build("lenet5")) == [
        "features.1",
        "features.4",
        "hidden.1",
        "hidden.3",
    ]
    assert models.activation_layers(Tiny()) == ["second_act", "first_act"]


def test_a_model_without_activation_modules_is_refused_with_the_remedy():
    with pytest.raises(ValueError, match=r"no activation module.*attention weight to 0"):
        models.activation_layers(nn.Sequential(nn.Linear(2, 2)))


# ------------------------------------------------------------------------------------ on disk


def test_pack_and_unpack_return_the_network(monkeypatch: pytest.MonkeyPatch):
    network = tiny(monkeypatch)
    packed = models.pack(network)
    assert states_equal(models.unpack(packed), network)
    assert models.unpack(packed).architecture == network.architecture
    with torch.no_grad():
        network.classifier.weight.zero_()
    assert models.unpack(packed).classifier.weight.abs().sum() > 0


def test_half_precision_is_widened(monkeypatch: pytest.MonkeyPatch):
    network = tiny(monkeypatch)
    packed = models.pack(network)
    for name, tensor in packed["state_dict"].items():
        if tensor.is_floating_point():
            packed["state_dict"][name] = tensor.half()
    found = models.unpack(packed)
    assert {p.dtype for p in found.parameters()} == {torch.float32}
    assert found.first_norm.num_batches_tracked == network.first_norm.num_batches_tracked == 3
    for name, tensor in found.state_dict().items():
        expected = network.state_dict()[name]
        torch.testing.assert_close(tensor, expected, rtol=2**-11, atol=2**-24)
    assert not states_equal(found, network)


def test_load_reads_what_a_run_left(tmp_path: Path):
    network = models.build("lenet5", width=0.5)
    path = write(tmp_path / "run.pt", models.pack(network), losses=[1.0])
    assert states_equal(models.load(path, model="lenet5", width=0.5), network)
    assert models.load_result(path)["losses"] == [1.0]
    assert models.load_record(path)["seconds"] == 1.0


class Trap:
    """An object whose unpickling writes a file."""

    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self):
        return Path.write_text, (self.target, "gotcha")


def test_a_pickle_with_objects_is_refused_and_not_run(tmp_path: Path):
    target, path = tmp_path / "gotcha", tmp_path / "run.pt"
    torch.save({"result": {"model": Trap(target)}}, path)
    with pytest.raises(models.CheckpointError, match=r"run\.pt is no file of tensors.*delete it"):
        models.load(path)
    assert not target.exists()


@pytest.mark.parametrize(
    "content", [b"", b"hello", b"a,b\n1,2\n", b"\x80\x02", b"PK\x03\x04abc", b"X\x05", b"{}"]
)
def test_what_is_no_torch_file_is_refused(tmp_path: Path, content: bytes):
    path = tmp_path / "run.pt"
    path.write_bytes(content)
    with pytest.raises(models.CheckpointError, match=r"run\.pt is no file of tensors \S*.*\(.+\)"):
        models.load(path)


def test_a_file_cut_short_is_refused(tmp_path: Path):
    path = write(tmp_path / "run.pt", models.pack(models.build("lenet5", width=0.5)))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(models.CheckpointError, match=r"run\.pt is no file of tensors"):
        models.load(path)


def test_an_absent_file_is_named(tmp_path: Path):
    with pytest.raises(models.CheckpointError, match=r"run\.pt does not exist; run the stage"):
        models.load(tmp_path / "run.pt")


@pytest.mark.parametrize("content", [[1, 2], {"weight": torch.zeros(2)}, {"result": 3}])
def test_what_is_no_record_is_refused(tmp_path: Path, content: object):
    torch.save(content, tmp_path / "run.pt")
    with pytest.raises(models.CheckpointError, match="not the record of a run"):
        models.load(tmp_path / "run.pt")


@pytest.mark.parametrize("model", [None, [1], {"weight": torch.zeros(2)}, {"architecture": 3}])
def test_a_record_without_model_is_refused(tmp_path: Path, model: object):
    with pytest.raises(models.CheckpointError, match=r"run\.pt holds no model"):
        models.load(write(tmp_path / "run.pt", model), model="lenet5")


def test_another_architecture_is_refused(tmp_path: Path):
    path = write(tmp_path / "run.pt", models.pack(models.build("lenet5", width=0.5)))
    with pytest.raises(models.CheckpointError, match=r"'width': 0\.5.*\{'width': 1\.0\} was asked"):
        models.load(path, model="lenet5", width=1.0)
    with pytest.raises(models.CheckpointError, match=r"\{'model': 'allcnn'\} was asked"):
        models.load(path, model="allcnn")


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
    packed = damaged(models.pack(models.build("lenet5", width=0.5)), kind)
    with pytest.raises(
        models.CheckpointError, match=r"(?s)run\.pt: no usable model.*run the stage"
    ):
        models.load(write(tmp_path / "run.pt", packed))


# -------------------------------------------------------------------------------- the teacher


def test_load_teacher_returns_it_frozen_with_the_shape_of_its_images(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    network, (images, labels) = taught(monkeypatch), stripes(40, seed=1)
    path = write(tmp_path / "run.pt", models.pack(network.train()), shape=list(SHAPE))
    teacher, shape = models.load_teacher(path, [3, 0])
    assert shape == SHAPE
    assert not teacher.training
    assert not any(p.requires_grad for p in teacher.parameters())
    assert (teacher(images).argmax(1) == labels).float().mean() > 0.9


@pytest.mark.parametrize(
    ("forget_classes", "message"),
    [
        ([12], "holds 12, not one of the classes.*from 0 to 3"),
        (list(range(CLASSES)), "is every class"),
        ([], "empty"),
        ([1, 1], "more than once"),
        (["0"], "not a whole number"),
    ],
)
def test_load_teacher_checks_the_forget_classes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, forget_classes: list, message: str
):
    path = write(tmp_path / "run.pt", models.pack(tiny(monkeypatch)), shape=list(SHAPE))
    with pytest.raises(ValueError, match=message):
        models.load_teacher(path, forget_classes)
