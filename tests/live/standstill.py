"""Time in which this machine stood still: a machine that is shared does so now and then, for up to half a minute.

What is waited for stands still with it, so that time is not counted where a test waits at most so long.
"""

from __future__ import annotations

import threading
import time

_TICK = 0.25
_NOTICED = 1.0
"""Seconds that a tick must be late to count: less is a busy machine's usual way."""


class _Watch:
    """A thread that wakes every tick; whenever it wakes much too late, nobody else has run either."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ticked = time.monotonic()
        self._lost = 0.0
        self.moments: list[float] = []
        """How long each standstill was, seconds."""
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            time.sleep(_TICK)
            with self._lock:
                late = self._late()
                if late:
                    self._lost += late
                    self.moments.append(late)
                self._ticked = time.monotonic()

    def _late(self) -> float:
        late = time.monotonic() - self._ticked - _TICK
        return late if late > _NOTICED else 0.0

    def usable(self) -> float:
        with self._lock:
            # What the thread has not seen yet counts already.
            return time.monotonic() - self._lost - self._late()


_watch = _Watch()


def usable_time() -> float:
    """Give the seconds, from some beginning, in which this machine did not stand still."""
    return _watch.usable()


def report() -> str | None:
    """Tell when the machine stood still since the tests began, or None."""
    if not _watch.moments:
        return None
    return (
        f"this machine stood still {len(_watch.moments)} times, {sum(_watch.moments):.0f} s in all, "
        f"{max(_watch.moments):.0f} s at most"
    )
