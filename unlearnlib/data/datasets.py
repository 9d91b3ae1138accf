"""A data set of the study: stored, checked when it is read, and given out as tensors.

It is a handful of arrays in memory: images are uint8, ``[N, H, W]`` in grey or ``[N, C, H, W]`` in
colour, labels int64 ``[N]``. `sources` makes it; whatever only reads it is spared the libraries
that download and split.
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
    """Hold the three splits of an image set.

    Attributes:
        source: its name in `sources.SOURCES`.
        label: its name in tables and pages.
        train_images: uint8 ``[N, H, W]`` or ``[N, C, H, W]``, as those of the other splits.
        train_labels: int64 ``[N]``, class numbers, as those of the other splits.
        classes: names of the classes, in the order of their numbers; left out, the numbers.

    Raises:
        ValueError: splits whose arrays do not belong together.
    """

    source: str
    label: str
    train_images: np.ndarray
    train_labels: np.ndarray
    validation_images: np.ndarray
    validation_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    classes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        arrays = _arrays(self)
        highest = max(int(arrays[f"{name}_labels"].max(initial=-1)) for name in SPLITS)
        if not self.classes:
            object.__setattr__(self, "classes", tuple(map(str, range(highest + 1))))
        for name in SPLITS:
            pixels, labels = arrays[f"{name}_images"], arrays[f"{name}_labels"]
            if pixels.shape != (len(labels), *self.train_images.shape[1:]) or labels.ndim != 1:
                raise ValueError(
                    f"{name} images {list(pixels.shape)} and labels {list(labels.shape)} do not "
                    f"belong together, beside training images {list(self.train_images.shape)}"
                )
            if not 0 <= labels.min(initial=0) <= labels.max(initial=0) < self.num_classes:
                raise ValueError(
                    f"{name} labels run from {labels.min()} to {labels.max()}: expected 0 to "
                    f"{self.num_classes - 1}"
                )

    @property
    def num_classes(self) -> int:
        """K, the number of classes."""
        return len(self.classes)

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(C, H, W)`` of an image."""
        sizes = self.train_images.shape[1:]
        return (1, *sizes) if len(sizes) == 2 else sizes

    def counts(self, name: str) -> list[int]:
        """Count the items of each class in a split.

        Raises:
            ValueError: a name other than train, validation, test.
        """
        _check_split(name)
        return np.bincount(getattr(self, f"{name}_labels"), minlength=self.num_classes).tolist()

    @cached_property
    def fingerprint(self) -> str:
        """Return the SHA-256 over all names and every array's name, type, shape and bytes."""
        names = "\n".join([self.source, self.label, *self.classes])
        digest = hashlib.sha256(f"{names}\n".encode())
        for name, array in _arrays(self).items():
            digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()


def save(dataset: Dataset, path: Path) -> None:
    """Write a data set to an .npz file, the same bytes whenever and wherever it is written."""
    buffer = io.BytesIO()
    texts = {
        "source": dataset.source,
        "label": dataset.label,
        "classes": np.array(dataset.classes),
        "fingerprint": dataset.fingerprint,
    }
    # Uncompressed: deflate's output depends on the zlib that Python was built with.
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
        dataset = Dataset(**texts, classes=tuple(content.pop("classes").tolist()), **content)
    except UNREADABLE as error:
        raise DataError(
            f"{path} is damaged or not a data set of this study ({error}): delete it and {remedy}"
        ) from error
    if dataset.fingerprint != fingerprint:
        raise DataError(f"{path} differs from its own fingerprint: delete it and {remedy}")
    return dataset


def images(array: np.ndarray) -> Tensor:
    """Scale uint8 images ``[N, H, W]`` or ``[N, C, H, W]`` to float32 ``[N, C, H, W]`` in [0, 1].

    Raises:
        ValueError: not uint8 of that shape, for instance scaled already.
    """
    if array.dtype != np.uint8 or array.ndim not in (3, 4):
        raise ValueError(
            f"got {array.dtype} images of shape {array.shape}: give uint8 pixels [N, H, W] or "
            "[N, C, H, W]"
        )
    pixels = torch.tensor(array)
    return (pixels.unsqueeze(1) if array.ndim == 3 else pixels).float().div_(255)


def split(dataset: Dataset, name: str) -> tuple[Tensor, Tensor]:
    """Return one split as tensors: images float32 ``[N, C, H, W]`` in [0, 1], labels int64 ``[N]``.

    Raises:
        ValueError: a name other than train, validation, test.
    """
    _check_split(name)
    arrays = _arrays(dataset)
    return images(arrays[f"{name}_images"]), torch.tensor(arrays[f"{name}_labels"])


def _check_split(name: str) -> None:
    if name not in SPLITS:
        raise ValueError(f"unknown split {name!r}: choose one of {', '.join(SPLITS)}")


def _arrays(dataset: Dataset) -> dict[str, np.ndarray]:
    return {
        f"{name}_{kind}": getattr(dataset, f"{name}_{kind}")
        for name in SPLITS
        for kind in ("images", "labels")
    }
