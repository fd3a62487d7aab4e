"""What every unit test finds, whichever test ran before it in the same process."""

from __future__ import annotations

import asyncio
import warnings

import pytest


@pytest.fixture(autouse=True)
def _event_loop() -> None:
    """Pulumi's mocks take the thread's event loop, and a test that runs ``asyncio.run`` leaves none behind."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            asyncio.get_event_loop()
        except RuntimeError:
            asyncio.set_event_loop(asyncio.new_event_loop())
