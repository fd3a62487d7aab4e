"""A stand-in for GitLab: what Esteira uses of its API, with state, rules and errors as GitLab's sources have them.

In a test::

    with StandIn() as gitlab:
        project = gitlab.project("group/parasite")
        ...  # gitlab.base_url and gitlab.token are what a client needs

By itself: ``python -m rehearsal.gitlab --port 8929 --project group/parasite --state gitlab.json``.
"""

from rehearsal.gitlab.faults import Fault, RateLimit
from rehearsal.gitlab.server import Exchange, StandIn

__all__ = ["Exchange", "Fault", "RateLimit", "StandIn"]
