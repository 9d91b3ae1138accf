"""What two notebooks ask of the runs of gated transfer, as published and with a prior."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd

Results = Mapping[str, Mapping[str, Any]]  # of gkt, by the name of the run


def entropy_variants(stem: str, limits: Iterable[float]) -> dict[str, dict[str, float]]:
    """Name a variant for each further value of the entropy criterion, in nats."""
    return {f"{stem}_entropy_{limit:g}": {"entropy_limit": limit} for limit in limits}


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
    results: Results, variant: str, seeds: Iterable[int], sign: str, *, alpha: float = 0.2
) -> np.ndarray:
    """Smooth a sign exponentially over pseudo-batches: ``[seeds, pseudo-batches]``."""
    histories = [results[f"{variant}-seed{seed}"]["history"][sign] for seed in seeds]
    return np.array([pd.Series(h).ewm(alpha=alpha, ignore_na=True).mean() for h in histories])
