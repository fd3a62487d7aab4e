"""Property values as the resource monitor gets them: JSON shapes, secrets wrapped in a marked object."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

SIGNATURE = "4dabf18193072939515e22adb298388d"
SECRET = "1b47061264138c4ac30d75fd1eb44270"  # noqa: S105 - a public mark
"""The SDK's own marks for a special value and for a secret one (pulumi/runtime/rpc.py)."""


def is_secret(value: object) -> bool:
    """Whether this very value is wrapped as a secret."""
    return isinstance(value, Mapping) and value.get(SIGNATURE) == SECRET


def reveal(value: Any) -> Any:
    """Unwrap every secret in the value, to act with; never to be printed."""
    if is_secret(value):
        return reveal(value["value"])
    if isinstance(value, Mapping):
        return {key: reveal(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [reveal(inner) for inner in value]
    return value


def conceal(value: Any) -> Any:
    """Replace every secret in the value by ``[secret]``, to be shown."""
    if is_secret(value):
        return "[secret]"
    if isinstance(value, Mapping):
        return {key: conceal(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [conceal(inner) for inner in value]
    return value


def inputs_of(value: object) -> dict[str, Any]:
    """Unwrap a resource's inputs."""
    return cast("dict[str, Any]", reveal(value))
