"""The whole bench: prepares a room of its own, measures, writes, leaves nothing behind."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

# A room that no test uses; before the machines are imported, which read it.
os.environ.setdefault("ESTEIRA_LIVE_ROOM", "9")

from bench.measure import HEALTH, times, under_load
from bench.place import Place
from bench.report import Machine, Report
from bench.ways import Esteira, Procedure
from tests.live.images import EDGE
from tests.live.machines import Room

BOOT = 0.5
"""Seconds that the application takes from its start to serving."""
GRACE = 0.5
"""Seconds that it gives requests in flight after SIGTERM.

Longer, and the ways that stop it under load would be dark for longer; shorter, and they would cut more.
"""


def run(releases: int, rounds: int, rate: float, say: Callable[[str], None]) -> Report:
    """Measure everything: ``releases`` of each way under load, ``rounds`` of times without."""
    say("Starting a server, a build daemon and a registry for the bench ...")
    room = Room.open()
    try:
        place = Place.make(room, boot=BOOT, grace=GRACE)
        machine = Machine.this(
            place.server.docker("version", "--format", "{{.Server.Version}}"),
            place.server.docker("run", "--rm", "--entrypoint", "caddy", EDGE, "version").split()[0],
        )
        try:
            return _measure(place, machine, releases=releases, rounds=rounds, rate=rate, say=say)
        finally:
            place.close()
    finally:
        room.close()


def _measure(
    place: Place, machine: Machine, *, releases: int, rounds: int, rate: float, say: Callable[[str], None]
) -> Report:
    say("Times without load:")
    found = times(place, rounds, say)
    say("Under load:")
    made = [place.release() for _ in range(releases + 1)]
    place.clear()
    recreate = Esteira(place, "recreate", health=HEALTH)
    recreate.deploy(made[0])
    loads = [under_load(place, recreate, made[1:], rate, say)]
    place.clear()
    procedure = Procedure(place)
    procedure.begin(made[0])
    loads.insert(0, under_load(place, procedure, made[1:], rate, say))
    # What the procedure runs is taken over, and then released by blueGreen.
    blue_green = Esteira(place, "blueGreen", health=HEALTH)
    adoption = under_load(place, blue_green, [place.release()], rate, say)
    made += [place.release() for _ in range(releases)]
    loads.append(under_load(place, blue_green, made[-releases:], rate, say))
    return Report(machine, place.boot, rate, loads, adoption, found)


def write(report: Report, folder: Path, command: str) -> list[Path]:
    """Write the page and the figures; where they are."""
    folder.mkdir(exist_ok=True)
    page, figures = folder / "bench.md", folder / "bench.json"
    page.write_text(report.page(command), encoding="utf-8")
    figures.write_text(report.json() + "\n", encoding="utf-8")
    return [page, figures]
