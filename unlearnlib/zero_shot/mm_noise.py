"""Error minimisation-maximisation noise: unlearn a class by fine-tuning on learnt noise.

Chundawat et al., "Zero-Shot Machine Unlearning" (arXiv 2201.05629), section "Error
Minimization-Maximization Noise". Anti-samples N_f are learnt by gradient *ascent* on the loss of
their forget class, stand-ins N_r by descent on the loss of each retain class; the model is then
fine-tuned on both with their labels. A run reads the model and nothing else.
"""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unlearnlib.models import models
from unlearnlib.models.loops import batches, finite
from unlearnlib.pipeline.progress import track
from unlearnlib.zero_shot.generators import statistics_distance


@dataclass(frozen=True)
class Settings:
    """Hyper-parameters; the defaults are the plain method."""

    per_class: int = 256
    noise_steps: int = 200
    noise_rate: float = 0.1
    penalty: float = 0.1  # of the mean squared L2 norm of an image
    statistics_weight: float = 0.0  # of the BatchNorm-statistics distance in the loss of N_r
    freeze_statistics: bool = False  # BatchNorm normalises by the model's own running statistics
    steps: int = 40
    batch_size: int = 256
    rate: float = 0.02
    repair_steps: int = 40
    repair_rate: float = 0.01


def learn_noise(
    model: nn.Module,
    labels: Tensor,
    *,
    shape: tuple[int, int, int],
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

    Returns:
        noise ``[N, C, H, W]``, unbounded pixel values.
    """
    noise = torch.randn((len(labels), *shape), generator=generator).to(labels.device)
    noise.requires_grad_(True)
    weight = 0.0 if maximise else settings.statistics_weight
    norms = models.batch_norms(model) if weight else []
    optimizer = torch.optim.Adam([noise], lr=settings.noise_rate)
    for _ in track(range(settings.noise_steps), "noise"):
        with models.record_inputs(norms) as fed:
            error = F.cross_entropy(model(noise), labels)
        size = noise.square().sum((1, 2, 3)).mean()
        loss = (-error if maximise else error) + settings.penalty * size
        if weight:
            loss = loss + weight * statistics_distance(fed, norms)
        finite(loss)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
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
        for layer in models.batch_norms(model):
            layer.eval()
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    for index in batches(
        len(images), batch_size=settings.batch_size, steps=steps, generator=generator
    ):
        loss = F.cross_entropy(model(images[index]), labels[index])
        finite(loss)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()


def restore_statistics(model: nn.Module, original: nn.Module) -> nn.Module:
    """Copy a model, with the BatchNorm running statistics of the original put back.

    What this recovers of a collapsed model is what the drift of the statistics had cost.
    """
    restored = copy.deepcopy(model)
    for layer, source in zip(
        models.tracked_batch_norms(restored), models.tracked_batch_norms(original), strict=True
    ):
        layer.running_mean.copy_(source.running_mean)
        layer.running_var.copy_(source.running_var)
    return restored


def unlearn(
    model: nn.Module,
    *,
    forget_classes: list[int],
    num_classes: int,
    shape: tuple[int, int, int],
    settings: Settings,
    seed: int,
) -> dict[str, Any]:
    """Unlearn classes by M-M noise: fine-tune a copy on N_f ∪ N_r, then repair it on N_r.

    Returns:
        ``model`` (the unlearned copy), ``restored`` (the same with the original BatchNorm
        statistics), ``drift`` (‖Δ running mean‖₂ of each BatchNorm layer) and ``noise`` (some of
        the learnt images, with their ``noise_labels``).
    """
    generator = torch.Generator().manual_seed(seed)
    original = models.frozen(model)
    labels = torch.arange(num_classes).repeat_interleave(settings.per_class).to(models.device())
    forgotten = torch.isin(labels, torch.tensor(list(forget_classes), device=labels.device))
    options = {"shape": shape, "settings": settings, "generator": generator}
    noise = torch.empty((len(labels), *shape), device=labels.device)
    for part, maximise in ((forgotten, True), (~forgotten, False)):
        noise[part] = learn_noise(original, labels[part], maximise=maximise, **options)
    unlearned = copy.deepcopy(original)
    tuning = {"settings": settings, "generator": generator}
    tune(unlearned, noise, labels, steps=settings.steps, rate=settings.rate, **tuning)
    tune(
        unlearned,
        noise[~forgotten],
        labels[~forgotten],
        steps=settings.repair_steps,
        rate=settings.repair_rate,
        **tuning,
    )
    layers = (models.tracked_batch_norms(m) for m in (unlearned, original))
    pairs = zip(*layers, strict=True)
    return {
        "model": unlearned.eval(),
        "restored": restore_statistics(unlearned, original),
        "drift": [(a.running_mean - b.running_mean).norm().item() for a, b in pairs],
        "noise": noise[:: max(1, settings.per_class // 4)].cpu(),
        "noise_labels": labels[:: max(1, settings.per_class // 4)].cpu(),
    }


def run(spec: dict[str, Any]) -> dict[str, Any]:
    """Run one M-M unlearning of a sweep.

    Args:
        spec: ``original`` (file of the model), ``forget_classes``, ``seed``, ``settings``.

    Returns:
        what `unlearn` returns, with packed models.
    """
    model, shape = models.load_teacher(spec["original"], spec["forget_classes"])
    result = unlearn(
        model,
        forget_classes=spec["forget_classes"],
        num_classes=models.num_classes(model),
        shape=shape,
        settings=Settings(**spec["settings"]),
        seed=spec["seed"],
    )
    return result | {name: models.pack(result[name]) for name in ("model", "restored")}
