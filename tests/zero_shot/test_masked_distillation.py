"""Masked distillation: what it teaches, and that it reads the model alone."""

import numpy as np
import pytest
import torch
from tolerances import RTOL
from torch import nn
from toys import CLASSES, SHAPE, states_equal, stripes, taught, tiny

from unlearnlib.data.requests import Classes
from unlearnlib.models import networks
from unlearnlib.zero_shot import masked_distillation, method
from unlearnlib.zero_shot.deep_inversion import Synthesis
from unlearnlib.zero_shot.masked_distillation import Settings, Tuning


def test_a_class_goes_and_the_others_stay(monkeypatch: pytest.MonkeyPatch):
    network = taught(monkeypatch)
    settings = Settings(
        Synthesis(per_class=24, steps=60, batch_size=24, jitter=0, norm_weight=0.0),
        Tuning(steps=120, batch_size=24, rate=0.02, jitter=0),
    )
    outcome = masked_distillation.unlearn(
        network, Classes([1]), shape=SHAPE, settings=settings, seed=0
    )
    images, labels = stripes(80, seed=3)
    predicted, gone = outcome.network(images).argmax(1), labels == 1
    assert (predicted[gone] == 1).float().mean() < 0.1
    assert (predicted[~gone] == labels[~gone]).float().mean() > 0.8
    assert not outcome.network.training
    assert states_equal(network, taught(monkeypatch))
    losses = outcome.facts["losses"]
    assert len(losses) == 120
    assert np.mean(losses[-20:]) < losses[0] / 3


def test_images_of_every_class_are_drawn_and_all_are_taught(monkeypatch: pytest.MonkeyPatch):
    asked, given = [], []
    plain, teach = masked_distillation.synthesise, masked_distillation.teach
    monkeypatch.setattr(
        masked_distillation,
        "synthesise",
        lambda model, classes, **o: asked.append(list(classes)) or plain(model, classes, **o),
    )
    monkeypatch.setattr(
        masked_distillation,
        "teach",
        lambda model, images, *a, **o: given.append(images) or teach(model, images, *a, **o),
    )
    settings = Settings(Synthesis(per_class=2, steps=1), Tuning(steps=1))
    outcome = masked_distillation.unlearn(
        tiny(monkeypatch), Classes([1]), shape=SHAPE, settings=settings, seed=0
    )
    assert asked == [list(range(CLASSES))]
    assert len(given[0]) == 2 * CLASSES
    assert outcome.images.shape == (0, *SHAPE)


def test_the_first_loss_is_the_divergence_from_the_masked_answers(
    monkeypatch: pytest.MonkeyPatch,
):
    network, (images, _) = networks.frozen(tiny(monkeypatch)), stripes(8)
    pixels = (images * 255).to(torch.uint8)
    tuning = Tuning(steps=1, batch_size=8, jitter=0)
    _, (loss,) = masked_distillation.teach(network, pixels, Classes([1]), tuning=tuning, seed=0)
    logits = network(pixels / 255)
    wanted = torch.zeros_like(logits)
    wanted[:, [0, 2, 3]] = logits[:, [0, 2, 3]].softmax(1)
    answers = tiny(monkeypatch).train()(pixels / 255)
    # entropy of what is wanted is taken off, so that a perfect answer costs nothing
    cross = nn.functional.cross_entropy(answers, wanted)
    own = -(wanted * wanted.clamp_min(1e-30).log()).sum(1).mean()
    assert loss == pytest.approx((cross - own).item(), rel=10 * RTOL)


def test_the_needs_are_those_of_the_synthesis():
    assert Settings().needs == (method.statistics,)
    assert Settings(Synthesis(statistics_weight=0.0)).needs == ()
    assert Settings(Synthesis(prior_steps=1)).needs == (method.statistics, method.drawing)
