"""Is GitLab there, and may the token do it: each answer a sentence that names the key at fault."""

from __future__ import annotations

import datetime as dt
import ipaddress
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from gitlab import Gitlab

from components import gitlab_access
from components.errors import EsteiraError
from components.gitlab_access import check_access
from components.settings import GitlabStack, load_stack
from rehearsal import gitlab_resources
from rehearsal.gitlab import Fault, StandIn
from rehearsal.monitor import Context


def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let python-gitlab not wait between two tries."""
    monkeypatch.setattr("gitlab.utils.time", SimpleNamespace(sleep=lambda _: None))


@pytest.fixture
def gitlab(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    """Start a stand-in with one project."""
    _impatient(monkeypatch)
    with StandIn() as running:
        running.project("group/parasite")
        yield running


def stack(
    gitlab: StandIn | None,
    token: str = "",
    root: Path = Path("/nowhere"),
    secrets: dict[str, str] | None = None,
    **more: Any,
) -> GitlabStack:
    if gitlab is not None:
        more.setdefault("baseUrl", gitlab.base_url)
        token = token or gitlab.token
    loaded = load_stack(
        {
            "registry": "registry.example.com",
            "repository": "group/parasite",
            "gitlab": {"project": "group/parasite", **more},
            "gitlabToken": token or "MARKER-token",
            "gitlabVariables": secrets or {},
        },
        frozenset({"gitlabToken", "gitlabVariables"}),
        project="esteira",
        stack="gitlab",
        root=root,
        environ={},
    )
    assert isinstance(loaded, GitlabStack)
    return loaded


def refusal(given: GitlabStack) -> str:
    with pytest.raises(EsteiraError) as caught:
        check_access(given)
    assert given.gitlab_token is not None
    assert given.gitlab_token.get_secret_value() not in str(caught.value)
    return str(caught.value)


def test_a_maintainers_token_will_do(gitlab: StandIn) -> None:
    check_access(stack(gitlab))
    assert len(gitlab.exchanges) == 3


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"scopes": ["read_user"]}, "needs api"),
        ({"scopes": ["read_api"], "role": 30}, "Maintainer"),
        ({"role": 30}, "needs the role Maintainer"),
        ({"expired": True}, "it has expired"),
        ({"revoked": True}, "it was revoked"),
    ],
)
def test_a_token_that_is_not_enough(gitlab: StandIn, how: dict[str, Any], says: str) -> None:
    sentence = refusal(stack(gitlab, gitlab.new_token("small", **how)))
    assert says in sentence
    assert "esteira:gitlabToken (Pulumi.gitlab.yaml)" in sentence


def test_an_unknown_token(gitlab: StandIn) -> None:
    assert "not known there" in refusal(stack(gitlab, "glpat-MARKER"))


def test_an_unknown_project(gitlab: StandIn) -> None:
    assert "has no project group/other" in refusal(stack(gitlab, project="group/other"))


def test_what_is_to_be_adopted_must_be_there(gitlab: StandIn) -> None:
    """Pulumi would say: resource 'group/parasite:A:*' does not exist."""
    project = Gitlab(gitlab.url, oauth_token=gitlab.token).projects.get("group/parasite")
    project.variables.create({"key": "A", "value": "x", "environment_scope": "production"})
    secrets = {"A": "MARKER-own", "A@production": "MARKER-own"}
    check_access(stack(gitlab, secrets=secrets, adopt=["A@production"]))
    said = refusal(stack(gitlab, secrets=secrets, adopt=["A@production", "A"]))
    assert "has no variable A, so there is nothing to take over. Take it out of esteira:gitlab.adopt" in said


def test_a_token_that_expires_in_the_middle(gitlab: StandIn) -> None:
    assert "expired" in refusal(stack(gitlab, gitlab.new_token("short", lives=2)))


@pytest.mark.parametrize("trouble", ["1+2:503", "2:429:1", "1:502"])
def test_what_passes_is_waited_for(gitlab: StandIn, trouble: str) -> None:
    gitlab.faults.order(Fault.parse(trouble))
    check_access(stack(gitlab))


def test_a_fault_of_gitlabs_own(gitlab: StandIn) -> None:
    gitlab.faults.order(Fault.parse("*:500"))
    assert "fault of its own (500)" in refusal(stack(gitlab))


def test_no_answer(gitlab: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gitlab_access, "TIMEOUT", 0.3)
    monkeypatch.setattr(gitlab_access, "RETRIES", 0)
    gitlab.faults.order(Fault("timeout", seconds=2))
    assert "does not answer" in refusal(stack(gitlab))


def test_nobody_there(monkeypatch: pytest.MonkeyPatch) -> None:
    _impatient(monkeypatch)
    assert "cannot be reached" in refusal(stack(None, baseUrl="http://127.0.0.1:9"))


def test_no_certificate(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("no")
    assert "caFile) cannot be read" in refusal(stack(None, root=tmp_path, caFile="none.pem"))
    assert "no certificate" in refusal(stack(None, root=tmp_path, caFile="ca.pem"))


@pytest.fixture
def private(tmp_path: Path) -> Iterator[StandIn]:
    """Give a GitLab whose certificate is signed by an authority of its own, in ca.pem."""
    authority, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    names = {
        whose: x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, whose)]) for whose in ("ca", "gitlab")
    }
    now = dt.datetime.now(dt.timezone.utc)

    def certificate(whose: str, public: Any, extension: x509.ExtensionType) -> bytes:
        return (
            x509.CertificateBuilder(names["ca"], names[whose], public, x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(days=1))
            .not_valid_after(now + dt.timedelta(days=1))
            .add_extension(extension, critical=True)
            .sign(authority, hashes.SHA256())
            .public_bytes(serialization.Encoding.PEM)
        )

    address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    (tmp_path / "ca.pem").write_bytes(
        certificate("ca", authority.public_key(), x509.BasicConstraints(ca=True, path_length=None))
    )
    (tmp_path / "gitlab.pem").write_bytes(certificate("gitlab", key.public_key(), address))
    (tmp_path / "gitlab.key").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    with StandIn(tls=(tmp_path / "gitlab.pem", tmp_path / "gitlab.key")) as started:
        started.project("group/parasite")
        yield started


def test_a_private_authority(private: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _impatient(monkeypatch)
    check_access(stack(private, root=tmp_path, caFile="ca.pem"))
    assert "Name the file" in refusal(stack(private, root=tmp_path))
    provider = {
        "token": private.token,
        "baseUrl": private.base_url,
        "cacertFile": str(tmp_path / "ca.pem"),
    }
    context = Context(tmp_path, "it", lambda _: None, lambda _: None, provider, frozenset())
    found = gitlab_resources.get_project({"pathWithNamespace": "group/parasite"}, context)
    assert found["pathWithNamespace"] == "group/parasite"
