"""Which commit is deployed, whether it is built here, and every sentence that says why not."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from components import source
from components.source import SourceError, check_ignored, inspect
from tests.unit.image_settings import make_settings

UNKNOWN = "0123456789" * 4


def git(folder: Path, *arguments: str) -> str:
    environment = {
        **os.environ,
        "GIT_AUTHOR_NAME": "a",
        "GIT_AUTHOR_EMAIL": "a@example.org",
        "GIT_COMMITTER_NAME": "a",
        "GIT_COMMITTER_EMAIL": "a@example.org",
        "GIT_CONFIG_GLOBAL": "/dev/null",
    }
    done = subprocess.run(
        ["git", "-C", str(folder), *arguments], check=True, capture_output=True, text=True, env=environment
    )
    return done.stdout.strip()


def commit(root: Path, message: str = "a change") -> str:
    git(root, "add", "-A")
    git(root, "commit", "-q", "--allow-empty", "-m", message)
    return git(root, "rev-parse", "HEAD")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a repository with an application in app/ and two commits."""
    folder = tmp_path_factory.mktemp("made") / "project"
    (folder / "app").mkdir(parents=True)
    git(folder, "init", "-q", "--template=")
    (folder / "app/Dockerfile").write_text("FROM scratch\nCOPY . /\n")
    (folder / "app/main.py").write_text("print(1)\n")
    (folder / ".gitignore").write_text("*.pyc\n/ignored/\n")
    commit(folder, "first")
    (folder / "app/main.py").write_text("print(2)\n")
    commit(folder, "second")
    return folder


@pytest.fixture
def root(made: Path, tmp_path: Path) -> Path:
    """Give a copy of that repository, which takes a fifth of the time."""
    return shutil.copytree(made, tmp_path / "project")


def head(root: Path) -> str:
    return git(root, "rev-parse", "HEAD")


def wrong(root: Path, **changes: object) -> str:
    with pytest.raises(SourceError) as caught:
        inspect(make_settings(root, **changes))
    return str(caught.value)


class TestIgnored:
    """What git ignores and Docker does not goes into an image that has a commit's name."""

    @pytest.fixture
    def left(self, root: Path) -> Path:
        (root / ".gitignore").write_text("*.pyc\n__pycache__/\n.env\n*.log\n/.env.top\n")
        (root / ".env.top").write_text("x")
        commit(root)
        (root / "app/__pycache__").mkdir()
        (root / "app/__pycache__/main.pyc").write_text("x")
        (root / "app/.env").write_text("PASSWORD=x")
        return root

    def test_it_is_told_in_one_sentence(self, left: Path) -> None:
        assert inspect(make_settings(left)).dirty is False
        assert check_ignored(make_settings(left), head(left)) == (
            "git ignores .env, __pycache__/ in the build context app, so no commit says what of it the image will "
            f"hold: list it in {left / 'app/.dockerignore'} as well, unless the image needs it."
        )

    def test_a_few_are_named(self, left: Path) -> None:
        for number in range(9):
            (left / f"app/{number}.log").write_text("x")
        assert str(check_ignored(make_settings(left), head(left))).startswith(
            "git ignores .env, 0.log, 1.log, 2.log and 7 more in the build context app, "
        )

    def test_what_docker_leaves_out_is_not(self, left: Path) -> None:
        (left / "app/.dockerignore").write_text("**/.env\n**/*.pyc\n")
        assert check_ignored(make_settings(left), head(left)) is None

    def test_nor_what_is_beside_the_context(self, root: Path) -> None:
        (root / ".gitignore").write_text(".env\n")
        (root / ".env").write_text("x")
        assert check_ignored(make_settings(root), head(root)) is None

    def test_where_no_dirty_tree_is_allowed_it_is_an_error(self, left: Path) -> None:
        with pytest.raises(
            SourceError, match=r"What would be built is not commit [0-9a-f]{12}: .*\.env, __pycache__/"
        ) as caught:
            check_ignored(make_settings(left, allow_dirty=False), head(left))
        assert str(left / "app/.dockerignore") in str(caught.value)
        assert "esteira:allowDirty: true" in str(caught.value)


class TestCommit:
    """Exactly one commit is deployed, known by all its digits."""

    def test_head_is_built_when_nothing_is_declared(self, root: Path) -> None:
        found = inspect(make_settings(root))
        assert (found.commit, found.tag, found.build, found.dirty) == (head(root), head(root), True, False)

    def test_the_checked_out_commit_is_built_when_it_is_declared(self, root: Path) -> None:
        assert inspect(make_settings(root, commit=head(root))).build

    def test_an_earlier_commit_is_looked_up(self, root: Path) -> None:
        earlier = git(root, "rev-parse", "HEAD~1")
        found = inspect(make_settings(root, commit=earlier))
        assert (found.commit, found.tag, found.build) == (earlier, earlier, False)
        assert "not the commit that is checked out" in found.reason

    def test_promotion_never_builds(self, root: Path) -> None:
        found = inspect(make_settings(root, promote=True))
        assert (found.commit, found.build) == (head(root), False)

    def test_promotion_does_not_care_about_a_dirty_tree(self, root: Path) -> None:
        (root / "app/main.py").write_text("dirty")
        found = inspect(make_settings(root, promote=True, allow_dirty=False))
        assert (found.tag, found.dirty) == (head(root), False)

    def test_a_whole_sha_that_git_does_not_know_is_looked_up(self, root: Path) -> None:
        assert inspect(make_settings(root, commit=UNKNOWN)).commit == UNKNOWN

    def test_capital_letters_are_the_same_commit(self, root: Path) -> None:
        assert inspect(make_settings(root, commit=head(root).upper())).build

    def test_a_short_sha_is_completed(self, root: Path) -> None:
        assert inspect(make_settings(root, commit=head(root)[:9])).commit == head(root)

    def test_a_short_sha_is_not_taken_for_a_branch_of_that_name(self, root: Path) -> None:
        git(root, "branch", head(root)[:9], "HEAD~1")
        assert inspect(make_settings(root, commit=head(root)[:9])).commit == head(root)

    def test_a_short_sha_that_is_unknown(self, root: Path) -> None:
        message = wrong(root, commit="0123456")
        assert "esteira:commit (Pulumi.staging.yaml)" in message
        assert "git fetch --all" in message
        assert "esteira:commit:" in message

    def test_an_ambiguous_sha_shows_the_commits(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        found = [head(root), UNKNOWN]
        monkeypatch.setattr(source, "_commits_with_prefix", lambda *_: iter(found))
        message = wrong(root, commit="0123456")
        assert "beginning of 2 commits" in message
        assert all(f"esteira:commit: {sha}" in message for sha in found)

    def test_only_commits_complete_a_short_sha(self, root: Path) -> None:
        tree = git(root, "rev-parse", "HEAD^{tree}")
        assert "does not begin a commit" in wrong(root, commit=tree[:12])

    def test_a_shallow_clone_knows_its_head_and_says_so_of_the_rest(self, root: Path, tmp_path: Path) -> None:
        earlier = git(root, "rev-parse", "HEAD~1")
        shallow = tmp_path / "shallow"
        git(tmp_path, "clone", "-q", "--depth=1", f"file://{root}", str(shallow))
        assert inspect(make_settings(shallow)).build
        assert not inspect(make_settings(shallow, commit=earlier)).build
        assert "shallow clone" in wrong(shallow, commit=earlier[:10])

    def test_another_repository_in_the_context_is_the_one_that_counts(self, root: Path) -> None:
        inner = root / "ignored/inner"
        inner.mkdir(parents=True)
        git(inner, "init", "-q")
        (inner / "Dockerfile").write_text("FROM scratch\n")
        sha = commit(inner)
        found = inspect(make_settings(root, context="ignored/inner"))
        assert (found.commit, found.build) == (sha, True)

    def test_a_context_outside_of_the_project(self, root: Path, tmp_path: Path) -> None:
        project = tmp_path / "deploy"
        project.mkdir()
        found = inspect(make_settings(project, context="../project/app"))
        assert (found.commit, found.build) == (head(root), True)

    def test_a_hook_that_sets_the_repository_does_not_mislead(
        self, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))
        monkeypatch.setenv("GIT_INDEX_FILE", str(tmp_path / "index"))
        found = inspect(make_settings(root))
        assert (found.build, found.dirty) == (True, False)


class TestGitThatCannotSay:
    """Without git's word a commit must be declared, and then its image is looked up."""

    def test_no_repository(self, tmp_path: Path) -> None:
        message = wrong(tmp_path)
        assert "in no git repository" in message
        assert "esteira:commit:" in message

    def test_no_repository_and_a_declared_commit(self, tmp_path: Path) -> None:
        found = inspect(make_settings(tmp_path, commit=UNKNOWN))
        assert not found.build
        assert "cannot be built here" in found.reason

    def test_no_repository_and_a_short_commit(self, tmp_path: Path) -> None:
        assert "is short, and git cannot complete it" in wrong(tmp_path, commit="abcdef0")

    def test_no_commit_yet(self, tmp_path: Path) -> None:
        git(tmp_path, "init", "-q")
        assert "no commit yet" in wrong(tmp_path)

    def test_git_is_missing(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATH", "/nowhere")
        assert "git is not installed" in wrong(root)

    def test_git_hangs(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(source, "GIT_SECONDS", 0.0)
        assert "git did not answer" in wrong(root)

    def test_git_hangs_later(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        checkout = source._checkout(root)
        monkeypatch.setattr(source, "_checkout", lambda _: checkout)
        monkeypatch.setattr(source, "GIT_SECONDS", 0.0)
        assert "What is checked out cannot be told: git did not answer" in wrong(root)

    def test_a_repository_of_another_user(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        # git's own switch for its tests: every repository belongs to someone else.
        monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
        monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
        message = wrong(root)
        assert f"git config --global --add safe.directory {root}" in message


class TestDirty:
    """A tag with a commit's name is that commit; anything else says so."""

    def test_the_tag_says_so(self, root: Path) -> None:
        (root / "app/main.py").write_text("print(3)\n")
        found = inspect(make_settings(root))
        assert found.dirty
        assert found.build
        assert found.tag.startswith(f"{head(root)}-dirty-")
        assert len(found.tag) == 40 + len("-dirty-") + 12
        assert found.changed == ("app/main.py",)

    def test_the_same_content_has_the_same_tag_and_another_another(self, root: Path) -> None:
        settings = make_settings(root)
        file = root / "app/main.py"
        file.write_text("print(3)\n")
        first = inspect(settings).tag
        file.touch()
        assert inspect(settings).tag == first
        file.write_text("print(4)\n")
        assert inspect(settings).tag != first
        file.write_text("print(3)\n")
        assert inspect(settings).tag == first

    def test_new_removed_renamed_and_executable_files_all_count(self, root: Path) -> None:
        settings = make_settings(root)
        tags = set()

        def note() -> None:
            found = inspect(settings)
            assert found.dirty
            tags.add(found.tag)

        (root / "app/new file.py").write_text("x")
        note()
        (root / "app/new file.py").rename(root / "app/newer.py")
        note()
        (root / "app/newer.py").chmod(0o755)
        note()
        (root / "app/newer.py").unlink()
        (root / "app/newer.py").symlink_to("main.py")
        note()
        (root / "app/newer.py").unlink()
        (root / "app/main.py").unlink()
        note()
        assert len(tags) == 5

    def test_ignored_files_and_files_elsewhere_do_not_count(self, root: Path) -> None:
        (root / "app/x.pyc").write_text("x")
        (root / "elsewhere.txt").write_text("x")
        assert not inspect(make_settings(root)).dirty

    def test_a_changed_dockerfile_outside_of_the_context_counts(self, root: Path) -> None:
        (root / "Other.Dockerfile").write_text("FROM scratch\n")
        found = inspect(make_settings(root, dockerfile="../Other.Dockerfile"))
        assert found.changed == ("Other.Dockerfile",)

    def test_names_that_are_patterns_or_not_text(self, root: Path) -> None:
        odd = root / "a*p"
        odd.mkdir()
        (odd / "Dockerfile").write_text("FROM scratch\n")
        commit(root)
        (root / "app/main.py").write_text("dirty elsewhere")
        assert not inspect(make_settings(root, context="a*p")).dirty
        Path(os.fsdecode(os.fsencode(odd) + b"/\xff")).write_text("x")
        assert inspect(make_settings(root, context="a*p")).dirty

    def test_it_is_refused_where_it_is_not_allowed(self, root: Path) -> None:
        (root / "app/main.py").write_text("print(3)\n")
        message = wrong(root, allow_dirty=False, stack="prod")
        assert "app/main.py" in message
        assert "Pulumi.prod.yaml" in message
        assert "esteira:allowDirty: true" in message

    def test_at_most_ten_files_are_named(self, root: Path) -> None:
        for number in range(13):
            (root / f"app/f{number:02}").write_text("x")
        message = wrong(root, allow_dirty=False)
        assert "13 changed or new files" in message
        assert "f09 and 3 more" in message
        assert "f10" not in message

    def test_an_untracked_repository_inside(self, root: Path) -> None:
        inner = root / "app/inner"
        inner.mkdir()
        git(inner, "init", "-q")
        (inner / "x").write_text("x")
        commit(inner)
        first = inspect(make_settings(root)).tag
        (inner / "x").write_text("y")
        assert inspect(make_settings(root)).tag != first

    def test_an_ignored_context_has_no_commit(self, root: Path) -> None:
        (root / "ignored").mkdir()
        (root / "ignored/Dockerfile").write_text("FROM scratch\n")
        message = wrong(root, context="ignored")
        assert "git ignores the folder ignored" in message


class TestContext:
    """What cannot be built is said before anything is built."""

    def test_no_folder(self, root: Path) -> None:
        message = wrong(root, context="nowhere")
        assert "esteira:image.context (Pulumi.staging.yaml)" in message
        assert "does not exist" in message

    def test_a_file(self, root: Path) -> None:
        message = wrong(root, context="app/main.py")
        assert "is a file" in message
        assert "esteira:image:\n          context: app" in message

    def test_no_dockerfile(self, root: Path) -> None:
        (root / "app/Dockerfile").rename(root / "app/prod.Dockerfile")
        commit(root)
        message = wrong(root)
        assert "esteira:image.dockerfile (Pulumi.staging.yaml)" in message
        assert "dockerfile: prod.Dockerfile" in message

    def test_a_dockerfile_named_from_the_project(self, root: Path) -> None:
        (root / "docker").mkdir()
        (root / "docker/Dockerfile").write_text("FROM scratch\n")
        commit(root)
        assert "dockerfile: ../docker/Dockerfile" in wrong(root, dockerfile="docker/Dockerfile")

    def test_no_dockerfile_anywhere(self, root: Path) -> None:
        (root / "app/Dockerfile").unlink()
        commit(root)
        assert "dockerfile: FILE" in wrong(root)

    def test_a_folder_for_a_dockerfile(self, root: Path) -> None:
        (root / "app/docker").mkdir()
        assert "dockerfile: docker/Dockerfile" in wrong(root, dockerfile="docker")

    def test_a_dockerignore_that_names_the_dockerfile_is_fine(self, root: Path) -> None:
        (root / "app/.dockerignore").write_text("Dockerfile\n")
        commit(root)
        assert inspect(make_settings(root)).build

    def test_nothing_of_it_matters_when_nothing_is_built(self, root: Path) -> None:
        assert not inspect(make_settings(root, context="nowhere", promote=True)).build
        assert not inspect(make_settings(root, context="nowhere", commit=UNKNOWN)).build

    @pytest.mark.parametrize("line", [".esteira", "/.esteira/", "**/.esteira", ".*", "*", ".est*/**"])
    def test_the_project_s_own_passwords_are_left_out(self, root: Path, line: str) -> None:
        (root / ".esteira/local").mkdir(parents=True)
        (root / ".gitignore").write_text(".esteira/\n")
        (root / "Dockerfile").write_text("FROM scratch\n")
        commit(root)
        message = wrong(root, context=".")
        assert "state and passwords" in message
        assert str(root / ".dockerignore") in message
        (root / ".dockerignore").write_text(f"# what stays here\n{line}\n")
        commit(root)
        assert inspect(make_settings(root, context=".")).build

    def test_a_dockerfile_s_own_dockerignore_goes_first(self, root: Path) -> None:
        (root / ".esteira").mkdir()
        (root / ".gitignore").write_text(".esteira/\n")
        (root / "Dockerfile").write_text("FROM scratch\n")
        (root / ".dockerignore").write_text(".esteira\n")
        (root / "Dockerfile.dockerignore").write_text("*.md\n")
        commit(root)
        assert "Dockerfile.dockerignore" in wrong(root, context=".")

    def test_a_context_beside_them_is_fine(self, root: Path) -> None:
        (root / ".esteira").mkdir()
        assert inspect(make_settings(root)).build
