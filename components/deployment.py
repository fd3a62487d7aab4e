"""The deployment: per server, the remote commands that replace the running release by the declared one.

A command's text holds the plain settings, one a line, most as the options of ``docker create`` that they become. The
order of servers is the dependency graph, so a preview shows it.
"""

import getpass
import socket
from collections.abc import Mapping
from datetime import datetime, timezone
from functools import partial
from typing import TypedDict

import pulumi
import pulumi_command as command

from components.arguments import (
    container_command,
    create_options,
    deploy_input,
    deploy_values,
    identity_values,
    image_repository,
    owner_of,
    release_fingerprint,
)
from components.connection import connection_args
from components.errors import EsteiraError
from components.reading import Reading
from components.remote import command_text
from components.settings import ServerSettings, Settings


class DeploymentArgs(TypedDict):
    """What a deployment needs beside its name."""

    settings: Settings
    """The container, its health gate and the servers."""
    commit: str
    """The commit that is deployed, 40 hexadecimal digits."""
    tag: str
    """The tag of its image: the commit, or one that says that the tree was dirty."""
    image: pulumi.Input[str]
    """The image to run, ``repo@sha256:…``."""
    digest: str | None
    """``sha256:…`` where it is known before anything is built, else None."""
    readings: Mapping[str, Reading | EsteiraError]
    """What the servers said of themselves, by server name."""


class Deployment(pulumi.ComponentResource):
    """One application on its servers: pull, stop, start, health gate, and the old release back if that fails."""

    releases: pulumi.Output[Mapping[str, str]]
    """Server name to the commit that it runs, once it runs healthy."""

    def __init__(self, name: str, args: DeploymentArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        """Declare one command per server.

        Raises EsteiraError in an update where a server could not be read; a preview warns and goes on.
        """
        super().__init__("esteira:index:Deployment", name, None, opts)
        self._name, self._args = name, args
        releases = {}
        for server in args["settings"].servers:
            done = self._deploy(server)
            releases[server.name] = done.stdout.apply(lambda _: args["commit"])
        self.releases = pulumi.Output.all(**releases)
        self.register_outputs({"releases": self.releases})

    def _deploy(self, server: ServerSettings) -> command.local.Command | command.remote.Command:
        settings, commit = self._args["settings"], self._args["commit"]
        options = create_options(settings, server, commit)
        arguments = container_command(settings.container)
        mark = release_fingerprint(settings, options, arguments)

        def text(request: str) -> str:
            values = deploy_values(settings, server, commit, self._args["tag"], request)
            return command_text("deploy", values, options, arguments)

        return self._command(
            server,
            text=self._request(server, mark).apply(text),
            stdin=pulumi.Output.secret(self._args["image"]).apply(
                partial(deploy_input, settings, server, mark)
            ),
        )

    def _request(self, server: ServerSettings, mark: str) -> pulumi.Output[str]:
        """Return for whom and why this server is deployed, kept in state while it runs what is declared.

        A fresh value changes the command's text and so runs it again, on this server alone: that is how a server that
        drifted is repaired whatever the state says.
        """
        found = self._difference(server, mark)
        if found:
            commit = self._args["commit"][:7]
            pulumi.info(f"server {server.name} runs {found}; declared is commit {commit}", self)
        now = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M:%S")
        return pulumi.Stash(
            f"{self._name}-{server.name}-request",
            input=f"{now} UTC, {getpass.getuser()}@{socket.gethostname()}, found {found or 'it unread'}",
            opts=pulumi.ResourceOptions(parent=self, ignore_changes=None if found else ["input"]),
        ).input

    def _difference(self, server: ServerSettings, mark: str) -> str | None:
        """Return what runs on the server instead of the declared release; None where that runs, or nobody knows."""
        settings, digest = self._args["settings"], self._args["digest"]
        reading = self._args["readings"][server.name]
        if isinstance(reading, EsteiraError):
            if not pulumi.runtime.is_dry_run():
                raise reading
            pulumi.warn(f"{reading} This preview does not know what runs on server {server.name}.", self)
            return None
        return reading.difference(
            owner=owner_of(settings),
            commit=self._args["commit"],
            image=f"{image_repository(settings)}@{digest}" if digest else None,
            fingerprint=mark,
            restart=settings.container.restart,
        )

    def _command(
        self, server: ServerSettings, *, text: pulumi.Output[str], stdin: pulumi.Output[str]
    ) -> command.local.Command | command.remote.Command:
        settings = self._args["settings"]
        name = f"{self._name}-{server.name}"
        remove = command_text("remove", identity_values(settings, server))
        # A container of another name is another container: the old one goes first, because it holds the port.
        triggers = [owner_of(settings)]
        opts = pulumi.ResourceOptions(parent=self, delete_before_replace=True)
        if server.local:
            return command.local.Command(
                name,
                create=text,
                delete=remove,
                stdin=stdin,
                triggers=triggers,
                add_previous_output_in_env=False,
                opts=opts,
            )
        return command.remote.Command(
            name,
            connection=connection_args(settings, server),
            create=text,
            delete=remove,
            stdin=stdin,
            triggers=triggers,
            add_previous_output_in_env=False,
            opts=opts,
        )


def addresses(settings: Settings) -> dict[str, list[str]]:
    """Return server name to the addresses at which the application answers there."""
    found = {}
    for server in settings.servers:
        own = "localhost" if server.local else server.host or ""
        found[server.name] = [
            f"{port.protocol if port.protocol != 'h2c' else 'http'}://{port.address or own}:{port.published}"
            for port in settings.container.ports
        ]
    return found
