"""Own models: what a first user gets wrong is named with its remedy, and what is right runs."""

import inspect
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from toys import states_equal

from unlearnlib.data.requests import Classes
from unlearnlib.models import architectures, checkpoints, networks
from unlearnlib.models.checkpoints import CheckpointError
from unlearnlib.models.training import Recipe
from unlearnlib.own import examples, own_model
from unlearnlib.own.own_model import Description
from unlearnlib.pipeline.sweep import sweep
from unlearnlib.zero_shot import deep_inversion, methods

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

class Casting(Net):
    def __init__(self):
        super().__init__(2)

    def forward(self, x):
        return super().forward(x.double())

def pooled():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4))

def functional(): return Functional()
def half(): return Net(4).half()
def casting(): return Casting()
def dict_of(): return Odd(lambda y: {"logits": y})
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
        "method": "mm_noise",
        "settings": {"per_class": 4, "noise_steps": 2, "steps": 2, "repair_steps": 1},
    },
    "gkt": {
        "method": "gkt",
        "settings": {
            "transfer": {
                "pseudo_batches": 2, "batch_size": 16, "generator_channels": 4, "snapshots": 1,
                "prior_steps": 2, "gate_threshold": 1.0,
            },
            "stop": {"probe": SYNTHESIS},
        },
    },
    "deep_inversion": {
        "method": "deep_inversion",
        "settings": {
            "synthesis": SYNTHESIS,
            "distillation": {"steps": 2, "batch_size": 8, "gate_threshold": 1.0},
        },
    },
    "masked_distillation": {
        "method": "masked_distillation",
        "settings": {"synthesis": SYNTHESIS, "tuning": {"steps": 2}},
    },
}  # fmt: skip


def obstacle(model: own_model.Own, method: dict) -> str | None:
    return methods.obstacle(model, model.shape, own_model.chosen(method)[1])


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder with a file of networks, and no architecture left behind."""
    monkeypatch.setenv("UNLEARNLIB_ROOT", str(tmp_path))
    monkeypatch.setattr(architectures, "ARCHITECTURES", dict(architectures.ARCHITECTURES))
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
        lambda state: {f"_orig_mod.module.{key}": value for key, value in state.items()},
        lambda state: {f"module._orig_mod.{key}": value for key, value in state.items()},
        lambda state: {f"module.module.{key}": value for key, value in state.items()},
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


def test_a_prefix_of_some_keys_is_none(project: Path) -> None:
    state = state_of("network")
    first, *_ = state
    partly = {("" if key == first else "module.") + key: value for key, value in state.items()}
    torch.save(partly, project / "network.pt")
    with pytest.raises(CheckpointError, match=r"8 missing: .*8 unexpected: module\."):
        own_model.load(**mine())


@pytest.mark.parametrize(
    ("normalise", "message"),
    [
        (
            {"means": [0.1, 0.2, 0.3]},
            r"normalise=\{'means': .*: give mean and std, each a list of 3",
        ),
        ({"mean": [0.0] * 3, "var": [1.0] * 3}, r"normalise=\{'mean'.*'var'.*give mean and std"),
        ([0.1, 0.2], r"normalise=\[0.1, 0.2\]: give mean and std"),
        ({"mean": [0.1, 0.2]}, r"normalise: mean=\[0.1, 0.2\]: give .* list of 3 numbers"),
        ({"std": [0.1, 0.2, "a"]}, "normalise: std=.*: give"),
        ({"std": None}, "normalise: std=None: give"),
        ({"mean": [0.1, float("nan"), 0.1]}, "normalise: mean=.*: give"),
        ({"std": [0.1, 0.0, 0.1]}, "normalise: std=.* is not above 0: give"),
        ({"std": [-1.0]}, "normalise: std=.* is not above 0: give"),
    ],
)
def test_a_standardisation_that_cannot_be_is_refused(normalise: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        own_model.load(**mine(normalise=normalise))


@pytest.mark.parametrize(
    "given", [{"mean": [0.25]}, {"mean": 0.25}, {"std": [1.0], "mean": [0.25]}]
)
def test_one_number_serves_all_channels(project: Path, given: dict) -> None:
    network = own_model.importing("nets.py:network")().eval()
    torch.save(network.state_dict(), project / "network.pt")
    images = torch.rand(5, *SHAPE)
    found = own_model.load(**mine(normalise=given))(images)
    torch.testing.assert_close(found, network(images - 0.25))


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


class Trap:
    """An object whose unpickling writes a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple:
        return Path.write_text, (self.target, "gotcha")


def test_a_checkpoint_or_images_with_objects_are_refused_and_not_run(project: Path) -> None:
    target = project / "gotcha"
    for content in (Trap(target), {"state_dict": state_of("network") | {"more": Trap(target)}}):
        torch.save(content, project / "network.pt")
        with pytest.raises(CheckpointError, match="holds more than tensors and plain values"):
            own_model.load(**mine())
    trap = np.array([Trap(target)], dtype=object)
    np.savez(project / "images.npz", images=trap, labels=trap)
    with pytest.raises(
        ValueError, match=r"images\.npz holds no test images \(ValueError: Object arr"
    ):
        own_model.load_images("images.npz", num_classes=CLASSES, shape=SHAPE)
    assert not target.exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("key", ["first.weight", "norm.running_var"])
def test_weights_that_are_not_finite_are_named(project: Path, key: str, value: float) -> None:
    state = state_of("network")
    state[key].view(-1)[0] = value
    torch.save(state, project / "network.pt")
    said = rf"network\.pt holds values that are not finite: 1 keys, {key}; name one from before"
    with pytest.raises(CheckpointError, match=said):
        own_model.load(**mine())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("function", ["network", "half"])
def test_any_precision_is_computed_in_float32(
    project: Path, dtype: torch.dtype, function: str
) -> None:
    """Of the checkpoint, and of the factory's network."""
    trained = own_model.importing("nets.py:network")().to(dtype)
    torch.save(trained.state_dict(), project / f"{function}.pt")
    model = own_model.load(**mine(function))
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    images = torch.rand(5, *SHAPE)
    torch.testing.assert_close(model(images), trained.float().eval()(images))
    unlearned = own_model.unlearn(model, METHODS["mm_noise"], forget_classes=[1], seed=0).network
    own_model.save(unlearned, "out.pt")
    theirs = own_model.importing(f"nets.py:{function}")()
    theirs.load_state_dict(torch.load(project / "out.pt", weights_only=True))


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
        ("tuple_of", "to tuple, not to logits .* returns the logits alone"),
        ("dict_of", "to dict, not to logits .* returns the logits alone"),
        ("casting", r"cannot take images \[2, 3, 8, 12\].*a network that computes in float32"),
        ("probabilities", "gives probabilities, not logits.*softmax"),
        ("infinite", "not finite"),
    ],
)
def test_what_is_no_logits_is_refused(function: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        own_model.load(**mine(function))


@pytest.mark.parametrize(
    ("forget", "message"),
    [
        ([4], "holds 4, not one of the classes 0 to 3"),
        ([-1], "holds -1"),
        ([0, 1, 2, 3], "is every class"),
        ([], "is empty"),
        ("0", "is not a list"),
        (Classes([4]), "holds 4, not one"),
    ],
)
def test_forget_classes_are_checked(forget: object, message: str) -> None:
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
        own_model.unlearn(model, METHODS[name], forget_classes=forget, seed=5).network
        for forget in ([1], Classes([1]))
    )
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    own_model.save(one, project / "out" / "unlearned.pt")
    assert [file.name for file in (project / "out").iterdir()] == ["unlearned.pt"]
    network = own_model.importing("nets.py:network")().eval()
    network.load_state_dict(torch.load(project / "out" / "unlearned.pt", weights_only=True))
    images = torch.rand(6, *SHAPE)
    torch.testing.assert_close(network(images), networks.predict(one, images))
    assert states_equal(one, two)
    assert not torch.allclose(network(images), networks.predict(model, images))


def test_a_method_may_be_an_entry_of_the_registry_with_settings() -> None:
    model = own_model.load(**mine())
    entry, settings = own_model.chosen(METHODS["mm_noise"])
    assert entry is methods.METHODS["mm_noise"]
    one, two = (
        own_model.unlearn(model, method, forget_classes=[1], seed=5, **more).network
        for method, more in ((METHODS["mm_noise"], {}), (entry, {"settings": settings}))
    )
    assert states_equal(one, two)
    with pytest.raises(ValueError, match="settings belong inside the method"):
        own_model.unlearn(model, METHODS["mm_noise"], forget_classes=[1], seed=5, settings=settings)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"method": "gtk"}, "unknown zero-shot method 'gtk'; did you mean 'gkt'"),
        ({"kind": "gkt"}, r"method=\{'kind': 'gkt'\}: give 'method', one of \['mm_noise', 'gkt'"),
        ({"method": "gkt", "tuning": {}}, "give 'method', one of .* and 'settings'"),
        ({"method": "mm_noise", "settings": {"per_clas": 3}}, "per_clas.*did you mean 'per_class'"),
        ({"method": "mm_noise", "settings": {"per_class": 0}}, "per_class"),
        ("gkt", "method='gkt': give 'method', one of"),
    ],
)
def test_a_method_that_is_none_is_refused(given: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        own_model.unlearn(own_model.load(**mine()), given, forget_classes=[1], seed=0)


def test_settings_of_a_method_may_be_left_out() -> None:
    for name, entry in methods.METHODS.items():
        for given in ({"method": name}, {"method": name, "settings": None}):
            assert own_model.chosen(given) == (entry, entry.settings())


def test_methods_that_need_batch_norm_say_so() -> None:
    model = own_model.load(**mine("plain"))
    reasons = {name: obstacle(model, method) for name, method in METHODS.items()}
    assert reasons.pop("mm_noise") is None
    assert all("BatchNorm running statistics" in reason for reason in reasons.values())
    own_model.unlearn(model, METHODS["mm_noise"], forget_classes=[0], seed=0)
    with pytest.raises(ValueError, match="gkt is not applicable: reads BatchNorm"):
        own_model.unlearn(model, METHODS["gkt"], forget_classes=[0], seed=0)


def test_attention_needs_activation_modules() -> None:
    model = own_model.load(**mine("functional"))
    plain = METHODS["gkt"]["settings"]
    without = plain | {"transfer": plain["transfer"] | {"attention_weight": 0.0}}
    assert "activation modules" in obstacle(model, METHODS["gkt"])
    assert obstacle(model, {"method": "gkt", "settings": without}) is None


def test_a_generator_needs_sides_that_are_multiples_of_4() -> None:
    model = own_model.load(**mine("pooled", shape=(3, 10, 12)))
    assert "not 10 x 12" in obstacle(model, METHODS["gkt"])
    plain = {"synthesis": SYNTHESIS | {"prior_steps": 0}}
    assert obstacle(model, {"method": "deep_inversion", "settings": plain}) is None


# -------------------------------------------------------------------------- runs of a sweep


def described(function: str = "network", **changes: object) -> Description:
    return Description(**mine(function) | {"shape": list(SHAPE), **changes})


def task(name: str = "mm_noise", **changes: object) -> dict:
    """The arguments of a run, without those of its settings that are to be changed."""
    entry, settings = own_model.chosen(METHODS[name])
    options = {"method": entry, "settings": settings, "request": Classes([1]), "seed": 0}
    return {"model": described(), **options, **changes}


def test_a_description_loads_what_it_says(project: Path) -> None:
    model = described(normalise={"mean": [0.5] * 3}, arguments={"filters": 4})
    assert model.checkpoint == project / "network.pt"
    images = torch.rand(3, *SHAPE)
    expected = own_model.load(**mine(normalise={"mean": [0.5] * 3}))(images)
    torch.testing.assert_close(model.load()(images), expected)
    (project / "nets.py").write_text(SOURCE + "\nLATER = 1\n")
    with pytest.raises(own_model.FactoryError, match="nets.py:network changed meanwhile"):
        model.load()


def test_a_changed_factory_or_checkpoint_runs_again(project: Path) -> None:
    store = project / "store"

    def swept() -> tuple[dict, int]:
        found = sweep(own_model.run, {"m": task()}, store=store)
        return found["m"].result, (store / "m.pt").stat().st_mtime_ns

    (result, first), (_, second) = swept(), swept()
    assert first == second
    assert checkpoints.unpack(result["model"]).shape == SHAPE
    (project / "nets.py").write_text(SOURCE + "\nLATER = 1\n")
    third = swept()[1]
    torch.save(state_of("network"), project / "network.pt")
    assert second < third < swept()[1]


def test_worker_processes_import_the_factory(project: Path) -> None:
    """In processes of their own the methods give, to the bit, what they give here."""
    tasks = {name: task(name) for name in ("gkt", "mm_noise")}
    parallel, alone = (
        sweep(own_model.run, tasks, store=project / f"store{workers}", workers=workers)
        for workers in (2, 1)
    )
    for name in tasks:
        pair = (checkpoints.unpack(found[name].result["model"]) for found in (parallel, alone))
        assert states_equal(*pair)


def test_a_run_gives_what_unlearning_gives_and_some_images(project: Path) -> None:
    result = own_model.run(**task("deep_inversion"))
    outcome = own_model.unlearn(
        own_model.load(**mine()), METHODS["deep_inversion"], forget_classes=[1], seed=0
    )
    assert states_equal(checkpoints.unpack(result["model"]), outcome.network)
    assert result["images"].dtype == torch.uint8
    assert result["images"].shape[1:] == SHAPE and 0 < len(result["images"]) <= 10


def test_a_method_that_comes_to_no_end_says_why(project: Path) -> None:
    distillation = deep_inversion.Distillation(steps=2, gate_threshold=0.0)
    given = task("deep_inversion")
    settings = replace(given["settings"], distillation=distillation)
    assert "nothing to distil from" in own_model.run(**given | {"settings": settings})["failed"]
    with pytest.raises(ValueError, match="is every class"):
        own_model.run(**given | {"settings": settings, "request": Classes(range(4))})


@pytest.mark.parametrize(
    ("function", "changes"), [("plain", {}), ("pooled", {"shape": [3, 10, 12]}), ("network", {})]
)
def test_images_to_compare_on_are_drawn_from_any_model(function: str, changes: dict) -> None:
    model = described(function, **changes)
    settings = deep_inversion.Synthesis(**SYNTHESIS)
    images = own_model.run_drawing(model=model, settings=settings, seed=0)["images"]
    assert images.shape == (16, *model.shape)
    assert images.dtype == torch.uint8


class Pixels(nn.Module):
    """Read logits off the first pixels, with something added."""

    def __init__(self, *added: float) -> None:
        super().__init__()
        self.added = nn.Parameter(torch.tensor(added).float())

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1)[:, :3] + self.added


def test_signs_are_leak_and_agreement() -> None:
    images = 100 * torch.eye(3)[[0, 1, 1, 2]].view(4, 1, 1, 3)
    found = own_model.signs(Pixels(0, 0, 0), Pixels(-200, 0, 150), images, Classes([0]))
    assert found["leak"] == pytest.approx(0, abs=1e-6)
    assert found["agreement"] == pytest.approx(100 / 3)
    same = own_model.signs(Pixels(0, 0, 0), Pixels(0, 0, 0), images, Classes([0]))
    assert same["leak"] == pytest.approx(100)


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
        ({"images": np.ones((3, 1, 4, 4)), "labels": [0, 1, -1]}, "labels from -1 to 1"),
        ({"images": np.ones((3, 1, 4, 4)), "labels": [0, 0.5, 1]}, "labels from 0.0 to 1.0"),
        ({"images": np.full((3, 4, 4), np.nan), "labels": [0, 1, 1]}, "from nan to nan; give"),
        ({"images": np.ones((0, 4, 4)), "labels": []}, "there are no labels; give some"),
    ):
        np.savez(project / "t.npz", **content)
        with pytest.raises(ValueError, match=message):
            own_model.load_images("t.npz", **options)
    with pytest.raises(ValueError, match="holds no test images"):
        own_model.load_images("gone.npz", **options)


# ------------------------------------------------------------------------ the documented use


def test_the_documented_snippet_runs(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it stands, but for the size and number of its images and its steps."""
    source = "from torch import nn\ndef network():\n    return nn.Sequential(" + ", ".join(
        ["nn.Conv2d(3, 2, 3, stride=4)", "nn.BatchNorm2d(2)", "nn.ReLU()", "nn.Flatten()",
         "nn.Linear(8, 10)"]
    ) + ")\n"  # fmt: skip
    (project / "mine.py").write_text(source)
    torch.save(own_model.importing("mine.py:network")().state_dict(), project / "mine.pt")
    text = inspect.getdoc(own_model)
    snippet = "\n".join(line[4:] for line in text.splitlines() if line.startswith("    "))
    short, count = re.subn(r'("(?:per_class|prior_steps|steps)": )\d+', r"\g<1>2", snippet)
    assert count == 4 and "(3, 32, 32)" in short
    short = short.replace("(3, 32, 32)", "(3, 8, 8)")
    exec(compile(short, "snippet", "exec"), {})
    again = own_model.load("mine_without_3.pt", "mine.py:network", num_classes=10, shape=(3, 8, 8))
    before = own_model.load("mine.pt", "mine.py:network", num_classes=10, shape=(3, 8, 8))
    assert not states_equal(again, before)


def test_the_example_learns_with_and_without_a_class(project: Path) -> None:
    recipe = Recipe(epochs=4, batch_size=64, learning_rate=0.01)
    options = {"arguments": {"filters": 4}, "recipe": recipe, "seed": 0}
    found = {request: examples.run(request=request, **options) for request in (None, Classes([3]))}
    again = examples.run(request=None, **options)["state_dict"]
    assert all(torch.equal(again[k], v) for k, v in found[None]["state_dict"].items())
    images = examples.write_test(project)
    x, y = own_model.load_images(images, num_classes=10, shape=examples.SHAPE)
    for request, result in found.items():
        file = examples.write(result["state_dict"], project, "example")
        model = own_model.load(
            file, "unlearnlib.own.examples:network", num_classes=10, shape=examples.SHAPE,
            arguments={"filters": 4},
        )  # fmt: skip
        right = networks.predict(model, x).argmax(1) == y
        assert right[y != 3].float().mean() > 0.7
        assert request is None or not right[y == 3].any()


def test_forgetting_needs_none_of_the_libraries_of_pipeline_and_report() -> None:
    banned = {
        "dvc", "papermill", "nbformat", "jupyter_client", "playwright", "altair", "jinja2", "IPython",
        "matplotlib", "seaborn", "mlxtend", "torchvision", "pydantic",
    }  # fmt: skip
    code = "import sys, unlearnlib.own.own_model, unlearnlib.own.examples; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert not banned & set(loaded.stdout.split())
