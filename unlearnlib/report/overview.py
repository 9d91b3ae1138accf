"""What opens a report: one figure of who forgets and who hides, and which method serves whom.

Both are read from the arena's tables, of its main request; without these there is neither.
"""

from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from unlearnlib.arena import league, methods
from unlearnlib.arena.league import Results
from unlearnlib.measures import statistics
from unlearnlib.report import figures
from unlearnlib.report.findings import Absent

GOLD = "retrain"
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
        results: of all requests.
        known: of all methods, references and decoys, ``title`` and ``family``.
    """

    request: str
    results: Results
    known: pd.DataFrame

    def repeats(self, method: str, metric: str) -> np.ndarray:
        """Return the values of a method, one a repeat."""
        return self.results.repeats(self.request, method, metric).to_numpy()

    def mean(self, method: str, metric: str) -> float:
        """Return the mean over repeats; NaN where there is none."""
        found = self.repeats(method, metric)
        return float(found.mean()) if len(found) else float("nan")

    def family(self, *families: str) -> list[str]:
        """List the methods of some families that were measured, in the order of the table."""
        own = self.known.index[self.known["family"].isin(families)]
        return [method for method in own if len(self.repeats(method, "retain_accuracy"))]


def read(folder: Path) -> Arena:
    """Read the arena's main request, which its table has first.

    Raises:
        Absent: the arena has not run.
    """
    table, listed = folder / "arena.csv", folder / "arena_methods.csv"
    if not (table.is_file() and listed.is_file()):
        raise Absent("the arena has not run")
    results, known = league.read(table), methods.known(listed)
    known["title"] = known["title"].fillna(known.index.to_series())
    return Arena(results.requests[0], results, known)


def hero(arena: Arena) -> Figure:
    """Draw all methods by what they keep, what they name, and what is left of what is gone.

    Gold is black and its range over repeats, a second gold's too, shaded.
    """
    rows = arena.family("reference")
    for family in FAMILIES:
        own = [m for m in arena.family(family) if not m.endswith("_scaled")]
        rows += sorted(own, key=lambda m: -_again(arena, m))
    figure, axes = plt.subplots(
        1, len(COLUMNS), figsize=(1.4 * figures.WIDTH, 0.8 + 0.24 * len(rows)), sharey=True
    )
    for axis, column in zip(axes, COLUMNS, strict=True):
        _column(axis, column, arena, rows)
    axes[0].set_yticks(range(len(rows)), arena.known.loc[rows, "title"])
    axes[0].set_ylim(len(rows) - 0.5, -0.5)
    for label, method in zip(axes[0].get_yticklabels(), rows, strict=True):
        label.set_color(_colour(arena, method))
    return figure


def _again(arena: Arena, method: str) -> float:
    return np.nan_to_num(arena.mean(method, "relearn_time"))


def _colour(arena: Arena, method: str) -> str:
    return FAMILIES.get(arena.known.loc[method, "family"], "black")


def _column(axis: plt.Axes, column: Column, arena: Arena, rows: list[str]) -> None:
    floor = column.log_floor if column.logarithmic else -np.inf
    both = [arena.repeats(m, column.metric) for m in (GOLD, methods.LUCK)]
    gold = np.maximum(np.concatenate(both), floor)
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
# known to have forgotten nothing: all but what is said of the class stays as it was, and how long it
# takes to come back is how deep it was buried
MASKS = ("masked_logit", "random_class_row")
NAMED = 1.0  # percent of images on which a class may still be named, at most, in every repeat
LOST = 5.0  # points of retain accuracy that a method may lack to gold, in the mean


@dataclass(frozen=True)
class Advice:
    """A row of the card: what one has and wants, and what serves.

    Attributes:
        have: in words.
        want: in words.
        title: of the method that keeps most of the rest; empty where none serves.
        kept: its retain accuracy, percent, with half its 95 % interval.
        again: mini-batches to learn again, as a share of gold's.
        cost: in retrainings.
    """

    have: str
    want: str
    title: str = ""
    kept: str = "-"
    again: float = float("nan")
    cost: float = float("nan")


def advice(arena: Arena) -> list[Advice]:
    """Choose for each access and each goal the method that keeps most of the rest.

    Only methods serve that name what is gone in at most `NAMED` percent, in every repeat, and that lack
    at most `LOST` points to gold: a wrecked network learns nothing again, and is no answer. `MASKS`
    serve where the class is only not to be named. Retraining, for which one needs everything and the
    time, ends the list.
    """
    again_of_gold, least = (
        arena.mean(GOLD, "relearn_time"),
        arena.mean(GOLD, "retain_accuracy") - LOST,
    )
    found = []
    for have, families in ACCESS.items():
        silent = [
            method
            for method in arena.family(*families)
            if max(arena.repeats(method, "forget_accuracy"), default=np.inf) <= NAMED
            and arena.mean(method, "retain_accuracy") >= least
        ]
        for want, share in GOALS.items():
            able = [
                method
                for method in silent
                if _again(arena, method) / again_of_gold >= share
                and not (share and method in MASKS)
            ]
            best = max(able, key=lambda m: arena.mean(m, "retain_accuracy"), default=None)
            found.append(_row(arena, have, want, best) if best else Advice(have, want))
    return [*found, _row(arena, "everything, and the time", "was never seen", GOLD)]


def _row(arena: Arena, have: str, want: str, method: str) -> Advice:
    return Advice(
        have,
        want,
        arena.known.loc[method, "title"],
        statistics.written(arena.repeats(method, "retain_accuracy"), digits=1),
        arena.mean(method, "relearn_time") / arena.mean(GOLD, "relearn_time"),
        arena.mean(method, "cost"),
    )
