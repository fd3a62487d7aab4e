"""`./esteira logs` and `./esteira exec`: docker's own commands on the serving container of one server or of all."""

from __future__ import annotations

import os
import select
import shlex
import shutil
import signal
import subprocess
import sys
import termios
import threading
import tty as terminals
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Protocol

import paramiko

from cli import console, stacks
from components.connection import ssh_client
from components.errors import EsteiraError
from components.settings import ServerSettings, Settings

_CHUNK = 65536
_LOST = 255
_WRAPPER = (
    'exec 5<&0; docker "$@" 5<&- </dev/null & p=$!; '
    "{ cat <&5 >/dev/null; kill $p; } 2>/dev/null & c=$!; exec 5<&-; "
    "wait $p; s=$?; kill $c 2>/dev/null; exit $s"
)
"""What runs on the server: docker, until it ends or the connection does, which is the end of this shell's input.
Without it a `docker logs --follow` would stay there until the application speaks again."""


def logs(
    root: Path, stack: str | None, server: str | None, *, follow: bool, tail: str | None, since: str | None
) -> int:
    """Show what the application says; return the exit status of the worst server."""
    settings = _settings(root, stack, server)
    words = ["logs"]
    words += ["--follow"] if follow else []
    words += ["--tail", tail] if tail else []
    words += ["--since", since] if since else []
    try:
        return everywhere(settings, [*words, settings.container.name])
    except KeyboardInterrupt:
        if follow:
            return 0
        raise


def execute(root: Path, stack: str | None, server: str | None, command: Sequence[str], *, tty: bool) -> int:
    """Run a command in the application's container; return the exit status of the worst server."""
    settings = _settings(root, stack, server)
    if not tty:
        return everywhere(settings, ["exec", settings.container.name, *command])
    if len(settings.servers) > 1:
        names = ", ".join(one.name for one in settings.servers)
        raise EsteiraError(f"A terminal is for one server: name it with --server ({names}).")
    if not sys.stdin.isatty():
        raise EsteiraError("There is no terminal here that -t could hand on. Leave -t out.")
    return _with_terminal(settings, ["docker", "exec", "-it", settings.container.name, *command])


def _settings(root: Path, stack: str | None, server: str | None) -> Settings:
    return stacks.only(stacks.declared(root, stacks.choose(root, stack)).settings, server)


class _Process(Protocol):
    """A docker command that runs on a server."""

    def read(self, sink: Callable[[bool, bytes], None]) -> int:
        """Hand on what it says (whether on stderr, and the bytes) until it ends; return its exit status."""

    def end(self) -> None:
        """Let go of it at once."""


def everywhere(settings: Settings, words: Sequence[str]) -> int:
    """Run a docker command on all servers at once and show what it says; return the worst exit status.

    With several servers each line begins with the server's name. A server that cannot be reached counts as 1.
    """
    several = len(settings.servers) > 1
    width = max(len(server.name) for server in settings.servers)
    printing = threading.Lock()
    statuses: list[int] = []
    begun: list[_Process] = []
    stopped = threading.Event()

    def run(server: ServerSettings) -> None:
        sink = _Lines(printing, f"{server.name:<{width}} | " if several else "")
        try:
            with _process(settings, server, words) as process:
                begun.append(process)
                if not stopped.is_set():
                    statuses.append(process.read(sink.take))
            sink.finish()
        except EsteiraError as error:
            if not stopped.is_set():  # else it was let go of on purpose
                with printing:
                    console.error(str(error))
            statuses.append(1)
        except OSError:
            # Nobody reads on (a pipe to head), or the connection was let go of on purpose.
            statuses.append(_LOST)

    threads = [threading.Thread(target=run, args=(server,), daemon=True) for server in settings.servers]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            while thread.is_alive():
                thread.join(0.2)
    finally:
        stopped.set()
        for process in begun:
            process.end()
    return max(statuses, default=1)


class _Lines:
    """Shows what one server says: whole lines behind its name, or, for a server alone, every byte as it comes."""

    def __init__(self, printing: threading.Lock, prefix: str) -> None:
        self._printing, self._prefix = printing, prefix.encode()
        self._rest = {False: b"", True: b""}

    def take(self, wrong: bool, data: bytes) -> None:
        """Take bytes of stdout, or (``wrong``) of stderr."""
        if not self._prefix:
            self._write(wrong, data)
            return
        *lines, self._rest[wrong] = (self._rest[wrong] + data).split(b"\n")
        self._write(wrong, b"".join(self._prefix + line + b"\n" for line in lines))

    def finish(self) -> None:
        """Show a last line that had no end."""
        for wrong, rest in self._rest.items():
            if rest:
                self._write(wrong, self._prefix + rest + b"\n")

    def _write(self, wrong: bool, data: bytes) -> None:
        stream = sys.stderr if wrong else sys.stdout
        with self._printing:
            stream.buffer.write(data)
            stream.buffer.flush()


@contextmanager
def _process(settings: Settings, server: ServerSettings, words: Sequence[str]) -> Iterator[_Process]:
    if server.local:
        yield _Here(words)
        return
    with ssh_client(settings, server) as client:
        sudo_password = settings.sudo_password.get_secret_value() if settings.sudo_password else None
        sudo = [] if not server.sudo else ["sudo", "-S", "-p", ""] if sudo_password else ["sudo", "-n"]
        try:
            process = _There(client, server.name)
            process.start(shlex.join([*sudo, "sh", "-c", _WRAPPER, "sh", *words]))
            if server.sudo and sudo_password:
                # Where sudo asks for none, the wrapper's cat takes it.
                process.say(f"{sudo_password}\n".encode())
        except (paramiko.SSHException, OSError, EOFError):
            raise _lost(server.name) from None
        yield process


def _lost(server: str) -> EsteiraError:
    return EsteiraError(f"The connection to server {server} was lost.")


class _Here:
    """A docker command on this machine."""

    def __init__(self, words: Sequence[str]) -> None:
        try:
            self._process = subprocess.Popen(
                ["docker", *words], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
            )
        except FileNotFoundError:
            raise EsteiraError("Docker is not installed on this machine.") from None

    def read(self, sink: Callable[[bool, bytes], None]) -> int:
        process = self._process
        assert process.stdout is not None
        assert process.stderr is not None
        streams = {process.stdout.fileno(): False, process.stderr.fileno(): True}
        while streams:
            for number in select.select(list(streams), [], [])[0]:
                if data := os.read(number, _CHUNK):
                    sink(streams[number], data)
                else:
                    del streams[number]
        return process.wait()

    def end(self) -> None:
        self._process.terminate()


class _There:
    """A docker command on a server, by SSH."""

    def __init__(self, client: paramiko.SSHClient, server: str) -> None:
        self._client, self._server = client, server
        transport = client.get_transport()
        assert transport is not None  # it is connected
        transport.set_keepalive(15)
        self._channel = transport.open_session()

    def start(self, text: str) -> None:
        """Begin; its input stays open, for as long as somebody is here."""
        self._channel.exec_command(text)

    def say(self, data: bytes) -> None:
        """Send to its input."""
        self._channel.sendall(data)

    def read(self, sink: Callable[[bool, bytes], None]) -> int:
        def errors() -> None:
            with suppress(OSError):
                while data := self._channel.recv_stderr(_CHUNK):
                    sink(True, data)

        reader = threading.Thread(target=errors, daemon=True)
        reader.start()
        while data := self._channel.recv(_CHUNK):
            sink(False, data)
        reader.join()
        status = self._channel.recv_exit_status()
        if status < 0:
            raise _lost(self._server)
        return status

    def end(self) -> None:
        self._client.close()


def _with_terminal(settings: Settings, words: Sequence[str]) -> int:
    """Run a command on the one server with this terminal, key by key; return its exit status."""
    [server] = settings.servers
    if server.local:
        with _interrupts_left_to_it():
            return subprocess.call(words)
    with ssh_client(settings, server) as client, ExitStack() as stack:
        transport = client.get_transport()
        assert transport is not None  # it is connected
        size = shutil.get_terminal_size()
        try:
            channel = transport.open_session()
            channel.get_pty(os.environ.get("TERM", "xterm"), size.columns, size.lines)
            # A sudo that asks, asks on this terminal.
            channel.exec_command(shlex.join([*(["sudo"] if server.sudo else []), *words]))
        except (paramiko.SSHException, OSError, EOFError):
            raise _lost(server.name) from None
        keyboard = sys.stdin.fileno()
        before = termios.tcgetattr(keyboard)
        stack.callback(termios.tcsetattr, keyboard, termios.TCSADRAIN, before)
        terminals.setraw(keyboard)

        def resized(*_: object) -> None:
            now = shutil.get_terminal_size()
            channel.resize_pty(now.columns, now.lines)

        stack.callback(signal.signal, signal.SIGWINCH, signal.signal(signal.SIGWINCH, resized))
        _shuttle(channel, keyboard)
        return max(channel.recv_exit_status(), 0)


def _shuttle(channel: paramiko.Channel, keyboard: int) -> None:
    """Carry keys there and text here until the command ends."""
    watched: list[paramiko.Channel | int] = [channel, keyboard]
    while True:
        ready = select.select(watched, [], [])[0]
        if channel in ready:
            data = channel.recv(_CHUNK)
            if not data:
                return
            os.write(sys.stdout.fileno(), data)
        if keyboard in ready:
            keys = os.read(keyboard, 1024)
            if keys:
                channel.sendall(keys)
            else:
                watched.remove(keyboard)


@contextmanager
def _interrupts_left_to_it() -> Iterator[None]:
    """Leave Ctrl-C to the program that has the terminal."""
    before = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
