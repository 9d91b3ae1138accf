"""What tests of pages in a browser share: what keeps a reader from a page."""

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page

DESKTOP, PHONE, SMALL_PHONE, PAPER = 1280, 390, 360, 718  # CSS pixels; A4 within its margins
GRAVE = ("serious", "critical")
# The rows of a table are styled alike, and so are the words of code: some speak for all
CONTEXT = {"exclude": ["tbody tr:nth-child(n+4)", ".highlight span:nth-child(n+12)"]}


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
