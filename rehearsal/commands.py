"""pulumi-command's Command, local and remote, as the plugin runs it (its sources: provider/pkg/provider).

Where the plugin's error shows the whole command, ours shows who failed, how, and the last lines of its
output.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from rehearsal import processes
from rehearsal.errors import RehearsalError

if TYPE_CHECKING:
    from rehearsal.monitor import Context


def create_local(inputs: dict[str, Any], context: Context) -> dict[str, Any]:
    """Run ``create`` in the project's folder (or ``dir``) by ``/bin/sh -c`` (or ``interpreter``)."""
    return _local(inputs, context, inputs.get("create"))


def delete_local(inputs: dict[str, Any], context: Context) -> dict[str, Any]:
    """Run ``delete``."""
    return _local(inputs, context, inputs.get("delete"))


def run_local(inputs: dict[str, Any], context: Context) -> dict[str, Any]:
    """Run the ``command`` of the function ``command:local:run``."""
    return _local(inputs, context, inputs.get("command"))


def create_remote(inputs: dict[str, Any], context: Context) -> dict[str, Any]:
    """Run ``create`` over SSH."""
    return _remote(inputs, context, inputs.get("create"))


def delete_remote(inputs: dict[str, Any], context: Context) -> dict[str, Any]:
    """Run ``delete`` over SSH."""
    return _remote(inputs, context, inputs.get("delete"))


def placeholder(inputs: dict[str, Any]) -> dict[str, Any]:  # noqa: ARG001 - one shape for all kinds
    """Stand in for the outputs of a command that was not run.

    A digest, because that is what a program takes from a command's output and may insist on.
    """
    return {"stdout": f"sha256:{'0' * 64}", "stderr": ""}


def _local(inputs: dict[str, Any], context: Context, command: str | None) -> dict[str, Any]:
    if command is None:
        return {"stdout": "", "stderr": ""}
    for unsupported in ("assetPaths", "archivePaths"):
        if inputs.get(unsupported):
            raise RehearsalError(f"{context.name} has {unsupported}, which needs the Pulumi engine.")
    on_stdout, on_stderr = _listeners(inputs, context)
    finished = processes.run(
        [*(inputs.get("interpreter") or ["/bin/sh", "-c"]), command],
        cwd=context.root / (inputs.get("dir") or "."),
        env={**os.environ, **(inputs.get("environment") or {})},
        stdin=inputs.get("stdin"),
        on_stdout=on_stdout,
        on_stderr=on_stderr,
    )
    if finished.status != 0:
        raise failed(context.name, "on this machine", finished.status, finished.tail)
    return {"stdout": finished.stdout, "stderr": finished.stderr}


def _remote(inputs: dict[str, Any], context: Context, command: str | None) -> dict[str, Any]:
    if command is None:
        return {"stdout": "", "stderr": ""}
    from rehearsal import ssh  # noqa: PLC0415 - not needed where this machine is the server

    on_stdout, on_stderr = _listeners(inputs, context)
    connection = ssh.Connection.from_inputs(inputs["connection"])
    finished = ssh.run(
        connection,
        command,
        name=context.name,
        environment=inputs.get("environment") or {},
        stdin=inputs.get("stdin"),
        on_stdout=on_stdout,
        on_stderr=on_stderr,
    )
    if finished.status != 0:
        raise failed(context.name, f"on {connection.host}", finished.status, finished.tail)
    return {"stdout": finished.stdout, "stderr": finished.stderr}


def _listeners(
    inputs: dict[str, Any], context: Context
) -> tuple[Callable[[str], None], Callable[[str], None]]:
    """Who hears the two streams, by ``logging``: stdout, stderr, stdoutAndStderr (default) or none."""

    def silent(_: str) -> None:
        pass

    logging = inputs.get("logging") or "stdoutAndStderr"
    return (
        context.line if logging in {"stdout", "stdoutAndStderr"} else silent,
        context.line if logging in {"stderr", "stdoutAndStderr"} else silent,
    )


def failed(name: str, where: str, status: int, tail: str) -> RehearsalError:
    """Make the error of a command: whose, where, how, and what it said last."""
    how = f"exit status {status}" if status >= 0 else f"signal {-status}"
    return RehearsalError(
        f"{name} failed {where} ({how})." + (f"\n{tail}" if tail else " It printed nothing.")
    )
