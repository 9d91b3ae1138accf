"""A browser for the tests of the report (Debian's Chromium, without a network), and a small study.

Without Chromium the tests that ask for it are skipped; with `UNLEARNLIB_BROWSER=required`, as in CI,
they fail.
"""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, Request, Route, sync_playwright
from report_tasks import data_notebook, gkt_notebook, write

CHROMIUM = ["chromium", "chromium-browser", "google-chrome"]
QUIET = [  # Chromium's own errands would look like the report's
    *["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-quic", "--disable-sync"],
    *["--disable-background-networking", "--disable-component-update"],
]


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
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a root with two notebooks, a headline table and provenance."""
    monkeypatch.setenv("UNLEARNLIB_ROOT", str(tmp_path))
    write(tmp_path, n12_gkt=gkt_notebook(), n01_data=data_notebook())
    reports = tmp_path / "reports" / "quick"
    for folder in (reports / "tables", reports / "metrics", tmp_path / "unlearnlib" / "zero_shot"):
        folder.mkdir(parents=True, exist_ok=True)
    (tmp_path / "unlearnlib" / "zero_shot" / "gkt.py").touch()
    (reports / "tables" / "headline.csv").write_text("method,retain\ngkt,97.12\nm & m,\n")
    facts = {"data_source": "mnist-5k", "seeds": [0, 1], "versions": {"python": "3.11"}}
    (reports / "metrics" / "provenance.json").write_text(json.dumps(facts))
    return tmp_path
