"""The run that serves every zero-shot method, and a method that is added from outside."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn
from toys import CLASSES, SHAPE, record, states_equal, taught, tiny

from unlearnlib.data.requests import Classes, Group, RequestError
from unlearnlib.models import checkpoints
from unlearnlib.pipeline import fingerprint
from unlearnlib.pipeline.registry import UnknownNameError
from unlearnlib.pipeline.sweep import sweep
from unlearnlib.zero_shot import (
    deep_inversion,
    gkt,
    masked_distillation,
    method,
    methods,
    mm_noise,
    read_out,
    stopping,
)
from unlearnlib.zero_shot.method import Outcome, ZeroShot

DRAWN = deep_inversion.Synthesis(per_class=2, steps=1)
SMALL = {  # settings with which each method takes a moment
    "mm_noise": mm_noise.Settings(per_class=2, noise_steps=1, steps=1, repair_steps=1),
    "gkt": gkt.Settings(
        gkt.Transfer(
            pseudo_batches=2,
            batch_size=8,
            generator_channels=8,
            student_steps=1,
            snapshots=1,
            gate_threshold=1.0,
        ),
        stopping.Stop(rule="leak"),
    ),
    "deep_inversion": deep_inversion.Settings(
        DRAWN, deep_inversion.Distillation(steps=2, batch_size=4, gate_threshold=1.0)
    ),
    "masked_distillation": masked_distillation.Settings(
        DRAWN, masked_distillation.Tuning(steps=2, batch_size=4)
    ),
    "masked_logit": read_out.Settings(),
    "random_class_row": read_out.Settings(),
    "random_embeddings": read_out.Embeddings(per_class=10, steps=2),
}
DRAWS_NOTHING = ["masked_logit"]


def module(name: str) -> str:
    """The module of a method."""
    return methods.METHODS[name].unlearn.__module__


@pytest.fixture
def original(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    return record(tmp_path / "original.pt", taught(monkeypatch))


def run(original: Path, name: str, *, classes: Iterable[int] = (1,), seed: int = 0) -> dict:
    options = {"method": methods.METHODS[name], "settings": SMALL[name], "seed": seed}
    return methods.run(original=original, request=Classes(classes), **options)


# ------------------------------------------------------------------------------ every method


def test_the_methods_have_small_settings_here():
    assert list(SMALL) == list(methods.METHODS)


@pytest.mark.parametrize("name", SMALL)
def test_a_run_leaves_a_network_and_some_images(
    monkeypatch: pytest.MonkeyPatch, original: Path, name: str
):
    result = run(original, name)
    network = checkpoints.unpack(result["model"])
    assert not states_equal(network, taught(monkeypatch))
    assert network(torch.rand(2, *SHAPE)).shape == (2, CLASSES)
    assert result["images"].dtype == torch.uint8
    assert result["images"].shape[1:] == SHAPE


@pytest.mark.parametrize("name", SMALL)
def test_the_seed_decides_the_network_and_nothing_else_does(original: Path, name: str):
    torch.manual_seed(1)
    first = checkpoints.unpack(run(original, name)["model"])
    torch.manual_seed(2)
    again = checkpoints.unpack(run(original, name)["model"])
    assert states_equal(first, again)
    other = checkpoints.unpack(run(original, name, seed=1)["model"])
    assert states_equal(first, other) == (name in DRAWS_NOTHING)


@pytest.mark.parametrize("name", SMALL)
def test_the_model_that_is_given_does_not_change(monkeypatch: pytest.MonkeyPatch, name: str):
    model = tiny(monkeypatch)
    before = checkpoints.unpack(checkpoints.pack(model))
    outcome = methods.unlearn(
        model, methods.METHODS[name], Classes([1]), shape=SHAPE, settings=SMALL[name], seed=0
    )
    assert states_equal(model, before)
    assert not outcome.network.training


@pytest.mark.parametrize("name", SMALL)
def test_no_method_can_reach_data(name: str):
    """Neither the data set nor what makes it is among the code of a method."""
    reached = {path.stem for path in fingerprint.closure(module(name))}
    reached |= {path.stem for path in fingerprint.closure("unlearnlib.zero_shot.methods")}
    assert {module(name).rpartition(".")[2], "losses", "checkpoints"} <= reached
    assert not {"datasets", "sources", "training"} & reached


def test_the_run_knows_no_method():
    """A change in one method must not invalidate the runs of another."""
    reached = {name.partition(":")[0] for name in fingerprint.reached(methods.run)}
    assert "unlearnlib.models.checkpoints" in reached
    assert not reached & {module(name) for name in methods.METHODS}


# ------------------------------------------------------------------------- what is asked wrongly


def test_a_group_is_refused(original: Path):
    with pytest.raises(ValueError, match="gkt takes classes: without data it cannot know"):
        methods.unlearn(
            nn.Linear(1, 1), gkt.METHOD, Group("random", None, 3), shape=SHAPE,
            settings=SMALL["gkt"], seed=0,
        )  # fmt: skip


def test_settings_of_another_method_are_refused(original: Path):
    options = {"request": Classes([1]), "settings": SMALL["gkt"], "seed": 0}
    with pytest.raises(ValueError, match=r"mm_noise takes unlearnlib.*mm_noise\.Settings, not"):
        methods.run(original=original, method=mm_noise.METHOD, **options)


@pytest.mark.parametrize(
    ("classes", "message"),
    [([12], "holds 12, not one of the classes"), (range(CLASSES), "every class")],
)
def test_classes_that_the_model_does_not_have_are_refused(
    original: Path, classes: Iterable[int], message: str
):
    with pytest.raises(RequestError, match=message):
        run(original, "gkt", classes=classes)


def test_an_absent_original_is_named(tmp_path: Path):
    with pytest.raises(checkpoints.CheckpointError, match="absent"):
        run(tmp_path / "absent.pt", "gkt")


def test_a_misspelt_method_is_named():
    with pytest.raises(
        UnknownNameError, match="unknown zero-shot method 'gtk'; did you mean 'gkt'"
    ):
        methods.METHODS["gtk"]


def test_the_first_obstacle_is_told(monkeypatch: pytest.MonkeyPatch):
    model = tiny(monkeypatch)
    assert methods.obstacle(model, SHAPE, SMALL["gkt"]) is None
    assert "not 9 x 12" in methods.obstacle(model, (2, 9, 12), SMALL["gkt"])
    assert methods.obstacle(model, (2, 9, 12), SMALL["mm_noise"]) is None
    for layer in ("first_norm", "second_norm"):
        setattr(model, layer, nn.Identity())
    assert "statistics" in methods.obstacle(model, SHAPE, SMALL["deep_inversion"])
    assert methods.obstacle(model, SHAPE, SMALL["gkt"]) is None


# ------------------------------------------------------------------------- a method from outside


@dataclass(frozen=True)
class Blinding(method.Settings):
    """Hyper-parameters of a toy method."""

    bias: float = -50.0

    @property
    def needs(self) -> tuple[method.Need, ...]:
        return (lambda model, _: None if hasattr(model, "classifier") else "needs a classifier",)


def blind(model: nn.Module, request: Classes, *, shape, settings: Blinding, seed: int) -> Outcome:
    """Push the logits of the forgotten classes down."""
    network = checkpoints.unpack(checkpoints.pack(model)).eval()
    with torch.no_grad():
        network.classifier.bias[list(request.classes)] = settings.bias
    return Outcome(network, torch.zeros(1, *shape, dtype=torch.uint8), {"bias": settings.bias})


TOY = ZeroShot("blinding", "Blinding", settings=Blinding, unlearn=blind)


@pytest.fixture
def registered() -> Iterator[ZeroShot]:
    yield methods.METHODS.register(TOY)
    methods.METHODS.unregister(TOY.name)


def test_a_method_that_is_registered_can_be_run(
    monkeypatch: pytest.MonkeyPatch, registered: ZeroShot, original: Path, tmp_path: Path
):
    assert methods.METHODS["blinding"] is registered
    task = {
        "original": original, "method": methods.METHODS["blinding"], "request": Classes([1, 2]),
        "settings": Blinding(bias=-40.0), "seed": 0,
    }  # fmt: skip
    found = sweep(methods.run, {"blinding-seed0": task}, store=tmp_path / "runs")
    result = found["blinding-seed0"].result
    network = checkpoints.unpack(result["model"])
    assert network.classifier.bias.tolist()[1:3] == [-40.0, -40.0]
    assert result["bias"] == -40.0
    assert not set(network(torch.rand(20, *SHAPE)).argmax(1).tolist()) & {1, 2}
    assert "unlearning" in found["blinding-seed0"].timings
    assert methods.obstacle(taught(monkeypatch), SHAPE, Blinding()) is None
    assert methods.obstacle(nn.Identity(), SHAPE, Blinding()) == "needs a classifier"
