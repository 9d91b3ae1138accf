"""Processes that end with the one they work for, however that one ends.

A process that is killed cannot tell those that it started; so these look, once a second.
"""

import os
import signal
import threading
import time
from collections.abc import Callable

COMMAND = "UNLEARNLIB_COMMAND"  # the variable that names the process of `python -m ...pipeline`
_EVERY = 1.0  # seconds between looks
_PATIENCE = 30.0  # seconds that an interrupted process has to end in good order


def exit_with_parent(parent: int) -> None:
    """End this process at once when it is no longer a child of `parent`, a process number."""
    watch(lambda: os.getppid() == parent, lambda: os._exit(1))


def interrupt_with_command() -> None:
    """Interrupt this process when the command that `COMMAND` names is gone; nothing without it.

    By SIGTERM, since a process in the background may have been told to ignore SIGINT. One that does
    not heed the interrupt is ended half a minute later.
    """

    def end() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(_PATIENCE)
        os._exit(1)

    if number := os.environ.get(COMMAND):
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        watch(lambda: is_there(int(number)), end)


def watch(alive: Callable[[], bool], end: Callable[[], None]) -> threading.Thread:
    """Call `end` once, from a thread of its own, when `alive` no longer holds."""

    def look() -> None:
        while alive():
            time.sleep(_EVERY)
        end()

    thread = threading.Thread(target=look, name="watch", daemon=True)
    thread.start()
    return thread


def is_there(number: int) -> bool:
    """Tell whether there is a process of this number on this machine."""
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # of another user, but there
        pass
    return True
