"""Attribution by another library: EK-FAC of kronfluence, a check from outside.

Grosse et al. 2023 (arXiv 2308.03296) approximate the curvature layer by layer as a Kronecker product
with corrected eigenvalues. kronfluence, which its authors keep, shares no code with this study: its
gradients say whether ours are right, and its scores what a curvature that fits large networks costs.
"""

import copy
import logging
import tempfile
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from unlearnlib.groups.attribution import Parts
from unlearnlib.groups.estimators import Fitted, objective_of
from unlearnlib.measures.membership import margins


def pairwise(
    network: nn.Module,
    queries: tuple[Tensor, Tensor],
    items: tuple[Tensor, Tensor],
    *,
    strategy: str,
    damping: float,
    batch_size: int = 500,
) -> Tensor:
    """Compute ``∇m_q^T C^-1 ∇ℓ_i`` of every query q and training item i by kronfluence: ``[Q, n]``.

    Args:
        network: at θ̂, whose parameters are all in linear and convolutional layers; stays as it is.
        queries: images and labels whose margins m are asked about.
        items: images and labels of training.
        strategy: ``ekfac``, or ``identity`` for the gradient dot product.
        damping: added to the eigenvalues of C.
        batch_size: items at once.

    Raises:
        ModuleNotFoundError: kronfluence is not installed.
    """
    try:
        from kronfluence.analyzer import Analyzer, prepare_model
        from kronfluence.arguments import FactorArguments, ScoreArguments
        from kronfluence.task import Task
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "the check from outside needs kronfluence: pip install 'unlearnlib[study]'",
            name=error.name,
        ) from error

    class Classification(Task):
        def compute_train_loss(
            self, batch: tuple[Tensor, Tensor], model: nn.Module, sample: bool = False
        ) -> Tensor:
            logits, labels = model(batch[0]), batch[1]
            if sample:
                labels = torch.multinomial(logits.detach().softmax(1), 1)[:, 0]
            return F.cross_entropy(logits, labels, reduction="sum")

        def compute_measurement(self, batch: tuple[Tensor, Tensor], model: nn.Module) -> Tensor:
            return margins(model(batch[0]), batch[1]).float().sum()

    task = Classification()
    with tempfile.TemporaryDirectory() as folder:
        analyzer = Analyzer(
            "check", prepare_model(copy.deepcopy(network), task), task, cpu=True, disable_tqdm=True,
            log_level=logging.ERROR, output_dir=folder,
        )  # fmt: skip
        trained_on = TensorDataset(*items)
        analyzer.fit_all_factors(
            "factors", trained_on, per_device_batch_size=batch_size,
            factor_args=FactorArguments(strategy=strategy),
        )  # fmt: skip
        analyzer.compute_pairwise_scores(
            "scores", "factors", TensorDataset(*queries), trained_on,
            per_device_query_batch_size=len(queries[1]), per_device_train_batch_size=batch_size,
            score_args=ScoreArguments(damping_factor=damping),
        )  # fmt: skip
        return analyzer.load_pairwise_scores("scores")["all_modules"].clone()


def run_ekfac(*, fitted: Fitted, parts: Parts, seed: int) -> dict[str, Any]:
    """Foretell the margins of the queries after training on each part, by EK-FAC.

    Args:
        fitted: a model that was trained on all items; its stored curvature is not read.
        parts: see `attribution.Parts`.
        seed: of the labels that the network draws for its Fisher matrix, by the sweep.

    Returns:
        ``foretold``: ``ekfac`` ``[J, Q]``, as of `attribution.run_attributions`.
    """
    dataset, objective = objective_of(fitted)
    scores = pairwise(
        objective.network,
        parts.asked(dataset),
        (objective.inputs, objective.targets),
        strategy="ekfac",
        damping=fitted.damping + fitted.l2,
    )
    members = parts.members(objective.targets)
    told = -(members.float() @ scores.T) / objective.items
    return {"foretold": {"ekfac": told}}
