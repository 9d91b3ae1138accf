"""Runs a notebook as a stage: checked parameters, visible progress, the same bytes each time.

python -m unlearnlib.pipeline.runner run 12_gkt --profile quick
python -m unlearnlib.pipeline.runner sources
python -m unlearnlib.pipeline.runner parameters --profile quick
"""

import argparse
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from tempfile import TemporaryDirectory

# jsonschema builds a grammar of web addresses for two seconds, which no notebook's schema asks for
sys.modules.setdefault("rfc3987_syntax", None)

import nbformat
import papermill
from ipykernel.kernelspec import make_ipkernel_cmd
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpec
from nbclient.exceptions import DeadKernelError
from nbconvert.preprocessors import CoalesceStreamsPreprocessor
from nbformat import NotebookNode
from papermill.exceptions import PapermillExecutionError

from unlearnlib.pipeline import cells, parameters, shards, watch
from unlearnlib.pipeline.parameters import ParameterError
from unlearnlib.pipeline.paths import place, root, write_atomic

_METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"file_extension": ".py", "name": "python", "pygments_lexer": "ipython3"},
}
_WIDGET = "application/vnd.jupyter.widget-view+json"
# seconds to wait for a kernel that starts or prints while other processes hold the processor
_PATIENCE = 300

# parameters are checked here, more strictly
logging.getLogger("papermill").setLevel(logging.ERROR)


class NotebookError(RuntimeError):
    """A notebook is absent or did not run to its end."""


class ShardDone(NotebookError):
    """A notebook has made its share of the runs, and can go on when others have made theirs."""


def run(stem: str, profile: str) -> Path:
    """Execute a notebook with the parameters of a profile and store it with its outputs.

    Args:
        stem: name of the notebook without suffix, as in `12_gkt`.
        profile: name of the profile.

    Returns:
        The executed notebook, `reports/<profile>/notebooks/<stem>.ipynb`.

    Raises:
        ParameterError: a parameter of the profile that cannot be, whichever notebook it is for, or
            the notebook and the profile disagree on the parameters.
        NotebookError: there is no such notebook, or a cell raised. Then the notebook as far as it
            came is in `build/failed/<profile>-<stem>.ipynb`, and no other file has changed.
    """
    _check(profile)
    notebook = _open(stem)
    given = parameters.for_notebook(profile, stem, _declared(notebook, stem))
    unfinished = root() / "build" / "failed" / f"{profile}-{stem}.ipynb"
    executed = _execute(notebook, given | {"profile": profile}, stem, unfinished)
    target = place(profile).notebooks / f"{stem}.ipynb"
    write_atomic(target, canonical(executed))
    unfinished.unlink()
    return target


def sources() -> list[Path]:
    """Write every notebook without outputs to `build/notebooks`, and delete what has no source.

    A file whose bytes would not change is left alone, so that saving a notebook in Jupyter
    invalidates nothing.

    Returns:
        The notebooks in `build/notebooks`.
    """
    built = root() / "build" / "notebooks"
    wanted = {path.name: _stripped(path) for path in (root() / "notebooks").glob("*.ipynb")}
    for path in built.glob("*.ipynb"):
        if path.name not in wanted:
            path.unlink()
    for name, content in wanted.items():
        target = built / name
        if not target.is_file() or target.read_bytes() != content:
            write_atomic(target, content)
    return sorted(built / name for name in wanted)


def resolve(profile: str) -> Path:
    """Check a profile and write all its parameters to `build/params/<profile>.yaml`.

    Stages depend on their keys in that file, so that none runs before the whole profile is checked,
    and a change of a comment or of another stage's keys invalidates nothing.

    Returns:
        the file.

    Raises:
        ParameterError: with all that is wrong with the profile.
    """
    # the rooms take seconds to import, which a stage whose profile was checked can save
    from unlearnlib.pipeline import checks

    file = parameters.resolved(profile)
    write_atomic(file, parameters.text(checks.check(profile)).encode())
    return file


def canonical(notebook: NotebookNode, *, outputs: bool = True) -> bytes:
    """Return a notebook's bytes without whatever differs between equal runs or editors.

    Timings, cell ids, versions, the state of widgets and the stderr stream go; sources, tags,
    execution counts and other outputs stay.

    Args:
        notebook: notebook of format 4.
        outputs: whether to keep outputs and execution counts.
    """
    cells = [
        _canonical_cell(cell, f"cell-{number}", outputs)
        for number, cell in enumerate(notebook.cells, 1)
    ]
    clean = nbformat.v4.new_notebook(cells=cells, metadata=_METADATA)
    return (nbformat.writes(clean) + "\n").encode()


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m unlearnlib.pipeline.runner", description=__doc__.split("\n")[0]
    )
    commands = parser.add_subparsers(dest="command", required=True)
    runs = commands.add_parser("run", help="execute a notebook")
    runs.add_argument("stem", help="name of the notebook without suffix, as in 12_gkt")
    runs.add_argument("--profile", default="quick", help="name of a file in params/")
    runs.add_argument("--shard", metavar="I/N", help="make this share of the runs alone, as in 2/8")
    commands.add_parser("sources", help="write notebooks without outputs to build/notebooks")
    checks = commands.add_parser("parameters", help="check a profile; write it to build/params")
    checks.add_argument("--profile", default="quick", help="name of a file in params/")
    options = parser.parse_args(arguments)
    watch.interrupt_with_command()
    try:
        if options.command == "run":
            _timed_run(options.stem, options.profile, options.shard)
        elif options.command == "parameters":
            resolve(options.profile)
        else:
            sources()
    except (ParameterError, NotebookError) as error:
        _say(str(error))
        return 1
    except KeyboardInterrupt:
        # of the cell that was running, nothing remains to be said
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)
        _say("interrupted")
        return 130
    return 0


def _timed_run(stem: str, profile: str, shard: str | None) -> None:
    """Run a notebook, or as much of it as a share of its runs allows, and say how long it took.

    Raises:
        ParameterError, NotebookError: see `run`; or the share is none.
    """
    if shard:
        try:
            os.environ[shards.VARIABLE] = str(shards.parse(shard))
        except ValueError as error:
            raise ParameterError(str(error)) from None
    started = time.monotonic()
    _say(f"{stem} ({profile}) starts")
    try:
        run(stem, profile)
    except ShardDone as done:
        _say(str(done))
    _say(f"{stem} ({profile}) took {time.monotonic() - started:.0f} s")


def _check(profile: str) -> None:
    """Check a profile, unless it is as it was when it was last found to be fine.

    Raises:
        ParameterError: see `resolve`.
    """
    sections, file = parameters.load(profile), parameters.resolved(profile)
    if not file.is_file() or file.read_text(encoding="utf-8") != parameters.text(sections):
        resolve(profile)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _canonical_cell(cell: NotebookNode, name: str, outputs: bool) -> NotebookNode:
    """Return a copy of a cell with nothing but what its author and a successful run determine."""
    tags = cell.metadata.get("tags")
    clean = NotebookNode(
        id=name,
        cell_type=cell.cell_type,
        metadata={"tags": tags} if tags else {},
        source=cell.source,
    )
    if "attachments" in cell:
        clean.attachments = cell.attachments
    if cell.cell_type == "code":
        clean.execution_count = cell.execution_count if outputs else None
        clean.outputs = [item for item in cell.outputs if _lasts(item)] if outputs else []
        # how prints fall into messages depends on the machine's speed
        CoalesceStreamsPreprocessor().preprocess_cell(clean, {}, 0)
    return clean


def _lasts(output: NotebookNode) -> bool:
    """Tell whether an output means something after the run."""
    if output.output_type == "stream":
        return output.name != "stderr"
    return _WIDGET not in output.get("data", {})


def _stripped(path: Path) -> bytes:
    return canonical(nbformat.read(path, as_version=4), outputs=False)


def _open(stem: str) -> NotebookNode:
    """Read the built notebook, or its source if it was not built."""
    source = root() / "notebooks" / f"{stem}.ipynb"
    built = root() / "build" / "notebooks" / source.name
    if not built.is_file() and not source.is_file():
        known = sorted(path.stem for path in source.parent.glob("*.ipynb"))
        close = get_close_matches(stem, known, n=1) or known
        raise NotebookError(f"no notebook {stem!r}; there is {', '.join(close) or 'none'}")
    if not built.is_file():
        built = source
    elif source.is_file() and _stripped(source) != built.read_bytes():
        _say(f"notebooks/{source.name} is newer than its copy in build/notebooks, which runs")
    return nbformat.reads(_stripped(built), as_version=4)


def _declared(notebook: NotebookNode, stem: str) -> list[str]:
    """List the names that the cell tagged `parameters` assigns.

    Raises:
        ParameterError: there is not exactly one such cell, or it does not assign `profile`.
    """
    tagged = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    if len(tagged) != 1:
        raise ParameterError(
            f"{stem}.ipynb has {len(tagged)} cells tagged 'parameters'; it needs one"
        )
    declared = cells.declared(tagged[0].source)
    if "profile" not in declared:
        raise ParameterError(f"{stem}.ipynb: its parameters cell needs a line: profile = 'quick'")
    return declared


def _execute(notebook: NotebookNode, given: dict, stem: str, unfinished: Path) -> NotebookNode:
    """Execute a notebook in this interpreter's environment, saving it to `unfinished` meanwhile."""
    unfinished.parent.mkdir(parents=True, exist_ok=True)
    try:
        with TemporaryDirectory() as scratch, _shown(Path(scratch) / "progress") as progress:
            return papermill.execute_notebook(
                notebook,
                # papermill fills in parameters between braces
                str(unfinished).replace("{", "{{").replace("}", "}}"),
                given,
                kernel_name="python3",
                kernel_manager_class=_kernel(progress, Path(scratch)),
                cwd=root(),
                start_timeout=_PATIENCE,
                iopub_timeout=_PATIENCE,
                progress_bar=False,
                stderr_file=sys.stderr,
            )
    except (PapermillExecutionError, DeadKernelError) as error:
        if getattr(error, "ename", "") == shards.OtherShardsMissing.__name__:
            unfinished.unlink()
            raise ShardDone(f"{error.evalue}; run {stem} again when they are done") from error
        reason = str(error)
        if isinstance(error, PapermillExecutionError):
            reason = f"{error.ename}: {error.evalue}"
        kept = unfinished.relative_to(root()).as_posix()
        raise NotebookError(f"{stem} failed: {reason}\nThe notebook so far: {kept}") from error


def _kernel(progress: Path, scratch: Path) -> type[AsyncKernelManager]:
    """Return a manager of kernels that run this interpreter and import this library.

    No kernelspec need be installed, and one that points elsewhere has no say.
    """
    library = str(Path(__file__).resolve().parents[2])
    search = [library, *filter(None, [os.environ.get("PYTHONPATH")])]
    spec = KernelSpec(
        argv=make_ipkernel_cmd(extra_arguments=["--log-level=ERROR"]),
        display_name="Python 3",
        language="python",
        env={
            "PYTHONPATH": os.pathsep.join(search),
            "UNLEARNLIB_PROGRESS": str(progress),
            # neither the order of a set, nor a reader's own settings, may show in the outputs
            "PYTHONHASHSEED": "0",
            # the last bits of a sum depend on how many threads share it
            "OMP_NUM_THREADS": "1",
            "IPYTHONDIR": str(scratch / "ipython"),
            "MPLBACKEND": "module://matplotlib_inline.backend_inline",
            # glibc returns each large tensor to the system and fetches it back: a tenth of the time
            "MALLOC_MMAP_MAX_": "0",
            "MALLOC_TOP_PAD_": str(2**28),
            "MALLOC_TRIM_THRESHOLD_": str(2**33),
        },
    )

    class Kernel(AsyncKernelManager):
        """A kernel of this interpreter."""

        kernel_spec = spec

    return Kernel


@contextmanager
def _shown(progress: Path) -> Iterator[Path]:
    """Copy the lines that arrive in a file to the terminal until the context ends."""
    ended = threading.Event()

    def follow() -> None:
        with progress.open(encoding="utf-8") as lines:
            while True:
                last = ended.wait(0.5)
                for line in lines:
                    _say(f"  {line.rstrip()}")
                if last:
                    return

    progress.touch()
    follower = threading.Thread(target=follow)
    follower.start()
    try:
        yield progress
    finally:
        ended.set()
        follower.join()


if __name__ == "__main__":
    # a kernel outlives a runner that is terminated without a chance to shut it down
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())
