"""`./esteira status`: what runs on the servers now, and how it came there."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from cli import console, stacks
from components.arguments import (
    container_command,
    create_options,
    edge_mark,
    limits,
    owner_of,
    release_fingerprint,
)
from components.errors import EsteiraError
from components.history import Entry
from components.settings import ServerSettings, Settings
from components.source import SourceError, inspect
from components.status import Status, read_statuses

SHOWN_DEPLOYMENTS = 5


@dataclass(frozen=True)
class Row:
    """One server, as the table shows it."""

    server: ServerSettings
    status: Status | EsteiraError
    difference: str | None
    """What differs from the declaration, in words; None where nothing does, or it cannot be told."""


def run(root: Path, stack: str | None, server: str | None, *, as_json: bool) -> int:
    """Print the table, or JSON; return 1 where a server could not be asked, else 0."""
    name = stacks.choose(root, stack)
    declared = stacks.declared(root, name)
    settings = stacks.only(declared.settings, server)
    commit = declared_commit(settings)
    found = read_statuses(settings)
    rows = [
        Row(one, found[one.name], _difference(declared, one, found[one.name], commit))
        for one in settings.servers
    ]
    if as_json:
        console.say(json.dumps(as_data(settings, commit, rows), indent=2))
    else:
        for line in as_text(settings, commit, rows):
            console.say(line)
    return 1 if any(isinstance(row.status, EsteiraError) for row in rows) else 0


def declared_commit(settings: Settings) -> str | None:
    """Return the commit that an `up` would deploy now; None where it cannot be told."""
    try:
        return inspect(settings).commit
    except SourceError:
        return None


def fingerprint_of(settings: Settings, server: ServerSettings, commit: str) -> str:
    """Return the fingerprint that a release of a commit has with the settings as they are declared now."""
    return release_fingerprint(
        settings, create_options(settings, server, commit), container_command(settings.container)
    )


def _difference(
    declared: stacks.Declared, server: ServerSettings, status: Status | EsteiraError, commit: str | None
) -> str | None:
    if isinstance(status, EsteiraError) or not declared.whole or commit is None:
        return None
    settings = declared.settings
    return status.reading.difference(
        owner=owner_of(settings),
        commit=commit,
        image=None,
        fingerprint=fingerprint_of(settings, server, commit),
        restart=settings.container.restart,
        edge=edge_mark(settings),
        **limits(settings),
    )


# For a person.


def as_text(settings: Settings, commit: str | None, rows: Sequence[Row]) -> list[str]:
    """Return the lines that are shown."""
    head = f"{settings.container.name} in stack {settings.stack}"
    lines = [f"{head}, declared is commit {commit[:7]}" if commit else head, ""]
    table = [["SERVER", "RELEASE", "AGE", "HEALTH", "SINCE", "CONTAINER", "KEPT", "DISK FREE"]]
    remarks = []
    for row in rows:
        if isinstance(row.status, EsteiraError):
            table.append([row.server.name, "unreachable", *["-"] * 6])
            remarks.append(f"{row.server.name}: {row.status}")
            continue
        table.append([row.server.name, *_cells(row.status)])
        if row.status.healthy is False:
            remarks.append(f"{row.server.name}: not healthy: {row.status.health}")
        if row.difference:
            remarks.append(f"{row.server.name}: not as declared: {row.difference}")
    lines += columns(table)
    if remarks:
        lines += ["", *remarks]
    deployments = [
        (row.server.name, entry, row.status.clock)
        for row in rows
        if isinstance(row.status, Status)
        for entry in row.status.history[-SHOWN_DEPLOYMENTS:]
    ]
    if deployments:
        deployments.sort(key=lambda one: one[1].time, reverse=True)
        table = [["LAST DEPLOYMENTS", "SERVER", "COMMIT", "RESULT", "TOOK", "WHO"]]
        table += [_deployment(*one) for one in deployments]
        lines += ["", *columns(table)]
    return lines


def _cells(status: Status) -> list[str]:
    serving = status.reading.serving
    kept = str(len(status.kept))
    disk = f"{status.disk_free / 1e9:.1f} GB" if status.disk_free is not None else "-"
    if serving is None:
        return ["none", "-", "-", "-", "-", kept, disk]
    times = status.times.get(serving.id)
    age = ago(status.clock, times.created) if times else "-"
    since = (
        ago(status.clock, times.started) if times and times.started and serving.state == "running" else "-"
    )
    health = {True: "healthy", False: "unhealthy", None: "-"}[status.healthy]
    if serving.state != "running":
        health = serving.state
    dirty = "+" if "-dirty-" in _tag(status) else ""
    commit = f"{serving.commit[:7]}{dirty}" if serving.commit else "not ours"
    return [commit, age, health, since, f"{serving.name} {serving.id[:12]}", kept, disk]


def _tag(status: Status) -> str:
    serving = status.reading.serving
    tags = [one.tag for one in status.reading.releases if serving is not None and one.id == serving.id]
    return tags[0] if tags else ""


def _deployment(server: str, entry: Entry, clock: datetime) -> list[str]:
    took = f"{entry.seconds:.1f} s" if entry.seconds is not None else "-"
    origin = f" from {entry.origin}" if entry.origin else ""
    result = f"{entry.result}: {short(entry.cause)}" if entry.cause else entry.result
    when = f"{entry.time:%Y-%m-%d %H:%M} ({ago(clock, entry.time)} ago)"
    return [when, server, entry.commit[:7], result, took, f"{entry.who} as {entry.user}{origin}"]


def short(cause: str, most: int = 80) -> str:
    """Return a cause cut to what fits a table."""
    return cause if len(cause) <= most else cause[: most - 1] + "…"


def ago(now: datetime, then: datetime) -> str:
    """Return how long ago a time is, in its largest unit."""
    seconds = max((now - then) // timedelta(seconds=1), 0)
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"


def columns(table: Sequence[Sequence[str]]) -> list[str]:
    """Return the rows of a table as lines, each column as wide as its widest cell."""
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in table
    ]


# For a program.


def as_data(settings: Settings, commit: str | None, rows: Sequence[Row]) -> dict[str, Any]:
    """Return what `--json` prints."""
    return {
        "stack": settings.stack,
        "application": settings.container.name,
        "declaredCommit": commit,
        "servers": [_row_data(row) for row in rows],
    }


def _row_data(row: Row) -> dict[str, Any]:
    if isinstance(row.status, EsteiraError):
        return {"server": row.server.name, "reachable": False, "error": str(row.status)}
    status = row.status
    serving = status.reading.serving
    return {
        "server": row.server.name,
        "reachable": True,
        "difference": row.difference,
        "serving": None
        if serving is None
        else {
            **_container_data(status, serving.id, serving.commit, _tag(status), serving.image),
            "container": serving.name,
            "state": serving.state,
            "restarts": serving.restarts,
            "healthy": status.healthy,
            "health": status.health,
            "since": _iso(status.times[serving.id].started) if serving.id in status.times else None,
        },
        "kept": [
            {
                **_container_data(status, one.id, one.commit, one.tag, one.image),
                "stopped": _iso(status.times[one.id].finished),
            }
            for identity in status.kept
            for one in status.reading.releases
            if one.id == identity
        ],
        "diskFreeBytes": status.disk_free,
        "diskBytes": status.disk_size,
        "deployments": [_entry_data(entry) for entry in reversed(status.history)],
    }


def _container_data(status: Status, identity: str, commit: str, tag: str, image: str) -> dict[str, Any]:
    times = status.times.get(identity)
    return {
        "commit": commit or None,
        "dirty": "-dirty-" in tag,
        "digest": image.rpartition("@")[2] or None,
        "id": identity,
        "created": _iso(times.created) if times else None,
    }


def _entry_data(entry: Entry) -> Mapping[str, Any]:
    return {
        "time": _iso(entry.time),
        "commit": entry.commit,
        "tag": entry.tag,
        "digest": entry.digest,
        "who": entry.who,
        "user": entry.user,
        "from": entry.origin or None,
        "found": entry.found or None,
        "seconds": entry.seconds,
        "result": entry.result,
        "cause": entry.cause or None,
    }


def _iso(time: datetime | None) -> str | None:
    return f"{time:%Y-%m-%dT%H:%M:%SZ}" if time else None
