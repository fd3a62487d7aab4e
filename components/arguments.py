"""What a release's settings become: the arguments of a phase, its stdin, and the fingerprint. Pure functions."""

from __future__ import annotations

import math
import shlex
from typing import TYPE_CHECKING

from .remote import Payload, fingerprint, secret_file_folders, standard_input
from .settings import image_name

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .settings import ContainerSettings, PortSettings, ServerSettings, Settings


def owner_of(settings: Settings) -> str:
    """Return what containers are labelled with: ``project/stack/container``. One server may serve several."""
    return f"{settings.project}/{settings.stack}/{settings.container.name}"


def identity_values(settings: Settings, server: ServerSettings) -> list[tuple[str, str]]:
    """Return the arguments that say which container on which server is meant."""
    values = [("server", server.name), ("owner", owner_of(settings)), ("name", settings.container.name)]
    if settings.domain:
        values.append(("domain", ", ".join(settings.domain)))
    return [*values, ("lockTimeout", f"{math.ceil(settings.lock_timeout)}")]


def phase_values(settings: Settings, server: ServerSettings, commit: str, tag: str) -> list[tuple[str, str]]:
    """Return the arguments of a phase that deploys, in the order in which a preview shows them.

    All phases of a server get the same, so that each of them can do without the one before.
    """
    container = settings.container
    values = [
        *identity_values(settings, server),
        ("commit", commit),
        ("tag", tag),
        ("registry", settings.registry),
        ("strategy", settings.strategy),
        ("restart", container.restart),
        ("keepReleases", str(settings.keep_releases)),
        *(("network", network) for network in declared_networks(settings)),
        *health_values(settings),
    ]
    if settings.pre_deploy and server is settings.servers[0]:
        # On one server only: its own candidate runs it, and those of the others wait for that.
        values.append(("preDeploy", shlex.join(settings.pre_deploy)))
    values.append(("edgeImage", settings.edge_image))
    if settings.strategy == "recreate":
        values.append(("probeNetwork", (container.networks or ["bridge"])[0]))
    else:
        values += edge_values(settings)
    return [*values, *trial_values(settings)]


def trial_values(settings: Settings) -> list[tuple[str, str]]:
    """Return what only several servers need to know, in seconds: with one, a switch is never on trial.

    Which server is a canary is not among it: servers may change their order without a change of any command.
    """
    if len(settings.servers) == 1:
        return []
    values = [
        ("confirmTimeout", str(math.ceil(settings.rollout.confirm_timeout))),
        ("decision", f"{image_name(settings)}:{decision_tag(settings)}"),
    ]
    if settings.strategy == "recreate":
        values += [("watch", f"{settings.rollout.watch:g}"), ("drainTime", f"{settings.drain_time:g}")]
    return values


def edge_values(settings: Settings) -> list[tuple[str, str]]:
    """Return what strategy blueGreen needs to know of the edge and of the switch; durations in seconds."""
    values = [
        ("port", f"{published_at(port)}:{port.target}/{port.protocol}") for port in settings.container.ports
    ]
    for key, value in (
        ("acme.email", settings.acme.email),
        ("acme.directory", settings.acme.directory),
        ("acme.root", settings.acme.root),
    ):
        if value:
            values.append((key, value))
    if settings.trusted_proxies:
        values.append(("trustedProxies", " ".join(settings.trusted_proxies)))
    return [
        *values,
        ("watch", f"{settings.rollout.watch:g}"),
        ("drainTime", f"{settings.drain_time:g}"),
        ("candidateLifetime", f"{math.ceil(settings.candidate_lifetime)}"),
    ]


def decision_tag(settings: Settings) -> str:
    """Return the tag of the record that the servers of this declaration look up; a tag has at most 128 characters."""
    return f"esteira-decided-{settings.stack}-{settings.container.name}"[:128]


def edge_mark(settings: Settings) -> str | None:
    """Return what an edge is labelled with, image and published ports; None where the strategy has no edge."""
    if settings.strategy == "recreate":
        return None
    published = ["80", "443"] if settings.domain else map(published_at, settings.container.ports)
    return ",".join([settings.edge_image, *published])


def declared_networks(settings: Settings) -> list[str]:
    """Return the networks that a container joins after it is created: with blueGreen its first is the edge's."""
    networks = settings.container.networks
    return networks[1:] if settings.strategy == "recreate" else list(networks)


def health_values(settings: Settings) -> list[tuple[str, str]]:
    """Return the health gate's arguments; durations in seconds."""
    health, port = settings.health, settings.health_port
    https = any(one.target == port and one.protocol == "https" for one in settings.container.ports)
    values = [
        ("health.test", health.test),
        ("health.path", health.path or ""),
        ("health.status", str(health.status) if health.path else ""),
        ("health.scheme", ("https" if https else "http") if health.path else ""),
        ("health.port", str(port or "")),
        ("health.interval", f"{health.interval:g}"),
        ("health.timeout", f"{math.ceil(health.timeout)}"),
        ("health.retries", str(health.retries)),
        ("health.startPeriod", f"{health.start_period:g}"),
    ]
    return [(key, value) for key, value in values if value]


def create_options(settings: Settings, server: ServerSettings, commit: str) -> list[str]:
    """Return the options of ``docker create`` that the plain settings become."""
    container = settings.container
    environment = {**container.environment, **server.environment, "ESTEIRA_COMMIT": commit}
    labels = {**container.labels, **server.labels}
    options = []
    if settings.strategy == "recreate":
        options += [
            f"--publish={published_at(port)}:{port.target}{'/udp' if port.protocol == 'udp' else ''}"
            for port in container.ports
        ]
        options += [f"--network={network}" for network in container.networks[:1]]
    options += [f"--env={key}={value}" for key, value in sorted(environment.items())]
    options += [f"--volume={volume}" for volume in container.volumes]
    if container.read_only:
        options += [
            "--read-only",
            *(f"--volume={folder}" for folder in secret_file_folders(settings.secret_files)),
        ]
    options += [f"--tmpfs={path}" for path in container.tmpfs]
    options += [f"--label={key}={value}" for key, value in sorted(labels.items())]
    for option, value in (
        ("memory", container.memory),
        ("cpus", f"{container.cpus:g}" if container.cpus else None),
        ("user", container.user),
        ("stop-signal", container.stop_signal),
        ("stop-timeout", str(math.ceil(container.stop_timeout))),
        ("log-driver", container.logging.driver),
        ("entrypoint", container.entrypoint[0] if container.entrypoint else None),
    ):
        if value:
            options.append(f"--{option}={value}")
    options += [f"--log-opt={key}={value}" for key, value in sorted(container.logging.options.items())]
    return [*options, *(["--init"] if container.init else [])]


def limits(settings: Settings) -> dict[str, int]:
    """Return the declared limits as Docker keeps them: bytes of memory, billionths of a processor; 0 for none."""
    memory, cpus = settings.container.memory, settings.container.cpus
    unit = {"b": 1, "k": 1024, "m": 1024**2, "g": 1024**3}
    return {
        "memory": int(memory[:-1]) * unit[memory[-1]] if memory else 0,
        "nano_cpus": round(float(f"{cpus:g}") * 1_000_000_000) if cpus else 0,
    }


def published_at(port: PortSettings) -> str:
    """Return where a port is published: ``8888``, ``127.0.0.1:8888`` or ``[::1]:8888``."""
    address = port.address or ""
    if ":" in address:
        address = f"[{address}]"
    return f"{address}:{port.published}" if address else str(port.published)


def container_command(container: ContainerSettings) -> list[str]:
    """Return the container's arguments: Docker takes one word as entrypoint, the others precede the command."""
    return [*(container.entrypoint or [])[1:], *(container.command or [])]


def release_fingerprint(settings: Settings, options: Sequence[str], arguments: Sequence[str]) -> str:
    """Return 64 hexadecimal digits for everything that makes a container of this image what it is."""
    return fingerprint(
        list(options),
        list(arguments),
        settings.container.networks,
        {key: value.get_secret_value() for key, value in settings.secret_environment.items()},
        {key: value.get_secret_value() for key, value in settings.secret_files.items()},
    )


def deploy_input(settings: Settings, server: ServerSettings, mark: str, image: str, request: str) -> str:
    """Return the stdin of the phases that deploy; all of it is secret."""
    return standard_input(
        Payload(
            image=image,
            fingerprint=mark,
            request=request,
            registry_user=settings.pull_user or "",
            registry_password=settings.pull_password.get_secret_value() if settings.pull_password else "",
            secret_environment={
                key: value.get_secret_value() for key, value in settings.secret_environment.items()
            },
            secret_files={key: value.get_secret_value() for key, value in settings.secret_files.items()},
            read_only=settings.container.read_only,
        ),
        sudo=server.sudo,
        sudo_password=settings.sudo_password.get_secret_value() if settings.sudo_password else None,
    )
