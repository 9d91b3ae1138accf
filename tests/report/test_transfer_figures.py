"""Figures of gated transfer: what is drawn are the signs and pictures of the runs."""

from collections.abc import Iterator

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from unlearnlib.report import figures, transfer_figures
from unlearnlib.zero_shot import stopping


@pytest.fixture(autouse=True)
def shown(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[Figure, dict]]]:
    """Catch figures before they are drawn and closed."""
    caught = []
    monkeypatch.setattr(figures, "show", lambda figure, **texts: caught.append((figure, texts)))
    with mpl.rc_context():
        yield caught
    plt.close("all")


def run(agreement: float, accepted: int) -> dict:
    """Make a transfer of three pseudo-batches and two snapshots."""
    history = {"agreement": [agreement] * 3, "drawn": [[2, 2]] * 3, "accepted": [[accepted, 0]] * 3}
    return {"history": history, "snapshots": [{"pseudo_batch": 1}, {"pseudo_batch": 3}]}


def stop(value: float) -> dict:
    """Make a stop whose pictures are all of one value, of classes 2, 0 and 2."""
    return {
        "signs": {name: [value, value] for name in stopping.RULES},
        "images": torch.tensor([10, 20, 30], dtype=torch.uint8).view(3, 1, 1, 1).expand(3, 1, 2, 2),
        "image_labels": torch.tensor([2, 0, 2]),
        "confidence": torch.tensor([0.9, 0.5, 0.99]),
        "model": {"architecture": {"num_classes": 3}},
    }


TRANSFERS = {"gkt-seed0": run(0.5, 1), "gkt-seed1": run(1.0, 3)}
STOPS = {"gkt-seed0": stop(0.2), "gkt-seed1": stop(0.4)}


def test_progress_is_agreement_and_what_passes_in_percent(shown: list):
    transfer_figures.show_progress(TRANSFERS, ["gkt"], [0, 1])
    ((figure, texts),) = shown
    agreement, passing = figure.axes
    np.testing.assert_allclose(agreement.lines[0].get_xydata(), [[1, 75], [2, 75], [3, 75]])
    np.testing.assert_allclose(passing.lines[0].get_ydata(), 50)  # of 1/4 and 3/4
    assert texts["alt"] and "2 seeds" in texts["caption"]


def test_signs_are_drawn_by_rule_beside_their_limits(shown: list):
    transfer_figures.show_signs(STOPS, TRANSFERS, ["gkt"], [0, 1])
    ((figure, _),) = shown
    assert len(figure.axes) == len(stopping.RULES)
    for axis, rule in zip(figure.axes, stopping.RULES.values(), strict=True):
        np.testing.assert_allclose(axis.lines[0].get_xydata(), [[1, 0.3], [3, 0.3]])
        assert set(axis.lines[1].get_ydata()) == {rule.limit}


def test_pictures_have_a_column_a_class_and_are_the_surest(shown: list):
    transfer_figures.show_drawn(STOPS, ["gkt"], 1)
    ((figure, _),) = shown
    zero, one, two = figure.axes
    assert (zero.images[0].get_array() == 20).all()
    assert not one.images and [text.get_text() for text in one.texts] == ["–"]
    assert (two.images[0].get_array() == 30).all()
    assert two.get_xlabel() == "99 %"
    assert [axis.get_title() for axis in figure.axes] == ["0", "1", "2"]
