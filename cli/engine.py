"""The Pulumi engine: found, or fetched, or told why not; and one run of it on the local stack."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import semver
import yaml

from cli import console, shell
from cli.local import STACK, Place, project_name
from components.errors import EsteiraError
from components.settings import NAMESPACE

PLUGINS = {"docker": "pulumi-docker", "command": "pulumi-command"}
"""Provider plugin -> Python package; both have one version, which requirements.txt pins."""

_INSTALL_SECONDS = 600
_CONNECT_SECONDS = 10


@dataclass(frozen=True)
class Engine:
    """A Pulumi CLI that can run the program, plugins included."""

    command: str
    version: str


@dataclass(frozen=True)
class Missing:
    """Why there is no engine; a sentence's middle part."""

    reason: str


def required_version(root: Path) -> semver.Version:
    """Read the oldest CLI that Pulumi.yaml allows (requiredPulumiVersion)."""
    described = yaml.safe_load((root / "Pulumi.yaml").read_text(encoding="utf-8")) or {}
    found = re.search(r"(\d+)\.(\d+)\.(\d+)", str(described.get("requiredPulumiVersion", "")))
    return semver.Version(*(int(part) for part in found.groups())) if found else semver.Version(3, 219, 0)


def find(root: Path, *, install: bool = True) -> Engine | Missing:
    """Find a Pulumi CLI: on PATH, in the project's folder, else (with ``install``) by the SDK's own installer.

    It is pinned: the installer brings the version of the SDK in requirements.txt. Nothing is remembered of a failure.
    """
    oldest = required_version(root)
    own = root / ".esteira" / "pulumi"
    reasons = []
    for command in (shutil.which("pulumi"), str(own / "bin" / "pulumi")):
        if command is None or not Path(command).exists():
            continue
        version = _version_of(command)
        if version is None:
            reasons.append(f"{command} does not run")
        elif version < oldest:
            reasons.append(f"{command} is {version}, and {oldest} or later is needed")
        else:
            return _with_plugins(Engine(command, str(version)), install=install)
    if not install:
        return Missing("; ".join(reasons) or "there is no pulumi on PATH")
    console.step("Fetching the Pulumi CLI ...")
    failure = _install(own)
    if failure is None and (version := _version_of(str(own / "bin" / "pulumi"))) is not None:
        return _with_plugins(Engine(str(own / "bin" / "pulumi"), str(version)), install=True)
    return Missing(
        "; ".join([*reasons, f"its installer cannot be had ({failure or 'it brought no program'})"])
    )


def _version_of(command: str) -> semver.Version | None:
    try:
        answer = shell.run(
            [command, "version"], timeout=30, environment={"PULUMI_SKIP_UPDATE_CHECK": "true"}
        ).stdout
        return semver.Version.parse(answer.strip().removeprefix("v"))
    except (shell.CommandError, ValueError):
        return None


def _install(own: Path) -> str | None:
    """Run the SDK's installer in a process of its own, which can be ended; None, or why it failed."""
    program = (
        "import socket, sys; from pulumi.automation import PulumiCommand\n"
        f"socket.setdefaulttimeout({_CONNECT_SECONDS})\n"
        "try: PulumiCommand.install(root=sys.argv[1])\n"
        "except Exception as error: sys.exit(str(getattr(error, 'reason', error))[-300:])\n"
    )
    try:
        result = shell.run([sys.executable, "-c", program, str(own)], timeout=_INSTALL_SECONDS, check=False)
    except shell.CommandError as error:
        return str(error)
    if any(word in result.stderr for word in shell.DISK_FULL):
        raise EsteiraError(
            "The disk is full: the Pulumi CLI cannot be stored. Free some space, then try again."
        )
    return None if result.returncode == 0 else (result.stderr.strip().splitlines() or ["it said nothing"])[-1]


def _with_plugins(engine: Engine, *, install: bool) -> Engine | Missing:
    """Make sure that the engine has its plugins: without, a run would fail halfway with a download's error."""
    answer = shell.run([engine.command, "plugin", "ls", "--json"], timeout=60, check=False, cwd=Path("/"))
    present: set[tuple[str, str]] = set()
    with suppress(ValueError, TypeError, KeyError):
        present = {(row["name"], row["version"]) for row in json.loads(answer.stdout)}
    for plugin, package in PLUGINS.items():
        version = importlib.metadata.version(package)
        if (plugin, version) in present or shutil.which(f"pulumi-resource-{plugin}"):
            continue
        if not install:
            return Missing(f"its plugin {plugin} {version} is not installed")
        console.step(f"Fetching Pulumi's plugin {plugin} {version} ...")
        try:
            shell.run(
                [engine.command, "plugin", "install", "resource", plugin, version], timeout=300, cwd=Path("/")
            )
        except shell.CommandError as error:
            return Missing(f"its plugin {plugin} {version} cannot be had ({str(error).splitlines()[-1]})")
    return engine


def environment(place: Place, engine: Engine | None = None) -> dict[str, str]:
    """Make the environment of a run on the local stack: this process's, and state and passphrase in the folder."""
    values = {
        **os.environ,
        "PULUMI_BACKEND_URL": f"file://{place.state}",
        "PULUMI_CONFIG_PASSPHRASE_FILE": str(place.passphrase),
        "PULUMI_SKIP_UPDATE_CHECK": "true",
        "PULUMI_DEBUG_COMMANDS": "true",  # without it the CLI does not know --event-log
        # What the local stack needs is there (PLUGINS); GitLab's plugin, whose package the environment holds as well,
        # would be fetched before the first run, or tried for at every run where it cannot be had.
        "PULUMI_DISABLE_AUTOMATIC_PLUGIN_ACQUISITION": "true",
    }
    for name in ("PULUMI_CONFIG_PASSPHRASE", "PULUMI_STACK"):
        values.pop(name, None)
    if engine is not None:
        # A CLI that was fetched brings its language hosts along, beside itself.
        values["PATH"] = os.pathsep.join([str(Path(engine.command).parent), values.get("PATH", os.defpath)])
    return values


def has_state(place: Place) -> bool:
    """Tell whether the engine has a state of the local stack."""
    stacks = place.state / ".pulumi" / "stacks"
    return any(path.name in {f"{STACK}.json", f"{STACK}.json.gz"} for path in stacks.rglob(f"{STACK}.json*"))


def configuration(place: Place, engine: Engine) -> Path:
    """Return the stack file that the engine is to use on the local stack: the tracked one and the encryption's salt.

    The engine writes the salt of the passphrase into the stack file when it makes the stack. Everyone's is another,
    so it must not get into the file that is tracked by git: the stack is made from a folder of its own.
    """
    folder = place.folder / "stack"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    (folder / "Pulumi.yaml").write_text(
        f"name: {project_name(place.root)}\nruntime: python\n", encoding="utf-8"
    )
    made = folder / f"Pulumi.{STACK}.yaml"
    if not has_state(place) or not made.exists():
        made.unlink(missing_ok=True)
        if has_state(place):
            # Cut off between the two files: the stack is there, empty, without its salt.
            _quietly(place, engine, folder, "stack", "rm", STACK, "--yes")
        _quietly(place, engine, folder, "stack", "init", STACK, "--no-select")
    salt = (yaml.safe_load(made.read_text(encoding="utf-8")) or {}).get("encryptionsalt")
    tracked = (place.root / f"Pulumi.{STACK}.yaml").read_text(encoding="utf-8")
    file = place.folder / f"Pulumi.{STACK}.yaml"
    file.write_text(f"encryptionsalt: {salt}\n{tracked}", encoding="utf-8")
    return file


def _quietly(place: Place, engine: Engine, folder: Path, *arguments: str) -> None:
    shell.run(
        [engine.command, "--non-interactive", *arguments],
        timeout=120,
        cwd=folder,
        environment=environment(place, engine),
    )


def carry_out(place: Place, engine: Engine, action: str, *, commit: str | None = None) -> None:
    """Run `pulumi up` or `pulumi destroy` on the local stack, in view; with ``commit`` declared for this run alone.

    Raises EsteiraError with the cause, taken from the engine's events: on the screen it stands before the summary.
    """
    stack_file = configuration(place, engine)
    _cancel_left_over(place, engine)
    events = place.folder / "events.json"
    events.unlink(missing_ok=True)
    command = [
        *(engine.command, action, "--stack", STACK, "--yes", "--suppress-permalink=true"),
        *("--config-file", str(stack_file), "--event-log", str(events)),
    ]
    if commit is not None:
        # Pulumi writes it into the stack file that is made anew for every run.
        command += ["--config", f"{NAMESPACE}:commit={commit}"]
    status = in_view(command, place.root, environment(place, engine))
    causes = _causes(events)
    events.unlink(missing_ok=True)
    if status != 0:
        raise EsteiraError(
            "\n\n".join(causes) or f"pulumi {action} failed with status {status}; it says why above."
        )


def in_view(command: Sequence[str], folder: Path, values: Mapping[str, str] | None = None) -> int:
    """Run a program on this terminal and return its exit status; an interrupt is left to it, and waited for."""
    process = subprocess.Popen(command, cwd=folder, env=values)
    with _passing_on_sigterm(process):
        interrupted = False
        while True:
            try:
                status = process.wait()
                break
            except (
                KeyboardInterrupt
            ):  # it got the same signal, and ends in order; a second one makes it stop at once
                interrupted = True
    if interrupted:
        raise KeyboardInterrupt
    return status


@contextmanager
def _passing_on_sigterm(process: subprocess.Popen[bytes]) -> Iterator[None]:
    before = signal.signal(signal.SIGTERM, lambda *_: process.send_signal(signal.SIGINT))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _causes(events: Path) -> list[str]:
    """Read the errors' texts from the engine's event log, in order and once each, without the engine's colour tags."""
    texts: list[str] = []
    with suppress(OSError):
        for line in events.read_text(encoding="utf-8", errors="replace").splitlines():
            with suppress(ValueError, AttributeError):
                event = json.loads(line).get("diagnosticEvent") or {}
                text = re.sub(r"<\{%.*?%\}>", "", str(event.get("message", ""))).strip()
                # A command's own text stands above already; what it said is the cause.
                text = re.sub(r'^exit status \d+: running "(?:[^"\\]|\\.)*":?\s*', "", text) or text
                if event.get("severity") == "error" and text and text not in texts:
                    texts.append(text)
    # The engine adds one of these for every run that failed; they say nothing.
    real = [text for text in texts if not re.match(r"(update|destroy|preview) failed", text)]
    return real or texts


def _cancel_left_over(place: Place, engine: Engine) -> None:
    """Give the stack free where a run that is no more holds it: the backend's lock does not die with it."""
    for lock in (place.state / ".pulumi" / "locks").rglob("*.json"):
        with suppress(OSError, ValueError, TypeError):
            holder = json.loads(lock.read_text(encoding="utf-8"))
            if holder.get("hostname") != socket.gethostname() or _is_alive(int(holder.get("pid", 0))):
                raise EsteiraError(
                    f"Another run holds the local stack: process {holder.get('pid')} of {holder.get('username')}. "
                    "Wait until it has ended, then try again."
                )
            console.say("The run before this one was cut off: giving the stack free.")
            _quietly(place, engine, place.folder / "stack", "cancel", "--yes", "--stack", STACK)
            return


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
