"""pulumi-docker's Image: build in the Docker daemon, by BuildKit, and push one tag."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rehearsal import processes
from rehearsal.errors import RehearsalError

if TYPE_CHECKING:
    from rehearsal.monitor import Context

_NOISE = re.compile(r"\s*|#\d+ sha256:[0-9a-f]{64}")
"""Lines of an older client's plain progress that tell nothing."""
_DIGEST = re.compile(r"digest: (sha256:[0-9a-f]{64})")
_OWN_VARIABLES = re.compile(r"DOCKER_|BUILDX_|BUILDKIT_|PATH$|HOME$|TMPDIR$|LD_|SSL_", re.IGNORECASE)
"""Variables that the client itself listens to; a build argument of such a name goes by argv."""
_LATE = ("Client.Timeout", "i/o timeout", "TLS handshake timeout", "context deadline exceeded")
_AGAIN = "The registry has not answered in time: trying once more."


@dataclass(frozen=True)
class Builder:
    """A Docker client and how it is told to build."""

    client: str
    command: tuple[str, ...]
    environment: Mapping[str, str]
    buildkit: bool


def placeholder(inputs: dict[str, Any]) -> dict[str, Any]:
    """Stand in for the outputs of an image that is not built."""
    name = inputs["imageName"]
    return {"baseImageName": name, "repoDigest": f"{repository_of(name)}@sha256:{'0' * 64}"}


def repository_of(name: str) -> str:
    """Give the image's name without its tag."""
    head, slash, last = name.rpartition("/")
    return head + slash + last.partition(":")[0]


def build_and_push(inputs: dict[str, Any], context: Context) -> dict[str, Any]:
    """Build, push unless ``skipPush``, and give the digest that the registry knows the image by.

    The registry's password goes to the client by stdin and lives in a temporary configuration of its own.
    """
    name: str = inputs["imageName"]
    build: dict[str, Any] = inputs.get("build") or {}
    registry: dict[str, Any] = inputs.get("registry") or {}
    builder = find_builder(os.environ)
    if not builder.buildkit:
        context.line(
            "No Docker client here speaks BuildKit: building with the old builder, "
            "which knows neither RUN --mount nor inline cache."
        )
    directory = context.root / (build.get("context") or ".")
    dockerfile = context.root / build["dockerfile"] if build.get("dockerfile") else directory / "Dockerfile"
    if not directory.is_dir():
        raise RehearsalError(f"The build context {directory} is not a folder.")
    if not dockerfile.is_file():
        raise RehearsalError(f"There is no Dockerfile at {dockerfile}.")
    with _client_environment(builder, registry) as environment:

        def client(
            *argv: str, stdin: str | None = None, show: Callable[[str], None] | None = None
        ) -> processes.Finished:
            listen = show or (lambda _: None)
            return processes.run(
                [builder.client, *argv],
                cwd=context.root,
                env=environment,
                stdin=stdin,
                on_stdout=listen,
                on_stderr=listen,
            )

        if registry.get("password"):
            _log_in(client, registry, context.line)
        cache = list((build.get("cacheFrom") or {}).get("images") or [])
        if not builder.buildkit:
            # The old builder takes its cache from local images only; one that is not there yet is no error.
            for cached in cache:
                client("pull", "--quiet", cached)
        argv, more = _build_arguments(
            name, build, builder=builder, cache=cache, directory=directory, dockerfile=dockerfile
        )
        environment.update(more)
        built = client(*argv, show=lambda line: None if _NOISE.fullmatch(line) else context.line(line))
        if built.status != 0:
            raise RehearsalError(
                f"{context.name}: the build of {name} failed.{_disk(built.tail)}\n{built.tail}"
            )
        if inputs.get("skipPush"):
            inspected = client("image", "inspect", "--format", "{{.Id}}", name)
            return {
                "baseImageName": name,
                "repoDigest": inspected.stdout.strip(),
                "registryServer": registry.get("server", ""),
            }

        def show(line: str) -> None:
            if "Preparing" not in line and "Waiting" not in line:
                context.line(line)

        pushed = client("push", name, show=show)
        if pushed.status != 0 and is_late(pushed.tail):
            context.line(_AGAIN)
            pushed = client("push", name, show=show)
        if pushed.status != 0:
            raise RehearsalError(f"{context.name}: the push of {name} failed.\n{pushed.tail}")
    found = _DIGEST.search(pushed.stdout)
    if found is None:
        raise RehearsalError(
            f"{context.name}: the push of {name} ended without telling the digest.\n{pushed.tail}"
        )
    return {
        "baseImageName": name,
        "repoDigest": f"{repository_of(name)}@{found.group(1)}",
        "registryServer": registry.get("server", ""),
    }


def find_builder(environ: Mapping[str, str]) -> Builder:
    """Find the best way to build that the Docker clients on PATH offer.

    A client with the buildx plugin; else one older than 23.0, which has BuildKit inside; else the old
    builder.
    """
    clients: list[str] = []
    seen: set[Path] = set()
    for folder in environ.get("PATH", os.defpath).split(os.pathsep):
        candidate = Path(folder) / "docker"
        if candidate.is_file() and os.access(candidate, os.X_OK) and candidate.resolve() not in seen:
            seen.add(candidate.resolve())
            clients.append(str(candidate))
    if not clients:
        raise RehearsalError(
            "There is no docker command here. Install the Docker Engine, or put docker on the PATH."
        )
    for client in clients:
        if _ask(client, "buildx", "version").startswith("github.com/docker/buildx"):
            return Builder(
                client,
                ("buildx", "build", "--builder", "default", "--load", "--progress", "plain"),
                # The plugin makes no attestations: with them the digest would be that of an index.
                {"BUILDX_NO_DEFAULT_ATTESTATIONS": "1"},
                buildkit=True,
            )
    for client in clients:
        version = _ask(client, "--version")
        found = re.search(r"version (\d+)\.", version)
        if found and int(found.group(1)) < 23:
            return Builder(client, ("build", "--progress", "plain"), {"DOCKER_BUILDKIT": "1"}, buildkit=True)
    return Builder(clients[0], ("build",), {"DOCKER_BUILDKIT": "0"}, buildkit=False)


def _ask(client: str, *argv: str) -> str:
    answer = subprocess.run(
        [client, *argv], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )
    return answer.stdout if answer.returncode == 0 else ""


def _build_arguments(
    name: str,
    build: Mapping[str, Any],
    *,
    builder: Builder,
    cache: list[str],
    directory: Path,
    dockerfile: Path,
) -> tuple[list[str], dict[str, str]]:
    argv = [*builder.command, "--tag", name, "--file", str(dockerfile)]
    environment: dict[str, str] = {}
    for key, value in (build.get("args") or {}).items():
        if _OWN_VARIABLES.match(key):
            argv += ["--build-arg", f"{key}={value}"]
        else:
            # Without a value the client takes it from its environment, which other users cannot read.
            argv += ["--build-arg", key]
            environment[key] = value
    for option, key in (("--target", "target"), ("--platform", "platform"), ("--network", "network")):
        if build.get(key):
            argv += [option, build[key]]
    for host in build.get("addHosts") or []:
        argv += ["--add-host", host]
    for cached in cache:
        argv += ["--cache-from", cached]
    return [*argv, str(directory)], environment


@contextmanager
def _client_environment(builder: Builder, registry: Mapping[str, Any]) -> Iterator[dict[str, str]]:
    """Give a client an environment with a configuration of its own: the user's, but not his credential store.

    A login would otherwise write the password into the user's own file or key ring. The user's own logins are in the
    copy too: which of them the base images need, only the build finds out.
    """
    home = Path(os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker")
    try:
        config: dict[str, Any] = json.loads((home / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        config = {}
    environment = {**os.environ, **builder.environment}
    context = environment.pop("DOCKER_CONTEXT", None) or config.pop("currentContext", None)
    config.pop("currentContext", None)
    if context and context != "default" and not environment.get("DOCKER_HOST"):
        environment["DOCKER_HOST"] = _ask(
            builder.client, "context", "inspect", "--format", "{{.Endpoints.docker.Host}}", context
        ).strip()
    server = _server(registry)
    if server:
        # An empty helper means this very file, whatever store the user has for the rest.
        keys = [server, "https://index.docker.io/v1/"] if server == "docker.io" else [server]
        config["credHelpers"] = {**config.get("credHelpers", {}), **dict.fromkeys(keys, "")}
    plugins = home / "cli-plugins"
    if plugins.is_dir():
        config["cliPluginsExtraDirs"] = [*config.get("cliPluginsExtraDirs", []), str(plugins)]
    with processes.private_folder("esteira-docker-") as folder:
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
        environment["DOCKER_CONFIG"] = str(folder)
        yield environment


def is_late(said: str) -> bool:
    """Tell whether docker failed because an answer came too late: that alone may be another at the next try."""
    return any(words in said for words in _LATE)


def _server(registry: Mapping[str, Any]) -> str:
    server: str = registry.get("server") or ""
    return server.removeprefix("https://").removeprefix("http://").rstrip("/")


def _log_in(
    client: Callable[..., processes.Finished], registry: Mapping[str, Any], say: Callable[[str], None]
) -> None:
    server = _server(registry)
    user = registry.get("username") or ""
    login = ["login", "--username", user, "--password-stdin", *([server] if server else [])]
    answer = client(*login, stdin=registry["password"])
    if answer.status != 0 and is_late(answer.stderr):
        say(_AGAIN)
        answer = client(*login, stdin=registry["password"])
    if answer.status == 0:
        return
    said = answer.stderr.strip().splitlines()
    reason = said[-1] if said else "no reason given"
    if re.search(r"unauthorized|401|denied|incorrect username or password", reason, re.IGNORECASE):
        raise RehearsalError(
            f"The registry {server} refused the login of {user}. Check registryUser and registryPassword "
            f"(or CI_REGISTRY_USER and CI_REGISTRY_PASSWORD). It said: {reason}"
        )
    raise RehearsalError(
        f"The login to the registry {server} failed. Check that it is running and can be reached. "
        f"Docker said: {reason}"
    )


def _disk(tail: str) -> str:
    return (
        " The disk is full: `docker system df` shows what takes the room."
        if "no space left on device" in tail
        else ""
    )
