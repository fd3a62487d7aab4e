"""What cli/ci.py rests on, seen on the real engine: when a run writes its event log, and what a killed one leaves."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli import ci
from cli.engine import Missing, find

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = "import time\nfrom pathlib import Path\nwhile not Path('go').exists(): time.sleep(0.1)\n"


class Stack:
    """A project with a program that waits for a file `go`, on a file backend."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = root
        (root / "state").mkdir()
        (root / "Pulumi.yaml").write_text(
            f"name: lock\nruntime: {{name: python, options: {{virtualenv: {sys.prefix}}}}}\n"
        )
        (root / "__main__.py").write_text(PROGRAM)
        monkeypatch.setenv("PULUMI_BACKEND_URL", f"file://{root}/state")
        monkeypatch.setenv("PULUMI_CONFIG_PASSPHRASE", "x")
        monkeypatch.setenv("PULUMI_SKIP_UPDATE_CHECK", "true")
        subprocess.run(["pulumi", "stack", "init", "s"], cwd=root, check=True, capture_output=True)

    def start(self) -> subprocess.Popen[bytes]:
        """Start a job, and wait until it holds the lock."""
        code = (
            "import sys; from pathlib import Path; from cli import ci; "
            f"sys.exit(ci.up(Path({str(self.root)!r}), 's'))"
        )
        job = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.DEVNULL)
        for _ in range(1200):
            if ci._log(self.root, "s").exists():
                return job
            time.sleep(0.1)
        raise AssertionError("the job does not start")

    def locks(self) -> int:
        return len(list((self.root / "state/.pulumi/locks").rglob("*.json")))

    def unlock(self) -> None:
        ci.unlock(self.root, "s", os.environ)


@pytest.fixture
def stack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stack]:
    if shutil.which("pulumi") is None or isinstance(find(ROOT, install=False), Missing):
        pytest.skip("there is no pulumi that is new enough")
    made = Stack(tmp_path, monkeypatch)
    yield made
    (tmp_path / "go").touch()
    for process in ci._runs(ci._log(tmp_path, "s")):
        os.kill(process, signal.SIGKILL)


def test_a_killed_job_leaves_a_lock_which_is_given_back(stack: Stack) -> None:
    job = stack.start()
    job.kill()
    for process in ci._runs(ci._log(stack.root, "s")):
        os.kill(process, signal.SIGKILL)
    job.wait()
    assert stack.locks() == 1
    stack.unlock()
    assert stack.locks() == 0


def test_a_job_that_was_refused_takes_no_lock_away(stack: Stack) -> None:
    holder = subprocess.Popen(
        ["pulumi", "up", "--yes", "--skip-preview", "--stack", "s"], cwd=stack.root, stdout=subprocess.DEVNULL
    )
    for _ in range(1200):
        if (stack.root / "state/.pulumi/locks").exists() and stack.locks():
            break
        time.sleep(0.1)
    assert ci.up(stack.root, "s") != 0
    # As if it had been killed at that very moment: the note is there, the log is not.
    ci._note(stack.root, "s").touch()
    stack.unlock()
    assert stack.locks() == 1
    (stack.root / "go").touch()
    assert holder.wait(timeout=120) == 0
