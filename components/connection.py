"""SSH connections to servers: for the reading (paramiko) and for the deployment's commands (pulumi-command).

Both pin the server's host key, offer nothing but the declared credential and try once: a wrong password that is tried
again and again locks its owner out (fail2ban). So of many servers behind one jump host the first logs in there alone.
"""

from __future__ import annotations

import base64
import hashlib
import io
import math
import socket
import subprocess
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from threading import Lock
from typing import TYPE_CHECKING, Any

import pulumi

from .errors import EsteiraError
from .ssh_library import paramiko

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import pulumi_command as command
    from pydantic import SecretStr

    from .settings import JumpHostSettings, ServerSettings, Settings


@dataclass(frozen=True)
class _Credential:
    """A password or key, and the setting that holds it."""

    secret: SecretStr | None = field(repr=False)
    key: str

    @property
    def text(self) -> str | None:
        return self.secret.get_secret_value() if self.secret else None


class _RefusedError(EsteiraError):
    """A login was refused."""


@dataclass
class _FirstLogin:
    """The first login of this program at a jump host: the others wait for it, and do not try where it was refused."""

    lock: Lock = field(default_factory=Lock)
    over: bool = False
    refused: bool = False


_first_logins: dict[tuple[object, ...], _FirstLogin] = {}


def connection_args(settings: Settings, server: ServerSettings) -> command.remote.ConnectionArgs:
    """Return the connection of a server's commands; password and private key are secrets."""
    import pulumi_command as command  # noqa: PLC0415 - a reading begins without it

    jump = server.jump_host
    return command.remote.ConnectionArgs(
        **_common(settings, server),
        password=_secret(settings.login(server)[0]),
        private_key=_secret(settings.login(server)[1]),
        proxy=command.remote.ProxyConnectionArgs(
            **_common(settings, jump),
            password=_secret(settings.jump_login(server)[0]),
            private_key=_secret(settings.jump_login(server)[1]),
        )
        if jump
        else None,
    )


@contextmanager
def ssh_client(settings: Settings, server: ServerSettings) -> Iterator[paramiko.SSHClient]:
    """Connect to a server, by its jump host if it has one.

    Raises EsteiraError, with the setting at fault, for a host that does not answer, a host key other than the pinned
    one (before any credential is sent) and a refused credential.
    """
    with ExitStack() as stack:
        sock = None
        if server.jump_host:
            jump = _connect_to_jump_host(settings, server, server.jump_host)
            stack.callback(jump.close)
            transport = jump.get_transport()
            assert transport is not None  # connected above
            try:
                sock = transport.open_channel(
                    "direct-tcpip",
                    (server.host or "", server.port),
                    ("", 0),
                    timeout=settings.connect_timeout,
                )
            except (paramiko.SSHException, OSError, EOFError) as error:
                raise EsteiraError(
                    f"The jump host {server.jump_host.host} does not reach server {server.name} "
                    f"({server.host}:{server.port}): {_network_reason(error)}. Check esteira:servers host "
                    "and port, and that the jump host allows TCP forwarding."
                ) from None
        client = _connect(
            settings,
            server,
            f"server {server.name}",
            _Credential(settings.login(server)[0], "serverPassword"),
            _Credential(settings.login(server)[1], "serverPrivateKey"),
            sock=sock,
        )
        stack.callback(client.close)
        yield client


def run_on(
    settings: Settings,
    server: ServerSettings,
    text: str,
    stdin: str,
    *,
    timeout: float,
    slow: str = "has not ended it within {timeout:g} s.",
    asked: Callable[[], object] | None = None,
) -> tuple[int, str, str]:
    """Run a command on a server, as the deployment's commands are run: (exit status, stdout, stderr).

    Raises EsteiraError where the server cannot be reached, or has not ended it within ``timeout`` seconds; ``slow`` is
    how that sentence goes on behind the server's name. ``asked`` is called when nothing is left to do but to wait.
    """
    too_slow = EsteiraError(f"Server {server.name} {slow.format(timeout=timeout)}")
    if server.local:
        try:
            if asked:
                asked()
            done = subprocess.run(
                ["/bin/sh", "-c", text],
                input=stdin,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=timeout,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise too_slow from None
        return done.returncode, done.stdout, done.stderr
    with ssh_client(settings, server) as client:
        try:
            to, said, failed = client.exec_command(text, timeout=timeout)
            to.write(stdin)
            to.channel.shutdown_write()
            if asked:
                asked()
            out, err = said.read().decode(errors="replace"), failed.read().decode(errors="replace")
            return said.channel.recv_exit_status(), out, err
        except TimeoutError:
            raise too_slow from None
        except (paramiko.SSHException, OSError, EOFError) as error:
            raise EsteiraError(
                f"The connection to server {server.name} ({server.host}) was lost: {_network_reason(error)}."
            ) from None


def parse_private_key(text: str) -> paramiko.PKey:
    """Return the key in OpenSSH or PEM text. Raises ValueError, without the text, for anything else."""
    file = text.strip() + "\n"
    for kind in (paramiko.Ed25519Key, paramiko.ECDSAKey, paramiko.RSAKey):
        with suppress(paramiko.SSHException, ValueError, IndexError, UnicodeError):
            return kind.from_private_key(io.StringIO(file))
    raise ValueError("not a private key in OpenSSH or PEM form without a passphrase")


def _common(settings: Settings, host: ServerSettings | JumpHostSettings) -> dict[str, Any]:
    return {
        "host": host.host or "",
        "port": host.port,
        "user": host.user,
        "host_key": host.host_key,
        # The reading has connected a moment before; one attempt is enough, and a refused password is not repeated.
        "dial_error_limit": 0,
        "per_dial_timeout": math.ceil(settings.connect_timeout),
    }


def _secret(value: SecretStr | None) -> pulumi.Output[str] | None:
    return None if value is None else pulumi.Output.secret(value.get_secret_value())


def _connect_to_jump_host(
    settings: Settings, server: ServerSettings, jump: JumpHostSettings
) -> paramiko.SSHClient:
    password, private_key = settings.jump_login(server)

    def connect() -> paramiko.SSHClient:
        return _connect(
            settings,
            jump,
            f"jump host of server {server.name}",
            _Credential(password, "jumpPassword"),
            _Credential(private_key, "jumpPrivateKey"),
        )

    first = _first_logins.setdefault((jump.host, jump.port, jump.user, password, private_key), _FirstLogin())
    with first.lock:
        if first.refused:
            raise EsteiraError(
                f"Server {server.name} was not tried: its jump host ({jump.host}:{jump.port}) has refused this login "
                "already."
            )
        if not first.over:
            try:
                return connect()
            except _RefusedError:
                first.refused = True
                raise
            finally:
                # One that got no answer too: waiting for it again, one after the other, would take for ever.
                first.over = True
    return connect()


def _connect(
    settings: Settings,
    host: ServerSettings | JumpHostSettings,
    title: str,
    password: _Credential,
    private_key: _Credential,
    *,
    sock: Any = None,
) -> paramiko.SSHClient:
    address = f"{host.host}:{host.port}"
    client = paramiko.SSHClient()
    client.set_missing_host_key_policy(paramiko.RejectPolicy())
    name = host.host or ""
    key_type, key_data = (host.host_key or "").split()[:2]
    client.get_host_keys().add(
        name if host.port == paramiko.config.SSH_PORT else f"[{host.host}]:{host.port}",
        key_type,
        paramiko.PKey.from_type_string(key_type, base64.b64decode(key_data)),
    )
    timeout = settings.connect_timeout
    try:
        sock = sock or connect_promptly(name, host.port, timeout)
        client.connect(
            name,
            port=host.port,
            username=host.user,
            password=password.text if not private_key.text else None,
            pkey=parse_private_key(private_key.text) if private_key.text else None,
            sock=sock,
            timeout=timeout,
            banner_timeout=timeout,
            auth_timeout=timeout,
            channel_timeout=timeout,
            allow_agent=False,
            look_for_keys=False,
        )
    except paramiko.BadHostKeyException as error:
        client.close()
        raise EsteiraError(
            f"The {title} ({address}) shows another host key than the pinned one; nothing was sent to it. It shows "
            f"{_key_fingerprint(error.key)}. If the server was set up anew, compare that with what it says of itself "
            f"(ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub, typed there) and write its key as hostKey; if "
            "not, somebody else may be answering."
        ) from None
    except paramiko.AuthenticationException:
        client.close()
        name, noun = (private_key.key, "private key") if private_key.text else (password.key, "password")
        raise _RefusedError(
            f"The {title} ({address}) refuses the {noun} of user {host.user}. Set it: "
            f"pulumi config set --secret esteira:{name}; or correct the user. It was tried once."
        ) from None
    except (paramiko.SSHException, OSError, EOFError) as error:
        client.close()
        raise EsteiraError(
            f"The {title} ({address}) does not answer: {_network_reason(error)} (waited at most {timeout:g} s). "
            "Check that it is on, that host and port in esteira:servers are right, and that no firewall is between."
        ) from None
    return client


class _PromptSocket(socket.socket):
    """Acknowledges what it receives at once."""

    def recv(self, size: int, flags: int = 0) -> bytes:
        received = super().recv(size, flags)
        # Linux only, which goes back to delayed acknowledgements by itself.
        if hasattr(socket, "TCP_QUICKACK"):
            with suppress(OSError):
                self.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
        return received


def connect_promptly(host: str, port: int, timeout: float) -> socket.socket:
    """Connect to the first of a host's addresses that answers, by a socket whose small packets wait for nothing.

    An SSH client and sshd send many of them, one behind the other. By themselves, each is kept back until the other
    side has acknowledged the one before (Nagle's algorithm, which sshd leaves on for commands without a terminal), and
    that side puts its acknowledgement off by 40 ms: a connection and a short command took three times as long.

    Raises OSError where no address answers within ``timeout`` seconds: what the last one of them failed with.
    """
    failure = OSError(f"{host} has no address")
    for family, kind, protocol, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        made = _PromptSocket(family, kind, protocol)
        try:
            made.settimeout(timeout)
            made.connect(address)
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError as error:
            made.close()
            failure = error
        else:
            return made
    raise failure


def _network_reason(error: BaseException) -> str:
    if isinstance(error, (TimeoutError, socket.timeout)):
        return "no answer in time"
    if isinstance(error, socket.gaierror):
        return "its name cannot be resolved"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return str(error) or type(error).__name__


def _key_fingerprint(key: paramiko.PKey) -> str:
    digest = base64.b64encode(hashlib.sha256(key.asbytes()).digest()).decode().rstrip("=")
    return f"{key.get_name()} SHA256:{digest}"
