"""What travels to a server: the command's text, its stdin, and the connection.

The text holds plain values that are known at preview, one a line, and so is all that a preview or an error shows. The
program, the digest and every secret travel by stdin. Both come from pure functions here, quoted once, at the end.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import shlex
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

SERVER_FILES = (
    "common.sh",
    "history.sh",
    "image.sh",
    "health.sh",
    "release.sh",
    "recreate.sh",
    "edge.sh",
    "blue_green.sh",
    "rollout.sh",
    "read.sh",
    "status.sh",
    "remove.sh",
    "main.sh",
)
"""The shell program's files in components/server, in the order in which they are put together."""

SHELL = "sh -s --"

_PROGRAM_BEGINS = "# esteira"
_BEHIND_THE_PASSWORD = (
    f'while IFS= read -r line; do [ "$line" = "{_PROGRAM_BEGINS}" ] && exec {SHELL} "$@"; done; exit 1'
)
"""What root's shell does first where a password is set. Whether sudo reads one depends on its rules, on what it still
remembers and on PAM, and cannot be asked beforehand: a password that it left would be the program's first line, which
a shell prints, or runs."""


def command_text(phase: str, values: Iterable[tuple[str, str]], *rest: Sequence[str]) -> str:
    """Return the text of a remote command: the phase, then one argument a line.

    ``values`` become ``key=value``; each sequence in ``rest`` follows behind a ``--`` of its own (docker create
    options, then the container's command).
    """
    lines = [shlex.quote(f"{key}={value}") for key, value in values]
    for group in rest:
        lines += ["--", *map(shlex.quote, group)]
    return " \\\n  ".join([f"{SHELL} {phase}", *lines])


@dataclass(frozen=True)
class Payload:
    """What a phase gets by stdin beside the program; every field may be secret."""

    image: str = ""
    """``repo@sha256:…``, or empty where the phase needs none."""
    fingerprint: str = ""
    request: str = ""
    """Who deploys, since when and why. It is here and not in the text so that a preview of a changed setting shows that
    setting alone; a new request still runs the command again."""
    registry_user: str = ""
    registry_password: str = field(default="", repr=False)
    secret_environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    secret_files: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Absolute path in the container to content."""
    read_only: bool = False
    """The container's root file system is read-only: files then need a volume for each of their folders."""


def standard_input(payload: Payload, sudo: bool = False, sudo_password: str | None = None) -> str:
    """Return the whole stdin of a phase.

    It is one compound command, from ``{`` to ``}``: a shell parses that to its end before it runs any of it, so a
    connection that is cut on the way runs nothing.
    """
    program = compound(payload, _unpacking(_packed(_program())))
    return _as_root(program, sudo_password) if sudo else program


def compound(payload: Payload, program: str | None = None) -> str:
    """Return the shell program as one compound command with its payload, to be read; what is sent is packed."""
    return "{\n" + _assignments(payload) + (program or _program()) + '\nmain "$@"\nexit\n}\n'


@cache
def _packed(program: str) -> str:
    """Return the program as base64 of gzip, a third of its size: the engine and its plugin go through it many times.

    The state holds several copies for each server. The packer is pinned and the same everywhere: Python's own zlib is
    the system's, and another one would write other bytes, which is a change of every command.
    """
    import deflate  # noqa: PLC0415 - not needed to read settings

    return base64.b64encode(deflate.gzip_compress(_without_comments(program).encode(), 9)).decode()


def _unpacking(packed: str) -> str:
    return (
        f"program=$(printf %s {packed} | base64 -d | gzip -dc) || {{\n"
        "  echo 'error: base64 and gzip are needed on this server. Install them there, as root: apt-get install "
        "coreutils gzip' >&2\n"
        "  exit 1\n"
        "}\n"
        'eval "$program"'
    )


def fingerprint(*parts: object) -> str:
    """Return 64 hexadecimal digits for all settings that make a container what it is, secrets included."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def secret_file_folders(paths: Iterable[str]) -> list[str]:
    """Return the folders of secret files, each of which a read-only container needs as a volume."""
    return sorted({str(PurePosixPath(path).parent) for path in paths})


def _program() -> str:
    folder = Path(__file__).parent / "server"
    return "\n".join((folder / name).read_text(encoding="utf-8") for name in SERVER_FILES)


def _without_comments(program: str) -> str:
    """Leave out comment lines and blank ones, a quarter of the program."""
    lines = program.split("\n")
    return "\n".join(line for line in lines if line.strip() and not line.lstrip().startswith("#"))


def _assignments(payload: Payload) -> str:
    names = sorted(payload.secret_environment)
    values = {
        "image": payload.image,
        "fingerprint": payload.fingerprint,
        "request": payload.request,
        "registry_user": payload.registry_user,
        "registry_password": payload.registry_password,
        "secret_names": " ".join(f"--env={name}" for name in names),
    }
    lines = [f"{name}={shlex.quote(value)}" for name, value in values.items()]
    exports = [f"  export {name}={shlex.quote(payload.secret_environment[name])}" for name in names]
    lines += ["export_secrets() {", "  :", *exports, "}"]
    copies = [
        f'  copy_secret_file_archive "$1" {shlex.quote(folder)} {shlex.quote(archive)} || return 1'
        for folder, archive in _archives(payload)
    ]
    lines += ["copy_secret_files() {", "  :", *copies, "}", ""]
    return "\n".join(lines)


def _archives(payload: Payload) -> list[tuple[str, str]]:
    """Return (folder in the container, base64 of a tar) for the secret files.

    Mode 0444 as for Docker's own secrets: the application's user is not known here.
    """
    if not payload.secret_files:
        return []
    import tarfile  # noqa: PLC0415 - it takes as long to load as the rest of this package's own modules

    groups: dict[str, dict[str, str]] = {}
    for path, content in sorted(payload.secret_files.items()):
        folder = str(PurePosixPath(path).parent) if payload.read_only else "/"
        groups.setdefault(folder, {})[str(PurePosixPath(path).relative_to(folder))] = content
    archives = []
    for folder, files in groups.items():
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            for name, content in files.items():
                data = content.encode()
                entry = tarfile.TarInfo(name)
                entry.size, entry.mode = len(data), 0o444
                archive.addfile(entry, io.BytesIO(data))
        archives.append((folder, base64.b64encode(buffer.getvalue()).decode()))
    return archives


def _as_root(program: str, password: str | None) -> str:
    """Return a stdin that runs the program by sudo; printf is the shell's own, so the password is in no argument."""
    quoted = shlex.quote(program)
    if password is None:
        # Asked for the very program that is run: a user may be allowed only that without a password.
        run = (
            "elif ! sudo -n sh -c : 2>/dev/null; then\n"
            '  echo "error: sudo asks for a password on this server. Set it: pulumi config set --secret '
            'esteira:sudoPassword; or allow this user sudo without one." >&2\n'
            "  exit 1\n"
            "else\n"
            f'  printf \'%s\' "$program" | sudo -n {SHELL} "$phase" "client=$client" "$@"\n'
        )
    else:
        run = (
            "else\n"
            "  { printf '%s\\n' "
            + shlex.quote(password)
            + f" '{_PROGRAM_BEGINS}'; printf '%s' \"$program\"; }} | "
            f'sudo -S -p \'\' sh -c {shlex.quote(_BEHIND_THE_PASSWORD)} sh "$phase" "client=$client" "$@"\n'
        )
    return (
        "{\n"
        f"program={quoted}\n"
        "phase=$1\n"
        "shift\n"
        # sudo clears SSH_CONNECTION, from which the lock's holder is named.
        "client=${SSH_CONNECTION%% *}\n"
        "if ! command -v sudo >/dev/null 2>&1; then\n"
        "  echo 'error: sudo is not installed on this server. Set sudo: false for a user that may use Docker.' >&2\n"
        "  exit 1\n"
        f"{run}"
        "fi\n"
        "exit\n"
        "}\n"
    )
