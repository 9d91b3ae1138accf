"""Metrics: counts and accuracies against scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, confusion_matrix
from toys import SHAPE, Table, stripes, taught

from unlearnlib import metrics

TRUE = [0, 0, 0, 1, 1, 2, 2, 2, 2]
PREDICTED = [0, 1, 0, 1, 3, 2, 2, 0, 2]


def counts() -> torch.Tensor:
    images = torch.eye(4)[PREDICTED].view(-1, 1, 2, 2)
    return metrics.confusion(Table(), images, torch.tensor(TRUE))


def test_confusion_has_true_classes_in_rows():
    expected = [[2, 1, 0, 0], [0, 1, 0, 1], [1, 0, 3, 0], [0, 0, 0, 0]]
    assert counts().tolist() == expected
    assert counts().dtype == torch.int64


def test_classes_that_neither_occur_nor_are_predicted_count_too():
    images = torch.eye(4)[[0, 2, 2]].view(-1, 1, 2, 2)
    found = metrics.confusion(Table(), images, torch.tensor([0, 2, 2]))
    assert found.tolist() == [[1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 2, 0], [0, 0, 0, 0]]


def test_confusion_agrees_with_sklearn_on_a_network(monkeypatch: pytest.MonkeyPatch):
    network, (images, labels) = taught(monkeypatch), stripes(60, seed=1)
    images += 0.5 * torch.rand(60, *SHAPE)  # so that some are mistaken
    predicted = network(images).argmax(1)
    expected = confusion_matrix(labels, predicted)
    assert (predicted != labels).any()
    np.testing.assert_array_equal(metrics.confusion(network.train(), images, labels), expected)


@pytest.mark.parametrize("forget_classes", [[0], [2], [1, 2], [2, 0, 3]])
def test_accuracies_agree_with_sklearn(forget_classes: list[int]):
    forgotten = np.isin(TRUE, forget_classes)
    for found, chosen in (
        (metrics.forget_accuracy(counts(), forget_classes), forgotten),
        (metrics.retain_accuracy(counts(), forget_classes), ~forgotten),
    ):
        expected = accuracy_score(np.array(TRUE)[chosen], np.array(PREDICTED)[chosen])
        assert found == pytest.approx(100 * expected)


def test_classes_without_images_have_no_accuracy():
    with pytest.raises(ValueError, match=r"no image of the classes \[3\]; evaluate on data"):
        metrics.forget_accuracy(counts(), [3])
    with pytest.raises(ValueError, match=r"no image of the classes \[3\]"):
        metrics.retain_accuracy(counts(), [0, 1, 2])
