# ruff: noqa: D401 - a rule's docstring states the rule
"""What single values of ``esteira:gitlab`` may be; functions of the kind of :mod:`components.settings_rules`."""

from __future__ import annotations

import datetime as dt
import re
from urllib.parse import urlsplit

from . import gitlab_rules
from .settings_rules import Wrong, line, show


def key(raw: object) -> str:
    """The name of a CI/CD variable."""
    value = line(raw)
    faults = gitlab_rules.key_faults(value)
    if faults:
        raise Wrong(" ".join(faults), re.sub(r"[^A-Za-z0-9_]", "_", value)[:255])
    return value


def scope(raw: object) -> str:
    """An environment scope."""
    value = line(raw)
    faults = gitlab_rules.scope_faults(value)
    if faults:
        raise Wrong(" ".join(faults))
    return value


def name(raw: object) -> str:
    """``KEY`` or ``KEY@scope``."""
    value = line(raw)
    problem = name_fault(value)
    if problem:
        raise Wrong(problem)
    return value


def name_fault(text: str) -> str | None:
    """What is wrong with ``KEY`` or ``KEY@scope``."""
    variable, scope_ = gitlab_rules.split_name(text)
    faults = gitlab_rules.key_faults(variable) + gitlab_rules.scope_faults(scope_)
    return " ".join(faults) or None


def project(raw: object) -> str:
    """A project's path (``group/parasite``) or number."""
    if isinstance(raw, int) and not isinstance(raw, bool):
        raw = str(raw)
    value = line(raw)
    if value.isdecimal():
        return value
    bare = re.sub(r"^https?://[^/]+/", "", value).strip("/").removesuffix(".git")
    legal = re.fullmatch(r"[A-Za-z0-9_.][A-Za-z0-9_.-]*(/[A-Za-z0-9_.][A-Za-z0-9_.-]*)+", bare)
    if bare != value or not legal:
        raise Wrong(
            f"{show(value)} is not a project of GitLab: write its path with the group, or its number.",
            bare if legal else None,
        )
    return value


def base_url(raw: object) -> str:
    """The address of a GitLab API; ``/api/v4/`` is added where it is missing."""
    value = line(raw)
    parts = urlsplit(value)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        bare = re.fullmatch(r"[a-z0-9.-]+(:[0-9]+)?", value)
        raise Wrong(
            f"{show(value)} is not the address of an API.", f"https://{value}/api/v4/" if bare else None
        )
    if parts.username or parts.password or parts.query or parts.fragment:
        raise Wrong(
            "The address of the API has more in it than host and path; the token has a key of its own."
        )
    path = parts.path.rstrip("/")
    if not path.endswith("/api/v4"):
        path += "/api/v4"
    return f"{parts.scheme}://{parts.netloc}{path}/"


def date(raw: object) -> str:
    """A day, ``YYYY-MM-DD``, that is not over yet."""
    if isinstance(raw, dt.date):
        raw = raw.isoformat()
    value = line(raw)
    try:
        day = dt.date.fromisoformat(value)
    except ValueError:
        raise Wrong(f"{show(value)} is not a day; write year, month and day.", "2035-12-31") from None
    if day < today():
        raise Wrong(
            f"{value} is over, and GitLab gives no token that has expired: write a day to come, and raise the "
            "rotation by one."
        )
    return day.isoformat()


def today() -> dt.date:
    """Today, UTC."""
    return dt.datetime.now(dt.timezone.utc).date()
