"""What a server says of itself, and what is made of it."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pulumi
import pytest

from components import connection, reading
from components.errors import EsteiraError
from components.reading import (
    READ_TIMEOUT,
    BegunReading,
    ContainerReading,
    Reading,
    known_digests,
    parse_reading,
    read_server,
    read_servers,
    refuse_unread,
)
from components.settings import Settings
from tests.unit.wrong_settings import ABSENT, HOST_KEY, changed, load

COMMIT = "8e13f56a" * 5
OTHER = "0a1b2c3d" * 5
DIGEST = "sha256:" + "ab" * 32
IMAGE = f"registry.example.com/group/parasite@{DIGEST}"
MARK = "f" * 64
OWNER = "esteira/staging/parasite"
EDGE = "caddy:2.11.9-alpine,8888"
NEW_ID, OLD_ID = "1" * 64, "2" * 64

WHOLE = f"""esteira-reading 1
arch amd64
serving running 2 always {OWNER} {IMAGE} {MARK} {COMMIT} 2026-11-26T10:00:00.1Z
made {NEW_ID} /parasite {IMAGE} 0 0 4711
age 4000
release {NEW_ID} running parasite {IMAGE} {MARK} {COMMIT} {COMMIT}
release {OLD_ID} exited parasite-0a1b2c3d {IMAGE.replace("ab", "cd")} {MARK} {OTHER} {OTHER}-dirty-0123
edge running {EDGE}
slot parasite-green
running /parasite parasite-green {NEW_ID[:12]}{" "}
end
"""
"""What the read phase prints on a server that is as declared."""

DECLARED: dict[str, Any] = {
    "owner": OWNER,
    "commit": COMMIT,
    "image": IMAGE,
    "fingerprint": MARK,
    "restart": "always",
    "edge": EDGE,
}


def as_declared() -> Reading:
    return parse_reading("web", WHOLE)


def with_serving(**changes: Any) -> Reading:
    found = as_declared()
    assert found.serving is not None
    return replace(found, serving=replace(found.serving, **changes))


class TestParse:
    """One line a thing, blanks between words, a dash for what is not there."""

    def test_the_whole(self) -> None:
        found = as_declared()
        assert found == Reading(
            serving=ContainerReading(
                "running",
                OWNER,
                IMAGE,
                MARK,
                COMMIT,
                restart="always",
                name="parasite",
                id=NEW_ID,
                restarts=2,
                age=4000,
                runs_image=IMAGE,
            ),
            releases=(
                ContainerReading("running", "", IMAGE, MARK, COMMIT, COMMIT, name="parasite", id=NEW_ID),
                ContainerReading(
                    "exited",
                    "",
                    IMAGE.replace("ab", "cd"),
                    MARK,
                    OTHER,
                    f"{OTHER}-dirty-0123",
                    name="parasite-0a1b2c3d",
                    id=OLD_ID,
                ),
            ),
            edge=EDGE,
            slot="parasite-green",
            running={"parasite": frozenset({"parasite-green", NEW_ID[:12], ""})},
            edge_state="running",
        )

    def test_an_empty_server(self) -> None:
        assert parse_reading("web", "esteira-reading 1\narch arm64\nend\n") == Reading(None, ())

    def test_a_container_that_esteira_did_not_make(self) -> None:
        text = "esteira-reading 1\narch amd64\nserving running 0 no - - - - 2026-11-26T10:00:00Z\nend\n"
        assert parse_reading("web", text).serving == ContainerReading("running", "", "", "", "", restart="no")

    def test_an_edge_that_does_not_run_is_none(self) -> None:
        found = parse_reading("web", WHOLE.replace("edge running", "edge exited"))
        assert found.edge is None

    def test_a_line_of_a_later_version_is_passed_over(self) -> None:
        assert parse_reading("web", WHOLE.replace("\nend", "\nweather fine\nend")) == as_declared()

    @pytest.mark.parametrize("lines", range(WHOLE.count("\n")))
    def test_cut_short_anywhere_it_is_no_reading(self, lines: int) -> None:
        """Half a reading would show a release that is gone, or none where one serves."""
        with pytest.raises(EsteiraError, match="Server web answered the reading with something else"):
            parse_reading("web", "".join(WHOLE.splitlines(keepends=True)[:lines]))

    @pytest.mark.parametrize(
        "line",
        [
            "serving",
            "serving running 0 always",
            "release 1 2",
            "edge running",
            "port 8888",
            "port web process -",
        ],
    )
    def test_a_line_with_words_missing_is_no_reading_either(self, line: str) -> None:
        with pytest.raises(EsteiraError, match="something else"):
            parse_reading("web", f"esteira-reading 1\n{line}\nend\n")

    @pytest.mark.parametrize("noise", ["Welcome to web!\n", "\n", "\x1b[1mhello\x1b[0m\n"])
    def test_what_a_login_script_prints_is_named_as_the_cause(self, noise: str) -> None:
        with pytest.raises(
            EsteiraError, match=r"A login script there may print text \(~/\.profile"
        ) as caught:
            parse_reading("web", noise + WHOLE)
        assert repr(noise)[1:-1] in str(caught.value), "what it said is shown, made harmless"

    def test_a_long_answer_is_shown_in_part(self) -> None:
        with pytest.raises(EsteiraError) as caught:
            parse_reading("web", "x" * 100_000)
        assert len(str(caught.value)) < 500


class TestDifference:
    """A server that does not run what is declared is deployed again, whatever the engine's state says; why is told."""

    def test_none(self) -> None:
        assert as_declared().difference(**DECLARED) is None

    @pytest.mark.parametrize(
        ("found", "declared", "words"),
        [
            (replace(as_declared(), serving=None), {}, "no container of that name"),
            (with_serving(owner=""), {}, "a container that Esteira did not make"),
            (with_serving(owner="other/prod/parasite"), {}, "a container of other/prod/parasite"),
            (with_serving(state="exited"), {}, "commit 8e13f56, exited"),
            (with_serving(state="paused"), {}, "commit 8e13f56, paused"),
            (with_serving(commit=OTHER), {}, "commit 0a1b2c3"),
            (as_declared(), {"commit": OTHER}, "commit 8e13f56"),
            (
                with_serving(image=IMAGE.replace("ab", "cd")),
                {},
                "commit 8e13f56 in another image (sha256:cdcdcdcdcdcd)",
            ),
            (as_declared(), {"fingerprint": "0" * 64}, "commit 8e13f56 with other settings than declared"),
            (with_serving(restart="no"), {}, "commit 8e13f56 with restart policy no"),
            (as_declared(), {"edge": "caddy:2,8888"}, f"commit 8e13f56 behind the edge {EDGE}"),
            (as_declared(), {"edge": None}, f"commit 8e13f56 behind the edge {EDGE}"),
            (replace(as_declared(), edge=None, edge_state=""), {}, "commit 8e13f56 behind no edge"),
            (
                parse_reading("web", WHOLE.replace("edge running", "edge exited")),
                {},
                "commit 8e13f56 behind an edge that is exited",
            ),
            (
                parse_reading("web", WHOLE.replace(f"edge running {EDGE}", "edge running - always")),
                {},
                "commit 8e13f56 behind an edge that Esteira did not make",
            ),
            (
                parse_reading("web", WHOLE.replace(f"edge running {EDGE}", f"edge running {EDGE} no")),
                {},
                "commit 8e13f56 behind an edge with restart policy no",
            ),
            (
                with_serving(state="restarting", restarts=1),
                {},
                "commit 8e13f56, restarted again and again (1 times)",
            ),
            (with_serving(restarts=3, age=59), {}, "commit 8e13f56, restarted again and again (3 times)"),
            (
                with_serving(runs_image="nginx:latest"),
                {},
                "commit 8e13f56, made of another image than its label says (nginx:latest)",
            ),
            (
                with_serving(memory=64 * 1024**2),
                {"memory": 512 * 1024**2},
                "commit 8e13f56, with a memory limit of 64m, not 512m",
            ),
            (
                with_serving(memory=1000),
                {},
                "commit 8e13f56, with a memory limit of 1000, not none",
            ),
            (
                with_serving(nano_cpus=250_000_000),
                {"nano_cpus": 1_500_000_000},
                "commit 8e13f56, with 0.25 processors, not 1.5 processors",
            ),
            (
                replace(as_declared(), edge=None, edge_state="exited", holders={8888: "the container x"}),
                {},
                "commit 8e13f56 behind an edge that is exited; port 8888 is held by the container x: stop that first",
            ),
            (
                replace(as_declared(), serving=None, edge=None, holders={8888: "another process"}),
                {"edge": None},
                "no container of that name; port 8888 is held by another process: stop that first",
            ),
            (
                replace(
                    as_declared(),
                    slot="parasite-blue",
                    running={
                        "parasite": frozenset({"parasite-green"}),
                        "parasite-0a1b2c3d": frozenset({"parasite-blue"}),
                    },
                ),
                {},
                "commit 8e13f56, but the edge points to commit 0a1b2c3",
            ),
            (
                replace(as_declared(), slot="parasite-blue"),
                {},
                "commit 8e13f56, but the edge points to nothing that runs",
            ),
            (
                replace(
                    as_declared(),
                    running={"parasite": frozenset({"parasite-green"}), "parasite-x-candidate": frozenset()},
                ),
                {},
                "commit 8e13f56 and what a run that was cut off left",
            ),
        ],
    )
    def test_in_words(self, found: Reading, declared: dict[str, Any], words: str) -> None:
        assert found.difference(**{**DECLARED, **declared}) == words

    def test_a_digest_that_is_not_known_yet_is_no_difference(self) -> None:
        """A commit that is still to be built has none in a preview."""
        other = IMAGE.replace("ab", "cd")
        found = with_serving(image=other, runs_image=other)
        assert found.difference(**{**DECLARED, "image": None}) is None

    def test_docker_names_a_restart_policy_without_its_count(self) -> None:
        found = with_serving(restart="on-failure")
        assert found.difference(**{**DECLARED, "restart": "on-failure:3"}) is None

    @pytest.mark.parametrize(
        "found",
        [
            with_serving(restarts=2, age=1),
            with_serving(restarts=30, age=61),
            with_serving(restarts=30),
            replace(as_declared(), holders={8888: "a container that is none of ours but cannot be"}),
        ],
        ids=["two restarts", "long ago", "an age that is not known", "held by the edge"],
    )
    def test_what_is_no_drift(self, found: Reading) -> None:
        """A restart long ago is over."""
        assert found.difference(**DECLARED) is None

    def test_a_kernel_without_limits_has_none(self) -> None:
        assert as_declared().difference(**DECLARED, memory=512 * 1024**2, nano_cpus=1_500_000_000) is None

    def test_what_no_label_tells_names_the_container_to_replace(self) -> None:
        limits: dict[str, Any] = {"commit": COMMIT, "fingerprint": MARK, "memory": 0, "nano_cpus": 0}
        assert as_declared().renewed(**limits) == ""
        assert with_serving(state="exited").renewed(**limits) == ""
        assert with_serving(restarts=5, age=2).renewed(**limits) == NEW_ID
        assert with_serving(runs_image="nginx").renewed(**limits) == NEW_ID
        assert with_serving(owner="", runs_image="nginx", image="").renewed(**limits) == ""
        # An earlier release, or one with other settings, is kept to go back to.
        assert with_serving(restarts=5, age=2, commit=OTHER).renewed(**limits) == ""
        assert with_serving(memory=10, fingerprint="0" * 64).renewed(**limits) == ""
        assert replace(as_declared(), serving=None).renewed(**limits) == ""

    def test_recreate_has_no_edge_and_wants_none(self) -> None:
        found = replace(as_declared(), edge=None, slot="", running={"parasite": frozenset()})
        assert found.difference(**{**DECLARED, "edge": None}) is None


class TestKnownDigests:
    """While the registry is down the servers' own record supplies a kept release's digest."""

    def test_by_tag_from_all_servers_that_could_be_read(self) -> None:
        other = parse_reading("two", WHOLE.replace(OTHER, "77777777" * 5))
        found = known_digests({"web": as_declared(), "two": other, "three": EsteiraError("down")})
        assert found == {
            COMMIT: DIGEST,
            f"{OTHER}-dirty-0123": DIGEST.replace("ab", "cd"),
            f"{'77777777' * 5}-dirty-0123": DIGEST.replace("ab", "cd"),
        }

    def test_nothing_is_known_of_nothing(self) -> None:
        assert known_digests({}) == {}


def local(**changes: object) -> Settings:
    """Return settings with this machine as the server."""
    gone = ("sudoPassword", "serverPassword", "serverPrivateKey", "jumpPassword", "jumpPrivateKey")
    absent = [(key, ABSENT) for key in gone]
    return load(changed(*absent, ("servers", [{"name": "web", "local": True}]), *changes.items()))


class FakeChannel:
    """What paramiko gives for a command that was run."""

    def __init__(self, out: str, err: str, status: int, failure: Exception | None = None) -> None:
        self.out, self.err, self.status, self.failure = out.encode(), err.encode(), status, failure
        self.text, self.stdin, self.closed = "", "", False

    def exec_command(self, text: str, timeout: float) -> tuple[Any, Any, Any]:
        assert timeout == READ_TIMEOUT
        if self.failure:
            raise self.failure
        self.text = text
        return (
            SimpleNamespace(write=self._write, channel=SimpleNamespace(shutdown_write=self._close)),
            SimpleNamespace(
                read=lambda: self.out, channel=SimpleNamespace(recv_exit_status=lambda: self.status)
            ),
            SimpleNamespace(read=lambda: self.err),
        )

    def _write(self, text: str) -> None:
        self.stdin += text

    def _close(self) -> None:
        self.closed = True


def by_ssh(
    monkeypatch: pytest.MonkeyPatch, out: str = "", err: str = "", status: int = 0, **more: Any
) -> FakeChannel:
    channel = FakeChannel(out, err, status, **more)

    @contextmanager
    def client(*_: object) -> Iterator[FakeChannel]:
        yield channel

    monkeypatch.setattr(connection, "ssh_client", client)
    return channel


class TestReadServer:
    """One command a server, which changes nothing; what goes wrong is a sentence that names the server."""

    def read(self, settings: Settings) -> Reading:
        return read_server(settings, settings.servers[0], OWNER)

    def test_over_ssh(self, monkeypatch: pytest.MonkeyPatch) -> None:
        channel = by_ssh(monkeypatch, WHOLE)
        assert self.read(load(changed())) == as_declared()
        assert channel.text.split(" \\\n  ") == [
            "sh -s -- read",
            "server=web",
            f"owner={OWNER}",
            "name=parasite",
            "holdable=8888/tcp",
        ]
        assert "sudo -S" in channel.stdin
        assert channel.closed, "the server's shell waits for the end of its input"

    def test_no_credential_is_sent_to_be_read(self, monkeypatch: pytest.MonkeyPatch) -> None:
        channel = by_ssh(monkeypatch, WHOLE)
        self.read(load(changed()))
        assert [
            mark
            for mark in ("-registry", "-pull", "-env", "-file", "-server")
            if f"MARKER{mark}" in channel.stdin
        ] == []

    @pytest.mark.parametrize(
        ("out", "err", "cause"),
        [
            ("", "error: Docker is not installed on server web.", "Docker is not installed on server web."),
            ("", "warning: x\nerror: the last line counts.\n\n", "the last line counts."),
            ("said on stdout", "", "said on stdout"),
            ("", "", "It said nothing. Try it by hand: ssh to it and type docker info"),
        ],
    )
    def test_the_server_s_own_words_are_the_cause(
        self, out: str, err: str, cause: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        by_ssh(monkeypatch, out, err, 1)
        with pytest.raises(EsteiraError) as caught:
            self.read(load(changed()))
        assert str(caught.value) == f"Server web cannot be read. {cause}"

    @pytest.mark.parametrize(
        ("failure", "told"),
        [
            (TimeoutError(), "Server web has not answered the reading within 30 s"),
            (EOFError(), r"The connection to server web \(web\.example\.com\) was lost: EOFError"),
            (ConnectionResetError(), r"The connection to server web \(web\.example\.com\) was lost: Conn"),
        ],
    )
    def test_a_connection_that_dies(
        self, failure: Exception, told: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        by_ssh(monkeypatch, failure=failure)
        with pytest.raises(EsteiraError, match=told):
            self.read(load(changed()))

    def test_on_this_machine(self, monkeypatch: pytest.MonkeyPatch) -> None:
        seen: dict[str, Any] = {}

        def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
            seen.update(command=command, **options)
            return subprocess.CompletedProcess(command, 0, WHOLE, "")

        monkeypatch.setattr(subprocess, "run", run)
        assert self.read(local()) == as_declared()
        assert seen["command"][:2] == ["/bin/sh", "-c"]
        assert seen["command"][2].startswith("sh -s -- read")
        assert seen["input"].startswith("{\n")

    def test_this_machine_s_docker_hangs(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def run(*command: object, **options: object) -> None:
            raise subprocess.TimeoutExpired("sh", 30)

        monkeypatch.setattr(subprocess, "run", run)
        with pytest.raises(EsteiraError, match="Server web has not answered the reading within 30 s"):
            self.read(local())


class TestReadServers:
    """All at once; one that cannot be read keeps nobody from reading the others."""

    def test_each_server_has_its_reading_or_its_error(self, monkeypatch: pytest.MonkeyPatch) -> None:
        more = [
            {"name": name, "host": f"{name}.example.com", "hostKey": HOST_KEY} for name in ("two", "three")
        ]
        settings = load(changed(("servers/1", more[0]), ("servers/2", more[1])))
        broken = EsteiraError("Server two is off.")

        def read(_: object, server: Any, owner: str, *_rest: object) -> Reading:
            assert owner == OWNER
            if server.name == "two":
                raise broken
            return as_declared()

        monkeypatch.setattr(reading, "read_server", read)
        found = read_servers(settings, OWNER)
        assert found == {"web": as_declared(), "two": broken, "three": as_declared()}
        assert list(found) == ["web", "two", "three"]

    def test_begun_it_goes_on_once_all_servers_have_been_asked(self, monkeypatch: pytest.MonkeyPatch) -> None:
        more = {"name": "two", "host": "two.example.com", "hostKey": HOST_KEY}
        settings = load(changed(("servers/1", more)))
        asked, may_answer = [], threading.Event()

        def read(_: object, server: Any, owner: str, tell: Callable[[], object]) -> Reading:
            assert owner == OWNER
            asked.append(server.name)
            tell()
            assert may_answer.wait(20)
            return as_declared()

        monkeypatch.setattr(reading, "read_server", read)
        begun = BegunReading(settings, OWNER)
        begun.wait_until_asked()
        assert sorted(asked) == ["two", "web"]
        may_answer.set()
        assert begun.result() == {"web": as_declared(), "two": as_declared()}

    @pytest.mark.parametrize("failure", [EsteiraError("Server web is off."), RuntimeError("a fault of ours")])
    def test_begun_it_does_not_wait_for_one_that_cannot_be_asked(
        self, monkeypatch: pytest.MonkeyPatch, failure: Exception
    ) -> None:
        def read(*_: object) -> Reading:
            raise failure

        monkeypatch.setattr(reading, "read_server", read)
        monkeypatch.setattr(pulumi.runtime, "is_dry_run", lambda: False)
        begun = BegunReading(load(changed()), OWNER)
        begun.wait_until_asked()
        with pytest.raises(type(failure), match=str(failure)):
            begun.result()
        monkeypatch.setattr(pulumi.runtime, "is_dry_run", lambda: True)
        if isinstance(failure, EsteiraError):
            assert begun.result() == {"web": failure}
            assert begun.known_digests() == {}

    def test_in_an_update_every_server_that_was_not_read_is_told(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(pulumi.runtime, "is_dry_run", lambda: False)
        given: dict[str, Reading | EsteiraError] = {
            "one": EsteiraError("one is off."),
            "web": as_declared(),
            "two": EsteiraError("two is off."),
        }
        with pytest.raises(EsteiraError, match=r"^one is off\.\ntwo is off\.$"):
            refuse_unread(given)

    def test_a_program_that_ends_does_not_wait_for_it(self) -> None:
        """The commit cannot be deployed, and the server takes the connection and says nothing."""
        with socket.create_server(("127.0.0.1", 0)) as silent:
            silent.settimeout(60)
            program = (
                "import sys\n"
                "from components.reading import BegunReading\n"
                "from tests.unit.wrong_settings import ABSENT, changed, load\n"
                "there = {'host': '127.0.0.1', 'port': int(sys.argv[1]), 'jumpHost': ABSENT}\n"
                "changes = [(f'servers/0/{key}', value) for key, value in there.items()]\n"
                "changes += [('connectTimeout', 600), ('jumpPassword', ABSENT), ('jumpPrivateKey', ABSENT)]\n"
                f"begun = BegunReading(load(changed(*changes)), {OWNER!r})\n"
                "sys.stdin.read()\n"
                "sys.exit('the commit cannot be deployed')\n"
            )
            run = subprocess.Popen(
                [sys.executable, "-c", program, str(silent.getsockname()[1])],
                cwd=Path(__file__).parents[2],
                stdin=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            with run, silent.accept()[0]:
                _, said = run.communicate(timeout=60)
        assert (run.returncode, said) == (1, "the commit cannot be deployed\n")
