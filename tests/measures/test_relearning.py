"""Relearning on a copy, and its summary numbers."""

import math

import pytest
import torch
from toys import Table, states_equal, stripes, taught, tiny

from unlearnlib.measures import relearning

SETTINGS = relearning.Settings(steps=12, batch_size=16, learning_rate=0.02)
OPTIONS = {"settings": SETTINGS, "seed": 0}


def parts() -> tuple[tuple[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
    images, labels = stripes(64)
    gone = labels == 0
    return (images[gone], labels[gone]), (images[~gone], labels[~gone])


def test_a_model_that_knows_needs_no_step_and_a_fresh_one_some(monkeypatch: pytest.MonkeyPatch):
    knowing, fresh = taught(monkeypatch), tiny(monkeypatch, seed=1)
    curves = [relearning.relearning_curve(n, *parts(), **OPTIONS) for n in (knowing, fresh)]
    times = [relearning.relearn_time(curve, until=95) for curve in curves]
    assert times[0] == 0 < times[1]
    assert len(curves[0]) == 13
    assert relearning.goal(knowing, parts()[0]) == pytest.approx(0.95 * curves[0][0])


def test_learning_again_ends_where_the_accuracy_is_back(monkeypatch: pytest.MonkeyPatch):
    whole = relearning.relearning_curve(tiny(monkeypatch, seed=1), *parts(), **OPTIONS)
    short = relearning.relearning_curve(tiny(monkeypatch, seed=1), *parts(), **OPTIONS, until=80)
    assert short == whole[: len(short)]
    assert len(short) < len(whole)
    assert short[-1] >= 80 > max(short[:-1])


def test_a_step_is_adams_on_half_forgotten_and_half_retained_items(
    monkeypatch: pytest.MonkeyPatch,
):
    """With batches of all items there is one possible step, whatever the order."""
    forgotten, retained = parts()
    settings = relearning.Settings(steps=1, batch_size=64, learning_rate=0.02)
    network, by_hand = tiny(monkeypatch), tiny(monkeypatch)
    found = relearning.relearning_curve(network, forgotten, retained, settings=settings, seed=0)
    optimizer = torch.optim.Adam(by_hand.parameters(), lr=0.02)
    images, labels = (torch.cat(pair) for pair in zip(forgotten, retained, strict=True))
    torch.nn.functional.cross_entropy(by_hand(images), labels).backward()
    before = relearning.watched_accuracy(by_hand, forgotten)
    optimizer.step()
    assert found == [before, relearning.watched_accuracy(by_hand, forgotten)]


def test_the_model_itself_stays_as_it_was(monkeypatch: pytest.MonkeyPatch):
    network, before = tiny(monkeypatch), tiny(monkeypatch)
    relearning.relearning_curve(network, *parts(), **OPTIONS)
    assert states_equal(network, before)
    assert all(p.grad is None for p in network.parameters())


def test_retained_items_keep_a_model_from_saying_one_class_always(monkeypatch: pytest.MonkeyPatch):
    forgotten, retained = parts()
    network = taught(monkeypatch)
    found = relearning.relearning_curve(network, retained, forgotten, **OPTIONS)
    assert found[-1] > 90


@pytest.mark.parametrize(
    ("curve", "expected"), [([0, 50, 94, 95, 99], 3), ([97, 20], 0), ([0, 10, 94.9], math.inf)]
)
def test_relearn_time_is_the_first_step_within_the_margin(curve: list[float], expected: float):
    assert relearning.relearn_time(curve, until=95) == expected


def test_anamnesis_index_is_a_ratio_with_a_cap():
    assert relearning.anamnesis_index(3, 12, cap=50) == 0.25
    assert relearning.anamnesis_index(math.inf, 25, cap=50) == 2
    assert relearning.anamnesis_index(math.inf, math.inf, cap=50) == 1
    with pytest.raises(ValueError, match="not defined"):
        relearning.anamnesis_index(3, 0, cap=50)


def test_nothing_to_learn_from_is_refused(monkeypatch: pytest.MonkeyPatch):
    forgotten, retained = parts()
    empty = forgotten[0][:0], forgotten[1][:0]
    with pytest.raises(ValueError, match="no forgotten or no retained items"):
        relearning.relearning_curve(tiny(monkeypatch), empty, retained, **OPTIONS)


# -------------------------------------------------------------------- what comes back by itself


def test_what_lies_dormant_comes_back_and_what_is_gone_does_not():
    """Logits are read off pixels, and constants are learned, which are wrong in one of two ways."""
    labels = torch.arange(40) % 4
    images = 60 * torch.nn.functional.one_hot(labels, 4).float().view(40, 1, 1, 4)
    gone = labels == 0
    both = (images[gone], labels[gone]), (images[~gone], labels[~gone])
    settings = relearning.Settings(steps=40, batch_size=15, learning_rate=2.0)
    found = {}
    # either everything is called 1, which what stayed undoes, or nothing is called 0
    for name, shift in {"dormant": [0.0, 90, 0, 0], "gone": [-200.0, 0, 0, 0]}.items():
        network = Table()
        with torch.no_grad():
            network.shift.copy_(torch.tensor(shift))
        assert relearning.watched_accuracy(network, both[0]) == 0
        found[name] = relearning.returned_accuracy(network, *both, settings=settings, seed=0)
        assert network.shift.tolist() == shift
    assert found == {"dormant": 100, "gone": 0}


def test_no_forgotten_item_is_learned_from(monkeypatch: pytest.MonkeyPatch):
    """A step on all retained items there are is Adam's on these, and all steps are taken."""
    (images, labels), retained = parts()
    settings = relearning.Settings(steps=1, batch_size=24, learning_rate=0.02)
    network, by_hand = tiny(monkeypatch), tiny(monkeypatch)
    said = []
    monkeypatch.setattr(
        relearning.networks, "predict", lambda n, x: said.append(n) or torch.zeros(len(x), 4)
    )
    relearning.returned_accuracy(network, (images, labels), retained, settings=settings, seed=0)
    optimizer = torch.optim.Adam(by_hand.parameters(), lr=0.02)
    torch.nn.functional.cross_entropy(by_hand(retained[0]), retained[1]).backward()
    optimizer.step()
    for own, other in zip(said[0].parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-5)
    assert states_equal(network, tiny(monkeypatch))


@pytest.mark.parametrize("empty", [0, 1])
def test_nothing_to_ask_or_to_learn_is_refused(empty: int, monkeypatch: pytest.MonkeyPatch):
    both = list(parts())
    both[empty] = both[empty][0][:0], both[empty][1][:0]
    with pytest.raises(ValueError, match="no forgotten items to ask, or no retained ones"):
        relearning.returned_accuracy(tiny(monkeypatch), *both, **OPTIONS)
