"""Error minimisation-maximisation noise: unlearn a class by fine-tuning on learnt noise.

Chundawat et al., "Zero-Shot Machine Unlearning" (arXiv 2201.05629), section "Error
Minimization-Maximization Noise". Anti-samples N_f are learnt by gradient *ascent* on the loss of
their forget class, stand-ins N_r by descent on the loss of each retain class; the model is then
fine-tuned on both with their labels. A run reads the model and nothing else.

`Settings` holds, beside the published method, what mends it. The farthest of that is not in the
paper: stand-ins of the forget classes, which the model is taught to answer as if it did not know
these classes, as masked distillation does (`masked_distillation`), and a check on further ones.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor, nn
from torch.nn import functional as F

from unlearnlib.data.requests import Classes
from unlearnlib.models import architectures, checkpoints, networks
from unlearnlib.models.loops import batches, descend, one_cycle, shift
from unlearnlib.pipeline import clock, seeds
from unlearnlib.zero_shot import losses, method
from unlearnlib.zero_shot.batch_statistics import Observed
from unlearnlib.zero_shot.deep_inversion import seen
from unlearnlib.zero_shot.method import Need, Outcome, Shape, ZeroShot

SHOWN = 4  # images of each kind that an outcome keeps
Targets = Callable[[Tensor, Tensor], Tensor]  # of positions and their images: what to answer


@dataclass(frozen=True)
class Settings(method.Settings):
    """Hyper-parameters; the defaults are the plain method.

    Attributes:
        per_class: noise images of each class.
        noise_steps: of Adam on the noise.
        noise_rate: of Adam there.
        penalty: of the mean squared L2 norm of an image.
        statistics_weight: of the BatchNorm-statistics distance in the loss of stand-ins.
        jitter: largest shift of a batch of noise, in pixels, when it is learnt and when it teaches.
        freeze_statistics: BatchNorm normalises by the model's own running statistics.
        masked_answers: stand-ins of C_f are learnt too, together with N_r, and all stand-ins are
            answered as the original would without C_f. Else by their labels.
        anti_samples: N_f takes part in fine-tuning; without it stand-ins alone do.
        steps: of fine-tuning on all noise.
        batch_size: noise images a fine-tuning step.
        rate: of Adam in fine-tuning.
        repair_steps: of fine-tuning on stand-ins alone.
        repair_rate: of Adam there.
        one_cycle: both rates rise to the value given and fall to 0 (`loops.one_cycle`).
        rounds: of fine-tuning and repair, at most.
        forget_limit: no further round where the model gives C_f at most this probability, the mean
            over stand-ins of C_f that taught nothing; needs `masked_answers` with several rounds.

    Raises:
        ValueError: several rounds without stand-ins of C_f to check.
    """

    per_class: Annotated[int, Ge(1)] = 256
    noise_steps: Annotated[int, Ge(0)] = 200
    noise_rate: Annotated[float, Gt(0)] = 0.1
    penalty: Annotated[float, Ge(0)] = 0.1
    statistics_weight: Annotated[float, Ge(0)] = 0.0
    jitter: Annotated[int, Ge(0)] = 0
    freeze_statistics: bool = False
    masked_answers: bool = False
    anti_samples: bool = True
    steps: Annotated[int, Ge(1)] = 40
    batch_size: Annotated[int, Ge(1)] = 256
    rate: Annotated[float, Gt(0)] = 0.02
    repair_steps: Annotated[int, Ge(0)] = 40
    repair_rate: Annotated[float, Gt(0)] = 0.01
    one_cycle: bool = False
    rounds: Annotated[int, Ge(1)] = 1
    forget_limit: Annotated[float, Ge(0), Le(1)] = 0.005

    def __post_init__(self) -> None:
        if self.rounds > 1 and not self.masked_answers:
            raise ValueError(
                f"rounds={self.rounds} without masked_answers: there are no stand-ins of the forget "
                "classes to check after a round; give one round, or masked_answers=True"
            )

    @property
    def needs(self) -> tuple[Need, ...]:
        """BatchNorm statistics, for what mends the plain method."""
        return (method.statistics,) if self.statistics_weight or self.freeze_statistics else ()

    @property
    def checked(self) -> int:
        """Count the stand-ins of each forget class that teach nothing, and tell what is forgotten."""
        return max(1, self.per_class // 4) if self.masked_answers else 0


def variants(remedies: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """List what is compared to tell the share of each remedy: alone, and what is left without it.

    Args:
        remedies: settings that each changes in the plain method, by name.

    Returns:
        changes in the plain settings, by name of the variant: ``mm_noise``, none;
        ``mm_noise_<remedy>``, that alone; ``mm_noise_repaired``, every remedy; and
        ``mm_noise_repaired_without_<remedy>``, every one but that.
    """
    every = {key: value for changes in remedies.values() for key, value in changes.items()}
    without = {
        name: {key: value for key, value in every.items() if key not in changes}
        for name, changes in remedies.items()
    }
    return {
        "mm_noise": {},
        **{f"mm_noise_{name}": dict(changes) for name, changes in remedies.items()},
        "mm_noise_repaired": every,
        **{f"mm_noise_repaired_without_{name}": changes for name, changes in without.items()},
    }


@dataclass(frozen=True, eq=False)
class Noise:
    """Hold what is learnt from the model.

    Attributes:
        labels: ``[N]``, the class that each image is learnt for.
        anti: ``[N]``, whether it is learnt to raise the loss of that class (N_f), else to lower it.
        held: ``[N]``, whether it is left out of fine-tuning, for the check.
        images: ``[N, C, H, W]``, unbounded pixel values.
    """

    labels: Tensor
    anti: Tensor
    held: Tensor
    images: Tensor


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
    `statistics_weight`, the noise that lowers the loss also follows the BatchNorm statistics. The
    model sees it shifted, where there is a `jitter`.

    Args:
        model: in evaluation mode.
        labels: ``[N]``.
        shape: ``(C, H, W)``.
        maximise: N_f, else N_r.
        settings: hyper-parameters.
        generator: of the noise at the start, and of the shifts.

    Returns:
        noise ``[N, C, H, W]``, unbounded pixel values.
    """
    noise = torch.randn((len(labels), *shape), generator=generator).to(labels.device)
    noise.requires_grad_(True)
    weight = 0.0 if maximise else settings.statistics_weight
    observed = Observed(model, weight=weight)

    def loss_of(_: Tensor) -> Tensor:
        logits, distance = observed(shift(noise, pixels=settings.jitter, generator=generator))
        error = F.cross_entropy(logits, labels)
        size = noise.square().sum((1, 2, 3)).mean()
        return (-error if maximise else error) + settings.penalty * size + weight * distance

    everything = [torch.arange(len(labels))] * settings.noise_steps
    optimizer = torch.optim.Adam([noise], lr=settings.noise_rate, fused=True)
    descend(optimizer, everything, loss_of, label="noise")
    return noise.detach()


def learn_all(
    model: nn.Module, request: Classes, *, shape: Shape, settings: Settings, seed: int
) -> Noise:
    """Learn N_f and N_r, and with `masked_answers` stand-ins of C_f too, see `unlearn`."""
    classes = torch.arange(architectures.num_classes(model))
    labels = classes.repeat_interleave(settings.per_class)
    anti, generator = request.mask(labels), seeds.stream(seed, "noise")
    more = torch.tensor(list(request.classes)).repeat(
        settings.per_class + settings.checked if settings.masked_answers else 0
    )
    labels, anti = torch.cat([labels, more.to(labels.dtype)]), F.pad(anti, (0, len(more)))
    held = torch.arange(len(labels)) >= len(labels) - settings.checked * len(request.classes)
    labels, anti, held = (values.to(networks.device()) for values in (labels, anti, held))
    images = torch.empty((len(labels), *shape), device=labels.device)
    for part, maximise in ((anti, True), (~anti, False)):
        images[part] = learn_noise(
            model, labels[part], shape=shape, maximise=maximise, settings=settings,
            generator=generator,
        )  # fmt: skip
    return Noise(labels, anti, held, images)


def targets(original: nn.Module, noise: Noise, request: Classes, settings: Settings) -> Targets:
    """Say what is to be answered: ``[B, K]`` probabilities for positions ``[B]`` and their images."""
    count, asked = architectures.num_classes(original), networks.folded(original)

    def wanted(index: Tensor, images: Tensor) -> Tensor:
        by_label = F.one_hot(noise.labels[index], count).float()
        if not settings.masked_answers:
            return by_label
        with torch.no_grad():
            without = losses.masked(asked(images), request).softmax(1)
        return torch.where(noise.anti[index, None], by_label, without)

    return wanted


def tune(
    model: nn.Module,
    images: Tensor,
    wanted: Targets,
    chosen: Tensor,
    *,
    steps: int,
    rate: float,
    settings: Settings,
    generator: torch.Generator,
) -> None:
    """Fine-tune a model in place on some noise images, by Adam on the cross-entropy.

    Args:
        model: maps images to logits.
        images: ``[N, C, H, W]``.
        wanted: what to answer to them.
        chosen: positions ``[M]`` of those that teach.
        steps: of Adam at the learning rate `rate`.
        settings: hyper-parameters.
        generator: of the order of the images, and of the shifts.

    Raises:
        FloatingPointError: a loss that is not finite.
        ValueError: a model without BatchNorm whose statistics are to be frozen.
    """
    model.train().requires_grad_(True)
    network = networks.folded(model).train() if settings.freeze_statistics else model
    for layer in networks.batch_norms(network) if settings.freeze_statistics else ():
        layer.eval()

    def loss_of(among: Tensor) -> Tensor:
        index = chosen[among.to(chosen.device)]
        x = shift(images[index], pixels=settings.jitter, generator=generator)
        return F.cross_entropy(network(x), wanted(index, x))

    optimizer = torch.optim.Adam(model.parameters(), lr=rate, fused=True)
    order = batches(len(chosen), batch_size=settings.batch_size, steps=steps, generator=generator)
    schedule = one_cycle(optimizer, rate, steps=steps) if settings.one_cycle and steps else None
    descend(optimizer, order, loss_of, schedule=schedule, label="fine-tuning")


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
    """Unlearn classes by M-M noise: fine-tune a copy on N_f ∪ N_r, then repair it on stand-ins.

    Args:
        model: maps images to logits; stays as it is, but for being frozen.
        request: the classes to forget.
        shape: ``(C, H, W)`` of an image.
        settings: hyper-parameters.
        seed: of the noise at the start and the order of fine-tuning.

    Returns:
        the unlearned copy and some of the noise of each kind, stretched to bytes, with
        ``learnt_for``, the class that it was learnt for, ``anti``, whether to raise the loss of
        that class, ``image_labels`` and ``confidence`` of the original for the noise itself (see
        `deep_inversion.seen`); ``restored``, the packed copy with the original BatchNorm
        statistics; ``drift`` of the statistics, a number a layer; and ``check``, the probability
        that the copy gave C_f after each round, none without stand-ins of C_f.

    Raises:
        FloatingPointError: a loss that is not finite.
        ValueError: a model without BatchNorm where the settings need its statistics.
    """
    original = networks.frozen(model)
    with clock.timed("noise"):
        noise = learn_all(original, request, shape=shape, settings=settings, seed=seed)
    unlearned = copy.deepcopy(original)
    check = fine_tune(unlearned, original, noise, request, settings=settings, seed=seed)
    facts = {
        "restored": checkpoints.pack(restore_statistics(unlearned, original)),
        "drift": drift(unlearned, original),
        "check": check,
    }
    return Outcome(unlearned.eval(), *shown(original, noise, facts))


def fine_tune(
    model: nn.Module,
    original: nn.Module,
    noise: Noise,
    request: Classes,
    *,
    settings: Settings,
    seed: int,
) -> list[float]:
    """Fine-tune and repair a model in place, in as many rounds as the check asks for.

    Returns:
        the probability that the model gives C_f after each round, see `Settings.forget_limit`.
    """
    wanted = targets(original, noise, request, settings)
    stands_in = (~noise.held & ~noise.anti).nonzero()[:, 0]
    teaches = (~noise.held).nonzero()[:, 0] if settings.anti_samples else stands_in
    options = {"settings": settings, "generator": seeds.stream(seed, "order of the noise")}
    check = []
    for _ in range(settings.rounds):
        for chosen, steps, rate in (
            (teaches, settings.steps, settings.rate),
            (stands_in, settings.repair_steps, settings.repair_rate),
        ):
            tune(model, noise.images, wanted, chosen, steps=steps, rate=rate, **options)
        if settings.masked_answers:
            logits = networks.predict(model, noise.images[noise.held])
            check.append(losses.share(logits, request).mean().item())
            if check[-1] <= settings.forget_limit:
                break
    return check


def shown(original: nn.Module, noise: Noise, facts: dict) -> tuple[Tensor, dict]:
    """Choose the first images of each kind, as bytes, and add to facts what is said of them."""
    kinds = torch.stack([noise.labels, noise.anti.long()], 1)
    _, kind = kinds.unique(dim=0, return_inverse=True)
    first = torch.cat([(kind == k).nonzero()[:SHOWN, 0] for k in range(kind.max() + 1)])
    images = noise.images[first]
    facts = facts | {
        "learnt_for": noise.labels[first].cpu(), "anti": noise.anti[first].cpu(),
        **seen(original, images),
    }  # fmt: skip
    return method.pictures(images), facts


METHOD = ZeroShot("mm_noise", "M-M noise", settings=Settings, unlearn=unlearn)
