"""`./esteira status`, `releases` and `rollback`: what a person is told, and what is declared."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from cli import engine, local, prepare, releases, rollback, shell, stacks, status
from components.errors import EsteiraError
from components.registry import RegistryUnavailableError
from components.settings import Settings
from components.status import Status, parse_status
from tests.unit.test_history import line
from tests.unit.test_reading import COMMIT, DIGEST, NEW_ID, OLD_ID, OTHER, WHOLE
from tests.unit.wrong_settings import ABSENT, HOST_KEY, changed, load, right

CLEAN = WHOLE.replace(f"{OTHER}-dirty-0123", OTHER)
MORE = f"""clock 2026-11-26T12:00:00Z
times {NEW_ID} 2026-11-25T10:00:00.123Z 2026-11-26T11:59:30.5Z 0001-01-01T00:00:00Z
times {OLD_ID} 2026-11-20T10:00:00Z 2026-11-20T10:00:01Z 2026-11-25T10:00:05Z
disk 12300000000 50000000000
health yes HTTP 200 from /health
history {line(OTHER, minute=1)}
history {line(COMMIT, minute=2)}
history {line("f" * 40, "failed", minute=3, cause="Release fffffff is not healthy: " + "x" * 200)}
end
"""


def answer(text: str = CLEAN, more: str = MORE) -> str:
    """Return what the status phase prints."""
    return text.removesuffix("end\n") + more


def at(text: str = CLEAN, more: str = MORE) -> Status:
    return parse_status("web", answer(text, more))


class TestParse:
    """What a server answers, whole or not at all."""

    def test_the_whole(self) -> None:
        found = at()
        assert found.reading.serving is not None
        assert found.reading.serving.commit == COMMIT
        assert (found.healthy, found.health) == (True, "HTTP 200 from /health")
        assert (found.disk_free, found.disk_size) == (12_300_000_000, 50_000_000_000)
        assert found.kept == (OLD_ID,)
        assert found.times[NEW_ID].finished is None
        assert [entry.result for entry in found.history] == ["deployed", "deployed", "failed"]

    @pytest.mark.parametrize("gone", ["clock 2026-11-26T12:00:00Z\n", "end\n"])
    def test_half_an_answer_is_none(self, gone: str) -> None:
        with pytest.raises(EsteiraError, match="Server web answered"):
            at(more=MORE.replace(gone, ""))

    def test_an_empty_server(self) -> None:
        text = "esteira-reading 1\narch amd64\nclock 2026-11-26T12:00:00Z\nend\n"
        found = parse_status("web", text)
        assert (found.kept, found.healthy, found.health, found.disk_free) == (
            (),
            None,
            "nothing serves",
            None,
        )

    def test_what_was_stopped_last_is_first(self) -> None:
        third = "3" * 64
        text = CLEAN.replace("edge running", f"release {third} exited p-3 i m c t\nedge running")
        times = f"times {third} 2026-11-20T10:00:00Z 2026-11-20T10:00:01Z 2026-11-26T11:00:00Z\nend"
        assert at(text, MORE.replace("end", times)).kept == (third, OLD_ID)


class TestTable:
    """One row a server, whatever it says, and what is wrong in words below."""

    def lines(self, *statuses: Status | EsteiraError, difference: str | None = None) -> list[str]:
        settings = load(right())
        server = settings.servers[0]
        rows = [
            status.Row(server.model_copy(update={"name": f"web-{number}"}), one, difference)
            for number, one in enumerate(statuses, 1)
        ]
        return status.as_text(settings, COMMIT, rows)

    def test_a_server_that_is_well(self) -> None:
        text = "\n".join(self.lines(at()))
        assert "parasite in stack staging, declared is commit 8e13f56" in text
        row = f"web-1   8e13f56  1 d  healthy  30 s   parasite {NEW_ID[:12]}  1     12.3 GB"
        assert text.split("\n")[3] == row
        assert "2026-11-26 14:02" in text
        assert "ana@laptop as deploy from 192.0.2.7" in text
        assert "…" in text, "a long cause is cut"
        assert "not as declared" not in text

    def test_one_that_cannot_be_reached_is_a_row_that_says_so(self) -> None:
        lines = self.lines(at(), EsteiraError("The server web-2 does not answer."))
        assert lines[4].split()[:2] == ["web-2", "unreachable"]
        assert "web-2: The server web-2 does not answer." in lines

    @pytest.mark.parametrize(
        ("text", "more", "words"),
        [
            (
                CLEAN,
                MORE.replace("health yes HTTP 200", "health no HTTP 500"),
                "not healthy: HTTP 500 from /health",
            ),
            (CLEAN.replace("serving running", "serving exited"), MORE, " exited "),
            ("esteira-reading 1\narch amd64\n", "clock 2026-11-26T12:00:00Z\nend\n", " none "),
            (WHOLE.replace(f"{COMMIT} {COMMIT}", f"{COMMIT} {COMMIT}-dirty-01"), MORE, " 8e13f56+ "),
        ],
    )
    def test_what_is_not_well(self, text: str, more: str, words: str) -> None:
        assert words in "\n".join(self.lines(at(text, more)))

    def test_drift_is_told(self) -> None:
        assert "web-1: not as declared: no edge" in self.lines(at(), difference="no edge")

    @pytest.mark.parametrize(
        ("seconds", "words"),
        [(0, "0 s"), (59, "59 s"), (60, "1 min"), (7199, "1 h"), (172_800, "2 d"), (-5, "0 s")],
    )
    def test_ages(self, seconds: int, words: str) -> None:
        clock = at().clock
        assert status.ago(clock, clock - timedelta(seconds=seconds)) == words

    def test_json(self) -> None:
        settings = load(right())
        rows = [status.Row(settings.servers[0], one, None) for one in (at(), EsteiraError("It is off."))]
        data = json.loads(json.dumps(status.as_data(settings, COMMIT, rows)))
        assert data["declaredCommit"] == COMMIT
        well, off = data["servers"]
        assert well["serving"] == {
            "commit": COMMIT,
            "dirty": False,
            "digest": DIGEST,
            "id": NEW_ID,
            "created": "2026-11-25T10:00:00Z",
            "container": "parasite",
            "state": "running",
            "restarts": 2,
            "healthy": True,
            "health": "HTTP 200 from /health",
            "since": "2026-11-26T11:59:30Z",
        }
        assert [one["commit"] for one in well["kept"]] == [OTHER]
        assert [one["result"] for one in well["deployments"]] == ["failed", "deployed", "deployed"]
        assert off == {"server": "web", "reachable": False, "error": "It is off."}


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give a project without a Pulumi CLI and without variables of a job."""
    (tmp_path / "Pulumi.yaml").write_text("name: shop\nruntime: python\n")
    for name in ("CI_REGISTRY_PASSWORD", "DEPLOYMENT_SERVER_PASS", "DEPLOYMENT_SERVER_KEY", "PULUMI_STACK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(shell, "has", lambda _: False)
    return tmp_path


def stack_file(tree: Path, secrets: str, **plain: object) -> None:
    values: dict[str, object] = {
        "registry": "registry.example.com",
        "repository": "group/parasite",
        "registryUser": "ana",
        "container": {"name": "parasite", "ports": ["8888:8000"]},
        "servers": [{"name": "web", "host": "web.example.com", "hostKey": HOST_KEY}],
        **plain,
    }
    lines = [f"  esteira:{key}: {json.dumps(value)}" for key, value in values.items()]
    (tree / "Pulumi.prod.yaml").write_text("config:\n" + "\n".join(lines) + "\n" + secrets)


LOGIN = "  esteira:serverPassword:\n    secure: v1:abc\n"
TOKEN = "  esteira:secretEnvironment:\n    TOKEN:\n      secure: v1:def\n"


class TestStacks:
    """A stack outside the engine: the named one, the selected one, else local; its secrets as the user has them."""

    def test_which(self, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        assert stacks.choose(tree, "prod") == "prod"
        assert stacks.choose(tree, None) == "local"
        monkeypatch.setenv("PULUMI_STACK", "organization/shop/staging")
        assert stacks.choose(tree, None) == "staging"

    @pytest.mark.parametrize(("code", "out", "chosen"), [(0, "org/shop/prod\n", "prod"), (255, "", "local")])
    def test_the_selected_one(
        self, tree: Path, monkeypatch: pytest.MonkeyPatch, code: int, out: str, chosen: str
    ) -> None:
        monkeypatch.setattr(shell, "has", lambda _: True)
        monkeypatch.setattr(
            shell, "run", lambda command, **_: subprocess.CompletedProcess(command, code, out, "no stack")
        )
        assert stacks.choose(tree, None) == chosen

    def test_none_of_that_name(self, tree: Path) -> None:
        with pytest.raises(EsteiraError, match=r"There is no stack prod here: Pulumi\.prod\.yaml is missing"):
            stacks.declared(tree, "prod")

    def test_local_before_it_is_up(self, tree: Path) -> None:
        (tree / "Pulumi.local.yaml").write_text("config: {}\n")
        with pytest.raises(EsteiraError, match=r"not up on this machine. Type: \./esteira up"):
            stacks.declared(tree, "local")

    def test_a_login_that_cannot_be_decrypted(self, tree: Path) -> None:
        stack_file(tree, LOGIN)
        with pytest.raises(EsteiraError) as caught:
            stacks.declared(tree, "prod")
        for word in ("esteira:serverPassword", "the Pulumi CLI is not installed", "DEPLOYMENT_SERVER_PASS"):
            assert word in str(caught.value)

    @pytest.mark.parametrize("secrets", [LOGIN, "", LOGIN.replace("Password", "PrivateKey")])
    def test_the_environment_s_login_is_enough(
        self, tree: Path, monkeypatch: pytest.MonkeyPatch, secrets: str
    ) -> None:
        stack_file(tree, secrets + TOKEN)
        monkeypatch.setenv("DEPLOYMENT_SERVER_PASS", "of the job")
        found = stacks.declared(tree, "prod")
        password, _ = found.settings.login(found.settings.servers[0])
        assert password is not None
        assert password.get_secret_value() == "of the job"
        assert found.settings.project == "shop"
        assert not found.whole, "a fingerprint needs the token"

    def test_from_pulumi(self, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        stack_file(tree, LOGIN)
        said = {
            "esteira:registry": {"value": "registry.example.com", "secret": False},
            "esteira:repository": {"value": "group/parasite", "secret": False},
            "esteira:container": {"value": '{"name": "parasite"}', "objectValue": {"name": "parasite"}},
            "esteira:servers": {
                "value": "[]",
                "objectValue": [{"name": "web", "host": "web.example.com", "hostKey": HOST_KEY}],
            },
            "esteira:serverPassword": {"value": "s3cret", "secret": True},
            "esteira:strategy": {"value": "recreate", "secret": False},
            "other:key": {"value": "x", "secret": False},
        }
        monkeypatch.setattr(shell, "has", lambda _: True)
        monkeypatch.setattr(
            shell, "run", lambda command, **_: subprocess.CompletedProcess(command, 0, json.dumps(said), "")
        )
        found = stacks.declared(tree, "prod")
        assert found.whole
        assert found.settings.container.name == "parasite"

    def test_why_pulumi_could_not_is_told(self, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def run(*_: object, **__: object) -> None:
            raise shell.CommandError("`pulumi` failed: \nerror: passphrase must be set")

        stack_file(tree, LOGIN)
        monkeypatch.setattr(shell, "has", lambda _: True)
        monkeypatch.setattr(shell, "run", run)
        with pytest.raises(
            EsteiraError, match=r"cannot be decrypted \(pulumi says: passphrase must be set\)"
        ):
            stacks.declared(tree, "prod")

    def test_one_server(self) -> None:
        settings = two_servers()
        assert [one.name for one in stacks.only(settings, "two").servers] == ["two"]
        with pytest.raises(EsteiraError, match="has no server three; it has web, two"):
            stacks.only(settings, "three")


def two_servers() -> Settings:
    return load(changed(("servers/1", {"name": "two", "host": "two.example.com", "hostKey": HOST_KEY})))


class TestRunStatus:
    """The whole command."""

    def test_an_unreachable_server_is_the_exit_status(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        settings = two_servers()
        monkeypatch.setattr(stacks, "declared", lambda *_: stacks.Declared(settings, whole=True))
        found: dict[str, Status | EsteiraError] = {"web": at(), "two": at()}
        monkeypatch.setattr(status, "read_statuses", lambda _: found)
        monkeypatch.setattr(status, "declared_commit", lambda _: COMMIT)
        assert status.run(tmp_path, "staging", None, as_json=False) == 0
        assert (
            "web: not as declared: commit 8e13f56 with other settings than declared"
            in capsys.readouterr().out
        )
        found["two"] = EsteiraError("The server two is off.")
        assert status.run(tmp_path, "staging", None, as_json=True) == 1
        assert [one["reachable"] for one in json.loads(capsys.readouterr().out)["servers"]] == [True, False]


class TestPrevious:
    """The release before, by the servers' own logs."""

    def test_all_servers_agree(self) -> None:
        assert rollback.previous({"web": at(), "two": at(), "off": EsteiraError("off")}) == OTHER

    def test_they_do_not(self) -> None:
        other = at(more=MORE.replace(f'"{OTHER}"', f'"{"7" * 40}"'))
        with pytest.raises(EsteiraError, match=r"different releases before \(web 0a1b2c3, two 7777777\)"):
            rollback.previous({"web": at(), "two": other})

    def test_without_a_log_it_is_what_was_stopped_last(self) -> None:
        bare = "\n".join(one for one in MORE.splitlines() if not one.startswith("history ")) + "\n"
        assert rollback.previous({"web": at(more=bare)}) == OTHER
        with pytest.raises(EsteiraError, match="No server knows of a release before"):
            rollback.previous({"web": at(WHOLE, bare)})

    def test_the_first_release_has_none_before(self) -> None:
        first = "\n".join(one for one in MORE.splitlines() if OTHER not in one) + "\n"
        with pytest.raises(EsteiraError, match="No server knows of a release before"):
            rollback.previous({"web": at(more=first), "off": EsteiraError("off")})


def release(commit: str, **more: Any) -> releases.Release:
    values = {"server": "web", "dirty": False, "serves": False, "age": "1 d", "same_settings": True}
    return releases.Release(commit=commit, **{**values, **more})


class TestFind:
    """A short sha is enough where it is the beginning of one commit only."""

    @pytest.fixture
    def find(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
        settings = load(right())

        def find(to: str, *kept: releases.Release, registry: object = (), log: object = ()) -> str:
            def commits(_: Settings) -> object:
                if isinstance(registry, Exception):
                    raise registry
                return list(registry)  # type: ignore[call-overload]

            monkeypatch.setattr(rollback, "registry_commits", commits)
            monkeypatch.setattr(rollback, "git_log", lambda _: dict.fromkeys(log, ""))  # type: ignore[call-overload]
            return rollback.find(tmp_path, settings, to, kept)

        return find

    def test_where_it_is_found(self, find: Callable[..., str]) -> None:
        assert find("8E13", release(COMMIT)) == COMMIT
        assert find("0a1b", release(COMMIT), registry=[OTHER]) == OTHER
        assert find("0a1b", registry=RegistryUnavailableError("down"), log=[OTHER]) == OTHER
        assert find("9" * 40) == "9" * 40

    def test_where_it_is_not(self, find: Callable[..., str]) -> None:
        with pytest.raises(
            EsteiraError, match=r"begins with 8e13. The registry cannot be asked: It is down. \./esteira"
        ):
            find("8e13", release(COMMIT, dirty=True), registry=RegistryUnavailableError("It is down."))
        with pytest.raises(EsteiraError, match="is no commit"):
            find("8e1")
        with pytest.raises(EsteiraError, match="is no commit"):
            find("main")

    def test_more_than_one(self, find: Callable[..., str]) -> None:
        other = COMMIT[:39] + "0"
        with pytest.raises(EsteiraError, match="is the beginning of 2 commits") as caught:
            find("8e13", release(COMMIT), release(other))
        assert f"./esteira rollback --to {COMMIT}" in str(caught.value)


class TestRollback:
    """It says which setting it sets, sets it, runs pulumi up, and says how to go forward."""

    @pytest.fixture
    def tried(self, tree: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
        commands: list[list[str]] = []
        stack_file(tree, LOGIN)
        settings = load(changed(("secretEnvironment", ABSENT), ("secretFiles", ABSENT)))
        monkeypatch.setattr(stacks, "declared", lambda *_: stacks.Declared(settings, whole=True))
        monkeypatch.setattr(rollback, "read_statuses", lambda _: {"web": at()})
        monkeypatch.setattr(shell, "has", lambda _: True)

        def take(command: list[str], *_: object, **__: object) -> int:
            commands.append(list(command))
            return 0

        monkeypatch.setattr(shell, "run", take)
        monkeypatch.setattr(engine, "in_view", take)
        return commands

    def test_the_release_before(
        self, tree: Path, tried: list[list[str]], capsys: pytest.CaptureFixture[str]
    ) -> None:
        rollback.run(tree, "prod", None, yes=True)
        assert tried == [
            ["pulumi", "config", "set", "esteira:commit", OTHER, "--stack", "prod", "--non-interactive"],
            ["pulumi", "up", "--stack", "prod", "--yes"],
        ]
        said = capsys.readouterr().out
        assert "Back to commit 0a1b2c3" in said
        assert "web: has its image, and makes a container with the settings of now" in said
        assert "Pulumi.prod.yaml declares commit 0a1b2c3 now (esteira:commit)" in said
        assert "pulumi config rm esteira:commit --stack prod && pulumi up --stack prod" in said

    def test_it_fails(self, tree: Path, tried: list[list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(engine, "in_view", lambda *_: 255)
        with pytest.raises(EsteiraError, match="ended with status 255") as caught:
            rollback.run(tree, "prod", "0a1b", yes=True)
        assert "pulumi config rm esteira:commit --stack prod" in str(caught.value)
        assert tried

    def test_nobody_can_answer(
        self, tree: Path, tried: list[list[str]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("sys.stdin.isatty", lambda: False, raising=False)
        with pytest.raises(EsteiraError, match="With --yes it does not ask"):
            rollback.run(tree, "prod", None, yes=False)
        assert tried == [], "nothing was declared"

    def test_without_pulumi(
        self, tree: Path, tried: list[list[str]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(shell, "has", lambda _: False)
        with pytest.raises(EsteiraError, match="there is no Pulumi CLI here"):
            rollback.run(tree, "prod", None, yes=True)
        assert tried == []

    def test_local_declares_it_for_one_run(
        self,
        tree: Path,
        tried: list[list[str]],
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        told: dict[str, Any] = {}
        monkeypatch.setattr(prepare, "find_engine", lambda _: engine.Missing("none"))
        monkeypatch.setattr(rollback, "carry_out", lambda *_, **given: told.update(given))
        rollback.run(tree, local.STACK, None, yes=False)
        assert told["config"] == {"esteira:commit": OTHER}
        assert "Forward again, to what is checked out:  ./esteira up" in capsys.readouterr().out
        found = engine.Engine("pulumi", "3.260.0")
        monkeypatch.setattr(prepare, "find_engine", lambda _: found)
        monkeypatch.setattr(engine, "carry_out", lambda *_, **given: told.update(given))
        rollback.run(tree, local.STACK, OTHER, yes=False)
        assert told["commit"] == OTHER
        assert tried == []


class TestReleases:
    """What is possible, and what each would cost."""

    def test_what_a_rollback_would_do(
        self, tree: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        settings = load(changed())
        monkeypatch.setattr(stacks, "declared", lambda *_: stacks.Declared(settings, whole=True))
        found: dict[str, Status | EsteiraError] = {"web": at()}
        monkeypatch.setattr(releases, "read_statuses", lambda _: found)
        monkeypatch.setattr(releases, "registry_commits", lambda _: [OTHER, COMMIT])
        monkeypatch.setattr(
            releases, "git_log", lambda _: {COMMIT: "2026-11-26 Newer", OTHER: "2026-11-25 Older"}
        )
        monkeypatch.setattr(releases, "declared_commit", lambda _: COMMIT)
        assert releases.run(tree, "prod", None) == 0
        said = capsys.readouterr().out
        assert "web     8e13f56  1 d ago  serves" in said
        assert "web     0a1b2c3  6 d ago  kept    makes it anew: other settings are declared now" in said
        assert said.index("8e13f56  2026-11-26 Newer") < said.index("0a1b2c3  2026-11-25 Older")
        mark = status.fingerprint_of(settings, settings.servers[0], OTHER)
        text = "\n".join(
            one.replace("f" * 64, mark) if one.startswith(f"release {OLD_ID}") else one
            for one in CLEAN.splitlines()
        )
        found["web"] = at(text + "\n")
        found["two"] = EsteiraError("Server two is off.")

        def down(_: Settings) -> None:
            raise RegistryUnavailableError("It is down.")

        monkeypatch.setattr(releases, "registry_commits", down)
        assert releases.run(tree, "prod", None) == 1
        said = capsys.readouterr().out
        assert "kept    starts it again, without the registry" in said
        assert "two: Server two is off." in said
        assert "The registry cannot be asked: It is down." in said

    def test_a_dirty_one_cannot_be_declared(self) -> None:
        [_, kept] = releases.kept_releases(two_servers(), two_servers().servers[0], at(WHOLE), whole=False)
        assert kept.dirty
        assert "dirty tree" in releases._way(kept)
        assert kept.same_settings is None
        assert "needs the registry" in releases._way(replace(kept, dirty=False))
