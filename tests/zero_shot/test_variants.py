"""The rows of the main table, the tasks of a stage, and the runs that the table is made of."""

from pathlib import Path

import pytest
from toys import record, tiny

from unlearnlib.data.requests import Classes
from unlearnlib.pipeline.parameters import ParameterError
from unlearnlib.pipeline.paths import Place, place
from unlearnlib.pipeline.records import Record
from unlearnlib.zero_shot import mm_noise, stopping, trials, variants

SETTINGS = {"per_class": 4, "steps": 3}


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Place:
    monkeypatch.setenv("UNLEARNLIB_ROOT", str(tmp_path))
    return place("toy")


def tasks(here: Place, changes: dict) -> dict:
    return variants.tasks(
        here, mm_noise.METHOD, Classes([1]), settings=SETTINGS, variants=changes, seeds=[0, 2]
    )


def test_there_is_a_task_for_each_variant_and_seed(here: Place):
    found = tasks(here, {"mm_noise": {}, "gentle": {"rate": 0.001}})
    assert list(found) == ["mm_noise-seed0", "mm_noise-seed2", "gentle-seed0", "gentle-seed2"]
    assert found["gentle-seed2"] == {
        "original": here.runs / "train" / "seed2.pt",
        "method": mm_noise.METHOD,
        "request": Classes([1]),
        "settings": mm_noise.Settings(per_class=4, steps=3, rate=0.001),
        "seed": 2,
    }


def test_a_change_that_the_method_does_not_take_is_named(here: Place):
    with pytest.raises(ParameterError, match="noisesteps"):
        tasks(here, {"mm_noise": {}, "typo": {"noisesteps": 1}})


def test_runs_are_found_by_method_and_seed(monkeypatch: pytest.MonkeyPatch, here: Place):
    files = ["train/seed0", "train/seed1", "retrain/seed0", "gkt/gkt_entropy_1-seed0"]
    files += ["deep_inversion/deep_inversion_100-seed1", "arena/newton-seed0", "delete/seed1"]
    files += ["masking/masked_logit-seed0", "masking/masked_distillation-seed0"]
    for name in files:
        (here.runs / name).parent.mkdir(parents=True, exist_ok=True)
        record(here.runs / f"{name}.pt", tiny(monkeypatch))
    found = variants.runs(here)
    assert list(found) == [
        "original-seed0", "original-seed1", "retrain-seed0", "delete-seed1",
        "masked_distillation-seed0", "masked_logit-seed0", "gkt_entropy_1-seed0",
        "deep_inversion_100-seed1",
    ]  # fmt: skip
    assert found["original-seed1"] == here.runs / "train" / "seed1.pt"


def test_rows_have_titles_for_people():
    titles = [row.title for row in variants.ROWS.values()]
    assert len(set(titles)) == len(titles)
    assert not any("_" in title for title in titles)


def test_rows_say_what_a_method_reads_and_how_much_it_was_tuned():
    read = {name for name, row in variants.ROWS.items() if row.reads != "nothing"}
    assert read == {"original", "retrain", "delete"}
    assert variants.ROWS["delete"].reads == "the forgotten classes"
    assert variants.ROWS["masked_logit"].tuned == 0 and variants.ROWS["masked_logit"].tried == "0"
    assert variants.ROWS["gkt_prior"].tuned is None
    assert variants.ROWS["gkt_prior"].tried == "not kept"
    assert variants.ROWS["masked_distillation"].tuned == trials.count("masked_distillation")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("gkt_prior", "GKT with prior"),
        ("gkt_entropy_1", "GKT, entropy criterion, 1"),
        ("gkt_prior_entropy_0.5", "GKT with prior, entropy criterion, 0.5"),
        ("mm_noise_frozen_gentle", "M-M noise, frozen gentle"),
        ("deep_inversion_1000", "deep inversion 1000"),
        ("gktx", "gktx"),
    ],
)
def test_a_variant_is_called_after_its_row(name: str, expected: str):
    assert variants.title(name) == expected


def test_the_cost_of_a_stop_has_its_share_of_the_transfer():
    assert variants.cost(Record("one", {}, 5.0, {"unlearning": 4.0})) == 5.0
    assert variants.cost(Record("one", {}, 5.0, {stopping.EARLIER: 2.5})) == 7.5
