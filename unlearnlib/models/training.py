"""Train classifiers on tensors in memory: the original models and the retrained ("gold") ones."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unlearnlib.data import classes, datasets
from unlearnlib.models import models
from unlearnlib.models.loops import batches, finite, one_cycle, shift
from unlearnlib.models.models import device
from unlearnlib.pipeline.progress import track


def fit(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    weight_decay: float,
    shift_pixels: int = 0,
    seed: int,
    label: str = "training",
) -> list[float]:
    """Train a classifier in place by cross-entropy, Adam and a one-cycle learning rate.

    Args:
        network: maps images to logits; its weights at entry are the starting point.
        images: ``[N, C, H, W]`` in [0, 1].
        labels: ``[N]``, class numbers.
        epochs: passes over the images.
        batch_size: images a step.
        learning_rate: the peak of the cycle.
        weight_decay: decoupled (AdamW).
        shift_pixels: each batch is shifted by up to so many pixels; 0 for none.
        seed: of the batch order and the shifts; the initial weights are the caller's.

    Returns:
        the mean loss of each epoch, in nats.

    Raises:
        ValueError: no images.
        FloatingPointError: a loss that is not finite.
    """
    if len(images) == 0:
        raise ValueError("no images to train on; forget fewer classes or take a larger data set")
    generator = torch.Generator().manual_seed(seed)
    network.to(device()).train()
    per_epoch = max(1, len(images) // batch_size)
    optimizer = torch.optim.AdamW(network.parameters(), lr=learning_rate, weight_decay=weight_decay)
    schedule = one_cycle(optimizer, learning_rate, steps=epochs * per_epoch)
    losses = []
    order = batches(
        len(images), batch_size=batch_size, steps=epochs * per_epoch, generator=generator
    )
    for index in track(list(order), label):
        x = shift(images[index], pixels=shift_pixels, generator=generator).to(device())
        loss = F.cross_entropy(network(x), labels[index].to(device()))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(finite(loss))
    return torch.tensor(losses).view(epochs, per_epoch).mean(1).tolist()


def run(spec: dict[str, Any]) -> dict[str, Any]:
    """Train one classifier of a sweep on the training split, with or without some classes.

    Args:
        spec: ``data`` (file of the data set), ``without`` (classes left out: the retrained model),
            ``model`` and ``width`` (see `models.build`), ``seed``, and the keywords ``epochs``,
            ``batch_size``, ``learning_rate``, ``weight_decay``, ``shift_pixels`` of `fit`.

    Returns:
        ``model`` (packed), ``losses`` by epoch, ``train_images`` (how many were read),
        ``validation_accuracy`` on the classes kept, in percent, and ``shape`` of an image.
    """
    dataset = datasets.load(spec["data"])
    network = models.build(spec["model"], width=spec["width"])
    if spec["without"]:
        classes.check_forget_classes(spec["without"], models.num_classes(network))
    images, labels = classes.without_classes(*datasets.split(dataset, "train"), spec["without"])
    held, truth = classes.without_classes(*datasets.split(dataset, "validation"), spec["without"])
    keys = ("epochs", "batch_size", "learning_rate", "weight_decay", "shift_pixels", "seed")
    losses = fit(network, images, labels, **{key: spec[key] for key in keys})
    correct = models.predict(network, held).argmax(1) == truth
    return {
        "model": models.pack(network),
        "losses": losses,
        "train_images": len(images),
        "validation_accuracy": 100 * correct.float().mean().item(),
        "shape": list(images.shape[1:]),
    }
