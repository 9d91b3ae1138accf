"""The report in a real browser: Debian's Chromium, no network, every page of both profiles."""

from functools import cache
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

import pytest
from browsing import DESKTOP, PAPER, PHONE, SMALL_PHONE, barriers, overflow
from bs4 import BeautifulSoup
from conftest import ROOT
from playwright.sync_api import Browser, Error, Locator, Page

STEMS = ["index", *sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))]
# the committed report has no page yet of a notebook whose long run is still to come
COMMITTED = {path.stem for path in (ROOT / "reports" / "standard" / "pages").glob("*.html")}
EVERY_PAGE = pytest.mark.parametrize(
    ("profile", "stem"),
    [("standard", stem) for stem in STEMS if stem in COMMITTED | {"index"}]
    + [("quick", stem) for stem in STEMS],
)
UNSEEN = """images => images.filter(image => !image.closest("details:not([open])"))
    .filter(image => !image.checkVisibility() || !image.clientWidth || !image.naturalWidth)
    .map(image => image.alt || image.src)"""
PLACES = """links => links.map(link => [link.getAttribute("href"), link.href])"""


@pytest.fixture
def path(browser: Browser, profile: str, stem: str, request: pytest.FixtureRequest) -> Path:
    """Return the file of a page; those of the quick profile are made where they are not there."""
    if profile == "quick":
        request.getfixturevalue("tables")
    report = ROOT / "reports" / profile
    return report / "index.html" if stem == "index" else report / "pages" / f"{stem}.html"


@cache
def anchors(path: Path) -> set[str]:
    soup = BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")
    return {tag["id"] for tag in soup.find_all(id=True)}


def broken_links(page: Page) -> list[str]:
    """List the links that lead to no file or to no anchor of a page."""
    found = []
    for written, resolved in page.locator("a[href]").evaluate_all(PLACES):
        address, anchor = urldefrag(resolved)
        if urlsplit(address).scheme in ("http", "https", "mailto"):
            continue
        path = Path(unquote(urlsplit(address).path))
        if not path.exists() or (anchor and unquote(anchor) not in anchors(path)):
            found.append(f"link to nothing: {written}")
    return found


def bad_images(page: Page) -> list[str]:
    empty = "images => images.filter(image => !image.alt.trim() || !image.naturalWidth).length"
    number = page.locator("img").evaluate_all(empty)
    return [f"images without a description or that did not load: {number}"] * bool(number)


def dead_sliders(page: Page) -> list[str]:
    """Move each slider of each interactive chart and list those that redraw nothing."""
    found = []
    for number, chart in enumerate(page.locator(".interactive").all()):
        chart.locator("svg").first.wait_for(timeout=5000)
        sliders = chart.locator("input[type=range]").all()
        found += [f"interactive chart {number} has no slider"] * (not sliders)
        found += [f"dead slider in chart {number}" for one in sliders if not moves(chart, one)]
    return found


def moves(chart: Locator, slider: Locator) -> bool:
    """Whether a key press on the slider changes the drawing within two seconds."""
    drawing = chart.locator("svg").first
    before = drawing.evaluate("svg => svg.outerHTML")
    lowest = slider.evaluate("s => s.valueAsNumber <= Number(s.min)")
    slider.press("End" if lowest else "Home")
    changed = "([chart, before]) => chart.querySelector('svg').outerHTML !== before"
    try:
        given = [chart.element_handle(), before]
        slider.page.wait_for_function(changed, arg=given, timeout=2000)
    except Error:
        return False
    return True


@EVERY_PAGE
def test_a_page_works_for_every_reader(path: Path, reader: Page, heard: list[str]) -> None:
    reader.emulate_media(color_scheme="light", media="screen")
    reader.set_viewport_size({"width": DESKTOP, "height": 900})
    reader.goto(path.as_uri())
    findings = [*broken_links(reader), *bad_images(reader), *dead_sliders(reader)]
    reader.locator("details").evaluate_all("all => all.forEach(one => one.open = true)")
    findings += overflow(reader, DESKTOP) + barriers(reader)
    reader.emulate_media(color_scheme="dark")
    findings += [f"dark: {barrier}" for barrier in barriers(reader, "color-contrast")]
    findings += overflow(reader, PHONE) + barriers(reader, "scrollable-region-focusable")
    findings += overflow(reader, SMALL_PHONE) + overflow(reader, PAPER, media="print")
    assert not findings + heard, "\n".join(findings + heard)


@EVERY_PAGE
def test_a_page_shows_its_figures_without_javascript(path: Path, plain_reader: Page) -> None:
    plain_reader.goto(path.as_uri())
    assert plain_reader.locator("main img").evaluate_all(UNSEEN) == []
    for chart in plain_reader.locator(".interactive").all():
        figure = plain_reader.locator("figure").filter(has=chart)
        assert figure.locator("img:visible").count(), "an interactive chart without a picture"


def test_the_committed_report_has_two_pages_with_sliders() -> None:
    pages = (ROOT / "reports/standard/pages").glob("*.html")
    soups = {path.stem: BeautifulSoup(path.read_text("utf-8"), "html.parser") for path in pages}
    assert len([stem for stem, soup in soups.items() if soup.select(".interactive")]) >= 2
