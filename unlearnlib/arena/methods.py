"""Who takes part in the arena: the models to compare with, and the methods as parameters set them.

A method comes from the registry of its family. Its settings come from parameters, and so may its
name, where one method enters several times (``gkt_20_batches`` beside ``gkt_prior``).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from unlearnlib.arena.baselines import BASELINES
from unlearnlib.arena.decoys import DECOYS
from unlearnlib.data.requests import FAMILIES, Method, Request
from unlearnlib.influence.estimators import ESTIMATORS
from unlearnlib.pipeline.registry import Named, Registry
from unlearnlib.pipeline.schema import build
from unlearnlib.zero_shot.methods import METHODS

Given = Mapping[str, Any]
Effort = Literal["cheap", "usual", "dear"]


# -------------------------------------------------------------------------------- references


@dataclass(frozen=True, kw_only=True)
class Reference(Named):
    """A model that others are compared with.

    Attributes:
        gold: whether it was retrained without the items.
        another_start: whether it has other first weights than the original of its seed.
        another_order: whether it sees the images in another order.
        everywhere: whether each model of an ensemble has one; else those of the plan's seeds.
    """

    gold: bool = True
    another_start: bool = False
    another_order: bool = False
    everywhere: bool = True


REFERENCES: Registry[Reference] = Registry(
    "reference",
    Reference("original", "original", gold=False),
    Reference("retrain", "gold"),
    Reference("retrain_again", "second gold", another_start=True, another_order=True),
    Reference("retrain_reordered", "gold, reordered", another_order=True, everywhere=False),
)
LUCK = "retrain_again"  # what separates it from gold is luck
YARDSTICKS = [name for name, one in REFERENCES.items() if one.another_order]


# ---------------------------------------------------------------------------------- entrants


@dataclass(frozen=True, kw_only=True)
class Entrant(Method):
    """A method as it takes part: under a name of its own, with settings.

    Attributes:
        method: an entry of the registry of its family.
        settings: of the class that the method names; None for an estimator.
        effort: ``cheap`` methods also serve the further models of an ensemble, ``dear`` ones the
            first request alone, on few models.
    """

    method: Method
    settings: Any = None
    effort: Effort = "usual"

    @property
    def cheap(self) -> bool:
        """Whether it serves whole ensembles."""
        return self.effort == "cheap"

    def cannot(self, request: Request) -> str | None:
        """Tell why the method cannot serve a request, see `Method.cannot`."""
        return self.method.cannot(request)


def entrants(
    *,
    baselines: Mapping[str, Given],
    zero_shot: Mapping[str, Given],
    estimators: Iterable[str],
    cheap_estimators: Iterable[str] = (),
    l2: float,
) -> dict[str, Entrant]:
    """Make the methods that take part from parameters.

    Args:
        baselines: settings by name of a baseline, and its ``method`` where the name is another; all
            of them are cheap.
        zero_shot: by name in tables, ``method``, ``settings``, and ``effort`` of `Entrant`.
        estimators: names in `ESTIMATORS`.
        cheap_estimators: those of them that are cheap.
        l2: λ of the objective, for the settings that have one.

    Returns:
        by name, in the order of the parameters.

    Raises:
        ValueError: a name twice or in no registry, or settings that do not fit.
    """
    found = [_baseline(name, given, l2=l2) for name, given in baselines.items()]
    found += [_zero_shot(name, given) for name, given in zero_shot.items()]
    cheap = set(cheap_estimators)
    if unknown := cheap - set(estimators):
        raise ValueError(f"cheap_estimators={sorted(unknown)}: none of the estimators asked for")
    found += [
        _entrant(ESTIMATORS[name], effort="cheap" if name in cheap else "usual")
        for name in estimators
    ]
    named = {one.name: one for one in found}
    if len(named) < len(found) or named.keys() & (REFERENCES.keys() | DECOYS.keys()):
        names = [one.name for one in found]
        raise ValueError(
            f"methods named {names}: give each a name of its own, and no reference's or decoy's"
        )
    return named


def _baseline(name: str, given: Given, *, l2: float) -> Entrant:
    given = dict(given)
    method = BASELINES[given.pop("method", name)]
    penalty = {"l2": l2} if "l2" in {f.name for f in fields(method.settings)} else {}
    return _entrant(method, name, settings=build(method.settings, penalty | given), effort="cheap")


def _zero_shot(name: str, given: Given) -> Entrant:
    if unknown := given.keys() - {"method", "settings", "effort"}:
        raise ValueError(f"{name}: {sorted(unknown)}; give method, settings and effort alone")
    method = METHODS[given["method"]]
    settings = build(method.settings, given.get("settings", {}))
    return _entrant(method, name, settings=settings, effort=given.get("effort", "usual"))


def _entrant(method: Method, name: str | None = None, **how: Any) -> Entrant:
    """Let a method take part, under its own name or another."""
    name = name or method.name
    family, reads = method.family, method.reads
    return Entrant(name, _title(method, name), family, reads, method=method, **how)


def _title(method: Method, name: str) -> str:
    """Say what of a name is the entrant's own behind the title of the method."""
    if name == method.name:
        return method.title
    own = name.removeprefix(f"{method.name}_").replace("_", " ")
    return f"{method.title} ({own})"


# ----------------------------------------------------------------------------------- for people


def listed(entrants: Mapping[str, Entrant]) -> pd.DataFrame:
    """List the methods that take part: ``method`` (index), ``title``, ``family`` in words."""
    rows = {
        name: {"title": one.title, "family": FAMILIES[one.family]} for name, one in entrants.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("method")


def known(table: Path) -> pd.DataFrame:
    """Read what `listed` wrote, and put references and decoys before it, each a family of its own."""
    references = {
        name: {"title": one.title, "family": family}
        for family, registry in {"reference": REFERENCES, "decoy": DECOYS}.items()
        for name, one in registry.items()
    }
    found = pd.read_csv(table, index_col="method")
    return pd.concat([pd.DataFrame.from_dict(references, orient="index"), found])
