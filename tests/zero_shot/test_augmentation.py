"""Distortions: known maps of known pictures, and maps of their own for each image."""

import math

import pytest
import scipy.ndimage
import torch
from torch import Tensor

from unlearnlib.zero_shot import augmentation
from unlearnlib.zero_shot.augmentation import distort

NONE = {"rotation": 0.0, "scaling": 0.0, "shear": 0.0}


def blob(count: int) -> Tensor:
    """Draw a bright spot to the right of the centre, smooth enough to be moved."""
    y, x = torch.meshgrid(torch.arange(29) - 14, torch.arange(29) - 14, indexing="ij")
    spot = torch.exp(-((x - 7) ** 2 + y**2) / 8)
    return spot.expand(count, 1, -1, -1)


def centre(images: Tensor) -> Tensor:
    """Compute the centre of mass ``[N, 2]`` of images: x to the right, y down, from the middle."""
    places = [scipy.ndimage.center_of_mass(image[0].numpy()) for image in images]
    return torch.tensor(places).flip(1) - 14


def moved(count: int = 200, **changed: float) -> Tensor:
    randomness = torch.Generator().manual_seed(0)
    return distort(blob(count), **(NONE | changed), generator=randomness)


def test_nothing_is_changed_and_nothing_drawn_where_nothing_is_asked():
    images, randomness = blob(2), torch.Generator().manual_seed(0)
    before = randomness.get_state()
    assert distort(images, **NONE, generator=randomness) is images
    assert torch.equal(randomness.get_state(), before)


def test_a_rotation_keeps_the_distance_and_fills_its_range_of_angles():
    x, y = centre(moved(rotation=30.0)).T
    assert (torch.hypot(x, y) - 7).abs().max() < 0.1
    angles = torch.rad2deg(torch.atan2(y, x))
    assert angles.abs().max() < 30.5
    assert angles.min() < -25
    assert angles.max() > 25


def test_scaling_moves_along_the_radius():
    x, y = centre(moved(scaling=0.25)).T
    assert y.abs().max() < 0.1
    # a pixel that stands for 1 + s of the former ones brings the spot to 7 / (1 + s)
    assert x.min() == pytest.approx(7 / 1.25, abs=0.2)
    assert x.max() == pytest.approx(7 / 0.75, abs=0.4)


def test_a_shear_moves_rows_by_their_distance_from_the_centre():
    above = moved(shear=0.5).transpose(2, 3) * 0 + distort(
        blob(200).transpose(2, 3), **(NONE | {"shear": 0.5}),
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    x, y = centre(above).T
    assert (y - 7).abs().max() < 0.1
    assert x.abs().max() == pytest.approx(3.5, abs=0.15)
    x, y = centre(moved(shear=0.5)).T  # on the axis of the centre nothing moves
    assert x.mean() == pytest.approx(7, abs=0.1)
    assert y.abs().max() < 0.1


def test_each_image_has_its_own_map_and_the_generator_decides():
    first, again = (moved(4, rotation=20.0, scaling=0.1, shear=0.1) for _ in range(2))
    assert torch.equal(first, again)
    assert len(first.unique(dim=0)) == 4


def test_colours_move_together_and_zeros_move_in():
    images = torch.ones(3, 2, 8, 12)
    out = distort(images, rotation=45.0, scaling=0.0, shear=0.0,
                  generator=torch.Generator().manual_seed(1))  # fmt: skip
    assert torch.equal(out[:, 0], out[:, 1])
    assert out.min() < 0.5
    assert out[:, :, 3:5, 5:7].min() == pytest.approx(1)
    assert math.isclose(out.max().item(), 1, rel_tol=1e-5)
    assert augmentation.distort.__doc__
