"""A registry on loopback that answers as the distribution specification says, and counts what it is asked."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"

USER, PASSWORD = "ana", "MARKER-registry-password"


def digest_of(content: bytes) -> str:
    return "sha256:" + hashlib.sha256(content).hexdigest()


class FakeRegistry:
    """Start it with `with`; `server` is its address. Faults are switched on by its attributes."""

    def __init__(self, *, tokens: bool = False) -> None:
        self.tokens = tokens
        self.tags: dict[str, str] = {}
        self.manifests: dict[str, tuple[str, bytes]] = {}
        self.blobs: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []
        self.rights = {"pull", "push"}
        self.answer: tuple[int, dict[str, str], bytes] | None = None
        self.break_content = False
        self.put_digest: str | None = None
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())

    def __enter__(self) -> FakeRegistry:  # noqa: PYI034 - Self is not in Python 3.10
        threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._http.shutdown()
        self._http.server_close()

    @property
    def server(self) -> str:
        return f"127.0.0.1:{self._http.server_port}"

    @property
    def writes(self) -> list[tuple[str, str]]:
        return [request for request in self.requests if request[0] not in {"GET", "HEAD"}]

    def add(self, body: dict[str, Any], media_type: str = OCI_MANIFEST, tag: str | None = None) -> str:
        """Put a manifest with spaces and line ends of its own, so that a re-serialised one has another digest."""
        content = json.dumps(body, indent=3).encode() + b"\n"
        digest = digest_of(content)
        self.manifests[digest] = (media_type, content)
        if tag is not None:
            self.tags[tag] = digest
        return digest

    def add_image(self, tag: str | None = None, platform: str = "linux/amd64", mark: str = "one") -> str:
        """Put an image of one platform; its manifest has no mediaType, which OCI leaves optional."""
        system, architecture, *variant = platform.split("/")
        config = json.dumps({"os": system, "architecture": architecture, "mark": mark}).encode()
        if variant:
            config = json.dumps({**json.loads(config), "variant": variant[0]}).encode()
        self.blobs[digest_of(config)] = config
        entry = {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": digest_of(config),
            "size": 1,
        }
        return self.add({"schemaVersion": 2, "config": entry, "layers": []}, tag=tag)

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        registry = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            # Header and body are two writes: without this the second waits 40 ms for the first's acknowledgement.
            disable_nagle_algorithm = True

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                pass

            def reply(self, status: int, body: bytes = b"", **headers: str) -> None:
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name.replace("_", "-"), value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def refuse(self, status: int, code: str, **headers: str) -> None:
                body = json.dumps({"errors": [{"code": code, "message": code.lower()}]}).encode()
                self.reply(status, body, Content_Type="application/json", **headers)

            def authorised(self, action: str) -> bool:
                basic = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
                given = self.headers.get("Authorization", "")
                if registry.tokens:
                    realm = f"http://{registry.server}/jwt/auth"
                    scope = f"repository:g/p:{action}"
                    challenge = f'Bearer realm="{realm}",service="container_registry",scope="{scope}"'
                    if given.removeprefix("Bearer token-") and action in given:
                        return True
                else:
                    challenge = 'Basic realm="x"'
                    if given == basic:
                        return True
                self.refuse(401, "UNAUTHORIZED", WWW_Authenticate=challenge)
                return False

            def token(self) -> None:
                query = parse_qs(urlsplit(self.path).query)
                basic = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
                if self.headers.get("Authorization") != basic:
                    self.refuse(401, "UNAUTHORIZED")
                    return
                assert query["service"] == ["container_registry"]
                wanted = set(query["scope"][0].rpartition(":")[2].split(","))
                granted = "-".join(sorted(wanted & registry.rights)) or "none"
                self.reply(200, json.dumps({"token": f"token-{granted}"}).encode())

            def do_GET(self) -> None:
                registry.requests.append(("GET", self.path))
                if self.path.startswith("/jwt/auth"):
                    self.token()
                    return
                if registry.answer is not None:
                    status, headers, body = registry.answer
                    self.reply(status, body, **headers)
                    return
                if not self.authorised("pull"):
                    return
                kind, _, reference = self.path.removeprefix("/v2/g/p/").partition("/")
                if kind == "blobs" and reference in registry.blobs:
                    self.reply(200, registry.blobs[reference])
                    return
                found = registry.manifests.get(registry.tags.get(reference, reference))
                if kind != "manifests" or found is None:
                    self.refuse(404, "MANIFEST_UNKNOWN")
                    return
                media_type, content = found
                assert media_type in self.headers["Accept"]
                digest = digest_of(content)
                if registry.break_content:
                    content = content.replace(b" ", b"")
                self.reply(200, content, Content_Type=media_type, Docker_Content_Digest=digest)

            def do_PUT(self) -> None:
                registry.requests.append(("PUT", self.path))
                content = self.rfile.read(int(self.headers["Content-Length"]))
                if not self.authorised("push"):
                    return
                digest = digest_of(content)
                registry.manifests[digest] = (self.headers["Content-Type"], content)
                registry.tags[self.path.rpartition("/")[2]] = digest
                self.reply(201, Docker_Content_Digest=registry.put_digest or digest)

        return Handler
