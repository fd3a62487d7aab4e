"""The GitLab stand-in keeps GitLab's rules, with GitLab's words, and every exchange fits GitLab's description."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gitlab
import pytest
import requests
from gitlab.exceptions import GitlabError
from gitlab.v4.objects import Project
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from components import gitlab_rules
from rehearsal.errors import RehearsalError
from rehearsal.gitlab import Fault, RateLimit, StandIn, server

ROOT = Path(__file__).resolve().parents[2]
PATH = "ParasiteWeb/parasite"
DIGEST = f"sha256:{'a' * 64}"


class Client:
    """Asks the stand-in without a library between."""

    def __init__(self, standin: StandIn, token: str | None = None) -> None:
        self.standin = standin
        self.token = standin.token if token is None else token

    def __call__(self, method: str, path: str, data: Any = None, **options: Any) -> requests.Response:
        options.setdefault("headers", {"Authorization": f"Bearer {self.token}"} if self.token else {})
        return requests.request(method, f"{self.standin.url}/api/v4{path}", json=data, timeout=30, **options)

    def variable(self, **fields: Any) -> requests.Response:
        """Create a variable."""
        return self("POST", "/projects/ParasiteWeb%2Fparasite/variables", fields)


@pytest.fixture
def standin() -> Iterator[StandIn]:
    with StandIn() as started:
        started.project(PATH)
        yield started


@pytest.fixture
def ask(standin: StandIn) -> Client:
    return Client(standin)


@pytest.fixture
def project(standin: StandIn) -> Project:
    return gitlab.Gitlab(standin.url, oauth_token=standin.token, timeout=30).projects.get(PATH)


HERE = "/projects/ParasiteWeb%2Fparasite"
ONE = f"{HERE}/variables/FOO"


class TestVariables:
    """Rules of gitlab-errors, each with its status and its very body."""

    def test_all_of_a_variable_comes_back(self, ask: Client) -> None:
        answer = ask.variable(key="FOO", value="a b")
        assert answer.status_code == 201
        assert answer.json() == {
            "variable_type": "env_var",
            "key": "FOO",
            "value": "a b",
            "hidden": False,
            "protected": False,
            "masked": False,
            "raw": False,
            "environment_scope": "*",
            "description": None,
        }

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"key": "A", "value": "short", "masked": True}, {"value": ["is invalid"]}),
            ({"key": "A", "value": "12345678\n", "masked": True}, {"value": ["is invalid"]}),
            ({"key": "A", "value": "hello$VARIABLEworld", "masked": True}, {"value": ["is invalid"]}),
            ({"key": "A", "value": "hello world", "masked": True, "raw": True}, {"value": ["is invalid"]}),
            ({"key": "A", "value": "short", "masked_and_hidden": True}, {"value": ["is invalid"]}),
            ({"key": "a-b", "value": ""}, {"key": ["can contain only letters, digits and '_'."]}),
            ({"key": "K" * 256, "value": ""}, {"key": ["is too long (maximum is 255 characters)"]}),
            (
                {"key": "", "value": ""},
                {"key": ["can't be blank", "can contain only letters, digits and '_'."]},
            ),
            (
                {"key": "A", "value": "", "description": "d" * 256},
                {"description": ["is too long (maximum is 255 characters)"]},
            ),
            (
                {"key": "A", "value": "", "environment_scope": "prod|dev"},
                {
                    "environment_scope": [
                        "can contain only letters, digits, '-', '_', '/', '$', '{', '}', '.', '*' and spaces"
                    ]
                },
            ),
            ({"key": "TAKEN", "value": "2"}, {"key": ["(TAKEN) has already been taken"]}),
            (
                {"key": "TAKEN", "value": "2", "masked": True},
                {"key": ["(TAKEN) has already been taken"], "value": ["is invalid"]},
            ),
        ],
    )
    def test_what_breaks_a_rule_is_refused(
        self, ask: Client, fields: dict[str, Any], message: dict[str, list[str]]
    ) -> None:
        ask.variable(key="TAKEN", value="1")
        answer = ask.variable(**fields)
        assert (answer.status_code, answer.json()) == (400, {"message": message})

    @pytest.mark.parametrize(
        ("fields", "error"),
        [
            ({}, "key is missing, value is missing"),
            ({"key": "A"}, "value is missing"),
            ({"key": "A", "value": "", "variable_type": "f"}, "variable_type does not have a valid value"),
            ({"key": "A", "value": "", "masked": "perhaps"}, "masked is invalid"),
        ],
    )
    def test_parameters_are_checked_first(self, ask: Client, fields: dict[str, Any], error: str) -> None:
        answer = ask.variable(**fields)
        assert (answer.status_code, answer.json()) == (400, {"error": error})

    def test_key_and_scope_are_stripped(self, ask: Client) -> None:
        made = ask.variable(key=" FOO ", value="", environment_scope=" prod ").json()
        assert (made["key"], made["environment_scope"]) == ("FOO", "prod")

    def test_forms_and_words_for_booleans_are_understood(self, ask: Client, standin: StandIn) -> None:
        answer = requests.post(
            f"{standin.url}/api/v4{HERE}/variables",
            data={"key": "FOO", "value": "12345678", "masked": "true"},
            headers={"PRIVATE-TOKEN": standin.token},
            timeout=30,
        )
        assert answer.json()["masked"] is True
        assert ask("GET", ONE).json()["value"] == "12345678"

    def test_a_filter_is_exact_and_needed_where_several_are(self, ask: Client) -> None:
        for scope in ("*", "production"):
            ask.variable(key="FOO", value=scope, environment_scope=scope)
        several = ask("GET", ONE)
        assert several.status_code == 409
        assert several.json() == {
            "message": "There are multiple variables with provided parameters. "
            "Please use 'filter[environment_scope]'"
        }
        one = ask("GET", ONE, params={"filter[environment_scope]": "production"})
        assert one.json()["value"] == "production"
        none = ask("GET", ONE, params={"filter[environment_scope]": "prod*"})
        assert (none.status_code, none.json()) == (404, {"message": "404 Variable Not Found"})
        moved = ask("PUT", ONE, {"environment_scope": "*", "filter": {"environment_scope": "production"}})
        assert moved.json() == {"message": {"key": ["(FOO) has already been taken"]}}
        gone = ask("DELETE", ONE, params={"filter[environment_scope]": "*"})
        assert (gone.status_code, gone.content) == (204, b"")
        assert ask("GET", ONE).json()["value"] == "production"

    def test_a_hidden_value_is_never_shown_and_stays_hidden(self, ask: Client) -> None:
        made = ask.variable(key="FOO", value="12345678", masked_and_hidden=True).json()
        assert (made["hidden"], made["masked"], made["value"]) == (True, True, None)
        assert ask("GET", f"{HERE}/variables").json()[0]["value"] is None
        refused = ask("PUT", ONE, {"masked": False})
        assert refused.json() == {
            "message": {"base": ["The visibility setting cannot be changed for masked and hidden variables."]}
        }
        assert ask("PUT", ONE, {"value": "87654321"}).status_code == 200

    def test_the_rule_is_for_the_variable_as_it_would_be(self, ask: Client) -> None:
        ask.variable(key="FOO", value="a$b$c$d$e", raw=True, masked=True)
        assert ask("PUT", ONE, {"raw": False}).json() == {"message": {"value": ["is invalid"]}}
        assert ask("GET", ONE).json()["raw"] is True

    def test_there_is_a_limit(self, ask: Client, standin: StandIn) -> None:
        standin.api.maximum_variables = 1
        ask.variable(key="FOO", value="")
        assert ask.variable(key="BAR", value="").json() == {
            "message": {"base": ["Maximum number of project ci variables (1) exceeded"]}
        }

    def test_lists_come_in_pages(self, ask: Client, project: Project) -> None:
        for number in range(23):
            ask.variable(key=f"K{number}", value="")
        first = ask("GET", f"{HERE}/variables")
        assert len(first.json()) == 20
        assert (first.headers["X-Total"], first.headers["X-Next-Page"]) == ("23", "2")
        assert len(project.variables.list(get_all=True)) == 23


class TestTokens:
    """401, 403 and 404, in GitLab's order."""

    @pytest.mark.parametrize("token", ["", "glpat-unknown"])
    def test_who_is_not_known_is_not_let_in(self, standin: StandIn, token: str) -> None:
        answer = Client(standin, token)("GET", "/user")
        assert (answer.status_code, answer.json()) == (401, {"message": "401 Unauthorized"})

    @pytest.mark.parametrize("kind", ["revoked", "expired"])
    def test_dead_tokens_are_told_so(self, standin: StandIn, kind: str) -> None:
        # Judged before the scope.
        token = standin.new_token(
            "old", ["read_repository"], revoked=kind == "revoked", expired=kind == "expired"
        )
        answer = Client(standin, token)("GET", "/user")
        assert answer.status_code == 401
        assert answer.json()["error"] == "invalid_token"
        assert kind in answer.json()["error_description"]
        assert 'error="invalid_token"' in answer.headers["WWW-Authenticate"]

    def test_read_api_reads_only(self, standin: StandIn) -> None:
        reader = Client(standin, standin.new_token("reader", ["read_api"]))
        assert reader("GET", f"{HERE}/variables").status_code == 200
        refused = reader.variable(key="FOO", value="")
        assert refused.status_code == 403
        assert refused.json() == {
            "error": "insufficient_scope",
            "error_description": "The request requires higher privileges than provided by the access token.",
            "scope": "api read_api",
        }
        none = Client(standin, standin.new_token("git", ["read_repository"]))
        assert none("GET", HERE).json()["error"] == "insufficient_scope"
        assert none("GET", "/personal_access_tokens/self").json()["scopes"] == ["read_repository"]

    def test_a_developer_sees_the_project_and_no_variable(self, standin: StandIn) -> None:
        developer = Client(standin, standin.new_token("developer", role=30))
        assert developer("GET", HERE).status_code == 200
        refused = developer("GET", f"{HERE}/variables/NONE")
        assert (refused.status_code, refused.json()) == (403, {"message": "403 Forbidden"})

    def test_a_stranger_sees_nothing(self, standin: StandIn) -> None:
        stranger = Client(standin, standin.new_token("stranger", role=0))
        for path in (HERE, f"{HERE}/variables", "/projects/4711", "/projects/parasite"):
            answer = stranger("GET", path)
            assert (answer.status_code, answer.json()) == (404, {"message": "404 Project Not Found"})

    def test_a_project_has_a_number_and_a_path(self, ask: Client) -> None:
        number = ask("GET", HERE).json()["id"]
        assert ask("GET", f"/projects/{number}").json()["path_with_namespace"] == PATH
        assert ask("GET", "/nothing").json() == {"error": "404 Not Found"}

    def test_a_token_can_expire_in_the_middle(self, standin: StandIn) -> None:
        ask = Client(standin, standin.new_token("short", lives=2))
        assert [ask("GET", "/user").status_code for _ in range(4)] == [200, 200, 401, 401]


class TestDeployTokens:
    """Made once, shown once."""

    def test_the_secret_is_shown_once(self, project: Project) -> None:
        made = project.deploytokens.create(
            {"name": "pull", "scopes": ["read_registry"], "expires_at": "2031-01-31T23:59:59Z"}
        )
        assert made.token.startswith("gldt-")
        assert made.username == f"gitlab+deploy-token-{made.id}"
        assert made.expires_at == "2031-01-31T23:59:59.000Z"
        (listed,) = project.deploytokens.list(get_all=True)
        assert "token" not in listed.attributes
        made.delete()
        with pytest.raises(GitlabError, match="404 Not found"):
            project.deploytokens.get(made.id)

    @pytest.mark.parametrize(
        ("fields", "body"),
        [
            ({"scopes": ["read_registry"]}, {"error": "name is missing"}),
            ({"name": "x", "scopes": ["all"]}, {"error": "scopes does not have a valid value"}),
            ({"name": "x", "scopes": []}, {"message": "Scopes can't be blank"}),
            (
                {"name": "x", "scopes": ["read_registry"], "expires_at": "soon"},
                {"error": "expires_at is invalid"},
            ),
            (
                {"name": "x", "scopes": ["read_registry"], "username": "a b"},
                {"message": "Username can contain only letters, digits, '_', '-', '+', and '.'"},
            ),
        ],
    )
    def test_rules(self, ask: Client, fields: dict[str, Any], body: dict[str, str]) -> None:
        answer = ask("POST", f"{HERE}/deploy_tokens", fields)
        assert (answer.status_code, answer.json()) == (400, body)

    def test_active_leaves_the_expired_out(self, project: Project) -> None:
        project.deploytokens.create(
            {"name": "old", "scopes": ["read_registry"], "expires_at": "2020-01-01T00:00:00Z"}
        )
        assert project.deploytokens.list(get_all=True)[0].expired
        assert project.deploytokens.list(get_all=True, active=True) == []

    def test_a_registry_can_be_told_of_them(self, tmp_path: Path) -> None:
        htpasswd = tmp_path / "htpasswd"
        htpasswd.write_text("pusher:hash\n")
        with StandIn(htpasswd=htpasswd) as standin:
            standin.project(PATH)
            ask = Client(standin)
            made = ask("POST", f"{HERE}/deploy_tokens", {"name": "x", "scopes": ["read_registry"]}).json()
            assert htpasswd.read_text().splitlines()[0] == "pusher:hash"
            assert f"{made['username']}:$2b$" in htpasswd.read_text()
            ask("DELETE", f"{HERE}/deploy_tokens/{made['id']}")
            assert htpasswd.read_text() == "pusher:hash\n"


class TestRegistry:
    """Repositories and tags."""

    def test_repositories_and_tags(self, standin: StandIn, project: Project) -> None:
        standin.push(PATH, "latest", DIGEST, size=7, created_at="2026-01-01T00:00:00.000Z")
        standin.push(PATH, "old", DIGEST)
        (repository,) = project.repositories.list(get_all=True, tags_count=True)
        assert (repository.path, repository.tags_count) == (PATH.lower(), 2)
        assert [tag.name for tag in repository.tags.list(get_all=True)] == ["latest", "old"]
        tag = repository.tags.get("latest")
        assert (tag.digest, tag.total_size, tag.created_at) == (DIGEST, 7, "2026-01-01T00:00:00.000Z")
        repository.tags.delete("old")
        with pytest.raises(GitlabError, match="404 Tag Not Found"):
            repository.tags.get("old")
        assert repository.tags.get("latest").digest == DIGEST

    def test_many_at_once_never_latest_and_once_an_hour(self, standin: StandIn, project: Project) -> None:
        for tag in ("latest", "a1", "a2", "b1"):
            standin.push(PATH, tag, DIGEST)
        (repository,) = project.repositories.list(get_all=True)
        repository.tags.delete_in_bulk(name_regex_delete=".*", name_regex_keep="b.")
        assert [tag.name for tag in repository.tags.list(get_all=True)] == ["b1", "latest"]
        with pytest.raises(GitlabError, match="at most once an hour"):
            repository.tags.delete_in_bulk(name_regex_delete=".*")


class TestTrouble:
    """What a client has to live with."""

    def test_too_many_requests(self) -> None:
        with StandIn(rate_limit=RateLimit(2, 3600)) as standin:
            ask = Client(standin)
            assert [ask("GET", "/user").status_code for _ in range(2)] == [200, 200]
            refused = ask("GET", "/user")
            assert (refused.status_code, refused.text) == (429, "Retry later\n")
            assert 0 < int(refused.headers["Retry-After"]) <= 3600
            assert refused.headers["RateLimit-Remaining"] == "0"

    @pytest.mark.parametrize(("text", "status"), [("2:503", 503), ("2:500", 500), ("2+1:429:7", 429)])
    def test_the_nth_request_fails(self, standin: StandIn, ask: Client, text: str, status: int) -> None:
        standin.faults.order(Fault.parse(text))
        assert [ask("GET", "/user").status_code for _ in range(3)] == [200, status, 200]

    def test_lost_answers(self, standin: StandIn, ask: Client) -> None:
        standin.faults.order(Fault.parse("1:reset!"))
        with pytest.raises(requests.ConnectionError):
            ask.variable(key="FOO", value="1")
        assert ask("GET", ONE).json()["value"] == "1"

    def test_silence(self, standin: StandIn, ask: Client) -> None:
        standin.faults.order(Fault("timeout", seconds=0.5))
        with pytest.raises(requests.Timeout):
            requests.get(f"{standin.base_url}user", timeout=0.1)

    def test_a_token_expires_at_a_request(self, standin: StandIn, ask: Client) -> None:
        standin.faults.order(Fault.parse("2:expire"))
        assert [ask("GET", "/user").status_code for _ in range(3)] == [200, 401, 401]

    @pytest.mark.parametrize("text", ["", "503", "x:503", "1:200", "1:nothing"])
    def test_a_fault_that_is_none_is_refused(self, text: str) -> None:
        with pytest.raises(ValueError, match="is not a fault"):
            Fault.parse(text)


class TestDescription:
    """Every exchange is held against GitLab's description, where it is at hand."""

    def test_a_field_that_gitlab_does_not_know_is_objected_to(self) -> None:
        standin = StandIn()
        if standin.description_missing:
            standin.close()
            pytest.skip(server.DESCRIPTION_MISSING)
        standin.start()
        standin.project(PATH)
        Client(standin).variable(key="FOO", value="secret-value", hidden=True)
        with pytest.raises(RehearsalError, match="does not know hidden"):
            standin.__exit__(None, None, None)
        assert "secret-value" not in "".join(standin.objections)

    def test_without_it_that_check_alone_is_missing(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setattr(server, "DESCRIPTION", tmp_path / "none.yaml")
        with StandIn() as standin:
            standin.project(PATH)
            assert standin.description_missing
            assert Client(standin).variable(key="FOO", value="1", hidden=True).status_code == 201


def test_one_command_starts_it_and_a_file_keeps_it(tmp_path: Path) -> None:
    state = tmp_path / "state.json"
    process = subprocess.Popen(
        [sys.executable, "-m", "rehearsal.gitlab", "--port", "0", "--project", PATH, "--state", str(state)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    try:
        assert process.stdout is not None
        head = [process.stdout.readline() for _ in range(5)]
        values = dict(line.strip().split("=", 1) for line in head if line.startswith("GITLAB_"))
        url, token = values["GITLAB_BASE_URL"].removesuffix("/api/v4/"), values["GITLAB_TOKEN"]
        client = gitlab.Gitlab(url, oauth_token=token, timeout=30)
        client.projects.get(PATH).variables.create({"key": "KEPT", "value": "1"})
    finally:
        process.terminate()
        assert process.wait(10) == 0
    assert state.stat().st_mode & 0o777 == 0o600
    with StandIn(state_file=state) as standin:
        assert standin.token == token
        assert Client(standin)("GET", f"{HERE}/variables/KEPT").json()["value"] == "1"


# What the component accepts GitLab accepts, and the other way about.

_TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
_MASKABLE = st.from_regex(r"[a-zA-Z0-9_+=/@:.~-]{7,12}", fullmatch=True)
_NEARLY = st.builds(
    lambda text, end: text + end, _MASKABLE, st.sampled_from(["", "\n", " ", "\r", "$", "\x85", "é"])
)
_KEYS = st.one_of(
    st.from_regex(r"[A-Za-z0-9_]{1,8}", fullmatch=True), _TEXT, st.integers(254, 257).map(lambda n: "K" * n)
)
_SCOPES = st.one_of(
    st.sampled_from(["*", "production", "review/*", "a b", "${CI}", "", "a|b"]), _TEXT, st.just("s" * 256)
)
_LENGTHS = st.sampled_from([9_999, 10_000, 10_001]).map(lambda n: "x" * n)


@pytest.fixture(scope="module")
def shared() -> Iterator[StandIn]:
    with StandIn() as started:
        started.project(PATH)
        yield started


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(
    key=_KEYS,
    value=st.one_of(_MASKABLE, _NEARLY, _TEXT, _LENGTHS),
    scope=_SCOPES,
    masked=st.booleans(),
    hidden=st.booleans(),
    protected=st.booleans(),
    raw=st.booleans(),
    file=st.booleans(),
    description=st.one_of(st.just(""), st.integers(254, 257).map(lambda n: "d" * n)),
)
@example("FOO", "12345678\n", "*", True, False, False, True, False, "")
@example("FOO", "1234567\v8", "*", True, False, False, True, False, "")
@example("FOO", "1234567\x858", "*", True, False, False, True, False, "")
@example("FOO", "1234567\u00a08", "*", True, False, False, True, False, "")
@example("FOO\n", "1", "*", False, False, False, False, False, "")
@example("FOO", "1", "prod\n", False, False, False, False, False, "")
@example("FOO", "1", " ", False, False, False, False, False, "")
@example("é", "1", "é", False, False, False, False, False, "")
def test_the_component_accepts_what_gitlab_accepts(  # noqa: PLR0917 - hypothesis' examples have no names
    shared: StandIn,
    key: str,
    value: str,
    scope: str,
    masked: bool,
    hidden: bool,
    protected: bool,
    raw: bool,
    file: bool,
    description: str,
) -> None:
    """Blanks around a key or a scope aside: GitLab takes them off, and the provider would find another variable."""
    masked = masked or hidden
    faults = gitlab_rules.variable_faults(
        key,
        value,
        masked=masked,
        hidden=hidden,
        protected=protected,
        raw=raw,
        file=file,
        scope=scope,
        description=description,
    )
    project = shared.project(PATH)
    project.variables.clear()
    answer = Client(shared).variable(
        key=key,
        value=value,
        environment_scope=scope,
        protected=protected,
        raw=raw,
        variable_type="file" if file else "env_var",
        description=description,
        **({"masked_and_hidden": True} if hidden else {"masked": masked}),
    )
    if answer.status_code == 201:
        stored = answer.json()
        if (stored["key"], stored["environment_scope"]) == (key, scope):
            assert faults == []
        else:
            assert faults != [], "GitLab would keep another name than the declared one"
    else:
        assert answer.status_code == 400
        assert faults != []
    assert value not in "\n".join(faults) or len(value) < 8
