"""How a server is reached: every kind of login works, and what does not work is said before anything is touched."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from components.remote import Payload, command_text, standard_input
from tests.live.driving import Application
from tests.live.machines import HERE, NETWORK, PASSWORD, Machine, Room
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


ASKS = "error: sudo asks for a password on this server."
"""What is said where no password is set."""


class TestSudo:
    """Whether sudo reads the password is for it alone to know: none that it leaves is run by root's shell or shown."""

    @pytest.mark.parametrize("given", [True, False], ids=["with a password", "without"])
    @pytest.mark.parametrize(
        ("rules", "before", "works_without"),
        [
            pytest.param("careful ALL=(ALL) ALL", "", False, id="it asks"),
            pytest.param("careful ALL=(ALL) NOPASSWD: ALL", "", True, id="it does not ask"),
            pytest.param(
                "careful ALL=(ALL) ALL, NOPASSWD: /bin/sh, /usr/bin/sh", "", True, id="not for the shell"
            ),
            pytest.param(
                "careful ALL=(ALL) ALL\nDefaults timestamp_type=global",
                "printf '%s\\n' '{password}' | sudo -S -p '' true",
                True,
                id="it remembers",
            ),
            pytest.param(
                "careful ALL=(ALL) ALL\nDefaults timestamp_timeout=0", "", False, id="it never remembers"
            ),
        ],
    )
    def test_every_rule(
        self, app: Application, rules: str, before: str, works_without: bool, given: bool
    ) -> None:
        one = app.machine
        with sudo_rules(one, rules):
            first = before.format(password=one.password)
            status, said = as_root(app, one.password if given else None, first)
        assert one.password not in said
        if given or works_without:
            assert (status, said.startswith("esteira-reading 1\n")) == (0, True), said
        else:
            assert (status, said.startswith(ASKS)) == (1, True), said

    def test_a_user_without_a_password_of_his_own(self, app: Application) -> None:
        """PAM lets him in unasked, which `sudo -n` does not know."""
        one = app.machine
        shadow = one.path("etc/shadow")
        written = shadow.read_text()
        shadow.write_text(re.sub(r"(?m)^careful:[^:]*:", "careful::", written))
        try:
            status, said = as_root(app, "touch /run/ran")
        finally:
            shadow.write_text(written)
        assert (status, said.startswith("esteira-reading 1\n")) == (0, True), said
        assert not one.path("run/ran").exists()

    @pytest.mark.parametrize("user", ["careful", "powerless"])
    def test_a_wrong_password_and_a_user_who_may_not(self, app: Application, user: str) -> None:
        status, said = as_root(app, "not-the-password" if user == "careful" else PASSWORD, user=user)
        assert status == 1
        assert "sudo: 3 incorrect password attempts" in said or "powerless is not in the sudoers file" in said
        assert "not-the-password" not in said
        assert PASSWORD not in said


@contextmanager
def sudo_rules(machine: Machine, rules: str) -> Iterator[None]:
    """Let sudo there follow other rules for a while, with nothing remembered before or after."""
    file = machine.path("etc/sudoers.d/live")
    written = file.read_text()
    forget = "rm -rf /run/sudo/ts/* /var/lib/sudo/ts/*"
    machine.sh(forget)
    file.write_text(rules + "\n")
    try:
        yield
    finally:
        file.write_text(written)
        machine.sh(forget)


def as_root(
    app: Application, password: str | None, before: str = "", user: str = "careful"
) -> tuple[int, str]:
    """Read the server as a user with sudo, behind a command of his; return the status and all that was said."""
    text = command_text("read", [("server", "one"), ("owner", "p/s/parasite"), ("name", "parasite")])
    given = standard_input(Payload(), sudo=True, sudo_password=password)
    process = app.start(f"{before}\n{text}" if before else text, given, user=user)
    out, err = process.communicate(timeout=60)
    return process.returncode, (out + err).decode()


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
