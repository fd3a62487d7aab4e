"""Where the bench measures: a machine and a registry of its own, those of the live tests (tests/live/machines.py).

So nothing of this machine's own Docker is touched, every docker command and every SSH command is counted on the way,
and packets take the way that they take from outside.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import shutil
import socket
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from rehearsal import ssh
from tests.live import images
from tests.live.machines import Machine, Room
from tests.live.registry import Registry

REPOSITORY = "bench/parasite"
LATEST = "latest"


def since_boot(wall: float) -> float:
    """Give the monotonic time of a time of the day's clock, in seconds."""
    return wall - time.time() + time.monotonic()


@dataclass(frozen=True)
class Release:
    """One release of the application under load."""

    number: int
    image: str
    """``repo@sha256:…``"""
    tag: str

    @property
    def commit(self) -> str:
        """A commit's hash for it: there is no commit behind an image of the bench."""
        return hashlib.sha1(f"release {self.number}".encode(), usedforsecurity=False).hexdigest()


@dataclass
class Command:
    """One command over SSH: what it said when, and the docker commands that it ran. Monotonic times."""

    name: str
    begun: float
    ended: float = 0
    status: int = 0
    lines: list[tuple[float, str]] = field(default_factory=list)
    calls: int = 0

    def said_at(self, *words: str) -> float | None:
        """Give when it said a line that holds one of ``words``."""
        return next((at for at, line in self.lines if any(word in line for word in words)), None)

    @property
    def text(self) -> str:
        """All that it said."""
        return "\n".join(line for _, line in self.lines)


class Place:
    """A server, the daemon that builds, and the registry between them."""

    def __init__(
        self, server: Machine, builder: Machine, registry: Registry, *, boot: float, grace: float
    ) -> None:
        self.server, self.builder, self.registry = server, builder, registry
        self.boot, self.grace = boot, grace
        self.name = f"{registry.address}/{REPOSITORY}"
        self._releases = 0
        self._context = builder.folder / "bench-app"
        if not self._context.exists():
            shutil.copytree(Path(__file__).parent / "app", self._context)

    @classmethod
    def make(cls, room: Room, *, boot: float, grace: float) -> Place:
        """Start all that is needed in a room."""
        registry = Registry(room.folder / "registry")
        registry.start()
        builder, server = room.machine("builder", 10, sshd=False), room.machine("server", 11)
        for machine in (builder, server):
            machine.wait_until_up()
        images.push_base(builder, registry)
        images.load(server, images.EDGE)
        images.pull_base(server, registry)
        return cls(server, builder, registry, boot=boot, grace=grace)

    def close(self) -> None:
        """End the registry; the machines are the room's."""
        self.registry.stop()

    def release(self, number: int | None = None) -> Release:
        """Build a release and push it under its number."""
        self._releases = number = number if number is not None else self._releases + 1
        (self._context / "release").write_text(f"{number}\n", encoding="utf-8")
        knobs = {
            "BASE": images.base_name(self.registry),
            "BOOT": f"{self.boot:g}",
            "GRACE": f"{self.grace:g}",
        }
        arguments = [word for key, value in knobs.items() for word in ("--build-arg", f"{key}={value}")]
        tag = f"release-{number}"
        self.builder.docker("build", "-q", *arguments, "-t", f"{self.name}:{tag}", str(self._context))
        with self.registry.logged_in(self.builder):
            self.builder.docker("push", f"{self.name}:{tag}")
        digest = self.registry.digest(REPOSITORY, tag)
        assert digest is not None
        return Release(number, f"{self.name}@{digest}", tag)

    def make_latest(self, release: Release) -> None:
        """Push a release as ``latest`` too, as the procedure's pipeline does."""
        self.builder.docker("tag", f"{self.name}:{release.tag}", f"{self.name}:{LATEST}")
        with self.registry.logged_in(self.builder):
            self.builder.docker("push", f"{self.name}:{LATEST}")

    def clear(self) -> None:
        """Make the server as new, but for the layers that every release shares."""
        self.server.wipe(keep_images=[images.EDGE, images.base_name(self.registry)])

    def ssh(self, name: str, text: str, stdin: str | None = None, *, expect: int = 0) -> Command:
        """Run one command over SSH."""
        server = self.server
        before = len(server.calls())
        command = Command(name, time.monotonic())
        finished = ssh.run(
            ssh.Connection(server.host, password=server.password, host_key=server.host_key),
            text,
            name=name,
            environment={},
            stdin=stdin,
            on_stdout=lambda line: command.lines.append((time.monotonic(), line)),
            on_stderr=lambda line: command.lines.append((time.monotonic(), line)),
        )
        command.ended, command.status = time.monotonic(), finished.status
        command.calls = len(server.calls()) - before
        if command.status != expect:
            raise AssertionError(f"{name} ended with {command.status}:\n{command.text}")
        return command

    def sessions(self) -> int:
        """Count the commands over SSH that the server's sshd has seen."""
        return self.server.sshd_log().count("Starting session: command")

    def events(self, since: float) -> list[tuple[float, str, str]]:
        """Give what happened to containers since a monotonic time: (monotonic time, what, full id)."""
        begin = since + time.time() - time.monotonic()
        text = self.server.docker(
            *("events", "--since", f"{begin:.6f}", "--until", f"{time.time():.6f}"),
            *("--filter", "type=container", "--format", "{{json .}}"),
        )
        found = []
        for line in text.splitlines():
            event = json.loads(line)
            found.append((since_boot(event["timeNano"] / 1e9), event["Action"], event["Actor"]["ID"]))
        return found

    def logged(self, container: str, word: str) -> list[float]:
        """Give the monotonic times of an application's log lines that begin with ``word``."""
        lines = self.server.docker("logs", container).splitlines()
        return [since_boot(float(line.split()[-1])) for line in lines if line.startswith(f"{word} ")]


class Watch:
    """Asks a published port every few milliseconds, each time by a new connection: who answers, seen from outside."""

    def __init__(self, host: str, port: int, pause: float = 0.004) -> None:
        self._where, self._pause = (host, port), pause
        self.seen: list[tuple[float, int | None]] = []
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._ask, daemon=True)

    def _ask(self) -> None:
        while not self._end.wait(self._pause):
            number = self._once()
            self.seen.append((time.monotonic(), number))

    def _once(self) -> int | None:
        try:
            with socket.create_connection(self._where, timeout=5) as connection:
                connection.sendall(b"GET / HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n")
                said = b""
                while part := connection.recv(4096):
                    said += part
        except OSError:
            return None
        head, _, body = said.partition(b"\r\n\r\n")
        good = head.startswith(b"HTTP/1.1 200 ") and body.startswith(b"release ")
        return int(body.split()[1]) if good else None

    def wait_for(self, number: int, seconds: float = 30) -> float:
        """Wait until a release has answered; when it did so first."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for at, who in list(self.seen):
                if who == number:
                    return at
            time.sleep(0.01)
        raise AssertionError(f"release {number} has not answered within {seconds} s")

    def __enter__(self) -> Watch:  # noqa: PYI034 - Self is not in Python 3.10
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        self._thread.join()

    def longest_gap(self) -> float:
        """Give the longest time, in seconds, between two good answers."""
        good = [at for at, who in self.seen if who is not None]
        return max((after - before for before, after in itertools.pairwise(good)), default=0.0)
