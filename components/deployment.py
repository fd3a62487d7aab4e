"""The deployment: per server, the remote commands that replace the running release by the declared one.

A command's text holds the plain settings, one a line, most as the options of ``docker create`` that they become. The
order of servers is the dependency graph, so a preview shows it: the candidates of all, the canaries' switches, those of
the others in batches, and when all have switched they are confirmed. One server alone needs no confirmation.
"""

import asyncio
import os
import shlex
import socket
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from typing import Any, TypedDict

import pulumi
import pulumi_command
from pulumi.runtime.mocks import MockMonitor
from pulumi.runtime.settings import get_monitor

from .arguments import (
    container_command,
    create_options,
    decision_tag,
    deploy_input,
    edge_mark,
    identity_values,
    limits,
    owner_of,
    phase_values,
    release_fingerprint,
)
from .connection import connection_args
from .decision import switch_mark
from .errors import EsteiraError
from .history import deployer
from .reading import Reading
from .release import tag_args
from .remote import command_text
from .rollout import Rescue
from .settings import ServerSettings, Settings, image_name
from .steps import command_line

Command = pulumi_command.local.Command | pulumi_command.remote.Command


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
    """One application on its servers: a healthy new release, or the old one as it was."""

    releases: pulumi.Output[Mapping[str, str]]
    """Server name to the commit that it runs, once it runs healthy."""

    def __init__(self, name: str, args: DeploymentArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        """Declare the commands of every server.

        Raises EsteiraError in an update where a server could not be read; a preview warns and goes on.
        """
        super().__init__("esteira:index:Deployment", name, None, opts)
        self._name, self._args = name, args
        settings = args["settings"]
        self._rescue = Rescue(settings, args["commit"]) if len(settings.servers) > 1 else None
        self._hooks = _hooks(name, self._rescue)
        self._marks: list[pulumi.Output[str]] = []
        if settings.pulls_with_job_token:
            pulumi.warn(
                "The server pulls with this job's token, which changes its commands in every job, also where nothing "
                "else has changed: let the stack gitlab make a deploy token (esteira:gitlab.deployToken), or set "
                "esteira:pullUser and esteira:pullPassword.",
                self,
            )
        phases = [self._phases(server) for server in settings.servers]

        def declare(index: int, phase: str, suffix: str, after: Sequence[pulumi.Resource]) -> Command:
            return phases[index](phase, f"{name}-{settings.servers[index].name}{suffix}", after)

        everyone = range(len(phases))
        if settings.strategy == "recreate" and len(phases) == 1:
            done = [declare(0, "deploy", "", [])]
        else:
            # A preDeploy command runs on the first server only, before the new release runs anywhere. No server
            # switches before the candidates of all are healthy. Each step names the one before it only: named again
            # at every step, hundreds of servers would be tens of thousands of dependencies.
            candidates: list[Command] = []
            for index in everyone:
                first = candidates[:1] if settings.pre_deploy else []
                candidates.append(declare(index, "candidate", "-candidate", first))
            done, before = [], candidates
            for step in settings.rollout.steps(len(phases)):
                before = [declare(index, "switch", "", before) for index in step]
                done += before
            if len(phases) > 1:
                decision = self._decide(done)
                done = [declare(index, "confirm", "-confirm", [decision]) for index in everyone]
        # A preview knows it already; an update says so of a server only when that one has done it.
        known: pulumi.Input[str] | None = args["commit"] if pulumi.runtime.is_dry_run() else None
        self.releases = pulumi.Output.all(
            **{
                server.name: known or command.stdout.apply(lambda _: args["commit"])
                for server, command in zip(settings.servers, done, strict=True)
            }
        )
        self.register_outputs({"releases": self.releases})

    def _phases(self, server: ServerSettings) -> Callable[[str, str, Sequence[pulumi.Resource]], Command]:
        """Return what declares one phase of a server: all get the same arguments and the same stdin."""
        settings, commit = self._args["settings"], self._args["commit"]
        options = create_options(settings, server, commit)
        arguments = container_command(settings.container)
        mark = release_fingerprint(settings, options, arguments)
        values = phase_values(settings, server, commit, self._args["tag"])

        def text_of(phase: str) -> str:
            return command_text(phase, values, options, arguments)

        def stdin_of(given: Sequence[str]) -> str:
            image, request = given
            stdin = deploy_input(settings, server, mark, image, request)
            return (
                self._rescue.learn(server, text_of("undo"), text_of("confirm"), stdin)
                if self._rescue
                else stdin
            )

        request = self._request(server, mark)
        self._marks.append(request.apply(lambda given: switch_mark(given, commit, mark)))
        stdin = pulumi.Output.all(pulumi.Output.secret(self._args["image"]), request).apply(stdin_of)

        def declare(phase: str, name: str, after: Sequence[pulumi.Resource]) -> Command:
            if self._rescue:
                self._rescue.add(name, phase)
            removes = phase in {"switch", "deploy"}
            return self._command(server, name, text=text_of(phase), stdin=stdin, after=after, removes=removes)

        return declare

    def _decide(self, switches: Sequence[pulumi.Resource]) -> pulumi_command.local.Command:
        """Declare what writes down, for all servers, that they have switched."""
        settings, name = self._args["settings"], f"{self._name}-decision"
        registry = tag_args(settings, decision_tag(settings), self._args["commit"])
        lines = [
            f"{command_line('decide')} {shlex.quote(registry['repository'])}",
            f"tag={registry['tag']}",
            f"commit={registry['commit']}",
        ]
        if registry["insecure"]:
            lines.append("insecure=yes")
        stdin: pulumi.Output[str] = pulumi.Output.json_dumps(
            {"marks": self._marks, "username": registry["username"], "password": registry["password"]}
        )
        secret: pulumi.Output[str] = pulumi.Output.secret(stdin)
        if self._rescue:
            self._rescue.add(name, "decide")
        return pulumi_command.local.Command(
            name,
            create=" \\\n  ".join(lines),
            stdin=secret,
            logging=pulumi_command.local.Logging.STDERR,
            add_previous_output_in_env=False,
            opts=pulumi.ResourceOptions(parent=self, depends_on=switches, hooks=self._hooks),
        )

    def _request(self, server: ServerSettings, mark: str) -> pulumi.Output[str]:
        """Return for whom and why this server is deployed, kept in state while it runs what is declared.

        A fresh value changes the commands' stdin and so runs them again, on this server alone: that is how a server
        that drifted is repaired whatever the state says.
        """
        found = self._difference(server, mark)
        if found:
            commit = self._args["commit"][:7]
            declared = "" if f"commit {commit}" in found else f"; declared is commit {commit}"
            pulumi.info(f"server {server.name} has {found}{declared}", self)
        now = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M:%S")
        who = deployer(os.environ, socket.gethostname())
        return pulumi.Stash(
            f"{self._name}-{server.name}-request",
            input=f"{now} UTC, {who}, found {found or 'it unread'}{self._renewal(server, mark)}",
            opts=pulumi.ResourceOptions(parent=self, ignore_changes=None if found else ["input"]),
        ).input

    def _renewal(self, server: ServerSettings, mark: str) -> str:
        """Return, for the request, the id of a container that must not be kept though its labels are as declared."""
        reading = self._args["readings"][server.name]
        if isinstance(reading, EsteiraError):
            return ""
        renewed = reading.renewed(
            commit=self._args["commit"], fingerprint=mark, **limits(self._args["settings"])
        )
        return f" [renew {renewed}]" if renewed else ""

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
            image=f"{image_name(settings)}@{digest}" if digest else None,
            fingerprint=mark,
            restart=settings.container.restart,
            edge=edge_mark(settings),
            **limits(settings),
        )

    def _command(
        self,
        server: ServerSettings,
        name: str,
        *,
        text: str,
        stdin: pulumi.Output[str],
        after: Sequence[pulumi.Resource],
        removes: bool,
    ) -> Command:
        settings = self._args["settings"]
        shared: dict[str, Any] = {
            "create": text,
            # One command of a server removes what is there, whatever the strategy: a change of strategy changes it in
            # place and so removes nothing.
            "delete": command_text("remove", identity_values(settings, server)) if removes else None,
            "stdin": stdin,
            # A container of another name is another container, and the old one goes first, because it holds the port.
            "triggers": [owner_of(settings)],
            "add_previous_output_in_env": False,
            "opts": pulumi.ResourceOptions(
                parent=self,
                depends_on=after,
                delete_before_replace=True,
                hooks=self._hooks,
                # A preview without a login would show that as a change of every command; an update has one.
                ignore_changes=["connection"] if settings.lacks_login(server) else None,
            ),
        }
        if server.local:
            return pulumi_command.local.Command(name, **shared)
        return pulumi_command.remote.Command(name, connection=connection_args(settings, server), **shared)


def _hooks(name: str, rescue: Rescue | None) -> pulumi.ResourceHookBinding | None:
    """Return what is done when one of the commands fails, None where there is no engine to call it.

    A rollout is ended; of a server that was removed from the settings and is gone it is said how to forget it.
    """
    if isinstance(get_monitor(), MockMonitor):
        return None

    async def end(failed: pulumi.ErrorHookArgs) -> bool:
        sentences = []
        if failed.failed_operation == "delete":
            sentences.append(
                f"What {failed.name} stands for could not be removed from its server, and the next `pulumi up` tries "
                "again. If that server is gone for good, let Pulumi forget it:\n"
                f"pulumi state delete '{failed.urn}'"
            )
        elif rescue:
            sentences += await asyncio.to_thread(rescue.after, [failed.name])
        for sentence in sentences:
            # Without a resource it is sent at once: the program may be ended as soon as this has returned.
            pulumi.warn(sentence)
        return False

    return pulumi.ResourceHookBinding(on_error=[pulumi.ErrorHook(f"{name}-failed", end)])


def addresses(settings: Settings) -> dict[str, list[str]]:
    """Return server name to the addresses at which the application answers there."""
    if settings.domain:
        return {
            server.name: [f"https://{domain}" for domain in settings.domain] for server in settings.servers
        }
    found = {}
    for server in settings.servers:
        own = "localhost" if server.local else server.host or ""
        found[server.name] = [
            f"{'http' if port.protocol == 'h2c' else port.protocol}://{_openable(port.address, own)}:{port.published}"
            for port in settings.container.ports
        ]
    return found


def _openable(address: str | None, own: str) -> str:
    """Return the host of a URL: the address that is published on, the server's own where that means all of them."""
    host = own if address in {None, "0.0.0.0", "::"} else str(address)  # noqa: S104 - as Docker publishes
    return f"[{host}]" if ":" in host else host
