"""Retraining: the group was not seen, and a retrained model is paired with its original."""

from pathlib import Path

import pytest
import torch
from group_tasks import COHERENT, RANDOM, stored
from toys import lines

from unlearnlib.data import datasets
from unlearnlib.groups import retrain
from unlearnlib.measures import accuracy
from unlearnlib.models import checkpoints
from unlearnlib.models.training import Recipe, train

RECIPE = Recipe(epochs=2, batch_size=20, learning_rate=0.01, l2=1e-3)


@pytest.fixture
def common(tmp_path: Path) -> dict:
    data = lines(tmp_path / "dataset.npz")
    return {"data": data, "model": "compact", "width": 0.25, "recipe": RECIPE, "seed": 3}


def test_a_retrained_model_is_the_librarys_without_the_group(common: dict):
    found = retrain.run(**common, request=COHERENT)
    dataset = datasets.load(common["data"])
    options = {key: value for key, value in common.items() if key != "data"}
    network, facts = train(dataset, **options, request=COHERENT)
    for name, values in network.state_dict().items():
        assert torch.equal(found["model"]["state_dict"][name], values)
    assert found["losses"] == facts["losses"]
    assert found["train_images"] == 200 - COHERENT.size
    assert found["shape"] == [1, 28, 28]
    group = COHERENT.positions(datasets.split(dataset, "train")[1])
    images, labels = datasets.split(dataset, "train")
    mine = labels == COHERENT.label
    of_class = accuracy.score(network, images[mine], labels[mine])["accuracy"]
    measured = accuracy.measure(network, dataset, group)
    assert found["scores"] == measured | {"class_accuracy": of_class}


def test_an_original_has_seen_everything_and_is_scored_on_it(common: dict):
    found = retrain.run(**common, request=None)
    dataset = datasets.load(common["data"])
    network = checkpoints.unpack(found["model"]).eval()
    expected = accuracy.score(network, *datasets.split(dataset, "train"))
    assert found["train_images"] == 200
    assert found["scores"]["self_loss"] == pytest.approx(expected["loss"])
    assert found["scores"]["self_accuracy"] == expected["accuracy"]
    assert found["scores"]["class_accuracy"] == expected["accuracy"]


def test_what_a_random_group_was_drawn_from_is_everything(common: dict):
    found = retrain.run(**common, request=RANDOM)
    whole = datasets.split(datasets.load(common["data"]), "train")
    network = checkpoints.unpack(found["model"]).eval()
    assert found["scores"]["class_accuracy"] == accuracy.score(network, *whole)["accuracy"]


def test_a_warm_start_is_where_another_model_ended(common: dict, tmp_path: Path):
    original = stored(tmp_path / "original.pt", retrain.run(**common, request=None))
    cold = retrain.run(**common, request=COHERENT)
    warm = retrain.run(**common, request=COHERENT, start=original)
    assert warm["losses"][0] < cold["losses"][0]
    assert warm["train_images"] == cold["train_images"]


def test_originals_have_a_level_for_each_class_and_for_all(common: dict, tmp_path: Path):
    path = stored(tmp_path / "original.pt", retrain.run(**common, request=None))
    dataset = datasets.load(common["data"])
    found = retrain.original_levels({3: path}, dataset, labels=[1])
    images, labels = datasets.split(dataset, "train")
    network = checkpoints.load(path)
    mine = labels == 1
    of_class = accuracy.score(network, images[mine], labels[mine])["accuracy"]
    assert found.loc[("1", 3), "class_accuracy"] == pytest.approx(of_class)
    whole = accuracy.score(network, images, labels)["accuracy"]
    assert found.loc[("all", 3), "class_accuracy"] == pytest.approx(whole)
