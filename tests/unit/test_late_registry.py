"""A registry that answers too late is asked once more, wherever docker asks it; any other failure is final at once."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from rehearsal import RehearsalError, carry_out
from tests.live.machines import Machine

ROOT = Path(__file__).resolve().parents[2]
LATE = (
    "Error response from daemon: Get http://10.0.0.1:5000/v2/: net/http: request canceled while waiting for connection "
    "(Client.Timeout exceeded while awaiting headers)"
)
REFUSED = "Error response from daemon: login attempt to http://10.0.0.1:5000/v2/ failed with status: 401 Unauthorized"


class Docker:
    """A docker command that answers as it is told, one answer a call of each kind, and well after that."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "bin"
        self.folder.mkdir()
        program = self.folder / "docker"
        program.write_text(f"""#!/bin/sh
cd {self.folder}
while [ "$1" = --config ]; do echo "$2" >config; shift 2; done
echo "$1" >>calls
[ "$1" != --version ] || echo "Docker version 20.10.5, build 55c4c88"
[ "$1" != push ] || echo "latest: digest: sha256:{"a" * 64} size: 1"
answer=$(head -n 1 "$1.answers" 2>/dev/null) || exit 0
sed -i 1d "$1.answers"
[ -n "$answer" ] || exit 0
echo "$answer" >&2
exit 1
""")
        program.chmod(0o755)

    def will_say(self, command: str, *answers: str) -> None:
        """Let ``command`` fail with these words, one after the other; empty means that it works."""
        (self.folder / f"{command}.answers").write_text("".join(f"{answer}\n" for answer in answers))

    def calls(self, command: str) -> int:
        return (self.folder / "calls").read_text().split().count(command)


@pytest.fixture
def docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Docker:
    made = Docker(tmp_path)
    monkeypatch.setenv("PATH", f"{made.folder}:{os.environ['PATH']}")
    return made


class TestServer:
    """The program that runs on a server."""

    def pull(self, folder: Path) -> subprocess.CompletedProcess[str]:
        """Run its pull alone; what it calls elsewhere says only that it was called."""
        passing = folder / "passing"
        passing.mkdir()
        text = f"""
        {(ROOT / "components/server/image.sh").read_text()}
        say() {{ echo "$*"; }}
        fail() {{ echo "error: $*"; exit 1; }}
        abandon() {{ echo abandoned; }}
        look_at_architecture() {{ server_arch=amd64; }}
        passing={passing} server=one registry=10.0.0.1:5000 registry_user=puller registry_password=word
        pull 10.0.0.1:5000/x@sha256:0
        echo "pulled $pulled_layers layers"
        """
        done = subprocess.run(
            ["sh", "-c", text], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
        )
        assert list(passing.iterdir()) == [], "the credential outlives the pull"
        return done

    @pytest.mark.parametrize("command", ["login", "pull"])
    def test_late_once(self, docker: Docker, tmp_path: Path, command: str) -> None:
        docker.will_say(command, LATE)
        done = self.pull(tmp_path)
        assert done.stdout.splitlines() == [
            "the registry has not answered in time: trying once more",
            "pulled 0 layers",
        ]
        assert docker.calls(command) == 2

    @pytest.mark.parametrize("command", ["login", "pull"])
    def test_late_again(self, docker: Docker, tmp_path: Path, command: str) -> None:
        docker.will_say(command, LATE, LATE)
        done = self.pull(tmp_path)
        assert done.returncode == 1
        last = done.stdout.splitlines()[-1]
        assert last.startswith(f"error: Server one cannot {'log in' if command == 'login' else 'pull'}")
        assert "cannot be reached from server one" in last
        assert docker.calls(command) == 2

    def test_a_wrong_password_is_tried_once(self, docker: Docker, tmp_path: Path) -> None:
        docker.will_say("login", REFUSED)
        done = self.pull(tmp_path)
        assert "refused the credentials" in done.stdout.splitlines()[-1]
        assert docker.calls("login") == 1

    def test_late_and_then_refused(self, docker: Docker, tmp_path: Path) -> None:
        docker.will_say("login", LATE, REFUSED)
        assert "refused the credentials" in self.pull(tmp_path).stdout.splitlines()[-1]
        assert docker.calls("login") == 2


class TestRehearsal:
    """The rehearsal's build."""

    def build(self, root: Path) -> list[str]:
        (root / "Pulumi.yaml").write_text("name: small\nruntime: python\n")
        (root / "Pulumi.dev.yaml").write_text("config: {}\n")
        (root / "Dockerfile").write_text("FROM scratch\n")
        (root / "__main__.py").write_text(
            "import pulumi_docker as docker\n"
            'docker.Image("picture", image_name="10.0.0.1:5000/x:one", build=docker.DockerBuildArgs(context="."),\n'
            '    registry=docker.RegistryArgs(server="10.0.0.1:5000", username="ana", password="word"))\n'
        )
        lines: list[str] = []
        carry_out(root, "dev", environ={**os.environ, "HOME": str(root)}, on_line=lines.append)
        return lines

    @pytest.mark.parametrize("command", ["login", "push"])
    def test_late_once(self, docker: Docker, tmp_path: Path, command: str) -> None:
        docker.will_say(command, LATE)
        assert "trying once more" in "\n".join(self.build(tmp_path))
        assert docker.calls(command) == 2

    @pytest.mark.parametrize("command", ["login", "push"])
    def test_late_again(self, docker: Docker, tmp_path: Path, command: str) -> None:
        docker.will_say(command, LATE, LATE)
        with pytest.raises(RehearsalError, match=r"Client\.Timeout"):
            self.build(tmp_path)
        assert docker.calls(command) == 2

    def test_a_wrong_password_is_tried_once(self, docker: Docker, tmp_path: Path) -> None:
        docker.will_say("login", REFUSED)
        with pytest.raises(RehearsalError, match="refused the login of ana"):
            self.build(tmp_path)
        assert docker.calls("login") == 1


class TestLiveTests:
    """What the live tests themselves ask docker for."""

    def test_late_twice(self, docker: Docker, tmp_path: Path) -> None:
        docker.will_say("login", LATE, LATE)
        Machine("one", "10.0.0.1", tmp_path).docker("login")
        assert docker.calls("login") == 3

    def test_always_late(self, docker: Docker, tmp_path: Path) -> None:
        docker.will_say("push", *[LATE] * 9)
        with pytest.raises(AssertionError, match=r"Client\.Timeout"):
            Machine("one", "10.0.0.1", tmp_path).docker("push")
        assert docker.calls("push") == 3

    def test_a_wrong_password_is_tried_once(self, docker: Docker, tmp_path: Path) -> None:
        docker.will_say("login", REFUSED)
        with pytest.raises(AssertionError, match="401"):
            Machine("one", "10.0.0.1", tmp_path).docker("login")
        assert docker.calls("login") == 1
