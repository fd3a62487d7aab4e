"""The program's own time in a preview of many servers: ``python -m bench.preview SERVERS`` is one such preview.

It is the whole program, from Python's start to its last output, under Pulumi's mocks: neither an engine nor a server
is waited for. What the servers and the registry would have said is put in their place.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.results import median

ROOT = Path(__file__).resolve().parent.parent
DIGEST = "sha256:" + "ab" * 32
HOST_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJl3dIeudNqd0DPMRD6OIh65tjkxFNOtwGcWB2gCgPhk"


def seconds(servers: int, rounds: int) -> float:
    """Measure a preview of so many servers in a process of its own: the median of some rounds, in seconds."""
    found = []
    for _ in range(rounds):
        begun = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", "bench.preview", str(servers)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        found.append(time.monotonic() - begun)
        declared = int(done.stdout.split()[-1]) if done.returncode == 0 else 0
        if declared < 3 * servers:
            raise AssertionError(
                f"a preview of {servers} servers declared {declared} resources:\n{done.stderr}"
            )
    return median(found)


def configuration(servers: int) -> dict[str, Any]:
    """Return a stack with so many servers that all run another commit."""
    return {
        "registry": "registry.example.com",
        "repository": "group/parasite",
        "registryUser": "pusher",
        "promote": True,
        "commit": "8e13f56a" * 5,
        "container": {"name": "parasite", "ports": ["8888:8000"], "environment": {"COLOUR": "red"}},
        "health": {"path": "/health"},
        "servers": [
            {"name": f"web-{number}", "host": f"web-{number}.example.com", "hostKey": HOST_KEY}
            for number in range(1, servers + 1)
        ],
    }


def _preview(servers: int) -> int:
    import json  # noqa: PLC0415 - what is measured is the program, with all that it loads
    import runpy  # noqa: PLC0415

    import pulumi  # noqa: PLC0415
    from pulumi.runtime import mocks  # noqa: PLC0415

    from components import image, reading  # noqa: PLC0415
    from components.settings import Settings  # noqa: PLC0415

    class Nothing(mocks.Mocks):
        """Every resource is as declared."""

        declared = 0

        def new_resource(self, args: mocks.MockResourceArgs) -> tuple[str | None, dict[Any, Any]]:
            Nothing.declared += 1
            return f"{args.name}-id", dict(args.inputs)

        def call(self, args: mocks.MockCallArgs) -> tuple[dict[Any, Any], list[tuple[str, str]] | None]:
            raise AssertionError(args.token)

    class Registry:
        """Has the image."""

        name = "registry.example.com/group/parasite"

        def digest(self, tag: str) -> str:  # noqa: ARG002 - any
            return DIGEST

        def platforms(self, digest: str) -> tuple[str, ...]:  # noqa: ARG002
            return ("linux/amd64",)

    def read(settings: Settings, owner: str, *_: object) -> Mapping[str, Any]:
        other = reading.ContainerReading(
            "running", owner, f"{Registry.name}@{DIGEST}", "0" * 64, "7" * 40, restart="always"
        )
        return {server.name: reading.Reading(other, (other,)) for server in settings.servers}

    vars(image)["from_settings"] = lambda _: Registry()
    vars(reading)["read_servers"] = read
    values = {**configuration(servers), "registryPassword": "x", "serverPassword": "x"}
    pulumi.runtime.set_all_config(
        {
            f"esteira:{key}": value if isinstance(value, str) else json.dumps(value)
            for key, value in values.items()
        },
        ["esteira:registryPassword", "esteira:serverPassword"],
    )
    mocks.set_mocks(Nothing(), project="esteira", stack="many", preview=True)

    def program() -> None:
        runpy.run_path(str(ROOT / "__main__.py"), run_name="__main__")

    pulumi.runtime.test(program)()  # type: ignore[no-untyped-call]
    return Nothing.declared


if __name__ == "__main__":
    print(_preview(int(sys.argv[1])))
