"""Networks of any kind: asked without a trace, and looked into where they are."""

import contextlib

import pytest
import torch
from tolerances import ATOL, RTOL
from torch import nn
from torch.nn import functional as F
from toys import SHAPE, Tiny, states_equal, tiny

from unlearnlib.models import architectures, checkpoints, networks


def hooks(network: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in network.modules())


def test_frozen_stops_training_and_gradients():
    network = networks.frozen(architectures.build("lenet5", width=0.5))
    assert not network.training
    assert not any(p.requires_grad for p in network.parameters())


@pytest.mark.parametrize("training", [True, False])
def test_predict_evaluates_in_batches_and_leaves_the_network_as_it_was(
    monkeypatch: pytest.MonkeyPatch, training: bool
):
    network, images = tiny(monkeypatch), torch.rand(7, *SHAPE)
    expected, before = network.eval()(images), checkpoints.unpack(checkpoints.pack(network))
    found = networks.predict(network.train(training), images, batch_size=3)
    torch.testing.assert_close(found, expected.detach(), rtol=RTOL, atol=ATOL)
    assert not found.requires_grad
    assert network.training is training
    assert states_equal(network, before)


def test_every_module_is_left_in_its_own_mode_also_after_an_error(monkeypatch: pytest.MonkeyPatch):
    network = tiny(monkeypatch).train()
    network.first_norm.eval()
    before = [module.training for module in network.modules()]
    networks.answers(network, torch.rand(2, *SHAPE))
    for ask in (networks.predict, networks.answers):
        with pytest.raises(RuntimeError):
            ask(network, torch.rand(2, 5, 8, 12))
        assert [module.training for module in network.modules()] == before
    assert torch.is_grad_enabled()
    assert hooks(network) == 0


# ----------------------------------------------------------------------------- looking inside


def test_record_outputs_sees_named_layers_and_goes_away():
    network = architectures.build("lenet5", width=0.5)
    images = torch.rand(2, 1, 28, 28)
    with networks.record_outputs(network, ["features.1", "hidden"]) as outputs:
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
    network = architectures.build("lenet5", width=0.5)

    def recording() -> contextlib.AbstractContextManager:
        if kind == "inputs":
            return networks.record_inputs([network.hidden])
        return networks.record_outputs(network, ["hidden"])

    with recording():
        assert hooks(network) == 1
    with pytest.raises(RuntimeError), recording():
        network(torch.rand(1, 5, 28, 28))
    assert hooks(network) == 0


def test_a_missing_layer_is_named_with_those_there_are():
    network = architectures.build("lenet5", width=0.5)
    with (
        pytest.raises(ValueError, match=r"no layer \['hiden'\] in LeNet5.*'hidden'"),
        networks.record_outputs(network, ["hidden", "hiden"]),
    ):
        pass
    assert hooks(network) == 0


def test_record_inputs_follows_the_order_of_the_modules_not_of_the_calls(
    monkeypatch: pytest.MonkeyPatch,
):
    network, images = tiny(monkeypatch), torch.rand(3, *SHAPE)
    norms = networks.batch_norms(network)
    assert norms == [network.second_norm, network.first_norm]
    with networks.record_inputs(norms) as fed:
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
    assert networks.batch_norms(network) == networks.tracked_batch_norms(network) == expected


def test_a_model_without_batch_norm_is_refused_with_the_remedy():
    network = architectures.build("lenet5", width=0.5)
    with pytest.raises(ValueError, match=r"LeNet5 has no BatchNorm.*weight and prior steps to 0"):
        networks.batch_norms(network)
    assert networks.tracked_batch_norms(network) == []


def test_activation_layers_are_named():
    assert networks.activation_layers(architectures.build("lenet5")) == [
        "features.1",
        "features.4",
        "hidden.1",
        "hidden.3",
    ]
    assert networks.activation_layers(Tiny()) == ["second_act", "first_act"]


def test_a_model_without_activation_modules_is_refused_with_the_remedy():
    with pytest.raises(ValueError, match=r"no activation module.*attention weight to 0"):
        networks.activation_layers(nn.Sequential(nn.Linear(2, 2)))


# ----------------------------------------------------------------------------------- features


@pytest.mark.parametrize("model", architectures.ARCHITECTURES)
def test_features_are_what_the_read_out_reads(model: str):
    network = architectures.build(model, width=0.125).train()
    images = torch.rand(5, 1, 28, 28)
    logits, features = networks.answers(network, images, batch_size=2)
    assert features.ndim == 2
    assert not features.requires_grad and not logits.requires_grad
    expected = F.linear(features, network.classifier.weight, network.classifier.bias)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(logits, networks.predict(network, images, batch_size=2))
    assert torch.equal(features, networks.penultimate(network, images, batch_size=2))
    assert network.training
    assert hooks(network) == 0


class Backwards(nn.Module):
    """Define the read-out first, and after it a layer that is called before and one that is not."""

    def __init__(self) -> None:
        super().__init__()
        self.read_out = nn.Linear(4, 3)
        self.hidden = nn.Linear(6, 4)
        self.unused = nn.Linear(5, 5)
        self.calls = 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.read_out(self.hidden(images.flatten(1)).relu())


def test_the_read_out_is_the_linear_layer_called_last_wherever_it_is_defined():
    network, images = Backwards(), torch.rand(3, 1, 2, 3)
    logits, features = networks.answers(network, images)
    assert network.calls == 1
    torch.testing.assert_close(features, network.hidden(images.flatten(1)).relu().detach())
    torch.testing.assert_close(logits, network(images).detach())


def test_features_are_a_copy():
    images = torch.rand(3, 1, 2, 3)
    features = networks.penultimate(nn.Sequential(nn.Flatten(), nn.Linear(6, 2)), images)
    before = features.clone()
    images.zero_()
    assert torch.equal(features, before)


def test_a_network_that_calls_no_linear_layer_is_refused():
    network = Backwards()
    network.forward = lambda images: images.flatten(1)
    for odd, name in ((nn.Flatten(), "Flatten"), (network, "Backwards")):
        with pytest.raises(ValueError, match=rf"{name} calls no nn.Linear.*record_outputs"):
            networks.answers(odd, torch.rand(1, 1, 2, 2))
        assert hooks(odd) == 0


# ------------------------------------------------------------------------------------- folding


@pytest.mark.parametrize(("model", "width"), [("allcnn", 0.1), ("resnet18", 0.03)])
def test_a_folded_network_answers_and_learns_as_the_network_does(model: str, width: float):
    torch.manual_seed(0)
    network = architectures.build(model, width=width)
    images = torch.rand(4, 1, 28, 28)
    for _ in range(2):
        network(images)  # statistics that are not 0 and 1
    network.eval()
    twin = networks.folded(network)
    norms = sum(isinstance(m, nn.BatchNorm2d) for m in network.modules())
    assert sum(isinstance(m, networks.FoldedConvolution) for m in twin.modules()) == norms > 0
    torch.testing.assert_close(twin(images), network(images), rtol=1e-4, atol=1e-5)
    slopes = [
        torch.autograd.grad(one(images).square().sum(), list(network.parameters()))
        for one in (twin, network)
    ]
    for found, expected in zip(*slopes, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    assert networks.activation_layers(twin) == networks.activation_layers(network)


def test_a_folded_network_shares_its_weights_and_leaves_the_network_alone():
    network = architectures.build("allcnn", width=0.05).train()
    twin = networks.folded(network)
    assert network.training and not twin.training
    assert {id(p) for p in twin.parameters()} == {id(p) for p in network.parameters()}
    with torch.no_grad():
        network.classifier.bias.add_(1)
        network.features[0][0].weight.mul_(2)
    images = torch.rand(2, 1, 28, 28)
    torch.testing.assert_close(twin(images), network.eval()(images), rtol=1e-4, atol=1e-5)


def test_a_bias_is_folded_and_what_cannot_be_folded_stays():
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1),
        nn.BatchNorm2d(3, affine=False), nn.Conv2d(3, 2, 3, padding=1, padding_mode="reflect"),
        nn.BatchNorm2d(2),
    )  # fmt: skip
    for _ in range(2):
        network(torch.rand(4, 1, 8, 8))
    twin, images = networks.folded(network), torch.rand(2, 1, 8, 8)
    assert sum(isinstance(m, networks.FoldedConvolution) for m in twin) == 1
    torch.testing.assert_close(twin(images), network.eval()(images), rtol=1e-4, atol=1e-5)
