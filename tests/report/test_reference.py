"""The reference has a page for each module of the science, stands alone, and replaces an older one."""

import re
from pathlib import Path

import pytest
from bs4 import BeautifulSoup
from conftest import ROOT

from unlearnlib.report import reference


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reports") / "reference"
    folder.mkdir()
    (folder / "old.html").touch()
    assert reference.build(folder) == folder / "index.html"
    return folder


def test_every_module_of_the_science_has_a_page(made: Path):
    wanted = {
        f"unlearnlib/{room}/{path.stem}.html"
        for room in reference.ROOMS
        for path in (ROOT / "unlearnlib" / room).glob("*.py")
        if path.stem != "__init__"
    }
    found = {path.relative_to(made).as_posix() for path in made.rglob("*.html")}
    assert wanted <= found
    assert "old.html" not in found
    assert not list(made.parent.glob(".reference-*"))


def test_pages_load_nothing_and_tell_nothing_of_the_machine(made: Path):
    for path in made.rglob("*.html"):
        text = path.read_text(encoding="utf-8")
        soup = BeautifulSoup(text, "html.parser")
        assert not soup.find_all("script", src=True) and not soup.find_all("link", href=True)
        assert str(ROOT) not in text and not re.search(r"\bat 0x[0-9a-f]{6}", text), path.name


def test_docstrings_are_read_as_they_are_written(made: Path):
    page = BeautifulSoup((made / "unlearnlib/zero_shot/gkt.html").read_text(), "html.parser")
    assert "arXiv 2201.05629" in page.get_text()
    terms = [term.get_text() for term in page.select("#Transfer .docstring li strong")]
    assert "generator_halving:" in terms
