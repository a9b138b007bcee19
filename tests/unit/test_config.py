"""The settings: what may stand in the file and the environment, and that all of what is wrong is told at once."""

import inspect
import itertools
import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from broker.config import Config, load_config, sections, sources
from broker.config.fields import is_loopback
from broker.config.settings import default_state_dir
from broker.errors import StartupError
from broker.scopes import Credential, TaskNeed


def written(tmp_path: Path, text: str) -> Path:
    """Write a configuration file."""
    path = tmp_path / "broker.toml"
    path.write_text(text)
    return path


def problems(path: Path | None = None, environment: Mapping[str, str] | None = None, **arguments: Any) -> list[str]:
    """Return what is wrong with settings that must not be taken."""
    with pytest.raises(StartupError) as caught:
        load_config(path, environment or {}, **arguments)
    assert caught.value.exit_code == 78
    return list(caught.value.problems)


def every_section() -> list[type[BaseModel]]:
    """List every section of the configuration, and the whole."""
    return [
        Config,
        *(
            one
            for module in (sections, sources)
            for one in vars(module).values()
            if isinstance(one, type)
            and issubclass(one, BaseModel)
            and one.__module__ == module.__name__
            and not inspect.isabstract(one)
        ),
    ]


WHERE = {
    "Config": "",
    "BrokerSection": "broker",
    "TlsSection": "listen.tls",
    "ListenSection": "listen",
    "StoreSection": "store",
    "LogSection": "log",
    "AuditSection": "audit",
    "LimitsSection": "limits",
    "ScopeSection": "scopes.control_plane",
    "BackendSection": "backends.default",
    "StaticSourceSection": "bearer_sources.tokens",
    "FileSourceSection": "bearer_sources.tokens",
    "OauthSourceSection": "bearer_sources.tokens",
    "ClientCredentialsSourceSection": "bearer_sources.tokens",
    "WorkloadIdentitySourceSection": "bearer_sources.tokens",
    "CommandSourceSection": "bearer_sources.tokens",
    "JwtIdentitySourceSection": "bearer_sources.tokens",
}
NEEDED = {
    "TlsSection": 'certificate_file = "/c"\nprivate_key_file = "/k"\n',
    "StaticSourceSection": 'type = "static"\npath = "/t"\n',
    "FileSourceSection": 'type = "file"\npath = "/t"\n',
    "OauthSourceSection": 'type = "oauth"\n',
    "ClientCredentialsSourceSection": (
        'type = "client_credentials"\ntoken_url = "https://i.example/t"\nclient_id = "c"\nclient_secret_file = "/s"\n'
    ),
    "WorkloadIdentitySourceSection": (
        'type = "workload_identity"\nidentity_token_file = "/t"\nfederation_rule_id = "r"\n'
    ),
    "CommandSourceSection": 'type = "command"\ncommand = ["/bin/true"]\n',
    "JwtIdentitySourceSection": 'type = "jwt_identity"\n',
}


def test_nothing_needs_to_be_said() -> None:
    """Without a file and an environment there is a whole configuration, on loopback."""
    config = load_config(None, {})
    assert config.listen.callers == ("127.0.0.1:50051",)
    assert config.listen.admin == ("127.0.0.1:50052",)
    assert config.listen.http == "127.0.0.1:9464"
    assert list(config.backends) == ["default"]
    assert config.broker.max_lease_seconds == 300
    assert config.broker.max_staleness_seconds == 3600
    assert config.limits.tombstone_seconds == 30 * 86400
    assert not config.dev
    assert config.state_dir == default_state_dir().absolute()
    assert config.store_url == f"sqlite:///{config.state_dir}/broker.db"
    assert config.audit_file == config.state_dir / "audit.jsonl"


def test_a_configuration_does_not_change() -> None:
    """It is read once; nobody changes a setting afterwards."""
    config = load_config(None, {})
    with pytest.raises(ValueError, match="frozen"):
        config.broker.default_identity = "other"


@pytest.mark.parametrize("section", every_section(), ids=lambda section: section.__name__)
def test_an_unknown_key_is_a_problem_in_every_section(tmp_path: Path, section: type[BaseModel]) -> None:
    """A misspelt setting is refused wherever it stands, by its whole name, and the one that was meant is offered."""
    name = WHERE[section.__name__]
    meant = next(field for field in section.model_fields if field != "dev")
    header = f"[{name}]\n" if name else ""
    (problem,) = problems(written(tmp_path, f"{header}{NEEDED.get(section.__name__, '')}{meant}x = 1\n"))
    assert problem.startswith(f"{name}.{meant}x: ".removeprefix("."))
    assert "there is no such setting" in problem
    assert f"did you mean {meant}?" in problem


def test_an_unknown_key_that_is_like_none_gets_no_suggestion(tmp_path: Path) -> None:
    """Nothing is offered where nothing is near; `dev`, which is no setting, never is."""
    assert problems(written(tmp_path, "zzz = 1\ndevv = 1\n")) == [
        "zzz: there is no such setting",
        "devv: there is no such setting",
    ]


def test_every_setting_says_what_it_is() -> None:
    """Each setting has a text behind it in the source, from which the reference is made."""
    for section, field in ((one, name) for one in every_section() if one is not Config for name in one.model_fields):
        owner = next(one for one in section.__mro__ if field in inspect.get_annotations(one))
        lines = Path(inspect.getfile(owner)).read_text().splitlines()
        start = next(i for i, line in enumerate(lines) if line.startswith(f"class {owner.__name__}("))
        at = next(i for i in range(start, len(lines)) if lines[i].startswith(f"    {field}: "))
        rest = itertools.dropwhile(lambda line: not line.startswith(("    ) = (", "    )")), lines[at + 1 :])
        following = lines[at + 1] if lines[at].count("(") == lines[at].count(")") else list(rest)[1]
        assert following.strip().startswith('"""'), (section.__name__, field)


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    """Misspelt, mistyped, contradicting, unsafe and unknown settings of file and environment come in one answer."""
    path = written(
        tmp_path,
        """
        dev = true
        [broker]
        max_lease_seconds = "soon"
        defualt_identity = "a"
        [listen]
        callers = ["0.0.0.0:50051"]
        [backends.default]
        base_url = "http://example.org/backend-api"
        [backends.other]
        profile = "codex-2025-01"
        [scopes.reports]
        enabled = true
        """,
    )
    found = problems(path, {"CREDENTIAL_BROKER_STORE__PATH": "x", "CREDENTIAL_BROKER_LISTEN__ADMIN": "[1"})
    for place in (
        "dev:",
        "broker.max_lease_seconds:",
        "broker.defualt_identity:",
        "listen.callers: 0.0.0.0:50051",
        "backends.default:",
        "backends.other.profile:",
        "scopes.reports:",
        "store.path:",
        "listen.admin:",
    ):
        assert any(problem.startswith(place) for problem in found), (place, found)
    assert len(found) == len(set(found)) == 9


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('[bearer_sources.a]\ntype = "file"', "bearer_sources.a.path: is required"),
        ('[bearer_sources.a]\ntype = "command"\ncommand = "x"', "bearer_sources.a.command: must be a list"),
        ("[broker]\nmax_lease_seconds = 0", "broker.max_lease_seconds: must be more than 0"),
        ("[limits]\nregistrations_in_flight = 0", "limits.registrations_in_flight: must be at least 1"),
        ("[broker]\nmax_staleness_seconds = 604801", "broker.max_staleness_seconds: must be at most 604,800"),
        ("[broker]\ndefault_identity = 1", "broker.default_identity: must be a text"),
        (
            '[bearer_sources."a b"]\ntype = "jwt_identity"',
            "bearer_sources.a b: is not of the form ^[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?$",
        ),
    ],
)
def test_problems_are_told_in_words_of_a_settings_file(tmp_path: Path, text: str, expected: str) -> None:
    """Whoever writes TOML knows nothing of tuples, and need not."""
    assert problems(written(tmp_path, text)) == [expected]


def test_what_does_not_fit_together_is_told_beside_what_is_missing(tmp_path: Path) -> None:
    """Also where leaving out a wrong setting leaves its table without what it needs."""
    path = written(
        tmp_path,
        """
        [bearer_sources.a]
        type = "command"
        command = "a text"
        [bearer_sources.b]
        type = "command"
        command = ["no-path"]
        [backends.default]
        base_url = "http://example.org/backend-api"
        """,
    )
    found = [problem.partition(":")[0] for problem in problems(path)]
    assert found == ["bearer_sources.a.command", "backends.default", "bearer_sources.b.command"]


def test_the_environment_wins_over_the_file_and_the_command_line_over_both(tmp_path: Path) -> None:
    """Command line before environment before file before default, key by key."""
    path = written(tmp_path, '[broker]\ndefault_identity = "file"\nmax_lease_seconds = 10\ndrain_seconds = 1\n')
    environment = {
        "CREDENTIAL_BROKER_BROKER__DEFAULT_IDENTITY": "environment",
        "CREDENTIAL_BROKER_BROKER__MAX_LEASE_SECONDS": "20",
    }
    config = load_config(path, environment, overrides={"broker": {"default_identity": "line"}})
    broker = config.broker
    assert (broker.default_identity, broker.max_lease_seconds, broker.drain_seconds) == ("line", 20, 1)
    assert broker.max_staleness_seconds == 3600


def test_the_environment_reaches_every_depth_and_type() -> None:
    """Sections of sections, numbers, switches, lists and tables can be given, the latter as TOML."""
    config = load_config(
        None,
        {
            "CREDENTIAL_BROKER_BACKENDS__DEFAULT__BASE_URL": "https://example.org/backend-api",
            "CREDENTIAL_BROKER_BACKENDS__DEFAULT__AUTHAPI_BASE_URL": "https://example.org/api/accounts",
            "CREDENTIAL_BROKER_BACKENDS__DEFAULT__ASSERTION_ROUTES": '{ "control_plane.models" = false }',
            "CREDENTIAL_BROKER_LISTEN__CALLERS": '["127.0.0.1:0", "unix:///run/broker.sock"]',
            "CREDENTIAL_BROKER_LISTEN__TLS__CERTIFICATE_FILE": "/c",
            "CREDENTIAL_BROKER_LISTEN__TLS__PRIVATE_KEY_FILE": "/k",
            "CREDENTIAL_BROKER_BROKER__REFLECTION": "true",
            "CREDENTIAL_BROKER_LIMITS__CACHED_THREADS": "500",
            "CREDENTIAL_BROKER_SCOPES__CONTROL_PLANE__MAX_LIFETIME_SECONDS": "30",
        },
    )
    assert config.backends["default"].base_url == "https://example.org/backend-api"
    assert config.backends["default"].assertion_routes == {"control_plane.models": False}
    assert config.listen.callers == ("127.0.0.1:0", "unix:/run/broker.sock")
    assert config.listen.tls is not None
    assert config.listen.tls.certificate_file == Path("/c")
    assert (config.broker.reflection, config.limits.cached_threads) == (True, 500)
    assert config.scope_catalogue()["control_plane.usage"].max_lifetime == 30


def test_only_names_with_two_underscores_are_overrides() -> None:
    """The addresses that clients use share the prefix and are none of our settings; another prefix is not ours."""
    load_config(
        None,
        {
            "CREDENTIAL_BROKER_ADDRESS": "127.0.0.1:1",
            "CREDENTIAL_BROKER_ADMIN_ADDRESS": "127.0.0.1:2",
            "OTHER_BROKER__KEY": "x",
        },
    )


@pytest.mark.parametrize(
    ("variable", "value", "place"),
    [
        ("CREDENTIAL_BROKER_BROKER__DEFAULT_IDENTIY", "a", "broker.default_identiy"),
        ("CREDENTIAL_BROKER_BROKR__DEFAULT_IDENTITY", "a", "brokr"),
        ("CREDENTIAL_BROKER_DEV__X", "1", "dev"),
        ("CREDENTIAL_BROKER___X", "1", ""),
        ("CREDENTIAL_BROKER_BROKER__", "1", "broker."),
        ("CREDENTIAL_BROKER_BROKER__REFLECTION", "perhaps", "broker.reflection"),
        ("CREDENTIAL_BROKER_LISTEN__CALLERS", "127.0.0.1:1", "listen.callers"),
        ("CREDENTIAL_BROKER_LISTEN__CALLERS", "[1", "listen.callers"),
        ("CREDENTIAL_BROKER_BROKER__REFLECTION__MORE", "1", "broker.reflection"),
        ("CREDENTIAL_BROKER_BACKENDS__DEFAULT", "x", "backends.default"),
    ],
)
def test_a_wrong_override_is_told(variable: str, value: str, place: str) -> None:
    """An override that names no setting, or gives it what it cannot be, is an error of that setting."""
    (problem,) = problems(None, {variable: value})
    assert problem.startswith(f"{place}:")


def test_an_override_through_what_is_no_section_is_told(tmp_path: Path) -> None:
    """A path that leads through a plain value is an error of its own, from the environment and from the command line."""
    path = written(tmp_path, "broker = 3\n")
    found = problems(path, {"CREDENTIAL_BROKER_BROKER__REFLECTION": "true"}, overrides={"broker": {"reflection": True}})
    assert any(problem.startswith("CREDENTIAL_BROKER_BROKER__REFLECTION: broker is not a section") for problem in found)
    assert any(problem.startswith("broker:") for problem in found)


@pytest.mark.parametrize("value", ["true", "false", "{}"])
def test_dev_is_no_setting(tmp_path: Path, value: str) -> None:
    """Only the command line chooses dev mode: a file that could would open plain HTTP to the one who writes it."""
    (problem,) = problems(written(tmp_path, f"dev = {value}\n"))
    assert problem == "dev: is not a setting; dev mode is chosen on the command line"
    assert load_config(None, {}, dev=True).dev


@pytest.mark.parametrize(
    "text",
    [
        "localhost:1",
        "127.0.0.1",
        "127.0.0.1:",
        "127.0.0.1:-1",
        "127.0.0.1:65536",
        "127.0.0.1:5_0",
        "127.0.0.1: 5",
        "127.0.0.1:\u0665",
        "[127.0.0.1]:5",
        "::1:50051",
        ":50051",
        "*:1",
        "unix:relative",
        "unix://relative",
        "http://127.0.0.1:1",
        "",
    ],
)
def test_a_listen_address_is_literal(text: str) -> None:
    """A name, a missing or impossible port, an address without brackets and a relative socket are refused."""
    found = problems(None, {"CREDENTIAL_BROKER_LISTEN__CALLERS": f"[{json.dumps(text)}]"})
    assert [problem for problem in found if problem.startswith("listen.callers.0:")]


@pytest.mark.parametrize("key", ["callers", "admin", "http"])
@pytest.mark.parametrize("address", ["0.0.0.0:1", "[::]:1", "10.0.0.1:1", "[2001:db8::1]:1", "[::ffff:10.0.0.1]:1"])
def test_only_loopback_is_listened_on(key: str, address: str) -> None:
    """Until callers are authenticated no listener can be reached from another machine."""
    value = json.dumps(address if key == "http" else [address])
    (problem,) = problems(None, {f"CREDENTIAL_BROKER_LISTEN__{key.upper()}": value.strip('"')})
    assert problem.startswith(f"listen.{key}: {address} can be reached from other machines")


@pytest.mark.parametrize("address", ["127.0.0.1:1", "127.8.8.8:1", "[::1]:1", "unix:/run/x"])
def test_what_loopback_is(address: str) -> None:
    """The whole 127/8, ::1 and sockets stay on this machine."""
    assert is_loopback(address)


@pytest.mark.parametrize(
    ("key", "url"),
    [
        ("base_url", "http://127.0.0.1:8089/backend-api"),
        ("base_url", "ftp://chatgpt.com/backend-api"),
        ("base_url", "https://user@chatgpt.com/backend-api"),
        ("base_url", "chatgpt.com"),
        ("authapi_base_url", "http://127.0.0.1:8089/api/accounts"),
        ("jwks_base_url", "https://chatgpt.com/backend-api?x=1"),
        ("allowed_origins", '["https://chatgpt.com@evil.example"]'),
        ("allowed_origins", '["http://127.0.0.1:1"]'),
    ],
)
def test_a_backends_urls_are_checked(key: str, url: str) -> None:
    """Plain http, other schemes, credentials and queries in a URL are problems of that backend."""
    found = problems(None, {f"CREDENTIAL_BROKER_BACKENDS__DEFAULT__{key.upper()}": url})
    assert len(found) == 1
    assert found[0].startswith("backends.default")


def test_plain_http_is_for_dev_and_loopback_literals_only() -> None:
    """In dev mode a loopback literal may be plain; anything else still may not."""
    base, authapi = (f"CREDENTIAL_BROKER_BACKENDS__DEFAULT__{key}" for key in ("BASE_URL", "AUTHAPI_BASE_URL"))
    for host, allowed in (("127.0.0.1:1", True), ("[::1]:1", True), ("localhost:1", False), ("10.0.0.1", False)):
        environment = {base: f"http://{host}/backend-api", authapi: f"http://{host}/api/accounts"}
        if allowed:
            load_config(None, environment, dev=True)
        else:
            assert problems(None, environment, dev=True)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("broker.max_lease_seconds", "0"),
        ("broker.max_lease_seconds", "-1"),
        ("broker.max_lease_seconds", "nan"),
        ("broker.max_lease_seconds", "inf"),
        ("broker.max_staleness_seconds", "-1"),
        ("broker.default_identity", "Upper"),
        ("broker.default_identity", "a" * 64),
        ("store.poll_seconds", "0"),
        ("limits.cached_threads", "1"),
        ("limits.cached_threads", "1000.5"),
        ("log.level", "trace"),
        ("log.format", "xml"),
        ("scopes.control_plane.credential", "cookie"),
        ("backends.default.assertion_lifetime_seconds", "301"),
    ],
)
def test_a_value_of_the_wrong_kind_or_size_is_told(place: str, value: str) -> None:
    """Numbers have their limits, words their choices, names their form."""
    variable = "CREDENTIAL_BROKER_" + place.upper().replace(".", "__")
    (problem,) = problems(None, {variable: value})
    assert problem.startswith(f"{place}: ")
    assert problem.endswith(f" (set by {variable})"), "where to correct it"


def test_max_staleness_may_be_zero() -> None:
    """0 is a meaning of its own: nothing is answered without contact to the store."""
    config = load_config(None, {"CREDENTIAL_BROKER_BROKER__MAX_STALENESS_SECONDS": "0"})
    assert config.broker.max_staleness_seconds == 0


def test_scopes_are_extended_and_overridden(tmp_path: Path) -> None:
    """A quoted dotted name is one scope; what the file says of it is in the catalogue."""
    path = written(
        tmp_path,
        '[scopes."control_plane.usage"]\ncredential = "assertion_required"\n'
        '[scopes.reports]\ncredential = "assertion_preferred"\ntask = "background"\nmax_lifetime_seconds = 5\n',
    )
    catalogue = load_config(path, {}).scope_catalogue()
    assert catalogue["control_plane.usage"].credential is Credential.ASSERTION_REQUIRED
    reports = catalogue["reports"]
    assert (reports.task, reports.max_lifetime) == (TaskNeed.BACKGROUND, 5)


def test_a_dotted_scope_without_quotes_is_explained(tmp_path: Path) -> None:
    """TOML reads an unquoted dot as a table in a table; the answer says how to write it."""
    (problem,) = problems(written(tmp_path, "[scopes.control_plane.usage]\nenabled = false\n"))
    assert problem.startswith("scopes.control_plane.usage: ")
    assert '[scopes."control_plane.usage"]' in problem


@pytest.mark.parametrize(
    ("content", "said"), [(None, "there is no such file"), (b"= 1", "is not TOML"), (b"\xff", "cannot be read")]
)
def test_a_file_that_cannot_be_read_is_told(tmp_path: Path, content: bytes | None, said: str) -> None:
    """A missing file, one that is no TOML and one that is no text are each told by their path."""
    path = tmp_path / "broker.toml"
    if content is not None:
        path.write_bytes(content)
    (problem,) = problems(path)
    assert problem.startswith(f"{path}: ")
    assert said in problem


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    """The name of a folder is told like any file that cannot be read."""
    (problem,) = problems(tmp_path)
    assert "cannot be read" in problem


def taken_or_told(path: Path | None, environment: Mapping[str, str], **arguments: Any) -> bool:
    """Say whether settings are taken, or refused with problems that are texts; anything else raises."""
    try:
        load_config(path, environment, **arguments)
    except StartupError as error:
        return len(error.problems) > 0 and all(error.problems)
    return True


SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8))
KEYS = st.one_of(
    st.sampled_from(
        sorted({field for section in every_section() for field in section.model_fields} | {"default", "a.b"})
    ),
    st.text(max_size=6),
)
TREES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3), max_leaves=8
)


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(KEYS, TREES, max_size=4), st.booleans())
def test_no_settings_crash_the_reading(values: dict[str, Any], dev: bool) -> None:
    """Whatever stands in a file, it is taken or told: a StartupError with at least one problem, nothing else."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(tomllib, "loads", Mock(return_value=values))
        assert taken_or_told(Path(__file__), {}, dev=dev, overrides={"broker": {"drain_seconds": 1}})


@settings(max_examples=80, deadline=None)
@given(
    st.dictionaries(
        st.lists(KEYS.map(str.upper), min_size=1, max_size=3).map(
            lambda parts: "CREDENTIAL_BROKER_" + "__".join(parts)
        ),
        st.text(max_size=10),
        max_size=3,
    )
)
def test_no_environment_crashes_the_reading(environment: dict[str, str]) -> None:
    """Whatever stands in the environment, it is taken, told, or not ours."""
    assert taken_or_told(None, environment)


def test_a_wrong_profile_does_not_hide_a_wrong_url(tmp_path: Path) -> None:
    """Both are told at once, so that they can be mended at once."""
    path = tmp_path / "broker.toml"
    path.write_text('[backends.default]\nprofile = "nope"\nbase_url = "http://chatgpt.com/backend-api"\n')
    told = problems(path)
    assert any(problem.startswith("backends.default.profile: ") for problem in told)
    assert any(problem.startswith("backends.default.base_url: ") for problem in told)


def test_every_problem_of_every_bearer_source_is_told_at_once(tmp_path: Path) -> None:
    """Wrong kinds, missing and misspelt keys, wrong URLs and what does not fit together, each by its own name."""
    path = written(
        tmp_path,
        """
        [bearer_sources.misspelt]
        type = "file"
        pth = "x"
        [bearer_sources.unknown]
        type = "oidc"
        [bearer_sources.kindless]
        path = "/x"
        [bearer_sources.secret]
        type = "client_credentials"
        token_url = "https://user:password@issuer.example/token"
        client_id = "a"
        client_secret = "in the open"
        client_secret_file = "/x"
        advisory_seconds = 1
        mandatory_seconds = 2
        [bearer_sources.mixed]
        type = "workload_identity"
        identity_token_file = "relative"
        audience = "x"
        token_url = "https://issuer.example/token?a=b"
        [bearer_sources.half]
        type = "workload_identity"
        grant = "token_exchange"
        identity_token_file = "/t"
        client_secret_file = "/s"
        account_id = "a"
        [bearer_sources.shell]
        type = "command"
        command = ["sh", "-c", "true"]
        [bearer_sources.plain]
        type = "oauth"
        token_url = "http://127.0.0.1/token"
        lease_seconds = 2
        [bearer_sources.fragment]
        type = "oauth"
        token_url = "https://issuer.example/token#x"
        """,
    )
    assert {problem.partition(": ")[0] for problem in problems(path)} == {
        "bearer_sources.misspelt.path",
        "bearer_sources.misspelt.pth",
        "bearer_sources.unknown.type",
        "bearer_sources.kindless.type",
        "bearer_sources.secret.client_secret",
        "bearer_sources.secret.token_url",
        "bearer_sources.secret.advisory_seconds",
        "bearer_sources.mixed.identity_token_file",
        "bearer_sources.mixed.federation_rule_id",
        "bearer_sources.mixed.audience",
        "bearer_sources.mixed.token_url",
        "bearer_sources.half.token_url",
        "bearer_sources.half.client_id",
        "bearer_sources.half.account_id",
        "bearer_sources.shell.command",
        "bearer_sources.plain.token_url",
        "bearer_sources.plain.lease_seconds",
        "bearer_sources.fragment.token_url",
    }
    assert "password@" not in str(problems(path))


def test_a_setting_of_a_bearer_source_is_named_by_its_variable() -> None:
    """The kind of the source is no part of a setting's name, nor of the variable's."""
    prefix = "CREDENTIAL_BROKER_BEARER_SOURCES__TOKENS"
    (problem,) = problems(
        None,
        {
            f"{prefix}__TYPE": "command",
            f"{prefix}__COMMAND": '["/bin/date"]',
            f"{prefix}__TIMEOUT_SECONDS": "0",
        },
    )
    assert problem.startswith("bearer_sources.tokens.timeout_seconds: ")
    assert problem.endswith(f"(set by {prefix}__TIMEOUT_SECONDS)")


def test_an_issuer_on_loopback_may_be_plain_in_dev_only() -> None:
    """As for backends: plain http goes to loopback literals, and only where dev mode is chosen."""
    prefix = "CREDENTIAL_BROKER_BEARER_SOURCES__TOKENS"
    environment = {f"{prefix}__TYPE": "oauth", f"{prefix}__TOKEN_URL": "http://127.0.0.1:1/oauth/token"}
    assert load_config(None, environment, dev=True).bearer_sources["tokens"].type == "oauth"
    assert problems(None, environment)
    assert problems(None, {**environment, f"{prefix}__TOKEN_URL": "http://localhost/oauth/token"}, dev=True)
