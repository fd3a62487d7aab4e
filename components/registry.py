"""An OCI registry's manifests: which digest a tag has, another tag for a digest, the platforms of an image.

python-dxf brings the log-in (basic, and the token flow of GitLab and Docker Hub). Manifests are handled one
level below it, as bytes: dxf's own ``set_manifest`` wants a ``mediaType`` in the JSON, which OCI leaves
optional, and its log-in refuses plain HTTP, which a registry on loopback speaks.
"""

from __future__ import annotations

import base64
import gzip
import io
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, cast
from urllib.parse import urlsplit

import dxf
import requests
import urllib3.exceptions
import www_authenticate
from dxf.exceptions import DXFError, DXFUnauthorizedError

from .errors import EsteiraError

if TYPE_CHECKING:
    from .settings import Settings

CONNECT_SECONDS = 5.0
READ_SECONDS = 10.0
# One operation is a few small requests. The limit also covers what requests has no time limit for: a name
# server that does not answer, and an answer that comes a byte at a time.
OPERATION_SECONDS = 20.0

_INDEX_TYPES = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
_MANIFEST_TYPES = (
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
# dxf also asks for schema 1, whose digest is not that of what was pushed; it is left out here.
_ACCEPT = {"Accept": ", ".join((*_MANIFEST_TYPES, *_INDEX_TYPES))}

_EMPTY = bytes(1024)
"""A tar archive without a file."""

T = TypeVar("T")


class RegistryError(EsteiraError):
    """The registry did not do what was asked; the sentences say why and what to do."""


class RegistryUnavailableError(RegistryError):
    """The registry cannot be reached or has a fault of its own (down, unknown host, time-out, 429, 5xx)."""


class ImageNotFoundError(RegistryError):
    """The registry answers and has no such manifest."""


@dataclass(frozen=True)
class Copied:
    """What `Registry.copy_tag` found and did."""

    digest: str
    """The digest that the tag has now, ``sha256:…``."""
    previous: str | None
    """The digest that the tag had before; None when it was new."""

    @property
    def changed(self) -> bool:
        """Whether the tag had to be written."""
        return self.digest != self.previous


@dataclass(frozen=True)
class _Manifest:
    content: bytes
    media_type: str
    digest: str


class _Session(requests.Session):
    """Requests as Docker's own client would send them."""

    def __init__(self, *, loopback: bool) -> None:
        super().__init__()
        self._loopback = loopback
        # Without an `auth`, requests puts what ~/.netrc says in place of our Authorization header.
        self.auth = _unchanged

    def request(self, *args: Any, **kwargs: Any) -> requests.Response:
        if self._loopback:
            # Docker never asks a proxy for a loopback address; requests would.
            kwargs["proxies"] = {"no_proxy": "*"}
        return super().request(*args, **kwargs)


def _unchanged(request: requests.PreparedRequest) -> requests.PreparedRequest:
    return request


class _Client(dxf.DXF):
    """dxf, with log-in over plain HTTP and our own session."""

    def __init__(
        self, host: str, repository: str, username: str | None, password: str | None, *, plain: bool
    ) -> None:
        timeout = cast("float", (CONNECT_SECONDS, READ_SECONDS))  # requests takes the pair; dxf hands it on
        super().__init__(host, repository, auth=_Client._log_in, insecure=plain, timeout=timeout)
        self._sessions = [_Session(loopback=is_loopback(host))]
        self._username = username
        self._password = password
        self.logged_in = False
        """Whether a token was granted: a refusal after that is about rights, not about the password."""

    @staticmethod
    def _log_in(client: dxf.DXFBase, response: requests.Response) -> None:
        cast("_Client", client).log_in(response)

    def log_in(self, response: requests.Response) -> None:
        """Answer the registry's challenge (RFC 7235; the token flow of the distribution specification)."""
        challenge = www_authenticate.parse(response.headers.get("www-authenticate", ""))
        if "bearer" not in challenge:
            if self._username is not None and self._password is not None:
                self._headers = {"Authorization": self._basic()}
            return
        if "realm" not in (challenge["bearer"] or {}):
            raise ValueError("a challenge without a realm")
        if self._insecure:
            self._fetch_token(challenge["bearer"])
        else:
            self.authenticate(self._username, self._password, response=response)
        self.logged_in = True

    def _basic(self) -> str:
        return "Basic " + base64.b64encode(f"{self._username}:{self._password}".encode()).decode()

    def _fetch_token(self, info: dict[str, str]) -> None:
        """`authenticate` of dxf for a registry that is declared as plain HTTP, which dxf refuses."""
        answer = self._sessions[0].get(
            info["realm"],
            params=[
                (key, part) for key in ("service", "scope") for part in info.get(key, "").split() if part
            ],
            headers={"Authorization": self._basic()} if self._username and self._password else {},
            timeout=self._timeout,
        )
        if answer.status_code == requests.codes.unauthorized:
            raise DXFUnauthorizedError
        answer.raise_for_status()
        body = answer.json()
        self.token = body.get("access_token") or body["token"]

    def send(self, method: str, path: str, **kwargs: Any) -> requests.Response:
        """Send one request about the repository; log in when the registry asks for it."""
        answer: requests.Response = self._request(method, path, **kwargs)  # type: ignore[no-untyped-call]
        return answer


class Registry:
    """One repository of a registry.

    Nothing is sent before the first call. Every failure is a `RegistryError`, which never holds the password.
    """

    def __init__(
        self,
        server: str,
        repository: str,
        username: str | None = None,
        password: str | None = None,
        *,
        plain_http: bool = False,
    ) -> None:
        self.server = server
        self.repository = repository
        self._username = username
        self._password = password
        self._plain = plain_http

    @property
    def name(self) -> str:
        """``server/repository``, as an image is named."""
        return f"{self.server}/{self.repository}"

    def digest(self, reference: str) -> str | None:
        """Return the digest behind a tag or a digest, None when it is not there.

        It is the sha256 of the manifest's bytes. Of an index (several platforms) it is the index's own.
        """
        return self._bounded(lambda client: _digest_or_none(self._manifest(client, reference)))

    def copy_tag(self, digest: str, tag: str, *, overwrite: bool = True) -> Copied:
        """Point `tag` at `digest`, by the manifest's own bytes; nothing else travels.

        Nothing is written when the tag points there already, or when it exists and `overwrite` is false.

        Raises:
            ImageNotFoundError: the repository has no manifest with this digest.
        """

        def work(client: _Client) -> Copied:
            current = _digest_or_none(self._manifest(client, tag))
            if current is not None and (current == digest or not overwrite):
                return Copied(current, current)
            manifest = self._manifest(client, digest)
            if manifest is None:
                raise ImageNotFoundError(
                    f"{self.name} has no image {digest}, so {self.name}:{tag} cannot point to it. It was "
                    "removed from the registry: run `pulumi up` on a commit whose image is there, or "
                    "build it again."
                )
            answer = client.send(
                "put",
                f"manifests/{tag}",
                data=manifest.content,
                headers={"Content-Type": manifest.media_type},
            )
            stored = answer.headers.get("Docker-Content-Digest", digest)
            if stored != digest:
                raise RegistryError(
                    f"The registry {self.server} stored {self.name}:{tag} as {stored}, not as {digest}: it "
                    "rewrites manifests. Use a registry that keeps them as they are."
                )
            return Copied(digest, current)

        return self._bounded(work)

    def write_labels(self, tag: str, labels: Mapping[str, str]) -> str:
        """Point `tag` at an image that has these labels and no content, which every registry and Docker takes.

        Returns its digest, ``sha256:…``.
        """

        def work(client: _Client) -> str:
            config = json.dumps(
                {
                    "architecture": "amd64",
                    "os": "linux",
                    "config": {"Labels": dict(labels)},
                    "rootfs": {"type": "layers", "diff_ids": [dxf.hash_bytes(_EMPTY)]},
                },
                sort_keys=True,
            ).encode()
            layer = gzip.compress(_EMPTY, mtime=0)
            parts = []
            for kind, data in (("image.rootfs.diff.tar.gzip", layer), ("container.image.v1+json", config)):
                digest = dxf.hash_bytes(data)
                client.push_blob(data=io.BytesIO(data), digest=digest)
                media = f"application/vnd.docker.{kind}"
                parts.append({"mediaType": media, "size": len(data), "digest": digest})
            manifest = json.dumps(
                {"schemaVersion": 2, "mediaType": _MANIFEST_TYPES[1], "config": parts[1], "layers": parts[:1]}
            ).encode()
            headers = {"Content-Type": _MANIFEST_TYPES[1]}
            client.send("put", f"manifests/{tag}", data=manifest, headers=headers)
            return str(dxf.hash_bytes(manifest))

        return self._bounded(work)

    def platforms(self, reference: str) -> frozenset[str]:
        """Return the platforms of an image, as ``linux/amd64`` or ``linux/arm64/v8``.

        Raises:
            ImageNotFoundError: there is no such image.
        """

        def work(client: _Client) -> frozenset[str]:
            manifest = self._manifest(client, reference)
            if manifest is None:
                raise ImageNotFoundError(f"{self.name} has no image {reference}.")
            body = json.loads(manifest.content)
            if "manifests" in body:
                return frozenset(_platforms_of_index(body))
            config = client.send("get", f"blobs/{body['config']['digest']}").json()
            return frozenset({_platform(config)})

        return self._bounded(work)

    def tags(self) -> tuple[str, ...]:
        """Return all tags of the repository; none where it does not exist yet."""

        def work(client: _Client) -> tuple[str, ...]:
            try:
                return tuple(client.list_aliases())
            except requests.HTTPError as error:
                if error.response is not None and error.response.status_code == requests.codes.not_found:
                    return ()
                raise

        return self._bounded(work)

    def _manifest(self, client: _Client, reference: str) -> _Manifest | None:
        try:
            answer = client.send("get", f"manifests/{reference}", headers=_ACCEPT)
        except requests.HTTPError as error:
            if error.response is not None and error.response.status_code == requests.codes.not_found:
                if not _is_registry_answer(error.response):
                    raise self._not_a_registry() from None
                return None
            raise
        content = answer.content
        if not _is_manifest(content):
            raise self._not_a_registry()
        digest = dxf.hash_bytes(content)
        expected = (
            reference
            if reference.startswith("sha256:")
            else answer.headers.get("Docker-Content-Digest", digest)
        )
        if expected != digest:
            raise RegistryError(
                f"The registry {self.server} sent a manifest for {self.name} ({reference}) that is "
                f"{digest} and not {expected}. Something between here and the registry changes what it "
                "sends."
            )
        return _Manifest(
            content, answer.headers.get("Content-Type", _MANIFEST_TYPES[0]).split(";")[0], digest
        )

    def _bounded(self, work: Callable[[_Client], T]) -> T:
        """Do `work` in at most `OPERATION_SECONDS`; its failures come out as sentences."""
        host = _api_host(self.server)
        client = _Client(host, self.repository, self._username, self._password, plain=self._plain)
        results: list[T] = []
        failures: list[BaseException] = []

        def run() -> None:
            try:
                results.append(work(client))
            except BaseException as error:  # noqa: BLE001 - it is raised again, in the thread that waits
                failures.append(error)

        thread = threading.Thread(target=run, daemon=True, name="registry")
        thread.start()
        thread.join(OPERATION_SECONDS)
        if results:
            return results[0]
        if not failures:
            raise self._silent()
        raise self._explain(failures[0], client) from None

    # What went wrong, for a person.

    def _silent(self) -> RegistryError:
        return RegistryUnavailableError(
            f"The registry {self.server} does not answer (time-out). Check that it runs, that "
            "`esteira:registry` names it, and that nothing between here and there blocks it."
        )

    def _not_a_registry(self) -> RegistryError:
        return RegistryError(
            f"What answers at {self.server} is not a container registry. Check `esteira:registry`: GitLab "
            "shows the right name on the project's page Deploy > Container registry."
        )

    def _explain(self, error: BaseException, client: _Client) -> BaseException:
        """Turn a failure into a `RegistryError`; what is not about the registry is returned as it is."""
        if isinstance(error, EsteiraError):
            return error
        if isinstance(error, DXFUnauthorizedError):
            return self._forbidden() if client.logged_in else self._refused()
        if isinstance(error, requests.HTTPError) and error.response is not None:
            return self._explain_status(error.response)
        if isinstance(error, (requests.exceptions.InvalidJSONError, KeyError, ValueError)) and not isinstance(
            error, requests.exceptions.InvalidURL
        ):
            return self._not_a_registry()
        if isinstance(error, requests.RequestException):
            return self._explain_connection(error)
        if isinstance(error, DXFError):
            return RegistryError(f"The registry {self.server} gave an answer that makes no sense: {error}.")
        return error

    def _refused(self) -> RegistryError:
        if self._username is None or self._password is None:
            return RegistryError(
                f"The registry {self.server} asks for a user and a password, and none is declared. Write "
                "`esteira:registryUser: NAME` in the stack file and run `pulumi config set --secret "
                "esteira:registryPassword`; in a GitLab job CI_REGISTRY_USER and CI_REGISTRY_PASSWORD are "
                "taken."
            )
        return RegistryError(
            f"The registry {self.server} refuses the password of the user {self._username}. Check "
            "`esteira:registryUser` and set the password again with `pulumi config set --secret "
            "esteira:registryPassword` (in a GitLab job: CI_REGISTRY_USER and CI_REGISTRY_PASSWORD; a "
            "job's token ends with the job)."
        )

    def _forbidden(self) -> RegistryError:
        who = f"The user {self._username}" if self._username is not None else "Without a log-in, one"
        return RegistryError(
            f"{who} may not do this in {self.name} (the registry {self.server} denies it). Check "
            "`esteira:repository`, and that the credential may read and write there (a GitLab token needs "
            "read_registry and write_registry)."
        )

    def _explain_status(self, answer: requests.Response) -> RegistryError:
        status = answer.status_code
        said = _said(answer)
        if status == requests.codes.forbidden:
            return self._forbidden()
        if status == requests.codes.too_many_requests:
            after = answer.headers.get("Retry-After", "")
            wait = f"in {after} seconds" if after.isdigit() else "later"
            return RegistryUnavailableError(
                f"The registry {self.server} gets too many requests from here (429). Run the same command "
                f"again {wait}."
            )
        if status >= 500:
            return RegistryUnavailableError(
                f"The registry {self.server} has a fault of its own ({status}{said}). Try again in a "
                "moment; if it stays, its log and its disk space say why."
            )
        if status == requests.codes.bad_request and self._plain and "HTTPS" in answer.text[:200]:
            return RegistryError(
                f"The registry {self.server} speaks HTTPS, and plain HTTP was used. Remove "
                "`esteira:registryInsecure` from the stack file."
            )
        if status == requests.codes.not_found and not _is_registry_answer(answer):
            return self._not_a_registry()
        if status == requests.codes.not_found:
            return ImageNotFoundError(f"{self.name} is not in the registry {self.server} ({status}{said}).")
        return RegistryError(
            f"The registry {self.server} did not accept the request for {self.name} ({status}{said})."
        )

    def _explain_connection(self, error: requests.RequestException) -> RegistryError:
        causes = list(_causes(error))
        text = " ".join(str(cause) for cause in causes)
        if isinstance(error, requests.exceptions.ProxyError):
            return RegistryUnavailableError(
                f"The proxy on the way to the registry {self.server} cannot be reached. Check HTTPS_PROXY, "
                "HTTP_PROXY and NO_PROXY."
            )
        if isinstance(error, requests.exceptions.SSLError):
            return self._explain_tls(text)
        if isinstance(error, requests.exceptions.Timeout):
            return self._silent()
        if any(isinstance(cause, urllib3.exceptions.NameResolutionError) for cause in causes):
            return RegistryUnavailableError(
                f"The name of the registry {self.server} is not known (DNS). Check `esteira:registry` and "
                "the network."
            )
        if "refused" in text.lower():
            return RegistryUnavailableError(
                f"The registry {self.server} refuses the connection: nothing listens there. Start it, or "
                "check `esteira:registry`."
            )
        return RegistryUnavailableError(
            f"The registry {self.server} cannot be reached: the connection broke. Check that it runs, that "
            "`esteira:registry` names it, and the network."
        )

    def _explain_tls(self, text: str) -> RegistryError:
        if "WRONG_VERSION_NUMBER" in text or "record layer failure" in text.lower():
            return RegistryError(
                f"The registry {self.server} does not speak HTTPS. If it is meant to be plain HTTP, write "
                "`esteira:registryInsecure: true` in the stack file."
            )
        if "expired" in text:
            return RegistryError(
                f"The certificate of the registry {self.server} has expired. Renew it there."
            )
        if "Hostname mismatch" in text or "IP address mismatch" in text:
            return RegistryError(
                f"The certificate of the registry {self.server} is for another name. Write the name that "
                "it is for as `esteira:registry`."
            )
        return RegistryError(
            f"The certificate of the registry {self.server} is not signed by an authority that is known "
            "here. Put the authority's certificate (PEM) in a file and name that file in the environment "
            f"variable REQUESTS_CA_BUNDLE; Docker wants it as /etc/docker/certs.d/{self.server}/ca.crt."
        )


def from_settings(settings: Settings) -> Registry:
    """Return the client for the repository that the settings name, with the credential that may push."""
    password = settings.registry_password
    return Registry(
        settings.registry,
        settings.repository,
        settings.registry_user,
        password.get_secret_value() if password is not None else None,
        plain_http=settings.registry_plain_http,
    )


def of_step(
    repository: str, given: Mapping[str, Any], environ: Mapping[str, str], *, insecure: bool
) -> Registry:
    """Return the client for a step of a deployment, which runs in a process of its own.

    ``repository`` has the registry's name before it. ``given`` has ``username`` and ``password``; what is null is taken
    from `environ`: CI_REGISTRY_USER and CI_REGISTRY_PASSWORD, as GitLab sets them in a job.
    """
    server, _, path = repository.partition("/")
    return Registry(
        server,
        path,
        given.get("username") or environ.get("CI_REGISTRY_USER"),
        given.get("password") or environ.get("CI_REGISTRY_PASSWORD"),
        plain_http=insecure or is_loopback(server),
    )


def is_loopback(server: str) -> bool:
    """Whether a registry is on this machine: Docker speaks plain HTTP to it and never asks a proxy for it."""
    host = urlsplit(f"//{server}").hostname or ""
    return host in {"localhost", "::1"} or host.startswith("127.")


def _api_host(server: str) -> str:
    """Docker Hub is the one registry whose API has another name than its images."""
    return "registry-1.docker.io" if server in {"docker.io", "index.docker.io"} else server


def _digest_or_none(manifest: _Manifest | None) -> str | None:
    return manifest.digest if manifest is not None else None


def _platform(entry: dict[str, Any]) -> str:
    parts = [entry.get("os", "unknown"), entry.get("architecture", "unknown"), entry.get("variant", "")]
    return "/".join(part for part in parts if part)


def _platforms_of_index(index: dict[str, Any]) -> Iterator[str]:
    for entry in index["manifests"]:
        platform = _platform(entry.get("platform", {}))
        if not platform.startswith("unknown"):  # BuildKit's attestations
            yield platform


def _is_manifest(content: bytes) -> bool:
    try:
        body = json.loads(content)
    except ValueError:
        return False
    return (
        isinstance(body, dict)
        and body.get("schemaVersion") == 2
        and ("config" in body or "manifests" in body)
    )


def _is_registry_answer(answer: requests.Response) -> bool:
    """Whether a refusal is a registry's own: the distribution specification gives it a body with `errors`."""
    try:
        return "errors" in answer.json()
    except (ValueError, TypeError):
        return False


def _said(answer: requests.Response) -> str:
    """Return the registry's own words on a refusal, short, with a comma before them."""
    try:
        first = answer.json()["errors"][0]
        words = f"{first.get('code', '')}: {first.get('message', '')}"
    except (ValueError, LookupError, TypeError, AttributeError):
        return ""
    return ", " + " ".join(words.split())[:200]


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and what is wrapped in it, the way requests and urllib3 wrap."""
    seen: set[int] = set()
    queue = [error]
    while queue:
        current = queue.pop(0)
        if id(current) in seen:
            continue
        seen.add(id(current))
        yield current
        inner = [current.__cause__, current.__context__, getattr(current, "reason", None), *current.args]
        queue.extend(item for item in inner if isinstance(item, BaseException))
