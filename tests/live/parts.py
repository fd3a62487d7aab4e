"""The room of the live and the engine tests: machines, a registry, a build daemon, made once for a run of the tests."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.live import images, standstill
from tests.live.machines import Machine, Room
from tests.live.registry import Registry

NEEDED = [
    *("docker", "dockerd", "docker-registry", "git", "ip", "iptables", "mkfs.ext4", "mount", "nsenter"),
    *("openssl", "ssh-keygen", "sudo", "unshare"),
]


def missing() -> str | None:
    """Why the live tests cannot run here, or None."""
    if os.geteuid() != 0:
        return "the live tests make network namespaces and daemons, which needs root"
    lacking = [name for name in NEEDED if shutil.which(name) is None]
    if not Path("/usr/sbin/sshd").exists():
        lacking.append("sshd")
    if lacking:
        return f"the live tests need {', '.join(lacking)}"
    return None


@pytest.fixture(scope="session")
def room() -> Iterator[Room]:
    """Give the place for machines, removed at the end."""
    reason = missing()
    if reason is not None:
        if os.environ.get("ESTEIRA_REQUIRE_LIVE") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    room = Room.open()
    yield room
    room.close()


@pytest.fixture(scope="session")
def registry(room: Room) -> Iterator[Registry]:
    """Give the registry with a password, on the bridge."""
    registry = Registry(room.folder / "registry")
    registry.start()
    yield registry
    registry.stop()


@pytest.fixture(scope="session")
def builder(room: Room, registry: Registry) -> Machine:
    """Give the machine whose daemon builds; nothing is deployed on it."""
    machine = room.machine("builder", 10, sshd=False)
    machine.wait_until_up()
    images.push_base(machine, registry)
    return machine


@pytest.fixture(scope="session")
def _machines(room: Room, registry: Registry, builder: Machine) -> list[Machine]:
    machines = [room.machine(name, number) for name, number in (("one", 11), ("two", 12))]

    def prepare(machine: Machine) -> None:
        machine.wait_until_up()
        images.load(machine, images.EDGE)
        images.pull_base(machine, registry)

    with ThreadPoolExecutor() as pool:
        list(pool.map(prepare, machines))
    return machines


@pytest.fixture
def one(_machines: list[Machine], registry: Registry) -> Machine:
    """Give a server as new."""
    _machines[0].wipe(keep_images=[images.EDGE, images.base_name(registry)])
    return _machines[0]


@pytest.fixture
def two(_machines: list[Machine], registry: Registry) -> Machine:
    """Give a second server as new."""
    _machines[1].wipe(keep_images=[images.EDGE, images.base_name(registry)])
    return _machines[1]


_FIGURE = "figure"
_FIGURES = pytest.StashKey[list[str]]()


@pytest.fixture
def record(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Give what notes a figure for the end of the run's report."""
    # Properties travel with the test's report, from whichever process it ran in.
    return lambda line: request.node.user_properties.append((_FIGURE, line))


class _Figures:
    """Collects the figures from the reports, which come in the order in which the tests end."""

    def __init__(self, lines: list[str]) -> None:
        self._lines = lines

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "teardown":
            self._lines += [str(value) for name, value in report.user_properties if name == _FIGURE]


def pytest_configure(config: pytest.Config) -> None:
    """Begin to collect the figures."""
    config.stash[_FIGURES] = []
    config.pluginmanager.register(_Figures(config.stash[_FIGURES]))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Tell the figures that were seen."""
    for line in [*config.stash[_FIGURES], standstill.report()]:
        if line:
            terminalreporter.line(line)
