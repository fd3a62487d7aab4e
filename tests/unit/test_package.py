"""What other programs install: the package holds all of the components, and nothing that it needs is missing."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from components.remote import SERVER_FILES
from components.settings import parse_stack_file
from components.steps import SCRIPT, command_line

tomllib = pytest.importorskip("tomllib", reason="Python 3.10 does not read TOML")

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
TEMPLATE = ROOT / "template"


def test_its_requirements_are_pinned_as_the_programs_own() -> None:
    pinned = {line for line in (ROOT / "requirements.txt").read_text().splitlines() if "==" in line}
    assert set(PROJECT["project"]["dependencies"]) <= pinned


def test_everything_that_the_components_import_is_required() -> None:
    names = {
        "gitlab": "python-gitlab",
        "dxf": "python-dxf",
        "yaml": "PyYAML",
        # What these bring along.
        "cryptography": "paramiko",
        "pydantic_core": "pydantic",
        "requests": "python-gitlab",
        "typing_extensions": "pydantic",
        "urllib3": "python-gitlab",
        "www_authenticate": "python-dxf",
    }
    required = {re.split("[=<>]", one)[0].lower() for one in PROJECT["project"]["dependencies"]}
    imported = set()
    for file in (ROOT / "components").glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                imported.add(str(node.module).partition(".")[0])
    theirs = imported - sys.stdlib_module_names - {"components"}
    assert {names.get(one, one.replace("_", "-")).lower() for one in theirs} <= required


def test_the_shell_program_is_in_it() -> None:
    tool = PROJECT["tool"]["setuptools"]
    assert tool["package-dir"] == {"esteira": "components", "esteira.server": "components/server"}
    assert tool["package-data"] == {"esteira.server": ["*.sh"]}
    assert all(name.endswith(".sh") and (ROOT / "components/server" / name).exists() for name in SERVER_FILES)
    assert not [
        path
        for path in (ROOT / "components").iterdir()
        if path.is_dir() and path.name not in {"server", "__pycache__"}
    ]


def test_it_works_under_its_own_name(tmp_path: Path) -> None:
    """Here the package is called `components`; installed it is `esteira`, and knows no other name."""
    shutil.copytree(ROOT / "components", tmp_path / "esteira", ignore=shutil.ignore_patterns("__pycache__"))
    program = (
        "import sys, esteira.application, esteira.gitlab, esteira.settings_schema, esteira.steps\n"
        "assert 'components' not in sys.modules\n"
        "print(esteira.steps.command_line('point-tag'))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(f"/{SCRIPT} point-tag\n")
    assert command_line("point-tag") == "./esteira point-tag"


def test_the_templates_stack_file_is_as_a_persons_own() -> None:
    text = (TEMPLATE / "Pulumi.staging.yaml").read_text()
    assert set(re.findall(r"\$\{(\w+)\}", text)) == {"PROJECT"}
    values = parse_stack_file(TEMPLATE / "Pulumi.staging.yaml").values
    assert {"registry", "repository", "container", "health", "servers"} <= values.keys()


def test_template_and_program_want_the_same_engine() -> None:
    template, program = (yaml.safe_load((folder / "Pulumi.yaml").read_text()) for folder in (TEMPLATE, ROOT))
    for key in ("requiredPulumiVersion", "runtime"):
        assert template[key] == program[key]
