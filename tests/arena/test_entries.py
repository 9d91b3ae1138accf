"""What is registered takes part: a new metric, method or estimator is known all the way to the league."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from arena_tasks import CLASS, GROUP, INFLUENCE, RECIPE
from torch import nn
from toys import lines

from unlearnlib.arena import league, methods, scores, tables, unlearning
from unlearnlib.arena.decoys import DECOYS
from unlearnlib.arena.methods import Entrant
from unlearnlib.arena.plan import Plan
from unlearnlib.data.requests import Classes
from unlearnlib.influence.estimators import ESTIMATORS, Estimator, Removal, Update
from unlearnlib.influence.solvers import Solution
from unlearnlib.measures import relearning
from unlearnlib.measures.evidence import Evidence
from unlearnlib.measures.metrics import METRICS, Metric
from unlearnlib.models import training
from unlearnlib.pipeline.paths import Place
from unlearnlib.pipeline.registry import Named, Registry
from unlearnlib.pipeline.sweep import sweep
from unlearnlib.zero_shot.method import Outcome, Settings, Shape, ZeroShot
from unlearnlib.zero_shot.methods import METHODS
from unlearnlib.zero_shot.methods import run as run_zero_shot


@dataclass(frozen=True)
class Silencing(Settings):
    """How far the score of a class goes down."""

    depth: float = 10.0


def silence(
    model: nn.Module, request: Classes, *, shape: Shape, settings: Silencing, seed: int
) -> Outcome:
    """Never name a class again."""
    quiet = copy.deepcopy(model)
    with torch.no_grad():
        quiet.classifier.bias[list(request.classes)] -= settings.depth
    return Outcome(quiet, torch.zeros(0, *shape))


def stay(removal: Removal) -> Update:
    """Change nothing."""
    nothing = torch.zeros_like(removal.gradient)
    return Update(nothing, (Solution(nothing, 0.0, 0, True),))


def certainty(e: Evidence) -> float:
    """Compute the mean of the largest probability on forgotten items."""
    return e.said.logits("forgotten").softmax(1).max(1).values.mean().item()


METHOD = ZeroShot("silence", "silence", settings=Silencing, unlearn=silence)
ESTIMATOR = Estimator("stay", "stay", function=stay)
METRIC = Metric(
    "certainty", "certainty", direction="gold", digits=2, compute=certainty, ranked=True,
    serves=(Classes,), why_not="nobody asked",
)  # fmt: skip


@pytest.fixture
def registered() -> Iterator[None]:
    entries: list[tuple[Registry, Named]] = [
        (METHODS, METHOD), (ESTIMATORS, ESTIMATOR), (METRICS, METRIC),
    ]  # fmt: skip
    for registry, entry in entries:
        registry.register(entry)
    yield
    for registry, entry in entries:
        registry.unregister(entry.name)


def entrants() -> dict[str, Entrant]:
    silent = {"method": "silence", "settings": {"depth": 1e3}}
    return methods.entrants(
        baselines={}, zero_shot={"silence": {"method": "silence"}, "silence_deep": silent},
        estimators=["stay"], l2=1e-3,
    )  # fmt: skip


def run_all(plan: Plan) -> pd.DataFrame:
    """Do what the arena's notebooks do, on a toy data set."""
    lines(plan.here.data, test=100)
    models = plan.trainings(model="compact", width=0.25, recipe=RECIPE)
    sweep(training.run, models, store=plan.here.runs / "arena_models")
    jobs = {
        "zero_shot": (run_zero_shot, plan.zero_shot(entrants())),
        "influence": (unlearning.run_influence, plan.influences(entrants(), INFLUENCE)),
    }
    found = {}
    for family, (run, tasks) in jobs.items():
        found |= sweep(run, tasks, store=plan.store(family))
    settings = scores.Settings(20, 5, relearning.Settings(2, 8, 0.01))
    tasks = plan.scorings(entrants(), settings, keep="class_0")
    measured = sweep(scores.run, tasks, store=plan.here.runs / "arena")
    costs = tables.costs(plan, entrants(), found)
    return tables.arena(plan, entrants(), measured=measured, costs=costs)


def test_what_is_registered_is_in_the_arena_and_in_the_league(
    registered: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("UNLEARNLIB_ROOT", str(tmp_path))
    requests = {"class_0": CLASS, "random": GROUP}
    plan = Plan(Place("toy"), None, requests, seeds=[0], other_seeds=[0], ensembles={})
    table = run_all(plan)
    table.to_csv(tmp_path / "arena.csv", index=False)
    results = league.read(tmp_path / "arena.csv")

    assert {("random", "silence"), ("random", "silence_deep")} == results.absent
    served = set(table.loc[table["metric"] == "certainty", "method"])
    assert served == {*methods.REFERENCES, *DECOYS, *entrants()}
    reasons = table[(table["request"] == "random") & (table["metric"] == "certainty")]["reason"]
    assert set(reasons) == {"nobody asked"}
    said = results.numbers.set_index(["request", "method", "metric"])["value"]
    assert said["class_0", "silence_deep", "forget_accuracy"] == 0
    for metric in ("certainty", "js_forget", "forget_gap"):
        same = said["random", "stay", metric], said["random", "original", metric]
        assert same[0] == pytest.approx(same[1], nan_ok=True)

    means, cells = league.table(results, "class_0", counted=["js_forget"])
    assert {"stay", "silence", "silence_deep"} <= set(means.index)
    expected = abs(said["class_0", "stay", "certainty"] - said["class_0", "retrain", "certainty"])
    assert means.loc["stay", "certainty"] == pytest.approx(expected)
    assert cells.loc["stay", "certainty"] == f"{expected:.2f}"
    assert METRIC in league.columns(results, "class_0")


def test_a_metric_that_is_registered_measures_again_and_a_title_does_not(
    registered: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The tasks of the scores hold what is computed, and nothing that is said of it."""
    monkeypatch.setenv("UNLEARNLIB_ROOT", str(tmp_path))
    plan = Plan(Place("toy"), None, {"class_0": CLASS}, [0], [0], {})
    settings = scores.Settings(20, 5, relearning.Settings(2, 8, 0.01))

    def measured() -> dict[str, object]:
        (task,) = plan.scorings(entrants(), settings, keep="class_0").values()
        return task["metrics"]

    before = measured()
    METRICS.unregister("certainty")
    assert set(before) - set(measured()) == {"certainty"}
    METRICS.register(replace(METRIC, title="another", digits=5))
    assert measured() == before
