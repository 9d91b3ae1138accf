"""What methods share: needs of a model, pictures, and weights from a named stream."""

import pytest
import torch
from torch import Tensor, nn
from toys import SHAPE, tiny

from unlearnlib.data.requests import Classes, Group
from unlearnlib.models import architectures
from unlearnlib.zero_shot import method, methods


class Functional(nn.Module):
    """No activation module, and a BatchNorm layer that is never called."""

    def __init__(self):
        super().__init__()
        self.unused, self.read = nn.BatchNorm2d(2), nn.Linear(2, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.read(images.relu().mean((2, 3)))


def test_a_need_that_is_met_says_nothing(monkeypatch: pytest.MonkeyPatch):
    for need in (method.statistics, method.attention, method.drawing):
        assert need(tiny(monkeypatch), SHAPE) is None


@pytest.mark.parametrize(
    ("need", "message"),
    [
        (method.statistics, "reads BatchNorm running statistics in place of data"),
        (method.attention, "attends to activation modules such as nn.ReLU"),
    ],
)
def test_a_layer_must_be_there_and_called(
    monkeypatch: pytest.MonkeyPatch, need: method.Need, message: str
):
    assert message in need(Functional(), SHAPE)
    network = tiny(monkeypatch)
    network.add_module("idle", nn.Sequential(nn.BatchNorm2d(2), nn.ReLU()))
    assert message in need(network, SHAPE)


def test_networks_without_batch_norm_keep_no_statistics():
    network = architectures.build("lenet5", width=0.5)
    assert method.statistics(network, (1, 28, 28))
    assert method.attention(network, (1, 28, 28)) is None


@pytest.mark.parametrize("shape", [(1, 30, 28), (1, 28, 30)])
def test_sides_must_be_multiples_of_4(shape: tuple[int, int, int]):
    found = method.drawing(Functional(), shape)
    assert (
        found == f"its generator draws sides that are multiples of 4, not {shape[1]} x {shape[2]}"
    )


@pytest.mark.parametrize("entry", methods.METHODS.values(), ids=list(methods.METHODS))
def test_every_method_serves_classes_and_no_groups(entry: method.ZeroShot):
    assert (entry.family, entry.reads) == ("zero_shot", "nothing")
    assert entry.cannot(Classes([0])) is None
    assert entry.cannot(Group("random", None, 10)).startswith("takes classes")
    assert issubclass(entry.settings, method.Settings)


def test_pictures_are_stretched_one_by_one():
    images = torch.stack([torch.tensor([[-1.0, 0.0], [1.0, 3.0]]), torch.full((2, 2), 5.0)])
    found = method.pictures(images.unsqueeze(1))
    assert found.dtype == torch.uint8
    assert found[0, 0].tolist() == [[0, 64], [128, 255]]
    assert found[1].max() == 0


def test_weights_follow_the_seed_and_the_name_alone():
    def drawn(seed: int, name: str) -> Tensor:
        with method.drawn_by(seed, name):
            return nn.Linear(3, 3).weight.detach()

    torch.manual_seed(0)
    state = torch.random.get_rng_state()
    first = drawn(0, "student")
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(1)
    assert torch.equal(drawn(0, "student"), first)
    assert not torch.equal(drawn(1, "student"), first)
    assert not torch.equal(drawn(0, "generator"), first)
