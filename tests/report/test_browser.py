"""The report in a real browser: Debian's Chromium, no network, every page of both profiles.

Without Chromium these tests are skipped; with `UNLEARNLIB_BROWSER=required`, as in CI, they fail.
"""

import os
import shutil
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

import pytest
from axe_playwright_python.sync_playwright import Axe
from bs4 import BeautifulSoup
from conftest import ROOT
from playwright.sync_api import Browser, Error, Locator, Page, Request, Route, sync_playwright

STEMS = ["index", *sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))]
# the committed report has no page yet of a notebook whose long run is still to come
COMMITTED = {path.stem for path in (ROOT / "reports" / "standard" / "pages").glob("*.html")}
EVERY_PAGE = pytest.mark.parametrize(
    ("profile", "stem"),
    [("standard", stem) for stem in STEMS if stem in COMMITTED | {"index"}]
    + [("quick", stem) for stem in STEMS],
)
CHROMIUM = ["chromium", "chromium-browser", "google-chrome"]
QUIET = [  # Chromium's own errands would look like the report's
    *["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-quic", "--disable-sync"],
    *["--disable-background-networking", "--disable-component-update"],
]
DESKTOP, PHONE, SMALL_PHONE, PAPER = 1280, 390, 360, 718  # CSS pixels; A4 within its margins
GRAVE = ("serious", "critical")
# The rows of a table are styled alike, and so are the words of code: some speak for all
CONTEXT = {"exclude": ["tbody tr:nth-child(n+4)", ".highlight span:nth-child(n+12)"]}
UNSEEN = """images => images.filter(image => !image.closest("details:not([open])"))
    .filter(image => !image.checkVisibility() || !image.clientWidth || !image.naturalWidth)
    .map(image => image.alt || image.src)"""
PLACES = """links => links.map(link => [link.getAttribute("href"), link.href])"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    found = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if not found:
        required = os.environ.get("UNLEARNLIB_BROWSER") == "required"
        refuse = pytest.fail if required else pytest.skip
        refuse("no Chromium to read the report with: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=QUIET)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def reader(browser: Browser) -> Page:
    """Open a tab, used for all pages one after the other."""
    return browser.new_context(offline=True).new_page()


@pytest.fixture(scope="module")
def plain_reader(browser: Browser) -> Page:
    """Open a tab without JavaScript."""
    return browser.new_context(offline=True, java_script_enabled=False).new_page()


@pytest.fixture
def heard(reader: Page) -> Iterator[list[str]]:
    """Collect what a page complains of and what it asks the network for, which is refused."""
    found: list[str] = []

    def guard(route: Route, request: Request) -> None:
        if request.url.startswith(("file:", "data:")):
            return route.fallback()
        found.append(f"asked for {request.url}")
        return route.abort()

    listeners = {
        "console": lambda said: found.append(said.text) if said.type == "error" else None,
        "pageerror": lambda error: found.append(f"uncaught: {error}"),
        "requestfailed": lambda request: found.append(f"not loaded: {request.url[:80]}"),
    }
    for event, listener in listeners.items():
        reader.on(event, listener)
    reader.route("**/*", guard)
    yield found
    reader.unroute("**/*", guard)
    for event, listener in listeners.items():
        reader.remove_listener(event, listener)


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


def overflow(page: Page, width: int, *, media: str = "screen") -> list[str]:
    """Say how far the document is wider than the window, which is `width` CSS pixels wide."""
    page.emulate_media(media=media)
    page.set_viewport_size({"width": width, "height": 900})
    wide = page.evaluate("document.documentElement.scrollWidth")
    seen = page.evaluate("document.documentElement.clientWidth")
    return [f"{wide} pixels wide on {seen} ({media})"] * (wide > seen)


def barriers(page: Page, *rules: str) -> list[str]:
    """List the serious and critical violations that axe-core finds, by all rules or by these."""
    options = {"resultTypes": ["violations"]} | ({"runOnly": list(rules)} if rules else {})
    found = Axe().run(page, CONTEXT, options).response["violations"]
    return [
        f"{found['id']} ({len(found['nodes'])}): {found['nodes'][0]['html'][:120]}"
        for found in found
        if found["impact"] in GRAVE
    ]


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
