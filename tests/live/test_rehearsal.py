"""The rehearsal on real parts: images are built and pushed, commands run over SSH, as the engine's plugins would."""

from __future__ import annotations

import os
import textwrap
import time
from pathlib import Path

import pytest

import rehearsal
from rehearsal import RehearsalError
from tests.live.machines import HERE, PASSWORD, Machine, Room
from tests.live.registry import Registry
from tests.live.watching import process_list

HEAD = """
import pulumi, json
import pulumi_docker as docker
from pulumi_command import local, remote
config = pulumi.Config()
connection = dict(host=config.require("host"), port=22, user="root", host_key=config.require("key"), dial_error_limit=0,
                  per_dial_timeout=10)
"""


class Small:
    """A small program and its runs."""

    def __init__(self, root: Path, builder: Machine) -> None:
        self.root = root
        root.mkdir()
        (root / "home").mkdir()
        (root / "Pulumi.yaml").write_text("name: small\nruntime: python\n")
        (root / "Pulumi.dev.yaml").write_text("config: {}\n")
        self.lines: list[str] = []
        self.builder = builder

    def run(self, program: str, **config: object) -> rehearsal.RehearsalResult:
        (self.root / "__main__.py").write_text(HEAD + textwrap.dedent(program))
        secret = {"password", "private_key", "other"}
        return rehearsal.carry_out(
            self.root,
            "dev",
            environ={
                "PATH": os.environ["PATH"],
                "HOME": str(self.root / "home"),
                "DOCKER_HOST": self.builder.docker_host,
            },
            config={"host": "x", "key": "x", **config},
            secret_keys=secret & config.keys(),
            on_line=self.lines.append,
        )

    @property
    def shown(self) -> str:
        return "\n".join(self.lines)


@pytest.fixture
def small(tmp_path: Path, builder: Machine) -> Small:
    return Small(tmp_path / "small", builder)


class TestImage:
    """Build arguments, stages, an ignore file and the cache work as in pulumi-docker; the digest is the registry's."""

    PROGRAM = """
        image = docker.Image("picture",
            image_name=config.require("name"),
            build=docker.DockerBuildArgs(context="app", target="last", platform="linux/amd64",
                args={"LINES": "first\\nsecond"},
                cache_from=docker.CacheFromArgs(images=[config.require("name") + "-cache"])),
            registry=docker.RegistryArgs(server=config.require("registry"), username="pusher",
                                         password=config.require_secret("password")))
        pulumi.export("digest", image.repo_digest)
        pulumi.export("name", image.base_image_name)
    """

    def prepare(self, small: Small) -> None:
        app = small.root / "app"
        app.mkdir()
        (app / "Dockerfile").write_text(
            "FROM scratch AS first\nCOPY kept /kept\nFROM scratch AS last\nARG LINES\nLABEL lines=$LINES\n"
            "COPY --from=first /kept /kept\nCOPY . /all\nFROM nothing-like-it AS never\n"
        )
        (app / "kept").write_text("x")
        (app / "ignored").write_text("x")
        (app / ".dockerignore").write_text("ignored\n.dockerignore\n")

    def test_built_pushed_and_named_by_the_registrys_digest(
        self, small: Small, registry: Registry, builder: Machine
    ) -> None:
        self.prepare(small)
        name = f"{registry.address}/small/picture:one"
        with process_list() as processes:
            result = small.run(self.PROGRAM, name=name, registry=registry.address, password=registry.password)
        digest = registry.digest("small/picture", "one")
        assert digest is not None
        assert result.outputs == {"digest": f"{registry.address}/small/picture@{digest}", "name": name}
        assert builder.docker("inspect", "--format", "{{.Config.Labels.lines}}", name) == "first\nsecond"
        holder = builder.docker("create", name, "x")
        listed = builder.sh(f"docker export {holder} | tar t")
        assert "all/kept" in listed
        assert "ignored" not in listed
        assert processes.samples > 10
        assert not processes.holds(registry.password)
        assert registry.password not in small.shown
        assert not (small.root / "home" / ".docker").exists()
        # Again: nothing changes.
        small.run(self.PROGRAM, name=name, registry=registry.address, password=registry.password)
        assert registry.digest("small/picture", "one") == digest

    def test_a_wrong_password_is_told_apart_from_a_dead_registry(
        self, small: Small, registry: Registry
    ) -> None:
        self.prepare(small)
        name = f"{registry.address}/small/picture:two"
        with pytest.raises(RehearsalError, match=r"refused the login of pusher.*CI_REGISTRY_PASSWORD"):
            small.run(self.PROGRAM, name=name, registry=registry.address, password="wrong")
        with pytest.raises(RehearsalError, match="Check that it is running"):
            small.run(self.PROGRAM, name=f"{HERE}:5009/x", registry=f"{HERE}:5009", password="wrong")
        assert "wrong" not in small.shown.split()

    def test_a_failing_build_ends_with_its_last_lines(self, small: Small, registry: Registry) -> None:
        self.prepare(small)
        (small.root / "app" / "Dockerfile").write_text("FROM scratch AS last\nCOPY missing-file /\n")
        with pytest.raises(RehearsalError, match=r"the build of .* failed(.|\n)*missing-file"):
            small.run(
                self.PROGRAM,
                name=f"{registry.address}/x:y",
                registry=registry.address,
                password=registry.password,
            )


class TestRemote:
    """A remote command is one session: pinned host key, stdin, streams, status."""

    PROGRAM = """
        connection["password"] = config.require_secret("password")
        done = remote.Command("there", connection=connection, stdin=config.require_secret("other"),
            create="cat; echo aside >&2; hostname -i", delete="touch /run/deleted")
        pulumi.export("out", pulumi.Output.unsecret(done.stdout))
        pulumi.export("err", pulumi.Output.unsecret(done.stderr))
    """

    def login(self, machine: Machine) -> dict[str, object]:
        return {
            "host": machine.host,
            "key": machine.host_key,
            "password": machine.password,
            "other": "by stdin\n",
        }

    def test_streams_and_stdin(self, small: Small, one: Machine) -> None:
        result = small.run(self.PROGRAM, **self.login(one))
        assert str(result.outputs["out"]).startswith("by stdin\n")
        assert result.outputs["err"] == "aside"
        assert "there: aside" in small.lines
        assert not one.path("run/deleted").exists()

    def test_large_input_and_output_do_not_block_each_other(self, small: Small, one: Machine) -> None:
        program = """
            connection["password"] = config.require_secret("password")
            done = remote.Command("much", connection=connection, stdin="x" * 3_000_000, logging=remote.Logging.NONE,
                create="tee /dev/stderr")
            pulumi.export("size", pulumi.Output.unsecret(done.stdout).apply(len))
        """
        assert small.run(program, **self.login(one)).outputs == {"size": 3_000_000}

    def test_two_servers_at_once(self, small: Small, one: Machine, two: Machine) -> None:
        program = """
            connection["password"] = config.require_secret("password")
            for number, (host, key) in enumerate(config.require_object("all")):
                remote.Command(f"n{number}", create="sleep 2", connection={**connection, "host": host, "host_key": key})
        """
        started = time.monotonic()
        small.run(program, all=[[one.host, one.host_key], [two.host, two.host_key]] * 4, **self.login(one))
        assert time.monotonic() - started < 8, "eight commands of 2 s ran one after the other"

    def test_a_wrong_host_key_stops_before_any_login(self, small: Small, one: Machine, two: Machine) -> None:
        with pytest.raises(RehearsalError, match="shows another host key than the pinned one"):
            small.run(self.PROGRAM, **{**self.login(one), "key": two.host_key})
        assert "Accepted" not in one.sshd_log()
        assert "Failed" not in one.sshd_log()

    def test_a_wrong_password_is_tried_once(self, small: Small, one: Machine) -> None:
        with pytest.raises(
            RehearsalError, match=r"root@[0-9.]+ port 22 refused the login\. Check user and password"
        ):
            small.run(self.PROGRAM, **{**self.login(one), "password": "nope-nope"})
        assert one.sshd_log().count("Failed password") == 1

    def test_an_address_that_never_answers(self, small: Small, room: Room, one: Machine) -> None:
        started = time.monotonic()
        with pytest.raises(RehearsalError, match="cannot be reached"):
            small.run(self.PROGRAM, **{**self.login(one), "host": room.black_hole(99)})
        assert time.monotonic() - started < 20

    def test_key_port_user_and_jump_host(self, small: Small, one: Machine, two: Machine) -> None:
        program = """
            jump = dict(host=config.require("jump"), host_key=config.require("jumpKey"), user="deploy",
                        password=config.require_secret("password"), dial_error_limit=0)
            done = remote.Command("behind", create="whoami; echo $SSH_CONNECTION", connection=dict(
                host=config.require("host"), host_key=config.require("key"), port=2222, user="careful", proxy=jump,
                private_key=config.require_secret("other"), dial_error_limit=0))
            pulumi.export("out", pulumi.Output.unsecret(done.stdout))
        """
        result = small.run(
            program,
            host=two.host,
            key=two.host_key,
            jump=one.host,
            jumpKey=one.host_key,
            password=PASSWORD,
            other=two.private_key,
        )
        who, connection = str(result.outputs["out"]).splitlines()
        assert who == "careful"
        assert connection.startswith(one.host), "the connection did not come from the jump host"
        assert connection.endswith(" 2222")

    def test_a_connection_that_is_lost_is_a_failure(self, small: Small, one: Machine) -> None:
        program = """
            connection["password"] = config.require_secret("password")
            remote.Command("cut", create="echo begun; sleep 1; kill -9 $PPID; sleep 1", connection=connection)
        """
        with pytest.raises(RehearsalError, match=r"cut: the connection to .* was lost(.|\n)*begun"):
            small.run(program, **self.login(one))
