"""What a person wants to know of the servers, beyond what a preview reads: health now, ages, disk, the release log."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .arguments import health_values, owner_of
from .errors import EsteiraError
from .history import Entry, parse_history, parse_time
from .reading import Reading, ask_server, parse_reading, reading_values

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import datetime

    from .settings import ServerSettings, Settings

HISTORY_LINES = 50
"""How many of the last deployments a server is asked for."""


@dataclass(frozen=True)
class Times:
    """When a container was made, started last, and stopped last (None where it never was)."""

    created: datetime
    started: datetime | None
    finished: datetime | None


@dataclass(frozen=True)
class Status:
    """One server, asked at one moment."""

    reading: Reading
    clock: datetime
    """What the server's own clock said: ages are counted by it."""
    times: Mapping[str, Times]
    """Id of a release's container to its times."""
    healthy: bool | None
    """What the health gate says now; None where it cannot be asked."""
    health: str
    """Its answer, or why it was not asked."""
    disk_free: int | None
    """Free bytes of the disk that Docker uses."""
    disk_size: int | None
    history: tuple[Entry, ...]
    """The last deployments, the last one last."""

    @property
    def kept(self) -> tuple[str, ...]:
        """The ids of the stopped releases, the one that served last first."""
        serving = self.reading.serving.id if self.reading.serving else ""
        ids = [release.id for release in self.reading.releases if release.id != serving]
        ids = [identity for identity in ids if identity in self.times]

        def stopped(identity: str) -> float:
            finished = self.times[identity].finished
            return finished.timestamp() if finished else 0.0

        return tuple(sorted(ids, key=stopped, reverse=True))


def read_statuses(settings: Settings) -> dict[str, Status | EsteiraError]:
    """Ask all servers at once; the value is the error where a server could not be asked."""

    def read(server: ServerSettings) -> Status | EsteiraError:
        try:
            return read_status(settings, server)
        except EsteiraError as error:
            return error

    with ThreadPoolExecutor(max_workers=min(32, len(settings.servers) or 1)) as pool:
        found = list(pool.map(read, settings.servers))
    return dict(zip((server.name for server in settings.servers), found, strict=True))


def read_status(settings: Settings, server: ServerSettings) -> Status:
    """Ask one server. Raises EsteiraError where it cannot be reached, or Docker does not answer there."""
    values = [
        *reading_values(settings, server, owner_of(settings)),
        *health_values(settings),
        ("edgeImage", settings.edge_image),
        ("history", str(HISTORY_LINES)),
    ]
    return parse_status(server.name, ask_server(settings, server, "status", values))


def parse_status(server: str, text: str) -> Status:
    """Return what the status phase printed. Raises EsteiraError where it is cut short, or something else."""
    reading = parse_reading(server, text)
    lines = text.splitlines()
    try:
        [clock] = [parse_time(words[0]) for words in _words("clock", lines)]
        times = {words[0]: Times(*map(_time, words[1:4])) for words in _words("times", lines)}  # type: ignore[arg-type]
    except (ValueError, TypeError, IndexError):
        raise EsteiraError(f"Server {server} answered with something else than its status.") from None
    healthy, health = None, "nothing serves" if reading.serving is None else "not known"
    for words in _words("health", lines):
        healthy, health = {"yes": True, "no": False}.get(words[0]), " ".join(words[1:])
    free = size = None
    for words in _words("disk", lines):
        with suppress(ValueError, IndexError):
            free, size = int(words[0]), int(words[1])
    history = parse_history(line.partition(" ")[2] for line in lines if line.startswith("history "))
    return Status(reading, clock, times, healthy, health, free, size, history)


def _words(kind: str, lines: Iterable[str]) -> list[list[str]]:
    return [line.split(" ")[1:] for line in lines if line.startswith(f"{kind} ")]


def _time(text: str) -> datetime | None:
    """Return a time of Docker's; None for the year 1, which stands for never."""
    return None if text.startswith("0001-") else parse_time(text)
