"""What single training items do to a prediction: data attribution, and how well it foretells.

An attribution gives each training item i a score for each query q, such that the scores of a
training set add up to what a model that is trained on it says of q. The *linear datamodelling score*
(LDS; Park et al. 2023, TRAK, arXiv 2303.14186, section 2) asks how well that holds: models are
trained on random parts S_j of the training items; for each query the sums ``Σ_{i ∈ S_j} τ_i(q)`` are
ranked against the mean margin of q over the models of S_j (Spearman); and the rank correlations are
averaged over queries.

All attributions here are of the form ``Σ_{i ∈ S} τ_i(q) = -1/n ∇m_q(θ̂)^T C^-1 Σ_{i ∈ S} ∇ℓ_i(θ̂)``,
where m is the margin (`membership.margins`): to give an item more weight moves θ̂ down its loss. They
differ in C alone: the identity (gradient dot product), a curvature (first-order influence, Koh &
Liang 2017), or a covariance of gradients in a random projection (TRAK). The penalty is the same
for all parts of one size and drops out of a ranking.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import torch
from annotated_types import Ge, Gt, Lt, MinLen
from scipy.stats import rankdata
from torch import Tensor, nn

from unlearnlib.data import datasets
from unlearnlib.data.requests import Group
from unlearnlib.groups.estimators import Fitted, objective_of, system_of
from unlearnlib.influence import curvature
from unlearnlib.influence.curvature import CROSS_ENTROPY, Objective
from unlearnlib.influence.solvers import Dense, MatrixFree, Solution, SolveError
from unlearnlib.measures.membership import margins
from unlearnlib.models import networks
from unlearnlib.models.training import Recipe, train
from unlearnlib.pipeline import seeds

FIRST = 1000  # seed of the first part, none of those of the groups
TITLES = {
    "dot": "gradient dot product",
    "trak": "TRAK-like projection",
    "hessian_sample": "first order, Hessian of a sample",
    "newton_sample": "first order, Gauss-Newton of the sample",
    "newton": "first order, Gauss-Newton",
    "ekfac": "EK-FAC, by kronfluence",
}


@dataclass(frozen=True)
class Parts:
    """Which random parts of the training items models are trained on.

    Attributes:
        parts: J, how many.
        share: of the training items, in each.
        trainings: T, models of each part, from different first weights in different orders.
        queries: Q, test images, drawn at random, the same for all.
    """

    parts: Annotated[int, Ge(3)]
    share: Annotated[float, Gt(0), Lt(1)]
    trainings: Annotated[int, Ge(2)]
    queries: Annotated[int, Ge(1)]

    @property
    def numbers(self) -> range:
        """Their seeds."""
        return range(FIRST, FIRST + self.parts)

    def left_out(self, number: int, items: int) -> Group:
        """Return the request that takes away what is not in a part."""
        return Group("random", None, items - round(self.share * items), seed=number)

    def members(self, labels: Tensor) -> Tensor:
        """Tell which training items are in each part: bool ``[J, n]``, from their labels ``[n]``."""
        inside = torch.ones(self.parts, len(labels), dtype=torch.bool)
        for row, number in zip(inside, self.numbers, strict=True):
            row[self.left_out(number, len(labels)).positions(labels)] = False
        return inside

    def asked(self, dataset: datasets.Dataset) -> tuple[Tensor, Tensor]:
        """Return the queries: images ``[Q, C, H, W]`` and labels ``[Q]``.

        Raises:
            ValueError: more than there are test images.
        """
        images, labels = datasets.split(dataset, "test")
        if self.queries > len(labels):
            raise ValueError(f"queries={self.queries}: there are {len(labels)} test images")
        drawn = torch.randperm(len(labels), generator=seeds.stream(0, "queries"))[: self.queries]
        return images[drawn], labels[drawn]


def run_part(
    *, data: Path, model: str, width: float, recipe: Recipe, parts: Parts, number: int
) -> dict[str, Any]:
    """Train the models of one part, and ask them about the queries.

    Args:
        data: file of the data set.
        model: a name in `architectures.ARCHITECTURES`.
        width: see `architectures.build`.
        recipe: see `training.Recipe`.
        parts: see `Parts`.
        number: of the part, one of `Parts.numbers`.

    Returns:
        ``margins`` ``[T, Q]``, and the test ``accuracy`` of each model on the queries, in percent.
    """
    dataset = datasets.load(data)
    images, labels = parts.asked(dataset)
    request = parts.left_out(number, len(dataset.train_labels))
    said, right = [], []
    for training in range(parts.trainings):
        seed = seeds.derive(number, f"training {training}")
        network, _ = train(
            dataset, model=model, width=width, recipe=recipe, request=request, seed=seed
        )
        logits = networks.predict(network, images)
        said.append(margins(logits, labels).float())
        right.append(100 * (logits.argmax(1) == labels).double().mean().item())
    return {"margins": torch.stack(said), "accuracy": right}


# ------------------------------------------------------------------------------ attributions


@dataclass(frozen=True)
class Settings:
    """How attributions are computed.

    Attributes:
        projection: k, dimensions that TRAK projects gradients to.
        sample: training items that the Hessian is averaged over, and a Gauss-Newton matrix beside it.
        dampings: of both, ascending; the first at which the Hessian is positive definite counts.
        tolerance: relative residual of solves with the Hessian.
        iterations: of conjugate gradients there, at most.
    """

    projection: Annotated[int, Ge(1)]
    sample: Annotated[int, Ge(1)]
    dampings: Annotated[tuple[Annotated[float, Gt(0)], ...], MinLen(1)]
    tolerance: Annotated[float, Gt(0)]
    iterations: Annotated[int, Ge(1)]


@dataclass(frozen=True, eq=False)
class Read:
    """What attributions read of the training items at θ̂, gathered in one pass.

    Attributes:
        sums: ``Σ_{i ∈ S_j} ∇ℓ_i``, a column a part, ``[P, J]``; without the penalty.
        projection: R ``[P, k]``, standard normal.
        covariance: ``Σ_i (R^T ∇m_i)(R^T ∇m_i)^T`` over all items, ``[k, k]``.
    """

    sums: Tensor
    projection: Tensor
    covariance: Tensor


def item_margins(
    network: nn.Module, images: Tensor, labels: Tensor, *, chunk: int = 200
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the gradients ``∇m_i`` ``[M, P]`` of the margins of items, and ``p_i`` ``[M]``, by chunk.

    With ``ℓ = log(1 + exp(-m))`` the gradient of the loss is ``-(1 - p_i) ∇m_i``.
    """
    # the root of the curvature is not read, and would be another
    objective = Objective(network, images, labels, loss=replace(CROSS_ENTROPY, values=margins))
    for index in torch.arange(len(labels)).split(chunk):
        said = networks.predict(network, images[index]).double().log_softmax(1)
        own = said.gather(1, labels[index, None])[:, 0].exp()
        yield curvature.item_gradients(objective, index=index), own


def read(
    network: nn.Module, images: Tensor, labels: Tensor, members: Tensor, *, projection: Tensor
) -> Read:
    """Gather what attributions read, see `Read`.

    Args:
        network: at θ̂, in evaluation mode.
        images: of training, ``[n, C, H, W]``.
        labels: ``[n]``.
        members: bool ``[J, n]``, the items of each part.
        projection: R ``[P, k]``.
    """
    sums = torch.zeros(len(projection), len(members), dtype=torch.float64)
    covariance = torch.zeros(projection.shape[1], projection.shape[1], dtype=torch.float64)
    done = 0
    for gradients, own in item_margins(network, images, labels):
        inside = members[:, done : done + len(own)].double()
        sums -= gradients.T @ ((1 - own) * inside).T
        projected = gradients @ projection
        covariance += projected.T @ projected
        done += len(own)
    return Read(sums, projection, covariance)


def run_attributions(
    *, fitted: Fitted, parts: Parts, settings: Settings, seed: int
) -> dict[str, Any]:
    """Foretell the margins of the queries after training on each part, by every attribution.

    Args:
        fitted: a model that was trained on all items, with its stored curvature.
        parts: see `Parts`.
        settings: see `Settings`.
        seed: of the projection and of the sample of the Hessian.

    Returns:
        ``foretold``: by attribution (`TITLES`) ``[J, Q]``, up to a constant of each query, in nats,
        without ``hessian_sample`` where no solve with the Hessian holds; ``damping``, that of the
        sample's two; and ``refused``: by damping, as text, why a solve with the Hessian does not hold.
    """
    dataset, objective = objective_of(fitted)
    network, images, labels = objective.network, objective.inputs, objective.targets
    asked = torch.cat([gradients for gradients, _ in item_margins(network, *parts.asked(dataset))])
    members = parts.members(labels)
    drawn = seeds.stream(seed, "projection")
    projection = torch.randn(asked.shape[1], settings.projection, generator=drawn).double()
    found = read(network, images, labels, members, projection=projection)
    sample = torch.randperm(len(labels), generator=seeds.stream(seed, "sample"))[: settings.sample]
    sampled, refused = _by_sample(objective, sample, found.sums, settings)
    directions = {
        "dot": found.sums,
        "newton": system_of(fitted).solve(found.sums).x,
        **{name: solution.x for name, (solution, _) in sampled.items()},
    }
    foretold = {name: -(asked @ x).T / len(labels) for name, x in directions.items()}
    foretold["trak"] = _projected(asked, found).T
    return {
        "foretold": {name: values.float() for name, values in foretold.items()},
        "damping": sampled["newton_sample"][1],
        "refused": refused,
    }


def _by_sample(
    objective: Objective, sample: Tensor, sums: Tensor, settings: Settings
) -> tuple[dict[str, tuple[Solution, float]], dict[str, str]]:
    """Solve with Hessian and Gauss-Newton matrix of one sample at one damping.

    Returns:
        by attribution the solution and its damping, that of the Gauss-Newton matrix alone, at the
        first damping, where no solve with the Hessian holds; and by damping why one does not.
    """
    formed, refused = curvature.gauss_newton(objective, index=sample), {}
    product = curvature.hessian_operator(objective, index=sample)
    limits = {"tolerance": settings.tolerance, "max_iterations": settings.iterations}
    for damping in settings.dampings:
        near = Dense(formed, damping)
        try:
            solution = MatrixFree(product, damping, near.inverse, **limits).solve(sums)
        except SolveError as error:
            refused[f"{damping:g}"] = str(error)
            continue
        return {
            "hessian_sample": (solution, damping), "newton_sample": (near.solve(sums), damping)
        }, refused  # fmt: skip
    first = settings.dampings[0]
    return {"newton_sample": (Dense(formed, first).solve(sums), first)}, refused


def _projected(asked: Tensor, found: Read) -> Tensor:
    """Compute TRAK's sums ``[Q, J]``: ``φ_q^T (Σ φ_i φ_i^T)^-1 Σ_{S_j} (1 - p_i) φ_i``, φ = R^T ∇m.

    TRAK (Park et al. 2023, section 3) for one model. Of several models the paper averages the weights
    ``1 - p_i`` apart from the rest; who averages what this returns averages the whole.
    """
    system = Dense(found.covariance)
    return (asked @ found.projection) @ system.solve(found.projection.T @ -found.sums).x


# ------------------------------------------------------------------------------------- the score


def scores(foretold: np.ndarray, actual: np.ndarray) -> np.ndarray:
    """Compute the linear datamodelling score of each query: ``[Q]``, Spearman over the parts.

    Args:
        foretold: ``[J, Q]``.
        actual: ``[J, Q]``, mean margins of the models of each part.

    Returns:
        NaN for a query where either is the same for all parts.
    """
    ranks = [rankdata(values, axis=0) for values in (foretold, actual)]
    one, other = (values - values.mean(0) for values in ranks)
    norms = np.sqrt((one**2).sum(0) * (other**2).sum(0))
    return np.divide((one * other).sum(0), norms, out=np.full(norms.shape, np.nan), where=norms > 0)


def interval(
    foretold: np.ndarray, actual: np.ndarray, *, draws: int = 500, seed: int = 0
) -> tuple[float, float, float]:
    """Compute the mean score over queries and its 95 % bootstrap interval.

    Parts and queries are both drawn anew, with replacement (percentile method).

    Returns:
        mean, lower and upper limit.
    """
    rng = np.random.default_rng(seeds.derive(seed, "bootstrap"))
    parts, queries = actual.shape
    means = []
    for _ in range(draws):
        rows, columns = rng.integers(parts, size=parts), rng.integers(queries, size=queries)
        again = scores(foretold[rows][:, columns], actual[rows][:, columns])
        means.append(np.nanmean(again))
    low, high = np.quantile(means, [0.025, 0.975])
    return float(np.nanmean(scores(foretold, actual))), float(low), float(high)


def compared(
    foretold: Mapping[int, Mapping[str, Tensor]], said: Tensor, *, draws: int = 500
) -> pd.DataFrame:
    """Score each attribution, and one further training in its place.

    Args:
        foretold: by original model, then by attribution, ``[J, Q]``, see `run_attributions`.
        said: margins ``[J, T, Q]``, see `run_part`.
        draws: of the bootstrap.

    Returns:
        a row an attribution that all models have, and ``training``: ``models``, ``alone`` (the mean
        score of one model) with its ``lowest`` and ``highest``, and ``score``, ``low`` and ``high``
        of the mean of all models, see `interval`.
    """
    actual, rows = said.mean(1).numpy(), {}
    models = list(foretold.values())
    for name in TITLES:
        if not all(name in one for one in models):
            continue
        each = [one[name].numpy() for one in models]
        alone = [float(np.nanmean(scores(one, actual))) for one in each]
        rows[name] = {
            "models": len(each), "alone": np.mean(alone), "lowest": min(alone),
            "highest": max(alone), **_scored(np.mean(each, 0), actual, draws),
        }  # fmt: skip
    rows["training"] = {"models": 1, **_scored(*single_training(said.numpy()), draws)}
    return pd.DataFrame(rows).T.astype({"models": int}).rename_axis("attribution")


def _scored(foretold: np.ndarray, actual: np.ndarray, draws: int) -> dict[str, float]:
    found = interval(foretold, actual, draws=draws)
    return dict(zip(("score", "low", "high"), found, strict=True))


def single_training(said: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pair one training of each part with the mean of its others: what another training foretells.

    Args:
        said: margins ``[J, T, Q]``.

    Returns:
        foretold and actual, ``[J, Q]`` each.
    """
    return said[:, 0], said[:, 1:].mean(1)


def ceiling(said: np.ndarray) -> float:
    """Estimate the highest score that the noise of the mean over T trainings leaves possible.

    The square root of the reliability of that mean: with r the mean rank correlation of two single
    trainings of the same parts, ``T r / (1 + (T - 1) r)`` (Spearman & Brown).

    Args:
        said: margins ``[J, T, Q]``.

    Returns:
        0 where single trainings do not agree at all.
    """
    count = said.shape[1]
    pairs = [(a, b) for a in range(count) for b in range(a)]
    found = [np.nanmean(scores(said[:, a], said[:, b])) for a, b in pairs]
    mean = max(0.0, float(np.mean(found)))
    return float(np.sqrt(count * mean / (1 + (count - 1) * mean)))
