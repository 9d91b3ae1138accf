"""One arena: the same forget requests, given to every method that can serve them.

A request names what is to go: ``classes`` (all items of them), or a group of training items as in
`removal.draw`. A method belongs to a family, which says what it reads beside the original model:

=============  ==========================================  ==========================
family         reads                                       serves
=============  ==========================================  ==========================
``data``       the forgotten and the retained items        every request
``influence``  gradients and curvature of the same items   every request
``zero_shot``  nothing                                     classes, but not groups
=============  ==========================================  ==========================

All start from an original model of the same architecture, trained on the regularised objective that
influence assumes, and are compared with a model that was retrained without the items.
"""

import math
import time
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from unlearnlib.arena.baselines import BASELINES
from unlearnlib.data import classes, datasets, removal
from unlearnlib.groups.selection import choose_scale
from unlearnlib.influence import criteria, curvature, estimators
from unlearnlib.influence.curvature import Objective
from unlearnlib.influence.estimators import Update
from unlearnlib.influence.solvers import Dense
from unlearnlib.models import models, retraining
from unlearnlib.zero_shot import methods

Request = dict[str, Any]
FAMILIES = {"data": "with data", "zero_shot": "zero-shot", "influence": "influence"}
SCALED = "_scaled"  # ending of an influence estimator whose scale is chosen on validation images
SECOND_CUBIC = "second_order_cubic"  # the second order with its third-derivative term
_SAMPLE_SEED = 1_000_000  # none of the requests', which draw from the same permutations


def not_applicable(family: str, method: str, request: Request) -> str | None:
    """Tell why a method cannot serve a request, or return None where it can.

    Raises:
        ValueError: unknown family.
    """
    if family not in FAMILIES:
        raise ValueError(f"unknown family {family!r}; choose one of {list(FAMILIES)}")
    if "classes" in request:
        return None
    if family == "zero_shot":
        return "takes classes: without data it cannot know the items of a group"
    if method.endswith(SCALED):
        return "the scale that forgets is known for classes only: a group may stay well predicted"
    return None


# ------------------------------------------------------------------------------------- items


@dataclass(frozen=True, eq=False)
class Items:
    """Hold the training items of the arena, and which of them are to go.

    Attributes:
        images: ``[n, C, H, W]`` in [0, 1].
        labels: ``[n]``.
        forgotten: positions ``[m]``, ascending.
        kept: the other positions.
    """

    images: Tensor
    labels: Tensor
    forgotten: Tensor
    kept: Tensor

    def part(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Return images and labels at some positions."""
        return self.images[positions], self.labels[positions]


def items_of(dataset: datasets.Dataset, count: int | None, request: Request | None) -> Items:
    """Draw the training items of the arena, the same for every model, and those of a request.

    Args:
        dataset: whose training split they come from.
        count: how many, drawn at random; None for all.
        request: what is to go; None for nothing.

    Raises:
        ValueError: more items than there are, classes that are not there or all that there are, or
            a group that the items cannot give.
    """
    images, labels = datasets.split(dataset, "train")
    if count is not None:
        if not 1 <= count <= len(labels):
            raise ValueError(f"items={count}: the training split has {len(labels)}; give 1 to that")
        drawn = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))[:count]
        images, labels = images[drawn], labels[drawn]
    forgotten = _positions(labels, request)
    return Items(images, labels, forgotten, removal.rest(len(labels), forgotten))


def _positions(labels: Tensor, request: Request | None) -> Tensor:
    if request is None:
        return torch.empty(0, dtype=torch.long)
    if "classes" in request:
        chosen = classes.check_forget_classes(request["classes"], datasets.NUM_CLASSES)
        return classes.forget_mask(labels, chosen).nonzero().squeeze(1)
    return removal.draw(labels, request)


def _loaded(spec: dict[str, Any], request: Request | None) -> Items:
    return items_of(datasets.load(spec["data"]), spec["items"], request)


# ------------------------------------------------------------------------------------ models


def run_training(spec: dict[str, Any]) -> dict[str, Any]:
    """Train an original model, or one without the items of a request.

    Args:
        spec: ``data`` (file of the data set), ``items`` (see `items_of`), ``model``, ``width`` and
            ``start`` (seed of the first weights), ``seed`` (of the order of the images), the keywords
            ``epochs``, ``batch_size``, ``learning_rate`` and ``l2`` of `retraining.fit`, and
            ``request`` (None: the original).

    Returns:
        ``model`` (packed), ``losses`` by epoch, ``train_images`` and ``shape`` of an image.
    """
    items = _loaded(spec, spec["request"])
    torch.manual_seed(spec["start"])  # pairs a retrained model with the original of its seed
    network = models.build(spec["model"], width=spec["width"])
    options = {key: spec[key] for key in retraining.RECIPE} | {"seed": spec["seed"]}
    losses = retraining.fit(network, *items.part(items.kept), **options)
    return {
        "model": models.pack(network),
        "losses": losses,
        "train_images": len(items.kept),
        "shape": list(items.images.shape[1:]),
    }


# ------------------------------------------------------------------------------------ unlearn


def _result(request: Request, method: str, network: nn.Module, started: float) -> dict[str, Any]:
    return {
        "models": {request["name"]: {method: models.pack(network)}},
        "seconds": {request["name"]: {method: time.perf_counter() - started}},
    }


def run_baseline(spec: dict[str, Any]) -> dict[str, Any]:
    """Unlearn with the data at hand, see `baselines`.

    Args:
        spec: ``method`` (a name in `baselines.BASELINES`), ``request``, ``original`` (file of the
            model), ``data``, ``items``, ``seed``, ``settings`` (keywords of the method), and
            ``retained_items``, how many of those that stay it may read, drawn at random.

    Returns:
        by request and method the packed ``models``, and the ``seconds`` that they took.

    Raises:
        ValueError: unknown method.
    """
    if spec["method"] not in BASELINES:
        raise ValueError(f"unknown method {spec['method']!r}; choose one of {sorted(BASELINES)}")
    items, original = _loaded(spec, spec["request"]), models.load(spec["original"])
    generator = torch.Generator().manual_seed(spec["seed"])
    order = torch.randperm(len(items.kept), generator=generator)[: spec["retained_items"]]
    started = time.perf_counter()
    network = BASELINES[spec["method"]](
        original, items.part(items.forgotten), items.part(items.kept[order]), seed=spec["seed"],
        **spec["settings"],
    )  # fmt: skip
    return _result(spec["request"], spec["method"], network, started)


def run_zero_shot(spec: dict[str, Any]) -> dict[str, Any]:
    """Unlearn from the original model alone.

    Args:
        spec: ``method`` (its name in tables), ``request``, ``original``, ``seed`` and
            ``settings``, a method of `zero_shot`.

    Returns:
        as `run_baseline`.

    Raises:
        ValueError: unknown kind, or a request for a group.
        TypeError: a keyword that the method does not take.
    """
    request = spec["request"]
    if reason := not_applicable("zero_shot", spec["method"], request):
        raise ValueError(f"request {request['name']!r}: {spec['method']} {reason}")
    teacher, shape = models.load_teacher(spec["original"], request["classes"])
    started = time.perf_counter()
    network, _ = methods.unlearn(
        teacher, spec["settings"], forget_classes=request["classes"], shape=shape, seed=spec["seed"]
    )
    return _result(request, spec["method"], network, started)


# ---------------------------------------------------------------------------------- influence


def run_influence(spec: dict[str, Any]) -> dict[str, Any]:
    """Unlearn several requests by influence, with every estimator, from one original model.

    The Gauss-Newton matrix is formed once, on a random sample C of the items, and shared by all
    requests. The curvature of the forgotten items is that of those in C, so that what is taken out
    of the matrix was in it, and Newton's system is never indefinite.

    Args:
        spec: ``original``, ``data``, ``items``, ``l2``, ``damping``, ``seed``; ``requests``
            (list), ``methods`` (list of names in `estimators.ESTIMATORS`, `SECOND_CUBIC`, or one
            of these with the ending `SCALED`), ``curvature_items`` of C, ``ratio`` of the
            parameters that pif, fif and gif may change, ``third_items``; and ``scales``,
            ``self_limit``, ``bisections`` of `selection.choose_scale`.

    Returns:
        as `run_baseline`, the seconds with those of the shared matrix; ``scales`` by request and
        method; ``residual``, the largest relative residual of a solve.
    """
    dataset, original = datasets.load(spec["data"]), models.load(spec["original"]).eval()
    everything = items_of(dataset, spec["items"], None)
    objective = Objective(
        original, everything.images, everything.labels, l2=spec["l2"], batch_size=200
    )
    started = time.perf_counter()
    generator = torch.Generator().manual_seed(_SAMPLE_SEED + spec["seed"])
    sample = torch.randperm(objective.items, generator=generator)[: spec["curvature_items"]]
    system = Dense(curvature.gauss_newton(objective, index=sample), spec["damping"])
    system.solve(curvature.flatten(original))  # factors the matrix, once for all requests
    shared = time.perf_counter() - started
    found: dict[str, Any] = {"models": {}, "seconds": {}, "scales": {}, "residual": 0.0}
    for request in spec["requests"]:
        items = items_of(dataset, spec["items"], request)
        task = _Influence(objective, items, sample, system, spec, dataset)
        rows = {
            method: task.unlearn(method)
            for method in spec["methods"]
            if not not_applicable("influence", method, request)
        }
        name = request["name"]
        found["models"][name] = {
            method: models.pack(row["network"]) for method, row in rows.items()
        }
        found["seconds"][name] = {m: shared + row["seconds"] for m, row in rows.items()}
        found["scales"][name] = {m: row["scale"] for m, row in rows.items()}
        found["residual"] = max(found["residual"], *(row["residual"] for row in rows.values()))
    return found


@dataclass(eq=False)
class _Influence:
    """One request of `run_influence`."""

    objective: Objective
    items: Items
    sample: Tensor
    system: Dense
    spec: dict[str, Any]
    dataset: datasets.Dataset
    updates: dict[str, tuple[Update, float]] = field(default_factory=dict)

    def unlearn(self, method: str) -> dict[str, Any]:
        """Move the original model by the update of a method."""
        estimator = method.removesuffix(SCALED)
        update, seconds = self._timed_update(estimator)
        started = time.perf_counter()
        scale = self._scale(update) if method != estimator else 1.0
        return {
            "network": estimators.apply_update(self.objective.network, update.delta, scale),
            "seconds": seconds + time.perf_counter() - started,
            "scale": scale,
            "residual": update.residual,
        }

    def _timed_update(self, estimator: str) -> tuple[Update, float]:
        """Compute an update once, whether it is scaled or not, and the seconds that it takes alone."""
        if estimator not in self.updates:
            reads_group = estimator in ("newton", "second_order", SECOND_CUBIC)
            shared = self.group_curvature[1] if reads_group else 0.0
            started = time.perf_counter()
            update = (
                self._with_group_curvature(estimator) if reads_group else self._update(estimator)
            )
            self.updates[estimator] = update, shared + time.perf_counter() - started
        return self.updates[estimator]

    def _update(self, estimator: str) -> Update:
        group, mask = self.items.forgotten, None
        if estimator in estimators.PARTIAL:
            mask = criteria.select(
                "top_gradients", self.objective.network, *self.items.part(group),
                ratio=self.spec["ratio"], seed=0,
            )  # fmt: skip
        return estimators.estimate(estimator, self.objective, group, self.system, mask=mask)

    @cached_property
    def group_curvature(self) -> tuple[Tensor, float]:
        """Gauss-Newton matrix of the forgotten items in the sample, and the seconds that it took."""
        started = time.perf_counter()
        inside = self.sample[torch.isin(self.sample, self.items.forgotten)]
        if len(inside):
            matrix = curvature.gauss_newton(self.objective, index=inside)
        else:
            matrix = torch.zeros_like(self.system.matrix)
        return matrix, time.perf_counter() - started

    def _with_group_curvature(self, estimator: str) -> Update:
        group, system = self.items.forgotten, self.system
        gradient = curvature.gradient_sum(self.objective, index=group)
        sizes = {"items": self.objective.items, "removed": len(group)}
        of_group, _ = self.group_curvature
        if estimator == "newton":
            inside = int(torch.isin(self.sample, group).sum())
            if inside:
                drawn = {"items": len(self.sample), "removed": inside}
                system = estimators.kept_system(system, of_group, **drawn)
            return estimators.newton(gradient, system, **sizes)
        third = None
        if estimator == SECOND_CUBIC:
            some = self.sample[: self.spec["third_items"]]
            third = curvature.third_operator(self.objective, index=some)
        damped = estimators.damped(lambda v: of_group @ v, system.damping)
        return estimators.second_order(gradient, system, damped, third=third, **sizes)

    def _scale(self, update: Update) -> float:
        """Choose the scale on forgotten training items and on validation images that stay."""
        forgotten = self.items.part(self.items.forgotten[:1000])
        images, labels = datasets.split(self.dataset, "validation")
        stay = ~torch.isin(labels, forgotten[1].unique())
        staying = images[stay][:1000], labels[stay][:1000]

        def judge(scale: float) -> tuple[float, float]:
            moved = estimators.apply_update(self.objective.network, update.delta, scale)
            scores = [removal.score(moved, *part) for part in (forgotten, staying)]
            own, others = (s["accuracy"] if s["loss"] < math.inf else math.nan for s in scores)
            return own, others

        options = {key: self.spec[key] for key in ("self_limit", "bisections")}
        return choose_scale(judge, self.spec["scales"], **options)[0]
