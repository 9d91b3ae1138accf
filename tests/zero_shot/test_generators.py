"""The generator and its prior: images in range, statistics measured right, steps that are clipped."""

import math

import pytest
import scipy.stats
import torch
from tolerances import ATOL, RTOL
from torch import nn
from toys import SHAPE, Tiny, states_equal, statistics_by_hand, taught, tiny

from unlearnlib.models import architectures, checkpoints, networks
from unlearnlib.zero_shot import generators
from unlearnlib.zero_shot.generators import Generator


def randomness(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(
    output: str, shape: tuple[int, int, int] = SHAPE, *, disturbed: bool = False
) -> torch.Tensor:
    torch.manual_seed(0)
    network = Generator(6, 8, shape, output=output)
    for parameter in network.parameters() if disturbed else []:
        parameter.data.add_(torch.randn_like(parameter))
    return network(torch.randn(32, 6)).detach()


# --------------------------------------------------------------------------------- the images


def test_sigmoid_images_are_pixels_and_start_dark():
    images = draw("sigmoid")
    assert images.shape == (32, *SHAPE)
    assert 0 <= images.min() < images.max() <= 1
    assert images.mean() < 0.3


@pytest.mark.parametrize("disturbed", [False, True])
@pytest.mark.parametrize("output", ["published", "small_kernel", "fixed_scale"])
def test_normalised_images_have_the_scale_that_was_learnt(output: str, disturbed: bool):
    images = draw(output, (3, 12, 4), disturbed=disturbed)
    assert images.shape == (32, 3, 12, 4)
    standard = not disturbed or output == "fixed_scale"
    mean, deviation = images.mean((0, 2, 3)), images.std((0, 2, 3), correction=0)
    assert torch.allclose(mean, torch.zeros(3), atol=1e-5) is standard
    assert torch.allclose(deviation, torch.ones(3), rtol=1e-3) is standard


@pytest.mark.parametrize(("output", "kernel"), [("published", 7), ("sigmoid", 3)])
def test_the_last_convolution_of_the_published_generator_takes_four_off_each_side(
    output: str, kernel: int
):
    network = Generator(6, 8, (1, 28, 28), output=output)
    last = [m for m in network.modules() if isinstance(m, nn.Conv2d)][-1]
    assert last.kernel_size == (kernel, kernel)
    sides = []
    last.register_forward_pre_hook(lambda _, args: sides.append(tuple(args[0].shape[2:])))
    assert network(torch.randn(2, 6)).shape == (2, 1, 28, 28)
    assert sides == [(32, 32) if kernel == 7 else (28, 28)]


@pytest.mark.parametrize("shape", [(1, 30, 28), (1, 28, 30)])
def test_sides_that_are_no_multiples_of_4_are_refused(shape: tuple[int, int, int]):
    with pytest.raises(ValueError, match=rf"{shape[1]} x {shape[2]}.*multiples of 4"):
        Generator(6, 8, shape, output="sigmoid")


def test_an_unknown_output_is_refused():
    with pytest.raises(ValueError, match=r"'tanh'; choose of .*'published'.*'sigmoid'"):
        Generator(6, 8, SHAPE, output="tanh")


def test_latents_are_standard_normal_and_seeded():
    z = generators.latents(4000, 5, generator=randomness())
    assert z.shape == (4000, 5)
    assert scipy.stats.kstest(z.flatten().numpy(), "norm").pvalue > 0.01
    assert torch.equal(z, generators.latents(4000, 5, generator=randomness()))
    assert not torch.equal(z, generators.latents(4000, 5, generator=randomness(1)))


# ----------------------------------------------------------------------------------- the steps


@pytest.mark.parametrize(("slope", "expected"), [(1.0, 2.0), (100.0, 5.0)])
def test_a_step_follows_the_gradient_clipped_at_norm_5(slope: float, expected: float):
    network = nn.Linear(4, 1, bias=False)
    before, optimizer = (
        network.weight.detach().clone(),
        torch.optim.SGD(network.parameters(), lr=1),
    )
    loss = slope * network.weight.sum() + 3  # the gradient has norm 2 · slope
    assert generators.clipped_step(network, optimizer, loss) == pytest.approx(loss.item())
    torch.testing.assert_close(
        before - network.weight, torch.full((1, 4), expected / 2), rtol=RTOL, atol=ATOL
    )


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_raises_and_changes_nothing(value: float):
    network = nn.Linear(4, 1)
    before, optimizer = (
        network.weight.detach().clone(),
        torch.optim.SGD(network.parameters(), lr=1),
    )
    with pytest.raises(FloatingPointError, match=f"the loss is {value}"):
        generators.clipped_step(network, optimizer, value * network.weight.sum().exp())
    assert torch.equal(network.weight, before)


def test_a_gradient_that_is_not_finite_raises_and_changes_nothing():
    network = nn.Linear(4, 1)
    before, optimizer = (
        network.weight.detach().clone(),
        torch.optim.SGD(network.parameters(), lr=1),
    )
    with pytest.raises(RuntimeError, match="non-finite"):  # √ has no slope at 0
        generators.clipped_step(network, optimizer, (network.weight * 0).sum().sqrt())
    assert torch.equal(network.weight, before)


# ----------------------------------------------------------------------------------- the prior


def trained(teacher: nn.Module, *, steps: int, seed: int = 0) -> tuple[Generator, list[float]]:
    torch.manual_seed(1)
    network = Generator(6, 8, SHAPE if isinstance(teacher, Tiny) else (1, 28, 28), output="sigmoid")
    options = {"rate": 5e-3, "batch_size": 16, "generator": randomness(seed)}
    return network, generators.train_prior(teacher, network, steps=steps, **options)


def test_the_prior_brings_the_images_to_what_the_teacher_remembers(monkeypatch: pytest.MonkeyPatch):
    teacher = networks.frozen(taught(monkeypatch))
    before = checkpoints.pack(teacher)["state_dict"]
    network, losses = trained(teacher, steps=40)
    assert len(losses) == 40
    assert losses[-1] < losses[0] / 3
    assert network.training
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())


def test_the_loss_of_the_prior_is_statistics_certainty_and_twice_the_balance(
    monkeypatch: pytest.MonkeyPatch,
):
    teacher = networks.frozen(tiny(monkeypatch))
    _, (loss,) = trained(teacher, steps=1)
    images = trained(teacher, steps=0)[0](torch.randn((16, 6), generator=randomness()))
    shares = teacher(images).softmax(1).detach()
    expected = statistics_by_hand(teacher, images) - shares.amax(1).log().mean().item()
    expected -= 2 * scipy.stats.entropy(shares.mean(0))
    assert loss == pytest.approx(expected, rel=RTOL)


def test_the_seed_decides_the_prior(monkeypatch: pytest.MonkeyPatch):
    teacher = networks.frozen(tiny(monkeypatch))
    network = trained(teacher, steps=2)[0]
    assert states_equal(network, trained(teacher, steps=2)[0])
    assert not states_equal(network, trained(teacher, steps=2, seed=1)[0])
    assert not states_equal(network, trained(teacher, steps=0)[0])


def test_only_the_prior_needs_batch_norm():
    teacher = networks.frozen(architectures.build("lenet5", width=0.5))
    assert trained(teacher, steps=0)[1] == []
    with pytest.raises(ValueError, match="LeNet5 has no BatchNorm"):
        trained(teacher, steps=1)
