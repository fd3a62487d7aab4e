# ruff: noqa: D401, N818 - a rule's docstring states the rule; a Wrong is a finding about a value
"""What a single value in a stack file may be: one small function per kind of value.

Each function takes what the stack file or the environment gave, and returns the value as the program uses it, or raises
:class:`Wrong`. None shows the value of a secret key; the plain values that they show are short names and numbers. All
are idempotent: their own result passes again unchanged, because a model may be built from values that were read before.
"""

from __future__ import annotations

import base64
import binascii
import difflib
import io
import ipaddress
import json
import math
import posixpath
import re
import shlex
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from cryptography.hazmat.primitives import serialization
from pydantic import SecretStr

from .ssh_library import paramiko

T = TypeVar("T")
Key = tuple[str | int, ...]
"""Where a value stands below another: names of map keys and indexes of list items."""


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong: a finished sentence, where (below the value looked at), and what to write instead.

    ``value`` is what to write at that key; without it the key's example is shown. ``name``: the last step of the path
    is itself what is wrong, and this stands in its place. ``lines`` replaces the whole text.
    """

    problem: str
    path: Key = ()
    value: object = None
    lines: tuple[str, ...] | None = None
    name: str | None = None

    def below(self, *path: str | int) -> Fault:
        """The same fault, seen from ``path`` further up."""
        return replace(self, path=(*path, *self.path))


class Wrong(ValueError):
    """A value that cannot be used, with one or more faults. Never holds a secret."""

    def __init__(
        self, problem: str | Sequence[Fault], value: object = None, lines: Sequence[str] | None = None
    ) -> None:
        if isinstance(problem, str):
            problem = [Fault(problem, (), value, None if lines is None else tuple(lines))]
        self.faults: tuple[Fault, ...] = tuple(problem)
        super().__init__(" ".join(fault.problem for fault in self.faults))


# ---- showing values ----------------------------------------------------------------------------------------

_PLAIN_YAML = re.compile(
    r"[A-Za-z/~][\w./+=@~…-]*( [\w./+=@~…-]+)*|[0-9]+(ms|[smhbkg])|[0-9]+\.[0-9]+\.[0-9]+\.[0-9]+"
)
_YAML_WORDS = {"true", "false", "yes", "no", "on", "off", "null", "y", "n", "~"}


def yaml_scalar(value: object) -> str:
    """``value`` as a person writes it in YAML, in quotes only where they are needed."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(yaml_scalar(item) for item in value) + "]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{yaml_scalar(k)}: {yaml_scalar(v)}" for k, v in value.items()) + "}"
    text_ = str(value)
    if _PLAIN_YAML.fullmatch(text_) and text_.lower() not in _YAML_WORDS:
        return text_
    return json.dumps(text_, ensure_ascii=False)


def yaml_lines(path: Sequence[str | int], value: object) -> list[str]:
    """The lines of a stack file that put ``value`` at ``path`` (a list index becomes a dash)."""
    lines: list[str] = []
    indent, dash = "", ""
    for position, step in enumerate(path):
        if isinstance(step, int):
            dash += "- "
            if position == len(path) - 1:
                lines += _value_lines(indent, dash.rstrip(), value)
            continue
        name = f"esteira:{step}" if position == 0 else yaml_scalar(step)
        if position == len(path) - 1:
            lines += _value_lines(indent, f"{dash}{name}:", value)
        else:
            lines.append(f"{indent}{dash}{name}:")
            indent += "  " + " " * len(dash)
            dash = ""
    return lines


def _value_lines(indent: str, head: str, value: object) -> list[str]:
    below = indent + "  "
    if isinstance(value, Mapping) and value:
        lines = [f"{below}{yaml_scalar(k)}: {yaml_scalar(v)}" for k, v in value.items()]
        if head == "-":
            return [f"{indent}- {lines[0].lstrip()}", *lines[1:]]
        return [f"{indent}{head}", *lines]
    if isinstance(value, (list, tuple)) and value:
        lines = []
        for item in value:
            lines += _value_lines(below, "-", item)
        return [f"{indent}{head}", *lines]
    return [f"{indent}{head} {yaml_scalar(value)}"]


def kind(raw: object) -> str:
    """What a value is, in words."""
    if raw is None:
        return "empty"
    if isinstance(raw, bool):
        return "true or false"
    if isinstance(raw, (int, float)):
        return "a number"
    if isinstance(raw, str):
        return "text"
    if isinstance(raw, Mapping):
        return "a map"
    return "a list" if isinstance(raw, (list, tuple)) else f"a {type(raw).__name__}"


def show(raw: str) -> str:
    """A plain value in quotes, cut short; nothing of it when it has several lines or looks like a key."""
    if len(raw) > 80 or not raw.isprintable():
        return "The value"
    return f'"{raw}"'


# ---- text --------------------------------------------------------------------------------------------------


def maybe(rule: Callable[[object], T]) -> Callable[[object], T | None]:
    """``rule``, but None stays None (the key is absent)."""

    def check(raw: object) -> T | None:
        return None if raw is None else rule(raw)

    return check


def text(raw: object) -> str:
    """Text of any number of lines, without NUL. Numbers and booleans are refused: YAML would change how they look."""
    if isinstance(raw, bool):
        raise Wrong(
            "YAML reads this as true or false, not as text: put it in quotes.", "true" if raw else "false"
        )
    if isinstance(raw, (int, float)):
        raise Wrong(
            "YAML reads this as a number, not as text: put it in quotes, exactly as it shall arrive.",
            str(raw),
        )
    if not isinstance(raw, str):
        raise Wrong(f"This must be text, but it is {kind(raw)}.")
    if "\0" in raw:
        raise Wrong("The text holds a NUL byte, which no program can receive.")
    if "PRIVATE KEY-----" in raw:
        raise Wrong(
            "This holds a private key, but this key is not secret. Take it out of the file (and treat it as known); "
            "a key for the servers is set by the command below.",
            lines=["pulumi config set --secret esteira:serverPrivateKey < ~/.ssh/id_ed25519"],
        )
    return raw


def line(raw: object) -> str:
    """Text of one line that is not empty and has no space at its ends."""
    value = text(raw)
    if not value.strip():
        raise Wrong("The value is empty: write one, or leave the key out.")
    if any(ord(char) < 32 or ord(char) == 127 for char in value):
        raise Wrong("The value has a line break or another control character in it.")
    if value != value.strip():
        raise Wrong("The value has spaces at its ends.", value.strip())
    return value


def matching(pattern: str, says: str, *, mend: Callable[[str], str] | None = None) -> Callable[[object], str]:
    """One line that matches ``pattern`` as a whole; ``says`` is the rule, ``mend`` a proposal made of a wrong value."""
    compiled = re.compile(pattern)

    def check(raw: object) -> str:
        value = line(raw)
        if not compiled.fullmatch(value):
            proposal = mend(value) if mend else None
            good = proposal if proposal and compiled.fullmatch(proposal) else None
            raise Wrong(f"{show(value)} is not possible here: {says}.", good)
        return value

    return check


def choice(*words: str) -> Callable[[object], str]:
    """One of ``words``; the nearest one is proposed."""

    def check(raw: object) -> str:
        value = line(raw)
        if value not in words:
            folded = {word.lower().replace("-", ""): word for word in words}
            near = difflib.get_close_matches(value.lower().replace("-", "").replace("_", ""), folded, 1, 0.6)
            raise Wrong(
                f"{show(value)} is not one of the possible words: {', '.join(words)}.",
                folded[near[0]] if near else words[0],
            )
        return value

    return check


def flag(raw: object) -> bool:
    """``true`` or ``false``; also as text, which is how Pulumi hands over top-level values."""
    if isinstance(raw, bool):
        return raw
    if raw in ("true", "false"):
        return raw == "true"
    proposal = {"yes": True, "on": True, "1": True, "no": False, "off": False, "0": False}.get(
        str(raw).lower()
    )
    if isinstance(raw, str) and raw.lower() in ("true", "false"):
        proposal = raw.lower() == "true"
    raise Wrong("This must be true or false.", proposal)


def number(minimum: int, maximum: int, what: str) -> Callable[[object], int]:
    """A whole number within bounds; also as text of digits."""

    def check(raw: object) -> int:
        if isinstance(raw, str) and re.fullmatch(r"-?[0-9]{1,18}", raw):
            raw = int(raw)
        if isinstance(raw, bool) or not isinstance(raw, int):
            raise Wrong(f"{what} must be a whole number, but this is {kind(raw)}.")
        if not minimum <= raw <= maximum:
            raise Wrong(f"{what} {raw} is out of range: it goes from {minimum} to {maximum}.")
        return raw

    return check


def positive(raw: object) -> float:
    """A number above zero, as for CPUs (Docker: ``--cpus``)."""
    if isinstance(raw, str) and re.fullmatch(r"-?[0-9]+(\.[0-9]+)?", raw):
        raw = float(raw)
    if isinstance(raw, bool) or not isinstance(raw, (int, float)):
        raise Wrong(f"This must be a number, but it is {kind(raw)}.")
    if not (math.isfinite(raw) and raw > 0):
        raise Wrong(f"{raw} is not possible here: the number must be greater than 0.")
    return float(raw)


_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_DAY = 86400.0


def duration(*, zero: bool) -> Callable[[object], float]:
    """Seconds from a number, or from text such as ``500ms``, ``2s``, ``1m30s``; at most a day. ``zero``: may be 0."""

    def check(raw: object) -> float:
        if isinstance(raw, bool) or not isinstance(raw, (int, float, str)):
            raise Wrong(
                f'This must be a duration, a number of seconds or text such as "2s", but it is {kind(raw)}.'
            )
        if isinstance(raw, str):
            if re.fullmatch(r"-?[0-9]+(\.[0-9]+)?", raw):
                seconds = float(raw)
            elif re.fullmatch(r"([0-9]+(\.[0-9]+)?(ms|s|m|h))+", raw):
                parts = re.findall(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h)", raw)
                seconds = sum(float(count) * _UNITS[unit] for count, unit in parts)
            else:
                raise Wrong(
                    f'{show(raw)} is not a duration: write seconds, or text such as "500ms", "2s", "1m".'
                )
        else:
            seconds = float(raw)
        if not math.isfinite(seconds) or seconds < 0 or seconds > _DAY:
            raise Wrong("The duration is out of range: it goes from 0 to 24 hours.")
        if seconds == 0 and not zero:
            raise Wrong("The duration must be longer than 0.")
        return seconds

    return check


# ---- lists and maps ----------------------------------------------------------------------------------------


def list_of(rule: Callable[[object], T], *, unique: bool = False) -> Callable[[object], list[T]]:
    """A list whose every item passes ``rule``; all faults are collected."""

    def check(raw: object) -> list[T]:
        if isinstance(raw, str):
            raise Wrong(
                "This must be a list, but it is text.", [raw] if raw.isprintable() and len(raw) < 80 else None
            )
        if not isinstance(raw, (list, tuple)):
            raise Wrong(f"This must be a list, but it is {kind(raw)}.")
        faults: list[Fault] = []
        good: list[T] = []
        for index, item in enumerate(raw):
            try:
                value = rule(item)
            except Wrong as wrong:
                faults += [fault.below(index) for fault in wrong.faults]
                continue
            if unique and value in good:
                faults.append(Fault(f"{show(str(value))} stands in the list twice.", (), list(good)))
                continue
            good.append(value)
        if faults:
            raise Wrong(faults)
        return good

    return check


def map_of(
    name: Callable[[str], str | None], rule: Callable[[object], T]
) -> Callable[[object], dict[str, T]]:
    """A map. ``name`` says what is wrong with a name (None: nothing)."""

    def check(raw: object) -> dict[str, T]:
        if not isinstance(raw, Mapping):
            raise Wrong(f"This must be a map of names to values, but it is {kind(raw)}.")
        faults: list[Fault] = []
        good: dict[str, T] = {}
        for key, item in raw.items():
            if not isinstance(key, str):
                faults.append(
                    Fault(
                        f"The name must be text, but it is {kind(key)}: put it in quotes.", (str(key),), "…"
                    )
                )
                continue
            shown = name_shown(key)
            problem = name(key)
            if problem is not None:
                faults.append(Fault(problem, (shown,), "…", name=_mended_name(shown)))
                continue
            try:
                good[key] = rule(item)
            except Wrong as wrong:
                faults += [
                    replace(fault, value="…" if fault.value is None else fault.value).below(shown)
                    for fault in wrong.faults
                ]
        if faults:
            raise Wrong(faults)
        return good

    return check


def _mended_name(name: str) -> str:
    """A name that is possible in every kind of map, made of one that is not."""
    words = re.sub(r"[^A-Za-z0-9_.-]+", "_", name.removeprefix("esteira.")).strip(".-")
    if words in {"", "_", "esteira"}:
        return "NAME"
    return f"_{words}" if words[0].isdecimal() else words


def name_shown(key: str) -> str:
    """A map key to show: what may be a value that somebody wrote into the name is cut off."""
    head = re.split(r"[=\n\0]", key, maxsplit=1)[0]
    return head if len(head) <= 80 else head[:77] + "…"


# ---- the registry ------------------------------------------------------------------------------------------

_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?"
_HOST = rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[0-9a-fA-F:.]+\])"


def registry(raw: object) -> str:
    """A registry's host and port, as Docker writes it in front of a repository (distribution/reference: ``domain``)."""
    value = line(raw)
    bare = re.sub(r"^[A-Za-z][A-Za-z0-9+.-]*://", "", value)
    scheme = bare != value
    user = "@" in bare.split("/")[0]
    if user:
        bare = bare.split("@", 1)[1]
    host = bare.split("/")[0].split("?")[0].lower()
    good = host if re.fullmatch(rf"{_HOST}(:[0-9]{{1,5}})?", host) else None
    if user:
        raise Wrong(
            "A user or a password has no place in the registry: they are registryUser and registryPassword.",
            good,
        )
    if scheme:
        raise Wrong("The registry is written without a scheme.", good)
    if "/" in bare:
        raise Wrong(
            f"The registry is a host only; the path {show('/' + bare.split('/', 1)[1])} belongs to repository.",
            good,
        )
    if good is None:
        raise Wrong(f'{show(value)} is not a registry: write its host, and ":" and a port where it has one.')
    if good != value:
        raise Wrong("The registry is written in lower case.", good)
    port = re.search(r":([0-9]+)$", host)
    if port and not 1 <= int(port.group(1)) <= 65535:
        raise Wrong(f"The port {port.group(1)} is out of range: it goes from 1 to 65535.")
    if not ("." in host or ":" in host or host == "localhost"):
        raise Wrong(
            f"Docker takes {show(value)} for the name of a user on Docker Hub, because it has neither a "
            "dot nor a port.",
            f"{host}:443",
        )
    return value


def repository(raw: object) -> str:
    """A repository's path in its registry (distribution/reference: ``path``), without registry, tag or digest."""
    value = line(raw)
    bare = re.sub(r"^[A-Za-z][A-Za-z0-9+.-]*://", "", value)
    bare = bare.split("@")[0]
    first, _, rest = bare.partition("/")
    has_host = bool(rest) and (":" in first or "." in first or first == "localhost")
    path = rest if has_host else bare
    path, colon, _tag = path.partition(":")
    path = path.strip("/")
    good = path.lower()
    if not re.fullmatch(
        r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*", good
    ):
        raise Wrong(
            f"{show(value)} is not a repository: it is made of words of a-z and 0-9, with . _ or - "
            "inside, and / between them."
        )
    if has_host:
        raise Wrong("The repository is written without the registry, which is a setting of its own.", good)
    if "@" in value or colon:
        raise Wrong("The repository is written without a tag or digest: the commit gives the tag.", good)
    if path != bare:
        raise Wrong('The repository begins and ends without "/".', good)
    if good != path:
        raise Wrong(
            "A repository in a registry is in lower case (a GitLab project path may have capitals).", good
        )
    if len(path) > 200:
        raise Wrong("The repository is longer than the 200 characters that a registry takes.")
    return value


def moving_tag(raw: object) -> str:
    """A tag that is not a commit's (distribution/reference: ``tag``)."""
    value = line(raw)
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}", value):
        raise Wrong(
            f'{show(value)} is not a tag: up to 128 letters, digits, "_", "." and "-", not beginning with "." or "-".',
            re.sub(r"[^A-Za-z0-9_.-]+", "-", value.split(":")[-1]).strip("-.")[:128] or None,
        )
    if re.fullmatch(r"[0-9a-f]{7,40}(-dirty(-.*)?)?", value):
        raise Wrong(
            f"{show(value)} looks like the tag of a commit; the moving tag must not overwrite one.", "latest"
        )
    return value


def image_reference(raw: object) -> str:
    """An image by tag or digest, of any registry."""
    value = line(raw)
    if re.search(r"@(?!sha256:)", value) or "://" in value:
        raise Wrong("This is not an image: an image is written without a scheme, user or password.")
    name, _, digest = value.partition("@")
    tag = ":" in name.split("/")[-1]
    if re.search(r"\s", value) or not re.fullmatch(
        rf"(?:{_HOST}(:[0-9]+)?/)?[a-z0-9._/-]+(:[\w][\w.-]{{0,127}})?", name
    ):
        raise Wrong(f"{show(value)} is not the name of an image.")
    if digest and not re.fullmatch(r"sha256:[0-9a-f]{64}", digest):
        raise Wrong("The digest of the image is not complete: it is sha256: and 64 hexadecimal digits.")
    if not (tag or digest):
        raise Wrong(f"{show(value)} names no version of the image: add a tag or a digest.")
    return value


def commit(raw: object) -> str:
    """A commit by its sha, 7 to 40 hexadecimal digits, in lower case."""
    if isinstance(raw, (int, float)) and not isinstance(raw, bool):
        raise Wrong(
            "YAML reads this commit as a number, which may lose digits: put it in quotes.", "0123abc…"
        )
    value = line(raw)
    if not re.fullmatch(r"[0-9a-fA-F]{7,40}", value):
        raise Wrong(
            f"{show(value)} is not a commit: write 7 to 40 digits of its sha (git rev-parse NAME prints it), "
            "or leave the key out for what is checked out."
        )
    return value.lower()


# ---- the image ---------------------------------------------------------------------------------------------


def project_path(what: str, *, inside: bool = True) -> Callable[[object], str]:
    """A relative path; ``inside``: that does not lead out of where it begins."""

    def check(raw: object) -> str:
        value = line(raw)
        if re.match(r"[a-z+]+://|git@", value):
            raise Wrong(f"The {what} is a path in the project, not an address.")
        if value.startswith(("/", "~")):
            raise Wrong(
                f"{show(value)} is an absolute path; the {what} is relative and stays inside the project."
            )
        if inside and posixpath.normpath(value).split("/")[0] == "..":
            raise Wrong(
                f"{show(value)} leads out of the project; everything that is built stands in its commit."
            )
        return value

    return check


_ARCH = {
    "x86_64": "amd64",
    "x64": "amd64",
    "aarch64": "arm64",
    "armhf": "arm/v7",
    "armv7l": "arm/v7",
    "i386": "386",
}
_ARCHES = ("386", "amd64", "arm", "arm64", "loong64", "mips64le", "ppc64le", "riscv64", "s390x")


def platform(raw: object) -> str:
    """``linux/ARCH[/VARIANT]`` as in the OCI image specification (Go's names of architectures)."""
    value = line(raw)
    parts = value.lower().split("/")
    if parts[0] != "linux":
        parts = ["linux", *parts] if len(parts) == 1 else ["linux", *parts[1:]]
    parts = [parts[0], *_ARCH.get(parts[1], parts[1]).split("/"), *parts[2:]] if len(parts) > 1 else parts
    good = "/".join(parts)
    legal = (
        len(parts) in (2, 3)
        and parts[1] in _ARCHES
        and (len(parts) == 2 or re.fullmatch(r"v[0-9]+", parts[2]))
    )
    if good != value or not legal:
        raise Wrong(
            f"{show(value)} is not a platform of a server: it is linux/ and an architecture ({', '.join(_ARCHES)}), "
            "and a variant where there is one, as in linux/arm/v7.",
            good if legal else None,
        )
    return value


# ---- the container -----------------------------------------------------------------------------------------

_container_name = matching(
    r"[a-zA-Z0-9][a-zA-Z0-9_.-]{1,56}",
    'a name has 2 to 57 letters, digits, "_", "." and "-", and begins with a letter or digit (Docker\'s rule; with '
    "-green behind it, it is a name in Docker's DNS, which has 63 at most)",
    mend=lambda value: re.sub(r"[^a-zA-Z0-9_.-]+", "-", value).strip("-._")[:57],
)
_TAKEN_ENDINGS = ("-blue", "-green", "-candidate")


def container_name(raw: object) -> str:
    """A container's name by which no network alias, and no container on its way, of another application is called.

    That another one's edge has the name is found on the server that both are on.
    """
    value = _container_name(raw)
    if value == "esteira" or value.endswith(_TAKEN_ENDINGS):
        what = (
            "the edge that applications with a domain share" if value == "esteira" else "another application"
        )
        raise Wrong(
            f"{show(value)} is not possible here: containers or network aliases of {what} may be named so. "
            f"No name is esteira, or ends in {', '.join(_TAKEN_ENDINGS)}.",
            f"{value}-app",
        )
    return value


network_name = matching(
    r"[a-zA-Z0-9][a-zA-Z0-9_.-]*",
    'the name of a network has letters, digits, "_", "." and "-", and begins with a letter or digit',
    mend=lambda value: re.sub(r"[^a-zA-Z0-9_.-]+", "-", value).strip("-._"),
)
word = matching(
    r"[A-Za-z0-9][A-Za-z0-9_./:-]*", 'it is a word of letters, digits, "_", ".", "/", ":" and "-"'
)
server_name = matching(
    r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}",
    'a server\'s name has 1 to 63 letters, digits, "_", "." and "-", and begins with a letter or digit',
    mend=lambda value: re.sub(r"[^A-Za-z0-9_.-]+", "-", value).strip("-._"),
)
stage = matching(
    r"[A-Za-z0-9][A-Za-z0-9_.-]*", "it is the name of a stage in the Dockerfile (FROM … AS name)"
)


def memory(raw: object) -> str:
    """Memory as Docker takes it: a whole number and b, k, m or g; at least 6m (Docker's own least)."""
    if isinstance(raw, int) and not isinstance(raw, bool):
        raw = str(raw)
    value = line(raw)
    found = re.fullmatch(r"([0-9]+)\s*([a-zA-Z]*)", value)
    unit = re.sub(r"(?<=[bkmgt])i?b(ytes)?$", "", found.group(2).lower()) if found else ""
    good = f"{found.group(1)}{unit}" if found and unit in ("b", "k", "m", "g") else None
    if found and not found.group(2):
        raise Wrong(f"{show(value)} has no unit: write b, k, m or g behind the number.", f"{found.group(1)}m")
    if found is None or good is None:
        raise Wrong(f"{show(value)} is not an amount of memory: write a whole number and b, k, m or g.")
    if good != value:
        raise Wrong(f"{show(value)} is not how Docker writes memory.", good)
    if int(found.group(1)) * {"b": 1, "k": 2**10, "m": 2**20, "g": 2**30}[unit] < 6 * 2**20:
        raise Wrong(f"{show(value)} is less than 6m, the least that Docker takes.")
    return value


def restart(raw: object) -> str:
    """A restart policy of Docker. Older YAML readers take the word no for false."""
    if isinstance(raw, bool):
        if raw:
            raise Wrong("The restart policy is a word, not true.", "always")
        return "no"
    value = line(raw)
    if not re.fullmatch(r"always|unless-stopped|no|on-failure(:[1-9][0-9]{0,5})?", value):
        raise Wrong(
            f"{show(value)} is not a restart policy: always, unless-stopped, on-failure, on-failure:5 or no."
        )
    return value


def strategy(raw: object) -> str:
    """A strategy, in any usual spelling."""
    value = line(raw)
    if re.sub(r"[^a-z]", "", value.lower()) == "bluegreen":
        return "blueGreen"
    return choice("blueGreen", "recreate")(value)


def one_or_more(check: Callable[[object], str]) -> Callable[[object], list[str]]:
    """A list, or one value without the list."""
    many = list_of(check, unique=True)

    def read(raw: object) -> list[str]:
        return [check(raw)] if isinstance(raw, str) else many(raw)

    return read


def domain_name(raw: object) -> str:
    """A host name as a certificate has it (RFC 1123), without scheme, port or path."""
    return matching(
        r"(?=.{1,253}$)([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z][a-z0-9-]{0,61}[a-z0-9]",
        "a domain is a full host name in lower case, such as parasite.example.org",
        mend=lambda value: re.sub(r"^[a-z]+://|[/:].*$", "", value.strip().lower()),
    )(raw)


def email(raw: object) -> str:
    """An address that mail can be sent to."""
    return matching(r"[^@\s]+@[^@\s]+\.[^@\s]+", "an address looks like ana@example.org")(raw)


def acme_directory(raw: object) -> str:
    """The address of an ACME directory (RFC 8555), or ``internal``."""
    return matching(r"internal|https://[^\s/]+/\S*", "an ACME directory is an https address, or internal")(
        raw
    )


def certificate(raw: object) -> str:
    """A certificate in PEM form."""
    if not isinstance(raw, str) or "-----BEGIN CERTIFICATE-----" not in raw or "PRIVATE KEY" in raw:
        raise Wrong("a certificate in PEM form is wanted; it begins with -----BEGIN CERTIFICATE-----.")
    return raw.strip()


def network_range(raw: object) -> str:
    """An address or a range of addresses (CIDR), IPv4 or IPv6."""
    value = line(raw)
    try:
        ipaddress.ip_network(value, strict=False)
    except ValueError:
        raise Wrong(
            f"{show(value)} is neither an address nor a range of addresses such as 10.0.0.0/8."
        ) from None
    return value


def health_path(raw: object) -> str:
    """The path of an HTTP request (RFC 9112: ``origin-form``)."""
    return matching(
        r"/[!-~]*",
        "a path begins with / and has no spaces",
        mend=lambda value: (
            re.sub(r"^[a-z]+://[^/]*", "", "/" + value if "://" not in value else value) or "/"
        ),
    )(raw)


def arguments(raw: object) -> list[str]:
    """A command: a list of text, or one text that is split as a shell splits it, without variables and operators."""
    if isinstance(raw, str):
        if not raw.strip():
            raise Wrong("The command is empty: write one, or leave the key out.")
        if "\0" in raw:
            raise Wrong("The command holds a NUL byte.")
        try:
            words = shlex.split(raw)
        except ValueError:
            words = []
        if not words:
            raise Wrong("The command has a quote that is not closed; a list needs no quotes.")
        operators = [item for item in words if item in ("&&", "||", "|", ";", "&", ">", ">>", "<", "2>&1")]
        if operators:
            raise Wrong(
                f"The command has {operators[0]} in it, which only a shell understands, and none is started.",
                ["sh", "-c", raw] if raw.isprintable() else None,
            )
        return words
    items = list_of(text)(raw)
    if not items:
        raise Wrong("The command is an empty list: write one, or leave the key out.")
    if not items[0]:
        raise Wrong("The first word of the command, the program, is empty.")
    return items


def absolute(what: str, path: str) -> str | None:
    """What is wrong with an absolute path in a container or on a server; None if nothing."""
    shown = show(name_shown(path))
    if any(ord(char) < 32 or ord(char) == 127 for char in path):
        return f"The {what} has a line break or another control character in it."
    if not path.startswith("/"):
        return f"The {what} {shown} is not absolute: it begins with /."
    if ".." in path.split("/") or "." in path.split("/"):
        return f'The {what} {shown} has "." or ".." in it.'
    if "//" in path or (path != "/" and path.endswith("/")):
        return f"The {what} {shown} has a / too many."
    return None


def volume(raw: object) -> str:
    """``name:/path[:ro]`` or ``/host:/path[:ro]``."""
    value = line(raw)
    parts = value.split(":")
    if len(parts) == 1:
        raise Wrong(
            f"{show(value)} has no name: a volume without one would be another one in each release.",
            f"data:{value}" if value.startswith("/") else None,
        )
    source, target = parts[0], parts[1]
    mode = parts[2] if len(parts) > 2 else "rw"
    if len(parts) > 3 or mode not in ("ro", "rw"):
        raise Wrong(
            f"{show(value)} is not a volume: write name:/path or /host:/path, and :ro behind it to make it read-only."
        )
    if not source.startswith("/"):
        if source.startswith((".", "~")) or "/" in source:
            raise Wrong(
                f"{show(source)} is a relative path, which means nothing on a server: write it from / on, "
                "or a volume's name."
            )
        if not re.fullmatch(r"[a-zA-Z0-9][a-zA-Z0-9_.-]+", source):
            raise Wrong(
                f"{show(source)} is not a volume's name: 2 or more letters, digits, _ . - and a letter or digit first."
            )
    else:
        problem = absolute("path on the server", source)
        if problem:
            raise Wrong(problem)
    problem = absolute("path in the container", target) or (
        "A volume cannot take the place of the container's whole file system." if target == "/" else None
    )
    if problem:
        raise Wrong(problem)
    return value


def tmpfs(raw: object) -> str:
    """``/path[:options]`` as Docker takes it."""
    value = line(raw)
    problem = absolute("path", value.split(":")[0]) or (
        "A tmpfs cannot be /." if value.split(":")[0] == "/" else None
    )
    if problem:
        raise Wrong(problem)
    return value


def user(raw: object) -> str:
    """``user[:group]``, each a name or a number."""
    if isinstance(raw, int) and not isinstance(raw, bool):
        raw = str(raw)
    return matching(
        r"[A-Za-z0-9_][\w.-]*(:[A-Za-z0-9_][\w.-]*)?", "it is user or user:group, each a name or a number"
    )(raw)


def stop_signal(raw: object) -> str:
    """A signal by name (``SIGTERM``, ``TERM``) or number."""
    if isinstance(raw, int) and not isinstance(raw, bool):
        raw = str(raw)
    value = line(raw)
    names = {item.name for item in signal.Signals}
    full = value if value.startswith("SIG") else f"SIG{value}"
    legal = full in names or re.fullmatch(r"SIGRT(MIN(\+[0-9]+)?|MAX(-[0-9]+)?)", full)
    if not legal and not (value.isdecimal() and 1 <= int(value) <= 64):
        upper = value.upper() if value.upper().startswith("SIG") else f"SIG{value.upper()}"
        raise Wrong(f"{show(value)} is not a signal.", upper if upper in names else None)
    return value


def short_port(raw: str) -> dict[str, object]:
    """``[address:]published:target[/tcp|/udp]``, Docker's short form of a port, as a map."""
    value = line(raw)
    if value.isdecimal():
        raise Wrong(
            f"{show(value)} is one port; write the published one and the one in the container.",
            f"{value}:{value}",
        )
    found = re.fullmatch(r"(?:(\[[^\]]*\]|[^:]*):)?([^:/]+):([^:/]+)(?:/(.+))?", value)
    if found is None:
        raise Wrong(f"{show(value)} is not a port: write published:target or address:published:target.")
    address, published, target, protocol = found.groups()
    if "-" in published or "-" in target:
        raise Wrong(f"{show(value)} is a range of ports; write each port on a line of its own.")
    if not (published.isdecimal() and target.isdecimal()):
        raise Wrong(f"{show(value)} is not a port: both sides are numbers.")
    ports: dict[str, object] = {"published": int(published), "target": int(target)}
    if address is not None:
        ports["address"] = address.strip("[]")
    if protocol is not None:
        ports["protocol"] = protocol
    return ports


def address(raw: object) -> str:
    """An IP address of the server to publish on."""
    value = line(raw).strip("[]")
    try:
        return str(ipaddress.ip_address(value))
    except ValueError:
        raise Wrong(
            f"{show(value)} is not an IP address; Docker publishes on addresses, not on names."
        ) from None


# ---- names and values of environment, labels, files --------------------------------------------------------

_TAKEN = (
    "PATH",
    "HOME",
    "IFS",
    "ENV",
    "BASH_ENV",
    "SHELLOPTS",
    "PWD",
    "OLDPWD",
    "UID",
    "EUID",
    "PPID",
    "TMPDIR",
)


def environment_name(name: str) -> str | None:
    """What is wrong with the name of an environment variable of the container; dots and dashes are allowed."""
    if name == "":
        return "The name of the variable is empty."
    if "=" in name:
        return "The name of the variable has = in it; write name: value."
    if name[0].isdecimal():
        return f"The name {show(name)} begins with a digit."
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.-]*", name):
        return f"The name {show(name_shown(name))} may have letters, digits, _ . and - only."
    return None


def secret_environment_name(name: str) -> str | None:
    """The same for a secret variable, which travels through a shell's environment: its names only, and not its own."""
    problem = environment_name(name)
    if problem is None and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        return f"The name {show(name)} of a secret variable may have letters, digits and _ only: a shell hands it over."
    if problem is None and (name in _TAKEN or name.startswith(("DOCKER_", "LD_", "ESTEIRA_"))):
        return f"{name} steers the shell and the docker command that hand secrets over; use another name for a secret."
    return problem


def label_name(name: str) -> str | None:
    """What is wrong with the name of a label; ``esteira.`` is the program's own."""
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_./-]*", name):
        return f"The label {show(name_shown(name))} may have letters, digits, _ . / and - only."
    if name == "esteira" or name.startswith("esteira."):
        return f"The label {show(name)} is kept for Esteira's own use; use another prefix."
    return None


def option_name(name: str) -> str | None:
    """What is wrong with the name of a log driver's option."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
        return f"The option {show(name_shown(name))} may have letters, digits, _ . and - only."
    return None


def file_path(path: str) -> str | None:
    """What is wrong with the path of a secret file in the container."""
    problem = absolute("path of the file", path)
    if problem is None and (path == "/" or path.split("/")[1] in ("proc", "sys", "dev")):
        return f"{show(name_shown(path))} is not a place for a file."
    return problem


# ---- servers -----------------------------------------------------------------------------------------------


def host(raw: object) -> str:
    """A host name or an IP address, without user, port or scheme."""
    value = line(raw)
    if value.startswith("-"):
        raise Wrong(f"{show(value)} is not a host.")
    try:
        return str(ipaddress.ip_address(value.strip("[]")))
    except ValueError:
        pass
    bare = re.sub(r"^[a-z]+://", "", value).split("/")[0]
    if "@" in bare:
        bare = re.sub(r":[0-9]+$", "", bare.split("@")[-1])
        raise Wrong(
            "The user stands in the host; it has a key of its own, user.", bare if _is_host(bare) else None
        )
    if bare != value:
        raise Wrong(
            "The host is written without a scheme and without a path.", bare if _is_host(bare) else None
        )
    name, colon, port = value.rpartition(":")
    if colon and port.isdecimal() and _is_host(name):
        raise Wrong(f"The port stands in the host; it has a key of its own, port: {port}.", name)
    if not _is_host(value):
        raise Wrong(f"{show(value)} is not the name or address of a host.")
    return value


def _is_host(value: str) -> bool:
    if re.fullmatch(r"[0-9.]+", value):
        return False  # an address with a part too many or too big: no host has such a name
    return bool(re.fullmatch(rf"{_HOST}", value)) and len(value) <= 253 and "[" not in value


ssh_user = matching(r"[A-Za-z0-9_][A-Za-z0-9_.@\\-]*\$?", "it is the name of a user, without spaces")

_KEY_TYPES = ("ssh-ed25519", "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521", "ssh-rsa")


def host_key(raw: object) -> str:
    """One public key in authorized_keys format; a comment behind it is dropped, and so are comment lines around it."""
    if not isinstance(raw, str):
        raise Wrong("The host key must be text: its type and its base64 text.")
    if "PRIVATE KEY" in raw:
        raise Wrong(
            "This is a private key. A host key is the public key of the server; treat this private key "
            "as known to others."
        )
    lines = [item.strip() for item in raw.splitlines() if item.strip() and not item.strip().startswith("#")]
    if not lines:
        raise Wrong("The host key is empty.")
    if len(lines) > 1:
        raise Wrong(
            "These are several host keys, and one is needed; the one that begins with ssh-ed25519 is best."
        )
    words = lines[0].split()
    if re.match(r"(SHA256:|MD5:|([0-9a-f]{2}:){5})", words[0]) or (
        len(words) > 1 and words[1].startswith("SHA256:")
    ):
        raise Wrong("This is the fingerprint of a host key; the key itself is needed.")
    if words[0] in _KEY_TYPES and len(words) > 1:
        return _public_key(words[0], words[1])
    if len(words) > 2 and words[1] in _KEY_TYPES:
        raise Wrong(
            "This is a line of known_hosts, or of ssh-keyscan; drop its first word, the host.",
            _if_key(words[1], words[2]),
        )
    if words[0].startswith("AAAA"):
        kind = _blob_type(words[0])
        raise Wrong(
            "The type of the host key is missing in front of it.", _if_key(kind, words[0]) if kind else None
        )
    raise Wrong(
        f"This is not a host key: it begins with its type, one of {', '.join(_KEY_TYPES)}, and its base64 text follows."
    )


def _blob_type(encoded: str) -> str | None:
    try:
        blob = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        return None
    size = int.from_bytes(blob[:4], "big")
    name = blob[4 : 4 + size]
    return name.decode("ascii", "replace") if 0 < size < 40 and len(name) == size else None


_SHORTEST = 51
"""Bytes of an ed25519 key with its type, the shortest of all; paramiko does not look at its length."""


def _public_key(kind: str, encoded: str) -> str:
    inner = _blob_type(encoded)
    if inner is None:
        raise Wrong("The base64 text of the host key is cut off or mistyped.")
    if inner != kind:
        raise Wrong(
            f"The host key says that it is {kind}, but inside it is another kind; copy the whole line again."
        )
    blob = base64.b64decode(encoded)
    try:
        whole = paramiko.PKey.from_type_string(kind, blob).asbytes() == blob and len(blob) >= _SHORTEST
    except Exception:  # noqa: BLE001 - paramiko and cryptography raise many kinds here, and all mean the same
        raise Wrong(
            "The host key cannot be read: it is cut off or mistyped; copy the whole line again."
        ) from None
    if not whole:
        raise Wrong("The host key is cut off; copy the whole line again.")
    return f"{kind} {encoded}"


def _if_key(kind: str, encoded: str) -> str | None:
    try:
        return _public_key(kind, encoded)
    except Wrong:
        return None


# ---- secrets -----------------------------------------------------------------------------------------------


def secret_text(raw: object) -> SecretStr:
    """The content of a secret variable or file: any text without NUL."""
    value = raw.get_secret_value() if isinstance(raw, SecretStr) else raw
    if not isinstance(value, str):
        raise Wrong(f"The value must be text, but it is {kind(raw)}: set it again, as text.")
    if "\0" in value:
        raise Wrong("The value holds a NUL byte.")
    return SecretStr(value)


def password(raw: object) -> SecretStr:
    """A password: one line. One line end behind it is dropped, because a file or a pipe usually leaves one."""
    value = secret_text(raw).get_secret_value()
    value = re.sub(r"\r?\n\Z", "", value)
    if not value:
        raise Wrong("The password is empty.")
    if any(ord(char) < 32 or ord(char) == 127 for char in value):
        raise Wrong("The password has a line break or another control character in it.")
    return SecretStr(value)


def private_key(raw: object) -> SecretStr:
    """A private key in OpenSSH or PEM format that needs no passphrase."""
    value = secret_text(raw).get_secret_value().replace("\r\n", "\n").strip() + "\n"
    problem = _private_key_problem(value)
    if problem is not None:
        raise Wrong(problem)
    return SecretStr(value)


_ENCRYPTED = (
    "The private key is encrypted, and nobody can type its passphrase here. "
    "Make a key without one for this purpose: ssh-keygen -t ed25519 -N '' -f FILE."
)


def _private_key_problem(value: str) -> str | None:
    if not value.strip():
        return "The private key is empty."
    if value.startswith("PuTTY-User-Key-File"):
        return (
            "This is a key in PuTTY's format; puttygen FILE -O private-openssh -o NEW writes it in OpenSSH's."
        )
    if value.split(maxsplit=1)[0] in _KEY_TYPES:
        return "This is the public key (the file whose name ends in .pub); the private one is needed."
    if "-----BEGIN" not in value:
        return "This is not a private key. Give the text of the key's file, not its path."
    if "\\n" in value and value.count("\n") < 3:
        return "The lines of this private key are joined by \\n; give the file as it is."
    if "-----END" not in value:
        return "The private key is cut off: its last line, -----END … PRIVATE KEY-----, is missing."
    encoded = value.encode("utf-8", "replace")
    try:
        if "BEGIN OPENSSH PRIVATE KEY" in value:
            serialization.load_ssh_private_key(encoded, password=None)
        else:
            serialization.load_pem_private_key(encoded, password=None)
    except TypeError:
        return _ENCRYPTED
    except Exception:  # noqa: BLE001 - cryptography raises many kinds here, and none may show what it read
        if "ENCRYPTED" in value:
            return _ENCRYPTED
        return "The private key cannot be read: it is cut off, mistyped or of an unknown kind."
    for kind in (paramiko.Ed25519Key, paramiko.ECDSAKey, paramiko.RSAKey):
        try:
            kind.from_private_key(io.StringIO(value))
        except Exception:  # noqa: BLE001, S112 - the next kind may fit
            continue
        return None
    return "The private key has a format that few read; ssh-keygen -p -f FILE rewrites it (leave the passphrase empty)."


def _any_name(_name: str) -> str | None:
    return None  # the names are compared with the servers' later


def per_server(rule: Callable[[object], SecretStr]) -> Callable[[object], dict[str, SecretStr]]:
    """One secret for all servers, kept under the name ``""``, or a map from a server's name to its secret."""

    def check(raw: object) -> dict[str, SecretStr]:
        if isinstance(raw, Mapping):
            if not raw:
                raise Wrong("The map is empty: write a secret for each server, or one for all.")
            return map_of(_any_name, rule)(raw)
        return {"": rule(raw)}

    return check
