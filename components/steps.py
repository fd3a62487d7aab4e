"""How a declared command calls these components again: by the checkout's launcher, or the installed package's script.

The commands run on the machine that deploys, in the program's folder, and their text is kept in the state: it holds no
path of this machine where that can be helped.
"""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import NoReturn

from .errors import EsteiraError

SCRIPT = "esteira-step"
"""The installed package's script (pyproject.toml), beside its Python."""
STEPS = ("point-tag", "decide")


def command_line(step: str) -> str:
    """Return what runs a step such as ``point-tag``, quoted for a shell.

    The script is named as seen from the program's folder where it is in there (``.venv``): the same on every machine.
    """
    if __package__ == "components":
        return f"./esteira {step}"
    script, here = Path(sys.executable).with_name(SCRIPT), Path.cwd()
    name = script.relative_to(here) if script.is_relative_to(here) else script
    return f"{shlex.quote(str(name))} {step}"


def main(program: str = SCRIPT) -> NoReturn:
    """Run a step, as the launcher or the package's script; an error is one sentence, the last thing on the screen."""
    from .decision import decide  # noqa: PLC0415 - for the process that runs it only
    from .tagging import point_tag  # noqa: PLC0415

    step, arguments = (sys.argv[1:2] or [""])[0], sys.argv[2:]
    if step not in STEPS:
        sys.exit(f"Usage: {program} {'|'.join(STEPS)} …; it is run by `pulumi up`, not by hand.")
    try:
        (point_tag if step == "point-tag" else decide)(arguments, sys.stdin.read(), os.environ)
    except EsteiraError as error:
        sys.exit(f"Error: {error}")
    sys.exit(0)
