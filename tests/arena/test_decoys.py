"""Decoys lie where they say, between two models that they leave as they are."""

import copy

import pytest
import torch

from unlearnlib.arena import decoys
from unlearnlib.models import architectures


def pair() -> tuple[torch.nn.Module, torch.nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    models = [architectures.build("allcnn", width=0.03).eval() for _ in range(2)]
    return *models, torch.rand(20, 1, 28, 28)


def test_a_decoy_has_the_share_of_gold_that_it_says():
    original, gold, images = pair()
    before = copy.deepcopy(original.state_dict())
    found = decoys.decoys({"original": original, "retrain": gold}, images)
    assert list(found) == ["quarter_way", "half_way", "most_way"]
    for name, network in found.items():
        share = decoys.DECOYS[name].share
        for own, a, b in zip(*(m.parameters() for m in (network, original, gold)), strict=True):
            torch.testing.assert_close(own, (1 - share) * a + share * b)
        assert not network.training
    for name, value in original.state_dict().items():
        assert torch.equal(value, before[name])


def test_the_statistics_of_a_decoy_are_those_of_its_own_features():
    original, gold, images = pair()
    network = decoys.between(original, gold, share=0.5, images=images)
    first = next(m for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d))
    convolution = next(m for m in network.modules() if isinstance(m, torch.nn.Conv2d))
    seen = convolution(images).mean((0, 2, 3))
    torch.testing.assert_close(first.running_mean, seen, rtol=1e-4, atol=1e-5)


def test_models_of_two_kinds_have_nothing_between_them():
    original, _, images = pair()
    with pytest.raises(ValueError, match="two of one architecture"):
        decoys.between(
            original, architectures.build("allcnn", width=0.05), share=0.5, images=images
        )
    with pytest.raises(ValueError, match="no images"):
        decoys.between(original, original, share=0.5, images=images[:0])
