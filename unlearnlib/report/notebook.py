"""What every notebook does with a table: keep it for the report, and show it under a caption."""

import numpy as np
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
    """Show a table under a caption, which the report repeats; see `for_people`."""
    shown = table.to_frame() if isinstance(table, pd.Series) else table
    with pd.option_context("display.max_colwidth", None):  # no text is cut off
        display(for_people(shown), metadata={"caption": caption})


def for_people(table: pd.DataFrame) -> pd.DataFrame:
    """Write the values of a table that are of no use to a reader as they stand.

    What is missing becomes ``-``, what is infinite ``∞``, minus zero zero, and whole numbers lose
    their ``.0`` where they are counts, in columns that hold any of these; others stay numbers.
    """
    return table.apply(_column) if len(table) else table


def _column(values: pd.Series) -> pd.Series:
    if pd.api.types.is_float_dtype(values) or pd.api.types.is_integer_dtype(values):
        known = values.dropna().astype(float)
        known = known[np.isfinite(known)]
        counts = bool(len(known)) and (known % 1 == 0).all() and known.abs().max() >= 1000
        negative_zero = ((known == 0) & np.signbit(known)).any()
        if len(known) == len(values) and not counts and not negative_zero:
            return values
        digits = 0 if counts or (known % 1 == 0).all() else _digits(known)
        return values.map(lambda value: _written(value, digits))
    return values.astype(object).where(values.notna(), "-") if values.isna().any() else values


def _digits(known: pd.Series) -> int:
    """Return the digits after the point that the values have, at six significant ones."""
    return max(len(f"{value:.6g}".partition(".")[2].partition("e")[0]) for value in known)


def _written(value: float, digits: int) -> str:
    if pd.isna(value):
        return "-"
    if not np.isfinite(value):
        return "∞" if value > 0 else "-∞"
    if 0 < abs(value) < 10**-4:
        return f"{value:.2g}"
    written = f"{value:,.{digits}f}"
    return written.lstrip("-") if float(written.replace(",", "")) == 0 else written
