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
        load = Load(Plan(place.server.host, PORT, str(tmp_path / "records.json")))
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
