"""A data set of the study: stored, checked when it is read, and given out as tensors.

It is a handful of arrays in memory: images are uint8 [N, 28, 28], labels int64 [N]. `sources`
makes it; whatever only reads it is spared the libraries that download and split.
"""

import hashlib
import io
import zipfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from unlearnlib.pipeline import paths

NUM_CLASSES = 10
IMAGE_SHAPE = (28, 28)
SPLITS = ("train", "validation", "test")
UNREADABLE = (
    OSError,
    EOFError,
    LookupError,
    ValueError,
    TypeError,
    AttributeError,
    zipfile.BadZipFile,
)


class DataError(RuntimeError):
    """A data file is absent, unreachable or not what it should be; the message names the remedy."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """Hold the three splits of an image set: uint8 images [N, 28, 28], int64 labels [N]."""

    source: str
    label: str
    train_images: np.ndarray
    train_labels: np.ndarray
    validation_images: np.ndarray
    validation_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray

    @cached_property
    def fingerprint(self) -> str:
        """Return the SHA-256 over source, label and every array's name, type, shape and bytes."""
        digest = hashlib.sha256(f"{self.source}\n{self.label}\n".encode())
        for name, array in _arrays(self).items():
            digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()


def save(dataset: Dataset, path: Path) -> None:
    """Write a data set to an .npz file, the same bytes whenever and wherever it is written."""
    buffer = io.BytesIO()
    # Uncompressed: deflate's output depends on the zlib that Python was built with.
    texts = {"source": dataset.source, "label": dataset.label, "fingerprint": dataset.fingerprint}
    np.savez(buffer, **texts, **_arrays(dataset))
    paths.write_atomic(Path(path), buffer.getvalue())


def load(path: Path) -> Dataset:
    """Read what `save` wrote.

    Raises:
        DataError: absent, cut short, changed, or not a data set of this study.
    """
    path = Path(path)
    remedy = f"run the data stage: make repro PROFILE={path.parent.name}"
    if not path.is_file():
        raise DataError(f"there is no data set {path}: {remedy}")
    try:
        with np.load(path, allow_pickle=False) as stored:
            content = {key: stored[key] for key in stored.files}
        fingerprint = content.pop("fingerprint").item()
        texts = {key: content.pop(key).item() for key in ("source", "label")}
        dataset = Dataset(**texts, **content)
    except UNREADABLE as error:
        raise DataError(
            f"{path} is damaged or not a data set of this study ({error}): delete it and {remedy}"
        ) from error
    if dataset.fingerprint != fingerprint:
        raise DataError(f"{path} differs from its own fingerprint: delete it and {remedy}")
    return dataset


def images(array: np.ndarray) -> Tensor:
    """Scale uint8 images [N, 28, 28] to float32 [N, 1, 28, 28] in [0, 1].

    Raises:
        ValueError: not uint8 of that shape, for instance scaled already.
    """
    if array.dtype != np.uint8 or array.ndim != 3:
        raise ValueError(
            f"got {array.dtype} images of shape {array.shape}: give uint8 pixels [N, 28, 28]"
        )
    return torch.tensor(array).unsqueeze(1).float().div_(255)


def split(dataset: Dataset, name: str) -> tuple[Tensor, Tensor]:
    """Return one split as tensors: images float32 [N, 1, 28, 28] in [0, 1], labels int64 [N].

    Raises:
        ValueError: a name other than train, validation, test.
    """
    if name not in SPLITS:
        raise ValueError(f"unknown split {name!r}: choose one of {', '.join(SPLITS)}")
    arrays = _arrays(dataset)
    return images(arrays[f"{name}_images"]), torch.tensor(arrays[f"{name}_labels"])


def _arrays(dataset: Dataset) -> dict[str, np.ndarray]:
    return {
        f"{name}_{kind}": getattr(dataset, f"{name}_{kind}")
        for name in SPLITS
        for kind in ("images", "labels")
    }
