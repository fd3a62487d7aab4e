"""A registry with a password: Debian's docker-registry, plain HTTP, on the bridge that all machines reach."""

from __future__ import annotations

import base64
import json
import secrets
import shutil
import signal
import subprocess
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import bcrypt

from tests.live.machines import HERE, Machine, wait_for

_CONFIGURATION = """
version: 0.1
log: {{level: info, accesslog: {{disabled: false}}}}
storage:
  filesystem: {{rootdirectory: {folder}/data}}
  delete: {{enabled: true}}
  maintenance: {{uploadpurging: {{enabled: false}}}}
http: {{addr: "{address}"}}
auth:
  htpasswd: {{realm: live, path: {folder}/htpasswd}}
"""

MANIFESTS = (
    "application/vnd.docker.distribution.manifest.v2+json, application/vnd.docker.distribution.manifest.list.v2+json, "
    "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json"
)


class Registry:
    """One registry; it can be stopped and started again with what it holds."""

    def __init__(self, folder: Path) -> None:
        self.address = f"{HERE}:5000"
        self.user = "pusher"
        self.password = f"Registry-{secrets.token_hex(8)}"
        self.pull_user = "puller"
        self.pull_password = f"Puller-{secrets.token_hex(8)}"
        self.folder = folder
        folder.mkdir()
        entries = []
        for user, password in ((self.user, self.password), (self.pull_user, self.pull_password)):
            # Cost 4 is bcrypt's least: every request of a pull checks it.
            entries.append(f"{user}:{bcrypt.hashpw(password.encode(), bcrypt.gensalt(4)).decode()}")
        (folder / "htpasswd").write_text("\n".join(entries) + "\n")
        (folder / "config.yml").write_text(_CONFIGURATION.format(folder=folder, address=self.address))
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it answers."""
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                ["docker-registry", "serve", str(self.folder / "config.yml")],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        # For the cleaning after a killed run.
        (self.folder.parent / "registry.pid").write_text(str(self._process.pid))
        wait_for(self._answers, "the registry")

    def stop(self) -> None:
        """Stop it; connections are refused from now on."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    @contextmanager
    def standing_still(self) -> Iterator[None]:
        """Let it take connections and answer none, as on a machine that stands still, for as long as the block runs."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)

    @contextmanager
    def logged_in(self, machine: Machine) -> Iterator[None]:
        """Let a machine's docker commands from here push and pull, by a login that ends with the block."""
        config = Path(tempfile.mkdtemp(prefix="login-", dir=machine.folder))
        before, machine.environment = machine.environment, {"DOCKER_CONFIG": str(config)}
        try:
            machine.docker("login", "-u", self.user, "--password-stdin", self.address, stdin=self.password)
            yield
        finally:
            machine.environment = before
            shutil.rmtree(config, ignore_errors=True)

    def request(self, method: str, path: str, accept: str = MANIFESTS) -> tuple[int, dict[str, str], bytes]:
        """Ask its API: (status, headers with lower-case names, body)."""
        token = base64.b64encode(f"{self.user}:{self.password}".encode()).decode()
        request = urllib.request.Request(
            f"http://{self.address}/v2/{path}",
            method=method,
            headers={"Authorization": f"Basic {token}", "Accept": accept},
        )
        try:
            with urllib.request.urlopen(request, timeout=40) as answer:  # noqa: S310
                return (
                    answer.status,
                    {key.lower(): value for key, value in answer.headers.items()},
                    answer.read(),
                )
        except urllib.error.HTTPError as error:
            return error.code, {}, error.read()

    def digest(self, repository: str, reference: str) -> str | None:
        """Digest behind a tag, or None."""
        status, headers, _ = self.request("HEAD", f"{repository}/manifests/{reference}")
        return headers["docker-content-digest"] if status == 200 else None

    def tags(self, repository: str) -> set[str]:
        """All tags of a repository."""
        status, _, body = self.request("GET", f"{repository}/tags/list")
        return set(json.loads(body).get("tags") or []) if status == 200 else set()

    def log_size(self) -> int:
        """Where its log ends now, for :meth:`requests`."""
        return (self.folder / "log").stat().st_size

    def requests(self, since: int = 0) -> list[str]:
        """Lines of its access log, such as ``10.213.0.11 … "GET /v2/…"``, from ``since`` on."""
        with (self.folder / "log").open("rb") as log:
            log.seek(since)
            return [
                line
                for line in log.read().decode("utf-8", "replace").splitlines()
                if '"' in line and " /v2/" in line
            ]

    def _answers(self) -> bool:
        try:
            return self.request("GET", "")[0] == 200
        except OSError:
            return False
