"""GitLab's rules: what passes, what does not, and what the sentence says to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from components import gitlab_rules as rules
from components.settings import GitlabStack, Settings, SettingsError, load_stack
from tests.unit.wrong_settings import right

KEY = "-----BEGIN KEY-----\nMARKER\n-----END KEY-----\n"


def faults(value: str = "12345678", key: str = "A", **attributes: Any) -> list[str]:
    given = {"masked": False, "hidden": False, "protected": False, "raw": False, "file": False, "scope": "*"}
    return rules.variable_faults(key, value, **{**given, **attributes})


class TestMasking:
    """GitLab's maskable.rb, case by case."""

    @pytest.mark.parametrize(
        "value", ["12345678", "aZ09_+=/@:.~-", "a" * 10_000, "glpat-abcdefghijklmnop", "https://a.b:80/c~d"]
    )
    def test_what_passes_both_ways(self, value: str) -> None:
        assert faults(value, masked=True) == faults(value, masked=True, raw=True) == []

    @pytest.mark.parametrize(
        "value",
        ["hello$VARIABLEworld", "HelloWorld%#^", "pass!word", "senha-çã-é", "[]{}\\|;'\"", "hello\\rworld"],
    )
    def test_what_passes_raw_only(self, value: str) -> None:
        assert faults(value, masked=True, raw=True) == []
        [fault] = faults(value, masked=True)
        assert "raw: true" in fault

    @pytest.mark.parametrize("raw", [True, False])
    @pytest.mark.parametrize(
        ("value", "says"),
        [
            ("", "empty value"),
            ("short", "fewer than 8"),
            ("hello world", "spaces"),
            ("hello\tworld", "spaces"),
            ("12345678\n", "ends with a line break"),
            ("12345678\r\n", "ends with a line break"),
            (KEY, "type: file, masked: false, protected: true"),
        ],
    )
    def test_what_never_passes(self, value: str, says: str, raw: bool) -> None:
        [fault] = faults(value, masked=True, raw=raw)
        assert says in fault
        assert faults(value, raw=raw) == []

    def test_only_what_is_missing_is_asked_for(self) -> None:
        [fault] = faults(KEY, masked=True, file=True, protected=True)
        assert fault.endswith("write masked: false.")

    def test_hidden_is_masked(self) -> None:
        [fault] = faults(hidden=True)
        assert "masked: true" in fault
        assert len(faults("short", hidden=True)) == 2
        assert faults(hidden=True, masked=True) == []

    @pytest.mark.parametrize("value", ["short", "hello world", KEY, "MARKER$$%"])
    def test_no_sentence_holds_the_value(self, value: str) -> None:
        for fault in faults(value, masked=True):
            assert value not in fault
            assert "MARKER" not in fault


class TestForm:
    """Names, scopes, lengths."""

    @pytest.mark.parametrize("key", ["A", "_a1", "9", "a" * 255])
    def test_names(self, key: str) -> None:
        assert faults(key=key) == []

    @pytest.mark.parametrize("key", ["", "A-B", "A B", "Á", "A\n", "a" * 256, "A.B", "$A"])
    def test_no_names(self, key: str) -> None:
        assert len(faults(key=key)) == 1

    @pytest.mark.parametrize("scope", ["*", "production", "review/*", "a b", "${X}.c-d_e", "*/x/*"])
    def test_scopes(self, scope: str) -> None:
        assert faults(scope=scope) == []

    @pytest.mark.parametrize("scope", ["", "prod,staging", "a@b", "é", "a\n", "a" * 256])
    def test_no_scopes(self, scope: str) -> None:
        assert len(faults(scope=scope)) == 1

    def test_lengths(self) -> None:
        assert faults("a" * 10_000) == []
        assert "10,001 characters" in faults("a" * 10_001)[0]
        assert faults(description="a" * 255) == []
        assert "255" in faults(description="a" * 256)[0]

    def test_all_faults_of_one_variable(self) -> None:
        assert len(faults("x y", "A-B", masked=True, scope="", description="a" * 300)) == 4


class TestNames:
    """A key is one variable for each scope."""

    def test_duplicates(self) -> None:
        assert rules.duplicate_faults([("A", "*"), ("A", "production"), ("a", "*")]) == []
        [fault] = rules.duplicate_faults([("A", "x"), ("B", "x"), ("A", "x")])
        assert fault.startswith("A@x is declared 2 times")

    def test_both_ways(self) -> None:
        for key, scope in (("A", "*"), ("A", "production"), ("A", "review/*")):
            assert rules.split_name(rules.shown(key, scope)) == (key, scope)

    def test_a_taken_key(self) -> None:
        assert rules.is_taken(["create failed", "400 {message: {key: [(FOO) has already been taken]}}"])
        assert not rules.is_taken(["400 {message: {value: [is invalid]}}"])
        assert '- "A@review/*"\n' in rules.taken("A", "review/*", "Pulumi.gitlab.yaml")


def load(gitlab: object, secrets: dict[str, str] | None = None, **more: Any) -> Settings | GitlabStack:
    values: dict[str, Any] = {"registry": "r.example.com", "repository": "g/p", "gitlab": gitlab, **more}
    if secrets is not None:
        values["gitlabVariables"] = secrets
    secret_keys = frozenset(
        {"gitlabVariables", "gitlabToken", "registryPassword", "serverPassword", "serverPrivateKey"}
        | {
            "pullPassword",
            "sudoPassword",
            "jumpPassword",
            "jumpPrivateKey",
            "secretEnvironment",
            "secretFiles",
        }
    )
    return load_stack(
        values,
        secret_keys & values.keys(),
        project="esteira",
        stack="gitlab",
        root=Path("/nowhere"),
        environ={"GITLAB_TOKEN": "MARKER-token"},
    )


def wrong(gitlab: object, secrets: dict[str, str] | None = None) -> dict[str, tuple[str, str]]:
    with pytest.raises(SettingsError) as caught:
        load(gitlab, secrets)
    assert "MARKER" not in str(caught.value)
    return {one.key: (one.problem, "\n".join(one.write)) for one in caught.value.mistakes}


class TestSettings:
    """The rules as they reach a person: with the key, and with what to write."""

    def test_a_key_of_several_lines(self) -> None:
        problem, write = wrong({"project": "g/p"}, {"SIGNING_KEY@production": KEY})[
            'gitlabVariables["SIGNING_KEY@production"]'
        ]
        assert "cannot be masked" in problem
        assert write == (
            "esteira:gitlab:\n  variables:\n    - key: SIGNING_KEY\n      scope: production\n      type: file\n"
            "      masked: false\n      protected: true"
        )

    def test_what_it_says_to_write_is_right(self) -> None:
        entry = {
            "key": "SIGNING_KEY",
            "scope": "production",
            "type": "file",
            "masked": False,
            "protected": True,
        }
        assert load({"project": "g/p", "variables": [entry]}, {"SIGNING_KEY@production": KEY})

    def test_a_line_end_is_set_again(self) -> None:
        _, write = wrong({"project": "g/p"}, {"T": "MARKER-12\n"})["gitlabVariables.T"]
        assert write == "pulumi config set --secret --path 'esteira:gitlabVariables.T'"

    def test_an_expanded_value_is_made_raw(self) -> None:
        entry = {"key": "A", "value": "a$bcdefgh", "masked": True}
        _, write = wrong({"project": "g/p", "variables": [entry]})["gitlab.variables[0]"]
        assert write.endswith("raw: true")

    def test_values_that_are_missing_or_doubled(self) -> None:
        variables = [
            {"key": "A"},
            {"key": "B", "value": "x"},
            {"key": "B", "value": "y"},
            {"key": "C", "value": "z"},
        ]
        found = wrong({"project": "g/p", "variables": variables}, {"C": "MARKER-secret"})
        assert "has no value" in found["gitlab.variables[0]"][0]
        assert "declared twice" in found["gitlab.variables[2]"][0]
        assert "two values" in found["gitlabVariables.C"][0]

    def test_what_is_adopted_must_be_declared(self) -> None:
        assert "no such variable" in wrong({"project": "g/p", "adopt": ["NOPE"]})["gitlab.adopt[0]"][0]

    def test_the_deploy_tokens_variables_are_its_own(self) -> None:
        found = wrong({"project": "g/p", "deployToken": {}}, {"CI_DEPLOY_PASSWORD": "MARKER-secret"})
        assert "deploy token's" in found["gitlab.deployToken"][0]

    def test_no_token(self) -> None:
        with pytest.raises(SettingsError, match="scope api") as caught:
            load_stack(
                {"registry": "r.example.com", "repository": "g/p", "gitlab": {"project": "g/p"}},
                frozenset(),
                project="esteira",
                stack="gitlab",
                root=Path("/nowhere"),
                environ={},
            )
        assert caught.value.mistakes[0].write == ("pulumi config set --secret esteira:gitlabToken",)

    @pytest.mark.parametrize(
        ("gitlab", "key", "problem"),
        [
            ({}, "gitlab.project", "not set"),
            ({"project": "https://gitlab.com/g/p.git"}, "gitlab.project", "its path"),
            ({"project": "g/p", "baseUrl": "gitlab.lan"}, "gitlab.baseUrl", "not the address"),
            ({"project": "g/p", "baseUrl": "https://u:MARKER@h"}, "gitlab.baseUrl", "more in it"),
            (
                {"project": "g/p", "deployToken": {"expiresAt": "2001-01-01"}},
                "gitlab.deployToken.expiresAt",
                "over",
            ),
            (
                {"project": "g/p", "deployToken": {"rotation": 0}},
                "gitlab.deployToken.rotation",
                "out of range",
            ),
            (
                {"project": "g/p", "environments": [{"name": "a"}, {"name": "a"}]},
                "gitlab.environments[1].name",
                "twice",
            ),
            (
                {"project": "g/p", "variables": [{"key": "A-B", "value": "x"}]},
                "gitlab.variables[0].key",
                "letters",
            ),
            (
                {"project": "g/p", "variables": [{"key": "A", "value": "x", "typ": "file"}]},
                "gitlab.variables[0].typ",
                '"type"',
            ),
        ],
    )
    def test_wrong_values(self, gitlab: dict[str, Any], key: str, problem: str) -> None:
        assert problem in wrong(gitlab)[key][0]

    def test_base_url_is_completed(self) -> None:
        stack = load({"project": "g/p", "baseUrl": "https://gitlab.lan:8443/git"})
        assert stack.gitlab is not None
        assert stack.gitlab.base_url == "https://gitlab.lan:8443/git/api/v4/"

    def test_an_application_may_stand_beside_it(self) -> None:
        values = right()
        stack = load({"project": "g/p"}, {"A": "MARKER-secret"}, **values)
        assert isinstance(stack, Settings)
        assert stack.gitlab is not None
        assert stack.container.name == "parasite"

    def test_without_an_application_none_of_its_keys_is_missed(self) -> None:
        assert isinstance(load({"project": "g/p"}, promote="false", keepReleases="5"), GitlabStack)

    def test_a_key_of_an_application_asks_for_the_rest_of_it(self) -> None:
        with pytest.raises(SettingsError) as caught:
            load({"project": "g/p"}, health={"path": "/"})
        assert "container" in {one.key for one in caught.value.mistakes}
