"""The program that runs on a server: every shell that a server may have parses it, and it gives no secret away."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from components.remote import SERVER_FILES, Payload, standard_input
from tests.unit.test_remote import unpacked

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "components/server"
FILES = {name: (FOLDER / name).read_text() for name in SERVER_FILES}
PAYLOAD = Payload(
    image="registry.example.com/g/p@sha256:" + "ab" * 32,
    registry_user="ana",
    registry_password="it's $HOME",
    secret_environment={"API_TOKEN": "two\nlines"},
    secret_files={"/run/secrets/token": "x"},
)
WHOLE = standard_input(PAYLOAD)
PROGRAM = unpacked(WHOLE)
AS_ROOT = standard_input(Payload(), sudo=True, sudo_password="it's")
SHELLS = (["dash", "-n"], ["busybox", "sh", "-n"], ["bash", "--posix", "-n"], ["sh", "-n"])
FUNCTION = re.compile(r"^([a-z_]+)\(\) *[{(]", re.MULTILINE)


def lines_with(pattern: str) -> list[str]:
    """Return all lines of code, as FILE: LINE, that have the pattern."""
    found = []
    for name, text in FILES.items():
        found += [
            f"{name}: {line.strip()}"
            for line in text.splitlines()
            if re.search(pattern, line) and not line.lstrip().startswith("#")
        ]
    return found


class TestShells:
    """A server's sh is dash, busybox or bash; the program is POSIX, so all of them parse it."""

    @pytest.mark.parametrize("shell", SHELLS, ids=lambda shell: shell[0])
    @pytest.mark.parametrize("text", [WHOLE, AS_ROOT, PROGRAM], ids=["plain", "sudo", "unpacked"])
    def test_it_is_parsed(self, shell: list[str], text: str) -> None:
        if shutil.which(shell[0]) is None:
            pytest.skip(f"there is no {shell[0]}")
        done = subprocess.run(shell, input=text, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")

    @pytest.mark.parametrize(
        "word", [r"\blocal\b", r"\[\[", r"\bfunction\b", r"<<<", r"\becho -[en]\b", r"\$'"]
    )
    def test_no_word_of_bash(self, word: str) -> None:
        assert lines_with(rf"(^|[;&|] *){word}") == []

    def test_each_file_is_named_in_its_first_line(self) -> None:
        assert not [name for name, text in FILES.items() if not text.startswith("# Esteira on a server: ")]


class TestSent:
    """What is sent has no comment lines, of which the state would hold many copies, and is the same program."""

    def test_the_functions_are_the_same(self) -> None:
        """As bash prints them: their code with every quoted text and here-document, byte by byte."""

        def functions(text: str) -> str:
            done = subprocess.run(
                ["bash", "-c", 'eval "$(cat)"; declare -f'],
                input=text,
                capture_output=True,
                text=True,
                check=True,
            )
            return done.stdout

        declared = functions("\n".join(FILES.values()))
        assert declared.count(" () \n{") > 100
        assert functions(PROGRAM) == declared

    def test_a_secret_that_looks_like_a_comment_is_kept(self) -> None:
        text = "\n\n# a key\n  # of two lines\n\n"
        sent = standard_input(Payload(secret_environment={"KEY": text}))
        assert f"export KEY='{text}'" in sent

    def test_its_size(self) -> None:
        """It is in the state, and in a command over SSH, some times a server."""
        assert len(standard_input(Payload())) < 30_000


class TestFunctions:
    """Small functions, each with a line on what it does and which variables it sets: they share all of them."""

    @pytest.mark.parametrize("name", SERVER_FILES)
    def test_every_function_has_a_comment(self, name: str) -> None:
        lines = FILES[name].splitlines()
        bare = [
            line
            for before, line in zip(["", *lines], lines, strict=False)
            if FUNCTION.match(line) and not before.startswith("#")
        ]
        assert bare == []

    def test_no_name_is_taken_twice(self) -> None:
        names = [found for text in FILES.values() for found in FUNCTION.findall(text)]
        assert len(names) == len(set(names))

    def test_none_is_left_over(self) -> None:
        names = {found for text in FILES.values() for found in FUNCTION.findall(text)}
        names |= {"export_secrets", "copy_secret_files"}
        unused = {name for name in names if len(re.findall(rf"\b{name}\b", WHOLE + PROGRAM)) < 2}
        assert unused == set()


class TestSecrets:
    """Arguments and environment of a process are seen by everybody on the server: no secret may be there."""

    def test_the_registry_s_password_goes_through_a_pipe_only(self) -> None:
        uses = lines_with(r"\$\{?registry_password")
        assert len(uses) == 2
        for use in uses:
            assert re.search(r'\[ -n "\$registry_password" \]|printf \'%s\' "\$registry_password" \|', use), (
                use
            )

    def test_a_secret_file_goes_through_a_pipe_only(self) -> None:
        function = re.search(
            r"^copy_secret_file_archive\(\) \{\n(.*?)^\}", FILES["release.sh"], re.MULTILINE | re.DOTALL
        )
        assert function
        assert function[1].strip() == 'printf \'%s\' "$3" | base64 -d | docker cp - "$1:$2"'

    def test_what_prints_a_secret_is_the_shell_itself(self) -> None:
        """A program of that name would get it as an argument."""
        assert lines_with(r"(/|command |env |exec )(printf|echo)\b") == []

    def test_secrets_are_exported_in_a_subshell_only(self) -> None:
        """Else every later command of the run would inherit them."""
        assert [
            line for line in lines_with(r"\bexport\b|\bexport_secrets\b") if "$(export_secrets &&" not in line
        ] == []

    def test_docker_gets_their_names_only(self) -> None:
        assert "\nsecret_names=--env=API_TOKEN\n" in WHOLE
        assert lines_with(r"docker create .*(--env|-e )") == []

    def test_no_login_has_a_password_argument(self) -> None:
        logins = lines_with(r" login --")
        assert len(logins) == 1
        assert "--password-stdin" in logins[0]

    def test_no_login_is_kept(self) -> None:
        """It is written to a folder in memory that goes with the pull."""
        assert "/dev/shm" in FILES["common.sh"]
        assert [line for line in lines_with(r"docker login") if "--config" not in line] == []

    def test_nothing_is_traced_or_evaluated_but_quoted_settings(self) -> None:
        assert lines_with(r"\bset -[a-z]*[xv]") == []
        assert lines_with(r"\beval\b") == ['release.sh: eval "set -- $kept_options -- $pre_deploy"']


class TestDescriptors:
    """A child that outlives the shell must not keep the lock: docker runs without its descriptors."""

    def test_docker_is_called_by_its_wrapper(self) -> None:
        for line in lines_with(r"\bcommand docker\b"):
            assert "9>&-" in line or "9<&-" in line or line.endswith("\\") or "create" in line, line

    def test_what_xargs_starts_has_not_got_it_either(self) -> None:
        """Xargs knows no function: it starts the real docker. Reading takes no lock."""
        text = "".join(text for name, text in FILES.items() if name != "read.sh")
        found = re.findall(r"xargs (?:[^\n]*\\\n)*[^\n]*", text)
        assert found
        for line in found:
            assert "7>&- 8<&- 9<&-" in line

    def test_only_the_lock_opens_its_descriptor(self) -> None:
        opened = [line for line in lines_with(r"\b9[<>]") if not re.search(r"\b9[<>]&-", line)]
        assert len(opened) == 1
        assert opened[0].startswith('common.sh: exec 9<"$lock" || fail ')
