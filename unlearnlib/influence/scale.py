"""Choose how far to go along an update, on training and validation images.

To remove a class is no small perturbation. The update then gives a direction, and the scale is chosen
by what the moved model says of the forgotten items and of validation images that are to stay.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import inf, isfinite, nan
from typing import Annotated

from annotated_types import Ge, Le, MinLen
from numpy import nan_to_num
from torch import Tensor, nn

from unlearnlib.influence.estimators import apply_update
from unlearnlib.measures import accuracy

Judge = Callable[[float], tuple[float, float]]
Part = tuple[Tensor, Tensor]  # images [N, C, H, W] and labels [N]


@dataclass(frozen=True)
class Rule:
    """When an update has gone far enough, see `choose_scale`.

    Attributes:
        scales: a grid of factors above 0, ascending; all of it is judged.
        self_limit: accuracy on the forgotten training items, in percent, at which they count as
            forgotten.
        bisections: further scales, between the grid's.

    Raises:
        ValueError: scales that are not ascending and above 0.
    """

    scales: Annotated[tuple[float, ...], MinLen(1)]
    self_limit: Annotated[float, Ge(0), Le(100)]
    bisections: Annotated[int, Ge(0)]

    def __post_init__(self) -> None:
        ascending = all(a < b for a, b in zip((0.0, *self.scales), self.scales, strict=False))
        if not self.scales or not ascending:
            raise ValueError(
                f"scales={list(self.scales)}: give factors above 0 in ascending order, as [1, 2, 4]"
            )


def choose_scale(judge: Judge, rule: Rule) -> tuple[float, list[dict[str, float]]]:
    """Choose how far to go along an update, without test data.

    Of a grid of scales, take the smallest at which the accuracy on the forgotten training items is
    within the limit, and halve the (logarithmic) gap below it some times, keeping the half whose
    upper end is within the limit. Where no scale of the grid gets there, take the one with the
    largest difference between the validation accuracy on what stays and the accuracy on the
    forgotten items.

    Args:
        judge: ``scale -> (self accuracy, validation accuracy)``, in percent; NaN where the model
            overflows.
        rule: grid, limit and number of halvings.

    Returns:
        the scale, and the curve: ``scale``, ``self_accuracy`` and ``validation_accuracy`` of all
        that was judged, ascending.
    """
    judged = {scale: judge(scale) for scale in rule.scales}
    within = [scale for scale in rule.scales if judged[scale][0] <= rule.self_limit]
    if within:
        chosen = within[0]
        below = (0.0, *rule.scales)[rule.scales.index(chosen)]
    else:
        differences = {scale: others - own for scale, (own, others) in judged.items()}
        chosen = max(rule.scales, key=lambda scale: nan_to_num(differences[scale], nan=-inf))
        below = 0.0
    for _ in range(rule.bisections if below else 0):
        middle = (below * chosen) ** 0.5
        judged[middle] = judge(middle)
        forgotten = judged[middle][0] <= rule.self_limit
        below, chosen = (below, middle) if forgotten else (middle, chosen)
    return chosen, [
        {"scale": scale, "self_accuracy": judged[scale][0], "validation_accuracy": judged[scale][1]}
        for scale in sorted(judged)
    ]


def judge(network: nn.Module, delta: Tensor, *, forgotten: Part, staying: Part) -> Judge:
    """Return the judge of an update: what the moved model says of two sets of images.

    Args:
        network: at θ̂; stays as it is.
        delta: the update ``[P]``.
        forgotten: training items that are to go.
        staying: validation images of what is to stay.
    """

    def at(scale: float) -> tuple[float, float]:
        moved = apply_update(network, delta, scale)
        scores = [accuracy.score(moved, *part) for part in (forgotten, staying)]
        # logits that overflow would count as the first class
        own, others = (s["accuracy"] if isfinite(s["loss"]) else nan for s in scores)
        return own, others

    return at
