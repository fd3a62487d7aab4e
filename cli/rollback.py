"""`./esteira rollback`: an earlier commit is declared, then `pulumi up` does the rest; nothing is built.

It is a shorthand, and says what for: on a real stack `pulumi config set esteira:commit SHA` and `pulumi up`. On the
stack `local` the commit is declared for this one run, because its stack file is everybody's.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from cli import console, engine, local, prepare, shell, stacks
from cli.releases import Release, git_log, kept_releases, registry_commits
from components.errors import EsteiraError
from components.history import served_before
from components.registry import RegistryError
from components.settings import NAMESPACE, Settings, parse_stack_file
from components.source import FULL_SHA
from components.status import Status, read_statuses
from rehearsal import carry_out

LEAST_DIGITS = 4


def run(root: Path, stack: str | None, to: str | None, *, yes: bool) -> None:
    """Declare the commit ``to``, or the release before the serving one, and run `pulumi up`.

    Raises EsteiraError where there is nothing to go back to, the commit cannot be told, or the run failed.
    """
    name = stacks.choose(root, stack)
    declared = stacks.declared(root, name)
    settings = declared.settings
    if name != local.STACK:
        _require_pulumi(yes=yes)
    statuses = read_statuses(settings)
    releases = [
        release
        for server in settings.servers
        for release in kept_releases(settings, server, statuses[server.name], whole=declared.whole)
    ]
    commit = find(root, settings, to, releases) if to else previous(statuses)
    _tell(settings, commit, releases, statuses)
    if name == local.STACK:
        _up_here(root, commit)
    else:
        _up(root, name, commit, yes=yes)


def previous(statuses: Mapping[str, Status | EsteiraError]) -> str:
    """Return the commit that served before, on all servers that can be asked. Raises EsteiraError."""
    found: dict[str, str] = {}
    for name, status in statuses.items():
        commit = before(status) if isinstance(status, Status) else None
        if commit:
            found[name] = commit
    if not found:
        errors = [str(status) for status in statuses.values() if isinstance(status, EsteiraError)]
        raise EsteiraError(
            "No server knows of a release before the one that serves. ./esteira releases lists what there is; "
            "name one: ./esteira rollback --to COMMIT" + "".join(f"\n{error}" for error in errors)
        )
    if len(set(found.values())) > 1:
        told = ", ".join(f"{name} {commit[:7]}" for name, commit in found.items())
        raise EsteiraError(
            f"The servers had different releases before ({told}). Name one: ./esteira rollback --to COMMIT"
        )
    return next(iter(found.values()))


def before(status: Status) -> str | None:
    """Return the commit that served before on a server, by its release log, else by what was stopped last."""
    releases = {one.id: one for one in status.reading.releases}
    serving = status.reading.serving
    tag = releases[serving.id].tag if serving is not None and serving.id in releases else ""
    if any(entry.serves and entry.tag == tag for entry in status.history):
        return served_before(status.history, tag)
    kept = [releases[identity] for identity in status.kept if identity in releases]
    return next((one.commit for one in kept if one.tag == one.commit and one.tag != tag), None)


def find(root: Path, settings: Settings, to: str, releases: Sequence[Release]) -> str:
    """Return all digits of a commit: one that a server keeps, the registry has, or git knows. Raises EsteiraError."""
    wanted = to.lower()
    if FULL_SHA.fullmatch(wanted):
        return wanted
    if not re.fullmatch(rf"[0-9a-f]{{{LEAST_DIGITS},40}}", wanted):
        raise EsteiraError(
            f"{to} is no commit: write its sha, or at least its first {LEAST_DIGITS} digits (./esteira releases)."
        )
    complaint = ""
    kept = {release.commit for release in releases if not release.dirty}
    found = {commit for commit in kept if commit.startswith(wanted)}
    if not found:
        try:
            found = {commit for commit in registry_commits(settings) if commit.startswith(wanted)}
        except RegistryError as error:
            complaint = f" The registry cannot be asked: {error}"
    if not found:
        log = git_log(root / settings.image.context)
        found = {commit for commit in log if commit.startswith(wanted)}
    if len(found) == 1:
        return found.pop()
    if found:
        raise EsteiraError(
            f"{to} is the beginning of {len(found)} commits. Write one with more digits:\n"
            + "\n".join(f"  ./esteira rollback --to {commit}" for commit in sorted(found))
        )
    raise EsteiraError(
        f"No server keeps, and the registry does not have, a commit that begins with {to}.{complaint} "
        "./esteira releases lists what is possible."
    )


def _tell(
    settings: Settings,
    commit: str,
    releases: Sequence[Release],
    statuses: Mapping[str, Status | EsteiraError],
) -> None:
    console.say(f"Back to commit {commit[:7]} in stack {settings.stack}. Nothing is built.")
    for server, status in statuses.items():
        if isinstance(status, EsteiraError):
            console.say(f"  {server}: cannot be asked. {status}")
            continue
        has = [one for one in releases if one.server == server and one.commit == commit and not one.dirty]
        if any(one.serves for one in has):
            console.say(f"  {server}: serves it already")
        elif any(one.same_settings for one in has):
            console.say(f"  {server}: starts the release that it keeps, without the registry")
        elif has:
            console.say(f"  {server}: has its image, and makes a container with the settings of now")
        else:
            console.say(f"  {server}: pulls its image from the registry")


def _require_pulumi(*, yes: bool) -> None:
    if not shell.has("pulumi"):
        raise EsteiraError(
            "A rollback of this stack is `pulumi config set esteira:commit COMMIT` and `pulumi up`, and there is no "
            "Pulumi CLI here. Install it, or go back where the stack is deployed from."
        )
    if not yes and not sys.stdin.isatty():
        raise EsteiraError(
            "pulumi up asks whether to go on, and nobody can answer here. With --yes it does not ask."
        )


def _up(root: Path, stack: str, commit: str, *, yes: bool) -> None:
    file = f"Pulumi.{stack}.yaml"
    earlier = parse_stack_file(root / file).values.get("commit")
    console.step(f"pulumi config set {NAMESPACE}:commit {commit} --stack {stack}")
    try:
        shell.run(
            ["pulumi", "config", "set", f"{NAMESPACE}:commit", commit, "--stack", stack, "--non-interactive"],
            cwd=root,
            timeout=stacks.PULUMI_SECONDS,
        )
    except shell.CommandError as error:
        raise EsteiraError(
            f"The commit could not be declared, and nothing was done. {str(error).splitlines()[-1]}"
        ) from None
    if earlier:
        console.say(f"{file} declared {earlier} before.")
    command = ["pulumi", "up", "--stack", stack, *(["--yes"] if yes else [])]
    console.step(" ".join(command))
    status = engine.in_view(command, root)
    forward = f"pulumi config rm {NAMESPACE}:commit --stack {stack} && pulumi up --stack {stack}"
    if status != 0:
        raise EsteiraError(
            f"pulumi up ended with status {status}; it says why above. {file} declares commit {commit[:7]} now "
            f"({NAMESPACE}:commit). To try again: pulumi up --stack {stack}. To declare what is checked out again: "
            f"{forward}"
        )
    console.say()
    console.say(
        f"{file} declares commit {commit[:7]} now ({NAMESPACE}:commit), and every `pulumi up` keeps it."
    )
    console.say(f"Forward again, to what is checked out:  {forward}")
    console.say(f"A pipeline deploys its own commit: to keep it back too, commit {file}.")


def _up_here(root: Path, commit: str) -> None:
    """Declare the commit for one run of the local stack. The registry is not prepared: a kept release needs none."""
    place = local.Place(root)
    with place.locked():
        found = prepare.find_engine(root)
        if isinstance(found, engine.Engine):
            engine.carry_out(place, found, "up", commit=commit)
        else:
            carry_out(
                root,
                local.STACK,
                action="up",
                environ=prepare.environment_of_program(place),
                config={f"{NAMESPACE}:commit": commit},
            )
    console.say()
    console.say(f"Commit {commit[:7]} was declared for this run ({NAMESPACE}:commit) and serves.")
    console.say("Forward again, to what is checked out:  ./esteira up")
