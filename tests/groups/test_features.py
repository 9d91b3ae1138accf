"""Features: separable and noisy toys, attention by hand, and a pretrained model that is a stand-in."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import toys
from torch import nn

from unlearnlib.data import datasets
from unlearnlib.groups import features
from unlearnlib.models import architectures, checkpoints, networks


def blobs(count: int, *, seed: int, spread: float = 0.3) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw three classes around the corners of a triangle."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    corners = torch.tensor([[0.0, 0], [4, 0], [0, 4]])
    return corners[labels] + spread * torch.randn(count, 2, generator=generator), labels


def rings(count: int, *, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw two rings, one inside the other, which no line separates."""
    generator = torch.Generator().manual_seed(seed)
    labels, angles = torch.arange(count) % 2, 6.283 * torch.rand(count, generator=generator)
    return (1.0 + 2 * labels)[:, None] * torch.stack([angles.cos(), angles.sin()], 1), labels


def test_both_probes_separate_what_is_separate():
    train, held = blobs(90, seed=0), blobs(60, seed=1)
    assert features.accuracy(features.linear_probe(train, held), held) == 100
    assert features.accuracy(features.knn_probe(train, held), held) == 100


def test_the_linear_probe_is_linear_and_neighbours_are_not():
    train, held = rings(200, seed=0), rings(100, seed=1)
    assert features.accuracy(features.linear_probe(train, held), held) < 75
    assert features.accuracy(features.knn_probe(train, held, neighbours=3), held) == 100


def test_neighbours_vote_as_by_hand():
    train = torch.tensor([[0.0], [1], [2], [10]]), torch.tensor([0, 1, 1, 0])
    held = torch.tensor([[0.1]]), torch.tensor([0])
    assert features.accuracy(features.knn_probe(train, held, neighbours=1), held) == 100
    assert features.accuracy(features.knn_probe(train, held, neighbours=3), held) == 0


def test_the_setting_is_chosen_on_validation_and_not_on_test():
    train = torch.tensor([[0.0], [1], [2], [10]]), torch.tensor([0, 1, 1, 0])
    splits = {
        "train": train,
        "validation": (torch.tensor([[0.1]]), torch.tensor([1])),
        "test": (torch.tensor([[0.1]]), torch.tensor([0])),
    }
    found = features.best("knn", splits, [1, 3])
    assert found == {"knn_choice": 3, "knn_validation": 100, "knn_accuracy": 0}


def test_a_probe_that_does_not_converge_says_so():
    train = blobs(90, seed=0, spread=3.0)
    with pytest.raises(features.ProbeError, match="in 1 iterations; raise max_iterations"):
        features.linear_probe(train, train, max_iterations=1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda a, b: features.knn_probe(a, b, neighbours=91), "neighbours=91 of 90 items: give 1"),
        (lambda a, b: features.linear_probe(a, b, strength=0), "strength=0"),
        (lambda a, b: features.linear_probe((a[0][:, :1], a[1]), b), "give both from one network"),
        (lambda a, b: features.linear_probe((a[0][:0], a[1][:0]), b), "0 features and 0 labels"),
        (lambda a, b: features.best("forest", {}, [1]), "kind 'forest'"),
        (lambda a, b: features.best("knn", {}, []), "at least one setting"),
    ],
)
def test_what_cannot_be_probed_is_refused(call, message: str):
    with pytest.raises(ValueError, match=message):
        call(blobs(90, seed=0), blobs(60, seed=1))


# ------------------------------------------------------------------------------------ attention


def test_attention_weights_are_those_that_the_network_uses():
    torch.manual_seed(0)
    network = architectures.build("vit", width=0.25).eval()
    images = torch.rand(3, 1, 28, 28)
    weights = features.attention_weights(network, images)
    assert weights.shape == (3, 4, 4, 17, 17)
    torch.testing.assert_close(weights.sum(-1), torch.ones(3, 4, 4, 17))
    # rebuild the last layer's output from its weights
    layer = [m for m in network.modules() if isinstance(m, architectures.MultiHeadAttention)][-1]
    with networks.record_inputs([layer]) as tokens, torch.no_grad():
        network(images)
        values = layer.project(tokens[0]).view(3, 17, 3, 4, -1).permute(2, 0, 3, 1, 4)[2]
        mixed = layer.mix((weights[:, -1] @ values).transpose(1, 2).reshape(3, 17, -1))
        torch.testing.assert_close(mixed, layer(tokens[0]))


def test_equal_tokens_attend_to_all_alike():
    network = architectures.build("vit", width=0.25).eval()
    with torch.no_grad():
        for layer in network.modules():
            if isinstance(layer, architectures.MultiHeadAttention):
                layer.project.weight.zero_()
    weights = features.attention_weights(network, torch.rand(2, 1, 28, 28))
    torch.testing.assert_close(weights, torch.full_like(weights, 1 / 17))


def test_a_network_without_attention_is_refused():
    with pytest.raises(ValueError, match="Compact has no attention"):
        features.attention_weights(architectures.build("compact"), torch.rand(1, 1, 28, 28))


# ----------------------------------------------------------------------------------- pretrained


def test_without_timm_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(features.ProbeError, match=r"'vit_x'.*pip install timm"):
        features.pretrained_features(torch.rand(1, 1, 28, 28), name="vit_x")


def test_without_weights_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch):
    def offline(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setitem(sys.modules, "timm", SimpleNamespace(create_model=offline))
    with pytest.raises(features.ProbeError, match=r"no route to host.*HF_HOME"):
        features.pretrained_features(torch.rand(1, 1, 28, 28), name="vit_x")


def test_a_pretrained_model_sees_images_as_it_wants_them(monkeypatch: pytest.MonkeyPatch):
    network = nn.Flatten()
    network.pretrained_cfg = {"mean": [0.5] * 3, "std": [0.25] * 3, "input_size": (3, 14, 14)}
    monkeypatch.setitem(sys.modules, "timm", SimpleNamespace(create_model=lambda *_, **__: network))
    found = features.pretrained_features(torch.ones(5, 1, 28, 28), name="any", batch_size=2)
    torch.testing.assert_close(found, torch.full((5, 3 * 14 * 14), 2.0))


# ------------------------------------------------------------------------------------------ run


def test_a_run_probes_a_model_and_pixels(tmp_path: Path):
    file = toys.lines(tmp_path / "dataset.npz")
    torch.manual_seed(0)
    original = toys.record(tmp_path / "original.pt", architectures.build("compact"))
    settings = features.Settings(probe_items=50, strengths=(0.1, 1.0), neighbours=(1, 3))
    common = {"data": file, "settings": settings, "seed": 0}
    pixels, model = features.run(**common), features.run(**common, original=original)
    assert pixels["dimensions"] == 784 and model["dimensions"] == 144
    assert pixels["items"] == model["items"] == 50
    assert "model_accuracy" not in pixels
    assert {type(value) for value in model.values()} == {int, float}
    assert pixels["probe_accuracy"] == 100  # one bright pixel tells the class
    images, labels = datasets.split(datasets.load(file), "test")
    right = networks.predict(checkpoints.load(original), images).argmax(1) == labels
    assert model["model_accuracy"] == pytest.approx(100 * right.double().mean().item())


def test_a_space_is_a_models_or_a_pretrained_ones(tmp_path: Path):
    with pytest.raises(ValueError, match=r"original=a.pt and pretrained='vit_x': give one"):
        features.space_features(
            torch.rand(1, 1, 28, 28), original=tmp_path / "a.pt", pretrained="vit_x"
        )
