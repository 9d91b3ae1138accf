"""What the curves of transfers on test data say: how fast, how far, when they collapse, who differs.

Curves are tables with a row a snapshot: ``method``, ``seed``, ``forget_classes``, ``pseudo_batch``,
``retain_accuracy`` and ``forget_accuracy`` in percent. The transfers never saw them.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from scipy.stats import ttest_1samp
from statsmodels.stats.multitest import multipletests
from torch import Tensor

from unlearnlib.data.requests import Classes
from unlearnlib.measures import accuracy, statistics

FORGOTTEN = 1.0  # percent; a student with at most so much forget accuracy has forgotten
COLLAPSED = 50.0  # percent; with more, the forgotten class is back
LEVELS = (50, 90, 97)  # percent of retain accuracy


def reach(curve: pd.DataFrame, percent: float, *, value: str = "retain_accuracy") -> float:
    """Find the pseudo-batch of the first snapshot that reaches an accuracy, NaN if none does."""
    return curve.loc[curve[value] >= percent, "pseudo_batch"].min()


def of_run(curve: pd.DataFrame) -> pd.Series:
    """Summarise one run's curve.

    Returns:
        ``to 50 %``, ``to 90 %`` and ``to 97 %`` of retain accuracy, and ``collapse``, in
        pseudo-batches, NaN where never; ``best``, the highest retain accuracy of a snapshot that has
        forgotten, which takes test data to find; ``best at``, its pseudo-batch; and the accuracies at
        the end, ``last retain`` and ``last forget``.
    """
    forgetting = curve[curve["forget_accuracy"] <= FORGOTTEN]
    best = forgetting["retain_accuracy"].idxmax() if len(forgetting) else None
    last = curve.loc[curve["pseudo_batch"].idxmax()]
    return pd.Series(
        {
            **{f"to {level} %": reach(curve, level) for level in LEVELS},
            "collapse": reach(curve, COLLAPSED, value="forget_accuracy"),
            "best": np.nan if best is None else curve["retain_accuracy"][best],
            "best at": np.nan if best is None else curve["pseudo_batch"][best],
            "last retain": last["retain_accuracy"],
            "last forget": last["forget_accuracy"],
        }
    )


def of_all(curves: pd.DataFrame) -> pd.DataFrame:
    """Summarise every run, see `of_run`: a row a method, seed and forgotten classes."""
    keys = ["method", "seed", "forget_classes"]
    columns = ["pseudo_batch", "retain_accuracy", "forget_accuracy"]
    return curves.groupby(keys, sort=False)[columns].apply(of_run).reset_index()


def by_class(
    accepted: Sequence[Sequence[int]],
    pseudo_batches: Sequence[int],
    counts: Sequence[Tensor],
    request: Classes,
) -> pd.DataFrame:
    """Tell of each class that stays how much of it a student was shown, and how well it knows it.

    At the best snapshot that has forgotten, as in `of_run`.

    Args:
        accepted: images that passed the gate, by pseudo-batch and by the class that T sees in them.
        pseudo_batches: of the snapshots.
        counts: their confusion matrices ``[K, K]``, a row a true class.
        request: the classes to forget.

    Returns:
        by ``class``: ``share``, percent of the images that had passed by then, and ``accuracy`` in
        percent; no row where no snapshot has forgotten.
    """
    gone = list(request.classes)
    forgetting = [
        (accuracy.retain_accuracy(one, gone), at)
        for at, one in enumerate(counts)
        if accuracy.forget_accuracy(one, gone) <= FORGOTTEN
    ]
    if not forgetting:
        return pd.DataFrame(columns=["share", "accuracy"]).rename_axis("class")
    best = max(forgetting)[1]
    shown = np.sum(accepted[: pseudo_batches[best]], 0)
    known = counts[best].diagonal() / counts[best].sum(1)
    table = pd.DataFrame({"share": 100 * shown / shown.sum(), "accuracy": 100 * known.numpy()})
    return table.drop(index=gone).rename_axis("class")


def paired(
    table: pd.DataFrame, *, method: str, reference: str, value: str, never: float | None = None
) -> pd.Series:
    """List how much more a method has of a value than a reference, by seed.

    Args:
        table: of `of_all`, or another with ``method`` and ``seed``.
        method: compared.
        reference: with the same seeds.
        value: column.
        never: put in place of NaN, such as the end of the run for what never came.
    """
    wide = table[table["method"].isin([method, reference])].pivot_table(
        index="seed", columns="method", values=value, dropna=False
    )
    wide = wide if never is None else wide.fillna(never)
    return (wide[method] - wide[reference]).dropna()


def claims(asked: Mapping[str, tuple[Sequence[float], int]]) -> pd.DataFrame:
    """Test claims that a difference is above (+1) or below (-1) zero, corrected by Holm.

    Args:
        asked: by the claim, differences paired by seed, and the sign that is claimed.

    Returns:
        a row a claim: ``difference`` with half its 95 % interval, ``n``, one-sided ``p`` (Student's
        t) and ``p_holm``, and the ``verdict``: *holds*, *reverses* where the opposite is shown at
        the same level, *not shown* else.
    """
    rows = []
    for claim, (differences, sign) in asked.items():
        values = np.asarray(differences, dtype=float)
        ways = ("greater", "less") if sign > 0 else ("less", "greater")
        p, opposite = (_p(values, way) for way in ways)
        rows.append(
            {
                "claim": claim, "difference": statistics.written(values), "n": len(values), "p": p,
                "opposite": opposite,
            }
        )  # fmt: skip
    table = pd.DataFrame(rows).set_index("claim")
    table["p_holm"] = multipletests(table["p"].fillna(1), method="holm")[1]
    against = multipletests(table["opposite"].fillna(1), method="holm")[1]
    table["verdict"] = np.select(
        [table["p_holm"] < 0.05, against < 0.05], ["holds", "reverses"], "not shown"
    )
    return table.drop(columns="opposite")


def _p(values: np.ndarray, way: str) -> float:
    """Return the p-value of a one-sided t-test against zero; where nothing varies, 0 or 1."""
    if len(values) < 2:
        return float("nan")
    if np.ptp(values) == 0:
        right = values[0] > 0 if way == "greater" else values[0] < 0
        return 0.0 if right else 1.0
    return float(ttest_1samp(values, 0, alternative=way).pvalue)


def at_equal(curve: pd.DataFrame, percent: float) -> float:
    """Read the forget accuracy at which a curve first has a retain accuracy, between snapshots.

    Linear in between; NaN where the curve never gets there or begins above.
    """
    ordered = curve.sort_values("pseudo_batch")
    retain, forget = ordered["retain_accuracy"].to_numpy(), ordered["forget_accuracy"].to_numpy()
    above = np.flatnonzero(retain >= percent)
    if len(above) == 0 or above[0] == 0:
        return float("nan")
    place = above[0]
    return float(np.interp(percent, retain[place - 1 : place + 1], forget[place - 1 : place + 1]))
