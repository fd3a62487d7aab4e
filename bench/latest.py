"""What it costs to move `latest`: the procedure's job and Esteira's, on a runner that never had the image.

Bytes are those that the runner's network interface counted.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench.place import LATEST, REPOSITORY, Place, Release
from tests.live.machines import NAMESPACE_PREFIX, Machine

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Moved:
    """One way of moving the tag."""

    title: str
    sent: int
    """Bytes from the runner, to registry and servers."""
    received: int
    seconds: float


def move_latest(place: Place, runner: Machine) -> list[Moved]:
    """Move the tag in both ways, on a runner whose daemon has no image."""
    first, second = place.release(), place.release()

    def by_procedure() -> None:
        # Its job image_release, word for word but for names.
        config = runner.folder / "job"
        runner.environment = {"DOCKER_CONFIG": str(config)}
        registry, image = place.registry, f"{place.name}:{first.tag}"
        try:
            runner.docker(
                "login", "-u", registry.user, "--password-stdin", registry.address, stdin=registry.password
            )
            runner.docker("pull", image)
            runner.docker("tag", image, f"{place.name}:{LATEST}")
            runner.docker("push", f"{place.name}:{LATEST}")
        finally:
            runner.environment = {}

    found = [_count("procedure", runner, by_procedure)]
    _expect(place, first)
    found.append(_count("Esteira", runner, lambda: _point_tag(place, runner, second)))
    _expect(place, second)
    return found


def _point_tag(place: Place, runner: Machine, release: Release) -> None:
    """Run the command that the component Release declares."""
    registry = place.registry
    command = [
        "-m",
        "cli",
        "point-tag",
        place.name,
        f"tag={LATEST}",
        f"commit={release.commit}",
        "insecure=yes",
    ]
    given = {
        "digest": release.image.partition("@")[2],
        "username": registry.user,
        "password": registry.password,
    }
    subprocess.run(
        ["nsenter", f"--net=/run/netns/{NAMESPACE_PREFIX}{runner.name}", sys.executable, *command],
        cwd=ROOT,
        input=json.dumps(given),
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=True,
    )


def _expect(place: Place, release: Release) -> None:
    if place.registry.digest(REPOSITORY, LATEST) != release.image.partition("@")[2]:
        raise AssertionError(f"{LATEST} was not moved to {release.tag}")


def _count(title: str, runner: Machine, work: Callable[[], None]) -> Moved:
    sent, received, begun = _bytes(runner, "tx"), _bytes(runner, "rx"), time.monotonic()
    work()
    seconds = time.monotonic() - begun
    return Moved(title, _bytes(runner, "tx") - sent, _bytes(runner, "rx") - received, seconds)


def _bytes(runner: Machine, way: str) -> int:
    # /proc's table is that of the process's own network namespace.
    line = next(
        line
        for line in Path(f"/proc/{runner.init}/net/dev").read_text(encoding="utf-8").splitlines()
        if line.strip().startswith("eth0:")
    )
    numbers = line.partition(":")[2].split()
    return int(numbers[0] if way == "rx" else numbers[8])
