"""A stack outside the engine: which one is meant, and its settings, secrets included as far as the user has them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cli import local, shell
from components.errors import EsteiraError
from components.settings import NAMESPACE, Settings, SettingsError, load_settings, parse_stack_file
from rehearsal.stackfile import ALTERNATIVES

PULUMI_SECONDS = 120
_STAND_IN = "not-read"
_LOGINS = ("serverPassword", "serverPrivateKey", "sudoPassword", "jumpPassword", "jumpPrivateKey")
"""Secrets without which no server can be asked."""
_OF_THE_RELEASE = ("secretEnvironment", "secretFiles")
"""Secrets that are in a release's fingerprint."""
_PASSWORDS = {
    "registryPassword": ("registryUser", "CI_REGISTRY_PASSWORD"),
    "pullPassword": ("pullUser", "CI_DEPLOY_PASSWORD"),
}
"""Password -> the setting of its user, and the variable of a job that has it."""


@dataclass(frozen=True)
class Declared:
    """A stack's settings as they are declared now."""

    settings: Settings
    whole: bool
    """Whether the release's own secrets are the real ones; else they are stand-ins, and no fingerprint is known."""


def choose(root: Path, stack: str | None) -> str:
    """Return the stack that is meant: the named one, else the selected one, else ``local``."""
    if stack:
        return stack
    if os.environ.get("PULUMI_STACK"):
        return os.environ["PULUMI_STACK"].rpartition("/")[2]
    if shell.has("pulumi"):
        answer = shell.run(
            ["pulumi", "stack", "--show-name", "--non-interactive"],
            cwd=root,
            timeout=PULUMI_SECONDS,
            check=False,
        )
        if answer.returncode == 0 and answer.stdout.strip():
            return answer.stdout.strip().rpartition("/")[2]
    return local.STACK


def declared(root: Path, stack: str) -> Declared:
    """Read a stack's settings: from Pulumi where it can decrypt them, else from the stack file and the environment.

    Raises EsteiraError where the stack or a login to its servers cannot be had.
    """
    file = root / f"Pulumi.{stack}.yaml"
    if not file.is_file():
        raise EsteiraError(
            f"There is no stack {stack} here: {file.name} is missing. Name another one: --stack NAME."
        )
    if stack == local.STACK and not parse_stack_file(file).secret_keys:
        place = local.Place(root)
        if not place.folder.is_dir():
            raise EsteiraError("The local stack is not up on this machine. Type: ./esteira up")
        return Declared(place.settings(), whole=True)
    try:
        values, secret = _from_pulumi(root, stack)
        return Declared(_load(root, stack, values, secret), whole=True)
    except SettingsError:
        raise
    except EsteiraError as error:
        return _from_file(root, stack, str(error))


def only(settings: Settings, server: str | None) -> Settings:
    """Return the settings with the named server alone. Raises EsteiraError where there is none of that name."""
    if server is None:
        return settings
    found = [one for one in settings.servers if one.name == server]
    if not found:
        names = ", ".join(one.name for one in settings.servers)
        raise EsteiraError(f"The stack {settings.stack} has no server {server}; it has {names}.")
    return settings.model_copy(update={"servers": found})


def _from_pulumi(root: Path, stack: str) -> tuple[dict[str, object], frozenset[str]]:
    if not shell.has("pulumi"):
        raise EsteiraError("the Pulumi CLI is not installed")
    try:
        answer = shell.run(
            ["pulumi", "config", "--show-secrets", "--json", "--non-interactive", "--stack", stack],
            cwd=root,
            timeout=PULUMI_SECONDS,
        )
        said = json.loads(answer.stdout)
    except (shell.CommandError, ValueError) as error:
        last = (str(error).splitlines() or [""])[-1] if isinstance(error, shell.CommandError) else "no JSON"
        raise EsteiraError(f"pulumi says: {last.removeprefix('error: ')}") from None
    values: dict[str, object] = {}
    secret = set()
    for name, entry in said.items():
        namespace, _, key = name.partition(":")
        if namespace == NAMESPACE and isinstance(entry, dict):
            values[key] = entry.get("objectValue", entry.get("value"))
            if entry.get("secret"):
                secret.add(key)
    return values, frozenset(secret)


def _from_file(root: Path, stack: str, why: str) -> Declared:
    values, encrypted = parse_stack_file(root / f"Pulumi.{stack}.yaml")
    secret = set(encrypted)
    supplied = {key for key, (variable, _) in ALTERNATIVES.items() if os.environ.get(variable)}
    login = bool(supplied & set(_LOGINS))
    missing = []
    whole = True
    for key in encrypted:
        if login and key in {"serverPassword", "serverPrivateKey"}:
            del values[key]
            secret.discard(key)
        elif key in _LOGINS:
            missing.append(key)
        else:
            values[key] = os.environ.get(_PASSWORDS.get(key, ("", ""))[1]) or _stand_in(values[key])
            whole = whole and key not in _OF_THE_RELEASE
    if missing:
        ways = [ALTERNATIVES[key][0] for key in missing if key in ALTERNATIVES]
        way = f"; or set {' or '.join(ways)} in the environment" if ways else ""
        raise EsteiraError(
            f"{', '.join(f'esteira:{key}' for key in sorted(missing))} in Pulumi.{stack}.yaml cannot be decrypted "
            f"({why}). Log in to the stack's backend and give its passphrase (pulumi login, "
            f"PULUMI_CONFIG_PASSPHRASE){way}."
        )
    for password, (user, variable) in _PASSWORDS.items():
        if user in values and not {password, "registryPasswordFile"} & values.keys():
            values[password] = os.environ.get(variable) or _STAND_IN
            secret.add(password)
    return Declared(_load(root, stack, values, frozenset(secret)), whole=whole)


def _stand_in(value: object) -> object:
    if isinstance(value, Mapping) and set(value) != {"secure"}:
        return {name: _stand_in(entry) for name, entry in value.items()}
    return _STAND_IN


def _load(root: Path, stack: str, values: Mapping[str, Any], secret: frozenset[str]) -> Settings:
    return load_settings(
        values, secret, project=local.project_name(root), stack=stack, root=root, environ=os.environ
    )
