"""A fleet moves as one: four servers end on one release, whatever fails, is interrupted, killed or switched off."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
import yaml

from tests.live import images
from tests.live.driving import REPOSITORY, Application, Images, Prober, Release
from tests.live.machines import Machine, Room, _descendants, wait_for
from tests.live.project import PORT, Outcome, Project
from tests.live.registry import Registry

DEADLINE = 12
"""Seconds after which a switch that nobody confirmed is taken back in these tests."""
FULL = os.environ.get("ESTEIRA_LIVE_FULL") == "1"
SEED = os.environ.get("ESTEIRA_LIVE_SEED") or str(random.randrange(10**6))

_RUN = """
import json, pathlib, signal, sys
import rehearsal
# Ctrl-C must reach it also where these tests run in the background of a shell.
signal.signal(signal.SIGINT, signal.default_int_handler)
given = json.loads(sys.stdin.readline())
root = pathlib.Path(given.pop("root"))
try:
    rehearsal.carry_out(root, "live", on_line=lambda line: print(line, flush=True), **given)
except rehearsal.RehearsalError as error:
    print(f"error: {error}", flush=True)
    sys.exit(1)
"""


class Run:
    """A rehearsal in a process of its own, as a workstation that can be interrupted and killed."""

    def __init__(self, project: Project) -> None:
        self.lines: list[str] = []
        self.process = subprocess.Popen(
            [sys.executable, "-c", _RUN],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        secrets = {f"esteira:{key}": value for key, value in project.secrets.items() if value is not None}
        given = {
            "root": str(project.root),
            "environ": project.environ,
            "config": secrets,
            "secret_keys": sorted(secrets),
        }
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(given) + "\n")
        self.process.stdin.flush()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))

    def wait_for(self, pattern: str, seconds: float = 60) -> None:
        """Wait until a line has ``pattern``."""
        wait_for(
            lambda: (
                any(re.search(pattern, line) for line in list(self.lines)) or self.process.poll() is not None
            ),
            pattern,
            seconds,
        )
        assert any(re.search(pattern, line) for line in self.lines), "\n".join(self.lines)

    def end_by(self, what: signal.Signals) -> None:
        """End it as a terminal or a job's runner does, or as a power cut: then everything that it started dies too."""
        if what == signal.SIGKILL:
            for pid in [self.process.pid, *_descendants({self.process.pid})]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        else:
            self.process.send_signal(what)
        self.process.wait(60)
        self._reader.join(10)


class Fleet:
    """Four servers with one declaration, and releases whose images are in the registry already: nothing is built."""

    def __init__(self, machines: list[Machine], project: Project, made: Images, registry: Registry) -> None:
        self.machines, self.project = machines, project
        self._made, self._registry = made, registry
        self.images: dict[str, str] = {}
        for machine in machines:
            project.server(machine)
        project.settings |= {
            "strategy": "blueGreen",
            "repository": REPOSITORY,
            "rollout": {"watch": 0.5, "confirmTimeout": DEADLINE},
            "health": {"path": "/health", "interval": 0.2, "startPeriod": 4, "retries": 3},
            "drainTime": 3,
        }
        self.apps = [Application(machine, registry) for machine in machines]
        for app in self.apps:
            app.values["container"] = project.settings["container"]

    def release(self, **knobs: object) -> str:
        """Make a release whose application does this wrong; its commit."""
        variables = [f"KNOB_{key.upper()}={value}" for key, value in knobs.items()]
        commit, image = self._made.tagged(variables)
        self.images[commit] = image
        return commit

    def write(self, commit: str, **over: object) -> None:
        """Write the stack file."""
        settings = {**self.project.settings, "commit": commit, **over}
        (self.project.root / "Pulumi.live.yaml").write_text(
            yaml.safe_dump({"config": {f"esteira:{key}": value for key, value in settings.items()}})
        )

    def begin(self, commit: str, **over: object) -> Run:
        """Begin a run that can be ended from outside."""
        self.write(commit, **over)
        return Run(self.project)

    def up(self, commit: str, **over: object) -> Outcome:
        """Carry the declaration out."""
        return self.project.up(commit=commit, **over)

    def on_server(self, index: int, **knobs: object) -> list[dict[str, Any]]:
        """Return the servers, one of which has an environment that makes its application do wrong."""
        entries = json.loads(json.dumps(self.project.settings["servers"]))
        entries[index]["environment"] = {f"KNOB_{key.upper()}": str(value) for key, value in knobs.items()}
        return list(entries)

    def serving(self) -> list[str | None]:
        """Return the commit that answers on each server."""

        def ask(machine: Machine) -> str | None:
            found = re.match(r"commit ([0-9a-f]{40}) ", str(machine.answers(PORT)))
            return found[1] if found else None

        with ThreadPoolExecutor() as pool:
            return list(pool.map(ask, self.machines))

    def expect_all(self, commit: str, seconds: float = 0) -> None:
        """Check that all servers serve this release, within so many seconds, and that nothing else is left on them."""
        release = Release(self.images[commit], commit)

        def wrong() -> list[str]:
            with ThreadPoolExecutor() as pool:
                left = pool.map(lambda app: app.leftovers(release), self.apps)
                found = [
                    f"{app.machine.name}: {one}"
                    for app, said in zip(self.apps, left, strict=True)
                    for one in said
                ]
            return found + [f"{one} serves" for one in self.serving() if one != commit]

        end = time.monotonic() + seconds
        while found := wrong():
            assert time.monotonic() < end, found
            time.sleep(0.5)

    @contextmanager
    def under_load(self) -> Iterator[list[Prober]]:
        """Ask all servers again and again; none may miss a request."""
        with ExitStack() as stack:
            probers = [stack.enter_context(Prober(machine.host, interval=0.05)) for machine in self.machines]
            yield probers
        for prober in probers:
            prober.expect_no_failure()


@pytest.fixture(scope="module")
def fleet(
    room: Room,
    _machines: list[Machine],
    registry: Registry,
    builder: Machine,
    tmp_path_factory: pytest.TempPathFactory,
) -> Fleet:
    machines = list(_machines)
    for name, number in (("three", 15), ("four", 16)):
        machines.append(room.machine(name, number))

    def prepare(machine: Machine) -> None:
        machine.wait_until_up()
        machine.wipe(keep_images=[images.EDGE, images.base_name(registry)])
        if machine not in _machines:
            images.load(machine, images.EDGE)
            images.pull_base(machine, registry)

    with ThreadPoolExecutor() as pool:
        list(pool.map(prepare, machines))
    project = Project(tmp_path_factory.mktemp("fleet") / "project", registry, builder, REPOSITORY)
    return Fleet(machines, project, Images(builder, registry), registry)


@pytest.fixture(scope="module")
def good(fleet: Fleet) -> str:
    """Give the release that all servers run before each test; what a test brings is taken away again."""
    commit = fleet.release()
    fleet.up(commit).expect_good()
    return commit


@pytest.fixture
def settled(fleet: Fleet, good: str) -> str:
    """Give the release that all servers run."""
    fleet.up(good).expect_good()
    fleet.expect_all(good)
    return good


class TestFailing:
    """One server fails: none is left on the new release."""

    def test_a_gate_fails(self, fleet: Fleet, settled: str) -> None:
        new = fleet.release()
        with fleet.under_load() as probers:
            error = fleet.up(new, servers=fleet.on_server(2, health_status=500)).expect_bad(
                "not healthy", "three"
            )
            assert "warning: Server" not in error
            fleet.expect_all(settled, 3)
        assert [prober.commits for prober in probers] == [[settled]] * 4
        # And the same commit again, well.
        fleet.up(new).expect_good()
        fleet.expect_all(new)

    def test_the_canary_fails_after_its_switch(self, fleet: Fleet, settled: str) -> None:
        with fleet.under_load() as probers:
            fleet.up(fleet.release(), servers=fleet.on_server(0, sick_after=1)).expect_bad(
                "after the switch", "one"
            )
            fleet.expect_all(settled, 3)
        assert [len(prober.commits) for prober in probers] == [3, 1, 1, 1]

    def test_the_last_batch_fails_after_its_switch(self, fleet: Fleet, settled: str) -> None:
        new = fleet.release()
        rollout = {**fleet.project.settings["rollout"], "batchSize": 2}
        with fleet.under_load() as probers:
            failed = fleet.up(new, servers=fleet.on_server(3, sick_after=1), rollout=rollout)
            failed.expect_bad("after the switch", "four")
            fleet.expect_all(settled, 3)
        assert [len(prober.commits) for prober in probers] == [3, 3, 3, 3]
        fleet.up(new).expect_good()
        fleet.expect_all(new)


class TestOrder:
    """What a good rollout does, and in which order."""

    def test_the_canary_alone_first_then_two_then_the_last(
        self, fleet: Fleet, settled: str, record: Callable[[str], None]
    ) -> None:
        new = fleet.release()
        rollout = {**fleet.project.settings["rollout"], "batchSize": 2}
        with fleet.under_load() as probers:
            done = fleet.up(new, rollout=rollout).expect_good()
        fleet.expect_all(new)
        asked = sum(prober.asked for prober in probers)
        record(f"four servers, a canary and batches of 2: {done.seconds:.1f} s, 0 of {asked} requests failed")
        order = [
            name.removeprefix("app-")
            for name in done.resources
            if name.startswith("app-") and "tag" not in name
        ]
        assert set(order[:4]) >= {f"{name}-candidate" for name in ("one", "two", "three", "four")} or order
        switches = [name for name in order if name in {"one", "two", "three", "four"}]
        assert switches[0] == "one"
        assert set(switches[1:3]) == {"two", "three"}
        assert switches[3] == "four"
        assert order.index("four") < min(order.index(f"{name}-confirm") for name in switches)
        # Another order of the servers runs nothing anew on them.
        turned = fleet.up(new, servers=list(reversed(fleet.project.settings["servers"])))
        assert turned.expect_good().shown.count("unchanged: parasite runs commit") == 12
        fleet.expect_all(new)


MOMENTS = {
    "candidate": r"^app-.*-candidate: (pulled|image)",
    "switch": "^app-one: switched to",
    "between": "^app-one: on trial",
    "batch": "^app-(two|three|four): switched to",
    "last": "^app-(two|three|four): on trial",
    "decided": "^app-decision: All 4 servers have switched",
    "confirm": "-confirm: drained",
}
"""When a run is ended: at the first line that it says like this."""


EVERY = [(how, moment) for how in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL) for moment in MOMENTS]


class TestCutOff:
    """The workstation is interrupted or lost: all servers end on one release by themselves, and no request fails."""

    @pytest.mark.timeout(3600)
    def test_at_any_moment(self, fleet: Fleet, good: str, record: Callable[[str], None]) -> None:
        """A lost workstation when it was decided always; of the others one, unless all are wanted."""
        chosen = EVERY
        if not FULL:
            others = [one for one in EVERY if one != (signal.SIGKILL, "decided")]
            chosen = [(signal.SIGKILL, "decided"), random.Random(SEED).choice(others)]
        wrong = [
            said for how, moment in chosen if (said := self.wrong_with(fleet, good, how, moment, record))
        ]
        assert wrong == [], "\n".join(wrong)

    def wrong_with(
        self, fleet: Fleet, good: str, how: signal.Signals, moment: str, record: Callable[[str], None]
    ) -> str:
        """End one run at this moment; what is wrong with what was seen, or an empty text."""
        try:
            record(self.cut_off(fleet, good, how, moment))
        except AssertionError as error:
            said = f"{how.name} at {moment} (seed {SEED}): {error}"
            print(said, flush=True)
            return said
        return ""

    def cut_off(self, fleet: Fleet, before: str, how: signal.Signals, moment: str) -> str:
        """End one run at this moment; what was seen."""
        fleet.up(before).expect_good()
        fleet.expect_all(before, 3)
        new = fleet.release()
        with fleet.under_load():
            run = fleet.begin(new)
            run.wait_for(MOMENTS[moment])
            run.end_by(how)
            ended, alike = time.monotonic(), 0.0
            # Up to the deadline they may differ; from then on they may not.
            while (now := time.monotonic() - ended) < DEADLINE + 5:
                if len(set(fleet.serving())) > 1:
                    alike = now
                time.sleep(0.3)
            found = set(fleet.serving())
            assert len(found) == 1, found
            assert alike < DEADLINE + 2, f"they differed for {alike:.0f} s"
            # The next one ends as declared: the same commit, or the one before.
            following = random.Random(f"{SEED} {how} {moment}").choice([new, before])
            fleet.up(following).expect_good()
        fleet.expect_all(following, 3)
        which = "new" if found == {new} else "old"
        then = "new" if following == new else "old"
        return f"{how.name} at {moment}: all on the {which} release, differed for {alike:.0f} s; then the {then} one"


class TestSwitchedOff:
    """A server cannot be reached any more: before, during the candidates, between the switches, after all of them."""

    def test_before(self, fleet: Fleet, settled: str) -> None:
        """Nothing is begun anywhere."""
        with cut_off(fleet.machines[2]):
            fleet.up(fleet.release(), connectTimeout="2s").expect_bad("server three", "does not answer")
        fleet.expect_all(settled)

    @pytest.mark.parametrize("moment", ["candidate", "between"])
    def test_before_all_have_switched(self, fleet: Fleet, settled: str, moment: str) -> None:
        """The others take it back at once, and are told from the one that was not reached."""
        run = fleet.begin(fleet.release(boot_delay=1), connectTimeout="2s")
        run.wait_for(MOMENTS[moment])
        with cut_off(fleet.machines[3]):
            run.process.wait(120)
            told = "\n".join(run.lines)
            assert "warning: Server four was not reached to take commit" in told
            assert "warning: Server three" not in told
            # This one may be on trial: until its deadline.
            assert fleet.serving()[:3] == [settled] * 3
        wait_for(lambda: fleet.serving() == [settled] * 4, "the release before on all servers", DEADLINE + 15)
        # A candidate on it that nobody could remove goes after candidateLifetime, or with the next run.
        fleet.up(settled).expect_good()
        fleet.expect_all(settled, 3)

    def test_after_all_have_switched(self, fleet: Fleet, settled: str) -> None:
        """The others are confirmed; this one, which cannot read the decision either, takes its switch back."""
        new = fleet.release()
        run = fleet.begin(new, connectTimeout="2s")
        run.wait_for("^app-four: on trial")
        # Its switch is done; no connection is made any more by which it could be confirmed.
        with cut_off(fleet.machines[3], new_connections_only=True):
            run.process.wait(120)
            told = "\n".join(run.lines)
            assert "All 4 servers have switched" in told
            assert "Server four is not confirmed" in told
            assert fleet.serving()[:3] == [new] * 3
            wait_for(lambda: fleet.serving()[3] == settled, "its own taking back", DEADLINE + 15)
        # The next one brings it there.
        fleet.up(new).expect_good()
        fleet.expect_all(new)


@contextmanager
def cut_off(machine: Machine, *, new_connections_only: bool = False) -> Iterator[None]:
    """Let nothing reach this machine but the published ports, and nothing leave it; its connections break at once.

    With ``new_connections_only`` those that there are go on to their end.
    """
    rules = [f"{chain} eth0 -j DROP" for chain in ("INPUT -i", "OUTPUT -o")]
    if new_connections_only:
        rules = [f"{chain} eth0 -p tcp --syn -j DROP" for chain in ("INPUT -i", "OUTPUT -o")]
    else:
        # The sessions' processes end, so that the other end hears of it; the commands that they started go on.
        machine.sh("pkill -KILL -P $(cat /run/sshd.pid) 2>/dev/null; sleep 0.1")
    machine.sh("; ".join(f"iptables -w -I {rule}" for rule in rules))
    try:
        yield
    finally:
        machine.sh("; ".join(f"iptables -w -D {rule}" for rule in rules))
