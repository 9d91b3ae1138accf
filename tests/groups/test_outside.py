"""Another library's gradients are ours, and its curvature ranks items nearly as ours does."""

import builtins
from typing import Any

import pytest
import torch
from group_tasks import fitted
from scipy.stats import spearmanr

from unlearnlib.groups import attribution, estimators, outside
from unlearnlib.groups.attribution import Parts
from unlearnlib.groups.estimators import Fitted
from unlearnlib.influence import curvature

PARTS = Parts(parts=6, share=0.5, trainings=2, queries=20)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Fitted:
    return fitted(tmp_path_factory.mktemp("outside"))


def test_its_gradients_are_ours(model: Fitted):
    dataset, objective = estimators.objective_of(model)
    network, queries = objective.network, PARTS.asked(dataset)
    items = objective.inputs, objective.targets
    found = outside.pairwise(network, queries, items, strategy="identity", damping=0.0)
    asked = torch.cat([gradients for gradients, _ in attribution.item_margins(network, *queries)])
    losses = curvature.item_gradients(curvature.Objective(network, *items))
    torch.testing.assert_close(found.double(), asked @ losses.T, rtol=1e-3, atol=1e-3)


def test_its_attribution_agrees_with_ours(model: Fitted):
    _, objective = estimators.objective_of(model)
    before = objective.network.state_dict()
    torch.manual_seed(0)
    told = outside.run_ekfac(fitted=model, parts=PARTS, seed=0)["foretold"]["ekfac"]
    assert told.shape == (6, 20)
    settings = attribution.Settings(8, 60, (0.05,), 1e-3, 100)
    ours = attribution.run_attributions(fitted=model, parts=PARTS, settings=settings, seed=0)
    newton = ours["foretold"]["newton"]
    agreement = attribution.scores(told.numpy(), newton.numpy()).mean()
    assert agreement > 0.7
    assert spearmanr(told.flatten(), newton.flatten()).statistic > 0.7
    assert all(
        torch.equal(before[key], value) for key, value in objective.network.state_dict().items()
    )


def test_it_names_the_remedy_where_it_is_absent(model: Fitted, monkeypatch: pytest.MonkeyPatch):
    real = builtins.__import__

    def absent(name: str, *args: Any, **more: Any) -> Any:
        if name.startswith("kronfluence"):
            raise ModuleNotFoundError("No module named 'kronfluence'", name="kronfluence")
        return real(name, *args, **more)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'unlearnlib\[study\]'"):
        outside.run_ekfac(fitted=model, parts=PARTS, seed=0)
