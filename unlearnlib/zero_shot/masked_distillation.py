"""Masked distillation: teach a model, on its own images, what it would say without some classes.

A data-free way to forget that starts from the trained model itself and not from a fresh student.
DeepInversion draws images of *every* class from the model, the forgotten ones too. On these images a
copy learns the original's answer with the forgotten classes masked out: their probability is zero
and the rest is scaled up to one, so that an image of a forgotten class gets the original's second
thoughts, as far as one can tell what a retrained model would say. A run reads the model and nothing
else.
"""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from unlearnlib.models import models
from unlearnlib.models.loops import batches, finite, one_cycle, shift
from unlearnlib.pipeline.progress import track
from unlearnlib.zero_shot import deep_inversion
from unlearnlib.zero_shot.gkt import divergence


@dataclass(frozen=True)
class Tuning:
    """Hyper-parameters of teaching the copy.

    Raises:
        ValueError: no step or no image in a batch.
    """

    steps: int = 300
    batch_size: int = 128
    rate: float = 3e-3  # peak of the one-cycle rate of Adam
    jitter: int = 2  # pixels

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; teaching needs at least 1")


def masked(logits: Tensor, forget_classes: list[int]) -> Tensor:
    """Take classes out of predictions: logits ``[N, K]`` whose softmax gives them nothing.

    Their logits are put 50 below the smallest one, a probability of less than e^-50 each, so that
    divergences stay finite.
    """
    out = logits.clone()
    out[:, forget_classes] = logits.min(1, keepdim=True).values - 50
    return out


def unlearn(
    model: nn.Module,
    *,
    forget_classes: list[int],
    num_classes: int,
    shape: tuple[int, int, int],
    synthesis: deep_inversion.Synthesis,
    tuning: Tuning,
    seed: int,
) -> nn.Module:
    """Unlearn classes by masked distillation of a copy on images drawn from the model.

    Args:
        model: maps images to logits; stays as it is.
        forget_classes: class numbers.
        num_classes: K.
        shape: ``(C, H, W)`` of an image.
        synthesis: how the images are drawn; ``per_class`` of all K classes.
        tuning: how the copy is taught.
        seed: of the images and their order.

    Returns:
        the unlearned copy, in evaluation mode.

    Raises:
        FloatingPointError: a loss that is not finite.
    """
    original = models.frozen(model)
    images, _ = deep_inversion.synthesise(
        original, forget_classes=[], num_classes=num_classes, shape=shape, settings=synthesis,
        seed=seed,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    learner = copy.deepcopy(original).requires_grad_(True).train()
    optimizer = torch.optim.Adam(learner.parameters(), lr=tuning.rate)
    schedule = one_cycle(optimizer, tuning.rate, steps=tuning.steps)
    order = batches(
        len(images), batch_size=tuning.batch_size, steps=tuning.steps, generator=generator
    )
    for index in track(list(order), "masked distillation"):
        x = shift(images[index].float() / 255, pixels=tuning.jitter, generator=generator)
        x = x.to(models.device())
        with torch.no_grad():
            wanted = masked(original(x), forget_classes)
        loss = divergence(wanted, learner(x))
        finite(loss)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
    return learner.eval()
