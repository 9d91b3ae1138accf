"""Forget groups by influence in several steps, the parts by distance and at random.

The distances of a group's items to the centroid of their class split it at one standard deviation
into near, moderate and far (`partitions.partition`). At each step, the first too, gradient and
curvature are computed anew at the parameters reached, the curvature from the same number of items, so
that schemes differ in what a step removes and in nothing else.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import permutations
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Gt, Lt, MinLen
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
ORDERS = tuple("-".join(order) for order in permutations(partitions.PARTS))


@dataclass(frozen=True)
class Settings:
    """How steps are taken, and what they are compared with.

    Attributes:
        step_items: items that form the curvature of a step, drawn at random from those that stay; at
            most all.
        step_tolerance: relative residual of the solves with it.
        draws: random splits of a group, of each kind.
        ordered_sizes: sizes of the groups that are removed in all `orders`; the others in the first.
        orders: of the parts, among `ORDERS`.
    """

    step_items: Annotated[int, Ge(1)]
    step_tolerance: Annotated[float, Gt(0), Lt(1)]
    draws: Annotated[int, Ge(1)]
    ordered_sizes: tuple[int, ...]
    orders: Annotated[tuple[Literal[ORDERS], ...], MinLen(1)] = ORDERS


def run(
    *, fitted: Fitted, features: Path, requests: list[Group], settings: Settings, seed: int
) -> dict[str, Any]:
    """Remove each group of a list in several steps, by every scheme.

    Args:
        fitted: the model that forgets.
        features: file of the model whose features measure the distances.
        requests: the groups.
        settings: see `Settings`.
        seed: of the random splits and of the items that form the curvatures.

    Returns:
        ``rows``: a dict of numbers for each group and scheme: the request, ``scheme``, ``order``
        and ``draw`` of `Scheme`, the scores of `accuracy.measure`, ``residual`` and ``iterations``
        of `Reached`, and the sizes of the parts as ``near``, ``moderate`` and ``far``. Timings are
        by ``<request>/<scheme>/<order>/<draw>``, steps that schemes share counted in each.
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
        orders = settings.orders if request.size in settings.ordered_sizes else settings.orders[:1]
        for scheme in schemes(parts, orders, draws=settings.draws, seed=seed):
            end = walk.follow([(name, group[part]) for name, part in scheme.steps if len(part)])
            clock.add(f"{request.name}/{scheme.key}", end.seconds)
            named = asdict(request) | {"scheme": scheme.name, "order": scheme.order}
            named |= {"draw": scheme.draw}
            solves = {"residual": end.residual, "iterations": end.iterations}
            rows.append(named | solves | accuracy.measure(end.network, dataset, group) | sizes)
    return {"rows": rows}


@dataclass(frozen=True, eq=False)
class Scheme:
    """A way to remove a group.

    Attributes:
        name: ``all_at_once``, in one step; ``three_step``, the parts by distance; ``size_matched``, its
            control, random parts of the same sizes in the same order of sizes; ``equal_thirds``, random
            parts of equal size; or ``moderate_only``.
        order: of the parts, such as ``near-moderate-far``; for a size-matched control that of the
            parts whose sizes it has.
        draw: number of the random split, 0 where there is none.
        steps: names of the parts and their positions in the group.
    """

    name: str
    order: str
    draw: int
    steps: list[Part]

    @property
    def key(self) -> str:
        """A name that no other scheme of a group has."""
        return f"{self.name}/{self.order}/{self.draw}"


def schemes(
    parts: dict[str, Tensor], orders: Sequence[str], *, draws: int, seed: int
) -> Iterator[Scheme]:
    """List the schemes by which a group is removed.

    Args:
        parts: of `partitions.partition`.
        orders: of the parts.
        draws: random splits of each kind.
        seed: of the random splits.
    """
    sizes = {name: len(part) for name, part in parts.items()}
    count, orders = sum(sizes.values()), [order.split("-") for order in orders]
    yield Scheme("all_at_once", "all", 0, [("all", torch.arange(count))])
    yield Scheme("moderate_only", "moderate", 0, [("moderate", parts["moderate"])])
    for order in orders:
        yield Scheme("three_step", "-".join(order), 0, [(name, parts[name]) for name in order])
    for draw in range(draws):
        own = seeds.derive(seed, "split", draw)
        alike = partitions.random_split(count, sizes=tuple(sizes.values()), seed=own)
        random = {name: (f"{name} {draw}", part) for name, part in zip(sizes, alike, strict=True)}
        for order in orders:
            yield Scheme("size_matched", "-".join(order), draw, [random[name] for name in order])
        thirds = partitions.random_split(count, seed=own)
        named = [(f"third {i} {draw}", part) for i, part in enumerate(thirds)]
        yield Scheme("equal_thirds", "random", draw, named)


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
        system: its curvature over all items, whose damping the steps share.
        precondition: the product with its inverse, for the solves of the steps.
        settings: see `Settings`.
        seed: of the items that form the curvatures.
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

        Each has the Gauss-Newton matrix at the parameters reached, over a sample of what stays after the
        steps before, by conjugate gradients with the inverse of the stored one as preconditioner.

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
        system = self._curvature(here, gone)
        gradient = curvature.gradient_sum(here, index=part)
        update = first_order(gradient, system, items=here.items - len(gone), removed=len(part))
        moved, found = apply_update(start.network, update.delta), facts(update)
        return Reached(
            moved,
            max(start.residual, found["residual"]),
            start.iterations + found["iterations"],
            start.seconds + time.perf_counter() - started,
        )

    def _curvature(self, here: Objective, gone: Tensor) -> MatrixFree:
        """Return the damped curvature at the parameters reached, over a sample of what stays."""
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
