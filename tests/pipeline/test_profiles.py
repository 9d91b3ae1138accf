"""The command that runs a profile: it refuses what cannot be before anything has happened."""

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from copy import deepcopy
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import ROOT

from unlearnlib.pipeline import checks, parameters, profiles
from unlearnlib.pipeline.sections import KINDS

CLASSES = list(range(10))


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the parameter files, where DVC must not be called."""
    shutil.copytree(ROOT / "params", tmp_path / "params")
    monkeypatch.setenv("UNLEARNLIB_ROOT", str(tmp_path))
    monkeypatch.setattr(profiles, "_run", _refuse)
    return tmp_path


def _refuse(command: list[str], **options: Any) -> None:
    raise AssertionError(f"{command} was called")


def change(root: Path, path: str, value: Any) -> None:
    """Set a key of the quick profile, given by its path."""
    file = root / "params" / "quick.yaml"
    content = yaml.safe_load(file.read_text())
    *folders, name = path.split(".")
    inside = content
    for folder in folders:
        inside = inside.setdefault(folder, {})
    inside[name] = value
    file.write_text(yaml.safe_dump(content, sort_keys=False))


BAD = [
    ("study.forget_classes", [12], "classes holds 12, not one of the classes 0 to 9"),
    ("study.forget_classes", [], "empty"),
    ("study.forget_classes", CLASSES, "is every class"),
    ("study.forget_classes", "0", "classes='0' is not a list"),
    ("study.forget_classes", [0, 0], "holds 0 more than once"),
    ("study.forget_classes", [-1], "holds -1, below 0"),
    ("study.forget_classes", [1.5], "holds 1.5, not a whole number"),
    ("study.forget_classes", [True], "holds True, not a whole number"),
    ("study.width", 0, "= 0: should be greater than 0"),
    ("study.width", -1, "= -1: should be greater than 0"),
    ("study.width", "a", "= 'a': should be a valid number"),
    ("study.width", 0.001, "= 0.001: width 0.001 leaves no filter"),
    ("study.width", float("inf"), "should be a finite number"),
    ("study.model", "allcn", "= 'allcn': should be 'allcnn', "),
    ("study.seeds", [], "= []: should have at least 1 item"),
    ("study.seeds", [0, 0], "holds 0 more than once"),
    ("study.seeds", 0, "= 0: should be a list"),
    ("study.workers", 0, "= 0: should be greater than or equal to 1"),
    ("study.workers", -1, "= -1: should be greater than or equal to 1"),
    ("study.workers", True, "= True: should be a valid integer"),
    ("study.workers", "2", "= '2': should be a valid integer; that is a text, leave its quotation"),
    ("study.model", "compactt", "'resnet18' or 'vit'; did you mean 'compact'?"),
    ("study.width", 10**9, "= 1000000000: should be less than or equal to 16"),
    (
        "study.arena_plan.ensembles.class_0",
        10**9,
        "= 1000000000: should be less than or equal to 10000",
    ),
    ("study.arena_plan.requests", {"../x": {"classes": [0]}}, "'../x' cannot name a file: give"),
    ("study.zzz", 1, "study.zzz = 1: no such key; there are model, width, "),
    ("study.engine", "ray", "= 'ray': should be 'loky' or 'dask'"),
    ("study.damping", -0.1, "= -0.1: should be greater than or equal to 0"),
    ("study.labels", [0, 11], "holds 11, which is not among classes of mnist-5k: 0, 1, 2"),
    ("study.coherent_sizes", [35, 5000], "size=5000 of 350 items of class 0: give 1 to 350"),
    ("study.random_sizes", [3500], "size=3500 of 3500 items"),
    ("study.arena_plan.items", 10**6, "= 1000000: the training split has 3500 images"),
    ("study.arena_plan.requests.class_0", {"classes": [10]}, "holds 10, not one of the classes"),
    ("study.arena_plan.requests.class_0", {"clases": [0]}, "give classes alone, or mode"),
    ("study.arena_plan.requests.hard.size", 1000, "size=1000 of 1000 items"),
    ("study.arena_plan.ensembles.class_5", 4, "no request named ['class_5']"),
    (
        "study.arena_plan.ensembles.class_0",
        1,
        "seeds [0, 1] are not all among the ensemble's 0 to 0 of class_0",
    ),
    ("study.arena_plan.seeds", [0], "at least 2 items"),
    ("study.arena_plan.other_seeds", [0, 7], "other_seeds [0, 7] are not all among [0, 1]"),
    (
        "study.arena_plan.requests.hard",
        {"mode": "hard", "size": 3, "label": 2},
        "leave them out",
    ),
    ("data.source", "mnst", "= 'mnst': should be 'mnist-5k', "),
    ("data.test", None, "data: test=None: give a whole number"),
    ("data.validation", 10**6, "data: validation=1000000 does not fit"),
    ("train.learning_rate", float("nan"), "= nan: should be a finite number"),
    ("train.learning_rate", -0.1, "= -0.1: should be greater than 0"),
    ("train.learning_rate", 0, "= 0: should be greater than 0"),
    ("train.learning_rate", "0.001", "= '0.001': should be a valid number; that is a text, leave"),
    ("train.learning_rate", "fast", "= 'fast': should be a valid number"),
    ("train.learning_rate", "1e-3", "= 1e-3: a string to YAML; write it as 1.0e-3"),
    ("train.epochs", 0, "= 0: should be greater than or equal to 1"),
    ("train.epochs", 1.0, "= 1.0: should be a valid integer"),
    ("train.batch_size", 1, "= 1: should be greater than or equal to 2"),
    ("train.l2", 0.1, "= 0.1: no such key"),
    ("gkt.settings.pseudo_batches", 0, "= 0: should be greater than or equal to 1"),
    ("gkt.settings.batch_size", 1, "= 1: should be greater than or equal to 2"),
    ("gkt.settings.student_rate", 0, "= 0: should be greater than 0"),
    ("gkt.settings.attention_layers", [0], "give different layers of allcnn, from 1 to 8; null"),
    ("gkt.settings.snapshots", 13, "snapshots=13 with pseudo_batches=12: "),
    ("gkt.settings.snapshts", 3, "= 3: no such key; did you mean 'snapshots'?"),
    ("gkt.variants.gkt_entropy.entropy_limt", 3, "= 3: no such key; did you mean 'entropy_limit'?"),
    ("gkt.variants.gkt_entropy.snapshots", 13, "snapshots=13 with pseudo_batches=12: "),
    ("gkt.seeds", [0, 7], "holds 7, which is not among train.seeds: 0, 1"),
    ("gkt.factor_seeds", [7], "holds 7, which is not among gkt.seeds: 0, 1"),
    ("gkt.factors.gkt_beta_25.attention_weigh", 3, "= 3: no such key; did you mean"),
    ("gkt.branches.gkt_from_8_layer_1.attention_layers", "a", "should be a list"),
    ("gkt.branches.gkt_from_8_layer_1.attention_layers", [9], "= [9]: give different layers of"),
    ("gkt.branches.gkt_from_8_layer_1.attention_layers", [1, 1], "= [1, 1]: give different lay"),
    ("gkt.branches.gkt_from_8_layer_1.attention_layers", [], "= []: give different layers of"),
    ("gkt.variants", {"../x": {}}, "gkt.variants.../x: '../x' cannot name a file: give letters"),
    ("gkt.variants", {"a/b": {}}, "gkt.variants.a/b: 'a/b' cannot name a file: give letters"),
    ("gkt.branches", {"_replace_": True, ".x": {}}, "'.x' cannot name a file"),
    ("gkt_prior.factors", {"/x": {}}, "'/x' cannot name a file"),
    ("mm_noise.remedies", {"x\ny": {}}, "cannot name a file"),
    ("deep_inversion.factors", {"": {}}, "'' cannot name a file"),
    ("gkt.start.snapshots", 13, "snapshots=13 with pseudo_batches=8: "),
    ("study.other_classes.reported", [10], "holds 10, which is not among the classes: 0, 1, "),
    ("gkt.start.keep_state", None, "go on from the state that this run keeps; give it a keep_s"),
    ("gkt.stop.rule", "luck", "should be "),
    ("stopping.seeds", [5], "holds 5, which is not among gkt.seeds: 0, 1"),
    ("leak.looked_at", ["gtk"], "holds 'gtk', which is not among gkt.variants: gkt, "),
    ("leak.looked_at", ["gtk"], "gkt_training_mode; did you mean 'gkt'?"),
    ("masking.seeds", [], "= []: should have at least 1 item"),
    ("masking.random_embeddings.per_class", 0, "= 0: should be greater than or equal to 1"),
    ("masking.masked_distillation.tuning.stps", 3, "= 3: no such key; did you mean 'steps'?"),
    ("mm_noise.settings.per_class", 0, "= 0: should be greater than or equal to 1"),
    ("mm_noise.seeds", [7], "holds 7, which is not among train.seeds: 0, 1"),
    (
        "mm_noise.remedies",
        {"_replace_": True, "one": {"jitter": 1}, "other": {"penalty": 0.1, "jitter": 2}},
        "the remedies one and other both set 'jitter'",
    ),
    ("mm_noise.remedies.gentle_steps.jitter", -1, "= -1: should be greater than or equal to 0"),
    ("deep_inversion.factors_at", 50, "factors_at=50 with per_class=[10, 100]: "),
    ("deep_inversion.factors.ungated.distillation.gate_threshold", 2, "should be less than or "),
    ("deep_inversion.settings.synthesis.per_class", 0, "= 0: should be greater than or equal to 1"),
    ("group_models.models.compat", {"width": 1.0}, "compat: the name should be 'allcnn', "),
    ("group_models.models.vit.batch_size", 1, "= 1: should be greater than or equal to 2"),
    ("group_models.models.vit.width", 0.001, "= 0.001: width 0.001 leaves no filter of 16"),
    ("estimators.estimators", ["newtn"], "should be 'first_order', "),
    ("estimators.seeds", [7], "holds 7, which is not among group_retrain.seeds: 0, 1"),
    ("scaling.seeds", [7], "holds 7, which is not among estimators.seeds: 0, 1"),
    ("steps.spaces.vit", [211], "holds 211, which is not among study.coherent_sizes"),
    ("steps.spaces.lenet", None, "lenet: the name should be 'allcnn', "),
    ("steps.spaces", [], "= []: should be a mapping"),
    ("scaling.divisors", 0, "= 0: should be greater than or equal to 1"),
    ("scaling.factors", [2.0, 1.5], "give factors above 1 in ascending order"),
    ("scaling.random_sizes", [351], "holds 351, which is not among study.random_sizes: 350"),
    ("coherence.pools", [[100, 60]], "pools holds 60 neighbours of 100 items"),
    ("ladder.coherent_sizes", [36], "holds 36, which is not among study.coherent_sizes: 35, 210"),
    ("coherence.anchors", 1, "= 1: should be greater than or equal to 2"),
    ("coherence.anchors", 200, "anchors=200 of 100 items: give 2 to 100"),
    ("ladder.tolerance", 0, "= 0: should be greater than 0"),
    ("ladder.tolerance", 1, "= 1: should be less than 1"),
    ("ladder.unconverged_limit", 2, "= 2: should be less than or equal to 1"),
    ("ladder.labels", [3], "holds 3, which is not among study.labels: 0, 8"),
    ("convex_control.percents", [0.0], "give at least one, each above 0 and below 100"),
    ("convex_control.items", 3501, "= 3501: the training split has 3500 images"),
    ("convex_control.pool", 3, "= 3: does not divide the 28 pixels of a side"),
    ("selection.seeds", [7], "not among the seeds of resnet18"),
    ("selection.forget_label", 10, "holds 10, not one of the classes 0 to 9"),
    ("selection.scales", [2, 1], "give factors above 0 in ascending order"),
    ("selection.larger.models", ["allcnn"], "not among group_models.models: compact, vit"),
    ("selection.larger.size", 400, "size=400 of 350 items of class 0"),
    ("arena_models.width", 0, "= 0: should be greater than 0"),
    ("arena_models.learning_rate", 0.0, "= 0.0: should be greater than 0"),
    ("arena.zero_shot", {"../x": {"method": "gkt", "settings": {}}}, "'../x' cannot name a file"),
    ("arena.baselines.fine_tune.epochs", 0, "= 0: should be greater than or equal to 1"),
    (
        "arena.baselines.finetune",
        {"epochs": 1},
        "unknown baseline 'finetune'; did you mean 'fine_tune'? ",
    ),
    ("arena.zero_shot.mm_noise.method", "gtk", "= 'gtk': should be 'mm_noise', 'gkt', "),
    ("arena.zero_shot.mm_noise.kind", "gkt", "= 'gkt': no such key; there are method"),
    (
        "arena.zero_shot.gkt_short",
        {"method": "gkt", "settings": {"transfer": {"pseudo_batches": 4, "snapshots": 5}}},
        "snapshots=5 with pseudo_batches=4: ",
    ),
    ("arena.zero_shot.newton", {"method": "gkt", "settings": {}}, "give each a name of its own"),
    (
        "arena.influence.ensemble",
        ["pif"],
        "holds 'pif', which is not among arena.influence.methods",
    ),
    ("arena.measures.keep", "class_5", "= 'class_5': give a request of study.arena_plan: class_0"),
    ("ensembles.counts", [2, 5], "holds 5; give at most the most of study.arena_plan.ensembles, 4"),
    ("ensembles.titles", ["gold"], "holds 'gold', which is not among the methods of the arena"),
    ("inside.keep", "random", "= 'random': give as arena.measures: class_0"),
    ("league.first", "class_5", "= 'class_5': give a request of study.arena_plan: class_0"),
    ("league.margins", {"retain_gab": 1.0}, "should be "),
    ("own_model.methods", {"../x": {"method": "gkt", "settings": {}}}, "'../x' cannot name a file"),
    ("own_model.forget_classes", [10], "holds 10, not one of the classes 0 to 9"),
    ("own_model.methods.mm_noise.settings.noise", 1, "no such key; did you mean 'noise_rate'?"),
    ("own_model.normalise", {"mean": [0.5, 0.5], "std": [0.2]}, "with shape=[1, 16, 16]"),
    (
        "own_model.normalise",
        {"mean": [0.5], "stds": [0.2]},
        "normalise.stds = [0.2]: no such key; did you mean 'std'?",
    ),
    ("draw.seed", 7, "= 7: is not among train.seeds: 0, 1"),
    ("start.seed", 7, "= 7: is not among train.seeds: 0, 1"),
    ("elsewhere.there", "fasion", "= 'fasion': give a profile: fashion, paper, quick, standard"),
    ("draw.models", ["original"], "models lacks ['retrain'], with which the others are compared"),
    ("draw.models", ["original", "retrain", "gtk"], "holds 'gtk', which is not among the rows of"),
    ("draw.relearning.stps", 3, "= 3: no such key; did you mean 'steps'?"),
    ("stdy", {"seeds": [0]}, "stdy: no section has this name; did you mean 'study'?"),
    ("study.sedes", [0], "= [0]: no such key; did you mean 'seeds'?"),
]


@pytest.mark.parametrize(
    ("path", "value", "said"), BAD, ids=[f"{path}={value}"[:60] for path, value, _ in BAD]
)
def test_a_value_that_cannot_be_is_refused_before_anything_runs(
    house: Path, capsys: pytest.CaptureFixture[str], path: str, value: Any, said: str
) -> None:
    selected = house / "params" / "profiles.yaml"
    selected.write_text("profiles: [standard]\n")
    change(house, path, value)
    assert profiles.main(["quick"]) == 1
    message = capsys.readouterr().err
    assert "params/quick.yaml: " in message
    assert said in message
    # the key, or the mapping that it is part of
    named = [line.split(": ", 1)[1] for line in message.splitlines()]
    assert any(line.startswith(path.split(".")[0]) for line in named)
    assert selected.read_text() == "profiles: [standard]\n"
    assert [file.name for file in house.iterdir()] == ["params"]


HOSTILE = [
    None, "x", "../x", "", -1, 0, 0.5, 10**6, True, float("nan"), [], {}, [None], ["x"], [0, 0], [-1],
    {"zzz": 1}, {"x": None}, {"../x": {}},
]  # fmt: skip


def paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """List the paths of a value and of all that is in it."""
    yield path
    for key, inner in value.items() if isinstance(value, dict) else ():
        yield from paths(inner, (*path, key))


@pytest.fixture(scope="module")
def quick() -> parameters.Sections:
    """The parameters of the quick profile."""
    return parameters.load("quick")


def problems(quick: parameters.Sections, path: tuple[Any, ...], value: Any) -> list[str]:
    """List what is said of the quick profile with another value somewhere."""
    sections = deepcopy(quick)
    inside = sections
    for key in path[:-1]:
        inside = inside[key]
    inside[path[-1]] = value
    return [*map(str, checks._sections(sections)), *map(str, checks._between(sections))]


def test_no_value_whatever_ends_the_check_with_another_error(quick: parameters.Sections) -> None:
    """And what is said begins with a section's name, and is of one line."""
    random = np.random.default_rng(0)
    known = list(paths(quick))[1:]
    refused = 0
    for number in random.choice(len(known), 80, replace=False):
        said = problems(quick, known[number], HOSTILE[random.integers(len(HOSTILE))])
        assert all(line.split(".")[0].split(":")[0].split(" ")[0] in KINDS for line in said), said
        refused += bool(said)
    assert refused > 50


@pytest.mark.parametrize("section", KINDS)
def test_a_key_too_many_is_refused_in_every_section(
    quick: parameters.Sections, section: str
) -> None:
    (said,) = problems(quick, (section, "zzz"), 1)
    assert said.startswith(f"{section}.zzz = 1: no such key")


def test_a_number_as_text_is_refused_wherever_a_number_is(quick: parameters.Sections) -> None:
    random = np.random.default_rng(0)
    values = {path: reduce(getitem, path, quick) for path in paths(quick)}
    # requests have a reader of their own
    numbers = [
        path
        for path, value in values.items()
        if type(value) in (int, float) and "requests" not in path
    ]
    for number in random.choice(len(numbers), 60, replace=False):
        path = numbers[number]
        said = problems(quick, path, str(values[path]))
        of_it = [line for line in said if line.startswith(".".join(path))]
        assert of_it, (path, said)
        assert "that is a text, leave its quotation marks out" in of_it[0]


@pytest.mark.parametrize("profile", ["../x", "standrad", "base", "profiles", ""])
def test_an_unknown_profile_is_refused_and_nothing_changes(
    house: Path, capsys: pytest.CaptureFixture[str], profile: str
) -> None:
    before = (house / "params" / "profiles.yaml").read_bytes()
    assert profiles.main([profile]) == 1
    message = capsys.readouterr().err
    assert message == f"no profile {profile!r}; there are: fashion, paper, quick, standard\n"
    assert (house / "params" / "profiles.yaml").read_bytes() == before


def test_a_key_that_is_given_twice_is_refused(
    house: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = house / "params" / "quick.yaml"
    file.write_text(file.read_text() + "train: { epochs: 1 }\n")
    assert profiles.main(["quick"]) == 1
    assert "the key 'train' is given twice" in capsys.readouterr().err


@pytest.mark.parametrize("section", ["gkt", "study", "evaluation", "own_model"])
def test_a_section_that_is_missing_is_named(
    house: Path, capsys: pytest.CaptureFixture[str], section: str
) -> None:
    for name in ("base", "quick"):
        file = house / "params" / f"{name}.yaml"
        content = yaml.safe_load(file.read_text())
        content.pop(section, None)
        file.write_text(yaml.safe_dump(content, sort_keys=False))
    assert profiles.main(["quick"]) == 1
    said = f"params/base.yaml: {section}: there is no such section; write `{section}:`"
    assert said in capsys.readouterr().err


def test_all_problems_are_said_at_once_each_with_its_file(house: Path) -> None:
    change(house, "study.workers", 0)
    change(house, "gkt.settings.pseudo_batches", "a")
    change(house, "ladder.labels", [9])
    base = house / "params" / "base.yaml"
    base.write_text(base.read_text().replace("level: 0.05 # of the corrected", "level: 5 # "))
    with pytest.raises(parameters.ParameterError) as caught:
        checks.check("quick")
    # rules between sections wait until these are fine
    assert sorted(str(caught.value).splitlines()) == [
        "params/base.yaml: group_comparison.level = 5: should be less than 1",
        "params/quick.yaml: gkt.settings.pseudo_batches = 'a': should be a valid integer",
        "params/quick.yaml: study.workers = 0: should be greater than or equal to 1",
    ]


@pytest.mark.parametrize("profile", ["quick", "standard", "fashion", "paper"])
def test_our_own_profiles_can_be(profile: str) -> None:
    assert checks.check(profile) == parameters.load(profile)


@pytest.mark.parametrize(
    "path",
    [
        ("mm_noise", "factor_seeds"), ("gkt", "factor_seeds"), ("gkt", "branch_seeds"),
        ("gkt_prior", "factor_seeds"), ("deep_inversion", "factor_seeds"),
    ],
)  # fmt: skip
def test_factors_need_not_be_run(quick: parameters.Sections, path: tuple[str, str]) -> None:
    assert problems(quick, path, []) == []
    assert problems(quick, (path[0], "seeds"), [])


def test_selecting_a_profile_names_it_for_dvc(house: Path) -> None:
    file = house / "params" / "profiles.yaml"
    file.write_text("# comment\nprofiles: [quick]\n")
    stamp = file.stat().st_mtime_ns
    profiles.select("quick")
    assert file.stat().st_mtime_ns == stamp
    profiles.select("standard")
    assert file.read_text() == "# comment\nprofiles: [standard]\n"


@pytest.fixture
def called(house: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What DVC is asked, which ends with 3 each time."""
    commands = []

    def remember(command: list[str], cwd: Path, env: dict[str, str]) -> int:
        assert cwd == house
        assert env["PATH"].split(":")[0] == str(Path(sys.executable).parent)
        commands.append(command)
        return 3

    monkeypatch.setattr(profiles, "_run", remember)
    return commands


def test_stages_are_handed_to_dvc_with_this_interpreter_first(
    house: Path, called: list[list[str]]
) -> None:
    (house / ".git").mkdir()
    assert profiles.main(["standard", "train", "gkt"]) == 3
    command = [sys.executable, "-m", "dvc", "repro", "train@standard", "gkt@standard"]
    assert called == [command]


# ------------------------------------------------------------------------------- dvc.lock

LOCK = """schema: '2.0'
stages:
  one@quick:
    cmd: echo one
    outs:
    - path: out.txt
      hash: md5
      md5: 764efa883dda1e11db47671c4a3bbd9e
      size: 3
"""


@pytest.mark.parametrize(
    "content",
    [
        "",
        LOCK[: LOCK.index(" echo")],
        LOCK[: LOCK.index("path") + 3],
        LOCK[: LOCK.index("'\n")],
        f"<<<<<<< ours\n{LOCK}=======\n",
        "\0" * 100,
    ],
    ids=["empty", "no command", "no path", "no YAML", "conflict", "zeros"],
)
def test_a_torn_lock_is_named_with_its_remedy_and_nothing_changes(
    house: Path, capsys: pytest.CaptureFixture[str], content: str
) -> None:
    (house / "dvc.lock").write_text(content)
    before = (house / "params" / "profiles.yaml").read_bytes()
    assert profiles.main(["standard"]) == 1
    message = capsys.readouterr().err
    assert message.startswith("dvc.lock cannot be read")
    assert "`git checkout dvc.lock`, or delete the file" in message
    assert (house / "params" / "profiles.yaml").read_bytes() == before


def test_a_whole_lock_is_no_obstacle(house: Path, called: list[list[str]]) -> None:
    (house / "dvc.lock").write_text(LOCK)
    assert profiles.main(["quick"]) == 3


# -------------------------------------------------------------------- without git, signals

STAGE = """
import os, pathlib, time
pathlib.Path("started").touch()
try:
    time.sleep(float(os.environ.get("SECONDS_TO_SLEEP", 0)))
except KeyboardInterrupt:
    time.sleep(0.5)
    pathlib.Path("shut_down").touch()
    raise SystemExit(130)
pathlib.Path("out.txt").touch()
"""
PIPELINE = """
stages:
  one:
    matrix: { profile: [quick] }
    cmd: python stage.py
    outs:
      - out.txt: { cache: false }
"""
# the parameters are not what is looked at here, and take seconds to check
COMMAND = """
import signal, sys
from unlearnlib.pipeline import profiles
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_DFL)
profiles.select = lambda profile: None
sys.exit(profiles.main(["quick", "one"]))
"""


@pytest.fixture
def download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A pipeline of one stage that DVC runs, with our configuration and no git."""
    (tmp_path / ".dvc").mkdir()
    shutil.copy(ROOT / ".dvc" / "config", tmp_path / ".dvc")
    (tmp_path / "dvc.yaml").write_text(PIPELINE)
    (tmp_path / "stage.py").write_text(STAGE)
    monkeypatch.setenv("UNLEARNLIB_ROOT", str(tmp_path))
    monkeypatch.setenv("DVC_NO_ANALYTICS", "1")
    return tmp_path


def test_without_git_the_stages_run(download: Path) -> None:
    done = subprocess.run([sys.executable, "-c", COMMAND], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (download / "out.txt").is_file()


@pytest.mark.parametrize("folder", [".", "inner"])
def test_with_git_here_or_above_the_configuration_of_dvc_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    asked = []
    (tmp_path / ".git").mkdir()
    monkeypatch.setenv("UNLEARNLIB_ROOT", str(tmp_path / folder))
    monkeypatch.setattr(profiles, "select", lambda profile: None)
    monkeypatch.setattr(profiles, "_run", lambda command, **options: asked.append(command[3]))
    profiles.main(["quick"])
    assert asked == ["repro"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_the_command_alone_ends_its_stage_first(
    download: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    monkeypatch.setenv("SECONDS_TO_SLEEP", "60")
    with subprocess.Popen(
        [sys.executable, "-c", COMMAND], stderr=subprocess.PIPE, text=True
    ) as command:
        while not (download / "started").is_file():
            assert command.poll() is None
            time.sleep(0.05)
        time.sleep(0.2)
        command.send_signal(number)
        message = command.stderr.read()
        assert command.wait() == 128 + number
    assert (download / "shut_down").is_file()
    assert "interrupted: the stage that runs is ended\n" in message
    assert "Traceback" not in message


def test_an_interrupt_of_the_check_is_a_line(
    house: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(profile: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(profiles, "select", interrupt)
    assert profiles.main(["quick"]) == 130
    assert capsys.readouterr().err == "interrupted\n"
