"""Retraining: the penalty is part of the loss, pairs share their start, and the group is unseen."""

import math
from pathlib import Path

import pytest
import torch
from torch import nn
from toys import lines, states_equal, stripes

from unlearnlib.data import datasets
from unlearnlib.influence import curvature
from unlearnlib.models import models, retraining
from unlearnlib.models.architectures import Logistic

RECIPE = {"epochs": 2, "batch_size": 50, "learning_rate": 0.01, "l2": 1e-3}


def test_training_ends_at_the_minimum_of_the_penalised_loss():
    images, labels = stripes(64)
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(images[0].numel(), 4))
    options = {"epochs": 400, "batch_size": 64, "learning_rate": 0.05, "l2": 0.1, "seed": 0}
    retraining.fit(network, images, labels, **options)
    objective = curvature.Objective(network.eval(), images, labels, l2=0.1)
    assert curvature.gradient_sum(objective).norm() / 64 < 1e-3
    unpenalised = curvature.Objective(network, images, labels)
    assert curvature.gradient_sum(unpenalised).norm() / 64 > 1e-2


def test_training_needs_images_and_finite_losses():
    network = Logistic(channels=2, num_classes=4, side=8)
    images, labels = stripes(8)
    images = images[..., :8]
    with pytest.raises(ValueError, match="no images to train on; remove a smaller group"):
        retraining.fit(network, images[:0], labels[:0], seed=0, **RECIPE)
    images[3] = math.nan
    with pytest.raises(FloatingPointError, match="the loss is nan"):
        retraining.fit(network, images, labels, seed=0, **RECIPE)


def spec(folder: Path, **changed) -> dict:
    basic = {"data": folder / "mnist.npz", "model": "compact", "width": 0.5, "seed": 0}
    return basic | RECIPE | changed


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    lines(tmp_path / "mnist.npz")
    return tmp_path


def test_a_run_leaves_the_group_out(folder: Path, monkeypatch: pytest.MonkeyPatch):
    seen = []
    monkeypatch.setattr(
        retraining, "fit", lambda network, images, labels, **_: seen.append(labels) or [0.0]
    )
    group = {"mode": "coherent", "label": 3, "size": 20, "seed": 0}
    found = retraining.run(spec(folder, group=group))
    assert found["train_images"] == len(seen[0]) == 180
    assert not (seen[0] == 3).any()  # all twenty of the class
    assert found["scores"]["self_accuracy"] <= 100


def test_a_pair_starts_from_the_same_weights(folder: Path, monkeypatch: pytest.MonkeyPatch):
    starts = []
    monkeypatch.setattr(
        retraining, "fit", lambda network, *_, **__: starts.append(models.pack(network)) or [0.0]
    )
    group = {"mode": "random", "label": None, "size": 20, "seed": 0}
    for changed in ({}, {"group": group}, {"seed": 1}):
        retraining.run(spec(folder, **changed))
    original, retrained, other = map(models.unpack, starts)
    assert states_equal(original, retrained)
    assert not states_equal(original, other)


def test_a_warm_start_begins_at_the_model_that_it_names(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    first = retraining.run(spec(folder))
    file = folder / "original.pt"
    torch.save({"key": "", "spec": {}, "seconds": 0.0, "result": first}, file)
    monkeypatch.setattr(retraining, "fit", lambda *_, **__: [0.0])
    again = retraining.run(spec(folder, start=file, seed=5))
    assert states_equal(models.unpack(first["model"]), models.unpack(again["model"]))


def test_a_run_learns_and_measures_itself_on_all_its_images(folder: Path):
    found = retraining.run(spec(folder, epochs=30, batch_size=20))
    assert found["losses"][-1] < found["losses"][0] / 2
    network, dataset = models.unpack(found["model"]), datasets.load(folder / "mnist.npz")
    images, labels = datasets.split(dataset, "train")
    expected = 100 * (models.predict(network, images).argmax(1) == labels).float().mean().item()
    assert found["scores"]["self_accuracy"] == pytest.approx(expected)
    assert expected > 80
