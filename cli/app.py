"""The commands of ./esteira."""

from __future__ import annotations

import atexit
import errno
import gc
import importlib.metadata
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from cli import console
from components.errors import EsteiraError

VERSION = "0.1.0"
ROOT = Path(__file__).resolve().parent.parent

app = typer.Typer(
    name="esteira",
    help=(
        "A commit becomes a healthy container on your own servers.\n\n"
        "These commands prepare, try out and look at things. On a real stack the way is plain "
        "`pulumi preview` and `pulumi up`."
    ),
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(asked: bool) -> None:
    if asked:
        console.say(f"esteira {VERSION}, Pulumi SDK {importlib.metadata.version('pulumi')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Show what is installed, and end.", callback=_show_version, is_eager=True
        ),
    ] = False,
) -> None:
    pass


@app.command()
def up() -> None:
    """Deploy the checked-out commit of the example on this machine (stack local), preparing what is missing."""
    from cli import lifecycle, local  # noqa: PLC0415 - each command loads only what it needs

    lifecycle.up(local.Place(ROOT))


@app.command()
def down() -> None:
    """Take everything away again that `up` made."""
    from cli import lifecycle, local  # noqa: PLC0415

    lifecycle.down(local.Place(ROOT))


_STACK = typer.Option(help="The stack; by default the selected one, else local.")


@app.command()
def status(
    stack: Annotated[str | None, _STACK] = None,
    server: Annotated[str | None, typer.Option(help="Only this server.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for a program.")] = False,
) -> None:
    """Show what runs on the servers: release, health, kept releases, disk, the last deployments.

    Exit status 1 where a server cannot be reached.
    """
    from cli import status as states  # noqa: PLC0415

    raise typer.Exit(states.run(ROOT, stack, server, as_json=as_json))


@app.command()
def releases(
    stack: Annotated[str | None, _STACK] = None,
    server: Annotated[str | None, typer.Option(help="Only this server.")] = None,
) -> None:
    """List what a rollback could go back to: the releases that the servers keep, the commits in the registry."""
    from cli import releases as listing  # noqa: PLC0415

    raise typer.Exit(listing.run(ROOT, stack, server))


@app.command()
def rollback(
    to: Annotated[
        str | None, typer.Option(help="The commit; its first digits do. By default the release before.")
    ] = None,
    stack: Annotated[str | None, _STACK] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Let `pulumi up` not ask.")] = False,
) -> None:
    """Declare an earlier commit (esteira:commit) and run `pulumi up`; nothing is built."""
    from cli import rollback as going_back  # noqa: PLC0415

    going_back.run(ROOT, stack, to, yes=yes)


@app.command()
def logs(
    stack: Annotated[str | None, _STACK] = None,
    server: Annotated[str | None, typer.Option(help="Only this server.")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until Ctrl-C.")] = False,
    tail: Annotated[str | None, typer.Option(help="Only the last lines: a number.")] = None,
    since: Annotated[str | None, typer.Option(help="Only since then: 10m, 2h, or a date.")] = None,
) -> None:
    """Show what the application says, on one server or all of them."""
    from cli import containers  # noqa: PLC0415

    raise typer.Exit(containers.logs(ROOT, stack, server, follow=follow, tail=tail, since=since))


@app.command("exec", context_settings={"allow_interspersed_args": False})
def execute(
    command: Annotated[list[str], typer.Argument(help="The command, after --.")],
    stack: Annotated[str | None, _STACK] = None,
    server: Annotated[str | None, typer.Option(help="Only this server.")] = None,
    tty: Annotated[bool, typer.Option("--tty", "-t", help="With this terminal; on one server.")] = False,
) -> None:
    """Run a command in the application's container, on one server or all of them: ./esteira exec -- env.

    The exit status is the worst of all servers'.
    """
    from cli import containers  # noqa: PLC0415

    raise typer.Exit(containers.execute(ROOT, stack, server, command, tty=tty))


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def test(context: typer.Context) -> None:
    """Run all layers of tests that can run here. What follows is passed on to pytest: test tests/unit -k port."""
    from cli import local, testing  # noqa: PLC0415

    raise typer.Exit(testing.run(local.Place(ROOT), context.args))


@app.command()
def bench(
    releases: Annotated[int, typer.Option(help="Releases of each way under load.", min=1)] = 20,
    rounds: Annotated[int, typer.Option(help="Rounds of times without load.", min=1)] = 5,
    rate: Annotated[float, typer.Option(help="New connections a second.", min=1)] = 200,
) -> None:
    """Measure the procedure's own commands, recreate and blueGreen on this machine; about 16 minutes."""
    from cli import bench, local  # noqa: PLC0415

    bench.run(local.Place(ROOT), releases=releases, rounds=rounds, rate=rate)


@app.command("offline-preview")
def offline_preview(
    against: Annotated[
        str | None, typer.Option(help="A git revision, or the folder of another tree, to compare with.")
    ] = None,
    stack: Annotated[list[str] | None, typer.Option(help="Only this stack; can be given again.")] = None,
    output: Annotated[Path, typer.Option(help="Folder that is written.")] = Path("offline-preview"),
) -> None:
    """Say what each stack would declare, without secrets, state or servers; for merge requests."""
    from cli import offline  # noqa: PLC0415

    offline.run(ROOT, against, stack or [], output)


@app.command()
def prune(
    stack: Annotated[
        list[str] | None, typer.Option(help="A stack whose images stay; all by default. Can be given again.")
    ] = None,
    project: Annotated[
        str | None, typer.Option(help="Project of GitLab; CI_PROJECT_PATH, else the repository, by default.")
    ] = None,
    keep: Annotated[int, typer.Option(min=1, help="How many of the newest commits stay in any case.")] = 20,
    in_use: Annotated[
        Path | None, typer.Option(help="Folder with what other jobs found in use (docs/gitlab.md).")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Delete, not only say what would be deleted.")] = False,
) -> None:
    """Delete images from GitLab's registry that no stack runs or could roll back to (GITLAB_TOKEN, scope api)."""
    from cli import prune as pruning  # noqa: PLC0415

    pruning.run(ROOT, stack or [], project, keep, yes=yes, found=in_use)


@app.command("ci-in-use", hidden=True)
def ci_in_use(stack: str, file: Path) -> None:
    """Write which images a stack runs or could roll back to, for `prune --in-use` in another job."""
    from cli import prune as pruning  # noqa: PLC0415

    pruning.record(ROOT, stack, file)


@app.command("ci-up", hidden=True)
def ci_up(stack: str) -> None:
    """Run `pulumi up` on a stack in a job of a pipeline, noting that this job holds it."""
    from cli import ci  # noqa: PLC0415

    raise typer.Exit(ci.up(ROOT, stack))


@app.command("ci-unlock", hidden=True)
def ci_unlock(stack: str) -> None:
    """Give a stack free that this job's `ci-up` held when it was cut off, and no other; for an after_script."""
    from cli import ci  # noqa: PLC0415

    ci.unlock(ROOT, stack, os.environ)


@app.command(hidden=True)
def images() -> None:
    """Make the base images of the local stack (as root, for a user who may not)."""
    from cli import docker, images, local  # noqa: PLC0415

    place = local.Place(ROOT)
    with place.locked():
        docker.ensure_engine(ROOT)
        images.ensure(ROOT)


def main() -> NoReturn:
    """Run the command line; every failure ends in one message, the last thing on the screen, never in a traceback."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was begun is cleaned up
    atexit.register(gc.freeze)  # what is left is not looked through once more at the end
    try:
        app(prog_name="./esteira")
        sys.exit(0)
    except SystemExit as end:
        if end.code in {130, 143}:
            console.error("Interrupted. Type the same command again to go on.")
        raise
    except KeyboardInterrupt:
        console.error("Interrupted. Type the same command again to go on.")
        sys.exit(130)
    except EsteiraError as error:
        console.error(str(error))
        sys.exit(1)
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            console.error(
                "The disk is full. Free some space (df -h shows where), then type the same command again."
            )
        elif error.errno == errno.EPIPE:
            # Nobody reads on: nothing is left to be said, and Python must not try to when it ends.
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        else:
            console.error(f"{error.strerror or error}: {error.filename or 'no file named'}.")
        sys.exit(1)
    except Exception as error:  # noqa: BLE001 - a mistake of ours: the details are for a report, not for the screen
        console.error(f"{type(error).__name__}: {error}. This is a mistake in Esteira.{_kept(error)}")
        sys.exit(1)


def _kept(error: Exception) -> str:
    """Keep the details of a mistake of ours in a file, and say where."""
    file = ROOT / ".esteira" / "mistake.log"
    try:
        file.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
    except OSError:
        return ""
    return f" Its details are in {file}; please report it."
