"""What a deployment declares: commands in the rollout's order, and what makes a server be deployed again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pulumi
import pytest

from components.deployment import Deployment, addresses
from components.errors import EsteiraError
from components.reading import Reading
from components.settings import Settings
from tests.unit.declared import Declared, declare
from tests.unit.test_arguments import mark
from tests.unit.test_reading import COMMIT, DECLARED, DIGEST, EDGE, IMAGE, OWNER, as_declared, local
from tests.unit.wrong_settings import ABSENT, HOST_KEY, changed, load

Said = list[tuple[str, str]]
STDIN_MARKERS = ("MARKER-pull", "MARKER-sudo", "MARKER-env", "MARKER-file")
RECREATE = ("strategy", "recreate")


def servers(count: int) -> list[tuple[str, object]]:
    """Return the changes that make it so many servers: web, web-1, web-2 and so on."""
    return [
        (
            f"servers/{number}",
            {"name": f"web-{number}", "host": f"192.0.2.{number}", "hostKey": HOST_KEY, "sudo": True},
        )
        for number in range(1, count)
    ]


def healthy(*changes: tuple[str, object]) -> Reading:
    """Return the reading of a server that runs exactly what these settings declare."""
    found = as_declared()
    assert found.serving is not None
    return replace(found, serving=replace(found.serving, fingerprint=mark(*changes)))


def deployed(
    made: Settings,
    readings: Mapping[str, Reading | EsteiraError] | None = None,
    *,
    preview: bool = False,
    image: pulumi.Input[str] | None = None,
    digest: str | None = DIGEST,
) -> tuple[Any, dict[str, Declared]]:
    """Declare a deployment; by default every server runs what is declared."""

    def program() -> Any:
        reference = image
        if reference is None:
            reference = pulumi.Output.from_input(IMAGE)
        return Deployment(
            "parasite",
            {
                "settings": made,
                "commit": COMMIT,
                "tag": COMMIT,
                "image": reference,
                "digest": digest,
                "readings": readings or {server.name: healthy() for server in made.servers},
            },
        ).releases

    outputs: dict[str, dict[str, Any]] = {}
    if not preview:
        outputs = {f"command:{kind}:Command": {"stdout": "…"} for kind in ("local", "remote")}
    return declare(program, outputs, preview=preview)


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> Said:
    """Collect what is logged, as (severity, text)."""
    found: Said = []
    monkeypatch.setattr(pulumi, "info", lambda text, *_: found.append(("info", text)))
    monkeypatch.setattr(pulumi, "warn", lambda text, *_: found.append(("warn", text)))
    return found


def names(urns: list[str]) -> set[str]:
    return {urn.rpartition("::")[2] for urn in urns}


class TestWhatIsDeclared:
    """Tokens, names and parents are kept for ever: another one is another resource, and a deployment of its own."""

    def test_blue_green_is_two_commands(self) -> None:
        _, declared = deployed(load(changed()))
        assert {name for name in declared if name.startswith("Command")} == {
            "Command parasite-web-candidate",
            "Command parasite-web",
        }

    @pytest.mark.parametrize("change", [("strategy", "blueGreen"), RECREATE])
    def test_with_several_servers_it_is_three_for_each(self, change: tuple[str, object]) -> None:
        _, declared = deployed(load(changed(change, *servers(2))))
        assert {one.type: one.name for one in declared.values() if "Command" not in one.type} == {
            "esteira:index:Deployment": "parasite",
            "pulumi:index:Stash": "parasite-web-1-request",
        }
        assert set(declared) == {
            "Deployment parasite",
            "Stash parasite-web-request",
            "Stash parasite-web-1-request",
            "Command parasite-web-candidate",
            "Command parasite-web-1-candidate",
            "Command parasite-web",
            "Command parasite-web-1",
            "Command parasite-web-confirm",
            "Command parasite-web-1-confirm",
            "Command parasite-decision",
        }
        for suffix, phase in (("-candidate", "candidate"), ("", "switch"), ("-confirm", "confirm")):
            text = declared[f"Command parasite-web{suffix}"].inputs["create"]
            assert text.startswith(f"sh -s -- {phase} \\\n")

    def test_recreate_is_one_with_the_same_name(self) -> None:
        """A change of strategy is then a change in place, and removes nothing."""
        _, declared = deployed(load(changed(RECREATE)))
        assert set(declared) == {
            "Deployment parasite",
            "Stash parasite-web-request",
            "Command parasite-web",
        }
        assert declared["Command parasite-web"].inputs["create"].startswith("sh -s -- deploy \\\n")

    def test_everything_is_the_component_s_child(self) -> None:
        _, declared = deployed(load(changed()))
        parents = {
            one.parent.rpartition("::")[2] for key, one in declared.items() if key != "Deployment parasite"
        }
        assert parents == {"parasite"}

    def test_this_machine_is_deployed_to_without_ssh(self) -> None:
        _, declared = deployed(local(), {"web": healthy()})
        found = declared["Command parasite-web"]
        assert found.type == "command:local:Command"
        assert "connection" not in found.inputs

    def test_the_text_of_a_command(self) -> None:
        _, declared = deployed(load(changed()))
        lines = declared["Command parasite-web"].inputs["create"].split(" \\\n  ")
        assert lines[:6] == [
            "sh -s -- switch",
            "server=web",
            f"owner={OWNER}",
            "name=parasite",
            "lockTimeout=300",
            f"commit={COMMIT}",
        ]
        assert lines.count("--") == 2

    def test_all_phases_of_a_server_get_the_same(self) -> None:
        """So that each can do without the one before, and a changed secret runs every one."""
        _, declared = deployed(load(changed()))
        candidate, switch = (declared[f"Command parasite-web{end}"] for end in ("-candidate", ""))
        assert candidate.plain("stdin") == switch.plain("stdin")
        texts = [one.inputs["create"].partition("\n")[2] for one in (candidate, switch)]
        assert texts[0] == texts[1]

    def test_what_it_returns(self) -> None:
        releases, _ = deployed(load(changed(*servers(2))))
        assert releases == {"web": COMMIT, "web-1": COMMIT}

    def test_no_earlier_output_is_handed_to_a_command(self) -> None:
        """It would be in the command's environment, and a warning in every update."""
        _, declared = deployed(load(changed()))
        assert declared["Command parasite-web"].inputs["addPreviousOutputInEnv"] is False


class TestOrder:
    """No server switches before the candidates of all servers are healthy: a fleet moves as one."""

    @staticmethod
    def commands(declared: dict[str, Declared], phase: str) -> list[Declared]:
        """Return the commands of a phase, in the order of the servers."""
        return [
            one for one in declared.values() if str(one.inputs.get("create")).startswith(f"sh -s -- {phase} ")
        ]

    @pytest.mark.parametrize("change", [("strategy", "blueGreen"), RECREATE])
    @pytest.mark.parametrize(
        ("count", "rollout", "steps"),
        [
            (2, {}, [[0], [1]]),
            (5, {}, [[0], [1, 2, 3, 4]]),
            (5, {"canary": 0}, [[0, 1, 2, 3, 4]]),
            (5, {"canary": 2, "batchSize": 2}, [[0, 1], [2, 3], [4]]),
            (5, {"canary": 1, "batchSize": 3}, [[0], [1, 2, 3], [4]]),
            (3, {"canary": 9}, [[0, 1, 2]]),
        ],
    )
    def test_candidates_canaries_batches_confirmations(
        self,
        count: int,
        rollout: dict[str, object],
        steps: list[list[int]],
        change: tuple[str, object],
    ) -> None:
        _, declared = deployed(load(changed(change, ("rollout", rollout), *servers(count))))
        candidates, switches, confirms = (
            self.commands(declared, phase) for phase in ("candidate", "switch", "confirm")
        )
        assert len(candidates) == len(switches) == len(confirms) == count
        done: set[str] = set()
        for step in steps:
            for index in step:
                waits = self.waits(declared, switches[index])
                assert {one.name for one in candidates} <= waits
                # A step waits for those before it, and for nothing of its own.
                assert waits & {one.name for one in switches} == done
            done |= {switches[index].name for index in step}
        for confirm in confirms:
            waits = self.waits(declared, confirm)
            assert {one.name for one in switches} <= waits
            assert not waits & {one.name for one in confirms}

    @staticmethod
    def waits(declared: dict[str, Declared], one: Declared) -> set[str]:
        """Return the names of all that one waits for, by way of others too."""
        by_name = {other.name: other for other in declared.values()}
        found: set[str] = set()
        todo = names(one.depends_on)
        while todo:
            found |= todo
            todo = {
                name for known in todo if known in by_name for name in names(by_name[known].depends_on)
            } - found
        return found

    def test_many_servers_are_not_their_number_squared_in_dependencies(self) -> None:
        """A preview of hundreds took most of its time over them."""
        counts = [
            sum(len(one.depends_on) for one in deployed(load(changed(*servers(count))))[1].values())
            for count in (5, 10, 20)
        ]
        assert counts[2] - counts[1] == 2 * (counts[1] - counts[0])

    def test_one_server_switches_when_its_candidate_is_healthy(self) -> None:
        _, declared = deployed(load(changed()))
        assert names(declared["Command parasite-web"].depends_on) == {
            "parasite-web-candidate",
            "parasite-web-request",
        }

    def test_another_order_of_the_servers_changes_no_command(self) -> None:
        """Only who waits for whom, which runs nothing."""
        made = load(changed(*servers(3)))
        turned = made.model_copy(update={"servers": list(reversed(made.servers))})
        texts = [
            {key: one.inputs.get("create") for key, one in deployed(settings)[1].items()}
            for settings in (made, turned)
        ]
        assert texts[0] == texts[1]

    def test_another_server_changes_no_command_of_the_others(self) -> None:
        few, more = (deployed(load(changed(*servers(count))))[1] for count in (2, 3))
        for key, one in few.items():
            if one.type != "pulumi:index:Stash":
                assert {k: v for k, v in one.inputs.items() if k != "stdin"} == {
                    k: v for k, v in more[key].inputs.items() if k != "stdin"
                }

    def test_candidates_do_not_wait_for_each_other(self) -> None:
        _, declared = deployed(load(changed(*servers(3))))
        for key, one in declared.items():
            if key.endswith("-candidate"):
                assert not [name for name in names(one.depends_on) if name.endswith("-candidate")]

    def test_but_for_the_one_that_runs_pre_deploy(self) -> None:
        """The migration is done before the new release runs anywhere."""
        _, declared = deployed(load(changed(("preDeploy", ["migrate"]), *servers(3))))
        first = "parasite-web-candidate"
        for key in ("Command parasite-web-1-candidate", "Command parasite-web-2-candidate"):
            assert first in names(declared[key].depends_on)

    def test_one_server_of_recreate_waits_for_nothing(self) -> None:
        _, declared = deployed(load(changed(RECREATE)))
        assert names(declared["Command parasite-web"].depends_on) == {"parasite-web-request"}


class TestDestroy:
    """One command of a server removes what is there, once, and only what this declaration made."""

    @pytest.mark.parametrize("change", [("strategy", "blueGreen"), RECREATE])
    def test_delete_is_on_one_command(self, change: tuple[str, object]) -> None:
        _, declared = deployed(load(changed(change, *servers(2))))
        deletes = {one.name: one.inputs["delete"] for one in declared.values() if "delete" in one.inputs}
        assert set(deletes) == {"parasite-web", "parasite-web-1"}
        assert deletes["parasite-web"] == (
            f"sh -s -- remove \\\n  server=web \\\n  owner={OWNER} \\\n  name=parasite \\\n  lockTimeout=300"
        )

    def test_it_is_the_same_for_every_strategy(self) -> None:
        """Else a change of strategy would be a change of delete."""
        one, other = (
            deployed(load(changed(("strategy", strategy))))[1]["Command parasite-web"].inputs["delete"]
            for strategy in ("blueGreen", "recreate")
        )
        assert one == other

    def test_another_container_replaces_and_the_old_goes_first(self) -> None:
        """pulumi-command replaces on triggers only, and runs the new create before the old delete unless told."""
        _, declared = deployed(load(changed()))
        for key in ("Command parasite-web-candidate", "Command parasite-web"):
            assert declared[key].inputs["triggers"] == [OWNER]
            assert declared[key].delete_before_replace

    def test_no_other_setting_replaces(self) -> None:
        change = ("container/memory", "1g")
        _, declared = deployed(load(changed(change)), {"web": healthy(change)})
        assert declared["Command parasite-web"].inputs["triggers"] == [OWNER]


class TestSecrets:
    """Nothing secret is a plain input: inputs are in previews, in state and in errors."""

    def test_stdin_and_connection_are_secrets(self) -> None:
        _, declared = deployed(load(changed()))
        for key in ("Command parasite-web-candidate", "Command parasite-web"):
            assert declared[key].is_secret("stdin")
            assert declared[key].is_secret("connection")

    def test_no_plain_input_holds_a_secret(self) -> None:
        _, declared = deployed(load(changed(*servers(2))))
        plain = json.dumps(
            [
                {key: value for key, value in one.inputs.items() if not one.is_secret(key)}
                for one in declared.values()
            ]
        )
        assert "MARKER" not in plain
        assert "PRIVATE KEY" not in plain

    def test_the_test_would_see_them(self) -> None:
        _, declared = deployed(load(changed()))
        stdin = declared["Command parasite-web"].plain("stdin")
        assert not [marker for marker in STDIN_MARKERS[:3] if marker not in stdin]

    def test_what_is_known_is_shown_in_a_preview(self) -> None:
        """An unknown digest would hide every other change of a text that held it: it is in stdin."""
        _, declared = deployed(
            load(changed()),
            preview=True,
            image=pulumi.Output.from_input(pulumi.runtime.rpc.UNKNOWN),
            digest=None,
        )
        text = declared["Command parasite-web"].inputs["create"]
        assert isinstance(text, str)
        assert f"commit={COMMIT}" in text
        assert "sha256" not in text


class TestRequest:
    """A server that does not run what is declared is deployed again whatever the engine's state says; no other is."""

    def request(self, declared: dict[str, Declared], server: str = "web") -> Declared:
        return declared[f"Stash parasite-{server}-request"]

    def test_while_the_server_runs_what_is_declared_the_request_stays(self, said: Said) -> None:
        _, declared = deployed(load(changed()))
        assert self.request(declared).ignore_changes == ["input"]
        assert said == []

    def test_otherwise_it_is_a_fresh_one_that_says_why(self, said: Said) -> None:
        made = load(changed(*servers(2)))
        _, declared = deployed(made, {"web": healthy(), "web-1": replace(healthy(), serving=None)})
        assert self.request(declared).ignore_changes == ["input"]
        fresh = self.request(declared, "web-1")
        assert fresh.ignore_changes == []
        assert fresh.inputs["input"].endswith(", found no container of that name")
        assert fresh.inputs["input"] in str(declared["Command parasite-web-1"].inputs["stdin"])
        assert said == [("info", "server web-1 has no container of that name; declared is commit 8e13f56")]

    @pytest.mark.parametrize(
        ("found", "words"),
        [
            (replace(healthy(), edge=None), "commit 8e13f56 behind no edge"),
            (as_declared(), "commit 8e13f56 with other settings than declared"),
        ],
    )
    def test_every_kind_of_difference_counts(self, found: Reading, words: str, said: Said) -> None:
        _, declared = deployed(load(changed()), {"web": found})
        assert self.request(declared).inputs["input"].endswith(f"found {words}")
        assert said[0][1].startswith(f"server web has {words}")

    def test_who_asked_and_when(self) -> None:
        """The server's lock names its holder by it."""
        _, declared = deployed(load(changed()), {"web": as_declared()})
        assert " UTC, " in self.request(declared).inputs["input"]
        assert "@" in self.request(declared).inputs["input"]

    def test_a_digest_that_is_not_known_yet_asks_for_nothing(self) -> None:
        _, declared = deployed(load(changed()), digest=None)
        assert self.request(declared).ignore_changes == ["input"]

    def test_another_digest_does(self, said: Said) -> None:
        _, declared = deployed(load(changed()), digest="sha256:" + "cd" * 32)
        assert self.request(declared).ignore_changes == []
        assert "in another image" in said[0][1]

    def test_the_test_s_own_premise(self) -> None:
        assert healthy().difference(**{**DECLARED, "fingerprint": mark(), "edge": EDGE}) is None


class TestPullCredential:
    """What servers pull with is in the stdin of every command."""

    def test_a_jobs_token_is_told(self, said: Said) -> None:
        """Another one in each job is a change of every command in each job."""
        job = {"CI_REGISTRY_USER": "gitlab-ci-token", "CI_REGISTRY_PASSWORD": "MARKER-job"}
        none = [(f"{side}{key}", ABSENT) for side in ("registry", "pull") for key in ("User", "Password")]
        deployed(load(changed(*none), environ=job))
        [(severity, text)] = [one for one in said if one[0] == "warn"]
        assert (severity, "esteira:gitlab.deployToken" in text, "MARKER" in text) == ("warn", True, False)

    def test_one_of_its_own_is_not(self, said: Said) -> None:
        deployed(load(changed()))
        assert said == []


class TestUnreadableServer:
    """A preview goes on without it, and says so; an update must not work on what it could not read."""

    ERROR = EsteiraError("The server web (web.example.com:22) does not answer: no answer in time.")

    def test_a_preview_warns_and_goes_on(self, said: Said) -> None:
        _, declared = deployed(load(changed()), {"web": self.ERROR}, preview=True)
        assert said == [("warn", f"{self.ERROR} This preview does not know what runs on server web.")]
        assert declared["Stash parasite-web-request"].ignore_changes == ["input"]

    def test_an_update_fails_with_its_sentence(self) -> None:
        with pytest.raises(EsteiraError) as caught:
            deployed(load(changed()), {"web": self.ERROR})
        assert caught.value is self.ERROR

    def test_before_any_command_of_any_server_is_declared(self) -> None:
        """A fleet moves as one: the servers that answer are not deployed to either."""
        made = load(changed(*servers(2)))
        seen: dict[str, Declared] = {}

        def program() -> None:
            with pytest.raises(EsteiraError):
                Deployment(
                    "parasite",
                    {
                        "settings": made,
                        "commit": COMMIT,
                        "tag": COMMIT,
                        "image": IMAGE,
                        "digest": DIGEST,
                        "readings": {"web": healthy(), "web-1": self.ERROR},
                    },
                )

        _, seen = declare(program)
        assert not [key for key in seen if key.startswith("Command")]


class TestAddresses:
    """Where the application answers, for a person to open."""

    @pytest.mark.parametrize(
        ("ports", "expected"),
        [
            (["8888:8000"], ["http://web.example.com:8888"]),
            (["192.0.2.9:80:8000"], ["http://192.0.2.9:80"]),
            ([{"published": 1, "target": 8000, "protocol": "h2c"}], ["http://web.example.com:1"]),
            (["0.0.0.0:80:8000"], ["http://web.example.com:80"]),
            (["[::]:80:8000"], ["http://web.example.com:80"]),
            (["[2001:db8::9]:80:8000"], ["http://[2001:db8::9]:80"]),
        ],
    )
    def test_of_a_server(self, ports: list[object], expected: list[str]) -> None:
        found = addresses(load(changed(("container/ports", ports), ("health/port", 8000))))
        assert found == {"web": expected}

    def test_other_protocols(self) -> None:
        ports = [
            {"published": 443, "target": 8443, "protocol": "https"},
            {"published": 53, "target": 53, "protocol": "udp"},
            {"published": 25, "target": 25, "protocol": "tcp"},
        ]
        found = addresses(load(changed(RECREATE, ("container/ports", ports))))
        assert found["web"] == [
            "https://web.example.com:443",
            "udp://web.example.com:53",
            "tcp://web.example.com:25",
        ]

    def test_of_a_server_that_is_known_by_an_ipv6_address(self) -> None:
        assert addresses(load(changed(("servers/0/host", "2001:db8::1")))) == {
            "web": ["http://[2001:db8::1]:8888"]
        }

    def test_of_a_domain(self) -> None:
        found = addresses(load(changed(("domain", ["a.example.org", "b.example.org"]), *servers(2))))
        urls = ["https://a.example.org", "https://b.example.org"]
        assert found == {"web": urls, "web-1": urls}

    def test_of_this_machine(self) -> None:
        assert addresses(local()) == {"web": ["http://localhost:8888"]}
