"""Selection of parameters: masks of the promised size, over the units that a criterion names."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from influence_tasks import small_net
from torch import Tensor, nn
from torch.nn import functional as F

from unlearnlib.influence import criteria, curvature
from unlearnlib.influence.criteria import CRITERIA
from unlearnlib.influence.curvature import SQUARED
from unlearnlib.models import architectures, networks


def hand_made() -> nn.Module:
    """Build two linear layers whose units put out 1, -3, 2 and 3, 5 for an image of ones."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.Linear(3, 2))
    with torch.no_grad():
        network[1].weight.zero_()
        network[1].bias.copy_(torch.tensor([1.0, -3, 2]))
        network[2].weight.copy_(torch.tensor([[3.0, 0, 0], [5, 0, 0]]))
        network[2].bias.zero_()
    return network


IMAGES = torch.ones(6, 1, 2, 2)
LABELS = torch.zeros(6, dtype=torch.long)


def by_layer(mask: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Split a mask of `hand_made` into weights and biases."""
    first, one, second, two = mask.split([12, 3, 6, 2])
    return first.view(3, 4), one, second.view(2, 3), two


def select(criterion: str, network: nn.Module, **options) -> Tensor:
    options = {"ratio": 0.5, "seed": 0} | options
    return CRITERIA[criterion].select(network, IMAGES, LABELS, **options)


def threshold(start: float, *, ratio: float, seed: int) -> Tensor:
    """Choose above a threshold that starts elsewhere than the registered one."""
    keys = partial(criteria.above_threshold, start=start)
    criterion = replace(CRITERIA["threshold"], keys=keys)
    return criterion.select(hand_made(), IMAGES, LABELS, ratio=ratio, seed=seed)


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("ratio", [0.05, 0.1, 0.3, 0.5, 1.0])
def test_every_criterion_takes_the_same_share_of_each_layer(criterion: str, ratio: float):
    objective = small_net()
    network = objective.network.float()
    mask = CRITERIA[criterion].select(
        network, objective.inputs.float(), objective.targets, ratio=ratio, seed=0
    )
    assert mask.dtype == torch.bool
    assert mask.shape == curvature.flatten(network).shape
    convolution, norm, linear = mask[:30], mask[30:36], mask[36:]
    assert convolution.sum() == max(1, round(ratio * 30))
    assert not norm.any()
    assert linear.sum() == max(1, round(ratio * 52))


def test_top_outputs_takes_the_strongest_units_whole():
    first, one, second, two = by_layer(select("top_outputs", hand_made(), ratio=10 / 15))
    assert first.all(1).tolist() == [False, True, True]
    assert one.tolist() == [False, True, True]
    assert not first[0].any()
    assert second[1].all()
    assert two[1]
    # 5 of 8 parameters: the second unit has 4, one more comes from the other
    assert second[0].sum() + two[0] == 1


def test_top_gradients_follows_the_loss_and_not_the_output():
    network = hand_made()
    with torch.no_grad():
        network[2].weight.copy_(torch.tensor([[3.0, 0, 1], [5, 0, 7]]))
    scores = criteria.gradient_scores(network, IMAGES, LABELS)
    hidden = network[:2](IMAGES).detach().requires_grad_()
    logits = network[2](hidden)
    loss = F.cross_entropy(logits, LABELS)
    of_hidden, of_logits = torch.autograd.grad(loss, [hidden, logits])
    torch.testing.assert_close(scores["1"], of_hidden.sum(0).abs().double())
    torch.testing.assert_close(scores["2"], of_logits.sum(0).abs().double())
    first, one, _, _ = by_layer(select("top_gradients", network, ratio=1 / 3))
    assert first.all(1).tolist() == [False, False, True]
    assert one.tolist() == [False, False, True]


def test_gradients_are_of_the_loss_that_is_given():
    network, targets = hand_made(), torch.tensor([[3.0, 4]]).expand(6, -1)
    scores = criteria.gradient_scores(network, IMAGES, targets, SQUARED)
    assert scores["2"].tolist() == [0, 1]


def test_the_threshold_opens_a_pool_and_draws_from_all_of_it():
    # 2 of 15: only the unit at 3 is above the start; 6 of 15: the units at 3 and 2 are
    pools = {2 / 15: {1}, 6 / 15: {1, 2}, 11 / 15: {0, 1, 2}}
    for ratio, pool in pools.items():
        touched = set()
        for seed in range(20):
            first, one, _, _ = by_layer(threshold(2.5, ratio=ratio, seed=seed))
            units = torch.cat([first, one[:, None]], 1).sum(1)
            assert units.sum() == round(ratio * 15)
            touched |= set(units.nonzero().squeeze(1).tolist())
        assert touched == pool


def test_a_finer_start_than_needed_leaves_the_pool_wide():
    # the units at 3 and 2 are both above a start of 1.5, though one would do
    units = [by_layer(threshold(1.5, ratio=2 / 15, seed=seed))[0] for seed in range(20)]
    assert any(weights[2].any() for weights in units)
    assert not any(weights[0].any() for weights in units)


def test_random_reaches_every_parameter_and_depends_on_the_seed_alone():
    masks = torch.stack([select("random", hand_made(), seed=seed) for seed in range(40)])
    assert masks.any(0).all()
    assert not masks.all(0).any()
    assert torch.equal(masks[0], select("random", hand_made(), seed=0))


def test_maps_are_averaged_over_places_and_chunks_do_not_matter():
    network, images = small_net().network, small_net().inputs
    scores = criteria.output_scores(network, images, small_net().targets)
    expected = network[0](images).mean((0, 2, 3)).abs()
    torch.testing.assert_close(scores["0"], expected.detach())
    chunked = criteria.output_scores(network, images, small_net().targets, batch_size=7)
    torch.testing.assert_close(chunked["0"], scores["0"])


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("model", ["compact", "resnet18", "vit"])
def test_every_architecture_can_be_selected_from_and_is_left_as_it_was(model: str, criterion: str):
    network = networks.frozen(architectures.build(model, width=0.125)).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    images, labels = torch.rand(3, 1, 28, 28), torch.tensor([1, 2, 3])
    mask = CRITERIA[criterion].select(network, images, labels, ratio=0.1, seed=0)
    assert 0.05 < mask.double().mean() <= 0.11
    assert network.training
    assert not any(p.requires_grad for p in network.parameters())
    assert all(torch.equal(before[k], v) for k, v in network.state_dict().items())
    assert not any(m._forward_hooks for m in network.modules())


# ------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize("ratio", [0, -0.1, 1.01, float("nan")])
def test_a_ratio_out_of_range_is_refused(ratio: float):
    with pytest.raises(ValueError, match=r"ratio=.*above 0 and at most 1"):
        select("random", hand_made(), ratio=ratio)


def test_an_unknown_criterion_no_images_no_layer_or_no_step_is_refused():
    with pytest.raises(ValueError, match=r"'largest'.*top_outputs.*random"):
        select("largest", hand_made())
    with pytest.raises(ValueError, match="no images to score"):
        CRITERIA["top_outputs"].select(hand_made(), IMAGES[:0], LABELS[:0], ratio=0.5, seed=0)
    with pytest.raises(ValueError, match=r"no nn.Conv2d and no nn.Linear"):
        select("random", nn.Flatten())
    with pytest.raises(ValueError, match="step=0"):
        criteria.above_threshold(torch.ones(1), torch.zeros(1).long(), 1, torch.ones(1), step=0)
