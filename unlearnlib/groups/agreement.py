"""How well predicted changes agree with actual ones, and whether the convex control passes."""

from collections.abc import Iterator

import numpy as np
import pandas as pd
import statsmodels.api as sm
from numpy.typing import ArrayLike
from scipy.stats import spearmanr

QUANTITIES = {"norm": "change of parameters", "self": "self loss", "test": "test loss"}
_ASKED = (  # of groups up to a size: the least rank correlation, the largest distance of the slope to 1
    ("newton", "rank_correlation", 0.99),
    ("newton", "slope", 0.05),
    ("first_order", "rank_correlation", 0.95),
)
_MEASURES = {  # of pairs of predicted and actual changes
    "rank_correlation": lambda p: float(spearmanr(p["predicted"], p["actual"]).statistic),
    "slope": lambda p: float((p["predicted"] * p["actual"]).sum() / (p["actual"] ** 2).sum()),
}


def agreement(predicted: ArrayLike, actual: ArrayLike) -> dict[str, float]:
    """Compare predicted with actual changes, one pair a group.

    The line goes through the origin, since no removal is no change; its interval is that of least
    squares with the HC3 covariance, as larger groups scatter more (Long & Ervin 2000). Groups that
    share a fit are not independent, so that the interval is a lower bound of the uncertainty.

    Args:
        predicted: ``[N]``.
        actual: ``[N]``, in the same unit.

    Returns:
        ``n``; Spearman's ``rank_correlation``; ``slope`` of predicted on actual with its 95 %
        limits ``low`` and ``high``; ``underestimation``, the median of predicted / actual: below 1
        where the change is underestimated; and what `log_agreement` returns.

    Raises:
        ValueError: fewer than three pairs, values that are not finite, or no actual change.
    """
    predicted, actual = np.asarray(predicted, dtype=float), np.asarray(actual, dtype=float)
    if predicted.shape != actual.shape or predicted.ndim != 1 or len(actual) < 3:
        raise ValueError(
            f"predicted {predicted.shape} and actual {actual.shape}: give equally many of both, "
            "at least 3"
        )
    if not np.isfinite([predicted, actual]).all() or not actual.all():
        raise ValueError(
            "a predicted or actual change is not finite, or an actual one is 0; leave such groups "
            "out and say how many they are"
        )
    line = sm.OLS(predicted, actual).fit(cov_type="HC3")
    low, high = line.conf_int()[0]
    return {
        "n": len(actual),
        "rank_correlation": float(spearmanr(predicted, actual).statistic),
        "slope": float(line.params[0]),
        "low": float(low),
        "high": float(high),
        "underestimation": float(np.median(predicted / actual)),
        **log_agreement(predicted, actual),
    }


def log_agreement(predicted: ArrayLike, actual: ArrayLike) -> dict[str, float]:
    """Fit the slope b of ``log |predicted| = a + b log |actual|``, one pair a group.

    Least squares on the changes themselves are decided by the largest of them, such as removals of
    whole classes; on logarithms every group counts alike, whatever its size. b is 1 where predicted
    is a constant multiple of actual, be it 1 or not (that multiple is what ``underestimation``
    tells); below 1 where the estimate falls behind as the change grows; above 1 where it overshoots.

    A change of the wrong sign, or none, has no place on this scale. Such pairs are left out and
    counted, so b says nothing of them: read it beside ``same_sign``.

    Args:
        predicted: ``[N]``, finite.
        actual: ``[N]``, in the same unit, finite.

    Returns:
        ``log_slope`` with its 95 % limits ``log_low`` and ``log_high`` (HC3, see `agreement`), NaN
        for fewer than three pairs of one sign, or where their actual changes are all equal; and
        ``same_sign``, the pairs that it is fitted to.
    """
    predicted, actual = np.asarray(predicted, dtype=float), np.asarray(actual, dtype=float)
    same = predicted * actual > 0
    x, y = np.log(np.abs(actual[same])), np.log(np.abs(predicted[same]))
    found = {"log_slope": np.nan, "log_low": np.nan, "log_high": np.nan}
    if len(x) >= 3 and np.ptp(x) > 0:
        line = sm.OLS(y, sm.add_constant(x)).fit(cov_type="HC3")
        found = dict(zip(found, (line.params[1], *line.conf_int()[1]), strict=True))
    return {name: float(value) for name, value in found.items()} | {"same_sign": int(same.sum())}


def agreements(table: pd.DataFrame) -> pd.DataFrame:
    """Compare every quantity of `convex_control.table_rows` by estimator: a row for each of both."""
    return pd.DataFrame(
        [
            {"estimator": name, "quantity": title}
            | agreement(rows[f"predicted_{key}"], rows[f"actual_{key}"])
            for name, rows in table.groupby("estimator", sort=False)
            for key, title in QUANTITIES.items()
        ]
    )


def nearer(table: pd.DataFrame, estimator: str, *, than: str = "first_order") -> pd.DataFrame:
    """Compare the relative errors of the parameters of two estimators, group by group.

    Returns:
        a row for each group: ``kind``, ``label``, ``percent``, ``seed``, the errors of both, and
        ``nearer``, whether that of ``estimator`` is strictly smaller.

    Raises:
        ValueError: an estimator that the table does not hold.
    """
    if missing := {estimator, than} - set(table["estimator"]):
        raise ValueError(
            f"no rows of {sorted(missing)}; there are {sorted(set(table['estimator']))}"
        )
    keys = ["kind", "label", "percent", "seed"]
    errors = table.assign(label=table["label"].fillna(-1)).pivot(
        index=keys, columns="estimator", values="parameter_error"
    )[[than, estimator]]
    return errors.assign(nearer=errors[estimator] < errors[than]).reset_index()


def marks(table: pd.DataFrame, *, percent: float = 5.0) -> pd.DataFrame:
    """Say of each mark of the convex control whether it holds.

    Args:
        table: rows of `convex_control.table_rows`.
        percent: the first marks are those of groups up to this size, the last ones of those above.

    Returns:
        columns ``mark``, ``quantity``, ``groups``, ``measured``, ``required``, ``holds``.
    """
    small = agreements(table[table["percent"] <= percent]).set_index(["estimator", "quantity"])
    rows = [*_agreement_marks(small, percent), *_order_marks(table, percent)]
    return pd.DataFrame(rows)


def hinges(table: pd.DataFrame, *, percent: float = 5.0, count: int = 3) -> pd.DataFrame:
    """Find the groups that a missed mark of agreement hangs on: those without which it is nearest 1.

    Args:
        table: rows of `convex_control.table_rows`.
        percent: groups up to this size, as in `marks`.
        count: groups to leave out, one after the other, each the best to leave out next.

    Returns:
        ``count`` rows for each mark that `marks` finds missed, none where none is: ``estimator``,
        ``quantity``, ``measure`` and its value with all groups, ``measured``; the group, ``kind``,
        ``label``, ``percent`` and ``seed``, with its changes ``predicted`` and ``actual``; and
        ``without``, the value once this group and those in the rows above are left out.
    """
    small, rows = table[table["percent"] <= percent], []
    for estimator, measure, bound in _ASKED:
        for key, quantity in QUANTITIES.items():
            pairs = _of(small, estimator).rename(
                columns={f"predicted_{key}": "predicted", f"actual_{key}": "actual"}
            )
            measured = _MEASURES[measure](pairs)
            if _holds(measure, measured, bound):
                continue
            for _ in range(count):
                left = {at: _MEASURES[measure](pairs.drop(index=at)) for at in pairs.index}
                worst = min(left, key=lambda at: abs(left[at] - 1))
                rows.append(
                    {
                        "estimator": estimator, "quantity": quantity, "measure": measure,
                        "measured": measured,
                        **pairs.loc[worst, ["kind", "label", "percent", "seed"]],
                        **pairs.loc[worst, ["predicted", "actual"]], "without": left[worst],
                    }
                )  # fmt: skip
                pairs = pairs.drop(index=worst)
    return pd.DataFrame(rows)


def remedies(table: pd.DataFrame, stronger: pd.DataFrame, *, percent: float = 5.0) -> pd.DataFrame:
    """Compare ways to mend how the first order predicts the test loss of small groups.

    Args:
        table: rows of `convex_control.table_rows`.
        stronger: the same of a regression with a stronger penalty.
        percent: only groups up to this size.

    Returns:
        a row for each attempt: ``attempt``, ``groups``, ``rank_correlation`` of predicted with
        actual change, and ``wrong_sign``, how many groups get the wrong sign. First the estimate
        as it is, then the remedies, then parts of the groups.
    """
    small, other = (rows[rows["percent"] <= percent] for rows in (table, stronger))
    return pd.DataFrame(
        [
            {
                "attempt": name,
                "groups": len(rows),
                "rank_correlation": spearmanr(rows[column], rows["actual_test"]).statistic,
                "wrong_sign": int((rows[column] * rows["actual_test"] < 0).sum()),
            }
            for name, (rows, column) in _attempts(small, other).items()
        ]
    )


def _attempts(small: pd.DataFrame, other: pd.DataFrame) -> dict[str, tuple[pd.DataFrame, str]]:
    """List the rows and the column of predictions of each attempt of `remedies`."""
    first = _of(small, "first_order")
    return {
        "first order": (first, "predicted_test"),
        "test loss to first order too": (first, "predicted_test_linear"),
        **{
            f"step times {scale:g}": (_of(small, f"first_order_x{scale:g}"), "predicted_test")
            for scale in (1.5, 2, 3)
        },
        "stronger penalty": (_of(other, "first_order"), "predicted_test"),
        "curvature of the group: second order": (_of(small, "second_order"), "predicted_test"),
        "curvature of the group: Newton": (_of(small, "newton"), "predicted_test"),
        **{
            f"first order, {kind} groups": (rows, "predicted_test")
            for kind, rows in first.groupby("kind", sort=False)
        },
        **{
            f"first order, {size:g} %": (rows, "predicted_test")
            for size, rows in first.groupby("percent")
        },
    }


def _of(table: pd.DataFrame, estimator: str) -> pd.DataFrame:
    return table[table["estimator"] == estimator]


def _agreement_marks(small: pd.DataFrame, percent: float) -> Iterator[dict]:
    for estimator, key, bound in _ASKED:
        for quantity in QUANTITIES.values():
            row = small.loc[(estimator, quantity)]
            of_slope = key == "slope"
            yield {
                "mark": f"{estimator}: {key.replace('_', ' ')}, up to {percent:g} %",
                "quantity": quantity,
                "groups": int(row["n"]),
                "measured": f"{row[key]:.4f}",
                "required": f"{1 - bound:g} to {1 + bound:g}" if of_slope else f">= {bound:g}",
                "holds": _holds(key, row[key], bound),
            }


def _holds(measure: str, value: float, bound: float) -> bool:
    """Tell whether a value meets what `_ASKED` asks of its measure."""
    return bool(abs(value - 1) <= bound if measure == "slope" else value >= bound)


def _order_marks(table: pd.DataFrame, percent: float) -> Iterator[dict]:
    large = table[table["percent"] > percent]
    for estimator in ("second_order", "second_order_cubic"):
        groups = nearer(large, estimator)
        errors = groups.groupby("percent")[["first_order", estimator]].mean()
        units = {
            "mean at every size": errors[estimator] < errors["first_order"],
            "every group": groups["nearer"],
        }
        for unit, held in units.items():
            yield {
                "mark": f"{estimator} nearer than first_order, above {percent:g} %: {unit}",
                "quantity": QUANTITIES["norm"],
                "groups": len(groups),
                "measured": f"{int(held.sum())} of {len(held)}",
                "required": "all",
                "holds": bool(len(held) and held.all()),
            }
