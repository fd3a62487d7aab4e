"""Where Pulumi keeps its state, on real parts: a folder, PostgreSQL, an object store; addressed as docs/ says.

PostgreSQL is Debian's, a cluster of the tests' own, run by its own user. The object store is moto (PyPI), which speaks
S3's protocol from memory and checks each request's signature and permissions. Both speak TLS only, with a certificate
of a private authority, and know one user, who has no right more than the page says.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import pwd
import re
import secrets
import shutil
import ssl
import subprocess
import sys
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from cli import shell
from tests.live.machines import BASE, HERE, PREFIX, run, wait_for
from tests.live.project import REPOSITORY

_PAGE = (REPOSITORY / "docs/backends.md").read_text()
_HBA = """
local   all      postgres           peer
hostssl pulumi   esteira  {here}/24  scram-sha-256
"""


def shown(begins: str, example: str, real: str) -> str:
    """Return the address that the page logs in with, with this place in place of its example."""
    [address] = re.findall(rf"`pulumi login '?({begins}[^'`]*)", _PAGE)
    assert example in address
    return str(address.replace(example, real))


class Backend(ABC):
    """One place for state. ``variables`` is what a job must have of it, ``secret`` what nobody may see."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=BASE))
        self.secret = f"State-{secrets.token_hex(8)}"
        self.variables: dict[str, str] = {}

    @abstractmethod
    def paths(self) -> Iterable[str]:
        """Return the paths of all that is kept."""

    @abstractmethod
    def contents(self) -> str:
        """Return all that is kept, while nothing changes it."""

    def locks(self) -> list[str]:
        """Return the paths of all locks."""
        return [path for path in self.paths() if "/.pulumi/locks/" in f"/{path}" and path.endswith(".json")]

    def close(self) -> None:
        """End it, and remove what it has kept."""
        shutil.rmtree(self.folder)


class Folder(Backend):
    """A folder."""

    def __init__(self) -> None:
        super().__init__()
        self.variables = {"PULUMI_BACKEND_URL": f"file://{self.folder}"}

    def paths(self) -> Iterable[str]:
        """Return the paths of all files."""
        return [str(path.relative_to(self.folder)) for path in self.folder.rglob("*") if path.is_file()]

    def contents(self) -> str:
        """Return all files."""
        return "\n".join((self.folder / path).read_text() for path in self.paths())


class _Server(Backend):
    """A server of the tests' own, which dies with them."""

    def start(self, command: list[str], user: str | None, **environment: str) -> None:
        log = self.folder / "log"
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                command,
                cwd=self.folder,
                env={"PATH": os.environ["PATH"], **environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                user=user,
                group=user,
                extra_groups=[] if user else None,
            )
        # For the cleaning after a killed run.
        (self.folder / "server.pid").write_text(str(self._process.pid))

    def certificate(self) -> Path:
        """Make a certificate of an authority of its own."""
        key, certificate = self.folder / "key.pem", self.folder / "certificate.pem"
        run(
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"),
            *("-days", "2", "-subj", "/CN=state", "-addext", f"subjectAltName=IP:{HERE}"),
            *("-keyout", str(key), "-out", str(certificate)),
        )
        return certificate

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        super().close()


class Postgres(_Server):
    """PostgreSQL, with a database of which the one user may do everything and nothing outside it."""

    def __init__(self) -> None:
        super().__init__()
        self._programs = max(
            Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name)
        )
        data, certificate = self.folder / "data", self.certificate()
        data.mkdir(mode=0o700)
        owner = pwd.getpwnam("postgres")
        for path in (self.folder, data, self.folder / "key.pem"):
            os.chown(path, owner.pw_uid, owner.pw_gid)
        self._as_postgres(
            "initdb", "-D", str(data), "--no-sync", "--auth=peer", "--encoding=UTF8", "--locale=C"
        )
        (data / "pg_hba.conf").write_text(_HBA.format(here=HERE))
        settings = {
            "listen_addresses": HERE,
            "unix_socket_directories": str(self.folder),
            "ssl": "on",
            "ssl_cert_file": str(certificate),
            "ssl_key_file": str(self.folder / "key.pem"),
            "fsync": "off",
        }
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        self.start([str(self._programs / "postgres"), "-D", str(data), *options], "postgres")
        wait_for(self._answers, "PostgreSQL")
        self._sql("postgres", f"CREATE ROLE esteira LOGIN PASSWORD '{self.secret}'")
        self._sql("postgres", "CREATE DATABASE pulumi OWNER esteira")
        self.variables = {
            "PULUMI_BACKEND_URL": shown("postgres://", "db.example.com", HERE),
            "PGPASSWORD": self.secret,
            "PGSSLROOTCERT": str(certificate),
        }

    def _as_postgres(self, program: str, *arguments: str, check: bool = True) -> str:
        done = subprocess.run(
            [str(self._programs / program), *arguments],
            cwd=self.folder,
            env={"PATH": os.environ["PATH"], "LC_ALL": "C"},
            user="postgres",
            group="postgres",
            extra_groups=[],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done.stdout if done.returncode == 0 else ""

    def _sql(self, database: str, text: str, *, check: bool = True) -> str:
        options = ["-h", str(self.folder), "-d", database, "-XqAt", "-F", "\t", "-c", text]
        return self._as_postgres("psql", *options, check=check)

    def _answers(self) -> bool:
        assert self._process.poll() is None, (self.folder / "log").read_text()
        return self._sql("postgres", "SELECT 1", check=False).strip() == "1"

    def paths(self) -> Iterable[str]:
        """Return the rows' keys; there is no table before the first log-in."""
        return self._sql("pulumi", "SELECT key FROM pulumi_state", check=False).splitlines()

    def contents(self) -> str:
        """Return all rows."""
        return self._sql(
            "pulumi", "SELECT encode(decode(data->>'data', 'base64'), 'escape') FROM pulumi_state"
        )


class ObjectStore(_Server):
    """moto's server, with one bucket and one user, who may do in it what is needed and nothing else."""

    def __init__(self) -> None:
        super().__init__()
        certificate = self.certificate()
        address = f"{HERE}:9000"
        self.start(
            [
                *(sys.executable, "-m", "moto.server", "-H", HERE, "-p", "9000"),
                *("-s", "-c", str(certificate), "-k", str(self.folder / "key.pem")),
            ],
            None,
            # What makes the bucket and the user needs no user; from then on every request is checked.
            INITIAL_NO_AUTH_ACTION_COUNT="4",
        )
        self._options = {"endpoint_url": f"https://{address}", "verify": str(certificate)}
        wait_for(self._answers, "the object store")
        store, users = (self._client(name, "anybody", "anything") for name in ("s3", "iam"))
        store.create_bucket(Bucket="example-state")
        users.create_user(UserName="esteira")
        allowed = {"Effect": "Allow", "Action": re.findall(r"`(s3:[A-Z]\w+)`", _PAGE), "Resource": "*"}
        users.put_user_policy(
            UserName="esteira",
            PolicyName="state",
            PolicyDocument=json.dumps({"Version": "2012-10-17", "Statement": [allowed]}),
        )
        key = users.create_access_key(UserName="esteira")["AccessKey"]
        self.secret = key["SecretAccessKey"]
        self._store = self._client("s3", key["AccessKeyId"], self.secret)
        self.variables = {
            "PULUMI_BACKEND_URL": shown(r"s3://\S+endpoint=", "s3.example.com", address),
            "AWS_ACCESS_KEY_ID": key["AccessKeyId"],
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_CA_BUNDLE": str(certificate),
        }

    def _client(self, name: str, key: str, secret: str) -> Any:
        import boto3

        return boto3.client(
            name,
            region_name="us-east-1",
            aws_access_key_id=key,
            aws_secret_access_key=secret,
            **self._options,
        )

    def _answers(self) -> bool:
        assert self._process.poll() is None, (self.folder / "log").read_text()
        with contextlib.suppress(OSError):
            ssl.get_server_certificate((HERE, 9000))
            return True
        return False

    def paths(self) -> Iterable[str]:
        """Return the objects' keys."""
        listed = self._store.list_objects_v2(Bucket="example-state")
        return [entry["Key"] for entry in listed.get("Contents", [])]

    def contents(self) -> str:
        """Return all objects."""
        bodies = [self._store.get_object(Bucket="example-state", Key=key)["Body"] for key in self.paths()]
        return "\n".join(body.read().decode() for body in bodies)


def lacking() -> Iterable[str]:
    """Name what is not installed here."""
    if not list(Path("/usr/lib/postgresql").glob("*/bin/initdb")):
        yield "PostgreSQL (Debian's package postgresql)"
    if importlib.util.find_spec("moto") is None:
        yield "moto (requirements-dev.txt)"
    if not shell.has("openssl"):
        yield "openssl"


KINDS: dict[str, type[Backend]] = {"folder": Folder, "PostgreSQL": Postgres, "object store": ObjectStore}


def make(kind: str) -> Backend:
    """Start a backend; where something is not installed and that may be, skip the test."""
    missing = [] if kind == "folder" else list(lacking())
    if missing:
        reason = f"the state's backends need {', '.join(missing)}"
        if os.environ.get("ESTEIRA_REQUIRE_LIVE") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    return KINDS[kind]()
