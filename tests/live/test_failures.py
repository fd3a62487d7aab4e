"""What can go wrong between workstation, registry and server: a clear error each, the old release serving."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.live import images
from tests.live.machines import Machine, Room
from tests.live.project import PORT, Project
from tests.live.registry import Registry


@pytest.fixture
def served(project: Project, one: Machine) -> Project:
    """Give a project whose first commit serves on server one."""
    project.server(one)
    project.up().expect_good()
    return project


def still_serves(project: Project, machine: Machine, commit: str) -> None:
    """Check that ``commit`` serves, as the only container, and that the moving tag is there."""
    assert f"commit {commit} " in str(machine.answers(PORT))
    assert machine.containers("status=running") == ["parasite"]
    latest = project.registry.digest(project.repository, "latest")
    assert latest == project.registry.digest(project.repository, commit)


class TestRegistry:
    """The registry fails: nothing has changed anywhere."""

    def test_down(self, served: Project, one: Machine, registry: Registry) -> None:
        good = served.head
        served.commit()
        registry.stop()
        try:
            served.up().expect_bad(registry.address)
        finally:
            registry.start()
        still_serves(served, one, good)

    def test_wrong_password_to_push(self, served: Project, one: Machine) -> None:
        good = served.head
        served.commit()
        served.secrets["registryPassword"] = "not-the-password"
        outcome = served.up()
        outcome.expect_bad("registryPassword")
        assert "not-the-password" not in outcome.shown
        still_serves(served, one, good)

    def test_wrong_password_to_pull(self, served: Project, one: Machine) -> None:
        good = served.head
        served.commit()
        served.secrets["pullPassword"] = "not-the-password"
        outcome = served.up()
        outcome.expect_bad("pullPassword", "serves on")
        assert "not-the-password" not in outcome.shown
        still_serves(served, one, good)

    def test_unreachable_from_the_server_alone(self, served: Project, one: Machine) -> None:
        good = served.head
        served.commit()
        one.sh("iptables -w -I OUTPUT -p tcp --dport 5000 -j REJECT --reject-with tcp-reset")
        try:
            served.up().expect_bad("cannot be reached from server one")
        finally:
            one.sh("iptables -w -D OUTPUT -p tcp --dport 5000 -j REJECT --reject-with tcp-reset")
        still_serves(served, one, good)


class TestImage:
    """The image is wrong for the server."""

    def test_another_platform(self, served: Project, one: Machine) -> None:
        good = served.head
        served.commit()
        (served.root / "app" / "Dockerfile").write_text('FROM scratch\nCOPY app.py /\nCMD ["/x"]\n')
        served.commit_tree()
        served.settings["image"]["platform"] = "linux/arm64"
        served.up().expect_bad("arm64", "image.platform")
        still_serves(served, one, good)

    def test_a_build_that_fails(self, served: Project, one: Machine) -> None:
        good = served.head
        (served.root / "app" / "Dockerfile").write_text(
            "FROM esteira/base-python:local\nRUN echo the reason >&2; exit 3\n"
        )
        served.commit_tree()
        served.up().expect_bad("the reason")
        still_serves(served, one, good)

    def test_a_commit_that_was_never_built(self, served: Project, one: Machine) -> None:
        good = served.head
        served.up(commit="0" * 40).expect_bad("0000000", "image")
        still_serves(served, one, good)


class TestApplication:
    """The new release does not work: its state, its last lines, and the old one serving."""

    @pytest.mark.parametrize(
        ("knobs", "container", "words"),
        [
            pytest.param(
                {"exit_with": 3, "text": "no database"},
                {},
                ["exit code 3", "no database"],
                id="exits at start",
            ),
            pytest.param({"listen": "127.0.0.1"}, {}, ["not healthy"], id="listens on loopback only"),
            pytest.param({"port": 9000}, {}, ["not healthy"], id="listens on another port"),
            pytest.param(
                {"eat_memory": 200},
                {"memory": "32m"},
                ["exit code 137"],
                id="needs more memory than its limit",
            ),
            pytest.param({"health_status": 404}, {}, ["HTTP 404 from /health"], id="answers something else"),
            pytest.param(
                {}, {"command": ["/no/such/program"]}, ["/no/such/program"], id="has no such program"
            ),
            pytest.param({"boot_delay": 30}, {}, ["did not get healthy within"], id="boots too slowly"),
        ],
    )
    def test_it_is_taken_back(
        self,
        served: Project,
        one: Machine,
        knobs: dict[str, object],
        container: dict[str, object],
        words: list[str],
    ) -> None:
        good = served.head
        served.commit(**knobs)
        served.settings["container"].update(container)
        served.up().expect_bad(*words)
        still_serves(served, one, good)
        assert one.containers() == ["parasite"]

    def test_one_that_ignores_its_stop_signal_is_killed_after_its_timeout(
        self, project: Project, one: Machine
    ) -> None:
        project.server(one)
        project.settings["container"]["stopTimeout"] = 1
        project.commit(ignore_sigterm="yes")
        project.up().expect_good()
        project.commit()
        project.up().expect_good()
        assert f"commit {project.head} " in str(one.answers(PORT))

    def test_a_port_that_somebody_else_holds(self, served: Project, one: Machine) -> None:
        good = served.head
        one.docker("run", "-d", "--name", "theirs", "-p", "9999:80", images.EDGE, "sleep", "1000")
        served.commit()
        served.settings["container"]["ports"] = [f"{PORT}:8000", "9999:8001"]
        served.up().expect_bad("9999")
        assert f"commit {good} " in str(one.answers(PORT))
        assert sorted(one.containers()) == ["parasite", "theirs"]


class TestDisk:
    """The server's disk is full."""

    @pytest.fixture
    def small(self, room: Room, registry: Registry, builder: Machine) -> Iterator[Machine]:
        """Give a server with a disk of its own that holds little more than the base image."""
        machine = room.machine("small", 13, disk_megabytes=320)
        machine.wait_until_up()
        images.load(machine, images.EDGE)
        images.pull_base(machine, registry)
        yield machine
        machine.stop()

    def test_the_pull_fails_and_the_old_release_serves(self, project: Project, small: Machine) -> None:
        project.server(small)
        good = project.head
        project.up().expect_good()
        with (project.root / "app" / "big").open("wb") as file:
            file.write(bytes(range(256)) * 4096 * 160)
        dockerfile = project.root / "app" / "Dockerfile"
        dockerfile.write_text(dockerfile.read_text().replace("COPY app.py", "COPY big /big\nCOPY app.py"))
        project.commit_tree()
        project.up().expect_bad("disk of server small is full")
        assert f"commit {good} " in str(small.answers(PORT))
        assert small.containers() == ["parasite"]
