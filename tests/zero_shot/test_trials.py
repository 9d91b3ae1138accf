"""How settings were chosen: on validation images, of models no page reports; the table says it all."""

import json
from pathlib import Path

import pandas as pd
import pytest
from toys import lines

from unlearnlib.data import datasets
from unlearnlib.data.requests import Classes
from unlearnlib.measures import accuracy
from unlearnlib.models import architectures, networks
from unlearnlib.pipeline import parameters, schema
from unlearnlib.pipeline.paths import root
from unlearnlib.zero_shot import masked_distillation, mm_noise, trials
from unlearnlib.zero_shot.trials import TRIALS, Trial
from unlearnlib.zero_shot.variants import ROWS

MEASURED = ["retain_accuracy", "forget_accuracy", "forget_probability", "original_accuracy"]


def test_every_trial_is_measured_on_every_seed_it_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("UNLEARNLIB_ROOT", str(tmp_path))
    sections = {
        "study": {"model": "allcnn", "width": 0.03, "forget_classes": [0]},
        "train": {"seeds": [0], "epochs": 1, "batch_size": 50, "learning_rate": 0.01},
    }
    small = {"synthesis": {"per_class": 2, "steps": 1, "prior_steps": 1}, "tuning": {"steps": 2}}
    noise = {"per_class": 1, "noise_steps": 1, "steps": 1, "repair_steps": 1}
    asked = [
        Trial("masked_distillation", small, (100, 101)),
        Trial("mm_noise_repaired", noise, (100,)),
    ]
    found = trials.table(asked, data=lines(tmp_path / "toy.npz"), sections=sections)
    assert list(found) == ["row", "changes", "seed", *MEASURED, "seconds"]
    assert found["seed"].tolist() == [100, 101, 100]
    assert found["row"].tolist() == ["masked_distillation"] * 2 + ["mm_noise_repaired"]
    assert json.loads(found["changes"][2]) == noise
    assert found[MEASURED].notna().all(axis=None)


def test_a_row_is_run_again_alone_and_the_rest_of_the_table_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("UNLEARNLIB_ROOT", str(tmp_path))
    (tmp_path / "params").mkdir()
    asked = []

    def measured(some: list[Trial], **_: object) -> pd.DataFrame:
        asked.append([trial.row for trial in some])
        return pd.DataFrame([{"row": trial.row, "seconds": len(asked)} for trial in some])

    monkeypatch.setattr(trials, "table", measured)
    monkeypatch.setattr(trials.parameters, "load", lambda _: {})
    monkeypatch.setattr(
        trials, "TRIALS", [Trial("masked_distillation", {}), Trial("mm_noise_repaired", {})]
    )
    trials.main([])
    trials.main(["masked_distillation"])
    assert asked == [["masked_distillation", "mm_noise_repaired"], ["masked_distillation"]]
    found = pd.read_csv(tmp_path / "params" / "trials.csv", comment="#")
    assert found.to_numpy().tolist() == [["masked_distillation", 2], ["mm_noise_repaired", 1]]
    with pytest.raises(ValueError, match=r"no trials of \['gtk'\]; there are those of"):
        trials.main(["gtk"])


def test_validation_images_are_what_measures(tmp_path: Path):
    data, request = lines(tmp_path / "toy.npz"), Classes([0])
    network = architectures.build("allcnn", width=0.03).eval()
    images, labels = datasets.split(datasets.load(data), "validation")
    found = trials.measured(network, data, request)
    counts = accuracy.confusion(network, images, labels)
    assert found["retain_accuracy"] == accuracy.retain_accuracy(counts, [0])
    probability = networks.predict(network, images[labels == 0]).softmax(1)[:, 0].mean().item()
    assert found["forget_probability"] == pytest.approx(100 * probability, rel=1e-5)


def test_no_seed_of_a_trial_is_reported():
    tried = {seed for trial in TRIALS for seed in trial.seeds}
    for profile in parameters.profiles():
        sections = parameters.load(profile)
        reported = {*sections["study"]["seeds"], *sections["train"]["seeds"]}
        assert not tried & reported, profile


def tried(row: str) -> list:
    """List the settings that were tried on several seeds."""
    return [trials.settings_of(t) for t in TRIALS if t.row == row and len(t.seeds) > 1]


def test_the_study_takes_settings_that_were_tried_on_several_seeds():
    sections = parameters.load("standard")
    masked = schema.build(masked_distillation.Settings, sections["masking"]["masked_distillation"])
    assert masked in tried("masked_distillation")
    noise = sections["mm_noise"]
    changes = mm_noise.variants(noise["remedies"])["mm_noise_repaired"]
    repaired = schema.build(mm_noise.Settings, noise["settings"] | changes)
    assert repaired in tried("mm_noise_repaired")


def test_rows_count_their_trials():
    assert {t.row for t in TRIALS} == set(trials.FIRST) <= set(ROWS)
    run = {"masked_distillation", "mm_noise_repaired"}  # those of the others are still to be run
    for row in trials.FIRST:
        assert ROWS[row].tuned == (trials.count(row) if row in run else None), row


def test_the_committed_table_has_every_trial_of_its_rows():
    table = pd.read_csv(root() / "params" / "trials.csv", comment="#")
    rows = {"mm_noise_repaired"}
    listed = [
        (t.row, json.dumps(t.changes), seed) for t in TRIALS for seed in t.seeds if t.row in rows
    ]
    assert [*zip(table["row"], table["changes"], table["seed"], strict=True)] == listed
    assert table[MEASURED].min(axis=None) >= 0
    assert table[MEASURED].max(axis=None) <= 100
