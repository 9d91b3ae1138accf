"""Judge the arena's methods: equivalence with gold, distances, the best trade-offs, advice."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from statsmodels.stats.multitest import multipletests

from unlearnlib.arena.methods import LUCK, YARDSTICKS
from unlearnlib.measures import equivalence, statistics
from unlearnlib.measures.metrics import METRICS, Metric

REFERENCES = ("original", "retrain")


@dataclass(frozen=True, eq=False)
class Results:
    """Hold the arena's table, read for judging.

    Attributes:
        numbers: the table, ``value`` as a number, NaN where it does not apply.
        absent: pairs of request and method that do not go together.
    """

    numbers: pd.DataFrame
    absent: set[tuple[str, str]]

    @property
    def requests(self) -> list[str]:
        """All requests, in their order."""
        return list(dict.fromkeys(self.numbers["request"]))

    @property
    def methods(self) -> list[str]:
        """All methods and the further gold models, without original and gold."""
        found = dict.fromkeys(self.numbers["method"])
        return [method for method in found if method not in REFERENCES]

    @property
    def by_class(self) -> list[str]:
        """The requests that name classes: those to which a probe applies."""
        applies = self.numbers[(self.numbers["metric"] == "probe") & self.numbers["value"].notna()]
        return [request for request in self.requests if request in set(applies["request"])]

    @property
    def seeds(self) -> set[str]:
        """The original models on which every method was measured, and not ensembles alone."""
        return set(self.numbers.loc[self.numbers["metric"] == "cost", "seed"])

    def repeats(self, request: str, method: str, metric: str) -> pd.Series:
        """Return the values of a metric by seed, without those that do not apply."""
        keys = self.numbers[["request", "method", "metric"]] == [request, method, metric]
        return self.numbers[keys.all(axis=1)].set_index("seed")["value"].dropna()

    def distance(self, request: str, method: str, metric: Metric) -> pd.Series:
        """Return how far from gold a method is by a metric, by seed."""
        values, gold = (self.repeats(request, m, metric.name) for m in (method, "retrain"))
        return metric.distances(values, gold).dropna()


def read(path: Path) -> Results:
    """Read the arena's table.

    Raises:
        ValueError: a value that is neither a number nor ``not applicable`` with a reason.
    """
    table = pd.read_csv(path, dtype={"seed": str, "value": str}, keep_default_na=False)
    apart = table["value"] == "not applicable"
    numbers = table.assign(value=pd.to_numeric(table["value"].mask(apart), errors="coerce"))
    broken = (numbers["value"].isna() & ~apart) | (apart & (table["reason"] == ""))
    if broken.any():
        raise ValueError(
            f"{path}: {int(broken.sum())} values are neither numbers nor 'not applicable' with a "
            f"reason, the first in line {broken.idxmax() + 2}"
        )
    whole = table[apart & (table["metric"] == "all")]
    absent = set(zip(whole["request"], whole["method"], strict=True))
    return Results(numbers[numbers["metric"] != "all"], absent)


def signals(results: Results) -> pd.DataFrame:
    """Compare how far the original is from gold with how far other golds are, for each measure.

    Returns:
        a row a screened metric, a column a request: the mean distance over seeds from the original
        to gold, as a multiple of that of the farther of the two other golds; at most 1 where the
        original is not the farther one for every seed, NaN where the metric does not apply.
    """
    screened = [name for name, metric in METRICS.items() if metric.screened]
    numbers = results.numbers[results.numbers["metric"].isin(screened)]
    keys = ["request", "metric", "seed"]
    wide = numbers.pivot_table(index=keys, columns="method", values="value")
    apart = wide.sub(wide["retrain"], axis=0).abs()
    apart["luck"] = apart[YARDSTICKS].max(axis=1)
    means = apart.groupby(["request", "metric"])[["original", "luck"]].mean()
    ratios = means["original"] / means["luck"].clip(lower=1e-9)
    always = (apart["original"] > apart["luck"]).groupby(["request", "metric"]).all()
    found = ratios.where(always | ratios.isna(), ratios.clip(upper=1)).unstack("request")
    return found.reindex(screened)


# ------------------------------------------------------------------------------- equivalence


def equivalences(
    results: Results, margins: dict[str, float], *, level: float, wanted: float
) -> pd.DataFrame:
    """Test every method on every request for equivalence with gold, paired by seed.

    Args:
        results: of the arena.
        margins: by metric (a gap to gold), the difference that does not matter.
        level: of the tests, after Holm's correction over all of them.
        wanted: power for which ``seeds_needed`` is computed, at the observed mean and deviation.

    Returns:
        a row for each request, method and score: ``mean``, ``low`` and ``high`` (the interval that
        the test reads), ``p``, ``p_holm``, ``seeds``, ``seeds_needed`` (at the level of the
        strictest of Holm's steps, so that the correction cannot undo it), ``beyond`` (the mean
        itself is not within the margin) and ``equivalent``.
    """
    rows: list[dict[str, Any]] = []
    for request in results.requests:
        for method in ["original", *results.methods]:
            for metric, margin in margins.items():
                values = results.repeats(request, method, metric)
                if len(values) < 2:
                    continue
                found = equivalence.equivalence(values, margin=margin, alpha=level)
                row = {"request": request, "method": method, "score": metric, "mean": found.mean}
                row |= {"low": found.low, "high": found.high, "p": found.p, "seeds": found.n}
                row |= {"beyond": abs(found.mean) >= margin, "deviation": float(values.std())}
                rows.append(row)
    table = pd.DataFrame(rows)
    table["p_holm"] = multipletests(table["p"], method="holm")[1]
    table["seeds_needed"] = [
        equivalence.seeds_needed(
            row["deviation"], margin=margins[row["score"]], mean=row["mean"], wanted=wanted,
            alpha=level / len(rows),
        )
        for row in rows
    ]  # fmt: skip
    table = table.drop(columns="deviation")
    return table.assign(equivalent=table["p_holm"] < level)


def margins_met(results: Results, tests: pd.DataFrame) -> pd.DataFrame:
    """Say for each method and request which margins are met: text, ``n/a`` where none applies."""
    methods = ["original", *results.methods]
    cells = pd.DataFrame("n/a", index=methods, columns=results.requests)
    for (method, request), part in tests.groupby(["method", "request"]):
        met = part["equivalent"].sum()
        cells.loc[method, request] = (
            "both" if met == len(part) else part.loc[part["equivalent"], "score"].max()
            if met else "neither"
        ).removesuffix("_gap")  # fmt: skip
    return cells


# ------------------------------------------------------------------------------------- league


def columns() -> list[Metric]:
    """List what the league has columns for: the ranked metrics, and the cost."""
    return [*(metric for metric in METRICS.values() if metric.ranked), METRICS["cost"]]


def table(results: Results) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Average each method's distances to gold over the class requests that it serves.

    Returns:
        means, a row a method (from least to largest mean rank over the distances, cost aside) and a
        column a metric of `columns`; and the same as text, with half the 95 % interval over requests
        and seeds.
    """
    means: dict[str, dict[str, float]] = {}
    cells: dict[str, dict[str, str]] = {}
    for method in results.methods:
        means[method], cells[method] = {}, {}
        for metric in columns():
            values = pd.concat(
                [results.distance(request, method, metric) for request in results.by_class]
            )
            values = values[values.index.isin(results.seeds)]  # no request weighs more
            means[method][metric.name] = values.mean()
            cells[method][metric.name] = statistics.written(values, digits=metric.digits)
    numbers = pd.DataFrame(means).T
    order = numbers.drop(columns="cost").rank().mean(axis=1).sort_values().index
    return numbers.loc[order], pd.DataFrame(cells).T.loc[order]


def front(cost: pd.Series, quality: pd.Series) -> list[str]:
    """List what no other beats in both, cheapest first: smaller is better."""
    order = pd.DataFrame({"cost": cost, "quality": quality}).sort_values(["cost", "quality"])
    best, found = math.inf, []
    for name, row in order.iterrows():
        if row["quality"] < best:
            best, found = row["quality"], [*found, str(name)]
    return found


def divergences(results: Results, request: str, method: str) -> pd.Series:
    """Compute the divergence from gold on forgotten and retained images together, by seed."""
    parts = (results.repeats(request, method, f"js_{name}") for name in ("forget", "retain"))
    both = sum(parts, pd.Series(0.0, index=sorted(results.seeds)))
    return both[both.index.isin(results.seeds)].dropna()


def blocks(results: Results) -> pd.DataFrame:
    """Average the divergence from gold over seeds: a row a class request, a column a method.

    Methods that do not serve all class requests have no column: a block is complete.
    """
    rows = {
        request: {m: divergences(results, request, m).mean() for m in results.methods}
        for request in results.by_class
    }
    return pd.DataFrame.from_dict(rows, orient="index").dropna(axis="columns")


def _nats(values: pd.Series) -> str:
    """Write a mean over seeds with half its interval, and n."""
    return f"{statistics.written(values, digits=3)} nats, n = {len(values)}"


def advice(results: Results, tests: pd.DataFrame, known: pd.DataFrame) -> list[str]:
    """Say in words which method is nearest to gold in each case.

    Args:
        results: of the arena.
        tests: of `equivalences`.
        known: title and family of each method, see `methods.known`.

    Returns:
        sentences in markdown, one for each family (class requests) and each group request.
    """
    quality = {  # seeds share their originals between requests: n is the number of seeds
        method: sum(divergences(results, r, method) for r in results.by_class)
        / len(results.by_class)
        for method in results.methods
    }
    methods = known[known.index.isin(results.methods) & (known["family"] != "reference")]
    lines = []
    for family, own in methods.groupby("family", sort=False):
        name = min(own.index, key=lambda method: quality[method].mean())
        lines.append(
            f"**To forget classes, {family}:** {known.loc[name, 'title']}, {_nats(quality[name])} from "
            f"gold (two golds: {_nats(quality[LUCK])}), {_price(results, tests, name)}"
            f"{_relearned(results, name)}."
        )
    titles = known["title"].to_dict()
    by_item = [r for r in results.requests if r not in results.by_class]
    return lines + [_group_advice(results, request, titles) for request in by_item]


def _price(results: Results, tests: pd.DataFrame, method: str) -> str:
    """Say what a method costs, and where both margins are met, over class requests."""
    both = tests[(tests["method"] == method) & tests["request"].isin(results.by_class)]
    met = both.groupby("request")["equivalent"].all()
    costs = [results.repeats(r, method, "cost").mean() for r in results.by_class]
    return (
        f"at {min(costs):.2f} to {max(costs):.2f} times the cost of retraining; both margins are "
        f"shown to be met for {int(met.sum())} of {len(met)} requests"
    )


def _relearned(results: Results, method: str) -> str:
    """Say how fast the classes are learned again, in the mean over class requests and seeds."""
    pair = [
        pd.concat([results.repeats(r, m, "relearn_time") for r in results.by_class]).mean()
        for m in (method, "retrain")
    ]
    if any(map(math.isnan, pair)):
        return ""
    return f"; learned again after {pair[0]:.0f} mini-batches, gold {pair[1]:.0f}"


def _group_advice(results: Results, request: str, titles: dict[str, str]) -> str:
    served = [
        m for m in results.methods if m not in YARDSTICKS and (request, m) not in results.absent
    ]
    found = {method: divergences(results, request, method) for method in served}
    name = min(found, key=lambda method: found[method].mean())
    nothing, luck = (divergences(results, request, m) for m in ("original", LUCK))
    _, low, high = statistics.mean_interval((found[name] - nothing).to_list())
    verdict = (
        "it is nearer than doing nothing"
        if high < 0
        else "doing nothing is nearer still"
        if low > 0
        else "not shown to be nearer than doing nothing"
    )
    within = nothing.mean() <= luck.mean()
    end = ", so that what there is to gain is within what golds differ by" if within else ""
    return (
        f"**To forget the group {request}:** the original is {_nats(nothing)} from gold, a "
        f"second gold {_nats(luck)}{end}. The nearest method is {titles[name]} with "
        f"{_nats(found[name])}: "
        f"{verdict}."
    )
