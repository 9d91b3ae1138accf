"""What students of a transfer hold of the class that they were never shown."""

from pathlib import Path

import pytest
import torch
from toys import lines, plain_map, record

from unlearnlib.data import datasets
from unlearnlib.data.requests import Classes
from unlearnlib.measures import leak
from unlearnlib.models import architectures, networks, training
from unlearnlib.zero_shot import gkt


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    return lines(tmp_path / "dataset.npz", test=60)


def trained(dataset: Path, *, epochs: int, without: int | None = None) -> torch.nn.Module:
    torch.manual_seed(0)
    network = architectures.build("lenet5", width=0.5)
    images, labels = datasets.split(datasets.load(dataset), "train")
    kept = labels != without if without is not None else torch.ones_like(labels).bool()
    recipe = training.Recipe(epochs=epochs, batch_size=16, learning_rate=0.01)
    training.fit(network, images[kept], labels[kept], recipe=recipe, seed=0)
    return network.eval()


def test_map_agreement_is_the_cosine_of_attention_maps(dataset: Path):
    one, other = trained(dataset, epochs=1), trained(dataset, epochs=3)
    images = datasets.split(datasets.load(dataset), "test")[0][:7]
    layers = networks.activation_layers(one)
    maps = []
    for network in (one, other):
        with networks.record_outputs(network, layers) as outputs, torch.no_grad():
            network(images)
        maps.append([plain_map(outputs[name]) for name in layers])
    expected = [torch.cosine_similarity(a, b).mean().item() for a, b in zip(*maps, strict=True)]
    assert leak.map_agreement(one, other, images) == pytest.approx(expected, rel=1e-4)
    assert leak.map_agreement(one, one, images) == pytest.approx([1.0] * len(layers), rel=1e-4)


def test_a_probe_finds_a_class_in_the_features_of_a_network_that_knows_it(dataset: Path):
    loaded = datasets.load(dataset)
    fitted, held = datasets.split(loaded, "train"), datasets.split(loaded, "test")
    torch.manual_seed(0)
    knows = leak.probe(trained(dataset, epochs=6), Classes([3]), fitted, held)
    assert knows > 95


def test_looks_are_spread_over_the_snapshots(dataset: Path, tmp_path: Path):
    teacher = trained(dataset, epochs=4)
    students = [trained(dataset, epochs=4, without=3), trained(dataset, epochs=1), teacher]
    snapshots = [
        {"pseudo_batch": 10 * number, "model": gkt.half(student)}
        for number, student in enumerate(students, start=1)
    ]
    original = record(tmp_path / "original.pt", teacher, shape=[1, 28, 28])
    run = record(tmp_path / "run.pt", teacher, snapshots=snapshots)
    asked = {"transfer": run, "original": original, "data": dataset, "request": Classes([3])}
    found = leak.run(**asked, looks=2, images=4)
    assert found["pseudo_batch"] == [10, 30]
    assert found["share"][0] < 0.1 < 0.5 < found["share"][1]
    assert found["forgotten"][1] == pytest.approx([1.0] * 4, abs=1e-3)
    assert min(found["forgotten"][0]) < 0.99
    assert len(found["maps"]) == 2 and len(found["maps"][0]) == len(found["teacher_maps"]) == 4
    assert found["example"].shape == (1, 1, 28, 28)
    assert leak.run(**asked, looks=9, images=4)["pseudo_batch"] == [10, 20, 30]
