"""Models between the original and gold: known to be half unlearned, to see which measure can tell."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from unlearnlib.models import networks
from unlearnlib.pipeline.registry import Named, Registry

CHUNK = 500  # images at once, where BatchNorm's statistics are measured


@dataclass(frozen=True, kw_only=True)
class Decoy(Named):
    """A model on the line from the original to the gold of its seed.

    Attributes:
        share: of the way, above 0 and below 1.
    """

    share: float


DECOYS: Registry[Decoy] = Registry(
    "decoy",
    Decoy("quarter_way", "a quarter of the way to gold", share=0.25),
    Decoy("half_way", "half of the way to gold", share=0.5),
    Decoy("most_way", "three quarters of the way to gold", share=0.75),
)


def between(original: nn.Module, gold: nn.Module, *, share: float, images: Tensor) -> nn.Module:
    """Interpolate two models of one architecture, ``(1 - share) θ_original + share θ_gold``.

    The statistics of BatchNorm do not interpolate with the weights, so they are measured anew
    (as for averaged weights, Izmailov et al. 2018, arXiv 1803.05407).

    Args:
        original, gold: stay as they are.
        share: of the way.
        images: ``[N, C, H, W]`` in [0, 1] that stay, for the statistics.

    Raises:
        ValueError: models of different shapes, or no images.
    """
    if len(images) == 0:
        raise ValueError("no images to measure BatchNorm's statistics on; give some that stay")
    found = copy.deepcopy(original)
    ends = (dict(one.named_parameters()) for one in (original, gold))
    start, end = ends
    if {name: p.shape for name, p in start.items()} != {name: p.shape for name, p in end.items()}:
        raise ValueError("the two models differ in their parameters; give two of one architecture")
    with torch.no_grad():
        for name, parameter in found.named_parameters():
            parameter.copy_(torch.lerp(start[name], end[name], share))
        update_bn(images.split(CHUNK), found, device=networks.device())
    return found.eval()


def decoys(models: Mapping[str, nn.Module], images: Tensor) -> dict[str, nn.Module]:
    """Make all decoys of a request: by name, from its ``original`` and its ``retrain``."""
    pair = models["original"], models["retrain"]
    return {name: between(*pair, share=one.share, images=images) for name, one in DECOYS.items()}
