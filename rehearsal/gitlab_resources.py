"""GitLab's resources, as the provider pulumi-gitlab carries them out, by python-gitlab.

There is no state, so what is there under the same name is taken over: a variable by key and scope, a deploy token by
its name. GitLab shows a deploy token's secret once; it is kept in ``.esteira/local`` (0600), and the token is used
again as long as GitLab has it and nothing about it was changed. A token that another one replaces is deleted when
everything else is done, as the engine does it.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import gitlab
import requests
from gitlab.exceptions import GitlabError
from requests.adapters import HTTPAdapter

from rehearsal.errors import RehearsalError
from rehearsal.values import SECRET, SIGNATURE

if TYPE_CHECKING:
    from rehearsal.monitor import Context

PUBLIC_URL = "https://gitlab.com/api/v4/"
TIMEOUT = 30.0
"""Seconds that one request may take."""
RETRIES = 7
"""How often a request is repeated: after 0.1, 0.2, 0.4 … seconds, 12.7 in all, or when GitLab's rate limit says."""
LONGEST_WAIT = 120
"""Seconds that a rate limit may ask for; above, the run ends and says so."""

_FIELDS = (
    ("value", "value", ""),
    ("protected", "protected", False),
    ("masked", "masked", False),
    ("raw", "raw", False),
    ("variableType", "variable_type", "env_var"),
    ("description", "description", None),
)
"""Input of a variable, field of the API, GitLab's default. Key, scope and hidden are dealt with apart."""


class Client:
    """GitLab as one provider is configured to reach it: python-gitlab, with its errors as sentences."""

    def __init__(self, provider: Mapping[str, Any], line: Any) -> None:
        for unsupported in ("configFile", "context"):
            if provider.get(unsupported):
                raise RehearsalError(
                    f"The GitLab provider's {unsupported} needs the Pulumi engine; set token and baseUrl instead."
                )
        token = provider.get("token") or os.environ.get("GITLAB_TOKEN")
        base_url = provider.get("baseUrl") or os.environ.get("GITLAB_BASE_URL") or PUBLIC_URL
        if not token:
            raise RehearsalError(
                f"There is no token for GitLab ({base_url}). Set the environment variable GITLAB_TOKEN to an access "
                "token with the scope api, of a maintainer of the project."
            )
        self.where = base_url.rstrip("/").removesuffix("/api/v4")
        self._line = line
        session = requests.Session()
        # As many connections as resources can be under way.
        for scheme in ("http://", "https://"):
            session.mount(scheme, HTTPAdapter(pool_maxsize=64))
        session.hooks["response"].append(self._watch)
        session.headers.update(_decoded(provider.get("headers")) or {})
        if provider.get("clientCert"):
            session.cert = (provider["clientCert"], provider["clientKey"])
        insecure = _decoded(provider.get("insecure")) is True
        self._api = gitlab.Gitlab(
            self.where,
            # As the provider sends it: Authorization: Bearer.
            oauth_token=token,
            ssl_verify=provider.get("cacertFile") or not insecure,
            timeout=TIMEOUT,
            retry_transient_errors=True,
            keep_base_url=True,
            session=session,
        )
        self._lock = threading.RLock()
        self._variables: dict[str, dict[tuple[str, str], dict[str, Any]]] = {}
        if _decoded(provider.get("earlyAuthCheck")) is not False:
            self.ask("the user of the token", "GET", "/user")

    def ask(self, what: str, verb: str, path: str, data: Any = None, **query: Any) -> Any:
        """Make one request, again where that may help, and return the JSON. Raises RehearsalError about ``what``."""
        try:
            answer = self._api.http_request(
                verb, path, post_data=data, query_data=query or None, max_retries=RETRIES
            )
            return answer.json() if answer.content else None
        except GitlabError as error:
            raise _explained(error, what, self.where) from None
        except requests.exceptions.SSLError:
            raise RehearsalError(
                f"The certificate of {self.where} is not known here. Name the file of its authority: caFile."
            ) from None
        except (requests.RequestException, ValueError) as error:
            raise RehearsalError(
                f"{what}: {self.where} gave no answer, {RETRIES + 1} times ({type(error).__name__}). What was done "
                "before stays; run it again when GitLab is there."
            ) from None

    def pages(self, what: str, path: str) -> list[dict[str, Any]]:
        """Give a whole list."""
        found: list[dict[str, Any]] = []
        for page in range(1, 1000):
            part = self.ask(what, "GET", path, page=page, per_page=100)
            found += part
            if len(part) < 100:
                break
        return found

    def path_of(self, project: str) -> str:
        """Give the API's path of a project."""
        return f"/projects/{gitlab.utils.EncodedId(project)}"

    def variable(self, project: str, key: str, scope: str) -> dict[str, Any] | None:
        """Give a variable as it was when the first was asked for; all of a project's are read at once."""
        with self._lock:
            if project not in self._variables:
                listed = self.pages(f"The variables of {project}", f"{self.path_of(project)}/variables")
                self._variables[project] = {(one["key"], one["environment_scope"]): one for one in listed}
            return self._variables[project].get((key, scope))

    def _watch(self, response: requests.Response, **_: Any) -> None:
        """Say that a rate limit makes us wait; give up where it would be for too long."""
        if response.status_code != 429:
            return
        wait = response.headers.get("Retry-After", "")
        if wait.isdigit() and int(wait) > LONGEST_WAIT:
            raise RehearsalError(
                f"{self.where} takes no request for {wait} s (rate limit). What was done before stays; run it again "
                "after that."
            )
        self._line(f"{self.where} asks to wait{f' {wait} s' if wait else ''} (rate limit)")


_clients: dict[str, Client] = {}
_clients_lock = threading.Lock()


def client(context: Context) -> Client:
    """Give the client of the resource's provider; its token is tried when it is made."""
    provider = dict(context.provider)
    key = json.dumps(provider, sort_keys=True, default=str)
    with _clients_lock:
        if key not in _clients:
            _clients[key] = Client(provider, context.line)
        return _clients[key]


# Variables.


def declare_variable(inputs: dict[str, Any], context: Context) -> dict[str, Any]:
    """Make a variable, or change what is there so that it is as declared; nothing is sent if it is already."""
    variable = _Variable(inputs, client(context))
    before = variable.known()
    if before is None:
        variable.create()
    elif bool(before["hidden"]) != variable.hidden:
        variable.replace(before)
    elif variable.hidden or any(before[field] != value for field, value in variable.fields.items()):
        variable.update()
    return {
        "environmentScope": variable.scope,
        "variableType": variable.fields.get("variable_type", "env_var"),
        "hidden": variable.hidden,
        **{name: bool(inputs.get(name)) for name in ("masked", "protected", "raw")},
    }


def remove_variable(inputs: dict[str, Any], context: Context) -> dict[str, Any]:
    """Delete the variable, if it is there."""
    variable = _Variable(inputs, client(context))
    if variable.known() is not None:
        variable.delete()
    return {}


def variable_placeholder(inputs: dict[str, Any]) -> dict[str, Any]:
    """Stand in for the outputs of a variable: they are its inputs."""
    return {"environmentScope": inputs.get("environmentScope") or "*"}


class _Variable:
    """One variable as declared, and what can be done about it."""

    def __init__(self, inputs: Mapping[str, Any], api: Client) -> None:
        self._api = api
        self._project = str(inputs["project"])
        self._key = str(inputs["key"])
        self.scope = str(inputs.get("environmentScope") or "*")
        self.hidden = bool(inputs.get("hidden"))
        # What is not declared is GitLab's default, as the provider has it.
        self.fields: dict[str, Any] = {field: inputs.get(name, default) for name, field, default in _FIELDS}
        self._what = f"The variable {self._key} (scope {self.scope}) of {self._project}"
        self._path = f"{api.path_of(self._project)}/variables"
        self._filter = {"filter[environment_scope]": self.scope}

    def known(self) -> dict[str, Any] | None:
        """Give it as GitLab has it, or None."""
        return self._api.variable(self._project, self._key, self.scope)

    def create(self, fields: Mapping[str, Any] | None = None, *, hidden: bool | None = None) -> None:
        """Make it."""
        fields = self.fields if fields is None else fields
        hidden = self.hidden if hidden is None else hidden
        data = {"key": self._key, "environment_scope": self.scope, **fields}
        if hidden:
            del data["masked"]
            data["masked_and_hidden"] = True
        try:
            self._api.ask(self._what, "POST", self._path, data)
        except _TakenError:
            # Made by the same request, whose answer was lost, or by somebody else just now.
            self.update()

    def update(self) -> None:
        """Change it."""
        fields = {**self.fields, "masked": True} if self.hidden else self.fields
        self._api.ask(self._what, "PUT", f"{self._path}/{self._key}", fields, **self._filter)

    def delete(self) -> None:
        """Delete it."""
        with contextlib.suppress(_MissingError):
            self._api.ask(self._what, "DELETE", f"{self._path}/{self._key}", **self._filter)

    def replace(self, before: Mapping[str, Any]) -> None:
        """Delete it and make it anew: GitLab does not change whether a variable is hidden."""
        if self.hidden:
            # GitLab has the same rule for masked and for hidden values: what it takes here it takes anew.
            self.update()
        self.delete()
        try:
            self.create()
        except RehearsalError as error:
            if before["hidden"]:
                raise RehearsalError(
                    f"{error}\nThe hidden variable was deleted to be replaced, and is missing now; run it again."
                ) from None
            # The old one again.
            self.create({field: before[field] for _, field, _ in _FIELDS}, hidden=False)
            raise


# Deploy tokens.


def declare_deploy_token(inputs: dict[str, Any], context: Context) -> dict[str, Any]:
    """Make a deploy token, or use the one that an earlier run made, whose secret it kept."""
    api = client(context)
    project, name = str(inputs["project"]), str(inputs["name"])
    what = f"The deploy token {name} of {project}"
    path = f"{api.path_of(project)}/deploy_tokens"
    memory = _Memory(context.root)
    there = {one["id"]: one for one in api.pages(what, path) if one["name"] == name}
    remembered = memory.recall(api.where, project, name)
    wanted = {
        "scopes": sorted(inputs["scopes"]),
        "expiresAt": inputs.get("expiresAt"),
        "username": inputs.get("username"),
    }
    if remembered is not None and remembered["id"] in there:
        same = all(
            remembered["wanted"].get(one) == value
            for one, value in wanted.items()
            if one not in context.ignore_changes
        )
        known = there[remembered["id"]]
        if same and not known["revoked"] and (not known["expired"] or "expiresAt" in context.ignore_changes):
            return _token_outputs(known, remembered["token"])
        context.later(lambda: _revoke(api, what, path, remembered["id"]))
    made = api.ask(
        what,
        "POST",
        path,
        {
            "name": name,
            "scopes": wanted["scopes"],
            **({"expires_at": wanted["expiresAt"]} if wanted["expiresAt"] else {}),
            **({"username": wanted["username"]} if wanted["username"] else {}),
        },
    )
    memory.keep(api.where, project, name, {"id": made["id"], "token": made["token"], "wanted": wanted})
    # A request that was repeated because its answer was lost has made two.
    for one in api.pages(what, path):
        if one["name"] == name and one["id"] not in there and one["id"] != made["id"]:
            _revoke(api, what, path, one["id"])
    others = sorted(set(there) - {remembered["id"] if remembered else None})
    if others:
        context.line(
            f"GitLab has another deploy token {name} (id {', '.join(map(str, others))}), whose secret is not known "
            "here; it stays. Delete it in GitLab if nobody uses it."
        )
    return _token_outputs(made, made["token"])


def remove_deploy_token(inputs: dict[str, Any], context: Context) -> dict[str, Any]:
    """Delete the deploy token that a run from here made; without a record of one, those of its name."""
    api = client(context)
    project, name = str(inputs["project"]), str(inputs["name"])
    what = f"The deploy token {name} of {project}"
    path = f"{api.path_of(project)}/deploy_tokens"
    memory = _Memory(context.root)
    remembered = memory.recall(api.where, project, name)
    there = [one["id"] for one in api.pages(what, path) if one["name"] == name]
    for number in there if remembered is None else [remembered["id"]]:
        _revoke(api, what, path, number)
    memory.forget(api.where, project, name)
    return {}


def deploy_token_placeholder(inputs: dict[str, Any]) -> dict[str, Any]:
    """Stand in for the outputs of a deploy token; a program may insist on what can be masked."""
    return {
        "token": "gldt-unknown-while-destroying",
        "username": inputs.get("username") or "gitlab+deploy-token-0",
        "deployTokenId": 0,
    }


def _revoke(api: Client, what: str, path: str, number: int) -> None:
    with contextlib.suppress(_MissingError):
        api.ask(what, "DELETE", f"{path}/{number}")


def _token_outputs(shown: Mapping[str, Any], secret: str) -> dict[str, Any]:
    return {
        "deployTokenId": shown["id"],
        "username": shown["username"],
        "expired": shown["expired"],
        "revoked": shown["revoked"],
        "token": {SIGNATURE: SECRET, "value": secret},
    }


class _Memory:
    """The secrets of the deploy tokens that were made from here."""

    _lock = threading.Lock()

    def __init__(self, root: Path) -> None:
        self._file = root / ".esteira" / "local" / "gitlab-deploy-tokens.json"

    def recall(self, where: str, project: str, name: str) -> dict[str, Any] | None:
        """Give what was kept, or None."""
        with self._lock:
            return self._read().get(f"{where} {project} {name}")

    def keep(self, where: str, project: str, name: str, what: dict[str, Any]) -> None:
        """Keep it."""
        with self._lock:
            self._write({**self._read(), f"{where} {project} {name}": what})

    def forget(self, where: str, project: str, name: str) -> None:
        """Forget it."""
        with self._lock:
            kept = self._read()
            if kept.pop(f"{where} {project} {name}", None) is not None:
                self._write(kept)

    def _read(self) -> dict[str, dict[str, Any]]:
        try:
            return cast("dict[str, dict[str, Any]]", json.loads(self._file.read_text(encoding="utf-8")))
        except (FileNotFoundError, ValueError):
            return {}

    def _write(self, kept: dict[str, dict[str, Any]]) -> None:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._file.with_name(f".{self._file.name}.new")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            json.dump(kept, stream)
        temporary.replace(self._file)


# Functions.


def get_project(inputs: dict[str, Any], context: Context) -> dict[str, Any]:
    """Carry out the function ``getProject``: by ``id`` or ``pathWithNamespace``."""
    api = client(context)
    reference = str(inputs.get("id") or inputs.get("pathWithNamespace") or "")
    found = api.ask(f"The project {reference}", "GET", api.path_of(reference))
    return {
        "id": str(found["id"]),
        "name": found["name"],
        "nameWithNamespace": found["name_with_namespace"],
        "path": found["path"],
        "pathWithNamespace": found["path_with_namespace"],
        "description": found.get("description") or "",
        "defaultBranch": found.get("default_branch") or "",
        "webUrl": found["web_url"],
        "httpUrlToRepo": found["http_url_to_repo"],
        "sshUrlToRepo": found["ssh_url_to_repo"],
        "visibilityLevel": found["visibility"],
        "namespaceId": found["namespace"]["id"],
        "archived": found.get("archived", False),
        "containerRegistryEnabled": found.get("container_registry_enabled", False),
        "containerRegistryImagePrefix": found.get("container_registry_image_prefix", ""),
    }


# Errors.


class _TakenError(RehearsalError):
    """Key and scope belong to a variable that is there."""


class _MissingError(RehearsalError):
    """What was to be changed or deleted is not there."""


def _explained(error: GitlabError, what: str, where: str) -> RehearsalError:
    """Turn an answer of GitLab into sentences; never with a value, which GitLab's own do not quote either."""
    status, body = error.response_code, _body(error)
    said = body.get("message", body.get("error", ""))
    reason = body.get("error", "")
    stays = "What was done before stays."
    if status == 401:
        description = str(body.get("error_description", ""))
        if "revoked" in description:
            return RehearsalError(f"{what}: the token for {where} was revoked. {stays} Make a new one.")
        if "expired" in description:
            return RehearsalError(
                f"{what}: the token for {where} has expired. {stays} Make a new one and run it again."
            )
        return RehearsalError(
            f"{where} does not know the token. Check GITLAB_TOKEN (or the setting that holds it)."
        )
    if status == 403 and reason in {"insufficient_scope", "insufficient_granular_scope"}:
        return RehearsalError(
            f"{what}: the token for {where} has too small a scope. Make one with the scope api."
        )
    if status == 403:
        return RehearsalError(
            f"{what}: the token's user may not do this in the project; it takes the role Maintainer."
        )
    if status == 404 and "Project" in str(said):
        return RehearsalError(
            f"{what}: {where} has no such project, or the token's user cannot see it. Check its path, and that the "
            "user is a member."
        )
    if status == 404:
        return _MissingError(f"{what}: it is not there ({said or 'not found'}).")
    if status == 429:
        return RehearsalError(
            f"{what}: {where} still refuses requests after {RETRIES} waits (rate limit). {stays} Run it again later."
        )
    if status is not None and status >= 500:
        return RehearsalError(
            f"{what}: {where} answered {status}, {RETRIES + 1} times. {stays} Run it again when GitLab is well."
        )
    if isinstance(said, Mapping):
        if any("has already been taken" in text for text in said.get("key", [])):
            return _TakenError(f"{what}: there is one already.")
        if said.get("value") == ["is invalid"]:
            return RehearsalError(
                f"{what}: GitLab cannot mask this value: it takes 8 characters or more, no space or line end, and "
                "without raw only letters, digits and _ + = / @ : . ~ -."
            )
        said = "; ".join(f"{name} {text}" for name, texts in said.items() for text in texts)
    return RehearsalError(f"{what}: GitLab refuses it ({status}): {said}.")


def _body(error: GitlabError) -> dict[str, Any]:
    try:
        loaded = json.loads(error.response_body or b"")
    except ValueError:
        return {}
    return loaded if isinstance(loaded, dict) else {}


def _decoded(value: Any) -> Any:
    """Give a provider's input, which the SDK sends as JSON text where it is not text by itself."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        return value
