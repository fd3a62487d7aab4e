r"""The release: tags that point to a digest, moved in the registry by copying a manifest.

No layer travels and no Docker is needed, so it works on a machine that never had the image. The moving tag (`latest`)
is written last, when every server runs the digest healthily: it is the last release that proved itself, and the next
build's cache. Somebody else who moves it is not noticed before the next release; nothing that runs depends on it.

The work is done by a command line of Esteira's own, so that a preview shows in words what will happen:

    ./esteira point-tag registry.example/group/parasite \
      tag=latest \
      commit=8e13f56…

The digest, unknown at preview, and the credential go in by stdin. In a GitLab job the credential is left out, and the
command takes it from the job's own environment: a job token is another one in every job, and would be a change in every
job. The command has no folder of its own: pulumi-command then runs it in the project's folder, and no path of this
machine is kept in the state.
"""

import shlex
from typing import TypedDict

import pulumi
import pulumi_command

from .settings import Settings, image_name
from .steps import command_line
from .tagging import digest_in


class TagArgs(TypedDict):
    """Which tag is written, and with which credential."""

    repository: str
    """The image's name without a tag: ``registry.example/group/parasite``."""
    tag: str
    """The tag, for example ``latest``."""
    commit: str
    """All 40 digits of the commit that it will stand for; a reader of the preview sees it."""
    username: pulumi.Input[str] | None
    """The registry's user."""
    password: pulumi.Input[str] | None
    """The registry's password; None where the command finds it in its own environment."""
    insecure: bool
    """Whether the registry speaks plain HTTP though it is not on loopback."""


class ReleaseArgs(TagArgs):
    """What a `Release` declares."""

    digest: pulumi.Input[str]
    """What the moving tag will point to: ``sha256:…``."""
    registry_silent: bool
    """Whether the registry could not be reached a moment ago: then the tag may stay where it is until the next run."""


class Release(pulumi.ComponentResource):
    """Points the moving tag to the digest of the release.

    Give it `depends_on` the deployments: then it is written only after every one of them succeeded.
    """

    digest: pulumi.Output[str]
    """The digest that the moving tag points to."""

    def __init__(self, name: str, args: ReleaseArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("esteira:index:Release", name, {}, opts)
        command = tag_command(
            f"{name}-moving-tag",
            args,
            args["digest"],
            overwrite=True,
            may_wait=args["registry_silent"],
            parent=self,
        )
        self.digest = command.stdout.apply(digest_in)
        self.register_outputs({"digest": self.digest})


def release_args(
    settings: Settings, commit: str, digest: pulumi.Input[str], *, registry_silent: bool = False
) -> ReleaseArgs:
    """Return what a `Release` of `digest` needs from the settings."""
    return {
        **tag_args(settings, settings.moving_tag, commit),
        "digest": digest,
        "registry_silent": registry_silent,
    }


def tag_args(settings: Settings, tag: str, commit: str) -> TagArgs:
    """Return what writes `tag` with the settings' registry and credential."""
    password = settings.registry_password
    if settings.registry_credential_from_environment:
        password = None
    return {
        "repository": image_name(settings),
        "tag": tag,
        "commit": commit,
        "username": settings.registry_user,
        "password": pulumi.Output.secret(password.get_secret_value()) if password is not None else None,
        "insecure": settings.registry_insecure,
    }


def tag_command(
    name: str,
    args: TagArgs,
    digest: pulumi.Input[str],
    *,
    overwrite: bool,
    parent: pulumi.Resource,
    may_wait: bool = False,
) -> pulumi_command.local.Command:
    """Declare the command that points a tag to a digest; its stdout is the digest that the tag has then.

    With `overwrite` false a tag that exists stays as it is. With `may_wait` a registry that cannot be reached is no
    failure; the run that reaches it again has another input here, and so moves the tag.
    """
    lines = [f"tag={args['tag']}", f"commit={args['commit']}"]
    if not overwrite:
        lines.append("overwrite=no")
    if args["insecure"]:
        lines.append("insecure=yes")
    given: dict[str, pulumi.Input[object]] = {
        "digest": digest,
        "username": args["username"],
        "password": args["password"],
    }
    if may_wait:
        given["mayWait"] = True
    stdin: pulumi.Output[str] = pulumi.Output.json_dumps(given)
    secret: pulumi.Output[str] = pulumi.Output.secret(stdin)
    return pulumi_command.local.Command(
        name,
        create=" \\\n  ".join(
            [
                f"{command_line('point-tag')} {shlex.quote(args['repository'])}",
                *(shlex.quote(line) for line in lines),
            ]
        ),
        stdin=secret,
        # What it says to a person is on stderr; stdout is the digest, for the program.
        logging=pulumi_command.local.Logging.STDERR,
        add_previous_output_in_env=False,
        opts=pulumi.ResourceOptions(parent=parent),
    )
