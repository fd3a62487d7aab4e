"""The one kind of error that Esteira shows to a person."""

from __future__ import annotations

import pulumi


class EsteiraError(pulumi.RunError):
    """Something that the user can mend; the message is all that is shown.

    The message is made of finished sentences: what is wrong, then what to do. It never holds a secret. Pulumi shows a
    ``RunError`` without a traceback, and so do the command line and the rehearsal; the exit status is 1.
    """
