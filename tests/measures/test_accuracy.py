"""Metrics: counts and accuracies against scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, confusion_matrix
from sklearn.neighbors import NearestCentroid
from toys import SHAPE, Table, stripes, taught

from unlearnlib.measures import accuracy

TRUE = [0, 0, 0, 1, 1, 2, 2, 2, 2]
PREDICTED = [0, 1, 0, 1, 3, 2, 2, 0, 2]


def counts() -> torch.Tensor:
    images = torch.eye(4)[PREDICTED].view(-1, 1, 2, 2)
    return accuracy.confusion(Table(), images, torch.tensor(TRUE))


def test_confusion_has_true_classes_in_rows():
    expected = [[2, 1, 0, 0], [0, 1, 0, 1], [1, 0, 3, 0], [0, 0, 0, 0]]
    assert counts().tolist() == expected
    assert counts().dtype == torch.int64


def test_classes_that_neither_occur_nor_are_predicted_count_too():
    images = torch.eye(4)[[0, 2, 2]].view(-1, 1, 2, 2)
    found = accuracy.confusion(Table(), images, torch.tensor([0, 2, 2]))
    assert found.tolist() == [[1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 2, 0], [0, 0, 0, 0]]


def test_confusion_agrees_with_sklearn_on_a_network(monkeypatch: pytest.MonkeyPatch):
    network, (images, labels) = taught(monkeypatch), stripes(60, seed=1)
    images += 0.5 * torch.rand(60, *SHAPE)  # so that some are mistaken
    predicted = network(images).argmax(1)
    expected = confusion_matrix(labels, predicted)
    assert (predicted != labels).any()
    np.testing.assert_array_equal(accuracy.confusion(network.train(), images, labels), expected)


@pytest.mark.parametrize("forget_classes", [[0], [2], [1, 2], [2, 0, 3]])
def test_accuracies_agree_with_sklearn(forget_classes: list[int]):
    forgotten = np.isin(TRUE, forget_classes)
    for found, chosen in (
        (accuracy.forget_accuracy(counts(), forget_classes), forgotten),
        (accuracy.retain_accuracy(counts(), forget_classes), ~forgotten),
    ):
        expected = accuracy_score(np.array(TRUE)[chosen], np.array(PREDICTED)[chosen])
        assert found == pytest.approx(100 * expected)


def test_classes_without_images_have_no_accuracy():
    with pytest.raises(ValueError, match=r"no image of the classes \[3\]; evaluate on data"):
        accuracy.forget_accuracy(counts(), [3])
    with pytest.raises(ValueError, match=r"no image of the classes \[3\]"):
        accuracy.retain_accuracy(counts(), [0, 1, 2])


def test_confusion_shift_is_the_share_that_would_have_to_change():
    one = torch.tensor([[8, 2, 0], [0, 5, 0], [1, 1, 2]])
    other = torch.tensor([[6, 2, 2], [0, 5, 0], [0, 0, 4]])
    found = accuracy.confusion_shift(one, other)
    torch.testing.assert_close(found, torch.tensor([20.0, 0.0, 50.0], dtype=torch.float64))
    assert accuracy.confusion_shift(one, one).sum() == 0


def test_confusion_shift_of_different_images_is_refused():
    with pytest.raises(ValueError, match="evaluate both on the same"):
        accuracy.confusion_shift(torch.eye(3).long(), 2 * torch.eye(3).long())


def test_calibration_error_is_the_gap_between_confidence_and_accuracy():
    # two bins: confidence 0.6, right in half of the cases; confidence 0.9, always right
    probabilities = torch.tensor([[0.6, 0.4], [0.6, 0.4], [0.1, 0.9], [0.1, 0.9]]).double()
    found = accuracy.calibration_error(probabilities.log(), torch.tensor([0, 1, 1, 1]))
    assert found == pytest.approx(100 * (2 * 0.1 + 2 * 0.1) / 4)


def test_a_model_that_is_as_sure_as_it_is_right_is_calibrated():
    generator = torch.Generator().manual_seed(0)
    probabilities = torch.rand(200_000, 3, generator=generator).double().softmax(1)
    labels = torch.multinomial(probabilities, 1, generator=generator)[:, 0]
    assert accuracy.calibration_error(probabilities.log(), labels) < 0.5
    assert accuracy.calibration_error(torch.zeros(4, 2), torch.tensor([0, 0, 0, 1])) == 25
    with pytest.raises(ValueError, match="no items"):
        accuracy.calibration_error(torch.zeros(0, 2), torch.zeros(0).long())


def test_the_nearest_mean_is_that_of_scikit_learn_and_counts_classes_alike():
    generator = torch.Generator().manual_seed(0)
    labels = torch.tensor([0] * 5 + [2] * 40 + [7] * 15)
    noise, asked = (2 * torch.randn(n, 3, generator=generator) for n in (60, 50))
    features = noise + labels[:, None] / 4
    found = accuracy.nearest_mean(features, labels, asked)
    expected = NearestCentroid().fit(features.numpy(), labels.numpy()).predict(asked.numpy())
    assert found.tolist() == expected.tolist()
    assert set(found.tolist()) == {0, 2, 7}


@pytest.mark.parametrize("features", [torch.ones(6, 2), torch.empty(0, 2)])
def test_features_that_do_not_vary_have_no_nearest_mean(features: torch.Tensor):
    with pytest.raises(ValueError, match="the same for every item"):
        accuracy.nearest_mean(features, torch.zeros(len(features)), torch.ones(1, 2))
