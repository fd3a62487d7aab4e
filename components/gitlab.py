"""What GitLab must know: CI/CD variables of the project, and a deploy token that servers pull with.

The order in which things change is made by names, not by waiting. A variable's resource is called by its key and scope,
so another key or scope is another variable, made before the old one is deleted. Only what GitLab does not change in
place (hidden, the project) replaces a variable, old one first, because GitLab keeps one of a key and scope. A deploy
token's resource is called by its rotation: the new one is made, the variables get it, and the one before stays valid
until the next rotation.
"""

import datetime as dt
from collections.abc import Mapping, Sequence
from typing import TypedDict

import pulumi
import pulumi_gitlab
from typing_extensions import NotRequired

from . import gitlab_rules, gitlab_values
from .errors import EsteiraError
from .gitlab_access import base_url, ca_file
from .gitlab_variables import (
    DEPLOY_TOKEN_VARIABLES,
    Attributes,
    Variable,
    deploy_token_attributes,
    resolve,
)
from .settings import DeployTokenSettings, GitlabSettings, GitlabStack, Settings


class VariableArgs(TypedDict):
    """One CI/CD variable. What is left out is GitLab's default: no attribute, all environments."""

    key: str
    """Its name: letters, digits and _."""
    value: pulumi.Input[str]
    """Its value; a secret in the state, whatever it is."""
    scope: NotRequired[str]
    """Environment scope: ``*``, an environment's name, or a name with ``*`` in it."""
    masked: NotRequired[bool]
    """Keep the value out of job logs."""
    hidden: NotRequired[bool]
    """Masked, and shown to nobody any more."""
    protected: NotRequired[bool]
    """Only for jobs of protected branches and tags."""
    raw: NotRequired[bool]
    """Do not replace ``$NAME`` in the value."""
    file: NotRequired[bool]
    """Jobs get the path of a file with the value in it."""
    description: NotRequired[str]
    """What it is for."""
    adopt: NotRequired[bool]
    """Take over a variable of this key and scope that the project has already; it must be there."""


class CiVariablesArgs(TypedDict):
    """What `CiVariables` declares."""

    project: str
    """The GitLab project, its path or its number."""
    variables: Sequence[VariableArgs]
    """The variables, no key and scope twice."""
    stackFile: NotRequired[str]
    """File that an error tells to change: ``Pulumi.<stack>.yaml``."""


class CiVariables(pulumi.ComponentResource):
    """The CI/CD variables of a GitLab project; all of GitLab's rules are checked before one is declared."""

    names: pulumi.Output[list[str]]
    """What is declared, ``KEY`` or ``KEY@scope``."""

    def __init__(self, name: str, args: CiVariablesArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("esteira:index:CiVariables", name, {}, opts)
        variables = list(args["variables"])
        _refuse(_faults(variables))
        file = args.get("stackFile", f"Pulumi.{pulumi.get_stack()}.yaml")
        identities = [(one["key"], one.get("scope", gitlab_rules.ALL_SCOPES)) for one in variables]
        hook = pulumi.ErrorHook(f"{name}-taken", _Taken(file))
        for (key, scope), one in zip(identities, variables, strict=True):
            pulumi_gitlab.ProjectVariable(
                f"{name}-{gitlab_rules.shown(key, scope)}",
                project=args["project"],
                key=key,
                value=pulumi.Output.secret(one["value"]).apply(_checked(one)),
                environment_scope=scope,
                # GitLab answers that a hidden one is masked; said otherwise, it would be a change at each refresh.
                masked=one.get("masked", False) or one.get("hidden", False),
                hidden=one.get("hidden", False),
                protected=one.get("protected", False),
                raw=one.get("raw", False),
                variable_type="file" if one.get("file", False) else "env_var",
                description=one.get("description") or None,
                opts=pulumi.ResourceOptions(
                    parent=self,
                    import_=f"{args['project']}:{key}:{scope}" if one.get("adopt", False) else None,
                    # GitLab keeps one of a key and scope: the new one cannot be made beside the old one.
                    delete_before_replace=True,
                    hooks=pulumi.ResourceHookBinding(on_error=[hook]),
                ),
            )
        self.names = pulumi.Output.from_input([gitlab_rules.shown(*identity) for identity in identities])
        self.register_outputs({"names": self.names})


class DeployTokenArgs(TypedDict):
    """What a `DeployToken` declares."""

    project: str
    """The GitLab project, its path or its number."""
    name: NotRequired[str]
    """The token's name in GitLab; the rotation is added. ``esteira-pull`` by default."""
    rotation: NotRequired[int]
    """1 by default; raised by one for a new token."""
    keepPrevious: NotRequired[bool]
    """Whether the token of the rotation before stays valid. True by default."""
    expiresAt: NotRequired[str]
    """Last day on which it works, ``YYYY-MM-DD`` in UTC; without it, it never expires."""
    warnDays: NotRequired[int]
    """From how many days before that on a preview warns. 30 by default."""


class DeployToken(pulumi.ComponentResource):
    """A deploy token of a GitLab project that may read its registry, for the servers' pulls.

    A new rotation is a new token. The one before it stays valid until the next rotation (or `keepPrevious` false), so
    that jobs that began before and servers that were logged in by hand do not hold a dead one.
    """

    username: pulumi.Output[str]
    """User of the current token."""
    token: pulumi.Output[str]
    """The current token itself, a secret."""

    def __init__(self, name: str, args: DeployTokenArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("esteira:index:DeployToken", name, {}, opts)
        rotation, expires = args.get("rotation", 1), args.get("expiresAt")
        warning = expiry_warning(
            args.get("name", "esteira-pull"),
            rotation,
            expires,
            args.get("warnDays", 30),
            gitlab_values.today(),
        )
        if warning is not None:
            pulumi.log.warn(warning, self)
        current = self._token(name, args, rotation, previous=False)
        if rotation > 1 and args.get("keepPrevious", True):
            self._token(name, args, rotation - 1, previous=True)
        self.username = current.username
        self.token = pulumi.Output.secret(current.token)
        self.register_outputs({"username": self.username, "token": self.token})

    def _token(
        self, name: str, args: DeployTokenArgs, rotation: int, *, previous: bool
    ) -> pulumi_gitlab.ProjectDeployToken:
        expires = args.get("expiresAt")
        return pulumi_gitlab.ProjectDeployToken(
            f"{name}-{rotation}",
            project=args["project"],
            name=f"{args.get('name', 'esteira-pull')}-{rotation}",
            scopes=["read_registry"],
            # GitLab's tokens end at a moment; the day is still usable.
            expires_at=f"{expires}T23:59:59Z" if expires else None,
            # The settings see to it; the token before may have expired, and is still declared.
            validate_past_expiration_date=False,
            opts=pulumi.ResourceOptions(
                parent=self,
                # Another name or day would replace it, and so revoke what servers may still hold.
                ignore_changes=["name", "expiresAt", "scopes"] if previous else None,
            ),
        )


def expiry_warning(name: str, rotation: int, expires: str | None, days: int, today: dt.date) -> str | None:
    """Return the warning that a deploy token expires soon, or None."""
    if expires is None:
        return None
    left = (dt.date.fromisoformat(expires) - today).days
    if left > days:
        return None
    when = {0: "today", 1: "tomorrow"}.get(left, f"in {left} days")
    return (
        f"The deploy token {name}-{rotation} expires {when}, on {expires}: servers cannot pull after that. Write "
        f"rotation: {rotation + 1} and a later expiresAt in esteira:gitlab.deployToken, then run pulumi up."
    )


def declare_gitlab(stack: Settings | GitlabStack) -> None:
    """Declare all that the settings' ``gitlab`` names; nothing where there is none."""
    if stack.gitlab is None:
        return
    opts = pulumi.ResourceOptions(providers={"gitlab": provider(stack)})
    variables, _ = resolve(
        stack.gitlab, stack.gitlab_variables, f"{stack.registry}/{stack.repository}", stack.moving_tag
    )
    args = [_variable_args(one, stack.gitlab) for one in variables]
    if stack.gitlab.deploy_token is not None:
        token = DeployToken(
            "deploy-token", _token_args(stack.gitlab.project, stack.gitlab.deploy_token), opts
        )
        values: Mapping[str, pulumi.Input[str]] = dict(
            zip(DEPLOY_TOKEN_VARIABLES, (token.username, token.token), strict=True)
        )
        for key, value in values.items():
            args.append(
                _args(
                    key,
                    gitlab_rules.ALL_SCOPES,
                    value,
                    deploy_token_attributes(stack.gitlab, key),
                    stack.gitlab,
                )
            )
    declared = CiVariables(
        "ci",
        {"project": stack.gitlab.project, "variables": args, "stackFile": f"Pulumi.{stack.stack}.yaml"},
        opts,
    )
    pulumi.export("ciVariables", declared.names)


def provider(stack: Settings | GitlabStack) -> pulumi_gitlab.Provider:
    """Declare the GitLab provider as the settings say.

    A token of the environment is no input: the provider finds it there itself, and another one is no change.
    """
    token = None if stack.gitlab_token_from_environment else stack.gitlab_token
    return pulumi_gitlab.Provider(
        "gitlab",
        base_url=base_url(stack),
        cacert_file=ca_file(stack),
        token=pulumi.Output.secret(token.get_secret_value()) if token is not None else None,
    )


def _variable_args(variable: Variable, gitlab: GitlabSettings) -> VariableArgs:
    return _args(variable.key, variable.scope, variable.value, variable.attributes, gitlab)


def _args(
    key: str, scope: str, value: pulumi.Input[str], attributes: Attributes, gitlab: GitlabSettings
) -> VariableArgs:
    return {
        "key": key,
        "scope": scope,
        "value": value,
        "masked": attributes.masked,
        "hidden": attributes.hidden,
        "protected": attributes.protected,
        "raw": attributes.raw,
        "file": attributes.file,
        "description": attributes.description,
        "adopt": gitlab_rules.shown(key, scope) in gitlab.adopt,
    }


def _token_args(project: str, settings: DeployTokenSettings) -> DeployTokenArgs:
    args: DeployTokenArgs = {
        "project": project,
        "name": settings.name,
        "rotation": settings.rotation,
        "keepPrevious": settings.keep_previous,
        "warnDays": settings.warn_days,
    }
    if settings.expires_at is not None:
        args["expiresAt"] = settings.expires_at
    return args


class _Taken:
    """An error hook: when GitLab has the variable already, say which line takes it over."""

    def __init__(self, file: str) -> None:
        self.file = file

    def __call__(self, failed: pulumi.ErrorHookArgs) -> bool:
        """Log the advice, and try nothing again."""
        inputs = failed.new_inputs or {}
        if failed.failed_operation == "create" and gitlab_rules.is_taken(failed.errors):
            scope = str(inputs.get("environmentScope", gitlab_rules.ALL_SCOPES))
            pulumi.log.error(gitlab_rules.taken(str(inputs.get("key", failed.name)), scope, self.file))
        return False


class _Checked:
    """GitLab's rules for a value that is known only when another resource is there."""

    def __init__(self, variable: VariableArgs) -> None:
        self._variable = variable

    def __call__(self, value: str) -> str:
        _refuse(_variable_faults(self._variable, value))
        return value


def _checked(variable: VariableArgs) -> _Checked:
    return _Checked(variable)


def _faults(variables: Sequence[VariableArgs]) -> list[str]:
    faults = gitlab_rules.duplicate_faults(
        (one["key"], one.get("scope", gitlab_rules.ALL_SCOPES)) for one in variables
    )
    for one in variables:
        value = one["value"]
        # Of a value that is not known yet everything but the value is checked: this one can be masked.
        faults += _variable_faults(one, value if isinstance(value, str) else "12345678")
    return faults


def _variable_faults(variable: VariableArgs, value: str) -> list[str]:
    scope = variable.get("scope", gitlab_rules.ALL_SCOPES)
    faults = gitlab_rules.variable_faults(
        variable["key"],
        value,
        masked=variable.get("masked", False) or variable.get("hidden", False),
        hidden=variable.get("hidden", False),
        protected=variable.get("protected", False),
        raw=variable.get("raw", False),
        file=variable.get("file", False),
        scope=scope,
        description=variable.get("description", ""),
    )
    return [f"{gitlab_rules.shown(variable['key'], scope)}: {fault}" for fault in faults]


def _refuse(faults: Sequence[str]) -> None:
    if faults:
        raise EsteiraError("GitLab would refuse this; nothing has been sent.\n" + "\n".join(faults))
