"""Fingerprints change with every definition that a thing reaches, and with nothing else."""

import ast
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType, SimpleNamespace

import pytest
from toys import lines, record, taught

import unlearnlib
from unlearnlib.data.requests import Classes, Group
from unlearnlib.models import training
from unlearnlib.pipeline import fingerprint
from unlearnlib.pipeline.paths import write_atomic
from unlearnlib.pipeline.sweep import _Keys, sweep
from unlearnlib.zero_shot import (
    deep_inversion,
    gkt,
    masked_distillation,
    methods,
    mm_noise,
    stopping,
)

FILES = {
    "__init__.py": "",
    "core.py": '''
"""Where everything starts."""
import json
from dataclasses import dataclass
from math import floor as rounded
import study.tools as t
import study.far.away
from study import shelf
from study.front import exported
from .base import Base, Grown
from . import register
from .marks import marked, Quiet
from .whole import *
from typing import Literal

LIMIT = 3
LIMIT = LIMIT + 1
FIRST, SECOND = 1, 2
total: int = 0
total += 5


def unused(x):
    return t.idle(x)


@dataclass(frozen=True)
class Worker(Base):
    """Do work."""

    size: int = t.SIZE

    def work(self):
        return shelf.take(self.size)


@t.twice
def run(*, x=t.default(), worker: "Worker | Typed" = None, kind: Literal["unused"] = "unused"):
    """Run."""
    from study.late import late

    shift = 1  # another than the function of this name
    value = [rounded(x), exported(LIMIT), late(), FIRST, total, shift, json.dumps(1)]
    found = [study.far.away.reach(), marked(), starred(), second_hand(t)]
    return Worker().work() + register.REGISTRY["a"](value), found


def second_hand(module):
    return register.lookup("b")


class Typed:
    def told(self):
        return annotated_only()


def annotated_only():
    return 1


def shift():
    return 2
''',
    "tools.py": """
SIZE = 4
def twice(function):
    return lambda **options: inner(function(**options))
def inner(value):
    return value
def default():
    return 1.5
def idle(x):
    return x
def named_by_nobody():
    return 0
""",
    "shelf.py": "def take(count):\n    return count * weight()\ndef weight():\n    return 2\ndef spare():\n    return 0\n",
    "front/__init__.py": "from .hidden import original as exported\nfrom .hidden import other\n",
    "front/hidden.py": "def original(x):\n    return x + OFFSET\nOFFSET = 1\ndef other():\n    return 3\n",
    "base.py": """
class Base:
    def greet(self):
        return shared()
def shared():
    return 1
class Grown(Base):
    def greet(self):
        return 2
""",
    "late.py": "def late():\n    return 1\ndef never():\n    return 2\n",
    "far/__init__.py": "",
    "far/away.py": "def reach():\n    return 1\ndef apart():\n    return 2\n",
    "register.py": """
from functools import singledispatch
REGISTRY = {}
def add(name):
    def keep(function):
        REGISTRY[name] = function
        return function
    return keep
def lookup(name):
    from . import entries
    return told(REGISTRY[name])
@singledispatch
def told(x):
    return 8
@add("a")
def first(x):
    return 1
def plain(x):
    return 0
""",
    "entries.py": """
from . import register
from .registered import value
def second(x):
    return value()
register.REGISTRY["b"] = second
THIRD = register.REGISTRY.setdefault("c", lambda x: third())
def third():
    return 3
for name in ["d"]:
    register.add(name)(second)
OTHERS = {}
FOURTH = OTHERS.setdefault("e", lambda x: fourth())
def fourth():
    return 4
class Loud:
    def __init_subclass__(cls):
        register.REGISTRY[cls.__name__] = cls
class Louder(Loud):
    volume = 1
@register.told.register
def _(x: int):
    return 6
class Setter:
    register.REGISTRY["f"] = 7
class Told(type):
    def __init__(cls, *rest):
        register.REGISTRY["m"] = cls
class Teller(metaclass=Told):
    pass
class Retold(Teller):
    volume = 3
class Calm:
    pass
class Calmer(Calm):
    volume = 1
""",
    "registered.py": "def value():\n    return 1\n",
    "marks.py": """
import logging
def marked():
    return COUNT
COUNT = 0
def _set():
    global COUNT
    COUNT = 1
class Quiet:
    level = 1
CHANGED = logging.disable(10)
TUNED = logging.Logger("x")
if __name__ == "__main__":
    print(Quiet())
""",
    "whole.py": "def starred():\n    return 1\ndef beside():\n    return 2\n",
    "unread.py": "x = 1\n",
}

# changes of what `run` reaches: file, old text, new text
COUNTS = {
    "its own body": ("core.py", "+ register", "- register"),
    "a default argument": ("tools.py", "return 1.5", "return 2.5"),
    "a decorator": ("tools.py", "lambda **options: inner", "lambda **options: 2 * inner"),
    "what a decorator calls": ("tools.py", "return value", "return -value"),
    "a constant of the module": ("core.py", "LIMIT = 3", "LIMIT = 4"),
    "a name bound again": ("core.py", "LIMIT = LIMIT + 1", "LIMIT = LIMIT + 2"),
    "one of several targets": ("core.py", "FIRST, SECOND = 1, 2", "SECOND, FIRST = 1, 2"),
    "a changed constant": ("core.py", "total += 5", "total += 6"),
    "an annotated constant": ("core.py", "total: int = 0", "total: int = 1"),
    "an imported constant": ("tools.py", "SIZE = 4", "SIZE = 5"),
    "a method": ("core.py", "take(self.size)", "take(self.size + 1)"),
    "a decorator of a class": ("core.py", "frozen=True", "frozen=False"),
    "a base class": ("base.py", "return shared()", "return -shared()"),
    "what a base class calls": ("base.py", "return 1", "return 2"),
    "a function of another module": ("shelf.py", "count * weight", "count + weight"),
    "a helper two modules away": ("shelf.py", "return 2", "return 3"),
    "a name that is exported again": ("front/hidden.py", "x + OFFSET", "x - OFFSET"),
    "what it uses": ("front/hidden.py", "OFFSET = 1", "OFFSET = 2"),
    "what is exported": ("front/__init__.py", "original as", "other as"),
    "a function imported inside a function": ("late.py", "return 1", "return 3"),
    "a module by its full name": ("far/away.py", "return 1", "return 3"),
    "a class in an annotation": ("core.py", "return annotated_only()", "return 0"),
    "what only that class calls": ("core.py", "annotated_only():\n    return 1", "annotated_only():\n    return 2"),
    "an entry by decorator": ("register.py", "return 1", "return 2"),
    "an entry by assignment of an item": ("entries.py", "return value()", "return 0"),
    "what an entry calls": ("registered.py", "return 1", "return 2"),
    "an entry that is named": ("entries.py", "return 3", "return 4"),
    "an entry by inheritance": ("entries.py", "class Louder(Loud):\n    volume = 1", "class Louder(Loud):\n    volume = 2"),
    "an entry by dispatch": ("entries.py", "return 6", "return 7"),
    "an entry by a statement in a class": ("entries.py", '"f"] = 7', '"f"] = 8'),
    "an entry by metaclass": ("entries.py", "volume = 3", "volume = 4"),
    "a loop at the top": ("entries.py", '["d"]', '["e"]'),
    "a function that sets a global": ("marks.py", "COUNT = 1", "COUNT = 2"),
    "a global": ("marks.py", "COUNT = 0", "COUNT = 3"),
    "a call of what is not ours": ("marks.py", "disable(10)", "disable(20)"),
    "an import of what is not ours": ("core.py", "from math import floor", "from math import ceil"),
    "a function imported by a star": ("whole.py", "return 1", "return 3"),
    "anything imported by a star": ("whole.py", "return 2", "return 3"),
    "a module that is handed on": ("tools.py", "return 0", "return 1"),
    "a string that is no docstring": ("register.py", "\ndef plain", "\n'said'\ndef plain"),
    "a statement at the top": ("shelf.py", "def spare", "print(1)\ndef spare"),
    "a statement at the top of what is imported": ("front/__init__.py", "", "print(1)\n"),
    "the order of definitions": ("core.py", "LIMIT = LIMIT + 1\nFIRST, SECOND = 1, 2", "FIRST, SECOND = 1, 2\nLIMIT = LIMIT + 1"),
    "the order of statements": ("core.py", "total: int = 0\ntotal += 5", "total += 5\ntotal: int = 0"),
}  # fmt: skip

# changes elsewhere
DOES_NOT = {
    "a function beside it": ("core.py", "return t.idle(x)", "return 0"),
    "a new function": ("shelf.py", "def spare", "def new():\n    return take(1)\ndef spare"),
    "a new constant": ("shelf.py", "def spare", "NEW = 1\ndef spare"),
    "a new class": ("base.py", "class Grown", "class New(Base):\n    pass\nclass Grown"),
    "a new import": ("core.py", "import json\n", "import json\nimport csv\n"),
    "a function that is not called": ("shelf.py", "return 0", "return 1"),
    "a function of a package": ("front/hidden.py", "return 3", "return 4"),
    "a class that is imported and not used": ("base.py", "return 2", "return 3"),
    "a function hidden by a local variable": ("core.py", "shift():\n    return 2", "shift():\n    return 3"),
    "a function that a Literal spells": ("core.py", "unused(x):", "unused(y, x=0):"),
    "a function beside one imported inside": ("late.py", "return 2", "return 3"),
    "a function beside one by its full name": ("far/away.py", "return 2", "return 3"),
    "an entry of another registry": ("entries.py", "return 4", "return 5"),
    "a subclass that tells nobody": ("entries.py", "class Calmer(Calm):\n    volume = 1", "class Calmer(Calm):\n    volume = 2"),
    "a class that is not used": ("marks.py", "level = 1", "level = 2"),
    "an object that is not used": ("marks.py", 'Logger("x")', 'Logger("y")'),
    "what runs as a script alone": ("marks.py", "print(Quiet())", "print(0)"),
    "the docstring of a function": ("core.py", '"""Run."""', '"""Go."""'),
    "the docstring of a class": ("core.py", '"""Do work."""', ""),
    "the docstring of a module": ("core.py", '"""Where everything starts."""', ""),
    "a new docstring": ("shelf.py", "weight():\n", 'weight():\n    """Weigh."""\n'),
    "a comment": ("shelf.py", "return 2", "return 2  # kg"),
    "formatting": ("core.py", "total += 5", "total  +=  (5)"),
    "the order of functions": ("shelf.py", FILES["shelf.py"], "def weight():\n    return 2\ndef take(count):\n    return count * weight()\n"),
    "a function that goes": ("shelf.py", "def spare():\n    return 0\n", ""),
    "another module": ("unread.py", "x = 1", "x = 2"),
}  # fmt: skip


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Write a small package whose modules refer to each other in every way."""
    folder = tmp_path / "study"
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    yield folder
    for name in [name for name in sys.modules if name.partition(".")[0] == "study"]:
        del sys.modules[name]


def named(module: str, name: str) -> SimpleNamespace:
    """Stand for a function or class without importing it."""
    return SimpleNamespace(__module__=module, __qualname__=name)


RUN = named("study.core", "run")


def edit(folder: Path, name: str, old: str, new: str) -> None:
    """Replace a text that occurs once; a text put in front of all where `old` is empty."""
    text = (folder / name).read_text()
    assert not old or text.count(old) == 1, f"{old!r} occurs {text.count(old)} times"
    changed = text.replace(old, new) if old else new + text
    ast.parse(changed)
    (folder / name).write_text(changed)


def test_the_package_works(study: Path) -> None:
    import study.core

    assert study.core.run()


@pytest.mark.parametrize("change", COUNTS.values(), ids=COUNTS)
def test_a_change_of_what_is_reached_counts(study: Path, change: tuple[str, str, str]) -> None:
    before = fingerprint.of(RUN)
    edit(study, *change)
    assert fingerprint.of(RUN) != before


@pytest.mark.parametrize("change", DOES_NOT.values(), ids=DOES_NOT)
def test_a_change_elsewhere_does_not(study: Path, change: tuple[str, str, str]) -> None:
    before = fingerprint.of(RUN)
    edit(study, *change)
    assert fingerprint.of(RUN) == before


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("from .hidden import original as exported", "from .hidden import other as exported"),
        ("from .hidden import original as exported", "from ..shelf import weight as exported"),
    ],
)
def test_what_a_name_means_counts_even_if_nothing_new_is_reached(
    study: Path, old: str, new: str
) -> None:
    edit(study, "core.py", "found = [", "found = [shelf.weight, exported, both.other, ")
    edit(study, "core.py", "from study import shelf", "from study import shelf, front as both")
    before = fingerprint.reached(RUN), fingerprint.of(RUN)
    edit(study, "front/__init__.py", old, new)
    assert fingerprint.reached(RUN) <= before[0]
    assert fingerprint.of(RUN) != before[1]


@pytest.mark.parametrize(
    ("expression", "reached"),
    [
        ("shelf.spare()", {"spare"}),
        ("(lambda shelf: shelf.spare())(0)", set()),
        ("[shelf for shelf in shelf.take(1)]", {"take", "weight"}),
        ("[spare for spare in (1,)] and shelf.weight()", {"weight"}),
        ("getattr(shelf, 'spa' + 're')", {"take", "weight", "spare"}),
        ("shelf.no_such_name", {"take", "weight", "spare"}),
        ("vars(study)", {"take", "weight", "spare"}),
        ("[f for f in [shelf.weight]][0]()", {"weight"}),
        ("shelf.weight.__call__().real", {"weight"}),
        ("(lambda f=shelf.weight: f())()", {"weight"}),
        ("f'{shelf.weight():.1f}'", {"weight"}),
        ("(study.shelf if 1 else 0).weight()", {"take", "weight", "spare"}),
        ("inner()", {"weight"}),
        ("Holder.value", {"weight"}),
        ("matched(1)", {"weight"}),
        ("renamed()", {"weight"}),
        ("tried()", {"weight"}),
    ],
)
def test_names_are_followed_as_python_does(study: Path, expression: str, reached: set[str]) -> None:
    (study / "apart.py").write_text(
        "import study\nfrom . import shelf\n"
        "def go():\n    return EXPRESSION\n"
        "def inner():\n    weight = 1\n    def deeper():\n        global weight\n"
        "        return weight\n    return deeper\n"
        "from .shelf import weight\n"
        "class Holder:\n    value = weight\n"
        "def matched(x):\n    match x:\n        case shelf.weight:\n            return 0\n"
        "def renamed():\n    from .shelf import weight as named\n    named = named\n    return named\n"
        "def tried():\n    try:\n        pass\n    except shelf.weight as error:\n        return error\n"
        .replace("EXPRESSION", expression)
    )  # fmt: skip
    found = fingerprint.reached(named("study.apart", "go"))
    assert {name.partition(":")[2] for name in found if name.startswith("study.shelf:")} == reached


def test_a_module_with_a_circle_of_imports_is_read_once(study: Path) -> None:
    (study / "one.py").write_text("from .two import f, g\ndef own():\n    return f() + g()\n")
    (study / "two.py").write_text(
        "from .one import f\nfrom . import one\ndef g():\n    return one.own\n"
    )
    assert fingerprint.reached(named("study.one", "own")) == {"study.one:own", "study.two:g"}


def test_what_is_not_at_the_top_of_a_module_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)
    for thing in (named("__main__", "run"), named("unlearnlib.absent", "run"), int):
        with pytest.raises(ValueError, match="move the code into unlearnlib"):
            fingerprint.of(thing)
    for thing in (lambda: 0, named("unlearnlib.pipeline.paths", "absent")):
        with pytest.raises(ValueError, match="not at the top level of a module"):
            fingerprint.of(thing)


def test_a_method_counts_as_its_class() -> None:
    assert fingerprint.of(Classes.mask) == fingerprint.of(Classes)


def test_code_in_memory_is_as_it_was_first_read(study: Path) -> None:
    first = fingerprint.loaded(RUN)
    assert first == fingerprint.of(RUN)
    edit(study, "shelf.py", "return 2", "return 3")
    assert fingerprint.loaded(RUN) == first != fingerprint.of(RUN)


# ---------------------------------------------------------------------------- real runs


def trained(folder: Path) -> None:
    """Train an original and two golds."""
    data, recipe = folder / "toy.npz", training.Recipe(1, 20, 0.01, shift_pixels=1)
    requests = (None, Classes([0]), Group("coherent", 3, 5, 0), Group("random", None, 5, 0))
    for request in requests:
        training.run(
            data=data, model="compact", width=0.5, recipe=recipe, request=request, seed=0, items=100
        )


def swept(folder: Path) -> None:
    """Run a sweep that computes, reuses and sets aside."""
    for tasks in ({"a": {"path": folder / "x"}, "b": {"path": folder / "x"}}, {}):
        write_atomic(folder / "x", b"content")
        sweep(measured, tasks, store=folder / "store", retries=0)


def measured(*, path: Path) -> dict[str, int]:
    return {"size": path.stat().st_size}


def executed(work: Callable[[Path], None], folder: Path) -> set[str]:
    """Do some work and name the definitions of the library whose code it ran."""
    codes = set()

    def watch(frame: FrameType, event: str, _: object) -> None:
        if event == "call":
            codes.add(frame.f_code)

    sys.setprofile(watch)
    try:
        work(folder)
    finally:
        sys.setprofile(None)
    home = Path(unlearnlib.__file__).parent
    places = {(Path(code.co_filename), code.co_firstlineno) for code in codes
              if code.co_name != "<module>"}  # fmt: skip
    return {definition(file, line) for file, line in places if file.is_relative_to(home)}


def definition(file: Path, line: int) -> str:
    """Name the definition in which a line of the library lies."""
    module = ".".join(file.relative_to(Path(unlearnlib.__file__).parents[1]).with_suffix("").parts)
    for node in ast.parse(file.read_text()).body:
        first = min([node.lineno, *(part.lineno for part in getattr(node, "decorator_list", []))])
        if first <= line <= node.end_lineno:
            return f"{module}:{getattr(node, 'name', '') or node.targets[0].id}"
    raise AssertionError(f"{file}:{line} is in no definition")


@pytest.mark.parametrize(("work", "thing"), [(trained, training.run), (swept, sweep)])
def test_whatever_a_real_run_executes_is_reached(
    work: Callable[[Path], None],
    thing: Callable[..., object],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("UNLEARNLIB_ROOT", str(tmp_path))
    monkeypatch.setenv("UNLEARNLIB_PROGRESS", str(tmp_path / "progress"))
    lines(tmp_path / "toy.npz")
    ran = executed(work, tmp_path)
    assert len(ran) > 20
    assert ran - fingerprint.reached(thing) == set()


DRAWN = deep_inversion.Synthesis(per_class=2, steps=1)
SMALL = {
    "mm_noise": mm_noise.Settings(per_class=2, noise_steps=1, steps=1, repair_steps=1),
    "gkt": gkt.Settings(
        gkt.Transfer(
            pseudo_batches=2,
            batch_size=8,
            generator_channels=8,
            student_steps=1,
            snapshots=1,
            gate_threshold=1.0,
        ),
        stopping.Stop(probe=DRAWN),
    ),
    "deep_inversion": deep_inversion.Settings(
        DRAWN, deep_inversion.Distillation(steps=2, batch_size=4, gate_threshold=1.0)
    ),
    "masked_distillation": masked_distillation.Settings(
        DRAWN, masked_distillation.Tuning(steps=2, batch_size=4)
    ),
}


@pytest.mark.parametrize("name", SMALL)
def test_whatever_a_method_executes_is_in_the_key_of_its_task_and_no_other_method(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = record(tmp_path / "original.pt", taught(monkeypatch))
    task = {"original": original, "method": methods.METHODS[name], "request": Classes([1])}
    task |= {"settings": SMALL[name], "seed": 0}
    ran = executed(lambda folder: methods.run(**task), tmp_path)
    keys = _Keys(methods.run)
    keys.of(name, task)
    reached = set().union(*map(fingerprint.reached, keys.code))
    assert f"unlearnlib.zero_shot.{name}:unlearn" in ran
    assert ran - reached == set()
    others = {f"unlearnlib.zero_shot.{other}:unlearn" for other in SMALL if other != name}
    assert not others & reached


MODULES = ("data.requests", "models.loops", "models.networks", "models.training", "pipeline.seeds")


def test_every_definition_that_is_reached_counts_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Change each definition of some modules in a copy of the library, one at a time."""
    home = Path(unlearnlib.__file__).parent
    shutil.copytree(home, tmp_path / "copied", ignore=shutil.ignore_patterns("__pycache__"))
    for file in (tmp_path / "copied").rglob("*.py"):
        file.write_text(file.read_text().replace("unlearnlib", "copied"))
    monkeypatch.syspath_prepend(tmp_path)
    thing = named("copied.models.training", "run")
    before, reached = fingerprint.of(thing), fingerprint.reached(thing)
    counted = {True: 0, False: 0}
    for module in MODULES:
        file = tmp_path / "copied" / (module.replace(".", "/") + ".py")
        text = file.read_text()
        for number, name in enumerate(names(text)):
            file.write_text(mutated(text, number))
            counts = f"copied.{module}:{name}" in reached
            assert (fingerprint.of(thing) != before) == counts, f"{module}: {name}"
            counted[counts] += bool(name)
        file.write_text(text)
    assert fingerprint.of(thing) == before
    assert min(counted.values()) > 5


def names(text: str) -> list[str]:
    """Name what each statement at the top of a module defines; empty if it is not a definition."""
    return [getattr(node, "name", "") or ast.unparse(getattr(node, "targets", [ast.Name("")])[0])
            for node in ast.parse(text).body]  # fmt: skip


def mutated(text: str, number: int) -> str:
    """Change one statement at the top of a module, if it is a definition."""
    tree = ast.parse(text)
    node = tree.body[number]
    if hasattr(node, "body"):
        node.body.append(ast.Expr(ast.Constant(1)))
    elif isinstance(node, ast.Assign):
        node.value = ast.Tuple([node.value], ast.Load())
    return ast.unparse(ast.fix_missing_locations(tree))


# ----------------------------------------------------------------------------- whole modules


def test_closure_follows_every_kind_of_import(study: Path) -> None:
    ours = {str(path.relative_to(study)) for path in fingerprint.closure("study.core")}
    assert ours == FILES.keys() - {"unread.py"}


def test_closure_includes_unlearnlib_and_nothing_installed(study: Path) -> None:
    (study / "apart.py").write_text("import torch\nfrom unlearnlib.pipeline.paths import root\n")
    names = [path.name for path in fingerprint.closure("study.apart") if path.parent != study]
    assert names == ["__init__.py", "__init__.py", "paths.py", "watch.py"]


def test_notebook_code_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)
    with pytest.raises(ValueError, match="move the code into unlearnlib"):
        fingerprint.closure("__main__")
    with pytest.raises(ValueError, match="absent"):
        fingerprint.code("unlearnlib.absent")


@pytest.mark.parametrize("change", ["a comment", "a new docstring", "formatting"])
def test_prose_and_formatting_do_not_count_in_whole_modules(study: Path, change: str) -> None:
    before = fingerprint.code("study.core")
    edit(study, *DOES_NOT[change])
    assert fingerprint.code("study.core") == before


@pytest.mark.parametrize("name", ["core.py", "late.py", "front/hidden.py", "far/__init__.py"])
def test_code_anywhere_in_whole_modules_counts(study: Path, name: str) -> None:
    before = fingerprint.code("study.core")
    (study / name).write_text(FILES[name] + "extra = 1\n")
    assert fingerprint.code("study.core") != before


def test_code_outside_the_closure_does_not_count(study: Path) -> None:
    before = fingerprint.code("study.core")
    (study / "unread.py").write_text("x = 2\n")
    assert fingerprint.code("study.core") == before
