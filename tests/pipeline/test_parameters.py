"""Parameters: what a notebook declares and what a profile sets are the same."""

from pathlib import Path

import pytest

from unlearnlib.pipeline.parameters import ParameterError, for_notebook, load

QUICK = """
study:
  seeds: [0, 1]
  width: 0.25
gkt:
  steps: 20      # pseudo-batches
  rate: 1.0e-3   # Adam
retrain: {}
"""


@pytest.fixture(autouse=True)
def params(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write the parameter files of a small project."""
    monkeypatch.setenv("UNLEARNLIB_ROOT", str(tmp_path))
    folder = tmp_path / "params"
    folder.mkdir()
    (folder / "quick.yaml").write_text(QUICK)
    (folder / "profiles.yaml").write_text("profiles: [quick]\n")
    return folder


def test_load_reads_sections() -> None:
    assert load("quick")["gkt"] == {"steps": 20, "rate": 0.001}


@pytest.mark.parametrize("profile", ["quik", "profiles", "../params/quick"])
def test_unknown_profiles_are_answered_with_those_there(profile: str) -> None:
    with pytest.raises(ParameterError, match=f"no profile '{profile}'; there are: quick$"):
        load(profile)


@pytest.mark.parametrize("value", ["1e-3", "[1, 5e4]", "{a: 2e+3}", "-1.5e3"])
def test_numbers_that_yaml_reads_as_strings_are_refused(params: Path, value: str) -> None:
    (params / "quick.yaml").write_text(f"gkt:\n  rate: {value}\n")
    with pytest.raises(ParameterError, match=r"gkt\.rate: .*e.* is a string .* 1\.0e-3"):
        load("quick")


def test_an_empty_section_is_explained(params: Path) -> None:
    (params / "quick.yaml").write_text("gkt:\n")
    with pytest.raises(ParameterError, match="write `gkt: {}`"):
        load("quick")


def test_a_notebook_gets_its_section_and_the_shared_keys_that_it_declares() -> None:
    given = for_notebook("quick", "12_gkt", {"profile", "steps", "rate", "seeds"})
    assert given == {"seeds": [0, 1], "steps": 20, "rate": 0.001}
    assert for_notebook("quick", "03_retrain", {"width"}) == {"width": 0.25}


def test_its_own_key_wins_over_a_shared_one(params: Path) -> None:
    (params / "quick.yaml").write_text("study: {width: 1}\ngkt: {width: 2}\n")
    assert for_notebook("quick", "12_gkt", {"width"}) == {"width": 2}


def test_a_key_that_the_notebook_does_not_declare_is_named() -> None:
    with pytest.raises(ParameterError, match="declares no 'rate'.*did you mean 'rates'"):
        for_notebook("quick", "12_gkt", {"steps", "rates"})


def test_a_key_that_the_profile_does_not_set_is_named() -> None:
    with pytest.raises(ParameterError, match="sets no 'widht'.*did you mean 'width'"):
        for_notebook("quick", "12_gkt", {"steps", "rate", "widht"})


def test_a_section_that_is_not_there_is_named() -> None:
    with pytest.raises(ParameterError, match="no section 'retrian'.*did you mean 'retrain'"):
        for_notebook("quick", "03_retrian", set())
