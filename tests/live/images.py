"""The local base images as files, so that many daemons can have them."""

from __future__ import annotations

import fcntl
import hashlib
import os
from pathlib import Path

from cli import images
from tests.live.machines import BASE, Machine, run
from tests.live.registry import Registry

BASE_PYTHON = images.BASE_PYTHON
EDGE = images.EDGE


def archive(name: str) -> Path:
    """Give an image of the main daemon as a tar file, which is kept for the next run of the tests."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "esteira" / "live"
    made_by = hashlib.sha256(Path(images.__file__).read_bytes()).hexdigest()[:12]
    file = cache / f"{name.replace('/', '-').replace(':', '-')}-{made_by}.tar"
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not file.exists():
            work = BASE / "esteira-live-images"
            work.mkdir(exist_ok=True)
            images.ensure(work)
            for old in cache.glob(f"{file.name[:-16]}*"):
                old.unlink()
            run("docker", "save", "-o", f"{file}.part", name, timeout=300)
            Path(f"{file}.part").rename(file)
    return file


def base_name(registry: Registry) -> str:
    """Name the Python base image in the registry.

    With it in the registry, on the builder and on the servers, an application's push and pull move only its own layer.
    """
    return f"{registry.address}/live/base:1"


def push_base(builder: Machine, registry: Registry) -> None:
    """Load the base image into the builder and push it."""
    load(builder, BASE_PYTHON)
    builder.docker("tag", BASE_PYTHON, base_name(registry))
    with registry.logged_in(builder):
        builder.docker("push", base_name(registry))


def pull_base(machine: Machine, registry: Registry) -> None:
    """Have a server pull the base image."""
    with registry.logged_in(machine):
        machine.docker("pull", "-q", base_name(registry))


def load(machine: Machine, name: str) -> None:
    """Give the image to a machine's daemon."""
    machine.docker("load", "-q", "-i", str(archive(name)), timeout=300)
