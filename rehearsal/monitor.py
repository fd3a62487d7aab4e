"""The resource monitor of a rehearsal: Pulumi's mock monitor, but what is registered is really done."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast

from google.protobuf import empty_pb2  # type: ignore[import-untyped]
from pulumi.runtime import rpc
from pulumi.runtime.mocks import MockCallArgs, MockMonitor, MockResourceArgs, Mocks
from pulumi.runtime.proto import engine_pb2, provider_pb2, resource_pb2
from pulumi.runtime.sync_await import _ensure_event_loop

from components.errors import EsteiraError
from rehearsal import commands, image
from rehearsal.errors import NotBegunError, RehearsalError
from rehearsal.values import conceal, inputs_of

Emit = Callable[..., None]


class Act(Protocol):
    """Does what a resource says; gives its outputs beyond its inputs, in the provider's own spelling."""

    def __call__(self, inputs: dict[str, Any], context: Context) -> dict[str, Any]:
        """Act, or raise."""
        ...


@dataclass(frozen=True)
class Context:
    """What an act needs beside the inputs: the project's folder, the resource's name, and where lines go."""

    root: Path
    name: str
    line: Callable[[str], None]
    later: Callable[[Callable[[], None]], None]
    """Takes what is to be done when everything else has been done well, such as deleting what was replaced."""
    provider: Mapping[str, Any] = field(default_factory=dict)
    """Inputs of the provider that the resource was given, or the stack's configuration of the default one."""
    ignore_changes: frozenset[str] = frozenset()
    """Inputs whose change is to be passed over."""


@dataclass(frozen=True)
class Kind:
    """A type of resource that can be rehearsed."""

    up: Act
    down: Act
    placeholder: Callable[[dict[str, Any]], dict[str, Any]]
    """Outputs that stand in for the real ones while a destroy only looks at the program."""


def _keep(inputs: dict[str, Any], context: Context) -> dict[str, Any]:  # noqa: ARG001 - an Act
    return {}


def _stash(inputs: dict[str, Any], context: Context | None = None) -> dict[str, Any]:  # noqa: ARG001 - an Act
    return {"output": inputs.get("input")}


def _gitlab(name: str) -> Any:
    """Return a function of rehearsal/gitlab_resources.py, which is loaded when it is called.

    Most programs tell GitLab nothing, and its client takes as long to load as all else here.
    """

    def late(*given: Any) -> Any:
        from rehearsal import gitlab_resources  # noqa: PLC0415

        return getattr(gitlab_resources, name)(*given)

    return late


KINDS: dict[str, Kind] = {
    "docker:index/image:Image": Kind(image.build_and_push, _keep, image.placeholder),
    "command:local:Command": Kind(commands.create_local, commands.delete_local, commands.placeholder),
    "command:remote:Command": Kind(commands.create_remote, commands.delete_remote, commands.placeholder),
    "gitlab:index/projectVariable:ProjectVariable": Kind(
        _gitlab("declare_variable"),
        _gitlab("remove_variable"),
        _gitlab("variable_placeholder"),
    ),
    "gitlab:index/projectDeployToken:ProjectDeployToken": Kind(
        _gitlab("declare_deploy_token"),
        _gitlab("remove_deploy_token"),
        _gitlab("deploy_token_placeholder"),
    ),
    "pulumi:index:Stash": Kind(_stash, _keep, _stash),
}
"""Every type of resource that can be rehearsed; providers and components are passed as they are."""

FUNCTIONS: dict[str, Act] = {
    "command:local:run": commands.run_local,
    "gitlab:index/getProject:getProject": _gitlab("get_project"),
}
"""Every function of a provider that can be rehearsed."""

QUIET = frozenset({"pulumi:index:Stash"})
"""Types that do nothing worth a line."""


@dataclass(frozen=True)
class _Done:
    urn: str
    type: str
    name: str
    inputs: dict[str, Any]
    needs: frozenset[str]
    provider: str


class _NoMocks(Mocks):
    """The monitor does everything itself; nothing may reach the mocks."""

    def call(self, args: MockCallArgs) -> tuple[dict[Any, Any], list[tuple[str, str]] | None]:
        raise AssertionError(args.token)

    def new_resource(self, args: MockResourceArgs) -> tuple[str | None, dict[Any, Any]]:
        raise AssertionError(args.typ)


class Monitor(MockMonitor):
    """Carries out what the program registers.

    The SDK sends a registration, on a thread of its own, once everything that it depends on is there; so
    order and parallelism are the engine's. After a failure nothing new is begun, and what is under way
    comes to its end.
    """

    def __init__(self, *, root: Path, act: bool, emit: Emit, config: Mapping[str, str] | None = None) -> None:
        super().__init__(_NoMocks())
        self.outputs: dict[str, Any] = {}
        self.first_failure: str | None = None
        self.failed: list[str] = []
        """Names of what failed, in order."""
        self._root = root
        self._act = act
        self._emit = emit
        self._config = dict(config or {})
        self._done: list[_Done] = []
        self._providers: dict[str, dict[str, Any]] = {}
        self._later: list[Callable[[], None]] = []
        self._stack_urn = ""
        self._state = threading.Condition()
        self._under_way = 0
        self._stopped: str | None = None

    # What the SDK calls. Its requests are protobuf messages.

    def RegisterResource(self, request: Any) -> Any:  # noqa: N802 - the monitor's own name
        """Carry out one resource; in a destroy only remember it."""
        urn = self.make_urn(request.parent, request.type, request.name)
        if request.type == "pulumi:pulumi:Stack":
            self._stack_urn = urn
            return resource_pb2.RegisterResourceResponse(urn=urn)
        _ensure_event_loop()  # type: ignore[no-untyped-call]
        raw = rpc.deserialize_properties(request.object)
        if not request.custom:
            self.resources[urn] = MockMonitor.ResourceRegistration(urn, "", {})
            return resource_pb2.RegisterResourceResponse(urn=urn)
        self._begin()
        try:
            state = {**raw, **self._carry_out(request, urn, inputs_of(raw))}
        except Exception as error:
            self._fail(request.name, error)
            raise
        finally:
            self._end()
        self.resources[urn] = MockMonitor.ResourceRegistration(urn, request.name, state)
        return resource_pb2.RegisterResourceResponse(urn=urn, id=request.name, object=_serialize(state))

    def RegisterResourceOutputs(self, request: Any) -> Any:  # noqa: N802
        """Keep the outputs of the stack; a component's are already in the program."""
        if request.urn == self._stack_urn:
            _ensure_event_loop()  # type: ignore[no-untyped-call]
            outputs = cast("dict[str, Any]", conceal(rpc.deserialize_properties(request.outputs)))
            self.outputs.update(outputs)
        return empty_pb2.Empty()

    def ReadResource(self, request: Any) -> Any:  # noqa: N802
        """Refuse: there is no state and no provider to read from."""
        raise self._fail(request.name, _cannot(request.type, request.name))

    def Invoke(self, request: Any) -> Any:  # noqa: N802
        """Call a provider's function, as far as it is one that can be rehearsed."""
        function = FUNCTIONS.get(request.tok)
        if function is None:
            raise self._fail(request.tok, _cannot(request.tok, "a function call"))
        _ensure_event_loop()  # type: ignore[no-untyped-call]
        inputs = inputs_of(rpc.deserialize_properties(request.args))
        self._begin()
        try:
            result = function(inputs, self._context(request.tok, request.tok, request.provider))
        except Exception as error:
            self._fail(request.tok, error)
            raise
        finally:
            self._end()
        fields = {"failures": list[provider_pb2.CheckFailure](), "return": _serialize({**inputs, **result})}
        return resource_pb2.ResourceInvokeResponse(**fields)

    # What the child process calls.

    def stop_beginning(self, reason: str | None) -> None:
        """Begin nothing more, if there is a reason."""
        with self._state:
            if reason is not None and self._stopped is None:
                self._stopped = reason

    def wait_until_idle(self) -> None:
        """Wait for everything that is under way."""
        with self._state:
            self._state.wait_for(lambda: self._under_way == 0)

    def finish(self) -> str | None:
        """Do what was put off until everything else had been done; the first failure."""
        try:
            for act in self._later:
                act()
        except Exception as error:  # noqa: BLE001 - whatever it is, the run ends with a sentence
            return _sentence("What was put off", error)
        return None

    def undo(self) -> str | None:
        """Take away what the program declares, dependants first, as much at a time as the dependencies allow.

        Returns the first failure; after it nothing new is begun.
        """
        waiting = {item.urn: item for item in self._done}
        under_way: dict[Future[None], str] = {}
        failure: str | None = None
        with ThreadPoolExecutor(max_workers=64) as pool:
            while waiting or under_way:
                if failure is None:
                    for item in list(waiting.values()):
                        others = [*waiting.values(), *(self._by_urn(urn) for urn in under_way.values())]
                        if not any(item.urn in other.needs for other in others if other.urn != item.urn):
                            del waiting[item.urn]
                            under_way[pool.submit(self._take_away, item)] = item.urn
                if not under_way:
                    break
                finished, _ = wait(under_way, return_when=FIRST_COMPLETED)
                for future in finished:
                    urn = under_way.pop(future)
                    error = future.exception()
                    if error is not None and failure is None:
                        failure = _sentence(self._by_urn(urn).name, error)
        return failure

    # Insides.

    def _carry_out(self, request: Any, urn: str, inputs: dict[str, Any]) -> dict[str, Any]:
        if request.type.startswith("pulumi:providers:"):
            self._providers[urn] = inputs
            return {}
        kind = KINDS.get(request.type)
        if kind is None:
            raise _cannot(request.type, request.name)
        needs = {*request.dependencies, request.parent}
        for dependencies in request.propertyDependencies.values():
            needs.update(dependencies.urns)
        if not self._act:
            self._done.append(
                _Done(urn, request.type, request.name, inputs, frozenset(needs), request.provider)
            )
            return kind.placeholder(inputs)
        started = time.monotonic()
        context = self._context(
            request.name, request.type, request.provider, frozenset(request.ignoreChanges)
        )
        outputs = kind.up(inputs, context)
        seconds = round(time.monotonic() - started, 3)
        if request.type not in QUIET:
            self._emit("line", text=f"{request.name}: done in {seconds:.1f} s")
        self._emit("resource", type=request.type, name=request.name, urn=urn, seconds=seconds)
        return outputs

    def _take_away(self, item: _Done) -> None:
        started = time.monotonic()
        KINDS[item.type].down(item.inputs, self._context(item.name, item.type, item.provider))
        seconds = round(time.monotonic() - started, 3)
        self._emit("resource", type=item.type, name=item.name, urn=item.urn, seconds=seconds)

    def _by_urn(self, urn: str) -> _Done:
        return next(item for item in self._done if item.urn == urn)

    def _context(
        self, name: str, kind: str, provider: str, ignore_changes: frozenset[str] = frozenset()
    ) -> Context:
        """Gather what an act needs; ``provider`` is a reference, ``<urn>::<id>``, or empty for the default one."""
        package = kind.partition(":")[0]
        inputs = self._providers.get(provider.rpartition("::")[0])
        if inputs is None:
            prefix = f"{package}:"
            inputs = {
                key.removeprefix(prefix): value
                for key, value in self._config.items()
                if key.startswith(prefix)
            }
        return Context(
            self._root,
            name,
            lambda text: self._emit("line", text=f"{name}: {text}"),
            self._later.append,
            inputs,
            ignore_changes,
        )

    def _begin(self) -> None:
        with self._state:
            if self._stopped is not None:
                raise NotBegunError(f"Not begun: {self._stopped}.")
            self._under_way += 1

    def _end(self) -> None:
        with self._state:
            self._under_way -= 1
            self._state.notify_all()

    def _fail(self, name: str, error: Exception) -> Exception:
        with self._state:
            self.failed.append(name)
            if self.first_failure is None:
                self.first_failure = _sentence(name, error)
            if self._stopped is None:
                self._stopped = f"{name} failed"
        return error


class Engine:
    """Takes what the program logs: lines to show, and errors to end with."""

    def __init__(self, emit: Emit) -> None:
        self.errors: list[str] = []
        self._emit = emit

    def Log(self, request: Any) -> Any:  # noqa: N802
        """Show an info or a warning, keep an error, drop what is for debugging."""
        message = request.message.rstrip()
        if request.severity == engine_pb2.ERROR:
            self.errors.append(message)
        elif request.severity in {engine_pb2.INFO, engine_pb2.WARNING}:
            warning = "warning: " if request.severity == engine_pb2.WARNING else ""
            self._emit("line", text=warning + message)
        return empty_pb2.Empty()


def _cannot(kind: str, name: str) -> RehearsalError:
    known = ", ".join(sorted(KINDS))
    return RehearsalError(
        f"{name} ({kind}) cannot be carried out without the Pulumi engine; only these can: {known}. "
        "Install the Pulumi CLI to run this program."
    )


def _sentence(name: str, error: BaseException) -> str:
    if isinstance(error, EsteiraError):
        return str(error)
    return f"{name} failed: {type(error).__name__}: {error}"


def _serialize(state: dict[str, Any]) -> Any:
    return asyncio.run(rpc.serialize_properties(state, {}))
