"""What the notebooks of the arena ask for: which models, which methods on which requests, scores."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from unlearnlib.arena.methods import REFERENCES, Entrant
from unlearnlib.arena.scores import Settings
from unlearnlib.arena.unlearning import Influence, Unlearned
from unlearnlib.data import requests
from unlearnlib.data.requests import Picked, Request
from unlearnlib.measures import metrics
from unlearnlib.models.training import Recipe
from unlearnlib.pipeline import records, seeds
from unlearnlib.pipeline.paths import Place

Tasks = dict[str, dict[str, Any]]  # by name of a task, the arguments of its run
Entrants = Mapping[str, Entrant]
PICKERS = 5  # originals that pick items, and are measured nowhere


@dataclass(frozen=True, eq=False)
class Plan:
    """Say which models the arena needs.

    Attributes:
        here: files of the profile.
        items: training images of the arena, see `training.training_items`; None for all.
        requests: what is to be forgotten, by name.
        seeds: original models on which every method serves the main requests.
        other_seeds: those of them on which it serves the others.
        ensembles: the main requests, each with the number of its models, of the seeds 0, 1, ..., on
            which the cheap methods serve it: for measures that compare distributions of models.

    Raises:
        ValueError: an unknown name, or an ensemble without the seeds.
    """

    here: Place
    items: int | None
    requests: dict[str, Request]
    seeds: list[int]
    other_seeds: list[int]
    ensembles: dict[str, int]

    def __post_init__(self) -> None:
        if unknown := set(self.ensembles) - set(self.requests):
            raise ValueError(f"no request named {sorted(unknown)}; there are {list(self.requests)}")
        for name, count in self.ensembles.items():
            if not set(self.seeds) <= set(range(count)):
                raise ValueError(
                    f"seeds {self.seeds} are not all among the ensemble's 0 to {count - 1} of {name}"
                )
        if not set(self.other_seeds) <= set(self.seeds):
            raise ValueError(f"other_seeds {self.other_seeds} are not all among {self.seeds}")

    @classmethod
    def of(cls, here: Place, given: Mapping[str, Any]) -> "Plan":
        """Make a plan from parameters, in which a request is a mapping, see `requests.parse`.

        Raises:
            RequestError: a request that is none.
            ValueError: see `Plan`.
        """
        asked = {name: requests.parse(one) for name, one in given["requests"].items()}
        return cls(here, **{**given, "requests": asked}).with_picked()

    def with_picked(self) -> "Plan":
        """Return the plan with the items of the requests that are `Picked`, where they are known."""
        found = dict(self.requests)
        for name, one in found.items():
            file = self.here.run("arena_picked", one.mode) if isinstance(one, Picked) else None
            if file and file.is_file():
                order = records.result(file)["order"]
                items = tuple(sorted(order[: one.size].tolist()))
                found[name] = replace(one, items=items)
        return replace(self, requests=found)

    # ------------------------------------------------------------------------------ models

    def repeats(self, name: str) -> list[int]:
        """List the original models of a request."""
        return list(range(self.ensembles.get(name, 0))) or list(self.other_seeds)

    def measured(self, name: str) -> list[int]:
        """List those of them on which every method serves it, and is measured by every metric."""
        return [seed for seed in self.repeats(name) if seed in self.seeds]

    def pairs(self) -> Iterator[tuple[str, int]]:
        """Yield the name of each request with each of its original models."""
        for name in self.requests:
            for seed in self.repeats(name):
                yield name, seed

    def model(self, name: str, seed: int) -> Path:
        """Name the file of a trained model: ``original``, or a request and ending of a reference."""
        return self.here.run("arena_models", f"{name}-seed{seed}")

    def references(self, name: str, seed: int) -> dict[str, Path]:
        """Name the files of the original and the retrained models of a request."""
        return {
            reference: self.model(name + _ending(reference) if one.gold else reference, seed)
            for reference, one in REFERENCES.items()
            if one.everywhere or seed in self.seeds
        }

    def trainings(self, *, model: str, width: float, recipe: Recipe) -> Tasks:
        """Make the tasks of `training.run` for all references, but golds whose items wait to be picked.

        Args:
            model: a name in `architectures.ARCHITECTURES`.
            width: of the network.
            recipe: of every training, so that a gold differs from its original in its data alone.
        """
        shared = {"data": self.here.data, "items": self.items, "model": model, "width": width}
        tasks: Tasks = {}
        for name, seed in self.pairs():
            for reference, file in self.references(name, seed).items():
                request = self.requests[name] if REFERENCES[reference].gold else None
                if isinstance(request, Picked) and not request.items:
                    continue  # their golds wait for what the originals pick
                one = {"recipe": recipe, "request": request} | _seeds(reference, seed)
                tasks[file.stem] = shared | one
        for number in range(PICKERS if self.modes else 0):
            one = {"recipe": recipe, "request": None, "start": None}
            one["seed"] = seeds.derive(number, "picker")
            tasks[self.model("picker", number).stem] = shared | one
        return tasks

    @property
    def modes(self) -> list[str]:
        """How the items of requests are picked, where models pick them."""
        return sorted({one.mode for one in self.requests.values() if isinstance(one, Picked)})

    def picks(self, *, l2: float, damping: float, curvature_items: int) -> Tasks:
        """Make the tasks of `picking.run`, for the requests whose items models pick.

        Originals of further seeds pick them. Those that are measured would be the ones on which their
        own picks are hard, in part by luck.
        """
        shared = {
            "data": self.here.data,
            "items": self.items,
            "originals": [self.model("picker", number) for number in range(PICKERS)],
            "l2": l2,
            "damping": damping,
            "curvature_items": curvature_items,
        }
        return {mode: {"mode": mode} | shared for mode in self.modes}

    # ----------------------------------------------------------------------------- unlearning

    def takes_part(self, entrant: Entrant, name: str, seed: int) -> bool:
        """Say whether a method unlearns a request from an original model."""
        if entrant.cannot(self.requests[name]) is not None:
            return False
        if entrant.effort == "dear":
            return name == next(iter(self.requests)) and seed in self.other_seeds
        return entrant.cheap or seed in self.seeds

    def store(self, family: str) -> Path:
        """Name the folder of the unlearned models of a family."""
        return self.here.scratch("arena") / family

    def baselines(self, entrants: Entrants, *, retained_items: int) -> Tasks:
        """Make the tasks of `unlearning.run_baseline`.

        Args:
            entrants: all methods.
            retained_items: how many retained items a method may read.
        """
        read = {"data": self.here.data, "items": self.items, "retained_items": retained_items}
        tasks = self._single(entrants, "data")
        return {name: read | arguments for name, arguments in tasks.items()}

    def zero_shot(self, entrants: Entrants) -> Tasks:
        """Make the tasks of `zero_shot.methods.run`, for the requests that the methods serve."""
        return self._single(entrants, "zero_shot")

    def _single(self, entrants: Entrants, family: str) -> Tasks:
        """Make tasks of one method, request and seed each."""
        return {
            f"{name}-{entrant.name}-seed{seed}": {
                "method": entrant.method,
                "settings": entrant.settings,
                "request": self.requests[name],
                "original": self.model("original", seed),
                "seed": seed,
            }
            for name, seed in self.pairs()
            for entrant in entrants.values()
            if entrant.family == family and self.takes_part(entrant, name, seed)
        }

    def influences(self, entrants: Entrants, settings: Influence) -> Tasks:
        """Make the tasks of `unlearning.run_influence`, one an original model."""
        own = [entrant for entrant in entrants.values() if entrant.family == "influence"]
        asked: dict[int, dict[str, Request]] = {}
        for name, seed in self.pairs():
            asked.setdefault(seed, {})[name] = self.requests[name]
        tasks = {
            f"influence-seed{seed}": {
                "original": self.model("original", seed),
                "data": self.here.data,
                "items": self.items,
                "requests": some,
                "methods": [one.method for one in own if one.cheap or seed in self.seeds],
                "settings": settings,
                "seed": seed,
            }
            for seed, some in asked.items()
        }
        return {name: arguments for name, arguments in tasks.items() if arguments["methods"]}

    def unlearned(self, entrants: Entrants, name: str, seed: int) -> dict[str, Unlearned]:
        """Say where the models are that were unlearned for a request from an original model."""
        found = {}
        for method, entrant in entrants.items():
            if self.takes_part(entrant, name, seed):
                task, keys = f"{name}-{method}-seed{seed}", ("model",)
                if entrant.family == "influence":
                    task, keys = f"influence-seed{seed}", ("models", name, entrant.method.name)
                found[method] = Unlearned(self.store(entrant.family) / f"{task}.pt", keys)
        return found

    # ----------------------------------------------------------------------------- measuring

    def scorings(self, entrants: Entrants, settings: Settings, *, keep: str) -> Tasks:
        """Make the tasks of `scores.run`, one for each request and original model.

        The further models of an ensemble are measured by the cheap metrics alone.

        Args:
            entrants: all methods.
            settings: of the measures.
            keep: name of the request whose models are kept, those of the first seed.

        Raises:
            ValueError: no request of that name.
        """
        if keep not in self.requests:
            raise ValueError(f"keep={keep!r} is none of the requests {list(self.requests)}")
        return {
            scored(name, seed): {
                "data": self.here.data,
                "items": self.items,
                "request": self.requests[name],
                "references": self.references(name, seed),
                "unlearned": self.unlearned(entrants, name, seed),
                "metrics": metrics.computed(self.requests[name], cheap=seed not in self.seeds),
                "settings": settings,
                "keep": name == keep and seed == self.seeds[0],
                "seed": seed,
            }
            for name, seed in self.pairs()
        }


def scored(name: str, seed: int) -> str:
    """Name the task of `scores.run` for a request and an original model."""
    return f"{name}-seed{seed}"


def _ending(reference: str) -> str:
    """Tell the files of the golds apart: those of the first have no ending."""
    return reference.removeprefix("retrain").replace("_", "-")


def _seeds(reference: str, seed: int) -> dict[str, int | None]:
    """Derive the seeds of a training: that of the first weights is its own where `start` is None."""
    one = REFERENCES[reference]
    own = seeds.derive(seed, reference) if one.another_order else seed
    return {"seed": own, "start": seed if own != seed and not one.another_start else None}
