"""What a release's settings become: the arguments of a phase, its stdin, and the fingerprint. Pure functions."""

from __future__ import annotations

import math
import shlex
from typing import TYPE_CHECKING

from components.remote import Payload, fingerprint, secret_file_folders, standard_input

if TYPE_CHECKING:
    from collections.abc import Sequence

    from components.settings import ContainerSettings, HealthSettings, PortSettings, ServerSettings, Settings


def owner_of(settings: Settings) -> str:
    """Return what containers are labelled with: ``project/stack/container``. One server may serve several."""
    return f"{settings.project}/{settings.stack}/{settings.container.name}"


def image_repository(settings: Settings) -> str:
    """Return ``registry/repository``, without tag or digest."""
    return f"{settings.registry}/{settings.repository}"


def identity_values(settings: Settings, server: ServerSettings) -> list[tuple[str, str]]:
    """Return the arguments that say which container on which server is meant."""
    return [
        ("server", server.name),
        ("owner", owner_of(settings)),
        ("name", settings.container.name),
        ("lockTimeout", f"{math.ceil(settings.lock_timeout)}"),
    ]


def deploy_values(
    settings: Settings, server: ServerSettings, commit: str, tag: str, request: str
) -> list[tuple[str, str]]:
    """Return the arguments of the deploy phase, in the order in which a preview shows them."""
    container = settings.container
    values = [
        *identity_values(settings, server),
        ("commit", commit),
        ("tag", tag),
        ("request", request),
        ("registry", settings.registry),
        ("strategy", settings.strategy),
        ("restart", container.restart),
        ("keepReleases", str(settings.keep_releases)),
        *(("network", network) for network in container.networks[1:]),
        *health_values(settings.health, container),
    ]
    if settings.pre_deploy:
        values.append(("preDeploy", shlex.join(settings.pre_deploy)))
    values += [("probeImage", settings.probe_image), ("probeNetwork", (container.networks or ["bridge"])[0])]
    return values


def health_values(health: HealthSettings, container: ContainerSettings) -> list[tuple[str, str]]:
    """Return the health gate's arguments; durations in seconds."""
    port = health.port or next((port.target for port in container.ports if port.protocol != "udp"), None)
    https = any(p.target == port and p.protocol == "https" for p in container.ports)
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
    options = [f"--publish={published(port)}" for port in container.ports]
    options += [f"--env={key}={value}" for key, value in sorted(environment.items())]
    options += [f"--volume={volume}" for volume in container.volumes]
    if container.read_only:
        options += [
            "--read-only",
            *(f"--volume={folder}" for folder in secret_file_folders(settings.secret_files)),
        ]
    options += [f"--tmpfs={path}" for path in container.tmpfs]
    options += [f"--network={network}" for network in container.networks[:1]]
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


def published(port: PortSettings) -> str:
    """Return a port as ``docker create --publish`` takes it."""
    address = port.address or ""
    if ":" in address:
        address = f"[{address}]"
    protocol = "/udp" if port.protocol == "udp" else ""
    return f"{address}{':' if address else ''}{port.published}:{port.target}{protocol}"


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


def deploy_input(settings: Settings, server: ServerSettings, mark: str, image: str) -> str:
    """Return the stdin of the deploy phase; all of it is secret."""
    return standard_input(
        Payload(
            image=image,
            fingerprint=mark,
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
