"""The road from a commit to a healthy container on a server, and back."""

from __future__ import annotations

from tests.live.machines import Machine
from tests.live.project import PORT, Project
from tests.live.registry import Registry


def test_a_commit_becomes_a_healthy_container(project: Project, one: Machine, registry: Registry) -> None:
    project.server(one)
    first = project.head
    outcome = project.up().expect_good()
    assert one.answers(PORT) == f"commit {first} text hello"
    digest = registry.digest(project.repository, first)
    assert digest is not None
    assert registry.digest(project.repository, "latest") == digest
    print(outcome.shown)
    print(one.docker("ps", "-a"))
    print(one.calls())
    o = project.up()
    print(o.shown)
