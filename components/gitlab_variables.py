"""Which CI/CD variables a stack declares, with which attributes: one list out of the settings, and what is wrong in it.

Three sources: what the procedure's pipeline and Esteira's own look for, made from the settings (`PRESETS`); the list
``gitlab.variables``; the secret map ``gitlabVariables``, whose entries are called ``KEY`` (all environments) or
``KEY@scope``. A variable's value stands in one of them, its attributes in ``gitlab.variables`` where the defaults do
not fit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from . import gitlab_rules
from .settings_rules import Fault, yaml_lines

if TYPE_CHECKING:
    from pydantic import SecretStr

    from .settings import GitlabSettings, GitlabVariableSettings


@dataclass(frozen=True)
class Attributes:
    """How GitLab keeps a variable."""

    masked: bool = False
    hidden: bool = False
    protected: bool = False
    raw: bool = False
    file: bool = False
    description: str = ""


@dataclass(frozen=True, repr=False)
class Variable:
    """One CI/CD variable. Its repr, and so an error that holds one, shows no value."""

    key: str
    scope: str
    value: str
    attributes: Attributes

    @property
    def name(self) -> str:
        """``KEY`` or ``KEY@scope``."""
        return gitlab_rules.shown(self.key, self.scope)

    def __repr__(self) -> str:
        """Everything but the value."""
        return f"Variable({self.name!r}, {self.attributes})"


_PLAIN = Attributes()
_SECRET = Attributes(masked=True, protected=True, raw=True)
_FILE = Attributes(protected=True, raw=True, file=True)

PRESETS: Mapping[str, Attributes] = {
    # Jobs that build run on every branch; the rest is for those of protected branches and tags.
    "CONTAINER_IMAGE": replace(_PLAIN, raw=True, description="Image of the application, without a tag"),
    "RELEASE_IMAGE": replace(_PLAIN, raw=True, description="Image of the last release, with its moving tag"),
    "DEPLOYMENT_SERVER_IP": replace(_PLAIN, protected=True, raw=True, description="Server to deploy to"),
    "DEPLOYMENT_SERVER_USER": replace(_PLAIN, protected=True, raw=True, description="User on the server"),
    "DEPLOYMENT_SERVER_HOST_KEY": replace(_FILE, description="Public host key of the server (file)"),
    "DEPLOYMENT_SERVER_SUDO": replace(
        _PLAIN, protected=True, raw=True, description="Run docker by sudo there"
    ),
    "DEPLOYMENT_SERVER_PASS": replace(_SECRET, description="Password of the user on the server"),
    # Several lines cannot be masked.
    "DEPLOYMENT_SERVER_KEY": replace(_FILE, description="Private SSH key for the server (file)"),
    "PULUMI_BACKEND_URL": replace(_PLAIN, protected=True, raw=True, description="Where Pulumi keeps state"),
    "PULUMI_CONFIG_PASSPHRASE": replace(_SECRET, description="Decrypts the secrets of the stack files"),
    "PULUMI_ACCESS_TOKEN": replace(_SECRET, description="Log-in to Pulumi Cloud"),
    "CI_DEPLOY_USER": replace(_PLAIN, protected=True, raw=True, description="User that servers pull with"),
    "CI_DEPLOY_PASSWORD": replace(_SECRET, description="Deploy token that servers pull with"),
}
"""Attributes of the variables that are known by name."""

DEPLOY_TOKEN_VARIABLES = ("CI_DEPLOY_USER", "CI_DEPLOY_PASSWORD")
"""What jobs get the deploy token by: GitLab's own names for one, which an entry in the project overrides."""


def known_attributes(key: str, *, secret: bool) -> Attributes:
    """Return the attributes of a variable for which nothing else is written."""
    known = PRESETS.get(key, _SECRET if secret else _PLAIN)
    # PostgreSQL's address has a password in it.
    return replace(known, masked=True) if secret and key == "PULUMI_BACKEND_URL" else known


def resolve(
    gitlab: GitlabSettings, secrets: Mapping[str, SecretStr], image: str, moving_tag: str
) -> tuple[list[Variable], list[Fault]]:
    """Return all variables whose value is known, sorted by key and scope, and all faults.

    image: the image's name without a tag. A fault's path is that of the stack file. The deploy token's variables are
    not among them: their values are the token's outputs.
    """
    faults: list[Fault] = []
    sources: dict[tuple[str, str], tuple[str, tuple[str | int, ...]]] = {}
    secret_names: set[tuple[str, str]] = set()
    for key, scope, value in _from_settings(gitlab, image, moving_tag):
        sources[key, scope] = (value, ("gitlab",))
    for index, written in enumerate(gitlab.variables):
        if written.value is not None:
            sources[written.key, written.scope] = (written.value, ("gitlab", "variables", index))
    for name, secret in secrets.items():
        identity = gitlab_rules.split_name(name)
        if any(identity == (item.key, item.scope) and item.value is not None for item in gitlab.variables):
            faults.append(
                Fault(
                    f"The variable {name} has two values, in gitlab.variables and in gitlabVariables; keep one.",
                    ("gitlabVariables", name),
                    lines=(f"pulumi config rm --path 'esteira:{_step(name)}'",),
                )
            )
        secret_names.add(identity)
        sources[identity] = (secret.get_secret_value(), ("gitlabVariables", name))
    faults += _list_faults(gitlab, sources)
    variables = []
    for (key, scope), (value, path) in sorted(sources.items()):
        position, entry = _written_for(gitlab, key, scope)
        attributes = _attributes(key, entry, secret=(key, scope) in secret_names)
        variable = Variable(key, scope, _ended(value) if attributes.file else value, attributes)
        variables.append(variable)
        faults += _variable_faults(variable, path, position, len(gitlab.variables))
    return variables, faults


def _ended(text: str) -> str:
    """Return a file's text with an end of its last line, which `pulumi config set` takes off.

    OpenSSH refuses the file of a private key without it.
    """
    return f"{text}\n" if "\n" in text and not text.endswith("\n") else text


def _from_settings(gitlab: GitlabSettings, image: str, moving_tag: str) -> Iterator[tuple[str, str, str]]:
    every = gitlab_rules.ALL_SCOPES
    yield "CONTAINER_IMAGE", every, image
    yield "RELEASE_IMAGE", every, f"{image}:{moving_tag}"
    if gitlab.backend_url is not None:
        yield "PULUMI_BACKEND_URL", every, gitlab.backend_url
    for environment in gitlab.environments:
        server = environment.server
        if server is None:
            continue
        yield "DEPLOYMENT_SERVER_IP", environment.name, server.host
        yield "DEPLOYMENT_SERVER_USER", environment.name, server.user
        if server.host_key is not None:
            yield "DEPLOYMENT_SERVER_HOST_KEY", environment.name, server.host_key
        if any(one.server is not None and one.server.sudo for one in gitlab.environments):
            # Also where it is false: jobs would have the value of a wider scope otherwise.
            yield "DEPLOYMENT_SERVER_SUDO", environment.name, str(server.sudo).lower()


def _written_for(
    gitlab: GitlabSettings, key: str, scope: str
) -> tuple[int | None, GitlabVariableSettings | None]:
    for index, item in enumerate(gitlab.variables):
        if (item.key, item.scope) == (key, scope):
            return index, item
    return None, None


def _attributes(key: str, written: GitlabVariableSettings | None, *, secret: bool) -> Attributes:
    default = known_attributes(key, secret=secret)
    if written is None:
        return default
    attributes = Attributes(
        masked=_either(written.masked, default.masked),
        hidden=_either(written.hidden, default.hidden),
        protected=_either(written.protected, default.protected),
        raw=_either(written.raw, default.raw),
        file=default.file if written.type is None else written.type == "file",
        description=default.description if written.description is None else written.description,
    )
    if attributes.hidden and written.masked is None:
        attributes = replace(attributes, masked=True)
    return attributes


def _either(written: bool | None, default: bool) -> bool:
    return default if written is None else written


def deploy_token_attributes(gitlab: GitlabSettings, key: str) -> Attributes:
    """Return the attributes of one of the deploy token's variables."""
    return _attributes(key, _written_for(gitlab, key, gitlab_rules.ALL_SCOPES)[1], secret=False)


def _list_faults(gitlab: GitlabSettings, sources: Mapping[tuple[str, str], object]) -> Iterator[Fault]:
    token = (
        {(key, gitlab_rules.ALL_SCOPES) for key in DEPLOY_TOKEN_VARIABLES} if gitlab.deploy_token else set()
    )
    for identity in sorted(token & sources.keys()):
        yield Fault(
            f"{identity[0]} is the deploy token's, which gitlab.deployToken declares; it has no other value.",
            ("gitlab", "deployToken"),
            lines=("(nothing: take the variable out, or deployToken)",),
        )
    seen: set[tuple[str, str]] = set()
    for index, item in enumerate(gitlab.variables):
        identity = (item.key, item.scope)
        path = ("gitlab", "variables", index)
        if identity in seen:
            yield Fault(
                gitlab_rules.duplicate_faults([identity, identity])[0].replace("2 times", "twice"),
                path,
                lines=("(nothing: take one of the two out)",),
            )
        elif identity not in sources and identity not in token:
            name = gitlab_rules.shown(*identity)
            yield Fault(
                f"The variable {name} has no value: write value here, or set it as a secret.",
                path,
                lines=(set_command(name),),
            )
        seen.add(identity)
    names = {gitlab_rules.shown(*identity) for identity in (*sources, *token)}
    for index, name in enumerate(gitlab.adopt):
        if name not in names:
            yield Fault(
                f"{name} is to be adopted, but this stack declares no such variable.",
                ("gitlab", "adopt", index),
                next(iter(sorted(names)), None),
            )


def _variable_faults(
    variable: Variable, path: tuple[str | int, ...], index: int | None, count: int
) -> Iterator[Fault]:
    found = faults_of(variable)
    if not found:
        return
    mended = _mended(variable)
    command = set_command(variable.name)
    for problem in found:
        if mended is None or faults_of(mended) or problem.startswith("The value ends"):
            lines: tuple[str, ...] | None = (command,) if path[0] == "gitlabVariables" else None
        else:
            where = ("gitlab", "variables", index if index is not None else count)
            lines = tuple(yaml_lines(where, _as_written(variable, mended, path)))
        yield Fault(f"{variable.name}: {problem}", path, lines=lines)


def faults_of(variable: Variable) -> list[str]:
    """Return what GitLab has against a variable."""
    attributes = variable.attributes
    return gitlab_rules.variable_faults(
        variable.key,
        variable.value,
        masked=attributes.masked,
        hidden=attributes.hidden,
        protected=attributes.protected,
        raw=attributes.raw,
        file=attributes.file,
        scope=variable.scope,
        description=attributes.description,
    )


def _mended(variable: Variable) -> Variable | None:
    """Return the variable with other attributes, with which GitLab takes it; None where they cannot help."""
    was = variable.attributes
    tries = [
        replace(was, masked=was.masked or was.hidden),
        replace(was, raw=True),
        replace(was, file=was.file or "\n" in variable.value, masked=False, hidden=False, protected=True),
    ]
    for attributes in tries:
        mended = replace(variable, attributes=attributes)
        if not faults_of(mended):
            return mended
    return None


def _as_written(variable: Variable, mended: Variable, path: tuple[str | int, ...]) -> dict[str, object]:
    """Return the entry of ``gitlab.variables`` that gives a variable its mended attributes."""
    entry: dict[str, object] = {"key": variable.key}
    if variable.scope != gitlab_rules.ALL_SCOPES:
        entry["scope"] = variable.scope
    if path[0] == "gitlab" and len(path) > 1:
        entry["value"] = variable.value
    old, new = variable.attributes, mended.attributes
    if new.file:
        entry["type"] = "file"
    for name in ("masked", "hidden", "protected", "raw"):
        if getattr(old, name) != getattr(new, name) or (name == "protected" and new.file):
            entry[name] = getattr(new, name)
    return entry


def _step(name: str) -> str:
    return f"gitlabVariables.{name}" if "@" not in name else f'gitlabVariables["{name}"]'


def set_command(name: str) -> str:
    """Return the command that sets a secret variable; it asks for the value, or reads it from a file."""
    return f"pulumi config set --secret --path 'esteira:{_step(name)}'"
