"""`./esteira ci-up` and `./esteira ci-unlock`: a deployment in a pipeline, and what a cancelled one leaves.

A state that is kept in files (a folder, an object store, PostgreSQL) is locked by a run of `pulumi up` with a lock that
outlives it: when GitLab cancels a job and its processes are killed, the next job would find the stack locked for ever.
`pulumi cancel` takes every lock of the stack away, also one that somebody else's run holds right now, so it may only be
used when the lock is known to be this job's own. That is known from three things:

1. `ci-up` writes a note before it starts Pulumi and removes it when Pulumi has ended by itself, whatever the result; an
   engine that ends by itself has given its lock back. A note is left only by a job that was killed.
2. The engine writes its event log only once it holds the lock; refused, it writes none (tried, 3.260). With a log, the
   lock was this job's; and while it is there nobody else can hold one, because only one run can.
3. A log that ends with the engine's last event is that of a run which was giving its lock back when it was killed. The
   lock may be another's by now, and is left alone; this takes a moment, and `pulumi cancel` by hand is the way out.

Two jobs of one stack do not run at once (`resource_group`), so that no other job's note is here. The process is waited
for first, and ended if it does not end: a run that still lives is never unlocked. Pulumi Cloud needs none of this: its
lock is a lease, which ends by itself when nobody renews it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

from cli import console, shell
from components.errors import EsteiraError

WAIT_SECONDS = 60.0
"""How long a run that was told to stop may take to end in order; GitLab gives an after_script five minutes."""

_FILE_BACKENDS = frozenset({"file", "s3", "gs", "azblob", "postgres"})


def _folder(root: Path) -> Path:
    return root / ".esteira" / "ci"


def _note(root: Path, stack: str) -> Path:
    return _folder(root) / f"{_flat(stack)}.running"


def _log(root: Path, stack: str) -> Path:
    return _folder(root) / f"{_flat(stack)}.events.json"


def _flat(stack: str) -> str:
    """Return a stack's name as that of a file: Pulumi Cloud's may be ``organisation/project/stack``."""
    return stack.replace("/", "-")


def up(root: Path, stack: str, command: str = "pulumi") -> int:
    """Run `pulumi up` on a stack and return its exit status; leave a note while it runs."""
    _folder(root).mkdir(mode=0o700, parents=True, exist_ok=True)
    note, log = _note(root, stack), _log(root, stack)
    log.unlink(missing_ok=True)
    environment = {**os.environ, "PULUMI_DEBUG_COMMANDS": "true"}  # without it the CLI knows no --event-log
    line = [command, "up", "--stack", stack, "--yes", "--non-interactive", "--event-log", str(log)]
    note.touch()
    with _passing_on_signals() as started:
        process = subprocess.Popen(line, cwd=root, env=environment)
        started.append(process)
        status = process.wait()
    if status >= 0:
        note.unlink()
        log.unlink(missing_ok=True)
    return status if status >= 0 else 128 - status


@contextmanager
def _passing_on_signals() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Pass on the signals that cancel a job, to what is in the list, as the one that Pulumi stops in order for.

    The handlers are there before the process starts: a signal that has a handler is one that a child does not ignore,
    even where this job's shell runs with SIGINT ignored, as in the background.
    """
    started: list[subprocess.Popen[bytes]] = []

    def pass_on(*_: object) -> None:
        for process in started:
            process.send_signal(signal.SIGINT)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield started
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def unlock(root: Path, stack: str, environ: Mapping[str, str], command: str = "pulumi") -> None:
    """Give a stack free that this job's `ci-up` locked and could not give back; do nothing in every other case."""
    note, log = _note(root, stack), _log(root, stack)
    if not note.exists():
        return
    _end(log)
    backend = urlsplit(environ.get("PULUMI_BACKEND_URL", "")).scheme
    if not log.exists():
        console.say(f"This job never held the stack {stack}.")
    elif backend not in _FILE_BACKENDS:
        console.say(f"The lock of the stack {stack} is a lease of Pulumi Cloud and ends by itself.")
    elif _was_over(log):
        console.say(
            f"The run was over when it was killed, so the stack {stack} is most likely free. If not, and nobody "
            f"deploys: pulumi cancel --stack {stack}"
        )
    else:
        console.say(f"This job was cut off: giving the stack {stack} free.")
        try:
            shell.run([command, "cancel", "--yes", "--stack", stack], cwd=root, timeout=120)
        except shell.CommandError as error:
            raise EsteiraError(
                f"The stack {stack} could not be given free ({error}). When nobody deploys: "
                f"pulumi cancel --stack {stack}"
            ) from None
    note.unlink()
    log.unlink(missing_ok=True)


def _end(log: Path) -> None:
    """Wait for a run that was told to stop; then make it end."""
    for number in (signal.SIGINT, signal.SIGKILL):
        for process in _runs(log):
            with suppress(ProcessLookupError):
                os.kill(process, number)
        until = time.monotonic() + WAIT_SECONDS
        while time.monotonic() < until:
            if not _runs(log):
                return
            time.sleep(0.2)
    raise EsteiraError("The run of Pulumi does not end; its lock is left alone.")


def _runs(log: Path) -> list[int]:
    """Find the processes that have this job's log in their command line: nobody else's run has."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            if os.fsencode(log) in file.read_bytes().split(b"\0"):
                found.append(int(file.parent.name))
    return found


def _was_over(log: Path) -> bool:
    with suppress(OSError, ValueError, AttributeError):
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        return bool(lines) and "cancelEvent" in json.loads(lines[-1])
    return False
