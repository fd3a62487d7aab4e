"""`./esteira offline-preview`: what each stack would declare, and what of that a branch changes.

For merge requests, whose code nobody has looked at yet: it runs under mocks, in an environment without secrets, reads
no state and asks no server. It shows the declaration, not the difference to what runs; that is `pulumi preview`'s,
which needs the secrets.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cli import console, shell
from cli.offline_child import PLACEHOLDER
from components.errors import EsteiraError
from components.settings import NAMESPACE, parse_stack_file

PASSED_ON = (
    "PATH",
    "HOME",
    "LANG",
    "LC_ALL",
    "TMPDIR",
    "VIRTUAL_ENV",
    "CI_REGISTRY",
    "CI_PROJECT_PATH",
    "CI_API_V4_URL",
)
"""All that the program gets of this process's environment; nothing else can end in its declaration."""

_CHILD = Path(__file__).with_name("offline_child.py")
_SECONDS = 300
_BOOKKEEPING = frozenset({"pulumi:index:Stash"})
"""Types that keep the time of a reading: another one in every run, and nobody's declaration."""
_KEYS = ("serverPrivateKey", "jumpPrivateKey")


@dataclass(frozen=True)
class Declaration:
    """What one stack declares: the YAML text of each resource, by "type name"; or why it cannot be said."""

    resources: Mapping[str, str] = field(default_factory=dict)
    error: str | None = None

    @property
    def text(self) -> str:
        """All of it, sorted."""
        return "\n".join(self.resources[name] for name in sorted(self.resources))


@dataclass(frozen=True)
class Comparison:
    """What a branch changes in one stack."""

    stack: str
    added: tuple[str, ...]
    removed: tuple[str, ...]
    changed: tuple[str, ...]
    diff: str
    note: str | None = None

    @property
    def summary(self) -> str:
        """One line."""
        if self.note is not None:
            return f"{self.stack}: {self.note}"
        counts = [
            f"{len(names)} {word}"
            for word, names in (("added", self.added), ("changed", self.changed), ("removed", self.removed))
            if names
        ]
        return f"{self.stack}: {', '.join(counts) or 'declares the same'}"


def run(root: Path, against: str | None, stacks: Sequence[str], folder: Path) -> None:
    """Write a folder with ``summary.md`` and one ``<stack>.yaml`` each, and print the summary.

    against: a git revision, a folder with another tree of the project, or None (nothing to compare with).

    Raises:
        EsteiraError: a stack of this tree cannot be declared; the folder is written all the same.
    """
    chosen = list(stacks) or _stacks(root)
    mine = {stack: declare(root, stack) for stack in chosen}
    with _tree(root, against) as base:
        theirs = {stack: declare(base, stack) if base else None for stack in chosen}
    folder.mkdir(parents=True, exist_ok=True)
    compared = [compare(stack, theirs[stack], mine[stack]) for stack in chosen]
    for stack in chosen:
        (folder / f"{stack}.yaml").write_text(mine[stack].text, encoding="utf-8")
    (folder / "summary.md").write_text(report(compared, against), encoding="utf-8")
    for one in compared:
        console.say(one.summary)
        for sign, names in (("+", one.added), ("~", one.changed), ("-", one.removed)):
            for name in names:
                console.say(f"  {sign} {name}")
    console.say(f"The whole of it is in {folder}.")
    failed = {stack: one.error for stack, one in mine.items() if one.error is not None}
    if failed:
        raise EsteiraError("\n".join(f"Stack {stack}: {error}" for stack, error in failed.items()))


def _stacks(root: Path) -> list[str]:
    """Name the stacks of the tree; not ``local``, which is of one machine."""
    names = sorted(path.name.split(".")[1] for path in root.glob("Pulumi.*.yaml"))
    return [name for name in names if name != "local"]


def declare(root: Path, stack: str) -> Declaration:
    """Run the program of a tree with a stack, under mocks, in a process of its own."""
    if not (root / f"Pulumi.{stack}.yaml").is_file():
        return Declaration()
    config, secret_keys, variables = placeholders(root / f"Pulumi.{stack}.yaml")
    environment = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    # What an earlier run wrote beside a module must not end in git's view of the tree.
    environment |= {"PYTHONDONTWRITEBYTECODE": "1", **variables}
    request = {"root": str(root.resolve()), "stack": stack, "config": config, "secret_keys": secret_keys}
    try:
        answer = subprocess.run(
            [sys.executable, str(_CHILD)],
            input=json.dumps(request),
            capture_output=True,
            text=True,
            cwd=root,
            env=environment,
            timeout=_SECONDS,
            check=False,
        )
        said = json.loads(answer.stdout)
    except (subprocess.TimeoutExpired, ValueError):
        return Declaration(error="The program gave no answer.")
    if said["error"] is not None:
        return Declaration(error=said["error"])
    return Declaration(dict(_rendered(said["resources"], root, _head(root, stack))))


def _head(root: Path, stack: str) -> str:
    """Return the commit that is deployed: that of the folder that is built, which may be a repository of its own."""
    image = parse_stack_file(root / f"Pulumi.{stack}.yaml").values.get("image")
    context = image.get("context", ".") if isinstance(image, Mapping) else "."
    folder = root / str(context)
    where = folder if folder.is_dir() else root
    return shell.run(["git", "rev-parse", "HEAD"], cwd=where, timeout=30, check=False).stdout.strip()


def _rendered(resources: Sequence[Mapping[str, Any]], root: Path, head: str) -> Iterator[tuple[str, str]]:
    for one in resources:
        if one["type"] in _BOOKKEEPING:
            continue
        name = f"{one['type']} {one['name']}"
        text = yaml.dump(
            {name: one["inputs"] or {}}, Dumper=_Dumper, sort_keys=True, width=1000, allow_unicode=True
        )
        # Every commit has another id, and every run another request: that is no change of the declaration.
        text = re.sub(rf"{head}(-dirty-[0-9a-f]+)?" if head else r"(?!)", "<commit>", text)
        text = re.sub(r"request=\S+", "request=<time>", text).replace(str(root.resolve()), ".")
        yield name, text


class _Dumper(yaml.SafeDumper):
    """Text of several lines as a block, so that a command's lines are the diff's lines."""


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    # A block cannot hold spaces before a line's end.
    style = "|" if "\n" in value else None
    if style:
        value = re.sub(r"[ \t]+\n", "\n", value)
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Dumper.add_representer(str, _text)


def placeholders(file: Path) -> tuple[dict[str, object], list[str], dict[str, str]]:
    """Return config for the secrets that a stack file holds or needs, the names of these keys, and environment.

    Nothing of a secret is needed to say what is declared, only that it is there and of the right form.
    """
    values, encrypted = parse_stack_file(file)
    key, public = _throwaway_key()

    def stand_in(name: str, value: object) -> object:
        if isinstance(value, Mapping) and set(value) != {"secure"}:
            return {entry: stand_in(name, item) for entry, item in value.items()}
        return key if name in _KEYS else PLACEHOLDER

    config = {name: stand_in(name, values[name]) for name in encrypted}
    if "registryUser" in values and "registryPasswordFile" not in values:
        config.setdefault("registryPassword", PLACEHOLDER)
    if "pullUser" in values:
        config.setdefault("pullPassword", PLACEHOLDER)
    if "gitlab" in values:
        config.setdefault("gitlabToken", PLACEHOLDER)
    variables: dict[str, str] = {}
    if "container" in values and not {"serverPassword", "serverPrivateKey"} & config.keys():
        variables["DEPLOYMENT_SERVER_KEY"] = key
    if "container" in values and "servers" not in values:
        # An address that no machine has (RFC 5737): the real ones are variables of protected branches.
        variables |= {
            "DEPLOYMENT_SERVER_IP": "192.0.2.1",
            "DEPLOYMENT_SERVER_USER": "offline",
            "DEPLOYMENT_SERVER_HOST_KEY": public,
        }
    if "registryUser" not in values:
        variables |= {"CI_REGISTRY_USER": "gitlab-ci-token", "CI_REGISTRY_PASSWORD": PLACEHOLDER}
        # What servers pull with is a variable of protected branches too.
        variables |= {"CI_DEPLOY_USER": "offline", "CI_DEPLOY_PASSWORD": PLACEHOLDER}
    named = {f"{NAMESPACE}:{name}": value for name, value in config.items()}
    return named, sorted(named), variables


@cache
def _throwaway_key() -> tuple[str, str]:
    """Make a key pair that opens nothing; once, because it must be the same in both trees."""
    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return private.decode(), public.decode()


def compare(stack: str, before: Declaration | None, after: Declaration) -> Comparison:
    """Return what of a stack's declaration is added, removed and changed."""
    if after.error is not None:
        return Comparison(stack, (), (), (), "", "cannot be declared (see below)")
    names = tuple(sorted(after.resources))
    if before is None:
        return Comparison(stack, (), (), (), "", f"declares {len(names)} resources")
    if before.error is not None:
        reason = before.error.splitlines()[0]
        return Comparison(stack, (), (), (), "", f"cannot be compared: the branch before says: {reason}")
    changed = tuple(
        name for name in names if before.resources.get(name, after.resources[name]) != after.resources[name]
    )
    lines = difflib.unified_diff(
        before.text.splitlines(), after.text.splitlines(), "before", "after", lineterm="", n=3
    )
    return Comparison(
        stack,
        tuple(name for name in names if name not in before.resources),
        tuple(sorted(before.resources.keys() - after.resources.keys())),
        changed,
        "\n".join(lines),
    )


def report(compared: Sequence[Comparison], against: str | None) -> str:
    """Return the summary in Markdown."""
    lines = ["# What each stack would declare", ""]
    lines += [
        f"Compared with `{against}`. Made without any secret: values are shown as `[secret]`, and what only a "
        "deployment can know is not shown."
        if against
        else "Compared with nothing.",
        "",
        *(f"- {one.summary}" for one in compared),
    ]
    for one in compared:
        if one.diff:
            lines += ["", f"## {one.stack}", "", "```diff", one.diff, "```"]
    return "\n".join(lines) + "\n"


@contextmanager
def _tree(root: Path, against: str | None) -> Iterator[Path | None]:
    """Give the tree to compare with: a folder as it is, a revision checked out beside."""
    if against is None:
        yield None
        return
    if Path(against).is_dir():
        yield Path(against)
        return
    with tempfile.TemporaryDirectory(prefix="esteira-before-") as folder:
        place = Path(folder) / "tree"
        try:
            shell.run(["git", "worktree", "add", "--detach", str(place), against], cwd=root, timeout=120)
        except shell.CommandError as error:
            last = (str(error).splitlines() or [""])[-1]
            raise EsteiraError(
                f"git cannot check out {against} to compare with ({last}). In a pipeline the whole history is needed: "
                "GIT_DEPTH: 0."
            ) from None
        try:
            yield place
        finally:
            shell.run(["git", "worktree", "remove", "--force", str(place)], cwd=root, timeout=60, check=False)
