"""An application in one piece, for other programs: what the stack file declares, from the image to the moving tag.

This project's own ``__main__.py`` declares the same three parts one by one. A program that has more to declare, or is
written in another of Pulumi's languages, takes this component; the settings stand in its stack file all the same, where
their mistakes are told with the line to write.
"""
# No `from __future__ import annotations`: Pulumi infers the component's schema from the annotations.

from collections.abc import Mapping
from typing import TypedDict

import pulumi

from .arguments import owner_of
from .deployment import Deployment, addresses
from .errors import EsteiraError
from .image import Image, image_args
from .reading import known_digests, read_servers, refuse_unread
from .release import Release, release_args
from .settings import Settings, from_pulumi
from .source import inspect


class ApplicationArgs(TypedDict):
    """Nothing: the settings are the keys ``esteira:…`` of the stack file."""


class Application(pulumi.ComponentResource):
    """One application on its servers, as the keys ``esteira:…`` of the stack file declare it."""

    commit: pulumi.Output[str]
    """The commit that is deployed, 40 hexadecimal digits."""
    image: pulumi.Output[str]
    """What the servers run: ``repository@sha256:…``."""
    digest: pulumi.Output[str]
    """The digest that the moving tag points to, once every server runs it healthy."""
    addresses: pulumi.Output[Mapping[str, list[str]]]
    """Server name to the addresses at which the application answers there."""
    releases: pulumi.Output[Mapping[str, str]]
    """Server name to the commit that it runs, once it runs healthy."""

    def __init__(self, name: str, args: ApplicationArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        """Read the settings and the servers, then declare image, deployment and release.

        Raises EsteiraError: the settings have mistakes, there is no image to deploy, or, in an update, a server could
        not be read.
        """
        super().__init__("esteira:index:Application", name, {**args}, opts)
        settings = from_pulumi()
        if not isinstance(settings, Settings):
            raise EsteiraError(
                "This stack names gitlab and no application; an Application has nothing to declare."
            )
        source = inspect(settings)
        readings = refuse_unread(read_servers(settings, owner_of(settings)))
        child = pulumi.ResourceOptions(parent=self)
        args_of_image = image_args(settings, source, known_digests=lambda: known_digests(readings))
        image = Image(name, args_of_image, child)
        deployment = Deployment(
            name,
            {
                "settings": settings,
                "commit": source.commit,
                "tag": source.tag,
                "image": image.reference,
                "digest": image.known_digest,
                "readings": readings,
            },
            child,
        )
        release = Release(
            name,
            release_args(settings, source.commit, image.digest, registry_silent=image.registry_silent),
            pulumi.ResourceOptions(parent=self, depends_on=[deployment]),
        )
        self.commit = pulumi.Output.from_input(source.commit)
        self.image = image.reference
        self.digest = release.digest
        self.addresses = pulumi.Output.from_input(addresses(settings))
        self.releases = deployment.releases
        self.register_outputs(
            {
                "commit": self.commit,
                "image": self.image,
                "digest": self.digest,
                "addresses": self.addresses,
                "releases": self.releases,
            }
        )
