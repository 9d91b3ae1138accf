"""Parameters: what a profile changes in the base, and what a notebook is handed of it."""

from pathlib import Path

import pytest
import yaml

from unlearnlib.pipeline import parameters
from unlearnlib.pipeline.parameters import ParameterError, for_notebook, load, merged

BASE = """
study:
  seeds: [0, 1, 2]
  width: 1.0
train:
  epochs: 3
gkt:
  steps: 100     # pseudo-batches
  rate: 1.0e-3   # Adam
  variants:
    plain: {}
    gentle: &gentle { rate: 0.1, steps: 5 }
    gentler: { <<: *gentle, steps: 9 }
evaluation: {}
"""
QUICK = """
study:
  seeds: [0, 1]
gkt:
  steps: 20
  variants:
    gentle: { steps: 1 }
"""


@pytest.fixture(autouse=True)
def params(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write the parameter files of a small project."""
    monkeypatch.setenv("UNLEARNLIB_ROOT", str(tmp_path))
    folder = tmp_path / "params"
    folder.mkdir()
    (folder / "base.yaml").write_text(BASE)
    (folder / "quick.yaml").write_text(QUICK)
    (folder / "standard.yaml").write_text("# nothing differs\n")
    (folder / "profiles.yaml").write_text("profiles: [quick]\n")
    return folder


# ------------------------------------------------------------------------------------ merging


def test_a_profile_is_the_base_but_for_what_it_changes() -> None:
    base = yaml.safe_load(BASE)
    assert load("standard") == base
    found = load("quick")
    assert found["study"] == {"seeds": [0, 1], "width": 1.0}
    assert found["gkt"] | {"variants": None} == {"steps": 20, "rate": 0.001, "variants": None}
    assert found["gkt"]["variants"] == {
        "plain": {},
        "gentle": {"rate": 0.1, "steps": 1},
        "gentler": {"rate": 0.1, "steps": 9},
    }
    assert list(found) == list(base)


@pytest.mark.parametrize(
    ("base", "changed", "expected"),
    [
        ({"a": {"b": 1, "c": 2}}, {"a": {"_replace_": True, "d": 3}}, {"a": {"d": 3}}),
        ({"a": {"b": 1}}, {"a": {"_replace_": True}}, {"a": {}}),
        ({"a": {"b": 1}}, {"a": {"_replace_": False, "c": 2}}, {"a": {"b": 1, "c": 2}}),
        ({"a": {"b": 1}}, {"c": {"_replace_": True, "d": 1}}, {"a": {"b": 1}, "c": {"d": 1}}),
        ({"a": {"b": 1}}, {"a": None}, {"a": None}),
        ({"a": None}, {"a": {"b": 1}}, {"a": {"b": 1}}),
        ({"a": [1, 2]}, {"a": [3]}, {"a": [3]}),
        ({"a": {"b": {"c": 1, "d": 2}}}, {"a": {"b": {"c": 3}}}, {"a": {"b": {"c": 3, "d": 2}}}),
    ],
)
def test_mappings_merge_and_all_else_replaces(base: dict, changed: dict, expected: dict) -> None:
    before = repr((base, changed))
    assert merged(base, changed) == expected
    assert repr((base, changed)) == before


def test_the_text_of_parameters_says_the_same_without_references() -> None:
    sections = load("quick") | {"more": {"λ": [None, True, "yes", "1", 1e-7, 1.0, 1]}}
    text = parameters.text(sections)
    assert yaml.safe_load(text) == sections
    assert "&" not in text
    assert "*" not in text
    assert "λ" in text
    assert list(yaml.safe_load(text)) == list(sections)


# ------------------------------------------------------------------------------- what is wrong


@pytest.mark.parametrize("profile", ["quik", "profiles", "base", "../params/quick", "../x"])
def test_unknown_profiles_are_answered_with_those_there(profile: str) -> None:
    with pytest.raises(
        ParameterError, match=f"no profile '{profile}'; there are: quick, standard$"
    ):
        load(profile)


@pytest.mark.parametrize(
    ("value", "spelling"),
    [
        ("1e-3", "1.0e-3"),
        ("[1, 5e4]", r"5.0e\+4"),
        ("{a: 2e+3}", r"2.0e\+3"),
        ("-1.5e3", r"-1.5e\+3"),
    ],
)
def test_numbers_that_yaml_reads_as_strings_are_refused(
    params: Path, value: str, spelling: str
) -> None:
    (params / "quick.yaml").write_text(f"gkt:\n  rate: {value}\n")
    message = rf"params/quick.yaml: gkt\.rate.* = .*e.*: a string to YAML; write it as {spelling}$"
    with pytest.raises(ParameterError, match=message):
        load("quick")


@pytest.mark.parametrize("number", ["1.0e-3", "-1.5e+3", "5.0e+4", "2.0e+3"])
def test_the_spelling_that_is_advised_is_a_number(number: str) -> None:
    assert isinstance(yaml.safe_load(number), float)


@pytest.mark.parametrize("file", ["base", "quick"])
@pytest.mark.parametrize(
    ("text", "line"),
    [("a: {}\na: {}\n", 2), ("gkt:\n  x: 1\n  y: 2\n  x: 1\n", 4), ("gkt: {x: {y: 1, y: 1}}\n", 1)],
)
def test_a_key_that_is_given_twice_is_refused(
    params: Path, file: str, text: str, line: int
) -> None:
    (params / f"{file}.yaml").write_text(text)
    with pytest.raises(
        ParameterError, match=rf"params/{file}.yaml, line {line}: the key '[axy]' is given twice"
    ):
        load("quick")


def test_an_empty_section_is_explained(params: Path) -> None:
    (params / "quick.yaml").write_text("gkt:\n")
    with pytest.raises(
        ParameterError, match=r"'gkt' of params/quick.yaml holds no keys; write `gkt: \{\}`"
    ):
        load("quick")


def test_what_is_no_yaml_is_named(params: Path) -> None:
    (params / "quick.yaml").write_text("gkt: [1\n")
    with pytest.raises(ParameterError, match=r"params/quick.yaml is not what YAML can read"):
        load("quick")
    (params / "quick.yaml").write_text("[1]\n")
    with pytest.raises(ParameterError, match=r"params/quick.yaml holds no sections but list"):
        load("quick")


def test_without_a_base_there_is_nothing_to_change(params: Path) -> None:
    (params / "base.yaml").unlink()
    with pytest.raises(ParameterError, match=r"no params/base.yaml"):
        load("quick")


# ----------------------------------------------------------------------- what a notebook is given


def test_a_notebook_gets_its_section_and_the_shared_keys_that_it_declares() -> None:
    given = for_notebook("quick", "12_gkt", ["profile", "steps", "seeds", "variants", "rate"])
    assert given == {
        "seeds": [0, 1], "steps": 20, "rate": 0.001, "variants": load("quick")["gkt"]["variants"],
    }  # fmt: skip
    assert list(given) == ["steps", "seeds", "variants", "rate"]
    assert for_notebook("quick", "15_evaluation", {"width"}) == {"width": 1.0}


def test_gold_is_handed_the_recipe_of_the_originals() -> None:
    assert for_notebook("quick", "03_retrain", ["seeds", "epochs"]) == {
        "seeds": [0, 1],
        "epochs": 3,
    }


def test_its_own_key_wins_over_a_shared_one(params: Path) -> None:
    (params / "quick.yaml").write_text("evaluation: {width: 2}\n")
    assert for_notebook("quick", "15_evaluation", {"width"}) == {"width": 2}


def test_a_key_that_the_notebook_does_not_declare_is_named() -> None:
    with pytest.raises(ParameterError, match="declares no 'rate'.*did you mean 'rates'"):
        for_notebook("quick", "12_gkt", {"steps", "rates", "variants"})


def test_a_key_that_the_profile_does_not_set_is_named() -> None:
    with pytest.raises(ParameterError, match="sets no 'widht'.*did you mean 'width'"):
        for_notebook("quick", "12_gkt", {"steps", "rate", "variants", "widht"})


def test_a_section_that_is_not_there_is_named() -> None:
    with pytest.raises(ParameterError, match="no section 'evalution'.*did you mean 'evaluation'"):
        for_notebook("quick", "15_evalution", set())
