"""Trouble on order: what a network, a proxy, a rate limit or an ageing token does to a client."""

from __future__ import annotations

import re
import threading
import time
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["status", "rate_limit", "timeout", "reset", "expire"]


@dataclass
class Fault:
    """One kind of trouble.

    ``status``: an answer with that status. ``rate_limit``: 429 with Retry-After. ``timeout``: no answer for
    ``seconds``, then the connection ends. ``reset``: the connection is reset. ``expire``: the token of that request is
    expired from then on.

    It befalls the requests from number ``nth`` on (the first is 1; None: every one), ``times`` in a row, counted among
    those that ``method`` and ``path`` (a regular expression, searched in the path) let through. With ``after`` the
    request is carried out first and only its answer is lost.
    """

    kind: Kind
    nth: int | None = None
    times: int = 1
    method: str | None = None
    path: str | None = None
    status: int = 502
    retry_after: int = 1
    seconds: float = 30.0
    after: bool = False
    seen: int = field(default=0, init=False)

    @classmethod
    def parse(cls, text: str) -> Fault:
        """Read ``NTH[+TIMES]:WHAT``; ``*`` as NTH means every request.

        WHAT is a status, ``429[:RETRY_AFTER]``, ``timeout[:SECONDS]``, ``reset`` or ``expire``; an exclamation mark
        behind it means that the request is carried out and only its answer is lost.
        """
        match = re.fullmatch(r"(\*|\d+)(?:\+(\d+))?:(\w+)(?::([\d.]+))?(!?)", text)
        if match is None:
            raise ValueError(
                f"{text!r} is not a fault; write for example 3:503, 5+2:429:1, 7:timeout:10 or 9:reset!"
            )
        nth, times, what, number, after = match.groups()
        fault = cls("status", None if nth == "*" else int(nth), int(times or 1), after=bool(after))
        if what == "429":
            fault.kind, fault.retry_after = "rate_limit", int(float(number or 1))
        elif what.isdigit() and 400 <= int(what) <= 599:
            fault.status = int(what)
        elif what == "timeout":
            fault.kind, fault.seconds = "timeout", float(number or 30)
        elif what in {"reset", "expire"}:
            fault.kind = "reset" if what == "reset" else "expire"
        else:
            raise ValueError(
                f"{text!r} is not a fault: {what} is neither a status nor timeout, reset or expire"
            )
        return fault

    def befalls(self, method: str, path: str) -> bool:
        """Count a request; whether this one has the trouble."""
        if self.method is not None and self.method != method:
            return False
        if self.path is not None and re.search(self.path, path) is None:
            return False
        self.seen += 1
        return self.nth is None or self.nth <= self.seen < self.nth + self.times


class Faults:
    """The faults that are ordered, from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ordered: list[Fault] = []

    def order(self, fault: Fault) -> Fault:
        """Add one."""
        with self._lock:
            self._ordered.append(fault)
        return fault

    def clear(self) -> None:
        """Forget them all."""
        with self._lock:
            self._ordered.clear()

    def next(self, method: str, path: str) -> Fault | None:
        """Count this request in all of them; the first that befalls it."""
        with self._lock:
            hits = [fault for fault in self._ordered if fault.befalls(method, path)]
        return hits[0] if hits else None


@dataclass
class RateLimit:
    """So many requests in each window of ``period`` seconds for one token or address (lib/gitlab/rack_attack.rb)."""

    limit: int
    period: int = 60
    _counts: dict[tuple[str, int], int] = field(default_factory=lambda: defaultdict(int), init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)

    def exceeded(self, who: str) -> dict[str, str] | None:
        """Count a request; the headers of the refusal if it is one too many."""
        now = int(time.time())
        with self._lock:
            window = (who, now // self.period)
            self._counts[window] += 1
            observed = self._counts[window]
        if observed <= self.limit:
            return None
        return limit_headers(self.limit, observed, self.period - now % self.period)


def limit_headers(limit: int, observed: int, retry_after: int) -> dict[str, str]:
    """Write the headers of a 429."""
    reset = int(time.time()) + retry_after
    return {
        "RateLimit-Name": "throttle_authenticated_api",
        "RateLimit-Limit": str(limit),
        "RateLimit-Observed": str(observed),
        "RateLimit-Remaining": "0",
        "RateLimit-Reset": str(reset),
        "RateLimit-ResetTime": time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(reset)),
        "Retry-After": str(retry_after),
    }
