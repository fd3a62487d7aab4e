"""Makes a small image of a few programs from the distribution's packages: no network but the package mirror's.

The packages are fetched by apt, which checks their signatures, and laid over each other as one tar stream. Nothing is
installed: no maintainer script runs, no root's rights are needed.
"""

from __future__ import annotations

import io
import posixpath
import subprocess
import tarfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

from cli import machine, shell
from components.errors import EsteiraError

_LEFT_OUT = (
    "usr/share/doc/",
    "usr/share/man/",
    "usr/share/bash-completion/",
    "usr/share/fish/",
    "usr/share/zsh/",
    "usr/share/lintian/",
    "usr/share/initramfs-tools/",
    "usr/lib/systemd/",
    "etc/init.d/",
    "etc/default/",
)

_MERGED = ("bin", "sbin", "lib", "lib64", "lib32", "libx32")
"""Top-level folders that have become links into usr/ (Debian's merged /usr); older packages still name them."""


def fetch(programs: Sequence[str], folder: Path) -> list[Path]:
    """Fetch packages and the libraries that they need, as .deb files in ``folder``, libraries first."""
    require_debian()
    _require_known(programs)
    names = _with_libraries(programs)
    command = ["apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", *names]
    try:
        shell.run(command, timeout=300, cwd=folder)
    except shell.CommandError:
        # A list that is older than the mirror names files that are gone.
        machine.refresh_package_lists()
        names = _with_libraries(programs)
        shell.run([*command[:5], *names], timeout=300, cwd=folder)
    debs = sorted(folder.glob("*.deb"))
    return sorted(debs, key=lambda deb: deb.name.split("_")[0] in programs)


def require_debian() -> None:
    """Raise EsteiraError where this machine has no packages that could serve instead of Docker Hub."""
    if not machine.is_debian_family():
        raise EsteiraError(
            "Docker Hub cannot be reached, and this machine is not of the Debian family, whose packages could serve "
            "instead. Connect it to Docker Hub (or set a registry mirror for the Docker daemon), then try again."
        )


def _require_known(programs: Sequence[str]) -> None:
    if len(machine.known_packages(programs)) < len(programs):
        machine.refresh_package_lists()
    missing = sorted(set(programs) - set(machine.known_packages(programs)))
    if missing:
        more = " Ubuntu has it in universe: sudo add-apt-repository universe." if _is_ubuntu() else ""
        raise EsteiraError(
            f"Docker Hub cannot be reached, and this machine's package sources lack {', '.join(missing)}, "
            f"which could serve instead.{more} Mend one of the two, then try again."
        )


def _is_ubuntu() -> bool:
    return machine.os_release().get("ID") == "ubuntu"


def _with_libraries(programs: Sequence[str]) -> list[str]:
    """Name the packages and, recursively, those of their dependencies that are shared libraries."""
    wanted = list(programs)
    level = list(programs)
    while level:
        answer = shell.run(["apt-cache", "depends", "--important", *level], timeout=60).stdout
        words = [line.split() for line in answer.splitlines()]
        needed = {
            line[1]
            for line in words
            if len(line) == 2 and line[0] in {"Depends:", "PreDepends:", "|Depends:"}
        }
        level = sorted(
            name
            for name in needed - set(wanted)
            if name.startswith("lib") and not name.endswith(("-tools", "-bin"))
        )
        wanted.extend(level)
    return wanted


def write_tree(
    debs: Sequence[Path], stream: IO[bytes] | None, files: Mapping[str, bytes | str | None]
) -> None:
    """Write the packages' files and ``files`` as one tar stream.

    ``files`` maps a path to its content (bytes), to a link's target (str), or to None for a folder; an executable
    script is one that begins with ``#!``. They come before, and win over, the packages' own.
    """
    written: set[str] = set()
    with tarfile.open(fileobj=stream, mode="w|", format=tarfile.GNU_FORMAT) as out:
        for folder in _MERGED[:4]:
            _add(out, written, folder, f"usr/{folder}")
        for path, content in files.items():
            _add(out, written, path, content)
        for deb in debs:
            unpack = subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(deb)], stdout=subprocess.PIPE)
            with unpack, tarfile.open(fileobj=unpack.stdout, mode="r|") as package:
                for member in package:
                    _copy(package, member, out, written)
            if unpack.returncode != 0:
                raise EsteiraError(f"The package file {deb.name} cannot be unpacked. Try again.")


def _merged(path: str) -> str:
    path = posixpath.normpath(path).lstrip("/")
    return f"usr/{path}" if path.split("/")[0] in _MERGED else path


def _copy(package: tarfile.TarFile, member: tarfile.TarInfo, out: tarfile.TarFile, written: set[str]) -> None:
    name = _merged(member.name)
    if name in {".", *written} or name in _MERGED or f"{name}/".startswith(_LEFT_OUT):
        return
    member.name = name
    if member.islnk():
        member.linkname = _merged(member.linkname)
    written.add(name)
    out.addfile(member, package.extractfile(member) if member.isreg() else None)


def _add(out: tarfile.TarFile, written: set[str], path: str, content: bytes | str | None) -> None:
    parent = posixpath.dirname(path)
    if parent and parent not in written:
        _add(out, written, parent, None)
    entry = tarfile.TarInfo(path)
    entry.mtime = int(time.time())
    entry.mode = 0o755
    written.add(path)
    if content is None:
        entry.type = tarfile.DIRTYPE
        entry.mode = 0o1777 if path in {"tmp", "var/tmp"} else 0o755
        out.addfile(entry)
    elif isinstance(content, str):
        entry.type = tarfile.SYMTYPE
        entry.linkname = content
        out.addfile(entry)
    else:
        entry.size = len(content)
        entry.mode = 0o755 if content.startswith(b"#!") else 0o644
        out.addfile(entry, io.BytesIO(content))


def import_image(
    name: str, changes: Sequence[str], debs: Sequence[Path], files: Mapping[str, bytes | str | None]
) -> None:
    """Import packages and files (see :func:`write_tree`) as image ``name``, with Dockerfile instructions ``changes``.

    A stream that is cut off may still count as an image for Docker: give it a passing name, its own when this is done.
    """
    command = ["docker", "import", *(word for change in changes for word in ("--change", change)), "-", name]
    importing = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        with suppress(BrokenPipeError):  # Docker says why
            write_tree(debs, importing.stdin, files)
        _, err = importing.communicate(timeout=300)
    except BaseException:
        importing.kill()
        importing.wait()
        raise
    if importing.returncode != 0:
        result = subprocess.CompletedProcess(command, importing.returncode, "", err.decode(errors="replace"))
        raise shell.CommandError(shell.explain(command[:2], result))
