"""The load: every kind of traffic at once, every request recorded, nothing retried.

It runs in a process of its own, so that the measuring beside it does not slow it: ``python -m bench.load`` takes a
:class:`Plan` as one line of JSON on stdin, begins, ends when stdin ends, and writes its records to the plan's file.
New requests are sent when they are due, whether or not earlier ones have been answered; how late the client itself was
is part of the record.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

from bench.results import Result
from bench.wire import Connection, LoadError

KINDS = ("new", "keep-alive", "slow", "download", "events", "upload", "websocket")
STREAMS = ("download", "events", "upload", "websocket")
"""Kinds that are cut when they end early."""
_BLOCK = b"0123456789abcdef" * 1024
_LATEST = 1.0
"""Seconds behind schedule from which on the client does not try to catch up."""
_MOST_AT_ONCE = 4000
"""More connections at once than this and the client, not the server, would run out of files."""


@dataclass(frozen=True)
class Plan:
    """What is sent. Times in seconds."""

    host: str
    port: int
    output: str
    """The file that the records are written to."""
    rate: float = 200
    """New connections a second, one request each."""
    keep_alive: int = 20
    """Clients that ask again and again on one connection, and reconnect only on an end seen before sending."""
    keep_alive_pause: float = 0.1
    slow: int = 5
    """Clients whose answer takes :attr:`slow_time`."""
    slow_time: float = 8
    downloads: int = 1
    event_streams: int = 1
    uploads: int = 1
    websockets: int = 1
    stream_time: float = 6
    """How long a stream of each of these kinds lasts."""
    upload_blocks: int = 1200
    """Blocks of 16 KiB in an upload."""
    patience: float = 10
    """After so long, beyond the time that an answer is meant to take, a request has failed."""


class Client:
    """Carries a plan out and records every request."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.stopping = asyncio.Event()
        self.origin = time.monotonic()
        self.records: list[tuple[int, float, float, str]] = []
        self.late: list[float] = []

    async def carry_out(self) -> Result:
        """Send until stopped; what is in flight then is let finish."""
        plan = self.plan
        await asyncio.gather(
            self._new_connections(),
            *(self._keep_alive_client(number) for number in range(plan.keep_alive)),
            *self._loops("slow", plan.slow, self._slow),
            *self._loops("download", plan.downloads, self._download),
            *self._loops("events", plan.event_streams, self._events),
            *self._loops("upload", plan.uploads, self._upload),
            *self._loops("websocket", plan.websockets, self._websocket),
        )
        ended = time.monotonic()
        self.late.sort()
        return Result(
            kinds=KINDS,
            origin=self.origin,
            ended=ended,
            records=tuple(self.records),
            late_worst=self.late[-1] if self.late else 0,
            late_usual=self.late[len(self.late) * 99 // 100] if self.late else 0,
        )

    async def _record(self, kind: str, work: Callable[[], Awaitable[None]], expected: float = 0) -> str:
        """Do one request and record it; why it failed, or nothing."""
        started = time.monotonic()
        try:
            await asyncio.wait_for(work(), expected + self.plan.patience)
            reason = ""
        except LoadError as error:
            reason = str(error)
        except asyncio.TimeoutError:
            reason = "no answer in time"
        self.records.append((KINDS.index(kind), started, time.monotonic(), reason))
        return reason

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self.stopping.wait(), seconds)

    # New connections.

    async def _new_connections(self) -> None:
        if not self.plan.rate:
            return
        running: set[asyncio.Task[str]] = set()
        due = self.origin
        while True:
            if (early := due - time.monotonic()) > 0:
                await asyncio.sleep(early)
            if self.stopping.is_set():
                break
            late = time.monotonic() - due
            self.late.append(late)
            # What was missed is caught up, so that a short delay hides nothing; but a client that cannot keep up must
            # not flood the server: it goes on from now, and the rate that it reached shows it.
            due += 1 / self.plan.rate + (late if late > _LATEST else 0)
            if len(running) >= _MOST_AT_ONCE:
                now = time.monotonic()
                self.records.append((0, now, now, f"not sent: {_MOST_AT_ONCE} unanswered already"))
                continue
            task = asyncio.ensure_future(self._record("new", self._new))
            running.add(task)
            task.add_done_callback(running.discard)
        await asyncio.gather(*running)

    async def _new(self) -> None:
        await self._ask("/")

    # Keep-alive clients.

    async def _keep_alive_client(self, number: int) -> None:
        kept: list[Connection] = []

        async def ask() -> None:
            if not kept:
                kept.append(await Connection.open(self.plan.host, self.plan.port))
            answer = await kept[0].request("GET", "/", keep=True)
            _check(answer.status, answer.body.startswith(b"release "))

        await self._pause(self.plan.keep_alive_pause * number / self.plan.keep_alive)
        while not self.stopping.is_set():
            if kept and kept[0].ended:
                kept.pop().close()
            if await self._record("keep-alive", ask) and kept:
                kept.pop().close()
            await self._pause(self.plan.keep_alive_pause)
        for connection in kept:
            connection.close()

    # Long requests, one after the other in each client.

    def _loops(
        self, kind: str, clients: int, work: Callable[[], Awaitable[None]]
    ) -> Iterator[Awaitable[None]]:
        expected = self.plan.slow_time if kind == "slow" else self.plan.stream_time
        for number in range(clients):
            yield self._loop(kind, work, expected, expected * number / clients)

    async def _loop(
        self, kind: str, work: Callable[[], Awaitable[None]], expected: float, offset: float
    ) -> None:
        # Spread, so that at every moment some are about to end and some have just begun.
        await self._pause(offset)
        while not self.stopping.is_set():
            # One that is refused at once must not count again and again: that would be the client's doing.
            await self._pause(0.5 if await self._record(kind, work, expected) else 0.05)

    async def _slow(self) -> None:
        await self._ask(f"/slow?seconds={self.plan.slow_time}", b"late from release ")

    async def _download(self) -> None:
        connection = await Connection.open(self.plan.host, self.plan.port)
        with contextlib.closing(connection):
            answer = await connection.request("GET", f"/download?seconds={self.plan.stream_time}")
        _check(answer.status, len(answer.body) > 0 and answer.body == b"esteira\n" * (len(answer.body) // 8))

    async def _events(self) -> None:
        connection = await Connection.open(self.plan.host, self.plan.port)
        with contextlib.closing(connection):
            answer = await connection.request("GET", f"/events?seconds={self.plan.stream_time}")
        if answer.status == 200 and not answer.body.endswith(b"data: end\n\n"):
            raise LoadError("cut in the answer: closed")
        _check(answer.status, answer.body.startswith(b"data: 0\n\n"))

    async def _upload(self) -> None:
        blocks = self.plan.upload_blocks
        connection = await Connection.open(self.plan.host, self.plan.port)
        with contextlib.closing(connection):
            answer = await connection.request(
                "PUT", "/upload", body=_BLOCK, blocks=blocks, pause=self.plan.stream_time / blocks
            )
        _check(answer.status, answer.body == str(blocks * len(_BLOCK)).encode())

    async def _websocket(self) -> None:
        connection = await Connection.open(self.plan.host, self.plan.port)
        with contextlib.closing(connection):
            await connection.become_socket("/socket")
            for number in range(round(self.plan.stream_time / 0.1)):
                await connection.echo(f"message {number}".encode())
                await asyncio.sleep(0.1)
            await connection.echo(b"\x03\xe8", close=True)

    async def _ask(self, path: str, beginning: bytes = b"release ") -> None:
        connection = await Connection.open(self.plan.host, self.plan.port)
        with contextlib.closing(connection):
            answer = await connection.request("GET", path)
        _check(answer.status, answer.body.startswith(beginning))


def _check(status: int, right: bool) -> None:
    if status >= 400:
        raise LoadError(f"status {status}")
    if status != 200 or not right:
        raise LoadError("wrong answer")


class Load:
    """A load that runs beside the block; :attr:`result` is there after it."""

    result: Result

    def __init__(self, plan: Plan) -> None:
        self._plan = plan

    def __enter__(self) -> Load:  # noqa: PYI034 - Self is not in Python 3.10
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.load"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=Path(__file__).resolve().parent.parent,
            text=True,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(asdict(self._plan)) + "\n")
        self._process.stdin.flush()
        self._process.stdout.readline()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        longest = self._plan.patience + max(self._plan.slow_time, self._plan.stream_time)
        try:
            self._process.communicate(timeout=longest + 20)
        finally:
            self._process.kill()
            self._process.wait()
        if kind is None:
            self.result = Result.read(Path(self._plan.output))


async def _run(plan: Plan) -> Result:
    client = Client(plan)
    loop = asyncio.get_running_loop()

    def heard() -> None:
        if not os.read(0, 4096):
            loop.remove_reader(0)
            client.stopping.set()

    loop.add_reader(0, heard)
    print("begun", flush=True)
    return await client.carry_out()


def main() -> None:
    """Carry out the plan on stdin until stdin ends."""
    plan = Plan(**json.loads(os.read(0, 65536)))  # not by sys.stdin, which would read on into its buffer
    # A full collection over all records would stop the client for longer than requests take.
    gc.set_threshold(20_000, 20, 10_000)
    asyncio.run(_run(plan)).write(Path(plan.output))


if __name__ == "__main__":
    main()
