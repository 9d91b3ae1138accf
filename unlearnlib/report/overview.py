"""What opens a report: one figure of who forgets and who hides, and which method serves whom.

Both are read from the arena's tables, of its main request; without these there is neither.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from unlearnlib.report import figures
from unlearnlib.report.findings import tables

GOLD, ORIGINAL = "retrain", "original"
REFERENCES = {
    GOLD: "Retrained (gold)", "retrain_again": "Retrained again", ORIGINAL: "Original",
}  # fmt: skip
FAMILIES = {"with data": "C1", "zero-shot": "C0", "influence": "C2"}  # and their colours


@dataclass(frozen=True)
class Column:
    """A column of the figure.

    Attributes:
        metric: of the arena's table.
        title: above it.
        logarithmic: whether its axis is.
        log_floor: what stands for zero there.
    """

    metric: str
    title: str
    logarithmic: bool = False
    log_floor: float = 0.5


COLUMNS = (
    Column("retain_accuracy", "keeps the rest\n(accuracy, %)"),
    Column("forget_accuracy", "names what is gone\n(accuracy, %)"),
    Column("relearn_time", "learns it again after\n(mini-batches)", logarithmic=True),
    Column("ulira_forget", "is told from gold\n(attacker, %)"),
    Column("cost", "costs\n(retrainings)", logarithmic=True, log_floor=0.01),
)


@dataclass(frozen=True)
class Arena:
    """The arena's main request.

    Attributes:
        request: its name.
        values: of each metric, method and repeat: ``metric``, ``method``, ``value``.
        titles: of methods.
        families: of methods; references have none.
    """

    request: str
    values: pd.DataFrame
    titles: Mapping[str, str]
    families: Mapping[str, str]

    def repeats(self, method: str, metric: str) -> list[float]:
        """Return the values of a method, one a repeat."""
        rows = self.values
        own = rows[(rows["method"] == method) & (rows["metric"] == metric)]["value"]
        return own.dropna().to_list()

    def mean(self, method: str, metric: str) -> float:
        """Return the mean over repeats; NaN where there is none."""
        return float(np.mean(found)) if (found := self.repeats(method, metric)) else float("nan")


def read(folder: Path) -> Arena:
    """Read the arena's main request, which its table has first.

    Raises:
        Absent: the arena has not run.
    """
    found = tables(folder)
    every, methods = found["arena"], found["arena_methods"].set_index("method")
    request = every["request"].iloc[0]
    own = every[every["request"] == request].copy()
    own["value"] = pd.to_numeric(own["value"], errors="coerce")
    titles = methods["title"] if "title" in methods else pd.Series(methods.index, methods.index)
    return Arena(
        request,
        own[["metric", "method", "value"]],
        REFERENCES | titles.to_dict(),
        methods["family"].to_dict(),
    )


def hero(arena: Arena) -> Figure:
    """Draw all methods by what they keep, what they name, and what is left of what is gone.

    Gold is black and its range over repeats, a second gold's too, shaded.
    """
    shown = [m for m in arena.families if not m.endswith("_scaled")]
    shown.sort(key=lambda m: (list(FAMILIES).index(arena.families[m]), -_again(arena, m)))
    rows = [m for m in REFERENCES if arena.repeats(m, "retain_accuracy")] + shown
    figure, axes = plt.subplots(
        1, len(COLUMNS), figsize=(1.4 * figures.WIDTH, 0.8 + 0.24 * len(rows)), sharey=True
    )
    for axis, column in zip(axes, COLUMNS, strict=True):
        _column(axis, column, arena, rows)
    axes[0].set_yticks(range(len(rows)), [arena.titles.get(m, m) for m in rows])
    axes[0].set_ylim(len(rows) - 0.5, -0.5)
    for label, method in zip(axes[0].get_yticklabels(), rows, strict=True):
        label.set_color(_colour(arena, method))
    return figure


def _again(arena: Arena, method: str) -> float:
    return np.nan_to_num(arena.mean(method, "relearn_time"))


def _colour(arena: Arena, method: str) -> str:
    return FAMILIES.get(arena.families.get(method, ""), "black")


def _column(axis: plt.Axes, column: Column, arena: Arena, rows: list[str]) -> None:
    floor = column.log_floor if column.logarithmic else -np.inf
    gold = np.maximum(
        arena.repeats(GOLD, column.metric) + arena.repeats("retrain_again", column.metric), floor
    )
    if len(gold):
        middle = float(np.mean(gold))
        axis.axvspan(gold.min(), gold.max(), color="0.88", zorder=0)
        axis.axvline(middle, color="black", linewidth=0.8, zorder=0)
    for place, method in enumerate(rows):
        repeats = np.maximum(arena.repeats(method, column.metric), floor)
        style = {"color": _colour(arena, method), "zorder": 3}
        if len(repeats):
            axis.plot([repeats.min(), repeats.max()], [place, place], linewidth=1.5, **style)
            axis.plot(repeats.mean(), place, marker="o", markersize=5, **style)
    low, high = axis.dataLim.intervalx
    if column.logarithmic and high >= 10 * low:  # else its few labels would overlap
        axis.set_xscale("log")
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.xaxis.set_minor_formatter(NullFormatter())
    axis.set_title(column.title, fontsize="small")
    axis.tick_params(labelsize="x-small")
    axis.grid(axis="y", color="0.93")


HERO = (
    "Rows: methods, gold above in black, then those that read data, those without any, and influence "
    "functions; within each the one that takes longest to learn again is first. Dots: mean over "
    "repeats; bars: their range; shaded: the range of retrained models. Logarithmic axes for "
    "mini-batches and cost, where zero is drawn at the left end. No dot: not measured."
)


# ------------------------------------------------------------------------- which method, when

ACCESS = {  # what one has, and the families of methods that need no more
    "the model alone": ("zero-shot",),
    "the model and its training data": ("with data", "influence", "zero-shot"),
}
GOALS = {  # what is wanted, and the share of gold's mini-batches that learning again must take
    "is no longer named": 0.0,
    "takes long to come back": 0.5,
}
NAMED = 1.0  # percent of images on which a class may still be named, at most, in every repeat


@dataclass(frozen=True)
class Advice:
    """A row of the card: what one has and wants, and what serves.

    Attributes:
        have: in words.
        want: in words.
        title: of the method that keeps most of the rest; empty where none serves.
        kept: its retain accuracy, percent, mean over repeats.
        again: mini-batches to learn again, as a share of gold's.
        cost: in retrainings.
    """

    have: str
    want: str
    title: str = ""
    kept: float = float("nan")
    again: float = float("nan")
    cost: float = float("nan")


def advice(arena: Arena) -> list[Advice]:
    """Choose for each access and each goal the method that keeps most of the rest.

    Only methods serve that name what is gone in at most `NAMED` percent, in every repeat. Retraining,
    for which one needs everything and the time, ends the list.
    """
    again_of_gold = arena.mean(GOLD, "relearn_time")
    found = []
    for have, families in ACCESS.items():
        silent = [
            method
            for method, family in arena.families.items()
            if family in families
            and max(arena.repeats(method, "forget_accuracy"), default=np.inf) <= NAMED
        ]
        for want, share in GOALS.items():
            able = [m for m in silent if share <= _again(arena, m) / again_of_gold]
            best = max(able, key=lambda m: arena.mean(m, "retain_accuracy"), default=None)
            found.append(_row(arena, have, want, best) if best else Advice(have, want))
    return [*found, _row(arena, "everything, and the time", "was never seen", GOLD)]


def _row(arena: Arena, have: str, want: str, method: str) -> Advice:
    return Advice(
        have,
        want,
        arena.titles.get(method, method),
        arena.mean(method, "retain_accuracy"),
        arena.mean(method, "relearn_time") / arena.mean(GOLD, "relearn_time"),
        arena.mean(method, "cost"),
    )
