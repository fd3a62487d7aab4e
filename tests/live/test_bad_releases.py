"""Releases that are wrong in every way a release can be: a clear error each, and the old release undisturbed."""

from __future__ import annotations

import http.client
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.live import images
from tests.live.driving import PORT, Application, Images, Prober, Release
from tests.live.machines import Machine, Room, wait_for
from tests.live.registry import Registry


@pytest.fixture(scope="module")
def _app(_machines: list[Machine], registry: Registry) -> Application:
    machine = _machines[0]
    machine.wipe(keep_images=[images.EDGE, images.base_name(registry)])
    return Application(machine, registry)


@pytest.fixture(scope="module")
def good(_app: Application, app_images: Images) -> Release:
    """Give the release that serves while all others fail."""
    release = Release(app_images.make())
    _app.up(release)
    return release


@pytest.fixture
def app(_app: Application, good: Release) -> Iterator[Application]:
    """Give the declaration, watched: afterwards ``good`` serves without one failed request, and nothing is left."""
    before = {**_app.values}
    with Prober(_app.machine.host) as prober:
        yield _app
        time.sleep(0.1)
    _app.values = before
    prober.expect_no_failure()
    _app.expect_settled(good)


CASES = [
    pytest.param({"exit_with": 3, "text": "no database"}, {}, {}, ["exit code 3"], id="exits at start"),
    pytest.param(
        {}, {"Entrypoint": ["/no/such"]}, {}, ["did not start", "/no/such"], id="has a wrong entrypoint"
    ),
    pytest.param({"listen": "127.0.0.1"}, {}, {}, ["not healthy", "refused"], id="listens on loopback only"),
    pytest.param({"port": 9000}, {}, {}, ["not healthy", "refused"], id="listens on another port"),
    pytest.param({"health_status": 500}, {}, {}, ["HTTP 500 from /health"], id="answers 500"),
    pytest.param({"boot_delay": 30}, {}, {}, ["did not get healthy within"], id="boots too slowly"),
    pytest.param(
        {"sick_after": 1}, {}, {}, ["after the switch", "points back"], id="falls ill after the switch"
    ),
    pytest.param(
        {"flaps": 1}, {}, {"rollout": {"watch": 1}}, ["after the switch", "points back"], id="flaps"
    ),
    pytest.param(
        {"eat_memory": 200},
        {},
        {"container": {"name": "parasite", "ports": [f"{PORT}:8000"], "memory": "32m"}},
        ["more memory than its limit", "container.memory"],
        id="needs more memory than its limit",
    ),
    pytest.param(
        {},
        {"Healthcheck": {"Test": ["CMD-SHELL", "false"], "Interval": 3 * 10**8, "Retries": 2}},
        {"health": {"test": "image", "interval": 0.2}},
        ["HEALTHCHECK calls it unhealthy"],
        id="has a HEALTHCHECK that fails",
    ),
    pytest.param(
        {"port": 9000},
        {},
        {"health": {"test": "tcp", "interval": 0.1, "startPeriod": 1, "retries": 2}},
        ["not healthy"],
        id="is probed by TCP at a port that nobody listens on",
    ),
    pytest.param(
        {}, {"architecture": "arm64"}, {}, ["arm64", "image.platform"], id="is for another processor"
    ),
    pytest.param(
        {},
        {},
        {"preDeploy": ["sh", "-c", "echo cannot migrate; exit 9"]},
        ["exit code 9"],
        id="preDeploy fails",
    ),
    pytest.param({}, {}, {"preDeploy": "/no/such"}, ["preDeploy failed"], id="preDeploy cannot be run"),
]


@pytest.mark.parametrize(("knobs", "image", "values", "words"), CASES)
def test_the_old_release_serves_on(
    app: Application,
    app_images: Images,
    *,
    knobs: dict[str, object],
    image: dict[str, object],
    values: dict[str, object],
    words: list[str],
) -> None:
    app.values.update(values)
    said = app.up_fails(Release(app_images.make(**image), knobs=knobs), *words)
    if "text" in knobs:
        assert f"| cannot start: {knobs['text']}" in said, said


@pytest.mark.parametrize(
    ("values", "image", "words"),
    [
        ({"health": {"test": "tcp"}}, {}, "connected"),
        ({"health": {"test": "none"}}, {}, "not asked"),
        ({"health": {}}, {}, "connected"),
        (
            {"health": {"interval": 0.2}},
            {"Healthcheck": {"Test": ["CMD-SHELL", "true"], "Interval": 3 * 10**8}},
            "HEALTHCHECK says healthy",
        ),
        ({"preDeploy": ["sh", "-c", "echo migrated for $ESTEIRA_COMMIT"]}, {}, "| migrated for "),
    ],
    ids=["tcp", "none", "auto", "the image's", "preDeploy"],
)
def test_other_gates_let_a_good_one_pass(
    app: Application,
    app_images: Images,
    good: Release,
    *,
    values: dict[str, object],
    image: dict[str, object],
    words: str,
) -> None:
    app.values.update(values)
    said = app.up(Release(app_images.make(**image)))
    assert words in said, said
    app.values = {key: value for key, value in app.values.items() if key != "preDeploy"}
    app.values["health"] = {"path": "/health", "interval": 0.1, "startPeriod": 1.5, "retries": 2}
    app.up(good)


@pytest.mark.parametrize("own", [None, ["env", "OF=the-image"]], ids=["no entrypoint", "an entrypoint"])
def test_pre_deploy_runs_as_it_stands(
    app: Application, app_images: Images, good: Release, own: list[str] | None
) -> None:
    """The image's own entrypoint stands before it, as Docker has it; a declared one, the application's, does not."""
    app.values["preDeploy"] = ["sh", "-c", "echo run with ${OF:-nothing} before it"]
    image = app_images.make(Entrypoint=own)
    said = app.up(Release(image))
    assert f"| run with {'the-image' if own else 'nothing'} before it" in said, said
    program = {"entrypoint": ["env", "python3", "-S"], "command": ["/app/app.py"]}
    container = app.values["container"]
    app.values["container"] = {**container, **program}
    said = app.up(Release(app_images.make(Entrypoint=own)))
    assert "| run with nothing before it" in said, said
    app.values["container"] = container
    del app.values["preDeploy"]
    app.up(good)


def test_a_pre_deploy_that_docker_did_not_start_is_none_that_went_well(
    app: Application, app_images: Images, good: Release
) -> None:
    app.values["preDeploy"] = ["sh", "-c", "echo ran"]
    with app.cut(1, "refuse", only="start --attach") as at:
        said = app.up_fails(Release(app_images.make()), "preDeploy failed with exit code unknown")
    assert at().startswith("start --attach")
    assert "| ran" not in said
    del app.values["preDeploy"]
    app.up(good)


def test_the_registry_goes_away_between_login_and_pull(
    app: Application, app_images: Images, registry: Registry, good: Release
) -> None:
    app.count()
    app.run("candidate", Release(app_images.make()))
    login = next(number for number, said in enumerate(app.count(), 1) if said.endswith(" login --username"))
    # This run has one command more: it removes that candidate.
    app.up(good)
    with app.cut(login + 1, "hold") as at:
        running = app.begin("candidate", Release(app_images.make()))
        wait_for(at, "the pull")
        assert " pull " in at()
        registry.stop()
        try:
            app.go_on()
            done = running.end()
        finally:
            registry.start()
    assert done.status == 1, done.shown
    assert "cannot be reached from server" in done.shown
    assert "serves on" in done.shown


def test_a_registry_that_stands_still_for_a_moment_is_asked_once_more(
    app: Application, app_images: Images, registry: Registry, good: Release
) -> None:
    release = Release(app_images.make())
    with registry.standing_still():
        running = app.begin("candidate", release)
        running.wait_for("the registry has not answered in time: trying once more")
    done = running.end()
    assert done.status == 0, done.shown
    app.up(release)
    app.up(good)


def test_the_clock_jumps(app: Application, app_images: Images, good: Release) -> None:
    folder = app.machine.path("run/fake-clock")
    folder.mkdir()
    # Years back and forth, a jump at every look.
    date = folder / "date"
    date.write_text(
        "#!/bin/sh\nif mkdir /run/fake-clock/odd 2>/dev/null; then day=1970-01-02; "
        'else rmdir /run/fake-clock/odd; day=2099-01-01; fi\nexec /bin/date -d $day "$@"\n'
    )
    date.chmod(0o755)
    said = app.up(Release(app_images.make()), programs="/run/fake-clock")
    # Every duration that it tells is short and none is negative.
    assert all(float(seconds) < 30 for seconds in re.findall(r"(-?[0-9.]+) s\b", said)), said
    assert "-" not in "".join(re.findall(r"(\S+) s\b", said)), said
    bad = Release(app_images.make(), knobs={"health_status": 500})
    app.up_fails(bad, "did not get healthy within", programs="/run/fake-clock")
    app.up(good, programs="/run/fake-clock")


class TestDisk:
    """The server's disk is full, at any step."""

    @pytest.fixture
    def small(self, room: Room, registry: Registry, builder: Machine) -> Iterator[Machine]:
        """Give a server with a small disk of its own."""
        machine = room.machine("tiny", 14, disk_megabytes=450)
        machine.wait_until_up()
        images.load(machine, images.EDGE)
        images.pull_base(machine, registry)
        yield machine
        machine.stop()

    def test_full(self, small: Machine, registry: Registry, app_images: Images) -> None:
        app = Application(small, registry)
        good, new = Release(app_images.make()), Release(app_images.make())
        app.up(good)

        def fill() -> None:
            for block in ("1M", "1k"):
                small.sh(f"dd if=/dev/zero bs={block} 2>/dev/null >>/var/lib/docker/fill; sync", check=False)

        with Prober(small.host) as prober:
            fill()
            app.up_fails(new, "disk of server tiny is full", "serves on")
            small.sh("rm /var/lib/docker/fill")
            assert app.leftovers(good) == []
            # Full between the phases: the switch needs no room, or says so.
            done = app.run("candidate", new)
            assert done.status == 0, done.shown
            fill()
            done = app.run("switch", new)
            assert done.status in {0, 1}, done.shown
            if done.status == 1:
                assert "disk" in done.shown or "space" in done.shown, done.shown
            small.sh("rm /var/lib/docker/fill")
            app.up(new)
            time.sleep(0.1)
        prober.expect_no_failure()
        app.expect_settled(new)


class TestEnding:
    """The old release ends when it has no more traffic, in the way that it wants."""

    def test_requests_in_flight_finish_and_streams_are_cut_at_the_end_of_the_drain_time(
        self, app: Application, app_images: Images, good: Release
    ) -> None:
        def slow(seconds: float) -> str:
            try:
                return app.machine.http_get(PORT, f"/slow?seconds={seconds}", timeout=60)[1]
            except (OSError, http.client.HTTPException) as error:
                return f"cut: {error!r}"

        app.values["drainTime"] = 15
        with ThreadPoolExecutor() as pool:
            in_flight = [pool.submit(slow, 8) for _ in range(3)]
            time.sleep(0.3)
            said = app.up(Release(app_images.make(), knobs={"ignore_sigterm": 1}))
            assert [one.result() for one in in_flight] == ["late"] * 3
        assert "drained" in said
        app.values["drainTime"] = 1
        app.values["container"] = {**app.values["container"], "stopTimeout": 1}
        with ThreadPoolExecutor() as pool:
            cut = [pool.submit(slow, 30) for _ in range(2)]
            time.sleep(0.3)
            said = app.up(Release(app_images.make()))
            assert all(one.result() != "late" for one in cut)
        assert "2 requests or streams were still open after 1." in said, said
        app.values["container"] = {**app.values["container"], "stopTimeout": 3}
        app.up(good)

    def test_one_that_ignores_its_stop_signal_is_killed_after_its_timeout(
        self, app: Application, app_images: Images, good: Release
    ) -> None:
        app.values["container"] = {**app.values["container"], "stopTimeout": 1}
        app.up(Release(app_images.make(), knobs={"ignore_sigterm": 1}))
        app.values["container"] = {**app.values["container"], "stopTimeout": 3}
        assert "did not stop within 1 s of SIGTERM and was killed" in app.up(good)

    def test_the_images_stop_signal_is_sent(
        self, app: Application, app_images: Images, good: Release
    ) -> None:
        other = Release(app_images.make(StopSignal="SIGUSR1"))
        app.up(other)
        app.up(good)
        ended = [
            one["State"]["ExitCode"]
            for one in app.engine.containers()
            if one["Config"]["Labels"].get("esteira.commit") == other.commit
        ]
        assert ended == [10]
