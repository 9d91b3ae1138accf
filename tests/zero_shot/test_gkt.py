"""Gated knowledge transfer: the published order of steps, its losses by hand, and when it stops."""

import io
import math
from pathlib import Path

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
from tolerances import ATOL, RTOL
from torch import Tensor, nn
from torch.nn import functional as F
from toys import CLASSES, SHAPE, Table, Tiny, plain_map, record, states_equal, taught, tiny

from unlearnlib.data.requests import Classes
from unlearnlib.models import architectures, checkpoints, networks
from unlearnlib.pipeline import schema
from unlearnlib.pipeline.parameters import ParameterError
from unlearnlib.zero_shot import gkt, losses, method, methods

SMALL = {
    "pseudo_batches": 3,
    "batch_size": 8,
    "latent_size": 6,
    "generator_channels": 8,
    "student_steps": 2,
    "snapshots": 3,
    "gate_threshold": 1.0,
}


def logits(count: int, classes: int, *, seed: int, scale: float = 3.0) -> Tensor:
    return scale * torch.randn(count, classes, generator=torch.Generator().manual_seed(seed))


def settings_of(**changed) -> gkt.Settings:
    chosen = SMALL | changed
    chosen["snapshots"] = min(chosen["snapshots"], chosen["pseudo_batches"])
    return gkt.Settings(**chosen)


def transfer(teacher: nn.Module, *, forget: tuple[int, ...] = (0,), **changed) -> gkt.Transfer:
    """Set a transfer up as a run does."""
    options = {"shape": SHAPE, "settings": settings_of(**changed), "seed": 5}
    return gkt.set_up(teacher, Classes(forget), **options)


def unlearn(
    teacher: nn.Module, *, seed: int = 0, shape: tuple = SHAPE, **changed
) -> method.Outcome:
    options = {"shape": shape, "settings": settings_of(**changed), "seed": seed}
    return gkt.unlearn(teacher, Classes([1]), **options)


def to_file(outcome: method.Outcome) -> bytes:
    stream = io.BytesIO()
    torch.save(outcome.facts | {"model": checkpoints.pack(outcome.network)}, stream)
    return stream.getvalue()


# ------------------------------------------------------------------------------- when to stop

AT, NAN = [2, 4, 6, 8], math.nan


@pytest.mark.parametrize(
    ("leaks", "memory", "expected"),
    [
        ([0.0] * 8, 0.0, 8),  # never leaks
        ([0.5] * 8, 0.0, 8),  # never low: the rule is not armed
        ([0.5, 0.0, 0.0, 0.0, 0.0, 0.9, 0.9, 0.9], 0.0, 4),  # the student of 5 leaks
        ([0.5, 0.0, 0.0, 0.0, 0.0, 0.0, 0.9, 0.9], 0.0, 4),  # the student of 6 leaks, so not 6
        ([0.0, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9], 0.0, 2),  # leaks before the first snapshot
        ([0.9, 0.9, 0.0, 0.0, 0.0, 0.9, 0.0, 0.0], 0.0, 4),  # the first leak decides
        ([0.0, NAN, NAN, NAN, NAN, 0.9, 0.9, 0.9], 0.0, 4),  # gaps say nothing
        ([NAN] * 8, 0.0, 8),
        ([NAN, NAN, 0.5, NAN, 0.0, NAN, NAN, 0.5], 0.0, 6),
        ([0.0, 0.0, 0.2, 0.0, 0.0, 0.0, 0.0, 0.0], 0.8, 8),  # 0.04: a spike shorter than the memory
        ([0.0, 0.0, 0.2, 0.2, 0.0, 0.0, 0.0, 0.0], 0.8, 2),  # 0.04, 0.072
        ([0.0, NAN, 0.2, 0.0, 0.0, 0.0, 0.0, 0.0], 0.8, 8),  # 0.04: the gap does not forget
        ([0.2, NAN, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0], 0.5, 8),  # 0.2, 0.2, 0.1, 0.05: armed, stays low
        (
            [0.2, 0.0, 0.0, 0.0, 0.2, 0.0, 0.0, 0.0],
            0.5,
            2,
        ),  # 0.025 arms at 4, 0.1125 at 5: the student of 4
    ],
)
def test_stopping_point_is_the_last_snapshot_before_the_leak(
    leaks: list[float], memory: float, expected: int
):
    assert gkt.stopping_point(leaks, AT, limit=0.05, memory=memory) == expected


# ---------------------------------------------------------------------------- the published run


def events_of(state: gkt.Transfer) -> list[str]:
    """Keep a diary of forward passes and optimiser steps."""
    diary: list[str] = []
    for name in ("generator", "teacher", "student"):
        network = getattr(state, name)
        network.register_forward_pre_hook(lambda m, _, name=name: diary.append(name))
    state.generator_step.register_step_post_hook(lambda *_: diary.append("generator step"))
    state.student_step.register_step_post_hook(lambda *_: diary.append("student step"))
    return diary


@pytest.mark.parametrize("student_steps", [1, 10])
def test_a_pseudo_batch_is_one_generator_step_then_the_student_steps(
    monkeypatch: pytest.MonkeyPatch, student_steps: int
):
    state = transfer(tiny(monkeypatch), student_steps=student_steps)
    diary = events_of(state)
    state.pseudo_batch()
    improve = ["generator", "teacher", "student", "generator step"]
    draw = ["generator", "teacher"]  # once for all student steps
    observe = ["student"]
    assert diary == improve + draw + observe + ["student", "student step"] * student_steps


def test_the_student_steps_use_the_latents_of_the_generator_step(monkeypatch: pytest.MonkeyPatch):
    state, seen = transfer(tiny(monkeypatch)), []
    state.generator.register_forward_pre_hook(lambda _, args: seen.append(args[0].clone()))
    state.pseudo_batch()
    state.pseudo_batch()
    assert len(seen) == 4
    assert torch.equal(seen[0], seen[1])
    assert torch.equal(seen[2], seen[3])
    assert not torch.equal(seen[0], seen[2])


def test_the_generator_seeks_disagreement_and_the_student_agreement(
    monkeypatch: pytest.MonkeyPatch,
):
    state = transfer(taught(monkeypatch), generator_rate=3e-3, student_rate=3e-3)
    z = torch.randn(32, 6, generator=torch.Generator().manual_seed(1))
    sought = [state.improve_generator(z) for _ in range(5)]
    assert sought[-1] > sought[0]
    drawn = state.draw(z)
    learnt = [state.improve_student(*drawn) for _ in range(5)]
    assert learnt[-1] < learnt[0]


def test_the_teacher_and_what_it_counts_never_change(monkeypatch: pytest.MonkeyPatch):
    teacher = tiny(monkeypatch).train()
    before = checkpoints.unpack(checkpoints.pack(teacher))
    unlearn(teacher, statistics_weight=1.0, balance_weight=1.0, prior_steps=2)
    assert states_equal(teacher, before)
    assert not teacher.training
    assert not any(p.requires_grad for p in teacher.parameters())


def test_a_student_step_sees_accepted_images_only(monkeypatch: pytest.MonkeyPatch):
    teacher = taught(monkeypatch)
    state, given = transfer(teacher, gate_threshold=0.2, batch_size=64), []
    improve = state.improve_student
    monkeypatch.setattr(
        state, "improve_student", lambda *kept: given.append(kept) or improve(*kept)
    )
    state.pseudo_batch()
    (images, answers, maps), again = given[0], given[1]
    assert 2 <= len(images) < 64
    assert len(given) == 2
    assert again[0] is images
    assert (teacher(images).softmax(1)[:, 0] <= 0.2).all()
    torch.testing.assert_close(answers, teacher(images), rtol=RTOL, atol=ATOL)
    with networks.record_outputs(teacher, state.layers) as outputs:
        teacher(images)
    for found, name in zip(maps, state.layers, strict=True):
        torch.testing.assert_close(found, plain_map(outputs[name]), rtol=RTOL, atol=ATOL)
    assert sum(state.history[0]["accepted"]) == len(images)
    assert sum(state.history[0]["drawn"]) == 64


def test_a_student_without_accepted_images_does_not_change(monkeypatch: pytest.MonkeyPatch):
    state = transfer(tiny(monkeypatch), gate_threshold=0.0)
    before = checkpoints.unpack(checkpoints.pack(state.student))
    for _ in range(2):
        state.pseudo_batch()
    weights = dict(state.student.named_parameters())
    assert all(torch.equal(weights[name], value) for name, value in before.named_parameters())
    assert [sum(entry["accepted"]) for entry in state.history] == [0, 0]
    assert all(math.isnan(entry["loss"]) for entry in state.history)
    assert all(math.isnan(entry["agreement"]) for entry in state.history)


def test_a_student_changes_on_accepted_images(monkeypatch: pytest.MonkeyPatch):
    state = transfer(tiny(monkeypatch))
    before = checkpoints.unpack(checkpoints.pack(state.student))
    state.pseudo_batch()
    assert not torch.equal(before.first.weight, state.student.first.weight)
    assert math.isfinite(state.history[0]["loss"])


def test_one_accepted_image_is_no_batch(monkeypatch: pytest.MonkeyPatch):
    state = transfer(tiny(monkeypatch))
    monkeypatch.setattr(losses, "gate", lambda drawn, *_, **__: torch.arange(len(drawn)) == 3)
    diary = events_of(state)
    state.pseudo_batch()
    assert "student step" not in diary
    assert sum(state.history[0]["accepted"]) == 1


def test_a_loss_that_is_not_finite_raises(monkeypatch: pytest.MonkeyPatch):
    teacher = tiny(monkeypatch)
    with torch.no_grad():
        teacher.classifier.bias[0] = math.nan
    with pytest.raises(FloatingPointError, match="the loss is nan"):
        unlearn(teacher)


# -------------------------------------------------------------------------------- the settings


def test_the_student_loss_is_divergence_and_weighted_attention(monkeypatch: pytest.MonkeyPatch):
    for weight, per_class in ((0.0, False), (250.0, True)):
        state = transfer(tiny(monkeypatch), attention_weight=weight, divergence_per_class=per_class)
        drawn = state.draw(torch.randn(8, 6))
        copy = checkpoints.unpack(checkpoints.pack(state.student)).train()
        with networks.record_outputs(copy, ["first_act", "second_act"]) as own:
            answers = copy(drawn[0])
        with networks.record_outputs(state.teacher, ["first_act", "second_act"]) as other:
            state.teacher(drawn[0])
        p, q = drawn[1].softmax(1), answers.softmax(1)
        expected = (p * (p / q).log()).sum(1).mean() / (CLASSES if per_class else 1)
        for name in own:
            expected = expected + weight * F.mse_loss(plain_map(own[name]), plain_map(other[name]))
        assert state.improve_student(*drawn) == pytest.approx(expected.item(), rel=1e-3)


def test_without_attention_no_layer_is_read(monkeypatch: pytest.MonkeyPatch):
    assert transfer(tiny(monkeypatch), attention_weight=0.0).layers == []
    assert transfer(tiny(monkeypatch)).layers == ["second_act", "first_act"]


@pytest.mark.parametrize(
    ("statistics", "balance"), [(0.0, 0.0), (0.5, 0.0), (0.0, 2.0), (3.0, 2.0)]
)
def test_the_regulariser_weighs_statistics_and_balance(
    monkeypatch: pytest.MonkeyPatch, statistics: float, balance: float
):
    teacher = tiny(monkeypatch)
    state = transfer(teacher, statistics_weight=statistics, balance_weight=balance)
    fed = [torch.rand(4, 6, 3, 3), torch.rand(4, 6, 2, 2)]
    drawn = logits(4, CLASSES, seed=0)
    expected = balance * losses.imbalance(drawn)
    expected += statistics * losses.statistics_distance(fed, networks.batch_norms(teacher))
    found = state.regulariser(drawn, fed if statistics else [])
    assert found.item() == pytest.approx(expected.item(), rel=RTOL)


def test_the_generator_descends_its_regulariser(monkeypatch: pytest.MonkeyPatch):
    state = transfer(taught(monkeypatch), statistics_weight=100.0, generator_rate=3e-3)
    z = torch.randn(32, 6)

    def distance() -> float:
        with networks.record_inputs(state.norms) as fed, torch.no_grad():
            state.teacher(state.generator(z))
        return losses.statistics_distance(fed, state.norms).item()

    before = distance()
    for _ in range(5):
        state.improve_generator(z)
    assert distance() < before


def test_the_delivered_average_forgets_exponentially(monkeypatch: pytest.MonkeyPatch):
    state, decay = transfer(tiny(monkeypatch), average_decay=0.6, student_steps=4), 0.6
    seen = []
    state.student_step.register_step_post_hook(
        lambda *_: seen.append({k: v.clone() for k, v in state.student.state_dict().items()})
    )
    state.pseudo_batch()
    assert len(seen) == 4
    for name in ("first.weight", "classifier.bias", "second_norm.running_var"):
        expected = seen[0][name]
        for later in seen[1:]:
            expected = decay * expected + (1 - decay) * later[name]
        found = state.result().state_dict()[name]
        torch.testing.assert_close(found, expected, rtol=RTOL, atol=ATOL)
    assert not torch.equal(state.result().first.weight, state.student.first.weight)


def test_without_average_the_student_is_delivered(monkeypatch: pytest.MonkeyPatch):
    state = transfer(tiny(monkeypatch))
    assert state.result() is state.student


@pytest.mark.parametrize(("schedule", "rates"), [("constant", [1, 1, 1]), ("cosine", [1, 0.5, 0])])
def test_schedules_follow_the_pseudo_batches(
    monkeypatch: pytest.MonkeyPatch, schedule: str, rates: list[float]
):
    state = transfer(tiny(monkeypatch), schedule=schedule, pseudo_batches=4, student_rate=0.002)
    both, found = gkt.schedules(state), []
    for number in range(5):
        if number % 2 == 0:
            optimizers = (state.generator_step, state.student_step)
            found.append([o.param_groups[0]["lr"] for o in optimizers])
        for optimizer, rate in zip((state.generator_step, state.student_step), both, strict=True):
            optimizer.step()
            rate.step()
    expected = [[1e-3 * rate, 2e-3 * rate] for rate in rates]
    np.testing.assert_allclose(found, expected, rtol=RTOL, atol=1e-12)


def test_a_run_follows_its_schedule(monkeypatch: pytest.MonkeyPatch):
    state = transfer(tiny(monkeypatch), schedule="cosine")
    gkt.distil(state, z=torch.randn(4, 6))
    for optimizer in (state.generator_step, state.student_step):
        assert optimizer.param_groups[0]["lr"] == pytest.approx(0, abs=1e-12)


def test_a_cosine_falls_from_1_to_0_and_stays():
    found = [gkt.cosine(step, steps=6) for step in (0, 2, 3, 4, 6, 9)]
    assert found == pytest.approx([1, 0.75, 0.5, 0.25, 0, 0])


@pytest.mark.parametrize(
    "wrong",
    [
        {"pseudo_batches": 0, "snapshots": 0},
        {"batch_size": 1},
        {"student_steps": 0},
        {"snapshots": 0},
        {"snapshots": 4},
        {"average_decay": 1.0},
        {"gate_threshold": 1.5},
        {"student_rate": 0.0},
        {"schedule": "linear"},
        {"generator_output": "tanh"},
    ],
)
def test_settings_that_cannot_be_are_refused(wrong: dict):
    assert schema.build(gkt.Settings, SMALL) == gkt.Settings(**SMALL)
    with pytest.raises(ParameterError, match=next(reversed(wrong))):
        schema.build(gkt.Settings, SMALL | wrong)


def test_there_are_no_more_snapshots_than_pseudo_batches():
    with pytest.raises(ValueError, match="snapshots=4 with pseudo_batches=3"):
        gkt.Settings(**(SMALL | {"snapshots": 4}))


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, {method.attention, method.drawing}),
        ({"attention_weight": 0.0}, {method.drawing}),
        ({"prior_steps": 1}, {method.statistics, method.attention, method.drawing}),
        ({"statistics_weight": 0.1, "attention_weight": 0.0}, {method.statistics, method.drawing}),
    ],
)
def test_the_needs_follow_from_the_settings(changed: dict, expected: set):
    assert set(settings_of(**changed).needs) == expected


# --------------------------------------------------------------------- what is kept on the way


def test_observe_reads_agreement_and_leak_off_the_images(monkeypatch: pytest.MonkeyPatch):
    state = transfer(tiny(monkeypatch), forget=(0, 3))
    shares = torch.tensor(
        [[0.7, 0.1, 0.1, 0.1], [0.1, 0.2, 0.1, 0.6], [0.1, 0.6, 0.2, 0.1], [0.1, 0.1, 0.7, 0.1]]
    )
    state.student = Table()
    images = shares.log().reshape(4, 1, 2, 2)
    teacher = torch.tensor(
        [[9.0, 0, 0, 0], [0, 9.0, 0, 0], [0, 0, 0, 9.0], [0, 0, 9.0, 0]]
    )  # C_f: images 0 and 2
    signs = state.observe(images, teacher, torch.tensor([False, True, False, True]))
    assert signs["leak"] == pytest.approx((0.8 + 0.2) / 2, rel=RTOL)
    assert signs["agreement"] == pytest.approx(1 / 2)
    assert signs["drawn"] == [1, 1, 1, 1]
    assert signs["accepted"] == [0, 1, 1, 0]
    expected = scipy.stats.entropy(scipy.special.softmax(teacher.numpy(), 1), axis=1).mean()
    assert signs["entropy"] == pytest.approx(expected, rel=RTOL)


def test_observe_says_nan_where_the_teacher_sees_no_forget_class(monkeypatch: pytest.MonkeyPatch):
    state = transfer(tiny(monkeypatch))
    state.student = Table()
    signs = state.observe(torch.rand(2, 1, 2, 2), 9 * torch.eye(4)[1:3], torch.ones(2).bool())
    assert math.isnan(signs["leak"])
    assert not math.isnan(signs["agreement"])


def test_a_run_keeps_snapshots_signs_and_the_model_at_the_stop(monkeypatch: pytest.MonkeyPatch):
    leaks = iter([0.0, 0.0, 0.9, 0.9, 0.9, 0.9])
    observe = gkt.Transfer.observe
    monkeypatch.setattr(
        gkt.Transfer,
        "observe",
        lambda self, *args: observe(self, *args) | {"leak": next(leaks)},
    )
    outcome = unlearn(tiny(monkeypatch), pseudo_batches=6, snapshots=3, prior_steps=2)
    result = outcome.facts
    assert [s["pseudo_batch"] for s in result["snapshots"]] == [2, 4, 6]
    assert result["stop"] == 2
    assert states_equal(outcome.network, checkpoints.unpack(result["snapshots"][0]["model"]))
    assert not states_equal(outcome.network, checkpoints.unpack(result["snapshots"][1]["model"]))
    assert torch.equal(outcome.images, result["snapshots"][0]["images"])
    assert not outcome.network.training
    assert len(result["prior"]) == 2
    signs = {"disagreement", "loss", "agreement", "leak", "entropy", "accepted", "drawn"}
    assert set(result["history"]) == signs
    assert {len(values) for values in result["history"].values()} == {6}
    kept = result["snapshots"][0]
    assert kept["images"].shape == (60, *SHAPE)
    assert kept["predicted"].shape == kept["entropy"].shape == (60,)
    weights = kept["model"]["state_dict"]
    assert {v.dtype for v in weights.values()} == {torch.float16, torch.int64}


def test_a_snapshot_draws_the_same_latents_without_touching_the_run(
    monkeypatch: pytest.MonkeyPatch,
):
    state, z = transfer(tiny(monkeypatch)), torch.randn(5, 6)
    before = {name: value.clone() for name, value in state.generator.state_dict().items()}
    kept = gkt.snapshot(state, z, number=7)
    assert state.generator.training
    assert state.student.training
    after = state.generator.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    images = state.generator.eval()(z).detach()
    assert torch.equal(kept["images"], method.pictures(images))
    assert kept["predicted"].tolist() == state.teacher(images).argmax(1).tolist()
    assert kept["pseudo_batch"] == 7


def test_the_seed_decides_every_byte(monkeypatch: pytest.MonkeyPatch):
    settings = {"prior_steps": 1, "average_decay": 0.5, "generator_output": "sigmoid"}
    teacher = tiny(monkeypatch)
    first = to_file(unlearn(teacher, **settings))
    torch.rand(3)  # the caller's random state is of no account
    assert first == to_file(unlearn(teacher, **settings))
    assert first != to_file(unlearn(teacher, seed=1, **settings))


def test_what_is_drawn_has_a_stream_of_its_own(monkeypatch: pytest.MonkeyPatch):
    drawn, plain = [], gkt.latents

    def note(count: int, size: int, *, generator: torch.Generator) -> Tensor:
        drawn.append(plain(count, size, generator=generator))
        return drawn[-1]

    monkeypatch.setattr(gkt, "latents", note)
    teacher, found = tiny(monkeypatch), []
    for seed, steps in ((0, 0), (0, 2), (1, 0)):
        drawn.clear()
        unlearn(teacher, seed=seed, prior_steps=steps)
        found.append([z.clone() for z in drawn])
    # neither the prior nor its length changes what the transfer and the snapshots draw
    assert all(torch.equal(a, b) for a, b in zip(found[0], found[1], strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(found[0], found[2], strict=True))


def test_student_and_generator_start_from_weights_of_the_seed(monkeypatch: pytest.MonkeyPatch):
    teacher = tiny(monkeypatch)
    first, again = transfer(teacher), transfer(teacher)
    other = gkt.set_up(teacher, Classes([0]), shape=SHAPE, settings=settings_of(), seed=6)
    for name in ("student", "generator"):
        assert states_equal(getattr(first, name), getattr(again, name))
        assert not states_equal(getattr(first, name), getattr(other, name))
    assert not states_equal(first.student, teacher)


# ---------------------------------------------------------------------- any model, any classes


@pytest.mark.parametrize("attention_weight", [0.0, 250.0])
def test_a_model_without_batch_norm_can_be_distilled(attention_weight: float):
    torch.manual_seed(0)
    teacher = architectures.build("lenet5", width=0.5)
    student = unlearn(teacher, shape=(1, 28, 28), attention_weight=attention_weight).network
    assert student(torch.rand(2, 1, 28, 28)).isfinite().all()
    with pytest.raises(ValueError, match="LeNet5 has no BatchNorm"):
        unlearn(teacher, shape=(1, 28, 28), statistics_weight=1.0)


def test_attention_needs_activation_modules(monkeypatch: pytest.MonkeyPatch):
    class Functional(nn.Module):
        def __init__(self, *, width: float, channels: int, num_classes: int):
            super().__init__()
            self.read = nn.Linear(channels, num_classes)

        def forward(self, images: Tensor) -> Tensor:
            return self.read(F.relu(images).mean((2, 3)))

    monkeypatch.setitem(architectures.ARCHITECTURES, "functional", Functional)
    teacher = architectures.build("functional", channels=SHAPE[0], num_classes=CLASSES)
    with pytest.raises(ValueError, match=r"Functional has no activation module"):
        unlearn(teacher)
    assert len(unlearn(teacher, attention_weight=0.0).facts["history"]["loss"]) == 3


def test_a_run_of_a_sweep_forgets_several_classes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    original = record(tmp_path / "original.pt", taught(monkeypatch))
    chosen = settings_of(gate_threshold=0.3, batch_size=64, pseudo_batches=2)
    result = methods.run(
        original=original, method=gkt.METHOD, request=Classes([2, 1]), settings=chosen, seed=0
    )
    student = checkpoints.unpack(result["model"])
    assert isinstance(student, Tiny)
    assert architectures.num_classes(student) == CLASSES
    for accepted in result["history"]["accepted"]:
        assert accepted[1] == accepted[2] == 0
    assert sum(sum(drawn[1:3]) for drawn in result["history"]["drawn"]) > 0
