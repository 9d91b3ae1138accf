"""Tiny tasks with exact answers: ridge regression, logistic regression, a small convolutional net."""

import torch
from torch import Tensor, nn
from torch.func import functional_call, hessian

from unlearnlib.influence import curvature
from unlearnlib.influence.curvature import SQUARED, Objective
from unlearnlib.models.architectures import Logistic

EXACT = 1e-6


def ridge(items: int = 40, *, l2: float = 0.1, seed: int = 0) -> Objective:
    """Fit a linear map with bias from 5 to 2 numbers exactly, by the normal equations."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(items, 5, generator=generator, dtype=torch.float64)
    targets = torch.randn(items, 2, generator=generator, dtype=torch.float64) + inputs[:, :2] ** 2
    network = nn.Linear(5, 2).double().eval()
    objective = Objective(network, inputs, targets, loss=SQUARED, l2=l2, batch_size=16)
    curvature.assign(network, ridge_minimum(objective, torch.ones(items, dtype=torch.float64)))
    return objective


def design(objective: Objective) -> Tensor:
    """Return the inputs with a column of ones: [n, 6]."""
    return torch.cat([objective.inputs, torch.ones(objective.items, 1).double()], 1)


def ridge_minimum(objective: Objective, weights: Tensor) -> Tensor:
    """Solve the weighted normal equations; flat as the network's parameters, weight then bias."""
    x, total = design(objective), weights.sum()
    left = x.T @ (weights[:, None] * x) / total + objective.l2 * torch.eye(6).double()
    solution = torch.linalg.solve(left, x.T @ (weights[:, None] * objective.targets) / total)
    return torch.cat([solution[:5].T.reshape(-1), solution[5]])


def logistic(items: int = 200, *, l2: float = 0.05, seed: int = 0) -> Objective:
    """Fit 3 overlapping classes in 4 pixels exactly, by Newton's method."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.arange(items) % 3
    centres = 1.5 * torch.randn(3, 4, generator=generator, dtype=torch.float64)
    noise = torch.randn(items, 4, generator=generator, dtype=torch.float64)
    inputs = (centres[targets] + noise).view(items, 1, 2, 2)
    network = Logistic(num_classes=3, side=2).double().eval()
    objective = Objective(network, inputs, targets, l2=l2, batch_size=64)
    curvature.assign(network, 0 * curvature.flatten(network))
    curvature.assign(network, newton_minimum(objective, torch.ones(items, dtype=torch.float64)))
    return objective


def newton_minimum(objective: Objective, weights: Tensor, *, steps: int = 9) -> Tensor:
    """Minimise the weighted mean loss by full Newton steps from the present parameters.

    Differentiable in the weights: k steps from a minimum have its first k derivatives. Take reverse
    mode at least once: twice forward through `torch.linalg.solve` loses half of the second one.
    """
    network, theta = objective.network, curvature.flatten(objective.network)

    def mean(theta: Tensor) -> Tensor:
        named = curvature.unflatten(network, theta)
        outputs = functional_call(network, named, (objective.inputs,))
        losses = objective.loss.values(outputs, objective.targets)
        return losses @ weights / weights.sum() + objective.l2 / 2 * theta @ theta

    for _ in range(steps):
        slope = torch.func.grad(mean)(theta)
        theta = theta - torch.linalg.solve(hessian(mean)(theta), slope)
    return theta


def removal_weights(items: int, group: Tensor, s: Tensor | float) -> Tensor:
    """Weigh the items at a point of the path of removal: all equal at s = 0, U gone at s = 1."""
    share = len(group) / items
    inside = torch.zeros(items, dtype=torch.float64)
    inside[group] = 1
    return 1 + s * ((1 - inside) * share / (1 - share) - inside)


def small_net(seed: int = 0) -> Objective:
    """Draw a convolutional net with BatchNorm and 30 items it has not been trained on."""
    torch.manual_seed(seed)
    network = nn.Sequential(
        nn.Conv2d(1, 3, 3, stride=2),
        nn.BatchNorm2d(3),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(12, 4),
    ).double()
    inputs = torch.randn(30, 1, 6, 6).double()
    network(inputs)
    return Objective(network.eval(), inputs, torch.arange(30) % 4, l2=0.02, batch_size=7)


def dense_hessian(objective: Objective, index: Tensor | None = None) -> Tensor:
    """Differentiate the mean loss, penalty included, twice: an oracle of few parameters."""
    network = objective.network
    order = torch.arange(objective.items) if index is None else index

    def mean(theta: Tensor) -> Tensor:
        named = curvature.unflatten(network, theta)
        outputs = functional_call(network, named, (objective.inputs[order],))
        values = objective.loss.values(outputs, objective.targets[order])
        return values.mean() + objective.l2 / 2 * theta @ theta

    return hessian(mean)(curvature.flatten(network))
