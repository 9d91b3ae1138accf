"""What several tests share: a network unlike the study's own, and pictures it can learn."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unlearnlib.data import datasets
from unlearnlib.models import architectures, checkpoints
from unlearnlib.pipeline import records
from unlearnlib.pipeline.records import Record

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
    """Build the network, known to `architectures.build` for one test, with statistics that are not 0 and 1."""
    monkeypatch.setitem(architectures.ARCHITECTURES, "tiny", Tiny)
    torch.manual_seed(seed)
    network = architectures.build("tiny", channels=SHAPE[0], num_classes=CLASSES)
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


def statistics_by_hand(network: Tiny, images: Tensor) -> float:
    """Compute how far the statistics of images lie from those that BatchNorm remembers."""
    first = network.first(images)
    second = network.second(network.first_act(network.first_norm(first)))
    total = 0.0
    for fed, norm in ((first, network.first_norm), (second, network.second_norm)):
        array = fed.detach().double().numpy()
        mean, variance = norm.running_mean.numpy(), norm.running_var.numpy()
        total += np.sqrt(((array.mean((0, 2, 3)) - mean) ** 2).sum())
        total += np.sqrt(((array.var((0, 2, 3)) - variance) ** 2).sum())
    return total


def plain_map(activation: Tensor) -> Tensor:
    """Compute the attention map of an activation ``[N, C, ...]`` or ``[N, P]`` as it is written."""
    squared = activation.square()
    return F.normalize(squared.mean(1).flatten(1) if activation.dim() > 2 else squared)


def lines(path: Path, *, test: int = 30) -> Path:
    """Write a data set whose class is the row of a bright line: 200, 40 and `test` images."""
    randomness, parts = np.random.default_rng(0), []
    for count in (200, 40, test):
        labels = np.arange(count) % 10
        images = randomness.integers(0, 50, (count, 28, 28), dtype=np.uint8)
        images[np.arange(count), 2 * labels + 4] = 255
        parts += [images, labels.astype(np.int64)]
    datasets.save(datasets.Dataset("toy", "Toy", *parts), path)
    return path


def record(path: Path, teacher: nn.Module, *, seconds: float = 1.0, **result: object) -> Path:
    """Write a model and what else a run left, as a sweep does."""
    content = {"model": checkpoints.pack(teacher), "shape": list(SHAPE)} | result
    records.write(path, Record(path.stem, records.plain(content), seconds), key="toy")
    return path


def states_equal(one: nn.Module, other: nn.Module) -> bool:
    """Compare all parameters and buffers bit by bit."""
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
