"""From a commit to a healthy container on every server, and what GitLab must know, as Pulumi.<stack>.yaml says."""

import pulumi

from components.interrupt import end_quietly, leave_garbage, told_to_the_engine

end_quietly()
leave_garbage()

from components.arguments import owner_of
from components.reading import BegunReading
from components.settings import Settings, from_pulumi
from components.source import inspect

with told_to_the_engine():
    settings = from_pulumi()
    if settings.gitlab is not None:
        # Here, not above: GitLab's packages take half a second, and most stacks do not need them.
        from components.gitlab import declare_gitlab
        from components.gitlab_access import check_access

        check_access(settings)
        declare_gitlab(settings)

    if isinstance(settings, Settings):
        reading = BegunReading(settings, owner_of(settings))
        source = inspect(settings)
        reading.wait_until_asked()
        # While the servers answer: loading what declares the resources and asking the registry take about as long.
        from components.deployment import Deployment, addresses
        from components.image import Image, image_args
        from components.release import Release, release_args

        name = "app"  # not the container's: a renamed one would be created before the old one gives its port back
        args_of_image = image_args(settings, source, known_digests=reading.known_digests)
        readings = reading.result()
        image = Image(name, args_of_image)
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
        )
        release = Release(
            name,
            release_args(settings, source.commit, image.digest, registry_silent=image.registry_silent),
            pulumi.ResourceOptions(depends_on=[deployment]),
        )

        pulumi.export("commit", source.commit)
        pulumi.export("image", image.reference)
        pulumi.export("digest", release.digest)
        pulumi.export("addresses", addresses(settings))
        pulumi.export("releases", deployment.releases)
