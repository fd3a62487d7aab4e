"""What README.md and docs/ show is there: commands, keys, sentences, links."""

from __future__ import annotations

import ast
import re
import shlex
import shutil
import subprocess
import textwrap
import threading
from collections.abc import Iterator
from functools import cache
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import ClassVar

import pytest
import typer.main

from cli.app import app
from components.remote import SERVER_FILES
from components.settings import settings_reference

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
BACKENDS_PAGE = (ROOT / "docs/backends.md").read_text()
FAILURES = (ROOT / "docs/failures.md").read_text()
SECURITY = (ROOT / "docs/security.md").read_text()
ROWS = {row.key: row for row in settings_reference()}
TUTORIAL = "tests/engine/test_first_server.py"
"""Types the README's way to a first server block by block, and what other pages show after it."""
BACKENDS = "tests/engine/test_backends.py"
"""Logs in with the addresses of docs/backends.md, which it takes from there."""
RUN_BY = {
    "./esteira --version": TUTORIAL,
    "./esteira up": ".ci/run",
    "./esteira down": ".ci/run",
    "./esteira status": "tests/live/test_commands.py",
    "./esteira releases": "tests/engine/test_rollback.py",
    "./esteira rollback": "tests/engine/test_rollback.py",
    "./esteira logs": "tests/live/test_commands.py",
    "./esteira exec": "tests/live/test_commands.py",
    "./esteira test": ".ci/run",
    "./esteira bench": "shown: it takes long and is run by hand; tests/unit/test_cli.py knows its options",
    "./esteira offline-preview": "tests/live/test_pipeline.py",
    "./esteira prune": "tests/unit/test_prune.py",
    "make lint": ".ci/run",
    "pulumi login": TUTORIAL,
    "pulumi login postgres://esteira@db.example.com/pulumi?sslmode=verify-full": BACKENDS,
    "pulumi login s3://example-state?endpoint=s3.example.com&s3ForcePathStyle=true&region=us-east-1": BACKENDS,
    "pulumi login s3://example-state?region=eu-west-1": "shown: Amazon's own store cannot be had here",
    "pulumi login gs://example-state": "shown: Google's own store cannot be had here",
    "pulumi login azblob://example-state": "shown: Azure's own store cannot be had here",
    "pulumi stack init": TUTORIAL,
    "pulumi stack select": TUTORIAL,
    "pulumi stack output": TUTORIAL,
    "pulumi stack export": TUTORIAL,
    "pulumi stack import": TUTORIAL,
    "pulumi config set": TUTORIAL,
    "pulumi config rm": TUTORIAL,
    "pulumi preview": TUTORIAL,
    "pulumi up": TUTORIAL,
    "pulumi destroy": TUTORIAL,
    "pulumi cancel": TUTORIAL,
    "pulumi up --policy-pack": "tests/engine/test_policy.py",
    "pulumi new": "tests/engine/test_template.py",
    "pulumi state delete": "tests/engine/test_rollout.py",
    "pulumi install": "shown: it downloads what tests/engine/test_policy.py installs",
    "pulumi package add": "shown: it downloads providers; tests/engine/test_template.py generates the schema",
    "pulumi refresh": "shown: only to say that it is not needed",
    "ssh-keygen": TUTORIAL,
    "ssh-keyscan": TUTORIAL,
    "git clone": "shown: the address is an example",
    "git init": TUTORIAL,
    "git add": TUTORIAL,
    "git commit": TUTORIAL,
    "curl": "tests/unit/test_readme.py",
    "visudo": TUTORIAL,
    "apt-get": "shown: .ci/run installs the same package",
    "adduser": TUTORIAL,
    "usermod": TUTORIAL,
    "install -d": TUTORIAL,
}
"""Each command that a page shows, and the file that runs it; or why none does (`shown: …`)."""
SHELL_WORDS = {
    *("cd", "export", "umask", "head", "base64", "mkdir", "cat", "cut", "grep", "echo", "chmod", "printf"),
    *("for", "do", "done"),
}
"""The shell's everyday words between them."""


def blocks(text: str, language: str = "sh") -> list[str]:
    """Return all code blocks of a language, also those within a list."""
    found = re.findall(rf"^ *```{language}\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL)
    return [textwrap.dedent(block) for block in found]


def without_blocks(text: str) -> str:
    return re.sub(r"^ *```.*?^ *```", "", text, flags=re.MULTILINE | re.DOTALL)


def spans(text: str) -> list[str]:
    """Return all inline code."""
    return re.findall(r"`([^`\n]+)`", without_blocks(text))


def commands(text: str) -> list[list[str]]:
    """Return every simple command of the shell blocks, and those in inline code, as words."""
    # A line that ends in a backslash or a pipe goes on in the next.
    whole = [re.sub(r"(\\|(?<=\|))\n", " ", block) for block in blocks(text)]
    lines = [line for block in whole for line in block.splitlines()]
    lines += [span for span in spans(text) if span.startswith(("./esteira ", "pulumi "))]
    lines += [span for span in re.findall(r"`((?:\./esteira|pulumi) [^`]+)`", text) if "\n" in span]
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
    """Return the quoted sentences of the page on failures."""
    rows = [line.split(" | ")[0].strip("| ") for line in FAILURES.splitlines() if line.startswith("| `")]
    return [row.strip("`") for row in rows] + [
        span for span in spans(FAILURES) if span.startswith("This preview")
    ]


@cache
def pattern_of(row: str) -> re.Pattern[str]:
    """Return what finds a quoted sentence: in Python a value stands as …, in the shell as $name."""
    pieces = [piece.strip(" .") for piece in row.split("…")]
    pieces = [piece for piece in pieces if len(piece) > 5]
    assert pieces, row
    return re.compile(r"[^\n]{0,200}?".join(re.escape(piece) for piece in pieces))


def sentences_of_servers() -> list[str]:
    """Return what the shell program ends a run with, and what it says to do, with its variables as they stand there."""
    found = []
    for name in SERVER_FILES:
        text = (ROOT / "components/server" / name).read_text()
        found += re.findall(r'(?:\b(?:fail|refuse) |\badvice=)"([A-Za-z][^"]*)"', text)
    return found


UNLISTED = {
    "The server does not know the phase": "Esteira's own mistake: a phase that its program lacks.",
    "That is Docker's own message": "It stands before it.",
    "The network": "Docker's own words stand behind it, and nothing is to be done but what they say.",
    "The edge cannot join network": "The same: the network is Esteira's own.",
    "The probe of the health gate": "The same: the probe is a container of the edge's image.",
    "No passing": "The disk or the memory is full: it says which, and the command that shows it.",
    "No folder for the lock": "It says which folders, and what to look at.",
    "The lock ": "The same.",
}
"""Beginnings of sentences that say all that the page could, or that nobody meets; and why."""


def run_as(words: list[str]) -> str:
    """Return the key of RUN_BY for a command: the longest beginning that it has, else its first words."""
    line = " ".join(words)
    known = [key for key in RUN_BY if f"{line} ".startswith(f"{key} ")]
    return max(known, key=len) if known else " ".join(words[:3])


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

    def test_each_is_run_by_a_test(self) -> None:
        shown = {run_as(words) for words in COMMANDS if words[0] not in SHELL_WORDS}
        assert not shown - RUN_BY.keys()
        assert not RUN_BY.keys() - shown, "and no others are listed"

    @pytest.mark.parametrize("command", RUN_BY)
    def test_what_runs_it_names_it(self, command: str) -> None:
        where = RUN_BY[command]
        if where.startswith("shown: "):
            return
        text = (ROOT / where).read_text()
        word = command.rsplit(maxsplit=1)[-1]
        # The tutorial's test takes whole blocks from the README: a command is in one of those that it takes.
        # So does the backends' from their page.
        taken = {TUTORIAL: "".join(blocks(README + SECURITY)), BACKENDS: BACKENDS_PAGE}.get(where, "")
        taken = taken.replace("'", "")
        assert word in text or command in taken

    @pytest.mark.parametrize("words", CONFIG, ids=" ".join)
    def test_keys_exist_and_secrets_are_set_as_secrets(self, words: list[str]) -> None:
        path = next(word for word in words if word.startswith("esteira:")).removeprefix("esteira:")
        if path == "KEY":
            return
        # The entry of a list, taken out whole, is the list's business.
        key = re.sub(r"\[\d+\]", "[]", path).removesuffix("[]")
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


class Recorder(BaseHTTPRequestHandler):
    """Takes every PUT, and keeps what came."""

    came: ClassVar[list[tuple[str, str | None, str]]] = []

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        self.came.append((self.path, self.headers["PRIVATE-TOKEN"], body))
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        """Say nothing."""


class TestGitlabsLoop:
    """docs/gitlab.md sets the order of deployments by GitLab's API, which Esteira's stand-in does not have."""

    def test_it_asks_for_the_order_of_both_and_shows_nobody_the_token(self, tmp_path: Path) -> None:
        curl = shutil.which("curl")
        if curl is None:
            pytest.skip("curl is not installed: apt-get install curl")
        # A curl in front that writes down its arguments, which every user of a machine can read.
        shim = tmp_path / "curl"
        shim.write_text(f'#!/bin/sh\necho "$@" >>{tmp_path}/arguments\nexec {curl} --silent "$@"\n')
        shim.chmod(0o755)
        [loop] = [block for block in blocks((ROOT / "docs/gitlab.md").read_text()) if "curl" in block]
        with HTTPServer(("127.0.0.1", 0), Recorder) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            done = subprocess.run(
                ["sh", "-e"],
                input=loop.replace("https://gitlab.example.com", f"http://127.0.0.1:{server.server_port}"),
                env={"PATH": f"{tmp_path}:/usr/bin:/bin", "GITLAB_TOKEN": "MARKER-token"},
                capture_output=True,
                text=True,
                check=False,
                timeout=60,
            )
            server.shutdown()
        assert done.returncode == 0, done.stderr
        there = "/api/v4/projects/group%2Fparasite/resource_groups"
        assert Recorder.came == [
            (f"{there}/{name}", "MARKER-token", "process_mode=oldest_first")
            for name in ("staging", "production")
        ]
        assert "MARKER" not in (tmp_path / "arguments").read_text()


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
        assert any(pattern_of(sentence).search(text) for text in SENTENCES), sentence

    @pytest.mark.parametrize("sentence", [pytest.param(one, id=one[:60]) for one in sentences_of_servers()])
    def test_a_server_says_nothing_that_is_not_listed(self, sentence: str) -> None:
        exempt = [beginning for beginning in UNLISTED if sentence.startswith(beginning)]
        listed = [row for row in failures() if pattern_of(row).search(sentence)]
        assert listed or exempt, "docs/failures.md lists what a person may meet, or UNLISTED says why not"

    def test_the_end_of_the_tests(self) -> None:
        told = (ROOT / "tests/conftest.py").read_text()
        shown = re.findall(r"(?m)^(unit|live|engine) +(ran, \d+ tests|SKIPPED: .*)$", README)
        assert [layer for layer, _ in shown] == ["unit", "live", "engine"]
        reasons = [text.removeprefix("SKIPPED: ") for _, text in shown if text.startswith("SKIPPED: ")]
        for reason in reasons:
            cause = reason.rpartition(": ")[2]
            assert any(cause in one for one in SENTENCES) or reason.partition(":")[0] in told

    def test_the_version_of_the_cli(self) -> None:
        [needed] = re.findall(r">=(\d+\.\d+)", (ROOT / "Pulumi.yaml").read_text())
        assert f"the Pulumi CLI, {needed} or later" in README

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
            "CONTAINER_IMAGE`, `RELEASE_IMAGE",
            "docker info",
            "docker login -u gitlab-ci-token -p ${CI_JOB_TOKEN} ${CI_REGISTRY}",
            "docker pull ${RELEASE_IMAGE}",
            "docker pull ${CONTAINER_IMAGE}:${CI_COMMIT_SHA}",
            "docker build --cache-from ${RELEASE_IMAGE} --tag ${CONTAINER_IMAGE}:${CI_COMMIT_SHA} .",
            "docker push ${CONTAINER_IMAGE}:${CI_COMMIT_SHA}",
            "docker tag",
            "docker push ${RELEASE_IMAGE}",
            "apt install sshpass",
            "sshpass -p ${DEPLOYMENT_SERVER_PASS}",
            "StrictHostKeyChecking=no",
            "-o PreferredAuthentications=password -o PubkeyAuthentication=no",
            "${DEPLOYMENT_SERVER_USER}@${DEPLOYMENT_SERVER_IP}",
            "sudo docker login",
            "sudo docker stop parasite",
            "sudo docker rm parasite",
            "sudo docker pull",
            "sudo docker run -tid -p 8888:8000 --name parasite",
        ],
    )
    def test_it_is_there(self, line: str) -> None:
        assert line in (ROOT / "docs/from-the-procedure.md").read_text()


def anchors(text: str) -> set[str]:
    """Return the anchors of a page's headings, as GitLab and GitHub make them."""
    titles = re.findall(r"^#+ (.*)$", without_blocks(text), re.MULTILINE)
    return {re.sub(r"[^a-z0-9 -]", "", title.lower()).replace(" ", "-") for title in titles}


class TestDrift:
    """What a preview says of a server is what the page explains."""

    def test_the_words_are_the_programs(self) -> None:
        page = (ROOT / "docs/drift.md").read_text()
        shown = re.findall(r"^\| \*([^*|]+)\*", page, re.MULTILINE)
        assert len(shown) > 8
        words = [text for text in texts_of_python() if text]
        for sentence in shown:
            piece = max(re.split(r"…|commit |, exited", sentence), key=len).strip(" ,()")
            assert any(piece in text for text in words), sentence


class TestPages:
    """Pages lead to pages that exist, and no page is lost.

    Addresses elsewhere are not looked up: a test needs no network.
    """

    @pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
    def test_links(self, page: Path) -> None:
        for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
            if target.startswith("https://"):
                continue
            path, _, anchor = target.partition("#")
            file = (page.parent / path).resolve() if path else page
            assert file.exists(), target
            assert not anchor or anchor in anchors(file.read_text()), target

    def test_every_page_is_reached_from_the_readme(self) -> None:
        reached = {ROOT / "README.md"}
        while True:
            more = {
                (page.parent / target.partition("#")[0]).resolve()
                for page in reached
                if page.suffix == ".md"
                for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text())
                if not target.startswith("https://")
            }
            if more <= reached:
                break
            reached |= more
        assert not set(PAGES) - reached

    @pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
    def test_lines_are_short_but_for_tables_and_code(self, page: Path) -> None:
        text = without_blocks(page.read_text())
        assert [line for line in text.splitlines() if len(line) > 120 and not line.startswith("|")] == []
