"""Taking over from what was there: the old procedure's container, another strategy, other ports."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from tests.live import images
from tests.live.driving import NAME, PORT, Application, Images, Prober, Release
from tests.live.machines import wait_for


@pytest.fixture
def procedure(app: Application, app_images: Images) -> str:
    """Give the commit of a container that the old procedure started."""
    commit = "0123456789" * 4
    app.run_as_the_procedure(app_images.make(), commit=commit)
    return commit


class TestAdoption:
    """A container of the procedure's own docker run."""

    def test_it_is_taken_over(
        self, app: Application, app_images: Images, procedure: str, record: Callable[[str], None]
    ) -> None:
        new = Release(app_images.make())
        assert "did not make" in str(app.difference(new))
        with Prober(app.machine.host) as prober:
            said = app.up(new)
            time.sleep(0.2)
        assert prober.commits == [procedure, new.commit]
        record(f"adoption: {len(prober.failures)} requests failed, dark for {prober.dark:.2f} s")
        assert prober.dark < 3
        assert "docker rm parasite-before-" in said
        app.expect_settled(new)
        again = Release(app_images.make())
        with Prober(app.machine.host) as prober:
            app.up(again)
        prober.expect_no_failure()
        app.expect_settled(again)

    def test_not_by_a_candidate_that_never_gets_healthy(
        self, app: Application, app_images: Images, procedure: str
    ) -> None:
        before = app.machine.inspect(NAME)
        with Prober(app.machine.host) as prober:
            app.up_fails(Release(app_images.make(), knobs={"health_status": 500}), "HTTP 500")
        prober.expect_no_failure()
        after = app.machine.inspect(NAME)
        assert (after["Id"], after["State"]["StartedAt"]) == (before["Id"], before["State"]["StartedAt"])
        self.expect_as_before(app)

    def test_it_gets_its_port_back_from_one_that_falls_ill(
        self, app: Application, app_images: Images, procedure: str, record: Callable[[str], None]
    ) -> None:
        app.machine.docker("update", "--restart", "unless-stopped", NAME)
        with Prober(app.machine.host) as prober:
            app.up_fails(Release(app_images.make(), knobs={"sick_after": 1}), "has its port back")
            wait_for(lambda: prober.commits[-1] == procedure, "the procedure's container")
        record(f"adoption taken back: dark for {prober.dark:.2f} s")
        assert app.machine.inspect(NAME)["HostConfig"]["RestartPolicy"]["Name"] == "unless-stopped"
        self.expect_as_before(app)

    def test_its_port_is_anothers(self, app: Application, app_images: Images, procedure: str) -> None:
        app.machine.docker("run", "-d", "--name", "theirs", "-p", "9000:9", images.EDGE, "sleep", "1000")
        app.values["container"]["ports"] = [f"{PORT}:8000", "9000:8000"]
        app.up_fails(Release(app_images.make()), "port", "has its port back")
        assert f"commit {procedure} " in str(app.machine.answers(PORT))
        app.machine.docker("rm", "-f", "theirs")
        self.expect_as_before(app)

    def test_compose_is_refused(self, app: Application, app_images: Images) -> None:
        app.run_as_the_procedure(app_images.make(), "--label", "com.docker.compose.project=shop")
        app.up_fails(Release(app_images.make()), "docker compose project shop", "container.name")
        self.expect_as_before(app)

    def expect_as_before(self, app: Application) -> None:
        """Check that the procedure's container is the only thing on the machine."""
        assert app.machine.containers() == [NAME]
        assert app.machine.containers("status=running") == [NAME]
        assert app.machine.docker("network", "ls", "-q", "--filter", "type=custom") == ""
        assert app.machine.docker("volume", "ls", "-q") == ""
        assert app.files_left() == []

    def test_its_edge_has_the_name_of_anothers_container(self, app: Application, app_images: Images) -> None:
        name = f"{NAME}-edge-next"
        others = app.run_as_the_procedure(app_images.make(), port=PORT + 1)
        app.machine.docker("rename", others, name)
        app.up_fails(Release(app_images.make()), f"The container {name} on server one", "Rename it there")
        assert app.machine.inspect(others)["State"]["Running"]
        assert app.machine.containers() == [name]
        app.machine.docker("rename", name, "anothers")
        app.up(Release(app_images.make()))
        assert app.machine.inspect(others)["State"]["Running"]


class TestStrategy:
    """blueGreen and recreate take over from each other, and give back."""

    def test_both_ways(self, app: Application, app_images: Images, record: Callable[[str], None]) -> None:
        first = Release(app_images.make())
        app.up(first)
        for strategy in ("recreate", "blueGreen", "recreate"):
            serving = first.commit
            app.values["strategy"] = strategy
            with Prober(app.machine.host) as prober:
                app.up_fails(Release(app_images.make(), knobs={"health_status": 500}), "HTTP 500")
                wrong = Release(app_images.make(), knobs={"sick_after": 1})
                if strategy == "blueGreen":
                    app.up_fails(wrong, "after the switch")
                wait_for(lambda: prober.commits[-1:] == [serving], "what served before")  # noqa: B023
            dark = prober.dark
            with Prober(app.machine.host) as prober:
                app.up(first)
                time.sleep(0.3)
            assert prober.commits[-1] == first.commit
            record(f"to {strategy}: dark for {prober.dark:.2f} s; a failing release before: {dark:.2f} s")
            app.expect_settled(first)

    def test_recreate_as_such(self, app: Application, app_images: Images) -> None:
        app.values["strategy"] = "recreate"
        first, second = Release(app_images.make()), Release(app_images.make())
        for release in (first, second, first):
            app.up(release)
            app.expect_settled(release)


class TestEdgeSettings:
    """Settings that the edge has change."""

    def test_ports(self, app: Application, app_images: Images, record: Callable[[str], None]) -> None:
        first, second = Release(app_images.make()), Release(app_images.make())
        app.up(first)
        app.up(second)
        container = app.values["container"]
        # To more ports, in one with a new release, whose slot is blue; then back in one with the same.
        app.values["container"] = {**container, "ports": [f"{PORT}:8000", "8890:8000"]}
        third = Release(app_images.make())
        with Prober(app.machine.host) as prober:
            app.up(third)
            time.sleep(0.2)
        record(f"ports changed with a release: dark for {prober.dark:.2f} s")
        app.expect_settled(third)
        assert f"commit {third.commit} " in str(app.machine.answers(8890))
        app.values["container"] = container
        with Prober(app.machine.host) as prober:
            app.up(third)
            time.sleep(0.2)
        record(f"ports changed back: dark for {prober.dark:.2f} s")
        app.expect_settled(third)
        assert app.machine.answers(8890) is None

    def test_ports_that_fail(self, app: Application, app_images: Images) -> None:
        first = Release(app_images.make())
        app.up(first)
        container = app.values["container"]
        ports = {**container, "ports": [f"{PORT}:8000", "8890:8001"]}
        # The release falls ill behind the new edge: the edge before has its ports back.
        app.values["container"] = ports
        with Prober(app.machine.host) as prober:
            app.up_fails(Release(app_images.make(), knobs={"sick_after": 1}), "edge before serves again")
            time.sleep(0.2)
        assert prober.commits[-1] == first.commit
        assert app.machine.answers(8890) is None
        app.values["container"] = container
        app.expect_settled(first)
        # Somebody else has the new port.
        app.machine.docker("run", "-d", "--name", "theirs", "-p", "8890:9", images.EDGE, "sleep", "1000")
        app.values["container"] = ports
        app.up_fails(Release(app_images.make()), "port", "edge before serves again")
        app.machine.docker("rm", "-f", "theirs")
        app.values["container"] = container
        app.expect_settled(first)

    def test_trusted_proxies_and_the_port_inside(self, app: Application, app_images: Images) -> None:
        first = Release(app_images.make())
        app.up(first)
        with Prober(app.machine.host, interval=0.1) as prober:
            app.values["trustedProxies"] = ["10.0.0.0/8"]
            app.up(first)
            app.expect_settled(first)
            app.values["container"] = {**app.values["container"], "ports": [f"{PORT}:9000"]}
            second = Release(app_images.make(), knobs={"port": 9000})
            app.up(second)
            app.expect_settled(second)
        assert "10.0.0.0/8" in app.machine.docker("exec", f"{NAME}-edge", "sh", "-c", "cat /edge/parasite/*")
        prober.expect_no_failure()
