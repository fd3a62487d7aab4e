"""What the engine does, and shows, from the first `up` over changes, failures, drift and rollback to `destroy`."""

from __future__ import annotations

import hashlib
import re

from tests.engine.stack import Run, Stack, shows
from tests.live.machines import Machine
from tests.live.project import PORT, changes
from tests.live.registry import Registry


def changed_lines(run: Run) -> set[str]:
    """Lines of commands' texts that a preview with --diff shows as removed or added."""
    found = re.findall(r"(?m)^ +([-+]   .*?) ?\\?$", run.screen)
    return {" ".join(line.split()) for line in found}


class TestPreview:
    """A person sees what will happen: which server, which commit, which setting."""

    def test_an_up_that_follows_changes_nothing_and_touches_no_server(
        self, stack: Stack, one: Machine
    ) -> None:
        assert shows(one, stack.head)
        one.forget_calls()
        before = one.sshd_log().count("Accepted")
        stack.up().expect_unchanged()
        assert one.sshd_log().count("Accepted") - before == 1, "more than the reading"
        assert [call for call in changes(one) if call[0] != "exec"] == []
        assert not [line for line in one.sshd_log().splitlines() if "Failed" in line]

    def test_a_changed_setting_is_the_one_line_that_is_shown(self, stack: Stack, one: Machine) -> None:
        stack.settings["container"]["environment"] = {"COLOUR": "red"}
        run = stack.pulumi("preview", "--diff").expect_good()
        assert changed_lines(run) == {"+ --env=COLOUR=red"}
        assert "[unknown]" not in run.screen
        for word in ("take_lock", "docker ", "#!/", "esteira-reading"):
            assert word not in run.screen, "script text"
        assert run.told == [f"server one has commit {stack.head[:7]} with other settings than declared"]
        stack.up().expect_good()
        assert one.answers(PORT, "/environment/COLOUR") == hashlib.sha256(b"red").hexdigest()

    def test_a_new_commit_is_shown_for_each_server(self, stack: Stack, one: Machine) -> None:
        before, after = stack.head, stack.commit(text="second")
        plain = stack.preview().expect_good()
        assert f"server one has commit {before[:7]}; declared is commit {after[:7]}" in plain.told
        assert "[unknown]" not in plain.screen
        run = stack.preview(diff=True).expect_good()
        assert {f"- commit={before}", f"+ commit={after}"} <= changed_lines(run)
        assert "take_lock" not in run.screen
        assert shows(one, before)
        stack.up().expect_good()
        assert shows(one, after)
        assert stack.registry.digest(stack.repository, "latest") == stack.registry.digest(
            stack.repository, after
        )

    def test_a_changed_secret_runs_the_phases_and_is_not_shown(self, stack: Stack, one: Machine) -> None:
        stack.secrets["secretEnvironment"] = {"TOKEN": "first-81c7"}
        run = stack.preview(diff=True).expect_good()
        assert run.changes["update"] >= 2
        assert "first-81c7" not in run.screen
        stack.up().expect_good()
        assert one.answers(PORT, "/environment/TOKEN") == hashlib.sha256(b"first-81c7").hexdigest()


class TestFailingRelease:
    """Exit status, the new container's last lines, the old release serving; then the repair."""

    def test_it_changes_nothing_and_the_repair_is_green(
        self, stack: Stack, one: Machine, registry: Registry
    ) -> None:
        good = stack.head
        latest = registry.digest(stack.repository, "latest")
        bad = stack.commit(health_status=500, log_lines=3, text="broken")
        run = stack.pulumi("up", "--yes", "--skip-preview")
        run.expect_bad(
            "log line 2 of broken", "HTTP 500 from /health", f"commit {good[:7]} serves on", bad[:7]
        )
        assert shows(one, good)
        assert registry.digest(stack.repository, "latest") == latest
        assert not [name for name in one.containers() if "candidate" in name]
        # The environment repairs the very same commit.
        stack.settings["container"]["environment"] = {"KNOB_HEALTH_STATUS": "200"}
        stack.up().expect_good()
        assert shows(one, bad)
        del stack.settings["container"]["environment"]
        stack.commit(text="repaired")
        stack.up().expect_good()
        assert shows(one, stack.head)
        assert registry.digest(stack.repository, "latest") == registry.digest(stack.repository, stack.head)


class TestBack:
    """An earlier commit by the setting: its kept release serves, and its image stays what it was."""

    def test_nothing_is_built_or_pulled(self, stack: Stack, one: Machine, registry: Registry) -> None:
        earlier = stack.head
        container = one.inspect("parasite")["Id"]
        digest = registry.digest(stack.repository, earlier)
        stack.commit(text="newer")
        stack.up().expect_good()
        one.forget_calls()
        since = registry.log_size()
        run = stack.up(commit=earlier).expect_good()
        assert "docker:index:Image" not in "".join(
            line for line in run.screen.splitlines() if "delet" not in line
        ), "something was built"
        assert shows(one, earlier)
        assert one.inspect("parasite")["Id"] == container, "not the kept release"
        assert not [call for call in one.calls() if "pull" in call or "login" in call]
        assert not [line for line in registry.requests(since) if '"PUT' in line and f"/{earlier}" in line]
        assert registry.digest(stack.repository, earlier) == digest
        assert registry.digest(stack.repository, "latest") == digest


class TestDrift:
    """What somebody did to a server by hand is named by the preview and repaired by the next up, there alone."""

    def test_each_kind_is_named_repaired_and_over(self, stack: Stack, one: Machine, two: Machine) -> None:
        stack.server(two)
        stack.up().expect_good()
        commit = stack.head[:7]
        by_hand = f"docker run -d --name parasite {one.inspect('parasite')['Image']} sleep 1000"
        for deed, named in (
            ("docker stop -t 1 parasite", f"server one has commit {commit}, exited"),
            ("docker rm -f parasite", "server one has no container of that name; declared is commit"),
            (
                f"docker rm -f parasite && {by_hand}",
                "server one has a container that Esteira did not make; declared is commit",
            ),
        ):
            one.sh(deed)
            two.forget_calls()
            if deed.startswith("docker stop"):
                assert stack.preview().expect_good().told == [named]
            run = stack.up().expect_good()
            assert len(run.told) == 1
            assert run.told[0].startswith(named)
            assert run.changes["update"] == 5, "more than this server's request and phases, and the decision"
            assert [call for call in changes(two) if call[0] != "exec"] == []
            assert shows(one, stack.head)
        stack.up().expect_unchanged()
        # What ran there was somebody's: it is kept, stopped.
        kept = [name for name in one.containers() if "before" in name]
        assert len(kept) == 1
        one.docker("rm", "-f", *kept)


class TestFleet:
    """Servers come, go and get other names."""

    def test_a_removed_server_is_cleaned_and_the_other_left_alone(
        self, stack: Stack, one: Machine, two: Machine
    ) -> None:
        if len(stack.settings["servers"]) == 1:
            stack.server(two)
            stack.up().expect_good()
        two.docker("run", "-d", "--name", "theirs", stack.settings["edgeImage"], "sleep", "1000")
        one.forget_calls()
        stack.settings["servers"].pop()
        run = stack.up().expect_good()
        assert "delete" in run.changes
        assert two.containers() == ["theirs"]
        assert shows(one, stack.head)
        assert [call for call in changes(one) if call[0] != "exec"] == []

    def test_a_server_of_another_name_goes_on_serving(self, stack: Stack, one: Machine) -> None:
        container = one.inspect("parasite")["Id"]
        stack.settings["servers"][0]["name"] = "uno"
        stack.up().expect_good()
        assert shows(one, stack.head), "the server's new name took the service down"
        assert one.inspect("parasite")["Id"] == container
        stack.up().expect_unchanged()


class TestInPlace:
    """Changes of what makes a container another one leave nothing of the old one."""

    def test_the_strategy_changes_either_way(self, stack: Stack, one: Machine) -> None:
        stack.up(strategy="recreate").expect_good()
        assert shows(one, stack.head)
        assert "parasite-edge" not in one.containers()
        stack.up().expect_good()
        assert shows(one, stack.head)
        assert sorted(one.containers("status=running")) == ["parasite", "parasite-edge"]
        stack.up().expect_unchanged()

    def test_a_container_of_another_name_takes_the_old_one_s_place(self, stack: Stack, one: Machine) -> None:
        stack.settings["container"]["name"] = "guest"
        stack.up().expect_good()
        assert shows(one, stack.head)
        assert sorted(one.containers()) == ["guest", "guest-edge"]
        assert sorted(one.docker("volume", "ls", "-q").split()) == ["guest-edge", "guest-edge-data"]
        assert "esteira-parasite" not in one.docker("network", "ls", "--format", "{{.Name}}").split()
        stack.up().expect_unchanged()


class TestDestroy:
    """Only what the stack made goes; this is the file's last test."""

    def test_others_things_stay(self, stack: Stack, one: Machine, registry: Registry) -> None:
        one.docker(
            "run",
            "-d",
            "--name",
            "theirs",
            "-v",
            "their-data:/data",
            stack.settings["edgeImage"],
            "sleep",
            "99",
        )
        one.docker("network", "create", "their-network")
        stack.destroy().expect_good()
        assert one.containers() == ["theirs"]
        assert one.docker("volume", "ls", "-q").split() == ["their-data"]
        assert "their-network" in one.docker("network", "ls", "--format", "{{.Name}}").split()
        assert not [line for line in one.docker("image", "ls").splitlines() if stack.repository in line]
        assert one.answers(PORT) is None
        assert registry.digest(stack.repository, stack.head) is not None, "an image went from the registry"
        one.docker("network", "rm", "their-network")
