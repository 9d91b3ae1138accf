"""The arena: requests, who can serve them, and what methods and scores read."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from toys import lines

from unlearnlib.arena import arena, arena_tables, scores
from unlearnlib.data import datasets
from unlearnlib.influence import curvature, estimators
from unlearnlib.influence.curvature import Objective
from unlearnlib.influence.solvers import Dense
from unlearnlib.models import models
from unlearnlib.zero_shot import methods

CLASS = {"name": "class_0", "classes": [0]}
GROUP = {"name": "group", "mode": "random", "label": None, "size": 20, "seed": 3}
COHERENT = {"name": "coherent", "mode": "coherent", "label": 2, "size": 7, "seed": 3}
RECIPE = {"epochs": 6, "batch_size": 20, "learning_rate": 0.02, "l2": 1e-3}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train the three references of a request on a toy data set."""
    folder = tmp_path_factory.mktemp("arena")
    lines(folder / "mnist.npz", test=100)
    for name, request, seed in (
        ("original", None, 0), ("retrain", CLASS, 0), ("retrain_again", CLASS, 1),
        ("retrain_reordered", CLASS, 0),
    ):  # fmt: skip
        save(folder / f"{name}.pt", arena.run_training(training(folder, request, seed)))
    return folder


def training(folder: Path, request: dict | None, seed: int = 0, **changes: object) -> dict:
    spec = {"data": folder / "mnist.npz", "items": None, "model": "allcnn", "width": 0.05}
    return spec | RECIPE | {"name": "x", "start": seed, "seed": seed, "request": request} | changes


def save(path: Path, result: dict) -> Path:
    torch.save({"key": "", "spec": {}, "seconds": 1.0, "result": result}, path)
    return path


def baseline(place: Path, request: dict, **changes: object) -> dict:
    settings = {"epochs": 3, "batch_size": 20, "learning_rate": 0.02, "l2": 1e-3}
    spec = {"method": "random_labels", "request": request, "original": place / "original.pt"}
    files = {"data": place / "mnist.npz", "items": None, "retained_items": 150}
    return spec | files | {"name": "x", "seed": 0, "settings": settings} | changes


def influencing(place: Path, **changes: object) -> dict:
    return {
        "name": "x", "seed": 0, "original": place / "original.pt", "data": place / "mnist.npz",
        "items": None, "l2": 1e-3, "damping": 0.05, "requests": [CLASS, GROUP],
        "methods": ["first_order", "newton", "second_order", "second_order_cubic", "gif",
                    "gif_scaled"],
        "curvature_items": 60, "ratio": 0.1, "third_items": 20, "scales": [1, 4, 16, 64],
        "self_limit": 5.0, "bisections": 2,
    } | changes  # fmt: skip


# ----------------------------------------------------------------------------------- requests


def test_a_request_takes_all_of_a_class_or_the_items_of_a_group(place: Path):
    dataset = datasets.load(place / "mnist.npz")
    items = arena.items_of(dataset, None, CLASS)
    assert (items.labels[items.forgotten] == 0).all()
    assert not (items.labels[items.kept] == 0).any()
    assert len(items.forgotten) + len(items.kept) == len(items.labels)
    group = arena.items_of(dataset, None, COHERENT)
    assert len(group.forgotten) == 7
    assert (group.labels[group.forgotten] == 2).all()
    assert len(arena.items_of(dataset, None, None).forgotten) == 0


def test_a_part_of_the_training_split_is_the_same_for_every_request(place: Path):
    dataset = datasets.load(place / "mnist.npz")
    one, other = (arena.items_of(dataset, 90, request) for request in (CLASS, GROUP))
    assert torch.equal(one.images, other.images)
    assert len(one.labels) == 90


@pytest.mark.parametrize(
    ("count", "request_", "message"),
    [
        (201, CLASS, "the training split has 200"),
        (0, CLASS, "items=0"),
        (None, {"name": "x", "classes": [12]}, "holds 12"),
        (None, COHERENT | {"size": 500}, "size=500"),
    ],
)
def test_bad_requests_are_refused(place: Path, count: int | None, request_: dict, message: str):
    with pytest.raises(ValueError, match=message):
        arena.items_of(datasets.load(place / "mnist.npz"), count, request_)


def test_methods_without_data_do_not_take_groups():
    assert arena.not_applicable("zero_shot", "gkt", CLASS) is None
    assert "takes classes" in arena.not_applicable("zero_shot", "gkt", GROUP)
    assert arena.not_applicable("influence", "gif", GROUP) is None
    assert "scale" in arena.not_applicable("influence", "gif_scaled", GROUP)
    with pytest.raises(ValueError, match="unknown family 'magic'"):
        arena.not_applicable("magic", "x", CLASS)


# -------------------------------------------------------------------------------------- runs


def test_a_retrained_model_has_not_seen_the_items(place: Path):
    results = [models.load_result(place / f"{name}.pt") for name in ("original", "retrain")]
    assert [result["train_images"] for result in results] == [200, 180]
    said = listen(place, "retrain")
    assert said.accuracy("forgotten", sets(place)) == 0


def test_a_baseline_forgets(place: Path):
    result = arena.run_baseline(baseline(place, CLASS))
    network = models.unpack(result["models"]["class_0"]["random_labels"])
    said = scores.listen(network, sets(place))
    assert said.accuracy("forgotten", sets(place)) < 30
    assert result["seconds"]["class_0"]["random_labels"] > 0
    with pytest.raises(ValueError, match="unknown method 'magic'"):
        arena.run_baseline(baseline(place, CLASS, method="magic"))


@pytest.mark.parametrize("kind", methods.KINDS)
def test_zero_shot_methods_read_the_model_alone(place: Path, kind: str):
    synthesis = {"per_class": 4, "steps": 2, "batch_size": 18}
    parts = {
        "mm_noise": {"settings": {"per_class": 2, "noise_steps": 2, "batch_size": 10}},
        "gkt": {
            "settings": {
                "pseudo_batches": 2, "snapshots": 1, "batch_size": 8, "generator_channels": 4,
            }
        },
        "deep_inversion": {
            "synthesis": synthesis,
            "distillation": {"steps": 6, "batch_size": 12, "gate_threshold": 1.0},
        },
        "masked_distillation": {"synthesis": synthesis, "tuning": {"steps": 3, "batch_size": 12}},
    }[kind]  # fmt: skip
    spec = {"name": "x", "method": "m", "request": CLASS, "seed": 0}
    spec |= {"original": place / "original.pt", "settings": {"kind": kind} | parts}
    result = arena.run_zero_shot(spec)
    assert models.num_classes(models.unpack(result["models"]["class_0"]["m"])) == 10
    with pytest.raises(ValueError, match="'group': m takes classes"):
        arena.run_zero_shot(spec | {"request": GROUP})
    with pytest.raises(ValueError, match="unknown kind 'magic'"):
        arena.run_zero_shot(spec | {"settings": {"kind": "magic"}})


def test_influence_serves_several_requests_from_one_matrix(place: Path):
    found = arena.run_influence(influencing(place))
    assert set(found["models"]["class_0"]) == set(influencing(place)["methods"])
    assert set(found["models"]["group"]) == set(influencing(place)["methods"]) - {"gif_scaled"}
    assert found["residual"] < 1e-6
    assert found["scales"]["class_0"]["gif"] == 1
    scaled = models.unpack(found["models"]["class_0"]["gif_scaled"])
    assert scores.listen(scaled, sets(place)).accuracy("forgotten", sets(place)) <= 5


def test_newton_of_the_arena_is_that_of_the_kept_part_of_the_sample(place: Path):
    everything = influencing(place, methods=["newton"], requests=[CLASS], curvature_items=200)
    found = arena.run_influence(everything)["models"]["class_0"]["newton"]
    items = arena.items_of(datasets.load(place / "mnist.npz"), None, CLASS)
    original = models.load(place / "original.pt").eval()
    objective = Objective(original, items.images, items.labels, l2=1e-3)
    matrix = curvature.gauss_newton(objective, index=items.kept)
    gradient = curvature.gradient_sum(objective, index=items.forgotten)
    sizes = {"items": 200, "removed": len(items.forgotten)}
    expected = estimators.newton(gradient, Dense(matrix, 0.05), **sizes).delta
    moved = curvature.flatten(models.unpack(found)) - curvature.flatten(original)
    torch.testing.assert_close(moved.double(), expected, rtol=1e-3, atol=1e-5)


def test_second_order_of_the_arena_is_influences_own(place: Path):
    """With all items in the sample there is one form of the estimator."""
    spec = influencing(place, methods=["second_order"], requests=[CLASS], curvature_items=200)
    found = arena.run_influence(spec)["models"]["class_0"]["second_order"]
    items = arena.items_of(datasets.load(place / "mnist.npz"), None, CLASS)
    original = models.load(place / "original.pt").eval()
    objective = Objective(original, items.images, items.labels, l2=1e-3)
    system = Dense(curvature.gauss_newton(objective), 0.05)
    expected = estimators.estimate("second_order", objective, items.forgotten, system).delta
    moved = curvature.flatten(models.unpack(found)) - curvature.flatten(original)
    torch.testing.assert_close(moved.double(), expected, rtol=1e-3, atol=1e-5)


def test_a_group_that_is_not_in_the_sample_has_no_curvature(place: Path):
    """Newton's step is then the first order's, and the second order's a multiple of it."""
    one = {"name": "one", "mode": "random", "label": None, "size": 1, "seed": 0}
    spec = influencing(
        place, methods=["first_order", "newton", "second_order"], requests=[one], curvature_items=2
    )
    found = arena.run_influence(spec)["models"]["one"]
    start = curvature.flatten(models.load(place / "original.pt"))
    first, newton, second = (
        curvature.flatten(models.unpack(found[m])) - start for m in spec["methods"]
    )
    torch.testing.assert_close(newton, first)
    assert torch.nn.functional.cosine_similarity(second, first, 0) > 0.99


# ------------------------------------------------------------------------------------- scores


def sets(place: Path, request: dict = CLASS) -> scores.Sets:
    return scores.sets_of(datasets.load(place / "mnist.npz"), request, items=None, most=50)


def listen(place: Path, name: str, request: dict = CLASS) -> scores.Said:
    return scores.listen(models.load(place / f"{name}.pt"), sets(place, request))


def scoring(place: Path, request: dict = CLASS, **changes: object) -> dict:
    save(place / "run_0.pt", arena.run_baseline(baseline(place, request)))
    return {
        "name": "x", "seed": 0, "data": place / "mnist.npz", "items": None, "request": request,
        "most": 50, "margins": 10, "keep": False, "runs": 1, "run_0": place / "run_0.pt",
        "relearning": {"steps": 4, "batch_size": 10, "learning_rate": 0.01},
    } | {name: place / f"{name}.pt" for name in scores.REFERENCES} | changes  # fmt: skip


def test_sets_of_a_class_and_of_a_group(place: Path):
    of_class, of_group = sets(place), sets(place, GROUP)
    assert of_class.unseen[1].unique().tolist() == [0]
    assert 0 not in of_class.test[1]
    assert len(of_class.unseen[1]) + len(of_class.test[1]) == len(of_class.everything[1])
    assert len(of_group.test[1]) == len(of_group.everything[1])
    assert len(of_group.forgotten[1]) == 20
    assert sets(place, COHERENT).unseen[1].unique().tolist() == [2]


def test_gold_is_like_itself(place: Path):
    result = scores.run(scoring(place))
    gold, original = (result["scores"][name] for name in ("retrain", "original"))
    for metric in ("js_forget", "activation_distance_retain", "confusion_shift"):
        assert gold[metric] == pytest.approx(0, abs=1e-9)
    assert original["js_forget"] > 0.1
    for metric, value in (("tow", 1), ("completeness_forget", 100), ("cka_retain", 1), ("ain", 1)):
        assert gold[metric] == pytest.approx(value)
    assert gold["mia_gap"] == gold["forget_gap"] == 0
    assert original["forget_gap"] > 50
    assert result["relearning"]["original"][0] > result["relearning"]["retrain"][0]
    assert len(result["margins"]["random_labels"]["forgotten"]) == 10


def test_what_does_not_apply_to_a_group_has_a_reason(place: Path):
    spec = scoring(place, GROUP)
    rows = arena_tables.score_rows([{"spec": spec, "result": scores.run(spec)}])
    assert all(row["value"] != "" and row["value"] == row["value"] for row in rows)
    none = {row["metric"]: row["reason"] for row in rows if row["value"] == "not applicable"}
    assert {"forget_test_accuracy", "probe"} <= set(none)
    assert "should tell them apart" in none["probe"]


def test_ensembles_need_margins_alone(place: Path):
    result = scores.run(scoring(place, relearning=None))
    assert set(result) == {"margins", "scores"}
    assert set(result["scores"]["retrain"]) == {"forget_accuracy", "retain_accuracy"} | {
        f"{name}_{part}"
        for name in ("js", "activation_distance", "completeness")
        for part in ("forget", "retain")
    } | {"forget_gap", "retain_gap"}
    pair = arena_tables.ensembles([{"result": result}] * 3, "random_labels", "forgotten")
    assert [part.shape for part in pair] == [(3, 10), (3, 10)]
    assert np.isfinite(pair[0]).all()


def test_a_score_that_does_not_apply_is_no_blank():
    assert arena_tables.cell("tow", 0.5) == {"value": 0.5, "reason": ""}
    assert arena_tables.cell("cka_forget", math.nan)["reason"] == "the model's answers do not vary"
