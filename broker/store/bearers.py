"""
Bearers of identities' own, and the claims of their refreshes: the statements behind the contract in `broker.store`.

How a refresh token goes, if it is sent at all (see `broker.model.RefreshState`):

    IDLE                       --claim-->     IN_FLIGHT, leased     sent for the first time
    IN_FLIGHT, lease over      --claim-->     PROBING, leased       sent once more, to learn what became of the first
    PROBING, lease over        --claim-->     DEAD                  nobody will ever know
    IN_FLIGHT, PROBING leased  --complete-->  IDLE, next pair       same fencing token only, as all below
    IN_FLIGHT leased           --release-->   IDLE                  it was surely not processed
    PROBING leased             --release-->   IN_FLIGHT, no lease   nor was the probe, which says nothing of the first
    IN_FLIGHT, PROBING leased  --refuse-->    DEAD

Every claim takes a higher fencing token. A bearer that replaces another continues its version and token, and one where
there was none begins them where the change counter stands: who held a claim of the old one cannot complete the new.
"""

from collections.abc import Collection
from dataclasses import replace

from sqlalchemy import Connection, delete, insert, select, update

from broker.errors import GenerationChangedError, InternalError, ReauthRequiredError
from broker.model import Identity, IdentityId, IdentityState, Mode, RefreshState, StoredBearer
from broker.store import Damaged, RefreshClaim, identities, rows, schema
from broker.store.transaction import WriteTransaction

_bearers = schema.bearers

ANSWER_LOST = "refresh_answer_lost"
"""The reason of a refresh token that was sent, and probed, without an answer."""


def of_identity(connection: Connection, identity_id: IdentityId) -> StoredBearer | None:
    """Return the bearer kept for an identity."""
    row = connection.execute(select(_bearers).where(_bearers.c.identity_id == identity_id)).mappings().first()
    return None if row is None else rows.bearer_from(row)


def of_identities(
    connection: Connection, identity_ids: Collection[IdentityId]
) -> dict[IdentityId, StoredBearer | Damaged]:
    """Return the bearers kept for identities, by their ids."""
    found = connection.execute(select(_bearers).where(_bearers.c.identity_id.in_(identity_ids))).mappings()
    return {row["identity_id"]: rows.or_damaged(rows.bearer_from, row) for row in found}


def insert_first(tx: WriteTransaction, bearer: StoredBearer) -> None:
    """Insert the bearer of an identity that is made in this transaction."""
    tx.execute(insert(_bearers).values(**rows.bearer_values(bearer), change_sequence=tx.next_change()))


def exchange(tx: WriteTransaction, identity_id: IdentityId, bearer: StoredBearer | None) -> None:
    """
    Put a bearer in the place of the one that stands, or none.

    Raises:
        GenerationChangedError: it was not made for the place after the one that stands.
    """
    place = _bearers.c.identity_id == identity_id
    columns = (_bearers.c.pair, _bearers.c.version, _bearers.c.fencing_token)
    standing = tx.execute(select(*columns).where(place)).first()
    if bearer is None:
        tx.execute(delete(_bearers).where(place))
        return
    if bearer.pair != (1 if standing is None else standing.pair + 1):
        raise GenerationChangedError(note="the bearer was written by another")
    change = tx.next_change()
    version, fencing_token = (
        (change, change) if standing is None else (standing.version + 1, standing.fencing_token + 1)
    )
    values = rows.bearer_values(replace(bearer, version=version, fencing_token=fencing_token))
    statement = insert(_bearers) if standing is None else update(_bearers).where(place)
    tx.execute(statement.values(**values, change_sequence=change))


def claim(
    tx: WriteTransaction, identity_id: IdentityId, *, pair: int, now: float, lease_seconds: float
) -> RefreshClaim:
    """
    Claim the sending of a refresh token that nobody is sending.

    Raises:
        GenerationChangedError: the identity has no bearer of its own.
    """
    current = of_identity(tx.connection, identity_id)
    if current is None:
        raise GenerationChangedError(note="the identity has no bearer of its own")
    if current.pair != pair or not _may_be_sent(current, now):
        return RefreshClaim(bearer=current, is_ours=False)
    if current.refresh_state is RefreshState.PROBING:
        dead, identity = _end(tx, current, ANSWER_LOST, now=now)
        return RefreshClaim(bearer=dead, is_ours=False, identity=identity)
    first = current.refresh_state is RefreshState.IDLE
    claimed = replace(
        current,
        refresh_state=RefreshState.IN_FLIGHT if first else RefreshState.PROBING,
        fencing_token=current.fencing_token + 1,
        lease_expire_time=now + lease_seconds,
        retry_time=None,
    )
    return RefreshClaim(bearer=_write(tx, claimed), is_ours=True)


def complete(
    tx: WriteTransaction,
    held: StoredBearer,
    *,
    sealed: bytes,
    sealed_refresh_token: bytes | None,
    expire_time: float | None,
    obtain_time: float,
) -> StoredBearer | None:
    """Keep the next pair; None when the claim is lost."""
    current = of_identity(tx.connection, held.identity_id)
    if current is None:
        return None
    if _holds(current, held):
        return _write(
            tx,
            replace(
                current,
                pair=current.pair + 1,
                sealed=sealed,
                sealed_refresh_token=sealed_refresh_token,
                expire_time=expire_time,
                obtain_time=obtain_time,
                refresh_state=RefreshState.IDLE,
                lease_expire_time=None,
                retry_time=None,
            ),
        )
    answer = (held.fencing_token, held.pair + 1, sealed, sealed_refresh_token)
    if answer == (current.fencing_token, current.pair, current.sealed, current.sealed_refresh_token):
        return current  # asked again, after an error that hid that the first time had worked
    return None


def release(tx: WriteTransaction, held: StoredBearer, *, retry_time: float | None) -> StoredBearer | None:
    """Give back the claim of a sending that was surely not processed."""
    current = of_identity(tx.connection, held.identity_id)
    if current is None or not _holds(current, held):
        return current
    was_probe = current.refresh_state is RefreshState.PROBING
    free = RefreshState.IN_FLIGHT if was_probe else RefreshState.IDLE
    return _write(tx, replace(current, refresh_state=free, lease_expire_time=None, retry_time=retry_time))


def refuse(
    tx: WriteTransaction, held: StoredBearer, *, reason: str, now: float
) -> tuple[StoredBearer, Identity] | None:
    """Note that the issuer refused the refresh token for good."""
    current = of_identity(tx.connection, held.identity_id)
    if current is None:
        return None
    if _holds(current, held):
        return _end(tx, current, reason, now=now)
    identity = identities.by_id(tx.connection, held.identity_id)
    return None if identity is None else (current, identity)


def _may_be_sent(bearer: StoredBearer, now: float) -> bool:
    return (
        bearer.sealed_refresh_token is not None
        and bearer.refresh_state is not RefreshState.DEAD
        and (bearer.lease_expire_time is None or bearer.lease_expire_time <= now)
        and bearer.pause(now) == 0
    )


def _holds(current: StoredBearer, held: StoredBearer) -> bool:
    """Say whether a claim is still its holder's; no two claims of an identity ever had one token, whatever the pair."""
    return current.fencing_token == held.fencing_token and current.lease_expire_time is not None


def _end(tx: WriteTransaction, bearer: StoredBearer, reason: str, *, now: float) -> tuple[StoredBearer, Identity]:
    """Note that a refresh token is dead; an identity that lives on it alone needs a new login then."""
    identity = identities.by_id(tx.connection, bearer.identity_id)
    if identity is None:
        raise InternalError(note="a bearer without its identity")
    if identity.mode is Mode.BEARER and identity.state is IdentityState.ACTIVE:
        identity = identities.rewrite(
            tx,
            replace(
                identity,
                state=IdentityState.REAUTH_REQUIRED,
                state_reason=ReauthRequiredError.reason,
                update_time=now,
            ),
        )
    dead = replace(bearer, refresh_state=RefreshState.DEAD, reason=reason, lease_expire_time=None, retry_time=None)
    return _write(tx, dead), identity


def _write(tx: WriteTransaction, bearer: StoredBearer) -> StoredBearer:
    """Write a bearer that was read in this transaction, with its version bumped."""
    written = replace(bearer, version=bearer.version + 1)
    place = _bearers.c.identity_id == bearer.identity_id
    tx.execute(update(_bearers).where(place).values(**rows.bearer_values(written), change_sequence=tx.next_change()))
    return written
