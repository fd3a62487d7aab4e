"""What the stand-in knows: users' tokens, projects with their variables, deploy tokens and registry repositories."""

from __future__ import annotations

import dataclasses
import json
import os
import secrets
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

MAINTAINER = 40
DEVELOPER = 30


@dataclass
class Token:
    """A personal access token. ``lives`` counts the requests that it is still good for (None: any number)."""

    secret: str
    name: str
    scopes: list[str]
    roles: dict[str, int] = field(default_factory=dict)
    """Project path -> access level, where it differs from ``role``; 0: the project cannot be seen."""
    role: int = MAINTAINER
    revoked: bool = False
    expired: bool = False
    lives: int | None = None

    def role_in(self, project: Project) -> int:
        """Access level of the token's user in the project."""
        return self.roles.get(project.path.lower(), self.role)


@dataclass
class DeployToken:
    """A project's deploy token; ``expires_at`` is ISO 8601 with milliseconds in UTC, as GitLab answers it."""

    id: int
    name: str
    username: str
    scopes: list[str]
    expires_at: str | None
    token: str
    revoked: bool = False

    @property
    def expired(self) -> bool:
        """Whether its day is over (app/models/deploy_token.rb compares dates, not times)."""
        return self.expires_at is not None and self.expires_at[:10] < utc_now()[:10]


@dataclass
class Tag:
    """A tag of an image that exists only here, not in a real registry."""

    digest: str
    created_at: str
    total_size: int
    revision: str


@dataclass
class Repository:
    """An image repository of a project; ``path`` is lower case, with the project's."""

    id: int
    path: str
    created_at: str
    tags: dict[str, Tag] = field(default_factory=dict)
    cleaned_at: float | None = None
    """When a bulk deletion was asked for last (seconds since the epoch)."""


@dataclass
class Project:
    """A project and what belongs to it."""

    id: int
    path: str
    created_at: str
    visibility: str = "private"
    description: str | None = None
    default_branch: str = "main"
    variables: list[dict[str, Any]] = field(default_factory=list)
    deploy_tokens: list[DeployToken] = field(default_factory=list)
    repositories: list[Repository] = field(default_factory=list)


@dataclass
class State:
    """Everything; kept in memory and, if there is a file, written to it after each change."""

    tokens: list[Token] = field(default_factory=list)
    projects: list[Project] = field(default_factory=list)
    last_id: int = 0

    def next_id(self) -> int:
        """Give a number that nothing had before."""
        self.last_id += 1
        return self.last_id

    def find_project(self, reference: str) -> Project | None:
        """Find a project by number or full path, as GitLab's ``find_project`` does; a bare name finds nothing."""
        if reference.isascii() and reference.isdigit():
            return next((one for one in self.projects if one.id == int(reference)), None)
        if "/" not in reference:
            return None
        return next((one for one in self.projects if one.path.lower() == reference.lower()), None)

    def find_token(self, secret: str) -> Token | None:
        """Find a personal access token."""
        return next((token for token in self.tokens if secrets.compare_digest(token.secret, secret)), None)

    def save(self, path: Path) -> None:
        """Write everything, secrets included, readable by the owner only; whole or not at all."""
        temporary = path.with_name(f".{path.name}.new")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            json.dump(dataclasses.asdict(self), stream, indent=1)
        temporary.replace(path)

    @classmethod
    def load(cls, path: Path) -> State:
        """Read what :meth:`save` wrote."""
        stored = json.loads(path.read_text(encoding="utf-8"))
        state = cls(last_id=stored["last_id"])
        state.tokens = [Token(**token) for token in stored["tokens"]]
        for project in stored["projects"]:
            deploy_tokens = [DeployToken(**token) for token in project.pop("deploy_tokens")]
            repositories = [
                Repository(**{**one, "tags": {name: Tag(**tag) for name, tag in one["tags"].items()}})
                for one in project.pop("repositories")
            ]
            state.projects.append(Project(**project, deploy_tokens=deploy_tokens, repositories=repositories))
        return state


def utc_now() -> str:
    """Now, as GitLab writes times."""
    return as_time(datetime.now(timezone.utc))


def as_time(moment: datetime) -> str:
    """Write a time as GitLab does: UTC, milliseconds, Z."""
    return moment.astimezone(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")
