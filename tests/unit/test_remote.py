"""What travels to a server, taken apart by a real shell: text, stdin, quoting, sudo, secret files."""

from __future__ import annotations

import base64
import hashlib
import io
import os
import random
import re
import shlex
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from components import remote
from components.remote import (
    SERVER_FILES,
    Payload,
    command_text,
    fingerprint,
    secret_file_folders,
    standard_input,
)

NASTY = (
    "",
    " ",
    "two words",
    " leading and trailing ",
    "it's",
    'a "quoted" word',
    "$HOME ${HOME} $(touch hacked) `touch hacked`",
    "back\\slash \\n",
    "two\nlines",
    "ends in a line end\n",
    "-leading dash",
    "--",
    "; touch hacked #",
    "&& touch hacked",
    "* ? [a-z] ~",
    "tab\tand\rreturn",
    "ação, 日本語, 🙂",
    "key=value=more",
    "!history",
    "'''",
    "\x01\x7f",
)
"""Values that a shell would mangle or run if they were quoted wrongly."""

SHELLS = [
    shell for shell in (["dash"], ["busybox", "sh"], ["bash", "--posix"], ["sh"]) if shutil.which(shell[0])
]
MARKER = "MARKER-secret"
PACKED_DIGEST = "5a20c176dab3226a89814fb2b1b07994b3adfe816efc40236921a6b76cbef926"


def run(
    text: str, stdin: str, folder: Path, shell: list[str] | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a command's text as sshd does, by the user's shell; only programs in folder/bin come before the system's."""
    path = f"{folder / 'bin'}:{os.environ['PATH']}"
    done = subprocess.run(
        [*(shell or ["sh"]), "-c", text],
        input=stdin.encode(),  # bytes, because Python's text mode changes line ends
        capture_output=True,
        cwd=folder,
        env={"PATH": path, "LANG": "C.UTF-8", **environment},
        timeout=60,
        check=False,
    )
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


def program(folder: Path, name: str, text: str) -> None:
    """Put a stub program in front of the system's."""
    (folder / "bin").mkdir(exist_ok=True)
    file = folder / "bin" / name
    file.write_text(text)
    file.chmod(0o755)


def unpacked(stdin: str) -> str:
    """Return the program that a stdin holds, as the server's own gzip unpacks it."""
    packed = re.search(r"printf %s (\S+) \| base64 -d \| gzip -dc", stdin)
    assert packed
    given = base64.b64decode(packed[1])
    return subprocess.run(["gzip", "-dc"], input=given, capture_output=True, check=True).stdout.decode()


def without_comments(program: str) -> str:
    """Return a file of the program as it is sent."""
    return "\n".join(re.findall(r"(?m)^(?! *#).*\S.*$", program))


@pytest.fixture
def _small_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of the server's program, one that shows what reached it."""
    monkeypatch.setattr(remote, "_program", lambda: SHOW)


SHOW = """
main() {
  printf '<%s>\\n' "$@"
  export_secrets
  printf 'image=<%s> user=<%s> ' "$image" "$registry_user"
  printf 'password=<%s> names=<%s>\\n' "$registry_password" "$secret_names"
}
"""


class TestCommandText:
    """The text is what a person reads in a preview: the phase, then one value a line, in a stable form."""

    def test_the_phase_alone(self) -> None:
        assert command_text("read", []) == "sh -s -- read"

    def test_one_argument_a_line_and_a_group_behind_each_double_dash(self) -> None:
        text = command_text(
            "candidate",
            [("server", "web-1"), ("commit", "8e13f56a"), ("health.path", "/health?full=yes")],
            ["--env=DEBUG=false", "--label=note=two words"],
            ["python3", "-m", "gunicorn"],
        )
        assert text == (
            "sh -s -- candidate \\\n"
            "  server=web-1 \\\n"
            "  commit=8e13f56a \\\n"
            "  'health.path=/health?full=yes' \\\n"
            "  -- \\\n"
            "  --env=DEBUG=false \\\n"
            "  '--label=note=two words' \\\n"
            "  -- \\\n"
            "  python3 \\\n"
            "  -m \\\n"
            "  gunicorn"
        )

    def test_empty_groups_keep_their_place(self) -> None:
        assert command_text("deploy", [("a", "b")], [], []) == "sh -s -- deploy \\\n  a=b \\\n  -- \\\n  --"

    @pytest.mark.parametrize("shell", SHELLS, ids=lambda shell: shell[0])
    def test_every_value_arrives_as_it_is(self, shell: list[str], tmp_path: Path) -> None:
        """By the login shell of whoever: what is quoted once is unquoted once."""
        text = command_text("phase", [("value", value) for value in NASTY], list(NASTY), list(NASTY))
        show = "printf '<%s>\\0' \"$@\"\nexit\n"
        done = run(text, show, tmp_path, shell)
        expected = ["phase", *(f"value={value}" for value in NASTY), "--", *NASTY, "--", *NASTY]
        assert done.stdout.split("\0")[:-1] == [f"<{value}>" for value in expected]
        assert not (tmp_path / "hacked").exists()


class TestStandardInput:
    """Program, digest and secrets come by stdin, because text and environment of a command are seen by others."""

    @pytest.mark.parametrize("value", NASTY, ids=repr)
    def test_every_secret_arrives_as_it_is(
        self, value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        shown = SHOW.replace("export_secrets\n", "export_secrets\n  printenv API_TOKEN\n")
        monkeypatch.setattr(remote, "_program", lambda: shown)
        stdin = standard_input(
            Payload(
                image="registry.example/g/p@sha256:ab",
                registry_user=value,
                registry_password=value,
                secret_environment={"API_TOKEN": value},
            )
        )
        done = run("sh -s -- phase", stdin, tmp_path)
        assert done.stdout == (
            f"<phase>\n{value}\nimage=<registry.example/g/p@sha256:ab> user=<{value}> password=<{value}> "
            "names=<--env=API_TOKEN>\n"
        )
        assert done.stderr == ""
        assert not (tmp_path / "hacked").exists()

    @pytest.mark.usefixtures("_small_program")
    def test_names_of_secrets_are_sorted(self, tmp_path: Path) -> None:
        """The order in which a map was written is no change of a release."""
        one = standard_input(
            Payload(secret_environment={"B": "2", "A": "1"}, secret_files={"/b": "2", "/a": "1"})
        )
        other = standard_input(
            Payload(secret_environment={"A": "1", "B": "2"}, secret_files={"/a": "1", "/b": "2"})
        )
        assert one == other
        assert "names=<--env=A --env=B>" in run("sh -s -- x", one, tmp_path).stdout

    def test_the_program_is_complete_and_in_order(self) -> None:
        sent = unpacked(standard_input(Payload()))
        folder = Path(remote.__file__).parent / "server"
        assert {path.name for path in folder.glob("*.sh")} == set(SERVER_FILES), "a file that nobody sends"
        places = [sent.index(without_comments((folder / name).read_text())) for name in SERVER_FILES]
        assert places == sorted(places)

    def test_the_same_input_for_the_same_payload(self) -> None:
        """A stdin that differs from run to run would be a change at every `pulumi up`."""
        payload = Payload(
            image="a@b", secret_environment={"A": "1"}, secret_files={"/x/y": "z"}, read_only=True
        )
        assert standard_input(payload, sudo=True) == standard_input(payload, sudo=True)

    def test_a_payload_does_not_show_its_secrets(self) -> None:
        payload = Payload(
            registry_password=MARKER, secret_environment={"A": MARKER}, secret_files={"/a": MARKER}
        )
        assert MARKER not in repr(payload)

    def test_no_secret_is_in_the_text(self) -> None:
        """What the text holds is decided by its caller's plain values alone: it takes no payload."""
        assert "payload" not in command_text.__annotations__
        assert MARKER not in command_text("deploy", [("a", "b")], ["c"], ["d"])


class TestPacked:
    """The program is packed: the engine goes through all of it many times a run, and the state holds many copies."""

    def test_its_bytes_are_the_same_everywhere(self) -> None:
        """Other bytes for the same program would be a change of every command, on another machine or tomorrow."""
        lines = "".join(f"line {number} of a program, and {number % 7} again\n" for number in range(400))
        packed = remote._packed(lines)
        digest = hashlib.sha256(packed.encode()).hexdigest()
        assert digest == PACKED_DIGEST, "another packer, or other settings of it: say so in the changelog"

    @pytest.mark.parametrize("shell", SHELLS, ids=lambda shell: shell[0])
    def test_every_shell_unpacks_the_whole_program(self, shell: list[str], tmp_path: Path) -> None:
        """It ends with its own sentence for a phase that it does not know, so it was read to its last line."""
        program(tmp_path, "docker", "#!/bin/sh\necho true id\n")
        done = run(shlex.join([*shell, "-s", "--", "nothing"]), standard_input(Payload()), tmp_path)
        assert (done.returncode, done.stderr) == (1, "error: The server does not know the phase nothing.\n")

    @pytest.mark.usefixtures("_small_program")
    @pytest.mark.parametrize("missing", ["base64", "gzip"])
    def test_a_server_that_cannot_unpack_it(self, missing: str, tmp_path: Path) -> None:
        program(tmp_path, missing, "#!/bin/sh\nexit 127\n")
        done = run("sh -s -- read", standard_input(Payload()), tmp_path)
        assert (done.returncode, done.stdout) == (1, "")
        assert "apt-get install coreutils gzip" in done.stderr

    @pytest.mark.usefixtures("_small_program")
    def test_a_program_that_came_damaged_does_not_run(self, tmp_path: Path) -> None:
        packed = remote._packed(SHOW)
        middle = len(packed) // 2
        damaged = packed[:middle] + ("A" if packed[middle] != "A" else "B") + packed[middle + 1 :]
        done = run("sh -s -- read", standard_input(Payload()).replace(packed, damaged), tmp_path)
        assert (done.returncode, done.stdout) == (1, "")


class TestCutConnection:
    """A connection that is cut on the way runs nothing: the shell parses the whole program before it runs any of it."""

    CUT_MARK = "touch ran\n"

    def cuttable(self, monkeypatch: pytest.MonkeyPatch, *, sudo: bool) -> str:
        """Return the stdin of the real program, with a mark that it ran at its beginning and its end."""
        whole = remote._program()
        marked = f"{self.CUT_MARK}{whole}\n{self.CUT_MARK}main() {{ {self.CUT_MARK} }}\n"
        monkeypatch.setattr(remote, "_program", lambda: marked)
        payload = Payload(secret_environment={"A": "two\nlines'"}, secret_files={"/a": "x\n" * 50})
        return standard_input(payload, sudo=sudo, sudo_password="it's")

    def test_whole_it_runs(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        program(tmp_path, "sudo", '#!/bin/sh\nshift 3\nexec "$@"\n')
        for sudo in (False, True):
            (tmp_path / "ran").unlink(missing_ok=True)
            done = run("sh -s -- read", self.cuttable(monkeypatch, sudo=sudo), tmp_path)
            monkeypatch.undo()
            assert (tmp_path / "ran").exists(), done.stderr

    @pytest.mark.parametrize("sudo", [False, True])
    def test_cut_at_any_byte_it_runs_nothing(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, sudo: bool
    ) -> None:
        """Beginnings of all kinds: at line ends, in quotes, in the packed program, just before the last brace."""
        stdin = self.cuttable(monkeypatch, sudo=sudo).encode()
        program(tmp_path, "sudo", "#!/bin/sh\ntouch ran\n")
        program(tmp_path, "docker", "#!/bin/sh\ntouch ran\n")
        random_cuts = random.Random(4)
        cuts = {0, 1, 2, len(stdin) - 3, len(stdin) - 2}
        cuts |= {random_cuts.randrange(len(stdin) - 2) for _ in range(120)}
        ends = [at + 1 for at, byte in enumerate(stdin[:-2]) if byte == ord("\n")]
        cuts |= {*ends[:20], *ends[-40:], *random_cuts.sample(ends, min(60, len(ends)))}
        # One shell feeds the beginnings to shells of their own: that costs a tenth of a subprocess from here each.
        (tmp_path / "whole").write_bytes(stdin)
        feed = "while read -r cut; do head -c $cut whole | sh -s -- read; [ ! -e ran ] || { echo $cut; exit; }; done"
        done = run(feed, "".join(f"{cut}\n" for cut in sorted(cuts)), tmp_path)
        assert done.stdout == "", f"something ran after {done.stdout.strip()} of {len(stdin)} bytes"

    @pytest.mark.parametrize("shell", SHELLS, ids=lambda shell: shell[0])
    def test_cut_before_the_last_brace_in_every_shell(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, shell: list[str]
    ) -> None:
        stdin = self.cuttable(monkeypatch, sudo=False)
        done = run(shlex.join([*shell, "-s", "--", "read"]), stdin.removesuffix("}\n"), tmp_path)
        assert done.returncode != 0 or not done.stdout
        assert not (tmp_path / "ran").exists()


SUDO = """#!/bin/sh
# Asks for a password unless the file nopasswd is there; runs its command when it is right. Notes its arguments.
# Refuses the command in the file refused, whatever else it lets through.
printf '%s\\n' "$*" >>sudo-arguments
ask=yes
while :; do
  case $1 in
    -n) [ -e nopasswd ] || exit 1; ask= ;;
    -S) ;;
    -p) shift ;;
    *) break ;;
  esac
  shift
done
if [ -e refused ] && [ "$1" = "$(cat refused)" ]; then echo 'sudo: a password is required' >&2; exit 1; fi
if [ -n "$ask" ] && [ ! -e nopasswd ]; then
  IFS= read -r given
  [ "$given" = "$(cat password)" ] || { echo 'sudo: incorrect password' >&2; exit 1; }
fi
exec env -u SSH_CONNECTION "$@"
"""


@pytest.mark.usefixtures("_small_program")
class TestSudo:
    """The program runs as root by sudo, with or without a password; the password is in no argument."""

    def through_sudo(
        self, folder: Path, password: str | None, *, right: str | None, text: str = "sh -s -- deploy a=b"
    ) -> subprocess.CompletedProcess[str]:
        program(folder, "sudo", SUDO)
        (folder / ("password" if right is not None else "nopasswd")).write_text(right or "")
        stdin = standard_input(Payload(registry_password=f"{MARKER} it's"), sudo=True, sudo_password=password)
        return run(text, stdin, folder, SSH_CONNECTION="192.0.2.7 50000 192.0.2.1 22")

    def test_without_a_password(self, tmp_path: Path) -> None:
        done = self.through_sudo(tmp_path, None, right=None)
        assert done.stdout.startswith("<deploy>\n<client=192.0.2.7>\n<a=b>\nimage=")
        assert f"password=<{MARKER} it's>" in done.stdout

    @pytest.mark.parametrize(
        "password", ["simple", "it's", 'a "b" $HOME `id` \\', "-n", "%s %d", "ação", " blanks "]
    )
    def test_with_a_password_of_any_kind(self, password: str, tmp_path: Path) -> None:
        done = self.through_sudo(tmp_path, password, right=password)
        assert done.stdout.startswith("<deploy>\n<client=192.0.2.7>\n<a=b>\n"), done.stderr
        arguments = (tmp_path / "sudo-arguments").read_text()
        assert arguments == f"-S -p  sh -c {remote._BEHIND_THE_PASSWORD} sh deploy client=192.0.2.7 a=b\n"

    @pytest.mark.parametrize("shell", SHELLS, ids=lambda shell: shell[0])
    @pytest.mark.parametrize("refused", ["", "true"])
    def test_a_password_that_sudo_leaves_is_not_run(
        self, refused: str, shell: list[str], tmp_path: Path
    ) -> None:
        """It would be the program's first line; and what sudo answers for another command says nothing of this one."""
        program(
            tmp_path, "sh", f'#!/bin/sh\nexec {shlex.join([shutil.which(shell[0]) or "", *shell[1:]])} "$@"\n'
        )
        (tmp_path / "refused").write_text(refused)
        done = self.through_sudo(tmp_path, "touch ran", right=None)
        assert done.stdout.startswith("<deploy>\n<client=192.0.2.7>\n<a=b>\n")
        assert done.stderr == ""
        assert not (tmp_path / "ran").exists()

    def test_a_user_who_may_run_only_the_program_without_a_password(self, tmp_path: Path) -> None:
        (tmp_path / "refused").write_text("true")
        done = self.through_sudo(tmp_path, None, right=None)
        assert done.stdout.startswith("<deploy>\n"), done.stderr

    def test_arguments_of_any_kind_pass(self, tmp_path: Path) -> None:
        text = command_text("deploy", [], list(NASTY))
        done = self.through_sudo(tmp_path, None, right=None, text=text)
        assert "".join(f"<{value}>\n" for value in ["--", *NASTY]) in done.stdout

    def test_sudo_asks_and_no_password_is_set(self, tmp_path: Path) -> None:
        done = self.through_sudo(tmp_path, None, right="simple")
        assert done.returncode == 1
        assert "pulumi config set --secret esteira:sudoPassword" in done.stderr
        assert done.stdout == ""

    def test_a_wrong_password_runs_nothing(self, tmp_path: Path) -> None:
        done = self.through_sudo(tmp_path, "wrong", right="simple")
        assert (done.returncode, done.stdout) == (1, "")
        assert "wrong" not in done.stderr

    def test_there_is_no_sudo(self, tmp_path: Path) -> None:
        sh = shutil.which("sh") or "/bin/sh"
        (tmp_path / "bin").mkdir()
        (tmp_path / "bin/sh").symlink_to(sh)
        done = subprocess.run(
            [sh, "-s", "--", "deploy"],
            input=standard_input(Payload(), sudo=True),
            capture_output=True,
            text=True,
            env={"PATH": str(tmp_path / "bin")},
            check=False,
        )
        assert done.returncode == 1
        assert done.stderr.startswith("error: sudo is not installed on this server.")

    def test_the_status_of_the_program_is_the_status(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(remote, "_program", lambda: "main() { exit 7; }")
        assert self.through_sudo(tmp_path, None, right=None).returncode == 7
        shutil.rmtree(tmp_path / "bin")
        (tmp_path / "nopasswd").unlink()
        assert self.through_sudo(tmp_path, "simple", right="simple").returncode == 7


class TestSecretFiles:
    """Secret files travel as tar archives, because docker cp keeps mode and content and needs no file on the server."""

    CONTENTS = (
        "one line",
        "",
        "two\nlines\n",
        "-----BEGIN PRIVATE KEY-----\nMIIB'\"$(id)`id`\\\n-----END PRIVATE KEY-----\n",
        "\x00\x01\x7f binary-like \r\n",
        "ação 日本語 🙂",
        "x" * 100_000,
    )

    def archives(self, payload: Payload, tmp_path: Path) -> dict[str, dict[str, tuple[int, str]]]:
        """Return what docker cp would get: folder to file to (mode, content), unpacked by a real shell."""
        function = re.search(
            r"^copy_secret_file_archive\(\).*?^}", remote._program(), re.MULTILINE | re.DOTALL
        )
        assert function, "the function that this test runs"
        program(
            tmp_path,
            "docker",
            '#!/bin/sh\nfor last; do :; done\ncat >"$(printf %s "$last" | tr / _).tar"\n',
        )
        text = f"{function[0]}\n{remote._assignments(payload)}\ncopy_secret_files id\n"
        done = run("sh -s", text, tmp_path)
        assert done.returncode == 0, done.stderr
        found = {}
        for file in tmp_path.glob("*.tar"):
            with tarfile.open(file) as archive:
                found[file.stem.removeprefix("id:").replace("_", "/")] = {
                    entry.name: (entry.mode, (archive.extractfile(entry) or io.BytesIO()).read().decode())
                    for entry in archive
                }
        return found

    def test_content_and_mode(self, tmp_path: Path) -> None:
        files = {f"/run/secrets/{number}": text for number, text in enumerate(self.CONTENTS)}
        found = self.archives(Payload(secret_files=files), tmp_path)
        assert found == {"/": {name[1:]: (0o444, text) for name, text in files.items()}}

    def test_a_read_only_container_gets_an_archive_for_each_folder(self, tmp_path: Path) -> None:
        """Its root cannot be written, so docker cp writes into the volume of each folder."""
        files = {"/run/secrets/a": "1", "/run/secrets/b": "2", "/etc/app/c.pem": "3"}
        found = self.archives(Payload(secret_files=files, read_only=True), tmp_path)
        assert found == {
            "/run/secrets": {"a": (0o444, "1"), "b": (0o444, "2")},
            "/etc/app": {"c.pem": (0o444, "3")},
        }
        assert secret_file_folders(files) == ["/etc/app", "/run/secrets"]

    def test_no_time_of_packing_is_in_it(self) -> None:
        """The same files are the same bytes, tomorrow too: else every run would be a change."""
        ((_, archive),) = remote._archives(Payload(secret_files={"/a": "b"}))
        with tarfile.open(fileobj=io.BytesIO(base64.b64decode(archive))) as unpacked:
            assert [(entry.mtime, entry.uid, entry.gid, entry.uname) for entry in unpacked] == [(0, 0, 0, "")]

    def test_no_file_no_archive(self, tmp_path: Path) -> None:
        assert self.archives(Payload(), tmp_path) == {}

    def test_a_copy_that_fails_fails_the_whole(self, tmp_path: Path) -> None:
        text = remote._assignments(Payload(secret_files={"/a": "b"}))
        text = f"copy_secret_file_archive() {{ return 1; }}\n{text}\ncopy_secret_files id && echo fine\n"
        assert run("sh -s", text, tmp_path).stdout == ""


class TestFingerprint:
    """Two releases are the same exactly when all that makes them is the same."""

    def test_it_is_64_digits(self) -> None:
        assert re.fullmatch("[0-9a-f]{64}", fingerprint(["a"], {"b": "c"}))

    def test_the_order_of_a_map_does_not_matter(self) -> None:
        assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})

    def test_the_order_of_a_list_does(self) -> None:
        assert fingerprint(["a", "b"]) != fingerprint(["b", "a"])

    def test_where_one_value_ends_matters(self) -> None:
        assert len({fingerprint(["ab"], []), fingerprint(["a"], ["b"]), fingerprint(["a", "b"], [])}) == 3

    def test_it_does_not_change_between_versions(self) -> None:
        """Another digest for the same settings would replace every running release once."""
        assert fingerprint(["--env=A=1"], ["x"]).startswith("bdefe351")
