"""The quick profile from end to end, by the commands that a reader types."""

import subprocess
from pathlib import Path

import pandas as pd
import pytest
import yaml
from conftest import ROOT, run

from unlearnlib.arena.decoys import DECOYS
from unlearnlib.pipeline import parameters, records
from unlearnlib.report import findings
from unlearnlib.zero_shot import variants

METHODS = [name for name in variants.ROWS if name != "deep_inversion_6000"]  # quick has fewer
COLUMNS = [
    "method",
    "seed",
    "forget_classes",
    "width",
    "train_images",
    "retain_accuracy",
    "forget_accuracy",
    "stop",
    "seconds",
]


@pytest.fixture(scope="module")
def zero_shot(tables: Path) -> pd.DataFrame:
    return pd.read_csv(tables / "zero_shot.csv", dtype={"forget_classes": str})


def test_a_second_run_has_nothing_to_do(tables: Path) -> None:
    assert "Data and pipelines are up to date" in run("unlearnlib.pipeline", "quick")
    assert "up to date" in run("dvc", "status")


def test_the_table_has_a_row_for_every_method_and_seed(zero_shot: pd.DataFrame) -> None:
    assert list(zero_shot) == COLUMNS
    seeds = parameters.load("quick")["study"]["seeds"]
    expected = {(method, seed) for method in METHODS for seed in seeds}
    assert set(zip(zero_shot["method"], zero_shot["seed"], strict=True)) == expected
    assert len(zero_shot) == len(expected)
    assert set(zero_shot["forget_classes"]) == {"0"}


def test_only_the_original_and_the_references_have_read_images(zero_shot: pd.DataFrame) -> None:
    read = zero_shot.groupby("method")["train_images"].max()
    assert read["original"] == 3500
    assert read["retrain"] == 3150
    assert read["delete"] == 350
    assert (read.drop(["original", "retrain", "delete"]) == 0).all()


def test_the_study_is_in_working_order_even_when_quick(zero_shot: pd.DataFrame) -> None:
    mean = zero_shot.groupby("method")[["retain_accuracy", "forget_accuracy"]].mean()
    assert mean.loc["original"].min() > 90
    assert mean.loc["retrain", "retain_accuracy"] > 90
    assert mean.loc["retrain", "forget_accuracy"] == 0
    # far above the chance of one in nine, and without the forgotten class
    assert mean.loc["gkt_prior", "retain_accuracy"] > 30
    assert mean.loc["deep_inversion_100", "retain_accuracy"] > 30
    assert mean.loc[["gkt_prior", "deep_inversion_100"], "forget_accuracy"].max() < 20


GROUP_COLUMNS = [
    *["mode", "label", "size", "percent", "scheme", "estimator", "order", "scale", "seed"],
    *["self_accuracy", "test_accuracy", "self_loss", "test_loss", "residual", "seconds"],
]
SCHEMES = [
    *("original", "retrain", "one_step", "all_at_once", "three_step", "size_matched"),
    *("equal_thirds", "moderate_only"),
]


@pytest.fixture(scope="module")
def groups(tables: Path) -> pd.DataFrame:
    return pd.read_csv(tables / "group_unlearning.csv", dtype={"label": str})


def test_every_group_has_a_row_for_every_scheme_and_repeat(groups: pd.DataFrame) -> None:
    assert set(GROUP_COLUMNS) <= set(groups)
    study = parameters.load("quick")["study"]
    sources = [
        ("coherent", str(k), size) for k in study["labels"] for size in study["coherent_sizes"]
    ]
    sources += [("random", "all", size) for size in study["random_sizes"]]
    for scheme in SCHEMES:
        rows = groups[groups["scheme"] == scheme]
        found = set(zip(rows["mode"], rows["label"], rows["size"], rows["seed"], strict=True))
        assert found == {(*source, seed) for source in sources for seed in study["seeds"]}
    orders = groups[groups["scheme"] == "three_step"].groupby(["mode", "space"])["order"].nunique()
    assert (orders == len(parameters.load("quick")["steps"]["orders"])).all()
    assert groups[GROUP_COLUMNS[-6:-2]].notna().all(axis=None)
    updated = groups["scheme"].isin(SCHEMES[2:])
    assert groups.loc[updated, "residual"].max() <= 0.01


def test_updates_move_the_loss_on_the_group_towards_retraining(groups: pd.DataFrame) -> None:
    mean = groups.assign(estimator=groups["estimator"].fillna("none"))
    mean = mean.groupby(["scheme", "estimator"])["self_loss"].mean()
    original = mean["original", "none"]
    assert original < mean["one_step", "first_order"] < mean["retrain", "none"]


def test_a_retrained_model_has_the_recipe_of_its_original(tables: Path) -> None:
    runs = ROOT / "runs" / "quick"
    retrained = [records.arguments(file) for file in (runs / "group_retrain").glob("*.pt")]
    assert retrained
    for given in retrained:
        file = runs / "group_models" / f"compact-seed{given['seed']}.pt"
        original = records.arguments(file)
        assert [given[key] == original[key] for key in ("model", "width", "recipe")] == [True] * 3


def test_the_report_has_a_page_for_every_notebook(tables: Path) -> None:
    report = tables.parent
    stems = {path.stem for path in (ROOT / "notebooks").glob("*.ipynb")}
    assert {page.stem for page in (report / "pages").glob("*.html")} == stems
    assert "MNIST-5k" in (report / "index.html").read_text()


def test_what_is_committed_is_what_the_lock_says() -> None:
    """Hashes of the standard profile's committed outputs against dvc.lock."""
    import hashlib

    tracked = subprocess.run(
        ["git", "ls-files", "reports/standard", "runs/standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    lock = yaml.safe_load((ROOT / "dvc.lock").read_text())["stages"]
    outs = {o["path"]: o["md5"] for s in lock.values() for o in s["outs"]}
    for path in tracked:
        if path in outs:
            found = hashlib.md5((ROOT / path).read_bytes(), usedforsecurity=False).hexdigest()
            assert found == outs[path], f"{path} is not what dvc.lock says; run dvc repro"


@pytest.fixture(scope="module")
def arena(tables: Path) -> pd.DataFrame:
    return pd.read_csv(tables / "arena.csv", dtype=str, keep_default_na=False)


def test_every_method_serves_every_request_or_says_why_not(arena: pd.DataFrame) -> None:
    sections = parameters.load("quick")
    given, plan = sections["arena"], sections["study"]["arena_plan"]
    methods = [*given["baselines"], *given["zero_shot"], *given["influence"]["methods"]]
    references = ["original", "retrain", "retrain_again", "retrain_reordered"]
    whole = arena[arena["metric"] == "all"]
    absent = set(zip(whole["request"], whole["method"], strict=True))
    served = arena[arena["metric"] == "js_forget"]
    for name in plan["requests"]:
        found = served[served["request"] == name].groupby("method")["seed"].nunique()
        least = len(plan["seeds"] if name in plan["ensembles"] else plan["other_seeds"])
        for method in [*references, *DECOYS, *methods]:
            assert ((name, method) in absent) != (found.get(method, 0) >= least)
    assert {request for request, _ in absent} == {"hard"}
    assert {"klom_forget", "ulira_forget"} <= set(arena.loc[arena["seed"] == "all", "metric"])


def test_no_value_of_the_arena_is_blank(arena: pd.DataFrame) -> None:
    assert list(arena) == ["request", "method", "seed", "metric", "value", "reason"]
    apart = arena["value"] == "not applicable"
    assert pd.to_numeric(arena.loc[~apart, "value"]).notna().all()
    assert ((arena["reason"] != "") == apart).all()


def test_gold_is_nearest_to_gold(arena: pd.DataFrame) -> None:
    rows = arena[(arena["request"] == "class_0") & (arena["metric"] == "js_forget")]
    mean = rows.assign(value=rows["value"].astype(float)).groupby("method")["value"].mean()
    assert mean["retrain"] < 1e-9
    others = mean.drop(["retrain", "retrain_again", "retrain_reordered", *DECOYS])
    assert others.min() > mean["retrain_again"] / 2
    # a decoy is the nearer to gold the more of the way it has come
    assert mean["quarter_way"] > mean["half_way"] > mean["most_way"]
    assert mean["original"] > 2 * mean["retrain_again"]


def test_the_tables_bear_every_finding_that_a_small_run_can_bear(tables: Path) -> None:
    """Transfers are cut short here, nothing has 6000 images a class, and few models are attacked."""
    too_small = {"one_line", "collapse", "attention_leaks", "more_images", "attacked"}
    assert findings.FINDINGS.keys() - findings.read(tables).keys() == too_small
