"""Simple ways to unlearn with the data at hand: what every new method must beat.

All take the items to forget and those that stay, and return an unlearned copy. None of them looks
at anything else. To add one, write it and register it in `BASELINES`.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated

import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor, nn
from torch.nn import functional as F

from unlearnlib.data.requests import Method
from unlearnlib.models import architectures, networks, training
from unlearnlib.models.loops import batches, descend, finite
from unlearnlib.models.training import Recipe
from unlearnlib.pipeline import seeds
from unlearnlib.pipeline.registry import Registry
from unlearnlib.zero_shot import losses

Part = tuple[Tensor, Tensor]  # images [N, C, H, W] and labels [N]


@dataclass(frozen=True, kw_only=True)
class Baseline(Method):
    """Say how a baseline with data is called.

    Attributes:
        settings: class of its settings; where they have an ``l2``, it is λ of the objective.
        unlearn: ``unlearn(network, forgotten, retained, *, settings, seed) -> network``, the
            original model and images with labels to an unlearned copy in evaluation mode.
    """

    family: str = "data"
    reads: str = field(default="the items to forget and some that stay", compare=False)
    settings: type
    unlearn: Callable[..., nn.Module]


@dataclass(frozen=True)
class Ascent:
    """How far to climb the loss of what is to be forgotten.

    Attributes:
        steps: at most.
        batch_size: images a step.
        learning_rate: of gradient ascent.
    """

    steps: Annotated[int, Ge(1)]
    batch_size: Annotated[int, Ge(1)]
    learning_rate: Annotated[float, Gt(0)]


@dataclass(frozen=True)
class Erasure:
    """How a copy is taught its own answers without the labels; what is not set is as published.

    Attributes:
        epochs: passes over what is to be forgotten.
        batch_size: images a step.
        learning_rate: of stochastic gradient descent.
        momentum: of it.
        freeze_statistics: whether BatchNorm keeps its statistics; an option of the published code.
    """

    epochs: Annotated[int, Ge(1)] = 20
    batch_size: Annotated[int, Ge(2)] = 128
    learning_rate: Annotated[float, Gt(0)] = 1e-3
    momentum: Annotated[float, Ge(0), Lt(1)] = 0.9
    freeze_statistics: bool = False


def fine_tune(
    network: nn.Module, forgotten: Part, retained: Part, *, settings: Recipe, seed: int
) -> nn.Module:
    """Train on what stays, and trust that the rest fades (catastrophic forgetting).

    Args:
        network: the original model; stays as it is.
        forgotten: not looked at.
        retained: images and labels.
        settings: of the training, with λ of the objective.
        seed: of the order of the images.

    Raises:
        ValueError: no retained items.
        FloatingPointError: a loss that is not finite.
    """
    tuned = copy.deepcopy(network).requires_grad_(True)
    training.fit(tuned, *retained, recipe=settings, seed=seed)
    return tuned.eval()


def gradient_ascent(
    network: nn.Module, forgotten: Part, retained: Part, *, settings: Ascent, seed: int
) -> nn.Module:
    """Climb the loss of what is to be forgotten (NegGrad, Golatkar et al. 2020).

    Plain gradient steps; BatchNorm keeps its statistics. The climb ends early where the loss of a
    batch is above ``log K``, that of guessing: beyond it, the model would know what *not* to say.

    Args:
        network: the original model; stays as it is.
        forgotten: images and labels.
        retained: not looked at.
        settings: see `Ascent`.
        seed: of the order of the images.

    Raises:
        ValueError: no items to forget.
        FloatingPointError: a loss that is not finite.
    """
    images, labels = forgotten
    if len(images) == 0:
        raise ValueError("no items to forget, so no loss to climb; give at least one")
    moved = copy.deepcopy(network).to(networks.device()).eval().requires_grad_(True)
    optimizer = torch.optim.SGD(moved.parameters(), lr=settings.learning_rate, maximize=True)
    limit, arrived = math.log(architectures.num_classes(network)), False

    def loss_of(index: Tensor) -> Tensor | None:
        nonlocal arrived
        if arrived:
            return None
        logits = moved(images[index].to(networks.device()))
        loss = F.cross_entropy(logits, labels[index].to(networks.device()))
        arrived = finite(loss) > limit
        return None if arrived else loss

    order = batches(
        len(images), batch_size=settings.batch_size, steps=settings.steps,
        generator=seeds.stream(seed, "order of the images"),
    )  # fmt: skip
    descend(optimizer, order, loss_of, label="gradient ascent")
    return moved


def random_labels(
    network: nn.Module, forgotten: Part, retained: Part, *, settings: Recipe, seed: int
) -> nn.Module:
    """Train on all items, those to forget with wrong labels drawn at random (Graves et al. 2021).

    A wrong label is one of the classes of the retained items, other than the true one, so that a
    forgotten class gets no image.

    Args:
        network: the original model; stays as it is.
        forgotten: images and labels.
        retained: images and labels.
        settings: of the training, with λ of the objective.
        seed: of the labels and the order of the images.

    Raises:
        ValueError: no item that stays, or none of another class.
        FloatingPointError: a loss that is not finite.
    """
    wrong = _wrong_labels(forgotten[1], retained[1].unique(), seed=seed)
    images, labels = torch.cat([forgotten[0], retained[0]]), torch.cat([wrong, retained[1]])
    tuned = copy.deepcopy(network).requires_grad_(True)
    training.fit(tuned, images, labels, recipe=settings, seed=seed)
    return tuned.eval()


def _wrong_labels(labels: Tensor, classes: Tensor, *, seed: int) -> Tensor:
    """Draw for each label ``[N]`` another one of some classes ``[K]``."""
    wrong = classes[None] != labels[:, None]
    if not wrong.any(1).all():
        raise ValueError("no class is left for a wrong label; keep items of at least two classes")
    if len(labels) == 0:
        return labels
    generator = seeds.stream(seed, "wrong labels")
    return classes[torch.multinomial(wrong.double(), 1, generator=generator)[:, 0]]


def delete(
    network: nn.Module, forgotten: Part, retained: Part, *, settings: Erasure, seed: int
) -> nn.Module:
    """Distil a copy on what is to be forgotten, the label of each image masked (DELETE).

    Zhou et al. (CVPR 2025, arXiv 2503.23751), as in their code: KL(softmax(mask(z)) ‖ p) in nats,
    the mean over a batch, where z are the logits of the frozen original with that of the image's
    label put to -1e10, and p is what the copy says. Masked distillation has this loss on images that
    are drawn from the model (`zero_shot.masked_distillation`).

    Args:
        network: the original model; stays as it is.
        forgotten: images and labels.
        retained: not looked at.
        settings: see `Erasure`.
        seed: of the order of the images.

    Raises:
        ValueError: no items to forget.
        FloatingPointError: a loss that is not finite.
    """
    images, labels = forgotten
    if len(images) == 0:
        raise ValueError("no items to forget, so nothing to distil on; give at least one")
    place = networks.device()
    original = networks.frozen(copy.deepcopy(network))
    learner = copy.deepcopy(network).to(place).requires_grad_(True)
    learner.train(not settings.freeze_statistics)
    momentum = settings.momentum
    optimizer = torch.optim.SGD(learner.parameters(), lr=settings.learning_rate, momentum=momentum)

    def loss_of(index: Tensor) -> Tensor:
        x, own = images[index].to(place), labels[index, None].to(place)
        with torch.no_grad():
            wanted = original(x).scatter(1, own, -1e10)
        return losses.divergence(wanted, learner(x))

    steps = settings.epochs * max(1, len(images) // settings.batch_size)
    order = batches(
        len(images), batch_size=settings.batch_size, steps=steps,
        generator=seeds.stream(seed, "order of the images"),
    )  # fmt: skip
    descend(optimizer, order, loss_of, label="DELETE")
    return learner.eval()


BASELINES: Registry[Baseline] = Registry(
    "baseline",
    Baseline("fine_tune", "fine-tuning", settings=Recipe, unlearn=fine_tune),
    Baseline("gradient_ascent", "gradient ascent", settings=Ascent, unlearn=gradient_ascent),
    Baseline("random_labels", "random labels", settings=Recipe, unlearn=random_labels),
    Baseline("delete", "DELETE", reads="the items to forget", settings=Erasure, unlearn=delete),
)
