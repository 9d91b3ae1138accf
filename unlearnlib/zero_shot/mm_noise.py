"""Error minimisation-maximisation noise: unlearn a class by fine-tuning on learnt noise.

Chundawat et al., "Zero-Shot Machine Unlearning" (arXiv 2201.05629), section "Error
Minimization-Maximization Noise". Anti-samples N_f are learnt by gradient *ascent* on the loss of
their forget class, stand-ins N_r by descent on the loss of each retain class; the model is then
fine-tuned on both with their labels. A run reads the model and nothing else.
"""

import copy
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn
from torch.nn import functional as F

from unlearnlib.data.requests import Classes
from unlearnlib.models import architectures, checkpoints, networks
from unlearnlib.models.loops import batches, descend
from unlearnlib.pipeline import clock, seeds
from unlearnlib.zero_shot import losses, method
from unlearnlib.zero_shot.method import Need, Outcome, Shape, ZeroShot


@dataclass(frozen=True)
class Settings(method.Settings):
    """Hyper-parameters; the defaults are the plain method.

    Attributes:
        per_class: noise images of each class.
        noise_steps: of Adam on the noise.
        noise_rate: of Adam there.
        penalty: of the mean squared L2 norm of an image.
        statistics_weight: of the BatchNorm-statistics distance in the loss of N_r.
        freeze_statistics: BatchNorm normalises by the model's own running statistics.
        steps: of fine-tuning on N_f ∪ N_r.
        batch_size: noise images a fine-tuning step.
        rate: of Adam in fine-tuning.
        repair_steps: of fine-tuning on N_r alone.
        repair_rate: of Adam there.
    """

    per_class: Annotated[int, Ge(1)] = 256
    noise_steps: Annotated[int, Ge(0)] = 200
    noise_rate: Annotated[float, Gt(0)] = 0.1
    penalty: Annotated[float, Ge(0)] = 0.1
    statistics_weight: Annotated[float, Ge(0)] = 0.0
    freeze_statistics: bool = False
    steps: Annotated[int, Ge(1)] = 40
    batch_size: Annotated[int, Ge(1)] = 256
    rate: Annotated[float, Gt(0)] = 0.02
    repair_steps: Annotated[int, Ge(0)] = 40
    repair_rate: Annotated[float, Gt(0)] = 0.01

    @property
    def needs(self) -> tuple[Need, ...]:
        """BatchNorm statistics, for what mends the plain method."""
        return (method.statistics,) if self.statistics_weight or self.freeze_statistics else ()


def learn_noise(
    model: nn.Module,
    labels: Tensor,
    *,
    shape: Shape,
    maximise: bool,
    settings: Settings,
    generator: torch.Generator,
) -> Tensor:
    """Learn noise images that raise (`maximise`) or lower the model's loss for their labels.

    Minimises ∓CE(model(N), y) + penalty · mean ‖N‖² from standard normal noise; with a
    `statistics_weight`, the noise that lowers the loss also follows the BatchNorm statistics.

    Args:
        model: in evaluation mode.
        labels: ``[N]``.
        shape: ``(C, H, W)``.
        maximise: N_f, else N_r.
        settings: hyper-parameters.
        generator: of the noise at the start.

    Returns:
        noise ``[N, C, H, W]``, unbounded pixel values.
    """
    noise = torch.randn((len(labels), *shape), generator=generator).to(labels.device)
    noise.requires_grad_(True)
    weight = 0.0 if maximise else settings.statistics_weight
    norms = networks.batch_norms(model) if weight else []

    def loss_of(_: Tensor) -> Tensor:
        with networks.record_inputs(norms) as fed:
            error = F.cross_entropy(model(noise), labels)
        size = noise.square().sum((1, 2, 3)).mean()
        loss = (-error if maximise else error) + settings.penalty * size
        return loss + weight * losses.statistics_distance(fed, norms) if weight else loss

    everything = [torch.arange(len(labels))] * settings.noise_steps
    descend(torch.optim.Adam([noise], lr=settings.noise_rate), everything, loss_of, label="noise")
    return noise.detach()


def tune(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    steps: int,
    rate: float,
    settings: Settings,
    generator: torch.Generator,
) -> None:
    """Fine-tune a model in place on noise with its labels, by Adam."""
    model.train().requires_grad_(True)
    if settings.freeze_statistics:
        for layer in networks.batch_norms(model):
            layer.eval()
    descend(
        torch.optim.Adam(model.parameters(), lr=rate),
        batches(len(images), batch_size=settings.batch_size, steps=steps, generator=generator),
        lambda index: F.cross_entropy(model(images[index]), labels[index]),
        label="fine-tuning",
    )


def restore_statistics(model: nn.Module, original: nn.Module) -> nn.Module:
    """Copy a model, with the BatchNorm running statistics of the original put back.

    What this recovers of a collapsed model is what the drift of the statistics had cost.
    """
    restored = copy.deepcopy(model)
    for layer, source in zip(
        networks.tracked_batch_norms(restored), networks.tracked_batch_norms(original), strict=True
    ):
        layer.running_mean.copy_(source.running_mean)
        layer.running_var.copy_(source.running_var)
    return restored


def drift(model: nn.Module, original: nn.Module) -> list[float]:
    """Compute ‖Δ running mean‖₂ of each BatchNorm layer between two models."""
    layers = (networks.tracked_batch_norms(m) for m in (model, original))
    return [(a.running_mean - b.running_mean).norm().item() for a, b in zip(*layers, strict=True)]


def unlearn(
    model: nn.Module, request: Classes, *, shape: Shape, settings: Settings, seed: int
) -> Outcome:
    """Unlearn classes by M-M noise: fine-tune a copy on N_f ∪ N_r, then repair it on N_r.

    Args:
        model: maps images to logits; stays as it is, but for being frozen.
        request: the classes to forget.
        shape: ``(C, H, W)`` of an image.
        settings: hyper-parameters.
        seed: of the noise at the start and the order of fine-tuning.

    Returns:
        the unlearned copy and some of the noise of each class, with ``image_labels`` of these,
        ``restored`` (the packed copy with the original BatchNorm statistics) and ``drift`` of the
        statistics, a number a layer.

    Raises:
        FloatingPointError: a loss that is not finite.
        ValueError: a model without BatchNorm where the settings need its statistics.
    """
    original, count = networks.frozen(model), architectures.num_classes(model)
    labels = torch.arange(count).repeat_interleave(settings.per_class).to(networks.device())
    with clock.timed("noise"):
        noise = both_noises(original, request, labels, shape=shape, settings=settings, seed=seed)
    unlearned, stays = copy.deepcopy(original), ~request.mask(labels)
    options = {"settings": settings, "generator": seeds.stream(seed, "order of the noise")}
    tune(unlearned, noise, labels, steps=settings.steps, rate=settings.rate, **options)
    repair = {"steps": settings.repair_steps, "rate": settings.repair_rate}
    tune(unlearned, noise[stays], labels[stays], **repair, **options)
    some = slice(None, None, max(1, settings.per_class // 4))
    facts = {
        "image_labels": labels[some].cpu(),
        "restored": checkpoints.pack(restore_statistics(unlearned, original)),
        "drift": drift(unlearned, original),
    }
    return Outcome(unlearned.eval(), method.pictures(noise[some]), facts)


def both_noises(
    model: nn.Module,
    request: Classes,
    labels: Tensor,
    *,
    shape: Shape,
    settings: Settings,
    seed: int,
) -> Tensor:
    """Learn N_f and N_r: noise ``[N, C, H, W]`` for the labels ``[N]``, see `unlearn`."""
    generator, gone = seeds.stream(seed, "noise"), request.mask(labels)
    noise = torch.empty((len(labels), *shape), device=labels.device)
    for part, maximise in ((gone, True), (~gone, False)):
        noise[part] = learn_noise(
            model, labels[part], shape=shape, maximise=maximise, settings=settings,
            generator=generator,
        )  # fmt: skip
    return noise


METHOD = ZeroShot("mm_noise", "M-M noise", settings=Settings, unlearn=unlearn)
