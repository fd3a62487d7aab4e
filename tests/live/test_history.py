"""The release log: one line a deployment with its real result, whatever happens; and what `status` makes of it."""

from __future__ import annotations

import json
import signal
import time
from datetime import datetime, timezone
from typing import Any

import pytest

from components.arguments import health_values
from components.history import served_before
from components.reading import reading_values
from components.remote import Payload, command_text, standard_input
from components.status import Status, parse_status
from tests.live.driving import NAME, PORT, Application, Images, Release
from tests.live.machines import wait_for

LOG = "var/lib/esteira/driven+live+parasite.jsonl"


def entries(app: Application, log: str = LOG) -> list[dict[str, Any]]:
    """Read the log: every line must be JSON."""
    path = app.machine.path(log)
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def results(app: Application) -> list[str]:
    return [str(entry["result"]) for entry in entries(app)]


def status(app: Application, release: Release) -> Status:
    """Ask the machine for its status, as `./esteira status` does."""
    settings = app.settings(release)
    server = settings.servers[0]
    values = [
        *reading_values(settings, server, f"driven/live/{NAME}"),
        *health_values(settings),
        ("edgeImage", settings.edge_image),
        ("history", "50"),
    ]
    process = app.start(command_text("status", values), standard_input(Payload()))
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err.decode()
    return parse_status("one", out.decode())


@pytest.mark.parametrize("strategy", ["blueGreen", "recreate"])
def test_each_deployment_has_its_line(app: Application, app_images: Images, strategy: str) -> None:
    app.values["strategy"] = strategy
    app.values["rollout"] = {"watch": 0.3}
    first, second = Release(app_images.make()), Release(app_images.make())
    asked = "2026-11-26 14:00:00 UTC, ana@laptop, found "
    before = datetime.now(timezone.utc).replace(microsecond=0)
    app.up(first, request=f'{asked}"it" \\ unread')
    [entry] = entries(app)
    assert entry == {
        "time": entry["time"],
        "stack": "driven/live/parasite",
        "server": "one",
        "commit": first.commit,
        "tag": first.commit,
        "digest": first.image.partition("@")[2],
        "who": "ana@laptop",
        "asked": "2026-11-26 14:00:00 UTC",
        "found": '"it" \\ unread',
        "user": "root",
        "from": "",
        "seconds": entry["seconds"],
        "result": "deployed",
        "cause": "",
    }
    assert (
        before
        <= datetime.strptime(entry["time"] + "+0000", "%Y-%m-%dT%H:%M:%SZ%z")
        <= datetime.now(timezone.utc)
    )
    assert 0.1 < entry["seconds"] < 60
    app.up(second, request=f"{asked}commit {first.commit[:7]}")
    app.up(second, request=f"{asked}it unread")
    app.machine.docker("stop", "-t", "1", NAME)
    app.up(second, request=f"{asked}commit {second.commit[:7]}, exited")
    sick = Release(app_images.make(), knobs={"health_status": 500, "log_lines": 2})
    app.up_fails(sick, "HTTP 500", request=f"{asked}x")
    # A recreate starts what was stopped anew.
    repaired = "repaired" if strategy == "blueGreen" else "deployed"
    assert results(app) == ["deployed", "deployed", "unchanged", repaired, "failed"]
    last = entries(app)[-1]
    assert "is not healthy on server one: " in last["cause"]
    assert "HTTP 500 from /health" in last["cause"]
    assert "log line" not in last["cause"]
    assert app.password not in app.machine.path(LOG).read_text()
    assert not list(app.machine.path("var/lib/esteira").glob("*.begun"))

    now = status(app, second)
    assert [entry.result for entry in now.history] == results(app)
    assert now.reading.serving is not None
    assert now.reading.serving.commit == second.commit
    assert (now.healthy, now.health) == (True, "HTTP 200 from /health")
    assert [one.commit for identity in now.kept for one in now.reading.releases if one.id == identity] == [
        first.commit
    ]
    assert now.disk_free is not None
    assert now.disk_size is not None
    assert 0 < now.disk_free <= now.disk_size
    started = now.times[now.reading.serving.id].started
    assert started is not None
    assert abs((now.clock - started).total_seconds()) < 60
    assert served_before(now.history, second.commit) == first.commit
    app.run("remove", second)
    assert not app.machine.path("var/lib/esteira").exists()


def test_status_says_what_is_not_well_and_changes_nothing(app: Application, app_images: Images) -> None:
    release = Release(app_images.make(), knobs={"sick_after": 1})
    nothing = status(app, release)
    assert (nothing.reading.serving, nothing.history, nothing.kept) == (None, (), ())
    assert nothing.health == "nothing serves"
    app.values["rollout"] = {"watch": 0}
    app.up(release)
    time.sleep(1)
    before = {one["Id"] for one in app.engine.containers()}
    sick = status(app, release)
    assert sick.healthy is False
    assert "from /health" in sick.health
    app.values["health"] = {"test": "tcp", "port": 8000, "startPeriod": 2}
    assert status(app, release).health == "connected"
    app.machine.docker("stop", "-t", "1", NAME)
    stopped = status(app, release)
    assert (stopped.healthy, stopped.health) == (False, "it is exited")
    assert {one["Id"] for one in app.engine.containers()} == before


def test_a_run_that_was_killed_is_told_by_the_next_one(app: Application, app_images: Images) -> None:
    first, second = Release(app_images.make()), Release(app_images.make())
    app.up(first)
    with app.cut(8, "before"):
        assert app.run("candidate", second, request="t, ana@laptop, found x").status == -signal.SIGKILL
    app.up(first)
    assert [(entry["result"], entry["commit"]) for entry in entries(app)] == [
        ("deployed", first.commit),
        ("cut off", second.commit),
        ("unchanged", first.commit),
    ]
    assert entries(app)[1]["who"] == "ana@laptop"
    assert entries(app)[1]["seconds"] is None


def test_a_candidate_that_nobody_switches_to(app: Application, app_images: Images) -> None:
    first, second = Release(app_images.make()), Release(app_images.make())
    app.up(first)
    app.values["candidateLifetime"] = 1
    assert app.run("candidate", second).status == 0
    wait_for(lambda: len(entries(app)) == 2, "the timer's line", 20)
    last = entries(app)[-1]
    assert (last["result"], last["commit"]) == ("not switched", second.commit)
    wait_for(lambda: app.leftovers(first) == [], "the timer's end", 20)


def test_a_deployment_that_waited_in_vain_has_a_line_too(app: Application, app_images: Images) -> None:
    first, second = Release(app_images.make()), Release(app_images.make())
    app.up(first)
    app.values["lockTimeout"] = 1
    with app.cut(8, "hold") as at:
        running = app.begin("candidate", second)
        wait_for(at, "the holder")
        app.machine.path("run/cut").unlink()
        app.up_fails(first, "held server one")
        app.go_on()
        running.end()
    assert app.run("switch", second).status == 0
    assert results(app) == ["deployed", "failed", "deployed"]


def test_it_is_trimmed_and_survives_what_is_not_json(app: Application, app_images: Images) -> None:
    release = Release(app_images.make())
    app.up(release)
    line = app.machine.path(LOG).read_text()
    app.machine.path(LOG).write_text(line * 250 + '{"half\n')
    app.up(release)
    text = app.machine.path(LOG).read_text()
    assert text.count("\n") == 200
    assert len(status(app, release).history) == 49


def test_a_full_disk_fails_no_deployment(app: Application, app_images: Images) -> None:
    folder = app.machine.path("var/lib/esteira")
    folder.mkdir(parents=True, exist_ok=True)
    app.machine.sh(
        "mount -t tmpfs -o size=4k tmpfs /var/lib/esteira && cat /dev/zero >/var/lib/esteira/full",
        check=False,
    )
    try:
        app.up(Release(app_images.make()))
        assert entries(app) == []
        assert [path.name for path in folder.iterdir() if path.suffix == ".new"] == []
    finally:
        app.machine.sh("umount /var/lib/esteira")


def test_another_user_keeps_it_at_home(app: Application, app_images: Images) -> None:
    machine = app.machine
    group = machine.path("etc/group")
    before = group.read_text()
    lines = [line for line in before.splitlines() if not line.startswith("docker:")]
    group.write_text("\n".join([*lines, "docker:x:4300:powerless", ""]))
    machine.sh("chgrp 4300 /run/docker.sock; chmod 660 /run/docker.sock")
    try:
        release = Release(app_images.make())
        app.up(release, user="powerless")
        log = "home/powerless/.esteira/driven+live+parasite.jsonl"
        [entry] = entries(app, log)
        assert (entry["user"], entry["result"]) == ("powerless", "deployed")
        assert machine.path(log).stat().st_uid == machine.path("home/powerless").stat().st_uid
        assert app.run("remove", release, user="powerless").status == 0
        assert not machine.path("home/powerless/.esteira").exists()
    finally:
        group.write_text(before)
        machine.sh("chgrp 0 /run/docker.sock; chmod 600 /run/docker.sock")
    assert machine.answers(PORT) is None


def test_one_of_several_servers_has_one_line_too(app: Application, app_images: Images) -> None:
    """Whichever phase ends it: the confirmation, the undo, or the deadline that nobody met."""
    app.values["rollout"] = {"watch": 0}
    app.one_of_several(5)
    first, second, third = (Release(app_images.make()) for _ in range(3))
    app.up(first, request="t, ana@laptop, found 1")
    for phase in ("candidate", "switch", "undo", "undo"):
        done = app.run(phase, second, request="t, ana@laptop, found 2")
        assert done.status == 0, done.shown
    assert app.run("switch", second, request="t, ana@laptop, found 2").status == 1
    for phase in ("candidate", "switch"):
        assert app.run(phase, third, request="t, ana@laptop, found 3").status == 0
    wait_for(lambda: len(entries(app)) == 3, "the line of the deadline", 20)
    app.up(first, request="t, ana@laptop, found it unread")
    assert [(entry["result"], entry["commit"]) for entry in entries(app)] == [
        ("deployed", first.commit),
        ("taken back", second.commit),
        ("taken back", third.commit),
        ("unchanged", first.commit),
    ]
    assert "The rollout failed on another server. The edge points back to commit" in entries(app)[1]["cause"]
    assert "Nobody confirmed it within 5 s." in entries(app)[2]["cause"]
    assert not list(app.machine.path("var/lib/esteira").glob("*.begun"))
