"""Tables: shares are of the right whole, gaps pair the same group, seconds stand beside results."""

from dataclasses import asdict
from math import isnan
from pathlib import Path

import pandas as pd
import pytest
from group_tasks import trained
from toys import lines

from unlearnlib.data import datasets
from unlearnlib.groups import plan, tables
from unlearnlib.measures import accuracy
from unlearnlib.models import checkpoints
from unlearnlib.models.training import Recipe
from unlearnlib.pipeline.records import Record

WANTED = {"labels": [0, 8], "coherent_sizes": [5, 10], "random_sizes": [40]}


def test_shares_are_of_the_class_or_of_all(tmp_path: Path):
    dataset = datasets.load(lines(tmp_path / "dataset.npz"))  # twenty training images a class
    rows = [asdict(request) | {"self_loss": 1.0} for request in plan.requests(**WANTED, seed=0)]
    table = tables.tidy(rows[::-1], dataset)
    assert table["percent"].tolist() == [25.0, 50.0, 25.0, 50.0, 20.0]
    assert table["label"].tolist() == ["0", "0", "8", "8", "all"]
    table.to_csv(tmp_path / "table.csv", index=False)
    pd.testing.assert_frame_equal(tables.read(tmp_path / "table.csv"), table)


def test_labels_stay_text_where_no_group_is_random(tmp_path: Path):
    pd.DataFrame({"label": ["0", "8"]}).to_csv(tmp_path / "table.csv", index=False)
    assert tables.read(tmp_path / "table.csv")["label"].tolist() == ["0", "8"]


def test_rows_have_the_seconds_of_their_own_part():
    one, *_, other = plan.requests(**WANTED, seed=0)
    rows = [
        asdict(request) | {"estimator": name} for request in (one, other) for name in ("none", "x")
    ]
    timings = {f"{one.name}/x": 2.0, f"{other.name}/x": 3.0, "load": 9.0}
    found = tables.timed_rows(Record("r", {"rows": rows}, 20.0, timings), by="estimator")
    assert [row["seconds"] for row in found[1::2]] == [2.0, 3.0]
    assert all(isnan(row["seconds"]) for row in found[::2])
    for row, given in zip(found, rows, strict=True):
        assert row.items() >= given.items()
    assert "seconds" not in rows[0]


def test_gaps_are_to_the_model_retrained_without_the_same_group():
    keys = {"mode": "coherent", "label": "0", "size": [5, 10], "seed": 0}
    scores = dict.fromkeys(tables.SCORES, 0.0)
    retrained = pd.DataFrame(keys | scores | {"self_loss": [1.0, 2.0]})
    table = pd.DataFrame(keys | scores | {"self_loss": [1.5, 1.0], "estimator": "x"})[::-1]
    gaps = tables.minus_retrained(table, retrained).set_index("size")
    assert gaps["self_loss"].to_dict() == {5: 0.5, 10: -1.0}


def test_unseen_losses_are_of_each_class_and_of_all(tmp_path: Path):
    file = lines(tmp_path / "dataset.npz")
    recipe = Recipe(epochs=2, batch_size=50, learning_rate=0.01)
    original = trained(file, tmp_path / "original.pt", recipe=recipe)
    dataset = datasets.load(file)
    found = tables.unseen_loss({7: original}, dataset)
    assert set(found) == {(7, "all"), *((7, str(k)) for k in range(10))}
    images, labels = datasets.split(dataset, "validation")
    expected = accuracy.score(checkpoints.load(original), images, labels)["loss"]
    assert found[7, "all"] == pytest.approx(expected)
    classes = [found[7, str(k)] for k in range(10)]  # as many images of each
    assert sum(classes) / 10 == pytest.approx(expected, rel=1e-5)
