"""The README says what the committed report says."""

import pandas as pd
import pytest

from unlearnlib.pipeline import paths
from unlearnlib.report import readme


def test_the_block_is_replaced_and_nothing_else() -> None:
    text = f"before\n{readme.START}\nold\n{readme.END}\nafter\n"
    table = pd.DataFrame({"method": ["gold"], "retain %": ["99.25 ± 0.10"]})
    expected = "| method | retain % |\n| --- | --- |\n| gold | 99.25 ± 0.10 |"
    done = readme.with_results(text, table)
    assert done == f"before\n{readme.START}\n{expected}\n{readme.END}\nafter\n"
    assert readme.with_results(done, table) == done


def test_a_readme_without_the_block_is_refused() -> None:
    with pytest.raises(ValueError, match="put them back"):
        readme.with_results("no block", pd.DataFrame({"method": ["gold"]}))


def test_the_committed_readme_is_in_step_with_the_committed_table() -> None:
    assert (paths.root() / "README.md").read_text(encoding="utf-8") == readme.updated(), (
        "run python -m unlearnlib.report.readme"
    )


def test_the_committed_picture_is_that_of_the_committed_page() -> None:
    assert "](reports/standard/picture.png)" in (paths.root() / "README.md").read_text("utf-8")
    committed = paths.place("standard").reports / "picture.png"
    assert committed.read_bytes() == readme.picture(), "run python -m unlearnlib.report.readme"
