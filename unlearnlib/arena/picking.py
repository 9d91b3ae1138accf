"""Pick the items of a group by what models say of them: those for which forgetting can be told.

Of items drawn at random most are like their neighbours, and a model that never saw them answers as
if it had: whatever attacks such a group finds nothing, and average-case targets understate the risk
(RULI, arXiv 2506.13171). Two orders of all training items bring forward what sets apart:

* ``hard``: by the mean cross-entropy of several original models, the highest first. What is hard
  although it was trained on is what a model without it would hardly guess.
* ``influential``: by the coefficient on the main direction of the influence matrix ``G A^-1 G^T``,
  whose entries say how much removing one item moves the loss on another, to first order (Koh &
  Liang 2017). Its first items pull the parameters the same way, so that together they move them far.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unlearnlib.data import datasets
from unlearnlib.influence import curvature
from unlearnlib.influence.curvature import Objective
from unlearnlib.influence.solvers import cholesky
from unlearnlib.models import checkpoints, networks, training
from unlearnlib.pipeline import seeds

CHUNK = 500  # items whose gradients are in memory at once
Scores = Callable[..., Tensor]


def run(
    *,
    mode: str,
    data: Path,
    items: int | None,
    originals: list[Path],
    l2: float,
    damping: float,
    curvature_items: int,
) -> dict[str, Any]:
    """Order the training items of the arena by a score, the highest first.

    Args:
        mode: an entry of `requests.PICKED`.
        data: file of the data set.
        items: training items, see `training.training_items`.
        originals: files of models; the first alone has its gradients looked at.
        l2: λ of the trained objective.
        damping: added to the diagonal of the curvature.
        curvature_items: items of the random sample that the curvature is formed on.

    Returns:
        ``order``, positions of all items int64 ``[N]``, and ``scores`` ``[N]`` by position.
    """
    images, labels = training.training_items(datasets.load(data), items=items)
    models = [checkpoints.load(path).eval() for path in originals]
    if mode == "hard":
        scores = difficulty(models, images, labels)
    else:
        objective = Objective(models[0], images, labels, l2=l2, batch_size=CHUNK)
        drawn = torch.randperm(len(labels), generator=seeds.stream(0, "curvature of influence"))
        index = drawn[:curvature_items]
        scores = main_direction(objective, damping=damping, curvature_index=index)
    order = torch.argsort(scores, descending=True, stable=True)
    return {"order": order, "scores": scores.float()}


def difficulty(models: list[nn.Module], images: Tensor, labels: Tensor) -> Tensor:
    """Compute the mean cross-entropy of some models on each item, ``[N]``, in nats."""
    losses = [
        F.cross_entropy(networks.predict(model, images), labels, reduction="none")
        for model in models
    ]
    return torch.stack(losses).double().mean(0)


def main_direction(
    objective: Objective, *, damping: float, curvature_index: Tensor, iterations: int = 200
) -> Tensor:
    """Compute each item's coefficient on the leading eigenvector of the influence matrix.

    With ``A = L L^T`` the damped Gauss-Newton matrix and G the items' gradients (rows, penalty left
    out), ``G A^-1 G^T`` and ``L^-1 G^T G L^-T`` have the same eigenvalues, and the second is small.

    Args:
        objective: over all items.
        damping: added to the diagonal of the curvature.
        curvature_index: items that the curvature is formed on.
        iterations: of the power method.

    Returns:
        ``[N]``, of norm 1; the sign is the one in which the largest coefficients are above zero.
    """
    lower = cholesky(curvature.gauss_newton(objective, index=curvature_index), damping=damping)
    total = torch.zeros_like(lower)
    for part in torch.arange(objective.items).split(CHUNK):
        rows = _gradients(objective, part)
        total += rows.T @ rows
    half = torch.linalg.solve_triangular(lower, total, upper=False)
    small = torch.linalg.solve_triangular(lower, half.T, upper=False)
    direction = torch.ones(len(small), dtype=small.dtype)
    for _ in range(iterations):
        direction = small @ direction
        direction /= direction.norm()
    back = torch.linalg.solve_triangular(lower.T, direction[:, None], upper=True)
    parts = torch.arange(objective.items).split(CHUNK)
    found = torch.cat([_gradients(objective, part) @ back for part in parts])[:, 0]
    found /= found.norm()
    return found if found.pow(3).sum() >= 0 else -found


def _gradients(objective: Objective, part: Tensor) -> Tensor:
    """Compute the gradients of some items' losses, without the penalty: ``[M, P]``."""
    penalty = objective.l2 * curvature.flatten(objective.network).double()
    return curvature.item_gradients(objective, index=part) - penalty
