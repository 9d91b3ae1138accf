"""How a forgotten class comes back in a student: layer by layer, with test images.

Gated transfer shows a student no image of the forgotten classes C_f. What it learns of them all the
same, it must have from the teacher's answers and attention maps on other images. Here the students
that a transfer kept along the way are looked into.
"""

from pathlib import Path
from typing import Any

import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from unlearnlib.data import datasets
from unlearnlib.data.requests import Classes
from unlearnlib.models import checkpoints, networks
from unlearnlib.pipeline import records
from unlearnlib.zero_shot import losses


def attention_maps(network: nn.Module, images: Tensor) -> list[Tensor]:
    """Compute the attention maps of every activation layer, ``[N, P]`` each, see `losses`."""
    layers = networks.activation_layers(network)
    with networks.record_outputs(network, layers) as outputs, networks.evaluated(network):
        network(images)
    return [losses.attention_map(outputs[name]) for name in layers]


def map_agreement(student: nn.Module, teacher: nn.Module, images: Tensor) -> list[float]:
    """Compute the mean cosine of the attention maps of two networks, layer by layer."""
    maps = (attention_maps(network, images) for network in (student, teacher))
    return [(s * t).sum(1).mean().item() for s, t in zip(*maps, strict=True)]


def probe(network: nn.Module, request: Classes, fitted: tuple, held: tuple) -> float:
    """Ask a linear probe on the features before the read-out for C_f, in percent.

    Args:
        network: whose features are read.
        request: C_f, told from the rest, both sides weighted alike.
        fitted: images and labels that the probe is fitted on.
        held: images and labels of its balanced accuracy; 50 is guessing.
    """
    model = make_pipeline(
        StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=1000)
    )
    sides = [
        (networks.penultimate(network, images).double().numpy(), request.mask(labels).numpy())
        for images, labels in (fitted, held)
    ]
    model.fit(*sides[0])
    return 100 * float(balanced_accuracy_score(sides[1][1], model.predict(sides[1][0])))


def run(
    *, transfer: Path, original: Path, data: Path, request: Classes, looks: int, images: int
) -> dict[str, Any]:
    """Look into the students of one transfer.

    Args:
        transfer: file of `gkt.run_transfer`.
        original: file of its teacher.
        data: file of the data set.
        request: C_f.
        looks: snapshots to look into, at equal distances.
        images: test images of C_f and of the rest, each, at most.

    Returns:
        lists by look: ``pseudo_batch``; ``share``, the mean probability that the student gives C_f on
        test images of C_f; ``probe``, see `probe`, fitted on validation images; ``forgotten`` and
        ``retained``, `map_agreement` with the teacher on images of C_f and of the rest. For a
        picture: ``example``, a test image of C_f, the teacher's ``teacher_maps`` on it, a layer each,
        and ``maps``, those of each look.
    """
    dataset, teacher = datasets.load(data), checkpoints.load(original).eval()
    fitted, held = datasets.split(dataset, "validation"), datasets.split(dataset, "test")
    gone = request.mask(held[1])
    inside, outside = held[0][gone][:images], held[0][~gone][:images]
    snapshots = records.result(transfer)["snapshots"]
    at = torch.linspace(0, len(snapshots) - 1, looks).round().long().unique().tolist()
    example = inside[:1]
    rows: dict[str, list] = {
        name: [] for name in ("pseudo_batch", "share", "probe", "forgotten", "retained", "maps")
    }
    for snapshot in (snapshots[number] for number in at):
        student = checkpoints.unpack(snapshot["model"]).eval()
        rows["pseudo_batch"].append(snapshot["pseudo_batch"])
        share = losses.share(networks.predict(student, inside), request)
        rows["share"].append(share.mean().item())
        rows["probe"].append(probe(student, request, fitted, held))
        rows["forgotten"].append(map_agreement(student, teacher, inside))
        rows["retained"].append(map_agreement(student, teacher, outside))
        rows["maps"].append(attention_maps(student, example))
    return rows | {"example": example, "teacher_maps": attention_maps(teacher, example)}
