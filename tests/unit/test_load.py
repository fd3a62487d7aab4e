"""The load client of the bench counts what really failed: no more, no less, nothing retried."""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from bench.app.app import Application
from bench.load import KINDS, Client, Plan
from bench.results import Result


class Faulty(Application):
    """The application, which spoils every ``every``-th request of ``only``, each time in another way."""

    def __init__(self, every: int, only: str = "/") -> None:
        super().__init__("7")
        self.every, self.only = every, only
        self.requests = 0
        self.spoiled: list[str] = []
        self.connections = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        await super().serve(reader, writer)

    async def answer(self, head: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        path = head.split(" ")[1].partition("?")[0]
        self.requests += 1
        if not self.every or self.requests % self.every or not path.startswith(self.only):
            return await super().answer(head, reader, writer)
        way = ("drop", "reset", "half", "refuse")[len(self.spoiled) % 4]
        self.spoiled.append(way)
        if way == "reset":
            # With no time to linger, closing sends a reset.
            raw: socket.socket = writer.get_extra_info("socket")
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
        elif way == "half":
            writer.write(self.head("200 OK", 100, False) + b"release")
        elif way == "refuse":
            writer.write(self.head("502 Bad Gateway", 0, False))
        return False


async def under_load(
    application: Application,
    seconds: float,
    meanwhile: Callable[[asyncio.Server], Awaitable[None]] | None = None,
    **plan: float,
) -> Result:
    server = await asyncio.start_server(application.serve, "127.0.0.1", 0, backlog=1024)
    port = server.sockets[0].getsockname()[1]
    quiet = {"slow": 0, "downloads": 0, "event_streams": 0, "uploads": 0, "websockets": 0}
    client = Client(Plan("127.0.0.1", port, "", **{**quiet, **plan}))  # type: ignore[arg-type]
    running = asyncio.ensure_future(client.carry_out())
    if meanwhile is not None:
        await meanwhile(server)
    await asyncio.sleep(seconds)
    client.stopping.set()
    result = await running
    server.close()
    return result


class TestCounting:
    """What the server spoiled is exactly what the client says failed."""

    def test_one_in_a_thousand(self) -> None:
        application = Faulty(1000)

        async def long_enough(_: asyncio.Server) -> None:
            while application.requests < 3100:  # noqa: ASYNC110 - the server tells nobody
                await asyncio.sleep(0.02)

        # Mostly clients that wait for their answers, so that a busy machine takes longer and is not flooded.
        result = asyncio.run(
            under_load(application, 0, long_enough, rate=100, keep_alive=20, keep_alive_pause=0, patience=60)
        )
        assert len(result.records) == application.requests
        assert len(result.failures) == len(application.spoiled) == application.requests // 1000 >= 3

    def test_the_reasons(self) -> None:
        application = Faulty(10)
        result = asyncio.run(under_load(application, 0.5, rate=400, keep_alive=4))
        ways = [application.spoiled.count(way) for way in ("drop", "reset", "half", "refuse")]
        assert [
            result.reasons()[reason]
            for reason in ("no answer: closed", "no answer: reset", "cut in the answer: closed", "status 502")
        ] == ways
        assert sum(result.reasons().values()) == sum(ways) >= 4

    @pytest.mark.parametrize("only", ["/slow", "/download", "/events", "/upload"])
    def test_every_kind_of_long_request(self, only: str) -> None:
        application = Faulty(1, only)
        result = asyncio.run(
            under_load(
                application,
                0.5,
                rate=0,
                keep_alive=0,
                slow_time=0.1,
                stream_time=0.2,
                upload_blocks=4,
                slow=1,
                downloads=1,
                event_streams=1,
                uploads=1,
                websockets=1,
            )
        )
        spoiled = {"/slow": "slow", "/download": "download", "/events": "events", "/upload": "upload"}[only]
        assert result.failed(spoiled) == result.sent(spoiled) == len(application.spoiled) > 0
        for kind in KINDS[2:]:
            assert result.sent(kind) > 0
            assert result.failed(kind) == (len(application.spoiled) if kind == spoiled else 0)

    def test_a_websocket_that_is_cut(self) -> None:
        class Cutting(Application):
            async def socket(  # type: ignore[override]
                self, headers: dict[str, str], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
            ) -> None:
                asyncio.get_running_loop().call_later(0.25, writer.close)
                await Application.socket(headers, reader, writer)

        result = asyncio.run(
            under_load(Cutting("7"), 0.5, rate=0, keep_alive=0, websockets=1, stream_time=0.5)
        )
        assert result.failed("websocket") == result.sent("websocket") > 0
        assert all(reason.startswith("cut") for reason in result.reasons())


class TestKeepAlive:
    """A client reconnects on an end that it saw before sending, and that is no failure; nothing else is forgiven."""

    def test_an_end_between_requests(self) -> None:
        class Impatient(Faulty):
            async def answer(
                self, head: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
            ) -> bool:
                await super().answer(head, reader, writer)
                return False  # and has not said so in the answer

        application = Impatient(0)
        result = asyncio.run(under_load(application, 0.5, rate=0, keep_alive=5, keep_alive_pause=0.05))
        assert result.failures == []
        assert application.connections == application.requests == len(result.records) > 5

    def test_one_connection_while_it_lasts(self) -> None:
        application = Faulty(0)
        result = asyncio.run(under_load(application, 0.5, rate=0, keep_alive=5, keep_alive_pause=0.05))
        assert result.failures == []
        assert application.connections == 5
        assert len(result.records) > 5


class TestOutage:
    """The longest time without a success is what nobody was served."""

    def test_a_server_that_is_away(self) -> None:
        application = Faulty(0)
        away: list[float] = []

        async def go_away(server: asyncio.Server) -> None:
            host, port = server.sockets[0].getsockname()
            await asyncio.sleep(0.3)
            away.append(time.monotonic())
            server.close()
            await asyncio.sleep(0.6)
            again = await asyncio.start_server(application.serve, host, port)
            away.append(time.monotonic())
            assert again.sockets[0].family == socket.AF_INET

        result = asyncio.run(under_load(application, 0.4, go_away, rate=100, keep_alive=0))
        # On a busy machine what was accepted before is answered late, and the client is late by more than its pace.
        dark = away[1] - away[0]
        assert dark / 2 <= result.longest_gap() <= dark + 0.5 + 2 * result.late_worst
        assert result.reasons() == {"not connected: refused": len(result.failures)}
        assert len(result.failures) >= 30


class TestFile:
    """The records survive the file that they travel in."""

    def test_there_and_back(self, tmp_path: Path) -> None:
        result = asyncio.run(under_load(Faulty(10), 0.3, rate=200, keep_alive=3))
        result.write(tmp_path / "records.json")
        again = Result.read(tmp_path / "records.json")
        assert again.table() == result.table()
        assert again.longest_gap() == pytest.approx(result.longest_gap(), abs=0.001)
        assert again.rate("new") == pytest.approx(result.rate("new"), rel=0.05)
