"""How the size of masked distillation was settled: on originals that no page reports.

    python -m unlearnlib.zero_shot.sizing

This is no stage. It trains originals of further seeds by the recipe of the `standard`
profile, unlearns by each of a few settings, measures on validation images, and writes
``params/masked_distillation_trials.csv``. The settings in ``params/base.yaml`` are chosen from that
table by hand; no stage reads data to choose them.
"""

from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from unlearnlib.data import datasets
from unlearnlib.data.requests import Classes
from unlearnlib.measures import accuracy
from unlearnlib.models import checkpoints, networks, training
from unlearnlib.pipeline import parameters, schema
from unlearnlib.pipeline.paths import place, root, write_atomic
from unlearnlib.pipeline.sweep import sweep
from unlearnlib.zero_shot import losses, masked_distillation, method

PROFILE = "standard"
SEEDS = (100, 101, 102)  # of originals that no page reports
SMALL = {"batch_size": 250, "generator_channels": 32}  # of the synthesis, in all trials


class Trial(NamedTuple):
    """What is tried on one of the seeds, and where it is promising on the others too.

    Attributes:
        seeds: of the originals.
        per_class: images of each class.
        prior_steps: of the generator.
        inversion_steps: on the images.
        steps: of the copy.
        rate: of the copy, at its peak.
        forget_weight: of the images of the forgotten class.
        freeze_statistics: whether BatchNorm keeps its statistics.
    """

    seeds: tuple[int, ...]
    per_class: int = 100
    prior_steps: int = 75
    inversion_steps: int = 8
    steps: int = 400
    rate: float = 0.01
    forget_weight: float = 0.0
    freeze_statistics: bool = False


TRIALS = [
    Trial(SEEDS),  # as in the arena
    Trial((100,), per_class=300),
    Trial((100,), steps=800),
    Trial((100,), rate=0.02),
    Trial((100,), prior_steps=200),
    Trial((100,), prior_steps=200, inversion_steps=30),
    Trial((100, 102), forget_weight=1.0),
    Trial((102,), freeze_statistics=True),
    Trial((102,), freeze_statistics=True, rate=0.003),
    Trial((102,), forget_weight=1.0, rate=0.02),
    Trial(SEEDS, forget_weight=1.0, steps=800),
    Trial(SEEDS, forget_weight=1.0, rate=0.02, steps=800),
]
HEADER = (
    "# Trials of masked distillation on validation images (percent) of MNIST, class 0 forgotten; "
    "originals of seeds 100 to 102, which no page reports. Made by: "
    "python -m unlearnlib.zero_shot.sizing\n"
)


def run(
    *, original: Path, data: Path, request: Classes, settings: method.Settings, seed: int
) -> dict[str, Any]:
    """Unlearn by masked distillation, and measure on validation images.

    Args:
        original: file of the model.
        data: file of the data set.
        request: classes to forget.
        settings: of masked distillation.
        seed: of everything random.

    Returns:
        ``retain_accuracy`` and ``forget_accuracy`` in percent, and ``forget_probability``, the mean
        probability in percent of the forgotten classes on their own images.
    """
    model, shape = checkpoints.load_teacher(original, request)
    outcome = method.unlearn(
        model, masked_distillation.METHOD, request, shape=shape, settings=settings, seed=seed
    )
    return measured(outcome.network, data, request)


def measured(network: Any, data: Path, request: Classes) -> dict[str, float]:
    """Measure a network on validation images, see `run`."""
    images, labels = datasets.split(datasets.load(data), "validation")
    counts = accuracy.confusion(network, images, labels)
    gone = request.mask(labels)
    share = losses.share(networks.predict(network, images[gone]), request)
    return {
        "retain_accuracy": accuracy.retain_accuracy(counts, request.classes),
        "forget_accuracy": accuracy.forget_accuracy(counts, request.classes),
        "forget_probability": 100 * share.double().mean().item(),
    }


def trainings(data: Path, sections: parameters.Sections) -> dict[str, Any]:
    """List the trainings of the originals, by the recipe of a profile."""
    names = {field.name for field in fields(training.Recipe)}
    given = {name: value for name, value in sections["train"].items() if name in names}
    study, recipe = sections["study"], training.Recipe(**given)
    return {
        f"original-seed{seed}": dict(
            data=data, model=study["model"], width=study["width"], recipe=recipe, request=None,
            seed=seed,
        )
        for seed in SEEDS
    }  # fmt: skip


def settings_of(trial: Trial) -> masked_distillation.Settings:
    """Make the settings of a trial."""
    given = {"per_class": trial.per_class, "prior_steps": trial.prior_steps}
    synthesis = SMALL | given | {"steps": trial.inversion_steps}
    names = ("steps", "rate", "forget_weight", "freeze_statistics")
    tuning = {name: getattr(trial, name) for name in names}
    return schema.build(masked_distillation.Settings, {"synthesis": synthesis, "tuning": tuning})


def tasks(
    trials: list[Trial], *, originals: Path, data: Path, request: Classes
) -> dict[str, dict[str, Any]]:
    """List the tasks of `run`, see `table`; `originals` is the folder of the models."""
    return {
        f"trial{number}-seed{seed}": dict(
            original=originals / f"original-seed{seed}.pt", data=data, request=request,
            settings=settings_of(trial), seed=seed,
        )
        for number, trial in enumerate(trials, start=1)
        for seed in trial.seeds
    }  # fmt: skip


def table(trials: list[Trial], *, data: Path, sections: parameters.Sections) -> pd.DataFrame:
    """Run all trials and tabulate them, a row a trial and seed.

    Args:
        trials: see `Trial`.
        data: file of the data set.
        sections: parameters of the profile whose recipe trains the models.

    Returns:
        the trial, ``seed``, what `run` returns, ``original_accuracy`` (of the original on the same
        images as ``retain_accuracy``) and ``seconds``.
    """
    scratch, request = root() / "build" / "sizing", Classes(sections["study"]["forget_classes"])
    models = scratch / "models"
    sweep(training.run, trainings(data, sections), store=models)
    asked = tasks(trials, originals=models, data=data, request=request)
    found = sweep(run, asked, store=scratch / "trials")
    before = {
        seed: measured(checkpoints.load(models / f"original-seed{seed}.pt"), data, request)
        for seed in SEEDS
    }
    rows = []
    for number, trial in enumerate(trials, start=1):
        for seed in trial.seeds:
            record = found[f"trial{number}-seed{seed}"]
            rest = {
                "original_accuracy": before[seed]["retain_accuracy"],
                "seconds": round(record.timings["unlearning"]),
            }
            given = {name: value for name, value in trial._asdict().items() if name != "seeds"}
            rows.append({**given, "seed": seed, **record.result, **rest})
    return pd.DataFrame(rows).round(3)


def main() -> None:
    """Write the table of all trials."""
    found = table(TRIALS, data=place(PROFILE).data, sections=parameters.load(PROFILE))
    content = HEADER + found.to_csv(index=False)
    write_atomic(root() / "params" / "masked_distillation_trials.csv", content.encode())


if __name__ == "__main__":
    # a sweep imports its run by name, which `__main__` does not have
    from unlearnlib.zero_shot import sizing

    sizing.main()
