"""Networks for the browser: folding, half precision, and what is refused by name."""

import base64
import json

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unlearnlib.models import architectures, networks
from unlearnlib.report import live


def allcnn(width: float) -> nn.Module:
    """Build a network whose BatchNorm layers have weights and statistics of their own."""
    torch.manual_seed(0)
    network = architectures.build("allcnn", width=width).train()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.normal_(module.bias)
    for _ in range(3):
        network(torch.rand(16, 1, 28, 28))
    return network.eval()


def run(layers: list[live.Layer], images: Tensor) -> Tensor:
    """Compute logits from the layers, as the script does but in PyTorch."""
    kinds = {
        "convolution": lambda x, weight, bias, **sizes: F.conv2d(
            x, weight, bias, sizes["stride"], sizes["padding"]
        ),
        "relu": F.relu,
        "average": lambda x: x.mean((2, 3)),
        "linear": lambda x, weight, bias, **_: F.linear(x, weight, bias),
    }
    for layer in layers:
        images = kinds[layer.kind](images, *map(Tensor.float, layer.tensors), **layer.sizes)
    return images


@pytest.mark.parametrize("width", [1 / 16, 1 / 8])
def test_a_convolution_with_its_batch_norm_is_the_two_layers(width: float) -> None:
    network, images = allcnn(width), torch.rand(20, 1, 28, 28)
    layers = list(live.folded(network))
    assert [layer.kind for layer in layers] == ["convolution", "relu"] * 8 + ["average", "linear"]
    expected = networks.predict(network, images)
    assert expected.std() > 0.1
    torch.testing.assert_close(run(layers, images), expected, rtol=1e-5, atol=1e-5)


def test_weights_are_written_layer_by_layer_in_half_precision() -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 3, stride=2, padding=1), nn.Flatten(), nn.Linear(8, 3))
    found = live.described(network)
    assert json.loads(json.dumps(found)) == found
    assert found["layers"] == [
        {"kind": "convolution", "inputs": 1, "outputs": 2, "kernel": 3, "stride": 2, "padding": 1},
        {"kind": "linear", "inputs": 8, "outputs": 3},
    ]
    written = np.frombuffer(base64.b64decode(found["weights"]), "<f2")
    expected = np.concatenate([p.detach().numpy().ravel() for p in network.parameters()])
    np.testing.assert_array_equal(written, expected.astype(np.float16))


def test_a_network_stays_as_it_is_and_is_small() -> None:
    network = allcnn(1 / 8).train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    content = live.described(network)["weights"]
    assert network.training
    assert all(torch.equal(before[name], t) for name, t in network.state_dict().items())
    assert len(content) < 60_000


@pytest.mark.parametrize(
    ("network", "said"),
    [
        (architectures.build("resnet18", width=1 / 16), r"^features\.1\.shortcut: "),
        (architectures.build("lenet5"), r"^features\.2: MaxPool2d"),
        (architectures.build("logistic"), "^the network: flatten "),
        (nn.Sequential(nn.Conv2d(1, 2, 3), nn.GELU()), "^1: GELU"),
        (nn.Sequential(nn.BatchNorm2d(1), nn.ReLU()), "^0: BatchNorm2d"),
        (nn.Sequential(nn.Conv2d(2, 2, 3, groups=2)), "^0: Conv2d"),
        (nn.Sequential(nn.Conv2d(1, 2, (3, 1))), "^0: Conv2d"),
        (nn.Sequential(nn.Conv2d(1, 2, 3, padding="same")), "^0: Conv2d"),
        (
            nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2, track_running_stats=False)),
            "^0, the BatchNorm layer after it: BatchNorm2d",
        ),
    ],
)
def test_what_the_page_cannot_run_is_refused_by_name(network: nn.Module, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        live.described(network)


def test_a_network_that_decides_by_its_images_is_refused() -> None:
    class Deciding(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images if images.sum() > 0 else -images

    with pytest.raises(ValueError, match="Deciding is no chain of layers"):
        live.described(Deciding())


def test_weights_beyond_half_precision_are_refused_by_name() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(2, 2))
    network[1].weight.data[0, 0] = 1e6
    with pytest.raises(ValueError, match="^1 has weights that half precision cannot hold"):
        live.described(network)
