"""Agreement of predicted with actual changes, and the marks of the convex control."""

import numpy as np
import pandas as pd
import pytest

from unlearnlib.groups import agreement

ESTIMATORS = ("first_order", "newton", "second_order", "second_order_cubic")


def control(**factors: float) -> pd.DataFrame:
    """Make a table of the control in which an estimator predicts a multiple of each change."""
    rows = []
    for number, percent in enumerate((1.0, 2.0, 4.0, 5.0, 10.0, 20.0)):
        for name in ESTIMATORS:
            factor = factors.get(name, 1.0)
            actual = {"norm": percent, "self": percent**2, "test": -percent}
            rows.append(
                {"kind": "random", "label": np.nan, "percent": percent, "seed": number}
                | {"estimator": name, "parameter_error": abs(factor - 1)}
                | {f"actual_{key}": value for key, value in actual.items()}
                | {f"predicted_{key}": factor * value for key, value in actual.items()}
            )
    return pd.DataFrame(rows)


def test_a_proportional_prediction_has_its_factor_as_slope():
    found = agreement.agreement([0.5, 1.0, 2.0, 4.0], [1.0, 2.0, 4.0, 8.0])
    assert found["n"] == 4
    for key in ("slope", "low", "high", "underestimation"):
        assert found[key] == pytest.approx(0.5)
    assert found["rank_correlation"] == pytest.approx(1)


def test_slope_and_rank_correlation_are_their_formulas():
    generator = np.random.default_rng(0)
    x = generator.normal(size=30)
    y = 0.8 * x + 0.1 * generator.normal(size=30)
    found = agreement.agreement(y, x)
    ranks = np.corrcoef(x.argsort().argsort(), y.argsort().argsort())[0, 1]
    assert found["slope"] == pytest.approx((x @ y) / (x @ x))
    assert found["rank_correlation"] == pytest.approx(ranks)
    assert found["low"] < found["slope"] < found["high"]
    assert found["underestimation"] == pytest.approx(np.median(y / x))


@pytest.mark.parametrize(
    ("predicted", "actual", "message"),
    [
        ([1.0, 2.0], [1.0, 2.0], "at least 3"),
        ([1.0, 2.0, 3.0], [1.0, 2.0, 3.0, 4.0], "equally many"),
        ([1.0, np.nan, 3.0], [1.0, 2.0, 3.0], "not finite"),
        ([1.0, 2.0, 3.0], [1.0, 0.0, 3.0], "is 0"),
    ],
)
def test_pairs_that_cannot_be_compared_are_refused(predicted, actual, message):
    with pytest.raises(ValueError, match=message):
        agreement.agreement(predicted, actual)


def test_every_mark_holds_where_the_order_of_errors_is_right():
    found = agreement.marks(control(first_order=0.7, second_order=0.9, second_order_cubic=0.95))
    assert found["holds"].all()
    assert set(found["quantity"]) == set(agreement.QUANTITIES.values())
    assert (found[found["mark"].str.startswith("newton")]["groups"] == 4).all()


def test_each_mark_fails_by_its_own_cause():
    steep = agreement.marks(control(newton=1.06, first_order=0.7, second_order=0.9))
    failed = steep[~steep["holds"]]["mark"]
    assert len(failed) == 3
    assert failed.str.startswith("newton: slope").all()
    far = agreement.marks(control(first_order=0.7, second_order=0.6))
    failed = far[~far["holds"]]
    assert failed["mark"].str.startswith("second_order nearer").all()
    assert set(failed["measured"]) == {"0 of 2"}


def test_a_tie_is_not_nearer():
    found = agreement.nearer(control(first_order=0.7, second_order=0.7), "second_order")
    assert len(found) == 6
    assert not found["nearer"].any()


def test_an_estimator_that_is_not_there_is_named():
    with pytest.raises(ValueError, match="no rows of .'gif'.*first_order"):
        agreement.nearer(control(), "gif")


def test_remedies_count_wrong_signs_and_ranks():
    table = control().assign(predicted_test_linear=lambda t: t["predicted_test"])
    longer = [
        table[table["estimator"] == "first_order"].assign(estimator=f"first_order_x{scale:g}")
        for scale in (1.5, 2, 3)
    ]
    table = pd.concat([table, *longer])
    wrong = (table["estimator"] == "first_order") & (table["percent"] == 2.0)
    table.loc[wrong, "predicted_test"] *= -1
    found = agreement.remedies(table, control()).set_index("attempt")
    assert found.loc["first order", "groups"] == 4
    assert found.loc["first order", "wrong_sign"] == 1
    assert found.loc["first order", "rank_correlation"] == pytest.approx(0.8)
    for attempt in ("test loss to first order too", "step times 2", "stronger penalty"):
        assert found.loc[attempt, "wrong_sign"] == 0
        assert found.loc[attempt, "rank_correlation"] == pytest.approx(1)
    assert {"first order, random groups", "first order, 2 %"} <= set(found.index)
