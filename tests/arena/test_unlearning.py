"""The runs of the arena: what baselines and influence read and leave."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from arena_tasks import CLASS, GROUP, INFLUENCE, RECIPE, save, trained

from unlearnlib.arena import unlearning
from unlearnlib.arena.baselines import BASELINES, Erasure
from unlearnlib.arena.unlearning import Unlearned
from unlearnlib.data import datasets
from unlearnlib.data.requests import Group, Request, rest
from unlearnlib.influence import curvature, estimators
from unlearnlib.influence.curvature import Objective
from unlearnlib.influence.estimators import ESTIMATORS, Removal
from unlearnlib.influence.solvers import Dense
from unlearnlib.measures import accuracy
from unlearnlib.models import checkpoints, training
from unlearnlib.pipeline import clock, records

WHOLE = replace(INFLUENCE, curvature_items=200)  # all items are in the sample
ONE = {"class_0": CLASS}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("arena"))


def items(place: Path) -> tuple[torch.Tensor, torch.Tensor]:
    return training.training_items(datasets.load(place / "mnist.npz"))


def forgotten_accuracy(place: Path, network: torch.nn.Module) -> float:
    images, labels = items(place)
    gone = CLASS.mask(labels)
    return accuracy.score(network.eval(), images[gone], labels[gone])["accuracy"]


def influencing(place: Path, names: list[str], **changes: Any) -> dict[str, Any]:
    arguments = {
        "original": place / "original.pt",
        "data": place / "mnist.npz",
        "items": None,
        "requests": {"class_0": CLASS, "group": GROUP},
        "methods": [ESTIMATORS[name] for name in names],
        "settings": INFLUENCE,
        "seed": 0,
    }
    return unlearning.run_influence(**arguments | changes)


def objective(place: Path) -> Objective:
    return Objective(checkpoints.load(place / "original.pt").eval(), *items(place), l2=1e-3)


def moved(place: Path, packed: dict[str, Any]) -> torch.Tensor:
    start = curvature.flatten(checkpoints.load(place / "original.pt"))
    return curvature.flatten(checkpoints.unpack(packed)) - start


# ---------------------------------------------------------------------------------- with data


def baseline(place: Path, name: str, request: Request = CLASS, **changes: Any) -> dict[str, Any]:
    arguments = {"original": place / "original.pt", "data": place / "mnist.npz", "items": None}
    arguments |= {"request": request, "retained_items": 150, "seed": 0, "settings": RECIPE}
    return unlearning.run_baseline(method=BASELINES[name], **arguments | changes)


def test_gold_has_not_seen_the_items(place: Path):
    results = [records.result(place / f"{name}.pt") for name in ("original", "retrain")]
    assert [result["train_images"] for result in results] == [200, 180]
    original, gold = (checkpoints.unpack(result["model"]) for result in results)
    assert forgotten_accuracy(place, gold) == 0 < forgotten_accuracy(place, original)


def test_a_baseline_forgets_and_is_timed(place: Path):
    with clock.collected() as timings:
        result = baseline(place, "random_labels")
    assert forgotten_accuracy(place, checkpoints.unpack(result["model"])) < 30
    assert timings["unlearning"] > 0
    assert set(result) == {"model", "train_images"}


def test_a_baseline_says_how_many_images_it_was_handed(place: Path):
    alone = baseline(place, "delete", settings=Erasure(epochs=1, batch_size=4), retained_items=0)
    assert alone["train_images"] == 20
    assert baseline(place, "fine_tune")["train_images"] == 20 + 150


def test_a_baseline_reads_only_so_many_of_those_that_stay(place: Path):
    seen = []

    def unlearn(network, forgotten, retained, *, settings, seed):
        seen.append((forgotten[1], retained[1]))
        return network

    spy = replace(BASELINES["fine_tune"], unlearn=unlearn)
    for seed in (0, 1):
        unlearning.run_baseline(
            method=spy, settings=RECIPE, request=CLASS, original=place / "original.pt",
            data=place / "mnist.npz", items=None, retained_items=30, seed=seed,
        )  # fmt: skip
    (gone, stay), (_, others) = seen
    assert gone.unique().tolist() == [0]
    assert len(stay) == len(others) == 30
    assert 0 not in stay
    assert not torch.equal(stay, others)


def test_a_request_that_the_items_cannot_give_is_refused(place: Path):
    with pytest.raises(ValueError, match="size=500"):
        baseline(place, "fine_tune", Group("coherent", 2, 500))


# ---------------------------------------------------------------------------------- influence


def test_influence_serves_several_requests_from_one_matrix(place: Path):
    names = ["first_order", "newton", "second_order", "second_order_cubic", "gif", "gif_scaled"]
    with clock.collected() as timings:
        found = influencing(place, names)
    assert set(found["models"]["class_0"]) == set(names)
    assert set(found["models"]["group"]) == set(names) - {"gif_scaled"}
    assert found["residual"] < 1e-6
    assert found["scales"]["class_0"]["gif"] == 1
    scaled = checkpoints.unpack(found["models"]["class_0"]["gif_scaled"])
    assert forgotten_accuracy(place, scaled) <= 5
    assert set(timings) == {"curvature"} | {
        f"{request}/{name}" for request, models in found["models"].items() for name in models
    }
    # the scaled variant is charged with the update that both share, and with its search
    assert timings["class_0/gif_scaled"] > timings["class_0/gif"] > 0


def test_newton_of_the_arena_is_that_of_the_kept_part_of_the_sample(place: Path):
    found = influencing(place, ["newton"], settings=WHOLE, requests=ONE)["models"]["class_0"][
        "newton"
    ]
    whole = objective(place)
    gone = CLASS.positions(whole.targets)
    kept = curvature.gauss_newton(whole, index=rest(200, gone))
    gradient = curvature.gradient_sum(whole, index=gone)
    expected = estimators.newton(gradient, Dense(kept, 0.05), items=200, removed=len(gone)).delta
    torch.testing.assert_close(moved(place, found).double(), expected, rtol=1e-3, atol=1e-5)


def test_second_order_of_the_arena_is_influences_own(place: Path):
    """With all items in the sample there is one form of the estimator."""
    found = influencing(place, ["second_order"], settings=WHOLE, requests=ONE)["models"]["class_0"]
    whole = objective(place)
    removal = Removal(
        whole, CLASS.positions(whole.targets), Dense(curvature.gauss_newton(whole), 0.05)
    )
    expected = ESTIMATORS["second_order"].update(removal).delta
    delta = moved(place, found["second_order"]).double()
    torch.testing.assert_close(delta, expected, rtol=1e-3, atol=1e-5)


def test_a_group_that_is_not_in_the_sample_moves_as_the_first_order(place: Path):
    one = {"one": Group("random", None, 1)}
    few = replace(INFLUENCE, curvature_items=2)
    names = ["first_order", "newton", "second_order"]
    found = influencing(place, names, requests=one, settings=few)["models"]["one"]
    first, newton, second = (moved(place, found[name]) for name in names)
    torch.testing.assert_close(newton, first)
    assert torch.nn.functional.cosine_similarity(second, first, 0) > 0.99


# --------------------------------------------------------------------------------- what is left


def test_models_are_found_wherever_a_run_left_them(place: Path, tmp_path: Path):
    single = save(tmp_path / "single.pt", baseline(place, "fine_tune"))
    several = save(tmp_path / "several.pt", influencing(place, ["first_order", "gif"]))
    where = {
        "a": Unlearned(single),
        "b": Unlearned(several, ("models", "group", "gif")),
        "c": Unlearned(several, ("models", "class_0", "gif")),
    }
    found = unlearning.networks_of(where)
    assert list(found) == ["a", "b", "c"]
    expected = checkpoints.unpack(records.result(several)["models"]["group"]["gif"])
    assert torch.equal(curvature.flatten(found["b"]), curvature.flatten(expected))
    assert not torch.equal(curvature.flatten(found["b"]), curvature.flatten(found["c"]))


def test_the_seconds_of_influence_count_the_shared_curvature_in_full(tmp_path: Path):
    timings = {"curvature": 7.0, "class_0/gif": 2.0, "unlearning": 0.5}
    record = records.read(save(tmp_path / "x.pt", {"x": 1}, timings=timings))
    assert Unlearned(tmp_path, ("models", "class_0", "gif")).seconds(record) == 9
    assert Unlearned(tmp_path).seconds(record) == 0.5
