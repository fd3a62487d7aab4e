r"""The decision of a rollout over several servers: when all have switched, it is written down; then all are confirmed.

A server whose deadline comes looks it up in the registry, with the credential that it pulls with: where its own switch
is among those that were decided it confirms itself, else it takes the switch back. So a workstation that is lost in the
middle of the confirmations leaves no mixture. The record is an image without content, whose label names the switches.

    ./esteira decide registry.example/group/parasite \
      tag=esteira-decided-prod-parasite \
      commit=8e13f56…
"""

from __future__ import annotations

import hashlib
import json
import sys
from typing import TYPE_CHECKING

from .errors import EsteiraError
from .registry import of_step

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

LABEL = "esteira.decided"
"""The record's label: the marks of all switches that were decided, with blanks between."""


def switch_mark(request: str, commit: str, fingerprint: str) -> str:
    """Return 64 hexadecimal digits for one server's switch; the server's program makes the same of the same."""
    return hashlib.sha256(f"{request} {commit} {fingerprint}\n".encode()).hexdigest()


def decide(argv: Sequence[str], stdin: str, environ: Mapping[str, str]) -> None:
    """Write the record: the command line ``./esteira decide REPOSITORY tag=… commit=… [insecure=yes]``.

    A registry that does not take it is no reason to stop: a release that the servers keep can be rolled back to without
    one. It is said what is lost.

    Args:
        argv: the repository, the tag, and for who reads the preview the commit.
        stdin: a JSON object with ``marks``, ``username`` and ``password``; what is null is taken from `environ`.
        environ: CI_REGISTRY_USER and CI_REGISTRY_PASSWORD, as GitLab sets them in a job.

    Raises:
        EsteiraError: the arguments make no sense.
    """
    repository, *rest = argv or [""]
    options = dict(part.partition("=")[::2] for part in rest)
    try:
        given = json.loads(stdin)
        marks = [str(mark) for mark in given["marks"]]
    except (ValueError, LookupError, TypeError):
        raise EsteiraError("decide got no marks on its standard input. It is run by `pulumi up`.") from None
    if "/" not in repository or not options.get("tag"):
        raise EsteiraError("Usage: ./esteira decide REGISTRY/REPOSITORY tag=TAG commit=SHA [insecure=yes]")
    registry = of_step(repository, given, environ, insecure=options.get("insecure") == "yes")
    try:
        digest = registry.write_labels(options["tag"], {LABEL: " ".join(marks)})
    except EsteiraError as error:
        sys.stderr.write(
            f"warning: that all servers have switched could not be written down: {error} If this run is lost before it "
            "has confirmed all of them, some will take their switch back.\n"
        )
        return
    sys.stderr.write(f"All {len(marks)} servers have switched; confirming them.\n")
    sys.stdout.write(f"{digest}\n")
