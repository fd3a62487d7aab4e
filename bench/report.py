"""The bench's table: as text, as a page of the docs, and as JSON for pictures. Every figure in them was measured."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path

from bench.latest import Moved
from bench.load import STREAMS
from bench.measure import HEALTH, Times, UnderLoad
from bench.program import Fleet, NoOp, Rollback
from bench.results import median

RECREATE_BOUND = 0.3
"""Seconds that recreate may add to the container's own stop, start and boot."""
SWITCH_BOUND = 1.0
"""Seconds that blueGreen may take beyond the application's own boot, from the image on the server to switched."""
NO_OP_BOUND = 1.5
"""How many times as long as an empty program an `up` without a change may take."""
ROLLBACK_BOUND = 0.5
"""What part of a forward deployment's own work a rollback's may be."""
FLEET_BOUNDS = {4: 2.0, 8: 3.0}
"""Servers to how many times as long as one server they may take."""
COMMANDS_BOUND = 3
"""Commands over SSH that a server may see in a deployment, besides the readings."""
PREVIEW_SERVERS, PREVIEW_BOUND = (50, 100, 200), 10.0
"""Servers of the previews, and seconds that the largest may take."""
LINEAR_BOUND = 1.5
"""How many times as much a server may cost in the second half of the largest preview as in the first: growth in a line
is 1, growth with the square is 2; a measurement is not exact."""


@dataclass(frozen=True)
class Promise:
    """A figure that must hold."""

    text: str
    measured: str
    """The figure with its unit, or why there is none."""
    bound: str
    holds: bool | None
    """None where it cannot be measured here."""

    @property
    def verdict(self) -> str:
        """Say it in one word or two."""
        return {True: "holds", False: "DOES NOT HOLD", None: "not measured"}[self.holds]


@dataclass(frozen=True)
class Machine:
    """Where it was measured."""

    processor: str
    cores: int
    memory_gigabytes: float
    system: str
    kernel: str
    docker: str
    edge: str
    python: str
    engine: str
    """Version of the Pulumi CLI, or that there is none."""
    date: str
    waiting: float
    """Processes that ran or waited to, on average of the minute before the bench: other work on the machine."""

    @classmethod
    def this(cls, docker: str, edge: str, engine: str | None) -> Machine:
        """Describe this one."""
        information = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        processor = next(
            (line.partition(":")[2] for line in information if line.startswith("model name")), ""
        )
        memory = Path("/proc/meminfo").read_text(encoding="utf-8").split()[1]
        return cls(
            processor=" ".join(processor.split()) or platform.machine(),
            cores=len(os.sched_getaffinity(0)),
            memory_gigabytes=round(int(memory) / 1024**2, 1),
            system=platform.freedesktop_os_release().get("PRETTY_NAME", platform.system()),
            kernel=platform.release(),
            docker=docker,
            edge=edge,
            python=platform.python_version(),
            engine=engine or "none",
            date=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
            waiting=os.getloadavg()[0],
        )


@dataclass(frozen=True)
class Report:
    """All that was measured."""

    machine: Machine
    boot: float
    rate: float
    loads: Sequence[UnderLoad]
    adoption: UnderLoad
    """One release: blueGreen takes over what the procedure runs."""
    times: Times
    latest: Sequence[Moved]
    """The procedure's way of moving the tag, and Esteira's."""
    no_op: NoOp
    rollback: Rollback
    fleets: Sequence[Fleet]
    """The first is one server."""
    fleet_boot: float
    """Seconds that the application of the fleets takes from its start to serving."""
    previews: Mapping[int, float]
    """Servers to the seconds of a preview's program."""
    seconds: float
    """How long it all took."""

    def promises(self) -> list[Promise]:
        """Return every figure that must hold, with what was measured."""
        return [*self._promises_of_a_release(), *self._promises_of_a_run(), *self._promises_of_many_servers()]

    def _promises_of_a_release(self) -> list[Promise]:
        blue_green, found = self.loads[-1], self.times
        failed, releases = len(blue_green.result.failures), len(blue_green.deployed)
        beyond, added = median(found.switched_beyond), median(found.recreate) - median(found.own)
        commands = blue_green.sessions / releases
        return [
            Promise(
                f"blueGreen: failed requests in {releases} releases under load", f"{failed}", "0", failed == 0
            ),
            Promise(
                "blueGreen: from the image on the server to switched, beyond the boot",
                _seconds(beyond),
                _seconds(SWITCH_BOUND),
                beyond <= SWITCH_BOUND,
            ),
            Promise("blueGreen: SSH commands a release on one server", f"{commands:g}", "2", commands <= 2),
            Promise(
                "recreate: stop to healthy, more than the container's own",
                _seconds(added),
                _seconds(RECREATE_BOUND),
                added <= RECREATE_BOUND,
            ),
        ]

    def _promises_of_a_run(self) -> list[Promise]:
        found = []
        text = "a no-op up beside an empty program of the same engine"
        if self.no_op.empty:
            ratio = median(self.no_op.program) / median(self.no_op.empty)
            found.append(Promise(text, f"{ratio:.2f} x", f"{NO_OP_BOUND:g} x", ratio <= NO_OP_BOUND))
        else:
            found.append(Promise(text, "no engine here", f"{NO_OP_BOUND:g} x", None))
        forward = median(self._work("forward"))
        for kind, words in (("back", "with the registry"), ("alone", "without the registry")):
            part = median(self._work(kind)) / forward
            found.append(
                Promise(
                    f"a rollback {words}: its own work beside the release's forward deployment",
                    f"{part:.2f} x",
                    f"{ROLLBACK_BOUND:g} x",
                    part <= ROLLBACK_BOUND,
                )
            )
        return found

    def _promises_of_many_servers(self) -> list[Promise]:
        found = []
        one = median(self.fleets[0].seconds)
        for fleet in self.fleets[1:]:
            ratio, bound = median(fleet.seconds) / one, FLEET_BOUNDS[fleet.servers]
            found.append(
                Promise(
                    f"{fleet.servers} servers beside 1, wall time",
                    f"{ratio:.2f} x",
                    f"{bound:g} x",
                    ratio <= bound,
                )
            )
        most = max(fleet.commands for fleet in self.fleets)
        found.append(
            Promise(
                "SSH commands per server and deployment, readings apart",
                f"{most}",
                f"{COMMANDS_BOUND}",
                most <= COMMANDS_BOUND,
            )
        )
        few, half, all_ = PREVIEW_SERVERS
        slowest = self.previews[all_]
        found.append(
            Promise(
                f"the program's own time in a preview of {all_} servers",
                _seconds(slowest),
                _seconds(PREVIEW_BOUND),
                slowest <= PREVIEW_BOUND,
            )
        )
        first = (self.previews[half] - self.previews[few]) / (half - few)
        growth = (slowest - self.previews[half]) / (all_ - half) / first
        found.append(
            Promise(
                f"what one more server costs there, {half} to {all_} beside {few} to {half}",
                f"{growth:.2f} x",
                f"{LINEAR_BOUND:g} x",
                growth <= LINEAR_BOUND,
            )
        )
        return found

    def _work(self, kind: str) -> list[float]:
        return self.rollback.work(kind, median(self.no_op.empty) if self.no_op.empty else 0.0)

    def broken(self) -> list[str]:
        """Say what does not hold."""
        return [
            f"{one.text}: {one.measured}, more than {one.bound}"
            for one in self.promises()
            if one.holds is False
        ]

    def text(self) -> str:
        """Show everything, for a terminal."""
        parts = (
            self._where(),
            self._under_load(),
            self._reasons(),
            self._times(),
            self._commands(),
            self._runs(),
            self._many_servers(),
            self._latest(),
            self._must_hold(),
        )
        return "\n\n".join(parts)

    def _where(self) -> str:
        machine = self.machine
        return (
            f"{machine.date}; {machine.processor}, {machine.cores} cores, {machine.memory_gigabytes:g} GB, "
            f"{machine.system}, Linux {machine.kernel}\n"
            f"Docker Engine {machine.docker}, edge Caddy {machine.edge}, Python {machine.python}, "
            f"Pulumi CLI {machine.engine}\n"
            f"measured in {self.seconds / 60:.0f} minutes; load of the machine before: {machine.waiting:.1f}, "
            f"one docker command: {_seconds(median(self.times.command))}"
        )

    def _under_load(self) -> str:
        loads = self.loads
        rows: list[tuple[str, list[str]]] = [
            ("releases", [str(len(one.deployed)) for one in loads]),
            ("requests", [f"{len(one.result.records):,}" for one in loads]),
            ("  new connections a second", [f"{one.result.rate('new'):.0f}" for one in loads]),
            ("  by keep-alive clients a second", [f"{one.result.rate('keep-alive'):.0f}" for one in loads]),
            ("failed requests", [f"{len(one.result.failures):,}" for one in loads]),
            (
                "  of these long ones cut or refused",
                [str(sum(one.result.failed(kind) for kind in ("slow", *STREAMS))) for one in loads],
            ),
            ("longest gap without a good answer, median", [_seconds(median(one.gaps)) for one in loads]),
            ("  the worst", [_seconds(max(one.gaps)) for one in loads]),
            (
                "time of a release, median",
                [_seconds(median([one.ended - one.begun for one in way.deployed])) for way in loads],
            ),
            ("SSH commands a release", [f"{one.sessions / len(one.deployed):g}" for one in loads]),
            ("client late in sending, at most", [_seconds(one.result.late_worst) for one in loads]),
        ]
        adoption = self.adoption.result
        head = (
            f"Under load: {self.rate:g} new connections a second, 20 keep-alive clients, 5 slow answers, download, "
            "events, upload, WebSocket"
        )
        last = (
            "adoption (blueGreen takes the port over from the procedure's container): not served for "
            f"{_seconds(max(self.adoption.gaps))}, {len(adoption.failures)} requests failed"
        )
        return "\n".join([head, *_table([one.title for one in loads], rows), last])

    def _reasons(self) -> str:
        lines = ["Failed, by kind"]
        for one in [*self.loads, self.adoption]:
            title = "adoption" if one is self.adoption else one.title
            for kind in one.result.kinds:
                why = ", ".join(
                    f"{count} {reason}" for reason, count in one.result.reasons(kind).most_common()
                )
                if why:
                    lines.append(f"  {title:<10} {kind:<11} {one.result.failed(kind):>6}  {why}")
            if not one.result.failures:
                lines.append(f"  {title:<10} none")
        return "\n".join(lines)

    def _times(self) -> str:
        found = self.times
        added = [ours - own for ours, own in zip(found.recreate, found.own, strict=True)]
        more = [theirs - own for theirs, own in zip(found.procedure, found.own, strict=True)]
        rows = [
            ("the container's own stop", found.own_stop),
            ("  start", found.own_start),
            (f"  boot ({self.boot:g} s of it are the application's)", found.own_boot),
            ("  together: docker stop && docker start, to the first answer", found.own),
            ("procedure: stop to the first answer", found.procedure),
            ("  more than the container's own", more),
            ("recreate: stop to healthy", found.recreate),
            (f"  more than the container's own (bound {RECREATE_BOUND:g} s)", added),
            ("  stop to the first answer", found.recreate_answer),
            ("blueGreen: image on the server to switched", found.switched),
            ("  the application's own boot in it", found.switched_boot),
            (f"  beyond it (bound {SWITCH_BOUND:g} s)", found.switched_beyond),
            *((f"outage of {way}", values) for way, values in found.outage.items()),
            *((f"whole release by {way}", values) for way, values in found.wall.items()),
        ]
        rounds, interval = len(found.own), HEALTH["interval"]
        head = f"Without load, {rounds} rounds of all ways in turn, health interval {interval} s: median, least, most"
        return "\n".join([head, *_ranges(rows)])

    def _commands(self) -> str:
        calls = self.times.calls
        return "Docker commands on the server: " + ", ".join(
            f"{phase} {median(counts):g}" for phase, counts in calls.items()
        )

    def _runs(self) -> str:
        by = "by the rehearsal, without an engine" if self.machine.engine == "none" else "by the engine"
        rows = [
            ("an empty program", self.no_op.empty),
            ("no-op: nothing has changed", self.no_op.program),
            ("forward: built by copying a few bytes, pushed, deployed, tagged", self.rollback.small),
            ("  its own work, without an empty program and the boot", self._work("small")),
            (
                "forward: built as by the procedure's Dockerfile, which installs its packages",
                self.rollback.forward,
            ),
            ("  its own work", self._work("forward")),
            ("back to that commit, which the server keeps", self.rollback.back),
            ("  its own work", self._work("back")),
            ("back to it while the registry is down (the tag stays)", self.rollback.alone),
            ("  its own work", self._work("alone")),
        ]
        head = f"Whole runs of `pulumi up --yes` on one server, blueGreen, carried out {by}"
        last = f"  SSH commands of a no-op: {self.no_op.sessions}, one reading for each run of the program"
        return "\n".join([head, *_ranges(rows), last])

    def _many_servers(self) -> str:
        rows = [
            (f"{fleet.servers} server{'s' if fleet.servers > 1 else ''}", fleet.seconds)
            for fleet in self.fleets
        ]
        commands = ", ".join(f"{fleet.commands} with {fleet.servers}" for fleet in self.fleets)
        previews = ", ".join(f"{count} servers {_seconds(took)}" for count, took in self.previews.items())
        return "\n".join(
            [
                f"One release on several servers of this one machine, boot {self.fleet_boot:g} s, watch 0, one batch",
                *_ranges(rows),
                f"  SSH commands per server: {commands}; and {self.fleets[0].readings} for the reading",
                f"The program's own time in a preview, under mocks: {previews}",
            ]
        )

    def _latest(self) -> str:
        rows = [
            ("bytes sent", [f"{one.sent:,}" for one in self.latest]),
            ("bytes received", [f"{one.received:,}" for one in self.latest]),
            ("time", [_seconds(one.seconds) for one in self.latest]),
        ]
        head = "Moving `latest`, on a runner that never had the image"
        return "\n".join([head, *_table([one.title for one in self.latest], rows)])

    def _must_hold(self) -> str:
        promises = self.promises()
        width = max(len(one.text) for one in promises)
        return "\n".join(
            [
                "What must hold",
                *(
                    f"  {one.text:<{width}}  {one.measured:>14} of {one.bound:<7} {one.verdict}"
                    for one in promises
                ),
            ]
        )

    def page(self, command: str) -> str:
        """Give the page for the docs."""
        return (
            "# Measured\n\n"
            f"Written by `{command}`; run it to get your own. All ways were measured in one run on one machine, over\n"
            "the same SSH, in turn. The load's client counts every failure and retries nothing (`bench/load.py`);\n"
            "the procedure is its own command line, word for word but for the names. `bench.json` beside this page\n"
            "holds the figures, and what happened around one release of each way.\n\n"
            "![Requests answered and failed, and the slowest answers, around one release of each way](bench.svg)\n\n"
            f"```text\n{self.text()}\n```\n"
        )

    def json(self) -> str:
        """Give the figures for machines."""
        return json.dumps(
            {
                "machine": asdict(self.machine),
                "boot": self.boot,
                "rate": self.rate,
                "load": [_load(one) for one in self.loads],
                "adoption": _load(self.adoption),
                "times": asdict(self.times),
                "latest": [asdict(one) for one in self.latest],
                "noOp": asdict(self.no_op),
                "rollback": asdict(self.rollback),
                "fleets": [asdict(one) for one in self.fleets],
                "fleetBoot": self.fleet_boot,
                "previews": self.previews,
                "seconds": round(self.seconds, 1),
                "mustHold": [asdict(one) for one in self.promises()],
            },
            indent=None,
            separators=(",", ":"),
        )


def _load(one: UnderLoad) -> dict[str, object]:
    result = one.result
    return {
        "way": one.title,
        "releases": len(one.deployed),
        "sent": {kind: result.sent(kind) for kind in result.kinds},
        "failed": {kind: result.failed(kind) for kind in result.kinds},
        "reasons": {kind: dict(result.reasons(kind)) for kind in result.kinds},
        "rate": {kind: round(result.rate(kind), 1) for kind in result.kinds},
        "gaps": [round(gap, 4) for gap in one.gaps],
        "seconds": [round(release.ended - release.begun, 3) for release in one.deployed],
        "sessions": one.sessions,
        "lateWorst": round(result.late_worst, 4),
        "timeline": one.timeline(one.usual()),
    }


def _table(titles: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]]) -> list[str]:
    width = max(len(title) for title, _ in rows) + 2
    lines = [" " * width + "".join(f"{title:>12}" for title in titles)]
    lines += [f"  {title:<{width - 2}}" + "".join(f"{cell:>12}" for cell in cells) for title, cells in rows]
    return lines


def _ranges(rows: Sequence[tuple[str, Sequence[float]]]) -> list[str]:
    """Show the median and the range of each row that has values."""
    width = max(len(title) for title, _ in rows)
    return [
        f"  {title:<{width}}  {_seconds(median(values)):>9}  ({_seconds(min(values))} to {_seconds(max(values))})"
        for title, values in rows
        if values
    ]


def _seconds(value: float) -> str:
    return f"{value * 1000:.0f} ms" if abs(value) < 0.1 else f"{value:.2f} s"
