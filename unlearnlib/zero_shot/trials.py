"""How settings were chosen: every trial, on validation images, for originals that no page reports.

    python -m unlearnlib.zero_shot.trials [ROW ...]

This is no stage. It trains originals of further seeds by the recipe of the `standard` profile,
unlearns by each setting of `TRIALS` (those of some rows of the main table, or all), measures on
validation images, and writes ``params/trials.csv``, where rows that are not asked for stay; a trial
that was run before is taken from ``build/trials``. Those of masked distillation were run
before the table was kept, and those of GKT with prior and of DeepInversion are under way: neither is
in it. The settings in ``params/base.yaml`` are chosen from that table by hand; no stage reads data to
choose them.
"""

import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from torch import nn

from unlearnlib.data import datasets
from unlearnlib.data.requests import Classes
from unlearnlib.measures import accuracy
from unlearnlib.models import checkpoints, networks, training
from unlearnlib.pipeline import parameters, schema
from unlearnlib.pipeline.parameters import merged
from unlearnlib.pipeline.paths import place, root, write_atomic
from unlearnlib.pipeline.sweep import sweep
from unlearnlib.zero_shot import losses
from unlearnlib.zero_shot.method import Settings, ZeroShot, unlearn
from unlearnlib.zero_shot.methods import METHODS

PROFILE = "standard"
SEEDS = (100, 101, 102, 103, 104)  # of originals that no page reports

Changes = dict[str, Any]


class Trial(NamedTuple):
    """What is tried.

    Attributes:
        row: of the main table, see `variants.ROWS`.
        changes: in the settings that the row began with, see `FIRST`.
        seeds: of the originals; one at first, more where it is promising.
    """

    row: str
    changes: Changes
    seeds: tuple[int, ...] = SEEDS


def _inversion(*, per_class: int) -> Changes:
    """Return what DeepInversion began with, but for the number of images."""
    return {
        "synthesis": {
            "per_class": per_class, "steps": 8, "batch_size": 250, "prior_steps": 200,
            "prior_batch": 128, "generator_channels": 64,
        },
        "distillation": {
            "steps": 2500, "batch_size": 128, "rotation": 15.0, "scaling": 0.15, "shear": 0.2,
        },
    }  # fmt: skip


FIRST: dict[str, tuple[str, Changes]] = {  # the method of each row, and what it began with
    "masked_distillation": (
        "masked_distillation",
        {
            "synthesis": {
                "per_class": 100, "steps": 8, "batch_size": 250, "prior_steps": 75,
                "generator_channels": 32,
            },
            "tuning": {"steps": 400, "batch_size": 128, "rate": 0.01, "forget_weight": 0.0},
        },
    ),
    "mm_noise_repaired": (
        "mm_noise",
        {
            "per_class": 32, "noise_steps": 100, "batch_size": 128, "freeze_statistics": True,
            "rate": 0.003, "steps": 100, "repair_rate": 0.001, "repair_steps": 20,
            "one_cycle": True, "penalty": 0.001, "statistics_weight": 1.0, "jitter": 2,
            "masked_answers": True,
        },
    ),
    "gkt_prior": (
        "gkt",
        {
            "transfer": {
                "pseudo_batches": 150, "batch_size": 128, "generator_channels": 64,
                "snapshots": 15, "generator_halving": None, "student_mode": "training",
                "generator_output": "sigmoid", "prior_steps": 200, "statistics_weight": 1.0,
                "balance_weight": 2.0, "divergence_per_class": False, "student_rate": 0.003,
                "schedule": "cosine", "average_decay": 0.98,
            },
            "stop": {"probe": {"per_class": 100, "steps": 8, "prior_steps": 200}},
        },
    ),
    "deep_inversion_100": ("deep_inversion", _inversion(per_class=100)),
    "deep_inversion_6000": ("deep_inversion", _inversion(per_class=6000)),
}  # fmt: skip
THREE = (100, 101, 102)
TRIALS = [
    Trial("masked_distillation", {}, THREE),  # as in the arena
    Trial("masked_distillation", {"synthesis": {"per_class": 300}}, (100,)),
    Trial("masked_distillation", {"tuning": {"steps": 800}}, (100,)),
    Trial("masked_distillation", {"tuning": {"rate": 0.02}}, (100,)),
    Trial("masked_distillation", {"synthesis": {"prior_steps": 200}}, (100,)),
    Trial("masked_distillation", {"synthesis": {"prior_steps": 200, "steps": 30}}, (100,)),
    Trial("masked_distillation", {"tuning": {"forget_weight": 1.0}}, (100, 102)),
    Trial("masked_distillation", {"tuning": {"freeze_statistics": True}}, (102,)),
    Trial("masked_distillation", {"tuning": {"freeze_statistics": True, "rate": 0.003}}, (102,)),
    Trial("masked_distillation", {"tuning": {"forget_weight": 1.0, "rate": 0.02}}, (102,)),
    Trial("masked_distillation", {"tuning": {"forget_weight": 1.0, "steps": 800}}, THREE),
    Trial(
        "masked_distillation", {"tuning": {"forget_weight": 1.0, "rate": 0.02, "steps": 800}}, THREE
    ),
    Trial("mm_noise_repaired", {}, (100,)),
    Trial("mm_noise_repaired", {"anti_samples": False}, (100,)),
    Trial("mm_noise_repaired", {"rounds": 3}, (100,)),
    Trial("mm_noise_repaired", {"steps": 200, "rate": 0.005}, (100,)),
    Trial("mm_noise_repaired", {"per_class": 100, "steps": 200, "rate": 0.005}, (100,)),
    Trial("mm_noise_repaired", {"rounds": 5, "forget_limit": 0.002}, (100,)),
    Trial("mm_noise_repaired", {"per_class": 64, "rounds": 5, "forget_limit": 0.002}),
    Trial("gkt_prior", {}, (100, 101)),
    Trial("gkt_prior", {"transfer": {"pseudo_batches": 300}}, (100,)),
    Trial("gkt_prior", {"transfer": {"prior_steps": 500}}, (100,)),
    Trial("gkt_prior", {"transfer": {"batch_size": 256}}, (100,)),
    Trial("deep_inversion_100", {}, (100, 101)),
    Trial("deep_inversion_100", {"distillation": {"steps": 5000}}, (100,)),
    Trial("deep_inversion_100", {"synthesis": {"steps": 24}}, (100,)),
    Trial("deep_inversion_6000", {}, (100,)),
]
HEADER = (
    "# Every setting that was tried, on validation images (percent) of MNIST, class 0 forgotten; of "
    "originals with seeds that no page reports. `changes`: to the settings a method began with. Made "
    "by: python -m unlearnlib.zero_shot.trials\n"
)


def count(row: str) -> int:
    """Count the settings that were tried for a row of the main table."""
    return sum(trial.row == row for trial in TRIALS)


def run(
    *, original: Path, data: Path, method: ZeroShot, request: Classes,
    settings: Settings, seed: int,
) -> dict[str, Any]:  # fmt: skip
    """Unlearn, and measure on validation images.

    Args:
        original: file of the model.
        data: file of the data set.
        method: an entry of `methods.METHODS`.
        request: classes to forget.
        settings: of the method.
        seed: of everything random.

    Returns:
        what `measured` does.
    """
    model, shape = checkpoints.load_teacher(original, request)
    outcome = unlearn(model, method, request, shape=shape, settings=settings, seed=seed)
    return measured(outcome.network, data, request)


def measured(network: nn.Module, data: Path, request: Classes) -> dict[str, float]:
    """Measure a network on validation images.

    Returns:
        ``retain_accuracy`` and ``forget_accuracy`` in percent, and ``forget_probability``, the mean
        probability in percent of the forgotten classes on their own images.
    """
    images, labels = datasets.split(datasets.load(data), "validation")
    counts = accuracy.confusion(network, images, labels)
    gone = request.mask(labels)
    share = losses.share(networks.predict(network, images[gone]), request)
    return {
        "retain_accuracy": accuracy.retain_accuracy(counts, request.classes),
        "forget_accuracy": accuracy.forget_accuracy(counts, request.classes),
        "forget_probability": 100 * share.double().mean().item(),
    }


def settings_of(trial: Trial) -> Settings:
    """Make the settings of a trial.

    Raises:
        ValueError: settings that the method does not take.
    """
    name, first = FIRST[trial.row]
    return schema.build(METHODS[name].settings, merged(first, trial.changes))


def trainings(
    data: Path, sections: parameters.Sections, *, seeds: Iterable[int]
) -> dict[str, dict[str, Any]]:
    """List the trainings of the originals, by the recipe of a profile."""
    names = {field.name for field in fields(training.Recipe)}
    given = {name: value for name, value in sections["train"].items() if name in names}
    study, recipe = sections["study"], training.Recipe(**given)
    return {
        f"original-seed{seed}": dict(
            data=data, model=study["model"], width=study["width"], recipe=recipe, request=None,
            seed=seed,
        )
        for seed in seeds
    }  # fmt: skip


def table(trials: Sequence[Trial], *, data: Path, sections: parameters.Sections) -> pd.DataFrame:
    """Run all trials and tabulate them, a row a trial and seed.

    Args:
        trials: see `Trial`.
        data: file of the data set.
        sections: parameters of the profile whose recipe trains the models.

    Returns:
        ``row`` of the main table, ``changes``, ``seed``, what `measured` returns,
        ``original_accuracy`` (of the original on the same images as ``retain_accuracy``) and
        ``seconds``.
    """
    scratch, request = root() / "build" / "trials", Classes(sections["study"]["forget_classes"])
    models = scratch / "models"
    used = sorted({seed for trial in trials for seed in trial.seeds})
    sweep(training.run, trainings(data, sections, seeds=used), store=models)
    before = {
        seed: measured(checkpoints.load(models / f"original-seed{seed}.pt"), data, request)
        for seed in used
    }
    rows = []
    for row in dict.fromkeys(trial.row for trial in trials):
        some = [trial for trial in trials if trial.row == row]
        tasks = {
            f"trial{number}-seed{seed}": dict(
                original=models / f"original-seed{seed}.pt", data=data, request=request,
                method=METHODS[FIRST[row][0]], settings=settings_of(trial), seed=seed,
            )
            for number, trial in enumerate(some, start=1)
            for seed in trial.seeds
        }  # fmt: skip
        found = iter(sweep(run, tasks, store=scratch / row).values())
        for trial in some:
            for seed, record in zip(trial.seeds, found, strict=False):
                told = {"row": row, "changes": json.dumps(trial.changes), "seed": seed}
                rest = {
                    "original_accuracy": before[seed]["retain_accuracy"],
                    "seconds": round(record.timings["unlearning"]),
                }
                rows.append(told | record.result | rest)
    return pd.DataFrame(rows).round(3)


def main(rows: Sequence[str]) -> None:
    """Write the trials of some rows, or of all, into the table.

    Raises:
        ValueError: a row that has no trials.
    """
    if unknown := set(rows) - FIRST.keys():
        raise ValueError(f"no trials of {sorted(unknown)}; there are those of {list(FIRST)}")
    asked = [trial for trial in TRIALS if not rows or trial.row in rows]
    found = table(asked, data=place(PROFILE).data, sections=parameters.load(PROFILE))
    renew(root() / "params" / "trials.csv", found, by="row", order=list(FIRST), header=HEADER)


def renew(
    file: Path, found: pd.DataFrame, *, by: str, order: Sequence[str], header: str
) -> pd.DataFrame:
    """Put new trials into a table, in place of those that have the same name in a column.

    Args:
        file: the table; need not be there.
        found: new rows.
        by: the column of names.
        order: all names, as the rows are to follow one another.
        header: comment before the table.

    Returns:
        the table as it is now.
    """
    if file.is_file():
        kept = pd.read_csv(file, comment="#")
        found = pd.concat([kept[~kept[by].isin(found[by])], found])
    found = found.iloc[found[by].map(list(order).index).argsort(kind="stable")]
    write_atomic(file, (header + found.to_csv(index=False)).encode())
    return found


if __name__ == "__main__":
    # a sweep imports its run by name, which `__main__` does not have
    from unlearnlib.zero_shot import trials

    trials.main(sys.argv[1:])
