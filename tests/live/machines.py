"""Servers for the tests: small machines made of namespaces, each with its own network, sshd and Docker daemon.

A machine is a network namespace on a bridge of the tests' own, and a mount namespace whose root is this machine's root
file system with everything that is written laid over it in memory: its own users, /run, /etc, sudo, /var/lib/docker. So
nothing that a test does there is seen here, except in the process list, which is shared on purpose.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import http.client
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from rehearsal.image import is_late
from tests.live.standstill import usable_time

_PROCESS = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
ROOM = (int(os.environ.get("ESTEIRA_LIVE_ROOM", "0")) + _PROCESS) % 10
"""Which room of this machine is used, 0 to 9: test runs in different rooms do not wait for each other.

Of several processes of one run (tests/side_by_side.py) each takes the next one.
"""
BRIDGE = f"esteira-live{ROOM}"
NETWORK = f"10.213.{ROOM}"
HERE = f"{NETWORK}.1"
"""The bridge's and this machine's address on it; nothing else on this machine is in the room's network."""

NAMESPACE_PREFIX = f"esteira-live{ROOM}-"
PREFIX = f"esteira-live{ROOM}."
BASE = Path("/var/tmp")
PASSWORD = f"Pa55-{secrets.token_hex(8)}"
"""Password of every user on every machine, another in every run: a marker, looked for where it must not be."""


def run(
    *argv: str,
    check: bool = True,
    stdin: str | None = None,
    timeout: float = 120,
    env: dict[str, str] | None = None,
) -> str:
    """Run a program here; its output, or an error that shows what it said."""
    done = subprocess.run(
        argv,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=timeout,
        env=env,
        check=False,
        stdin=subprocess.DEVNULL if stdin is None else None,
    )
    if check and done.returncode != 0:
        raise AssertionError(f"{' '.join(argv)} failed with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout


def wait_for(condition: Callable[[], object], what: str, seconds: float = 60, interval: float = 0.05) -> None:
    """Wait until ``condition`` holds. Time in which the whole machine stood still does not count."""
    end = usable_time() + seconds
    while not condition():
        if usable_time() > end:
            raise AssertionError(f"waited {seconds} s for {what}")
        time.sleep(interval)


_ROOT_SCRIPT = """
set -e
cd "$1"
mount -t tmpfs tmpfs over
mkdir over/upper over/work
mount -t overlay overlay -o lowerdir=/,upperdir=over/upper,workdir=over/work root
for one in proc sys dev; do mount --rbind "/$one" "root/$one"; done
for one in run tmp var/tmp; do mount -t tmpfs tmpfs "root/$one"; done
chmod 1777 root/tmp root/var/tmp
hostname "$0"
# The daemon makes its identity from this; two machines must not be one.
rm -f root/etc/docker/key.json root/etc/machine-id root/etc/resolv.conf
# sudo looks its own name up, and there is no name server to wait for.
printf '127.0.0.1 localhost %s\n' "$0" > root/etc/hosts
mount -t tmpfs -o mode=1777 tmpfs root/dev/shm
mkdir -p root/run/sshd root/run/lock root/var/lib/docker
ln -sfn /run root/var/run
mount -t tmpfs tmpfs root/root
chmod 700 root/root
mount --bind docker root/var/lib/docker
mkdir root/tmp/old
cd root
pivot_root . tmp/old
umount -l /tmp/old
exec 3>&-
touch /run/ready
exec sleep infinity
"""

_SHIM = """#!/bin/sh
# Writes down every docker command of this machine, one record a call, then runs it.
{ printf '%s\\037' "$@"; printf '\\036'; } >> /run/docker-calls
exec @client@ "$@"
"""

_SSHD = """
Port 22
Port 2222
HostKey /etc/ssh/ssh_host_ed25519_key
PermitRootLogin yes
PasswordAuthentication yes
KbdInteractiveAuthentication no
UsePAM no
UseDNS no
StrictModes no
AuthorizedKeysFile /etc/ssh/keys/%u
PidFile /run/sshd.pid
LogLevel VERBOSE
MaxStartups 100
AllowTcpForwarding yes
Subsystem sftp internal-sftp
"""

USERS = {"deploy": "NOPASSWD: ALL", "careful": "ALL", "powerless": ""}
"""User -> what sudo lets him do: ``deploy`` without a password, ``careful`` with his own, ``powerless`` nothing."""


@dataclass
class Machine:
    """One machine: its address, what is pinned and used to log in, and ways to look at it from outside."""

    name: str
    host: str
    folder: Path
    password: str = PASSWORD
    port: int = 22
    host_key: str = ""
    private_key: str = ""
    init: int = 0
    environment: dict[str, str] = field(default_factory=dict)
    _children: list[subprocess.Popen[bytes]] = field(default_factory=list)

    # Making and ending.

    def start(self, *, disk_megabytes: int | None = None, sshd: bool = True) -> None:
        """Start the namespaces; the daemons come up meanwhile, :meth:`wait_until_up` waits for them."""
        for folder in ("over", "root", "docker"):
            (self.folder / folder).mkdir(parents=True, exist_ok=True)
        _network(self.name, self.host)
        if disk_megabytes is not None:
            disk = self.folder / "disk"
            with disk.open("wb") as file:
                file.truncate(disk_megabytes * 1024 * 1024)
            run("mkfs.ext4", "-q", "-F", "-m", "0", str(disk))
        script = _ROOT_SCRIPT
        if disk_megabytes is not None:
            script = script.replace("mount --bind docker root", "mount -o loop disk root")
        enter = ["nsenter", f"--net=/run/netns/{NAMESPACE_PREFIX}{self.name}"]
        unshare = ["unshare", "--mount", "--uts", "--propagation", "private"]
        init = self._spawn([*enter, *unshare, "sh", "-c", script, self.name, str(self.folder)], "init")
        self.init = init.pid
        wait_for(lambda: self.path("run/ready").exists() or init.poll() is not None, f"machine {self.name}")
        if init.poll() is not None:
            raise AssertionError(f"machine {self.name} did not start:\n{self.log('init')}")
        self._users()
        client = next(
            path for path in ("/usr/bin/docker", shutil.which("docker")) if path and Path(path).exists()
        )
        shim = self.path("usr/local/bin/docker")
        shim.unlink(missing_ok=True)
        shim.write_text(
            _SHIM.replace(
                "@client@", client if client != "/usr/local/bin/docker" else "/usr/local/bin/docker.real"
            )
        )
        shim.chmod(0o755)
        self.path("run/docker-calls").touch(mode=0o666)
        self.path("run/docker-calls").chmod(0o666)
        self.restart_daemon(wait=False)
        if sshd:
            self._sshd()

    def _users(self) -> None:
        hashed = run("openssl", "passwd", "-6", self.password).strip()
        shadow = re.sub(r"(?m)^root:[^:]*:", f"root:{hashed}:", self.path("etc/shadow").read_text())
        passwd, group = self.path("etc/passwd").read_text(), self.path("etc/group").read_text()
        sudoers = ""
        for number, (user, rights) in enumerate(USERS.items(), start=4201):
            passwd += f"{user}:x:{number}:{number}::/home/{user}:/bin/sh\n"
            group += f"{user}:x:{number}:\n"
            shadow += f"{user}:{hashed}:19000:0:99999:7:::\n"
            home = self.path(f"home/{user}")
            home.mkdir(parents=True, exist_ok=True)
            os.chown(home, number, number)
            sudoers += f"{user} ALL=(ALL) {rights}\n" if rights else ""
        self.path("etc/passwd").write_text(passwd)
        self.path("etc/group").write_text(group)
        self.path("etc/shadow").write_text(shadow)
        rules = self.path("etc/sudoers.d/live")
        if rules.parent.is_dir():
            rules.write_text(sudoers)
            rules.chmod(0o440)

    def _sshd(self) -> None:
        keys = self.path("etc/ssh")
        for kind in ("host", "user"):
            run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(self.folder / kind))
        for old in keys.glob("ssh_host_*"):
            old.unlink()
        shutil.copy(self.folder / "host", keys / "ssh_host_ed25519_key")
        (keys / "ssh_host_ed25519_key").chmod(0o600)
        self.host_key = " ".join((self.folder / "host.pub").read_text().split()[:2])
        self.private_key = (self.folder / "user").read_text()
        (keys / "keys").mkdir()
        for user in ("root", *USERS):
            shutil.copy(self.folder / "user.pub", keys / "keys" / user)
        (keys / "sshd_live").write_text(_SSHD)
        self._inside(["/usr/sbin/sshd", "-D", "-f", "/etc/ssh/sshd_live", "-E", "/run/sshd.log"], "sshd")

    def wait_until_up(self) -> None:
        """Wait for Docker and sshd."""
        wait_for(
            lambda: self.docker("version", "--format", "{{.Server.Version}}", check=False),
            f"Docker on {self.name}",
            120,
        )
        if self.host_key:
            wait_for(self._sshd_answers, f"sshd on {self.name}")

    def _sshd_answers(self) -> bool:
        try:
            with socket.create_connection((self.host, 22), 1):
                return True
        except OSError:
            return False

    def stop(self) -> None:
        """End everything in it and give its resources back."""
        end_namespace(NAMESPACE_PREFIX + self.name)
        for child in self._children:
            child.kill()
            child.wait()
        remove_folder(self.folder)

    # Looking and doing.

    def path(self, inside: str) -> Path:
        """Where this machine's file can be reached from here."""
        return Path(f"/proc/{self.init}/root") / inside.lstrip("/")

    @property
    def docker_host(self) -> str:
        """Address of its Docker daemon, for DOCKER_HOST here; commands by it are not counted."""
        return f"unix://{self.path('run/docker.sock')}"

    def docker(self, *argv: str, check: bool = True, stdin: str | None = None, timeout: float = 120) -> str:
        """Run a docker command against its daemon from here, uncounted.

        A registry that answers too late is asked up to twice more: the daemon gives it 15 s, and a machine that is
        shared may stand still for longer.
        """
        environment = {**os.environ, "DOCKER_HOST": self.docker_host, **self.environment}
        for tries_left in (2, 1, 0):
            try:
                return run(
                    "docker", *argv, check=check, stdin=stdin, timeout=timeout, env=environment
                ).strip()
            except AssertionError as error:  # noqa: PERF203 - a docker command takes longer than that
                if not (tries_left and is_late(str(error))):
                    raise
                print(f"{error}\n... once more", flush=True)
        raise AssertionError("unreachable")

    def inspect(self, name: str) -> dict[str, Any]:
        """Read what Docker says of a container."""
        found: list[dict[str, Any]] = json.loads(self.docker("inspect", name))
        return found[0]

    def containers(self, *filters: str) -> list[str]:
        """Names of all its containers, stopped ones too."""
        options = [word for one in filters for word in ("--filter", one)]
        return self.docker("ps", "-a", *options, "--format", "{{.Names}}").split()

    def sh(self, script: str, *, check: bool = True, user: str = "root", timeout: float = 120) -> str:
        """Run a shell script on it, as a login would."""
        login = ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups"] if user != "root" else []
        return run(*self._enter(), *login, "sh", "-c", script, check=check, timeout=timeout).strip()

    def calls(self) -> list[list[str]]:
        """Every docker command that ran on it since :meth:`forget_calls`, as lists of arguments."""
        records = self.path("run/docker-calls").read_text(errors="replace").split("\x1e")
        return [record.split("\x1f")[:-1] for record in records if record]

    def forget_calls(self) -> None:
        """Begin to count anew."""
        with self.path("run/docker-calls").open("w"):
            pass

    def http_get(self, port: int, path: str = "/", *, timeout: float = 5) -> tuple[int, str]:
        """Ask its published port from here: (status, body)."""
        connection = http.client.HTTPConnection(self.host, port, timeout=timeout)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode("utf-8", "replace")
        finally:
            connection.close()

    def answers(self, port: int, path: str = "/") -> str | None:
        """Give the body, or None where nobody answers, or not to the end; silence is given a second chance."""
        for _ in range(2):
            with contextlib.suppress(OSError, http.client.HTTPException):
                try:
                    return self.http_get(port, path)[1]
                except TimeoutError:
                    continue
            break
        return None

    def processes(self) -> list[str]:
        """Command lines of all processes in its network namespace."""
        found = []
        for pid in run("ip", "netns", "pids", NAMESPACE_PREFIX + self.name).split():
            with contextlib.suppress(OSError):
                found.append(
                    Path(f"/proc/{pid}/cmdline")
                    .read_bytes()
                    .replace(b"\0", b" ")
                    .decode("utf-8", "replace")
                    .strip()
                )
        return found

    def sshd_log(self) -> str:
        """Read what its sshd wrote."""
        log = self.path("run/sshd.log")
        return log.read_text(errors="replace") if log.exists() else ""

    def log(self, name: str) -> str:
        """Read what one of its daemons wrote."""
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def add_address(self, address: str) -> None:
        """Give it one more address, such as ``fd00::2/64``."""
        run("ip", "-n", NAMESPACE_PREFIX + self.name, "addr", "add", address, "dev", "eth0", "nodad")

    def kill_daemon(self) -> None:
        """Kill dockerd at once, as a crash would."""
        pid = int(self.path("run/docker.pid").read_text())
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: not _alive(pid), f"the end of dockerd on {self.name}")
        # Its containerd dies with it. Where nobody reaps that process, the next dockerd would take it for alive.
        file = self.path("run/docker/containerd/containerd.pid")
        if file.exists():
            containerd = int(file.read_text())
            wait_for(lambda: not _alive(containerd), f"the end of containerd on {self.name}")
            file.unlink()

    def restart_daemon(self, *more: str, wait: bool = True) -> None:
        """Start dockerd, with ``more`` options for this time."""
        self.path("run/docker.pid").unlink(missing_ok=True)
        # With http:// in front the daemon's BuildKit takes it too, for its cache; without only push and pull do.
        options = [
            "--insecure-registry",
            f"http://{HERE}:5000",
            "--log-level",
            "warn",
            "--shutdown-timeout",
            "2",
        ]
        self._inside(["dockerd", *options, *more], "dockerd")
        if wait:
            self.wait_until_up()

    def wipe(self, *, keep_images: Sequence[str] = ()) -> None:
        """Make it as new: nothing that a deployment wrote, no image but ``keep_images``."""
        found = self.docker("ps", "-aq").split()
        if found:
            self.docker("rm", "-f", "-v", *found)
        for kind in ("volume", "network"):
            self.docker(kind, "prune", "-f")
        volumes = self.docker("volume", "ls", "-q").split()
        if volumes:
            self.docker("volume", "rm", *volumes)
        images = self.docker("image", "ls", "--format", "{{.Repository}}:{{.Tag}} {{.ID}}").splitlines()
        gone = {line.split()[1] for line in images if line.split()[0] not in keep_images}
        kept = {line.split()[1] for line in images if line.split()[0] in keep_images}
        if gone - kept:
            self.docker("rmi", "-f", *sorted(gone - kept))
        self.sh(
            "rm -rf /var/lib/esteira* /run/esteira* /run/lock/esteira* /tmp/esteira* ~root/.docker /home/*/.docker "
            "~root/.esteira /home/*/.esteira; "
            ": > /run/sshd.log"
        )
        self.forget_calls()

    # Insides.

    def _enter(self) -> list[str]:
        enter = ["nsenter", "-t", str(self.init), "-m", "-n", "-u", "--"]
        return [*enter, "env", "-i", "HOME=/root", "USER=root", f"PATH={_PATH}"]

    def _inside(self, argv: Sequence[str], log: str) -> subprocess.Popen[bytes]:
        return self._spawn([*self._enter(), *argv], log)

    def _spawn(self, argv: Sequence[str], log: str) -> subprocess.Popen[bytes]:
        with (self.folder / f"{log}.log").open("ab") as file:
            child = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
            )
        self._children.append(child)
        return child


_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Room:
    """The place where the machines of one test run live; one run at a time in a room."""

    def __init__(self, lock: IO[str]) -> None:
        self._lock = lock
        self.folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=BASE))
        self.machines: list[Machine] = []
        self._closed = False
        run("ip", "link", "add", BRIDGE, "type", "bridge")
        run("ip", "addr", "add", f"{HERE}/24", "dev", BRIDGE)
        run("ip", "link", "set", BRIDGE, "up")
        # Where Docker has set bridged traffic under the firewall and its default to DROP, machines could not talk.
        run("iptables", "-w", "-I", "FORWARD", "-i", BRIDGE, "-o", BRIDGE, "-j", "ACCEPT")

    @classmethod
    def open(cls) -> Room:
        """Wait for the room to be free, remove what a killed run left, and set it up."""
        lock = (BASE / f"esteira-live{ROOM}.lock").open("w")
        fcntl.flock(lock, fcntl.LOCK_EX)
        clean()
        room = cls(lock)
        atexit.register(room.close)
        return room

    def machine(
        self, name: str, number: int, *, disk_megabytes: int | None = None, sshd: bool = True
    ) -> Machine:
        """Start a machine with address ``NETWORK.number``; it is not up yet."""
        made = Machine(name, f"{NETWORK}.{number}", self.folder / name)
        made.folder.mkdir()
        self.machines.append(made)
        made.start(disk_megabytes=disk_megabytes, sshd=sshd)
        return made

    def black_hole(self, number: int) -> str:
        """Make an address that takes every packet and answers none; another test may have made it already."""
        name = f"hole{number}"
        netns = f"{NAMESPACE_PREFIX}{name}"
        if Path("/run/netns", netns).exists():
            return f"{NETWORK}.{number}"
        _network(name, f"{NETWORK}.{number}")
        run("ip", "netns", "exec", netns, "iptables", "-w", "-P", "INPUT", "DROP")
        return f"{NETWORK}.{number}"

    def close(self) -> None:
        """End all machines and remove every trace."""
        if self._closed:
            return
        self._closed = True
        with ThreadPoolExecutor() as pool:
            list(pool.map(Machine.stop, self.machines))
        clean()
        self._lock.close()


def _network(name: str, address: str) -> None:
    """Make a namespace with one interface on the bridge."""
    netns, veth = NAMESPACE_PREFIX + name, f"esl{ROOM}-{name}"[:15]
    run("ip", "netns", "add", netns)
    run("ip", "link", "add", veth, "type", "veth", "peer", "name", "eth0", "netns", netns)
    run("ip", "link", "set", veth, "master", BRIDGE, "up")
    for argv in (
        ["addr", "add", f"{address}/24", "dev", "eth0"],
        ["link", "set", "eth0", "up"],
        ["link", "set", "lo", "up"],
    ):
        run("ip", "-n", netns, *argv)
    run("ip", "-n", netns, "route", "add", "default", "via", HERE)


def clean() -> None:
    """Remove what this or a killed run left: processes, namespaces, the bridge, folders."""
    for line in run("ip", "netns", "list").splitlines():
        name = line.split()[0]
        if name.startswith(NAMESPACE_PREFIX):
            end_namespace(name)
    while (
        subprocess.run(
            ["iptables", "-w", "-D", "FORWARD", "-i", BRIDGE, "-o", BRIDGE, "-j", "ACCEPT"],
            capture_output=True,
            check=False,
        ).returncode
        == 0
    ):
        pass
    run("ip", "link", "del", BRIDGE, check=False)
    for folder in (found for found in BASE.glob(f"{PREFIX}*") if found.is_dir()):
        for pid in folder.glob("*.pid"):
            with contextlib.suppress(OSError, ValueError):
                os.kill(int(pid.read_text()), signal.SIGKILL)
        remove_folder(folder)


def end_namespace(name: str) -> None:
    """Kill every process of a machine, those in its containers too, and remove its network namespace."""
    for _ in range(5):
        pids = {int(pid) for pid in run("ip", "netns", "pids", name, check=False).split()}
        pids |= set(_descendants(pids))
        if not pids:
            break
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(AssertionError):
            wait_for(lambda pids=pids: not any(_alive(pid) for pid in pids), "killed processes", 5)  # type: ignore[misc]
    run("ip", "netns", "del", name, check=False)


def _descendants(parents: set[int]) -> Iterator[int]:
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, IndexError):
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(entry.name))
    todo = list(parents)
    while todo:
        for child in children.get(todo.pop(), []):
            yield child
            todo.append(child)


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def remove_folder(folder: Path) -> None:
    """Unmount what is mounted below and remove it."""
    mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    for mount in sorted(mounts, reverse=True):
        if mount.startswith(f"{folder}/"):
            run("umount", "-l", mount, check=False)
    for _ in range(20):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(0.1)


__all__ = ["HERE", "PASSWORD", "Machine", "Room", "run", "wait_for"]
