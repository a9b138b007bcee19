"""Identities, and the requests that made or changed them: the statements behind the contract in `broker.store`."""

from dataclasses import replace

from sqlalchemy import Connection, delete, insert, select, tuple_, update
from sqlalchemy.sql.elements import ColumnElement

from broker.errors import IdentityExistsError, RequestIdReusedError, RowCorruptError
from broker.model import Identity, IdentityId, IdentityName, IdentityState
from broker.store import CreateRequest, Page, rows, schema
from broker.store.transaction import WriteTransaction

_identities = schema.identities
_requests = schema.create_requests

_PLACE_SEPARATOR = "\n"
"""Stands between name and id in a place of the list; no name contains it."""


def by_id(connection: Connection, identity_id: IdentityId) -> Identity | None:
    """Return an identity in whatever state."""
    return _first(connection, _identities.c.id == identity_id)


def by_name(connection: Connection, name: IdentityName) -> Identity | None:
    """Return the undeleted identity of that name."""
    return _first(connection, (_identities.c.name == name) & schema.UNDELETED)


def page(connection: Connection, *, after: str, limit: int, include_deleted: bool) -> Page[Identity]:
    """List by (name, id): a name may stand several times, once undeleted and once for each deleted holder."""
    found = select(_identities).order_by(_identities.c.name, _identities.c.id).limit(limit + 1)
    if not include_deleted:
        found = found.where(schema.UNDELETED)
    if after:
        name, _, identity_id = after.partition(_PLACE_SEPARATOR)
        found = found.where(tuple_(_identities.c.name, _identities.c.id) > tuple_(name, identity_id))
    listed = connection.execute(found).mappings().all()
    readable, corrupt = [], []
    for row in listed[:limit]:
        try:
            readable.append(rows.identity_from(row))
        except RowCorruptError:
            corrupt.append(rows.readable(row["name"]))
    more = len(listed) > limit
    last = listed[limit - 1] if more else None
    return Page(
        rows=tuple(readable),
        next_after=f"{last['name']}{_PLACE_SEPARATOR}{last['id']}" if last is not None else None,
        corrupt=tuple(corrupt),
    )


def remembered(connection: Connection, request: CreateRequest) -> Identity | None:
    """
    Return what the request made when it is remembered.

    Raises:
        RequestIdReusedError: it is remembered with another fingerprint.
    """
    row = connection.execute(select(_requests).where(_requests.c.request_id == request.request_id)).mappings().first()
    if row is None or row["purge_time"] <= request.now:
        return None
    if row["fingerprint"] != request.fingerprint:
        raise RequestIdReusedError(violations={"request_id": "was used before, for something else"})
    return by_id(connection, row["identity_id"])


def remember(tx: WriteTransaction, request: CreateRequest, identity_id: IdentityId) -> None:
    """Note what a request made or changed; it is not remembered yet."""
    tx.execute(delete(_requests).where(_requests.c.request_id == request.request_id))  # one whose time is over
    tx.execute(
        insert(_requests).values(
            request_id=request.request_id,
            fingerprint=request.fingerprint,
            identity_id=identity_id,
            create_time=request.now,
            purge_time=request.remember_until,
        )
    )


def forget_requests(tx: WriteTransaction, identity_id: IdentityId, fingerprint: bytes, *, since: float) -> None:
    """Forget the requests of one content that an identity was asked for since a time."""
    tx.execute(
        delete(_requests).where(
            _requests.c.identity_id == identity_id,
            _requests.c.fingerprint == fingerprint,
            _requests.c.create_time >= since,
        )
    )


def rewrite(tx: WriteTransaction, identity: Identity) -> Identity:
    """Write an identity whose version was compared in this transaction, with that bumped."""
    written = replace(identity, version=identity.version + 1)
    values = rows.identity_values(written)
    tx.execute(
        update(_identities).where(_identities.c.id == identity.id).values(**values, change_sequence=tx.next_change())
    )
    return written


def _first(connection: Connection, condition: ColumnElement[bool]) -> Identity | None:
    row = connection.execute(select(_identities).where(condition)).mappings().first()
    return None if row is None else rows.identity_from(row)


def refuse_taken_name(tx: WriteTransaction, identity: Identity) -> None:
    """
    Let nobody have a name that another has.

    Raises:
        IdentityExistsError: another, undeleted identity has it.
    """
    if identity.state is IdentityState.DELETED:
        return
    holder = select(_identities.c.id).where(_identities.c.name == identity.name, schema.UNDELETED)
    if tx.execute(holder.where(_identities.c.id != identity.id)).first() is not None:
        raise IdentityExistsError
