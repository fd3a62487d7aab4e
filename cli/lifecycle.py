"""`./esteira up` and `./esteira down`: the local stack comes and goes."""

from __future__ import annotations

from contextlib import suppress

from cli import console, docker, engine, images, local, prepare, shell
from components.errors import EsteiraError
from components.settings import Settings, image_name
from rehearsal import carry_out


def up(place: local.Place) -> None:
    """Prepare what is missing, deploy the checked-out commit on this machine, and tell where to look at it."""
    with place.locked():
        settings = prepare.for_local_stack(place)
        found = prepare.find_engine(place.root)
        if isinstance(found, engine.Engine):
            engine.carry_out(place, found, "up")
        else:
            carry_out(place.root, local.STACK, action="up", environ=prepare.environment_of_program(place))
    _tell_what_next(settings)


def _tell_what_next(settings: Settings) -> None:
    name = settings.container.name
    console.say()
    port = next((port for port in settings.container.ports if port.transport == "tcp"), None)
    if port is not None:
        host = "localhost" if port.address in {None, "0.0.0.0", "127.0.0.1", "::"} else str(port.address)  # noqa: S104
        scheme = "https" if port.protocol == "https" else "http"
        console.say(f"Open   {scheme}://{host}:{port.published}")
    console.say("Next   change something, git commit, ./esteira up    the new commit takes over")
    console.say(f"       docker logs {name:<33}    what the application says")
    console.say("       ./esteira down                                   everything is taken away again")


def down(place: local.Place) -> None:
    """Take away what `up` made: the application, its images, the registry, the base images, state and secrets.

    Works on whatever is there, however far `up` had got. Raises EsteiraError when something could not be removed; what
    is needed to try again is then kept.
    """
    with place.locked():
        removed: list[str] = []
        version, complaint = docker.answer() if shell.has("docker") else (None, "")
        if version is None and place.folder.exists() and shell.has("dockerd"):
            docker.require_permission(complaint)
            raise EsteiraError(
                f"Docker does not answer, so that what runs in it cannot be removed ({complaint}). "
                "Start it (sudo systemctl start docker), then type ./esteira down again."
            )
        # Another checkout's stack has the same names: nothing of this one can be up beside it.
        if version is not None and not local.is_anothers(place):
            if place.folder.exists():
                _destroy(place)
                removed += _remove_application_images(place)
            removed += local.remove_registry(place)
            removed += [f"image {name}" for name in images.remove(place.root)]
        if place.folder.exists() or place.state.exists():
            local.remove_folders(place)
            removed.append("state and secrets in .esteira")
    for thing in removed:
        console.say(f"removed {thing}")
    console.say("The local stack is gone." if removed else "There was nothing of the local stack to remove.")
    console.say(
        "Kept: Docker, .venv" + (", .esteira/pulumi." if (place.root / ".esteira/pulumi").exists() else ".")
    )


def _destroy(place: local.Place) -> None:
    """Let the program's own resources go: by the engine where it has a state of them, else by the rehearsal."""
    if not place.registry_password.exists():
        return  # nothing was ever deployed
    found = engine.find(place.root, install=False)
    if engine.has_state(place):
        if isinstance(found, engine.Missing):
            raise EsteiraError(
                f"The Pulumi engine made the local stack, and it cannot be had now ({found.reason}). "
                "Install the Pulumi CLI, then type ./esteira down again."
            )
        engine.carry_out(place, found, "destroy")
        return
    carry_out(place.root, local.STACK, action="destroy", environ=prepare.environment_of_program(place))


def _remove_application_images(place: local.Place) -> list[str]:
    """Remove the images that were built for the local registry: its address is this machine's own, nobody else's."""
    repository = image_name(place.settings())
    names = docker.docker(
        "image", "ls", "--format", "{{.Repository}}:{{.Tag}} {{.ID}}", repository
    ).splitlines()
    # A build whose tag has moved on has no name any more, but the label that the example's Dockerfile gives it.
    nameless = ("--filter", "dangling=true", "--filter", "label=esteira.example=parasite")
    names += docker.docker(
        "image", "ls", *nameless, "--format", "an-earlier-build:<none> {{.ID}}"
    ).splitlines()
    removed = []
    for line in names:
        tag, identity = line.split()
        with suppress(shell.CommandError):
            docker.docker("rmi", identity if tag.endswith(":<none>") else tag)
            removed.append(f"image {tag.removesuffix(':<none>')}")
    return removed
