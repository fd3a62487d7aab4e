"""Daemon, machine, edge or a person's hand take something away: it comes back by itself, or by the next run."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.live.driving import NAME, PORT, Application, Images, Prober, Release
from tests.live.machines import NAMESPACE_PREFIX, Machine, run, wait_for
from tests.live.standstill import usable_time

EDGE = f"{NAME}-edge"


def serves(app: Application, *releases: Release) -> bool:
    """Say whether one of the releases answers."""
    answer = str(app.machine.answers(PORT))
    return any(f"commit {release.commit} " in answer for release in releases)


class TestDaemon:
    """The Docker daemon is killed in the middle of a deployment and started again."""

    def kill_and_restart(self, app: Application) -> float:
        """Kill it, start it a moment later; when it answered again."""
        app.machine.kill_daemon()
        time.sleep(0.5)
        app.machine.restart_daemon()
        return usable_time()

    def expect_back(self, app: Application, since: float, *releases: Release) -> float:
        """Check that within 10 s one of the releases serves, and runs alone; seconds that it took."""
        while not (serves(app, *releases) and len(app.engine.running()) == 2):
            assert usable_time() - since < 10, (app.machine.answers(PORT), app.engine.running())
            time.sleep(0.1)
        took = usable_time() - since
        while usable_time() - since < took + 4:
            assert serves(app, *releases)
            running = app.engine.running()
            assert len(running) == 2, running
            time.sleep(0.5)
        return took

    def test_while_the_candidate_boots(
        self, app: Application, app_images: Images, record: Callable[[str], None]
    ) -> None:
        good = Release(app_images.make())
        kept = Release(app_images.make())
        app.up(kept)
        app.up(good)
        app.values["health"] = {**app.values["health"], "startPeriod": 30}
        new = Release(app_images.make(), knobs={"boot_delay": 4})
        running = app.begin("candidate", new)
        wait_for(lambda: any("-candidate" in name for name in app.engine.running()), "the candidate")
        time.sleep(0.3)
        since = self.kill_and_restart(app)
        took = self.expect_back(app, since, good)
        done = running.end()
        assert done.status == 1
        assert "serves on" in done.shown, done.shown
        assert app.leftovers(good) == []
        record(
            f"dockerd killed while the candidate booted: the old release served {took:.1f} s after its return"
        )
        app.up(new)
        app.expect_settled(new)

    @pytest.mark.parametrize("command", ["update --restart always", "inspect --format {{.Name}}", "logs"])
    def test_around_the_switch(
        self, app: Application, app_images: Images, record: Callable[[str], None], command: str
    ) -> None:
        """Held at the last command before the switch, or after it, the run finds no daemon when it goes on."""
        good = Release(app_images.make())
        app.up(good)
        new = Release(app_images.make(), knobs={"sick_after": 1} if command == "logs" else {})
        assert app.run("candidate", new).status == 0
        with app.cut(1, "hold", only=command) as at, Prober(app.machine.host):
            running = app.begin("switch", new)
            wait_for(at, command)
            app.machine.kill_daemon()
            app.go_on()
            time.sleep(0.5)
            app.machine.restart_daemon()
            since = usable_time()
        took = self.expect_back(app, since, good, new)
        done = running.end()
        record(
            f"dockerd killed at {at()!r} of the switch: served {took:.1f} s after its return, "
            f"the run ended with {done.status}"
        )
        if done.status == 1:
            assert serves(app, good), done.shown
        else:
            app.expect_settled(new)
        again = good if new.knobs else new
        app.up(again)
        app.expect_settled(again)

    def test_in_the_drain(self, app: Application, app_images: Images, record: Callable[[str], None]) -> None:
        good, new = Release(app_images.make()), Release(app_images.make())
        app.up(good)
        app.values["drainTime"] = 20
        slow = threading.Thread(target=lambda: app.machine.answers(PORT, "/slow?seconds=20"), daemon=True)
        slow.start()
        time.sleep(0.3)
        assert app.run("candidate", new).status == 0
        running = app.begin("switch", new)
        running.wait_for("watched")
        time.sleep(0.5)
        since = self.kill_and_restart(app)
        took = self.expect_back(app, since, new)
        done = running.end()
        assert done.status == 0, done.shown
        record(f"dockerd killed in the drain: the new release served {took:.1f} s after its return")
        app.expect_settled(new)

    def test_of_the_machine_too(self, app: Application, app_images: Images) -> None:
        good, other = Release(app_images.make()), Release(app_images.make())
        app.up(other)
        app.up(good)
        assert app.run("candidate", Release(app_images.make())).status == 0
        restart(app.machine)
        since = usable_time()
        self.expect_back(app, since, good)
        app.up(good)
        app.expect_settled(good)
        app.up(other)
        app.expect_settled(other)

    def test_of_the_machine_in_the_gap(self, app: Application, app_images: Images) -> None:
        """The release before is stopped, the new one boots: what has proven itself serves again, without anybody."""
        app.values |= {"strategy": "recreate", "health": {**app.values["health"], "startPeriod": 30}}
        good, new = Release(app_images.make()), Release(app_images.make(), knobs={"boot_delay": 20})
        app.up(good)
        app.begin("deploy", new)
        wait_for(lambda: any("-candidate" in name for name in app.engine.running()), "the candidate")
        restart(app.machine)
        wait_for(lambda: serves(app, good), "the release before", 15)
        app.up(good)
        app.expect_settled(good)
        assert app.machine.inspect(NAME)["HostConfig"]["RestartPolicy"]["Name"] == "always"


def restart(machine: Machine) -> None:
    """Kill everything on a machine but what makes it one, and start its daemon again, as after a power cut."""
    namespace = f"{NAMESPACE_PREFIX}{machine.name}"

    def victims() -> set[int]:
        found = {int(pid) for pid in run("ip", "netns", "pids", namespace).split()} - {machine.init}
        parents: dict[int, int] = {}
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError, ValueError):
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
        for _ in range(6):
            found |= {pid for pid, parent in parents.items() if parent in found}
        return {pid for pid in found if not _is(pid, "sshd")}

    for _ in range(20):
        for pid in victims():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.2)
        if not any(_lives(pid) for pid in victims()):
            break
    # What is in memory is gone after a power cut.
    machine.sh(
        "rm -rf /run/docker.pid /run/docker /run/containerd /run/lock/* /dev/shm/*; umount -q -R /run/docker/netns/*",
        check=False,
    )
    machine.restart_daemon()


def _is(pid: int, name: str) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip() == name
    return False


def _lives(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return False


class TestEdge:
    """Something happens to the edge."""

    def test_its_process_is_killed(
        self, app: Application, app_images: Images, record: Callable[[str], None]
    ) -> None:
        good, second = Release(app_images.make()), Release(app_images.make())
        app.up(good)
        app.up(second)
        configuration = ("exec", EDGE, "wget", "-q", "-O", "-", "http://localhost:2019/config/")
        before = app.machine.docker(*configuration)
        with Prober(app.machine.host) as prober:
            time.sleep(0.2)
            os.kill(app.machine.inspect(EDGE)["State"]["Pid"], signal.SIGKILL)
            time.sleep(3)
        record(f"the edge's process killed: dark for {prober.dark:.2f} s")
        assert prober.dark < 2
        assert prober.commits == [second.commit]
        assert app.machine.docker(*configuration) == before
        app.expect_settled(second)

    @pytest.mark.parametrize(
        "harm",
        [
            ("stop", "-t", "1", EDGE),
            ("rm", "-f", EDGE),
            ("pause", EDGE),
            ("rm", "-f", "-v", EDGE, NAME),
            ("stop", "-t", "1", NAME),
            ("pause", NAME),
            ("rename", NAME, "somewhere"),
        ],
        ids=" ".join,
    )
    def test_by_hand(self, app: Application, app_images: Images, harm: tuple[str, ...]) -> None:
        """The same release, in the green slot, then another one: each repairs it."""
        first, second, third = (Release(app_images.make()) for _ in range(3))
        app.up(first)
        app.up(second)
        app.machine.docker(*harm)
        assert app.difference(second) is not None
        app.up(second)
        app.expect_settled(second)
        app.machine.docker(*harm)
        app.up(third)
        if harm[0] == "rename":
            assert [name for name in app.engine.running() if "edge" not in name] == [NAME]
        app.expect_settled(third)

    def test_its_volume_is_lost(self, app: Application, app_images: Images) -> None:
        first, second = Release(app_images.make()), Release(app_images.make())
        app.up(first)
        app.up(second)
        app.machine.docker("rm", "-f", EDGE)
        app.machine.docker("volume", "rm", EDGE)
        app.up(second)
        app.expect_settled(second)


class TestCandidateLifetime:
    """A candidate that nobody switches to goes after its lifetime; nothing that serves does."""

    def test_abandoned(self, app: Application, app_images: Images) -> None:
        app.values["candidateLifetime"] = 3
        good, new = Release(app_images.make()), Release(app_images.make())
        app.up(good)
        with Prober(app.machine.host) as prober:
            assert app.run("candidate", new).status == 0
            assert len(app.engine.running()) == 3
            wait_for(lambda: len(app.engine.running()) == 2, "the candidate to go")
            wait_for(lambda: app.leftovers(good) == [], "a clean machine")
            # One that is switched to stays, and so does the kept release that serves next, by another run.
            app.up(new)
            app.up(good)
            app.values["candidateLifetime"] = 600
            assert app.run("candidate", new).status == 0
            time.sleep(9)
            assert len(app.engine.running()) == 3
            assert app.run("switch", new).status == 0
        prober.expect_no_failure()
        app.expect_settled(new)
