"""The ways of a release that are compared: the procedure's own command line, `recreate` and `blueGreen`.

Each runs as the same user, over the same SSH client, on the same server.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from bench.place import LATEST, Command, Place, Release
from components.arguments import (
    container_command,
    create_options,
    deploy_input,
    phase_values,
    release_fingerprint,
)
from components.remote import command_text
from components.settings import Settings, load_settings
from tests.live.images import EDGE

NAME = "parasite"
PORT = 8888


@dataclass
class Deployed:
    """One release on its way: monotonic times, and its commands over SSH in their order."""

    release: Release
    begun: float
    ended: float = 0
    commands: list[Command] = field(default_factory=list)

    def said_at(self, *words: str) -> float:
        """Give when one of its commands first said a line that holds one of ``words``."""
        for command in self.commands:
            at = command.said_at(*words)
            if at is not None:
                return at
        raise AssertionError(f"nobody said {' or '.join(words)}:\n{self.text}")

    @property
    def text(self) -> str:
        """All that was said."""
        return "\n".join(command.text for command in self.commands)


class Way(Protocol):
    """How a release gets on the server."""

    title: str
    name: str
    port: int

    def deploy(self, release: Release) -> Deployed:
        """Replace the running release by this one."""
        ...


class Procedure:
    """The procedure's own command line (its job deploy_prod), word for word but for names and port."""

    title = "procedure"

    def __init__(self, place: Place, *, name: str = NAME, port: int = PORT) -> None:
        self._place = place
        self.name, self.port = name, port
        registry = place.registry
        image = f"{place.name}:{LATEST}"
        login = f"sudo docker login -u {registry.pull_user} -p {registry.pull_password} {registry.address}"
        run = f"sudo docker run -tid -p {port}:8000 --name {name} {image}"
        self._first = f"{login} && sudo docker pull {image} && {run}"
        self._line = (
            f"{login} && sudo docker stop {name} && sudo docker rm {name} && sudo docker pull {image} && "
            f"sudo {run}"
        )

    def begin(self, release: Release) -> None:
        """Start the first container, for which there is nothing to stop."""
        self._place.make_latest(release)
        self._place.ssh("procedure", self._first)

    def deploy(self, release: Release) -> Deployed:
        """Run it; moving ``latest`` is the pipeline's job before and is not part of it."""
        self._place.make_latest(release)
        deployed = Deployed(release, time.monotonic())
        deployed.commands.append(self._place.ssh("procedure", self._line))
        deployed.ended = time.monotonic()
        return deployed


class Esteira:
    """The server's program, by the very functions that the deployment declares its commands with."""

    def __init__(
        self,
        place: Place,
        strategy: Literal["recreate", "blueGreen"],
        *,
        name: str = NAME,
        port: int = PORT,
        **settings: object,
    ) -> None:
        self.title: str = strategy
        self.name, self.port = name, port
        self._place, self._strategy = place, strategy
        registry, server = place.registry, place.server
        values: dict[str, Any] = {
            "registry": registry.address,
            "registryInsecure": True,
            "repository": place.name.partition("/")[2],
            "registryUser": registry.user,
            "registryPassword": registry.password,
            "pullUser": registry.pull_user,
            "pullPassword": registry.pull_password,
            "strategy": strategy,
            "container": {"name": name, "ports": [f"{port}:8000"]},
            "health": {"path": "/health"},
            "edgeImage": EDGE,
            "servers": [{"name": server.name, "host": server.host, "hostKey": server.host_key}],
            "serverPassword": server.password,
            **settings,
        }
        self.settings: Settings = load_settings(
            values,
            frozenset({"registryPassword", "pullPassword", "serverPassword"}),
            project="esteira",
            stack="bench",
            root=Path(__file__).parent,
            environ={},
        )

    @property
    def phases(self) -> tuple[str, ...]:
        """The commands of a release, one over SSH each."""
        return ("candidate", "switch") if self._strategy == "blueGreen" else ("deploy",)

    def deploy(self, release: Release) -> Deployed:
        """Run the phases, one after the other."""
        settings, server = self.settings, self.settings.servers[0]
        options = create_options(settings, server, release.commit)
        arguments = container_command(settings.container)
        mark = release_fingerprint(settings, options, arguments)
        values = phase_values(settings, server, release.commit, release.tag)
        stdin = deploy_input(settings, server, mark, release.image, "bench")
        deployed = Deployed(release, time.monotonic())
        for phase in self.phases:
            text = command_text(phase, values, options, arguments)
            deployed.commands.append(self._place.ssh(phase, text, stdin))
        deployed.ended = time.monotonic()
        return deployed
