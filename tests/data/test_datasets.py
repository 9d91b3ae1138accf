"""A stored data set: what is read is what was written, and anything else is refused."""

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from unlearnlib.data import datasets


@pytest.fixture
def dataset() -> datasets.Dataset:
    """Return 300 images, 30 a class, whose first two pixels number them."""
    order = np.random.default_rng(0).permutation(300)
    pixels = np.zeros((300, 28, 28), np.uint8)
    pixels[:, 0, 0], pixels[:, 0, 1] = np.divmod(order, 256)
    splits = (slice(200), slice(200, 250), slice(250, 300))
    parts = [part[where] for where in splits for part in (pixels, order // 30)]
    return datasets.Dataset("numbered", "Numbered", *parts)


def test_save_and_load_round_trip(tmp_path: Path, monkeypatch, dataset: datasets.Dataset) -> None:
    datasets.save(dataset, tmp_path / "a" / "mnist.npz")
    later = time.localtime(time.time() + 1e8)
    monkeypatch.setattr(time, "localtime", lambda *_: later)
    loaded = datasets.load(tmp_path / "a" / "mnist.npz")
    datasets.save(loaded, tmp_path / "b.npz")
    assert (tmp_path / "a" / "mnist.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    assert loaded.fingerprint == dataset.fingerprint
    assert (loaded.source, loaded.label) == (dataset.source, dataset.label)
    np.testing.assert_array_equal(loaded.train_images, dataset.train_images)


@pytest.mark.parametrize("field", ["train_labels", "validation_images", "label"])
def test_fingerprint_covers_every_field(dataset: datasets.Dataset, field: str) -> None:
    value = getattr(dataset, field)
    changed = replace(dataset, **{field: value + "x" if field == "label" else value[::-1].copy()})
    assert changed.fingerprint != dataset.fingerprint


def test_bad_files_name_the_remedy(tmp_path: Path, dataset: datasets.Dataset) -> None:
    path = tmp_path / "quick" / "mnist.npz"
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
    path = tmp_path / "mnist.npz"
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


# Tensors


def test_images_are_scaled_to_the_unit_interval() -> None:
    pixels = np.arange(2 * 784, dtype=np.uint32).reshape(2, 28, 28).astype(np.uint8)
    x = datasets.images(pixels)
    assert (x.dtype, tuple(x.shape)) == (torch.float32, (2, 1, 28, 28))
    assert (float(x.min()), float(x.max())) == (0.0, 1.0)
    np.testing.assert_array_equal((x[:, 0] * 255).round().numpy(), pixels)
    with pytest.raises(ValueError, match=r"float32 images .* give uint8"):
        datasets.images(x[:, 0].numpy())


def test_split_pairs_images_with_labels(dataset: datasets.Dataset) -> None:
    x, y = datasets.split(dataset, "validation")
    assert (x.shape[0], y.dtype) == (50, torch.int64)
    drawn = (x[:, 0, 0, :2] * 255).round().long()
    assert torch.equal((drawn[:, 0] * 256 + drawn[:, 1]) // 30, y)
    with pytest.raises(ValueError, match="unknown split 'valid': choose one of train"):
        datasets.split(dataset, "valid")
