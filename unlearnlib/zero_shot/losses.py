"""What the zero-shot methods minimise, and the gate that keeps forgotten classes from a student.

Symbols: T teacher, S student, C_f the classes to forget.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unlearnlib.data.requests import Classes

# --------------------------------------------------------------------------------- predictions


def divergence(
    teacher_logits: Tensor, student_logits: Tensor, *, per_class: bool = False
) -> Tensor:
    """Compute KL(T ‖ S) in nats, the mean over a batch of logits ``[N, K]``.

    In log space throughout: ``F.kl_div`` with a gradient through its target turns NaN as soon as
    one teacher probability underflows to 0. With `per_class` it is divided by K, which is what
    ``F.kl_div(reduction="mean")`` of the published code does.
    """
    teacher, student = teacher_logits.log_softmax(1), student_logits.log_softmax(1)
    value = (teacher.exp() * (teacher - student)).sum(1).mean()
    return value / teacher_logits.shape[1] if per_class else value


def entropy(logits: Tensor) -> Tensor:
    """Compute the entropy ``[N]`` in nats of predictions given as logits ``[N, K]``."""
    return -(logits.softmax(1) * logits.log_softmax(1)).sum(1)


def imbalance(logits: Tensor) -> Tensor:
    """Compute the negative entropy in nats of the mean prediction: least when classes balance."""
    mean = logits.softmax(1).mean(0)
    return (mean * mean.clamp_min(1e-12).log()).sum()


# ------------------------------------------------------------------------ classes to be forgotten


def share(logits: Tensor, request: Classes) -> Tensor:
    """Compute the probability ``[N]`` that logits ``[N, K]`` give to the classes C_f together."""
    return logits.softmax(1)[:, list(request.classes)].sum(1)


def odds(logits: Tensor, request: Classes) -> Tensor:
    """Compute the log-odds ``[N]`` that logits ``[N, K]`` give to the classes C_f together."""
    gone = request.mask(torch.arange(logits.shape[1])).to(logits.device)
    return logits[:, gone].logsumexp(1) - logits[:, ~gone].logsumexp(1)


def gate(
    logits: Tensor, request: Classes, *, threshold: float, entropy_limit: float | None = None
) -> Tensor:
    """Decide which images the student may see: ``[N]`` booleans from T's logits ``[N, K]``.

    An image passes when T gives the forget classes together at most `threshold`, and, with an
    `entropy_limit` in nats, when the entropy of T's prediction is not above it.
    """
    passes = share(logits, request) <= threshold
    return passes if entropy_limit is None else passes & (entropy(logits) <= entropy_limit)


def masked(logits: Tensor, request: Classes) -> Tensor:
    """Take classes out of predictions: logits ``[N, K]`` whose softmax gives them nothing.

    Their logits are put 50 below the smallest one, a probability of less than e^-50 each, so that
    divergences stay finite.
    """
    out = logits.clone()
    out[:, list(request.classes)] = logits.min(1, keepdim=True).values - 50
    return out


# ----------------------------------------------------------------------------------- attention


def attention_map(activation: Tensor) -> Tensor:
    """Reduce an activation ``[N, C, ...]`` to its L2-normalised channel mean of squares ``[N, P]``.

    Features of a fully connected layer, ``[N, P]``, are squared and normalised.
    """
    squares = activation.square()
    return F.normalize(squares if activation.dim() == 2 else squares.mean(1).flatten(1))


class _AttentionGap(torch.autograd.Function):
    """The mean squared difference of an attention map to a fixed one, in few passes.

    Autograd's own way takes three times as long: it reads the activation for each operation.
    """

    @staticmethod
    def forward(ctx, activation: Tensor, wanted: Tensor) -> Tensor:
        energy = torch.linalg.vector_norm(activation, dim=1).square_().flatten(1)
        energy /= activation.shape[1]
        size = energy.norm(dim=1, keepdim=True).clamp_min(1e-12)
        own = energy / size
        gap = own - wanted
        slope = (gap - own * (gap * own).sum(1, keepdim=True)) / size
        ctx.save_for_backward(activation, slope * (4 / (gap.numel() * activation.shape[1])))
        return gap.square().mean()

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        activation, slope = ctx.saved_tensors
        shape = (len(activation), 1, *activation.shape[2:])
        return activation * (gradient * slope).view(shape), None


def attention_gap(activation: Tensor, wanted: Tensor) -> Tensor:
    """Compute the mean squared difference of a student's attention map to the teacher's.

    Args:
        activation: of a layer of the student, ``[N, C, ...]`` or ``[N, P]``.
        wanted: `attention_map` of the teacher's, ``[N, P]``; no gradient flows through it.
    """
    if activation.dim() == 2:
        return (attention_map(activation) - wanted).square().mean()
    return _AttentionGap.apply(activation, wanted)


# --------------------------------------------------------------------------------------- images


def statistics_distance(inputs: list[Tensor], layers: list[nn.Module]) -> Tensor:
    """Measure how far batch statistics lie from running ones, summed over BatchNorm layers.

    Σ_l ‖μ_l(x) − μ̂_l‖₂ + ‖σ²_l(x) − σ̂²_l‖₂ (DeepInversion, arXiv 1912.08795, equation 4).

    Args:
        inputs: what each layer was fed, ``[N, C, ...]``, in the order of `layers`.
        layers: BatchNorm layers with running statistics.
    """
    total = torch.zeros(())
    for x, layer in zip(inputs, layers, strict=True):
        dims = [d for d in range(x.dim()) if d != 1]
        variance, mean = torch.var_mean(x, dims, correction=0)
        total = total.to(x.device) + torch.linalg.vector_norm(mean - layer.running_mean)
        total = total + torch.linalg.vector_norm(variance - layer.running_var)
    return total


def total_variation(images: Tensor) -> Tensor:
    """Compute the mean over images of the summed squared differences of neighbouring pixels."""
    down = (images[..., 1:, :] - images[..., :-1, :]).square().sum((1, 2, 3))
    across = (images[..., 1:] - images[..., :-1]).square().sum((1, 2, 3))
    return (down + across).mean()
