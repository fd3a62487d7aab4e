"""A deployment is killed at every one of its docker commands: what served serves on, and the next run ends clean.

The same where one of its docker commands fails.

The whole matrix (every command, in four ways, nine kinds of deployment) takes hours and runs with ESTEIRA_LIVE_FULL=1;
without it a sample drawn anew at each run, which ESTEIRA_LIVE_SEED repeats.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import paramiko
import pytest

from tests.live.driving import PORT, Application, Images, Prober, Release, shown
from tests.live.machines import wait_for

FULL = os.environ.get("ESTEIRA_LIVE_FULL") == "1"
SEED = os.environ.get("ESTEIRA_LIVE_SEED") or str(random.randrange(10**6))
SAMPLE = 3
"""Cut-offs of each kind of deployment in a run that is not the whole matrix."""
WAYS = ("before", "during", "after", "refuse")
"""The run is killed before the command, in it or after it; or this one command finds no daemon, and the next one does:
that is no answer about any container."""


@dataclass
class Scenario:
    """A kind of deployment: it brings ``target`` while ``serving`` serves."""

    app: Application
    images: Images
    serving: Release | None = None
    target: Release | None = None
    dark: bool = False
    """Nothing serves before, so requests fail until the next run."""

    def prepare(self) -> None:
        """Make the state from which the deployment starts."""
        raise NotImplementedError

    def again(self) -> None:
        """After a surprise: everything as at the first time."""
        self.app.engine.clear()
        self.serving = None

    def settled_on(self, release: Release) -> None:
        """Note which release serves now."""
        self.serving = release

    def target_works(self) -> bool:
        return True

    def deploy(self, release: Release) -> str:
        """Run it to its end; what is wrong with how it ended, or an empty text."""
        done = self.app.deploy(release)
        good = release is not self.target or self.target_works()
        if (done[-1].status == 0) != good:
            return shown(done)
        return ""


class First(Scenario):
    """The first deployment: the edge is made."""

    def prepare(self) -> None:
        self.app.engine.clear()
        self.serving, self.target, self.dark = None, Release(self.images.make()), True


class Update(Scenario):
    """A new commit, whose image is pulled."""

    def prepare(self) -> None:
        if self.serving is None:
            self.serving = Release(self.images.make())
            self.app.up(self.serving)
        self.target = Release(self.images.make())


class Rollback(Scenario):
    """A release that is kept on the server serves again."""

    kept: Release | None = None

    def prepare(self) -> None:
        if self.serving is None:
            self.kept, self.serving = Release(self.images.make()), Release(self.images.make())
            self.app.up(self.kept)
            self.app.up(self.serving)
        assert self.kept is not None
        self.target = self.kept

    def settled_on(self, release: Release) -> None:
        if release is self.kept:
            self.kept = self.serving
        self.serving = release


class Failing(Update):
    """A release that never gets healthy."""

    knobs: dict[str, object] = {"health_status": 500}  # noqa: RUF012 - of the class

    def prepare(self) -> None:
        super().prepare()
        self.target = Release(self.images.make(), knobs=self.knobs)

    def target_works(self) -> bool:
        return False


class Sick(Failing):
    """A release that falls ill when it is asked for the first time: after the switch."""

    knobs = {"sick_after": 1}  # noqa: RUF012


class Adopt(First):
    """A container of the old procedure is taken over; it serves until the gap."""

    def prepare(self) -> None:
        super().prepare()
        self.app.run_as_the_procedure(self.images.make())


class Recreate(Update):
    """The other strategy, which has a gap."""

    def prepare(self) -> None:
        self.app.values["strategy"] = "recreate"
        super().prepare()
        self.dark = True


class Trial(Update):
    """One of several servers, whose switch is on trial until it is confirmed."""

    def prepare(self) -> None:
        if len(self.app.values["servers"]) == 1:
            self.app.one_of_several(20)
        super().prepare()


class RecreateTrial(Trial):
    """The same with the strategy that has a gap."""

    def prepare(self) -> None:
        self.app.values["strategy"] = "recreate"
        super().prepare()
        self.dark = True


KINDS = {
    "first": First,
    "update": Update,
    "rollback": Rollback,
    "failing": Failing,
    "sick": Sick,
    "adopt": Adopt,
    "recreate": Recreate,
    "trial": Trial,
    "recreate-trial": RecreateTrial,
}


def cut(scenario: Scenario, number: int, how: str, wait: float, only: str = "") -> str:
    """Deploy and cut off at the ``number``-th docker command; at which it was, empty if it ended before.

    ``only``: how the commands begin that are counted.
    """
    app = scenario.app
    assert scenario.target is not None
    with app.cut(number, how, wait, only) as at:
        for phase in app.phases(scenario.target):
            done = app.run(phase, scenario.target)
            if at():
                assert done.status in {-signal.SIGKILL, 0, 1}, done.shown
            # A command that failed may have been one that can do so: then the deployment goes on.
            if done.status != 0 or (at() and how != "refuse"):
                break
    return at()


def lose(scenario: Scenario, number: int, how: str, _wait: float) -> str:
    """Deploy and lose the client at the ``number``-th docker command; at which it was, empty if it ended before."""
    app = scenario.app
    assert scenario.target is not None
    lost = lose_pipe if how == "pipe" else lose_ssh
    with app.cut(number, "hold") as at:
        return next(
            (at() for phase in app.phases(scenario.target) if lost(app, phase, scenario.target, at)), ""
        )


def lose_pipe(app: Application, phase: str, release: Release, at: Callable[[], str]) -> bool:
    """Read no more of what the run says."""
    process = app.start(*app.phase(phase, release))
    wait_for(lambda: at() or process.poll() is not None, "the docker command", 60)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    process.stderr.close()
    app.go_on()
    process.wait(60)
    return at() != ""


def lose_ssh(app: Application, phase: str, release: Release, at: Callable[[], str]) -> bool:
    """End the connection without a word."""
    text, stdin = app.phase(phase, release)
    with paramiko.SSHClient() as client:
        client.set_missing_host_key_policy(paramiko.AutoAddPolicy())
        client.connect(app.machine.host, username="root", password=app.machine.password)
        to, said, _ = client.exec_command(text)
        to.write(stdin)
        to.channel.shutdown_write()
        wait_for(lambda: at() or said.channel.exit_status_ready(), "the docker command", 60)
        transport = client.get_transport()
        assert transport is not None
        transport.sock.close()
    app.go_on()
    wait_for(lambda: not any(app.held(lock) for lock in app.locks()), "the end of the lost run", 60)
    return at() != ""


def one_case(
    scenario: Scenario,
    number: int,
    how: str,
    following: str,
    *,
    wait: float,
    end: Callable[[Scenario, int, str, float], str] = cut,
) -> tuple[str, list[str]]:
    """Cut off, look, run the next one; (docker command at which it was cut off, what is wrong)."""
    app = scenario.app
    scenario.prepare()
    before, target = scenario.serving, scenario.target
    assert target is not None
    wrong: list[str] = []
    with Prober(app.machine.host) as prober:
        at = end(scenario, number, how, wait)
        time.sleep(0.1)
        following_release = target if following == "same" or before is None else before
        said = scenario.deploy(following_release)
        time.sleep(0.1)
    if said:
        wrong.append(f"the next run ended in another way than it should:\n{said}")
    settled = following_release if following_release is not target or scenario.target_works() else before
    if prober.failures and not scenario.dark:
        wrong.append(f"{len(prober.failures)} of {prober.asked} requests failed: {prober.failures[0][1]}")
    if settled is not None:
        wrong += app.leftovers(settled)
        difference = app.difference(settled)
        if difference:
            wrong.append(f"a preview says: {difference}")
        if f"commit {settled.commit} " not in str(app.machine.answers(PORT)):
            wrong.append("another release answers")
        scenario.settled_on(settled)
    return at, wrong


def cases(kind: str, count: int, ways: Sequence[str]) -> Iterator[tuple[int, str, str, float]]:
    """Yield (n-th command, how, which run follows, seconds into the command): all, or a sample."""
    chance = random.Random(f"{SEED} {kind}")
    every = [
        # Each command is cut off at least once in front of each of the two runs that may follow.
        (number, how, ("same", "previous")[(place + (number if how == "during" else 0)) % 2])
        for number in range(1, count + 1)
        for place, how in enumerate(ways)
    ]
    for number, how, following in (
        every if FULL else chance.sample(every, SAMPLE if len(ways) == len(WAYS) else 2)
    ):
        yield number, how, following, chance.choice((0.005, 0.02, 0.05))


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", KINDS)
def test_killed(kind: str, app: Application, app_images: Images, record: Callable[[str], None]) -> None:
    """The whole session, at each docker command; or that command alone is refused."""
    run_all(kind, app, app_images, record, ways=WAYS, end=cut)


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", ["first", "update", "rollback", "failing", "trial"])
def test_client_lost(kind: str, app: Application, app_images: Images, record: Callable[[str], None]) -> None:
    """The program goes on to a good end, or undoes what it did, and then ends."""
    run_all(kind, app, app_images, record, ways=("pipe", "ssh"), end=lose)


@pytest.mark.parametrize("strategy", ["blueGreen", "recreate"])
def test_a_release_that_is_still_ending_is_none_that_runs(
    strategy: str, app: Application, app_images: Images
) -> None:
    """Cut off while the release before finishes its work: declared again, it is not taken for one that serves."""
    app.values["strategy"] = strategy
    app.values["rollout"] = {"watch": 0}
    before, new = Release(app_images.make(), knobs={"stop_delay": 4}), Release(app_images.make())
    app.up(before)
    with app.cut(1, "after", only="kill --signal") as at:
        for phase in app.phases(new):
            app.run(phase, new)
    assert at().startswith("kill --signal"), "it was not cut off"
    said = app.up(before)
    assert "stopped what a run that was cut off had told to stop" in said
    time.sleep(5)
    app.expect_settled(before)


@pytest.mark.parametrize("following", ["same", "previous"])
@pytest.mark.parametrize("kind", ["trial", "rollback"])
def test_between_two_names(kind: str, following: str, app: Application, app_images: Images) -> None:
    """For a moment nothing has the serving name; what was switched to serves, and the edge stays."""
    scenario = KINDS[kind](app, app_images)
    scenario.prepare()
    at, wrong = one_case(scenario, 1, "after", following, wait=0, end=at_the_first_rename)
    assert at.startswith("rename")
    assert not wrong, "\n".join(wrong)


def at_the_first_rename(scenario: Scenario, number: int, how: str, _wait: float) -> str:
    """Cut off as `cut` does, counting only the commands that give a container another name."""
    return cut(scenario, number, how, 0, only="rename")


def run_all(
    kind: str,
    app: Application,
    app_images: Images,
    record: Callable[[str], None],
    *,
    ways: Sequence[str],
    end: Callable[[Scenario, int, str, float], str],
) -> None:
    """Run the cases of one kind of deployment, and report them together."""
    app.values["preDeploy"] = "true"
    scenario = KINDS[kind](app, app_images)
    scenario.prepare()
    app.count()
    assert scenario.target is not None
    with Prober(app.machine.host):
        assert scenario.deploy(scenario.target) == ""
    count = len(app.count())
    if scenario.target_works():
        scenario.settled_on(scenario.target)
    failed, done = [], 0
    started = time.monotonic()
    for number, how, following, wait in cases(f"{kind} {ways}", count, ways):
        at, wrong = one_case(scenario, number, how, following, wait=wait, end=end)
        done += 1
        if wrong:
            told = f"{how} command {number} (docker {at[:90]}), then the {following} commit: " + "; ".join(
                wrong
            )
            failed.append(told)
            print(told, flush=True)
            scenario.again()
    every = len(ways) * count
    told = f"all {done}" if FULL else f"{done} of {every} (seed {SEED}; ESTEIRA_LIVE_FULL=1 for all)"
    record(
        f"{kind}, {'/'.join(ways)}: cut off at {told} places of {count} docker commands, {len(failed)} with a fault, "
        f"{time.monotonic() - started:.0f} s"
    )
    assert not failed, "\n".join(failed)
