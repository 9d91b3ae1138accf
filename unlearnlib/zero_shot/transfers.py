"""What the notebooks ask of the runs of gated transfer, as published and with a prior."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from unlearnlib.data.requests import Classes
from unlearnlib.pipeline import schema
from unlearnlib.pipeline.paths import Place
from unlearnlib.pipeline.records import Record
from unlearnlib.pipeline.sweep import sweep
from unlearnlib.zero_shot import gkt, stopping

Results = Mapping[str, Mapping[str, Any]]  # of gkt, by the name of the run


def tasks(
    here: Place,
    request: Classes,
    *,
    settings: Mapping[str, Any],
    variants: Mapping[str, Mapping[str, Any]],
    seeds: Iterable[int],
) -> dict[str, dict[str, Any]]:
    """List the tasks of `gkt.run_transfer` for variants of a transfer on the originals of the study.

    Args:
        here: files of the profile.
        request: what to forget.
        settings: of `gkt.Transfer`, as parameters give them.
        variants: what each changes in them, by name.
        seeds: of the original models, and of the runs.

    Returns:
        arguments by the name of the run, ``<variant>-seed<seed>``.

    Raises:
        ValueError: settings that a transfer does not take.
    """
    built = {
        name: schema.build(gkt.Transfer, {**settings, **changes})
        for name, changes in variants.items()
    }
    return {
        f"{name}-seed{seed}": {
            "original": here.run("train", f"seed{seed}"), "request": request, "settings": its,
            "seed": seed,
        }
        for name, its in built.items()
        for seed in seeds
    }  # fmt: skip


def stop(
    here: Place,
    transfers: Mapping[str, Mapping[str, Any]],
    *,
    stage: str,
    settings: stopping.Stop,
    **how: Any,
) -> dict[str, Record]:
    """Stop transfers without data: draw a probe for each teacher and request, then stop each run.

    Args:
        here: files of the profile; probes land in ``<stage>_probes``, stops in ``<stage>``.
        transfers: tasks of the transfers that lie in ``<stage>_transfers``, see `tasks`.
        stage: whose runs they are.
        settings: of the stop.
        how: workers and engine of the sweeps.

    Returns:
        the record of `stopping.run` by the name of the transfer.
    """
    probes, tasks_of_stops = {}, {}
    for name, task in transfers.items():
        classes = "_".join(map(str, task["request"].classes))
        probe = f"class_{classes}-seed{task['seed']}"
        shared = {key: task[key] for key in ("original", "request", "seed")}
        probes[probe] = shared | {"settings": settings.probe}
        tasks_of_stops[name] = {
            "transfer": here.run(f"{stage}_transfers", name),
            "probe": here.run(f"{stage}_probes", probe), "request": task["request"],
            "rule": settings.rule, "limit": settings.bound,
        }  # fmt: skip
    sweep(stopping.run_probe, probes, store=here.runs / f"{stage}_probes", **how)
    return sweep(stopping.run, tasks_of_stops, store=here.runs / stage, **how)


def accepted_shares(results: Results) -> pd.DataFrame:
    """Compute the share of each class among the images that passed the gate.

    Returns:
        percent, a row a run and a column a class; NaN where none passed.
    """
    counts = {name: np.sum(result["history"]["accepted"], 0) for name, result in results.items()}
    table = pd.DataFrame(counts).T
    return (100 * table.div(table.sum(axis=1), axis=0)).round(1)


def stops(results: Results, variants: Iterable[str], seeds: Iterable[int]) -> pd.DataFrame:
    """List the pseudo-batch at which each run stopped: a row a seed, a column a variant."""
    index = pd.Index(list(seeds), name="seed")
    columns = {name: [results[f"{name}-seed{seed}"]["stop"] for seed in index] for name in variants}
    return pd.DataFrame(columns, index=index)


def smoothed(
    results: Results, variant: str, seeds: Iterable[int], sign: str, *, alpha: float = 0.1
) -> np.ndarray:
    """Smooth a sign exponentially over pseudo-batches: ``[seeds, pseudo-batches]``."""
    histories = [results[f"{variant}-seed{seed}"]["history"][sign] for seed in seeds]
    return np.array([pd.Series(h).ewm(alpha=alpha, ignore_na=True).mean() for h in histories])


def passing(results: Results, variant: str, seeds: Iterable[int]) -> np.ndarray:
    """Compute the share of drawn images that passed: ``[seeds, pseudo-batches]``, smoothed."""
    shares = []
    for seed in seeds:
        history = results[f"{variant}-seed{seed}"]["history"]
        drawn, accepted = (np.sum(history[key], 1) for key in ("drawn", "accepted"))
        shares.append(pd.Series(accepted / drawn).ewm(alpha=0.1).mean())
    return np.array(shares)
