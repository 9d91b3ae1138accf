"""What the tests of the arena share: requests, a place with trained references, a plan, entrants."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from toys import lines

from unlearnlib.arena import methods
from unlearnlib.arena.methods import REFERENCES, Entrant
from unlearnlib.arena.plan import Plan
from unlearnlib.arena.unlearning import Influence
from unlearnlib.data.requests import Classes, Group
from unlearnlib.influence.scale import Rule
from unlearnlib.models import training
from unlearnlib.models.training import Recipe
from unlearnlib.pipeline import records
from unlearnlib.pipeline.paths import Place
from unlearnlib.pipeline.records import Record

CLASS = Classes([0])
GROUP = Group("random", None, 20, seed=3)
COHERENT = Group("coherent", 2, 7, seed=3)
RECIPE = Recipe(epochs=6, batch_size=20, learning_rate=0.02, l2=1e-3)
INFLUENCE = Influence(
    curvature_items=60, third_items=20, ratio=0.1, rule=Rule((1, 4, 16, 64), 5.0, 2), l2=1e-3,
    damping=0.05,
)  # fmt: skip


def trained(folder: Path) -> Path:
    """Train the references of a request on a toy data set."""
    lines(folder / "mnist.npz", test=100)
    for name, reference in REFERENCES.items():
        request = CLASS if reference.gold else None
        seed, start = (
            (1 if reference.another_order else 0),
            (None if reference.another_start else 0),
        )
        result = training.run(
            data=folder / "mnist.npz", model="allcnn", width=0.05, recipe=RECIPE, request=request,
            seed=seed, start=start,
        )  # fmt: skip
        save(folder / f"{name}.pt", result)
    return folder


def save(path: Path, result: dict, **known: Any) -> Path:
    """Write a result as a sweep does."""
    records.write(
        path, Record(path.stem, records.plain(result), **{"seconds": 1.0} | known), key=""
    )
    return path


def plan(**changes: Any) -> Plan:
    """Plan a request for a class, with an ensemble, and one for a group."""
    options = {"requests": {"class_0": CLASS, "random": GROUP}, "seeds": [0, 1]}
    options |= {"items": 50, "other_seeds": [0, 1], "ensembles": {"class_0": 3}}
    return Plan(Place("quick"), **options | changes)


def entrants(**changes: Any) -> Mapping[str, Entrant]:
    """Let one method of each kind take part, two of them expensive."""
    training = {"epochs": 1, "batch_size": 20, "learning_rate": 0.02}
    given = {
        "baselines": {"fine_tune": training},
        "zero_shot": {
            "gkt_short": {
                "method": "gkt",
                "settings": {"transfer": {"pseudo_batches": 2, "snapshots": 1}},
            },
            "mm_noise": {"method": "mm_noise", "settings": {"per_class": 2}, "effort": "cheap"},
        },
        "estimators": ["first_order", "gif", "gif_scaled"],
        "cheap_estimators": ["first_order"],
        "l2": 1e-3,
    }
    return methods.entrants(**given | changes)
