"""What ends a failed rollout: an undo everywhere or, once it is decided, a confirmation everywhere; once."""

from __future__ import annotations

import threading

import pytest

from components import rollout
from components.errors import EsteiraError
from components.rollout import Rescue, rescue
from components.settings import ServerSettings, Settings
from tests.unit.test_deployment import deployed, servers
from tests.unit.wrong_settings import changed, load

COMMIT = "8e13f56" + "0" * 33
Ran = list[tuple[str, str, str]]


@pytest.fixture(autouse=True)
def ran(monkeypatch: pytest.MonkeyPatch) -> Ran:
    """Collect what is run on servers: (server, command, stdin). Server web-2 cannot be reached, web-1 refuses."""
    found: Ran = []
    lock = threading.Lock()
    monkeypatch.setattr(rollout, "_rescues", [])

    def run_on(
        _: Settings, server: ServerSettings, text: str, stdin: str, *, timeout: float
    ) -> tuple[int, str, str]:
        assert timeout > 90
        with lock:
            found.append((server.name, text, stdin))
        if server.name == "web-2":
            raise EsteiraError("The server web-2 does not answer.")
        return (
            (1, "a line\n", "warning: x\nerror: Its edge is gone.\n")
            if server.name == "web-1"
            else (0, "done\n", "")
        )

    monkeypatch.setattr(rollout, "run_on", run_on)
    return found


def made(known: int = 3) -> Rescue:
    """Return what ends a rollout over three servers, of which so many are known already."""
    settings = load(changed(*servers(3)))
    one = Rescue(settings, COMMIT)
    for server in settings.servers:
        for phase in ("candidate", "switch", "confirm"):
            one.add(f"app-{server.name}-{phase}", phase)
    for server in settings.servers[:known]:
        assert one.learn(server, f"undo {server.name}", f"confirm {server.name}", "given") == "given"
    return one


@pytest.mark.parametrize("phase", ["candidate", "switch"])
def test_before_the_confirmations_all_take_it_back(ran: Ran, phase: str) -> None:
    said = made().after([f"app-web-1-{phase}"])
    assert sorted(ran) == [(name, f"undo {name}", "given") for name in ("web", "web-1", "web-2")]
    assert len(said) == 2
    assert "Server web-1 was not reached to take commit 8e13f56 back: Its edge is gone. " in said[0]
    assert "within 180 s of its switch" in said[0]
    assert (
        "Server web-2 was not reached to take commit 8e13f56 back: The server web-2 does not answer. "
        in said[1]
    )
    assert "`pulumi up`" in said[1]


def test_after_that_all_are_confirmed(ran: Ran) -> None:
    said = made().after(["app-web-1-switch", "app-web-2-confirm"])
    assert sorted(ran) == [(name, f"confirm {name}", "given") for name in ("web", "web-1", "web-2")]
    assert (
        "Server web-2 is not confirmed: The server web-2 does not answer. All servers had switched" in said[1]
    )


def test_it_is_done_once(ran: Ran) -> None:
    one = made()
    one.after(["app-web-candidate"])
    assert one.after(["app-web-1-candidate"]) == []
    assert len(ran) == 3


def test_what_is_no_part_of_it_ends_nothing(ran: Ran) -> None:
    one = made()
    assert one.after(["app-image", "app-moving-tag"]) == []
    assert one.after([]) == []
    assert ran == []


def test_a_server_whose_command_was_never_complete_was_not_touched(ran: Ran) -> None:
    """The image failed, so there is no digest and nothing has run."""
    assert made(known=0).after(["app-web-candidate"]) == []
    assert ran == []


def test_the_rehearsal_tells_it(ran: Ran) -> None:
    made(known=1)
    said: list[str] = []
    rescue(["app-web-switch"], said.append)
    assert [name for name, *_ in ran] == ["web"]
    assert said == []


def test_a_deployment_knows_its_commands(ran: Ran) -> None:
    deployed(load(changed(*servers(2))))
    rescue(["parasite-web-confirm"], print)
    assert {name for name, *_ in ran} == {"web", "web-1"}
    for _, text, stdin in ran:
        assert text.startswith("sh -s -- confirm ")
        assert 'main "$@"' in stdin


def test_one_server_needs_none(ran: Ran) -> None:
    deployed(load(changed()))
    rescue(["parasite-web", "parasite-web-candidate"], print)
    assert ran == []
