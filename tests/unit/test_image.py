"""A commit's image is built once; everything else is a look-up."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pulumi
import pytest

from components import image as module
from components.image import Image, ImageError, check_docker, image_args
from components.registry import Registry, RegistryError, RegistryUnavailableError
from components.source import Source
from tests.unit.declared import Declared, declare
from tests.unit.fake_registry import PASSWORD, USER, FakeRegistry
from tests.unit.image_settings import make_settings

COMMIT = "8e13f56a" * 5
BUILT = "sha256:" + "ab" * 32
RECORDED = "sha256:" + "cd" * 32
OUTPUTS = {
    "docker:index/image:Image": {"repoDigest": f"127.0.0.1:5000/group/parasite@{BUILT}"},
    "command:local:Command": {"stdout": RECORDED},
}


def source(*, build: bool = True, tag: str = COMMIT) -> Source:
    return Source(COMMIT, tag, dirty=tag != COMMIT, build=build, reason="of a reason")


@pytest.fixture(autouse=True)
def _docker_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "check_docker", lambda _: None)
    monkeypatch.setattr(module, "check_ignored", lambda *_: None)


@pytest.fixture
def fake() -> Iterator[FakeRegistry]:
    with FakeRegistry() as running:
        yield running


def client(fake: FakeRegistry) -> Registry:
    return Registry(fake.server, "g/p", USER, PASSWORD, plain_http=True)


class NoRegistry(Registry):
    """A registry that is down."""

    def __init__(self) -> None:
        super().__init__("registry.example", "g/p")

    def digest(self, reference: str) -> str | None:
        raise RegistryUnavailableError("The registry is down.")


def declared_image(
    tmp_path: Path, fake: FakeRegistry, what: Source, *, preview: bool = False, **changes: Any
) -> tuple[dict[str, Any], dict[str, Declared]]:
    args = image_args(make_settings(tmp_path, **changes), what, registry=client(fake))

    def program() -> Any:
        image = Image("parasite", args)
        return {"reference": image.reference, "digest": image.digest, "known": image.known_digest}

    return declare(program, {} if preview else OUTPUTS, preview=preview)


class TestBuild:
    """The checked-out commit is built into the stack's own tag, and gets its commit's tag when that is new."""

    def test_files_that_git_ignores_are_told_when_it_is_built_anew(
        self, tmp_path: Path, fake: FakeRegistry, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """And only then: the tree is read for it, and a run that changes nothing is to be quick."""
        said: list[str] = []
        monkeypatch.setattr(pulumi.log, "warn", said.append)
        monkeypatch.setattr(module, "check_ignored", lambda *_: "git ignores .env.")
        image_args(make_settings(tmp_path), source(), registry=client(fake))
        assert said == ["git ignores .env."]
        fake.add_image(COMMIT)
        image_args(make_settings(tmp_path), source(), registry=client(fake))
        image_args(make_settings(tmp_path, promote=True), source(build=False), registry=client(fake))
        assert len(said) == 1

    def test_what_is_built(self, tmp_path: Path, fake: FakeRegistry) -> None:
        changes: dict[str, Any] = {
            "target": "prod",
            "platform": "linux/arm64",
            "build_args": {"TEXT": "a\nb"},
        }
        _, declared = declared_image(tmp_path, fake, source(), **changes)
        image = declared["Image parasite-build"]
        assert image.type == "docker:index/image:Image"
        assert image.inputs["imageName"] == "127.0.0.1:5000/group/parasite:build-staging"
        assert image.inputs["build"] == {
            "context": "app",
            "dockerfile": "app/Dockerfile",
            "target": "prod",
            "platform": "linux/arm64",
            "args": {"CI_COMMIT_SHA": COMMIT, "BUILDKIT_INLINE_CACHE": "1", "TEXT": "a\nb"},
            "builderVersion": "BuilderBuildKit",
            "cacheFrom": {"images": ["127.0.0.1:5000/group/parasite:latest"]},
        }

    def test_no_path_of_this_machine_is_declared(self, tmp_path: Path, fake: FakeRegistry) -> None:
        _, declared = declared_image(
            tmp_path, fake, source(), context="../app", dockerfile="docker/Dockerfile"
        )
        build = declared["Image parasite-build"].inputs["build"]
        assert (build["context"], build["dockerfile"]) == ("../app", "../app/docker/Dockerfile")
        assert str(tmp_path) not in json.dumps([one.inputs for one in declared.values()])

    def test_the_password_is_a_secret(self, tmp_path: Path, fake: FakeRegistry) -> None:
        _, declared = declared_image(tmp_path, fake, source())
        image = declared["Image parasite-build"]
        # A secret inside makes the whole map one, as the mocks see it.
        assert image.is_secret("registry")
        assert image.plain("registry") == {"server": "127.0.0.1:5000", "username": USER, "password": PASSWORD}
        assert declared["Command parasite-tag"].is_secret("stdin")
        assert PASSWORD not in json.dumps(
            [one.inputs["create"] for one in declared.values() if "create" in one.inputs]
        )

    def test_the_commit_s_tag_is_given_once(self, tmp_path: Path, fake: FakeRegistry) -> None:
        _, declared = declared_image(tmp_path, fake, source())
        command = declared["Command parasite-tag"]
        assert command.inputs["create"] == (
            "./esteira point-tag 127.0.0.1:5000/group/parasite \\\n"
            f"  tag={COMMIT} \\\n"
            f"  commit={COMMIT} \\\n"
            "  overwrite=no"
        )
        assert json.loads(command.plain("stdin"))["digest"] == BUILT

    def test_a_dirty_tree_says_so(self, tmp_path: Path, fake: FakeRegistry) -> None:
        tag = f"{COMMIT}-dirty-0123456789ab"
        _, declared = declared_image(tmp_path, fake, source(tag=tag))
        assert f"tag={tag} " in declared["Command parasite-tag"].inputs["create"]

    def test_what_runs_is_what_the_commit_s_tag_has(self, tmp_path: Path, fake: FakeRegistry) -> None:
        result, _ = declared_image(tmp_path, fake, source())
        assert result == {
            "reference": f"127.0.0.1:5000/group/parasite@{RECORDED}",
            "digest": RECORDED,
            "known": None,
        }

    def test_an_image_that_is_there_is_known_at_preview(self, tmp_path: Path, fake: FakeRegistry) -> None:
        digest = fake.add_image(COMMIT)
        result, declared = declared_image(tmp_path, fake, source(), preview=True)
        assert result["reference"] == f"127.0.0.1:5000/group/parasite@{digest}"
        assert "Image parasite-build" in declared, "the set of resources is the same in the next run"

    def test_the_set_of_resources_is_the_same_in_the_next_run(
        self, tmp_path: Path, fake: FakeRegistry
    ) -> None:
        first = declared_image(tmp_path, fake, source())[1]
        fake.add_image(COMMIT)
        assert declared_image(tmp_path, fake, source())[1] == first

    def test_a_registry_that_is_down(self, tmp_path: Path) -> None:
        with pytest.raises(RegistryUnavailableError):
            image_args(make_settings(tmp_path), source(), registry=NoRegistry())

    def test_tokens_and_parents(self, tmp_path: Path, fake: FakeRegistry) -> None:
        _, declared = declared_image(tmp_path, fake, source())
        assert declared["Image parasite"].type == "esteira:index:Image"
        for child in ("Image parasite-build", "Command parasite-tag"):
            assert declared[child].parent.endswith("esteira:index:Image::parasite")


class TestLookUp:
    """Promotion, rollback, and any commit that is not checked out: no resource, one question to the registry."""

    def test_nothing_is_built(self, tmp_path: Path, fake: FakeRegistry) -> None:
        digest = fake.add_image(COMMIT)
        result, declared = declared_image(tmp_path, fake, source(build=False))
        assert list(declared) == ["Image parasite"]
        assert result == {
            "reference": f"127.0.0.1:5000/group/parasite@{digest}",
            "digest": digest,
            "known": digest,
        }
        assert fake.writes == []

    def test_no_image_says_why(self, tmp_path: Path, fake: FakeRegistry) -> None:
        with pytest.raises(ImageError) as caught:
            image_args(make_settings(tmp_path), source(build=False), registry=client(fake))
        message = str(caught.value)
        assert f"Commit {COMMIT} has no image in {fake.server}/g/p" in message
        assert "because of a reason" in message
        assert "git checkout" in message

    def test_no_image_to_promote(self, tmp_path: Path, fake: FakeRegistry) -> None:
        with pytest.raises(ImageError, match="on the stack that builds it first"):
            image_args(make_settings(tmp_path, promote=True), source(build=False), registry=client(fake))

    def test_the_servers_record_when_the_registry_is_down(self, tmp_path: Path) -> None:
        args = image_args(
            make_settings(tmp_path),
            source(build=False),
            known_digests=lambda: {COMMIT: BUILT},
            registry=NoRegistry(),
        )
        assert args["found"] == BUILT

    def test_the_record_of_other_commits_is_no_help(self, tmp_path: Path) -> None:
        known = {"0" * 40: BUILT}
        with pytest.raises(RegistryUnavailableError):
            image_args(
                make_settings(tmp_path),
                source(build=False),
                known_digests=lambda: known,
                registry=NoRegistry(),
            )

    def test_a_wrong_password_is_no_reason_to_use_the_record(
        self, tmp_path: Path, fake: FakeRegistry
    ) -> None:
        wrong = Registry(fake.server, "g/p", USER, "MARKER-wrong", plain_http=True)
        with pytest.raises(RegistryError, match="refuses the password"):
            image_args(
                make_settings(tmp_path),
                source(build=False),
                known_digests=lambda: {COMMIT: BUILT},
                registry=wrong,
            )

    @pytest.mark.parametrize(
        ("has", "wanted"),
        [
            ("linux/amd64", "linux/amd64"),
            ("linux/arm64/v8", "linux/arm64"),
            ("linux/arm64", "linux/arm64/v8"),
        ],
    )
    def test_the_right_platform(self, tmp_path: Path, fake: FakeRegistry, has: str, wanted: str) -> None:
        digest = fake.add_image(COMMIT, has)
        args = image_args(
            make_settings(tmp_path, platform=wanted), source(build=False), registry=client(fake)
        )
        assert args["found"] == digest

    @pytest.mark.parametrize("build", [True, False])
    def test_the_wrong_platform(self, tmp_path: Path, fake: FakeRegistry, build: bool) -> None:
        fake.add_image(COMMIT, "linux/arm64")
        with pytest.raises(
            ImageError, match=r"is for linux/arm64, and `esteira:image\.platform` is linux/arm\."
        ):
            image_args(
                make_settings(tmp_path, platform="linux/arm"), source(build=build), registry=client(fake)
            )


class TestDocker:
    """Without a Docker Engine nothing can be built, and that is said before anything is tried."""

    def test_one_that_answers(self, tmp_path: Path) -> None:
        with socket.socket(socket.AF_UNIX) as engine:
            engine.bind(str(tmp_path / "docker.sock"))
            engine.listen()
            check_docker({"DOCKER_HOST": f"unix://{tmp_path}/docker.sock"})

    def test_one_in_the_home_folder(self, tmp_path: Path) -> None:
        (tmp_path / ".docker/run").mkdir(parents=True)
        with socket.socket(socket.AF_UNIX) as engine:
            engine.bind(str(tmp_path / ".docker/run/docker.sock"))
            engine.listen()
            check_docker({"DOCKER_HOST": f"unix://{tmp_path}/none.sock", "HOME": str(tmp_path)})

    def test_none(self, tmp_path: Path) -> None:
        with pytest.raises(ImageError, match="no Docker Engine answers"):
            check_docker({"DOCKER_HOST": f"unix://{tmp_path}/none.sock"})

    def test_one_that_this_user_may_not_use(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "_try_socket", lambda _: PermissionError())
        with pytest.raises(ImageError, match="may not use the Docker Engine"):
            check_docker({})

    def test_one_elsewhere_is_not_looked_at(self) -> None:
        check_docker({"DOCKER_HOST": "ssh://server.example"})
