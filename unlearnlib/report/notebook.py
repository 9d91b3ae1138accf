"""What every notebook does with a table: keep it for the report, and show it under a caption."""

import re
from collections.abc import Hashable

import numpy as np
import pandas as pd
from IPython.display import display

from unlearnlib.pipeline.paths import Place, write_atomic

LEAST_P = 0.0001  # below it a p-value is written as smaller


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
    # no text is cut off and no row left out; the report folds long tables
    with pd.option_context("display.max_colwidth", None, "display.max_rows", None):
        display(_led_by_names(for_people(shown)), metadata={"caption": caption})


def _led_by_names(table: pd.DataFrame) -> pd.DataFrame:
    """Let the first column lead the rows in place of numbers that count them, which say nothing."""
    counted = isinstance(table.index, pd.RangeIndex) and table.index.name is None
    if not counted or table.columns.nlevels > 1 or table.shape[1] < 2:
        return table
    return table.set_index(table.columns[0])


def for_people(table: pd.DataFrame) -> pd.DataFrame:
    """Write a table as a reader wants it, whatever it is called and holds in the files.

    Headings have spaces for underscores, so that they can break. What is missing becomes ``-``, what
    is infinite ``∞``, minus zero zero, and whole numbers lose their ``.0`` where they are counts, in
    columns that hold any of these; p-values have four digits, or are below `LEAST_P`; others stay
    numbers.
    """
    shown = table.rename(columns=_heading).rename_axis(
        index=[_heading(name) for name in table.index.names],
        columns=[_heading(name) for name in table.columns.names],
    )
    for place in range(shown.shape[1] if len(shown) else 0):
        shown.isetitem(place, _column(shown.iloc[:, place]))
    return shown


def _heading(name: Hashable) -> Hashable:
    return name.replace("_", " ") if isinstance(name, str) else name


def _column(values: pd.Series) -> pd.Series:
    numbers = values.dtype == object and all(map(_is_number, values.dropna()))
    if numbers and values.notna().any():
        values = values.astype(float)
    if pd.api.types.is_float_dtype(values) or pd.api.types.is_integer_dtype(values):
        known = values.dropna().astype(float)
        known = known[np.isfinite(known)]
        if _p_values(values):
            return values.map(_written_p)
        whole = bool(len(known)) and (known % 1 == 0).all()
        counts = whole and (known.abs().max() >= 1000 or _counts(values))
        negative_zero = ((known == 0) & np.signbit(known)).any()
        if len(known) == len(values) and not counts and not negative_zero:
            return values
        digits = 0 if whole else _digits(known)
        return values.map(lambda value: _written(value, digits))
    return values.astype(object).where(values.notna(), "-") if values.isna().any() else values


def _p_values(values: pd.Series) -> bool:
    """Tell by its heading whether a column holds p-values."""
    return isinstance(values.name, str) and bool(
        re.fullmatch(r"(.* )?p( holm| equivalent)?", values.name)
    )


def _written_p(value: float) -> str:
    if pd.isna(value):
        return "-"
    return f"< {LEAST_P:.4f}" if value < LEAST_P else f"{value:.4f}"


def _counts(values: pd.Series) -> bool:
    """Tell whether a column holds numbers of repeats that something made floats."""
    return values.name == "n" and pd.api.types.is_float_dtype(values)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)


def _digits(known: pd.Series) -> int:
    """Return the digits after the point that the values have, at six significant ones."""
    found = [len(f"{value:.6g}".partition(".")[2].partition("e")[0]) for value in known]
    return max(found, default=0)


def _written(value: float, digits: int) -> str:
    if pd.isna(value):
        return "-"
    if not np.isfinite(value):
        return "∞" if value > 0 else "-∞"
    if 0 < abs(value) < 10**-4:
        return f"{value:.2g}"
    written = f"{value:,.{digits}f}"
    return written.lstrip("-") if float(written.replace(",", "")) == 0 else written
