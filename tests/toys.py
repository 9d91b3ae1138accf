"""What several tests share: a network unlike the study's own, and pictures it can learn."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unlearnlib import models

SHAPE = (2, 8, 12)
CLASSES = 4


class Tiny(nn.Module):
    """Two convolutions with BatchNorm, whose modules are defined in reverse order of their calls."""

    def __init__(self, *, width: float = 1.0, channels: int = 2, num_classes: int = CLASSES):
        super().__init__()
        filters = round(6 * width)
        self.classifier = nn.Linear(filters, num_classes)
        self.second_act = nn.Tanh()
        self.second_norm = nn.BatchNorm2d(filters)
        self.second = nn.Conv2d(filters, filters, 3, stride=2, padding=1)
        self.first_act = nn.ReLU()
        self.first_norm = nn.BatchNorm2d(filters)
        self.first = nn.Conv2d(channels, filters, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.first_act(self.first_norm(self.first(images)))
        hidden = self.second_act(self.second_norm(self.second(hidden)))
        return self.classifier(hidden.flatten(2).amax(2))


def tiny(monkeypatch: pytest.MonkeyPatch, *, seed: int = 0) -> nn.Module:
    """Build the network, known to `models.build` for one test, with statistics that are not 0 and 1."""
    monkeypatch.setitem(models.ARCHITECTURES, "tiny", Tiny)
    torch.manual_seed(seed)
    network = models.build("tiny", channels=SHAPE[0], num_classes=CLASSES)
    for _ in range(3):
        network(torch.rand(32, *SHAPE))
    return network.eval()


def stripes(count: int, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Draw pictures whose class is the place of a bright stripe, and their labels."""
    randomness = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % CLASSES
    images = 0.2 * torch.rand(count, *SHAPE, generator=randomness)
    for image, label in zip(images, labels.tolist(), strict=True):
        image[label % 2, :, 3 * label : 3 * label + 3] += 0.8
    return images, labels


def taught(monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    """Teach the network the stripes by a plain loop."""
    network, (images, labels) = tiny(monkeypatch).train(), stripes(128)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.02)
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(network(images), labels).backward()
        optimizer.step()
    return network.eval()


class Table(nn.Module):
    """Read the logits of an image off its first pixels; a constant is added to those of one class."""

    def __init__(self, num_classes: int = CLASSES):
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(num_classes))
        self.architecture = {"num_classes": num_classes}

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1)[:, : len(self.shift)] + self.shift


def states_equal(one: nn.Module, other: nn.Module) -> bool:
    """Compare all parameters and buffers bit by bit."""
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
