"""How the program ends: quickly, and quietly when the engine stops it."""

from __future__ import annotations

import atexit
import gc
import os
import signal
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pulumi

from .errors import EsteiraError

if TYPE_CHECKING:
    from collections.abc import Iterator

_HOST = "pulumi-language-python-exec"
_MESSAGE_SHOWN = 32
"""The exit status by which that host knows that the error has been shown already."""


def leave_garbage() -> None:
    """Do without the garbage collector: the program lives for seconds, and all that it holds goes with its process.

    Walking everything that Pulumi's packages hold, again and again while they are imported and at the end, takes
    longer than the rest of the program's own work.
    """
    gc.disable()
    # What is frozen is not looked at when Python ends.
    atexit.register(gc.freeze)


def end_quietly() -> None:
    """End at once, and silently, when the engine interrupts the program.

    When a resource fails, the engine interrupts the Python program, whose KeyboardInterrupt tracebacks would bury the
    error that the engine has just shown. The run's exit status is the engine's own.
    """
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))


@contextmanager
def told_to_the_engine() -> Iterator[None]:
    """Show an EsteiraError as the engine's last word on the program.

    The engine's host shows it too, but adds "an unhandled error occurred" below it.
    """
    try:
        yield
    except EsteiraError as error:
        if not any(_HOST in word for word in sys.orig_argv):
            raise
        pulumi.log.error(str(error))
        sys.exit(_MESSAGE_SHOWN)
