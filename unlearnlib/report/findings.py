"""What the study finds: each claim with the number that bears it, read from a profile's tables.

A finding states a claim and how it is measured, by one number for each repeat. Whether it holds is
decided by the 95 % interval of their mean, so the same claims can be put to every profile and every
data set. The index of a report opens with them; nothing here is written by hand but the claims.

To add a finding, write how it is measured and register it below.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from math import inf, isfinite, nan
from pathlib import Path
from typing import Literal

import pandas as pd

from unlearnlib.measures import statistics
from unlearnlib.pipeline.registry import Named, Registry

Verdict = Literal["holds", "does not hold", "open"]


class Absent(LookupError):
    """A table has no such rows, as where a profile leaves a method out."""


@dataclass(frozen=True)
class Estimate:
    """A number and how sure it is.

    Attributes:
        value: the mean over repeats.
        low: lower 95 % limit; NaN from one repeat.
        high: upper one.
        n: repeats.
    """

    value: float
    low: float
    high: float
    n: int

    @classmethod
    def of(cls, repeats: Iterable[float]) -> "Estimate":
        """Take the mean of repeats, with its Student t interval.

        Raises:
            Absent: there is none.
        """
        found = [float(value) for value in repeats if isfinite(value)]
        if not found:
            raise Absent("no repeat has a value")
        return cls(*statistics.mean_interval(found), len(found))


Tables = Mapping[str, pd.DataFrame]
Measure = Callable[[Tables], "Estimate"]


@dataclass(frozen=True, kw_only=True)
class Finding(Named):
    """A claim, and how it is measured. The title is the claim, a sentence without its full stop.

    Attributes:
        page: notebook that shows it.
        number: what is measured, in words that go before its value.
        unit: of the value, with a space before it where one belongs.
        repeats: what n counts.
        measure: of the tables.
        bound: the claim is that the value is ``above`` it, ``below`` it, or ``within`` it on both
            sides of zero.
        side: which of these.
        limits: what the value can be at least and at most; intervals are cut there for people.
        digits: after the point, for people.
        front: whether the index opens with it.
    """

    page: str
    number: str
    unit: str = ""
    repeats: str = "original models"
    measure: Measure = field(compare=False)
    bound: float
    side: Literal["above", "below", "within"]
    limits: tuple[float, float] = (-inf, inf)
    digits: int = 2
    front: bool = False

    def verdict(self, estimate: Estimate) -> Verdict:
        """Say whether the whole interval lies where the claim puts the value, or outside it.

        ``open`` where the interval reaches over the bound, and from a single repeat.
        """
        low, high, bound = estimate.low, estimate.high, self.bound
        if not (isfinite(low) and isfinite(high)):
            return "open"
        if self.side == "within":
            inside, outside = -bound < low and high < bound, high < -bound or low > bound
        elif self.side == "above":
            inside, outside = low > bound, high < bound
        else:
            inside, outside = high < bound, low > bound
        return "holds" if inside else "does not hold" if outside else "open"

    def written(self, estimate: Estimate) -> str:
        """Write the number with its interval and n, in words."""
        value = f"{estimate.value:.{self.digits}f}{self.unit}"
        if not isfinite(estimate.low):
            return f"{value} (n = {estimate.n} of {self.repeats}, no interval)"
        low, high = self._between(estimate)
        return f"{value} (95 % interval {low} to {high}, n = {estimate.n} {self.repeats})"

    def brief(self, estimate: Estimate) -> str:
        """Write the number with its interval and n, for a table."""
        value = f"{estimate.value:.{self.digits}f}"
        between = f" [{', '.join(self._between(estimate))}]" if isfinite(estimate.low) else ""
        return f"{value}{between}{self.unit}, n = {estimate.n}"

    def _between(self, estimate: Estimate) -> tuple[str, str]:
        """Write the interval, cut at what the value can be."""
        low, high = max(estimate.low, self.limits[0]), min(estimate.high, self.limits[1])
        return f"{low:.{self.digits}f}", f"{high:.{self.digits}f}"


@dataclass(frozen=True)
class Found:
    """A finding in a profile: what was measured there, and what follows."""

    finding: Finding
    estimate: Estimate

    @property
    def verdict(self) -> Verdict:
        """Return whether the claim holds."""
        return self.finding.verdict(self.estimate)

    @property
    def measured(self) -> str:
        """Write what was measured, as a sentence."""
        return f"{self.finding.number}: {self.finding.written(self.estimate)}."


# ------------------------------------------------------------------------------ ways to measure


def _rows(table: pd.DataFrame, **wanted: object) -> pd.DataFrame:
    """Return the rows that have these values.

    Raises:
        Absent: there are none.
    """
    for column, value in wanted.items():
        table = table[table[column] == value]
    if table.empty:
        raise Absent(f"no rows with {wanted}")
    return table


def _by_seed(table: pd.DataFrame, value: str, **wanted: object) -> pd.Series:
    return _rows(table, **wanted).groupby("seed")[value].mean()


def zero_shot_gap(method: str, other: str) -> Measure:
    """Measure how many points of retain accuracy one variant keeps over another, pair by pair."""

    def measure(tables: Tables) -> Estimate:
        table = tables["zero_shot_variants"]
        pair = (_by_seed(table, "retain_accuracy", method=name) for name in (method, other))
        return Estimate.of(next(pair) - next(pair))

    return measure


def transfer(method: str, column: str, less: tuple[str, str] | None = None) -> Measure:
    """Measure a milestone of a transfer, or how much more it is than that of another.

    Only where the published transfer was run until it had learnt half of what stays: of a shorter one
    no milestone means anything.
    """

    def measure(tables: Tables) -> Estimate:
        table = tables["gkt_milestones"]
        if _by_seed(table, "best", method="gkt").mean() < 50:
            raise Absent("the published transfer was not run until it had learnt")
        values = _by_seed(table, column, method=method)
        if less is not None:
            values = values - _by_seed(table, less[1], method=less[0])
        return Estimate.of(values)

    return measure


def arena_ratio(method: str, other: str, metric: str, request: str = "class_0") -> Measure:
    """Measure a metric of one method of the arena as a multiple of another's, pair by pair."""

    def measure(tables: Tables) -> Estimate:
        rows = _rows(tables["arena"], request=request, metric=metric)
        rows = rows.assign(value=pd.to_numeric(rows["value"], errors="coerce"))
        above, below = (_by_seed(rows, "value", method=name) for name in (method, other))
        return Estimate.of((above / below).replace([float("inf")], nan))

    return measure


def attacker(method: str, request: str = "class_0") -> Measure:
    """Read how often U-LiRA tells a method from gold, percent; n are models."""

    def measure(tables: Tables) -> Estimate:
        cell = _rows(tables["arena_ensembles"], request=request, method=method, set="forgotten")
        row = cell.loc[cell["models"].idxmax()]
        return Estimate(row["ulira"], row["ulira_low"], row["ulira_high"], int(row["models"]))

    return measure


def kept() -> Measure:
    """Measure what retraining costs the largest coherent groups, which it never saw, in points.

    That is the accuracy on a group of the model retrained without it, less that of the original.
    """

    def measure(tables: Tables) -> Estimate:
        keys = ["label", "size", "seed"]
        gold = _rows(tables["group_retrain"], mode="coherent")
        gold = _rows(gold, size=gold["size"].max()).set_index(keys)["self_accuracy"]
        before = _rows(tables["estimators"], mode="coherent", estimator="none")
        before = before.set_index(keys)["self_accuracy"]
        return Estimate.of((gold - before).dropna().groupby("seed").mean())

    return measure


def off(estimator: str, other: str, mode: str) -> Measure:
    """Measure how far an update's loss on the group is from retraining's, as a multiple of another's.

    The distance is the mean size of the difference over groups.
    """

    def measure(tables: Tables) -> Estimate:
        keys = ["mode", "label", "size", "seed"]
        gold = tables["group_retrain"].set_index(keys)["self_loss"]
        rows = _rows(tables["estimators"], mode=mode)

        def distance(name: str) -> pd.Series:
            own = _rows(rows, estimator=name).set_index(keys)["self_loss"]
            return (own - gold.reindex(own.index)).abs().groupby("seed").mean()

        return Estimate.of(distance(estimator) / distance(other))

    return measure


def way(estimator: str, mode: str) -> Measure:
    """Measure what share of retraining's change in the group's loss an update makes, percent."""

    def measure(tables: Tables) -> Estimate:
        keys = ["mode", "label", "size", "seed"]
        rows = _rows(tables["estimators"], mode=mode)
        own, idle = (
            _rows(rows, estimator=name).set_index(keys)["self_loss"] for name in (estimator, "none")
        )
        gold = tables["group_retrain"].set_index(keys)["self_loss"].reindex(own.index)
        sums = [part.groupby("seed").sum() for part in (own - idle, gold - idle)]
        return Estimate.of(100 * sums[0] / sums[1])

    return measure


def order(name: str, mode: str) -> Measure:
    """Read what an order of steps adds to the group's loss beside random parts, nats."""

    def measure(tables: Tables) -> Estimate:
        row = _rows(tables["group_orders"], mode=mode, space="compact", order=name).iloc[0]
        return Estimate(row["effect"], row["low"], row["high"], int(row["n"]))

    return measure


def space_gap(column: str) -> Measure:
    """Measure how much more features of the CNN tell about influences than those of the ViT."""

    def measure(tables: Tables) -> Estimate:
        table = _rows(tables["coherence"], gradient="loss")
        largest = _rows(table, items=table["items"].max())
        pair = (_by_seed(largest, column, space=space) for space in ("compact", "vit"))
        return Estimate.of(next(pair) - next(pair))

    return measure


def convex(estimator: str) -> Measure:
    """Measure the rank correlation of predicted and exact change in the convex control."""

    def measure(tables: Tables) -> Estimate:
        cell = _rows(tables["convex_control"], estimator=estimator)
        pairs = cell.groupby("seed")[["predicted_self", "actual_self"]]
        return Estimate.of(pairs.apply(lambda own: own.corr("spearman").iloc[0, 1]))

    return measure


def attribution(name: str) -> Measure:
    """Read the linear datamodelling score of an attribution; n are models."""

    def measure(tables: Tables) -> Estimate:
        row = _rows(tables["attribution"], attribution=name).iloc[0]
        return Estimate(row["score"], row["low"], row["high"], int(row["models"]))

    return measure


def selected(criterion: str) -> Measure:
    """Measure how many points of test accuracy a choice of parameters gains over a random one.

    At the shares of parameters that both have, on images that stay.
    """

    def measure(tables: Tables) -> Estimate:
        table, keys = tables["selection_criteria"], ["seed", "modification_ratio"]
        pair = (
            _rows(table, criterion=name).groupby(keys)["test_accuracy"].mean()
            for name in (criterion, "random")
        )
        return Estimate.of((next(pair) - next(pair)).groupby("seed").mean())

    return measure


# ---------------------------------------------------------------------------------- the findings

PERCENT, RATIO, CORRELATION = (0.0, 100.0), (0.0, inf), (-1.0, 1.0)  # limits

FINDINGS: Registry[Finding] = Registry(
    "finding",
    # a class, without data
    Finding(
        "data_free",
        "A method without any data keeps within half a point of what retraining keeps",
        page="16_comparison", front=True,
        number="Retain accuracy of masked distillation less that of the retrained model",
        unit=" points", measure=zero_shot_gap("masked_distillation", "retrain"),
        bound=-0.5, side="above",
    ),
    Finding(
        "one_line",
        "Gated knowledge transfer works by one hidden line: its student is in evaluation mode",
        page="17_gkt_curves", front=True,
        number="Best retain accuracy on test images as published, less that of the same run in "
        "training mode",
        unit=" points", measure=transfer("gkt", "best", less=("gkt_training_mode", "best")),
        bound=20, side="above", digits=1,
    ),
    Finding(
        "collapse",
        "Run on, the published transfer learns the class that it was never shown",
        page="17_gkt_curves", front=True,
        number="Forget accuracy of the published transfer at its end",
        unit=" %", measure=transfer("gkt", "last forget"), bound=50, side="above", limits=PERCENT,
        digits=1,
    ),
    Finding(
        "attention_leaks",
        "More of the class comes back with the attention loss than without",
        page="19_leak",
        number="Forget accuracy with attention less that without, after as many pseudo-batches, not at "
        "equal retain accuracy",
        unit=" points",
        measure=transfer("gkt", "last forget", less=("gkt_no_attention", "last forget")),
        bound=10, side="above", digits=1,
    ),
    Finding(
        "prior",
        "A generator that is trained on the model beforehand makes gated transfer better",
        page="17_gkt_curves",
        number="Retain accuracy of GKT with prior less that of the same run without prior steps",
        unit=" points", measure=zero_shot_gap("gkt_prior", "gkt_prior_without_prior"),
        bound=0, side="above",
    ),
    Finding(
        "more_images",
        "More synthetic images make a better student",
        page="14_deep_inversion",
        number="Retain accuracy of DeepInversion with 6000 images a class less that with 100",
        unit=" points", measure=zero_shot_gap("deep_inversion_6000", "deep_inversion_100"),
        bound=0, side="above",
    ),
    Finding(
        "plain_noise",
        "Error-maximising noise as published takes the other classes along",
        page="16_comparison",
        number="Retain accuracy of M-M noise less that of the retrained model",
        unit=" points", measure=zero_shot_gap("mm_noise", "retrain"),
        bound=-20, side="below", digits=1,
    ),
    # a group, by influence
    Finding(
        "class_kept",
        "Forgetting most of a class's items is not forgetting the class",
        page="24_group_retrain", repeats="repeats",
        number="Accuracy on the largest group of one class, of the model retrained without it less "
        "that of the original",
        unit=" points", measure=kept(), bound=-10, side="above",
    ),
    Finding(
        "step_helps",
        "For a group of one class, an influence step is nearer to retraining than doing nothing",
        page="25_estimators", repeats="repeats",
        number="Distance to retraining in the loss of a coherent group after a first-order step, as "
        "a multiple of that before",
        measure=off("first_order", "none", "coherent"), bound=1, side="below", limits=RATIO,
    ),
    Finding(
        "step_short",
        "For a group of one class, an influence step goes less than half of the way to retraining",
        page="25_estimators", front=True, repeats="repeats",
        number="Share of retraining's change in the loss of a coherent group that one first-order "
        "step makes",
        unit=" %", measure=way("first_order", "coherent"), bound=50, side="below", digits=0,
    ),
    Finding(
        "newton_nearer",
        "The removed items' own curvature brings an influence step nearer to retraining",
        page="25_estimators", repeats="repeats",
        number="Distance to retraining in the loss of a coherent group after a Newton step, as a "
        "multiple of that after a first-order step",
        measure=off("newton", "first_order", "coherent"), bound=1, side="below", limits=RATIO,
    ),
    Finding(
        "order",
        "Near items first, then moderate and far: no different from random parts of the same sizes",
        page="26_steps", front=True, repeats="repeats",
        number="Loss of a coherent group forgotten near items first, less that in random parts of "
        "the same sizes",
        unit=" nats", measure=order("near-moderate-far", "coherent"),
        bound=0.003, side="within", digits=4,
    ),
    Finding(
        "cnn_tells_more",
        "Features of the CNN tell more about influences than those of the ViT",
        page="22_coherence",
        number="Rank correlation of likeness in features and in influences, CNN less ViT",
        measure=space_gap("similarity_correlation"), bound=0, side="above",
    ),
    Finding(
        "convex",
        "Where the theory's assumptions hold, influence ranks groups nearly perfectly",
        page="30_convex_control", repeats="originals",
        number="Rank correlation of Newton's and the exact change of loss, logistic regression",
        measure=convex("newton"), bound=0.9, side="above", limits=CORRELATION, digits=3,
    ),
    Finding(
        "attribution",
        "In a network, influence foretells little of what training without some items changes",
        page="32_attribution", repeats="original models averaged; the interval is over parts of the data and test images",
        number="Linear datamodelling score of Gauss-Newton influence",
        measure=attribution("newton"), bound=0.5, side="below", limits=CORRELATION,
    ),
    Finding(
        "selection",
        "Parameters chosen at random keep as much accuracy as those chosen by their outputs",
        page="28_selection", repeats="original models",
        number="Test accuracy with parameters of the largest outputs less that with random ones",
        unit=" points", measure=selected("top_outputs"), bound=0.2, side="within",
    ),
    # the arena
    Finding(
        "hidden",
        "What is hidden comes back: learnt again at least twice as fast as by a retrained model",
        page="43_inside", front=True,
        number="Mini-batches until masked distillation knows the class again, as a multiple of those "
        "that the retrained model needs",
        measure=arena_ratio("masked_distillation", "retrain", "relearn_time"),
        bound=0.5, side="below", limits=RATIO,
    ),
    Finding(
        "attacked",
        "An attacker with shadow models tells what accuracy does not",
        page="42_ensembles", front=True, repeats="models of each kind",
        number="How often U-LiRA tells masked distillation from retraining, 50 is guessing",
        unit=" %", measure=attacker("masked_distillation"), bound=75, side="above", limits=PERCENT,
        digits=0,
    ),
    Finding(
        "fresh",
        "A fresh student takes longer to learn the class again than a masked copy",
        page="43_inside",
        number="Mini-batches until a fresh student, which has lessons of its own number, knows the class "
        "again, as a multiple of those of the masked copy",
        measure=arena_ratio("masked_distillation_fresh", "masked_distillation", "relearn_time"),
        bound=1, side="above", limits=RATIO,
    ),
)  # fmt: skip


def read(folder: Path) -> dict[str, Found]:
    """Measure all findings that the tables of a profile can bear.

    Args:
        folder: of the tables; what lacks there, or has no rows of the methods that are compared, leaves
            its findings out.
    """
    read_once, found = tables(folder), {}
    for name, finding in FINDINGS.items():
        try:
            found[name] = Found(finding, finding.measure(read_once))
        except LookupError:  # an `Absent`, or a column that a former run did not write
            continue
    return found


def tables(folder: Path) -> Tables:
    """Give the tables of a folder by their names, each read when it is first asked for.

    Asking for one that is not there raises `Absent`.
    """
    return _Folder(folder)


class _Folder(dict):
    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder

    def __missing__(self, name: str) -> pd.DataFrame:
        file = self._folder / f"{name}.csv"
        if not file.is_file():
            raise Absent(f"no {file.name}")
        self[name] = pd.read_csv(file, comment="#")
        return self[name]
