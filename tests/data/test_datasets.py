"""A stored data set: what is read is what was written, and anything else is refused."""

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from unlearnlib.data import datasets

NAMES = tuple("abcdefghij")


@pytest.fixture
def dataset() -> datasets.Dataset:
    """Return 300 images, 30 a class, whose first two pixels number them."""
    order = np.random.default_rng(0).permutation(300)
    pixels = np.zeros((300, 28, 28), np.uint8)
    pixels[:, 0, 0], pixels[:, 0, 1] = np.divmod(order, 256)
    splits = (slice(200), slice(200, 250), slice(250, 300))
    parts = [part[where] for where in splits for part in (pixels, order // 30)]
    return datasets.Dataset("numbered", "Numbered", *parts, classes=NAMES)


def test_save_and_load_round_trip(tmp_path: Path, monkeypatch, dataset: datasets.Dataset) -> None:
    datasets.save(dataset, tmp_path / "a" / "dataset.npz")
    later = time.localtime(time.time() + 1e8)
    monkeypatch.setattr(time, "localtime", lambda *_: later)
    loaded = datasets.load(tmp_path / "a" / "dataset.npz")
    datasets.save(loaded, tmp_path / "b.npz")
    assert (tmp_path / "a" / "dataset.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    assert loaded.fingerprint == dataset.fingerprint
    assert (loaded.source, loaded.label) == (dataset.source, dataset.label)
    assert (loaded.classes, loaded.num_classes, loaded.shape) == (NAMES, 10, (1, 28, 28))
    np.testing.assert_array_equal(loaded.train_images, dataset.train_images)


@pytest.mark.parametrize(
    "field", ["source", "label", "classes", "train_labels", "validation_images", "test_images"]
)
def test_fingerprint_covers_every_field(dataset: datasets.Dataset, field: str) -> None:
    changed = replace(dataset, **{field: getattr(dataset, field)[::-1]})
    assert changed.fingerprint != dataset.fingerprint


def test_names_of_classes_are_the_numbers_where_none_are_given(dataset: datasets.Dataset) -> None:
    arrays = [
        getattr(dataset, f"{name}_{kind}")[:20]
        for name in datasets.SPLITS
        for kind in ("images", "labels")
    ]
    arrays[5] = np.full(20, 11)
    found = datasets.Dataset("toy", "Toy", *arrays)
    assert found.classes == tuple(map(str, range(12)))
    assert found.counts("test") == [0] * 11 + [20]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"test_labels": np.arange(49) % 10},
            r"test images \[50, 28, 28\] and labels \[49\] do not",
        ),
        (
            {"validation_images": np.zeros((50, 20, 20), np.uint8)},
            r"validation images \[50, 20, 20\]",
        ),
        ({"train_labels": np.zeros((200, 1), int)}, r"labels \[200, 1\] do not belong together"),
        ({"classes": NAMES[:9]}, "train labels run from 0 to 9: expected 0 to 8"),
        ({"test_labels": np.arange(50) % 10 - 1}, "test labels run from -1 to 8: expected 0 to 9"),
    ],
)
def test_arrays_that_do_not_belong_together_are_refused(
    dataset: datasets.Dataset, changes: dict, says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        replace(dataset, **changes)


def test_items_of_each_class_are_counted(dataset: datasets.Dataset) -> None:
    counts = [dataset.counts(name) for name in datasets.SPLITS]
    assert [sum(count) for count in counts] == [200, 50, 50]
    assert np.sum(counts, axis=0).tolist() == [30] * 10
    expected = [(dataset.train_labels == k).sum() for k in range(10)]
    assert counts[0] == expected
    with pytest.raises(ValueError, match="unknown split 'valid': choose one of train"):
        dataset.counts("valid")


def test_bad_files_name_the_remedy(tmp_path: Path, dataset: datasets.Dataset) -> None:
    path = tmp_path / "quick" / "dataset.npz"
    with pytest.raises(datasets.DataError, match=r"no data set .*make repro PROFILE=quick"):
        datasets.load(path)
    datasets.save(dataset, path)
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    for content in (whole[:-100], whole[: len(whole) // 2], bytes(flipped), b"", b"not a zip"):
        path.write_bytes(content)
        with pytest.raises(datasets.DataError, match="delete it and run the data stage"):
            datasets.load(path)


def test_foreign_and_changed_files_are_refused(tmp_path: Path, dataset: datasets.Dataset) -> None:
    path = tmp_path / "dataset.npz"
    np.savez(path, x=np.zeros(3))
    with pytest.raises(datasets.DataError, match="not a data set of this study"):
        datasets.load(path)
    datasets.save(dataset, path)
    with np.load(path) as stored:
        content = dict(stored)
    content["test_labels"] = content["test_labels"][::-1]
    np.savez(path, **content)
    with pytest.raises(datasets.DataError, match="differs from its own fingerprint"):
        datasets.load(path)


class Trap:
    """An object whose unpickling writes a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple:
        return Path.write_text, (self.target, "gotcha")


def test_objects_in_a_data_set_are_refused_and_not_run(
    tmp_path: Path, dataset: datasets.Dataset
) -> None:
    path, target = tmp_path / "dataset.npz", tmp_path / "gotcha"
    datasets.save(dataset, path)
    with np.load(path) as stored:
        content = dict(stored)
    content["classes"] = np.array([Trap(target)], dtype=object)
    np.savez(path, **content)
    with pytest.raises(datasets.DataError, match="Object arrays cannot be loaded"):
        datasets.load(path)
    assert not target.exists()


# --------------------------------------------------------------------------------- tensors


def test_images_are_scaled_to_the_unit_interval() -> None:
    pixels = np.arange(2 * 784, dtype=np.uint32).reshape(2, 28, 28).astype(np.uint8)
    x = datasets.images(pixels)
    assert (x.dtype, tuple(x.shape)) == (torch.float32, (2, 1, 28, 28))
    assert (float(x.min()), float(x.max())) == (0.0, 1.0)
    np.testing.assert_array_equal((x[:, 0] * 255).round().numpy(), pixels)
    with pytest.raises(ValueError, match=r"float32 images .* give uint8"):
        datasets.images(x[:, 0].numpy())


def test_images_in_colour_keep_their_channels(dataset: datasets.Dataset, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (300, 3, 6, 8), dtype=np.uint8)
    parts = {"train": pixels[:200], "validation": pixels[200:250], "test": pixels[250:]}
    coloured = replace(dataset, **{f"{name}_images": part for name, part in parts.items()})
    datasets.save(coloured, tmp_path / "dataset.npz")
    loaded = datasets.load(tmp_path / "dataset.npz")
    assert loaded.shape == (3, 6, 8)
    x, _ = datasets.split(loaded, "test")
    np.testing.assert_array_equal((x * 255).round().numpy(), parts["test"])
    with pytest.raises(ValueError, match=r"shape \(6, 8\): give uint8 pixels"):
        datasets.images(pixels[0, 0])


def test_split_pairs_images_with_labels(dataset: datasets.Dataset) -> None:
    x, y = datasets.split(dataset, "validation")
    assert (x.shape[0], y.dtype) == (50, torch.int64)
    drawn = (x[:, 0, 0, :2] * 255).round().long()
    assert torch.equal((drawn[:, 0] * 256 + drawn[:, 1]) // 30, y)
    with pytest.raises(ValueError, match="unknown split 'valid': choose one of train"):
        datasets.split(dataset, "valid")
