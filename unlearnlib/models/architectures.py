"""The classifiers of the study, built by name.

Every unlearning method takes any ``nn.Module`` that maps images ``[N, C, H, W]`` in [0, 1] to logits
``[N, K]``; nothing in them assumes one of these. A network that was built here remembers how, in
``network.architecture``.
"""

from collections.abc import Callable
from itertools import chain

import torch
from torch import Tensor, nn


def convolution(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    """Make a convolution without bias that keeps the size (over stride), BatchNorm and ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


class AllCNN(nn.Module):
    """The all-convolutional network of the zero-shot unlearning study (arXiv 2201.05629).

    Eight convolutions with BatchNorm and ReLU, two of them with stride 2, global average pooling
    and a linear read-out. ``width`` multiplies the 96 and 192 filters.
    """

    def __init__(self, *, width: float = 1.0, channels: int = 1, num_classes: int = 10) -> None:
        super().__init__()
        narrow, wide = (filters(width, base) for base in (96, 192))
        self.features = nn.Sequential(
            convolution(channels, narrow),
            convolution(narrow, narrow),
            convolution(narrow, narrow, stride=2),
            convolution(narrow, wide),
            convolution(wide, wide),
            convolution(wide, wide, stride=2),
            convolution(wide, wide),
            convolution(wide, wide, kernel=1),
        )
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.classifier = nn.Linear(wide, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.pool(self.features(images)))


def filters(width: float, base: int) -> int:
    """Scale a layer's number of filters by the width multiplier.

    Raises:
        ValueError: no filter would be left.
    """
    number = round(width * base) if width > 0 else 0
    if number < 1:
        raise ValueError(
            f"width {width} leaves no filter of {base}; give a width above 0, e.g. 0.125"
        )
    return number


class LeNet5(nn.Module):
    """LeNet-5 with ReLU and max pooling (LeCun et al. 1998), 61,706 parameters at width 1."""

    def __init__(self, *, width: float = 1.0, channels: int = 1, num_classes: int = 10) -> None:
        super().__init__()
        first, second, third, fourth = (filters(width, base) for base in (6, 16, 120, 84))
        self.features = nn.Sequential(
            nn.Conv2d(channels, first, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(first, second, 5),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
        )
        self.hidden = nn.Sequential(
            nn.Linear(second * 25, third), nn.ReLU(), nn.Linear(third, fourth), nn.ReLU()
        )
        self.classifier = nn.Linear(fourth, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.hidden(self.features(images)))


class Compact(nn.Module):
    """A small CNN whose curvature matrix fits in memory: 4,874 parameters at width 1.

    Two 5x5 convolutions with stride 2, max pooling and a linear read-out, for images of 28x28.
    The paddings 2 and 1 give maps of 14x14 and 6x6, so that pooling drops no row.
    """

    def __init__(self, *, width: float = 1.0, channels: int = 1, num_classes: int = 10) -> None:
        super().__init__()
        first, second = (filters(width, base) for base in (8, 16))
        self.features = nn.Sequential(
            nn.Conv2d(channels, first, 5, stride=2, padding=2),
            nn.ReLU(),
            nn.Conv2d(first, second, 5, stride=2, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
        )
        self.classifier = nn.Linear(second * 9, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.features(images))


class Logistic(nn.Module):
    """Multinomial logistic regression on pixels: the convex control of every estimator.

    ``side`` is the height and width of an image; ``width`` has no filters to multiply.
    """

    def __init__(
        self, *, width: float = 1.0, channels: int = 1, num_classes: int = 10, side: int = 28
    ) -> None:
        super().__init__()
        self.classifier = nn.Linear(channels * side**2, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(images.flatten(1))


class Residual(nn.Module):
    """Add to a map what two 3x3 convolutions make of it (He et al. 2016, figure 2)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = convolution(inputs, outputs, stride=stride)
        self.second = convolution(outputs, outputs)[:2]
        same = stride == 1 and inputs == outputs
        self.shortcut = (
            nn.Identity() if same else convolution(inputs, outputs, kernel=1, stride=stride)[:2]
        )
        self.act = nn.ReLU()

    def forward(self, maps: Tensor) -> Tensor:
        return self.act(self.second(self.first(maps)) + self.shortcut(maps))


class ResNet18(nn.Module):
    """ResNet-18 (He et al. 2016) for small images: a 3x3 stem with stride 1 and no max pooling.

    ``width`` multiplies the 64, 128, 256 and 512 filters.
    """

    def __init__(self, *, width: float = 1.0, channels: int = 1, num_classes: int = 10) -> None:
        super().__init__()
        outputs = [filters(width, base) for base in (64, 128, 256, 512)]
        inputs = [outputs[0], *outputs[:-1]]
        blocks = [
            [Residual(a, b, 1 if stage == 0 else 2), Residual(b, b, 1)]
            for stage, (a, b) in enumerate(zip(inputs, outputs, strict=True))
        ]
        self.features = nn.Sequential(convolution(channels, outputs[0]), *chain(*blocks))
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.classifier = nn.Linear(outputs[-1], num_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.pool(self.features(images)))


# ------------------------------------------------------------------------ vision transformer


def attend(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Compute ``softmax(Q K^T / sqrt(d_k)) V`` (Vaswani et al. 2017, equation 1).

    Args:
        queries: Q, ``[..., T, d_k]``.
        keys: K, ``[..., T, d_k]``.
        values: V, ``[..., T, d_v]``.

    Returns:
        ``[..., T, d_v]``: for each token the mean of the values, weighted by how well its query
        matches their keys.
    """
    scores = queries @ keys.transpose(-2, -1) / queries.shape[-1] ** 0.5
    return scores.softmax(-1) @ values


class MultiHeadAttention(nn.Module):
    """Attend in several subspaces at once and mix the results: ``[N, T, D]`` to ``[N, T, D]``."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.project = nn.Linear(dim, 3 * dim)
        self.mix = nn.Linear(dim, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        count, length, dim = tokens.shape
        projected = self.project(tokens).view(count, length, 3, self.heads, dim // self.heads)
        queries, keys, values = projected.permute(2, 0, 3, 1, 4)
        attended = attend(queries, keys, values).transpose(1, 2)
        return self.mix(attended.reshape(count, length, dim))


class EncoderBlock(nn.Module):
    """One pre-norm encoder block: attention, then a perceptron on each token, both residual."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.attention = nn.Sequential(nn.LayerNorm(dim), MultiHeadAttention(dim, heads))
        self.perceptron = nn.Sequential(
            nn.LayerNorm(dim), nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim)
        )

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.attention(tokens)
        return tokens + self.perceptron(tokens)


class ViT(nn.Module):
    """A compact vision transformer (Dosovitskiy et al. 2021) for images of 28x28.

    16 patches of 7x7, a class token, learned positions, 4 pre-norm blocks of 4 heads; the class
    token is read out. ``width`` multiplies the 16 channels of a head.
    """

    def __init__(self, *, width: float = 1.0, channels: int = 1, num_classes: int = 10) -> None:
        super().__init__()
        heads, patch, patches = 4, 7, 16
        dim = heads * filters(width, 16)
        self.embed = nn.Conv2d(channels, dim, patch, stride=patch)
        self.class_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.positions = nn.Parameter(0.02 * torch.randn(1, patches + 1, dim))
        self.blocks = nn.Sequential(*(EncoderBlock(dim, heads) for _ in range(4)))
        self.norm = nn.LayerNorm(dim)
        self.classifier = nn.Linear(dim, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        patches = self.embed(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_token.expand(len(images), -1, -1), patches], 1)
        tokens = self.blocks(tokens + self.positions)
        return self.classifier(self.norm(tokens[:, 0]))


# --------------------------------------------------------------------------------- by name


ARCHITECTURES: dict[str, Callable[..., nn.Module]] = {
    "allcnn": AllCNN,
    "lenet5": LeNet5,
    "compact": Compact,
    "logistic": Logistic,
    "resnet18": ResNet18,
    "vit": ViT,
}
TITLES = {  # for people
    "allcnn": "AllCNN",
    "lenet5": "LeNet-5",
    "compact": "compact CNN",
    "logistic": "logistic regression",
    "resnet18": "ResNet-18",
    "vit": "ViT",
}


def build(model: str, *, width: float = 1.0, channels: int = 1, num_classes: int = 10) -> nn.Module:
    """Build a freshly initialised classifier that remembers how it was built.

    Args:
        model: a name in `ARCHITECTURES`.
        width: multiplier of the filter counts, above 0.
        channels: channels of the images.
        num_classes: length of the logits.

    Raises:
        ValueError: unknown name, or a width that leaves a layer without filters.
    """
    if model not in ARCHITECTURES:
        raise ValueError(f"unknown model {model!r}; choose one of {sorted(ARCHITECTURES)}")
    options = {"width": float(width), "channels": channels, "num_classes": num_classes}
    network = ARCHITECTURES[model](**options)
    network.architecture = {"model": model, **options}
    return network.to(memory_format=torch.channels_last)


def fresh_like(network: nn.Module) -> nn.Module:
    """Build the same architecture with new random weights (a student, a retrained model)."""
    return build(**network.architecture)


def num_classes(network: nn.Module) -> int:
    """Return the length of the logits."""
    return network.architecture["num_classes"]
