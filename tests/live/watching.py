"""Watches the command lines of all processes of this machine, those on the tests' servers included."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class ProcessList:
    """Every command line that was seen while watching."""

    def __init__(self) -> None:
        self.seen: set[bytes] = set()
        self.samples = 0
        self._end = threading.Event()

    def watch(self) -> None:
        """Look at all processes again and again; one already seen with its command line is not read again."""
        known: dict[str, bytes] = {}
        while not self._end.is_set():
            pids = [entry for entry in os.listdir("/proc") if entry.isdigit()]  # noqa: PTH208 - the quickest way
            for pid in pids:
                # A process is new twice: as its parent's copy, and after exec; so the young are read again.
                with contextlib.suppress(OSError), open(f"/proc/{pid}/cmdline", "rb") as file:  # noqa: PTH123
                    line = file.read()
                    if known.get(pid) != line:
                        known[pid] = line
                        self.seen.add(line)
            self.samples += 1
            self._end.wait(0.004)

    def stop(self) -> None:
        """End the watching."""
        self._end.set()

    def holds(self, text: str) -> list[str]:
        """Command lines that hold ``text``."""
        return [
            line.replace(b"\0", b" ").decode("utf-8", "replace")
            for line in self.seen
            if text.encode() in line
        ]


@contextmanager
def process_list() -> Iterator[ProcessList]:
    """Watch for as long as the block runs."""
    watched = ProcessList()
    thread = threading.Thread(target=watched.watch, daemon=True)
    thread.start()
    try:
        yield watched
    finally:
        watched.stop()
        thread.join()
