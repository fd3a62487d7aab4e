"""What Docker leaves out of a build is what components/dockerignore.py says."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
from pathlib import Path

from rehearsal.image import find_builder
from tests.live.machines import Machine
from tests.unit.test_dockerignore import CASES, TREE, make


def test_every_case(builder: Machine, tmp_path: Path) -> None:
    found: dict[str, tuple[str, ...]] = {}
    chosen = find_builder(os.environ)
    assert chosen.buildkit
    command = [chosen.client, *(word for word in chosen.command if word != "--load")]
    for number, text in enumerate(CASES):
        context = tmp_path / str(number)
        make(context)
        # The Dockerfile is beside the context, so that only its own ignore file is in question.
        dockerfile = tmp_path / f"Dockerfile{number}"
        dockerfile.write_text("FROM scratch\nCOPY . /\n")
        (tmp_path / f"{dockerfile.name}.dockerignore").write_text(text)
        done = subprocess.run(
            [*command, "--file", str(dockerfile), "--output", "type=tar,dest=-", str(context)],
            env={**os.environ, **chosen.environment, "DOCKER_HOST": builder.docker_host},
            capture_output=True,
            check=False,
        )
        assert done.returncode == 0, f"{text!r}: {done.stderr.decode()}"
        with tarfile.open(fileobj=io.BytesIO(done.stdout)) as image:
            there = {entry.name for entry in image if entry.isfile()}
        found[text] = tuple(path for path in TREE if path not in there)
    assert found == CASES
