"""An example of a model of one's own: a small residual network on scikit-learn's digits.

`network` is what a user's file needs: a function that returns an untrained ``nn.Module``. The rest
trains it and writes the two files that a user would bring: a state dict and test images.
"""

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional as F

from unlearnlib.data.requests import Classes, rest
from unlearnlib.models.training import Recipe, fit
from unlearnlib.pipeline import seeds
from unlearnlib.pipeline.paths import write_atomic

SHAPE = (1, 16, 16)
CLASSES = 10


class Block(nn.Module):
    """Add to a map what two 3x3 convolutions make of it; the side is halved."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.skip = nn.Conv2d(inputs, outputs, 1, stride=2, bias=False)
        self.relu1, self.relu2 = nn.ReLU(), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        return self.relu2(out + self.skip(x))


def network(channels: int = 1, filters: int = 8, classes: int = CLASSES) -> nn.Module:
    """Return an untrained residual network for images of any size."""
    return nn.Sequential(
        nn.Conv2d(channels, filters, 3, padding=1, bias=False),
        nn.BatchNorm2d(filters),
        nn.ReLU(),
        Block(filters, 2 * filters),
        Block(2 * filters, 4 * filters),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4 * filters, classes),
    )


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return training images ``[N, 1, 16, 16]`` in [0, 1] and labels, and those of the test.

    The 8x8 pictures of scikit-learn, enlarged; a quarter of each class is the test.
    """
    pictures = load_digits()
    images = torch.from_numpy(pictures.images).float().unsqueeze(1) / 16
    images = F.interpolate(images, SHAPE[1:], mode="bilinear").clamp(0, 1)
    labels = torch.from_numpy(pictures.target).long()
    train, test = train_test_split(
        torch.arange(len(labels)).numpy(), test_size=0.25, stratify=labels, random_state=0
    )
    return images[train], labels[train], images[test], labels[test]


def run(
    *, arguments: dict[str, Any], recipe: Recipe, request: Classes | None, seed: int
) -> dict[str, Any]:
    """Train the network, with or without some classes.

    Args:
        arguments: keywords of `network`.
        recipe: how it is trained.
        request: classes left out; None for none.
        seed: of the first weights and the order of the images.

    Returns:
        ``state_dict``.
    """
    images, labels, _, _ = digits()
    kept = torch.arange(len(labels))
    if request is not None:
        kept = rest(len(labels), request.positions(labels))
    with torch.random.fork_rng():
        torch.manual_seed(seeds.derive(seed, "first weights"))
        model = network(**arguments)
    fit(
        model, images[kept], labels[kept], recipe=recipe, seed=seed, label="training of the example"
    )
    return {"state_dict": model.cpu().state_dict()}


def write(state: dict[str, Tensor], folder: Path, name: str) -> Path:
    """Write a state dict to ``<folder>/<name>.pt``, as ``torch.save`` does, and return the path."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_atomic(folder / f"{name}.pt", buffer.getvalue())
    return folder / f"{name}.pt"


def write_test(folder: Path) -> Path:
    """Write the test images to ``<folder>/test.npz`` and return the path."""
    _, _, images, labels = digits()
    buffer = io.BytesIO()
    np.savez(buffer, images=images.numpy(), labels=labels.numpy())
    write_atomic(folder / "test.npz", buffer.getvalue())
    return folder / "test.npz"
