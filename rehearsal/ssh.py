"""One command over SSH, as pulumi-command does it: pinned host key, password or key, jump host, few dials."""

from __future__ import annotations

import base64
import contextlib
import io
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import paramiko

from rehearsal.errors import RehearsalError
from rehearsal.processes import Finished, Transcript

# Its warnings would go to stderr and come before our own sentence about the same thing.
logging.getLogger("paramiko").setLevel(logging.CRITICAL + 1)

_KEY_KINDS: tuple[type[paramiko.PKey], ...] = (paramiko.Ed25519Key, paramiko.ECDSAKey, paramiko.RSAKey)
_WIRE_KINDS: Mapping[str, tuple[str, ...]] = {"ssh-rsa": ("rsa-sha2-512", "rsa-sha2-256", "ssh-rsa")}
"""A key's type -> the signature types that a server may offer it under, where they differ."""


@dataclass(frozen=True)
class Connection:
    """The ``connection`` input, with the plugin's defaults. Never shown: it holds secrets."""

    host: str
    user: str = "root"
    port: int = 22
    password: str | None = None
    private_key: str | None = None
    private_key_password: str | None = None
    host_key: str | None = None
    agent_socket: str | None = None
    dial_error_limit: int = 10
    per_dial_timeout: float = 15.0
    proxy: Connection | None = None

    @classmethod
    def from_inputs(cls, inputs: Mapping[str, Any]) -> Connection:
        """Read the provider's spelling; numbers come as floats."""
        proxy = inputs.get("proxy")
        return cls(
            host=inputs["host"],
            user=inputs.get("user") or "root",
            port=int(inputs.get("port") or 22),
            password=inputs.get("password"),
            private_key=inputs.get("privateKey"),
            private_key_password=inputs.get("privateKeyPassword"),
            host_key=inputs.get("hostKey"),
            agent_socket=inputs.get("agentSocketPath") or os.environ.get("SSH_AUTH_SOCK"),
            dial_error_limit=int(inputs["dialErrorLimit"])
            if inputs.get("dialErrorLimit") is not None
            else 10,
            per_dial_timeout=float(inputs["perDialTimeout"])
            if inputs.get("perDialTimeout") is not None
            else 15.0,
            proxy=cls.from_inputs(proxy) if proxy else None,
        )

    def __repr__(self) -> str:
        return f"Connection({self.place})"

    @property
    def place(self) -> str:
        """User, host and port, for a sentence."""
        return f"{self.user}@{self.host} port {self.port}"


class _DialError(Exception):
    """A dial that failed in a way that another attempt may mend."""


def run(
    connection: Connection,
    command: str,
    *,
    name: str,
    environment: Mapping[str, str],
    stdin: str | None,
    on_stdout: Callable[[str], None],
    on_stderr: Callable[[str], None],
) -> Finished:
    """Run ``command``; :class:`RehearsalError` if the server cannot be reached, trusted or logged in to."""
    with contextlib.ExitStack() as stack:
        transport = _dial(connection, stack)
        channel = transport.open_session(timeout=30)
        for key, value in environment.items():
            channel.set_environment_variable(key, value)
        channel.exec_command(command)
        transcript = Transcript(on_stdout, on_stderr)

        def read(receive: Callable[[int], bytes], stream: str) -> None:
            while data := receive(65536):
                transcript.add(stream, data)
            transcript.add(stream, b"")

        def write() -> None:
            # A server that ends without reading is judged by its exit status.
            with contextlib.suppress(OSError):
                if stdin:
                    channel.sendall(stdin.encode())
                channel.shutdown_write()

        threads = [
            threading.Thread(target=write, daemon=True),
            threading.Thread(target=read, args=(channel.recv_stderr, "stderr"), daemon=True),
        ]
        for thread in threads:
            thread.start()
        read(channel.recv, "stdout")
        threads[1].join()
        status = channel.recv_exit_status()
    if status < 0:
        tail = transcript.tail
        raise RehearsalError(
            f"{name}: the connection to {connection.place} was lost before the command ended."
            + (f"\n{tail}" if tail else "")
        )
    return Finished(status, transcript.text("stdout"), transcript.text("stderr"), transcript.tail)


def _dial(connection: Connection, stack: contextlib.ExitStack) -> paramiko.Transport:
    """Connect and log in, by the jump host if there is one; as the plugin, once more than the limit says."""
    jump = _dial(connection.proxy, stack) if connection.proxy else None
    attempt = 0
    while True:
        attempt += 1
        try:
            transport = _dial_once(connection, jump)
        except _DialError as error:
            if connection.dial_error_limit >= 0 and attempt > connection.dial_error_limit:
                times = "" if attempt == 1 else f" (tried {attempt} times)"
                raise RehearsalError(f"{error}{times}") from None
            time.sleep(min(0.1 * 1.5**attempt, 10))
            continue
        stack.callback(transport.close)
        return transport


def _dial_once(connection: Connection, jump: paramiko.Transport | None) -> paramiko.Transport:
    limit = connection.per_dial_timeout or None
    key = _private_key(connection)
    pinned = _host_key(connection)
    try:
        if jump is None:
            direct = socket.create_connection((connection.host, connection.port), limit)
            # A server that is switched off in the middle answers nothing any more: what is sent to keep the connection
            # alive is then waited for so many milliseconds, not for a quarter of an hour.
            if hasattr(socket, "TCP_USER_TIMEOUT"):
                direct.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 30000)
            sock: socket.socket | paramiko.Channel = direct
        else:
            sock = jump.open_channel(
                "direct-tcpip", (connection.host, connection.port), ("127.0.0.1", 0), timeout=limit
            )
    except (OSError, paramiko.SSHException) as error:
        way = " through the jump host" if jump is not None else ""
        raise _DialError(
            f"{connection.host} port {connection.port} cannot be reached{way}: {error}. "
            "Check host and port of this server, and that it is running."
        ) from None
    transport = paramiko.Transport(sock)
    try:
        transport.banner_timeout = transport.auth_timeout = limit or 3600
        if pinned is not None:
            transport.get_security_options().key_types = _WIRE_KINDS.get(pinned[0], (pinned[0],))
        try:
            transport.start_client(timeout=limit)
        except paramiko.ssh_exception.IncompatiblePeer:
            raise RehearsalError(_wrong_key(connection, "offers no key of the pinned type")) from None
        except (paramiko.SSHException, EOFError, OSError) as error:
            raise _DialError(
                f"{connection.host} port {connection.port} does not answer as an SSH server: {error}."
            ) from None
        if pinned is not None and transport.get_remote_server_key().asbytes() != pinned[1]:
            raise RehearsalError(_wrong_key(connection, "shows another host key than the pinned one"))  # noqa: TRY301
        _log_in(transport, connection, key)
        transport.set_keepalive(15)
    except BaseException:
        transport.close()
        raise
    return transport


def _log_in(transport: paramiko.Transport, connection: Connection, key: paramiko.PKey | None) -> None:
    """By key, then password, then agent: the plugin's order."""
    refused = False
    try:
        if key is not None:
            with contextlib.suppress(paramiko.AuthenticationException):
                transport.auth_publickey(connection.user, key)
            if transport.is_authenticated():
                return
            refused = True
        if connection.password is not None:
            # Falls back to keyboard-interactive by itself where the server has no plain passwords.
            with contextlib.suppress(paramiko.AuthenticationException):
                transport.auth_password(connection.user, connection.password)
            if transport.is_authenticated():
                return
            refused = True
        if connection.agent_socket is not None and key is None and connection.password is None:
            for agent_key in paramiko.Agent().get_keys():
                with contextlib.suppress(paramiko.AuthenticationException):
                    transport.auth_publickey(connection.user, agent_key)
                if transport.is_authenticated():
                    return
                refused = True
    except (paramiko.SSHException, EOFError, OSError) as error:
        raise _DialError(
            f"{connection.place} broke the login off: {error or type(error).__name__}."
        ) from None
    if not refused:
        raise RehearsalError(f"There is neither a password nor a private key for {connection.place}.")
    tried = " and ".join(
        word for word, used in (("private key", key), ("password", connection.password)) if used is not None
    )
    raise _DialError(
        f"{connection.place} refused the login. Check user and {tried or 'the keys in your SSH agent'}."
    )


def _private_key(connection: Connection) -> paramiko.PKey | None:
    if connection.private_key is None:
        return None
    for kind in _KEY_KINDS:
        with contextlib.suppress(paramiko.SSHException, ValueError):
            return kind.from_private_key(io.StringIO(connection.private_key), connection.private_key_password)
    raise RehearsalError(
        f"The private key for {connection.place} cannot be read: write an unencrypted OpenSSH or PEM key."
    )


def _host_key(connection: Connection) -> tuple[str, bytes] | None:
    """Type and bytes of the pinned key, from its authorized_keys line."""
    if connection.host_key is None:
        return None
    try:
        kind, data = connection.host_key.split()[:2]
        return kind, base64.b64decode(data, validate=True)
    except ValueError:
        raise RehearsalError(
            f"The host key of {connection.host} cannot be read. Write it as `ssh-ed25519 AAAA…`."
        ) from None


def _wrong_key(connection: Connection, what: str) -> str:
    return (
        f"{connection.host} port {connection.port} {what}; nothing was sent to it. If the server was set up "
        "anew, read its key on the server itself (/etc/ssh/ssh_host_*_key.pub) and set it as hostKey; else "
        "somebody else answers there."
    )
