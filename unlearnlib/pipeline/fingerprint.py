"""Fingerprints of code: what a result depends on, blind to prose and formatting.

`of` sees definitions: the fingerprint of a run changes with any function, class or constant that
the run reaches through names, however many modules away, and with what importing their modules
does; a new or changed function beside them does not count. What is reached is over-approximated:
every branch counts, every method of a class, every name of a module that is used as a value.

Nobody can see names that are computed while the code runs: ``getattr(thing, name)`` of an object,
modules imported by a computed name, an attribute that one module sets on another inside a function
that is not reached, and what installed packages do.
"""

import ast
import builtins
import hashlib
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from unlearnlib.pipeline.definitions import (
    FUNCTIONS,
    Call,
    Chain,
    Import,
    Module,
    Statement,
    chain_of,
    parsed,
    root_of,
    without_docstrings,
)

Read = Callable[[Path], bytes]
Thing = Callable[..., object] | type

# functions of these only make what they return
_PURE_PACKAGES = {
    *("abc", "annotated_types", "collections", "contextlib", "contextvars", "dataclasses"),
    *("difflib", "enum", "functools", "itertools", "json", "math", "operator", "pathlib", "re"),
    *("statistics", "string", "textwrap", "types", "typing"),
}
_PURE = {
    f"torch.{name}" for name in ("no_grad", "enable_grad", "inference_mode", "tensor", "device")
}
_IMPURE_BUILTINS = {
    *("__import__", "compile", "delattr", "eval", "exec", "globals", "input", "open"),
    *("setattr", "vars"),
}

_first_read: dict[Path, bytes] = {}


def of(thing: Thing) -> str:
    """Return the SHA-256 of the code that a function or class reaches.

    Args:
        thing: at the top level of a module.

    Raises:
        ValueError: it is not, or the module has no source, as when it is a notebook.
    """
    return _reach(thing, _read).digest()


def loaded(thing: Thing) -> str:
    """Return what `of` gives for the sources as this process first read them.

    What is in memory stays as it was: where both differ, the code changed since it was loaded.
    """
    return _reach(thing, _read_once).digest()


def reached(thing: Thing) -> set[str]:
    """Name the definitions that `of` covers, as ``module:name``.

    Statements that define nothing are named by their number among those of the module, as ``<0>``.
    """
    return set(_reach(thing, _read).lines)


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
    return sorted(_closure(module_name).values())


def code(module_name: str) -> str:
    """Return the SHA-256 of what the modules of `closure(module_name)` do, whole.

    Comments, docstrings and formatting do not count, so that prose never invalidates a result.

    Raises:
        ValueError: the module has no source file, as when it is a notebook.
    """
    digest = hashlib.sha256()
    for name, path in sorted(_closure(module_name).items()):
        tree = without_docstrings(ast.parse(path.read_bytes()))
        digest.update(f"{name}\n{ast.dump(tree)}\n".encode())
    return digest.hexdigest()


def _closure(module_name: str) -> dict[str, Path]:
    """Return the closure as a mapping from dotted name to source."""
    sources = _Sources(module_name, _read)
    found: dict[str, Path] = {}
    waiting = [module_name]
    while waiting:
        name = waiting.pop()
        if name not in found and (module := sources.module(name)):
            found[name] = sources.paths[name]
            waiting.extend([name.rpartition(".")[0], *module.all_modules])
    return found


def _reach(thing: Thing, read: Read) -> "_Reach":
    name = thing.__qualname__.partition(".")[0]
    sources = _Sources(thing.__module__, read)
    module = sources.module(thing.__module__)
    inner = "<" in thing.__qualname__  # of a function: a closure or a lambda
    if module is None or inner or not module.statements(name):
        raise ValueError(f"{thing!r} is not at the top level of a module with a source")
    return _Reach(sources, f"{module.name}:{name}")


def _read(path: Path) -> bytes:
    content = path.read_bytes()
    _first_read.setdefault(path, content)
    return content


def _read_once(path: Path) -> bytes:
    return _first_read[path] if path in _first_read else _read(path)


# ----------------------------------------------------------------------------------- names


class _Target(NamedTuple):
    """What a chain of names means: a definition of ours, a whole module (``*``), or foreign.

    `module` is empty for what is foreign; `rest` are the attributes that are taken of it.
    """

    module: str
    name: str
    rest: Chain = ()

    def __str__(self) -> str:
        return f"{self.module}:{self.name}"


class _Sources:
    """Modules of ours as they are on disk, and what names mean in them."""

    def __init__(self, start: str, read: Read) -> None:
        """Look up the module that everything starts from.

        Raises:
            ValueError: it has no source.
        """
        self.paths: dict[str, Path] = {}
        self._ours = {"unlearnlib", start.partition(".")[0]}
        self._modules: dict[str, Module | None] = {}
        self._read = read
        if self.module(start) is None:
            raise ValueError(
                f"module {start!r} has no source to fingerprint; move the code into unlearnlib"
            )

    def module(self, name: str) -> Module | None:
        """Return a module of ours, or None if the name is not one."""
        if name not in self._modules:
            ours = name.partition(".")[0] in self._ours
            path = _source(name) if ours else None
            if path is not None:
                self.paths[name] = path
                content = self._read(path)
            self._modules[name] = (
                parsed(name, content, path.name == "__init__.py") if path else None
            )
        return self._modules[name]

    def submodules(self, name: str) -> list[str]:
        """Name the modules in a package."""
        folder = self.paths[name].parent
        found = {path.stem if path.is_file() else path.name for path in folder.iterdir()}
        inner = sorted(found - {"__init__"})
        return [f"{name}.{part}" for part in inner if self.module(f"{name}.{part}")]

    def meaning(self, module: Module, statement: Statement, chain: Chain) -> list[_Target]:
        """Return all that a chain of names in a statement may mean, in the order of binding."""
        bindings = [*statement.imports.get(chain[0], []), *statement.imports.get("*", [])]
        found = self._bound(module, chain, set(), bindings)
        return found or [_Target("", f"builtins.{chain[0]}", chain[1:])]

    def through(self, imported: Import, rest: Chain = ()) -> list[_Target]:
        """Return all that an imported name with attributes may mean."""
        attribute = (imported.attribute,) if imported.attribute else ()
        return self._attribute(imported.module, (*attribute, *rest), set())

    def _attribute(self, name: str, chain: Chain, seen: set[tuple[str, Chain]]) -> list[_Target]:
        """Return what a chain of attributes of a module may mean, however often re-exported."""
        module = self.module(name)
        if module is None:
            return [_Target("", ".".join((name, *chain)))]
        if not chain or (name, chain) in seen:
            return [] if chain else [_Target(name, "*")]
        seen.add((name, chain))
        found = self._bound(module, chain, seen, [])
        if module.is_package and self.module(f"{name}.{chain[0]}"):
            found += self._attribute(f"{name}.{chain[0]}", chain[1:], seen)
        return found or [_Target(name, "*")]

    def _bound(
        self,
        module: Module,
        chain: Chain,
        seen: set[tuple[str, Chain]],
        bindings: list[Import],
    ) -> list[_Target]:
        """Return what a chain means that starts with a name of a module, or with given imports."""
        head, *rest = chain
        found: list[_Target] = []
        everything = [*bindings, *module.bindings.get(head, []), *module.bindings.get("*", [])]
        for bound in everything:
            if isinstance(bound, Statement):
                found.append(_Target(module.name, head, tuple(rest)))
            elif bound.attribute is None:
                whole = bound in module.bindings.get("*", [])
                found += self._attribute(bound.module, () if whole else tuple(rest), seen)
            else:
                found += self._attribute(bound.module, (bound.attribute, *rest), seen)
        return list(dict.fromkeys(found))


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
    if origin.name != "__init__.py":
        return None
    base = origin.parent.joinpath(*inner)
    candidates = [base.with_name(f"{base.name}.py"), base / "__init__.py"]
    return next((path for path in candidates if path.is_file()), None)


# ----------------------------------------------------------------------------------- reach


class _Reach:
    """All that one definition reaches.

    Attributes:
        lines: by name of each definition what is hashed of it.
    """

    def __init__(self, sources: _Sources, start: str) -> None:
        self.lines: dict[str, str] = {}
        self._sources = sources
        self._effects = _Effects(sources)
        self._order: dict[str, list[tuple[int, str]]] = {}
        self._modules: set[str] = set()
        self._waiting = [start]
        self._seen: set[str] = set()
        self._asleep: list[tuple[str, Statement]] = []
        while self._waiting:
            self._walk()
            self._wake()

    def digest(self) -> str:
        """Return the SHA-256 of all that is reached, and of the order in which modules run it."""
        digest = hashlib.sha256()
        for name, line in sorted(self.lines.items()):
            digest.update(f"{name}\n{line}\n".encode())
        for module, order in sorted(self._order.items()):
            digest.update(f"{module}: {[name for _, name in sorted(order)]}\n".encode())
        return digest.hexdigest()

    def _walk(self) -> None:
        while self._waiting:
            if (node := self._waiting.pop()) not in self._seen:
                self._seen.add(node)
                self._visit(node)

    def _wake(self) -> None:
        """Reach the definitions whose making may change something that is reached."""
        still = []
        for node, statement in self._asleep:
            touched = self._effects.of(self._sources.module(node.partition(":")[0]), statement)
            if touched is None or touched & self._seen:
                self._waiting.append(node)
            elif node not in self._seen:
                still.append((node, statement))
        self._asleep = still

    def _visit(self, node: str) -> None:
        """Reach one definition: import its module, and follow its names."""
        module_name, _, name = node.partition(":")
        self._run(module_name)
        module = self._sources.module(module_name)
        if name == "*":
            self._waiting.extend(map(str, self._whole(module)))
            return
        if name.startswith("<"):
            statements = [module.effects[int(name[1:-1])]]
        else:
            statements = module.statements(name)
        lines = []
        for statement in statements:
            lines += [statement.dump, *self._follow(module, statement)]
            if not isinstance(statement.node, FUNCTIONS):
                self._order.setdefault(module_name, []).append((statement.position, name))
        self.lines[node] = "\n".join(lines)

    def _follow(self, module: Module, statement: Statement) -> Iterator[str]:
        """Reach what a statement refers to, and yield for each reference what it means."""
        for name in sorted(statement.modules):
            self._run(name)
        if "'__subclasses__'" in statement.dump:
            self._seen.add("__subclasses__")
        for chain in statement.references:
            targets = self._sources.meaning(module, statement, chain)
            self._waiting.extend(str(target) for target in targets if target.module)
            yield f"{'.'.join(chain)} = {', '.join(map(str, targets))}"

    def _whole(self, module: Module) -> Iterator[_Target]:
        """Yield all that can be reached through a module that is used as a value."""
        for name, bindings in module.bindings.items():
            for bound in bindings:
                if isinstance(bound, Statement):
                    yield _Target(module.name, name)
                else:
                    yield from (t for t in self._sources.through(bound) if t.module)
        if module.is_package:
            yield from (_Target(name, "*") for name in self._sources.submodules(module.name))

    def _run(self, module_name: str) -> None:
        """Import a module: its statements run, and those of the modules that it imports."""
        waiting = [module_name]
        while waiting:
            name = waiting.pop()
            module = self._sources.module(name) if name not in self._modules else None
            if module is None:
                continue
            self._modules.add(name)
            self._waiting.extend(f"{name}:<{number}>" for number in range(len(module.effects)))
            self._asleep.extend((f"{name}:{bound}", made) for bound, made in module.executed)
            waiting.extend([*module.modules, name.rpartition(".")[0]])


# --------------------------------------------------------------------------------- effects


class _Made(NamedTuple):
    """A statement that runs, or a function or class that is called."""

    module: Module
    statement: Statement
    called: bool


# a definition of ours that may change, something else that happens, or None: anything may change
_Effect = str | _Made | None


class _Effects:
    """What making a definition may change beside it, as ``METHOD = METHODS.register(...)`` does."""

    def __init__(self, sources: _Sources) -> None:
        self._sources = sources
        self._known: dict[Statement, set[str] | None] = {}

    def of(self, module: Module, statement: Statement) -> set[str] | None:
        """Name the definitions of ours that a statement may change; None if anything."""
        if statement not in self._known:
            self._known[statement] = self._joined(_Made(module, statement, called=False))
        return self._known[statement]

    def _joined(self, start: _Made) -> set[str] | None:
        """Join the effects of all that happens."""
        touched: set[str] = set()
        waiting, seen = [start], {start}
        while waiting:
            for effect in self._direct(waiting.pop()):
                if effect is None:
                    return None
                if isinstance(effect, str):
                    touched.add(effect)
                elif effect not in seen:
                    seen.add(effect)
                    waiting.append(effect)
        return touched

    def _direct(self, made: _Made) -> Iterator[_Effect]:
        yield from self._subclassing(made)
        if made.called:
            yield from self._state(made)
        statement = made.statement
        for call in statement.calls_when_called if made.called else statement.calls:
            yield from self._given(made, call)
            yield from self._call(made, call)

    def _subclassing(self, made: _Made) -> Iterator[_Effect]:
        """Yield what making a subclass of a class of ours changes; by a metaclass, anything."""
        keywords = getattr(made.statement.node, "keywords", [])
        if any(target.module for word in keywords for target in self._meaning(made, word.value)):
            yield None
        for base in getattr(made.statement.node, "bases", []):
            for target in self._meaning(made, base):
                for inner in self._definitions(target, called=True):
                    yield "__subclasses__"
                    yield from self._subclassing(inner)
                    dump = inner.statement.dump
                    if "'__init_subclass__'" in dump:
                        yield from (str(target), inner)

    def _state(self, start: _Made) -> Iterator[_Effect]:
        """Yield the variables that a function or class uses, through all that it uses."""
        if self._sets_foreign(start):
            yield None
        waiting, seen = [start], {start}
        while waiting:
            made = waiting.pop()
            for chain in made.statement.uses:
                for target in self._sources.meaning(made.module, made.statement, chain):
                    used = self._definitions(target, called=True)
                    if not all(_constant(inner.statement) for inner in used):
                        yield str(target)
                    waiting.extend(inner for inner in used if inner not in seen)
                    seen.update(used)

    def _sets_foreign(self, made: _Made) -> bool:
        """Tell whether attributes or items of something imported are set inside."""
        used = {chain[0] for chain in made.statement.uses}
        for name in used.intersection(made.statement.stores):
            for target in self._sources.meaning(made.module, made.statement, (name,)):
                if target.name == "*" or not (target.module or target.name.startswith("builtins.")):
                    return True
        return False

    def _given(self, made: _Made, call: Call) -> Iterator[_Effect]:
        """Yield the arguments of a call; a function given to a function counts as called."""
        for argument in call.arguments:
            for target in self._meaning(made, argument):
                for inner in self._definitions(target, called=True):
                    if not isinstance(inner.statement.node, _CALLABLE):
                        yield from self._held(target)
                    elif not call.makes_an_object:
                        yield inner

    def _call(self, made: _Made, call: Call) -> Iterator[_Effect]:
        """Yield what is called, and that whose method it is."""
        chain = chain_of(call.callee)
        if chain is not None:
            for target in self._sources.meaning(made.module, made.statement, chain):
                yield from self._ours(target) if target.module else self._foreign(target)
            return
        root = root_of(call.callee)
        if isinstance(root, (ast.Lambda, ast.IfExp, ast.BoolOp, ast.NamedExpr)):
            yield None
        yield from (str(target) for target in self._meaning(made, root) if target.module)

    def _foreign(self, target: _Target) -> Iterator[_Effect]:
        """Yield None if a foreign function may change anything."""
        package, _, name = target.name.partition(".")
        if package == "builtins":
            # an unknown name with attributes is a local variable, whose origin counts by itself
            pure = target.rest or (hasattr(builtins, name) and name not in _IMPURE_BUILTINS)
        else:
            makes_an_object = target.name.rpartition(".")[2].lstrip("_")[:1].isupper()
            pure = makes_an_object or package in _PURE_PACKAGES or target.name in _PURE
        if not pure:
            yield None

    def _ours(self, target: _Target) -> Iterator[_Effect]:
        """Yield the function or class that is called, or the definition whose method it is."""
        definitions = self._definitions(target, called=not target.rest)
        if not definitions:
            yield None
        for inner in definitions:
            node = inner.statement.node
            if not target.rest:
                yield inner if isinstance(node, _CALLABLE) else None
            elif isinstance(node, ast.ClassDef):
                yield None
            elif not isinstance(node, FUNCTIONS):
                yield inner
        if target.rest or not all(_constant(inner.statement) for inner in definitions):
            yield from self._held(target)

    def _held(self, start: _Target) -> Iterator[_Effect]:
        """Yield a definition and, of a variable, those that it holds or is another name of."""
        waiting, seen = [start], {str(start)}
        while waiting:
            target = waiting.pop()
            yield str(target)
            for inner in self._definitions(target, called=False):
                if not isinstance(inner.statement.node, _CALLABLE):
                    for chain in inner.statement.uses:
                        found = self._sources.meaning(inner.module, inner.statement, chain)
                        new = [held for held in found if held.module and str(held) not in seen]
                        waiting.extend(held for held in new if not self._is_callable(held))
                        seen.update(map(str, new))

    def _is_callable(self, target: _Target) -> bool:
        definitions = self._definitions(target, called=False)
        return all(isinstance(inner.statement.node, _CALLABLE) for inner in definitions)

    def _meaning(self, made: _Made, node: ast.expr) -> list[_Target]:
        chain = chain_of(node.value if isinstance(node, ast.Starred) else node)
        return self._sources.meaning(made.module, made.statement, chain) if chain else []

    def _definitions(self, target: _Target, *, called: bool) -> list[_Made]:
        module = self._sources.module(target.module) if target.module else None
        statements = module.statements(target.name) if module else []
        return [_Made(module, statement, called) for statement in statements]


_CALLABLE = (*FUNCTIONS, ast.ClassDef)
_PLAIN = (
    *(ast.Constant, ast.Tuple, ast.UnaryOp, ast.BinOp, ast.operator, ast.unaryop),
    *(ast.Name, ast.Attribute, ast.Subscript, ast.Load),
)
_CONSTANT_MAKERS = {("TypeVar",), ("ParamSpec",), ("NewType",), ("re", "compile")}
_HOLDERS = (ast.Dict, ast.List, ast.Set, ast.ListComp, ast.DictComp, ast.SetComp, ast.Call)


def _constant(statement: Statement) -> bool:
    """Tell whether a definition has no state of its own that another may change.

    Another name of a variable has none: what it is a name of counts.
    """
    node = statement.node
    if isinstance(node, FUNCTIONS):
        return True
    if isinstance(node, ast.ClassDef):
        values = [part.value for part in node.body if isinstance(part, (ast.Assign, ast.AnnAssign))]
        return not any(isinstance(value, _HOLDERS) and not _is_field(value) for value in values)
    value = getattr(node, "value", None)
    if isinstance(value, ast.Call) and chain_of(value.func) in _CONSTANT_MAKERS:
        return True
    return value is not None and all(isinstance(part, _PLAIN) for part in ast.walk(value))


def _is_field(value: ast.expr) -> bool:
    """Tell whether it is a `field(...)` of a dataclass, which each object fills anew."""
    chain = chain_of(value.func) if isinstance(value, ast.Call) else None
    return chain is not None and chain[-1] == "field"
