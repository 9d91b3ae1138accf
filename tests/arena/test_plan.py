"""The tasks that the arena plans: which models, which methods on which requests, what is measured."""

import inspect
from typing import Any

import pytest
from arena_tasks import CLASS, GROUP, INFLUENCE, RECIPE, entrants, plan

from unlearnlib.arena import scores, unlearning
from unlearnlib.arena.plan import Plan
from unlearnlib.arena.scores import Settings
from unlearnlib.measures import metrics, relearning
from unlearnlib.models import training
from unlearnlib.pipeline.paths import Place
from unlearnlib.zero_shot import methods

SETTINGS = Settings(most=5, margins=3, relearning=relearning.Settings(1, 2, 0.1))


def all_tasks() -> dict[str, tuple[Any, dict[str, dict[str, Any]]]]:
    return {
        "trainings": (
            training.run,
            plan().trainings(model="allcnn", width=0.05, recipe=RECIPE),
        ),
        "data": (unlearning.run_baseline, plan().baselines(entrants(), retained_items=7)),
        "zero_shot": (methods.run, plan().zero_shot(entrants())),
        "influence": (unlearning.run_influence, plan().influences(entrants(), INFLUENCE)),
        "scores": (scores.run, plan().scorings(entrants(), SETTINGS, keep="class_0")),
    }


@pytest.mark.parametrize("kind", ["trainings", "data", "zero_shot", "influence", "scores"])
def test_tasks_are_what_their_run_takes(kind: str):
    run, tasks = all_tasks()[kind]
    assert tasks
    for arguments in tasks.values():
        inspect.signature(run).bind(**arguments)


def test_a_plan_is_read_from_parameters():
    requests = {"class_0": {"classes": [0]}, "random": {"mode": "random", "size": 20, "seed": 3}}
    given = {"items": 50, "seeds": [0, 1], "other_seeds": [0, 1]}
    given |= {"ensembles": {"class_0": 3}}
    found = Plan.of(Place("quick"), given | {"requests": requests})
    assert found.requests == {"class_0": CLASS, "random": GROUP}
    assert list(found.pairs()) == list(plan().pairs())


def test_every_model_is_trained_once_and_golds_are_paired_with_originals():
    tasks = plan().trainings(model="allcnn", width=0.05, recipe=RECIPE)
    assert len(tasks) == 3 + 2 * (3 + 2) + (2 + 2)
    assert all(task["items"] == 50 and task["recipe"] is RECIPE for task in tasks.values())
    names = ("original", "class_0", "class_0-again", "class_0-reordered")
    original, gold, again, reordered = (tasks[f"{name}-seed1"] for name in names)
    assert original["request"] is None
    assert gold == original | {"request": CLASS}
    assert (gold["seed"], gold["start"]) == (1, None)
    assert again["seed"] != 1  # other weights and another order
    assert again["start"] is None
    assert reordered["seed"] not in (1, again["seed"])
    assert reordered["start"] == 1  # gold's own weights in another order
    assert {task["request"] for task in tasks.values()} == {None, CLASS, GROUP}


def test_every_reference_is_trained_before_it_is_read():
    tasks = plan().trainings(model="allcnn", width=0.05, recipe=RECIPE)
    for name, seed in plan().pairs():
        assert {path.stem for path in plan().references(name, seed).values()} <= set(tasks)
    assert "retrain_reordered" in plan().references("class_0", 1)
    assert "retrain_reordered" not in plan().references("class_0", 2)


def test_expensive_methods_serve_the_seeds_alone_and_groups_not_at_all():
    tasks = plan().zero_shot(entrants())
    assert {task["request"] for task in tasks.values()} == {CLASS}
    assert sorted(tasks) == [
        *(f"class_0-gkt_short-seed{seed}" for seed in (0, 1)),
        *(f"class_0-mm_noise-seed{seed}" for seed in (0, 1, 2)),
    ]
    one = tasks["class_0-gkt_short-seed1"]
    assert one["settings"] == entrants()["gkt_short"].settings
    assert one["original"] == plan().model("original", 1)


def test_influence_serves_all_requests_of_an_original_at_once():
    tasks = plan().influences(entrants(), INFLUENCE)
    assert {n: list(task["requests"]) for n, task in tasks.items()} == {
        "influence-seed0": ["class_0", "random"],
        "influence-seed1": ["class_0", "random"],
        "influence-seed2": ["class_0"],
    }
    methods_of = {n: [one.name for one in task["methods"]] for n, task in tasks.items()}
    assert methods_of["influence-seed0"] == ["first_order", "gif", "gif_scaled"]
    assert methods_of["influence-seed2"] == ["first_order"]


def test_what_is_measured_is_what_was_unlearned():
    made = {
        plan().store(family) / f"{name}.pt"
        for family in ("data", "zero_shot", "influence")
        for name in all_tasks()[family][1]
    }
    tasks = plan().scorings(entrants(), SETTINGS, keep="class_0")
    read = {one.file for task in tasks.values() for one in task["unlearned"].values()}
    assert read == made
    group = tasks["random-seed0"]["unlearned"]
    assert list(group) == ["fine_tune", "first_order", "gif"]
    assert group["gif"].keys == ("models", "random", "gif")
    assert group["fine_tune"].keys == ("model",)
    assert list(tasks["class_0-seed2"]["unlearned"]) == ["fine_tune", "mm_noise", "first_order"]


def test_further_models_of_an_ensemble_are_measured_by_the_cheap_metrics_alone():
    tasks = plan().scorings(entrants(), SETTINGS, keep="class_0")
    whole, cheap, group = (
        tasks[name]["metrics"] for name in ("class_0-seed1", "class_0-seed2", "random-seed0")
    )
    assert "probe" in whole and "probe" not in group
    assert set(cheap) == {name for name, metric in metrics.METRICS.items() if metric.cheap}
    assert {name: task["keep"] for name, task in tasks.items() if task["keep"]} == {
        "class_0-seed0": True
    }
    with pytest.raises(ValueError, match="none of the requests"):
        plan().scorings(entrants(), SETTINGS, keep="other")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ensembles": {"other": 3}}, "no request named"),
        ({"seeds": [0, 7]}, "not all among the ensemble's 0 to 2 of class_0"),
        ({"other_seeds": [0, 7]}, "not all among"),
    ],
)
def test_bad_plans_are_refused(changes: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        plan(**changes)
