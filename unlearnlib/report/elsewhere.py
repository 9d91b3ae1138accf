"""What holds on two data sets: the findings of one profile beside those of another.

The predictions for the other one are in ``params/predictions.csv``, which was written before it was
run. That they are older than its results is for the history of the project to show.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import get_args

import pandas as pd

from unlearnlib.report.findings import FINDINGS, Estimate, Finding, Found, Verdict

NOT_RUN = "not run"
_COLUMNS = ["claim", "here", "there", "becomes", "predicted", "because", "came true"]


class PredictionError(ValueError):
    """A file of predictions that cannot be used, with what to do about it."""


def predictions(path: Path) -> dict[str, tuple[Verdict, str]]:
    """Read what was predicted: for each finding a verdict and the reason.

    Raises:
        PredictionError: a finding or a verdict that is not known, or no reason.
    """
    found = {}
    table = pd.read_csv(path, comment="#", dtype=str, keep_default_na=False)
    for name, verdict, because in table[["finding", "verdict", "because"]].itertuples(index=False):
        if name not in FINDINGS:
            raise PredictionError(f"{path.name}: no finding {name!r}; there are {list(FINDINGS)}")
        if verdict not in get_args(Verdict):
            raise PredictionError(
                f"{path.name}: {name} has the verdict {verdict!r}; give one of "
                f"{', '.join(get_args(Verdict))}"
            )
        if not because:
            raise PredictionError(f"{path.name}: {name} has no `because`; say why it is predicted")
        found[name] = (verdict, because)
    return found


def comparison(here: Found | None, there: Found | None) -> str:
    """Say what becomes of a finding elsewhere.

    Returns:
        ``holds``; ``holds, weaker`` or ``holds, stronger`` where the intervals are apart; ``holds on
        neither``; ``reverses`` where it holds on one and not on the other; ``cannot tell``, where either
        interval reaches over the bound; `NOT_RUN` where either is missing.
    """
    if here is None or there is None:
        return NOT_RUN
    verdicts = {here.verdict, there.verdict}
    if "open" in verdicts:
        return "cannot tell"
    if verdicts == {"does not hold"}:
        return "holds on neither"
    if len(verdicts) == 2:
        return "reverses"
    if not _apart(here.estimate, there.estimate):
        return "holds"
    nearer = _clearance(there.finding, there.estimate) < _clearance(here.finding, here.estimate)
    return "holds, weaker" if nearer else "holds, stronger"


def _apart(one: Estimate, other: Estimate) -> bool:
    return one.high < other.low or other.high < one.low


def _clearance(finding: Finding, estimate: Estimate) -> float:
    """Return how far a value is from where the claim would fail."""
    value = abs(estimate.value) if finding.side == "within" else estimate.value
    return value - finding.bound if finding.side == "above" else finding.bound - value


def beside(
    here: Mapping[str, Found],
    there: Mapping[str, Found],
    predicted: Mapping[str, tuple[Verdict, str]],
) -> pd.DataFrame:
    """Put the findings of two profiles side by side.

    Args:
        here: of one profile, see `findings.read`.
        there: of another, for which the predictions are.
        predicted: see `predictions`.

    Returns:
        a row for each finding that either profile has, by name: ``claim``, ``here``, ``there`` (numbers
        with intervals), ``becomes`` (see `comparison`), ``predicted``, ``because``, and ``came true``:
        yes, no, or ``-`` where nothing was predicted or run.
    """
    rows = {}
    for name, finding in FINDINGS.items():
        pair = here.get(name), there.get(name)
        if pair == (None, None):
            continue
        verdict, because = predicted.get(name, ("-", "-"))
        seen = pair[1].verdict if pair[1] else None
        told = "-" if verdict == "-" or seen is None else "yes" if seen == verdict else "no"
        written = (finding.brief(one.estimate) if one else NOT_RUN for one in pair)
        rows[name] = (finding.title, *written, comparison(*pair), verdict, because, told)
    table = pd.DataFrame.from_dict(rows, orient="index", columns=_COLUMNS)
    return table.rename_axis("finding")
