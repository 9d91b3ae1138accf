"""Gradients and curvature of a loss over many items: the ingredients of influence functions.

Every function reads an `Objective`, the mean loss with an L2 penalty at the network's present
parameters θ,

    L(θ) = (1/n) Σ_i ℓ_i(θ) + λ/2 ‖θ‖²,

and goes through the items in chunks, so that memory does not grow with their number. Parameters are
one flat vector ``[P]`` in the order of `nn.Module.parameters`; vectors and matrices come back in
float64, products with networks run in the network's own precision. The penalty counts as part of
every item's loss: a sum over U of gradients holds ``|U| λ θ``. With that convention the minimum
without U does not depend on whether the rest is summed or averaged.

A product takes one vector ``[P]`` or columns ``[P, M]``. The columns share the passes through the
network that do not depend on them, and the rest runs for eight of them at once: on one thread a
column of the Hessian's product then takes less than half of what it takes alone.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, vjp, vmap
from torch.nn import functional as F

from unlearnlib.influence.solvers import Operator, restrict
from unlearnlib.pipeline.progress import track

Scalar = Callable[[Tensor], Tensor]

COLUMNS = 8  # of a product at once: more gain nothing on a CPU, and memory grows with them


@dataclass(frozen=True)
class Loss:
    """A loss of logits, and a root of its curvature in them.

    Attributes:
        values: ``(logits [N, K], targets [N] or [N, K]) -> [N]``.
        root: ``logits [N, K] -> R [N, K, R]`` with ``R R^T`` the Hessian of one value.
    """

    values: Callable[[Tensor, Tensor], Tensor]
    root: Callable[[Tensor], Tensor]


def softmax_root(logits: Tensor) -> Tensor:
    """Compute R ``[N, K, K-1]`` with ``R R^T = diag(p) - p p^T``, p the softmax of the logits.

    With ``s = sqrt(p)``, a unit vector, the Hessian is ``diag(s) (I - s s^T) diag(s)``, and a
    Householder reflection that maps s to an axis gives an orthonormal basis of its complement.
    """
    s = (logits.log_softmax(-1) / 2).exp()
    classes = s.shape[-1]
    axis = F.one_hot(torch.tensor(classes - 1, device=s.device), classes).to(s)
    v = s + axis
    outer = v[:, :, None] * v[:, None, :]
    reflection = torch.eye(classes).to(s) - outer / (1 + s[:, -1, None, None])
    return s[:, :, None] * reflection[:, :, :-1]


def _cross_entropies(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits, labels, reduction="none")


def _squares(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets.to(outputs)).square().flatten(1).sum(1) / 2


def _identity(outputs: Tensor) -> Tensor:
    return torch.eye(outputs.shape[-1]).to(outputs).expand(len(outputs), -1, -1)


CROSS_ENTROPY = Loss(_cross_entropies, softmax_root)
SQUARED = Loss(_squares, _identity)


@dataclass(frozen=True, eq=False)
class Objective:
    """The mean loss of a network over items, with an L2 penalty.

    Attributes:
        network: in evaluation mode, so that an item's loss does not depend on its neighbours.
        inputs: ``[n, ...]``, what the network reads.
        targets: ``[n]`` class numbers, or ``[n, K]`` for `SQUARED`.
        loss: `CROSS_ENTROPY`, `SQUARED` (half the squared distance), or one of your own.
        l2: λ, weight of ``‖θ‖² / 2``.
        batch_size: items a chunk; memory grows with it.

    Raises:
        ValueError: no items, as many targets as not inputs, a negative penalty, no batch size.
    """

    network: nn.Module
    inputs: Tensor
    targets: Tensor
    loss: Loss = CROSS_ENTROPY
    l2: float = 0.0
    batch_size: int = 200

    def __post_init__(self) -> None:
        if not 0 < len(self.inputs) == len(self.targets):
            raise ValueError(
                f"{len(self.inputs)} inputs and {len(self.targets)} targets: give equally many of "
                "both, at least one"
            )
        if not self.l2 >= 0:
            raise ValueError(f"l2={self.l2}: the penalty is a weight of 0 or more, such as 1e-3")
        if self.batch_size < 1:
            raise ValueError(f"batch_size={self.batch_size}: give at least 1, such as 200")

    @property
    def items(self) -> int:
        """n, the number of items."""
        return len(self.inputs)


# ------------------------------------------------------------------------ flat parameters


def flatten(network: nn.Module) -> Tensor:
    """Copy the parameters of a network into one vector ``[P]``, in its own precision."""
    return torch.cat([p.detach().reshape(-1) for p in network.parameters()])


def unflatten(network: nn.Module, flat: Tensor) -> dict[str, Tensor]:
    """View a vector ``[P]`` as named parameters, such as `torch.func.functional_call` takes."""
    named = dict(network.named_parameters())
    parts = flat.split([p.numel() for p in named.values()])
    return {name: part.view(p.shape) for (name, p), part in zip(named.items(), parts, strict=True)}


@torch.no_grad()
def assign(network: nn.Module, flat: Tensor) -> None:
    """Overwrite the parameters of a network with a vector ``[P]``, in place.

    Raises:
        ValueError: a vector of another length.
    """
    count = sum(p.numel() for p in network.parameters())
    if flat.shape != (count,):
        raise ValueError(f"a vector of shape {tuple(flat.shape)} for {count} parameters")
    for name, values in unflatten(network, flat).items():
        network.get_parameter(name).copy_(values)


# ------------------------------------------------------------------------------ gradients


def mean_loss(objective: Objective, *, index: Tensor | None = None) -> float:
    """Compute L over all items, or over those at `index` ``[M]``, penalty included."""
    theta = flatten(objective.network)
    total = sum(_summed(objective, batch)(theta).double() for batch in _batches(objective, index))
    return (
        total / _count(objective, index) + objective.l2 / 2 * theta.double().square().sum()
    ).item()


def gradient_sum(objective: Objective, *, index: Tensor | None = None) -> Tensor:
    """Sum the gradients of items: ``g_U = Σ_U (∇ℓ_u + λ θ)``, a sum and not a mean.

    Args:
        objective: see `Objective`.
        index: ``[M]``, the group U; all items without it.

    Returns:
        ``[P]``, float64. Over all items it is ``n ∇L``, zero at a minimum.
    """
    theta = flatten(objective.network)
    total = _count(objective, index) * objective.l2 * theta.double()
    for batch in _batches(objective, index):
        total += grad(_summed(objective, batch))(theta).double()
    return total


def item_gradients(objective: Objective, *, index: Tensor | None = None) -> Tensor:
    """Compute each item's gradient ``∇ℓ_i + λ θ``.

    Returns:
        ``[M, P]``, float64: M times P numbers in memory.
    """
    network, theta = objective.network, flatten(objective.network)

    def one(theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return objective.loss.values(_logits(network, theta, x[None]), y[None])[0]

    each = vmap(grad(one), (None, 0, 0))
    rows = [each(theta, *batch).double() for batch in _batches(objective, index)]
    return torch.cat(rows) + objective.l2 * theta.double()


# ------------------------------------------------------------------------------ curvature


def gauss_newton(
    objective: Objective, *, index: Tensor | None = None, mask: Tensor | None = None
) -> Tensor:
    """Form the generalised Gauss-Newton matrix ``(1/n) Σ_i J_i^T Λ_i J_i + λ I``.

    J is the Jacobian of an item's logits and Λ the Hessian of the loss in them, for cross-entropy
    ``diag(p) - p p^T`` (Schraudolph 2002; Martens 2020, section 8). It is the Hessian without the
    curvature of the network, and so never indefinite. The products of a chunk are computed in the
    network's precision and summed in float64.

    Args:
        objective: see `Objective`.
        index: ``[M]``, the mean runs over these items; all without it.
        mask: bool ``[P]``, only the block of these parameters.

    Returns:
        symmetric ``[P, P]``, or the block, float64, without damping.
    """
    count = _count(objective, index)
    theta = flatten(objective.network)
    size = len(theta) if mask is None else check_mask(mask, len(theta))
    total = torch.zeros(size, size, dtype=torch.float64, device=theta.device)
    for inputs, _ in track(list(_batches(objective, index)), "Gauss-Newton matrix"):
        rows = _rooted(objective, theta, inputs).flatten(0, 1)
        _add_gram(total, rows if mask is None else rows[:, mask])
    total.triu_()
    total += total.triu(1).T
    total /= count
    total.diagonal().add_(objective.l2)
    return total


def rooted_jacobian(
    objective: Objective, *, index: Tensor | None = None, chunk: int = 10
) -> Tensor:
    """Form X with ``X^T X = (1/N) Σ_i J_i^T Λ_i J_i``, the Gauss-Newton matrix without the penalty.

    Args:
        objective: see `Objective`.
        index: ``[N]``, the items of the mean; all without it.
        chunk: items at once; beside X itself memory grows with it.

    Returns:
        ``[N R, P]`` in the network's precision, R the rank of the loss's curvature: K - 1 for
        cross-entropy over K classes.

    Raises:
        ValueError: no items, or a network in training mode.
    """
    count, theta, done = _count(objective, index), flatten(objective.network), 0
    rows = theta.new_empty(0, len(theta))
    for inputs, _ in _batches(replace(objective, batch_size=chunk), index):
        part = _rooted(objective, theta, inputs)
        if not done:  # written in place: to join chunks would need twice the memory
            rows = theta.new_empty(count, *part.shape[1:])
        rows[done : done + len(part)] = part
        done += len(part)
    return rows.flatten(0, 1).div_(count**0.5)


def item_roots(objective: Objective, *, index: Tensor | None = None) -> Tensor:
    """Compute a root of each item's curvature: X with ``X_i^T X_i = J_i^T Λ_i J_i``.

    Returns:
        ``[M, R, P]``, float64, R as in `rooted_jacobian`: M times R times P numbers in memory.
    """
    rows, count = rooted_jacobian(objective, index=index), _count(objective, index)
    return rows.double().mul_(count**0.5).unflatten(0, (count, -1))


def gauss_newton_operator(
    objective: Objective, *, index: Tensor | None = None, mask: Tensor | None = None
) -> Operator:
    """Return the product ``v -> G v`` with the matrix of `gauss_newton`, without forming it.

    Takes and returns ``[P]`` or ``[P, M]`` (or as many rows as the mask has), in the dtype of v.
    """

    def product(theta: Tensor, v: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
        def logits(theta: Tensor) -> Tensor:
            return _logits(objective.network, theta, batch[0])

        outputs, tangent = jvp(logits, (theta,), (v,))
        root = objective.loss.root(outputs)
        curved = torch.einsum("nkr,njr,nj->nk", root, root, tangent)
        return vjp(logits, theta)[1](curved)[0]

    return _operator(objective, product, index, mask)


def hessian_operator(
    objective: Objective, *, index: Tensor | None = None, mask: Tensor | None = None
) -> Operator:
    """Return the product ``v -> H v`` with the Hessian of the mean loss, penalty included.

    Reverse over reverse (Pearlmutter 1994), which on a CPU is at least as fast as forward over
    reverse. Away from a minimum, or where training stopped early, H may be indefinite.
    """

    def product(theta: Tensor, v: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
        return vjp(grad(_summed(objective, batch)), theta)[1](v)[0]

    return _operator(objective, product, index, mask)


def third_operator(objective: Objective, *, index: Tensor | None = None) -> Operator:
    """Return ``v -> ∇³L[v, v]``, the change of ``H v`` along v; zero where the loss is quadratic."""

    def product(theta: Tensor, v: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
        gradient = grad(_summed(objective, batch))
        return grad(lambda theta: jvp(gradient, (theta,), (v,))[1] @ v)(theta)

    return _operator(objective, product, index, None, penalty=0.0)


CURVATURES = {"gauss_newton": gauss_newton_operator, "hessian": hessian_operator}


def curvature_operator(kind: str, objective: Objective, *, index: Tensor | None = None) -> Operator:
    """Return the product of a kind of curvature by name.

    Raises:
        ValueError: a name that is not in `CURVATURES`.
    """
    return CURVATURES[check_kind(kind)](objective, index=index)


def check_kind(kind: str) -> str:
    """Return the name of a kind of curvature, and refuse one that is not in `CURVATURES`."""
    if kind not in CURVATURES:
        raise ValueError(f"unknown curvature {kind!r}; choose one of {sorted(CURVATURES)}")
    return kind


# -------------------------------------------------------------------------------- helpers


def _operator(
    objective: Objective,
    product: Callable[[Tensor, Tensor, tuple[Tensor, Tensor]], Tensor],
    index: Tensor | None,
    mask: Tensor | None,
    *,
    penalty: float | None = None,
) -> Operator:
    """Turn the product of a chunk into the one of the mean, plus the penalty's share."""
    theta = flatten(objective.network)
    penalty = objective.l2 if penalty is None else penalty
    count = _count(objective, index)

    def apply(v: Tensor) -> Tensor:
        if v.shape[:1] != theta.shape or v.ndim > 2:
            raise ValueError(f"a vector of shape {tuple(v.shape)} for {len(theta)} parameters")
        total = count * penalty * v.double()
        for batch in _batches(objective, index):
            total += _by_column(partial(product, theta, batch=batch), v.to(theta)).double()
        return (total / count).to(v.dtype)

    if mask is None:
        return apply
    check_mask(mask, len(theta))
    return restrict(apply, mask)


def _by_column(product: Operator, v: Tensor) -> Tensor:
    """Apply the product for ``[P]`` to a vector or to columns ``[P, M]``.

    What does not depend on v, the forward pass and the gradient at θ, is not repeated by `vmap`.
    """
    if v.ndim == 1:
        return product(v)
    return vmap(product, chunk_size=COLUMNS)(v.T.contiguous()).T


def _logits(network: nn.Module, theta: Tensor, inputs: Tensor) -> Tensor:
    if network.training:
        raise ValueError(
            f"{type(network).__name__} is in training mode, where an item's loss depends on its "
            "batch; call network.eval() first"
        )
    return functional_call(network, unflatten(network, theta), (inputs,))


def _summed(objective: Objective, batch: tuple[Tensor, Tensor]) -> Scalar:
    """Return ``θ -> Σ ℓ_i(θ)`` over a chunk, without the penalty."""
    inputs, targets = batch

    def total(theta: Tensor) -> Tensor:
        return objective.loss.values(_logits(objective.network, theta, inputs), targets).sum()

    return total


def _count(objective: Objective, index: Tensor | None) -> int:
    count = objective.items if index is None else len(index)
    if count == 0:
        raise ValueError("an empty index selects no items; give at least one position")
    return count


def _batches(objective: Objective, index: Tensor | None) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the items in chunks, where the network is; inputs in its precision."""
    place = next(objective.network.parameters())
    order = torch.arange(objective.items) if index is None else index
    for chunk in order.split(objective.batch_size):
        yield objective.inputs[chunk].to(place), objective.targets[chunk].to(place.device)


def check_mask(mask: Tensor, parameters: int) -> int:
    """Return how many parameters a mask selects, and refuse one that cannot be."""
    if mask.dtype != torch.bool or mask.shape != (parameters,) or not mask.any():
        raise ValueError(
            f"a mask of shape {tuple(mask.shape)} and type {mask.dtype} with {int(mask.sum())} "
            f"entries: give a bool tensor [{parameters}], true for at least one parameter"
        )
    return int(mask.sum())


def _rooted(objective: Objective, theta: Tensor, inputs: Tensor) -> Tensor:
    """Compute ``R_i^T J_i`` for each item of a chunk: ``[N, R, P]``."""
    network = objective.network
    root = objective.loss.root(_logits(network, theta, inputs))

    def one(x: Tensor, columns: Tensor) -> Tensor:
        pull = vjp(lambda theta: _logits(network, theta, x[None])[0], theta)[1]
        return vmap(lambda column: pull(column)[0], in_dims=1)(columns)

    return vmap(one)(inputs, root)


def _add_gram(total: Tensor, rows: Tensor, *, blocks: int = 8) -> None:
    """Add ``rows^T rows`` to the upper triangle of total, in place, and to little below it.

    Strips of columns spare nearly half of the product, which is symmetric.
    """
    for strip in torch.arange(rows.shape[1], device=rows.device).tensor_split(blocks):
        if len(strip) == 0:
            continue
        first, last = int(strip[0]), int(strip[-1]) + 1
        total[first:last, first:] += rows[:, first:last].T @ rows[:, first:]
