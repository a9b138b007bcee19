"""What was tried because credentials were rejected: the statements behind the contract in `broker.store`."""

from collections.abc import Collection
from dataclasses import replace

from sqlalchemy import Connection, insert, select, update

from broker.errors import GenerationChangedError
from broker.model import IdentityId, IdentityState, StoredLadder
from broker.store import Damaged, rows, schema
from broker.store.transaction import WriteTransaction

_ladders = schema.ladders
_identities = schema.identities


def of_identity(connection: Connection, identity_id: IdentityId) -> StoredLadder | None:
    """Return the ladder of an identity."""
    row = connection.execute(select(_ladders).where(_ladders.c.identity_id == identity_id)).mappings().first()
    return None if row is None else rows.ladder_from(row)


def of_identities(
    connection: Connection, identity_ids: Collection[IdentityId]
) -> dict[IdentityId, StoredLadder | Damaged]:
    """Return the ladders of identities, by their ids."""
    found = connection.execute(select(_ladders).where(_ladders.c.identity_id.in_(identity_ids))).mappings()
    return {row["identity_id"]: rows.or_damaged(rows.ladder_from, row) for row in found}


def write(tx: WriteTransaction, ladder: StoredLadder) -> StoredLadder:
    """
    Replace a row if nobody wrote it since.

    Raises:
        GenerationChangedError: another version stands, or the identity is gone.
    """
    state = select(_identities.c.state).where(_identities.c.id == ladder.identity_id)
    if tx.execute(state).scalar_one_or_none() in (None, IdentityState.DELETED.value):
        raise GenerationChangedError(note="the identity is gone")
    place = _ladders.c.identity_id == ladder.identity_id
    stands = tx.execute(select(_ladders.c.version).where(place)).scalar_one_or_none() or 0
    if stands != ladder.version:
        raise GenerationChangedError(note="the ladder was written by another")
    written = replace(ladder, version=ladder.version + 1)
    values = {**rows.ladder_values(written), "change_sequence": tx.next_change()}
    tx.execute(update(_ladders).where(place).values(**values) if stands else insert(_ladders).values(**values))
    return written
