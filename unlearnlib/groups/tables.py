"""Tables of the group study: a row a group and way to forget it, and its gap to retraining."""

from collections.abc import Mapping, Sequence
from math import nan
from pathlib import Path
from typing import Any

import pandas as pd

from unlearnlib.data import datasets
from unlearnlib.data.requests import Group
from unlearnlib.measures import accuracy
from unlearnlib.models import checkpoints
from unlearnlib.pipeline.records import Record

KEYS = ["mode", "label", "size", "seed"]  # of a group and repeat
SCORES = ["self_accuracy", "self_loss", "test_accuracy", "test_loss"]


def timed_rows(record: Record, *, by: str | Sequence[str]) -> list[dict[str, Any]]:
    """List the rows of a record, each with the ``seconds`` that its part of the run took.

    Args:
        record: whose timings are by ``<request>/<part>``.
        by: column that names the part, such as ``estimator``, or several, joined by a slash; NaN
            seconds where it was not timed.
    """
    columns = [by] if isinstance(by, str) else by
    keys = [
        "/".join([_request(row).name, *(str(row[column]) for column in columns)])
        for row in record.result["rows"]
    ]
    return [
        row | {"seconds": record.timings.get(key, nan)}
        for row, key in zip(record.result["rows"], keys, strict=True)
    ]


def _request(row: dict[str, Any]) -> Group:
    return Group(**{key: row[key] for key in KEYS})


def tidy(rows: list[dict[str, Any]], dataset: datasets.Dataset) -> pd.DataFrame:
    """Make a table of rows that hold requests.

    Args:
        rows: each the attributes of a `Group` and what was measured.
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


def unseen_loss(
    originals: Mapping[int, Path], dataset: datasets.Dataset
) -> dict[tuple[int, str], float]:
    """Measure the original models on validation images, of each class and of all.

    Args:
        originals: files of the models, by seed.
        dataset: the data set.

    Returns:
        mean cross-entropy in nats by seed and label as in `tidy`.
    """
    images, labels = datasets.split(dataset, "validation")
    losses: dict[tuple[int, str], float] = {}
    for seed, path in originals.items():
        network = checkpoints.load(path)
        losses[seed, "all"] = accuracy.score(network, images, labels)["loss"]
        for label in labels.unique().tolist():
            mine = labels == label
            losses[seed, str(label)] = accuracy.score(network, images[mine], labels[mine])["loss"]
    return losses
