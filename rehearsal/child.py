"""The process in which the program runs: Pulumi's runtime is global, so every rehearsal gets a new one."""

from __future__ import annotations

import asyncio
import json
import os
import runpy
import signal
import sys
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NoReturn

import pulumi.runtime
from pulumi.runtime.config import set_all_config
from pulumi.runtime.mocks import MockSettings
from pulumi.runtime.settings import configure

from components.errors import EsteiraError
from rehearsal.monitor import Engine, Monitor
from rehearsal.processes import end_all


class Events:
    """Writes what happens, one JSON object a line, to the parent."""

    def __init__(self, descriptor: int) -> None:
        self._stream = os.fdopen(descriptor, "w", encoding="utf-8")
        self._lock = threading.Lock()

    def emit(self, kind: str, **values: Any) -> None:
        """Tell the parent of one event; from any thread."""
        with self._lock:
            self._stream.write(json.dumps({"kind": kind, **values}, default=str) + "\n")
            self._stream.flush()


def main() -> NoReturn:
    """Read the request from stdin, run the program, tell the parent how it went."""
    descriptor = int(sys.argv.pop(1))
    os.set_inheritable(descriptor, False)
    events = Events(descriptor)
    request = json.loads(sys.stdin.readline())

    def quit_now(*_: object) -> NoReturn:
        end_all()
        os._exit(130)

    signal.signal(signal.SIGINT, quit_now)
    signal.signal(signal.SIGTERM, quit_now)
    threading.Thread(target=_watch_parent, args=(quit_now,), daemon=True).start()

    error = _run(request, events)
    sys.stdout.flush()
    sys.stderr.flush()
    if error is not None:
        events.emit("error", text=error)
    events.emit("end")
    # Not sys.exit: tasks of the SDK that wait for what failed would still be reported, with tracebacks.
    os._exit(1 if error is not None else 0)


def _watch_parent(quit_now: Any) -> None:
    # A raw read: the buffered reader's lock would be held for ever.
    while os.read(0, 4096):
        pass
    quit_now()


def _run(request: dict[str, Any], events: Events) -> str | None:
    """Run the program; the error to show, or None."""
    engine = Engine(events.emit)
    monitor = Monitor(
        root=Path(request["root"]),
        act=request["action"] == "up",
        emit=events.emit,
        config=request["config"],
    )
    configure(
        MockSettings(  # type: ignore[no-untyped-call]
            monitor=monitor,
            monitor_features=set(monitor.GetDeploymentInfo(None).supportedFeatures),  # type: ignore[no-untyped-call]
            engine=engine,
            project=request["project"],
            stack=request["stack"],
            root_directory=request["root"],
            organization="organization",
            dry_run=False,
            callbacks=None,
        )
    )
    set_all_config(request["config"], request["secret_keys"])
    program = request["program"]
    sys.path.insert(0, str(Path(program).parent))
    sys.argv = [program]

    def run_program() -> None:
        runpy.run_path(program, run_name="__main__")

    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    loop.set_exception_handler(lambda *_: None)
    # A thread per resource that is under way; Python's default is few, and servers must not wait for each
    # other.
    loop.set_default_executor(ThreadPoolExecutor(max_workers=64))
    failure: str | None = None
    try:
        loop.run_until_complete(pulumi.runtime.run_in_stack(run_program))
    except SystemExit as stop:
        if stop.code not in (None, 0):
            failure = (
                stop.code if isinstance(stop.code, str) else f"The program stopped with status {stop.code}."
            )
    except EsteiraError as raised:
        failure = str(raised)
    except BaseException as raised:  # noqa: BLE001 - whatever the program does, the parent gets a sentence
        failure = _describe(raised, Path(request["root"]))
    monitor.stop_beginning("the program stopped" if failure else None)
    monitor.wait_until_idle()
    cause = monitor.first_failure or ("\n".join(engine.errors) if failure else None) or failure
    if cause is not None and request["action"] == "up" and "components.rollout" in sys.modules:
        # The engine's error hooks do not run here. A program that has not loaded this has no rollout.
        from components.rollout import rescue  # noqa: PLC0415

        rescue(monitor.failed, lambda text: events.emit("line", text=f"warning: {text}"))
    if cause is None and request["action"] == "up":
        cause = monitor.finish()
    if cause is None and request["action"] == "destroy":
        started = time.monotonic()
        cause = monitor.undo()
        if cause is None:
            events.emit("line", text=f"Destroyed in {time.monotonic() - started:.1f} s.")
    if cause is None:
        events.emit("outputs", values=monitor.outputs)
    return cause


def _describe(raised: BaseException, root: Path) -> str:
    """Say what a mistake in the program itself is, and on which line of the project."""
    seen: set[int] = set()
    while raised.__cause__ is not None and id(raised) not in seen:
        seen.add(id(raised))
        if isinstance(raised.__cause__, EsteiraError):
            return str(raised.__cause__)
        raised = raised.__cause__
    where = ""
    for frame in traceback.extract_tb(raised.__traceback__):
        path = Path(frame.filename)
        if path.is_relative_to(root) and ".venv" not in path.parts:
            where = f" ({path.relative_to(root)}, line {frame.lineno})"
    return f"The program failed: {type(raised).__name__}: {raised}{where}"
