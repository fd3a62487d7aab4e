"""Layers of tests: which can run here, and at the end which ran and which were skipped, and why.

A test's layer is its folder: tests/unit needs nothing, tests/live needs root and a Docker Engine, tests/engine the same
and the Pulumi CLI. `./esteira test` prepares them and tells by the environment what cannot be had.
Without it pytest looks itself.
"""

from __future__ import annotations

import gc
import os
import signal
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler.loadscope import LoadScopeScheduling

from cli import engine
from tests import side_by_side

# The servers and the registry: one room for both layers that need it.
pytest_plugins = ["tests.live.parts"]

# Tests interrupt what they start, as Ctrl-C does. A shell's background job has SIGINT ignored, and so would everything
# that is started from here; what has a handler instead is reset to its default in a child.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

FOLDER = Path(__file__).parent
LAYERS = ("unit", "live", "engine")


def _layer(path: Path) -> str:
    parts = path.resolve().relative_to(FOLDER).parts if path.resolve().is_relative_to(FOLDER) else ()
    return parts[0] if parts and parts[0] in LAYERS else "unit"


def _why_not_live() -> str:
    if said := os.environ.get("ESTEIRA_SKIP_LIVE"):
        return said
    if os.geteuid() != 0:
        return "needs root (sudo ./esteira test)"
    try:
        answer = subprocess.run(["docker", "version"], capture_output=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return "needs Docker (./esteira test prepares it)"
    return "" if answer.returncode == 0 else "needs a Docker Engine that answers (./esteira test prepares it)"


def _why_not_engine() -> str:
    if said := os.environ.get("ESTEIRA_SKIP_ENGINE"):
        return said
    if why := _why_not_live():
        return f"its servers are the live layer's, which cannot run: {why}"
    found = engine.find(FOLDER.parent, install=False)
    return found.reason if isinstance(found, engine.Missing) else ""


# What is loaded for the tests, Pulumi's packages too, stays to the end. The garbage collector would walk it all the
# time: it begins when the tests do, with what they make.
gc.disable()


def pytest_collection_finish() -> None:
    """Let the garbage collector begin."""
    gc.freeze()
    gc.enable()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark each test with its layer, and skip what cannot run here; in CI the live layer has to."""
    reasons: dict[str, str] = {}
    if hasattr(config, "workerinput"):
        side_by_side.arrange(items)
    for item in items:
        layer = _layer(item.path)
        if layer == "unit":
            continue
        item.add_marker(layer)
        if layer not in reasons:
            reasons[layer] = _why_not_live() if layer == "live" else _why_not_engine()
        if reasons[layer]:
            item.add_marker(pytest.mark.skip(reason=f"{layer} layer: {reasons[layer]}"))
    if reasons.get("live") and os.environ.get("ESTEIRA_REQUIRE_LIVE") == "1":
        raise pytest.UsageError(
            f"the live tests cannot run, and they may not be skipped here: {reasons['live']}"
        )


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    """Tell pytest-xdist how tests are divided among several processes."""
    return side_by_side.scheduling(config, log)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say which layers ran and which were skipped, and why."""
    counts: Counter[str] = Counter()
    reasons: dict[str, str] = {}
    for outcome in ("passed", "failed", "error", "skipped"):
        for report in terminalreporter.stats.get(outcome, []):
            path = getattr(report, "fspath", None)
            if not path or getattr(report, "when", "call") not in {"call", "setup"}:
                continue
            layer = _layer(Path(config.rootpath, path))
            if outcome != "skipped":
                counts[layer] += 1
            elif isinstance(report.longrepr, tuple) and f"{layer} layer: " in report.longrepr[2]:
                # By another process, perhaps: what it says is all that this one knows.
                reasons[layer] = report.longrepr[2].partition(f"{layer} layer: ")[2]
    terminalreporter.section("layers")
    for layer in LAYERS:
        if reasons.get(layer):
            text = f"SKIPPED: {reasons[layer]}"
        elif counts[layer]:
            text = f"ran, {counts[layer]} tests"
        else:
            text = "no test of it was chosen"
        terminalreporter.line(f"{layer:<7} {text}")
