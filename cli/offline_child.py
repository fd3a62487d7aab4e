"""Runs the program of one tree with one stack, under mocks, and writes what it declares as JSON to stdout.

A script, not a module: it is started by its path, with the tree's own `components` first on the path, so that the
branch that is compared with is described by its own program. It gets an environment without secrets, and it asks
nobody: no registry, no server, no GitLab, no state.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import runpy
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

SECRET, UNKNOWN = "[secret]", "[known when it is deployed]"
PLACEHOLDER = "offline-placeholder"
_DIGEST = "sha256:" + "0" * 64
_SECRET_SIGNATURE = "4dabf18193072939515e22adb298388d"  # noqa: S105 - how Pulumi marks a secret on the wire
_EMPTY_SERVER = "esteira-reading 1\narch amd64\nend\n"


class _Registry:
    """In place of the registry: has what is promoted, and nothing that could be built."""

    def __init__(self, settings: Any) -> None:
        self.name = f"{settings.registry}/{settings.repository}"
        self._promote = settings.promote

    def digest(self, tag: str) -> str | None:  # noqa: ARG002 - the registry's interface
        return _DIGEST if self._promote else None


def main() -> None:
    """Read ``{"root", "stack", "config", "secret_keys"}`` from stdin; write ``{"resources", "error"}`` to stdout."""
    request = json.load(sys.stdin)
    root = Path(request["root"])
    sys.path[0] = str(root)
    answer: dict[str, Any] = {"resources": [], "error": None}
    with contextlib.redirect_stdout(sys.stderr):
        try:
            answer["resources"] = _declared(root, request)
        except BaseException as error:  # noqa: BLE001 - whatever the program does, the parent gets a sentence
            answer["error"] = _sentence(error)
    json.dump(answer, sys.stdout)


def _sentence(error: BaseException) -> str:
    cause: BaseException | None = error
    while cause is not None:
        if type(cause).__name__.endswith("Error") and "components" in type(cause).__module__:
            return str(cause)
        cause = cause.__cause__ or cause.__context__
    return f"{type(error).__name__}: {error}"


def _declared(root: Path, request: Mapping[str, Any]) -> list[dict[str, Any]]:
    import pulumi  # noqa: PLC0415 - after the tree is on the path
    from pulumi.runtime import mocks, rpc  # noqa: PLC0415

    stackfile = importlib.import_module("rehearsal.stackfile")
    read = stackfile.read_stack_config(
        root,
        request["stack"],
        environ={},
        config=request["config"],
        secret_keys=request["secret_keys"],
    )
    resources: list[dict[str, Any]] = []

    class Given(mocks.Mocks):
        def new_resource(self, args: mocks.MockResourceArgs) -> tuple[str | None, dict[Any, Any]]:
            return f"{args.name}-id", dict(args.inputs)

        def call(self, args: mocks.MockCallArgs) -> tuple[dict[Any, Any], list[tuple[str, str]] | None]:
            raise RuntimeError(f"the program asks {args.token}, which an offline preview cannot")

    class Monitor(mocks.MockMonitor):
        def RegisterResource(self, request: Any) -> Any:  # noqa: N802 - gRPC's name
            if request.type != "pulumi:pulumi:Stack":
                inputs = rpc.deserialize_properties(request.object, keep_unknowns=True)
                resources.append({"type": request.type, "name": request.name, "inputs": conceal(inputs)})
            return super().RegisterResource(request)  # type: ignore[no-untyped-call]

    given = Given()
    mocks.set_mocks(given, project=read.project, stack=request["stack"], preview=True, monitor=Monitor(given))
    pulumi.runtime.set_all_config(dict(read.values), list(read.secret_keys))
    pulumi.get_root_directory = lambda: str(root)
    signal.signal = lambda *_: None
    _cut_off()

    def program() -> None:
        runpy.run_path(str(read.program), run_name="__main__")

    pulumi.runtime.test(program)()  # type: ignore[no-untyped-call]
    return resources


def _cut_off() -> None:
    """Put something harmless in the place of everything that asks the world outside."""
    reading = importlib.import_module("components.reading")

    def read_servers(settings: Any, *_: Any) -> dict[str, Any]:
        return {server.name: reading.parse_reading(server.name, _EMPTY_SERVER) for server in settings.servers}

    _replace("components.reading", "read_servers", read_servers)
    _replace("components.image", "from_settings", _Registry)
    _replace("components.image", "check_docker", lambda *_: None)
    _replace("components.gitlab_access", "check_access", lambda *_: None)


def _replace(module: str, name: str, value: Callable[..., Any]) -> None:
    with contextlib.suppress(ModuleNotFoundError):  # the branch may not have it yet
        setattr(importlib.import_module(module), name, value)


def conceal(value: Any) -> Any:
    """Return inputs as JSON has them, nothing of a secret, and words for what is not known yet."""
    if isinstance(value, Mapping):
        if _SECRET_SIGNATURE in value:
            return SECRET
        return {str(key): conceal(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [conceal(item) for item in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    return UNKNOWN if "nknown" in type(value).__name__ else str(value)


if __name__ == "__main__":
    main()
