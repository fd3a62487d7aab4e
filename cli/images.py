"""The images that the local stack is built on: from Docker Hub, or made from the distribution's packages.

Whatever their origin they get local names, so that the stack file says the same on every machine.
"""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from cli import console, docker, machine, packages, shell
from components.errors import EsteiraError
from components.settings import DEFAULT_EDGE_IMAGE

BASE_PYTHON = "esteira/base-python:local"
REGISTRY = "esteira/registry:local"
EDGE = "esteira/edge:local"

_HUB_SECONDS = 20
"""How long Docker Hub may take until it begins to answer."""
_PULL_SECONDS = 900
_DEBOOTSTRAP_SECONDS = 1200

_CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")

# Debian's busybox crashes on wget's -T and has no -z for nc. Both are what a health gate asks by, so the image brings a
# wget that does without and the real nc.
_WGET = b"""#!/bin/sh
limit=900 left=$#
while [ "$left" -gt 0 ]; do
  word=$1
  shift
  left=$((left - 1))
  if [ "$word" = -T ]; then
    limit=$1
    shift
    left=$((left - 1))
  else
    set -- "$@" "$word"
  fi
done
exec timeout "$limit" busybox wget "$@"
"""

_APPLETS = (
    "[ ash awk base64 basename cat chgrp chmod chown cp cut date dd df dirname du echo env expr false find grep gunzip "
    "gzip head hostname id ip kill killall ln ls md5sum mkdir mkfifo mktemp mv netstat nslookup od pgrep pidof "
    "ping pkill printf ps pwd readlink realpath rm rmdir sed seq sh sha256sum sleep sort stat sync tail tar tee test "
    "time timeout top touch tr true tty uname uniq unlink usleep vi wc which whoami xargs yes"
)

_REGISTRY_CONFIGURATION = b"""version: 0.1
log:
  level: warn
  accesslog:
    disabled: true
storage:
  cache:
    blobdescriptor: inmemory
  filesystem:
    rootdirectory: /var/lib/registry
  delete:
    enabled: true
http:
  addr: :5000
  headers:
    X-Content-Type-Options: [nosniff]
health:
  storagedriver:
    enabled: true
    interval: 10s
    threshold: 3
"""


@dataclass(frozen=True)
class BaseImage:
    """One image: its local name, the stock image that it is, and how its like is made."""

    name: str
    stock: str
    make: Callable[[Path], None]
    check: tuple[str, ...]


def ensure(root: Path) -> None:
    """Make sure that all base images are there. What is there already costs one look each.

    ``root`` is the project's folder. Raises EsteiraError with what to do where an image cannot be had either way.
    """
    hub_answers = True
    for image in ALL:
        if docker.image_exists(image.name):
            continue
        if hub_answers:
            hub_answers = _pull(image, root)
        if not docker.image_exists(image.name):
            _make(image, root)


def _pull(image: BaseImage, root: Path) -> bool:
    """Pull the stock image and give it the local name; False where Docker Hub does not give it."""
    had_it = docker.image_exists(image.stock)
    if not had_it:
        pull = subprocess.Popen(
            ["docker", "pull", image.stock],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        # Unreachable hosts often just do not answer: the first line of output tells that this one does.
        impatience = threading.Timer(_HUB_SECONDS, pull.kill)
        patience = threading.Timer(_PULL_SECONDS, pull.kill)
        try:
            impatience.start()
            patience.start()
            for line in pull.stdout or ():
                if b"Pulling from" in line:
                    impatience.cancel()
                    console.step(f"Pulling {image.stock} ...")
            pull.wait()
        finally:
            impatience.cancel()
            patience.cancel()
            pull.kill()
            pull.wait()
        if pull.returncode != 0:
            return False
        _pulled(root).parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with _pulled(root).open("a", encoding="utf-8") as record:
            record.write(image.stock + "\n")
    docker.docker("tag", image.stock, image.name)
    return True


def _pulled(root: Path) -> Path:
    """Say where it is recorded which stock images were pulled for the local stack, and so go with it."""
    return root / ".esteira" / "local" / "pulled-images"


def _make(image: BaseImage, root: Path) -> None:
    console.step(
        f"Making {image.name} from the distribution's packages (Docker Hub does not give {image.stock}) ..."
    )
    folder = root / ".esteira" / "making"
    _clear(folder)
    folder.mkdir(parents=True, mode=0o755)
    try:
        making = f"{image.name}-making"
        image.make(folder)
        try:
            docker.docker("run", "--rm", "--network", "none", making, *image.check)
        except shell.CommandError as error:
            raise EsteiraError(f"The image {image.name} was made but does not work: {error}") from None
        docker.docker("tag", making, image.name)
    finally:
        docker.docker("rmi", f"{image.name}-making", check=False)
        _clear(folder)


def _clear(folder: Path) -> None:
    """Remove what a run made here, or an earlier one that was killed; root's files too."""
    if folder.exists():
        command = ["rm", "-rf", "--one-file-system", str(folder)]
        shell.run(shell.as_root(command) if shell.can_be_root() else command, timeout=120)


def _make_python(folder: Path) -> None:
    """Make Debian's minimal system with Python, by debootstrap, which needs root."""
    mirror, suite = package_source()
    if not shell.has("debootstrap"):
        machine.install_packages(["debootstrap"], "debootstrap is needed to make a base image")
    if not shell.can_be_root():
        raise EsteiraError(
            f"Docker Hub cannot be reached, and making {BASE_PYTHON} from packages needs root's rights, which the user "
            f"{machine.user_name()} has not got. Type this, then ./esteira up again:\n    sudo ./esteira images"
        )
    tree = folder / "tree"
    debootstrap = shell.find("debootstrap") or "debootstrap"
    include = "--include=ca-certificates,python3,python3-pip,python3-venv"
    command = [debootstrap, "--variant=minbase", include, suite, str(tree), mirror]
    # In namespaces of its own: what it mounts and starts in there is gone with it, even if it is killed.
    apart = ["unshare", "--mount", "--pid", "--fork", "--kill-child=KILL"]
    if shell.run(shell.as_root([*apart, "true"]), check=False).returncode == 0:
        command = [*apart, *command]
    shell.run(shell.as_root(command), timeout=_DEBOOTSTRAP_SECONDS, environment=_proxy(), outlive=False)
    additions = folder / "additions"
    additions.mkdir()
    for path, text in {"sources.list": _sources(mirror), "pip.conf": _pip_configuration()}.items():
        (additions / path).write_text(text, encoding="utf-8")
    # python and pip by the names that the stock image has; pip may install into the image's own Python, as there. The
    # machine's own certificates: it may be behind a proxy with one of its own, and a build in the image is too.
    script = """set -e
        tree=$1 additions=$2 certificates=$3
        ln -sf python3 "$tree/usr/bin/python"
        rm -f "$tree"/usr/lib/python3*/EXTERNALLY-MANAGED
        install -m 0644 "$additions/sources.list" "$tree/etc/apt/sources.list"
        [ ! -s "$additions/pip.conf" ] || install -m 0644 "$additions/pip.conf" "$tree/etc/pip.conf"
        [ ! -f "$certificates" ] || install -m 0644 "$certificates" "$tree/etc/ssl/certs/ca-certificates.crt"
        cd "$tree"
        rm -rf var/cache/apt/*.bin var/cache/apt/archives/*.deb var/lib/apt/lists/* var/log/*.log \
          usr/share/doc/* usr/share/man/* usr/share/locale/*"""
    arguments = [str(tree), str(additions), str(_CERTIFICATES)]
    shell.run(shell.as_root(["sh", "-c", script, "sh", *arguments]), timeout=120)
    shell.pipe(
        shell.as_root(
            ["tar", "-C", str(tree), "--numeric-owner", "--exclude=./dev/*", "--exclude=./proc/*", "-c", "."]
        ),
        [
            *("docker", "import", "--change", "ENV LANG=C.UTF-8"),
            *("--change", 'CMD ["python3"]', "-", f"{BASE_PYTHON}-making"),
        ],
        timeout=300,
    )


def package_source() -> tuple[str, str]:
    """Find mirror and suite of this machine's own release, as apt is set up: (address, code name)."""
    packages.require_debian()
    release = machine.os_release()
    # A derivative names the release that it is made of.
    suites = [release.get(key, "") for key in ("DEBIAN_CODENAME", "UBUNTU_CODENAME", "VERSION_CODENAME")]
    targets = _apt_targets()
    for suite in suites:
        for address, codename, component in targets:
            if (
                suite
                and codename == suite
                and component == "main"
                and address.startswith(("http://", "https://"))
            ):
                return address, suite
    raise EsteiraError(
        f"Docker Hub cannot be reached, and apt has no http source of this machine's own release ({' '.join(suites)}), "
        "whose packages could serve instead. Mend one of the two, then try again."
    )


def _apt_targets() -> list[tuple[str, str, str]]:
    """List what apt reads packages from: (address, code name or suite, component), of both kinds of source files."""
    form = "$(REPO_URI)|$(RELEASE)|$(COMPONENT)"
    answer = shell.run(
        ["apt-get", "indextargets", "--format", form, "Created-By: Packages"], check=False
    ).stdout
    rows = [line.split("|") for line in answer.splitlines() if line.count("|") == 2]
    return [(address, codename, component) for address, codename, component in rows]


def _sources(mirror: str) -> str:
    """Write the image's own sources.list: the machine's sources of the same release, updates and security included."""
    suite = package_source()[1]
    lines = {
        f"deb {address} {codename} {component}"
        for address, codename, component in _apt_targets()
        if codename.startswith(suite) and not urlsplit(address).username
    }
    return "\n".join(sorted(lines) or [f"deb {mirror} {suite} main"]) + "\n"


def _pip_configuration() -> str:
    """Write the pip.conf that leads the image's pip to the index that this machine's pip uses.

    An address with a credential in it is left out: an image's layers are no place for one.
    """
    keys = {
        "PIP_INDEX_URL": "index-url",
        "PIP_EXTRA_INDEX_URL": "extra-index-url",
        "PIP_TRUSTED_HOST": "trusted-host",
    }
    lines = [
        f"{key} = {value}"
        for variable, key in keys.items()
        if (value := os.environ.get(variable, "")) and "@" not in value
    ]
    return "\n".join(["[global]", *lines]) + "\n" if lines else ""


def _proxy() -> dict[str, str]:
    """Take the proxy from apt's configuration for debootstrap, which does not read that."""
    with suppress(shell.CommandError):
        answer = shell.run(
            ["apt-config", "dump", "--format", "%v", "Acquire::http::Proxy"], check=False
        ).stdout.strip()
        if answer and answer != "DIRECT":
            return {"http_proxy": answer}
    return {}


def _make_registry(folder: Path) -> None:
    debs = packages.fetch(["docker-registry"], folder)
    files: dict[str, bytes | str | None] = {
        **_system_files(),
        "etc/docker/registry/config.yml": _REGISTRY_CONFIGURATION,
        "usr/bin/registry": "docker-registry",
        "var/lib/registry": None,
    }
    changes = (
        'ENTRYPOINT ["/usr/bin/docker-registry", "serve"]',
        'CMD ["/etc/docker/registry/config.yml"]',
        "EXPOSE 5000",
    )
    packages.import_image(f"{REGISTRY}-making", changes, debs, files)


def _make_edge(folder: Path) -> None:
    debs = packages.fetch(["caddy", "busybox", "netcat-openbsd", "media-types"], folder)
    files: dict[str, bytes | str | None] = {
        **_system_files(),
        **{f"usr/bin/{applet}": "busybox" for applet in _APPLETS.split()},
        "usr/bin/nc": "nc.openbsd",
        "usr/bin/wget": _WGET,
        "config/caddy": None,
        "data/caddy": None,
        "srv": None,
    }
    # As in the stock image, so that either serves.
    changes = (
        "ENV XDG_CONFIG_HOME=/config",
        "ENV XDG_DATA_HOME=/data",
        "EXPOSE 80 443 443/udp 2019",
        "WORKDIR /srv",
        'CMD ["caddy", "run", "--config", "/etc/caddy/Caddyfile", "--adapter", "caddyfile"]',
    )
    packages.import_image(f"{EDGE}-making", changes, debs, files)


def _system_files() -> dict[str, bytes | str | None]:
    """Lay out what every program expects to find: users, name service, certificates, a place for passing files."""
    files: dict[str, bytes | str | None] = {
        "etc/passwd": b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/bin/false\n",
        "etc/group": b"root:x:0:\nnogroup:x:65534:\n",
        "etc/nsswitch.conf": b"passwd: files\ngroup: files\nhosts: files dns\n",
        "root": None,
        "tmp": None,
        "run": None,
        "var/tmp": None,
    }
    with suppress(OSError):
        files["etc/ssl/certs/ca-certificates.crt"] = _CERTIFICATES.read_bytes()
    return files


ALL = (
    BaseImage(EDGE, DEFAULT_EDGE_IMAGE, _make_edge, ("caddy", "version")),
    BaseImage(REGISTRY, "registry:2", _make_registry, ("--version",)),
    BaseImage(BASE_PYTHON, "python:3.12-slim", _make_python, ("python3", "-m", "pip", "--version")),
)


def remove(root: Path) -> list[str]:
    """Remove the local names, and what was pulled or made for them; return what was removed."""
    pulled: list[str] = []
    with suppress(OSError):
        pulled = sorted(set(_pulled(root).read_text(encoding="utf-8").split()))
    names = [*(image.name for image in ALL), *(f"{image.name}-making" for image in ALL), *pulled]
    removed = [
        name for name in names if docker.image_exists(name) and docker.docker("rmi", name, check=False)
    ]
    _clear(root / ".esteira" / "making")
    return removed
