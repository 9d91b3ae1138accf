"""Measuring of all models of a request against gold."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from arena_tasks import CLASS, GROUP, RECIPE, save, trained

from unlearnlib.arena import scores, tables, unlearning
from unlearnlib.arena.baselines import BASELINES
from unlearnlib.arena.decoys import DECOYS
from unlearnlib.arena.methods import REFERENCES
from unlearnlib.arena.unlearning import Unlearned
from unlearnlib.data.requests import Request
from unlearnlib.measures import metrics, relearning

SETTINGS = scores.Settings(
    most=50,
    margins=10,
    relearning=relearning.Settings(steps=4, batch_size=10, learning_rate=0.01),
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("arena"))


def scoring(
    place: Path, request: Request = CLASS, *, cheap: bool = False, keep: bool = False
) -> dict[str, Any]:
    found = unlearning.run_baseline(
        method=BASELINES["random_labels"], settings=RECIPE, request=request,
        original=place / "original.pt", data=place / "mnist.npz", items=None, retained_items=150,
        seed=0,
    )  # fmt: skip
    return scores.run(
        data=place / "mnist.npz", items=None, request=request,
        references={name: place / f"{name}.pt" for name in REFERENCES},
        unlearned={"random_labels": Unlearned(save(place / "unlearned.pt", found))},
        metrics=metrics.computed(request, cheap=cheap), settings=SETTINGS, keep=keep, seed=0,
    )  # fmt: skip


def test_gold_is_like_itself(place: Path):
    result = scoring(place, keep=True)
    assert list(result["scores"]) == [*REFERENCES, *DECOYS, "random_labels"]
    gold, original = (result["scores"][name] for name in ("retrain", "original"))
    for metric in ("js_forget", "activation_distance_retain", "confusion_shift"):
        assert gold[metric] == pytest.approx(0, abs=1e-9)
    assert original["js_forget"] > 0.1
    for metric, value in (("tow", 1), ("completeness_forget", 100), ("cka_retain", 1)):
        assert gold[metric] == pytest.approx(value)
    assert gold["mia_gap"] == gold["forget_gap"] == 0
    assert original["forget_gap"] > 50
    assert gold.get("ain", 1) == pytest.approx(1)
    assert result["relearning"]["original"][0] > result["relearning"]["retrain"][0]
    assert set(result["models"]) == set(result["scores"])


def test_every_metric_has_a_value_or_a_reason(place: Path):
    result = scoring(place)
    assert set(result) == {"scores", "reasons", "margins"}
    for name, row in result["scores"].items():
        reasons = result["reasons"][name]
        assert set(row) | set(reasons) == set(metrics.computed(CLASS))
        assert not set(row) & set(reasons)
        assert np.isfinite(list(row.values())).all()
        assert all(reasons.values())


def test_what_does_not_apply_to_a_group_is_not_computed(place: Path):
    result = scoring(place, GROUP)
    assert "probe" not in result["scores"]["original"] | result["reasons"]["original"]
    assert "kept_accuracy" in result["scores"]["original"]


def test_ensembles_need_answers_alone(place: Path):
    result = scoring(place, cheap=True)
    assert set(result["scores"]["retrain"]) == {"forget_gap", "retain_gap"} | {
        f"{part}_accuracy" for part in ("forget", "retain")
    } | {
        f"{name}_{part}"
        for name in ("js", "activation_distance", "completeness")
        for part in ("forget", "retain")
    }  # fmt: skip
    pair = tables.ensembles([result["margins"]] * 3, "random_labels", "forgotten")
    assert [part.shape for part in pair] == [(3, 10), (3, 10)]
    assert np.isfinite(pair[0]).all()
