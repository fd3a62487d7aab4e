"""The policy pack on the real CLI: it lets a good stack through and stops a bad one before anything is touched."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.engine.stack import Stack, shows
from tests.live.machines import Machine
from tests.live.project import REPOSITORY, changes

REQUIREMENT = next(
    line
    for line in (REPOSITORY / "policy/requirements.txt").read_text().splitlines()
    if line.startswith("pulumi-policy")
)


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a copy of the pack with its environment: the SDK and the protobuf that it wants, all else as it is here."""
    folder = tmp_path_factory.mktemp("policy") / "policy"
    shutil.copytree(REPOSITORY / "policy", folder, ignore=shutil.ignore_patterns(".venv", "__pycache__"))
    environment = folder / ".venv"
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
    python = str(environment / "bin/python")
    pip = [python, "-m", "pip", "install", "-q", "--no-input", "--disable-pip-version-check", "--no-deps"]
    done = subprocess.run(
        [*pip, REQUIREMENT, "protobuf~=5.29.5"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"{REQUIREMENT} cannot be installed: {done.stderr.strip().splitlines()[-1]}")
    packages = next((environment / "lib").glob("python*/site-packages"))
    (packages / "zz-rest.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return folder


@pytest.fixture(scope="module")
def stack(make_stack: Callable[[str], Stack], one: Machine) -> Stack:
    """Give a stack without limits, nothing of it declared yet."""
    made = make_stack("policy")
    made.server(one)
    made.settings["edgeImage"] = "esteira/edge:1.0.0"
    return made


class TestPolicyPack:
    """`pulumi up --policy-pack policy`."""

    def test_a_stack_that_breaks_rules_is_refused(self, stack: Stack, pack: Path, one: Machine) -> None:
        one.docker("tag", "esteira/edge:local", "esteira/edge:1.0.0")
        stack.settings["container"]["environment"] = {"API_TOKEN": "x"}
        one.forget_calls()
        run = stack.pulumi("up", "--yes", "--non-interactive", "--policy-pack", str(pack))
        run.expect_bad("limits", "esteira:container.memory", "no-plain-secret", "API_TOKEN")
        assert changes(one) == []

    def test_a_stack_within_the_rules_is_let_through(self, stack: Stack, pack: Path, one: Machine) -> None:
        del stack.settings["container"]["environment"]
        stack.settings["container"] |= {"memory": "256m", "cpus": 1}
        run = stack.pulumi("up", "--yes", "--non-interactive", "--policy-pack", str(pack)).expect_good()
        assert "esteira@v0.1.0" in run.screen
        assert shows(one, stack.head)

    def test_nothing_needed_to_be_encrypted(self, stack: Stack, pack: Path) -> None:
        """What holds credentials is a secret by the program's own doing."""
        run = stack.pulumi("preview", "--non-interactive", "--policy-pack", str(pack)).expect_good()
        assert "[remediate]" not in run.screen
