"""Requests for classes: checked, and told from the classes that stay."""

import numpy as np
import pytest
import torch

from unlearnlib.data import classes


@pytest.mark.parametrize("given", [[7, 0], (7, 0), {0, 7}, np.array([7, 0]), iter([7, 0])])
def test_forget_classes_are_sorted(given: object) -> None:
    checked = classes.check_forget_classes(given, 10)
    assert checked == (0, 7)
    assert all(type(value) is int for value in checked)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ([], "nothing to forget"),
        ([1, 1], r"\[1, 1\] holds 1 more than once"),
        ([12], "holds 12, not one of the classes"),
        ([0, -1], "holds -1, not one of the classes"),
        ([1.0], "holds 1.0, not a whole number"),
        ([True], "holds True, not a whole number"),
        (["3"], "holds '3', not a whole number"),
        ("3", "'3' is not a list"),
        (3, "=3 is not a list"),
        (None, "=None is not a list"),
        (range(10), "every class, so none is left"),
    ],
)
def test_bad_forget_classes_are_refused(given: object, says: str) -> None:
    with pytest.raises(ValueError, match=f"{says}.*give a list of different classes from 0 to 9"):
        classes.check_forget_classes(given, 10)


def test_classes_are_masked_removed_and_counted() -> None:
    y = torch.tensor([3, 0, 9, 3, 1, 0])
    x = torch.arange(6).float().reshape(6, 1)
    assert classes.forget_mask(y, (0, 3)).tolist() == [True, True, False, True, False, True]
    kept_x, kept_y = classes.without_classes(x, y, (0, 3))
    assert (kept_x.flatten().tolist(), kept_y.tolist()) == ([2.0, 4.0], [9, 1])
    assert classes.class_counts(y, 10).tolist() == [2, 1, 0, 2, 0, 0, 0, 0, 0, 1]
    assert classes.class_counts(y[:0], 3).tolist() == [0, 0, 0]
    with pytest.raises(ValueError, match="labels run from 0 to 9: expected 0 to 4"):
        classes.class_counts(y, 5)
