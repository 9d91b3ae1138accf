"""M-M noise: noise that raises or lowers the loss, and a fine-tuning that says what it drifts."""

import math
from pathlib import Path

import pytest
import scipy.stats
import torch
from tolerances import RTOL
from torch import Tensor, nn
from torch.nn import functional as F
from toys import CLASSES, SHAPE, record, states_equal, statistics_by_hand, stripes, taught, tiny

from unlearnlib.data.requests import Classes
from unlearnlib.models import architectures, checkpoints, networks
from unlearnlib.pipeline import schema
from unlearnlib.pipeline.parameters import ParameterError
from unlearnlib.zero_shot import method, methods, mm_noise

SMALL = {
    "per_class": 4,
    "noise_steps": 5,
    "steps": 4,
    "batch_size": 8,
    "repair_steps": 3,
}
LABELS = torch.tensor([0, 1, 1, 2, 3, 3, 0, 2])


def learn(model: nn.Module, *, maximise: bool, **changed) -> Tensor:
    settings = mm_noise.Settings(**(SMALL | {"penalty": 0.0, "noise_steps": 30} | changed))
    options = {"shape": SHAPE, "generator": torch.Generator().manual_seed(0)}
    return mm_noise.learn_noise(model, LABELS, maximise=maximise, settings=settings, **options)


def unlearn(model: nn.Module, *, seed: int = 0, **changed) -> method.Outcome:
    settings = mm_noise.Settings(**(SMALL | changed))
    shape = SHAPE if model.architecture["model"] == "tiny" else (1, 28, 28)
    return mm_noise.unlearn(model, Classes([1, 3]), shape=shape, settings=settings, seed=seed)


def restored(outcome: method.Outcome) -> nn.Module:
    return checkpoints.unpack(outcome.facts["restored"])


def error(model: nn.Module, images: Tensor) -> float:
    return F.cross_entropy(model(images), LABELS).item()


# ---------------------------------------------------------------------------------- the noise


def test_noise_starts_as_standard_normal_pixels(monkeypatch: pytest.MonkeyPatch):
    model = networks.frozen(taught(monkeypatch))
    found = learn(model, maximise=True, noise_steps=0)
    assert found.shape == (len(LABELS), *SHAPE)
    assert scipy.stats.kstest(found.flatten().numpy(), "norm").pvalue > 0.01


def test_noise_raises_or_lowers_the_loss(monkeypatch: pytest.MonkeyPatch):
    model = networks.frozen(taught(monkeypatch))
    start = error(model, learn(model, maximise=True, noise_steps=0))
    raised, lowered = (learn(model, maximise=maximise) for maximise in (True, False))
    assert error(model, raised) > 2 * start
    assert error(model, lowered) < start / 2
    assert not raised.requires_grad


def test_one_step_is_adam_on_loss_and_penalty(monkeypatch: pytest.MonkeyPatch):
    model = networks.frozen(taught(monkeypatch))
    for maximise in (True, False):
        start = learn(model, maximise=maximise, noise_steps=0).requires_grad_(True)
        size = (start**2).flatten(1).sum(1).mean()
        loss = F.cross_entropy(model(start), LABELS) * (-1 if maximise else 1) + 0.3 * size
        (slope,) = torch.autograd.grad(loss, start)
        expected = start - 0.1 * slope / (slope.abs() + 1e-8)  # the first step of Adam
        found = learn(model, maximise=maximise, noise_steps=1, penalty=0.3)
        torch.testing.assert_close(found, expected.detach(), rtol=RTOL, atol=1e-4)


def test_only_noise_that_lowers_the_loss_follows_the_statistics(monkeypatch: pytest.MonkeyPatch):
    model = networks.frozen(taught(monkeypatch))
    plain, led = (learn(model, maximise=False, statistics_weight=w) for w in (0.0, 5.0))
    assert statistics_by_hand(model, led) < statistics_by_hand(model, plain) / 2
    plain, led = (learn(model, maximise=True, statistics_weight=w) for w in (0.0, 5.0))
    assert torch.equal(plain, led)


def test_a_loss_that_is_not_finite_raises(monkeypatch: pytest.MonkeyPatch):
    model = networks.frozen(tiny(monkeypatch))
    model.classifier.bias[0] = math.nan
    for maximise in (True, False):
        with pytest.raises(FloatingPointError, match="the loss is nan"):
            learn(model, maximise=maximise)
    images, labels = stripes(8)
    options = {"steps": 1, "rate": 0.01, "settings": mm_noise.Settings()}
    with pytest.raises(FloatingPointError, match="the loss is nan"):
        mm_noise.tune(model, images, labels, generator=torch.Generator(), **options)


# -------------------------------------------------------------------------------- fine-tuning


def test_fine_tuning_learns_its_images(monkeypatch: pytest.MonkeyPatch):
    model, (images, labels) = tiny(monkeypatch), stripes(32)
    before = F.cross_entropy(model.train()(images), labels).item()
    options = {"steps": 30, "rate": 0.02, "settings": mm_noise.Settings(batch_size=16)}
    networks.frozen(model)
    mm_noise.tune(model, images, labels, generator=torch.Generator(), **options)
    assert F.cross_entropy(model.train()(images), labels).item() < before / 2


def test_frozen_statistics_do_not_drift_and_are_used(monkeypatch: pytest.MonkeyPatch):
    frozen = unlearn(tiny(monkeypatch), freeze_statistics=True)
    assert frozen.facts["drift"] == [0.0, 0.0]
    assert states_equal(frozen.network, restored(frozen))
    free = unlearn(tiny(monkeypatch))
    assert min(free.facts["drift"]) > 0
    assert not torch.equal(frozen.network.first.weight, free.network.first.weight)


def test_drift_is_the_norm_of_what_the_running_means_moved(monkeypatch: pytest.MonkeyPatch):
    result, model = unlearn(tiny(monkeypatch)), tiny(monkeypatch)
    names = ("second_norm", "first_norm")
    for drift, name in zip(result.facts["drift"], names, strict=True):
        moved = getattr(result.network, name).running_mean - getattr(model, name).running_mean
        assert drift == pytest.approx(math.sqrt((moved**2).sum().item()), rel=RTOL)


def test_statistics_are_restored_and_nothing_else(monkeypatch: pytest.MonkeyPatch):
    original, model = tiny(monkeypatch), tiny(monkeypatch, seed=1)
    before = [checkpoints.unpack(checkpoints.pack(network)) for network in (original, model)]
    mended = mm_noise.restore_statistics(model, original)
    for name in ("first_norm", "second_norm"):
        found, source = getattr(mended, name), getattr(original, name)
        assert torch.equal(found.running_mean, source.running_mean)
        assert torch.equal(found.running_var, source.running_var)
    weights = dict(mended.named_parameters())
    assert all(torch.equal(weights[name], value) for name, value in model.named_parameters())
    assert not torch.equal(mended.first_norm.running_mean, model.first_norm.running_mean)
    assert all(states_equal(*pair) for pair in zip(before, (original, model), strict=True))


# ---------------------------------------------------------------------------------- the method


def test_the_model_that_is_given_does_not_change(monkeypatch: pytest.MonkeyPatch):
    model = tiny(monkeypatch)
    before = checkpoints.unpack(checkpoints.pack(model))
    result = unlearn(model)
    assert states_equal(model, before)
    assert not torch.equal(result.network.first.weight, model.first.weight)
    assert not result.network.training


def test_noise_is_learnt_by_class_and_the_repair_sees_retain_classes_only(
    monkeypatch: pytest.MonkeyPatch,
):
    learnt, tuned = [], []
    learn_noise, tune = mm_noise.learn_noise, mm_noise.tune

    def learn_and_note(model: nn.Module, labels: Tensor, **options) -> Tensor:
        drawn = learn_noise(model, labels, **options)
        learnt.append((options["maximise"], labels.tolist(), drawn))
        return drawn

    def tune_and_note(model: nn.Module, images: Tensor, labels: Tensor, **options) -> None:
        tuned.append((labels.tolist(), images, options["steps"], options["rate"]))
        tune(model, images, labels, **options)

    monkeypatch.setattr(mm_noise, "learn_noise", learn_and_note)
    monkeypatch.setattr(mm_noise, "tune", tune_and_note)
    result = unlearn(tiny(monkeypatch), rate=0.01, repair_rate=0.002)
    forgotten, retained = [1] * 4 + [3] * 4, [0] * 4 + [2] * 4
    assert [entry[:2] for entry in learnt] == [(True, forgotten), (False, retained)]
    both = sorted(forgotten + retained)
    assert [entry[0] for entry in tuned] == [both, retained]
    assert [entry[2:] for entry in tuned] == [(4, 0.01), (3, 0.002)]
    assert torch.equal(tuned[1][1], learnt[1][2])
    assert torch.equal(tuned[0][1][4:8], learnt[0][2][:4])
    assert result.facts["image_labels"].tolist() == both
    assert torch.equal(result.images, method.pictures(tuned[0][1]))


def test_few_pictures_of_each_class_are_kept(monkeypatch: pytest.MonkeyPatch):
    result = unlearn(tiny(monkeypatch), per_class=12)
    assert result.facts["image_labels"].bincount().tolist() == [4] * CLASSES
    assert result.images.shape == (16, *SHAPE)
    assert result.images.dtype == torch.uint8


def test_the_seed_decides_the_model(monkeypatch: pytest.MonkeyPatch):
    model = tiny(monkeypatch)
    first, again, other = (unlearn(model, seed=seed) for seed in (0, 0, 1))
    assert states_equal(first.network, again.network)
    assert torch.equal(first.images, again.images)
    assert not states_equal(first.network, other.network)


def test_a_model_without_batch_norm_has_nothing_to_drift():
    torch.manual_seed(0)
    model = architectures.build("lenet5", width=0.5)
    result = unlearn(model)
    assert result.facts["drift"] == []
    assert states_equal(result.network, restored(result))
    assert not states_equal(result.network, model)
    assert result.images.shape == (40, 1, 28, 28)


@pytest.mark.parametrize("settings", [{"statistics_weight": 1.0}, {"freeze_statistics": True}])
def test_remedies_that_need_batch_norm_say_so(settings: dict):
    with pytest.raises(ValueError, match="LeNet5 has no BatchNorm"):
        unlearn(architectures.build("lenet5", width=0.5), **settings)


def test_a_run_of_a_sweep_packs_both_models(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    model = tiny(monkeypatch)
    original = record(tmp_path / "original.pt", model)
    found, expected = (
        methods.run(
            original=original, method=mm_noise.METHOD, request=Classes([3, 1]),
            settings=mm_noise.Settings(**SMALL), seed=0,
        ),
        unlearn(model),
    )  # fmt: skip
    assert states_equal(checkpoints.unpack(found["model"]), expected.network)
    assert states_equal(checkpoints.unpack(found["restored"]), restored(expected))
    assert found["drift"] == expected.facts["drift"]
    assert torch.equal(found["images"], expected.images)


@pytest.mark.parametrize(
    "wrong",
    [{"per_class": 0}, {"steps": 0}, {"noise_steps": -1}, {"rate": 0.0}, {"penalty": -0.1}],
)
def test_settings_that_cannot_be_are_refused(wrong: dict):
    assert schema.build(mm_noise.Settings, SMALL) == mm_noise.Settings(**SMALL)
    with pytest.raises(ParameterError, match=next(iter(wrong))):
        schema.build(mm_noise.Settings, SMALL | wrong)


def test_only_what_mends_the_method_needs_statistics():
    assert mm_noise.Settings(**SMALL).needs == ()
    for changed in ({"statistics_weight": 0.1}, {"freeze_statistics": True}):
        assert mm_noise.Settings(**(SMALL | changed)).needs == (method.statistics,)
