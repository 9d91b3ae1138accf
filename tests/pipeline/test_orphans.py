"""Nothing lies among the committed results that no stage writes."""

from pathlib import Path, PurePosixPath

import pytest
import yaml
from conftest import ROOT

PROFILE = "standard"


def outs(pipeline: dict, profile: str) -> set[PurePosixPath]:
    """List the files and folders that stages write for a profile."""
    given = [out for stage in pipeline["stages"].values() for out in stage.get("outs", [])]
    paths = [path for out in given for path in ([out] if isinstance(out, str) else out)]
    return {PurePosixPath(path.replace("${item.profile}", profile)) for path in paths}


def orphans(root: Path, profile: str) -> list[str]:
    """List the files of a profile's results that lie in no output of a stage, nor in a locked one.

    What a stage wrote when it last ran is its output until it runs again, by another name or not.
    """
    written = outs(yaml.safe_load((root / "dvc.yaml").read_text(encoding="utf-8")), profile)
    if (root / "dvc.lock").is_file():
        locked = yaml.safe_load((root / "dvc.lock").read_text(encoding="utf-8"))["stages"]
        own = [stage for name, stage in locked.items() if name.endswith(f"@{profile}")]
        written |= {PurePosixPath(out["path"]) for stage in own for out in stage["outs"]}
    files = [
        PurePosixPath(path.relative_to(root).as_posix())
        for folder in ("reports", "runs")
        for path in sorted((root / folder / profile).rglob("*"))
        if path.is_file() and path.name != ".gitignore"
    ]
    return [str(file) for file in files if written.isdisjoint({file, *file.parents})]


def test_every_committed_result_is_written_by_a_stage() -> None:
    # the picture of the README is drawn with its table, by a command of its own
    shown = (ROOT / "README.md").read_text(encoding="utf-8")
    found = [file for file in orphans(ROOT, PROFILE) if f"]({file})" not in shown]
    assert not found, f"no stage in dvc.yaml writes these, so delete them: {found}"


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """Make a pipeline of two outputs, and files in and beside them."""
    (tmp_path / "dvc.yaml").write_text(
        "stages:\n"
        "  one:\n"
        "    matrix: {profile: [standard]}\n"
        "    outs:\n"
        "      - runs/${item.profile}/one: {cache: false, persist: true}\n"
        "      - reports/${item.profile}/tables/one.csv\n"
    )
    for name in (
        "runs/standard/one/a.pt", "runs/standard/one/deep/b.json", "runs/standard/two/a.pt",
        "reports/standard/tables/one.csv", "reports/standard/tables/one.json", "runs/quick/two/c.pt",
    ):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def test_what_no_stage_writes_is_found(study: Path) -> None:
    assert orphans(study, PROFILE) == ["reports/standard/tables/one.json", "runs/standard/two/a.pt"]


def test_what_the_lock_says_of_a_former_run_is_no_orphan(study: Path) -> None:
    out = {"outs": [{"path": "reports/standard/tables/one.json"}]}
    for name, left in {"one@standard": 1, "one@quick": 2}.items():
        (study / "dvc.lock").write_text(yaml.safe_dump({"stages": {name: out}}))
        assert len(orphans(study, PROFILE)) == left
