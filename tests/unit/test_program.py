"""The whole program with each stack as shipped, under mocks: what `pulumi preview` and `pulumi up` would declare."""

from __future__ import annotations

import gc
import json
import runpy
import shutil
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pulumi
import pytest

from components import image, reading
from components.errors import EsteiraError
from components.reading import Reading, parse_reading
from components.registry import RegistryUnavailableError
from components.settings import Settings
from rehearsal.stackfile import read_stack_config
from tests.unit.declared import Declared, declare
from tests.unit.test_source import commit, git
from tests.unit.wrong_settings import private_key

ROOT = Path(__file__).resolve().parents[2]
DIGEST = "sha256:" + "ab" * 32
EMPTY = "esteira-reading 1\narch amd64\nend\n"
SECRETS = {
    "registryPassword": "MARKER-registry",
    "serverPrivateKey": private_key(),
    "secretEnvironment": {"API_TOKEN": "MARKER-env"},
    "secretFiles": {"/run/secrets/token": "MARKER-file"},
}
STACKS = ("local", "staging", "prod")


class KnownRegistry:
    """In place of the registry's client: knows some tags."""

    name = "registry.example.com/example-group/parasite"

    def __init__(self, tags: Mapping[str, str] | None) -> None:
        self.tags = tags

    def digest(self, tag: str) -> str | None:
        if self.tags is None:
            raise RegistryUnavailableError("The registry does not answer.")
        return self.tags.get(tag)


class Checkout:
    """A prepared checkout of the project: the shipped stack files, the example, one commit."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root, self.monkeypatch = root, monkeypatch
        for file in ROOT.glob("Pulumi*.yaml"):
            shutil.copy(file, root)
        shutil.copytree(ROOT / "examples", root / "examples", ignore=shutil.ignore_patterns("__pycache__"))
        (root / ".gitignore").write_text(".esteira/\n")
        (root / ".esteira/local").mkdir(parents=True)
        (root / ".esteira/local/registry-password").write_text("MARKER-registry")
        git(root, "init", "-q")
        self.commit = commit(root)
        self.readings: dict[str, Reading | EsteiraError] = {}
        self.tags: dict[str, str] | None = {}
        self.exports: dict[str, Any] = {}
        monkeypatch.chdir(root)
        monkeypatch.setattr(pulumi, "get_root_directory", lambda: str(root))
        monkeypatch.setattr(image, "from_settings", lambda _: KnownRegistry(self.tags))
        monkeypatch.setattr(image, "check_docker", lambda _: None)
        monkeypatch.setattr(reading, "read_servers", self._read)
        monkeypatch.setattr(pulumi, "export", self.exports.__setitem__)
        monkeypatch.setattr(signal, "signal", lambda *_: None)
        monkeypatch.setattr(gc, "disable", lambda: None)

    def _read(self, settings: Settings, owner: str, *_: object) -> dict[str, Reading | EsteiraError]:
        assert owner == f"esteira/{settings.stack}/parasite"
        return {
            server.name: self.readings.get(server.name, parse_reading(server.name, EMPTY))
            for server in settings.servers
        }

    def run(
        self, stack: str, *, preview: bool = False, **config: object
    ) -> tuple[dict[str, Any], dict[str, Declared]]:
        """Run the program; return the exports, and what it declared."""
        secrets = {} if stack == "local" else dict(SECRETS)
        if stack == "prod":  # the only one that names a pull user
            secrets["pullPassword"] = "MARKER-pull"
        read = read_stack_config(
            self.root,
            stack,
            environ={},
            config={f"esteira:{key}": value for key, value in {**secrets, **config}.items()},
            secret_keys=[f"esteira:{key}" for key in secrets],
        )
        pulumi.runtime.set_all_config(dict(read.values), list(read.secret_keys))
        for variable in ("CI_REGISTRY", "CI_REGISTRY_PASSWORD", "CI_COMMIT_SHA", "DEPLOYMENT_SERVER_IP"):
            self.monkeypatch.delenv(variable, raising=False)

        def program() -> Any:
            self.exports.clear()
            runpy.run_path(str(ROOT / "__main__.py"), run_name="__main__")
            # Not all(**…): a secret among them would make the whole of them one.
            return pulumi.Output.all(*self.exports.values()).apply(
                lambda values: dict(zip(self.exports, values, strict=True)), run_with_unknowns=True
            )

        outputs: dict[str, dict[str, Any]] = {}
        if not preview:
            repository = "127.0.0.1:5000/esteira/parasite"
            outputs = {
                "docker:index/image:Image": {"repoDigest": f"{repository}@{DIGEST}"},
                "command:local:Command": {"stdout": DIGEST},
                "command:remote:Command": {"stdout": "…"},
            }
        return declare(program, outputs, preview=preview, stack=stack)


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Checkout]:
    before = pulumi.runtime.config.CONFIG.get()
    yield Checkout(tmp_path, monkeypatch)
    pulumi.runtime.config.CONFIG.set(before)


def names(urns: list[str]) -> set[str]:
    return {urn.rpartition("::")[2] for urn in urns}


class TestShippedStacks:
    """Each stack as shipped declares what its name promises, and nothing more."""

    def test_local_builds_tags_deploys_and_releases(self, checkout: Checkout) -> None:
        exports, declared = checkout.run("local")
        assert set(declared) == {
            "Image app",
            "Image app-build",
            "Command app-tag",
            "Deployment app",
            "Stash app-local-request",
            "Command app-local-candidate",
            "Command app-local",
            "Release app",
            "Command app-moving-tag",
        }
        assert {one.type for one in declared.values() if "command" in one.type} == {"command:local:Command"}
        assert exports == {
            "commit": checkout.commit,
            "image": f"127.0.0.1:5000/esteira/parasite@{DIGEST}",
            "digest": DIGEST,
            "addresses": {"local": ["http://localhost:8888"]},
            "releases": {"local": checkout.commit},
        }

    def test_staging_deploys_by_ssh(self, checkout: Checkout) -> None:
        _, declared = checkout.run("staging")
        assert declared["Command app-staging"].type == "command:remote:Command"
        assert "Image app-build" in declared

    def test_prod_builds_nothing(self, checkout: Checkout) -> None:
        checkout.tags = {checkout.commit: DIGEST}
        exports, declared = checkout.run("prod")
        assert not [key for key, one in declared.items() if one.type.startswith("docker:")]
        assert exports["image"] == f"registry.example.com/example-group/parasite@{DIGEST}"
        assert exports["releases"] == {"web-1": checkout.commit, "web-2": checkout.commit}
        connection = declared["Command app-web-2"].plain("connection")
        assert connection["proxy"]["host"] == "jump.example.com"

    def test_prod_refuses_what_staging_has_not_pushed(self, checkout: Checkout) -> None:
        with pytest.raises(EsteiraError, match="on the stack that builds it first"):
            checkout.run("prod", preview=True)

    def test_prod_does_not_care_about_the_tree(self, checkout: Checkout) -> None:
        (checkout.root / "examples/parasite/new").write_text("x")
        checkout.tags = {checkout.commit: DIGEST}
        assert checkout.run("prod")[0]["commit"] == checkout.commit

    def test_a_dirty_tree_is_named_so_in_local(self, checkout: Checkout) -> None:
        (checkout.root / "examples/parasite/new").write_text("x")
        _, declared = checkout.run("local")
        assert f"tag={checkout.commit}-dirty-" in declared["Command app-tag"].inputs["create"]


class TestOrder:
    """`latest` is the last release that proved itself: it moves after every server."""

    @pytest.mark.parametrize("stack", STACKS)
    def test_the_moving_tag_waits_for_every_server(self, stack: str, checkout: Checkout) -> None:
        checkout.tags = {checkout.commit: DIGEST}
        _, declared = checkout.run(stack)
        commands = {one.name for one in declared.values() if one.parent.endswith("Deployment::app")}
        release = declared["Release app"]
        assert {name for name in commands if not name.endswith("-request")} <= names(release.depends_on)

    def test_servers_wait_for_the_image_s_own_tag(self, checkout: Checkout) -> None:
        _, declared = checkout.run("local")
        for name in ("app-local-candidate", "app-local"):
            assert "app-tag" in names(declared[f"Command {name}"].depends_on)


class TestPreview:
    """A preview shows what will happen: every text is known, also when the image is still to be built."""

    @pytest.mark.parametrize("stack", STACKS)
    def test_every_text_is_known(self, stack: str, checkout: Checkout) -> None:
        if stack == "prod":
            checkout.tags = {checkout.commit: DIGEST}
        _, declared = checkout.run(stack, preview=True)
        commands = {key: one for key, one in declared.items() if key.startswith("Command")}
        assert len(commands) >= 3
        for key, one in commands.items():
            assert isinstance(one.inputs["create"], str), key
            assert checkout.commit in one.inputs["create"], "the new commit is in sight"

    def test_it_declares_what_the_update_declares(self, checkout: Checkout) -> None:
        checkout.tags = {checkout.commit: DIGEST}
        previewed, updated = (checkout.run("prod", preview=preview)[1] for preview in (True, False))
        assert set(previewed) == set(updated)
        texts = [
            {key: one.inputs["create"] for key, one in run.items() if "Command" in key}
            for run in (previewed, updated)
        ]
        assert texts[0] == texts[1]

    def test_no_server_program_is_in_it(self, checkout: Checkout) -> None:
        _, declared = checkout.run("staging", preview=True)
        plain = json.dumps([_plain(one) for one in declared.values()], default=str)
        assert "take_lock" not in plain


def _plain(one: Declared) -> dict[str, Any]:
    return {key: value for key, value in one.inputs.items() if not one.is_secret(key)}


class TestSecrets:
    """No secret is a plain input of anything, or an output of the stack."""

    @pytest.mark.parametrize("stack", STACKS)
    @pytest.mark.parametrize("preview", [True, False])
    def test_none_is_plain(self, stack: str, preview: bool, checkout: Checkout) -> None:
        checkout.tags = {checkout.commit: DIGEST}
        exports, declared = checkout.run(stack, preview=preview)
        plain = json.dumps([exports, *(_plain(one) for one in declared.values())], default=str)
        assert "MARKER" not in plain
        assert "PRIVATE KEY" not in plain

    def test_the_registry_s_password_is_a_secret_of_the_build(self, checkout: Checkout) -> None:
        _, declared = checkout.run("local")
        build = declared["Image app-build"]
        assert build.is_secret("registry")
        assert build.plain("registry")["password"] == "MARKER-registry"


class TestGoingBack:
    """A commit setting that is not checked out is looked up, never built; the kept release serves."""

    def test_an_earlier_commit(self, checkout: Checkout) -> None:
        earlier = checkout.commit
        (checkout.root / "examples/parasite/new").write_text("x")
        commit(checkout.root)
        checkout.tags = {earlier: DIGEST}
        exports, declared = checkout.run("local", commit=earlier[:9])
        assert exports["commit"] == earlier
        assert "Image app-build" not in declared
        assert "Command app-tag" not in declared

    def test_with_the_registry_down_the_servers_record_is_used(self, checkout: Checkout) -> None:
        tag, image_of = "0a1b2c3d" * 5, f"127.0.0.1:5000/esteira/parasite@{DIGEST}"
        kept = f"release {'1' * 64} exited parasite-0a {image_of} {'f' * 64} {tag} {tag}\n"
        checkout.tags = None
        checkout.readings = {"local": parse_reading("local", EMPTY.replace("end\n", kept + "end\n"))}
        exports, _ = checkout.run("local", commit=tag)
        assert exports["image"].endswith(DIGEST)

    def test_with_the_registry_down_and_no_record_it_says_so(self, checkout: Checkout) -> None:
        checkout.tags = None
        with pytest.raises(EsteiraError, match="The registry does not answer"):
            checkout.run("local", commit="0a1b2c3d" * 5)


class TestFailures:
    """Whatever is wrong is told before anything is declared, in a sentence."""

    def test_wrong_settings(self, checkout: Checkout) -> None:
        with pytest.raises(EsteiraError, match="The settings have 2 mistakes; nothing has been touched"):
            checkout.run("staging", keepReleases="many", movingTag="a b")

    def test_an_unreadable_server(self, checkout: Checkout) -> None:
        checkout.readings = {"staging": EsteiraError("Server staging does not answer.")}
        made: list[object] = []
        with (
            pytest.raises(EsteiraError, match="Server staging does not answer"),
            patch.object(image.Image, "__init__", lambda *args, **_: made.append(args)),
        ):
            checkout.run("staging")
        assert not made, "an image that cannot be deployed is not built"
        exports, _ = checkout.run("staging", preview=True)
        assert exports["commit"] == checkout.commit

    def test_no_repository(self, checkout: Checkout) -> None:
        shutil.rmtree(checkout.root / ".git")
        with pytest.raises(EsteiraError, match="git init"):
            checkout.run("staging", preview=True)


class TestTableOfContents:
    """Of the program's parts each is used once, and it reads no configuration of its own."""

    def test_its_size(self) -> None:
        text = (ROOT / "__main__.py").read_text()
        assert len(text.splitlines()) < 60
        assert "pulumi.Config" not in text
        assert "os.environ" not in text

    def test_it_has_no_future_import(self) -> None:
        """Pulumi infers a component's schema from real annotations."""
        for name in ("image", "deployment", "release"):
            assert "from __future__" not in (ROOT / f"components/{name}.py").read_text()
