"""The README's way from nothing to a first server, typed as it stands there, and what the pages show after it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.engine.stack import shows
from tests.engine.test_policy import pack  # noqa: F401 - a fixture
from tests.live import images
from tests.live.machines import Machine
from tests.live.project import REPOSITORY
from tests.live.registry import Registry

README = (REPOSITORY / "README.md").read_text()
TUTORIAL = README.partition("## A first real server")[2].partition("\n## ")[0]
ROLLBACK = (REPOSITORY / "docs/rollback.md").read_text()
SECURITY = (REPOSITORY / "docs/security.md").read_text()
USER = "newcomer"
EDGE = "esteira/edge:1.0.0"
"""The edge's image under a name that the rules for production allow."""


def block(text: str, begins: str) -> str:
    """Return the shell block in which a line begins so."""
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    [found] = [one for one in blocks if re.search(rf"^{re.escape(begins)}", one, re.MULTILINE)]
    return str(found)


class Newcomer:
    """Somebody with a checkout, an empty home, a registry and two servers on which nothing is prepared but Docker."""

    def __init__(
        self, folder: Path, servers: tuple[Machine, Machine], registry: Registry, builder: Machine
    ) -> None:
        (self.server, self.production), self.registry = servers, registry
        self.root, self.home = folder / "esteira", folder / "home"
        self.home.mkdir()
        files = subprocess.run(
            ["git", "ls-files", "-co", "--exclude-standard"],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.splitlines()
        for name in files:
            target = self.root / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if (REPOSITORY / name).exists():
                shutil.copy(REPOSITORY / name, target)
        # The example wants packages from PyPI when it is built; the tests' own application answers the same paths.
        shutil.rmtree(self.root / "examples/parasite")
        shutil.copytree(REPOSITORY / "tests/live/app", self.root / "examples/parasite")
        (self.root / ".venv").symlink_to(sys.prefix)
        self.environ = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.home),
            "LANG": "C.UTF-8",
            "DOCKER_HOST": builder.docker_host,
            "GIT_CONFIG_GLOBAL": "/dev/null",
            "PULUMI_SKIP_UPDATE_CHECK": "true",
            "PULUMI_SKIP_CONFIRMATIONS": "true",
            "PULUMI_CONFIG_PASSPHRASE_FILE": str(self.home / ".esteira-passphrase"),
        }
        plugins = Path(os.environ.get("PULUMI_HOME") or Path.home() / ".pulumi") / "plugins"
        (self.home / ".pulumi").mkdir()
        if plugins.is_dir():
            (self.home / ".pulumi/plugins").symlink_to(plugins)
            self.environ["PULUMI_IGNORE_AMBIENT_PLUGINS"] = "true"
        self.commit("init", "-q")

    def commit(self, *first: str) -> str:
        """Commit what there is; give the sha."""
        git = ["git", "-C", str(self.root), "-c", "user.name=a", "-c", "user.email=a@example.invalid"]
        for line in ([*first], ["add", "-A"], ["commit", "-q", "--allow-empty", "-m", "change"]):
            if line:
                subprocess.run([*git, *line], check=True, env=self.environ)
        return self.head

    @property
    def head(self) -> str:
        """The commit that is checked out."""
        git = ["git", "-C", str(self.root), "rev-parse", "HEAD"]
        return subprocess.run(git, check=True, capture_output=True, text=True).stdout.strip()

    def types(self, text: str, **answers: str) -> str:
        """Type lines as they are shown, with these servers, registry and users in place of the examples; what is shown.

        ``answers`` are what is typed where ``pulumi config set --secret`` asks: a word of the line, and the secret.
        """
        for word, answer in answers.items():
            file = self.home / f"typed-{word}"
            file.write_text(answer)
            text, asked = re.subn(
                rf"(?m)^(pulumi config set --secret .*\b{word}\b.*)$", rf"\1 <'{file}'", text
            )
            assert asked == 1, f"{word} is asked for {asked} times:\n{text}"
        for shown, real in (
            ("203.0.113.10", self.server.host),
            ("203.0.113.20", self.production.host),
            ("registry.gitlab.com", self.registry.address),
            ("group/parasite", "engine/first-server"),
            ("deploy-token-name", self.registry.user),
            ("pull-token-name", self.registry.pull_user),
            # Pulumi takes this home from the password file, not from HOME.
            ("file://~", f"file://{self.home}"),
            ("servers[0].user' deploy", f"servers[0].user' {USER}"),
        ):
            text = text.replace(shown, real)
        done = subprocess.run(
            ["sh", "-e", "-c", text],
            cwd=self.root,
            env=self.environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=240,
        )
        assert done.returncode == 0, f"{text}\n{done.stdout}"
        return done.stdout

    def settings(self, stack: str = "staging") -> dict[str, Any]:
        """Give what the stack file says now."""
        written = yaml.safe_load((self.root / f"Pulumi.{stack}.yaml").read_text())["config"]
        return {key.removeprefix("esteira:"): value for key, value in written.items()}

    def prepares(self, server: Machine) -> str:
        """Type on a server, as root, what is shown; Docker is there already. Give what was shown."""
        public = (self.home / ".ssh/esteira.pub").read_text()
        lines = block(TUTORIAL, "apt-get update").replace("deploy", USER).splitlines()
        rest = "\n".join(line for line in lines if not line.startswith("apt-get"))
        assert len(rest.splitlines()) == len(lines) - 1
        folder = f"/home/{USER}/.ssh"
        rest = rest.replace(f"~{USER}/.ssh", folder).replace("cat >>", f"printf '%s' '{public}' >>")
        server.path("etc/ssh/ssh_host_ed25519_key.pub").write_text(server.host_key + "\n")
        server.sh("getent group docker || groupadd docker; chgrp docker /run/docker.sock")
        shown = server.sh(rest)
        # The tests' sshd looks for keys elsewhere, and without PAM takes "!" in shadow for a locked account.
        server.sh(f"cp {folder}/authorized_keys /etc/ssh/keys/{USER}; usermod --password '*' {USER}")
        assert server.sh(f"stat -c '%U %a' {folder}") == f"{USER} 700"
        return shown


@pytest.fixture(scope="module")
def newcomer(
    tmp_path_factory: pytest.TempPathFactory,
    servers: tuple[Machine, Machine],
    registry: Registry,
    builder: Machine,
) -> Newcomer:
    """Give a newcomer; the tests of this file are his steps, one after the other."""
    for machine in servers:
        machine.docker("tag", images.EDGE, EDGE)
    return Newcomer(tmp_path_factory.mktemp("first-server"), servers, registry, builder)


def fingerprint(shown: str) -> str:
    """Return the last fingerprint that was shown."""
    return str(re.findall(r"SHA256:\S+", shown)[-1])


class TestFirstServer:
    """Every command of the section, in its order."""

    def test_keys_and_fingerprints(self, newcomer: Newcomer) -> None:
        (newcomer.home / ".ssh").mkdir(mode=0o700)
        shown = newcomer.types(block(TUTORIAL, "ssh-keygen -t ed25519"))
        assert (newcomer.home / ".ssh/esteira.pub").read_text() in shown
        assert fingerprint(shown) == fingerprint(newcomer.prepares(newcomer.server))

    def test_prepare_the_checkout(self, newcomer: Newcomer) -> None:
        shown = newcomer.types(block(TUTORIAL, "./esteira --version"))
        assert "Created stack 'staging'" in shown
        assert (newcomer.home / ".esteira-passphrase").stat().st_mode & 0o777 == 0o600

    def test_say_what_is_yours(self, newcomer: Newcomer) -> None:
        newcomer.types(
            block(TUTORIAL, "pulumi config set --path 'esteira:image.context'"),
            registryPassword=newcomer.registry.password,
            pullPassword=newcomer.registry.pull_password,
        )
        # What is a test's own: a registry without TLS, an edge that is there.
        newcomer.types(
            f"pulumi config set esteira:registryInsecure true; pulumi config set esteira:edgeImage {EDGE}"
        )
        settings = newcomer.settings()
        server = settings["servers"][0]
        assert (server["host"], server["user"], server["sudo"]) == (newcomer.server.host, USER, False)
        assert server["hostKey"] == newcomer.server.host_key
        assert settings["serverPrivateKey"].keys() == {"secure"}
        assert settings["pullUser"] == newcomer.registry.pull_user

    def test_look_then_do_it(self, newcomer: Newcomer) -> None:
        first = newcomer.commit()
        shown = newcomer.types(block(TUTORIAL, "pulumi preview"))
        assert "app-staging" in shown
        assert "refuses" not in shown, newcomer.server.sshd_log()
        assert shows(newcomer.server, first)
        assert f"http://{newcomer.server.host}:8888" in newcomer.types("pulumi stack output")

    def test_the_next_release_and_its_preview(self, newcomer: Newcomer) -> None:
        second = newcomer.commit()
        shown = newcomer.types("pulumi preview --diff")
        assert re.search(rf"\+ +commit={second} \\", shown)
        assert "[secret]" in shown
        newcomer.types("pulumi up")
        assert shows(newcomer.server, second)

    def test_secrets_of_the_application(self, newcomer: Newcomer) -> None:
        (newcomer.root / "key.pem").write_text("MARKER-file")
        newcomer.types(
            block(TUTORIAL, "pulumi config set --secret --path"), DATABASE_URL="MARKER-environment"
        )
        written = (newcomer.root / "Pulumi.staging.yaml").read_text()
        assert "MARKER" not in written
        assert newcomer.settings()["secretFiles"].keys() == {"/run/secrets/key.pem"}
        newcomer.types("pulumi up")
        assert newcomer.server.docker("exec", "parasite", "cat", "/run/secrets/key.pem") == "MARKER-file"
        newcomer.types(
            "pulumi config set esteira:domain parasite.example.org; pulumi config rm esteira:domain"
        )

    def test_rollback(self, newcomer: Newcomer) -> None:
        """As docs/rollback.md shows it."""
        git = ["git", "-C", str(newcomer.root), "log", "--format=%H"]
        commits = subprocess.run(git, capture_output=True, text=True, check=True).stdout.split()
        back = block(ROLLBACK, "pulumi config set esteira:commit 7dab258")
        newcomer.types(back.replace("7dab258", commits[1]))
        assert shows(newcomer.server, commits[1])
        newcomer.types(block(ROLLBACK, "pulumi config rm esteira:commit"))
        assert shows(newcomer.server, commits[0])

    def test_a_user_with_sudo(self, newcomer: Newcomer) -> None:
        """As docs/security.md shows it, in place of the group."""
        newcomer.server.sh(f"gpasswd --delete {USER} docker")
        shown = newcomer.server.sh(block(SECURITY, "echo 'deploy ALL").replace("deploy", USER))
        assert "parsed OK" in shown
        newcomer.types(block(SECURITY, "pulumi config set --path 'esteira:servers[0].sudo' true"))
        assert newcomer.settings()["servers"][0]["sudo"] is True
        shown = newcomer.types("pulumi up")
        assert "may not use Docker" not in shown
        assert "unchanged" in newcomer.types("pulumi up")

    def test_production(self, newcomer: Newcomer, pack: Path) -> None:  # noqa: F811
        """The whole block, to its last line; the pack's packages are the ones that its own test has installed."""
        newcomer.prepares(newcomer.production)
        (newcomer.root / "policy/.venv").symlink_to(pack / ".venv")
        lines = block(TUTORIAL, "pulumi stack init prod").replace("(cd policy && pulumi install)\n", "")
        up = lines.splitlines()[-1]
        assert up == "pulumi up --policy-pack policy"
        settings = (
            f"pulumi config set esteira:registryInsecure true\npulumi config set esteira:edgeImage {EDGE}\n"
        )
        shown = newcomer.types(
            lines.replace(up, settings + up),
            registryPassword=newcomer.registry.password,
            pullPassword=newcomer.registry.pull_password,
        )
        assert fingerprint(shown) == fingerprint(newcomer.production.sh("ssh-keygen -lf /etc/ssh/*_key.pub"))
        assert "esteira@v0.1.0" in shown, "the rules were looked at"
        assert "docker:index:Image" not in shown, "nothing is built"
        assert shows(newcomer.production, newcomer.head)
        [server] = newcomer.settings("prod")["servers"]
        assert server == {
            "name": "web-1",
            "host": newcomer.production.host,
            "user": USER,
            "sudo": False,
            "hostKey": newcomer.production.host_key,
        }

    def test_state_moves_to_another_backend(self, newcomer: Newcomer) -> None:
        """As docs/backends.md says it."""
        newcomer.types("pulumi stack select staging && pulumi stack export --file state.json")
        newcomer.types(f"mkdir -p {newcomer.home}/other && pulumi login file://{newcomer.home}/other")
        newcomer.types("pulumi stack init staging && pulumi stack import --file state.json")
        shown = newcomer.types("pulumi up")
        assert "unchanged" in shown
        assert not re.search(r"\d+ (created|updated|replaced|deleted)", shown)

    def test_destroy(self, newcomer: Newcomer) -> None:
        newcomer.types("pulumi destroy && pulumi cancel --yes")
        assert newcomer.server.containers() == []
