"""DeepInversion: draw images from a classifier alone, and distil it into a student on them.

Yin et al., "Dreaming to Distill" (arXiv 1912.08795): images are optimised until the teacher gives
them a wanted class and its BatchNorm layers see the statistics they remember. Only retain classes
are asked for, so the student never sees the forget classes. A run reads the teacher and nothing
else.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unlearnlib.models import models
from unlearnlib.models.loops import batches, finite, one_cycle, shift
from unlearnlib.pipeline.progress import track
from unlearnlib.zero_shot.generators import Generator, latents, statistics_distance, train_prior
from unlearnlib.zero_shot.gkt import divergence, gate


@dataclass(frozen=True)
class Synthesis:
    """Hyper-parameters of drawing the images."""

    per_class: int = 6000
    batch_size: int = 250  # images optimised together
    steps: int = 200
    rate: float = 0.05
    statistics_weight: float = 1.0  # α_bn
    variation_weight: float = 1e-3  # α_tv
    norm_weight: float = 1e-4  # α_2
    jitter: int = 2  # pixels
    prior_steps: int = 0  # > 0 starts from a generator trained by `generators.train_prior`
    prior_rate: float = 5e-3
    prior_batch: int = 128
    latent_size: int = 128
    generator_channels: int = 64


@dataclass(frozen=True)
class Distillation:
    """Hyper-parameters of distilling a student on the images."""

    per_class: int = 6000  # images used, the first of each class
    steps: int = 2500
    batch_size: int = 128
    rate: float = 5e-3  # peak of the one-cycle schedule
    jitter: int = 2  # pixels
    gate_threshold: float = 0.01  # the teacher gives C_f at most this probability

    def __post_init__(self) -> None:
        for name in ("per_class", "steps", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; distillation needs at least 1")


def total_variation(images: Tensor) -> Tensor:
    """Compute the mean over images of the summed squared differences of neighbouring pixels."""
    down = (images[..., 1:, :] - images[..., :-1, :]).square().sum((1, 2, 3))
    across = (images[..., 1:] - images[..., :-1]).square().sum((1, 2, 3))
    return (down + across).mean()


def inversion_loss(
    teacher: nn.Module, images: Tensor, labels: Tensor, *, settings: Synthesis
) -> Tensor:
    """Compute CE(T(x), y) + α_bn Σ_l(‖μ_l − μ̂_l‖ + ‖σ²_l − σ̂²_l‖) + α_tv TV(x) + α_2 ‖x‖².

    Means over the batch; equation 2 to 4 of the paper, with norms that are not squared.
    """
    norms = models.batch_norms(teacher) if settings.statistics_weight else []
    with models.record_inputs(norms) as fed:
        loss = F.cross_entropy(teacher(images), labels)
    loss = loss + settings.statistics_weight * statistics_distance(fed, norms)
    loss = loss + settings.variation_weight * total_variation(images)
    return loss + settings.norm_weight * images.square().sum((1, 2, 3)).mean()


def optimise(
    teacher: nn.Module,
    start: Tensor,
    labels: Tensor,
    *,
    settings: Synthesis,
    generator: torch.Generator,
) -> Tensor:
    """Optimise a batch of images by Adam with a cosine rate; pixels stay in [0, 1].

    Args:
        teacher: in evaluation mode, with BatchNorm running statistics.
        start: ``[N, C, H, W]``.
        labels: ``[N]``, the class each image is to become.
        generator: of the jitter.

    Returns:
        the images, ``[N, C, H, W]`` in [0, 1].
    """
    images = start.clone().requires_grad_(True)
    optimizer = torch.optim.Adam([images], lr=settings.rate, betas=(0.5, 0.9))
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.steps)
    for _ in range(settings.steps):
        shifted = shift(images, pixels=settings.jitter, generator=generator)
        loss = inversion_loss(teacher, shifted, labels, settings=settings)
        finite(loss)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rate.step()
        images.data.clamp_(0, 1)
    return images.detach()


def starts(
    teacher: nn.Module,
    *,
    retain_classes: list[int],
    shape: tuple[int, int, int],
    count: int,
    settings: Synthesis,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Make balanced starting images ``[count, C, H, W]`` and the labels they are to become.

    Without prior steps they are dark noise. With them they are draws of a generator that was
    trained on the teacher's statistics, labelled as the teacher sees them.
    """
    labels = torch.tensor(retain_classes).repeat(-(-count // len(retain_classes)))[:count]
    if not settings.prior_steps:
        return 0.3 * torch.rand((count, *shape), generator=generator), labels
    network = Generator(settings.latent_size, settings.generator_channels, shape, output="sigmoid")
    network.to(models.device()).train()
    train_prior(
        teacher,
        network,
        steps=settings.prior_steps,
        rate=settings.prior_rate,
        batch_size=settings.prior_batch,
        generator=generator,
    )
    return pick(teacher, network, labels, generator=generator), labels


@torch.no_grad()
def pick(
    teacher: nn.Module, network: Generator, labels: Tensor, *, generator: torch.Generator
) -> Tensor:
    """Draw an image for each label that the teacher sees so; any draw where 20 rounds find none."""
    network.eval()
    chosen, missing = (
        [None] * len(labels),
        {k: (labels == k).nonzero().flatten().tolist() for k in labels.unique().tolist()},
    )
    for _ in range(20 * -(-len(labels) // 1000)):
        drawn = network(latents(1000, network.latent_size, generator=generator))
        predicted = teacher(drawn).argmax(1).tolist()
        for image, label in zip(drawn.cpu(), predicted, strict=True):
            if missing.get(label):
                chosen[missing[label].pop()] = image
        if not any(missing.values()):
            break
    return torch.stack([image if c is None else c for c in chosen])


def synthesise(
    teacher: nn.Module,
    *,
    forget_classes: list[int],
    num_classes: int,
    shape: tuple[int, int, int],
    settings: Synthesis,
    seed: int,
) -> tuple[Tensor, Tensor]:
    """Draw `per_class` images of each retain class from the teacher.

    Returns:
        images ``[N, C, H, W]`` as bytes (0 ... 255) and the labels ``[N]`` they were drawn for,
        in an order in which every prefix is balanced.
    """
    teacher, generator = models.frozen(teacher), torch.Generator().manual_seed(seed)
    retain = [k for k in range(num_classes) if k not in forget_classes]
    count = settings.per_class * len(retain)
    options = {"shape": shape, "settings": settings, "generator": generator}
    images, labels = starts(teacher, retain_classes=retain, count=count, **options)
    chunks = list(
        zip(
            images.split(settings.batch_size),
            labels.split(settings.batch_size),
            strict=True,
        )
    )
    done = [
        optimise(
            teacher,
            x.to(models.device()),
            y.to(models.device()),
            settings=settings,
            generator=generator,
        ).cpu()
        for x, y in track(chunks, "inversion batches")
    ]
    return (torch.cat(done) * 255).round().to(torch.uint8), labels


def distil(
    teacher: nn.Module,
    images: Tensor,
    *,
    forget_classes: list[int],
    settings: Distillation,
    seed: int,
) -> tuple[nn.Module, list[float]]:
    """Distil the teacher into a fresh student on synthetic images ``[N, C, H, W]`` of bytes.

    Each batch is shifted at random and labelled anew by the teacher; images that it then gives to
    the forget classes are gated out, since they are what leaks. A batch that leaves fewer than two
    images is skipped.

    Returns:
        the student and its loss before each step that was taken.

    Raises:
        ValueError: no batch left two images.
        FloatingPointError: a loss that is not finite.
    """
    generator = torch.Generator().manual_seed(seed)
    teacher, student = (
        models.frozen(teacher),
        models.fresh_like(teacher).to(models.device()).train(),
    )
    optimizer = torch.optim.AdamW(student.parameters(), lr=settings.rate, weight_decay=1e-2)
    schedule = one_cycle(optimizer, settings.rate, steps=settings.steps)
    order = batches(
        len(images),
        batch_size=settings.batch_size,
        steps=settings.steps,
        generator=generator,
    )
    losses = []
    for index in track(list(order), "distillation"):
        x = shift(images[index].float() / 255, pixels=settings.jitter, generator=generator).to(
            models.device()
        )
        with torch.no_grad():
            logits = teacher(x)
        passes = gate(logits, forget_classes, threshold=settings.gate_threshold)
        if passes.sum() < 2:  # BatchNorm needs two
            continue
        loss = divergence(logits[passes], student(x[passes]))
        losses.append(finite(loss))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
    if not losses:
        raise ValueError(
            f"no batch with two images of which the teacher gives at most {settings.gate_threshold} "
            f"to the forget classes {list(forget_classes)}, so there is nothing to distil from; "
            "synthesise more images, with more steps, or raise gate_threshold"
        )
    return student, losses


def run_synthesis(spec: dict[str, Any]) -> dict[str, Any]:
    """Draw the images of one sweep entry.

    Args:
        spec: ``original`` (file of the teacher), ``forget_classes``, ``seed``, ``settings``
            (keywords of `Synthesis`).

    Returns:
        ``images`` ``[N, C, H, W]`` bytes and ``labels`` ``[N]``.
    """
    teacher, shape = models.load_teacher(spec["original"], spec["forget_classes"])
    images, labels = synthesise(
        teacher,
        forget_classes=spec["forget_classes"],
        num_classes=models.num_classes(teacher),
        shape=shape,
        settings=Synthesis(**spec["settings"]),
        seed=spec["seed"],
    )
    return {"images": images, "labels": labels}


def run_distillation(spec: dict[str, Any]) -> dict[str, Any]:
    """Distil a student on the first images of a class.

    Args:
        spec: ``original``, ``forget_classes`` and ``seed`` as in `run_synthesis`; ``settings``
            (keywords of `Distillation`); ``parts``, the number of files with synthetic images,
            named ``images_0``, ``images_1``, ...

    Raises:
        ValueError: the files hold fewer images of a class than ``settings`` ask for.

    Returns:
        ``model``, the packed student; ``losses``, the number of ``images`` and their share of the
        ``synthesis_seconds``.
    """
    teacher, _ = models.load_teacher(spec["original"], spec["forget_classes"])
    settings = Distillation(**spec["settings"])
    parts = [models.load_record(spec[f"images_{i}"]) for i in range(spec["parts"])]
    images = torch.cat([part["result"]["images"] for part in parts])
    labels = torch.cat([part["result"]["labels"] for part in parts])
    fewest = min((labels == k).sum().item() for k in labels.unique())
    if fewest < settings.per_class:
        raise ValueError(
            f"per_class is {settings.per_class}, but only {fewest} images of a class were drawn"
        )
    first = torch.cat([(labels == k).nonzero()[: settings.per_class, 0] for k in labels.unique()])
    student, losses = distil(
        teacher,
        images[first],
        forget_classes=spec["forget_classes"],
        settings=settings,
        seed=spec["seed"],
    )
    return {
        "model": models.pack(student),
        "losses": losses,
        "images": len(first),
        "synthesis_seconds": sum(p["seconds"] for p in parts) * len(first) / len(images),
    }
