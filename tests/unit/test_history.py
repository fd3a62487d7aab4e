"""What is made of the servers' release logs."""

from __future__ import annotations

import json
import os
from datetime import datetime, timezone
from typing import Any

import pytest

from components.history import Entry, deployer, parse_history, parse_time, served_before

A, B, C = "a" * 40, "b" * 40, "c" * 40
DIRTY = f"{C}-dirty-0123456789ab"


def line(tag: str, result: str = "deployed", minute: int = 0, **more: Any) -> str:
    """Return one line of a log, as a server writes it."""
    values = {
        "time": f"2026-11-26T14:{minute:02}:00Z",
        "stack": "esteira/prod/parasite",
        "server": "web",
        "commit": tag[:40],
        "tag": tag,
        "digest": "sha256:" + "0" * 64,
        "who": "ana@laptop",
        "asked": "2026-11-26 14:00:00 UTC",
        "found": "",
        "user": "deploy",
        "from": "192.0.2.7",
        "seconds": 12.3,
        "result": result,
        "cause": "",
    }
    return json.dumps({**values, **more})


def log(*tags: str | tuple[str, str]) -> tuple[Entry, ...]:
    """Return a log of deployments, one a minute; a pair is a tag and its result."""
    pairs = [(tag, "deployed") if isinstance(tag, str) else tag for tag in tags]
    return parse_history(line(tag, result, minute) for minute, (tag, result) in enumerate(pairs))


class TestParse:
    """One JSON line a deployment."""

    def test_the_whole(self) -> None:
        [found] = parse_history([line(A, "failed", cause="it was sick", found="nothing")])
        assert found == Entry(
            time=datetime(2026, 11, 26, 14, 0, tzinfo=timezone.utc),
            commit=A,
            tag=A,
            digest="sha256:" + "0" * 64,
            who="ana@laptop",
            user="deploy",
            origin="192.0.2.7",
            found="nothing",
            seconds=12.3,
            result="failed",
            cause="it was sick",
        )
        assert not found.serves

    @pytest.mark.parametrize("text", ["", "{", "[]", "3", "{}", line(A, time="yesterday"), line(A)[:-1]])
    def test_what_is_no_line_is_passed_over(self, text: str) -> None:
        assert [entry.commit for entry in parse_history([line(B), text])] == [B]

    def test_two_users_logs_are_one(self) -> None:
        found = parse_history([line(B, minute=2), line(A, minute=1), line(C, minute=3)])
        assert [entry.commit for entry in found] == [A, B, C]

    def test_a_time_of_docker_and_one_of_date(self) -> None:
        assert parse_time("2026-11-26T14:00:01.123456789Z") == parse_time("2026-11-26T14:00:01Z")

    def test_a_deployment_that_was_cut_off_has_no_length(self) -> None:
        assert parse_history([line(A, "cut off", seconds=None)])[0].seconds is None


class TestServedBefore:
    """Back is where one came from; going back twice goes back twice."""

    @pytest.mark.parametrize(
        ("entries", "serving", "before"),
        [
            (log(), A, None),
            (log(A), A, None),
            (log(A, B), B, A),
            (log(A, B, C), C, B),
            (log(A, B, C, B), B, A),
            (log(A, B, C, B, A), A, None),
            (log(A, B, C, B, C), C, B),
            (log(A, B, B, B), B, A),
            (log(A, B, (C, "failed")), B, A),
            (log(A, (B, "taken back"), C), C, A),
            (log(A, (A, "unchanged"), B, (B, "repaired")), B, A),
            (log(A, DIRTY, B), B, A),
            (log(A, DIRTY), DIRTY, A),
            (log(DIRTY, B), B, None),
            (log(A, B), C, B),
        ],
    )
    def test_it(self, entries: tuple[Entry, ...], serving: str, before: str | None) -> None:
        assert served_before(entries, serving) == before


class TestDeployer:
    """Who is named in a log."""

    def test_a_person_at_a_machine(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("LOGNAME", "ana")
        assert deployer({"GITLAB_USER_LOGIN": "ana"}, "laptop") == "ana@laptop"

    def test_a_user_without_a_name(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A job's container may run as a number that its /etc/passwd does not have."""
        for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr(os, "getuid", lambda: 1000710000)
        assert deployer({}, "runner") == "uid 1000710000@runner"

    def test_the_person_behind_a_job(self) -> None:
        job = {
            "GITLAB_USER_LOGIN": "ana",
            "CI_JOB_URL": "https://gitlab.example.com/g/p/-/jobs/7",
            "CI_JOB_ID": "7",
        }
        assert deployer(job, "runner") == "ana in https://gitlab.example.com/g/p/-/jobs/7"
