"""What git says of the build context: which commit is deployed, and whether its image is built here or looked up.

An image carries the name of a commit, so it may only be built from that commit's own tree. Every other commit's image
is looked up in the registry, never built.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from . import dockerignore
from .errors import EsteiraError
from .settings import Mistake, Settings

FULL_SHA = re.compile(r"[0-9a-f]{40}")
GIT_SECONDS = 60.0
SHOWN_FILES = 10
IGNORED_FILES = 4
DIRTY_DIGITS = 12
PRIVATE_FOLDER = ".esteira"


class SourceError(EsteiraError):
    """The commit or the build context that the settings name cannot be used."""


class _GitProblemError(Exception):
    """Why git cannot say what is checked out: one finished sentence, and what to do in another."""


@dataclass(frozen=True)
class Source:
    """The commit that is deployed and where its image comes from."""

    commit: str
    """All 40 digits of the commit's sha."""
    tag: str
    """The image's tag: the commit, or ``COMMIT-dirty-XXXXXXXXXXXX`` with digits made from the changed content."""
    dirty: bool
    """Whether the tree that is built differs from the commit."""
    build: bool
    """Whether the image is built here; otherwise it is looked up in the registry."""
    reason: str
    """Why it is built or looked up: a clause that goes after "because"."""
    changed: tuple[str, ...] = ()
    """The files that make the tree dirty, as paths in the repository."""


@dataclass(frozen=True)
class _Checkout:
    top: Path
    head: str
    shallow: bool


def inspect(settings: Settings) -> Source:
    """Find the commit to deploy and decide whether it is built.

    It is built when it is the checked-out HEAD of the repository that holds the build context and `promote` is off.
    Then the context and the Dockerfile are checked too, and the tree is compared with the commit.

    Raises:
        SourceError: no commit can be told, the context cannot be built, or the tree is dirty and may not be.
    """
    try:
        return _inspect(settings)
    except _GitProblemError as error:
        raise SourceError(f"What is checked out cannot be told: {error}") from None


def _inspect(settings: Settings) -> Source:
    context = settings.root / settings.image.context
    declared = settings.commit.lower() if settings.commit is not None else None
    problem: str | None = None
    checkout: _Checkout | None = None
    try:
        checkout = _checkout(context if context.is_dir() else settings.root)
    except _GitProblemError as error:
        problem = str(error)

    commit = _complete(settings, declared, checkout, problem)
    if settings.promote:
        return Source(commit, commit, dirty=False, build=False, reason="promote is on, which never builds")
    if checkout is None:
        return Source(commit, commit, dirty=False, build=False, reason=f"it cannot be built here: {problem}")
    if commit != checkout.head:
        reason = f"it is not the commit that is checked out here ({checkout.head[:12]})"
        return Source(commit, commit, dirty=False, build=False, reason=reason)

    dockerfile = _check_context(settings, context)
    changed = _changed(settings, checkout, context, dockerfile)
    if not changed:
        return Source(commit, commit, dirty=False, build=True, reason="it is checked out here")
    if not settings.allow_dirty:
        raise SourceError(
            f"What would be built is not commit {commit[:12]}: {_listed(changed)} in the build context. "
            "Commit the change, or undo it; a file that does not belong there goes into .gitignore and .dockerignore. "
            f"{_file(settings)} does not allow a dirty tree; to allow it, write:\n  esteira:allowDirty: "
            "true"
        )
    tag = f"{commit}-dirty-{_content(checkout.top, changed)}"
    reason = f"it is checked out here, with changes that are not committed: {_listed(changed)}"
    return Source(commit, tag, dirty=True, build=True, reason=reason, changed=tuple(changed))


def _file(settings: Settings) -> str:
    return f"Pulumi.{settings.stack}.yaml"


def _mistake(settings: Settings, key: str, what: str, lines: str) -> SourceError:
    return SourceError(str(Mistake(key, _file(settings), what, tuple(lines.split("\n")))))


# The commit


def _complete(
    settings: Settings, declared: str | None, checkout: _Checkout | None, problem: str | None
) -> str:
    """Return all 40 digits of the commit to deploy."""
    wanted = "esteira:commit: SHA   (all 40 digits of the commit to deploy)"
    if declared is None:
        if checkout is None:
            raise _mistake(
                settings,
                "commit",
                f"none is declared, and git cannot say which one is here: {problem}",
                wanted,
            )
        return checkout.head
    if FULL_SHA.fullmatch(declared):
        return declared
    if checkout is None:
        raise _mistake(
            settings, "commit", f"{declared} is short, and git cannot complete it: {problem}", wanted
        )
    found = list(_commits_with_prefix(checkout.top, declared))
    if len(found) == 1:
        return found[0]
    if found:
        candidates = "\n".join(f"esteira:commit: {sha}" for sha in found[:SHOWN_FILES])
        what = f"{declared} is the beginning of {len(found)} commits. Name one of them with all its digits."
        raise _mistake(settings, "commit", what, candidates)
    hint = (
        "This is a shallow clone, which knows few commits (`git fetch --unshallow`; in a GitLab job "
        "GIT_DEPTH: 0)."
        if checkout.shallow
        else "Is it on a branch that was not fetched (`git fetch --all`)?"
    )
    what = (
        f"{declared} does not begin a commit that is known here. {hint} With all digits it is used as it is."
    )
    raise _mistake(settings, "commit", what, wanted)


def _commits_with_prefix(top: Path, prefix: str) -> Iterator[str]:
    names = _git(top, "rev-parse", f"--disambiguate={prefix}").stdout.split()
    if not names:
        return
    kinds = _git(
        top, "cat-file", "--batch-check=%(objecttype) %(objectname)", given="\n".join(names) + "\n"
    ).stdout
    for line in kinds.splitlines():
        kind, _, name = line.partition(" ")
        if kind == "commit":
            yield name


def _checkout(folder: Path) -> _Checkout:
    """Return the repository that holds `folder`, with its HEAD.

    Raises:
        _GitProblemError: git is missing or refuses, there is no repository, or it has no commit.
    """
    where = _git(folder, "rev-parse", "--show-toplevel", "--is-shallow-repository")
    if where.returncode != 0:
        raise _GitProblemError(_refusal(where.stderr, folder))
    top, _, shallow = where.stdout.strip().rpartition("\n")
    head = _git(folder, "rev-parse", "--verify", "--quiet", "HEAD^{commit}")
    if head.returncode != 0:
        raise _GitProblemError(
            f"the repository {top} has no commit yet; make one with `git add` and `git commit`."
        )
    return _Checkout(Path(top), head.stdout.strip(), shallow == "true")


def _refusal(said: str, folder: Path) -> str:
    if "dubious ownership" in said or "safe.directory" in said:
        owned = re.search(r"safe\.directory '?([^'\n]+?)'?\s*$", said, re.MULTILINE)
        path = owned.group(1) if owned else str(folder)
        return (
            f"git does not trust the repository {path}, because it belongs to another user. Type `git "
            f"config --global --add safe.directory {path}`."
        )
    if "not a git repository" in said:
        return (
            f"{folder} is in no git repository; make one with `git init`, or clone it instead of copying it."
        )
    return f"git says: {said.strip().splitlines()[-1] if said.strip() else 'nothing'}."


def _git(folder: Path, *arguments: str, given: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run git in `folder`; never a lock taken, no word translated, nothing of a calling hook's repository."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_DIR")}
    for name in ("GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX", "GIT_OBJECT_DIRECTORY", "GIT_COMMON_DIR"):
        environment.pop(name, None)
    environment |= {"LC_ALL": "C", "GIT_OPTIONAL_LOCKS": "0"}
    try:
        return subprocess.run(
            ["git", "-C", str(folder), *arguments],
            input=given,
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="surrogateescape",
            env=environment,
            timeout=GIT_SECONDS,
            check=False,
            stdin=None if given is not None else subprocess.DEVNULL,
        )
    except FileNotFoundError:
        raise _GitProblemError("git is not installed; install it (`apt-get install git`).") from None
    except subprocess.TimeoutExpired:
        raise _GitProblemError(f"git did not answer within {GIT_SECONDS:.0f} s in {folder}.") from None


# The build context


def _check_context(settings: Settings, context: Path) -> Path:
    """Return the Dockerfile's path after checking that there is something to build."""
    image = settings.image
    if not context.exists():
        raise _mistake(
            settings,
            "image.context",
            f"the folder {image.context} does not exist (looked for {context}).",
            "esteira:image:\n  context: FOLDER   (as seen from the project's folder; . is the folder itself)",
        )
    if not context.is_dir():
        raise _mistake(
            settings,
            "image.context",
            f"{image.context} is a file; the build context is the folder that holds what the image is made "
            "of.",
            f"esteira:image:\n  context: {os.path.dirname(image.context) or '.'}",  # noqa: PTH120
        )
    dockerfile: Path = context / image.dockerfile
    if dockerfile.is_dir():
        what = f"{image.dockerfile} is a folder; it must be the file with the build instructions."
        raise _mistake(
            settings,
            "image.dockerfile",
            what,
            f"esteira:image:\n  dockerfile: {Path(image.dockerfile, 'Dockerfile')}",
        )
    if not dockerfile.is_file():
        raise _mistake(
            settings,
            "image.dockerfile",
            f"there is no file {image.dockerfile} in the build context {image.context} (looked for "
            f"{dockerfile}).",
            f"esteira:image:\n  context: {image.context}\n  dockerfile: "
            f"{_likely_dockerfile(settings, context)}",
        )
    if not os.access(dockerfile, os.R_OK):
        raise SourceError(
            f"The Dockerfile {dockerfile} may not be read by you. Type `chmod u+r {dockerfile}`."
        )
    _check_private_folder(settings, context, dockerfile)
    return dockerfile


def _check_private_folder(settings: Settings, context: Path, dockerfile: Path) -> None:
    """Refuse to put the project's own state and passwords into an image, where every puller could read them."""
    private = settings.root / PRIVATE_FOLDER
    if not private.is_dir() or not private.resolve().is_relative_to(context.resolve()):
        return
    name = private.resolve().relative_to(context.resolve()).as_posix()
    ignore = dockerignore.ignore_file(context, dockerfile)
    if dockerignore.read(ignore).leaves_out(f"{name}/local"):
        return
    raise SourceError(
        f"The build context {settings.image.context} holds the folder {name}, with this project's state "
        f"and passwords, and they would go into the image. Write in {ignore}:\n  {name}\n  **/.git\n  "
        "**/.venv"
    )


def check_ignored(settings: Settings, commit: str) -> str | None:
    """Return a sentence on files that git ignores and Docker does not; None where there are none.

    The image has a commit's name, and no commit says what is in them: a .env of this machine would go to production.
    It reads the tree, so it is asked only when an image is to be built.

    Raises:
        SourceError: there are some, and the settings do not allow them.
    """
    context = settings.root / settings.image.context
    said = _git(
        context, "ls-files", "-z", "--others", "--ignored", "--exclude-standard", "--directory", "--", "."
    )
    if said.returncode != 0:
        raise SourceError(f"git cannot say what it ignores in the build context: {said.stderr.strip()}")
    file = dockerignore.ignore_file(context, context / settings.image.dockerfile)
    ignore = dockerignore.read(file)
    # Folders last: a cache is most often no harm, and a file of settings is.
    names = sorted(filter(None, said.stdout.split("\0")), key=lambda name: (name.endswith("/"), name))
    found = [name for name in names if not ignore.leaves_out_all_of(context, name)]
    if not found:
        return None
    what = f"{_shown(found, IGNORED_FILES)} in the build context {settings.image.context}"
    if settings.allow_dirty:
        return (
            f"git ignores {what}, so no commit says what of it the image will hold: list it in {file} as well, unless "
            "the image needs it."
        )
    raise SourceError(
        f"What would be built is not commit {commit[:12]}: git ignores {what}, so no commit says what of "
        f"it the image would hold. List it in {file} as well. {_file(settings)} does not allow a dirty tree; to allow "
        "it, write:\n  esteira:allowDirty: true"
    )


def _likely_dockerfile(settings: Settings, context: Path) -> str:
    """Suggest what `image.dockerfile` is meant to be; the setting is relative to the context."""
    from_root = settings.root / settings.image.dockerfile
    if from_root.is_file():
        return os.path.relpath(from_root, context)
    for pattern in ("*ockerfile*", "*/*ockerfile*"):
        for found in sorted(context.glob(pattern)):
            if found.is_file() and found.suffix != ".dockerignore":
                return str(found.relative_to(context))
    return "FILE   (as seen from the context)"


def _changed(settings: Settings, checkout: _Checkout, context: Path, dockerfile: Path) -> list[str]:
    """Return what differs from HEAD below the context and in the Dockerfile, sorted; ignored files do not count."""
    inside = [path for path in (context.resolve(), dockerfile.resolve()) if path.is_relative_to(checkout.top)]
    paths = [str(path.relative_to(checkout.top)) for path in inside]
    if paths and paths[0] != "." and _git(checkout.top, "check-ignore", "--quiet", paths[0]).returncode == 0:
        raise _mistake(
            settings,
            "image.context",
            f"git ignores the folder {settings.image.context}, so no commit says what is in it.",
            "esteira:image:\n  context: FOLDER   (one that is committed)",
        )
    status = _git(
        checkout.top,
        "--literal-pathspecs",
        "status",
        "--porcelain=v1",
        "-z",
        "--untracked-files=all",
        "--no-renames",
        "--ignore-submodules=none",
        "--",
        *paths,
    )
    if status.returncode != 0:
        raise SourceError(f"git cannot compare the build context with the commit: {status.stderr.strip()}")
    return sorted(entry[3:] for entry in status.stdout.split("\0") if entry)


def _listed(changed: list[str]) -> str:
    shown = _shown(changed, SHOWN_FILES)
    return f"{len(changed)} changed or new {'file' if len(changed) == 1 else 'files'} ({shown})"


def _shown(names: list[str], most: int) -> str:
    shown = ", ".join(
        name.encode("utf-8", "surrogateescape").decode("utf-8", "replace") for name in names[:most]
    )
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown


def _content(top: Path, changed: Iterable[str]) -> str:
    """Return digits that are the same exactly when the changed files have the same names, modes and content."""
    whole = hashlib.sha256()
    for name in changed:
        for path in _files(top / name):
            label = os.fsencode(os.path.relpath(path, top))
            whole.update(b"%d:%s" % (len(label), label))
            whole.update(_fingerprint(path))
    return whole.hexdigest()[:DIRTY_DIGITS]


def _files(path: Path) -> Iterator[Path]:
    """Yield the file, or all files of a folder (a submodule or a repository inside the repository)."""
    if path.is_symlink() or not path.is_dir():
        yield path
        return
    for child in sorted(path.iterdir()):
        if child.name != ".git":
            yield from _files(child)


def _fingerprint(path: Path) -> bytes:
    if path.is_symlink():
        return b"link" + hashlib.sha256(os.fsencode(path.readlink())).digest()
    if not path.is_file():
        return b"none"
    content = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                content.update(block)
    except PermissionError:
        raise SourceError(f"The file {path} is in the build context and may not be read by you.") from None
    return (b"exec" if os.access(path, os.X_OK) else b"file") + content.digest()
