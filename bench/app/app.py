"""The application under load: answers at once, late, in streams, takes uploads, echoes WebSockets.

/ names the release, /health is for a gate, /slow?seconds=S answers late, /download and /events (?seconds=S) stream
for that long, PUT /upload says how much came, /socket echoes text messages. Environment: BOOT, seconds from start to
serving; GRACE, seconds that requests in flight get after SIGTERM. Python's standard library is all it needs.

It logs "started TIME", "serving TIME" and "asked TIME" (seconds of the day's clock) for its first answers to /health.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

BLOCK = b"esteira\n" * 2048
"""What a download repeats, 16 KiB."""
BEAT = 0.1
"""Seconds between two blocks or events of a stream."""
LOGGED_PROBES = 20
_MAGIC = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, 1.3


def log(what: str) -> None:
    """Write one line with the time."""
    print(f"{what} {time.time():.4f}", flush=True)


class Application:
    """Its release, its connections, and whether it is about to end."""

    def __init__(self, release: str) -> None:
        self.release = release
        self.ending = False
        self.busy = 0
        self.idle: set[asyncio.StreamWriter] = set()
        self.probes = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the requests of one connection."""
        try:
            while not self.ending:
                self.idle.add(writer)
                try:
                    head = await reader.readuntil(b"\r\n\r\n")
                finally:
                    self.idle.discard(writer)
                self.busy += 1
                try:
                    goes_on = await self.answer(head.decode("latin-1"), reader, writer)
                    await writer.drain()
                finally:
                    self.busy -= 1
                if not goes_on:
                    break
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    async def answer(self, head: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer one request; whether the connection can take another."""
        request, *lines = head.rstrip("\r\n").split("\r\n")
        _, target, _ = request.split(" ")
        headers = {key.lower(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
        url = urlsplit(target)
        seconds = float(parse_qs(url.query).get("seconds", ["0"])[0])
        keep = headers.get("connection", "").lower() != "close"
        if url.path == "/socket":
            await self.socket(headers, reader, writer)
            return False
        if url.path == "/download":
            writer.write(self.head("200 OK", len(BLOCK) * round(seconds / BEAT), keep))
            await self.stream(seconds, writer, lambda _: BLOCK)
            return keep
        if url.path == "/events":
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n")
            await self.stream(seconds, writer, lambda number: f"data: {number}\n\n".encode())
            writer.write(b"data: end\n\n")
            return False
        if url.path == "/upload":
            body = str(await self.take(headers, reader))
        elif url.path == "/slow":
            await asyncio.sleep(seconds)
            body = f"late from release {self.release}"
        else:
            body = f"release {self.release}"
            if url.path == "/health" and self.probes < LOGGED_PROBES:
                self.probes += 1
                log("asked")
        data = body.encode()
        keep = keep and not self.ending
        writer.write(self.head("200 OK", len(data), keep) + data)
        return keep

    @staticmethod
    def head(status: str, length: int, keep: bool) -> bytes:
        """Give an answer's head."""
        end = "" if keep else "Connection: close\r\n"
        return f"HTTP/1.1 {status}\r\nContent-Length: {length}\r\n{end}\r\n".encode()

    @staticmethod
    async def stream(seconds: float, writer: asyncio.StreamWriter, block: Callable[[int], bytes]) -> None:
        """Send one block a beat."""
        for number in range(round(seconds / BEAT)):
            writer.write(block(number))
            await writer.drain()
            await asyncio.sleep(BEAT)

    @staticmethod
    async def take(headers: dict[str, str], reader: asyncio.StreamReader) -> int:
        """Read a request's body; its length."""
        if headers.get("transfer-encoding", "").lower() != "chunked":
            left = total = int(headers.get("content-length", "0"))
            while left:
                data = await reader.read(min(left, 65536))
                if not data:
                    raise asyncio.IncompleteReadError(b"", left)
                left -= len(data)
            return total
        total = 0
        while size := int((await reader.readline()).split(b";")[0], 16):
            await reader.readexactly(size + 2)
            total += size
        await reader.readline()
        return total

    @staticmethod
    async def socket(
        headers: dict[str, str], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Echo short text messages (RFC 6455) until the client closes."""
        accept = base64.b64encode(hashlib.sha1((headers["sec-websocket-key"] + _MAGIC).encode()).digest())  # noqa: S324
        writer.write(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n"
        )
        while True:
            kind, length = await reader.readexactly(2)
            mask = await reader.readexactly(4)
            data = bytes(
                byte ^ mask[at % 4] for at, byte in enumerate(await reader.readexactly(length & 127))
            )
            writer.write(bytes([kind, len(data)]) + data)
            await writer.drain()
            if kind & 15 == 8:
                return

    async def end(self, server: asyncio.AbstractServer, grace: float) -> None:
        """Take no more connections, let what is in flight finish for a while."""
        self.ending = True
        server.close()
        for writer in list(self.idle):
            writer.close()
        until = time.monotonic() + grace
        while self.busy and time.monotonic() < until:  # noqa: ASYNC110 - once in its life
            await asyncio.sleep(0.01)
        log(f"ended with {self.busy} in flight,")
        os._exit(0)


async def main() -> None:
    """Serve until SIGTERM."""
    application = Application(Path(__file__).with_name("release").read_text(encoding="utf-8").strip())
    server = await asyncio.start_server(application.serve, "0.0.0.0", 8000, backlog=1024)  # noqa: S104
    ends: list[asyncio.Task[None]] = []

    def begin_to_end() -> None:
        ends.append(asyncio.ensure_future(application.end(server, float(os.environ.get("GRACE", "0.5")))))

    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, begin_to_end)
    log("serving")
    await asyncio.Event().wait()


if __name__ == "__main__":
    log("started")
    # As a container's first process it would not even hear a signal that it has no handler for.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    time.sleep(float(os.environ.get("BOOT", "0.5")))
    asyncio.run(main())
