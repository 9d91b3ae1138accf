"""The arena's tables, made of records with known scores."""

from pathlib import Path

import numpy as np
import pytest
import torch
from arena_tasks import entrants, plan, save

from unlearnlib.arena import tables
from unlearnlib.arena.plan import scored
from unlearnlib.pipeline import paths
from unlearnlib.pipeline.records import Record


def margins(*, models: int = 8) -> tables.Margins:
    """Draw margins of an ensemble: gold, a second gold, and a method that is far off."""
    random, found = np.random.default_rng(0), []
    for number in range(models):
        row = {
            name: {
                part: torch.from_numpy(random.normal(shift, 1, 30)).half() for part in tables.SETS
            }
            for name, shift in (("retrain", 0), ("retrain_again", 0), ("far", 20))
        }
        found.append(row | ({"alone": row["far"]} if number == 0 else {}))
    return found


def measured() -> dict[str, Record]:
    """Give every model of the plan an accuracy, and the first method no AIN."""
    rows = margins(models=3)
    return {
        scored(name, seed): Record(
            "x",
            {
                "scores": {m: {"forget_accuracy": 5.0 + seed} for m in ("retrain", "far")},
                "reasons": {"retrain": {}, "far": {"ain": "because"}},
                "margins": rows[seed],
            },
            seconds=1.0,
        )
        for name, seed in plan().pairs()
    }


def test_ensembles_are_compared_and_grow():
    assert tables.members(margins()) == ["retrain_again", "far"]
    found = {
        (row["method"], row["metric"]): row["value"]
        for row in tables.distribution_rows("class_0", margins())
    }
    assert found["far", "ulira_forget"] == found["far", "shadow_forget"] == 100
    assert found["retrain_again", "shadow_forget"] < 75
    assert found["far", "klom_retain"] > 8 > found["retrain_again", "klom_retain"]
    table = tables.growth({"class_0": margins(), "random": margins()[:4]}, [2, 8, 64])
    assert table.index.is_unique  # the page picks rows of all requests by it
    for request, counts in (("class_0", [2, 8]), ("random", [2])):
        assert sorted(set(table.loc[table["request"] == request, "models"])) == counts
    assert table.loc[table["models"] == 2, "ulira"].isna().all()


def test_rows_hold_a_value_or_say_why_there_is_none():
    rows = {
        (row["request"], row["method"], row["seed"], row["metric"]): row
        for row in tables.score_rows(plan(), measured())
    }
    assert rows["class_0", "far", 1, "forget_accuracy"]["value"] == 6
    assert rows["class_0", "far", 1, "forget_accuracy"]["reason"] == ""
    ain = rows["class_0", "far", 2, "ain"]
    assert (ain["value"], ain["reason"]) == ("not applicable", "because")
    probe = rows["random", "far", 1, "probe"]
    assert probe["value"] == "not applicable"
    assert "should tell them apart" in probe["reason"]
    # of the further models of an ensemble nobody expects it
    assert ("class_0", "far", 2, "probe") not in rows
    assert ("class_0", "far", 0, "probe") not in rows


def test_methods_that_cannot_serve_say_why():
    absent = tables.absent_rows(plan(), entrants())
    pairs = {(row["request"], row["method"]) for row in absent}
    assert pairs == {("random", name) for name in ("gkt_short", "mm_noise", "gif_scaled")}
    assert {row["metric"] for row in absent} == {"all"}
    table = tables.served(plan(), entrants())
    assert table.loc["mm_noise"].to_dict() == {"class_0": "serves", "random": "n/a"}
    assert set(table["class_0"]) == {"serves"}


@pytest.fixture
def found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Record]:
    """Write references that took 10 seconds, and make records of unlearning runs that took 2."""
    monkeypatch.setattr(paths, "root", lambda: tmp_path)
    for name, seed in plan().pairs():
        for path in plan().references(name, seed).values():
            save(path, {"x": 1}, seconds=10.0)
    runs = {}
    for name, seed in plan().pairs():
        for method, one in plan().unlearned(entrants(), name, seed).items():
            timings = runs.setdefault(one.file.stem, {"unlearning": 2.0, "curvature": 3.0})
            timings[f"{name}/{method}"] = 1.0
    return {stem: Record(stem, {}, 99.0, timings) for stem, timings in runs.items()}


def test_costs_are_multiples_of_retraining(found: dict[str, Record]):
    table = tables.costs(plan(), entrants(), found)
    keys = ["request", "method", "seed"]
    assert not table.duplicated(keys).any()
    assert set(table["seed"]) == {0, 1}
    costs = table.set_index(keys)["cost"]
    assert costs["class_0", "fine_tune", 0] == 0.2
    assert costs["random", "gif", 1] == 0.4  # the shared curvature in full
    assert costs["class_0", "retrain_again", 1] == 1
    assert "original" not in set(table["method"])
    assert len(table) == 2 * (3 + len(entrants())) + 2 * (3 + 3)


def test_the_table_of_the_arena_has_one_row_a_request_method_seed_and_metric(
    found: dict[str, Record],
):
    costs = tables.costs(plan(), entrants(), found)
    table = tables.arena(plan(), entrants(), measured=measured(), costs=costs)
    assert list(table) == ["request", "method", "seed", "metric", "value", "reason"]
    assert not table.duplicated(["request", "method", "seed", "metric"]).any()
    assert not table.isna().any(axis=None)
    assert {"seconds", "cost", "klom_forget", "all", "forget_accuracy"} <= set(table["metric"])
    assert ((table["reason"] != "") == (table["value"] == "not applicable")).all()
