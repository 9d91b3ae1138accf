"""Figures: what is drawn is what was given, and every picture comes with its description."""

import base64
import io
from collections.abc import Iterator

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_rgba
from PIL import Image

from unlearnlib.report import figures
from unlearnlib.zero_shot.variants import ROWS


@pytest.fixture(autouse=True)
def shown(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[dict, dict]]]:
    """Catch what is displayed, and leave neither figures nor settings behind."""
    caught = []
    monkeypatch.setattr(figures, "display", lambda data, **options: caught.append((data, options)))
    with mpl.rc_context():
        yield caught
    plt.close("all")


def curve() -> plt.Figure:
    figure, axis = plt.subplots(figsize=(5, 2))
    axis.plot([1, 2, 4])
    return figure


def picture(data: dict) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(data["image/png"])))


def test_a_figure_is_shown_as_png_with_its_description(shown: list):
    figure = curve()
    figures.show(figure, alt="A rising curve", caption="Over 3 seeds.")
    ((data, options),) = shown
    assert picture(data).format == "PNG"
    assert picture(data).size == (5 * figures.RESOLUTION, 2 * figures.RESOLUTION)
    assert data["text/plain"] == "A rising curve"
    assert options["raw"] is True
    assert options["metadata"] == {
        "image/png": {"alt": "A rising curve", "width": 5 * 96},
        "caption": "Over 3 seeds.",
    }
    assert not plt.fignum_exists(figure.number)


def test_a_figure_without_caption_has_none(shown: list):
    figures.show(curve(), alt="A rising curve")
    assert set(shown[0][1]["metadata"]) == {"image/png"}


def test_the_same_figure_is_the_same_bytes_and_names_no_software(shown: list):
    for _ in range(2):
        figures.show(curve(), alt="A rising curve")
    assert shown[0] == shown[1]
    assert picture(shown[0][0]).info.keys() <= {"dpi"}


def test_the_theme_is_white_and_safe_for_the_colour_blind():
    figures.theme()
    assert mpl.rcParams["axes.facecolor"] == "white"
    assert mpl.rcParams["figure.constrained_layout.use"] is True
    colours = mpl.rcParams["axes.prop_cycle"].by_key()["color"]
    np.testing.assert_allclose(to_rgba(colours[0]), to_rgba("#0173b2"), atol=0.01)


def test_a_gallery_has_a_row_a_title_and_leaves_gaps_empty():
    images = np.arange(5 * 4 * 3, dtype=float).reshape(5, 4, 3)
    figure = figures.gallery({"first": images, "second": images[:2]}, columns=3)
    axes = np.array(figure.axes).reshape(2, 3)
    drawn = [[len(axis.images) for axis in line] for line in axes]
    assert drawn == [[1, 1, 1], [1, 1, 0]]
    assert [line[0].get_ylabel() for line in axes] == ["first", "second"]
    for line in axes:
        for number, axis in enumerate(line):
            if axis.images:
                np.testing.assert_array_equal(axis.images[0].get_array(), images[number])
                assert axis.images[0].get_cmap().name == "gray"
            assert not len(axis.get_xticks()) or not axis.axison
    assert figure.get_figwidth() == figures.WIDTH


@pytest.mark.filterwarnings("error")
def test_a_confusion_matrix_is_percent_of_each_true_class():
    axis = plt.subplots()[1]
    counts = np.array([[3, 1, 0], [0, 0, 0], [1, 1, 6]])
    figures.confusion(axis, counts, title="after")
    expected = [[75, 25, 0], [0, 0, 0], [12.5, 12.5, 75]]
    np.testing.assert_allclose(axis.collections[0].get_array().reshape(3, 3), expected)
    assert axis.collections[0].get_clim() == (0, 100)
    assert [text.get_text() for text in axis.texts][:3] == ["75", "25", "0"]
    assert (axis.get_title(), axis.get_xlabel(), axis.get_ylabel()) == (
        "after",
        "predicted class",
        "true class",
    )


def test_spread_is_the_mean_and_the_range_of_repeats():
    axis = plt.subplots()[1]
    repeats = np.array([[1.0, 5.0, np.nan], [3.0, 9.0, 4.0]])
    figures.spread(axis, [10, 20, 30], repeats, label="gkt", color="red", linestyle="--")
    (line,), (band,) = axis.lines, axis.collections
    assert line.get_xydata().tolist() == [[10, 2], [20, 7], [30, 4]]
    assert (line.get_label(), line.get_linestyle()) == ("gkt", "--")
    corners = {tuple(point) for point in band.get_paths()[0].vertices.tolist()}
    assert {(10, 1), (10, 3), (20, 5), (20, 9), (30, 4)} <= corners
    np.testing.assert_allclose(band.get_facecolor()[0], to_rgba("red", 0.2))


def test_a_method_has_one_colour_in_all_figures() -> None:
    few = figures.colours(["gkt", "retrain"])
    many = figures.colours(["original", "gkt_entropy_0.25", "retrain", "gkt_entropy_1", "gkt"])
    assert few == {name: many[name] for name in few}
    assert few["retrain"] == "#000000"


def test_variants_have_colours_that_no_other_line_has() -> None:
    names = ["gkt", "gkt_no_attention", "gkt_a", "gkt_b", "gkt_c", "gkt_d", "gkt_e"]
    assert len(set(figures.colours(names).values())) == len(names)
    assert list(figures.colours(f"x{k}" for k in range(30))) == [f"x{k}" for k in range(30)]


def test_rows_of_the_main_table_have_colours_of_their_own() -> None:
    found = figures.colours(ROWS)
    assert len(set(found.values())) == len(ROWS)
