"""What a .dockerignore leaves out; tests/live/test_dockerignore.py asks Docker itself the same."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from components.dockerignore import DockerIgnore, ignore_file, read

TREE = (
    ".env",
    "README.md",
    "a+b.txt",
    "app/.env",
    "app/__pycache__/main.pyc",
    "app/main.py",
    "app/static/.env",
    "app/static/[x].css",
    "docs/README.md",
    "docs/deep/notes.md",
    "node_modules/one/index.js",
)
"""Files of a build context."""
CASES: dict[str, tuple[str, ...]] = {
    "": (),
    "# .env\n": (),
    ".env": (".env",),
    "/.env": (".env",),
    "./.env ": (".env",),
    "**/.env": (".env", "app/.env", "app/static/.env"),
    "*/.env": ("app/.env",),
    "*.md": ("README.md",),
    "**/*.md": ("README.md", "docs/README.md", "docs/deep/notes.md"),
    "**/*.pyc": ("app/__pycache__/main.pyc",),
    "**/__pycache__": ("app/__pycache__/main.pyc",),
    "node_modules/": ("node_modules/one/index.js",),
    "node_modules": ("node_modules/one/index.js",),
    "node": (),
    "docs/**": ("docs/README.md", "docs/deep/notes.md"),
    "docs/**/notes.md": ("docs/deep/notes.md",),
    "**/deep/**": ("docs/deep/notes.md",),
    "app/**/.env": ("app/.env", "app/static/.env"),
    "app/*": (
        "app/.env",
        "app/__pycache__/main.pyc",
        "app/main.py",
        "app/static/.env",
        "app/static/[x].css",
    ),
    "*": TREE,
    "**": TREE,
    "*\n!app": (
        ".env",
        "README.md",
        "a+b.txt",
        "docs/README.md",
        "docs/deep/notes.md",
        "node_modules/one/index.js",
    ),
    "*\n!app/main.py": tuple(path for path in TREE if path != "app/main.py"),
    "docs\n!docs/deep/*.md": ("docs/README.md",),
    "docs\n!docs/README.md\ndocs/*.md": ("docs/README.md", "docs/deep/notes.md"),
    "!.env\n.env": (".env",),
    ".env\n! .env": (),
    "README.??": ("README.md",),
    "[Rx]EADME.md": ("README.md",),
    "[^x]EADME.md": ("README.md",),
    "[a-z]EADME.md": (),
    "a.b.txt": (),
    "app/static/\\[x\\].css": ("app/static/[x].css",),
    "docs/../.env": (".env",),
    "..": (),
    "app//main.py": ("app/main.py",),
}
"""A file's text, and what of the tree it leaves out."""


def make(folder: Path, files: tuple[str, ...] = TREE) -> None:
    """Write a build context."""
    for path in files:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text("x")


class TestDockerIgnore:
    """Docker's rules, not git's: a name without a slash is one at the top."""

    @pytest.mark.parametrize("text", CASES)
    def test_what_is_left_out(self, text: str) -> None:
        ignore = DockerIgnore(text)
        assert tuple(path for path in TREE if ignore.leaves_out(path)) == CASES[text]

    def test_a_sign_that_an_older_docker_took_for_a_regular_expression_s(self) -> None:
        assert DockerIgnore("a+b.txt").leaves_out("a+b.txt")

    def test_windows_made_it(self) -> None:
        assert DockerIgnore("\ufeff.env\r\n*.md\r\n").leaves_out(".env")

    def test_what_docker_refuses_leaves_nothing_out(self) -> None:
        assert not DockerIgnore("[a").leaves_out("[a")


class TestFolders:
    """A folder that git ignores is named as one; some of it may go in all the same."""

    @pytest.mark.parametrize(
        ("text", "out"),
        [
            ("", False),
            ("node_modules", True),
            ("**/*.js", True),
            ("node_modules\n!node_modules/one", False),
            ("node_modules\n!other", True),
            ("node_modules/two", False),
        ],
    )
    def test_all_of_it(self, tmp_path: Path, text: str, out: bool) -> None:
        make(tmp_path)
        assert DockerIgnore(text).leaves_out_all_of(tmp_path, "node_modules/") is out

    def test_a_link_to_a_folder_is_a_file(self, tmp_path: Path) -> None:
        make(tmp_path)
        (tmp_path / "node_modules/link").symlink_to(tmp_path / "docs")
        os.remove(tmp_path / "node_modules/one/index.js")  # noqa: PTH107
        assert not DockerIgnore("").leaves_out_all_of(tmp_path, "node_modules/")
        assert DockerIgnore("node_modules/link").leaves_out_all_of(tmp_path, "node_modules/")


def test_the_dockerfile_s_own_goes_first(tmp_path: Path) -> None:
    assert read(ignore_file(tmp_path, tmp_path / "Dockerfile")).leaves_out("x") is False
    (tmp_path / ".dockerignore").write_text("x")
    assert read(ignore_file(tmp_path, tmp_path / "Dockerfile")).leaves_out("x")
    (tmp_path / "Dockerfile.dockerignore").write_text("y")
    assert not read(ignore_file(tmp_path, tmp_path / "Dockerfile")).leaves_out("x")
