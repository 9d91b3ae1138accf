"""The report stands alone: every page opens offline, links resolve, pictures are described."""

import json
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

import pandas as pd
import pytest
from bs4 import BeautifulSoup
from nbformat import NotebookNode
from nbformat.v4 import new_markdown_cell, new_notebook, new_output
from report_tasks import code, data_notebook, png, shown, write

from unlearnlib.pipeline.paths import place
from unlearnlib.report import interactive, pages


@pytest.fixture
def built(project: Path) -> dict[str, BeautifulSoup]:
    """Return the parsed pages and index of the project, by name."""
    pages.build("quick")
    reports = place("quick").reports
    paths = [reports / "index.html", *reports.glob("pages/*.html")]
    return {path.stem: BeautifulSoup(path.read_text(), "html.parser") for path in paths}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_there_is_a_page_for_each_notebook(built: dict[str, BeautifulSoup]) -> None:
    assert set(built) == {"index", "01_data", "12_gkt"}
    assert {soup.html["lang"] for soup in built.values()} == {"en"}
    assert all(len(soup.find_all("h1")) == 1 and soup.main for soup in built.values())


def test_pages_load_nothing_and_run_nothing(built: dict[str, BeautifulSoup]) -> None:
    for soup in built.values():
        assert not soup.find_all(["script", "iframe"])
        loaded = [tag["src"] for tag in soup.find_all(src=True)]
        loaded += [tag["href"] for tag in soup.find_all("link", href=True)]
        assert all(source.startswith("data:") for source in loaded)
        assert "http" not in soup.style.string and "@import" not in soup.style.string


def answered(*texts: str) -> NotebookNode:
    outputs = [shown({"text/markdown": text, "text/plain": "..."}) for text in texts]
    cells = [
        new_markdown_cell("# The leak\n\nDoes it leak?\n\nSome argument."),
        code("x = 1"),
        *(code(f"Markdown({n})", output, tag="answer") for n, output in enumerate(outputs)),
        new_markdown_cell("## What this shows\n\nIt does."),
    ]
    return new_notebook(cells=cells)


def test_the_answer_stands_under_the_question_and_on_the_index(project: Path) -> None:
    write(project, n19_leak=answered("Yes: **0.3 %** of [it](12_gkt.ipynb), n = 3."))
    pages.build("quick")
    page = BeautifulSoup((place("quick").pages / "19_leak.html").read_text(), "html.parser")
    (box,) = page.select(".answer")
    assert "Yes: 0.3 % of it, n = 3." in box.get_text()
    assert box.a["href"] == "12_gkt.html"
    assert "Does it leak?" in box.find_previous("p").get_text()
    assert "Some argument" in box.find_next("p", string="Some argument.").get_text()
    assert page.get_text().count("n = 3") == 1
    index = BeautifulSoup((place("quick").reports / "index.html").read_text(), "html.parser")
    (card,) = [c for c in index.select(".cards > li") if c.h3.get_text() == "The leak"]
    assert card.select_one(".said").get_text().strip() == "Yes: 0.3 % of it, n = 3."
    assert not card.select_one(".said a")  # the whole card is one link


@pytest.mark.parametrize("texts", [("Yes.", "No."), ()])
def test_a_page_has_one_answer_in_words(project: Path, texts: tuple[str, ...]) -> None:
    notebook = answered(*texts)
    if not texts:
        notebook.cells.append(code("print()", tag="answer"))
    write(project, n19_leak=notebook)
    with pytest.raises(pages.ReportError, match="19_leak.*tagged answer; have one"):
        pages.build("quick")


def test_links_and_anchors_resolve(built: dict[str, BeautifulSoup]) -> None:
    reports = place("quick").reports
    for name, soup in built.items():
        folder = reports if name == "index" else reports / "pages"
        links = [a["href"] for a in soup.find_all("a") if not urlsplit(a["href"]).scheme]
        assert links
        for path, anchor in map(urldefrag, links):
            target = (folder / unquote(path)).resolve() if path else Path(f"{name}.html")
            assert not path or target.is_file(), path
            assert not anchor or built[target.stem].find(id=unquote(anchor)), anchor


def test_links_between_notebooks_become_links_between_pages(
    built: dict[str, BeautifulSoup],
) -> None:
    assert built["01_data"].main.find("a", string="the loss")["href"] == "12_gkt.html#The-figures"
    page = built["12_gkt"].main
    assert page.find("a", string="code")["href"] == "../../../unlearnlib/zero_shot/gkt.py"
    assert not page.find("a", string="later") and "later" in page.get_text()


def test_a_broken_link_names_its_notebook(project: Path) -> None:
    write(project, n02_bad=new_notebook(cells=[new_markdown_cell("# A\n\n[b](nowhere.py)")]))
    with pytest.raises(pages.ReportError, match=r"02_bad\.ipynb: broken link nowhere\.py"):
        pages.build("quick")


def test_images_are_described(built: dict[str, BeautifulSoup]) -> None:
    images = built["12_gkt"].main.find_all("img")
    alts = ['A "rising" curve', "Nested", "Figure: The figures"]
    assert [image["alt"] for image in images] == alts
    assert images[1]["width"] == "80"
    assert not any(pages.check_alt(str(soup)) for soup in built.values())


@pytest.mark.parametrize("alt", ["", ' alt=""', ' alt=" "', f' alt="{pages.NO_ALT}"'])
def test_check_alt_finds_undescribed_images(alt: str) -> None:
    assert len(pages.check_alt(f'<img src="data:a" alt="good"><img src="data:b"{alt}>')) == 1


@pytest.mark.parametrize(
    ("html", "problem"),
    [
        ("<script>1</script>", "script"),
        ('<img alt="a" src="https://a.test/b.png">', "not embedded"),
        ('<link rel="stylesheet" href="style.css">', "not embedded"),
        ('<a href="#gone">a</a>', "no heading"),
        ("x" * (pages.LARGEST_PAGE + 1), "lower a figure's dpi"),
    ],
)
def test_check_page_finds_what_needs_the_outside(html: str, problem: str) -> None:
    (found,) = pages.check_page(html)
    assert problem in found


def test_a_figure_has_its_caption(built: dict[str, BeautifulSoup]) -> None:
    (figure,) = built["12_gkt"].find_all("figure")
    assert figure.img["alt"] == 'A "rising" curve'
    assert figure.figcaption.get_text().strip() == "Over 3 seeds." and figure.figcaption.math


def test_code_is_folded_but_there(built: dict[str, BeautifulSoup]) -> None:
    blocks = built["12_gkt"].main.select(".highlight")
    assert [block.get_text().strip() for block in blocks][1:4] == ["plot()"] * 3
    folds = [block.find_parent("details") for block in blocks]
    assert all(fold.summary and not fold.has_attr("open") for fold in folds)
    assert all(block.pre["tabindex"] == "0" for block in blocks)  # long lines scroll by keyboard


def test_a_chart_is_drawn_by_a_script_and_is_a_picture_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = pd.DataFrame({"group": "all", "step": [1, 2], "scale": [0.0, 1.0], "part": "self"})
    table = table.assign(accuracy=[90.0, 80.0], low=[85.0, 70.0], high=[95.0, 90.0])
    spec = interactive.scales(table, table[["group", "part", "accuracy"]]).to_dict()
    chart = shown(
        {interactive.MIME: spec, "image/png": png()}, **{"image/png": {"alt": "A < curve"}}
    )
    cells = [new_markdown_cell("# Scales"), code("chart", chart)]
    monkeypatch.setenv("UNLEARNLIB_ROOT", str(tmp_path))
    plain = new_notebook(cells=[new_markdown_cell("# Plain")])
    write(tmp_path, scales=new_notebook(cells=cells), plain=plain)
    pages.build("quick")
    written = tmp_path / "reports/quick/pages"
    page, other = (
        BeautifulSoup((written / f"{n}.html").read_text(), "html.parser")
        for n in ("scales", "plain")
    )
    assert page.select_one(".chart > img")["alt"] == "A < curve"
    assert json.loads(page.select_one(".chart .interactive script").string)["signals"]
    assert page.body.find_all("script", recursive=False)
    policy = {"http-equiv": "Content-Security-Policy"}
    assert "script-src" in page.find("meta", policy)["content"]
    assert not other("script")
    assert "script-src" not in other.find("meta", policy)["content"]


def test_math_becomes_mathml(built: dict[str, BeautifulSoup]) -> None:
    page = built["12_gkt"].main
    text = page.get_text()
    assert "$" not in text and "\\" not in text
    assert len(page.find_all("math")) == 7
    displayed = page.select("math[display=block]")
    assert [len(math.find_all("mtr")) for math in displayed] == [2, 1]
    assert page.select_one(".output msqrt")
    assert page.find("mo", string=re.compile("arg\u2009min"))


@pytest.mark.parametrize("latex", [r"\nosuch{x}", "a & b", r"\left( x"])
def test_an_unknown_formula_names_its_notebook(project: Path, latex: str) -> None:
    write(project, n02_bad=new_notebook(cells=[new_markdown_cell(f"# A\n\n${latex}$")]))
    with pytest.raises(pages.ReportError, match=r"02_bad\.ipynb: ") as caught:
        pages.build("quick")
    assert latex in str(caught.value)


def test_parameters_show_what_the_run_used(built: dict[str, BeautifulSoup]) -> None:
    table = built["01_data"].select_one("details.parameters table")
    rows = [[cell.get_text() for cell in row.find_all("td")] for row in table.find_all("tr")]
    assert rows[1:] == [["limit", "500", "images"], ["source", "'idx'", "kept"]]
    assert "limit = " not in built["01_data"].main.get_text()


def test_a_parameter_is_shown_whole_with_its_meaning(project: Path) -> None:
    declared = """path = "a"  # where
settings = {  # of the transfer
    "note": "b"}  # fmt: skip"""
    injected = """# Parameters
path = "x=1#2 <b>&"
settings = {"note": "a = 'b' # c", "λ": 1}
added = "=#"
"""
    made = [code(declared, tag="parameters"), code(injected, tag="injected-parameters")]
    write(project, n02_more=new_notebook(cells=[new_markdown_cell("# A\n\nB?"), *made]))
    pages.build("quick")
    html = (place("quick").pages / "02_more.html").read_text()
    table = BeautifulSoup(html, "html.parser").select_one("details.parameters table")
    rows = [[cell.get_text() for cell in row.find_all("td")] for row in table.find_all("tr")]
    assert rows[1:] == [
        ["path", '"x=1#2 <b>&"', "where"],
        ["settings", """{"note": "a = 'b' # c", "λ": 1}""", "of the transfer"],
        ["added", '"=#"', ""],
    ]
    assert not table.b


def test_a_parameters_cell_that_is_no_python_is_named(project: Path) -> None:
    bad = code("%matplotlib inline", tag="parameters")
    write(project, n02_bad=new_notebook(cells=[new_markdown_cell("# A"), bad]))
    with pytest.raises(pages.ReportError, match=r"02_bad\.ipynb: its parameters cell is no Python"):
        pages.build("quick")


def test_streams_show_output_without_warnings(built: dict[str, BeautifulSoup]) -> None:
    text = built["01_data"].main.get_text()
    assert "done\n" in text and "nonsense" not in text


def test_tables_scroll_in_a_labelled_box(built: dict[str, BeautifulSoup]) -> None:
    table = built["12_gkt"].main.table
    box = table.parent
    assert box["class"] == ["scroll"] and box["tabindex"] == "0"
    assert box["role"] == "region" and box["aria-label"] == "Table: Table"
    assert not table.has_attr("border") and "color: red" not in str(built["12_gkt"])
    scopes = [header["scope"] for header in table.find_all("th")]
    assert scopes == ["col", "col", "col", "row", "row"]


def test_long_tables_are_folded_and_say_how_long_they_are() -> None:
    """A short one is in sight; print shows both."""
    for rows in (pages.LONGEST_TABLE, pages.LONGEST_TABLE + 1):
        body = "<tbody>" + "<tr><th>a</th><td>1</td></tr>" * rows + "</tbody>"
        soup = BeautifulSoup(f"<h1>A</h1><table>{body}</table>", "html.parser")
        pages._finish_tables(soup)
        folds = [fold.summary.get_text() for fold in soup.select("details.wall")]
        assert folds == ([f"Table of {rows} rows"] if rows > pages.LONGEST_TABLE else [])


def test_numbers_align_under_their_header(built: dict[str, BeautifulSoup]) -> None:
    aligned = built["12_gkt"].main.table.select(".number")
    assert [cell.get_text() for cell in aligned] == ["retain", "97.12", "-10.57"]


def test_columns_under_merged_headers_align() -> None:
    html = '<table><tr><th>k</th><th colspan="2">v</th></tr><tr><th rowspan="2">a</th>'
    html += "<td>b</td><td>1</td></tr><tr><td>c</td><td>2</td></tr></table>"
    soup = BeautifulSoup(f"<h1>A</h1>{html}", "html.parser")
    pages._finish_tables(soup)
    assert [cell.get_text() for cell in soup.select(".number")] == ["1", "2"]


@pytest.mark.parametrize("value", ["< 50", "40 - 50", "-"])
def test_a_bound_or_a_range_aligns_like_a_number(value: str) -> None:
    html = f"<h1>A</h1><table><tr><td>97.12</td></tr><tr><td>{value.replace('<', '&lt;')}</td></tr>"
    soup = BeautifulSoup(f"{html}</table>", "html.parser")
    pages._finish_tables(soup)
    assert len(soup.select(".number")) == 2


def header(*rows: list[str]) -> list[list[str]]:
    """Finish a table with these header rows and return those that it then has."""
    lines = ["".join(f"<th>{name}</th>" for name in row) for row in rows]
    html = "".join(f"<tr>{line}</tr>" for line in lines)
    soup = BeautifulSoup(f"<h1>A</h1><table><thead>{html}</thead></table>", "html.parser")
    pages._finish_tables(soup)
    return [[cell.get_text() for cell in row("th")] for row in soup.select("thead tr")]


def test_the_name_of_the_index_joins_the_names_of_the_columns() -> None:
    assert header(["", "mean", "p"], ["method", "", ""]) == [["method", "mean", "p"]]
    assert header(["all"], ["", "a"], ["k", ""]) == [["all"], ["k", "a"]]


def test_a_header_whose_names_would_collide_keeps_its_rows() -> None:
    named = [["request", "class_0"], ["method", ""]]
    assert header(*named) == named
    assert header(["method", "mean"]) == [["method", "mean"]]


def test_contents_list_the_sections(built: dict[str, BeautifulSoup]) -> None:
    entries = built["12_gkt"].select(".contents a")
    anchors = ["#The-loss-ℒ", "#The-figures", "#The-figures-2", "#Table"]
    assert [entry["href"] for entry in entries] == anchors
    assert entries[0].get_text() == "The loss ℒ"


def test_neighbours_are_linked(built: dict[str, BeautifulSoup]) -> None:
    turns = {name: built[name].select(".turn a") for name in ("01_data", "12_gkt")}
    (onward,), (back,) = turns["01_data"], turns["12_gkt"]
    assert onward["href"] == "12_gkt.html" and onward["rel"] == ["next"]
    assert back["href"] == "01_data.html" and back["rel"] == ["prev"]


def test_provenance_is_on_every_page(built: dict[str, BeautifulSoup]) -> None:
    for soup in built.values():
        terms = [term.get_text() for term in soup.footer.find_all("dt")]
        texts = [text.get_text() for text in soup.footer.find_all("dd")]
        assert terms == ["profile", "data source", "seeds", "versions"]
        assert texts == ["quick", "mnist-5k", "0, 1", "python 3.11"]
        assert "MNIST-5k" in [badge.get_text() for badge in soup.select(".badge")]


def test_only_the_small_data_set_has_a_badge(project: Path) -> None:
    facts = place("quick").metrics / "provenance.json"
    facts.write_text('{"data_source": "mnist"}')
    assert "MNIST-5k" not in pages.build("quick").read_text()
    facts.unlink()
    assert "MNIST-5k" not in pages.build("quick").read_text()


def test_index_has_a_card_for_each_page(built: dict[str, BeautifulSoup]) -> None:
    cards = built["index"].select(".cards > li")
    titles = [card.h3.get_text() for card in cards]
    assert titles == ["The data", "Gated transfer"]
    assert [card.p.get_text() for card in cards] == [
        "Which images? See the loss.",
        "Does it forget?",
    ]
    assert not cards[0].img and cards[1].img["alt"] == 'A "rising" curve'
    assert not cards[0].p.a  # the card itself is the link


def test_the_same_notebooks_give_the_same_bytes(project: Path) -> None:
    old_format = data_notebook()
    old_format.nbformat_minor = 4  # has no cell ids: nbformat draws random ones
    for cell in old_format.cells:
        del cell["id"]
    write(project, n01_data=old_format)
    pages.build("quick")
    first = contents(project)
    pages.build("quick")
    assert contents(project) == first


def test_pages_are_small(built: dict[str, BeautifulSoup]) -> None:
    assert all(len(str(soup)) < 50_000 for soup in built.values())


def test_pages_of_removed_notebooks_go(project: Path) -> None:
    pages.build("quick")
    (place("quick").notebooks / "12_gkt.ipynb").unlink()
    pages.build("quick")
    assert [path.name for path in place("quick").pages.iterdir()] == ["01_data.html"]


def test_a_failure_leaves_the_old_report(project: Path) -> None:
    pages.build("quick")
    write(project, n02_bad=new_notebook(cells=[new_markdown_cell(r"# A $\nosuch$")]))
    before = contents(project)
    with pytest.raises(pages.ReportError):
        pages.build("quick")
    assert contents(project) == before


HOSTILE = '</script><b id="x">&<img src=x onerror=alert(1)>'


def test_text_of_parameters_is_text_on_every_page(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In provenance, tables of parameters, the headline table, descriptions and charts."""
    table = pd.DataFrame({"group": HOSTILE, "step": [1, 2], "scale": [0.0, 1.0], "part": "self"})
    table = table.assign(accuracy=1.0, low=0.0, high=2.0)
    spec = interactive.scales(table, table[["group", "part", "accuracy"]]).to_dict()
    chart = shown({interactive.MIME: spec, "image/png": png()}, **{"image/png": {"alt": HOSTILE}})
    frame = shown({"text/html": table.to_html(), "text/plain": "frame"})
    stream = new_output("stream", name="stdout", text=HOSTILE)
    made = [
        code(f"text = {HOSTILE!r}  # {HOSTILE}", tag="parameters"),
        code("chart", chart),
        code("frame", frame, stream),
    ]
    write(project, n02_more=new_notebook(cells=[new_markdown_cell("# A\n\nB?"), *made]))
    reports = place("quick").reports
    (reports / "metrics" / "provenance.json").write_text(json.dumps({"data_source": HOSTILE}))
    (reports / "tables" / "headline.csv").write_text(f"method\n{HOSTILE}\n".replace('"', ""))
    pages.build("quick")
    for path in (reports / "index.html", reports / "pages" / "02_more.html"):
        soup = BeautifulSoup(path.read_text(), "html.parser")
        assert not soup.find("b"), path
        assert not soup.find(onerror=True), path
        assert HOSTILE in [text.get_text() for text in soup.footer.find_all("dd")]
    cells = [cell.get_text() for cell in soup.select("details.parameters td")]
    assert cells == ["text", repr(HOSTILE), HOSTILE]
    assert soup.select_one(".chart > img")["alt"] == HOSTILE
    assert HOSTILE in json.dumps(json.loads(soup.select_one(".interactive script").string)).replace(
        '\\"', '"'
    )


BUILDING = """
import sys, time
from pathlib import Path
from unlearnlib.report import pages
with pages._workplace(Path(sys.argv[1])) as folder:
    (folder / "01_data.html").touch()
    print(folder, flush=True)
    time.sleep(60)
"""


def test_what_a_killed_build_left_goes_and_that_of_a_running_one_stays(project: Path) -> None:
    reports = place("quick").reports
    command = [sys.executable, "-c", BUILDING, str(reports)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        folder = Path(other.stdout.readline().strip())
        pages.build("quick")
        assert [path.name for path in folder.iterdir()] == ["01_data.html"]
        other.kill()
    assert folder.is_dir()
    pages.build("quick")
    assert not folder.exists()
    assert not list(reports.glob(".*"))


def test_a_notebook_without_headings_is_titled_by_its_name(project: Path) -> None:
    write(project, n40_bare=new_notebook(cells=[code("1")]), n41_low=new_notebook())
    pages.build("quick")
    html = (place("quick").pages / "40_bare.html").read_text()
    assert BeautifulSoup(html, "html.parser").title.get_text().startswith("40_bare")


def test_no_notebooks_is_said_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNLEARNLIB_ROOT", str(tmp_path))
    with pytest.raises(SystemExit, match="no executed notebooks in reports/quick/.*`dvc repro`"):
        pages.main(["--profile", "quick"])
    assert not (tmp_path / "reports").exists()


def test_command_line_builds_and_names_the_index(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pages.main(["--profile", "quick"])
    assert capsys.readouterr().out == "report: reports/quick/index.html\n"
    with pytest.raises(SystemExit):
        pages.main(["--profile", "../x"])
    assert "'../x'" in capsys.readouterr().err


def test_pages_of_former_code_say_so(project: Path) -> None:
    """And so does the index, beside them; those of this code say nothing."""
    file = project / "params" / "former.csv"
    file.parent.mkdir(exist_ok=True)
    file.write_text(
        "# why\nprofile,notebook,revision\nquick,12_gkt,abc1234\nstandard,01_data,def5678\n"
    )
    pages.build("quick")
    reports = place("quick").reports
    said = {
        path.stem: [
            p.get_text() for p in BeautifulSoup(path.read_text(), "html.parser").select(".former")
        ]
        for path in (reports / "index.html", *reports.glob("pages/*.html"))
    }
    assert said["01_data"] == []
    (line,) = said["12_gkt"]
    assert line.startswith("Computed by former code, commit abc1234.")
    assert said["index"] == ["Computed by former code, commit abc1234."]
    foot = (reports / "pages" / "12_gkt.html").read_text().partition("Provenance")[2]
    assert "abc1234" in foot and "3.11" not in foot  # nor what the other pages ran on
