"""
Reading what identities are imported from: a Codex `auth.json`, an Agent Identity JWT, a bare key.

Whatever it came as becomes one `Imported`. No claim of a JWT is used before it was verified against its issuer's keys.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from broker import errors
from broker.auth_json import (
    AccountRecord,
    ApiKey,
    IdentityJwt,
    PersonalAccessToken,
    Tokens,
    TokensOnly,
    WorkspaceRecord,
    parse_auth_json,
)
from broker.backend_api import BackendApi
from broker.clock import Clock
from broker.identity_jwt import IdentityJwtError, JwksCache, JwksError, JwtProblem, verify
from broker.keys import InvalidKeyError, SigningKey
from broker.model import Origin, Secret, TaskKind
from broker.outbound import FailureKind, OutboundFailure
from broker.own_bearers import OwnBearer, OwnLogin


@dataclass(frozen=True, slots=True, kw_only=True)
class BareKey:
    """A key that is registered at the backend already and comes without a login."""

    private_key: Secret
    agent_runtime_id: str
    account_id: str
    user_id: str | None
    fedramp: bool


ImportSource = Secret | IdentityJwt | BareKey
"""The text of an `auth.json`, a JWT, or a bare key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """What an import holds, whatever it came as."""

    origin: Origin
    account_id: str | None
    user_id: str | None
    email: str | None = None
    plan_type: str | None = None
    fedramp: bool = False
    key: SigningKey | None = None
    agent_runtime_id: str | None = None
    task_id: str | None = None
    task_kind: TaskKind = TaskKind.BACKGROUND
    bearer: OwnBearer | OwnLogin | None = None
    expire_time: float | None = None


class ImportReader:
    """Reads imports; keeps the keys of each backend's issuer."""

    def __init__(self, apis: Mapping[str, BackendApi], clock: Clock) -> None:
        self._clock = clock
        self._jwks = {name: JwksCache(api.fetch_jwks, clock) for name, api in apis.items()}

    async def close(self) -> None:
        """Give up fetching keys."""
        for cache in self._jwks.values():
            await cache.aclose()

    async def read(self, source: ImportSource, backend: str, *, issuer: str | None = None) -> Imported:
        """
        Return what a source holds, verified as far as its kind can be.

        Args:
            source: what was given.
            backend: name of the backend whose issuer signs JWTs.
            issuer: name of the source of type `oauth` that refreshes the tokens of a login; None: only its access token
                is taken, and the refresh token is left to whoever else has the file.

        Raises:
            ImportInvalidError: it cannot be used; the violations say why.
            ReauthRequiredError: it has expired.
            BrokerError: the keys to verify a JWT with could not be had.
        """
        match source:
            case Secret():
                return await self._read_auth_json(source, backend, issuer)
            case IdentityJwt():
                return await self._read_jwt(source.unverified_jwt, backend)
            case BareKey() as bare:
                return Imported(
                    origin=Origin.BARE_KEY,
                    account_id=bare.account_id,
                    user_id=bare.user_id,
                    fedramp=bare.fedramp,
                    key=_parse_key("bare_key.private_key", bare.private_key),
                    agent_runtime_id=bare.agent_runtime_id,
                )

    async def _read_auth_json(self, text: Secret, backend: str, issuer: str | None) -> Imported:
        parsed = parse_auth_json(text.reveal().encode())
        match parsed:
            case WorkspaceRecord():
                return Imported(
                    origin=Origin.IMPORTED_RECORD,
                    account_id=parsed.workspace_id,
                    user_id=parsed.chatgpt_user_id,
                    fedramp=parsed.tokens is not None and parsed.tokens.claims.unverified_fedramp,
                    key=_parse_key("agent_identity.agent_private_key", parsed.agent_private_key),
                    agent_runtime_id=parsed.agent_runtime_id,
                    task_id=parsed.background_task_id,
                    bearer=_login(parsed.tokens, issuer),
                )
            case AccountRecord():
                return Imported(
                    origin=Origin.IMPORTED_RECORD,
                    account_id=parsed.account_id,
                    user_id=parsed.chatgpt_user_id,
                    email=parsed.email,
                    plan_type=parsed.plan_type,
                    fedramp=parsed.fedramp,
                    key=_parse_key("agent_identity.agent_private_key", parsed.agent_private_key),
                    agent_runtime_id=parsed.agent_runtime_id,
                    task_id=parsed.task_id,
                    bearer=_login(parsed.tokens, issuer),
                )
            case IdentityJwt():
                return await self._read_jwt(parsed.unverified_jwt, backend)
            case TokensOnly():
                claims = parsed.tokens.claims
                return Imported(
                    origin=Origin.BEARER_ONLY,
                    account_id=parsed.tokens.account_id,
                    user_id=claims.unverified_user_id,
                    email=claims.unverified_email,
                    plan_type=claims.unverified_plan_type,
                    fedramp=claims.unverified_fedramp,
                    bearer=_login(parsed.tokens, issuer),
                )
            case ApiKey():
                return Imported(origin=Origin.BEARER_ONLY, account_id=None, user_id=None, bearer=OwnBearer(parsed.key))
            case PersonalAccessToken():
                return Imported(
                    origin=Origin.BEARER_ONLY, account_id=None, user_id=None, bearer=OwnBearer(parsed.token)
                )

    async def _read_jwt(self, unverified_jwt: Secret, backend: str) -> Imported:
        try:
            keys = await self._jwks[backend].keys_for(unverified_jwt.reveal())
            claims = verify(unverified_jwt.reveal(), keys, self._clock.now())
        except IdentityJwtError as error:
            if error.problem is JwtProblem.EXPIRED:
                raise errors.ReauthRequiredError from error
            raise errors.ImportInvalidError(violations={"identity_jwt": str(error)}) from error
        except JwksError as error:
            raise errors.BackendProtocolError(note=str(error)) from error
        except OutboundFailure as failure:
            if failure.kind is FailureKind.REFUSED:
                raise errors.BackendProtocolError(note=failure.note) from failure
            raise failure.as_error() from failure
        return Imported(
            origin=Origin.IMPORTED_JWT,
            account_id=claims.account_id,
            user_id=claims.chatgpt_user_id,
            email=claims.email,
            plan_type=claims.plan_type,
            fedramp=claims.fedramp,
            key=_parse_key("identity_jwt.agent_private_key", claims.agent_private_key),
            agent_runtime_id=claims.agent_runtime_id,
            expire_time=claims.expire_time,
        )


def _parse_key(place: str, text: Secret) -> SigningKey:
    try:
        return SigningKey.from_pkcs8_base64(text.reveal())
    except InvalidKeyError as error:
        raise errors.ImportInvalidError(violations={place: f"cannot be used: {error}"}) from None


def _login(tokens: Tokens | None, issuer: str | None) -> OwnBearer | OwnLogin | None:
    if tokens is None:
        return None
    if issuer is None or tokens.refresh_token is None:
        return OwnBearer(tokens.access_token, tokens.unverified_expire_time)
    return OwnLogin(
        source=issuer,
        refresh_token=tokens.refresh_token,
        access_token=tokens.access_token,
        id_token=tokens.id_token,
        expire_time=tokens.unverified_expire_time,
    )


def agreed(name: str, stated: str | None, found: str | None, *, unknown_matches: bool = True) -> str | None:
    """
    Return the one of two statements that is there.

    Raises:
        AccountMismatchError: they contradict each other.
    """
    if stated is not None and stated != found and not (found is None and unknown_matches):
        raise errors.AccountMismatchError(metadata={"field": name})
    return stated or found
