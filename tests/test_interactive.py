"""Interactive figures: pictures joined, charts that Vega reads, and the picture beside them."""

import base64
import io

import numpy as np
import pandas as pd
import pytest
from IPython.utils.capture import capture_output
from PIL import Image

from unlearnlib import interactive


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


def test_a_chart_is_shown_with_a_picture_of_its_first_state():
    pictures = curves()[["method", "snapshot"]].drop_duplicates().assign(url="data:,")
    chart = interactive.snapshots(curves(), pictures)
    with capture_output() as captured:
        interactive.show(chart, alt_text="In words.", caption="Move it.")
    (output,) = captured.outputs
    assert output.data[interactive.MIME]["description"] == "In words."
    assert output.metadata["image/png"]["alt"] == "In words."
    picture = Image.open(io.BytesIO(base64.b64decode(output.data["image/png"])))
    assert picture.width == pytest.approx(1.5 * output.metadata["image/png"]["width"], abs=1)


def test_the_script_stands_alone_and_cannot_end_early():
    script = interactive.script()
    assert "vegaEmbed" in script and "</script" not in script
