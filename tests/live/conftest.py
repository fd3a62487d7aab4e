"""What only the live tests need; the room that they share with the engine tests is in tests/live/parts.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.live.driving import Application, Images
from tests.live.machines import Machine
from tests.live.project import Project
from tests.live.registry import Registry


@pytest.fixture
def project(tmp_path: Path, registry: Registry, builder: Machine, request: pytest.FixtureRequest) -> Project:
    """Give a checkout of its own, with an image repository of its own."""
    name = request.node.name.partition("[")[0].replace("_", "-").lower()
    return Project(tmp_path / "project", registry, builder, f"live/{name}")


@pytest.fixture(scope="session")
def app_images(builder: Machine, registry: Registry) -> Images:
    """Give what makes images of the tests' application without building."""
    return Images(builder, registry)


@pytest.fixture
def app(one: Machine, registry: Registry) -> Application:
    """Give a declaration for a server as new, whose phases are driven one by one."""
    return Application(one, registry)
