"""What the rehearsal says when it cannot go on."""

from __future__ import annotations

from components.errors import EsteiraError


class RehearsalError(EsteiraError):
    """A resource failed, the program failed, or something in it cannot be rehearsed."""


class NotBegunError(RehearsalError):
    """A resource was not begun because another had failed before; never the cause, never shown."""
