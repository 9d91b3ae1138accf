"""The call for all zero-shot methods: what it takes, and that it is the methods' own."""

import pytest
import torch

from unlearnlib.models import models
from unlearnlib.zero_shot import masked_distillation, methods
from unlearnlib.zero_shot.deep_inversion import Synthesis

SHAPE = (1, 8, 8)


def test_misspelt_methods_are_named() -> None:
    with pytest.raises(ValueError, match="unknown kind 'gtk'; choose one of"):
        methods.settings_of({"kind": "gtk"})
    with pytest.raises(ValueError, match=r"gkt takes \['settings'\], not \['setings'\]"):
        methods.settings_of({"kind": "gkt", "setings": {}})
    with pytest.raises(TypeError, match="setps"):
        methods.settings_of({"kind": "masked_distillation", "tuning": {"setps": 1}})


def test_parts_reach_the_method_and_the_rest_keeps_its_default() -> None:
    parts = methods.settings_of({"kind": "masked_distillation", "tuning": {"steps": 7}})
    assert parts == {"synthesis": Synthesis(), "tuning": masked_distillation.Tuning(steps=7)}


def test_the_call_is_the_methods_own() -> None:
    torch.manual_seed(0)
    model = models.frozen(models.build("allcnn", width=0.03))
    synthesis, tuning = {"per_class": 2, "steps": 1}, {"steps": 2, "batch_size": 4}
    method = {"kind": "masked_distillation", "synthesis": synthesis, "tuning": tuning}
    network, images = methods.unlearn(model, method, forget_classes=[3], shape=SHAPE, seed=5)
    same = masked_distillation.unlearn(
        model, forget_classes=[3], num_classes=10, shape=SHAPE, synthesis=Synthesis(**synthesis),
        tuning=masked_distillation.Tuning(**tuning), seed=5,
    )  # fmt: skip
    assert list(images.shape) == [0, *SHAPE]
    assert not network.training
    for one, other in zip(network.parameters(), same.parameters(), strict=True):
        assert torch.equal(one, other)
