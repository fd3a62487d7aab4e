"""The whole bench: prepares a room of its own, measures, writes, leaves nothing behind."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

# A room that no test uses; before the machines are imported, which read it.
os.environ.setdefault("ESTEIRA_LIVE_ROOM", "9")

from bench.latest import move_latest
from bench.measure import HEALTH, UnderLoad, times, under_load
from bench.place import Place
from bench.preview import seconds as preview_seconds
from bench.program import Checkout, engine_here, fleets, no_op, rollback
from bench.report import PREVIEW_SERVERS, Machine, Report
from bench.ways import Esteira, Procedure
from tests.live import images
from tests.live.machines import Machine as Server
from tests.live.machines import Room

BOOT = 0.5
"""Seconds that the application takes from its start to serving."""
GRACE = 0.5
"""Seconds that it gives requests in flight after SIGTERM.

Longer, and the ways that stop it under load would be dark for longer; shorter, and they would cut more.
"""
FLEETS, FLEET_BOOT = (1, 4, 8), 3.0
"""Numbers of servers that a release is measured on, and the boot of its application in seconds."""


def run(releases: int, rounds: int, rate: float, say: Callable[[str], None]) -> Report:
    """Measure everything: ``releases`` of each way under load, ``rounds`` of times without.

    What takes whole runs of the program is measured in fewer rounds, but for the run that changes nothing: one such run
    differs from the next by more than what is asked of it.
    """
    begun = time.monotonic()
    few = (rounds + 1) // 2
    engine = engine_here()
    say("Previews of many servers:")
    previews = {count: preview_seconds(count, few) for count in PREVIEW_SERVERS}
    say("Starting a server, a build daemon and a registry for the bench ...")
    room = Room.open()
    try:
        place = Place.make(room, boot=BOOT, grace=GRACE)
        server, builder, registry = place.server, place.builder, place.registry
        try:
            machine = Machine.this(
                server.docker("version", "--format", "{{.Server.Version}}"),
                server.docker("run", "--rm", "--entrypoint", "caddy", images.EDGE, "version").split()[0],
                engine,
            )
            say("Times without load:")
            found = times(place, rounds, say)
            say("Under load:")
            loads, adoption = _loads(place, releases, rate, say)
            place.clear()
            say("Whole runs of the program:")
            checkout = Checkout(room, "one", registry, builder, [server], boot=BOOT)
            checkout.release()
            checkout.up().good()
            nothing = no_op(checkout, 4 * rounds, say)
            back = rollback(checkout, few, say)
            place.clear()
            say("Several servers:")
            more = _servers(room, max(FLEETS) - 1)
            moved = move_latest(place, more[-1])
            for one in more:
                images.load(one, images.EDGE)
                images.pull_base(one, registry)
            many = fleets(
                room,
                registry,
                builder,
                [server, *more],
                sizes=FLEETS,
                boot=FLEET_BOOT,
                rounds=max(1, rounds // 2),
                say=say,
            )
        finally:
            place.close()
    finally:
        room.close()
    return Report(
        machine=machine,
        boot=BOOT,
        rate=rate,
        loads=loads,
        adoption=adoption,
        times=found,
        latest=moved,
        no_op=nothing,
        rollback=back,
        fleets=many,
        fleet_boot=FLEET_BOOT,
        previews=previews,
        seconds=time.monotonic() - begun,
    )


def _loads(
    place: Place, releases: int, rate: float, say: Callable[[str], None]
) -> tuple[list[UnderLoad], UnderLoad]:
    """Measure the procedure, recreate and blueGreen under load, and the taking over of the procedure's container."""
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
    return loads, adoption


def _servers(room: Room, count: int) -> list[Server]:
    """Start more servers, as new: without any image."""
    made = [room.machine(f"more{number}", 20 + number) for number in range(count)]
    for one in made:
        one.wait_until_up()
    return made


def write(report: Report, folder: Path, command: str) -> list[Path]:
    """Write the page, the figures and the picture; return where they are."""
    from bench.picture import draw  # noqa: PLC0415 - so that nothing else needs what draws it

    folder.mkdir(exist_ok=True)
    page, figures, picture = (folder / f"bench.{ending}" for ending in ("md", "json", "svg"))
    page.write_text(report.page(command), encoding="utf-8")
    figures.write_text(report.json() + "\n", encoding="utf-8")
    machine = report.machine
    draw(
        report.loads,
        f"One release under {report.rate:g} new connections a second and 20 keep-alive clients; {machine.processor}, "
        f"{machine.cores} cores, Docker Engine {machine.docker}, {machine.date}",
        picture,
    )
    return [page, figures, picture]
