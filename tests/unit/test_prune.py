"""What may leave the registry: only commits' images that nobody runs or could roll back to."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cli import prune
from cli.prune import Tag, human, plan
from components.arguments import owner_of
from components.errors import EsteiraError
from components.reading import ContainerReading, Reading
from components.settings import Settings
from rehearsal.gitlab import StandIn
from tests.unit.wrong_settings import load, right


def sha(number: int) -> str:
    return f"{number:040x}"


def digest(number: int) -> str:
    return f"sha256:{number:064x}"


def tag(number: int, name: str = "", **more: Any) -> Tag:
    """Make a tag; a higher number is newer."""
    given = {"repository": "g/p", "name": name or sha(number), "digest": digest(number), "size": 10**8}
    return Tag(**{**given, "created": f"2030-01-{number:02}T00:00:00Z", **more})


def names(tags: Any) -> set[str]:
    return {one.name for one in tags}


class TestPlan:
    """Pure: tags in, decision out."""

    def test_the_newest_commits_stay(self) -> None:
        decided = plan([tag(number) for number in range(1, 6)], {}, 2)
        assert names(decided.delete) == {sha(1), sha(2), sha(3)}

    def test_what_runs_stays_whatever_its_age(self) -> None:
        decided = plan([tag(1), tag(2), tag(3)], {digest(1): "the stack prod runs it"}, 1)
        assert names(decided.delete) == {sha(2)}
        assert (tag(1), "the stack prod runs it") in decided.keep

    def test_a_moving_tag_keeps_its_commit(self) -> None:
        """A rollback looks the commit up by its tag."""
        decided = plan([tag(1), tag(1, "latest"), tag(2), tag(3)], {}, 1)
        assert names(decided.delete) == {sha(2)}

    @pytest.mark.parametrize(
        "name", ["latest", "v1.0", "buildcache", "8e13f56", sha(1)[:39], "main-" + sha(1)]
    )
    def test_only_what_esteira_made_is_deleted(self, name: str) -> None:
        assert plan([tag(1, name), tag(2)], {}, 1).delete == ()

    def test_dirty_builds_go_like_commits(self) -> None:
        dirty = tag(1, f"{sha(1)}-dirty-0123456789ab")
        assert plan([dirty, tag(2)], {}, 1).delete == (dirty,)

    def test_an_unknown_digest_stays(self) -> None:
        assert plan([tag(1, digest=""), tag(2)], {}, 1).delete == ()

    def test_space_is_counted_once_and_only_where_it_is_freed(self) -> None:
        twice = dataclasses.replace(tag(2), name=sha(9), created="2029-01-01")
        assert plan([tag(1), tag(2), twice, tag(3)], {}, 1).freed == 2 * 10**8
        assert plan([tag(1), dataclasses.replace(tag(3), digest=digest(1))], {}, 1).freed == 0

    def test_sizes_for_people(self) -> None:
        assert (human(10 * 1024**3), human(52_428_800)) == ("10.0 GB", "50 MB")


class Place:
    """A GitLab, a stack and its server."""

    def __init__(self, gitlab: StandIn, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.gitlab, self.root = gitlab, root
        self.outputs: dict[str, object] = {"digest": digest(1)}
        serving = ContainerReading(
            "running", "o", f"registry.example.com/group/parasite@{digest(1)}", "f", sha(1)
        )
        self.reading: Reading | EsteiraError = Reading(serving, ())
        monkeypatch.setenv("GITLAB_TOKEN", gitlab.token)
        monkeypatch.setenv("GITLAB_BASE_URL", gitlab.base_url)
        monkeypatch.delenv("CI_PROJECT_PATH", raising=False)
        settings = load(right())
        monkeypatch.setattr(prune, "settings_of", lambda *_: settings)
        monkeypatch.setattr(prune, "_pulumi", lambda *_: self.outputs)
        monkeypatch.setattr(prune, "read_servers", self._read)

    def _read(self, settings: Settings, owner: str) -> dict[str, Reading | EsteiraError]:
        return {"web": self.reading}

    def push(self, *numbers: int, name: str = "") -> None:
        for number in numbers:
            self.gitlab.push(
                "group/parasite",
                name or sha(number),
                digest(number),
                size=10**8,
                created_at=f"2030-01-{number:02}T00:00:00.000Z",
            )

    def prune(self, *, newest: int = 1, yes: bool = True) -> None:
        prune.run(self.root, ["staging"], None, newest, yes=yes)

    def left(self) -> set[str]:
        [repository] = self.gitlab.project("group/parasite").repositories
        return set(repository.tags)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    (tmp_path / "Pulumi.yaml").write_text("name: shop\nruntime: python\n")
    with StandIn() as gitlab:
        yield Place(gitlab, tmp_path, monkeypatch)


class TestRun:
    """Against the stand-in."""

    def test_first_it_only_says(self, place: Place, capsys: pytest.CaptureFixture[str]) -> None:
        place.push(1, 2, 3)
        place.prune(yes=False)
        said = capsys.readouterr().out
        assert f"delete  {sha(2)}  95 MB, of 2030-01-02" in said
        assert "1 of 3 tags go, which frees 95 MB at most" in said
        assert "Nothing has been deleted" in said
        assert place.left() == {sha(1), sha(2), sha(3)}

    def test_then_it_deletes(self, place: Place) -> None:
        place.push(1, 2, 3)
        place.push(1, name="latest")
        place.prune()
        assert place.left() == {sha(1), sha(3), "latest"}

    def test_what_a_server_could_roll_back_to_stays(self, place: Place) -> None:
        place.push(1, 2, 3, 4)
        kept = ContainerReading(
            "exited", "o", f"registry.example.com/group/parasite@{digest(2)}", "f", sha(2)
        )
        place.reading = dataclasses.replace(place.reading, releases=(kept,))  # type: ignore[type-var]
        place.prune()
        assert place.left() == {sha(1), sha(2), sha(4)}

    def test_another_stacks_server_is_not_taken_for_its_own(self, place: Place) -> None:
        """As in a job of an environment whose variables name the server of another one."""
        place.push(1, 2, 3)
        place.reading = Reading(None, ())
        with pytest.raises(EsteiraError, match="web neither runs nor keeps it, so nothing is deleted"):
            place.prune()
        assert len(place.left()) == 3
        place.outputs = {}  # never deployed: then its server may be empty
        place.prune()
        assert place.left() == {sha(3)}

    def test_jobs_of_two_environments_find_out_together(self, place: Place, tmp_path: Path) -> None:
        place.push(1, 2, 3, 4)
        prune.record(tmp_path, "staging", tmp_path / "in-use/staging.json")
        place.outputs = {"digest": digest(2)}
        place.reading = dataclasses.replace(
            place.reading,  # type: ignore[type-var]
            serving=ContainerReading(
                "running", "o", f"registry.example.com/group/parasite@{digest(2)}", "f", sha(2)
            ),
        )
        prune.record(tmp_path, "team/prod", tmp_path / "in-use/team/prod.json")
        place.reading = EsteiraError("This job has no way to a server.")
        prune.run(tmp_path, [], None, 1, yes=True, found=tmp_path / "in-use")
        assert place.left() == {sha(1), sha(2), sha(4)}

    @pytest.mark.parametrize("text", [None, "{", "{}", '{"stack": "prod"}'])
    def test_what_was_not_found_out_stops_everything(
        self, place: Place, tmp_path: Path, text: str | None
    ) -> None:
        place.push(1, 2, 3)
        (tmp_path / "in-use").mkdir()
        if text is not None:
            (tmp_path / "in-use/prod.json").write_text(text)
        with pytest.raises(EsteiraError, match="nothing is deleted"):
            prune.run(tmp_path, [], None, 1, yes=True, found=tmp_path / "in-use")
        assert len(place.left()) == 3

    def test_a_server_that_cannot_be_asked_stops_everything(self, place: Place) -> None:
        place.push(1, 2, 3)
        place.reading = EsteiraError("The server web cannot be reached.")
        with pytest.raises(EsteiraError, match=r"nothing is deleted\. The server web cannot be reached"):
            place.prune()
        assert len(place.left()) == 3

    def test_other_repositories_of_the_project_are_left_alone(self, place: Place) -> None:
        place.push(1, 2)
        place.gitlab.push("group/parasite", sha(5), digest(5), repository="other")
        place.prune()
        other = next(
            one for one in place.gitlab.project("group/parasite").repositories if "other" in one.path
        )
        assert set(other.tags) == {sha(5)}

    def test_more_than_a_page(self, place: Place) -> None:
        for number in range(1, 61):
            place.gitlab.push(
                "group/parasite",
                sha(number),
                digest(number),
                created_at=f"2030-01-01T00:{number - 1:02}:00.000Z",
            )
        place.prune(newest=5)
        assert place.left() == {sha(1), *(sha(number) for number in range(56, 61))}

    def test_no_token_is_said(self, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("GITLAB_TOKEN")
        with pytest.raises(EsteiraError, match="GITLAB_TOKEN"):
            place.prune()


class TestStacks:
    """Which stacks count."""

    def test_those_with_an_application_but_not_local(self) -> None:
        assert prune.application_stacks(Path(__file__).resolve().parents[2]) == ["prod", "staging"]

    def test_a_stack_that_cannot_be_read_stops_everything(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        program = tmp_path / "pulumi"
        program.write_text("#!/bin/sh\necho 'error: no passphrase' >&2\nexit 255\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
        with pytest.raises(EsteiraError, match="nothing is deleted"):
            prune.run(tmp_path, ["prod"], None, 5, yes=True)

    def test_settings_come_from_pulumi(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        said = {
            "esteira:registry": {"value": "registry.example.com", "secret": False},
            "esteira:repository": {"value": "g/p", "secret": False},
            "esteira:registryUser": {"value": "ana", "secret": False},
            "esteira:registryPassword": {"value": "MARKER", "secret": True},
            "esteira:container": {
                "value": "{}",
                "objectValue": {"name": "parasite", "ports": ["80:80"]},
                "secret": False,
            },
            "esteira:servers": {
                "value": "[]",
                "objectValue": [{"name": "local", "local": True}],
                "secret": False,
            },
            "aws:region": {"value": "x", "secret": False},
        }
        monkeypatch.setattr(prune, "_pulumi", lambda *_: said)
        (tmp_path / "Pulumi.yaml").write_text("name: shop\nruntime: python\n")
        settings = prune.settings_of(tmp_path, "prod")
        assert (settings.repository, settings.servers[0].local) == ("g/p", True)
        # Whose containers they are: asked for another project's, a server would name no kept release.
        assert owner_of(settings) == "shop/prod/parasite"
