"""`./esteira releases`: what could be deployed without building: what the servers keep, what the registry has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cli import console, shell, stacks
from cli.status import ago, columns, declared_commit, fingerprint_of
from components.errors import EsteiraError
from components.reading import ContainerReading
from components.registry import RegistryError, from_settings
from components.settings import ServerSettings, Settings
from components.source import FULL_SHA
from components.status import Status, read_statuses

SHOWN_COMMITS = 20
_LOG_COMMITS = 5000


@dataclass(frozen=True)
class Release:
    """One release that a server has."""

    server: str
    commit: str
    dirty: bool
    """Built from a tree that was not the commit's: no declaration names it."""
    serves: bool
    age: str
    same_settings: bool | None
    """Whether its settings are those that are declared now, so that it starts as it is, without the registry; None
    where that cannot be told."""


def run(root: Path, stack: str | None, server: str | None) -> int:
    """Print what is possible; return 1 where a server could not be asked, else 0."""
    declared = stacks.declared(root, stacks.choose(root, stack))
    settings = stacks.only(declared.settings, server)
    found = read_statuses(settings)
    commit = declared_commit(settings)
    if commit:
        console.say(f"{settings.container.name} in stack {settings.stack}, declared is commit {commit[:7]}")
        console.say()
    releases = [
        release
        for one in settings.servers
        for release in kept_releases(settings, one, found[one.name], whole=declared.whole)
    ]
    if releases:
        table = [["SERVER", "COMMIT", "MADE", "STATE", "A ROLLBACK TO IT"]]
        table += [
            [one.server, one.commit[:7], f"{one.age} ago", "serves" if one.serves else "kept", _way(one)]
            for one in releases
        ]
        for line in columns(table):
            console.say(line)
    else:
        console.say("No server has a release.")
    for name, status in found.items():
        if isinstance(status, EsteiraError):
            console.say(f"{name}: {status}")
    console.say()
    _tell_registry(root, settings)
    console.say()
    console.say("To go back: ./esteira rollback (the release before), or ./esteira rollback --to COMMIT")
    return 1 if any(isinstance(status, EsteiraError) for status in found.values()) else 0


def kept_releases(
    settings: Settings, server: ServerSettings, status: Status | EsteiraError, *, whole: bool
) -> list[Release]:
    """Return a server's releases: the serving one, then the kept ones, the one that served last first."""
    if isinstance(status, EsteiraError):
        return []
    by_id = {one.id: one for one in status.reading.releases}
    serving = status.reading.serving.id if status.reading.serving else ""
    return [
        _release(settings, server, status, by_id[identity], serves=identity == serving, whole=whole)
        for identity in (serving, *status.kept)
        if identity in by_id
    ]


def _release(
    settings: Settings,
    server: ServerSettings,
    status: Status,
    container: ContainerReading,
    *,
    serves: bool,
    whole: bool,
) -> Release:
    times = status.times.get(container.id)
    same = container.fingerprint == fingerprint_of(settings, server, container.commit) if whole else None
    return Release(
        server=server.name,
        commit=container.commit,
        dirty="-dirty-" in container.tag,
        serves=serves,
        age=ago(status.clock, times.created) if times else "-",
        same_settings=same,
    )


def _way(release: Release) -> str:
    if release.serves:
        return "-"
    if release.dirty:
        return "is not possible: it was built from a dirty tree"
    if release.same_settings is None:
        return "starts it again if its settings are those declared now, else needs the registry"
    if release.same_settings:
        return "starts it again, without the registry"
    return "makes it anew: other settings are declared now; the image is here"


def registry_commits(settings: Settings) -> list[str]:
    """Return the commits that the registry has images of. Raises RegistryError."""
    return [tag for tag in from_settings(settings).tags() if FULL_SHA.fullmatch(tag)]


def _tell_registry(root: Path, settings: Settings) -> None:
    try:
        commits = registry_commits(settings)
    except RegistryError as error:
        console.say(f"The registry cannot be asked: {error} What a server keeps can be started all the same.")
        return
    known = git_log(root / settings.image.context)
    order = {commit: position for position, commit in enumerate(known)}
    commits.sort(key=lambda commit: order.get(commit, len(order)))
    console.say(f"In the registry: {len(commits)} commits" + (", the newest first:" if commits else "."))
    for commit in commits[:SHOWN_COMMITS]:
        console.say(f"  {commit[:7]}  {known.get(commit, 'not in this checkout')}")
    if len(commits) > SHOWN_COMMITS:
        console.say(f"  and {len(commits) - SHOWN_COMMITS} more")


def git_log(folder: Path) -> Mapping[str, str]:
    """Return commit to its day and subject, the newest first; nothing where there is no repository."""
    answer = shell.run(
        ["git", "log", "--all", "--date-order", f"--max-count={_LOG_COMMITS}", "--format=%H %cs %s"],
        cwd=folder if folder.is_dir() else folder.parent,
        check=False,
    )
    lines: Sequence[str] = answer.stdout.splitlines() if answer.returncode == 0 else []
    return {line[:40]: line[41:] for line in lines}
