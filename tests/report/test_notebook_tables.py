"""Tables of notebooks: kept whole for the report, and shown under their caption."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from unlearnlib.pipeline.paths import Place, place
from unlearnlib.pipeline.records import Record
from unlearnlib.report import figures, notebook, trainings

TABLE = pd.DataFrame({"method": ["gkt", "gold"], "value": [1 / 3, float("nan")]})


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.setenv("UNLEARNLIB_ROOT", str(tmp_path))
    return place("quick")


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[tuple[object, dict]]:
    """Collect what is displayed, with its metadata."""
    found: list[tuple[object, dict]] = []

    def display(content: object, *, metadata: dict, raw: bool = False) -> None:
        found.append((content, metadata))

    for module in (notebook, figures):
        monkeypatch.setattr(module, "display", display)
    return found


def test_a_table_is_kept_with_all_its_digits(here: Place):
    notebook.save_table(here, "t", TABLE)
    assert (here.tables / "t.csv").read_text() == "method,value\ngkt,0.3333333333333333\ngold,\n"
    pd.testing.assert_frame_equal(pd.read_csv(here.tables / "t.csv"), TABLE)
    assert [file.name for file in here.tables.iterdir()] == ["t.csv"]


def test_the_index_and_fewer_digits_are_kept_where_asked(here: Place):
    notebook.save_table(here, "t", TABLE.set_index("method"), index=True, digits="%.3g")
    assert (here.tables / "t.csv").read_text() == "method,value\ngkt,0.333\ngold,\n"
    notebook.save_table(here, "t", TABLE.set_index("method"))
    assert (here.tables / "t.csv").read_text().startswith("value\n0.33333")


def test_a_table_that_cannot_be_written_leaves_the_former_one(
    here: Place, monkeypatch: pytest.MonkeyPatch
):
    notebook.save_table(here, "t", TABLE)
    before = (here.tables / "t.csv").read_bytes()
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        notebook.save_table(here, "t", TABLE.tail(1))
    assert (here.tables / "t.csv").read_bytes() == before
    assert [file.name for file in here.tables.iterdir()] == ["t.csv"]


def test_a_table_is_shown_under_its_caption(shown: list):
    named = TABLE.set_index("method")
    notebook.show_table(named, "Percent")
    notebook.show_table(TABLE["value"], "A column")
    (frame, one), (column, other) = shown
    pd.testing.assert_frame_equal(frame, notebook.for_people(named))
    pd.testing.assert_frame_equal(column, notebook.for_people(TABLE[["value"]]))
    assert (one, other) == ({"caption": "Percent"}, {"caption": "A column"})


# ----------------------------------------------------------------------------------- trainings


TRAINED = {
    f"seed{seed}": Record(
        f"seed{seed}",
        {"train_images": 90 + seed, "validation_accuracy": accuracy, "losses": losses},
        seconds=1.0,
        arguments={"seed": seed},
    )
    for seed, accuracy, losses in ((3, 99.127, [2.0, 0.5]), (1, 98.0, [1.0, 0.25]))
}


def test_trainings_are_summed_up_by_seed():
    found = trainings.summary(TRAINED)
    assert found.index.tolist() == [3, 1] and found.index.name == "seed"
    assert found["training images"].tolist() == [93, 91]
    assert found["validation accuracy %"].tolist() == [99.13, 98.0]


def test_losses_are_drawn_by_epoch(shown: list, monkeypatch: pytest.MonkeyPatch):
    spread, drawn = figures.spread, []

    def watched(axis: object, x: range, repeats: np.ndarray, **style: object) -> None:
        drawn.append((list(x), repeats.tolist()))
        spread(axis, x, repeats, **style)

    monkeypatch.setattr(figures, "spread", watched)
    trainings.show_losses(TRAINED)
    assert drawn == [([1, 2], [[2.0, 0.5], [1.0, 0.25]])]
    ((_, metadata),) = shown
    assert "band: their range" in metadata["caption"]
    assert "loss" in metadata["image/png"]["alt"]


def test_values_that_mean_nothing_to_a_reader_are_written_for_people():
    table = pd.DataFrame(
        {
            "gap": [-0.0, 0.25, 1.5],
            "stop": [None, 120.0, 90.0],
            "parameters": [36746.0, 1642.0, 3.0],
            "margin": [np.inf, 0.5, -np.inf],
            "p": [1e-12, 0.04, np.nan],
            "said": ["a", None, "b"],
            "count": pd.array([1, None, 30], dtype="Int64"),
        }
    )
    shown = notebook.for_people(table)
    assert shown["gap"].tolist() == ["0.00", "0.25", "1.50"]
    assert shown["stop"].tolist() == ["-", "120", "90"]
    assert shown["parameters"].tolist() == ["36,746", "1,642", "3"]
    assert shown["margin"].tolist() == ["∞", "0.5", "-∞"]
    assert shown["p"].tolist() == ["< 0.0001", "0.0400", "-"]
    assert shown["said"].tolist() == ["a", "-", "b"]
    assert shown["count"].tolist() == ["1", "-", "30"]


def test_other_columns_stay_as_they_are():
    table = pd.DataFrame({"x": [0.5, 98.25], "n": [3, 5], "name": ["a", "b"], "yes": [True, False]})
    assert notebook.for_people(table).equals(table)
    assert notebook.for_people(table.iloc[:0]).empty


def test_headings_can_break_and_mixed_columns_are_numbers():
    index = pd.Index(["a_b", "c"], name="a_key")
    table = pd.DataFrame(
        {"retain_mark": [97.12, "-"], "low": pd.Series([67.0, None], dtype=object).to_list(),
         "n": [2.0, 3.0], 5: [True, None]}, index=index,
    )  # fmt: skip
    table["high"] = pd.Series([67.0, 97.25], index=index, dtype=object)
    shown = notebook.for_people(table)
    assert list(shown.columns) == ["retain mark", "low", "n", 5, "high"]
    assert shown.index.name == "a key" and list(shown.index) == ["a_b", "c"]
    assert shown["n"].tolist() == ["2", "3"] and shown["low"].tolist() == ["67", "-"]
    assert shown["high"].dtype == float and shown["retain mark"].tolist() == [97.12, "-"]
    assert next(iter(table.columns)) == "retain_mark"


def test_merged_headings_and_double_ones_stay():
    columns = pd.MultiIndex.from_tuples([("a_b", "x"), ("a_b", "y"), ("a_b", "y")])
    table = pd.DataFrame([[1.0, float("nan"), 3.0], [2.5, 1.0, -0.0]], columns=columns)
    shown = notebook.for_people(table)
    assert list(shown.columns) == [("a b", "x"), ("a b", "y"), ("a b", "y")]
    assert shown.iloc[:, 1].tolist() == ["-", "1"] and shown.iloc[:, 2].tolist() == ["3", "0"]


def test_a_column_of_nothing_is_dashes():
    table = pd.DataFrame({"never": [float("nan"), float("nan")], "nor": [None, None]})
    assert notebook.for_people(table).to_numpy().tolist() == [["-", "-"], ["-", "-"]]


def test_a_small_p_is_never_shown_as_nought():
    table = pd.DataFrame({"p_holm": [0.0, 1e-5], "p equivalent": [1.0, 0.03], "step": [0.0, 1e-5]})
    shown = notebook.for_people(table)
    assert shown["p holm"].tolist() == ["< 0.0001", "< 0.0001"]
    assert shown["p equivalent"].tolist() == ["1.0000", "0.0300"]
    assert shown["step"].tolist() == [0.0, 1e-5]


def test_rows_are_led_by_names_and_not_by_numbers_that_count_them(shown: list):
    table = pd.DataFrame({"space": ["a", "b"], "n": [3, 5]})
    for one in (table, table.rename_axis("repeat"), table[["n"]]):
        notebook.show_table(one, "told")
    led, named, alone = (content for content, _ in shown)
    assert led.index.tolist() == ["a", "b"] and list(led.columns) == ["n"]
    assert list(named.columns) == ["space", "n"] and list(alone.columns) == ["n"]
