"""The Docker Engine of this machine: found, installed, started."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from cli import console, machine, shell
from components.errors import EsteiraError

OLDEST = (20, 10)
"""The oldest Docker Engine that is promised (Debian bookworm's)."""

_START_SECONDS = 60


def docker(*arguments: str, timeout: float = 60, check: bool = True, stdin: bytes | None = None) -> str:
    """Run one docker command and return its output. Raises shell.CommandError when it fails."""
    return shell.run(["docker", *arguments], timeout=timeout, check=check, stdin=stdin).stdout.strip()


def labels_of(kind: str, name: str) -> Mapping[str, str] | None:
    """Read the labels of a container, image or volume; None where there is none of that name."""
    fields = ".Labels" if kind == "volume" else ".Config.Labels"
    form = f'{{{{range $key, $value := {fields}}}}}{{{{$key}}}}={{{{$value}}}}{{{{"\\n"}}}}{{{{end}}}}'
    result = shell.run(["docker", kind, "inspect", "--format", form, name], check=False)
    if result.returncode != 0:
        return None
    return dict(line.split("=", 1) for line in result.stdout.splitlines() if "=" in line)


def image_exists(name: str) -> bool:
    """Tell whether the daemon has an image of this name."""
    return shell.run(["docker", "image", "inspect", name], check=False).returncode == 0


def answer() -> tuple[str | None, str]:
    """Ask the daemon for its version: (version, "") or (None, what was said instead)."""
    try:
        result = shell.run(["docker", "version", "--format", "{{.Server.Version}}"], timeout=20, check=False)
    except shell.CommandError as error:
        return None, str(error)
    if result.returncode == 0 and result.stdout.strip():
        return result.stdout.strip(), ""
    return None, result.stderr.strip() or result.stdout.strip()


def ensure_engine(root: Path) -> None:
    """Make sure that a Docker Engine answers: install it and start it where that is possible from here.

    Raises EsteiraError with the commands to type where it is not. ``root`` is the project's folder; a daemon that has
    to be started by hand writes its log below it.
    """
    version, complaint = answer()
    if version is None:
        require_permission(complaint)
        _require_local_engine()
        if not shell.has("dockerd") or not shell.has("docker"):
            # Newer releases have the client in a package of its own.
            packages = ["docker.io", *machine.known_packages(["docker-cli"])]
            machine.install_packages(packages, "Docker Engine is needed and not installed")
            version, complaint = answer()
    if version is None:
        version = _start(root)
    numbers = tuple(int(part) for part in version.split("+")[0].split(".")[:2] if part.isdigit())
    if numbers < OLDEST:
        raise EsteiraError(
            f"Docker Engine {version} is too old: 20.10 or later is needed. Install one, then try again."
        )
    place = docker("info", "--format", "{{.DockerRootDir}}") or "/var/lib/docker"
    machine.require_free_disk(Path(place), 2, "Docker")


def require_permission(complaint: str) -> None:
    """Raise EsteiraError with the commands to type where ``complaint`` says that this user may not use Docker."""
    if "permission denied" in complaint.lower() and os.geteuid() != 0:
        raise EsteiraError(
            f"The user {machine.user_name()} may not use Docker on this machine. "
            "Type this, then the same command again:\n"
            f"    sudo usermod -aG docker {machine.user_name()}\n    newgrp docker"
        )


def _require_local_engine() -> None:
    host = os.environ.get("DOCKER_HOST", "")
    if host and not host.startswith("unix://"):
        raise EsteiraError(
            f"DOCKER_HOST names a Docker Engine elsewhere ({host}), and it does not answer. The local stack runs on "
            "this machine: type unset DOCKER_HOST, then ./esteira again."
        )


def _start(root: Path) -> str:
    if not shell.can_be_root():
        way = "systemctl enable --now docker" if _has_systemd() else "service docker start"
        raise EsteiraError(
            f"Docker Engine is installed but does not run, and the user {machine.user_name()} may not start it. "
            f"Type this, then ./esteira again:\n    sudo {way}"
        )
    console.step("Starting the Docker daemon ...")
    log = root / ".esteira" / "dockerd.log"
    for start in _ways_to_start(log):
        shell.run(shell.as_root(start), timeout=90, check=False)
        deadline = time.monotonic() + (_START_SECONDS if start[0] == "sh" else 15)
        while time.monotonic() < deadline:
            version, complaint = answer()
            if version is not None:
                return version
            time.sleep(0.5)
    last = ""
    with suppress(OSError):
        last = "\n".join(log.read_text(errors="replace").splitlines()[-3:])
    raise EsteiraError(
        f"The Docker daemon does not start: {complaint}\n{last}\nIts log is {log} (or: journalctl -u docker). "
        "Mend what it says, then type ./esteira again."
    )


def _ways_to_start(log: Path) -> list[Sequence[str]]:
    ways: list[Sequence[str]] = []
    if _has_systemd():
        return [["systemctl", "enable", "--now", "docker"]]
    if Path("/etc/init.d/docker").exists() and shell.has("service"):
        ways.append(["service", "docker", "start"])
    # By hand, for machines without an init system (containers, CI): in a session of its own, so that it outlives us.
    by_hand = 'log=$1; shift; setsid "$@" >"$log" 2>&1 </dev/null &'
    ways.append(["sh", "-c", by_hand, "sh", str(log), shell.find("dockerd") or "dockerd"])
    return ways


def _has_systemd() -> bool:
    return Path("/run/systemd/system").is_dir()
