"""Safety: what is read from files holds data, and never code that runs."""

import ast
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# what unpickles, or runs what a file says, whatever its arguments
NEVER = {
    *("pickle.load", "pickle.loads", "cloudpickle.load", "cloudpickle.loads", "joblib.load"),
    *("dill.load", "dill.loads", "pd.read_pickle", "pandas.read_pickle", "marshal.loads"),
    *("yaml.load", "yaml.unsafe_load", "yaml.full_load", "shelve.open", "eval"),
}


def sources() -> Iterator[tuple[str, str]]:
    """Yield the name and the code of every module and notebook."""
    for file in sorted((ROOT / "unlearnlib").rglob("*.py")):
        yield file.relative_to(ROOT).as_posix(), file.read_text(encoding="utf-8")
    for file in sorted((ROOT / "notebooks").glob("*.ipynb")):
        cells = json.loads(file.read_text(encoding="utf-8"))["cells"]
        code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
        yield file.relative_to(ROOT).as_posix(), "\n".join(code)


def calls(code: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the name of each function that is called, and its keywords."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Call):
            keywords = {one.arg: ast.unparse(one.value) for one in node.keywords if one.arg}
            yield ast.unparse(node.func), keywords


def unsafe(code: str) -> list[str]:
    """List the calls that could run what a file holds."""
    found = []
    for name, keywords in calls(code):
        pickled = name == "torch.load" and keywords.get("weights_only") != "True"
        pickled |= name in ("np.load", "numpy.load") and keywords.get("allow_pickle") != "False"
        if pickled or name in NEVER:
            found.append(name)
    return found


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("torch.load(path)", ["torch.load"]),
        ("torch.load(path, weights_only=False)", ["torch.load"]),
        ("torch.load(path, weights_only=True)", []),
        ("with np.load(path, allow_pickle=True) as a: pass", ["np.load"]),
        ("np.load(path, allow_pickle=False)", []),
        ("x = [pickle.load(f)]", ["pickle.load"]),
    ],
)
def test_what_is_unsafe_is_found(code: str, found: list[str]) -> None:
    assert unsafe(code) == found


def test_nothing_that_is_read_runs() -> None:
    known = dict(sources())
    assert len(known) > 100
    found = {name: calls for name, code in known.items() if (calls := unsafe(code))}
    assert not found, f"{found}: give weights_only=True or allow_pickle=False, or read it as JSON"
