"""How settings of the baselines were chosen: alike for all, without test images, by one criterion."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from arena_tasks import CLASS, GROUP, RECIPE, save
from toys import lines

from unlearnlib.arena import trials
from unlearnlib.arena.baselines import BASELINES
from unlearnlib.arena.trials import EACH, SEEDS, TRIED
from unlearnlib.data import datasets
from unlearnlib.data.datasets import Dataset
from unlearnlib.data.requests import rest
from unlearnlib.measures import accuracy
from unlearnlib.models import checkpoints, training
from unlearnlib.pipeline import parameters
from unlearnlib.pipeline.paths import root

ACCURACIES = ["retain_accuracy", "forget_accuracy"]
MEASURED = [*ACCURACIES, "retain_gap", "forget_gap", "gap"]
SMALL = {"epochs": 1, "batch_size": 20, "learning_rate": 0.02}
SECTIONS: dict[str, Any] = {
    "study": {
        "l2": 1e-3,
        "arena_plan": {
            "items": 150,
            "requests": {
                "class_0": {"classes": [0]},
                "random": {"mode": "random", "label": None, "size": 20, "seed": 3},
                "class_8": {"classes": [8]},
            },
        },
    },
    "arena_models": {"model": "allcnn", "width": 0.03, "curvature_items": 9} | SMALL,
    "arena": {"retained_items": 60},
}


def test_every_setting_is_measured_for_every_request_and_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("UNLEARNLIB_ROOT", str(tmp_path))
    data = lines(tmp_path / "toy.npz")
    quick = [SMALL, SMALL | {"learning_rate": 0.005}]
    found = trials.table({"fine_tune": quick, "salun": [SMALL]}, data=data, sections=SECTIONS)
    assert list(found) == ["method", "settings", "request", "seed", *MEASURED, "seconds"]
    assert found["method"].tolist() == ["fine_tune"] * 8 + ["salun"] * 4
    assert [json.loads(one) for one in found["settings"][::4]] == [*quick, SMALL]
    assert found["request"].tolist() == ["class_0", "class_0", "random", "random"] * 3
    assert found["seed"].tolist() == [*SEEDS] * 6
    assert found[MEASURED].notna().all(axis=None)
    parts = found["retain_gap"].abs() + found["forget_gap"].abs()
    assert found["gap"].tolist() == pytest.approx(parts.tolist(), abs=2e-3)
    models = {file.stem for file in (tmp_path / "build" / "arena_trials" / "models").glob("*.pt")}
    assert models == {f"{n}-seed{s}" for n in ("original", "class_0", "random") for s in SEEDS}


def test_the_golds_of_the_trials_are_golds_of_the_arena(tmp_path: Path):
    asked = {"class_0": CLASS, "random": GROUP}
    tasks = trials.trainings(tmp_path / "toy.npz", SECTIONS, asked=asked)
    assert [tasks[f"{n}-seed1000"]["request"] for n in ("original", *asked)] == [None, CLASS, GROUP]
    recipe = tasks["random-seed1001"]["recipe"]
    assert (recipe.epochs, recipe.batch_size, recipe.l2) == (1, 20, 1e-3)
    assert {task["seed"] for task in tasks.values()} == set(SEEDS)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An original and a gold without a class, well trained."""
    folder = tmp_path_factory.mktemp("trials")
    data = lines(folder / "toy.npz", test=100)
    for name, request in {"original": None, "gold": CLASS}.items():
        result = training.run(
            data=data, model="allcnn", width=0.05, recipe=RECIPE, request=request, seed=0
        )
        save(folder / f"{name}.pt", result)
    return folder


def tried(pair: Path, gold: str, method: str, given: dict[str, Any]) -> dict[str, float]:
    return trials.run(
        original=pair / "original.pt", gold=pair / f"{gold}.pt", data=pair / "toy.npz",
        items=None, retained_items=150, request=CLASS, method=BASELINES[method],
        settings=trials.settings_of(method, given, l2=1e-3), seed=0,
    )  # fmt: skip


def test_what_forgets_is_near_to_gold_and_what_does_nothing_is_not(pair: Path):
    settings = {"epochs": 6, "batch_size": 20, "learning_rate": 0.02}
    idle = tried(
        pair, "gold", "gradient_ascent", {"steps": 1, "batch_size": 20, "learning_rate": 1e-9}
    )
    found = tried(pair, "gold", "random_labels", settings)
    assert idle["forget_gap"] == idle["forget_accuracy"] > 50
    assert found["gap"] < idle["gap"] / 2
    # next to itself, the original is no distance away
    alone = tried(
        pair, "original", "gradient_ascent", {"steps": 1, "batch_size": 20, "learning_rate": 1e-9}
    )
    assert alone["gap"] == 0


@pytest.mark.parametrize("request_", [CLASS, GROUP])
def test_no_test_image_is_looked_at(pair: Path, request_: Any, monkeypatch: pytest.MonkeyPatch):
    dataset, network = datasets.load(pair / "toy.npz"), checkpoints.load(pair / "original.pt")
    asked, plain = [], datasets.split

    def split(dataset: Dataset, name: str) -> Any:
        asked.append(name)
        return plain(dataset, name)

    monkeypatch.setattr(datasets, "split", split)
    found = trials.measured(network, dataset, request_, items=None)
    assert set(asked) == {"train", "validation"}
    images, labels = plain(dataset, "train")
    gone = request_.positions(labels)
    assert (
        found["forget_accuracy"] == accuracy.score(network, images[gone], labels[gone])["accuracy"]
    )
    held, truth = plain(dataset, "validation")
    stay = rest(len(truth), CLASS.positions(truth)) if request_ is CLASS else range(len(truth))
    assert found["retain_accuracy"] == accuracy.score(network, held[stay], truth[stay])["accuracy"]


def test_the_least_mean_gap_is_chosen_and_of_equal_ones_the_first():
    rows = [
        ("a", "x", "class_0", 1.0), ("a", "x", "random", 9.0),  # 5
        ("a", "y", "class_0", 4.0), ("a", "y", "random", 4.0),  # 4
        ("b", "v", "class_0", 2.0), ("b", "v", "random", 2.0),
        ("b", "u", "class_0", 1.0), ("b", "u", "random", 3.0),
    ]  # fmt: skip
    found = trials.chosen(pd.DataFrame(rows, columns=["method", "settings", "request", "gap"]))
    assert found["settings"].to_dict() == {"a": "y", "b": "v"}
    assert found["gap"].to_dict() == {"a": 4.0, "b": 2.0}
    assert found["trials"].to_dict() == {"a": 2, "b": 2}


def test_a_method_is_run_again_alone_and_the_rest_of_the_table_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("UNLEARNLIB_ROOT", str(tmp_path))
    (tmp_path / "params").mkdir()
    asked = []

    def planted(tried: dict[str, list], **_: object) -> pd.DataFrame:
        asked.append(list(tried))
        rows = [{"method": name, "settings": "{}", "gap": len(asked)} for name in tried]
        return pd.DataFrame(rows)

    monkeypatch.setattr(trials, "table", planted)
    monkeypatch.setattr(trials.parameters, "load", lambda _: {})
    monkeypatch.setattr(trials, "TRIED", {"delete": [{}], "scrub": [{}]})
    trials.main([])
    trials.main(["delete"])
    assert asked == [["delete", "scrub"], ["delete"]]
    found = pd.read_csv(tmp_path / "params" / "arena_trials.csv", comment="#")
    assert found.to_numpy().tolist() == [["delete", "{}", 2], ["scrub", "{}", 1]]
    with pytest.raises(ValueError, match=r"no trials of \['scrap'\]; there are those of"):
        trials.main(["scrap"])


# ---------------------------------------------------------------------------------- the settings


def test_every_baseline_has_as_many_settings_all_of_which_it_takes():
    assert set(TRIED) == set(BASELINES)
    for name, some in TRIED.items():
        built = [trials.settings_of(name, given, l2=1e-3) for given in some]
        assert len(built) == EACH, name
        assert all(a != b for i, a in enumerate(built) for b in built[:i]), name
        assert all(getattr(one, "l2", 1e-3) == 1e-3 for one in built), name


def test_no_seed_of_a_trial_is_reported_in_the_arena():
    for profile in parameters.profiles():
        plan = parameters.load(profile)["study"]["arena_plan"]
        reported = {*plan["seeds"], *range(max(plan["ensembles"].values(), default=0))}
        assert not set(SEEDS) & reported, profile


def test_the_committed_table_has_every_trial():
    found = pd.read_csv(root() / "params" / "arena_trials.csv", comment="#")
    listed = [
        (name, json.dumps(given), request, seed)
        for name, some in TRIED.items()
        for given in some
        for request in trials.REQUESTS
        for seed in SEEDS
    ]
    keys = ["method", "settings", "request", "seed"]
    assert [*found[keys].itertuples(index=False, name=None)] == listed
    assert found[ACCURACIES].min(axis=None) >= 0
    assert found[ACCURACIES].max(axis=None) <= 100


def test_the_arena_takes_the_best_of_the_settings_that_were_tried():
    best = trials.chosen(pd.read_csv(root() / "params" / "arena_trials.csv", comment="#"))
    given = parameters.load("standard")["arena"]["baselines"]
    assert set(best.index) <= set(given)
    for name, one in best["settings"].items():
        built = trials.settings_of(name, json.loads(one), l2=1e-3)
        assert trials.settings_of(name, given[name], l2=1e-3) == built, name
