"""How near an unlearned model is to a reference that never saw the data, by what both say.

The reference is the retrained ("gold") model, or, for the zero retrain forgetting score, a network
that was never trained. Everything is computed from logits ``[N, K]`` on the same images; what
distinguishes the numbers is which images those are.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def jensen_shannon(one: Tensor, other: Tensor) -> float:
    """Compute the mean Jensen-Shannon divergence of the softmaxes of logits ``[N, K]``, in nats.

    ``KL(p ‖ m)/2 + KL(q ‖ m)/2`` with ``m = (p + q)/2``, the mean over items: 0 where both say the
    same, ln 2 where they have no class in common. In log space, so that a probability of zero does
    no harm. (``F.kl_div(log p, m, reduction="mean")``, widely copied, is KL(m ‖ p)/K instead.)

    Raises:
        ValueError: logits of different shapes, or none.
    """
    _check(one, other)
    a, b = one.double().log_softmax(1), other.double().log_softmax(1)
    middle = torch.logaddexp(a, b) - torch.tensor(2.0).double().log()
    return ((a.exp() * (a - middle) + b.exp() * (b - middle)).sum(1).mean() / 2).item()


def activation_distance(one: Tensor, other: Tensor) -> float:
    """Compute the mean over items of ``‖p - q‖₂``, softmaxes of logits ``[N, K]``: 0 to √2.

    The mean of norms, not the root of the mean square (Golatkar et al. 2021).

    Raises:
        ValueError: logits of different shapes, or none.
    """
    _check(one, other)
    difference = one.double().softmax(1) - other.double().softmax(1)
    return difference.norm(dim=1).mean().item()


def completeness(one: Tensor, other: Tensor) -> float:
    """Compute the share of items, in percent, of which both predict the same class.

    Raises:
        ValueError: logits of different shapes, or none.
    """
    _check(one, other)
    return 100 * (one.argmax(1) == other.argmax(1)).double().mean().item()


def zero_retrain_forgetting(unlearned: Tensor, untrained: Tensor) -> float:
    """Compute the ZRF score, 1 - JS to a network of random weights (Chundawat et al. 2023a, eq. 6).

    From 1 - ln 2 to 1, which is a model that answers as one that learned nothing. It does not ask
    what a retrained model would say, so that a model nearer to gold may well score lower.

    Args:
        unlearned: logits ``[N, K]`` on the forgotten items.
        untrained: those of a freshly initialised network.

    Raises:
        ValueError: logits of different shapes, or none.
    """
    return 1 - jensen_shannon(unlearned, untrained)


def tug_of_war(unlearned: Sequence[float], gold: Sequence[float]) -> float:
    """Compute ToW, ``Π (1 - |acc_u - acc_r|)`` over sets of images (Zhao et al. 2024, section 2).

    Args:
        unlearned: accuracies in percent on the sets, usually forgotten, retained and test items.
        gold: those of the retrained model on the same sets.

    Returns:
        0 to 1; 1 where all accuracies are those of the gold model.

    Raises:
        ValueError: not one accuracy from 0 to 100 of each model for each set.
    """
    pairs = list(zip(unlearned, gold, strict=True))
    if not pairs or not all(0 <= value <= 100 for pair in pairs for value in pair):
        raise ValueError(
            f"accuracies {list(unlearned)} and {list(gold)}: give as many of both, in percent"
        )
    product = 1.0
    for mine, theirs in pairs:
        product *= 1 - abs(mine - theirs) / 100
    return product


def linear_cka(one: Tensor, other: Tensor) -> float:
    """Compute the linear centred kernel alignment of features (Kornblith et al. 2019, eq. 3).

    Args:
        one: ``[N, D]``, a row an item.
        other: ``[N, E]`` of the same items, of another layer or network.

    Returns:
        0 to 1; 1 where one is a rotation, scaling and shift of the other.

    Raises:
        ValueError: different numbers of items, or features that do not vary.
    """
    if one.dim() != 2 or other.dim() != 2 or len(one) != len(other) or len(one) < 2:
        raise ValueError(
            f"features {tuple(one.shape)} and {tuple(other.shape)}: give two matrices with a row "
            "for each of the same items, at least 2"
        )
    a, b = (x.double() - x.double().mean(0) for x in (one, other))
    own = (a.T @ a).norm() * (b.T @ b).norm()
    if own == 0:
        raise ValueError("features that are the same for every item have no alignment")
    return ((a.T @ b).square().sum() / own).item()


def _check(one: Tensor, other: Tensor) -> None:
    if one.shape != other.shape or one.dim() != 2 or len(one) == 0:
        raise ValueError(
            f"logits {tuple(one.shape)} and {tuple(other.shape)}: give those of both models, [N, K],"
            " on the same images"
        )
