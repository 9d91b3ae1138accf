"""Can anyone tell a model that forgot from one that never saw the data? Attacks and ensembles.

Four tests, from weak to strong:

* `population_attack`: one model, one attacker for all items, who tells forgotten training items from
  items of the same kind that no model saw. He knows which are which for part of them, so that he
  over-states what a stranger could do; the attack on the *retrained* model is the yardstick.
* `shadow_attack`: few models; one attacker for all items, who knows what retrained models say of
  each item. What `ulira` costs too much for.
* `ulira`: many models; for each item, how likely is its margin under unlearned and under retrained
  models? The strongest test of privacy.
* `klom`: many models; for each item, how far apart are the two distributions of its margin? The
  strongest test of fidelity.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import norm, rankdata
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor
from torch.nn import functional as F

from unlearnlib.pipeline import seeds


def margins(logits: Tensor, labels: Tensor) -> Tensor:
    """Compute ``z_y - log Σ_{k≠y} exp z_k`` ``[N]``, the log-odds of the true class.

    Equal to ``log p_y / (1 - p_y)`` and finite where p_y rounds to 1 (Carlini et al. 2022).

    Args:
        logits: ``[N, K]``.
        labels: ``[N]``, true classes.
    """
    true = labels[:, None] == torch.arange(logits.shape[1], device=logits.device)
    others = logits.double().masked_fill(true, -float("inf")).logsumexp(1)
    return logits.double().gather(1, labels[:, None])[:, 0] - others


def signals(logits: Tensor, labels: Tensor) -> np.ndarray:
    """Compute what an attacker looks at, ``[N, 4]``.

    Cross-entropy in nats, largest probability, entropy in nats, and margin (see `margins`).
    """
    logs = logits.double().log_softmax(1)
    columns = (
        F.nll_loss(logs, labels, reduction="none"),
        logs.exp().max(1).values,
        -(logs.exp() * logs).sum(1),
        margins(logits, labels),
    )
    return np.stack([column.numpy() for column in columns], 1)


# ------------------------------------------------------------------------- population attack


@dataclass(frozen=True)
class Area:
    """Hold an area under the ROC curve, 0.5 for guessing, with its 95 % limits.

    Attributes:
        auc: probability that a forgotten item looks more like a member than an unseen one.
        low: limit of DeLong's interval (DeLong et al. 1988), not below 0.
        high: not above 1.
    """

    auc: float
    low: float
    high: float


def area_under_curve(positive: np.ndarray, negative: np.ndarray, *, level: float = 0.95) -> Area:
    """Compute the AUC of scores with DeLong's interval.

    Args:
        positive: scores ``[M]`` of the items that should score higher.
        negative: ``[N]``.
        level: coverage.

    Raises:
        ValueError: fewer than two scores of either kind.
    """
    m, n = len(positive), len(negative)
    if min(m, n) < 2:
        raise ValueError(f"{m} positive and {n} negative scores; give at least 2 of both")
    ranks = rankdata(np.concatenate([positive, negative]))
    # the share of the other kind that each item beats: the placement values
    beats = (ranks[:m] - rankdata(positive)) / n
    beaten = 1 - (ranks[m:] - rankdata(negative)) / m
    auc = float(beats.mean())
    error = np.sqrt(beats.var(ddof=1) / m + beaten.var(ddof=1) / n)
    half = norm.ppf((1 + level) / 2) * error
    return Area(auc, float(max(0.0, auc - half)), float(min(1.0, auc + half)))


def population_attack(
    forgotten: np.ndarray, unseen: np.ndarray, *, folds: int = 5, seed: int = 0
) -> Area:
    """Attack one model: tell its forgotten training items from unseen ones, by their signals.

    Logistic regression on standardised signals, on equally many of both, each item scored by an
    attacker that was fitted without it (Shokri et al. 2017, with one population in place of shadow
    models). Without balance and cross-validation the attack succeeds on noise.

    Args:
        forgotten: ``[M, S]``, of `signals`.
        unseen: ``[N, S]``, items of the same classes that are in nobody's training data.
        folds: of the cross-validation.
        seed: of the draw that balances, and of the folds.

    Raises:
        ValueError: fewer items of a kind than folds.
    """
    count = min(len(forgotten), len(unseen))
    if count < folds:
        raise ValueError(f"{count} items of a kind for {folds} folds; give more items")
    random = np.random.default_rng(seeds.derive(seed, "balance of the attack"))
    parts = [random.permutation(part)[:count] for part in (forgotten, unseen)]
    features, truth = np.concatenate(parts), np.repeat([1, 0], count)
    attacker = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    split = StratifiedKFold(
        folds, shuffle=True, random_state=seeds.derive(seed, "folds of the attack")
    )
    scores = cross_val_predict(attacker, features, truth, cv=split, method="decision_function")
    # an attacker's scale is his own, so that scores of different folds compare by their ranks
    for _, held in split.split(features, truth):
        scores[held] = rankdata(scores[held]) / len(held)
    return area_under_curve(scores[truth == 1], scores[truth == 0])


# --------------------------------------------------------------------------------- ensembles


def ulira(unlearned: np.ndarray, retrained: np.ndarray, *, folds: int = 4) -> np.ndarray:
    """Attack models that were held out, item by item, with likelihoods of shadow models.

    For every item a Gaussian is fitted to its margins under the shadow unlearned models and one to
    those under the shadow retrained ones; a held-out model is called unlearned where the first is
    the likelier (U-LiRA, Hayes et al. 2024; Kurmanji et al. 2023). Variances are pooled with those
    of all items, with the weight of one model, so that few shadows do not make an item certain.

    Args:
        unlearned: margins ``[A, N]``, a row a model.
        retrained: ``[B, N]``.
        folds: each fold is held out once, the rest are the shadows.

    Returns:
        accuracy in percent ``[A + B]``, for each held-out model the share of its items that were
        told right: 50 where the two cannot be told apart.

    Raises:
        ValueError: fewer models of a kind than twice the folds, or different items.
    """
    _check_ensembles(unlearned, retrained, least=2 * folds)
    right = [np.empty(len(part)) for part in (unlearned, retrained)]
    for fold in range(folds):
        held = [np.arange(len(part)) % folds == fold for part in (unlearned, retrained)]
        models = [_gaussian(p[~h]) for p, h in zip((unlearned, retrained), held, strict=True)]
        for kind, (part, h) in enumerate(zip((unlearned, retrained), held, strict=True)):
            ratio = norm.logpdf(part[h], *models[kind]) - norm.logpdf(part[h], *models[1 - kind])
            told = np.where(ratio == 0, 0.5, ratio > 0)
            right[kind][h] = 100 * told.mean(1)
    return np.concatenate(right)


def shadow_attack(
    unlearned: np.ndarray,
    retrained: np.ndarray,
    *,
    shadows: int,
    folds: int = 4,
    seed: int = 0,
) -> np.ndarray:
    """Attack models that were held out, with one attacker for all items and few shadow models.

    The cheap alternative to `ulira`, which fits each item apart: a logistic regression on features
    of an item, fitted to the items of all shadow models together (Shokri et al. 2017, with the
    calibration by models that never saw the item of Watson et al. 2022, arXiv 2111.08440). See
    `_pooled_features`. What all items have in common, such as margins that are lower throughout, it
    finds with fewer models than `ulira`; what each item has of its own, such as a spread, it
    does not.

    Args:
        unlearned: margins ``[A, N]``, a row a model.
        retrained: ``[B, N]``.
        shadows: models of each kind that an attacker is fitted to, at least 2, drawn from those that
            are not held out.
        folds: each fold is held out once.
        seed: of the draws.

    Returns:
        accuracy in percent ``[A + B]``, for each held-out model the share of its items that were
        told right, as of `ulira`: 50 where the two cannot be told apart.

    Raises:
        ValueError: fewer than 2 shadows or folds, too few models to hold a fold out and have the
            shadows, or different items.
    """
    pair = unlearned, retrained
    if shadows < 2 or folds < 2:
        raise ValueError(f"shadows={shadows} and folds={folds}: give at least 2 of both")
    _check_ensembles(*pair, least=folds)
    left = min(len(part) - math.ceil(len(part) / folds) for part in pair)
    if left < shadows:
        raise ValueError(
            f"shadows={shadows}: with a fold held out {left} models of a kind are left; ask for "
            "fewer, or give more models or folds"
        )
    random = np.random.default_rng(seeds.derive(seed, "shadow models"))
    right = [np.empty(len(part)) for part in pair]
    for fold in range(folds):
        held = [np.arange(len(part)) % folds == fold for part in pair]
        known = [random.permutation(part[~h])[:shadows] for part, h in zip(pair, held, strict=True)]
        attacker = _pooled_attacker(*known)
        means = [part.mean(0) for part in known]
        for kind, (part, h) in enumerate(zip(pair, held, strict=True)):
            scores = attacker.decision_function(_pooled_features(part[h], *means))
            scores = scores.reshape(h.sum(), -1) * (1 - 2 * kind)
            right[kind][h] = 100 * np.where(scores == 0, 0.5, scores > 0).mean(1)
    return np.concatenate(right)


def _pooled_attacker(unlearned: np.ndarray, retrained: np.ndarray) -> Pipeline:
    """Fit one attacker to shadow models ``[S, N]`` of both kinds, label 1 the unlearned.

    The means that a shadow is compared with are those of the others, as for a model that is held
    out: compared with a mean that it is part of, every shadow looks like its own kind.
    """
    rows = [
        _pooled_features(unlearned[[i]], np.delete(unlearned, i, 0).mean(0), retrained.mean(0))
        for i in range(len(unlearned))
    ] + [
        _pooled_features(retrained[[i]], unlearned.mean(0), np.delete(retrained, i, 0).mean(0))
        for i in range(len(retrained))
    ]
    truth = np.repeat([1, 0], [unlearned.size, retrained.size])
    attacker = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    return attacker.fit(np.concatenate(rows), truth)


def _pooled_features(
    margins: np.ndarray, unlearned: np.ndarray, retrained: np.ndarray
) -> np.ndarray:
    """Compute what the attacker of `shadow_attack` looks at, ``[A * N, 4]``.

    The margin m, its mean r under retrained shadows, their difference m - r, and
    ``(m - (u + r)/2) (u - r)`` with the mean u under unlearned ones: the log-likelihood ratio of
    two normal distributions with the same variance, for shifts that differ from item to item.

    Args:
        margins: m ``[A, N]``.
        unlearned: u ``[N]``.
        retrained: r ``[N]``.
    """
    middle, apart = (unlearned + retrained) / 2, unlearned - retrained
    calibrated = np.broadcast_to(retrained, margins.shape)
    columns = (margins, calibrated, margins - retrained, (margins - middle) * apart)
    return np.stack([column.ravel() for column in columns], 1)


def _gaussian(shadows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Fit mean and deviation to each column, its variance shrunk to the mean of all columns."""
    variance = shadows.var(0, ddof=1)
    count = len(shadows)
    pooled = ((count - 1) * variance + variance.mean()) / count
    return shadows.mean(0), np.sqrt(pooled.clip(1e-12))


def klom(
    unlearned: np.ndarray,
    retrained: np.ndarray,
    *,
    bins: int = 20,
    smoothing: float = 1e-5,
    limit: float = 100.0,
) -> np.ndarray:
    """Compute the KL divergence of margins of each item: KL(retrained ‖ unlearned), in nats.

    Histograms with ``smoothing`` added to the share of each bin (KLoM, Georgiev et al. 2024,
    appendix E.1). The authors' bins span both ensembles; ours span the *retrained* margins, with a
    bin for all that is below and one for all that is above, since one wrecked model among the
    unlearned would otherwise widen every bin until nothing can be told. Even two ensembles of
    retrained models are not at 0, and the fewer the models the farther; and it cannot exceed about
    ``-log(smoothing)``, 11.5.

    Args:
        unlearned: margins ``[A, N]``, a row a model.
        retrained: ``[B, N]``.
        bins: between the least and the largest retrained margin.
        smoothing: share.
        limit: margins are cut off at ± this.

    Returns:
        ``[N]``, at least 0.

    Raises:
        ValueError: fewer than two models of a kind, or different items.
    """
    _check_ensembles(unlearned, retrained, least=2)
    a, b = (part.clip(-limit, limit) for part in (unlearned, retrained))
    low, high = b.min(0), b.max(0)
    width = np.where(high > low, high - low, 1.0)
    shares = []
    for part in (a, b):
        inside = np.floor((part - low) / width * bins).clip(0, bins - 1)
        place = np.where(part < low, -1, np.where(part > high, bins, inside))
        counts = (place[:, :, None] == np.arange(-1, bins + 1)).sum(0)
        share = counts / len(part) + smoothing
        shares.append(share / share.sum(1, keepdims=True))
    q, p = shares
    return (p * np.log(p / q)).sum(1)


@dataclass(frozen=True)
class Interval:
    """Hold a mean KLoM in nats with a 95 % range.

    Attributes:
        value: the mean.
        low: at least 0.
        high: the same.
        models: of each kind in a comparison; KLoM falls with it.
    """

    value: float
    low: float
    high: float
    models: int


def klom_interval(
    unlearned: np.ndarray, retrained: np.ndarray, *, draws: int = 200, seed: int = 0
) -> Interval:
    """Compute the mean of `klom` over items, and its 95 % interval over models.

    A bootstrap will not do: a sample with replacement repeats models, so that its histograms have
    fewer places than those of so many models, and its KLoM is far too high (none of its intervals
    held the true value in simulations with 16 to 100 models). Here halves of the models are drawn
    *without* replacement. The deviations of half of n models from their mean have the spread
    of n models from theirs, to first order (the delete-half jackknife, Shao and Wu 1989), and are
    taken off the value of all. KLoM of fewer models spreads more, so that the interval is rather
    too wide: in the same simulations it held the true value in 88 to 100 % of cases.

    The interval is for what KLoM of *so many* models is on average. That it is not 0 for two
    ensembles of golds, and falls with the number of models, no interval mends: see `gold_split`.
    Models of both kinds that share their numbers share their seeds, so they are drawn together.

    Args:
        unlearned: margins ``[A, N]``, a row a model.
        retrained: ``[B, N]``; where A = B, of the same seeds in the same order, or independent.
        draws: halves.
        seed: of the draws.

    Raises:
        ValueError: fewer than four models of a kind, different items, or fewer than two draws.
    """
    _check_halves(unlearned, retrained, draws)
    random = np.random.default_rng(seeds.derive(seed, "halves of the models"))
    found = []
    for _ in range(draws):
        first, second = (random.permutation(len(part)) for part in (unlearned, retrained))
        if len(unlearned) == len(retrained):
            second = first
        halves = unlearned[first[: len(first) // 2]], retrained[second[: len(second) // 2]]
        found.append(klom(*halves).mean())
    value = float(klom(unlearned, retrained).mean())
    below, above = np.quantile(np.array(found) - np.mean(found), [0.025, 0.975])
    models = min(len(unlearned), len(retrained))
    return Interval(value, float(max(0.0, value - above)), float(value - below), models)


def gold_split(retrained: np.ndarray, *, draws: int = 200, seed: int = 0) -> Interval:
    """Compare golds with golds: the mean of `klom` over items between random disjoint halves.

    The null of KLoM: what it is where there is nothing to tell. It is that of half of the models, so
    it compares with the KLoM of as many unlearned and retrained models, not of all.

    Args:
        retrained: margins ``[B, N]``, a row a model.
        draws: splits.
        seed: of the splits.

    Returns:
        the mean over splits, and the range of 95 % of them. Splits of the same models overlap, so
        other golds would differ by more.

    Raises:
        ValueError: fewer than four models, or fewer than two draws.
    """
    _check_halves(retrained, retrained, draws)
    random = np.random.default_rng(seeds.derive(seed, "halves of the golds"))
    half, found = len(retrained) // 2, []
    for _ in range(draws):
        order = random.permutation(len(retrained))
        found.append(klom(retrained[order[:half]], retrained[order[half : 2 * half]]).mean())
    low, high = np.quantile(found, [0.025, 0.975])
    return Interval(float(np.mean(found)), float(low), float(high), half)


def _check_halves(unlearned: np.ndarray, retrained: np.ndarray, draws: int) -> None:
    _check_ensembles(unlearned, retrained, least=4)
    if draws < 2:
        raise ValueError(f"draws={draws}: a range needs at least 2, and about 200 to be one")


def _check_ensembles(unlearned: np.ndarray, retrained: np.ndarray, *, least: int) -> None:
    if unlearned.ndim != 2 or retrained.ndim != 2 or unlearned.shape[1] != retrained.shape[1]:
        raise ValueError(
            f"margins {unlearned.shape} and {retrained.shape}: give [models, items] of the same "
            "items"
        )
    if min(len(unlearned), len(retrained)) < least:
        raise ValueError(
            f"{len(unlearned)} unlearned and {len(retrained)} retrained models: train at least "
            f"{least} of each"
        )
