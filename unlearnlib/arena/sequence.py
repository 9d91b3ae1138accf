"""Requests one after the other: what accumulates, when a model that forgot is to forget again.

Each step asks for one class more. The method starts from the model that it left at the step before,
and is asked for all classes so far, so that none comes back; beside it stands the same method on the
original, asked for the same classes at once. Gold is retrained without all of them.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from unlearnlib.arena import scores, unlearning
from unlearnlib.arena.methods import Entrant
from unlearnlib.arena.plan import Plan, Tasks
from unlearnlib.arena.unlearning import Unlearned
from unlearnlib.data.requests import Classes
from unlearnlib.measures.metrics import METRICS
from unlearnlib.models import training
from unlearnlib.models.training import Recipe
from unlearnlib.pipeline import records
from unlearnlib.pipeline.records import Record
from unlearnlib.zero_shot import methods as zero_shot

WAYS = {"steps": "one after the other", "once": "all at once"}
MEASURED = ("retain_gap", "forget_gap", "js_forget", "js_retain", "relearn_time")
Sweep = Callable[..., dict[str, Record]]  # `sweep.sweep`, with what its runs share


@dataclass(frozen=True, eq=False)
class Chain:
    """Say which classes go one after the other, and by which methods.

    Attributes:
        plan: of the arena; its `other_seeds` are the original models.
        entrants: the methods that take part, with data or without.
        classes: in the order in which they go.
        retained_items: how many retained items a method with data may read.

    Raises:
        ValueError: fewer than two classes, one twice, or a method of another family.
    """

    plan: Plan
    entrants: Mapping[str, Entrant]
    classes: list[int]
    retained_items: int

    def __post_init__(self) -> None:
        if len(set(self.classes)) < max(2, len(self.classes)):
            raise ValueError(f"classes={self.classes}: give at least two, each once")
        able = ("data", "zero_shot")
        if wrong := [n for n, one in self.entrants.items() if one.family not in able]:
            raise ValueError(f"{wrong} cannot go on from a model of theirs; give methods of {able}")

    @property
    def requests(self) -> list[Classes]:
        """What is asked for at each step: all classes so far."""
        return [Classes(self.classes[: k + 1]) for k in range(len(self.classes))]

    def store(self, step: int, kind: str) -> Path:
        """Name the folder of the models of a step: those of a family, or ``gold``."""
        return self.plan.here.scratch("arena") / "sequence" / f"step{step + 1}-{kind}"

    def original(self, seed: int) -> Path:
        """Name the file of an original model."""
        return self.plan.model("original", seed)

    def trainings(self, step: int) -> Tasks:
        """Make the tasks of `training.run` for the golds of a step, by the originals' recipe."""
        tasks: Tasks = {}
        for seed in self.plan.other_seeds:
            known = records.arguments(self.original(seed))
            tasks[f"seed{seed}"] = {
                "data": self.plan.here.data,
                "items": self.plan.items,
                "model": known["model"],
                "width": known["width"],
                "recipe": Recipe(**known["recipe"]),
                "request": self.requests[step],
                "seed": seed,
                "start": None,
            }
        return tasks

    def cells(self, step: int) -> Iterator[tuple[str, str, int, Path]]:
        """Yield way, method, seed and the file to start from; the first step has one way."""
        for seed in self.plan.other_seeds:
            for method in self.entrants:
                before = self.left(step - 1, "steps", method, seed) if step else self.original(seed)
                yield "steps", method, seed, before
                if step:
                    yield "once", method, seed, self.original(seed)

    def left(self, step: int, way: str, method: str, seed: int) -> Path:
        """Name the file of an unlearned model."""
        store = self.store(step, self.entrants[method].family)
        return store / f"{way}-{method}-seed{seed}.pt"

    def unlearnings(self, step: int, family: str) -> Tasks:
        """Make the tasks of a family for a step: `run_baseline`, or `zero_shot.methods.run`."""
        read: dict[str, Any] = {}
        if family == "data":
            read = {"data": self.plan.here.data, "items": self.plan.items}
            read |= {"retained_items": self.retained_items}
        return {
            f"{way}-{method}-seed{seed}": read
            | {
                "method": self.entrants[method].method,
                "settings": self.entrants[method].settings,
                "request": self.requests[step],
                "original": start,
                "seed": seed,
            }
            for way, method, seed, start in self.cells(step)
            if self.entrants[method].family == family
        }

    def scorings(self, step: int, settings: scores.Settings) -> Tasks:
        """Make the tasks of `scores.run` for a step, one an original model."""
        found: dict[int, dict[str, Unlearned]] = {}
        for way, method, seed, _ in self.cells(step):
            file = self.left(step, way, method, seed)
            found.setdefault(seed, {})[f"{way}-{method}"] = Unlearned(file)
        return {
            f"step{step + 1}-seed{seed}": {
                "data": self.plan.here.data,
                "items": self.plan.items,
                "request": self.requests[step],
                "references": {
                    "original": self.original(seed),
                    "retrain": self.store(step, "gold") / f"seed{seed}.pt",
                },
                "unlearned": unlearned,
                "metrics": {name: METRICS[name].compute for name in MEASURED},
                "settings": settings,
                "keep": False,
                "seed": seed,
            }
            for seed, unlearned in found.items()
        }

    def run(self, sweep: Sweep, settings: scores.Settings, *, store: Path) -> pd.DataFrame:
        """Unlearn step by step, and measure.

        Args:
            sweep: `pipeline.sweep.sweep`, with what its runs share.
            settings: of the measures.
            store: folder of the measurements.

        Returns:
            a row for each ``step`` (from 1), ``classes`` gone, ``method`` (also ``original``),
            ``way`` of `WAYS`, ``seed``, and ``metric`` with its ``value``.
        """
        runs = {"data": unlearning.run_baseline, "zero_shot": zero_shot.run}
        scorings: Tasks = {}
        for step in range(len(self.classes)):
            sweep(training.run, self.trainings(step), store=self.store(step, "gold"))
            for family, run in runs.items():
                sweep(run, self.unlearnings(step, family), store=self.store(step, family))
            scorings |= self.scorings(step, settings)
        measured = sweep(scores.run, scorings, store=store)
        return pd.DataFrame(self._rows(measured))

    def _rows(self, measured: Mapping[str, Record]) -> Iterator[dict[str, Any]]:
        for step in range(len(self.classes)):
            for seed in self.plan.other_seeds:
                said = measured[f"step{step + 1}-seed{seed}"].result["scores"]
                head = {"step": step + 1, "classes": " ".join(map(str, self.classes[: step + 1]))}
                for name, values in said.items():
                    way, _, method = name.rpartition("-") if "-" in name else ("", "", name)
                    if method not in (*self.entrants, "original"):
                        continue
                    for metric, value in values.items():
                        yield head | {
                            "method": method, "way": way, "seed": seed, "metric": metric,
                            "value": value,
                        }  # fmt: skip
