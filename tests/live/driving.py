"""Drives the program that runs on a server directly, as the engine would, so that it can be cut off anywhere.

:class:`Application` is one declaration; its phases come from the same functions as the deployment's commands. The
docker command of the machine can be told to kill the whole run, or to stand still, at its n-th call.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.client
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from components.arguments import (
    container_command,
    create_options,
    deploy_input,
    edge_mark,
    identity_values,
    limits,
    owner_of,
    phase_values,
    release_fingerprint,
)
from components.reading import Reading, parse_reading, reading_values
from components.remote import Payload, command_text, standard_input
from components.settings import Settings, load_settings
from tests.live.images import BASE_PYTHON, EDGE
from tests.live.machines import Machine, run, wait_for
from tests.live.registry import MANIFESTS, Registry

NAME = "parasite"
PORT = 8888
REPOSITORY = "live/driven"

_SHIM = """#!/bin/sh
# Counts the docker commands of a run that is to be cut off; at the last of the count the run meets its end, or this one
# command finds no daemon.
echo "$1 $2 $3 $4" >>/run/docker-said
[ -e /run/cut ] || exec /run/docker-client "$@"
exec 6>>/run/cut-lock
flock 6
read -r left how wait only </run/cut || exec /run/docker-client "$@" 6>&-
case "$*" in "$only"*) ;; *) exec /run/docker-client "$@" 6>&- ;; esac
left=$((left - 1))
echo "$left $how $wait $only" >/run/cut
exec 6>&-
[ "$left" -eq 0 ] || exec /run/docker-client "$@"
echo "$1 $2 $3 $4" >/run/cut-at
case $how in
  before) kill -KILL 0 ;;
  after)
    /run/docker-client "$@"
    kill -KILL 0
    ;;
  during)
    exec 5<&0
    /run/docker-client "$@" <&5 5<&- &
    sleep "$wait"
    kill -KILL 0
    ;;
  refuse)
    echo "Cannot connect to the Docker daemon at unix:///var/run/docker.sock. Is the docker daemon running?" >&2
    exit 1
    ;;
  hold)
    until [ -e /run/go-on ]; do sleep 0.01; done
    exec /run/docker-client "$@"
    ;;
esac
"""


class Engine:
    """The machine's Docker Engine by its API: quicker than the command, and not counted."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    def ask(self, method: str, path: str, timeout: float = 60) -> Any:
        """Ask; the answer's JSON, or None where there is none."""
        connection = http.client.HTTPConnection("docker", timeout=timeout)
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(timeout)
        try:
            connection.sock.connect(str(self._machine.path("run/docker.sock")))
            connection.request(method, path)
            answer = connection.getresponse().read()
        finally:
            connection.close()
        return json.loads(answer) if answer.strip() else None

    def containers(self) -> list[dict[str, Any]]:
        """Everything about all containers."""
        found = [
            self.ask("GET", f"/containers/{one['Id']}/json")
            for one in self.ask("GET", "/containers/json?all=1")
        ]
        return [one for one in found if "Name" in one]

    def running(self) -> set[str]:
        """Names of the containers that run."""
        return {one["Names"][0][1:] for one in self.ask("GET", "/containers/json")}

    def clear(self) -> None:
        """Remove all containers, networks and volumes."""
        for one in self.ask("GET", "/containers/json?all=1"):
            self.ask("DELETE", f"/containers/{one['Id']}?force=1&v=1")
        for network in self.ask("GET", "/networks"):
            if network["Name"] not in {"bridge", "host", "none"}:
                self.ask("DELETE", f"/networks/{network['Id']}")
        for volume in self.ask("GET", "/volumes")["Volumes"] or []:
            self.ask("DELETE", f"/volumes/{volume['Name']}?force=1")


class Images:
    """Images of the tests' application that differ in their configuration alone: made in the registry at once."""

    def __init__(self, builder: Machine, registry: Registry) -> None:
        self._registry = registry
        self.name = f"{registry.address}/{REPOSITORY}"
        app = Path(__file__).parent / "app"
        assert BASE_PYTHON in (app / "Dockerfile").read_text()
        builder.docker("build", "-q", "-t", f"{self.name}:first", str(app))
        with registry.logged_in(builder):
            builder.docker("push", "-q", f"{self.name}:first")
        self._manifest = json.loads(registry.request("GET", f"{REPOSITORY}/manifests/first")[2])
        digest = self._manifest["config"]["digest"]
        self._config = json.loads(self._ask("GET", f"/v2/{REPOSITORY}/blobs/{digest}")[1])

    def make(self, *, architecture: object = None, **changes: object) -> str:
        """Make an image; ``changes`` to its configuration as Docker spells it (Entrypoint, Healthcheck, …)."""
        labels = {"nonce": secrets.token_hex(8)}
        config = {**self._config, "config": {**self._config["config"], "Labels": labels, **changes}}
        if architecture:
            config["architecture"] = architecture
        blob = json.dumps(config).encode()
        location = self._ask("POST", f"/v2/{REPOSITORY}/blobs/uploads/")[0]["location"]
        digest = f"sha256:{hashlib.sha256(blob).hexdigest()}"
        path = "/" + location.split("/", 3)[3]
        self._ask(
            "PUT", f"{path}{'&' if '?' in path else '?'}digest={digest}", blob, "application/octet-stream"
        )
        manifest = json.dumps(
            {**self._manifest, "config": {**self._manifest["config"], "digest": digest, "size": len(blob)}}
        ).encode()
        digest = f"sha256:{hashlib.sha256(manifest).hexdigest()}"
        self._ask("PUT", f"/v2/{REPOSITORY}/manifests/{digest}", manifest, self._manifest["mediaType"])
        return f"{self.name}@{digest}"

    def tagged(self, environment: Sequence[str] = ()) -> tuple[str, str]:
        """Make the image of a commit, with more in its environment; (commit, image)."""
        image = self.make(Env=[*(self._config["config"].get("Env") or []), *environment])
        commit, path = secrets.token_hex(20), f"/v2/{REPOSITORY}/manifests"
        manifest = self._ask("GET", f"{path}/{image.rpartition('@')[2]}")[1]
        self._ask("PUT", f"{path}/{commit}", manifest, self._manifest["mediaType"])
        return commit, image

    def _ask(
        self, method: str, path: str, body: bytes | None = None, kind: str = ""
    ) -> tuple[dict[str, str], bytes]:
        login = base64.b64encode(f"{self._registry.user}:{self._registry.password}".encode()).decode()
        connection = http.client.HTTPConnection(self._registry.address, timeout=60)
        headers = {"Authorization": f"Basic {login}", "Accept": MANIFESTS}
        if kind:
            headers["Content-Type"] = kind
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        text = answer.read()
        connection.close()
        assert answer.status < 300, f"{method} {path}: {answer.status} {text[:300]!r}"
        return {key.lower(): value for key, value in answer.getheaders()}, text


@dataclass(frozen=True)
class Release:
    """A commit with its image, and what its application does wrong (knobs of tests/live/app/app.py)."""

    image: str
    commit: str = field(default_factory=lambda: secrets.token_hex(20))
    knobs: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Done:
    """How a phase ended. status -9: killed."""

    phase: str
    status: int
    out: str
    err: str
    seconds: float

    @property
    def shown(self) -> str:
        """Everything that it said."""
        return f"## {self.phase}, status {self.status}, {self.seconds:.1f} s\n{self.out}{self.err}"


class Application:
    """One declaration on one machine. ``values`` is its stack file; a test changes it and deploys."""

    def __init__(self, machine: Machine, registry: Registry, **values: object) -> None:
        self.machine = machine
        self.engine = Engine(machine)
        self.password = registry.pull_password
        self._registry = registry
        self.shim()
        self.values: dict[str, Any] = {
            "registry": registry.address,
            "registryInsecure": True,
            "repository": REPOSITORY,
            "registryUser": registry.user,
            "registryPassword": registry.password,
            "pullUser": registry.pull_user,
            "pullPassword": registry.pull_password,
            "serverPassword": machine.password,
            "strategy": "blueGreen",
            "container": {"name": NAME, "ports": [f"{PORT}:8000"], "stopTimeout": 3},
            "health": {"path": "/health", "interval": 0.1, "startPeriod": 1.5, "retries": 2},
            "rollout": {"watch": 0.3},
            "drainTime": 5,
            "edgeImage": EDGE,
            "lockTimeout": 60,
            "servers": [{"name": machine.name, "host": machine.host, "hostKey": machine.host_key}],
            **values,
        }

    def settings(self, release: Release) -> Settings:
        """Return what the stack file's values become for this release."""
        values = json.loads(json.dumps(self.values))
        environment = values["container"].setdefault("environment", {})
        environment.update({f"KNOB_{key.upper()}": str(value) for key, value in release.knobs.items()})
        secret = {"registryPassword", "pullPassword", "serverPassword", "secretEnvironment", "secretFiles"}
        return load_settings(
            values,
            frozenset(secret & set(values)),
            project="driven",
            stack="live",
            root=Path("/"),
            environ={},
        )

    def phase(self, phase: str, release: Release, request: str = "a test") -> tuple[str, str]:
        """Return the command's text and stdin, as the deployment declares them."""
        settings = self.settings(release)
        server = settings.servers[0]
        options = create_options(settings, server, release.commit)
        arguments = container_command(settings.container)
        if phase in {"read", "remove"}:
            values = identity_values(settings, server)
            if phase == "read":
                values = reading_values(settings, server, owner_of(settings))
            return (
                command_text(phase, values),
                standard_input(Payload(), sudo=server.sudo),
            )
        mark = release_fingerprint(settings, options, arguments)
        values = phase_values(settings, server, release.commit, release.commit)
        return (
            command_text(phase, values, options, arguments),
            deploy_input(settings, server, mark, release.image, request),
        )

    def phases(self, release: Release) -> list[str]:
        """Return the phases of a deployment, in their order."""
        settings = self.settings(release)
        if len(settings.servers) > 1:
            return ["candidate", "switch", "confirm"]
        return ["candidate", "switch"] if settings.strategy == "blueGreen" else ["deploy"]

    def one_of_several(self, confirm_timeout: float = 60) -> None:
        """Make the server one of two, so that its switch is on trial until it is confirmed."""
        other = {"name": "other", "host": "192.0.2.1", "hostKey": self.machine.host_key}
        self.values["servers"].append(other)
        self.values["rollout"] = {**self.values["rollout"], "confirmTimeout": confirm_timeout}

    def run(
        self, phase: str, release: Release, *, user: str = "root", programs: str = "", request: str = "a test"
    ) -> Done:
        """Run a phase as a login of its own on the machine, to its end."""
        text, stdin = self.phase(phase, release, request)
        started = time.monotonic()
        process = self.start(text, stdin, user=user, programs=programs)
        try:
            out, err = process.communicate(timeout=120)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            out, err = process.communicate()
            raise AssertionError(f"phase {phase} hung:\n{out.decode()}{err.decode()}") from None
        seconds = time.monotonic() - started
        return Done(
            phase, process.returncode, out.decode("utf-8", "replace"), err.decode("utf-8", "replace"), seconds
        )

    def start(
        self, text: str, stdin: str, *, user: str = "root", programs: str = ""
    ) -> subprocess.Popen[bytes]:
        """Start a command as a login of its own: a session, so that one signal kills all of it.

        programs: a folder on the machine whose programs come before all others.
        """
        # A file: writing to a pipe that nobody reads would wait.
        given = self.machine.folder / f"stdin-{secrets.token_hex(4)}"
        given.write_text(stdin)
        folder = f"{programs}:" if programs else ""
        path = f"PATH={folder}/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        login = ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups"] if user != "root" else []
        argv = ["nsenter", "-t", str(self.machine.init), "-m", "-n", "-u", "--", *login]
        argv += [
            "env",
            "-i",
            f"HOME={'/root' if user == 'root' else f'/home/{user}'}",
            path,
            "sh",
            "-c",
            text,
        ]
        with given.open("rb") as stdin_file:
            process = subprocess.Popen(
                argv,
                stdin=stdin_file,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
        given.unlink()
        return process

    def deploy(self, release: Release, **how: Any) -> list[Done]:
        """Run all phases until one fails."""
        done: list[Done] = []
        for phase in self.phases(release):
            done.append(self.run(phase, release, **how))
            if done[-1].status != 0:
                break
        return done

    def up(self, release: Release, **how: Any) -> str:
        """Deploy; everything that was said. It must succeed."""
        done = self.deploy(release, **how)
        assert done[-1].status == 0, shown(done)
        return shown(done)

    def up_fails(self, release: Release, *words: str, **how: Any) -> str:
        """Deploy; it must fail, saying each of ``words`` in its last line."""
        done = self.deploy(release, **how)
        assert done[-1].status == 1, shown(done)
        last = done[-1].err.strip().splitlines()[-1]
        assert last.startswith("error: "), shown(done)
        for word in words:
            assert word in last, f"{word!r} is not in the last line:\n{shown(done)}"
        return shown(done)

    def read(self, release: Release) -> Reading:
        """Read the server as a preview does."""
        done = self.run("read", release)
        assert done.status == 0, done.shown
        return parse_reading(self.machine.name, done.out)

    def difference(self, release: Release) -> str | None:
        """Return what a preview says that runs instead of the release."""
        settings = self.settings(release)
        options = create_options(settings, settings.servers[0], release.commit)
        return self.read(release).difference(
            owner=owner_of(settings),
            commit=release.commit,
            image=release.image,
            fingerprint=release_fingerprint(settings, options, container_command(settings.container)),
            restart=settings.container.restart,
            edge=edge_mark(settings),
            **limits(settings),
        )

    def run_as_the_procedure(
        self, image: str, *options: str, port: int = PORT, commit: str = "0" * 40
    ) -> str:
        """Start a container as the old procedure does; its id."""
        machine = self.machine
        told = (f"-p{port}:8000", "--name", NAME, "-e", f"ESTEIRA_COMMIT={commit}")
        with self._registry.logged_in(machine):
            container = machine.docker("run", "-tid", *told, *options, image)
        wait_for(lambda: machine.answers(port), "the procedure's container")
        return container

    def begin(self, phase: str, release: Release, **how: Any) -> Running:
        """Start a phase and go on, to watch it."""
        return Running(phase, self.start(*self.phase(phase, release), **how))

    # What is left.

    def leftovers(self, release: Release) -> list[str]:
        """Return in words everything on the machine that is not as it is declared, but for other stopped releases."""
        wrong: list[str] = []
        settings = self.settings(release)
        blue_green = settings.strategy == "blueGreen"
        containers = {one["Name"][1:]: one for one in self.engine.containers()}
        declared = {NAME, f"{NAME}-edge"} if blue_green else {NAME}
        for name, one in containers.items():
            status, policy = one["State"]["Status"], one["HostConfig"]["RestartPolicy"]["Name"]
            if name in declared:
                if status != "running" or policy != "always":
                    wrong.append(f"{name} is {status}, restart policy {policy}")
            elif not re.fullmatch(rf"{NAME}-([0-9a-f]{{12}}|before)-[0-9a-f]{{12}}", name):
                wrong.append(f"container {name} is there, {status}")
            elif status != "exited" or policy not in {"no", ""}:
                wrong.append(f"kept release {name} is {status}, restart policy {policy}")
        wrong += [f"{name} is not there" for name in declared - set(containers)]
        if NAME in containers:
            serving = containers[NAME]["Config"]
            if serving["Labels"].get("esteira.commit") != release.commit or serving["Image"] != release.image:
                wrong.append(f"{NAME} is commit {serving['Labels'].get('esteira.commit')}")
        networks = {one["Name"] for one in self.engine.ask("GET", "/networks")} - {"bridge", "host", "none"}
        # Releases that are kept from the other strategy are still on its network.
        kept = {name for one in containers.values() for name in one["NetworkSettings"]["Networks"]}
        own = {f"esteira-{NAME}"}
        if networks != (own if blue_green else own & kept):
            wrong.append(f"networks {networks}")
        volumes = {one["Name"] for one in self.engine.ask("GET", "/volumes")["Volumes"] or []}
        if volumes != ({f"{NAME}-edge", f"{NAME}-edge-data"} if blue_green else set()):
            wrong.append(f"volumes {volumes}")
        return wrong + self.files_left() + self._processes_left(containers if blue_green else {})

    def files_left(self) -> list[str]:
        """Return passing files and written credentials that are still there, and a lock that is still held."""
        wrong = []
        for folder in ("dev/shm", "tmp", "var/tmp", "root", "run/lock"):
            for path in self.machine.path(folder).rglob("*"):
                inside = str(path.relative_to(self.machine.path("")))
                if "esteira" in path.name and not inside.startswith("run/lock/esteira-"):
                    wrong.append(f"{inside} is there")
                with contextlib.suppress(OSError):
                    if path.is_file() and self.password.encode() in path.read_bytes():
                        wrong.append(f"{inside} holds the password")
        if (self.machine.path("root/.docker/config.json")).exists():
            wrong.append("a docker config is there")
        wrong += [f"lock {lock.name} is held" for lock in self.locks() if self.held(lock)]
        wrong += [
            f"{path.name} is there"
            for pattern in ("*.holder.*", "*.stopping", "*.gap")
            for path in self.machine.path("run/lock").glob(f"esteira-*/{pattern}")
        ]
        return wrong

    def locks(self) -> list[Path]:
        """Return the lock files."""
        return list(self.machine.path("run/lock").glob("esteira-*/lock"))

    def held(self, lock: Path) -> bool:
        """Say whether somebody holds a lock."""
        return subprocess.run(["flock", "-n", str(lock), "true"], check=False).returncode != 0

    def _processes_left(self, containers: Mapping[str, Any]) -> list[str]:
        edge = containers.get(f"{NAME}-edge")
        if edge is None or not edge["State"]["Running"]:
            return []
        for _ in range(50):
            titles = self.engine.ask("GET", f"/containers/{edge['Id']}/top?ps_args=-o%20pid,args")[
                "Processes"
            ]
            if len(titles) == 1:
                return []
            time.sleep(0.1)
        return [f"in the edge runs {title[-1][:80]}" for title in titles if "caddy" not in title[-1]]

    def expect_settled(self, release: Release) -> None:
        """Check that the machine is as declared, and nothing is left over."""
        wrong = self.leftovers(release)
        assert wrong == [], wrong
        difference = self.difference(release)
        assert difference is None, difference
        assert f"commit {release.commit} " in str(self.machine.answers(PORT))

    # Cutting off.

    def shim(self) -> None:
        """Put the counting docker command on the machine's PATH."""
        machine = self.machine
        client = next(
            path for path in ("/usr/bin/docker", shutil.which("docker")) if path and Path(path).exists()
        )
        machine.sh(f"ln -sfn {client} /run/docker-client")
        path = machine.path("usr/local/bin/docker")
        path.unlink(missing_ok=True)
        path.write_text(_SHIM)
        path.chmod(0o755)
        self.count()

    def count(self) -> list[str]:
        """Return the docker commands since the last call."""
        path = self.machine.path("run/docker-said")
        said = path.read_text(errors="replace").splitlines() if path.exists() else []
        path.write_text("")
        path.chmod(0o666)
        return said

    @contextmanager
    def cut(self, number: int, how: str, wait: float = 0.02, only: str = "") -> Iterator[Callable[[], str]]:
        """Let the ``number``-th docker command from now end its run; yields what says at which command it did.

        ``only``: how the commands begin that are counted.
        """
        run_folder = self.machine.path("run")
        for name in ("cut-at", "go-on"):
            (run_folder / name).unlink(missing_ok=True)
        (run_folder / "cut-lock").touch(0o666)
        (run_folder / "cut").write_text(f"{number} {how} {wait} {only}\n")

        def at() -> str:
            path = run_folder / "cut-at"
            return path.read_text(errors="replace").strip() if path.exists() else ""

        try:
            yield at
        finally:
            (run_folder / "cut").unlink(missing_ok=True)

    def go_on(self) -> None:
        """Let a command that stands still go on."""
        self.machine.path("run/go-on").touch()


class Running:
    """A phase that runs, and what it has said up to now."""

    def __init__(self, phase: str, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self.said: list[str] = []
        self._phase, self._started = phase, time.monotonic()
        self._readers = [
            threading.Thread(target=self._read, args=(stream,), daemon=True)
            for stream in (process.stdout, process.stderr)
        ]
        for reader in self._readers:
            reader.start()

    def _read(self, stream: IO[bytes]) -> None:
        with contextlib.suppress(ValueError):
            for line in stream:
                self.said.append(line.decode("utf-8", "replace"))

    def wait_for(self, words: str, seconds: float = 60) -> None:
        """Wait until it has said ``words``."""
        wait_for(lambda: any(words in line for line in list(self.said)), f"{words!r} in {self.said}", seconds)

    def end(self, timeout: float = 120) -> Done:
        """Wait for its end."""
        status = self.process.wait(timeout)
        for reader in self._readers:
            reader.join(10)
        return Done(self._phase, status, "".join(self.said), "", time.monotonic() - self._started)


def shown(done: list[Done]) -> str:
    """Everything that some phases said."""
    return "\n".join(one.shown for one in done)


class Prober:
    """Asks the published port again and again, by a new connection each time, and counts all answers but good ones."""

    def __init__(self, host: str, port: int = PORT, interval: float = 0.02) -> None:
        self.failures: list[tuple[float, str]] = []
        self.commits: list[str] = []
        self.asked = 0
        self._where, self._interval = (host, port), interval
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._ask, daemon=True)

    def _ask(self) -> None:
        while not self._end.wait(self._interval):
            self.asked += 1
            asked_at = time.monotonic()
            try:
                said = self._once()
            except OSError as error:
                self.failures.append((asked_at, str(error)))
                continue
            found = re.match(r"HTTP/1\.[01] 200 .*?commit ([0-9a-f]{40}) ", said, re.DOTALL)
            if not found:
                self.failures.append((asked_at, said[:200] or "empty answer"))
            elif not self.commits or self.commits[-1] != found[1]:
                self.commits.append(found[1])

    def _once(self) -> str:
        with socket.create_connection(self._where, timeout=30) as connection:
            connection.sendall(b"GET / HTTP/1.1\r\nHost: probe\r\nConnection: close\r\n\r\n")
            said = b""
            while part := connection.recv(65536):
                said += part
        return said.decode("utf-8", "replace")

    def __enter__(self) -> Prober:  # noqa: PYI034 - Self is not in Python 3.10
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    @property
    def dark(self) -> float:
        """Seconds between the first and the last failure, with one interval."""
        return self.failures[-1][0] - self.failures[0][0] + self._interval if self.failures else 0.0

    def expect_no_failure(self) -> None:
        """Check that every request was answered well."""
        assert self.failures == [], f"{len(self.failures)} of {self.asked} failed, first: {self.failures[0]}"


__all__ = [
    "NAME",
    "PORT",
    "Application",
    "Done",
    "Engine",
    "Images",
    "Prober",
    "Release",
    "run",
    "shown",
    "wait_for",
]
