"""A small trained network with its stored curvature, and groups for it to forget."""

from pathlib import Path
from typing import Any

from toys import lines

from unlearnlib.data.requests import Group
from unlearnlib.groups import estimators, retrain
from unlearnlib.groups.estimators import Fitted
from unlearnlib.models.training import Recipe
from unlearnlib.pipeline import records
from unlearnlib.pipeline.records import Record

RECIPE = Recipe(epochs=12, batch_size=20, learning_rate=0.01, l2=1e-3)
COHERENT = Group("coherent", 3, 12, seed=0)
RANDOM = Group("random", None, 40, seed=0)


def stored(path: Path, result: dict[str, Any], *, seconds: float = 1.0) -> Path:
    """Write the result of a run, as a sweep does."""
    records.write(path, Record(path.stem, records.plain(result), seconds), key="toy")
    return path


def trained(data: Path, path: Path, *, recipe: Recipe = RECIPE, **changed: Any) -> Path:
    """Train a compact network of few parameters on the lines, and store it."""
    common = {"model": "compact", "width": 0.25, "recipe": recipe, "request": None, "seed": 0}
    return stored(path, retrain.run(data=data, **common | changed))


def fitted(folder: Path) -> Fitted:
    """Train the network on the lines, and form its curvature."""
    data = lines(folder / "dataset.npz")
    original = trained(data, folder / "original.pt")
    formed = estimators.run_curvature(data=data, original=original, l2=RECIPE.l2)
    matrix = stored(folder / "curvature.pt", formed)
    return Fitted(data, original, matrix, l2=RECIPE.l2, damping=0.05)
