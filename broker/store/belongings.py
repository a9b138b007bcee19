"""
Identities with what belongs to them, many at a time: the statements behind `whole_identities` in `broker.store`.

However many identities a page has, it costs one statement a kind of row.
"""

from collections.abc import Sequence

from sqlalchemy import Connection

from broker.model import Identity, IdentityId
from broker.store import Page, WholeIdentity, bearers, identities, ladders, tasks


def page(connection: Connection, *, after: str, limit: int) -> Page[WholeIdentity]:
    """List undeleted identities by name."""
    listed = identities.page(connection, after=after, limit=limit, include_deleted=False)
    return Page(rows=_whole(connection, listed.rows), next_after=listed.next_after, corrupt=listed.corrupt)


def of_identity(connection: Connection, identity_id: IdentityId) -> WholeIdentity | None:
    """Return one identity in whatever state."""
    identity = identities.by_id(connection, identity_id)
    return None if identity is None else _whole(connection, [identity])[0]


def _whole(connection: Connection, found: Sequence[Identity]) -> tuple[WholeIdentity, ...]:
    ids = [identity.id for identity in found]
    stored = bearers.of_identities(connection, ids)
    climbed = ladders.of_identities(connection, ids)
    background = tasks.background_of(connection, ids)
    return tuple(
        WholeIdentity(
            identity=identity,
            bearer=stored.get(identity.id),
            ladder=climbed.get(identity.id),
            background=background.get(identity.id),
        )
        for identity in found
    )
