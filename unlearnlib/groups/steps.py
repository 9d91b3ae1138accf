"""Forget groups by influence in several steps, the parts by distance and at random.

The distances of a group's items to the centroid of their class split it at one standard deviation
into near, moderate and far (`partitions.partition`). After each step gradient and curvature are
computed anew at the moved parameters.
"""

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor, nn

from unlearnlib.data.requests import Group, rest
from unlearnlib.groups import geometry, partitions
from unlearnlib.groups.estimators import Fitted, facts, objective_of, system_of
from unlearnlib.influence import curvature
from unlearnlib.influence.curvature import Objective
from unlearnlib.influence.estimators import apply_update, first_order
from unlearnlib.influence.solvers import Dense, MatrixFree, Operator
from unlearnlib.measures import accuracy
from unlearnlib.models import checkpoints
from unlearnlib.models.networks import penultimate
from unlearnlib.pipeline import clock, seeds

Part = tuple[str, Tensor]  # its name, and its positions


@dataclass(frozen=True)
class Settings:
    """How the curvature at moved parameters is estimated.

    Attributes:
        step_items: items that form it, drawn at random from those that stay; at most all.
        step_tolerance: relative residual of the solves with it.
    """

    step_items: Annotated[int, Ge(1)]
    step_tolerance: Annotated[float, Gt(0), Lt(1)]


def run(
    *, fitted: Fitted, features: Path, requests: list[Group], settings: Settings, seed: int
) -> dict[str, Any]:
    """Remove each group of a list in several steps, by every scheme.

    Args:
        fitted: the model that forgets.
        features: file of the model whose features measure the distances.
        requests: the groups.
        settings: see `Settings`.
        seed: of the random split and of the items that form later curvatures.

    Returns:
        ``rows``: a dict of numbers for each group and scheme: the request, ``scheme`` and
        ``order`` of `schemes`, the scores of `accuracy.measure`, ``residual`` and ``iterations``
        of `Reached`, and the sizes of the parts as ``near``, ``moderate`` and ``far``. Timings are
        by ``<request>/<order>``, steps that orders share counted in each.
    """
    dataset, objective = objective_of(fitted)
    system, labels = system_of(fitted), objective.targets
    precondition = explicit_inverse(system)
    seen = penultimate(checkpoints.load(features), objective.inputs)
    distances, rows = geometry.centroid_distances(seen, labels), []
    for request in requests:
        group = request.positions(labels)
        parts = partitions.partition(distances[group])
        sizes = {name: len(part) for name, part in parts.items()}
        walk = Walk(objective, system, precondition, settings, seed)
        for scheme, order, steps in schemes(parts, len(group), seed=seed):
            end = walk.follow([(name, group[part]) for name, part in steps if len(part)])
            clock.add(f"{request.name}/{order}", end.seconds)
            named = asdict(request) | {"scheme": scheme, "order": order}
            solves = {"residual": end.residual, "iterations": end.iterations}
            rows.append(named | solves | accuracy.measure(end.network, dataset, group) | sizes)
    return {"rows": rows}


def schemes(
    parts: dict[str, Tensor], count: int, *, seed: int
) -> Iterator[tuple[str, str, list[Part]]]:
    """Yield the name of each scheme, its order and its steps, the named positions in the group.

    All six orders of the three parts, the moderate part alone, and, as the control, a random split
    into three equal parts.
    """
    for order in partitions.orders():
        yield "three_step", "-".join(order), [(name, parts[name]) for name in order]
    yield "moderate_only", "moderate", [("moderate", parts["moderate"])]
    thirds = partitions.random_split(count, seed=seed)
    yield "random_split", "random", [(f"third {i}", part) for i, part in enumerate(thirds)]


@dataclass(frozen=True, eq=False)
class Reached:
    """Hold where a sequence of steps ends, and what its solves took.

    Attributes:
        network: the moved model.
        residual: the largest of the steps.
        iterations: of conjugate gradients, of all steps.
        seconds: of all steps.
    """

    network: nn.Module
    residual: float = 0.0
    iterations: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, eq=False)
class Walk:
    """Remove parts of one group one after the other; sequences that begin alike share their steps.

    Attributes:
        objective: over all of S, at θ̂.
        system: its curvature.
        precondition: the product with its inverse, for the solves of later steps.
        settings: see `Settings`.
        seed: of the items that form later curvatures.
        reached: what was computed so far, by the names of the parts.
    """

    objective: Objective
    system: Dense
    precondition: Operator
    settings: Settings
    seed: int
    reached: dict[tuple[str, ...], Reached] = field(default_factory=dict)

    def follow(self, steps: list[Part]) -> Reached:
        """Remove parts one after the other, each by first order at the parameters reached so far.

        The first step has the stored curvature. Later ones have the Gauss-Newton matrix at the moved
        parameters over a sample of what stays, by conjugate gradients with the inverse of the stored
        one as preconditioner.

        Args:
            steps: names and positions in S of the parts, none of them empty.
        """
        names = tuple(name for name, _ in steps)
        if not steps:
            return Reached(self.objective.network)
        if names not in self.reached:
            start = self.follow(steps[:-1])
            gone = torch.cat([torch.empty(0, dtype=torch.long), *(part for _, part in steps[:-1])])
            self.reached[names] = self._step(start, gone, steps[-1][1])
        return self.reached[names]

    def _step(self, start: Reached, gone: Tensor, part: Tensor) -> Reached:
        started = time.perf_counter()
        here = replace(self.objective, network=start.network)
        system = self._moved(here, gone) if len(gone) else self.system
        gradient = curvature.gradient_sum(here, index=part)
        update = first_order(gradient, system, items=here.items - len(gone), removed=len(part))
        moved, found = apply_update(start.network, update.delta), facts(update)
        return Reached(
            moved,
            max(start.residual, found["residual"]),
            start.iterations + found["iterations"],
            start.seconds + time.perf_counter() - started,
        )

    def _moved(self, here: Objective, gone: Tensor) -> MatrixFree:
        """Return the damped curvature at moved parameters, over a sample of what stays."""
        kept = rest(here.items, gone)
        order = torch.randperm(len(kept), generator=seeds.stream(self.seed, "items of a step"))
        sample = kept[order[: self.settings.step_items]]
        product = curvature.gauss_newton_operator(here, index=sample)
        tolerance = self.settings.step_tolerance
        return MatrixFree(product, self.system.damping, self.precondition, tolerance)


def explicit_inverse(system: Dense) -> Operator:
    """Return the product with ``A^-1``, formed once in single precision: a fast preconditioner."""
    inverse = torch.cholesky_inverse(system.lower).float()
    return lambda r: (inverse @ r.float()).to(r.dtype)
