"""What the notebooks of the arena ask for: which models, which methods on which requests, scores."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unlearnlib.arena import arena
from unlearnlib.pipeline.paths import Place

Spec = dict[str, Any]
_ANOTHER = 1_000_000  # added to a seed
# gold models: ending of the file's name, and what is added to the seeds of start and of order
GOLD = {
    "retrain": ("", 0, 0),
    "retrain_again": ("-again", _ANOTHER, _ANOTHER),
    "retrain_reordered": ("-reordered", 0, _ANOTHER),
}


@dataclass(frozen=True, eq=False)
class Plan:
    """Say which models the arena needs.

    Attributes:
        here: files of the profile.
        items: training images of the arena, see `arena.items_of`; None for all.
        requests: what is to be forgotten, see `arena`; each with a ``name``.
        seeds: original models on which every method serves every request.
        ensemble: models of a kind for the requests below, the seeds 0, 1, ...
        ensemble_requests: names of requests that the cheap methods serve on so many models.

    Raises:
        ValueError: two requests of one name, an unknown name, or an ensemble without the seeds.
    """

    here: Place
    items: int | None
    requests: list[arena.Request]
    seeds: list[int]
    ensemble: int
    ensemble_requests: list[str]

    def __post_init__(self) -> None:
        names = [request["name"] for request in self.requests]
        if len(set(names)) < len(names):
            raise ValueError(f"requests named {names}: give each a name of its own")
        if unknown := set(self.ensemble_requests) - set(names):
            raise ValueError(f"no request named {sorted(unknown)}; there are {names}")
        if not set(self.seeds) <= set(range(self.ensemble)):
            raise ValueError(
                f"seeds {self.seeds} are not all among the ensemble's 0 to {self.ensemble - 1}"
            )

    def repeats(self, request: arena.Request) -> list[int]:
        """List the original models of a request."""
        large = request["name"] in self.ensemble_requests
        return list(range(self.ensemble)) if large else list(self.seeds)

    def pairs(self) -> Iterator[tuple[arena.Request, int]]:
        """Yield each request with each of its original models."""
        for request in self.requests:
            for seed in self.repeats(request):
                yield request, seed

    def model(self, name: str, seed: int) -> Path:
        """Name the file of a trained model."""
        return self.here.runs / "arena_models" / f"{name}-seed{seed}.pt"

    @property
    def data(self) -> Spec:
        """Where the training images are: entries of every spec that reads them."""
        return {"data": self.here.data, "items": self.items}

    def references(self, request: arena.Request, seed: int) -> dict[str, Path]:
        """Name the files of the original and the retrained models of a request.

        Two further gold models say what luck does: one from another start, and, for the plan's
        seeds, one from gold's own start that sees the images in another order.
        """
        names = {"original": "original"} | {
            reference: request["name"] + ending
            for reference, (ending, *_) in GOLD.items()
            if reference != "retrain_reordered" or seed in self.seeds
        }
        return {reference: self.model(name, seed) for reference, name in names.items()}

    def trainings(self, recipe: Spec) -> list[Spec]:
        """List the specs of `arena.run_training`; a recipe is its spec but for request and seed."""
        recipe = self.data | recipe
        everyone = sorted({seed for _, seed in self.pairs()})
        specs = [
            recipe | {"name": f"original-seed{s}", "start": s, "seed": s, "request": None}
            for s in everyone
        ]
        for request, seed in self.pairs():
            for reference, file in self.references(request, seed).items():
                if reference != "original":
                    _, start, order = GOLD[reference]
                    one = {"name": file.stem, "start": start + seed, "seed": order + seed}
                    specs.append(recipe | one | {"request": request})
        return specs


def baselines(plan: Plan, methods: dict[str, Spec], *, retained_items: int) -> list[Spec]:
    """List the specs of `arena.run_baseline`.

    Args:
        plan: the plan.
        methods: settings by method.
        retained_items: how many retained items a method may read.
    """
    return [
        plan.data
        | {"retained_items": retained_items}
        | {"name": f"{request['name']}-{method}-seed{seed}", "seed": seed, "request": request}
        | {"method": method, "original": plan.model("original", seed), "settings": settings}
        for request, seed in plan.pairs()
        for method, settings in methods.items()
    ]


def zero_shot(plan: Plan, methods: dict[str, Spec]) -> list[Spec]:
    """List the specs of `arena.run_zero_shot`, for the requests that the methods serve.

    Args:
        plan: the plan.
        methods: by name a method of `zero_shot`, and ``ensemble``, whether it is cheap enough to
            serve all models of an ensemble (it is not, unless said).
    """
    settings = {
        method: {key: value for key, value in given.items() if key != "ensemble"}
        for method, given in methods.items()
    }
    return [
        {"name": f"{request['name']}-{method}-seed{seed}", "seed": seed, "request": request}
        | {"method": method, "original": plan.model("original", seed)}
        | {"settings": settings[method]}
        for request, seed in plan.pairs()
        for method, given in methods.items()
        if not arena.not_applicable("zero_shot", method, request)
        and (seed in plan.seeds or given.get("ensemble", False))
    ]


def influences(plan: Plan, settings: Spec, *, l2: float, damping: float) -> list[Spec]:
    """List the specs of `arena.run_influence`, one an original model.

    Args:
        plan: the plan.
        settings: ``methods``; ``ensemble``, the cheap ones among them, for models of an ensemble
            that are none of the plan's seeds; and further entries of each spec.
        l2: λ of the trained objective.
        damping: added to the diagonal of the curvature.
    """
    shared = plan.data | {"l2": l2, "damping": damping} | settings
    cheap = {"methods": shared.pop("ensemble")}
    by_seed: dict[int, list[arena.Request]] = {}
    for request, seed in plan.pairs():
        by_seed.setdefault(seed, []).append(request)
    return [
        shared
        | {"name": f"influence-seed{seed}", "seed": seed, "requests": requests}
        | {"original": plan.model("original", seed)}
        | ({} if seed in plan.seeds else cheap)
        for seed, requests in by_seed.items()
    ]


def scorings(
    plan: Plan, runs: list[tuple[str, Spec]], measures: Spec, *, store: Path
) -> list[Spec]:
    """List the specs of `scores.run`, one for each request and original model.

    Args:
        plan: the plan.
        runs: folder in the store and spec of every unlearning run.
        measures: further entries of each spec, but that ``relearning`` is dropped where only
            margins count, and ``keep`` is the name of the request whose models are kept, those of
            the first seed.
        store: folder of the unlearned models.

    Raises:
        ValueError: no request of that name.
    """
    keep = measures["keep"]
    if keep not in [request["name"] for request in plan.requests]:
        raise ValueError(f"keep={keep!r} is none of the requests")
    specs = []
    for request, seed in plan.pairs():
        files = [
            store / folder / f"{run['name']}.pt"
            for folder, run in runs
            if run["seed"] == seed and request in run.get("requests", [run.get("request")])
        ]
        one = (
            plan.data
            | measures
            | {"name": f"{request['name']}-seed{seed}", "seed": seed, "request": request}
        )
        one |= plan.references(request, seed) | {"runs": len(files)}
        one |= {f"run_{number}": file for number, file in enumerate(files)}
        one["keep"] = request["name"] == keep and seed == plan.seeds[0]
        specs.append(one if seed in plan.seeds else one | {"relearning": None})
    return specs
