"""The judgements made of the arena's table, on tables with known answers."""

import math
from pathlib import Path

import pandas as pd
import pytest

from unlearnlib.arena import league
from unlearnlib.measures import equivalence
from unlearnlib.measures.metrics import METRICS

CLASS, GROUP = "class_0", "random"
KNOWN = pd.DataFrame(
    {
        "title": ["original", "gold", "second gold", "Good one", "Free one"],
        "family": ["reference"] * 3 + ["with data", "zero-shot"],
    },
    index=["original", "retrain", "retrain_again", "good", "free"],
)


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
    for metric, expected in (("probe", 5.0), ("relearn_time", 5.0), ("tow", 0.05)):
        distances = found.distance(CLASS, "free", METRICS[metric])
        assert distances.to_list() == pytest.approx([expected] * 4)


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


COUNTED = ["retain_gap", "js_forget", "probe"]


def test_the_league_is_in_order_of_mean_rank_over_the_metrics_that_count(tmp_path: Path):
    found = results(tmp_path, good=0.05)
    means, cells = league.table(found, CLASS, counted=COUNTED)
    assert list(means.index) == ["good", "retrain_again", "free"]
    assert means.loc["free", "probe"] == 5
    assert cells.loc["free", "retain_gap"].startswith("5.0")
    assert list(means)[-1] == "cost" and "mia_gap" not in means  # was not measured
    group, _ = league.table(found, GROUP, counted=["js_forget"])
    assert list(group.index) == ["good", "retrain_again"]


def test_places_are_ranks_on_each_original_model(tmp_path: Path):
    found = league.places(results(tmp_path), CLASS, counted=COUNTED)
    assert found.index.to_list() == ["0", "1", "2", "3"]
    assert found.loc["0"].to_dict() == {"retrain_again": 1, "good": 2, "free": 3}
    lacking = results(tmp_path).numbers
    lacking = lacking[(lacking["method"] != "free") | (lacking["metric"] != "js_forget")]
    short = league.places(league.Results(lacking, set()), CLASS, counted=COUNTED)
    assert list(short) == ["retrain_again", "good"]
    # one that was run on fewer originals has no place, and takes no original from the others
    few = results(tmp_path).numbers
    few = few[(few["method"] != "free") | few["seed"].isin(["0", "1"])]
    held = league.places(league.Results(few, set()), CLASS, counted=COUNTED)
    assert held.index.to_list() == ["0", "1", "2", "3"]
    assert list(held) == ["retrain_again", "good"]
    means, _ = league.table(league.Results(few, set()), CLASS, counted=COUNTED)
    assert list(means.index) == ["retrain_again", "good", "free"]
    with pytest.raises(ValueError, match="no metric ranks the methods of class_0"):
        league.places(results(tmp_path), CLASS, counted=[])


def test_models_of_an_ensemble_alone_do_not_weigh_in_the_league(tmp_path: Path):
    results(tmp_path)
    table = pd.read_csv(tmp_path / "arena.csv", dtype=str, keep_default_na=False)
    further = table[(table["method"] == "good") & (table["metric"] == "js_forget")]
    further = further.groupby("request").head(1).assign(seed="9", value="900")
    pd.concat([table, further]).to_csv(tmp_path / "arena.csv", index=False)
    means, _ = league.table(league.read(tmp_path / "arena.csv"), CLASS, counted=COUNTED)
    assert means.loc["good", "js_forget"] < 1


def test_the_front_is_what_no_other_beats_in_both():
    cost = pd.Series({"a": 1.0, "b": 2.0, "c": 3.0, "d": 2.5})
    quality = pd.Series({"a": 5.0, "b": 1.0, "c": 0.5, "d": 3.0})
    assert league.front(cost, quality) == ["a", "b", "c"]


def test_advice_names_the_nearest_and_says_when_nothing_is_nearer(tmp_path: Path):
    found = results(tmp_path)
    margins = {"retain_gap": 1.0, "forget_gap": 1.0}
    tests = league.equivalences(found, margins, level=0.05, wanted=0.8)
    found_lines = league.advice(found, tests, KNOWN)
    assert list(found_lines) == [CLASS, GROUP]
    idle, data, free = found_lines[CLASS]
    assert "Doing nothing is" in idle and "a second gold" in idle
    assert "With data:** Good one" in data and "retain accuracy gap and forget accuracy gap" in data
    assert "Zero-shot:** Free one" in free and "met: none" in free
    assert "learned again after 55 mini-batches, gold 60" in free
    assert "0.004 ± 0.000 nats, n = 4" in data and "nearer than doing nothing" in data
    assert len(found_lines[GROUP]) == 2  # the other does not serve it
    unsure = found.numbers
    own = (unsure["method"] == "good") & unsure["metric"].str.startswith("js")
    unsure.loc[own, "value"] = unsure.loc[own, "seed"].astype(float)
    assert "not shown to be nearer" in league.advice(found, tests, KNOWN)[GROUP][1]
    idle = league.advice(results(tmp_path, original=0.01), tests, KNOWN)[GROUP]
    assert "doing nothing is nearer still" in idle[1] and "what golds differ by" in idle[0]


def test_a_margin_that_would_just_have_passed_is_told_and_formal_passes_are_marked(tmp_path: Path):
    found = results(tmp_path)
    margins = {"retain_gap": 1.0, "forget_gap": 1.0}
    tests = league.equivalences(found, margins, level=0.05, wanted=0.8)
    good = tests[(tests["method"] == "good") & (tests["score"] == "retain_gap")].iloc[0]
    values = found.repeats(CLASS, "good", "retain_gap")
    for factor, passes in ((1.001, True), (0.999, False)):
        margin = factor * good["smallest_margin"]
        assert (equivalence.equivalence(values, margin=margin).p < 0.05) == passes
    assert not tests["formal"].any()
    same = (found.numbers["method"] == "good") & (found.numbers["metric"] == "retain_gap")
    found.numbers.loc[same, "value"] = 0.3
    tests = league.equivalences(found, margins, level=0.05, wanted=0.8)
    assert set(tests.loc[tests["formal"], "method"]) == {"good"}


def test_decoys_have_no_place_in_the_league(tmp_path: Path):
    found = results(tmp_path, half_way=20.0)
    assert "half_way" not in found.methods
    assert "half_way" not in league.places(found, CLASS, counted=COUNTED)
