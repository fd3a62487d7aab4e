"""Runs a local process: its lines as they come, its output for the error, its secrets by stdin.

What is begun here ends with this process, whatever ends it but SIGKILL.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

_running: set[subprocess.Popen[bytes]] = set()
_folders: set[Path] = set()
_lock = threading.Lock()

SHOWN_LINES = 60
"""So many of the last lines of what failed are shown in its error."""
_ENDING_SECONDS = 3.0
"""So long a process that was ended may still write into a folder that is to be removed."""


@dataclass(frozen=True)
class Finished:
    """How a process ended; ``tail`` is the end of both streams as they came."""

    status: int
    stdout: str
    stderr: str
    tail: str


class Transcript:
    """Collects two streams of bytes from two threads, and passes whole lines on as they come."""

    def __init__(self, on_stdout: Callable[[str], None], on_stderr: Callable[[str], None]) -> None:
        self._pass_on = {"stdout": on_stdout, "stderr": on_stderr}
        self._whole: dict[str, list[bytes]] = {"stdout": [], "stderr": []}
        self._rest = {"stdout": b"", "stderr": b""}
        self._tail: deque[str] = deque(maxlen=SHOWN_LINES)
        self._lock = threading.Lock()

    def add(self, stream: str, data: bytes) -> None:
        """Take what came; empty data ends the stream, and with it its last line."""
        with self._lock:
            self._whole[stream].append(data)
            *lines, rest = (self._rest[stream] + data).split(b"\n")
            if not data and rest:
                lines.append(rest)
                rest = b""
            self._rest[stream] = rest
            for line in lines:
                text = line.decode("utf-8", "replace").rstrip("\r")
                self._tail.append(text)
                self._pass_on[stream](text)

    def text(self, stream: str) -> str:
        """Give the whole stream without its last newline, as pulumi-command does."""
        whole = b"".join(self._whole[stream]).decode("utf-8", "replace")
        return whole.removesuffix("\n")

    @property
    def tail(self) -> str:
        """The last lines of both streams, in the order in which they came."""
        return "\n".join(self._tail)


def run(
    argv: Sequence[str],
    *,
    cwd: Path,
    env: Mapping[str, str],
    stdin: str | None = None,
    on_stdout: Callable[[str], None],
    on_stderr: Callable[[str], None],
) -> Finished:
    """Run ``argv`` to its end, in a session of its own, so that all of it can be ended with this process."""
    process = subprocess.Popen(
        argv,
        cwd=cwd,
        env=dict(env),
        stdin=subprocess.PIPE if stdin else subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    with _lock:
        _running.add(process)
    transcript = Transcript(on_stdout, on_stderr)

    def read(stream: IO[bytes], name: str) -> None:
        while data := os.read(stream.fileno(), 65536):
            transcript.add(name, data)
        transcript.add(name, b"")

    def write(stream: IO[bytes], text: str) -> None:
        with contextlib.suppress(BrokenPipeError), stream:
            stream.write(text.encode())

    assert process.stdout is not None
    assert process.stderr is not None
    threads = [
        threading.Thread(target=read, args=(process.stdout, "stdout"), daemon=True),
        threading.Thread(target=read, args=(process.stderr, "stderr"), daemon=True),
    ]
    if stdin and process.stdin is not None:
        threads.append(threading.Thread(target=write, args=(process.stdin, stdin), daemon=True))
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            thread.join()
        status = process.wait()
    finally:
        with _lock:
            _running.discard(process)
    return Finished(status, transcript.text("stdout"), transcript.text("stderr"), transcript.tail)


@contextlib.contextmanager
def private_folder(prefix: str) -> Iterator[Path]:
    """Give a folder that nobody else may look into, and that is gone afterwards."""
    with _lock:
        folder = Path(tempfile.mkdtemp(prefix=prefix))
        _folders.add(folder)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        with _lock:
            _folders.discard(folder)


def end_all() -> None:
    """End every process that is still running, with its children, and remove the private folders."""
    with _lock:
        for process in _running:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
        end = time.monotonic() + _ENDING_SECONDS
        for process in _running if _folders else ():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=max(0, end - time.monotonic()))
        for folder in _folders:
            shutil.rmtree(folder, ignore_errors=True)
