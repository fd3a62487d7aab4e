"""What a stack tells GitLab: every variable a secret, every rule checked first, nothing missing in between."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path
from typing import Any, ClassVar, cast

import pulumi
import pytest

from components import gitlab_values
from components.errors import EsteiraError
from components.gitlab import (
    CiVariables,
    DeployToken,
    DeployTokenArgs,
    VariableArgs,
    _Taken,
    declare_gitlab,
    expiry_warning,
)
from components.settings import GitlabStack, load_stack
from tests.unit.declared import Declared, declare

VARIABLE = "gitlab:index/projectVariable:ProjectVariable"
TOKEN = "gitlab:index/projectDeployToken:ProjectDeployToken"
KEY = "-----BEGIN OPENSSH PRIVATE KEY-----\nMARKER-key\n-----END OPENSSH PRIVATE KEY-----\n"
HOST_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGx4yVtZ0yqTj5wq6HfqkYQJQb6q8cO1s7m7gXn0b2Qm"


@pytest.fixture(autouse=True)
def no_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Outside an engine nothing can be exported."""
    monkeypatch.setattr(pulumi, "export", lambda *_: None)


def loaded(gitlab: dict[str, Any] | None = None, secrets: dict[str, str] | None = None) -> GitlabStack:
    values: dict[str, object] = {
        "registry": "registry.example.com",
        "repository": "group/parasite",
        "gitlab": {"project": "group/parasite", **(gitlab or {})},
        "gitlabToken": "MARKER-token",
        "promote": "false",  # Pulumi.yaml's default, which every stack gets
    }
    if secrets:
        values["gitlabVariables"] = secrets
    stack = load_stack(
        values,
        frozenset({"gitlabVariables", "gitlabToken"} & values.keys()),
        project="esteira",
        stack="gitlab",
        root=Path("/nowhere"),
        environ={},
    )
    assert isinstance(stack, GitlabStack)
    return stack


def told(
    gitlab: dict[str, Any] | None = None, secrets: dict[str, str] | None = None, *, preview: bool = False
) -> dict[str, Declared]:
    stack = loaded(gitlab, secrets)
    outputs = (
        {} if preview else {TOKEN: {"username": "gitlab+deploy-token-1", "token": "gldt-MARKERdeploytoken"}}
    )
    return declare(lambda: declare_gitlab(stack), outputs, preview=preview, stack="gitlab")[1]


def variables_of(declared: dict[str, Declared]) -> dict[str, Declared]:
    return {one.name.removeprefix("ci-"): one for one in declared.values() if one.type == VARIABLE}


def declared_variables(*variables: VariableArgs) -> dict[str, Declared]:
    args = {"project": "7", "variables": list(variables)}
    return declare(lambda: CiVariables("ci", args).names)[1]  # type: ignore[arg-type]


class TestTheProceduresNames:
    """An existing pipeline goes on working: it finds every name that it had."""

    ENVIRONMENTS: ClassVar[list[dict[str, Any]]] = [
        {"name": "*", "server": {"host": "192.0.2.1", "user": "ana", "hostKey": HOST_KEY}},
        {"name": "production", "server": {"host": "192.0.2.2", "user": "rui"}},
    ]
    SECRETS: ClassVar[dict[str, str]] = {
        "DEPLOYMENT_SERVER_PASS": "pass$word-long",
        "DEPLOYMENT_SERVER_KEY@production": KEY,
        "PULUMI_CONFIG_PASSPHRASE": "MARKER-passphrase",
    }

    def test_all_of_them(self) -> None:
        found = variables_of(
            told({"environments": self.ENVIRONMENTS, "backendUrl": "s3://state"}, self.SECRETS)
        )
        assert {name: one.plain("value") for name, one in found.items()} == {
            "CONTAINER_IMAGE": "registry.example.com/group/parasite",
            "RELEASE_IMAGE": "registry.example.com/group/parasite:latest",
            "DEPLOYMENT_SERVER_IP": "192.0.2.1",
            "DEPLOYMENT_SERVER_USER": "ana",
            "DEPLOYMENT_SERVER_HOST_KEY": HOST_KEY,
            "DEPLOYMENT_SERVER_IP@production": "192.0.2.2",
            "DEPLOYMENT_SERVER_USER@production": "rui",
            "DEPLOYMENT_SERVER_PASS": "pass$word-long",
            "DEPLOYMENT_SERVER_KEY@production": KEY,
            "PULUMI_CONFIG_PASSPHRASE": "MARKER-passphrase",
            "PULUMI_BACKEND_URL": "s3://state",
        }

    def test_sudo_of_one_server_is_not_anothers(self) -> None:
        first, second = self.ENVIRONMENTS
        sudo = {**first, "server": {**first["server"], "sudo": True}}
        found = variables_of(told({"environments": [sudo, second]}))
        said = {name: one.plain("value") for name, one in found.items() if "SUDO" in name}
        assert said == {"DEPLOYMENT_SERVER_SUDO": "true", "DEPLOYMENT_SERVER_SUDO@production": "false"}

    def test_keys_are_protected_files_and_passwords_masked(self) -> None:
        found = variables_of(told({"environments": self.ENVIRONMENTS}, self.SECRETS))

        def seen(name: str) -> tuple[object, ...]:
            inputs = found[name].inputs
            return tuple(inputs[key] for key in ("variableType", "masked", "hidden", "protected", "raw"))

        assert seen("DEPLOYMENT_SERVER_KEY@production") == ("file", False, False, True, True)
        assert seen("DEPLOYMENT_SERVER_HOST_KEY") == ("file", False, False, True, True)
        assert seen("DEPLOYMENT_SERVER_PASS") == ("env_var", True, False, True, True)
        assert seen("CONTAINER_IMAGE") == ("env_var", False, False, False, True)
        assert found["DEPLOYMENT_SERVER_IP@production"].inputs["environmentScope"] == "production"

    def test_a_key_ends_with_a_line_end(self) -> None:
        """`pulumi config set` takes it off, and OpenSSH refuses the file of a key without."""
        found = variables_of(told(None, {"DEPLOYMENT_SERVER_KEY": KEY.rstrip("\n"), "OWN": "no-line-end"}))
        assert found["DEPLOYMENT_SERVER_KEY"].plain("value") == KEY.rstrip("\n") + "\n"
        assert found["OWN"].plain("value") == "no-line-end"

    def test_a_backend_with_a_password_is_masked(self) -> None:
        plain = variables_of(told({"backendUrl": "s3://state"}))["PULUMI_BACKEND_URL"]
        secret = variables_of(told(None, {"PULUMI_BACKEND_URL": "postgres://pulumi:MARKER@db/pulumi"}))
        assert plain.inputs["masked"] is False
        assert secret["PULUMI_BACKEND_URL"].inputs["masked"] is True

    def test_other_attributes_can_be_written(self) -> None:
        entry = {"key": "PULUMI_CONFIG_PASSPHRASE", "hidden": True, "description": "Ask Ana"}
        found = variables_of(told({"variables": [entry]}, {"PULUMI_CONFIG_PASSPHRASE": "MARKER-passphrase"}))
        inputs = found["PULUMI_CONFIG_PASSPHRASE"].inputs
        assert (inputs["hidden"], inputs["masked"], inputs["description"]) == (True, True, "Ask Ana")


class TestSecrets:
    """No value in plain text, whichever it is."""

    def test_every_value_is_a_secret(self) -> None:
        declared = told({"variables": [{"key": "PLAIN", "value": "x"}]}, {"API_TOKEN": "MARKER-api-token"})
        assert all(one.is_secret("value") for one in variables_of(declared).values())

    def test_no_secret_stands_anywhere_else(self) -> None:
        declared = told({"deployToken": {}}, {"API_TOKEN": "MARKER-api-token"})
        for one in declared.values():
            plain = {key: value for key, value in one.inputs.items() if not one.is_secret(key)}
            assert "MARKER" not in json.dumps(plain)
            assert "MARKER" not in one.name
        assert "MARKER" not in repr(loaded({}, {"API_TOKEN": "MARKER-api-token"}))

    def test_the_providers_token_is_a_secret(self) -> None:
        assert told()["gitlab gitlab"].is_secret("token")

    def test_a_token_of_the_environment_is_no_input(self) -> None:
        values = {
            "registry": "registry.example.com",
            "repository": "group/parasite",
            "gitlab": {"project": "group/parasite"},
        }
        environ = {"GITLAB_TOKEN": "MARKER-token", "CI_API_V4_URL": "https://gitlab.example.com/api/v4"}
        stack = load_stack(
            values, frozenset(), project="esteira", stack="gitlab", root=Path("/nowhere"), environ=environ
        )
        provider = declare(lambda: declare_gitlab(stack), stack="gitlab")[1]["gitlab gitlab"]
        assert "token" not in provider.inputs
        assert provider.inputs["baseUrl"] == "https://gitlab.example.com/api/v4/"


class TestChange:
    """What GitLab can change in place is changed in place; what it cannot is replaced safely."""

    def test_key_and_scope_are_in_the_name(self) -> None:
        """So that another scope is a new variable, made before the old one is deleted."""
        declared = declared_variables(
            {"key": "A", "value": "x"}, {"key": "A", "value": "x", "scope": "review/*"}
        )
        assert {one.name for one in declared.values() if one.type == VARIABLE} == {"ci-A", "ci-A@review/*"}

    def test_a_replacement_deletes_first(self) -> None:
        """GitLab keeps one of a key and scope: the new one would be refused."""
        declared = declared_variables({"key": "A", "value": "12345678", "hidden": True})
        assert declared["ProjectVariable ci-A"].delete_before_replace

    def test_what_is_named_is_adopted(self) -> None:
        found = variables_of(
            told(
                {
                    "adopt": ["CONTAINER_IMAGE", "A@production"],
                    "variables": [
                        {"key": "A", "scope": "production", "value": "x"},
                        {"key": "A", "value": "y"},
                    ],
                }
            )
        )
        assert {name: one.import_id for name, one in found.items() if one.import_id} == {
            "CONTAINER_IMAGE": "group/parasite:CONTAINER_IMAGE:*",
            "A@production": "group/parasite:A:production",
        }

    def test_a_key_that_is_taken_gets_the_line_to_add(self, monkeypatch: pytest.MonkeyPatch) -> None:
        said: list[str] = []
        monkeypatch.setattr(pulumi.log, "error", said.append)
        error = "400 {message: {key: [(A) has already been taken]}}"
        failed = pulumi.ErrorHookArgs(
            "urn",
            "",
            "ci-A",
            VARIABLE,
            {"key": "A", "environmentScope": "production"},
            failed_operation="create",
            errors=[error],
        )
        assert _Taken("Pulumi.gitlab.yaml")(failed) is False
        assert "in Pulumi.gitlab.yaml:" in said[0]
        assert "adopt:\n        - A@production\n" in said[0]

    def test_other_errors_are_left_to_the_provider(self, monkeypatch: pytest.MonkeyPatch) -> None:
        said: list[str] = []
        monkeypatch.setattr(pulumi.log, "error", said.append)
        failed = pulumi.ErrorHookArgs("urn", "", "ci-A", VARIABLE, failed_operation="create", errors=["500"])
        assert _Taken("Pulumi.gitlab.yaml")(failed) is False
        assert not said


class TestRefused:
    """Nothing is declared when GitLab would refuse a part of it."""

    def test_all_at_once_and_before_anything(self) -> None:
        with pytest.raises(EsteiraError) as caught:
            declared_variables(
                {"key": "A-B", "value": "x"},
                {"key": "C", "value": "MARKER\n", "masked": True},
                {"key": "C", "value": "12345678"},
            )
        assert "A-B: The name" in str(caught.value)
        assert "C: The value ends with a line break" in str(caught.value)
        assert "C is declared 2 times" in str(caught.value)
        assert "MARKER" not in str(caught.value)

    def test_a_value_that_comes_later_is_checked_then(self) -> None:
        def program() -> Any:
            value = pulumi.Output.from_input("short")
            return CiVariables(
                "ci", {"project": "7", "variables": [{"key": "A", "value": value, "masked": True}]}
            ).names

        with pytest.raises(Exception, match="fewer than 8 characters"):
            declare(program)


class TestDeployToken:
    """A new one is there before the old one goes."""

    def tokens(self, **args: Any) -> dict[str, Declared]:
        given = cast("DeployTokenArgs", {"project": "7", **args})
        declared = declare(lambda: DeployToken("t", given).token, {TOKEN: {"token": "x"}})[1]
        return {one.name: one for one in declared.values() if one.type == TOKEN}

    def test_it_may_read_the_registry_and_nothing_else(self) -> None:
        [token] = self.tokens().values()
        assert token.inputs["scopes"] == ["read_registry"]
        assert token.inputs["name"] == "esteira-pull-1"
        assert "expiresAt" not in token.inputs

    def test_a_rotation_keeps_the_one_before(self) -> None:
        assert set(self.tokens(rotation=2)) == {"t-1", "t-2"}
        assert set(self.tokens(rotation=3)) == {"t-2", "t-3"}
        assert set(self.tokens(rotation=3, keepPrevious=False)) == {"t-3"}

    def test_the_one_before_stays_as_it_is(self) -> None:
        """A later day, or another name, would replace it, and so revoke what servers may hold."""
        tokens = self.tokens(rotation=2, expiresAt="2099-12-31")
        assert tokens["t-1"].ignore_changes == ["name", "expiresAt", "scopes"]
        assert tokens["t-2"].ignore_changes == []
        assert tokens["t-2"].inputs["expiresAt"] == "2099-12-31T23:59:59Z"

    def test_jobs_get_it_under_gitlabs_own_names(self) -> None:
        found = variables_of(told({"deployToken": {"rotation": 2}}))
        assert found["CI_DEPLOY_PASSWORD"].plain("value") == "gldt-MARKERdeploytoken"
        assert found["CI_DEPLOY_USER"].plain("value") == "gitlab+deploy-token-1"
        assert found["CI_DEPLOY_PASSWORD"].inputs["masked"] is True

    def test_a_preview_does_not_know_it_and_does_not_mind(self) -> None:
        assert "CI_DEPLOY_PASSWORD" in variables_of(told({"deployToken": {}}, preview=True))

    @pytest.mark.parametrize(
        ("left", "words"), [(31, None), (30, "in 30 days"), (1, "tomorrow"), (0, "today")]
    )
    def test_a_warning_when_it_is_near(self, left: int, words: str | None) -> None:
        today = dt.date(2030, 1, 1)
        warning = expiry_warning("pull", 4, (today + dt.timedelta(left)).isoformat(), 30, today)
        assert (warning is None) == (words is None)
        if warning is not None and words is not None:
            assert f"pull-4 expires {words}" in warning
            assert "rotation: 5" in warning

    def test_the_warning_is_in_the_preview(self, monkeypatch: pytest.MonkeyPatch) -> None:
        said: list[str] = []
        monkeypatch.setattr(pulumi.log, "warn", lambda text, *_: said.append(text))
        self.tokens(expiresAt=gitlab_values.today().isoformat())
        assert "expires today" in said[0]
