"""A stack on two servers, made once for each file of tests: a run of the engine takes seconds, so tests share it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from tests.engine.stack import Stack
from tests.live import images
from tests.live.machines import Machine
from tests.live.registry import Registry


@pytest.fixture(scope="module")
def servers(_machines: list[Machine], registry: Registry) -> tuple[Machine, Machine]:
    """Give both servers as new."""
    for machine in _machines:
        machine.wipe(keep_images=[images.EDGE, images.base_name(registry)])
    first, second = _machines
    return first, second


@pytest.fixture(scope="module")
def one(servers: tuple[Machine, Machine]) -> Machine:
    """Give the first server, with what the tests before have left on it."""
    return servers[0]


@pytest.fixture(scope="module")
def two(servers: tuple[Machine, Machine]) -> Machine:
    """Give the second server, with what the tests before have left on it."""
    return servers[1]


@pytest.fixture(scope="module")
def make_stack(
    tmp_path_factory: pytest.TempPathFactory, registry: Registry, builder: Machine
) -> Callable[..., Stack]:
    """Give what makes a checkout with an empty stack and an image repository of its own."""

    def make(name: str, backend: Mapping[str, str] | None = None) -> Stack:
        folder: Path = tmp_path_factory.mktemp(name)
        return Stack(folder / "project", registry, builder, f"engine/{name}", backend)

    return make


@pytest.fixture(scope="module")
def stack(make_stack: Callable[[str], Stack], one: Machine, request: pytest.FixtureRequest) -> Stack:
    """Give a stack whose first commit serves on server one."""
    made = make_stack(request.path.stem.removeprefix("test_"))
    made.server(one)
    made.up().expect_good()
    return made
