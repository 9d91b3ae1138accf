"""Which of the arena's measures can tell a model that is not gold from one that is.

The null is a second gold, with other first weights and another order of the images. Alternatives are
the original, the decoys on its way to gold, and methods that are known to cheat. A measure of one
model is asked model by model, see `detection.detection`; a measure of ensembles draw by draw, see
`detection.power_of_ensembles`.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from unlearnlib.arena.league import Results
from unlearnlib.arena.methods import LUCK
from unlearnlib.arena.scores import SETS
from unlearnlib.arena.tables import Margins, cheap_attack, ensembles, members
from unlearnlib.measures import detection, membership
from unlearnlib.measures.detection import Compare
from unlearnlib.measures.metrics import METRICS

# measures of ensembles, and from how many models of a kind on they have a value
OF_ENSEMBLES: dict[str, tuple[Compare, int]] = {
    "klom": (lambda a, gold: float(membership.klom(a, gold).mean()), 2),
    "klom95": (lambda a, gold: float(np.quantile(membership.klom(a, gold), 0.95)), 2),
    "ulira": (lambda a, gold: _beyond_guessing(a, gold), 4),
    "shadow": (lambda a, gold: abs(cheap_attack(a, gold) - 50), 4),
}


def _beyond_guessing(one: np.ndarray, gold: np.ndarray) -> float:
    """Compute how far the attacker of U-LiRA is from a guess, in points."""
    folds = min(4, len(one) // 2, len(gold) // 2)
    return abs(float(membership.ulira(one, gold, folds=folds).mean()) - 50)


def of_models(
    results: Results, alternatives: Sequence[str], *, level: float, wanted: float
) -> pd.DataFrame:
    """Ask every screened measure of single models to tell alternatives from gold.

    Args:
        results: of the arena.
        alternatives: names of models.
        level: of the one-sided test.
        wanted: power.

    Returns:
        a row for each ``request``, ``metric`` and ``alternative`` that it applies to: what
        `detection.Detection` holds.
    """
    rows = []
    for request in results.requests:
        for name, metric in METRICS.items():
            null = results.distance(request, LUCK, metric) if metric.screened else []
            for alternative in alternatives:
                others = results.distance(request, alternative, metric)
                if min(len(null), len(others)) < 2:
                    continue
                found = detection.detection(null, others, level=level, power=wanted)
                head = {"request": request, "metric": name, "alternative": alternative}
                rows.append(head | vars(found))
    return pd.DataFrame(rows)


def of_ensembles(
    margins: Mapping[str, Margins],
    alternatives: Sequence[str],
    *,
    counts: Sequence[int],
    draws: int,
    level: float,
) -> pd.DataFrame:
    """Ask the measures of ensembles to tell alternatives from gold, by the number of models.

    Args:
        margins: of the models of each request.
        alternatives: names of models; those without a whole ensemble are left out.
        counts: models of a kind; those above half of what there is are left out, since draws would
            hardly differ.
        draws: comparisons a count.
        level: share of the null that may be called an alternative.

    Returns:
        a row for each ``request``, ``metric`` (``klom_forget``, ...), ``alternative`` and number of
        models: what `detection.Power` holds.
    """
    rows = []
    for request, some in margins.items():
        for alternative in [name for name in alternatives if name in members(some)]:
            for part, ending in SETS.items():
                other, gold = ensembles(some, alternative, part)
                second, _ = ensembles(some, LUCK, part)
                for name, (compare, least) in OF_ENSEMBLES.items():
                    for count in [n for n in counts if least <= n <= len(gold) // 2]:
                        found = detection.power_of_ensembles(
                            gold, second, other, compare=compare, models=count, draws=draws,
                            level=level,
                        )  # fmt: skip
                        head = {"request": request, "metric": f"{name}_{ending}"}
                        rows.append(head | {"alternative": alternative} | vars(found))
    return pd.DataFrame(
        rows, columns=["request", "metric", "alternative", "models", "auc", "power"]
    )


def needed(single: pd.DataFrame, many: pd.DataFrame, *, wanted: float) -> pd.DataFrame:
    """Join both kinds: how many models a measure needs for the wanted power.

    Args:
        single: of `of_models`.
        many: of `of_ensembles`.
        wanted: power.

    Returns:
        a row for each ``request``, ``metric`` and ``alternative``: ``auc`` (of ensembles: with all
        models), ``models`` needed, infinite where no number will do or none that was tried did, and
        ``n``, how many there were.
    """
    keys = ["request", "metric", "alternative"]
    rows = [single[[*keys, "auc", "models", "n"]]]
    for key, cell in many.groupby(keys, sort=False):
        enough = cell.loc[cell["power"] >= wanted, "models"]
        last = cell.loc[cell["models"].idxmax()]
        found = {"auc": last["auc"], "models": enough.min() if len(enough) else np.inf}
        found |= {"n": last["models"]}
        rows.append(pd.DataFrame([dict(zip(keys, key, strict=True)) | found]))
    return pd.concat(rows, ignore_index=True)


def counting(table: pd.DataFrame, request: str, *, alternative: str) -> list[str]:
    """List the measures with power on a request: those that need no more models than there were.

    Args:
        table: of `needed`.
        request: its name.
        alternative: what they are to tell from gold.
    """
    own = table[(table["request"] == request) & (table["alternative"] == alternative)]
    return own.loc[own["models"] <= own["n"], "metric"].to_list()
