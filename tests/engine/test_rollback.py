"""Back to an earlier commit by `./esteira rollback`, with the registry stopped; and forward again, as it says."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from tests.engine.stack import Stack, shows
from tests.live.machines import Machine
from tests.live.project import REPOSITORY
from tests.live.registry import Registry

_TYPED = (
    "import sys; from pathlib import Path; from cli import app; app.ROOT = Path(sys.argv.pop(1)); app.main()"
)


def typed(stack: Stack, *words: str) -> tuple[int, str]:
    """Type ./esteira with the CLI's own environment; exit status and what it showed."""
    done = subprocess.run(
        [sys.executable, "-c", _TYPED, str(stack.root), *words],
        cwd=stack.root,
        env={**stack.environ, "PYTHONPATH": str(REPOSITORY)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=180,
        check=False,
    )
    assert "Traceback" not in done.stdout, done.stdout
    return done.returncode, done.stdout


def outputs(stack: Stack) -> dict[str, Any]:
    """Return the stack's outputs, as other stacks and people read them."""
    found: dict[str, Any] = json.loads(stack.pulumi("stack", "output", "--json").screen)
    return found


@pytest.fixture(scope="module")
def fleet(make_stack: Callable[[str], Stack], one: Machine, two: Machine) -> Stack:
    """Give a stack with two releases on two servers."""
    stack = make_stack("rollback")
    stack.server(one)
    stack.server(two)
    stack.up().expect_good()
    return stack


def test_back_and_forward(fleet: Stack, one: Machine, two: Machine, registry: Registry) -> None:
    first, machines = fleet.head, (one, two)
    kept = [machine.inspect("parasite")["Id"] for machine in machines]
    image = outputs(fleet)["image"]
    second = fleet.commit(text="second")
    fleet.up().expect_good()
    said = outputs(fleet)
    assert (said["commit"], said["releases"]) == (second, {"one": second, "two": second})

    bad = fleet.commit(text="bad", health_status=500)
    fleet.up().expect_bad("HTTP 500")
    # A failed run exports nothing new: what is told is what serves.
    said = outputs(fleet)
    assert (said["commit"], said["releases"]) == (second, {"one": second, "two": second})
    fleet.write()

    since = registry.log_size()
    registry.stop()
    for machine in machines:
        machine.forget_calls()
    try:
        status, screen = typed(fleet, "rollback", "--stack", fleet.name, "--yes")
        assert status == 0, screen
        assert [machine.inspect("parasite")["Id"] for machine in machines] == kept, "not the kept releases"
        assert shows(one, first)
        assert shows(two, first)
        for machine in machines:
            assert not [call for call in machine.calls() if call[0] in {"pull", "login", "create", "build"}]
        assert f"Back to commit {first[:7]}" in screen
        assert screen.count("starts the release that it keeps, without the registry") == 2
        assert f"esteira:commit: {first}" in fleet.file.read_text()
        said = outputs(fleet)
        assert (said["commit"], said["image"], said["digest"]) == (first, image, image.partition("@")[2])
        assert said["releases"] == {"one": first, "two": first}
        status, screen = typed(fleet, "releases", "--stack", fleet.name)
        assert status == 0, screen
        assert "The registry cannot be asked" in screen
    finally:
        registry.start()
    assert not [line for line in registry.requests(since) if '"PUT' in line]
    # The moving tag, which could not be moved, is moved by the next run, which does nothing else.
    run = fleet.pulumi("up", "--yes", "--skip-preview", commit=first).expect_good()
    assert registry.digest(fleet.repository, "latest") == said["digest"], run.screen
    assert all(
        machine.inspect("parasite")["Id"] == identity
        for machine, identity in zip(machines, kept, strict=True)
    )
    fleet.up(commit=first).expect_unchanged()

    # Forward, by the words that it said: to what is checked out, which is the bad one; so to a repaired one.
    fleet.commit(text="third")
    status, screen = typed(fleet, "rollback", "--stack", fleet.name, "--to", second[:10], "--yes")
    assert status == 0, screen
    assert shows(one, second)
    [forward_again] = set(re.findall(r"Forward again, to what is checked out:  (.*)", screen))
    done = subprocess.run(
        ["sh", "-c", forward_again.replace("pulumi up", "pulumi up --yes")],
        cwd=fleet.root,
        env=fleet.environ,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert shows(one, fleet.head)
    assert shows(two, fleet.head)
    assert "esteira:commit" not in fleet.file.read_text()
    results = [(entry["commit"], entry["result"]) for entry in fleet_entry(one)]
    assert results == [
        (first, "deployed"),
        (second, "deployed"),
        (bad, "failed"),
        (first, "deployed"),
        (second, "deployed"),
        (fleet.head, "deployed"),
    ]


def fleet_entry(machine: Machine) -> list[dict[str, Any]]:
    """Return a server's release log."""
    [log] = machine.path("var/lib/esteira").glob("*.jsonl")
    return [json.loads(line) for line in log.read_text().splitlines()]
