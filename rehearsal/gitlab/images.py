"""Where image repositories and their tags are: in the stand-in's own memory, or in a real registry."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from datetime import datetime, timezone
from typing import Any, Protocol

import requests

from rehearsal.gitlab.state import Project, State, Tag, as_time, utc_now

_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
_ACCEPT = (
    f"{_MANIFEST}, application/vnd.oci.image.manifest.v1+json, "
    "application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.oci.image.index.v1+json"
)


class Images(Protocol):
    """What GitLab asks of its registry. Repositories are full paths in lower case."""

    def repositories(self, project: Project) -> list[str]:
        """Paths of a project's repositories: the project's own and those below it."""
        ...

    def tags(self, path: str) -> list[str]:
        """Names of a repository's tags, sorted."""
        ...

    def tag(self, path: str, name: str) -> Tag | None:
        """Give what is known of a tag."""
        ...

    def delete(self, path: str, name: str) -> None:
        """Take a tag away; other tags of the same digest stay."""
        ...


class MemoryImages:
    """Tags that are only in the stand-in's state."""

    def __init__(self, state: State) -> None:
        self._state = state

    def repositories(self, project: Project) -> list[str]:
        """Paths of a project's repositories."""
        return [repository.path for repository in project.repositories]

    def tags(self, path: str) -> list[str]:
        """Names of a repository's tags, sorted."""
        return sorted(self._tags(path))

    def tag(self, path: str, name: str) -> Tag | None:
        """Give what is known of a tag."""
        return self._tags(path).get(name)

    def delete(self, path: str, name: str) -> None:
        """Take a tag away."""
        self._tags(path).pop(name, None)

    def _tags(self, path: str) -> dict[str, Tag]:
        for project in self._state.projects:
            for repository in project.repositories:
                if repository.path == path:
                    return repository.tags
        return {}


class RegistryImages:
    """Tags in a real registry (Distribution 2.7 or later, deleting enabled)."""

    def __init__(self, url: str, user: str | None = None, password: str | None = None) -> None:
        self._url = url.rstrip("/")
        self._session = requests.Session()
        if user is not None:
            self._session.auth = (user, password or "")

    def repositories(self, project: Project) -> list[str]:
        """Paths of a project's repositories that have a tag."""
        root = project.path.lower()
        paths = [one for answer in self._pages("_catalog?n=100") for one in answer.get("repositories") or []]
        return [path for path in paths if path == root or path.startswith(f"{root}/")]

    def tags(self, path: str) -> list[str]:
        """Names of a repository's tags, sorted."""
        return sorted(
            one for answer in self._pages(f"{path}/tags/list?n=100") for one in answer.get("tags") or []
        )

    def tag(self, path: str, name: str) -> Tag | None:
        """Give what is known of a tag: of an index no size, as in GitLab."""
        answer = self._get(f"{path}/manifests/{name}", {"Accept": _ACCEPT})
        if answer.status_code == 404:
            return None
        answer.raise_for_status()
        manifest = json.loads(answer.content)
        digest = f"sha256:{hashlib.sha256(answer.content).hexdigest()}"
        if "config" not in manifest:
            return Tag(digest, utc_now(), 0, "")
        configuration = self._get(f"{path}/blobs/{manifest['config']['digest']}", {})
        made = json.loads(configuration.content).get("created") if configuration.ok else None
        size = sum(layer["size"] for layer in manifest["layers"])
        return Tag(digest, _time(made), size, manifest["config"]["digest"].partition(":")[2])

    def delete(self, path: str, name: str) -> None:
        """Take a tag away, and nothing else.

        Distribution 2 deletes manifests by digest only, with every tag of it. So the tag is first moved to a manifest
        made for the purpose, which is then deleted (GitLab does so where its registry cannot delete tags:
        app/services/projects/container_repository/third_party/delete_tags_service.rb).
        """
        unique = json.dumps({"created": utc_now(), "tag": name}).encode()
        blob = f"sha256:{hashlib.sha256(unique).hexdigest()}"
        started = self._session.post(f"{self._url}/v2/{path}/blobs/uploads/", timeout=30)
        started.raise_for_status()
        place = requests.compat.urljoin(f"{self._url}/", started.headers["Location"])
        self._session.put(place, params={"digest": blob}, data=unique, timeout=30).raise_for_status()
        manifest = {
            "schemaVersion": 2,
            "mediaType": _MANIFEST,
            "config": {
                "mediaType": "application/vnd.docker.container.image.v1+json",
                "size": len(unique),
                "digest": blob,
            },
            "layers": list[Any](),
        }
        pushed = self._session.put(
            f"{self._url}/v2/{path}/manifests/{name}",
            data=json.dumps(manifest),
            headers={"Content-Type": _MANIFEST},
            timeout=30,
        )
        pushed.raise_for_status()
        digest = pushed.headers["Docker-Content-Digest"]
        self._session.delete(f"{self._url}/v2/{path}/manifests/{digest}", timeout=30).raise_for_status()

    def _get(self, path: str, headers: dict[str, str]) -> requests.Response:
        return self._session.get(f"{self._url}/v2/{path}", headers=headers, timeout=30)

    def _pages(self, path: str) -> Iterator[dict[str, Any]]:
        place = f"{self._url}/v2/{path}"
        while place:
            answer = self._session.get(place, timeout=30)
            if answer.status_code == 404:
                return
            answer.raise_for_status()
            yield answer.json()
            following = answer.links.get("next", {}).get("url")
            place = requests.compat.urljoin(f"{self._url}/", following) if following else ""


def _time(made: str | None) -> str:
    """Shorten Docker's nanoseconds."""
    if not made:
        return utc_now()
    return as_time(datetime.fromisoformat(made[:19]).replace(tzinfo=timezone.utc))
