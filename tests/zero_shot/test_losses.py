"""What the methods minimise: each loss against a second implementation, and the gate case by case."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
from tolerances import ATOL, RTOL
from torch import Tensor, nn
from torch.nn import functional as F
from toys import plain_map

from unlearnlib.data.requests import Classes
from unlearnlib.zero_shot import losses


def logits(count: int, classes: int, *, seed: int, scale: float = 3.0) -> Tensor:
    return scale * torch.randn(count, classes, generator=torch.Generator().manual_seed(seed))


# -------------------------------------------------------------------------------- predictions


@pytest.mark.parametrize("classes", [2, 10])
def test_divergence_is_the_kl_that_scipy_computes(classes: int):
    teacher, student = logits(7, classes, seed=0), logits(7, classes, seed=1)
    p, q = (scipy.special.softmax(x.double().numpy(), 1) for x in (teacher, student))
    expected = scipy.stats.entropy(p, q, axis=1).mean()
    assert losses.divergence(teacher, student).item() == pytest.approx(expected, rel=RTOL)
    assert losses.divergence(teacher, teacher).item() == pytest.approx(0, abs=ATOL)


def test_divergence_per_class_is_the_scale_of_the_published_code():
    teacher, student = logits(7, 10, seed=0), logits(7, 10, seed=1)
    published = F.kl_div(student.log_softmax(1), teacher.softmax(1), reduction="none").mean()
    found = losses.divergence(teacher, student, per_class=True)
    assert found.item() == pytest.approx(published.item(), rel=RTOL)
    assert 10 * found.item() == pytest.approx(losses.divergence(teacher, student).item(), rel=RTOL)


def gradient(loss_of: Callable[[Tensor], Tensor], teacher: Tensor) -> tuple[float, Tensor]:
    leaf = teacher.clone().requires_grad_(True)
    loss = loss_of(leaf)
    loss.backward()
    return loss.item(), leaf.grad


def test_divergence_stays_finite_where_kl_div_turns_nan():
    teacher, student = torch.tensor([[0.0, 1.0, -300.0]]), torch.tensor([[1.0, 0.5, 0.2]])
    _, trapped = gradient(
        lambda t: F.kl_div(student.log_softmax(1), t.softmax(1), reduction="batchmean"), teacher
    )
    assert trapped.isnan().any()
    value, found = gradient(lambda t: losses.divergence(t, student), teacher)
    # double precision does not underflow here, so kl_div itself is the oracle
    expected, slope = gradient(
        lambda t: F.kl_div(student.double().log_softmax(1), t.softmax(1), reduction="batchmean"),
        teacher.double(),
    )
    assert value == pytest.approx(expected, rel=RTOL)
    torch.testing.assert_close(found, slope.float(), rtol=RTOL, atol=ATOL)


@pytest.mark.parametrize("scale", [0.0, 1.0, 300.0])
def test_entropy_is_what_scipy_computes(scale: float):
    drawn = logits(6, 5, seed=2, scale=scale)
    expected = scipy.stats.entropy(scipy.special.softmax(drawn.double().numpy(), 1), axis=1)
    np.testing.assert_allclose(losses.entropy(drawn), expected, rtol=RTOL, atol=ATOL)
    assert losses.entropy(torch.zeros(1, 5)).item() == pytest.approx(math.log(5), rel=RTOL)


SHAPES = [(3, 5, 4, 2), (3, 1, 2, 2), (2, 4, 3), (3, 6)]


@pytest.mark.parametrize("shape", SHAPES)
def test_an_attention_map_is_the_normalised_mean_of_squares(shape: tuple[int, ...]):
    activation = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    found = losses.attention_map(activation)
    torch.testing.assert_close(found, plain_map(activation), rtol=RTOL, atol=ATOL)
    assert found.shape == (shape[0], math.prod(shape[2:]) if len(shape) > 2 else shape[1])


@pytest.mark.parametrize("shape", SHAPES)
def test_the_attention_gap_and_its_gradient_are_autograds(shape: tuple[int, ...]):
    torch.manual_seed(0)
    activation = torch.randn(shape).relu().requires_grad_(True)
    wanted = plain_map(torch.randn(shape))
    found = losses.attention_gap(activation, wanted)
    expected = F.mse_loss(plain_map(activation), wanted)
    assert found.item() == pytest.approx(expected.item(), rel=RTOL)
    slopes = [torch.autograd.grad(3 * gap, activation)[0] for gap in (found, expected)]
    torch.testing.assert_close(*slopes, rtol=RTOL, atol=ATOL)


def test_the_attention_gap_passes_finite_differences():
    torch.manual_seed(0)
    for shape in ((2, 3, 2, 2), (3, 4)):
        activation = torch.randn(shape, dtype=torch.float64, requires_grad=True)
        wanted = plain_map(torch.randn(shape, dtype=torch.float64))
        assert torch.autograd.gradcheck(lambda x, w=wanted: losses.attention_gap(x, w), activation)


def test_a_dead_layer_has_an_empty_map_and_a_finite_gradient():
    activation = torch.zeros(2, 3, 2, 2, requires_grad=True)
    assert losses.attention_map(activation).abs().sum() == 0
    losses.attention_gap(activation, torch.full((2, 4), 0.5)).backward()
    assert activation.grad.isfinite().all()


@pytest.mark.parametrize("classes", [[0], [3, 1], [0, 1, 2]])
def test_the_odds_of_classes_are_their_probability_against_the_others(classes: list[int]):
    drawn = logits(6, 4, seed=3)
    share = scipy.special.softmax(drawn.double().numpy(), 1)[:, classes].sum(1)
    expected = scipy.special.logit(share)
    np.testing.assert_allclose(losses.odds(drawn, Classes(classes)), expected, rtol=1e-4)


# ----------------------------------------------------------------------------------- the gate

CERTAIN_0, CERTAIN_2 = [0.97, 0.01, 0.01, 0.01], [0.004, 0.004, 0.988, 0.004]
EVEN, SPREAD = [0.25, 0.25, 0.25, 0.25], [0.005, 0.005, 0.45, 0.54]  # entropy 1.386, 0.745


@pytest.mark.parametrize(
    ("forget_classes", "threshold", "entropy_limit", "expected"),
    [
        ([0], 0.01, None, [False, True, False, True]),
        ([0], 0.3, None, [False, True, True, True]),
        ([2], 0.02, None, [True, False, False, False]),
        ([0, 1], 0.009, None, [False, True, False, False]),  # 0.004 + 0.004, 0.005 + 0.005
        ([1, 0], 0.011, None, [False, True, False, True]),
        ([0], 0.01, 0.5, [False, True, False, False]),
        ([0], 0.01, 0.8, [False, True, False, True]),
        ([0], 1.0, 1.0, [True, True, False, True]),
        ([3], 0.0, None, [False] * 4),
    ],
)
def test_gate_passes_what_is_neither_forgotten_nor_uncertain(
    forget_classes: list[int], threshold: float, entropy_limit: float | None, expected: list[bool]
):
    drawn = torch.tensor([CERTAIN_0, CERTAIN_2, EVEN, SPREAD]).log() + 7
    request = Classes(forget_classes)
    found = losses.gate(drawn, request, threshold=threshold, entropy_limit=entropy_limit)
    assert found.tolist() == expected


def test_gate_closes_on_what_is_no_number():
    drawn = torch.tensor([[math.nan, 0.0, 1.0]])
    assert losses.gate(drawn, Classes([0]), threshold=0.5).tolist() == [False]


@pytest.mark.parametrize("classes", [[0], [3, 1], [0, 1, 2]])
def test_the_share_of_classes_is_the_sum_of_their_probabilities(classes: list[int]):
    drawn = logits(6, 4, seed=3)
    expected = scipy.special.softmax(drawn.double().numpy(), 1)[:, classes].sum(1)
    np.testing.assert_allclose(losses.share(drawn, Classes(classes)), expected, rtol=RTOL)


def test_masked_predictions_are_those_among_the_other_classes():
    logits = torch.tensor([[1.0, 5.0, 2.0, -1.0], [0.0, -3.0, 900.0, 0.0]])
    found = losses.masked(logits, Classes([1, 2])).softmax(1)
    assert found[:, [1, 2]].max() < 1e-20
    torch.testing.assert_close(found[:, [0, 3]], logits[:, [0, 3]].softmax(1))
    assert torch.equal(logits[0], torch.tensor([1.0, 5.0, 2.0, -1.0]))


# ----------------------------------------------------------------------------- the statistics


def layer(mean: np.ndarray, variance: np.ndarray) -> nn.Module:
    found = nn.BatchNorm2d(len(mean))
    found.running_mean = torch.tensor(mean, dtype=torch.float32)
    found.running_var = torch.tensor(variance, dtype=torch.float32)
    return found


def test_statistics_that_match_are_at_distance_0_with_a_finite_gradient():
    inputs = [torch.tensor([[-1.0, 2.0], [3.0, 8.0]]).view(1, 2, 1, 2).repeat(3, 1, 1, 1)]
    inputs[0] = torch.tensor([[1.0, 10.0], [3.0, 14.0]]).view(2, 2, 1, 1).requires_grad_(True)
    layers = [layer(np.array([2.0, 12.0]), np.array([1.0, 4.0]))]
    distance = losses.statistics_distance(inputs, layers)
    distance.backward()
    assert distance.item() == 0
    assert inputs[0].grad.isfinite().all()


def test_statistics_distance_is_the_sum_of_norms_that_numpy_computes():
    rng = np.random.default_rng(0)
    arrays = [rng.normal(1, 2, (5, 3, 4, 6)), rng.normal(-1, 1, (7, 2))]
    means, variances = [rng.normal(size=3), rng.normal(size=2)], [rng.random(3), rng.random(2)]
    expected = 0.0
    for array, axes, mean, variance in zip(arrays, [(0, 2, 3), 0], means, variances, strict=True):
        expected += np.sqrt(((array.mean(axes) - mean) ** 2).sum())
        expected += np.sqrt(((array.var(axes) - variance) ** 2).sum())
    inputs = [torch.tensor(array, dtype=torch.float32) for array in arrays]
    layers = [layer(*pair) for pair in zip(means, variances, strict=True)]
    found = losses.statistics_distance(inputs, layers)
    assert found.item() == pytest.approx(expected, rel=RTOL)


def test_as_many_inputs_as_layers_are_needed():
    with pytest.raises(ValueError, match="zip"):
        losses.statistics_distance([], [nn.BatchNorm2d(2)])


@pytest.mark.parametrize("classes", [2, 10])
def test_imbalance_is_least_for_balanced_classes_and_0_for_one(classes: int):
    certain = 1000 * torch.eye(classes)  # the other probabilities are 0
    assert losses.imbalance(certain).item() == pytest.approx(-math.log(classes), rel=RTOL)
    assert losses.imbalance(certain[[1, 1, 1]]).item() == pytest.approx(0, abs=ATOL)


def test_imbalance_is_the_negative_entropy_that_scipy_computes():
    drawn = logits(6, 5, seed=0, scale=1.0)
    mean = np.exp(drawn.numpy()) / np.exp(drawn.numpy()).sum(1, keepdims=True)
    expected = -scipy.stats.entropy(mean.mean(0))
    assert losses.imbalance(drawn).item() == pytest.approx(expected, rel=RTOL)


def test_total_variation_has_closed_forms():
    flat = torch.full((2, 3, 5, 4), 0.7)
    assert losses.total_variation(flat).item() == 0
    dot = torch.zeros(1, 1, 5, 5)
    dot[0, 0, 2, 2] = 3.0
    assert losses.total_variation(dot).item() == 4 * 9
    ramp = torch.arange(4.0).expand(1, 2, 5, 4)  # 3 steps of 1 in each of 2 · 5 rows
    assert losses.total_variation(ramp).item() == 30
    assert losses.total_variation(torch.cat([ramp, 0 * ramp])).item() == 15
