"""What the notebooks of group updates ask for alike: requests, files and stored curvature."""

from pathlib import Path
from typing import Any

import pandas as pd

from unlearnlib.data import datasets, removal
from unlearnlib.groups import updating
from unlearnlib.models import models
from unlearnlib.pipeline.paths import Place
from unlearnlib.pipeline.sweep import sweep

Request = dict[str, Any]
KEYS = ["mode", "label", "size", "seed"]  # of a group and repeat
SCORES = ["self_accuracy", "self_loss", "test_accuracy", "test_loss"]


def requests(
    *, labels: list[int], coherent_sizes: list[int], random_sizes: list[int], seed: int
) -> list[Request]:
    """List the groups of one repeat, coherent ones of each label and random ones.

    Returns:
        requests as `removal.draw` takes them; random ones have no label (None).
    """
    coherent = [
        {"mode": "coherent", "label": label, "size": size, "seed": seed}
        for label in labels
        for size in coherent_sizes
    ]
    anyhow = [
        {"mode": "random", "label": None, "size": size, "seed": seed} for size in random_sizes
    ]
    return coherent + anyhow


def name(request: Request) -> str:
    """Name the file of a run for one request, such as ``coherent-label8-100-seed0``."""
    where = "all" if request["label"] is None else f"label{request['label']}"
    return f"{request['mode']}-{where}-{request['size']}-seed{request['seed']}"


def by_source(requests: list[Request]) -> dict[str, list[Request]]:
    """Sort requests by what they draw from: a name such as ``label8`` or ``random``, for tasks."""
    sources: dict[str, list[Request]] = {}
    for request in requests:
        source = "random" if request["mode"] == "random" else f"label{request['label']}"
        sources.setdefault(source, []).append(request)
    return sources


def tidy(rows: list[dict[str, Any]], dataset: datasets.Dataset) -> pd.DataFrame:
    """Make a table of rows that hold requests.

    Args:
        rows: each a request and what was measured.
        dataset: whose training split the groups come from.

    Returns:
        the rows in order of mode, label, size and seed, with ``label`` as text, ``all`` for random
        groups, and ``percent``, the share of its class or, for a random group, of all items.
    """
    sizes = datasets.split(dataset, "train")[1].bincount().tolist()
    table = pd.DataFrame(rows)
    whole = [sum(sizes) if row["label"] is None else sizes[row["label"]] for row in rows]
    table["label"] = ["all" if row["label"] is None else str(row["label"]) for row in rows]
    table.insert(table.columns.get_loc("size") + 1, "percent", 100 * table["size"] / whole)
    return table.sort_values(KEYS, kind="stable", ignore_index=True)


def read(path: Path) -> pd.DataFrame:
    """Read a table of `tidy`, with labels as text."""
    return pd.read_csv(path, dtype={"label": str})


def minus_retrained(table: pd.DataFrame, retrained: pd.DataFrame) -> pd.DataFrame:
    """Subtract from each row's scores those of the model retrained without the same group."""
    base = retrained.set_index(KEYS)
    gaps = table.set_index(KEYS)
    for score in SCORES:
        gaps[score] = gaps[score] - base[score].reindex(gaps.index)
    return gaps.reset_index()


def curvatures(
    here: Place, seeds: list[int], *, l2: float, workers: int, engine: str
) -> dict[int, dict[str, Any]]:
    """Form the curvature of the compact network of each seed, unless it is there.

    The matrices are scratch work: large, and made again in minutes.

    Returns:
        for each seed the entries ``original``, ``data``, ``l2`` and ``curvature`` (a file) of a
        spec of `updating`.
    """
    store, shared = here.scratch("curvature"), {}
    for seed in seeds:
        original: Path = here.run("group_models", f"compact-seed{seed}")
        shared[seed] = {"original": original, "data": here.data, "l2": l2}
    specs = [{"name": f"compact-seed{seed}", "seed": seed} | shared[seed] for seed in seeds]
    sweep(specs, updating.run_curvature, store=store, workers=workers, engine=engine)
    return {
        seed: entries | {"curvature": store / f"compact-seed{seed}.pt"}
        for seed, entries in shared.items()
    }


def over_sizes(table: pd.DataFrame, *, by: list[str]) -> pd.DataFrame:
    """Average the scores of `SCORES` over sizes, for each mode, label, seed and further columns.

    Groups of one label and seed are nested in one another and share a model, so that they are one
    repeat and not as many as there are sizes.
    """
    return table.groupby(["mode", "label", "seed", *by], as_index=False)[SCORES].mean()


def unseen_loss(
    shared: dict[int, dict[str, Any]], dataset: datasets.Dataset
) -> dict[tuple[int, str], float]:
    """Measure the original models on validation images, of each class and of all.

    Returns:
        mean cross-entropy in nats by seed and label as in `tidy`.
    """
    images, labels = datasets.split(dataset, "validation")
    losses: dict[tuple[int, str], float] = {}
    for seed, entries in shared.items():
        network = models.load(entries["original"])
        losses[seed, "all"] = removal.score(network, images, labels)["loss"]
        for label in labels.unique().tolist():
            chosen = labels == label
            losses[seed, str(label)] = removal.score(network, images[chosen], labels[chosen])[
                "loss"
            ]
    return losses
