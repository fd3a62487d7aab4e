"""No request is dropped: releases in a row under a load that counts every failure and retries nothing."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.load import KINDS, STREAMS, Load, Plan
from bench.place import Place
from bench.ways import PORT, Esteira
from tests.live.machines import Machine
from tests.live.registry import Registry

RELEASES = int(os.environ.get("ESTEIRA_LOAD_RELEASES", "6"))
"""Six by default, so that the layer stays quick; the bench (./esteira bench) and CI's long run do 20."""


@pytest.fixture
def place(one: Machine, builder: Machine, registry: Registry) -> Place:
    return Place(one, builder, registry, boot=0.3, grace=0.5)


class TestBlueGreen:
    """The published port never goes dark, whatever kind of traffic goes through it."""

    @pytest.mark.timeout(900)
    def test_releases_under_load(self, place: Place, tmp_path: Path, record: Callable[[str], None]) -> None:
        way = Esteira(place, "blueGreen", health={"path": "/health", "interval": 0.2}, rollout={"watch": 1})
        way.deploy(place.release())
        releases = [place.release() for _ in range(RELEASES)]
        # What is dropped is refused, reset or answered wrongly; mere slowness is not what this counts.
        load = Load(Plan(place.server.host, PORT, str(tmp_path / "records.json"), patience=60))
        said = []
        with load:
            time.sleep(3)
            for release in releases:
                said.append(way.deploy(release).text)
                time.sleep(0.5)
        result = load.result
        record(
            f"{RELEASES} releases under load: {len(result.records)} requests, {len(result.failures)} failed, "
            f"{result.rate('new'):.0f} new connections a second, longest gap {result.longest_gap() * 1000:.0f} ms, "
            f"the client late by at most {result.late_worst * 1000:.0f} ms"
        )
        assert result.failures == [], "\n".join([result.table(), *said])
        assert not any("are cut" in text for text in said)
        # The load was really there.
        for kind in KINDS:
            assert result.sent(kind) >= (RELEASES if kind in STREAMS else 2 * RELEASES)
        assert result.sent("new") + result.sent("keep-alive") > 100 * (result.ended - result.origin)

    def test_what_is_longer_than_the_drain_time_is_cut_then_and_said(
        self, place: Place, tmp_path: Path
    ) -> None:
        health = {"path": "/health", "interval": 0.2}
        way = Esteira(place, "blueGreen", health=health, rollout={"watch": 0}, drainTime=2)
        way.deploy(place.release())
        release = place.release()
        streams = Plan(
            place.server.host,
            PORT,
            str(tmp_path / "records.json"),
            rate=20,
            keep_alive=2,
            slow=0,
            uploads=0,
            stream_time=15,
        )
        with (load := Load(streams)):
            time.sleep(1)
            deployed = way.deploy(release)
        assert "3 requests or streams were still open after 2." in deployed.text
        kinds = [load.result.kinds[kind] for kind, *_ in load.result.failures]
        assert sorted(kinds) == ["download", "events", "websocket"], load.result.table()
        # The line about the switch may come a little late.
        earliest = deployed.said_at("switched to ") + 1.9
        assert all(ended > earliest for _, _, ended, _ in load.result.failures)
        assert all(reason.startswith("cut") for *_, reason in load.result.failures)
