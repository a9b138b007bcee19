"""Making and replacing identities with all that rests on them: the statements behind the contract in `broker.store`."""

from sqlalchemy import delete, insert, select

from broker.errors import GenerationChangedError
from broker.model import Identity, IdentityState, StoredBearer
from broker.store import CreateRequest, KeepBearer, agents, bearers, identities, rows, schema
from broker.store.transaction import WriteTransaction

_identities = schema.identities
_ladders = schema.ladders
_deleted = schema.deleted_identities


def create(tx: WriteTransaction, identity: Identity, request: CreateRequest, bearer: StoredBearer | None) -> Identity:
    """
    Insert an identity, its bearer and the memory of the request, or return what the request made before.

    Raises:
        IdentityExistsError: another, undeleted identity has the name.
        RequestIdReusedError: the request is remembered with another fingerprint.
    """
    made = identities.remembered(tx.connection, request)
    if made is not None:
        return made
    identities.refuse_taken_name(tx, identity)
    tx.execute(insert(_identities).values(**rows.identity_values(identity), change_sequence=tx.next_change()))
    if bearer is not None:
        bearers.insert_first(tx, bearer)
    identities.remember(tx, request, identity.id)
    return identity


def write(
    tx: WriteTransaction, identity: Identity, *, bearer: StoredBearer | KeepBearer | None, request: CreateRequest | None
) -> Identity:
    """
    Replace a row if nobody wrote it since, and what rests on it; see the contract.

    Raises:
        GenerationChangedError: the row has another version or a higher generation, or is gone, or the bearer has
            another pair.
        IdentityExistsError: it was given a name that another, undeleted identity has.
        RequestIdReusedError: the request is remembered with another fingerprint.
    """
    if request is not None and (made := identities.remembered(tx.connection, request)) is not None:
        return made
    identities.refuse_taken_name(tx, identity)
    epoch = select(_identities.c.version, _identities.c.generation).where(_identities.c.id == identity.id)
    stood = tx.execute(epoch).first()
    if stood is None or stood.version != identity.version or stood.generation > identity.generation:
        raise GenerationChangedError(note="the identity was written by another")
    written = identities.rewrite(tx, identity)
    if not isinstance(bearer, KeepBearer):
        bearers.exchange(tx, identity.id, bearer)
    if identity.generation > stood.generation or identity.state is IdentityState.DELETED:
        agents.forget(tx, identity.id, former_generation=stood.generation, now=identity.update_time)
    if identity.state is IdentityState.DELETED:
        _forget_all_but_the_row(tx, identity)
    if request is not None:
        identities.remember(tx, request, identity.id)
    return written


def _forget_all_but_the_row(tx: WriteTransaction, identity: Identity) -> None:
    """Remove what a deleted identity had; its bindings, which may be many, are left to `prune`."""
    bearers.exchange(tx, identity.id, None)
    tx.execute(delete(_ladders).where(_ladders.c.identity_id == identity.id))
    if tx.execute(select(_deleted).where(_deleted.c.identity_id == identity.id)).first() is None:
        tx.execute(insert(_deleted).values(identity_id=identity.id))
