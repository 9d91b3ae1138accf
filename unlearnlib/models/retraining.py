"""Train and retrain the models of group unlearning, on the objective that influence assumes.

The penalty is part of the loss, ``L(θ) = (1/n) Σ ℓ_i(θ) + λ/2 ‖θ‖²`` (`curvature.Objective`), and
not decoupled from it as in AdamW, whose fixed point is no minimum of L.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unlearnlib.data import datasets, removal
from unlearnlib.models import architectures, models
from unlearnlib.models.loops import batches, finite, one_cycle
from unlearnlib.pipeline.progress import track

ARCHITECTURES = architectures.ARCHITECTURES  # those of `architectures` are known from here on


def fit(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    l2: float,
    seed: int,
) -> list[float]:
    """Minimise L in place by Adam with a one-cycle rate, from the weights that the network has.

    Args:
        network: maps images to logits.
        images: ``[N, C, H, W]`` in [0, 1].
        labels: ``[N]``.
        epochs: passes over the images.
        batch_size: images a step.
        learning_rate: peak of the cycle.
        l2: λ, its gradient λθ is added to that of the loss.
        seed: of the order of the images.

    Returns:
        the mean cross-entropy of each epoch, in nats.

    Raises:
        ValueError: no images, or a negative penalty.
        FloatingPointError: a loss that is not finite.
    """
    if len(images) == 0:
        raise ValueError("no images to train on; remove a smaller group")
    network.to(models.device()).train()
    per_epoch = max(1, len(images) // batch_size)
    optimizer = torch.optim.Adam(network.parameters(), lr=learning_rate, weight_decay=l2)
    schedule = one_cycle(optimizer, learning_rate, steps=epochs * per_epoch)
    generator, losses = torch.Generator().manual_seed(seed), []
    order = batches(
        len(images), batch_size=batch_size, steps=epochs * per_epoch, generator=generator
    )
    for index in track(list(order), "training"):
        logits = network(images[index].to(models.device()))
        loss = F.cross_entropy(logits, labels[index].to(models.device()))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(finite(loss))
    return torch.tensor(losses).view(epochs, per_epoch).mean(1).tolist()


RECIPE = ("epochs", "batch_size", "learning_rate", "l2")


def run(spec: dict[str, Any]) -> dict[str, Any]:
    """Train one model of a sweep on the training split, with or without a group of its items.

    Args:
        spec: ``data`` (file of the data set), ``model`` and ``width`` (see `models.build`),
            ``seed``, the keywords ``epochs``, ``batch_size``, ``learning_rate`` and ``l2`` of
            `fit`; ``group``, a request as in `removal.draw`, for a retrained model; ``start``
            (file of a model) for a warm start.

    Returns:
        ``model`` (packed), ``losses`` by epoch, ``train_images``, and the scores of
        `removal.measure`, where without a group "self" is the whole training split.
    """
    dataset = datasets.load(spec["data"])
    images, labels = datasets.split(dataset, "train")
    everything = torch.arange(len(labels))
    group = removal.draw(labels, spec["group"]) if "group" in spec else None
    kept = everything if group is None else removal.rest(len(labels), group)
    if "start" in spec:
        network = models.load(spec["start"])
    else:
        torch.manual_seed(spec["seed"])  # pairs a retrained model with the original of its seed
        network = models.build(spec["model"], width=spec["width"])
    options = {key: spec[key] for key in RECIPE} | {"seed": spec["seed"]}
    losses = fit(network, images[kept], labels[kept], **options)
    scores = removal.measure(network.eval(), dataset, everything if group is None else group)
    return {
        "model": models.pack(network),
        "losses": losses,
        "train_images": len(kept),
        "scores": scores,
    }
