"""Tables of gated transfer, by hand on small histories."""

import math

import numpy as np
import pytest

from unlearnlib.data.requests import Classes
from unlearnlib.pipeline.paths import Place
from unlearnlib.zero_shot import gkt, stopping, transfers

NAN = math.nan
RESULTS = {
    "gkt-seed0": {
        "stop": 4,
        "history": {"accepted": [[1, 0, 2], [0, 0, 1]], "leak": [0.5, 0.0]},
    },
    "gkt-seed1": {
        "stop": 2,
        "history": {"accepted": [[0, 0, 0], [0, 0, 0]], "leak": [NAN, 0.25]},
    },
}


def test_shares_are_of_all_accepted_images_of_a_run():
    table = transfers.accepted_shares(RESULTS)
    assert table.loc["gkt-seed0"].tolist() == [25.0, 0.0, 75.0]
    assert table.loc["gkt-seed1"].isna().all()


def test_stops_are_listed_by_seed():
    table = transfers.stops(RESULTS, ["gkt"], [1, 0])
    assert table["gkt"].to_dict() == {1: 2, 0: 4}


def test_a_sign_is_smoothed_over_pseudo_batches():
    found = transfers.smoothed(RESULTS, "gkt", [0, 1], "leak", alpha=0.5)
    # adjusted weights 1 and 1/2: (0.5 / 2 + 0) / 1.5
    np.testing.assert_allclose(found, [[0.5, 1 / 6], [NAN, 0.25]])


def test_the_share_that_passes_is_of_all_that_was_drawn():
    history = {"accepted": [[1, 1], [2, 0]], "drawn": [[2, 2], [2, 2]]}
    found = transfers.passing({"gkt-seed0": {"history": history}}, "gkt", [0])
    np.testing.assert_allclose(found, [[0.5, 0.5]])


def test_tasks_pair_variants_with_seeds_and_their_originals():
    here = Place("quick")
    found = transfers.tasks(
        here, Classes([3]), settings={"batch_size": 8},
        variants={"gkt": {}, "gkt_other": {"attention_weight": 0.0}}, seeds=[0, 2],
    )  # fmt: skip
    assert list(found) == ["gkt-seed0", "gkt-seed2", "gkt_other-seed0", "gkt_other-seed2"]
    task = found["gkt_other-seed2"]
    assert task["original"] == here.run("train", "seed2")
    assert task["settings"] == gkt.Transfer(batch_size=8, attention_weight=0.0)
    assert (task["request"], task["seed"]) == (Classes([3]), 2)
    with pytest.raises(ValueError, match="batch_sise"):
        transfers.tasks(
            here, Classes([3]), settings={"batch_sise": 8}, variants={"a": {}}, seeds=[0]
        )


def test_transfers_of_one_teacher_and_request_share_a_probe(monkeypatch: pytest.MonkeyPatch):
    here, asked = Place("quick"), []
    monkeypatch.setattr(
        transfers, "sweep", lambda run, tasks, **how: asked.append((run, tasks, how)) or {}
    )
    tasks = transfers.tasks(here, Classes([0]), settings={}, variants={"a": {}, "b": {}}, seeds=[1])
    tasks |= transfers.tasks(here, Classes([7]), settings={}, variants={"c": {}}, seeds=[1])
    settings = stopping.Stop(rule="probe", limit=0.2)
    transfers.stop(here, tasks, stage="gkt", settings=settings, workers=2, engine="loky")
    (probing, probes, how), (stopping_run, stops, _) = asked
    assert (probing, stopping_run) == (stopping.run_probe, stopping.run)
    assert list(probes) == ["class_0-seed1", "class_7-seed1"]
    assert how == {"store": here.runs / "gkt_probes", "workers": 2, "engine": "loky"}
    assert list(stops) == ["a-seed1", "b-seed1", "c-seed1"]
    assert stops["c-seed1"] == {
        "transfer": here.run("gkt_transfers", "c-seed1"),
        "probe": here.run("gkt_probes", "class_7-seed1"), "request": Classes([7]),
        "rule": "probe", "limit": 0.2,
    }  # fmt: skip


def test_a_run_that_is_not_there_is_named():
    with pytest.raises(KeyError, match="gkt-seed7"):
        transfers.stops(RESULTS, ["gkt"], [7])
