"""Interactive figures: pictures joined, charts that Vega reads, and the picture beside them."""

import base64
import io

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from PIL import Image

from unlearnlib.report import interactive


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
    chart = interactive.compiled(interactive.snapshots(curves(), pictures).to_dict())
    bound = {signal["name"]: signal["bind"] for signal in chart["signals"] if "bind" in signal}
    assert bound["snapshot"]["input"] == "range"
    assert (bound["snapshot"]["min"], bound["snapshot"]["max"]) == (1, 3)
    assert bound["method"]["options"] == ["a", "b"]


def test_a_chart_is_shown_with_a_picture_of_its_first_state(monkeypatch: pytest.MonkeyPatch):
    pictures = curves()[["method", "snapshot"]].drop_duplicates().assign(url="data:,")
    chart = interactive.snapshots(curves(), pictures)
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
