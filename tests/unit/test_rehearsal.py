"""The rehearsal carries small programs out: order, failures, secrets, destroy, what it cannot do."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from rehearsal import RehearsalError, RehearsalResult, carry_out
from rehearsal.image import find_builder, repository_of
from rehearsal.stackfile import read_stack_config

HEAD = """
import pulumi
from pulumi_command import local
config = pulumi.Config()
"""


class Project:
    """A throw-away Pulumi project."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.lines: list[str] = []
        (root / "Pulumi.yaml").write_text("name: small\nruntime: python\n")
        self.stack("config: {}\n")

    def stack(self, text: str) -> None:
        (self.root / "Pulumi.dev.yaml").write_text(textwrap.dedent(text))

    def program(self, text: str) -> None:
        (self.root / "__main__.py").write_text(HEAD + textwrap.dedent(text))

    def run(self, **options: object) -> RehearsalResult:
        return carry_out(self.root, "dev", on_line=self.lines.append, **options)  # type: ignore[arg-type]

    @property
    def shown(self) -> str:
        return "\n".join(self.lines)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


class TestUp:
    """What the program says is really done, once, in order."""

    def test_a_command_runs_in_the_project_with_stdin_and_environment(self, project: Project) -> None:
        project.program("""
            said = local.Command("speak", create='cat; pwd; echo "$MARK"', stdin="from stdin\\n",
                                 environment={"MARK": "from environment"})
            pulumi.export("said", said.stdout)
        """)
        result = project.run()
        assert result.outputs == {"said": f"from stdin\n{project.root}\nfrom environment"}
        assert "speak: from stdin" in project.lines
        assert [resource.name for resource in result.resources] == ["speak"]

    def test_dependants_wait_and_independent_ones_run_side_by_side(self, project: Project) -> None:
        """Each of the eight ends only when all have begun."""
        project.program("""
            all_there = "[ -e side7 ] && [ $(ls side? | wc -l) = 8 ]"
            meet = f"until {all_there} || [ $n = 500 ]; do sleep 0.02; n=$((n + 1)); done"
            sides = [
                local.Command(f"side{n}", create=f"touch side{n}; n=0; {meet}; [ $n -lt 500 ] && echo x >> done")
                for n in range(8)
            ]
            after = pulumi.ResourceOptions(depends_on=sides)
            local.Command("after", create="wc -l < done > counted", opts=after)
        """)
        project.run()
        assert (project.root / "counted").read_text().strip() == "8"

    def test_components_group_and_outputs_flow(self, project: Project) -> None:
        project.program("""
            class Pair(pulumi.ComponentResource):
                def __init__(self, name, opts=None):
                    super().__init__("small:index:Pair", name, {}, opts)
                    inner = pulumi.ResourceOptions(parent=self)
                    first = local.Command(f"{name}-first", create="echo one", opts=inner)
                    said = first.stdout.apply(lambda s: f"echo {s} two")
                    self.second = local.Command(f"{name}-second", create=said, opts=inner)
                    self.register_outputs({})
            pair = Pair("pair")
            last = local.Command("last", create="true", opts=pulumi.ResourceOptions(depends_on=[pair]))
            pulumi.export("second", pair.second.stdout)
        """)
        result = project.run()
        assert result.outputs == {"second": "one two"}
        assert [resource.name for resource in result.resources] == ["pair-first", "pair-second", "last"]

    def test_it_is_no_preview(self, project: Project) -> None:
        project.program('pulumi.export("dry", pulumi.runtime.is_dry_run())')
        assert project.run().outputs == {"dry": False}

    def test_logging_none_keeps_a_commands_lines_to_itself(self, project: Project) -> None:
        project.program("""
            quiet = local.Command("quiet", create="echo hush", logging=local.Logging.NONE)
            pulumi.export("said", quiet.stdout)
        """)
        assert project.run().outputs == {"said": "hush"}
        assert "hush" not in project.shown

    def test_what_the_program_prints_and_logs_is_shown(self, project: Project) -> None:
        project.program('print("printed"); pulumi.log.warn("look out")')
        project.run()
        assert "printed" in project.lines
        assert "warning: look out" in project.lines

    def test_a_stash_gives_back_its_input(self, project: Project) -> None:
        project.program('pulumi.export("kept", pulumi.Stash("stash", input="x").output)')
        assert project.run().outputs == {"kept": "x"}


class TestFailure:
    """One failed resource ends the run with its own words, and nothing that depends on it is begun."""

    def test_the_error_ends_with_the_last_output_and_dependants_are_not_run(self, project: Project) -> None:
        project.program("""
            bad = local.Command("bad", create="echo the cause >&2; exit 7")
            local.Command("never", create="touch never", opts=pulumi.ResourceOptions(depends_on=[bad]))
            pulumi.export("out", bad.stdout)
        """)
        with pytest.raises(RehearsalError) as caught:
            project.run()
        assert str(caught.value) == "bad failed on this machine (exit status 7).\nthe cause"
        assert not (project.root / "never").exists()
        assert "Traceback" not in project.shown

    def test_what_is_under_way_beside_it_comes_to_its_end(self, project: Project) -> None:
        project.program("""
            local.Command("slow", create="sleep 1; touch finished")
            local.Command("bad", create="sleep 0.3; exit 1")
        """)
        with pytest.raises(RehearsalError, match="bad failed"):
            project.run()
        assert (project.root / "finished").exists()

    def test_a_command_killed_by_a_signal_says_so(self, project: Project) -> None:
        project.program('local.Command("bad", create="kill -9 $$")')
        with pytest.raises(RehearsalError, match="signal 9"):
            project.run()

    def test_the_programs_own_error_is_shown_as_its_message(self, project: Project) -> None:
        project.program("""
            from components.errors import EsteiraError
            raise EsteiraError("The setting x is wrong.")
        """)
        with pytest.raises(RehearsalError) as caught:
            project.run()
        assert str(caught.value) == "The setting x is wrong."

    def test_an_error_that_the_program_logs_before_it_stops_is_the_cause(self, project: Project) -> None:
        project.program('pulumi.log.error("Three settings are wrong."); raise SystemExit(1)')
        with pytest.raises(RehearsalError, match=r"^Three settings are wrong\.$"):
            project.run()

    def test_a_mistake_in_the_program_names_its_line(self, project: Project) -> None:
        project.program("{}['nothing']")
        with pytest.raises(RehearsalError, match=r"KeyError: 'nothing' \(__main__\.py, line 5\)"):
            project.run()

    def test_a_resource_that_needs_the_engine_is_refused_by_name(self, project: Project) -> None:
        project.program("""
            import pulumi_docker as docker
            docker.Network("net")
        """)
        with pytest.raises(
            RehearsalError, match=r"net \(docker:index/network:Network\) cannot be carried out"
        ):
            project.run()

    def test_a_function_that_needs_the_engine_is_refused_by_name(self, project: Project) -> None:
        project.program("""
            import pulumi_docker as docker
            docker.get_registry_image("x")
        """)
        with pytest.raises(RehearsalError, match="getRegistryImage"):
            project.run()

    def test_interrupted_with_its_caller(self, project: Project) -> None:
        project.program(
            "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
            'local.Command("long", create="touch begun; sleep 60; touch ended")'
        )
        caller = _start(project)
        _wait_for((project.root / "begun").exists)
        os.kill(caller.pid, signal.SIGINT)
        assert caller.wait(timeout=60) != 0
        _wait_for(lambda: not _commands_with(str(project.root)))

    def test_an_interrupted_build_leaves_no_password(self, project: Project, tmp_path: Path) -> None:
        """Its client has a configuration of its own, with the registry's password and a copy of the user's logins."""
        for folder in ("bin", "home", "tmp", "context"):
            (tmp_path / folder).mkdir()
        (tmp_path / "home/config.json").write_text('{"auths": {"other.example.com": {"auth": "bWFya2Vy"}}}')
        (tmp_path / "context/Dockerfile").write_text("FROM scratch\n")
        (tmp_path / "bin/docker").write_text(
            '#!/bin/sh\ncase "$1 $2" in "buildx version") echo github.com/docker/buildx 0.13 ;;\n'
            '"buildx build") touch begun; exec sleep 60 ;; esac\n'
        )
        (tmp_path / "bin/docker").chmod(0o755)
        project.program("""
            import pulumi_docker as docker
            docker.Image("build", image_name="registry.example.com/g/p:x", build={"context": "context"},
                         registry={"server": "registry.example.com", "username": "ana", "password": "marker-7Q"})
        """)
        path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
        caller = _start(
            project, PATH=path, DOCKER_CONFIG=str(tmp_path / "home"), TMPDIR=str(tmp_path / "tmp")
        )
        _wait_for((project.root / "begun").exists)
        assert len(list((tmp_path / "tmp").glob("esteira-docker-*/config.json"))) == 1
        os.kill(caller.pid, signal.SIGINT)
        assert caller.wait(timeout=60) != 0
        assert list((tmp_path / "tmp").glob("esteira-docker-*")) == []

    def test_killed_with_its_caller(self, project: Project) -> None:
        project.program('local.Command("long", create="touch begun; sleep 60; touch ended")')
        caller = _start(project)
        _wait_for((project.root / "begun").exists)
        os.kill(caller.pid, signal.SIGKILL)
        caller.wait()
        _wait_for(lambda: not _commands_with(str(project.root)))


class TestSecrets:
    """Secrets are unwrapped to act, and shown nowhere."""

    def test_a_secret_reaches_the_command_and_no_output(self, project: Project) -> None:
        project.program("""
            word = config.require_secret("word")
            check = local.Command("check", create='read line; [ "$line" = "marker-7Q" ]', stdin=word)
            pulumi.export("word", word)
            pulumi.export("deep", {"inner": word, "open": "x"})
        """)
        result = project.run(config={"word": "marker-7Q"}, secret_keys={"word"})
        assert result.outputs == {"word": "[secret]", "deep": "[secret]"}
        assert "marker-7Q" not in project.shown

    def test_a_failing_command_does_not_show_its_stdin(self, project: Project) -> None:
        project.program(
            'local.Command("bad", create="cat > /dev/null; exit 1", stdin=config.require_secret("word"))'
        )
        with pytest.raises(RehearsalError) as caught:
            project.run(config={"small:word": "marker-7Q"}, secret_keys={"small:word"})
        assert "marker-7Q" not in str(caught.value) + project.shown

    def test_no_process_gets_the_configuration_by_argv_or_environment(self, project: Project) -> None:
        project.program("""
            local.Command("look", create="cat /proc/[0-9]*/cmdline /proc/[0-9]*/environ > seen || true")
        """)
        project.run(config={"word": "marker-" + "7Q7Q"}, secret_keys={"word"})
        assert ("marker-" + "7Q7Q").encode() not in (project.root / "seen").read_bytes()


class TestStackFile:
    """The configuration is what the engine would give, as far as it can be had without the engine."""

    def test_defaults_of_the_project_and_values_of_the_stack(self, project: Project) -> None:
        (project.root / "Pulumi.yaml").write_text(
            "name: small\nruntime: python\n"
            "config:\n  a: {type: string, default: one}\n  b: {default: 2}\n  other:c: three\n"
        )
        project.stack("""
            config:
              small:b: 3
              small:list: [1, {x: true}]
              small:text: "0123"
        """)
        settled = read_stack_config(project.root, "dev", environ={})
        assert settled.values == {
            "small:a": "one",
            "small:b": "3",
            "other:c": "three",
            "small:list": '[1, {"x": true}]',
            "small:text": "0123",
        }

    def test_encrypted_values_are_refused_all_at_once_with_the_way_out(self, project: Project) -> None:
        project.stack("""
            config:
              small:registryPassword: {secure: v1:abc}
              small:secretEnvironment: {KEY: {secure: v1:def}}
        """)
        with pytest.raises(RehearsalError) as caught:
            read_stack_config(project.root, "dev", environ={})
        assert "small:registryPassword in Pulumi.dev.yaml" in str(caught.value)
        assert "CI_REGISTRY_PASSWORD" in str(caught.value)
        assert "registryPasswordFile" in str(caught.value)
        assert "small:secretEnvironment" in str(caught.value)

    def test_the_environment_supplies_what_cannot_be_decrypted(self, project: Project) -> None:
        project.stack("config:\n  small:registryPassword: {secure: v1:abc}\n")
        settled = read_stack_config(project.root, "dev", environ={"CI_REGISTRY_PASSWORD": "x"})
        assert settled.values == {}
        assert "CI_REGISTRY_PASSWORD" in settled.notes[0]

    @pytest.mark.parametrize(
        ("name", "text", "words"),
        [
            ("Pulumi.dev.yaml", "config: [", "Pulumi.dev.yaml line"),
            ("Pulumi.dev.yaml", "- 1", "must be a YAML map"),
            ("Pulumi.yaml", "runtime: python", "names no project"),
        ],
    )
    def test_files_that_cannot_be_read(self, project: Project, name: str, text: str, words: str) -> None:
        (project.root / name).write_text(text)
        with pytest.raises(RehearsalError, match=words):
            project.run()

    def test_a_stack_that_is_not_there(self, project: Project) -> None:
        with pytest.raises(RehearsalError, match=r"no stack prod here: Pulumi\.prod\.yaml is missing"):
            carry_out(project.root, "prod")


class TestDestroy:
    """A destroy acts only by the commands' own delete, dependants first."""

    def test_deletes_in_reverse_order_without_creating(self, project: Project) -> None:
        project.program("""
            first = local.Command("first", create="touch created", delete="echo first >> order")
            second = local.Command("second", create="touch created", delete="echo second >> order",
                                   stdin=first.stdout.apply(lambda s: "in" + s))
            local.Command("third", create="touch created", delete="sleep 0.5; echo third >> order",
                          opts=pulumi.ResourceOptions(depends_on=[second]))
            local.Command("kept", create="touch created")
        """)
        project.run(action="destroy")
        assert (project.root / "order").read_text().split() == ["third", "second", "first"]
        assert not (project.root / "created").exists()

    def test_a_failed_delete_stops_what_it_depends_on_from_going(self, project: Project) -> None:
        project.program("""
            first = local.Command("first", create="true", delete="touch gone")
            local.Command("second", create="true", delete="echo why; exit 3",
                          opts=pulumi.ResourceOptions(depends_on=[first]))
        """)
        with pytest.raises(RehearsalError, match=r"second failed on this machine \(exit status 3\)\.\nwhy"):
            project.run(action="destroy")
        assert not (project.root / "gone").exists()


class TestImage:
    """The pure parts of building; the building itself is tested live."""

    @pytest.mark.parametrize(
        ("name", "repository"),
        [
            ("127.0.0.1:5000/group/parasite:abc", "127.0.0.1:5000/group/parasite"),
            ("127.0.0.1:5000/group/parasite", "127.0.0.1:5000/group/parasite"),
            ("parasite:abc", "parasite"),
        ],
    )
    def test_repository_of(self, name: str, repository: str) -> None:
        assert repository_of(name) == repository

    def _client(self, folder: Path, body: str) -> str:
        folder.mkdir()
        (folder / "docker").write_text(f"#!/bin/sh\n{body}\n")
        (folder / "docker").chmod(0o755)
        return str(folder)

    def test_a_client_with_buildx_is_best_then_an_old_one_then_the_old_builder(self, tmp_path: Path) -> None:
        new = self._client(
            tmp_path / "new", '[ "$1" = --version ] && echo "Docker version 28.2.2, build x" || exit 1'
        )
        old = self._client(
            tmp_path / "old", '[ "$1" = --version ] && echo "Docker version 20.10.24+dfsg1" || exit 1'
        )
        full = self._client(tmp_path / "full", 'echo "github.com/docker/buildx 0.13"')
        assert find_builder({"PATH": f"{new}:{old}:{full}"}).command[:2] == ("buildx", "build")
        second = find_builder({"PATH": f"{new}:{old}"})
        assert (second.client, second.environment, second.buildkit) == (
            f"{old}/docker",
            {"DOCKER_BUILDKIT": "1"},
            True,
        )
        last = find_builder({"PATH": new})
        assert (last.client, last.buildkit) == (f"{new}/docker", False)

    def test_no_client_at_all(self, tmp_path: Path) -> None:
        with pytest.raises(RehearsalError, match="no docker command"):
            find_builder({"PATH": str(tmp_path)})


def _start(project: Project, **environment: str) -> subprocess.Popen[bytes]:
    """Start a rehearsal in a process of its own."""
    script = f"import rehearsal, pathlib; rehearsal.carry_out(pathlib.Path({str(project.root)!r}), 'dev')"
    return subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=Path(__file__).resolve().parents[2],
        env={**os.environ, **environment},
        stderr=subprocess.DEVNULL,
    )


def _wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)


def _commands_with(cwd: str) -> list[str]:
    """Find the processes that work in ``cwd``."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if str((entry / "cwd").readlink()) == cwd:
                    found.append(entry.name)
            except OSError:
                continue
    return found
