"""What GitLab's models refuse, as pure functions with GitLab's own messages.

Written from GitLab's sources (the files are named at each rule), independently of the component's checks: the two
are compared by tests. A fault is ``{attribute: [message, …]}``, as GitLab answers it below ``message``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

Faults = dict[str, list[str]]

MAXIMUM_VARIABLES = 8000
"""Variables that a project may have (``ci_project_variables`` in GitLab's plan limits)."""

VARIABLE_TYPES = ("env_var", "file")

DEPLOY_TOKEN_SCOPES = (
    "read_repository",
    "read_registry",
    "write_registry",
    "read_package_registry",
    "write_package_registry",
    "read_virtual_registry",
    "write_virtual_registry",
)
"""In the order in which GitLab lists a token's scopes (app/models/deploy_token.rb)."""

_BLANKS = " \t\n\v\f\r\0"

# app/models/concerns/ci/maskable.rb
_MASKABLE = re.compile(r"[a-zA-Z0-9_+=/@:.~-]{8,}")
_MASKABLE_RAW = re.compile(r"\S{8,}", re.ASCII)
# app/models/concerns/ci/has_variable.rb
_KEY = re.compile(r"[a-zA-Z0-9_]+")
# lib/gitlab/regex.rb, environment_scope_regex
_SCOPE = re.compile(r"[a-zA-Z0-9_/${}. \-*]+")
# app/models/deploy_token.rb
_USERNAME = re.compile(r"[a-zA-Z0-9.+_-]+")

MAXIMUM_VALUE = 10_000
"""Characters of a value (doc/ci/variables/_index.md; the answer's text is the one for an instance's variables)."""

_TOO_LONG = "is too long (maximum is 255 characters)"
_BLANK = "can't be blank"


def strip(text: str) -> str:
    """Strip as Ruby does; GitLab does it to a variable's key and environment scope before it looks at them."""
    return text.strip(_BLANKS)


def masking_holds(value: str, *, raw: bool) -> bool:
    """Whether a masked variable may have this value."""
    return (_MASKABLE_RAW if raw else _MASKABLE).fullmatch(value) is not None


def variable_faults(variable: Mapping[str, Any], *, taken: bool) -> Faults:
    """All that is wrong with a variable as it would be stored; ``taken``: key and scope belong to another one."""
    faults: Faults = {}
    key, scope = variable["key"], variable["environment_scope"]
    if not key:
        _add(faults, "key", _BLANK)
    if len(key) > 255:
        _add(faults, "key", _TOO_LONG)
    if not _KEY.fullmatch(key):
        _add(faults, "key", "can contain only letters, digits and '_'.")
    if taken:
        _add(faults, "key", f"({key}) has already been taken")
    if variable["masked"] and not masking_holds(variable["value"], raw=variable["raw"]):
        _add(faults, "value", "is invalid")
    if len(variable["value"]) > MAXIMUM_VALUE:
        _add(
            faults,
            "value",
            f"The value of the provided variable exceeds the {MAXIMUM_VALUE} character limit",
        )
    if not scope:
        _add(faults, "environment_scope", _BLANK)
    # The column's length; GitLab's sources at hand do not show the check itself.
    if len(scope) > 255:
        _add(faults, "environment_scope", _TOO_LONG)
    if not _SCOPE.fullmatch(scope):
        _add(
            faults,
            "environment_scope",
            "can contain only letters, digits, '-', '_', '/', '$', '{', '}', '.', '*' and spaces",
        )
    if len(variable["description"] or "") > 255:
        _add(faults, "description", _TOO_LONG)
    return faults


def change_faults(before: Mapping[str, Any], after: Mapping[str, Any]) -> Faults:
    """Say what may not be changed (app/models/concerns/ci/hidable_variable.rb)."""
    if before["hidden"] and after["masked"] != before["masked"]:
        return {"base": ["The visibility setting cannot be changed for masked and hidden variables."]}
    return {}


def deploy_token_fault(*, name: str, username: str | None, scopes: list[str]) -> str | None:
    """Say in one sentence, as the service does, what is wrong with a deploy token."""
    wrong = []
    if not scopes:
        wrong.append("Scopes can't be blank")
    if username is not None and len(username) > 255:
        wrong.append(f"Username {_TOO_LONG}")
    if username is not None and not _USERNAME.fullmatch(username):
        wrong.append("Username can contain only letters, digits, '_', '-', '+', and '.'")
    if len(name) > 255:
        wrong.append(f"Name {_TOO_LONG}")
    return " and ".join(wrong) or None


def _add(faults: Faults, attribute: str, message: str) -> None:
    faults.setdefault(attribute, []).append(message)
