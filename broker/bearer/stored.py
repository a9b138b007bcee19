"""The tokens of an identity's own: how they are sealed into its row, and opened again."""

from dataclasses import dataclass

from broker.auth_json import unverified_expire_time
from broker.bearer import Bearer
from broker.errors import RowCorruptError
from broker.keyring import Keyring, SealBrokenError, SealContext, SealPurpose
from broker.model import IdentityId, Secret, StoredBearer


@dataclass(frozen=True, slots=True)
class SealedPair:
    """An access token and a refresh token, each sealed to one pair of one identity; None where there is none."""

    access_token: bytes | None
    refresh_token: bytes | None


def bearer_context(identity_id: IdentityId, pair: int) -> SealContext:
    """Return the place an access token, or a token that is never refreshed, is sealed to."""
    return SealContext(purpose=SealPurpose.BEARER, identity_id=identity_id, generation=pair, record_id="bearer")


def refresh_token_context(identity_id: IdentityId, pair: int) -> SealContext:
    """Return the place a refresh token is sealed to."""
    return SealContext(
        purpose=SealPurpose.REFRESH_TOKEN, identity_id=identity_id, generation=pair, record_id="refresh_token"
    )


def seal_pair(
    keyring: Keyring, identity_id: IdentityId, pair: int, *, access_token: Secret | None, refresh_token: Secret | None
) -> SealedPair:
    """Seal the tokens of one pair."""

    def sealed(token: Secret | None, context: SealContext) -> bytes | None:
        return None if token is None else keyring.seal(token.reveal().encode(), context=context)

    return SealedPair(
        sealed(access_token, bearer_context(identity_id, pair)),
        sealed(refresh_token, refresh_token_context(identity_id, pair)),
    )


def open_bearer(keyring: Keyring, stored: StoredBearer) -> Bearer | None:
    """
    Open the access token of a row; None while there is none yet.

    Raises:
        RowCorruptError: it does not open.
    """
    if stored.sealed is None:
        return None
    token = _open(keyring, stored.sealed, bearer_context(stored.identity_id, stored.pair))
    expire_time = stored.expire_time if stored.expire_time is not None else unverified_expire_time(token)
    return Bearer(token, expire_time, stored.obtain_time)


def open_refresh_token(keyring: Keyring, stored: StoredBearer) -> Secret | None:
    """
    Open the refresh token of a row; None when it has none.

    Raises:
        RowCorruptError: it does not open.
    """
    if stored.sealed_refresh_token is None:
        return None
    return _open(keyring, stored.sealed_refresh_token, refresh_token_context(stored.identity_id, stored.pair))


def _open(keyring: Keyring, sealed: bytes, context: SealContext) -> Secret:
    try:
        return Secret(keyring.open(sealed, context=context).decode())
    except (SealBrokenError, UnicodeDecodeError) as error:
        raise RowCorruptError(note=str(error)) from error
