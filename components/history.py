"""The release log: what each server writes down of its deployments, one JSON line each (server/history.sh)."""

from __future__ import annotations

import getpass
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True)
class Entry:
    """One deployment of one application on one server."""

    time: datetime
    """When it began."""
    commit: str
    tag: str
    digest: str
    who: str
    """Who asked for it: user and machine, or the user of GitLab and the job."""
    user: str
    """Whose login on the server it was."""
    origin: str
    """The address from which that login came; empty on the server itself."""
    found: str
    """What ran on the server instead of the declared release, in words."""
    seconds: float | None
    """How long it took on this server, from its first phase to its end; None where that is not known."""
    result: str
    """``deployed``, ``unchanged``, ``repaired`` (the release served, something around it did not), ``failed``,
    ``taken back``, ``not switched`` or ``cut off``."""
    cause: str

    @property
    def serves(self) -> bool:
        """Whether the commit served when it was over."""
        return self.result in {"deployed", "unchanged", "repaired"}


def parse_history(lines: Iterable[str]) -> tuple[Entry, ...]:
    """Return the entries in the order of their time; a line that is none (a disk that was full) is passed over."""
    found = []
    for line in lines:
        with suppress(ValueError, KeyError, TypeError, AttributeError):
            found.append(_entry(json.loads(line)))
    return tuple(sorted(found, key=lambda entry: entry.time))


def _entry(values: Mapping[str, object]) -> Entry:
    seconds = values["seconds"]
    text = {
        name: str(values.get(name, ""))
        for name in ("commit", "tag", "digest", "who", "user", "from", "found")
    }
    return Entry(
        time=parse_time(str(values["time"])),
        commit=text["commit"],
        tag=text["tag"],
        digest=text["digest"],
        who=text["who"],
        user=text["user"],
        origin=text["from"],
        found=text["found"],
        seconds=float(seconds) if isinstance(seconds, (int, float)) else None,
        result=str(values["result"]),
        cause=str(values.get("cause", "")),
    )


def parse_time(text: str) -> datetime:
    """Return a time as Docker and ``date -u`` write it, to the second. Raises ValueError."""
    return datetime.strptime(f"{text[:19]}+0000", "%Y-%m-%dT%H:%M:%S%z")


def served_before(entries: Sequence[Entry], serving: str) -> str | None:
    """Return the commit that served before the release with the tag ``serving`` did; None where the log has none.

    Going back is no step forward: after A, B, C and a rollback to B, what served before is A. A release that was built
    from a dirty tree cannot be declared, and is passed over.
    """
    served: list[str] = []
    for entry in entries:
        tag = entry.tag or entry.commit
        if not entry.serves:
            continue
        if tag in served:
            del served[served.index(tag) + 1 :]
        else:
            served.append(tag)
    before = served[: served.index(serving)] if serving in served else served
    return next((tag for tag in reversed(before) if "-dirty-" not in tag), None)


def deployer(environ: Mapping[str, str], machine: str) -> str:
    """Return who deploys, for the release log: in a job of GitLab the person who started it, and the job."""
    person, job = environ.get("GITLAB_USER_LOGIN"), environ.get("CI_JOB_URL") or environ.get("CI_JOB_ID")
    if person and job:
        return f"{person} in {job}"
    try:
        user = getpass.getuser()
    except (KeyError, ImportError, OSError):  # what says that it has no name differs from Python to Python
        # A container may run as any number: OpenShift gives each project one of its own.
        user = f"uid {os.getuid()}"
    return f"{user}@{machine}"
