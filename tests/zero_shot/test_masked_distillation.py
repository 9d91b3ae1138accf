"""Masked distillation: what it teaches, and that it reads the model alone."""

import numpy as np
import pytest
import torch
from tolerances import RTOL
from torch import nn
from toys import CLASSES, SHAPE, states_equal, stripes, taught, tiny

from unlearnlib.arena import baselines
from unlearnlib.data.requests import Classes
from unlearnlib.models import networks
from unlearnlib.models.loops import batches, descend, one_cycle, shift
from unlearnlib.pipeline import seeds
from unlearnlib.pipeline.parameters import ParameterError
from unlearnlib.pipeline.schema import build
from unlearnlib.zero_shot import losses, masked_distillation, method, read_out
from unlearnlib.zero_shot.deep_inversion import Synthesis, answers
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
    assert torch.equal(outcome.images, given[0])


def test_the_first_images_are_kept_with_what_the_model_says_of_them(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(masked_distillation, "SHOWN", 6)
    network = taught(monkeypatch)
    settings = Settings(Synthesis(per_class=3, steps=1, norm_weight=0.0), Tuning(steps=1))
    outcome = masked_distillation.unlearn(
        network, Classes([1]), shape=SHAPE, settings=settings, seed=0
    )
    assert outcome.images.shape == (6, *SHAPE)
    assert outcome.images.dtype == torch.uint8
    answers = networks.predict(network, outcome.images / 255).softmax(1)
    confidence, labels = outcome.facts["confidence"], outcome.facts["image_labels"]
    assert torch.equal(labels, answers.argmax(1))
    assert torch.equal(confidence, answers.gather(1, labels[:, None])[:, 0])


def test_images_of_the_forgotten_class_may_weigh_more(monkeypatch: pytest.MonkeyPatch):
    network, (images, _) = networks.frozen(taught(monkeypatch)), stripes(12)
    pixels, gone = (images * 255).to(torch.uint8), Classes([1]).mask(network(images).argmax(1))
    assert 0 < gone.sum() < 12

    def loss(chosen: torch.Tensor, weight: float = 0.0) -> float:
        # frozen statistics, so that the loss of an image does not depend on the others
        tuning = Tuning(1, 12, jitter=0, forget_weight=weight, freeze_statistics=True)
        return masked_distillation.teach(
            network, pixels[chosen], Classes([1]), tuning=tuning, seed=0
        )[1][0]

    every = torch.ones(12, dtype=torch.bool)
    expected = loss(every) + 3 * loss(gone)
    assert loss(every, 3.0) == pytest.approx(expected, rel=10 * RTOL)
    # where there is no such image, the weight says nothing
    assert loss(~gone, 3.0) == loss(~gone)


def test_statistics_can_be_kept(monkeypatch: pytest.MonkeyPatch):
    network, (images, _) = networks.frozen(taught(monkeypatch)), stripes(8)
    pixels, kept = (images * 255).to(torch.uint8), []
    for freeze in (True, False):
        tuning = Tuning(steps=2, batch_size=8, freeze_statistics=freeze)
        learner, _ = masked_distillation.teach(network, pixels, Classes([1]), tuning=tuning, seed=0)
        kept.append(torch.equal(learner.first_norm.running_mean, network.first_norm.running_mean))
    assert kept == [True, False]


def test_the_loss_is_that_of_delete(monkeypatch: pytest.MonkeyPatch):
    """On images of the forgotten class alone, both teach the same answers."""
    network, (images, _) = networks.frozen(taught(monkeypatch)), stripes(8)
    pixels, labels = (images * 255).to(torch.uint8), torch.ones(8, dtype=torch.long)
    tuning = Tuning(steps=1, batch_size=8, jitter=0)
    _, (ours,) = masked_distillation.teach(network, pixels, Classes([1]), tuning=tuning, seed=0)
    taken = []
    plain = baselines.descend
    monkeypatch.setattr(
        baselines, "descend", lambda *a, **options: taken.extend(plain(*a, **options))
    )
    settings = baselines.Erasure(epochs=1, batch_size=8)
    part = pixels / 255, labels
    baselines.delete(network, part, part, settings=settings, seed=0)
    assert taken == [pytest.approx(ours, rel=10 * RTOL)]


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


# ------------------------------------------------------------------------- where a copy begins


def first(network: nn.Module, start: str, **changes: float) -> nn.Module:
    tuning = Tuning(start=start, **changes)
    return masked_distillation.first(network, Classes([1]), shape=SHAPE, tuning=tuning, seed=3)


def test_by_default_a_copy_is_taught_as_before_there_was_a_choice(monkeypatch: pytest.MonkeyPatch):
    """The same bits as the plain loop on a deep copy, and the same random state afterwards."""
    network, (images, _) = networks.frozen(taught(monkeypatch)), stripes(12)
    pixels, request, tuning = (images * 255).to(torch.uint8), Classes([1]), Tuning(5, 8)
    before = torch.random.get_rng_state()
    found, taken = masked_distillation.teach(network, pixels, request, tuning=tuning, seed=0)
    assert torch.equal(torch.random.get_rng_state(), before)
    generator = seeds.stream(0, "order of the images")
    by_hand = taught(monkeypatch).requires_grad_(True).train()
    optimizer = torch.optim.Adam(by_hand.parameters(), lr=tuning.rate)

    def loss_of(index: torch.Tensor) -> torch.Tensor:
        x = shift(pixels[index].float() / 255, pixels=2, generator=generator)
        logits = answers(network, x)
        return losses.divergence(losses.masked(logits, request), by_hand(x))

    order = batches(12, batch_size=8, steps=5, generator=generator)
    schedule = one_cycle(optimizer, tuning.rate, steps=5)
    assert taken == descend(optimizer, order, loss_of, schedule=schedule)
    assert states_equal(found, by_hand)


def test_new_rows_are_those_of_a_random_class_row(monkeypatch: pytest.MonkeyPatch):
    network = networks.frozen(taught(monkeypatch))
    found = first(network, "class_row")
    expected = read_out.random_class_row(
        network, Classes([1]), shape=SHAPE, settings=read_out.Settings(), seed=3
    ).network
    assert states_equal(found, expected)
    same = (found.classifier.weight == network.classifier.weight).all(1)
    assert same.tolist() == [True, False, True, True]
    assert states_equal(network, taught(monkeypatch))


def test_a_perturbed_copy_lies_between_the_model_and_a_fresh_one(monkeypatch: pytest.MonkeyPatch):
    network = networks.frozen(taught(monkeypatch))
    fresh, found, none, all_of_it = (
        first(network, "fresh"),
        first(network, "perturbed", shrink=0.25),
        first(network, "perturbed", shrink=1.0),
        first(network, "perturbed", shrink=0.0),
    )
    triples = zip(*(one.parameters() for one in (found, network, fresh)), strict=True)
    for own, model, other in triples:
        torch.testing.assert_close(own, 0.25 * model + 0.75 * other)
    assert states_equal(none, network)
    assert torch.equal(all_of_it.classifier.weight, fresh.classifier.weight)
    for one in (found, all_of_it):  # statistics stay the model's
        assert torch.equal(one.first_norm.running_var, network.first_norm.running_var)
    assert not torch.equal(fresh.first_norm.running_var, network.first_norm.running_var)


def test_a_fresh_start_follows_the_seed_and_nothing_else(monkeypatch: pytest.MonkeyPatch):
    network = networks.frozen(taught(monkeypatch))
    before = torch.random.get_rng_state()
    once = first(network, "fresh")
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.rand(3)
    assert states_equal(once, first(network, "fresh"))
    other = masked_distillation.first(
        network, Classes([1]), shape=SHAPE, tuning=Tuning(start="fresh"), seed=4
    )
    assert not states_equal(once, other)


@pytest.mark.parametrize("start", ["class_row", "perturbed", "fresh"])
def test_a_class_goes_from_every_start(start: str, monkeypatch: pytest.MonkeyPatch):
    network, (images, labels) = networks.frozen(taught(monkeypatch)), stripes(80, seed=3)
    pixels = (images * 255).to(torch.uint8)
    tuning = Tuning(steps=150, batch_size=40, rate=0.03, jitter=0, start=start)
    learner, _ = masked_distillation.teach(network, pixels, Classes([1]), tuning=tuning, seed=0)
    predicted, gone = learner(images).argmax(1), labels == 1
    assert (predicted[gone] == 1).float().mean() < 0.1
    assert (predicted[~gone] == labels[~gone]).float().mean() > 0.8
    assert not learner.training
    assert states_equal(network, taught(monkeypatch))


def test_new_rows_need_a_read_out_and_a_fresh_start_statistics():
    asked = Settings(tuning=Tuning(start="class_row")).needs
    assert asked == (method.statistics, read_out.linear_read_out)
    with pytest.raises(ValueError, match="a fresh network has no statistics to keep"):
        Tuning(start="fresh", freeze_statistics=True)


def test_a_start_that_does_not_exist_is_refused():
    with pytest.raises(ParameterError, match="start = 'elsewhere'"):
        build(Settings, {"tuning": {"start": "elsewhere"}})
