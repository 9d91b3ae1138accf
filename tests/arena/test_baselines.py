"""The simple ways to unlearn with data."""

import math

import pytest
import torch
from torch.nn import functional as F
from toys import states_equal, stripes, taught

from unlearnlib.arena import baselines

TRAINING = {"epochs": 4, "batch_size": 16, "learning_rate": 0.02, "l2": 0.0, "seed": 0}
ASCENT = {"steps": 200, "batch_size": 16, "learning_rate": 0.05, "seed": 0}


def parts() -> tuple:
    images, labels = stripes(128)
    gone = labels == 0
    return (images[gone], labels[gone]), (images[~gone], labels[~gone])


def accuracy(network: torch.nn.Module, part: tuple) -> float:
    return (network(part[0]).argmax(1) == part[1]).float().mean().item()


@pytest.mark.parametrize("name", ["random_labels", "gradient_ascent"])
def test_what_is_forgotten_goes(name: str, monkeypatch: pytest.MonkeyPatch):
    network, (forgotten, retained) = taught(monkeypatch), parts()
    options = ASCENT if name == "gradient_ascent" else TRAINING
    moved = baselines.BASELINES[name](network, forgotten, retained, **options)
    assert accuracy(network, forgotten) > 0.9
    assert accuracy(moved, forgotten) < 0.6
    assert states_equal(network, taught(monkeypatch))
    assert not moved.training
    if name == "random_labels":
        assert accuracy(moved, forgotten) < 0.1
        assert accuracy(moved, retained) > 0.9


def test_fine_tuning_reads_what_stays_alone(monkeypatch: pytest.MonkeyPatch):
    network, (forgotten, retained) = taught(monkeypatch), parts()
    nonsense = torch.full_like(forgotten[0], math.nan), forgotten[1]
    tuned = [baselines.fine_tune(network, f, retained, **TRAINING) for f in (forgotten, nonsense)]
    assert states_equal(*tuned)
    assert accuracy(tuned[0], retained) > 0.9


def test_ascent_ends_at_guessing(monkeypatch: pytest.MonkeyPatch):
    network, (forgotten, retained) = taught(monkeypatch), parts()
    moved = baselines.gradient_ascent(network, forgotten, retained, **ASCENT)
    longer = baselines.gradient_ascent(network, forgotten, retained, **ASCENT | {"steps": 400})
    assert states_equal(moved, longer)
    assert F.cross_entropy(moved(forgotten[0]), forgotten[1]) > math.log(4) / 2


def test_wrong_labels_are_those_of_what_stays(monkeypatch: pytest.MonkeyPatch):
    images, labels = stripes(64)
    one_class = labels == 0
    with pytest.raises(ValueError, match="no class is left"):
        baselines.random_labels(
            taught(monkeypatch), (images[one_class], labels[one_class]),
            (images[one_class], labels[one_class]), **TRAINING,
        )  # fmt: skip


def test_nothing_to_climb_is_refused(monkeypatch: pytest.MonkeyPatch):
    forgotten, retained = parts()
    with pytest.raises(ValueError, match="no items to forget"):
        baselines.gradient_ascent(
            taught(monkeypatch), (forgotten[0][:0], forgotten[1][:0]), retained, **ASCENT
        )
