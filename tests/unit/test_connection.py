"""Connections to servers: pinned, one credential, tried once; each failure a sentence about the setting at fault."""

from __future__ import annotations

import base64
import hashlib
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import paramiko
import pulumi
import pytest

from components import connection
from components.connection import connection_args, parse_private_key, ssh_client
from components.errors import EsteiraError
from components.settings import ServerSettings, Settings
from tests.unit.declared import declare
from tests.unit.wrong_settings import ABSENT, HOST_KEY, changed, load, pkcs8_key, private_key, rsa_key

NO_JUMP = (("servers/0/jumpHost", ABSENT), ("jumpPassword", ABSENT), ("jumpPrivateKey", ABSENT))
NO_KEY = (("serverPrivateKey", ABSENT),)
CONNECT = connection.connect_promptly
OTHER_KEY = paramiko.PKey.from_type_string("ssh-ed25519", base64.b64decode(HOST_KEY.split()[1]))


def settings(*changes: tuple[str, object]) -> Settings:
    return load(changed(*changes))


def connection_of(made: Settings) -> dict[str, Any]:
    """Return the connection of the first server as a resource would get it, secrets marked as Pulumi marks them."""

    def program() -> None:
        import pulumi_command

        pulumi_command.remote.Command("x", connection=connection_args(made, made.servers[0]), create="true")

    _, declared = declare(program)
    found = declared["Command x"]
    assert found.is_secret("connection"), "the whole of it"
    plain: dict[str, Any] = found.plain("connection")
    return plain


class TestConnectionArgs:
    """What pulumi-command connects with. Unset, its host key means any, and its login is tried ten times."""

    def test_the_server(self) -> None:
        found = connection_of(settings(("servers/0/port", 2222), ("connectTimeout", "2.5s")))
        assert {key: found[key] for key in ("host", "port", "user", "hostKey", "perDialTimeout")} == {
            "host": "web.example.com",
            "port": 2222,
            "user": "deploy",
            "hostKey": HOST_KEY,
            "perDialTimeout": 3,
        }

    def test_it_is_tried_once(self) -> None:
        """The limit is 0: a refused password that is sent ten times locks its owner out (fail2ban)."""
        found = connection_of(settings())
        assert found["dialErrorLimit"] == 0
        assert found["proxy"]["dialErrorLimit"] == 0

    def test_the_jump_host_is_pinned_too(self) -> None:
        found = connection_of(settings(("servers/0/jumpHost/user", "jumper")))["proxy"]
        assert (found["host"], found["port"], found["user"]) == ("jump.example.com", 22, "jumper")
        assert found["hostKey"] == HOST_KEY
        assert found["privateKey"] == private_key(name="jump").strip() + "\n"

    def test_without_a_jump_host(self) -> None:
        assert "proxy" not in connection_of(settings(*NO_JUMP))

    def test_the_jump_host_s_login_is_the_server_s_where_it_has_none(self) -> None:
        found = connection_of(settings(("jumpPassword", ABSENT), ("jumpPrivateKey", ABSENT)))
        assert found["proxy"]["privateKey"] == found["privateKey"]

    def test_each_server_has_its_own_login(self) -> None:
        two = {"name": "two", "host": "two.example.com", "hostKey": HOST_KEY}
        made = settings(
            *NO_KEY, *NO_JUMP, ("servers/1", two), ("serverPassword", {"web": "MARKER-1", "two": "MARKER-2"})
        )
        logins = [made.login(server)[0] for server in made.servers]
        assert [login and login.get_secret_value() for login in logins] == ["MARKER-1", "MARKER-2"]

    def test_password_and_key_are_secrets_of_their_own(self) -> None:
        """Also where the connection is used outside a Command, that marks all of it."""
        made = settings()
        args = connection_args(made, made.servers[0])
        secrets = []

        def program() -> pulumi.Output[None]:
            for value in (args.password, args.private_key, args.proxy.password, args.proxy.private_key):  # type: ignore[union-attr]
                assert isinstance(value, pulumi.Output)
                secrets.append(value.is_secret())
            return pulumi.Output.from_input(None)

        declare(program)
        import asyncio

        async def gather() -> list[bool]:
            return [await secret for secret in secrets]

        assert asyncio.get_event_loop().run_until_complete(gather()) == [True] * 4


class FakeClient:
    """Stands in for paramiko.SSHClient: notes what it is told, and fails as it is told to."""

    failures: dict[str, BaseException]
    made: list[FakeClient]

    def __init__(self) -> None:
        self.options: dict[str, Any] = {}
        self.host, self.closed = "", False
        self.keys = paramiko.HostKeys()
        self.policy: object = None
        self.asked: tuple[Any, ...] = ()
        self.made.append(self)

    def set_missing_host_key_policy(self, policy: object) -> None:
        self.policy = policy

    def get_host_keys(self) -> paramiko.HostKeys:
        return self.keys

    def connect(self, host: str, **options: Any) -> None:
        self.host, self.options = host, options
        if failure := self.failures.get(host):
            raise failure

    def get_transport(self) -> FakeClient:
        return self

    def open_channel(self, *asked: Any, timeout: float) -> str:
        self.asked = asked
        if failure := self.failures.get("channel"):
            raise failure
        return "the channel"

    def close(self) -> None:
        self.closed = True


@pytest.fixture(autouse=True)
def _clients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeClient, "failures", {}, raising=False)
    monkeypatch.setattr(FakeClient, "made", [], raising=False)
    monkeypatch.setattr(connection, "_first_logins", {})
    monkeypatch.setattr(paramiko, "SSHClient", FakeClient)
    monkeypatch.setattr(connection, "connect_promptly", lambda host, port, timeout: (host, port, timeout))


def connect(made: Settings) -> FakeClient:
    with ssh_client(made, made.servers[0]) as client:
        fake = cast("FakeClient", client)
        assert not fake.closed
        return fake


def refused(made: Settings, failure: BaseException, host: str = "web.example.com") -> str:
    FakeClient.failures = {host: failure}
    with pytest.raises(EsteiraError) as caught:
        connect(made)
    message = str(caught.value)
    assert "MARKER" not in message
    assert "PRIVATE KEY" not in message
    return message


class TestSshClient:
    """The reading's own connection obeys the same rules."""

    def test_only_the_pinned_key_is_taken(self) -> None:
        client = connect(settings(*NO_JUMP))
        assert isinstance(client.policy, paramiko.RejectPolicy)
        known = client.keys.lookup("web.example.com")
        assert known is not None
        assert [f"{kind} {key.get_base64()}" for kind, key in known.items()] == [HOST_KEY]

    def test_another_port_is_another_host(self) -> None:
        client = connect(settings(*NO_JUMP, ("servers/0/port", 2222)))
        assert client.keys.lookup("[web.example.com]:2222") is not None

    def test_nothing_is_offered_but_the_declared_credential(self) -> None:
        """An agent's keys, or those in ~/.ssh, would be tried first and counted as failures."""
        client = connect(settings(*NO_JUMP))
        assert (client.options["allow_agent"], client.options["look_for_keys"]) == (False, False)
        assert client.options["pkey"] is not None
        assert client.options["password"] is None, "a key is declared, so the password is not tried behind it"

    def test_a_password(self) -> None:
        client = connect(settings(*NO_JUMP, *NO_KEY))
        assert (client.options["password"], client.options["pkey"]) == ("MARKER-server", None)

    def test_every_wait_has_an_end(self) -> None:
        client = connect(settings(*NO_JUMP, ("connectTimeout", 7)))
        waits = ("timeout", "banner_timeout", "auth_timeout", "channel_timeout")
        assert {client.options[wait] for wait in waits} == {7}

    def test_where_it_connects_to(self) -> None:
        client = connect(settings(*NO_JUMP, ("servers/0/port", 2222), ("connectTimeout", 7)))
        assert client.options["sock"] == ("web.example.com", 2222, 7)

    def test_through_the_jump_host(self) -> None:
        client = connect(settings())
        jump, server = FakeClient.made
        assert (jump.host, server.host) == ("jump.example.com", "web.example.com")
        assert jump.asked == ("direct-tcpip", ("web.example.com", 22), ("", 0))
        assert client.options["sock"] == "the channel"

    def test_all_connections_are_closed(self) -> None:
        connect(settings())
        assert [client.closed for client in FakeClient.made] == [True, True]

    def test_after_a_failure_too(self) -> None:
        refused(settings(), paramiko.SSHException("no"))
        assert [client.closed for client in FakeClient.made] == [True, True]


class TestJumpHost:
    """A wrong password that is tried once for each server behind it, all at once, locks everybody out."""

    SERVERS = tuple(
        (f"servers/{number}", {"name": f"web-{number}", "host": f"192.0.2.{number}", "hostKey": HOST_KEY})
        for number in range(1, 6)
    )
    JUMP = {"host": "jump.example.com", "hostKey": HOST_KEY}  # noqa: RUF012

    def everywhere(self, made: Settings) -> list[str]:
        """Connect to all servers at once, and return what each of them says."""

        def one(server: ServerSettings) -> str:
            try:
                with ssh_client(made, server):
                    return "connected"
            except EsteiraError as error:
                return str(error)

        with ThreadPoolExecutor(max_workers=8) as pool:
            return list(pool.map(one, made.servers))

    def fleet(self) -> Settings:
        return settings(
            *((path, {**server, "jumpHost": self.JUMP}) for path, server in self.SERVERS),
            ("serverPrivateKey", ABSENT),
            ("jumpPrivateKey", ABSENT),
        )

    def logins(self) -> int:
        return sum(client.host == "jump.example.com" for client in FakeClient.made)

    def test_a_refused_login_is_tried_once(self) -> None:
        FakeClient.failures = {"jump.example.com": paramiko.AuthenticationException()}
        said = self.everywhere(self.fleet())
        assert self.logins() == 1
        assert sum("refuses the password of user" in one for one in said) == 1
        assert (
            sum("was not tried: its jump host (jump.example.com:22) has refused" in one for one in said) == 5
        )
        assert "MARKER" not in "".join(said)

    def test_after_the_first_all_go_at_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Each of the other five waits in its login until all of them are there."""
        together = threading.Barrier(5, timeout=20)
        connects = FakeClient.connect
        first = threading.Lock()

        def connect(self: FakeClient, host: str, **options: Any) -> None:
            if host == "jump.example.com" and not first.acquire(blocking=False):
                together.wait()
            connects(self, host, **options)

        monkeypatch.setattr(FakeClient, "connect", connect)
        assert self.everywhere(self.fleet()) == ["connected"] * 6
        assert self.logins() == 6

    def test_one_that_does_not_answer_is_not_waited_for_in_turn(self) -> None:
        FakeClient.failures = {"jump.example.com": TimeoutError()}
        said = self.everywhere(self.fleet())
        assert self.logins() == 6
        assert all("does not answer: no answer in time" in one for one in said)


class TestFailures:
    """fujin's rule: each SSH failure becomes a sentence that names the setting at fault."""

    def test_another_host_key(self) -> None:
        failure = paramiko.BadHostKeyException("web.example.com", OTHER_KEY, OTHER_KEY)
        message = refused(settings(*NO_JUMP), failure)
        digest = base64.b64encode(hashlib.sha256(OTHER_KEY.asbytes()).digest()).decode().rstrip("=")
        assert message.startswith(
            "The server web (web.example.com:22) shows another host key than the pinned one; nothing was sent to it. "
            f"It shows ssh-ed25519 SHA256:{digest}."
        )
        assert "write its key as hostKey" in message

    def test_a_refused_key(self) -> None:
        message = refused(settings(*NO_JUMP), paramiko.AuthenticationException())
        assert message == (
            "The server web (web.example.com:22) refuses the private key of user deploy. Set it: pulumi config set "
            "--secret esteira:serverPrivateKey; or correct the user. It was tried once."
        )

    def test_a_refused_password(self) -> None:
        message = refused(settings(*NO_JUMP, *NO_KEY), paramiko.AuthenticationException())
        assert (
            "refuses the password of user deploy. Set it: pulumi config set --secret esteira:serverPassword"
            in (message)
        )

    def test_the_jump_host_refuses(self) -> None:
        message = refused(settings(), paramiko.AuthenticationException(), "jump.example.com")
        assert message.startswith("The jump host of server web (jump.example.com:22) refuses the private key")
        assert "esteira:jumpPrivateKey" in message

    def test_the_jump_host_does_not_reach_the_server(self) -> None:
        message = refused(settings(), paramiko.ChannelException(2, "Connect failed"), "channel")
        assert message.startswith(
            "The jump host jump.example.com does not reach server web (web.example.com:22)"
        )
        assert "TCP forwarding" in message

    @pytest.mark.parametrize(
        "failure",
        [EOFError(), OSError("Socket is closed"), ConnectionResetError(104, "Connection reset by peer")],
    )
    def test_a_jump_host_that_hangs_up(self, failure: BaseException) -> None:
        """A traceback would take the sentences of all other servers with it."""
        message = refused(settings(), failure, "channel")
        assert message.startswith("The jump host jump.example.com does not reach server web")

    @pytest.mark.parametrize(
        ("failure", "reason"),
        [
            (TimeoutError(), "no answer in time"),
            (socket.gaierror(-2, "Name or service not known"), "its name cannot be resolved"),
            (ConnectionRefusedError(111, "Connection refused"), "connection refused"),
            (OSError(113, "No route to host"), "no route to host"),
            (paramiko.SSHException("Error reading SSH protocol banner"), "Error reading SSH protocol banner"),
            (EOFError(), "EOFError"),
        ],
    )
    def test_no_answer(self, failure: BaseException, reason: str) -> None:
        message = refused(settings(*NO_JUMP), failure)
        assert message.startswith(
            f"The server web (web.example.com:22) does not answer: {reason} (waited at most 20 s)."
        )
        assert "host and port in esteira:servers" in message


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """Give a port of this machine that answers."""
    with socket.create_server(("127.0.0.1", 0)) as made:
        yield made


def test_paramiko_is_loaded_without_what_is_not_used() -> None:
    """Nobody else is kept from it: it can be loaded afterwards."""
    program = (
        "import sys, components.connection as c; assert c.paramiko.SSHClient; assert 'invoke' not in sys.modules\n"
        "import invoke; assert invoke.run"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(connection.__file__).parents[1])


class TestPromptSocket:
    """A name has several addresses, and not all of them need answer; small packets do not wait for each other."""

    def addresses(self, monkeypatch: pytest.MonkeyPatch, *found: tuple[str, int]) -> None:
        answer = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", address) for address in found]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: answer)

    def test_the_first_that_answers(self, monkeypatch: pytest.MonkeyPatch, listener: socket.socket) -> None:
        port = listener.getsockname()[1]
        self.addresses(monkeypatch, ("127.0.0.2", 1), ("127.0.0.1", port), ("127.0.0.3", 1))
        with CONNECT("web.example.com", port, 5) as made:
            assert made.getpeername() == ("127.0.0.1", port)

    def test_none_answers(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.addresses(monkeypatch, ("127.0.0.2", 1), ("127.0.0.3", 1))
        with pytest.raises(ConnectionRefusedError):
            CONNECT("web.example.com", 1, 5)

    def test_nothing_is_kept_back(self, listener: socket.socket) -> None:
        with CONNECT("127.0.0.1", listener.getsockname()[1], 5) as made:
            assert made.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert made.gettimeout() == 5
            accepted, _ = listener.accept()
            with accepted:
                accepted.sendall(b"SSH-2.0-")
                assert made.recv(100) == b"SSH-2.0-"


class TestPrivateKey:
    """Keys as ssh-keygen writes them, today and long ago."""

    @pytest.mark.parametrize("text", [private_key(), rsa_key(), "\n\n" + private_key() + "\n"])
    def test_it_is_read(self, text: str) -> None:
        assert parse_private_key(text).can_sign()

    @pytest.mark.parametrize("text", ["", "MARKER", private_key("passphrase"), private_key()[:100]])
    def test_anything_else_is_refused_without_its_text(self, text: str) -> None:
        with pytest.raises(ValueError, match="not a private key") as caught:
            parse_private_key(text)
        assert "MARKER" not in str(caught.value)

    def test_pkcs8(self) -> None:
        with pytest.raises(ValueError, match="not a private key"):
            connection.parse_private_key(pkcs8_key("passphrase"))
