"""The pipeline's commands with every backend that keeps its state in files, on the real engine: docs/backends.md.

What a killed job leaves, what the next one finds, and that a lock which is alive stays.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cli import ci
from tests.engine import backends
from tests.engine.backends import Backend
from tests.engine.stack import PASSPHRASE, Stack, shows
from tests.live import images
from tests.live.machines import Machine, Room, _descendants, wait_for
from tests.live.project import REPOSITORY
from tests.live.registry import Registry

PROGRAM = "import time\nfrom pathlib import Path\nwhile not Path('go').exists(): time.sleep(0.1)\n"


@pytest.fixture(scope="module", params=backends.KINDS)
def backend(request: pytest.FixtureRequest, room: Room) -> Iterator[Backend]:
    """Give each kind of backend, empty at first."""
    made = backends.make(request.param)
    yield made
    made.close()


def kill(process: subprocess.Popen[str]) -> None:
    """Kill a job with all that it has started, as a runner's machine that is switched off."""
    for pid in [process.pid, *_descendants({process.pid})]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.communicate()


class Job:
    """A job of a pipeline: its checkout, and Esteira's commands in it."""

    def __init__(self, root: Path, environ: dict[str, str], stack: str) -> None:
        self.root, self.environ, self.stack = root, environ, stack

    def start(self, command: str, *arguments: str) -> subprocess.Popen[str]:
        """Start one of Esteira's commands, as .gitlab-ci.yml does."""
        return subprocess.Popen(
            [sys.executable, "-m", "cli", command, self.stack, *arguments],
            cwd=self.root,
            env=self.environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def end(self, process: subprocess.Popen[str], status: int = 0) -> str:
        """Wait for a command, and give what it said."""
        said = process.communicate(timeout=120)[0]
        assert process.returncode == status, said
        return said

    def run(self, command: str, *arguments: str, status: int = 0) -> str:
        """Run one of Esteira's commands to its end."""
        return self.end(self.start(command, *arguments), status)

    def pulumi(self, *arguments: str, status: int = 0) -> str:
        """Run Pulumi in the job's checkout."""
        done = subprocess.run(
            ["pulumi", "--non-interactive", *arguments],
            cwd=self.root,
            env=self.environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == status, done.stdout
        return done.stdout


def checkout(root: Path) -> None:
    """Put Esteira's command line into a checkout."""
    for name in ("cli", "rehearsal"):
        shutil.copytree(REPOSITORY / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))


class TestLocks:
    """Two checkouts of one stack, whose program waits for a file `go`.

    The first is logged in, as at a workstation; the other has the address in its environment, as in a pipeline.
    """

    @pytest.fixture
    def jobs(self, backend: Backend, tmp_path: Path) -> Iterator[tuple[Job, Job]]:
        root, other = tmp_path / "one", tmp_path / "two"
        root.mkdir()
        (root / "Pulumi.yaml").write_text(
            f"name: {tmp_path.name.lower()}\nruntime: {{name: python, options: {{virtualenv: {sys.prefix}}}}}\n"
        )
        (root / "__main__.py").write_text(PROGRAM)
        checkout(root)
        (root / "components").symlink_to(REPOSITORY / "components")
        environ = {
            "PATH": os.environ["PATH"],
            "HOME": str(tmp_path),
            "PULUMI_CONFIG_PASSPHRASE": PASSPHRASE,
            "PULUMI_SKIP_UPDATE_CHECK": "true",
            # Nothing is declared: the environment's packages want no plugin.
            "PULUMI_DISABLE_AUTOMATIC_PLUGIN_ACQUISITION": "true",
            **backend.variables,
        }
        logged_in = {name: value for name, value in environ.items() if name != "PULUMI_BACKEND_URL"}
        one = Job(root, logged_in, "s")
        one.pulumi("login", environ["PULUMI_BACKEND_URL"])
        one.pulumi("stack", "init", "s")
        shutil.copytree(root, other, symlinks=True)
        yield one, Job(other, environ, "s")
        for folder in (root, other):
            for process in ci._runs(ci._log(folder, "s")):
                os.kill(process, signal.SIGKILL)

    def test_a_killed_jobs_lock_is_given_back(self, backend: Backend, jobs: tuple[Job, Job]) -> None:
        one, two = jobs
        run = one.start("ci-up")
        wait_for(backend.locks, "the lock", interval=0.2)
        kill(run)
        assert len(backend.locks()) == 1
        assert "the stack is currently locked by 1 lock(s)" in two.run("ci-up", status=1)
        assert two.run("ci-unlock") == "", "it held nothing"
        assert len(backend.locks()) == 1

        assert "has been given free" in one.run("ci-unlock")

        assert backend.locks() == []
        (two.root / "go").touch()
        two.run("ci-up")
        assert backend.locks() == []

    def test_a_lock_that_is_alive_stays(self, backend: Backend, jobs: tuple[Job, Job]) -> None:
        one, two = jobs
        run = two.start("ci-up")
        wait_for(backend.locks, "the lock", interval=0.2)
        kill(run)
        # Somebody takes it away, and the next one deploys, before the killed job's after_script comes.
        two.pulumi("cancel", "--yes", "--stack", "s")
        assert backend.locks() == []
        run = one.start("ci-up")
        wait_for(backend.locks, "the other's lock", interval=0.2)
        [held] = backend.locks()

        said = two.run("ci-unlock")

        assert "is locked by another run: process " in said
        assert backend.locks() == [held]
        (one.root / "go").touch()
        one.end(run)
        assert backend.locks() == []

    # How the engine ends in order is the same with each.
    @pytest.mark.parametrize("backend", ["PostgreSQL"], indirect=True)
    def test_a_cancelled_job_gives_it_back_itself(self, backend: Backend, jobs: tuple[Job, Job]) -> None:
        one, _ = jobs
        run = one.start("ci-up")
        wait_for(lambda: ci._log(one.root, "s").exists(), "the run")
        os.kill(run.pid, signal.SIGTERM)
        one.end(run, status=1)
        assert backend.locks() == []
        assert one.run("ci-unlock") == ""


@pytest.fixture(scope="module")
def stack(backend: Backend, make_stack: Callable[..., Stack], one: Machine, registry: Registry) -> Stack:
    """Give a stack of this project's program on a server as new."""
    one.wipe(keep_images=[images.EDGE, images.base_name(registry)])
    made = make_stack(f"on-{type(backend).__name__.lower()}", backend=backend.variables)
    made.server(one)
    made.write()
    checkout(made.root)
    return made


@pytest.fixture
def job(stack: Stack) -> Job:
    """Give a job in the stack's checkout."""
    return Job(stack.root, stack.environ, stack.name)


@pytest.mark.parametrize("backend", ["PostgreSQL", "object store"], indirect=True)
class TestDeployments:
    """This project's program, one job after the other. With a folder, the other engine tests see it."""

    def test_a_job_that_is_killed_and_the_next_one(
        self, backend: Backend, stack: Stack, job: Job, one: Machine
    ) -> None:
        run = job.start("ci-up")
        wait_for(lambda: one.containers("status=running"), "a container")
        kill(run)
        assert len(backend.locks()) == 1

        said = job.run("ci-unlock") + job.run("ci-up")

        assert backend.locks() == []
        assert shows(one, stack.head)
        again = job.pulumi("preview", "--stack", job.stack)
        assert "unchanged" in again
        assert not any(f" to {word}" in again for word in ("create", "update", "replace", "delete")), again
        for secret in (backend.secret, PASSPHRASE, stack.registry.password, one.password):
            assert secret not in said + again

    def test_the_state_has_no_secret_and_says_what_runs(
        self, backend: Backend, stack: Stack, job: Job, one: Machine
    ) -> None:
        kept = backend.contents()
        assert stack.head in kept
        for secret in (backend.secret, PASSPHRASE, stack.registry.password, one.password):
            assert secret not in kept
        job.run("ci-in-use", str(job.root / "in-use.json"))
        digest = stack.registry.digest(stack.repository, stack.head)
        assert digest in json.loads((job.root / "in-use.json").read_text())["digests"]
