"""A user's checkout: an application under git, Esteira's program, a stack file; and its runs by the rehearsal."""

from __future__ import annotations

import copy
import json
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

import rehearsal
from rehearsal.run import Action
from tests.live.images import EDGE
from tests.live.machines import Machine, run
from tests.live.registry import Registry

REPOSITORY = Path(__file__).resolve().parents[2]
PORT = 8888
"""Where the application is published, unless a test says otherwise."""


# exec: the reading asks the edge which slot serves.
READING = {"version", "info", "inspect", "ps", "logs", "port", "images", "ls", "exec"}


def changes(machine: Machine) -> list[list[str]]:
    """Docker commands of a machine that may have changed something, without the settling of the restart policy."""
    found = []
    for call in machine.calls():
        words = call[1:] if call[0] in {"container", "image", "network", "volume"} else call
        if words and words[0] not in READING and call[:2] != ["update", "--restart"]:
            found.append(call)
    return found


@dataclass
class Outcome:
    """How one run ended, and everything that it showed."""

    lines: list[str]
    error: str | None
    seconds: float
    outputs: dict[str, object] = field(default_factory=dict)
    resources: list[str] = field(default_factory=list)

    @property
    def shown(self) -> str:
        """All that a person saw."""
        return "\n".join([*self.lines, self.error or ""])

    @property
    def told(self) -> str:
        """The same without the build's lines, for the failure of a test."""
        return "\n".join([*(line for line in self.lines if "-build: " not in line), self.error or ""])

    def expect_good(self) -> Outcome:
        """Check that it did not fail."""
        assert self.error is None, self.told
        return self

    def expect_bad(self, *words: str) -> str:
        """Check that it failed, saying each of ``words``, without a traceback; give the error."""
        assert self.error is not None, "it did not fail:\n" + self.told
        for word in words:
            assert word in self.error, f"{word!r} is not in the error:\n{self.told}"
        assert "Traceback" not in self.shown, self.shown
        return self.error


class Project:
    """One checkout. ``settings`` is what the stack file says, without the namespace; a test changes it and runs."""

    def __init__(self, root: Path, registry: Registry, builder: Machine, repository: str) -> None:
        self.root = root
        self.registry = registry
        self.repository = repository
        self.home = root.parent / f"{root.name}-home"
        self.home.mkdir()
        self.environ = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.home),
            "DOCKER_HOST": builder.docker_host,
            "LANG": "C.UTF-8",
            "GIT_CONFIG_GLOBAL": "/dev/null",
        }
        root.mkdir()
        for name in ("__main__.py", "components", "esteira", "Pulumi.yaml"):
            (root / name).symlink_to(REPOSITORY / name)
        shutil.copytree(Path(__file__).parent / "app", root / "app")
        run("git", "init", "-q", str(root))
        self.settings: dict[str, Any] = {
            "registry": registry.address,
            "registryInsecure": True,
            "repository": repository,
            "registryUser": registry.user,
            "pullUser": registry.pull_user,
            "strategy": "recreate",
            "image": {"context": "app"},
            "container": {"name": "parasite", "ports": [f"{PORT}:8000"], "stopTimeout": 3},
            "health": {"path": "/health", "interval": 0.2, "startPeriod": 2, "retries": 2},
            "edgeImage": EDGE,
            "servers": [],
        }
        self.secrets: dict[str, object] = {
            "registryPassword": registry.password,
            "pullPassword": registry.pull_password,
        }
        self.commit()

    def twin(self) -> Project:
        """Give another checkout of the same, as another person's."""
        twin = copy.copy(self)
        twin.root = self.root.parent / f"{self.root.name}-twin"
        shutil.copytree(self.root, twin.root, symlinks=True)
        return twin

    def server(self, machine: Machine, **more: object) -> dict[str, Any]:
        """Add a machine to the servers, with the login that ``more`` says; give its entry."""
        entry: dict[str, Any] = {
            "name": machine.name,
            "host": machine.host,
            "hostKey": machine.host_key,
            **more,
        }
        self.settings["servers"].append(entry)
        self.secrets.setdefault("serverPassword", machine.password)
        return entry

    def commit(self, **knobs: object) -> str:
        """Commit the application with these knobs (tests/live/app/app.py); give the sha."""
        knobs = {"nonce": time.time_ns(), **knobs}
        (self.root / "app" / "knobs.json").write_text(json.dumps(knobs))
        return self.commit_tree()

    def commit_tree(self) -> str:
        """Commit the application's folder as it is."""
        who = ("-c", "user.name=live", "-c", "user.email=live@example.invalid")
        run("git", "-C", str(self.root), "add", "app")
        run("git", "-C", str(self.root), *who, "commit", "-q", "--allow-empty", "-m", "change")
        return self.head

    @property
    def head(self) -> str:
        """The checked-out commit."""
        return run("git", "-C", str(self.root), "rev-parse", "HEAD").strip()

    @property
    def image(self) -> str:
        """Name of the application's image, without tag."""
        return f"{self.registry.address}/{self.repository}"

    def up(self, **settings: object) -> Outcome:
        """Carry the program out with the settings, ``settings`` laid over them for this run."""
        return self._run("up", settings)

    def destroy(self) -> Outcome:
        """Take everything away."""
        return self._run("destroy", {})

    def _run(self, action: Action, over: Mapping[str, object]) -> Outcome:
        settings = copy.deepcopy({**self.settings, **over})
        file = self.root / "Pulumi.live.yaml"
        file.write_text(
            yaml.safe_dump({"config": {f"esteira:{key}": value for key, value in settings.items()}})
        )
        secrets = {f"esteira:{key}": value for key, value in self.secrets.items() if value is not None}
        lines: list[str] = []
        started = time.monotonic()
        outcome = Outcome(lines, None, 0)
        try:
            result = rehearsal.carry_out(
                self.root,
                "live",
                action=action,
                environ=self.environ,
                config=secrets,
                secret_keys=secrets.keys(),
                on_line=lines.append,
            )
            outcome.outputs = result.outputs
            outcome.resources = [resource.name for resource in result.resources]
        except rehearsal.RehearsalError as error:
            outcome.error = str(error)
        outcome.seconds = time.monotonic() - started
        return outcome
