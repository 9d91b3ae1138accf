"""Turn executed notebooks into a report: `python -m unlearnlib.report --profile quick`.

A page opens from disk with the network off: images and the scripts of interactive charts and of the
drawing board are embedded, and LaTeX becomes MathML. With JavaScript disabled a chart is a picture,
and the board a table. The same notebooks always give the same bytes.
"""

import argparse
import base64
import csv
import fcntl
import io
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import quote, unquote, urldefrag, urlsplit

import nbformat
from bs4 import BeautifulSoup, Tag
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template, pass_context
from jinja2.runtime import Context
from latex2mathml.converter import convert
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from PIL import Image
from traitlets.config import Config

from unlearnlib.pipeline import cells
from unlearnlib.pipeline.paths import Place, place, root, write_atomic
from unlearnlib.report import glossary, index, interactive

STUDY = "Machine unlearning, reproducibly"
TEMPLATES = Path(__file__).parent / "templates"
LARGEST_PAGE = 3_000_000  # bytes
LONGEST_TABLE = 24  # rows that a reader sees at once; longer ones are folded
THUMBNAIL = (480, 320)  # largest width and height in pixels
NUMBER = re.compile(r"[-−+±<>\d.,:()\[\]%e∞ –]*|nan|NaN|inf")
HEADINGS = ["h1", "h2", "h3", "h4", "h5", "h6"]
# nbconvert writes this where it finds no description
NO_ALT = "No description has been provided for this image"
# Spellings that latex2mathml misreads, and equal ones that it reads
SPELLINGS = {
    r"\operatorname*{arg\,min}": r"\argmin",
    r"\operatorname*{arg\,max}": r"\argmax",
    r"\operatorname*": r"\operatorname",
    r"{aligned}": r"{split}",
    r"\setminus": r"\smallsetminus",
}


class ReportError(RuntimeError):
    """A report that cannot be built, with what to do about it."""


@dataclass(frozen=True)
class Heading:
    """A line of a page's table of contents."""

    level: int
    anchor: str
    text: str


@dataclass(frozen=True)
class Page:
    """A notebook as HTML, with what the index shows of it."""

    stem: str
    title: str
    description: str
    answer: str
    body: str
    words: list[tuple[str, str]]
    contents: list[Heading]
    thumbnail: str
    alt: str
    interactive: bool
    draws: bool
    former: str = ""  # the commit that ran it, where that is not the one of the report

    @property
    def number(self) -> str:
        """Return the leading digits of the stem."""
        return re.match(r"\d*", self.stem).group()


# Math and markdown


def mathml(latex: str, *, display: str = "inline") -> str:
    r"""Convert LaTeX without its dollars to a MathML element.

    Raises:
        ReportError: a command or an alignment that latex2mathml does not know.
    """
    spelt = latex
    for misread, read in SPELLINGS.items():
        spelt = spelt.replace(misread, read)
    try:
        element = convert(spelt, display=display)
    except Exception as error:
        raise ReportError(f"cannot read the formula ${latex}$ ({type(error).__name__})") from error
    if unknown := re.search(r"<mi>(\\\w+|&)</mi>", element):
        raise ReportError(f"{unknown[1]} in ${latex}$ has no MathML; write it in other commands")
    return element.replace('<mn mathvariant="double-struck">1</mn>', "<mn>&#x1D7D9;</mn>")


class MathRenderer(IPythonRenderer):
    """Render markdown with its formulas as MathML."""

    def inline_math(self, body: str) -> str:
        """Render `$body$`."""
        return mathml(body)

    def block_math(self, body: str) -> str:
        """Render `$$body$$`; a span, because markdown puts it inside a paragraph."""
        return f'<span class="equation" tabindex="0">{mathml(body, display="block")}</span>'

    def latex_environment(self, name: str, body: str) -> str:
        """Render an environment such as `align`."""
        return self.block_math(rf"\begin{{{name}}}{body}\end{{{name}}}")


class BodyExporter(HTMLExporter):
    """Export a notebook as the HTML between a page's header and footer."""

    @pass_context
    def markdown2html(self, context: Context, source: str) -> str:
        """Convert markdown; replaces nbconvert's filter, which leaves math to a script."""
        attachments = context.get("cell", {}).get("attachments", {})
        renderer = MathRenderer(
            escape=False,
            attachments=attachments,
            embed_images=True,
            path=str(root() / "notebooks"),
            exclude_anchor_links=True,
        )
        return MarkdownWithMath(renderer=renderer).render(source)


def _exporter() -> BodyExporter:
    kinds = ["html", "markdown", "latex", "plain"]
    text = [f"text/{kind}" for kind in kinds]
    images = ["image/svg+xml", "image/png", "image/jpeg"]
    return BodyExporter(
        template_name="study",
        extra_template_basedirs=[str(TEMPLATES)],
        exclude_input_prompt=True,
        exclude_output_prompt=True,
        filters={"vega": interactive.compiled},
        config=Config(NbConvertBase={"display_data_priority": text[:3] + images + text[3:]}),
    )


def _parameters(notebook: nbformat.NotebookNode) -> list[dict[str, str]]:
    """List the parameters that the run used, with the comments of the declaring cell.

    Raises:
        ReportError: a cell of parameters is no Python.
    """
    rows: dict[str, dict[str, str]] = {}
    for tag in ("parameters", "injected-parameters"):
        for cell in notebook.cells:
            for name, found in _assigned(cell.source).items() if tag in _tags(cell) else []:
                said = found.comment if tag == "parameters" else ""
                row = rows.setdefault(name, {"name": name, "help": said})
                row["value"] = found.value
    return list(rows.values())


def _assigned(source: str) -> dict[str, cells.Assigned]:
    try:
        return cells.assigned(source)
    except SyntaxError as error:
        raise ReportError(
            f"its parameters cell is no Python ({error}); assign plain values there alone"
        ) from error


def _tags(cell: nbformat.NotebookNode) -> list[str]:
    return cell.metadata.get("tags", [])


# Finishing a page's body


def _finish_headings(soup: BeautifulSoup, stem: str) -> list[Heading]:
    """Give headings anchors and return those of the second and third level.

    Anchors are Jupyter's own (spaces to dashes), so that a link works in both.
    """
    if not (first := soup.find(HEADINGS)):
        soup.insert(0, first := _tag(soup, "h1", stem))
    if not soup.h1:
        first.name = "h1"
    used: set[str] = {"main", "provenance"}
    headings = []
    for heading in soup.find_all(HEADINGS):
        text = heading.get_text().strip()
        heading["id"] = _unused(re.sub(r"\s+", "-", text), used)
        headings.append(Heading(int(heading.name[1]), heading["id"], text))
        label = {"class": "anchor", "href": f"#{heading['id']}", "aria-label": f"Link to {text}"}
        heading.append(_tag(soup, "a", "#", **label))
    return [heading for heading in headings if heading.level in (2, 3)]


def _tag(soup: BeautifulSoup, name: str, text: str = "", **attributes: str) -> Tag:
    return soup.new_tag(name, attrs=attributes, string=text)


def _unused(anchor: str, used: set[str]) -> str:
    """Return the anchor, numbered if it is taken, and note it as used."""
    number, free = 1, anchor
    while free in used:
        number += 1
        free = f"{anchor}-{number}"
    used.add(free)
    return free


def _lift_answer(soup: BeautifulSoup) -> None:
    """Move what the cell tagged ``answer`` said to a box under the page's question.

    In the notebook the answer stands where it can be computed, at its end.

    Raises:
        ReportError: two such cells, or one that showed no text.
    """
    cells = soup.select(".answer-cell")
    if not cells:
        return
    said = cells[0].select(".output_markdown, [data-mime-type='text/markdown']")
    if len(cells) > 1 or not said:
        raise ReportError(f"{len(cells)} cells are tagged answer; have one, that shows Markdown")
    box = _tag(soup, "aside", **{"class": "answer", "aria-label": "Answer"})
    box.append(_tag(soup, "p", "Answer", **{"class": "label"}))
    for part in said:
        box.append(_tag(soup, "div", **{"class": "markdown"}))
        box.contents[-1].extend(list(part.extract().contents))
    question = soup.find(HEADINGS).find_next_sibling("p")
    (question or soup.find(HEADINGS)).insert_after(box)


def _finish_alts(soup: BeautifulSoup) -> None:
    """Let an image without a description take the heading above it."""
    heading = ""
    for tag in soup.find_all([*HEADINGS, "img"]):
        if tag.name != "img":
            heading = _plain(tag)
        elif tag.get("alt", "").strip() in ("", NO_ALT):
            tag["alt"] = f"Figure: {heading}"


def _plain(heading: Tag) -> str:
    """Return a heading's text without its anchor sign."""
    return heading.get_text().removesuffix("#").strip()


def _finish_tables(soup: BeautifulSoup) -> None:
    """Make tables scroll in a box of their own, with scoped and aligned cells; fold long ones."""
    for style in soup.find_all("style", scoped=True):
        style.decompose()
    for table in soup.find_all("table"):
        del table["border"]
        del table["class"]
        for row in table.find_all("tr"):
            del row["style"]
        _join_header(table)
        _scope(table)
        _align(table)
        name = table.caption or table.find_previous(HEADINGS)
        label = {"role": "region", "aria-label": f"Table: {_plain(name)}", "tabindex": "0"}
        box = table.wrap(_tag(soup, "div", **{"class": "scroll"}, **label))
        rows = len(table.select("tbody tr"))
        if rows > LONGEST_TABLE:
            fold = box.wrap(_tag(soup, "details", **{"class": "wall"}))
            fold.insert(0, _tag(soup, "summary", f"Table of {rows} rows"))


def _join_header(table: Tag) -> None:
    """Move the names of pandas' index up into the empty cells beside the columns' names."""
    rows = [row.find_all("th") for row in table.select("thead tr")]
    if len(rows) < 2 or len(rows[-2]) != len(rows[-1]):
        return
    pairs = list(zip(*rows[-2:], strict=True))
    if any(above.get_text().strip() and below.get_text().strip() for above, below in pairs):
        return
    for above, below in pairs:
        if below.get_text().strip():
            above.replace_with(below)
    table.select("thead tr")[-1].decompose()


def _scope(table: Tag) -> None:
    for header in table.find_all("th"):
        header["scope"] = "col" if header.find_parent("thead") else "row"


def _align(table: Tag) -> None:
    """Right-align the columns that hold only numbers.

    Columns are counted from the right: on the left pandas merges the cells of equal row names.
    """
    rows = [_spread(row.find_all(["th", "td"])) for row in table.find_all("tr")]
    for column in zip_longest(*map(reversed, rows)):
        values = [cell.get_text().strip() for cell in column if cell and cell.name == "td"]
        if values and all(map(NUMBER.fullmatch, values)):
            for cell in column:
                if cell and not cell.get("colspan"):
                    cell["class"] = "number"


def _spread(cells: list[Tag]) -> list[Tag]:
    """Repeat a cell for each column that it spans."""
    return [cell for cell in cells for _ in range(int(cell.get("colspan", 1)))]


def _finish_links(soup: BeautifulSoup, stems: set[str], pages: Path) -> None:
    """Point links that are written for `notebooks/` from where the page is.

    A link to another notebook leads to its page, or to nothing when it was not run in this profile.
    """
    for link in soup.find_all("a", href=True):
        path, anchor = urldefrag(link["href"])
        if not path or urlsplit(path).scheme:
            continue
        target = Path(os.path.normpath(root() / "notebooks" / unquote(path)))
        if target.suffix == ".ipynb" and target.stem not in stems:
            link.unwrap()
        elif target.suffix == ".ipynb":
            link["href"] = f"{target.stem}.html" + (f"#{anchor}" if anchor else "")
        elif not target.exists():
            raise ReportError(f"broken link {link['href']}; write it relative to notebooks/")
        else:
            link["href"] = quote(Path(os.path.relpath(target, pages)).as_posix())


# Pages


def read_page(path: Path, *, stems: set[str], pages: Path) -> Page:
    """Convert an executed notebook.

    Args:
        path: the notebook.
        stems: all notebooks of the report, which links may lead to.
        pages: the folder that the page will be in.
    """
    notebook = nbformat.read(path, as_version=4)
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"
    try:
        resources = {"parameters": _parameters(notebook)}
        body, _ = _exporter().from_notebook_node(notebook, resources=resources)
        soup = BeautifulSoup(body, "html.parser")
        contents = _finish_headings(soup, path.stem)
        _lift_answer(soup)
        _finish_alts(soup)
        _finish_tables(soup)
        _finish_links(soup, stems, pages)
    except ReportError as error:
        raise ReportError(f"{path.name}: {error}") from error
    return _page(path.stem, soup, contents)


def former(profile: str) -> dict[str, str]:
    """Read which executed notebooks of a profile former code left: the commit, by notebook."""
    file = root() / "params" / "former.csv"
    if not file.is_file():
        return {}
    with file.open(encoding="utf-8", newline="") as stream:
        rows = csv.DictReader(line for line in stream if not line.startswith("#"))
        return {row["notebook"]: row["revision"] for row in rows if row["profile"] == profile}


def _page(stem: str, soup: BeautifulSoup, contents: list[Heading]) -> Page:
    first = soup.find(HEADINGS)
    paragraph = first.find_next(lambda tag: tag.name == "p" and tag.find_parent(class_="markdown"))
    picture = soup.select_one("img[src^='data:image/png']:not(table img)")
    answer = soup.select_one(".answer .markdown")
    description, answer = (_without_links(said) if said else "" for said in (paragraph, answer))
    words = glossary.explain(soup)
    return Page(
        stem=stem,
        title=_plain(first),
        description=description,
        answer=answer,
        body=str(soup).strip(),
        words=words,
        contents=contents,
        thumbnail=_thumbnail(picture["src"]) if picture else "",
        alt=picture["alt"] if picture else "",
        interactive=bool(soup.select(".interactive")),
        draws=bool(soup.select(".draw")),
    )


def _without_links(paragraph: Tag) -> str:
    copy = BeautifulSoup(paragraph.decode_contents(), "html.parser")
    for link in copy.find_all("a"):
        link.unwrap()
    return str(copy).strip()


def _thumbnail(source: str) -> str:
    """Shrink an embedded PNG to a few kilobytes."""
    image = Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))).convert("RGBA")
    paper = Image.new("RGBA", image.size, "white")
    paper.alpha_composite(image)
    small = paper.convert("RGB")
    small.thumbnail(THUMBNAIL)
    stream = io.BytesIO()
    small.quantize(64).save(stream, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"


# What page and index share


def _provenance(where: Place) -> dict[str, Any]:
    path = where.metrics / "provenance.json"
    found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return {"profile": where.profile} | found


def _text(value: Any) -> str:
    """Write a JSON value as prose."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {_text(item)}" for name, item in value.items())
    if isinstance(value, list):
        return ", ".join(_text(item) for item in value)
    return str(value)


def _badges(provenance: dict[str, Any]) -> list[str]:
    small = str(provenance.get("data_source", "")).lower() == "mnist-5k"
    return ["MNIST-5k"] * small + [f"profile {provenance['profile']}"]


def _shared(where: Place) -> dict[str, Any]:
    provenance = _provenance(where)
    facts = [(name.replace("_", " "), _text(value)) for name, value in provenance.items()]
    return {"study": STUDY, "badges": _badges(provenance), "provenance": facts}


def _template(name: str) -> Template:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(f"{name}.html.j2")


# Checks


def check_alt(page: str) -> list[str]:
    """List the images of a page (HTML) that have no description."""
    images = BeautifulSoup(page, "html.parser").find_all("img")
    lacking = [img for img in images if img.get("alt", "").strip() in ("", NO_ALT)]
    return [f"image without alt text: {img.get('src', '')[:60]}" for img in lacking]


def check_page(page: str) -> list[str]:
    """List what keeps a page (HTML) from standing alone, such as outside files.

    Scripts are for pages with interactive charts or a drawing board, and there each chart has its
    picture, and each board its table.
    """
    soup = BeautifulSoup(page, "html.parser")
    anchors = {tag["id"] for tag in soup.find_all(id=True)}
    used = [unquote(tag["href"][1:]) for tag in soup.find_all("a", href=re.compile("^#."))]
    sources = [tag[name] for tag, name in _loads(soup) if not tag[name].startswith("data:")]
    size = len(page.encode())
    return [
        *check_alt(page),
        *(f"script on a page without charts: {str(tag)[:60]}" for tag in _needless_scripts(soup)),
        *("chart without a picture" for chart in soup.select(".chart") if not chart.img),
        *("drawing board without a table" for board in soup.select(".draw") if not board.table),
        *(f"not embedded: {source}" for source in sources),
        *(f"no heading for the link #{anchor}" for anchor in used if anchor not in anchors),
        *([f"{size} bytes, above {LARGEST_PAGE}: lower a figure's dpi"] * (size > LARGEST_PAGE)),
    ]


def _needless_scripts(soup: BeautifulSoup) -> list[Tag]:
    return [] if soup.select(".interactive, .draw") else soup.find_all("script")


def _loads(soup: BeautifulSoup) -> Iterator[tuple[Tag, str]]:
    """Yield what a browser loads on opening: the element and the attribute that names the file."""
    yield from ((tag, "src") for tag in soup.find_all(src=True))
    yield from ((tag, "href") for tag in soup.find_all("link", href=True))


# The report


def build(profile: str) -> Path:
    """Write all pages of a profile and its index, and return the path of the index.

    Raises:
        ReportError: no executed notebooks, or a page that would not stand alone.
    """
    where = place(profile)
    notebooks = _notebooks(where)
    stems = {path.stem for path in notebooks}
    older = former(profile)
    pages = [
        replace(read_page(path, stems=stems, pages=where.pages), former=older.get(path.stem, ""))
        for path in notebooks
    ]
    files = {f"{page.stem}.html": html for page, html in _render_pages(pages, where)}
    first = _render_index(pages, where)
    for name, html in [*files.items(), ("index.html", first)]:
        if found := check_page(html):
            raise ReportError(f"{name}: " + "; ".join(found))
    _publish(files, first, where)
    return where.reports / "index.html"


def _notebooks(where: Place) -> list[Path]:
    found = sorted(where.notebooks.glob("*.ipynb"), key=_order)
    if not found:
        folder = where.notebooks.relative_to(root())
        raise ReportError(f"no executed notebooks in {folder}; make them with `dvc repro`")
    return found


def _order(path: Path) -> tuple[int, str]:
    number = re.match(r"\d+", path.stem)
    return (int(number[0]) if number else 1_000_000, path.stem)


def _render_pages(pages: list[Page], where: Place) -> Iterator[tuple[Page, str]]:
    template, shared = _template("page"), _shared(where)
    around = [None, *pages, None]
    for number, page in enumerate(pages, start=1):
        neighbours = {"previous": around[number - 1], "next": around[number + 1]}
        own = {"provenance": [("code revision", page.former)]} if page.former else {}
        html = template.render(
            page=page, number=number, total=len(pages), scripts=_scripts(page), **neighbours,
            **shared | own,
        )  # fmt: skip
        yield page, html


def _scripts(page: Page) -> list[str]:
    """List the scripts that a page runs: none, that of its charts, those of its drawing board."""
    own = ["live.js", "draw.js"] if page.draws else []
    charts = [interactive.script()] if page.interactive else []
    return charts + [(TEMPLATES / name).read_text(encoding="utf-8") for name in own]


def _render_index(pages: list[Page], where: Place) -> str:
    shared = _shared(where)
    html = _template("index").render(
        caption=", ".join(shared["badges"]), profile=where.profile, **index.context(pages, where),
        **shared,
    )  # fmt: skip
    soup = BeautifulSoup(html, "html.parser")
    _finish_tables(soup)
    return str(soup)


def _publish(files: dict[str, str], first: str, where: Place) -> None:
    """Replace the old report once all of the new one is on disk."""
    where.pages.mkdir(parents=True, exist_ok=True)
    with _workplace(where.reports) as folder:
        for name, html in [*files.items(), ("index.html", first)]:
            write_atomic(folder / name, html.encode())
        for name in files:
            os.replace(folder / name, where.pages / name)
        for old in where.pages.glob("*.html"):
            if old.name not in files:
                old.unlink()
        os.replace(folder / "index.html", where.reports / "index.html")


@contextmanager
def _workplace(reports: Path) -> Iterator[Path]:
    """Give a folder for this build alone, and remove those that killed builds left."""
    for left in reports.glob(".pages-*"):
        # another build may end, and take its folder away
        with suppress(FileNotFoundError, NotADirectoryError), _locked(left) as free:
            if free:
                shutil.rmtree(left)
    with TemporaryDirectory(dir=reports, prefix=".pages-") as folder, _locked(Path(folder)):
        yield Path(folder)


@contextmanager
def _locked(folder: Path) -> Iterator[bool]:
    """Hold the lock of a folder, which ends with its process; give False where another has it."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
        else:
            yield True
    finally:
        os.close(handle)


def main(arguments: list[str] | None = None) -> None:
    """Build the report that the command line names."""
    parser = argparse.ArgumentParser(prog="python -m unlearnlib.report", description=__doc__)
    parser.add_argument("--profile", required=True, help="whose executed notebooks to show")
    profile = parser.parse_args(arguments).profile
    try:
        place(profile)
    except ValueError as error:
        parser.error(str(error))
    try:
        built = build(profile)
    except ReportError as error:
        raise SystemExit(f"report: {error}") from error
    print(f"report: {built.relative_to(root())}")
