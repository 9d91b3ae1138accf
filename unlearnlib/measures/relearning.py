"""How fast a model learns again what it is to have forgotten.

What is gone must be learned from nothing; what is merely hidden comes back in a few steps (relearn
time and the anamnesis index AIN, Chundawat et al. 2023b, "Zero-shot machine unlearning", section
5.1). All of it happens on a copy, so that later measures see the model as it was.
"""

import copy
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unlearnlib.models import models
from unlearnlib.models.loops import batches, finite

WATCHED = 200  # forgotten items whose accuracy is watched, the first ones


def relearning_curve(
    network: nn.Module,
    forgotten: tuple[Tensor, Tensor],
    retained: tuple[Tensor, Tensor],
    *,
    steps: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    until: float = math.inf,
) -> list[float]:
    """Train a copy on what was forgotten and as many retained items, and watch the accuracy.

    Half of each batch is forgotten items, half retained ones, so that a model cannot win by giving
    every image the forgotten class. BatchNorm keeps its statistics; Adam at a constant rate.

    Args:
        network: the model; stays as it is.
        forgotten: images ``[M, C, H, W]`` and labels ``[M]`` to learn again.
        retained: the same of items that stayed.
        steps: mini-batches.
        batch_size: images of each half.
        learning_rate: of Adam.
        seed: of the order of the items.
        until: accuracy in percent on the watched items at which to stop.

    Returns:
        the accuracy in percent on the watched items after 0, 1, ... mini-batches, at most `steps`.

    Raises:
        ValueError: no items of a kind.
        FloatingPointError: a loss that is not finite.
    """
    if min(len(forgotten[0]), len(retained[0])) == 0:
        raise ValueError("no forgotten or no retained items to learn from; give some of both")
    learner = copy.deepcopy(network).eval().requires_grad_(True)
    optimizer = torch.optim.Adam(learner.parameters(), lr=learning_rate)
    generator = torch.Generator().manual_seed(seed)
    orders = (
        batches(len(part[0]), batch_size=batch_size, steps=steps, generator=generator)
        for part in (forgotten, retained)
    )
    seen = [part[:WATCHED] for part in forgotten]
    curve = [_accuracy(learner, *seen)]
    for first, second in zip(*orders, strict=True):
        if curve[-1] >= until:
            break
        images = torch.cat([forgotten[0][first], retained[0][second]])
        labels = torch.cat([forgotten[1][first], retained[1][second]])
        loss = F.cross_entropy(learner(images.to(models.device())), labels.to(models.device()))
        finite(loss)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        curve.append(_accuracy(learner, *seen))
    return curve


@torch.no_grad()
def _accuracy(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    predicted = network(images.to(models.device())).argmax(1).cpu()
    return 100 * (predicted == labels).double().mean().item()


def goal(original: nn.Module, forgotten: tuple[Tensor, Tensor], *, margin: float = 0.05) -> float:
    """Compute the accuracy at which a model counts as having learned again.

    Args:
        original: the model before unlearning, in evaluation mode.
        forgotten: images and labels as in `relearning_curve`; the first `WATCHED` are looked at.
        margin: α.

    Returns:
        ``(1 - α)`` times the original's accuracy, in percent.
    """
    return (1 - margin) * _accuracy(original, *(part[:WATCHED] for part in forgotten))


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
