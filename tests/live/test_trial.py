"""One of several servers: its switch is on trial until all have switched; unconfirmed, it is taken back."""

from __future__ import annotations

import fcntl
import os
import signal
import time
from collections.abc import Callable

import pytest

from components import registry as client
from components.arguments import create_options, decision_tag, release_fingerprint
from components.decision import LABEL, switch_mark
from tests.live.driving import NAME, PORT, REPOSITORY, Application, Images, Prober, Release
from tests.live.machines import wait_for
from tests.live.registry import Registry
from tests.live.test_recovery import restart

DEADLINE = 6
"""Seconds after which an unconfirmed switch is taken back in these tests."""


@pytest.fixture
def app(app: Application) -> Application:
    app.one_of_several(DEADLINE)
    return app


def serves(app: Application, release: Release) -> bool:
    return f"commit {release.commit} " in str(app.machine.answers(PORT))


def switch(app: Application, release: Release, request: str = "a test") -> None:
    """Run the phases up to the switch on trial."""
    for phase in ("candidate", "switch"):
        done = app.run(phase, release, request=request)
        assert done.status == 0, done.shown
    assert "on trial" in done.out, done.shown
    assert serves(app, release)


def taken_back(app: Application, release: Release, seconds: float = DEADLINE + 8) -> float:
    """Wait until the release serves again and nothing else is there; seconds that it took."""
    started = time.monotonic()
    wait_for(lambda: serves(app, release), "the release before", seconds)
    took = time.monotonic() - started
    wait_for(lambda: not app.leftovers(release), "a clean server", 10)
    app.expect_settled(release)
    return took


class TestBlueGreen:
    """The release before keeps running, with its name, until the confirmation."""

    def test_confirmed(self, app: Application, app_images: Images) -> None:
        old, new = Release(app_images.make()), Release(app_images.make())
        app.up(old)
        with Prober(app.machine.host) as prober:
            switch(app, new)
            assert app.machine.inspect(NAME)["Config"]["Labels"]["esteira.commit"] == old.commit
            assert app.difference(new) is not None
            done = app.run("confirm", new)
            assert done.status == 0, done.shown
            time.sleep(DEADLINE + 2)
            # And back to a release that is kept.
            app.up(old)
            time.sleep(DEADLINE + 2)
        prober.expect_no_failure()
        assert prober.commits == [old.commit, new.commit, old.commit]
        app.expect_settled(old)

    def test_nobody_confirms(self, app: Application, app_images: Images) -> None:
        old, new = Release(app_images.make()), Release(app_images.make())
        app.up(old)
        app.up(new)
        for release in (Release(app_images.make()), old):
            with Prober(app.machine.host) as prober:
                switch(app, release)
                taken_back(app, new)
            prober.expect_no_failure()
        # One that comes too late does all of it again.
        done = app.run("confirm", old)
        assert "did not hold" in done.out, done.shown
        assert done.status == 0, done.shown
        app.expect_settled(old)

    def test_it_was_decided(
        self, app: Application, app_images: Images, registry: Registry, record: Callable[[str], None]
    ) -> None:
        """The run was lost after all had switched: the server reads that in the registry, and confirms itself."""
        old, new = Release(app_images.make()), Release(app_images.make())
        app.up(old)
        where = (registry.address, REPOSITORY, registry.user, registry.password)
        with Prober(app.machine.host) as prober:
            switch(app, new)
            switched = time.monotonic()
            settings = app.settings(new)
            options = create_options(settings, settings.servers[0], new.commit)
            own = switch_mark("a test", new.commit, release_fingerprint(settings, options, []))
            marks = " ".join(["0" * 64, own])
            tag = decision_tag(settings)
            client.Registry(*where, plain_http=True).write_labels(tag, {LABEL: marks})
            wait_for(lambda: not app.leftovers(new), "its own confirmation", DEADLINE + 20)
            record(f"a switch that was decided confirmed itself {time.monotonic() - switched:.1f} s later")
        prober.expect_no_failure()
        assert prober.commits == [old.commit, new.commit]
        app.expect_settled(new)
        assert tag not in app.machine.docker("image", "ls", "--format", "{{.Tag}}").split()

    def test_every_process_of_the_run_is_killed(self, app: Application, app_images: Images) -> None:
        """Then the edge itself ends the trial; what is left over goes with the next run."""
        old, new = Release(app_images.make()), Release(app_images.make())
        app.up(old)
        assert app.run("candidate", new).status == 0
        with Prober(app.machine.host) as prober:
            running = app.begin("switch", new)
            running.wait_for("on trial")
            os.killpg(running.process.pid, signal.SIGKILL)
            assert serves(app, new)
            wait_for(lambda: serves(app, old), "the edge's own guard", DEADLINE + 20)
            app.up(old)
        prober.expect_no_failure()
        app.expect_settled(old)

    def test_undo(self, app: Application, app_images: Images) -> None:
        old, new = Release(app_images.make()), Release(app_images.make())
        app.up(old, request="first")
        for phases in ((), ("candidate",), ("candidate", "switch")):
            request = f"after {len(phases)} phases"
            with Prober(app.machine.host) as prober:
                for phase in phases:
                    assert app.run(phase, new, request=request).status == 0
                done = app.run("undo", new, request=request)
                assert done.status == 0, done.shown
                assert serves(app, old)
                assert app.leftovers(old) == []
                # What was on its way does not begin any more.
                for phase in ("candidate", "switch", "confirm"):
                    done = app.run(phase, new, request=request)
                    assert done.status == 1
                    assert "was given up" in done.err, done.shown
                app.expect_settled(old)
            prober.expect_no_failure()
        # Neither the release before nor the same one, asked for anew, is kept from it.
        app.up(old, request=request)
        app.up(new, request="again")
        app.expect_settled(new)
        done = app.run("undo", new, request="again")
        assert "settled here" in done.out, done.shown
        app.expect_settled(new)

    def test_the_machine_is_started_anew(self, app: Application, app_images: Images) -> None:
        old, new = Release(app_images.make()), Release(app_images.make())
        app.up(old)
        switch(app, new)
        restart(app.machine)
        wait_for(lambda: serves(app, old), "the release before", 15)
        app.up(new)
        app.expect_settled(new)

    def test_the_first_release(self, app: Application, app_images: Images) -> None:
        first = Release(app_images.make())
        switch(app, first)
        wait_for(lambda: app.engine.containers() == [], "an empty server", DEADLINE + 8)
        switch(app, first)
        switch(app, first)
        assert app.run("confirm", first).status == 0
        app.expect_settled(first)

    @pytest.mark.parametrize("end", ["undo", "deadline", "confirm"])
    def test_a_container_of_the_procedure(self, app: Application, app_images: Images, end: str) -> None:
        new = Release(app_images.make())
        app.run_as_the_procedure(app_images.make(), commit="0" * 40)
        switch(app, new)
        if end == "confirm":
            assert app.run("confirm", new).status == 0
            app.expect_settled(new)
            return
        if end == "undo":
            done = app.run("undo", new)
            assert "has its port back" in done.out, done.shown
        wait_for(lambda: f"commit {'0' * 40} " in str(app.machine.answers(PORT)), "it", DEADLINE + 8)
        wait_for(lambda: len(app.engine.containers()) == 1, "an empty server", 5)

    @pytest.mark.parametrize("end", ["undo", "deadline", "confirm"])
    def test_another_port(self, app: Application, app_images: Images, end: str) -> None:
        old, new = Release(app_images.make()), Release(app_images.make())
        app.up(old)
        app.values["container"]["ports"] = [f"{PORT + 1}:8000"]
        for phase in ("candidate", "switch"):
            done = app.run(phase, new)
            assert done.status == 0, done.shown
        assert f"commit {new.commit} " in str(app.machine.answers(PORT + 1))
        if end == "confirm":
            assert app.run("confirm", new).status == 0
            assert app.leftovers(new) == []
            assert app.difference(new) is None
            return
        if end == "undo":
            assert app.run("undo", new).status == 0
        app.values["container"]["ports"] = [f"{PORT}:8000"]
        taken_back(app, old)


class TestRecreate:
    """The release before stays stopped, with its name, until the confirmation."""

    @pytest.fixture
    def app(self, app: Application) -> Application:
        app.values["strategy"] = "recreate"
        return app

    @pytest.mark.parametrize("end", ["undo", "deadline", "confirm", "restart", "again"])
    def test_an_end(self, app: Application, app_images: Images, end: str) -> None:
        old, new = Release(app_images.make()), Release(app_images.make())
        app.up(old, request="first")
        switch(app, new, "second")
        if end == "confirm":
            done = app.run("confirm", new, request="second")
            assert done.status == 0, done.shown
            assert "confirmed" in done.out
            time.sleep(DEADLINE + 2)
            app.expect_settled(new)
            return
        if end == "undo":
            done = app.run("undo", new, request="second")
            assert "serves again" in done.out, done.shown
        if end == "restart":
            restart(app.machine)
            wait_for(lambda: serves(app, old), "the release before", 15)
            app.up(old, request="third")
        if end == "again":
            app.up(new, request="third")
            app.expect_settled(new)
            return
        taken_back(app, old)

    @pytest.mark.parametrize("end", ["undo", "again"])
    def test_after_blue_green(self, app: Application, app_images: Images, end: str) -> None:
        """The candidate fails on this server: the edge of the strategy before serves on."""
        app.values["strategy"] = "blueGreen"
        old, new = Release(app_images.make()), Release(app_images.make())
        app.up(old)
        app.values |= {"strategy": "recreate", "preDeploy": ["sh", "-c", "exit 3"]}
        with Prober(app.machine.host) as prober:
            done = app.run("candidate", new)
            assert done.status == 1, done.shown
            assert "preDeploy failed with exit code 3" in done.shown
            if end == "undo":
                assert app.run("undo", new).status == 0
            time.sleep(0.5)
        prober.expect_no_failure()
        del app.values["preDeploy"]
        if end == "undo":
            app.values["strategy"] = "blueGreen"
        following = old if end == "undo" else new
        app.up(following)
        app.expect_settled(following)

    def test_the_machine_is_started_anew_in_the_gap(self, app: Application, app_images: Images) -> None:
        old, new = Release(app_images.make()), Release(app_images.make(), knobs={"boot_delay": 20})
        app.values["health"] = {**app.values["health"], "startPeriod": 30}
        app.up(old)
        assert app.run("candidate", new).status == 0
        running = app.begin("switch", new)
        running.wait_for("stopped commit")
        wait_for(lambda: any("-candidate" in name for name in app.engine.running()), "the candidate")
        restart(app.machine)
        wait_for(lambda: serves(app, old), "the release before", 15)
        app.up(old, request="another")
        app.expect_settled(old)


def test_another_application_holds_the_lock_at_the_deadline(app: Application, app_images: Images) -> None:
    """The switch is taken back when that one is done, however long it took."""
    old, new = Release(app_images.make()), Release(app_images.make())
    app.values["lockTimeout"] = 1
    app.up(old)
    with Prober(app.machine.host) as prober:
        switch(app, new)
        [lock] = app.locks()
        with lock.open() as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            time.sleep(DEADLINE + 5)
        taken_back(app, old)
    prober.expect_no_failure()
