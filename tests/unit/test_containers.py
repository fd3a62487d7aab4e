"""`./esteira logs` and `exec`: docker's own words on one server or all, told apart; the worst exit status counts."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import MagicMock

import paramiko
import pytest

from cli import containers, stacks
from components.errors import EsteiraError
from components.settings import Settings
from tests.unit.test_status import two_servers
from tests.unit.wrong_settings import ABSENT, changed, load


class FakeProcess:
    """A command that says some bytes and ends."""

    def __init__(self, said: list[tuple[bool, bytes]], status: int, blocks: bool = False) -> None:
        self.said, self.status, self.ended = said, status, threading.Event()
        self._blocks = blocks

    def read(self, sink: Callable[[bool, bytes], None]) -> int:
        for wrong, data in self.said:
            sink(wrong, data)
        if self._blocks:
            self.ended.wait(10)
            raise OSError("the connection was closed")
        return self.status

    def end(self) -> None:
        self.ended.set()


@pytest.fixture
def servers(monkeypatch: pytest.MonkeyPatch) -> dict[str, FakeProcess | EsteiraError]:
    """Give what each server does."""
    doing: dict[str, FakeProcess | EsteiraError] = {}

    @contextmanager
    def process(_: Settings, server: object, words: object) -> Iterator[FakeProcess]:
        found = doing[server.name]  # type: ignore[attr-defined]
        if isinstance(found, EsteiraError):
            raise found
        yield found

    monkeypatch.setattr(containers, "_process", process)
    return doing


class TestEverywhere:
    """All servers at once; a server that cannot be reached keeps nobody from answering."""

    def test_lines_have_their_server_s_name(
        self, servers: dict[str, FakeProcess | EsteiraError], capfdbinary: pytest.CaptureFixture[bytes]
    ) -> None:
        servers["web"] = FakeProcess([(False, b"one\ntw"), (True, b"oh\n"), (False, b"o\nend")], 3)
        servers["two"] = FakeProcess([(False, b"\xff\n")], 1)
        assert containers.everywhere(two_servers(), ["logs"]) == 3
        out, err = capfdbinary.readouterr()
        assert sorted(out.splitlines()) == [b"two | \xff", b"web | end", b"web | one", b"web | two"]
        assert err == b"web | oh\n"

    def test_one_server_s_bytes_come_as_they_are(
        self, servers: dict[str, FakeProcess | EsteiraError], capfdbinary: pytest.CaptureFixture[bytes]
    ) -> None:
        servers["two"] = FakeProcess([(False, b"no end"), (False, b"\r50%")], 0)
        assert containers.everywhere(stacks.only(two_servers(), "two"), ["logs"]) == 0
        assert capfdbinary.readouterr() == (b"no end\r50%", b"")

    def test_one_that_cannot_be_reached(
        self, servers: dict[str, FakeProcess | EsteiraError], capfd: pytest.CaptureFixture[str]
    ) -> None:
        servers["web"] = FakeProcess([(False, b"well\n")], 0)
        servers["two"] = EsteiraError("The server two is off.")
        assert containers.everywhere(two_servers(), ["logs"]) == 1
        out, err = capfd.readouterr()
        assert (out, "The server two is off." in err) == ("web | well\n", True)

    @pytest.mark.parametrize("failure", [EOFError(), paramiko.SSHException("closed"), OSError("reset")])
    def test_one_that_hangs_up_after_the_login(
        self, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], failure: Exception
    ) -> None:
        @contextmanager
        def client(*_: object) -> Iterator[MagicMock]:
            yield MagicMock(**{"get_transport.return_value.open_session.side_effect": failure})

        monkeypatch.setattr(containers, "ssh_client", client)
        assert containers.everywhere(stacks.only(two_servers(), "two"), ["logs"]) == 1
        assert "The connection to server two was lost." in capfd.readouterr().err

    def test_ctrl_c_lets_go_of_all(
        self, servers: dict[str, FakeProcess | EsteiraError], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        following = [FakeProcess([], 0, blocks=True), FakeProcess([], 0, blocks=True)]
        servers["web"], servers["two"] = following
        joined = threading.Thread.join

        def interrupted(thread: threading.Thread, timeout: float | None = None) -> None:
            joined(thread, timeout)
            raise KeyboardInterrupt

        monkeypatch.setattr(threading.Thread, "join", interrupted)
        declared = stacks.Declared(two_servers(), whole=True)
        monkeypatch.setattr(stacks, "declared", lambda *_: declared)
        assert containers.logs(tmp_path, "staging", None, follow=True, tail=None, since=None) == 0
        assert all(one.ended.is_set() for one in following)
        servers["web"], servers["two"] = FakeProcess([], 0, blocks=True), FakeProcess([], 0, blocks=True)
        with pytest.raises(KeyboardInterrupt):
            containers.execute(tmp_path, "staging", None, ["true"], tty=False)


class TestWords:
    """What docker is asked for."""

    @pytest.fixture
    def asked(self, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
        words: list[list[str]] = []
        monkeypatch.setattr(stacks, "declared", lambda *_: stacks.Declared(two_servers(), whole=True))
        monkeypatch.setattr(containers, "everywhere", lambda _, given: words.append(list(given)))
        return words

    def test_logs(self, asked: list[list[str]], tmp_path: Path) -> None:
        containers.logs(tmp_path, "staging", None, follow=False, tail=None, since=None)
        containers.logs(tmp_path, "staging", None, follow=True, tail="5", since="10m")
        assert asked == [
            ["logs", "parasite"],
            ["logs", "--follow", "--tail", "5", "--since", "10m", "parasite"],
        ]

    def test_exec(self, asked: list[list[str]], tmp_path: Path) -> None:
        containers.execute(tmp_path, "staging", None, ["sh", "-c", "echo $HOME"], tty=False)
        assert asked == [["exec", "parasite", "sh", "-c", "echo $HOME"]]

    def test_a_terminal_is_for_one(
        self, asked: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with pytest.raises(EsteiraError, match=r"name it with --server \(web, two\)"):
            containers.execute(tmp_path, "staging", None, ["sh"], tty=True)
        monkeypatch.setattr("sys.stdin.isatty", lambda: False, raising=False)
        with pytest.raises(EsteiraError, match="no terminal here"):
            containers.execute(tmp_path, "staging", "two", ["sh"], tty=True)
        assert asked == []


class TestHere:
    """This machine as the server."""

    def test_docker_s_status_and_streams(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        docker = tmp_path / "docker"
        docker.write_text('#!/bin/sh\necho "$@"; echo wrong >&2; exit 4\n')
        docker.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        gone = ("sudoPassword", "serverPassword", "serverPrivateKey", "jumpPassword", "jumpPrivateKey")
        settings = load(
            changed(*((key, ABSENT) for key in gone), ("servers", [{"name": "here", "local": True}]))
        )
        assert containers.everywhere(settings, ["logs", "parasite"]) == 4
        assert capfd.readouterr() == ("logs parasite\n", "wrong\n")


class TestWrapper:
    """Docker on a server ends with its application, and with the connection."""

    def wrapped(self, tmp_path: Path, script: str) -> subprocess.Popen[bytes]:
        docker = tmp_path / "docker"
        docker.write_text(f"#!/bin/sh\n{script}\n")
        docker.chmod(0o755)
        return subprocess.Popen(
            ["sh", "-c", containers._WRAPPER, "sh", "exec", "a b"],
            env={"PATH": f"{tmp_path}:{os.environ['PATH']}"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def test_its_status_is_docker_s(self, tmp_path: Path) -> None:
        with self.wrapped(tmp_path, 'printf "%s|" "$@"; cat; exit 5') as process:
            assert process.wait(10) == 5
            assert process.stdout is not None
            assert process.stdout.read() == b"exec|a b|"

    def test_the_end_of_its_input_is_its_end(self, tmp_path: Path) -> None:
        with self.wrapped(tmp_path, "echo ready; exec sleep 60") as process:
            assert process.stdout is not None
            assert process.stdin is not None
            assert process.stdout.readline() == b"ready\n"
            process.stdin.close()
            assert process.wait(10) != 0
