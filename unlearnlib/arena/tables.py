"""Turn what the arena's runs left into its tidy table, and into tables of its ensembles."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from unlearnlib.arena.methods import Entrant
from unlearnlib.arena.plan import Plan, scored
from unlearnlib.arena.scores import SETS
from unlearnlib.data.requests import Request
from unlearnlib.measures import membership, statistics
from unlearnlib.measures.metrics import METRICS
from unlearnlib.pipeline import records
from unlearnlib.pipeline.records import Record

NOT_APPLICABLE = "not applicable"
SHADOWS = 4  # shadow models of a kind that the cheap attacker has
Margins = list[dict[str, dict[str, Tensor]]]  # of each original model, by method and set


def score_rows(plan: Plan, measured: Mapping[str, Record]) -> list[dict[str, Any]]:
    """List the scores of `scores.run`: request, method, seed, metric, value and reason.

    A score that does not apply has the value ``not applicable``, and a reason.

    Args:
        plan: the plan.
        measured: records by name of the task.
    """
    found = []
    for name, seed in plan.pairs():
        result = measured[scored(name, seed)].result
        inapt = inapplicable(plan.requests[name]) if seed in plan.seeds else {}
        for method, scores in result["scores"].items():
            head = {"request": name, "method": method, "seed": seed}
            reasons = inapt | result["reasons"][method]
            cells = {m: {"value": value, "reason": ""} for m, value in scores.items()}
            cells |= {m: {"value": NOT_APPLICABLE, "reason": why} for m, why in reasons.items()}
            found += [head | {"metric": m} | cells[m] for m in METRICS if m in cells]
    return found


def inapplicable(request: Request) -> dict[str, str]:
    """List the metrics of models that say nothing of a request, and why."""
    return {
        name: why
        for name, metric in METRICS.items()
        if metric.compute and (why := metric.cannot(request))
    }


def absent_rows(plan: Plan, entrants: Mapping[str, Entrant]) -> list[dict[str, Any]]:
    """List which method cannot serve which request, and why: rows with the metric ``all``."""
    return [
        {"request": name, "method": method, "seed": "all", "metric": "all"}
        | {"value": NOT_APPLICABLE, "reason": reason}
        for name, request in plan.requests.items()
        for method, entrant in entrants.items()
        if (reason := entrant.cannot(request))
    ]


def served(plan: Plan, entrants: Mapping[str, Entrant]) -> pd.DataFrame:
    """Say for each method (rows) and request (columns) ``serves`` or ``n/a``."""
    return pd.DataFrame(
        {
            name: {m: "n/a" if one.cannot(request) else "serves" for m, one in entrants.items()}
            for name, request in plan.requests.items()
        }
    )


def costs(plan: Plan, entrants: Mapping[str, Entrant], found: Mapping[str, Record]) -> pd.DataFrame:
    """Collect the seconds of each unlearning and training, for the plan's seeds.

    Args:
        plan: the plan.
        entrants: all methods.
        found: records of all unlearning runs, by name of the task.

    Returns:
        columns ``request``, ``method``, ``seed``, ``seconds`` (one thread) and ``cost``, the
        seconds as a multiple of those of retraining for the same request and seed.
    """
    rows = []
    for name, seed in plan.pairs():
        if seed not in plan.seeds:
            continue
        paths, files = plan.references(name, seed), plan.unlearned(entrants, name, seed)
        seconds = {m: records.seconds(path) for m, path in paths.items() if m != "original"}
        seconds |= {m: one.seconds(found[one.file.stem]) for m, one in files.items()}
        rows += [
            {"request": name, "method": method, "seed": seed, "seconds": value}
            | {"cost": value / seconds["retrain"]}
            for method, value in seconds.items()
        ]
    return pd.DataFrame(rows)


def arena(
    plan: Plan,
    entrants: Mapping[str, Entrant],
    *,
    measured: Mapping[str, Record],
    costs: pd.DataFrame,
) -> pd.DataFrame:
    """Put the arena's table together: a row a request, method, seed and metric.

    Args:
        plan: the plan.
        entrants: all methods.
        measured: records of `scores.run`, by name of the task.
        costs: of `costs`.
    """
    long = costs.melt(["request", "method", "seed"], ["seconds", "cost"], "metric", "value")
    distributions = [
        row
        for name in plan.ensembles
        for row in distribution_rows(
            name, [measured[scored(name, s)].result["margins"] for s in plan.repeats(name)]
        )
    ]
    parts = [pd.DataFrame(score_rows(plan, measured)), long.assign(reason="")]
    parts += [pd.DataFrame(rows) for rows in (distributions, absent_rows(plan, entrants))]
    return pd.concat(parts, ignore_index=True)


# --------------------------------------------------------------------------------- ensembles


def ensembles(margins: Margins, method: str, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Stack the margins of a method, and those of gold, on a set.

    Args:
        margins: of the models of one request.
        method: whose models.
        name: of the set, ``forgotten`` or ``test``.

    Returns:
        two matrices ``[models, items]``.
    """
    mine, theirs = (
        np.stack([m[key][name].float().numpy() for m in margins if key in m])
        for key in (method, "retrain")
    )
    return mine, theirs


def members(margins: Margins) -> list[str]:
    """List the methods that served a whole ensemble, without the gold models themselves."""
    first, *others = margins
    return [m for m in first if m != "retrain" and all(m in other for other in others)]


def compare(unlearned: np.ndarray, retrained: np.ndarray) -> dict[str, float]:
    """Compare two ensembles of margins ``[models, items]``.

    Returns:
        ``klom``, the mean over items, and ``klom95``, the 95th percentile, in nats; and, with four
        models or more of a kind, ``ulira`` in percent with its 95 % limits over models,
        ``ulira_low`` and ``ulira_high``, and ``shadow``, of the attack with few shadow models.
    """
    values = membership.klom(unlearned, retrained)
    found = {"klom": float(values.mean()), "klom95": float(np.quantile(values, 0.95))}
    folds = min(4, len(unlearned) // 2, len(retrained) // 2)
    if folds > 1:
        told = statistics.mean_interval(
            membership.ulira(unlearned, retrained, folds=folds).tolist()
        )
        found |= dict(zip(("ulira", "ulira_low", "ulira_high"), told, strict=True))
        found["shadow"] = cheap_attack(unlearned, retrained)
    return found


def cheap_attack(unlearned: np.ndarray, retrained: np.ndarray) -> float:
    """Compute the mean accuracy in percent of an attacker with at most `SHADOWS` models of a kind."""
    least = min(len(unlearned), len(retrained))
    folds = min(4, least // 2)
    shadows = min(SHADOWS, least - math.ceil(least / folds))
    attack = membership.shadow_attack(unlearned, retrained, shadows=shadows, folds=folds)
    return float(attack.mean())


def distribution_rows(request: str, margins: Margins) -> Iterator[dict[str, Any]]:
    """Yield the rows of KLoM and U-LiRA of one request, with the seed ``all``."""
    for method in members(margins):
        head = {"request": request, "method": method, "seed": "all"}
        for name, short in SETS.items():
            found = compare(*ensembles(margins, method, name))
            for metric in ("klom", "klom95", "ulira", "shadow"):
                if metric in found:
                    row = {"metric": f"{metric}_{short}", "value": found[metric], "reason": ""}
                    yield head | row


def growth(margins: Mapping[str, Margins], counts: Sequence[int]) -> pd.DataFrame:
    """Compare ensembles of the first 2, 4, ... models, to show what their number does.

    Args:
        margins: of the models, by request.
        counts: numbers of models; those above what there is are left out.

    Returns:
        a row for each ``request``, ``method``, ``set`` and number of ``models``: the keys of `compare`.
    """
    rows = []
    for request, some in margins.items():
        for method in members(some):
            for name in SETS:
                pair = ensembles(some, method, name)
                for count in [count for count in counts if count <= min(map(len, pair))]:
                    head = {"request": request, "method": method, "set": name, "models": count}
                    rows.append(head | compare(*(part[:count] for part in pair)))
    return pd.DataFrame(rows)
