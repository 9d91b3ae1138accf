"""The first page says what was found, shows it in a figure, advises, and leads to every page."""

import base64
import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from bs4 import BeautifulSoup
from nbformat.v4 import new_markdown_cell, new_notebook
from PIL import Image
from report_tasks import write

from unlearnlib.pipeline.paths import place
from unlearnlib.report import index, overview, pages
from unlearnlib.report.findings import Absent

METHODS = pd.DataFrame(
    [
        ("fine_tune", "fine-tuning", "with data"),
        ("masked_distillation", "Masked distillation", "zero-shot"),
        ("gkt_prior", "GKT with prior", "zero-shot"),
        ("newton", "Newton", "influence"),
        ("newton_scaled", "Newton, scaled", "influence"),
    ],
    columns=["method", "title", "family"],
)
MEASURED = {  # retain accuracy, forget accuracy, mini-batches to learn again, retrainings
    "retrain": (98, 0, 60, 1.0),
    "retrain_again": (98.2, 0, 64, 1.0),
    "original": (98, 99, 0, None),
    "fine_tune": (97.5, 80, 1, 0.1),
    "masked_distillation": (97.8, 0.1, 3, 3.0),
    "gkt_prior": (94, 0, 50, 5.0),
    "newton": (97, 20, 4, 1.5),
    "newton_scaled": (80, 0, 5, 2.5),
}


@pytest.fixture
def arena(project: Path) -> Path:
    """Lay out the tables of an arena of three originals, and return their folder."""
    metrics = ("retain_accuracy", "forget_accuracy", "relearn_time", "cost")
    rows = [
        ("class_0", method, seed, metric, value + seed * (metric == "relearn_time"))
        for method, values in MEASURED.items()
        for metric, value in zip(metrics, values, strict=True)
        for seed in range(3)
        if value is not None
    ]
    rows.append(("class_0", "masked_distillation", "all", "ulira_forget", 98))
    rows.append(("class_8", "gkt_prior", 0, "retain_accuracy", 1))
    table = pd.DataFrame(rows, columns=["request", "method", "seed", "metric", "value"])
    table["reason"] = ""
    folder = project / "reports" / "quick" / "tables"
    table.to_csv(folder / "arena.csv", index=False)
    METHODS.to_csv(folder / "arena_methods.csv", index=False)
    return folder


def built() -> BeautifulSoup:
    return BeautifulSoup(pages.build("quick").read_text(), "html.parser")


def write_zero_shot(folder: Path) -> None:
    accuracies = {"masked_distillation": 97.0, "retrain": 97.1}
    rows = [(m, s, a + s / 100) for m, a in accuracies.items() for s in range(3)]
    table = pd.DataFrame(rows, columns=["method", "seed", "retain_accuracy"])
    table.to_csv(folder / "zero_shot_variants.csv", index=False)


def test_each_part_shows_its_pages(project: Path) -> None:
    chapters = built().select(".chapter")
    links = [[link["href"] for link in part.select(".cards a")] for part in chapters]
    assert links == [["pages/01_data.html"], ["pages/12_gkt.html"]]
    assert [part.h2.get_text() for part in chapters] == [index.PARTS[0], index.PARTS[10]]
    assert "no training image" in chapters[1].p.get_text()


def test_the_headline_table_stands_in_its_part(project: Path) -> None:
    (table,) = built().select(".chapter table")
    rows = [[cell.get_text() for cell in row.find_all(["th", "td"])] for row in table("tr")]
    assert rows == [["method", "retain"], ["gkt", "97.12"], ["m & m", ""]]
    assert [header["scope"] for header in table("th")] == ["col", "col", "row", "row"]
    assert "MNIST-5k" in table.caption.get_text()
    (project / "reports/quick/tables/headline.csv").unlink()
    assert not built().table


def test_tables_and_notebooks_are_linked_and_folded(project: Path) -> None:
    folded = built().select_one("details.files")
    links = [link["href"] for link in folded.select("a")]
    assert links == ["tables/headline.csv", "notebooks/01_data.ipynb", "notebooks/12_gkt.ipynb"]
    assert not folded.has_attr("open")


def test_before_anything_was_found_nothing_is_claimed(project: Path) -> None:
    soup = built()
    assert not soup.select(".findings, .wide, .verdict")
    assert "Claims" not in soup.select_one(".abstract").get_text()


def test_the_index_opens_with_what_was_found(project: Path) -> None:
    write_zero_shot(project / "reports" / "quick" / "tables")
    assert not built().select(".findings")  # its page was not run
    write(project, n16_comparison=new_notebook(cells=[new_markdown_cell("# Tests\n\nWhich?")]))
    soup = built()
    (line,) = soup.select("ol.findings li")
    assert line.a["href"] == "pages/16_comparison.html"
    assert "within half a point of what retraining keeps" in line.a.get_text()
    assert line.select_one(".verdict").get_text() == "holds"
    assert "-0.10 points (95 % interval -0.10 to -0.10, n = 3 original models)" in line.get_text()
    assert soup.select_one(".abstract").get_text().strip().endswith("repeats: 1; 1 holds.")


def test_the_study_says_how_to_cite_it(project: Path) -> None:
    assert not built().select(".byline")
    (project / "CITATION.cff").write_text(
        'title: "A study"\nversion: 0.1.0\ndate-released: 2026-11-22\n'
        "authors:\n  - name: the authors\n  - {given-names: Ada, family-names: Byron}\n"
    )
    assert built().select_one(".byline").get_text() == (
        "The authors, Ada Byron · version 0.1.0, 2026"
    )


def test_the_reference_is_linked_once_it_is_there(project: Path) -> None:
    assert not built().select("a[href='reference/index.html']")
    folder = project / "reports" / "quick" / "reference"
    folder.mkdir()
    (folder / "index.html").touch()
    assert built().select("a[href='reference/index.html']")


def test_the_figure_has_a_row_for_each_method_that_is_not_scaled(arena: Path) -> None:
    figure = overview.hero(overview.read(arena))
    axes = figure.axes
    assert [axis.get_title().replace("\n", " ") for axis in axes] == [
        column.title.replace("\n", " ") for column in overview.COLUMNS
    ]
    names = [label.get_text() for label in axes[0].get_yticklabels()]
    assert names == [
        "original", "gold", "second gold", "fine-tuning", "GKT with prior",
        "Masked distillation", "Newton",
    ]  # fmt: skip
    dots = {
        round(line.get_ydata()[0]): line.get_xdata()[0]
        for line in axes[2].lines
        if line.get_marker() == "o"
    }
    assert dots[5] == 4  # the mean of 3, 4 and 5
    assert dots[0] == pytest.approx((0.5 + 1 + 2) / 3)  # zero has a place on a logarithmic axis
    assert all(np.isfinite(list(dots.values())))


def test_the_figure_is_embedded_with_its_description(arena: Path) -> None:
    (image,) = built().select(".wide img")
    picture = Image.open(io.BytesIO(base64.b64decode(image["src"].partition(",")[2])))
    assert picture.width > 1000
    assert "what each keeps" in image["alt"]
    assert "Request: class 0." in image.find_parent("figure").figcaption.get_text()


def test_methods_are_advised_by_what_one_has_and_wants(arena: Path) -> None:
    told = overview.advice(overview.read(arena))
    assert [(row.have, row.want, row.title) for row in told] == [
        ("the model alone", "is no longer named", "Masked distillation"),
        ("the model alone", "takes long to come back", "GKT with prior"),
        ("the model and its training data", "is no longer named", "Masked distillation"),
        ("the model and its training data", "takes long to come back", "GKT with prior"),
        ("everything, and the time", "was never seen", "gold"),
    ]
    assert told[0].again == pytest.approx(4 / 61)
    (table,) = [t for t in built()("table") if "learnt again in" in t.get_text()]
    assert [cell.get_text() for cell in table("tr")[1](["th", "td"])] == [
        "the model alone", "is no longer named", "Masked distillation", "97.8 ± 0.0", "0.07", "3.00"
    ]  # fmt: skip


def test_where_none_serves_the_card_says_so(arena: Path) -> None:
    table = pd.read_csv(arena / "arena.csv")
    forgets = (table["metric"] == "forget_accuracy") & ~table["method"].str.startswith("retrain")
    table.loc[forgets, "value"] = 50
    table.to_csv(arena / "arena.csv", index=False)
    told = overview.advice(overview.read(arena))
    assert [row.title for row in told] == ["", "", "", "", "gold"]
    assert "none of those here" in built().get_text()


def test_a_wrecked_network_that_learns_nothing_again_is_not_advised(arena: Path) -> None:
    table = pd.read_csv(arena / "arena.csv")
    kept = (table["metric"] == "retain_accuracy") & (table["method"] == "gkt_prior")
    table.loc[kept, "value"] = 92.9
    table.to_csv(arena / "arena.csv", index=False)
    told = overview.advice(overview.read(arena))
    assert [row.title for row in told if row.want == "takes long to come back"] == ["", ""]
    assert "n = 3 original models" in built().get_text()


def test_a_mask_serves_where_the_class_is_not_to_be_named_and_nowhere_else(arena: Path) -> None:
    table = pd.read_csv(arena / "arena.csv")
    mask = table[table["method"] == "gkt_prior"].assign(method="masked_logit")
    mask.loc[mask["metric"] == "retain_accuracy", "value"] = 97.9
    pd.concat([table, mask]).to_csv(arena / "arena.csv", index=False)
    row = ("masked_logit", "Masked logit", "zero-shot")
    known = pd.DataFrame([*METHODS.itertuples(index=False), row], columns=METHODS.columns)
    known.to_csv(arena / "arena_methods.csv", index=False)
    told = overview.advice(overview.read(arena))
    assert [row.title for row in told[:2]] == ["Masked logit", "GKT with prior"]


def test_without_an_arena_there_is_neither_figure_nor_card(project: Path) -> None:
    with pytest.raises(Absent, match="arena"):
        overview.read(place("quick").tables)
    assert not built().select(".wide")
