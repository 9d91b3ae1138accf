"""Who takes part: entrants from the registries and parameters, and what people are told of them."""

from pathlib import Path
from typing import Any

import pytest
from arena_tasks import CLASS, GROUP, entrants

from unlearnlib.arena import methods
from unlearnlib.arena.baselines import BASELINES
from unlearnlib.arena.decoys import DECOYS
from unlearnlib.data.requests import FAMILIES
from unlearnlib.zero_shot.methods import METHODS


def test_entrants_have_what_their_registry_says_and_settings_of_their_own():
    found = entrants()
    assert list(found) == ["fine_tune", "gkt_short", "mm_noise", "first_order", "gif", "gif_scaled"]
    assert found["gkt_short"].method is METHODS["gkt"]
    assert found["gkt_short"].settings.transfer.pseudo_batches == 2
    assert found["fine_tune"].method is BASELINES["fine_tune"]
    assert found["fine_tune"].settings.l2 == 1e-3
    assert {name: one.cheap for name, one in found.items()} == {
        "fine_tune": True, "gkt_short": False, "mm_noise": True, "first_order": True, "gif": False,
        "gif_scaled": False,
    }  # fmt: skip


def test_settings_without_a_penalty_are_handed_none():
    ascent = {"steps": 3, "batch_size": 5, "learning_rate": 0.1}
    found = entrants(baselines={"gradient_ascent": ascent})
    assert found["gradient_ascent"].settings == methods.BASELINES["gradient_ascent"].settings(
        **ascent
    )


def test_methods_without_data_do_not_take_groups():
    found = entrants()
    assert all(one.cannot(CLASS) is None for one in found.values())
    assert "takes classes" in found["gkt_short"].cannot(GROUP)
    assert found["gif"].cannot(GROUP) is None
    assert "scale" in found["gif_scaled"].cannot(GROUP)


def test_titles_come_from_the_registries_and_say_what_a_variant_is():
    listed = methods.listed(entrants())
    assert listed.loc["mm_noise", "title"] == METHODS["mm_noise"].title
    assert listed.loc["gkt_short", "title"] == f"{METHODS['gkt'].title} (short)"
    assert listed["family"].to_dict() == {
        "fine_tune": FAMILIES["data"],
        **dict.fromkeys(("gkt_short", "mm_noise"), FAMILIES["zero_shot"]),
        **dict.fromkeys(("first_order", "gif", "gif_scaled"), FAMILIES["influence"]),
    }


def test_what_is_known_is_read_back_behind_the_references(tmp_path: Path):
    methods.listed(entrants()).to_csv(tmp_path / "methods.csv")
    found = methods.known(tmp_path / "methods.csv")
    assert list(found.index) == [*methods.REFERENCES, *DECOYS, *entrants()]
    assert found.loc["retrain", "title"] == "gold"
    assert (found["family"] == "reference").sum() == len(methods.REFERENCES)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"baselines": {"magic": {}}}, "unknown baseline 'magic'"),
        ({"zero_shot": {"x": {"method": "magic"}}}, "unknown zero-shot method 'magic'"),
        ({"zero_shot": {"x": {"method": "gkt", "kind": 1}}}, r"x: \['kind'\]"),
        ({"estimators": ["magic"], "cheap_estimators": []}, "unknown estimator 'magic'"),
        ({"cheap_estimators": ["newton"]}, "newton.*none of the estimators asked for"),
        ({"zero_shot": {"fine_tune": {"method": "gkt"}}}, "a name of its own"),
        ({"zero_shot": {"retrain": {"method": "gkt"}}}, "no reference's"),
    ],
)
def test_bad_parameters_are_refused(changes: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        entrants(**changes)
