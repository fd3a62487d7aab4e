"""What each setting becomes on a server: an option of docker create, an argument of a phase, or a secret by stdin."""

from __future__ import annotations

import random
from typing import Any

import pytest

from components.arguments import (
    container_command,
    create_options,
    declared_networks,
    deploy_input,
    edge_mark,
    edge_values,
    health_values,
    identity_values,
    owner_of,
    phase_values,
    published_at,
    release_fingerprint,
)
from components.settings import PortSettings, Settings
from tests.unit.wrong_settings import ABSENT, HOST_KEY, SECRETS, changed, load

COMMIT = "8e13f56a" * 5
MARKERS = ("MARKER-registry", "MARKER-pull", "MARKER-server", "MARKER-sudo", "MARKER-env", "MARKER-file")
RECREATE = ("strategy", "recreate")


def settings(*changes: tuple[str, object]) -> Settings:
    return load(changed(*changes))


def options(*changes: tuple[str, object]) -> list[str]:
    """Return what the settings add to the options of the right settings, in their order."""
    made = settings(*changes)
    return create_options(made, made.servers[0], COMMIT)


def added(*changes: tuple[str, object]) -> list[str]:
    before = options(*(change for change in changes if change[0] == "strategy"))
    return [option for option in options(*changes) if option not in before]


def values(*changes: tuple[str, object]) -> dict[str, str]:
    made = settings(*changes)
    return dict(phase_values(made, made.servers[0], COMMIT, COMMIT))


def mark(*changes: tuple[str, object]) -> str:
    made = settings(*changes)
    opts = create_options(made, made.servers[0], COMMIT)
    return release_fingerprint(made, opts, container_command(made.container))


class TestSnapshot:
    """The whole of it once: what a person reads in a preview, in this order."""

    def test_blue_green(self) -> None:
        made = settings(("preDeploy", "python3 manage.py migrate"))
        assert phase_values(made, made.servers[0], COMMIT, f"{COMMIT}-dirty-0123456789ab") == [
            ("server", "web"),
            ("owner", "esteira/staging/parasite"),
            ("name", "parasite"),
            ("lockTimeout", "300"),
            ("commit", COMMIT),
            ("tag", f"{COMMIT}-dirty-0123456789ab"),
            ("registry", "registry.example.com"),
            ("strategy", "blueGreen"),
            ("restart", "always"),
            ("keepReleases", "5"),
            ("health.test", "http"),
            ("health.path", "/health"),
            ("health.status", "200"),
            ("health.scheme", "http"),
            ("health.port", "8000"),
            ("health.interval", "0.2"),
            ("health.timeout", "5"),
            ("health.retries", "10"),
            ("health.startPeriod", "30"),
            ("preDeploy", "python3 manage.py migrate"),
            ("edgeImage", "caddy:2.11.9-alpine"),
            ("port", "8888:8000/http"),
            ("watch", "3"),
            ("drainTime", "30"),
            ("candidateLifetime", "600"),
        ]
        assert create_options(made, made.servers[0], COMMIT) == [
            "--env=DEBUG=false",
            f"--env=ESTEIRA_COMMIT={COMMIT}",
            "--volume=data:/data",
            "--stop-timeout=10",
            "--log-driver=json-file",
            "--log-opt=max-file=3",
            "--log-opt=max-size=10m",
        ]

    def test_recreate(self) -> None:
        made = settings(RECREATE)
        found = phase_values(made, made.servers[0], COMMIT, COMMIT)
        assert found[-2:] == [("edgeImage", "caddy:2.11.9-alpine"), ("probeNetwork", "bridge")]
        assert ("strategy", "recreate") in found
        assert create_options(made, made.servers[0], COMMIT)[0] == "--publish=8888:8000"

    def test_what_removes_knows_only_which_container_is_meant(self) -> None:
        """A destroy must work whatever else is in the settings: a value more there would change nothing but risk."""
        made = settings()
        assert [key for key, _ in identity_values(made, made.servers[0])] == [
            "server",
            "owner",
            "name",
            "lockTimeout",
        ]


class TestCreateOptions:
    """What the procedure's ``docker run -p 8888:8000 --name parasite`` could say, and more: one option a setting."""

    @pytest.mark.parametrize(
        ("key", "value", "expected"),
        [
            ("environment", {"A": "1", "B": "two words"}, ["--env=A=1", "--env=B=two words"]),
            ("environment", {"LINES": "a\nb"}, ["--env=LINES=a\nb"]),
            ("volumes", ["data:/d:ro", "/srv/x:/x"], ["--volume=data:/d:ro", "--volume=/srv/x:/x"]),
            ("memory", "256m", ["--memory=256m"]),
            ("cpus", 0.5, ["--cpus=0.5"]),
            ("cpus", 2, ["--cpus=2"]),
            ("user", "1000:1000", ["--user=1000:1000"]),
            ("init", True, ["--init"]),
            ("tmpfs", ["/run/x:size=1m"], ["--tmpfs=/run/x:size=1m"]),
            ("labels", {"b": "2", "a": "1"}, ["--label=a=1", "--label=b=2"]),
            ("stopSignal", "SIGINT", ["--stop-signal=SIGINT"]),
            ("stopTimeout", "1m", ["--stop-timeout=60"]),
            ("stopTimeout", "2.5s", ["--stop-timeout=3"]),
            ("logging", {"driver": "journald"}, ["--log-driver=journald"]),
            (
                "logging",
                {"driver": "local", "options": {"max-size": "5m"}},
                ["--log-driver=local", "--log-opt=max-size=5m"],
            ),
            ("entrypoint", ["/usr/bin/tini", "--"], ["--entrypoint=/usr/bin/tini"]),
            ("command", ["python3", "run.py"], []),
            ("restart", "unless-stopped", []),
            ("networks", ["backend"], []),
        ],
    )
    def test_a_setting(self, key: str, value: object, expected: list[str]) -> None:
        assert added((f"container/{key}", value)) == expected

    def test_a_read_only_container_gets_a_volume_for_each_folder_of_secret_files(self) -> None:
        """Docker cannot copy into a read-only root; anonymous volumes go with the container."""
        files = {"/run/secrets/a": "1", "/run/secrets/b": "2", "/etc/app/c": "3"}
        assert added(("container/readOnly", True), ("secretFiles", files)) == [
            "--read-only",
            "--volume=/etc/app",
            "--volume=/run/secrets",
        ]
        assert added(("secretFiles", files)) == []

    def test_the_server_s_own_values_go_before_the_container_s(self) -> None:
        found = options(
            ("container/environment", {"DEBUG": "false", "REGION": "north"}),
            ("container/labels", {"rack": "a"}),
            ("servers/0/environment", {"REGION": "south"}),
            ("servers/0/labels", {"rack": "b"}),
        )
        assert "--env=REGION=south" in found
        assert "--env=REGION=north" not in found
        assert "--label=rack=b" in found

    def test_the_commit_is_told_to_the_application(self) -> None:
        assert f"--env=ESTEIRA_COMMIT={COMMIT}" in options()

    def test_the_restart_policy_is_no_option(self) -> None:
        """A candidate must not restart; the policy is given to the release that has proven itself."""
        assert not [option for option in options(("container/restart", "always")) if "restart" in option]
        assert values(("container/restart", "on-failure:3"))["restart"] == "on-failure:3"

    def test_the_order_is_that_of_the_names_whatever_the_file_s(self) -> None:
        """A stack file that is sorted another way deploys nothing."""
        environment = {f"NAME_{number}": str(number) for number in range(20)}
        shuffled = list(environment.items())
        random.Random(1).shuffle(shuffled)
        assert options(("container/environment", environment)) == options(
            ("container/environment", dict(shuffled))
        )

    def test_no_secret_is_an_option_or_an_argument(self) -> None:
        found = repr((options(), values()))
        assert not [marker for marker in MARKERS if marker in found]


class TestPorts:
    """An address, IPv6, UDP: published as Docker publishes, or by the edge in the application's stead."""

    PORTS: tuple[tuple[object, str, str], ...] = (
        ("8888:8000", "8888:8000", "8888"),
        ("127.0.0.1:8888:8000", "127.0.0.1:8888:8000", "127.0.0.1:8888"),
        ("[::1]:8888:8000", "[::1]:8888:8000", "[::1]:8888"),
        ({"published": 80, "target": 8080, "address": "::"}, "[::]:80:8080", "[::]:80"),
        ("0.0.0.0:80:8080", "0.0.0.0:80:8080", "0.0.0.0:80"),
    )

    @pytest.mark.parametrize(("port", "option", "at"), PORTS)
    def test_recreate_publishes_the_container(self, port: object, option: str, at: str) -> None:
        found = settings(RECREATE, ("container/ports", [port]))
        assert create_options(found, found.servers[0], COMMIT)[0] == f"--publish={option}"
        assert published_at(found.container.ports[0]) == at

    @pytest.mark.parametrize(("port", "option", "at"), PORTS)
    def test_blue_green_publishes_the_edge(self, port: object, option: str, at: str) -> None:
        """The candidate runs beside the release that serves: only the edge can hold the port."""
        found = settings(("container/ports", [port]))
        assert not [one for one in create_options(found, found.servers[0], COMMIT) if "publish" in one]
        assert edge_values(found)[0] == ("port", f"{option}/http")

    def test_udp(self) -> None:
        found = options(RECREATE, ("container/ports", ["53:53/udp", "53:53"]), ("health/port", 53))
        assert found[:2] == ["--publish=53:53/udp", "--publish=53:53"]

    @pytest.mark.parametrize("protocol", ["http", "https", "h2c", "tcp"])
    def test_all_others_are_tcp_to_docker(self, protocol: str) -> None:
        port = PortSettings.model_validate({"published": 1, "target": 2, "protocol": protocol})
        assert port.transport == "tcp"

    def test_many_ports_keep_their_order(self) -> None:
        """The edge's sites are numbered by it."""
        ports = ["8888:8000", "127.0.0.1:9000:9000"]
        found = edge_values(settings(("container/ports", ports), ("health/port", 8000)))
        assert [value for key, value in found if key == "port"] == [f"{port}/http" for port in ports]

    def test_h2c_is_told_to_the_edge(self) -> None:
        port = {"published": 50051, "target": 50051, "protocol": "h2c"}
        assert ("port", "50051:50051/h2c") in edge_values(settings(("container/ports", [port])))


class TestNetworks:
    """recreate creates the container on its first network; with blueGreen the first is the edge's own."""

    @pytest.mark.parametrize(
        ("networks", "first", "later", "probe"),
        [
            ([], [], [], "bridge"),
            (["back"], ["--network=back"], [], "back"),
            (["back", "front"], ["--network=back"], ["front"], "back"),
        ],
    )
    def test_recreate(self, networks: list[str], first: list[str], later: list[str], probe: str) -> None:
        made = settings(RECREATE, ("container/networks", networks))
        opts = create_options(made, made.servers[0], COMMIT)
        assert [option for option in opts if option.startswith("--network")] == first
        assert declared_networks(made) == later
        found = phase_values(made, made.servers[0], COMMIT, COMMIT)
        assert [value for key, value in found if key == "network"] == later
        assert dict(found)["probeNetwork"] == probe

    def test_blue_green_joins_all_of_them_later(self) -> None:
        made = settings(("container/networks", ["back", "front"]))
        assert declared_networks(made) == ["back", "front"]
        assert not [o for o in create_options(made, made.servers[0], COMMIT) if o.startswith("--network")]


class TestHealth:
    """The gate's arguments: only those that mean something with its test."""

    @pytest.mark.parametrize(
        ("health", "expected"),
        [
            (
                {"path": "/up", "status": 204},
                {"test": "http", "path": "/up", "status": "204", "port": "8000"},
            ),
            ({"test": "tcp"}, {"test": "tcp", "port": "8000"}),
            ({"test": "tcp", "port": 9}, {"test": "tcp", "port": "9"}),
            ({"test": "image"}, {"test": "image", "port": "8000"}),
            ({}, {"test": "auto", "port": "8000"}),
        ],
    )
    def test_a_test(self, health: dict[str, object], expected: dict[str, str]) -> None:
        found = {
            key.removeprefix("health."): value for key, value in health_values(settings(("health", health)))
        }
        times = {"interval": "0.2", "timeout": "5", "retries": "10", "startPeriod": "30"}
        if "path" in expected:
            expected = {**expected, "scheme": "http"}
        assert found == {**expected, **times}

    @pytest.mark.parametrize(
        ("key", "written", "argument"),
        [
            ("interval", "500ms", "0.5"),
            ("interval", 2, "2"),
            ("timeout", "1.5s", "2"),
            ("retries", 3, "3"),
            ("startPeriod", "1m", "60"),
            ("startPeriod", 0, "0"),
        ],
    )
    def test_times(self, key: str, written: object, argument: str) -> None:
        """In seconds; only what the server's shell counts in whole ones is rounded, and then up."""
        found = dict(health_values(settings((f"health/{key}", written))))
        assert found.get(f"health.{key}") == argument

    def test_https(self) -> None:
        port = {"published": 443, "target": 8443, "protocol": "https"}
        found = dict(health_values(settings(RECREATE, ("container/ports", [port]))))
        assert (found["health.scheme"], found["health.port"]) == ("https", "8443")


class TestPhaseValues:
    """All phases of a server get the same arguments, so that each can do without the one before."""

    @pytest.mark.parametrize(
        ("key", "written", "argument", "expected"),
        [
            ("keepReleases", 0, "keepReleases", "0"),
            ("lockTimeout", "1.5s", "lockTimeout", "2"),
            ("edgeImage", "caddy:2.7", "edgeImage", "caddy:2.7"),
            ("drainTime", "500ms", "drainTime", "0.5"),
            ("candidateLifetime", "90.5s", "candidateLifetime", "91"),
            ("rollout", {"watch": 0}, "watch", "0"),
            ("trustedProxies", ["10.0.0.0/8", "::1"], "trustedProxies", "10.0.0.0/8 ::1"),
            ("preDeploy", ["a b", "c'd"], "preDeploy", "'a b' 'c'\"'\"'d'"),
            ("registry", "127.0.0.1:5000", "registry", "127.0.0.1:5000"),
        ],
    )
    def test_a_setting(self, key: str, written: object, argument: str, expected: str) -> None:
        assert values((key, written))[argument] == expected

    def test_only_several_servers_switch_on_trial(self) -> None:
        second = ("servers/1", {"name": "two", "host": "two.example.com", "hostKey": HOST_KEY})
        rollout = ("rollout", {"confirmTimeout": "90.5s", "watch": 2})
        assert "confirmTimeout" not in values(rollout)
        assert values(rollout, second)["confirmTimeout"] == "91"
        found = values(rollout, second, RECREATE)
        assert (found["confirmTimeout"], found["watch"], found["drainTime"]) == ("91", "2", "30")

    @pytest.mark.parametrize("absent", ["preDeploy", "trustedProxies", "network"])
    def test_what_is_not_set_is_not_shown(self, absent: str) -> None:
        assert absent not in values()

    def test_the_server_s_program_knows_every_key(self) -> None:
        """It refuses an argument that it does not know, in the middle of a deployment."""
        from components.remote import _program

        everything: tuple[tuple[str, object], ...] = (
            ("preDeploy", ["x"]),
            ("trustedProxies", ["::1"]),
            ("container/networks", ["back"]),
            ("servers/1", {"name": "two", "host": "two.example.com", "hostKey": HOST_KEY}),
        )
        keys = values(*everything).keys() | values(RECREATE, ("container/networks", ["a", "b"])).keys()
        unknown = {key for key in keys if f"      {key}=*) " not in _program()}
        assert not unknown


class TestPreDeploy:
    """A migration runs once, on the first server: its own candidate runs it, and the others wait for that."""

    def test_only_the_first_server_has_the_argument(self) -> None:
        second = {"name": "two", "host": "two.example.com", "hostKey": HOST_KEY}
        made = settings(("preDeploy", ["migrate"]), ("servers/1", second))
        first, other = (dict(phase_values(made, server, COMMIT, COMMIT)) for server in made.servers)
        assert first["preDeploy"] == "migrate"
        assert "preDeploy" not in other


class TestDomain:
    """With a domain the edge on ports 80 and 443 is shared; every phase, also remove, must know which site is meant."""

    DOMAIN = ("domain", ["a.example.org", "b.example.org"])

    def test_every_phase_knows_it(self) -> None:
        made = settings(self.DOMAIN)
        assert ("domain", "a.example.org, b.example.org") in identity_values(made, made.servers[0])

    def test_the_authority(self) -> None:
        root = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----"
        acme = {"email": "ana@example.org", "directory": "https://acme.example.org/dir", "root": root}
        found = dict(edge_values(settings(self.DOMAIN, ("acme", acme))))
        assert {key.removeprefix("acme."): value for key, value in found.items() if "acme" in key} == acme

    def test_the_edge_does_not_depend_on_one_application_s_port(self) -> None:
        assert edge_mark(settings(self.DOMAIN, ("edgeImage", "caddy:2.7"))) == "caddy:2.7,80,443"


class TestOwner:
    """One server may serve several projects, stacks and containers; each touches only its own."""

    def test_it_names_all_three(self) -> None:
        assert owner_of(settings()) == "esteira/staging/parasite"

    def test_each_of_them_makes_another_owner(self) -> None:
        right = changed()
        owners = {
            owner_of(load(right)),
            owner_of(load(right, stack="prod")),
            owner_of(load(right, project="other")),
            owner_of(load(changed(("container/name", "other")))),
        }
        assert len(owners) == 4

    def test_a_renamed_server_keeps_its_owner(self) -> None:
        assert owner_of(settings(("servers/0/name", "renamed"))) == owner_of(settings())


class TestContainerCommand:
    """Docker takes one word as entrypoint; the others go in front of the command."""

    @pytest.mark.parametrize(
        ("entrypoint", "command", "expected"),
        [
            (None, None, []),
            (None, ["a", "b"], ["a", "b"]),
            (["tini", "--"], None, ["--"]),
            (["tini", "--"], ["a"], ["--", "a"]),
            ("tini -g --", "run 'two words'", ["-g", "--", "run", "two words"]),
        ],
    )
    def test_words(self, entrypoint: object, command: object, expected: list[str]) -> None:
        made = settings(
            *([("container/entrypoint", entrypoint)] if entrypoint else []),
            *([("container/command", command)] if command else []),
        )
        assert container_command(made.container) == expected


class TestFingerprint:
    """It changes exactly when a container of the same image would be another: that replaces the running release."""

    @pytest.mark.parametrize(
        "change",
        [
            ("container/environment", {"DEBUG": "true"}),
            ("container/volumes", ["other:/data"]),
            ("container/memory", "1g"),
            ("container/cpus", 1),
            ("container/user", "1000"),
            ("container/labels", {"a": "b"}),
            ("container/command", ["run"]),
            ("container/entrypoint", ["tini", "--"]),
            ("container/init", True),
            ("container/readOnly", True),
            ("container/tmpfs", ["/x"]),
            ("container/stopTimeout", 11),
            ("container/stopSignal", "SIGINT"),
            ("container/logging", {"driver": "journald"}),
            ("container/networks", ["back"]),
            ("secretEnvironment", {"API_TOKEN": "another"}),
            ("secretEnvironment", {"OTHER": "MARKER-env"}),
            ("secretFiles", {"/run/secrets/token": "another"}),
            ("secretFiles", {"/run/secrets/other": "MARKER-file"}),
            ("servers/0/environment", {"REGION": "south"}),
            ("servers/0/labels", {"rack": "b"}),
        ],
        ids=lambda change: str(change[0]),
    )
    def test_what_makes_another_container(self, change: tuple[str, Any]) -> None:
        assert mark(change) != mark()

    @pytest.mark.parametrize(
        "change",
        [
            ("container/ports", ["9999:8000"]),
            ("container/restart", "no"),
            ("health", {"path": "/other", "interval": 9}),
            ("keepReleases", 1),
            ("preDeploy", ["x"]),
            ("registryPassword", "another"),
            ("pullPassword", "another"),
            ("pullUser", "another"),
            ("serverPassword", "another"),
            ("sudoPassword", "another"),
            ("edgeImage", "caddy:2.7"),
            ("drainTime", 1),
            ("lockTimeout", 1),
            ("connectTimeout", 1),
            ("trustedProxies", ["::1"]),
            ("servers/0/host", "other.example.com"),
            ("servers/0/port", 2222),
            ("servers/0/name", "renamed"),
            ("servers/0/sudo", False),
            ("movingTag", "stable"),
        ],
        ids=lambda change: str(change[0]),
    )
    def test_what_does_not(self, change: tuple[str, Any]) -> None:
        changes = [change]
        if change[0] == "servers/0/sudo":
            changes.append(("sudoPassword", ABSENT))
        assert mark(*changes) == mark()

    def test_with_recreate_the_published_ports_are_the_container_s_own(self) -> None:
        assert mark(RECREATE, ("container/ports", ["9999:8000"])) != mark(RECREATE)

    def test_it_shows_no_secret(self) -> None:
        assert len(mark()) == 64


class TestEdgeMark:
    """The edge is made anew when its image or its published ports change, and never by a release."""

    def test_image_and_ports(self) -> None:
        ports = ["8888:8000", "[::1]:9000:9000"]
        made = settings(("container/ports", ports), ("health/port", 8000), ("edgeImage", "caddy:2.7"))
        assert edge_mark(made) == "caddy:2.7,8888,[::1]:9000"

    @pytest.mark.parametrize(
        "change", [("container/memory", "1g"), ("container/ports", ["8888:9000"]), ("keepReleases", 1)]
    )
    def test_what_does_not_change_it(self, change: tuple[str, Any]) -> None:
        assert edge_mark(settings(change)) == edge_mark(settings())

    def test_recreate_has_none(self) -> None:
        assert edge_mark(settings(RECREATE)) is None


class TestDeployInput:
    """Everything secret, and the digest that no preview knows, comes by stdin."""

    IMAGE = "registry.example.com/group/parasite@sha256:" + "ab" * 32

    def given(self, *changes: tuple[str, object]) -> str:
        made = settings(*changes)
        return deploy_input(made, made.servers[0], "f" * 64, self.IMAGE, "now, ana")

    def test_what_is_in_it(self) -> None:
        stdin = self.given(("servers/0/sudo", False), ("sudoPassword", ABSENT))
        assert f"\nimage={self.IMAGE}\n" in stdin
        assert f"\nfingerprint={'f' * 64}\n" in stdin
        assert "\nrequest='now, ana'\n" in stdin
        assert "\nregistry_user=token\nregistry_password=MARKER-pull\n" in stdin
        assert "  export API_TOKEN=MARKER-env\n" in stdin
        assert "\nsecret_names=--env=API_TOKEN\n" in stdin

    @pytest.mark.parametrize("marker", ["MARKER-registry", "MARKER-server", "MARKER-jump", "PRIVATE KEY"])
    def test_what_the_server_need_not_know(self, marker: str) -> None:
        """The server gets what it pulls with, never what pushes or logs in."""
        assert marker not in self.given()

    def test_without_a_pull_credential_the_registry_s_is_used(self) -> None:
        stdin = self.given(("pullUser", ABSENT), ("pullPassword", ABSENT))
        assert "registry_user=ana\n" in stdin
        assert "registry_password=MARKER-registry\n" in stdin

    def test_sudo_and_its_password(self) -> None:
        assert "sudo -S" in self.given()
        assert "MARKER-sudo" in self.given()
        assert "sudo -S" not in self.given(("sudoPassword", ABSENT))
        assert "sudo -n" not in self.given(("servers/0/sudo", False), ("sudoPassword", ABSENT))

    @pytest.mark.parametrize("key", ["pullPassword", "sudoPassword", "secretEnvironment", "secretFiles"])
    def test_a_changed_secret_changes_it(self, key: str) -> None:
        """That is what runs the phases again."""
        value = SECRETS[key]
        other = dict.fromkeys(value, "other") if isinstance(value, dict) else "other"
        assert self.given((key, other)) != self.given()

    def test_a_fresh_request_changes_it(self) -> None:
        """That is what repairs a server; the text, which a preview shows, is the same."""
        made = settings()
        first, other = (
            deploy_input(made, made.servers[0], "", self.IMAGE, request) for request in ("a", "b")
        )
        assert first != other

    def test_each_server_its_own_sudo(self) -> None:
        second = {"name": "two", "host": "two.example.com", "hostKey": HOST_KEY}
        made = settings(("servers/1", second))
        first, other = (deploy_input(made, server, "", self.IMAGE, "") for server in made.servers)
        assert "MARKER-sudo" in first
        assert "MARKER-sudo" not in other
