"""What every notebook does with a table: keep it for the report, and show it under a caption."""

import pandas as pd
from IPython.display import display

from unlearnlib.pipeline.paths import Place, write_atomic


def save_table(
    here: Place, name: str, table: pd.DataFrame, *, index: bool = False, digits: str | None = None
) -> None:
    """Write a table to ``tables/<name>.csv`` of a profile, at once or not at all.

    Args:
        here: files of the profile.
        name: of the table.
        table: what to write.
        index: whether its index is a column of the file.
        digits: format of numbers such as ``"%.6g"``; all their digits without it.
    """
    content = table.to_csv(index=index, float_format=digits)
    write_atomic(here.tables / f"{name}.csv", content.encode())


def show_table(table: pd.DataFrame | pd.Series, caption: str) -> None:
    """Show a table under a caption, which the report repeats."""
    shown = table.to_frame() if isinstance(table, pd.Series) else table
    display(shown, metadata={"caption": caption})
