"""The local stack's own things: its folder, its secrets, its settings, its registry."""

from __future__ import annotations

import base64
import fcntl
import io
import os
import secrets
import tarfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import bcrypt
import yaml

from cli import console, docker, images, machine, shell
from components.errors import EsteiraError
from components.settings import Settings, load_settings, parse_stack_file

STACK = "local"

REGISTRY_CONTAINER = "esteira-registry"
REGISTRY_VOLUME = "esteira-registry"
_LABEL = "esteira.local=true"
_CHECKOUT = "esteira.checkout"
"""Labels of container and volume: what they are, and whose."""
_ANSWER_SECONDS = 30


def project_name(root: Path) -> str:
    """Return the project's name, which is part of every container's owner."""
    try:
        described = yaml.safe_load((root / "Pulumi.yaml").read_text(encoding="utf-8"))
        return str(described["name"])
    except (OSError, yaml.YAMLError, KeyError, TypeError):
        raise EsteiraError(
            f"{root / 'Pulumi.yaml'} names no project. Type this in the project's folder."
        ) from None


@dataclass(frozen=True)
class Place:
    """Where the local stack keeps what it must not lose, and nobody else may read: the project's .esteira folder."""

    root: Path

    @property
    def folder(self) -> Path:
        """Everything that `./esteira down` removes, but the state."""
        return self.root / ".esteira" / "local"

    @property
    def state(self) -> Path:
        """The file backend of Pulumi's state."""
        return self.root / ".esteira" / "state"

    @property
    def passphrase(self) -> Path:
        """The file with the passphrase of the state's secrets."""
        return self.folder / "passphrase"

    @property
    def registry_password(self) -> Path:
        """The file with the registry's password; Pulumi.local.yaml names it too."""
        return self.folder / "registry-password"

    def make(self) -> None:
        """Make the folders and the random secrets that are missing; nobody else may read them."""
        for folder in (self.root / ".esteira", self.folder, self.state):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            folder.chmod(0o700)
        for path in (self.passphrase, self.registry_password):
            if path.exists() and path.stat().st_size > 0:
                continue
            passing = path.with_suffix(".new")
            passing.unlink(missing_ok=True)
            with os.fdopen(os.open(passing, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                file.write(secrets.token_urlsafe(24))
            passing.replace(path)

    def settings(self) -> Settings:
        """Read and check Pulumi.local.yaml. Raises SettingsError with every mistake."""
        stack_file = parse_stack_file(self.root / f"Pulumi.{STACK}.yaml")
        return load_settings(
            stack_file.values,
            stack_file.secret_keys,
            project=project_name(self.root),
            stack=STACK,
            root=self.root,
            environ=os.environ,
            written=stack_file.values,
        )

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the local stack for one command at a time; the lock dies with its holder."""
        folder = self.root / ".esteira"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with (folder / "command.lock").open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise EsteiraError(
                    "Another ./esteira up or down is at work in this folder. Wait until it has ended, then try again."
                ) from None
            yield


def require_free_ports(place: Place, settings: Settings) -> None:
    """Raise EsteiraError where something else holds a port that the local stack publishes."""
    _, _, registry_port = settings.registry.rpartition(":")
    wanted = [("registry", "127.0.0.1", int(registry_port) if registry_port.isdigit() else 80)]
    wanted += [
        ("container.ports", port.address or "0.0.0.0", port.published)  # noqa: S104 - as Docker publishes
        for port in settings.container.ports
        if port.transport == "tcp"
    ]
    for key, address, port in wanted:
        form = '{{.Names}}|{{.Label "esteira.checkout"}}|{{.Labels}}'
        holders = docker.docker("ps", "--filter", f"publish={port}", "--format", form).splitlines()
        for holder in holders:
            name, checkout, labels = holder.split("|", 2)
            if key != "registry" and "esteira." in labels:
                break
            if name == REGISTRY_CONTAINER and checkout:
                _require_own(checkout, place)
                break
            _raise_taken(key, port, f"the container {name}", f"docker stop {name}")
        else:
            if machine.port_is_taken(address, port):
                _raise_taken(key, port, machine.port_holder(port) or "another process", "")


def _raise_taken(key: str, port: int, holder: str, way: str) -> None:
    free = f"Free it ({way})" if way else "Stop that"
    raise EsteiraError(
        f"Port {port} is in use by {holder}. {free}, or choose another port: key esteira:{key} in Pulumi.local.yaml."
    )


def _require_own(checkout: str, place: Place) -> None:
    """Refuse another clone's registry while that clone is there; what is left of one that is gone is taken over."""
    if (
        checkout != str(place.root)
        and Path(checkout, "Pulumi.local.yaml").exists()
        and Path(checkout, ".esteira", "local").exists()
    ):
        raise EsteiraError(
            f"The local stack of another checkout, {checkout}, is up on this machine and holds the registry's port. "
            f"Take it down first: {checkout}/esteira down"
        )


def is_anothers(place: Place) -> bool:
    """Tell whether the local stack that is up on this machine is that of another checkout, which is still there."""
    checkout = (docker.labels_of("container", REGISTRY_CONTAINER) or {}).get(_CHECKOUT)
    return checkout not in {None, str(place.root)} and Path(str(checkout), ".esteira", "local").exists()


def ensure_registry(place: Place, settings: Settings) -> None:
    """Make sure that the local stack's registry runs, with this folder's password; what is so already is left alone.

    Its images are in a volume, so that the container can be made anew at any time. Restart policy `always` brings it
    back with the machine.
    """
    labels = docker.labels_of("container", REGISTRY_CONTAINER)
    if labels is not None and _CHECKOUT not in labels:
        raise EsteiraError(
            f"There is a container {REGISTRY_CONTAINER} that the local stack has not made. "
            f"Rename it (docker rename {REGISTRY_CONTAINER} another-name), then try again."
        )
    if labels is not None and labels[_CHECKOUT] != str(place.root):
        _require_own(labels[_CHECKOUT], place)
        remove_registry(place)
        labels = None
    if labels is not None and _is_as_declared(settings):
        docker.docker("start", REGISTRY_CONTAINER)
        if _answers(place, settings, _ANSWER_SECONDS / 3) is None:
            return
    console.step(f"Starting a registry with a password at {settings.registry} ...")
    docker.docker("rm", "--force", REGISTRY_CONTAINER, check=False)
    _create_registry(place, settings)
    complaint = _answers(place, settings, _ANSWER_SECONDS)
    if complaint is not None:
        log = shell.run(["docker", "logs", "--tail", "5", REGISTRY_CONTAINER], check=False)
        docker.docker("rm", "--force", REGISTRY_CONTAINER, check=False)
        raise EsteiraError(
            f"The local registry does not answer at {settings.registry}: {complaint}\n{log.stderr.strip()}"
        )


def _is_as_declared(settings: Settings) -> bool:
    form = "{{.Image}} {{range $port, $hosts := .HostConfig.PortBindings}}{{range $hosts}}{{.HostPort}}{{end}}{{end}}"
    image = docker.docker("image", "inspect", "--format", "{{.Id}}", images.REGISTRY)
    port = settings.registry.rpartition(":")[2]
    return docker.docker("inspect", "--format", form, REGISTRY_CONTAINER) == f"{image} {port}"


def _create_registry(place: Place, settings: Settings) -> None:
    if docker.labels_of("volume", REGISTRY_VOLUME) is None:
        labels = [*("--label", _LABEL), *("--label", f"{_CHECKOUT}={place.root}")]
        docker.docker("volume", "create", *labels, REGISTRY_VOLUME)
    password_file = "/etc/docker/registry/htpasswd"  # noqa: S105 - a path
    docker.docker(
        *("create", "--name", REGISTRY_CONTAINER, "--restart", "always"),
        *("--label", _LABEL, "--label", f"{_CHECKOUT}={place.root}"),
        *("--publish", f"127.0.0.1:{settings.registry.rpartition(':')[2]}:5000"),
        *("--volume", f"{REGISTRY_VOLUME}:/var/lib/registry"),
        *("--env", "REGISTRY_AUTH=htpasswd", "--env", "REGISTRY_AUTH_HTPASSWD_REALM=esteira"),
        *("--env", f"REGISTRY_AUTH_HTPASSWD_PATH={password_file}"),
        *("--env", "REGISTRY_STORAGE_DELETE_ENABLED=true"),
        # The driver too: the daemon's own may be one that refuses these options (journald, syslog).
        *("--log-driver", "json-file", "--log-opt", "max-size=10m", "--log-opt", "max-file=2"),
        images.REGISTRY,
    )
    try:
        # By stdin into the container: a password's hash needs no file on this machine.
        docker.docker(
            "cp", "-", f"{REGISTRY_CONTAINER}:/etc/docker/registry", stdin=_htpasswd(place, settings)
        )
        docker.docker("start", REGISTRY_CONTAINER)
    except BaseException:
        docker.docker("rm", "--force", REGISTRY_CONTAINER, check=False)
        raise


def _htpasswd(place: Place, settings: Settings) -> bytes:
    """Make the tar file with the registry's htpasswd: bcrypt, the only hash that the registry takes."""
    hashed = bcrypt.hashpw(place.registry_password.read_bytes().strip(), bcrypt.gensalt(rounds=8))
    content = (settings.registry_user or "esteira").encode() + b":" + hashed + b"\n"
    entry = tarfile.TarInfo("htpasswd")
    entry.size, entry.mode, entry.mtime = len(content), 0o600, int(time.time())
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        tar.addfile(entry, io.BytesIO(content))
    return stream.getvalue()


def _answers(place: Place, settings: Settings, seconds: float) -> str | None:
    """Wait until the registry lets us in; None, or what it said instead."""
    credential = f"{settings.registry_user}:{place.registry_password.read_text().strip()}"
    header = {"Authorization": "Basic " + base64.b64encode(credential.encode()).decode()}
    request = urllib.request.Request(f"http://{settings.registry}/v2/", headers=header)
    # No proxy stands between this machine and itself.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline = time.monotonic() + seconds
    while True:
        try:
            with opener.open(request, timeout=5):
                return None
        except urllib.error.HTTPError as error:
            complaint = f"HTTP {error.code}"
            if error.code == 401:  # another password: waiting does not change it
                return complaint
        except OSError as error:
            complaint = str(error)
        if time.monotonic() > deadline:
            return complaint
        time.sleep(0.1)


def remove_registry(place: Place) -> list[str]:
    """Remove the registry's container and volume, if they are this checkout's (or of one that is gone)."""
    removed = []
    for kind, name, command in (
        ("container", REGISTRY_CONTAINER, ("rm", "--force", "--volumes")),
        ("volume", REGISTRY_VOLUME, ("volume", "rm", "--force")),
    ):
        labels = docker.labels_of(kind, name)
        checkout = (labels or {}).get(_CHECKOUT)
        if checkout is None:
            continue
        if checkout != str(place.root) and Path(checkout, ".esteira", "local").exists():
            continue
        docker.docker(*command, name)
        removed.append(f"{kind} {name}")
    return removed


def remove_folders(place: Place) -> None:
    """Remove state, secrets and logs; .venv and a Pulumi CLI that was fetched stay."""
    for path in (place.folder, place.state):
        if path.exists():
            command = ["rm", "-rf", str(path)]
            with suppress(shell.CommandError):
                shell.run(command)
            if path.exists():
                raise EsteiraError(f"{path} cannot be removed. Type: sudo rm -rf {path}")
