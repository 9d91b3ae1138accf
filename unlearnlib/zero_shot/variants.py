"""The rows of the main table, the runs behind them, and the tasks that leave these runs.

A run of this part is named ``<method>-seed<seed>``, where the method is a row of the main table or
a further variant of one.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unlearnlib.data.requests import Classes
from unlearnlib.pipeline import parameters, records, schema
from unlearnlib.pipeline.paths import Place
from unlearnlib.pipeline.records import Record
from unlearnlib.pipeline.registry import Named, Registry
from unlearnlib.zero_shot import stopping
from unlearnlib.zero_shot.method import ZeroShot

# ------------------------------------------------------------------------------ the main table


@dataclass(frozen=True)
class Row(Named):
    """A row of the main table.

    Attributes:
        stage: whose runs it is made of.
        reads: of the training data, beside the original model; in words.
        tuned: settings that were tried for it on validation images before it was run; 0 where it
            runs as published, or has nothing to choose; None where the trials were not kept.
    """

    stage: str
    reads: str = field(default="nothing", compare=False)
    tuned: int | None = field(default=0, compare=False)

    @property
    def tried(self) -> str:
        """How many settings were tried, in words."""
        return "not kept" if self.tuned is None else str(self.tuned)


ROWS: Registry[Row] = Registry(
    "row of the main table",
    Row("original", "Original", "train", reads="all of it"),
    Row("retrain", "Retrained", "retrain", reads="the classes that stay"),
    Row("delete", "DELETE, real images", "delete", reads="the forgotten classes"),
    Row("masked_logit", "Masked logit", "masking"),
    Row("random_class_row", "Random class row", "masking"),
    Row("random_embeddings", "Random embeddings", "masking", tuned=4),  # numbers of steps
    Row("masked_distillation", "Masked distillation", "masking", tuned=12),  # see `trials`
    Row("mm_noise", "M-M noise", "mm_noise"),
    Row("mm_noise_repaired", "M-M noise, repaired", "mm_noise", tuned=7),  # see `trials`
    Row("gkt", "GKT", "gkt"),
    Row("gkt_entropy", "GKT, entropy criterion", "gkt"),
    Row("gkt_no_attention", "GKT, no attention", "gkt"),
    Row("gkt_prior", "GKT with prior", "gkt_prior", tuned=None),
    Row("gkt_prior_entropy", "GKT with prior, entropy criterion", "gkt_prior", tuned=None),
    Row("gkt_prior_no_attention", "GKT with prior, no attention", "gkt_prior", tuned=None),
    Row("deep_inversion_100", "DeepInversion, 100 images a class", "deep_inversion", tuned=None),
    Row("deep_inversion_6000", "DeepInversion, 6000 images a class", "deep_inversion", tuned=None),
)
TO_ITS_END = "_to_its_end"  # behind the name of a transfer: its last snapshot, which no rule chose


def title(name: str) -> str:
    """Return what people call a method.

    That is the title of its row; a further variant, named ``<row>_<change>``, has the change added.
    """
    rows = [row for row in ROWS.values() if f"{name}_".startswith(f"{row.name}_")]
    if not rows:
        return name.replace("_", " ")
    row = max(rows, key=lambda row: len(row.name))
    change = name.removeprefix(row.name).strip("_").replace("_", " ")
    return f"{row.title}, {change}" if change else row.title


# ------------------------------------------------------------------------------------- the runs


def tasks(
    here: Place,
    method: ZeroShot,
    request: Classes,
    *,
    settings: Mapping[str, Any],
    variants: Mapping[str, Mapping[str, Any]],
    seeds: Iterable[int],
) -> dict[str, dict[str, Any]]:
    """List the tasks of `methods.run` for variants of a method on the originals of the study.

    Args:
        here: files of the profile.
        method: an entry of `methods.METHODS`.
        request: what to forget.
        settings: of the method, as parameters give them.
        variants: what each changes in them, by name.
        seeds: of the original models, and of the runs.

    Returns:
        arguments by the name of the run.

    Raises:
        ValueError: settings that the method does not take.
    """
    built = {
        name: schema.build(method.settings, parameters.merged(settings, changes))
        for name, changes in variants.items()
    }
    return {
        f"{name}-seed{seed}": {
            "original": here.run("train", f"seed{seed}"), "method": method, "request": request,
            "settings": its, "seed": seed,
        }
        for name, its in built.items()
        for seed in seeds
    }  # fmt: skip


def runs(here: Place) -> dict[str, Path]:
    """Find what the stages of the rows left, variants too: files by the name of the run.

    A stage that trains one kind of model names its files by the seed alone.
    """
    found = {}
    for stage in dict.fromkeys(row.stage for row in ROWS.values()):
        alone = next(row.name for row in ROWS.values() if row.stage == stage)
        for file in sorted((here.runs / stage).glob("*.pt")):
            name = f"{alone}-{file.stem}" if file.stem.startswith("seed") else file.stem
            found[name] = file
    return found


def curves(here: Place) -> dict[str, Path]:
    """Find the transfers whose snapshots make a curve: files by the name of the run."""
    stages = ("gkt_transfers", "gkt_branches", "gkt_prior_transfers")
    return {
        file.stem: file for stage in stages for file in sorted((here.runs / stage).glob("*.pt"))
    }


def forgotten(file: Path, default: Classes) -> Classes:
    """Return the classes that a run was to forget; `default` for one that was asked for none."""
    asked = records.arguments(file).get("request")
    return Classes(asked["classes"]) if asked else default


def cost(record: Record) -> float:
    """Compute the seconds of a run, with its share of what earlier runs had made for it."""
    return record.seconds + record.timings.get(stopping.EARLIER, 0.0)
