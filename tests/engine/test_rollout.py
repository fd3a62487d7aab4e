"""A rollout over two servers on the real engine: its error hooks take back at once what has switched."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable

import pytest

from tests.engine.stack import Stack, shows
from tests.engine.test_interrupted import is_clean, quiet
from tests.live.machines import Machine, wait_for

DEADLINE = 20
"""Seconds after which an unconfirmed switch is taken back by the server itself."""


@pytest.fixture(scope="module")
def stack(make_stack: Callable[[str], Stack], one: Machine, two: Machine) -> Stack:
    """Give a stack whose first commit serves on both servers."""
    made = make_stack("rollout")
    made.server(one)
    made.server(two)
    made.settings["rollout"] = {"watch": 0.5, "confirmTimeout": DEADLINE}
    made.settings["connectTimeout"] = "3s"
    made.up().expect_good()
    return made


def on_second(stack: Stack, **knobs: object) -> list[dict[str, object]]:
    """Return the servers, the second of which has an environment that makes its application do wrong."""
    entries = json.loads(json.dumps(stack.settings["servers"]))
    entries[1]["environment"] = {f"KNOB_{key.upper()}": str(value) for key, value in knobs.items()}
    return list(entries)


def both_serve(machines: tuple[Machine, Machine], commit: str) -> bool:
    return all(shows(machine, commit) and is_clean(machine) for machine in machines)


def test_a_failure_after_the_canary_switched_is_taken_back_at_once(
    stack: Stack, one: Machine, two: Machine
) -> None:
    before, new = stack.head, stack.commit(text="new")
    # The second one is asked once by the test itself while it is watched.
    process = stack.start(
        "up", "--yes", "--skip-preview", servers=on_second(stack, sick_after=1), rollout={"watch": 3}
    )
    wait_for(lambda: shows(one, new), "the canary", 90)
    wait_for(lambda: shows(two, new), "the second", 60)
    run = stack.end(process)
    ended = time.monotonic()
    run.expect_bad("after the switch", "server two")
    assert quiet(run), run.screen
    assert "was not reached" not in run.screen
    assert both_serve((one, two), before), (one.containers(), two.containers())
    assert time.monotonic() - ended < 5
    # The same commit again, well; and nothing is left to do.
    stack.up().expect_good()
    assert both_serve((one, two), new)
    stack.up().expect_unchanged()


def test_a_gate_that_fails_leaves_no_candidate(stack: Stack, one: Machine, two: Machine) -> None:
    before = stack.head
    stack.commit(text="unwell")
    run = stack.up(servers=on_second(stack, health_status=500)).expect_bad("not healthy on server two")
    assert quiet(run), run.screen
    assert both_serve((one, two), before), (one.containers(), two.containers())
    # And the commit before: nothing of it has changed.
    stack.up(commit=before).expect_good()
    stack.up(commit=before).expect_unchanged()
    assert both_serve((one, two), before)


def test_a_lost_workstation(stack: Stack, one: Machine, two: Machine) -> None:
    """Killed when the canary has switched: it takes its switch back, and the next run ends as declared."""
    before = stack.head
    stack.up().expect_good()
    new = stack.commit(text="lost")
    process = stack.start("up", "--yes", "--skip-preview", rollout={"watch": 3, "confirmTimeout": DEADLINE})
    wait_for(lambda: shows(one, new), "the canary", 90)
    stack.kill(process)
    wait_for(lambda: shows(one, before), "the release before", DEADLINE + 20)
    assert shows(two, before)
    stack.up().expect_good()
    assert both_serve((one, two), new)


def test_servers_in_another_order_and_one_less(stack: Stack, one: Machine, two: Machine) -> None:
    commit = stack.head
    first, second = stack.settings["servers"]
    stack.up(servers=[second, first]).expect_unchanged()
    began = [machine.inspect("parasite")["State"]["StartedAt"] for machine in (one, two)]
    renamed = {**second, "name": "renamed"}
    stack.up(servers=[first, renamed]).expect_good()
    assert both_serve((one, two), commit)
    stack.settings["servers"] = [first, renamed]
    stack.up().expect_unchanged()
    assert [machine.inspect("parasite")["State"]["StartedAt"] for machine in (one, two)] == began
    # One that is gone blocks it, and the error says what to type.
    drop = "-w -{} INPUT -i eth0 -p tcp --dport 22 -j DROP"
    two.sh(f"iptables {drop.format('I')}")
    try:
        run = stack.up(servers=[first]).expect_bad(
            "let Pulumi forget it", "pulumi state delete 'urn:pulumi:live::"
        )
        assert quiet(run), run.screen
        # What it says to type lets the next run go on without that server, where all stays as it was.
        [line] = set(re.findall(r"pulumi (state delete) '(urn:[^']+)'", run.screen))
        stack.pulumi(*line[0].split(), line[1], "--yes").expect_good()
        stack.up(servers=[first]).expect_good()
        assert shows(one, commit)
    finally:
        two.sh(f"iptables {drop.format('D')}")
    assert shows(two, commit)
    # It comes back, and is taken out as one that is there.
    stack.up().expect_good()
    stack.up(servers=[first]).expect_good()
    assert shows(one, commit)
    assert two.containers() == []
    assert one.inspect("parasite")["State"]["StartedAt"] == began[0]
