"""Figures of gated transfer: what is drawn are the signs and pictures of the runs."""

from collections.abc import Iterator

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from unlearnlib.report import figures, transfer_figures


@pytest.fixture(autouse=True)
def shown(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[Figure, dict]]]:
    """Catch figures before they are drawn and closed."""
    caught = []
    monkeypatch.setattr(figures, "show", lambda figure, **texts: caught.append((figure, texts)))
    with mpl.rc_context():
        yield caught
    plt.close("all")


def run(agreement: list[float], leak: list[float], *, stop: int = 2) -> dict:
    """Make a run whose pictures of pseudo-batch n are all n, but for a corner with the class."""
    predicted = torch.arange(20).flip(0) % 4
    snapshots = []
    for number in (1, 2):
        images = torch.full((20, 1, 3, 3), number, dtype=torch.uint8)
        images[:, 0, 0, 0] = predicted.to(torch.uint8) + 10
        snapshots.append({"pseudo_batch": number, "images": images, "predicted": predicted})
    history = {"agreement": agreement, "leak": leak}
    return {"history": history, "snapshots": snapshots, "stop": stop}


RESULTS = {
    "gkt-seed0": run([0.5, 0.5, 0.5], [0.25, 0.25, 0.25]),
    "gkt-seed1": run([1.0, 1.0, 1.0], [0.75, 0.75, 0.75], stop=1),
}


def test_signs_are_means_over_seeds_in_percent_beside_the_limit(shown: list):
    transfer_figures.show_signs(RESULTS, ["gkt"], [0, 1], limit=0.05)
    ((figure, texts),) = shown
    agreement, leak = figure.axes
    np.testing.assert_allclose(agreement.lines[0].get_xydata(), [[1, 75], [2, 75], [3, 75]])
    np.testing.assert_allclose(leak.lines[0].get_ydata(), 50)
    assert leak.lines[1].get_ydata() == [5.0, 5.0]
    assert [text.get_text() for text in leak.get_legend().get_texts()] == ["GKT", "limit"]
    assert texts["alt"] and "range" in texts["caption"]


def test_pictures_are_those_of_the_stop_by_class(shown: list):
    for seed, stop in ((0, 2), (1, 1)):
        transfer_figures.show_drawn(RESULTS, ["gkt"], seed)
        pictures = [axis.images[0].get_array() for axis in shown[-1][0].axes]
        assert len(pictures) == 10
        assert all((picture[1:] == stop).all() for picture in pictures)
        corners = [int(picture[0, 0]) for picture in pictures]
        assert corners == sorted(corners)
        assert set(corners) == {10, 11, 12, 13}
