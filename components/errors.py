"""The one kind of error that Esteira shows to a person."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

# Pulumi takes longer to load than a step of a deployment to run. Where it is not loaded nobody asks for its RunError.
if TYPE_CHECKING or "pulumi" in sys.modules:
    from pulumi import RunError as _ShownError
else:
    _ShownError = Exception


class EsteiraError(_ShownError):
    """Something that the user can mend; the message is all that is shown.

    The message is made of finished sentences: what is wrong, then what to do. It never holds a secret. Pulumi shows a
    ``RunError`` without a traceback, and so do the command line and the rehearsal; the exit status is 1.
    """
