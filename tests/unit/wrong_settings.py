"""A table of wrong settings: what somebody wrote, and the error that it must give.

Every case starts from settings that are right (:func:`right`) and changes one thing.
"""

from __future__ import annotations

import copy
import functools
import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import paramiko
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from components.settings import Settings, load_settings, secret_keys_of_model

ABSENT = object()
"""As a value: the key is taken out."""

HOST_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIExampleReplaceThisWithYourServersOwnHostKey"
BLOB = HOST_KEY.split()[1]


@functools.cache
def private_key(passphrase: str = "", name: str = "server") -> str:
    """Return a new private key in OpenSSH format; the same one for the same arguments."""
    del name
    how = (
        serialization.BestAvailableEncryption(passphrase.encode())
        if passphrase
        else serialization.NoEncryption()
    )
    pem = ed25519.Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, how
    )
    return pem.decode()


@functools.cache
def pkcs8_key(passphrase: str = "") -> str:
    """Return a private key in PKCS#8, which not every SSH program reads."""
    how = (
        serialization.BestAvailableEncryption(passphrase.encode())
        if passphrase
        else serialization.NoEncryption()
    )
    key = ec.generate_private_key(ec.SECP256R1())
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, how).decode()


@functools.cache
def rsa_key() -> str:
    """Return a private key in the old PEM format."""
    file = io.StringIO()
    paramiko.RSAKey.generate(2048).write_private_key(file)
    return file.getvalue()


SECRETS: dict[str, Any] = {
    "registryPassword": "MARKER-registry",
    "pullPassword": "MARKER-pull",
    "serverPassword": "MARKER-server",
    "sudoPassword": "MARKER-sudo",
    "jumpPassword": "MARKER-jump",
    "secretEnvironment": {"API_TOKEN": "MARKER-env"},
    "secretFiles": {"/run/secrets/token": "MARKER-file"},
}


def right() -> dict[str, Any]:
    """Return settings without a mistake, with every secret key set to a marker or a fresh private key."""
    values: dict[str, Any] = {
        "registry": "registry.example.com",
        "repository": "group/parasite",
        "registryUser": "ana",
        "pullUser": "token",
        "image": {"context": "app", "buildArgs": {"VERSION": "1.0"}},
        "container": {
            "name": "parasite",
            "ports": ["8888:8000"],
            "environment": {"DEBUG": "false"},
            "volumes": ["data:/data"],
        },
        "health": {"path": "/health"},
        "servers": [
            {
                "name": "web",
                "host": "web.example.com",
                "user": "deploy",
                "hostKey": HOST_KEY,
                "sudo": True,
                "jumpHost": {"host": "jump.example.com", "hostKey": HOST_KEY},
            }
        ],
        "serverPrivateKey": private_key(),
        "jumpPrivateKey": private_key(name="jump"),
    }
    return copy.deepcopy({**values, **SECRETS})


def changed(*changes: tuple[str, object]) -> dict[str, Any]:
    """Return the right settings with changes; a key is a path with slashes, as in ``container/ports/0``."""
    values = right()
    for path, value in changes:
        steps = path.split("/")
        target: Any = values
        for step in steps[:-1]:
            target = target[int(step)] if isinstance(target, list) else target.setdefault(step, {})
        last: Any = int(steps[-1]) if isinstance(target, list) else steps[-1].replace("|", "/")
        if value is ABSENT:
            del target[last]
        elif isinstance(target, list) and last == len(target):
            target.append(value)
        else:
            target[last] = value
    return values


def load(values: dict[str, Any], **options: Any) -> Settings:
    """Load settings as Pulumi would have handed them over: every secret key encrypted."""
    options = {
        "project": "esteira",
        "stack": "staging",
        "root": Path("/nowhere"),
        "environ": {},
        "secret_keys": secret_keys_of_model() & values.keys(),
        **options,
    }
    secret_keys = options.pop("secret_keys")
    return load_settings(values, secret_keys, **options)


@dataclass(frozen=True)
class Wrong:
    """One case: the change, and the key, a part of the problem, and the lines to write of the error that it must give.

    ``options`` go to :func:`load`. ``also``: further keys that must have a mistake; all others must not.
    """

    change: tuple[tuple[str, object], ...]
    key: str
    problem: str
    write: tuple[str, ...]
    options: dict[str, Any] = field(default_factory=dict)
    also: tuple[str, ...] = ()


WRONG = (
    # Keys that do not exist, and shapes that are wrong
    Wrong(
        (("registri", "x"),),
        "registri",
        'There is no key "registri" here; "registry" is probably meant.',
        ("esteira:registry: registry.gitlab.com",),
    ),
    Wrong(
        (("Registry", "registry.example.com"),),
        "Registry",
        'There is no key "Registry" here; "registry" is probably meant.',
        ("esteira:registry: registry.gitlab.com",),
    ),
    Wrong(
        (("healthcheck", {"path": "/health"}),),
        "healthcheck",
        'There is no key "healthcheck" here; "health" is probably meant.',
        ("esteira:health:", "  path: /health"),
    ),
    Wrong(
        (("domain", "https://Parasite.example.com/"),),
        "domain",
        "a domain is a full host name in lower case",
        ("esteira:domain: parasite.example.com",),
    ),
    Wrong(
        (("domain", "parasite.example.com"), ("strategy", "recreate")),
        "strategy",
        "A domain needs the edge, and so the strategy blueGreen.",
        ("esteira:strategy: blueGreen",),
    ),
    Wrong(
        (("domain", "parasite.example.com"), ("container/ports", ["8888:8000", "9999:9000"])),
        "container.ports",
        "With a domain the container has one port, the one that the edge sends requests to.",
        ("esteira:container:", "  ports:", '    - "8888:8000"'),
    ),
    Wrong(
        (("acme", {"email": "ana"}),),
        "acme.email",
        "an address looks like ana@example.org",
        ("esteira:acme:", "  email: ana@example.org"),
    ),
    Wrong(
        (("acme", {"directory": "http://acme.example.org/dir"}),),
        "acme.directory",
        "an ACME directory is an https address, or internal",
        ("esteira:acme:", '  directory: "https://acme.example.org/directory"'),
    ),
    Wrong(
        (("acme", {"root": "/etc/ssl/ca.pem", "directory": "https://acme.example.org/directory"}),),
        "acme.root",
        "a certificate in PEM form is wanted",
        ("esteira:acme:", '  root: "-----BEGIN CERTIFICATE-----\\nMIIB…\\n-----END CERTIFICATE-----"'),
    ),
    Wrong(
        (("container/env", {"A": "b"}),),
        "container.env",
        'There is no key "env" here; "environment" is probably meant.',
        ("esteira:container:", "  environment:", '    DEBUG: "false"'),
    ),
    Wrong(
        (("container/enviroment", {"A": "b"}),),
        "container.enviroment",
        'There is no key "enviroment" here; "environment" is probably meant.',
        ("esteira:container:", "  environment:", '    DEBUG: "false"'),
    ),
    Wrong(
        (("container/stop_timeout", "5s"),),
        "container.stop_timeout",
        'There is no key "stop_timeout" here; "stopTimeout" is probably meant.',
        ("esteira:container:", "  stopTimeout: 10s"),
    ),
    Wrong(
        (("container/secretEnvironment", {"A": "b"}),),
        "container.secretEnvironment",
        '"secretEnvironment" is a key of its own, at the top.',
        ("pulumi config set --secret --path 'esteira:secretEnvironment.NAME'",),
    ),
    Wrong(
        (("container/privileged", True),),
        "container.privileged",
        'There is no key "privileged" here.',
        ("(nothing: take the key out)",),
    ),
    Wrong(
        (("health/pth", "/health"),),
        "health.pth",
        'There is no key "pth" here; "path" is probably meant.',
        ("esteira:health:", "  path: /health"),
    ),
    Wrong(
        (("servers/0/hostkey", "x"),),
        "servers[0].hostkey",
        'There is no key "hostkey" here; "hostKey" is probably meant.',
        ("esteira:servers:", "  - hostKey: ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAA…"),
    ),
    Wrong(
        (("servers/0/jumpHost/hostname", "x"),),
        "servers[0].jumpHost.hostname",
        'There is no key "hostname" here; "host" is probably meant.',
        ("esteira:servers:", "  - jumpHost:", "      host: jump.example.org"),
    ),
    Wrong(
        (("container/logging", {"opts": {}}),),
        "container.logging.opts",
        'There is no key "opts" here; "options" is probably meant.',
        ("esteira:container:", "  logging:", "    options:", "      max-size: 10m", '      max-file: "3"'),
    ),
    Wrong(
        (("container", ABSENT),),
        "container",
        "The key is not set.",
        ("esteira:container:", "  name: parasite"),
    ),
    Wrong(
        (("container", "parasite"),),
        "container",
        "This must be a map of keys, but it is text.",
        ("esteira:container:", "  name: parasite"),
    ),
    Wrong(
        (("container", ["parasite"]),),
        "container",
        "This must be a map of keys, but it is a list.",
        ("esteira:container:", "  name: parasite"),
    ),
    Wrong(
        (("container/name", ABSENT),),
        "container.name",
        "The key is not set.",
        ("esteira:container:", "  name: parasite"),
    ),
    Wrong(
        (("container/name", None),),
        "container.name",
        "The key has no value: write one, or leave the key out.",
        ("esteira:container:", "  name: parasite"),
    ),
    Wrong(
        (("image", "app"),),
        "image",
        "This must be a map of keys, but it is text.",
        ("esteira:image:", '  context: "."'),
    ),
    Wrong(
        (("health", True),),
        "health",
        "This must be a map of keys, but it is true or false.",
        ("esteira:health:", "  path: /health"),
    ),
    Wrong(
        (("servers", {"host": "web.example.com"}),),
        "servers",
        "This must be a list, but it is a map.",
        (
            "esteira:servers:",
            "  - host: 203.0.113.10",
            "    user: deploy",
            "    hostKey: ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAA…",
        ),
    ),
    Wrong(
        (("servers/0", "web.example.com"),),
        "servers[0]",
        "This must be a map of keys, but it is text.",
        (
            "esteira:servers:",
            "  - host: 203.0.113.10",
            "    user: deploy",
            "    hostKey: ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAA…",
        ),
    ),
    Wrong(
        (("keepReleases", ""),),
        "keepReleases",
        "The key has no value: write one, or leave the key out.",
        ("esteira:keepReleases: 5",),
    ),
    # The registry, the repository, the tag, the commit
    Wrong(
        (("registry", ABSENT),),
        "registry",
        "The key is not set, and neither is the environment variable CI_REGISTRY.",
        ("esteira:registry: registry.gitlab.com",),
    ),
    Wrong(
        (("registry", "https://registry.example.com"),),
        "registry",
        "The registry is written without a scheme.",
        ("esteira:registry: registry.example.com",),
    ),
    Wrong(
        (("registry", "registry.example.com/group"),),
        "registry",
        'The registry is a host only; the path "/group" belongs to repository.',
        ("esteira:registry: registry.example.com",),
    ),
    Wrong(
        (("registry", "https://ana:pw@registry.example.com/v2/"),),
        "registry",
        "A user or a password has no place in the registry: they are registryUser and",
        ("esteira:registry: registry.example.com",),
    ),
    Wrong(
        (("registry", "Registry.Example.com"),),
        "registry",
        "The registry is written in lower case.",
        ("esteira:registry: registry.example.com",),
    ),
    Wrong(
        (("registry", "registry"),),
        "registry",
        'Docker takes "registry" for the name of a user on Docker Hub, because it has neither a',
        ('esteira:registry: "registry:443"',),
    ),
    Wrong(
        (("registry", "registry.example.com:70000"),),
        "registry",
        "The port 70000 is out of range: it goes from 1 to 65535.",
        ("esteira:registry: registry.gitlab.com",),
    ),
    Wrong(
        (("registry", "registry example com"),),
        "registry",
        '"registry example com" is not a registry: write its host, and ":" and a port where it',
        ("esteira:registry: registry.gitlab.com",),
    ),
    Wrong(
        (("registry", 5000),),
        "registry",
        "YAML reads this as a number, not as text: put it in quotes, exactly as it shall arrive.",
        ('esteira:registry: "5000"',),
    ),
    Wrong(
        (("repository", ABSENT),),
        "repository",
        "The key is not set, and neither is the environment variable CI_PROJECT_PATH.",
        ("esteira:repository: group/parasite",),
    ),
    Wrong(
        (("repository", "Group/Parasite"),),
        "repository",
        "A repository in a registry is in lower case (a GitLab project path may have capitals).",
        ("esteira:repository: group/parasite",),
    ),
    Wrong(
        (("repository", "group/parasite:latest"),),
        "repository",
        "The repository is written without a tag or digest: the commit gives the tag.",
        ("esteira:repository: group/parasite",),
    ),
    Wrong(
        (
            (
                "repository",
                "group/parasite@sha256:0000000000000000000000000000000000000000000000000000000000000000",
            ),
        ),
        "repository",
        "The repository is written without a tag or digest: the commit gives the tag.",
        ("esteira:repository: group/parasite",),
    ),
    Wrong(
        (("repository", "registry.example.com/group/parasite"),),
        "repository",
        "The repository is written without the registry, which is a setting of its own.",
        ("esteira:repository: group/parasite",),
    ),
    Wrong(
        (("repository", "/group/parasite"),),
        "repository",
        'The repository begins and ends without "/".',
        ("esteira:repository: group/parasite",),
    ),
    Wrong(
        (("repository", "group/para site"),),
        "repository",
        '"group/para site" is not a repository: it is made of words of a-z and 0-9, with .',
        ("esteira:repository: group/parasite",),
    ),
    Wrong(
        (("repository", "group//parasite"),),
        "repository",
        '"group//parasite" is not a repository: it is made of words of a-z and 0-9, with .',
        ("esteira:repository: group/parasite",),
    ),
    Wrong(
        (("registryUser", ABSENT),),
        "registryUser",
        "The password of the registry user is set, but registryUser is not.",
        ("esteira:registryUser: deploy",),
    ),
    Wrong(
        (("registryPassword", ABSENT),),
        "registryPassword",
        "registryUser is set, but its password is not.",
        ("pulumi config set --secret esteira:registryPassword",),
    ),
    Wrong(
        (("pullPassword", ABSENT),),
        "pullPassword",
        "pullUser is set, but its password is not.",
        ("pulumi config set --secret esteira:pullPassword",),
    ),
    Wrong(
        (("pullUser", ABSENT),),
        "pullUser",
        "The password of the pull user is set, but pullUser is not.",
        ("esteira:pullUser: deploy",),
    ),
    Wrong(
        (("registryPasswordFile", "secret.txt"),),
        "registryPasswordFile",
        "The password of the registry is set twice, as registryPassword and by this file; keep",
        ("pulumi config rm esteira:registryPasswordFile",),
    ),
    Wrong(
        (
            ("registryPassword", ABSENT),
            ("registryPasswordFile", "secret.txt"),
        ),
        "registryPasswordFile",
        'The file "secret.txt" with the registry\'s password does not exist.',
        (
            "pulumi config rm esteira:registryPasswordFile",
            "pulumi config set --secret esteira:registryPassword",
        ),
    ),
    Wrong(
        (("registryInsecure", "yes"),),
        "registryInsecure",
        "This must be true or false.",
        ("esteira:registryInsecure: true",),
    ),
    Wrong(
        (("movingTag", "feature/new"),),
        "movingTag",
        '"feature/new" is not a tag: up to 128 letters, digits, "_", "." and "-", not beginning',
        ("esteira:movingTag: feature-new",),
    ),
    Wrong(
        (("movingTag", ".latest"),),
        "movingTag",
        '".latest" is not a tag: up to 128 letters, digits, "_", "." and "-", not beginning with',
        ("esteira:movingTag: latest",),
    ),
    Wrong(
        (("movingTag", "0123abc"),),
        "movingTag",
        '"0123abc" looks like the tag of a commit; the moving tag must not overwrite one.',
        ("esteira:movingTag: latest",),
    ),
    Wrong(
        (("movingTag", "0000000000000000000000000000000000000000-dirty-0123456789ab"),),
        "movingTag",
        '"0000000000000000000000000000000000000000-dirty-0123456789ab" looks like the tag of a',
        ("esteira:movingTag: latest",),
    ),
    Wrong(
        (("movingTag", "latest…"),),
        "movingTag",
        '"latest…" is not a tag: up to 128 letters, digits, "_", "." and "-", not beginning with',
        ("esteira:movingTag: latest",),
    ),
    Wrong(
        (("commit", "HEAD"),),
        "commit",
        '"HEAD" is not a commit: write 7 to 40 digits of its sha (git rev-parse NAME prints it),',
        ('esteira:commit: "0123abc"',),
    ),
    Wrong(
        (("commit", "0123ab"),),
        "commit",
        '"0123ab" is not a commit: write 7 to 40 digits of its sha (git rev-parse NAME prints',
        ('esteira:commit: "0123abc"',),
    ),
    Wrong(
        (("commit", "00000000000000000000000000000000000000000"),),
        "commit",
        '"00000000000000000000000000000000000000000" is not a commit: write 7 to 40 digits of',
        ('esteira:commit: "0123abc"',),
    ),
    Wrong(
        (("commit", 1234567),),
        "commit",
        "YAML reads this commit as a number, which may lose digits: put it in quotes.",
        ('esteira:commit: "0123abc…"',),
    ),
    Wrong(
        (("edgeImage", "caddy"),),
        "edgeImage",
        '"caddy" names no version of the image: add a tag or a digest.',
        ('esteira:edgeImage: "caddy:2.11.9-alpine"',),
    ),
    Wrong(
        (("edgeImage", "https://example.com/caddy:2"),),
        "edgeImage",
        "This is not an image: an image is written without a scheme, user or password.",
        ('esteira:edgeImage: "caddy:2.11.9-alpine"',),
    ),
    Wrong(
        (("edgeImage", "caddy@sha256:0123"),),
        "edgeImage",
        "The digest of the image is not complete: it is sha256: and 64 hexadecimal digits.",
        ('esteira:edgeImage: "caddy:2.11.9-alpine"',),
    ),
    # The image
    Wrong(
        (("image/context", "/srv/app"),),
        "image.context",
        '"/srv/app" is an absolute path; the context is relative and stays inside the project.',
        ("esteira:image:", "  context: examples/parasite"),
    ),
    Wrong(
        (("image/context", "../app"),),
        "image.context",
        '"../app" leads out of the project; everything that is built stands in its commit.',
        ("esteira:image:", "  context: examples/parasite"),
    ),
    Wrong(
        (("image/context", "https://example.com/app.git"),),
        "image.context",
        "The context is a path in the project, not an address.",
        ("esteira:image:", "  context: examples/parasite"),
    ),
    Wrong(
        (("image/dockerfile", "../../Dockerfile"),),
        "image.dockerfile",
        "The Dockerfile stands outside the project.",
        ("esteira:image:", "  dockerfile: Dockerfile"),
    ),
    Wrong(
        (("image/dockerfile", "/Dockerfile"),),
        "image.dockerfile",
        '"/Dockerfile" is an absolute path; the Dockerfile is relative and stays inside the',
        ("esteira:image:", "  dockerfile: Dockerfile"),
    ),
    Wrong(
        (("image/target", "two words"),),
        "image.target",
        '"two words" is not possible here: it is the name of a stage in the Dockerfile (FROM …',
        ("esteira:image:", "  target: production"),
    ),
    Wrong(
        (("image/platform", "arm64"),),
        "image.platform",
        '"arm64" is not a platform of a server: it is linux/ and an architecture (386, amd64,',
        ("esteira:image:", "  platform: linux/arm64"),
    ),
    Wrong(
        (("image/platform", "linux/x86_64"),),
        "image.platform",
        '"linux/x86_64" is not a platform of a server: it is linux/ and an architecture (386,',
        ("esteira:image:", "  platform: linux/amd64"),
    ),
    Wrong(
        (("image/platform", "windows/amd64"),),
        "image.platform",
        '"windows/amd64" is not a platform of a server: it is linux/ and an architecture (386,',
        ("esteira:image:", "  platform: linux/amd64"),
    ),
    Wrong(
        (("image/platform", "linux/pdp11"),),
        "image.platform",
        '"linux/pdp11" is not a platform of a server: it is linux/ and an architecture (386,',
        ("esteira:image:", "  platform: linux/arm64"),
    ),
    Wrong(
        (("image/platform", "linux/arm/7"),),
        "image.platform",
        '"linux/arm/7" is not a platform of a server: it is linux/ and an architecture (386,',
        ("esteira:image:", "  platform: linux/arm64"),
    ),
    Wrong(
        (("image/buildArgs", ["VERSION=1"]),),
        "image.buildArgs",
        "This must be a map of names to values, but it is a list.",
        ("esteira:image:", "  buildArgs:", '    VERSION: "1.0"'),
    ),
    Wrong(
        (("image/buildArgs/VERSION", 1.1),),
        "image.buildArgs.VERSION",
        "YAML reads this as a number, not as text: put it in quotes, exactly as it shall arrive.",
        ("esteira:image:", "  buildArgs:", '    VERSION: "1.1"'),
    ),
    Wrong(
        (("image/buildArgs/2ND", "x"),),
        'image.buildArgs["2ND"]',
        'The name "2ND" begins with a digit.',
        ("esteira:image:", "  buildArgs:", '    "_2ND": "…"'),
    ),
    Wrong(
        (
            ("promote", True),
            ("allowDirty", True),
        ),
        "allowDirty",
        "With promote nothing is built, so there is nothing that could be dirty.",
        ("esteira:allowDirty: false",),
    ),
    Wrong((("promote", "ja"),), "promote", "This must be true or false.", ("esteira:promote: true",)),
    Wrong((("allowDirty", 1),), "allowDirty", "This must be true or false.", ("esteira:allowDirty: true",)),
    # The container
    Wrong(
        (("container/name", "esteira"),),
        "container.name",
        '"esteira" is not possible here: containers or network aliases of the edge that',
        ("esteira:container:", "  name: esteira-app"),
    ),
    Wrong(
        (("container/name", "web-green"),),
        "container.name",
        "No name is esteira, or ends in -blue, -green, -candidate.",
        ("esteira:container:", "  name: web-green-app"),
    ),
    Wrong(
        (("container/name", "n" * 58),),
        "container.name",
        "a name has 2 to 57 letters",
        ("esteira:container:", f"  name: {'n' * 57}"),
    ),
    Wrong(
        (("container/name", "para site"),),
        "container.name",
        '"para site" is not possible here: a name has 2 to 57 letters, digits, "_", "." and "-",',
        ("esteira:container:", "  name: para-site"),
    ),
    Wrong(
        (("container/name", "p"),),
        "container.name",
        '"p" is not possible here: a name has 2 to 57 letters, digits, "_", "." and "-", and',
        ("esteira:container:", "  name: parasite"),
    ),
    Wrong(
        (("container/name", "-parasite"),),
        "container.name",
        '"-parasite" is not possible here: a name has 2 to 57 letters, digits, "_", "." and "-",',
        ("esteira:container:", "  name: parasite"),
    ),
    Wrong(
        (("container/name", "parasite\n"),),
        "container.name",
        "The value has a line break or another control character in it.",
        ("esteira:container:", "  name: parasite"),
    ),
    Wrong(
        (("container/ports", "8888:8000"),),
        "container.ports",
        "This must be a list, but it is text.",
        ("esteira:container:", "  ports:", '    - "8888:8000"'),
    ),
    Wrong(
        (("container/ports/0", 8888),),
        "container.ports[0]",
        "This is one number; write the published port and the one in the container.",
        ("esteira:container:", "  ports:", '    - "8888:8888"'),
    ),
    Wrong(
        (("container/ports/0", "8888"),),
        "container.ports[0]",
        '"8888" is one port; write the published one and the one in the container.',
        ("esteira:container:", "  ports:", '    - "8888:8888"'),
    ),
    Wrong(
        (("container/ports/0", "99999:8000"),),
        "container.ports[0]",
        "The port 99999 is out of range: it goes from 1 to 65535.",
        ("esteira:container:", "  ports:", '    - "8888:8000"'),
    ),
    Wrong(
        (("container/ports/0", "8888:0"),),
        "container.ports[0]",
        "The port 0 is out of range: it goes from 1 to 65535.",
        ("esteira:container:", "  ports:", '    - "8888:8000"'),
    ),
    Wrong(
        (("container/ports/0", "8000-8010:8000-8010"),),
        "container.ports[0]",
        '"8000-8010:8000-8010" is a range of ports; write each port on a line of its own.',
        ("esteira:container:", "  ports:", '    - "8888:8000"'),
    ),
    Wrong(
        (("container/ports/0", "8888:web"),),
        "container.ports[0]",
        '"8888:web" is not a port: both sides are numbers.',
        ("esteira:container:", "  ports:", '    - "8888:8000"'),
    ),
    Wrong(
        (("container/ports/0", "localhost:8888:8000"),),
        "container.ports[0]",
        '"localhost" is not an IP address; Docker publishes on addresses, not on names.',
        ("esteira:container:", "  ports:", '    - "8888:8000"'),
    ),
    Wrong(
        (("container/ports/0", "8888:8000/sctp"),),
        "container.ports[0]",
        '"sctp" is not one of the possible words: http, https, h2c, tcp, udp.',
        ("esteira:container:", "  ports:", '    - "8888:8000"'),
    ),
    Wrong(
        (("container/ports/0", "a:b:c:d"),),
        "container.ports[0]",
        '"a:b:c:d" is not a port: write published:target or address:published:target.',
        ("esteira:container:", "  ports:", '    - "8888:8000"'),
    ),
    Wrong(
        (("container/ports/0", {"published": 8888}),),
        "container.ports[0].target",
        "The key is not set.",
        ("esteira:container:", "  ports:", "    - target: 8000"),
    ),
    Wrong(
        (("container/ports/0", {"published": 8888, "target": "8000x"}),),
        "container.ports[0].target",
        "The port must be a whole number, but this is text.",
        ("esteira:container:", "  ports:", "    - target: 8000"),
    ),
    Wrong(
        (("container/ports/0", {"published": True, "target": 8000}),),
        "container.ports[0].published",
        "The port must be a whole number, but this is true or false.",
        ("esteira:container:", "  ports:", "    - published: 8888"),
    ),
    Wrong(
        (("container/ports/0", {"published": 8888, "target": 8000, "protocol": "HTTP2"}),),
        "container.ports[0].protocol",
        '"HTTP2" is not one of the possible words: http, https, h2c, tcp, udp.',
        ("esteira:container:", "  ports:", "    - protocol: http"),
    ),
    Wrong(
        (("container/ports/0", {"host": 8888, "container": 8000}),),
        "container.ports[0].host",
        'There is no key "host" here. The keys are address, protocol, published, target.',
        ("(nothing: take the key out)",),
        also=("container.ports[0].container", "container.ports[0].published", "container.ports[0].target"),
    ),
    Wrong(
        (("container/ports/1", "8888:9000"),),
        "container.ports[1]",
        "The port 8888 is published twice on one address.",
        ("esteira:container:", "  ports:", '    - "8889:9000"'),
    ),
    Wrong(
        (("container/ports/1", "127.0.0.1:8888:9000"),),
        "container.ports[1]",
        "The port 8888 is published twice on one address.",
        ("esteira:container:", "  ports:", '    - "8889:9000"'),
    ),
    Wrong(
        (("container/environment", ["DEBUG=1"]),),
        "container.environment",
        "This must be a map of names to values, but it is a list.",
        ("esteira:container:", "  environment:", '    DEBUG: "false"'),
    ),
    Wrong(
        (("container/environment/DEBUG", True),),
        "container.environment.DEBUG",
        "YAML reads this as true or false, not as text: put it in quotes.",
        ("esteira:container:", "  environment:", '    DEBUG: "true"'),
    ),
    Wrong(
        (("container/environment/PORT", 8000),),
        "container.environment.PORT",
        "YAML reads this as a number, not as text: put it in quotes, exactly as it shall arrive.",
        ("esteira:container:", "  environment:", '    PORT: "8000"'),
    ),
    Wrong(
        (("container/environment/RATIO", 0.5),),
        "container.environment.RATIO",
        "YAML reads this as a number, not as text: put it in quotes, exactly as it shall arrive.",
        ("esteira:container:", "  environment:", '    RATIO: "0.5"'),
    ),
    Wrong(
        (("container/environment/EMPTY", None),),
        "container.environment.EMPTY",
        "This must be text, but it is empty.",
        ("esteira:container:", "  environment:", '    EMPTY: "…"'),
    ),
    Wrong(
        (("container/environment/NESTED", {"a": "b"}),),
        "container.environment.NESTED",
        "This must be text, but it is a map.",
        ("esteira:container:", "  environment:", '    NESTED: "…"'),
    ),
    Wrong(
        (("container/environment/A=B", "x"),),
        "container.environment.A",
        "The name of the variable has = in it; write name: value.",
        ("esteira:container:", "  environment:", '    A: "…"'),
    ),
    Wrong(
        (("container/environment/", "x"),),
        'container.environment[""]',
        "The name of the variable is empty.",
        ("esteira:container:", "  environment:", '    NAME: "…"'),
    ),
    Wrong(
        (("container/environment/1ST", "x"),),
        'container.environment["1ST"]',
        'The name "1ST" begins with a digit.',
        ("esteira:container:", "  environment:", '    "_1ST": "…"'),
    ),
    Wrong(
        (("container/environment/TWO WORDS", "x"),),
        'container.environment["TWO WORDS"]',
        'The name "TWO WORDS" may have letters, digits, _ . and - only.',
        ("esteira:container:", "  environment:", '    TWO_WORDS: "…"'),
    ),
    Wrong(
        (("container/environment/NUL", "a\0b"),),
        "container.environment.NUL",
        "The text holds a NUL byte, which no program can receive.",
        ("esteira:container:", "  environment:", '    NUL: "…"'),
    ),
    Wrong(
        (("container/environment/API_TOKEN", "x"),),
        "container.environment.API_TOKEN",
        "API_TOKEN is in secretEnvironment too; take it out of one of the two.",
        ("pulumi config rm --path 'esteira:container.environment.API_TOKEN'",),
    ),
    Wrong(
        (("servers/0/environment", {"API_TOKEN": "x"}),),
        "servers[0].environment.API_TOKEN",
        "API_TOKEN is in secretEnvironment too; take it out of one of the two.",
        ("pulumi config rm --path 'esteira:servers[0].environment.API_TOKEN'",),
    ),
    Wrong(
        (("container/volumes/0", "./data:/data"),),
        "container.volumes[0]",
        '"./data" is a relative path, which means nothing on a server: write it from / on, or a',
        ("esteira:container:", "  volumes:", '    - "data:/data"'),
    ),
    Wrong(
        (("container/volumes/0", "data/db:/data"),),
        "container.volumes[0]",
        '"data/db" is a relative path, which means nothing on a server: write it from / on, or a',
        ("esteira:container:", "  volumes:", '    - "data:/data"'),
    ),
    Wrong(
        (("container/volumes/0", "/data"),),
        "container.volumes[0]",
        '"/data" has no name: a volume without one would be another one in each release.',
        ("esteira:container:", "  volumes:", '    - "data:/data"'),
    ),
    Wrong(
        (("container/volumes/0", "data:data"),),
        "container.volumes[0]",
        'The path in the container "data" is not absolute: it begins with /.',
        ("esteira:container:", "  volumes:", '    - "data:/data"'),
    ),
    Wrong(
        (("container/volumes/0", "data:/data:rx"),),
        "container.volumes[0]",
        '"data:/data:rx" is not a volume: write name:/path or /host:/path, and :ro behind it to',
        ("esteira:container:", "  volumes:", '    - "data:/data"'),
    ),
    Wrong(
        (("container/volumes/0", "/srv/../etc:/data"),),
        "container.volumes[0]",
        'The path on the server "/srv/../etc" has "." or ".." in it.',
        ("esteira:container:", "  volumes:", '    - "data:/data"'),
    ),
    Wrong(
        (("container/volumes/0", "data:/"),),
        "container.volumes[0]",
        "A volume cannot take the place of the container's whole file system.",
        ("esteira:container:", "  volumes:", '    - "data:/data"'),
    ),
    Wrong(
        (("container/volumes/0", "-x:/data"),),
        "container.volumes[0]",
        '"-x" is not a volume\'s name: 2 or more letters, digits, _ .',
        ("esteira:container:", "  volumes:", '    - "data:/data"'),
    ),
    Wrong(
        (("container/volumes/1", "other:/data"),),
        "container.volumes[1]",
        "Two mounts have the same place in the container, /data.",
        ("esteira:container:", "  volumes:", '    - "data:/data"'),
    ),
    Wrong(
        (("container/volumes/1", "data:/data"),),
        "container.volumes",
        '"data:/data" stands in the list twice.',
        ("esteira:container:", "  volumes:", '    - "data:/data"'),
    ),
    Wrong(
        (("container/volumes", "data:/data"),),
        "container.volumes",
        "This must be a list, but it is text.",
        ("esteira:container:", "  volumes:", '    - "data:/data"'),
    ),
    Wrong(
        (("container/networks", ["host"]),),
        "container.ports",
        'A container on the network "host" reaches the server\'s ports without publishing: leave',
        ("esteira:container:", "  ports: []"),
    ),
    Wrong(
        (
            ("container/networks", ["host", "backend"]),
            ("container/ports", ABSENT),
        ),
        "container.networks",
        'The network "host" excludes all others.',
        ("esteira:container:", "  networks:", "    - host"),
    ),
    Wrong(
        (
            ("container/networks", ["host"]),
            ("container/ports", ABSENT),
            ("strategy", "recreate"),
        ),
        "health.port",
        'The test "http" needs a port, and the container publishes none: say which one of the',
        ("esteira:health:", "  port: 8000"),
    ),
    Wrong(
        (("container/networks", ["my net"]),),
        "container.networks[0]",
        '"my net" is not possible here: the name of a network has letters, digits, "_", "." and',
        ("esteira:container:", "  networks:", "    - my-net"),
    ),
    Wrong(
        (("container/memory", "256"),),
        "container.memory",
        '"256" has no unit: write b, k, m or g behind the number.',
        ("esteira:container:", "  memory: 256m"),
    ),
    Wrong(
        (("container/memory", 512),),
        "container.memory",
        '"512" has no unit: write b, k, m or g behind the number.',
        ("esteira:container:", "  memory: 512m"),
    ),
    Wrong(
        (("container/memory", "256MB"),),
        "container.memory",
        '"256MB" is not how Docker writes memory.',
        ("esteira:container:", "  memory: 256m"),
    ),
    Wrong(
        (("container/memory", "lots"),),
        "container.memory",
        '"lots" is not an amount of memory: write a whole number and b, k, m or g.',
        ("esteira:container:", "  memory: 256m"),
    ),
    Wrong(
        (("container/memory", "1m"),),
        "container.memory",
        '"1m" is less than 6m, the least that Docker takes.',
        ("esteira:container:", "  memory: 256m"),
    ),
    Wrong(
        (("container/cpus", 0),),
        "container.cpus",
        "0 is not possible here: the number must be greater than 0.",
        ("esteira:container:", "  cpus: 0.5"),
    ),
    Wrong(
        (("container/cpus", -1),),
        "container.cpus",
        "-1 is not possible here: the number must be greater than 0.",
        ("esteira:container:", "  cpus: 0.5"),
    ),
    Wrong(
        (("container/cpus", "two"),),
        "container.cpus",
        "This must be a number, but it is text.",
        ("esteira:container:", "  cpus: 0.5"),
    ),
    Wrong(
        (("container/cpus", True),),
        "container.cpus",
        "This must be a number, but it is true or false.",
        ("esteira:container:", "  cpus: 0.5"),
    ),
    Wrong(
        (("container/restart", "sometimes"),),
        "container.restart",
        '"sometimes" is not a restart policy: always, unless-stopped, on-failure, on-failure:5',
        ("esteira:container:", "  restart: always"),
    ),
    Wrong(
        (("container/restart", "on-failure:0"),),
        "container.restart",
        '"on-failure:0" is not a restart policy: always, unless-stopped, on-failure,',
        ("esteira:container:", "  restart: always"),
    ),
    Wrong(
        (("container/restart", True),),
        "container.restart",
        "The restart policy is a word, not true.",
        ("esteira:container:", "  restart: always"),
    ),
    Wrong(
        (("container/command", 'python3 -c "print(1)'),),
        "container.command",
        "The command has a quote that is not closed; a list needs no quotes.",
        ("esteira:container:", "  command:", "    - python3", "    - run.py"),
    ),
    Wrong(
        (("container/command", "migrate && serve"),),
        "container.command",
        "The command has && in it, which only a shell understands, and none is started.",
        ("esteira:container:", "  command:", "    - sh", '    - "-c"', '    - "migrate && serve"'),
    ),
    Wrong(
        (("container/command", []),),
        "container.command",
        "The command is an empty list: write one, or leave the key out.",
        ("esteira:container:", "  command:", "    - python3", "    - run.py"),
    ),
    Wrong(
        (("container/command", ["sleep", 5]),),
        "container.command[1]",
        "YAML reads this as a number, not as text: put it in quotes, exactly as it shall arrive.",
        ("esteira:container:", "  command:", '    - "5"'),
    ),
    Wrong(
        (("container/entrypoint", ""),),
        "container.entrypoint",
        "The command is empty: write one, or leave the key out.",
        ("esteira:container:", "  entrypoint:", "    - /usr/bin/tini", '    - "--"'),
    ),
    Wrong(
        (("container/entrypoint", [""]),),
        "container.entrypoint",
        "The first word of the command, the program, is empty.",
        ("esteira:container:", "  entrypoint:", "    - /usr/bin/tini", '    - "--"'),
    ),
    Wrong(
        (("container/labels", {"esteira.owner": "x"}),),
        'container.labels["esteira.owner"]',
        'The label "esteira.owner" is kept for Esteira\'s own use; use another prefix.',
        ("esteira:container:", "  labels:", '    owner: "…"'),
    ),
    Wrong(
        (("container/labels", {"two words": "x"}),),
        'container.labels["two words"]',
        'The label "two words" may have letters, digits, _ . / and - only.',
        ("esteira:container:", "  labels:", '    two_words: "…"'),
    ),
    Wrong(
        (("container/labels", {"team": 7}),),
        "container.labels.team",
        "YAML reads this as a number, not as text: put it in quotes, exactly as it shall arrive.",
        ("esteira:container:", "  labels:", '    team: "7"'),
    ),
    Wrong(
        (("container/user", "ana b"),),
        "container.user",
        '"ana b" is not possible here: it is user or user:group, each a name or a number.',
        ("esteira:container:", '  user: "1000:1000"'),
    ),
    Wrong(
        (("container/init", "on"),),
        "container.init",
        "This must be true or false.",
        ("esteira:container:", "  init: true"),
    ),
    Wrong(
        (("container/readOnly", "True"),),
        "container.readOnly",
        "This must be true or false.",
        ("esteira:container:", "  readOnly: true"),
    ),
    Wrong(
        (("container/tmpfs", ["tmp"]),),
        "container.tmpfs[0]",
        'The path "tmp" is not absolute: it begins with /.',
        ("esteira:container:", "  tmpfs:", "    - /run/cache"),
    ),
    Wrong(
        (("container/tmpfs", ["/data"]),),
        "container.tmpfs[0]",
        "Two mounts have the same place in the container, /data.",
        ("esteira:container:", "  tmpfs:", "    - /run/cache"),
    ),
    Wrong(
        (("container/stopSignal", "sigterm"),),
        "container.stopSignal",
        '"sigterm" is not a signal.',
        ("esteira:container:", "  stopSignal: SIGTERM"),
    ),
    Wrong(
        (("container/stopSignal", 99),),
        "container.stopSignal",
        '"99" is not a signal.',
        ("esteira:container:", "  stopSignal: SIGTERM"),
    ),
    Wrong(
        (("container/stopTimeout", "soon"),),
        "container.stopTimeout",
        '"soon" is not a duration: write seconds, or text such as "500ms", "2s", "1m".',
        ("esteira:container:", "  stopTimeout: 10s"),
    ),
    Wrong(
        (("container/stopTimeout", -1),),
        "container.stopTimeout",
        "The duration is out of range: it goes from 0 to 24 hours.",
        ("esteira:container:", "  stopTimeout: 10s"),
    ),
    Wrong(
        (("container/stopTimeout", True),),
        "container.stopTimeout",
        'This must be a duration, a number of seconds or text such as "2s", but it is true or',
        ("esteira:container:", "  stopTimeout: 10s"),
    ),
    Wrong(
        (("container/logging", {"driver": "json file"}),),
        "container.logging.driver",
        '"json file" is not possible here: it is a word of letters, digits, "_", ".", "/", ":"',
        ("esteira:container:", "  logging:", "    driver: json-file"),
    ),
    Wrong(
        (("container/logging", {"options": {"max-file": 3}}),),
        "container.logging.options.max-file",
        "YAML reads this as a number, not as text: put it in quotes, exactly as it shall arrive.",
        ("esteira:container:", "  logging:", "    options:", '      max-file: "3"'),
    ),
    # Health, and what happens around a release
    Wrong(
        (("health", {"test": "curl"}),),
        "health.test",
        '"curl" is not one of the possible words: auto, http, tcp, image, none.',
        ("esteira:health:", "  test: auto"),
    ),
    Wrong(
        (("health/path", "health"),),
        "health.path",
        '"health" is not possible here: a path begins with / and has no spaces.',
        ("esteira:health:", "  path: /health"),
    ),
    Wrong(
        (("health/path", "http://web.example.com/health"),),
        "health.path",
        '"http://web.example.com/health" is not possible here: a path begins with / and has no',
        ("esteira:health:", "  path: /health"),
    ),
    Wrong(
        (("health/path", "/a b"),),
        "health.path",
        '"/a b" is not possible here: a path begins with / and has no spaces.',
        ("esteira:health:", "  path: /health"),
    ),
    Wrong(
        (("health/status", 99),),
        "health.status",
        "The status 99 is out of range: it goes from 100 to 599.",
        ("esteira:health:", "  status: 200"),
    ),
    Wrong(
        (("health/status", "2xx"),),
        "health.status",
        "The status must be a whole number, but this is text.",
        ("esteira:health:", "  status: 200"),
    ),
    Wrong(
        (("health/port", 0),),
        "health.port",
        "The port 0 is out of range: it goes from 1 to 65535.",
        ("esteira:health:", "  port: 8000"),
    ),
    Wrong(
        (("health/interval", 0),),
        "health.interval",
        "The duration must be longer than 0.",
        ("esteira:health:", '  interval: "0.2s"'),
    ),
    Wrong(
        (("health/interval", "1 second"),),
        "health.interval",
        '"1 second" is not a duration: write seconds, or text such as "500ms", "2s", "1m".',
        ("esteira:health:", '  interval: "0.2s"'),
    ),
    Wrong(
        (("health/timeout", "0ms"),),
        "health.timeout",
        "The duration must be longer than 0.",
        ("esteira:health:", "  timeout: 5s"),
    ),
    Wrong(
        (("health/retries", 0),),
        "health.retries",
        "The number of retries 0 is out of range: it goes from 1 to 1000.",
        ("esteira:health:", "  retries: 10"),
    ),
    Wrong(
        (("health/startPeriod", "2d"),),
        "health.startPeriod",
        '"2d" is not a duration: write seconds, or text such as "500ms", "2s", "1m".',
        ("esteira:health:", "  startPeriod: 30s"),
    ),
    Wrong(
        (("health", {"test": "http"}),),
        "health.path",
        'The test "http" needs a path to ask for.',
        ("esteira:health:", "  path: /health"),
    ),
    Wrong(
        (("health/test", "tcp"),),
        "health.test",
        '"path" makes sense only with the test "http", but the test is "tcp".',
        ("esteira:health:", "  test: http"),
    ),
    Wrong(
        (("health", {"test": "image", "port": 8000}),),
        "health.test",
        '"port" makes no sense with the test "image".',
        ("esteira:health:", "  test: tcp"),
    ),
    Wrong(
        (("health", {"test": "tcp", "status": 204}),),
        "health.test",
        '"status" makes sense only with the test "http", but the test is "tcp".',
        ("esteira:health:", "  test: http"),
    ),
    Wrong(
        (("container/ports", ABSENT),),
        "health.port",
        'The test "http" needs a port, and the container publishes none: say which one of the',
        ("esteira:health:", "  port: 8000"),
        also=("strategy",),
    ),
    Wrong(
        (("container/ports", ["53:53/udp", "8888:8000"]),),
        "health.port",
        "The first published port speaks udp; say which port of the container is an http port.",
        ("esteira:health:", "  port: 8000"),
        also=("strategy",),
    ),
    Wrong(
        (
            ("container/ports", ["53:53/udp"]),
            ("health/port", 53),
            ("strategy", "recreate"),
        ),
        "health.port",
        'The port 53 is published for UDP, and the test "http" speaks TCP.',
        ("esteira:health:", "  port: 8000"),
    ),
    Wrong(
        (("container/ports", ["25:25/tcp"]),),
        "health.port",
        "The first published port speaks tcp; say which port of the container is an http port.",
        ("esteira:health:", "  port: 8000"),
        also=("strategy",),
    ),
    Wrong(
        (("container/ports", ["25:25/tcp"]), ("health", {"test": "tcp"})),
        "strategy",
        "The strategy blueGreen (the default) cannot serve this: the port 25 speaks tcp, and the edge of "
        "blueGreen only plain HTTP. The strategy recreate can.",
        ("esteira:strategy: recreate",),
    ),
    Wrong(
        (
            ("container/networks", ["host"]),
            ("container/ports", []),
            ("health", {"test": "tcp", "port": 8000}),
        ),
        "strategy",
        "The strategy blueGreen (the default) cannot serve this: a container on the network host cannot "
        "stand behind an edge. The strategy recreate can.",
        ("esteira:strategy: recreate",),
    ),
    Wrong(
        (("container/ports", []), ("health", {"test": "none"})),
        "strategy",
        "The strategy blueGreen (the default) cannot serve this: the container publishes no port that an edge could "
        "stand before. The strategy recreate can.",
        ("esteira:strategy: recreate",),
    ),
    Wrong(
        (("trustedProxies", ["proxy.example.org"]),),
        "trustedProxies[0]",
        '"proxy.example.org" is neither an address nor a range of addresses such as 10.0.0.0/8.',
        ("esteira:trustedProxies:", '  - "10.0.0.0/8"'),
    ),
    Wrong(
        (("rollout", {"watch": "-1s"}),),
        "rollout.watch",
        "is not a duration",
        ("esteira:rollout:", "  watch: 3s"),
    ),
    Wrong(
        (("rollout", {"canary": -1}),),
        "rollout.canary",
        "The number of servers -1 is out of range: it goes from 0 to 10000.",
        ("esteira:rollout:", "  canary: 1"),
    ),
    Wrong(
        (("rollout", {"batchSize": 0}),),
        "rollout.batchSize",
        "The number of servers 0 is out of range: it goes from 1 to 10000.",
        ("esteira:rollout:", "  batchSize: 2"),
    ),
    Wrong(
        (("rollout", {"confirmTimeout": 0}),),
        "rollout.confirmTimeout",
        "The duration must be longer than 0.",
        ("esteira:rollout:", "  confirmTimeout: 3m"),
    ),
    Wrong(
        (
            ("rollout", {"watch": "20s", "batchSize": 1, "confirmTimeout": "40s"}),
            ("servers/1", {"name": "two", "host": "two.example.com", "hostKey": HOST_KEY}),
        ),
        "rollout.confirmTimeout",
        "The first of 2 servers waits for 2 steps, each of which is watched for 20 s, so it would take its switch back "
        "before the last one has switched: make this longer, or batchSize greater.",
        ("esteira:rollout:", "  confirmTimeout: 88s"),
    ),
    Wrong(
        (("strategy", "rolling"),),
        "strategy",
        '"rolling" is not one of the possible words: blueGreen, recreate.',
        ("esteira:strategy: blueGreen",),
    ),
    Wrong(
        (("keepReleases", -1),),
        "keepReleases",
        "The number of releases -1 is out of range: it goes from 0 to 1000.",
        ("esteira:keepReleases: 5",),
    ),
    Wrong(
        (("keepReleases", "5.5"),),
        "keepReleases",
        "The number of releases must be a whole number, but this is text.",
        ("esteira:keepReleases: 5",),
    ),
    Wrong(
        (("keepReleases", True),),
        "keepReleases",
        "The number of releases must be a whole number, but this is true or false.",
        ("esteira:keepReleases: 5",),
    ),
    Wrong(
        (("preDeploy", "python3 'migrate"),),
        "preDeploy",
        "The command has a quote that is not closed; a list needs no quotes.",
        ("esteira:preDeploy:", "  - python3", "  - manage.py", "  - migrate"),
    ),
    Wrong(
        (("preDeploy", ""),),
        "preDeploy",
        "The key has no value: write one, or leave the key out.",
        ("esteira:preDeploy:", "  - python3", "  - manage.py", "  - migrate"),
    ),
    Wrong(
        (("preDeploy", "dump | gzip"),),
        "preDeploy",
        "The command has | in it, which only a shell understands, and none is started.",
        ("esteira:preDeploy:", "  - sh", '  - "-c"', '  - "dump | gzip"'),
    ),
    Wrong(
        (("connectTimeout", 0),),
        "connectTimeout",
        "The duration must be longer than 0.",
        ("esteira:connectTimeout: 20s",),
    ),
    Wrong(
        (("lockTimeout", "forever"),),
        "lockTimeout",
        '"forever" is not a duration: write seconds, or text such as "500ms", "2s", "1m".',
        ("esteira:lockTimeout: 5m",),
    ),
    # Servers
    Wrong(
        (("servers", ABSENT),),
        "servers",
        "The key is not set, and neither is the environment variable DEPLOYMENT_SERVER_IP.",
        (
            "esteira:servers:",
            "  - host: 203.0.113.10",
            "    user: deploy",
            "    hostKey: ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAA…",
        ),
    ),
    Wrong(
        (
            ("servers", []),
            ("serverPassword", ABSENT),
            ("sudoPassword", ABSENT),
            ("jumpPassword", ABSENT),
            ("jumpPrivateKey", ABSENT),
            ("serverPrivateKey", ABSENT),
        ),
        "servers",
        "There is no server to deploy to.",
        (
            "esteira:servers:",
            "  - host: 203.0.113.10",
            "    user: deploy",
            "    hostKey: ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAA…",
        ),
    ),
    Wrong(
        (("servers/0/host", ABSENT),),
        "servers[0].host",
        "The server has neither a host nor local: true.",
        ("esteira:servers:", "  - host: 203.0.113.10"),
    ),
    Wrong(
        (("servers/0/host", "deploy@web.example.com"),),
        "servers[0].host",
        "The user stands in the host; it has a key of its own, user.",
        ("esteira:servers:", "  - host: web.example.com"),
    ),
    Wrong(
        (("servers/0/host", "web.example.com:2222"),),
        "servers[0].host",
        "The port stands in the host; it has a key of its own, port: 2222.",
        ("esteira:servers:", "  - host: web.example.com"),
    ),
    Wrong(
        (("servers/0/host", "ssh://web.example.com"),),
        "servers[0].host",
        "The host is written without a scheme and without a path.",
        ("esteira:servers:", "  - host: web.example.com"),
    ),
    Wrong(
        (("servers/0/host", "-oProxyCommand=x"),),
        "servers[0].host",
        '"-oProxyCommand=x" is not a host.',
        ("esteira:servers:", "  - host: 203.0.113.10"),
    ),
    Wrong(
        (("servers/0/host", "300.1.1.1"),),
        "servers[0].host",
        '"300.1.1.1" is not the name or address of a host.',
        ("esteira:servers:", "  - host: 203.0.113.10"),
    ),
    Wrong(
        (("servers/0/port", 0),),
        "servers[0].port",
        "The port 0 is out of range: it goes from 1 to 65535.",
        ("esteira:servers:", "  - port: 22"),
    ),
    Wrong(
        (("servers/0/port", "ssh"),),
        "servers[0].port",
        "The port must be a whole number, but this is text.",
        ("esteira:servers:", "  - port: 22"),
    ),
    Wrong(
        (("servers/0/user", "ana b"),),
        "servers[0].user",
        '"ana b" is not possible here: it is the name of a user, without spaces.',
        ("esteira:servers:", "  - user: deploy"),
    ),
    Wrong(
        (("servers/0/user", 1000),),
        "servers[0].user",
        "YAML reads this as a number, not as text: put it in quotes, exactly as it shall arrive.",
        ("esteira:servers:", '  - user: "1000"'),
    ),
    Wrong(
        (("servers/0/name", "web one"),),
        "servers[0].name",
        '"web one" is not possible here: a server\'s name has 1 to 63 letters, digits, "_", "."',
        ("esteira:servers:", "  - name: web-one"),
    ),
    Wrong(
        (("servers/0/hostKey", ABSENT),),
        "servers[0].hostKey",
        "The host key is missing; without it anybody could pose as the server.",
        (
            "esteira:servers:",
            "  - host: web.example.com",
            "    hostKey: ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAA…",
        ),
    ),
    Wrong(
        (
            ("servers/0/hostKey", ABSENT),
            ("servers/0/port", 2222),
        ),
        "servers[0].hostKey",
        "The host key is missing; without it anybody could pose as the server.",
        (
            "esteira:servers:",
            "  - host: web.example.com",
            "    hostKey: ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAA…",
        ),
    ),
    Wrong(
        (("servers/0/jumpHost/hostKey", ABSENT),),
        "servers[0].jumpHost.hostKey",
        "The host key is missing; without it anybody could pose as the server.",
        ("esteira:servers:", "  - jumpHost:", "      hostKey: ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAA…"),
    ),
    Wrong(
        (("servers/0/hostKey", f"web.example.com {HOST_KEY}"),),
        "servers[0].hostKey",
        "This is a line of known_hosts, or of ssh-keyscan; drop its first word, the host.",
        ("esteira:servers:", f"  - hostKey: {HOST_KEY}"),
    ),
    Wrong(
        (("servers/0/hostKey", BLOB),),
        "servers[0].hostKey",
        "The type of the host key is missing in front of it.",
        ("esteira:servers:", f"  - hostKey: {HOST_KEY}"),
    ),
    Wrong(
        (("servers/0/hostKey", HOST_KEY[:-4]),),
        "servers[0].hostKey",
        "The host key is cut off; copy the whole line again.",
        ("esteira:servers:", "  - hostKey: ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAA…"),
    ),
    Wrong(
        (("servers/0/hostKey", f"ssh-rsa {BLOB}"),),
        "servers[0].hostKey",
        "The host key says that it is ssh-rsa, but inside it is another kind; copy the whole",
        ("esteira:servers:", "  - hostKey: ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAA…"),
    ),
    Wrong(
        (("servers/0/hostKey", "SHA256:uNiVztksCsDhcc0u9e8BrrQXVUpKZIDTMczCvj3tD2s"),),
        "servers[0].hostKey",
        "This is the fingerprint of a host key; the key itself is needed.",
        ("esteira:servers:", "  - hostKey: ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAA…"),
    ),
    Wrong(
        (("servers/0/hostKey", f"{HOST_KEY}\n{HOST_KEY}"),),
        "servers[0].hostKey",
        "These are several host keys, and one is needed; the one that begins with ssh-ed25519 is",
        ("esteira:servers:", "  - hostKey: ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAA…"),
    ),
    Wrong(
        (("servers/0/hostKey", private_key()),),
        "servers[0].hostKey",
        "This is a private key.",
        ("esteira:servers:", "  - hostKey: ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAA…"),
    ),
    Wrong(
        (("servers/0/hostKey", "yes"),),
        "servers[0].hostKey",
        "This is not a host key: it begins with its type, one of ssh-ed25519,",
        ("esteira:servers:", "  - hostKey: ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAA…"),
    ),
    Wrong(
        (("servers/0/hostKey", "# nothing"),),
        "servers[0].hostKey",
        "The host key is empty.",
        ("esteira:servers:", "  - hostKey: ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAA…"),
    ),
    Wrong(
        (("servers/0/local", True),),
        "servers[0].local",
        "This server is local, so SSH does not reach it: leave out host, user, hostKey,",
        ("esteira:servers:", "  - name: local", "    local: true"),
    ),
    Wrong(
        (("servers/0/sudo", ABSENT),),
        "sudoPassword",
        "A password for sudo is set, but no server has sudo: true.",
        ("esteira:servers:", "  - sudo: true"),
    ),
    Wrong(
        (("servers/0/jumpHost", ABSENT),),
        "jumpPassword",
        "A secret for a jump host is set, but no server has one.",
        ("pulumi config rm esteira:jumpPassword",),
        also=("jumpPrivateKey",),
    ),
    Wrong(
        (("servers/1", {"host": "web2.example.com", "name": "web", "hostKey": HOST_KEY}),),
        "servers[1].name",
        'Two servers have the name "web"; give each its own.',
        ("esteira:servers:", "  - name: web-2"),
    ),
    Wrong(
        (
            (
                "servers/1",
                {
                    "host": "web.example.com",
                    "name": "web2",
                    "hostKey": HOST_KEY,
                    "jumpHost": {"host": "jump.example.com", "hostKey": HOST_KEY},
                },
            ),
        ),
        "servers[1]",
        "This is the same machine as another server of the list; the container would be declared",
        ("pulumi config rm --path 'esteira:servers[1]'",),
    ),
    Wrong(
        (
            ("servers/1", {"local": True}),
            ("servers/2", {"local": True, "name": "here"}),
        ),
        "servers[2]",
        "This is the same machine as another server of the list; the container would be declared",
        ("pulumi config rm --path 'esteira:servers[2]'",),
    ),
    Wrong(
        (("servers/0/environment", {"DEBUG": True}),),
        "servers[0].environment.DEBUG",
        "YAML reads this as true or false, not as text: put it in quotes.",
        ("esteira:servers:", "  - environment:", '      DEBUG: "true"'),
    ),
    Wrong(
        (("servers/0/labels", {"esteira": "x"}),),
        "servers[0].labels.esteira",
        'The label "esteira" is kept for Esteira\'s own use; use another prefix.',
        ("esteira:servers:", "  - labels:", '      NAME: "…"'),
    ),
    Wrong(
        (
            ("serverPassword", ABSENT),
            ("serverPrivateKey", ABSENT),
        ),
        "serverPrivateKey",
        "No password and no private key to log in to web. A private key is the better of the two.",
        (
            "pulumi config set --secret esteira:serverPrivateKey < ~/.ssh/id_ed25519",
            "pulumi config set --secret esteira:serverPassword",
        ),
    ),
    Wrong(
        (("serverPassword", {"wbe": "MARKER-server"}),),
        "serverPassword",
        "The map has a name that is not the name of a server; the servers are web.",
        ("pulumi config set --secret --path 'esteira:serverPassword.web'",),
    ),
    # Secrets
    Wrong(
        (("serverPassword", ""),),
        "serverPassword",
        "The key has no value: write one, or leave the key out.",
        ("pulumi config set --secret esteira:serverPassword",),
    ),
    Wrong(
        (("serverPassword", {}),),
        "serverPassword",
        "The map is empty: write a secret for each server, or one for all.",
        ("pulumi config set --secret esteira:serverPassword",),
    ),
    Wrong(
        (("serverPassword", "MARKER-server\nsecond"),),
        "serverPassword",
        "The password has a line break or another control character in it.",
        ("pulumi config set --secret esteira:serverPassword",),
    ),
    Wrong(
        (("serverPrivateKey", "~/.ssh/MARKER-server"),),
        "serverPrivateKey",
        "This is not a private key. Give the text of the key's file, not its path.",
        ("pulumi config set --secret esteira:serverPrivateKey < ~/.ssh/id_ed25519",),
    ),
    Wrong(
        (("serverPrivateKey", private_key("MARKER-passphrase")),),
        "serverPrivateKey",
        "The private key is encrypted, and nobody can type its passphrase here.",
        ("pulumi config set --secret esteira:serverPrivateKey < ~/.ssh/id_ed25519",),
    ),
    Wrong(
        (("serverPrivateKey", pkcs8_key("MARKER-passphrase")),),
        "serverPrivateKey",
        "The private key is encrypted, and nobody can type its passphrase here.",
        ("pulumi config set --secret esteira:serverPrivateKey < ~/.ssh/id_ed25519",),
    ),
    Wrong(
        (("serverPrivateKey", private_key()[:200]),),
        "serverPrivateKey",
        "The private key is cut off: its last line, -----END … PRIVATE KEY-----, is missing.",
        ("pulumi config set --secret esteira:serverPrivateKey < ~/.ssh/id_ed25519",),
    ),
    Wrong(
        (("serverPrivateKey", private_key().replace("\n", "\\n")),),
        "serverPrivateKey",
        "The lines of this private key are joined by \\n; give the file as it is.",
        ("pulumi config set --secret esteira:serverPrivateKey < ~/.ssh/id_ed25519",),
    ),
    Wrong(
        (("serverPrivateKey", HOST_KEY),),
        "serverPrivateKey",
        "This is the public key (the file whose name ends in .pub); the private one is needed.",
        ("pulumi config set --secret esteira:serverPrivateKey < ~/.ssh/id_ed25519",),
    ),
    Wrong(
        (("serverPrivateKey", "PuTTY-User-Key-File-3: ssh-ed25519\nMARKER-server"),),
        "serverPrivateKey",
        "This is a key in PuTTY's format; puttygen FILE -O private-openssh -o NEW writes it in",
        ("pulumi config set --secret esteira:serverPrivateKey < ~/.ssh/id_ed25519",),
    ),
    Wrong(
        (
            (
                "serverPrivateKey",
                "-----BEGIN OPENSSH PRIVATE KEY-----\nMARKER-server\n-----END OPENSSH PRIVATE KEY-----\n",
            ),
        ),
        "serverPrivateKey",
        "The private key cannot be read: it is cut off, mistyped or of an unknown kind.",
        ("pulumi config set --secret esteira:serverPrivateKey < ~/.ssh/id_ed25519",),
    ),
    Wrong(
        (("jumpPrivateKey", "MARKER-jump"),),
        "jumpPrivateKey",
        "This is not a private key. Give the text of the key's file, not its path.",
        ("pulumi config set --secret esteira:jumpPrivateKey < ~/.ssh/id_ed25519",),
    ),
    Wrong(
        (("secretEnvironment", "MARKER-env"),),
        "secretEnvironment",
        "This must be a map of names to values, but it is text.",
        ("pulumi config set --secret --path 'esteira:secretEnvironment.NAME'",),
    ),
    Wrong(
        (("secretEnvironment", ["MARKER-env"]),),
        "secretEnvironment",
        "This must be a map of names to values, but it is a list.",
        ("pulumi config set --secret --path 'esteira:secretEnvironment.NAME'",),
    ),
    Wrong(
        (("secretEnvironment/1ST", "MARKER-env"),),
        'secretEnvironment["1ST"]',
        'The name "1ST" begins with a digit.',
        ("pulumi config set --secret --path 'esteira:secretEnvironment.NAME'",),
    ),
    Wrong(
        (("secretEnvironment/my.token", "MARKER-env"),),
        'secretEnvironment["my.token"]',
        'The name "my.token" of a secret variable may have letters, digits and _ only: a shell',
        ("pulumi config set --secret --path 'esteira:secretEnvironment.NAME'",),
    ),
    Wrong(
        (("secretEnvironment/API_TOKEN=MARKER-env", ""),),
        "secretEnvironment.API_TOKEN",
        "The name of the variable has = in it; write name: value.",
        ("pulumi config set --secret --path 'esteira:secretEnvironment.NAME'",),
    ),
    Wrong(
        (("secretEnvironment/PATH", "MARKER-env"),),
        "secretEnvironment.PATH",
        "PATH steers the shell and the docker command that hand secrets over; use another name",
        ("pulumi config set --secret --path 'esteira:secretEnvironment.NAME'",),
    ),
    Wrong(
        (("secretEnvironment/DOCKER_HOST", "MARKER-env"),),
        "secretEnvironment.DOCKER_HOST",
        "DOCKER_HOST steers the shell and the docker command that hand secrets over; use another",
        ("pulumi config set --secret --path 'esteira:secretEnvironment.NAME'",),
    ),
    Wrong(
        (("secretEnvironment/PIN", 1234),),
        "secretEnvironment.PIN",
        "The value must be text, but it is a number: set it again, as text.",
        ("pulumi config set --secret --path 'esteira:secretEnvironment.PIN'",),
    ),
    Wrong(
        (("secretEnvironment/NUL", "MARKER-env\0"),),
        "secretEnvironment.NUL",
        "The value holds a NUL byte.",
        ("pulumi config set --secret --path 'esteira:secretEnvironment.NUL'",),
    ),
    Wrong(
        (("secretFiles/token", "MARKER-file"),),
        "secretFiles.token",
        'The path of the file "token" is not absolute: it begins with /.',
        ("pulumi config set --secret --path 'esteira:secretFiles[\"/run/secrets/name\"]'",),
    ),
    Wrong(
        (("secretFiles/|run|..|token", "MARKER-file"),),
        'secretFiles["/run/../token"]',
        'The path of the file "/run/../token" has "." or ".." in it.',
        ("pulumi config set --secret --path 'esteira:secretFiles[\"/run/secrets/name\"]'",),
    ),
    Wrong(
        (("secretFiles/|proc|token", "MARKER-file"),),
        'secretFiles["/proc/token"]',
        '"/proc/token" is not a place for a file.',
        ("pulumi config set --secret --path 'esteira:secretFiles[\"/run/secrets/name\"]'",),
    ),
    Wrong(
        (("secretFiles/|run|secrets|token|", "MARKER-file"),),
        'secretFiles["/run/secrets/token/"]',
        'The path of the file "/run/secrets/token/" has a / too many.',
        ("pulumi config set --secret --path 'esteira:secretFiles[\"/run/secrets/name\"]'",),
    ),
    Wrong(
        (("secretFiles/|data|token", "MARKER-file"),),
        'secretFiles["/data/token"]',
        "The file would lie in a volume, where it would stay when the release is gone; choose a",
        ("pulumi config set --secret --path 'esteira:secretFiles[\"/run/secrets/name\"]'",),
    ),
    Wrong(
        (("container/tmpfs", ["/run"]),),
        'secretFiles["/run/secrets/token"]',
        "The file would lie in a tmpfs, which would hide it; choose a path outside /run.",
        ("pulumi config set --secret --path 'esteira:secretFiles[\"/run/secrets/name\"]'",),
    ),
    Wrong(
        (("secretFiles/|run|secrets", "MARKER-file"),),
        'secretFiles["/run/secrets"]',
        "The path is also the folder of another secret file.",
        ("pulumi config set --secret --path 'esteira:secretFiles[\"/run/secrets\"]'",),
    ),
    Wrong(
        (("registryUser", private_key()),),
        "registryUser",
        "This holds a private key, but this key is not secret.",
        ("pulumi config set --secret esteira:serverPrivateKey < ~/.ssh/id_ed25519",),
    ),
    Wrong(
        (),
        "serverPassword",
        "This secret stands in the stack file in plain text: set it anew, encrypted, and change",
        ("pulumi config set --secret esteira:serverPassword",),
        options={"secret_keys": secret_keys_of_model() - {"serverPassword"}},
    ),
    Wrong(
        (),
        "serverPrivateKey",
        "This secret stands in the stack file in plain text: set it anew, encrypted, and change",
        ("pulumi config set --secret esteira:serverPrivateKey < ~/.ssh/id_ed25519",),
        options={"secret_keys": secret_keys_of_model() - {"serverPrivateKey"}},
    ),
    Wrong(
        (),
        "secretEnvironment",
        "This secret stands in the stack file in plain text: set it anew, encrypted, and change",
        ("pulumi config set --secret --path 'esteira:secretEnvironment.API_TOKEN'",),
        options={"secret_keys": secret_keys_of_model() - {"secretEnvironment"}},
    ),
    Wrong(
        (),
        "secretFiles",
        "This secret stands in the stack file in plain text: set it anew, encrypted, and change",
        ("pulumi config set --secret --path 'esteira:secretFiles[\"/run/secrets/token\"]'",),
        options={"secret_keys": secret_keys_of_model() - {"secretFiles"}},
    ),
    Wrong(
        (),
        "secretEnvironment.API_TOKEN",
        "This secret stands in the stack file in plain text: set it anew, encrypted, and change",
        ("pulumi config set --secret --path 'esteira:secretEnvironment.API_TOKEN'",),
        options={"written": {"secretEnvironment": {"API_TOKEN": "MARKER-env", "OTHER": {"secure": "v1:x"}}}},
    ),
    Wrong(
        (("container/environment/TOKEN", "MARKER-env"),),
        "container.environment.TOKEN",
        "This is encrypted, but the key is not secret: its value is shown in previews.",
        ("pulumi config set --secret --path 'esteira:secretEnvironment.TOKEN'",),
        options={
            "secret_keys": secret_keys_of_model() | {"container"},
            "written": {"container": {"environment": {"TOKEN": {"secure": "v1:x"}}}},
        },
    ),
    Wrong(
        (("container/environment/TOKEN", {"secure": "v1:x"}),),
        "container.environment.TOKEN",
        "This is encrypted, but the key is not secret: its value is shown in previews.",
        ("pulumi config set --secret --path 'esteira:secretEnvironment.TOKEN'",),
    ),
    Wrong(
        (("servers/0/password", {"secure": "v1:x"}),),
        "servers[0].password",
        "This is encrypted, but the key is not secret: its value is shown in previews.",
        ("pulumi config set --secret esteira:serverPassword",),
    ),
    Wrong(
        (),
        "registryUser",
        "This is encrypted, but the key is not secret: its value is shown in previews.",
        ("esteira:registryUser: deploy",),
        options={"secret_keys": secret_keys_of_model() | {"registryUser"}},
    ),
    Wrong(
        (),
        "health",
        "This is encrypted, but the key is not secret: its value is shown in previews.",
        ("esteira:health:", "  path: /health"),
        options={"secret_keys": secret_keys_of_model() | {"health"}},
    ),
    # Values from the environment of a CI job
    Wrong(
        (("registry", ABSENT),),
        "registry",
        "The registry is written without a scheme.",
        ("esteira:registry: registry.example.com",),
        options={"environ": {"CI_REGISTRY": "https://registry.example.com"}},
    ),
    Wrong(
        (),
        "commit",
        '"main" is not a commit: write 7 to 40 digits of its sha (git rev-parse NAME prints it),',
        ('esteira:commit: "0123abc"',),
        options={"environ": {"CI_COMMIT_SHA": "main"}},
    ),
    Wrong(
        (("servers", ABSENT),),
        "servers[0].host",
        "The user stands in the host; it has a key of its own, user.",
        ("export DEPLOYMENT_SERVER_IP='203.0.113.10'",),
        options={
            "environ": {"DEPLOYMENT_SERVER_IP": "deploy@192.0.2.1", "DEPLOYMENT_SERVER_HOST_KEY": HOST_KEY}
        },
    ),
    Wrong(
        (
            ("servers", ABSENT),
            ("sudoPassword", ABSENT),
            ("jumpPassword", ABSENT),
            ("jumpPrivateKey", ABSENT),
        ),
        "servers[0].hostKey",
        "The host key is missing; without it anybody could pose as the server.",
        ("export DEPLOYMENT_SERVER_HOST_KEY='ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAA…'",),
        options={"environ": {"DEPLOYMENT_SERVER_IP": "192.0.2.1"}},
    ),
    Wrong(
        (
            ("servers", ABSENT),
            ("sudoPassword", ABSENT),
            ("jumpPassword", ABSENT),
            ("jumpPrivateKey", ABSENT),
        ),
        "servers[0].hostKey",
        "This is a line of known_hosts, or of ssh-keyscan; drop its first word, the host.",
        (f"export DEPLOYMENT_SERVER_HOST_KEY='{HOST_KEY}'",),
        options={
            "environ": {
                "DEPLOYMENT_SERVER_IP": "192.0.2.1",
                "DEPLOYMENT_SERVER_HOST_KEY": f"192.0.2.1 {HOST_KEY}",
            }
        },
    ),
    Wrong(
        (
            ("servers", ABSENT),
            ("sudoPassword", ABSENT),
            ("jumpPassword", ABSENT),
            ("jumpPrivateKey", ABSENT),
        ),
        "servers[0].sudo",
        "This must be true or false.",
        ("export DEPLOYMENT_SERVER_SUDO='true'",),
        options={
            "environ": {
                "DEPLOYMENT_SERVER_IP": "192.0.2.1",
                "DEPLOYMENT_SERVER_HOST_KEY": HOST_KEY,
                "DEPLOYMENT_SERVER_SUDO": "yes",
            }
        },
    ),
    Wrong(
        (
            ("serverPassword", ABSENT),
            ("serverPrivateKey", ABSENT),
        ),
        "serverPrivateKey",
        "The variable begins with / as the path of a file does, but no such file can be read.",
        ("pulumi config set --secret esteira:serverPrivateKey < ~/.ssh/id_ed25519",),
        options={"environ": {"DEPLOYMENT_SERVER_KEY": "/nowhere/MARKER-server"}},
    ),
)
