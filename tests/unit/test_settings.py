"""The settings: what is right is read, what is wrong is told at once, and no secret is ever shown."""

from __future__ import annotations

import itertools
import json
import traceback
from pathlib import Path
from typing import Any

import pulumi
import pytest
import yaml
from pydantic import BaseModel, SecretStr, ValidationError

from components import settings as module
from components import settings_rules as rule
from components.errors import EsteiraError
from components.reading import read_servers
from components.settings import (
    ContainerSettings,
    HealthSettings,
    PortSettings,
    ServerSettings,
    Settings,
    SettingsError,
    from_pulumi,
    image_name,
    parse_stack_file,
    secret_keys_of_model,
    settings_reference,
    with_settings_table,
)
from tests.unit.wrong_settings import (
    ABSENT,
    HOST_KEY,
    SECRETS,
    WRONG,
    Wrong,
    changed,
    load,
    pkcs8_key,
    private_key,
    right,
    rsa_key,
)

ROOT = Path(__file__).resolve().parents[2]
LOCAL: dict[str, Any] = {
    "registry": "127.0.0.1:5000",
    "repository": "esteira/parasite",
    "container": {"name": "parasite", "ports": ["8888:8000"]},
    "servers": [{"local": True}],
}
NO_SERVER = [(key, ABSENT) for key in ("servers", "sudoPassword", "jumpPassword", "jumpPrivateKey")]


def mistakes_of(values: dict[str, Any], **options: Any) -> SettingsError:
    with pytest.raises(SettingsError) as caught:
        load(values, **options)
    return caught.value


def case_id(case: Wrong) -> str:
    return f"{case.key}: {case.problem[:40]}"


class TestWrongSettings:
    """Each mistake is told with its key, the stack file, what is wrong and what to write."""

    def test_the_table_is_large_and_has_no_case_twice(self) -> None:
        assert len(WRONG) >= 80
        assert len({repr((case.change, case.options)) for case in WRONG}) == len(WRONG)

    @pytest.mark.parametrize("case", WRONG, ids=case_id)
    def test_a_wrong_setting_gives_its_error(self, case: Wrong) -> None:
        error = mistakes_of(changed(*case.change), **case.options)

        first = error.mistakes[0]
        assert first.key == case.key
        assert first.file == "Pulumi.staging.yaml"
        assert case.problem in first.problem
        assert first.write == case.write
        assert tuple(item.key for item in error.mistakes[1:]) == case.also
        for mistake in error.mistakes:
            assert mistake.problem.endswith("."), "a finished sentence"
            assert f"esteira:{mistake.key} (Pulumi.staging.yaml): {mistake.problem}" in str(error)
            assert all(line in str(error) for line in mistake.write)

    @pytest.mark.parametrize("case", WRONG, ids=case_id)
    def test_lines_to_write_are_yaml(self, case: Wrong) -> None:
        if case.write[0].startswith("esteira:"):
            [(key, value)] = yaml.safe_load("\n".join(case.write)).items()
            assert key.startswith("esteira:")
            assert value is not None

    def test_all_mistakes_are_told_in_one_go(self) -> None:
        error = mistakes_of(
            changed(
                ("registri", "x"),
                ("registry", "https://registry.example.com"),
                ("repository", "Group/Parasite"),
                ("commit", "HEAD"),
                ("movingTag", "0123abc"),
                ("image/platform", "arm64"),
                ("container/name", "para site"),
                ("container/ports", ["8888:8000", "8888:9000", "1"]),
                ("container/environment/DEBUG", True),
                ("container/environment/API_TOKEN", "x"),
                ("container/memory", "256"),
                ("container/logging", {"driver": "a b"}),
                ("health/status", 99),
                ("health/interval", 0),
                ("servers/0/hostKey", ABSENT),
                ("servers/0/port", 0),
                ("servers/1", {"host": "a@b.example.com", "name": "web"}),
                ("secretEnvironment/1ST", "MARKER"),
                ("serverPrivateKey", "MARKER"),
            )
        )

        assert {item.key for item in error.mistakes} == {
            "registri",
            "registry",
            "repository",
            "commit",
            "movingTag",
            "image.platform",
            "container.name",
            "container.ports[1]",
            "container.ports[2]",
            "container.environment.DEBUG",
            "container.memory",
            "container.logging.driver",
            "health.status",
            "health.interval",
            "servers[0].hostKey",
            "servers[0].port",
            "servers[1].host",
            "servers[1].hostKey",
            "servers[1].name",
            'secretEnvironment["1ST"]',
            "serverPrivateKey",
        }
        assert str(error).startswith("The settings have 21 mistakes; nothing has been touched.\n1. ")

    def test_the_message_reads_like_this(self) -> None:
        error = mistakes_of(changed(("container/memory", "256"), ("serverPassword", "")))

        assert str(error).splitlines() == [
            "The settings have 2 mistakes; nothing has been touched.",
            f"1. esteira:container.memory (Pulumi.staging.yaml): {error.mistakes[0].problem}",
            "    Write:",
            "        esteira:container:",
            "          memory: 256m",
            "2. esteira:serverPassword (Pulumi.staging.yaml): The key has no value: write one, or leave the key out.",
            "    Type:",
            "        pulumi config set --secret esteira:serverPassword",
        ]
        assert isinstance(error, EsteiraError)

    def test_a_missing_host_key_says_how_to_get_and_check_one(self) -> None:
        problem = (
            mistakes_of(changed(("servers/0/hostKey", ABSENT), ("servers/0/port", 2222))).mistakes[0].problem
        )

        assert "ssh-keyscan -t ed25519 -p 2222 web.example.com" in problem
        assert "ssh-keygen -lf" in problem

    def test_a_mistake_of_the_environment_names_the_variable(self) -> None:
        [mistake] = mistakes_of(right(), environ={"CI_COMMIT_SHA": "main"}).mistakes
        assert mistake.problem.endswith("The value comes from the environment variable CI_COMMIT_SHA.")

        environ = {"DEPLOYMENT_SERVER_IP": "192.0.2.1"}
        [mistake] = mistakes_of(changed(*NO_SERVER), environ=environ).mistakes
        assert mistake.write[0].startswith("export DEPLOYMENT_SERVER_HOST_KEY='ssh-ed25519 ")

    def test_an_unencrypted_secret_is_told_once_and_hides_nothing(self) -> None:
        error = mistakes_of(changed(("container/memory", "256")), secret_keys=frozenset())

        assert {item.key for item in error.mistakes} == (secret_keys_of_model() & right().keys()) | {
            "container.memory"
        }


class TestSecretsStaySecret:
    """Whatever is wrong, and wherever: no error, and no text about the settings, shows a secret."""

    @staticmethod
    def fragments() -> list[str]:
        keys = [
            private_key(),
            private_key(name="jump"),
            private_key("MARKER-passphrase"),
            pkcs8_key("MARKER-passphrase"),
        ]
        lines = itertools.chain.from_iterable(key.splitlines()[1:-1] for key in keys)
        return [
            "MARKER",
            *(line[:20] for line in lines if len(line) >= 20 and not line.startswith("b3BlbnNzaC1rZXk")),
        ]

    @pytest.mark.parametrize("case", WRONG, ids=case_id)
    def test_no_secret_in_an_error(self, case: Wrong) -> None:
        error = mistakes_of(changed(*case.change), **case.options)

        shown = [str(error), repr(error), repr(error.mistakes), *traceback.format_exception(error)]
        for fragment in self.fragments():
            assert not any(fragment in text for text in shown), fragment[:6]
        assert error.__context__ is None
        assert error.__cause__ is None

    @pytest.mark.parametrize("key", sorted(secret_keys_of_model()))
    @pytest.mark.parametrize(
        "wrong",
        [
            "MARKER\0",
            "MARKER\nMARKER",
            '{"MARKER',
            '{"name": ["MARKER"]}',
            '["MARKER"]',
            ["MARKER"],
            {"name": {"deep": "MARKER"}},
            {"name": ["MARKER"]},
            {"a=MARKER": "x"},
        ],
        ids=repr,
    )
    def test_no_secret_of_any_wrong_shape(self, key: str, wrong: object) -> None:
        try:
            settings = load({**right(), key: wrong})
        except SettingsError as error:
            shown = [str(error), repr(error), *traceback.format_exception(error)]
        else:
            shown = [repr(settings), str(settings), str(settings.model_dump())]
        assert not any("MARKER" in text for text in shown)

    def test_no_secret_in_the_settings_themselves(self) -> None:
        settings = load(right())

        for text in (repr(settings), str(settings), settings.model_dump_json()):
            assert not any(fragment in text for fragment in self.fragments())

    def test_pydantics_own_errors_show_no_input(self) -> None:
        with pytest.raises(ValidationError) as caught:
            ContainerSettings(name="x", environment={"A": "MARKER\0"})
        assert "MARKER" not in str(caught.value)


class TestRightSettings:
    """What is right is read, in every form."""

    def test_everything_at_once(self) -> None:
        settings = load(right())

        assert image_name(settings) == "registry.example.com/group/parasite"
        assert settings.container.ports == [PortSettings(published=8888, target=8000)]
        assert settings.health.test == "http"
        assert settings.health_port == 8000
        assert settings.registry_password == SecretStr("MARKER-registry")
        assert settings.server_password == {"web": SecretStr("MARKER-server")}
        assert settings.server_private_key["web"].get_secret_value() == private_key()
        assert settings.secret_environment == {"API_TOKEN": SecretStr("MARKER-env")}
        assert settings.secret_files == {"/run/secrets/token": SecretStr("MARKER-file")}
        assert settings.allow_dirty is True
        assert settings.container.logging.options == {"max-size": "10m", "max-file": "3"}

    def test_pulumis_text_form_is_the_same(self) -> None:
        """Pulumi hands over maps and lists as JSON and everything else as text."""
        values = changed(
            ("keepReleases", 3), ("promote", True), ("connectTimeout", 5), ("preDeploy", ["a", "b"])
        )
        as_text = {
            key: value if isinstance(value, str) else json.dumps(value) for key, value in values.items()
        }

        assert load(as_text) == load(values)

    def test_settings_are_frozen_and_closed(self) -> None:
        settings = load(LOCAL)

        with pytest.raises(ValidationError, match="frozen"):
            settings.moving_tag = "other"
        with pytest.raises(ValidationError, match="frozen"):
            settings.container.name = "other"
        with pytest.raises(ValidationError, match=r"[Ee]xtra"):
            PortSettings(published=1, target=1, other=1)  # type: ignore[call-arg]

    @pytest.mark.parametrize(
        "change",
        [
            ("registry", "localhost:5000"),
            ("registry", "[::1]:5000"),
            ("repository", "a/b-c/d_e/f.g"),
            ("commit", "0123ABC"),
            ("commit", "1234567"),
            ("movingTag", "staging"),
            ("movingTag", "2026.11"),
            ("movingTag", "cafe"),
            ("image/platform", "linux/arm/v7"),
            ("image/dockerfile", "../Dockerfile"),
            ("image/buildArgs/TEXT", "two\nlines"),
            ("container/environment/discovery.type", "single-node"),
            ("container/environment/EMPTY", ""),
            ("container/environment/PEM", "two\nlines"),
            ("container/volumes", ["/srv/data:/data:ro", "cache:/cache"]),
            ("container/networks", ["backend", "front.end"]),
            ("container/memory", "6m"),
            ("container/memory", "1g"),
            ("container/cpus", 2),
            ("container/cpus", "0.5"),
            ("container/restart", "on-failure:5"),
            ("container/restart", "no"),
            ("container/user", 1000),
            ("container/user", "nobody:nogroup"),
            ("container/stopSignal", "QUIT"),
            ("container/stopSignal", "SIGRTMIN+3"),
            ("container/stopSignal", 15),
            ("container/stopTimeout", 0),
            ("container/tmpfs", ["/run/cache:size=64m"]),
            ("container/labels", {"traefik.enable": "true", "com.example/team": "a"}),
            ("container/logging", {"driver": "journald"}),
            ("container/ports", ["8888:8000", "127.0.0.1:9000:9000", "[::1]:9000:9000"]),
            ("health", {"test": "none"}),
            ("health", {"test": "image"}),
            ("health", {"test": "tcp", "port": 5432}),
            ("health/path", "/health?deep=1"),
            ("keepReleases", 0),
            ("lockTimeout", 0),
            ("preDeploy", "python3 manage.py migrate --no-input"),
            ("edgeImage", "registry.example.com:5000/tools/probe:1"),
            ("edgeImage", "caddy@sha256:" + "0" * 64),
            ("servers/0/host", "2001:db8::1"),
            ("servers/0/hostKey", f"{HOST_KEY} root@web"),
            ("serverPassword", {"web": "MARKER"}),
            ("serverPassword", "{not json"),
            ("serverPrivateKey", rsa_key()),
            ("serverPrivateKey", {"web": private_key()}),
            ("secretEnvironment/EMPTY", ""),
            ("secretFiles/|etc|app.pem", "two\nlines\n"),
        ],
        # The same in every process: of a key that was made for this run, only its first line.
        ids=lambda change: f"{change[0]}={repr(change[1]).partition(chr(92))[0]:.40}",
    )
    def test_forms_that_are_right(self, change: tuple[str, object]) -> None:
        load(changed(change))

    def test_a_host_without_a_network_needs_only_the_port_for_health(self) -> None:
        settings = load(
            changed(
                ("strategy", "recreate"),
                ("container/networks", ["host"]),
                ("container/ports", ABSENT),
                ("health/port", 8000),
            )
        )
        assert settings.health_port == 8000

    @pytest.mark.parametrize(
        ("written", "seconds"),
        [
            (2, 2),
            (0.5, 0.5),
            ("500ms", 0.5),
            ("2s", 2),
            ("1m", 60),
            ("1m30s", 90),
            ("2h", 7200),
            ("1.5", 1.5),
        ],
    )
    def test_durations(self, written: object, seconds: float) -> None:
        assert load(changed(("health/interval", written))).health.interval == seconds

    @pytest.mark.parametrize(
        ("written", "port"),
        [
            ("8888:8000", PortSettings(published=8888, target=8000)),
            ("127.0.0.1:8888:8000", PortSettings(published=8888, target=8000, address="127.0.0.1")),
            ("[::1]:8888:8000", PortSettings(published=8888, target=8000, address="::1")),
            ("53:53/udp", PortSettings(published=53, target=53, protocol="udp")),
            (
                {"published": 443, "target": 8443, "protocol": "https"},
                PortSettings(published=443, target=8443, protocol="https"),
            ),
        ],
        ids=str,
    )
    def test_ports(self, written: object, port: PortSettings) -> None:
        settings = load(
            {**LOCAL, "strategy": "recreate", "container": {"name": "parasite", "ports": [written]}}
        )
        assert settings.container.ports == [port]

    def test_a_command_in_one_line_is_split_as_a_shell_splits_it(self) -> None:
        settings = load(changed(("container/command", "sh -c 'echo \"a b\"'"), ("preDeploy", "[ -f x ]")))
        assert settings.container.command == ["sh", "-c", 'echo "a b"']
        assert settings.pre_deploy == ["[", "-f", "x", "]"]

    def test_health_is_http_with_a_path_and_auto_without(self) -> None:
        assert load(LOCAL).health.test == "auto"
        assert load({**LOCAL, "health": {"path": "/"}}).health.test == "http"
        assert HealthSettings(path="/").test == "http"
        assert HealthSettings().test == "auto"

    def test_log_rotation_is_for_drivers_that_know_it(self) -> None:
        settings = load(changed(("container/logging", {"driver": "journald"})))
        assert settings.container.logging.options == {}

    def test_a_dirty_tree_is_refused_on_prod_by_default(self) -> None:
        assert load(LOCAL, stack="prod").allow_dirty is False
        assert load(LOCAL, stack="staging").allow_dirty is True
        assert load({**LOCAL, "allowDirty": True}, stack="prod").allow_dirty is True

    @pytest.mark.parametrize(
        ("registry", "insecure", "plain"),
        [
            ("127.0.0.1:5000", False, True),
            ("localhost:5000", False, True),
            ("[::1]:5000", False, True),
            ("registry.example.com", False, False),
            ("10.0.0.1:5000", False, False),
            ("10.0.0.1:5000", True, True),
        ],
    )
    def test_a_loopback_registry_speaks_plain_http(self, registry: str, insecure: bool, plain: bool) -> None:
        assert (
            load({**LOCAL, "registry": registry, "registryInsecure": insecure}).registry_plain_http is plain
        )

    def test_server_names_come_from_hosts(self) -> None:
        key = {"hostKey": HOST_KEY}
        settings = load(
            {
                **LOCAL,
                "servers": [
                    {"local": True},
                    {"host": "a.example.com", **key},
                    {"host": "2001:db8::1", **key},
                ],
                "serverPassword": "MARKER",
            }
        )
        assert [server.name for server in settings.servers] == ["local", "a.example.com", "2001-db8--1"]
        assert set(settings.server_password) == {"a.example.com", "2001-db8--1"}

    def test_the_jump_host_is_entered_as_the_server_unless_it_has_secrets_of_its_own(self) -> None:
        settings = load(changed(("jumpPassword", ABSENT), ("jumpPrivateKey", ABSENT)))
        [server] = settings.servers
        assert settings.jump_login(server) == settings.login(server)
        assert load(right()).jump_login(server)[0] == SecretStr("MARKER-jump")

    def test_windows_line_ends_of_a_private_key_are_repaired(self) -> None:
        settings = load(changed(("serverPrivateKey", private_key().replace("\n", "\r\n").strip())))
        assert settings.server_private_key["web"].get_secret_value() == private_key()

    def test_the_pull_credential_is_the_registrys_by_default(self) -> None:
        settings = load(changed(("pullUser", ABSENT), ("pullPassword", ABSENT)))
        assert (settings.pull_user, settings.pull_password) == ("ana", SecretStr("MARKER-registry"))


class TestEnvironment:
    """What a stack file leaves out comes from the variables of a GitLab job."""

    JOB = {  # noqa: RUF012
        "CI_REGISTRY": "registry.gitlab.example",
        "CI_PROJECT_PATH": "Group/Parasite",
        "CI_REGISTRY_USER": "gitlab-ci-token",
        "CI_REGISTRY_PASSWORD": "MARKER-job",
        "CI_COMMIT_SHA": "0123456789abcdef0123456789abcdef01234567",
    }
    BARE = {"strategy": "recreate", "container": {"name": "parasite"}, "servers": [{"local": True}]}  # noqa: RUF012

    def test_registry_repository_commit_and_credentials(self) -> None:
        settings = load(self.BARE, environ=self.JOB)

        assert image_name(settings) == "registry.gitlab.example/group/parasite"
        assert settings.commit == self.JOB["CI_COMMIT_SHA"]
        assert settings.registry_user == settings.pull_user == "gitlab-ci-token"
        assert settings.registry_password == settings.pull_password == SecretStr("MARKER-job")
        assert settings.registry_credential_from_environment
        assert settings.pulls_with_job_token

    @pytest.mark.parametrize(
        "own",
        [
            {"CI_DEPLOY_USER": "token", "CI_DEPLOY_PASSWORD": "MARKER-deploy"},
            {"CI_REGISTRY_USER": "robot"},
        ],
        ids=["a deploy token", "a credential of the project's own"],
    )
    def test_several_servers_do_not_pull_with_a_jobs_token(self, own: dict[str, str]) -> None:
        """It ends with the job, and servers may pull later; another one in each job changes every command."""
        servers = [{"local": True}, {"host": "web.example.com", "hostKey": HOST_KEY}]
        fleet = {**self.BARE, "servers": servers, "serverPassword": "MARKER"}
        with pytest.raises(SettingsError) as error:
            load(fleet, environ=self.JOB)
        [mistake] = error.value.mistakes
        assert mistake.key == "pullPassword"
        assert "The servers would pull with this job's token" in mistake.problem
        assert "esteira:gitlab.deployToken" in mistake.problem
        assert mistake.write == (
            "pulumi config set esteira:pullUser USER",
            "pulumi config set --secret esteira:pullPassword",
        )
        assert not load(fleet, environ={**self.JOB, **own}).pulls_with_job_token

    def test_the_stack_file_comes_first(self) -> None:
        settings = load(changed(("commit", "0123abc")), environ=self.JOB)

        assert image_name(settings) == "registry.example.com/group/parasite"
        assert settings.commit == "0123abc"
        assert settings.registry_password == SecretStr("MARKER-registry")
        assert not settings.registry_credential_from_environment

    def test_a_jobs_credentials_go_to_the_jobs_registry_only(self) -> None:
        """A stack that names another registry, as local does, must not send it the job's token."""
        environ = {**self.JOB, "CI_DEPLOY_USER": "token", "CI_DEPLOY_PASSWORD": "MARKER-deploy"}
        settings = load(LOCAL, environ=environ)
        assert settings.registry_password is settings.pull_password is None

    def test_servers_pull_with_the_deploy_token(self) -> None:
        environ = {**self.JOB, "CI_DEPLOY_USER": "token", "CI_DEPLOY_PASSWORD": "MARKER-deploy"}
        settings = load(self.BARE, environ=environ)
        assert (settings.pull_user, settings.pull_password) == ("token", SecretStr("MARKER-deploy"))
        assert settings.registry_user == "gitlab-ci-token"

    def test_a_server_and_its_login(self) -> None:
        environ = {
            "DEPLOYMENT_SERVER_IP": "192.0.2.1",
            "DEPLOYMENT_SERVER_USER": "deploy",
            "DEPLOYMENT_SERVER_HOST_KEY": HOST_KEY,
            "DEPLOYMENT_SERVER_SUDO": "true",
            "DEPLOYMENT_SERVER_PASS": "MARKER-pass",
            "DEPLOYMENT_SERVER_KEY": private_key(),
        }
        settings = load(
            changed(*NO_SERVER, ("serverPassword", ABSENT), ("serverPrivateKey", ABSENT)), environ=environ
        )

        assert settings.servers == [
            ServerSettings(host="192.0.2.1", user="deploy", host_key=HOST_KEY, sudo=True)
        ]
        assert settings.server_password == {"192.0.2.1": SecretStr("MARKER-pass")}
        assert settings.server_private_key == {"192.0.2.1": SecretStr(private_key())}

    def test_variables_of_the_type_file(self, tmp_path: Path) -> None:
        (tmp_path / "key").write_text(private_key())
        (tmp_path / "host-key").write_text(f"# web:22 SSH-2.0\n{HOST_KEY}\n")
        environ = {
            "DEPLOYMENT_SERVER_IP": "192.0.2.1",
            "DEPLOYMENT_SERVER_HOST_KEY": str(tmp_path / "host-key"),
            "DEPLOYMENT_SERVER_KEY": str(tmp_path / "key"),
        }
        settings = load(
            changed(*NO_SERVER, ("serverPassword", ABSENT), ("serverPrivateKey", ABSENT)), environ=environ
        )

        assert settings.servers[0].host_key == HOST_KEY
        assert settings.server_private_key["192.0.2.1"].get_secret_value() == private_key()

    def test_a_local_server_has_no_use_for_a_login(self) -> None:
        settings = load(
            LOCAL, environ={"DEPLOYMENT_SERVER_KEY": "/nowhere", "DEPLOYMENT_SERVER_PASS": "MARKER"}
        )
        assert settings.server_password == settings.server_private_key == {}

    def test_the_registrys_password_from_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "password").write_text("MARKER-file\n")
        values = {**LOCAL, "registryUser": "esteira", "registryPasswordFile": "password"}
        settings = load(values, root=tmp_path)
        assert settings.registry_password == SecretStr("MARKER-file")
        assert not settings.registry_credential_from_environment

    def test_a_wrong_password_file_is_not_shown(self, tmp_path: Path) -> None:
        (tmp_path / "password").write_text("MARKER\nMARKER")
        error = mistakes_of(
            {**LOCAL, "registryUser": "esteira", "registryPasswordFile": "password"}, root=tmp_path
        )
        assert "MARKER" not in str(error)
        assert "The value comes from the file password." in str(error)


class TestStackFiles:
    """The files that are shipped, and how stack files are read."""

    @pytest.mark.parametrize("stack", ["local", "staging", "prod"])
    def test_a_shipped_stack_loads_once_its_secrets_are_set(self, stack: str, tmp_path: Path) -> None:
        values, encrypted = parse_stack_file(ROOT / f"Pulumi.{stack}.yaml")
        assert not encrypted
        password = tmp_path / ".esteira/local/registry-password"
        password.parent.mkdir(parents=True)
        password.write_text("MARKER")
        if stack != "local":
            values |= {"registryPassword": "MARKER", "serverPrivateKey": private_key()}
        if stack == "prod":
            values |= {"pullPassword": "MARKER"}

        settings = load(values, stack=stack, root=tmp_path)

        assert settings.container.name == "parasite"
        assert (settings.promote, settings.allow_dirty) == (
            (True, False) if stack == "prod" else (False, True)
        )
        assert settings.servers[0].local is (stack == "local")

    def test_the_local_stack_is_the_procedures_container(self) -> None:
        values, _ = parse_stack_file(ROOT / "Pulumi.local.yaml")
        assert values["container"] == {"name": "parasite", "ports": ["8888:8000"]}
        assert values["edgeImage"] == "esteira/edge:local", "what ./esteira up prepares"

    def test_values_are_what_the_engine_would_hand_over(self, tmp_path: Path) -> None:
        """PyYAML alone makes 15 of 0017, 3233 of 53:53, and false of no."""
        file = tmp_path / "Pulumi.dev.yaml"
        file.write_text(
            "encryptionsalt: v1:x\nconfig:\n  esteira:commit: 0012345\n  esteira:promote: true\n  esteira:strategy:\n"
            "  other:registry: x\n  esteira:container: {ports: [53:53], restart: no, cpus: 0.5, init: true, user: 7}\n"
            "  esteira:secretEnvironment:\n    TOKEN: {secure: v1:y}\n  esteira:sudoPassword: {secure: v1:z}\n"
        )
        values, encrypted = parse_stack_file(file)

        assert values == {
            "commit": "0012345",
            "promote": "true",
            "strategy": "",
            "container": {"ports": ["53:53"], "restart": "no", "cpus": 0.5, "init": True, "user": 7},
            "secretEnvironment": {"TOKEN": {"secure": "v1:y"}},
            "sudoPassword": {"secure": "v1:z"},
        }
        assert encrypted == {"secretEnvironment", "sudoPassword"}

    def test_a_file_that_is_not_yaml_is_told_with_its_line(self, tmp_path: Path) -> None:
        file = tmp_path / "Pulumi.dev.yaml"
        file.write_text("config:\n  esteira:commit: [MARKER\n")
        with pytest.raises(EsteiraError, match=r"Pulumi\.dev\.yaml is not YAML, line 3") as caught:
            parse_stack_file(file)
        assert "MARKER" not in str(caught.value)
        with pytest.raises(EsteiraError, match="cannot be read"):
            parse_stack_file(tmp_path / "Pulumi.none.yaml")

    def test_pulumi_yaml_agrees_with_the_model(self) -> None:
        """The schema holds the keys with a plain default, all of them, with the model's types, defaults and words."""
        project = yaml.safe_load((ROOT / "Pulumi.yaml").read_text())
        expected = {}
        for name, field in Settings.model_fields.items():
            extra = module._extra(field)
            plain = isinstance(field.default, (bool, int, str)) and extra.get("shown") is None
            if plain and extra.get("key", True):
                kind = {bool: "boolean", int: "integer", str: "string"}[type(field.default)]
                key = field.alias or name
                expected[key] = {"type": kind, "description": field.description, "default": field.default}

        assert project["config"] == expected
        assert project["name"] == "esteira"
        assert project["runtime"] == {
            "name": "python",
            "options": {"toolchain": "pip", "virtualenv": ".venv"},
        }


class TestPulumi:
    """The same, by way of Pulumi's own configuration."""

    @pytest.fixture(autouse=True)
    def project(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setattr(pulumi, "get_project", lambda: "esteira")
        monkeypatch.setattr(pulumi, "get_stack", lambda: "staging")
        monkeypatch.setattr(pulumi, "get_root_directory", lambda: str(tmp_path))
        for variable in ("CI_REGISTRY", "CI_COMMIT_SHA", "DEPLOYMENT_SERVER_KEY"):
            monkeypatch.delenv(variable, raising=False)

    @staticmethod
    def configure(monkeypatch: pytest.MonkeyPatch, values: dict[str, Any], secrets: frozenset[str]) -> None:
        text = {f"esteira:{k}": v if isinstance(v, str) else json.dumps(v) for k, v in values.items()}
        monkeypatch.setenv("PULUMI_CONFIG", json.dumps({**text, "aws:region": "x"}))
        monkeypatch.setenv("PULUMI_CONFIG_SECRET_KEYS", json.dumps([f"esteira:{key}" for key in secrets]))

    def test_from_pulumi(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        self.configure(monkeypatch, right(), secret_keys_of_model())
        assert from_pulumi() == load(right(), root=tmp_path)

    def test_a_secret_in_plain_text(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.configure(monkeypatch, right(), secret_keys_of_model() - {"sudoPassword"})
        with pytest.raises(SettingsError, match=r"esteira:sudoPassword .* plain text"):
            from_pulumi()

    def test_a_secret_map_that_is_half_encrypted(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        """The engine marks a map as secret if one of its values is; only the file shows that another is not."""
        self.configure(monkeypatch, right(), secret_keys_of_model())
        (tmp_path / "Pulumi.staging.yaml").write_text(
            "config:\n  esteira:secretEnvironment:\n    A: {secure: v1:x}\n    API_TOKEN: MARKER-env\n"
        )
        with pytest.raises(
            SettingsError, match=r"esteira:secretEnvironment\.API_TOKEN .* plain text"
        ) as caught:
            from_pulumi()
        assert "MARKER" not in str(caught.value)

    def test_a_preview_does_without_a_login(self, monkeypatch: pytest.MonkeyPatch) -> None:
        gone = [(key, ABSENT) for key in ("serverPassword", "serverPrivateKey")]
        self.configure(monkeypatch, changed(*gone), secret_keys_of_model())
        monkeypatch.delenv("DEPLOYMENT_SERVER_PASS", raising=False)
        with pytest.raises(SettingsError, match="No password and no private key to log in to web"):
            from_pulumi()
        monkeypatch.setattr(pulumi.runtime, "is_dry_run", lambda: True)
        found = from_pulumi()
        assert isinstance(found, Settings)
        assert found.lacks_login(found.servers[0])
        [said] = read_servers(found, "owner").values()
        assert "Server web was not read: neither a private key nor a password" in str(said)
        monkeypatch.setenv("DEPLOYMENT_SERVER_PASS", "given")
        found = from_pulumi()
        assert isinstance(found, Settings)
        assert not found.lacks_login(found.servers[0])

    def test_a_preview_of_this_machine_needs_none(self, monkeypatch: pytest.MonkeyPatch) -> None:
        gone = ("sudoPassword", "serverPassword", "serverPrivateKey", "jumpPassword", "jumpPrivateKey")
        values = changed(*((key, ABSENT) for key in gone), ("servers", [{"name": "web", "local": True}]))
        self.configure(monkeypatch, values, secret_keys_of_model())
        monkeypatch.setattr(pulumi.runtime, "is_dry_run", lambda: True)
        found = from_pulumi()
        assert isinstance(found, Settings)
        assert not found.lacks_login(found.servers[0])

    def test_unknown_keys_are_seen(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.configure(monkeypatch, {**right(), "contaner": {}}, secret_keys_of_model())
        with pytest.raises(SettingsError, match='"container" is probably meant'):
            from_pulumi()


class TestReference:
    """The README's table is made from the model."""

    def test_the_readme_has_the_table_of_the_model(self) -> None:
        readme = (ROOT / "README.md").read_text(encoding="utf-8")
        assert with_settings_table(readme) == readme, "run: python -m components.settings"

    def test_every_key_is_described(self) -> None:
        rows = settings_reference()
        assert len({row.key for row in rows}) == len(rows)
        assert all(row.description.endswith(".") and row.shape for row in rows)
        assert {"image.buildArgs", "container.ports[].protocol", "servers[].jumpHost.hostKey"} <= {
            row.key for row in rows
        }
        assert {row.key for row in rows if "secret" in row.shape} == secret_keys_of_model()
        assert secret_keys_of_model() == {
            *SECRETS,
            "serverPrivateKey",
            "jumpPrivateKey",
            "gitlabVariables",
            "gitlabToken",
        }

    def test_a_readme_without_marks_is_refused(self) -> None:
        with pytest.raises(EsteiraError, match="no place"):
            with_settings_table("# Esteira\n")

    def test_what_an_error_proposes_is_right(self) -> None:
        """The example of each plain key passes the key's own rule (but for the host key, which nobody can propose)."""

        def check(model: type[module._Model]) -> None:
            for key, (name, field) in module._key_fields(model).items():
                inner, _ = module._model_in(field.annotation)
                if inner is not None:
                    check(inner)
                elif not module._extra(field)["secret"] and key != "hostKey":
                    assert not module._read_value(model, name, module._extra(field)["example"]).faults, key

        check(Settings)


class TestDirectUse:
    """Parts are also built without a stack file, in tests and by other components."""

    def test_rules_hold_there_too(self) -> None:
        with pytest.raises(ValidationError, match="Dockerfile stands outside"):
            module.ImageSettings(context="app", dockerfile="../../Dockerfile")

    def test_names_inside_are_python_names(self) -> None:
        container = ContainerSettings(name="parasite", stop_timeout=5, read_only=True)
        assert container == ContainerSettings.model_validate(
            {"name": "parasite", "stopTimeout": "5s", "readOnly": True}
        )
        assert isinstance(container, BaseModel)

    def test_a_rule_accepts_its_own_result(self) -> None:
        """Models are built from values that were read before."""
        for secret in (rule.password, rule.secret_text):
            assert secret(secret("MARKER")) == SecretStr("MARKER")
        assert rule.private_key(rule.private_key(private_key())) == SecretStr(private_key())
        assert rule.host_key(rule.host_key(HOST_KEY)) == HOST_KEY
