"""`./esteira test`: prepares what the layers of tests need and runs those that can run."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from cli import docker, engine, images, local, machine
from components.errors import EsteiraError

REQUIRE_LIVE = "ESTEIRA_REQUIRE_LIVE"
"""Set to 1 (CI does): the live layer may not be skipped."""

SKIP_LIVE = "ESTEIRA_SKIP_LIVE"
SKIP_ENGINE = "ESTEIRA_SKIP_ENGINE"
"""Read by tests/conftest.py: why a layer is skipped, in words for a person."""


def run(place: local.Place, arguments: Sequence[str]) -> int:
    """Run pytest with ``arguments`` in one process and return its exit status.

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
    found = engine.find(place.root, install=False)
    if isinstance(found, engine.Missing):
        values[SKIP_ENGINE] = found.reason
    else:
        values["PATH"] = os.pathsep.join([str(Path(found.command).parent), values.get("PATH", os.defpath)])
    return subprocess.run(
        [sys.executable, "-m", "pytest", *arguments], cwd=place.root, env=values, check=False
    ).returncode


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
