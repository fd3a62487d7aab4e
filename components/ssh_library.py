"""paramiko, loaded without what is not used of it, because every run of the program loads it.

For ``Match exec`` in an ssh_config, which is never read here, it loads the package invoke where that can be had: a
tenth of all that the program loads before it can ask a server.
"""

from __future__ import annotations

import sys

_NONE_IMPORTED = "invoke" not in sys.modules
if _NONE_IMPORTED:
    sys.modules["invoke"] = None  # type: ignore[assignment]  # as Python marks what cannot be imported
import paramiko  # noqa: E402

if _NONE_IMPORTED:
    del sys.modules["invoke"]

__all__ = ["paramiko"]
