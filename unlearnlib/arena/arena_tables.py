"""Turn what the arena's runs left into its tidy table, and into tables of its ensembles."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from unlearnlib.arena import arena
from unlearnlib.arena.arena_specs import Plan
from unlearnlib.measures import membership, statistics
from unlearnlib.models import models

Records = list[dict[str, Any]]
NOT_APPLICABLE = "not applicable"
SETS = {"forgotten": "forget", "test": "retain"}  # of margins, and the ending of their metrics
REASONS = {
    "forget_test_accuracy": "the classes of a group stay, so that their test images should too",
    "probe": "the classes of a group stay, so that features should tell them apart",
    "ain": "the retrained model knows the items without a step",
}
CENSORED = "the retrained model did not learn the items within the mini-batches allowed"


def score_rows(records: Records) -> list[dict[str, Any]]:
    """List the scores of `scores.run`: request, method, seed, metric, value and reason.

    A score that does not apply has the value ``not applicable``, and a reason.
    """
    found = []
    for record in records:
        spec = record["spec"]
        for method, scores in record["result"]["scores"].items():
            head = {"request": spec["request"]["name"], "method": method, "seed": spec["seed"]}
            known = {k: cell(k, v) for k, v in scores.items()}
            if "ain" in scores and _censored(record):
                known["ain"] = {"value": NOT_APPLICABLE, "reason": CENSORED}
            found += [head | {"metric": metric} | value for metric, value in known.items()]
    return found


def _censored(record: dict[str, Any]) -> bool:
    """Say whether gold was still learning the items when relearning was given up."""
    gold = record["result"]["scores"]["retrain"]["relearn_time"]
    return gold >= record["spec"]["relearning"]["steps"]


def cell(metric: str, value: float) -> dict[str, Any]:
    """Give a score as value and, where it does not apply (NaN), the reason."""
    if not math.isnan(value):
        return {"value": value, "reason": ""}
    reason = REASONS.get(metric, "the model's answers do not vary")
    return {"value": NOT_APPLICABLE, "reason": reason}


def absent_rows(requests: list[arena.Request], families: dict[str, str]) -> list[dict[str, Any]]:
    """List which method cannot serve which request, and why: rows with the metric ``all``.

    Args:
        requests: of the arena.
        families: of each method, a name in `arena.FAMILIES`.
    """
    return [
        {"request": request["name"], "method": method, "seed": "all", "metric": "all"}
        | {"value": NOT_APPLICABLE, "reason": reason}
        for request in requests
        for method, family in families.items()
        if (reason := arena.not_applicable(family, method, request))
    ]


def costs(plan: Plan, records: Records) -> pd.DataFrame:
    """Collect the seconds of each unlearning and training, for the plan's seeds.

    Args:
        plan: the plan.
        records: of all unlearning runs.

    Returns:
        columns ``request``, ``method``, ``seed``, ``seconds`` (one thread) and ``cost``, the
        seconds as a multiple of those of retraining for the same request and seed.
    """
    rows = [
        {"request": request, "method": method, "seed": record["spec"]["seed"], "seconds": seconds}
        for record in records
        for request, methods in record["result"]["seconds"].items()
        for method, seconds in methods.items()
    ]
    rows += [
        {"request": request["name"], "method": method, "seed": seed}
        | {"seconds": models.load_record(path)["seconds"]}
        for request, seed in plan.pairs()
        for method, path in plan.references(request, seed).items()
    ]
    table = pd.DataFrame(rows)
    table = table[table["seed"].isin(plan.seeds) & (table["method"] != "original")]
    gold = table[table["method"] == "retrain"].set_index(["request", "seed"])["seconds"]
    keys = pd.MultiIndex.from_frame(table[["request", "seed"]])
    return table.assign(cost=table["seconds"] / gold.reindex(keys).to_numpy())


# --------------------------------------------------------------------------------- ensembles


def ensembles(
    records: Records, method: str, name: str, reference: str = "retrain"
) -> tuple[np.ndarray, np.ndarray]:
    """Stack the margins of a method and of a reference on a set.

    Args:
        records: of `scores.run`, all of one request.
        method: whose models.
        name: of the set, ``forgotten`` or ``test``.
        reference: the models to compare with.

    Returns:
        two matrices ``[models, items]``.
    """
    margins = [record["result"]["margins"] for record in records]
    mine, theirs = (
        np.stack([m[key][name].float().numpy() for m in margins if key in m])
        for key in (method, reference)
    )
    return mine, theirs


def members(records: Records) -> list[str]:
    """List the methods that served a whole ensemble, without the gold models themselves."""
    every = (record["result"]["margins"].keys() for record in records)
    first, *others = every
    return [m for m in first if m != "retrain" and all(m in other for other in others)]


def compare(unlearned: np.ndarray, retrained: np.ndarray) -> dict[str, float]:
    """Compare two ensembles of margins ``[models, items]``.

    Returns:
        ``klom``, the mean over items, and ``klom95``, the 95th percentile, in nats; and, with four
        models or more of a kind, ``ulira`` in percent with its 95 % limits over models,
        ``ulira_low`` and ``ulira_high``.
    """
    values = membership.klom(unlearned, retrained)
    found = {"klom": float(values.mean()), "klom95": float(np.quantile(values, 0.95))}
    folds = min(4, len(unlearned) // 2, len(retrained) // 2)
    if folds > 1:
        told = statistics.mean_interval(
            membership.ulira(unlearned, retrained, folds=folds).tolist()
        )
        found |= dict(zip(("ulira", "ulira_low", "ulira_high"), told, strict=True))
    return found


def distribution_rows(records: Records) -> Iterator[dict[str, Any]]:
    """Yield the rows of KLoM and U-LiRA of one request, with the seed ``all``."""
    request = records[0]["spec"]["request"]["name"]
    for method in members(records):
        head = {"request": request, "method": method, "seed": "all"}
        for name, short in SETS.items():
            found = compare(*ensembles(records, method, name))
            for metric in ("klom", "klom95", "ulira"):
                if metric in found:
                    row = {"metric": f"{metric}_{short}", "value": found[metric], "reason": ""}
                    yield head | row


def growth(records: Records, counts: list[int]) -> pd.DataFrame:
    """Compare ensembles of the first 2, 4, ... models, to show what their number does.

    Args:
        records: of one request.
        counts: numbers of models; those above what there is are left out.

    Returns:
        a row for each method, ``set`` and number of ``models``: the keys of `compare`.
    """
    rows = []
    for method in members(records):
        for name in SETS:
            pair = ensembles(records, method, name)
            for count in [count for count in counts if count <= min(map(len, pair))]:
                found = compare(*(part[:count] for part in pair))
                rows.append({"method": method, "set": name, "models": count} | found)
    return pd.DataFrame(rows)
