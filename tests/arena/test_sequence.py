"""Classes that go one after the other: each step starts where the last one ended."""

import inspect
from functools import partial
from pathlib import Path

import pytest
from arena_tasks import CLASS, RECIPE
from toys import lines

from unlearnlib.arena import methods, scores, unlearning
from unlearnlib.arena.plan import Plan
from unlearnlib.arena.sequence import MEASURED, Chain
from unlearnlib.data.requests import Classes
from unlearnlib.measures import relearning
from unlearnlib.models import training
from unlearnlib.pipeline.paths import Place
from unlearnlib.pipeline.sweep import sweep
from unlearnlib.zero_shot import methods as zero_shot

SETTINGS = scores.Settings(20, 5, relearning.Settings(2, 8, 0.01))


@pytest.fixture
def chain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Chain:
    monkeypatch.setenv("UNLEARNLIB_ROOT", str(tmp_path))
    here = Place("toy")
    here.data.parent.mkdir(parents=True)
    lines(here.data)
    plan = Plan(here, None, {"class_0": CLASS}, seeds=[0, 1], other_seeds=[1], ensembles={})
    trainings = plan.trainings(model="allcnn", width=0.05, recipe=RECIPE)
    some = {name: task for name, task in trainings.items() if name == "original-seed1"}
    sweep(training.run, some, store=here.runs / "arena_models")
    entrants = methods.entrants(
        baselines={"fine_tune": {"epochs": 1, "batch_size": 20, "learning_rate": 0.01}},
        zero_shot={"masked_logit": {"method": "masked_logit", "settings": {}}},
        estimators=[],
        l2=1e-3,
    )
    return Chain(plan, entrants, [2, 0], retained_items=10)


def test_a_step_starts_where_the_last_one_ended_and_asks_for_all_classes_so_far(chain: Chain):
    assert chain.requests == [Classes([2]), Classes([0, 2])]
    first, second = (chain.unlearnings(step, "zero_shot") for step in (0, 1))
    assert list(first) == ["steps-masked_logit-seed1"]
    assert list(second) == ["steps-masked_logit-seed1", "once-masked_logit-seed1"]
    assert second["steps-masked_logit-seed1"]["original"] == chain.left(
        0, "steps", "masked_logit", 1
    )
    assert second["once-masked_logit-seed1"]["original"] == chain.original(1)
    for run, tasks in (
        (zero_shot.run, second),
        (unlearning.run_baseline, chain.unlearnings(1, "data")),
        (training.run, chain.trainings(1)),
        (scores.run, chain.scorings(1, SETTINGS)),
    ):
        for arguments in tasks.values():
            inspect.signature(run).bind(**arguments)
    gold = chain.trainings(1)["seed1"]
    assert (gold["recipe"], gold["request"]) == (RECIPE, Classes([0, 2]))


def test_every_step_and_way_is_measured(chain: Chain):
    table = chain.run(partial(sweep, workers=1), SETTINGS, store=chain.plan.here.runs / "sequence")
    assert set(table["metric"]) <= set(MEASURED)
    cells = set(zip(table["step"], table["classes"], table["method"], table["way"], strict=True))
    for step, classes in ((1, "2"), (2, "2 0")):
        assert (step, classes, "original", "") in cells
        assert (step, classes, "fine_tune", "steps") in cells
    assert (1, "2", "masked_logit", "once") not in cells
    masked = table[(table["method"] == "masked_logit") & (table["step"] == 2)]
    gaps = masked[masked["metric"] == "forget_gap"].set_index("way")["value"]
    # the logits of both classes are masked, whichever way
    assert gaps["steps"] == gaps["once"] <= 0


def test_bad_chains_are_refused(chain: Chain):
    for classes in ([0], [0, 0]):
        with pytest.raises(ValueError, match="at least two, each once"):
            Chain(chain.plan, chain.entrants, classes, 10)
    influence = methods.entrants(baselines={}, zero_shot={}, estimators=["newton"], l2=1e-3)
    with pytest.raises(ValueError, match="newton.* cannot go on"):
        Chain(chain.plan, influence, [0, 1], 10)
