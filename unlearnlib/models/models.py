"""Build classifiers, look inside them, and keep them on disk.

Every unlearning method of the study takes any ``nn.Module`` that maps images ``[N, C, H, W]`` in
[0, 1] to logits ``[N, K]``. Nothing here assumes one architecture: inner activations are read
through hooks on named layers, BatchNorm layers are found by type.
"""

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unlearnlib.data.classes import check_forget_classes

ACTIVATIONS = (nn.ReLU, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Tanh)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class CheckpointError(ValueError):
    """A file that does not hold the model that was asked for."""


def convolution(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    """Make a convolution without bias that keeps the size (over stride), BatchNorm and ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


class AllCNN(nn.Module):
    """The all-convolutional network of the zero-shot unlearning study (arXiv 2201.05629).

    Eight convolutions with BatchNorm and ReLU, two of them with stride 2, global average pooling
    and a linear read-out. ``width`` multiplies the 96 and 192 filters.
    """

    def __init__(self, *, width: float = 1.0, channels: int = 1, num_classes: int = 10) -> None:
        super().__init__()
        narrow, wide = (filters(width, base) for base in (96, 192))
        self.features = nn.Sequential(
            convolution(channels, narrow),
            convolution(narrow, narrow),
            convolution(narrow, narrow, stride=2),
            convolution(narrow, wide),
            convolution(wide, wide),
            convolution(wide, wide, stride=2),
            convolution(wide, wide),
            convolution(wide, wide, kernel=1),
        )
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.classifier = nn.Linear(wide, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.pool(self.features(images)))


def filters(width: float, base: int) -> int:
    """Scale a layer's number of filters by the width multiplier.

    Raises:
        ValueError: no filter would be left.
    """
    number = round(width * base) if width > 0 else 0
    if number < 1:
        raise ValueError(
            f"width {width} leaves no filter of {base}; give a width above 0, e.g. 0.125"
        )
    return number


class LeNet5(nn.Module):
    """LeNet-5 with ReLU and max pooling (LeCun et al. 1998), 61,706 parameters at width 1."""

    def __init__(self, *, width: float = 1.0, channels: int = 1, num_classes: int = 10) -> None:
        super().__init__()
        first, second, third, fourth = (filters(width, base) for base in (6, 16, 120, 84))
        self.features = nn.Sequential(
            nn.Conv2d(channels, first, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(first, second, 5),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
        )
        self.hidden = nn.Sequential(
            nn.Linear(second * 25, third), nn.ReLU(), nn.Linear(third, fourth), nn.ReLU()
        )
        self.classifier = nn.Linear(fourth, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.hidden(self.features(images)))


ARCHITECTURES: dict[str, Callable[..., nn.Module]] = {"allcnn": AllCNN, "lenet5": LeNet5}


def build(model: str, *, width: float = 1.0, channels: int = 1, num_classes: int = 10) -> nn.Module:
    """Build a freshly initialised classifier that remembers how it was built.

    Args:
        model: a name in `ARCHITECTURES`.
        width: multiplier of the filter counts, above 0.
        channels: channels of the images.
        num_classes: length of the logits.

    Raises:
        ValueError: unknown name, or a width that leaves a layer without filters.
    """
    if model not in ARCHITECTURES:
        raise ValueError(f"unknown model {model!r}; choose one of {sorted(ARCHITECTURES)}")
    options = {"width": float(width), "channels": channels, "num_classes": num_classes}
    network = ARCHITECTURES[model](**options)
    network.architecture = {"model": model, **options}
    return network.to(memory_format=torch.channels_last)


def fresh_like(network: nn.Module) -> nn.Module:
    """Build the same architecture with new random weights (a student, a retrained model)."""
    return build(**network.architecture)


def device() -> torch.device:
    """Name the device that runs use: CUDA if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def frozen(network: nn.Module) -> nn.Module:
    """Put a network in evaluation mode, without gradients for its parameters, on `device`."""
    return network.eval().requires_grad_(False).to(device())


@torch.no_grad()
def predict(network: nn.Module, images: Tensor, *, batch_size: int = 1000) -> Tensor:
    """Compute the logits ``[N, K]`` of images ``[N, C, H, W]`` in evaluation mode, on the CPU.

    The network's training mode is restored afterwards.
    """
    training = network.training
    network.eval()
    place = next(network.parameters()).device
    logits = [network(batch.to(place)).cpu() for batch in images.split(batch_size)]
    network.train(training)
    return torch.cat(logits)


# ---------------------------------------------------------------------------- looking inside


def batch_norms(network: nn.Module) -> list[nn.Module]:
    """List the BatchNorm layers that keep running statistics, in the order of definition.

    Raises:
        ValueError: there are none, so the model holds no statistics of its training data.
    """
    if not (layers := tracked_batch_norms(network)):
        raise ValueError(
            f"{type(network).__name__} has no BatchNorm running statistics, which this method "
            "reads in place of data; set its statistics weight and prior steps to 0 or use a model "
            "with BatchNorm"
        )
    return layers


def tracked_batch_norms(network: nn.Module) -> list[nn.Module]:
    """List the layers of `batch_norms`, none for a model without BatchNorm."""
    return [m for m in network.modules() if isinstance(m, BATCH_NORMS) and m.track_running_stats]


def activation_layers(network: nn.Module) -> list[str]:
    """Name the activation modules, in the order of definition: the default attention layers.

    Raises:
        ValueError: there are none, so there is nothing to attend to.
    """
    layers = [name for name, module in network.named_modules() if isinstance(module, ACTIVATIONS)]
    if not layers:
        raise ValueError(
            f"{type(network).__name__} has no activation module such as nn.ReLU; set the attention "
            "weight to 0 or make its activations modules"
        )
    return layers


@contextmanager
def record_outputs(network: nn.Module, layers: list[str]) -> Iterator[dict[str, Tensor]]:
    """Record what named layers put out while the context is open.

    Yields:
        a dict from layer name to the output of the latest forward pass, with its graph.

    Raises:
        ValueError: a layer that the network does not have.
    """
    modules, outputs = dict(network.named_modules()), {}
    if missing := [name for name in layers if name not in modules]:
        raise ValueError(
            f"no layer {missing} in {type(network).__name__}; it has {list(modules)[1:]}"
        )
    handles = [
        modules[name].register_forward_hook(
            lambda _, __, out, name=name: outputs.update({name: out})
        )
        for name in layers
    ]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def record_inputs(modules: list[nn.Module]) -> Iterator[list[Tensor]]:
    """Record what modules are fed while the context is open.

    Yields:
        what each module was fed in the latest forward pass, in the order of `modules`, whatever
        the order in which the network calls them.
    """
    inputs: list[Tensor] = [torch.empty(0)] * len(modules)
    handles = [
        module.register_forward_pre_hook(lambda _, args, i=i: inputs.__setitem__(i, args[0]))
        for i, module in enumerate(modules)
    ]
    try:
        yield inputs
    finally:
        for handle in handles:
            handle.remove()


# ----------------------------------------------------------------------------------- on disk


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
    packed = load_result(path).get("model")
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


def load_teacher(path: Path, forget_classes: list[int]) -> tuple[nn.Module, tuple[int, int, int]]:
    """Load the model to unlearn from, and all that a data-free method may know beside it.

    Returns:
        the model, frozen, and the shape ``(C, H, W)`` of its images.

    Raises:
        CheckpointError: as in `load`.
        ValueError: forget classes that the model does not have, or all that it has.
    """
    model = load(path)
    check_forget_classes(forget_classes, num_classes(model))
    return frozen(model), tuple(load_result(path)["shape"])


def num_classes(network: nn.Module) -> int:
    """Return the length of the logits."""
    return network.architecture["num_classes"]


def load_record(path: Path) -> dict[str, Any]:
    """Read what a run left in `path`, refusing anything but tensors and plain values.

    Returns:
        ``spec``, ``seconds`` and ``result`` of the run.

    Raises:
        CheckpointError: absent, unreadable, unsafe, or not the record of a run.
    """
    try:
        content = Path(path).read_bytes()
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} does not exist; run the stage that writes it") from error
    try:
        record = torch.load(io.BytesIO(content), weights_only=True)
    except Exception as error:  # foreign bytes make the unpickler fail in any way it can
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise CheckpointError(
            f"{path} is no file of tensors and plain values ({reason}); "
            "delete it and run the stage that writes it"
        ) from error
    if not isinstance(record, dict) or not isinstance(record.get("result"), dict):
        raise CheckpointError(
            f"{path} holds {type(record).__name__}, not the record of a run; "
            "delete it and run the stage that writes it"
        )
    return record


def load_result(path: Path) -> dict[str, Any]:
    """Read the result of the record in `path`, see `load_record`."""
    return load_record(path)["result"]
