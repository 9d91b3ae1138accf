"""Simple ways to unlearn with the data at hand: what every new method must beat.

All take the items to forget and those that stay, and return an unlearned copy. None of them looks
at anything else. To add one, write it and register it in `BASELINES`.
"""

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Annotated

import torch
from annotated_types import Ge, Gt, Le, Lt
from torch import Tensor, nn
from torch.nn import functional as F

from unlearnlib.data.requests import Method
from unlearnlib.influence import curvature
from unlearnlib.influence.curvature import Objective
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


@dataclass(frozen=True)
class Scrubbing:
    """How a copy is driven from its teacher on some items and held to it on others.

    What is not set is as published for a class (CIFAR-10, AllCNN).

    Attributes:
        epochs: passes over the retained items.
        max_epochs: of these, the first ones, before each of which goes a pass over the forgotten
            items that drives the copy away.
        batch_size: retained images a step.
        forget_batch_size: forgotten images a step.
        learning_rate: of stochastic gradient descent, constant.
        momentum: of it.
        alpha: α, weight of the divergence from the teacher on retained items.
        gamma: γ, weight of the cross-entropy on them.
        temperature: T that logits are divided by in every divergence, which then counts T² times.
        l2: λ, weight of ``‖θ‖²/2`` in the loss.

    Raises:
        ValueError: more passes that drive away than there are passes.
    """

    epochs: Annotated[int, Ge(1)] = 3
    max_epochs: Annotated[int, Ge(0)] = 2
    batch_size: Annotated[int, Ge(2)] = 256
    forget_batch_size: Annotated[int, Ge(2)] = 512
    learning_rate: Annotated[float, Gt(0)] = 5e-4
    momentum: Annotated[float, Ge(0), Lt(1)] = 0.9
    alpha: Annotated[float, Ge(0)] = 0.001
    gamma: Annotated[float, Ge(0)] = 0.99
    temperature: Annotated[float, Gt(0)] = 4.0
    l2: Annotated[float, Ge(0)] = 5e-4

    def __post_init__(self) -> None:
        if self.max_epochs > self.epochs:
            raise ValueError(
                f"max_epochs={self.max_epochs} of epochs={self.epochs}: give at most as many"
            )


@dataclass(frozen=True)
class Saliency(Recipe):
    """The recipe of random labelling, and which parameters it may move.

    Attributes:
        share: of all parameters, those with the largest gradients; 0.5 as published: above the
            median.
    """

    share: Annotated[float, Gt(0), Le(1)] = 0.5


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


def scrub(
    network: nn.Module, forgotten: Part, retained: Part, *, settings: Scrubbing, seed: int
) -> nn.Module:
    """Drive a copy from its teacher on what is to be forgotten, and hold it elsewhere (SCRUB).

    Kurmanji et al. (NeurIPS 2023, arXiv 2302.09880, equation 3), as in their code. In the first
    epochs a pass of *max-steps* over the forgotten items climbs d, the divergence of the copy from
    the frozen original; in every epoch a pass of *min-steps* over the retained items descends
    α d + γ times the cross-entropy. ``d = T² KL(softmax(z/T) ‖ softmax(z'/T))`` in nats, the mean
    over a batch, z the original's logits and z' the copy's. One optimiser takes all steps.

    Left out: rewinding (SCRUB+R, section 3.3), which goes back to the epoch whose error on the
    forgotten items is that on unseen ones of the same kind. It needs further data of that kind.

    Args:
        network: the original model; stays as it is.
        forgotten: images; the labels are not looked at.
        retained: images and labels.
        settings: see `Scrubbing`.
        seed: of the order of the images.

    Raises:
        ValueError: no items of a kind.
        FloatingPointError: a loss that is not finite.
    """
    count, place, heat = len(forgotten[0]), networks.device(), settings.temperature
    if min(count, len(retained[0])) == 0:
        raise ValueError("no forgotten or no retained items; SCRUB alternates between both")
    images, labels = (torch.cat(pair) for pair in zip(forgotten, retained, strict=True))
    teacher = networks.frozen(copy.deepcopy(network))
    student = copy.deepcopy(network).to(place).requires_grad_(True).train()
    optimizer = torch.optim.SGD(
        student.parameters(), lr=settings.learning_rate, momentum=settings.momentum,
        weight_decay=settings.l2,
    )  # fmt: skip

    def loss_of(index: Tensor) -> Tensor:
        x = images[index].to(place)
        with torch.no_grad():
            wanted = teacher(x)
        said = student(x)
        apart = heat**2 * losses.divergence(wanted / heat, said / heat)
        if index[0] < count:
            return -apart
        error = F.cross_entropy(said, labels[index].to(place))
        return settings.alpha * apart + settings.gamma * error

    order = _alternating(count, len(retained[0]), settings=settings, seed=seed)
    descend(optimizer, order, loss_of, label="SCRUB")
    return student.eval()


def _alternating(
    forgotten: int, retained: int, *, settings: Scrubbing, seed: int
) -> Iterator[Tensor]:
    """Yield the batches of SCRUB: positions, those of the retained items after the forgotten ones."""
    passes = {
        "forgotten": (forgotten, settings.forget_batch_size, settings.max_epochs),
        "retained": (retained, settings.batch_size, settings.epochs),
    }
    orders, steps = {}, {}
    for name, (count, size, epochs) in passes.items():
        steps[name] = max(1, count // size)
        orders[name] = batches(
            count, batch_size=size, steps=epochs * steps[name],
            generator=seeds.stream(seed, f"order of the {name} images"),
        )  # fmt: skip
    for epoch in range(settings.epochs):
        if epoch < settings.max_epochs:
            yield from (next(orders["forgotten"]) for _ in range(steps["forgotten"]))
        yield from (forgotten + next(orders["retained"]) for _ in range(steps["retained"]))


def salun(
    network: nn.Module, forgotten: Part, retained: Part, *, settings: Saliency, seed: int
) -> nn.Module:
    """Train on random labels as `random_labels` does, and move the salient parameters alone.

    Fan et al. (SalUn, ICLR 2024, arXiv 2310.12508, equations 3 to 5). All other parameters are put
    back before each pass of the network, so that neither Adam's momentum nor a penalty moves them;
    the statistics of BatchNorm, which are no parameters, follow the data. Labels are drawn once, as
    in the authors' code for CIFAR-100, and from the classes that stay, as in `random_labels`: the
    two differ in the mask alone.

    Args:
        network: the original model; stays as it is.
        forgotten: images and labels.
        retained: images and labels.
        settings: see `Saliency`, with λ of the objective.
        seed: of the labels and the order of the images.

    Raises:
        ValueError: no item to forget, none that stays, or none of another class.
        FloatingPointError: a loss that is not finite.
    """
    chosen = salient(network, forgotten, share=settings.share)
    wrong = _wrong_labels(forgotten[1], retained[1].unique(), seed=seed)
    images, labels = torch.cat([forgotten[0], retained[0]]), torch.cat([wrong, retained[1]])
    tuned = copy.deepcopy(network).to(networks.device()).requires_grad_(True)
    with _holding(tuned, ~chosen):
        training.fit(tuned, images, labels, recipe=settings, seed=seed)
    return tuned.eval()


def salient(network: nn.Module, forgotten: Part, *, share: float) -> Tensor:
    """Find the parameters with the largest gradients of the loss on what is to be forgotten.

    The gradient of the cross-entropy at the original in evaluation mode, as in the paper; the
    authors' code sums gradients along an epoch of ascent. Layers compete with one another.

    Args:
        network: the original model; stays as it is.
        forgotten: images and labels.
        share: of all parameters, see `Saliency`.

    Returns:
        bool ``[P]`` over the flat parameters, ``round(share P)`` of them true, at least one.

    Raises:
        ValueError: no items to forget.
    """
    if len(forgotten[0]) == 0:
        raise ValueError("no items to forget, so no gradient to choose by; give at least one")
    asked = copy.deepcopy(network).to(networks.device()).eval()
    sizes = curvature.gradient_sum(Objective(asked, *forgotten)).abs()
    order = sizes.argsort(descending=True, stable=True)
    chosen = torch.zeros_like(sizes, dtype=torch.bool)
    chosen[order[: max(1, round(share * len(sizes)))]] = True
    return chosen


@contextmanager
def _holding(network: nn.Module, held: Tensor) -> Iterator[None]:
    """Put the parameters that are `held`, bool ``[P]``, back before each pass and at the end."""
    start = curvature.flatten(network)

    def put_back(*_: object) -> None:
        curvature.assign(network, torch.where(held, start, curvature.flatten(network)))

    handle = network.register_forward_pre_hook(put_back)
    try:
        yield
    finally:
        handle.remove()
        put_back()


BASELINES: Registry[Baseline] = Registry(
    "baseline",
    Baseline("fine_tune", "fine-tuning", settings=Recipe, unlearn=fine_tune),
    Baseline("gradient_ascent", "gradient ascent", settings=Ascent, unlearn=gradient_ascent),
    Baseline("random_labels", "random labels", settings=Recipe, unlearn=random_labels),
    Baseline("delete", "DELETE", reads="the items to forget", settings=Erasure, unlearn=delete),
    Baseline("scrub", "SCRUB", settings=Scrubbing, unlearn=scrub),
    Baseline("salun", "SalUn", settings=Saliency, unlearn=salun),
)
