"""A claim stands or falls by the interval of what was measured, and says nothing where nothing was."""

from math import nan
from pathlib import Path

import pandas as pd
import pytest

from unlearnlib.pipeline.paths import root
from unlearnlib.report import findings
from unlearnlib.report.findings import FINDINGS, Absent, Estimate, Finding

SEEDS = (0, 1, 2)


def claim(side: str, bound: float, **more: object) -> Finding:
    return Finding(
        "a", "A claim", page="16_comparison", number="It", measure=lambda tables: None, side=side,
        bound=bound, **more,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("side", "bound", "low", "high", "expected"),
    [
        ("above", 1.0, 1.1, 2.0, "holds"),
        ("above", 1.0, 0.9, 2.0, "open"),
        ("above", 1.0, 0.1, 0.9, "does not hold"),
        ("below", -0.5, -2.0, -0.6, "holds"),
        ("below", -0.5, -0.4, 0.1, "does not hold"),
        ("within", 0.2, -0.1, 0.1, "holds"),
        ("within", 0.2, -0.3, 0.1, "open"),
        ("within", 0.2, -0.5, -0.3, "does not hold"),
        ("within", 0.2, 0.3, 0.5, "does not hold"),
        ("above", 1.0, nan, nan, "open"),
    ],
)
def test_the_whole_interval_decides(
    side: str, bound: float, low: float, high: float, expected: str
):
    assert claim(side, bound).verdict(Estimate((low + high) / 2, low, high, 3)) == expected


def test_a_number_is_written_with_its_interval_and_n_and_what_n_counts():
    estimate = Estimate.of([97.0, 99.0, 101.0])
    assert (estimate.value, estimate.n) == (99.0, 3)
    wide = claim("above", 90, unit=" %", limits=(0, 100), digits=1, repeats="runs")
    assert wide.written(estimate) == "99.0 % (95 % interval 94.0 to 100.0, n = 3 runs)"
    assert wide.brief(estimate) == "99.0 [94.0, 100.0] %, n = 3"
    alone = Estimate.of([nan, 1.5])
    assert wide.brief(alone) == "1.5 %, n = 1"
    assert wide.written(alone) == "1.5 % (n = 1 of runs, no interval)"
    with pytest.raises(Absent, match="no repeat"):
        Estimate.of([nan])


def rows(columns: str, *values: tuple) -> pd.DataFrame:
    return pd.DataFrame(list(values), columns=columns.split())


def by_method(column: str, **values: float) -> pd.DataFrame:
    """Make a table with a row a method and seed, alike for all seeds but for the seed's number."""
    return rows(f"method seed {column}", *((m, s, v + s) for m, v in values.items() for s in SEEDS))


def test_a_gap_is_that_of_pairs():
    tables = {"zero_shot_variants": by_method("retain_accuracy", gkt=90.0, retrain=97.0)}
    found = findings.zero_shot_gap("gkt", "retrain")(tables)
    assert (found.value, found.low, found.high, found.n) == (-7, -7, -7, 3)
    with pytest.raises(Absent, match="mm_noise"):
        findings.zero_shot_gap("mm_noise", "retrain")(tables)


def test_a_transfer_that_was_cut_short_has_no_milestones():
    def tables(best: float) -> dict[str, pd.DataFrame]:
        table = by_method("best", gkt=best, gkt_training_mode=15.0)
        return {"gkt_milestones": table}

    one_line = FINDINGS["one_line"].measure
    assert one_line(tables(95.0)).value == 80
    with pytest.raises(Absent, match="until it had learnt"):
        one_line(tables(20.0))


def test_a_ratio_of_the_arena_is_that_of_pairs_and_never_infinite():
    values = [("fast", 0, 2), ("fast", 1, 4), ("slow", 0, 8), ("slow", 1, 0)]
    table = rows(
        "request method seed metric value",
        *(("class_0", m, s, "relearn_time", v) for m, s, v in values),
        ("class_0", "slow", 2, "relearn_time", "not applicable"),
        ("other", "fast", 0, "relearn_time", 1000),
    )
    found = findings.arena_ratio("fast", "slow", "relearn_time")({"arena": table})
    assert (found.value, found.n) == (0.25, 1)


def test_the_attacker_is_read_from_most_models():
    table = rows(
        "request method set models ulira ulira_low ulira_high",
        ("class_0", "a", "forgotten", 4, 60, 40, 80),
        ("class_0", "a", "forgotten", 32, 98, 97, 99),
        ("class_0", "a", "retained", 64, 50, 49, 51),
    )
    found = findings.attacker("a")({"arena_ensembles": table})
    assert found == Estimate(98, 97, 99, 32)


def test_updates_are_compared_with_the_retrained_model_of_the_same_group():
    keys = [("coherent", label, 10, seed) for label in (0, 8) for seed in SEEDS]
    columns = "mode label size seed"
    gold = rows(f"{columns} self_loss self_accuracy", *((*key, 1.0, 95.0) for key in keys))
    steps = {"none": 0.2, "first_order": 0.4, "newton": 1.2}
    told = rows(
        f"{columns} estimator self_loss self_accuracy",
        *((*k, e, v, 99.0) for k in keys for e, v in steps.items()),
    )
    tables = {"group_retrain": gold, "estimators": told}
    assert findings.off("first_order", "none", "coherent")(tables).value == pytest.approx(0.75)
    assert findings.off("newton", "first_order", "coherent")(tables).value == pytest.approx(1 / 3)
    assert findings.way("first_order", "coherent")(tables).value == pytest.approx(25)
    assert findings.way("newton", "coherent")(tables).value == pytest.approx(125)
    assert findings.kept()(tables) == Estimate(-4, -4, -4, 3)
    with pytest.raises(Absent, match="random"):
        findings.way("first_order", "random")(tables)


def test_an_order_and_a_score_bring_their_own_intervals():
    columns = "mode space order effect low high n"
    table = rows(columns, ("coherent", "compact", "near-moderate-far", 0.001, -0.001, 0.002, 10))
    found = findings.order("near-moderate-far", "coherent")({"group_orders": table})
    assert found == Estimate(0.001, -0.001, 0.002, 10)
    assert FINDINGS["order"].verdict(found) == "holds"
    scores = rows("attribution score low high models", ("newton", 0.3, 0.2, 0.4, 5))
    assert findings.attribution("newton")({"attribution": scores}) == Estimate(0.3, 0.2, 0.4, 5)


def test_spaces_ranks_and_choices_are_compared_within_a_seed():
    seen = rows(
        "seed gradient items space similarity_correlation",
        *((s, "loss", n, space, v) for s in SEEDS for n, space, v in
          ((10, "compact", 0.0), (90, "compact", 0.5), (90, "vit", 0.3))),
    )  # fmt: skip
    gap = findings.space_gap("similarity_correlation")({"coherence": seen})
    assert gap.value == pytest.approx(0.2)
    exact = rows(
        "estimator seed predicted_self actual_self",
        *(("newton", s, p, a) for s in SEEDS for p, a in ((1, 1), (2, 3), (3, 2))),
    )
    assert findings.convex("newton")({"convex_control": exact}).value == pytest.approx(0.5)
    chosen = rows(
        "criterion modification_ratio seed test_accuracy",
        *((c, 0.1, s, v) for s in SEEDS for c, v in (("random", 90.0), ("top_outputs", 91.0))),
    )
    assert findings.selected("top_outputs")({"selection_criteria": chosen}).value == 1


def test_what_is_not_there_leaves_its_findings_out(tmp_path: Path):
    assert findings.read(tmp_path) == {}
    table = by_method("retain_accuracy", masked_distillation=97.0, retrain=97.1)
    table.to_csv(tmp_path / "zero_shot_variants.csv", index=False)
    found = findings.read(tmp_path)
    assert list(found) == ["data_free"]
    assert found["data_free"].verdict == "holds"
    assert found["data_free"].measured.startswith("Retain accuracy of masked distillation less")


def test_every_finding_is_shown_on_a_page_and_the_index_opens_with_five_to_seven():
    stems = {path.stem for path in (root() / "notebooks").glob("*.ipynb")}
    assert {finding.page for finding in FINDINGS.values()} <= stems
    assert 5 <= sum(finding.front for finding in FINDINGS.values()) <= 7
    assert not any(finding.title.endswith(".") for finding in FINDINGS.values())
