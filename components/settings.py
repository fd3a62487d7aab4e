# ruff: noqa: D401 - a docstring says what a thing is
"""Settings: everything that a stack declares, read from ``Pulumi.<stack>.yaml`` once, checked, and then never changed.

:func:`load_settings` reports every mistake at once, each with its key, the stack file, what is wrong and the line
to write. An error never holds the value of a secret key. What one value may be is said in
:mod:`components.settings_rules`; here stand the shape of the whole, the rules between keys, and where values come from
when a key is absent.

``python -m components.settings`` writes the table of all keys into ``README.md`` and the stack files' JSON schema into
``docs/stack.schema.json``; tests keep them in step.
"""

from __future__ import annotations

import copy
import difflib
import ipaddress
import json
import math
import os
import posixpath
import re
import sys
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, cast

import pulumi
import yaml
from pulumi.runtime import config
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    TypeAdapter,
    ValidationError,
    model_validator,
)
from pydantic.alias_generators import to_camel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from . import gitlab_values
from . import settings_rules as rule
from .errors import EsteiraError
from .gitlab_variables import resolve
from .settings_rules import Fault, Wrong

NAMESPACE = "esteira"
"""The namespace of all keys in a stack file, whatever the Pulumi project is called."""

NO_LOGIN = "(no login is set here)"
"""Stands, in a preview, for the password of servers that nothing is set for; it is never sent."""

DEFAULT_EDGE_IMAGE = "caddy:2.11.9-alpine"
"""A small image with a shell and busybox; pinned, because a health gate must not change between two deployments."""

HOST_KEY_EXAMPLE = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAA…"
_REQUIRED = object()


@dataclass(frozen=True)
class Mistake:
    """One mistake in the settings.

    key: dotted path as in the stack file (``container.ports[0]``). file: the stack file's name. problem: finished
    sentences. write: the lines that put it right, of the stack file or of a command line.
    """

    key: str
    file: str
    problem: str
    write: tuple[str, ...]

    def __str__(self) -> str:
        verb = (
            "Type"
            if self.write and self.write[0].startswith(("pulumi ", "export ", "./esteira "))
            else "Write"
        )
        lines = "".join(f"\n        {line}" for line in self.write)
        return f"{NAMESPACE}:{self.key} ({self.file}): {self.problem}\n    {verb}:{lines}"


class SettingsError(EsteiraError):
    """All mistakes of a stack's settings; ``mistakes`` lists them, the message tells them to a person."""

    def __init__(self, mistakes: list[Mistake]) -> None:
        self.mistakes = tuple(mistakes)
        count = "1 mistake" if len(mistakes) == 1 else f"{len(mistakes)} mistakes"
        listed = "\n".join(f"{index}. {mistake}" for index, mistake in enumerate(mistakes, 1))
        super().__init__(f"The settings have {count}; nothing has been touched.\n{listed}")


# ---- how a key is described --------------------------------------------------------------------------------


def _key(
    description: str,
    shape: str,
    example: object,
    default: Any = _REQUIRED,
    *,
    factory: Callable[..., Any] | None = None,
    shown: str | None = None,
    secret: bool = False,
) -> Any:
    """A key of the stack file: what it means, its shape in words, an example, its default (``shown`` in the table)."""
    extra: dict[str, Any] = {"shape": shape, "example": example, "shown": shown, "secret": secret}
    if factory is not None:
        return Field(default_factory=factory, description=description, json_schema_extra=extra)
    if default is _REQUIRED:
        return Field(description=description, json_schema_extra=extra)
    return Field(default=default, description=description, json_schema_extra=extra)


def _not_a_key(description: str, default: Any = _REQUIRED) -> Any:
    """A field that the program fills in and that no stack file may hold."""
    if default is _REQUIRED:
        return Field(description=description, json_schema_extra={"key": False})
    return Field(default=default, description=description, json_schema_extra={"key": False})


def _extra(field: FieldInfo) -> dict[str, Any]:
    return field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}


class _Model(BaseModel):
    """Frozen, closed, camelCase outside; ``faults`` are the rules between its fields."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        alias_generator=to_camel,
        validate_by_name=True,
        validate_by_alias=True,
        hide_input_in_errors=True,
    )

    @classmethod
    def expand(cls, raw: object) -> object:
        """A short form as the map that it stands for; anything else as it is."""
        return raw

    def faults(self, given: frozenset[str], failed: frozenset[str]) -> Iterator[Fault]:  # noqa: ARG002
        """Faults between fields. ``given``: fields that were written; ``failed``: those that have a fault already."""
        yield from ()

    @model_validator(mode="before")
    @classmethod
    def _expanded(cls, raw: object) -> object:
        return cls.expand(raw)

    @model_validator(mode="after")
    def _consistent(self) -> _Model:
        found = list(self.faults(frozenset(self.model_fields_set), frozenset()))
        if found:
            raise Wrong(found)
        return self


# ---- the keys ----------------------------------------------------------------------------------------------

Flag = Annotated[bool, BeforeValidator(rule.flag)]
Port = Annotated[int, BeforeValidator(rule.number(1, 65535, "The port"))]
Seconds = Annotated[float, BeforeValidator(rule.duration(zero=True))]
SomeSeconds = Annotated[float, BeforeValidator(rule.duration(zero=False))]
Arguments = Annotated[list[str] | None, BeforeValidator(rule.maybe(rule.arguments))]
Environment = Annotated[dict[str, str], BeforeValidator(rule.map_of(rule.environment_name, rule.text))]
Labels = Annotated[dict[str, str], BeforeValidator(rule.map_of(rule.label_name, rule.text))]
User = Annotated[str, BeforeValidator(rule.ssh_user)]
Host = Annotated[str, BeforeValidator(rule.host)]
HostKey = Annotated[str, BeforeValidator(rule.host_key)]
Secret = Annotated[SecretStr | None, BeforeValidator(rule.maybe(rule.password))]

_TRANSPORT = {"udp": "udp"}


class ImageSettings(_Model):
    """What is built, and from what. The paths are relative to the project, the Dockerfile's to the context."""

    context: Annotated[str, BeforeValidator(rule.project_path("context"))] = _key(
        "Folder that is built, relative to the project.", "path", "examples/parasite", "."
    )
    dockerfile: Annotated[str, BeforeValidator(rule.project_path("Dockerfile", inside=False))] = _key(
        "Dockerfile, relative to the context.", "path", "Dockerfile", "Dockerfile"
    )
    target: Annotated[str | None, BeforeValidator(rule.maybe(rule.stage))] = _key(
        "Stage of the Dockerfile to build; the last one by default.", "name", "production", None
    )
    platform: Annotated[str | None, BeforeValidator(rule.maybe(rule.platform))] = _key(
        "Platform of the servers, where it is not that of the machine that builds.",
        "`os/arch[/variant]`",
        "linux/arm64",
        None,
    )
    build_args: Annotated[dict[str, str], BeforeValidator(rule.map_of(rule.environment_name, rule.text))] = (
        _key(
            "Build arguments. They stay readable in the image: no secrets.",
            "map of text",
            {"VERSION": "1.0"},
            factory=dict,
        )
    )

    def faults(self, given: frozenset[str], failed: frozenset[str]) -> Iterator[Fault]:  # noqa: ARG002
        """The Dockerfile may stand beside its context, but not outside the project."""
        if not failed & {"context", "dockerfile"}:
            joined = posixpath.normpath(f"{self.context}/{self.dockerfile}")
            if joined.split("/")[0] == "..":
                yield Fault("The Dockerfile stands outside the project.", ("dockerfile",))


class PortSettings(_Model):
    """One published port. The short form is Docker's: ``[address:]published:target[/tcp|/udp]``."""

    published: Port = _key("Port on the server.", "port", 8888)
    target: Port = _key("Port in the container.", "port", 8000)
    address: Annotated[str | None, BeforeValidator(rule.maybe(rule.address))] = _key(
        "Address of the server to publish on; all by default.", "IP address", "127.0.0.1", None
    )
    protocol: Annotated[
        Literal["http", "https", "h2c", "tcp", "udp"],
        BeforeValidator(rule.choice("http", "https", "h2c", "tcp", "udp")),
    ] = _key("What the container speaks there.", "`http`, `https`, `h2c`, `tcp` or `udp`", "http", "http")

    @classmethod
    def expand(cls, raw: object) -> object:
        """Docker's short form as a map."""
        if isinstance(raw, str):
            return rule.short_port(raw)
        if isinstance(raw, int) and not isinstance(raw, bool):
            raise Wrong(
                "This is one number; write the published port and the one in the container.", f"{raw}:{raw}"
            )
        return raw

    @property
    def transport(self) -> str:
        """``udp`` or ``tcp``, what Docker publishes."""
        return _TRANSPORT.get(self.protocol, "tcp")

    def overlaps(self, other: PortSettings) -> bool:
        """Whether both cannot be published on one server."""
        if self.published != other.published or self.transport != other.transport:
            return False
        mine, theirs = (
            ipaddress.ip_address(port.address) if port.address else None for port in (self, other)
        )
        if mine is None or theirs is None or mine == theirs:
            return True
        return mine.version == theirs.version and (mine.is_unspecified or theirs.is_unspecified)

    def __str__(self) -> str:
        where = (
            "" if self.address is None else f"{f'[{self.address}]' if ':' in self.address else self.address}:"
        )
        return f"{where}{self.published}:{self.target}/{self.protocol}"


_ROTATING = ("json-file", "local")


def _rotation(data: dict[str, Any]) -> dict[str, str]:
    """Log rotation by default, for the drivers that know these options; others refuse them."""
    return {"max-size": "10m", "max-file": "3"} if data.get("driver") in _ROTATING else {}


class LoggingSettings(_Model):
    """Docker's log driver of the container."""

    driver: Annotated[str, BeforeValidator(rule.word)] = _key(
        "Log driver of Docker.", "name", "json-file", "json-file"
    )
    options: Annotated[dict[str, str], BeforeValidator(rule.map_of(rule.option_name, rule.text))] = _key(
        "Options of the log driver.",
        "map of text",
        {"max-size": "10m", "max-file": "3"},
        factory=_rotation,
        shown='`max-size: 10m`, `max-file: "3"` for `json-file` and `local`',
    )


class ContainerSettings(_Model):
    """What ``docker run`` is told."""

    name: Annotated[str, BeforeValidator(rule.container_name)] = _key(
        "Name of the container; a container of this name that the old procedure started is taken over.",
        "name",
        "parasite",
    )
    ports: list[PortSettings] = _key(
        "Published ports: `8888:8000`, `127.0.0.1:8888:8000`, `53:53/udp`, or maps.",
        "list",
        ["8888:8000"],
        factory=list,
    )
    environment: Environment = _key(
        "Environment that everybody may read. Numbers and `true` stand in quotes.",
        "map of text",
        {"DEBUG": "false"},
        factory=dict,
    )
    volumes: Annotated[list[str], BeforeValidator(rule.list_of(rule.volume, unique=True))] = _key(
        "Volumes, `name:/path` or `/path/on/server:/path`, with `:ro` for read-only.",
        "list of text",
        ["data:/data"],
        factory=list,
    )
    networks: Annotated[list[str], BeforeValidator(rule.list_of(rule.network_name, unique=True))] = _key(
        "Networks of Docker that the container joins beside its own.",
        "list of text",
        ["backend"],
        factory=list,
    )
    memory: Annotated[str | None, BeforeValidator(rule.maybe(rule.memory))] = _key(
        "Most memory: a whole number and `b`, `k`, `m` or `g`.", "text", "256m", None
    )
    cpus: Annotated[float | None, BeforeValidator(rule.maybe(rule.positive))] = _key(
        "Most processors, also parts of one.", "number", 0.5, None
    )
    restart: Annotated[str, BeforeValidator(rule.restart)] = _key(
        "Restart policy.", "`always`, `unless-stopped`, `on-failure[:n]` or `no`", "always", "always"
    )
    command: Arguments = _key(
        "Arguments in place of the image's CMD; text is split as a shell splits it.",
        "list of text, or text",
        ["python3", "run.py"],
        None,
    )
    entrypoint: Arguments = _key(
        "Program in place of the image's ENTRYPOINT.", "list of text, or text", ["/usr/bin/tini", "--"], None
    )
    labels: Labels = _key("Labels; `esteira.` is taken.", "map of text", {"team": "parasite"}, factory=dict)
    user: Annotated[str | None, BeforeValidator(rule.maybe(rule.user))] = _key(
        "User, and group, in the container.", "`user[:group]`", "1000:1000", None
    )
    init: Flag = _key("Run an init process that reaps children.", "true or false", True, False)
    read_only: Flag = _key("Mount the container's file system read-only.", "true or false", True, False)
    tmpfs: Annotated[list[str], BeforeValidator(rule.list_of(rule.tmpfs, unique=True))] = _key(
        "Paths in memory, `/path[:options]`.",
        "list of text",
        ["/run/cache"],
        factory=list,
    )
    stop_signal: Annotated[str | None, BeforeValidator(rule.maybe(rule.stop_signal))] = _key(
        "Signal that stops the container; the image's by default.", "name or number", "SIGTERM", None
    )
    stop_timeout: Seconds = _key(
        "How long it may take to stop before it is killed.", "duration", "10s", 10.0, shown="`10s`"
    )
    logging: LoggingSettings = _key(
        "Docker's logging.", "map", {"driver": "json-file"}, factory=LoggingSettings
    )

    def faults(self, given: frozenset[str], failed: frozenset[str]) -> Iterator[Fault]:  # noqa: ARG002
        """Ports and mounts that collide, and networks that exclude what stands beside them."""
        usable = [(index, port) for index, port in enumerate(self.ports) if port.published and port.target]
        for position, (index, port) in enumerate(usable):
            if any(port.overlaps(earlier) for _, earlier in usable[:position]):
                yield Fault(
                    f"The port {port.published} is published twice on one address.",
                    ("ports", index),
                    f"{port.published + 1}:{port.target}",
                )
        for alone in ("host", "none"):
            if alone not in self.networks or "networks" in failed:
                continue
            if len(self.networks) > 1:
                yield Fault(f'The network "{alone}" excludes all others.', ("networks",), [alone])
            if self.ports:
                ways = "reaches the server's ports without publishing" if alone == "host" else "has no ports"
                yield Fault(
                    f'A container on the network "{alone}" {ways}: leave the ports out.', ("ports",), []
                )
        targets = [(("volumes", index), volume.split(":")[1]) for index, volume in enumerate(self.volumes)]
        targets += [(("tmpfs", index), mount.split(":")[0]) for index, mount in enumerate(self.tmpfs)]
        for position, (path, target) in enumerate(targets):
            if target in [earlier for _, earlier in targets[:position]]:
                yield Fault(f"Two mounts have the same place in the container, {target}.", path)


class HealthSettings(_Model):
    """The health gate: what proves a release."""

    test: Annotated[
        Literal["auto", "http", "tcp", "image", "none"],
        BeforeValidator(rule.choice("auto", "http", "tcp", "image", "none")),
    ] = _key(
        "How health is asked: an HTTP path, a TCP connection, the image's HEALTHCHECK, not at all; "
        "`auto` takes the image's "
        "HEALTHCHECK if it has one, else TCP.",
        "`auto`, `http`, `tcp`, `image` or `none`",
        "http",
        factory=lambda data: "http" if data.get("path") else "auto",
        shown="`http` with a path, else `auto`",
    )
    path: Annotated[
        str | None,
        BeforeValidator(rule.maybe(rule.health_path)),
    ] = _key("Path to ask for.", "path", "/health", None)
    status: Annotated[int, BeforeValidator(rule.number(100, 599, "The status"))] = _key(
        "Status that means healthy.", "number", 200, 200
    )
    port: Annotated[int | None, BeforeValidator(rule.maybe(rule.number(1, 65535, "The port")))] = _key(
        "Port in the container to ask; that of the first published port by default.", "port", 8000, None
    )
    interval: SomeSeconds = _key("Time between two probes.", "duration", "0.2s", 0.2, shown="`0.2s`")
    timeout: SomeSeconds = _key("Most time for one answer.", "duration", "5s", 5.0, shown="`5s`")
    retries: Annotated[int, BeforeValidator(rule.number(1, 1000, "The number of retries"))] = _key(
        "Probes in a row that may fail after the start period.", "number", 10, 10
    )
    start_period: Seconds = _key(
        "Time to start, in which failed probes do not count.", "duration", "30s", 30.0, shown="`30s`"
    )

    @model_validator(mode="before")
    @classmethod
    def _path_first(cls, raw: object) -> object:
        # The default of test looks at path, which pydantic would validate after it.
        if isinstance(raw, Mapping) and "test" not in raw and raw.get("path"):
            return {**raw, "test": "http"}
        return raw

    def faults(self, given: frozenset[str], failed: frozenset[str]) -> Iterator[Fault]:
        """Keys that mean nothing with the chosen test, and an HTTP test without its path."""
        if failed & {"test", "path"}:
            return
        if self.test == "http" and self.path is None:
            yield Fault('The test "http" needs a path to ask for.', ("path",))
        if self.test != "http":
            for name, camel in (("path", "path"), ("status", "status")):
                if name in given:
                    yield Fault(
                        f'"{camel}" makes sense only with the test "http", but the test is "{self.test}".',
                        ("test",),
                        "http",
                    )
        if self.test in {"image", "none"} and "port" in given:
            yield Fault(f'"port" makes no sense with the test "{self.test}".', ("test",), "tcp")


class AcmeSettings(_Model):
    """How the edge gets certificates."""

    email: Annotated[str | None, BeforeValidator(rule.maybe(rule.email))] = _key(
        "Address that the certificate authority may write to.", "address", "ana@example.org", None
    )
    directory: Annotated[str | None, BeforeValidator(rule.maybe(rule.acme_directory))] = _key(
        "ACME directory of another authority; `internal` for the edge's own, which browsers do not know.",
        "URL, or `internal`",
        "https://acme.example.org/directory",
        None,
        shown="Let's Encrypt, ZeroSSL",
    )
    root: Annotated[str | None, BeforeValidator(rule.maybe(rule.certificate))] = _key(
        "Certificate of that authority, where the edge does not know it.",
        "PEM text",
        "-----BEGIN CERTIFICATE-----\nMIIB…\n-----END CERTIFICATE-----",
        None,
    )


class RolloutSettings(_Model):
    """How a release goes over the servers."""

    canary: Annotated[int, BeforeValidator(rule.number(0, 10000, "The number of servers"))] = _key(
        "How many servers switch first, when the candidates of all are healthy, and are watched alone.",
        "number",
        1,
        1,
    )
    batch_size: Annotated[
        int | None, BeforeValidator(rule.maybe(rule.number(1, 10000, "The number of servers")))
    ] = _key("How many of the others switch at a time.", "number", 2, None, shown="all of them")
    watch: Seconds = _key(
        "How long a release is watched after the switch; if it fails in that time, the edge points back.",
        "duration",
        "3s",
        3.0,
        shown="`3s`",
    )
    confirm_timeout: SomeSeconds = _key(
        "With several servers: how long a server waits, switched, for the others; then it takes its switch back.",
        "duration",
        "3m",
        180.0,
        shown="`3m`",
    )

    def steps(self, count: int) -> list[range]:
        """Return which of ``count`` servers switch together, in the order of the steps: canaries, then batches."""
        size = self.batch_size or max(count, 1)
        first = min(self.canary, count)
        batches = [range(start, min(start + size, count)) for start in range(first, count, size)]
        return [range(first), *batches] if first else batches


class JumpHostSettings(_Model):
    """A host that the connection to a server goes through."""

    host: Host = _key("Name or address of the jump host.", "host", "jump.example.org")
    port: Port = _key("SSH port of the jump host.", "port", 22, 22)
    user: User = _key("User on the jump host.", "name", "deploy", "root")
    host_key: HostKey | None = _key(
        "Public host key of the jump host.", "`type base64`", HOST_KEY_EXAMPLE, None, shown="required"
    )

    def faults(self, given: frozenset[str], failed: frozenset[str]) -> Iterator[Fault]:  # noqa: ARG002
        """The host key is pinned, always."""
        if self.host_key is None and "host_key" not in failed and "host" not in failed:
            yield _missing_host_key(self.host, self.port)


def _missing_host_key(host: str | None, port: int) -> Fault:
    return Fault(
        f"The host key is missing; without it anybody could pose as the server. `ssh-keyscan -t ed25519 -p {port} "
        f"{host or 'HOST'}` prints it behind the host's name. Compare it with the server's own: `ssh-keygen -lf "
        "/etc/ssh/ssh_host_ed25519_key.pub` there, and `ssh-keygen -lf -` for the printed line, show the "
        "same fingerprint.",
        ("hostKey",),
        HOST_KEY_EXAMPLE,
    )


class ServerSettings(_Model):
    """One server: this machine (``local``), or one that SSH reaches."""

    host: Annotated[str | None, BeforeValidator(rule.maybe(rule.host))] = _key(
        "Name or address of the server.", "host", "203.0.113.10", None, shown="required without `local`"
    )
    name: Annotated[str, BeforeValidator(rule.server_name)] = _key(
        "Name of the server in previews and messages.",
        "name",
        "web",
        factory=lambda data: (data.get("host") or "local").replace(":", "-"),
        shown="the host",
    )
    port: Port = _key("SSH port.", "port", 22, 22)
    user: User = _key("User to log in as.", "name", "deploy", "root")
    host_key: Annotated[str | None, BeforeValidator(rule.maybe(rule.host_key))] = _key(
        "Public host key, pinned.", "`type base64`", HOST_KEY_EXAMPLE, None, shown="required without `local`"
    )
    sudo: Flag = _key("Run docker by sudo.", "true or false", True, False)
    jump_host: JumpHostSettings | None = _key(
        "Host that the connection goes through.", "map", {"host": "jump.example.org"}, None
    )
    local: Flag = _key("This machine is the server: no SSH.", "true or false", True, False)
    environment: Environment = _key(
        "Environment of the container on this server only.", "map of text", {"REGION": "south"}, factory=dict
    )
    labels: Labels = _key(
        "Labels of the container on this server only.", "map of text", {"rack": "b"}, factory=dict
    )

    def faults(self, given: frozenset[str], failed: frozenset[str]) -> Iterator[Fault]:
        """A server is either local or reached by SSH, and SSH needs a host and its key."""
        if "local" in failed:
            return
        if self.local:
            remote = [
                name for name in ("host", "port", "user", "host_key", "jump_host") if name in given | failed
            ]
            if remote:
                yield Fault(
                    f"This server is local, so SSH does not reach it: leave out {', '.join(map(to_camel, remote))}, "
                    "or local.",
                    ("local",),
                    lines=("esteira:servers:", "  - name: local", "    local: true"),
                )
            return
        if self.host is None and "host" not in failed:
            yield Fault("The server has neither a host nor local: true.", ("host",))
        elif self.host_key is None and "host_key" not in failed:
            fault = _missing_host_key(self.host, self.port)
            entry = rule.yaml_lines(
                ("servers", 0), {"host": self.host or "HOST", "hostKey": HOST_KEY_EXAMPLE}
            )
            yield replace(fault, lines=tuple(entry))


class GitlabServerSettings(_Model):
    """What the jobs of one environment are told of their server, under the procedure's names."""

    host: Host = _key("`DEPLOYMENT_SERVER_IP`.", "host", "203.0.113.10")
    user: User = _key("`DEPLOYMENT_SERVER_USER`.", "name", "deploy")
    host_key: Annotated[str | None, BeforeValidator(rule.maybe(rule.host_key))] = _key(
        "`DEPLOYMENT_SERVER_HOST_KEY`, a file.", "one line of authorized_keys", HOST_KEY_EXAMPLE, None
    )
    sudo: Flag = _key(
        "`DEPLOYMENT_SERVER_SUDO`: run docker by sudo, as the procedure does.", "true or false", True, False
    )


class GitlabEnvironmentSettings(_Model):
    """One environment of the GitLab project."""

    name: Annotated[str, BeforeValidator(gitlab_values.scope)] = _key(
        "Environment scope; `*` is for jobs without an environment too.", "text", "production"
    )
    server: GitlabServerSettings | None = _key(
        "Its server.", "map", {"host": "203.0.113.10", "user": "deploy"}, None
    )


class GitlabVariableSettings(_Model):
    """One CI/CD variable, or the attributes of one whose value is a secret or comes from other settings."""

    key: Annotated[str, BeforeValidator(gitlab_values.key)] = _key("Its name.", "name", "SENTRY_ENVIRONMENT")
    scope: Annotated[str, BeforeValidator(gitlab_values.scope)] = _key(
        "Environment scope.", "text", "production", "*"
    )
    value: Annotated[str | None, BeforeValidator(rule.maybe(rule.text))] = _key(
        "Value that everybody may read; a secret one is set in `gitlabVariables`.", "text", "production", None
    )
    masked: Annotated[bool | None, BeforeValidator(rule.maybe(rule.flag))] = _key(
        "Keep it out of job logs.", "true or false", False, None, shown="`true` for secrets of one line"
    )
    hidden: Annotated[bool | None, BeforeValidator(rule.maybe(rule.flag))] = _key(
        "Show it to nobody any more, masked too; another choice later makes the variable anew.",
        "true or false",
        True,
        None,
    )
    protected: Annotated[bool | None, BeforeValidator(rule.maybe(rule.flag))] = _key(
        "Only for jobs of protected branches and tags.",
        "true or false",
        True,
        None,
        shown="`true` for secrets, and for what deploys",
    )
    raw: Annotated[bool | None, BeforeValidator(rule.maybe(rule.flag))] = _key(
        "Do not replace `$NAME` in it.", "true or false", True, None, shown="`true` for secrets"
    )
    type: Annotated[
        Literal["env_var", "file"] | None, BeforeValidator(rule.maybe(rule.choice("env_var", "file")))
    ] = _key("How jobs get it.", "`env_var` or `file`", "file", None, shown="`env_var`, for keys `file`")
    description: Annotated[str | None, BeforeValidator(rule.maybe(rule.line))] = _key(
        "What it is for.", "text", "Where errors are reported", None
    )


class DeployTokenSettings(_Model):
    """A deploy token with read_registry, which servers pull with; jobs get it as CI_DEPLOY_USER and _PASSWORD."""

    name: Annotated[str, BeforeValidator(rule.line)] = _key(
        "Its name in GitLab; the rotation is added.", "text", "esteira-pull", "esteira-pull"
    )
    rotation: Annotated[int, BeforeValidator(rule.number(1, 1_000_000, "The rotation"))] = _key(
        "Raise it by one for a new token. The one before stays valid until the next rotation, for jobs and servers "
        "that hold it still.",
        "number",
        2,
        1,
    )
    keep_previous: Flag = _key(
        "`false` revokes the token before this one, once nobody holds it.", "true or false", False, True
    )
    expires_at: Annotated[str | None, BeforeValidator(rule.maybe(gitlab_values.date))] = _key(
        "Last day on which it works (UTC).", "date", "2035-12-31", None
    )
    warn_days: Annotated[int, BeforeValidator(rule.number(0, 3650, "The number of days"))] = _key(
        "From how many days before that on every preview warns.", "number", 30, 30
    )


class GitlabSettings(_Model):
    """What GitLab is told: CI/CD variables of the project, and a deploy token for the servers."""

    project: Annotated[str, BeforeValidator(gitlab_values.project)] = _key(
        "The GitLab project, its path or its number.", "text", "group/parasite"
    )
    base_url: Annotated[str | None, BeforeValidator(rule.maybe(gitlab_values.base_url))] = _key(
        "The API of a GitLab instance of your own.",
        "URL",
        "https://gitlab.example.com/api/v4/",
        None,
        shown="`GITLAB_BASE_URL`, else `CI_API_V4_URL`, else gitlab.com's",
    )
    ca_file: Annotated[str | None, BeforeValidator(rule.maybe(rule.line))] = _key(
        "File with the certificate of the authority that signed the instance's (PEM); relative to the project.",
        "path",
        "gitlab-ca.pem",
        None,
    )
    backend_url: Annotated[str | None, BeforeValidator(rule.maybe(rule.line))] = _key(
        "`PULUMI_BACKEND_URL`: where jobs find Pulumi's state. One with a password in it belongs in `gitlabVariables`.",
        "URL",
        "s3://example-state?region=eu-west-1",
        None,
    )
    environments: list[GitlabEnvironmentSettings] = _key(
        "Environments, with what their jobs are told.", "list", [{"name": "production"}], factory=list
    )
    variables: list[GitlabVariableSettings] = _key(
        "Variables of your own, and attributes of those that are declared anyway.",
        "list",
        [{"key": "SENTRY_ENVIRONMENT", "value": "production"}],
        factory=list,
    )
    deploy_token: DeployTokenSettings | None = _key(
        "A deploy token for the servers' pulls; an empty map `{}` will do.", "map", {"rotation": 1}, None
    )
    adopt: Annotated[list[str], BeforeValidator(rule.list_of(gitlab_values.name, unique=True))] = _key(
        "Variables, `KEY` or `KEY@scope`, that the project has already and that this stack takes over.",
        "list of text",
        ["DEPLOYMENT_SERVER_IP"],
        factory=list,
    )

    def faults(self, given: frozenset[str], failed: frozenset[str]) -> Iterator[Fault]:  # noqa: ARG002
        """Environments that occur twice."""
        names = [environment.name for environment in self.environments]
        for index, name in enumerate(names):
            if name in names[:index]:
                yield Fault(f"The environment {name} is written twice.", ("environments", index, "name"))


Optional_ = Annotated[str | None, BeforeValidator(rule.maybe(rule.line))]


class Settings(_Model):
    """Everything that one stack declares. Built once, by :func:`load_settings`; components get their part of it."""

    project: str = _not_a_key("The Pulumi project.")
    stack: str = _not_a_key("The Pulumi stack.")
    root: Path = _not_a_key("The project's folder.")
    registry: Annotated[str, BeforeValidator(rule.registry)] = _key(
        "Registry of the image, with its port if it has one.",
        "host[:port]",
        "registry.gitlab.com",
        shown="`CI_REGISTRY`",
    )
    repository: Annotated[str, BeforeValidator(rule.repository)] = _key(
        "Repository in the registry, without a tag.",
        "path",
        "group/parasite",
        shown="`CI_PROJECT_PATH` in lower case",
    )
    registry_user: Optional_ = _key(
        "User of the registry.", "text", "deploy", None, shown="`CI_REGISTRY_USER`"
    )
    registry_password: Secret = _key(
        "Password of the registry.", "text", None, None, shown="`CI_REGISTRY_PASSWORD`", secret=True
    )
    registry_password_file: Optional_ = _key(
        "File with the password of the registry, in place of the secret; relative to the project.",
        "path",
        ".esteira/local/registry-password",
        None,
    )
    registry_credential_from_environment: bool = _not_a_key(
        "The password came from CI_REGISTRY_PASSWORD: a job token, another in each job, which must not be an input.",
        False,
    )
    registry_insecure: Flag = _key(
        "Speak plain HTTP with the registry; loopback addresses need no such word.",
        "true or false",
        True,
        False,
    )
    pull_user: Optional_ = _key(
        "User that the servers pull with.",
        "text",
        "deploy",
        None,
        shown="`CI_DEPLOY_USER`, else `registryUser`",
    )
    pull_password: Secret = _key(
        "Password that the servers pull with.",
        "text",
        None,
        None,
        shown="`CI_DEPLOY_PASSWORD`, else the registry's password",
        secret=True,
    )
    pulls_with_job_token: bool = _not_a_key(
        "The servers pull with a CI job's token: it ends with the job, and is another in each.", False
    )
    commit: Annotated[str | None, BeforeValidator(rule.maybe(rule.commit))] = _key(
        "Commit to deploy; one that is not checked out is looked up in the registry, never built.",
        "7 to 40 hexadecimal digits",
        "0123abc",
        None,
        shown="`CI_COMMIT_SHA`, else what is checked out",
    )
    image: ImageSettings = _key("What is built.", "map", {"context": "."}, factory=ImageSettings)
    promote: Flag = _key(
        "Build nothing: deploy the image that another stack pushed for this commit.",
        "true or false",
        True,
        False,
    )
    allow_dirty: Flag = _key(
        "Whether files that are not committed may be built; their tag says so.",
        "true or false",
        False,
        factory=lambda data: data.get("stack") != "prod",
        shown="`true`; `false` on the stack `prod`",
    )
    moving_tag: Annotated[str, BeforeValidator(rule.moving_tag)] = _key(
        "Tag that points to the last release that every server runs healthy.", "tag", "latest", "latest"
    )
    container: ContainerSettings = _key("The container.", "map", {"name": "parasite"})
    secret_environment: Annotated[
        dict[str, SecretStr], BeforeValidator(rule.map_of(rule.secret_environment_name, rule.secret_text))
    ] = _key("Secret environment of the container.", "map of text", None, factory=dict, secret=True)
    secret_files: Annotated[
        dict[str, SecretStr], BeforeValidator(rule.map_of(rule.file_path, rule.secret_text))
    ] = _key(
        "Secret files: path in the container, and content.", "map of text", None, factory=dict, secret=True
    )
    health: HealthSettings = _key("The health gate.", "map", {"path": "/health"}, factory=HealthSettings)
    strategy: Annotated[Literal["recreate", "blueGreen"], BeforeValidator(rule.strategy)] = _key(
        "How the running release is replaced: `blueGreen` starts the new one beside it and then switches; `recreate` "
        "stops it first, for what cannot run twice.",
        "`blueGreen` or `recreate`",
        "recreate",
        "blueGreen",
    )
    keep_releases: Annotated[int, BeforeValidator(rule.number(0, 1000, "The number of releases"))] = _key(
        "Old releases that stay on each server as stopped containers, for a rollback.", "number", 5, 5
    )
    pre_deploy: Arguments = _key(
        "Command that is run with the new image before anything stops, as a migration; text is split as "
        "a shell splits it. A declared `container.entrypoint` does not stand before it.",
        "list of text, or text",
        ["python3", "manage.py", "migrate"],
        None,
    )
    servers: list[ServerSettings] = _key(
        "The servers.",
        "list",
        [{"host": "203.0.113.10", "user": "deploy", "hostKey": HOST_KEY_EXAMPLE}],
        shown="`DEPLOYMENT_SERVER_IP`, `DEPLOYMENT_SERVER_USER`, `DEPLOYMENT_SERVER_HOST_KEY`, "
        "`DEPLOYMENT_SERVER_SUDO`",
    )
    server_password: Annotated[dict[str, SecretStr], BeforeValidator(rule.per_server(rule.password))] = _key(
        "SSH password: one for all servers, or a map of server names.",
        "text, or map of text",
        None,
        factory=dict,
        shown="`DEPLOYMENT_SERVER_PASS`",
        secret=True,
    )
    server_private_key: Annotated[
        dict[str, SecretStr], BeforeValidator(rule.per_server(rule.private_key))
    ] = _key(
        "SSH private key without a passphrase: one for all servers, or a map of server names.",
        "text, or map of text",
        None,
        factory=dict,
        shown="`DEPLOYMENT_SERVER_KEY`, a file or its text",
        secret=True,
    )
    sudo_password: Secret = _key("Password for sudo, where it asks for one.", "text", None, None, secret=True)
    jump_password: Secret = _key(
        "SSH password of the jump host.", "text", None, None, shown="the server's", secret=True
    )
    jump_private_key: Annotated[SecretStr | None, BeforeValidator(rule.maybe(rule.private_key))] = _key(
        "SSH private key of the jump host.", "text", None, None, shown="the server's", secret=True
    )
    edge_image: Annotated[str, BeforeValidator(rule.image_reference)] = _key(
        "Image of the edge, a stock Caddy (2.6 or later); with `recreate` it only asks for the health path.",
        "image",
        DEFAULT_EDGE_IMAGE,
        DEFAULT_EDGE_IMAGE,
    )
    domain: Annotated[list[str], BeforeValidator(rule.one_or_more(rule.domain_name))] = _key(
        "Domain, or domains, at which the application answers by HTTPS: ports 80 and 443 of the server, shared with "
        "other applications; the published port is then not opened.",
        "list of text, or text",
        "parasite.example.org",
        factory=list,
    )
    acme: AcmeSettings = _key(
        "How the domain's certificate is got.", "map", {"email": "ana@example.org"}, factory=AcmeSettings
    )
    trusted_proxies: Annotated[list[str], BeforeValidator(rule.list_of(rule.network_range, unique=True))] = (
        _key(
            "Addresses of proxies in front of the server whose word about the client's address is taken.",
            "list of text",
            ["10.0.0.0/8"],
            factory=list,
        )
    )
    drain_time: Seconds = _key(
        "Most time that requests in flight have to finish on the old release after the switch.",
        "duration",
        "30s",
        30.0,
        shown="`30s`",
    )
    candidate_lifetime: SomeSeconds = _key(
        "How long a healthy candidate that nobody switches to stays.", "duration", "10m", 600.0, shown="`10m`"
    )
    rollout: RolloutSettings = _key("The rollout.", "map", {"watch": "5s"}, factory=RolloutSettings)
    connect_timeout: SomeSeconds = _key(
        "Most time to reach a server.", "duration", "20s", 20.0, shown="`20s`"
    )
    lock_timeout: Seconds = _key(
        "Most time to wait for another deployment on the same server.", "duration", "5m", 300.0, shown="`5m`"
    )

    gitlab: GitlabSettings | None = _key(
        "What GitLab is told; written in a stack of its own, which a maintainer runs.",
        "map",
        {"project": "group/parasite"},
        None,
    )
    gitlab_variables: Annotated[
        dict[str, SecretStr], BeforeValidator(rule.map_of(gitlab_values.name_fault, rule.secret_text))
    ] = _key(
        "Values of secret CI/CD variables: `KEY` for all environments, or `KEY@scope`.",
        "map of text",
        None,
        factory=dict,
        secret=True,
    )
    gitlab_token: Secret = _key(
        "Access token of a maintainer, scope `api`.",
        "text",
        None,
        None,
        shown="`gitlab:token`, else `GITLAB_TOKEN`",
        secret=True,
    )
    gitlab_token_from_environment: bool = _not_a_key(
        "The token came from GITLAB_TOKEN: it is no input.", False
    )

    @property
    def registry_plain_http(self) -> bool:
        """Whether the registry speaks HTTP without TLS: by setting, or because it is on loopback (Docker's rule)."""
        name = self.registry.rsplit(":", 1)[0] if re.search(r":[0-9]+$", self.registry) else self.registry
        if self.registry_insecure or name == "localhost":
            return True
        try:
            return ipaddress.ip_address(name.strip("[]")).is_loopback
        except ValueError:
            return False

    @property
    def health_port(self) -> int | None:
        """The container's port that the health gate asks: the setting, else the first published one that is not UDP."""
        if self.health.port is not None:
            return self.health.port
        return next((port.target for port in self.container.ports if port.transport == "tcp"), None)

    def login(self, server: ServerSettings) -> tuple[SecretStr | None, SecretStr | None]:
        """Password and private key for a server; at least one is set where the server is not local."""
        return self.server_password.get(server.name), self.server_private_key.get(server.name)

    def lacks_login(self, server: ServerSettings) -> bool:
        """Whether there is nothing to log in to the server with; only a preview has such settings."""
        password, _ = self.login(server)
        return not server.local and password is not None and password.get_secret_value() == NO_LOGIN

    def jump_login(self, server: ServerSettings) -> tuple[SecretStr | None, SecretStr | None]:
        """Password and private key for the server's jump host: its own settings, else the server's."""
        if self.jump_password is not None or self.jump_private_key is not None:
            return self.jump_password, self.jump_private_key
        return self.login(server)

    def faults(self, given: frozenset[str], failed: frozenset[str]) -> Iterator[Fault]:
        """The rules between top-level keys."""
        yield from self._image_faults(given, failed)
        yield from self._container_faults(failed)
        yield from self._server_faults(failed)
        yield from _gitlab_faults(self, failed)

    def _image_faults(self, given: frozenset[str], failed: frozenset[str]) -> Iterator[Fault]:
        if (
            self.promote
            and "allow_dirty" in given
            and self.allow_dirty
            and not failed & {"promote", "allow_dirty"}
        ):
            yield Fault(
                "With promote nothing is built, so there is nothing that could be dirty.",
                ("allowDirty",),
                False,
            )
        for side in ("registry", "pull"):
            names = {f"{side}_user", f"{side}_password"}
            if names & failed or (side == "registry" and "registry_password_file" in failed):
                continue
            person, secret = getattr(self, f"{side}_user"), getattr(self, f"{side}_password")
            if person is not None and secret is None:
                yield _need_secret(f"{side}Password", f"{side}User is set, but its password is not.")
            if person is None and secret is not None:
                yield Fault(
                    f"The password of the {side} user is set, but {side}User is not.", (f"{side}User",)
                )

    def _container_faults(self, failed: frozenset[str]) -> Iterator[Fault]:
        container: ContainerSettings | None = self.container
        if container is None:
            return
        for name in self.secret_environment:
            if name in container.environment:
                yield Fault(
                    f"{name} is in secretEnvironment too; take it out of one of the two.",
                    ("container", "environment", name),
                    lines=(f"pulumi config rm --path 'esteira:container.environment.{name}'",),
                )
            for index, server in enumerate(self.servers or []):
                if name in server.environment:
                    yield Fault(
                        f"{name} is in secretEnvironment too; take it out of one of the two.",
                        ("servers", index, "environment", name),
                        lines=(f"pulumi config rm --path 'esteira:servers[{index}].environment.{name}'",),
                    )
        mounts = [(mount.split(":")[0], "a tmpfs, which would hide it") for mount in container.tmpfs]
        mounts += [
            (volume.split(":")[1], "a volume, where it would stay when the release is gone")
            for volume in container.volumes
        ]
        for path in self.secret_files:
            for target, why in mounts:
                if path == target or path.startswith(target.rstrip("/") + "/"):
                    yield Fault(
                        f"The file would lie in {why}; choose a path outside {target}.",
                        ("secretFiles", path),
                        lines=(_set_secret_path("secretFiles", "/run/secrets/name"),),
                    )
            if any(other.startswith(path + "/") for other in self.secret_files):
                yield Fault("The path is also the folder of another secret file.", ("secretFiles", path))
        if "health" not in failed and "container" not in failed:
            yield from self._health_faults(container)
        if self.domain and self.strategy == "recreate" and not failed & {"strategy", "domain"}:
            yield Fault("A domain needs the edge, and so the strategy blueGreen.", ("strategy",), "blueGreen")
        if self.acme.root and not self.acme.directory and "acme" not in failed:
            yield Fault(
                "A root is for another authority: say which.",
                ("acme", "directory"),
                "https://acme.example.org/directory",
            )
        if self.strategy == "blueGreen" and not failed & {"strategy", "container"}:
            yield from self._blue_green_faults(container)

    def _blue_green_faults(self, container: ContainerSettings) -> Iterator[Fault]:
        """What cannot run twice on a server, or be reached by an HTTP proxy, is replaced by recreate."""
        reasons = [
            f"the port {port.published} speaks {port.protocol}, and the edge of blueGreen only plain HTTP"
            for port in container.ports
            if port.protocol not in {"http", "h2c"}
        ]
        if self.domain and len(container.ports) > 1:
            yield Fault(
                "With a domain the container has one port, the one that the edge sends requests to.",
                ("container", "ports"),
                lines=(
                    "esteira:container:",
                    "  ports:",
                    f'    - "{container.ports[0].published}:{container.ports[0].target}"',
                ),
            )
        if not container.ports:
            reasons = ["the container publishes no port that an edge could stand before"]
        if container.networks and container.networks[0] in {"host", "none"}:
            reasons = [f"a container on the network {container.networks[0]} cannot stand behind an edge"]
        for reason in reasons[:1]:
            yield Fault(
                f"The strategy blueGreen (the default) cannot serve this: {reason}. The strategy recreate can.",
                ("strategy",),
                "recreate",
            )

    def _health_faults(self, container: ContainerSettings) -> Iterator[Fault]:
        health = self.health
        if health.test not in {"http", "tcp"}:
            return
        if health.port is None:
            first = container.ports[0] if container.ports else None
            wanted = "an http port" if health.test == "http" else "a port that TCP reaches"
            better = [port.target for port in container.ports if port.protocol not in {"udp", "tcp"}]
            if first is None:
                yield Fault(
                    f'The test "{health.test}" needs a port, and the container publishes none: '
                    "say which one of the container.",
                    ("health", "port"),
                    8000,
                )
            elif first.transport == "udp" or (health.test == "http" and first.protocol == "tcp"):
                yield Fault(
                    f"The first published port speaks {first.protocol}; say which port of the container is {wanted}.",
                    ("health", "port"),
                    better[0] if better else 8000,
                )
        else:
            same = [port for port in container.ports if port.target == health.port]
            if same and all(port.transport == "udp" for port in same):
                yield Fault(
                    f'The port {health.port} is published for UDP, and the test "{health.test}" speaks TCP.',
                    ("health", "port"),
                    8000,
                )

    def _server_faults(self, failed: frozenset[str]) -> Iterator[Fault]:
        servers: list[ServerSettings] | None = self.servers
        if servers is None:
            return
        if not servers and "servers" not in failed:
            yield Fault("There is no server to deploy to.", ("servers",))
        names: list[str] = []
        places: list[tuple[object, ...]] = []
        for index, server in enumerate(servers):
            if server.name in names:
                yield Fault(
                    f'Two servers have the name "{server.name}"; give each its own.',
                    ("servers", index, "name"),
                    f"{server.name}-{index + 1}",
                )
            names.append(server.name)
            jump = server.jump_host.host if server.jump_host else None
            place = ("local",) if server.local else (server.host, server.port, jump)
            if place in places and (server.local or server.host):
                yield Fault(
                    "This is the same machine as another server of the list; the container would be declared twice.",
                    ("servers", index),
                    lines=(f"pulumi config rm --path 'esteira:servers[{index}]'",),
                )
            places.append(place)
        if len(servers) > 1 and not failed & {"servers", "rollout"}:
            yield from self._rollout_faults(len(servers))
        if len(servers) > 1 and self.pulls_with_job_token and not failed & {"servers", "pull_password"}:
            yield Fault(
                "The servers would pull with this job's token: every job would change the commands of all of them, and "
                "after a job that ended early those that it did not reach could not pull. Let the stack gitlab make "
                "a deploy token (esteira:gitlab.deployToken), or set here what the servers pull with.",
                ("pullPassword",),
                lines=(
                    "pulumi config set esteira:pullUser USER",
                    "pulumi config set --secret esteira:pullPassword",
                ),
            )
        yield from self._login_faults(servers, names, failed)

    def _rollout_faults(self, count: int) -> Iterator[Fault]:
        """The first server to switch waits for the last one."""
        rollout = self.rollout
        steps = len(rollout.steps(count))
        # What a step takes beside the watching is at least the time of a connection and a switch.
        needed = math.ceil(steps * (rollout.watch + 2))
        if rollout.confirm_timeout < needed:
            yield Fault(
                f"The first of {count} servers waits for {steps} steps, each of which is watched for "
                f"{rollout.watch:g} s, so it would take its switch back before the last one has switched: make this "
                "longer, or batchSize greater.",
                ("rollout", "confirmTimeout"),
                f"{2 * needed}s",
            )

    def _login_faults(
        self, servers: list[ServerSettings], names: list[str], failed: frozenset[str]
    ) -> Iterator[Fault]:
        remote = [server.name for server in servers if not server.local]
        for key, secrets in (
            ("serverPassword", self.server_password),
            ("serverPrivateKey", self.server_private_key),
        ):
            strange = [name for name in secrets if name and name not in names]
            if strange and "servers" not in failed:
                # The name is not shown: where the whole value is a secret, so may be what stands in it.
                yield Fault(
                    f"The map has a name that is not the name of a server; the servers are {', '.join(names)}.",
                    (key,),
                    lines=(_set_secret_path(key, names[0] if names else "web"),),
                )
        without = [
            name
            for name in remote
            if not any(
                name in secrets or "" in secrets
                for secrets in (self.server_password, self.server_private_key)
            )
        ]
        if without and not failed & {"server_password", "server_private_key", "servers"}:
            yield Fault(
                f"No password and no private key to log in to {', '.join(without)}. A private key is the "
                "better of the two.",
                ("serverPrivateKey",),
                lines=(
                    "pulumi config set --secret esteira:serverPrivateKey < ~/.ssh/id_ed25519",
                    "pulumi config set --secret esteira:serverPassword",
                ),
            )
        if "servers" in failed:
            return
        if self.sudo_password is not None and not any(server.sudo for server in servers):
            yield Fault(
                "A password for sudo is set, but no server has sudo: true.",
                ("sudoPassword",),
                lines=("esteira:servers:", "  - sudo: true"),
            )
        if not any(server.jump_host for server in servers):
            for key, secret in (
                ("jumpPassword", self.jump_password),
                ("jumpPrivateKey", self.jump_private_key),
            ):
                if secret is not None:
                    yield Fault(
                        "A secret for a jump host is set, but no server has one.",
                        (key,),
                        lines=(f"pulumi config rm esteira:{key}",),
                    )


def _as_in_settings(name: str) -> Any:
    return copy.copy(Settings.model_fields[name])


class GitlabStack(_Model):
    """A stack that names `gitlab` and no application: what GitLab is told, and nothing else."""

    project: str = _not_a_key("The Pulumi project.")
    stack: str = _not_a_key("The Pulumi stack.")
    root: Path = _not_a_key("The project's folder.")
    registry: Annotated[str, BeforeValidator(rule.registry)] = _as_in_settings("registry")
    repository: Annotated[str, BeforeValidator(rule.repository)] = _as_in_settings("repository")
    moving_tag: Annotated[str, BeforeValidator(rule.moving_tag)] = _as_in_settings("moving_tag")
    gitlab: GitlabSettings = _key("What GitLab is told.", "map", {"project": "group/parasite"})
    gitlab_variables: Annotated[
        dict[str, SecretStr], BeforeValidator(rule.map_of(gitlab_values.name_fault, rule.secret_text))
    ] = _as_in_settings("gitlab_variables")
    gitlab_token: Secret = _as_in_settings("gitlab_token")
    gitlab_token_from_environment: bool = _not_a_key(
        "The token came from GITLAB_TOKEN: it is no input.", False
    )

    def faults(self, given: frozenset[str], failed: frozenset[str]) -> Iterator[Fault]:  # noqa: ARG002
        """GitLab's rules."""
        yield from _gitlab_faults(self, failed)


_WITH_PROJECT_DEFAULT = frozenset({"registryInsecure", "promote", "strategy", "keepReleases", "edgeImage"})
"""Keys that Pulumi.yaml gives a default and that every stack therefore has; movingTag is the GitLab stack's own too."""


def _is_gitlab_only(raw: Mapping[str, object]) -> bool:
    known = _key_fields(GitlabStack).keys() | _WITH_PROJECT_DEFAULT
    return "gitlab" in raw and not (raw.keys() & (_key_fields(Settings).keys() - known))


def _gitlab_faults(stack: Settings | GitlabStack, failed: frozenset[str]) -> Iterator[Fault]:
    """GitLab's rules for the variables, and a token to declare them with."""
    if stack.gitlab is None:
        for name in ("gitlab_variables", "gitlab_token"):
            if getattr(stack, name) and name not in failed and "gitlab" not in failed:
                key = to_camel(name)
                yield Fault(
                    f"{key} is set, but the stack names no gitlab.",
                    (key,),
                    lines=tuple(rule.yaml_lines(("gitlab",), {"project": "group/parasite"})),
                )
        return
    if stack.gitlab_token is None and "gitlab_token" not in failed:
        yield _need_secret(
            "gitlabToken",
            "There is no token for GitLab: it is an access token of a maintainer with the scope api, set here or in "
            "the environment variable GITLAB_TOKEN.",
        )
    if failed & {"gitlab", "gitlab_variables"}:
        return
    image = f"{stack.registry}/{stack.repository}"
    yield from resolve(stack.gitlab, stack.gitlab_variables, image, stack.moving_tag)[1]


def image_name(settings: Settings) -> str:
    """The image without tag and digest, ``registry/repository``."""
    return f"{settings.registry}/{settings.repository}"


# ---- reading -----------------------------------------------------------------------------------------------

M = TypeVar("M", bound=_Model)


@cache
def _key_fields(model: type[BaseModel]) -> Mapping[str, tuple[str, FieldInfo]]:
    """Keys of a model as the stack file spells them, each with its field."""
    return {
        field.alias or name: (name, field)
        for name, field in model.model_fields.items()
        if _extra(field).get("key", True)
    }


@cache
def _adapter(model: type[BaseModel], name: str) -> TypeAdapter[Any]:
    field = model.model_fields[name]
    annotation: Any = field.annotation
    for item in field.metadata:
        annotation = Annotated[annotation, item]
    return TypeAdapter(annotation)


def _model_in(annotation: object) -> tuple[type[_Model] | None, bool]:
    """The model that an annotation holds, and whether in a list."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is list:
        return _model_in(arguments[0])[0], True
    if origin in (types.UnionType, typing.Union):
        found = [_model_in(item) for item in arguments]
        return next(((model, many) for model, many in found if model), (None, False))
    if isinstance(annotation, type) and issubclass(annotation, _Model):
        return annotation, False
    return None, False


@dataclass(frozen=True)
class _Read:
    """A model as far as it could be read: ``value`` is for the rules between keys only, unless ``faults`` is empty."""

    value: Any
    faults: list[Fault]


def _faults_of(error: ValidationError) -> list[Fault]:
    """Our own faults out of pydantic's error; never its input."""
    faults: list[Fault] = []
    for item in error.errors(include_url=False, include_input=False):
        cause = item.get("ctx", {}).get("error")
        if isinstance(cause, Wrong):
            faults += cause.faults
        else:
            faults.append(Fault(f"The value does not fit ({item['type']}).", tuple(item["loc"])))
    return faults


def _read_value(model: type[_Model], name: str, raw: object) -> _Read:
    """One field: another model, a list of them, or a plain value."""
    if raw is None:
        return _Read(None, [Fault("The key has no value: write one, or leave the key out.")])
    inner, many = _model_in(model.model_fields[name].annotation)
    if inner is not None and many:
        if not isinstance(raw, (list, tuple)):
            return _Read(None, [Fault(f"This must be a list, but it is {rule.kind(raw)}.")])
        reads = [_read_model(inner, item) for item in raw]
        faults = [
            # What was written in one word is put right in one word.
            Fault(fault.problem, (index,), fault.value if not fault.path else None)
            if isinstance(raw[index], str)
            else fault.below(index)
            for index, read in enumerate(reads)
            for fault in read.faults
        ]
        return _Read([read.value for read in reads if read.value is not None], faults)
    if inner is not None:
        return _read_model(inner, raw)
    try:
        return _Read(_adapter(model, name).validate_python(raw), [])
    except ValidationError as error:
        return _Read(None, _faults_of(error))


def _read_model(
    model: type[_Model], raw: object, *, skip: frozenset[str] = frozenset(), **fixed: Any
) -> _Read:
    """Read ``raw`` field by field, so that one wrong field hides no other mistake.

    ``skip``: keys with a fault already, which are neither read nor missed. ``fixed``: fields that are not keys.
    """
    try:
        raw = model.expand(raw)
    except Wrong as wrong:
        return _Read(None, list(wrong.faults))
    if not isinstance(raw, Mapping):
        return _Read(None, [Fault(f"This must be a map of keys, but it is {rule.kind(raw)}.")])
    keys = _key_fields(model)
    faults: list[Fault] = []
    good: dict[str, Any] = dict(fixed)
    failed: set[str] = {keys[key][0] for key in skip if key in keys}
    for key, item in raw.items():
        if key not in keys:
            faults.append(_unknown(model, key))
            continue
        name = keys[key][0]
        read = _read_value(model, name, item)
        if read.faults:
            failed.add(name)
            faults += [fault.below(key) for fault in read.faults]
        if read.value is not None:
            good[name] = read.value
    for key, (name, field) in keys.items():
        if field.is_required() and key not in raw and name not in failed:
            failed.add(name)
            faults.append(_missing(key, field))
    given = frozenset(keys[key][0] for key in raw if key in keys)
    partial = _partial(model, good)
    faults += partial.faults(given - failed, frozenset(failed))
    if faults or failed:
        return _Read(partial, faults)
    return _Read(model(**good), [])


def _partial(model: type[M], good: dict[str, Any]) -> M:
    """The model without validation: what could be read, defaults for the rest, None where there is no default."""
    values: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        if name in good:
            values[name] = good[name]
        elif field.is_required():
            values[name] = None
        else:
            values[name] = _default(model, name)({**good, **values})
    if model is HealthSettings and "test" not in good and good.get("path"):
        values["test"] = "http"
    return model.model_construct(**values)


@cache
def _default(model: type[BaseModel], name: str) -> Callable[[dict[str, Any]], Any]:
    """Return what makes a field's default of the fields before it. Pydantic looks at its signature again each time."""
    field = model.model_fields[name]
    if field.default_factory_takes_validated_data:
        return cast("Callable[[dict[str, Any]], Any]", field.default_factory)
    if field.default_factory is None:
        return lambda _: field.get_default()
    made = cast("Callable[[], Any]", field.default_factory)
    return lambda _: made()


def _missing(key: str, field: FieldInfo) -> Fault:
    shown = _extra(field).get("shown")
    variables = re.findall(r"`([A-Z_]+)`", shown) if shown else []
    instead = f", and neither is the environment variable {variables[0]}" if variables else ""
    return Fault(f"The key is not set{instead}.", (key,))


_SYNONYMS = {
    "env": "environment",
    "environmentvariables": "environment",
    "volume": "volumes",
    "mounts": "volumes",
    "mem": "memory",
    "cpu": "cpus",
    "cmd": "command",
    "username": "user",
    "address": "host",
    "ip": "host",
    "hostname": "host",
    "tag": "movingTag",
    "healthcheck": "health",
    "server": "servers",
    "args": "buildArgs",
    "gracePeriod": "stopTimeout",
}


def _unknown(model: type[_Model], key: object) -> Fault:
    """An unknown key, with the key that was probably meant."""
    word = str(key)
    folded = re.sub(r"[^a-z0-9]", "", word.lower())
    here = {known.lower(): known for known in _key_fields(model)}
    near = difflib.get_close_matches(folded, here, 1, 0.7)
    synonym = _SYNONYMS.get(folded, "")
    meant = (
        here.get(folded)
        or (synonym if synonym.lower() in here else None)
        or (here[near[0]] if near else None)
    )
    top = {known.lower(): known for known in _key_fields(Settings)}
    shown = rule.name_shown(word)
    if model is not Settings and folded in top and folded not in here:
        return Fault(f'"{shown}" is a key of its own, at the top.', (shown,), (f"^{top[folded]}", None))
    if meant is not None:
        name, field = _key_fields(model)[meant]
        del name
        example = _extra(field)["example"]
        lines = _secret_lines(meant, None) if _extra(field)["secret"] else None
        return Fault(
            f'There is no key "{shown}" here; "{meant}" is probably meant.', (shown,), (meant, example), lines
        )
    known_keys = ", ".join(sorted(_key_fields(model)))
    return Fault(f'There is no key "{shown}" here. The keys are {known_keys}.', (shown,), ("", None))


def _secret_lines(key: str, entry: str | None) -> tuple[str, ...]:
    """The command that sets a secret; it asks for the value, or reads it from stdin, so that it is in no argument."""
    if entry is not None:
        return (_set_secret_path(key, entry),)
    if key in {"serverPrivateKey", "jumpPrivateKey"}:
        return (f"pulumi config set --secret esteira:{key} < ~/.ssh/id_ed25519",)
    if key == "secretEnvironment":
        return (_set_secret_path(key, "NAME"),)
    if key == "gitlabVariables":
        return (_set_secret_path(key, "NAME"),)
    if key == "secretFiles":
        return (_set_secret_path(key, "/run/secrets/name"),)
    return (f"pulumi config set --secret esteira:{key}",)


def _set_secret_path(key: str, entry: str) -> str:
    step = f".{entry}" if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_-]*", entry) else f'["{entry}"]'
    return f"pulumi config set --secret --path 'esteira:{key}{step}'"


def _need_secret(key: str, problem: str) -> Fault:
    return Fault(problem, (key,), lines=_secret_lines(key, None))


def _dotted(path: tuple[str | int, ...]) -> str:
    text = ""
    for step in path:
        if isinstance(step, int):
            text += f"[{step}]"
        elif re.fullmatch(r"[A-Za-z_][A-Za-z0-9_-]*", step):
            text += f".{step}" if text else step
        else:
            text += f'["{step}"]'
    return text


def _write(fault: Fault) -> tuple[str, ...]:
    """The lines to write for a fault: its own, else its key with the proposed value, else the key's example."""
    if fault.lines is not None:
        return fault.lines
    path, value = fault.path, fault.value
    if isinstance(value, tuple):  # an unknown key: another key in its place, or none
        meant, example = value
        if meant == "":
            return ("(nothing: take the key out)",)
        if meant.startswith("^"):
            known = meant[1:]
            field = _key_fields(Settings)[known][1]
            if _extra(field)["secret"]:
                return _secret_lines(known, None)
            return tuple(rule.yaml_lines((known,), _extra(field)["example"]))
        return tuple(rule.yaml_lines((*path[:-1], meant), example))
    known_field, rest = _field_at(path)
    if known_field is not None and _extra(known_field)["secret"]:
        entry = rest[0] if rest and isinstance(rest[0], str) and fault.name is None else None
        return _secret_lines(str(path[0]), entry)
    if fault.name is not None:
        path = (*path[:-1], fault.name)
    if value is None and known_field is not None:
        value = _extra(known_field)["example"]
        path = path[: len(path) - len(rest)] if rest else path
    return tuple(rule.yaml_lines(path, value))


def _field_at(path: tuple[str | int, ...]) -> tuple[FieldInfo | None, tuple[str | int, ...]]:
    """The field that a path leads to, and what of the path is left below it."""
    model: type[_Model] = Settings
    field: FieldInfo | None = None
    for position, step in enumerate(path):
        if isinstance(step, int):
            continue
        keys = _key_fields(model)
        if step not in keys:
            return field, path[position:]
        field = keys[step][1]
        inner, _many = _model_in(field.annotation)
        if inner is None:
            return field, path[position + 1 :]
        model = inner
    trailing = path[-1:] if path and isinstance(path[-1], int) else ()
    return field, trailing


# ---- from values to settings -------------------------------------------------------------------------------


def secret_keys_of_model() -> frozenset[str]:
    """The top-level keys whose values are secrets, as the stack file spells them."""
    return frozenset(key for key, (_, field) in _key_fields(Settings).items() if _extra(field)["secret"])


def load_settings(
    values: Mapping[str, object],
    secret_keys: frozenset[str],
    *,
    project: str,
    stack: str,
    root: Path,
    environ: Mapping[str, str],
    written: Mapping[str, object] | None = None,
) -> Settings:
    """Check ``values`` and make the settings of a stack with an application of them; as :func:`load_stack`."""
    loaded = load_stack(
        values, secret_keys, project=project, stack=stack, root=root, environ=environ, written=written
    )
    if not isinstance(loaded, Settings):
        raise EsteiraError(f"The stack {stack} tells GitLab things, and has no application.")
    return loaded


def load_stack(
    values: Mapping[str, object],
    secret_keys: frozenset[str],
    *,
    project: str,
    stack: str,
    root: Path,
    environ: Mapping[str, str],
    written: Mapping[str, object] | None = None,
) -> Settings | GitlabStack:
    """Check ``values`` and make the settings of them.

    values: top-level keys without the namespace; YAML values, or the text that Pulumi makes of them (JSON for maps and
    lists).
    secret_keys: those of them that stand encrypted in the stack file. environ: where defaults of a CI job come from.
    written: the stack file as it is written (:func:`parse_stack_file`), to find what stands in plain text in a half
    encrypted map. Reads no file but those that a setting names. Raises SettingsError with every mistake.
    """
    loader = _Loader(
        dict(values), secret_keys, stack=stack, root=root, environ=environ, written=written or {}
    )
    settings = loader.load(project)
    if settings is None:
        raise SettingsError(loader.mistakes())
    return settings


_JOB_USER = "gitlab-ci-token"
"""As whom a job's token logs in: a project may give CI_REGISTRY_USER and CI_REGISTRY_PASSWORD values of its own."""
_SERVER_VARIABLES = {
    "host": "DEPLOYMENT_SERVER_IP",
    "user": "DEPLOYMENT_SERVER_USER",
    "hostKey": "DEPLOYMENT_SERVER_HOST_KEY",
    "sudo": "DEPLOYMENT_SERVER_SUDO",
}


class _Loader:
    """The steps of :func:`load_settings`, with the faults that they found."""

    def __init__(
        self,
        values: dict[str, object],
        secret_keys: frozenset[str],
        *,
        stack: str,
        root: Path,
        environ: Mapping[str, str],
        written: Mapping[str, object],
    ) -> None:
        self.raw = values
        self.secret_keys = secret_keys
        self.stack = stack
        self.root = root
        self.environ = environ
        self.written = written
        self.faults: list[Fault] = []
        self.skip: set[str] = set()
        self.sources: dict[tuple[str | int, ...], str] = {}
        self.fixed: dict[str, Any] = {}
        self.server_from_environment = False
        self.gitlab_only = _is_gitlab_only(values)

    def __repr__(self) -> str:
        """Nothing of the values: they hold secrets."""
        return f"_Loader({self.stack!r})"

    def load(self, project: str) -> Settings | GitlabStack | None:
        """The settings, or None if there are mistakes."""
        self._check_secrecy()
        self._decode()
        self._defaults_from_environment()
        if self.gitlab_only:
            self.raw = {key: item for key, item in self.raw.items() if key not in _WITH_PROJECT_DEFAULT}
        read = _read_model(
            GitlabStack if self.gitlab_only else Settings,
            self.raw,
            skip=frozenset(self.skip),
            project=project,
            stack=self.stack,
            root=self.root,
            **self.fixed,
        )
        self.faults += read.faults
        if self.faults:
            return None
        stack: Settings | GitlabStack = read.value
        return _normalised(stack) if isinstance(stack, Settings) else stack

    def mistakes(self) -> list[Mistake]:
        """All faults in the order of the keys, each told once."""
        order = {key: position for position, key in enumerate(_key_fields(Settings))}
        found: list[Mistake] = []
        for fault in sorted(self.faults, key=lambda item: order.get(str(item.path[0]), -1)):
            mistake = self._mistake(fault)
            if mistake not in found:
                found.append(mistake)
        return found

    def _mistake(self, fault: Fault) -> Mistake:
        problem, write = fault.problem, _write(fault)
        variable = _SERVER_VARIABLES.get(str(fault.path[-1])) if fault.path[:2] == ("servers", 0) else None
        source = self.sources.get(fault.path) or self.sources.get(fault.path[:1])
        if self.server_from_environment and variable is not None:
            if fault.path in self.sources:
                problem += f" The value comes from the environment variable {variable}."
            else:
                problem += " The server comes from DEPLOYMENT_SERVER_IP; its host key is set beside it."
            value = fault.value or _extra(_key_fields(ServerSettings)[str(fault.path[-1])][1])["example"]
            shown = str(value).lower() if isinstance(value, bool) else value
            write = (f"export {variable}='{shown}'",)
        elif source is not None:
            problem += f" The value comes from {source}."
        return Mistake(_dotted(fault.path), f"Pulumi.{self.stack}.yaml", problem, write)

    def _fail(self, key: str, fault: Fault) -> None:
        self.faults.append(fault)
        self.skip.add(key)
        self.raw.pop(key, None)

    def _check_secrecy(self) -> None:
        """Secrets are encrypted, and nothing else is: what is not in a secret key ends up in previews and state."""
        secrets = secret_keys_of_model()
        for key in list(self.raw):
            if key not in _key_fields(Settings):
                continue
            value = self.raw[key]
            if key in secrets:
                plain = _plain_entries(self.written.get(key)) if key in self.secret_keys else [()]
                for path in plain:
                    entry = path[0] if path and isinstance(path[0], str) else _first_name(value)
                    self._fail(
                        key,
                        Fault(
                            "This secret stands in the stack file in plain text: set it anew, encrypted, "
                            "and change it where it "
                            "is used, because the file may be in the repository's history.",
                            (key, *path),
                            lines=_secret_lines(key, entry),
                        ),
                    )
            elif key in self.secret_keys or _has_secure(value):
                self._fail(key, _secret_in_plain_key(key, value, self.written.get(key)))

    def _decode(self) -> None:
        """Pulumi hands over maps and lists as JSON text, and an empty value as empty text."""
        for key, value in list(self.raw.items()):
            if key not in _key_fields(Settings) or not isinstance(value, str):
                continue
            field = _key_fields(Settings)[key][1]
            if value == "":
                self._fail(key, Fault("The key has no value: write one, or leave the key out.", (key,)))
                continue
            decoded = _from_json(value)
            shape = _extra(field)["shape"]
            if shape in {"map", "list", "map of text", "list of text"}:
                self.raw[key] = value if decoded is None else decoded
            elif (shape.endswith("or map of text") and isinstance(decoded, dict)) or (
                shape.startswith("list of text, or") and isinstance(decoded, list)
            ):
                self.raw[key] = decoded

    def _take(self, key: str, variable: str, change: Callable[[str], object] = str) -> bool:
        """Fill an absent key from the environment; True if that was done."""
        value = self.environ.get(variable, "")
        if key in self.raw or key in self.skip or not value:
            return False
        self.sources[(key,)] = f"the environment variable {variable}"
        try:
            self.raw[key] = change(value)
        except Wrong as wrong:
            self._fail(key, wrong.faults[0].below(key))
            return False
        return True

    def _defaults_from_environment(self) -> None:
        self._take("registry", "CI_REGISTRY")
        self._take("repository", "CI_PROJECT_PATH", str.lower)
        self._gitlab_of_environment()
        if self.gitlab_only:
            return
        self._take("commit", "CI_COMMIT_SHA")
        self._registry_credentials()
        self._server_of_environment()

    def _gitlab_of_environment(self) -> None:
        """The provider's own variables, and those of a job."""
        gitlab = self.raw.get("gitlab")
        if not isinstance(gitlab, Mapping):
            return
        if self._take("gitlabToken", "GITLAB_TOKEN"):
            self.fixed["gitlab_token_from_environment"] = True
        for variable in ("GITLAB_BASE_URL", "CI_API_V4_URL"):
            if self.environ.get(variable) and "baseUrl" not in gitlab:
                gitlab = self.raw["gitlab"] = {**gitlab, "baseUrl": self.environ[variable]}
                self.sources["gitlab", "baseUrl"] = f"the environment variable {variable}"

    def _registry_credentials(self) -> None:
        # A job's credentials are for the job's own registry: another one must never see them.
        own = self.environ.get("CI_REGISTRY", "") in ("", self.raw.get("registry"))
        self._password_file()
        if own:
            self._take("registryUser", "CI_REGISTRY_USER")
            if "registryPasswordFile" not in self.skip and self._take(
                "registryPassword", "CI_REGISTRY_PASSWORD"
            ):
                self.fixed["registry_credential_from_environment"] = True
        pull = {"pullUser", "pullPassword"}
        if not pull & (self.raw.keys() | self.skip):
            deploy = self.environ.get("CI_DEPLOY_USER") and self.environ.get("CI_DEPLOY_PASSWORD")
            if own and deploy:
                self._take("pullUser", "CI_DEPLOY_USER")
                self._take("pullPassword", "CI_DEPLOY_PASSWORD")
            elif not {"registryUser", "registryPassword"} & self.skip:
                for key in ("User", "Password"):
                    if f"registry{key}" in self.raw:
                        self.raw[f"pull{key}"] = self.raw[f"registry{key}"]
                # What is wrong with them is told once, of the registry's own keys.
                faults = [
                    read
                    for key in ("User", "Password")
                    if f"registry{key}" in self.raw
                    for read in _read_value(
                        Settings, f"registry_{key.lower()}", self.raw[f"registry{key}"]
                    ).faults
                ]
                if faults or ("registryUser" in self.raw) != ("registryPassword" in self.raw):
                    self.raw.pop("pullUser", None)
                    self.raw.pop("pullPassword", None)
                self.fixed["pulls_with_job_token"] = (
                    self.fixed.get("registry_credential_from_environment", False)
                    and self.raw.get("registryUser") == _JOB_USER
                )

    def _password_file(self) -> None:
        name = self.raw.get("registryPasswordFile")
        if not isinstance(name, str):
            return
        if "registryPassword" in self.raw:
            self._fail(
                "registryPasswordFile",
                Fault(
                    "The password of the registry is set twice, as registryPassword and by this file; keep one.",
                    ("registryPasswordFile",),
                    lines=("pulumi config rm esteira:registryPasswordFile",),
                ),
            )
            return
        path = self.root / Path(name).expanduser()
        try:
            self.raw["registryPassword"] = path.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            reason = "does not exist" if isinstance(error, FileNotFoundError) else "cannot be read as text"
            self._fail(
                "registryPasswordFile",
                Fault(
                    f"The file {rule.show(name)} with the registry's password {reason}.",
                    ("registryPasswordFile",),
                    # The local stack's is made by the command line; elsewhere the secret is the better place.
                    lines=("./esteira up",)
                    if name.startswith(".esteira/local/")
                    else (
                        "pulumi config rm esteira:registryPasswordFile",
                        *_secret_lines("registryPassword", None),
                    ),
                ),
            )
            return
        self.sources[("registryPassword",)] = f"the file {name}"

    def _server_of_environment(self) -> None:
        """One server from the variables of the procedure's pipeline."""
        address = self.environ.get("DEPLOYMENT_SERVER_IP", "")
        if "servers" not in self.raw and "servers" not in self.skip and address:
            server: dict[str, object] = {}
            for key, variable in _SERVER_VARIABLES.items():
                value = self.environ.get(variable, "")
                if value:
                    try:
                        server[key] = _value_or_file(value) if key == "hostKey" else value
                    except Wrong as wrong:
                        self.faults += [fault.below("servers", 0, key) for fault in wrong.faults]
                        self.skip.add("servers")
                    self.sources["servers", 0, key] = f"the environment variable {variable}"
            self.server_from_environment = True
            if "servers" not in self.skip:
                self.raw["servers"] = [server]
        if self._only_local_servers():
            return
        self._take("serverPassword", "DEPLOYMENT_SERVER_PASS")
        self._take("serverPrivateKey", "DEPLOYMENT_SERVER_KEY", _value_or_file)

    def _only_local_servers(self) -> bool:
        servers = self.raw.get("servers")
        return isinstance(servers, list) and all(
            isinstance(item, Mapping) and item.get("local") is True for item in servers
        )


def _value_or_file(value: str) -> str:
    """A variable's value, or the content of the file that it names (GitLab's variables of the type file)."""
    if "\n" in value or len(value) > 4096 or not value.startswith("/"):
        return value
    try:
        return Path(value).read_text(encoding="utf-8")
    except (OSError, ValueError):
        # The path is not shown: who sets a secret wrongly may have put the secret itself here.
        raise Wrong(
            "The variable begins with / as the path of a file does, but no such file can be read."
        ) from None


def _from_json(text: str) -> object:
    """The map or list that a text holds as JSON; None if it is none."""
    if text[:1] not in ("{", "["):
        return None
    try:
        return typing.cast("object", json.loads(text))
    except ValueError:
        return None


def _has_secure(value: object) -> bool:
    """Whether YAML's ``secure:`` (Pulumi's encrypted value) stands anywhere in a value."""
    return _first_secure(value) is not None


def _first_secure(value: object) -> tuple[str | int, ...] | None:
    if isinstance(value, Mapping):
        if set(value) == {"secure"}:
            return ()
        pairs: list[tuple[str | int, object]] = [(str(key), item) for key, item in value.items()]
    elif isinstance(value, (list, tuple)):
        pairs = list(enumerate(value))
    else:
        return None
    for key, item in pairs:
        below = _first_secure(item)
        if below is not None:
            return (key, *below)
    return None


def _plain_entries(value: object) -> list[tuple[str | int, ...]]:
    """Where plain text stands in a secret key as it is written in the stack file; nothing if the key is not there."""
    if value is None or (isinstance(value, Mapping) and set(value) == {"secure"}):
        return []
    if isinstance(value, Mapping):
        return [(str(key),) for key, item in value.items() if _plain_entries(item)]
    return [()]


def _first_name(value: object) -> str | None:
    return next((key for key in value if isinstance(key, str)), None) if isinstance(value, Mapping) else None


def _secret_in_plain_key(key: str, value: object, written: object) -> Fault:
    """An encrypted value where the program needs a plain one; nothing of the value is looked at any further."""
    inner = _first_secure(written) or _first_secure(value) or ()
    path = (key, *inner)
    if key == "container" or "environment" in inner:
        name = str(inner[-1]) if "environment" in inner[:-1] else "NAME"
        belongs, lines = "secretEnvironment or secretFiles", _secret_lines("secretEnvironment", name)
    elif key == "servers":
        belongs, lines = (
            "serverPassword, serverPrivateKey or sudoPassword",
            _secret_lines("serverPassword", None),
        )
    else:
        example = _extra(_key_fields(Settings)[key][1])["example"]
        belongs, lines = "", tuple(rule.yaml_lines((key,), example))
    rest = f"A secret belongs in {belongs}." if belongs else "Write it in plain text."
    return Fault(
        f"This is encrypted, but the key is not secret: its value is shown in previews. {rest}",
        path,
        lines=lines,
    )


def _normalised(settings: Settings) -> Settings:
    """Logins by server name: what was given for all, for each server that SSH reaches."""
    remote = [server.name for server in settings.servers if not server.local]
    logins: dict[str, dict[str, SecretStr]] = {}
    for name in ("server_password", "server_private_key"):
        secrets: dict[str, SecretStr] = dict(getattr(settings, name))
        for_all = secrets.pop("", None)
        logins[name] = dict.fromkeys(remote, for_all) if for_all is not None else secrets
    return settings.model_copy(update=logins)


# ---- Pulumi and its files ----------------------------------------------------------------------------------


class _StackFileLoader(yaml.SafeLoader):
    """YAML 1.2's core types, as the Pulumi engine reads them.

    PyYAML by itself takes ``53:53`` for a number and ``no`` for false.
    """


_StackFileLoader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9]+|0x[0-9a-fA-F]+", "-+0123456789"),
    ("float", r"[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?", "-+.0123456789"),
    ("null", r"~|null|Null|NULL|", "~nN"),
):
    _StackFileLoader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}",
        re.compile(rf"^(?:{_pattern})$"),
        [*_first, *([""] if _tag == "null" else [])],
    )


class StackFile(NamedTuple):
    """A stack file's keys of our namespace, without it, and those of them that hold an encrypted value."""

    values: dict[str, object]
    secret_keys: frozenset[str]


def parse_stack_file(path: Path) -> StackFile:
    """Read ``Pulumi.<stack>.yaml``. Top-level numbers and words stay text as written, as the engine hands them over.

    Encrypted values stay ``{"secure": …}``. Raises EsteiraError if the file cannot be read or is not YAML.
    """
    try:
        document = yaml.compose(path.read_text(encoding="utf-8"), Loader=_StackFileLoader)
    except OSError as error:
        raise EsteiraError(f"{path.name} cannot be read: {error.strerror}.") from None
    except (yaml.YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise EsteiraError(
            f"{path.name} is not YAML{where}. Check the indentation and the quotes there."
        ) from None
    values: dict[str, object] = {}
    for key, node in _pairs(_config_of(document)):
        namespace, _, name = key.partition(":")
        if namespace != NAMESPACE or not name:
            continue
        constructor = _StackFileLoader("")
        if isinstance(node, yaml.ScalarNode):
            values[name] = node.value if node.tag != "tag:yaml.org,2002:null" else ""
        else:
            values[name] = constructor.construct_object(node, deep=True)
    return StackFile(values, frozenset(key for key, value in values.items() if _has_secure(value)))


def _pairs(node: yaml.Node | None) -> list[tuple[str, yaml.Node]]:
    return (
        [(str(key.value), value) for key, value in node.value] if isinstance(node, yaml.MappingNode) else []
    )


def _config_of(document: yaml.Node | None) -> yaml.Node | None:
    return next((value for key, value in _pairs(document) if key == "config"), None)


def from_pulumi() -> Settings | GitlabStack:
    """The settings of the stack that Pulumi runs. Raises SettingsError.

    Values are taken as text and read here: the SDK's own typed getters put the value into their error, a secret's too.
    """
    project, stack = pulumi.get_project(), pulumi.get_stack()
    try:
        root = Path(pulumi.get_root_directory())
    except Exception:  # noqa: BLE001 - set by the engine only; elsewhere the program runs in its folder
        root = Path.cwd()
    prefix = f"{NAMESPACE}:"
    # The SDK can ask for a key but not list them: they stand in what it was told (tests, Automation API) or in its
    # environment.
    names = {*config.CONFIG.get(), *config.get_config_env(), *(prefix + key for key in _key_fields(Settings))}
    values = {name.removeprefix(prefix): config.get_config(name) for name in names if name.startswith(prefix)}
    secret_names = set(config.get_config_secret_keys_env())
    secret_names |= {name for name in {*names, "gitlab:token"} if config.is_config_secret(name)}
    hidden = {name for name in secret_names if name.startswith(prefix)}
    environ = dict(os.environ)
    # The GitLab provider's usual keys; an explicit provider does not read them by itself.
    token, base_url = config.get_config("gitlab:token"), config.get_config("gitlab:baseUrl")
    if token and values.get("gitlabToken") is None:
        values["gitlabToken"] = token
        hidden |= {f"{prefix}gitlabToken"} if "gitlab:token" in secret_names else set()
    if base_url:
        environ["GITLAB_BASE_URL"] = base_url
    stack_file = root / f"Pulumi.{stack}.yaml"
    given: dict[str, object] = {key: value for key, value in values.items() if value is not None}
    if pulumi.runtime.is_dry_run() and _needs_login(given, environ):
        # A preview shows what it can without it; an update refuses.
        given["serverPassword"] = NO_LOGIN
        hidden.add(f"{prefix}serverPassword")
    return load_stack(
        given,
        frozenset(name.removeprefix(prefix) for name in hidden),
        project=project,
        stack=stack,
        root=root,
        environ=environ,
        written=parse_stack_file(stack_file).values if stack_file.is_file() else None,
    )


def _needs_login(given: Mapping[str, object], environ: Mapping[str, str]) -> bool:
    """Whether there are servers that are logged in to, and neither a password nor a private key for any."""
    if {"serverPassword", "serverPrivateKey"} & given.keys():
        return False
    if environ.get("DEPLOYMENT_SERVER_PASS") or environ.get("DEPLOYMENT_SERVER_KEY"):
        return False
    servers = _from_json(str(given.get("servers", "")))
    if not isinstance(servers, list):
        return "container" in given and bool(environ.get("DEPLOYMENT_SERVER_IP"))
    return any(isinstance(server, Mapping) and server.get("local") is not True for server in servers)


# ---- the table in the README -------------------------------------------------------------------------------


class SettingRow(NamedTuple):
    """One key of the stack file in the README's table."""

    key: str
    shape: str
    default: str
    description: str


def settings_reference() -> list[SettingRow]:
    """Every key that a stack file may hold, in the order of the model, sub-keys behind their own key."""
    return list(_rows(Settings, ""))


def _rows(model: type[_Model], prefix: str) -> Iterator[SettingRow]:
    for key, (_, field) in _key_fields(model).items():
        extra = _extra(field)
        shape = f"{extra['shape']}, **secret**" if extra["secret"] else extra["shape"]
        yield SettingRow(prefix + key, shape, _default_shown(field), field.description or "")
        inner, many = _model_in(field.annotation)
        if inner is not None:
            yield from _rows(inner, f"{prefix}{key}{'[]' if many else ''}.")


def _default_shown(field: FieldInfo) -> str:
    shown = _extra(field)["shown"]
    if shown is not None:
        return str(shown)
    if field.is_required():
        return "required"
    default = field.get_default(call_default_factory=True, validated_data={})
    if (
        default is PydanticUndefined
        or default is None
        or default in ({}, [])
        or isinstance(default, BaseModel)
    ):
        return ""
    return "`.`" if default == "." else f"`{rule.yaml_scalar(default)}`"


BEGIN, END = "<!-- settings -->", "<!-- /settings -->"


def settings_table() -> str:
    """The README's table of settings, in Markdown."""
    lines = ["| key | value | default | meaning |", "|---|---|---|---|"]
    lines += [
        f"| `{row.key}` | {row.shape} | {row.default} | {row.description} |" for row in settings_reference()
    ]
    return "\n".join(lines)


def with_settings_table(readme: str) -> str:
    """The README's text with the table between its marks. Raises EsteiraError if the marks are missing."""
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise EsteiraError(
            f"README.md has no place for the settings: the marks {BEGIN} and {END} are missing."
        )
    return f"{before}{BEGIN}\n\n{settings_table()}\n\n{END}{after}"


def main() -> None:
    """Write the table into README.md, and the schema that editors read."""
    from .settings_schema import stack_file_schema_text  # noqa: PLC0415 - it is made of this module

    root = Path(__file__).resolve().parent.parent
    readme, schema = root / "README.md", root / "docs" / "stack.schema.json"
    readme.write_text(with_settings_table(readme.read_text(encoding="utf-8")), encoding="utf-8")
    schema.write_text(stack_file_schema_text(), encoding="utf-8")
    sys.stdout.write(f"{readme.name}, docs/{schema.name}: {len(settings_reference())} settings\n")


if __name__ == "__main__":
    main()
