"""Requests draw the groups they name, and measures are those of the images they name."""

import math

import pytest
import torch
from torch.nn import functional as F
from toys import stripes, taught

from unlearnlib.data import datasets, removal
from unlearnlib.models import models

LABELS = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1, 2, 0])


def request(**changed) -> dict:
    return {"mode": "coherent", "label": 0, "size": 2, "seed": 0} | changed


def test_a_coherent_group_is_of_its_class_and_a_random_one_of_all():
    group = removal.draw(LABELS, request(size=4))
    assert group.tolist() == [0, 3, 6, 9]
    drawn = removal.draw(LABELS, request(mode="random", label=None, size=9))
    assert len(drawn.unique()) == 9


def test_the_seed_decides_the_group():
    first, again, other = (
        removal.draw(torch.zeros(100), request(size=10, seed=s)) for s in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"mode": "coherant"}, r"unknown mode 'coherant'; choose one of \['coherent', 'random'\]"),
        ({"size": 5}, "size=5 of 4 items of label 0: give 1 to 4"),
        ({"size": 0}, "size=0"),
        ({"mode": "random", "size": 10}, "size=10 of 9 items"),
        ({"label": 7}, "of no items of label 7"),
    ],
)
def test_a_group_that_cannot_be_drawn_is_refused(changed: dict, message: str):
    with pytest.raises(ValueError, match=message):
        removal.draw(LABELS, request(**changed))


def test_scores_are_accuracy_and_cross_entropy(monkeypatch: pytest.MonkeyPatch):
    network, (images, labels) = taught(monkeypatch), stripes(40)
    found = removal.score(network, images, labels)
    logits = models.predict(network, images)
    assert found["accuracy"] == pytest.approx(100 * (logits.argmax(1) == labels).double().mean())
    assert found["loss"] == pytest.approx(F.cross_entropy(logits, labels).item())
    assert not math.isnan(found["loss"])


def test_the_rest_is_what_stays():
    assert removal.rest(5, torch.tensor([1, 3])).tolist() == [0, 2, 4]


def test_measures_are_of_the_group_and_the_held_out_splits(monkeypatch: pytest.MonkeyPatch):
    network = taught(monkeypatch)
    parts = {"train": stripes(30), "validation": stripes(20, seed=1), "test": stripes(25, seed=2)}
    monkeypatch.setattr(datasets, "split", lambda _, name: parts[name])
    group = torch.tensor([0, 5, 7])
    found = removal.measure(network, None, group)
    images, labels = parts["train"]
    expected = removal.score(network, images[group], labels[group])
    assert (found["self_accuracy"], found["self_loss"]) == tuple(expected.values())
    expected = removal.score(network, *parts["test"])
    assert (found["test_accuracy"], found["test_loss"]) == tuple(expected.values())
    assert set(found) == {
        f"{p}_{m}" for p in ("self", "validation", "test") for m in ("accuracy", "loss")
    }
