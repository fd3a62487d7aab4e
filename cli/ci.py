"""`./esteira ci-up` and `./esteira ci-unlock`: a deployment in a pipeline, and what a cancelled one leaves.

A state that is kept in files (a folder, an object store, PostgreSQL) is locked by a run of `pulumi up` with a lock that
outlives it: when GitLab cancels a job and its processes are killed, the next job would find the stack locked for ever.
`pulumi cancel` takes every lock of the stack away, also one that somebody else's run holds right now, so it may only be
used when the lock is known to be this job's own:

1. `ci-up` writes a note before it starts Pulumi and removes it when Pulumi has ended by itself, whatever the result; an
   engine that ends by itself has given its lock back. A note is left only by a job that was killed.
2. The note has the run's process and when it began. The lock has its holder's machine, process and time, and Pulumi
   shows them to whoever is refused. So Pulumi is asked for what it must refuse: to give the stack its own name. It
   tries for the lock first, then finds that a stack of that name exists. It changes nothing (tried, 3.260).
3. The process is waited for first, and ended if it does not end: a run that still lives is never unlocked.

Pulumi Cloud's lock is a lease of five minutes, which a live run renews when half of it is over, and as long as it lasts
the next job is refused. `pulumi cancel` ends the lease of whichever run has one, so it is used only where that must be
this job's: its run had the lease, since the engine writes its event log only then, and was seen alive so short a time
ago that the lease cannot be over. Later it is left to end by itself.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from urllib.parse import urlsplit

from cli import console, shell
from components.errors import EsteiraError

WAIT_SECONDS = 60.0
"""How long a run that was told to stop may take to end in order; GitLab gives an after_script five minutes."""
LEASE_SECONDS = 90.0
"""How long after a run was last seen alive Pulumi Cloud's lease is certainly still its own. The CLI renews it with 112
seconds left at the least (3.260: after half of it, looked at every 37.5 s)."""

_SEEN_SECONDS = 5.0
_ATTEMPTS = 5
_PULUMI_SECONDS = 120
_FILE_BACKENDS = frozenset({"file", "s3", "gs", "azblob", "postgres"})
_HOLDER = re.compile(r"created by (?P<user>.*)@(?P<host>[^@\s]+) \(pid (?P<process>\d+)\) at (?P<since>\S+)")
# The process's number is written by what then becomes Pulumi: whenever it is killed, the note has it.
_START = 'echo $$ >>"$0"; exec "$@"'


@dataclass(frozen=True)
class _Note:
    """What a killed job has left: when its run began, as which process, and when it was last seen (since 1970)."""

    since: float
    process: int | None
    seen: float


@dataclass(frozen=True)
class _Holder:
    """Who holds a lock, as the lock says."""

    user: str
    host: str
    process: int
    since: float

    def is_of(self, note: _Note) -> bool:
        # The lock's time has no fractions of a second.
        return (
            self.process == note.process
            and self.host == socket.gethostname()
            and self.since >= int(note.since)
        )


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
    note.write_text(f"{time.time():.3f}\n")
    with _passing_on_signals() as started:
        process = subprocess.Popen(["sh", "-c", _START, str(note), *line], cwd=root, env=environment)
        started.append(process)
        status = _wait(process, note)
    if status >= 0:
        note.unlink()
        log.unlink(missing_ok=True)
    return status if status >= 0 else 128 - status


def _wait(process: subprocess.Popen[bytes], note: Path) -> int:
    while True:
        with suppress(subprocess.TimeoutExpired):
            return process.wait(_SEEN_SECONDS)
        os.utime(note)  # seen alive


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
    left = _read(note)
    if _end(log):
        left = _Note(left.since, left.process, seen=time.time())
    try:
        if _backend(root, command, environ) in _FILE_BACKENDS:
            said = _take_lock_away(root, stack, command, left)
        else:
            said = _end_lease(root, stack, command, left, log)
    except shell.CommandError as error:
        raise EsteiraError(
            f"The stack {stack} could not be given free ({_without_password(str(error))}). When nobody deploys: "
            f"pulumi cancel --stack {stack}"
        ) from None
    console.say(said)
    note.unlink()
    log.unlink(missing_ok=True)


def _read(note: Path) -> _Note:
    """Read what a killed job has left; cut off while it was written, it says that the run never began."""
    lines = note.read_text(encoding="utf-8").split()
    return _Note(
        since=float(lines[0]) if lines else time.time(),
        process=int(lines[1]) if len(lines) > 1 else None,
        seen=note.stat().st_mtime,
    )


def _take_lock_away(root: Path, stack: str, command: str, left: _Note) -> str:
    """Take the lock away if it is this job's, and say what was found; of a state that is kept in files."""
    for _ in range(_ATTEMPTS):
        holders = _holders(root, stack, command)
        others = [holder for holder in holders if not holder.is_of(left)]
        if not others or len(others) == len(holders):
            break
        time.sleep(1)  # another run is just being refused: it has a lock of its own for a moment
    if others:
        return (
            f"The stack {stack} is locked by another run: process {others[0].process} of {others[0].user} on "
            f"{others[0].host}. Its lock is left alone. If that run is no more: pulumi cancel --stack {stack}"
        )
    if not holders:
        return f"This job was cut off, and the stack {stack} is free."
    _cancel(root, stack, command)
    return f"This job was cut off: the stack {stack} has been given free."


def _end_lease(root: Path, stack: str, command: str, left: _Note, log: Path) -> str:
    """End the lease if it must be this job's, and say what was found; of Pulumi Cloud."""
    if not log.exists() or _was_over(log):
        return f"This job was cut off, but not while it held the stack {stack}."
    if time.time() - left.seen > LEASE_SECONDS:
        return f"The lock of the stack {stack} is a lease of Pulumi Cloud and ends by itself within five minutes."
    _cancel(root, stack, command)
    return f"This job was cut off: the stack {stack} has been given free."


def _backend(root: Path, command: str, environ: Mapping[str, str]) -> str:
    """Return the scheme of the backend's address, from where Pulumi takes it too."""
    address = environ.get("PULUMI_BACKEND_URL")
    if not address:
        # Pulumi.yaml may name it, or a log-in that is remembered.
        answer = shell.run([command, "whoami", "--json"], cwd=root, timeout=_PULUMI_SECONDS)
        address = str(json.loads(answer.stdout)["url"])
    return urlsplit(address).scheme


def _holders(root: Path, stack: str, command: str) -> list[_Holder]:
    """Ask who holds the locks of a stack whose state is kept in files. The module's description says how."""
    line = [command, "stack", "rename", stack, "--stack", stack, "--non-interactive", "--color=never"]
    answer = shell.run(line, cwd=root, timeout=_PULUMI_SECONDS, check=False)
    found = [
        _Holder(
            user=one["user"],
            host=one["host"],
            process=int(one["process"]),
            since=datetime.fromisoformat(one["since"].replace("Z", "+00:00")).timestamp(),
        )
        for one in _HOLDER.finditer(answer.stderr)
    ]
    if not found and "already exists" not in answer.stderr:
        raise shell.CommandError(shell.explain(line, answer))
    return found


def _cancel(root: Path, stack: str, command: str) -> None:
    shell.run([command, "cancel", "--yes", "--stack", stack], cwd=root, timeout=_PULUMI_SECONDS)


def _without_password(text: str) -> str:
    """Take the user and the password out of addresses; Pulumi's own errors show them."""
    return re.sub(r"://[^/\s\"]*@", "://****@", text)


def _end(log: Path) -> bool:
    """Wait for a run that was told to stop; then make it end. Tell whether one was there at all."""
    if not _runs(log):
        return False
    for number in (signal.SIGINT, signal.SIGKILL):
        for process in _runs(log):
            with suppress(ProcessLookupError):
                os.kill(process, number)
        until = time.monotonic() + WAIT_SECONDS
        while time.monotonic() < until:
            if not _runs(log):
                return True
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
