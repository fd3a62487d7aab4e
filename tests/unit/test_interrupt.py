"""When a resource fails the engine interrupts the program; its tracebacks must not bury the error just shown."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from components.errors import EsteiraError
from components.interrupt import told_to_the_engine

ROOT = Path(__file__).resolve().parents[2]


class TestLeaveGarbage:
    """What a short program holds is not walked again and again: not while it loads, and not at its end."""

    def test_at_the_end_nothing_is_left_to_walk(self) -> None:
        text = (
            "import atexit, gc\n"
            "atexit.register(lambda: print(gc.isenabled(), gc.get_freeze_count() > 1000))\n"
            "from components.interrupt import leave_garbage\n"
            "leave_garbage()\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", text], capture_output=True, text=True, cwd=ROOT, timeout=60, check=False
        )
        assert (done.returncode, done.stdout) == (0, "False True\n")


class TestEndQuietly:
    """The program ends at once, says nothing, and leaves the exit status of an interrupted one."""

    def interrupted(self, waiting: str) -> subprocess.CompletedProcess[str]:
        text = (
            "import asyncio, os, signal, threading, time\n"
            "from components.interrupt import end_quietly\n"
            "end_quietly()\n"
            "threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)).start()\n"
            f"{waiting}\n"
            "print('went on')\n"
        )
        return subprocess.run(
            [sys.executable, "-c", text], capture_output=True, text=True, cwd=ROOT, timeout=60, check=False
        )

    def test_while_it_waits(self) -> None:
        done = self.interrupted("time.sleep(10)")
        assert (done.returncode, done.stdout, done.stderr) == (130, "", "")

    def test_in_the_event_loop(self) -> None:
        done = self.interrupted("asyncio.run(asyncio.sleep(10))")
        assert done.stdout == ""
        assert "Traceback" not in done.stderr

    def test_nothing_else_is_taken_over(self) -> None:
        text = (
            "import signal\n"
            "before = signal.getsignal(signal.SIGTERM)\n"
            "from components.interrupt import end_quietly\n"
            "end_quietly()\n"
            "print(signal.getsignal(signal.SIGTERM) is before)\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", text], capture_output=True, text=True, cwd=ROOT, check=False
        )
        assert done.stdout == "True\n"
        assert signal.getsignal(signal.SIGINT) is not signal.SIG_IGN


class TestToldToTheEngine:
    """The cause is the last thing on the screen: the engine adds nothing under an error that was shown already."""

    def test_under_the_engine_s_host_it_is_shown_and_ends_as_shown(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        said: list[str] = []
        monkeypatch.setattr(sys, "orig_argv", ["python", "/somewhere/pulumi-language-python-exec", "."])
        monkeypatch.setattr("pulumi.log.error", said.append)
        with pytest.raises(SystemExit) as ended, told_to_the_engine():
            raise EsteiraError("This is wrong. Do that.")
        assert ended.value.code == 32
        assert said == ["This is wrong. Do that."]

    def test_elsewhere_it_is_raised(self) -> None:
        with pytest.raises(EsteiraError), told_to_the_engine():
            raise EsteiraError("This is wrong. Do that.")
