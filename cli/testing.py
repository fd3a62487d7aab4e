"""`./esteira test`: prepares what the layers of tests need and runs those that can run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from cli import console, docker, engine, images, local, machine, shell
from components.errors import EsteiraError

REQUIRE_LIVE = "ESTEIRA_REQUIRE_LIVE"
"""Set to 1 (CI does): the live layer may not be skipped."""

PROCESSES = "ESTEIRA_TEST_PROCESSES"
"""How many test processes run side by side: 2 where there are two cores, unless this says 1."""

SKIP_LIVE = "ESTEIRA_SKIP_LIVE"
SKIP_ENGINE = "ESTEIRA_SKIP_ENGINE"
"""Read by tests/conftest.py: why a layer is skipped, in words for a person."""


GITLAB_CI_LOCAL = "ESTEIRA_GITLAB_CI_LOCAL"
"""Where the program is that runs the pipelines; read by tests/live/test_pipeline.py."""

_NPM_SECONDS = 300


def run(place: local.Place, arguments: Sequence[str]) -> int:
    """Run pytest with ``arguments`` and return its exit status.

    Everything is run by two processes side by side, all unit tests alone by three, because they wait a third of their
    time; what is chosen by a file or a test's name, by one.

    Raises EsteiraError when the live layer cannot be prepared and must run.
    """
    values = dict(os.environ)
    # What is not asked for need not be prepared: the first time that takes minutes.
    asked = [argument for argument in arguments if (place.root / argument.split("::")[0]).exists()]
    only_others = bool(asked) and all(argument.startswith("tests/unit") for argument in asked)
    reason = None if only_others else _prepare_live(place)
    if reason is not None:
        if is_required():
            raise EsteiraError(f"The live tests cannot run, and they may not be skipped here: {reason}")
        values[SKIP_LIVE] = " ".join(reason.split())
    elif not only_others:
        _prepare_pipelines(place.root, values)
    found = engine.find(place.root, install=False)
    if isinstance(found, engine.Missing):
        values[SKIP_ENGINE] = found.reason
    else:
        values["PATH"] = os.pathsep.join([str(Path(found.command).parent), values.get("PATH", os.defpath)])
    divided: list[str] = []
    if not asked:
        divided = _side_by_side(arguments)
    elif [argument.rstrip("/") for argument in asked] == ["tests/unit"]:
        divided = _side_by_side(arguments, more=1)
    return subprocess.run(
        [sys.executable, "-m", "pytest", *divided, *arguments], cwd=place.root, env=values, check=False
    ).returncode


def _side_by_side(arguments: Sequence[str], more: int = 0) -> list[str]:
    """Give pytest's options for several processes at once (tests/side_by_side.py), where there are cores for them."""
    processes = os.environ.get(PROCESSES) or str(min(2, os.cpu_count() or 1) + more)
    if processes == "1" or any(one == "--pdb" or one.startswith("-n") for one in arguments):
        return []
    return ["-n", processes]


def is_required() -> bool:
    """Tell whether the live layer may not be skipped: so it is in CI."""
    return os.environ.get(REQUIRE_LIVE, os.environ.get("CI", "")).lower() in {"1", "true", "yes"}


def _prepare_live(place: local.Place) -> str | None:
    """Prepare what the live tests need; None, or why they cannot run."""
    try:
        if os.geteuid() != 0:
            return "they make network namespaces and servers of their own, which needs root (sudo ./esteira test)"
        machine.require_free_disk(place.root, 2, "the live layer")
        docker.ensure_engine(place.root)
        images.ensure(place.root)
    except EsteiraError as error:
        return str(error)
    return None


def gitlab_ci_local(root: Path) -> Path:
    """Return where the program that runs the pipelines is kept."""
    return root / ".esteira" / "gitlab-ci-local" / "node_modules" / ".bin" / "gitlab-ci-local"


def _prepare_pipelines(root: Path, values: dict[str, str]) -> None:
    """Install gitlab-ci-local where npm is there, and name it in the environment; one test says when it is missing.

    Raises EsteiraError when it cannot be installed and the live layer may not be skipped.
    """
    program = gitlab_ci_local(root)
    if GITLAB_CI_LOCAL in values or shutil.which("gitlab-ci-local"):
        return
    wanted, folder = root / ".ci" / "gitlab-ci-local", program.parents[2]
    lock = (wanted / "package-lock.json").read_bytes()
    installed = folder / "installed.json"  # written last
    if not (installed.exists() and installed.read_bytes() == lock):
        if shutil.which("npm") is None:
            return
        console.step("Installing gitlab-ci-local, which runs the pipelines ...")
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name in ("package.json", "package-lock.json"):
            shutil.copy(wanted / name, folder)
        try:
            shell.run(
                ["npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix", str(folder)],
                cwd=folder,
                timeout=_NPM_SECONDS,
            )
        except shell.CommandError as error:
            if is_required():
                raise EsteiraError(f"npm cannot install gitlab-ci-local: {error}") from None
            console.say(f"It cannot be had ({(str(error).splitlines() or [''])[-1]}): its tests are skipped.")
            return
        installed.write_bytes(lock)
    values[GITLAB_CI_LOCAL] = str(program)
