"""When a transfer stops: signs by hand, the last snapshot before a limit, and no image of the data."""

import inspect
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from tolerances import RTOL
from toys import SHAPE, record, states_equal, taught, tiny

from unlearnlib.data.requests import Classes
from unlearnlib.models import checkpoints, networks
from unlearnlib.pipeline import clock, records
from unlearnlib.zero_shot import deep_inversion, gkt, stopping

NAN = math.nan
FEW = deep_inversion.Synthesis(per_class=3, steps=1)
SMALL = gkt.Transfer(
    pseudo_batches=4, batch_size=8, latent_size=6, generator_channels=8, student_steps=1,
    snapshots=2, gate_threshold=1.0,
)  # fmt: skip


@pytest.mark.parametrize(
    ("sign", "expected"),
    [
        ([0.0, 0.0, 0.0, 0.0], 3),  # never rises
        ([0.5, 0.5, 0.5, 0.5], 3),  # never low: the rule is not armed
        ([0.5, 0.0, 0.0, 0.9], 2),
        ([0.0, 0.9, 0.0, 0.0], 0),  # the first rise decides
        ([0.9, 0.0, 0.9, 0.9], 1),
        ([0.0, NAN, 0.9, 0.9], 1),  # a gap says nothing
        ([NAN, NAN, NAN, NAN], 3),
        ([0.05, 0.05, 0.06, 0.0], 1),  # the limit itself is not above the limit
        ([0.0, 0.9], 0),
    ],
)
def test_the_stop_is_the_last_snapshot_before_the_sign_rises(sign: list[float], expected: int):
    assert stopping.last_below(sign, 0.05) == expected


def test_a_sign_is_smoothed_and_gaps_leave_it():
    found = stopping.smoothed([NAN, 1.0, NAN, 0.0, 0.0], memory=0.5)
    np.testing.assert_allclose(found, [NAN, 1.0, 1.0, 0.5, 0.25])


def test_a_stop_has_the_limit_of_its_rule_or_its_own():
    for name, rule in stopping.RULES.items():
        assert stopping.Stop(rule=name).bound == rule.limit
    assert stopping.Stop(limit=0.3).bound == 0.3


def test_the_probe_holds_images_of_the_forgotten_classes(monkeypatch: pytest.MonkeyPatch):
    teacher = networks.frozen(taught(monkeypatch))
    images = stopping.probe_images(teacher, Classes([1, 3]), shape=SHAPE, settings=FEW, seed=0)
    assert images.shape == (6, *SHAPE)
    assert images.min() >= 0 and images.max() <= 1
    better = deep_inversion.Synthesis(per_class=20, steps=60)
    images = stopping.probe_images(teacher, Classes([1]), shape=SHAPE, settings=better, seed=0)
    assert (teacher(images).argmax(1) == 1).double().mean() > 0.9


def transferred(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Path:
    original = record(folder / "original.pt", taught(monkeypatch))
    found = gkt.run_transfer(original=original, request=Classes([1]), settings=SMALL, seed=0)
    model = checkpoints.unpack(found.pop("model"))
    return record(folder / "transfer.pt", model, seconds=60.0, **found)


def test_signs_are_read_off_snapshots_and_history(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    found = records.result(transferred(monkeypatch, tmp_path))
    probe = torch.rand(5, *SHAPE)
    signs = stopping.read(found, Classes([1]), probe=probe)
    assert set(signs) == set(stopping.RULES)
    for kept, value in zip(found["snapshots"], signs["probe"], strict=True):
        student = checkpoints.unpack(kept["model"]).eval()
        assert value == pytest.approx(student(probe).softmax(1)[:, 1].mean().item(), rel=RTOL)
    expected = stopping.smoothed(found["history"]["slope"])
    assert signs["slope"] == [expected[1], expected[3]]  # after pseudo-batches 2 and 4
    first, second = signs["odds"]
    assert signs["rise"] == [0.0, max(second - first, 0.0)]
    np.testing.assert_array_equal(signs["either"], stopping.either(signs["leak"], signs["odds"]))


@pytest.mark.parametrize(
    ("leak", "odds", "expected"),
    [
        ([0.02, 0.01], [-2.3, -2.3], [0.0, 0.0]),  # the limits themselves are not above
        ([0.0, 0.02 * math.e], [-9.0, -9.0], [-6.7, 1.0]),  # in nats above the limit
        ([0.02, 0.01], [-9.0, -1.3], [0.0, 1.0]),
        ([0.9, 0.9], [-9.0, -8.0], [-6.7, -5.7]),  # a leak that was never low is not heard
        ([NAN, NAN], [-2.2, -2.2], [NAN, NAN]),  # an untrained student says nothing
        ([NAN, 0.9, 0.02, 0.02 * math.e], [-9.0] * 4, [-6.7, -6.7, 0.0, 1.0]),
    ],
)
def test_either_sign_is_heard_once_it_has_been_low(
    leak: list[float], odds: list[float], expected: list[float]
):
    np.testing.assert_allclose(stopping.either(leak, odds), expected, atol=1e-12)


def test_a_stopped_run_delivers_the_snapshot_and_counts_what_it_took(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    transfer = transferred(monkeypatch, tmp_path)
    probe = record(
        tmp_path / "probe.pt", tiny(monkeypatch), seconds=4.0, images=torch.rand(2, *SHAPE)
    )
    signs = {name: [0.0, 1.0] for name in stopping.RULES}
    monkeypatch.setattr(stopping, "read", lambda *_, **__: signs)
    counted = []
    monkeypatch.setattr(clock, "add", lambda name, seconds: counted.append((name, seconds)))
    found = stopping.run(
        transfer=transfer, probe=probe, request=Classes([1]), rule="probe", limit=0.5
    )
    kept = records.result(transfer)["snapshots"][0]
    assert found["stop"] == kept["pseudo_batch"] == 2
    assert states_equal(checkpoints.unpack(found["model"]), checkpoints.unpack(kept["model"]))
    assert torch.equal(found["images"], kept["images"])
    assert torch.equal(found["image_labels"], kept["predicted"])
    # the rule speaks at the second snapshot, the last of four pseudo-batches
    assert counted == [(stopping.EARLIER, 64.0)]


CURVE = pd.DataFrame(
    {
        "pseudo_batch": [10, 20, 30, 40],
        "retain_accuracy": [50.0, 80.0, 90.0, 95.0],
        "forget_accuracy": [0.0, 0.5, 1.0, 60.0],
    }
)


@pytest.mark.parametrize(
    ("sign", "stop", "late", "regret"),
    [([0, 0, 1, 1], 20, False, 10.0), ([0, 0, 0, 1], 30, False, 0.0), ([0] * 4, 40, True, -5.0)],
)
def test_a_stop_is_judged_by_the_best_that_still_forgets(
    sign: list[float], stop: int, late: bool, regret: float
):
    found = stopping.judged(CURVE, sign, 0.5)
    assert (found["stop"], found["too late"], found["regret"]) == (stop, late, regret)


def test_no_rule_can_be_given_an_image_of_the_data():
    for function in (stopping.run, stopping.run_probe, gkt.run_transfer):
        names = set(inspect.signature(function).parameters)
        assert not names & {"data", "dataset", "images", "labels", "test"}


def test_limits_are_compared_by_what_they_cost():
    # forget accuracy rises above 1 % at the last of four snapshots
    curve = pd.DataFrame(
        {
            "pseudo_batch": [10, 20, 30, 40],
            "retain_accuracy": [20.0, 60.0, 90.0, 95.0],
            "forget_accuracy": [0.0, 0.0, 0.5, 40.0],
        }
    )
    found = stopping.compared([curve, curve], [[0, 1, 2, 3], [0, 0, 1, 2]], [0.5, 1.5, 2.5])
    assert found.index.tolist() == [0.5, 1.5, 2.5]
    assert found["too_late"].tolist() == [0, 0, 1]
    assert found["regret"].tolist() == [(70 + 30) / 2, (30 + 0) / 2, 0.0]
    late = stopping.compared([curve], [[0, 0, 0, 0]], [1.0])
    assert late["too_late"].tolist() == [1]
    none = stopping.compared([curve], [[0, 0, 0, 0]], [])  # where a sign never changes
    assert none["too_late"].tolist() == none["regret"].tolist() == []
    assert late["regret"].isna().all()


def test_the_onset_is_the_sign_where_a_run_is_first_too_late():
    signs = [0.1, 0.2, 0.3, 0.4]
    curve = pd.DataFrame({"forget_accuracy": [0.0, 1.0, 1.5, 0.0]})  # 1 % is still forgotten
    assert stopping.onset(curve, signs) == 0.3
    assert math.isnan(stopping.onset(curve.assign(forget_accuracy=0.0), signs))


def test_a_prediction_limit_holds_for_one_run_more_as_often_as_it_says():
    values = np.random.default_rng(0).normal(3.0, 2.0, size=(4000, 5))
    held = [last >= stopping.prediction_limit(list(runs)) for *runs, last in values]
    assert np.mean(held) == pytest.approx(0.95, abs=0.01)
    # mean 1, standard deviation 1; Student's t of one degree of freedom at 95 % is 6.3138
    expected = 1 - 6.3138 * math.sqrt(0.5) * math.sqrt(1.5)
    assert stopping.prediction_limit([0.5, NAN, 1.5]) == pytest.approx(expected, rel=1e-4)
    assert math.isnan(stopping.prediction_limit([0.5, NAN]))
