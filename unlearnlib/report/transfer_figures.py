"""Figures of gated transfer, for the notebooks of both generators."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np

from unlearnlib.report import figures
from unlearnlib.zero_shot import gkt, transfers
from unlearnlib.zero_shot.transfers import Results
from unlearnlib.zero_shot.variants import title


def show_signs(
    results: Results, variants: Sequence[str], seeds: Sequence[int], *, limit: float
) -> None:
    """Show agreement and leak by pseudo-batch.

    Args:
        results: of `gkt`, by the name of the run.
        variants: a line each.
        seeds: repeats of each.
        limit: of the leak, a probability.
    """
    figure, axes = plt.subplots(1, 2, figsize=(figures.WIDTH, 3.2), sharex=True)
    for axis, sign in zip(axes, ("agreement", "leak"), strict=True):
        for name in variants:
            lines = 100 * transfers.smoothed(results, name, seeds, sign)
            figures.spread(axis, range(1, lines.shape[1] + 1), lines, label=title(name))
    axes[0].set(xlabel="pseudo-batch", ylabel="agreement with the teacher (%)")
    axes[1].set(xlabel="pseudo-batch", ylabel="leak (%)")
    axes[1].axhline(100 * limit, color="0.4", linestyle=":", label="limit")
    axes[1].legend(fontsize="small")
    figures.show(
        figure,
        alt="Agreement of student and teacher on accepted images, and the leak, by pseudo-batch.",
        caption="Both on freshly drawn images, before the student learns from them, smoothed over "
        "pseudo-batches. Lines: mean over seeds; bands: their range.",
    )


def show_drawn(results: Results, variants: Sequence[str], seed: int) -> None:
    """Show what the generator draws at the stopping points of one seed, a row a variant."""
    rows = {title(name): _drawn(results, f"{name}-seed{seed}") for name in variants}
    figures.show(
        figures.gallery(rows),
        alt="Rows of ten generated images, one row a variant.",
        caption="Generated images at the stopping point, ordered by the teacher's class.",
    )


def _drawn(results: Results, name: str) -> np.ndarray:
    """Choose pictures of a run's stopping point ``[10, H, W]``, ordered by the teacher's class."""
    kept = gkt.at_stop(results[name]["snapshots"], results[name]["stop"])
    order = kept["predicted"].argsort(stable=True)
    return kept["images"][order][:: max(1, len(order) // 10), 0].numpy()
