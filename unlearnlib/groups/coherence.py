"""Ask whether items that lie close together in a feature space also move the parameters alike.

The influence of an item is ``x_i = H^-1 g_i``, the direction and size of the change of parameters
that its removal causes, without the scale ``1/(n-1)`` (`estimators.first_order`); H is the damped
Gauss-Newton matrix. Two gradients are told apart, since at a small loss the penalty may outweigh
the item:

* ``item``: ``g_i = ∇ℓ_i + λ θ``, the study's convention, whose mean over S is 0 at a minimum;
* ``loss``: ``g_i = ∇ℓ_i``, what the item itself contributes.

Everything is read from the Gram matrix ``K = X X^T`` of the influences: ``K_ii`` are squared norms,
a group's influence has the norm ``sqrt(1^T K_UU 1)``.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import torch
from annotated_types import Ge, MinLen
from scipy import stats
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score, silhouette_score
from torch import Tensor
from torch.nn import functional as F

from unlearnlib.data import datasets
from unlearnlib.data.requests import Group
from unlearnlib.groups import geometry, partitions
from unlearnlib.influence import curvature
from unlearnlib.influence.curvature import Objective
from unlearnlib.influence.solvers import Dense
from unlearnlib.measures import statistics
from unlearnlib.models import checkpoints, networks
from unlearnlib.pipeline import seeds

GRADIENTS = ("item", "loss")
CONVENTION = ["items", "neighbours", "metric", "gradient"]
MEASURES = {  # of a group around an item: what it is called, and whether ends are set off by a ratio
    "norm_of_sum": ("norm of the summed influence", True),
    "mean_norm": ("mean of the items' norms", True),
    "cosine": ("cosine of items' influences", False),
}


# ----------------------------------------------------------------------------------- influences


def influence_grams(
    objective: Objective, system: Dense, index: Tensor, *, chunk: int = 500
) -> tuple[dict[str, Tensor], float]:
    """Compute the Gram matrices of the influences of items.

    Args:
        objective: see `curvature.Objective`; its network is where the gradients are taken.
        system: H, over the parameters of the network.
        index: ``[M]``, the items.
        chunk: right-hand sides a solve.

    Returns:
        float64 ``[M, M]`` for each of `GRADIENTS`, and the largest relative residual of the solves.
    """
    solved = [_solve(objective, system, part) for part in index.split(chunk)]
    rows = torch.cat([x for x, _ in solved])
    penalty = system.solve(objective.l2 * curvature.flatten(objective.network).double())
    gram, cross = rows @ rows.T, rows @ penalty.x
    without = gram - cross[:, None] - cross[None, :] + penalty.x @ penalty.x
    residual = max([penalty.residual, *(residual for _, residual in solved)])
    return {"item": gram, "loss": without}, residual


def _solve(objective: Objective, system: Dense, index: Tensor) -> tuple[Tensor, float]:
    solution = system.solve(curvature.item_gradients(objective, index=index).T)
    return solution.x.T, solution.residual


def norms(gram: Tensor) -> Tensor:
    """Read the norms ``‖x_i‖_2`` ``[M]`` from a Gram matrix."""
    return gram.diagonal().clamp_min(0).sqrt()


def coherence(gram: Tensor, group: Tensor) -> float:
    """Compute ``‖Σ_U x_u‖ / Σ_U ‖x_u‖`` of a group.

    1 where all influences point the same way, ``1/sqrt(m)`` for m orthogonal ones of equal norm, 0
    where they cancel.

    Args:
        gram: K, ``[M, M]``.
        group: positions ``[m]``.

    Raises:
        ValueError: an empty group, or one without any influence.
    """
    if len(group) == 0:
        raise ValueError("the group is empty, so it has no coherence; give at least one position")
    inside = torch.zeros(1, len(gram)).to(gram)
    inside[0, group] = 1
    return _ratios(gram, inside).item()


def random_coherences(gram: Tensor, *, size: int, repeats: int, seed: int) -> Tensor:
    """Compute `coherence` of groups drawn at random from the same items: float64 ``[repeats]``.

    Raises:
        ValueError: a size that the items do not have, or no repeats.
    """
    if not 1 <= size <= len(gram) or repeats < 1:
        raise ValueError(
            f"size={size}, repeats={repeats}: give 1 to {len(gram)} items and 1 repeat or more"
        )
    generator = seeds.stream(seed, "random groups")
    keys = torch.rand(repeats, len(gram), generator=generator)
    inside = torch.zeros(repeats, len(gram)).to(gram)
    return _ratios(gram, inside.scatter_(1, keys.topk(size).indices, 1.0))


def _ratios(gram: Tensor, inside: Tensor) -> Tensor:
    """Compute the ratio for each row of indicators ``[R, M]``."""
    single = inside @ norms(gram)
    if not (single > 0).all():
        raise ValueError("a group of influences that are all 0 has no coherence; look at the loss")
    return ((inside @ gram) * inside).sum(1).clamp_min(0).sqrt() / single


# ------------------------------------------------------------------------ neighbours of an item


def measure(gram: Tensor, groups: Tensor) -> dict[str, Tensor]:
    """Measure the influence of groups of k items, by norms and by directions.

    Args:
        gram: K, ``[M, M]``.
        groups: positions ``[G, k]``, no item twice in a group.

    Returns:
        for each of `MEASURES` float64 ``[G]``: ``norm_of_sum`` ``‖Σ_U x_u‖``, which grows with k and
        with how well the influences add up; ``mean_norm`` ``(1/k) Σ_U ‖x_u‖``, both in units of the
        parameters times n; ``cosine``, the mean of ``cos(x_u, x_v)`` over pairs of different items,
        in which one without influence is orthogonal to all.

    Raises:
        ValueError: groups of fewer than two items, which have no pairs.
    """
    if groups.shape[1] < 2:
        raise ValueError(f"groups of {groups.shape[1]} items have no pairs; give at least 2")
    inside = torch.zeros(len(groups), len(gram)).to(gram).scatter_(1, groups, 1.0)
    size, k = norms(gram), groups.shape[1]
    directed = inside / torch.where(size > 0, size, torch.inf)
    alive = (inside * (size > 0)).sum(1)  # each is a pair with itself, of cosine 1
    return {
        "norm_of_sum": ((inside @ gram) * inside).sum(1).clamp_min(0).sqrt(),
        "mean_norm": inside @ size / k,
        "cosine": (((directed @ gram) * directed).sum(1) - alive) / (k * (k - 1)),
    }


def around(features: Tensor, anchors: Tensor, *, k: int, metric: str) -> tuple[Tensor, Tensor]:
    """Find the k nearest and the k farthest neighbours of items, among all others.

    Args:
        features: ``[M, D]``.
        anchors: positions ``[A]``; no anchor is a neighbour of its own.
        k: how many.
        metric: see `geometry.distances`.

    Returns:
        positions ``[A, k]`` of the nearest and of the farthest.

    Raises:
        ValueError: k below 1 or above ``M - 1``; or as in `geometry.neighbours`.
    """
    ends: dict[bool, list[Tensor]] = {False: [], True: []}
    for anchor in anchors.tolist():
        others = torch.zeros(len(features), dtype=torch.int64)
        others[anchor] = 1
        options = {"label": 0, "k": k, "anchor": features[anchor], "metric": metric}
        for farthest, found in ends.items():
            found.append(geometry.neighbours(features, others, farthest=farthest, **options))
    return torch.stack(ends[False]), torch.stack(ends[True])


def conventions(anchors: pd.DataFrame) -> pd.DataFrame:
    """Ask by each convention whether one feature space tells more of influences than the other.

    A space tells something where the nearest neighbours of an item differ from the farthest. For
    norms the contrast is ``ln(far / near)``, above 0 where the far ones have the larger; for cosines
    ``near - far``, above 0 where the near ones move the parameters more alike. A contrast tells as
    much as it is far from 0, in either direction: the spaces are compared by ``|mean contrast|``,
    anchor by anchor, with the sign that each space has in the mean.

    Args:
        anchors: of `run`, the ``anchors`` of one or more runs, with ``label`` and ``seed``.

    Returns:
        a row for each convention (``items``, ``neighbours``, ``metric``, ``gradient``, ``measure``):
        ``anchors``, how many; for each space its mean contrast ``<space>`` with a 95 % interval
        over anchors (Student's t; ``_low``, ``_high``); ``difference``, that of the first space
        (compact) less the second's (vit), with its interval; and ``verdict``: ``holds`` where the
        interval is above 0, so that the first tells more, ``reverses`` where it is below,
        ``undecided`` else.

    Raises:
        ValueError: not two spaces, or an anchor that is not measured in both.
    """
    spaces = list(dict.fromkeys(anchors["space"]))
    if len(spaces) != 2:
        raise ValueError(f"features of {spaces}: give two spaces to compare")
    rows = []
    for key, cell in anchors.groupby(CONVENTION, sort=False):
        for name, (_, ratio) in MEASURES.items():
            near, far = (cell[f"{name}_{end}"] for end in ("nearest", "farthest"))
            contrast = np.log(far / near) if ratio else near - far
            paired = cell.assign(contrast=contrast).pivot(
                index=["label", "seed", "anchor"], columns="space", values="contrast"
            )
            if not np.isfinite(paired.to_numpy()).all():
                raise ValueError(
                    f"{name} of {key}: an anchor without a contrast in one space; measure every "
                    "anchor in both, and look for groups without influence"
                )
            row = dict(zip(CONVENTION, key, strict=True)) | {"measure": name}
            rows.append(row | _between(paired[spaces[0]], paired[spaces[1]]))
    return pd.DataFrame(rows)


def _between(one: pd.Series, other: pd.Series) -> dict[str, Any]:
    """Compare how far the contrasts of two spaces, paired by anchor, are from 0."""
    row: dict[str, Any] = {"anchors": len(one)}
    strength = np.sign(one.mean()) * one - np.sign(other.mean()) * other
    for name, values in {one.name: one, other.name: other, "difference": strength}.items():
        found = statistics.mean_interval(values.to_list())
        row |= dict(zip((name, f"{name}_low", f"{name}_high"), found, strict=True))
    above, below = row["difference_low"] > 0, row["difference_high"] < 0
    return row | {"verdict": "holds" if above else "reverses" if below else "undecided"}


# ---------------------------------------------------------------------------------- comparisons


def compare(nearest: Tensor, farthest: Tensor) -> dict[str, float]:
    """Test whether the farthest have other norms than the nearest, with the size of the effect.

    Args:
        nearest: ``[k]``.
        farthest: ``[k']``.

    Returns:
        ``delta``, Cliff's delta or rank-biserial correlation ``P(far > near) - P(far < near)``,
        above 0 where the farthest are larger; ``p`` of Mann & Whitney (1947), two-sided.

    Raises:
        ValueError: one of the two is empty.
    """
    if not len(nearest) or not len(farthest):
        raise ValueError(
            f"{len(nearest)} nearest and {len(farthest)} farthest: give at least one of each"
        )
    found = stats.mannwhitneyu(farthest.numpy(), nearest.numpy(), alternative="two-sided")
    pairs = len(nearest) * len(farthest)
    return {"delta": 2 * float(found.statistic) / pairs - 1, "p": float(found.pvalue)}


def similarity_correlation(
    features: Tensor, gram: Tensor, *, metric: str, pairs: int, seed: int
) -> float:
    """Correlate the similarity of features with the cosine of influences, over random pairs.

    Args:
        features: ``[M, D]``.
        gram: K, ``[M, M]``, of the same items.
        metric: see `geometry.distances`; similarity is minus the distance.
        pairs: different items, drawn with replacement of pairs.
        seed: of the draw.

    Returns:
        Spearman's rank correlation, above 0 where similar features have similar influences.

    Raises:
        ValueError: unknown metric, fewer than two items, or fewer than three pairs.
    """
    if metric not in geometry.METRICS:
        raise ValueError(f"unknown metric {metric!r}; choose one of {list(geometry.METRICS)}")
    if len(gram) < 2 or pairs < 3:
        raise ValueError(f"{len(gram)} items, pairs={pairs}: give 2 items and 3 pairs or more")
    generator = seeds.stream(seed, "pairs of items")
    first = torch.randint(len(gram), (pairs,), generator=generator)
    offset = torch.randint(1, len(gram), (pairs,), generator=generator)
    second = (first + offset) % len(gram)
    a, b = features[first].double(), features[second].double()
    similarity = F.cosine_similarity(a, b) if metric == "cosine" else -(a - b).norm(dim=1)
    size = norms(gram)
    cosine = gram[first, second] / (size[first] * size[second])
    return float(stats.spearmanr(similarity.numpy(), cosine.numpy()).statistic)


def clusters(features: Tensor, *, metric: str, seed: int) -> dict[str, float]:
    """Set three clusters of k-means beside the parts near, moderate and far of `partitions.partition`.

    Args:
        features: ``[M, D]``; for the cosine metric k-means sees them at length 1.
        metric: see `geometry.distances`.
        seed: of k-means.

    Returns:
        ``adjusted_rand`` of the two partitions (1 the same, 0 as by chance; Hubert & Arabie 1985),
        ``silhouette_clusters`` and ``silhouette_parts`` in that metric (Rousseeuw 1987).

    Raises:
        ValueError: fewer than four items, or parts of which only one has items.
    """
    if len(features) < 4:
        raise ValueError(f"{len(features)} items for 3 clusters: give 4 or more")
    anchor = features.double().mean(0)
    parts = partitions.partition(geometry.distances(features, anchor, metric=metric))
    if sum(len(part) > 0 for part in parts.values()) < 2:
        raise ValueError("all items are at the same distance, so there are no parts to compare")
    part_of = torch.empty(len(features), dtype=torch.int64)
    for number, part in enumerate(parts.values()):
        part_of[part] = number
    rows = (F.normalize(features.double()) if metric == "cosine" else features.double()).numpy()
    found = KMeans(3, n_init=5, random_state=seeds.derive(seed, "k-means")).fit_predict(rows)
    return {
        "adjusted_rand": float(adjusted_rand_score(part_of.numpy(), found)),
        "silhouette_clusters": float(silhouette_score(rows, found, metric=metric)),
        "silhouette_parts": float(silhouette_score(rows, part_of.numpy(), metric=metric)),
    }


# ------------------------------------------------------------------------------------------ run


@dataclass(frozen=True)
class Settings:
    """How much is measured.

    Attributes:
        pools: pairs of items drawn from the label, and of neighbours k, nearest and farthest.
        curvature_items: training items that form H, drawn at random; at most all.
        repeats: random groups of k items.
        pairs: pairs of items for the correlation of similarities.
        anchors: items whose own neighbours are measured, drawn from each pool.

    Raises:
        ValueError: neighbours that would be both nearest and farthest, fewer than two, which have no
            pairs, or more anchors than a pool has items.
    """

    pools: Annotated[tuple[tuple[int, int], ...], MinLen(1)]
    curvature_items: Annotated[int, Ge(1)]
    repeats: Annotated[int, Ge(1)]
    pairs: Annotated[int, Ge(3)]
    anchors: Annotated[int, Ge(2)]

    def __post_init__(self) -> None:
        for items, neighbours in self.pools:
            most = (items - 1) // 2  # the anchor is neither
            if not 2 <= neighbours <= most:
                why = "have no pairs" if neighbours < 2 else "would overlap"
                raise ValueError(
                    f"pools holds {neighbours} neighbours of {items} items: nearest and farthest "
                    f"{why}; give 2 to {most}"
                )
            if self.anchors > items:
                raise ValueError(f"anchors={self.anchors} of {items} items: give 2 to {items}")


def run(
    *,
    data: Path,
    original: Path,
    spaces: dict[str, Path],
    label: int,
    l2: float,
    damping: float,
    settings: Settings,
    seed: int,
) -> dict[str, Any]:
    """Measure the coherence of nearest and farthest items of one label, for one model of a sweep.

    Args:
        data: file of the data set.
        original: file of the model whose influences are meant.
        spaces: by name, files of the models whose features say what lies close together.
        label: the class.
        l2: λ of the training of `original`.
        damping: added to the diagonal of H.
        settings: see `Settings`.
        seed: of all draws.

    Returns:
        ``rows``, one for each pool, space, metric and kind of gradient; ``anchors``, one for each of
        these and anchor (its position in the pool), with `MEASURES` of its ``_nearest`` and its
        ``_farthest`` neighbours; ``norms`` (a tensor ``[M]``
        for each kind), ``losses`` ``[M]`` and ``distances`` (``space-metric`` to ``[M]``) of the
        largest pool; ``residual``, the largest of the solves.

    Raises:
        RequestError: a pool above the size of its class.
    """
    images, labels = datasets.split(datasets.load(data), "train")
    objective = Objective(checkpoints.load(original).eval(), images, labels, l2=l2)
    system = _system(objective, damping, settings.curvature_items, seed)
    pools = sorted(settings.pools)
    drawn = Group("coherent", label, pools[-1][0], seed).positions(labels)
    pool, residual = _measured(objective, system, drawn, spaces)
    rows, anchors = [], []
    for items, neighbours in pools:
        # draws of one seed are nested, so a smaller pool is part of the largest
        smaller = Group("coherent", label, items, seed).positions(labels)
        part = pool.part(torch.searchsorted(drawn, smaller))
        rows += _rows(part, neighbours, settings, seed)
        anchors += _anchor_rows(part, neighbours, settings, seed)
    return {
        "rows": rows,
        "anchors": anchors,
        "norms": {kind: norms(gram).float() for kind, gram in pool.grams.items()},
        "losses": pool.losses,
        "distances": {
            f"{name}-{metric}": _from_centroid(features, metric).float()
            for name, features in pool.spaces.items()
            for metric in geometry.METRICS
        },
        "residual": residual,
    }


@dataclass(frozen=True, eq=False)
class Pool:
    """Hold what is measured of M items of one label.

    Attributes:
        spaces: by name, features ``[M, D]``.
        grams: by kind of gradient, ``[M, M]``.
        losses: cross-entropies ``[M]``, in nats.
    """

    spaces: dict[str, Tensor]
    grams: dict[str, Tensor]
    losses: Tensor

    def part(self, inside: Tensor) -> "Pool":
        """Return the same of the items at some positions."""
        return Pool(
            {name: features[inside] for name, features in self.spaces.items()},
            {kind: gram[inside][:, inside] for kind, gram in self.grams.items()},
            self.losses[inside],
        )


def _measured(
    objective: Objective, system: Dense, items: Tensor, spaces: dict[str, Path]
) -> tuple[Pool, float]:
    """Measure items, and return the largest residual of the solves as well."""
    images, labels = objective.inputs[items], objective.targets[items]
    grams, residual = influence_grams(objective, system, items)
    features = {
        name: networks.penultimate(checkpoints.load(path), images) for name, path in spaces.items()
    }
    logits = networks.predict(objective.network, images)
    losses = F.cross_entropy(logits, labels, reduction="none")
    return Pool(features, grams, losses), residual


def _from_centroid(features: Tensor, metric: str) -> Tensor:
    return geometry.distances(features, features.double().mean(0), metric=metric)


def _system(objective: Objective, damping: float, items: int, seed: int) -> Dense:
    """Form H on a random part of the training items."""
    order = torch.randperm(objective.items, generator=seeds.stream(seed, "curvature sample"))
    return Dense(curvature.gauss_newton(objective, index=order[:items]), damping)


def _rows(pool: Pool, neighbours: int, settings: Settings, seed: int) -> Iterator[dict[str, Any]]:
    """Yield a row for each space, metric and kind of gradient of one pool."""
    options = {"size": neighbours, "repeats": settings.repeats, "seed": seed}
    drawn = {kind: random_coherences(gram, **options) for kind, gram in pool.grams.items()}
    same = torch.zeros(len(pool.losses), dtype=torch.int64)
    for (space, features), metric in product(pool.spaces.items(), geometry.METRICS):
        ends = {"label": 0, "k": neighbours, "metric": metric}
        near = geometry.neighbours(features, same, **ends)
        far = geometry.neighbours(features, same, farthest=True, **ends)
        found = clusters(features, metric=metric, seed=seed)
        distances = _from_centroid(features, metric)
        pairs = {"metric": metric, "pairs": settings.pairs, "seed": seed}
        for kind, gram in pool.grams.items():
            yield {
                "items": len(pool.losses),
                "neighbours": neighbours,
                "space": space,
                "metric": metric,
                "gradient": kind,
                **_contrast(gram, pool.losses, near, far, distances),
                **_band(drawn[kind]),
                "similarity_correlation": similarity_correlation(features, gram, **pairs),
                **found,
            }


def _anchor_rows(
    pool: Pool, neighbours: int, settings: Settings, seed: int
) -> Iterator[dict[str, Any]]:
    """Yield a row for each space, metric, kind of gradient and anchor of one pool."""
    items = len(pool.losses)
    drawn = torch.randperm(items, generator=seeds.stream(seed, "anchors"))[: settings.anchors]
    for (space, features), metric in product(pool.spaces.items(), geometry.METRICS):
        ends = around(features, drawn, k=neighbours, metric=metric)
        for kind, gram in pool.grams.items():
            found = {
                f"{name}_{end}": values.tolist()
                for end, groups in zip(("nearest", "farthest"), ends, strict=True)
                for name, values in measure(gram, groups).items()
            }
            where = dict(zip(CONVENTION, (items, neighbours, metric, kind), strict=True))
            for number, anchor in enumerate(drawn.tolist()):
                measured = {name: values[number] for name, values in found.items()}
                yield where | {"space": space, "anchor": anchor} | measured


def _contrast(
    gram: Tensor, losses: Tensor, near: Tensor, far: Tensor, distances: Tensor
) -> dict[str, float]:
    """Contrast the two ends of a pool by norms, losses and coherence."""
    size = norms(gram)
    return {
        "norm_nearest": size[near].median().item(),
        "norm_farthest": size[far].median().item(),
        **compare(size[near], size[far]),
        "loss_nearest": losses[near].median().item(),
        "loss_farthest": losses[far].median().item(),
        "norm_distance_correlation": float(stats.spearmanr(size, distances).statistic),
        "norm_loss_correlation": float(stats.spearmanr(size, losses).statistic),
        "coherence_nearest": coherence(gram, near),
        "coherence_farthest": coherence(gram, far),
    }


def _band(drawn: Tensor) -> dict[str, float]:
    """Summarise random groups by their mean and the middle 95 %."""
    low, high = drawn.quantile(torch.tensor([0.025, 0.975]).to(drawn)).tolist()
    return {
        "coherence_random": drawn.mean().item(),
        "coherence_random_low": low,
        "coherence_random_high": high,
    }
