"""
A Codex `auth.json` of any generation, read into exactly one kind of credential.

Pure. Which kind it is comes from `auth_mode` or, in files from before that field, from the one credential that is
there; where two could be meant the file is refused, never guessed. A record of an agent and the tokens beside it must
belong to the same account and user. Tokens are decoded but not verified (nothing here can), which their names say. Keys
are not parsed here; `broker.keys` does. The fields are those of openai/codex codex-rs/login/src/auth/storage.rs at
343074d4207d (lines 39 to 148) and, for the older record, codex-rs/login/src/agent_identity.rs at 19e2f218271a.
"""

import re
from base64 import urlsafe_b64decode
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, NoReturn

from broker.assertion import InvalidBackendIdError, validate_backend_id
from broker.errors import ImportInvalidError
from broker.identity_jwt import IdentityJwtError, peek
from broker.model import Secret
from broker.strict_json import StrictJsonError, parse_object

MAX_FILE_BYTES: Final = 64 * 1024
MAX_TOKEN_LENGTH: Final = 16 * 1024
PERSONAL_ACCESS_TOKEN_PREFIX: Final = "at-"  # noqa: S105  -- a prefix, not a token

_FILE: Final = "auth_json"
_AUTH_CLAIMS: Final = "https://api.openai.com/auth"
_PROFILE_CLAIMS: Final = "https://api.openai.com/profile"
_JWT_PARTS: Final = 3

_VISIBLE: Final = re.compile(r"[!-~]+")
_ID: Final = re.compile(r"[!-~]{1,256}")
_KEY_TEXT: Final = re.compile(r"[A-Za-z0-9+/=]{1,256}")
_TEXT: Final = re.compile(r"[^\x00-\x1f\x7f-\x9f]{1,320}")


@dataclass(frozen=True, slots=True, kw_only=True)
class UnverifiedTokenClaims:
    """What an id token says, proven by nobody; None where it says nothing."""

    unverified_account_id: str | None = None
    unverified_user_id: str | None = None
    unverified_email: str | None = None
    unverified_plan_type: str | None = None
    unverified_fedramp: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """The tokens of a ChatGPT login."""

    access_token: Secret
    refresh_token: Secret | None
    id_token: Secret | None
    account_id: str | None
    """The account the tokens are for: the file's, which the id token must not contradict, else the id token's."""
    claims: UnverifiedTokenClaims
    unverified_expire_time: float | None
    """When the access token says that it expires (Unix seconds); None when it does not say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkspaceRecord:
    """An agent of generation A: bound to a workspace, with a task for background work of its own."""

    workspace_id: str
    chatgpt_user_id: str | None
    agent_runtime_id: str
    agent_private_key: Secret
    registered_at: str | None
    background_task_id: str | None
    tokens: Tokens | None


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountRecord:
    """An agent of generation C or D: bound to an account and a user; D keeps its one task."""

    account_id: str
    chatgpt_user_id: str
    email: str | None
    plan_type: str | None
    fedramp: bool
    agent_runtime_id: str
    agent_private_key: Secret
    registered_at: str | None
    task_id: str | None
    tokens: Tokens | None


@dataclass(frozen=True, slots=True)
class IdentityJwt:
    """An Agent Identity JWT; nothing of it may be used before `broker.identity_jwt.verify`."""

    unverified_jwt: Secret


@dataclass(frozen=True, slots=True)
class TokensOnly:
    """A ChatGPT login without an agent."""

    tokens: Tokens


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A plain API key."""

    key: Secret


@dataclass(frozen=True, slots=True)
class PersonalAccessToken:
    """A token made by a user for programs; it begins with `at-`."""

    token: Secret


AuthJson = WorkspaceRecord | AccountRecord | IdentityJwt | TokensOnly | ApiKey | PersonalAccessToken


def parse_auth_json(data: bytes) -> AuthJson:
    """
    Read the content of an `auth.json`.

    Raises:
        ImportInvalidError: the file cannot be used; `violations` name each field and what to do about it, and hold no
            value of the file.
    """
    if len(data) > MAX_FILE_BYTES:
        _refuse(_FILE, "is larger than 64 KiB; this is not the file that Codex writes")
    try:
        members = parse_object(data)
    except StrictJsonError as error:
        _refuse(_FILE, f"cannot be read: {error}")
    return _choose(members)


def _refuse(name: str, problem: str) -> NoReturn:
    raise ImportInvalidError(violations={name: problem})


def _choose(members: Mapping[str, Any]) -> AuthJson:
    mode = members.get("auth_mode")
    if mode is None:
        mode = _only_mode(members)
    match mode:
        case "apikey":
            return ApiKey(_token(members, "OPENAI_API_KEY"))
        case "personalAccessToken":
            return _personal_access_token(_token(members, "personal_access_token"))
        case "chatgpt" | "chatgptAuthTokens":
            record = members.get("agent_identity")
            if isinstance(record, str):
                _refuse("agent_identity", f"is a JWT, which does not go with auth_mode {mode}; log in again with Codex")
            tokens = _tokens(members)
            return TokensOnly(tokens) if record is None else _record(record, tokens)
        case "agentIdentity":
            return _agent_identity(members)
        case "headers" | "bedrockApiKey":
            _refuse("auth_mode", f"is {mode}; the broker has no use for such a login")
        case _:
            _refuse("auth_mode", "is not a mode that Codex writes")


def _only_mode(members: Mapping[str, Any]) -> str:
    """Tell the mode of a file from before `auth_mode`, which holds one kind of credential and nothing else."""
    has_tokens = members.get("tokens") is not None
    found = {
        "apikey": members.get("OPENAI_API_KEY"),
        "personalAccessToken": members.get("personal_access_token"),
        "bedrockApiKey": members.get("bedrock_api_key"),
        "chatgpt": members.get("tokens"),
        # With tokens beside it a record belongs to the login and is no mode of its own.
        "agentIdentity": None if has_tokens else members.get("agent_identity"),
    }
    modes = [mode for mode, value in found.items() if value is not None]
    if not modes:
        _refuse(_FILE, "holds no credential; log in with Codex first")
    if len(modes) > 1:
        _refuse("auth_mode", f"is missing and several could be meant ({', '.join(modes)}); remove what is not meant")
    return modes[0]


def _personal_access_token(token: Secret) -> PersonalAccessToken:
    if not token.reveal().startswith(PERSONAL_ACCESS_TOKEN_PREFIX):
        _refuse("personal_access_token", "does not begin with at-")
    return PersonalAccessToken(token)


def _agent_identity(members: Mapping[str, Any]) -> AuthJson:
    value = members.get("agent_identity")
    if isinstance(value, str):
        token = _token(members, "agent_identity")
        try:
            peek(token.reveal())
        except IdentityJwtError as error:
            _refuse("agent_identity", f"cannot be used: {error}")
        return IdentityJwt(token)
    return _record(value, _tokens(members) if members.get("tokens") is not None else None)


def _record(value: Any, tokens: Tokens | None) -> WorkspaceRecord | AccountRecord:
    if not isinstance(value, dict):
        _refuse("agent_identity", "is neither a record nor a JWT")
    fields = _Fields(value, "agent_identity")
    has_workspace, has_account = "workspace_id" in value, "account_id" in value
    if has_workspace == has_account:
        _refuse("agent_identity", "names neither workspace_id nor account_id, or both; log in again with Codex")
    record = _workspace_record(fields, tokens) if has_workspace else _account_record(fields, tokens)
    fields.raise_violations()
    if tokens is not None:
        _check_binding(record, tokens)
    return record


def _workspace_record(fields: "_Fields", tokens: Tokens | None) -> WorkspaceRecord:
    return WorkspaceRecord(
        workspace_id=fields.required("workspace_id", _ID),
        chatgpt_user_id=fields.optional("chatgpt_user_id", _ID),
        agent_runtime_id=fields.backend_id("agent_runtime_id") or "",
        agent_private_key=Secret(fields.required("agent_private_key", _KEY_TEXT)),
        registered_at=fields.optional("registered_at", _TEXT),
        background_task_id=fields.backend_id("background_task_id", required=False),
        tokens=tokens,
    )


def _account_record(fields: "_Fields", tokens: Tokens | None) -> AccountRecord:
    return AccountRecord(
        account_id=fields.required("account_id", _ID),
        chatgpt_user_id=fields.required("chatgpt_user_id", _ID),
        email=fields.optional("email", _TEXT),
        plan_type=fields.optional("plan_type", _TEXT),
        fedramp=fields.flag("chatgpt_account_is_fedramp"),
        agent_runtime_id=fields.backend_id("agent_runtime_id") or "",
        agent_private_key=Secret(fields.required("agent_private_key", _KEY_TEXT)),
        registered_at=fields.optional("registered_at", _TEXT),
        task_id=fields.backend_id("task_id", required=False),
        tokens=tokens,
    )


class _Fields:
    """The members of one object of the file; gathers what is wrong with them."""

    def __init__(self, members: Mapping[str, Any], place: str) -> None:
        self._members = members
        self._place = place
        self._violations: dict[str, str] = {}

    def required(self, name: str, form: re.Pattern[str]) -> str:
        value = self._members.get(name)
        if value is None or value == "":
            return self._violate(name, "is missing; log in again with Codex")
        if not isinstance(value, str) or form.fullmatch(value) is None:
            return self._violate(name, "is not of the form that Codex writes")
        return value

    def optional(self, name: str, form: re.Pattern[str]) -> str | None:
        # An empty text is how upstream writes "none" for some fields.
        return self.required(name, form) if self._members.get(name) not in (None, "") else None

    def flag(self, name: str) -> bool:
        value = self._members.get(name, False)
        if not isinstance(value, bool):
            self._violate(name, "is not true or false")
            return False
        return value

    def backend_id(self, name: str, *, required: bool = True) -> str | None:
        text = self.required(name, _ID) if required else self.optional(name, _ID)
        if not text:
            return None
        try:
            return validate_backend_id(text)
        except InvalidBackendIdError:
            return self._violate(name, "holds characters that a backend's id may not hold")

    def raise_violations(self) -> None:
        if self._violations:
            raise ImportInvalidError(violations=self._violations)

    def _violate(self, name: str, problem: str) -> str:
        self._violations[f"{self._place}.{name}"] = problem
        return ""


def _token(members: Mapping[str, Any], name: str, place: str = "") -> Secret:
    value = members.get(name)
    path = f"{place}{name}"
    if value is None or value == "":
        _refuse(path, "is missing; log in again with Codex")
    if not isinstance(value, str) or len(value) > MAX_TOKEN_LENGTH or _VISIBLE.fullmatch(value) is None:
        _refuse(path, "is not a token: at most 16 KiB of visible ASCII characters")
    return Secret(value)


def _optional_token(members: Mapping[str, Any], name: str, place: str) -> Secret | None:
    return None if members.get(name) in (None, "") else _token(members, name, place)


def _tokens(members: Mapping[str, Any]) -> Tokens:
    value = members.get("tokens")
    if not isinstance(value, dict):
        _refuse("tokens", "is missing or not an object; log in again with Codex")
    id_token = _optional_token(value, "id_token", "tokens.")
    claims = UnverifiedTokenClaims() if id_token is None else unverified_claims(id_token)
    fields = _Fields(value, "tokens")
    stated = fields.optional("account_id", _ID)
    fields.raise_violations()
    claimed = claims.unverified_account_id
    if stated is not None and claimed is not None and stated != claimed:
        _refuse("tokens.account_id", "is another account than the id token's; log in again with Codex")
    access_token = _token(value, "access_token", "tokens.")
    return Tokens(
        access_token=access_token,
        refresh_token=_optional_token(value, "refresh_token", "tokens."),
        id_token=id_token,
        account_id=stated or claimed,
        claims=claims,
        unverified_expire_time=unverified_expire_time(access_token),
    )


def _unverified_payload(token: Secret) -> Mapping[str, Any]:
    """Decode a JWT's payload; an empty mapping for a token that is opaque."""
    parts = token.reveal().split(".")
    if len(parts) != _JWT_PARTS:
        return {}
    try:
        return parse_object(urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
    except ValueError:  # of the base64 or of the JSON
        return {}


def unverified_claims(id_token: Secret) -> UnverifiedTokenClaims:
    """Read the claims that Codex reads (codex-rs/login/src/token_data.rs at 343074d4207d, lines 75 to 160)."""
    payload = _unverified_payload(id_token)
    auth, profile = _members_of(payload, _AUTH_CLAIMS), _members_of(payload, _PROFILE_CLAIMS)
    return UnverifiedTokenClaims(
        unverified_account_id=_claim(auth, "chatgpt_account_id", _ID),
        unverified_user_id=_claim(auth, "chatgpt_user_id", _ID) or _claim(auth, "user_id", _ID),
        unverified_email=_claim(payload, "email", _TEXT) or _claim(profile, "email", _TEXT),
        unverified_plan_type=_claim(auth, "chatgpt_plan_type", _TEXT),
        unverified_fedramp=auth.get("chatgpt_account_is_fedramp") is True,
    )


def unverified_expire_time(access_token: Secret) -> float | None:
    """Return the `exp` of a token that is a JWT; None for one that is opaque or does not say."""
    value = _unverified_payload(access_token).get("exp")
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) and value > 0 else None


def _members_of(payload: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = payload.get(name)
    return value if isinstance(value, dict) else {}


def _claim(claims: Mapping[str, Any], name: str, form: re.Pattern[str]) -> str | None:
    value = claims.get(name)
    return value if isinstance(value, str) and form.fullmatch(value) else None


def _check_binding(record: WorkspaceRecord | AccountRecord, tokens: Tokens) -> None:
    """
    Refuse a record that is not provably of the same account and user as the tokens beside it.

    Upstream let an unknown user of the older record pass (openai/codex #17386, review); unknown is no match here.
    """
    violations = {}
    if isinstance(record, WorkspaceRecord):
        name, account = "workspace_id", record.workspace_id
    else:
        name, account = "account_id", record.account_id
    if tokens.account_id is None:
        violations["tokens.account_id"] = "is missing, so the agent cannot be matched to the login; log in again"
    elif tokens.account_id != account:
        violations[f"agent_identity.{name}"] = "is another account than the tokens'; log in again with Codex"
    user = tokens.claims.unverified_user_id
    if user is None:
        violations |= {"tokens.id_token": "names no user, so the agent cannot be matched to the login; log in again"}
    elif record.chatgpt_user_id != user:
        violations["agent_identity.chatgpt_user_id"] = (
            "is missing or another user than the tokens'; log in again with Codex"
        )
    if violations:
        raise ImportInvalidError(violations=violations)
