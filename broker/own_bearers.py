"""
Bearers that come with an identity: a token that never changes, or a login that is refreshed; how they get into its row.

A login that comes without a live access token is refreshed before anything is written: what does not work is refused
while its giver is still there, and changes nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from broker import errors
from broker.auth_json import UnverifiedTokenClaims, unverified_claims, unverified_expire_time
from broker.bearer import EXPIRY_MARGIN_SECONDS
from broker.bearer.oauth import Issuer
from broker.bearer.refresh_grant import RefreshFailure, Verdict
from broker.bearer.stored import seal_pair
from broker.clock import Clock
from broker.keyring import Keyring
from broker.model import IdentityId, Secret, StoredBearer

_NOBODY: Final = UnverifiedTokenClaims()


@dataclass(frozen=True, slots=True)
class OwnBearer:
    """A token that comes with the identity and is kept sealed."""

    token: Secret
    expire_time: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnLogin:
    """The tokens of a login that comes with the identity, is kept sealed, and is refreshed at a configured issuer."""

    source: str
    """Name of the configured source of type `oauth`."""
    refresh_token: Secret
    access_token: Secret | None = None
    """None, or one that has expired: it is refreshed at once."""
    id_token: Secret | None = None
    expire_time: float | None = None
    """When `access_token` ends; None: as it says itself."""
    obtain_time: float | None = None


@dataclass(frozen=True, slots=True)
class FileLogin:
    """The login that stands in the `auth.json` which the identity is imported from."""

    source: str
    """Name of the configured source of type `oauth` that refreshes it from now on."""


@dataclass(frozen=True, slots=True)
class Owners:
    """The account and the user that tokens say they are for; None where they do not say. Unverified."""

    account_id: str | None
    user_id: str | None


class OwnBearers:
    """Takes in the bearers that come with identities."""

    def __init__(self, keyring: Keyring, issuers: Mapping[str, Issuer], clock: Clock) -> None:
        self._keyring = keyring
        self._issuers = issuers
        self._clock = clock

    def owners(self, bearer: OwnBearer | OwnLogin) -> Owners:
        """
        Return whose the tokens say they are.

        Raises:
            AccountMismatchError: two tokens of one login say different things.
        """
        tokens = (bearer.token,) if isinstance(bearer, OwnBearer) else (bearer.id_token, bearer.access_token)
        claims = [_NOBODY if token is None else unverified_claims(token) for token in tokens]
        return Owners(
            _one("account_id", [said.unverified_account_id for said in claims]),
            _one("user_id", [said.unverified_user_id for said in claims]),
        )

    def has_issuer(self, name: str) -> bool:
        """Say whether a source of type `oauth` has this name."""
        return name in self._issuers

    def issuer(self, name: str) -> Issuer:
        """
        Return a configured source of type `oauth`.

        Raises:
            FieldInvalidError: there is none of that name.
        """
        issuer = self._issuers.get(name)
        if issuer is None:
            known = ", ".join(self._issuers) or "none"
            raise errors.FieldInvalidError(
                violations={"oauth_bearer.source": f"is no source of type oauth; configured: {known}"}
            )
        return issuer

    async def made_live(self, bearer: OwnBearer | OwnLogin) -> OwnBearer | OwnLogin:
        """
        Return the bearer with a token that lives now; a login whose token does not is refreshed once, at its issuer.

        Sending a refresh token spends it: what comes back must be kept, and `bearer` not be used again.

        Raises:
            FieldInvalidError: the login names an issuer that is not configured.
            ReauthRequiredError: it has expired, or the issuer refused it.
            IssuerDownError: the issuer did not answer; whether the refresh token is spent is then not known.
        """
        if isinstance(bearer, OwnBearer):
            if not self._lives(bearer.token, bearer.expire_time):
                raise errors.ReauthRequiredError(note="the token that was given has expired")
            return bearer
        issuer = self.issuer(bearer.source)
        if bearer.access_token is not None and self._surely_lives(bearer.access_token, bearer.expire_time):
            return bearer
        try:
            answer = await issuer.grant.refresh(bearer.refresh_token)
        except RefreshFailure as failure:
            if failure.verdict is Verdict.REFUSED:
                raise errors.ReauthRequiredError(
                    metadata={"issuer_error": failure.word}, note=failure.note
                ) from failure
            raise errors.IssuerDownError(retry_after=failure.retry_after or 1.0, note=failure.note) from failure
        if answer.access_token is None:
            raise errors.IssuerDownError(retry_after=1.0, note="the issuer answered without an access token")
        return replace(
            bearer,
            access_token=answer.access_token,
            refresh_token=answer.refresh_token or bearer.refresh_token,
            id_token=answer.id_token or bearer.id_token,
            expire_time=answer.expire_time,
            obtain_time=answer.send_time,
        )

    def sealed(self, bearer: OwnBearer | OwnLogin, identity_id: IdentityId, *, pair: int) -> StoredBearer:
        """
        Seal a bearer into the row that keeps it as an identity's `pair`-th.

        An access token of a login of which nobody says when it ends is left out: it is refreshed on first use.
        """
        if isinstance(bearer, OwnBearer):
            tokens = seal_pair(self._keyring, identity_id, pair, access_token=bearer.token, refresh_token=None)
            return StoredBearer(
                identity_id=identity_id, pair=pair, sealed=tokens.access_token, expire_time=bearer.expire_time
            )
        access_token = bearer.access_token
        if access_token is not None and bearer.expire_time is None and unverified_expire_time(access_token) is None:
            access_token = None
        tokens = seal_pair(
            self._keyring, identity_id, pair, access_token=access_token, refresh_token=bearer.refresh_token
        )
        return StoredBearer(
            identity_id=identity_id,
            pair=pair,
            sealed=tokens.access_token,
            sealed_refresh_token=tokens.refresh_token,
            source=bearer.source,
            expire_time=bearer.expire_time,
            obtain_time=bearer.obtain_time,
        )

    def _lives(self, token: Secret, expire_time: float | None) -> bool:
        """Say whether a token is good now; one of which nobody says when it ends is."""
        end = expire_time if expire_time is not None else unverified_expire_time(token)
        return end is None or self._clock.now() < end - EXPIRY_MARGIN_SECONDS

    def _surely_lives(self, token: Secret, expire_time: float | None) -> bool:
        """Say whether an access token is good now, and is said to be: it could be refreshed instead."""
        said = expire_time is not None or unverified_expire_time(token) is not None
        return said and self._lives(token, expire_time)


def _one(field: str, said: list[str | None]) -> str | None:
    """Return what those agree on that say anything."""
    values = {value for value in said if value is not None}
    if len(values) > 1:
        raise errors.AccountMismatchError(metadata={"field": field})
    return values.pop() if values else None
