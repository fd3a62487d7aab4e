"""The record that all servers have switched: what a lost run's servers go by."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping

import pytest

from components import registry
from components.arguments import decision_tag
from components.decision import LABEL, decide, switch_mark
from components.errors import EsteiraError
from components.registry import RegistryUnavailableError
from components.remote import _program
from tests.unit.declared import Declared
from tests.unit.test_arguments import COMMIT, mark
from tests.unit.test_deployment import deployed, servers
from tests.unit.wrong_settings import changed, load

GIVEN = json.dumps({"marks": ["a", "b"], "username": "ana", "password": "MARKER"})
Written = list[tuple[object, ...]]


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> Written:
    """Collect what is written, and with what."""
    found: Written = []

    class Registry:
        def __init__(self, *login: object, plain_http: bool) -> None:
            self.login = (*login, plain_http)

        def write_labels(self, tag: str, labels: Mapping[str, str]) -> str:
            found.append((*self.login, tag, dict(labels)))
            if tag == "down":
                raise RegistryUnavailableError("The registry does not answer.")
            return "sha256:" + "0" * 64

    monkeypatch.setattr(registry, "Registry", Registry)
    return found


def command(count: int) -> Declared | None:
    _, declared = deployed(load(changed(*servers(count))))
    return declared.get("Command parasite-decision")


class TestDeclared:
    """One local command between the switches and the confirmations, where there are several servers."""

    def test_one_server_needs_none(self) -> None:
        assert command(1) is None

    def test_its_text_and_stdin(self) -> None:
        found = command(2)
        assert found
        assert found.inputs["create"] == (
            "./esteira decide registry.example.com/group/parasite \\\n  tag=esteira-decided-staging-parasite"
            f" \\\n  commit={COMMIT}"
        )
        assert found.is_secret("stdin")
        given = json.loads(found.plain("stdin"))
        assert len(given["marks"]) == 2
        assert all(len(one) == 64 for one in given["marks"])

    def test_it_is_between(self) -> None:
        _, declared = deployed(load(changed(*servers(2))))
        waits = {urn.rpartition("::")[2] for urn in declared["Command parasite-decision"].depends_on}
        assert {"parasite-web", "parasite-web-1"} <= waits
        for key in ("Command parasite-web-confirm", "Command parasite-web-1-confirm"):
            assert any(urn.endswith("::parasite-decision") for urn in declared[key].depends_on)

    def test_a_tag_has_its_greatest_length(self) -> None:
        made = load(changed(("container/name", "n" * 57)), stack="s" * 100)
        assert len(decision_tag(made)) == 128


def test_the_server_makes_the_same_mark() -> None:
    line = next(line for line in _program().splitlines() if "own_mark=$(" in line)
    values = {"request": "a 'b' \\ %s, found commit 1", "commit": COMMIT, "fingerprint": mark()}
    text = line + "; echo ${own_mark%% *}"
    values |= {"PATH": "/usr/bin:/bin"}
    done = subprocess.run(["sh", "-c", text], env=values, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == switch_mark(values["request"], COMMIT, mark())


class TestDecide:
    """What the command does."""

    def test_all_marks_are_written(self, written: Written, capsys: pytest.CaptureFixture[str]) -> None:
        decide(["r.example.com/g/p", "tag=t"], GIVEN, {})
        assert written == [("r.example.com", "g/p", "ana", "MARKER", False, "t", {LABEL: "a b"})]
        assert "All 2 servers have switched" in capsys.readouterr().err

    def test_in_a_job(self, written: Written) -> None:
        job = {"CI_REGISTRY_USER": "ci", "CI_REGISTRY_PASSWORD": "token"}
        decide(["127.0.0.1:5000/g/p", "tag=t"], json.dumps({"marks": []}), job)
        assert written[0][:5] == ("127.0.0.1:5000", "g/p", "ci", "token", True)

    def test_a_registry_that_is_down_stops_nothing(
        self, written: Written, capsys: pytest.CaptureFixture[str]
    ) -> None:
        decide(["r.example.com/g/p", "tag=down", "insecure=yes"], GIVEN, {})
        said = capsys.readouterr()
        assert said.err.startswith("warning: ")
        assert "The registry does not answer." in said.err
        assert said.out == ""
        assert written[0][4] is True

    @pytest.mark.parametrize(
        ("argv", "given"),
        [(["g"], GIVEN), (["r/g"], GIVEN), ([], GIVEN), (["r/g", "tag=t"], "{}"), (["r/g", "tag=t"], "")],
    )
    def test_what_makes_no_sense(self, written: Written, argv: list[str], given: str) -> None:
        with pytest.raises(EsteiraError):
            decide(argv, given, {})
        assert written == []
