"""HTTP/1.1 and WebSockets on plain sockets, as little as the load needs, so that nothing is retried behind its back."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass

_MAGIC = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, 1.3


class LoadError(Exception):
    """A request that failed; the text is its reason, the same for the same kind of failure."""


@dataclass(frozen=True)
class Answer:
    """A whole answer."""

    status: int
    body: bytes
    keeps: bool
    """The connection can take another request."""


class Connection:
    """One connection; every failure on it is a :class:`LoadError`."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str) -> None:
        self._reader, self._writer, self._host = reader, writer, host
        self._finished = False

    @classmethod
    async def open(cls, host: str, port: int) -> Connection:
        """Connect."""
        try:
            reader, writer = await asyncio.open_connection(host, port)
        except OSError as error:
            raise LoadError(f"not connected: {_reason(error)}") from None
        return cls(reader, writer, f"{host}:{port}")

    @property
    def ended(self) -> bool:
        """Whether the other side has been seen to end it: nothing may be sent any more."""
        reader, writer = self._reader, self._writer
        return self._finished or writer.is_closing() or reader.at_eof() or reader.exception() is not None

    async def request(
        self,
        method: str,
        path: str,
        *,
        keep: bool = False,
        body: bytes = b"",
        blocks: int = 0,
        pause: float = 0,
        on_data: Callable[[int], None] = lambda _: None,
    ) -> Answer:
        """Send one request and read its whole answer.

        ``body`` is sent ``blocks`` times with ``pause`` seconds between; ``on_data`` hears how many bytes of the answer
        have come.
        """
        head = [f"{method} {path} HTTP/1.1", f"Host: {self._host}"]
        head += [] if keep else ["Connection: close"]
        head += [f"Content-Length: {len(body) * blocks}"] if blocks else []
        try:
            self._writer.write("\r\n".join([*head, "", ""]).encode())
            for _ in range(blocks):
                self._writer.write(body)
                await self._writer.drain()
                await asyncio.sleep(pause)
        except OSError as error:
            raise LoadError(f"cut in the request: {_reason(error)}") from None
        answer = await self._read_answer(on_data)
        self._finished = not (keep and answer.keeps)
        return answer

    async def _read_answer(self, on_data: Callable[[int], None]) -> Answer:
        status, headers = await self._read_head()
        received = bytearray()
        try:
            if headers.get("transfer-encoding") == "chunked":
                while size := int((await self._reader.readuntil(b"\r\n")).split(b";")[0], 16):
                    received += (await self._reader.readexactly(size + 2))[:-2]
                    on_data(len(received))
                await self._reader.readuntil(b"\r\n")
            elif "content-length" in headers:
                left = int(headers["content-length"])
                while left:
                    data = await self._reader.read(min(left, 65536))
                    if not data:
                        raise asyncio.IncompleteReadError(b"", left)  # noqa: TRY301 - as readexactly says it
                    received += data
                    left -= len(data)
                    on_data(len(received))
            else:
                while data := await self._reader.read(65536):
                    received += data
                    on_data(len(received))
        except (OSError, asyncio.IncompleteReadError) as error:
            raise LoadError(f"cut in the answer: {_reason(error)}") from None
        keeps = headers.get("connection", "").lower() != "close" and (
            "content-length" in headers or "transfer-encoding" in headers
        )
        return Answer(status, bytes(received), keeps)

    async def _read_head(self) -> tuple[int, dict[str, str]]:
        try:
            head = await self._reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError as error:
            where = "cut in the answer's head" if error.partial else "no answer"
            raise LoadError(f"{where}: closed") from None
        except OSError as error:
            raise LoadError(f"no answer: {_reason(error)}") from None
        first, *lines = head.decode("latin-1").rstrip("\r\n").split("\r\n")
        headers = {}
        for line in lines:
            key, _, value = line.partition(":")
            headers[key.lower()] = value.strip()
        return int(first.split(" ")[1]), headers

    async def become_socket(self, path: str) -> None:
        """Turn into a WebSocket."""
        key = base64.b64encode(os.urandom(16)).decode()
        head = [
            *(f"GET {path} HTTP/1.1", f"Host: {self._host}", "Connection: Upgrade", "Upgrade: websocket"),
            *("Sec-WebSocket-Version: 13", f"Sec-WebSocket-Key: {key}"),
        ]
        self._writer.write("\r\n".join([*head, "", ""]).encode())
        status, headers = await self._read_head()
        expected = base64.b64encode(hashlib.sha1((key + _MAGIC).encode()).digest()).decode()  # noqa: S324
        if status != 101 or headers.get("sec-websocket-accept") != expected:
            raise LoadError(f"status {status}")

    async def echo(self, text: bytes, *, close: bool = False) -> None:
        """Send a message of at most 125 bytes and wait for it to come back; ``close`` makes it the closing one."""
        mask = os.urandom(4)
        kind = 0x88 if close else 0x81
        frame = bytes([kind, 0x80 | len(text)]) + mask
        frame += bytes(byte ^ mask[at % 4] for at, byte in enumerate(text))
        try:
            self._writer.write(frame)
            await self._writer.drain()
            returned, length = await self._reader.readexactly(2)
            data = await self._reader.readexactly(length & 127)
        except (OSError, asyncio.IncompleteReadError) as error:
            raise LoadError(f"cut: {_reason(error)}") from None
        if returned & 15 != kind & 15:
            raise LoadError("cut: closed by the server")
        if not close and data != text:
            raise LoadError("wrong echo")

    def close(self) -> None:
        """End it."""
        self._writer.close()


def _reason(error: OSError | asyncio.IncompleteReadError) -> str:
    if isinstance(error, asyncio.IncompleteReadError):
        return "closed"
    if isinstance(error, ConnectionRefusedError):
        return "refused"
    if isinstance(error, ConnectionResetError | BrokenPipeError):
        return "reset"
    return error.strerror or type(error).__name__
