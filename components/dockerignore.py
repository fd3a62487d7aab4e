"""What a .dockerignore leaves out of a build, by Docker's own rules; the package that has them needs a newer Python."""

from __future__ import annotations

import os
import posixpath
import re
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


class DockerIgnore:
    """The lines of one file: the last that matches a path, or a folder above it, decides."""

    def __init__(self, text: str) -> None:
        self._lines: list[tuple[bool, re.Pattern[str]]] = []
        for line in text.removeprefix("\ufeff").splitlines():
            pattern = line.strip()
            if line.startswith("#") or not pattern:
                continue
            takes_back = pattern.startswith("!")
            pattern = posixpath.normpath(pattern.removeprefix("!").strip()).lstrip("/")
            if pattern not in {"", "."}:
                self._lines.append((takes_back, _compiled(pattern)))

    @property
    def takes_back(self) -> bool:
        """Whether a file may go in though its folder is left out."""
        return any(takes_back for takes_back, _ in self._lines)

    def leaves_out(self, path: str) -> bool:
        """Whether a path, as seen from the context, is left out of the build."""
        steps = path.strip("/").split("/")
        above = ["/".join(steps[:end]) for end in range(1, len(steps) + 1)]
        out = False
        for takes_back, pattern in self._lines:
            if takes_back == out and any(pattern.fullmatch(folder) for folder in above):
                out = not takes_back
        return out

    def leaves_out_all_of(self, context: Path, path: str) -> bool:
        """Whether nothing of a file or folder goes into the build."""
        if self.leaves_out(path) and not self.takes_back:
            return True
        folder = context / path
        if folder.is_symlink() or not folder.is_dir():
            return self.leaves_out(path)
        return all(
            self.leaves_out(os.path.relpath(os.path.join(where, name), context))  # noqa: PTH118 - of thousands
            for where, folders, files in os.walk(folder)
            # os.walk does not follow a link to a folder, which is an entry like a file.
            for name in [*files, *(one for one in folders if os.path.islink(os.path.join(where, one)))]  # noqa: PTH114, PTH118
        )


def ignore_file(context: Path, dockerfile: Path) -> Path:
    """Return the file that BuildKit reads, whether it is there or not: the Dockerfile's own goes first."""
    own = dockerfile.with_name(f"{dockerfile.name}.dockerignore")
    return own if own.is_file() else context / ".dockerignore"


def read(file: Path) -> DockerIgnore:
    """Return what a file says; one that is not there leaves nothing out."""
    return DockerIgnore(file.read_text(encoding="utf-8", errors="replace") if file.is_file() else "")


@cache
def _compiled(pattern: str) -> re.Pattern[str]:
    """Translate one pattern as moby/patternmatcher does; one that Docker refuses matches nothing."""
    made, rest = "", pattern
    while rest:
        if rest.startswith("**"):
            rest = rest[2:].removeprefix("/")
            made += "(.*/)?" if rest else ".*"
        elif rest[0] == "*":
            made, rest = made + "[^/]*", rest[1:]
        elif rest[0] == "?":
            made, rest = made + "[^/]", rest[1:]
        elif rest[0] == "\\" and len(rest) > 1:
            made, rest = made + re.escape(rest[1]), rest[2:]
        elif rest[0] in "[]^-":
            made, rest = made + rest[0], rest[1:]
        else:
            made, rest = made + re.escape(rest[0]), rest[1:]
    try:
        return re.compile(made)
    except re.error:
        return re.compile(r"(?!)")
