"""A domain: a certificate from a real ACME server (pebble), and an edge that applications share."""

from __future__ import annotations

import json
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.live.images import EDGE
from tests.live.machines import HERE, Machine, run, wait_for
from tests.live.project import Project
from tests.live.registry import Registry

pytestmark = pytest.mark.live


@dataclass(frozen=True)
class Answer:
    """What a request over HTTPS gave."""

    status: str
    text: str
    issuer: str


def ask(machine: Machine, domain: str, path: str = "/", *, root: Path | None = None) -> Answer:
    """Ask the machine's port 443 for ``domain``; ``root`` is the authority that the certificate is checked by."""
    context = ssl.create_default_context(cafile=str(root) if root else None)
    if root is None:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with (
        socket.create_connection((machine.host, 443), timeout=30) as plain,
        context.wrap_socket(plain, server_hostname=domain) as tls,
    ):
        tls.sendall(f"GET {path} HTTP/1.1\r\nHost: {domain}\r\nConnection: close\r\n\r\n".encode())
        text = b"".join(iter(lambda: tls.recv(65536), b"")).decode()
        shown: Any = tls.getpeercert() or {}
    issuer = {key: value for pairs in shown.get("issuer", ()) for key, value in pairs}
    head, _, body = text.partition("\r\n\r\n")
    return Answer(head.split(" ")[1], body, issuer.get("commonName", ""))


@dataclass(frozen=True)
class Authority:
    """An ACME server: its directory, the root that its own certificate has, the root of those that it issues."""

    directory: str
    root: str
    issued: Path


@contextmanager
def acme_server(folder: Path, machine: Machine) -> Iterator[Authority]:
    """Run pebble, and a name server that says of every name that it is ``machine``."""
    folder.mkdir()
    certificate, key = folder / "acme.pem", folder / "acme.key"
    subject = ["-subj", "/CN=test ACME server", "-addext", f"subjectAltName=IP:{HERE}"]
    made = ["-keyout", str(key), "-out", str(certificate), "-days", "2", "-newkey", "ec", "-nodes"]
    run("openssl", "req", "-x509", "-pkeyopt", "ec_paramgen_curve:prime256v1", *subject, *made)
    config = {
        "listenAddress": f"{HERE}:14000",
        "managementListenAddress": f"{HERE}:15000",
        "certificate": str(certificate),
        "privateKey": str(key),
        "httpPort": 80,
        "tlsPort": 443,
    }
    (folder / "pebble.json").write_text(json.dumps({"pebble": config}))
    names = [
        "pebble-challtestsrv",
        "-defaultIPv4",
        machine.host,
        "-defaultIPv6",
        "",
        "-dns01",
        f"{HERE}:8053",
    ]
    others = ["-http01", "", "-https01", "", "-tlsalpn01", "", "-management", f"{HERE}:8055"]
    pebble = ["pebble", "-config", str(folder / "pebble.json"), "-dnsserver", f"{HERE}:8053"]
    with (folder / "log").open("w") as log:
        processes = [
            subprocess.Popen([*names, *others], stdout=log, stderr=log),
            subprocess.Popen(
                pebble, stdout=log, stderr=log, env={"PEBBLE_VA_NOSLEEP": "1", "PEBBLE_WFE_NONCEREJECT": "0"}
            ),
        ]
    try:
        curl = ["curl", "-s", "--cacert", str(certificate)]
        wait_for(lambda: run(*curl, f"https://{HERE}:14000/dir", check=False), "pebble")
        issued = folder / "issued.pem"
        issued.write_text(run(*curl, f"https://{HERE}:15000/roots/0"))
        yield Authority(f"https://{HERE}:14000/dir", certificate.read_text(), issued)
    finally:
        for process in processes:
            process.terminate()
            process.wait()


class TestCertificates:
    """A certificate is really obtained, served for the domain, and outlives a release."""

    @pytest.mark.skipif(shutil.which("pebble") is None, reason="the ACME server pebble is not installed")
    def test_by_acme(self, project: Project, one: Machine, tmp_path: Path) -> None:
        project.server(one)
        project.settings |= {"strategy": "blueGreen", "domain": "parasite.test", "rollout": {"watch": 0}}
        with acme_server(tmp_path / "acme", one) as authority:
            project.settings["acme"] = {"directory": authority.directory, "root": authority.root}
            project.up().expect_good()

            def certified() -> Answer | None:
                try:
                    return ask(one, "parasite.test", root=authority.issued)
                except OSError:
                    return None

            wait_for(certified, "a certificate for parasite.test", seconds=60)
            answer = certified()
            assert answer is not None
            assert "Pebble" in answer.issuer
            assert f"commit {project.head}" in answer.text

            project.commit()
            project.up().expect_good()
            assert f"commit {project.head}" in ask(one, "parasite.test", root=authority.issued).text

    def test_plain_requests_are_sent_to_https(self, project: Project, one: Machine) -> None:
        project.server(one)
        project.settings |= {
            "strategy": "blueGreen",
            "domain": ["a.test", "www.a.test"],
            "acme": {"directory": "internal"},
        }
        project.up().expect_good()
        for domain in ("a.test", "www.a.test"):
            assert f"commit {project.head}" in ask(one, domain).text
            said = one.sh(f"curl -si --resolve {domain}:80:127.0.0.1 http://{domain}/x")
            assert "308" in said
            assert f"Location: https://{domain}/x" in said
        version = "curl -sk --http2 -o /dev/null -w '%{http_version}' --resolve a.test:443:127.0.0.1 https://a.test/"
        assert one.sh(version).strip() == "2"
        project.destroy().expect_good()
        assert one.docker("ps", "-aq").split() == []
        assert one.docker("volume", "ls", "-q").split() == []


INTERNAL = {"strategy": "blueGreen", "acme": {"directory": "internal"}, "rollout": {"watch": 0}}


@pytest.fixture
def shop(project: Project, one: Machine) -> Project:
    """Declare an application with a domain."""
    project.server(one)
    project.settings |= {**INTERNAL, "domain": "shop.test"}
    return project


@pytest.fixture
def cafe(one: Machine, registry: Registry, builder: Machine, tmp_path: Path) -> Project:
    """Declare another one on the same server."""
    made = Project(tmp_path / "cafe", registry, builder, "live/cafe")
    made.server(one)
    made.settings |= {**INTERNAL, "domain": "cafe.test"}
    made.settings["container"] = {**made.settings["container"], "name": "cafe"}
    return made


class TestSharing:
    """One application's arrival, releases and end move nothing of another's."""

    def test_two_applications(
        self, shop: Project, cafe: Project, one: Machine, record: Callable[[str], None]
    ) -> None:
        shop.up().expect_good()
        with steady(one, "shop.test") as failures:
            cafe.up().expect_good()
            assert f"commit {cafe.head}" in ask(one, "cafe.test").text
            cafe.commit()
            cafe.up().expect_good()
            assert f"commit {cafe.head}" in ask(one, "cafe.test").text
            cafe.destroy().expect_good()
        record(
            f"requests to one domain while another came, released and went: {failures.sent}, failed {failures.failed}"
        )
        assert failures.sent > 50
        assert failures.failed == 0, failures.reasons
        assert f"commit {shop.head}" in ask(one, "shop.test").text
        shop.destroy().expect_good()
        assert one.docker("ps", "-aq").split() == []

    def test_another_image(
        self, shop: Project, cafe: Project, one: Machine, record: Callable[[str], None]
    ) -> None:
        """The shared edge is replaced with all its sites; where the new one does not start, the old one is back."""
        shop.up().expect_good()  # One that arrives with a broken edge is not in the way of its own next try.
        one.docker("commit", "--change", 'ENTRYPOINT ["false"]', "esteira-edge", "esteira/broken:1")
        cafe.up(edgeImage="esteira/broken:1").expect_bad("The edge does not start")
        assert f"commit {shop.head}" in ask(one, "shop.test").text
        cafe.up().expect_good()

        shop.commit()
        shop.up(edgeImage="esteira/broken:1").expect_bad("The edge does not start")
        for domain, served in (("shop.test", "commit "), ("cafe.test", f"commit {cafe.head}")):
            assert served in ask(one, domain).text
        shop.settings["edgeImage"] = "esteira/another:2"
        one.docker("tag", EDGE, shop.settings["edgeImage"])
        with steady(one, "cafe.test") as failures:
            shop.up().expect_good()
        record(
            f"another's edge image: {failures.failed} of {failures.sent} requests to the other domain failed"
        )
        assert one.inspect("esteira-edge")["Config"]["Image"] == shop.settings["edgeImage"]
        assert f"commit {shop.head}" in ask(one, "shop.test").text
        assert f"commit {cafe.head}" in ask(one, "cafe.test").text
        assert "esteira-edge-next" not in one.docker("ps", "-a", "--format", "{{.Names}}")
        published = one.inspect("esteira-edge")["HostConfig"]["PortBindings"]
        assert set(published) == {"80/tcp", "443/tcp", "443/udp"}
        one.docker("rm", "--force", "esteira-edge")
        shop.up().expect_good()
        assert f"commit {cafe.head}" in ask(one, "cafe.test").text

    def test_plain_port_to_domain_and_back(self, project: Project, one: Machine) -> None:
        """The same release: nothing is built, and it is not stopped."""
        project.server(one)
        project.settings |= {"strategy": "blueGreen", "rollout": {"watch": 0}}
        project.up().expect_good()
        began = one.inspect("parasite")["State"]["StartedAt"]
        project.up(domain="a.test", acme={"directory": "internal"}).expect_good()
        assert f"commit {project.head}" in ask(one, "a.test").text
        assert one.answers(8888) is None
        project.up().expect_good()
        assert f"commit {project.head}" in str(one.answers(8888))
        assert one.inspect("parasite")["State"]["StartedAt"] == began
        assert "esteira-edge" not in one.docker("ps", "-a", "--format", "{{.Names}}")


@dataclass
class Failures:
    """What a steady client counted."""

    sent: int = 0
    failed: int = 0
    reasons: tuple[str, ...] = ()


@contextmanager
def steady(machine: Machine, domain: str) -> Iterator[Failures]:
    """Ask for ``domain`` by one new connection after the other, at most 50 a second, until the end of the block."""
    counted, stop = Failures(), threading.Event()

    def client() -> None:
        while not stop.wait(0.02):
            counted.sent += 1
            try:
                said = f"status {ask(machine, domain).status}"
            except OSError as error:
                said = str(error)
            if said != "status 200":
                counted.failed += 1
                counted.reasons = (*counted.reasons, said)

    thread = threading.Thread(target=client)
    thread.start()
    try:
        yield counted
    finally:
        stop.set()
        thread.join()
