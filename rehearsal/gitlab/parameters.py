"""A request's parameters: query and body together, coerced as Grape coerces them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import Any
from urllib.parse import parse_qsl

from werkzeug.wrappers import Request

from rehearsal.gitlab.answers import error
from rehearsal.gitlab.state import as_time

_FORMS = {"application/x-www-form-urlencoded", "multipart/form-data"}
_TRUE = {True, "true", "True", "TRUE", "t", "T", "1", "on", "yes"}
_FALSE = {False, "false", "False", "FALSE", "f", "F", "0", "off", "no"}


class Parameters:
    """What came with a request; the body's fields win over the query's, path parameters over both."""

    def __init__(self, request: Request, path: Mapping[str, str]) -> None:
        self.body = _body(request)
        self.typed = request.mimetype not in _FORMS
        """Whether the body could say true instead of ``"true"``."""
        self._all: dict[str, Any] = {**_nest(_pairs(request.query_string.decode())), **self.body, **path}

    def __contains__(self, name: str) -> bool:
        return name in self._all

    def require(self, *names: str) -> None:
        """Refuse when some are missing, as Grape does, all of them at once."""
        missing = [f"{name} is missing" for name in names if name not in self._all]
        if missing:
            raise error(400, ", ".join(missing))

    def text(self, name: str) -> str | None:
        """Give a string, or None."""
        value = self._all.get(name)
        if value is None or isinstance(value, str):
            return value
        if isinstance(value, bool):
            return "true" if value else "false"
        if isinstance(value, (int, float)):
            return str(value)
        raise error(400, f"{name} is invalid")

    def boolean(self, name: str) -> bool | None:
        """Give a boolean from JSON's or from its words, or None."""
        value = self._all.get(name)
        if value is None or value == "":
            return None
        if isinstance(value, (str, bool, int)):
            if value in _TRUE:
                return True
            if value in _FALSE:
                return False
        raise error(400, f"{name} is invalid")

    def integer(self, name: str) -> int | None:
        """Give a whole number, or None."""
        value = self._all.get(name)
        if value is None or value == "":
            return None
        if isinstance(value, int) or (isinstance(value, str) and re.fullmatch(r"-?\d+", value, re.ASCII)):
            return int(value)
        raise error(400, f"{name} is invalid")

    def one_of(self, name: str, values: Sequence[str]) -> str | None:
        """Give one of the values, or None."""
        value = self.text(name)
        if value is not None and value not in values:
            raise error(400, f"{name} does not have a valid value")
        return value

    def some_of(self, name: str, values: Sequence[str]) -> list[str]:
        """Give a list out of the values; text is split at commas."""
        value = self._all.get(name)
        several = value.split(",") if isinstance(value, str) else value or []
        if not isinstance(several, list):
            raise error(400, f"{name} is invalid")
        if any(one not in values for one in several):
            raise error(400, f"{name} does not have a valid value")
        return [one for one in values if one in several]

    def time(self, name: str) -> str | None:
        """Give a time as GitLab writes it, from ISO 8601 (a date alone is its first moment), or None."""
        value = self.text(name)
        if not value:
            return None
        # Fractions of any length: before 3.11 fromisoformat takes three or six digits only.
        fraction = re.fullmatch(r"(.*:\d\d)[.,]\d+(.*)", value)
        plain = "".join(fraction.groups()) if fraction else value
        try:
            moment = datetime.fromisoformat(plain.replace("Z", "+00:00"))
        except ValueError:
            raise error(400, f"{name} is invalid") from None
        return as_time(moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc))

    @property
    def environment_scope(self) -> str | None:
        """Give ``filter[environment_scope]``, which picks a variable by its exact scope."""
        chosen = self._all.get("filter")
        if isinstance(chosen, dict):
            scope = chosen.get("environment_scope")
            return scope if isinstance(scope, str) else None
        if chosen is not None:
            raise error(400, "filter is invalid")
        return None


def _body(request: Request) -> dict[str, Any]:
    kind = request.mimetype
    if kind == "application/json":
        data = request.get_data()
        if not data:
            return {}
        try:
            loaded = json.loads(data)
        except ValueError:
            raise error(400, "Problems parsing JSON") from None
        return loaded if isinstance(loaded, dict) else {}
    if kind in _FORMS:
        return _nest([(key, value) for key, value in request.form.items(multi=True)])
    return {}


def _pairs(query: str) -> list[tuple[str, str]]:
    return parse_qsl(query, keep_blank_values=True)


def _nest(pairs: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """``a[b]=c`` is a map, ``a[]=c`` a list, as Rack reads them."""
    nested: dict[str, Any] = {}
    for name, value in pairs:
        match = re.fullmatch(r"([^\[\]]+)\[([^\[\]]*)\]", name)
        if match is None:
            nested[name] = value
        elif match[2]:
            inner = nested.setdefault(match[1], {})
            if isinstance(inner, dict):
                inner[match[2]] = value
        else:
            several = nested.setdefault(match[1], [])
            if isinstance(several, list):
                several.append(value)
    return nested
