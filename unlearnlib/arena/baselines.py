"""Simple ways to unlearn with the data at hand: what every new method must beat.

All take the items to forget and those that stay, and return an unlearned copy. None of them looks
at anything else.
"""

import copy
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unlearnlib.models import models, retraining
from unlearnlib.models.loops import batches, finite

Items = tuple[Tensor, Tensor]  # images [N, C, H, W] and labels [N]


def fine_tune(
    network: nn.Module,
    forgotten: Items,
    retained: Items,
    *,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    l2: float,
    seed: int,
) -> nn.Module:
    """Train on what stays, and trust that the rest fades (catastrophic forgetting).

    Args:
        network: the original model; stays as it is.
        forgotten: not looked at.
        retained: images and labels.
        epochs: passes over the retained items.
        batch_size: images a step.
        learning_rate: peak of the one-cycle rate of Adam.
        l2: λ of the objective.
        seed: of the order of the images.

    Raises:
        ValueError: no retained items.
        FloatingPointError: a loss that is not finite.
    """
    tuned = copy.deepcopy(network).requires_grad_(True)
    recipe = {"epochs": epochs, "batch_size": batch_size, "learning_rate": learning_rate}
    retraining.fit(tuned, *retained, **recipe, l2=l2, seed=seed)
    return tuned.eval()


def gradient_ascent(
    network: nn.Module,
    forgotten: Items,
    retained: Items,
    *,
    steps: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
) -> nn.Module:
    """Climb the loss of what is to be forgotten (NegGrad, Golatkar et al. 2020).

    Plain gradient steps; BatchNorm keeps its statistics. The climb ends early where the loss of a
    batch is above ``log K``, that of guessing: beyond it, the model would know what *not* to say.

    Args:
        network: the original model; stays as it is.
        forgotten: images and labels.
        retained: not looked at.
        steps: at most.
        batch_size: images a step.
        learning_rate: of gradient ascent.
        seed: of the order of the images.

    Raises:
        ValueError: no items to forget.
        FloatingPointError: a loss that is not finite.
    """
    images, labels = forgotten
    if len(images) == 0:
        raise ValueError("no items to forget, so no loss to climb; give at least one")
    moved = copy.deepcopy(network).to(models.device()).eval().requires_grad_(True)
    optimizer = torch.optim.SGD(moved.parameters(), lr=learning_rate, maximize=True)
    limit = math.log(models.num_classes(network))
    generator = torch.Generator().manual_seed(seed)
    for index in batches(len(images), batch_size=batch_size, steps=steps, generator=generator):
        logits = moved(images[index].to(models.device()))
        loss = F.cross_entropy(logits, labels[index].to(models.device()))
        if finite(loss) > limit:
            break
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    return moved


def random_labels(
    network: nn.Module,
    forgotten: Items,
    retained: Items,
    *,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    l2: float,
    seed: int,
) -> nn.Module:
    """Train on all items, those to forget with wrong labels drawn at random (Graves et al. 2021).

    A wrong label is one of the classes of the retained items, other than the true one, so that a
    forgotten class gets no image.

    Args:
        network: the original model; stays as it is.
        forgotten: images and labels.
        retained: images and labels.
        epochs: passes over all items.
        batch_size: images a step.
        learning_rate: peak of the one-cycle rate of Adam.
        l2: λ of the objective.
        seed: of the labels and the order of the images.

    Raises:
        ValueError: no item that stays, or none of another class.
        FloatingPointError: a loss that is not finite.
    """
    images, labels = forgotten
    classes = retained[1].unique()
    wrong = classes[None] != labels[:, None]
    if not wrong.any(1).all():
        raise ValueError("no class is left for a wrong label; keep items of at least two classes")
    generator = torch.Generator().manual_seed(seed)
    if len(labels):
        drawn = classes[torch.multinomial(wrong.double(), 1, generator=generator)[:, 0]]
    else:
        drawn = labels
    tuned = copy.deepcopy(network).requires_grad_(True)
    recipe = {"epochs": epochs, "batch_size": batch_size, "learning_rate": learning_rate}
    everything = torch.cat([images, retained[0]]), torch.cat([drawn, retained[1]])
    retraining.fit(tuned, *everything, **recipe, l2=l2, seed=seed)
    return tuned.eval()


BASELINES = {
    "fine_tune": fine_tune,
    "gradient_ascent": gradient_ascent,
    "random_labels": random_labels,
}
