"""Measure what the arena's methods left, against the retrained model of the same request.

Four sets of images: ``forgotten``, training items that were to go; ``unseen``, test images of the
same classes, which no model saw; ``test``, test images of what stays; ``kept``, training items
that stay. A *gap* is the score of a model less that of the retrained ("gold") model.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, confusion_matrix
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from unlearnlib.arena import arena
from unlearnlib.data import datasets
from unlearnlib.measures import accuracy, fidelity, membership, relearning
from unlearnlib.models import models

Part = tuple[Tensor, Tensor]  # images [N, C, H, W] and labels [N]
REFERENCES = ("original", "retrain", "retrain_again", "retrain_reordered")
_UNTRAINED = 2_000_000  # added to the seed of the untrained network: no model started from it


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
    classes: list[int]

    @property
    def unseen(self) -> Part:
        """Test images of the classes of the forgotten items."""
        return self.everything[0][self.same], self.everything[1][self.same]

    @property
    def test(self) -> Part:
        """Test images of what stays."""
        return self.everything[0][self.stays], self.everything[1][self.stays]


def sets_of(
    dataset: datasets.Dataset, request: arena.Request, *, items: int | None, most: int
) -> Sets:
    """Draw the images on which the models of a request are measured.

    Args:
        dataset: the data set.
        request: see `arena`.
        items: training items of the arena, see `arena.items_of`.
        most: of forgotten, and of kept training items, drawn at random by seed 0.
    """
    training = arena.items_of(dataset, items, request)
    generator = torch.Generator().manual_seed(0)
    forgotten, kept = (
        training.part(part[torch.randperm(len(part), generator=generator)[:most]])
        for part in (training.forgotten, training.kept)
    )
    everything = datasets.split(dataset, "test")
    same = torch.isin(everything[1], training.labels[training.forgotten].unique())
    stays = ~same if "classes" in request else torch.ones_like(same)
    return Sets(forgotten, kept, everything, same, stays, list(request.get("classes", [])))


@dataclass(eq=False)
class Said:
    """Hold what one model says of the sets: logits ``[N, K]`` and features ``[N, D]`` by set."""

    network: nn.Module
    logits: dict[str, Tensor]
    features: dict[str, Tensor]

    def accuracy(self, name: str, sets: Sets) -> float:
        """Compute the accuracy in percent on a set."""
        predicted = self.logits[name].argmax(1)
        return 100 * (predicted == getattr(sets, name)[1]).double().mean().item()

    def counts(self, sets: Sets) -> Tensor:
        """Count the predictions on all test images: a confusion matrix ``[K, K]``."""
        logits, labels = self.logits["everything"], sets.everything[1]
        found = confusion_matrix(labels, logits.argmax(1), labels=range(logits.shape[1]))
        return torch.from_numpy(found)


def listen(network: nn.Module, sets: Sets, *, full: bool = True) -> Said:
    """Evaluate a model on the sets; without `full`, on those alone that `answers` reads."""
    network = network.eval()
    if not full:
        names = ("forgotten", "test")
        return Said(network, {n: models.predict(network, getattr(sets, n)[0]) for n in names}, {})
    said = Said(network, {}, {})
    for name in ("forgotten", "kept", "everything"):
        said.logits[name], said.features[name] = _answers(network, getattr(sets, name)[0])
    for name, part in (("unseen", sets.same), ("test", sets.stays)):
        for found in (said.logits, said.features):
            found[name] = found["everything"][part]
    return said


@torch.no_grad()
def _answers(network: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Compute in one pass the logits, and the features that the last linear layer sees."""
    readout = [module for module in network.modules() if isinstance(module, nn.Linear)][-1:]
    pairs = []
    with models.record_inputs(readout) as fed:
        for batch in images.split(200):  # few enough to stay in a processor's cache
            logits = network(batch.to(models.device()))
            pairs.append((logits.cpu(), fed[0].cpu()))
    logits, features = (torch.cat(part) for part in zip(*pairs, strict=True))
    return logits, features


# ------------------------------------------------------------------------------------ scores


def answers(said: Said, gold: Said, sets: Sets) -> dict[str, float]:
    """Compare what a model and gold say of forgotten items and of test images that stay."""
    found = {}
    for short, name in (("forget", "forgotten"), ("retain", "test")):
        pair = said.logits[name], gold.logits[name]
        mine, theirs = (model.accuracy(name, sets) for model in (said, gold))
        found |= {
            f"{short}_accuracy": mine,
            f"{short}_gap": mine - theirs,
            f"js_{short}": fidelity.jensen_shannon(*pair),
            f"activation_distance_{short}": fidelity.activation_distance(*pair),
            f"completeness_{short}": fidelity.completeness(*pair),
        }
    return found


def likeness(said: Said, gold: Said, sets: Sets) -> dict[str, float]:
    """Compare a model with gold on all sets, by what both say and see."""
    three = [
        [model.accuracy(name, sets) for name in ("forgotten", "kept", "test")]
        for model in (said, gold)
    ]
    shift = accuracy.confusion_shift(said.counts(sets), gold.counts(sets))
    gone = torch.zeros(len(shift), dtype=torch.bool)
    gone[sets.classes] = True
    return {
        "forget_test_accuracy": said.accuracy("unseen", sets) if sets.classes else math.nan,
        "kept_accuracy": said.accuracy("kept", sets),
        "tow": fidelity.tug_of_war(*three),
        "confusion_shift": shift[~gone].nanmean().item(),
        "cka_forget": _alignment(said.features["forgotten"], gold.features["forgotten"]),
        "cka_retain": _alignment(said.features["test"], gold.features["test"]),
    }


def _alignment(one: Tensor, other: Tensor) -> float:
    try:
        return fidelity.linear_cka(one, other)
    except ValueError:  # features that do not vary, of a model that has collapsed
        return math.nan


def attack(said: Said, sets: Sets) -> membership.Area:
    """Attack a model with what tells its forgotten training items from unseen ones."""
    pairs = (
        membership.signals(said.logits[name], getattr(sets, name)[1])
        for name in ("forgotten", "unseen")
    )
    return membership.population_attack(*pairs)


def probe(said: Said, sets: Sets) -> float:
    """Ask a linear probe on frozen features for the forgotten classes, in percent.

    Logistic regression on the features that the read-out sees, fitted on training items, the
    forgotten classes against the rest, with both sides weighted alike; balanced accuracy on test
    images. 50 is guessing. What a read-out no longer says, features may still hold.
    """
    fitted, held = (
        (torch.cat([said.features[name] for name in pair]).double().numpy(), truth)
        for pair, truth in (
            (("forgotten", "kept"), _truth(said, "forgotten", "kept")),
            (("unseen", "test"), _truth(said, "unseen", "test")),
        )
    )
    model = make_pipeline(
        StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=1000)
    ).fit(*fitted)
    return 100 * float(balanced_accuracy_score(held[1], model.predict(held[0])))


def _truth(said: Said, positive: str, negative: str) -> np.ndarray:
    return np.repeat([1, 0], [len(said.logits[positive]), len(said.logits[negative])])


def margins_of(said: Said, sets: Sets, *, most: int) -> dict[str, Tensor]:
    """Compute the margins of the first `most` forgotten and test images, in half precision."""
    return {
        name: membership.margins(said.logits[name][:most], getattr(sets, name)[1][:most]).half()
        for name in ("forgotten", "test")
    }


# --------------------------------------------------------------------------------------- runs


def run(spec: dict[str, Any]) -> dict[str, Any]:
    """Measure all models of one request and one original model.

    Args:
        spec: ``data``, ``items``, ``request``, ``seed``, ``most`` (see `sets_of`), ``margins``
            (how many images of a set keep their margins), ``keep`` (whether the models belong to
            the result), ``relearning`` (keywords ``steps``, ``batch_size``, ``learning_rate`` of
            `relearning.relearning_curve`, or None for a model of an ensemble); of `REFERENCES` the
            files of `arena.run_training`, of which ``retrain_reordered`` may be missing; and
            ``runs``, the number of files of unlearned models, named ``run_0``, ``run_1``, ...

    Returns:
        ``margins`` by model and set; ``scores`` by model and metric (NaN where one does not apply),
        packed ``models`` if they are to be kept; and, with relearning, ``intervals`` of the attack,
        ``relearning`` curves, and ``counts``, confusion matrices on the test split. Without it the
        scores are those of `answers` alone.
    """
    sets = sets_of(
        datasets.load(spec["data"]), spec["request"], items=spec["items"], most=spec["most"]
    )
    full = spec["relearning"] is not None
    said = {name: listen(network, sets, full=full) for name, network in _networks(spec).items()}
    found: dict[str, Any] = {
        "margins": {n: margins_of(s, sets, most=spec["margins"]) for n, s in said.items()}
    }
    if spec["keep"]:
        found["models"] = {name: models.pack(s.network) for name, s in said.items()}
    gold = said["retrain"]
    found["scores"] = {name: answers(s, gold, sets) for name, s in said.items()}
    if not full:
        return found
    untrained = _untrained(gold.network, sets, seed=spec["seed"])
    until = relearning.goal(said["original"].network, sets.forgotten)
    options = spec["relearning"] | {"seed": spec["seed"], "until": until}
    curves = {
        name: relearning.relearning_curve(s.network, sets.forgotten, sets.kept, **options)
        for name, s in said.items()
    }
    times = {name: relearning.relearn_time(c, until=until) for name, c in curves.items()}
    areas = {name: attack(s, sets) for name, s in said.items()}
    found["scores"] = {
        name: found["scores"][name]
        | likeness(s, gold, sets)
        | {
            "zrf": fidelity.zero_retrain_forgetting(s.logits["forgotten"], untrained),
            "calibration_error": accuracy.calibration_error(s.logits["test"], sets.test[1]),
            "relearn_time": min(times[name], float(options["steps"])),
            "ain": _ain(times[name], times["retrain"], cap=options["steps"]),
            "mia_auc": areas[name].auc,
            "mia_gap": areas[name].auc - areas["retrain"].auc,
            "probe": probe(s, sets) if sets.classes else math.nan,
        }
        for name, s in said.items()
    }
    found["intervals"] = {name: [area.low, area.high] for name, area in areas.items()}
    found["relearning"] = curves
    found["counts"] = {name: s.counts(sets) for name, s in said.items()}
    return found


def _networks(spec: dict[str, Any]) -> dict[str, nn.Module]:
    """Load the references and every unlearned model of a request, by name."""
    found = {name: models.load(spec[name]) for name in REFERENCES if name in spec}
    for number in range(spec["runs"]):
        packed = models.load_result(spec[f"run_{number}"])["models"]
        for name, one in packed.get(spec["request"]["name"], {}).items():
            found[name] = models.unpack(one)
    return found


def _untrained(network: nn.Module, sets: Sets, *, seed: int) -> Tensor:
    """Compute what a fresh network of the same architecture says of the forgotten items."""
    torch.manual_seed(_UNTRAINED + seed)
    return models.predict(models.fresh_like(network), sets.forgotten[0])


def _ain(unlearned: float, retrained: float, *, cap: int) -> float:
    return relearning.anamnesis_index(unlearned, retrained, cap=cap) if retrained else math.nan
