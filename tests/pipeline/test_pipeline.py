"""The pipeline says what is true: dependencies, parameters, and who reads data."""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import torch
import toys
import yaml
from conftest import ROOT

from unlearnlib.models import architectures
from unlearnlib.pipeline import cells, fingerprint, parameters, paths, runner
from unlearnlib.pipeline.parameters import ParameterError

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PIPELINE = yaml.safe_load((ROOT / "dvc.yaml").read_text())
STAGES = PIPELINE["stages"]
ZERO_SHOT = ["10_masking", "11_mm_noise", "12_gkt", "13_gkt_prior", "14_deep_inversion"]
PROFILE = "${item.profile}"
RESOLVED = f"build/params/{PROFILE}.yaml"


def stage_name(stem: str) -> str:
    return re.sub(r"^\d+_", "", stem)


def code_cells(path: Path) -> list[nbformat.NotebookNode]:
    return [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]


def reached(path: Path) -> set[str]:
    """The library's files that a notebook's imports reach, from the root."""
    modules = set()
    for cell in code_cells(path):
        for node in ast.walk(ast.parse(cell.source)):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("unlearnlib"):
                room = node.module.count(".") == 1
                inner = {f"{node.module}.{alias.name}" for alias in node.names}
                modules |= inner if room else {node.module}
    files = {file for module in modules for file in fingerprint.closure(module)}
    return {file.relative_to(ROOT).as_posix() for file in files}


def rooms(files: set[str]) -> set[str]:
    return {"/".join(file.split("/")[:2]) for file in files if file.count("/") > 1}


def outs(stage: dict) -> dict[str, dict]:
    """What a stage writes, and how DVC is to treat it."""
    return {path: options for out in stage["outs"] for path, options in out.items()}


def parameters_cell(path: Path) -> str:
    tagged = [c for c in code_cells(path) if "parameters" in c.metadata.get("tags", [])]
    assert len(tagged) == 1
    return tagged[0].source


def defaults(path: Path) -> dict:
    """What a notebook's parameters cell assigns."""
    names: dict = {}
    exec(parameters_cell(path), names)
    return {name: value for name, value in names.items() if name != "__builtins__"}


# ------------------------------------------------------------------------------ dependencies


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_stage_depends_on_just_the_rooms_that_its_notebook_reaches(path: Path) -> None:
    stage = STAGES[stage_name(path.stem)]
    declared = {dep for dep in stage["deps"] if dep.startswith("unlearnlib/")}
    assert declared == rooms(reached(path))
    assert f"build/notebooks/{path.name}" in stage["deps"]
    assert f"runner run {path.stem} --profile {PROFILE}" in stage["cmd"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_stage_depends_on_just_the_parameters_that_its_notebook_declares(path: Path) -> None:
    stage, declared = STAGES[stage_name(path.stem)], set(defaults(path)) - {"profile"}
    ((file, keys),) = stage["params"][0].items()
    assert file == RESOLVED
    sections, section = parameters.load("quick"), parameters.section_of(path.stem)
    shared = declared & (set(sections["study"]) - set(sections[section]))
    assert set(keys) == {f"study.{key}" for key in shared} | {section} & {
        name for name, own in sections.items() if own
    }


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_stage_writes_its_notebook_and_runs_under_its_own_name(path: Path) -> None:
    name = stage_name(path.stem)
    written = outs(STAGES[name])
    assert f"reports/{PROFILE}/notebooks/{path.name}" in written
    runs = [out for out in written if out.startswith("runs/")]
    assert not runs or f"runs/{PROFILE}/{name}" in runs
    # a sweep resumes from what is there
    assert all(written[out].get("persist") for out in runs)


def test_no_stage_keeps_results_in_the_cache() -> None:
    for name, stage in STAGES.items():
        assert all(options["cache"] is False for options in outs(stage).values()), name


def test_every_dependency_is_there_or_made_by_a_stage() -> None:
    made = {out for stage in STAGES.values() for out in outs(stage)}
    for name, stage in STAGES.items():
        for dep in [*stage["deps"], *(file for one in stage.get("params", []) for file in one)]:
            written = any(dep == out or dep.startswith(f"{out}/") for out in made)
            # a folder of notebooks, each of which a stage writes
            around = any(out.startswith(f"{dep}/") for out in made)
            there = (ROOT / dep.replace(PROFILE, "quick")).exists()
            assert written or around or there, f"{name}: {dep}"


WITHOUT_NOTEBOOK = {"reference", "report"}  # nor parameters; they come after all others


def test_nothing_runs_before_the_whole_profile_is_checked() -> None:
    assert outs(STAGES["parameters"]) == {RESOLVED: {"cache": False}}
    assert "runner parameters --profile" in STAGES["parameters"]["cmd"]
    assert {"params/base.yaml", f"params/{PROFILE}.yaml"} <= set(STAGES["parameters"]["deps"])
    others = STAGES.keys() - {"sources", "parameters", *WITHOUT_NOTEBOOK}
    assert all(RESOLVED in STAGES[name]["params"][0] for name in others)


def test_every_notebook_is_a_stage_and_a_page_of_the_report() -> None:
    names = {stage_name(path.stem) for path in NOTEBOOKS}
    assert names == STAGES.keys() - {"sources", "parameters", *WITHOUT_NOTEBOOK}
    assert f"reports/{PROFILE}/notebooks" in STAGES["report"]["deps"]


# -------------------------------------------------------------------------------- parameters


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
@pytest.mark.parametrize("profile", parameters.profiles())
def test_every_profile_sets_what_every_notebook_declares(path: Path, profile: str) -> None:
    parameters.for_notebook(profile, path.stem, cells.declared(parameters_cell(path)))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_opened_by_hand_is_the_quick_run(path: Path) -> None:
    given = defaults(path)
    expected = parameters.for_notebook("quick", path.stem, set(given)) | {"profile": "quick"}
    assert given == expected


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_argues_and_leaves_mechanism_to_the_library(path: Path) -> None:
    every = nbformat.read(path, as_version=4).cells
    code = [cell for cell in every if cell.cell_type == "code"]
    assert max(len(cell.source.splitlines()) for cell in code) <= 30
    assert sum("answer" in cell.metadata.get("tags", []) for cell in code) == 1
    assert (len(every) - len(code)) * 2 >= len(code)
    assert every[0].source.startswith("# ")
    assert every[-1].source.startswith("## What this shows")


# --------------------------------------------------------------------------------- zero shot


@pytest.mark.parametrize("stem", ZERO_SHOT)
def test_an_unlearning_stage_depends_on_the_original_models_and_on_no_data(stem: str) -> None:
    stage = STAGES[stage_name(stem)]
    artefacts = [d for d in stage["deps"] if not d.startswith(("unlearnlib/", "build/notebooks/"))]
    assert artefacts == [f"runs/{PROFILE}/train"]


@pytest.mark.parametrize("stem", ZERO_SHOT)
def test_what_an_unlearning_stage_imports_can_read_no_data(stem: str) -> None:
    files = reached(ROOT / "notebooks" / f"{stem}.ipynb")
    assert "unlearnlib/data/requests.py" in files
    assert not files & {"unlearnlib/data/datasets.py", "unlearnlib/data/sources.py"}


def test_what_reads_data_is_seen_in_the_imports() -> None:
    files = reached(ROOT / "notebooks" / "02_train.ipynb")
    assert "unlearnlib/data/datasets.py" in files


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of notebooks and parameters, with a seed of tiny untrained originals and no data."""
    for folder in ("notebooks", "params"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    monkeypatch.setenv("UNLEARNLIB_ROOT", str(tmp_path))
    monkeypatch.delenv("MNIST_DIR", raising=False)
    torch.manual_seed(0)
    network = architectures.build("allcnn", width=0.03)
    toys.record(paths.place("quick").run("train", "seed0"), network, shape=[1, 28, 28])
    change(
        tmp_path,
        study={"seeds": [0], "workers": 1},
        **{
            name: {"seeds": [0]}
            for name in ("group_retrain", "estimators", "steps", "scaling", "selection")
        },
        masking={
            "seeds": [0],
            "random_embeddings": {"per_class": 1, "steps": 1},
            "masked_distillation": {
                "synthesis": {"per_class": 2, "steps": 1, "prior_steps": 0},
                "tuning": {"steps": 2, "batch_size": 8},
            },
        },
        mm_noise={
            "seeds": [0],
            "settings": {"per_class": 2, "noise_steps": 1, "steps": 1, "repair_steps": 1},
            "factor_seeds": [0],
        },
        # an untrained teacher is sure of nothing
        gkt=TRANSFERS
        | {
            "variants": {"gkt": {}, "gkt_entropy": {"entropy_limit": 9.0}},
            "start": {"pseudo_batches": 1, "snapshots": 1, "keep_state": 1},
            "branch_seeds": [0],
        },
        gkt_prior=TRANSFERS | {"variants": {"gkt_prior_entropy": {"entropy_limit": 9.0}}},
        stopping={"seeds": [0]},
        deep_inversion={
            "seeds": [0],
            "settings": {
                "synthesis": {"steps": 1, "batch_size": 18, "prior_steps": 0},
                "distillation": {"steps": 2, "gate_threshold": 1.0},
            },
            "per_class": [2, 4],
            "factors_at": 2,
            "factor_seeds": [0],
        },
    )
    return tmp_path


TRANSFERS = {
    "seeds": [0],
    "settings": {
        "pseudo_batches": 2, "batch_size": 8, "generator_channels": 4, "snapshots": 1,
        "gate_threshold": 1.0, "prior_steps": 0,
    },
    "factor_seeds": [0],
    "stop": {"probe": {"per_class": 2, "steps": 1, "prior_steps": 0}},
}  # fmt: skip


def change(root: Path, **sections: dict) -> None:
    """Change keys of the quick profile."""
    file = root / "params" / "quick.yaml"
    content = parameters.merged(yaml.safe_load(file.read_text()), sections)
    file.write_text(yaml.safe_dump(content, sort_keys=False))


@pytest.mark.parametrize("stem", ZERO_SHOT)
def test_an_unlearning_stage_runs_where_there_is_no_data(house: Path, stem: str) -> None:
    executed = runner.run(stem, "quick")
    assert executed.is_file()
    assert list((house / "runs/quick" / stage_name(stem)).glob("*.pt"))
    assert not (house / "data").exists()


# ----------------------------------------------------------------------------- what is wrong


def outputs(root: Path) -> list[Path]:
    """All files that a stage may have left."""
    kept = ("notebooks", "params")
    return [f for f in root.rglob("*") if f.is_file() and f.relative_to(root).parts[0] not in kept]


@pytest.mark.parametrize("stem", ["01_data", "02_train", "12_gkt"])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"study": {"forget_classes": [12]}}, "classes holds 12"),
        ({"study": {"width": 0}}, r"study.width = 0: should be greater than 0"),
        ({"mm_noise": {"settings": {"noise_stpes": 1}}}, "did you mean 'noise_steps'"),
    ],
)
def test_bad_values_end_any_stage_with_a_clear_error_and_no_output(
    house: Path, stem: str, changes: dict, message: str
) -> None:
    change(house, **changes)
    before = outputs(house)
    with pytest.raises(ParameterError, match=message):
        runner.run(stem, "quick")
    assert outputs(house) == before


# ---------------------------------------------------------------------------------------- DVC


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    """A project of DVC with the two stages that the others start from, and one that uses both."""
    shutil.copy(ROOT / ".dvcignore", tmp_path)
    (tmp_path / "params").mkdir()
    for name in ("base", "quick"):
        (tmp_path / "params" / f"{name}.yaml").write_text("study: { a: 1, b: 1 }\n")
    (tmp_path / "notebooks").mkdir()
    for stem in ("01_one", "02_two"):
        (tmp_path / "notebooks" / f"{stem}.ipynb").write_text(stem)
    common = {name: STAGES[name] for name in ("sources", "parameters")}
    copy = "import shutil; shutil.copytree('notebooks', 'build/notebooks', dirs_exist_ok=True)"
    resolve = (
        "import pathlib, shutil; pathlib.Path('build/params').mkdir(parents=True, exist_ok=True); "
        "shutil.copy('params/quick.yaml', 'build/params/quick.yaml')"
    )
    use = (
        "import pathlib; f = pathlib.Path('runs/quick/one'); f.mkdir(parents=True, exist_ok=True); "
        "n = len(list(f.glob('*.json'))); (f / 'a.pt').write_text('result'); "
        "(f / f'{n}.json').write_text('facts')"
    )
    stages = {
        "sources": common["sources"] | {"cmd": f'python -c "{copy}"', "deps": ["notebooks"]},
        "parameters": common["parameters"] | {"cmd": f'python -c "{resolve}"'},
        "one": {
            "matrix": {"profile": "${profiles}"},
            "cmd": f'python -c "{use}"',
            "deps": ["build/notebooks/01_one.ipynb"],
            "params": [{RESOLVED: ["study.a"]}],
            "outs": [{f"runs/{PROFILE}/one": {"cache": False, "persist": True}}],
        },
    }
    stages["parameters"]["deps"] = ["params/base.yaml", f"params/{PROFILE}.yaml"]
    (tmp_path / "params" / "profiles.yaml").write_text("profiles: [quick]\n")
    content = {"vars": ["params/profiles.yaml"], "stages": stages}
    (tmp_path / "dvc.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    dvc(tmp_path, "init", "-q", "--no-scm")
    return tmp_path


def dvc(root: Path, *command: str) -> str:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        [sys.executable, "-m", "dvc", *command],
        cwd=root,
        env=os.environ | {"PATH": path, "DVC_NO_ANALYTICS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_only_what_a_stage_reads_runs_it_again(scratch: Path) -> None:
    """Not another notebook, nor another key, nor the facts beside its results."""
    dvc(scratch, "repro")
    facts = scratch / "runs" / "quick" / "one"
    assert [file.name for file in facts.glob("*.json")] == ["0.json"]
    lock = yaml.safe_load((scratch / "dvc.lock").read_text())["stages"]["one@quick"]
    assert lock["params"] == {"build/params/quick.yaml": {"study.a": 1}}
    assert lock["outs"][0]["nfiles"] == 1

    (facts / "0.json").write_text("other facts")
    (facts / "__pycache__").mkdir()
    (facts / "__pycache__" / "a.pyc").write_text("compiled")
    assert "up to date" in dvc(scratch, "status")
    (scratch / "notebooks" / "02_two.ipynb").write_text("changed")
    (scratch / "params" / "quick.yaml").write_text("study: { a: 1, b: 2 }\n")
    assert "'one@quick' didn't change" in dvc(scratch, "repro")
    assert (facts / "0.json").read_text() == "other facts"

    (scratch / "params" / "quick.yaml").write_text("study: { a: 2, b: 2 }\n")
    assert "Running stage 'one@quick'" in dvc(scratch, "repro")
    # facts of results that stay are not deleted
    assert sorted(file.name for file in facts.glob("*.json")) == ["0.json", "1.json"]
    (scratch / "notebooks" / "01_one.ipynb").write_text("changed")
    assert "Running stage 'one@quick'" in dvc(scratch, "repro")
