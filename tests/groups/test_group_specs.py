"""Specs of group updates: names are unique, shares are of the right whole, gaps pair the same group."""

import pandas as pd
import pytest
import torch
from toys import lines

from unlearnlib.data import datasets, removal
from unlearnlib.groups import group_specs
from unlearnlib.models import models, retraining

WANTED = {"labels": [0, 8], "coherent_sizes": [5, 10], "random_sizes": [40]}


def test_requests_are_of_every_label_and_size_under_names_of_their_own():
    found = group_specs.requests(**WANTED, seed=3)
    assert len(found) == 5
    names = [group_specs.name(request) for request in found]
    assert len(set(names)) == 5
    assert names[0] == "coherent-label0-5-seed3"
    assert names[-1] == "random-all-40-seed3"
    sources = group_specs.by_source(found)
    assert {name: len(part) for name, part in sources.items()} == {
        "label0": 2, "label8": 2, "random": 1,
    }  # fmt: skip


def test_shares_are_of_the_class_or_of_all(tmp_path):
    dataset = datasets.load(lines(tmp_path / "mnist.npz"))  # twenty training images a class
    rows = [request | {"self_loss": 1.0} for request in group_specs.requests(**WANTED, seed=0)]
    table = group_specs.tidy(rows[::-1], dataset)
    assert table["percent"].tolist() == [25.0, 50.0, 25.0, 50.0, 20.0]
    assert table["label"].tolist() == ["0", "0", "8", "8", "all"]
    table.to_csv(tmp_path / "table.csv", index=False)
    pd.testing.assert_frame_equal(group_specs.read(tmp_path / "table.csv"), table)


def test_labels_stay_text_where_no_group_is_random(tmp_path):
    pd.DataFrame({"label": ["0", "8"]}).to_csv(tmp_path / "table.csv", index=False)
    assert group_specs.read(tmp_path / "table.csv")["label"].tolist() == ["0", "8"]


def test_gaps_are_to_the_model_retrained_without_the_same_group():
    keys = {"mode": "coherent", "label": "0", "size": [5, 10], "seed": 0}
    scores = dict.fromkeys(group_specs.SCORES, 0.0)
    retrained = pd.DataFrame(keys | scores | {"self_loss": [1.0, 2.0]})
    table = pd.DataFrame(keys | scores | {"self_loss": [1.5, 1.0], "estimator": "x"})[::-1]
    gaps = group_specs.minus_retrained(table, retrained).set_index("size")
    assert gaps["self_loss"].to_dict() == {5: 0.5, 10: -1.0}


def test_sizes_of_one_label_and_seed_are_one_repeat():
    rows = [
        {"mode": "coherent", "label": label, "size": size, "seed": seed, "order": "near"}
        | dict.fromkeys(group_specs.SCORES, float(size + seed))
        for label in ("0", "8")
        for seed in (0, 1)
        for size in (5, 10)
    ]
    found = group_specs.over_sizes(pd.DataFrame(rows), by=["order"])
    assert len(found) == 4
    assert found.groupby("seed")["self_loss"].first().to_dict() == {0: 7.5, 1: 8.5}


def test_unseen_losses_are_of_each_class_and_of_all(tmp_path):
    file = lines(tmp_path / "mnist.npz")
    spec = {"data": file, "model": "compact", "width": 0.25, "seed": 0, "epochs": 2}
    result = retraining.run(spec | {"batch_size": 50, "learning_rate": 0.01, "l2": 0.0})
    original = tmp_path / "original.pt"
    torch.save({"key": "", "spec": {}, "seconds": 0.0, "result": result}, original)
    dataset = datasets.load(file)
    found = group_specs.unseen_loss({7: {"original": original}}, dataset)
    assert set(found) == {(7, "all"), *((7, str(k)) for k in range(10))}
    images, labels = datasets.split(dataset, "validation")
    expected = removal.score(models.load(original), images, labels)["loss"]
    assert found[7, "all"] == pytest.approx(expected)
    classes = [found[7, str(k)] for k in range(10)]  # as many images of each
    assert sum(classes) / 10 == pytest.approx(expected, rel=1e-5)
