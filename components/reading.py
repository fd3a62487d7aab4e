"""What runs on the servers, read at every preview and up.

After a failed or cut-off run the engine's state is not the truth about a server; the server itself is. Reading changes
nothing and takes no lock.
"""

from __future__ import annotations

from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field, replace
from threading import Semaphore, Thread
from typing import TYPE_CHECKING, Any, TypeVar

import pulumi

from .connection import run_on
from .errors import EsteiraError
from .remote import Payload, command_text, standard_input

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from .settings import ServerSettings, Settings

_Found = TypeVar("_Found")

AT_ONCE = 32
"""Servers that are read at the same time."""
READ_TIMEOUT = 30.0
"""Seconds that a connected server may take to answer a reading."""
SLOW = "has not answered the reading within {timeout:g} s. Look at its load and at its Docker daemon: docker info"

LOOP_RESTARTS, LOOP_SECONDS = 3, 60
"""A container that Docker has started again so often, and that is younger than this, is in a loop: Docker waits at most
a minute before it starts a container again."""


@dataclass(frozen=True)
class ContainerReading:
    """One container of the application on a server, as its labels and its state tell."""

    state: str
    owner: str
    image: str
    """``repo@sha256:…``; empty for a container that Esteira did not make, like the next two."""
    fingerprint: str
    commit: str
    tag: str = ""
    restart: str = ""
    name: str = ""
    id: str = ""
    restarts: int = 0
    """How often Docker has started it again by its restart policy; known of the serving one only, like what follows."""
    age: int | None = None
    """Seconds since its process was started; None where it does not run."""
    runs_image: str = ""
    """The image that it was really made of; ``image`` is what its label says."""
    memory: int = 0
    """Its limit in bytes, 0 for none."""
    nano_cpus: int = 0
    """Its limit in billionths of a processor, 0 for none."""

    @property
    def loops(self) -> bool:
        """Whether it ends and is started again and again."""
        if self.state == "restarting":
            return True
        return self.restarts >= LOOP_RESTARTS and self.age is not None and self.age < LOOP_SECONDS

    def unfit(self, *, memory: int, nano_cpus: int) -> str | None:
        """Return in words what no label tells, and only a new container of the same release can mend; else None.

        ``memory`` (bytes) and ``nano_cpus`` are the declared limits, 0 for none.
        """
        if self.loops:
            return f"restarted again and again ({self.restarts} times)"
        if self.image and self.runs_image and self.runs_image != self.image:
            return f"made of another image than its label says ({self.runs_image})"
        # A kernel without that limit leaves it out, and says so in a warning only.
        if self.memory and self.memory != memory:
            return f"with a memory limit of {_bytes(self.memory)}, not {_bytes(memory)}"
        if self.nano_cpus and self.nano_cpus != nano_cpus:
            return f"with {_cpus(self.nano_cpus)}, not {_cpus(nano_cpus)}"
        return None


@dataclass(frozen=True)
class Reading:
    """What one server says of itself."""

    serving: ContainerReading | None
    """The container that has the application's name, or None."""
    releases: tuple[ContainerReading, ...]
    """All releases of this declaration that the server has, kept ones included."""
    edge: str | None = None
    """What the running edge is labelled with: its image and published ports; None where no edge runs."""
    slot: str = ""
    """The network alias that the edge sends requests to."""
    running: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """Names of the running releases, each with its network aliases."""
    edge_state: str = ""
    """State of the edge's container; empty where there is none."""
    edge_restart: str = "always"
    """The edge's restart policy."""
    holders: Mapping[int, str] = field(default_factory=dict)
    """Published port to what holds it, in words, where that is something else than the edge or the serving one."""

    def difference(
        self,
        *,
        owner: str,
        commit: str,
        image: str | None,
        fingerprint: str,
        restart: str,
        edge: str | None,
        memory: int = 0,
        nano_cpus: int = 0,
    ) -> str | None:
        """Return in words what runs instead of the declared release, or None when that is what runs.

        ``image`` is None where the digest is not known yet, because the image is still to be built. ``edge`` is what
        the edge is to be labelled with, None where there is to be none. ``memory`` and ``nano_cpus`` as in
        :meth:`ContainerReading.unfit`.
        """
        words = self._what_serves(owner, commit, image, fingerprint)
        if words is None and self.serving is not None:
            more = self._what_differs(restart, memory, nano_cpus) or self._what_is_around(edge)
            words = f"commit {self.serving.commit[:7]}{more}" if more else None
        runs = self.edge is not None if edge else self.serving is not None and self.serving.state == "running"
        if words and self.holders and not runs:
            held = "; ".join(
                f"port {port} is held by {holder}" for port, holder in sorted(self.holders.items())
            )
            return f"{words}; {held}: stop that first"
        return words

    def renewed(self, *, commit: str, fingerprint: str, memory: int, nano_cpus: int) -> str:
        """Return the id of the serving container where it must be replaced though its labels are as declared."""
        found = self.serving
        if found is None or (found.commit, found.fingerprint) != (commit, fingerprint):
            return ""
        return found.id if found.unfit(memory=memory, nano_cpus=nano_cpus) else ""

    def _what_serves(self, owner: str, commit: str, image: str | None, fingerprint: str) -> str | None:
        found = self.serving
        if found is None:
            return "no container of that name"
        if found.owner != owner:
            return f"a container of {found.owner}" if found.owner else "a container that Esteira did not make"
        here = f"commit {found.commit[:7]}"
        if found.state not in {"running", "restarting"}:
            return f"{here}, {found.state}"
        if found.commit != commit:
            return here
        if image is not None and found.image != image:
            return f"{here} in another image ({found.image.rpartition('@')[2][:19]})"
        if found.fingerprint != fingerprint:
            return f"{here} with other settings than declared"
        return None

    def _what_differs(self, restart: str, memory: int, nano_cpus: int) -> str | None:
        """Return what of a container with the right labels is not as declared."""
        found = self.serving
        if found is None:
            return None
        if unfit := found.unfit(memory=memory, nano_cpus=nano_cpus):
            return f", {unfit}"
        if found.restart != restart.partition(":")[0]:
            return f" with restart policy {found.restart}"
        return None

    def _what_is_around(self, edge: str | None) -> str | None:
        """Return what is wrong around a container that is as declared: its edge, and what else runs."""
        if self.edge != edge:
            if self.edge == "-":
                return " behind an edge that Esteira did not make"
            if self.edge:
                return f" behind the edge {self.edge}"
            stopped = self.edge_state not in {"", "running"}
            return f" behind an edge that is {self.edge_state}" if stopped else " behind no edge"
        if edge and self.edge_restart != "always":
            return f" behind an edge with restart policy {self.edge_restart}"
        if edge:
            pointed = [name for name, aliases in self.running.items() if self.slot in aliases]
            if not pointed:
                return ", but the edge points to nothing that runs"
            if self.serving is not None and self.serving.name not in {"", *pointed}:
                commits = {release.name: release.commit for release in self.releases}
                return f", but the edge points to commit {commits.get(pointed[0], pointed[0])[:7]}"
        if len(self.running) > 1:
            return " and what a run that was cut off left"
        return None


def known_digests(readings: Mapping[str, Reading | EsteiraError]) -> dict[str, str]:
    """Return tag to ``sha256:…`` for all releases that the servers keep: what is known while the registry is down."""
    return {
        release.tag: release.image.rpartition("@")[2]
        for reading in readings.values()
        if isinstance(reading, Reading)
        for release in reading.releases
    }


def read_servers(
    settings: Settings, owner: str, asked: Callable[[], object] | None = None
) -> dict[str, Reading | EsteiraError]:
    """Read all servers at once; the value is the error where a server could not be read.

    ``asked`` is called for each server that was reached, when nothing is left to do but to wait for its answer.
    """
    turns = Semaphore(AT_ONCE)

    def read(server: ServerSettings) -> Reading | EsteiraError:
        with turns:
            try:
                return read_server(settings, server, owner, asked)
            except EsteiraError as error:
                return error

    begun = {server.name: _begin(read, server) for server in settings.servers}
    return {name: reading.result() for name, reading in begun.items()}


class BegunReading:
    """All servers being read, while the program goes on."""

    def __init__(self, settings: Settings, owner: str) -> None:
        self._asked, self._servers = Semaphore(0), len(settings.servers)
        self._found = _begin(read_servers, settings, owner, self._asked.release)
        self._found.add_done_callback(lambda _: self._asked.release(self._servers))

    def wait_until_asked(self) -> None:
        """Wait until nothing is left to do but to wait for the answers.

        Until then there are handshakes to compute, which take more than twice as long beside something else that
        computes in Python.
        """
        for _ in range(self._servers):
            self._asked.acquire()

    def result(self) -> dict[str, Reading | EsteiraError]:
        """Return what `read_servers` does, once all servers have answered; as `refuse_unread` does."""
        return refuse_unread(self._found.result())

    def known_digests(self) -> dict[str, str]:
        """Return what `known_digests` does, once all servers have answered."""
        return known_digests(self._found.result())


def refuse_unread(readings: dict[str, Reading | EsteiraError]) -> dict[str, Reading | EsteiraError]:
    """Return the readings that the program goes on with.

    Raises EsteiraError in an update where a server could not be read: before the image is declared, so that none is
    built that cannot be deployed. A preview goes on, and says what it does not know.
    """
    failures = [str(reading) for reading in readings.values() if isinstance(reading, EsteiraError)]
    if failures and not pulumi.runtime.is_dry_run():
        raise EsteiraError("\n".join(failures))
    return readings


def _begin(work: Callable[..., _Found], *arguments: Any) -> Future[_Found]:
    """Let a thread do it that no end of the program waits for.

    Where the commit cannot be deployed anyway, the run is not to last until a server that is gone would have answered;
    Python waits for an executor's threads.
    """
    result: Future[_Found] = Future()

    def do() -> None:
        try:
            result.set_result(work(*arguments))
        except BaseException as error:  # noqa: BLE001 - it is raised where the result is asked for
            result.set_exception(error)

    Thread(target=do, daemon=True).start()
    return result


def read_server(
    settings: Settings, server: ServerSettings, owner: str, asked: Callable[[], object] | None = None
) -> Reading:
    """Read one server. Raises EsteiraError where it cannot be reached, or Docker does not answer there."""
    values = reading_values(settings, server, owner)
    return parse_reading(server.name, ask_server(settings, server, "read", values, asked))


def reading_values(settings: Settings, server: ServerSettings, owner: str) -> list[tuple[str, str]]:
    """Return the arguments of a phase that only reads."""
    values = [("server", server.name), ("owner", owner), ("name", settings.container.name)]
    if settings.domain:
        # An application with a domain is behind the edge that several share.
        values.append(("domain", ", ".join(settings.domain)))
        ports = ["80/tcp", "443/tcp"]
    else:
        ports = [f"{port.published}/{port.transport}" for port in settings.container.ports]
    return [*values, *(("holdable", port) for port in ports)]


def ask_server(
    settings: Settings,
    server: ServerSettings,
    phase: str,
    values: Sequence[tuple[str, str]],
    asked: Callable[[], object] | None = None,
) -> str:
    """Run a phase that only reads, and return what it printed. Raises EsteiraError where there is no answer.

    ``asked`` is called when nothing is left to do but to wait for the answer.
    """
    if settings.lacks_login(server):
        raise EsteiraError(
            f"Server {server.name} was not read: neither a private key nor a password for it is set here "
            "(esteira:serverPrivateKey, esteira:serverPassword)."
        )
    text = command_text(phase, values)
    sudo_password = settings.sudo_password.get_secret_value() if settings.sudo_password else None
    stdin = standard_input(Payload(), sudo=server.sudo, sudo_password=sudo_password)
    status, out, err = run_on(settings, server, text, stdin, timeout=READ_TIMEOUT, slow=SLOW, asked=asked)
    if status != 0:
        raise EsteiraError(f"Server {server.name} cannot be read. {_cause(err or out)}")
    return out


def parse_reading(server: str, text: str) -> Reading:
    """Return what the read phase printed. Raises EsteiraError where it is cut short, or something else."""
    lines = text.splitlines()
    if lines and lines[0] == "esteira-reading 1" and lines[-1] == "end":
        with suppress(ValueError, IndexError):
            return _parse_lines(lines[1:-1])
    raise EsteiraError(
        f"Server {server} answered the reading with something else: {text[:200]!r}. A login script there may print "
        "text (~/.profile, ~/.bashrc): let it print only on a terminal."
    )


def _parse_lines(lines: Iterable[str]) -> Reading:
    serving, releases, edge, slot = None, [], None, ""
    edge_state, edge_restart = "", "always"
    running: dict[str, frozenset[str]] = {}
    holders: dict[int, str] = {}
    for line in lines:
        kind, *words = line.split(" ")
        plain = ["" if word == "-" else word for word in words]
        if kind == "serving":
            state, restarts, restart, owner, image, mark, commit, _started = plain
            serving = ContainerReading(
                state,
                owner,
                image,
                mark,
                commit,
                restart=restart,
                restarts=int(restarts),
            )
        elif kind == "made" and serving is not None:
            identity, name, image, memory, nano_cpus, _process = words
            serving = replace(
                serving,
                id=identity,
                name=name.removeprefix("/"),
                runs_image=image,
                memory=int(memory),
                nano_cpus=int(nano_cpus),
            )
        elif kind == "age" and serving is not None:
            serving = replace(serving, age=int(words[0]))
        elif kind == "release":
            identity, state, name, image, mark, commit, tag = plain
            releases.append(ContainerReading(state, "", image, mark, commit, tag, name=name, id=identity))
        elif kind == "edge":
            edge = words[1] if words[0] == "running" else None
            edge_state, edge_restart = words[0], words[2] if len(words) > 2 else "always"
        elif kind == "slot":
            slot = words[0]
        elif kind == "running":
            running[words[0].removeprefix("/")] = frozenset(words[1:])
        elif kind == "port":
            holders[int(words[0])] = (
                f"the container {words[2]}" if words[1] == "container" else "another process"
            )
    return Reading(
        serving,
        tuple(releases),
        edge,
        slot,
        running,
        edge_state=edge_state,
        edge_restart=edge_restart,
        holders=holders,
    )


def _bytes(count: int) -> str:
    """Return a limit as it is written in settings, in the largest unit that it is a whole number of."""
    if not count:
        return "none"
    for unit, size in (("g", 1024**3), ("m", 1024**2), ("k", 1024)):
        if count % size == 0:
            return f"{count // size}{unit}"
    return str(count)


def _cpus(nano: int) -> str:
    return f"{nano / 1e9:g} processors" if nano else "no limit of processors"


def _cause(text: str) -> str:
    lines = [line.removeprefix("error: ") for line in text.strip().splitlines() if line.strip()]
    return lines[-1] if lines else "It said nothing. Try it by hand: ssh to it and type docker info"
