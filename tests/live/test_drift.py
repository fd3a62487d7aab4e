"""Drift: whatever a hand does to a server is named in words, and the next deployment repairs it and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from components.arguments import container_command, create_options, limits, release_fingerprint
from tests.live.driving import NAME, PORT, Application, Images, Release
from tests.live.machines import wait_for


@dataclass(frozen=True)
class Deed:
    """What a hand does on the server, and what a preview says then: COMMIT is the declared one, OLD the one before."""

    script: str
    words: str
    renews: bool = False
    """Whether another container is made of the release."""
    strategy: str = "blueGreen"


SLOT = f"/edge/{NAME}/green"
TOGGLE = f"docker exec {NAME}-edge sh -c 'if [ -e {SLOT} ]; then rm {SLOT}; else : >{SLOT}; fi'"
LABELS = "{{range $key, $value := .Config.Labels}}--label {{$key}}={{$value}} {{end}}"
DEEDS = {
    "stopped": Deed(f"docker stop -t 1 {NAME}", "commit COMMIT, exited"),
    "paused": Deed(f"docker pause {NAME}", "commit COMMIT, paused"),
    "removed": Deed(f"docker rm -f {NAME}", "no container of that name", renews=True),
    "another image": Deed(
        f"docker inspect {NAME} --format '{LABELS}' >/run/labels; docker rm -f {NAME}; "
        f"docker run -d --name {NAME} --restart always --network esteira-{NAME} $(cat /run/labels) EDGE sleep 1000",
        "commit COMMIT, made of another image than its label says (EDGE)",
        renews=True,
    ),
    "other settings": Deed(
        f"docker update --memory 64m --memory-swap 64m {NAME}",
        "commit COMMIT, with a memory limit of 64m, not 128m",
        renews=True,
    ),
    "restart policy": Deed(f"docker update --restart no {NAME}", "commit COMMIT with restart policy no"),
    "network": Deed(
        f"docker network disconnect esteira-{NAME} {NAME}",
        "commit COMMIT, but the edge points to nothing that runs",
    ),
    "edge elsewhere": Deed(
        TOGGLE,
        "commit COMMIT, but the edge points to nothing that runs",
    ),
    "edge at the release before": Deed(
        f"docker start $(docker ps -aq --filter label=esteira.commit=LONG) && {TOGGLE}",
        "commit COMMIT, but the edge points to commit OLD",
    ),
    "edge stopped": Deed(f"docker stop -t 1 {NAME}-edge", "commit COMMIT behind an edge that is exited"),
    "edge removed": Deed(f"docker rm -f {NAME}-edge", "commit COMMIT behind no edge"),
    "edge's restart policy": Deed(
        f"docker update --restart no {NAME}-edge", "commit COMMIT behind an edge with restart policy no"
    ),
    "recreate: stopped": Deed(f"docker stop -t 1 {NAME}", "commit COMMIT, exited", strategy="recreate"),
    "recreate: removed": Deed(
        f"docker rm -f {NAME}", "no container of that name", renews=True, strategy="recreate"
    ),
    "recreate: other settings": Deed(
        f"docker update --cpus 0.25 {NAME}",
        "commit COMMIT, with 0.25 processors, not 0.5 processors",
        renews=True,
        strategy="recreate",
    ),
}


class Drifting:
    """An application with two releases on a server, the first kept, and another declaration's beside."""

    def __init__(self, app: Application, images: Images, strategy: str) -> None:
        self.app = app
        app.values["strategy"] = strategy
        app.values["rollout"] = {"watch": 0}
        # Not how fast it boots is looked at, and the machine may be busy.
        app.values["health"]["startPeriod"] = 20
        app.values["container"] |= {"memory": "128m", "cpus": 0.5}
        self.first, self.second = Release(images.make()), Release(images.make())
        app.up(self.first)
        app.up(self.second)
        app.machine.docker("run", "-d", "--name", "theirs", app.values["edgeImage"], "sleep", "10000")
        app.machine.forget_calls()

    def request(self, release: Release) -> str:
        """Return the request that a deployment makes of a reading."""
        app = self.app
        settings = app.settings(release)
        options = create_options(settings, settings.servers[0], release.commit)
        mark = release_fingerprint(settings, options, container_command(settings.container))
        renewed = app.read(release).renewed(commit=release.commit, fingerprint=mark, **limits(settings))
        renew = f" [renew {renewed}]" if renewed else ""
        return f"2026-11-26 14:00:00 UTC, ana@laptop, found {app.difference(release)}{renew}"

    def repair(self, release: Release) -> None:
        self.app.up(release, request=self.request(release))

    def others(self) -> dict[str, str]:
        """Return what is not this declaration's, with when it was started."""
        return {
            one["Name"]: one["State"]["StartedAt"]
            for one in self.app.engine.containers()
            if one["Name"] == "/theirs"
        }


@pytest.fixture
def drifting(app: Application, app_images: Images) -> Callable[[str], Drifting]:
    """Give what makes a server with two releases."""
    return lambda strategy: Drifting(app, app_images, strategy)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("strategy", ["blueGreen", "recreate"])
def test_each_kind_is_named_and_repaired(drifting: Callable[[str], Drifting], strategy: str) -> None:
    place = drifting(strategy)
    app, first, second = place.app, place.first, place.second
    wrong = []
    for name, deed in DEEDS.items():
        if deed.strategy != strategy:
            continue
        edge_image = app.values["edgeImage"]
        before, theirs = app.machine.inspect(NAME)["Id"], place.others()
        words = deed.words.replace("COMMIT", second.commit[:7]).replace("OLD", first.commit[:7])
        app.machine.sh(deed.script.replace("EDGE", edge_image).replace("LONG", first.commit))
        found = app.difference(second)
        if found != words.replace("EDGE", edge_image):
            wrong.append(f"{name}: {found}")
        place.repair(second)
        if left := app.difference(second):
            wrong.append(f"{name}, after its repair: {left}")
        wrong += [f"{name}, left over: {one}" for one in app.leftovers(second) if "theirs" not in one]
        if f"commit {second.commit} " not in str(app.machine.answers(PORT)):
            wrong.append(f"{name}: does not serve")
        if (app.machine.inspect(NAME)["Id"] != before) is not deed.renews:
            wrong.append(f"{name}: the container is {'not ' if deed.renews else ''}another one")
        if place.others() != theirs:
            wrong.append(f"{name}: somebody else's container was touched")
    assert not wrong, "\n".join(wrong)


def expect_settled(place: Drifting, said: str = "") -> None:
    """Check that the server is as declared, and nothing is left over."""
    left = [one for one in place.app.leftovers(place.second) if "theirs" not in one]
    assert not left, f"{left}\n{said}"
    assert place.app.difference(place.second) is None


def test_an_edge_of_somebody(drifting: Callable[[str], Drifting]) -> None:
    """It is named, and not touched."""
    place = drifting("blueGreen")
    app, release = place.app, place.second
    app.machine.sh(
        f"docker rm -f {NAME}-edge; docker run -d --name {NAME}-edge {app.values['edgeImage']} sleep 1000"
    )
    assert app.difference(release) == f"commit {release.commit[:7]} behind an edge that Esteira did not make"
    app.up_fails(release, f"The container {NAME}-edge on server one", request=place.request(release))
    assert app.machine.inspect(f"{NAME}-edge")["State"]["Running"]
    app.machine.sh(f"docker rename {NAME}-edge theirs-too")
    place.repair(release)
    assert app.machine.inspect("theirs-too")["State"]["Running"]
    expect_settled(place)


def test_a_container_that_ends_again_and_again(drifting: Callable[[str], Drifting]) -> None:
    place = drifting("blueGreen")
    app, second = place.app, place.second
    before = app.machine.inspect(NAME)["Id"]
    app.machine.docker(
        "exec",
        "-u",
        "0",
        NAME,
        "sh",
        "-c",
        "for f in /app/*.py /*.py; do [ ! -e $f ] || echo 'exit(3)' >$f; done",
    )
    app.machine.sh(f"kill -9 $(docker inspect --format '{{{{.State.Pid}}}}' {NAME})")
    wait_for(lambda: app.machine.inspect(NAME)["RestartCount"] >= 3, "a loop", 30)
    words = str(app.difference(second))
    assert words.startswith(f"commit {second.commit[:7]}, restarted again and again (")
    said = app.up(second, request=place.request(second))
    expect_settled(place, said)
    assert app.machine.inspect(NAME)["Id"] != before
    assert before not in {one["Id"] for one in app.engine.containers()}, (
        "the broken one is nothing to go back to"
    )


def test_a_port_that_something_else_holds(drifting: Callable[[str], Drifting]) -> None:
    place = drifting("blueGreen")
    app, second = place.app, place.second
    image = app.values["edgeImage"]
    app.machine.docker("stop", "-t", "1", f"{NAME}-edge")
    app.machine.docker("run", "-d", "--name", "thief", "-p", f"{PORT}:80", image, "sleep", "1000")
    expected = f"commit {second.commit[:7]} behind an edge that is exited; port {PORT} is held by "
    assert app.difference(second) == f"{expected}the container thief: stop that first"
    said = app.up_fails(second, "port", request=place.request(second))
    assert "Stop it, or change container.ports" in said
    app.machine.docker("rm", "-f", "thief")
    place.repair(second)
    expect_settled(place)
    app.machine.docker("stop", "-t", "1", f"{NAME}-edge")
    script = (
        f"import socket, time; s = socket.create_server(('', {PORT})); print(1, flush=True); time.sleep(60)"
    )
    thief = app.start(f'exec /usr/bin/python3 -c "{script}"', "")
    assert thief.stdout is not None
    assert thief.stdout.readline()
    try:
        assert app.difference(second) == f"{expected}another process: stop that first"
    finally:
        thief.kill()
        thief.wait()
    place.repair(second)
    expect_settled(place)


def test_a_release_that_another_declaration_owns(drifting: Callable[[str], Drifting]) -> None:
    """It is named, left alone by `up` with a sentence, and what is declared comes when it is gone."""
    place = drifting("blueGreen")
    app, second = place.app, place.second
    other = "other/prod/parasite"
    app.machine.docker("rm", "-f", NAME)
    labels = [f"--label=esteira.owner={other}", "--label=esteira.role=release", "--label=esteira.commit=abc"]
    app.machine.docker("run", "-d", "--name", NAME, *labels, app.values["edgeImage"], "sleep", "10000")
    theirs = app.machine.inspect(NAME)
    assert app.difference(second) == f"a container of {other}"
    said = app.up_fails(second, "belongs to another declaration", request=place.request(second))
    assert f"({other}). Set another container.name, or destroy that one first." in said
    found = app.machine.inspect(NAME)
    assert (found["Id"], found["State"]["StartedAt"]) == (theirs["Id"], theirs["State"]["StartedAt"])
    app.machine.docker("rm", "-f", NAME)
    place.repair(second)
    expect_settled(place)
