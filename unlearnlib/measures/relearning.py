"""How fast a model learns again what it is to have forgotten.

What is gone must be learned from nothing; what is merely hidden comes back in a few steps (relearn
time and the anamnesis index AIN, Chundawat et al. 2023b, "Zero-shot machine unlearning", section
5.1), and what lies dormant comes back without the items themselves (`returned_accuracy`). All of
it happens on a copy, so that later measures see the model as it was.
"""

import copy
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn
from torch.nn import functional as F

from unlearnlib.measures.accuracy import percent_correct
from unlearnlib.models import networks
from unlearnlib.models.loops import batches, descend
from unlearnlib.pipeline import seeds

Part = tuple[Tensor, Tensor]  # images [N, C, H, W] and labels [N]
WATCHED = 200  # forgotten items whose accuracy is watched, the first ones


@dataclass(frozen=True)
class Settings:
    """How a model is made to learn again, by Adam at a constant rate.

    Attributes:
        steps: mini-batches at most.
        batch_size: images of each half of a batch.
        learning_rate: of Adam.
    """

    steps: Annotated[int, Ge(1)]
    batch_size: Annotated[int, Ge(1)]
    learning_rate: Annotated[float, Gt(0)]


def relearning_curve(
    network: nn.Module,
    forgotten: Part,
    retained: Part,
    *,
    settings: Settings,
    seed: int,
    until: float = math.inf,
) -> list[float]:
    """Train a copy on what was forgotten and as many retained items, and watch the accuracy.

    Half of each batch is forgotten items, half retained ones, so that a model cannot win by giving
    every image the forgotten class. BatchNorm keeps its statistics.

    Args:
        network: the model; stays as it is.
        forgotten: images ``[M, C, H, W]`` and labels ``[M]`` to learn again.
        retained: the same of items that stayed.
        settings: see `Settings`.
        seed: of the order of the items.
        until: accuracy in percent on the watched items at which to stop.

    Returns:
        the accuracy in percent on the watched items after 0, 1, ... mini-batches, at most as many
        as the settings allow.

    Raises:
        ValueError: no items of a kind.
        FloatingPointError: a loss that is not finite.
    """
    if min(len(forgotten[0]), len(retained[0])) == 0:
        raise ValueError("no forgotten or no retained items to learn from; give some of both")
    learner = _learner(network)
    both = tuple(torch.cat(pair) for pair in zip(forgotten, retained, strict=True))
    curve = [watched_accuracy(learner, forgotten)]

    def watch(_: int) -> None:
        curve.append(watched_accuracy(learner, forgotten))

    order = _halves(len(forgotten[0]), len(retained[0]), settings=settings, seed=seed)
    rate = settings.learning_rate
    _learn(learner, both, order, rate=rate, after=watch, enough=lambda: curve[-1] >= until)
    return curve


def returned_accuracy(
    network: nn.Module, forgotten: Part, retained: Part, *, settings: Settings, seed: int
) -> float:
    """Train a copy on retained items alone, and ask what comes back of the forgotten ones.

    The tamper test of Siddiqui et al. 2025 (arXiv 2505.22310): no forgotten item is seen again, so
    that what a copy then knows of them was dormant, or follows from what stayed. A retrained model
    says how much follows. Batches are as large as in `relearning_curve`, and all steps are taken;
    BatchNorm keeps its statistics.

    Args:
        network: the model; stays as it is.
        forgotten: images ``[M, C, H, W]`` and labels ``[M]``, which are asked and never trained on.
        retained: the same of items that stayed.
        settings: see `Settings`; batches have twice ``batch_size`` images.
        seed: of the order of the items.

    Returns:
        the accuracy in percent on the forgotten items after the last step.

    Raises:
        ValueError: no items of a kind.
        FloatingPointError: a loss that is not finite.
    """
    if min(len(forgotten[0]), len(retained[0])) == 0:
        raise ValueError(
            "no forgotten items to ask, or no retained ones to learn; give some of both"
        )
    learner = _learner(network)
    order = batches(
        len(retained[0]), batch_size=2 * settings.batch_size, steps=settings.steps,
        generator=seeds.stream(seed, "order of retained items"),
    )  # fmt: skip
    _learn(learner, retained, order, rate=settings.learning_rate)
    return percent_correct(networks.predict(learner, forgotten[0]), forgotten[1])


def _learner(network: nn.Module) -> nn.Module:
    """Copy a model, to be trained in evaluation mode: BatchNorm keeps its statistics."""
    return copy.deepcopy(network).to(networks.device()).eval().requires_grad_(True)


def _learn(
    learner: nn.Module,
    items: Part,
    order: Iterable[Tensor],
    *,
    rate: float,
    after: Callable[[int], None] | None = None,
    enough: Callable[[], bool] = lambda: False,
) -> None:
    """Train a network in place by Adam on batches of items, until it is enough."""
    images, labels = items

    def loss_of(index: Tensor) -> Tensor | None:
        if enough():
            return None
        logits = learner(images[index].to(networks.device()))
        return F.cross_entropy(logits, labels[index].to(networks.device()))

    optimizer = torch.optim.Adam(learner.parameters(), lr=rate)
    descend(optimizer, order, loss_of, after=after, label="relearning")


def _halves(forgotten: int, retained: int, *, settings: Settings, seed: int) -> list[Tensor]:
    """Draw batches, half of each among the first items and half among those that follow them."""
    generator = seeds.stream(seed, "order of relearning")
    orders = [
        batches(count, batch_size=settings.batch_size, steps=settings.steps, generator=generator)
        for count in (forgotten, retained)
    ]
    return [torch.cat([a, forgotten + b]) for a, b in zip(*orders, strict=True)]


def watched_accuracy(network: nn.Module, forgotten: Part) -> float:
    """Compute the accuracy in percent on the items that are watched."""
    images, labels = (part[:WATCHED] for part in forgotten)
    return percent_correct(networks.predict(network, images), labels)


def goal(original: nn.Module, forgotten: Part, *, margin: float = 0.05) -> float:
    """Compute the accuracy at which a model counts as having learned again.

    Args:
        original: the model before unlearning.
        forgotten: images and labels as in `relearning_curve`; the first `WATCHED` are looked at.
        margin: α.

    Returns:
        ``(1 - α)`` times the original's accuracy, in percent.
    """
    return (1 - margin) * watched_accuracy(original, forgotten)


def relearn_time(curve: list[float], *, until: float) -> float:
    """Count the mini-batches until the accuracy is back.

    Args:
        curve: of `relearning_curve`.
        until: the accuracy to reach, of `goal`.

    Returns:
        mini-batches, 0 where the model never was below; infinite where the curve ends before.
    """
    reached = [step for step, value in enumerate(curve) if value >= until]
    return float(reached[0]) if reached else math.inf


def anamnesis_index(unlearned: float, retrained: float, *, cap: int) -> float:
    """Compute AIN, the relearn time of an unlearned model over that of the retrained one.

    1 is the best; below 1 something was left, above 1 the model resists more than one that never
    saw the data (the Streisand effect).

    Args:
        unlearned: mini-batches, of `relearn_time`; infinite ones count as `cap`.
        retrained: the same of the gold model.
        cap: mini-batches after which relearning was given up.

    Raises:
        ValueError: the retrained model needs no step, so that there is nothing to compare with.
    """
    if retrained == 0:
        raise ValueError(
            "the retrained model knows the items without a step, so AIN is not defined: they are "
            "like those that stayed"
        )
    return min(unlearned, cap) / min(retrained, cap)
