"""Manifests are read and copied byte by byte, and each failure is a sentence without the password."""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from components import registry as module
from components.registry import (
    Copied,
    ImageNotFoundError,
    Registry,
    RegistryError,
    RegistryUnavailableError,
    from_settings,
    is_loopback,
)
from tests.unit.fake_registry import OCI_INDEX, PASSWORD, USER, FakeRegistry
from tests.unit.image_settings import make_settings

ABSENT = "sha256:" + "0" * 64


@pytest.fixture(params=["basic", "token"])
def fake(request: pytest.FixtureRequest) -> Iterator[FakeRegistry]:
    with FakeRegistry(tokens=request.param == "token") as running:
        yield running


@pytest.fixture
def basic() -> Iterator[FakeRegistry]:
    with FakeRegistry() as running:
        yield running


def client(fake: FakeRegistry, password: str | None = PASSWORD, user: str | None = USER) -> Registry:
    return Registry(fake.server, "g/p", user, password, plain_http=True)


def failure(registry: Registry, kind: type[RegistryError] = RegistryError) -> str:
    with pytest.raises(kind) as caught:
        registry.digest("latest")
    message = str(caught.value)
    assert PASSWORD not in message
    assert caught.value.__cause__ is None
    assert message.endswith(".")
    return message


class TestDigest:
    """A digest is that of the bytes which were pushed."""

    def test_of_a_tag(self, fake: FakeRegistry) -> None:
        digest = fake.add_image("latest")
        assert client(fake).digest("latest") == digest

    def test_of_a_digest(self, fake: FakeRegistry) -> None:
        digest = fake.add_image()
        assert client(fake).digest(digest) == digest

    def test_of_an_index_is_the_index_s_own(self, fake: FakeRegistry) -> None:
        one = fake.add_image()
        index = fake.add({"schemaVersion": 2, "manifests": [{"digest": one}]}, OCI_INDEX, "latest")
        assert client(fake).digest("latest") == index

    def test_of_nothing(self, fake: FakeRegistry) -> None:
        assert client(fake).digest("latest") is None

    def test_content_that_was_changed_on_the_way_is_refused(self, basic: FakeRegistry) -> None:
        basic.add_image("latest")
        basic.break_content = True
        assert "changes what it sends" in failure(client(basic))


class TestCopyTag:
    """A manifest is put as it is, under another tag, and nothing else travels."""

    def test_the_bytes_are_the_same(self, fake: FakeRegistry) -> None:
        digest = fake.add_image()
        before = fake.manifests[digest]
        assert client(fake).copy_tag(digest, "latest") == Copied(digest, None)
        assert fake.tags == {"latest": digest}
        assert fake.manifests == {digest: before}
        assert all("blobs" not in path for _, path in fake.requests)

    def test_an_index_stays_an_index(self, fake: FakeRegistry) -> None:
        index = fake.add({"schemaVersion": 2, "manifests": []}, OCI_INDEX)
        client(fake).copy_tag(index, "latest")
        assert fake.manifests[fake.tags["latest"]][0] == OCI_INDEX

    def test_moving_it_tells_where_it_was(self, fake: FakeRegistry) -> None:
        old, new = fake.add_image("latest"), fake.add_image(mark="two")
        copied = client(fake).copy_tag(new, "latest")
        assert (copied, copied.changed) == (Copied(new, old), True)

    def test_a_second_time_nothing_is_written(self, fake: FakeRegistry) -> None:
        digest = fake.add_image("latest")
        copied = client(fake).copy_tag(digest, "latest")
        assert (copied, copied.changed) == (Copied(digest, digest), False)
        assert fake.writes == []

    def test_without_overwrite_a_tag_stays(self, fake: FakeRegistry) -> None:
        old, new = fake.add_image("latest"), fake.add_image(mark="two")
        assert client(fake).copy_tag(new, "latest", overwrite=False) == Copied(old, old)
        assert fake.writes == []

    def test_without_overwrite_a_new_tag_is_written(self, fake: FakeRegistry) -> None:
        digest = fake.add_image()
        assert client(fake).copy_tag(digest, "latest", overwrite=False).changed

    def test_a_digest_that_is_not_there(self, fake: FakeRegistry) -> None:
        with pytest.raises(ImageNotFoundError, match="was removed from the registry"):
            client(fake).copy_tag(ABSENT, "latest")
        assert fake.writes == []

    def test_a_registry_that_rewrites_manifests(self, basic: FakeRegistry) -> None:
        digest = basic.add_image()
        basic.put_digest = ABSENT
        with pytest.raises(RegistryError, match="rewrites manifests"):
            client(basic).copy_tag(digest, "latest")

    def test_a_token_that_may_only_read(self) -> None:
        with FakeRegistry(tokens=True) as fake:
            fake.rights = {"pull"}
            digest = fake.add_image()
            with pytest.raises(RegistryError, match="may not do this in") as caught:
                client(fake).copy_tag(digest, "latest")
            assert "write_registry" in str(caught.value)
            assert fake.tags == {}


class TestPlatforms:
    """What an image can run on comes from its configuration, or from its index."""

    @pytest.mark.parametrize("platform", ["linux/amd64", "linux/arm64/v8"])
    def test_of_an_image(self, fake: FakeRegistry, platform: str) -> None:
        fake.add_image("latest", platform)
        assert client(fake).platforms("latest") == {platform}

    def test_of_an_index_without_attestations(self, fake: FakeRegistry) -> None:
        entries = [{"os": "linux", "architecture": name} for name in ("amd64", "arm64")]
        entries.append({"os": "unknown", "architecture": "unknown"})
        body = {"schemaVersion": 2, "manifests": [{"digest": ABSENT, "platform": entry} for entry in entries]}
        fake.add(body, OCI_INDEX, "latest")
        assert client(fake).platforms("latest") == {"linux/amd64", "linux/arm64"}

    def test_of_nothing(self, fake: FakeRegistry) -> None:
        with pytest.raises(ImageNotFoundError):
            client(fake).platforms("latest")


class TestFailures:
    """Each says what is wrong and what to do."""

    def test_wrong_password(self, fake: FakeRegistry) -> None:
        assert "refuses the password of the user ana" in failure(client(fake, "MARKER-wrong"))

    def test_no_password(self, basic: FakeRegistry) -> None:
        assert "none is declared" in failure(client(basic, None, None))

    def test_no_right(self) -> None:
        with FakeRegistry(tokens=True) as fake:
            fake.rights = set()
            assert "may not do this in" in failure(client(fake))

    def test_forbidden(self, basic: FakeRegistry) -> None:
        basic.answer = (403, {}, b'{"errors": [{"code": "DENIED"}]}')
        assert "may not do this in" in failure(client(basic))

    def test_too_many_requests(self, basic: FakeRegistry) -> None:
        basic.answer = (429, {"Retry_After": "7"}, b"{}")
        assert "again in 7 seconds" in failure(client(basic), RegistryUnavailableError)

    @pytest.mark.parametrize("status", [500, 502, 503])
    def test_a_fault_of_its_own(self, basic: FakeRegistry, status: int) -> None:
        basic.answer = (
            status,
            {},
            json.dumps({"errors": [{"code": "UNKNOWN", "message": "no  space"}]}).encode(),
        )
        assert f"({status}, UNKNOWN: no space)" in failure(client(basic), RegistryUnavailableError)

    @pytest.mark.parametrize(
        "answer",
        [
            (200, b"<html>"),
            (200, b"{}"),
            (200, b"[]"),
            (200, b'{"schemaVersion": 1}'),
            (404, b"<html>"),
            (404, b"[1]"),
            (302, b""),
        ],
    )
    def test_not_a_registry(self, basic: FakeRegistry, answer: tuple[int, bytes]) -> None:
        basic.answer = (answer[0], {}, answer[1])
        assert "is not a container registry" in failure(client(basic))

    @pytest.mark.parametrize(
        "challenge", ["Basic", "Bearer", "nonsense", 'Bearer realm="http://127.0.0.1:1/"', ""]
    )
    def test_a_challenge_that_leads_nowhere(self, basic: FakeRegistry, challenge: str) -> None:
        basic.answer = (401, {"WWW_Authenticate": challenge}, b"")
        assert failure(client(basic))

    def test_another_refusal(self, basic: FakeRegistry) -> None:
        basic.answer = (418, {}, b"")
        assert "did not accept the request" in failure(client(basic))

    def test_nothing_listens(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        message = failure(Registry(f"127.0.0.1:{port}", "g/p", plain_http=True), RegistryUnavailableError)
        assert "refuses the connection" in message

    def test_an_unknown_name(self) -> None:
        message = failure(Registry("registry.invalid", "g/p"), RegistryUnavailableError)
        assert "is not known (DNS)" in message

    def test_no_answer(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "READ_SECONDS", 0.2)
        with socket.socket() as silent:
            silent.bind(("127.0.0.1", 0))
            silent.listen()
            there = f"127.0.0.1:{silent.getsockname()[1]}"
            message = failure(Registry(there, "g/p", plain_http=True), RegistryUnavailableError)
        assert "does not answer" in message

    def test_the_whole_has_a_limit(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "OPERATION_SECONDS", 0.2)
        with socket.socket() as silent:
            silent.bind(("127.0.0.1", 0))
            silent.listen()
            there = f"127.0.0.1:{silent.getsockname()[1]}"
            message = failure(Registry(there, "g/p", plain_http=True), RegistryUnavailableError)
        assert "does not answer" in message

    def test_plain_http_where_https_is_expected(self, basic: FakeRegistry) -> None:
        message = failure(Registry(basic.server, "g/p", USER, PASSWORD))
        assert "esteira:registryInsecure: true" in message

    def test_https_where_plain_http_is_expected(self, basic: FakeRegistry) -> None:
        basic.answer = (400, {}, b"Client sent an HTTP request to an HTTPS server.\n")
        assert "Remove `esteira:registryInsecure`" in failure(client(basic))

    def test_an_unknown_authority(self, tmp_path: Path) -> None:
        with _tls_server(tmp_path, "localhost") as port:
            assert "REQUESTS_CA_BUNDLE" in failure(Registry(f"localhost:{port}", "g/p"))

    def test_a_certificate_for_another_name(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with _tls_server(tmp_path, "other.example") as port:
            monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "cert.pem"))
            assert "is for another name" in failure(Registry(f"localhost:{port}", "g/p"))

    def test_a_proxy_that_is_not_there(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
        assert "The proxy" in failure(Registry("registry.invalid", "g/p"), RegistryUnavailableError)


class TestClient:
    """The client asks for what Docker's own client would."""

    def test_no_proxy_for_loopback(self, basic: FakeRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
        digest = basic.add_image("latest")
        assert client(basic).digest("latest") == digest

    def test_netrc_does_not_replace_the_declared_password(
        self, fake: FakeRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / ".netrc").write_text("machine 127.0.0.1 login x password y\n")
        monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
        digest = fake.add_image("latest")
        assert client(fake).digest("latest") == digest

    @pytest.mark.parametrize(
        "server", ["localhost", "localhost:5000", "127.0.0.1:5000", "127.9.9.9", "[::1]:5000"]
    )
    def test_loopback(self, server: str) -> None:
        assert is_loopback(server)

    @pytest.mark.parametrize(
        "server", ["registry.gitlab.com", "10.0.0.1:5000", "localhost.example", "[fe80::1]:5000"]
    )
    def test_not_loopback(self, server: str) -> None:
        assert not is_loopback(server)

    def test_from_settings(self, tmp_path: Path, basic: FakeRegistry) -> None:
        settings = make_settings(tmp_path, registry=basic.server, repository="g/p")
        digest = basic.add_image("latest")
        registry = from_settings(settings)
        assert registry.name == f"{basic.server}/g/p"
        assert registry.digest("latest") == digest


class _tls_server:  # noqa: N801 - used as a function
    """Openssl's own test server, with a certificate that signs itself."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder, self._name = folder, name

    def __enter__(self) -> int:
        key, certificate = self._folder / "key.pem", self._folder / "cert.pem"
        request = f"openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN={self._name} -keyout {key}"
        command = f"{request} -out {certificate} -addext subjectAltName=DNS:{self._name}"
        subprocess.run(command.split(), check=True, capture_output=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port: int = free.getsockname()[1]
        self._server = subprocess.Popen(
            [
                "openssl",
                "s_server",
                "-accept",
                str(port),
                "-key",
                str(key),
                "-cert",
                str(certificate),
                "-www",
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
        )
        assert self._server.stdout is not None
        while b"ACCEPT" not in self._server.stdout.readline():
            assert self._server.poll() is None
        return port

    def __exit__(self, *exception: object) -> None:
        self._server.kill()
        self._server.communicate()
