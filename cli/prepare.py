"""What must be there before anything is deployed: checked first, made or installed then, or said how."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from cli import console, docker, engine, images, local, machine
from components.settings import Settings

PROJECT_GIGABYTES = 1.0


def for_local_stack(place: local.Place) -> Settings:
    """Prepare this machine for the local stack and return its settings.

    Whatever can be refused is refused before anything is made. Raises EsteiraError.
    """
    machine.require_free_disk(place.root, PROJECT_GIGABYTES, "the local stack")
    docker.ensure_engine(place.root)
    place.make()
    settings = place.settings()
    local.require_free_ports(place, settings)
    images.ensure(place.root)
    local.ensure_registry(place, settings)
    return settings


def find_engine(root: Path) -> engine.Engine | engine.Missing:
    """Find or fetch the Pulumi engine; where there is none, say so loudly."""
    found = engine.find(root)
    if isinstance(found, engine.Missing):
        console.banner(
            "This is a REHEARSAL: the Pulumi engine cannot be had on this machine.",
            f"Why: {found.reason}.",
            "The same program is carried out without it, with the same result, but there is",
            "no state, no preview and no diff, and each step is done again at every run.",
            "With the engine: install the Pulumi CLI, then type the same command again.",
        )
    return found


def environment_of_program(place: local.Place) -> Mapping[str, str]:
    """Make the environment in which the rehearsal runs the program."""
    path = os.pathsep.join([str(place.root / ".venv" / "bin"), os.environ.get("PATH", os.defpath)])
    return {**engine.environment(place), "PATH": path}
