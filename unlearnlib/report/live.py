"""Networks that run in a reader's browser: the layers of a network, with small weights.

``templates/live.js`` reads what `described` writes and computes the same logits, in plain JavaScript
without a library. A convolution and the BatchNorm layer after it are written as one convolution,
γ (W ∗ x − μ) / σ + β = (γ/σ · W) ∗ x + (β − γ μ/σ) with the running μ and σ, folded in double
precision. Weights are then rounded to half precision, which moves the logits of the study's networks
by less than 0.01, and written in base64: 60 kB for AllCNN at an eighth of its width.
"""

import base64
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from torch import Tensor, fx, nn

Named = tuple[str, nn.Module]  # a layer behind its name in the network


@dataclass(frozen=True, eq=False)
class Layer:
    """A layer as the script knows it.

    Attributes:
        name: in the network, for messages.
        kind: that the script dispatches on.
        sizes: what else it has to know.
        tensors: weights and bias, in double precision.
    """

    name: str
    kind: str
    sizes: dict[str, int] = field(default_factory=dict)
    tensors: tuple[Tensor, ...] = ()


def described(network: nn.Module) -> dict[str, Any]:
    """Write a network, as it is in evaluation mode, for the script; JSON can hold it.

    Args:
        network: a chain of layers from images ``[N, C, H, W]`` to logits ``[N, K]``; stays as it is.

    Returns:
        ``layers``, in order: ``convolution`` (square kernel, zeros around) with ``inputs``,
        ``outputs``, ``kernel``, ``stride`` and ``padding``; ``relu``; ``average``, over the whole map;
        ``linear`` with ``inputs`` and ``outputs``. And ``weights``, of all layers one after the other,
        half precision, little-endian, in base64: of a convolution ``[outputs, inputs, kernel,
        kernel]``, of a linear layer ``[outputs, inputs]``, each with its bias ``[outputs]`` behind.

    Raises:
        ValueError: the layers are no chain, or one of them is nothing that the script knows, or has
            weights beyond half precision; the message names it.
    """
    layers = list(folded(network))
    content = b"".join(_half(layer) for layer in layers)
    return {
        "layers": [{"kind": layer.kind, **layer.sizes} for layer in layers],
        "weights": base64.b64encode(content).decode(),
    }


def folded(network: nn.Module) -> Iterator[Layer]:
    """Yield the layers of a network with every BatchNorm layer in the convolution before it.

    Raises:
        ValueError: see `described`.
    """
    before: nn.Module | None = None
    chain = _chain(network)
    for (name, module), (_, after) in zip(chain, [*chain[1:], ("", None)], strict=True):
        norm = after if isinstance(after, nn.BatchNorm2d) else None
        if isinstance(module, nn.Conv2d):
            yield _convolution(name, module, norm)
        elif isinstance(module, nn.Linear):
            sizes = {"inputs": module.in_features, "outputs": module.out_features}
            yield Layer(name, "linear", sizes, _tensors(module))
        elif isinstance(module, nn.ReLU):
            yield Layer(name, "relu")
        elif isinstance(module, nn.AdaptiveAvgPool2d) and module.output_size in (1, (1, 1)):
            yield Layer(name, "average")
        elif not (isinstance(module, nn.BatchNorm2d) and isinstance(before, nn.Conv2d)):
            raise _unknown(name, module)
        before = module


def _chain(network: nn.Module) -> list[Named]:
    """List the layers in the order in which an image passes them, without those that do nothing."""
    try:
        nodes = list(fx.Tracer().trace(network).nodes)
    except Exception as error:  # whatever the network's own code does with what is no tensor
        raise ValueError(
            f"{type(network).__name__} is no chain of layers that could be followed ({error}); only "
            "such a network runs in a page"
        ) from error
    modules, found = dict(network.named_modules()), []
    for before, node in pairwise(nodes[:-1]):  # the last one returns what the one before it gave
        if node.op != "call_module" or node.args != (before,) or node.kwargs:
            raise ValueError(
                f"{_place(node)}: {node.name} is no layer behind the one before it; only a chain of "
                "layers runs in a page"
            )
        if not isinstance(modules[node.target], (nn.Flatten, nn.Identity, nn.Dropout)):
            found.append((node.target, modules[node.target]))
    return found


def _place(node: fx.Node) -> str:
    """Name the module whose forward pass holds a step."""
    around = list(node.meta.get("nn_module_stack", {}).values())
    return around[-1][0] if around else "the network"


def _convolution(name: str, module: nn.Conv2d, norm: nn.BatchNorm2d | None) -> Layer:
    sides = {(size, size) for size in (module.kernel_size[0], module.stride[0])}
    plain = (module.groups, module.dilation, module.padding_mode) == (1, (1, 1), "zeros")
    if not plain or {module.kernel_size, module.stride} != sides or len({*module.padding}) != 1:
        raise _unknown(name, module)
    sizes = {
        "inputs": module.in_channels, "outputs": module.out_channels,
        "kernel": module.kernel_size[0], "stride": module.stride[0], "padding": module.padding[0],
    }  # fmt: skip
    weight, bias = _tensors(module)
    if norm is not None:
        if norm.running_mean is None or not norm.affine:
            raise _unknown(f"{name}, the BatchNorm layer after it", norm)
        scale = norm.weight.detach().double() / (norm.running_var.double() + norm.eps).sqrt()
        weight = weight * scale[:, None, None, None]
        bias = norm.bias.detach().double() + (bias - norm.running_mean.double()) * scale
    return Layer(name, "convolution", sizes, (weight, bias))


def _tensors(module: nn.Conv2d | nn.Linear) -> tuple[Tensor, Tensor]:
    """Return weight and bias in double precision, zeros where there is no bias."""
    weight = module.weight.detach().cpu().double()
    bias = weight.new_zeros(len(weight)) if module.bias is None else module.bias.detach()
    return weight, bias.cpu().double()


def _half(layer: Layer) -> bytes:
    """Round the weights of a layer to half precision."""
    rounded = [tensor.half() for tensor in layer.tensors]
    if not all(tensor.isfinite().all() for tensor in rounded):
        raise ValueError(f"{layer.name} has weights that half precision cannot hold")
    return b"".join(tensor.contiguous().numpy().astype("<f2").tobytes() for tensor in rounded)


def _unknown(name: str, module: nn.Module) -> ValueError:
    return ValueError(
        f"{name}: {module} does not run in a page, which knows plain convolutions with BatchNorm, "
        "ReLU, average pooling of whole maps and linear layers"
    )
