"""The rehearsal as its callers see it: start the program in a process of its own and follow it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Literal

from rehearsal.errors import RehearsalError
from rehearsal.stackfile import read_stack_config

Action = Literal["up", "destroy"]

_BOOT = "import sys; sys.path.insert(0, sys.argv.pop(1)); from rehearsal.child import main; main()"


@dataclass(frozen=True)
class RehearsedResource:
    """One resource of the program that was carried out (or, in a destroy, taken away)."""

    type: str
    name: str
    urn: str
    seconds: float


@dataclass(frozen=True)
class RehearsalResult:
    """What a rehearsal ended with. Secret outputs are ``"[secret]"``."""

    outputs: dict[str, object] = field(default_factory=dict)
    resources: list[RehearsedResource] = field(default_factory=list)


def carry_out(
    root: Path,
    stack: str,
    *,
    action: Action = "up",
    environ: Mapping[str, str] | None = None,
    config: Mapping[str, object] | None = None,
    secret_keys: Collection[str] = frozenset(),
    on_line: Callable[[str], None] = print,
) -> RehearsalResult:
    """Run the program at ``root`` with the configuration of ``stack`` and really do what its resources say.

    ``environ`` is the program's whole environment (default: this process's). ``config`` is laid over the
    stack file; those of its keys that are secret are named in ``secret_keys``. Every line of progress goes
    to ``on_line``, the lines of a resource prefixed by its name. ``destroy`` runs the program without
    acting, then the ``delete`` of its commands, dependants first.

    Raises :class:`RehearsalError` when something failed, with the cause and the last output of what failed.
    What had been begun beside it is waited for; what depends on it is not begun.
    """
    root = root.resolve()
    surroundings = dict(os.environ if environ is None else environ)
    settled = read_stack_config(root, stack, environ=surroundings, config=config, secret_keys=secret_keys)
    for note in settled.notes:
        on_line(note)
    surroundings["ESTEIRA_REHEARSAL"] = action
    surroundings.setdefault("PYTHONUNBUFFERED", "1")
    request = {
        "root": str(root),
        "program": str(settled.program),
        "project": settled.project,
        "stack": stack,
        "action": action,
        "config": dict(settled.values),
        "secret_keys": sorted(settled.secret_keys),
    }
    events, events_of_child = os.pipe()
    try:
        # The configuration, secrets included, goes by stdin: neither argv nor environment may hold it. The
        # pipe stays open as long as this process lives, so that the child notices when it is alone.
        child = subprocess.Popen(
            [sys.executable, "-c", _BOOT, str(Path(__file__).resolve().parent.parent), str(events_of_child)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=root,
            env=surroundings,
            pass_fds=(events_of_child,),
            # Ctrl-C comes here only; the child is told by the end of its stdin, and ends what it started.
            start_new_session=True,
            text=True,
            encoding="utf-8",
            errors="replace",
        )
    finally:
        os.close(events_of_child)
    assert child.stdin is not None
    assert child.stdout is not None
    said: list[str] = []
    printing = threading.Lock()
    listener = threading.Thread(target=_pass_on, args=(child.stdout, said, on_line, printing), daemon=True)
    listener.start()
    result = RehearsalResult()
    error: str | None = None
    finished = False
    with os.fdopen(events, "r", encoding="utf-8") as stream:
        try:
            child.stdin.write(json.dumps(request) + "\n")
            child.stdin.flush()
            for line in stream:
                event = json.loads(line)
                kind = event["kind"]
                if kind == "line":
                    with printing:
                        on_line(event["text"])
                elif kind == "resource":
                    del event["kind"]
                    result.resources.append(RehearsedResource(**event))
                elif kind == "outputs":
                    result.outputs.update(event["values"])
                elif kind == "error":
                    error = event["text"]
                elif kind == "end":
                    finished = True
        except BrokenPipeError:
            pass
        except BaseException:
            child.stdin.close()
            try:
                child.wait(timeout=10)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
            raise
    status = child.wait()
    listener.join(timeout=5)
    if error is not None:
        raise RehearsalError(error)
    if status != 0 or not finished:
        tail = "\n".join(said[-40:])
        raise RehearsalError(
            f"The program ended with status {status} and gave no reason." + (f"\n{tail}" if tail else "")
        )
    return result


def _pass_on(
    stream: IO[str], said: list[str], on_line: Callable[[str], None], printing: threading.Lock
) -> None:
    for line in stream:
        said.append(line.rstrip("\n"))
        with printing:
            on_line(said[-1])
