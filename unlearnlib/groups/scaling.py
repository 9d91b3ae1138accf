"""Scale an update of influence, and measure along the way."""

from dataclasses import asdict, dataclass
from typing import Annotated, Any

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from unlearnlib.data.requests import Group, rest
from unlearnlib.groups.estimators import Fitted, objective_of, system_of
from unlearnlib.influence.estimators import Estimator, Removal, apply_update
from unlearnlib.measures import accuracy
from unlearnlib.pipeline import seeds


@dataclass(frozen=True)
class Settings:
    """Which scales are measured, and on how many items that stay.

    Attributes:
        divisors: the update is divided by 1, 2, ... so many.
        factors: it is multiplied by, ascending.
        clean_items: items that stay, measured at each scale; at most all.

    Raises:
        ValueError: factors that do not ascend.
    """

    divisors: Annotated[int, Ge(1)]
    factors: tuple[Annotated[float, Gt(1)], ...]
    clean_items: Annotated[int, Ge(1)]

    def __post_init__(self) -> None:
        if any(b <= a for a, b in zip(self.factors, self.factors[1:], strict=False)):
            raise ValueError(
                f"factors={list(self.factors)}: give factors above 1 in ascending order, as [2, 10]"
            )

    @property
    def scales(self) -> list[float]:
        """The scales, ascending, from 0: the original model."""
        return [0.0, *(1 / k for k in range(self.divisors, 0, -1)), *map(float, self.factors)]


def run(
    *,
    fitted: Fitted,
    requests: list[Group],
    estimator: Estimator,
    settings: Settings,
    seed: int,
) -> dict[str, Any]:
    """Scale the update of each group of a list, and measure along the way.

    Args:
        fitted: the model that forgets.
        requests: the groups.
        estimator: of the updates, one that needs no mask.
        settings: see `Settings`.
        seed: of the items that stay and are measured, and of the other labels.

    Returns:
        ``rows``: a dict for each group and scale, with the request, ``scale``, ``residual``, the
        scores of `accuracy.measure`, and the same as ``clean_...`` on items that stay and as
        ``relabelled_...`` on the group under other labels, drawn at random: what a model says that
        was told lies about it.
    """
    dataset, objective = objective_of(fitted)
    system, labels, rows = system_of(fitted), objective.targets, []
    for request in requests:
        group = request.positions(labels)
        clean = _sample(rest(objective.items, group), settings.clean_items, seed)
        lies = relabel(labels[group], classes=dataset.num_classes, seed=seed)
        update = estimator.update(Removal(objective, group, system))
        for scale in settings.scales:
            moved = apply_update(objective.network, update.delta, scale)
            further = {
                "clean": accuracy.score(moved, objective.inputs[clean], labels[clean]),
                "relabelled": accuracy.score(moved, objective.inputs[group], lies),
            }
            scores = {f"{part}_{key}": v for part, s in further.items() for key, v in s.items()}
            found = asdict(request) | {"scale": scale, "residual": update.residual}
            rows.append(found | accuracy.measure(moved, dataset, group) | scores)
    return {"rows": rows}


def _sample(items: Tensor, count: int, seed: int) -> Tensor:
    return items[torch.randperm(len(items), generator=seeds.stream(seed, "clean items"))[:count]]


def relabel(labels: Tensor, *, classes: int, seed: int) -> Tensor:
    """Give each item ``[N]`` one of the other labels, all equally likely."""
    generator = seeds.stream(seed, "other labels")
    shift = torch.randint(1, classes, labels.shape, generator=generator)
    return (labels + shift) % classes
