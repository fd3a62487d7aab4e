"""How the program ends when the engine stops it."""

from __future__ import annotations

import os
import signal


def end_quietly() -> None:
    """End at once, and silently, when the engine interrupts the program.

    When a resource fails, the engine interrupts the Python program, whose KeyboardInterrupt tracebacks would bury the
    error that the engine has just shown. The run's exit status is the engine's own.
    """
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))
