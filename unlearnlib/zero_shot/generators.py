"""Draw images from latents, and teach the drawing what a classifier remembers of its data.

The generator is the one of gated knowledge transfer (arXiv 2201.05629); `train_prior` is an
addition of this study: it reads the teacher's BatchNorm running statistics, as DeepInversion does
(arXiv 1912.08795), so it needs no data.
"""

from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unlearnlib.models import networks
from unlearnlib.models.loops import finite
from unlearnlib.pipeline.progress import track
from unlearnlib.zero_shot import losses

Output = Literal["published", "fixed_scale", "small_kernel", "sigmoid"]
CLIP_NORM = 5.0  # of the gradient, as published


class Generator(nn.Module):
    """Draw images ``[N, C, H, W]`` from latents ``[N, latent_size]``, as in the published code.

    Args:
        latent_size: length of z.
        channels: filters of the first blocks (128 as published).
        shape: ``(C, H, W)`` of the images; H and W must be multiples of 4.
        output: ``"published"``, a 7x7 convolution that takes 4 off each side, and BatchNorm with a
            learnt scale and shift; ``"fixed_scale"``, the same with mean 0 and deviation 1;
            ``"small_kernel"``, as published with a 3x3 convolution that keeps the sides; or
            ``"sigmoid"``, a 3x3 convolution and pixels in [0, 1] with a low first bias, so that
            images start dark.
    """

    def __init__(
        self, latent_size: int, channels: int, shape: tuple[int, int, int], *, output: Output
    ) -> None:
        super().__init__()
        self.latent_size = latent_size
        planes, height, width = shape
        if height % 4 or width % 4:
            raise ValueError(
                f"images of {height} x {width} cannot be drawn; sides must be multiples of 4"
            )
        if output not in get_args(Output):
            raise ValueError(f"unknown generator output {output!r}; choose of {get_args(Output)}")
        kernel = 7 if output in ("published", "fixed_scale") else 3
        # the convolution of 7x7 with padding 1 takes two pixels off each border
        height, width = ((side + kernel - 3) // 4 for side in (height, width))
        last = nn.Conv2d(channels // 2, planes, kernel, padding=1)
        if output == "sigmoid":
            nn.init.constant_(last.bias, -2.0)
        self.layers = nn.Sequential(
            nn.Linear(latent_size, channels * height * width),
            nn.Unflatten(1, (channels, height, width)),
            nn.BatchNorm2d(channels),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.BatchNorm2d(channels),
            nn.LeakyReLU(0.2),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(channels, channels // 2, 3, padding=1),
            nn.BatchNorm2d(channels // 2),
            nn.LeakyReLU(0.2),
            last,
            nn.Sigmoid()
            if output == "sigmoid"
            else nn.BatchNorm2d(planes, affine=output != "fixed_scale"),
        )

    def forward(self, latents: Tensor) -> Tensor:
        return self.layers(latents)


def latents(count: int, size: int, *, generator: torch.Generator) -> Tensor:
    """Draw standard normal latents ``[count, size]``, on the device of the run."""
    return torch.randn((count, size), generator=generator).to(networks.device())


def clipped_step(network: nn.Module, optimizer: torch.optim.Optimizer, loss: Tensor) -> float:
    """Take one step of gradient descent with a clipped gradient; return the loss before it.

    Raises:
        FloatingPointError: a loss that is not finite.
    """
    value = finite(loss)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(network.parameters(), CLIP_NORM, error_if_nonfinite=True)
    optimizer.step()
    return value


def train_prior(
    teacher: nn.Module,
    network: Generator,
    *,
    steps: int,
    rate: float,
    batch_size: int,
    generator: torch.Generator,
) -> list[float]:
    """Train a generator in place on what the teacher remembers of its data.

    Minimises the `losses.statistics_distance` of the teacher's BatchNorm layers, the cross-entropy
    of its prediction to its own most likely class, and twice `losses.imbalance`.

    Args:
        teacher: in evaluation mode, with BatchNorm running statistics unless `steps` is 0.
        network: drawn from; left in training mode.
        steps: of Adam at the learning rate `rate`, on `batch_size` latents each.
        generator: of the latents.

    Returns:
        the loss before each step.
    """
    norms = networks.batch_norms(teacher) if steps else []
    optimizer = torch.optim.Adam(network.parameters(), lr=rate)
    found = []
    for _ in track(range(steps), "generator prior"):
        z = latents(batch_size, network.latent_size, generator=generator)
        with networks.record_inputs(norms) as fed:
            logits = teacher(network(z))
        certain = F.cross_entropy(logits, logits.argmax(1))
        loss = losses.statistics_distance(fed, norms) + certain + 2 * losses.imbalance(logits)
        found.append(clipped_step(network, optimizer, loss))
    return found
