"""A tag is written by a command that a person can read, with nothing secret in sight."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pulumi
import pytest
from pulumi_command import local
from pydantic import SecretStr

from components.errors import EsteiraError
from components.release import Release, release_args
from components.tagging import digest_in, point_tag
from tests.unit.declared import Declared, declare
from tests.unit.fake_registry import PASSWORD, USER, FakeRegistry
from tests.unit.image_settings import make_settings

COMMIT = "8e13f56a" * 5
DIGEST = "sha256:" + "ab" * 32
ENVIRONMENT = {"CI_REGISTRY_USER": USER, "CI_REGISTRY_PASSWORD": PASSWORD}


def released(root: Path, *, preview: bool = False, **changes: Any) -> tuple[Any, dict[str, Declared]]:
    settings = make_settings(root, **changes)

    def program() -> Any:
        before = pulumi.ComponentResource("test:index:Deployment", "deployment")
        local.Command("server", create="true", opts=pulumi.ResourceOptions(parent=before))
        opts = pulumi.ResourceOptions(depends_on=[before])
        return Release("parasite", release_args(settings, COMMIT, DIGEST), opts).digest

    outputs = {} if preview else {"command:local:Command": {"stdout": f"{DIGEST}\n"}}
    return declare(program, outputs, preview=preview)


@pytest.fixture
def fake() -> Iterator[FakeRegistry]:
    with FakeRegistry() as running:
        yield running


class TestRelease:
    """One command, after the deployments."""

    def test_the_command_reads_as_a_sentence(self, tmp_path: Path) -> None:
        _, declared = released(tmp_path, moving_tag="stable")
        command = declared["Command parasite-moving-tag"]
        assert command.inputs["create"] == (
            f"./esteira point-tag 127.0.0.1:5000/group/parasite \\\n  tag=stable \\\n  commit={COMMIT}"
        )
        assert not command.is_secret("create")

    def test_it_does_nothing_on_delete_and_has_no_folder_and_no_triggers(self, tmp_path: Path) -> None:
        _, declared = released(tmp_path)
        inputs = declared["Command parasite-moving-tag"].inputs
        assert inputs.keys() == {"create", "stdin", "logging", "addPreviousOutputInEnv"}

    def test_the_credential_goes_in_by_stdin_as_a_secret(self, tmp_path: Path) -> None:
        _, declared = released(tmp_path)
        command = declared["Command parasite-moving-tag"]
        assert command.is_secret("stdin")
        assert json.loads(command.plain("stdin")) == {
            "digest": DIGEST,
            "username": USER,
            "password": PASSWORD,
        }
        assert PASSWORD not in command.inputs["create"]

    def test_a_job_token_is_no_input(self, tmp_path: Path) -> None:
        _, declared = released(tmp_path, registry_credential_from_environment=True)
        command = declared["Command parasite-moving-tag"]
        assert json.loads(command.plain("stdin")) == {"digest": DIGEST, "username": USER, "password": None}
        assert PASSWORD not in json.dumps([one.inputs for one in declared.values()])

    def test_another_job_token_changes_nothing(self, tmp_path: Path) -> None:
        jobs = [
            released(tmp_path, registry_credential_from_environment=True, registry_password=SecretStr(token))
            for token in ("one", "two")
        ]
        assert jobs[0][1] == jobs[1][1]

    def test_an_insecure_registry_is_said(self, tmp_path: Path) -> None:
        _, declared = released(tmp_path, registry_insecure=True, registry="registry.lan")
        assert "insecure=yes" in declared["Command parasite-moving-tag"].inputs["create"]

    def test_token_parent_and_order(self, tmp_path: Path) -> None:
        _, declared = released(tmp_path)
        component, command = declared["Release parasite"], declared["Command parasite-moving-tag"]
        assert component.type == "esteira:index:Release"
        assert command.parent.endswith("esteira:index:Release::parasite")
        assert [urn.rpartition("::")[2] for urn in component.depends_on] == ["server"]

    def test_the_digest_is_the_one_that_the_tag_has(self, tmp_path: Path) -> None:
        assert released(tmp_path)[0] == DIGEST


class TestPointTag:
    """What the command does, on a registry."""

    def run(self, fake: FakeRegistry, *options: str, **given: Any) -> None:
        stdin = json.dumps({"username": USER, "password": PASSWORD, **given})
        point_tag([f"{fake.server}/g/p", *options], stdin, {})

    def test_it_points_the_tag_and_says_so(
        self, fake: FakeRegistry, capsys: pytest.CaptureFixture[str]
    ) -> None:
        digest = fake.add_image()
        self.run(fake, "tag=latest", f"commit={COMMIT}", digest=digest)
        out, err = capsys.readouterr()
        assert fake.tags == {"latest": digest}
        assert out == f"{digest}\n"
        assert err == f"{fake.server}/g/p:latest is new, at {digest} (commit {COMMIT}).\n"

    def test_it_says_where_the_tag_was(self, fake: FakeRegistry, capsys: pytest.CaptureFixture[str]) -> None:
        old, new = fake.add_image("latest"), fake.add_image(mark="two")
        self.run(fake, "tag=latest", digest=new)
        assert f"moved from {old} to {new}" in capsys.readouterr().err

    def test_a_second_time(self, fake: FakeRegistry, capsys: pytest.CaptureFixture[str]) -> None:
        digest = fake.add_image("latest")
        self.run(fake, "tag=latest", digest=digest)
        assert f"stays at {digest}" in capsys.readouterr().err
        assert fake.writes == []

    def test_a_commit_s_own_tag_is_not_overwritten(
        self, fake: FakeRegistry, capsys: pytest.CaptureFixture[str]
    ) -> None:
        old, new = fake.add_image(COMMIT), fake.add_image(mark="two")
        self.run(fake, f"tag={COMMIT}", "overwrite=no", digest=new)
        out, err = capsys.readouterr()
        assert out == f"{old}\n"
        assert "is another one and is not used" in err
        assert fake.writes == []

    def test_the_credential_of_a_job(self, fake: FakeRegistry) -> None:
        digest = fake.add_image()
        stdin = json.dumps({"digest": digest, "username": None, "password": None})
        point_tag([f"{fake.server}/g/p", "tag=latest"], stdin, ENVIRONMENT)
        assert fake.tags == {"latest": digest}

    def test_a_given_password_goes_before_the_job_s(self, fake: FakeRegistry) -> None:
        digest = fake.add_image()
        stdin = json.dumps({"digest": digest, "username": USER, "password": PASSWORD})
        point_tag(
            [f"{fake.server}/g/p", "tag=latest"], stdin, {**ENVIRONMENT, "CI_REGISTRY_PASSWORD": "other"}
        )
        assert fake.tags == {"latest": digest}

    @pytest.mark.parametrize(
        "stdin", ["", "{}", "[]", "null", '{"digest": null}', '{"digest": "latest"}', '{"digest']
    )
    def test_no_digest(self, stdin: str) -> None:
        with pytest.raises(EsteiraError, match="got no digest"):
            point_tag(["127.0.0.1:1/g/p", "tag=latest"], stdin, {})

    @pytest.mark.parametrize(
        "argv", [[], ["latest"], ["a/b"], ["a/b", "tag="], ["a/b", "tag=x", "force=yes"]]
    )
    def test_wrong_arguments(self, argv: list[str]) -> None:
        with pytest.raises(EsteiraError, match="Usage"):
            point_tag(argv, json.dumps({"digest": DIGEST}), {})


class TestDigestIn:
    """Only a digest is taken for one."""

    def test_the_last_line_counts(self) -> None:
        assert digest_in(f"preparing\n{DIGEST}\n") == DIGEST

    @pytest.mark.parametrize("text", ["", "sha256:abc", "latest", f"{DIGEST}\nerror"])
    def test_anything_else_is_refused(self, text: str) -> None:
        with pytest.raises(ValueError, match="is not a digest"):
            digest_in(text)
