"""DeepInversion: each term of the loss by hand, images in range, and a student that C_f never reaches."""

import math
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch
from sklearn.metrics import log_loss
from tolerances import RTOL
from torch import Tensor, nn
from toys import (
    CLASSES,
    SHAPE,
    Table,
    record,
    states_equal,
    statistics_by_hand,
    stripes,
    taught,
    tiny,
)

from unlearnlib.data.requests import Classes, RequestError
from unlearnlib.models import architectures, checkpoints, networks
from unlearnlib.pipeline import clock, schema
from unlearnlib.pipeline.parameters import ParameterError
from unlearnlib.zero_shot import deep_inversion, generators, method, methods
from unlearnlib.zero_shot.batch_statistics import Observed

DRAWN = {
    "per_class": 3,
    "batch_size": 4,
    "steps": 2,
    "prior_batch": 8,
    "latent_size": 6,
    "generator_channels": 8,
}
DISTILLED = {"steps": 6, "batch_size": 8}
OFF = {"statistics_weight": 0.0, "variation_weight": 0.0, "norm_weight": 0.0}


def settings(**changed) -> deep_inversion.Synthesis:
    return deep_inversion.Synthesis(**(DRAWN | changed))


def synthesise(teacher: nn.Module, *, seed: int = 0, **changed) -> tuple[Tensor, Tensor]:
    count = architectures.num_classes(teacher)
    options = {"shape": SHAPE if count == CLASSES else (1, 28, 28), "settings": settings(**changed)}
    stays = [k for k in range(count) if k not in (1, 3)]
    return deep_inversion.synthesise(teacher, stays, seed=seed, **options)


def distil(
    teacher: nn.Module, images: Tensor, *, seed: int = 0, **changed
) -> tuple[nn.Module, list[float]]:
    chosen = deep_inversion.Distillation(**(DISTILLED | changed))
    pixels = (images * 255).to(torch.uint8)
    return deep_inversion.distil(teacher, pixels, Classes([1, 3]), settings=chosen, seed=seed)


# ----------------------------------------------------------------------------------- the loss


@pytest.mark.parametrize(
    "weights",
    [(0.0, 0.0, 0.0), (2.0, 0.0, 0.0), (0.0, 0.3, 0.0), (0.0, 0.0, 0.1), (1.0, 0.2, 0.05)],
)
def test_the_loss_is_what_sklearn_and_numpy_compute(
    monkeypatch: pytest.MonkeyPatch, weights: tuple[float, float, float]
):
    teacher = networks.frozen(tiny(monkeypatch))
    images, labels = stripes(6)
    chosen = settings(
        statistics_weight=weights[0], variation_weight=weights[1], norm_weight=weights[2]
    )
    observed = Observed(teacher, weight=weights[0])
    found = deep_inversion.inversion_loss(observed, images, labels, settings=chosen)
    array = images.double().numpy()
    shares = teacher(images).double().softmax(1).numpy()
    variation = sum((np.diff(array, axis=axis) ** 2).sum() for axis in (2, 3)) / 6
    expected = log_loss(labels, shares, labels=range(CLASSES))
    expected += weights[0] * statistics_by_hand(teacher, images)
    expected += weights[1] * variation + weights[2] * (array**2).sum() / 6
    assert found.item() == pytest.approx(expected, rel=RTOL)


# --------------------------------------------------------------------------------- the images


def optimise(teacher: nn.Module, start: Tensor, labels: Tensor, **changed) -> Tensor:
    randomness = torch.Generator().manual_seed(0)
    return deep_inversion.optimise(
        teacher, start, labels, settings=settings(**changed), generator=randomness
    )


def test_images_become_their_class_and_stay_in_range(monkeypatch: pytest.MonkeyPatch):
    teacher = networks.frozen(taught(monkeypatch))
    start = 0.3 * torch.rand(8, *SHAPE, generator=torch.Generator().manual_seed(0))
    before, labels = start.clone(), torch.arange(8) % CLASSES
    chosen = {"steps": 60, "rate": 0.1, "jitter": 1, "statistics_weight": 0.02}
    images = optimise(teacher, start, labels, **chosen)
    assert 0 <= images.min() <= images.max() <= 1
    assert images.max() > 0.9
    assert (teacher(images).argmax(1) == labels).float().mean() > 0.8
    losses = [
        deep_inversion.inversion_loss(Observed(teacher), x, labels, settings=settings(**chosen))
        for x in (start, images)
    ]
    assert losses[1] < losses[0] / 3
    assert torch.equal(start, before)
    assert not images.requires_grad


def test_a_step_is_adam_with_a_cosine_rate_and_clamped_pixels(monkeypatch: pytest.MonkeyPatch):
    teacher = tiny(monkeypatch)
    nn.init.zeros_(teacher.classifier.weight)  # so that the norm alone has a slope
    start = torch.rand(4, *SHAPE)
    options = OFF | {"norm_weight": 0.5, "jitter": 0, "steps": 3, "rate": 0.2}
    found = optimise(networks.frozen(teacher), start, torch.zeros(4).long(), **options)
    pixels, first, second = start.double().numpy(), 0.0, 0.0
    for step in range(3):
        slope = 2 * 0.5 * pixels / 4
        first, second = 0.5 * first + 0.5 * slope, 0.9 * second + 0.1 * slope**2
        corrected = np.sqrt(second / (1 - 0.9 ** (step + 1))) + 1e-8
        rate = 0.2 * (1 + math.cos(math.pi * step / 3)) / 2
        pixels = np.clip(pixels - rate * first / (1 - 0.5 ** (step + 1)) / corrected, 0, 1)
    np.testing.assert_allclose(found, pixels, rtol=RTOL, atol=1e-5)
    assert (found == 0).any()


def test_the_jitter_is_seeded_and_moves_what_the_teacher_sees(monkeypatch: pytest.MonkeyPatch):
    teacher, (start, labels) = networks.frozen(tiny(monkeypatch)), stripes(4)
    still, moved = (optimise(teacher, start, labels, jitter=j, steps=4) for j in (0, 2))
    assert torch.equal(moved, optimise(teacher, start, labels, jitter=2, steps=4))
    assert not torch.equal(still, moved)


def test_a_loss_that_is_not_finite_raises(monkeypatch: pytest.MonkeyPatch):
    teacher = networks.frozen(tiny(monkeypatch))
    teacher.classifier.bias[0] = math.nan
    with pytest.raises(FloatingPointError, match="the loss is nan"):
        synthesise(teacher)


def assert_balanced(labels: Tensor, classes: list[int]) -> None:
    assert sorted(labels.unique().tolist()) == classes
    for end in range(1, len(labels) + 1):
        counts = labels[:end].bincount(minlength=max(classes) + 1)[classes]
        assert counts.max() - counts.min() <= 1


@pytest.mark.parametrize("count", [5, 12])
def test_starts_are_dark_noise_of_balanced_classes(monkeypatch: pytest.MonkeyPatch, count: int):
    options = {"classes": [0, 2, 3], "shape": SHAPE, "settings": settings()}
    images, labels = deep_inversion.starts(tiny(monkeypatch), count=count, seed=0, **options)
    assert images.shape == (count, *SHAPE)
    assert 0 <= images.min() < images.max() <= 0.3
    assert_balanced(labels, [0, 2, 3])
    assert len(labels) == count


def test_starts_of_a_prior_are_what_the_teacher_sees(monkeypatch: pytest.MonkeyPatch):
    teacher = networks.frozen(taught(monkeypatch))
    options = {"classes": range(4), "shape": SHAPE, "settings": settings(prior_steps=300)}
    images, labels = deep_inversion.starts(teacher, count=40, seed=0, **options)
    assert images.shape == (40, *SHAPE)
    assert (teacher(images).argmax(1) == labels).float().mean() > 0.6
    noise = 0.3 * torch.rand(40, *SHAPE)
    assert statistics_by_hand(teacher, images) < 0.75 * statistics_by_hand(teacher, noise)


def test_unbalanced_starts_are_draws_as_they_come(monkeypatch: pytest.MonkeyPatch):
    teacher = networks.frozen(taught(monkeypatch))
    options = {"classes": [0, 2, 3], "shape": SHAPE, "count": 60}
    chosen = {"prior_steps": 40, "balanced": False}
    images, labels = deep_inversion.starts(teacher, seed=0, settings=settings(**chosen), **options)
    assert images.shape == (60, *SHAPE)
    assert torch.equal(teacher(images).argmax(1), labels)
    assert set(labels.tolist()) <= {0, 2, 3}
    counts = labels.bincount(minlength=4)[[0, 2, 3]]
    assert counts.max() - counts.min() > 1
    again = deep_inversion.starts(teacher, seed=0, settings=settings(**chosen), **options)
    assert torch.equal(images, again[0])


def test_unbalanced_noise_is_to_become_a_class_drawn_at_random(monkeypatch: pytest.MonkeyPatch):
    options = {"classes": [0, 2, 3], "shape": SHAPE, "count": 300}
    chosen = settings(balanced=False)
    _, labels = deep_inversion.starts(tiny(monkeypatch), seed=0, settings=chosen, **options)
    counts = labels.bincount(minlength=4)[[0, 2, 3]]
    assert counts.sum() == 300
    assert scipy.stats.chisquare(counts.numpy()).pvalue > 1e-3
    assert counts.max() > counts.min()


def test_a_teacher_that_never_sees_the_classes_cannot_be_drawn_from():
    teacher = Table()
    teacher.shift.data[[1, 3]] = 100.0
    with pytest.raises(ValueError, match=r"sees 0 of 20000 draws.*\[0, 2\].*more steps"):
        deep_inversion.as_they_come(
            teacher, Mirror(), [0, 2], count=5, generator=torch.Generator().manual_seed(0)
        )


class Mirror(nn.Module):
    """Draw each latent as an image."""

    latent_size = CLASSES

    def forward(self, z: Tensor) -> Tensor:
        return z.view(-1, 1, 2, 2)


@pytest.mark.parametrize("reachable", [True, False])
def test_pick_finds_a_draw_of_its_own_for_each_label(reachable: bool):
    teacher, labels = Table(), torch.arange(60) % CLASSES
    if not reachable:
        teacher.shift.data[3] = -100.0
    randomness = torch.Generator().manual_seed(0)
    images = deep_inversion.pick(teacher, Mirror(), labels, generator=randomness)
    assert images.shape == (60, 1, 2, 2)
    found = teacher(images).argmax(1)
    sought = labels < (CLASSES if reachable else 3)
    assert torch.equal(found[sought], labels[sought])
    assert len(images[sought].unique(dim=0)) == sought.sum()
    assert reachable or not (found == 3).any()


def test_pick_draws_without_teaching_the_generator(monkeypatch: pytest.MonkeyPatch):
    network = generators.Generator(6, 8, SHAPE, output="sigmoid").train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    labels, randomness = torch.tensor([0, 2]), torch.Generator().manual_seed(0)
    images = deep_inversion.pick(tiny(monkeypatch), network, labels, generator=randomness)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert not images.requires_grad


def test_bytes_are_rounded_not_cut(monkeypatch: pytest.MonkeyPatch):
    shades = torch.tensor([0.0, 0.4, 0.6, 254.7]) / 255
    monkeypatch.setattr(
        deep_inversion,
        "optimise",
        lambda _, x, *__, **___: shades.view(-1, 1, 1, 1).expand(-1, *SHAPE)[: len(x)],
    )
    images, _ = synthesise(tiny(monkeypatch))
    assert images[:4, 0, 0, 0].tolist() == [0, 0, 1, 255]


def test_synthesis_draws_retain_classes_in_balance(monkeypatch: pytest.MonkeyPatch):
    chosen = {"steps": 60, "rate": 0.1, "statistics_weight": 0.02, "jitter": 1}
    images, labels = synthesise(taught(monkeypatch), per_class=5, **chosen)
    assert images.dtype == torch.uint8
    assert images.shape == (10, *SHAPE)
    assert_balanced(labels, [0, 2])
    assert labels.bincount().tolist() == [5, 0, 5]
    teacher = taught(monkeypatch)
    assert (teacher(images.float() / 255).argmax(1) == labels).float().mean() > 0.7


def test_no_forget_class_is_asked_of_the_teacher(monkeypatch: pytest.MonkeyPatch):
    asked, loss = [], deep_inversion.inversion_loss

    def note(teacher: Observed, images: Tensor, labels: Tensor, **options) -> Tensor:
        asked.append((len(images), labels.tolist()))
        return loss(teacher, images, labels, **options)

    monkeypatch.setattr(deep_inversion, "inversion_loss", note)
    synthesise(tiny(monkeypatch))
    assert [count for count, _ in asked] == [4, 4, 2, 2]  # two steps on a batch of 4, two on 2
    assert {label for _, labels in asked for label in labels} == {0, 2}


def test_the_seed_decides_the_images(monkeypatch: pytest.MonkeyPatch):
    teacher = tiny(monkeypatch)
    for prior_steps in (0, 2):
        first, again, other = (
            synthesise(teacher, seed=s, prior_steps=prior_steps) for s in (0, 0, 1)
        )
        assert torch.equal(first[0], again[0])
        assert not torch.equal(first[0], other[0])


# ----------------------------------------------------------------------------- the distillation


def test_the_student_learns_what_stays(monkeypatch: pytest.MonkeyPatch):
    teacher, (images, _) = taught(monkeypatch), stripes(96)
    before = checkpoints.unpack(checkpoints.pack(teacher))
    student, losses = distil(
        teacher, images, steps=60, jitter=0, gate_threshold=0.3,
        rate=0.03, batch_size=32,
    )  # fmt: skip
    assert len(losses) == 60
    assert np.mean(losses[-10:]) < losses[0] / 4
    held, truth = stripes(80, seed=1)
    kept, predicted = (truth == 0) | (truth == 2), networks.predict(student, held).argmax(1)
    assert (predicted == truth)[kept].float().mean() > 0.9
    assert (predicted == truth)[~kept].float().mean() < 0.1
    assert states_equal(teacher, before)


def test_the_first_loss_is_the_divergence_of_a_fresh_student(monkeypatch: pytest.MonkeyPatch):
    teacher, (images, _) = tiny(monkeypatch), stripes(8)
    with method.drawn_by(0, "first weights of the student"):
        fresh = architectures.fresh_like(teacher).train()
    pixels = (images * 255).to(torch.uint8) / 255
    p, q = teacher(pixels).softmax(1), fresh(pixels).softmax(1)
    expected = (p * (p / q).log()).sum(1).mean().item()
    _, losses = distil(teacher, images, jitter=0, gate_threshold=1.0)
    assert losses[0] == pytest.approx(expected, rel=1e-3)


def picked(teacher: nn.Module, *, passing: int, seed: int = 0) -> Tensor:
    """Pick 8 pictures of which so many pass the gate."""
    images, _ = stripes(200, seed=seed)
    pixels = (images * 255).to(torch.uint8) / 255
    shares = teacher(pixels).softmax(1)[:, [1, 3]].sum(1)
    passes = shares <= 0.3
    return torch.cat([images[passes][:passing], images[~passes][: 8 - passing]])


def test_gated_images_leave_no_trace_in_the_student(monkeypatch: pytest.MonkeyPatch):
    teacher = taught(monkeypatch)
    one, other = picked(teacher, passing=4), picked(teacher, passing=4)
    other[4:] = picked(teacher, passing=4, seed=1)[4:]
    options = {"jitter": 0, "gate_threshold": 0.3}
    first, second = (distil(teacher, images, **options) for images in (one, other))
    assert not torch.equal(one, other)
    assert states_equal(first[0], second[0])
    assert first[1] == second[1]


def test_labels_that_are_not_fresh_are_those_of_the_image_as_it_was_drawn(
    monkeypatch: pytest.MonkeyPatch,
):
    teacher, (images, _) = taught(monkeypatch), stripes(8)
    pixels, shifted = (images * 255).to(torch.uint8) / 255, []
    plain = deep_inversion.shift

    def shift_and_note(batch: Tensor, **options) -> Tensor:
        shifted.append((batch, plain(batch, **options)))
        return shifted[-1][1]

    monkeypatch.setattr(deep_inversion, "shift", shift_and_note)
    for fresh in (True, False):
        with method.drawn_by(0, "first weights of the student"):
            student = architectures.fresh_like(teacher).train()
        _, losses = distil(teacher, images, gate_threshold=1.0, fresh_labels=fresh)
        before, after = shifted[-len(losses)]
        assert not torch.equal(before, after)
        answers = teacher(after if fresh else before).log_softmax(1)
        expected = (answers.exp() * (answers - student(after).log_softmax(1))).sum(1).mean()
        assert losses[0] == pytest.approx(expected.item(), rel=1e-3)
        assert torch.equal(before.sort(0).values, pixels.sort(0).values)


def test_the_gate_goes_by_the_labels_that_are_used(monkeypatch: pytest.MonkeyPatch):
    teacher = taught(monkeypatch)
    images = picked(teacher, passing=2)
    for seed in range(3):
        _, losses = distil(
            teacher, images, seed=seed, gate_threshold=0.3, fresh_labels=False, jitter=3
        )
        assert len(losses) == 6  # the two that pass as they were drawn always do


@pytest.mark.parametrize("passing", [0, 1])
def test_nothing_to_distil_from_is_an_error(monkeypatch: pytest.MonkeyPatch, passing: int):
    teacher = taught(monkeypatch)
    images = picked(teacher, passing=passing)
    with pytest.raises(
        ValueError, match=r"at most 0\.3 to the forget classes \[1, 3\].*raise gate"
    ):
        distil(teacher, images, jitter=0, gate_threshold=0.3)


def test_a_teacher_that_sees_forget_classes_everywhere_is_an_error(monkeypatch: pytest.MonkeyPatch):
    teacher = tiny(monkeypatch)
    with torch.no_grad():
        teacher.classifier.bias[1] = 100.0
    with pytest.raises(ValueError, match="nothing to distil from"):
        distil(teacher, stripes(16)[0])


def test_batches_that_leave_too_few_images_are_skipped(monkeypatch: pytest.MonkeyPatch):
    teacher = taught(monkeypatch)
    images = picked(teacher, passing=2)
    _, losses = distil(teacher, images, jitter=0, gate_threshold=0.3)
    assert len(losses) == 6
    options = {"batch_size": 4, "steps": 20}
    _, losses = distil(teacher, images, jitter=0, gate_threshold=0.3, **options)
    assert 0 < len(losses) < 20  # the two do not always meet in a batch of 4
    assert all(math.isfinite(loss) for loss in losses)


def test_the_seed_decides_the_student(monkeypatch: pytest.MonkeyPatch):
    teacher, (images, _) = tiny(monkeypatch), stripes(24)
    first, again, other = (distil(teacher, images, seed=s, gate_threshold=1.0) for s in (0, 0, 1))
    assert states_equal(first[0], again[0])
    assert first[1] == again[1] != other[1]


def test_a_model_without_batch_norm_is_inverted_without_statistics():
    torch.manual_seed(0)
    teacher = architectures.build("lenet5", width=0.5)
    images, labels = synthesise(teacher, statistics_weight=0.0, per_class=1)
    assert images.shape == (8, 1, 28, 28)
    assert_balanced(labels, [0, 2, 4, 5, 6, 7, 8, 9])
    student, losses = distil(teacher, images / 255, gate_threshold=1.0)
    assert len(losses) == 6
    assert networks.predict(student, images / 255).isfinite().all()
    for needy in ({}, {"statistics_weight": 0.0, "prior_steps": 1}):
        with pytest.raises(ValueError, match="LeNet5 has no BatchNorm"):
            synthesise(teacher, **needy)


# --------------------------------------------------------------------------- runs of a sweep


def asked(original: Path, **changed) -> dict:
    """Give the arguments of a run, but for method and settings."""
    return {"original": original, "request": Classes([3, 1]), "seed": 0} | changed


def distillation(**changed) -> deep_inversion.Distillation:
    return deep_inversion.Distillation(**(DISTILLED | {"gate_threshold": 1.0} | changed))


@pytest.fixture
def original(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    return record(tmp_path / "original.pt", taught(monkeypatch))


def test_the_prior_is_timed_apart(monkeypatch: pytest.MonkeyPatch):
    with clock.collected() as timings:
        synthesise(tiny(monkeypatch), prior_steps=2)
    assert timings["prior"] > 0
    with clock.collected() as timings:
        synthesise(tiny(monkeypatch))
    assert "prior" not in timings


def test_images_are_distorted_before_the_teacher_labels_them(monkeypatch: pytest.MonkeyPatch):
    teacher, (images, _) = taught(monkeypatch), stripes(8)
    asked_for, plain = [], deep_inversion.distort

    def distort_and_note(batch: Tensor, **options) -> Tensor:
        asked_for.append((plain(batch, **options), options))
        return asked_for[-1][0]

    monkeypatch.setattr(deep_inversion, "distort", distort_and_note)
    with method.drawn_by(0, "first weights of the student"):
        student = architectures.fresh_like(teacher).train()
    chosen = {"rotation": 20.0, "scaling": 0.3, "shear": 0.4}
    _, losses = distil(teacher, images, gate_threshold=1.0, **chosen)
    distorted, options = asked_for[0]
    assert {name: options[name] for name in chosen} == chosen
    answers = teacher(distorted).log_softmax(1)
    expected = (answers.exp() * (answers - student(distorted).log_softmax(1))).sum(1).mean()
    assert losses[0] == pytest.approx(expected.item(), rel=1e-3)


@pytest.mark.parametrize(
    ("classes", "message"),
    [([12], "holds 12, not one of the classes"), ([0, 1, 2, 3], "every class")],
)
def test_runs_check_what_they_are_asked(original: Path, classes: list[int], message: str):
    chosen = deep_inversion.Settings(settings(), distillation())
    options = asked(original, request=Classes(classes), settings=chosen)
    with pytest.raises(RequestError, match=message):
        methods.run(**options, method=deep_inversion.METHOD)


def test_each_number_of_images_and_each_factor_is_a_variant():
    factors = {
        "ungated": {"distillation": {"gate_threshold": 1.0}},
        "more": {"synthesis": {"steps": 9}},
    }
    assert deep_inversion.variants([10, 100], factors, at=10) == {
        "deep_inversion_10": {"synthesis": {"per_class": 10}},
        "deep_inversion_100": {"synthesis": {"per_class": 100}},
        "deep_inversion_10_ungated": {
            "synthesis": {"per_class": 10}, "distillation": {"gate_threshold": 1.0}
        },
        "deep_inversion_10_more": {"synthesis": {"per_class": 10, "steps": 9}},
    }  # fmt: skip


def test_the_method_distils_what_it_draws(monkeypatch: pytest.MonkeyPatch, original: Path):
    chosen = deep_inversion.Settings(settings(), distillation())
    result = methods.run(**asked(original), method=deep_inversion.METHOD, settings=chosen)
    teacher = taught(monkeypatch)
    images, labels = synthesise(teacher)
    by_class = torch.cat([images[labels == k] for k in (0, 2)])
    assert torch.equal(result["images"], by_class)
    says = teacher(by_class / 255).softmax(1).max(1)
    assert torch.equal(result["image_labels"], says.indices)
    torch.testing.assert_close(result["confidence"], says.values)
    student, losses = deep_inversion.distil(
        teacher, images, Classes([1, 3]), settings=distillation(), seed=0
    )
    assert states_equal(checkpoints.unpack(result["model"]), student)
    assert result["losses"] == losses
    assert not student.training


def test_the_prior_of_a_synthesis_is_that_of_the_generators(monkeypatch: pytest.MonkeyPatch):
    asked_for = []
    monkeypatch.setattr(
        deep_inversion,
        "train_prior",
        lambda teacher, network, **options: asked_for.append((network, options)),
    )
    synthesise(tiny(monkeypatch), prior_steps=7, prior_rate=0.25)
    ((network, options),) = asked_for
    assert isinstance(network, generators.Generator)
    assert (options["steps"], options["rate"], options["batch_size"]) == (7, 0.25, 8)


@pytest.mark.parametrize(
    ("settings_type", "wrong"),
    [
        (deep_inversion.Distillation, {"steps": 0}),
        (deep_inversion.Distillation, {"batch_size": 1}),
        (deep_inversion.Distillation, {"gate_threshold": 2.0}),
        (deep_inversion.Distillation, {"rotation": 181.0}),
        (deep_inversion.Distillation, {"scaling": 1.0}),
        (deep_inversion.Synthesis, {"per_class": 0}),
        (deep_inversion.Synthesis, {"steps": 0}),
        (deep_inversion.Synthesis, {"prior_batch": 1}),
        (deep_inversion.Settings, {"synthesis": {"steps": 0}}),
    ],
)
def test_settings_that_cannot_be_are_refused(settings_type: type, wrong: dict):
    assert schema.build(settings_type, {}) == settings_type()
    with pytest.raises(ParameterError, match=next(iter(wrong))):
        schema.build(settings_type, wrong)


def test_the_needs_follow_from_how_the_images_are_drawn():
    drawn = deep_inversion.Settings(deep_inversion.Synthesis(prior_steps=1))
    assert drawn.needs == (method.statistics, method.drawing)
    plain = deep_inversion.Settings(deep_inversion.Synthesis(statistics_weight=0.0))
    assert plain.needs == ()
