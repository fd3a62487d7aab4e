"""`./esteira status`, `releases`, `logs` and `exec` as a person types them, on two servers; without an engine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from tests.live.machines import HERE, PASSWORD, Machine, Room, wait_for
from tests.live.project import REPOSITORY, Project
from tests.live.registry import Registry

_TYPED = (
    "import sys; from pathlib import Path; from cli import app; app.ROOT = Path(sys.argv.pop(1)); app.main()"
)


class Typed:
    """The command line of one checkout, with what a job of GitLab has in its environment."""

    def __init__(self, project: Project, registry: Registry) -> None:
        self.root = project.root
        state = project.home / "state"
        state.mkdir()
        self.environ = {
            **project.environ,
            "DEPLOYMENT_SERVER_PASS": PASSWORD,
            "CI_REGISTRY_PASSWORD": registry.password,
            "CI_DEPLOY_PASSWORD": registry.pull_password,
            "PULUMI_BACKEND_URL": f"file://{state}",
            "PULUMI_SKIP_UPDATE_CHECK": "true",
            "PYTHONPATH": str(REPOSITORY),
        }

    def start(self, *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", _TYPED, str(self.root), *words],
            cwd=REPOSITORY,
            env=self.environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def type(self, *words: str) -> tuple[int, str, str]:
        """Type a command; exit status and both streams."""
        process = self.start(*words)
        out, err = process.communicate(timeout=120)
        assert "Traceback" not in err, err
        assert PASSWORD not in out + err
        return process.returncode, out, err


@pytest.mark.timeout(300)
def test_what_a_person_sees(
    project: Project, one: Machine, two: Machine, registry: Registry, room: Room
) -> None:
    project.settings["strategy"] = "blueGreen"
    project.settings["rollout"] = {"watch": 0}
    project.server(one)
    # A login that needs sudo, and sudo a password.
    project.server(two, user="careful", sudo=True)
    project.settings["servers"][1]["environment"] = {"WHERE": "two"}
    project.secrets["sudoPassword"] = PASSWORD
    first = project.commit(text="first")
    project.up().expect_good()
    second = project.commit(text="second", log_lines=3)
    project.up().expect_good()
    project.secrets.pop("sudoPassword")
    typed = Typed(project, registry)
    file = project.root / "Pulumi.live.yaml"
    written = file.read_text()

    # The secret that only Pulumi can decrypt is named, with what to do.
    file.write_text(written + "  esteira:sudoPassword:\n    secure: v1:abc\n")
    status, _, err = typed.type("status", "--stack", "live")
    assert status == 1
    assert "esteira:sudoPassword in Pulumi.live.yaml cannot be decrypted" in err
    # In plain text a test's stack file may have it; the program's would be refused.
    one_only = json.loads(json.dumps(project.settings))
    one_only["servers"][1] |= {"user": "root", "sudo": False}
    file.write_text(
        "config:\n" + "".join(f"  esteira:{key}: {json.dumps(value)}\n" for key, value in one_only.items())
    )

    status, out, err = typed.type("status", "--stack", "live")
    assert status == 0, err
    rows = [line.split() for line in out.splitlines()]
    assert ["parasite", "in", "stack", "live,", "declared", "is", "commit", second[:7]] in rows
    for name in ("one", "two"):
        [row] = [row for row in rows if row[:1] == [name]]
        assert row[1] == second[:7]
        assert "healthy" in row
        assert "parasite" in row
    assert len([row for row in rows if "deployed" in row]) == 4
    assert "not as declared" not in out

    status, out, _ = typed.type("status", "--stack", "live", "--json", "--server", "two")
    [server] = json.loads(out)["servers"]
    assert (server["serving"]["commit"], server["serving"]["healthy"]) == (second, True)
    assert [one["commit"] for one in server["kept"]] == [first]
    assert {one["user"] for one in server["deployments"]} == {"careful"}
    assert {one["from"] for one in server["deployments"]} == {HERE}

    status, out, _ = typed.type("releases", "--stack", "live")
    assert status == 0
    assert out.count("starts it again, without the registry") == 2
    assert "In the registry: 2 commits" in out

    status, out, _ = typed.type("logs", "--stack", "live", "--tail", "2")
    assert status == 0
    assert sorted(out.splitlines()) == [
        f"{name} | {line}" for name in ("one", "two") for line in ("log line 2 of second", "serving")
    ]
    assert typed.type("logs", "--stack", "live", "--server", "one", "--tail", "1")[1] == "serving\n"

    status, out, err = typed.type(
        "exec", "--stack", "live", "--", "sh", "-c", "echo $WHERE; echo wrong >&2; exit ${WHERE:+7}"
    )
    assert status == 7
    assert "two | two" in out
    assert sorted(err.splitlines()) == ["one | wrong", "two | wrong"]
    status, _, err = typed.type("exec", "--stack", "live", "-t", "--", "sh")
    assert (status, "A terminal is for one server" in err) == (1, True)

    # Somebody follows, and goes.
    following = typed.start("logs", "--stack", "live", "--follow")
    wait_for(lambda: any("logs --follow" in line for line in one.processes()), "docker logs on one", 60)
    wait_for(lambda: any("logs --follow" in line for line in two.processes()), "docker logs on two", 60)
    time.sleep(0.5)
    os.killpg(following.pid, signal.SIGINT)
    out, err = following.communicate(timeout=30)
    assert (following.returncode, err) == (0, "")
    assert "two | serving" in out
    for machine in (one, two):
        wait_for(
            lambda machine=machine: not any("logs --follow" in line for line in machine.processes()),  # type: ignore[misc]
            "the end of docker logs",
        )

    # One server is gone: the others are shown.
    one_only["servers"].append({"name": "gone", "host": room.black_hole(97), "hostKey": one.host_key})
    one_only["connectTimeout"] = 2
    file.write_text(
        "config:\n" + "".join(f"  esteira:{key}: {json.dumps(value)}\n" for key, value in one_only.items())
    )
    status, out, _ = typed.type("status", "--stack", "live")
    assert status == 1
    assert ["gone", "unreachable"] in [line.split()[:2] for line in out.splitlines()]
    assert "gone: The server gone" in out
    assert (
        len([line for line in out.splitlines() if line.startswith(("one ", "two ")) and "healthy" in line])
        == 2
    )
    status, out, err = typed.type("exec", "--stack", "live", "--", "true")
    assert status == 1
    assert "The server gone" in err
