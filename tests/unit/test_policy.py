"""The policy pack finds nothing in what the program declares for production, and each thing that is taken out of it."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pulumi
import pytest

from policy.rules import RULES, SECRET_INPUTS, phase_of
from tests.unit.declared import SECRET_SIGNATURE, Declared
from tests.unit.test_program import DIGEST, Checkout

ROOT = Path(__file__).resolve().parents[2]


def plain(value: Any) -> Any:
    """Return inputs as a policy sees them: secrets unwrapped."""
    if isinstance(value, dict):
        return (
            plain(value["value"])
            if SECRET_SIGNATURE in value
            else {key: plain(one) for key, one in value.items()}
        )
    return [plain(one) for one in value] if isinstance(value, list) else value


def found(kind: str, props: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return the violations by the policy's name."""
    violations = {name: list(rule(kind, props)) for name, (rule, _) in RULES.items()}
    return {name: list(told) for name, told in violations.items() if told}


@pytest.fixture(scope="module")
def production(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Declared]:
    """Give what the stack `prod` declares as shipped."""
    before = pulumi.runtime.config.CONFIG.get()
    with pytest.MonkeyPatch.context() as monkeypatch:
        checkout = Checkout(tmp_path_factory.mktemp("production"), monkeypatch)
        checkout.tags = {checkout.commit: DIGEST}
        declared = checkout.run("prod")[1]
    pulumi.runtime.config.CONFIG.set(before)
    return declared


@pytest.fixture
def switch(production: dict[str, Declared]) -> Declared:
    """Give the command that makes the new release serve on a server that is reached by a jump host."""
    return production["Command app-web-2"]


class TestWhatTheProgramDeclares:
    """The shipped production stack is within the rules; what is not, is found."""

    def test_production_is_within_the_rules(self, production: dict[str, Declared]) -> None:
        phases = [phase_of(one.type, plain(one.inputs)) for one in production.values()]
        assert len([phase for phase in phases if phase]) >= 4, "there is something to look at"
        for one in production.values():
            assert found(one.type, plain(one.inputs)) == {}

    def test_its_credentials_are_secrets(self, production: dict[str, Declared]) -> None:
        for one in production.values():
            for key in SECRET_INPUTS:
                assert key not in one.inputs or one.is_secret(key), (one.name, key)

    @pytest.mark.parametrize(
        ("policy", "line", "instead", "says"),
        [
            ("limits", "--memory=512m", "", "no limit for memory"),
            ("limits", "--cpus=1.5", "", "no limit for cpus"),
            ("health-gate", "health.test=http", "health.test=none", "not asked whether it is healthy"),
            ("log-rotation", "--log-opt=max-size=10m", "", "grows without end"),
            ("no-plain-secret", "--env=WEB_CONCURRENCY=4", "--env=DB_PASSWORD=x", "DB_PASSWORD is in plain"),
            ("no-mutable-tag", "caddy:2.11.9-alpine", "caddy:latest", "caddy:latest can become another one"),
            ("no-mutable-tag", "caddy:2.11.9-alpine", "caddy:2", "caddy:2 can become another one"),
        ],
        ids=str,
    )
    def test_settings_that_break_a_rule(
        self, switch: Declared, policy: str, line: str, instead: str, says: str
    ) -> None:
        props = plain(switch.inputs)
        assert line in props["create"]
        told = found(switch.type, {**props, "create": props["create"].replace(line, instead)})
        assert set(told) == {policy}
        assert says in told[policy][0]


class TestWhatTheProgramNeverDeclares:
    """A component that has a mistake, or another program, is held to the same."""

    def test_an_image_by_tag(self, switch: Declared) -> None:
        props = plain(switch.inputs)
        stdin = props["stdin"].replace(f"@{DIGEST}", ":latest")
        assert stdin != props["stdin"]
        assert set(found(switch.type, {**props, "stdin": stdin})) == {"no-mutable-tag"}
        assert set(found(switch.type, {**props, "stdin": "true"})) == {"no-mutable-tag"}

    @pytest.mark.parametrize("place", [("hostKey",), ("proxy", "hostKey")], ids=str)
    def test_a_host_key_that_is_not_pinned(self, switch: Declared, place: tuple[str, ...]) -> None:
        props = plain(switch.inputs)
        inner = props["connection"]
        for step in place[:-1]:
            inner = inner[step]
        assert inner.pop(place[-1])
        assert set(found(switch.type, props)) == {"host-keys-pinned"}

    def test_containers_of_pulumi_docker(self) -> None:
        for kind, props in (
            ("docker:index/container:Container", {"image": "caddy:2.11.9"}),
            ("docker:index/service:Service", {"taskSpec": {"containerSpec": {"image": "caddy"}}}),
        ):
            assert set(found(kind, props)) == {"no-mutable-tag"}
        assert found("docker:index/container:Container", {"image": f"caddy@{DIGEST}"}) == {}

    def test_a_secret_build_argument(self) -> None:
        told = found("docker:index/image:Image", {"build": {"args": {"NPM_TOKEN": "x", "VERSION": "1"}}})
        assert set(told) == {"no-plain-secret"}
        assert "NPM_TOKEN" in told["no-plain-secret"][0]

    def test_other_commands_are_not_its_business(self) -> None:
        assert found("command:local:Command", {"create": "echo PASSWORD"}) == {}
        assert found("aws:s3/bucket:Bucket", {}) == {}

    def test_the_containers_own_arguments_are_not_read_as_options(self) -> None:
        phase = phase_of(
            "command:local:Command",
            {"create": "sh -s -- switch \\\n  a=b \\\n  -- \\\n  --init -- sh -- --memory=1m"},
        )
        assert phase is not None
        assert (phase.values, phase.options) == ({"a": "b"}, ["--init"])


class TestThePack:
    """What the policy SDK is told; the SDK itself lives in the pack's own environment."""

    def test_it_refuses_and_does_not_advise(self) -> None:
        text = (ROOT / "policy/__main__.py").read_text()
        assert "enforcement_level=EnforcementLevel.MANDATORY" in text
        ast.parse(text)

    def test_every_rule_has_a_sentence(self) -> None:
        assert all(description.endswith(".") for _, description in RULES.values())
