"""What the notebooks of the group study ask for alike: requests, recipes and stored curvature."""

from pathlib import Path
from typing import Any

from unlearnlib.data.requests import Group
from unlearnlib.groups.estimators import Fitted, run_curvature
from unlearnlib.models.training import Recipe
from unlearnlib.pipeline import records
from unlearnlib.pipeline.paths import Place
from unlearnlib.pipeline.sweep import sweep


def requests(
    *, labels: list[int], coherent_sizes: list[int], random_sizes: list[int], seed: int
) -> list[Group]:
    """List the groups of one repeat, coherent ones of each label and random ones."""
    coherent = [Group("coherent", label, size, seed) for label in labels for size in coherent_sizes]
    return coherent + [Group("random", None, size, seed) for size in random_sizes]


def by_source(groups: list[Group]) -> dict[str, list[Group]]:
    """Sort groups by what they are drawn from, for tasks: see `Group.source`."""
    sources: dict[str, list[Group]] = {}
    for group in groups:
        sources.setdefault(group.source, []).append(group)
    return sources


def recipe_of(path: Path) -> dict[str, Any]:
    """Read how the model in `path` was trained, to train another alike.

    Returns:
        the arguments ``model``, ``width`` and ``recipe`` of `retrain.run`.
    """
    found = records.arguments(path)
    return {
        "model": found["model"], "width": found["width"], "recipe": Recipe(**found["recipe"]),
    }  # fmt: skip


def curvatures(
    here: Place, seeds: list[int], *, l2: float, damping: float, workers: int, engine: str
) -> dict[int, Fitted]:
    """Form the curvature of the compact network of each seed, unless it is there.

    The matrices are scratch work: large, and made again in minutes.

    Returns:
        for each seed what the runs of `estimators`, `steps` and `scaling` ask for.
    """
    store = here.scratch("curvature")
    originals = {seed: here.run("group_models", f"compact-seed{seed}") for seed in seeds}
    tasks = {
        f"compact-seed{seed}": dict(data=here.data, original=original, l2=l2)
        for seed, original in originals.items()
    }
    sweep(run_curvature, tasks, store=store, workers=workers, engine=engine)
    return {
        seed: Fitted(here.data, original, store / f"compact-seed{seed}.pt", l2, damping)
        for seed, original in originals.items()
    }
