"""Judge the arena's methods: equivalence with gold, distances, the best trade-offs, advice."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from statsmodels.stats.multitest import multipletests

from unlearnlib.arena.decoys import DECOYS
from unlearnlib.arena.methods import LUCK
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
        """All methods and the further gold models, without original, gold and decoys."""
        found = dict.fromkeys(self.numbers["method"])
        return [method for method in found if method not in (*REFERENCES, *DECOYS)]

    @property
    def by_class(self) -> list[str]:
        """The requests that name classes: those to which a probe applies."""
        applies = self.numbers[(self.numbers["metric"] == "probe") & self.numbers["value"].notna()]
        return [request for request in self.requests if request in set(applies["request"])]

    def serving(self, request: str) -> list[str]:
        """List those of `methods` that serve a request."""
        return [method for method in self.methods if (request, method) not in self.absent]

    def seeds(self, request: str) -> set[str]:
        """The original models on which every method was measured, and not ensembles alone."""
        own = (self.numbers["request"] == request) & (self.numbers["metric"] == "cost")
        return set(self.numbers.loc[own, "seed"])

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
        itself is not within the margin), ``formal`` (every difference is the same, so that there is
        no deviation to test with), ``smallest_margin`` (that the test would have passed with, were
        it the only one) and ``equivalent``.
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
                row |= {"formal": found.low == found.high}
                row |= {"smallest_margin": max(abs(found.low), abs(found.high))}
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


def columns(results: Results, request: str) -> list[Metric]:
    """List the metrics of single models that were measured for a request, as distances to gold."""
    measured = set(results.numbers.loc[results.numbers["request"] == request, "metric"])
    return [m for n, m in METRICS.items() if (m.ranked or m.screened) and n in measured]


def table(
    results: Results, request: str, *, counted: list[str]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Average each method's distances to gold over the original models of a request.

    Args:
        results: of the arena.
        request: its name.
        counted: names of the metrics that rank.

    Returns:
        means, a row a method, from the least to the largest mean rank in `places`, those without a
        place last, and a column a metric of `columns`, then the cost; and the same as text, with
        half the 95 % interval.
    """
    means: dict[str, dict[str, float]] = {}
    cells: dict[str, dict[str, str]] = {}
    ranked = places(results, request, counted=counted).mean().sort_values().index
    for method in [*ranked, *(m for m in results.serving(request) if m not in ranked)]:
        means[method], cells[method] = {}, {}
        for metric in [*columns(results, request), METRICS["cost"]]:
            values = results.distance(request, method, metric)
            values = values[values.index.isin(results.seeds(request))]
            means[method][metric.name] = values.mean()
            cells[method][metric.name] = statistics.written(values, digits=metric.digits)
    return pd.DataFrame(means).T, pd.DataFrame(cells).T


def places(results: Results, request: str, *, counted: list[str]) -> pd.DataFrame:
    """Rank the methods of a request on each original model, by the mean over metrics.

    Original models are independent of each other, as requests are not, so that a seed is a block.

    Args:
        results: of the arena.
        request: its name.
        counted: names of the metrics that rank, each with the same weight.

    Returns:
        a row a seed, a column a method that has all of the metrics on all seeds: mean rank, 1 the
        nearest to gold.

    Raises:
        ValueError: no metric that ranks.
    """
    if not counted:
        raise ValueError(f"no metric ranks the methods of {request}; give at least one")
    seeds = sorted(results.seeds(request))
    served, frames = results.serving(request), []
    for name in counted:
        distances = {m: results.distance(request, m, METRICS[name]) for m in served}
        frames.append(pd.DataFrame({m: d.reindex(seeds) for m, d in distances.items()}))
    whole = [m for m in served if not any(frame[m].isna().any() for frame in frames)]
    return sum(frame[whole].rank(axis=1) for frame in frames) / len(frames)


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
    seeds = results.seeds(request)
    both = sum(parts, pd.Series(0.0, index=sorted(seeds)))
    return both[both.index.isin(seeds)].dropna()


def _nats(values: pd.Series) -> str:
    """Write a mean over seeds with half its interval, and n."""
    return f"{statistics.written(values, digits=3)} nats, n = {len(values)}"


def advice(results: Results, tests: pd.DataFrame, known: pd.DataFrame) -> dict[str, list[str]]:
    """Say in words which method is nearest to gold, for each request and family of methods.

    Args:
        results: of the arena.
        tests: of `equivalences`.
        known: title and family of each method, see `methods.known`.

    Returns:
        by request, sentences in markdown: one a family that serves it, after one on what there is to
        gain.
    """
    methods = known[
        known.index.isin(results.methods) & ~known["family"].isin(["reference", "decoy"])
    ]
    found = {}
    for request in results.requests:
        nothing, luck = (divergences(results, request, m) for m in ("original", LUCK))
        within = nothing.mean() <= luck.mean()
        end = ": what there is to gain is within what golds differ by" if within else ""
        lines = [f"Doing nothing is {_nats(nothing)} from gold, a second gold {_nats(luck)}{end}."]
        for family, own in methods.groupby("family", sort=False):
            served = [m for m in own.index if (request, m) not in results.absent]
            if served:
                far = {m: divergences(results, request, m) for m in served}
                name = min(served, key=lambda m, far=far: far[m].mean())
                lines.append(
                    f"**{family.capitalize()}:** {known.loc[name, 'title']}, {_nats(far[name])} from "
                    f"gold, {_nearer(far[name], nothing)}; {_price(results, tests, request, name)}"
                    f"{_relearned(results, request, name)}."
                )
        found[request] = lines
    return found


def _nearer(values: pd.Series, nothing: pd.Series) -> str:
    """Say whether a method is shown to be nearer to gold than the original, paired by seed."""
    _, low, high = statistics.mean_interval((values - nothing).dropna().to_list())
    if high < 0:
        return "nearer than doing nothing"
    return (
        "where doing nothing is nearer still"
        if low > 0
        else ("not shown to be nearer than doing nothing")
    )


def _price(results: Results, tests: pd.DataFrame, request: str, method: str) -> str:
    """Say what a method costs, and which margins it is shown to meet."""
    own = tests[(tests["method"] == method) & (tests["request"] == request)]
    met = [METRICS[score].title for score in own.loc[own["equivalent"], "score"]]
    cost = results.repeats(request, method, "cost").mean()
    return f"{cost:.2f} retrainings; margins shown to be met: {' and '.join(met) or 'none'}"


def _relearned(results: Results, request: str, method: str) -> str:
    """Say how fast the items are learned again, in the mean over seeds."""
    pair = [results.repeats(request, m, "relearn_time").mean() for m in (method, "retrain")]
    if any(map(math.isnan, pair)):
        return ""
    return f"; learned again after {pair[0]:.0f} mini-batches, gold {pair[1]:.0f}"
