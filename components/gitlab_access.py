"""GitLab's API by python-gitlab: is it there, does it know the token, may the token do what is declared.

The provider asks the same at its first resource, and says it in its own words; asked here, before anything is
registered, the answer names the key at fault. Every failure is an `EsteiraError`, none of which holds the token.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import gitlab
import requests
from gitlab.exceptions import GitlabAuthenticationError, GitlabError, GitlabHttpError
from gitlab.v4.objects import Project

from .errors import EsteiraError
from .gitlab_rules import shown
from .settings import GitlabStack, Settings

PUBLIC_API = "https://gitlab.com/api/v4/"
TIMEOUT = 30.0
"""Seconds that one request may take."""

RETRIES = 6
"""How often a request is sent again; with waits that double from 0.1 s, that is about 6 s in all."""

T = TypeVar("T")


class _Api(gitlab.Gitlab):
    """python-gitlab with fewer retries: its own ten leave a person without a word for 100 s."""

    def http_request(self, *args: Any, **kwargs: Any) -> requests.Response:
        kwargs.setdefault("max_retries", RETRIES)
        return super().http_request(*args, **kwargs)


def base_url(stack: Settings | GitlabStack) -> str:
    """Return the address of the API, with a slash at its end, as the provider wants it."""
    assert stack.gitlab is not None
    return stack.gitlab.base_url or PUBLIC_API


def ca_file(stack: Settings | GitlabStack) -> str | None:
    """Return the path of the private authority's certificate, or None. Raises EsteiraError if it cannot be read."""
    assert stack.gitlab is not None
    if stack.gitlab.ca_file is None:
        return None
    path = stack.root / Path(stack.gitlab.ca_file).expanduser()
    try:
        readable = "BEGIN CERTIFICATE" in path.read_text(encoding="ascii", errors="replace")
    except OSError as error:
        raise EsteiraError(
            f"The file {stack.gitlab.ca_file} (esteira:gitlab.caFile) cannot be read: {error.strerror}."
        ) from None
    if not readable:
        raise EsteiraError(
            f"The file {stack.gitlab.ca_file} (esteira:gitlab.caFile) holds no certificate in PEM format."
        )
    return str(path)


def client(stack: Settings | GitlabStack) -> gitlab.Gitlab:
    """Return a client that waits as a rate limit says, and asks again after an error of the server's own."""
    assert stack.gitlab_token is not None  # the settings see to it
    return _Api(
        base_url(stack).removesuffix("api/v4/"),
        oauth_token=stack.gitlab_token.get_secret_value(),
        ssl_verify=ca_file(stack) or True,
        timeout=TIMEOUT,
        retry_transient_errors=True,
        keep_base_url=True,
    )


def check_access(stack: Settings | GitlabStack) -> None:
    """Make sure, with three small requests, that the token may declare variables in the project.

    Raises EsteiraError: the instance is not reached, or its certificate not known; the token is unknown, expired or
    revoked; its scope or role is too small; there is no such project; a variable that is to be adopted is not there.
    """
    api = client(stack)
    asked(stack, api.auth)
    found = project(stack, api)
    assert stack.gitlab is not None
    if not stack.gitlab.adopt:
        asked(stack, lambda: found.variables.list(per_page=1, page=1, get_all=False))
        return
    there = {
        shown(one.key, one.environment_scope)
        for one in asked(stack, lambda: found.variables.list(get_all=True))
    }
    missing = [name for name in stack.gitlab.adopt if name not in there]
    if missing:
        raise EsteiraError(
            f"The GitLab project {stack.gitlab.project} has no variable {', '.join(missing)}, so there is nothing to "
            f"take over. Take it out of esteira:gitlab.adopt (Pulumi.{stack.stack}.yaml); it is made then."
        )


def project(stack: Settings | GitlabStack, api: gitlab.Gitlab) -> Project:
    """Return the project. Raises EsteiraError."""
    assert stack.gitlab is not None
    name = stack.gitlab.project
    return asked(stack, lambda: api.projects.get(name))


def asked(stack: Settings | GitlabStack, request: Callable[[], T]) -> T:
    """Do a request; an error becomes the sentence that names what to change."""
    try:
        return request()
    except GitlabError as error:
        raise EsteiraError(_explained(stack, error)) from None
    except requests.RequestException as error:
        raise EsteiraError(_unreached(stack, error)) from None


def _explained(stack: Settings | GitlabStack, error: GitlabError) -> str:
    assert stack.gitlab is not None
    where, status = base_url(stack), error.response_code
    said = str(error.error_message or "")
    body = str(error.response_body or b"")
    token = (
        "the environment variable GITLAB_TOKEN"
        if stack.gitlab_token_from_environment
        else f"esteira:gitlabToken (Pulumi.{stack.stack}.yaml)"
    )
    anew = (
        "Make an access token with the scope api for a maintainer of the project, and set it: "
        "pulumi config set --secret esteira:gitlabToken"
    )
    if isinstance(error, GitlabAuthenticationError) or status == requests.codes.unauthorized:
        why = next((word for word in ("expired", "revoked") if word in (said + body).lower()), "")
        why = {"expired": "has expired", "revoked": "was revoked"}.get(why, "is not known there")
        return f"GitLab at {where} does not take the token of {token}: it {why}. {anew}"
    if status == requests.codes.forbidden and "insufficient" in said + body:
        return f"The scope of the token of {token} is too small for GitLab at {where}: it needs api. {anew}"
    if status == requests.codes.forbidden:
        return (
            f"The token of {token} may not do this in the GitLab project {stack.gitlab.project}: its user, or the "
            "token itself, needs the role Maintainer there."
        )
    if status == requests.codes.not_found:
        return (
            f"GitLab at {where} has no project {stack.gitlab.project}, or the token of {token} may not see it. Write "
            f"the project's path with its group, or its number, as esteira:gitlab.project (Pulumi.{stack.stack}.yaml)."
        )
    if status == requests.codes.too_many_requests:
        return f"GitLab at {where} takes no more requests for now (429). Wait a minute, then try again."
    if status is not None and status >= requests.codes.server_error:
        return f"GitLab at {where} has a fault of its own ({status}). Try again later; what was done is in the state."
    if isinstance(error, GitlabHttpError) and status is not None:
        return f"GitLab at {where} refuses the request ({status}): {said[:200]}"
    return f"GitLab at {where} gave no answer of its API: {said[:200]} Check esteira:gitlab.baseUrl."


def _unreached(stack: Settings | GitlabStack, error: requests.RequestException) -> str:
    where = base_url(stack)
    if isinstance(error, requests.exceptions.SSLError):
        return (
            f"The certificate of GitLab at {where} is not signed by an authority that is known here. Name the file "
            f"with the authority's certificate (PEM) as esteira:gitlab.caFile (Pulumi.{stack.stack}.yaml)."
        )
    if isinstance(error, requests.exceptions.Timeout):
        return f"GitLab at {where} does not answer within {TIMEOUT:.0f} seconds. Check the network, then try again."
    return (
        f"GitLab at {where} cannot be reached. Check the network and esteira:gitlab.baseUrl "
        f"(Pulumi.{stack.stack}.yaml)."
    )
