"""What runs on the servers, read at every preview and up.

After a failed or cut-off run the engine's state is not the truth about a server; the server itself is. Reading changes
nothing and takes no lock.
"""

from __future__ import annotations

import subprocess
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from components.connection import ssh_client
from components.errors import EsteiraError
from components.remote import Payload, command_text, standard_input

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from components.settings import ServerSettings, Settings

READ_TIMEOUT = 30.0
"""Seconds that a connected server may take to answer a reading."""


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


@dataclass(frozen=True)
class Reading:
    """What one server says of itself."""

    architecture: str
    """As Docker names it: ``amd64``, ``arm64``."""
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

    def difference(
        self, *, owner: str, commit: str, image: str | None, fingerprint: str, restart: str, edge: str | None
    ) -> str | None:
        """Return in words what runs instead of the declared release, or None when that is what runs.

        ``image`` is None where the digest is not known yet, because the image is still to be built. ``edge`` is what
        the edge is to be labelled with, None where there is to be none.
        """
        found = self.serving
        if found is None:
            return "no container of that name"
        if found.owner != owner:
            return f"a container of {found.owner}" if found.owner else "a container that Esteira did not make"
        if found.state != "running":
            return f"commit {found.commit[:7]}, {found.state}"
        if found.commit != commit:
            return f"commit {found.commit[:7]}"
        if image is not None and found.image != image:
            return f"commit {found.commit[:7]} in another image ({found.image.rpartition('@')[2][:19]})"
        if found.fingerprint != fingerprint:
            return f"commit {found.commit[:7]} with other settings than declared"
        if found.restart != restart.partition(":")[0]:
            return f"commit {found.commit[:7]} with restart policy {found.restart}"
        if self.edge != edge:
            return f"commit {found.commit[:7]} behind {f'the edge {self.edge}' if self.edge else 'no edge'}"
        if edge and not any(self.slot in aliases for aliases in self.running.values()):
            return f"commit {found.commit[:7]}, but the edge points to nothing that runs"
        if len(self.running) > 1:
            return f"commit {found.commit[:7]} and what a run that was cut off left"
        return None


def known_digests(readings: Mapping[str, Reading | EsteiraError]) -> dict[str, str]:
    """Return tag to ``sha256:…`` for all releases that the servers keep: what is known while the registry is down."""
    return {
        release.tag: release.image.rpartition("@")[2]
        for reading in readings.values()
        if isinstance(reading, Reading)
        for release in reading.releases
    }


def read_servers(settings: Settings, owner: str) -> dict[str, Reading | EsteiraError]:
    """Read all servers at once; the value is the error where a server could not be read."""

    def read(server: ServerSettings) -> Reading | EsteiraError:
        try:
            return read_server(settings, server, owner)
        except EsteiraError as error:
            return error

    with ThreadPoolExecutor(max_workers=min(32, len(settings.servers) or 1)) as pool:
        return dict(
            zip((server.name for server in settings.servers), pool.map(read, settings.servers), strict=True)
        )


def read_server(settings: Settings, server: ServerSettings, owner: str) -> Reading:
    """Read one server. Raises EsteiraError where it cannot be reached, or Docker does not answer there."""
    text = command_text(
        "read", [("server", server.name), ("owner", owner), ("name", settings.container.name)]
    )
    sudo_password = settings.sudo_password.get_secret_value() if settings.sudo_password else None
    stdin = standard_input(Payload(), sudo=server.sudo, sudo_password=sudo_password)
    status, out, err = _run_here(text, stdin) if server.local else _run_there(settings, server, text, stdin)
    if status != 0:
        raise EsteiraError(f"Server {server.name} cannot be read. {_cause(err or out)}")
    return parse_reading(server.name, out)


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
    architecture, serving, releases, edge, slot = "", None, [], None, ""
    running: dict[str, frozenset[str]] = {}
    for line in lines:
        kind, *words = line.split(" ")
        plain = ["" if word == "-" else word for word in words]
        if kind == "arch":
            architecture = words[0]
        elif kind == "serving":
            state, _restarts, restart, owner, image, mark, commit, _started = plain
            serving = ContainerReading(state, owner, image, mark, commit, restart=restart)
        elif kind == "release":
            _id, state, _name, image, mark, commit, tag = plain
            releases.append(ContainerReading(state, "", image, mark, commit, tag))
        elif kind == "edge":
            edge = words[1] if words[0] == "running" else None
        elif kind == "slot":
            slot = words[0]
        elif kind == "running":
            running[words[0].removeprefix("/")] = frozenset(words[1:])
    return Reading(architecture, serving, tuple(releases), edge, slot, running)


def _run_here(text: str, stdin: str) -> tuple[int, str, str]:
    try:
        done = subprocess.run(
            ["/bin/sh", "-c", text],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=READ_TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise EsteiraError(
            f"Docker on this machine has not answered within {READ_TIMEOUT:g} s. Look at its daemon: docker info"
        ) from None
    return done.returncode, done.stdout, done.stderr


def _run_there(settings: Settings, server: ServerSettings, text: str, stdin: str) -> tuple[int, str, str]:
    with ssh_client(settings, server) as client:
        try:
            channel_in, channel_out, channel_err = client.exec_command(text, timeout=READ_TIMEOUT)
            channel_in.write(stdin)
            channel_in.channel.shutdown_write()
            out, err = (
                channel_out.read().decode(errors="replace"),
                channel_err.read().decode(errors="replace"),
            )
            return channel_out.channel.recv_exit_status(), out, err
        except (TimeoutError, OSError, EOFError) as error:
            raise EsteiraError(
                f"Server {server.name} ({server.host}) has not answered the reading within {READ_TIMEOUT:g} s "
                f"({type(error).__name__}). Look at its load and its Docker daemon."
            ) from None


def _cause(text: str) -> str:
    lines = [line.removeprefix("error: ") for line in text.strip().splitlines() if line.strip()]
    return lines[-1] if lines else "It said nothing. Try it by hand: ssh to it and type docker info"
