"""Train and retrain classifiers: the originals, and the golds, which never saw what is to go.

One recipe serves both, so that gold differs from its original in its data alone. Its penalty is
either part of the loss, ``L(θ) = (1/n) Σ ℓ_i(θ) + λ/2 ‖θ‖²``, the objective that influence
functions assume (`curvature.Objective`), or decoupled from it as in AdamW, whose fixed point is no
minimum of L.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, update_bn

from unlearnlib.data import datasets
from unlearnlib.data.requests import Classes, Request, rest
from unlearnlib.models import architectures, checkpoints, networks
from unlearnlib.models.loops import batches, descend, one_cycle, shift
from unlearnlib.pipeline import seeds

Part = tuple[Tensor, Tensor]  # images [N, C, H, W] in [0, 1] and labels [N]


@dataclass(frozen=True)
class Recipe:
    """How a classifier is trained, by Adam with a one-cycle learning rate.

    Attributes:
        epochs: passes over the images.
        batch_size: images a step.
        learning_rate: peak of the cycle.
        weight_decay: decoupled from the loss (AdamW).
        l2: λ, weight of ``‖θ‖²/2`` in the loss; not together with `weight_decay`.
        shift_pixels: each batch is shifted at random by up to so many; 0 for none.
        average: share of the steps, the last ones, whose weights are averaged: what their noise
            leaves of the gradient then cancels (stochastic weight averaging, arXiv 1803.05407).

    Raises:
        ValueError: both penalties.
    """

    epochs: Annotated[int, Ge(1)]
    batch_size: Annotated[int, Ge(2)]
    learning_rate: Annotated[float, Gt(0)]
    weight_decay: Annotated[float, Ge(0)] = 0.0
    l2: Annotated[float, Ge(0)] = 0.0
    shift_pixels: Annotated[int, Ge(0)] = 0
    average: Annotated[float, Ge(0), Lt(1)] = 0.0

    def __post_init__(self) -> None:
        if self.weight_decay and self.l2:
            raise ValueError(
                f"weight_decay={self.weight_decay:g} and l2={self.l2:g}: give one of them, and 0 for "
                "the other"
            )


def fit(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    recipe: Recipe,
    seed: int,
    label: str = "training",
) -> list[float]:
    """Train a classifier in place by cross-entropy, from the weights that it has.

    Args:
        network: maps images to logits.
        images: ``[N, C, H, W]`` in [0, 1].
        labels: ``[N]``, class numbers.
        recipe: see `Recipe`.
        seed: of the order of the images and the shifts; the initial weights are the caller's.
        label: of the progress.

    Returns:
        the mean cross-entropy of each epoch, in nats, without the penalty.

    Raises:
        ValueError: no images.
        FloatingPointError: a loss that is not finite.
    """
    if len(images) == 0:
        raise ValueError("no images to train on; forget less, or take a larger data set")
    order, offsets = (seeds.stream(seed, name) for name in ("order of the images", "shifts"))
    network.to(networks.device()).train()
    per_epoch = max(1, len(images) // recipe.batch_size)
    steps = recipe.epochs * per_epoch
    optimizer = _optimizer(network, recipe)
    averaged, first = AveragedModel(network), steps - round(recipe.average * steps)

    def loss_of(index: Tensor) -> Tensor:
        x = shift(images[index], pixels=recipe.shift_pixels, generator=offsets)
        logits = network(x.to(networks.device()))
        return F.cross_entropy(logits, labels[index].to(networks.device()))

    def follow(step: int) -> None:
        if step > first:
            averaged.update_parameters(network)

    losses = descend(
        optimizer,
        batches(len(images), batch_size=recipe.batch_size, steps=steps, generator=order),
        loss_of,
        schedule=one_cycle(optimizer, recipe.learning_rate, steps=steps),
        after=follow,
        label=label,
    )
    if averaged.n_averaged:
        network.load_state_dict(averaged.module.state_dict())
        again = batches(len(images), batch_size=recipe.batch_size, steps=per_epoch, generator=order)
        update_bn((images[index] for index in again), network, device=networks.device())
    return torch.tensor(losses).view(recipe.epochs, per_epoch).mean(1).tolist()


def _optimizer(network: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    if recipe.weight_decay:
        return torch.optim.AdamW(
            network.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay
        )
    return torch.optim.Adam(network.parameters(), lr=recipe.learning_rate, weight_decay=recipe.l2)


def training_items(dataset: datasets.Dataset, *, items: int | None = None) -> Part:
    """Return the training split, or a random part of it that is the same for every model.

    Args:
        dataset: the data set.
        items: how many; None for all.

    Raises:
        ValueError: more than there are, or none.
    """
    images, labels = datasets.split(dataset, "train")
    if items is None:
        return images, labels
    if not 1 <= items <= len(labels):
        raise ValueError(f"items={items}: give 1 to {len(labels)}, what the training split has")
    drawn = torch.randperm(len(labels), generator=seeds.stream(0, "training items"))[:items]
    return images[drawn], labels[drawn]


def train(
    dataset: datasets.Dataset,
    *,
    model: str,
    width: float,
    recipe: Recipe,
    request: Request | None,
    seed: int,
    items: int | None = None,
    start: Path | int | None = None,
) -> tuple[nn.Module, dict[str, Any]]:
    """Train a classifier on the training split, without what a request asks to forget.

    Args:
        dataset: the data set.
        model: a name in `architectures.ARCHITECTURES`.
        width: see `architectures.build`.
        recipe: see `Recipe`.
        request: what is left out; None for nothing: an original model.
        seed: of the order of the images, and of the first weights where `start` is None.
        items: training items, see `training_items`.
        start: file of a model to start from (warm start), or another seed of the first weights.

    Returns:
        the network in evaluation mode, and ``losses`` by epoch and ``train_images``.

    Raises:
        ValueError: a request that the data cannot serve, a warm start from another architecture,
            or what `fit` raises.
    """
    images, labels = training_items(dataset, items=items)
    kept = torch.arange(len(labels))
    if request is not None:
        kept = rest(len(labels), request.positions(labels))
    options = {
        "model": model,
        "width": float(width),
        "channels": images.shape[1],
        "num_classes": dataset.num_classes,
    }
    if isinstance(start, Path):
        network = checkpoints.load(start, **options)
    else:
        network = _untrained(options, seed if start is None else start)
    losses = fit(network, images[kept], labels[kept], recipe=recipe, seed=seed)
    return network.eval(), {"losses": losses, "train_images": len(kept)}


def _untrained(options: dict[str, Any], seed: int) -> nn.Module:
    """Build a network whose weights follow the seed alone, which pairs a gold with its original."""
    with torch.random.fork_rng():
        torch.manual_seed(seeds.derive(seed, "first weights"))
        return architectures.build(**options)


def run(
    *,
    data: Path,
    model: str,
    width: float,
    recipe: Recipe,
    request: Request | None,
    seed: int,
    items: int | None = None,
    start: Path | int | None = None,
) -> dict[str, Any]:
    """Train one classifier of a sweep.

    Args:
        data: file of the data set.
        model: see `train`, as all others.
        width: see `train`.
        recipe: see `train`.
        request: see `train`.
        seed: see `train`.
        items: see `train`.
        start: see `train`.

    Returns:
        ``model`` (packed), ``losses`` by epoch, ``train_images`` (how many were read),
        ``validation_accuracy`` on what stays (of a request for classes: the others), in percent,
        and ``shape`` of an image.
    """
    dataset = datasets.load(data)
    network, facts = train(
        dataset, model=model, width=width, recipe=recipe, request=request, seed=seed, items=items,
        start=start,
    )  # fmt: skip
    held, truth = datasets.split(dataset, "validation")
    if isinstance(request, Classes):
        stays = ~request.mask(truth)
        held, truth = held[stays], truth[stays]
    correct = networks.predict(network, held).argmax(1) == truth
    return facts | {
        "model": checkpoints.pack(network),
        "validation_accuracy": 100 * correct.double().mean().item(),
        "shape": list(held.shape[1:]),
    }
