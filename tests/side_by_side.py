"""Two test processes at once (pytest-xdist): which tests stay together, and in which order they are handed out.

`./esteira test` starts one process for each of two cores. Each has a room of its own for servers and registry
(tests/live/machines.py), so the live tests of one do not see those of the other.
"""

from __future__ import annotations

import functools
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler.loadscope import LoadScopeScheduling

FOLDER = Path(__file__).parent
HEAVY = ("live/test_load.py",)
"""Modules that put a load on a server: what they count is right beside anything but each other."""
_ORDER = ("heavy", "live", "engine", "unit")
"""The small ones come last, so that both processes end at about the same time."""


def group(node: str) -> str:
    """Give what a test, by its node id, stays together with: its module, other heavy ones, or nothing but itself."""
    module = node.partition("::")[0].removeprefix("tests/")
    if module in HEAVY:
        return "heavy"
    # The unit tests are too small to be handed out one by one.
    if module.startswith("unit/") or _shares(module):
        return module
    return node


@functools.cache
def _shares(module: str) -> bool:
    """Tell whether the tests of a module share what is made once for it: a stack, a release that serves."""
    text = (FOLDER / module).read_text(encoding="utf-8") if (FOLDER / module).is_file() else ""
    return module.startswith("engine/") or 'scope="module"' in text


def arrange(items: list[pytest.Item]) -> None:
    """Put the tests in the order in which they are handed out."""
    tests = Counter(group(item.nodeid) for item in items)

    def place(item: pytest.Item) -> tuple[int, int]:
        own = group(item.nodeid)
        layer = own if own == "heavy" else own.removeprefix("tests/").partition("/")[0]
        # Unit tests go by modules: the big ones first, so that none is left for one process alone at the end.
        return _ORDER.index(layer), -tests[own] if layer == "unit" else 0

    items.sort(key=place)


class _Scheduling(LoadScopeScheduling):  # type: ignore[misc] # the package has no types
    """Hands out the groups in the order of the tests."""

    def _split_scope(self, nodeid: str) -> str:
        return group(nodeid)


def scheduling(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    """Give what hands out the tests, for pytest-xdist's hook of that purpose."""
    config.option.loadscopereorder = False
    return _Scheduling(config, log)
