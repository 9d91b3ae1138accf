"""Fingerprints of code: what a result depends on, blind to prose and formatting."""

import ast
import hashlib
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def closure(module_name: str) -> list[Path]:
    """Return the sources of a module and of every module of ours that it imports, transitively.

    Ours are `unlearnlib` and the package that the module belongs to. Imports inside functions
    count; imports by a computed name are not seen.

    Args:
        module_name: dotted name of an importable module.

    Returns:
        Sorted absolute paths, the `__init__.py` of each package among them.

    Raises:
        ValueError: the module has no source file, as when it is a notebook.
    """
    return sorted(_modules(module_name).values())


def code(module_name: str) -> str:
    """Return the SHA-256 of what the modules of `closure(module_name)` do.

    Comments, docstrings and formatting do not count, so that prose never invalidates a result.

    Raises:
        ValueError: the module has no source file, as when it is a notebook.
    """
    digest = hashlib.sha256()
    for name, path in sorted(_modules(module_name).items()):
        tree = _without_docstrings(ast.parse(path.read_bytes()))
        digest.update(f"{name}\n{ast.dump(tree)}\n".encode())
    return digest.hexdigest()


def _modules(module_name: str) -> dict[str, Path]:
    """Return the closure as a mapping from dotted name to source."""
    source = _source(module_name)
    if source is None:
        raise ValueError(
            f"module {module_name!r} has no source to fingerprint; move the code into unlearnlib"
        )
    ours = {"unlearnlib", module_name.partition(".")[0]}
    found = {}
    waiting = [module_name]
    while waiting:
        name = waiting.pop()
        if name in found or name.partition(".")[0] not in ours:
            continue
        if source := _source(name):
            found[name] = source
            waiting.extend(_imports(name, source))
    return found


def _source(module_name: str) -> Path | None:
    """Return the source of a module, or None if the name is no module with a source.

    Only the package is looked up: to look up a name inside a module would run the module.
    """
    top, *inner = module_name.split(".")
    try:
        spec = find_spec(top)
    except ValueError:
        return None
    if spec is None or not (spec.origin or "").endswith(".py"):
        return None
    origin = Path(spec.origin).resolve()
    if not inner:
        return origin
    base = origin.parent.joinpath(*inner)
    candidates = [base.with_name(f"{base.name}.py"), base / "__init__.py"]
    return next((path for path in candidates if path.is_file()), None)


def _imports(module_name: str, source: Path) -> Iterator[str]:
    """Yield every dotted name that a module may import, its parent package first."""
    parent = module_name.rpartition(".")[0]
    if parent:
        yield parent
    package = module_name if source.name == "__init__.py" else parent
    for node in ast.walk(ast.parse(source.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(node, package)
            yield base
            # `from package import name` imports a module when there is one of that name
            yield from (f"{base}.{alias.name}" for alias in node.names)


def _absolute(node: ast.ImportFrom, package: str) -> str:
    """Return the absolute name of the module that a `from ... import` names."""
    if not node.level:
        return node.module
    base = package.split(".")[: len(package.split(".")) - node.level + 1]
    return ".".join([*base, *([node.module] if node.module else [])])


def _without_docstrings(tree: ast.Module) -> ast.Module:
    """Drop the docstrings of a module, its classes and its functions, in place."""
    for node in ast.walk(tree):
        if isinstance(node, _DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            del node.body[0]
    return tree
