"""Reads Pulumi.yaml and Pulumi.<stack>.yaml as the engine does, as far as that goes without the engine."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from rehearsal.errors import RehearsalError

ALTERNATIVES: Mapping[str, tuple[str, str]] = {
    "gitlabToken": ("GITLAB_TOKEN", ""),
    "registryPassword": ("CI_REGISTRY_PASSWORD", " or the setting registryPasswordFile"),
    "pullPassword": ("CI_DEPLOY_PASSWORD", ""),
    "serverPassword": ("DEPLOYMENT_SERVER_PASS", ""),
    "serverPrivateKey": ("DEPLOYMENT_SERVER_KEY", " (the key itself, or the path of its file)"),
}
"""Secret setting -> the environment variable that supplies it as well, and more advice."""


@dataclass(frozen=True)
class StackConfig:
    """What the program finds as its configuration.

    ``values`` are keyed ``namespace:key`` and are strings, structured ones as JSON, as the engine passes
    them.
    """

    project: str
    program: Path
    values: Mapping[str, str]
    secret_keys: frozenset[str]
    notes: tuple[str, ...]


def read_stack_config(
    root: Path,
    stack: str,
    *,
    environ: Mapping[str, str],
    config: Mapping[str, object] | None = None,
    secret_keys: Collection[str] = frozenset(),
) -> StackConfig:
    """Read the configuration of ``stack`` in the project at ``root``.

    ``config`` and ``secret_keys`` are laid over the stack file; a key without a namespace belongs to the
    project. An encrypted value is left out where the environment supplies it, and is an error
    (:class:`RehearsalError`, all of them at once) where not.
    """
    project_file = root / "Pulumi.yaml"
    if not project_file.is_file():
        raise RehearsalError(f"There is no Pulumi.yaml in {root}. Run this in the project's folder.")
    described = _load(project_file)
    project = described.get("name")
    if not isinstance(project, str):
        raise RehearsalError(f"{project_file} names no project. Give it a line `name: …`.")
    stack_file = root / f"Pulumi.{stack}.yaml"
    if not stack_file.is_file():
        raise RehearsalError(
            f"There is no stack {stack} here: {stack_file.name} is missing. Write one, or name another stack."
        )

    def full(key: str) -> str:
        return key if ":" in key else f"{project}:{key}"

    over = {full(key): value for key, value in (config or {}).items()}
    values: dict[str, object] = {}
    for key, schema in (described.get("config") or {}).items():
        if isinstance(schema, Mapping):
            for word in ("value", "default"):
                if word in schema:
                    values[full(key)] = schema[word]
                    break
        else:
            values[full(key)] = schema
    notes: list[str] = []
    refused: list[str] = []
    for written, value in (_load(stack_file).get("config") or {}).items():
        key = full(written)
        if key in over:
            continue
        if not _has_ciphertext(value):
            values[key] = value
            continue
        short = key.partition(":")[2]
        variable, more = ALTERNATIVES.get(short, ("", ""))
        if variable and environ.get(variable):
            notes.append(
                f"{key} is encrypted in {stack_file.name}; the environment's {variable} is used instead."
            )
            continue
        way = (
            f"Set the environment variable {variable}{more} instead"
            if variable
            else "Leave it out of this stack"
        )
        refused.append(f"{key} in {stack_file.name} is encrypted. {way}, or install the Pulumi CLI.")
    if refused:
        raise RehearsalError(
            "Only the Pulumi CLI can decrypt the secrets of a stack file, and this is a run without it.\n"
            + "\n".join(refused)
        )
    values.update(over)
    main = described.get("main")
    program = root / main if isinstance(main, str) else root
    return StackConfig(
        project=project,
        program=program / "__main__.py" if program.is_dir() else program,
        values={key: _as_text(value) for key, value in values.items() if value is not None},
        secret_keys=frozenset(full(key) for key in secret_keys),
        notes=tuple(notes),
    )


def _load(path: Path) -> dict[str, Any]:
    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        # The problem's place is enough; the text around it, which PyYAML quotes, may hold a secret.
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}" if mark is not None else ""
        problem = getattr(error, "problem", None) or "not YAML"
        raise RehearsalError(f"{path.name}{where} cannot be read as YAML: {problem}.") from None
    if loaded is None:
        return {}
    if not isinstance(loaded, dict):
        raise RehearsalError(f"{path.name} must be a YAML map.")
    return loaded


def _has_ciphertext(value: object) -> bool:
    if isinstance(value, Mapping):
        return set(value) == {"secure"} or any(_has_ciphertext(inner) for inner in value.values())
    if isinstance(value, (list, tuple)):
        return any(_has_ciphertext(inner) for inner in value)
    return False


def _as_text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)
