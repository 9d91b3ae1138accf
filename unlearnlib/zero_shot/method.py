"""What a zero-shot method is, what it returns, and what it may ask of a model.

A method reads the model and nothing else. It is one object beside its code, a `ZeroShot`, and all
are called alike. Those that there are stand in `methods.METHODS`.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unlearnlib.data.requests import Classes, Method
from unlearnlib.models import checkpoints, networks
from unlearnlib.pipeline import clock, seeds

Shape = tuple[int, int, int]  # (C, H, W) of an image
Need = Callable[[nn.Module, Shape], str | None]  # why a model does not meet it, in words


@dataclass(frozen=True, eq=False)
class Outcome:
    """Hold what a method leaves.

    Attributes:
        network: the unlearned classifier, in evaluation mode.
        images: some of those that it learnt from, bytes ``[n, C, H, W]``; n may be 0.
        facts: what else is worth keeping, tensors and plain values by name; not ``model`` nor
            ``images``.
    """

    network: nn.Module
    images: Tensor
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Settings:
    """Hyper-parameters of a method; each method has its own, derived from this."""

    @property
    def needs(self) -> tuple[Need, ...]:
        """What a method with these settings asks of a model, such as `statistics`."""
        return ()


@dataclass(frozen=True, kw_only=True)
class ZeroShot(Method):
    """Say how a method without data is called.

    Attributes:
        settings: its hyper-parameters, derived from `Settings`.
        unlearn: ``unlearn(model, request, *, shape, settings, seed) -> Outcome``. The model stays
            as it is; whatever is drawn, a student's first weights too, follows from the seed.
    """

    family: str = "zero_shot"
    reads: str = field(default="nothing", compare=False)
    serves: tuple[type, ...] = (Classes,)
    why_not: str = field(
        default="takes classes: without data it cannot know the items of a group", compare=False
    )
    settings: type[Settings]
    unlearn: Callable[..., Outcome]


# ---------------------------------------------------------------- what may be asked of a model


def statistics(model: nn.Module, shape: Shape) -> str | None:
    """Need BatchNorm layers that keep statistics, each of them called."""
    with networks.record_inputs(networks.tracked_batch_norms(model)) as fed:
        _pass(model, shape)
    if fed and all(x.numel() for x in fed):
        return None
    return "reads BatchNorm running statistics in place of data, and the network keeps none"


def attention(model: nn.Module, shape: Shape) -> str | None:
    """Need activation modules, each of them called."""
    layers = [n for n, module in model.named_modules() if isinstance(module, networks.ACTIVATIONS)]
    with networks.record_outputs(model, layers) as outputs:
        _pass(model, shape)
    if layers and outputs.keys() == set(layers):
        return None
    return "attends to activation modules such as nn.ReLU, and the network does not call any"


def drawing(model: nn.Module, shape: Shape) -> str | None:
    """Need sides that `generators.Generator` can draw."""
    _, height, width = shape
    if not (height % 4 or width % 4):
        return None
    return f"its generator draws sides that are multiples of 4, not {height} x {width}"


def _pass(model: nn.Module, shape: Shape) -> None:
    networks.predict(model, torch.zeros(2, *shape))


# ------------------------------------------------------------------------- what methods share


@contextmanager
def drawn_by(seed: int, *names: str) -> Iterator[None]:
    """Seed what torch itself draws in the context, such as first weights, by a named stream.

    The caller's random state is left as it was.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seeds.derive(seed, *names))
        yield


def pictures(images: Tensor) -> Tensor:
    """Stretch each image ``[N, C, H, W]`` to 0 ... 255 for a gallery of pictures."""
    low, high = (f(images, dim=(1, 2, 3), keepdim=True) for f in (torch.amin, torch.amax))
    return ((images - low) / (high - low).clamp_min(1e-6) * 255).round().to(torch.uint8).cpu()


# ------------------------------------------------------------------------------ any method


def obstacle(model: nn.Module, shape: Shape, settings: Settings) -> str | None:
    """Tell why a method with these settings cannot serve a model, or return None where it can.

    Args:
        model: maps images ``[N, C, H, W]`` to logits ``[N, K]``.
        shape: ``(C, H, W)`` of an image.
        settings: of the method; their `needs` are tried in turn.

    Returns:
        words that follow the name of the method.
    """
    return next((why for need in settings.needs if (why := need(model, shape))), None)


def unlearn(
    model: nn.Module,
    method: ZeroShot,
    request: Classes,
    *,
    shape: Shape,
    settings: Settings,
    seed: int,
) -> Outcome:
    """Forget classes from a classifier, reading nothing but the classifier.

    Args:
        model: of `architectures.build`; stays as it is, but for being frozen.
        method: an entry of `methods.METHODS`, or another.
        request: what to forget.
        shape: ``(C, H, W)`` of an image.
        settings: of the class that the method names.
        seed: of everything random.

    Raises:
        ValueError: a request that the method does not serve, or settings of another method.
        FloatingPointError: a loss that is not finite.
    """
    if reason := method.cannot(request):
        raise ValueError(f"request {request.name!r}: {method.name} {reason}")
    if not isinstance(settings, method.settings):
        raise ValueError(
            f"{method.name} takes {method.settings.__module__}.{method.settings.__qualname__}, not "
            f"{settings!r}"
        )
    # what a model draws by itself, as dropout does, follows the seed too
    with drawn_by(seed, "what the model draws"), clock.timed("unlearning"):
        return method.unlearn(model, request, shape=shape, settings=settings, seed=seed)


def run(
    *, original: Path, method: ZeroShot, request: Classes, settings: Settings, seed: int
) -> dict[str, Any]:
    """Run one zero-shot unlearning of a sweep, from the original model alone.

    Args:
        original: file of the trained model.
        method: see `unlearn`, as all others.
        request: see `unlearn`.
        settings: see `unlearn`.
        seed: see `unlearn`.

    Returns:
        ``model`` (packed), with the ``shape`` of its images, so that another run may go on from it;
        ``images`` and the facts of the method, see `Outcome`.

    Raises:
        CheckpointError: a file that holds no model.
        ValueError: what `unlearn` raises, or classes that the model does not have.
    """
    model, shape = checkpoints.load_teacher(original, request)
    outcome = unlearn(model, method, request, shape=shape, settings=settings, seed=seed)
    left = {"model": checkpoints.pack(outcome.network), "shape": list(shape)}
    return outcome.facts | left | {"images": outcome.images}
