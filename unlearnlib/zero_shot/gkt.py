"""Gated knowledge transfer: distil a teacher into a fresh student without its forget classes.

Chundawat, Tarun, Mandal, Kankanhalli, "Zero-Shot Machine Unlearning" (arXiv 2201.05629), section
"Gated Knowledge Transfer", and two additions of this study: an entropy criterion at the gate, and
a data-free prior for the generator (`generators.train_prior`). A run reads the teacher and nothing else.

Symbols: T teacher, S student, G generator, C_f forget classes, z latent, β attention weight.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unlearnlib.models import models
from unlearnlib.pipeline.progress import track
from unlearnlib.zero_shot.generators import (
    Generator,
    descend,
    imbalance,
    latents,
    statistics_distance,
    train_prior,
)


@dataclass(frozen=True)
class Settings:
    """Hyper-parameters of a run; the defaults are the published ones at full size.

    A *pseudo-batch* is one batch of latents, one generator step on it and `student_steps` student
    steps on the images that the generator then draws from the same latents.
    """

    pseudo_batches: int = 2000
    batch_size: int = 256
    latent_size: int = 128
    generator_channels: int = 128
    generator_output: str = "standardised"  # or "sigmoid": pixels in [0, 1], dark at the start
    student_steps: int = 10
    generator_rate: float = 1e-3
    student_rate: float = 1e-3
    schedule: str = "constant"  # or "cosine": both rates fall to zero over the run
    gate_threshold: float = 0.01  # an image passes when T gives C_f at most this probability
    entropy_limit: float | None = None  # nats; an image also fails when T's entropy is above
    attention_weight: float = 250.0  # β
    divergence_per_class: bool = True  # divide KL by the number of classes, as published
    statistics_weight: float = 0.0  # of the BatchNorm-statistics distance in G's loss
    balance_weight: float = 0.0  # of the negative entropy of T's batch-mean prediction
    prior_steps: int = 0
    prior_rate: float = 5e-3
    average_decay: float = 0.0  # of the student's weight average, per student step; 0 for none
    snapshots: int = 20
    leak_limit: float = 0.05  # of the stopping rule, see `stopping_point`

    def __post_init__(self) -> None:
        for name in ("pseudo_batches", "batch_size", "student_steps", "snapshots"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; a run needs at least 1")


# ------------------------------------------------------------------------------------- losses


def divergence(
    teacher_logits: Tensor, student_logits: Tensor, *, per_class: bool = False
) -> Tensor:
    """Compute KL(T ‖ S) in nats, the mean over a batch of logits ``[N, K]``.

    In log space throughout: ``F.kl_div`` with a gradient through its target turns NaN as soon as
    one teacher probability underflows to 0. With `per_class` it is divided by K, which is what
    ``F.kl_div(reduction="mean")`` of the published code does.
    """
    teacher, student = teacher_logits.log_softmax(1), student_logits.log_softmax(1)
    value = (teacher.exp() * (teacher - student)).sum(1).mean()
    return value / teacher_logits.shape[1] if per_class else value


def entropy(logits: Tensor) -> Tensor:
    """Compute the entropy ``[N]`` in nats of predictions given as logits ``[N, K]``."""
    return -(logits.softmax(1) * logits.log_softmax(1)).sum(1)


class _MeanSquare(torch.autograd.Function):
    """The channel mean of squares, with one pass backward: autograd's own takes twice as long."""

    @staticmethod
    def forward(ctx, activation: Tensor) -> Tensor:
        ctx.save_for_backward(activation)
        return torch.linalg.vector_norm(activation, dim=1).square_() / activation.shape[1]

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        (activation,) = ctx.saved_tensors
        return activation * (gradient * (2 / activation.shape[1])).unsqueeze(1)


def attention_map(activation: Tensor) -> Tensor:
    """Reduce an activation ``[N, C, ...]`` to its L2-normalised channel mean of squares ``[N, P]``.

    Features of a fully connected layer, ``[N, P]``, are squared and normalised.
    """
    if activation.dim() == 2:
        return F.normalize(activation.square())
    return F.normalize(_MeanSquare.apply(activation).flatten(1))


def attention_loss(student_maps: list[Tensor], teacher_maps: list[Tensor]) -> Tensor:
    """Sum over layers the mean squared difference of attention maps."""
    return sum((s - t).square().mean() for s, t in zip(student_maps, teacher_maps, strict=True))


# ---------------------------------------------------------------------------------- the gate


def gate(
    logits: Tensor,
    forget_classes: list[int],
    *,
    threshold: float,
    entropy_limit: float | None = None,
) -> Tensor:
    """Decide which images the student may see: ``[N]`` booleans from the teacher's logits ``[N, K]``.

    An image passes when T gives the forget classes together at most `threshold`, and, with an
    `entropy_limit` in nats, when the entropy of T's prediction is not above it.
    """
    passes = logits.softmax(1)[:, forget_classes].sum(1) <= threshold
    return passes if entropy_limit is None else passes & (entropy(logits) <= entropy_limit)


# ------------------------------------------------------------------------------------ the run


@dataclass
class Transfer:
    """The state of one run: networks, optimisers and the random stream."""

    teacher: nn.Module
    student: nn.Module
    generator: nn.Module
    forget_classes: list[int]
    settings: Settings
    randomness: torch.Generator
    history: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        s, device = self.settings, models.device()
        models.frozen(self.teacher)
        self.student.to(device).train()
        self.generator.to(device).train()
        self.norms = models.batch_norms(self.teacher) if s.statistics_weight else []
        self.layers = models.activation_layers(self.teacher) if s.attention_weight else []
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
            value = value + s.statistics_weight * statistics_distance(fed, self.norms)
        return value + s.balance_weight * imbalance(logits) if s.balance_weight else value

    def improve_generator(self, z: Tensor) -> float:
        """Take one step of G towards images on which T and S differ; return KL before it."""
        s = self.settings
        with models.record_inputs(self.norms) as fed:
            images = self.generator(z)
            teacher = self.teacher(images)
        student = self.student(images)
        disagreement = divergence(teacher, student, per_class=s.divergence_per_class)
        descend(self.generator, self.generator_step, self.regulariser(teacher, fed) - disagreement)
        return disagreement.item()

    def improve_student(self, images: Tensor, teacher: Tensor, maps: list[Tensor]) -> float:
        """Take one step of S towards T on accepted images; return the loss before it."""
        s = self.settings
        with models.record_outputs(self.student, self.layers) as outputs:
            loss = divergence(teacher, self.student(images), per_class=s.divergence_per_class)
        if self.layers:
            own = [attention_map(outputs[name]) for name in self.layers]
            loss = loss + s.attention_weight * attention_loss(own, maps)
        value = descend(self.student, self.student_step, loss)
        if s.average_decay:
            self.average.update_parameters(self.student)
        return value

    @torch.no_grad()
    def draw(self, z: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Draw images and evaluate T on them once, for all student steps of the pseudo-batch."""
        images = self.generator(z)
        with models.record_outputs(self.teacher, self.layers) as outputs:
            logits = self.teacher(images)
        return images, logits, [attention_map(outputs[name]) for name in self.layers]

    def pseudo_batch(self) -> None:
        """Take one generator step and `student_steps` student steps on the same latents."""
        s = self.settings
        z = latents(s.batch_size, s.latent_size, generator=self.randomness)
        disagreement = self.improve_generator(z)
        images, logits, maps = self.draw(z)
        passes = gate(
            logits, self.forget_classes, threshold=s.gate_threshold, entropy_limit=s.entropy_limit
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
        student = models.predict(self.result(), images).to(logits.device)
        forgotten = torch.isin(
            predicted, torch.tensor(self.forget_classes, device=predicted.device)
        )
        leak = student.softmax(1)[:, self.forget_classes].sum(1)[forgotten].mean()
        return {
            "agreement": (student.argmax(1) == predicted)[passes].float().mean().item(),
            "leak": leak.item(),
            "entropy": entropy(logits).mean().item(),
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
    if s.schedule not in ("constant", "cosine"):
        raise ValueError(f"unknown schedule {s.schedule!r}; choose 'constant' or 'cosine'")

    def factor(step: int) -> float:
        return cosine(step, steps=s.pseudo_batches) if s.schedule == "cosine" else 1.0

    optimizers = (transfer.generator_step, transfer.student_step)
    return [torch.optim.lr_scheduler.LambdaLR(o, factor) for o in optimizers]


def half(network: nn.Module) -> dict[str, Any]:
    """Pack a network with its floating-point weights in half precision, for snapshots."""
    packed = models.pack(network)
    state = packed["state_dict"]
    packed["state_dict"] = {k: v.half() if v.is_floating_point() else v for k, v in state.items()}
    return packed


def to_bytes(images: Tensor) -> Tensor:
    """Stretch each image ``[N, C, H, W]`` to 0 ... 255 for a gallery of pictures."""
    low, high = (f(images, dim=(1, 2, 3), keepdim=True) for f in (torch.amin, torch.amax))
    return ((images - low) / (high - low).clamp_min(1e-6) * 255).round().to(torch.uint8).cpu()


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
        "images": to_bytes(images),
        "predicted": logits.argmax(1).cpu(),
        "entropy": entropy(logits).cpu(),
    }


def transfer_knowledge(
    teacher: nn.Module,
    *,
    forget_classes: list[int],
    shape: tuple[int, int, int],
    settings: Settings,
    seed: int,
) -> dict[str, Any]:
    """Run gated knowledge transfer from a teacher into a fresh student of the same architecture.

    Args:
        teacher: maps images ``[N, C, H, W]`` to logits ``[N, K]``; put in evaluation mode.
        forget_classes: class numbers C_f, any length below K.
        shape: ``(C, H, W)`` of the images the teacher takes.
        settings: hyper-parameters; `Settings()` is the published run.
        seed: of the latents; initial weights come from torch's global random state.

    Returns:
        ``model`` (the packed student at the data-free stopping point), ``stop`` (its pseudo-batch),
        ``history`` (a list a sign, by pseudo-batch), ``snapshots`` (see `snapshot`), ``prior``.

    Raises:
        FloatingPointError: a loss that is not finite.
        ValueError: a teacher without BatchNorm when the settings need its statistics.
    """
    randomness = torch.Generator().manual_seed(seed)
    generator = Generator(
        settings.latent_size, settings.generator_channels, shape, output=settings.generator_output
    )
    transfer = Transfer(
        teacher, models.fresh_like(teacher), generator, list(forget_classes), settings, randomness
    )
    prior = train_prior(
        transfer.teacher,
        generator,
        steps=settings.prior_steps,
        rate=settings.prior_rate,
        batch_size=settings.batch_size,
        generator=randomness,
    )
    snapshots = distil(transfer, z=latents(60, settings.latent_size, generator=randomness))
    leaks = [entry["leak"] for entry in transfer.history]
    at = [s["pseudo_batch"] for s in snapshots]
    stop = stopping_point(leaks, at, limit=settings.leak_limit)
    history = {key: [e[key] for e in transfer.history] for key in transfer.history[0]}
    chosen = snapshots[at.index(stop)]["model"]
    return {
        "model": chosen,
        "stop": stop,
        "history": history,
        "snapshots": snapshots,
        "prior": prior,
    }


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


def run(spec: dict[str, Any]) -> dict[str, Any]:
    """Run one transfer of a sweep.

    Args:
        spec: ``original`` (file of the teacher), ``forget_classes``, ``seed``, ``settings``
            (keywords of `Settings`).

    Returns:
        what `transfer_knowledge` returns.
    """
    teacher, shape = models.load_teacher(spec["original"], spec["forget_classes"])
    return transfer_knowledge(
        teacher,
        forget_classes=spec["forget_classes"],
        shape=shape,
        settings=Settings(**spec["settings"]),
        seed=spec["seed"],
    )
