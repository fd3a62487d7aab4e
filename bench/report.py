"""The bench's table: as text, as a page of the docs, and as JSON for pictures. Every figure in them was measured."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path

from bench.load import STREAMS
from bench.measure import HEALTH, Times, UnderLoad
from bench.results import median

RECREATE_BOUND = 0.3
"""Seconds that recreate may add to the container's own stop, start and boot."""
SWITCH_BOUND = 1.0
"""Seconds that blueGreen may take beyond the application's own boot, from the image on the server to switched."""


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
    date: str
    waiting: float
    """Processes that ran or waited to, on average of the minute before the bench: other work on the machine."""

    @classmethod
    def this(cls, docker: str, edge: str) -> Machine:
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

    def broken(self) -> list[str]:
        """Say what does not hold."""
        found = []
        blue_green = self.loads[-1]
        if blue_green.result.failures:
            found.append(f"blueGreen: {len(blue_green.result.failures)} requests failed")
        added = median(self.times.recreate) - median(self.times.own)
        if added > RECREATE_BOUND:
            found.append(
                f"recreate adds {added:.2f} s to the container's own, more than {RECREATE_BOUND:g} s"
            )
        beyond = median(self.times.switched_beyond)
        if beyond > SWITCH_BOUND:
            found.append(f"blueGreen takes {beyond:.2f} s beyond the boot, more than {SWITCH_BOUND:g} s")
        return found

    def text(self) -> str:
        """Show everything, for a terminal."""
        parts = self._where(), self._under_load(), self._reasons(), self._times(), self._commands()
        return "\n\n".join(parts)

    def _where(self) -> str:
        machine = self.machine
        return (
            f"{machine.date}; {machine.processor}, {machine.cores} cores, {machine.memory_gigabytes:g} GB, "
            f"{machine.system}, Linux {machine.kernel}\n"
            f"Docker Engine {machine.docker}, edge Caddy {machine.edge}, Python {machine.python}; "
            f"load of the machine before: {machine.waiting:.1f}, "
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
        width = max(len(title) for title, _ in rows)
        rounds, interval = len(found.own), HEALTH["interval"]
        lines = [
            f"Without load, {rounds} rounds of all ways in turn, health interval {interval} s: median (least to most)"
        ]
        for title, values in rows:
            range_ = f"({_seconds(min(values))} to {_seconds(max(values))})"
            lines.append(f"  {title:<{width}}  {_seconds(median(values)):>9}  {range_}")
        return "\n".join(lines)

    def _commands(self) -> str:
        calls = self.times.calls
        return "\n".join(
            [
                "Docker commands on the server: "
                + ", ".join(f"{phase} {median(counts):g}" for phase, counts in calls.items()),
                *(f"Does not hold: {one}." for one in self.broken()),
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
                "doesNotHold": self.broken(),
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
        "timeline": one.timeline(),
    }


def _table(titles: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]]) -> list[str]:
    width = max(len(title) for title, _ in rows) + 2
    lines = [" " * width + "".join(f"{title:>12}" for title in titles)]
    lines += [f"  {title:<{width - 2}}" + "".join(f"{cell:>12}" for cell in cells) for title, cells in rows]
    return lines


def _seconds(value: float) -> str:
    return f"{value * 1000:.0f} ms" if abs(value) < 0.1 else f"{value:.2f} s"
