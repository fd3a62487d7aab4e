"""Run a piece of a Pulumi program under mocks and see what it declared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pulumi
from pulumi.runtime import mocks, rpc

SECRET_SIGNATURE = "4dabf18193072939515e22adb298388d"


@dataclass
class Declared:
    """One resource, as the engine would get it."""

    type: str
    name: str
    inputs: dict[str, Any]
    parent: str
    depends_on: list[str] = field(default_factory=list)
    ignore_changes: list[str] = field(default_factory=list)
    delete_before_replace: bool = False
    import_id: str = ""

    def is_secret(self, key: str) -> bool:
        value = self.inputs[key]
        return isinstance(value, dict) and SECRET_SIGNATURE in value

    def plain(self, key: str) -> Any:
        """Return an input, a secret one unwrapped."""
        value = self.inputs[key]
        return value["value"] if self.is_secret(key) else value


class _Mocks(mocks.Mocks):
    def __init__(self, outputs: dict[str, dict[str, Any]]) -> None:
        self.outputs = outputs

    def new_resource(self, args: mocks.MockResourceArgs) -> tuple[str | None, dict[Any, Any]]:
        return f"{args.name}-id", {**args.inputs, **self.outputs.get(args.typ, {})}

    def call(self, args: mocks.MockCallArgs) -> tuple[dict[Any, Any], list[tuple[str, str]] | None]:
        return {}, None


class _Monitor(mocks.MockMonitor):
    """Mocks never see options; the monitor's own request has them."""

    def __init__(self, given: mocks.Mocks) -> None:
        super().__init__(given)
        self.declared: list[Declared] = []

    def RegisterResource(self, request: Any) -> Any:  # noqa: N802 - gRPC's name
        inputs = rpc.deserialize_properties(request.object, keep_unknowns=True)
        if request.type != "pulumi:pulumi:Stack":
            self.declared.append(
                Declared(
                    request.type,
                    request.name,
                    inputs,
                    request.parent,
                    sorted(request.dependencies),
                    list(request.ignoreChanges),
                    request.deleteBeforeReplace,
                    request.importId,
                )
            )
        return super().RegisterResource(request)  # type: ignore[no-untyped-call]


def declare(
    program: Callable[[], Any],
    outputs: dict[str, dict[str, Any]] | None = None,
    *,
    preview: bool = False,
    stack: str = "staging",
) -> tuple[Any, dict[str, Declared]]:
    """Return what the program's outputs became (None where unknown), and the declared resources by "type name".

    outputs: resource type to the outputs that the mock gives it beside its inputs.
    """
    given = _Mocks(outputs or {})
    monitor = _Monitor(given)
    mocks.set_mocks(given, project="esteira", stack=stack, preview=preview, monitor=monitor)
    results: list[Any] = []

    def run() -> pulumi.Output[None]:
        return pulumi.Output.from_input(program()).apply(results.append, run_with_unknowns=True)

    pulumi.runtime.test(run)()  # type: ignore[no-untyped-call]
    result = results[0] if results else None
    return result, {f"{one.type.rpartition(':')[2]} {one.name}": one for one in monitor.declared}
