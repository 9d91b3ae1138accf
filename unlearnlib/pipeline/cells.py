"""Write the parameters cell of every notebook: the quick profile's values, explained.

python -m unlearnlib.pipeline.cells            # all notebooks
python -m unlearnlib.pipeline.cells 12_gkt
"""

import argparse
import ast
import io
import json
import re
import sys
import tokenize
from collections.abc import Iterable
from pathlib import Path
from tokenize import TokenInfo
from typing import Any, NamedTuple

import yaml

from unlearnlib.pipeline import parameters
from unlearnlib.pipeline.parameters import BASE, ParameterError
from unlearnlib.pipeline.paths import root, write_atomic

PROFILE = "quick"
WIDTH = 100
_PROFILE_LINE = f'profile = "{PROFILE}"  # names the folders in data/, runs/ and reports/'
_INDENT = "    "
_AS_IT_IS = "  # fmt: skip"  # a formatter would give every item its line
_FORMATTING = re.compile(r"#\s*(fmt|yapf|ruff|isort|noqa|type)\b:?.*")
_WORDS = {"null": "None", "true": "True", "false": "False"}


class Assigned(NamedTuple):
    """What a parameters cell says of a name.

    Attributes:
        value: as it is written, on one line and without comments.
        comment: above the assignment, inside of it and behind it, without those for formatters.
    """

    value: str
    comment: str


def assigned(source: str) -> dict[str, Assigned]:
    """Read the values and comments of a parameters cell by name, in its order.

    Raises:
        SyntaxError: the cell is no Python.
    """
    statements, found = ast.parse(source).body, {}
    tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))
    for statement in statements:
        if not isinstance(statement, ast.Assign | ast.AnnAssign) or statement.value is None:
            continue
        targets = getattr(statement, "targets", [getattr(statement, "target", None)])
        value = _one_line(_tokens_of(statement.value, tokens, source.splitlines()))
        comment = _comment(statement, tokens)
        for target in targets:
            if isinstance(target, ast.Name):
                found[target.id] = Assigned(value, comment)
    return found


def _tokens_of(node: ast.AST, tokens: list[TokenInfo], lines: list[str]) -> list[TokenInfo]:
    """Return the tokens of an expression, without comments and line breaks."""

    def column(line: int, offset: int) -> int:
        # ast counts bytes, tokenize characters
        return len(lines[line - 1].encode()[:offset].decode())

    start = (node.lineno, column(node.lineno, node.col_offset))
    end = (node.end_lineno, column(node.end_lineno, node.end_col_offset))
    idle = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE)
    return [t for t in tokens if start <= t.start and t.end <= end and t.type not in idle]


def _one_line(tokens: Iterable[TokenInfo]) -> str:
    """Write tokens side by side; those of one line stand as far apart as there."""
    text, before = "", None
    for token in tokens:
        if before and before.end[0] == token.start[0]:
            text += " " * (token.start[1] - before.end[1])
        elif before and before.string not in "([{" and token.string not in ")]}":
            text += " "
        text, before = text + token.string, token
    return text


def _comment(statement: ast.stmt, tokens: list[TokenInfo]) -> str:
    """Join the comments of a statement's lines, and those that stand alone right above it."""
    comments = {t.start[0]: t for t in tokens if t.type == tokenize.COMMENT}
    first = statement.lineno
    while (above := comments.get(first - 1)) and above.line.strip().startswith("#"):
        first -= 1
    of_it = [comments[n].string for n in range(first, statement.end_lineno + 1) if n in comments]
    said = [text.lstrip("#").strip() for text in of_it if not _FORMATTING.fullmatch(text)]
    return " ".join(filter(None, said))


def declared(source: str) -> list[str]:
    """List the names that a parameters cell assigns, in its order."""
    statements = ast.parse(source).body
    # papermill.inspect_notebook overlooks annotations such as `int | None` and comments with a `=`
    names = [node for one in statements for node in ast.walk(one) if isinstance(node, ast.Name)]
    return list(dict.fromkeys(node.id for node in names if isinstance(node.ctx, ast.Store)))


def cell(stem: str, names: list[str]) -> str:
    """Return the source of a notebook's parameters cell.

    Args:
        stem: name of the notebook without suffix, as in `12_gkt`.
        names: that the cell declares, in the order in which it is to.

    Raises:
        ParameterError: the quick profile sets other keys for the notebook.
    """
    values = parameters.for_notebook(PROFILE, stem, names)
    text = (root() / "params" / f"{BASE}.yaml").read_text(encoding="utf-8")
    said = comments(text, "study") | comments(text, parameters.section_of(stem))
    lines = [assignment(name, value, said.get(name, "")) for name, value in values.items()]
    return "\n".join([_PROFILE_LINE, *lines])


def write(path: Path) -> bool:
    """Write the parameters cell of a notebook, and tell whether it changed.

    Raises:
        ParameterError: there is not one such cell, or it declares what the profile does not set.
    """
    notebook = json.loads(path.read_text(encoding="utf-8"))
    cells = [c for c in notebook["cells"] if "parameters" in c["metadata"].get("tags", [])]
    if len(cells) != 1:
        raise ParameterError(f"{path.name} has {len(cells)} cells tagged 'parameters', not one")
    former = "".join(cells[0]["source"])
    source = cell(path.stem, declared(former))
    if source == former:
        return False
    cells[0]["source"] = source.splitlines(keepends=True)
    write_atomic(path, (json.dumps(notebook, indent=1, ensure_ascii=False) + "\n").encode())
    return True


def comments(text: str, section: str) -> dict[str, str]:
    """Read what stands behind the keys of a section, in words of Python.

    Args:
        text: of a parameter file.
        section: its name.
    """
    lines = text.splitlines()
    sections = {key.value: inside for key, inside in yaml.compose(text).value}
    found = {}
    for key, _ in sections[section].value if section in sections else []:
        _, _, comment = lines[key.start_mark.line].partition(" # ")
        found[key.value] = re.sub(r"\b(null|true|false)\b", lambda m: _WORDS[m[0]], comment.strip())
    return found


def assignment(name: str, value: Any, comment: str) -> str:
    """Write a value to a name in readable Python, with a comment behind it."""
    behind = f"  # {comment}" if comment else ""
    whole = f"{name} = {literal(value)}"
    if len(whole + behind) <= WIDTH:
        return whole + behind
    broken = bool(value) and isinstance(value, dict | list)
    above = f"# {comment}\n" if not broken or len(f"{name} = {{{behind}") > WIDTH else ""
    if not broken or (len(whole) <= WIDTH and above):
        return f"{above}{whole}"
    lines = [f"{name} = "]
    _break(lines, "", value, _AS_IT_IS, behind="" if above else behind)
    return above + "\n".join(lines)


def literal(value: Any) -> str:
    """Write a plain value in Python, on one line."""
    if isinstance(value, dict):
        return f"{{{', '.join(f'{literal(k)}: {literal(v)}' for k, v in value.items())}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(literal, value))}]"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)


def _break(lines: list[str], before: str, value: Any, after: str, *, behind: str = "") -> None:
    """Write a mapping or list over several lines, the closing bracket behind its last item.

    Args:
        lines: written so far; it begins on the last of them, whose indent its items exceed by one.
        before: text before it.
        value: not empty.
        after: text after it.
        behind: comment behind the opening bracket.
    """
    opening, closing = "{}" if isinstance(value, dict) else "[]"
    items = value.items() if isinstance(value, dict) else [(None, item) for item in value]
    indent = _INDENT + re.match(" *", lines[-1])[0]
    lines[-1] += f"{before}{opening}"
    if behind:
        lines[-1] += behind
        lines.append(indent)
    alone = False
    for number, (key, item) in enumerate(items, 1):
        name = "" if key is None else f"{literal(key)}: "
        ending = "," if number < len(value) else f"{closing}{after}"
        alone = _item(lines, name, item, ending, indent=indent, alone=alone)


def _item(
    lines: list[str], name: str, value: Any, ending: str, *, indent: str, alone: bool
) -> bool:
    """Write an item behind what there is or on a new line; tell whether the next needs a new one.

    A mapping that takes several lines stands alone, but for plain values before it.
    """
    whole = f"{name}{literal(value)}{ending}"
    # nothing stands before the first item of a line but a bracket
    space = "" if lines[-1][-1:] in "{[ " else " "
    if not alone and len(lines[-1] + space + whole) <= WIDTH:
        lines[-1] += space + whole
        return False
    split = len(indent + whole) > WIDTH and bool(value) and isinstance(value, dict | list)
    if alone or not split or lines[-1].endswith("},") or len(f"{lines[-1]} {name}{{") > WIDTH:
        lines.append(indent)
    else:
        lines[-1] += space
    if not split:
        lines[-1] += whole
        return False
    _break(lines, name, value, ending)
    return True


def main(arguments: list[str]) -> int:
    """Run the command line and return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m unlearnlib.pipeline.cells", description=__doc__.split("\n")[0]
    )
    parser.add_argument("stems", nargs="*", help="names of notebooks without suffix; default: all")
    wanted = parser.parse_args(arguments).stems
    files = sorted((root() / "notebooks").glob("*.ipynb"))
    if unknown := set(wanted) - {path.stem for path in files}:
        parser.error(f"no notebook {', '.join(sorted(unknown))} in notebooks/")
    code = 0
    for path in files:
        try:
            if (not wanted or path.stem in wanted) and write(path):
                print(f"notebooks/{path.name}")
        except ParameterError as error:
            print(error, file=sys.stderr)
            code = 1
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
