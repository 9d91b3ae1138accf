"""What any network can be asked: its answers, its features, and what goes on inside.

Nothing here assumes one architecture: inner activations are read through hooks on named layers,
BatchNorm layers are found by type.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain, pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ACTIVATIONS = (nn.ReLU, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Tanh)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def device() -> torch.device:
    """Name the device that runs use: CUDA if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def frozen(network: nn.Module) -> nn.Module:
    """Put a network in evaluation mode, without gradients for its parameters, on `device`."""
    return network.eval().requires_grad_(False).to(device())


@contextmanager
def evaluated(network: nn.Module) -> Iterator[torch.device]:
    """Put a network in evaluation mode while the context is open, without gradients.

    Yields:
        the device that the network is on. Afterwards every module is in the mode that it was in.
    """
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        with torch.no_grad():
            yield next((p.device for p in network.parameters()), torch.device("cpu"))
    finally:
        for module, mode in modes:
            module.training = mode


def predict(network: nn.Module, images: Tensor, *, batch_size: int = 1000) -> Tensor:
    """Compute the logits ``[N, K]`` of images ``[N, C, H, W]`` in evaluation mode, on the CPU."""
    with evaluated(network) as place:
        return torch.cat([network(batch.to(place)).cpu() for batch in images.split(batch_size)])


# ------------------------------------------------------------------------- faster evaluation


class FoldedConvolution(nn.Module):
    """A convolution and the BatchNorm layer after it in evaluation mode, as one convolution.

    γ (W ∗ x − μ) / σ + β = (γ/σ · W) ∗ x + (β − γ μ/σ) with the running μ and σ. Gradients reach
    W, γ and β as they would through the two layers.
    """

    def __init__(self, convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        self.convolution, self.norm = convolution, norm

    def forward(self, x: Tensor) -> Tensor:
        c, n = self.convolution, self.norm
        scale = n.weight * torch.rsqrt(n.running_var + n.eps)
        shifted = n.running_mean if c.bias is None else n.running_mean - c.bias
        weight, bias = c.weight * scale[:, None, None, None], n.bias - shifted * scale
        return F.conv2d(x, weight, bias, c.stride, c.padding, c.dilation, c.groups)


def folded(network: nn.Module) -> nn.Module:
    """Make a twin of a network that computes its answers in evaluation mode, with fewer passes.

    The twin shares every parameter and buffer with the network, so that training one trains the
    other. In each `nn.Sequential` a convolution and a BatchNorm layer that follows it become one
    `FoldedConvolution`; names of layers stay. What the BatchNorm layers are fed can no longer be
    recorded.
    """
    shared = chain(network.parameters(), network.buffers())
    twin = copy.deepcopy(network, {id(tensor): tensor for tensor in shared}).eval()
    for block in [m for m in twin.modules() if isinstance(m, nn.Sequential)]:
        for at, (layer, after) in enumerate(pairwise(block)):
            if _folds(layer, after):
                block[at], block[at + 1] = FoldedConvolution(layer, after), nn.Identity()
    return twin


def _folds(layer: nn.Module, after: nn.Module) -> bool:
    """Tell whether two layers in a row can be one convolution."""
    whole = isinstance(after, nn.BatchNorm2d) and after.affine and after.track_running_stats
    return whole and isinstance(layer, nn.Conv2d) and layer.padding_mode == "zeros"


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


# ----------------------------------------------------------------------------------- features


def answers(network: nn.Module, images: Tensor, *, batch_size: int = 1000) -> tuple[Tensor, Tensor]:
    """Compute logits and features in one pass, in evaluation mode.

    The features are what the read-out sees: what enters the `nn.Linear` that is called last,
    wherever it is defined.

    Args:
        network: any classifier with a linear read-out.
        images: ``[N, C, H, W]``.
        batch_size: images a forward pass.

    Returns:
        logits ``[N, K]`` and features ``[N, D]``, on the CPU.

    Raises:
        ValueError: no linear layer is called.
    """
    logits, features = [], []
    with _last_linear_input(network) as seen, evaluated(network) as place:
        for batch in images.split(batch_size):
            seen.clear()
            logits.append(network(batch.to(place)).cpu())
            if not seen:
                raise ValueError(
                    f"{type(network).__name__} calls no nn.Linear, so there are no features before "
                    "a linear read-out; read a named layer with networks.record_outputs"
                )
            features.append(seen["input"].flatten(1).cpu())
    return torch.cat(logits), torch.cat(features)


def penultimate(network: nn.Module, images: Tensor, *, batch_size: int = 1000) -> Tensor:
    """Compute the features ``[N, D]`` of `answers` alone."""
    return answers(network, images, batch_size=batch_size)[1]


@contextmanager
def _last_linear_input(network: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Record under ``input`` what the latest call of an `nn.Linear` was fed."""
    seen: dict[str, Tensor] = {}
    handles = [
        module.register_forward_pre_hook(lambda _, args: seen.update(input=args[0]))
        for module in network.modules()
        if isinstance(module, nn.Linear)
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
