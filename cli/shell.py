"""Runs other programs: bounded in time, and every failure is a sentence."""

from __future__ import annotations

import ctypes
import os
import shlex
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from components.errors import EsteiraError

DISK_FULL = ("No space left on device", "Disk quota exceeded")


class CommandError(EsteiraError):
    """A program that failed. ``output`` is what it printed (stdout, then stderr)."""

    def __init__(self, message: str, output: str = "") -> None:
        """Keep the output for whoever can make a better sentence of it."""
        super().__init__(message)
        self.output = output


def run(
    command: Sequence[str],
    *,
    timeout: float = 60,
    check: bool = True,
    environment: Mapping[str, str] | None = None,
    stdin: bytes | None = None,
    cwd: Path | None = None,
    outlive: bool = True,
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end and return what it printed.

    ``timeout`` is in seconds; ``environment`` is laid over this process's. Programs speak English here, because their
    messages are read by :func:`explain`. The program gets a process group of its own, which is ended as a whole;
    without ``outlive`` it is killed with this process, however that ends. Raises :class:`CommandError` when it is
    missing, takes too long, or (with ``check``) fails.
    """
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "LC_ALL": "C.UTF-8", **(environment or {})},
            cwd=cwd,
            start_new_session=True,
            preexec_fn=None if outlive else _die_with_parent,  # noqa: PLW1509 - there are no threads here
        )
    except FileNotFoundError:
        raise CommandError(f"The program {command[0]} is not installed.") from None
    except PermissionError:
        raise CommandError(f"The program {command[0]} may not be executed.") from None
    try:
        out, err = process.communicate(stdin, timeout=timeout)
    except subprocess.TimeoutExpired:
        _end(process)
        raise CommandError(f"`{shown(command)}` did not end within {timeout:g} seconds.") from None
    except BaseException:
        _end(process)
        raise
    result = subprocess.CompletedProcess(
        command, process.returncode, out.decode(errors="replace"), err.decode(errors="replace")
    )
    if check and result.returncode != 0:
        raise CommandError(explain(command, result), result.stdout + result.stderr)
    return result


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG, prctl(2)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a program's whole process group: asked first, since a package manager must not stop just anywhere."""
    for word in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, word)
        except ProcessLookupError:
            break
        except PermissionError:  # sudo's children are root's
            subprocess.run(["sudo", "-n", "kill", f"-{word.name[3:]}", "--", f"-{process.pid}"], check=False)
        with suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=10)
            return


def explain(command: Sequence[str], result: subprocess.CompletedProcess[str]) -> str:
    """Make the sentences of a failed program: the known causes by name, else its last lines."""
    output = (result.stderr.strip() or result.stdout.strip()) or "it said nothing"
    if any(word in result.stdout + result.stderr for word in DISK_FULL):
        return (
            f"The disk is full: `{shown(command)}` could not write. Free some space (df -h), then try again."
        )
    lines = "\n".join(output.splitlines()[-6:])
    return f"`{shown(command)}` failed with status {result.returncode}: {lines}"


def shown(command: Sequence[str]) -> str:
    """Write a command as it would be typed, cut where it gets long."""
    text = shlex.join(command).replace("\n", " ")
    return text if len(text) <= 120 else text[:117] + "..."


def has(program: str) -> bool:
    """Tell whether a program is on PATH or where administrators' programs are."""
    return find(program) is not None


def find(program: str) -> str | None:
    """Find a program; ordinary users have no sbin on their PATH."""
    return shutil.which(program) or shutil.which(program, path="/usr/local/sbin:/usr/sbin:/sbin")


def as_root(command: Sequence[str]) -> list[str]:
    """Put what root's rights need before a command. Call only where :func:`can_be_root`."""
    return list(command) if os.geteuid() == 0 else ["sudo", "-n", "--", *command]


def can_be_root() -> bool:
    """Tell whether this is root, or sudo makes it root without asking."""
    if os.geteuid() == 0:
        return True
    return has("sudo") and run(["sudo", "-n", "true"], timeout=10, check=False).returncode == 0


def pipe(producer: Sequence[str], consumer: Sequence[str], *, timeout: float) -> str:
    """Run ``producer | consumer`` and return the consumer's output. Both must succeed: a cut stream is an error."""
    processes: list[subprocess.Popen[bytes]] = []
    try:
        first = subprocess.Popen(
            producer, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
        )
        processes.append(first)
        second = subprocess.Popen(
            consumer,
            stdin=first.stdout,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        processes.append(second)
        assert first.stdout is not None
        assert first.stderr is not None
        first.stdout.close()
        out, err = second.communicate(timeout=timeout)
        complaints = first.stderr.read()
        first.wait(timeout=10)
    except BaseException as error:
        for process in processes:
            _end(process)
        if isinstance(error, subprocess.TimeoutExpired):
            raise CommandError(f"`{shown(consumer)}` did not end within {timeout:g} seconds.") from None
        raise
    for command, status, text in (
        (consumer, second.returncode, err.decode(errors="replace")),
        (producer, first.returncode, complaints.decode(errors="replace")),
    ):
        if status != 0:
            raise CommandError(explain(command, subprocess.CompletedProcess(command, status, "", text)), text)
    return out.decode(errors="replace").strip()
