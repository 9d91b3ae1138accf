"""What there is to go by when a model is measured: images, and what it, gold and the original say.

Four sets of images: ``forgotten``, training items that were to go; ``unseen``, test images of the
same classes, which no model saw; ``test``, test images of what stays; ``kept``, training items that
stay. A metric (`metrics.Metric`) is computed from one `Evidence` and nothing else. All in it is
made when it is first asked for, once a model.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor, nn

from unlearnlib.data import datasets
from unlearnlib.data.datasets import Dataset
from unlearnlib.data.requests import Classes, Request, rest
from unlearnlib.measures import accuracy, membership, relearning
from unlearnlib.models import architectures, networks, training
from unlearnlib.pipeline import seeds

Part = tuple[Tensor, Tensor]  # images [N, C, H, W] and labels [N]


class NotApplicable(ValueError):
    """What a metric raises where it says nothing of a model; the message is the table's reason."""


# -------------------------------------------------------------------------------------- sets


@dataclass(frozen=True, eq=False)
class Sets:
    """Hold the images of one request.

    Attributes:
        forgotten: training items that were to go.
        kept: training items that stay.
        everything: all test images.
        same: which test images are of the forgotten items' classes, bool ``[N]``.
        stays: which test images stay, bool ``[N]``: those of other classes than the forgotten ones,
            and all where a group is to go.
        classes: the forgotten classes; empty for a group.
    """

    forgotten: Part
    kept: Part
    everything: Part
    same: Tensor
    stays: Tensor
    classes: tuple[int, ...]

    @property
    def unseen(self) -> Part:
        """Test images of the classes of the forgotten items."""
        return self.everything[0][self.same], self.everything[1][self.same]

    @property
    def test(self) -> Part:
        """Test images of what stays."""
        return self.everything[0][self.stays], self.everything[1][self.stays]


def sets_of(dataset: Dataset, request: Request, *, items: int | None, most: int) -> Sets:
    """Draw the images on which the models of a request are measured.

    Args:
        dataset: the data set.
        request: what was to go.
        items: training items, see `training.training_items`.
        most: of forgotten, and of kept training items, the same for every model.
    """
    images, labels = training.training_items(dataset, items=items)
    gone = request.positions(labels)
    some = [
        part[torch.randperm(len(part), generator=seeds.stream(0, name))[:most]]
        for name, part in (("forgotten", gone), ("kept", rest(len(labels), gone)))
    ]
    forgotten, kept = ((images[part], labels[part]) for part in some)
    everything = datasets.split(dataset, "test")
    same = torch.isin(everything[1], labels[gone].unique())
    if isinstance(request, Classes):
        return Sets(forgotten, kept, everything, same, ~same, request.classes)
    return Sets(forgotten, kept, everything, same, torch.ones_like(same), ())


# -------------------------------------------------------------------------------- one model


@dataclass(frozen=True, eq=False)
class Said:
    """What one model says of the sets.

    Attributes:
        network: the model.
        sets: the images.
        seed: of the order of relearning, the same for all models of a request.
        lessons: how it is made to learn again.
        until: accuracy in percent at which it counts as having learned again.
    """

    network: nn.Module
    sets: Sets
    seed: int
    lessons: relearning.Settings
    until: float
    _heard: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False)

    def logits(self, name: str) -> Tensor:
        """Return the logits ``[N, K]`` on a set."""
        return self._answers(name)[0]

    def features(self, name: str) -> Tensor:
        """Return what the read-out sees on a set, ``[N, D]``."""
        return self._answers(name)[1]

    def accuracy(self, name: str) -> float:
        """Compute the accuracy in percent on a set."""
        return accuracy.percent_correct(self.logits(name), getattr(self.sets, name)[1])

    @cached_property
    def counts(self) -> Tensor:
        """The confusion matrix on all test images: int64 ``[K, K]``, true classes in rows."""
        logits, labels = self.logits("everything"), self.sets.everything[1]
        return accuracy.pairs(labels, logits.argmax(1), classes=logits.shape[1])

    @cached_property
    def attack(self) -> membership.Area:
        """How well an attacker tells forgotten training items from unseen ones."""
        pairs = (
            membership.signals(self.logits(name), getattr(self.sets, name)[1])
            for name in ("forgotten", "unseen")
        )
        return membership.population_attack(*pairs)

    @cached_property
    def relearning_curve(self) -> list[float]:
        """Accuracy on forgotten items while a copy learns them again, see `relearning`."""
        return relearning.relearning_curve(
            self.network, self.sets.forgotten, self.sets.kept,
            settings=self.lessons, seed=self.seed, until=self.until,
        )  # fmt: skip

    @cached_property
    def returned_accuracy(self) -> float:
        """Accuracy in percent on forgotten items after a copy was trained on kept ones alone."""
        return relearning.returned_accuracy(
            self.network, self.sets.forgotten, self.sets.kept,
            settings=self.lessons, seed=self.seed,
        )  # fmt: skip

    @property
    def relearn_time(self) -> float:
        """Mini-batches until the items are learned again; infinite where they never are."""
        return relearning.relearn_time(self.relearning_curve, until=self.until)

    def _answers(self, name: str) -> tuple[Tensor, Tensor]:
        if name not in self._heard:
            part = {"unseen": self.sets.same, "test": self.sets.stays}.get(name)
            if part is None:
                images, _ = getattr(self.sets, name)
                self._heard[name] = networks.answers(self.network, images)
            else:
                logits, features = self._answers("everything")
                self._heard[name] = logits[part], features[part]
        return self._heard[name]


# ------------------------------------------------------------------------------ several models


@dataclass(frozen=True, eq=False)
class Evidence:
    """What a metric may go by: what a model says, with gold and the original beside it.

    Attributes:
        said: by the model that is measured.
        gold: by the model that was retrained for the same request and seed.
        original: by the model from before.
    """

    said: Said
    gold: Said
    original: Said

    @property
    def sets(self) -> Sets:
        """The images."""
        return self.said.sets

    @cached_property
    def untrained(self) -> Tensor:
        """What a fresh network of the same architecture says of the forgotten items: ``[N, K]``."""
        with torch.random.fork_rng():
            torch.manual_seed(seeds.derive(self.said.seed, "untrained network"))
            fresh = architectures.fresh_like(self.gold.network)
        return networks.predict(fresh, self.sets.forgotten[0])


def evidence(
    models: Mapping[str, nn.Module], sets: Sets, *, seed: int, lessons: relearning.Settings
) -> dict[str, Evidence]:
    """Put every model of a request beside gold and the original.

    Args:
        models: by name; ``retrain`` is gold, ``original`` the model from before.
        sets: the images of the request.
        seed: of what is drawn while measuring.
        lessons: how models are made to learn again.

    Returns:
        by name, in the order of the models.
    """
    until = relearning.goal(models["original"], sets.forgotten)
    said = {
        name: Said(network.eval(), sets, seed, lessons, until) for name, network in models.items()
    }
    return {name: Evidence(one, said["retrain"], said["original"]) for name, one in said.items()}
