"""What the library is timed against computes the same, and a ratio is one of medians."""

import subprocess
import sys

import pytest
import torch
from conftest import ROOT

from benchmarks import __main__ as benchmarks
from benchmarks import plain
from unlearnlib.models import architectures
from unlearnlib.zero_shot.generators import Generator


def test_ours_and_the_plain_solves_agree():
    ours, other = benchmarks.influence(4)()
    mine, theirs = ours(), other()
    assert mine.shape == theirs.shape
    assert (mine - theirs).norm() < 5e-3 * theirs.norm()


def test_the_plain_transfer_teaches_only_the_student_and_the_generator():
    teacher, student = (architectures.build("allcnn", width=0.0625) for _ in range(2))
    benchmarks.unlikely(teacher, 0)
    generator = Generator(128, 8, (1, 28, 28), output="published")
    before = [[p.clone() for p in one.parameters()] for one in (teacher, student, generator)]
    plain.Transfer(teacher, student, generator, forget=0, batch_size=8).pseudo_batch()
    after = [list(one.parameters()) for one in (teacher, student, generator)]
    moved = [
        any(not torch.equal(a, b) for a, b in zip(*pair, strict=True))
        for pair in zip(before, after, strict=True)
    ]
    assert moved == [False, True, True]


def test_plain_inversion_and_training_lower_their_losses():
    network = architectures.build("allcnn", width=0.0625)
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(10, (200,), generator=generator)
    images = torch.rand(200, 1, 28, 28, generator=generator) + labels.view(-1, 1, 1, 1) / 5
    plain.train(network, images, labels, epochs=15, batch_size=20, rate=0.01, l2=0.0)
    assert (network.eval()(images).argmax(1) == labels).double().mean() > 0.3
    wanted = torch.tensor([1, 2, 3])
    said = []
    for steps in (1, 40):
        torch.manual_seed(0)
        drawn = plain.invert(network, wanted, shape=(1, 28, 28), steps=steps)
        said.append(torch.nn.functional.cross_entropy(network(drawn), wanted).item())
    assert said[1] < said[0]


def test_a_ratio_is_that_of_medians_after_a_first_turn_that_does_not_count(
    monkeypatch: pytest.MonkeyPatch,
):
    durations = {"ours": iter([100, 1, 2, 9]), "other": iter([100, 8, 3, 4])}
    order, now = [], [0.0]

    def job(name: str):
        def run() -> None:
            order.append(name)
            now[0] += next(durations[name])

        return run

    monkeypatch.setattr(benchmarks.time, "perf_counter", lambda: now[0])
    some = benchmarks.Benchmark(
        "a", "A", against="another", mark=2, weight=10,
        prepare=lambda: (job("ours"), job("other")),
    )  # fmt: skip
    found = benchmarks.measure(some, repeats=3)
    assert order == ["ours", "other"] * 4
    assert (found["ours"], found["baseline"], found["ratio"], found["n"]) == (2, 40, 20, 3)


def test_a_name_that_is_none_is_answered_with_those_that_are():
    said = subprocess.run(
        [sys.executable, "-m", "benchmarks", "gkt"], cwd=ROOT, capture_output=True, text=True
    )
    assert said.returncode == 2
    assert "no benchmark 'gkt'; there are gkt_pseudo_batch, deep_inversion" in said.stderr
