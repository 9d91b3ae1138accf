"""What the source of one module binds, refers to, and runs when it is imported.

A statement at the top of a module is the smallest part: a function, a class with its whole body, an
assignment, or anything else. `fingerprint` follows what they refer to from module to module.
"""

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
_SCOPES = (*FUNCTIONS, ast.ClassDef, ast.Lambda, *_COMPREHENSIONS)
_DOCUMENTED = (ast.Module, ast.ClassDef, *FUNCTIONS)

Chain = tuple[str, ...]  # a name and the attributes that are taken of it: ("np", "random", "rand")


@dataclass(frozen=True)
class Import:
    """A name that comes from elsewhere: a module, or an attribute of one."""

    module: str
    attribute: str | None = None


@dataclass(frozen=True)
class Call:
    """A call, or a decorator, which is one."""

    callee: ast.expr
    arguments: tuple[ast.expr, ...]

    @property
    def makes_an_object(self) -> bool:
        """Whether what is called has the name of a class."""
        chain = chain_of(self.callee)
        return chain is not None and chain[-1].lstrip("_")[:1].isupper()


@dataclass(eq=False)
class Statement:
    """A statement at the top of a module, and what can be told of it alone.

    Attributes:
        node: without docstrings.
        package: what its relative imports start from.
        position: in the module, for the order in which statements run.
    """

    node: ast.stmt
    package: str
    position: int

    @cached_property
    def dump(self) -> str:
        """All that it does, blind to comments and formatting."""
        return ast.dump(self.node)

    @cached_property
    def references(self) -> list[Chain]:
        """What it refers to that is not a local variable, annotations included."""
        return _chains(self.node, _Reader())

    @cached_property
    def uses(self) -> list[Chain]:
        """What it may call or change: without annotations and what it only looks at."""
        return _chains(self.node, _UseReader())

    @cached_property
    def imports(self) -> dict[str, list[Import]]:
        """What the imports inside bind, at any depth; under ``*`` what is imported whole."""
        return _imports([self.node], self.package)

    @cached_property
    def modules(self) -> set[str]:
        """Names of modules that the imports inside may load."""
        return _modules([self.node], self.package)

    @cached_property
    def calls(self) -> list[Call]:
        """What is called when the module is imported."""
        return list(_calls(self.node))

    @cached_property
    def calls_when_called(self) -> list[Call]:
        """What a function calls when it is called, in any branch; a class: to make an object."""
        body = self.node.body
        if isinstance(self.node, ast.ClassDef):
            body = _constructors(self.node)
        return [call for part in body for call in _calls(part)]

    @cached_property
    def stores(self) -> list[str]:
        """Names whose attributes or items are set anywhere inside."""
        parts = (
            part for part in ast.walk(self.node) if isinstance(part, (ast.Attribute, ast.Subscript))
        )
        roots = (root_of(part) for part in parts if not isinstance(part.ctx, ast.Load))
        return sorted({root.id for root in roots if isinstance(root, ast.Name)})


@dataclass(eq=False)
class Module:
    """The statements of a module, and its names.

    Attributes:
        name: dotted.
        bindings: by name what binds it, in order: names may be bound several times.
        effects: the statements that define nothing, in order, which run on import.
        modules: names of modules that running it may import.
        is_package: whether it is an ``__init__.py``.
    """

    name: str
    bindings: dict[str, list[Statement | Import]]
    effects: list[Statement]
    modules: set[str]
    is_package: bool

    def statements(self, name: str) -> list[Statement]:
        """List the statements that define a name."""
        return [bound for bound in self.bindings.get(name, []) if isinstance(bound, Statement)]

    @cached_property
    def all_modules(self) -> set[str]:
        """Names of modules that any of its imports may load, those inside functions too."""
        statements = (part for name in self.bindings for part in self.statements(name))
        return self.modules.union(*(statement.modules for statement in statements))

    @cached_property
    def executed(self) -> list[tuple[str, Statement]]:
        """The definitions that do more than bind their name when they run: they call something."""
        return [
            (name, statement)
            for name in self.bindings
            for statement in self.statements(name)
            if statement not in self.effects
            and (statement.calls or getattr(statement.node, "bases", None))
        ]


@lru_cache(maxsize=4096)
def parsed(name: str, content: bytes, is_package: bool) -> Module:
    """Parse the source of a module.

    Args:
        name: dotted.
        content: of its file.
        is_package: whether the file is an ``__init__.py``.
    """
    package = name if is_package else name.rpartition(".")[0]
    tree = without_docstrings(ast.parse(content))
    module = Module(name, {}, [], {name}, is_package)
    for position, node in enumerate(tree.body):
        if not _is_main_guard(node):
            _add(module, Statement(node, package, position))
    return module


def _add(module: Module, statement: Statement) -> None:
    """Add a statement to a module: what it imports, and what it defines or does."""
    node = statement.node
    bound: set[str] = set()
    if not isinstance(node, (*FUNCTIONS, ast.ClassDef)):
        for name, imports in statement.imports.items():
            module.bindings.setdefault(name, []).extend(imports)
        bound = {part.target.id for part in ast.walk(node) if isinstance(part, ast.NamedExpr)}
    if not isinstance(node, FUNCTIONS):
        module.modules |= statement.modules
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        return
    # a function that declares a name global binds it too
    for part in ast.walk(node):
        if isinstance(part, ast.Global):
            bound |= set(part.names)
    for name in sorted(bound | _bound([node])):
        module.bindings.setdefault(name, []).append(statement)
    if not _is_definition(node):
        module.effects.append(statement)


def _is_definition(node: ast.stmt) -> bool:
    """Tell whether a statement does no more than define names; ``+=`` changes what others see."""
    if isinstance(node, ast.Assign):
        return all(map(_is_name, node.targets))
    if isinstance(node, ast.AnnAssign):
        return _is_name(node.target)
    if isinstance(node, ast.ClassDef):
        return all(isinstance(part, ast.Expr) or _is_definition(part) for part in node.body)
    return isinstance(node, (*FUNCTIONS, ast.Pass))


def _is_name(target: ast.expr) -> bool:
    if isinstance(target, (ast.Tuple, ast.List)):
        return all(map(_is_name, target.elts))
    if isinstance(target, ast.Starred):
        return _is_name(target.value)
    return isinstance(target, ast.Name)


def _is_main_guard(node: ast.stmt) -> bool:
    """Tell whether it is ``if __name__ == "__main__":``, which never runs on import."""
    return (
        isinstance(node, ast.If)
        and not node.orelse
        and ast.unparse(node.test) == "__name__ == '__main__'"
    )


def without_docstrings(tree: ast.Module) -> ast.Module:
    """Drop the docstrings of a module, its classes and its functions, in place."""
    for node in ast.walk(tree):
        if isinstance(node, _DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            # a body is never empty: `def f(): "..."` does what `def f(): pass` does
            node.body = node.body[1:] or ([] if isinstance(node, ast.Module) else [ast.Pass()])
    return tree


# ---------------------------------------------------------------------------------- imports


def _imports(nodes: Iterable[ast.AST], package: str) -> dict[str, list[Import]]:
    found: dict[str, list[Import]] = {}
    for node in _import_nodes(nodes):
        for alias in node.names:
            if isinstance(node, ast.ImportFrom):
                base = absolute(node, package)
                whole = alias.name == "*"
                name = "*" if whole else alias.asname or alias.name
                imported = Import(base, None if whole else alias.name)
            else:
                name = alias.asname or alias.name.partition(".")[0]
                imported = Import(alias.name if alias.asname else name)
            found.setdefault(name, []).append(imported)
    return found


def _modules(nodes: Iterable[ast.AST], package: str) -> set[str]:
    """Name every module that imports may load: `from package import name` may load a module."""
    found = set()
    for node in _import_nodes(nodes):
        if isinstance(node, ast.ImportFrom):
            base = absolute(node, package)
            found |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
        else:
            found |= {alias.name for alias in node.names}
    return found


def _import_nodes(nodes: Iterable[ast.AST]) -> Iterator[ast.Import | ast.ImportFrom]:
    for tree in nodes:
        for node in ast.walk(tree):
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                yield node


def absolute(node: ast.ImportFrom, package: str) -> str:
    """Return the absolute name of the module that a `from ... import` names."""
    if not node.level:
        return node.module or ""
    base = package.split(".")[: len(package.split(".")) - node.level + 1]
    return ".".join([*base, *([node.module] if node.module else [])])


# ------------------------------------------------------------------------------- references


def chain_of(node: ast.expr) -> Chain | None:
    """Return a name with its attributes as a chain, or None if it is something else."""
    attributes = []
    while isinstance(node, ast.Attribute):
        attributes.append(node.attr)
        node = node.value
    return (node.id, *reversed(attributes)) if isinstance(node, ast.Name) else None


def root_of(node: ast.expr) -> ast.expr:
    """Return what attributes, items and calls are taken of: ``x`` of ``x.y[0]().z``."""
    while isinstance(node, (ast.Attribute, ast.Subscript, ast.Call)):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node


def _chains(node: ast.AST, reader: "_Reader") -> list[Chain]:
    reader.visit(node)
    return sorted(reader.chains)


class _Reader(ast.NodeVisitor):
    """Collect the chains whose name is not a local variable of a function around them.

    The names of a class body count as global, since its functions do not see them.
    """

    def __init__(self) -> None:
        self.chains: set[Chain] = set()
        self._local: frozenset[str] = frozenset()

    def _inside(self, local: frozenset[str], nodes: Iterable[ast.AST]) -> None:
        outside, self._local = self._local, local
        for node in nodes:
            self.visit(node)
        self._local = outside

    def visit_Name(self, node: ast.Name) -> None:
        if not isinstance(node.ctx, ast.Store) and node.id not in self._local:
            self.chains.add((node.id,))

    def visit_Attribute(self, node: ast.Attribute) -> None:
        chain = chain_of(node)
        if chain is None:
            self.visit(node.value)
        elif chain[0] not in self._local:
            self.chains.add(chain)

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) -> None:
        for part in (*getattr(node, "decorator_list", []), node.args):
            self.visit(part)
        self._annotation(getattr(node, "returns", None))
        body = node.body if isinstance(node.body, list) else [node.body]
        nested = [part for statement in body for part in ast.walk(statement)]
        freed = {name for part in nested if isinstance(part, ast.Global) for name in part.names}
        freed |= _imports(body, "").keys()  # what an import binds is looked up there
        taken = [part.arg for part in ast.walk(node.args) if isinstance(part, ast.arg)]
        self._inside((self._local | {*taken} | _bound(body)) - freed, body)

    visit_AsyncFunctionDef = visit_FunctionDef
    visit_Lambda = visit_FunctionDef

    def visit_ListComp(self, node: ast.expr) -> None:
        first, *others = node.generators
        self.visit(first.iter)
        names = _bound([part.target for part in node.generators])
        inner = [first.target, *first.ifs, *others]
        elements = [getattr(node, name) for name in ("elt", "key", "value") if hasattr(node, name)]
        self._inside(self._local | names, [*inner, *elements])

    visit_SetComp = visit_DictComp = visit_GeneratorExp = visit_ListComp

    def visit_arg(self, node: ast.arg) -> None:
        self._annotation(node.annotation)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        self.visit(node.target)
        self._annotation(node.annotation)
        if node.value is not None:
            self.visit(node.value)

    def _annotation(self, node: ast.expr | None) -> None:
        """Read an annotation, in which a string is the name of something."""
        if node is None:
            return
        self.visit(node)
        for text in _strings(node):
            try:
                self._annotation(ast.parse(text.strip(), mode="eval").body)
            except SyntaxError:
                continue


class _UseReader(_Reader):
    """Collect what may be called or changed, so neither annotations nor what is only looked at."""

    _LOOKS = frozenset({("isinstance",), ("issubclass",), ("len",), ("repr",), ("str",)})
    _COPIES = frozenset({("list",), ("sorted",), ("tuple",)})

    def _annotation(self, node: ast.expr | None) -> None:
        return

    def visit_Compare(self, node: ast.Compare) -> None:
        self._look(node.left, *node.comparators)

    def visit_Call(self, node: ast.Call) -> None:
        if chain_of(node.func) in self._LOOKS:
            self._look(*node.args)
        else:
            self.generic_visit(node)

    def visit_FormattedValue(self, node: ast.FormattedValue) -> None:
        value = node.value
        if isinstance(value, ast.Call) and chain_of(value.func) in self._COPIES:
            self._look(*value.args, *value.keywords)
        else:
            self._look(value)

    def _look(self, *nodes: ast.expr) -> None:
        for node in nodes:
            if chain_of(node) is None:
                self.visit(node)


def _strings(node: ast.AST) -> Iterator[str]:
    """Yield the strings of an annotation but for those of a `Literal`, which name nothing."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    if isinstance(node, ast.Subscript) and (chain_of(node.value) or ("",))[-1] == "Literal":
        return
    for child in ast.iter_child_nodes(node):
        yield from _strings(child)


def _bound(nodes: Iterable[ast.AST]) -> frozenset[str]:
    """Return the names that statements bind in their own scope, but for those of imports."""
    names: set[str] = set()
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            names.add(node.id)
        names |= _named(node)
        if not isinstance(node, _SCOPES):
            waiting.extend(ast.iter_child_nodes(node))
    return frozenset(names)


def _named(node: ast.AST) -> set[str]:
    """Return the name that a node binds without a `Name` of its own."""
    if isinstance(node, (*FUNCTIONS, ast.ClassDef)):
        return {node.name}
    if isinstance(node, (ast.ExceptHandler, ast.MatchAs, ast.MatchStar)):
        return {node.name} if node.name else set()
    if isinstance(node, ast.MatchMapping):
        return {node.rest} if node.rest else set()
    return set()


# ------------------------------------------------------------------------------------ calls


def _calls(node: ast.AST) -> Iterator[Call]:
    """Yield the calls that happen when a node runs; the body of a function runs when it is called.

    A lambda counts as called where it is given to a function, and not where it is given to a class,
    which keeps it.
    """
    if isinstance(node, ast.Lambda):
        return
    for decorator in getattr(node, "decorator_list", []):
        if not isinstance(decorator, ast.Call):
            yield Call(decorator, ())
    if isinstance(node, FUNCTIONS):
        for part in (*node.decorator_list, node.args, *([node.returns] if node.returns else [])):
            yield from _calls(part)
        return
    if isinstance(node, ast.Call):
        given = (*node.args, *(keyword.value for keyword in node.keywords))
        yield (call := Call(node.func, given))
        for part in given:
            if isinstance(part, ast.Lambda) and not call.makes_an_object:
                yield from _calls(part.body)
    for child in ast.iter_child_nodes(node):
        yield from _calls(child)


_CONSTRUCTORS = ("__new__", "__init__", "__post_init__", "__init_subclass__", "__set_name__")


def _constructors(node: ast.ClassDef) -> list[ast.stmt]:
    """Return the bodies of what runs when an object is made, and of the methods that this calls."""
    methods = {part.name: part for part in node.body if isinstance(part, FUNCTIONS)}
    found: dict[str, list[ast.stmt]] = {}
    waiting = [name for name in _CONSTRUCTORS if name in methods]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found[name] = methods[name].body
            parts = (part for part in ast.walk(methods[name]) if isinstance(part, ast.Attribute))
            waiting += [part.attr for part in parts if part.attr in methods]
    return [statement for body in found.values() for statement in body]
