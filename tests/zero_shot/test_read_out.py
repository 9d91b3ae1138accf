"""Unlearning in the read-out alone: what changes, what stays, and which networks have none."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from toys import CLASSES, SHAPE, Table, states_equal, stripes, taught, tiny

from unlearnlib.data.requests import Classes
from unlearnlib.models import checkpoints, networks
from unlearnlib.pipeline import schema
from unlearnlib.zero_shot import losses, method, read_out
from unlearnlib.zero_shot.method import Outcome
from unlearnlib.zero_shot.read_out import Embeddings, Settings

GONE = Classes([1])
FEW = Embeddings(per_class=200, steps=300, batch_size=400, rate=0.02)


def unlearn(entry: method.ZeroShot, model: nn.Module, *, seed: int = 0, **changes) -> Outcome:
    settings = changes.pop("settings", entry.settings())
    return method.unlearn(model, entry, GONE, shape=SHAPE, settings=settings, seed=seed)


def rows_of(network: nn.Module) -> Tensor:
    layer = network.classifier
    return torch.cat([layer.weight, layer.bias[:, None]], 1).detach()


# ------------------------------------------------------------------------------ masked logit


def test_the_answers_are_those_with_the_class_masked_out(monkeypatch: pytest.MonkeyPatch):
    model, (images, _) = taught(monkeypatch), stripes(40)
    outcome = unlearn(read_out.MASKED_LOGIT, model)
    wanted = losses.masked(networks.predict(model, images), GONE).softmax(1)
    found = networks.predict(outcome.network, images).softmax(1)
    assert torch.equal(found[:, 1], torch.zeros(40))
    assert torch.allclose(found, wanted, atol=1e-6)
    assert not outcome.network.training
    assert outcome.images.shape == (0, *SHAPE)


def test_masking_changes_its_rows_alone_and_draws_nothing(monkeypatch: pytest.MonkeyPatch):
    model = taught(monkeypatch)
    first, again = (unlearn(read_out.MASKED_LOGIT, model, seed=s).network for s in (0, 1))
    assert states_equal(first, again)
    assert rows_of(first)[1].tolist() == [0.0] * 6 + [read_out.NEVER]
    for name, tensor in model.state_dict().items():
        stays = [0, 2, 3] if name.startswith("classifier") else ...
        assert torch.equal(first.state_dict()[name][stays], tensor[stays])


# -------------------------------------------------------------------------- random class row


def test_a_fresh_row_is_drawn_as_a_new_linear_layer_draws_it(monkeypatch: pytest.MonkeyPatch):
    model = taught(monkeypatch)
    drawn = [rows_of(unlearn(read_out.RANDOM_CLASS_ROW, model, seed=s).network) for s in range(60)]
    before = rows_of(model)
    assert all(torch.equal(rows[[0, 2, 3]], before[[0, 2, 3]]) for rows in drawn)
    values = torch.stack([rows[1] for rows in drawn]).flatten()
    bound = 1 / math.sqrt(6)
    assert values.abs().max() <= bound
    # uniform: the deviation is bound / √3, known here to some 5 %
    assert values.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.1)
    assert len(values.unique()) == len(values)


# ------------------------------------------------------------------------- random embeddings


def test_only_the_read_out_learns_and_the_class_goes(monkeypatch: pytest.MonkeyPatch):
    model = taught(monkeypatch)
    outcome = unlearn(read_out.RANDOM_EMBEDDINGS, model, settings=FEW)
    before, after = model.state_dict(), outcome.network.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"classifier.weight", "classifier.bias"}
    taken = outcome.facts["losses"]
    assert len(taken) == FEW.steps
    assert np.mean(taken[-20:]) < taken[0] / 20
    images, labels = stripes(80, seed=3)
    predicted, gone = networks.predict(outcome.network, images).argmax(1), labels == 1
    assert (predicted[gone] == 1).float().mean() < 0.1
    assert (predicted[~gone] == labels[~gone]).float().mean() > 0.9


def test_the_first_loss_is_the_probability_that_is_to_go(monkeypatch: pytest.MonkeyPatch):
    """KL from the masked answers to the answers is -log(1 - p_f), on every embedding."""
    model = taught(monkeypatch)
    every = Embeddings(per_class=50, steps=1, batch_size=50 * CLASSES)
    (loss,) = unlearn(read_out.RANDOM_EMBEDDINGS, model, settings=every).facts["losses"]
    drawn = read_out.labelled(model.classifier, per_class=50, seed=0)
    share = losses.share(model.classifier(drawn), GONE)
    assert loss == pytest.approx(-torch.log1p(-share).mean().item(), rel=1e-4)


def test_embeddings_are_normal_and_balanced_as_the_read_out_sees_them():
    torch.manual_seed(0)
    layer = nn.Linear(5, 3)
    drawn = read_out.labelled(layer, per_class=300, seed=0)
    assert drawn.shape == (900, 5)
    assert layer(drawn).argmax(1).tolist() == [0] * 300 + [1] * 300 + [2] * 300
    assert torch.equal(drawn, read_out.labelled(layer, per_class=300, seed=0))
    assert not torch.equal(drawn, read_out.labelled(layer, per_class=300, seed=1))
    layer.weight.data.zero_()
    layer.bias.data = torch.tensor([1.0, 0.0, 0.0])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(read_out, "ROUNDS", 2)
        with pytest.raises(
            ValueError, match="gives 0 of 20000 random embeddings to class 1.*lower"
        ):
            read_out.labelled(layer, per_class=1, seed=0)


# ------------------------------------------------------------------------------ any of them


@pytest.mark.parametrize("name", ["MASKED_LOGIT", "RANDOM_CLASS_ROW", "RANDOM_EMBEDDINGS"])
def test_the_model_stays_and_the_copy_can_be_kept(monkeypatch: pytest.MonkeyPatch, name: str):
    model, entry = networks.frozen(taught(monkeypatch)), getattr(read_out, name)
    small = {"settings": Embeddings(per_class=10, steps=2)} if entry.settings is Embeddings else {}
    network = unlearn(entry, model, **small).network
    assert states_equal(model, taught(monkeypatch))
    assert states_equal(checkpoints.unpack(checkpoints.pack(network)), network)
    assert method.obstacle(model, SHAPE, entry.settings()) is None


class Odd(nn.Module):
    """End in something else than the linear layer."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, images: Tensor) -> Tensor:
        return 2 * self.inner(images)


class Several(nn.Module):
    """Two linear layers, the read-out defined first, and one that is never called."""

    def __init__(self, *, bias: bool = True):
        super().__init__()
        self.last = nn.Linear(5, 3, bias=bias)
        self.idle, self.first = nn.Linear(5, 3), nn.Linear(math.prod(SHAPE), 5)

    def forward(self, images: Tensor) -> Tensor:
        return self.last(self.first(images.flatten(1)).relu())


def test_the_read_out_is_the_layer_that_gives_the_logits(monkeypatch: pytest.MonkeyPatch):
    network = Several()
    assert read_out.read_out(network, SHAPE) is network.last
    model = tiny(monkeypatch)
    assert read_out.read_out(model, SHAPE) is model.classifier


@pytest.mark.parametrize(
    "network", [Odd(Several()), Several(bias=False), Table()], ids=["scaled", "no bias", "none"]
)
def test_a_network_without_a_read_out_says_so(network: nn.Module):
    said = method.obstacle(network, SHAPE, Settings())
    assert said.startswith("changes the linear layer, with a bias, that gives the logits")
    with pytest.raises(
        ValueError, match=f"{type(network).__name__}: unlearning changes the linear"
    ):
        unlearn(read_out.MASKED_LOGIT, network)


def test_settings_out_of_range_are_refused():
    with pytest.raises(ValueError, match=r"per_class = 0: should be greater than or equal to 1"):
        schema.build(Embeddings, {"per_class": 0})
