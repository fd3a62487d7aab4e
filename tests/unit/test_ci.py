"""A cancelled job gives its own lock back, and never another's."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cli import ci

# In place of the CLI: takes the lock (a folder), says so in the log, waits, gives it back; refused without a log.
PULUMI = """#!/bin/sh
lock=$PWD/lock log=
[ "$1" = cancel ] && { rmdir "$lock"; exit; }
while [ $# -gt 0 ]; do [ "$1" = --event-log ] && log=$2; shift; done
mkdir "$lock" 2>/dev/null || exit 255
echo '{"preludeEvent": {}}' >"$log"
trap 'touch stopped; echo "{\\"cancelEvent\\": {}}" >>"$log"; rmdir "$lock"; exit 1' INT
while [ ! -e go ]; do sleep 0.05; done
echo '{"cancelEvent": {}}' >>"$log"
[ -e die ] && kill -9 $$
rmdir "$lock"
exit $(cat status 2>/dev/null || echo 0)
"""
STATE = {"PULUMI_BACKEND_URL": "s3://state"}


@pytest.fixture
def pulumi(tmp_path: Path) -> str:
    """Make the program."""
    program = tmp_path / "pulumi"
    program.write_text(PULUMI)
    program.chmod(0o755)
    return str(program)


def started(root: Path, pulumi: str) -> subprocess.Popen[bytes]:
    """Start a job, and wait until it holds the lock."""
    code = (
        "import sys; from pathlib import Path; from cli import ci; "
        f"sys.exit(ci.up(Path({str(root)!r}), 's', {pulumi!r}))"
    )
    job = subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).resolve().parents[2])
    for _ in range(1200):
        if (root / ".esteira/ci/s.events.json").exists():
            return job
        time.sleep(0.05)
    raise AssertionError("the job does not start")


def kill(job: subprocess.Popen[bytes], root: Path, *, engine: bool) -> None:
    job.kill()
    job.wait()
    if engine:
        for process in ci._runs(root / ".esteira/ci/s.events.json"):
            os.kill(process, signal.SIGKILL)
        time.sleep(0.1)


class TestUp:
    """A run that ends by itself leaves nothing to be given free."""

    @pytest.mark.parametrize("status", [0, 1, 255])
    def test_its_status(self, tmp_path: Path, pulumi: str, status: int) -> None:
        (tmp_path / "go").touch()
        (tmp_path / "status").write_text(str(status))
        assert ci.up(tmp_path, "s", pulumi) == status
        assert list((tmp_path / ".esteira/ci").iterdir()) == []

    def test_a_stack_of_an_organisation(self, tmp_path: Path, pulumi: str) -> None:
        (tmp_path / "go").touch()
        assert ci.up(tmp_path, "team/parasite/prod", pulumi) == 0
        assert list((tmp_path / ".esteira/ci").iterdir()) == []

    def test_a_cancelled_job_stops_pulumi_in_order(self, tmp_path: Path, pulumi: str) -> None:
        job = started(tmp_path, pulumi)
        job.terminate()
        assert job.wait(timeout=60) == 1
        assert (tmp_path / "stopped").exists()
        assert list((tmp_path / ".esteira/ci").iterdir()) == []


class TestUnlock:
    """Only what this job held."""

    def test_after_a_run_that_ended_nothing_is_done(self, tmp_path: Path, pulumi: str) -> None:
        (tmp_path / "go").touch()
        ci.up(tmp_path, "s", pulumi)
        (tmp_path / "lock").mkdir()
        ci.unlock(tmp_path, "s", STATE, pulumi)
        assert (tmp_path / "lock").exists()

    def test_a_killed_run_is_given_free(self, tmp_path: Path, pulumi: str) -> None:
        kill(started(tmp_path, pulumi), tmp_path, engine=True)
        assert (tmp_path / "lock").exists()
        ci.unlock(tmp_path, "s", STATE, pulumi)
        assert not (tmp_path / "lock").exists()
        ci.unlock(tmp_path, "s", STATE, pulumi)

    def test_a_run_that_still_lives_is_stopped_first(self, tmp_path: Path, pulumi: str) -> None:
        kill(started(tmp_path, pulumi), tmp_path, engine=False)
        ci.unlock(tmp_path, "s", STATE, "false")  # `false cancel` would fail
        assert (tmp_path / "stopped").exists()

    def test_a_lock_that_was_refused_is_anothers(self, tmp_path: Path, pulumi: str) -> None:
        (tmp_path / ".esteira/ci").mkdir(parents=True)
        (tmp_path / ".esteira/ci/s.running").touch()
        (tmp_path / "lock").mkdir()
        ci.unlock(tmp_path, "s", STATE, pulumi)
        assert (tmp_path / "lock").exists()

    def test_a_run_that_was_over_may_have_given_it_back(self, tmp_path: Path, pulumi: str) -> None:
        (tmp_path / "go").touch()
        (tmp_path / "die").touch()
        assert ci.up(tmp_path, "s", pulumi) == 128 + signal.SIGKILL
        ci.unlock(tmp_path, "s", STATE, pulumi)
        assert (tmp_path / "lock").exists()

    @pytest.mark.parametrize("environ", [{}, {"PULUMI_BACKEND_URL": "https://pulumi.example.com"}])
    def test_pulumi_clouds_lease_ends_by_itself(
        self, tmp_path: Path, pulumi: str, environ: dict[str, str]
    ) -> None:
        kill(started(tmp_path, pulumi), tmp_path, engine=True)
        ci.unlock(tmp_path, "s", environ, pulumi)
        assert (tmp_path / "lock").exists()
