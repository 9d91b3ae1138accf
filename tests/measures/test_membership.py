"""Attacks and ensembles against closed forms, bootstraps and synthetic cases with known answers."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from unlearnlib.measures import membership


def random(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_margins_are_log_odds_and_stay_finite():
    logits = torch.tensor([[2.0, 0.0, -1.0], [0.0, 500.0, 0.0]])
    found = membership.margins(logits, torch.tensor([0, 1]))
    p = logits[0].softmax(0)[0].item()
    assert found[0].item() == pytest.approx(math.log(p / (1 - p)), rel=1e-5)
    assert found[1].item() == pytest.approx(500 - math.log(2))


def test_signals_are_loss_confidence_entropy_and_margin():
    found = membership.signals(torch.zeros(1, 4), torch.tensor([2]))
    expected = [math.log(4), 0.25, math.log(4), -math.log(3)]
    np.testing.assert_allclose(found, [expected], rtol=1e-6)


# ------------------------------------------------------------------------- population attack


def test_area_is_that_of_scikit_learn_with_ties():
    positive, negative = random().integers(0, 6, 40), random(1).integers(0, 4, 30)
    found = membership.area_under_curve(positive, negative)
    truth = np.repeat([1, 0], [40, 30])
    assert found.auc == pytest.approx(roc_auc_score(truth, np.concatenate([positive, negative])))


def test_the_interval_of_an_area_is_about_that_of_a_bootstrap():
    generator = random()
    positive, negative = generator.normal(0.5, 1, 150), generator.normal(0, 1, 200)
    found = membership.area_under_curve(positive, negative)
    draws = [
        membership.area_under_curve(
            generator.choice(positive, len(positive)), generator.choice(negative, len(negative))
        ).auc
        for _ in range(1000)
    ]
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * np.std(draws), rel=0.1)


def test_the_attack_finds_what_there_is_and_nothing_in_noise():
    generator = random()
    noise = [generator.normal(size=(300, 4)) for _ in range(2)]
    found = membership.population_attack(*noise)
    assert found.low < 0.5 < found.high
    # normals with means one deviation apart: the best attack has Phi(1/sqrt 2)
    apart = [generator.normal(shift, 1, (2000, 1)) for shift in (1, 0)]
    found = membership.population_attack(*apart)
    assert found.auc == pytest.approx(norm.cdf(1 / math.sqrt(2)), abs=0.02)


def test_the_attack_is_balanced_and_scores_no_item_that_it_was_fitted_on():
    # an unbalanced attack is right for 9 of 10 by saying one thing; one that is scored on its own
    # items learns them by heart
    generator = random()
    many, few = generator.normal(size=(900, 60)), generator.normal(size=(100, 60))
    found = membership.population_attack(many, few)
    assert found.low < 0.5 < found.high


# --------------------------------------------------------------------------------- ensembles


def test_klom_of_equal_margins_is_zero_and_of_disjoint_ones_the_limit():
    retrained = random().normal(size=(32, 5))
    np.testing.assert_allclose(membership.klom(retrained, retrained), 0, atol=1e-12)
    apart = membership.klom(retrained + 50, retrained)
    assert (apart > 8).all()
    assert (apart < -math.log(1e-5)).all()


def test_klom_is_the_divergence_of_two_histograms():
    unlearned = np.array([[0.0], [0.0], [1.0], [1.0]])
    retrained = np.array([[0.0], [1.0], [1.0], [1.0]])
    found = membership.klom(unlearned, retrained, bins=2, smoothing=1e-12)
    expected = 0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)
    assert found == pytest.approx(expected)


def test_klom_falls_to_zero_as_ensembles_of_one_kind_grow():
    generator = random()
    values = [
        membership.klom(generator.normal(size=(n, 40)), generator.normal(size=(n, 40))).mean()
        for n in (8, 64, 4096)
    ]
    assert values[0] > values[1] > values[2]
    assert values[2] < 0.05


def test_klom_of_normals_nears_the_closed_form():
    generator = random()
    found = membership.klom(
        generator.normal(1, 1, (20_000, 3)), generator.normal(0, 1, (20_000, 3)), bins=60
    )
    np.testing.assert_allclose(found, 0.5, rtol=0.15)


def test_klom_is_not_blinded_by_one_wrecked_model():
    """Bins over both ensembles, as published, put all but the wrecked one into a single bin."""
    generator = random()
    apart, retrained = generator.normal(3, 0.3, (32, 20)), generator.normal(0, 0.3, (32, 20))
    apart[0] = -90
    assert membership.klom(apart, retrained).min() > 8
    one = membership.klom(np.ones((4, 3)), np.ones((4, 3)))
    np.testing.assert_allclose(one, 0, atol=1e-12)


def test_ulira_cannot_tell_models_of_one_kind():
    generator = random()
    found = membership.ulira(generator.normal(size=(32, 400)), generator.normal(size=(32, 400)))
    assert found.shape == (64,)
    assert found.mean() == pytest.approx(50, abs=3)


def test_ulira_is_right_as_often_as_the_best_test():
    generator = random()
    found = membership.ulira(generator.normal(1, 1, (64, 400)), generator.normal(0, 1, (64, 400)))
    assert found.mean() == pytest.approx(100 * norm.cdf(0.5), abs=2)
    narrow = membership.ulira(
        generator.normal(0, 0.1, (64, 400)), generator.normal(0, 3, (64, 400))
    )
    assert narrow.mean() > 90


def test_ulira_of_margins_that_are_all_the_same_is_a_guess():
    same = np.ones((8, 5))
    np.testing.assert_allclose(membership.ulira(same, same), 50)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: membership.area_under_curve(np.ones(1), np.ones(5)), "at least 2 of both"),
        (
            lambda: membership.population_attack(np.ones((3, 1)), np.ones((9, 1))),
            "3 items.*5 folds",
        ),
        (lambda: membership.klom(np.ones((4, 3)), np.ones((4, 2))), "same items"),
        (lambda: membership.klom(np.ones((1, 3)), np.ones((4, 3))), "at least 2 of each"),
        (lambda: membership.ulira(np.ones((7, 3)), np.ones((9, 3))), "at least 8 of each"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
