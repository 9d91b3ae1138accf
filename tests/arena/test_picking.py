"""Items that models pick: the hard ones are found, and the direction is the dense eigenvector."""

from pathlib import Path

import pytest
import torch
from arena_tasks import RECIPE, plan
from influence_tasks import small_net
from toys import lines

from unlearnlib.arena import picking
from unlearnlib.arena.plan import Plan
from unlearnlib.data.requests import PICKED, Picked, RequestError, parse
from unlearnlib.influence import curvature
from unlearnlib.models import training
from unlearnlib.pipeline import records
from unlearnlib.pipeline.paths import Place
from unlearnlib.pipeline.records import Record


def test_the_main_direction_is_the_leading_eigenvector_of_the_influence_matrix():
    objective = small_net()
    index = torch.arange(objective.items)
    found = picking.main_direction(objective, damping=0.1, curvature_index=index)
    penalty = objective.l2 * curvature.flatten(objective.network).double()
    rows = curvature.item_gradients(objective) - penalty
    matrix = curvature.gauss_newton(objective) + 0.1 * torch.eye(rows.shape[1]).double()
    influence = rows @ torch.linalg.solve(matrix, rows.T)
    leading = torch.linalg.eigh(influence)[1][:, -1]
    assert (found @ leading).abs() == pytest.approx(1, abs=1e-6)
    assert found.norm() == pytest.approx(1)
    assert found.pow(3).sum() >= 0


def trained(folder: Path) -> dict:
    lines(folder / "toy.npz")
    result = training.run(
        data=folder / "toy.npz", model="compact", width=0.25, recipe=RECIPE, request=None, seed=0,
        start=None,
    )  # fmt: skip
    path = folder / "original.pt"
    records.write(path, Record("original", records.plain(result), 1.0), key="")
    return dict(
        data=folder / "toy.npz", items=None, originals=[path], l2=1e-3, damping=0.05,
        curvature_items=40,
    )  # fmt: skip


@pytest.mark.parametrize("mode", PICKED)
def test_a_run_orders_all_items_from_the_highest_score(tmp_path: Path, mode: str):
    found = picking.run(mode=mode, **trained(tmp_path))
    order, scores = found["order"], found["scores"]
    assert order.sort().values.tolist() == list(range(len(scores)))
    assert (scores[order].diff() <= 0).all()


def test_hard_items_are_those_that_were_planted():
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3))
    images, labels = torch.rand(20, 1, 2, 2), torch.zeros(20, dtype=torch.long)
    model[1].bias.data = torch.tensor([9.0, 0.0, 0.0])
    labels[[4, 11]] = 1  # a wrong label is hard
    scores = picking.difficulty([model], images, labels)
    assert set(scores.topk(2).indices.tolist()) == {4, 11}


def test_a_plan_reads_what_was_picked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("UNLEARNLIB_ROOT", str(tmp_path))
    asked = {"hard": parse({"mode": "hard", "size": 2})}
    before = plan(requests=asked, ensembles={"hard": 3})
    tasks = before.trainings(model="allcnn", width=0.05, recipe=RECIPE)
    assert all(task["request"] is None for task in tasks.values())  # golds wait
    picks = before.picks(l2=0.1, damping=0.1, curvature_items=3)
    assert picks.keys() == {"hard"}
    # what picks is trained, and is no model that is measured
    pickers = {path.stem for path in picks["hard"]["originals"]}
    assert pickers < set(tasks)
    read = {file.stem for pair in before.pairs() for file in before.references(*pair).values()}
    assert not pickers & read
    kinds = [{tasks[n]["seed"] for n in tasks if n.startswith(k)} for k in ("picker", "original")]
    assert not kinds[0] & kinds[1]
    path = Place("quick").run("arena_picked", "hard")
    path.parent.mkdir(parents=True)
    result = {"order": torch.tensor([7, 3, 5])}
    records.write(path, Record("hard", result, 1.0), key="")
    given = {"items": 50, "seeds": [0, 1], "other_seeds": [0], "ensembles": {"hard": 3}}
    found = Plan.of(Place("quick"), given | {"requests": {"hard": {"mode": "hard", "size": 2}}})
    assert found.requests["hard"].positions(torch.zeros(9, dtype=torch.long)).tolist() == [3, 7]
    golds = found.trainings(model="allcnn", width=0.05, recipe=RECIPE)
    assert golds["hard-seed0"]["request"].items == (3, 7)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"mode": "hardest", "size": 3}, "choose one of"),
        ({"mode": "hard", "size": 0}, "size=0"),
        ({"mode": "hard", "size": 3, "label": 1}, "leave them out"),
        ({"mode": "hard", "size": 3, "items": (1, 2)}, "2 items for size=3"),
    ],
)
def test_bad_groups_are_refused(given: dict, message: str):
    with pytest.raises(RequestError, match=message):
        Picked(**given)


def test_a_group_that_is_not_picked_yet_says_what_to_run():
    with pytest.raises(RequestError, match="not picked yet; run the notebook 40_arena_models"):
        Picked("hard", size=2).positions(torch.zeros(5, dtype=torch.long))
    with pytest.raises(RequestError, match="no item 9 among 5"):
        Picked("hard", size=2, items=(1, 9)).positions(torch.zeros(5, dtype=torch.long))
