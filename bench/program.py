"""The whole program from a checkout: carried out by Pulumi's engine where that is, else by the rehearsal.

What is measured here is what a person waits for: a no-op `up` beside an empty program of the same engine, a rollback
beside a forward deployment of the same release, and one release on one, four and eight servers.
"""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.place import since_boot
from cli import engine
from tests.engine.stack import Stack
from tests.live import images
from tests.live.machines import Machine, Room
from tests.live.project import Outcome, Project
from tests.live.registry import Registry

ROOT = Path(__file__).resolve().parent.parent
SESSION = "Starting session: command"
"""How sshd's log begins a command over SSH."""

Say = Callable[[str], None]


def engine_here() -> str | None:
    """Return the version of the engine that the program can be carried out by, or None."""
    found = engine.find(ROOT, install=False)
    return found.version if isinstance(found, engine.Engine) and shutil.which("pulumi") else None


@dataclass(frozen=True)
class Ran:
    """One run of the program."""

    begun: float
    seconds: float
    text: str
    """Everything that it showed."""
    failed: bool

    def good(self) -> Ran:
        """Return it, if it did not fail."""
        if self.failed:
            raise AssertionError(f"a run that must not fail has failed:\n{self.text}")
        return self


class Checkout:
    """An application's repository whose releases differ in one file, and its stack on some servers."""

    def __init__(
        self,
        room: Room,
        name: str,
        registry: Registry,
        builder: Machine,
        servers: Sequence[Machine],
        *,
        boot: float,
        port: int = 8888,
        **settings: object,
    ) -> None:
        self.name, self.servers, self.port = f"parasite-{name}", servers, port
        self.builder = builder
        kind: type[Project] = Stack if engine_here() else Project
        self.project = kind(room.folder / name, registry, builder, f"bench/{name}")
        for file in ("app.py", "Dockerfile"):
            shutil.copy(Path(__file__).parent / "app" / file, self.project.root / "app" / file)
        self.project.settings |= {
            "strategy": "blueGreen",
            "image": {
                "context": "app",
                "buildArgs": {"BASE": images.BASE_PYTHON, "BOOT": f"{boot:g}", "GRACE": "0.5"},
            },
            "container": {"name": self.name, "ports": [f"{port}:8000"]},
            "health": {"path": "/health"},
            "rollout": {"watch": 0},
            **settings,
        }
        for server in servers:
            self.project.server(server)
        self._releases = 0
        self.commit = self.project.head

    def release(self, *, installing: bool = False) -> str:
        """Commit a new release, one whose build installs its packages (see `Rollback`) if asked to; return its sha."""
        self._releases += 1
        app = self.project.root / "app"
        (app / "release").write_text(f"{self._releases}\n", encoding="utf-8")
        self.project.settings["image"]["dockerfile"] = INSTALLING if installing else "Dockerfile"
        self.commit = self.project.commit_tree()
        return self.commit

    def up(self, **settings: object) -> Ran:
        """Type `pulumi up --yes`, with settings laid over the stack file's for this run."""
        begun = time.monotonic()
        if isinstance(self.project, Stack):
            ran = self.project.pulumi("up", "--yes", **settings)
            return Ran(begun, ran.seconds, ran.screen, ran.status != 0)
        outcome: Outcome = self.project.up(**settings)
        return Ran(begun, outcome.seconds, outcome.shown, outcome.error is not None)

    def serves(self, commit: str) -> bool:
        """Say whether all servers run this commit under the application's name, and answer."""
        for server in self.servers:
            labels = server.inspect(self.name)["Config"]["Labels"]
            if labels.get("esteira.commit") != commit or "release" not in str(server.answers(self.port)):
                return False
        return True

    def boot_of(self, server: Machine, ran: Ran) -> float:
        """Return how long the application that serves took in this run from its container's start to serving."""
        begin = ran.begun + time.time() - time.monotonic()
        identity = server.docker("inspect", "--format", "{{.Id}}", self.name)
        events = server.docker(
            *("events", "--since", f"{begin:.6f}", "--until", f"{time.time():.6f}"),
            *("--filter", f"container={identity}", "--filter", "event=start", "--format", "{{.TimeNano}}"),
        ).split()
        started = since_boot(int(events[0]) / 1e9)
        log = server.docker("logs", self.name).splitlines()
        serving = [since_boot(float(line.split()[-1])) for line in log if line.startswith("serving ")]
        return next(at for at in serving if at > started) - started


def sessions(servers: Sequence[Machine]) -> list[int]:
    """Count the commands over SSH that each server has seen."""
    return [server.sshd_log().count(SESSION) for server in servers]


# A no-op `up`.


@dataclass
class NoOp:
    """`up` when nothing changed, beside an empty program of the same engine; seconds, one value a round."""

    program: list[float] = field(default_factory=list)
    empty: list[float] = field(default_factory=list)
    """Without an engine there is none."""
    sessions: int = 0
    """Commands over SSH of one such `up`: its readings, one for each run of the program."""


def no_op(checkout: Checkout, rounds: int, say: Say) -> NoOp:
    """Measure both in turn, after one of each that warms the machine up."""
    found = NoOp()
    empty = _empty_program(checkout)
    for number in range(rounds + 1):
        if empty is not None:
            seconds = empty()
            found.empty += [seconds] if number else []
        before = sessions(checkout.servers)
        ran = checkout.up().good()
        found.sessions = sum(sessions(checkout.servers)) - sum(before)
        if isinstance(checkout.project, Stack) and not re.search(
            r"\d+ unchanged", ran.text.split("Resources:")[-1]
        ):
            raise AssertionError(f"an up without a change changed something:\n{ran.text}")
        found.program += [ran.seconds] if number else []
        say(f"  no-op up: {f'round {number} of {rounds}' if number else 'once before'}")
    return found


def _empty_program(checkout: Checkout) -> Callable[[], float] | None:
    project = checkout.project
    if not isinstance(project, Stack):
        return None
    folder = project.root.parent / "empty"
    folder.mkdir()
    described = (project.root / "Pulumi.yaml").read_text(encoding="utf-8").split("requiredPulumiVersion")[0]
    (folder / "Pulumi.yaml").write_text(described, encoding="utf-8")
    (folder / "__main__.py").write_text("import pulumi\n", encoding="utf-8")
    (folder / ".venv").symlink_to(sys.prefix)

    def pulumi(*arguments: str) -> float:
        begun = time.monotonic()
        subprocess.run(
            ["pulumi", *arguments],
            cwd=folder,
            env=project.environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=True,
        )
        return time.monotonic() - begun

    pulumi("stack", "init", "empty")
    return lambda: pulumi("up", "--yes", "--color=never", "--stack", "empty")


# Rollback.

INSTALLING = "installing.Dockerfile"


def fetch_wheels(checkout: Checkout) -> None:
    """Fetch the packages that a build installs, for the image's Python, so that no build waits for another machine."""
    app = checkout.project.root / "app"
    for file in ("requirements.txt", INSTALLING):
        shutil.copy(Path(__file__).parent / "app" / file, app)
    version = checkout.builder.docker(
        *("run", "--rm", "--entrypoint", "python3", images.BASE_PYTHON, "-c"),
        "import sys; print('%d.%d' % sys.version_info[:2])",
    )
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"),
            *("--only-binary=:all:", "--python-version", version.strip(), "--implementation", "cp"),
            *(f"--platform=manylinux{glibc}_{platform.machine()}" for glibc in ("2014", "_2_28")),
            *("--requirement", str(app / "requirements.txt"), "--dest", str(app / "wheels")),
        ],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise AssertionError(f"the packages of the measured application cannot be had:\n{done.stderr}")


@dataclass
class Rollback:
    """Whole runs and what the application's boot was in each; seconds, one value a round."""

    forward: list[float] = field(default_factory=list)
    """A commit's first deployment: built as by the procedure's Dockerfile, which installs all packages after it has
    copied the commit; pushed, pulled, started, switched to, `latest` moved."""
    forward_boot: list[float] = field(default_factory=list)
    small: list[float] = field(default_factory=list)
    """The same of a commit whose build only copies a few bytes."""
    small_boot: list[float] = field(default_factory=list)
    back: list[float] = field(default_factory=list)
    """The same commit again, which the server still keeps, after another one."""
    back_boot: list[float] = field(default_factory=list)
    alone: list[float] = field(default_factory=list)
    """The same while the registry is down."""
    alone_boot: list[float] = field(default_factory=list)

    def work(self, kind: str, start_up: float) -> list[float]:
        """Return the runs' own work: without the engine's start-up and the application's boot."""
        whole, boot = getattr(self, kind), getattr(self, f"{kind}_boot")
        return [one - start_up - booting for one, booting in zip(whole, boot, strict=True)]


def rollback(checkout: Checkout, rounds: int, say: Say) -> Rollback:
    """Deploy a commit, another one, and the first again: with the registry, then without."""
    found = Rollback()
    registry = checkout.project.registry
    fetch_wheels(checkout)
    for number in range(1, rounds + 1):
        first = checkout.release(installing=True)
        _note(found, "forward", checkout, checkout.up().good(), first)
        second = checkout.release()
        _note(found, "small", checkout, checkout.up().good(), second)
        _note(found, "back", checkout, checkout.up(commit=first).good(), first)
        checkout.up(commit=second).good()
        registry.stop()
        try:
            # The tag `latest` cannot be moved then; the servers are what this is about.
            ran = checkout.up(commit=first)
        finally:
            registry.start()
        _note(found, "alone", checkout, ran, first)
        checkout.up(commit=second).good()
        say(f"  rollback: round {number} of {rounds}")
    return found


def _note(found: Rollback, kind: str, checkout: Checkout, ran: Ran, commit: str) -> None:
    if not checkout.serves(commit):
        raise AssertionError(f"commit {commit} does not serve:\n{ran.text}")
    getattr(found, kind).append(ran.seconds)
    getattr(found, f"{kind}_boot").append(checkout.boot_of(checkout.servers[0], ran))


# Several servers.

ONE_BATCH = {"watch": 0, "canary": 0}
"""All servers switch at once, and nobody waits for the watching: what is left is the work."""


@dataclass
class Fleet:
    """One release on some servers."""

    servers: int
    seconds: list[float] = field(default_factory=list)
    """Whole runs, one value a round."""
    commands: int = 0
    """Most commands over SSH that one server saw in one run, the readings left out."""
    readings: int = 0
    """Readings of one server in one run: one for each run of the program, which the engine runs twice."""


def fleets(
    room: Room,
    registry: Registry,
    builder: Machine,
    machines: Sequence[Machine],
    *,
    sizes: Sequence[int],
    boot: float,
    rounds: int,
    say: Say,
) -> list[Fleet]:
    """Release on the first one, four, eight servers in turn, in each round."""
    readings = 2 if engine_here() else 1
    found = []
    for number, size in enumerate(sizes):
        checkout = Checkout(
            room,
            f"fleet-{size}",
            registry,
            builder,
            machines[:size],
            boot=boot,
            port=8100 + number,
            rollout=ONE_BATCH,
        )
        checkout.release()
        checkout.up().good()
        found.append((checkout, Fleet(size, readings=readings)))
        say(f"  {size} servers: prepared")
    for number in range(1, rounds + 1):
        for checkout, fleet in found:
            commit = checkout.release()
            before = sessions(checkout.servers)
            ran = checkout.up().good()
            if not checkout.serves(commit):
                raise AssertionError(f"not all servers run {commit}:\n{ran.text}")
            seen = [after - then for after, then in zip(sessions(checkout.servers), before, strict=True)]
            fleet.seconds.append(ran.seconds)
            fleet.commands = max(fleet.commands, *(count - readings for count in seen), 0)
            say(f"  {fleet.servers} servers: round {number} of {rounds}, {ran.seconds:.1f} s")
    return [fleet for _, fleet in found]
