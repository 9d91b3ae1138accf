"""Evaluation: every model that a run left meets the test split, and only that."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix
from toys import lines, record

from unlearnlib.data import datasets
from unlearnlib.measures import evaluation
from unlearnlib.models import architectures, checkpoints, training
from unlearnlib.pipeline import records
from unlearnlib.zero_shot import gkt


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    return lines(tmp_path / "mnist.npz")


def network(dataset: Path, *, epochs: int) -> torch.nn.Module:
    torch.manual_seed(0)
    found = architectures.build("lenet5", width=0.5)
    recipe = training.Recipe(epochs=epochs, batch_size=16, learning_rate=0.01)
    part = datasets.split(datasets.load(dataset), "train")
    training.fit(found, *part, recipe=recipe, seed=0)
    return found.eval()


def expected(found: torch.nn.Module, dataset: Path) -> np.ndarray:
    stored = np.load(dataset)
    images = torch.tensor(stored["test_images"] / 255, dtype=torch.float32).unsqueeze(1)
    predicted = found(images).argmax(1)
    return confusion_matrix(stored["test_labels"], predicted, labels=range(10))


def test_all_models_of_a_run_are_counted_on_the_test_split(dataset: Path, tmp_path: Path):
    early, late = network(dataset, epochs=1), network(dataset, epochs=4)
    snapshots = [
        {"pseudo_batch": 5, "model": gkt.half(early)},
        {"pseudo_batch": 10, "model": gkt.half(late)},
    ]
    path = record(tmp_path / "run.pt", late, restored=checkpoints.pack(early), snapshots=snapshots)
    result = evaluation.run(model=path, data=dataset)
    assert result["pseudo_batches"] == [5, 10]
    assert not np.array_equal(expected(early, dataset), expected(late, dataset))
    np.testing.assert_array_equal(result["final"], expected(late, dataset))
    np.testing.assert_array_equal(result["models"]["restored"], expected(early, dataset))
    for found, snapshot in zip(result["curve"], snapshots, strict=True):
        narrow = checkpoints.unpack(snapshot["model"]).eval()
        np.testing.assert_array_equal(found, expected(narrow, dataset))
        assert found.sum() == 30


def test_a_run_with_one_model_has_no_curve(dataset: Path, tmp_path: Path):
    path = record(tmp_path / "run.pt", network(dataset, epochs=1))
    result = evaluation.run(model=path, data=dataset)
    assert result["models"] == {}
    assert result["curve"] == result["pseudo_batches"] == []


def test_what_is_no_network_is_not_counted(dataset: Path, tmp_path: Path):
    facts = {"losses": [1.0, 0.5], "history": {"leak": [0.1]}, "images": torch.zeros(2, 1, 4, 4)}
    path = record(tmp_path / "run.pt", network(dataset, epochs=1), **facts)
    assert evaluation.run(model=path, data=dataset)["models"] == {}


def test_a_run_that_is_absent_is_named(dataset: Path, tmp_path: Path):
    with pytest.raises(checkpoints.CheckpointError, match=r"run\.pt does not exist"):
        evaluation.run(model=tmp_path / "run.pt", data=dataset)


def test_pictures_are_judged_by_what_a_judge_has_seen(dataset: Path, tmp_path: Path):
    images, labels = datasets.split(datasets.load(dataset), "test")
    judge = network(dataset, epochs=4)
    file = record(tmp_path / "judge.pt", judge, seconds=1.0)
    facts = json.loads(records.facts_file(file).read_text())
    facts["arguments"] = {"request": {"classes": [0, 3]}}
    records.facts_file(file).write_text(json.dumps(facts))
    drawn = (255 * images).round().to(torch.uint8)
    run = record(tmp_path / "run.pt", judge, images=drawn, image_labels=labels)
    assert evaluation.keeps_pictures(run)
    found = evaluation.run_judged(run=run, judge=file)
    known = (labels != 0) & (labels != 3)
    confidence, predicted = judge(images[known]).softmax(1).max(1)
    assert found["images"] == known.sum()
    agreement = (predicted == labels[known]).double().mean().item()
    assert found["agreement"] == pytest.approx(100 * agreement)
    assert found["confidence"] == pytest.approx(100 * confidence.mean().item(), rel=1e-4)


def test_runs_without_pictures_are_not_judged(dataset: Path, tmp_path: Path):
    model = network(dataset, epochs=1)
    assert not evaluation.keeps_pictures(record(tmp_path / "run.pt", model))
    empty = {"images": torch.zeros(0, 1, 4, 4), "image_labels": torch.zeros(0, dtype=torch.long)}
    assert not evaluation.keeps_pictures(record(tmp_path / "empty.pt", model, **empty))


def test_a_run_that_something_is_developed_on_meets_validation_images(
    dataset: Path, tmp_path: Path
):
    found = network(dataset, epochs=1)
    path = record(tmp_path / "run.pt", found)
    images, labels = datasets.split(datasets.load(dataset), "validation")
    counts = confusion_matrix(labels, found(images).argmax(1), labels=range(10))
    result = evaluation.run(model=path, data=dataset, split="validation")
    np.testing.assert_array_equal(result["final"], counts)
