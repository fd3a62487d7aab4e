"""Marker secrets are in no output, no plain state, no process list and no file of what the engine is used for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.engine.stack import PASSPHRASE, Stack
from tests.live.machines import Machine
from tests.live.watching import process_list

APPLICATION = "Application-secret-81c7"
FILE = "File-secret-44aa"


def test_marker_secrets_stay_where_they_belong(
    make_stack: Callable[[str], Stack], one: Machine, two: Machine
) -> None:
    """Previews, a good and a failing run and a removal; by password with sudo, and by key."""
    stack = make_stack("marker-secrets")
    stack.server(one, user="careful", sudo=True)
    stack.server(two)
    stack.secrets |= {
        "serverPassword": {"one": one.password},
        "serverPrivateKey": {"two": two.private_key},
        "sudoPassword": one.password,
        "secretEnvironment": {"TOKEN": APPLICATION},
        "secretFiles": {"/etc/parasite/key": FILE},
    }
    shown = []
    with process_list() as processes:
        shown.append(stack.pulumi("preview", "--diff").expect_good().screen)
        shown.append(stack.pulumi("up", "--yes", "--skip-preview").expect_good().screen)
        stack.secrets["secretEnvironment"] = {"TOKEN": f"{APPLICATION}-changed"}
        shown.append(stack.pulumi("preview", "--json").expect_good().screen)
        stack.commit(health_status=500)
        shown.append(stack.pulumi("up", "--yes").expect_bad("HTTP 500").screen)
        state = stack.exported()
        shown.append(stack.destroy().expect_good().screen)
    # What the harness itself does with the markers: `pulumi config set-all` has them as arguments.
    seen = [line for line in processes.seen if b"set-all" not in line]
    marks = {
        "registry password": stack.registry.password,
        "pull password": stack.registry.pull_password,
        "server's and sudo's password": one.password,
        "private key": two.private_key.splitlines()[2],
        "application secret": APPLICATION,
        "secret file": FILE,
        "passphrase": PASSPHRASE,
    }
    assert processes.samples > 100
    assert processes.holds("pulumi"), "the process list was not watched"
    for what, mark in marks.items():
        assert mark not in "\n".join(shown), f"the {what} was shown"
        assert mark not in state, f"the {what} is in the state in plain text"
        assert not [line for line in seen if mark.encode() in line], f"the {what} was in a process list"
        for folder in (stack.root, stack.state, stack.home):
            assert files_with(folder, mark) == [], f"the {what} is in a file"
        for machine in (one, two):
            places = "/root /home /tmp /var/tmp /run /dev/shm /var/lib/esteira"
            found = machine.sh(f"grep -rlsF -- '{mark}' {places} --exclude=docker-calls; true")
            assert found == "", f"the {what} is on server {machine.name}: {found}"
    for machine in (one, two):
        assert "auth" not in machine.sh(
            "cat ~root/.docker/config.json /home/*/.docker/config.json 2>/dev/null; true"
        )


def files_with(folder: Path, mark: str) -> list[str]:
    """Give the files below a folder that hold a text; what is linked from elsewhere is not looked at."""
    return [
        str(path)
        for path in folder.rglob("*")
        if path.is_file() and not path.is_symlink() and mark.encode() in path.read_bytes()
    ]
