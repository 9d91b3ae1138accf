"""Masked distillation: teach a model, on its own images, what it would say without some classes.

A data-free way to forget that starts from the trained model itself and not from a fresh student.
DeepInversion draws images of *every* class from the model, the forgotten ones too. On these a copy
learns the original's answer with the forgotten classes masked out: their probability is zero
and the rest is scaled up to one, so that an image of a forgotten class gets the original's second
thoughts, as far as one can tell what a retrained model would say. A run reads the model and nothing
else.

The copy begins as the original, or elsewhere (`first`), which asks how much of what is left of a
class is left because the copy began with it.

The loss is that of DELETE (Zhou et al., "Decoupled Distillation to Erase", CVPR 2025, arXiv
2503.23751), there on the real images of the forgotten classes: see `arena.baselines.delete`. Ours are
the images, drawn from the model, of the classes that stay too, so that no data is needed.
"""

import copy
from dataclasses import dataclass, field
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor, nn

from unlearnlib.data.requests import Classes
from unlearnlib.models import architectures, networks
from unlearnlib.models.loops import batches, descend, one_cycle, shift
from unlearnlib.pipeline import clock, seeds
from unlearnlib.zero_shot import losses, method, read_out
from unlearnlib.zero_shot.deep_inversion import Synthesis, answers, synthesise
from unlearnlib.zero_shot.method import Need, Outcome, Shape, ZeroShot

SHOWN = 100  # images that an outcome keeps
Start = Literal["original", "class_row", "perturbed", "fresh"]


@dataclass(frozen=True)
class Tuning:
    """Hyper-parameters of teaching the copy.

    Attributes:
        steps: of Adam.
        batch_size: images a step.
        rate: peak of the one-cycle schedule.
        jitter: largest shift of a batch, in pixels.
        forget_weight: of the divergence on images that the original gives to the forgotten classes,
            added to that on all.
        freeze_statistics: whether BatchNorm keeps its statistics.
        start: what the copy begins as, see `first`.
        shrink: share of the original's weights in a ``perturbed`` start.

    Raises:
        ValueError: a fresh start whose statistics would stay those of no data.
    """

    steps: Annotated[int, Ge(1)] = 300
    batch_size: Annotated[int, Ge(1)] = 128
    rate: Annotated[float, Gt(0)] = 3e-3
    jitter: Annotated[int, Ge(0)] = 2
    forget_weight: Annotated[float, Ge(0)] = 0.0
    freeze_statistics: bool = False
    start: Start = "original"
    shrink: Annotated[float, Ge(0), Le(1)] = 0.5

    def __post_init__(self) -> None:
        if self.start == "fresh" and self.freeze_statistics:
            raise ValueError(
                "start='fresh' with freeze_statistics=True: a fresh network has no statistics to "
                "keep; give False"
            )


@dataclass(frozen=True)
class Settings(method.Settings):
    """Hyper-parameters of the method; ``synthesis.per_class`` counts images of all K classes."""

    synthesis: Synthesis = field(default_factory=Synthesis)
    tuning: Tuning = field(default_factory=Tuning)

    @property
    def needs(self) -> tuple[Need, ...]:
        """Those of the synthesis, and for new rows a linear read-out."""
        rows = (read_out.linear_read_out,) if self.tuning.start == "class_row" else ()
        return (*self.synthesis.needs, *rows)


def first(
    original: nn.Module, request: Classes, *, shape: Shape, tuning: Tuning, seed: int
) -> nn.Module:
    """Make what the copy begins as.

    * ``original``: the model itself.
    * ``class_row``: the model, the forgotten classes' rows of its read-out drawn anew, see
      `read_out.random_class_row`.
    * ``perturbed``: shrink and perturb (Ash and Adams, NeurIPS 2020, arXiv 1910.08475), every
      parameter ``shrink θ + (1 - shrink) θ'`` with those of a fresh network θ' as the noise;
      BatchNorm's statistics stay the model's.
    * ``fresh``: that fresh network, as a student that never was the model.

    Args:
        original: maps images to logits; stays as it is.
        request: the classes to forget.
        shape: ``(C, H, W)`` of an image.
        tuning: hyper-parameters.
        seed: of what is drawn anew.

    Raises:
        ValueError: new rows for a model without a linear read-out.
    """
    if tuning.start == "original":
        return copy.deepcopy(original)
    if tuning.start == "class_row":
        none = read_out.Settings()
        return read_out.random_class_row(
            original, request, shape=shape, settings=none, seed=seed
        ).network
    with method.drawn_by(seed, "first weights"):
        fresh = architectures.fresh_like(original).to(networks.device())
    if tuning.start == "fresh":
        return fresh
    perturbed = copy.deepcopy(original)
    with torch.no_grad():
        for own, other in zip(perturbed.parameters(), fresh.parameters(), strict=True):
            own.copy_(torch.lerp(other, own, tuning.shrink))
    return perturbed


def teach(
    original: nn.Module, images: Tensor, request: Classes, *, tuning: Tuning, seed: int
) -> tuple[nn.Module, list[float]]:
    """Teach a copy of a model its own answers without some classes.

    Args:
        original: maps images to logits; frozen.
        images: bytes ``[N, C, H, W]``.
        request: classes to take out of the answers.
        tuning: hyper-parameters.
        seed: of the order of the images and their shifts, and of what the copy begins with.

    Returns:
        the copy, in evaluation mode, and its loss before each step.

    Raises:
        FloatingPointError: a loss that is not finite.
        ValueError: what `first` raises.
    """
    generator = seeds.stream(seed, "order of the images")
    learner = first(original, request, shape=tuple(images.shape[1:]), tuning=tuning, seed=seed)
    learner.requires_grad_(True).train(not tuning.freeze_statistics)
    optimizer = torch.optim.Adam(learner.parameters(), lr=tuning.rate)

    def loss_of(index: Tensor) -> Tensor:
        x = shift(images[index].float() / 255, pixels=tuning.jitter, generator=generator)
        logits, said = answers(original, x := x.to(networks.device())), learner(x)
        wanted, gone = losses.masked(logits, request), request.mask(logits.argmax(1))
        loss = losses.divergence(wanted, said)
        if tuning.forget_weight and gone.any():
            loss = loss + tuning.forget_weight * losses.divergence(wanted[gone], said[gone])
        return loss

    taken = descend(
        optimizer,
        batches(len(images), batch_size=tuning.batch_size, steps=tuning.steps, generator=generator),
        loss_of,
        schedule=one_cycle(optimizer, tuning.rate, steps=tuning.steps),
        label="masked distillation",
    )
    return learner.eval(), taken


def unlearn(
    model: nn.Module, request: Classes, *, shape: Shape, settings: Settings, seed: int
) -> Outcome:
    """Unlearn classes by masked distillation of a copy on images drawn from the model.

    Args:
        model: maps images to logits; stays as it is, but for being frozen.
        request: the classes to forget.
        shape: ``(C, H, W)`` of an image.
        settings: hyper-parameters.
        seed: of the images and their order.

    Returns:
        the unlearned copy and the first images, with ``image_labels`` of these, the class that the
        model gives to each, and its ``confidence`` in it, and ``losses`` by step.

    Raises:
        FloatingPointError: a loss that is not finite.
        ValueError: a model that does not meet the needs of the settings.
    """
    original = networks.frozen(model)
    everything = range(architectures.num_classes(model))
    with clock.timed("synthesis"):
        images, _ = synthesise(
            original, everything, shape=shape, settings=settings.synthesis, seed=seed
        )
    learner, taken = teach(original, images, request, tuning=settings.tuning, seed=seed)
    shown = images[:SHOWN]
    confidence, labels = networks.predict(original, shown / 255).softmax(1).max(1)
    facts = {"image_labels": labels, "confidence": confidence, "losses": taken}
    return Outcome(learner, shown, facts)


METHOD = ZeroShot("masked_distillation", "Masked distillation", settings=Settings, unlearn=unlearn)
