"""Figures of gated transfer, for the notebooks of both generators."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np

from unlearnlib.report import figures
from unlearnlib.zero_shot import stopping, transfers
from unlearnlib.zero_shot.transfers import Results
from unlearnlib.zero_shot.variants import title


def show_progress(results: Results, variants: Sequence[str], seeds: Sequence[int]) -> None:
    """Show agreement with the teacher, and the share of images that pass, by pseudo-batch.

    Args:
        results: of `gkt.run_transfer`, by the name of the run.
        variants: a line each.
        seeds: repeats of each.
    """
    figure, axes = plt.subplots(1, 2, figsize=(figures.WIDTH, 4.4), sharex=True)
    for name, color in figures.colours(variants).items():
        agreement = transfers.smoothed(results, name, seeds, "agreement")
        shares = transfers.passing(results, name, seeds)
        for axis, lines in zip(axes, (agreement, shares), strict=True):
            at = range(1, lines.shape[1] + 1)
            figures.spread(axis, at, 100 * lines, label=title(name), color=color)
    axes[0].set(xlabel="pseudo-batch", ylabel="agreement with the teacher (%)")
    axes[1].set(xlabel="pseudo-batch", ylabel="images that pass the gate (%)")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize="small")
    figures.show(
        figure,
        alt="Agreement of student and teacher on images that pass, and the share that does.",
        caption="On freshly drawn images, before the student learns from them, smoothed over "
        f"pseudo-batches. Lines: mean over {len(seeds)} seeds; bands: their range.",
    )


def show_signs(
    stops: Results, results: Results, variants: Sequence[str], seeds: Sequence[int]
) -> None:
    """Show the sign of every stopping rule by snapshot, with its limit.

    Args:
        stops: of `stopping.run`, by the name of the run.
        results: of the transfers that they stop.
        variants: a line each.
        seeds: repeats of each.
    """
    rules = list(stopping.RULES.values())
    lines = -(-len(rules) // 2)
    figure, axes = plt.subplots(lines, 2, figsize=(figures.WIDTH, 2.5 * lines), sharex=True)
    for axis, rule in zip(axes.flat, rules, strict=True):
        for name, color in figures.colours(variants).items():
            runs = [f"{name}-seed{seed}" for seed in seeds]
            signs = np.array([stops[run]["signs"][rule.name] for run in runs], dtype=float)
            at = [kept["pseudo_batch"] for kept in results[runs[0]]["snapshots"]]
            figures.spread(axis, at, signs, label=title(name), color=color)
        axis.axhline(rule.limit, color="0.4", linestyle=":")
        axis.set_title(rule.title)
    for axis in axes[-1]:
        axis.set(xlabel="pseudo-batch")
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize="small")
    figures.show(
        figure,
        alt="The sign of each stopping rule by pseudo-batch, with its limit.",
        caption=f"Lines: mean over {len(seeds)} seeds; bands: their range; dotted: the limit.",
    )


def show_drawn(stops: Results, variants: Sequence[str], seed: int) -> None:
    """Show what the generator draws at the stops of one seed, a row a variant, a column a class."""
    rows, classes = {}, 0
    for name in variants:
        kept = stops[f"{name}-seed{seed}"]
        pictures = (kept["images"][:, 0].numpy(), kept["image_labels"], kept["confidence"])
        rows[title(name)] = pictures
        classes = kept["model"]["architecture"]["num_classes"]
    figures.show(
        figures.class_gallery(rows, classes=[str(k) for k in range(classes)]),
        alt="Generated images, one row a variant, one column a class.",
        caption="Columns: the class that the teacher sees; below each picture its confidence. Of "
        "200 draws the one that it is surest of; a dash where none was of the class.",
    )
