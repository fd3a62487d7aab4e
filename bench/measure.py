"""What is measured: the ways under load, one after the other, and their times without load, in rounds."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.load import Load, Plan
from bench.place import Place, Release, Watch
from bench.results import Result
from bench.ways import Deployed, Esteira, Procedure, Way

Say = Callable[[str], None]

BEFORE = 2.0
"""Seconds of load before the first release, so that all kinds of traffic are under way."""
AFTER = 2.0
"""Seconds of load between two releases: each finds the traffic of the one before recovered."""
HEALTH = {"path": "/health", "interval": 0.1}
"""The health gate's settings, stated in the table: a release is found healthy up to one interval after it is."""


BUCKET = 0.05
"""Seconds of one row of a timeline."""


@dataclass(frozen=True)
class UnderLoad:
    """Releases of one way under load."""

    title: str
    result: Result
    deployed: Sequence[Deployed]
    sessions: int
    """Commands over SSH that the server's sshd saw meanwhile."""

    @property
    def windows(self) -> list[tuple[float, float]]:
        """From the beginning of each release to that of the next."""
        begins = [one.begun for one in self.deployed]
        last = max(record[1] for record in self.result.records)
        return list(zip(begins, [*begins[1:], last], strict=True))

    @property
    def gaps(self) -> list[float]:
        """The longest time without a good answer around each release, seconds."""
        return [self.result.longest_gap(since, until) for since, until in self.windows]

    def usual(self) -> int:
        """Return the number of the release whose gap is the middle one: the one to show."""
        gaps = self.gaps
        return sorted(range(len(gaps)), key=gaps.__getitem__)[len(gaps) // 2]

    def timeline(self, number: int = 0, bucket: float = BUCKET) -> list[tuple[int, int, int, float]]:
        """Show one release, from a second before it to the next.

        Rows of: milliseconds from its beginning, requests that ended well in this bucket, requests that failed in it,
        the longest latency of a good one in milliseconds; new connections and keep-alive clients only.
        """
        begin, end = self.windows[number]
        rows: dict[int, list[float]] = {
            at: [0, 0, 0.0] for at in range(-round(1 / bucket), round((end - begin) / bucket))
        }
        for kind, sent, ended, reason in self.result.records:
            row = rows.get(int((ended - begin) // bucket))
            if kind > 1 or row is None:
                continue
            row[1 if reason else 0] += 1
            if not reason:
                row[2] = max(row[2], ended - sent)
        return [
            (round(at * bucket * 1000), round(good), round(bad), round(worst * 1000, 1))
            for at, (good, bad, worst) in rows.items()
        ]


@dataclass
class Times:
    """Times without load, in seconds, one value a round."""

    own_stop: list[float] = field(default_factory=list)
    """docker stop: the signal to the container's end."""
    own_start: list[float] = field(default_factory=list)
    """docker start: from there until it runs."""
    own_boot: list[float] = field(default_factory=list)
    """The application's: from there to its first answer outside."""
    own: list[float] = field(default_factory=list)
    """The three together: docker stop && docker start, and nothing else."""
    procedure: list[float] = field(default_factory=list)
    """The procedure's command line: from the stop signal to the first answer outside."""
    recreate: list[float] = field(default_factory=list)
    """recreate: from the stop signal to healthy, which is its gate's first good answer."""
    recreate_answer: list[float] = field(default_factory=list)
    """recreate: from the stop signal to the first answer outside."""
    switched: list[float] = field(default_factory=list)
    """blueGreen: from "image on the server" to "switched"."""
    switched_boot: list[float] = field(default_factory=list)
    """The application's own boot in it: from the candidate's start to its serving."""
    switched_beyond: list[float] = field(default_factory=list)
    """The difference of the two."""
    outage: dict[str, list[float]] = field(default_factory=dict)
    """Longest time between two good answers, asked every few milliseconds, by way."""
    wall: dict[str, list[float]] = field(default_factory=dict)
    """The whole release, by way."""
    command: list[float] = field(default_factory=list)
    """One docker command that does next to nothing, on the server: how quick, or disturbed, the machine is."""
    calls: dict[str, list[int]] = field(default_factory=dict)
    """Docker commands on the server, by phase."""

    def note(self, way: Way, deployed: Deployed, outage: float) -> None:
        """Keep what is measured of every way."""
        self.outage.setdefault(way.title, []).append(outage)
        self.wall.setdefault(way.title, []).append(deployed.ended - deployed.begun)
        for command in deployed.commands:
            self.calls.setdefault(command.name, []).append(command.calls)


def under_load(place: Place, way: Way, releases: Sequence[Release], rate: float, say: Say) -> UnderLoad:
    """Release one after the other while the load goes on."""
    records = Path(place.builder.folder) / f"records-{way.title}.json"
    deployed = []
    sessions = place.sessions()
    with (load := Load(Plan(place.server.host, way.port, str(records), rate=rate))):
        time.sleep(BEFORE)
        for number, release in enumerate(releases, start=1):
            deployed.append(way.deploy(release))
            took = deployed[-1].ended - deployed[-1].begun
            say(f"  {way.title}: release {number} of {len(releases)} under load, {took:.1f} s")
            time.sleep(AFTER)
    return UnderLoad(way.title, load.result, deployed, place.sessions() - sessions)


def times(place: Place, rounds: int, say: Say) -> Times:
    """Measure all ways in turn, in each round, without load: what disturbs the machine disturbs all of them."""
    procedure = Procedure(place, name="by-procedure", port=8001)
    recreate = Esteira(place, "recreate", name="by-recreate", port=8002, health=HEALTH)
    blue_green = Esteira(place, "blueGreen", name="by-edge", port=8003, health=HEALTH, rollout={"watch": 0})
    first, second = place.release(), place.release()
    procedure.begin(first)
    procedure.deploy(second)
    for way in (recreate, blue_green):
        way.deploy(first)
    own = itertools.cycle(
        [("own-a", "own-b", second), ("own-b", "own-a", first)]
    )  # stops the one, starts the other
    for name, release in (("own-a", first), ("own-b", second)):
        place.server.docker("create", "--name", name, "-p", "8004:8000", release.image)
    place.server.docker("start", "own-a")
    found = Times()
    for number in range(1, rounds + 1):
        release = place.release()
        _command(place, found)
        _own(place, *next(own), found)
        _procedure(place, procedure, release, found)
        _recreate(place, recreate, release, found)
        _blue_green(place, blue_green, release, found)
        say(f"  times: round {number} of {rounds}")
    return found


def _command(place: Place, found: Times) -> None:
    clock = "read -r now _ </proc/uptime; echo $now"
    begun, ended = place.server.sh(
        f"{clock}; for _ in 1 2 3 4 5 6 7 8 9 10; do docker version >&2; done; {clock}"
    ).split()
    found.command.append((float(ended) - float(begun)) / 10)


def _own(place: Place, stopped: str, started: str, release: Release, found: Times) -> None:
    old, new = _identity(place, stopped), _identity(place, started)
    begun = time.monotonic()
    with Watch(place.server.host, 8004) as watch:
        place.ssh("own", f"docker stop {stopped} && docker start {started}")
        answered = watch.wait_for(release.number)
    kill, die = _event(place, begun, "kill", old), _event(place, begun, "die", old)
    start = _event(place, begun, "start", new)
    found.own_stop.append(die - kill)
    found.own_start.append(start - die)
    found.own_boot.append(answered - start)
    found.own.append(answered - kill)


def _procedure(place: Place, way: Procedure, release: Release, found: Times) -> None:
    old = _identity(place, way.name)
    with Watch(place.server.host, way.port) as watch:
        deployed = way.deploy(release)
        answered = watch.wait_for(release.number)
    found.procedure.append(answered - _event(place, deployed.begun, "kill", old))
    found.note(way, deployed, watch.longest_gap())


def _recreate(place: Place, way: Esteira, release: Release, found: Times) -> None:
    old = _identity(place, way.name)
    with Watch(place.server.host, way.port) as watch:
        deployed = way.deploy(release)
        answered = watch.wait_for(release.number)
    kill = _event(place, deployed.begun, "kill", old)
    found.recreate.append(place.logged(way.name, "asked")[0] - kill)
    found.recreate_answer.append(answered - kill)
    found.note(way, deployed, watch.longest_gap())


def _blue_green(place: Place, way: Esteira, release: Release, found: Times) -> None:
    with Watch(place.server.host, way.port) as watch:
        deployed = way.deploy(release)
        watch.wait_for(release.number)
    image = deployed.said_at("pulled ", "is on the server already")
    switched = deployed.said_at("switched to ")
    start = _event(place, deployed.begun, "start", _identity(place, way.name))
    boot = place.logged(way.name, "serving")[0] - start
    found.switched.append(switched - image)
    found.switched_boot.append(boot)
    found.switched_beyond.append(switched - image - boot)
    found.note(way, deployed, watch.longest_gap())


def _identity(place: Place, name: str) -> str:
    return place.server.docker("inspect", "--format", "{{.Id}}", name)


def _event(place: Place, since: float, what: str, container: str) -> float:
    """Give when something happened to a container, for the first time since then."""
    events = place.events(since)
    for at, action, identity in events:
        if action == what and identity == container:
            return at
    raise AssertionError(f"no event {what} of {container} among {events}")
