"""Ask what a feature space knows: by a linear probe, by its neighbours, by where a ViT looks."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from annotated_types import Ge, Gt, MinLen
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor
from torch.nn import functional as F

from unlearnlib.data import datasets
from unlearnlib.measures.accuracy import percent_correct
from unlearnlib.models import architectures, checkpoints, networks
from unlearnlib.pipeline import seeds

Split = tuple[Tensor, Tensor]


class ProbeError(RuntimeError):
    """A probe that did not converge, or features that cannot be had."""


# --------------------------------------------------------------------------------- accuracies


def linear_probe(
    train: Split, held: Split, *, strength: float = 1.0, max_iterations: int = 2000
) -> LogisticRegression:
    """Fit multinomial logistic regression on standardised features (Alain & Bengio 2017).

    Args:
        train: features ``[N, D]`` and labels ``[N]`` to fit.
        held: features and labels to score on, see `accuracy`; only their shape is checked here.
        strength: C of scikit-learn, the inverse weight of the penalty on the sum of the losses.
        max_iterations: of L-BFGS.

    Raises:
        ProbeError: no convergence.
        ValueError: no items, other features in the two splits, or a strength not above 0.
    """
    _check(train, held)
    if not strength > 0:
        raise ValueError(f"strength={strength}: the inverse penalty is above 0, such as 1.0")
    model = make_pipeline(
        StandardScaler(), LogisticRegression(C=strength, max_iter=max_iterations, tol=1e-3)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        try:
            return model.fit(train[0].double().numpy(), train[1].numpy())
        except ConvergenceWarning as error:
            raise ProbeError(
                f"the linear probe did not converge in {max_iterations} iterations; raise "
                f"max_iterations or lower strength={strength:g}"
            ) from error


def knn_probe(train: Split, held: Split, *, neighbours: int = 5) -> KNeighborsClassifier:
    """Store features for a vote of the nearest in Euclidean distance, not standardised.

    Args:
        train: features ``[N, D]`` and labels ``[N]`` that vote.
        held: as in `linear_probe`.
        neighbours: how many vote.

    Raises:
        ValueError: no items, other features in the two splits, or more neighbours than items.
    """
    _check(train, held)
    if not 1 <= neighbours <= len(train[0]):
        raise ValueError(f"neighbours={neighbours} of {len(train[0])} items: give 1 to all of them")
    model = KNeighborsClassifier(neighbours, algorithm="brute")
    return model.fit(train[0].double().numpy(), train[1].numpy())


def accuracy(model: Any, held: Split) -> float:
    """Measure a scikit-learn classifier on features ``[N, D]`` and labels ``[N]``, in percent."""
    return 100 * float(model.score(held[0].double().numpy(), held[1].numpy()))


PROBES = {
    "probe": lambda train, held, value: linear_probe(train, held, strength=value),
    "knn": lambda train, held, value: knn_probe(train, held, neighbours=value),
}


def best(kind: str, splits: dict[str, Split], choices: Sequence[float]) -> dict[str, float]:
    """Choose a probe's setting on the validation split, and measure that one probe on the test.

    Args:
        kind: ``probe`` (choices are strengths) or ``knn`` (choices are numbers of neighbours).
        splits: ``train``, ``validation`` and ``test``, features and labels.
        choices: to try; of equal accuracies the first wins.

    Returns:
        ``<kind>_choice``, ``<kind>_validation`` and ``<kind>_accuracy`` (test), in percent.

    Raises:
        ValueError: unknown kind or nothing to choose from; or as in `linear_probe`, `knn_probe`.
    """
    if kind not in PROBES or not choices:
        raise ValueError(
            f"kind {kind!r} with choices {list(choices)}: give one of {sorted(PROBES)} and at "
            "least one setting to try"
        )
    fitted = [PROBES[kind](splits["train"], splits["validation"], value) for value in choices]
    scores = [accuracy(model, splits["validation"]) for model in fitted]
    chosen = scores.index(max(scores))
    return {
        f"{kind}_choice": choices[chosen],
        f"{kind}_validation": scores[chosen],
        f"{kind}_accuracy": accuracy(fitted[chosen], splits["test"]),
    }


def _check(train: Split, held: Split) -> None:
    for features, labels in (train, held):
        if not 0 < len(features) == len(labels):
            raise ValueError(
                f"{len(features)} features and {len(labels)} labels: give equally many of both, at "
                "least one"
            )
    if train[0].shape[1:] != held[0].shape[1:]:
        raise ValueError(
            f"features of shape {tuple(train[0].shape[1:])} to fit and "
            f"{tuple(held[0].shape[1:])} to score: give both from one network"
        )


# ------------------------------------------------------------------------------- feature spaces


@torch.no_grad()
def attention_weights(network: architectures.ViT, images: Tensor) -> Tensor:
    """Compute the attention ``softmax(Q K^T / sqrt(d_k))`` of every block and head.

    `architectures.attend` with the identity in place of V returns the weights themselves.

    Args:
        network: a vision transformer.
        images: ``[N, C, H, W]``.

    Returns:
        ``[N, blocks, heads, T, T]``; row t says how much token t takes from each token, and sums
        to 1. Token 0 is the class token, the rest are patches in reading order.

    Raises:
        ValueError: a network without attention.
    """
    layers = [m for m in network.modules() if isinstance(m, architectures.MultiHeadAttention)]
    if not layers:
        raise ValueError(
            f"{type(network).__name__} has no attention to look at; give a 'vit' of models.build"
        )
    with networks.record_inputs(layers) as tokens:
        networks.predict(network, images, batch_size=len(images))
    return torch.stack([_weights(*pair) for pair in zip(layers, tokens, strict=True)], 1).cpu()


def _weights(layer: architectures.MultiHeadAttention, tokens: Tensor) -> Tensor:
    count, length, dim = tokens.shape
    projected = layer.project(tokens).view(count, length, 3, layer.heads, dim // layer.heads)
    queries, keys, _ = projected.permute(2, 0, 3, 1, 4)
    return architectures.attend(queries, keys, torch.eye(length).to(tokens))


@torch.no_grad()
def pretrained_features(images: Tensor, *, name: str, batch_size: int = 50) -> Tensor:
    """Compute the features of a pretrained model of the optional package timm.

    Args:
        images: ``[N, 1 or 3, H, W]`` in [0, 1]; resized and normalised as the model wants them.
        name: of a timm model, such as ``vit_tiny_patch16_224``.
        batch_size: images a forward pass.

    Returns:
        ``[N, D]`` on the CPU.

    Raises:
        ProbeError: timm is not installed, or the weights cannot be had.
    """
    try:
        import timm
    except ImportError as error:
        raise ProbeError(
            f"the pretrained model {name!r} needs timm, which is not installed: pip install timm, "
            "or set pretrained to null and go without"
        ) from error
    try:
        network = timm.create_model(name, pretrained=True, num_classes=0).eval()
    except Exception as error:  # whatever the hub, the network and the name can fail with
        raise ProbeError(
            f"no weights for the pretrained model {name!r} ({' '.join(str(error).split())}): "
            "connect to the internet once or set HF_HOME to a folder that has them, or set "
            "pretrained to null and go without"
        ) from error
    prepare = _preparation(network.pretrained_cfg)
    return torch.cat([network(prepare(batch)).cpu() for batch in images.split(batch_size)])


def _preparation(settings: dict[str, Any]) -> Any:
    """Return the function that resizes and normalises a batch for a pretrained model."""
    mean, std = (torch.tensor(settings[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    size = tuple(settings["input_size"][-2:])

    def prepare(batch: Tensor) -> Tensor:
        large = F.interpolate(batch, size=size, mode="bilinear", antialias=True)
        return (large.expand(-1, 3, -1, -1) - mean) / std

    return prepare


# ------------------------------------------------------------------------------------------ run


@dataclass(frozen=True)
class Settings:
    """What the probes see, and the settings that they may choose from.

    Attributes:
        probe_items: training items that they are fitted on, drawn at random; at most all.
        strengths: C of the linear probe, see `linear_probe`.
        neighbours: that vote, see `knn_probe`.
    """

    probe_items: Annotated[int, Ge(1)]
    strengths: Annotated[tuple[Annotated[float, Gt(0)], ...], MinLen(1)]
    neighbours: Annotated[tuple[Annotated[int, Ge(1)], ...], MinLen(1)]


def space_features(
    images: Tensor, *, original: Path | None = None, pretrained: str | None = None
) -> Tensor:
    """Compute the features ``[N, D]`` of a space: of images ``[N, C, H, W]`` the pixels themselves.

    Args:
        images: what is to be described.
        original: file of a model, for its penultimate layer instead.
        pretrained: name of a model of timm instead, see `pretrained_features`.

    Raises:
        ValueError: both.
    """
    if original is not None and pretrained is not None:
        raise ValueError(
            f"original={original.name} and pretrained={pretrained!r}: give one of them"
        )
    if original is not None:
        return networks.penultimate(checkpoints.load(original), images)
    if pretrained is not None:
        return pretrained_features(images, name=pretrained)
    return images.flatten(1)


def run(
    *,
    data: Path,
    settings: Settings,
    seed: int,
    original: Path | None = None,
    pretrained: str | None = None,
) -> dict[str, Any]:
    """Probe one feature space of a sweep.

    Args:
        data: file of the data set.
        settings: see `Settings`.
        seed: of the draw of training items.
        original: see `space_features`.
        pretrained: see `space_features`.

    Returns:
        ``items`` (how many the probes saw), ``dimensions``, the keys of `best` for both probes and,
        for a model of ours, its own ``model_validation`` and ``model_accuracy`` (test), in percent.
    """
    dataset = datasets.load(data)
    splits = {name: datasets.split(dataset, name) for name in datasets.SPLITS}
    images, labels = splits["train"]
    order = torch.randperm(len(labels), generator=seeds.stream(seed, "probe items"))
    drawn = order[: settings.probe_items]
    splits["train"] = images[drawn], labels[drawn]
    space = {"original": original, "pretrained": pretrained}
    spaces = {name: (space_features(x, **space), y) for name, (x, y) in splits.items()}
    result = {"items": len(drawn), "dimensions": spaces["train"][0].shape[1]}
    if original is not None:
        result |= _own_accuracies(original, splits)
    result |= best("probe", spaces, settings.strengths)
    return result | best("knn", spaces, settings.neighbours)


def _own_accuracies(original: Path, splits: dict[str, Split]) -> dict[str, float]:
    network = checkpoints.load(original)
    names = {"model_validation": "validation", "model_accuracy": "test"}
    return {
        key: percent_correct(networks.predict(network, splits[name][0]), splits[name][1])
        for key, name in names.items()
    }
