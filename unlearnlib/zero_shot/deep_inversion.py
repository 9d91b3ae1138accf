"""DeepInversion: draw images from a classifier alone, and distil it into a student on them.

Yin et al., "Dreaming to Distill" (arXiv 1912.08795): images are optimised until the teacher gives
them a wanted class and its BatchNorm layers see the statistics they remember. Only retain classes
are asked for, so the student never sees the forget classes. A run reads the teacher and nothing
else.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
from annotated_types import Ge, Gt, Le, Lt
from torch import Tensor, nn
from torch.nn import functional as F

from unlearnlib.data.requests import Classes
from unlearnlib.models import architectures, networks
from unlearnlib.models.loops import batches, descend, finite, one_cycle, shift
from unlearnlib.pipeline import clock, seeds
from unlearnlib.pipeline.parameters import merged
from unlearnlib.pipeline.progress import track
from unlearnlib.zero_shot import losses, method
from unlearnlib.zero_shot.augmentation import distort
from unlearnlib.zero_shot.batch_statistics import Observed
from unlearnlib.zero_shot.generators import Generator, latents, train_prior
from unlearnlib.zero_shot.method import Need, Outcome, Shape, ZeroShot

SHOWN = 5  # images of each class that an outcome keeps


@dataclass(frozen=True)
class Synthesis(method.Settings):
    """Hyper-parameters of drawing the images.

    Attributes:
        per_class: images of each class.
        batch_size: images optimised together.
        steps: of Adam on the images.
        rate: of Adam at the start of a cosine.
        statistics_weight: α_bn.
        variation_weight: α_tv.
        norm_weight: α_2.
        jitter: largest shift of a batch, in pixels.
        balanced: as many images start as each class as are wanted of it. Else they start as they
            are drawn, and are to become what the teacher sees in them.
        prior_steps: of `generators.train_prior`; above 0 the images start from its draws.
        prior_rate: of Adam there.
        prior_batch: latents a step there.
        latent_size: of that generator.
        generator_channels: of that generator.
    """

    per_class: Annotated[int, Ge(1)] = 6000
    batch_size: Annotated[int, Ge(1)] = 250
    steps: Annotated[int, Ge(1)] = 200
    rate: Annotated[float, Gt(0)] = 0.05
    statistics_weight: Annotated[float, Ge(0)] = 1.0
    variation_weight: Annotated[float, Ge(0)] = 1e-3
    norm_weight: Annotated[float, Ge(0)] = 1e-4
    jitter: Annotated[int, Ge(0)] = 2
    balanced: bool = True
    prior_steps: Annotated[int, Ge(0)] = 0
    prior_rate: Annotated[float, Gt(0)] = 5e-3
    prior_batch: Annotated[int, Ge(2)] = 128
    latent_size: Annotated[int, Ge(1)] = 128
    generator_channels: Annotated[int, Ge(2)] = 64

    @property
    def needs(self) -> tuple[Need, ...]:
        """BatchNorm statistics, and sides that can be drawn where there is a prior."""
        reads_statistics = bool(self.prior_steps or self.statistics_weight)
        asked = {method.statistics: reads_statistics, method.drawing: self.prior_steps > 0}
        return tuple(need for need, wanted in asked.items() if wanted)


@dataclass(frozen=True)
class Distillation:
    """Hyper-parameters of distilling a student on the images.

    Attributes:
        steps: of AdamW.
        batch_size: images a step, of which the gate takes some away.
        rate: peak of the one-cycle schedule.
        jitter: largest shift of a batch, in pixels.
        rotation: largest angle of an image in degrees, see `augmentation.distort`.
        scaling: largest relative change of its size.
        shear: largest slant.
        gate_threshold: the teacher gives C_f at most this probability.
        fresh_labels: the teacher labels each batch anew, as it was moved. Else it labels each image once, as
            it was drawn, and the gate goes by that.
    """

    steps: Annotated[int, Ge(1)] = 2500
    batch_size: Annotated[int, Ge(2)] = 128
    rate: Annotated[float, Gt(0)] = 5e-3
    jitter: Annotated[int, Ge(0)] = 2
    rotation: Annotated[float, Ge(0), Le(180)] = 0.0
    scaling: Annotated[float, Ge(0), Lt(1)] = 0.0
    shear: Annotated[float, Ge(0)] = 0.0
    gate_threshold: Annotated[float, Ge(0), Le(1)] = 0.01
    fresh_labels: bool = True


@dataclass(frozen=True)
class Settings(method.Settings):
    """Hyper-parameters of the method: how the images are drawn, and what is done with them."""

    synthesis: Synthesis = field(default_factory=Synthesis)
    distillation: Distillation = field(default_factory=Distillation)

    @property
    def needs(self) -> tuple[Need, ...]:
        """Those of the synthesis."""
        return self.synthesis.needs


# --------------------------------------------------------------------------------- the images


def inversion_loss(
    teacher: Observed, images: Tensor, labels: Tensor, *, settings: Synthesis
) -> Tensor:
    """Compute CE(T(x), y) + α_bn Σ_l(‖μ_l − μ̂_l‖ + ‖σ²_l − σ̂²_l‖) + α_tv TV(x) + α_2 ‖x‖².

    Means over the batch; equation 2 to 4 of the paper, with norms that are not squared.
    """
    logits, distance = teacher(images)
    loss = F.cross_entropy(logits, labels) + settings.statistics_weight * distance
    loss = loss + settings.variation_weight * losses.total_variation(images)
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
    observed = Observed(teacher, weight=settings.statistics_weight)
    optimizer = torch.optim.Adam([images], lr=settings.rate, betas=(0.5, 0.9), fused=True)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.steps)
    for _ in range(settings.steps):
        shifted = shift(images, pixels=settings.jitter, generator=generator)
        loss = inversion_loss(observed, shifted, labels, settings=settings)
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
    classes: Sequence[int],
    shape: Shape,
    count: int,
    settings: Synthesis,
    seed: int,
) -> tuple[Tensor, Tensor]:
    """Make starting images ``[count, C, H, W]`` and the labels they are to become.

    Without prior steps they are dark noise, and the labels balanced or drawn at random. With them
    they are draws of a generator that was trained on the teacher's statistics, picked so that the
    labels balance, or as they come.
    """
    labels = torch.tensor(list(classes)).repeat(-(-count // len(classes)))[:count]
    generator = seeds.stream(seed, "starting images")
    if not settings.prior_steps:
        if not settings.balanced:
            labels = labels[torch.randint(len(labels), labels.shape, generator=generator)]
        return 0.3 * torch.rand((count, *shape), generator=generator), labels
    with clock.timed("prior"):
        network = prior_of(teacher, shape=shape, settings=settings, seed=seed)
    if settings.balanced:
        return pick(teacher, network, labels, generator=generator), labels
    return as_they_come(teacher, network, classes, count=count, generator=generator)


def prior_of(teacher: nn.Module, *, shape: Shape, settings: Synthesis, seed: int) -> Generator:
    """Train a fresh generator of pixels in [0, 1] on the teacher's statistics."""
    with method.drawn_by(seed, "first weights of the generator"):
        network = Generator(
            settings.latent_size, settings.generator_channels, shape, output="sigmoid"
        )
    network.to(networks.device()).train()
    train_prior(
        teacher,
        network,
        steps=settings.prior_steps,
        rate=settings.prior_rate,
        batch_size=settings.prior_batch,
        generator=seeds.stream(seed, "latents of the prior"),
    )
    return network


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


@torch.no_grad()
def as_they_come(
    teacher: nn.Module,
    network: Generator,
    classes: Sequence[int],
    *,
    count: int,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Draw images that the teacher sees as one of some classes, however many of each there are.

    Returns:
        the first `count` such draws and what the teacher sees in them.

    Raises:
        ValueError: the teacher sees too few draws so.
    """
    network.eval()
    images, labels, wanted = [], [], torch.tensor(list(classes))
    for _ in range(20 * -(-count // 1000)):
        drawn = network(latents(1000, network.latent_size, generator=generator))
        seen = teacher(drawn).argmax(1).cpu()
        kept = torch.isin(seen, wanted)
        images.append(drawn.cpu()[kept])
        labels.append(seen[kept])
        if sum(map(len, labels)) >= count:
            return torch.cat(images)[:count], torch.cat(labels)[:count]
    raise ValueError(
        f"the teacher sees {sum(map(len, labels))} of {1000 * len(labels)} draws as one of the classes "
        f"{list(classes)}, fewer than {count}; give the prior more steps"
    )


def synthesise(
    teacher: nn.Module, classes: Sequence[int], *, shape: Shape, settings: Synthesis, seed: int
) -> tuple[Tensor, Tensor]:
    """Draw `per_class` images of each of some classes from the teacher.

    Args:
        teacher: maps images to logits; frozen.
        classes: class numbers to draw.
        shape: ``(C, H, W)`` of an image.
        settings: hyper-parameters.
        seed: of all that is drawn.

    Returns:
        images ``[N, C, H, W]`` as bytes (0 ... 255) and the labels ``[N]`` they were drawn for,
        in an order in which every prefix is balanced, unless the settings leave the balance open.

    Raises:
        FloatingPointError: a loss that is not finite.
        ValueError: a teacher that does not meet the needs of the settings.
    """
    networks.frozen(teacher)
    images, labels = starts(
        teacher, classes=classes, shape=shape, count=settings.per_class * len(classes),
        settings=settings, seed=seed,
    )  # fmt: skip
    generator, place = seeds.stream(seed, "jitter of the images"), networks.device()
    parts = (images.split(settings.batch_size), labels.split(settings.batch_size))
    done = [
        optimise(teacher, x.to(place), y.to(place), settings=settings, generator=generator).cpu()
        for x, y in track(list(zip(*parts, strict=True)), "inversion batches")
    ]
    return (torch.cat(done) * 255).round().to(torch.uint8), labels


# ----------------------------------------------------------------------------------- the student


def distil(
    teacher: nn.Module, images: Tensor, request: Classes, *, settings: Distillation, seed: int
) -> tuple[nn.Module, list[float]]:
    """Distil the teacher into a fresh student on synthetic images ``[N, C, H, W]`` of bytes.

    Each batch is moved at random and labelled anew by the teacher, see `Distillation`; images that
    it then gives to the forget classes are gated out, since they are what leaks. A batch that leaves
    fewer than two images is skipped.

    Args:
        teacher: maps images to logits; frozen.
        images: bytes.
        request: the forget classes.
        settings: hyper-parameters.
        seed: of the student's first weights, the order of the images and how they are moved.

    Returns:
        the student, in evaluation mode, and its loss before each step that was taken.

    Raises:
        ValueError: no batch left two images.
        FloatingPointError: a loss that is not finite.
    """
    asked = networks.folded(networks.frozen(teacher))
    with method.drawn_by(seed, "first weights of the student"):
        student = architectures.fresh_like(teacher).to(networks.device()).train()
    decay = {"weight_decay": 1e-2, "fused": True}
    optimizer = torch.optim.AdamW(student.parameters(), lr=settings.rate, **decay)
    generator, place = seeds.stream(seed, "order of the images"), networks.device()
    once = None if settings.fresh_labels else networks.predict(asked, images / 255).to(place)

    def loss_of(index: Tensor) -> Tensor | None:
        x = moved(images[index].float() / 255, settings, generator=generator).to(place)
        logits = answers(asked, x) if once is None else once[index.to(place)]
        passes = losses.gate(logits, request, threshold=settings.gate_threshold)
        if passes.sum() < 2:  # BatchNorm needs two
            return None
        return losses.divergence(logits[passes], student(x[passes]))

    size, steps = settings.batch_size, settings.steps
    order = batches(len(images), batch_size=size, steps=steps, generator=generator)
    schedule = one_cycle(optimizer, settings.rate, steps=steps)
    taken = descend(optimizer, order, loss_of, schedule=schedule, label="distillation")
    if not taken:
        raise ValueError(
            "no batch with two images of which the teacher gives at most "
            f"{settings.gate_threshold} to the forget classes {list(request.classes)}, so there is nothing to distil from; "
            "synthesise more images, with more steps, or raise gate_threshold"
        )
    return student.eval(), taken


def moved(images: Tensor, settings: Distillation, *, generator: torch.Generator) -> Tensor:
    """Shift a batch ``[N, C, H, W]`` of pixels in [0, 1] by one offset, and distort each image."""
    shifted = shift(images, pixels=settings.jitter, generator=generator)
    return distort(
        shifted, rotation=settings.rotation, scaling=settings.scaling, shear=settings.shear,
        generator=generator,
    )  # fmt: skip


@torch.no_grad()
def answers(teacher: nn.Module, images: Tensor) -> Tensor:
    """Compute the logits ``[N, K]`` of a teacher, without a graph."""
    return teacher(images)


def unlearn(
    model: nn.Module, request: Classes, *, shape: Shape, settings: Settings, seed: int
) -> Outcome:
    """Unlearn classes by distilling a fresh student on images of the classes that stay.

    Args:
        model: maps images to logits; stays as it is, but for being frozen.
        request: the classes to forget.
        shape: ``(C, H, W)`` of an image.
        settings: hyper-parameters.
        seed: of the images and the student.

    Returns:
        the student and the first images of each class, with what `seen` says of them, and
        ``losses`` by step.

    Raises:
        FloatingPointError: a loss that is not finite.
        ValueError: a model that does not meet the needs of the settings, or images that it gives to
            the forget classes.
    """
    stays = request.retained(architectures.num_classes(model))
    with clock.timed("synthesis"):
        images, labels = synthesise(
            model, stays, shape=shape, settings=settings.synthesis, seed=seed
        )
    student, taken = distil(model, images, request, settings=settings.distillation, seed=seed)
    shown = images[torch.cat([found[:SHOWN] for found in places(labels)])]
    return Outcome(student, shown, seen(model, shown / 255) | {"losses": taken})


def places(labels: Tensor) -> list[Tensor]:
    """List the positions of each label that there is, in their order."""
    return [(labels == k).nonzero()[:, 0] for k in labels.unique()]


def seen(teacher: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """Tell what a teacher sees in images ``[N, C, H, W]``, as it takes them.

    Returns:
        ``image_labels`` ``[N]``, its class for each, and its ``confidence`` ``[N]`` in it, 0 to 1.
    """
    confidence, labels = networks.predict(teacher, images).softmax(1).max(1)
    return {"image_labels": labels, "confidence": confidence}


def variants(
    per_class: Iterable[int], factors: Mapping[str, Mapping[str, Any]], *, at: int
) -> dict[str, dict[str, Any]]:
    """List what is compared: numbers of images, and at one of them each factor changed alone.

    Args:
        per_class: images of each class that stays.
        factors: what each changes in the settings, by name.
        at: images of each class where the factors are changed.

    Returns:
        changes in the settings of the method, by name of the variant: ``deep_inversion_<images>`` and
        ``deep_inversion_<at>_<factor>``.
    """
    sizes = {count: {"synthesis": {"per_class": count}} for count in per_class}
    changed = {name: merged(sizes[at], changes) for name, changes in factors.items()}
    return {
        **{f"deep_inversion_{count}": changes for count, changes in sizes.items()},
        **{f"deep_inversion_{at}_{name}": changes for name, changes in changed.items()},
    }


METHOD = ZeroShot("deep_inversion", "DeepInversion", settings=Settings, unlearn=unlearn)
