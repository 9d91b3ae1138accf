"""The plan: requests of every label and size, and one curvature a model."""

from pathlib import Path

import pytest
import torch
from group_tasks import RECIPE
from toys import lines

from unlearnlib.data.requests import Group
from unlearnlib.groups import estimators, plan, retrain
from unlearnlib.influence import curvature
from unlearnlib.pipeline import paths
from unlearnlib.pipeline.sweep import sweep

WANTED = {"labels": [0, 8], "coherent_sizes": [5, 10], "random_sizes": [40]}


def test_requests_are_of_every_label_and_size_under_names_of_their_own():
    found = plan.requests(**WANTED, seed=3)
    assert len(found) == 5
    names = [request.name for request in found]
    assert len(set(names)) == 5
    assert names[0] == "coherent-label0-5-seed3"
    assert names[-1] == "random-all-40-seed3"
    assert found[1] == Group("coherent", 0, 10, seed=3)
    sources = plan.by_source(found)
    assert {name: len(part) for name, part in sources.items()} == {
        "label0": 2, "label8": 2, "random": 1,
    }  # fmt: skip


def test_models_are_retrained_and_expanded_as_they_were_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("UNLEARNLIB_ROOT", str(tmp_path))
    here = paths.place("toy")
    here.data.parent.mkdir(parents=True)
    lines(here.data)
    wanted = {"model": "compact", "width": 0.25, "recipe": RECIPE}
    tasks = {"compact-seed4": dict(data=here.data, **wanted, request=None, seed=4)}
    sweep(retrain.run, tasks, store=here.runs / "group_models")
    original = here.run("group_models", "compact-seed4")
    assert plan.recipe_of(original) == wanted
    options = {"l2": RECIPE.l2, "damping": 0.3, "workers": 1, "engine": "loky"}
    (found,) = plan.curvatures(here, [4], **options).values()
    assert (found.data, found.original, found.damping) == (here.data, original, 0.3)
    _, objective = estimators.objective_of(found)
    matrix = estimators.system_of(found).matrix
    torch.testing.assert_close(matrix, curvature.gauss_newton(objective), rtol=1e-5, atol=1e-6)
    assert tmp_path / "build" in found.curvature.parents
