"""Gated knowledge transfer: distil a teacher into a fresh student without its forget classes.

Chundawat, Tarun, Mandal, Kankanhalli, "Zero-Shot Machine Unlearning" (arXiv 2201.05629), section
"Gated Knowledge Transfer", and two additions of this study: an entropy criterion at the gate, and
a data-free prior for the generator (`generators.train_prior`). A run reads the teacher and nothing
else.

Symbols: T teacher, S student, G generator, C_f forget classes, z latent, β attention weight.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Gt, Le, Lt
from torch import Tensor, nn

from unlearnlib.data.requests import Classes
from unlearnlib.models import architectures, checkpoints, networks
from unlearnlib.pipeline import clock, seeds
from unlearnlib.pipeline.progress import track
from unlearnlib.zero_shot import losses, method
from unlearnlib.zero_shot.generators import (
    Generator,
    Output,
    clipped_step,
    latents,
    train_prior,
)
from unlearnlib.zero_shot.method import Need, Outcome, Shape, ZeroShot

SHOWN = 60  # pictures of a snapshot


@dataclass(frozen=True)
class Settings(method.Settings):
    """Hyper-parameters of a run; the defaults are the published ones at full size.

    A *pseudo-batch* is one batch of latents, one generator step on it and `student_steps` student
    steps on the images that the generator then draws from the same latents.

    Attributes:
        pseudo_batches: of the run.
        batch_size: images a pseudo-batch; BatchNorm needs two.
        latent_size: length of z.
        generator_channels: filters of the generator's first blocks.
        generator_output: see `generators.Generator`.
        student_steps: a pseudo-batch.
        generator_rate: of Adam.
        student_rate: of Adam.
        schedule: of both rates; ``cosine`` lets them fall to zero over the run.
        gate_threshold: an image passes when T gives C_f at most this probability.
        entropy_limit: in nats; an image also fails when T's entropy is above; None for no limit.
        attention_weight: β.
        divergence_per_class: divide KL by the number of classes, as published.
        statistics_weight: of the BatchNorm-statistics distance in G's loss.
        balance_weight: of the negative entropy of T's batch-mean prediction in G's loss.
        prior_steps: of `generators.train_prior`.
        prior_rate: of Adam there.
        average_decay: of the student's weight average, per student step; 0 for none.
        snapshots: kept along the way, at equal distances.
        leak_limit: of the stopping rule, see `stopping_point`.

    Raises:
        ValueError: more snapshots than pseudo-batches.
    """

    pseudo_batches: Annotated[int, Ge(1)] = 2000
    batch_size: Annotated[int, Ge(2)] = 256
    latent_size: Annotated[int, Ge(1)] = 128
    generator_channels: Annotated[int, Ge(2)] = 128
    generator_output: Output = "standardised"
    student_steps: Annotated[int, Ge(1)] = 10
    generator_rate: Annotated[float, Gt(0)] = 1e-3
    student_rate: Annotated[float, Gt(0)] = 1e-3
    schedule: Literal["constant", "cosine"] = "constant"
    gate_threshold: Annotated[float, Ge(0), Le(1)] = 0.01
    entropy_limit: Annotated[float, Ge(0)] | None = None
    attention_weight: Annotated[float, Ge(0)] = 250.0
    divergence_per_class: bool = True
    statistics_weight: Annotated[float, Ge(0)] = 0.0
    balance_weight: Annotated[float, Ge(0)] = 0.0
    prior_steps: Annotated[int, Ge(0)] = 0
    prior_rate: Annotated[float, Gt(0)] = 5e-3
    average_decay: Annotated[float, Ge(0), Lt(1)] = 0.0
    snapshots: Annotated[int, Ge(1)] = 20
    leak_limit: Annotated[float, Ge(0), Le(1)] = 0.05

    def __post_init__(self) -> None:
        if self.snapshots > self.pseudo_batches:
            raise ValueError(
                f"snapshots={self.snapshots} with pseudo_batches={self.pseudo_batches}: one is "
                "kept at the end of a pseudo-batch, so give at most as many"
            )

    @property
    def needs(self) -> tuple[Need, ...]:
        """The generator's sides, and what the losses read of a model."""
        reads_statistics = bool(self.prior_steps or self.statistics_weight)
        asked = {method.statistics: reads_statistics, method.attention: self.attention_weight > 0}
        return (*(need for need, wanted in asked.items() if wanted), method.drawing)


# ------------------------------------------------------------------------------------ the run


@dataclass
class Transfer:
    """The state of one run: networks, optimisers and the random stream."""

    teacher: nn.Module
    student: nn.Module
    generator: nn.Module
    request: Classes
    settings: Settings
    randomness: torch.Generator
    history: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        s, device = self.settings, networks.device()
        networks.frozen(self.teacher)
        self.student.to(device).train()
        self.generator.to(device).train()
        self.norms = networks.batch_norms(self.teacher) if s.statistics_weight else []
        self.layers = networks.activation_layers(self.teacher) if s.attention_weight else []
        self.generator_step = torch.optim.Adam(self.generator.parameters(), lr=s.generator_rate)
        self.student_step = torch.optim.Adam(self.student.parameters(), lr=s.student_rate)
        average = torch.optim.swa_utils.get_ema_multi_avg_fn(s.average_decay)
        self.average = torch.optim.swa_utils.AveragedModel(
            self.student, multi_avg_fn=average, use_buffers=True
        )

    def result(self) -> nn.Module:
        """The network that the run delivers: the weight average, or the student itself."""
        return self.average.module if self.settings.average_decay else self.student

    def regulariser(self, logits: Tensor, fed: list[Tensor]) -> Tensor:
        """The data-free part of the generator's loss: T's statistics and class balance."""
        s, value = self.settings, torch.zeros((), device=logits.device)
        if s.statistics_weight:
            value = value + s.statistics_weight * losses.statistics_distance(fed, self.norms)
        return value + s.balance_weight * losses.imbalance(logits) if s.balance_weight else value

    def improve_generator(self, z: Tensor) -> float:
        """Take one step of G towards images on which T and S differ; return KL before it."""
        s = self.settings
        with networks.record_inputs(self.norms) as fed:
            images = self.generator(z)
            teacher = self.teacher(images)
        student = self.student(images)
        disagreement = losses.divergence(teacher, student, per_class=s.divergence_per_class)
        loss = self.regulariser(teacher, fed) - disagreement
        clipped_step(self.generator, self.generator_step, loss)
        return disagreement.item()

    def improve_student(self, images: Tensor, teacher: Tensor, maps: list[Tensor]) -> float:
        """Take one step of S towards T on accepted images; return the loss before it."""
        s = self.settings
        with networks.record_outputs(self.student, self.layers) as outputs:
            answers = self.student(images)
        loss = losses.divergence(teacher, answers, per_class=s.divergence_per_class)
        if self.layers:
            own = [losses.attention_map(outputs[name]) for name in self.layers]
            loss = loss + s.attention_weight * losses.attention_loss(own, maps)
        value = clipped_step(self.student, self.student_step, loss)
        if s.average_decay:
            self.average.update_parameters(self.student)
        return value

    @torch.no_grad()
    def draw(self, z: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Draw images and evaluate T on them once, for all student steps of the pseudo-batch."""
        images = self.generator(z)
        with networks.record_outputs(self.teacher, self.layers) as outputs:
            logits = self.teacher(images)
        return images, logits, [losses.attention_map(outputs[name]) for name in self.layers]

    def pseudo_batch(self) -> None:
        """Take one generator step and `student_steps` student steps on the same latents."""
        s = self.settings
        z = latents(s.batch_size, s.latent_size, generator=self.randomness)
        disagreement = self.improve_generator(z)
        images, logits, maps = self.draw(z)
        passes = losses.gate(
            logits, self.request, threshold=s.gate_threshold, entropy_limit=s.entropy_limit
        )
        signs = self.observe(images, logits, passes)
        loss = math.nan
        if passes.sum() > 1:  # BatchNorm needs two
            kept = images[passes], logits[passes], [m[passes] for m in maps]
            loss = [self.improve_student(*kept) for _ in range(s.student_steps)][-1]
        self.history.append({"disagreement": disagreement, "loss": loss, **signs})

    @torch.no_grad()
    def observe(self, images: Tensor, logits: Tensor, passes: Tensor) -> dict[str, Any]:
        """Read the data-free signs of progress and of leakage, before the student sees the images.

        ``agreement``: share of accepted images on which S predicts as T. ``leak``: mean probability
        that S gives C_f on images that T gives to C_f. NaN where there is no such image.
        """
        predicted, classes = logits.argmax(1), logits.shape[1]
        student = networks.predict(self.result(), images).to(logits.device)
        leak = losses.share(student, self.request)[self.request.mask(predicted)].mean()
        return {
            "agreement": (student.argmax(1) == predicted)[passes].float().mean().item(),
            "leak": leak.item(),
            "entropy": losses.entropy(logits).mean().item(),
            "accepted": predicted[passes].bincount(minlength=classes).tolist(),
            "drawn": predicted.bincount(minlength=classes).tolist(),
        }


def stopping_point(leaks: list[float], at: list[int], *, limit: float, memory: float = 0.8) -> int:
    """Choose the snapshot to keep from the leak that the student shows on generated images alone.

    The leak is smoothed exponentially (`memory` is the weight of the past). An untrained student
    gives C_f its share of every image, so the rule waits until the smoothed leak is at most `limit`
    and takes the last snapshot before it next exceeds it. A leak seen at pseudo-batch n is that of
    the student after pseudo-batch n - 1, whose snapshot therefore leaks too. Pseudo-batches without
    an image that the teacher gives to C_f say nothing and leave the smoothed value as it was.

    Args:
        leaks: the leak at pseudo-batches 1, 2, ..., NaN where there is none.
        at: pseudo-batches with a snapshot, ascending.
        limit: probability.

    Returns:
        a member of `at`: the last one when no leak comes, the first when it comes before all.
    """
    smooth, armed = math.nan, False
    for number, leak in enumerate(leaks, start=1):
        if not math.isnan(leak):
            smooth = leak if math.isnan(smooth) else memory * smooth + (1 - memory) * leak
        armed = armed or smooth <= limit
        if armed and smooth > limit:
            return max([n for n in at if n + 1 < number], default=at[0])
    return at[-1]


def cosine(step: int, *, steps: int) -> float:
    """Compute the factor of a learning rate that falls from 1 to 0 along half a cosine."""
    return 0.5 * (1 + math.cos(math.pi * min(step / steps, 1.0)))


def schedules(transfer: Transfer) -> list[torch.optim.lr_scheduler.LambdaLR]:
    """Make the data-free learning-rate schedules of generator and student."""
    s = transfer.settings

    def factor(step: int) -> float:
        return cosine(step, steps=s.pseudo_batches) if s.schedule == "cosine" else 1.0

    optimizers = (transfer.generator_step, transfer.student_step)
    return [torch.optim.lr_scheduler.LambdaLR(o, factor) for o in optimizers]


def half(network: nn.Module) -> dict[str, Any]:
    """Pack a network with its floating-point weights in half precision, for snapshots."""
    packed = checkpoints.pack(network)
    state = packed["state_dict"]
    packed["state_dict"] = {k: v.half() if v.is_floating_point() else v for k, v in state.items()}
    return packed


@torch.no_grad()
def snapshot(transfer: Transfer, z: Tensor, *, number: int) -> dict[str, Any]:
    """Keep the student, and what the generator draws from fixed latents, by T's prediction."""
    transfer.generator.eval()
    images = transfer.generator(z)
    transfer.generator.train()
    logits = transfer.teacher(images)
    return {
        "pseudo_batch": number,
        "model": half(transfer.result()),
        "images": method.pictures(images),
        "predicted": logits.argmax(1).cpu(),
        "entropy": losses.entropy(logits).cpu(),
    }


def unlearn(
    model: nn.Module, request: Classes, *, shape: Shape, settings: Settings, seed: int
) -> Outcome:
    """Run gated knowledge transfer from a model into a fresh student of the same architecture.

    Args:
        model: T, maps images ``[N, C, H, W]`` to logits ``[N, K]``; frozen.
        request: C_f.
        shape: ``(C, H, W)`` of the images the teacher takes.
        settings: hyper-parameters; `Settings()` is the published run.
        seed: of the latents and of the first weights of student and generator.

    Returns:
        the student at the data-free stopping point and what the generator drew then, with ``stop``
        (its pseudo-batch), ``history`` (a list a sign, by pseudo-batch), ``snapshots`` (see
        `snapshot`) and ``prior`` (its loss before each step).

    Raises:
        FloatingPointError: a loss that is not finite.
        ValueError: a teacher that does not meet the needs of the settings.
    """
    transfer = set_up(model, request, shape=shape, settings=settings, seed=seed)
    with clock.timed("prior"):
        prior = train_prior(
            transfer.teacher, transfer.generator, steps=settings.prior_steps,
            rate=settings.prior_rate, batch_size=settings.batch_size,
            generator=seeds.stream(seed, "latents of the prior"),
        )  # fmt: skip
    looks = seeds.stream(seed, "latents of the snapshots")
    snapshots = distil(transfer, z=latents(SHOWN, settings.latent_size, generator=looks))
    stop = stopping_point(
        [entry["leak"] for entry in transfer.history],
        [kept["pseudo_batch"] for kept in snapshots],
        limit=settings.leak_limit,
    )
    history = {key: [entry[key] for entry in transfer.history] for key in transfer.history[0]}
    chosen = at_stop(snapshots, stop)
    facts = {"stop": stop, "history": history, "snapshots": snapshots, "prior": prior}
    return Outcome(checkpoints.unpack(chosen["model"]).eval(), chosen["images"], facts)


def set_up(
    teacher: nn.Module, request: Classes, *, shape: Shape, settings: Settings, seed: int
) -> Transfer:
    """Make a fresh student and a fresh generator for a teacher, see `unlearn`."""
    with method.drawn_by(seed, "first weights of the generator"):
        generator = Generator(
            settings.latent_size,
            settings.generator_channels,
            shape,
            output=settings.generator_output,
        )
    with method.drawn_by(seed, "first weights of the student"):
        student = architectures.fresh_like(teacher)
    randomness = seeds.stream(seed, "latents")
    return Transfer(teacher, student, generator, request, settings, randomness)


def at_stop(snapshots: Iterable[dict[str, Any]], stop: int) -> dict[str, Any]:
    """Find the snapshot of the pseudo-batch `stop`."""
    return next(kept for kept in snapshots if kept["pseudo_batch"] == stop)


def distil(transfer: Transfer, *, z: Tensor) -> list[dict[str, Any]]:
    """Run all pseudo-batches, keeping snapshots at equal distances."""
    s, kept = transfer.settings, []
    marks = {round((i + 1) * s.pseudo_batches / s.snapshots) for i in range(s.snapshots)}
    rates = schedules(transfer)
    for number in track(range(1, s.pseudo_batches + 1), "pseudo-batches"):
        transfer.pseudo_batch()
        for rate in rates:
            rate.step()
        if number in marks:
            kept.append(snapshot(transfer, z, number=number))
    return kept


METHOD = ZeroShot("gkt", "GKT", settings=Settings, unlearn=unlearn)
