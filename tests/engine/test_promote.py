"""Two stacks of one checkout: staging builds, prod runs the very image that staging ran."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.engine.stack import Stack, shows
from tests.live.machines import Machine
from tests.live.project import changes
from tests.live.registry import Registry


@pytest.fixture(scope="module")
def stacks(make_stack: Callable[[str], Stack], one: Machine, two: Machine) -> tuple[Stack, Stack]:
    """Give staging on server one, where the first commit serves, and prod on server two, where nothing does."""
    staging = make_stack("promote")
    prod = staging.beside("prod")
    staging.server(one)
    staging.up().expect_good()
    prod.server(two)
    prod.settings |= {"promote": True, "movingTag": "prod"}
    del prod.settings["image"]
    return staging, prod


class TestPromote:
    """The same digest, nothing built, and a reason where there is nothing to promote."""

    def test_prod_runs_the_very_digest(
        self, stacks: tuple[Stack, Stack], one: Machine, two: Machine, registry: Registry
    ) -> None:
        staging, prod = stacks
        digest = registry.digest(staging.repository, staging.head)
        run = prod.up().expect_good()
        assert "docker:index:Image" not in run.screen
        assert shows(two, staging.head)
        assert one.inspect("parasite")["Config"]["Image"] == two.inspect("parasite")["Config"]["Image"]
        assert two.inspect("parasite")["Config"]["Image"].endswith(f"@{digest}")
        assert registry.digest(staging.repository, "prod") == digest

    def test_a_commit_that_was_never_built_fails_at_preview(
        self, stacks: tuple[Stack, Stack], two: Machine
    ) -> None:
        staging, prod = stacks
        served = staging.head
        commit = staging.commit()
        two.forget_calls()
        prod.preview().expect_bad(f"Commit {commit} has no image", "promote is on", "staging")
        assert [call for call in changes(two) if call[0] != "exec"] == []
        assert shows(two, served)

    def test_a_dirty_tree_is_refused_where_it_is_not_allowed(
        self, stacks: tuple[Stack, Stack], one: Machine
    ) -> None:
        staging, _ = stacks
        extra = staging.root / "app" / "extra.txt"
        extra.write_text("not committed")
        run = staging.pulumi("preview", allowDirty=False)
        run.expect_bad("app/extra.txt", "esteira:allowDirty: true")
        assert "unhandled error" not in run.screen, "the cause is not the last word"
        extra.unlink()
