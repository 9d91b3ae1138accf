"""Distort images at random, each by its own affine map, where a teacher labels what comes out."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def distort(
    images: Tensor,
    *,
    rotation: float,
    scaling: float,
    shear: float,
    generator: torch.Generator,
) -> Tensor:
    """Rotate, scale and shear each image of a batch ``[N, C, H, W]`` about its centre.

    Values in between are interpolated bilinearly; zeros move in.

    Args:
        images: on any device.
        rotation: largest angle either way, in degrees.
        scaling: largest relative change of the size of a pixel, either way.
        shear: largest shift of a row over its distance from the centre, either way.
        generator: of the maps, uniform and independent.

    Returns:
        new images, or those given where nothing is to be changed.
    """
    if not (rotation or scaling or shear):
        return images
    draws = 2 * torch.rand((3, len(images)), generator=generator) - 1
    angle, slant = math.radians(rotation) * draws[0], shear * draws[2]
    cosine, sine, size = angle.cos(), angle.sin(), 1 + scaling * draws[1]
    # a rotation after a shear, and no translation
    rows = [[cosine, slant * cosine - sine], [sine, slant * sine + cosine]]
    linear = size[:, None, None] * torch.stack([torch.stack(row, 1) for row in rows], 1)
    maps = F.pad(linear, (0, 1)).to(images.device)
    grid = F.affine_grid(maps, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)
