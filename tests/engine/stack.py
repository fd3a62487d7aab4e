"""A user's checkout with a Pulumi stack: the real CLI, state in a folder, and what a person sees of each run."""

from __future__ import annotations

import compileall
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pulumi import automation

from tests.live.machines import Machine, _descendants
from tests.live.project import PORT, REPOSITORY, Project
from tests.live.registry import Registry

PASSPHRASE = "Passphrase-of-the-state-5c20"
_COLOUR = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]|<\{%.*?%\}>")
_AMBIENT = re.compile(r"(?m)^.*warning: using pulumi-resource-\w+ from \$PATH.*\n?")
"""What the engine says of a machine whose plugins came another way than by itself; no part of what is looked at."""


@dataclass
class Run:
    """How one run of the CLI ended, and all that it showed."""

    status: int
    screen: str
    seconds: float
    changes: dict[str, int] = field(default_factory=dict)
    """What was done to how many resources: ``same``, ``update``, ``create``, …; empty where it is not known."""

    @property
    def told(self) -> list[str]:
        """What is said of the servers, each sentence once."""
        lines = [line.strip() for line in self.screen.splitlines()]
        return list(dict.fromkeys(line for line in lines if line.startswith("server ")))

    @property
    def last_lines(self) -> str:
        """What a person sees without scrolling back."""
        return "\n".join(self.screen.rstrip().splitlines()[-45:])

    def expect_good(self) -> Run:
        """Check that it did not fail."""
        assert self.status == 0, self.screen
        return self

    def expect_bad(self, *words: str) -> Run:
        """Check that it failed, with each of ``words`` on the last screen, and without a traceback."""
        assert self.status != 0, "it did not fail:\n" + self.screen
        for word in words:
            assert word in self.last_lines, f"{word!r} is not on the last screen:\n{self.screen}"
        assert "Traceback" not in self.screen, self.screen
        assert "KeyboardInterrupt" not in self.screen, self.screen
        return self

    def expect_unchanged(self) -> Run:
        """Check that nothing was done, or would be."""
        self.expect_good()
        assert set(self.changes) == {"same"}, f"{self.changes}\n{self.screen}"
        return self


def shows(machine: Machine, commit: str) -> bool:
    """Tell whether a commit answers on a server's published port."""
    return f"commit {commit} " in str(machine.answers(PORT))


class Stack(Project):
    """One checkout and one stack in it. Other stacks of the checkout are made by :meth:`beside`."""

    def __init__(
        self,
        root: Path,
        registry: Registry,
        builder: Machine,
        repository: str,
        backend: Mapping[str, str] | None = None,
    ) -> None:
        """``backend`` is what the environment says of where state is kept; else it is a folder."""
        super().__init__(root, registry, builder, repository)
        # A program that changes under a stack is a change of every command: a copy, so that nobody's edit gets in.
        for name in ("__main__.py", "components"):
            (root / name).unlink()
        shutil.copy(REPOSITORY / "__main__.py", root)
        # Compiled files as well, but not those that another process is about to write.
        shutil.copytree(
            REPOSITORY / "components", root / "components", ignore=shutil.ignore_patterns("*.pyc.*")
        )
        # As after a person's first run, also where this process's own environment forbids to write them.
        compileall.compile_dir(root / "components", quiet=2)
        (root / ".venv").symlink_to(sys.prefix)
        (root / ".gitignore").write_text(".venv\n")
        state = root.parent / f"{root.name}-state"
        state.mkdir()
        self.state = state
        pulumi_home = self.home / ".pulumi"
        pulumi_home.mkdir()
        plugins = Path(os.environ.get("PULUMI_HOME") or Path.home() / ".pulumi") / "plugins"
        if plugins.is_dir():
            (pulumi_home / "plugins").symlink_to(plugins)
        self.environ |= {
            "PULUMI_BACKEND_URL": f"file://{state}",
            "PULUMI_CONFIG_PASSPHRASE": PASSPHRASE,
            "PULUMI_HOME": str(pulumi_home),
            "PULUMI_SKIP_UPDATE_CHECK": "true",
            # The environment holds GitLab's package too, whose plugin these stacks do not need: where it is missing,
            # every run of the program would first try, again and again, to fetch it.
            "PULUMI_DISABLE_AUTOMATIC_PLUGIN_ACQUISITION": "true",
        }
        self.environ |= backend or {}
        if plugins.is_dir():
            self.environ["PULUMI_IGNORE_AMBIENT_PLUGINS"] = "true"
        self.settings["strategy"] = "blueGreen"
        self.settings["rollout"] = {"watch": 0}
        self.settings["drainTime"] = 1
        self.name = "live"
        self._open()

    def beside(self, name: str) -> Stack:
        """Make another stack of this checkout, with a copy of the settings."""
        other = Stack.__new__(Stack)
        other.__dict__.update(self.__dict__)
        other.settings = json.loads(json.dumps(self.settings))
        other.secrets = json.loads(json.dumps(self.secrets))
        other.name = name
        other._open()
        return other

    def _open(self) -> None:
        workspace = automation.LocalWorkspace(work_dir=str(self.root), env_vars=self._environment())
        self.automation = automation.Stack.create(self.name, workspace)
        self._encrypted: tuple[dict[str, object], dict[str, Any]] = ({}, {})

    def _environment(self) -> dict[str, str]:
        # The Automation API lays these over this process's own: what would leak in is emptied.
        leaking = {
            key: "" for key in os.environ if key.startswith(("CI_", "DEPLOYMENT_", "PULUMI_", "GITLAB"))
        }
        return {**leaking, **self.environ}

    @property
    def file(self) -> Path:
        """The stack file."""
        return self.root / f"Pulumi.{self.name}.yaml"

    def write(self, **over: object) -> None:
        """Write the stack file: the settings, ``over`` laid over them, and the secrets, encrypted by the CLI."""
        if self.secrets != self._encrypted[0]:
            self.file.write_text(self._salt())
            self.automation.set_all_config(
                {
                    path: automation.ConfigValue(str(value), secret=True)
                    for key, secret in self.secrets.items()
                    if secret is not None
                    for path, value in _paths(f"esteira:{key}", secret)
                },
                path=True,
            )
            written = yaml.safe_load(self.file.read_text())
            self._encrypted = (json.loads(json.dumps(self.secrets)), written)
        whole = dict(self._encrypted[1])
        plain = {f"esteira:{key}": value for key, value in {**self.settings, **over}.items()}
        whole["config"] = {**whole.get("config", {}), **plain}
        self.file.write_text(yaml.safe_dump(whole, sort_keys=False))

    def _salt(self) -> str:
        written = yaml.safe_load(self.file.read_text()) if self.file.exists() else {}
        salt = (written or {}).get("encryptionsalt")
        return f"encryptionsalt: {salt}\n" if salt else ""

    # By the Automation API.

    def preview(self, *, diff: bool = False, **over: object) -> Run:
        """Preview with the settings, ``over`` laid over them for this run."""
        self.write(**over)
        return self._carry_out(lambda say: self.automation.preview(diff=diff, color="never", on_output=say))

    def up(self, **over: object) -> Run:  # type: ignore[override]
        """Update with the settings, ``over`` laid over them for this run."""
        self.write(**over)
        return self._carry_out(lambda say: self.automation.up(color="never", on_output=say))

    def destroy(self) -> Run:  # type: ignore[override]
        """Take everything away."""
        return self._carry_out(lambda say: self.automation.destroy(color="never", on_output=say))

    def _carry_out(self, do: Callable[[Callable[[str], Any]], Any]) -> Run:
        lines: list[str] = []
        started = time.monotonic()
        status, changes = 0, {}
        try:
            result = do(lines.append)
            summary = getattr(result, "summary", None)
            found = summary.resource_changes if summary else result.change_summary
            changes = {str(getattr(kind, "value", kind)): count for kind, count in (found or {}).items()}
        except automation.CommandError as error:
            status = 1
            # Its text holds both streams; on_output has given one of them.
            lines = [str(error)]
        screen = _shown("\n".join(lines))
        return Run(status, screen, time.monotonic() - started, changes)

    # As a person types it.

    def start(self, *arguments: str, **over: object) -> subprocess.Popen[str]:
        """Start the CLI in a session of its own; :meth:`end` waits for it."""
        self.write(**over)
        return subprocess.Popen(
            ["pulumi", *arguments, "--color=never", "--stack", self.name],
            cwd=self.root,
            env=self.environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def end(self, process: subprocess.Popen[str], started: float | None = None) -> Run:
        """Wait for the CLI and give what it showed."""
        started = started or time.monotonic()
        screen = process.communicate(timeout=180)[0]
        return Run(process.returncode, _shown(screen), time.monotonic() - started)

    def pulumi(self, *arguments: str, **over: object) -> Run:
        """Run the CLI as a person types it; both streams as they come."""
        started = time.monotonic()
        return self.end(self.start(*arguments, **over), started)

    def interrupt(self, process: subprocess.Popen[str]) -> None:
        """Do what Ctrl-C does: an interrupt for every process of the terminal's foreground."""
        os.killpg(process.pid, signal.SIGINT)

    def kill(self, process: subprocess.Popen[str]) -> None:
        """Kill the CLI and all that it has started, as a lost workstation would."""
        # Its plugins are in groups of their own, and one of them would stay for ever.
        for pid in [process.pid, *_descendants({process.pid})]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.communicate()
        self.automation.cancel()

    def exported(self) -> str:
        """Give the state as `pulumi stack export` prints it; the Automation API's own export decrypts the secrets."""
        return self.pulumi("stack", "export").expect_good().screen


def _shown(screen: str) -> str:
    return _AMBIENT.sub("", _COLOUR.sub("", screen))


def _paths(key: str, secret: object) -> list[tuple[str, object]]:
    if not isinstance(secret, Mapping):
        return [(key, secret)]
    return [(f'{key}["{name}"]', value) for name, value in secret.items()]
