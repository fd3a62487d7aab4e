"""The stand-in as a server: threads, tokens, faults, and the check of every exchange against the description."""

from __future__ import annotations

import logging
import os
import re
import secrets
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import bcrypt
from werkzeug.serving import WSGIRequestHandler, make_server
from werkzeug.wrappers import Request, Response

from rehearsal.errors import RehearsalError
from rehearsal.gitlab import answers
from rehearsal.gitlab.answers import Answer, Refusal, error, message
from rehearsal.gitlab.api import ROUTES, Api, Call, Route
from rehearsal.gitlab.faults import Fault, Faults, RateLimit, limit_headers
from rehearsal.gitlab.images import MemoryImages, RegistryImages
from rehearsal.gitlab.parameters import Parameters
from rehearsal.gitlab.state import MAINTAINER, Project, Repository, State, Tag, Token, utc_now

if TYPE_CHECKING:
    from rehearsal.gitlab.description import Description

DESCRIPTION = Path(
    os.environ.get("ESTEIRA_GITLAB_OPENAPI")
    or Path(__file__).resolve().parents[3] / "shared" / "gitlab-openapi.yaml"
)
"""GitLab's published description of its API (or the part of it that is of use): ESTEIRA_GITLAB_OPENAPI names the file,
which is else looked for beside the checkout."""
DESCRIPTION_MISSING = (
    "GitLab's published OpenAPI description (doc/api/openapi/openapi_v3.yaml of its repository) is not at hand: "
    "ESTEIRA_GITLAB_OPENAPI can name it"
)

_EXPIRED = "Token is expired. You can either do re-authorization or token refresh."
_REVOKED = "Token was revoked. You have to re-authorize from the user."
_TOO_SMALL = "The request requires higher privileges than provided by the access token."

_PATTERNS = [(route, re.compile(re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", route.template))) for route in ROUTES]


@dataclass(frozen=True)
class Exchange:
    """One request that came, without its values: for tests and for the log."""

    method: str
    path: str
    status: int
    """0: no answer was given."""
    seconds: float


class _Silent(Exception):  # noqa: N818 - not an error of ours
    """The connection ends without an answer."""


class _Handler(WSGIRequestHandler):
    """Logs nothing: a query or a header may hold a secret. Ends a connection whose answer was held back."""

    def connection_dropped(self, *_: object) -> None:
        """End the connection with a reset and wait for no further request."""
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        # Closed below socketserver, which would say goodbye properly first.
        os.close(self.connection.detach())

    def log(self, type: str, message: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        """Say nothing."""


class StandIn:
    """A GitLab of one's own, as far as Esteira needs one.

    Use as a context manager, or call :meth:`start` and :meth:`close`. It listens on loopback only; port 0 takes a free
    one. With ``state_file`` everything outlives it. ``registry`` (``http://host:port``) is a real one whose tags it
    lists and deletes; ``htpasswd`` a file of that registry in which the active deploy tokens are kept valid, beside the
    lines that it has already. ``tls``: a certificate and its key, for HTTPS.

    ``objections`` holds what the OpenAPI description has against an exchange; leaving the context raises
    :class:`RehearsalError` if there is any. Without a description beside the project there is no such check, and
    ``description_missing`` is true.
    """

    def __init__(
        self,
        *,
        port: int = 0,
        host: str = "127.0.0.1",
        state_file: Path | None = None,
        registry: str | None = None,
        registry_user: str | None = None,
        registry_password: str | None = None,
        htpasswd: Path | None = None,
        rate_limit: RateLimit | None = None,
        latency: float = 0.0,
        tls: tuple[Path, Path] | None = None,
        on_exchange: Callable[[Exchange], None] | None = None,
    ) -> None:
        self.faults = Faults()
        self.rate_limit = rate_limit
        self.latency = latency
        """Seconds that every answer takes at least."""
        self.exchanges: list[Exchange] = []
        self.objections: list[str] = []
        self._on_exchange = on_exchange
        self._state_file = state_file
        self._htpasswd = htpasswd
        self._other_entries = _other_entries(htpasswd)
        self._lock = threading.RLock()
        self.state = State.load(state_file) if state_file and state_file.is_file() else State()
        if not self.state.tokens:
            self.new_token("maintainer")
        self._description = _read_description()
        certificate_and_key = (str(tls[0]), str(tls[1])) if tls is not None else None
        self._server = make_server(
            host,
            port,
            self._serve,
            threaded=True,
            request_handler=_Handler,
            ssl_context=certificate_and_key,
        )
        self.url = f"{'https' if tls else 'http'}://{host}:{self._server.server_port}"
        images = (
            MemoryImages(self.state)
            if registry is None
            else RegistryImages(registry, registry_user, registry_password)
        )
        name = urlsplit(registry).netloc if registry else "registry.example.com"
        self.api = Api(self.state, images, self.url, name)
        self._thread = threading.Thread(
            # How long close() may have to wait.
            target=self._server.serve_forever,
            args=(0.02,),
            daemon=True,
        )

    # Running it.

    @property
    def base_url(self) -> str:
        """What the provider's ``baseUrl`` wants."""
        return f"{self.url}/api/v4/"

    @property
    def description_missing(self) -> bool:
        """Whether exchanges are not checked, because the description is not there."""
        return self._description is None

    def start(self) -> StandIn:
        """Begin to answer."""
        self._thread.start()
        return self

    def close(self) -> None:
        """Stop answering."""
        if self._thread.is_alive():
            self._server.shutdown()
        self._server.server_close()

    def __enter__(self) -> StandIn:  # noqa: PYI034 - Self is Python 3.11's
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
        if value is None and self.objections:
            found = "\n".join(dict.fromkeys(self.objections))
            raise RehearsalError(f"GitLab's OpenAPI description objects:\n{found}")

    # Setting it up.

    @property
    def token(self) -> str:
        """The first token: scope api, maintainer of every project."""
        return self.state.tokens[0].secret

    def new_token(
        self,
        name: str,
        scopes: Iterable[str] = ("api",),
        *,
        role: int = MAINTAINER,
        revoked: bool = False,
        expired: bool = False,
        lives: int | None = None,
        secret: str | None = None,
    ) -> str:
        """Make a personal access token. ``lives``: requests after which it is expired. Returns it."""
        token = Token(
            secret or f"glpat-{secrets.token_urlsafe(15)}",
            name,
            list(scopes),
            role=role,
            revoked=revoked,
            expired=expired,
            lives=lives,
        )
        with self._lock:
            self.state.tokens.append(token)
            self._save()
        return token.secret

    def project(self, path: str, *, visibility: str = "private") -> Project:
        """Make a project, or give the one that is there."""
        with self._lock:
            project = self.state.find_project(path)
            if project is None:
                if "/" not in path:
                    raise ValueError(f"{path!r} is not a project's path: write group/name")
                project = Project(self.state.next_id(), path, utc_now(), visibility)
                self.state.projects.append(project)
                self._save()
            return project

    def push(
        self,
        path: str,
        tag: str,
        digest: str,
        *,
        size: int = 1_000_000,
        created_at: str | None = None,
        repository: str = "",
    ) -> None:
        """Put a tag into a project's registry (its own memory, not a real one). ``size`` in bytes."""
        project = self.project(path)
        full = "/".join(part for part in (project.path.lower(), repository) if part)
        with self._lock:
            found = next((one for one in project.repositories if one.path == full), None)
            if found is None:
                found = Repository(self.state.next_id(), full, utc_now())
                project.repositories.append(found)
            revision = digest.partition(":")[2][::-1]
            found.tags[tag] = Tag(digest, created_at or utc_now(), size, revision)
            self._save()

    # Answering.

    def _serve(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        request = Request(environ)
        raw = str(environ.get("RAW_URI") or environ.get("REQUEST_URI") or request.path)
        path = urlsplit(raw).path if raw.startswith("/") else request.path
        began = time.monotonic()
        fault = self.faults.next(request.method, path)
        answer: Answer | None
        try:
            answer = self._answer(request, path, fault)
        except _Silent:
            answer = None
        if self.latency:
            time.sleep(self.latency)
        exchange = Exchange(
            request.method, path, answer.status if answer else 0, round(time.monotonic() - began, 4)
        )
        with self._lock:
            self.exchanges.append(exchange)
        if self._on_exchange is not None:
            self._on_exchange(exchange)
        if answer is None:
            raise ConnectionResetError
        response = Response(
            answer.content, answer.status, dict(answer.headers), content_type=answer.content_type
        )
        if answer.body is None:
            del response.headers["Content-Type"]
        return response(environ, start_response)

    def _answer(self, request: Request, path: str, fault: Fault | None) -> Answer:
        if fault is not None and fault.kind != "expire":
            if fault.after:
                self._handle(request, path)
            return _trouble(fault)
        if fault is not None:
            token = self.state.find_token(_secret(request) or "")
            if token is not None:
                token.expired = True
        if self.rate_limit is not None:
            headers = self.rate_limit.exceeded(_secret(request) or request.remote_addr or "")
            if headers is not None:
                return answers.too_many(headers)
        return self._handle(request, path)

    def _handle(self, request: Request, path: str) -> Answer:
        route, parts = _find(request.method, path)
        with self._lock:
            fields: dict[str, Any] = {}
            typed = True
            try:
                token = self._authenticate(request, route)
                parameters = Parameters(request, parts)
                fields, typed = parameters.body, parameters.typed
                answer = (
                    Answer(404, {"error": "404 Not Found"})
                    if route is None
                    else route.endpoint(self.api, Call(token, parts, parameters, f"{self.url}{path}"))
                )
            except Refusal as refusal:
                answer = refusal.answer
            except Exception:
                logging.getLogger(__name__).exception("The stand-in failed at %s %s", request.method, path)
                answer = answers.broken_gateway(500)
            if request.method != "GET" and answer.status < 300:
                self._save()
            if route is not None and self._description is not None:
                with self._description.lock:
                    self.objections += self._description.objections(
                        request.method,
                        path,
                        route.template,
                        query=request.query_string.decode(),
                        headers=dict(request.headers),
                        fields=fields,
                        typed=typed,
                        status=answer.status,
                        answer=answer.content,
                        answer_type=answer.content_type,
                    )
        return answer

    def _authenticate(self, request: Request, route: Route | None) -> Token | None:
        """Judge the token in GitLab's order: known, revoked or expired, its scope."""
        if route is None:
            return None
        secret = _secret(request)
        if secret is None:
            if route.anonymous:
                return None
            raise message(401, "401 Unauthorized")
        token = self.state.find_token(secret)
        if token is None:
            raise message(401, "401 Unauthorized")
        if token.lives is not None:
            if token.lives == 0:
                token.expired = True
            else:
                token.lives -= 1
        if token.revoked:
            raise error(401, "invalid_token", error_description=_REVOKED)
        if token.expired:
            raise error(401, "invalid_token", error_description=_EXPIRED)
        usable = set(route.scopes) if request.method in {"GET", "HEAD"} else set(route.scopes) - {"read_api"}
        if not route.any_scope and not usable & set(token.scopes):
            raise error(403, "insufficient_scope", error_description=_TOO_SMALL, scope=" ".join(route.scopes))
        return token

    def _save(self) -> None:
        if self._state_file is not None:
            self.state.save(self._state_file)
        if self._htpasswd is not None:
            tokens = [token for project in self.state.projects for token in project.deploy_tokens]
            lines = [
                f"{token.username}:{bcrypt.hashpw(token.token.encode(), bcrypt.gensalt(4)).decode()}"
                for token in tokens
                if not token.revoked and not token.expired and "read_registry" in token.scopes
            ]
            temporary = self._htpasswd.with_name(f".{self._htpasswd.name}.new")
            temporary.write_text("\n".join([*self._other_entries, *lines]) + "\n", encoding="utf-8")
            temporary.replace(self._htpasswd)


def _find(method: str, path: str) -> tuple[Route | None, dict[str, str]]:
    for route, pattern in _PATTERNS:
        if route.method == method and (match := pattern.fullmatch(path)):
            return route, {name: unquote(part) for name, part in match.groupdict().items()}
    return None, {}


def _secret(request: Request) -> str | None:
    """Give the token of ``PRIVATE-TOKEN`` or ``Authorization: Bearer``."""
    private = request.headers.get("PRIVATE-TOKEN")
    if private is not None:
        return private
    kind, _, secret = request.headers.get("Authorization", "").partition(" ")
    return secret.strip() if kind.lower() == "bearer" else None


def _trouble(fault: Fault) -> Answer:
    if fault.kind == "rate_limit":
        return answers.too_many(limit_headers(1, 2, fault.retry_after))
    if fault.kind == "status":
        return answers.broken_gateway(fault.status)
    if fault.kind == "timeout":
        time.sleep(fault.seconds)
    raise _Silent


def _read_description() -> Description | None:
    if not DESCRIPTION.is_file():
        return None
    # Imported only where it is of use: it takes a second.
    from rehearsal.gitlab.description import Description as Read  # noqa: PLC0415

    return Read.read(DESCRIPTION)


def _other_entries(htpasswd: Path | None) -> list[str]:
    if htpasswd is None or not htpasswd.is_file():
        return []
    lines = htpasswd.read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("gitlab+deploy-token-")]
