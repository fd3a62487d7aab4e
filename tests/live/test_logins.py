"""How a server is reached: every kind of login works, and what does not work is said before anything is touched."""

from __future__ import annotations

import time
from typing import Any

import pytest

from tests.live.machines import HERE, NETWORK, Machine, Room
from tests.live.project import PORT, Project, changes


class TestLogin:
    """Password or key, another port, sudo with and without a password, a jump host."""

    @pytest.mark.parametrize(
        ("entry", "secrets"),
        [
            pytest.param({}, {"serverPassword": "password"}, id="root by password"),
            pytest.param({"port": 2222}, {"serverPrivateKey": "key"}, id="root by key, another port"),
            pytest.param({"user": "deploy", "sudo": True}, {"serverPassword": "password"}, id="sudo"),
            pytest.param(
                {"user": "careful", "sudo": True},
                {"serverPrivateKey": "key", "sudoPassword": "password"},
                id="key, and sudo with a password",
            ),
        ],
    )
    def test_a_release_and_its_removal(
        self, project: Project, one: Machine, entry: dict[str, Any], secrets: dict[str, str]
    ) -> None:
        values = {"password": one.password, "key": one.private_key}
        project.secrets["serverPassword"] = None
        project.secrets.update({key: values[value] for key, value in secrets.items()})
        project.server(one, **entry)
        project.secrets = {key: value for key, value in project.secrets.items() if value is not None}
        outcome = project.up().expect_good()
        assert f"commit {project.head} " in str(one.answers(PORT))
        assert one.password not in outcome.shown
        project.destroy().expect_good()
        assert one.containers() == []
        assert docker_configurations(one) == []

    def test_through_a_jump_host(self, project: Project, one: Machine, two: Machine) -> None:
        # From here the server itself cannot be reached: only the jump host can.
        two.sh(f"iptables -w -I INPUT -s {HERE} -p tcp --dport 22 -j DROP")
        try:
            project.secrets["serverPrivateKey"] = two.private_key
            project.secrets["jumpPassword"] = one.password
            project.secrets["serverPassword"] = None
            jump = {"host": one.host, "port": 2222, "user": "powerless", "hostKey": one.host_key}
            project.server(two, jumpHost=jump)
            project.secrets.pop("serverPassword")
            project.up().expect_good()
            assert f"commit {project.head} " in str(two.answers(PORT))
            assert one.containers() == []
        finally:
            two.sh(f"iptables -w -D INPUT -s {HERE} -p tcp --dport 22 -j DROP")


class TestRefused:
    """Each failure is one clear sentence, comes soon, and leaves every server as it was."""

    def test_a_wrong_host_key_stops_before_anything_is_touched(
        self, project: Project, one: Machine, two: Machine
    ) -> None:
        project.server(one)
        project.server(two)["hostKey"] = one.host_key
        outcome = project.up()
        outcome.expect_bad("host key", two.host)
        assert "Accepted" not in two.sshd_log(), "it logged in to a server that it does not know"
        assert "Failed password" not in two.sshd_log(), "it sent a password to a server that it does not know"
        assert changes(one) == []
        assert one.containers() == []

    def test_a_wrong_password_is_tried_at_most_twice(self, project: Project, one: Machine) -> None:
        project.server(one)
        project.secrets["serverPassword"] = "not-the-password"
        project.up().expect_bad("password", one.host)
        assert 1 <= one.sshd_log().count("Failed password") <= 2
        assert changes(one) == []

    def test_a_wrong_key_is_tried_at_most_twice(self, project: Project, one: Machine, two: Machine) -> None:
        project.server(one)
        project.secrets.pop("serverPassword")
        project.secrets["serverPrivateKey"] = two.private_key
        project.up().expect_bad("private key", one.host)
        assert one.sshd_log().count("Failed publickey") <= 2

    def test_a_server_that_does_not_answer_is_an_error_within_a_minute(
        self, project: Project, one: Machine, room: Room
    ) -> None:
        project.server(one)
        entry = project.server(one)
        entry.update(name="gone", host=room.black_hole(98))
        started = time.monotonic()
        project.up().expect_bad("gone", f"{NETWORK}.98")
        assert time.monotonic() - started < 60
        assert changes(one) == []

    def test_a_server_where_nothing_listens(self, project: Project, one: Machine) -> None:
        project.server(one, port=2223)
        project.up().expect_bad("one", "2223")

    def test_a_user_who_may_not_use_docker_is_told_what_to_set(self, project: Project, one: Machine) -> None:
        project.server(one, user="powerless")
        project.up().expect_bad("powerless", "sudo: true")

    def test_sudo_that_asks_for_a_password_is_told_what_to_set(self, project: Project, one: Machine) -> None:
        project.server(one, user="careful", sudo=True)
        project.up().expect_bad("sudoPassword")
        project.secrets["sudoPassword"] = "not-the-password"
        outcome = project.up()
        outcome.expect_bad("sudo")
        assert "not-the-password" not in outcome.shown

    def test_a_daemon_that_is_down_is_told_apart(self, project: Project, one: Machine) -> None:
        project.server(one)
        one.kill_daemon()
        try:
            project.up().expect_bad("Docker daemon", "one")
        finally:
            one.restart_daemon()


def docker_configurations(machine: Machine) -> list[str]:
    """Docker configurations that hold a login, on the whole machine."""
    found = machine.sh(
        "grep -ls auth ~root/.docker/config.json /home/*/.docker/config.json /dev/shm/*/*/config.json; true"
    )
    return found.split()
