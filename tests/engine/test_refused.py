"""What the engine shows when a server or the registry cannot be used: one sentence, soon, the old release serving."""

from __future__ import annotations

import pytest

from tests.engine.stack import Stack, shows
from tests.live.machines import Machine, Room
from tests.live.registry import Registry


@pytest.fixture(scope="module")
def served(stack: Stack) -> str:
    """Give the commit that serves; another one waits to be deployed."""
    commit = stack.head
    stack.commit()
    return commit


class TestServer:
    """Each is said by `up` before anything is touched; a preview warns and shows the rest."""

    def test_a_wrong_host_key(self, stack: Stack, served: str, one: Machine, two: Machine) -> None:
        entry = stack.settings["servers"][0]
        before = one.sshd_log()
        entry["hostKey"] = two.host_key
        try:
            preview = stack.preview().expect_good()
            stack.up().expect_bad("another host key", one.host)
        finally:
            entry["hostKey"] = one.host_key
        assert "another host key" in preview.screen
        log = one.sshd_log()[len(before) :]
        assert "Accepted" not in log
        assert "Failed" not in log
        assert shows(one, served)

    def test_a_wrong_password_is_tried_at_most_twice(self, stack: Stack, served: str, one: Machine) -> None:
        before = one.sshd_log().count("Failed password")
        right = stack.secrets["serverPassword"]
        stack.secrets["serverPassword"] = "not-the-password"
        try:
            run = stack.up().expect_bad("refuses the password", "esteira:serverPassword")
        finally:
            stack.secrets["serverPassword"] = right
        assert "not-the-password" not in run.screen
        assert 1 <= one.sshd_log().count("Failed password") - before <= 2
        assert shows(one, served)

    def test_a_preview_without_a_login_says_so_and_an_up_refuses(
        self, stack: Stack, served: str, one: Machine
    ) -> None:
        before = one.sshd_log()
        right = stack.secrets.pop("serverPassword")
        try:
            preview = stack.preview().expect_good()
            stack.up().expect_bad("No password and no private key to log in to one")
        finally:
            stack.secrets["serverPassword"] = right
        assert "Server one was not read" in preview.screen
        assert one.sshd_log() == before
        assert shows(one, served)

    def test_a_server_that_does_not_answer(self, stack: Stack, served: str, room: Room, one: Machine) -> None:
        gone = {"name": "gone", "host": room.black_hole(97), "hostKey": one.host_key}
        stack.settings["servers"].append(gone)
        try:
            run = stack.up().expect_bad("gone", "does not answer")
        finally:
            stack.settings["servers"].pop()
        assert run.seconds < 60
        assert shows(one, served)


class TestRegistry:
    """Each is said with the setting at fault."""

    def test_a_wrong_password(self, stack: Stack, served: str, one: Machine) -> None:
        right = stack.secrets["registryPassword"]
        stack.secrets["registryPassword"] = "not-the-password"
        try:
            run = stack.preview().expect_bad("registryPassword")
        finally:
            stack.secrets["registryPassword"] = right
        assert "not-the-password" not in run.screen
        assert shows(one, served)

    def test_a_registry_that_is_down(
        self, stack: Stack, served: str, one: Machine, registry: Registry
    ) -> None:
        registry.stop()
        try:
            stack.up().expect_bad(registry.address)
        finally:
            registry.start()
        assert shows(one, served)
