"""Pipelines, run by gitlab-ci-local against a real Docker Engine, registry and sshd, with the variables of GitLab.

First the procedure's own, unchanged but for the host names; then Esteira's, which takes that server over. The stack
`gitlab` declares the variables in the stand-in for GitLab, whose registry is the real one. What gitlab-ci-local does
not do is done here: protected variables are given to pipelines of protected branches and tags only.

gitlab-ci-local (npm; it needs rsync) is on the PATH, or where `./esteira test` has put it, or named by
ESTEIRA_GITLAB_CI_LOCAL.
"""

from __future__ import annotations

import functools
import http.server
import os
import re
import secrets
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import bcrypt
import pytest
import yaml

from cli import testing
from cli.engine import Missing, find
from rehearsal import carry_out
from rehearsal.gitlab import StandIn
from tests.live import images
from tests.live.machines import Machine, run, wait_for
from tests.live.project import PORT
from tests.live.project import REPOSITORY as ROOT
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
PROJECT = "live/procedure"
PROGRAM = (
    "__main__.py",
    "cli",
    "components",
    "rehearsal",
    "policy",
    "esteira",
    "Pulumi.yaml",
    "requirements.txt",
    ".gitignore",
)
PASSPHRASE = f"Passphrase-{secrets.token_hex(8)}"
JOB_TOKEN = f"job-{secrets.token_hex(8)}"
WHO = ("-c", "user.name=live", "-c", "user.email=live@example.invalid")


def gitlab_ci_local() -> str:
    """Find the program, and what it and the procedure need; where that may be, skip the test without it."""
    program = os.environ.get("ESTEIRA_GITLAB_CI_LOCAL") or shutil.which("gitlab-ci-local")
    if program is None and testing.gitlab_ci_local(ROOT).exists():
        program = str(testing.gitlab_ci_local(ROOT))
    lacking = [name for name in ("node", "rsync", "sshpass") if shutil.which(name) is None]
    if program is None:
        lacking.insert(0, "gitlab-ci-local (npm)")
    if lacking:
        reason = f"the pipelines need {', '.join(lacking)}"
        if os.environ.get("ESTEIRA_REQUIRE_LIVE") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    return str(program)


class Place:
    """A GitLab project with its checkout, its variables and its registry; and two servers."""

    def __init__(
        self,
        folder: Path,
        registry: Registry,
        gitlab: StandIn,
        docker_host: str,
        servers: tuple[Machine, Machine],
    ) -> None:
        self.folder, self.registry, self.gitlab, self.docker_host = folder, registry, gitlab, docker_host
        self.one, self.two = servers
        self.program = gitlab_ci_local()
        self.root, self.tools, self.home = folder / "app", folder / "tools", folder / "home"
        self.esteira, self.state = folder / "esteira", folder / "state"
        for made in (self.tools, self.home, self.esteira, self.state):
            made.mkdir()
        gitlab.project(PROJECT)
        self._tools()
        self._declare()
        self._repositories()

    def _tools(self) -> None:
        seen, git = f"{self.folder}/environment-of-${{CI_JOB_NAME:-program}}", shutil.which("git")
        tools = {
            # The runner has sshpass already; its package manager is not what is looked at.
            "apt": "",
            # Nor is the runner's own file of known hosts, which ssh finds without HOME.
            "ssh": 'exec /usr/bin/ssh -o UserKnownHostsFile=/dev/null "$@"',
            # Every job and every program in it asks git something: that tells what their environments hold.
            "git": f'env >>"{seen}"\nexec {git} "$@"',
        }
        for name, text in tools.items():
            (self.tools / name).write_text(f"#!/bin/sh\n{text}\n")
            (self.tools / name).chmod(0o755)

    def _declare(self) -> None:
        """Carry the stack `gitlab` out: the procedure's variables for every job, others for production's."""

        def server(machine: Machine) -> dict[str, object]:
            return {"host": machine.host, "user": "deploy", "hostKey": machine.host_key, "sudo": True}

        config = {
            "esteira:registry": self.registry.address,
            "esteira:repository": PROJECT,
            "esteira:gitlab": {
                "project": PROJECT,
                "baseUrl": self.gitlab.base_url,
                "backendUrl": f"file://{self.state}",
                "environments": [
                    {"name": "*", "server": server(self.one)},
                    {"name": "production", "server": server(self.two)},
                ],
                "deployToken": {},
            },
            "esteira:gitlabVariables": {
                "DEPLOYMENT_SERVER_PASS": self.one.password,
                "PULUMI_CONFIG_PASSPHRASE": PASSPHRASE,
                "GITLAB_TOKEN@maintenance": self.gitlab.token,
            },
        }
        root = self.folder / "gitlab"
        root.mkdir()
        for name in ("Pulumi.yaml", "__main__.py", "components"):
            (root / name).symlink_to(ROOT / name)
        (root / "Pulumi.gitlab.yaml").write_text("config: {}\n")
        carry_out(
            root,
            "gitlab",
            environ={"PATH": os.environ["PATH"], "GITLAB_TOKEN": self.gitlab.token},
            config=config,
            secret_keys=["esteira:gitlabVariables"],
        )

    def _repositories(self) -> None:
        """Make the repositories of the program and of the application."""
        for name in PROGRAM:
            if (ROOT / name).is_dir():
                shutil.copytree(
                    ROOT / name, self.esteira / name, ignore=shutil.ignore_patterns("__pycache__", ".venv")
                )
            else:
                shutil.copy(ROOT / name, self.esteira)
        shutil.copy(ROOT / ".gitlab-ci.yml", self.esteira)
        shutil.copytree(Path(__file__).parent / "app", self.root)
        (self.root / ".gitlab-ci.yml").write_text(PROCEDURE.replace("REGISTRY/", f"{self.registry.address}/"))
        (self.root / ".gitignore").write_text(
            ".gitlab-ci-local*\n.esteira-*\n.cache\noffline-preview\nin-use\n"
        )
        for root in (self.esteira, self.root):
            run("git", "init", "-q", "-b", "main", str(root))
            self.commit("one", root)
        run("git", "-C", str(self.root), "remote", "add", "origin", f"git@gitlab.example.com:{PROJECT}.git")
        # A cache of the packages and of the plugins, as a runner has it.
        home = self.root / ".esteira-home"
        home.mkdir()
        stamp = Path(sys.prefix) / ".installed"
        if stamp.is_file() and stamp.read_bytes() == (ROOT / "requirements.txt").read_bytes():
            # Any other the launcher would make anew, in the place that the link points to.
            (home / ".venv").symlink_to(sys.prefix)
        plugins = Path(os.environ.get("PULUMI_HOME") or Path.home() / ".pulumi") / "plugins"
        if plugins.is_dir():
            (self.root / ".cache/pulumi").mkdir(parents=True)
            (self.root / ".cache/pulumi/plugins").symlink_to(plugins)

    def commit(self, message: str, root: Path | None = None) -> str:
        """Commit everything; give the sha."""
        git = ("git", "-C", str(root or self.root))
        run(*git, "add", "-A")
        run(*git, *WHO, "commit", "-q", "-m", message)
        return run(*git, "rev-parse", "HEAD").strip()

    def git(self, *words: str) -> None:
        """Run git in the application's checkout."""
        run("git", "-C", str(self.root), *words)

    def variables(self, *, protected: bool) -> dict[str, object]:
        """Return the project's variables as GitLab hands them out, in the form of gitlab-ci-local's file."""
        found: dict[str, dict[str, object]] = {}
        for one in self.gitlab.project(PROJECT).variables:
            if one["protected"] and not protected:
                continue
            kind = "file" if one["variable_type"] == "file" else "variable"
            entry = found.setdefault(one["key"], {"type": kind, "values": {}})
            entry["values"][one["environment_scope"]] = one["value"]  # type: ignore[index]
        return dict(found)

    def pipeline(
        self,
        *jobs: str,
        protected: bool = True,
        unset: Sequence[str] = (),
        docker: bool = True,
        **given: str,
    ) -> str:
        """Run the pipeline of what is checked out, or only some jobs of it, and return all that they said."""
        (self.root / ".gitlab-ci-local-variables.yml").write_text(
            yaml.safe_dump(self.variables(protected=protected))
        )
        for old in self.folder.glob("environment-of-*"):
            old.unlink()
        given = {
            "CI_REGISTRY": self.registry.address,
            "CI_REGISTRY_USER": "gitlab-ci-token",
            "CI_REGISTRY_PASSWORD": JOB_TOKEN,
            "CI_JOB_TOKEN": JOB_TOKEN,
            "CI_API_V4_URL": self.gitlab.base_url,
            "CI_COMMIT_REF_PROTECTED": str(protected).lower(),
            "DOCKER_HOST": self.docker_host if docker else "tcp://127.0.0.1:1",
            "HOME": str(self.home),
            "PATH": f"{self.tools}:{os.environ['PATH']}",
            **given,
        }
        done = subprocess.run(
            [
                self.program,
                *jobs,
                "--cwd",
                os.path.relpath(self.root),  # it takes no other
                "--force-shell-executor",
                "--concurrency=1",  # its jobs share one checkout
                "--ignore-predefined-vars",
                ",".join(given),
                *(word for name in unset for word in ("--unset-variable", name)),
                *(word for name, value in given.items() for word in ("--variable", f"{name}={value}")),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=400,
            check=False,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout

    def environments(self) -> dict[str, str]:
        """Return what stood in the environments of the last pipeline's jobs, and of the programs in them."""
        return {
            path.name.removeprefix("environment-of-"): path.read_text()
            for path in self.folder.glob("environment-of-*")
        }

    def jobs(self) -> set[str]:
        """Names of the jobs that ran in the last pipeline."""
        return set(self.environments()) - {"program"}

    # What a maintainer does.

    def propose(self) -> str:
        """On a branch, put Esteira's pipeline and two stacks in the procedure's place; give the commit before."""
        before = run("git", "-C", str(self.root), "rev-parse", "HEAD").strip()
        self.git("checkout", "-q", "-b", "esteira")
        included = {
            "include": [{"remote": f"{self._served()}/.gitlab-ci.yml"}],
            "variables": {"ESTEIRA_REPOSITORY": f"file://{self.esteira}"},
            # The runner has a daemon: docs/gitlab.md.
            ".esteira-docker": {
                "services": [],
                "variables": {"DOCKER_HOST": "", "DOCKER_TLS_VERIFY": "", "DOCKER_CERT_PATH": ""},
            },
        }
        (self.root / ".gitlab-ci.yml").write_text(yaml.safe_dump(included))
        (self.root / "deploy").mkdir()
        common = {
            "registryInsecure": True,
            "edgeImage": images.EDGE,
            "container": {"name": "parasite", "ports": [f"{PORT}:8000"], "stopTimeout": 3},
            "health": {"path": "/health", "interval": 0.2, "startPeriod": 2, "retries": 2},
            "rollout": {"watch": 0},
            "drainTime": 1,
        }
        self.stack("staging", {**common, "image": {"context": "app"}, "movingTag": "staging"})
        # Within the rules of the policy pack, that production is held to.
        container = {**common["container"], "memory": "256m", "cpus": 1}  # type: ignore[dict-item]
        self.two.docker("tag", images.EDGE, "esteira/edge:1.0.0")
        prod = {**common, "container": container, "edgeImage": "esteira/edge:1.0.0"}
        self.stack("prod", {**prod, "promote": True})
        self.commit("Esteira deploys")
        return before

    def _served(self) -> str:
        """Serve the program's repository, as GitLab serves its files."""
        handler = functools.partial(_Quiet, directory=str(self.esteira))
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{self.server.server_port}"

    def stack(self, name: str, settings: dict[str, object]) -> None:
        """Write a stack's file; where there is an engine, make the stack."""
        values = {f"esteira:{key}": value for key, value in settings.items()}
        made: dict[str, object] = {}
        if engine_is_missing() is None:
            folder = self.folder / f"stack-{name}"
            folder.mkdir()
            (folder / "Pulumi.yaml").write_text("name: esteira\nruntime: python\n")
            run(
                *("pulumi", "--cwd", str(folder), "stack", "init", name, "--no-select"),
                env={
                    "PATH": os.environ["PATH"],
                    "HOME": str(self.home),
                    "PULUMI_BACKEND_URL": f"file://{self.state}",
                    "PULUMI_CONFIG_PASSPHRASE": PASSPHRASE,
                    "PULUMI_SKIP_UPDATE_CHECK": "true",
                },
            )
            made = yaml.safe_load((folder / f"Pulumi.{name}.yaml").read_text())
        (self.root / "deploy" / f"Pulumi.{name}.yaml").write_text(yaml.safe_dump({**made, "config": values}))

    def secrets(self) -> list[str]:
        """Every value that must be seen nowhere."""
        declared = [one["value"] for one in self.gitlab.project(PROJECT).variables if one["masked"]]
        assert {self.one.password, PASSPHRASE, self.gitlab.token} < set(declared)
        return [*declared, self.registry.password]

    def close(self) -> None:
        """Serve no more."""
        if hasattr(self, "server"):
            self.server.shutdown()
            self.server.server_close()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Keep quiet."""


def engine_is_missing() -> str | None:
    """Why there is no engine, or None."""
    found = find(ROOT, install=False)
    return found.reason if isinstance(found, Missing) else None


@pytest.fixture(scope="module")
def place(
    tmp_path_factory: pytest.TempPathFactory, registry: Registry, builder: Machine, _machines: list[Machine]
) -> Iterator[Place]:
    """Give the project, on two servers as new, once: each pipeline goes on from where the one before came to."""
    gitlab_ci_local()
    one, two = _machines
    for machine in (one, two):
        machine.wipe(keep_images=[images.EDGE, images.base_name(registry)])
    with (registry.folder / "htpasswd").open("a") as file:
        file.write(f"gitlab-ci-token:{bcrypt.hashpw(JOB_TOKEN.encode(), bcrypt.gensalt(4)).decode()}\n")
    with StandIn(
        registry=f"http://{registry.address}",
        registry_user=registry.user,
        registry_password=registry.password,
        htpasswd=registry.folder / "htpasswd",
    ) as gitlab:
        folder = tmp_path_factory.mktemp("pipeline")
        made = Place(folder, registry, gitlab, builder.docker_host, (one, two))
        yield made
        made.close()


class TestPipelines:
    """One after the other."""

    def test_the_procedures_pipeline_builds_releases_and_deploys(self, place: Place) -> None:
        commit = run("git", "-C", str(place.root), "rev-parse", "HEAD").strip()
        # The procedure stops a container that must be there.
        base = images.base_name(place.registry)
        place.one.docker("run", "-d", "--name", "parasite", base, "sleep", "600")

        # It knows of no protected branch; the component's variables of its names are for those alone.
        said = place.pipeline(DOCKER_BUILDKIT="0")

        digest = place.registry.digest(PROJECT, commit)
        assert digest == place.registry.digest(PROJECT, "latest") is not None, said
        container = place.one.inspect("parasite")
        assert container["Config"]["Image"] == f"{place.registry.address}/{PROJECT}:latest"
        wait_for(lambda: place.one.answers(PORT, "/health"), "the application")

    def test_a_merge_request_shows_what_would_be_and_sees_no_secret(self, place: Place) -> None:
        before = place.propose()

        said = place.pipeline(
            protected=False,
            unset=["CI_COMMIT_BRANCH"],
            CI_PIPELINE_SOURCE="merge_request_event",
            CI_MERGE_REQUEST_DIFF_BASE_SHA=before,
        )

        assert place.jobs() == {"esteira:offline-preview"}
        assert re.search(r"> prod: \d+ added\n", said), said
        shown = (place.root / "offline-preview/prod.yaml").read_text()
        assert "parasite" in shown
        assert (place.root / "offline-preview/summary.md").is_file()
        seen = place.environments()
        assert "CI_JOB_TOKEN" in seen["esteira:offline-preview"]
        assert "CI_JOB_TOKEN" not in seen["program"]
        for secret in place.secrets():
            assert secret not in "".join(seen.values()), "a secret is in the environment of a merge request"
            assert secret not in said
        assert JOB_TOKEN not in seen["program"]
        for name in ("DEPLOYMENT_SERVER", "PULUMI_CONFIG_PASSPHRASE", "PULUMI_BACKEND_URL", "GITLAB_TOKEN"):
            assert name not in seen["esteira:offline-preview"]

    def test_the_default_branch_goes_to_staging_and_takes_the_server_over(self, place: Place) -> None:
        need_engine()
        place.git("checkout", "-q", "main")
        place.git("merge", "-q", "--ff-only", "esteira")
        commit = run("git", "-C", str(place.root), "rev-parse", "HEAD").strip()
        before = place.one.inspect("parasite")["Id"]

        said = place.pipeline()

        assert place.jobs() >= {"staging:preview", "staging:up", "production:preview"}
        assert "production:up" not in place.jobs()
        digest = place.registry.digest(PROJECT, commit)
        assert digest == place.registry.digest(PROJECT, "staging") is not None
        container = place.one.inspect("parasite")
        assert container["Id"] != before
        assert container["Config"]["Image"] == f"{place.registry.address}/{PROJECT}@{digest}"
        assert f"commit {commit} " in str(place.one.answers(PORT))
        assert place.two.containers() == []
        for secret in (*place.secrets(), JOB_TOKEN):
            assert secret not in said
        for job, environment in place.environments().items():
            assert place.gitlab.token not in environment, f"{job} has the token that may delete"

    def test_a_tag_goes_to_production_and_nothing_is_built(self, place: Place) -> None:
        need_engine()
        commit = run("git", "-C", str(place.root), "rev-parse", "HEAD").strip()
        digest = place.registry.digest(PROJECT, commit)
        place.git("tag", "v1")
        place.git("checkout", "-q", "--detach", "v1")
        since = place.registry.log_size()

        said = place.pipeline(
            unset=["CI_COMMIT_BRANCH"],
            docker=False,
            CI_COMMIT_TAG="v1",
            CI_COMMIT_REF_NAME="v1",
        )

        assert place.jobs() == {"production:preview", "production:up"}
        assert len(re.findall(r"✅ esteira@v\S+", said)) >= 2, (
            "preview and update are held to the policy pack"
        )
        container = place.two.inspect("parasite")
        assert container["Config"]["Image"] == f"{place.registry.address}/{PROJECT}@{digest}"
        assert place.registry.digest(PROJECT, "latest") == place.registry.digest(PROJECT, commit) == digest
        asked = "\n".join(place.registry.requests(since))
        assert "/blobs/uploads" not in asked, "something was pushed"
        assert re.findall(r"PUT (\S+)", asked) == [f"/v2/{PROJECT}/manifests/latest"]
        # The server pulled with the deploy token, which outlives the job, and nothing of it stays there.
        [token] = place.gitlab.project(PROJECT).deploy_tokens
        logins = [call for call in place.two.calls() if "login" in call]
        assert {call[call.index("--username") + 1] for call in logins} == {token.username}
        assert place.two.sh("cat ~root/.docker/config.json /home/*/.docker/config.json", check=False) == ""
        for secret in (*place.secrets(), JOB_TOKEN):
            assert secret not in said
            for file in place.state.rglob("*"):
                assert not file.is_file() or secret not in file.read_text(), f"a secret is in {file}"

    def test_a_schedule_prunes_the_registry(self, place: Place) -> None:
        need_engine()
        place.git("checkout", "-q", "main")
        first = run("git", "-C", str(place.root), "rev-parse", "HEAD~1").strip()
        tags = place.registry.tags(PROJECT)
        assert first in tags

        said = place.pipeline(CI_PIPELINE_SOURCE="schedule", ESTEIRA_PRUNE="plan", ESTEIRA_KEEP="1")
        assert "Nothing has been deleted" in said
        assert place.registry.tags(PROJECT) == tags
        assert place.jobs() == {"staging:in-use", "production:in-use", "esteira:prune"}
        for job, environment in place.environments().items():
            assert (place.gitlab.token in environment) == (job == "esteira:prune"), job

        place.pipeline("esteira:prune", CI_PIPELINE_SOURCE="schedule", ESTEIRA_PRUNE="yes", ESTEIRA_KEEP="1")
        assert place.registry.tags(PROJECT) == tags - {first}


def need_engine() -> None:
    """Skip where there is no engine: these jobs run nothing else."""
    reason = engine_is_missing()
    if reason is not None:
        pytest.skip(f"the pipeline's deployments are the Pulumi engine's: {reason}")
