"""Keep the README's results table and its picture equal to the committed report's.

python -m unlearnlib.report.readme
"""

import base64
import sys

import nbformat
import pandas as pd

from unlearnlib.pipeline.paths import place, root, write_atomic

START, END = "<!-- results: python -m unlearnlib.report.readme -->", "<!-- end of results -->"


def with_results(text: str, table: pd.DataFrame) -> str:
    """Return a README with its block of results replaced by a table in Markdown.

    Raises:
        ValueError: the text has no such block.
    """
    before, start, rest = text.partition(START)
    _, end, after = rest.partition(END)
    if not (start and end):
        raise ValueError(f"README.md has no block between {START} and {END}; put them back")
    rows = [list(table), ["---"] * table.shape[1], *table.astype(str).to_numpy().tolist()]
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([before + start, *lines, end]) + after


def updated() -> str:
    """Return the README with the headline table of the standard profile."""
    table = pd.read_csv(place("standard").tables / "headline.csv", dtype=str).fillna("-")
    return with_results((root() / "README.md").read_text(encoding="utf-8"), table)


def picture() -> bytes:
    """Return the first figure of the standard profile's comparison, a PNG."""
    path = place("standard").notebooks / "16_comparison.ipynb"
    outputs = (o for c in nbformat.read(path, as_version=4).cells for o in c.get("outputs", []))
    found = next(o.data["image/png"] for o in outputs if "image/png" in o.get("data", {}))
    return base64.b64decode(found)


if __name__ == "__main__":
    write_atomic(place("standard").reports / "picture.png", picture())
    write_atomic(root() / "README.md", updated().encode())
    sys.exit(0)
