"""The four generations as data, and the URLs they are called at."""

import pytest

from broker.model import TaskKind, ThreadId
from broker.profiles import (
    DEFAULT_PROFILE,
    PRESETS,
    AgentAuth,
    AssertionRoute,
    Base,
    BaseUrlError,
    EndpointUrls,
    Profile,
    TaskAuth,
    TaskLayout,
    resolve_urls,
    upstream_key,
)

A, B, C, D = (PRESETS[name] for name in ("codex-2026-04", "codex-2026-04-provider", "codex-2026-05", "codex-2026-08"))
THREAD = ThreadId("thread-1")


def test_the_presets_are_the_four_generations() -> None:
    """Four presets exist, each under its own name with its upstream commit, and the default is the newest."""
    assert list(PRESETS) == ["codex-2026-04", "codex-2026-04-provider", "codex-2026-05", "codex-2026-08"]
    assert all(profile.name == name for name, profile in PRESETS.items())
    assert all(profile.source.startswith("codex-rs/") for profile in PRESETS.values())
    assert DEFAULT_PROFILE == "codex-2026-08"


@pytest.mark.parametrize(
    ("profile", "expected"),
    [
        (A, (AgentAuth.BISCUIT, TaskAuth.BISCUIT, TaskLayout.THREAD_AND_BACKGROUND, False, Base.BACKEND, (), False)),
        (B, (AgentAuth.NONE, TaskAuth.NONE, TaskLayout.SINGLE, False, Base.BACKEND, (), False)),
        (C, (AgentAuth.BISCUIT, TaskAuth.NONE, TaskLayout.PROCESS_AND_THREAD, True, Base.BACKEND, (), False)),
        (D, (AgentAuth.BEARER, TaskAuth.NONE, TaskLayout.SINGLE, False, Base.AUTHAPI, ("responsesapi",), True)),
    ],
)
def test_a_preset_demands_what_its_generation_did(profile: Profile, expected: tuple[object, ...]) -> None:
    """The fields that differ between generations have the values of the protocol's tables."""
    assert (
        profile.agent_auth,
        profile.task_auth,
        profile.task_layout,
        profile.sends_external_task_ref,
        profile.task_base,
        profile.agent_capabilities,
        profile.sends_agent_ttl,
    ) == expected
    assert profile.agent_base is profile.task_base


def test_the_answer_fields_are_read_in_upstreams_order() -> None:
    """Generation A answers sealed only; since B a plain id stands before a sealed one."""
    assert [field.name for field in A.task_answer_fields] == ["encrypted_task_id"]
    for profile in (B, C, D):
        assert [(field.name, field.sealed) for field in profile.task_answer_fields] == [
            ("task_id", False),
            ("taskId", False),
            ("encrypted_task_id", True),
            ("encryptedTaskId", True),
        ]


def test_the_times_are_upstreams_and_the_lifetime_ours() -> None:
    """Time-outs are those of upstream's constants, and an assertion is handed out for a minute."""
    assert [profile.task_timeout for profile in (A, B, C, D)] == [15, 30, 30, 30]
    for profile in PRESETS.values():
        assert (
            profile.agent_timeout,
            profile.biscuit_timeout,
            profile.jwks_timeout,
            profile.assertion_lifetime,
        ) == (15, 15, 10, 60)


@pytest.mark.parametrize(
    ("layout", "kind", "expected"),
    [
        (TaskLayout.SINGLE, TaskKind.THREAD, "single"),
        (TaskLayout.SINGLE, TaskKind.BACKGROUND, "single"),
        (TaskLayout.THREAD_AND_BACKGROUND, TaskKind.BACKGROUND, "background"),
        (TaskLayout.PROCESS_AND_THREAD, TaskKind.BACKGROUND, "process"),
    ],
)
def test_bindings_share_what_the_layout_shares(layout: TaskLayout, kind: TaskKind, expected: str) -> None:
    """The name of the shared upstream task follows the layout."""
    assert upstream_key(layout, kind, THREAD if kind is TaskKind.THREAD else None) == expected


@pytest.mark.parametrize("layout", [TaskLayout.THREAD_AND_BACKGROUND, TaskLayout.PROCESS_AND_THREAD])
def test_threads_do_not_share(layout: TaskLayout) -> None:
    """Each thread has its own upstream task, always the same, of fixed size whatever the id."""
    threads = [ThreadId(text) for text in ("a", "b", "background", "process", "thread:a", "ä" * 256)]
    keys = [upstream_key(layout, TaskKind.THREAD, thread) for thread in threads]
    assert len(set(keys)) == len(threads)
    assert keys == [upstream_key(layout, TaskKind.THREAD, thread) for thread in threads]
    assert {len(key) for key in keys} == {len("thread:") + 64}


@pytest.mark.parametrize("layout", list(TaskLayout))
@pytest.mark.parametrize("thread_id", [None, ThreadId("")])
def test_a_threads_task_needs_its_thread(layout: TaskLayout, thread_id: ThreadId | None) -> None:
    """A thread's binding without a thread id is a defect, not a shared task."""
    with pytest.raises(ValueError, match="needs its thread id"):
        upstream_key(layout, TaskKind.THREAD, thread_id)


def test_only_generation_c_names_the_thread() -> None:
    """`external_task_ref` is sent for threads, and only by the draft that had it."""
    assert [profile.external_task_ref(TaskKind.THREAD, THREAD) for profile in (A, B, C, D)] == [
        None,
        None,
        THREAD,
        None,
    ]
    assert C.external_task_ref(TaskKind.BACKGROUND, None) is None


def test_routes_are_taken_unless_somebody_knows_better() -> None:
    """Every route takes assertions by default; generation B's recorded refusals stand with their source."""
    for scope in ("inference", "thread.files", "control_plane.analytics", "never.heard.of"):
        assert D.route(scope) == AssertionRoute(True, "default: every route takes assertions")
    assert [B.takes_assertions(f"control_plane.{name}") for name in ("plugins", "models", "analytics", "apps")] == [
        False,
        False,
        False,
        True,
    ]
    assert B.takes_assertions("inference")
    assert "#19635" in B.route("control_plane.plugins").source


def test_an_operator_overrides_routes_and_lifetime() -> None:
    """The nearest entry wins, names count whole, and the preset itself is untouched."""
    changed = B.with_overrides(
        assertion_routes={"control_plane": False, "control_plane.apps": True, "control_plane.plugins": True},
        assertion_lifetime=30.0,
    )
    assert {
        scope: changed.takes_assertions(scope)
        for scope in (
            "control_plane",
            "control_plane.apps",
            "control_plane.apps.list",
            "control_plane.plugins",
            "control_plane.usage",
            "control_plane2",
            "inference",
        )
    } == {
        "control_plane": False,
        "control_plane.apps": True,
        "control_plane.apps.list": True,
        "control_plane.plugins": True,
        "control_plane.usage": False,
        "control_plane2": True,
        "inference": True,
    }
    assert changed.route("control_plane").source == "configuration"
    assert changed.assertion_lifetime == 30.0
    assert not B.takes_assertions("control_plane.plugins")
    assert B.with_overrides() == B


PRODUCTION_AUTHAPI = "https://auth.openai.com/api/accounts"
STAGING_AUTHAPI = "https://auth.api.openai.org/api/accounts"


@pytest.mark.parametrize("path", ["", "/", "///", "/backend-api", "/backend-api/", "/codex", "/backend-api/codex"])
@pytest.mark.parametrize(
    ("host", "authapi"),
    [
        ("chatgpt.com", PRODUCTION_AUTHAPI),
        ("chat.openai.com", PRODUCTION_AUTHAPI),
        ("CHATGPT.com:443", PRODUCTION_AUTHAPI),
        ("chatgpt-staging.com", STAGING_AUTHAPI),
    ],
)
def test_the_public_environments_bring_their_authapi(host: str, authapi: str, path: str) -> None:
    """The twelve known base URLs, trailing slashes aside, know where agents are registered."""
    urls = resolve_urls(D, base_url=f"https://{host}{path}")
    root = f"https://{host.lower().removesuffix(':443')}{path.rstrip('/')}"
    jwks = f"{root}/wham/agent-identities/jwks" if "backend-api" in path else f"{root}/agent-identities/jwks"
    assert urls == EndpointUrls(root, authapi, jwks)


@pytest.mark.parametrize(
    "base_url",
    [
        "https://chatgpt.com.evil.example",
        "https://chatgpt.com.evil.example/backend-api",
        "https://evilchatgpt.com",
        "https://sub.chatgpt.com",
        "https://chatgpt.com:8443",
        "https://chatgpt.com/other",
        "https://chatgpt.com/backend-api/codex/more",
        "https://chatgpt.com/CODEX",
        "https://chatgpt.com/backend-api2",
        "https://backend.example",
    ],
)
def test_an_unknown_environment_must_name_its_authapi(base_url: str) -> None:
    """What only looks like a public environment is none, and a configured AuthAPI is then used as it stands."""
    with pytest.raises(BaseUrlError, match="authapi_base_url must be set"):
        resolve_urls(D, base_url=base_url)
    urls = resolve_urls(D, base_url=base_url, authapi_base_url="https://auth.example/accounts/")
    assert urls.authapi_base_url == "https://auth.example/accounts"


@pytest.mark.parametrize("profile", [A, B, C])
@pytest.mark.parametrize(
    ("configured", "expected"),
    [
        ("https://chatgpt.com", "https://chatgpt.com/backend-api"),
        ("https://chatgpt.com/", "https://chatgpt.com/backend-api"),
        ("https://chatgpt.com/codex", "https://chatgpt.com/backend-api"),
        ("https://chatgpt.com/backend-api", "https://chatgpt.com/backend-api"),
        ("https://chatgpt.com/backend-api/codex", "https://chatgpt.com/backend-api"),
        ("https://chat.openai.com/codex/", "https://chat.openai.com/backend-api"),
        ("https://chatgpt.com/backend-api/wham/remote/control/server", "https://chatgpt.com/backend-api"),
        ("https://chatgpt.com/backend-api/wham/remote/control/server/enroll", "https://chatgpt.com/backend-api"),
        ("https://chatgpt.com/wham/remote/control/server/enroll/", "https://chatgpt.com/backend-api"),
        ("https://chatgpt.com.evil.example", "https://chatgpt.com.evil.example"),
        ("https://chatgpt.com.evil.example/codex", "https://chatgpt.com.evil.example"),
        ("https://chatgpt.com:8443", "https://chatgpt.com:8443"),
        ("https://chatgpt-staging.com", "https://chatgpt-staging.com"),
        ("https://backend.example/x/codex", "https://backend.example/x"),
        ("https://backend.example/x-codex", "https://backend.example/x-codex"),
    ],
)
def test_earlier_generations_normalise_their_base(profile: Profile, configured: str, expected: str) -> None:
    """Known endings go, whole segments only, and `/backend-api` is completed on the public hosts only."""
    assert resolve_urls(profile, base_url=configured).base_url == expected


def test_the_keys_address_follows_its_base() -> None:
    """`/wham` stands before the keys where the base has a segment `backend-api`, not merely those letters."""
    for base, expected in {
        "https://keys.example": "https://keys.example/agent-identities/jwks",
        "https://keys.example/backend-api": "https://keys.example/backend-api/wham/agent-identities/jwks",
        "https://keys.example/x/backend-api/y": "https://keys.example/x/backend-api/y/wham/agent-identities/jwks",
        "https://keys.example/my-backend-api": "https://keys.example/my-backend-api/agent-identities/jwks",
    }.items():
        assert resolve_urls(D, base_url="https://chatgpt.com", jwks_base_url=base).jwks_url == expected


@pytest.mark.parametrize("key", ["base_url", "authapi_base_url", "jwks_base_url"])
@pytest.mark.parametrize(
    "url",
    [
        "http://backend.example",
        "https://u@backend.example",
        "https://backend.example?x",
        "https://backend.example/a?x=1",
        "https://backend.example?",
        "https://backend.example/a//b",
        "https://backend.example/../a",
        "https://backend.example/a/./b",
        "http://127.0.0.1:8089",
        "",
    ],
)
def test_a_base_url_is_an_origin_and_a_plain_path(key: str, url: str) -> None:
    """Queries, empty and dot segments, and anything the origin parser refuses are refused."""
    urls = {"base_url": "https://chatgpt.com"} | {key: url}
    with pytest.raises(BaseUrlError):
        resolve_urls(D, **urls)  # type: ignore[arg-type]


def test_loopback_http_needs_the_permission() -> None:
    """A backend of a development machine is reached over plain http, when that is allowed."""
    urls = resolve_urls(
        D,
        base_url="http://127.0.0.1:8089/backend-api",
        authapi_base_url="http://127.0.0.1:8089/api/accounts",
        allow_loopback_http=True,
    )
    assert {str(origin) for origin in urls.origins} == {"http://127.0.0.1:8089"}
