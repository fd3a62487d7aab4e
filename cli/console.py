"""What the command line says to a person: one line a step, colours on a terminal only."""

from __future__ import annotations

import os
import sys
from typing import TextIO


def _styled(text: str, code: str, stream: TextIO) -> str:
    if stream.isatty() and "NO_COLOR" not in os.environ:
        return f"\033[{code}m{text}\033[0m"
    return text


def say(text: str = "") -> None:
    """Print one line."""
    print(text, flush=True)


def step(text: str) -> None:
    """Announce what is being done now; for what takes longer than a moment."""
    print(_styled("» ", "36", sys.stdout) + text, flush=True)


def banner(title: str, *lines: str) -> None:
    """Say something that must not be overlooked."""
    width = max(len(line) for line in (title, *lines)) + 4
    print(_styled("=" * width, "33", sys.stdout))
    print("  " + _styled(title, "1;33", sys.stdout))
    for line in lines:
        print("  " + line)
    print(_styled("=" * width, "33", sys.stdout), flush=True)


def error(message: str) -> None:
    """Print the cause of a failure. Whoever calls this ends the program: nothing may follow on the screen."""
    sys.stdout.flush()
    print(_styled("Error: ", "1;31", sys.stderr) + message, file=sys.stderr, flush=True)
