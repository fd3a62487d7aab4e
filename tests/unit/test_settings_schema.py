"""The schema that an editor checks stack files by agrees with the program: it refuses nothing that is right."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jsonschema  # openapi-core brings it
import pytest
import yaml

from components.settings import _StackFileLoader, secret_keys_of_model, settings_reference
from components.settings_schema import stack_file_schema, stack_file_schema_text
from tests.unit.wrong_settings import ABSENT, SECRETS, WRONG, Wrong, changed, right

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "docs/stack.schema.json"
CHECK = jsonschema.Draft7Validator(stack_file_schema())
SHIPPED = [*sorted(ROOT.glob("Pulumi.*.yaml")), ROOT / "template/Pulumi.staging.yaml"]
EXAMPLES = [
    (page.name, block)
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    for block in re.findall(r"^```yaml\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    if "esteira:" in block
]


def read(text: str) -> Any:
    return yaml.load(text, Loader=_StackFileLoader)  # noqa: S506 - a SafeLoader


def as_written(values: dict[str, Any]) -> dict[str, Any]:
    """Return the stack file that holds these values: a secret as Pulumi encrypts it."""

    def encrypted(value: object) -> object:
        if isinstance(value, dict):
            return {name: encrypted(item) for name, item in value.items()}
        return {"secure": "AAABAEr"}

    return {
        "config": {
            f"esteira:{key}": encrypted(value) if key in secret_keys_of_model() else value
            for key, value in values.items()
        }
    }


def faults(document: object) -> list[str]:
    return [f"{error.json_path}: {error.message}" for error in CHECK.iter_errors(document)]


def is_about_shape(case: Wrong) -> bool:
    """Tell whether a case is wrong in what an editor can see: a key or a value's kind, in plain settings."""
    told = re.search(
        r"There is no key|is a key of its own|must be (a list|a map|text|true or false|a whole number|a number)"
        r"|is not one of the possible words|is not a duration|YAML reads this as|The key has no value"
        r"|is not a restart policy|must be a duration",
        case.problem,
    )
    return bool(told) and not case.options and case.key.split(".")[0].split("[")[0] not in SECRETS


class TestTheFile:
    """``docs/stack.schema.json`` is what the model says."""

    def test_it_is_in_step(self) -> None:
        assert FILE.read_text() == stack_file_schema_text(), "python -m components.settings writes it"

    def test_it_is_a_schema(self) -> None:
        jsonschema.Draft7Validator.check_schema(stack_file_schema())

    def test_every_key_of_the_table_is_in_it_with_its_description(self) -> None:
        schema = stack_file_schema()
        for row in settings_reference():
            node: Any = {"properties": schema["properties"]["config"]["properties"]}
            for step in ("esteira:" + row.key).replace("[]", "").split("."):
                while "properties" not in node:
                    inner = node.get("items", node)
                    options = [inner, *inner.get("allOf", ()), *inner.get("anyOf", ())]
                    [reference] = [one["$ref"] for one in options if "$ref" in one]
                    node = schema["definitions"][reference.rpartition("/")[2]]
                node = node["properties"][step]
            assert node["description"].startswith(row.description), row.key


class TestRightFiles:
    """What the program takes, an editor does not complain of."""

    @pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.name)
    def test_shipped(self, file: Path) -> None:
        assert faults(read(file.read_text())) == []
        first = file.read_text().splitlines()[0]
        assert re.fullmatch(
            r"# yaml-language-server: \$schema=(https://\S+/)?docs/stack\.schema\.json", first
        )

    @pytest.mark.parametrize(
        ("page", "example"), EXAMPLES, ids=[f"{page}-{i}" for i, (page, _) in enumerate(EXAMPLES)]
    )
    def test_examples_of_the_pages(self, page: str, example: str) -> None:
        document = read(example)
        if "config" not in document:
            document = {"config": document}
        # An example shows a part of a file.
        document["config"].setdefault("esteira:container", {"name": "parasite"})
        assert faults(document) == []

    def test_everything_at_once(self) -> None:
        assert faults(as_written(right())) == []

    @pytest.mark.parametrize(
        "change",
        [
            ("commit", "0123ABC"),
            ("movingTag", "2026.11"),
            ("promote", "true"),
            ("keepReleases", "5"),
            ("image/buildArgs/TEXT", "two\nlines"),
            ("container/cpus", "0.5"),
            ("container/cpus", 2),
            ("container/restart", "on-failure:5"),
            ("container/restart", False),
            ("container/user", 1000),
            ("container/stopSignal", 15),
            ("container/stopTimeout", 0),
            ("container/command", "sh -c 'echo'"),
            ("container/command", ["sh"]),
            ("container/ports", ["8888:8000", "127.0.0.1:9000:9000", "[::1]:9000:9000", "53:53/udp"]),
            ("container/ports", [{"published": 443, "target": 8443, "protocol": "https"}]),
            ("health", {"test": "none"}),
            ("health/interval", "1m30s"),
            ("health/interval", 0.5),
            ("domain", "parasite.example.org"),
            ("domain", ["a.example.org", "b.example.org"]),
            ("servers", [{"local": True}]),
            ("serverPassword", {"web": "x"}),
            ("secretEnvironment", "all of it, as one secret"),
            ("rollout/watch", 0),
            ("gitlab", {"project": "group/parasite", "deployToken": {}}),
        ],
        ids=str,
    )
    def test_forms_that_are_right(self, change: tuple[str, object]) -> None:
        assert faults(as_written(changed(change))) == []

    def test_what_is_pulumis_own_is_left_alone(self) -> None:
        document = as_written(right()) | {"encryptionsalt": "v1:x", "secretsprovider": "passphrase"}
        document["config"]["gitlab:baseUrl"] = "https://gitlab.example.com"
        assert faults(document) == []


class TestWrongFiles:
    """Mistakes of shape are shown while they are typed."""

    def test_there_are_some(self) -> None:
        assert len([case for case in WRONG if is_about_shape(case)]) > 40

    @pytest.mark.parametrize(
        "case",
        [case for case in WRONG if is_about_shape(case)],
        ids=lambda case: f"{case.key}: {case.problem[:40]}",
    )
    def test_the_table_of_wrong_settings(self, case: Wrong) -> None:
        assert faults(as_written(changed(*case.change)))

    @pytest.mark.parametrize("key", sorted(secret_keys_of_model()))
    def test_a_secret_in_plain_text(self, key: str) -> None:
        for plain in ("MARKER", {"NAME": "MARKER"}):
            assert faults({"config": {"esteira:container": {"name": "x"}, f"esteira:{key}": plain}})

    @pytest.mark.parametrize(
        "change",
        [
            ("container/name", ABSENT),
            ("servers/0/hostKey", ABSENT),
            ("servers/0/jumpHost/hostKey", ABSENT),
            ("servers/0/local", True),
            ("container/memory", None),
        ],
        ids=lambda change: change[0],
    )
    def test_what_is_missing_or_too_much(self, change: tuple[str, object]) -> None:
        assert faults(as_written(changed(change)))

    def test_a_key_without_a_namespace(self) -> None:
        assert faults({"config": {"esteira:container": {"name": "x"}, "registry": "registry.example.com"}})

    def test_a_stack_without_an_application_and_without_gitlab(self) -> None:
        assert faults({"config": {"esteira:registry": "registry.example.com"}})
