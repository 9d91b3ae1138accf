"""Bring a trained classifier of your own and forget classes from it without any data.

    from unlearnlib.own import own_model

    model = own_model.load("mine.pt", "mine.py:network", num_classes=10, shape=(3, 32, 32))
    synthesis = {"per_class": 100, "prior_steps": 150, "steps": 8}
    settings = {"synthesis": synthesis, "tuning": {"steps": 600}}
    method = {"method": "masked_distillation", "settings": settings}
    unlearned = own_model.unlearn(model, method, forget_classes=[3], seed=0).network
    own_model.save(unlearned, "mine_without_3.pt")

The factory is named as text, ``package.module:function`` or ``path/to/file.py:function``, so that
worker processes can import it too. Students are fresh networks of the same factory. Relative paths
start at the project's folder.
"""

import hashlib
import importlib
import io
import json
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from unlearnlib.data.requests import Classes
from unlearnlib.models import architectures, checkpoints, networks
from unlearnlib.models.checkpoints import CheckpointError
from unlearnlib.pipeline import fingerprint, schema
from unlearnlib.pipeline.paths import root, write_atomic
from unlearnlib.zero_shot import deep_inversion, methods
from unlearnlib.zero_shot.method import Outcome, Settings, ZeroShot, drawing, statistics

NESTED = ("state_dict", "model_state_dict", "model")  # usual keys of a state dict in a checkpoint
PREFIXES = ("module.", "_orig_mod.")  # of DataParallel and torch.compile
PICTURES = 10  # images that a run keeps of those that a method learnt from
Normalise = Mapping[str, list[float]]
Given = Mapping[str, Any]


class FactoryError(ValueError):
    """A text that names no function which builds a network."""


class Own(nn.Module):
    """Hold a network of someone else's apart from what this library adds to networks.

    Args:
        network: maps standardised images to logits ``[N, K]``.
        shape: ``(C, H, W)`` of an image.
        normalise: ``mean`` and ``std`` of each channel, taken off images in [0, 1] before the
            network sees them; None for none.

    Raises:
        ValueError: other keys, not a number for each channel, or a deviation that is not positive.
    """

    def __init__(
        self, network: nn.Module, shape: tuple[int, ...], normalise: Normalise | None
    ) -> None:
        super().__init__()
        self.network, self.shape = network, shape
        for name, values in _standardisation(normalise, shape[0]).items():
            self.register_buffer(name, values.view(-1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return self.network((images - self.mean) / self.std)

    def to(self, *args: Any, memory_format: Any = None, **options: Any) -> "Own":
        """Move as any module, but keep the memory format: `view` in a `forward` relies on it."""
        return super().to(*args, **options)


def _standardisation(normalise: Normalise | None, channels: int) -> dict[str, Tensor]:
    """Return ``mean`` and ``std``, each of length 1 or `channels`."""
    given = {} if normalise is None else normalise
    remedy = (
        f"give mean and std, each a list of {channels} numbers, as the network was trained with"
    )
    if not isinstance(given, Mapping) or given.keys() - {"mean", "std"}:
        raise ValueError(f"normalise={given!r}: {remedy}")
    found = {}
    for name, default in (("mean", 0.0), ("std", 1.0)):
        try:
            found[name] = torch.as_tensor(given.get(name, default)).float().flatten()
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"normalise: {name}={given[name]!r}: {remedy}") from error
        if len(found[name]) not in (1, channels) or not found[name].isfinite().all():
            raise ValueError(f"normalise: {name}={given[name]!r}: {remedy}")
    if not (found["std"] > 0).all():
        raise ValueError(f"normalise: std={given['std']!r} is not above 0: {remedy}")
    return found


# ------------------------------------------------------------------------------- the factory


def code(factory: str) -> str:
    """Return the SHA-256 of a factory's code: its file, or its module and what that imports.

    Of a module the imports within its package count; of a file nothing but itself.

    Raises:
        FactoryError: malformed text, or no such file or module.
    """
    target, _ = _split(factory)
    if target.endswith(".py"):
        return hashlib.sha256(_source(target, factory)).hexdigest()
    importing(factory)
    return fingerprint.code(target)


def importing(factory: str) -> Callable[..., nn.Module]:
    """Import the function that a text names.

    Raises:
        FactoryError: malformed text, or no such file, module or function, or it fails to import.
    """
    target, name = _split(factory)
    try:
        module = _run(target, factory) if target.endswith(".py") else _module(target)
    except FactoryError:
        raise
    except Exception as error:  # someone else's code fails in any way it can
        raise FactoryError(
            f"factory {factory!r}: {target} cannot be imported ({_short(error)}); install the "
            "package, add its folder to PYTHONPATH, or name a file: path/to/file.py:function"
        ) from error
    if not callable(found := getattr(module, name, None)):
        raise FactoryError(
            f"factory {factory!r}: {target} has no function {name!r}; it has {_functions(module)}"
        )
    return found


def _split(factory: str) -> tuple[str, str]:
    target, _, name = str(factory).rpartition(":")
    if not target or not name.isidentifier():
        raise FactoryError(
            f"factory {factory!r} names no function: write 'package.module:function' or "
            "'path/to/file.py:function'"
        )
    return target, name


def _source(target: str, factory: str) -> bytes:
    try:
        return (root() / Path(target).expanduser()).read_bytes()
    except FileNotFoundError:
        raise FactoryError(
            f"factory {factory!r}: there is no file {target}; relative paths start at the "
            "project's folder"
        ) from None


def _run(target: str, factory: str) -> ModuleType:
    """Import a file as it is now; Python's own import might take an older compiled copy."""
    module = ModuleType(f"own_{Path(target).stem}")
    module.__file__ = target
    sys.modules[module.__name__] = module  # where dataclasses look their module up
    exec(compile(_source(target, factory), target, "exec"), module.__dict__)
    return module


@cache
def _first_seen(target: str) -> str:
    return fingerprint.code(target)


def _module(target: str) -> ModuleType:
    module = importlib.import_module(target)
    if _first_seen(target) != fingerprint.code(target):
        raise FactoryError(f"{target} changed meanwhile; restart the kernel to run the new code")
    return module


def _functions(module: ModuleType) -> str:
    own = [k for k, v in vars(module).items() if callable(v) and v.__module__ == module.__name__]
    return ", ".join(own) or "none"


def _short(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__


def _shown(path: Path) -> str:
    """Return a path as it reads from the project's folder."""
    return str(path.relative_to(root()) if path.is_relative_to(root()) else path)


def _make(factory: str, arguments: dict[str, Any]) -> nn.Module:
    make = importing(factory)
    try:
        network = make(**arguments)
    except Exception as error:
        raise FactoryError(
            f"factory {factory!r} failed with arguments={arguments} ({_short(error)}); give the "
            "arguments that the trained network was built with"
        ) from error
    if not isinstance(network, nn.Module):
        raise FactoryError(
            f"factory {factory!r} returned {type(network).__name__}, not a torch.nn.Module; "
            "name a function that returns the network"
        )
    # the methods compute in it
    return network.float()


def _check_fresh(model: nn.Module, again: nn.Module, factory: str) -> None:
    """Raise FactoryError if two calls gave the same weights: a student would not start afresh."""
    weights = [(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True)]
    if weights and all(torch.equal(a, b) for a, b in weights):
        raise FactoryError(
            f"factory {factory!r} returns the same weights at every call, so a student would not "
            "start afresh; load no weights and set no seed inside it"
        )


# ---------------------------------------------------------------------------- the checkpoint


def read_state(checkpoint: str | Path) -> dict[str, Tensor]:
    """Read a state dict, plain or under one of the keys `NESTED`, refusing anything that runs code.

    Raises:
        CheckpointError: absent, unreadable, or something else than a state dict.
    """
    path = root() / Path(checkpoint).expanduser()
    remedy = "save the state dict: torch.save(model.state_dict(), path)"
    if not path.is_file():
        raise CheckpointError(
            f"checkpoint {_shown(path)} does not exist; relative paths start at the project's "
            "folder"
        )
    try:
        content = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # foreign bytes make the unpickler fail in any way it can
        raise CheckpointError(
            f"checkpoint {_shown(path)} is damaged or holds more than tensors and plain values, as "
            f"a pickled whole model does ({type(error).__name__}); where it was made, {remedy}"
        ) from error
    for key in NESTED:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not _is_state(content):
        keys = f" with the keys {list(content)[:4]}" if isinstance(content, dict) else ""
        raise CheckpointError(
            f"checkpoint {_shown(path)} holds {type(content).__name__}{keys}, not a state dict; "
            f"{remedy}"
        )
    return dict(content)


def _is_state(content: Any) -> bool:
    return isinstance(content, dict) and all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items()
    )


def _fill(network: nn.Module, state: dict[str, Tensor], checkpoint: str | Path) -> None:
    """Load a state dict into a network, without the prefixes that wrappers leave."""
    wanted = network.state_dict()
    state = _unwrapped(state, set(wanted))
    shared = wanted.keys() & state.keys()
    differing = {
        "missing": [key for key in wanted if key not in state],
        "unexpected": [key for key in state if key not in wanted],
        "of another shape": [
            f"{key} {list(state[key].shape)} for {list(wanted[key].shape)}"
            for key in wanted
            if key in shared and state[key].shape != wanted[key].shape
        ],
    }
    if texts := [f"{len(k)} {kind}: {', '.join(k[:3])}" for kind, k in differing.items() if k]:
        raise CheckpointError(
            f"checkpoint {_shown(root() / checkpoint)} does not fit {type(network).__name__} "
            f"({'; '.join(texts)}); give the factory and the arguments that it was trained with"
        )
    not_finite = [key for key, value in state.items() if not torch.isfinite(value).all()]
    if not_finite:
        raise CheckpointError(
            f"checkpoint {_shown(root() / checkpoint)} holds values that are not finite: "
            f"{len(not_finite)} keys, {', '.join(not_finite[:3])}; name one from before the "
            "training diverged"
        )
    network.load_state_dict(state)


def _unwrapped(state: dict[str, Tensor], wanted: set[str]) -> dict[str, Tensor]:
    """Take off prefixes that all keys share, one after the other, until the keys are known."""
    while not state.keys() <= wanted:
        prefix = next((p for p in PREFIXES if all(key.startswith(p) for key in state)), None)
        if prefix is None:
            break
        state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


@torch.no_grad()
def _check_output(model: Own) -> None:
    """Raise ValueError unless one forward pass gives logits ``[N, K]``."""
    images = torch.rand(2, *model.shape, generator=torch.Generator().manual_seed(0))
    wanted, name = [2, architectures.num_classes(model)], type(model.network).__name__
    try:
        logits = model.eval()(images)
    except Exception as error:
        raise ValueError(
            f"{name} cannot take images {list(images.shape)} ({_short(error)}); give shape as "
            "[channels, height, width] of the images that it was trained on, and a network that "
            "computes in float32"
        ) from error
    found = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    if found != wanted:
        raise ValueError(
            f"{name} maps images {list(images.shape)} to {found}, not to logits {wanted}; "
            "set num_classes, or name a factory whose network returns the logits alone"
        )
    if not torch.isfinite(logits).all():
        raise ValueError(f"{name} gives logits that are not finite; look at the checkpoint")
    if (logits >= 0).all() and torch.allclose(logits.sum(1), torch.ones(2), atol=1e-4):
        raise ValueError(
            f"{name} gives probabilities, not logits: their sum is 1; leave out the last softmax"
        )


def load(
    checkpoint: str | Path,
    factory: str,
    *,
    num_classes: int,
    shape: tuple[int, int, int],
    arguments: Given | None = None,
    normalise: Normalise | None = None,
) -> Own:
    """Load a trained classifier and check that it maps images in [0, 1] to logits ``[N, K]``.

    Args:
        checkpoint: file of a state dict, see `read_state`; with or without the prefixes of
            DataParallel and torch.compile, in any precision.
        factory: text that names a function, see `importing`; returns an untrained network.
        num_classes: K.
        shape: ``(C, H, W)`` of an image.
        arguments: keywords of the factory.
        normalise: ``mean`` and ``std`` by channel, if the network was trained on images
            standardised so outside of it.

    Returns:
        the classifier, frozen; its ``network`` is the factory's, in float32.

    Raises:
        CheckpointError: a file that does not hold what the factory's network needs, or NaN.
        FactoryError: a factory that cannot be imported or called, or that trains or seeds itself.
        ValueError: no logits ``[N, K]``, or a `normalise` of other keys or lengths.
    """
    given, shape = dict(arguments or {}), tuple(shape)
    _standardisation(normalise, shape[0])
    name = f"{factory} {json.dumps([given, shape, normalise], sort_keys=True, default=repr)}"
    architectures.ARCHITECTURES[name] = lambda **_: Own(_make(factory, given), shape, normalise)
    model, again = (
        architectures.build(name, channels=shape[0], num_classes=num_classes) for _ in range(2)
    )
    _check_fresh(model, again, factory)
    _fill(model.network, read_state(checkpoint), checkpoint)
    _check_output(model)
    return networks.frozen(model)


@dataclass(frozen=True, eq=False)
class Description:
    """Say what a model of one's own is made of, for runs in processes of their own.

    Attributes:
        checkpoint: see `load`, as all others but `code`.
        factory: see `load`.
        num_classes: see `load`.
        shape: see `load`.
        arguments: see `load`.
        normalise: see `load`.
        code: of the factory as it is now, so that a changed one runs again.

    Raises:
        FactoryError: malformed text, or no such file or module.
    """

    checkpoint: Path
    factory: str
    num_classes: int
    shape: tuple[int, int, int]
    arguments: Given = field(default_factory=dict)
    normalise: Normalise | None = None
    code: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "checkpoint", root() / Path(self.checkpoint).expanduser())
        object.__setattr__(self, "shape", tuple(self.shape))
        object.__setattr__(self, "code", self.code or code(self.factory))

    def load(self) -> Own:
        """Load the model, see `load`.

        Raises:
            FactoryError: a factory that is not the one that was described.
        """
        if self.code != code(self.factory):
            raise FactoryError(f"{self.factory} changed meanwhile; run again")
        return load(
            self.checkpoint,
            self.factory,
            num_classes=self.num_classes,
            shape=self.shape,
            arguments=self.arguments,
            normalise=self.normalise,
        )


def save(model: Own, path: str | Path) -> None:
    """Write the plain state dict of the factory's network, at once or not at all."""
    state = {k: v.detach().cpu().clone() for k, v in model.network.state_dict().items()}
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_atomic(root() / path, buffer.getvalue())


def load_images(
    path: str | Path, *, num_classes: int, shape: tuple[int, int, int]
) -> tuple[Tensor, Tensor]:
    """Read test images ``[N, C, H, W]`` in [0, 1] and labels ``[N]`` from an ``.npz`` file.

    Bytes are divided by 255; ``[N, H, W]`` is taken for one channel.

    Raises:
        ValueError: absent, without ``images`` and ``labels``, or not as the model takes them.
    """
    file = root() / Path(path).expanduser()
    try:
        with np.load(file, allow_pickle=False) as content:
            images, labels = (torch.from_numpy(content[name]) for name in ("images", "labels"))
    except (OSError, KeyError, ValueError) as error:
        raise ValueError(
            f"{_shown(file)} holds no test images ({_short(error)}); write them with "
            "numpy.savez(path, images=images, labels=labels)"
        ) from error
    if len(labels) == 0:
        raise ValueError(f"{_shown(file)} holds no test images: there are no labels; give some")
    images = images.float() / 255 if images.dtype == torch.uint8 else images.float()
    images = images.unsqueeze(1) if images.dim() == 3 else images
    if images.shape != (len(labels), *shape) or not 0 <= images.min() <= images.max() <= 1:
        raise ValueError(
            f"{_shown(file)}: {len(labels)} labels, images {list(images.shape)} from "
            f"{images.min():.3g} to {images.max():.3g}; give [N, {', '.join(map(str, shape))}], "
            "bytes or values in [0, 1]"
        )
    known = torch.isin(labels, torch.arange(num_classes))
    if not known.all():
        raise ValueError(
            f"{_shown(file)}: labels from {labels.min()} to {labels.max()}; give class numbers "
            f"from 0 to {num_classes - 1}"
        )
    return images, labels.long()


# -------------------------------------------------------------------------------- unlearning


def chosen(given: Given) -> tuple[ZeroShot, Settings]:
    """Find a method and make its settings: of ``{"method": "gkt", "settings": {...}}``.

    Raises:
        ValueError: other keys, an unknown method, or settings that it does not take.
    """
    if not isinstance(given, Mapping) or not {"method"} <= given.keys() <= {"method", "settings"}:
        raise ValueError(
            f"method={given!r}: give 'method', one of {list(methods.METHODS)}, and 'settings'"
        )
    entry = methods.METHODS[given["method"]]
    return entry, schema.build(entry.settings, given.get("settings") or {})


def unlearn(
    model: Own,
    method: Given | ZeroShot,
    *,
    forget_classes: Iterable[int] | Classes,
    seed: int,
    settings: Settings | None = None,
) -> Outcome:
    """Forget classes from a classifier by a zero-shot method.

    Args:
        model: of `load`; stays as it is.
        method: ``{"method": name, "settings": {...}}``, see `methods.METHODS`; or an entry of it.
        forget_classes: class numbers, or a request for them.
        seed: of everything random, a student's first weights included.
        settings: of an entry; its defaults where it is left out.

    Returns:
        ``network``, the unlearned classifier; ``images``, some that it learnt from, bytes
        ``[n, C, H, W]``, none of masked distillation; and further ``facts`` of the method.

    Raises:
        ValueError: classes that are not there, or all; a method that is not applicable.
        FloatingPointError: a loss that is not finite.
    """
    if not isinstance(method, ZeroShot):
        if settings is not None:
            raise ValueError("settings belong inside the method where it is given by its name")
        method, settings = chosen(method)
    settings = method.settings() if settings is None else settings
    request = forget_classes if isinstance(forget_classes, Classes) else Classes(forget_classes)
    return _unlearned(model, method, settings, request, seed)


def _unlearned(
    model: Own, entry: ZeroShot, settings: Settings, request: Classes, seed: int
) -> Outcome:
    request.check(architectures.num_classes(model))
    if reason := methods.obstacle(model, model.shape, settings):
        raise ValueError(f"{entry.name} is not applicable: {reason}")
    return methods.unlearn(model, entry, request, shape=model.shape, settings=settings, seed=seed)


def run(
    *, model: Description, method: ZeroShot, settings: Settings, request: Classes, seed: int
) -> dict[str, Any]:
    """Run one method of a sweep on a model of one's own.

    Args:
        model: what to load.
        method: an entry of `methods.METHODS`.
        settings: of it.
        request: classes to forget.
        seed: see `unlearn`.

    Returns:
        ``model`` (packed) and ``images``, up to 10 of them; or ``failed``, why the method came to
        no end.

    Raises:
        ValueError: what `Description.load` raises, or a request that the model cannot serve.
    """
    own = model.load()
    request.check(architectures.num_classes(own))
    try:
        outcome = _unlearned(own, method, settings, request, seed)
    except (FloatingPointError, RuntimeError, ValueError) as error:
        return {"failed": str(error)}
    spread = outcome.images[:: max(1, len(outcome.images) // PICTURES)][:PICTURES]
    return {"model": checkpoints.pack(outcome.network), "images": spread}


# ------------------------------------------------------------------------ signs without data


def run_drawing(
    *, model: Description, settings: deep_inversion.Synthesis, seed: int
) -> dict[str, Any]:
    """Draw images of every class from the model, to compare answers on where there is no data.

    What the model cannot serve, BatchNorm statistics or the generator, is left out.

    Args:
        model: what to load.
        settings: of the drawing.
        seed: of all that is drawn.

    Returns:
        ``images`` ``[N, C, H, W]`` as bytes.
    """
    own = model.load()
    if statistics(own, own.shape):
        settings = replace(settings, statistics_weight=0.0, prior_steps=0)
    if drawing(own, own.shape):
        settings = replace(settings, prior_steps=0)
    classes = range(architectures.num_classes(own))
    images, _ = deep_inversion.synthesise(
        own, classes, shape=own.shape, settings=settings, seed=seed
    )
    return {"images": images}


def signs(
    original: nn.Module, unlearned: nn.Module, images: Tensor, request: Classes
) -> dict[str, float]:
    """Compare the answers of two models on images ``[N, C, H, W]`` in [0, 1], without labels.

    Returns:
        in percent, NaN where there is no such image: ``leak``, the mean probability that the
        unlearned model gives the forgotten classes on images that the original names so;
        ``agreement``, the share of the others that both name alike.
    """
    named, answers = (networks.predict(m, images) for m in (original, unlearned))
    gone = request.mask(named.argmax(1))
    leak = answers.softmax(1)[:, list(request.classes)].sum(1)[gone].mean()
    agree = (answers.argmax(1) == named.argmax(1))[~gone].float().mean()
    return {"leak": 100 * leak.item(), "agreement": 100 * agree.item()}
