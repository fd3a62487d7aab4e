"""Several runs at once, by several users and shells: one after the other, the last one wins."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.live.driving import NAME, PORT, Application, Images, Prober, Release, shown
from tests.live.machines import wait_for
from tests.live.test_recovery import restart

ROUNDS = 20


@pytest.mark.timeout(900)
def test_two_at_once_twenty_times(
    app: Application, app_images: Images, record: Callable[[str], None]
) -> None:
    first = Release(app_images.make())
    app.up(first)
    winners = []
    started = time.monotonic()
    with Prober(app.machine.host) as prober, ThreadPoolExecutor() as pool:
        for number in range(ROUNDS):
            # Sometimes one of the two is on the server already.
            pair = [Release(app_images.make()), Release(app_images.make()) if number % 3 else first]

            def deploy(release: Release) -> tuple[Release, float]:
                done = app.deploy(release)
                assert done[-1].status == 0, shown(done)
                return release, time.monotonic()

            ended = list(pool.map(deploy, pair))
            last = max(ended, key=lambda one: one[1])[0]
            app.expect_settled(last)
            winners.append(pair.index(last))
            first = last
    prober.expect_no_failure()
    record(
        f"two deployments at once, {ROUNDS} times: {winners.count(0)} and {winners.count(1)} times the last, "
        f"0 of {prober.asked} requests failed, {time.monotonic() - started:.0f} s"
    )


class TestLock:
    """One lock for all users of a daemon, which says who holds it and dies with its holder."""

    def test_who_holds_it_is_said_and_a_killed_holder_frees_it(
        self, app: Application, app_images: Images
    ) -> None:
        first, second = Release(app_images.make()), Release(app_images.make())
        app.up(first)
        app.values["lockTimeout"] = 1
        with app.cut(5, "hold") as at:
            running = app.begin("candidate", second)
            wait_for(at, "the holder")
            # Nobody else's command is held.
            app.machine.path("run/cut").unlink()
            app.up_fails(
                first, "held server one for more than 1 s", "driven/live/parasite by root", "process"
            )
            # Reading waits for nobody.
            assert app.difference(first) is None
            os.killpg(running.process.pid, signal.SIGKILL)
            time.sleep(0.1)
            app.up(first)
        app.go_on()
        app.expect_settled(first)

    def test_users_share_it(self, app: Application, app_images: Images, member: str) -> None:
        first, second, third = (Release(app_images.make()) for _ in range(3))
        app.up(first)
        app.up(second, user=member)
        app.expect_settled(second)
        app.values["servers"][0] |= {"user": "deploy", "sudo": True}
        app.up(first, user="deploy")
        app.expect_settled(first)
        app.values["servers"][0] |= {"user": "root", "sudo": False}
        with app.cut(4, "hold") as at:
            holder = app.begin("candidate", second)
            wait_for(at, "the holder")
            app.machine.path("run/cut").unlink()
            in_group = app.begin("candidate", third, user=member)
            in_group.wait_for("waiting for the lock of server one, held by driven/live/parasite by root")
            app.values["servers"][0] |= {"user": "deploy", "sudo": True}
            sudoer = app.begin("switch", third, user="deploy")
            sudoer.wait_for("waiting for the lock")
            time.sleep(0.3)
            assert in_group.process.poll() is None
            app.go_on()
            for running in (holder, in_group, sudoer):
                done = running.end()
                assert done.status == 0, done.shown
        app.values["servers"][0] |= {"user": "root", "sudo": False}
        app.up(third)
        app.expect_settled(third)

    def test_others_cannot_write_there(self, app: Application, app_images: Images) -> None:
        """What is noted beside the lock is acted upon, so a folder that anybody could have made is refused."""
        release = Release(app_images.make())
        app.up(release)
        [lock] = app.locks()
        folder = lock.parent
        inside = f"/run/lock/{folder.name}"
        said = app.machine.sh(f": >{inside}/{NAME}.stopping", user="powerless", check=False)
        assert not (folder / f"{NAME}.stopping").exists(), said
        for harm in ("chmod 777", "chown powerless:powerless"):
            app.machine.sh(f"{harm} {inside}")
            app.up_fails(release, f"The folder {inside} on server one", "remove it")
            app.machine.sh(f"chmod 770 {inside}; chown root:root {inside}")
        app.machine.sh(f"mv {inside} /run/aside && ln -s /run/aside {inside}")
        app.up_fails(release, f"The folder {inside} on server one")
        app.machine.sh(f"rm {inside} && mv /run/aside {inside}")
        app.up(release)
        app.expect_settled(release)

    def test_a_docker_command_that_warns(self, app: Application, app_images: Images) -> None:
        """A broken configuration, as one sudo docker login leaves it, is named in each answer, and changes none."""
        config = app.machine.path("root/.docker/config.json")
        config.parent.mkdir(exist_ok=True)
        config.write_text("{")
        release = Release(app_images.make())
        try:
            app.up(release)
            app.up_fails(Release(app_images.make(), knobs={"health_status": 500}), "HTTP 500")
        finally:
            config.unlink()
        app.expect_settled(release)


@pytest.fixture
def member(app: Application) -> Iterator[str]:
    """Give a user who may use the machine's Docker for this test."""
    user, group = "powerless", app.machine.path("etc/group")
    before = group.read_text()
    lines = [line for line in before.splitlines() if not line.startswith("docker:")]
    group.write_text("\n".join([*lines, f"docker:x:4300:{user}", ""]))
    app.machine.sh("chgrp 4300 /run/docker.sock; chmod 660 /run/docker.sock")
    yield user
    group.write_text(before)
    app.machine.sh("chgrp 0 /run/docker.sock; chmod 600 /run/docker.sock")


SHELLS = {
    "dash": "exec /usr/bin/dash",
    "bash": "exec /usr/bin/bash --posix",
    "busybox": "exec /usr/bin/busybox sh",
}


@pytest.mark.parametrize("shell", SHELLS)
def test_shells(app: Application, app_images: Images, shell: str) -> None:
    if not Path(f"/usr/bin/{shell}").exists():
        pytest.skip(f"there is no {shell} on this machine")
    folder = app.machine.path(f"run/shell-{shell}")
    folder.mkdir(exist_ok=True)
    (folder / "sh").write_text(f'#!/bin/dash\n{SHELLS[shell]} "$@"\n')
    (folder / "sh").chmod(0o755)
    how = {"programs": f"/run/shell-{shell}"}
    first, second = Release(app_images.make()), Release(app_images.make())
    app.values |= {
        "preDeploy": ["sh", "-c", "echo 'it''s \"here\"'"],
        "secretEnvironment": {"TOKEN": "a 'b'\n$c"},
    }
    app.values["secretFiles"] = {"/etc/token": "a 'b'\n$c"}
    app.up(first, **how)
    with Prober(app.machine.host) as prober:
        app.up(second, **how)
        app.up_fails(Release(app_images.make(), knobs={"health_status": 500}), "HTTP 500", **how)
        app.up_fails(Release(app_images.make(), knobs={"sick_after": 1}), "points back", **how)
        app.up(first, **how)
    prober.expect_no_failure()
    app.expect_settled(first)
    assert app.machine.answers(PORT, "/file/etc/token") == app.machine.answers(PORT, "/environment/TOKEN")
    app.values["strategy"] = "recreate"
    app.up(second, **how)
    assert app.run("remove", first, **how).status == 0
    assert app.machine.containers() == []
    assert NAME not in app.machine.docker("network", "ls")


class TestRemove:
    """What cannot be removed is told: a removal that is called done is forgotten."""

    def test_a_container_that_stays(self, app: Application, app_images: Images) -> None:
        release = Release(app_images.make())
        app.up(release)
        with app.cut(1, "refuse", only="rm --force"):
            done = app.run("remove", release)
        assert done.status == 1, done.shown
        assert f"Of {NAME} on server one this could not be removed: {NAME}" in done.err
        done = app.run("remove", release)
        assert done.status == 0, done.shown
        assert app.machine.containers() == []

    def test_a_server_that_got_another_name(self, app: Application, app_images: Images) -> None:
        """It serves on, though the machine was started anew between its deployment and the removal of its old name."""
        release = Release(app_images.make())
        app.up(release)
        app.values["servers"][0]["name"] = "renamed"
        app.up(release)
        restart(app.machine)
        app.values["servers"][0]["name"] = "one"
        done = app.run("remove", release)
        assert "is called renamed now" in done.out, done.shown
        wait_for(lambda: f"commit {release.commit} " in str(app.machine.answers(PORT)), "the application", 15)
        app.values["servers"][0]["name"] = "renamed"
        assert app.run("remove", release).status == 0
        assert app.machine.containers() == []

    def test_a_server_that_got_another_name_and_login(
        self, app: Application, app_images: Images, member: str
    ) -> None:
        release = Release(app_images.make())
        app.up(release)
        app.values["servers"][0]["name"] = "renamed"
        app.up(release, user=member)
        app.values["servers"][0]["name"] = "one"
        done = app.run("remove", release)
        assert "is called renamed now" in done.out, done.shown
        app.values["servers"][0]["name"] = "renamed"
        app.expect_settled(release)

    def test_a_declaration_that_is_refused_leaves_no_name(self, app: Application, app_images: Images) -> None:
        """Another one of the same container's name, which knows the server by another name, changes no removal."""
        release = Release(app_images.make())
        app.up(release)
        text, stdin = app.phase("candidate", release)
        others = text.replace("owner=driven/live/", "owner=other/live/").replace(
            "server=one", "server=theirs"
        )
        assert others != text
        process = app.start(others, stdin)
        _, said = process.communicate(timeout=60)
        assert "belongs to another declaration" in said.decode()
        assert app.run("remove", release).status == 0
        assert app.machine.containers() == []
