"""Time the library against straightforward loops, side by side on this machine.

python -m benchmarks                     # all, five repeats each, and benchmarks/results.json
python -m benchmarks retrain_sweep --repeats 3

Ours and the other take turns, so that whatever else the machine does meets both; a ratio is the
quotient of their medians. Each uses one thread, as a run of the study does.
"""

import argparse
import gc
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks import plain
from unlearnlib.data.requests import Classes
from unlearnlib.influence import curvature
from unlearnlib.influence.curvature import Objective
from unlearnlib.influence.thin import Thin
from unlearnlib.models import architectures, networks, training
from unlearnlib.pipeline import provenance
from unlearnlib.pipeline.paths import root, write_atomic
from unlearnlib.pipeline.registry import Named, Registry
from unlearnlib.pipeline.sweep import sweep
from unlearnlib.zero_shot import deep_inversion, gkt, read_out

Job = Callable[[], Any]
SHAPE = (1, 28, 28)


@dataclass(frozen=True, kw_only=True)
class Benchmark(Named):
    """What is timed against what.

    Attributes:
        against: the other, in words.
        mark: the ratio that is asked for.
        prepare: gives both jobs; what it does itself is not timed.
        weight: how much more the other's job would take, had it been done in full.
    """

    against: str
    mark: float
    prepare: Callable[[], tuple[Job, Job]]
    weight: float = 1.0


def pseudo_batch() -> tuple[Job, Job]:
    """A pseudo-batch at width .25 with the full generator, in the published mode."""

    def fresh() -> gkt.Transferring:
        teacher = architectures.build("allcnn", width=0.25)
        unlikely(teacher, 0)
        return gkt.set_up(teacher, Classes([0]), shape=SHAPE, settings=gkt.Transfer(), seed=0)

    ours, copied = fresh(), fresh()
    other = plain.Transfer(
        copied.teacher, copied.student, copied.generator, forget=0, batch_size=256
    )
    return ours.pseudo_batch, other.pseudo_batch


def unlikely(network: nn.Module, k: int) -> None:
    """Let a network that knows nothing never see a class, so that all images pass the gate."""
    with torch.no_grad():
        read_out.read_out(network, SHAPE).bias[k] -= 20


L2, DAMPING = 0.001, 0.01  # of the group study
INVERTED = 100  # images a class, of nine classes
SOME, WHOLE = 20, 200  # steps from noise that are timed, and that are taken


def inversion() -> tuple[Job, Job]:
    """The same number of images: by a trained start and few steps, or from noise."""
    settings = deep_inversion.Synthesis(
        per_class=INVERTED, steps=8, batch_size=250, prior_steps=200, prior_batch=128,
        generator_channels=64,
    )  # fmt: skip
    teacher = networks.frozen(architectures.build("allcnn", width=0.125))
    classes = list(range(1, 10))
    labels = torch.tensor(classes).repeat(INVERTED)

    def ours() -> None:
        deep_inversion.synthesise(teacher, classes, shape=SHAPE, settings=settings, seed=0)

    def other() -> None:
        for some in labels.split(250):
            plain.invert(teacher, some, shape=SHAPE, steps=SOME)

    return ours, other


def retraining() -> tuple[Job, Job]:
    """An epoch of the compact network on 10,000 images, in batches of 125."""
    images, labels = _images(10_000)
    recipe = training.Recipe(epochs=1, batch_size=125, learning_rate=0.01, l2=0.001)

    def ours() -> None:
        network = architectures.build("compact", width=1.0)
        training.fit(network, images, labels, recipe=recipe, seed=0)

    def other() -> None:
        network = architectures.build("compact", width=1.0)
        plain.train(network, images, labels, epochs=1, batch_size=125, rate=0.01, l2=0.001)

    return ours, other


def influence(groups: int) -> Callable[[], tuple[Job, Job]]:
    """Gauss-Newton solves for so many groups, to a residual of a thousandth."""

    def prepare() -> tuple[Job, Job]:
        images, labels = _images(300)
        network = architectures.build("compact", width=0.5).eval()
        objective = Objective(network, images, labels, l2=L2)
        sides = torch.randn(
            len(curvature.flatten(network)), groups, generator=torch.Generator().manual_seed(0)
        )

        def ours() -> torch.Tensor:
            rows = curvature.rooted_jacobian(objective)
            return Thin(rows, L2 + DAMPING, tolerance=1e-3).solve(sides).x

        product = curvature.gauss_newton_operator(objective)
        few = sides[:, :4]

        def other() -> torch.Tensor:
            return plain.conjugate_gradients(
                lambda v: product(v) + DAMPING * v, few, tolerance=1e-3, most=500
            )

        return ours, other

    return prepare


def draw(*, seed: int) -> dict[str, torch.Tensor]:
    """Multiply for a second or so: a run of a sweep."""
    noise = torch.randn(1500, 1500, generator=torch.Generator().manual_seed(seed))
    for _ in range(15):
        noise = (noise @ noise) / noise.norm()
    return {"sum": noise.sum()}


def workers() -> tuple[Job, Job]:
    """A sweep of 16 runs by two workers, or by one."""

    def swept(count: int) -> None:
        from benchmarks.__main__ import draw as imported  # a worker cannot import `__main__`

        with tempfile.TemporaryDirectory() as folder:
            tasks = {f"seed{seed}": dict(seed=seed) for seed in range(16)}
            sweep(imported, tasks, store=Path(folder) / "runs", workers=count)

    swept(2)  # workers that are there already, as in all sweeps of a notebook but the first
    return lambda: swept(2), lambda: swept(1)


BENCHMARKS: Registry[Benchmark] = Registry(
    "benchmark",
    Benchmark(
        "gkt_pseudo_batch", "A pseudo-batch of gated transfer", mark=6,
        against="a loop as in the authors' notebook", prepare=pseudo_batch,
    ),
    Benchmark(
        "deep_inversion", f"{9 * INVERTED} images by DeepInversion", mark=3,
        against=f"a loop as in the authors' code, from noise in {WHOLE} steps ({SOME} of them timed)",
        prepare=inversion, weight=WHOLE / SOME,
    ),
    Benchmark(
        "group_influence", "Gauss-Newton solves for 1,000 groups", mark=10,
        against="conjugate gradients, group by group (4 of them timed)", prepare=influence(1000),
        weight=250,
    ),
    Benchmark(
        "group_influence_16", "Gauss-Newton solves for 16 groups", mark=1,
        against="conjugate gradients, group by group (4 of them timed)", prepare=influence(16),
        weight=4,
    ),
    Benchmark(
        "retrain_sweep", "An epoch of retraining", mark=2,
        against="a loop over a DataLoader", prepare=retraining,
    ),
    Benchmark(
        "two_workers", "A sweep of 16 runs by two workers", mark=1.8,
        against="by one worker", prepare=workers,
    ),
)  # fmt: skip


def measure(benchmark: Benchmark, *, repeats: int) -> dict[str, Any]:
    """Time both jobs of a benchmark in turns, once more than is counted, to warm up.

    Returns:
        ``ratio``, medians ``ours`` and ``baseline`` in seconds, ``n``, the ``mark`` and words.
    """
    jobs, taken = benchmark.prepare(), ([], [])
    for number in range(repeats + 1):
        for job, times in zip(jobs, taken, strict=True):
            gc.collect()
            started = time.perf_counter()
            job()
            if number:
                times.append(time.perf_counter() - started)
    ours, baseline = (statistics.median(times) for times in taken)
    baseline *= benchmark.weight
    return {
        "what": benchmark.title,
        "against": benchmark.against,
        "ratio": round(baseline / ours, 2),
        "mark": benchmark.mark,
        "ours": round(ours, 3),
        "baseline": round(baseline, 3),
        "n": repeats,
    }


def _images(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return (
        torch.rand(count, *SHAPE, generator=generator),
        torch.randint(10, (count,), generator=generator),
    )


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__.split("\n")[0]
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHMARKS)}")
    parser.add_argument("--repeats", type=int, default=5, help="that are counted, at least 1")
    options = parser.parse_args(arguments)
    if unknown := [name for name in options.names if name not in BENCHMARKS]:
        parser.error(f"no benchmark {unknown[0]!r}; there are {', '.join(BENCHMARKS)}")
    if options.repeats < 1:
        parser.error(f"--repeats {options.repeats}: give at least 1")
    torch.set_num_threads(1)
    found = {}
    for name in options.names or BENCHMARKS:
        found[name] = row = measure(BENCHMARKS[name], repeats=options.repeats)
        print(
            f"{name:20s} ratio {row['ratio']:6.2f} (mark {row['mark']:g})  ours {row['ours']:.3f} s  "
            f"{row['against']}: {row['baseline']:.3f} s  n = {row['n']}",
            flush=True,
        )
    if not options.names:
        about = provenance.describe(profile="", data_source="none", seeds=[0])
        kept = {key: about[key] for key in ("versions", "hardware", "code_revision", "time")}
        write(found, kept)
    return 0


def write(found: dict[str, Any], about: dict[str, Any]) -> None:
    """Write ``benchmarks/results.json``."""
    content = json.dumps({"results": found, "about": about}, indent=2) + "\n"
    write_atomic(root() / "benchmarks" / "results.json", content.encode())


if __name__ == "__main__":
    sys.exit(main())
