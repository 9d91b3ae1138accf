"""The arena's tables and the judgements made of them, on tables with known answers."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from unlearnlib.arena import arena_specs, arena_tables, league
from unlearnlib.measures import equivalence
from unlearnlib.pipeline.paths import Place

CLASS, GROUP = "class_0", "random"
FAMILIES = {"good": "with data", "free": "zero-shot"}


def results(tmp_path: Path, **gaps: float) -> league.Results:
    """Write and read a table of two requests; each method is off by its gap, give or take."""
    gaps = {"original": 40.0, "retrain": 0.0, "retrain_again": 0.1, "good": 0.2, "free": 5.0} | gaps
    rows = []
    for request in (CLASS, GROUP):
        for method, gap in gaps.items():
            for seed in range(4):
                noise = 0.0 if method == "retrain" else 0.01 * seed
                values = dict.fromkeys(("retain_gap", "forget_gap", "cost"), gap + noise)
                values |= {"js_forget": (gap + noise) / 100, "js_retain": (gap + noise) / 100}
                values |= {"tow": 1 - gap / 100, "ain": math.exp(gap), "probe": 70 + gap}
                values |= {"relearn_time": 60 - gap}
                head = {"request": request, "method": method, "seed": seed}
                applies = {k: v for k, v in values.items() if k != "probe" or request == CLASS}
                rows += [head | {"metric": k, "value": v, "reason": ""} for k, v in applies.items()]
    rows = [r for r in rows if (r["request"], r["method"]) != (GROUP, "free")]
    apart = {"seed": "all", "metric": "all", "value": "not applicable", "reason": "takes classes"}
    rows.append({"request": GROUP, "method": "free"} | apart)
    pd.DataFrame(rows).to_csv(tmp_path / "arena.csv", index=False)
    return league.read(tmp_path / "arena.csv")


def test_a_table_is_read_with_what_does_not_apply(tmp_path: Path):
    found = results(tmp_path)
    assert found.requests == [CLASS, GROUP]
    assert found.by_class == [CLASS]
    assert found.methods == ["retrain_again", "good", "free"]
    assert found.absent == {(GROUP, "free")}
    assert len(found.repeats(GROUP, "free", "js_forget")) == 0
    assert found.distance(CLASS, "free", "probe").to_list() == [5.0] * 4
    assert found.distance(CLASS, "free", "relearn_time").to_list() == [5.0] * 4
    assert found.distance(CLASS, "free", "tow").to_list() == pytest.approx([0.05] * 4)


@pytest.mark.parametrize("value", ["", "nan?", "not applicable"])
def test_a_value_that_is_missing_without_a_reason_is_refused(tmp_path: Path, value: str):
    results(tmp_path)
    table = pd.read_csv(tmp_path / "arena.csv", dtype=str, keep_default_na=False)
    table.loc[3, "value"] = value
    table.to_csv(tmp_path / "arena.csv", index=False)
    with pytest.raises(ValueError, match="1 values are neither numbers.*line 5"):
        league.read(tmp_path / "arena.csv")


def test_equivalence_is_shown_where_the_gap_is_small(tmp_path: Path):
    found = results(tmp_path)
    margins = {"retain_gap": 1.0, "forget_gap": 1.0}
    tests = league.equivalences(found, margins, level=0.05, wanted=0.8)
    passed = tests.groupby("method")["equivalent"].all()
    assert passed.to_dict() == {
        "retrain_again": True,
        "good": True,
        "free": False,
        "original": False,
    }
    assert (tests["p_holm"] >= tests["p"]).all()
    deviation = found.repeats(CLASS, "good", "retain_gap").std()
    alone = equivalence.seeds_needed(deviation, margin=1, mean=0.215)
    good = tests[(tests["method"] == "good") & (tests["request"] == CLASS)]
    assert (good["seeds_needed"] > alone).all()  # a correction costs seeds
    assert tests.loc[tests["method"] == "original", "seeds_needed"].eq(math.inf).all()
    met = league.margins_met(found, tests)
    assert met.loc["good"].to_list() == ["both", "both"]
    assert met.loc["free"].to_list() == ["neither", "n/a"]
    tests.loc[(tests["method"] == "good") & (tests["score"] == "retain_gap"), "equivalent"] = False
    assert league.margins_met(found, tests).loc["good", CLASS] == "forget"


def test_the_league_is_in_order_of_mean_rank_without_cost(tmp_path: Path):
    means, cells = league.table(results(tmp_path, good=0.05))
    assert list(means.index) == ["good", "retrain_again", "free"]
    assert means.loc["free", "probe (points)"] == 5
    assert cells.loc["free", "retain accuracy (points)"].startswith("5.0")
    assert cells.loc["free", "attack AUC"] == "-"  # was not measured


def test_models_of_an_ensemble_alone_do_not_weigh_in_the_league(tmp_path: Path):
    results(tmp_path)
    table = pd.read_csv(tmp_path / "arena.csv", dtype=str, keep_default_na=False)
    further = table[(table["method"] == "good") & (table["metric"] == "js_forget")]
    further = further.assign(seed="9", value="900")
    pd.concat([table, further]).to_csv(tmp_path / "arena.csv", index=False)
    means, _ = league.table(league.read(tmp_path / "arena.csv"))
    assert means.loc["good", "JS, forgotten (nats)"] < 1


def test_the_front_is_what_no_other_beats_in_both():
    cost = pd.Series({"a": 1.0, "b": 2.0, "c": 3.0, "d": 2.5})
    quality = pd.Series({"a": 5.0, "b": 1.0, "c": 0.5, "d": 3.0})
    assert league.front(cost, quality) == ["a", "b", "c"]


def test_advice_names_the_nearest_and_says_when_nothing_is_nearer(tmp_path: Path):
    found = results(tmp_path)
    margins = {"retain_gap": 1.0, "forget_gap": 1.0}
    tests = league.equivalences(found, margins, level=0.05, wanted=0.8)
    lines = league.advice(found, tests, FAMILIES)
    assert len(lines) == 3
    assert "with data:** good" in lines[0] and "1 of 1 requests" in lines[0]
    assert "zero-shot:** free" in lines[1] and "0 of 1 requests" in lines[1]
    assert "learned again after 55 mini-batches, gold 60" in lines[1]
    assert "5.000" not in lines[0] and "0.004 ± 0.000 nats, n = 4" in lines[0]
    assert "nearest method is good" in lines[2] and "nearer than doing nothing" in lines[2]
    unsure = found.numbers
    own = (unsure["method"] == "good") & unsure["metric"].str.startswith("js")
    unsure.loc[own, "value"] = unsure.loc[own, "seed"].astype(float)
    assert "not shown to be nearer" in league.advice(found, tests, FAMILIES)[2]
    idle = league.advice(results(tmp_path, original=0.01), tests, FAMILIES)[2]
    assert "doing nothing is nearer still" in idle and "what golds differ by" in idle


# ------------------------------------------------------------------------------------- tables


def records(*, models: int = 8) -> list[dict]:
    """Make margins of an ensemble: gold, a second gold, and a method that is far off."""
    random, found = np.random.default_rng(0), []
    for number in range(models):
        margins = {
            name: {
                part: torch.from_numpy(random.normal(shift, 1, 30)).half()
                for part in arena_tables.SETS
            }
            for name, shift in (("retrain", 0), ("retrain_again", 0), ("far", 20))
        }
        if number == 0:
            margins["alone"] = margins["far"]
        spec = {"request": {"name": CLASS}, "seed": number, "relearning": {"steps": 9}}
        found.append(
            {
                "spec": spec,
                "result": {
                    "margins": margins,
                    "scores": {"retrain": {"relearn_time": 0.0}, "far": {"ain": math.nan}},
                },
            }
        )
    return found


def test_ensembles_are_compared_and_grow():
    assert arena_tables.members(records()) == ["retrain_again", "far"]
    found = {
        (row["method"], row["metric"]): row["value"]
        for row in arena_tables.distribution_rows(records())
    }
    assert found["far", "ulira_forget"] == 100
    assert found["far", "klom_retain"] > 8 > found["retrain_again", "klom_retain"]
    table = arena_tables.growth(records(), [2, 8, 64])
    assert sorted(set(table["models"])) == [2, 8]
    assert table.loc[table["models"] == 2, "ulira"].isna().all()


def test_rows_say_why_a_score_is_absent():
    row = arena_tables.score_rows(records(models=1))[-1]
    assert row["value"] == "not applicable"
    assert "without a step" in row["reason"]
    late = records(models=1)
    late[0]["spec"]["relearning"] = {"steps": 9}
    late[0]["result"]["scores"] = {m: {"ain": 1.0, "relearn_time": 9.0} for m in ("retrain", "far")}
    rows = {(r["method"], r["metric"]): r for r in arena_tables.score_rows(late)}
    assert rows["far", "ain"]["value"] == "not applicable"
    assert "within the mini-batches" in rows["far", "ain"]["reason"]
    assert rows["far", "relearn_time"]["value"] == 9
    absent = arena_tables.absent_rows(
        [{"name": GROUP, "mode": "random"}, {"name": CLASS, "classes": [0]}], {"gkt": "zero_shot"}
    )
    assert [(row["request"], row["method"]) for row in absent] == [(GROUP, "gkt")]


# --------------------------------------------------------------------------------------- plan


def plan(**changes: object) -> arena_specs.Plan:
    requests = [{"name": CLASS, "classes": [0]}, {"name": GROUP, "mode": "random", "size": 3}]
    options = {"requests": requests, "seeds": [0, 1], "ensemble": 3, "items": 50}
    options["ensemble_requests"] = [CLASS]
    return arena_specs.Plan(Place("quick"), **options | changes)


def test_a_plan_asks_for_every_model_once():
    specs = plan().trainings({"epochs": 1})
    names = [spec["name"] for spec in specs]
    assert len(set(names)) == len(names) == 3 + 2 * (3 + 2) + (2 + 2)
    assert all(spec["items"] == 50 for spec in specs)
    seeds = {spec["name"]: (spec["start"], spec["seed"]) for spec in specs}
    gold, again, reordered = (seeds[f"class_0{e}-seed1"] for e in ("", "-again", "-reordered"))
    assert gold == seeds["original-seed1"] == (1, 1)
    assert again[0] != 1 != again[1]
    assert reordered[0] == 1 != reordered[1]


def test_expensive_methods_serve_the_seeds_alone_and_groups_not_at_all():
    dear, cheap = {"kind": "gkt", "settings": {"batch_size": 3}}, {"kind": "mm_noise"}
    methods = {"dear": dear, "cheap": cheap | {"ensemble": True}}
    specs = arena_specs.zero_shot(plan(), methods)
    settings = {spec["method"]: spec["settings"] for spec in specs}
    assert settings == {"dear": dear, "cheap": cheap}
    assert {spec["request"]["name"] for spec in specs} == {CLASS}
    seeds = {m: [s["seed"] for s in specs if s["method"] == m] for m in methods}
    assert seeds == {"dear": [0, 1], "cheap": [0, 1, 2]}


def test_scorings_find_the_files_of_their_request_and_seed():
    runs = [("data", {"name": "a", "seed": 0, "request": plan().requests[0]})]
    runs.append(("influence", {"name": "b", "seed": 0, "requests": plan().requests}))
    specs = arena_specs.scorings(
        plan(), runs, {"relearning": {"steps": 1}, "keep": CLASS}, store=Path("x")
    )
    by_name = {spec["name"]: spec for spec in specs}
    assert [by_name["class_0-seed0"][f"run_{n}"].as_posix() for n in range(2)] == [
        "x/data/a.pt", "x/influence/b.pt",
    ]  # fmt: skip
    assert by_name["random-seed0"]["runs"] == 1
    assert by_name["random-seed0"]["items"] == 50
    assert "retrain_reordered" in by_name["class_0-seed1"]
    assert "retrain_reordered" not in by_name["class_0-seed2"]
    assert by_name["class_0-seed0"]["keep"] and not by_name["class_0-seed1"]["keep"]
    assert by_name["class_0-seed2"]["relearning"] is None
    with pytest.raises(ValueError, match="none of the requests"):
        arena_specs.scorings(plan(), runs, {"keep": "other"}, store=Path("x"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ensemble_requests": ["other"]}, "no request named"),
        ({"seeds": [0, 7]}, "not all among the ensemble's 0 to 2"),
        ({"requests": [{"name": CLASS}, {"name": CLASS}]}, "a name of its own"),
    ],
)
def test_bad_plans_are_refused(changes: dict, message: str):
    with pytest.raises(ValueError, match=message):
        plan(**changes)
