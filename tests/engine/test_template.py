"""Another program has the components as a package: by `pulumi new`, and in a program that knows no Python of ours."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.engine.stack import Stack, shows
from tests.live.machines import Machine
from tests.live.project import REPOSITORY

TEMPLATE = REPOSITORY / "template"
REMOTE_PROGRAM = """\
import pulumi


class Application(pulumi.ComponentResource):
    image: pulumi.Output[str]
    releases: pulumi.Output[dict]

    def __init__(self, name):
        super().__init__("esteira:index:Application", name, {"image": None, "releases": None}, None, remote=True)


application = Application("app")
pulumi.export("image", application.image)
pulumi.export("releases", application.releases)
"""
"""What Pulumi generates for a language, in Python: the component is known by its name only."""


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give an environment with this repository installed as a package, and nothing of the repository on its path."""
    environment = tmp_path_factory.mktemp("package") / "environment"
    source = environment.parent / "source"
    source.mkdir()
    for name in ("components", "pyproject.toml", "README.md", "LICENSE"):
        whole = REPOSITORY / name
        if whole.is_dir():
            shutil.copytree(whole, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(whole, source / name)
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
    packages = next((environment / "lib").glob("python*/site-packages"))
    (packages / "zz-rest.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    pip = [str(environment / "bin/python"), "-m", "pip", "install", "-q", "--no-input", "--no-deps"]
    done = subprocess.run([*pip, str(source)], capture_output=True, text=True, check=False, cwd="/")
    if "Could not find a version that satisfies the requirement setuptools" in done.stderr:
        pytest.skip("the package cannot be built: setuptools cannot be downloaded")
    assert done.returncode == 0, done.stderr
    return environment


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give what `pulumi new` makes of the template, without its packages and without a stack."""
    folder = tmp_path_factory.mktemp("new") / "esteira"
    folder.mkdir()
    subprocess.run(
        [
            "pulumi",
            "new",
            str(TEMPLATE),
            "--generate-only",
            "--yes",
            "--name",
            "esteira",
            "--description",
            "A try",
        ],
        cwd=folder,
        check=True,
        capture_output=True,
    )
    return folder


@pytest.fixture(scope="module")
def stack(make_stack: Callable[[str], Stack], generated: Path, package: Path, one: Machine) -> Stack:
    """Give a stack whose program is the template's; nothing of this repository is in its folder."""
    made = make_stack("template")
    shutil.rmtree(made.root / "components")
    for name in ("__main__.py", "Pulumi.yaml", "esteira", ".venv"):
        (made.root / name).unlink()
    for name in ("__main__.py", "Pulumi.yaml"):
        shutil.copy(generated / name, made.root / name)
    (made.root / ".venv").symlink_to(package)
    made.commit()
    made.server(one)
    return made


class TestTemplate:
    """`pulumi new /path/to/template` gives a working start."""

    def test_it_gives_the_program_and_a_stack_file(self, generated: Path) -> None:
        assert {file.name for file in generated.iterdir()} >= {
            "Pulumi.yaml",
            "Pulumi.staging.yaml",
            "__main__.py",
            "requirements.txt",
        }
        project = yaml.safe_load((generated / "Pulumi.yaml").read_text())
        assert (project["name"], project["description"]) == ("esteira", "A try")
        assert "template" not in project
        settings = yaml.safe_load((generated / "Pulumi.staging.yaml").read_text())["config"]
        assert settings["esteira:container"]["name"] == "esteira"

    def test_a_mistake_is_told_as_ever(self, stack: Stack) -> None:
        stack.preview(keepReleases="many").expect_bad("esteira:keepReleases", "must be a whole number")

    def test_it_deploys(self, stack: Stack, one: Machine) -> None:
        stack.up().expect_good()
        assert shows(one, stack.head)
        outputs = {name: output.value for name, output in stack.automation.outputs().items()}
        assert outputs["releases"] == {"one": stack.head}
        assert "@sha256:" in outputs["image"]

    def test_no_path_of_this_machine_is_in_the_state(self, stack: Stack, package: Path) -> None:
        assert ".venv/bin/esteira-step" in stack.exported()
        assert str(package) not in stack.exported()

    def test_a_second_up_changes_nothing(self, stack: Stack) -> None:
        stack.up().expect_unchanged()


@pytest.fixture(scope="module")
def plugin(package: Path) -> Path:
    """Give the plugin as a program that the engine starts: its language host would install everything anew."""
    folder = package.parent / "plugin"
    folder.mkdir()
    program = folder / "pulumi-resource-esteira"
    program.write_text(f'#!/bin/sh\nexec {package}/bin/python {REPOSITORY}/plugin "$@"\n')
    program.chmod(0o755)
    return program


class TestOtherLanguages:
    """A program that has no package of ours gets the component from the plugin."""

    def test_the_schema_is_generated(self, plugin: Path) -> None:
        done = subprocess.run(
            ["pulumi", "package", "get-schema", str(plugin)], capture_output=True, text=True, check=True
        )
        schema = json.loads(done.stdout)
        # What the package is called in a language: @esteira/esteira in TypeScript.
        assert (schema["namespace"], schema["name"]) == ("esteira", "esteira")
        [(token, resource)] = schema["resources"].items()
        assert (token, resource["isComponent"]) == ("esteira:index:Application", True)
        assert resource["properties"].keys() == {"commit", "image", "digest", "addresses", "releases"}

    def test_it_declares_the_same(self, stack: Stack, plugin: Path, one: Machine) -> None:
        project = yaml.safe_load((stack.root / "Pulumi.yaml").read_text())
        project["plugins"] = {"providers": [{"name": "esteira", "path": str(plugin.parent)}]}
        (stack.root / "Pulumi.yaml").write_text(yaml.safe_dump(project))
        (stack.root / "__main__.py").write_text(REMOTE_PROGRAM)
        before = one.inspect("parasite")["Id"]

        stack.up().expect_good()
        assert one.inspect("parasite")["Id"] == before, "the same release of the same stack"
        outputs = {name: output.value for name, output in stack.automation.outputs().items()}
        assert outputs["releases"] == {"one": stack.head}
        stack.up().expect_unchanged()
