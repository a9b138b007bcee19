"""Reading a Codex auth.json of every generation."""

import json
from base64 import urlsafe_b64encode
from typing import Any

import pytest

from broker.auth_json import (
    AccountRecord,
    ApiKey,
    IdentityJwt,
    PersonalAccessToken,
    Tokens,
    TokensOnly,
    UnverifiedTokenClaims,
    WorkspaceRecord,
    parse_auth_json,
)
from broker.errors import ImportInvalidError
from broker.model import Secret

CANARY = "MFECAQEwBQYDK2VwBCIEIcanary"
AUTH = "https://api.openai.com/auth"
PROFILE = "https://api.openai.com/profile"


def encode(value: object) -> str:
    """Encode as a part of a JWT."""
    return urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


def jwt(claims: object, header: object = None) -> str:
    """Return something of a JWT's form that nobody signed."""
    return f"{encode(header or {'alg': 'RS256', 'kid': 'key-1'})}.{encode(claims)}.c2lnbmF0dXJl"


def id_token(**auth: object) -> str:
    """Return an id token of account-1 and user-1, some claims replaced or (None) left out."""
    members = {"chatgpt_account_id": "account-1", "chatgpt_user_id": "user-1", "chatgpt_plan_type": "plus"} | auth
    claims = {name: value for name, value in members.items() if value is not None}
    return jwt({"email": "a@example.com", AUTH: claims})


def tokens(**changes: object) -> dict[str, object]:
    """Return the tokens of a login."""
    return {
        "id_token": id_token(),
        "access_token": jwt({"exp": 1_790_000_000}),
        "refresh_token": "refresh-canary",
        "account_id": "account-1",
    } | changes


def workspace_record(**changes: object) -> dict[str, object]:
    """Return a record of generation A."""
    return {
        "workspace_id": "account-1",
        "chatgpt_user_id": "user-1",
        "agent_runtime_id": "agent-1",
        "agent_private_key": CANARY,
        "registered_at": "2026-04-20T00:00:00Z",
        "background_task_id": "task-1",
    } | changes


def account_record(**changes: object) -> dict[str, object]:
    """Return a record of generation D."""
    return {
        "agent_runtime_id": "agent-1",
        "agent_private_key": CANARY,
        "account_id": "account-1",
        "chatgpt_user_id": "user-1",
        "email": "",
        "plan_type": "plus",
        "chatgpt_account_is_fedramp": False,
        "task_id": "task-1",
    } | changes


def read(**members: object) -> Any:
    """Parse a file with these members."""
    return parse_auth_json(json.dumps(members).encode())


def violations(**members: object) -> dict[str, str]:
    """Return what is said about a file that must be refused, after a look for its secrets."""
    with pytest.raises(ImportInvalidError) as refused:
        read(**members)
    error: BaseException | None = refused.value
    while error is not None:
        assert "canary" not in f"{error!r} {error}"
        error = error.__context__
    return refused.value.violations


PARSED_TOKENS = Tokens(
    access_token=Secret(jwt({"exp": 1_790_000_000})),
    refresh_token=Secret("refresh-canary"),
    id_token=Secret(id_token()),
    account_id="account-1",
    claims=UnverifiedTokenClaims(
        unverified_account_id="account-1",
        unverified_user_id="user-1",
        unverified_email="a@example.com",
        unverified_plan_type="plus",
    ),
    unverified_expire_time=1_790_000_000.0,
)


@pytest.mark.parametrize("mode", [None, "chatgpt"])
def test_generation_a(mode: str | None) -> None:
    """The record of generation A has its workspace and background task, with the tokens it lies beside."""
    record = read(
        auth_mode=mode, OPENAI_API_KEY=None, tokens=tokens(), last_refresh="x", agent_identity=workspace_record()
    )
    assert record == WorkspaceRecord(
        workspace_id="account-1",
        chatgpt_user_id="user-1",
        agent_runtime_id="agent-1",
        agent_private_key=Secret(CANARY),
        registered_at="2026-04-20T00:00:00Z",
        background_task_id="task-1",
        tokens=PARSED_TOKENS,
    )
    assert "canary" not in repr(record)


@pytest.mark.parametrize(
    ("changes", "registered_at", "task_id"),
    [
        ({}, None, "task-1"),
        ({"task_id": None}, None, None),
        ({"task_id": ""}, None, None),
        ({"task_id": None, "registered_at": "2026-05-05T00:00:00Z"}, "2026-05-05T00:00:00Z", None),
    ],
)
def test_generations_c_and_d(changes: dict[str, object], registered_at: str | None, task_id: str | None) -> None:
    """The record since generation C has account and user; C has a time of registration, D its task, both optional."""
    record = read(auth_mode="chatgpt", tokens=tokens(), agent_identity=account_record(**changes))
    assert record == AccountRecord(
        account_id="account-1",
        chatgpt_user_id="user-1",
        email=None,
        plan_type="plus",
        fedramp=False,
        agent_runtime_id="agent-1",
        agent_private_key=Secret(CANARY),
        registered_at=registered_at,
        task_id=task_id,
        tokens=PARSED_TOKENS,
    )
    assert "canary" not in repr(record)


@pytest.mark.parametrize("mode", [None, "agentIdentity"])
def test_a_record_may_stand_alone(mode: str | None) -> None:
    """Without tokens there is nothing to compare a record with."""
    assert read(auth_mode=mode, agent_identity=account_record()).tokens is None
    assert read(auth_mode=mode, agent_identity=workspace_record(chatgpt_user_id=None)).chatgpt_user_id is None


@pytest.mark.parametrize("mode", [None, "agentIdentity"])
def test_an_identity_jwt(mode: str | None) -> None:
    """A text in place of the record is an identity JWT, not believed yet."""
    token = jwt({"agent_private_key": CANARY})
    credential = read(auth_mode=mode, agent_identity=token)
    assert credential == IdentityJwt(Secret(token))
    assert token not in repr(credential)


@pytest.mark.parametrize("mode", [None, "chatgpt", "chatgptAuthTokens"])
def test_tokens_only(mode: str | None) -> None:
    """A login without an agent is its tokens."""
    assert read(auth_mode=mode, tokens=tokens(), agent_identity=None) == TokensOnly(PARSED_TOKENS)


@pytest.mark.parametrize("mode", [None, "apikey"])
def test_an_api_key(mode: str | None) -> None:
    """An API key is just that."""
    assert read(auth_mode=mode, OPENAI_API_KEY="sk-canary") == ApiKey(Secret("sk-canary"))


@pytest.mark.parametrize("mode", [None, "personalAccessToken"])
def test_a_personal_access_token(mode: str | None) -> None:
    """A personal access token is known by its field and its beginning."""
    assert read(auth_mode=mode, personal_access_token="at-canary") == PersonalAccessToken(Secret("at-canary"))
    assert list(violations(auth_mode=mode, personal_access_token="xx-canary")) == ["personal_access_token"]


def test_the_stated_mode_decides_among_several() -> None:
    """With `auth_mode` the file says which of its credentials is meant, and the others are not looked at."""
    members: dict[str, object] = {"OPENAI_API_KEY": "sk-canary", "tokens": tokens(), "agent_identity": account_record()}
    assert isinstance(read(auth_mode="apikey", **members), ApiKey)
    assert isinstance(read(auth_mode="chatgpt", **members), AccountRecord)


@pytest.mark.parametrize(
    ("members", "place"),
    [
        ({}, "auth_json"),
        ({"OPENAI_API_KEY": None, "tokens": None}, "auth_json"),
        ({"OPENAI_API_KEY": "sk-canary", "tokens": tokens()}, "auth_mode"),
        ({"OPENAI_API_KEY": "sk-canary", "agent_identity": account_record()}, "auth_mode"),
        ({"personal_access_token": "at-canary", "agent_identity": account_record()}, "auth_mode"),
        ({"bedrock_api_key": "canary"}, "auth_mode"),
        ({"auth_mode": "bedrockApiKey", "bedrock_api_key": "canary"}, "auth_mode"),
        ({"auth_mode": "headers"}, "auth_mode"),
        ({"auth_mode": "Chatgpt", "tokens": tokens()}, "auth_mode"),
        ({"auth_mode": 1, "tokens": tokens()}, "auth_mode"),
        ({"auth_mode": ["apikey"], "OPENAI_API_KEY": "sk-canary"}, "auth_mode"),
        ({"auth_mode": "", "OPENAI_API_KEY": "sk-canary"}, "auth_mode"),
        ({"auth_mode": "apikey", "tokens": tokens()}, "OPENAI_API_KEY"),
        ({"auth_mode": "chatgpt", "OPENAI_API_KEY": "sk-canary"}, "tokens"),
        ({"auth_mode": "chatgpt", "agent_identity": account_record()}, "tokens"),
        ({"auth_mode": "chatgpt", "tokens": tokens(), "agent_identity": jwt({})}, "agent_identity"),
        ({"auth_mode": "agentIdentity", "tokens": tokens()}, "agent_identity"),
        ({"auth_mode": "personalAccessToken"}, "personal_access_token"),
    ],
)
def test_a_mode_that_is_not_clear_is_not_guessed(members: dict[str, object], place: str) -> None:
    """A file whose credential is missing, unusable or one of several is refused at the field that would say it."""
    assert list(violations(**members)) == [place]


@pytest.mark.parametrize(
    ("record", "place"),
    [
        (account_record(account_id="account-2"), "agent_identity.account_id"),
        (account_record(chatgpt_user_id="user-2"), "agent_identity.chatgpt_user_id"),
        (workspace_record(workspace_id="account-2"), "agent_identity.workspace_id"),
        (workspace_record(chatgpt_user_id="user-2"), "agent_identity.chatgpt_user_id"),
        (workspace_record(chatgpt_user_id=None), "agent_identity.chatgpt_user_id"),
        (workspace_record(chatgpt_user_id=""), "agent_identity.chatgpt_user_id"),
    ],
)
def test_a_record_of_somebody_else_is_refused(record: dict[str, object], place: str) -> None:
    """Account and user of record and tokens must be the same."""
    assert list(violations(tokens=tokens(), agent_identity=record)) == [place]


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({"id_token": id_token(chatgpt_user_id=None)}, "tokens.id_token"),
        ({"id_token": "opaque"}, "tokens.id_token"),
        ({"id_token": None}, "tokens.id_token"),
        ({"id_token": jwt([])}, "tokens.id_token"),
        ({"id_token": jwt({AUTH: "x"})}, "tokens.id_token"),
        ({"id_token": "a.!!!.c"}, "tokens.id_token"),
        ({"id_token": id_token(chatgpt_user_id="user-2")}, "agent_identity.chatgpt_user_id"),
        ({"id_token": id_token(chatgpt_user_id=7)}, "tokens.id_token"),
        ({"id_token": id_token(chatgpt_account_id=None), "account_id": None}, "tokens.account_id"),
        ({"id_token": id_token(chatgpt_account_id="account-2")}, "tokens.account_id"),
        ({"account_id": "account-2"}, "tokens.account_id"),
        ({"account_id": "account-2", "id_token": id_token(chatgpt_account_id=None)}, "agent_identity.account_id"),
    ],
)
def test_tokens_that_do_not_prove_whose_they_are_are_refused(changes: dict[str, object], place: str) -> None:
    """Unknown is no match: a record beside tokens needs their account and user, and the tokens must agree."""
    assert list(violations(tokens=tokens(**changes), agent_identity=account_record())) == [place]


def test_both_mismatches_are_told_at_once() -> None:
    """An operator sees everything that does not fit in one go."""
    record = account_record(account_id="account-2", chatgpt_user_id="user-2")
    assert set(violations(tokens=tokens(), agent_identity=record)) == {
        "agent_identity.account_id",
        "agent_identity.chatgpt_user_id",
    }


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"account_id": None}, "account-1"),
        ({"id_token": id_token(chatgpt_account_id=None)}, "account-1"),
        ({"id_token": None}, "account-1"),
        ({"id_token": None, "account_id": None}, None),
        ({"id_token": None, "account_id": ""}, None),
    ],
)
def test_the_account_of_tokens_is_stated_or_claimed(changes: dict[str, object], expected: str | None) -> None:
    """The file's account counts, else the id token's."""
    assert read(tokens=tokens(**changes)).tokens.account_id == expected


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        ({}, UnverifiedTokenClaims()),
        ({AUTH: {"user_id": "user-2"}}, UnverifiedTokenClaims(unverified_user_id="user-2")),
        (
            {AUTH: {"user_id": "user-2", "chatgpt_user_id": "user-1"}},
            UnverifiedTokenClaims(unverified_user_id="user-1"),
        ),
        ({PROFILE: {"email": "b@example.com"}}, UnverifiedTokenClaims(unverified_email="b@example.com")),
        ({AUTH: {"chatgpt_account_is_fedramp": True}}, UnverifiedTokenClaims(unverified_fedramp=True)),
        ({AUTH: {"chatgpt_account_is_fedramp": "true"}}, UnverifiedTokenClaims()),
        ({AUTH: {"chatgpt_user_id": "a\nb"}, "email": "a\x00"}, UnverifiedTokenClaims()),
    ],
)
def test_the_claims_of_an_id_token(payload: object, expected: UnverifiedTokenClaims) -> None:
    """The claims are those that Codex reads; what is not of their form is as if it were not there."""
    assert read(tokens=tokens(id_token=jwt(payload), account_id=None)).tokens.claims == expected


@pytest.mark.parametrize(
    ("access_token", "expected"),
    [
        ("opaque", None),
        (jwt({}), None),
        (jwt({"exp": "soon"}), None),
        (jwt({"exp": True}), None),
        (jwt({"exp": -1}), None),
        (jwt({"exp": 7.5}), 7.5),
    ],
)
def test_an_access_token_may_say_when_it_expires(access_token: str, expected: float | None) -> None:
    """The expiry is read where the token has one in the usual form."""
    assert read(tokens=tokens(access_token=access_token)).tokens.unverified_expire_time == expected


RECORD_FAULTS: list[tuple[dict[str, object], str]] = [
    ({"agent_runtime_id": None}, "agent_runtime_id"),
    ({"agent_runtime_id": ""}, "agent_runtime_id"),
    ({"agent_runtime_id": "a:b"}, "agent_runtime_id"),
    ({"agent_runtime_id": "a/../b"}, "agent_runtime_id"),
    ({"agent_runtime_id": ".."}, "agent_runtime_id"),
    ({"agent_runtime_id": 7}, "agent_runtime_id"),
    ({"agent_runtime_id": "a" * 129}, "agent_runtime_id"),
    ({"agent_private_key": None}, "agent_private_key"),
    ({"agent_private_key": ""}, "agent_private_key"),
    ({"agent_private_key": f"{CANARY}\n"}, "agent_private_key"),
    ({"agent_private_key": f"{CANARY}-"}, "agent_private_key"),
    ({"agent_private_key": "A" * 257}, "agent_private_key"),
    ({"agent_private_key": [CANARY]}, "agent_private_key"),
    ({"registered_at": 7}, "registered_at"),
    ({"registered_at": "a\x1bb"}, "registered_at"),
    ({"chatgpt_user_id": "a b"}, "chatgpt_user_id"),
    ({"chatgpt_user_id": "a\r\nb"}, "chatgpt_user_id"),
    ({"chatgpt_user_id": {"a": 1}}, "chatgpt_user_id"),
]
ACCOUNT_FAULTS: list[tuple[dict[str, object], str]] = [
    *RECORD_FAULTS,
    ({"account_id": ""}, "account_id"),
    ({"account_id": "a\x00"}, "account_id"),
    ({"account_id": "a" * 257}, "account_id"),
    ({"account_id": "ä"}, "account_id"),
    ({"chatgpt_user_id": None}, "chatgpt_user_id"),
    ({"chatgpt_user_id": ""}, "chatgpt_user_id"),
    ({"email": 7}, "email"),
    ({"email": "a\tb"}, "email"),
    ({"plan_type": {}}, "plan_type"),
    ({"chatgpt_account_is_fedramp": "true"}, "chatgpt_account_is_fedramp"),
    ({"chatgpt_account_is_fedramp": None}, "chatgpt_account_is_fedramp"),
    ({"task_id": "a b"}, "task_id"),
    ({"task_id": 7}, "task_id"),
]
WORKSPACE_FAULTS: list[tuple[dict[str, object], str]] = [
    *RECORD_FAULTS,
    ({"workspace_id": ""}, "workspace_id"),
    ({"workspace_id": None}, "workspace_id"),
    ({"workspace_id": "a b"}, "workspace_id"),
    ({"background_task_id": "a:b"}, "background_task_id"),
    ({"background_task_id": []}, "background_task_id"),
]


@pytest.mark.parametrize(("changes", "name"), ACCOUNT_FAULTS)
def test_a_field_of_an_account_record_is_checked(changes: dict[str, object], name: str) -> None:
    """Each field that is missing or not of its form is named, and its value is not repeated."""
    assert list(violations(agent_identity=account_record(**changes))) == [f"agent_identity.{name}"]


@pytest.mark.parametrize(("changes", "name"), WORKSPACE_FAULTS)
def test_a_field_of_a_workspace_record_is_checked(changes: dict[str, object], name: str) -> None:
    """The same for the older record."""
    assert list(violations(agent_identity=workspace_record(**changes))) == [f"agent_identity.{name}"]


@pytest.mark.parametrize(
    "record",
    [
        {},
        [],
        7,
        True,
        workspace_record() | account_record(),
        {name: value for name, value in account_record().items() if name != "account_id"},
    ],
)
def test_what_is_no_record_is_refused(record: object) -> None:
    """Neither record, both records, or no record at all."""
    assert list(violations(auth_mode="agentIdentity", agent_identity=record)) == ["agent_identity"]


@pytest.mark.parametrize("token", ["opaque-canary", "a.b", "a.b.c.d", jwt({}, {"alg": "none"}), jwt([])])
def test_what_could_never_be_an_identity_jwt_is_refused(token: str) -> None:
    """The form of a JWT is checked before anybody goes to the network with it."""
    assert list(violations(agent_identity=token)) == ["agent_identity"]


@pytest.mark.parametrize("value", ["", None, 7, "a b", "a\nb", "a\x00", "ä", "a" * 16_385, ["a"], {"a": 1}])
@pytest.mark.parametrize("name", ["access_token", "refresh_token", "id_token"])
def test_a_token_is_visible_ascii(name: str, value: object) -> None:
    """A token that could end its header line is refused; the two optional ones may be missing."""
    members = tokens(**{name: value})
    if name != "access_token" and value in ("", None):
        assert isinstance(read(tokens=members), TokensOnly)
        return
    assert list(violations(tokens=members)) == [f"tokens.{name}"]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"canary",
        b"[]",
        b'{"OPENAI_API_KEY":"sk-canary","OPENAI_API_KEY":"sk-canary-2"}',
        b'{"agent_identity":{"account_id":"canary","account_id":"b"}}',
        b'{"OPENAI_API_KEY":"sk-canary\xff"}',
        b'{"OPENAI_API_KEY":"sk-canary\n"}',
        b'\xef\xbb\xbf{"OPENAI_API_KEY":"sk-canary"}',
        b'{"a":' * 17 + b"1" + b"}" * 17,
        b'{"OPENAI_API_KEY":"sk-canary"}' + b" " * 65_536,
    ],
)
def test_what_is_no_such_file_is_refused(data: bytes) -> None:
    """Anything but one strict JSON object of at most 64 KiB is refused as a whole."""
    with pytest.raises(ImportInvalidError) as refused:
        parse_auth_json(data)
    assert list(refused.value.violations) == ["auth_json"]
    assert "canary" not in f"{refused.value} {refused.value.__context__!r}"
