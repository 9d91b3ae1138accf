"""Interactive figures: pictures joined, charts that Vega reads, and the picture beside them."""

import base64
import io

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from PIL import Image

from unlearnlib.report import interactive

STOPS = pd.DataFrame({"method": ["a", "b"], "stop": [20, 10]})


def sliders(chart) -> dict[str, dict]:
    """Return what a reader can move or choose in a chart, by name."""
    compiled = interactive.compiled(chart.to_dict())
    return {signal["name"]: signal["bind"] for signal in compiled["signals"] if "bind" in signal}


def curves() -> pd.DataFrame:
    rows = [
        {"method": method, "snapshot": number, "pseudo_batch": 10 * number, "part": part}
        | {"accuracy": 10.0 * number}
        for method, count in (("a", 3), ("b", 2))
        for number in range(1, count + 1)
        for part in ("retain", "forget")
    ]
    return pd.DataFrame(rows)


def test_pictures_are_joined_row_by_row():
    images = np.arange(6, dtype=np.uint8).repeat(4).reshape(6, 2, 2)
    uri = interactive.strip(images, columns=3)
    content = base64.b64decode(uri.removeprefix("data:image/png;base64,"))
    pixels = np.asarray(Image.open(io.BytesIO(content)).convert("L"))
    assert pixels.shape == (4, 6)
    np.testing.assert_allclose(pixels[::2, ::2], [[0, 51, 102], [153, 204, 255]], atol=1)


def test_pictures_that_do_not_fill_the_rows_are_refused():
    with pytest.raises(ValueError, match="7 pictures do not fill rows of 5"):
        interactive.strip(np.zeros((7, 2, 2)), columns=5)


def test_a_slider_reaches_every_snapshot_of_every_method():
    pictures = curves()[["method", "snapshot"]].drop_duplicates().assign(url="data:,")
    bound = sliders(interactive.snapshots(curves(), pictures, STOPS))
    assert bound["snapshot"]["input"] == "range"
    assert (bound["snapshot"]["min"], bound["snapshot"]["max"]) == (1, 3)
    assert bound["method"]["options"] == ["a", "b"]


def test_scales_are_chosen_by_group_and_stand_beside_retraining():
    table = curves().rename(columns={"method": "group", "snapshot": "step"})
    table = table.assign(scale=table["step"].astype(float), low=0.0, high=100.0)
    retrained = pd.DataFrame({"group": ["a", "b"], "part": "retain", "accuracy": [5.0, 6.0]})
    chart = interactive.scales(table, retrained)
    bound = sliders(chart)
    assert (bound["step"]["min"], bound["step"]["max"]) == (1, 3)
    assert bound["group"]["options"] == ["a", "b"]
    kept = interactive.compiled(chart.to_dict())["data"]
    assert any({"group": "a", "part": "retain", "accuracy": 5} in one.get("values", [])
               for one in kept)  # fmt: skip


def test_mini_batches_are_played_from_the_first_to_the_last():
    table = curves().rename(columns={"snapshot": "batch"})
    bound = sliders(interactive.player(table.drop(columns=["method", "pseudo_batch"])))
    assert (bound["batch"]["min"], bound["batch"]["max"]) == (0, 3)


def test_a_margin_is_chosen_between_a_tenth_and_five_points():
    tests = pd.DataFrame(
        {
            "method": ["a", "a"],
            "score": ["retain", "forget"],
            "low": [-0.2, 3.0],
            "high": [0.3, 4.0],
        }
    )
    chart = interactive.margins(tests, start=1.0)
    assert sliders(chart)["margin"] == {
        "input": "range", "min": 0.1, "max": 5, "step": 0.1, "name": "margin, points "
    }  # fmt: skip
    told = str(interactive.compiled(chart.to_dict()))
    assert "methods are within this margin in both" in told


def test_a_chart_is_shown_with_a_picture_of_its_first_state(monkeypatch: pytest.MonkeyPatch):
    pictures = curves()[["method", "snapshot"]].drop_duplicates().assign(url="data:,")
    chart = interactive.snapshots(curves(), pictures, STOPS)
    caught = []
    monkeypatch.setattr(interactive, "display", lambda data, **how: caught.append((data, how)))
    interactive.show(chart, alt_text="In words.", caption="Move it.")
    ((data, how),) = caught
    assert data[interactive.MIME]["description"] == "In words."
    assert how["metadata"]["image/png"]["alt"] == "In words."
    picture = Image.open(io.BytesIO(base64.b64decode(data["image/png"])))
    assert picture.width == pytest.approx(1.5 * how["metadata"]["image/png"]["width"], abs=1)


def test_the_page_of_dvc_plots_is_that_of_the_locked_libraries():
    page = (ROOT / ".dvc" / "plots.html").read_text()
    assert page == interactive.plots_page(), "run: python -m unlearnlib.report.interactive"
    assert "{plot_divs}" in page and "://cdn" not in page


def test_the_script_stands_alone_and_cannot_end_early():
    script = interactive.script()
    assert 'mode:"vega"' in script and "</script" not in script
