"""Which measure can tell: planted differences are told, absent ones are not, and few models do not."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from unlearnlib.arena import league, power, tables

REQUEST = "class_0"


def results(*, seeds: int = 8) -> league.Results:
    """Make a table in which accuracy is blind, and the divergence tells the half-way model."""
    random, rows = np.random.default_rng(0), []
    for seed in range(seeds):
        for method, far in {
            "original": 9.0, "retrain": 0.0, "retrain_again": 1.0, "half_way": 5.0, "cheat": 1.0,
        }.items():  # fmt: skip
            values = {"js_forget": far + random.uniform(0, 0.5) * (far > 0)}
            values |= {"forget_gap": random.uniform(-1, 1) * (method != "retrain"), "cost": 1.0}
            head = {"request": REQUEST, "method": method, "seed": str(seed)}
            rows += [head | {"metric": m, "value": v, "reason": ""} for m, v in values.items()]
    return league.Results(pd.DataFrame(rows), set())


def margins(*, models: int, shift: float) -> tables.Margins:
    random = np.random.default_rng(0)
    return [
        {
            name: {part: torch.from_numpy(random.normal(far, 1, 40)).half() for part in tables.SETS}
            for name, far in {"retrain": 0, "retrain_again": 0, "half_way": shift}.items()
        }
        for _ in range(models)
    ]


def test_measures_of_models_tell_what_was_planted():
    found = power.of_models(results(), ["half_way", "cheat"], level=0.05, wanted=0.8)
    cells = found.set_index(["metric", "alternative"])
    assert cells.loc[("js_forget", "half_way"), "auc"] == 1
    assert cells.loc[("js_forget", "half_way"), "models"] == 5
    assert 0.2 < cells.loc[("js_forget", "cheat"), "auc"] < 0.8
    assert set(found["metric"]) == {"js_forget", "forget_gap"}
    assert (found["n"] == 8).all()


def test_measures_of_ensembles_tell_from_some_number_of_models_on():
    given = {REQUEST: margins(models=16, shift=0.7)}
    found = power.of_ensembles(
        given, ["half_way", "absent"], counts=[2, 4, 8, 16, 64], draws=20, level=0.05
    )
    assert set(found["models"]) == {2, 4, 8}  # of more, any two draws would share most
    assert set(found["alternative"]) == {"half_way"}
    assert {"klom_forget", "ulira_retain"} <= set(found["metric"])
    assert found.loc[found["metric"] == "ulira_forget", "models"].min() == 4
    klom = found[found["metric"] == "klom_forget"].set_index("models")["power"]
    assert klom[8] > 0.9 > klom[2]


def test_no_number_of_models_tells_what_is_the_same():
    given = {REQUEST: margins(models=16, shift=0.0)}
    many = power.of_ensembles(given, ["half_way"], counts=[4, 8], draws=40, level=0.05)
    table = power.needed(power.of_models(results(), ["half_way"], level=0.05, wanted=0.8), many,
                         wanted=0.8)  # fmt: skip
    klom = table[table["metric"] == "klom_forget"].iloc[0]
    assert math.isinf(klom["models"]) and klom["n"] == 8
    assert power.counting(table, REQUEST, alternative="half_way") == ["js_forget"]
    assert power.counting(table, "other", alternative="half_way") == []


def test_few_models_count_for_nothing(tmp_path: Path):
    table = power.of_models(results(seeds=3), ["half_way"], level=0.05, wanted=0.8)
    none = power.of_ensembles({}, ["half_way"], counts=[2], draws=2, level=0.05)
    both = power.needed(table, none, wanted=0.8)
    assert power.counting(both, REQUEST, alternative="half_way") == []
