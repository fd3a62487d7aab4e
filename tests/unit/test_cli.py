"""The command line: what it makes of its surroundings, and that no failure of it is a traceback."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from cli import app, docker, engine, images, lifecycle, local, machine, packages, shell, testing
from components.arguments import owner_of
from components.errors import EsteiraError

ROOT = Path(__file__).resolve().parents[2]


class TestFailures:
    """Whatever goes wrong ends in one message and a status, never in a traceback."""

    @pytest.mark.parametrize(
        ("failure", "status", "words"),
        [
            (EsteiraError("The door is locked. Unlock it."), 1, "Error: The door is locked. Unlock it."),
            (OSError(errno.ENOSPC, "No space left on device"), 1, "The disk is full."),
            (PermissionError(errno.EACCES, "Permission denied", "/x"), 1, "Permission denied: /x."),
            (KeyboardInterrupt(), 130, "Interrupted."),
            (ValueError("odd"), 1, "ValueError: odd. This is a mistake in Esteira."),
        ],
    )
    def test_message(
        self,
        failure: BaseException,
        status: int,
        words: str,
        *,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
        tmp_path: Path,
    ) -> None:
        def fail(_: local.Place) -> None:
            raise failure

        monkeypatch.setattr("cli.lifecycle.up", fail)
        monkeypatch.setattr(app, "ROOT", tmp_path)
        monkeypatch.setattr(sys, "argv", ["esteira", "up"])

        with pytest.raises(SystemExit) as end:
            app.main()

        assert end.value.code == status
        shown = capsys.readouterr().err
        assert words in shown.splitlines()[-1]
        assert "Traceback" not in shown

    def test_without_arguments_the_help_is_shown(self) -> None:
        result = subprocess.run(
            [sys.executable, "-m", "cli"], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert "up" in result.stdout + result.stderr
        assert "point-tag" not in result.stdout + result.stderr


class TestShell:
    """Other programs are bounded in time, and their failures are sentences."""

    def test_missing(self) -> None:
        with pytest.raises(shell.CommandError, match="no-such-program is not installed"):
            shell.run(["no-such-program"])

    def test_slow(self) -> None:
        with pytest.raises(shell.CommandError, match="did not end within"):
            shell.run(["sleep", "60"], timeout=0.2)

    def test_failure_shows_the_last_lines(self) -> None:
        with pytest.raises(shell.CommandError, match=r"failed with status 3: why"):
            shell.run(["sh", "-c", "echo why >&2; exit 3"])

    def test_full_disk(self) -> None:
        with pytest.raises(shell.CommandError, match=r"^The disk is full: .*Free some space"):
            shell.run(["sh", "-c", "echo 'cp: x: No space left on device' >&2; exit 1"])

    def test_a_cut_pipe_is_a_failure(self) -> None:
        with pytest.raises(shell.CommandError, match="status 7"):
            shell.pipe(["sh", "-c", "echo part; exit 7"], ["cat"], timeout=10)

    def test_a_command_is_shown_short(self) -> None:
        assert len(shell.shown(["echo", "x" * 500])) <= 120


class TestMachine:
    """What the machine is, and what it has free."""

    def test_os_release(self, tmp_path: Path) -> None:
        file = tmp_path / "os-release"
        file.write_text('# comment\nID=ubuntu\nID_LIKE="debian"\nVERSION_CODENAME=jammy\n', encoding="utf-8")
        assert machine.os_release(file) == {"ID": "ubuntu", "ID_LIKE": "debian", "VERSION_CODENAME": "jammy"}

    def test_no_os_release(self, tmp_path: Path) -> None:
        assert machine.os_release(tmp_path / "none") == {}

    def test_no_right_to_install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(machine, "is_debian_family", lambda: True)
        monkeypatch.setattr(shell, "can_be_root", lambda: False)
        with pytest.raises(EsteiraError, match=r"sudo apt-get update && sudo apt-get install -y docker\.io"):
            machine.install_packages(["docker.io"], "Docker Engine is needed and not installed")

    def test_another_family(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(machine, "is_debian_family", lambda: False)
        with pytest.raises(EsteiraError, match="not of the Debian family"):
            machine.install_packages(["docker.io"], "Docker Engine is needed and not installed")

    def test_disk(self, tmp_path: Path) -> None:
        with pytest.raises(
            EsteiraError, match=r"the images needs about 1e\+09 GB on the disk of .*GB\s+are free"
        ):
            machine.require_free_disk(tmp_path / "not" / "yet", 1e9, "the images")

    def test_port(self) -> None:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen()
            port = listener.getsockname()[1]
            assert machine.port_is_taken("127.0.0.1", port)
            holder = machine.port_holder(port)
        assert holder is not None
        assert holder.endswith(f"(process {os.getpid()})")
        assert not machine.port_is_taken("127.0.0.1", port)


class TestDocker:
    """A user who may not use Docker gets the commands to type."""

    def test_permission(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(os, "geteuid", lambda: 1000)
        monkeypatch.setattr(machine, "user_name", lambda: "aluno")
        with pytest.raises(EsteiraError, match="sudo usermod -aG docker aluno\n    newgrp docker"):
            docker.require_permission("permission denied while trying to connect")

    def test_engine_elsewhere(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("DOCKER_HOST", "tcp://192.0.2.1:2375")
        monkeypatch.setattr(docker, "answer", lambda: (None, "no answer"))
        with pytest.raises(EsteiraError, match="unset DOCKER_HOST"):
            docker.ensure_engine(tmp_path)

    def test_too_old(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setattr(docker, "answer", lambda: ("19.03.1", ""))
        with pytest.raises(EsteiraError, match=r"19\.03\.1 is too old"):
            docker.ensure_engine(tmp_path)


def test_the_local_stack_is_of_the_project_that_is_named(tmp_path: Path) -> None:
    """Its containers have that name; under another one they would be somebody else's."""
    for name in ("Pulumi.yaml", "Pulumi.local.yaml"):
        text = (ROOT / name).read_text(encoding="utf-8")
        (tmp_path / name).write_text(text.replace("name: esteira\n", "name: shop\n", 1), encoding="utf-8")
    place = local.Place(tmp_path)
    place.make()
    assert owner_of(place.settings()) == "shop/local/parasite"


def test_the_registry_s_log_options_name_their_driver(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A daemon whose own driver is journald or syslog refuses them otherwise."""
    for name in ("Pulumi.yaml", "Pulumi.local.yaml"):
        shutil.copy(ROOT / name, tmp_path)
    place = local.Place(tmp_path)
    place.make()
    told: list[tuple[str, ...]] = []
    monkeypatch.setattr(docker, "docker", lambda *words, **_: told.append(words))
    monkeypatch.setattr(docker, "labels_of", lambda *_: {})
    local._create_registry(place, place.settings())
    [create] = [words for words in told if words[0] == "create"]
    assert create[create.index("max-size=10m") - 3 :][:3] == ("--log-driver", "json-file", "--log-opt")


class TestPorts:
    """A port in use is found before anything is made; what is ours does not count."""

    @pytest.fixture
    def check(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str, bool], None]:
        (tmp_path / ".esteira/local").mkdir(parents=True)
        (tmp_path / ".esteira/local/registry-password").write_text("x" * 20, encoding="utf-8")
        for name in ("Pulumi.yaml", "Pulumi.local.yaml"):
            (tmp_path / name).write_text((ROOT / name).read_text(encoding="utf-8"), encoding="utf-8")
        (tmp_path / "examples").symlink_to(ROOT / "examples")
        place = local.Place(tmp_path)
        settings = place.settings()

        def run(holder: str, taken: bool) -> None:
            monkeypatch.setattr(
                docker, "docker", lambda *words, **_: holder if "publish=8888" in words else ""
            )
            monkeypatch.setattr(machine, "port_is_taken", lambda _, port: taken and port == 8888)
            monkeypatch.setattr(machine, "port_holder", lambda _: "nginx (process 812)")
            local.require_free_ports(place, settings)

        return run

    def test_process(self, check: Callable[[str, bool], None]) -> None:
        with pytest.raises(
            EsteiraError, match=r"Port 8888 is in use by nginx \(process 812\).*container\.ports"
        ):
            check("", True)

    def test_other_container(self, check: Callable[[str, bool], None]) -> None:
        with pytest.raises(EsteiraError, match=r"the container web\. Free it \(docker stop web"):
            check("web||", True)

    def test_our_container(self, check: Callable[[str, bool], None]) -> None:
        check("parasite-edge||esteira.owner=esteira/local/parasite", True)

    def test_free(self, check: Callable[[str, bool], None]) -> None:
        check("", False)


class TestPlace:
    """State and secrets are nobody else's, and stay what they are."""

    def test_secrets(self, tmp_path: Path) -> None:
        place = local.Place(tmp_path)
        place.make()
        first = place.registry_password.read_text(encoding="utf-8")
        place.make()

        assert len(first) >= 32
        assert place.registry_password.read_text(encoding="utf-8") == first
        for path in (place.passphrase, place.registry_password):
            assert path.stat().st_mode & 0o777 == 0o600
        for path in (tmp_path / ".esteira", place.folder, place.state):
            assert path.stat().st_mode & 0o777 == 0o700

    def test_one_command_at_a_time(self, tmp_path: Path) -> None:
        place = local.Place(tmp_path)
        with place.locked(), pytest.raises(EsteiraError, match="is at work in this folder"), place.locked():
            pass

    def test_another_checkout_is_left_alone(self, tmp_path: Path) -> None:
        other = tmp_path / "other"
        (other / ".esteira/local").mkdir(parents=True)
        (other / "Pulumi.local.yaml").touch()
        place = local.Place(tmp_path / "this")
        with pytest.raises(EsteiraError, match=f"{other}/esteira down"):
            local._require_own(str(other), place)
        local._require_own(str(tmp_path / "gone"), place)
        local._require_own(str(place.root), place)

    def test_down_leaves_another_checkouts_stack_alone(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """It has the same names: what was made here before `up` found it goes, and nothing in Docker."""
        other, own = tmp_path / "other", local.Place(tmp_path / "own")
        (other / ".esteira/local").mkdir(parents=True)
        own.root.mkdir()
        own.make()
        monkeypatch.setattr(docker, "answer", lambda: ("28", ""))
        monkeypatch.setattr(docker, "labels_of", lambda *_: {"esteira.checkout": str(other)})
        monkeypatch.setattr(docker, "docker", lambda *words, **_: pytest.fail(" ".join(words)))

        lifecycle.down(own)

        assert not own.folder.exists()
        assert "removed state and secrets" in capsys.readouterr().out
        assert (other / ".esteira/local").exists()


class TestEngine:
    """The Pulumi CLI is taken where it is new enough; the cause of a failure is found in its events."""

    def test_required_version(self, tmp_path: Path) -> None:
        (tmp_path / "Pulumi.yaml").write_text('requiredPulumiVersion: ">=3.219.1"\n', encoding="utf-8")
        assert str(engine.required_version(tmp_path)) == "3.219.1"

    @pytest.mark.parametrize(
        ("version", "words"),
        [("v3.100.0", "is 3.100.0, and 3.219.0 or later is needed"), ("?", "does not run")],
    )
    def test_unfit(self, version: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "Pulumi.yaml").write_text('requiredPulumiVersion: ">=3.219.0"\n', encoding="utf-8")
        program = tmp_path / "pulumi"
        program.write_text(f"#!/bin/sh\necho '{version}'\n", encoding="utf-8")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

        found = engine.find(tmp_path, install=False)

        assert isinstance(found, engine.Missing)
        assert words in found.reason

    def test_causes(self, tmp_path: Path) -> None:
        def event(severity: str, message: str) -> str:
            return json.dumps({"diagnosticEvent": {"severity": severity, "message": message}})

        log = tmp_path / "events"
        lines = [
            event("info", "nothing"),
            event("error", "<{%reset%}>The registry is down.\n<{%reset%}>"),
            event(
                "error",
                'exit status 1: running "sh -s -- candidate \\\\\\n name=\\"x\\"":\nerror: not healthy',
            ),
            event("error", "The registry is down."),
            event("error", "update failed"),
            "{ cut",
        ]
        log.write_text("\n".join(lines), encoding="utf-8")
        assert engine._causes(log) == ["The registry is down.", "error: not healthy"]

    def test_environment(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PULUMI_CONFIG_PASSPHRASE", "somebody's own")
        values = engine.environment(local.Place(tmp_path))
        assert values["PULUMI_BACKEND_URL"] == f"file://{tmp_path}/.esteira/state"
        assert values["PULUMI_CONFIG_PASSPHRASE_FILE"] == f"{tmp_path}/.esteira/local/passphrase"
        assert "PULUMI_CONFIG_PASSPHRASE" not in values


class TestImages:
    """Images that are made from packages."""

    def test_merged_usr(self) -> None:
        assert packages._merged("./lib/x86_64-linux-gnu/libc.so.6") == "usr/lib/x86_64-linux-gnu/libc.so.6"
        assert packages._merged("./usr/bin/caddy") == "usr/bin/caddy"

    def test_tree(self) -> None:
        stream = io.BytesIO()
        packages.write_tree(
            [], stream, {"usr/bin/x": b"#!/bin/sh\n", "usr/bin/y": "x", "data": None, "tmp": None}
        )
        stream.seek(0)
        with tarfile.open(fileobj=stream) as tree:
            assert tree.getmember("bin").linkname == "usr/bin"
            assert tree.getmember("usr/bin").isdir()
            assert tree.getmember("usr/bin/x").mode == 0o755
            assert tree.getmember("usr/bin/y").linkname == "x"
            assert tree.getmember("tmp").mode == 0o1777

    def test_pip_without_credentials(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """An image's layers are pushed to a registry: no place for an index's password."""
        monkeypatch.setenv("PIP_INDEX_URL", "https://user:MARKER@index.example/simple")
        monkeypatch.setenv("PIP_TRUSTED_HOST", "index.example")
        assert images._pip_configuration() == "[global]\ntrusted-host = index.example\n"

    def test_wget_without_the_option_that_crashes(self, tmp_path: Path) -> None:
        for name, text in {
            "wget": images._WGET.decode(),
            "timeout": '#!/bin/sh\nprintf "%s|" "$@"\n',
        }.items():
            (tmp_path / name).write_text(text, encoding="utf-8")
            (tmp_path / name).chmod(0o755)
        result = subprocess.run(
            [tmp_path / "wget", "-S", "-O", "/dev/null", "-T", "5", "http://x/a b"],
            env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
            capture_output=True,
            text=True,
            check=True,
        )
        assert result.stdout == "5|busybox|wget|-S|-O|/dev/null|http://x/a b|"


class TestTesting:
    """`./esteira test`: the live layer may be skipped, but not in CI."""

    @pytest.mark.parametrize(
        ("environ", "required"),
        [
            ({}, False),
            ({"CI": "true"}, True),
            ({"ESTEIRA_REQUIRE_LIVE": "1"}, True),
            ({"CI": "true", "ESTEIRA_REQUIRE_LIVE": "0"}, False),
        ],
    )
    def test_required(self, environ: dict[str, str], required: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("CI", "ESTEIRA_REQUIRE_LIVE"):
            monkeypatch.delenv(name, raising=False)
        for name, value in environ.items():
            monkeypatch.setenv(name, value)
        assert testing.is_required() is required

    def test_ci_fails_without(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("CI", "true")
        monkeypatch.setattr(testing, "_prepare_live", lambda _: "no Docker here")
        with pytest.raises(EsteiraError, match="may not be skipped here: no Docker here"):
            testing.run(local.Place(tmp_path), [])

    @pytest.fixture
    def npm(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
        """Give a checkout with an npm that installs nothing but a file, and counts."""
        for name in ("package.json", "package-lock.json"):
            file = tmp_path / ".ci/gitlab-ci-local" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("{}")
        program = tmp_path / "bin/npm"
        program.parent.mkdir()
        program.write_text("#!/bin/sh\n[ ! -e broken ] || exit 1\necho once >>calls\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
        monkeypatch.setattr("shutil.which", lambda name: str(program) if name == "npm" else None)
        for name in ("CI", "ESTEIRA_REQUIRE_LIVE"):
            monkeypatch.delenv(name, raising=False)
        return tmp_path

    def test_what_runs_the_pipelines_is_installed_once(self, npm: Path) -> None:
        folder = npm / ".esteira/gitlab-ci-local"
        for _ in range(2):
            values: dict[str, str] = {}
            testing._prepare_pipelines(npm, values)
            assert values == {"ESTEIRA_GITLAB_CI_LOCAL": str(testing.gitlab_ci_local(npm))}
        assert (folder / "calls").read_text() == "once\n"
        (npm / ".ci/gitlab-ci-local/package-lock.json").write_text('{"other": "version"}')
        testing._prepare_pipelines(npm, {})
        assert (folder / "calls").read_text() == "once\nonce\n"

    def test_where_it_cannot_be_had_ci_fails(self, npm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        folder = npm / ".esteira/gitlab-ci-local"
        folder.mkdir(parents=True)
        (folder / "broken").touch()
        values: dict[str, str] = {}
        testing._prepare_pipelines(npm, values)
        assert values == {}
        monkeypatch.setenv("ESTEIRA_REQUIRE_LIVE", "1")
        with pytest.raises(EsteiraError, match="npm cannot install gitlab-ci-local"):
            testing._prepare_pipelines(npm, {})


class TestLauncher:
    """./esteira makes .venv where it is missing or half made, and costs nothing where it is not."""

    @pytest.fixture
    def checkout(self, tmp_path: Path) -> Path:
        """Lay the launcher beside an empty list of packages and a command line that tells how it was called."""
        folder = tmp_path / "a folder"
        (folder / "cli").mkdir(parents=True)
        (folder / "esteira").write_bytes((ROOT / "esteira").read_bytes())
        (folder / "esteira").chmod(0o755)
        (folder / "requirements.txt").write_text("# nothing\n", encoding="utf-8")
        (folder / "cli/__main__.py").write_text("import sys; print(sys.argv[1:])\n", encoding="utf-8")
        return folder

    @pytest.fixture
    def prepared(self, checkout: Path) -> Path:
        """Prepare the environment as far as these tests need it: another's interpreter with pip does."""
        (checkout / ".venv/bin").mkdir(parents=True)
        python = f'#!/bin/sh\nexec {sys.executable} "$@"\n'
        (checkout / ".venv/bin/python").write_text(python, encoding="utf-8")
        (checkout / ".venv/bin/python").chmod(0o755)
        (checkout / ".venv/.installed").write_text("# nothing\n", encoding="utf-8")
        return checkout

    @pytest.fixture
    def quick(self, checkout: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """Put a python3 in front that makes such an environment in place of a real one, which takes some seconds."""
        tools = checkout.parent / "quick"
        tools.mkdir()
        (tools / "python3").write_text(
            "#!/bin/sh\n"
            f'[ "$1 $2" = "-m venv" ] || exec {sys.executable} "$@"\n'
            'for folder; do :; done\nrm -rf "$folder"\nmkdir -p "$folder/bin"\n'
            f'printf \'#!/bin/sh\\nexec {sys.executable} "$@"\\n\' >"$folder/bin/python"\n'
            'chmod +x "$folder/bin/python"\necho made >>made\n',
            encoding="utf-8",
        )
        (tools / "python3").chmod(0o755)
        monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
        return checkout

    def call(self, checkout: Path, *words: str, **environ: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [checkout / "esteira", *words],
            cwd="/",
            env={**os.environ, **environ},
            capture_output=True,
            text=True,
            check=False,
        )

    def test_prepares_once(self, quick: Path) -> None:
        """With a stand-in for venv; the real one is made by CI, which types `./esteira up` in a clean clone."""
        first = self.call(quick, "up", "two words")
        assert (first.returncode, first.stdout) == (0, "['up', 'two words']\n"), first.stderr
        assert "Preparing" in first.stderr
        second = self.call(quick, "down")
        assert (second.stdout, second.stderr) == ("['down']\n", "")

    def test_by_a_link(self, prepared: Path, tmp_path: Path) -> None:
        (tmp_path / "link").symlink_to("a folder/esteira")
        result = subprocess.run([tmp_path / "link", "x"], capture_output=True, text=True, check=False)
        assert result.stdout == "['x']\n", result.stderr

    def test_half_made(self, quick: Path) -> None:
        (quick / ".venv/bin").mkdir(parents=True)
        (quick / ".venv/bin/python").symlink_to("/bin/false")
        result = self.call(quick, "up")
        assert result.stdout == "['up']\n", result.stderr

    def test_changed_requirements(self, prepared: Path) -> None:
        (prepared / "requirements.txt").write_text("# still nothing\n", encoding="utf-8")
        result = self.call(prepared, "up")
        assert "requirements.txt has changed" in result.stderr
        assert (prepared / ".venv/.installed").read_text(encoding="utf-8") == "# still nothing\n"

    def test_failed_update_keeps_what_there_is(self, prepared: Path) -> None:
        (prepared / "requirements.txt").write_text("./no-such-folder\n", encoding="utf-8")
        result = self.call(prepared, "up")
        assert result.returncode == 1
        assert "The packages in requirements.txt cannot be installed" in result.stderr.splitlines()[-1]
        assert (prepared / ".venv/.installed").read_text(encoding="utf-8") == "# nothing\n"

    def test_two_at_once(self, quick: Path) -> None:
        started = [
            subprocess.Popen([quick / "esteira", "x"], stdout=subprocess.PIPE, text=True) for _ in range(3)
        ]
        assert [process.communicate()[0] for process in started] == ["['x']\n"] * 3
        assert (quick / "made").read_text(encoding="utf-8") == "made\n", "one of them, and only once"

    def test_no_python(self, checkout: Path, tmp_path: Path) -> None:
        tools = tmp_path / "tools"
        tools.mkdir()
        for name in ("sh", "cmp", "mkdir", "dirname", "df", "awk", "id", "grep", "tail"):
            (tools / name).symlink_to(f"/usr/bin/{name}")
        (tools / "python3").write_text("#!/bin/sh\nexit 1\n", encoding="utf-8")
        (tools / "python3").chmod(0o755)
        text = (
            (checkout / "esteira").read_text(encoding="utf-8").replace("/usr/bin/python3", "/nowhere/python3")
        )
        (checkout / "esteira").write_text(text, encoding="utf-8")
        result = self.call(checkout, "up", PATH=str(tools))
        assert result.returncode == 1
        assert result.stderr.splitlines()[-1].startswith("Error: Python 3.10 or later")
