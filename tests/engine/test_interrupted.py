"""Runs that fail or end in the middle: no traceback, the old release serving, and a next `up` that ends declared."""

from __future__ import annotations

import contextlib
import time
from functools import partial
from pathlib import Path

import pytest

from tests.engine.stack import Run, Stack, shows
from tests.live.machines import Machine, _descendants, wait_for


def is_clean(machine: Machine) -> bool:
    """Tell whether only one release and its edge run, and nothing unproven is there."""
    names = machine.containers("status=running")
    return sorted(names) == ["parasite", "parasite-edge"] and not any(
        "candidate" in name for name in machine.containers()
    )


def quiet(run: Run) -> bool:
    """Tell whether a run showed nothing of Python's insides."""
    return not any(word in run.screen for word in ("Traceback", "KeyboardInterrupt", "asyncio", "grpc"))


def program_runs(cli: int) -> bool:
    """Tell whether the stack's program, below the CLI's process, is past its first lines."""
    for pid in _descendants({cli}):
        with contextlib.suppress(OSError):
            if "pydantic_core" in Path(f"/proc/{pid}/maps").read_text():
                return True
    return False


def candidate_runs(machine: Machine) -> bool:
    """Tell whether a candidate has been started."""
    return any("candidate" in name for name in machine.containers("status=running"))


class TestQuiet:
    """However it ends, the program says nothing that buries the cause."""

    def test_a_failing_resource_again_and_again(self, stack: Stack, one: Machine) -> None:
        good = stack.head
        stack.commit(exit_with=3, text="no database")
        for _ in range(3):
            run = stack.up().expect_bad("exit code 3", "no database")
            assert quiet(run), run.screen
            assert shows(one, good)
        stack.commit()

    def test_ctrl_c_at_any_moment(self, stack: Stack, one: Machine) -> None:
        served = one.answers(8888)
        for tenths in (0, 2, 5, 10, 20, 30):
            stack.commit(boot_delay=2)
            process = stack.start("up", "--yes", "--skip-preview")
            wait_for(partial(program_runs, process.pid), "the program", 60)
            time.sleep(tenths / 10)
            stack.interrupt(process)
            run = stack.end(process)
            assert run.status != 0, run.screen
            assert quiet(run), run.screen
        assert one.answers(8888) == served

    def test_ctrl_c_before_the_program_has_begun(self, stack: Stack, one: Machine) -> None:
        """Then Python may still be loading Pulumi's own package, whose traceback nobody can keep from being shown."""
        served = one.answers(8888)
        for tenths in (0, 3, 6):
            process = stack.start("up", "--yes", "--skip-preview")
            time.sleep(tenths / 10)
            stack.interrupt(process)
            assert stack.end(process).status != 0
        assert one.answers(8888) == served
        stack.up().expect_good()
        assert shows(one, stack.head)

    def test_a_failing_program(self, stack: Stack) -> None:
        run = stack.pulumi("preview", commit="0" * 40).expect_bad("has no image")
        assert quiet(run)
        assert "unhandled error" not in run.screen


class TestCutOff:
    """The workstation is lost while a server works."""

    @pytest.mark.parametrize("then", ["the same commit", "the one before"])
    def test_the_next_up_ends_declared_and_clean(self, stack: Stack, one: Machine, then: str) -> None:
        before = stack.commit(text=then)
        stack.up().expect_good()
        after = stack.commit(boot_delay=1)
        process = stack.start("up", "--yes", "--skip-preview")
        wait_for(lambda: candidate_runs(one), "a candidate", 60)
        stack.kill(process)
        assert shows(one, before)
        wanted = after if then == "the same commit" else before
        stack.up(commit=wanted).expect_good()
        assert shows(one, wanted)
        assert is_clean(one), one.containers()
        stack.up(commit=wanted).expect_unchanged()
