"""The metrics of an unlearned model, each one object: its name, what it means, how it is computed.

What is measured of models in the arena, how the table says that a metric does not apply, which
columns the league has, and how figures write numbers: all read `METRICS`. To add a metric, write
what it computes from an `Evidence`, and register it below.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from unlearnlib.data.requests import Classes, Group, Request
from unlearnlib.measures import accuracy, fidelity, relearning
from unlearnlib.measures.evidence import Evidence, NotApplicable, Said
from unlearnlib.pipeline.registry import Named, Registry

Compute = Callable[[Evidence], float]


@dataclass(frozen=True, kw_only=True)
class Metric(Named):
    """Say what a metric is called, what it means, and how it is computed.

    Attributes:
        unit: of a value; empty for a pure number.
        direction: which values are good: ``lower``, ``higher``, or those nearest to ``gold``'s own.
        digits: after the point, for people.
        compute: the value of a model, a function at the top level of a module; NaN, or
            `NotApplicable` with a reason, where there is none. None: not of one model but of its
            run or of an ensemble, see `arena.tables`.
        serves: kinds of requests to which it applies.
        why_not: why it applies to no others, in words for the table.
        cheap: also measured for the further models of an ensemble, of which answers alone are asked.
        distance: how it becomes a distance to gold, 0 the best: its own size (``value``), what it
            lacks to 1 (``one_minus``), or its difference from gold's (``difference``).
        ranked: whether the league has a column for it.
        screened: whether the arena asks if it tells the original from gold; not those which say the
            same as another.
    """

    unit: str = ""
    direction: Literal["lower", "higher", "gold"]
    digits: int
    compute: Compute | None = None
    serves: tuple[type, ...] = (Classes, Group)
    why_not: str = ""
    cheap: bool = False
    distance: Literal["value", "one_minus", "difference"] = "difference"
    ranked: bool = False
    screened: bool = False

    @property
    def heading(self) -> str:
        """Title and unit of a value."""
        return self.title + (f" ({self.unit})" if self.unit else "")

    @property
    def distance_heading(self) -> str:
        """Title and unit of a distance to gold."""
        if self.distance == "one_minus":
            return f"1 - {self.title}"
        # two percentages differ by points
        points = self.distance == "difference" and self.unit == "%"
        return f"{self.title} (points)" if points else self.heading

    def distances(self, values: pd.Series, gold: pd.Series) -> pd.Series:
        """Compute how far from gold values are, by seed; `gold` are gold's own."""
        if self.distance == "one_minus":
            return (1 - values).abs()
        return (values - gold if self.distance == "difference" else values).abs()

    def cannot(self, request: Request) -> str | None:
        """Tell why the metric does not apply to a request, or return None where it does."""
        return None if isinstance(request, self.serves) else self.why_not


def computed(request: Request, *, cheap: bool = False) -> dict[str, Compute]:
    """List by name what is computed of the models of a request, in the order of `METRICS`.

    Args:
        request: what was to go.
        cheap: whether the cheap metrics alone.
    """
    return {
        name: metric.compute
        for name, metric in METRICS.items()
        if metric.compute and not metric.cannot(request) and (metric.cheap or not cheap)
    }


def described() -> pd.DataFrame:
    """Say what all metrics are, a row each, for people."""
    best = {"lower": "low", "higher": "high", "gold": "as gold's"}
    rows = {
        name: {
            "title": metric.title,
            "unit": metric.unit or "-",
            "best": best[metric.direction],
            "in the league": "yes" if metric.ranked else "-",
            "not for": metric.why_not or "-",
        }
        for name, metric in METRICS.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("metric")


# ------------------------------------------------------------------------------ what they say


def retain_accuracy(e: Evidence) -> float:
    """Compute the accuracy on test images of what stays, in percent."""
    return e.said.accuracy("test")


def forget_accuracy(e: Evidence) -> float:
    """Compute the accuracy on the items that were to go, in percent."""
    return e.said.accuracy("forgotten")


def forget_test_accuracy(e: Evidence) -> float:
    """Compute the accuracy on test images of the forgotten classes, in percent."""
    return e.said.accuracy("unseen")


def kept_accuracy(e: Evidence) -> float:
    """Compute the accuracy on training items that stay, in percent."""
    return e.said.accuracy("kept")


def retain_gap(e: Evidence) -> float:
    """Compute the accuracy on test images of what stays less gold's, in points."""
    return e.said.accuracy("test") - e.gold.accuracy("test")


def forget_gap(e: Evidence) -> float:
    """Compute the accuracy on the items that were to go less gold's, in points."""
    return e.said.accuracy("forgotten") - e.gold.accuracy("forgotten")


def js_forget(e: Evidence) -> float:
    """Compute `fidelity.jensen_shannon` from gold on the items that were to go."""
    return fidelity.jensen_shannon(*_logits(e, "forgotten"))


def js_retain(e: Evidence) -> float:
    """Compute `fidelity.jensen_shannon` from gold on test images of what stays."""
    return fidelity.jensen_shannon(*_logits(e, "test"))


def activation_distance_forget(e: Evidence) -> float:
    """Compute `fidelity.activation_distance` from gold on the items that were to go."""
    return fidelity.activation_distance(*_logits(e, "forgotten"))


def activation_distance_retain(e: Evidence) -> float:
    """Compute `fidelity.activation_distance` from gold on test images of what stays."""
    return fidelity.activation_distance(*_logits(e, "test"))


def completeness_forget(e: Evidence) -> float:
    """Compute `fidelity.completeness` with gold on the items that were to go."""
    return fidelity.completeness(*_logits(e, "forgotten"))


def completeness_retain(e: Evidence) -> float:
    """Compute `fidelity.completeness` with gold on test images of what stays."""
    return fidelity.completeness(*_logits(e, "test"))


def _logits(e: Evidence, name: str) -> tuple[Tensor, Tensor]:
    return e.said.logits(name), e.gold.logits(name)


def tow(e: Evidence) -> float:
    """Compute `fidelity.tug_of_war` over forgotten, kept and test items."""
    both = ([s.accuracy(n) for n in ("forgotten", "kept", "test")] for s in (e.said, e.gold))
    return fidelity.tug_of_war(*both)


def confusion_shift(e: Evidence) -> float:
    """Compute the mean `accuracy.confusion_shift` from gold over the classes that stay."""
    shift = accuracy.confusion_shift(e.said.counts, e.gold.counts)
    stays = [k for k in range(len(shift)) if k not in e.sets.classes]
    return shift[stays].nanmean().item()


def zrf(e: Evidence) -> float:
    """Compute `fidelity.zero_retrain_forgetting` on the items that were to go."""
    return fidelity.zero_retrain_forgetting(e.said.logits("forgotten"), e.untrained)


def calibration_error(e: Evidence) -> float:
    """Compute `accuracy.calibration_error` on test images of what stays, in percent."""
    return accuracy.calibration_error(e.said.logits("test"), e.sets.test[1])


# ----------------------------------------------------------------------- what is left inside


def cka_forget(e: Evidence) -> float:
    """Compute `fidelity.linear_cka` with gold's features of the items that were to go."""
    return _alignment(e, "forgotten")


def cka_retain(e: Evidence) -> float:
    """Compute `fidelity.linear_cka` with gold's features of test images of what stays."""
    return _alignment(e, "test")


def _alignment(e: Evidence, name: str) -> float:
    try:
        return fidelity.linear_cka(e.said.features(name), e.gold.features(name))
    except ValueError:  # features that do not vary, of a model that has collapsed
        raise NotApplicable("the model's answers do not vary") from None


def probe(e: Evidence) -> float:
    """Ask a linear probe on frozen features for the forgotten classes, in percent.

    Logistic regression on the features that the read-out sees, fitted on training items, the
    forgotten classes against the rest, with both sides weighted alike; balanced accuracy on test
    images. 50 is guessing. What a read-out no longer says, features may still hold.
    """
    fitted, held = (_sides(e.said, *pair) for pair in (("forgotten", "kept"), ("unseen", "test")))
    model = make_pipeline(
        StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=1000)
    ).fit(*fitted)
    return 100 * float(balanced_accuracy_score(held[1], model.predict(held[0])))


def _sides(said: Said, positive: str, negative: str) -> tuple[np.ndarray, np.ndarray]:
    """Join the features of two sets, and say which is which."""
    parts = [said.features(name).double().numpy() for name in (positive, negative)]
    return np.concatenate(parts), np.repeat([1, 0], [len(part) for part in parts])


def hidden_accuracy(e: Evidence) -> float:
    """Compute the accuracy on test images of the forgotten classes by `accuracy.nearest_mean`.

    In percent. The means are those of the features of forgotten and kept training items, a mean for
    each class, the forgotten ones too: what the features would say, were they asked.

    Raises:
        NotApplicable: features that do not vary, of a model that has collapsed.
    """
    names = ("forgotten", "kept")
    features = torch.cat([e.said.features(name) for name in names])
    labels = torch.cat([getattr(e.sets, name)[1] for name in names])
    try:
        said = accuracy.nearest_mean(features, labels, e.said.features("unseen"))
    except ValueError:
        raise NotApplicable("the model's features do not vary") from None
    return 100 * (said == e.sets.unseen[1]).double().mean().item()


def misalignment(e: Evidence) -> float:
    """Compute `hidden_accuracy` less the read-out's own accuracy on the same images, in points.

    Above 0 the features know what the read-out does not say: the feature-classifier misalignment of
    Gao et al. 2026 (arXiv 2604.08271).
    """
    return hidden_accuracy(e) - forget_test_accuracy(e)


def mia_auc(e: Evidence) -> float:
    """Compute the area under the curve of `membership.population_attack`."""
    return e.said.attack.auc


def mia_gap(e: Evidence) -> float:
    """Compute that area less gold's."""
    return e.said.attack.auc - e.gold.attack.auc


def relearn_time(e: Evidence) -> float:
    """Compute `relearning.relearn_time`, at most the mini-batches that there are."""
    return min(e.said.relearn_time, float(e.said.lessons.steps))


def returned_accuracy(e: Evidence) -> float:
    """Compute `relearning.returned_accuracy`, in percent."""
    return e.said.returned_accuracy


def ain(e: Evidence) -> float:
    """Compute `relearning.anamnesis_index`.

    Raises:
        NotApplicable: gold knows the items without a step, or never learns them.
    """
    gold, cap = e.gold.relearn_time, e.said.lessons.steps
    if gold == 0:
        raise NotApplicable("the retrained model knows the items without a step")
    if gold >= cap:
        raise NotApplicable(
            "the retrained model did not learn the items within the mini-batches allowed"
        )
    return relearning.anamnesis_index(e.said.relearn_time, gold, cap=cap)


def measured(compute: Compute, e: Evidence) -> tuple[float, str]:
    """Compute a metric of a model, and why it has no value: NaN and the reason where it has none."""
    try:
        value = float(compute(e))
    except NotApplicable as reason:
        return math.nan, str(reason)
    return value, "" if math.isfinite(value) else "it is not a number for this model"


# ---------------------------------------------------------------------------------- registry


_BY_CLASS = {"serves": (Classes,)}
METRICS: Registry[Metric] = Registry(
    "metric",
    Metric(
        "retain_accuracy", "retain accuracy", unit="%", direction="gold", digits=2,
        compute=retain_accuracy, cheap=True,
    ),
    Metric(
        "forget_accuracy", "forget accuracy", unit="%", direction="gold", digits=2,
        compute=forget_accuracy, cheap=True,
    ),
    Metric(
        "retain_gap", "retain accuracy gap", unit="points", direction="gold", digits=2,
        compute=retain_gap, cheap=True, distance="value", ranked=True, screened=True,
    ),
    Metric(
        "forget_gap", "forget accuracy gap", unit="points", direction="gold", digits=2,
        compute=forget_gap, cheap=True, distance="value", ranked=True, screened=True,
    ),
    Metric(
        "tow", "ToW", direction="higher", digits=3,
        compute=tow, distance="one_minus", ranked=True, screened=True,
    ),
    Metric(
        "confusion_shift", "confusion shift", unit="%", direction="lower", digits=2,
        compute=confusion_shift, distance="value", ranked=True, screened=True,
    ),
    Metric(
        "js_forget", "JS, forgotten", unit="nats", direction="lower", digits=3,
        compute=js_forget, cheap=True, distance="value", ranked=True, screened=True,
    ),
    Metric(
        "js_retain", "JS, retained", unit="nats", direction="lower", digits=4,
        compute=js_retain, cheap=True, distance="value", ranked=True, screened=True,
    ),
    Metric(
        "activation_distance_forget", "activation distance, forgotten", direction="lower", digits=3,
        compute=activation_distance_forget, cheap=True, distance="value", ranked=True,
        screened=True,
    ),
    Metric(
        "activation_distance_retain", "activation distance, retained", direction="lower", digits=3,
        compute=activation_distance_retain, cheap=True, distance="value",
    ),
    Metric(
        "completeness_forget", "completeness, forgotten", unit="%", direction="higher", digits=2,
        compute=completeness_forget, cheap=True, screened=True,
    ),
    Metric(
        "completeness_retain", "completeness, retained", unit="%", direction="higher", digits=2,
        compute=completeness_retain, cheap=True,
    ),
    Metric(
        "forget_test_accuracy", "forget accuracy, test", unit="%", direction="gold", digits=2,
        compute=forget_test_accuracy, **_BY_CLASS,
        why_not="the classes of a group stay, so that their test images should too",
    ),
    Metric(
        "kept_accuracy", "accuracy, kept", unit="%", direction="gold", digits=2,
        compute=kept_accuracy,
    ),
    Metric(
        "cka_forget", "CKA, forgotten", direction="higher", digits=2,
        compute=cka_forget, distance="one_minus", screened=True,
    ),
    Metric(
        "cka_retain", "CKA, test", direction="higher", digits=2,
        compute=cka_retain, distance="one_minus",
    ),
    Metric("zrf", "ZRF", direction="gold", digits=3, compute=zrf, screened=True),
    Metric(
        "calibration_error", "calibration error", unit="%", direction="lower", digits=2,
        compute=calibration_error, screened=True,
    ),
    Metric(
        "mia_auc", "attack AUC", direction="gold", digits=3, compute=mia_auc, screened=True,
    ),
    Metric(
        "mia_gap", "attack AUC gap", direction="gold", digits=3,
        compute=mia_gap, distance="value", ranked=True,
    ),
    Metric(
        "probe", "probe", unit="%", direction="gold", digits=1,
        compute=probe, ranked=True, screened=True, **_BY_CLASS,
        why_not="the classes of a group stay, so that features should tell them apart",
    ),
    Metric(
        "hidden_accuracy", "hidden accuracy", unit="%", direction="gold", digits=1,
        compute=hidden_accuracy, screened=True, **_BY_CLASS,
        why_not="the classes of a group stay, so that features should tell them apart",
    ),
    Metric(
        "misalignment", "misalignment", unit="points", direction="gold", digits=1,
        compute=misalignment, screened=True, **_BY_CLASS,
        why_not="the classes of a group stay, and the read-out should say them",
    ),
    Metric(
        "returned_accuracy", "returned accuracy", unit="%", direction="gold", digits=1,
        compute=returned_accuracy, screened=True,
    ),
    Metric(
        "relearn_time", "relearn time", unit="batches", direction="gold", digits=0,
        compute=relearn_time, ranked=True, screened=True,
    ),
    Metric("ain", "AIN", direction="gold", digits=2, compute=ain, distance="one_minus"),
    # of runs and of ensembles, see `arena.tables`
    Metric("seconds", "seconds", unit="s", direction="lower", digits=2, distance="value"),
    Metric("cost", "cost", unit="retrainings", direction="lower", digits=2, distance="value"),
    *(
        Metric(f"{name}_{part}", f"{title}, {of}", unit=unit, direction="lower", digits=digits,
               distance="value")
        for part, of in (("forget", "forgotten"), ("retain", "retained"))
        for name, title, unit, digits in (
            ("klom", "KLoM", "nats", 2), ("klom95", "KLoM, 95th percentile", "nats", 2),
            ("ulira", "U-LiRA", "%", 1), ("shadow", "shadow attack", "%", 1),
        )
    ),
)  # fmt: skip
