"""Architectures: as published, found by name, and the same again from what they remember."""

import io
import math

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn
from torch.nn import functional as F

from unlearnlib.models import architectures, checkpoints, networks

NAMES = ["allcnn", "lenet5", "compact", "logistic", "resnet18", "vit"]


def parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize("model", NAMES)
@pytest.mark.parametrize(("channels", "classes"), [(1, 10), (3, 7)])
def test_they_map_images_to_logits(model: str, channels: int, classes: int):
    network = architectures.build(model, width=0.125, channels=channels, num_classes=classes).eval()
    images = torch.rand(4, channels, 28, 28)
    assert network(images).shape == (4, classes)
    torch.testing.assert_close(network(images)[1:2], network(images[1:2]))


@pytest.mark.parametrize("model", NAMES)
def test_they_are_packed_and_unpacked(model: str):
    network = architectures.build(model, width=0.125).eval()
    stream = io.BytesIO()
    torch.save(checkpoints.pack(network), stream)
    stream.seek(0)
    again = checkpoints.unpack(torch.load(stream, weights_only=True)).eval()
    images = torch.rand(2, 1, 28, 28)
    assert torch.equal(again(images), network(images))
    assert architectures.fresh_like(network).architecture == network.architecture


def test_allcnn_is_the_published_network():
    network = architectures.build("allcnn")
    kernels = [9, 9, 9, 9, 9, 9, 9, 1]
    filters = [1, 96, 96, 96, 192, 192, 192, 192, 192]
    weights = sum(a * b * k for a, b, k in zip(filters, filters[1:], kernels, strict=False))
    assert parameters(network) == weights + 2 * sum(filters[1:]) + 192 * 10 + 10
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    assert [c.out_channels for c in convolutions] == filters[1:]
    assert [c.stride[0] for c in convolutions] == [1, 1, 2, 1, 1, 2, 1, 1]
    assert len(networks.batch_norms(network)) == len(networks.activation_layers(network)) == 8


@pytest.mark.parametrize(("channels", "side", "classes"), [(1, 28, 10), (3, 20, 7)])
def test_allcnn_maps_images_to_logits(channels: int, side: int, classes: int):
    network = architectures.build("allcnn", width=0.0625, channels=channels, num_classes=classes)
    images = torch.rand(5, channels, side, side)
    assert network(images).shape == (5, classes)
    assert network.features(images).shape == (5, 12, side // 4, side // 4)
    assert architectures.num_classes(network) == classes


def test_lenet5_has_61706_parameters():
    network = architectures.build("lenet5")
    assert parameters(network) == 61_706
    assert network(torch.rand(3, 1, 28, 28)).shape == (3, 10)


@pytest.mark.parametrize("model", ["allcnn", "lenet5", "compact", "resnet18", "vit"])
@pytest.mark.parametrize("width", [0, -1, 1e-4, math.nan])
def test_a_width_without_filters_is_refused(model: str, width: float):
    with pytest.raises(ValueError, match=r"width .* leaves no filter.*above 0"):
        architectures.build(model, width=width)


def test_an_unknown_model_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match=r"'resnet'.*allcnn.*lenet5"):
        architectures.build("resnet")


def test_fresh_like_is_the_same_architecture_with_other_weights():
    network = architectures.build("allcnn", width=0.0625, channels=2, num_classes=3)
    fresh = architectures.fresh_like(network)
    assert fresh.architecture == network.architecture
    assert not torch.equal(fresh.classifier.weight, network.classifier.weight)


def test_compact_has_4874_parameters_and_drops_no_pixel():
    network = architectures.build("compact")
    assert parameters(network) == 4_874
    assert network.features[:2](torch.rand(1, 1, 28, 28)).shape == (1, 8, 14, 14)
    assert network.features[:4](torch.rand(1, 1, 28, 28)).shape == (1, 16, 6, 6)
    image = torch.zeros(1, 1, 28, 28, requires_grad=True)
    kernels = [network.features[0], network.features[2]]
    for kernel in kernels:
        nn.init.ones_(kernel.weight)
    F.avg_pool2d(kernels[1](kernels[0](image)), 2).sum().backward()
    assert (image.grad > 0).all()


def test_logistic_regression_is_scikit_learns():
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.rand(90, 2, 3, 3, generator=generator), torch.arange(90) % 3
    fitted = LogisticRegression().fit(images.flatten(1), labels)
    network = architectures.Logistic(channels=2, num_classes=3, side=3)
    with torch.no_grad():
        network.classifier.weight.copy_(torch.from_numpy(fitted.coef_))
        network.classifier.bias.copy_(torch.from_numpy(fitted.intercept_))
    expected = torch.from_numpy(fitted.predict_proba(images.flatten(1))).float()
    torch.testing.assert_close(network(images).softmax(1), expected, rtol=1e-4, atol=1e-5)
    assert parameters(architectures.build("logistic")) == 7_850


def test_resnet18_is_the_published_one_but_for_its_stem():
    torchvision = pytest.importorskip("torchvision")
    published = torchvision.models.resnet18(num_classes=10)
    stem = published.conv1.weight.numel() - 64 * 1 * 9
    network = architectures.build("resnet18")
    assert parameters(network) == parameters(published) - stem
    assert len(networks.batch_norms(network)) == 20
    narrow = architectures.build("resnet18", width=0.125)
    assert narrow.features(torch.rand(2, 1, 28, 28)).shape == (2, 64, 4, 4)


def test_resnet18_computes_what_torchvisions_blocks_do():
    torchvision = pytest.importorskip("torchvision")
    ours = architectures.Residual(4, 6, 2).eval()
    theirs = torchvision.models.resnet.BasicBlock(
        4, 6, 2, nn.Sequential(nn.Conv2d(4, 6, 1, 2, bias=False), nn.BatchNorm2d(6))
    ).eval()
    theirs.load_state_dict(dict(zip(theirs.state_dict(), ours.state_dict().values(), strict=True)))
    maps = torch.randn(2, 4, 8, 8)
    torch.testing.assert_close(ours(maps), theirs(maps))


def test_attention_is_torchs():
    q, k, v = torch.randn(3, 2, 4, 5, 8)
    torch.testing.assert_close(
        architectures.attend(q, k, v), F.scaled_dot_product_attention(q, k, v), rtol=1e-4, atol=1e-5
    )


def test_multi_head_attention_is_torchs():
    ours, theirs = (
        architectures.MultiHeadAttention(12, 3),
        nn.MultiheadAttention(12, 3, batch_first=True),
    )
    theirs.load_state_dict(dict(zip(theirs.state_dict(), ours.state_dict().values(), strict=True)))
    tokens = torch.randn(2, 5, 12)
    expected = theirs(tokens, tokens, tokens, need_weights=False)[0]
    torch.testing.assert_close(ours(tokens), expected, rtol=1e-4, atol=1e-5)


def test_an_encoder_block_is_torchs_with_the_norm_first():
    ours = architectures.EncoderBlock(12, 3)
    theirs = nn.TransformerEncoderLayer(
        12, 3, 24, dropout=0, activation="gelu", batch_first=True, norm_first=True
    )
    attention = ours.attention[1]
    theirs.self_attn.load_state_dict(
        dict(zip(theirs.self_attn.state_dict(), attention.state_dict().values(), strict=True))
    )
    pairs = [(theirs.norm1, ours.attention[0]), (theirs.norm2, ours.perceptron[0])]
    pairs += [(theirs.linear1, ours.perceptron[1]), (theirs.linear2, ours.perceptron[3])]
    for target, source in pairs:
        torch.nn.init.normal_(source.bias)
        target.load_state_dict(source.state_dict())
    tokens = torch.randn(2, 5, 12)
    torch.testing.assert_close(ours(tokens), theirs(tokens), rtol=1e-4, atol=1e-5)


def test_the_vit_sees_where_a_patch_is():
    network = architectures.build("vit", width=0.25).eval()
    images = torch.rand(2, 1, 28, 28)
    assert not torch.allclose(network(images), network(images.roll(7, -1)), atol=1e-6)
    network.positions.data.zero_()
    torch.testing.assert_close(network(images), network(images.roll(7, -1)), rtol=1e-4, atol=1e-5)
