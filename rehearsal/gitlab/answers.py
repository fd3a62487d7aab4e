"""Answers in GitLab's own shapes: two families of error bodies, pages, and the entities.

``{"message": …}`` comes from GitLab's helpers (lib/api/helpers.rb), ``{"error": …}`` from Grape's parameter checks and
from the token check (lib/api/api_guard.rb).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from rehearsal.gitlab.state import DeployToken, Project, Repository, Token, utc_now

if TYPE_CHECKING:
    from rehearsal.gitlab.parameters import Parameters


@dataclass(frozen=True)
class Answer:
    """What goes back to the client; ``body`` None means none."""

    status: int
    body: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)
    content_type: str = "application/json"

    @property
    def content(self) -> bytes:
        """The body as bytes."""
        if self.body is None:
            return b""
        if self.content_type != "application/json":
            return str(self.body).encode()
        return json.dumps(self.body, separators=(",", ":")).encode()


class Refusal(Exception):  # noqa: N818 - it carries an answer
    """Ends a request with this answer."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.status)
        self.answer = answer


def message(status: int, what: object) -> Refusal:
    """Refuse as GitLab's helpers do."""
    return Refusal(Answer(status, {"message": what}))


def error(status: int, what: str, **more: str) -> Refusal:
    """Refuse as Grape and the token check do."""
    headers = {}
    if what == "invalid_token":
        description = more["error_description"]
        headers["WWW-Authenticate"] = (
            f'Bearer realm="Protected by OAuth 2.0", error="{what}", error_description="{description}"'
        )
    return Refusal(Answer(status, {"error": what, **more}, headers))


def broken_gateway(status: int) -> Answer:
    """Answer as the proxy before GitLab does when GitLab does not answer it; 500 is GitLab's own."""
    if status == 500:
        return Answer(500, {"message": "500 Internal Server Error"})
    page = f"<!DOCTYPE html><html><head><title>GitLab is not responding ({status})</title></head></html>"
    return Answer(status, page, content_type="text/html")


def too_many(headers: Mapping[str, str]) -> Answer:
    """Refuse a request that is one too many (lib/gitlab/rack_attack.rb)."""
    return Answer(429, "Retry later\n", headers, "text/plain")


def page(items: Sequence[Any], parameters: Parameters, address: str) -> Answer:
    """Answer with one page of a list; ``address`` is the list's, without a query."""
    number = max(parameters.integer("page") or 1, 1)
    size = min(max(parameters.integer("per_page") or 20, 1), 100)
    pages = max(-(-len(items) // size), 1)

    def link(to: int, relation: str) -> str:
        return f'<{address}?{urlencode({"page": to, "per_page": size})}>; rel="{relation}"'

    links = [link(number - 1, "prev")] if 1 < number <= pages else []
    links += [link(number + 1, "next")] if number < pages else []
    links += [link(1, "first"), link(pages, "last")]
    headers = {
        "X-Page": str(number),
        "X-Per-Page": str(size),
        "X-Total": str(len(items)),
        "X-Total-Pages": str(pages),
        "X-Prev-Page": str(number - 1) if 1 < number <= pages else "",
        "X-Next-Page": str(number + 1) if number < pages else "",
        "Link": ", ".join(links),
    }
    return Answer(200, list(items[(number - 1) * size : number * size]), headers)


def variable_entity(variable: Mapping[str, Any]) -> dict[str, Any]:
    """Show a variable; a hidden one's value never."""
    return {**variable, "value": None if variable["hidden"] else variable["value"]}


def deploy_token_entity(token: DeployToken, *, with_secret: bool = False) -> dict[str, Any]:
    """Show a deploy token; its secret only in the answer that made it."""
    shown: dict[str, Any] = {
        "id": token.id,
        "name": token.name,
        "username": token.username,
        "expires_at": token.expires_at,
        "scopes": token.scopes,
        "revoked": token.revoked,
        "expired": token.expired,
    }
    return {**shown, "token": token.token} if with_secret else shown


def user_entity(token: Token, url: str) -> dict[str, Any]:
    """Show the user of a token."""
    return {
        "id": 1,
        "username": "maintainer",
        "name": "Maintainer",
        "state": "active",
        "web_url": f"{url}/maintainer",
        "email": "maintainer@example.com",
        "bot": token.name.startswith("project_"),
    }


def access_token_entity(token: Token) -> dict[str, Any]:
    """Show a personal access token to itself."""
    return {
        "id": 1,
        "name": token.name,
        "revoked": token.revoked,
        "created_at": utc_now(),
        "description": None,
        "scopes": token.scopes,
        "user_id": 1,
        "last_used_at": utc_now(),
        "active": not token.revoked and not token.expired,
        "expires_at": None,
        "last_used_ips": [],
    }


def project_entity(project: Project, url: str, registry: str, role: int, size: int | None) -> dict[str, Any]:
    """Show a project; ``size`` of its images in bytes only when its statistics were asked for."""
    group, _, name = project.path.rpartition("/")
    shown: dict[str, Any] = {
        "id": project.id,
        "description": project.description,
        "name": name,
        "name_with_namespace": project.path.replace("/", " / "),
        "path": name,
        "path_with_namespace": project.path,
        "created_at": project.created_at,
        "default_branch": project.default_branch,
        "topics": [],
        "ssh_url_to_repo": f"git@gitlab.example.com:{project.path}.git",
        "http_url_to_repo": f"{url}/{project.path}.git",
        "web_url": f"{url}/{project.path}",
        "visibility": project.visibility,
        "namespace": {
            "id": project.id + 100_000,
            "name": group.rpartition("/")[2],
            "path": group.rpartition("/")[2],
            "kind": "group",
            "full_path": group,
            "parent_id": None,
            "avatar_url": None,
            "web_url": f"{url}/groups/{group}",
        },
        "container_registry_image_prefix": f"{registry}/{project.path.lower()}",
        "container_registry_enabled": True,
        "container_registry_access_level": "enabled",
        "empty_repo": False,
        "archived": False,
        "permissions": {"project_access": {"access_level": role, "notification_level": None}},
    }
    if size is not None:
        shown["statistics"] = {"container_registry_size": size, "storage_size": size, "repository_size": 0}
    return shown


def repository_entity(
    repository: Repository, project: Project, registry: str, *, count: int | None, tags: Sequence[str] | None
) -> dict[str, Any]:
    """Show an image repository (lib/api/entities/container_registry.rb)."""
    shown: dict[str, Any] = {
        "id": repository.id,
        "name": repository.path.removeprefix(project.path.lower()).lstrip("/"),
        "path": repository.path,
        "project_id": project.id,
        "location": f"{registry}/{repository.path}",
        "created_at": repository.created_at,
        "cleanup_policy_started_at": None,
        "status": None,
    }
    if count is not None:
        shown["tags_count"] = count
    if tags is not None:
        shown["tags"] = [tag_entity(repository, registry, tag) for tag in tags]
    return shown


def tag_entity(repository: Repository, registry: str, name: str) -> dict[str, Any]:
    """Show a tag in a list."""
    path = f"{repository.path}:{name}"
    return {"name": name, "path": path, "location": f"{registry}/{path}"}
