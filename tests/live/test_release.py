"""The road from a commit to a healthy container on the servers, and back: strategy recreate."""

from __future__ import annotations

import hashlib
import http.client
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tests.live.images import base_name
from tests.live.machines import Machine
from tests.live.project import PORT, Project, changes
from tests.live.registry import Registry


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def shows(machine: Machine, commit: str, port: int = PORT) -> bool:
    answer = machine.answers(port)
    return answer is not None and f"commit {commit} " in answer


class TestUp:
    """A commit becomes an image and a healthy container; every later run does no more than what changed."""

    def test_two_servers_the_digest_and_the_moving_tag(
        self, project: Project, one: Machine, two: Machine, registry: Registry
    ) -> None:
        project.server(one)
        project.server(two)
        first = project.head
        outcome = project.up().expect_good()
        digest = registry.digest(project.repository, first)
        assert digest is not None
        assert registry.digest(project.repository, "latest") == digest
        for machine in (one, two):
            assert shows(machine, first)
            container = machine.inspect("parasite")
            assert container["Config"]["Image"] == f"{project.image}@{digest}"
            assert container["HostConfig"]["RestartPolicy"]["Name"] == "always"
            assert container["HostConfig"]["LogConfig"]["Config"] == {"max-size": "10m", "max-file": "3"}
            assert machine.containers() == ["parasite"]
        assert outcome.outputs["commit"] == first
        assert outcome.outputs["releases"] == {"one": first, "two": first}

        # Again: nothing is done on any server, and no tag moves.
        before = [
            (machine.inspect("parasite")["Id"], machine.inspect("parasite")["State"])
            for machine in (one, two)
        ]
        one.forget_calls()
        two.forget_calls()
        project.up().expect_good()
        assert before == [
            (machine.inspect("parasite")["Id"], machine.inspect("parasite")["State"])
            for machine in (one, two)
        ]
        assert changes(one) == []
        assert changes(two) == []
        assert registry.digest(project.repository, first) == digest

        # A new commit.
        second = project.commit(text="second")
        project.up().expect_good()
        assert shows(one, second)
        assert shows(two, second)
        assert (
            registry.digest(project.repository, "latest")
            == registry.digest(project.repository, second)
            != digest
        )
        assert registry.digest(project.repository, first) == digest
        assert len(one.containers("status=running")) == 1
        assert len(one.containers("status=exited")) == 1

    def test_a_failing_release_changes_nothing_and_says_why(
        self, project: Project, one: Machine, registry: Registry
    ) -> None:
        project.server(one)
        good = project.head
        project.up().expect_good()
        latest = registry.digest(project.repository, "latest")
        container = one.inspect("parasite")["Id"]
        bad = project.commit(health_status=500, log_lines=5, text="broken")
        error = project.up().expect_bad(bad[:7], "HTTP 500 from /health", good[:7], "serves again")
        assert "log line 4 of broken" in error
        assert shows(one, good)
        assert one.inspect("parasite")["Id"] == container
        assert one.inspect("parasite")["HostConfig"]["RestartPolicy"]["Name"] == "always"
        assert registry.digest(project.repository, "latest") == latest
        assert one.containers() == ["parasite"]
        # The same again, then the repair.
        project.up().expect_bad("HTTP 500")
        assert shows(one, good)
        repaired = project.commit(text="repaired")
        project.up().expect_good()
        assert shows(one, repaired)
        assert registry.digest(project.repository, "latest") == registry.digest(project.repository, repaired)

    def test_back_to_an_earlier_commit_builds_and_pulls_nothing(
        self, project: Project, one: Machine, registry: Registry
    ) -> None:
        project.server(one)
        first = project.head
        project.up().expect_good()
        digest = registry.digest(project.repository, first)
        project.commit()
        project.up().expect_good()
        one.forget_calls()
        since = registry.log_size()
        outcome = project.up(commit=first).expect_good()
        assert shows(one, first)
        assert not any("-build" in name for name in outcome.resources), "something was built"
        assert not [call for call in one.calls() if "pull" in call or "login" in call]
        assert not [line for line in registry.requests(since) if one.host in line.split()[0]]
        assert registry.digest(project.repository, first) == digest
        assert registry.digest(project.repository, "latest") == digest
        # Kept though the registry is away.
        third = project.commit()
        project.up().expect_good()
        registry.stop()
        try:
            outcome = project.up(commit=first)
        finally:
            registry.start()
        assert shows(one, first), outcome.shown
        assert third[:7] not in str(one.answers(PORT))

    def test_old_releases_are_kept_up_to_the_number_and_nothing_of_anyone_elses_is_touched(
        self, project: Project, one: Machine, registry: Registry
    ) -> None:
        project.server(one)
        project.settings["keepReleases"] = 1
        first = project.head
        project.up().expect_good()
        image = one.docker("inspect", "--format", "{{.Image}}", "parasite")
        # Other people's: a stopped container of the same image, a running one, a dangling image, a volume.
        one.docker("create", "--name", "their-copy", "--label", "esteira.theirs=1", image)
        one.docker("run", "-d", "--name", "theirs", "-v", "their-data:/data", image, "sleep", "1000")
        for number in range(3):
            project.commit(number=number)
            project.up().expect_good()
        assert sorted(one.containers()) == sorted(["parasite", "theirs", "their-copy", *kept(one)])
        assert len(kept(one)) == 1
        assert one.docker("image", "ls", "-q", "--no-trunc").count(image) >= 1, (
            "an image that others use was removed"
        )
        assert registry.digest(project.repository, first) is not None
        project.destroy().expect_good()
        assert sorted(one.containers()) == ["their-copy", "theirs"]
        assert "their-data" in one.docker("volume", "ls", "-q")
        assert one.answers(PORT) is None
        assert registry.digest(project.repository, first) is not None, (
            "destroy removed an image from the registry"
        )

    def test_everything_that_docker_run_could_say(self, project: Project, one: Machine) -> None:
        project.server(one, environment={"WHERE": "one"}, labels={"place": "here"})
        one.docker("network", "create", "backend")
        one.docker("network", "create", "second")
        one.sh("mkdir -p /srv/shared && echo shared > /srv/shared/file")
        several = "line one\nline 'two' $HOME \"x\" \\n\n"
        project.settings["container"] = {
            "name": "parasite",
            "ports": ["8888:8000", "127.0.0.1:8889:8000"],
            "environment": {"PLAIN": "a 'b' \"c\" $d\ne"},
            "volumes": ["data:/data", "/srv/shared:/shared:ro"],
            "networks": ["backend", "second"],
            "memory": "64m",
            "cpus": 0.5,
            "restart": "unless-stopped",
            "command": ["python3", "-S", "/app/app.py", "a b", "$x"],
            "labels": {"team": "parasite team"},
            "user": "1000:1000",
            "init": True,
            "tmpfs": ["/scratch"],
            "stopTimeout": 4,
            "logging": {"driver": "json-file", "options": {"max-size": "1m"}},
        }
        project.secrets["secretEnvironment"] = {"TOKEN": several}
        project.secrets["secretFiles"] = {"/etc/parasite/key.pem": several, "/run/other": "x"}
        project.settings["preDeploy"] = (
            "sh -c 'echo migrated as $WHERE by $(id -u); test -r /etc/parasite/key.pem'"
        )
        outcome = project.up().expect_good()
        assert "migrated as one by 1000" in outcome.shown
        assert shows(one, project.head)
        assert one.answers(PORT, "/environment/TOKEN") == sha256(several)
        assert one.answers(PORT, "/environment/PLAIN") == sha256("a 'b' \"c\" $d\ne")
        assert one.answers(PORT, "/environment/WHERE") == sha256("one")
        assert one.answers(PORT, "/file/etc/parasite/key.pem") == sha256(several)
        assert one.answers(PORT, "/file/shared/file") == sha256("shared\n")
        assert one.answers(8889) is None, "a port for 127.0.0.1 answers from outside"
        assert f"commit {project.head}" in one.sh(
            "curl -s http://127.0.0.1:8889/ || wget -qO- http://127.0.0.1:8889/"
        )
        container = one.inspect("parasite")
        host: dict[str, Any] = container["HostConfig"]
        assert host["Memory"] == 64 * 1024 * 1024
        assert host["NanoCpus"] == 500_000_000
        assert host["RestartPolicy"]["Name"] == "unless-stopped"
        assert host["Init"] is True
        assert "/scratch" in host["Tmpfs"]
        assert host["LogConfig"]["Config"] == {"max-size": "1m"}
        assert set(container["NetworkSettings"]["Networks"]) == {"backend", "second"}
        assert container["Config"]["User"] == "1000:1000"
        assert container["Config"]["Cmd"][-2:] == ["a b", "$x"]
        assert container["Config"]["Labels"]["team"] == "parasite team"
        assert container["Config"]["Labels"]["place"] == "here"
        # A changed secret alone is a new release of the same commit; the old values are nobody's.
        project.secrets["secretEnvironment"] = {"TOKEN": "changed"}
        project.up().expect_good()
        assert one.answers(PORT, "/environment/TOKEN") == sha256("changed")

    def test_a_failing_pre_deploy_changes_nothing(self, project: Project, one: Machine) -> None:
        project.server(one)
        good = project.head
        project.up().expect_good()
        container = one.inspect("parasite")
        project.commit()
        project.settings["preDeploy"] = ["sh", "-c", "echo cannot migrate; exit 9"]
        project.up().expect_bad("exit code 9", "cannot migrate")
        assert one.inspect("parasite")["Id"] == container["Id"]
        assert one.inspect("parasite")["State"]["StartedAt"] == container["State"]["StartedAt"]
        assert shows(one, good)
        assert one.containers() == ["parasite"]

    def test_a_server_that_drifted_is_repaired(self, project: Project, one: Machine) -> None:
        project.server(one)
        project.up().expect_good()
        one.docker("stop", "-t", "0", "parasite")
        project.up().expect_good()
        assert shows(one, project.head)
        one.docker("rm", "-f", "parasite")
        project.up().expect_good()
        assert shows(one, project.head)

    def test_a_container_of_the_old_procedure_is_taken_over_and_given_back_on_failure(
        self, project: Project, one: Machine
    ) -> None:
        project.server(one)
        project.up().expect_good()
        project.destroy().expect_good()
        base = base_name(project.registry)
        serve = ("python3", "-m", "http.server", "8000")
        one.docker(
            "run", "-tid", "-p", f"{PORT}:8000", "--name", "parasite", "--stop-timeout", "1", base, *serve
        )
        project.commit(health_status=503)
        project.up().expect_bad("HTTP 503")
        assert "Directory listing" in str(one.answers(PORT)), (
            "the container of the procedure does not serve again"
        )
        project.commit()
        project.up().expect_good()
        assert shows(one, project.head)
        assert len(one.containers()) == 2, "the container of the procedure was thrown away"


def kept(machine: Machine) -> list[str]:
    return [name for name in machine.containers("status=exited") if name.startswith("parasite-")]


class TestGap:
    """There is a gap, while the container stops and starts; how long it is beside that is the bench's to measure."""

    def test_it_is_told(self, project: Project, one: Machine, record: Callable[[str], None]) -> None:
        project.server(one)
        project.settings["health"]["interval"] = 0.1
        project.up().expect_good()
        project.commit()
        gone: list[float] = []
        end = threading.Event()

        def ask() -> None:
            dark = None
            while not end.is_set():
                now = time.monotonic()
                try:
                    # Not `answers`, which gives silence a second chance.
                    one.http_get(PORT)
                    if dark is not None:
                        gone.append(now - dark)
                        dark = None
                except (OSError, http.client.HTTPException):
                    dark = dark or now
                time.sleep(0.01)

        asking = threading.Thread(target=ask)
        asking.start()
        try:
            project.up().expect_good()
        finally:
            end.set()
            asking.join()
        # The container's own: what docker needs by itself, measured on the very container.
        started = time.monotonic()
        one.docker("restart", "-t", "3", "parasite")
        while one.answers(PORT) is None:
            time.sleep(0.01)
        own = time.monotonic() - started
        record(
            f"recreate: dark for {sum(gone):.2f} s; docker's own restart of the container takes {own:.2f} s"
        )
        assert gone, "the port answered all the time: nothing was replaced"


def test_two_runs_at_once_end_in_one_release(project: Project, one: Machine) -> None:
    """The server's lock makes them run one after the other; nothing is a mixture of both."""
    project.server(one)
    commits = []
    for text in ("first", "second"):
        commits.append(project.commit(text=text))
        project.up().expect_good()
    with ThreadPoolExecutor() as pool:
        runs = [
            pool.submit(each.up, commit=commit)
            for each, commit in zip((project, project.twin()), commits, strict=True)
        ]
    for run in runs:
        run.result().expect_good()
    assert one.containers("status=running") == ["parasite"]
    assert [shows(one, commit) for commit in commits].count(True) == 1
    assert len(one.containers()) == 2
