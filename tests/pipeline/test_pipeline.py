"""The pipeline says what is true: dependencies, parameters, profiles, and who reads data."""

import ast
import re
import shutil
from pathlib import Path

import nbformat
import pytest
import torch
import yaml

from unlearnlib.models import models
from unlearnlib.pipeline import fingerprint, parameters, paths, profiles, runner

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
ZERO_SHOT = ["11_mm_noise", "12_gkt", "13_gkt_prior", "14_deep_inversion"]
PROFILE = "${item.profile}"


def stage_name(stem: str) -> str:
    return re.sub(r"^\d+_", "", stem)


def code_cells(path: Path) -> list[nbformat.NotebookNode]:
    return [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]


def imported(path: Path) -> set[str]:
    """The library's files that a notebook's imports reach."""
    modules = set()
    for cell in code_cells(path):
        for node in ast.walk(ast.parse(cell.source)):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("unlearnlib"):
                room = node.module.count(".") == 1
                inner = {f"{node.module}.{alias.name}" for alias in node.names}
                modules |= inner if room else {node.module}
    files = {file for module in modules for file in fingerprint.closure(module)}
    return {file.relative_to(ROOT).as_posix() for file in files if file.name != "__init__.py"}


def defaults(path: Path) -> dict:
    """What a notebook's parameters cell assigns."""
    cells = [c for c in code_cells(path) if "parameters" in c.metadata.get("tags", [])]
    assert len(cells) == 1
    names: dict = {}
    exec(cells[0].source, names)
    return {name: value for name, value in names.items() if name != "__builtins__"}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_stage_depends_on_just_the_modules_that_its_notebook_reaches(path: Path) -> None:
    stage = STAGES[stage_name(path.stem)]
    declared = {dep for dep in stage["deps"] if dep.startswith("unlearnlib/")}
    assert declared == imported(path)
    assert f"build/notebooks/{path.name}" in stage["deps"]
    assert f"runner run {path.stem} --profile {PROFILE}" in stage["cmd"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_stage_depends_on_just_the_parameters_that_its_notebook_declares(path: Path) -> None:
    name, declared = stage_name(path.stem), set(defaults(path)) - {"profile"}
    (keys,) = STAGES[name]["params"][0].values()
    sections = parameters.load("quick")
    assert {key.removeprefix("study.") for key in keys if key != name} == declared & set(
        sections["study"]
    ) - set(sections[name])
    assert (name in keys) == bool(sections[name])


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
@pytest.mark.parametrize("profile", ["quick", "standard", "paper"])
def test_every_profile_sets_what_every_notebook_declares(path: Path, profile: str) -> None:
    parameters.for_notebook(profile, path.stem, set(defaults(path)))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_opened_by_hand_is_the_quick_run(path: Path) -> None:
    given = defaults(path)
    expected = parameters.for_notebook("quick", path.stem, set(given)) | {"profile": "quick"}
    assert given == expected


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_argues_and_leaves_mechanism_to_the_library(path: Path) -> None:
    cells = nbformat.read(path, as_version=4).cells
    code = [cell for cell in cells if cell.cell_type == "code"]
    assert max(len(cell.source.splitlines()) for cell in code) <= 30
    assert (len(cells) - len(code)) * 2 >= len(code)
    assert cells[0].source.startswith("# ")
    assert cells[-1].source.startswith("## What this shows")


@pytest.mark.parametrize("stem", ZERO_SHOT)
def test_an_unlearning_stage_depends_on_the_original_models_and_on_no_data(stem: str) -> None:
    stage = STAGES[stage_name(stem)]
    artefacts = [d for d in stage["deps"] if not d.startswith(("unlearnlib/", "build/notebooks/"))]
    assert artefacts == [f"runs/{PROFILE}/original"]
    assert "unlearnlib/data/datasets.py" not in stage["deps"]


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of notebooks and parameters, with a seed of tiny untrained originals and no data."""
    for folder in ("notebooks", "params"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    monkeypatch.setenv("UNLEARNLIB_ROOT", str(tmp_path))
    monkeypatch.delenv("MNIST_DIR", raising=False)
    torch.manual_seed(0)
    network = models.build("allcnn", width=0.03)
    record = {"key": "", "spec": {}, "seconds": 0.0}
    record["result"] = {"model": models.pack(network), "shape": [1, 28, 28]}
    file = paths.place("quick").run("original", "seed0")
    file.parent.mkdir(parents=True)
    torch.save(record, file)
    change(
        tmp_path,
        study={"seeds": [0], "workers": 1},
        mm_noise={"settings": {"per_class": 2, "noise_steps": 1, "steps": 1, "repair_steps": 1}},
        gkt={"settings": TINY, "entropy_limits": []},
        gkt_prior={"settings": TINY | {"prior_steps": 1}, "entropy_limits": []},
        deep_inversion={
            "per_class": [2, 4],
            "synthesis": {"steps": 1, "batch_size": 18},
            # an untrained teacher is sure of nothing
            "distillation": {"steps": 2, "gate_threshold": 1.0},
        },
    )
    return tmp_path


TINY = {"pseudo_batches": 2, "batch_size": 8, "generator_channels": 4, "snapshots": 1}


def change(root: Path, **sections: dict) -> None:
    """Change keys of the quick profile."""
    file = root / "params" / "quick.yaml"
    content = yaml.safe_load(file.read_text())
    for name, keys in sections.items():
        content[name] |= keys
    file.write_text(yaml.safe_dump(content))


@pytest.mark.parametrize("stem", ZERO_SHOT)
def test_an_unlearning_stage_runs_where_there_is_no_data(house: Path, stem: str) -> None:
    executed = runner.run(stem, "quick")
    assert executed.is_file()
    assert list((house / "runs/quick" / stage_name(stem)).glob("*.pt"))
    assert not (house / "data").exists()


def outputs(root: Path) -> list[Path]:
    """All files that a stage may have left, but for the notebook of the failure."""
    kept = ("notebooks", "params", "build")
    return [f for f in root.rglob("*") if f.is_file() and f.relative_to(root).parts[0] not in kept]


@pytest.mark.parametrize(
    ("stem", "changes", "message"),
    [
        ("01_data", {"study": {"forget_classes": [12]}}, "forget_classes holds 12"),
        ("01_data", {"study": {"forget_classes": list(range(10))}}, "is every class"),
        ("02_train", {"study": {"width": 0}}, "width 0.* leaves no filter"),
        ("11_mm_noise", {"study": {"forget_classes": [12]}}, "forget_classes holds 12"),
        ("12_gkt", {"study": {"forget_classes": list(range(10))}}, "is every class"),
    ],
)
def test_bad_values_end_a_stage_with_a_clear_error_and_no_output(
    house: Path, stem: str, changes: dict, message: str
) -> None:
    change(house, **changes)
    before = outputs(house)
    with pytest.raises(runner.NotebookError, match=message):
        runner.run(stem, "quick")
    assert outputs(house) == before


def test_misspelt_settings_end_a_stage(house: Path) -> None:
    change(house, mm_noise={"settings": {"noise_stpes": 1}})
    with pytest.raises(runner.NotebookError, match="noise_stpes"):
        runner.run("11_mm_noise", "quick")


def test_selecting_a_profile_names_it_for_dvc(house: Path) -> None:
    file = house / "params" / "profiles.yaml"
    before = file.read_text()
    profiles.select("standard")
    assert yaml.safe_load(file.read_text()) == {"profiles": ["standard"]}
    assert file.read_text().startswith("#")
    profiles.select("quick")
    assert file.read_text() == before


def test_an_unknown_profile_is_refused_and_nothing_changes(
    house: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = house / "params" / "profiles.yaml"
    before = file.read_bytes()
    assert profiles.main(["standrad"]) == 1
    assert "no profile 'standrad'; there are: paper, quick, standard" in capsys.readouterr().err
    assert file.read_bytes() == before
