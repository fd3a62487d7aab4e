"""The rehearsal carries GitLab's resources out against the stand-in: what is there, what goes wrong, what is said."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from rehearsal import RehearsalError, gitlab_resources
from rehearsal.gitlab import Fault, StandIn
from rehearsal.monitor import Context
from rehearsal.values import reveal

PATH = "ParasiteWeb/parasite"
SECRET = "very-secret-value-1"


@pytest.fixture
def standin() -> Iterator[StandIn]:
    with StandIn() as started:
        started.project(PATH)
        yield started


class Resources:
    """Carries single resources out, as the monitor does."""

    def __init__(self, standin: StandIn, root: Path) -> None:
        self.standin = standin
        self.root = root
        self.lines: list[str] = []
        self.put_off: list[Any] = []
        self.provider: dict[str, Any] = {"baseUrl": standin.base_url, "token": standin.token}

    def context(self, *ignore_changes: str) -> Context:
        """Make what an act needs; each time as in a new process."""
        gitlab_resources._clients.clear()
        self.put_off.clear()
        return Context(
            self.root, "it", self.lines.append, self.put_off.append, self.provider, frozenset(ignore_changes)
        )

    def variable(self, **inputs: Any) -> dict[str, Any]:
        """Declare one."""
        return gitlab_resources.declare_variable(
            {"project": PATH, "key": "FOO", "value": SECRET, **inputs}, self.context()
        )

    def token(self, *ignore_changes: str, **inputs: Any) -> dict[str, Any]:
        """Declare a deploy token, and do what was put off."""
        outputs = gitlab_resources.declare_deploy_token(
            {"project": PATH, "name": "pull-1", "scopes": ["read_registry"], **inputs},
            self.context(*ignore_changes),
        )
        for act in self.put_off:
            act()
        return outputs

    @property
    def variables(self) -> list[dict[str, Any]]:
        """What the project has."""
        return self.standin.project(PATH).variables

    def asked(self, method: str) -> int:
        """Count the requests with that method."""
        return sum(exchange.method == method for exchange in self.standin.exchanges)


@pytest.fixture
def resources(standin: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Resources:
    monkeypatch.setattr(gitlab_resources, "RETRIES", 3)
    monkeypatch.delenv("GITLAB_TOKEN", raising=False)
    monkeypatch.delenv("GITLAB_BASE_URL", raising=False)
    return Resources(standin, tmp_path)


class TestVariables:
    """A variable is as declared afterwards, whatever was there."""

    def test_a_new_one_is_made(self, resources: Resources) -> None:
        outputs = resources.variable(
            masked=True, raw=True, description="For the servers", variableType="file"
        )
        assert resources.variables == [
            {
                "key": "FOO",
                "value": SECRET,
                "environment_scope": "*",
                "masked": True,
                "hidden": False,
                "protected": False,
                "raw": True,
                "variable_type": "file",
                "description": "For the servers",
            }
        ]
        assert outputs["environmentScope"] == "*"

    def test_nothing_is_sent_for_what_is_right(self, resources: Resources) -> None:
        resources.variable()
        resources.variable()
        assert (resources.asked("POST"), resources.asked("PUT")) == (1, 0)

    @pytest.mark.parametrize(
        "change", [{"value": "b"}, {"protected": True}, {"raw": True}, {"description": "d"}, {"masked": True}]
    )
    def test_what_differs_is_changed_in_place(self, resources: Resources, change: Mapping[str, Any]) -> None:
        resources.variable()
        resources.variable(**change)
        (now,) = resources.variables
        assert {name: now[name] for name in change} == change
        resources.variable()
        assert resources.variables[0]["value"] == SECRET
        assert resources.variables[0]["description"] is None
        assert resources.asked("DELETE") == 0

    def test_scopes_are_variables_of_their_own(self, resources: Resources) -> None:
        for scope in ("production", "*", "review/*"):
            resources.variable(environmentScope=scope, value=scope)
        resources.variable(environmentScope="review/*", value="other")
        assert {one["environment_scope"]: one["value"] for one in resources.variables} == {
            "production": "production",
            "*": "*",
            "review/*": "other",
        }
        gitlab_resources.remove_variable(
            {"project": PATH, "key": "FOO", "environmentScope": "*"}, resources.context()
        )
        assert len(resources.variables) == 2

    def test_hiding_and_showing_is_a_replacement(self, resources: Resources) -> None:
        resources.variable()
        resources.variable(hidden=True, masked=True)
        assert (resources.variables[0]["hidden"], resources.variables[0]["value"]) == (True, SECRET)
        resources.variable(hidden=True, masked=True, value="another-value-2")
        assert resources.variables[0]["value"] == "another-value-2"
        resources.variable()
        assert (resources.variables[0]["hidden"], resources.variables[0]["value"]) == (False, SECRET)

    def test_a_value_that_cannot_be_hidden_costs_nothing(self, resources: Resources) -> None:
        resources.variable(value="old value")
        with pytest.raises(RehearsalError, match="cannot mask this value"):
            resources.variable(hidden=True, masked=True, value="two words")
        assert [one["value"] for one in resources.variables] == ["old value"]
        assert resources.asked("DELETE") == 0

    def test_removing_what_is_gone_is_no_error(self, resources: Resources) -> None:
        gitlab_resources.remove_variable({"project": PATH, "key": "FOO"}, resources.context())


class TestTrouble:
    """Repeated where that helps; else one sentence that says what is done and what is not, and never a value."""

    @pytest.mark.parametrize("fault", ["3+2:502", "3:500", "3:429:0", "3:reset", "3:reset!", "3:503!"])
    def test_what_passes_is_lived_through(self, resources: Resources, fault: str) -> None:
        # The third request is the one that makes the variable: after the user and the list.
        resources.standin.faults.order(Fault.parse(fault))
        resources.variable()
        assert [one["value"] for one in resources.variables] == [SECRET]

    def test_a_wait_is_announced(self, resources: Resources) -> None:
        resources.standin.faults.order(Fault("rate_limit", nth=3, retry_after=1))
        resources.variable()
        assert any("asks to wait 1 s (rate limit)" in line for line in resources.lines)

    @pytest.mark.parametrize(
        ("fault", "sentence"),
        [
            (
                Fault("status", status=503, path="variables"),
                r"answered 503, 4 times\. What was done before stays",
            ),
            (Fault("rate_limit", retry_after=0, path="variables"), "still refuses requests after 3 waits"),
            (Fault("rate_limit", retry_after=3600), "takes no request for 3600 s"),
            (Fault("reset", path="variables"), "gave no answer, 4 times"),
            (Fault("expire", nth=3), r"has expired\. What was done before stays\."),
        ],
    )
    def test_what_does_not_pass_is_said(self, resources: Resources, fault: Fault, sentence: str) -> None:
        resources.standin.faults.order(fault)
        with pytest.raises(RehearsalError, match=sentence) as raised:
            resources.variable()
        assert SECRET not in str(raised.value)
        assert resources.standin.token not in str(raised.value)

    def test_silence_is_not_waited_for_without_end(
        self, resources: Resources, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(gitlab_resources, "TIMEOUT", 0.1)
        monkeypatch.setattr(gitlab_resources, "RETRIES", 1)
        resources.standin.faults.order(Fault("timeout", seconds=0.5))
        with pytest.raises(RehearsalError, match="gave no answer, 2 times"):
            resources.variable()

    def test_no_token(self, resources: Resources) -> None:
        resources.provider.pop("token")
        with pytest.raises(RehearsalError, match="Set the environment variable GITLAB_TOKEN"):
            resources.variable()

    @pytest.mark.parametrize(
        ("token", "sentence"),
        [
            ({"secret": "glpat-wrong"}, "does not know the token"),
            ({"revoked": True}, "was revoked"),
            ({"expired": True}, "has expired"),
            ({"scopes": ["read_api"]}, "too small a scope. Make one with the scope api"),
            ({"scopes": ["read_repository"]}, "too small a scope"),
            ({"role": 30}, "takes the role Maintainer"),
            ({"role": 0}, "has no such project, or the token's user cannot see it"),
        ],
    )
    def test_tokens(self, resources: Resources, token: dict[str, Any], sentence: str) -> None:
        resources.provider["token"] = (
            token["secret"] if "secret" in token else resources.standin.new_token("it", **token)
        )
        with pytest.raises(RehearsalError, match=sentence):
            resources.variable()

    def test_an_unknown_project(self, resources: Resources) -> None:
        with pytest.raises(RehearsalError, match=r"variables of group/none: .* has no such project"):
            resources.variable(project="group/none")

    @pytest.mark.parametrize("inputs", [{"key": "a-b"}, {"masked": True, "value": "a b c d e f"}])
    def test_what_gitlab_refuses(self, resources: Resources, inputs: dict[str, Any]) -> None:
        with pytest.raises(RehearsalError, match="GitLab") as raised:
            resources.variable(**inputs)
        assert "a b c d e f" not in str(raised.value)


class TestDeployTokens:
    """Made once, used again, replaced without a gap."""

    def test_it_is_made_once(self, resources: Resources) -> None:
        first, second = resources.token(), resources.token()
        assert first == second
        assert reveal(first["token"]).startswith("gldt-")
        assert len(resources.standin.project(PATH).deploy_tokens) == 1
        kept = resources.root / ".esteira" / "local" / "gitlab-deploy-tokens.json"
        assert kept.stat().st_mode & 0o777 == 0o600

    def test_another_day_is_another_token_and_the_old_one_dies_last(self, resources: Resources) -> None:
        first = resources.token(expiresAt="2031-01-01T23:59:59Z")
        inputs = {"project": PATH, "name": "pull-1", "scopes": ["read_registry"]}
        second = gitlab_resources.declare_deploy_token(inputs, resources.context())
        there = resources.standin.project(PATH).deploy_tokens
        assert [token.id for token in there] == [first["deployTokenId"], second["deployTokenId"]]
        for act in resources.put_off:
            act()
        assert [token.id for token in there] == [second["deployTokenId"]]

    def test_changes_that_are_to_be_ignored_are(self, resources: Resources) -> None:
        first = resources.token(expiresAt="2031-01-01T23:59:59Z")
        assert resources.token("expiresAt", expiresAt="2032-01-01T23:59:59Z") == first

    def test_one_that_was_deleted_in_gitlab_is_made_again(self, resources: Resources) -> None:
        first = resources.token()
        resources.standin.project(PATH).deploy_tokens.clear()
        assert reveal(resources.token()["token"]) != reveal(first["token"])

    @pytest.mark.parametrize("fault", ["3:reset!", "3:502!"])
    def test_a_lost_answer_leaves_no_second_one(self, resources: Resources, fault: str) -> None:
        resources.standin.faults.order(Fault.parse(fault))
        made = resources.token()
        (there,) = resources.standin.project(PATH).deploy_tokens
        assert there.token == reveal(made["token"])

    def test_somebody_elses_stays(self, resources: Resources) -> None:
        resources.token()
        (resources.root / ".esteira" / "local" / "gitlab-deploy-tokens.json").unlink()
        resources.token()
        assert len(resources.standin.project(PATH).deploy_tokens) == 2
        assert "whose secret is not known here; it stays" in resources.lines[-1]

    def test_destroy_takes_it_away(self, resources: Resources) -> None:
        resources.token()
        inputs = {"project": PATH, "name": "pull-1", "scopes": ["read_registry"]}
        gitlab_resources.remove_deploy_token(inputs, resources.context())
        gitlab_resources.remove_deploy_token(inputs, resources.context())
        assert resources.standin.project(PATH).deploy_tokens == []
