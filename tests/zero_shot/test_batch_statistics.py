"""Batch statistics: the same number and the same slope as autograd finds, in whatever way."""

import pytest
import torch
from tolerances import RTOL
from torch import Tensor, nn
from toys import SHAPE, statistics_by_hand, stripes, taught, tiny

from unlearnlib.models import architectures, networks
from unlearnlib.zero_shot import batch_statistics
from unlearnlib.zero_shot.batch_statistics import Observed


def by_autograd(x: Tensor, layer: nn.Module) -> Tensor:
    """Compute the distance of one layer by what torch has."""
    dims = [d for d in range(x.dim()) if d != 1]
    variance, mean = torch.var_mean(x, dims, correction=0)
    return (mean - layer.running_mean).norm() + (variance - layer.running_var).norm()


@pytest.fixture
def layer() -> nn.Module:
    torch.manual_seed(0)
    layer = nn.BatchNorm2d(5)
    layer.running_mean.normal_(3.0)
    layer.running_var.uniform_(0.1, 2.0)
    return layer.eval()


def slope(distance: Tensor, x: Tensor) -> Tensor:
    return torch.autograd.grad(3 * distance, x)[0]


@pytest.mark.parametrize("shape", [(7, 5), (7, 5, 4), (7, 5, 4, 3), (2, 5, 2, 3, 2)])
def test_the_distance_and_its_slope_are_those_of_autograd(layer: nn.Module, shape: tuple):
    x = (2 * torch.randn(shape) + 4).requires_grad_(True)
    expected, found = by_autograd(x, layer), batch_statistics.distance([x], [layer])
    assert found.item() == pytest.approx(expected.item(), rel=RTOL)
    torch.testing.assert_close(slope(found, x), slope(expected, x), rtol=1e-4, atol=1e-6)


def test_a_large_mean_costs_no_digits(layer: nn.Module):
    layer.running_mean += 1000
    x = (torch.randn(50, 5, 4, 4) + 1000).requires_grad_(True)
    expected, found = by_autograd(x.double(), layer), batch_statistics.distance([x], [layer])
    assert found.item() == pytest.approx(expected.item(), rel=1e-4)


def test_at_the_remembered_statistics_there_is_no_slope():
    layer, x = nn.BatchNorm1d(3, eps=0.0).eval(), torch.tensor([[1.0], [-1.0]]).repeat(1, 3)
    x.requires_grad_(True)
    found = batch_statistics.distance([x], [layer])
    assert found.item() == 0
    assert not slope(found, x).any()


def test_no_layers_are_at_no_distance():
    assert batch_statistics.distance([], []) == 0
    with pytest.raises(ValueError, match="shorter|longer"):
        batch_statistics.distance([], [nn.BatchNorm2d(2)])


# -------------------------------------------------------------------------------- the observer


def check(network: nn.Module, images: Tensor) -> Observed:
    """Check answers, distance and slopes of an observed network against a plain pass."""
    observed, norms = Observed(network), networks.batch_norms(network)
    one, other = (images.clone().requires_grad_(True) for _ in range(2))
    logits, distance = observed(one)
    with networks.record_inputs(norms) as fed:
        plain = network(other)
    expected = sum(by_autograd(x, layer) for x, layer in zip(fed, norms, strict=True))
    torch.testing.assert_close(logits, plain, rtol=1e-4, atol=1e-4)
    assert distance.item() == pytest.approx(expected.item(), rel=1e-4)
    loss = [d + torch.logsumexp(y, 1).mean() for y, d in ((logits, distance), (plain, expected))]
    torch.testing.assert_close(slope(loss[0], one), slope(loss[1], other), rtol=1e-3, atol=1e-4)
    return observed


def convolutional() -> nn.Module:
    """Build a network of the study whose BatchNorm layers have scales and statistics of all kinds."""
    torch.manual_seed(0)
    network = architectures.build("allcnn", width=0.05)
    for _ in range(3):
        network(torch.rand(16, 1, 28, 28))
    for norm in networks.batch_norms(network):
        norm.weight.data.uniform_(-2, 2)
        norm.bias.data.normal_()
    return networks.frozen(network)


def test_convolutions_are_folded_and_nothing_changes():
    observed = check(convolutional(), torch.rand(6, 1, 28, 28))
    assert len(observed.folded) == 8
    assert not observed.plain


def test_a_scale_near_zero_is_not_divided_by():
    network = convolutional()
    networks.batch_norms(network)[3].weight.data[0] = 1e-9
    observed = check(network, torch.rand(6, 1, 28, 28))
    assert not observed.folded
    assert len(observed.plain) == 8


def test_layers_that_follow_no_convolution_are_watched_too(monkeypatch: pytest.MonkeyPatch):
    observed = check(networks.frozen(taught(monkeypatch)), stripes(8)[0])
    assert len(observed.plain) == 2
    mixed = networks.frozen(nn.Sequential(nn.BatchNorm2d(2), nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3),
                                          nn.Flatten(), nn.BatchNorm1d(24)))  # fmt: skip
    observed = check(mixed, torch.rand(5, 2, 2, 4))
    assert (len(observed.folded), len(observed.plain)) == (1, 2)


def test_the_observed_distance_is_that_of_numpy(monkeypatch: pytest.MonkeyPatch):
    network, images = networks.frozen(tiny(monkeypatch)), torch.rand(6, *SHAPE)
    found = Observed(network)(images)[1].item()
    assert found == pytest.approx(statistics_by_hand(network, images), rel=RTOL)


def test_without_weight_no_batch_norm_is_needed():
    network = networks.frozen(architectures.build("lenet5", width=0.5))
    with pytest.raises(ValueError, match="LeNet5 has no BatchNorm"):
        Observed(network)
    images = torch.rand(2, 1, 28, 28)
    logits, distance = Observed(network, weight=0.0)(images)
    torch.testing.assert_close(logits, network(images))
    assert distance == 0
