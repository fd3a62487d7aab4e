"""The procedure's own pipeline, unchanged but for the host names, with the variables that a stack tells GitLab.

gitlab-ci-local runs it (npm install gitlab-ci-local@4.65.1; it needs rsync), on the PATH or named by
ESTEIRA_GITLAB_CI_LOCAL; against a real Docker Engine, registry and sshd.
"""

from __future__ import annotations

import os
import secrets
import shutil
from pathlib import Path

import bcrypt
import pytest
import yaml
from pydantic import SecretStr

from components.gitlab_variables import resolve
from components.settings import GitlabSettings
from tests.live.images import base_name
from tests.live.machines import Machine, run, wait_for
from tests.live.registry import Registry

# As the procedure has it; it shows no `stages`, which its own names need.
PROCEDURE = """
stages: [docker_build, release, deploy]

variables:
  CONTAINER_IMAGE: REGISTRY/${CI_PROJECT_PATH}
  RELEASE_IMAGE: REGISTRY/${CI_PROJECT_PATH}:latest

image_build:
  stage: docker_build
  before_script:
    - docker info
    - docker login -u gitlab-ci-token -p ${CI_JOB_TOKEN} ${CI_REGISTRY}
  script:
    - docker pull ${RELEASE_IMAGE} || true
    - docker build --cache-from ${RELEASE_IMAGE} --tag ${CONTAINER_IMAGE}:${CI_COMMIT_SHA} .
    - docker push ${CONTAINER_IMAGE}:${CI_COMMIT_SHA}

image_release:
  stage: release
  before_script:
    - docker info
    - docker login -u gitlab-ci-token -p ${CI_JOB_TOKEN} ${CI_REGISTRY}
  script:
    - docker pull ${CONTAINER_IMAGE}:${CI_COMMIT_SHA}
    - docker tag ${CONTAINER_IMAGE}:${CI_COMMIT_SHA} ${RELEASE_IMAGE}
    - docker push ${RELEASE_IMAGE}


deploy_prod:
  stage: deploy
  before_script: 
    - apt update -y && apt install sshpass
  script:
    - sshpass -p ${DEPLOYMENT_SERVER_PASS} ssh -o StrictHostKeyChecking=no -o PreferredAuthentications=password -o PubkeyAuthentication=no ${DEPLOYMENT_SERVER_USER}@${DEPLOYMENT_SERVER_IP} "sudo docker login -u gitlab-ci-token -p ${CI_JOB_TOKEN} ${CI_REGISTRY} && sudo docker stop parasite && sudo docker rm parasite && sudo docker pull ${CI_REGISTRY}/${CI_PROJECT_PATH}:latest && sudo sudo docker run -tid -p 8888:8000 --name parasite ${CI_REGISTRY}/${CI_PROJECT_PATH}:latest"
"""  # noqa: E501, W291
REPOSITORY = "live/procedure"


@pytest.fixture
def gitlab_ci_local() -> str:
    """Find the program, and what it and the procedure need."""
    program = os.environ.get("ESTEIRA_GITLAB_CI_LOCAL") or shutil.which("gitlab-ci-local")
    lacking = [name for name in ("node", "rsync", "sshpass") if shutil.which(name) is None]
    if program is None or lacking:
        pytest.skip(f"needs {', '.join(['gitlab-ci-local'] * (program is None) + lacking)}")
    return program


def declared_variables(registry: Registry, server: Machine) -> dict[str, object]:
    """Return what the stack `gitlab` would tell GitLab, in the form of gitlab-ci-local's file of variables."""
    gitlab = GitlabSettings.model_validate(
        {
            "project": REPOSITORY,
            "environments": [
                {"name": "*", "server": {"host": server.host, "user": "deploy", "hostKey": server.host_key}}
            ],
        }
    )
    variables, faults = resolve(
        gitlab,
        {"DEPLOYMENT_SERVER_PASS": SecretStr(server.password)},
        f"{registry.address}/{REPOSITORY}",
        "latest",
    )
    assert not faults
    return {
        one.key: {"type": "file" if one.attributes.file else "variable", "values": {one.scope: one.value}}
        for one in variables
    }


def test_the_procedures_pipeline_builds_releases_and_deploys(
    gitlab_ci_local: str, registry: Registry, builder: Machine, one: Machine, tmp_path: Path
) -> None:
    root, tools, home = tmp_path / "app", tmp_path / "tools", tmp_path / "home"
    shutil.copytree(Path(__file__).parent / "app", root)
    tools.mkdir()
    home.mkdir()
    # The runner has sshpass already; its package manager is not what is looked at.
    # Nor is the runner's own file of known hosts, which ssh finds without HOME.
    for name, text in (("apt", ""), ("ssh", 'exec /usr/bin/ssh -o UserKnownHostsFile=/dev/null "$@"')):
        (tools / name).write_text(f"#!/bin/sh\n{text}\n")
        (tools / name).chmod(0o755)
    (root / ".gitlab-ci.yml").write_text(PROCEDURE.replace("REGISTRY/", f"{registry.address}/"))
    (root / ".gitignore").write_text(".gitlab-ci-local*\n")
    token = f"job-{secrets.token_hex(8)}"
    with (registry.folder / "htpasswd").open("a") as file:
        file.write(f"gitlab-ci-token:{bcrypt.hashpw(token.encode(), bcrypt.gensalt(4)).decode()}\n")
    (root / ".gitlab-ci-local-variables.yml").write_text(yaml.safe_dump(declared_variables(registry, one)))
    for words in (
        ("init", "-q", "-b", "main"),
        ("remote", "add", "origin", f"git@gitlab.example.com:{REPOSITORY}.git"),
        ("add", "-A"),
        ("-c", "user.name=a", "-c", "user.email=a@example.com", "commit", "-q", "-m", "one"),
    ):
        run("git", "-C", str(root), *words)
    commit = run("git", "-C", str(root), "rev-parse", "HEAD").strip()
    # The procedure stops a container that must be there.
    one.docker("run", "-d", "--name", "parasite", base_name(registry), "sleep", "600")

    given = {
        "CI_REGISTRY": registry.address,
        "CI_JOB_TOKEN": token,
        "DOCKER_HOST": builder.docker_host,
        "DOCKER_BUILDKIT": "0",
        "HOME": str(home),
        "PATH": f"{tools}:{os.environ['PATH']}",
    }
    said = run(
        gitlab_ci_local,
        "--cwd",
        os.path.relpath(root),  # it takes no other
        "--force-shell-executor",
        "--ignore-predefined-vars",
        "CI_REGISTRY,CI_JOB_TOKEN",
        *(word for name, value in given.items() for word in ("--variable", f"{name}={value}")),
        timeout=400,
    )

    assert registry.digest(REPOSITORY, commit) == registry.digest(REPOSITORY, "latest") is not None, said
    container = one.inspect("parasite")
    assert container["Config"]["Image"] == f"{registry.address}/{REPOSITORY}:latest"
    wait_for(lambda: one.answers(8888, "/health"), "the application")
