"""The bench says of every figure that must hold whether it holds, by what it measured and by nothing else."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from bench import preview
from bench.latest import Moved
from bench.load import KINDS
from bench.measure import Times, UnderLoad
from bench.place import Release
from bench.program import Fleet, NoOp, Rollback
from bench.report import Machine, Promise, Report
from bench.results import Result
from bench.ways import Deployed

MACHINE = Machine(
    processor="EPYC",
    cores=2,
    memory_gigabytes=8.0,
    system="Debian",
    kernel="6.1",
    docker="20.10.24",
    edge="v2.6.2",
    python="3.11.7",
    engine="3.260.0",
    date="2026-11-26 16:10 UTC",
    waiting=0.1,
)


def load(
    title: str, *, dark: Sequence[tuple[float, float]] = (), releases: int = 2, commands: int = 2
) -> UnderLoad:
    """Make a load of 100 requests a second, those in ``dark`` refused, with a release at each odd second."""
    records = []
    for number in range(100 * (2 * releases + 1)):
        sent = number / 100
        failed = any(since <= sent < until for since, until in dark)
        records.append((0, sent, sent + 0.004, "not connected: refused" if failed else ""))
    result = Result(KINDS, 0.0, 2 * releases + 1.0, tuple(records), 0.001, 0.001)
    deployed = [
        Deployed(Release(number, "image", "tag"), 1.0 + 2 * number, 2.0 + 2 * number)
        for number in range(releases)
    ]
    return UnderLoad(title, result, deployed, commands * releases)


def times(*, beyond: float = 0.6, recreate: float = 1.1) -> Times:
    found = Times(
        own_stop=[0.1],
        own_start=[0.4],
        own_boot=[0.5],
        own=[1.0],
        procedure=[1.5],
        recreate=[recreate],
        recreate_answer=[1.2],
        switched=[beyond + 0.5],
        switched_boot=[0.5],
        switched_beyond=[beyond],
        command=[0.03],
    )
    found.outage = {"procedure": [1.5], "blueGreen": [0.02]}
    found.wall = {"procedure": [1.0], "blueGreen": [2.0]}
    found.calls = {"switch": [14]}
    return found


def report(**changes: object) -> Report:
    """Make a report in which everything holds, but for the changes."""
    values: dict[str, object] = {
        "machine": MACHINE,
        "boot": 0.5,
        "rate": 200,
        "loads": [load("procedure", dark=[(1, 2.5)]), load("recreate", dark=[(1, 2)]), load("blueGreen")],
        "adoption": load("blueGreen", dark=[(1, 1.5)], releases=1),
        "times": times(),
        "latest": [Moved("procedure", 9000, 50_000_000, 2.0), Moved("Esteira", 4000, 9000, 0.4)],
        "no_op": NoOp([2.0, 2.2, 2.1], [1.5, 1.6, 1.4], 2),
        "rollback": Rollback([7.0], [0.5], [5.0], [0.5], [4.0], [0.5], [3.9], [0.4]),
        "fleets": [Fleet(1, [10.0], 2, 2), Fleet(4, [15.0], 3, 2), Fleet(8, [24.0], 3, 2)],
        "fleet_boot": 3.0,
        "previews": {50: 1.0, 100: 1.5, 200: 2.5},
        "seconds": 900.0,
    }
    return Report(**{**values, **changes})  # type: ignore[arg-type]


def verdicts(found: Report) -> Mapping[str, Promise]:
    return {one.text: one for one in found.promises()}


class TestPromises:
    """A figure that is worse than its bound is said, each by itself, and makes the bench fail."""

    def test_all_hold(self) -> None:
        found = report()
        assert found.broken() == []
        assert Counter(one.holds for one in found.promises()) == {True: 12}
        assert "DOES NOT HOLD" not in found.text()

    @pytest.mark.parametrize(
        ("words", "changes"),
        [
            ("failed requests in 2 releases", {"loads": [load("blueGreen", dark=[(1.5, 1.505)])]}),
            ("SSH commands a release on one server", {"loads": [load("blueGreen", commands=3)]}),
            ("beyond the boot", {"times": times(beyond=1.01)}),
            ("more than the container's own", {"times": times(recreate=1.31)}),
            ("a no-op up", {"no_op": NoOp([2.3], [1.5], 2)}),
            (
                "a rollback with the registry",
                {"rollback": Rollback([7], [0.5], [5], [0.5], [4.6], [0.5], [3.9], [0.4])},
            ),
            (
                "a rollback without the registry",
                {"rollback": Rollback([7], [0.5], [5], [0.5], [4], [0.5], [4.7], [0.4])},
            ),
            ("4 servers beside 1", {"fleets": [Fleet(1, [10.0], 2, 2), Fleet(4, [20.1], 3, 2)]}),
            ("8 servers beside 1", {"fleets": [Fleet(1, [10.0], 2, 2), Fleet(8, [30.1], 3, 2)]}),
            ("SSH commands per server", {"fleets": [Fleet(1, [10.0], 2, 2), Fleet(4, [15.0], 4, 2)]}),
            ("the program's own time", {"previews": {50: 4.0, 100: 7.0, 200: 10.1}}),
            ("one more server costs", {"previews": {50: 1.0, 100: 1.5, 200: 3.1}}),
        ],
    )
    def test_each_can_be_broken(self, words: str, changes: dict[str, object]) -> None:
        found = report(**changes)
        assert [one for one in found.broken() if words in one] == found.broken() != []
        assert found.text().count("DOES NOT HOLD") == 1

    def test_without_an_engine_a_no_op_is_not_measured_and_nothing_is_taken_off(self) -> None:
        """A bound that cannot be checked does not hold by that; and a rollback has no start-up to leave out."""
        found = report(no_op=NoOp([2.0], [], 1), machine=replace(MACHINE, engine="none"))
        promise = next(one for text, one in verdicts(found).items() if text.startswith("a no-op"))
        assert (promise.holds, promise.verdict) == (None, "not measured")
        assert found.rollback.work("forward", 0.0) == [6.5]
        assert "by the rehearsal, without an engine" in found.text()

    def test_a_rollback_s_own_work_is_without_start_up_and_boot(self) -> None:
        found = Rollback([7.0, 8.0], [0.5, 1.0])
        assert found.work("forward", 1.5) == [5.0, 5.5]


class TestPage:
    """The page says where, when and with what, shows the picture, and has the same figures as the file for machines."""

    def test_it_has_machine_versions_and_date(self) -> None:
        page = report().page("./esteira bench")
        for word in ("EPYC, 2 cores", "20.10.24", "v2.6.2", "3.11.7", "3.260.0", "2026-11-26", "bench.svg"):
            assert word in page

    def test_the_figures_are_those_of_the_promises(self) -> None:
        found = report()
        figures = json.loads(found.json())
        assert [one["measured"] for one in figures["mustHold"]] == [one.measured for one in found.promises()]
        assert figures["previews"]["200"] == 2.5
        assert figures["fleets"][2] == {"servers": 8, "seconds": [24.0], "commands": 3, "readings": 2}


class TestPicture:
    """The picture shows the release whose gap is the middle one."""

    def test_the_usual_release(self) -> None:
        shown = load("procedure", dark=[(1.0, 1.9), (3.0, 3.2), (5.0, 5.5)], releases=3)
        assert shown.usual() == 2
        rows = shown.timeline(shown.usual())
        assert sum(bad for _, _, bad, _ in rows) == 50
        assert rows[0][0] == -1000

    def test_it_is_drawn(self, tmp_path: Path) -> None:
        pytest.importorskip("matplotlib", reason="the bench installs matplotlib when it is run")
        from bench.picture import draw

        draw(report().loads, "a title", tmp_path / "bench.svg")
        text = (tmp_path / "bench.svg").read_text()
        for word in (
            "a title",
            "procedure",
            "blueGreen: 0 failed in 2 releases",
            "answered",
            "requests a second",
        ):
            assert word in text


class TestPreview:
    """The preview that is measured is the whole program's."""

    def test_every_server_has_its_commands(self) -> None:
        assert preview.seconds(3, 1) > 0

    def test_one_that_declares_less_is_no_measurement(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setattr(preview, "ROOT", tmp_path)
        with pytest.raises(AssertionError, match="declared 0 resources"):
            preview.seconds(3, 1)
