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


# ------------------------------------------------------------------- with few shadow models

ITEMS = random(9).normal(0, 2, 300)  # what models have in common: some items are harder


def ensemble(count: int, seed: int, shift: float | np.ndarray = 0.0) -> np.ndarray:
    return ITEMS + shift + random(seed).normal(size=(count, len(ITEMS)))


def test_few_shadows_cannot_tell_models_of_one_kind():
    """Nor where each model is lower or higher throughout, as models of different seeds are."""
    for spread in (0.0, 1.0):
        whole = random(3).normal(0, spread, (64, 1))
        found = membership.shadow_attack(
            ensemble(32, 1) + whole[:32], ensemble(32, 2) + whole[32:], shadows=3, folds=8
        )
        assert found.shape == (64,)
        assert found.mean() == pytest.approx(50, abs=2 + 4 * spread)


def test_few_shadows_are_right_as_often_as_the_best_test_of_a_common_shift():
    found = membership.shadow_attack(ensemble(24, 1, shift=1.0), ensemble(24, 2), shadows=18)
    assert found.mean() == pytest.approx(100 * norm.cdf(0.5), abs=2)


def test_few_shadows_find_a_shift_of_each_item():
    """Half of the items are higher, half lower: what all have in common is nothing."""
    shift = random(5).choice([-1.5, 1.5], len(ITEMS))
    found = membership.shadow_attack(ensemble(8, 1, shift), ensemble(8, 2), shadows=4)
    assert found.mean() > 65
    best = 100 * norm.cdf(0.75)
    many = membership.shadow_attack(ensemble(32, 1, shift), ensemble(32, 2), shadows=24)
    assert found.mean() < many.mean() == pytest.approx(best, abs=2)


def test_a_common_shift_takes_fewer_models_than_ulira():
    few, apart = [], []
    for seed in range(5):
        pair = ensemble(4, 2 * seed, shift=0.5), ensemble(4, 2 * seed + 1)
        few.append(membership.shadow_attack(*pair, shadows=2, folds=2).mean())
        apart.append(membership.ulira(*pair, folds=2).mean())
    assert np.mean(few) > max(55, np.mean(apart) + 2)


def test_few_shadows_of_margins_that_are_all_the_same_are_a_guess():
    same = np.ones((8, 5))
    np.testing.assert_allclose(membership.shadow_attack(same, same, shadows=2), 50)


def test_the_kinds_are_judged_alike_and_rows_belong_to_their_models():
    """A model that is not like its kind is told wrong, and its row says so."""
    unlearned, retrained = ensemble(8, 1, shift=3.0), ensemble(8, 2)
    unlearned[5], retrained[2] = ensemble(1, 3)[0], ensemble(1, 4, shift=3.0)[0]
    found = membership.shadow_attack(unlearned, retrained, shadows=5)
    assert (found < 25).nonzero()[0].tolist() == [5, 8 + 2]


# ------------------------------------------------------------------------- intervals of KLoM


def worlds(count: int, shift: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw margins of models that differ from each other throughout, those of one seed alike."""
    generator = random(seed)
    shared = generator.normal(size=(count, 1))
    return tuple(
        mean + shared + generator.normal(size=(count, 1)) / 2 + generator.normal(size=(count, 20))
        for mean in (shift, 0.0)
    )


def test_the_interval_of_klom_holds_what_so_many_models_are_on_average():
    """About 95 % of intervals do, where those of a bootstrap hold it never."""
    for count, shift in ((16, 0.5), (32, 0.0), (32, 1.5)):
        samples = [worlds(count, shift, seed) for seed in range(60)]
        truth = np.mean([membership.klom(*pair).mean() for pair in samples])
        found = [membership.klom_interval(*pair, draws=60) for pair in samples]
        assert np.mean([one.low <= truth <= one.high for one in found]) >= 0.85
        # and it is not so wide that it says nothing
        assert np.mean([one.high - one.low for one in found]) < truth
        held = []
        for pair in samples[:20]:
            drawn = random().integers(0, count, (60, count))
            values = [membership.klom(pair[0][i], pair[1][i]).mean() for i in drawn]
            held.append(np.quantile(values, 0.025) <= truth <= np.quantile(values, 0.975))
        assert np.mean(held) < 0.2


def test_the_interval_is_around_the_value_and_follows_the_seed():
    pair = worlds(32, 1.0, 0)
    one, again, other = (membership.klom_interval(*pair, draws=20, seed=s) for s in (0, 0, 1))
    assert one == again != other
    assert one.value == membership.klom(*pair).mean()
    assert 0 <= one.low < one.value < one.high
    assert one.models == 32
    apart = membership.klom_interval(pair[0][:20], pair[1], draws=20)
    assert apart.models == 20
    # models of different counts share no seeds, and each kind is drawn by itself
    assert apart.value == membership.klom(pair[0][:20], pair[1]).mean()


def test_golds_differ_from_golds_by_what_luck_does_and_another_kind_by_more():
    _, golds = worlds(32, 0.0, 1)
    null = membership.gold_split(golds, draws=50)
    assert null.models == 16
    assert null.low < null.value < null.high
    second = membership.klom(worlds(16, 0.0, 2)[1], golds[:16]).mean()
    planted = membership.klom(worlds(16, 3.0, 2)[0], golds[:16]).mean()
    assert second == pytest.approx(null.value, rel=0.3)
    assert planted > null.high
    np.testing.assert_allclose(membership.gold_split(np.ones((8, 3)), draws=4).high, 0, atol=1e-12)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: membership.shadow_attack(m, m, shadows=1), "at least 2 of both"),
        (lambda m: membership.shadow_attack(m, m, shadows=2, folds=1), "at least 2 of both"),
        (lambda m: membership.shadow_attack(m, m, shadows=7), "6 models of a kind are left"),
        (lambda m: membership.shadow_attack(m[:3], m, shadows=2), "at least 4 of each"),
        (lambda m: membership.shadow_attack(m, m[:, 1:], shadows=2), "same items"),
        (lambda m: membership.klom_interval(m[:3], m), "at least 4 of each"),
        (lambda m: membership.klom_interval(m, m[:, 1:]), "same items"),
        (lambda m: membership.klom_interval(m, m, draws=1), "draws=1"),
        (lambda m: membership.gold_split(m[:3]), "at least 4 of each"),
        (lambda m: membership.gold_split(m, draws=0), "draws=0"),
    ],
)
def test_too_little_to_compare_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(np.ones((8, 3)))


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
