"""Own models: what a first user gets wrong is named with its remedy, and what is right runs."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from toys import states_equal

from unlearnlib.models import models
from unlearnlib.models.models import CheckpointError
from unlearnlib.own import own_model
from unlearnlib.pipeline.sweep import sweep

SHAPE, CLASSES = (3, 8, 12), 4
SOURCE = '''
import torch
from torch import nn
from torch.nn import functional as F

class Net(nn.Module):
    """Two convolutions; `view` needs the memory format that the user trained with."""

    def __init__(self, filters):
        super().__init__()
        self.first = nn.Conv2d(3, filters, 3, padding=1)
        self.norm = nn.BatchNorm2d(filters)
        self.act = nn.ReLU(inplace=True)
        self.architecture = "mine"
        self.linear = nn.Linear(filters * 96, 4)

    def forward(self, x):
        x = self.act(self.norm(self.first(x)))
        return self.linear(x.view(len(x), -1))

class Odd(nn.Module):
    def __init__(self, ending):
        super().__init__()
        self.net, self.ending = Net(2), ending

    def forward(self, x):
        return self.ending(self.net(x))

def network(filters=4):
    return Net(filters)

def plain():
    return nn.Sequential(nn.Flatten(), nn.Linear(288, 8), nn.ReLU(), nn.Linear(8, 4))

class Functional(Net):
    def __init__(self):
        super().__init__(2)
        del self.act

    def forward(self, x):
        return self.linear(F.relu(self.norm(self.first(x))).view(len(x), -1))

def pooled():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4))

def functional(): return Functional()
def tuple_of(): return Odd(lambda y: (y, y))
def probabilities(): return Odd(lambda y: y.softmax(1))
def infinite(): return Odd(lambda y: y / 0)
def number(): return 3
def seeded():
    torch.manual_seed(0)
    return Net(4)
'''
SYNTHESIS = {"per_class": 4, "steps": 2, "prior_steps": 2, "generator_channels": 4}
METHODS = {
    "mm_noise": {
        "kind": "mm_noise",
        "settings": {"per_class": 4, "noise_steps": 2, "steps": 2, "repair_steps": 1},
    },
    "gkt": {
        "kind": "gkt",
        "settings": {
            "pseudo_batches": 2, "batch_size": 16, "generator_channels": 4, "snapshots": 1,
            "prior_steps": 2, "gate_threshold": 1.0,
        },
    },
    "deep_inversion": {
        "kind": "deep_inversion",
        "synthesis": SYNTHESIS,
        "distillation": {"steps": 2, "batch_size": 8, "gate_threshold": 1.0},
    },
    "masked_distillation": {
        "kind": "masked_distillation", "synthesis": SYNTHESIS, "tuning": {"steps": 2},
    },
}  # fmt: skip


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder with a file of networks, and no architecture left behind."""
    monkeypatch.setenv("UNLEARNLIB_ROOT", str(tmp_path))
    monkeypatch.setattr(models, "ARCHITECTURES", dict(models.ARCHITECTURES))
    (tmp_path / "nets.py").write_text(SOURCE)
    torch.manual_seed(0)
    return tmp_path


def state_of(function: str) -> dict[str, torch.Tensor]:
    return own_model.importing(f"nets.py:{function}")().state_dict()


def mine(function: str = "network", **changes: object) -> dict:
    """The arguments of `load` for one of the networks, whose state dict is written."""
    if not Path(file := own_model.root() / f"{function}.pt").exists() and function not in BROKEN:
        torch.save(state_of(function), file)
    return {
        "checkpoint": f"{function}.pt", "factory": f"nets.py:{function}", "num_classes": CLASSES,
        "shape": SHAPE, **changes,
    }  # fmt: skip


BROKEN = ("number", "absent")


@pytest.mark.parametrize(
    "form",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model_state_dict": state},
        lambda state: {f"module.{key}": value for key, value in state.items()},
        lambda state: {"state_dict": {f"module.{k}": v for k, v in state.items()}},
    ],
)
def test_every_usual_form_of_checkpoint_loads(form, project: Path) -> None:
    network = own_model.importing("nets.py:network")().eval()
    torch.save(form(network.state_dict()), project / "network.pt")
    images = torch.rand(5, *SHAPE)
    torch.testing.assert_close(own_model.load(**mine())(images), network(images))


def test_images_are_standardised_as_the_network_was_trained(project: Path) -> None:
    network = own_model.importing("nets.py:network")().eval()
    torch.save(network.state_dict(), project / "network.pt")
    given = {"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.6, 0.7]}
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in given.values())
    images = torch.rand(5, *SHAPE)
    found = own_model.load(**mine(normalise=given))(images)
    torch.testing.assert_close(found, network((images - mean) / std))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (nn.Linear(1, 1), r"whole model.*torch.save\(model.state_dict"),
        ({"epoch": 3, "weights": [1]}, r"keys \['epoch', 'weights'\], not a state dict"),
        ([1, 2], "holds list, not a state dict"),
        ({"a": torch.ones(1)}, r"9 missing: first.weight.*1 unexpected: a\).*arguments"),
    ],
)
def test_a_file_that_is_no_fitting_state_dict_is_refused(content, message, project: Path) -> None:
    torch.save(content, project / "network.pt")
    with pytest.raises(CheckpointError, match=message):
        own_model.load(**mine())


def test_a_missing_or_damaged_checkpoint_is_named(project: Path) -> None:
    with pytest.raises(
        CheckpointError, match="checkpoint gone.pt does not exist.*project's folder"
    ):
        own_model.load(**mine(checkpoint="gone.pt"))
    (project / "bytes.pt").write_bytes(b"no zip")
    with pytest.raises(CheckpointError, match="bytes.pt is damaged"):
        own_model.load(**mine(checkpoint="bytes.pt"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"factory": "network"}, "'network' names no function: write 'package.module:function'"),
        ({"factory": "nets.py:"}, "names no function"),
        ({"factory": "gone.py:network"}, "there is no file gone.py"),
        ({"factory": "no_such_package.nets:build"}, "cannot be imported.*PYTHONPATH"),
        ({"factory": "nets.py:netwrok"}, "has no function 'netwrok'; it has Net, Odd, network"),
        ({"factory": "nets.py:number"}, "returned int, not a torch.nn.Module"),
        ({"factory": "nets.py:seeded"}, "the same weights at every call.*afresh"),
        ({"arguments": {"depth": 3}}, r"failed with arguments=\{'depth': 3\}.*depth"),
        ({"arguments": {"filters": 5}}, r"of another shape: first.weight \[4, 3, 3, 3\] for \[5,"),
        ({"shape": (1, 8, 12)}, r"cannot take images \[2, 1, 8, 12\].*give shape as"),
        ({"num_classes": 5}, r"to \[2, 4\], not to logits \[2, 5\]; set num_classes"),
    ],
)
def test_what_a_first_user_gets_wrong_is_named(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        own_model.load(**mine(**changes))


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("tuple_of", "to tuple, not to logits"),
        ("probabilities", "gives probabilities, not logits.*softmax"),
        ("infinite", "not finite"),
    ],
)
def test_what_is_no_logits_is_refused(function: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        own_model.load(**mine(function))


@pytest.mark.parametrize(
    ("forget", "message"),
    [([4], "holds 4, not one"), ([-1], "holds -1"), ([0, 1, 2, 3], "is every class")],
)
def test_forget_classes_are_checked(forget: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        own_model.unlearn(
            own_model.load(**mine()), METHODS["mm_noise"], forget_classes=forget, seed=0
        )


@pytest.mark.parametrize("name", METHODS)
def test_each_method_leaves_a_file_that_loads_into_the_users_factory(
    name: str, project: Path
) -> None:
    model = own_model.load(**mine())
    before = {key: value.clone() for key, value in model.state_dict().items()}
    one, two = (
        own_model.unlearn(model, METHODS[name], forget_classes=[1], seed=5)["model"]
        for _ in range(2)
    )
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    own_model.save(one, project / "out" / "unlearned.pt")
    assert [file.name for file in (project / "out").iterdir()] == ["unlearned.pt"]
    network = own_model.importing("nets.py:network")().eval()
    network.load_state_dict(torch.load(project / "out" / "unlearned.pt", weights_only=True))
    images = torch.rand(6, *SHAPE)
    torch.testing.assert_close(network(images), models.predict(two, images))
    assert not torch.allclose(network(images), models.predict(model, images))


def test_methods_that_need_batch_norm_say_so() -> None:
    model = own_model.load(**mine("plain"))
    reasons = {name: own_model.not_applicable(model, method) for name, method in METHODS.items()}
    assert reasons.pop("mm_noise") is None
    assert all("BatchNorm running statistics" in reason for reason in reasons.values())
    own_model.unlearn(model, METHODS["mm_noise"], forget_classes=[0], seed=0)
    with pytest.raises(ValueError, match="not applicable: reads BatchNorm"):
        own_model.unlearn(model, METHODS["gkt"], forget_classes=[0], seed=0)


def test_attention_needs_activation_modules() -> None:
    model = own_model.load(**mine("functional"))
    without = METHODS["gkt"]["settings"] | {"attention_weight": 0.0}
    assert "activation modules" in own_model.not_applicable(model, METHODS["gkt"])
    assert own_model.not_applicable(model, {"kind": "gkt", "settings": without}) is None


def test_a_generator_needs_sides_that_are_multiples_of_4() -> None:
    model = own_model.load(**mine("pooled", shape=(3, 10, 12)))
    assert "not 10 x 12" in own_model.not_applicable(model, METHODS["gkt"])
    plain = {"kind": "deep_inversion", "synthesis": SYNTHESIS | {"prior_steps": 0}}
    assert own_model.not_applicable(model, plain) is None


def spec(project: Path, **changes: object) -> dict:
    given = mine() | {"arguments": {}, "normalise": None, "shape": list(SHAPE)}
    given |= {"checkpoint": project / "network.pt", "code": own_model.code("nets.py:network")}
    return given | {"name": "m", "seed": 0, "forget_classes": [1], **changes}


def test_a_changed_factory_or_checkpoint_runs_again(project: Path) -> None:
    store, method = project / "store", METHODS["mm_noise"]

    def swept() -> tuple[dict, int]:
        (record,) = sweep([spec(project, method=method)], own_model.run, store=store)
        return record["result"], (store / "m.pt").stat().st_mtime_ns

    (result, first), (_, second) = swept(), swept()
    assert first == second
    assert models.unpack(result["model"]).shape == SHAPE
    (project / "nets.py").write_text(SOURCE + "\nLATER = 1\n")
    third = swept()[1]
    torch.save(state_of("network"), project / "network.pt")
    assert second < third < swept()[1]


def test_worker_processes_import_the_factory(project: Path) -> None:
    """In processes of their own the methods give, to the bit, what they give here."""
    specs = [spec(project, name=name, method=METHODS[name]) for name in ("gkt", "mm_noise")]
    parallel, alone = (
        sweep(specs, own_model.run, store=project / f"store{workers}", workers=workers)
        for workers in (2, 1)
    )
    for one, other in zip(parallel, alone, strict=True):
        networks = (models.unpack(record["result"]["model"]) for record in (one, other))
        assert states_equal(*networks)


def test_a_method_that_comes_to_no_end_says_why(project: Path) -> None:
    method = METHODS["deep_inversion"] | {"distillation": {"steps": 2, "gate_threshold": 0.0}}
    assert "nothing to distil from" in own_model.run(spec(project, method=method))["failed"]
    with pytest.raises(ValueError, match="is every class"):
        own_model.run(spec(project, method=method, forget_classes=[0, 1, 2, 3]))


def test_images_to_compare_on_are_drawn_from_any_model(project: Path) -> None:
    given = mine("plain", arguments={}, normalise=None, code=own_model.code("nets.py:plain"))
    drawn = own_model.run_drawing(given | {"name": "probe", "seed": 0, "synthesis": SYNTHESIS})
    assert drawn["images"].shape == (16, *SHAPE)
    assert drawn["images"].dtype == torch.uint8


class Pixels(nn.Module):
    """Read logits off the first pixels, with something added."""

    def __init__(self, *added: float) -> None:
        super().__init__()
        self.added = nn.Parameter(torch.tensor(added).float())

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1)[:, :3] + self.added


def test_signs_are_leak_and_agreement() -> None:
    images = 100 * torch.eye(3)[[0, 1, 1, 2]].view(4, 1, 1, 3)
    found = own_model.signs(Pixels(0, 0, 0), Pixels(-200, 0, 150), images, [0])
    assert found["leak"] == pytest.approx(0, abs=1e-6)
    assert found["agreement"] == pytest.approx(100 / 3)
    assert own_model.signs(Pixels(0, 0, 0), Pixels(0, 0, 0), images, [0])["leak"] == pytest.approx(
        100
    )


def test_test_images_are_read_as_the_model_takes_them(project: Path) -> None:
    options = {"num_classes": 2, "shape": (1, 4, 4)}
    np.savez(project / "t.npz", images=np.full((3, 4, 4), 255, np.uint8), labels=[0, 1, 1])
    images, labels = own_model.load_images("t.npz", **options)
    assert images.shape == (3, 1, 4, 4) and images.max() == 1 and labels.tolist() == [0, 1, 1]
    for content, message in (
        ({"images": np.ones((3, 1, 4, 4))}, "holds no test images.*numpy.savez"),
        ({"images": np.ones((3, 1, 5, 4)), "labels": [0, 1, 1]}, r"give \[N, 1, 4, 4\]"),
        ({"images": 2 * np.ones((3, 1, 4, 4)), "labels": [0, 1, 1]}, r"from 2 to 2; give"),
        ({"images": np.ones((3, 1, 4, 4)), "labels": [0, 1, 2]}, "labels from 0 to 2"),
    ):
        np.savez(project / "t.npz", **content)
        with pytest.raises(ValueError, match=message):
            own_model.load_images("t.npz", **options)
    with pytest.raises(ValueError, match="holds no test images"):
        own_model.load_images("gone.npz", **options)
