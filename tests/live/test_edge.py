"""The edge: what reaches the application through it, what does not get out of it, and what it survives."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator

import pytest

from tests.live.machines import BRIDGE, HERE, ROOM, Machine, run, wait_for
from tests.live.project import PORT, Project

pytestmark = pytest.mark.live

HERE_6, THERE_6 = f"fd00:213:6:{ROOM + 1}::1", f"fd00:213:6:{ROOM + 1}::2"
"""This machine's and server one's address in the room's network, where a test has given them one."""


@pytest.fixture
def behind(project: Project, one: Machine) -> Project:
    """Give a project whose application serves behind an edge."""
    project.server(one)
    project.settings |= {"strategy": "blueGreen", "rollout": {"watch": 0}}
    return project


def headers(machine: Machine, sent: dict[str, str] | None = None, port: int = PORT) -> dict[str, str]:
    """Ask the application what it got."""
    connection = http.client.HTTPConnection(machine.host, port, timeout=30)
    connection.request("GET", "/headers", headers=sent or {})
    found: dict[str, str] = json.loads(connection.getresponse().read())
    connection.close()
    return found


class TestHeaders:
    """The application learns who asked, by which name and protocol; a stranger's word about that is not taken."""

    def test_client_address_protocol_and_host(self, behind: Project, one: Machine) -> None:
        behind.up().expect_good()
        found = headers(one, {"Host": "shop.example.org:8888", "X-Forwarded-For": "203.0.113.7"})
        assert found["x-forwarded-for"] == HERE
        assert found["x-forwarded-proto"] == "http"
        assert found["x-forwarded-host"] == "shop.example.org:8888"
        assert found["host"] == "shop.example.org:8888"

    def test_the_word_of_a_trusted_proxy_is_taken(self, behind: Project, one: Machine) -> None:
        behind.up(trustedProxies=[f"{HERE}/32"]).expect_good()
        found = headers(one, {"X-Forwarded-For": "203.0.113.7", "X-Forwarded-Proto": "https"})
        assert found["x-forwarded-for"] == f"203.0.113.7, {HERE}"
        assert found["x-forwarded-proto"] == "https"

    def test_a_change_of_trusted_proxies_alone_reaches_the_edge(self, behind: Project, one: Machine) -> None:
        """The release serves on: the same container."""
        behind.up().expect_good()
        serving = one.inspect("parasite")["Id"]
        behind.up(trustedProxies=[f"{HERE}/32"]).expect_good()
        assert headers(one, {"X-Forwarded-For": "203.0.113.7"})["x-forwarded-for"].startswith("203.0.113.7")
        assert one.inspect("parasite")["Id"] == serving


@pytest.fixture
def six(one: Machine) -> Iterator[Machine]:
    """Give server one with an IPv6 address, in a network that this machine is in, and a daemon that forwards IPv6."""
    run("ip", "addr", "add", f"{HERE_6}/64", "dev", BRIDGE, "nodad")
    one.add_address(f"{THERE_6}/64")
    one.kill_daemon()
    # Before version 27 the firewall's half of it is an experiment.
    one.restart_daemon("--ipv6", "--fixed-cidr-v6=fd00:213:1::/64", "--experimental", "--ip6tables")
    yield one
    one.kill_daemon()
    one.restart_daemon()


class TestIpv6:
    """Where the daemon forwards IPv6, the application learns the address of such a client too."""

    def test_client_address(self, behind: Project, six: Machine) -> None:
        behind.up().expect_good()
        connection = http.client.HTTPConnection(THERE_6, PORT, timeout=30)
        connection.request("GET", "/headers", headers={"X-Forwarded-For": "2001:db8::7"})
        found = json.loads(connection.getresponse().read())
        connection.close()
        assert found["x-forwarded-for"] == HERE_6
        assert headers(six)["x-forwarded-for"] == HERE
        behind.commit()
        behind.up().expect_good()
        assert f"commit {behind.head}" in str(six.answers(PORT))
        behind.destroy().expect_good()
        assert six.docker("ps", "-aq") == ""
        assert "esteira" not in six.docker("network", "ls")


class TestPorts:
    """As many published ports as the container has, each where it was declared."""

    def test_several_ports_and_addresses(self, behind: Project, one: Machine) -> None:
        behind.settings["container"]["ports"] = [f"{PORT}:8000", "127.0.0.1:9000:8000"]
        behind.up().expect_good()
        assert f"commit {behind.head}" in str(one.answers(PORT))
        assert one.answers(9000) is None, "a port for 127.0.0.1 answers from outside"
        assert f"commit {behind.head}" in one.sh("curl -s http://127.0.0.1:9000/")

    def test_another_port_in_the_container(self, behind: Project, one: Machine) -> None:
        """Both slots know their own port, so that the old release is reached until the switch, and after a rollback."""
        behind.up().expect_good()
        first = behind.head
        behind.settings["container"]["ports"] = [f"{PORT}:8001"]
        behind.settings["container"]["environment"] = {"KNOB_PORT": "8001"}
        behind.commit()
        behind.up().expect_good()
        assert f"commit {behind.head}" in str(one.answers(PORT))
        behind.settings["container"]["ports"] = [f"{PORT}:8000"]
        behind.settings["container"]["environment"] = {}
        behind.up(commit=first).expect_good()
        assert f"commit {first}" in str(one.answers(PORT))


class TestTheEdgeItself:
    """Nobody outside reaches its administration, and it comes back as it was."""

    def test_administration_is_its_own(self, behind: Project, one: Machine) -> None:
        behind.up().expect_good()
        address = one.inspect("parasite-edge")["NetworkSettings"]["Networks"]["esteira-parasite"]["IPAddress"]
        ask = f"import urllib.request; urllib.request.urlopen('http://{address}:2019/config/', timeout=2)"
        said = one.sh(f'docker exec parasite python3 -c "{ask}" 2>&1; true')
        assert "Connection refused" in said
        assert "Failed to connect" in one.sh(
            f"curl -sS -m 2 http://{address}:2019/config/ 2>&1; true", check=False
        )

    def test_it_survives_its_own_restart_in_either_slot(self, behind: Project, one: Machine) -> None:
        for _ in range(2):
            behind.commit()
            behind.up().expect_good()
            one.docker("restart", "--time", "1", "parasite-edge")
            wait_for(lambda: f"commit {behind.head}" in str(one.answers(PORT)), "the edge")

    def test_before_a_release_serves_it_says_so(self, behind: Project, one: Machine) -> None:
        behind.up().expect_good()
        one.docker("stop", "--time", "0", "parasite")
        # An application that does not run has no name either, and a name server that is away takes its time to say so.
        status, text = one.http_get(PORT, timeout=60)
        assert (status, text) == (503, "No release of parasite is serving.")
        behind.up().expect_good()
        assert f"commit {behind.head}" in str(one.answers(PORT))
