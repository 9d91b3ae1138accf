"""When to stop a transfer, without data: signs that the student learns what it should not.

Gated knowledge transfer restores the classes that stay and then, within some tens of pseudo-batches,
the forgotten ones too. What tells the two apart here reads the teacher, the snapshots of the student
and what the generator drew, and no image of the data set. A rule is a sign by snapshot and a limit;
the run is stopped at the last snapshot before the sign first rises above the limit.

Symbols: T teacher, S student, C_f forget classes.
"""

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from scipy import stats
from torch import Tensor, nn

from unlearnlib.data.requests import Classes
from unlearnlib.models import architectures, checkpoints, networks
from unlearnlib.pipeline import clock, records, seeds
from unlearnlib.pipeline.registry import Named, Registry
from unlearnlib.zero_shot import losses, method
from unlearnlib.zero_shot.deep_inversion import Synthesis, synthesise
from unlearnlib.zero_shot.method import Need, Shape

FORGOTTEN = 1.0  # percent of forget accuracy at most, of a stop that is not too late
EARLIER = "transfer in earlier runs"  # timing of what a stop goes back on, in other records


@dataclass(frozen=True)
class Rule(Named):
    """A rule that stops a transfer without data.

    Attributes:
        limit: the run is stopped before the sign rises above.
        asks: whether it asks about images of C_f that were inverted from T.
        mended: whether it was made after the runs that are reported had been seen, as a remedy.
    """

    limit: float
    asks: bool = False
    mended: bool = False


RULES: Registry[Rule] = Registry(
    "stopping rule",
    Rule("leak", "leak on drawn images", 0.04),
    Rule("slope", "slope of the log-odds", 0.55),
    Rule("probe", "probability on the probe", 0.03, asks=True),
    Rule("odds", "largest log-odds on the probe", -1.8, asks=True),
    Rule("rise", "rise of these log-odds from their lowest", 4.0, asks=True, mended=True),
    Rule("either", "leak or log-odds, with a margin", 0.0, asks=True, mended=True),
)

# Limits of the two signs of `either`: of what they were when a class of the development runs came
# back, the lower limit for one run more, at 95 %; see `prediction_limit`
EITHER = {"leak": 0.02, "odds": -2.3}
_LEAST = 1e-9  # of a leak, so that it has a logarithm


@dataclass(frozen=True)
class Stop(method.Settings):
    """How a transfer is stopped.

    Attributes:
        rule: an entry of `RULES`.
        limit: of its sign; None for the rule's own.
        probe: how the images are drawn that rules ask about; ``per_class`` counts those of each class.
    """

    rule: Literal["leak", "slope", "probe", "odds", "rise", "either"] = "either"
    limit: float | None = None
    probe: Synthesis = field(
        default_factory=lambda: Synthesis(per_class=100, steps=8, prior_steps=200)
    )

    @property
    def bound(self) -> float:
        """The limit that counts."""
        return RULES[self.rule].limit if self.limit is None else self.limit

    @property
    def needs(self) -> tuple[Need, ...]:
        """Those of the synthesis, where the rule asks about such images."""
        return self.probe.needs if RULES[self.rule].asks else ()


# ------------------------------------------------------------------------------------ the signs


def read(
    found: Mapping[str, Any], request: Classes, *, probe: Tensor | None
) -> dict[str, list[float]]:
    """Read the signs of every rule at each snapshot of a transfer.

    Args:
        found: ``history``, ``snapshots`` and ``begun`` of `gkt.transfer`.
        request: C_f.
        probe: images of C_f, ``[N, C, H, W]`` in [0, 1], see `probe_images`; None for no such sign.

    Returns:
        a value a snapshot, by the name of the rule.
    """
    at = [kept["pseudo_batch"] - found["begun"] for kept in found["snapshots"]]
    history = found["history"]
    signs = {name: [smoothed(history[name])[n - 1] for n in at] for name in ("leak", "slope")}
    if probe is None:
        return signs
    students = [checkpoints.unpack(kept["model"]) for kept in found["snapshots"]]
    said = [networks.predict(student, probe) for student in students]
    odds = [losses.odds(logits, request).max().item() for logits in said]
    lowest = itertools.accumulate(odds, min)
    return signs | {
        "probe": [losses.share(logits, request).mean().item() for logits in said],
        "odds": odds,
        "rise": [now - before for now, before in zip(odds, lowest, strict=True)],
        "either": either(signs["leak"], odds),
    }


def either(leak: Sequence[float], odds: Sequence[float]) -> list[float]:
    """Join leak and log-odds: how far either is above its limit, in nats, whichever is more.

    Each is heard once it has been at most its limit: an untrained student is above both, and where
    the generator draws no image of C_f, the last that was heard of the leak may be of such a one.

    Args:
        leak: a share in [0, 1] a snapshot; NaN where there is none.
        odds: log-odds, in nats, a snapshot.

    Returns:
        a value a snapshot; NaN as long as neither is heard.
    """
    above = [
        np.log(np.maximum(leak, _LEAST) / EITHER["leak"]),
        np.subtract(odds, EITHER["odds"]),
    ]
    heard = [np.where(np.logical_or.accumulate(part <= 0), part, math.nan) for part in above]
    return np.fmax(*heard).tolist()


def smoothed(values: Sequence[float], *, memory: float = 0.8) -> list[float]:
    """Smooth a sign exponentially; `memory` is the weight of the past. NaN says nothing new."""
    out, last = [], math.nan
    for value in values:
        if not math.isnan(value):
            last = value if math.isnan(last) else memory * last + (1 - memory) * value
        out.append(last)
    return out


def probe_images(
    teacher: nn.Module, request: Classes, *, shape: Shape, settings: Synthesis, seed: int
) -> Tensor:
    """Draw images of C_f from T by DeepInversion: ``[N, C, H, W]`` in [0, 1].

    Images of every class are drawn together, since T's statistics are those of all classes.
    """
    own = seeds.derive(seed, "probe of the stop")
    everything = range(architectures.num_classes(teacher))
    images, labels = synthesise(teacher, everything, shape=shape, settings=settings, seed=own)
    return images[request.mask(labels)].float() / 255


# ------------------------------------------------------------------------------------- the stop


def last_below(sign: Sequence[float], limit: float) -> int:
    """Find the last snapshot before a sign first rises above a limit.

    An untrained student gives C_f its share of every image, so a rule waits until its sign is at
    most the limit. A sign that is NaN says nothing.

    Args:
        sign: a value a snapshot, in order.
        limit: of the sign.

    Returns:
        a position: the last one when the sign never rises, the first when it rises before all.
    """
    armed = False
    for at, value in enumerate(sign):
        if armed and value > limit:
            return at - 1
        armed = armed or value <= limit
    return len(sign) - 1


def judged(curve: pd.DataFrame, sign: Sequence[float], limit: float) -> dict[str, float | bool]:
    """Judge a stop by the curve on test data, which the rule did not see.

    Args:
        curve: a row a snapshot, in order: ``pseudo_batch``, ``retain_accuracy`` and
            ``forget_accuracy`` in percent.
        sign: of the rule, a value a snapshot.
        limit: of the sign.

    Returns:
        ``stop``, its pseudo-batch; ``retain`` and ``forget`` accuracy there; ``too late``, whether
        more than `FORGOTTEN` percent of the forgotten classes are known; and ``regret``, how much more
        retain accuracy the best snapshot has that knows less, in points.
    """
    kept = curve.iloc[last_below(sign, limit)]
    forgetting = curve[curve["forget_accuracy"] <= FORGOTTEN]
    return {
        "stop": int(kept["pseudo_batch"]),
        "retain": kept["retain_accuracy"],
        "forget": kept["forget_accuracy"],
        "too late": bool(kept["forget_accuracy"] > FORGOTTEN),
        "regret": forgetting["retain_accuracy"].max() - kept["retain_accuracy"],
    }


def compared(
    curves: Sequence[pd.DataFrame], signs: Sequence[Sequence[float]], limits: Sequence[float]
) -> pd.DataFrame:
    """Compare limits of a rule on runs that it is developed on.

    Args:
        curves: see `judged`, a run each.
        signs: of the rule, a run each.
        limits: to compare.

    Returns:
        by limit, no row without limits: ``too_late``, runs that were stopped too late, and ``regret``,
        the mean over the others, in points; NaN where there are none.
    """
    rows = {}
    for limit in limits:
        found = [judged(*run, limit) for run in zip(curves, signs, strict=True)]
        regrets = [one["regret"] for one in found if not one["too late"]]
        mean = sum(regrets) / len(regrets) if regrets else math.nan
        rows[limit] = [len(found) - len(regrets), mean]
    table = pd.DataFrame.from_dict(rows, orient="index", columns=["too_late", "regret"])
    return table.rename_axis("limit")


def onset(curve: pd.DataFrame, sign: Sequence[float]) -> float:
    """Find the sign at the first snapshot that knows more than `FORGOTTEN`; NaN if none does."""
    late = (curve["forget_accuracy"] > FORGOTTEN).tolist()
    return sign[late.index(True)] if any(late) else math.nan


def prediction_limit(onsets: Sequence[float], *, level: float = 0.95) -> float:
    """Foretell from some runs what the sign of one run more will not be below when a class comes back.

    The lower limit of Student's prediction interval, ``mean - t s √(1 + 1/n)``: unlike the highest
    limit at which none of n runs is stopped too late, which one run more will miss with probability
    1 / (n + 1), it leaves a margin for how the runs differ.

    Args:
        onsets: of n runs, see `onset`, on a scale on which they are near a normal distribution: a
            share as its logarithm. NaN is left out.
        level: of the interval, one-sided.

    Returns:
        the limit, on the same scale; NaN of fewer than two runs.
    """
    values = [value for value in onsets if not math.isnan(value)]
    if len(values) < 2:
        return math.nan
    reach = stats.t.ppf(level, len(values) - 1) * math.sqrt(1 + 1 / len(values))
    return statistics.mean(values) - float(reach) * statistics.stdev(values)


# ------------------------------------------------------------------------------ runs of a sweep


def run_probe(
    *, original: Path, request: Classes, settings: Synthesis, seed: int
) -> dict[str, Any]:
    """Draw the images of a probe, once for all transfers from an original model.

    Args:
        original: file of the teacher.
        request: the forget classes.
        settings: of the synthesis.
        seed: of the images.

    Returns:
        ``images``, see `probe_images`.
    """
    teacher, shape = checkpoints.load_teacher(original, request)
    return {"images": probe_images(teacher, request, shape=shape, settings=settings, seed=seed)}


def run(
    *, transfer: Path, probe: Path, request: Classes, rule: str, limit: float
) -> dict[str, Any]:
    """Stop one transfer of a sweep, by what it kept and a probe of its teacher.

    Its share of the transfer, up to the snapshot at which the rule speaks, and the probe land in the
    timing `EARLIER`, beside the seconds of the run itself.

    Args:
        transfer: file of `gkt.run_transfer`.
        probe: file of `run_probe`.
        request: the forget classes.
        rule: an entry of `RULES`.
        limit: of its sign.

    Returns:
        ``model``, the packed student at the stop; ``stop``, its pseudo-batch; ``signs``, see `read`,
        at the pseudo-batches ``at``; ``images`` that the generator drew at the stop, with
        ``image_labels``, the class that T sees in each, and its ``confidence``.
    """
    found = records.result(transfer)
    signs = read(found, request, probe=records.result(probe)["images"])
    snapshots = found["snapshots"]
    chosen = last_below(signs[rule], limit)
    at = [kept["pseudo_batch"] for kept in snapshots]
    share = at[min(chosen + 1, len(at) - 1)] / at[-1]
    clock.add(EARLIER, records.seconds(transfer) * share + records.seconds(probe))
    kept = snapshots[chosen]
    drawn = {
        "images": kept["images"], "image_labels": kept["predicted"],
        "confidence": kept["confidence"],
    }  # fmt: skip
    model = checkpoints.pack(checkpoints.unpack(kept["model"]))
    return drawn | {"model": model, "stop": at[chosen], "signs": signs, "at": at}
