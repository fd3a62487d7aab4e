r"""The rules that GitLab has for CI/CD variables, as functions that return finished sentences.

GitLab's own answer to a value that it cannot mask is ``is invalid`` and nothing else; here stands which rule it was and
what to do. The rules are those of GitLab's models (``app/models/concerns/ci/maskable.rb``, ``has_variable.rb``,
``variable.rb``); the length of a value is the documentation's. No sentence holds a value.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

ALL_SCOPES = "*"
"""The scope of a variable that every job gets."""

VALUE_LENGTH = 10_000
"""Most characters of a value (GitLab's documentation of CI/CD variables)."""

TEXT_LENGTH = 255
"""Most characters of a key, a scope, a description."""

_MASKED_EXPANDED = re.compile(r"[a-zA-Z0-9_+=/@:.~-]{8,}")
_MASKED_RAW = re.compile(r"\S{8,}", re.ASCII)
_KEY = re.compile(r"[A-Za-z0-9_]+")
_SCOPE = re.compile(r"[A-Za-z0-9_/${}. *-]+")


def variable_faults(
    key: str,
    value: str,
    *,
    masked: bool,
    hidden: bool,
    protected: bool,
    raw: bool,
    file: bool,
    scope: str,
    description: str = "",
) -> list[str]:
    """Return what GitLab would refuse, or would do other than meant, in one variable; a sentence for each rule.

    key: 1 to 255 letters, digits and _. value: up to 10,000 characters. scope: ``*``, an environment's name, or a name
    with ``*`` in it. hidden: masked and hidden, which GitLab takes only when a variable is created.
    """
    faults = key_faults(key)
    faults += scope_faults(scope)
    if len(value) > VALUE_LENGTH:
        faults.append(
            f"The value has {len(value):,} characters, and GitLab keeps at most {VALUE_LENGTH:,}: "
            "keep large content elsewhere, and its address or its password in the variable."
        )
    if hidden and not masked:
        faults.append(
            "A hidden variable is always masked: write masked: true as well, or leave hidden out. "
            "(Its value is then shown to nobody any more.)"
        )
    if masked or hidden:
        fault = masking_fault(value, raw=raw, protected=protected, file=file)
        faults += [fault] if fault else []
    if len(description) > TEXT_LENGTH:
        faults.append(f"The description has {len(description)} characters, and GitLab keeps {TEXT_LENGTH}.")
    return faults


def key_faults(key: str) -> list[str]:
    """Return what is wrong with the name of a variable."""
    if not key:
        return ["The variable has no name: write 1 to 255 letters, digits and _."]
    faults = []
    if not _KEY.fullmatch(key):
        faults.append("The name of a variable may have letters, digits and _ only.")
    if len(key) > TEXT_LENGTH:
        faults.append(
            f"The name of the variable has {len(key)} characters, and GitLab keeps at most {TEXT_LENGTH}."
        )
    return faults


def scope_faults(scope: str) -> list[str]:
    """Return what is wrong with an environment scope."""
    if not scope:
        return ["The environment scope is empty: write * for all environments, or an environment's name."]
    faults = []
    if scope != scope.strip(" "):
        faults.append("An environment scope may not begin or end with a space: GitLab takes it off.")
    if not _SCOPE.fullmatch(scope):
        faults.append(
            "An environment scope may have letters, digits, spaces and - _ / $ { } . * only: write the "
            "environment's name, or a part of it with * for the rest, like review/*."
        )
    if len(scope) > TEXT_LENGTH:
        faults.append(
            f"The environment scope has {len(scope)} characters, and GitLab keeps at most {TEXT_LENGTH}."
        )
    return faults


def masking_fault(value: str, *, raw: bool, protected: bool = True, file: bool = False) -> str | None:
    r"""Return why GitLab cannot mask a value, or None.

    Masked values match ``\A[a-zA-Z0-9_+=/@:.~-]{8,}\z`` where references in them are expanded, ``\A\S{8,}\z`` where not
    (raw); a line end at the end is enough to fail.
    """
    if (_MASKED_RAW if raw else _MASKED_EXPANDED).fullmatch(value):
        return None
    if not value:
        return "An empty value cannot be masked: give the variable its value, or write masked: false."
    if value.rstrip("\r\n") != value and "\n" not in value.strip("\r\n"):
        return (
            "The value ends with a line break, so GitLab cannot mask it: set it again without one "
            "(printf %s instead of echo)."
        )
    if "\n" in value or "\r" in value:
        instead = ["masked: false"]
        if not file:
            instead.insert(0, "type: file")
        if not protected:
            instead.append("protected: true")
        return (
            "A value of several lines, like a key, cannot be masked. Jobs get it as a file, and only those of "
            f"protected branches and tags: write {', '.join(instead)}."
        )
    if re.search(r"\s", value, re.ASCII):
        return (
            "A value with spaces in it cannot be masked: use one without, or write masked: false and "
            "protected: true."
        )
    if len(value) < 8:
        return (
            "A value of fewer than 8 characters cannot be masked: use a longer one, or write masked: false "
            "and protected: true."
        )
    return (
        "A masked value in which $NAME is replaced may have letters, digits and _ + = / @ : . ~ - only. "
        "Write raw: true: the value is then taken as it is, with every character but spaces."
    )


def duplicate_faults(names: Iterable[tuple[str, str]]) -> list[str]:
    """Return a sentence for each key and scope that occurs twice: GitLab has one variable for each such pair."""
    return [
        f"{shown(key, scope)} is declared {count} times; GitLab keeps one variable of a name for each scope."
        for (key, scope), count in Counter(names).items()
        if count > 1
    ]


def split_name(name: str) -> tuple[str, str]:
    """Return key and scope of ``KEY`` (all environments) or ``KEY@scope``."""
    key, at, scope = name.partition("@")
    return key, scope if at else ALL_SCOPES


def shown(key: str, scope: str) -> str:
    """Return ``KEY`` or ``KEY@scope``, as a stack file names a variable."""
    return key if scope == ALL_SCOPES else f"{key}@{scope}"


def is_taken(errors: Sequence[str]) -> bool:
    """Return whether GitLab's errors say that a variable of this key and scope is there already."""
    return any("has already been taken" in error for error in errors)


def taken(key: str, scope: str, file: str) -> str:
    """Return what to do about a variable that the GitLab project has already: the line that adopts it."""
    name = shown(key, scope)
    item = f'"{name}"' if "*" in name or " " in name else name
    where = "for all environments" if scope == ALL_SCOPES else f"for the environment {scope}"
    return (
        f"The GitLab project has a variable {key} {where} already, and this stack did not make it. "
        f"To take it over, with its value replaced by the declared one, write in {file}:\n"
        f"    esteira:gitlab:\n      adopt:\n        - {item}\n"
        "If another stack declares it, take it out of one of the two instead."
    )
