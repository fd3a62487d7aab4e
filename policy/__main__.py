"""The policy pack: `pulumi up --policy-pack policy` refuses what `rules.py` finds, before anything is changed."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from pulumi_policy import (
    EnforcementLevel,
    PolicyPack,
    ReportViolation,
    ResourceValidationArgs,
    ResourceValidationPolicy,
    Secret,
)
from pulumi_policy.proxy import UnknownValueError
from rules import LOCAL, REMOTE, RULES, SECRET_INPUTS

Rule = Callable[[str, Mapping[str, Any]], Iterator[str]]


def _validate(rule: Rule) -> Callable[[ResourceValidationArgs, ReportViolation], None]:
    def validate(args: ResourceValidationArgs, report: ReportViolation) -> None:
        try:
            for violation in rule(args.resource_type, args.props):
                report(violation)
        except UnknownValueError:
            # A preview does not know the digest of what it would build; the update does, and asks again.
            return

    return validate


def _encrypt(args: ResourceValidationArgs) -> Mapping[str, Any] | None:
    """Make secrets of the inputs that hold credentials, where a program did not."""
    if args.resource_type not in {REMOTE, LOCAL}:
        return None
    inputs = args.props["__target"]  # behind the SDK's proxy, which hides what is a secret already
    plain = {
        key: Secret(inputs[key]) for key in SECRET_INPUTS if key in inputs and not _is_secret(inputs[key])
    }
    return {**inputs, **plain} if plain else None


def _is_secret(value: object) -> bool:
    if isinstance(value, Secret):
        return True
    # Of a connection only the credentials are.
    return isinstance(value, dict) and all(
        _is_secret(item) for key, item in value.items() if key in {"password", "privateKey", "proxy"}
    )


# How the engine ends a policy pack; without this it ends in a traceback that buries what was found.
signal.signal(signal.SIGINT, lambda *_: os._exit(0))
PolicyPack(
    name="esteira",
    enforcement_level=EnforcementLevel.MANDATORY,
    policies=[
        *(
            ResourceValidationPolicy(name=name, description=description, validate=_validate(rule))
            for name, (rule, description) in RULES.items()
        ),
        ResourceValidationPolicy(
            name="credentials-encrypted",
            description="What holds a credential is encrypted in the state.",
            remediate=_encrypt,
            enforcement_level=EnforcementLevel.REMEDIATE,
        ),
    ],
)
