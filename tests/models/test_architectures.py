"""Further architectures: as described, known to `models`, and read out where they should be."""

import io

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn
from torch.nn import functional as F
from toys import Tiny

from unlearnlib.models import architectures, models

NAMES = ["compact", "logistic", "resnet18", "vit"]


def parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize("model", NAMES)
@pytest.mark.parametrize(("channels", "classes"), [(1, 10), (3, 7)])
def test_they_map_images_to_logits(model: str, channels: int, classes: int):
    network = models.build(model, width=0.125, channels=channels, num_classes=classes).eval()
    images = torch.rand(4, channels, 28, 28)
    assert network(images).shape == (4, classes)
    torch.testing.assert_close(network(images)[1:2], network(images[1:2]))


@pytest.mark.parametrize("model", NAMES)
def test_they_are_packed_and_unpacked(model: str):
    network = models.build(model, width=0.125).eval()
    stream = io.BytesIO()
    torch.save(models.pack(network), stream)
    stream.seek(0)
    again = models.unpack(torch.load(stream, weights_only=True)).eval()
    images = torch.rand(2, 1, 28, 28)
    assert torch.equal(again(images), network(images))
    assert models.fresh_like(network).architecture == network.architecture


@pytest.mark.parametrize("model", ["compact", "resnet18", "vit"])
def test_a_width_without_filters_is_refused(model: str):
    with pytest.raises(ValueError, match=r"width .* leaves no filter.*above 0"):
        models.build(model, width=1e-4)


def test_compact_has_4874_parameters_and_drops_no_pixel():
    network = models.build("compact")
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
    assert parameters(models.build("logistic")) == 7_850


def test_resnet18_is_the_published_one_but_for_its_stem():
    torchvision = pytest.importorskip("torchvision")
    published = torchvision.models.resnet18(num_classes=10)
    stem = published.conv1.weight.numel() - 64 * 1 * 9
    network = models.build("resnet18")
    assert parameters(network) == parameters(published) - stem
    assert len(models.batch_norms(network)) == 20
    narrow = models.build("resnet18", width=0.125)
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
    network = models.build("vit", width=0.25).eval()
    images = torch.rand(2, 1, 28, 28)
    assert not torch.allclose(network(images), network(images.roll(7, -1)), atol=1e-6)
    network.positions.data.zero_()
    torch.testing.assert_close(network(images), network(images.roll(7, -1)), rtol=1e-4, atol=1e-5)


# ----------------------------------------------------------------------------------- features


@pytest.mark.parametrize("model", NAMES)
def test_features_are_what_the_read_out_reads(model: str):
    network = models.build(model, width=0.125).train()
    images = torch.rand(5, 1, 28, 28)
    features = architectures.penultimate(network, images, batch_size=2)
    assert features.ndim == 2
    assert not features.requires_grad
    logits = F.linear(features, network.classifier.weight, network.classifier.bias)
    torch.testing.assert_close(logits, models.predict(network, images), rtol=1e-4, atol=1e-5)
    assert network.training
    assert not any(m._forward_pre_hooks for m in network.modules())


def test_the_read_out_is_the_linear_layer_called_last_wherever_it_is_defined():
    network = nn.Sequential(Tiny(channels=1), nn.Linear(4, 3))
    network._modules = dict(reversed(network._modules.items()))
    network.forward = lambda images: network._modules["1"](network._modules["0"](images))
    images = torch.rand(3, 1, 8, 8)
    expected = models.predict(network._modules["0"], images)
    torch.testing.assert_close(architectures.penultimate(network, images), expected)


def test_a_network_without_a_linear_layer_is_refused():
    with pytest.raises(ValueError, match=r"Flatten has no nn.Linear.*record_outputs"):
        architectures.penultimate(nn.Flatten(), torch.rand(1, 1, 2, 2))
