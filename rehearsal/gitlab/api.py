"""The endpoints: what GitLab does with a request that its token and the network let through.

The order of the checks is GitLab's (the ``before`` blocks of lib/api/ci/variables.rb run ahead of Grape's parameter
checks): project, role, parameters, the thing itself, its model's rules.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from rehearsal.gitlab import answers, rules
from rehearsal.gitlab.answers import Answer, error, message
from rehearsal.gitlab.images import Images
from rehearsal.gitlab.parameters import Parameters
from rehearsal.gitlab.state import (
    DEVELOPER,
    MAINTAINER,
    DeployToken,
    Project,
    Repository,
    State,
    Token,
    utc_now,
)

GUEST = 10


@dataclass(frozen=True)
class Call:
    """One request as an endpoint gets it. ``token`` None: nobody said who they are, which few endpoints allow."""

    token: Token | None
    path: Mapping[str, str]
    parameters: Parameters
    address: str
    """The URL asked for, without a query."""


class Api:
    """The endpoints over a state. Not to be entered by two threads at once."""

    def __init__(self, state: State, images: Images, url: str, registry: str) -> None:
        self.state = state
        self.images = images
        self.url = url
        self.registry = registry
        self.maximum_variables = rules.MAXIMUM_VARIABLES
        self.cleanup_lease = 3600.0
        """Seconds in which a repository's tags can be deleted in bulk once."""

    # Who am I.

    def user(self, call: Call) -> Answer:
        """GET /user."""
        return Answer(200, answers.user_entity(_known(call), self.url))

    def token_itself(self, call: Call) -> Answer:
        """GET /personal_access_tokens/self."""
        return Answer(200, answers.access_token_entity(_known(call)))

    def metadata(self, call: Call) -> Answer:
        """GET /metadata."""
        _known(call)
        return Answer(200, {"version": "19.5.0-ee", "revision": "045bf8777ea", "enterprise": True})

    def version(self, call: Call) -> Answer:
        """GET /version."""
        return self.metadata(call)

    # Projects.

    def project(self, call: Call) -> Answer:
        """GET /projects/:id."""
        project, role = self._project(call, GUEST)
        size = None
        if call.parameters.boolean("statistics"):
            sizes = {}
            for path in self.images.repositories(project):
                for name in self.images.tags(path):
                    tag = self.images.tag(path, name)
                    if tag is not None:
                        sizes[tag.digest] = tag.total_size
            size = sum(sizes.values())
        return Answer(200, answers.project_entity(project, self.url, self.registry, role, size))

    # Variables.

    def list_variables(self, call: Call) -> Answer:
        """GET /projects/:id/variables."""
        project, _ = self._project(call, MAINTAINER)
        shown = [answers.variable_entity(variable) for variable in project.variables]
        return answers.page(shown, call.parameters, call.address)

    def get_variable(self, call: Call) -> Answer:
        """GET /projects/:id/variables/:key."""
        project, _ = self._project(call, MAINTAINER)
        return Answer(200, answers.variable_entity(_variable(project, call)))

    def create_variable(self, call: Call) -> Answer:
        """POST /projects/:id/variables."""
        project, _ = self._project(call, MAINTAINER)
        given = call.parameters
        given.require("key", "value")
        hidden = given.boolean("masked_and_hidden") or False
        variable = {
            "variable_type": given.one_of("variable_type", rules.VARIABLE_TYPES) or "env_var",
            "key": rules.strip(given.text("key") or ""),
            "value": given.text("value") or "",
            "hidden": hidden,
            "protected": given.boolean("protected") or False,
            "masked": hidden or given.boolean("masked") or False,
            "raw": given.boolean("raw") or False,
            "environment_scope": rules.strip(
                (given.text("environment_scope") or "") if "environment_scope" in given else "*"
            ),
            "description": given.text("description"),
        }
        faults = rules.variable_faults(variable, taken=_taken(project, variable))
        if len(project.variables) >= self.maximum_variables:
            limit = self.maximum_variables
            faults["base"] = [f"Maximum number of project ci variables ({limit}) exceeded"]
        if faults:
            raise message(400, faults)
        project.variables.append(variable)
        return Answer(201, answers.variable_entity(variable))

    def update_variable(self, call: Call) -> Answer:
        """PUT /projects/:id/variables/:key."""
        project, _ = self._project(call, MAINTAINER)
        given = call.parameters
        changes: dict[str, Any] = {}
        for name in ("protected", "masked", "raw"):
            if name in given:
                changes[name] = given.boolean(name) or False
        if "variable_type" in given:
            changes["variable_type"] = given.one_of("variable_type", rules.VARIABLE_TYPES) or "env_var"
        if "value" in given:
            changes["value"] = given.text("value") or ""
        if "environment_scope" in given:
            changes["environment_scope"] = rules.strip(given.text("environment_scope") or "")
        if "description" in given:
            changes["description"] = given.text("description")
        variable = _variable(project, call)
        after = {**variable, **changes}
        faults = {
            **rules.variable_faults(after, taken=_taken(project, after, other_than=variable)),
            **rules.change_faults(variable, after),
        }
        if faults:
            raise message(400, faults)
        variable.update(changes)
        return Answer(200, answers.variable_entity(variable))

    def delete_variable(self, call: Call) -> Answer:
        """DELETE /projects/:id/variables/:key."""
        project, _ = self._project(call, MAINTAINER)
        variable = _variable(project, call)
        project.variables[:] = [one for one in project.variables if one is not variable]
        return Answer(204)

    # Deploy tokens.

    def list_deploy_tokens(self, call: Call) -> Answer:
        """GET /projects/:id/deploy_tokens."""
        project, _ = self._project(call, MAINTAINER)
        only_active = call.parameters.boolean("active")
        shown = [
            answers.deploy_token_entity(token)
            for token in project.deploy_tokens
            if not (only_active and (token.revoked or token.expired))
        ]
        return answers.page(shown, call.parameters, call.address)

    def get_deploy_token(self, call: Call) -> Answer:
        """GET /projects/:id/deploy_tokens/:token_id."""
        project, _ = self._project(call, MAINTAINER)
        return Answer(200, answers.deploy_token_entity(_deploy_token(project, call)))

    def create_deploy_token(self, call: Call) -> Answer:
        """POST /projects/:id/deploy_tokens."""
        project, _ = self._project(call, MAINTAINER)
        given = call.parameters
        given.require("name", "scopes")
        name = given.text("name") or ""
        scopes = given.some_of("scopes", rules.DEPLOY_TOKEN_SCOPES)
        expires_at = given.time("expires_at")
        username = given.text("username") or None
        fault = rules.deploy_token_fault(name=name, username=username, scopes=scopes)
        if fault is not None:
            raise message(400, fault)
        number = self.state.next_id()
        token = DeployToken(
            id=number,
            name=name,
            username=username or f"gitlab+deploy-token-{number}",
            scopes=scopes,
            expires_at=expires_at,
            token=f"gldt-{secrets.token_urlsafe(15)}",
        )
        project.deploy_tokens.append(token)
        return Answer(201, answers.deploy_token_entity(token, with_secret=True))

    def delete_deploy_token(self, call: Call) -> Answer:
        """DELETE /projects/:id/deploy_tokens/:token_id."""
        project, _ = self._project(call, MAINTAINER)
        project.deploy_tokens.remove(_deploy_token(project, call))
        return Answer(204)

    # The registry (lib/api/project_container_repositories.rb, lib/api/container_repositories.rb).

    def list_repositories(self, call: Call) -> Answer:
        """GET /projects/:id/registry/repositories."""
        project, _ = self._project(call, GUEST)
        with_count = call.parameters.boolean("tags_count") or False
        with_tags = call.parameters.boolean("tags") or False
        shown = [
            self._show_repository(repository, project, with_count=with_count, with_tags=with_tags)
            for repository in self._repositories(project)
        ]
        return answers.page(shown, call.parameters, call.address)

    def get_repository(self, call: Call) -> Answer:
        """GET /registry/repositories/:repository_id, which knows no project."""
        for project in self.state.projects:
            for repository in self._repositories(project):
                if str(repository.id) == call.path["repository_id"]:
                    if _known(call).role_in(project) < GUEST:
                        raise message(404, "404 Not found")
                    shown = self._show_repository(
                        repository,
                        project,
                        with_count=call.parameters.boolean("tags_count") or False,
                        with_tags=call.parameters.boolean("tags") or False,
                    )
                    if call.parameters.boolean("size"):
                        details = [
                            self.images.tag(repository.path, tag) for tag in self.images.tags(repository.path)
                        ]
                        shown["size"] = sum({tag.digest: tag.total_size for tag in details if tag}.values())
                    return Answer(200, shown)
        raise message(404, "404 Not found")

    def list_tags(self, call: Call) -> Answer:
        """GET …/registry/repositories/:repository_id/tags."""
        _, repository = self._repository(call, GUEST)
        shown = [
            answers.tag_entity(repository, self.registry, name) for name in self.images.tags(repository.path)
        ]
        return answers.page(shown, call.parameters, call.address)

    def get_tag(self, call: Call) -> Answer:
        """GET …/tags/:tag_name."""
        _, repository = self._repository(call, GUEST)
        name = call.path["tag_name"]
        tag = self.images.tag(repository.path, name)
        if tag is None:
            raise message(404, "404 Tag Not Found")
        shown: dict[str, Any] = {
            **answers.tag_entity(repository, self.registry, name),
            "revision": tag.revision or None,
            "short_revision": tag.revision[:9] or None,
            "digest": tag.digest,
            "created_at": tag.created_at,
            "total_size": tag.total_size if tag.revision else None,
        }
        return Answer(200, shown)

    def delete_tag(self, call: Call) -> Answer:
        """DELETE …/tags/:tag_name; 200 without a body."""
        _, repository = self._repository(call, DEVELOPER)
        name = call.path["tag_name"]
        if self.images.tag(repository.path, name) is None:
            raise message(404, "404 Tag Not Found")
        self.images.delete(repository.path, name)
        return Answer(200)

    def delete_tags(self, call: Call) -> Answer:
        """DELETE …/tags: by regular expression, ``latest`` never, at most once an hour.

        GitLab answers at once and deletes in the background; here it is done when the answer comes.
        """
        _, repository = self._repository(call, MAINTAINER)
        given = call.parameters
        if "name_regex_delete" not in given and "name_regex" not in given:
            raise error(
                400, "name_regex, name_regex_delete are missing, at least one parameter must be provided"
            )
        doomed = _regex(given, "name_regex_delete") or _regex(given, "name_regex")
        kept = _regex(given, "name_regex_keep")
        keep_n = given.integer("keep_n")
        older_than = _seconds(given.text("older_than"))
        now = time.time()
        if repository.cleaned_at is not None and now - repository.cleaned_at < self.cleanup_lease:
            raise message(
                400,
                "This request has already been made. You can run this at most once an hour for a given container "
                "repository",
            )
        repository.cleaned_at = now
        chosen = [
            (tag.created_at, name)
            for name in self.images.tags(repository.path)
            if name != "latest"
            and doomed is not None
            and doomed.fullmatch(name)
            and not (kept is not None and kept.fullmatch(name))
            and (tag := self.images.tag(repository.path, name)) is not None
        ]
        chosen.sort(reverse=True)
        for made, name in chosen[keep_n or 0 :]:
            if older_than is None or made < as_time_before(now, older_than):
                self.images.delete(repository.path, name)
        return Answer(202, 202)

    # Insides.

    def _project(self, call: Call, needed: int) -> tuple[Project, int]:
        """Find the project and the caller's role; an unseen one does not exist."""
        project = self.state.find_project(call.path["id"])
        role = 0
        if project is not None:
            role = call.token.role_in(project) if call.token is not None else 0
            if role == 0 and project.visibility == "public":
                role = 1
        if project is None or role == 0:
            raise message(404, "404 Project Not Found")
        if role < needed and not (needed == GUEST and project.visibility == "public"):
            raise message(403, "403 Forbidden")
        return project, role

    def _repositories(self, project: Project) -> list[Repository]:
        """Give a project's repositories; those that a real registry has got meanwhile are numbered now."""
        paths = self.images.repositories(project)
        known = {repository.path for repository in project.repositories}
        project.repositories += [
            Repository(self.state.next_id(), path, utc_now()) for path in paths if path not in known
        ]
        return [repository for repository in project.repositories if repository.path in paths]

    def _repository(self, call: Call, needed: int) -> tuple[Project, Repository]:
        project, _ = self._project(call, needed)
        number = call.path["repository_id"]
        if not number.isdigit():
            raise error(400, "repository_id is invalid")
        for repository in self._repositories(project):
            if repository.id == int(number):
                return project, repository
        raise message(404, "404 Not found")

    def _show_repository(
        self, repository: Repository, project: Project, *, with_count: bool, with_tags: bool
    ) -> dict[str, Any]:
        tags = self.images.tags(repository.path) if with_count or with_tags else []
        return answers.repository_entity(
            repository,
            project,
            self.registry,
            count=len(tags) if with_count else None,
            tags=tags if with_tags else None,
        )


@dataclass(frozen=True)
class Route:
    """One endpoint: ``{name}`` in the template stands for one URL-encoded part of the path."""

    method: str
    template: str
    endpoint: Callable[[Api, Call], Answer]
    scopes: tuple[str, ...] = ("api", "read_api")
    """What a token needs one of; ``read_api`` is good for reading only, though the refusal names it regardless."""
    anonymous: bool = False
    any_scope: bool = False


_PROJECT = "/api/v4/projects/{id}"
_REPOSITORY = f"{_PROJECT}/registry/repositories/{{repository_id}}"

ROUTES = (
    Route("GET", "/api/v4/user", Api.user, ("api", "read_api", "read_user")),
    Route("GET", "/api/v4/personal_access_tokens/self", Api.token_itself, any_scope=True),
    Route("GET", "/api/v4/metadata", Api.metadata, ("api", "read_api", "read_user")),
    Route("GET", "/api/v4/version", Api.version, ("api", "read_api", "read_user")),
    Route("GET", _PROJECT, Api.project, anonymous=True),
    Route("GET", f"{_PROJECT}/variables", Api.list_variables),
    Route("POST", f"{_PROJECT}/variables", Api.create_variable),
    Route("GET", f"{_PROJECT}/variables/{{key}}", Api.get_variable),
    Route("PUT", f"{_PROJECT}/variables/{{key}}", Api.update_variable),
    Route("DELETE", f"{_PROJECT}/variables/{{key}}", Api.delete_variable),
    Route("GET", f"{_PROJECT}/deploy_tokens", Api.list_deploy_tokens),
    Route("POST", f"{_PROJECT}/deploy_tokens", Api.create_deploy_token),
    Route("GET", f"{_PROJECT}/deploy_tokens/{{token_id}}", Api.get_deploy_token),
    Route("DELETE", f"{_PROJECT}/deploy_tokens/{{token_id}}", Api.delete_deploy_token),
    Route("GET", f"{_PROJECT}/registry/repositories", Api.list_repositories),
    Route("GET", "/api/v4/registry/repositories/{repository_id}", Api.get_repository),
    Route("GET", f"{_REPOSITORY}/tags", Api.list_tags),
    Route("DELETE", f"{_REPOSITORY}/tags", Api.delete_tags),
    Route("GET", f"{_REPOSITORY}/tags/{{tag_name}}", Api.get_tag),
    Route("DELETE", f"{_REPOSITORY}/tags/{{tag_name}}", Api.delete_tag),
)


def as_time_before(now: float, seconds: float) -> str:
    """Write the moment that many seconds before."""
    return time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(now - seconds))


def _known(call: Call) -> Token:
    if call.token is None:
        raise message(401, "401 Unauthorized")
    return call.token


def _variable(project: Project, call: Call) -> dict[str, Any]:
    """Find by key, and by exact scope where one is asked for (lib/api/helpers/variables_helpers.rb)."""
    scope = call.parameters.environment_scope
    found = [
        variable
        for variable in project.variables
        if variable["key"] == call.path["key"] and scope in {None, variable["environment_scope"]}
    ]
    if not found:
        raise message(404, "404 Variable Not Found")
    if len(found) > 1:
        raise message(
            409,
            "There are multiple variables with provided parameters. Please use 'filter[environment_scope]'",
        )
    return found[0]


def _taken(
    project: Project, variable: Mapping[str, Any], other_than: Mapping[str, Any] | None = None
) -> bool:
    return any(
        one is not other_than
        and one["key"] == variable["key"]
        and one["environment_scope"] == variable["environment_scope"]
        for one in project.variables
    )


def _deploy_token(project: Project, call: Call) -> DeployToken:
    number = call.path["token_id"]
    if not number.isdigit():
        raise error(400, "token_id is invalid")
    for token in project.deploy_tokens:
        if token.id == int(number):
            return token
    raise message(404, "404 Not found")


def _regex(given: Parameters, name: str) -> re.Pattern[str] | None:
    text = given.text(name)
    if not text:
        return None
    try:
        return re.compile(text)
    except re.error:
        raise error(400, f"{name} is an invalid regexp") from None


_UNITS = {"h": 3600, "hour": 3600, "d": 86400, "day": 86400, "w": 604800, "week": 604800, "month": 2592000}


def _seconds(text: str | None) -> float | None:
    """Read ``1h``, ``7d``, ``1month``."""
    if not text:
        return None
    match = re.fullmatch(r"\s*(\d+)\s*([a-z]+?)s?\s*", text)
    if match is None or match[2] not in _UNITS:
        raise error(400, "older_than is invalid")
    return float(match[1]) * _UNITS[match[2]]
