"""From a commit to a healthy container on every server, as Pulumi.<stack>.yaml says."""

import pulumi
from esteira.application import Application
from esteira.interrupt import end_quietly, told_to_the_engine

end_quietly()

with told_to_the_engine():
    application = Application("app", {})
    pulumi.export("image", application.image)
    pulumi.export("addresses", application.addresses)
    pulumi.export("releases", application.releases)
