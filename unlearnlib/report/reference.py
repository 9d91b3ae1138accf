"""The library's own words: a page for each module of the science, made from docstrings by pdoc.

python -m unlearnlib.report.reference --profile quick

The pages open from disk with the network off, like the report that links to them.
"""

import argparse
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

import pdoc

from unlearnlib.pipeline.paths import place, root

# the rooms that a reader's own code may import
ROOMS = ("data", "models", "zero_shot", "influence", "groups", "measures", "arena", "own")


def build(target: Path) -> Path:
    """Write the pages into a folder, in place of what was there, and return their index."""
    # sources are a click away in the project, and would make the pages five times as large
    pdoc.render.configure(
        docformat="google", show_source=False, search=False, footer_text="unlearnlib"
    )
    target.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=target.parent, prefix=".reference-") as folder:
        made = Path(folder) / "reference"
        pdoc.pdoc(*(f"unlearnlib.{room}" for room in ROOMS), output_directory=made)
        shutil.rmtree(target, ignore_errors=True)
        made.rename(target)
    return target / "index.html"


def main(arguments: list[str] | None = None) -> None:
    """Build the pages of the profile that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--profile", required=True, help="whose report links to them")
    index = build(place(parser.parse_args(arguments).profile).reports / "reference")
    print(f"reference: {index.relative_to(root())}")


if __name__ == "__main__":
    main()
