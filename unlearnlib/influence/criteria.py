"""Choose which parameters an update may change: the criteria of the generalized influence function.

After Lyu et al. 2023 (arXiv 2312.05586) and their code. A unit is an output of a convolution or a
linear layer, with the weights and the bias that make it. Every criterion takes the same number of
parameters from each such layer, ``ratio`` times its own, so that only the choice differs; other
parameters (BatchNorm, LayerNorm, tokens) are never chosen.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from unlearnlib.influence.curvature import CROSS_ENTROPY, Loss
from unlearnlib.models.networks import record_outputs
from unlearnlib.pipeline import seeds
from unlearnlib.pipeline.registry import Named, Registry

Scores = Callable[[nn.Module, Tensor, Tensor, Loss], dict[str, Tensor]]
Keys = Callable[[Tensor, Tensor, int, Tensor], Tensor]


@dataclass(frozen=True)
class Criterion(Named):
    """A way to choose parameters: of each layer those with the smallest keys.

    Attributes:
        scores: ``(network, images, labels, loss) -> {layer: [units]}``, how strong each unit is.
        keys: of the parameters of a layer, ``(scores [units], unit of each parameter, how many are
            wanted, noise in [0, 1)) -> [parameters]``.
    """

    scores: Scores
    keys: Keys

    def select(
        self,
        network: nn.Module,
        images: Tensor,
        labels: Tensor,
        *,
        ratio: float,
        seed: int,
        loss: Loss = CROSS_ENTROPY,
    ) -> Tensor:
        """Choose parameters.

        Args:
            network: in evaluation mode or not; it is read in evaluation mode.
            images: ``[N, C, H, W]`` of the group to forget.
            labels: ``[N]``, theirs.
            ratio: share of each layer's parameters, above 0 and at most 1.
            seed: of the random part of the choice.
            loss: whose gradients `top_gradients` reads.

        Returns:
            bool ``[P]`` over the flat parameters.

        Raises:
            ValueError: a ratio out of range, no images, or no layer to choose from.
        """
        if not 0 < ratio <= 1:
            raise ValueError(f"ratio={ratio}: modify a share above 0 and at most 1, such as 0.1")
        scores = self.scores(network, images, labels, loss)
        return _mask(network, scores, self.keys, ratio=ratio, seed=seed)


# --------------------------------------------------------------------------------- scores


@torch.no_grad()
def output_scores(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    loss: Loss = CROSS_ENTROPY,
    *,
    batch_size: int = 500,
) -> dict[str, Tensor]:
    """Compute ``|mean output|`` of each unit, by layer: float64 ``[units]``.

    The mean runs over the images and over the places in a map, or the tokens of a sequence.
    """
    totals: dict[str, Tensor] = {}
    with _recorded(network) as outputs:
        for batch in _batches(network, images, batch_size):
            network(batch)
            for name, output in outputs.items():
                totals[name] = totals.get(name, 0) + _per_unit(network, name, output)
    return {name: (total / len(images)).abs() for name, total in totals.items()}


def gradient_scores(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    loss: Loss = CROSS_ENTROPY,
    *,
    batch_size: int = 500,
) -> dict[str, Tensor]:
    """Compute ``|mean gradient of an item's loss in the output|`` of each unit, by layer."""
    totals: dict[str, Tensor] = {}
    with _recorded(network) as outputs, torch.enable_grad():
        batches = _batches(network, images, batch_size)
        for batch, targets in zip(batches, labels.split(batch_size), strict=True):
            # a frozen network has a graph only if its input asks for one
            logits = network(batch.detach().requires_grad_())
            total = loss.values(logits, targets.to(logits.device)).sum()
            gradients = torch.autograd.grad(total, list(outputs.values()))
            for name, gradient in zip(outputs, gradients, strict=True):
                totals[name] = totals.get(name, 0) + _per_unit(network, name, gradient)
    return {name: (total / len(images)).abs() for name, total in totals.items()}


def no_scores(
    network: nn.Module, images: Tensor, labels: Tensor, loss: Loss = CROSS_ENTROPY
) -> dict[str, Tensor]:
    """Score all units alike."""
    return {name: torch.zeros(len(layer.weight)) for name, layer in _layers(network).items()}


def _layers(network: nn.Module) -> dict[str, nn.Module]:
    layers = {n: m for n, m in network.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))}
    if not layers:
        raise ValueError(
            f"{type(network).__name__} has no nn.Conv2d and no nn.Linear to choose parameters from"
        )
    return layers


@contextmanager
def _recorded(network: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Record the outputs of every layer with units, in evaluation mode."""
    training = network.training
    network.eval()
    try:
        with record_outputs(network, list(_layers(network))) as outputs:
            yield outputs
    finally:
        network.train(training)


def _batches(network: nn.Module, images: Tensor, batch_size: int) -> Iterator[Tensor]:
    if len(images) == 0:
        raise ValueError("no images to score the units by; give those of the group to forget")
    place = next(network.parameters())
    return (batch.to(place) for batch in images.split(batch_size))


def _per_unit(network: nn.Module, name: str, values: Tensor) -> Tensor:
    """Sum over the items, and average over the places, what a layer's outputs hold: ``[units]``."""
    axis = 1 if isinstance(network.get_submodule(name), nn.Conv2d) else values.ndim - 1
    places = values.detach().double().movedim(axis, -1).reshape(len(values), -1, values.shape[axis])
    return places.mean(1).sum(0).cpu()


# --------------------------------------------------------------------------------- choice


def best_units(scores: Tensor, units: Tensor, count: int, noise: Tensor) -> Tensor:
    """Order by the rank of the unit, and at random within it: strong units whole, the last in part."""
    ranks = scores.argsort(descending=True, stable=True).argsort()
    return ranks[units] + noise


def any_order(scores: Tensor, units: Tensor, count: int, noise: Tensor) -> Tensor:
    """Order at random: the control."""
    return noise


def above_threshold(
    scores: Tensor,
    units: Tensor,
    count: int,
    noise: Tensor,
    *,
    start: float = 1.0,
    step: float = 0.01,
) -> Tensor:
    """Put units whose score is above a threshold first, in any order.

    In each layer the threshold falls from `start` by `step` until the units above it have enough
    parameters. Unlike `best_units` it spreads the choice over all of them. (The published code
    carries the lowered threshold over to the next layer; here each layer starts afresh.)

    Raises:
        ValueError: a step that is not above 0.
    """
    if not step > 0:
        raise ValueError(f"step={step}: the threshold falls by a step above 0, such as 0.01")
    # the threshold stops at the first step below the weakest unit that is needed
    enough = scores[units].sort(descending=True).values[count - 1]
    steps = torch.floor((start - enough) / step) + 1
    above = scores[units] > start - step * steps.clamp(min=0)
    return torch.where(above, noise, 1 + noise)


def _mask(
    network: nn.Module, scores: dict[str, Tensor], keys: Keys, *, ratio: float, seed: int
) -> Tensor:
    """Take from each layer the parameters with the smallest keys, and set them in a flat mask."""
    generator = seeds.stream(seed, "choice of parameters")
    chosen = {name: torch.zeros(p.numel(), dtype=bool) for name, p in network.named_parameters()}
    for layer, module in _layers(network).items():
        names = [f"{layer}.{name}".lstrip(".") for name, _ in module.named_parameters()]
        sizes = [len(chosen[name]) for name in names]
        units = torch.cat([_units(size, len(module.weight)) for size in sizes])
        count = max(1, round(ratio * len(units)))
        noise = torch.rand(len(units), generator=generator, dtype=torch.float64)
        order = keys(scores[layer], units, count, noise).argsort()
        taken = torch.zeros(len(units), dtype=torch.bool)
        taken[order[:count]] = True
        chosen.update(zip(names, taken.split(sizes), strict=True))
    return torch.cat(list(chosen.values()))


def _units(size: int, units: int) -> Tensor:
    """Number the unit of each entry of a flat weight or bias."""
    return torch.arange(units).repeat_interleave(size // units)


CRITERIA: Registry[Criterion] = Registry(
    "criterion",
    Criterion("top_outputs", "strongest outputs", output_scores, best_units),
    Criterion("top_gradients", "strongest gradients", gradient_scores, best_units),
    Criterion("threshold", "outputs above a threshold", output_scores, above_threshold),
    Criterion("random", "random", no_scores, any_order),
)
