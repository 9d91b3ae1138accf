"""Gated knowledge transfer: the published order of steps, its hidden details, its losses by hand."""

import copy
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
from unlearnlib.zero_shot import gkt, losses, method

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


def settings_of(**changed) -> gkt.Transfer:
    chosen = SMALL | changed
    chosen["snapshots"] = min(chosen["snapshots"], chosen["pseudo_batches"])
    return gkt.Transfer(**chosen)


def set_up(teacher: nn.Module, *, forget: tuple[int, ...] = (0,), **changed) -> gkt.Transferring:
    """Set a transfer up as a run does."""
    options = {"shape": SHAPE, "settings": settings_of(**changed), "seed": 5}
    return gkt.set_up(teacher, Classes(forget), **options)


def transfer(
    teacher: nn.Module, *, seed: int = 0, shape: tuple = SHAPE, state: dict | None = None, **changed
) -> dict:
    options = {"shape": shape, "settings": settings_of(**changed), "seed": seed}
    return gkt.transfer(teacher, Classes([1]), state=state, **options)


def to_file(found: dict) -> bytes:
    stream = io.BytesIO()
    torch.save(found | {"student": checkpoints.pack(found["student"])}, stream)
    return stream.getvalue()


def drawn_from(state: gkt.Transferring, z: Tensor) -> gkt.Drawn:
    with torch.no_grad():
        return state.draw(z, attend=True)


def given(seen: gkt.Drawn) -> tuple[Tensor, Tensor, list[Tensor]]:
    return seen.images, seen.logits, seen.maps


# ---------------------------------------------------------------------------- the published run


def events_of(state: gkt.Transferring) -> list[str]:
    """Keep a diary of forward passes and optimiser steps."""
    diary: list[str] = []
    names = {"generator": "generator", "asked": "teacher", "taught": "student"}
    for attribute, name in names.items():
        network = getattr(state, attribute)
        network.register_forward_pre_hook(lambda m, _, name=name: diary.append(name))
    state.student.register_forward_pre_hook(lambda m, _: diary.append("look"))
    state.generator_step.register_step_post_hook(lambda *_: diary.append("generator step"))
    state.student_step.register_step_post_hook(lambda *_: diary.append("student step"))
    return diary


@pytest.mark.parametrize("student_steps", [1, 10])
def test_a_pseudo_batch_is_one_generator_step_then_the_student_steps(
    monkeypatch: pytest.MonkeyPatch, student_steps: int
):
    state = set_up(tiny(monkeypatch), student_steps=student_steps)
    diary = events_of(state)
    state.pseudo_batch()
    improve = ["generator", "teacher", "student", "generator step"]
    draw = ["generator", "teacher"]  # once for all student steps
    observe = ["look"]
    assert diary == improve + draw + observe + ["student", "student step"] * student_steps


def test_the_student_steps_use_the_latents_of_the_generator_step(monkeypatch: pytest.MonkeyPatch):
    state, seen = set_up(tiny(monkeypatch)), []
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
    state = set_up(taught(monkeypatch), generator_rate=3e-3, student_rate=3e-3)
    z = torch.randn(32, 6, generator=torch.Generator().manual_seed(1))
    sought = [state.improve_generator(state.draw(z, attend=False)) for _ in range(5)]
    assert sought[-1] > sought[0]
    drawn = given(drawn_from(state, z))
    learnt = [state.improve_student(*drawn) for _ in range(5)]
    assert learnt[-1] < learnt[0]


def reference(teacher: nn.Module, student: nn.Module, generator: nn.Module, draws: list[Tensor]):
    """Run the published loop as its authors wrote it, but for the NaN trap of F.kl_div."""
    teacher.eval()
    student.eval()  # what `evaluate` of their notebook leaves behind
    layers = ["first_act", "second_act"]
    optimizers = [torch.optim.Adam(n.parameters(), lr=1e-3) for n in (generator, student)]
    for z in draws:
        for number in range(3):
            images = generator(z)
            images = images[teacher(images).softmax(1)[:, 0] <= 0.5]
            with networks.record_outputs(student, layers) as own:
                answers = student(images)
            with networks.record_outputs(teacher, layers) as other:
                wanted = teacher(images)
            p = wanted.softmax(1)
            kl = (p * (p.log() - answers.log_softmax(1))).mean()
            if number == 0:
                network, optimizer, loss = generator, optimizers[0], -kl
            else:
                network, optimizer, loss = student, optimizers[1], kl
                for name in layers:
                    gap = plain_map(own[name]) - plain_map(other[name].detach())
                    loss = loss + 250 * gap.pow(2).mean()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 5)
            optimizer.step()
        yield -kl.item() if number == 0 else loss.item()


def test_twenty_pseudo_batches_have_the_losses_of_the_published_loop(
    monkeypatch: pytest.MonkeyPatch,
):
    teacher = taught(monkeypatch)
    state = set_up(teacher, batch_size=32, gate_threshold=0.5, pseudo_batches=20)
    student = checkpoints.unpack(checkpoints.pack(state.student))
    generator = copy.deepcopy(state.generator)
    draws, plain = [], gkt.latents
    monkeypatch.setattr(gkt, "latents", lambda *a, **k: draws.append(plain(*a, **k)) or draws[-1])
    for _ in range(20):
        state.pseudo_batch()
    assert len(draws) == 20  # none was drawn in vain
    expected = list(reference(teacher, student, generator, draws))
    found = [entry["loss"] for entry in state.history]
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert found[-1] < found[0]


def test_the_student_stays_in_evaluation_mode(monkeypatch: pytest.MonkeyPatch):
    for mode, moves in (("evaluation", False), ("training", True)):
        state = set_up(taught(monkeypatch), student_mode=mode)
        for _ in range(2):
            state.pseudo_batch()
        norm = state.student.first_norm
        assert bool(norm.running_mean.any()) is moves
        assert bool((norm.running_var - 1).any()) is moves
        assert bool(norm.num_batches_tracked) is moves
        assert state.student.training is moves


def test_the_generator_learns_from_images_that_pass_alone(monkeypatch: pytest.MonkeyPatch):
    teacher = taught(monkeypatch)
    z = torch.randn(64, 6, generator=torch.Generator().manual_seed(1))
    for gated in (True, False):
        state = set_up(teacher, gate_threshold=0.2, gate_generator=gated)
        seen = state.draw(z, attend=False)
        assert 0 < seen.passes.sum() < 64
        seen.images.retain_grad()
        state.improve_generator(seen)
        reached = seen.images.grad.flatten(1).abs().sum(1) > 0
        assert torch.equal(reached, seen.passes) if gated else reached[~seen.passes].any()


@pytest.mark.parametrize(("output", "scaled"), [("published", True), ("fixed_scale", False)])
def test_the_scale_of_the_images_is_learnt(
    monkeypatch: pytest.MonkeyPatch, output: str, scaled: bool
):
    state = set_up(taught(monkeypatch), generator_output=output, generator_rate=0.01)
    for _ in range(3):
        state.pseudo_batch()
    images = drawn_from(state, torch.randn(64, 6)).images
    deviation = images.std((0, 2, 3), correction=0)
    assert bool((deviation - 1).abs().max() > 5e-3) is scaled


def test_published_is_what_the_settings_are_by_default():
    s = gkt.Transfer()
    assert (s.student_mode, s.gate_generator, s.generator_output) == (
        "evaluation", True, "published",
    )  # fmt: skip
    assert (s.batch_size, s.student_steps, s.gate_threshold) == (256, 10, 0.01)
    assert (s.attention_weight, s.divergence_per_class, s.schedule) == (250, True, "constant")
    assert (s.pseudo_batches, s.latent_size, s.generator_channels) == (4000, 128, 128)


def test_the_teacher_and_what_it_counts_never_change(monkeypatch: pytest.MonkeyPatch):
    teacher = tiny(monkeypatch).train()
    before = checkpoints.unpack(checkpoints.pack(teacher))
    transfer(teacher, statistics_weight=1.0, balance_weight=1.0, prior_steps=2)
    assert states_equal(teacher, before)
    assert not teacher.training
    assert not any(p.requires_grad for p in teacher.parameters())


def test_a_student_step_sees_accepted_images_only(monkeypatch: pytest.MonkeyPatch):
    teacher = taught(monkeypatch)
    state, steps = set_up(teacher, gate_threshold=0.041, batch_size=64), []
    improve = state.improve_student
    monkeypatch.setattr(
        state, "improve_student", lambda *kept: steps.append(kept) or improve(*kept)
    )
    state.pseudo_batch()
    (images, answers, maps), again = steps[0], steps[1]
    assert 2 <= len(images) < 64
    assert len(steps) == 2
    assert again[0] is images
    assert (teacher(images).softmax(1)[:, 0] <= 0.0411).all()
    torch.testing.assert_close(answers, teacher(images), rtol=RTOL, atol=ATOL)
    with networks.record_outputs(teacher, state.layers) as outputs:
        teacher(images)
    for found, name in zip(maps, state.layers, strict=True):
        torch.testing.assert_close(found, plain_map(outputs[name]), rtol=RTOL, atol=ATOL)
    assert sum(state.history[0]["accepted"]) == len(images)
    assert sum(state.history[0]["drawn"]) == 64


def test_answers_without_the_classes_let_every_image_pass(monkeypatch: pytest.MonkeyPatch):
    state = set_up(taught(monkeypatch), kept_from_student="answers", gate_threshold=0.01)
    z = torch.randn(64, 6)
    seen = drawn_from(state, z)
    assert seen.passes.all()
    plain = state.teacher(seen.images).softmax(1)
    assert plain[:, 0].max() > 0.4  # the gate would have kept some away
    expected = plain[:, 1:] / plain[:, 1:].sum(1, keepdim=True)
    torch.testing.assert_close(seen.logits.softmax(1)[:, 1:], expected, rtol=1e-3, atol=1e-5)
    assert seen.logits.softmax(1)[:, 0].max() < 1e-20


# ------------------------------------------------------------------------- what passes the gate


def gate_of(counts: list[int]):
    """Let as many images pass as the counts say, one a draw, the last from then on."""
    left = list(counts)

    def gate(logits: Tensor, *_: object, **__: object) -> Tensor:
        number = left.pop(0) if len(left) > 1 else left[0]
        return torch.arange(len(logits)) < number

    return gate


def test_latents_are_drawn_anew_until_an_image_passes(monkeypatch: pytest.MonkeyPatch):
    state = set_up(tiny(monkeypatch))
    monkeypatch.setattr(losses, "gate", gate_of([0, 0, 3, 0, 0, 5]))
    diary = events_of(state)
    state.pseudo_batch()
    assert diary.count("generator step") == 1
    assert diary.count("student step") == 2
    # three draws for the generator, one in vain on its latents for the student, two more
    assert diary.count("generator") == 6
    assert sum(state.history[0]["accepted"]) == 5
    assert state.history[0]["draws"] == 5


@pytest.mark.parametrize(("mode", "passing"), [("evaluation", 1), ("training", 2)])
def test_batch_norm_in_training_mode_needs_two_images(
    monkeypatch: pytest.MonkeyPatch, mode: str, passing: int
):
    state = set_up(tiny(monkeypatch), student_mode=mode)
    monkeypatch.setattr(losses, "gate", gate_of([1, 2]))
    state.pseudo_batch()
    expected = [1, 2] if mode == "evaluation" else [2, 2]
    assert sum(state.history[0]["accepted"]) in expected
    assert sum(state.history[0]["accepted"]) >= passing


def test_a_generator_that_draws_in_vain_is_set_back(monkeypatch: pytest.MonkeyPatch):
    state = set_up(tiny(monkeypatch))
    monkeypatch.setattr(gkt, "PATIENCE", 2)
    former = {name: value.clone() for name, value in state.generator.state_dict().items()}
    state.former.append(former)
    with torch.no_grad():
        state.generator.layers[0].weight.add_(1)
    monkeypatch.setattr(losses, "gate", gate_of([0, 0, 8]))
    state.drawn(lambda z: drawn_from(state, z))
    assert torch.equal(state.generator.layers[0].weight, former["layers.0.weight"])


def test_a_gate_that_nothing_passes_is_an_error_that_names_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(gkt, "PATIENCE", 2)
    with pytest.raises(RuntimeError, match=r"none of 6 batches.*gate_threshold=0.*raise them"):
        transfer(tiny(monkeypatch), gate_threshold=0.0)


def test_a_student_changes_on_accepted_images(monkeypatch: pytest.MonkeyPatch):
    state = set_up(tiny(monkeypatch))
    before = checkpoints.unpack(checkpoints.pack(state.student))
    state.pseudo_batch()
    assert not torch.equal(before.first.weight, state.student.first.weight)
    assert math.isfinite(state.history[0]["loss"])


def test_a_loss_that_is_not_finite_raises(monkeypatch: pytest.MonkeyPatch):
    teacher = tiny(monkeypatch)
    with torch.no_grad():
        teacher.classifier.bias[0] = math.nan
    with pytest.raises(FloatingPointError, match="the loss is nan"):
        transfer(teacher)


# -------------------------------------------------------------------------------- the settings


def test_the_student_loss_is_divergence_and_weighted_attention(monkeypatch: pytest.MonkeyPatch):
    for weight, per_class in ((0.0, False), (250.0, True)):
        state = set_up(tiny(monkeypatch), attention_weight=weight, divergence_per_class=per_class)
        drawn = given(drawn_from(state, torch.randn(8, 6)))
        twin = checkpoints.unpack(checkpoints.pack(state.student)).eval()
        with networks.record_outputs(twin, ["first_act", "second_act"]) as own:
            answers = twin(drawn[0])
        with networks.record_outputs(state.teacher, ["first_act", "second_act"]) as other:
            state.teacher(drawn[0])
        p, q = drawn[1].softmax(1), answers.softmax(1)
        expected = (p * (p / q).log()).sum(1).mean() / (CLASSES if per_class else 1)
        for name in own:
            expected = expected + weight * F.mse_loss(plain_map(own[name]), plain_map(other[name]))
        assert state.improve_student(*drawn) == pytest.approx(expected.item(), rel=1e-3)


def test_attention_may_be_paid_to_some_layers(monkeypatch: pytest.MonkeyPatch):
    teacher = tiny(monkeypatch)
    assert set_up(teacher, attention_layers=(2,)).layers == ["first_act"]
    with pytest.raises(ValueError, match=r"attention_layers=\[3\]: there is no layer 3.*1 to 2"):
        set_up(teacher, attention_layers=(3,))


def test_attention_fades_by_its_schedule(monkeypatch: pytest.MonkeyPatch):
    state = set_up(tiny(monkeypatch), attention_schedule="cosine", pseudo_batches=4)
    weights = []
    for number in (1, 3, 5):
        state.set_pace(number)
        weights.append(state.attention_weight)
    assert weights == pytest.approx([250, 125, 0])
    state = set_up(tiny(monkeypatch), pseudo_batches=4)
    state.set_pace(3)
    assert state.attention_weight == 250


def test_without_attention_no_layer_is_read(monkeypatch: pytest.MonkeyPatch):
    assert set_up(tiny(monkeypatch), attention_weight=0.0).layers == []
    assert set_up(tiny(monkeypatch)).layers == ["second_act", "first_act"]


@pytest.mark.parametrize(
    ("statistics", "balance"), [(0.0, 0.0), (0.5, 0.0), (0.0, 2.0), (3.0, 2.0)]
)
def test_the_regulariser_weighs_statistics_and_balance(
    monkeypatch: pytest.MonkeyPatch, statistics: float, balance: float
):
    teacher = tiny(monkeypatch)
    state = set_up(teacher, statistics_weight=statistics, balance_weight=balance)
    fed = [torch.rand(4, 6, 3, 3), torch.rand(4, 6, 2, 2)]
    drawn = logits(4, CLASSES, seed=0)
    expected = balance * losses.imbalance(drawn)
    expected += statistics * losses.statistics_distance(fed, networks.batch_norms(teacher))
    seen = gkt.Drawn(fed[0], drawn, drawn[:, 0] > 0, [], fed if statistics else [])
    assert state.regulariser(seen).item() == pytest.approx(expected.item(), rel=RTOL)


def test_the_generator_descends_its_regulariser(monkeypatch: pytest.MonkeyPatch):
    state = set_up(taught(monkeypatch), statistics_weight=100.0, generator_rate=3e-3)
    z = torch.randn(32, 6)

    def distance() -> float:
        with networks.record_inputs(state.norms) as fed, torch.no_grad():
            state.teacher(state.generator(z))
        return losses.statistics_distance(fed, state.norms).item()

    before = distance()
    for _ in range(5):
        state.improve_generator(state.draw(z, attend=False))
    assert distance() < before


def test_the_delivered_average_forgets_exponentially(monkeypatch: pytest.MonkeyPatch):
    decay, options = 0.6, {"student_mode": "training", "student_steps": 4}
    state = set_up(tiny(monkeypatch), average_decay=decay, **options)
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
    state = set_up(tiny(monkeypatch))
    assert state.result() is state.student


@pytest.mark.parametrize(("schedule", "rates"), [("constant", [1, 1, 1]), ("cosine", [1, 0.5, 0])])
def test_rates_follow_the_pseudo_batches(
    monkeypatch: pytest.MonkeyPatch, schedule: str, rates: list[float]
):
    state = set_up(tiny(monkeypatch), schedule=schedule, pseudo_batches=4, student_rate=0.002)
    found = []
    for number in (1, 3, 5):
        state.set_pace(number)
        found.append([o.param_groups[0]["lr"] for o in (state.generator_step, state.student_step)])
    expected = [[1e-3 * rate, 2e-3 * rate] for rate in rates]
    np.testing.assert_allclose(found, expected, rtol=RTOL, atol=1e-12)


def test_the_rate_of_the_generator_may_be_halved_again_and_again(monkeypatch: pytest.MonkeyPatch):
    state = set_up(tiny(monkeypatch), generator_halving=2)
    found = []
    for number in range(1, 7):
        state.set_pace(number)
        found.append([o.param_groups[0]["lr"] for o in (state.generator_step, state.student_step)])
    expected = [[1e-3 * factor, 1e-3] for factor in (1, 1, 0.5, 0.5, 0.25, 0.25)]
    np.testing.assert_allclose(found, expected, rtol=RTOL)


def test_a_run_follows_its_schedule(monkeypatch: pytest.MonkeyPatch):
    state = set_up(tiny(monkeypatch), schedule="cosine")
    gkt.distil(state, z=torch.randn(4, 6), begun=0)
    for optimizer, rate in ((state.generator_step, 1e-3), (state.student_step, 1e-3)):
        expected = rate * gkt.cosine(2, steps=3)  # of the last of three
        assert optimizer.param_groups[0]["lr"] == pytest.approx(expected)


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
        {"student_mode": "eval"},
        {"kept_from_student": "nothing"},
        {"keep_state": 0},
        {"generator_output": "tanh"},
    ],
)
def test_settings_that_cannot_be_are_refused(wrong: dict):
    assert schema.build(gkt.Transfer, SMALL) == gkt.Transfer(**SMALL)
    with pytest.raises(ParameterError, match=next(reversed(wrong))):
        schema.build(gkt.Transfer, SMALL | wrong)


def test_there_are_no_more_snapshots_than_pseudo_batches():
    with pytest.raises(ValueError, match="snapshots=4 with pseudo_batches=3"):
        gkt.Transfer(**(SMALL | {"snapshots": 4}))


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


def seen(images: Tensor, teacher: Tensor, passes: list[bool]) -> gkt.Drawn:
    return gkt.Drawn(images, teacher, torch.tensor(passes), [], [])


def test_observe_reads_the_signs_off_the_images(monkeypatch: pytest.MonkeyPatch):
    state = set_up(tiny(monkeypatch), forget=(0, 3))
    shares = torch.tensor(
        [[0.7, 0.1, 0.1, 0.1], [0.1, 0.2, 0.1, 0.6], [0.1, 0.6, 0.2, 0.1], [0.1, 0.1, 0.7, 0.1]]
    )
    state.student = Table()
    images = shares.log().reshape(4, 1, 2, 2)
    teacher = torch.tensor(
        [[9.0, 0, 0, 0], [0, 9.0, 0, 0], [0, 0, 0, 9.0], [0, 1.0, 9.0, 0]]
    )  # C_f: images 0 and 2
    signs = state.observe(seen(images, teacher, [False, True, True, True]))
    assert signs["leak"] == pytest.approx((0.8 + 0.2) / 2, rel=RTOL)
    assert signs["echo"] == pytest.approx((0.7 + 0.2 + 0.2) / 3, rel=RTOL)
    assert signs["agreement"] == pytest.approx(1 / 3)
    assert signs["drawn"] == [1, 1, 1, 1]
    assert signs["accepted"] == [0, 1, 1, 1]
    expected = scipy.stats.entropy(scipy.special.softmax(teacher.numpy(), 1), axis=1).mean()
    assert signs["entropy"] == pytest.approx(expected, rel=RTOL)
    own, theirs = shares[1:].numpy(), scipy.special.softmax(teacher[1:].numpy(), 1)
    odds = [np.log(p[:, [0, 3]].sum(1) / p[:, [1, 2]].sum(1)) for p in (own, theirs)]
    assert signs["correlation"] == pytest.approx(np.corrcoef(*odds)[0, 1], rel=1e-3)
    assert signs["slope"] == pytest.approx(np.polyfit(odds[1], odds[0], 1)[0], rel=1e-3)
    assert signs["draws"] == 0


def test_observe_says_nan_where_the_teacher_sees_no_forget_class(monkeypatch: pytest.MonkeyPatch):
    state = set_up(tiny(monkeypatch))
    state.student = Table()
    signs = state.observe(seen(torch.rand(2, 1, 2, 2), 9 * torch.eye(4)[1:3], [True, True]))
    assert math.isnan(signs["leak"])
    assert math.isnan(signs["correlation"])  # of two images it would say nothing
    assert not math.isnan(signs["agreement"])


def test_a_run_keeps_snapshots_and_signs(monkeypatch: pytest.MonkeyPatch):
    found = transfer(tiny(monkeypatch), pseudo_batches=6, snapshots=3, prior_steps=2)
    assert [s["pseudo_batch"] for s in found["snapshots"]] == [2, 4, 6]
    last = checkpoints.unpack(found["snapshots"][2]["model"])
    assert not states_equal(last, checkpoints.unpack(found["snapshots"][1]["model"]))
    for name, value in found["student"].state_dict().items():
        torch.testing.assert_close(last.state_dict()[name], value, rtol=1e-3, atol=1e-4)
    assert not found["student"].training
    assert len(found["prior"]) == 2
    assert found["begun"] == 0
    signs = {
        "disagreement", "loss", "agreement", "leak", "echo", "correlation", "slope", "entropy",
        "accepted", "drawn", "draws",
    }  # fmt: skip
    assert set(found["history"]) == signs
    assert {len(values) for values in found["history"].values()} == {6}
    weights = found["snapshots"][0]["model"]["state_dict"]
    assert {v.dtype for v in weights.values()} == {torch.float16, torch.int64}
    assert "state" not in found


def test_a_snapshot_keeps_the_surest_draws_of_each_class(monkeypatch: pytest.MonkeyPatch):
    state, z = set_up(tiny(monkeypatch)), torch.randn(40, 6)
    state.asked = Table()  # which has answers of several classes
    before = {name: value.clone() for name, value in state.generator.state_dict().items()}
    kept = gkt.snapshot(state, z, number=7)
    assert state.generator.training
    after = state.generator.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    images = state.generator.eval()(z).detach()
    confidence, predicted = Table()(images).softmax(1).max(1)
    chosen = []
    for k in predicted.unique().tolist():
        of_class = [n for n in range(40) if predicted[n] == k]
        chosen += sorted(of_class, key=lambda n: -confidence[n].item())[:2]
    assert len({*predicted[chosen].tolist()}) > 1
    assert torch.equal(kept["images"], method.pictures(images[chosen]))
    assert kept["predicted"].tolist() == predicted[chosen].tolist()
    torch.testing.assert_close(kept["confidence"], confidence[chosen].detach())
    assert kept["pseudo_batch"] == 7


@pytest.mark.parametrize("average", [0.0, 0.5])
def test_a_run_that_goes_on_from_a_state_ends_as_the_whole_run(
    monkeypatch: pytest.MonkeyPatch, average: float
):
    options = {"pseudo_batches": 6, "keep_state": 3, "prior_steps": 1, "average_decay": average}
    teacher = tiny(monkeypatch)
    whole = transfer(teacher, **options)
    stream = io.BytesIO()
    torch.save(whole["state"], stream)  # as a file holds it
    stream.seek(0)
    rest = transfer(teacher, state=torch.load(stream, weights_only=True), **options)
    assert states_equal(whole["student"], rest["student"])
    assert rest["begun"] == 3
    assert rest["history"]["loss"] == whole["history"]["loss"][3:]
    assert [s["pseudo_batch"] for s in rest["snapshots"]] == [4, 6]


def test_the_seed_decides_every_byte(monkeypatch: pytest.MonkeyPatch):
    settings = {"prior_steps": 1, "average_decay": 0.5, "generator_output": "sigmoid"}
    teacher = tiny(monkeypatch)
    first = to_file(transfer(teacher, **settings))
    torch.rand(3)  # the caller's random state is of no account
    assert first == to_file(transfer(teacher, **settings))
    assert first != to_file(transfer(teacher, seed=1, **settings))


def test_what_is_drawn_has_a_stream_of_its_own(monkeypatch: pytest.MonkeyPatch):
    drawn, plain = [], gkt.latents

    def note(count: int, size: int, *, generator: torch.Generator) -> Tensor:
        drawn.append(plain(count, size, generator=generator))
        return drawn[-1]

    monkeypatch.setattr(gkt, "latents", note)
    teacher, found = tiny(monkeypatch), []
    for seed, steps in ((0, 0), (0, 2), (1, 0)):
        drawn.clear()
        transfer(teacher, seed=seed, prior_steps=steps)
        found.append([z.clone() for z in drawn])
    # neither the prior nor its length changes what the transfer and the snapshots draw
    assert all(torch.equal(a, b) for a, b in zip(found[0], found[1], strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(found[0], found[2], strict=True))


def test_student_and_generator_start_from_weights_of_the_seed(monkeypatch: pytest.MonkeyPatch):
    teacher = tiny(monkeypatch)
    first, again = set_up(teacher), set_up(teacher)
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
    found = transfer(teacher, shape=(1, 28, 28), attention_weight=attention_weight)
    student = found["student"]
    assert student(torch.rand(2, 1, 28, 28)).isfinite().all()
    with pytest.raises(ValueError, match="LeNet5 has no BatchNorm"):
        transfer(teacher, shape=(1, 28, 28), statistics_weight=1.0)


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
        transfer(teacher)
    assert len(transfer(teacher, attention_weight=0.0)["history"]["loss"]) == 3


# ------------------------------------------------------------------------------ runs of a sweep


def test_a_run_of_a_sweep_keeps_several_classes_away(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    original = record(tmp_path / "original.pt", taught(monkeypatch))
    chosen = settings_of(gate_threshold=0.3, batch_size=64, pseudo_batches=2)
    result = gkt.run_transfer(original=original, request=Classes([2, 1]), settings=chosen, seed=0)
    student = checkpoints.unpack(result["model"])
    assert isinstance(student, Tiny)
    assert architectures.num_classes(student) == CLASSES
    for accepted in result["history"]["accepted"]:
        assert accepted[1] == accepted[2] == 0
    assert sum(sum(drawn[1:3]) for drawn in result["history"]["drawn"]) > 0


def test_a_start_without_a_state_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    original = record(tmp_path / "original.pt", tiny(monkeypatch))
    options = {"request": Classes([1]), "settings": settings_of(), "seed": 0}
    with pytest.raises(ValueError, match=r"original\.pt kept no state.*keep_state"):
        gkt.run_transfer(original=original, start=original, **options)


def test_the_method_stops_a_transfer(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(gkt.stopping, "last_below", lambda sign, limit: 1)
    settings = gkt.Settings(settings_of(), gkt.stopping.Stop(rule="leak"))
    teacher = tiny(monkeypatch)
    outcome = gkt.unlearn(teacher, Classes([1]), shape=SHAPE, settings=settings, seed=0)
    kept = outcome.facts["snapshots"][1]
    assert outcome.facts["stop"] == kept["pseudo_batch"] == 2
    assert states_equal(outcome.network, checkpoints.unpack(kept["model"]))
    assert torch.equal(outcome.images, kept["images"])
    assert not outcome.network.training
