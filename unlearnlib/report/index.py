"""The first page of a report: what was found, in a figure and in sentences, then where it is shown."""

import base64
import csv
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

import yaml

from unlearnlib.pipeline.paths import Place, root
from unlearnlib.report import figures, findings, overview
from unlearnlib.report.findings import Found

PARTS = {  # by the number of the first page
    0: "Data and original model",
    10: "Forget a class, without data",
    20: "Forget a group, by influence",
    40: "One arena for every method",
    50: "Hands on",
    60: "Another data set, and the machine",
}
QUESTIONS = {  # of the parts that have findings
    10: "A zero-shot method may read the trained model and nothing else: no training image, no test "
    "image, not even to choose when to stop.",
    20: "The change that leaving a group of items out would make to the parameters is estimated from "
    "gradients and curvature, and compared with models that were really trained without the group.",
    40: "Every method gets the same requests, and is compared with models that never saw the data: by "
    "its answers, by attacks, by how fast it learns again, with a second retrained model as the "
    "yardstick of luck.",
}
MARKS = {"holds": "holds", "does not hold": "does not hold", "open": "cannot be told"}
PLURALS = {"holds": "hold", "does not hold": "do not hold", "open": "cannot be told"}


class Shown(Protocol):
    """A page, as far as the index shows it; see `pages.Page`."""

    stem: str
    former: str


@dataclass
class Part:
    """A part of the study: its pages, and what was found there beside what opens the index."""

    label: str
    question: str
    pages: list[Shown] = field(default_factory=list)
    found: list[Found] = field(default_factory=list)


def context(pages: Sequence[Shown], where: Place) -> dict[str, Any]:
    """Gather what the template of the index shows.

    Everything is read from the tables of the profile; what has not run is left out.

    Args:
        pages: of the report, in order.
        where: files of the profile.
    """
    stems = {page.stem for page in pages}
    found = [one for one in findings.read(where.tables).values() if one.finding.page in stems]
    try:
        arena = overview.read(where.tables)
    except findings.Absent:
        arena = None
    return {
        "parts": parts(pages, found),
        "front": [one for one in found if one.finding.front],
        "tally": tally(found),
        "marks": MARKS,
        "hero": picture(arena) if arena else None,
        "advice": [_written(row) for row in overview.advice(arena)] if arena else [],
        "headline": headline(where.tables / "headline.csv"),
        "files": files(where),
        "citation": citation(),
        "former": defaultdict(str, {page.stem: page.former for page in pages}),
        "reference": (where.reports / "reference" / "index.html").is_file(),
    }


def parts(pages: Sequence[Shown], found: Sequence[Found]) -> dict[int, Part]:
    """Group pages and findings into the parts, by the number that a part's first page may have."""
    grouped: dict[int, Part] = {}
    for page in pages:
        first = _part(page.stem)
        part = grouped.setdefault(first, Part(PARTS[first], QUESTIONS.get(first, "")))
        part.pages.append(page)
    for one in found:
        if not one.finding.front:
            grouped[_part(one.finding.page)].found.append(one)
    return grouped


def _part(name: str) -> int:
    """Return the part that a page belongs to, from what its name begins with."""
    number = re.match(r"\d*", name)[0]
    return max(first for first in PARTS if first <= int(number or 0))


def tally(found: Sequence[Found]) -> str:
    """Say how many of the claims hold, in a sentence; nothing where there are none."""
    if not found:
        return ""
    counts = {verdict: sum(one.verdict == verdict for one in found) for verdict in MARKS}
    said = ", ".join(
        f"{count} {MARKS[verdict] if count == 1 else PLURALS[verdict]}"
        for verdict, count in counts.items()
        if count
    )
    return f"Claims put to the test on this data set, with these repeats: {len(found)}; {said}."


def picture(arena: overview.Arena) -> dict[str, str]:
    """Draw the figure that opens the index, with its description and caption."""
    figures.theme()
    content = base64.b64encode(figures.png(overview.hero(arena))).decode()
    return {
        "source": f"data:image/png;base64,{content}",
        "alt": "Methods in rows, and in columns what each keeps, names, how soon it learns again, how "
        "often an attacker tells it from a retrained model, and what it costs.",
        "caption": overview.HERO,
        "request": arena.request.replace("_", " "),
        "page": "41_arena",
        "n": str(len(arena.repeats(overview.GOLD, "retain_accuracy"))),
    }


def _written(row: overview.Advice) -> list[str]:
    """Write a row of the card for people."""
    if not row.title:
        return [row.have, row.want, "none of those here", "-", "-", "-"]
    again = f"{row.again:.2f}" if isfinite(row.again) else "-"
    cost = f"{row.cost:.2f}" if isfinite(row.cost) else "-"
    return [row.have, row.want, row.title, row.kept, again, cost]


def headline(path: Path) -> list[list[str]]:
    """Read the rows of the headline table, none if there is no such file."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return [row for row in csv.reader(file) if row]


def files(where: Place) -> dict[str, list[str]]:
    """Name the files that the index links to, relative to it."""
    groups = {
        "Tables (CSV)": sorted(where.tables.glob("*.csv")),
        "Executed notebooks": sorted(where.notebooks.glob("*.ipynb")),
    }
    return {
        title: [quote(path.relative_to(where.reports).as_posix()) for path in paths]
        for title, paths in groups.items()
    }


def citation() -> dict[str, str]:
    """Read how the study is to be cited; nothing where the project does not say."""
    path = root() / "CITATION.cff"
    if not path.is_file():
        return {}
    said = yaml.safe_load(path.read_text(encoding="utf-8"))
    names = [person.get("name") or f"{person['given-names']} {person['family-names']}"
             for person in said["authors"]]  # fmt: skip
    return {
        "authors": ", ".join(names),
        "title": said["title"],
        "version": str(said["version"]),
        "year": str(said["date-released"])[:4],
    }
