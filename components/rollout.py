"""What is done at once when a rollout over several servers fails; the servers' own deadlines make it right in any case.

Before the commands that confirm have begun, every server takes back what it has switched to, on trial, and removes its
candidate. After that the rollout is decided: the servers that have not been confirmed are.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING

from .connection import run_on
from .errors import EsteiraError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from .settings import ServerSettings, Settings

GRACE = 90.0
"""Seconds that a server has to take its switch back, beside the drain time: it may have to wait for a phase's end."""


@dataclass(frozen=True)
class _Phases:
    server: ServerSettings
    undo: str
    confirm: str
    stdin: str


class Rescue:
    """What ends a failed rollout: one for each deployment to several servers."""

    def __init__(self, settings: Settings, commit: str) -> None:
        self._settings = settings
        self._commit = commit
        self._known: dict[str, _Phases] = {}
        self._names: dict[str, str] = {}
        self._lock = Lock()
        self._done = False
        _rescues.append(self)

    def add(self, name: str, phase: str) -> None:
        """Note that the command called ``name`` is part of the rollout."""
        self._names[name] = phase

    def learn(self, server: ServerSettings, undo: str, confirm: str, stdin: str) -> str:
        """Take the texts of a server's commands and what they get by stdin, once that is known; give it back."""
        self._known[server.name] = _Phases(server, undo, confirm, stdin)
        return stdin

    def after(self, failed: Iterable[str]) -> list[str]:
        """End the rollout, once, if a command that failed is part of it; give sentences about what was not done."""
        phases = {self._names[name] for name in failed if name in self._names}
        with self._lock:
            if not phases or self._done:
                return []
            self._done = True
        if "confirm" in phases:
            return self._everywhere("confirm")
        return self._everywhere("undo")

    def _everywhere(self, phase: str) -> list[str]:
        known = list(self._known.values())
        end = self._confirm if phase == "confirm" else self._undo
        with ThreadPoolExecutor(max_workers=min(32, len(known) or 1)) as pool:
            return [said for said in pool.map(end, known) if said]

    def _undo(self, one: _Phases) -> str | None:
        why = self._run(one, one.undo)
        rest = self._settings.rollout.confirm_timeout
        return why and (
            f"Server {one.server.name} was not reached to take commit {self._commit[:7]} back: {why} Where it had "
            f"switched already it does so by itself, within {rest:g} s of its switch. When it can be reached again, "
            "`pulumi up` of the commit that is to run puts it right."
        )

    def _confirm(self, one: _Phases) -> str | None:
        why = self._run(one, one.confirm)
        return why and (
            f"Server {one.server.name} is not confirmed: {why} All servers had switched to commit {self._commit[:7]}, "
            "and those that are not named here run it. When this one can be reached again, `pulumi up` of the same "
            "commit brings it there too."
        )

    def _run(self, one: _Phases, text: str) -> str | None:
        """Run a phase; why it failed, or None."""
        try:
            limit = self._settings.drain_time + GRACE
            status, out, err = run_on(self._settings, one.server, text, one.stdin, timeout=limit)
        except EsteiraError as error:
            return str(error)
        lines = [line for line in (err.strip() or out.strip()).splitlines() if line.strip()]
        return None if status == 0 else (lines[-1].removeprefix("error: ") if lines else "it said nothing.")


_rescues: list[Rescue] = []


def rescue(failed: Iterable[str], tell: Callable[[str], None]) -> None:
    """End all rollouts of this program that one of the failed commands is part of; what was not done is told.

    The engine does it by its error hooks; the rehearsal, which has none, calls this. It never raises: what failed first
    is the cause, and is what is to be shown.
    """
    names = list(failed)
    for one in _rescues:
        for sentence in one.after(names):
            tell(sentence)
