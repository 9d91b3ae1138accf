"""Training: one recipe for originals and golds, pairs share a start, and what goes is unseen."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tolerances import ATOL, RTOL
from torch import nn
from torch.nn import functional as F
from toys import SHAPE, lines, states_equal, stripes, tiny

from unlearnlib.data import datasets
from unlearnlib.data.requests import Classes, Group, RequestError, rest
from unlearnlib.influence import curvature
from unlearnlib.models import architectures, checkpoints, loops, networks, training
from unlearnlib.models.checkpoints import CheckpointError
from unlearnlib.models.training import Recipe
from unlearnlib.pipeline import records
from unlearnlib.pipeline.records import Record

RECIPE = Recipe(epochs=3, batch_size=16, learning_rate=0.01, weight_decay=0.01)


# ----------------------------------------------------------------------------------- the recipe


def test_a_penalty_is_in_the_loss_or_decoupled_from_it():
    with pytest.raises(ValueError, match=r"weight_decay=0.01 and l2=0.1: give one of them"):
        replace(RECIPE, l2=0.1)
    assert replace(RECIPE, l2=0.1, weight_decay=0.0).l2 == 0.1


def linear(images: torch.Tensor, *, bias: bool = True) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(images[0].numel(), 4, bias=bias))


def test_weight_decay_is_decoupled_and_follows_the_one_cycle_rate():
    images = torch.zeros(8, 1, 2, 2)
    network = linear(images, bias=False)
    before = network[1].weight.detach().clone()
    recipe = Recipe(epochs=5, batch_size=2, learning_rate=0.5, weight_decay=0.1)
    losses = training.fit(network, images, torch.zeros(8, dtype=torch.long), recipe=recipe, seed=0)
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=1.0)
    schedule, factor = loops.one_cycle(optimizer, 0.5, steps=20), 1.0
    for _ in range(20):
        factor *= 1 - 0.1 * optimizer.param_groups[0]["lr"]
        optimizer.step()
        schedule.step()
    torch.testing.assert_close(network[1].weight, factor * before, rtol=RTOL, atol=ATOL)
    assert losses == pytest.approx([math.log(4)] * 5, rel=RTOL)


def test_training_ends_at_the_minimum_of_the_penalised_loss():
    images, labels = stripes(64)
    network = linear(images)
    recipe = Recipe(epochs=400, batch_size=64, learning_rate=0.05, l2=0.1)
    training.fit(network, images, labels, recipe=recipe, seed=0)
    objective = curvature.Objective(network.eval(), images, labels, l2=0.1)
    assert curvature.gradient_sum(objective).norm() / 64 < 1e-3
    unpenalised = curvature.Objective(network, images, labels)
    assert curvature.gradient_sum(unpenalised).norm() / 64 > 1e-2


# -------------------------------------------------------------------------------------- the fit


@pytest.mark.parametrize("recipe", [RECIPE, replace(RECIPE, weight_decay=0.0, l2=0.1)])
def test_the_loss_of_an_epoch_is_the_mean_before_each_step_without_the_penalty(recipe: Recipe):
    images, labels = stripes(32)
    network = linear(images)
    expected = F.cross_entropy(network(images), labels).item()
    recipe = replace(recipe, learning_rate=1e-9, epochs=1, batch_size=4)
    (loss,) = training.fit(network, images, labels, recipe=recipe, seed=0)
    assert loss == pytest.approx(expected, rel=RTOL)


def test_the_loss_falls_and_the_classes_are_learnt(monkeypatch: pytest.MonkeyPatch):
    network, (images, labels) = tiny(monkeypatch), stripes(128)
    recipe = replace(RECIPE, epochs=8, learning_rate=0.03)
    losses = training.fit(network, images, labels, recipe=recipe, seed=0)
    assert len(losses) == 8
    assert losses[-1] < losses[0] / 2
    held, truth = stripes(64, seed=1)
    assert (networks.predict(network, held).argmax(1) == truth).float().mean() > 0.9


def test_a_network_is_put_in_training_mode(monkeypatch: pytest.MonkeyPatch):
    network = tiny(monkeypatch)
    before = network.first_norm.running_mean.clone()
    training.fit(network.eval(), *stripes(32), recipe=RECIPE, seed=0)
    assert network.training
    assert not torch.equal(network.first_norm.running_mean, before)


def test_the_weights_of_the_last_steps_are_averaged():
    """After 1 to 4 steps the weights are known; the last two of four are averaged."""
    images, labels = stripes(32)
    seen = []

    class Watched(nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(self[1].weight.detach().clone())
            return super().forward(x)

    recipe = replace(RECIPE, epochs=2, learning_rate=0.1)
    for average, expected in ((0.0, lambda end: end), (0.5, lambda end: (seen[3] + end) / 2)):
        seen.clear()
        network = Watched(*linear(images))
        training.fit(network, images, labels, recipe=replace(recipe, average=average), seed=0)
        assert len(seen) == 4
        weight = network[1].weight.detach()
        if not average:
            end = weight
        torch.testing.assert_close(weight, expected(end))
    assert not torch.equal(weight, end)


def test_averaged_weights_get_statistics_of_their_own(monkeypatch: pytest.MonkeyPatch):
    network, (images, labels) = tiny(monkeypatch), stripes(64)
    recipe = replace(RECIPE, epochs=2, batch_size=64, learning_rate=0.1, average=0.9)
    training.fit(network, images, labels, recipe=recipe, seed=0)
    found, read = network.first_norm.running_mean.clone(), []
    network.first_norm.register_forward_pre_hook(lambda _, given: read.append(given[0]))
    networks.predict(network, images)
    torch.testing.assert_close(found, read[0].mean((0, 2, 3)))


def fitted(monkeypatch: pytest.MonkeyPatch, *, seed: int = 0, shift_pixels: int = 1) -> nn.Module:
    network = tiny(monkeypatch)
    training.fit(
        network, *stripes(48), recipe=replace(RECIPE, shift_pixels=shift_pixels), seed=seed
    )
    return network


def test_the_seed_decides_the_weights(monkeypatch: pytest.MonkeyPatch):
    network = fitted(monkeypatch)
    torch.manual_seed(5)
    assert states_equal(network, fitted(monkeypatch))
    assert not states_equal(network, fitted(monkeypatch, seed=1))
    assert not states_equal(network, fitted(monkeypatch, shift_pixels=0))


def test_shifts_change_no_order(monkeypatch: pytest.MonkeyPatch):
    """Each image is seen in the same batch, shifted or not."""
    seen: list[list[float]] = []
    monkeypatch.setattr(training, "shift", lambda x, **_: seen.append(x[:, 0, 0, 0].tolist()) or x)
    images, labels = stripes(48)
    for pixels in (0, 1):
        recipe = replace(RECIPE, shift_pixels=pixels)
        training.fit(tiny(monkeypatch), images, labels, recipe=recipe, seed=0)
    assert seen[:9] == seen[9:]


def test_training_needs_images_and_finite_losses(monkeypatch: pytest.MonkeyPatch):
    images, labels = stripes(32)
    with pytest.raises(ValueError, match="no images to train on; forget less"):
        training.fit(tiny(monkeypatch), images[:0], labels[:0], recipe=RECIPE, seed=0)
    images[5] = math.nan
    with pytest.raises(FloatingPointError, match=r"the loss is nan; lower the learning rate"):
        training.fit(tiny(monkeypatch), images, labels, recipe=RECIPE, seed=0)


# --------------------------------------------------------------------------- a run of a sweep


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    return lines(tmp_path / "dataset.npz")


def run(dataset: Path, **changes: object) -> dict[str, Any]:
    """Run a training of half a compact network on the 200 lines."""
    recipe = Recipe(epochs=2, batch_size=50, learning_rate=0.01, l2=1e-3)
    options = {"model": "compact", "width": 0.5, "recipe": recipe, "request": None, "seed": 0}
    return training.run(data=dataset, **options | changes)


class Fit:
    """Stand in for `fit` and remember what it was given."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.labels: list[torch.Tensor] = []
        self.images: list[torch.Tensor] = []
        self.starts: list[nn.Module] = []
        monkeypatch.setattr(training, "fit", self)

    def __call__(self, network: nn.Module, images: torch.Tensor, labels: torch.Tensor, **_: Any):
        self.starts.append(checkpoints.unpack(checkpoints.pack(network)))
        self.images.append(images)
        self.labels.append(labels)
        return [0.0]


def test_a_run_leaves_classes_out_and_measures_itself_on_the_rest(dataset: Path):
    recipe = Recipe(epochs=6, batch_size=16, learning_rate=0.01, weight_decay=0.01)
    result = run(dataset, model="lenet5", request=Classes([0, 3]), recipe=recipe)
    assert result["train_images"] == 160
    assert result["shape"] == [1, 28, 28]
    assert len(result["losses"]) == 6
    network = checkpoints.unpack(result["model"])
    assert network.architecture == {
        "model": "lenet5", "width": 0.5, "channels": 1, "num_classes": 10
    }  # fmt: skip
    images, labels = datasets.split(datasets.load(dataset), "validation")
    predicted = network.eval()(images).argmax(1)
    kept = (labels != 0) & (labels != 3)
    expected = 100 * (predicted == labels)[kept].float().mean().item()
    assert result["validation_accuracy"] == pytest.approx(expected)
    assert expected > 90
    assert not torch.isin(predicted, torch.tensor([0, 3])).any()


@pytest.mark.parametrize(
    "request_", [None, Classes([3]), Group("coherent", 3, 12), Group("random", None, 30, 5)]
)
def test_a_run_sees_all_but_what_was_asked_to_go(
    dataset: Path, monkeypatch: pytest.MonkeyPatch, request_: Classes | Group | None
):
    fit, (images, labels) = Fit(monkeypatch), datasets.split(datasets.load(dataset), "train")
    result = run(dataset, request=request_)
    gone = request_.positions(labels) if request_ else torch.tensor([], dtype=torch.int64)
    stays = rest(200, gone)
    assert torch.equal(fit.images[0], images[stays])
    assert torch.equal(fit.labels[0], labels[stays])
    assert result["train_images"] == 200 - len(gone)


def test_a_run_for_a_group_measures_itself_on_all_classes(dataset: Path):
    result = run(dataset, request=Group("coherent", 3, 20))
    held, truth = datasets.split(datasets.load(dataset), "validation")
    predicted = networks.predict(checkpoints.unpack(result["model"]), held).argmax(1)
    assert result["validation_accuracy"] == pytest.approx(
        100 * (predicted == truth).double().mean().item()
    )


def test_a_pair_starts_from_the_same_weights(dataset: Path, monkeypatch: pytest.MonkeyPatch):
    fit = Fit(monkeypatch)
    group = Group("random", None, 20)
    for changes in ({}, {"request": group}, {"seed": 1}, {"seed": 1, "start": 0}):
        torch.manual_seed(len(fit.starts))
        run(dataset, **changes)
    original, retrained, other, restarted = fit.starts
    assert states_equal(original, retrained)
    assert not states_equal(original, other)
    assert states_equal(original, restarted)


def test_the_first_weights_leave_the_callers_randomness_alone(
    dataset: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(training, "fit", lambda *_, **__: [0.0])
    torch.manual_seed(3)
    before = torch.get_rng_state()
    training.train(
        datasets.load(dataset), model="compact", width=0.5, recipe=RECIPE, request=None, seed=0
    )
    assert torch.equal(torch.get_rng_state(), before)


def test_a_warm_start_begins_at_the_model_that_it_names(
    dataset: Path, monkeypatch: pytest.MonkeyPatch
):
    first, file = run(dataset), dataset.with_name("original.pt")
    records.write(file, Record("original", first, 1.0), key="")
    fit = Fit(monkeypatch)
    run(dataset, start=file, seed=5)
    assert states_equal(checkpoints.unpack(first["model"]), fit.starts[0])
    with pytest.raises(CheckpointError, match=r"'width': 0.25.* was asked for"):
        run(dataset, start=file, width=0.25)


def test_a_run_learns(dataset: Path):
    recipe = Recipe(epochs=30, batch_size=20, learning_rate=0.01, l2=1e-3)
    found = run(dataset, recipe=recipe)
    assert found["losses"][-1] < found["losses"][0] / 2
    assert found["validation_accuracy"] > 80
    again = run(dataset, recipe=recipe)
    assert states_equal(*(checkpoints.unpack(r["model"]) for r in (found, again)))
    assert records.to_bytes(records.plain(found)) == records.to_bytes(records.plain(again))


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Classes([12]), "class_12: 0 of 200 items"),
        (Classes(range(10)), "200 of 200 items"),
        (Group("coherent", 12, 1), "of no items of class 12"),
        (Group("coherent", 3, 21), "size=21 of 20 items of class 3"),
        (Group("random", None, 200), "one of all must stay"),
    ],
)
def test_a_request_that_the_data_cannot_serve_is_refused(
    dataset: Path, request_: Classes | Group, message: str
):
    with pytest.raises(RequestError, match=message):
        run(dataset, request=request_)


def test_a_part_of_the_items_is_the_same_for_every_model(
    dataset: Path, monkeypatch: pytest.MonkeyPatch
):
    fit = Fit(monkeypatch)
    for seed in (0, 1):
        assert run(dataset, items=50, seed=seed)["train_images"] == 50
    assert torch.equal(fit.images[0], fit.images[1])
    images, labels = training.training_items(datasets.load(dataset), items=60)
    assert torch.equal(images[:50], fit.images[0])  # nested
    assert np.unique(images.flatten(1).numpy(), axis=0).shape[0] == 60
    assert torch.equal(images[:, 0].argmax(1)[:, 0], 2 * labels + 4)
    for wrong in (0, 201, -1):
        with pytest.raises(ValueError, match=f"items={wrong}: give 1 to 200"):
            training.training_items(datasets.load(dataset), items=wrong)


def test_any_data_set_decides_channels_and_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    tiny(monkeypatch)
    images, labels = stripes(48)
    pixels, numbers = (255 * images.clamp(0, 1)).byte().numpy(), labels.numpy()
    splits = (slice(32), slice(32, 40), slice(40, 48))
    parts = [part[where] for where in splits for part in (pixels, numbers)]
    file = tmp_path / "dataset.npz"
    datasets.save(datasets.Dataset("stripes", "Stripes", *parts, classes=tuple("abcd")), file)
    result = run(file, model="tiny", width=1.0, recipe=replace(RECIPE, epochs=1))
    assert result["shape"] == list(SHAPE)
    assert architectures.num_classes(checkpoints.unpack(result["model"])) == 4
