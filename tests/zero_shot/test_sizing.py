"""How masked distillation was sized: on validation images, and the committed table is what it says."""

from pathlib import Path

import pytest
from toys import lines

from unlearnlib.data import datasets
from unlearnlib.data.requests import Classes
from unlearnlib.measures import accuracy
from unlearnlib.models import architectures, networks
from unlearnlib.pipeline import parameters, schema
from unlearnlib.zero_shot import masked_distillation, sizing
from unlearnlib.zero_shot.sizing import Trial

COLUMNS = [
    *("per_class", "prior_steps", "inversion_steps", "steps", "rate", "forget_weight"),
    *("freeze_statistics", "seed"),
    *("retain_accuracy", "forget_accuracy", "forget_probability", "original_accuracy", "seconds"),
]


def test_every_trial_is_measured_on_every_seed_it_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("UNLEARNLIB_ROOT", str(tmp_path))
    monkeypatch.setattr(sizing, "SEEDS", (100, 101))
    sections = {
        "study": {"model": "allcnn", "width": 0.03, "forget_classes": [0]},
        "train": {"seeds": [0], "epochs": 1, "batch_size": 50, "learning_rate": 0.01},
    }
    small = {"prior_steps": 1, "inversion_steps": 1, "steps": 2}
    trials = [Trial((100, 101), per_class=2, **small), Trial((100,), per_class=3, **small)]
    found = sizing.table(trials, data=lines(tmp_path / "toy.npz"), sections=sections)
    assert list(found) == COLUMNS
    assert found["seed"].tolist() == [100, 101, 100]
    assert found["per_class"].tolist() == [2, 2, 3]


def test_validation_images_are_what_measures(tmp_path: Path):
    data, request = lines(tmp_path / "toy.npz"), Classes([0])
    network = architectures.build("allcnn", width=0.03).eval()
    images, labels = datasets.split(datasets.load(data), "validation")
    found = sizing.measured(network, data, request)
    counts = accuracy.confusion(network, images, labels)
    assert found["retain_accuracy"] == accuracy.retain_accuracy(counts, [0])
    probability = networks.predict(network, images[labels == 0]).softmax(1)[:, 0].mean().item()
    assert found["forget_probability"] == pytest.approx(100 * probability, rel=1e-5)


def test_no_seed_of_a_trial_is_reported():
    tried = {seed for trial in sizing.TRIALS for seed in trial.seeds}
    for profile in parameters.profiles():
        sections = parameters.load(profile)
        reported = {*sections["study"]["seeds"], *sections["train"]["seeds"]}
        assert not tried & reported, profile


def test_the_study_takes_a_trial_that_was_run_on_every_seed():
    used = parameters.load("standard")["masking"]["masked_distillation"]
    everywhere = [
        sizing.settings_of(trial) for trial in sizing.TRIALS if trial.seeds == sizing.SEEDS
    ]
    assert schema.build(masked_distillation.Settings, used) in everywhere
