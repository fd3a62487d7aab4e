"""`./esteira bench`: prepares what the measuring needs, and shows and writes what it found."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

from cli import console, docker, images, local, machine, shell
from components.errors import EsteiraError

RELEASES, ROUNDS = 20, 5
"""Releases of each way under load, and rounds without, by default."""
_NEEDED = {
    "dockerd": "docker.io",
    "docker-registry": "docker-registry",
    "git": "git",
    "ip": "iproute2",
    "iptables": "iptables",
    "nsenter": "util-linux",
    "openssl": "openssl",
    "ssh-keygen": "openssh-client",
    "/usr/sbin/sshd": "openssh-server",
    "sudo": "sudo",
}
"""What the bench's own server, registry and namespaces are made of, and the Debian packages that bring it."""


def run(place: local.Place, *, releases: int, rounds: int, rate: float) -> None:
    """Measure, print the table, write docs/bench.md, docs/bench.json and docs/bench.svg.

    Raises EsteiraError when it cannot be measured here, or when a promised figure does not hold.
    """
    if os.geteuid() != 0:
        raise EsteiraError(
            "The bench makes a server of its own out of namespaces, which needs root. Type: sudo ./esteira bench"
        )
    machine.require_free_disk(place.root, 2, "the bench")
    docker.ensure_engine(place.root)
    packages = sorted({package for name, package in _NEEDED.items() if not _is_there(name)})
    if packages:
        # Not installed from here: some start a service at once, on a port that this machine may use for something else.
        names = " ".join(packages)
        raise EsteiraError(
            f"The bench needs {names}. Type this (openssh-server and docker-registry start a service on ports 22 and "
            "5000; the bench uses neither), then ./esteira bench again:\n"
            f"    apt-get update && apt-get install -y {names}"
        )
    _ensure_matplotlib(place.root)
    with place.locked():
        images.ensure(place.root)
    from bench import run as bench  # noqa: PLC0415 - brings the tests' machines with it

    report = bench.run(releases, rounds, rate, console.step)
    command = "./esteira bench"
    command += f" --releases {releases}" if releases != RELEASES else ""
    command += f" --rounds {rounds}" if rounds != ROUNDS else ""
    console.say()
    console.say(report.text())
    console.say()
    for file in bench.write(report, place.root / "docs", command):
        console.say(f"written: {file.relative_to(place.root)}")
    if broken := report.broken():
        raise EsteiraError("Measured here, this does not hold: " + "; ".join(broken) + ".")


def _ensure_matplotlib(root: Path) -> None:
    """Install what draws the picture, which nothing else needs, into the project's environment."""
    if importlib.util.find_spec("matplotlib") is not None:
        return
    console.step("Installing matplotlib, for the picture ...")
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-input",
        "-r",
        "bench/requirements.txt",
    ]
    try:
        shell.run(command, timeout=300, cwd=root)
    except shell.CommandError as error:
        raise EsteiraError(
            f"The bench draws a picture by matplotlib, which cannot be installed: {error}. Type: .venv/bin/pip install "
            "-r bench/requirements.txt"
        ) from None


def _is_there(program: str) -> bool:
    return Path(program).exists() if program.startswith("/") else shell.has(program)
