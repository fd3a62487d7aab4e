"""The GitLab stand-in over a real registry: its tags are listed and deleted, its log-in knows the deploy tokens."""

from __future__ import annotations

import hashlib
import json
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bcrypt
import gitlab
import pytest
import requests
from gitlab.v4.objects import Project

from rehearsal.gitlab import StandIn
from tests.live.machines import wait_for

PATH = "ParasiteWeb/parasite"
MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
USER, PASSWORD = "pusher", "push-password"

CONFIGURATION = """
version: 0.1
storage:
  filesystem: {{rootdirectory: {folder}/data}}
  delete: {{enabled: true}}
  maintenance: {{uploadpurging: {{enabled: false}}}}
http: {{addr: "{address}"}}
auth:
  htpasswd: {{realm: live, path: {folder}/htpasswd}}
"""


class Registry:
    """Debian's docker-registry on loopback."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{taken.getsockname()[1]}"
        self.url = f"http://{self.address}"
        self.htpasswd = folder / "htpasswd"
        self.htpasswd.write_text(f"{USER}:{bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(4)).decode()}\n")
        (folder / "config.yml").write_text(CONFIGURATION.format(folder=folder, address=self.address))
        self.process = subprocess.Popen(
            ["docker-registry", "serve", str(folder / "config.yml")],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wait_for(self.answers, "the registry")

    def answers(self) -> bool:
        """Whether it is there."""
        try:
            return self.ask("GET", "").status_code == 200
        except requests.ConnectionError:
            return False

    def ask(self, method: str, path: str, **options: Any) -> requests.Response:
        """Make a request as the pusher."""
        options.setdefault("auth", (USER, PASSWORD))
        return requests.request(method, f"{self.url}/v2/{path}", timeout=30, **options)

    def push(self, tag: str, content: str, repository: str = PATH.lower()) -> str:
        """Push an image with one layer; its digest."""
        parts = []
        for data in (json.dumps({"created": "2026-01-02T03:04:05.678901234Z", "of": content}), content):
            digest = f"sha256:{hashlib.sha256(data.encode()).hexdigest()}"
            place = self.ask("POST", f"{repository}/blobs/uploads/").headers["Location"]
            put = requests.put(place, params={"digest": digest}, data=data, auth=(USER, PASSWORD), timeout=30)
            assert put.status_code == 201
            parts.append({"mediaType": "application/octet-stream", "size": len(data), "digest": digest})
        manifest = {"schemaVersion": 2, "mediaType": MANIFEST, "config": parts[0], "layers": parts[1:]}
        pushed = self.ask(
            "PUT",
            f"{repository}/manifests/{tag}",
            data=json.dumps(manifest),
            headers={"Content-Type": MANIFEST},
        )
        assert pushed.status_code == 201
        return pushed.headers["Docker-Content-Digest"]

    def digest(self, tag: str) -> str | None:
        """Give what a tag has, or None."""
        answer = self.ask("HEAD", f"{PATH.lower()}/manifests/{tag}", headers={"Accept": MANIFEST})
        return answer.headers.get("Docker-Content-Digest") if answer.ok else None


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    if shutil.which("docker-registry") is None:
        pytest.skip("there is no docker-registry (Debian's package of that name)")
    started = Registry(tmp_path)
    yield started
    started.process.terminate()
    started.process.wait(10)


@pytest.fixture
def standin(registry: Registry) -> Iterator[StandIn]:
    with StandIn(
        registry=registry.url, registry_user=USER, registry_password=PASSWORD, htpasswd=registry.htpasswd
    ) as started:
        started.project(PATH)
        yield started


@pytest.fixture
def project(standin: StandIn) -> Project:
    return gitlab.Gitlab(standin.url, oauth_token=standin.token, timeout=30).projects.get(PATH)


def test_tags_are_the_registrys(registry: Registry, project: Project) -> None:
    digest = registry.push("latest", "content")
    registry.push("one", "other content", f"{PATH.lower()}/tool")
    registry.push("one", "of others", "somebody/else")
    repositories = project.repositories.list(get_all=True, tags_count=True)
    assert {one.path: one.tags_count for one in repositories} == {PATH.lower(): 1, f"{PATH.lower()}/tool": 1}
    tag = next(one for one in repositories if not one.name).tags.get("latest")
    assert (tag.digest, tag.total_size) == (digest, len("content"))
    assert tag.created_at == "2026-01-02T03:04:05.000Z"
    assert tag.location == f"{registry.address}/{PATH.lower()}:latest"


def test_a_deleted_tag_is_gone_and_its_twin_is_not(registry: Registry, project: Project) -> None:
    digest = registry.push("latest", "content")
    assert registry.push("commit", "content") == digest
    (repository,) = project.repositories.list(get_all=True)
    repository.tags.delete("commit")
    assert (registry.digest("commit"), registry.digest("latest")) == (None, digest)
    assert [tag.name for tag in repository.tags.list(get_all=True)] == ["latest"]


def test_many_tags_are_deleted_at_once(registry: Registry, project: Project) -> None:
    for tag in ("latest", "a1", "a2", "b1"):
        registry.push(tag, tag)
    (repository,) = project.repositories.list(get_all=True)
    repository.tags.delete_in_bulk(name_regex_delete="a.")
    assert [tag.name for tag in repository.tags.list(get_all=True)] == ["b1", "latest"]


def test_a_deploy_token_opens_the_registry_until_it_is_deleted(registry: Registry, project: Project) -> None:
    registry.push("latest", "content")
    token = project.deploytokens.create({"name": "pull", "scopes": ["read_registry"]})
    login = (token.username, token.token)

    def let_in() -> bool:
        return registry.ask("GET", f"{PATH.lower()}/tags/list", auth=login).status_code == 200

    wait_for(let_in, "the registry to know the deploy token")
    token.delete()
    wait_for(lambda: not let_in(), "the registry to forget the deploy token")
    assert registry.digest("latest") is not None
