"""The simplest things: forget classes in the read-out alone, the last linear layer of a network.

What comes before the read-out stays as it is, so that everything the network knows of the forgotten
classes is still in its features. These are yardsticks: a method that changes the whole network has
to show what it has over them. None of them reads data, and each takes less than a second.
"""

import copy
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn

from unlearnlib.data.requests import Classes
from unlearnlib.models import networks
from unlearnlib.models.loops import batches, descend
from unlearnlib.pipeline import seeds
from unlearnlib.zero_shot import losses, method
from unlearnlib.zero_shot.method import Need, Outcome, Shape, ZeroShot

NEVER = -1e4  # a logit that no image makes the largest
ROUND = 10_000  # embeddings drawn at once
ROUNDS = 100  # before a class that the read-out hardly ever gives is said to be missing


def read_out(network: nn.Module, shape: Shape) -> nn.Linear | None:
    """Find the linear layer, with a bias, whose output is the network's answer.

    Args:
        network: maps images to logits.
        shape: ``(C, H, W)`` of an image.

    Returns:
        the layer, or None where there is none: the logits are made in another way.
    """
    linear = {name: m for name, m in network.named_modules() if isinstance(m, nn.Linear)}
    with networks.record_outputs(network, list(linear)) as outputs:
        logits = networks.predict(network, torch.zeros(2, *shape))
    layers = [linear[name] for name, out in outputs.items() if torch.equal(out.cpu(), logits)]
    return next((layer for layer in reversed(layers) if layer.bias is not None), None)


def linear_read_out(model: nn.Module, shape: Shape) -> str | None:
    """Need a linear layer with a bias that gives the logits."""
    if read_out(model, shape) is not None:
        return None
    return "changes the linear layer, with a bias, that gives the logits, and there is none"


@dataclass(frozen=True)
class Settings(method.Settings):
    """No hyper-parameters: what `masked_logit` and `random_class_row` do leaves no choice."""

    @property
    def needs(self) -> tuple[Need, ...]:
        """A linear read-out."""
        return (linear_read_out,)


@dataclass(frozen=True)
class Embeddings(Settings):
    """Hyper-parameters of `random_embeddings`.

    Attributes:
        per_class: embeddings of each class; 1000 as published.
        steps: of Adam on the read-out.
        batch_size: embeddings a step.
        rate: of Adam.
    """

    per_class: Annotated[int, Ge(1)] = 1000
    steps: Annotated[int, Ge(1)] = 300
    batch_size: Annotated[int, Ge(1)] = 1000
    rate: Annotated[float, Gt(0)] = 0.01


def masked_logit(
    model: nn.Module, request: Classes, *, shape: Shape, settings: Settings, seed: int
) -> Outcome:
    """Give the forgotten classes a logit that never wins: weights 0, bias `NEVER`.

    The answer is the model's own with the classes masked out (`losses.masked`): what masked
    distillation teaches. It costs nothing, and undoing it takes K_f rows of a linear layer.

    Args:
        model: maps images to logits; stays as it is.
        request: the classes to forget.
        shape: ``(C, H, W)`` of an image.
        settings: none.
        seed: nothing is drawn, so that the result depends on the model alone.

    Returns:
        the copy, and no images.

    Raises:
        ValueError: a model without a linear read-out.
    """
    network, layer = _copied(model, shape)
    rows = list(request.classes)
    with torch.no_grad():
        layer.weight[rows] = 0.0
        layer.bias[rows] = NEVER
    return _outcome(network, shape)


def random_class_row(
    model: nn.Module, request: Classes, *, shape: Shape, settings: Settings, seed: int
) -> Outcome:
    """Replace the forgotten classes' rows of the read-out by fresh ones.

    Weights and biases are drawn as a new `nn.Linear` draws them, uniform within ±1/√D for D
    features. Nothing keeps such a row from winning.

    Args:
        model: maps images to logits; stays as it is.
        request: the classes to forget.
        shape: ``(C, H, W)`` of an image.
        settings: none.
        seed: of the rows.

    Returns:
        the copy, and no images.

    Raises:
        ValueError: a model without a linear read-out.
    """
    network, layer = _copied(model, shape)
    rows = list(request.classes)
    with method.drawn_by(seed, "rows of the read-out"):
        fresh = nn.Linear(layer.in_features, layer.out_features)
    with torch.no_grad():
        layer.weight[rows] = fresh.weight[rows].to(layer.weight)
        layer.bias[rows] = fresh.bias[rows].to(layer.weight)
    return _outcome(network, shape)


def random_embeddings(
    model: nn.Module, request: Classes, *, shape: Shape, settings: Embeddings, seed: int
) -> Outcome:
    """Unlearn in the read-out, on random points of its input space (Synthetic Embeddings).

    "A Universal Source-Free Class Unlearning Framework via Synthetic Embeddings" (TMLR 2026): draw
    embeddings from N(0, I), let the read-out itself label them, keep as many of each class, and run
    on them, on the read-out alone, any method that would take real embeddings. Of the methods tried
    there, the one here is DELETE (arXiv 2503.23751): KL to the model's own answers with the
    forgotten classes masked out, on embeddings of all classes.

    Ours: a fixed number of steps of Adam. The published code takes SGD and keeps the epoch that is
    best on real test embeddings, which a method without data cannot.

    Args:
        model: maps images to logits; stays as it is.
        request: the classes to forget.
        shape: ``(C, H, W)`` of an image.
        settings: hyper-parameters.
        seed: of the embeddings and their order.

    Returns:
        the copy, no images, and ``losses`` by step.

    Raises:
        FloatingPointError: a loss that is not finite.
        ValueError: a model without a linear read-out, or one that hardly ever names a class.
    """
    network, layer = _copied(model, shape)
    embeddings = labelled(layer, per_class=settings.per_class, seed=seed)
    with torch.no_grad():
        wanted = losses.masked(layer(embeddings), request)
    layer.requires_grad_(True)
    taken = descend(
        torch.optim.Adam(layer.parameters(), lr=settings.rate),
        batches(
            len(embeddings), batch_size=settings.batch_size, steps=settings.steps,
            generator=seeds.stream(seed, "order of the embeddings"),
        ),
        lambda index: losses.divergence(wanted[index], layer(embeddings[index])),
        label="random embeddings",
    )  # fmt: skip
    return _outcome(network, shape, losses=taken)


@torch.no_grad()
def labelled(layer: nn.Linear, *, per_class: int, seed: int) -> Tensor:
    """Draw standard normal embeddings, as many that a read-out gives to each of its K classes.

    Args:
        layer: the read-out, of D features.
        per_class: embeddings of each class.
        seed: of the draws.

    Returns:
        ``[K * per_class, D]``, class after class, on the device of the layer.

    Raises:
        ValueError: a class that is given to fewer of `ROUNDS` times `ROUND` embeddings.
    """
    generator = seeds.stream(seed, "embeddings")
    kept = [torch.empty(0, layer.in_features).to(layer.weight) for _ in range(layer.out_features)]
    for _ in range(ROUNDS):
        z = torch.randn((ROUND, layer.in_features), generator=generator).to(layer.weight)
        given = layer(z).argmax(1)
        kept = [torch.cat([some, z[given == k]])[:per_class] for k, some in enumerate(kept)]
        if min(map(len, kept)) == per_class:
            return torch.cat(kept)
    few = min(range(len(kept)), key=lambda k: len(kept[k]))
    raise ValueError(
        f"the read-out gives {len(kept[few])} of {ROUNDS * ROUND} random embeddings to class {few}, "
        f"fewer than per_class={per_class}; lower it, or take a method that draws images"
    )


def _copied(model: nn.Module, shape: Shape) -> tuple[nn.Module, nn.Linear]:
    """Copy a model, and find the read-out of the copy."""
    network = copy.deepcopy(model).to(networks.device())
    if (layer := read_out(network, shape)) is None:
        raise ValueError(f"{type(model).__name__}: unlearning {linear_read_out(model, shape)}")
    return network, layer


def _outcome(network: nn.Module, shape: Shape, **facts: object) -> Outcome:
    return Outcome(network.eval(), torch.empty(0, *shape, dtype=torch.uint8), facts)


MASKED_LOGIT = ZeroShot("masked_logit", "Masked logit", settings=Settings, unlearn=masked_logit)
RANDOM_CLASS_ROW = ZeroShot(
    "random_class_row", "Random class row", settings=Settings, unlearn=random_class_row
)
RANDOM_EMBEDDINGS = ZeroShot(
    "random_embeddings", "Random embeddings", settings=Embeddings, unlearn=random_embeddings
)
