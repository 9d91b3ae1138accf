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


def test_the_slope_of_logarithms_is_the_exponent_whatever_the_factor():
    actual = np.array([0.01, 0.1, 1.0, 10.0])
    for factor in (1.0, 0.5, -0.5):
        for exponent in (1.0, 0.8, 1.25):
            signed = np.sign(factor) * actual
            found = agreement.agreement(factor * actual**exponent, signed)
            for key in ("log_slope", "log_low", "log_high"):
                assert found[key] == pytest.approx(exponent)
            assert found["same_sign"] == 4


def test_one_large_change_decides_the_slope_but_not_the_slope_of_logarithms():
    # small groups at half of the actual change, a whole class that is met
    actual = np.array([1.0, 2.0, 4.0, 8.0, 1000.0])
    predicted = np.array([0.5, 1.0, 2.0, 4.0, 1000.0])
    found = agreement.agreement(predicted, actual)
    assert found["slope"] == pytest.approx(1, abs=1e-4)
    x, y = np.log(actual), np.log(predicted)
    expected = ((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum()
    assert found["log_slope"] == pytest.approx(expected)
    assert found["log_slope"] > 1.1
    assert found["log_low"] < found["log_slope"] < found["log_high"]


def test_a_wrong_sign_has_no_logarithm_and_is_counted():
    actual = [1.0, 10.0, -100.0, 5.0, 7.0]
    found = agreement.log_agreement([1.0, 100.0, -10_000.0, -3.0, 0.0], actual)
    assert found["log_slope"] == pytest.approx(2)
    assert found["same_sign"] == 3
    for predicted in ([1.0, 2.0, 3.0, -1.0, 0.0], [0.0] * 5):
        found = agreement.log_agreement(predicted, actual)
        assert found["same_sign"] == (2 if any(predicted) else 0)
        assert np.isnan([found[key] for key in ("log_slope", "log_low", "log_high")]).all()
    assert np.isnan(agreement.log_agreement([1.0, 2.0, 3.0], [5.0] * 3)["log_slope"])


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


def test_a_missed_mark_hangs_on_the_groups_that_are_off():
    table = control(first_order=0.7, second_order=0.9, second_order_cubic=0.95)
    assert agreement.hinges(table).empty
    off = table.index[(table["estimator"] == "newton") & (table["percent"] <= 5)][-1]
    table.loc[off, "predicted_self"] = 2 * table.loc[off, "actual_self"]
    found = agreement.hinges(table, count=2)
    assert set(found["estimator"]) == {"newton"}
    assert set(found["quantity"]) == {"self loss"}
    first = found.iloc[0]
    assert first["predicted"] == 2 * first["actual"] == table.loc[off, "predicted_self"]
    assert first["measure"] == "slope"
    assert first["measured"] > 1.05
    assert first["without"] == pytest.approx(1)
