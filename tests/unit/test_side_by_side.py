"""Two test processes at once: what stays together, what comes first, and that nothing of it is lost in the report."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from cli import engine, testing
from tests.side_by_side import FOLDER, HEAVY, arrange, group

ROOT = FOLDER.parent


class TestGroup:
    """A test's group is handed to one process."""

    def test_heavy_ones_are_never_beside_each_other(self) -> None:
        assert {group(f"tests/{module}::test") for module in HEAVY} == {"heavy"}
        assert [module for module in HEAVY if not (FOLDER / module).exists()] == []

    def test_a_module_with_a_stack_or_a_release_of_its_own_stays_together(self) -> None:
        assert group("tests/engine/test_promote.py::TestPromote::test_a[x]") == "engine/test_promote.py"
        assert group("tests/live/test_bad_releases.py::test_a[x/y::z]") == "live/test_bad_releases.py"

    def test_the_other_live_tests_are_divided(self) -> None:
        node = "tests/live/test_release.py::TestUp::test_two_servers"
        assert group(node) == node

    def test_the_small_ones_come_last(self) -> None:
        nodes = [
            "tests/unit/test_cli.py::test",
            "tests/unit/test_image.py::test_b",
            "tests/unit/test_image.py::test_a",
            "tests/engine/test_promote.py::test",
            "tests/live/test_release.py::test",
            "tests/live/test_load.py::test",
        ]
        items: list[pytest.Item] = [SimpleNamespace(nodeid=node) for node in nodes]  # type: ignore[misc]
        arrange(items)
        assert [item.nodeid for item in items] == [*nodes[:2:-1], *nodes[1:3], nodes[0]]


class TestCommand:
    """Everything is divided; what a person chose is run by one process, so that it begins at once."""

    @pytest.mark.parametrize(
        ("arguments", "cores", "said", "divided"),
        [
            ([], 8, "", ["-n", "2"]),
            (["-k", "port"], 2, "", ["-n", "2"]),
            ([], 1, "", []),
            ([], 8, "1", []),
            ([], 8, "3", ["-n", "3"]),
            (["tests/unit"], 2, "", ["-n", "3"]),
            (["tests/unit/"], 2, "1", []),
            (["tests/unit/test_cli.py"], 2, "", []),
            (["-n0"], 2, "", []),
            (["--pdb"], 2, "", []),
        ],
    )
    def test_how_many(
        self, arguments: list[str], cores: int, said: str, divided: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked: list[list[str]] = []
        monkeypatch.setattr("os.cpu_count", lambda: cores)
        monkeypatch.setenv(testing.PROCESSES, said)
        monkeypatch.setattr(testing, "_prepare_live", lambda _: "not here")
        monkeypatch.setattr(testing, "is_required", lambda: False)
        monkeypatch.setattr(engine, "find", lambda *_, **__: engine.Missing("not here"))

        def run(argv: list[str], **_: object) -> SimpleNamespace:
            asked.append(argv)
            return SimpleNamespace(returncode=0)

        monkeypatch.setattr(subprocess, "run", run)
        place = SimpleNamespace(root=ROOT)
        assert testing.run(place, arguments) == 0  # type: ignore[arg-type]
        assert asked == [[sys.executable, "-m", "pytest", *divided, *arguments]]


def test_the_report_of_two_processes_has_all_that_one_has(tmp_path: Path) -> None:
    """Figures, layers with the reason why one is skipped, and pytest's own last line."""
    for name in ("unit", "live", "engine"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
    (tmp_path / "conftest.py").write_text(
        "from pathlib import Path\n"
        "import tests.conftest as whole\n"
        "from tests.conftest import *\n"
        "from tests.conftest import pytest_plugins\n"
        "whole.FOLDER = Path(__file__).parent\n"
    )
    figure = "def test_{0}(record): record('figure {0}')\n"
    (tmp_path / "unit" / "test_one.py").write_text(figure.format("a") + figure.format("b"))
    (tmp_path / "unit" / "test_two.py").write_text(figure.format("c"))
    (tmp_path / "live" / "test_three.py").write_text("def test_d(): assert False\n")
    said = subprocess.run(
        [sys.executable, "-m", "pytest", "-n", "2", "-p", "no:cacheprovider", "-rs"],
        cwd=tmp_path,
        env={
            "PATH": "/usr/bin:/bin",
            "PYTHONPATH": str(ROOT),
            "ESTEIRA_SKIP_LIVE": "there is no Docker here",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    lines = said.stdout.splitlines()
    assert said.returncode == 0, said.stdout + said.stderr
    assert {"figure a", "figure b", "figure c"} <= set(lines), said.stdout
    assert "unit    ran, 3 tests" in lines
    assert "live    SKIPPED: there is no Docker here" in lines
    assert "engine  no test of it was chosen" in lines
    assert "3 passed, 1 skipped" in lines[-1]
