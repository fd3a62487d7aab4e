"""Marker secrets are found nowhere but where they belong."""

from __future__ import annotations

import secrets
from pathlib import Path

from tests.live.machines import USERS, Machine
from tests.live.project import PORT, Project
from tests.live.watching import ProcessList, process_list

# Others than in every other run: the process list is that of the whole machine.
APPLICATION = f"Application-{secrets.token_hex(8)}\nwith 'two' lines"
FILE = f"File-{secrets.token_hex(8)}"


def test_secrets_are_in_no_output_process_list_or_file(project: Project, one: Machine, two: Machine) -> None:
    """Successful, failing and removing runs, over password with sudo and over a key."""
    project.server(one, user="careful", sudo=True)
    project.server(two)
    project.secrets["serverPassword"] = None
    project.secrets |= {
        "serverPassword": {"one": one.password},
        "serverPrivateKey": {"two": two.private_key},
        "sudoPassword": one.password,
        "secretEnvironment": {"TOKEN": APPLICATION},
        "secretFiles": {"/etc/parasite/key": FILE},
    }
    shown = []
    with process_list() as processes:
        shown.append(project.up().expect_good().shown)
        assert one.answers(PORT) is not None
        project.commit(health_status=500)
        failing = project.up()
        failing.expect_bad("HTTP 500")
        shown.append(failing.shown)
        shown.append(project.up().shown)
        shown.append(project.destroy().shown)
    key = two.private_key.splitlines()[2]
    marks = {
        "registry password": project.registry.password,
        "pull password": project.registry.pull_password,
        "SSH password": one.password,
        "private key": key,
        "application secret": APPLICATION.splitlines()[0],
        "secret file": FILE,
    }
    homes = " ".join(f"/home/{user}" for user in USERS)
    assert processes.samples > 100
    for what, mark in marks.items():
        assert mark not in "\n".join(shown), f"the {what} was shown"
        assert processes.holds(mark) == [], f"the {what} was in a process list"
        assert _files_with(project.root, mark) == [], f"the {what} is in the checkout"
        assert _files_with(project.home, mark) == [], f"the {what} is in the home folder"
        for machine in (one, two):
            places = f"/root {homes} /tmp /var/tmp /run /dev/shm /var/lib/esteira"
            found = machine.sh(f"grep -rlsF -- '{mark}' {places} --exclude=docker-calls; true")
            assert found == "", f"the {what} is on server {machine.name}: {found}"
            calls = "\n".join(" ".join(call) for call in machine.calls())
            assert mark not in calls, f"the {what} was an argument of docker on {machine.name}"
            assert "auth" not in machine.sh(
                "cat ~root/.docker/config.json /home/*/.docker/config.json 2>/dev/null; true"
            )
    _self_test(processes)


def _self_test(processes: ProcessList) -> None:
    """Check that the watching saw what does pass by."""
    assert processes.holds("docker"), "the process list was not watched"


def _files_with(folder: Path, mark: str) -> list[str]:
    return [
        str(path)
        for path in folder.rglob("*")
        if path.is_file() and not path.is_symlink() and mark.encode() in path.read_bytes()
    ]
