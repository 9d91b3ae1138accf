"""Gated knowledge transfer: distil a teacher into a fresh student without its forget classes.

Chundawat, Tarun, Mandal, Kankanhalli, "Zero-Shot Machine Unlearning" (arXiv 2201.05629), section
"Gated Knowledge Transfer", as the authors' notebook runs it, and what this study adds: an entropy
criterion at the gate, a data-free prior for the generator (`generators.train_prior`), and a stop
that needs no data (`stopping`). A run reads the teacher and nothing else.

Symbols: T teacher, S student, G generator, C_f forget classes, z latent, β attention weight.
"""

import copy
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import torch
from annotated_types import Ge, Gt, Le, Lt
from torch import Tensor, nn

from unlearnlib.data.requests import Classes
from unlearnlib.models import architectures, checkpoints, networks
from unlearnlib.models.loops import finite
from unlearnlib.pipeline import clock, records, seeds
from unlearnlib.pipeline.progress import track
from unlearnlib.zero_shot import losses, method, stopping
from unlearnlib.zero_shot.generators import (
    Generator,
    Output,
    clipped_step,
    latents,
    train_prior,
)
from unlearnlib.zero_shot.method import Need, Outcome, Shape, ZeroShot

PICTURED = 200  # draws of which a snapshot keeps the pictures that T is surest of
PATIENCE = 100  # draws in a row of which none passes the gate, before G is set back, as published


@dataclass(frozen=True)
class Transfer(method.Settings):
    """Hyper-parameters of the transfer; the defaults are the published ones at full size.

    A *pseudo-batch* is one batch of latents, one generator step on it and `student_steps` student
    steps on the images that the generator then draws from the same latents.

    Attributes:
        pseudo_batches: of the run.
        batch_size: images a pseudo-batch.
        latent_size: length of z.
        generator_channels: filters of the generator's first blocks.
        generator_output: see `generators.Generator`.
        gate_generator: the generator, too, learns from images that pass the gate alone.
        student_mode: in ``evaluation`` mode, as published, BatchNorm layers of the student never
            see a batch: their statistics stay 0 and 1, and they are a scale and a shift.
        student_steps: a pseudo-batch.
        generator_rate: of Adam.
        generator_halving: pseudo-batches after which the generator's rate is halved, and again, and
            again; None for never. The 150 are an accident of the published code: a schedule that is
            meant to follow a loss is handed the same number every time.
        student_rate: of Adam.
        schedule: of both rates; ``cosine`` lets them fall to zero over the run.
        kept_from_student: what of C_f: ``images``, by the gate, as published; or ``answers``, T's
            probability of C_f, of images that then all pass (the PostFilter of ISPF, arXiv
            2412.13790).
        gate_threshold: an image passes when T gives C_f at most this probability.
        entropy_limit: in nats; an image also fails when T's entropy is above; None for no limit.
        attention_weight: β.
        attention_schedule: of β; ``cosine`` lets it fall to zero over the run.
        attention_layers: which activation layers count, from 1 on; None for all.
        divergence_per_class: divide KL by the number of classes, as published.
        statistics_weight: of the BatchNorm-statistics distance in G's loss.
        balance_weight: of the negative entropy of T's batch-mean prediction in G's loss.
        prior_steps: of `generators.train_prior`.
        prior_rate: of Adam there.
        average_decay: of the student's weight average, per student step; 0 for none.
        snapshots: kept along the way, at equal distances.
        keep_state: pseudo-batch after which to keep what another run needs to go on from there.

    Raises:
        ValueError: more snapshots than pseudo-batches.
    """

    pseudo_batches: Annotated[int, Ge(1)] = 4000
    batch_size: Annotated[int, Ge(2)] = 256
    latent_size: Annotated[int, Ge(1)] = 128
    generator_channels: Annotated[int, Ge(2)] = 128
    generator_output: Output = "published"
    gate_generator: bool = True
    student_mode: Literal["evaluation", "training"] = "evaluation"
    student_steps: Annotated[int, Ge(1)] = 10
    generator_rate: Annotated[float, Gt(0)] = 1e-3
    generator_halving: Annotated[int, Ge(1)] | None = 150
    student_rate: Annotated[float, Gt(0)] = 1e-3
    schedule: Literal["constant", "cosine"] = "constant"
    kept_from_student: Literal["images", "answers"] = "images"
    gate_threshold: Annotated[float, Ge(0), Le(1)] = 0.01
    entropy_limit: Annotated[float, Ge(0)] | None = None
    attention_weight: Annotated[float, Ge(0)] = 250.0
    attention_schedule: Literal["constant", "cosine"] = "constant"
    attention_layers: tuple[int, ...] | None = None
    divergence_per_class: bool = True
    statistics_weight: Annotated[float, Ge(0)] = 0.0
    balance_weight: Annotated[float, Ge(0)] = 0.0
    prior_steps: Annotated[int, Ge(0)] = 0
    prior_rate: Annotated[float, Gt(0)] = 5e-3
    average_decay: Annotated[float, Ge(0), Lt(1)] = 0.0
    snapshots: Annotated[int, Ge(1)] = 80
    keep_state: Annotated[int, Ge(1)] | None = None

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


class Drawn(NamedTuple):
    """What the generator drew from latents, and what T says of it.

    Attributes:
        images: ``[N, C, H, W]``.
        logits: of T, ``[N, K]``.
        passes: the gate, ``[N]``.
        maps: attention maps of T, a layer each.
        fed: inputs of T's BatchNorm layers, where the generator's loss reads them.
    """

    images: Tensor
    logits: Tensor
    passes: Tensor
    maps: list[Tensor]
    fed: list[Tensor]


@dataclass
class Transferring:
    """The state of one run: networks, optimisers and the random stream."""

    teacher: nn.Module
    student: nn.Module
    generator: nn.Module
    request: Classes
    settings: Transfer
    randomness: torch.Generator
    history: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        s, device = self.settings, networks.device()
        networks.frozen(self.teacher)
        evaluating = s.student_mode == "evaluation"
        self.student.to(device).train(not evaluating)
        self.generator.to(device).train()
        self.norms = networks.batch_norms(self.teacher) if s.statistics_weight else []
        self.layers = attended(self.teacher, s)
        # folding merges the layers whose inputs the statistics term reads
        self.asked = self.teacher if self.norms else networks.folded(self.teacher)
        self.taught = networks.folded(self.student) if evaluating else self.student
        self.fewest = 1 if evaluating else 2  # BatchNorm in training mode needs two images
        self.generator_step = torch.optim.Adam(
            self.generator.parameters(), lr=s.generator_rate, fused=True
        )
        self.student_step = torch.optim.Adam(
            self.student.parameters(), lr=s.student_rate, fused=True
        )
        self.attention_weight = s.attention_weight
        self.draws = 0  # batches of latents so far
        self.former: deque[dict[str, Any]] = deque(maxlen=2)  # states of the generator
        average = torch.optim.swa_utils.get_ema_multi_avg_fn(s.average_decay)
        self.average = torch.optim.swa_utils.AveragedModel(
            self.student, multi_avg_fn=average, use_buffers=True
        )

    def result(self) -> nn.Module:
        """The network that the run delivers: the weight average, or the student itself."""
        return self.average.module if self.settings.average_decay else self.student

    def draw(self, z: Tensor, *, attend: bool) -> Drawn:
        """Draw images and ask T about them; its attention maps too if `attend`."""
        s = self.settings
        images = self.generator(z)
        layers = self.layers if attend else []
        with (
            networks.record_outputs(self.asked, layers) as outputs,
            networks.record_inputs(self.norms) as fed,
        ):
            logits = self.asked(images)
        finite(logits.detach().abs().max())  # the gate is shut for what is no number
        if s.kept_from_student == "answers":
            logits = losses.masked(logits, self.request)
        passes = losses.gate(
            logits.detach(), self.request, threshold=s.gate_threshold, entropy_limit=s.entropy_limit
        )
        return Drawn(
            images, logits, passes, [losses.attention_map(outputs[n]) for n in layers], fed
        )

    def drawn(self, look: Callable[[Tensor], Drawn]) -> tuple[Tensor, Drawn]:
        """Draw from fresh latents until enough images pass the gate.

        After `PATIENCE` draws in vain the generator is set back to an earlier state, as published.

        Raises:
            RuntimeError: the generator draws nothing that passes, its earlier states neither.
        """
        s = self.settings
        for attempt in range(1, 3 * PATIENCE + 1):
            z = latents(s.batch_size, s.latent_size, generator=self.randomness)
            seen = look(z)
            self.draws += 1
            if seen.passes.sum() >= self.fewest:
                return z, seen
            if attempt % PATIENCE == 0 and self.former:
                self.generator.load_state_dict(self.former[0])
        raise RuntimeError(
            f"none of {3 * PATIENCE} batches of generated images passed the gate at "
            f"gate_threshold={s.gate_threshold:g}, entropy_limit={s.entropy_limit}: raise them, or "
            "lower the generator's learning rate"
        )

    def improve_generator(self, seen: Drawn) -> float:
        """Take one step of G towards images on which T and S differ; return KL before it."""
        s = self.settings
        chosen = seen.passes if s.gate_generator else torch.ones_like(seen.passes)
        student = self.taught(seen.images[chosen])
        disagreement = losses.divergence(
            seen.logits[chosen], student, per_class=s.divergence_per_class
        )
        clipped_step(self.generator, self.generator_step, self.regulariser(seen) - disagreement)
        return disagreement.item()

    def regulariser(self, seen: Drawn) -> Tensor:
        """The data-free part of the generator's loss: T's statistics and class balance."""
        s, value = self.settings, torch.zeros((), device=seen.logits.device)
        if s.statistics_weight:
            value = value + s.statistics_weight * losses.statistics_distance(seen.fed, self.norms)
        if s.balance_weight:
            value = value + s.balance_weight * losses.imbalance(seen.logits)
        return value

    def improve_student(self, images: Tensor, teacher: Tensor, maps: list[Tensor]) -> float:
        """Take one step of S towards T on accepted images; return the loss before it."""
        s = self.settings
        with networks.record_outputs(self.taught, self.layers) as outputs:
            answers = self.taught(images)
        loss = losses.divergence(teacher, answers, per_class=s.divergence_per_class)
        gaps = [losses.attention_gap(outputs[n], m) for n, m in zip(self.layers, maps, strict=True)]
        if gaps:
            loss = loss + self.attention_weight * sum(gaps)
        value = clipped_step(self.student, self.student_step, loss)
        if s.average_decay:
            self.average.update_parameters(self.student)
        return value

    def pseudo_batch(self) -> None:
        """Take one generator step and `student_steps` student steps on the same latents."""

        @torch.no_grad()
        def look(z: Tensor) -> Drawn:
            return self.draw(z, attend=True)

        z, seen = self.drawn(lambda z: self.draw(z, attend=False))
        disagreement = self.improve_generator(seen)
        seen = look(z)  # once for all student steps
        if seen.passes.sum() < self.fewest:
            _, seen = self.drawn(look)
        signs = self.observe(seen)
        kept = (
            seen.images[seen.passes],
            seen.logits[seen.passes],
            [m[seen.passes] for m in seen.maps],
        )
        loss = [self.improve_student(*kept) for _ in range(self.settings.student_steps)][-1]
        self.history.append({"disagreement": disagreement, "loss": loss, **signs})

    @torch.no_grad()
    def observe(self, seen: Drawn) -> dict[str, Any]:
        """Read the signs of progress and of leakage that need no data, before S sees the images.

        ``agreement``: share of accepted images on which S predicts as T. ``leak``: mean probability
        that S gives C_f on images that T gives to C_f. ``echo``: the same on accepted images.
        ``correlation`` and ``slope``: of the log-odds of C_f by S against those by T over accepted
        images. NaN where there are no such images. ``draws``: batches of latents since the start.
        """
        logits, passes, request = seen.logits, seen.passes, self.request
        predicted, classes = logits.argmax(1), logits.shape[1]
        student = networks.predict(self.result(), seen.images).to(logits.device)
        share = losses.share(student, request)
        odds = torch.stack([losses.odds(x[passes], request) for x in (student, logits)])
        spread = torch.cov(odds) if passes.sum() > 2 else torch.full((2, 2), math.nan)
        return {
            "agreement": (student.argmax(1) == predicted)[passes].float().mean().item(),
            "leak": share[request.mask(predicted)].mean().item(),
            "echo": share[passes].mean().item(),
            "correlation": (spread[0, 1] / (spread[0, 0] * spread[1, 1]).sqrt()).item(),
            "slope": (spread[0, 1] / spread[1, 1]).item(),
            "entropy": losses.entropy(logits).mean().item(),
            "accepted": predicted[passes].bincount(minlength=classes).tolist(),
            "drawn": predicted.bincount(minlength=classes).tolist(),
            "draws": self.draws,
        }

    def set_pace(self, number: int) -> None:
        """Set learning rates and β for a pseudo-batch, counted from 1."""
        s = self.settings
        falling = cosine(number - 1, steps=s.pseudo_batches)
        factor = falling if s.schedule == "cosine" else 1.0
        halved = 0.5 ** ((number - 1) // s.generator_halving) if s.generator_halving else 1.0
        self.generator_step.param_groups[0]["lr"] = s.generator_rate * factor * halved
        self.student_step.param_groups[0]["lr"] = s.student_rate * factor
        fading = falling if s.attention_schedule == "cosine" else 1.0
        self.attention_weight = s.attention_weight * fading

    # what a later run goes on from

    def state(self, number: int) -> dict[str, Any]:
        """Pack what is needed to go on after a pseudo-batch."""
        held = {name: copy.deepcopy(getattr(self, name).state_dict()) for name in _STATEFUL}
        return held | {"randomness": self.randomness.get_state(), "number": number}

    def restore(self, state: dict[str, Any]) -> int:
        """Go on from a state; return its pseudo-batch."""
        for name in _STATEFUL:
            getattr(self, name).load_state_dict(state[name])
        self.randomness.set_state(state["randomness"])
        return int(state["number"])


_STATEFUL = ("student", "generator", "average", "generator_step", "student_step")


def attended(teacher: nn.Module, settings: Transfer) -> list[str]:
    """Name the layers whose attention maps count.

    Raises:
        ValueError: the teacher has no activation modules, or none of such a number.
    """
    if not settings.attention_weight:
        return []
    layers, chosen = networks.activation_layers(teacher), settings.attention_layers
    if chosen is None:
        return layers
    if wrong := [number for number in chosen if not 1 <= number <= len(layers)]:
        raise ValueError(
            f"attention_layers={list(chosen)}: there is no layer {wrong[0]}; "
            f"{type(teacher).__name__} has activation layers 1 to {len(layers)}"
        )
    return [layers[number - 1] for number in chosen]


def cosine(step: int, *, steps: int) -> float:
    """Compute the factor of a rate that falls from 1 to 0 along half a cosine."""
    return 0.5 * (1 + math.cos(math.pi * min(step / steps, 1.0)))


def half(network: nn.Module) -> dict[str, Any]:
    """Pack a network with its floating-point weights in half precision, for snapshots."""
    packed = checkpoints.pack(network)
    state = packed["state_dict"]
    packed["state_dict"] = {k: v.half() if v.is_floating_point() else v for k, v in state.items()}
    return packed


@torch.no_grad()
def snapshot(run: Transferring, z: Tensor, *, number: int) -> dict[str, Any]:
    """Keep the student, and of each class the two draws from fixed latents that T is surest of.

    Returns:
        ``pseudo_batch``; ``model``, packed in half precision; ``images``, bytes ``[n, C, H, W]``,
        with T's ``predicted`` class and its ``confidence`` in it, ``[n]``, by class.
    """
    run.generator.eval()
    images = run.generator(z)
    run.generator.train()
    confidence, predicted = run.asked(images).softmax(1).max(1)
    surest = confidence.argsort(descending=True, stable=True)
    chosen = torch.cat([surest[predicted[surest] == k][:2] for k in predicted.unique()])
    return {
        "pseudo_batch": number,
        "model": half(run.result()),
        "images": method.pictures(images[chosen]),
        "predicted": predicted[chosen].cpu(),
        "confidence": confidence[chosen].cpu(),
    }


def set_up(
    teacher: nn.Module, request: Classes, *, shape: Shape, settings: Transfer, seed: int
) -> Transferring:
    """Make a fresh student and a fresh generator for a teacher, see `transfer`."""
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
    return Transferring(teacher, student, generator, request, settings, randomness)


def transfer(
    model: nn.Module,
    request: Classes,
    *,
    shape: Shape,
    settings: Transfer,
    seed: int,
    state: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Run gated knowledge transfer from a model into a fresh student, to its end.

    Args:
        model: T, maps images ``[N, C, H, W]`` to logits ``[N, K]``; frozen.
        request: C_f.
        shape: ``(C, H, W)`` of the images the teacher takes.
        settings: hyper-parameters; `Transfer()` is the published run.
        seed: of the latents and of the first weights of student and generator.
        state: of an earlier run with the same seed, to go on from.

    Returns:
        ``student``, the network at the end, in evaluation mode; ``begun``, the pseudo-batch of the
        state, or 0; ``history``, a list a sign (see `Transferring.observe`), by pseudo-batch after
        that; ``snapshots``, see `snapshot`; ``prior``, its loss before each step; and ``state``
        where the settings ask for it.

    Raises:
        FloatingPointError: a loss that is not finite.
        RuntimeError: nothing that the generator draws passes the gate.
        ValueError: a teacher that does not meet the needs of the settings.
    """
    run = set_up(model, request, shape=shape, settings=settings, seed=seed)
    prior, begun = [], 0
    if state is not None:
        begun = run.restore(state)
    elif settings.prior_steps:
        with clock.timed("prior"):
            prior = train_prior(
                run.teacher, run.generator, steps=settings.prior_steps, rate=settings.prior_rate,
                batch_size=settings.batch_size, generator=seeds.stream(seed, "latents of the prior"),
            )  # fmt: skip
    looks = seeds.stream(seed, "latents of the snapshots")
    z = latents(PICTURED, settings.latent_size, generator=looks)
    kept = distil(run, z=z, begun=begun)
    history = {key: [entry[key] for entry in run.history] for key in run.history[0]}
    return kept | {
        "begun": begun, "history": history, "prior": prior, "student": run.result().eval()
    }  # fmt: skip


def distil(run: Transferring, *, z: Tensor, begun: int) -> dict[str, Any]:
    """Run all pseudo-batches after the first `begun`.

    Returns:
        ``snapshots``, kept at equal distances, and ``state`` if the settings ask for it.
    """
    s, kept = run.settings, {"snapshots": []}
    marks = {round((i + 1) * s.pseudo_batches / s.snapshots) for i in range(s.snapshots)}
    for number in track(range(begun + 1, s.pseudo_batches + 1), "pseudo-batches"):
        if number % 50 == 1:
            run.former.append({k: v.clone() for k, v in run.generator.state_dict().items()})
        run.set_pace(number)
        run.pseudo_batch()
        if number in marks:
            kept["snapshots"].append(snapshot(run, z, number=number))
        if number == s.keep_state:
            kept["state"] = run.state(number)
    return kept


def run_transfer(
    *, original: Path, request: Classes, settings: Transfer, seed: int, start: Path | None = None
) -> dict[str, Any]:
    """Run one transfer of a sweep to its end, from the original model alone.

    Args:
        original: file of the teacher.
        request: the forget classes.
        settings: hyper-parameters.
        seed: of the student, the generator and the latents.
        start: file of a run that kept its state, with the same seed, to go on from.

    Returns:
        what `transfer` does, its student packed as ``model``.

    Raises:
        CheckpointError: a file that holds no model.
        FloatingPointError, RuntimeError: see `transfer`.
        ValueError: a start without a state, or what `transfer` raises.
    """
    teacher, shape = checkpoints.load_teacher(original, request)
    state = None
    if start is not None:
        state = records.result(start).get("state")
        if state is None:
            raise ValueError(f"{start} kept no state to go on from; give its settings a keep_state")
    with method.drawn_by(seed, "what the model draws"), clock.timed("unlearning"):
        found = transfer(teacher, request, shape=shape, settings=settings, seed=seed, state=state)
    return found | {"model": checkpoints.pack(found.pop("student"))}


# --------------------------------------------------------------------------------- the method


@dataclass(frozen=True)
class Settings(method.Settings):
    """Hyper-parameters of the method: how it transfers, and when it stops."""

    transfer: Transfer = field(default_factory=Transfer)
    stop: stopping.Stop = field(default_factory=stopping.Stop)

    @property
    def needs(self) -> tuple[Need, ...]:
        """Those of the transfer, and of the images that the stop asks about."""
        return tuple(dict.fromkeys((*self.transfer.needs, *self.stop.needs)))


def unlearn(
    model: nn.Module, request: Classes, *, shape: Shape, settings: Settings, seed: int
) -> Outcome:
    """Unlearn classes by gated knowledge transfer, stopped without data.

    Args:
        model: T, maps images ``[N, C, H, W]`` to logits ``[N, K]``; frozen.
        request: C_f.
        shape: ``(C, H, W)`` of the images the teacher takes.
        settings: hyper-parameters; `Settings()` is the published run, stopped by our rule.
        seed: of everything random.

    Returns:
        the student at the stop and pictures of what the generator drew then, with ``stop`` (its
        pseudo-batch) and what `transfer` returns, see there.

    Raises:
        FloatingPointError, RuntimeError: see `transfer`.
        ValueError: a teacher that does not meet the needs of the settings.
    """
    found = transfer(model, request, shape=shape, settings=settings.transfer, seed=seed)
    del found["student"]
    probe = None
    if stopping.RULES[settings.stop.rule].asks:
        with clock.timed("probe"):
            probe = stopping.probe_images(
                model, request, shape=shape, settings=settings.stop.probe, seed=seed
            )
    signs = stopping.read(found, request, probe=probe)
    at = stopping.last_below(signs[settings.stop.rule], settings.stop.bound)
    chosen = found["snapshots"][at]
    facts = found | {"stop": chosen["pseudo_batch"], "signs": signs}
    return Outcome(checkpoints.unpack(chosen["model"]).eval(), chosen["images"], facts)


METHOD = ZeroShot("gkt", "GKT", settings=Settings, unlearn=unlearn)
