"""The stack `gitlab` on the real engine: adoption, order, and what is kept in the state; GitLab is the stand-in."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gitlab
import pytest
import yaml

from cli.engine import Missing, find
from rehearsal.gitlab import StandIn
from tests.unit.wrong_settings import private_key

ROOT = Path(__file__).resolve().parents[2]
PROJECT = "group/parasite"
SECRETS = {"OWN": "MARKER-own-secret", "HIDDEN": "MARKER-hidden-secret", "KEY@production": private_key()}
PASSPHRASE = "MARKER-passphrase"


class Stack:
    """A checkout with the stack, on a file backend."""

    def __init__(self, root: Path, standin: StandIn) -> None:
        self.root, self.gitlab = root, standin
        self.state, tools = root / "state", root / "tools"
        for folder in (self.state, tools):
            folder.mkdir()
        for name in ("Pulumi.yaml", "__main__.py", "components"):
            (root / name).symlink_to(ROOT / name)
        (root / ".venv").symlink_to(sys.prefix)
        plugin = tools / "pulumi-resource-gitlab"
        plugin.write_text(
            f'#!/bin/sh\nexec {sys.executable} {Path(__file__).with_name("gitlab_plugin.py")} "$@"\n'
        )
        plugin.chmod(0o755)
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("CI_", "GITLAB", "PULUMI"))
        }
        self.environ = {
            **kept,
            "PATH": f"{tools}:{os.environ['PATH']}",
            "PULUMI_BACKEND_URL": f"file://{self.state}",
            "PULUMI_CONFIG_PASSPHRASE": PASSPHRASE,
            "PULUMI_SKIP_UPDATE_CHECK": "true",
            "GITLAB_TOKEN": standin.token,
        }
        self.settings: dict[str, Any] = {
            "project": PROJECT,
            "baseUrl": standin.base_url,
            "environments": [{"name": "production", "server": {"host": "192.0.2.1", "user": "deploy"}}],
            "variables": [
                {"key": "HIDDEN", "hidden": True},
                {"key": "KEY", "scope": "production", "type": "file", "masked": False},
            ],
            "deployToken": {"rotation": 1},
        }
        self.seen: list[str] = []
        self.run("stack", "init", "gitlab")
        for name, value in SECRETS.items():
            self.secret(name, value)

    def secret(self, name: str, value: str) -> None:
        """Set a secret variable, as the documentation says."""
        self.run("config", "set", "--secret", "--path", f'esteira:gitlabVariables["{name}"]', stdin=value)

    def run(self, *words: str, good: bool = True, stdin: str = "") -> str:
        """Run the CLI and return what it showed."""
        if words[0] not in {"stack", "config"}:
            self._write()
            words = (*words, "--non-interactive", "--color=never", "--stack", "gitlab")
        done = subprocess.run(
            ["pulumi", *words],
            cwd=self.root,
            env=self.environ,
            input=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
            check=False,
        )
        assert (done.returncode == 0) == good, done.stdout
        self.seen.append(done.stdout)
        return done.stdout

    def _write(self) -> None:
        file = self.root / "Pulumi.gitlab.yaml"
        written = yaml.safe_load(file.read_text())
        written["config"] |= {
            "esteira:registry": "registry.example.com",
            "esteira:repository": PROJECT,
            "esteira:gitlab": self.settings,
        }
        file.write_text(yaml.safe_dump(written))

    def up(self, *, good: bool = True) -> str:
        """Update; what it showed."""
        return self.run("up", "--yes", "--skip-preview", good=good)

    def requests(self, since: int) -> list[str]:
        """Return what has changed GitLab since: method and the last part of the path."""
        return [
            f"{one.method} {one.path.rpartition('projects/')[2].partition('/')[2]}"
            for one in self.gitlab.exchanges[since:]
            if one.method != "GET"
        ]

    def values(self) -> dict[str, Any]:
        """Return the project's variables, by ``KEY@scope``."""
        return {
            f"{one['key']}@{one['environment_scope']}": one["value"]
            for one in self.gitlab.project(PROJECT).variables
        }


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Give the stack, once: each test goes on from the one before."""
    found = find(ROOT, install=False)
    if shutil.which("pulumi") is None or isinstance(found, Missing):
        pytest.skip("there is no pulumi that is new enough")
    with StandIn() as started:
        started.project(PROJECT)
        yield Stack(tmp_path_factory.mktemp("gitlab"), started)


class TestGitlabStack:
    """One after the other."""

    def test_a_variable_that_is_taken_is_adopted_as_the_error_says(self, stack: Stack) -> None:
        api = gitlab.Gitlab(stack.gitlab.url, oauth_token=stack.gitlab.token)
        api.projects.get(PROJECT).variables.create({"key": "OWN", "value": "somebody-else's"})
        error = stack.up(good=False)
        assert "adopt:\n" in error
        line = re.search(r"adopt:\s+- (\S+)", error)
        assert line is not None
        assert line[1] == "OWN"
        stack.settings["adopt"] = [line[1]]
        stack.up()
        values = stack.values()
        assert values["OWN@*"] == SECRETS["OWN"]
        assert values["KEY@production"] == SECRETS["KEY@production"]
        stack.run("preview", "--expect-no-changes")

    def test_a_value_is_an_update_and_another_scope_is_made_before_the_old_goes(self, stack: Stack) -> None:
        since = len(stack.gitlab.exchanges)
        stack.secret("HIDDEN", "MARKER-other-hidden")
        stack.settings["environments"][0]["name"] = "production/*"
        stack.up()
        asked = stack.requests(since)
        assert "PUT variables/HIDDEN" in asked
        made = max(position for position, one in enumerate(asked) if one == "POST variables")
        gone = min(position for position, one in enumerate(asked) if one.startswith("DELETE"))
        assert made < gone
        assert stack.values()["HIDDEN@*"] == "MARKER-other-hidden"
        assert "DEPLOYMENT_SERVER_IP@production/*" in stack.values()

    def test_hiding_is_a_replacement_that_deletes_first(self, stack: Stack) -> None:
        since = len(stack.gitlab.exchanges)
        stack.settings["variables"].append({"key": "OWN", "hidden": True})
        stack.settings["adopt"] = []
        stack.up()
        assert stack.requests(since) == ["DELETE variables/OWN", "POST variables"]
        [own] = [one for one in stack.gitlab.project(PROJECT).variables if one["key"] == "OWN"]
        assert (own["hidden"], own["value"]) == (True, SECRETS["OWN"])

    def test_a_token_is_rotated_without_a_dead_one(self, stack: Stack) -> None:
        for rotation in (2, 3):
            held = stack.values()["CI_DEPLOY_PASSWORD@*"]
            since = len(stack.gitlab.exchanges)
            stack.settings["deployToken"] = {"rotation": rotation}
            stack.up()
            tokens = {one.token: one for one in stack.gitlab.project(PROJECT).deploy_tokens}
            assert not tokens[held].revoked, "jobs and servers that began before hold a dead token"
            assert tokens[stack.values()["CI_DEPLOY_PASSWORD@*"]].name == f"esteira-pull-{rotation}"
            asked = stack.requests(since)
            if rotation == 3:
                last_put = max(position for position, one in enumerate(asked) if one.startswith("PUT"))
                assert asked[0] == "POST deploy_tokens"
                assert last_put < next(i for i, one in enumerate(asked) if one.startswith("DELETE"))
        assert {one.name for one in stack.gitlab.project(PROJECT).deploy_tokens} == {
            "esteira-pull-2",
            "esteira-pull-3",
        }

    def test_no_value_is_in_the_output_or_in_plain_state(self, stack: Stack) -> None:
        secrets = [*SECRETS.values(), "MARKER-other-hidden", stack.gitlab.token]
        secrets += [one.token for one in stack.gitlab.project(PROJECT).deploy_tokens]
        # Not only the secret ones: the value of every variable is a secret.
        secrets += [value for key, value in stack.values().items() if "IMAGE" in key]
        seen = "\n".join(stack.seen)
        kept = "\n".join(path.read_text() for path in stack.state.rglob("*") if path.is_file())
        assert "ci-CONTAINER_IMAGE" in kept
        for secret in secrets:
            first = secret.splitlines()[min(1, len(secret.splitlines()) - 1)]
            assert first not in seen
            assert first not in kept

    def test_destroy_takes_all_of_it_away(self, stack: Stack) -> None:
        stack.run("destroy", "--yes", "--skip-preview")
        assert stack.values() == {}
        assert all(one.revoked for one in stack.gitlab.project(PROJECT).deploy_tokens)
