"""`./esteira prune`: images that nobody needs any more leave GitLab's registry.

Only tags that Esteira made are ever deleted: those named by a commit. Kept are the newest commits, every commit whose
image has another tag too (the moving tags), and every image that a stack runs or could roll back to: what its state
says, and what its servers themselves say that they run and keep. When one of these cannot be asked, nothing is deleted.

In a pipeline a job has the variables of one environment only, so what each stack uses is found out by a job of its own
(`./esteira ci-in-use`), and handed over as a file.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gitlab
from gitlab.exceptions import GitlabGetError
from gitlab.v4.objects import Project

from cli import console, local, shell
from components.arguments import owner_of
from components.errors import EsteiraError
from components.gitlab_access import asked, client
from components.gitlab_access import project as project_of
from components.reading import Reading, read_servers
from components.settings import NAMESPACE, GitlabStack, Settings, load_settings, load_stack, parse_stack_file

_COMMIT_TAG = re.compile(r"[0-9a-f]{40}(-dirty-[0-9a-f]{12})?")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_PULUMI_SECONDS = 120


@dataclass(frozen=True)
class Tag:
    """One tag of a repository in GitLab's registry."""

    repository: str
    name: str
    digest: str
    size: int
    """Bytes of the image's layers, those that it shares with others included."""
    created: str
    """When the image was made, ISO 8601; text of one form, so that it sorts."""

    @property
    def is_commit(self) -> bool:
        """Whether it is named by a commit, so that Esteira made it."""
        return _COMMIT_TAG.fullmatch(self.name) is not None


@dataclass(frozen=True)
class Plan:
    """What goes, and why the rest stays."""

    delete: tuple[Tag, ...]
    keep: tuple[tuple[Tag, str], ...]

    @property
    def freed(self) -> int:
        """Bytes that are freed at most: layers that a kept image shares stay."""
        kept = {tag.digest for tag, _ in self.keep}
        return sum({tag.digest: tag.size for tag in self.delete if tag.digest not in kept}.values())


def plan(tags: Iterable[Tag], needed: Mapping[str, str], newest: int) -> Plan:
    """Decide for each tag of one repository.

    needed: digest to the reason why it must stay. newest: how many commits stay in any case.
    """
    tags = sorted(tags, key=lambda tag: (tag.created, tag.name), reverse=True)
    reasons = dict(needed)
    for tag in tags:
        if not tag.is_commit:
            reasons.setdefault(tag.digest, f"it is {tag.name}")
    young = [tag for tag in tags if tag.is_commit][:newest]
    delete: list[Tag] = []
    keep: list[tuple[Tag, str]] = []
    for tag in tags:
        if not tag.is_commit:
            keep.append((tag, "not made of a commit"))
        elif not tag.digest:
            keep.append((tag, "GitLab does not know its digest"))
        elif tag.digest in reasons:
            keep.append((tag, reasons[tag.digest]))
        elif tag in young:
            keep.append((tag, f"one of the {newest} newest"))
        else:
            delete.append(tag)
    return Plan(tuple(delete), tuple(keep))


@dataclass(frozen=True)
class Use:
    """What one stack needs of the registry."""

    stack: str
    registry: str
    repository: str
    digests: Mapping[str, str]
    """Digest to the reason why it must stay."""


def run(
    root: Path,
    stacks: Sequence[str],
    project: str | None,
    newest: int,
    *,
    yes: bool,
    found: Path | None = None,
) -> None:
    """Say what would be deleted and how much that frees; delete it with `yes`.

    found: folder with what :func:`record` wrote of some of the stacks; the others are asked now.

    Raises:
        EsteiraError: a stack, one of its servers, GitLab cannot be asked: nothing is deleted. Or a deletion failed.
    """
    recorded = _recorded(found) if found is not None else {}
    chosen = list(stacks) or sorted({*application_stacks(root), *recorded})
    if not chosen:
        raise EsteiraError("There is no stack file of an application here; name a stack: --stack staging.")
    uses = [recorded.get(stack.rpartition("/")[2]) or use_of(root, stack) for stack in chosen]
    needed: dict[str, dict[str, str]] = {}
    for use in uses:
        needed.setdefault(use.repository, {}).update(use.digests)
    access = _access(root, uses[0], project)
    of_gitlab = project_of(access, client(access))
    deleted: list[Tag] = []
    for repository, digests in sorted(needed.items()):
        console.step(f"Reading {repository} in GitLab ...")
        decided = plan(tags_of(access, of_gitlab, repository), digests, newest)
        for tag, reason in decided.keep:
            console.say(f"  keep    {tag.name}  {reason}")
        for tag in decided.delete:
            console.say(f"  delete  {tag.name}  {human(tag.size)}, of {tag.created[:10]}")
        console.say(
            f"{repository}: {len(decided.delete)} of {len(decided.delete) + len(decided.keep)} tags go, which frees "
            f"{human(decided.freed)} at most (layers that others share stay)."
        )
        deleted += decided.delete
    if not deleted:
        return
    if not yes:
        console.say("Nothing has been deleted. Type the same with --yes to delete.")
        return
    _delete(access, of_gitlab, deleted)
    console.say(f"{len(deleted)} tags are deleted; GitLab frees the space in its next clean-up.")


def record(root: Path, stack: str, file: Path) -> None:
    """Write what a stack runs or could roll back to, for :func:`run` in another job. Raises EsteiraError."""
    use = use_of(root, stack)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(dataclasses.asdict(use), indent=2) + "\n", encoding="utf-8")
    console.say(
        f"The stack {stack} runs or could roll back to {len(use.digests)} images of {use.repository}."
    )


def _recorded(folder: Path) -> dict[str, Use]:
    """Read what :func:`record` wrote, by the stack's name without its organisation."""
    try:
        uses = [
            Use(**json.loads(file.read_text(encoding="utf-8"))) for file in sorted(folder.rglob("*.json"))
        ]
    except (OSError, ValueError, TypeError) as error:
        raise EsteiraError(
            f"What the stacks use cannot be read from {folder}, so nothing is deleted ({error})."
        ) from None
    if not uses:
        raise EsteiraError(f"There is no file of a stack's use in {folder}, so nothing is deleted.")
    return {use.stack.rpartition("/")[2]: use for use in uses}


def use_of(root: Path, stack: str) -> Use:
    """Ask a stack's state and its servers. Raises EsteiraError."""
    settings = settings_of(root, stack)
    return Use(stack, settings.registry, settings.repository, in_use(root, stack, settings))


def application_stacks(root: Path) -> list[str]:
    """Name the stacks that deploy an application and push to GitLab's registry; not ``local``."""
    names = []
    for file in sorted(root.glob("Pulumi.*.yaml")):
        stack = file.name.split(".")[1]
        if stack != "local" and "container" in parse_stack_file(file).values:
            names.append(stack)
    return names


def settings_of(root: Path, stack: str) -> Settings:
    """Read a stack's settings, secrets included, from Pulumi. Raises EsteiraError."""
    said = _pulumi(root, stack, "config", "--show-secrets", "--json")
    prefix = f"{NAMESPACE}:"
    values: dict[str, object] = {}
    secret: set[str] = set()
    for name, entry in said.items():
        if name.startswith(prefix) and isinstance(entry, dict):
            key = name.removeprefix(prefix)
            values[key] = entry.get("objectValue", entry.get("value"))
            if entry.get("secret"):
                secret.add(key)
    return load_settings(
        values,
        frozenset(secret),
        project=local.project_name(root),
        stack=stack,
        root=root,
        environ=os.environ,
    )


def in_use(root: Path, stack: str, settings: Settings) -> dict[str, str]:
    """Return the digests that a stack runs or could roll back to, each with the reason why it stays."""
    found: dict[str, str] = {}
    outputs = _pulumi(root, stack, "stack", "output", "--json")
    declared = set(_DIGEST.findall(json.dumps(outputs)))
    found.update(dict.fromkeys(declared, f"the stack {stack} runs it"))
    for server, reading in read_servers(settings, owner_of(settings)).items():
        if not isinstance(reading, Reading):
            raise EsteiraError(
                f"Which images the server {server} of the stack {stack} runs and keeps cannot be read, so nothing is "
                f"deleted. {reading}"
            )
        containers = [*reading.releases, *([reading.serving] if reading.serving else [])]
        there = {digest for container in containers for digest in _DIGEST.findall(container.image)}
        if declared and not declared & there:
            raise EsteiraError(
                f"The stack {stack} says that its servers run {', '.join(sorted(declared))}, but {server} neither runs "
                "nor keeps it, so nothing is deleted. Either this is another stack's server (a job has the variables "
                "of its own environment only: see ci-in-use), or what runs there is not what was declared: pulumi up."
            )
        for digest in there:
            found.setdefault(digest, f"the server {server} ({stack}) runs it or could roll back to it")
    return found


def _pulumi(root: Path, stack: str, *arguments: str) -> dict[str, Any]:
    try:
        answer = shell.run(["pulumi", *arguments, "--stack", stack], cwd=root, timeout=_PULUMI_SECONDS)
        said = json.loads(answer.stdout)
    except (shell.CommandError, ValueError) as error:
        last = (str(error).splitlines() or [""])[-1] if isinstance(error, shell.CommandError) else "no JSON"
        raise EsteiraError(
            f"What the stack {stack} runs cannot be read from Pulumi, so nothing is deleted ({last}). Log in to its "
            "backend (pulumi login), give the passphrase, or leave the stack out by naming the others: --stack NAME."
        ) from None
    return said if isinstance(said, dict) else {}


def _access(root: Path, use: Use, project: str | None) -> GitlabStack:
    """Return how GitLab is reached: by the variables of the provider and of a job."""
    path = project or os.environ.get("CI_PROJECT_PATH") or use.repository
    access = load_stack(
        {"registry": use.registry, "repository": use.repository, "gitlab": {"project": path}},
        frozenset(),
        project=local.project_name(root),
        stack=use.stack,
        root=root,
        environ=os.environ,
    )
    assert isinstance(access, GitlabStack)
    return access


def tags_of(access: GitlabStack, project: Project, repository: str) -> list[Tag]:
    """Read all tags of one repository, each with its digest, size and day. Raises EsteiraError."""
    found: list[Tag] = []
    for one in asked(access, lambda: project.repositories.list(get_all=True)):
        if one.path != repository:
            continue
        for listed in asked(access, lambda one=one: one.tags.list(get_all=True)):  # type: ignore[misc]
            try:
                tag = asked_or_none(access, one, listed.name)
            except EsteiraError as error:
                raise EsteiraError(
                    f"The tag {listed.name} cannot be read, so nothing is deleted. {error}"
                ) from None
            if tag is not None:
                found.append(
                    Tag(repository, tag.name, tag.digest or "", tag.total_size or 0, tag.created_at or "")
                )
    return found


def asked_or_none(access: GitlabStack, repository: Any, name: str) -> Any:
    """Return a tag with all that GitLab knows of it; None when it has gone since it was listed."""

    def get() -> Any:
        try:
            return repository.tags.get(name)
        except GitlabGetError as error:
            if error.response_code == 404:
                return None
            raise

    return asked(access, get)


def _delete(access: GitlabStack, project: Project, tags: Sequence[Tag]) -> None:
    repositories = {one.path: one for one in asked(access, lambda: project.repositories.list(get_all=True))}
    for tag in tags:
        repository = repositories.get(tag.repository)
        if repository is None:
            continue

        def delete(repository: Any = repository, tag: Tag = tag) -> None:
            try:
                repository.tags.delete(tag.name)
            except gitlab.GitlabDeleteError as error:
                if error.response_code != 404:
                    raise

        asked(access, delete)
        console.say(f"  deleted {tag.name}")


def human(size: int) -> str:
    """Return bytes as GitLab counts its limit: 1 GB is 1024³ bytes."""
    if size >= 1024**3:
        return f"{size / 1024**3:.1f} GB"
    return f"{size / 1024**2:.0f} MB"
