"""How far the statistics of a batch lie from those that a classifier remembers, in few passes."""

from collections.abc import Sequence
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from unlearnlib.models import networks
from unlearnlib.models.networks import FoldedConvolution

SMALL = 1e-3  # a scale of BatchNorm below which too many digits are lost in dividing by it


class _Distance(torch.autograd.Function):
    """‖μ(u) − μ̂‖₂ + ‖σ²(u) − σ̂²‖₂ by channel, of what a BatchNorm layer is fed.

    It is given x = centre + scale (u − μ̂), which is u itself with centre μ̂ and scale 1. The gradient
    is an affine function of x with a slope and an offset a channel, so it takes one pass; autograd's
    way through `torch.var_mean` takes several times as long on a CPU.
    """

    @staticmethod
    def forward(ctx, x: Tensor, centre: Tensor, scale: Tensor, variance: Tensor) -> Tensor:
        count = x.numel() / x.shape[1]
        # about the remembered mean, which lies close to that of the batch: no digits cancel
        centred = (x - _channels(centre, x)).view(*x.shape[:2], -1)
        mean = centred.sum(2).sum(0) / count
        square = torch.linalg.vector_norm(centred, dim=2).square().sum(0) / count
        off, wider = mean / scale, (square - mean.square()) / scale.square() - variance
        far, wide = torch.linalg.vector_norm(off), torch.linalg.vector_norm(wider)
        slope = 2 * wider / wide.clamp_min(1e-30) / scale.square() / count
        offset = off / far.clamp_min(1e-30) / scale / count - slope * (centre + mean)
        ctx.save_for_backward(x, slope, offset)
        return far + wide

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        x, slope, offset = ctx.saved_tensors
        affine = (x * _channels(gradient * slope, x)).add_(_channels(gradient * offset, x))
        return affine, None, None, None


def _channels(values: Tensor, x: Tensor) -> Tensor:
    """Shape numbers ``[C]`` to go with ``[N, C, ...]``."""
    return values.view(1, -1, *[1] * (x.dim() - 2))


def distance(inputs: Sequence[Tensor], layers: Sequence[nn.Module]) -> Tensor:
    """Measure how far batch statistics lie from running ones, summed over BatchNorm layers.

    Σ_l ‖μ_l(x) − μ̂_l‖₂ + ‖σ²_l(x) − σ̂²_l‖₂ (DeepInversion, arXiv 1912.08795, equation 4), where σ²
    is the variance that divides by the number of values. Differentiable once; where a norm is 0 its
    gradient is taken as 0.

    Args:
        inputs: what each layer was fed, ``[N, C, ...]``, in the order of `layers`.
        layers: BatchNorm layers with running statistics.

    Returns:
        a number, 0 without layers.
    """
    total = torch.zeros(())
    for x, layer in zip(inputs, layers, strict=True):
        mean, variance = layer.running_mean, layer.running_var
        one = _Distance.apply(x, mean, torch.ones_like(mean), variance)
        total = total.to(x.device) + one
    return total


class Observed:
    """A classifier that answers together with the `distance` of what its BatchNorm layers are fed.

    Where a layer follows a convolution the two are computed as one (`networks.folded`), and its
    statistics are read off the output β + γ/σ̂ (x − μ̂): the same number with fewer passes.

    Args:
        network: in evaluation mode; its weights stay as they are while it is observed.
        weight: of the distance in what is minimised; with 0 it is not computed, and the network
            needs no BatchNorm.

    Raises:
        ValueError: no BatchNorm layer that keeps running statistics, where they are needed.
    """

    def __init__(self, network: nn.Module, *, weight: float = 1.0) -> None:
        self.layers = networks.batch_norms(network) if weight else []
        scales = [_scale(layer).abs().min() for layer in self.layers if layer.affine]
        clear = not scales or min(scales) > SMALL
        self.network = networks.folded(network) if clear else network
        self.folded = {
            name: module
            for name, module in self.network.named_modules()
            if isinstance(module, FoldedConvolution) and weight
        }
        inside = {id(module.norm) for module in self.folded.values()}
        every = networks.tracked_batch_norms(self.network) if weight else []
        self.plain = [layer for layer in every if id(layer) not in inside]

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Compute logits ``[N, K]`` of images, and the distance, both with their graph."""
        with ExitStack() as watching:
            fed = watching.enter_context(networks.record_inputs(self.plain))
            made = watching.enter_context(networks.record_outputs(self.network, [*self.folded]))
            logits = self.network(images)
        total = distance(fed, self.plain)
        for name, module in self.folded.items():
            norm = module.norm
            total = total.to(logits.device) + _Distance.apply(
                made[name], norm.bias, _scale(norm), norm.running_var
            )
        return logits, total


def _scale(layer: nn.Module) -> Tensor:
    """Compute γ/σ̂ ``[C]`` of a BatchNorm layer in evaluation mode."""
    return layer.weight.detach() * torch.rsqrt(layer.running_var + layer.eps)
