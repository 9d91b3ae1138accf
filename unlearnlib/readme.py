"""Keep the README's results table equal to the committed report's.

python -m unlearnlib.readme
"""

import sys

import pandas as pd

from unlearnlib.paths import place, root, write_atomic

START, END = "<!-- results: python -m unlearnlib.readme -->", "<!-- end of results -->"


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


if __name__ == "__main__":
    write_atomic(root() / "README.md", updated().encode())
    sys.exit(0)
