# ruff: noqa: D401 - a rule's docstring states the rule
"""The rules of the policy pack: what is wrong with one resource that is about to be declared. Pure functions.

They look at what travels to a server, not at the settings: a program that uses the components in its own way, or a
component that has a mistake, is held to the same.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

REMOTE, LOCAL = "command:remote:Command", "command:local:Command"
DEPLOYING = frozenset({"candidate", "switch", "confirm", "deploy"})
"""Phases that may start a container; `remove` and `read` do not."""

_SECRET_NAME = re.compile(r"PASSWORD|PASSWD|SECRET|TOKEN|PRIVATE_?KEY|API_?KEY|CREDENTIAL", re.IGNORECASE)
_KEEPS_FILES = frozenset({"json-file"})


class Phase(NamedTuple):
    """The text of a remote command, taken apart: ``sh -s -- PHASE key=value … -- docker options … -- arguments``."""

    name: str
    values: dict[str, str]
    options: list[str]

    def option(self, name: str) -> str | None:
        """Return the value of ``--name=value`` among docker's options."""
        return next((one.partition("=")[2] for one in self.options if one.startswith(f"--{name}=")), None)


def phase_of(kind: str, props: Mapping[str, Any]) -> Phase | None:
    """Return the deployment's phase that a resource runs; None where it is something else."""
    if kind not in {REMOTE, LOCAL}:
        return None
    text = props.get("create")
    if not isinstance(text, str) or not text.startswith("sh -s -- "):
        return None
    name, *words = shlex.split(text.replace("\\\n", " "))[3:]  # a line goes on in the next
    values, *rest = _groups(words)
    pairs = dict(word.partition("=")[::2] for word in values)
    return Phase(name, pairs, rest[0] if rest else [])


def _groups(words: list[str]) -> list[list[str]]:
    """Return the words between the first two ``--``, and what is behind; a third one is the container's own."""
    groups: list[list[str]] = [[]]
    for word in words:
        if word == "--" and len(groups) < 3:
            groups.append([])
        else:
            groups[-1].append(word)
    return groups


def mutable_tags(kind: str, props: Mapping[str, Any]) -> Iterator[str]:
    """An application runs by digest, the edge by digest or by a version that names a patch."""
    if kind in {"docker:index/container:Container", "docker:index/service:Service"}:
        image = props.get("image") or ((props.get("taskSpec") or {}).get("containerSpec") or {}).get(
            "image", ""
        )
        if "@sha256:" not in str(image):
            yield f"The image {image} is not named by its digest."
    phase = phase_of(kind, props)
    if phase is None or phase.name not in DEPLOYING:
        return
    stdin = str(props.get("stdin") or "")
    image = re.search(r"^image=(.*)$", stdin, re.MULTILINE)
    # Empty is a secret that a preview does not know yet: the digest of what it would build. The update asks again.
    if stdin and (image is None or not re.search(r"@sha256:[0-9a-f]{64}$", image[1].strip("'\""))):
        yield "The image that the server is told to run is not named by its digest."
    edge = phase.values.get("edgeImage", "")
    if edge and "@sha256:" not in edge and not re.search(r":[^/]*\d+\.\d+\.\d+[^/]*$", edge):
        yield (
            f"The edge's image {edge} can become another one under the same name. Write an exact version or a "
            "digest in esteira:edgeImage."
        )


def plain_secrets(kind: str, props: Mapping[str, Any]) -> Iterator[str]:
    """What everybody may read, the environment and build arguments, holds nothing that is called a secret."""
    phase = phase_of(kind, props)
    names = (
        [one.partition("=")[2].partition("=")[0] for one in phase.options if one.startswith("--env=")]
        if phase
        else []
    )
    for name in names:
        if _SECRET_NAME.search(name):
            yield (
                f"The environment variable {name} is in plain text. Take it out of esteira:container.environment and "
                f"type: pulumi config set --secret --path 'esteira:secretEnvironment.{name}'"
            )
    if kind == "docker:index/image:Image":
        for name in (props.get("build") or {}).get("args") or {}:
            if _SECRET_NAME.search(str(name)):
                yield f"The build argument {name} stays readable in the image. Take it out of esteira:image.buildArgs."


def unpinned_hosts(kind: str, props: Mapping[str, Any]) -> Iterator[str]:
    """Whoever answers at a server's address proves with the pinned key that it is that server."""
    if kind != REMOTE:
        return
    connection = props.get("connection") or {}
    for place, what in ((connection, "server"), (connection.get("proxy") or None, "jump host")):
        if place is not None and not place.get("hostKey"):
            yield f"The host key of the {what} {place.get('host', '')} is not pinned: anybody could pose as it."


def limits(kind: str, props: Mapping[str, Any]) -> Iterator[str]:
    """A container cannot take the whole server."""
    phase = phase_of(kind, props)
    if phase is None or phase.name not in DEPLOYING:
        return
    for option, example in (("memory", "256m"), ("cpus", "1")):
        if not phase.option(option):
            yield f"The container has no limit for {option}. Write esteira:container.{option}, for example {example}."


def health_gate(kind: str, props: Mapping[str, Any]) -> Iterator[str]:
    """A release proves itself before it serves."""
    phase = phase_of(kind, props)
    if phase is not None and phase.name in DEPLOYING and phase.values.get("health.test", "none") == "none":
        yield "The release is not asked whether it is healthy. Write esteira:health.path or another health.test."


def log_rotation(kind: str, props: Mapping[str, Any]) -> Iterator[str]:
    """Logs that Docker keeps in files do not fill the disk."""
    phase = phase_of(kind, props)
    if phase is None or phase.name not in DEPLOYING:
        return
    driver = phase.option("log-driver") or "json-file"
    options = dict(
        one.removeprefix("--log-opt=").partition("=")[::2]
        for one in phase.options
        if one.startswith("--log-opt=")
    )
    if driver in _KEEPS_FILES and not {"max-size", "max-file"} <= options.keys():
        yield "The container's log grows without end. Write max-size and max-file in esteira:container.logging.options."


RULES = {
    "no-mutable-tag": (mutable_tags, "No image runs by a tag that can move."),
    "no-plain-secret": (plain_secrets, "Nothing that is called a secret is in plain text."),
    "host-keys-pinned": (unpinned_hosts, "Every connection to a server pins its host key."),
    "limits": (limits, "Every container has a limit for memory and processors."),
    "health-gate": (health_gate, "Every release proves itself before it serves."),
    "log-rotation": (log_rotation, "Every container's log is rotated."),
}
"""Name of the policy to its rule and description."""

SECRET_INPUTS = ("stdin", "connection")
"""Inputs of a command that hold credentials, and so are encrypted in the state."""
