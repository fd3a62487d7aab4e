"""An offline preview: what is declared, with nothing secret in reach, compared with the branch before."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

from cli import offline
from cli.offline import Declaration, compare, declare, placeholders, report, run
from cli.offline_child import PLACEHOLDER, conceal
from components.errors import EsteiraError
from tests.unit.declared import SECRET_SIGNATURE
from tests.unit.test_source import commit, git

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a repository of the program and its stack files."""
    root = tmp_path_factory.mktemp("tree")
    for file in (*ROOT.glob("Pulumi*.yaml"), ROOT / "__main__.py"):
        shutil.copy(file, root)
    for folder in ("components", "rehearsal", "examples"):
        shutil.copytree(ROOT / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__"))
    git(root, "init", "-q")
    commit(root)
    return root


class TestWhole:
    """The shipped stacks, before and after a change."""

    def test_a_change_is_seen_and_no_secret_is_near(
        self, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setenv("DEPLOYMENT_SERVER_PASS", "MARKER-pass")
        monkeypatch.setenv("CI_REGISTRY_PASSWORD", "MARKER-job")
        before = git(tree, "rev-parse", "HEAD").strip()
        file = tree / "Pulumi.staging.yaml"
        file.write_text(file.read_text().replace("memory: 256m", "memory: 384m"))
        commit(tree)

        run(tree, before, ["staging", "gitlab"], tmp_path / "out")

        said = capsys.readouterr().out
        assert "staging: " in said
        assert "changed" in said
        assert "gitlab: declares the same" in said
        summary = (tmp_path / "out/summary.md").read_text()
        assert "384m" in summary
        everything = summary + "".join(path.read_text() for path in (tmp_path / "out").glob("*.yaml"))
        assert "MARKER" not in everything
        assert PLACEHOLDER not in everything
        assert str(tree) not in everything
        assert "git worktree" not in git(tree, "worktree", "list").splitlines()[1:]
        declared = yaml.safe_load((tmp_path / "out/gitlab.yaml").read_text())
        variable = declared["gitlab:index/projectVariable:ProjectVariable ci-CONTAINER_IMAGE"]
        assert variable["value"] == "[secret]"

    def test_wrong_settings_are_told_as_by_pulumi(self, tree: Path, tmp_path: Path) -> None:
        file = tree / "Pulumi.wrong.yaml"
        file.write_text(
            (tree / "Pulumi.staging.yaml").read_text().replace("name: parasite", "name: Not/A/Name")
        )
        with pytest.raises(EsteiraError, match=r"Stack wrong: The settings have 1 mistake"):
            run(tree, None, ["wrong"], tmp_path / "out")
        assert "cannot be declared" in (tmp_path / "out/summary.md").read_text()

    def test_a_branch_without_the_stack_declares_nothing(self, tmp_path: Path) -> None:
        assert declare(tmp_path, "prod") == Declaration()

    def test_an_unknown_revision(self, tree: Path, tmp_path: Path) -> None:
        with pytest.raises(EsteiraError, match="GIT_DEPTH"), offline._tree(tree, "no-such-revision"):
            pass


class TestPlaceholders:
    """In the place of secrets stands what has their form."""

    def write(self, tmp_path: Path, text: str) -> Path:
        file = tmp_path / "Pulumi.dev.yaml"
        file.write_text("config:\n" + text)
        return file

    def test_what_is_encrypted(self, tmp_path: Path) -> None:
        file = self.write(
            tmp_path,
            "  esteira:serverPrivateKey: {secure: v1:x}\n  esteira:secretEnvironment: {A: {secure: v1:x}}\n",
        )
        config, secret_keys, _ = placeholders(file)
        assert "PRIVATE KEY" in str(config["esteira:serverPrivateKey"])
        assert config["esteira:secretEnvironment"] == {"A": PLACEHOLDER}
        assert secret_keys == ["esteira:secretEnvironment", "esteira:serverPrivateKey"]

    def test_what_jobs_of_protected_branches_get(self, tmp_path: Path) -> None:
        _, _, variables = placeholders(self.write(tmp_path, "  esteira:container: {name: a}\n"))
        assert variables["DEPLOYMENT_SERVER_IP"] == "192.0.2.1"
        assert variables["CI_REGISTRY_PASSWORD"] == variables["CI_DEPLOY_PASSWORD"] == PLACEHOLDER

    def test_it_is_the_same_in_both_trees(self, tmp_path: Path) -> None:
        file = self.write(tmp_path, "  esteira:serverPrivateKey: {secure: v1:x}\n")
        assert placeholders(file) == placeholders(file)


class TestComparison:
    """Added, removed, changed; what cannot be compared says so."""

    def test_counts(self) -> None:
        one = compare(
            "s", Declaration({"a": "1", "b": "2", "c": "3"}), Declaration({"b": "2", "c": "4", "d": "5"})
        )
        assert (one.added, one.removed, one.changed) == (("d",), ("a",), ("c",))
        assert one.summary == "s: 1 added, 1 changed, 1 removed"
        assert "-3" in one.diff.splitlines()

    def test_the_same(self) -> None:
        one = compare("s", Declaration({"a": "1"}), Declaration({"a": "1"}))
        assert (one.summary, one.diff) == ("s: declares the same", "")

    def test_a_broken_branch_before(self) -> None:
        one = compare("s", Declaration(error="Broken.\nMore."), Declaration({"a": "1"}))
        assert one.summary.endswith("the branch before says: Broken.")
        assert "Broken." in report([one], "main")

    def test_secrets_and_unknowns(self) -> None:
        given = {"a": {SECRET_SIGNATURE: "x", "value": "MARKER"}, "b": [1.0, True, None]}
        assert conceal(given) == {"a": "[secret]", "b": [1, True, None]}
