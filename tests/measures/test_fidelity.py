"""Distances between models against scipy, closed forms, and the known wrong versions."""

import math

import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon
from torch.nn import functional as F

from unlearnlib.measures import fidelity


def logits(*rows: list[float]) -> torch.Tensor:
    """Turn rows of probabilities into logits; a probability of 0 becomes one of e^-200."""
    return torch.tensor(rows, dtype=torch.float64).clamp_min(math.exp(-200)).log()


def test_jensen_shannon_is_that_of_scipy():
    generator = torch.Generator().manual_seed(0)
    one, other = torch.randn(2, 20, 5, generator=generator)
    expected = jensenshannon(one.softmax(1).numpy(), other.softmax(1).numpy(), axis=1) ** 2
    assert fidelity.jensen_shannon(one, other) == pytest.approx(expected.mean(), rel=1e-5)
    assert fidelity.jensen_shannon(one, one) == pytest.approx(0, abs=1e-12)


def test_jensen_shannon_of_models_with_no_class_in_common_is_ln_2():
    one, other = logits([1, 0, 0]), logits([0, 1, 0])
    assert fidelity.jensen_shannon(one, other) == pytest.approx(math.log(2))


def test_jensen_shannon_is_not_the_divergence_that_is_widely_copied():
    one, other = logits([0.98, 0.01, 0.01]), logits([0.10, 0.45, 0.45])
    p, middle = one.exp(), (one.exp() + other.exp()) / 2
    copied = F.kl_div(p.log(), middle, reduction="mean").item()
    true = (jensenshannon(one.exp()[0], other.exp()[0]) ** 2).item()
    assert fidelity.jensen_shannon(one, other) == pytest.approx(true)
    assert abs(copied - true) > 0.1


def test_activation_distance_is_a_mean_of_norms():
    one, other = logits([1, 0], [0.5, 0.5]), logits([0, 1], [0.5, 0.5])
    assert fidelity.activation_distance(one, other) == pytest.approx(math.sqrt(2) / 2)
    root_of_mean_square = math.sqrt(2 / 2)
    assert fidelity.activation_distance(one, other) != pytest.approx(root_of_mean_square)


def test_completeness_counts_equal_predictions():
    one, other = logits([0.9, 0.1], [0.6, 0.4]), logits([0.6, 0.4], [0.4, 0.6])
    assert fidelity.completeness(one, other) == 50


def test_zero_retrain_forgetting_is_1_for_a_model_that_answers_like_an_untrained_one():
    flat, sure = logits([1 / 3] * 3), logits([1, 0, 0])
    assert fidelity.zero_retrain_forgetting(flat, flat) == pytest.approx(1)
    expected = 1 - jensenshannon([1, 0, 0], [1 / 3] * 3) ** 2
    assert fidelity.zero_retrain_forgetting(sure, flat) == pytest.approx(expected)


def test_tug_of_war_multiplies_what_is_left():
    assert fidelity.tug_of_war([100, 90, 80], [100, 100, 100]) == pytest.approx(0.9 * 0.8)
    assert fidelity.tug_of_war([5, 99], [5, 99]) == 1
    # a model below gold by as much as another is above it counts the same
    assert fidelity.tug_of_war([40], [50]) == pytest.approx(fidelity.tug_of_war([60], [50]))


def test_linear_cka_sees_through_rotation_scale_and_shift():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(50, 4, generator=generator, dtype=torch.float64)
    rotation, _ = torch.linalg.qr(torch.randn(4, 4, generator=generator, dtype=torch.float64))
    assert fidelity.linear_cka(features, 3 * features @ rotation + 7) == pytest.approx(1)
    other = torch.randn(50, 6, generator=generator, dtype=torch.float64)
    a, b = (np.cov(x.numpy(), rowvar=False) for x in (features, other))
    cross = np.cov(features.numpy(), other.numpy(), rowvar=False)[:4, 4:]
    expected = (cross**2).sum() / np.sqrt((a**2).sum() * (b**2).sum())
    assert fidelity.linear_cka(features, other) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fidelity.jensen_shannon(torch.ones(2, 3), torch.ones(3, 3)), "same images"),
        (lambda: fidelity.activation_distance(torch.ones(0, 3), torch.ones(0, 3)), "same images"),
        (lambda: fidelity.completeness(torch.ones(3), torch.ones(3)), r"\[N, K\]"),
        (lambda: fidelity.tug_of_war([101], [99]), "in percent"),
        (lambda: fidelity.tug_of_war([], []), "as many of both"),
        (lambda: fidelity.linear_cka(torch.ones(4, 2), torch.rand(4, 2)), "the same for every"),
        (lambda: fidelity.linear_cka(torch.rand(4, 2), torch.rand(3, 2)), "same items"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
