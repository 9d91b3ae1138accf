"""Interactive figures: Vega-Lite charts with a slider, drawn offline by the page that holds them.

A chart goes into the notebook twice, as Vega-Lite, which JupyterLab and the report's pages draw,
and as a picture of its first state, for readers without JavaScript, on paper or in an older viewer.
"""

import base64
import io
from collections.abc import Sequence
from functools import cache
from typing import Any

import altair as alt
import numpy as np
import pandas as pd
import seaborn as sns
import vl_convert
from IPython.display import display
from PIL import Image

from unlearnlib.pipeline.paths import root, write_atomic

MIME = "application/vnd.vegalite.v5+json"
WIDTH, HEIGHT = 560, 220  # of a curve, in CSS pixels
_VERSION = ".".join(alt.SCHEMA_VERSION.removeprefix("v").split(".")[:2])
_COLOURS = sns.color_palette("colorblind").as_hex()
_PERCENT = alt.Scale(domain=[0, 100])
_ACCURACY = alt.Y("accuracy:Q", title="accuracy (%)", scale=_PERCENT)
_VALUE = alt.Text("accuracy:Q", format=".1f")

# what a page runs: replaces each chart's picture by the chart
_START = """
for (const box of document.querySelectorAll(".interactive")) {
  const spec = JSON.parse(box.querySelector("script").textContent);
  vegaEmbed(box, spec, {mode: "vega", actions: false, renderer: "svg"}).then(() => {
    box.parentElement.classList.add("live");
  });
}
"""

_PLOTS = """<!DOCTYPE html>
<html lang="en">
<head><meta charset="utf-8"><title>DVC plots</title>{refresh_tag}<script>SCRIPT</script></head>
<body>{plot_divs}</body>
</html>
"""


def compiled(spec: dict[str, Any]) -> dict[str, Any]:
    """Return what the script of a page draws of a Vega-Lite chart: Vega."""
    found = vl_convert.vegalite_to_vega(spec, vl_version=_VERSION)
    del found["$schema"]  # of the Vega before the bundled one, which reads it as well
    return found


def plots_page() -> str:
    """Return the page that `dvc plots` fills in, with the libraries inside, to open offline."""
    return _PLOTS.replace("SCRIPT", _bundle(""))


@cache
def script() -> str:
    """Return the JavaScript that draws the charts of a page, libraries included."""
    return _bundle(_START)


def _bundle(snippet: str) -> str:
    found = vl_convert.javascript_bundle(snippet or None, vl_version=_VERSION)
    return found.replace("</script", r"<\/script")


def show(chart: alt.TopLevelMixin, *, alt_text: str, caption: str) -> None:
    """Display a chart, and the picture of its first state.

    Args:
        chart: of Altair, at most `WIDTH` wide without its axis.
        alt_text: what it shows, in words, for those who do not see it.
        caption: markdown below it; says what the slider does.
    """
    chart = (
        chart.configure(background="white")
        .configure_legend(orient="top")
        .properties(description=alt_text)
    )
    spec = chart.to_dict()
    picture = vl_convert.vegalite_to_png(spec, vl_version=_VERSION, scale=1.5)
    width = round(Image.open(io.BytesIO(picture)).width / 1.5)
    display(
        {
            MIME: spec,
            "image/png": base64.b64encode(picture).decode(),
            "text/plain": alt_text,
        },
        raw=True,
        metadata={"image/png": {"alt": alt_text, "width": width}, "caption": caption},
    )


def strip(images: np.ndarray, *, columns: int = 10) -> str:
    """Join pictures into one PNG.

    Args:
        images: ``[N, H, W]`` of any range, dark is low; N a multiple of `columns`.
        columns: pictures a row.

    Returns:
        a data URI.

    Raises:
        ValueError: pictures that do not fill the rows.
    """
    count, height, width = images.shape
    if count == 0 or count % columns:
        raise ValueError(f"{count} pictures do not fill rows of {columns}; give a multiple of that")
    rows = images.reshape(-1, columns, height, width).swapaxes(1, 2).reshape(-1, columns * width)
    rows = rows.astype(float)
    low, span = rows.min(), max(np.ptp(rows), 1e-9)
    joined = (255 * (rows - low) / span).round().astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(joined).quantize(16).save(stream, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"


def snapshots(
    curves: pd.DataFrame, pictures: pd.DataFrame, stops: pd.DataFrame
) -> alt.TopLevelMixin:
    """Draw accuracy curves with a slider along them, where they were stopped, and pictures.

    Args:
        curves: columns ``method``, ``snapshot`` (1, 2, ...), ``pseudo_batch``, ``part`` (whose
            accuracy) and ``accuracy`` in percent.
        pictures: columns ``method``, ``snapshot`` and ``url``, of `strip`.
        stops: columns ``method`` and ``stop``, the pseudo-batch at which a run was stopped, a row a
            run.
    """
    last = curves.groupby("method")["snapshot"].max().rename("last").reset_index()
    curves, pictures = (table.merge(last, on="method") for table in (curves, pictures))
    step = alt.param(
        name="snapshot",
        value=int(last["last"].min()),
        bind=alt.binding_range(min=1, max=int(last["last"].max()), step=1, name="along the run "),
    )
    method = _choice("method", curves["method"].unique())
    here = "datum.snapshot == min(snapshot, datum.last)"
    base = alt.Chart(curves).transform_filter("datum.method == method")
    x = alt.X("pseudo_batch:Q", title="pseudo-batch")
    values = base.transform_filter(here).mark_text(align="left", dx=6, dy=-8, fontWeight="bold")
    values = values.encode(x, _ACCURACY, _VALUE, _colour())
    place = base.transform_filter(here).transform_filter("datum.part == 'retain'")
    place = place.transform_calculate(place="'pseudo-batch ' + datum.pseudo_batch")
    place = place.mark_text(align="right", dx=-4).encode(x, alt.Text("place:N"), y=alt.value(8))
    stopped = (
        alt.Chart(stops)
        .transform_filter("datum.method == method")
        .mark_rule(color="gray", strokeDash=[4, 3])
        .encode(alt.X("stop:Q"))
    )
    drawn = (
        alt.Chart(pictures)
        .transform_filter("datum.method == method")
        .transform_filter(here)
        .mark_image(width=WIDTH, height=WIDTH / 5)
        .encode(url="url:N", x=alt.value(WIDTH / 2), y=alt.value(WIDTH / 10))
        .properties(width=WIDTH, height=WIDTH / 5, title="what the generator draws there")
    )
    above = stopped + _curve(base, x, here) + values + place
    return alt.vconcat(above, drawn).add_params(step, method)


def scales(table: pd.DataFrame, retrained: pd.DataFrame) -> alt.TopLevelMixin:
    """Draw accuracy against the scale of an update, with a slider along the scales.

    Args:
        table: columns ``group`` (which the reader chooses), ``step`` (1, 2, ..., the place of the
            scale in ascending order), ``scale``, ``part`` (whose accuracy), ``accuracy``, ``low``
            and ``high`` in percent.
        retrained: columns ``group``, ``part`` and ``accuracy``, of models retrained without the
            group.
    """
    start = int(table.loc[(table["scale"] - 1).abs().idxmin(), "step"])
    step = alt.param(
        name="step",
        value=start,
        bind=alt.binding_range(min=1, max=int(table["step"].max()), step=1, name="scale, by rank "),
    )
    group = _choice("group", table["group"].unique())
    here = "datum.step == step"
    base = alt.Chart(table).transform_filter("datum.group == group")
    symlog = alt.Scale(type="symlog", constant=0.05)
    x = alt.X("scale:Q", scale=symlog, axis=alt.Axis(values=[0, 0.1, 1, 10, 100], format="~r"))
    band = base.mark_area(opacity=0.2).encode(
        x, alt.Y("low:Q", title="accuracy (%)"), alt.Y2("high:Q"), _colour()
    )
    rows = base.transform_filter(here).encode(alt.Y("part:N", title=None), _colour(legend=None))
    title = "accuracy at this scale (%)"
    across = alt.X("accuracy:Q", scale=_PERCENT, title=title)
    spread = rows.mark_rule(strokeWidth=3, opacity=0.4).encode(
        alt.X("low:Q", scale=_PERCENT, title=title), alt.X2("high:Q")
    )
    points = rows.mark_point(filled=True, size=80).encode(across)
    values = rows.mark_text(align="left").encode(_VALUE, x=alt.value(WIDTH + 8))
    gold = alt.Chart(retrained).transform_filter("datum.group == group")
    gold_here = gold.mark_tick(thickness=2, color="black").encode(across, alt.Y("part:N"))
    gold = gold.mark_rule(strokeDash=[4, 3]).encode(alt.Y("accuracy:Q"), _colour())
    detail = (spread + points + gold_here + values).properties(width=WIDTH, height=90)
    return alt.vconcat(band + gold + _curve(base, x, here), detail).add_params(step, group)


def player(curves: pd.DataFrame) -> alt.TopLevelMixin:
    """Draw how models learn again, with a slider along the mini-batches.

    Args:
        curves: columns ``part`` (the model), ``batch`` (0, 1, ...) and ``accuracy`` in percent; all
            models have the same batches.
    """
    batch = alt.param(
        name="batch",
        value=int(curves["batch"].max()) // 10,
        bind=alt.binding_range(min=0, max=int(curves["batch"].max()), step=1, name="mini-batches "),
    )
    here = "datum.batch == batch"
    base = alt.Chart(curves)
    x = alt.X("batch:Q", title="mini-batches")
    rows = base.transform_filter(here).encode(alt.Y("part:N", title=None), _colour(legend=None))
    across = alt.X("accuracy:Q", scale=_PERCENT, title="accuracy after so many (%)")
    values = rows.mark_text(align="left").encode(_VALUE, x=alt.value(WIDTH + 8))
    bars = (rows.mark_bar().encode(across) + values).properties(width=WIDTH, height=90)
    return alt.vconcat(_curve(base, x, here, points=False), bars).add_params(batch)


def margins(tests: pd.DataFrame, *, start: float) -> alt.TopLevelMixin:
    """Draw the intervals that tests of equivalence read, with a slider for the margin.

    Args:
        tests: columns ``method``, ``score``, ``low`` and ``high``, the limits in points; the test of a
            method is passed where they lie within the margin, on both sides of zero.
        start: the margin at first, in points.
    """
    margin = alt.param(
        name="margin",
        value=start,
        bind=alt.binding_range(min=0.1, max=5, step=0.1, name="margin, points "),
    )
    inside = "datum.low > -margin && datum.high < margin"
    names = list(dict.fromkeys(tests["method"]))
    reach = alt.Scale(domain=[-6, 6], clamp=True)
    base = alt.Chart(tests).transform_calculate(passed=f"{inside} ? 'within' : 'not within'")
    colour = alt.Color(
        "passed:N", title=None, scale=alt.Scale(domain=["within", "not within"],
                                                range=[_COLOURS[2], "#9aa4ae"]),
    )  # fmt: skip
    y = alt.Y("method:N", title=None, sort=names)
    x = alt.X("low:Q", scale=reach, title="difference to gold (points)")
    bars = base.mark_rule(strokeWidth=4).encode(x, alt.X2("high:Q"), y, colour)
    # an interval without width is a dot
    dots = base.mark_point(filled=True, size=30).encode(x, y, colour)
    limits = base.transform_aggregate(rows="count()", groupby=["score"])
    limits = limits.transform_calculate(left="-margin", right="margin").mark_rect(opacity=0.15)
    limits = limits.encode(alt.X("left:Q", scale=reach), alt.X2("right:Q"))
    shown = (limits + bars + dots).properties(width=WIDTH / 2.4, height=13 * len(names))
    count = (
        base.transform_calculate(good=f"{inside} ? 1 : 0")
        .transform_aggregate(both="min(good)", groupby=["method"])
        .transform_aggregate(passing="sum(both)", every="count()")
        .transform_calculate(
            said="datum.passing + ' of ' + datum.every + ' methods are within this margin in both'"
        )
        .mark_text(fontWeight="bold", fontSize=13)
        .encode(alt.Text("said:N"))
        .properties(width=WIDTH / 1.2, height=24)
    )
    return alt.vconcat(count, shown.facet(alt.Column("score:N", title=None))).add_params(margin)


def _choice(name: str, options: Sequence[str]) -> alt.Parameter:
    options = [str(option) for option in options]
    return alt.param(
        name=name, value=options[0], bind=alt.binding_select(options=options, name=f"{name} ")
    )


def _colour(**legend: None) -> alt.Color:
    return alt.Color("part:N", title=None, scale=alt.Scale(range=_COLOURS), **legend)


def _curve(base: alt.Chart, x: alt.X, here: str, *, points: bool = True) -> alt.LayerChart:
    """Draw the line of each part, and a rule where the filter `here` holds."""
    line = base.mark_line(point=points).encode(x, _ACCURACY, _colour())
    rule = base.transform_filter(here).mark_rule(color="black").encode(x)
    return (line + rule).properties(width=WIDTH, height=HEIGHT)


if __name__ == "__main__":
    write_atomic(root() / ".dvc" / "plots.html", plots_page().encode())
