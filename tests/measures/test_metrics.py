"""The metrics: what they compute of toys with known answers, and what their registry says."""

import math
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch
from scipy.spatial.distance import jensenshannon
from sklearn.metrics import balanced_accuracy_score
from torch import Tensor
from torch.nn import functional as F

from unlearnlib.data.requests import Classes, Group
from unlearnlib.measures import metrics, relearning
from unlearnlib.measures.evidence import NotApplicable
from unlearnlib.measures.metrics import METRICS, Metric

CLASS, GROUP = Classes([0]), Group("random", None, 20)
LABELS = {
    "forgotten": [0, 0, 0, 0],
    "kept": [1, 1, 2, 2],
    "test": [1, 1, 2, 2, 1],
    "unseen": [0, 0],
    "everything": [1, 1, 2, 2, 1, 0, 0],
}


@dataclass(eq=False)
class Says:
    """A model that gives each image of a set one class, by ten to one or as it is told."""

    classes: dict[str, list[int]]
    time: float = 4.0
    auc: float = 0.5
    spread: float = 1.0
    lessons: relearning.Settings = field(
        default_factory=lambda: relearning.Settings(steps=8, batch_size=1, learning_rate=0.1)
    )

    def logits(self, name: str) -> Tensor:
        return math.log(10) * F.one_hot(torch.tensor(self.classes[name]), 3).double()

    def features(self, name: str) -> Tensor:
        noise = torch.randn(len(self.classes[name]), 2, generator=torch.Generator().manual_seed(1))
        return self.spread * (self.logits(name)[:, :1] + 0.1 * noise)

    def accuracy(self, name: str) -> float:
        pairs = list(zip(self.classes[name], LABELS[name], strict=True))
        return 100 * sum(a == b for a, b in pairs) / len(pairs)

    @property
    def counts(self) -> Tensor:
        counts = torch.zeros(3, 3, dtype=torch.int64)
        for truth, said in zip(LABELS["everything"], self.classes["everything"], strict=True):
            counts[truth, said] += 1
        return counts

    @property
    def relearn_time(self) -> float:
        return self.time

    @property
    def returned_accuracy(self) -> float:
        return 10 * self.time

    @property
    def attack(self) -> SimpleNamespace:
        return SimpleNamespace(auc=self.auc)


GOLD = Says(
    LABELS | {"forgotten": [1, 1, 2, 2], "unseen": [1, 2], "everything": [1, 1, 2, 2, 1, 1, 2]}
)
MINE = Says(
    LABELS
    | {"forgotten": [0, 1, 2, 2], "kept": [1, 1, 2, 1], "test": [1, 1, 2, 1, 1]}
    | {"unseen": [0, 2], "everything": [1, 1, 2, 1, 1, 0, 2]},
    time=2.0, auc=0.8,
)  # fmt: skip


def value(name: str, said: Says = MINE, gold: Says = GOLD) -> float:
    parts = {name: (torch.zeros(len(found)), torch.tensor(found)) for name, found in LABELS.items()}
    sets = SimpleNamespace(classes=(0,), **parts)
    e: Any = SimpleNamespace(said=said, gold=gold, original=said, sets=sets)
    e.untrained = torch.zeros(4, 3, dtype=torch.float64)
    return METRICS[name].compute(e)


def js(a: list[float], b: list[float]) -> float:
    return jensenshannon(a, b) ** 2


def test_accuracies_and_gaps():
    expected = {
        "forget_accuracy": 25, "retain_accuracy": 80, "kept_accuracy": 75, "forget_test_accuracy": 50,
        "forget_gap": 25, "retain_gap": -20, "completeness_forget": 75, "completeness_retain": 80,
    }  # fmt: skip
    assert {name: value(name) for name in expected} == pytest.approx(expected)
    assert value("tow") == pytest.approx((1 - 0.25) * (1 - 0.25) * (1 - 0.2))


def test_distances_of_answers():
    sure, other = [10 / 12, 1 / 12, 1 / 12], [1 / 12, 10 / 12, 1 / 12]
    assert value("js_forget") == pytest.approx(js(sure, other) / 4)
    assert value("js_retain") == pytest.approx(js(sure, other) / 5)
    apart = math.sqrt(2) * 9 / 12
    assert value("activation_distance_forget") == pytest.approx(apart / 4)
    assert value("activation_distance_retain") == pytest.approx(apart / 5)
    assert value("zrf") == pytest.approx(1 - js(sure, [1 / 3] * 3))
    assert value("calibration_error") == pytest.approx(100 * (10 / 12 - 0.8))


def test_confusions_count_for_the_classes_that_stay():
    # class 1 is answered as by gold, half of class 2 is not; class 0 does not count
    assert value("confusion_shift") == pytest.approx(25)


def test_alignment_is_with_gold_and_a_collapsed_model_has_none():
    assert value("cka_retain", GOLD) == pytest.approx(1)
    assert 0 <= value("cka_forget") < 1
    with pytest.raises(NotApplicable, match="do not vary"):
        value("cka_forget", replace(MINE, spread=0.0))


def test_a_probe_finds_what_features_hold_and_no_more():
    knows = replace(MINE, classes=LABELS)
    assert value("probe", knows) == 100
    blind = replace(MINE, spread=0.0)
    # the same features for all: one side is always named
    assert value("probe", blind) == 100 * balanced_accuracy_score([1, 0], [0, 0])


def test_features_may_know_what_the_read_out_does_not_say():
    @dataclass(eq=False)
    class Hides(Says):
        """Its features tell the true class, its answers are those of gold."""

        def features(self, name: str) -> Tensor:
            return F.one_hot(torch.tensor(LABELS[name]), 3).float()

    hides, honest = Hides(GOLD.classes), Hides(LABELS)
    assert value("forget_test_accuracy", hides) == 0
    assert value("hidden_accuracy", hides) == value("hidden_accuracy", honest) == 100
    assert value("misalignment", hides) == 100
    assert value("misalignment", honest) == 0
    with pytest.raises(NotApplicable, match="features do not vary"):
        value("hidden_accuracy", replace(MINE, spread=0.0))


def test_attacks_and_relearning():
    assert value("mia_auc") == 0.8
    assert value("mia_gap") == pytest.approx(0.3)
    assert value("relearn_time") == 2
    assert value("returned_accuracy") == 20
    assert value("relearn_time", replace(MINE, time=math.inf)) == 8
    assert value("ain") == 0.5
    assert value("ain", replace(MINE, time=math.inf)) == 2
    with pytest.raises(NotApplicable, match="without a step"):
        value("ain", gold=replace(GOLD, time=0.0))
    for late in (8.0, math.inf):
        with pytest.raises(NotApplicable, match="within the mini-batches allowed"):
            value("ain", gold=replace(GOLD, time=late))


def test_gold_is_at_no_distance_from_itself():
    for name, metric in METRICS.items():
        if metric.compute:
            own = pd.Series([value(name, GOLD)])
            assert metric.distances(own, own).to_list() == pytest.approx([0], abs=1e-6), name


# ---------------------------------------------------------------------------------- registry


def test_what_does_not_apply_to_a_group_says_why():
    whole, group = (metrics.computed(request) for request in (CLASS, GROUP))
    assert set(whole) - set(group) == {
        "forget_test_accuracy", "hidden_accuracy", "misalignment", "probe",
    }  # fmt: skip
    assert "should tell them apart" in METRICS["probe"].cannot(GROUP)
    assert METRICS["probe"].cannot(CLASS) is None
    assert all(metric.why_not or metric.serves == (Classes, Group) for metric in METRICS.values())


def test_cheap_metrics_ask_for_answers_alone():
    """None of them reads features, relearns, or attacks: a toy without these serves them."""
    silent = SimpleNamespace(logits=MINE.logits, accuracy=MINE.accuracy)
    for compute in metrics.computed(GROUP, cheap=True).values():
        assert math.isfinite(compute(SimpleNamespace(said=silent, gold=silent, sets=None)))


@pytest.mark.parametrize(
    ("distance", "expected"),
    [("value", [0.5, 0.2]), ("one_minus", [1.5, 0.8]), ("difference", [1.0, 0.1])],
)
def test_a_metric_becomes_a_distance_to_gold_by_seed(distance: str, expected: list[float]):
    metric = Metric("x", "X", direction="lower", digits=1, distance=distance)
    values = pd.Series([-0.5, 0.2], index=["0", "1"])
    gold = pd.Series([0.3, 0.5], index=["1", "0"])
    assert metric.distances(values, gold)[["0", "1"]].to_list() == pytest.approx(expected)


def test_headings_have_units():
    assert METRICS["forget_accuracy"].heading == "forget accuracy (%)"
    assert METRICS["probe"].distance_heading == "probe (points)"
    assert METRICS["tow"].heading == "ToW"
    assert METRICS["tow"].distance_heading == "1 - ToW"
    assert METRICS["confusion_shift"].distance_heading == "confusion shift (%)"


def test_a_value_or_a_reason():
    def lacking(e: object) -> float:
        raise NotApplicable("too small")

    assert metrics.measured(lambda e: 3, None) == (3.0, "")
    for compute, why in ((lacking, "too small"), (lambda e: math.nan, "not a number")):
        found, reason = metrics.measured(compute, None)
        assert math.isnan(found)
        assert why in reason


def test_people_are_told_of_every_metric():
    table = metrics.described()
    assert list(table.index) == list(METRICS)
    assert set(table["best"]) == {"low", "high", "as gold's"}
    assert not table.isna().any(axis=None)
