"""The image of a commit: built and pushed when the commit is checked out, looked up in the registry otherwise.

Everything after it runs the image by digest. Its tag is the commit, and once that tag is in the registry it is never
written again: a server that pulls it, a promotion and a rollback must get what was tested.

pulumi-docker's `Image` cannot keep that promise alone. It builds whenever its record in the state and the tree differ,
and pushes over whatever has the name: with a new state, back on an earlier commit, or when a file changed that git
ignores (`.git` itself, when it is in the context). What the state holds the program cannot know, so it cannot leave the
`Image` out when the tag exists: the next `up` would show a deletion. `ignore_changes` is no way either, because the
provider hashes the context again after the engine put the old inputs back (tried). So `Image` pushes to a tag of the
stack's own, `build-STACK`, and a second command gives the manifest the commit's tag if, and only if, that tag is new.
What runs is the digest that the commit's tag has then. The build argument CI_COMMIT_SHA makes every commit a build, and
shows it in a preview; a Dockerfile may declare it (`ARG CI_COMMIT_SHA`) and use it.
"""

import os
import platform
import posixpath
import socket
from collections.abc import Callable, Collection, Mapping
from typing import TypedDict

import pulumi
import pulumi_docker

from .errors import EsteiraError
from .registry import Registry, RegistryUnavailableError, from_settings
from .release import TagArgs, tag_args, tag_command
from .settings import Settings, image_name
from .source import Source, check_ignored
from .tagging import digest_in

_PLATFORM_HERE = {"x86_64": "linux/amd64", "aarch64": "linux/arm64"}.get(platform.machine())


class ImageError(EsteiraError):
    """There is no image to deploy, or none can be built."""


class BuildArgs(TypedDict):
    """What is built. Paths are as seen from the project's folder, so that no path of this machine is in the state."""

    context: pulumi.Input[str]
    """The folder with what the image is made of."""
    dockerfile: pulumi.Input[str]
    """The Dockerfile."""
    target: pulumi.Input[str] | None
    """The stage to build; None for the last."""
    platform: pulumi.Input[str] | None
    """``linux/amd64`` and the like; None for that of the machine that builds."""
    args: Mapping[str, pulumi.Input[str]]
    """Build arguments; a value may have several lines."""
    cache_from: pulumi.Input[str]
    """The image whose layers are the cache: the previous release."""
    push_to: pulumi.Input[str]
    """The stack's own tag, with the repository before it, that each build overwrites."""
    server: pulumi.Input[str]
    """The registry, ``registry.example`` or ``127.0.0.1:5000``."""
    username: pulumi.Input[str] | None
    """The user that pushes."""
    password: pulumi.Input[str] | None
    """That user's password, a secret."""
    record: TagArgs
    """What gives the build the commit's own tag."""


class ImageArgs(TypedDict):
    """What an `Image` declares."""

    repository: str
    """The image's name without a tag: ``registry.example/group/parasite``."""
    commit: str
    """All 40 digits of the commit."""
    tag: str
    """The image's own tag: the commit, with ``-dirty-…`` after it when the tree differs from the commit."""
    found: str | None
    """The digest that the tag has in the registry already, ``sha256:…``; None when it has none yet."""
    build: BuildArgs | None
    """What is built; None when the image is only looked up."""
    registry_silent: bool
    """Whether the registry could not be reached, and `found` is what the servers' own record says."""


class Image(pulumi.ComponentResource):
    """One commit's image in the registry."""

    reference: pulumi.Output[str]
    """What a server runs: ``repository@sha256:…``."""
    digest: pulumi.Output[str]
    """The image's digest, ``sha256:…``."""

    commit: str
    tag: str
    known_digest: str | None
    registry_silent: bool

    def __init__(self, name: str, args: ImageArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("esteira:index:Image", name, {}, opts)
        self.commit = args["commit"]
        self.tag = args["tag"]
        # Known at preview already, so that a preview of a second `up` has nothing unknown in it.
        self.known_digest = args["found"]
        self.registry_silent = args["registry_silent"]
        repository = args["repository"]
        build = args["build"]
        recorded: pulumi.Output[str] | None = None
        if build is not None:
            built = pulumi_docker.Image(
                f"{name}-build",
                image_name=build["push_to"],
                build=_docker_build(build),
                registry=pulumi_docker.RegistryArgs(
                    server=build["server"], username=build["username"], password=build["password"]
                ),
                opts=pulumi.ResourceOptions(parent=self),
            )
            digest = built.repo_digest.apply(lambda reference: reference.rpartition("@")[2])
            record = tag_command(f"{name}-tag", build["record"], digest, overwrite=False, parent=self)
            recorded = record.stdout.apply(digest_in)
        if args["found"] is not None:
            self.digest = pulumi.Output.from_input(args["found"])
        elif recorded is not None:
            self.digest = recorded
        else:
            raise ImageError(f"The image {repository}:{self.tag} is neither built nor found.")
        self.reference = self.digest.apply(lambda found: f"{repository}@{found}")
        self.register_outputs({"reference": self.reference, "digest": self.digest})


def _docker_build(build: BuildArgs) -> pulumi_docker.DockerBuildArgs:
    return pulumi_docker.DockerBuildArgs(
        context=build["context"],
        dockerfile=build["dockerfile"],
        target=build["target"],
        platform=build["platform"],
        args=dict(build["args"]),
        builder_version=pulumi_docker.BuilderVersion.BUILDER_BUILD_KIT,
        cache_from=pulumi_docker.CacheFromArgs(images=[build["cache_from"]]),
    )


def image_args(
    settings: Settings,
    source: Source,
    *,
    known_digests: Callable[[], Mapping[str, str]] = dict,
    registry: Registry | None = None,
) -> ImageArgs:
    """Look the image up and return what an `Image` declares.

    Args:
        settings: the stack's settings.
        source: what `components.source.inspect` found.
        known_digests: returns commit to digest, as the servers keep it: asked when the registry cannot be reached.
        registry: the registry to ask; by default the one that the settings name.

    Raises:
        ImageError: it is not built here, and the registry has none or has it for other platforms.
        RegistryError: the registry cannot be asked.
        SourceError: it is to be built with files that no commit holds, and the settings do not allow that.
    """
    client = registry or from_settings(settings)
    found, silent = _look_up(settings, source, client, known_digests)
    if source.build:
        if found is None and (sentence := check_ignored(settings, source.commit)):
            pulumi.log.warn(sentence)
        if (
            pulumi.Config("docker").get("host") is None
        ):  # pulumi-docker's own setting, which goes before DOCKER_HOST
            check_docker(os.environ)
    elif found is None:
        how = (
            "Run `pulumi up` with this commit on the stack that builds it first (staging), and see it run "
            "there"
            if settings.promote
            else f"Check it out (`git checkout {source.commit[:12]}`) and run `pulumi up`"
        )
        raise ImageError(
            f"Commit {source.commit} has no image in {client.name}, and none is built because "
            f"{source.reason}. {how}; or deploy a commit whose image is there."
        )
    return {
        "repository": image_name(settings),
        "commit": source.commit,
        "tag": source.tag,
        "found": found,
        "build": _build_args(settings, source) if source.build else None,
        "registry_silent": silent,
    }


def _build_args(settings: Settings, source: Source) -> BuildArgs:
    image = settings.image
    password = settings.registry_password
    return {
        "context": image.context,
        "dockerfile": posixpath.normpath(posixpath.join(image.context, image.dockerfile)),
        "target": image.target,
        # What pulumi-docker would take by itself, and say three lines about in every preview.
        "platform": image.platform or _PLATFORM_HERE,
        # Inline cache: the layers' cache keys are in the image itself, so the registry's image is enough as a cache.
        "args": {"CI_COMMIT_SHA": source.commit, "BUILDKIT_INLINE_CACHE": "1", **image.build_args},
        "cache_from": f"{image_name(settings)}:{settings.moving_tag}",
        "push_to": f"{image_name(settings)}:build-{settings.stack}",
        "server": settings.registry,
        "username": settings.registry_user,
        "password": pulumi.Output.secret(password.get_secret_value()) if password is not None else None,
        "record": tag_args(settings, source.tag, source.commit),
    }


def _look_up(
    settings: Settings, source: Source, client: Registry, known_digests: Callable[[], Mapping[str, str]]
) -> tuple[str | None, bool]:
    """Return the digest of the image's own tag, None where it has none; and whether the registry could not say so."""
    try:
        found = client.digest(source.tag)
        if found is not None and settings.image.platform is not None:
            _check_platform(settings.image.platform, client.platforms(found), f"{client.name}:{source.tag}")
    except RegistryUnavailableError as error:
        known = known_digests().get(source.tag)
        if known is None:
            raise
        pulumi.log.warn(f"{error} The servers' own record has the digest of {source.tag[:12]}; it is used.")
        return known, True
    return found, False


def _check_platform(wanted: str, platforms: Collection[str], name: str) -> None:
    # A variant that only one side names (linux/arm64 and linux/arm64/v8) is no difference.
    if not any(
        (f"{one}/").startswith(f"{other}/")
        for have in platforms
        for one, other in ((have, wanted), (wanted, have))
    ):
        raise ImageError(
            f"The image {name} is for {', '.join(sorted(platforms)) or 'no platform'}, and "
            f"`esteira:image.platform` is {wanted}. Build the commit again with that platform, or remove "
            "the key from the stack file."
        )


def check_docker(environ: Mapping[str, str]) -> None:
    """Refuse to go on when there is no Docker Engine to build with; only a local socket is looked at.

    Raises:
        ImageError: nothing listens on any of the sockets that pulumi-docker tries, or this user may not use it.
    """
    host = environ.get("DOCKER_HOST") or "unix:///var/run/docker.sock"
    if not host.startswith("unix://"):
        return
    home = environ.get("HOME", "")
    # pulumi-docker goes on to these when the first does not answer.
    paths = [
        host.removeprefix("unix://"),
        f"{home}/.docker/run/docker.sock",
        f"{home}/.docker/desktop/docker.sock",
    ]
    failures = [_try_socket(path) for path in paths]
    if None in failures:
        return
    if isinstance(failures[0], PermissionError):
        raise ImageError(
            f"The image cannot be built: this user may not use the Docker Engine ({paths[0]}). Type `sudo "
            "usermod -aG docker $USER` and log in again."
        )
    raise ImageError(
        f"The image cannot be built: no Docker Engine answers at {paths[0]}. Start it (`sudo systemctl "
        "start docker`), or name another in the environment variable DOCKER_HOST."
    )


def _try_socket(path: str) -> OSError | None:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(5)
        try:
            connection.connect(path)
        except OSError as error:
            return error
    return None
