"""The scale of an update: the rule, and what judges it."""

import math

import pytest
import torch
from torch import nn

from unlearnlib.influence import curvature
from unlearnlib.influence.scale import Rule, choose_scale, judge


def rule(*scales: float, bisections: int = 5) -> Rule:
    return Rule(scales, self_limit=1.0, bisections=bisections)


def test_the_scale_is_the_smallest_within_the_limit():
    # self accuracy falls to the limit at exactly 10
    chosen, curve = choose_scale(
        lambda scale: (100 - 9.9 * scale, 90.0), rule(1, 2, 4, 8, 16, 32, bisections=12)
    )
    assert 10 <= chosen < 10.01
    assert [point["scale"] for point in curve] == sorted({point["scale"] for point in curve})
    assert len(curve) == 6 + 12
    assert curve[0] == {"scale": 1, "self_accuracy": 90.1, "validation_accuracy": 90.0}


def test_a_first_scale_within_the_limit_is_not_bisected():
    chosen, curve = choose_scale(lambda scale: (0.0, 90.0), rule(1, 2))
    assert (chosen, len(curve)) == (1, 2)


def test_without_a_scale_within_the_limit_the_two_accuracies_decide():
    judged = {1: (99.0, 98.0), 2: (30.0, 90.0), 4: (20.0, 50.0), 8: (float("nan"),) * 2}
    reversed_nan = judged | {1: (float("nan"),) * 2}
    assert choose_scale(reversed_nan.get, rule(1, 2, 4))[0] == 2
    chosen, curve = choose_scale(judged.get, rule(1, 2, 4))
    assert (chosen, len(curve)) == (2, 3)
    # what overflows is neither within the limit nor best
    chosen, _ = choose_scale(judged.get, rule(*judged))
    assert chosen == 2


@pytest.mark.parametrize("scales", [[], [0, 1], [2, 1], [-1, 1], [1, 1]])
def test_scales_that_are_no_grid_are_refused(scales: list[float]):
    with pytest.raises(ValueError, match="factors above 0 in ascending order"):
        rule(*scales)


def test_the_judge_says_what_the_moved_model_scores():
    # the read-out of two pixels; the update takes class 0 away at a scale above 1
    network = nn.Sequential(nn.Flatten(), nn.Linear(2, 2)).eval()
    curvature.assign(network, torch.tensor([1.0, 0, 0, 1, 0, 0]))
    delta = torch.tensor([0.0, 0, 0, 0, -1, 0])
    images = torch.eye(2).view(2, 1, 1, 2)
    parts = {
        "forgotten": (images[:1], torch.tensor([0])),
        "staying": (images[1:].repeat(2, 1, 1, 1), torch.tensor([1, 0])),
    }
    at = judge(network, delta, **parts)
    assert at(0.5) == (100.0, 50.0)
    assert at(2.0) == (0.0, 50.0)
    assert network[1].bias.tolist() == [0, 0]


def test_a_model_that_overflows_has_no_accuracy():
    network = nn.Sequential(nn.Flatten(), nn.Linear(2, 2)).eval()
    image = torch.ones(1, 1, 1, 2), torch.tensor([0])
    own, others = judge(network, torch.ones(6), forgotten=image, staying=image)(3e38)
    assert math.isnan(own)
    assert math.isnan(others)
