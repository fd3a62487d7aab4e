"""What this machine is and lets us do: its kind, packages, disk, ports."""

from __future__ import annotations

import errno
import os
import shutil
import socket
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from cli import console, shell
from components.errors import EsteiraError

GIGABYTE = 1_000_000_000


def os_release(path: Path = Path("/etc/os-release")) -> dict[str, str]:
    """Read what the operating system calls itself (os-release(5)); empty where it does not say."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    pairs = (line.partition("=") for line in lines if "=" in line and not line.startswith("#"))
    return {key: value.strip().strip("\"'") for key, _, value in pairs}


def is_debian_family() -> bool:
    """Tell whether packages come by apt from Debian, Ubuntu or a derivative."""
    release = os_release()
    names = {release.get("ID", ""), *release.get("ID_LIKE", "").split()}
    return bool(names & {"debian", "ubuntu"}) and shell.has("apt-get")


def install_packages(packages: Sequence[str], purpose: str) -> None:
    """Install packages of the distribution, without a question.

    ``purpose`` ends the sentence "… is needed". Raises EsteiraError with the command to type where this user may not,
    or where this is another kind of machine.
    """
    names = " ".join(packages)
    if not is_debian_family():
        raise EsteiraError(
            f"{purpose}, and this machine is not of the Debian family, where it could be installed from here. "
            f"Install what your distribution calls {names}, then type ./esteira again."
        )
    if not shell.can_be_root():
        raise EsteiraError(
            f"{purpose}, and the user {user_name()} may not install packages here. "
            f"Type this, then ./esteira again:\n    sudo apt-get update && sudo apt-get install -y {names}"
        )
    console.step(f"Installing {names} from the distribution's packages ...")
    quiet = ["env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-q", "-o", "DPkg::Lock::Timeout=120"]
    install = [*quiet, "install", "-y", "--no-install-recommends", *packages]
    try:
        shell.run(shell.as_root([*quiet, "update"]), timeout=300)
        shell.run(shell.as_root(install), timeout=900)
    except shell.CommandError as error:
        raise EsteiraError(f"{purpose}, and it cannot be installed. {error}") from None


def refresh_package_lists() -> None:
    """Bring apt's lists up to date where this user may; otherwise the old ones have to do."""
    if shell.can_be_root():
        shell.run(shell.as_root(["apt-get", "-q", "update"]), timeout=300, check=False)


def known_packages(packages: Sequence[str]) -> list[str]:
    """Keep those of the packages that this distribution has."""
    if not shell.has("apt-cache"):
        return []
    return [
        name
        for name in packages
        if "Candidate: (none)" not in (answer := shell.run(["apt-cache", "policy", name], check=False).stdout)
        and "Candidate:" in answer
    ]


def user_name() -> str:
    """Name the user that this runs as."""
    with suppress(KeyError, ImportError, OSError):
        import pwd  # noqa: PLC0415 - absent where there are no Unix users

        return pwd.getpwuid(os.geteuid()).pw_name
    return str(os.geteuid())


def require_free_disk(path: Path, gigabytes: float, purpose: str) -> None:
    """Raise EsteiraError where the disk of ``path`` (or of its nearest parent that exists) has less free."""
    place = path
    while not place.exists() and place != place.parent:
        place = place.parent
    try:
        free = shutil.disk_usage(place).free / GIGABYTE
    except OSError:  # a folder that only root may look into: its owner will say what is wrong
        return
    if free < gigabytes:
        raise EsteiraError(
            f"The disk is nearly full: {purpose} needs about {gigabytes:g} GB on the disk of {path}, and {free:.1f} GB "
            f"are free. Free some space (df -h {place} shows it, docker system df Docker's share), then try again."
        )


def port_is_taken(address: str, port: int) -> bool:
    """Tell whether something listens on this TCP address and port already."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # Without this, a connection of a minute ago would count as a listener.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError as error:
            return error.errno == errno.EADDRINUSE
    return False


def port_holder(port: int) -> str | None:
    """Name the process that listens on a TCP port, as "nginx (process 812)"; None where it cannot be seen."""
    inodes = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with suppress(OSError):
            for line in Path(table).read_text(encoding="ascii").splitlines()[1:]:
                fields = line.split()
                if fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port:  # 0A: listening
                    inodes.add(f"socket:[{fields[9]}]")
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if any(str(handle.readlink()) in inodes for handle in (process / "fd").iterdir()):
                return f"{(process / 'comm').read_text().strip()} (process {process.name})"
    return None
