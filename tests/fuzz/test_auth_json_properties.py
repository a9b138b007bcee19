"""Whatever is in an auth.json, it is one typed credential or a typed refusal, and no secret shows."""

import json
from base64 import urlsafe_b64encode

from hypothesis import given, settings
from hypothesis import strategies as st

from broker.auth_json import (
    AccountRecord,
    ApiKey,
    IdentityJwt,
    PersonalAccessToken,
    TokensOnly,
    WorkspaceRecord,
    parse_auth_json,
)
from broker.errors import ImportInvalidError

CANARY = "canary"
Credential = WorkspaceRecord | AccountRecord | IdentityJwt | TokensOnly | ApiKey | PersonalAccessToken


def outcome(data: bytes) -> Credential | ImportInvalidError:
    """Return the credential or the refusal."""
    try:
        return parse_auth_json(data)
    except ImportInvalidError as refusal:
        return refusal


def jwt(claims: object) -> str:
    """Return something of a JWT's form."""
    parts = ({"alg": "RS256", "kid": "k"}, claims)
    return ".".join([*(urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode() for part in parts), CANARY])


ODD = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=20), st.just([]), st.just({})
)
NAMES = st.sampled_from(["account-1", "account-2", "user-1", "user-2", "agent-1", "", "a:b"])


def some(**members: st.SearchStrategy[object]) -> st.SearchStrategy[dict[str, object]]:
    """Objects with any of these members, now and then with an odd value."""
    return st.fixed_dictionaries(
        {}, optional={name: st.one_of(value, value, value, value, ODD) for name, value in members.items()}
    )


ID_TOKENS = st.builds(
    lambda auth: jwt({"https://api.openai.com/auth": auth}), some(chatgpt_account_id=NAMES, chatgpt_user_id=NAMES)
)
TOKENS = some(id_token=ID_TOKENS, access_token=st.just(CANARY), refresh_token=st.just(CANARY), account_id=NAMES)
RECORDS = some(
    workspace_id=NAMES,
    account_id=NAMES,
    chatgpt_user_id=NAMES,
    agent_runtime_id=NAMES,
    agent_private_key=st.just(CANARY),
    task_id=NAMES,
    background_task_id=NAMES,
    chatgpt_account_is_fedramp=st.booleans(),
)
FILES = some(
    auth_mode=st.sampled_from(["apikey", "chatgpt", "agentIdentity", "personalAccessToken", "headers", None]),
    OPENAI_API_KEY=st.just(CANARY),
    personal_access_token=st.just(f"at-{CANARY}"),
    tokens=TOKENS,
    agent_identity=st.one_of(RECORDS, RECORDS, ID_TOKENS),
)


@settings(max_examples=1000, deadline=None)
@given(FILES)
def test_a_file_is_one_credential_or_one_refusal(members: dict[str, object]) -> None:
    """Every file gives a credential of a known kind, bound to its tokens, or a refusal; neither shows a secret."""
    credential = outcome(json.dumps(members).encode())
    assert CANARY not in f"{credential!r} {credential}"
    if isinstance(credential, ImportInvalidError):
        assert credential.violations
        return
    if isinstance(credential, WorkspaceRecord | AccountRecord) and credential.tokens is not None:
        account = credential.workspace_id if isinstance(credential, WorkspaceRecord) else credential.account_id
        claims = credential.tokens.claims
        assert (credential.tokens.account_id, claims.unverified_user_id) == (account, credential.chatgpt_user_id)
        assert claims.unverified_account_id in {None, account}
        assert credential.chatgpt_user_id


@settings(max_examples=500, deadline=None)
@given(st.one_of(st.binary(max_size=200), st.text(max_size=200).map(str.encode)))
def test_any_bytes_are_answered(data: bytes) -> None:
    """Nothing but a typed refusal comes out of what is no such file."""
    refusal = outcome(data)
    assert isinstance(refusal, ImportInvalidError)
    assert refusal.violations
