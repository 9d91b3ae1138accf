"""Networks on disk: packed into the result of a run, and read back."""

from pathlib import Path
from typing import Any

from torch import nn

from unlearnlib.data.requests import Classes
from unlearnlib.models.architectures import build, num_classes
from unlearnlib.models.networks import frozen
from unlearnlib.pipeline import records
from unlearnlib.pipeline.records import RecordError


class CheckpointError(ValueError):
    """A file that does not hold the model that was asked for."""


def pack(network: nn.Module) -> dict[str, Any]:
    """Turn a network into what a file holds: its architecture and its state dict, on the CPU."""
    state = {name: tensor.detach().cpu().clone() for name, tensor in network.state_dict().items()}
    return {"architecture": dict(network.architecture), "state_dict": state}


def unpack(packed: dict[str, Any]) -> nn.Module:
    """Rebuild the network of `pack`; half-precision states are widened to float32.

    Raises:
        CheckpointError: no packed network, or weights that do not fit the architecture.
    """
    try:
        network = build(**packed["architecture"])
        network.load_state_dict(
            {k: v.float() if v.is_floating_point() else v for k, v in packed["state_dict"].items()}
        )
    except (KeyError, TypeError, AttributeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"no usable model: {error}") from error
    return network


def load(path: Path, **expected: Any) -> nn.Module:
    """Load the model that a run left, and check that it is the one that was asked for.

    Args:
        path: a file of ``runs/``: a record whose result has a packed ``model``.
        expected: parts of the architecture that must agree, such as ``model="allcnn"``.

    Raises:
        CheckpointError: missing, unreadable, not a record of a run, or of another architecture.
    """
    return _network(_result(path), path, expected)


def load_teacher(path: Path, request: Classes) -> tuple[nn.Module, tuple[int, int, int]]:
    """Load the model to unlearn from, and all that a data-free method may know beside it.

    Args:
        path: a file of ``runs/``, left by a training.
        request: the classes to forget.

    Returns:
        the model, frozen, and the shape ``(C, H, W)`` of its images.

    Raises:
        CheckpointError: as in `load`, or no shape, as in a file that no training left.
        RequestError: classes that the model does not have, or all that it has.
    """
    result = _result(path)
    model = _network(result, path, {})
    request.check(num_classes(model))
    if "shape" not in result:
        raise CheckpointError(f"{path} holds no shape of images; name a file that training left")
    return frozen(model), tuple(result["shape"])


def _result(path: Path) -> dict[str, Any]:
    try:
        return records.result(path)
    except RecordError as error:
        raise CheckpointError(str(error)) from error


def _network(result: dict[str, Any], path: Path, expected: dict[str, Any]) -> nn.Module:
    packed = result.get("model")
    if not isinstance(packed, dict) or not isinstance(packed.get("architecture"), dict):
        raise CheckpointError(f"{path} holds no model; run the stage that writes it again")
    found = packed["architecture"]
    if differing := {k: v for k, v in expected.items() if found.get(k) != v}:
        raise CheckpointError(
            f"{path} holds the architecture {found}, but {differing} was asked for; "
            "run the training stage with these parameters, or ask for the model that is there"
        )
    try:
        return unpack(packed)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}; run the stage that writes it again") from error
