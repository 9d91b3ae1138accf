"""Masked distillation: what it teaches, and that it reads the model alone."""

import pytest
import torch
from toys import CLASSES, SHAPE, states_equal, stripes, taught

from unlearnlib.zero_shot import masked_distillation
from unlearnlib.zero_shot.deep_inversion import Synthesis


def test_masked_predictions_are_those_among_the_other_classes():
    logits = torch.tensor([[1.0, 5.0, 2.0, -1.0], [0.0, -3.0, 900.0, 0.0]])
    found = masked_distillation.masked(logits, [1, 2]).softmax(1)
    assert found[:, [1, 2]].max() < 1e-20
    torch.testing.assert_close(found[:, [0, 3]], logits[:, [0, 3]].softmax(1))
    assert torch.equal(logits[0], torch.tensor([1.0, 5.0, 2.0, -1.0]))


def test_a_class_goes_and_the_others_stay(monkeypatch: pytest.MonkeyPatch):
    network = taught(monkeypatch)
    unlearned = masked_distillation.unlearn(
        network, forget_classes=[1], num_classes=CLASSES, shape=SHAPE,
        synthesis=Synthesis(per_class=24, steps=60, batch_size=24, jitter=0, norm_weight=0.0),
        tuning=masked_distillation.Tuning(steps=120, batch_size=24, rate=0.02, jitter=0), seed=0,
    )  # fmt: skip
    images, labels = stripes(80, seed=3)
    predicted, gone = unlearned(images).argmax(1), labels == 1
    assert (predicted[gone] == 1).float().mean() < 0.1
    assert (predicted[~gone] == labels[~gone]).float().mean() > 0.8
    assert not unlearned.training
    assert states_equal(network, taught(monkeypatch))


def test_no_steps_are_refused():
    with pytest.raises(ValueError, match="steps is 0"):
        masked_distillation.Tuning(steps=0)
