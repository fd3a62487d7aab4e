"""What README.md and docs/ show is there: commands, keys, sentences, links."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer.main

from cli.app import app
from components.remote import SERVER_FILES
from components.settings import settings_reference

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
PROSE = README.partition("<!-- settings -->")[0] + README.partition("<!-- /settings -->")[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
ROWS = {row.key: row for row in settings_reference()}
PULUMI = {
    "cancel",
    "config rm",
    "config set",
    "destroy",
    "login",
    "preview",
    "stack init",
    "stack output",
    "state delete",
    "up",
}
"""Sub-commands that Pulumi has; what the README shows of them must be one of these."""


def blocks(text: str, language: str = "sh") -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def spans(text: str) -> list[str]:
    """Return all inline code."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))


def commands(text: str) -> list[list[str]]:
    """Return every simple command of the shell blocks, and those in inline code, as words."""
    lines = [line for block in blocks(text) for line in block.splitlines()]
    lines += [span for span in spans(text) if span.startswith(("./esteira ", "pulumi "))]
    found = []
    for line in lines:
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words: list[str] = []
        for word in lexer:
            if word in {"&&", "|", ";", "(", ")", "||"}:
                found.append(words)
                words = []
            else:
                words.append(word)
        found.append(words)
    return [words for words in found if words]


COMMANDS = [words for page in PAGES for words in commands(page.read_text())]
CONFIG = [words for words in COMMANDS if words[:2] == ["pulumi", "config"]]


def texts_of_python() -> Iterator[str]:
    """Return all texts in components/ and cli/, with … where a value is put in."""
    for file in [*(ROOT / "components").glob("*.py"), *(ROOT / "cli").glob("*.py")]:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.JoinedStr):
                yield "".join(
                    str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values
                )
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


SENTENCES = [*texts_of_python(), *((ROOT / "components/server" / name).read_text() for name in SERVER_FILES)]


def failures() -> list[str]:
    """Return the quoted sentences of the section on failures."""
    section = PROSE.partition("## When it fails")[2].partition("\n## ")[0]
    rows = [line.split(" | ")[0].strip("| ") for line in section.splitlines() if line.startswith("| `")]
    return [row.strip("`") for row in rows] + [
        span for span in spans(section) if span.startswith("This preview")
    ]


class TestCommands:
    """A command that a person copies works: it exists, and so does every key in it."""

    def test_there_are_some(self) -> None:
        assert len(COMMANDS) > 30
        assert len(CONFIG) > 10

    def test_those_of_esteira_exist(self) -> None:
        group = typer.main.get_command(app)
        known = {name for name, one in group.commands.items() if not one.hidden}  # type: ignore[attr-defined]
        shown = {words[1] for words in COMMANDS if words[0] == "./esteira" and not words[1].startswith("-")}
        assert shown <= known
        assert known <= shown, "and each is shown"

    def test_those_of_pulumi_exist(self) -> None:
        shown = {" ".join(words[1:3]) for words in COMMANDS if words[0] == "pulumi"}
        assert not [one for one in shown if one not in PULUMI and one.split()[0] not in PULUMI]

    @pytest.mark.parametrize("words", CONFIG, ids=" ".join)
    def test_keys_exist_and_secrets_are_set_as_secrets(self, words: list[str]) -> None:
        path = next(word for word in words if word.startswith("esteira:")).removeprefix("esteira:")
        if path == "KEY":
            return
        key = re.sub(r"\[\d+\]", "[]", path)
        entry = re.sub(r'(\.[A-Za-z_]+|\["[^"]+"\])$', "", key)
        row = ROWS.get(key) or (ROWS[entry] if "map of" in ROWS[entry].shape else None)
        assert row is not None, key
        assert ("--secret" in words) == ("**secret**" in row.shape) or words[2] == "rm"
        assert ("--path" in words) == (path != re.match(r"\w+", path)[0])  # type: ignore[index]

    @pytest.mark.parametrize("block", [block for page in PAGES for block in blocks(page.read_text())])
    def test_blocks_are_shell(self, block: str) -> None:
        done = subprocess.run(["sh", "-n"], input=block, capture_output=True, text=True, check=False)
        assert done.stderr == ""

    def test_no_secret_is_typed_as_an_argument(self) -> None:
        """It would be in the shell's history and in the list of processes."""
        for words in CONFIG:
            if "--secret" in words:
                rest = words[words.index("--secret") + 1 :]
                assert [
                    word for word in rest if not word.startswith(("--", "esteira:", "<", "~", "key"))
                ] == []


class TestKeys:
    """A key that the text names is a key."""

    def test_they_exist(self) -> None:
        shown = {span for page in PAGES for span in spans(page.read_text().partition("<!-- settings -->")[0])}
        keys = {one for one in shown if re.fullmatch(r"[a-z][A-Za-z]*(\[\])?(\.[a-z][A-Za-z]*(\[\])?)+", one)}
        tops = {key.partition(".")[0].partition("[")[0] for key in ROWS}
        ours = {key for key in keys if re.split(r"[.\[]", key)[0] in tops and not key.endswith(".py")}
        assert len(ours) > 8
        assert not ours - ROWS.keys()


class TestFailures:
    """A sentence that somebody searches for is the one that was shown."""

    def test_there_are_some(self) -> None:
        assert len(failures()) > 20

    @pytest.mark.parametrize("sentence", failures())
    def test_it_exists(self, sentence: str) -> None:
        pieces = [piece.strip(" .") for piece in sentence.split("…")]
        pieces = [piece for piece in pieces if len(piece) > 5]
        assert pieces
        # In Python a value stands as …, in the shell as $name.
        pattern = re.compile(r"[^\n]{0,200}?".join(re.escape(piece) for piece in pieces))
        assert any(pattern.search(text) for text in SENTENCES), sentence

    def test_the_end_of_up(self) -> None:
        shown = [
            line for line in README.splitlines() if re.match(r"(Next   |       (docker|\./esteira))", line)
        ]
        assert len(shown) == 3
        for line in shown:
            text = re.split(r" {3,}", line.strip())[-1]
            assert any(text in one for one in SENTENCES), line


class TestProcedure:
    """Every line of the procedure that Esteira replaces has its place in the table."""

    @pytest.mark.parametrize(
        "line",
        [
            "docker login -u gitlab-ci-token -p ${CI_JOB_TOKEN} ${CI_REGISTRY}",
            "docker pull ${RELEASE_IMAGE}",
            "docker build --cache-from ${RELEASE_IMAGE} --tag ${CONTAINER_IMAGE}:${CI_COMMIT_SHA} .",
            "docker push ${CONTAINER_IMAGE}:${CI_COMMIT_SHA}",
            "docker tag",
            "docker push ${RELEASE_IMAGE}",
            "apt install sshpass",
            "sshpass -p ${DEPLOYMENT_SERVER_PASS}",
            "StrictHostKeyChecking=no",
            "${DEPLOYMENT_SERVER_USER}@${DEPLOYMENT_SERVER_IP}",
            "sudo docker login",
            "sudo docker stop parasite",
            "sudo docker rm parasite",
            "sudo docker pull",
            "sudo docker run -tid -p 8888:8000 --name parasite",
        ],
    )
    def test_it_is_there(self, line: str) -> None:
        section = PROSE.partition("## From the old procedure")[2].partition("\n## ")[0]
        assert line in section


class TestPages:
    """Pages lead to pages that exist."""

    @pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
    def test_links(self, page: Path) -> None:
        text = page.read_text()
        titles = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S), re.MULTILINE)  # noqa: FURB167
        anchors = {re.sub(r"[^a-z0-9 -]", "", title.lower()).replace(" ", "-") for title in titles}
        for target in re.findall(r"\]\(([^)]+)\)", text):
            if target.startswith("#"):
                assert target[1:] in anchors
            elif not target.startswith("https://"):
                assert (page.parent / target.partition("#")[0]).exists(), target

    @pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
    def test_lines_are_short_but_for_tables_and_code(self, page: Path) -> None:
        text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
        assert [line for line in text.splitlines() if len(line) > 120 and not line.startswith("|")] == []
