"""Whole programs with GitLab resources, carried out by the rehearsal against the GitLab stand-in."""

from __future__ import annotations

import json
import os
import re
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml

from rehearsal import RehearsalError, RehearsalResult, carry_out
from rehearsal.gitlab import Fault, StandIn
from rehearsal.run import Action

ROOT = Path(__file__).resolve().parents[2]
PATH = "ParasiteWeb/parasite"
SECRET = "very-secret-value-1"


@pytest.fixture
def standin() -> Iterator[StandIn]:
    with StandIn() as started:
        started.project(PATH)
        yield started


PROGRAM = f"""
import pulumi
import pulumi_gitlab as gitlab

config = pulumi.Config()
provider = gitlab.Provider("gitlab", base_url=config.require("url"), token=config.require_secret("token"))
opts = pulumi.ResourceOptions(provider=provider)
found = gitlab.get_project_output(path_with_namespace="{PATH}", opts=pulumi.InvokeOptions(provider=provider))
token = gitlab.ProjectDeployToken("pull", project=found.id, name="pull-1", scopes=["read_registry"], opts=opts)
for number in range(config.require_int("count")):
    gitlab.ProjectVariable(
        f"v{{number}}", project="{PATH}", key=f"V{{number}}", value=pulumi.Output.secret("{SECRET}"),
        masked=True, opts=opts)
gitlab.ProjectVariable("password", project="{PATH}", key="CI_DEPLOY_PASSWORD", value=token.token, opts=opts)
pulumi.export("project", found.path_with_namespace)
pulumi.export("token", token.token)
"""


class TestProgram:
    """Whole programs, through the SDK."""

    def test_the_stack_as_shipped_with_a_hundred_variables(
        self, standin: StandIn, tmp_path: Path, record: Callable[[str], None]
    ) -> None:
        # A request to a GitLab on the internet takes twice as long and more.
        standin.latency = 0.05
        for name in ("Pulumi.yaml", "Pulumi.gitlab.yaml", "__main__.py", "components"):
            (tmp_path / name).symlink_to(ROOT / name)
        shipped = yaml.safe_load((ROOT / "Pulumi.gitlab.yaml").read_text())["config"]["esteira:gitlab"]
        project = standin.project(shipped["project"])
        config = {
            "esteira:gitlab": {**shipped, "baseUrl": standin.base_url},
            "esteira:gitlabVariables": {f"OWN_{number}": f"{SECRET}-{number}" for number in range(90)},
        }
        lines: list[str] = []

        def run(action: Action) -> RehearsalResult:
            return carry_out(
                tmp_path,
                "gitlab",
                action=action,
                environ={**os.environ, "GITLAB_TOKEN": standin.token},
                config=config,
                secret_keys=["esteira:gitlabVariables"],
                on_line=lines.append,
            )

        started = time.monotonic()
        run("up")
        seconds = time.monotonic() - started
        assert len(project.variables) > 100
        calls = self.time_of_the_calls_themselves(standin, project.variables)
        record(
            f"{len(project.variables)} variables: up {seconds:.1f} s; the same requests alone, one after the other, "
            f"{calls:.1f} s"
        )
        assert seconds < 3 * calls
        standin.latency = 0
        (token,) = project.deploy_tokens
        password = next(one for one in project.variables if one["key"] == "CI_DEPLOY_PASSWORD")
        assert password["value"] == token.token
        before = json.dumps(project.variables)
        asked = len(standin.exchanges)

        run("up")
        assert {exchange.method for exchange in standin.exchanges[asked:]} == {"GET"}
        assert len(standin.exchanges[asked:]) < 10
        assert json.dumps(project.variables) == before

        run("destroy")
        assert (project.variables, project.deploy_tokens) == ([], [])
        shown = "\n".join(lines)
        for secret in (SECRET, token.token, standin.token):
            assert secret not in shown

    def time_of_the_calls_themselves(self, standin: StandIn, variables: list[dict[str, Any]]) -> float:
        """Make the same variables in another project by nothing but the requests; the seconds that takes."""
        standin.project("ParasiteWeb/plain")
        session = requests.Session()
        session.headers["PRIVATE-TOKEN"] = standin.token
        started = time.monotonic()
        for one in variables:
            data = {name: value for name, value in one.items() if name != "hidden" and value is not None}
            made = session.post(
                f"{standin.base_url}projects/ParasiteWeb%2Fplain/variables", json=data, timeout=30
            )
            assert made.status_code == 201
        return time.monotonic() - started

    def test_a_token_that_dies_in_the_middle(self, standin: StandIn, tmp_path: Path) -> None:
        (tmp_path / "Pulumi.yaml").write_text("name: small\nruntime: python\n")
        (tmp_path / "Pulumi.dev.yaml").write_text("config: {}\n")
        (tmp_path / "__main__.py").write_text(textwrap.dedent(PROGRAM))
        config = {"url": standin.base_url, "token": standin.token, "count": "20"}

        lines: list[str] = []

        def run() -> RehearsalResult:
            return carry_out(tmp_path, "dev", config=config, secret_keys=["token"], on_line=lines.append)

        fault = standin.faults.order(Fault("expire", nth=12))
        with pytest.raises(RehearsalError, match="has expired") as raised:
            run()
        assert re.search(r"What was done before stays\. Make a new one and run it again\.", str(raised.value))
        assert fault.seen >= 12
        standin.state.tokens[0].expired = False
        standin.faults.clear()
        assert run().outputs == {"project": PATH, "token": "[secret]"}
        assert len(standin.project(PATH).variables) == 21
        assert SECRET not in "\n".join(lines)
