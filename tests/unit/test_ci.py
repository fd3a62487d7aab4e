"""A cancelled job gives its own lock back, and never another's."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cli import ci
from components.errors import EsteiraError

# In place of the CLI: takes the lock (a folder), says so in the log, waits, gives it back; refused without a log. What
# it says of a lock is word for word the real one's (tests/engine/test_backends.py).
PULUMI = """#!/bin/sh
lock=$PWD/lock log=
case $1 in
  cancel) rm -r "$lock"; exit ;;
  whoami) cat whoami; exit ;;
  stack)
    [ -e lock ] || { echo "error: a stack named $3 already exists" >&2; exit 255; }
    echo "error: the stack is currently locked by 1 lock(s). Either wait for the other process(es) to end" >&2
    sed 's,^,  s3://state/.pulumi/locks/x.json: created by ,' lock/holder >&2
    exit 255 ;;
esac
while [ $# -gt 0 ]; do [ "$1" = --event-log ] && log=$2; shift; done
mkdir "$lock" 2>/dev/null || exit 255
echo "ci@$(uname -n) (pid $$) at $(date -u +%FT%TZ)" >"$lock/holder"
echo '{"preludeEvent": {}}' >"$log"
trap 'touch stopped; echo "{\\"cancelEvent\\": {}}" >>"$log"; rm -r "$lock"; exit 1' INT
while [ ! -e go ]; do sleep 0.05; done
echo '{"cancelEvent": {}}' >>"$log"
[ -e die ] && kill -9 $$
rm -r "$lock"
exit $(cat status 2>/dev/null || echo 0)
"""
STATE = {"PULUMI_BACKEND_URL": "s3://state"}
CLOUD = {"PULUMI_BACKEND_URL": "https://api.pulumi.example.com"}


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
        assert list((tmp_path / ".esteira/ci").iterdir()) == []
        ci.unlock(tmp_path, "s", STATE, pulumi)

    def test_a_run_that_still_lives_is_stopped_first(self, tmp_path: Path, pulumi: str) -> None:
        kill(started(tmp_path, pulumi), tmp_path, engine=False)
        ci.unlock(tmp_path, "s", STATE, pulumi)
        assert (tmp_path / "stopped").exists()
        assert not (tmp_path / "lock").exists()

    def test_a_run_that_was_killed_while_it_gave_it_back(self, tmp_path: Path, pulumi: str) -> None:
        (tmp_path / "go").touch()
        (tmp_path / "die").touch()
        assert ci.up(tmp_path, "s", pulumi) == 128 + signal.SIGKILL
        ci.unlock(tmp_path, "s", STATE, pulumi)
        assert not (tmp_path / "lock").exists()

    def test_a_run_that_was_killed_before_it_said_that_it_had_it(self, tmp_path: Path, pulumi: str) -> None:
        kill(started(tmp_path, pulumi), tmp_path, engine=True)
        (tmp_path / ".esteira/ci/s.events.json").unlink()
        ci.unlock(tmp_path, "s", STATE, pulumi)
        assert not (tmp_path / "lock").exists()

    @pytest.mark.parametrize(
        "change",
        [
            lambda line: line.replace("(pid ", "(pid 1"),
            lambda line: line.replace(f"@{socket.gethostname()} ", "@elsewhere "),
            lambda line: re.sub("at 20..", "at 2020", line),
        ],
        ids=["another process", "another machine", "before this job"],
    )
    def test_a_lock_that_came_after_it_is_anothers(
        self, tmp_path: Path, pulumi: str, change: Callable[[str], str], capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Somebody took this job's away, and deploys; the job's note is still there."""
        kill(started(tmp_path, pulumi), tmp_path, engine=True)
        holder = tmp_path / "lock/holder"
        holder.write_text(change(holder.read_text()))
        ci.unlock(tmp_path, "s", STATE, pulumi)
        assert (tmp_path / "lock").exists()
        assert "locked by another run: process " in capsys.readouterr().out

    def test_with_anothers_beside_it_both_stay(
        self, tmp_path: Path, pulumi: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        kill(started(tmp_path, pulumi), tmp_path, engine=True)
        monkeypatch.setattr(time, "sleep", lambda _: None)
        with (tmp_path / "lock/holder").open("a") as file:
            file.write("ana@desk (pid 7) at 2026-11-26T17:52:45Z\n")
        ci.unlock(tmp_path, "s", STATE, pulumi)
        assert (tmp_path / "lock").exists()

    @pytest.mark.parametrize("text", ["", "1795715602.5\n"])
    def test_a_job_that_started_nothing(self, tmp_path: Path, pulumi: str, text: str) -> None:
        (tmp_path / ".esteira/ci").mkdir(parents=True)
        (tmp_path / ".esteira/ci/s.running").write_text(text)
        (tmp_path / "lock").mkdir()
        (tmp_path / "lock/holder").write_text("ana@desk (pid 7) at 2026-11-26T17:52:45+02:00\n")
        ci.unlock(tmp_path, "s", STATE, pulumi)
        assert (tmp_path / "lock").exists()

    def test_the_backend_may_be_named_elsewhere(self, tmp_path: Path, pulumi: str) -> None:
        kill(started(tmp_path, pulumi), tmp_path, engine=True)
        (tmp_path / "whoami").write_text('{"user": "ci", "url": "postgres://db/pulumi"}')
        (tmp_path / ".esteira/ci/s.events.json").unlink()  # a lease would be left alone
        ci.unlock(tmp_path, "s", {}, pulumi)
        assert not (tmp_path / "lock").exists()

    def test_no_password_in_the_error(self, tmp_path: Path, pulumi: str) -> None:
        kill(started(tmp_path, pulumi), tmp_path, engine=True)
        program = tmp_path / "refused"
        program.write_text("#!/bin/sh\necho 'error: no \"postgres://ci:hush@db/pulumi\"' >&2; exit 255\n")
        program.chmod(0o755)
        with pytest.raises(EsteiraError, match="could not be given free") as raised:
            ci.unlock(tmp_path, "s", STATE, str(program))
        assert "hush" not in str(raised.value)
        assert "****@db/pulumi" in str(raised.value)
        assert (tmp_path / ".esteira/ci/s.running").exists(), "it can be tried again"


class TestLease:
    """Pulumi Cloud's: only one that cannot be anybody else's is ended."""

    @pytest.mark.parametrize("environ", [CLOUD, {}])
    def test_of_a_run_that_was_just_killed(
        self, tmp_path: Path, pulumi: str, environ: dict[str, str]
    ) -> None:
        kill(started(tmp_path, pulumi), tmp_path, engine=True)
        (tmp_path / "whoami").write_text('{"user": "ci", "url": "https://app.pulumi.example.com/ci"}')
        ci.unlock(tmp_path, "s", environ, pulumi)
        assert not (tmp_path / "lock").exists()

    def test_later_it_may_be_anothers(self, tmp_path: Path, pulumi: str) -> None:
        kill(started(tmp_path, pulumi), tmp_path, engine=True)
        note = tmp_path / ".esteira/ci/s.running"
        before = note.stat().st_mtime - ci.LEASE_SECONDS - 1
        os.utime(note, (before, before))
        ci.unlock(tmp_path, "s", CLOUD, pulumi)
        assert (tmp_path / "lock").exists()

    def test_one_that_was_refused(self, tmp_path: Path, pulumi: str) -> None:
        kill(started(tmp_path, pulumi), tmp_path, engine=True)
        (tmp_path / ".esteira/ci/s.events.json").unlink()
        ci.unlock(tmp_path, "s", CLOUD, pulumi)
        assert (tmp_path / "lock").exists()

    def test_one_that_was_over(self, tmp_path: Path, pulumi: str) -> None:
        (tmp_path / "go").touch()
        (tmp_path / "die").touch()
        ci.up(tmp_path, "s", pulumi)
        ci.unlock(tmp_path, "s", CLOUD, pulumi)
        assert (tmp_path / "lock").exists()

    def test_a_run_is_seen_alive(self, tmp_path: Path, pulumi: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(ci, "_SEEN_SECONDS", 0.1)
        note = tmp_path / ".esteira/ci/s.running"
        ended: list[int] = []
        job = threading.Thread(target=lambda: ended.append(ci._wait(process, note)))
        note.parent.mkdir(parents=True)
        note.touch()
        os.utime(note, (1, 1))
        with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as process:
            job.start()
            for _ in range(200):
                if note.stat().st_mtime > 1:
                    break
                time.sleep(0.05)
        job.join()
        assert ended == [0]
        assert note.stat().st_mtime > time.time() - 60
