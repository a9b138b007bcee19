"""
Agents on their way to being registered: the statements behind the contract in `broker.store`.

One row an identity, claimed as tasks are: a lease, and a fencing token that grows with every claim and begins where the
change counter stands, so that it never comes again. The row goes when its agent is adopted or abandoned, or when the
identity gets a new generation without it (disabled, deleted, imported anew). Tasks may be registered ahead under its
generation; whatever takes the row away other than its adoption takes them along.
"""

from dataclasses import replace

from sqlalchemy import Connection, delete, insert, select, update

from broker.errors import GenerationChangedError
from broker.model import Identity, IdentityId, IdentityState, Mode, PendingAgent
from broker.store import AgentClaim, CreateRequest, NewKey, identities, rows, schema, tasks
from broker.store.transaction import WriteTransaction

_pending = schema.pending_agents

MAY_CHANGE_KEY = frozenset(
    {IdentityState.ACTIVE, IdentityState.ROTATING, IdentityState.REJECTED, IdentityState.REAUTH_REQUIRED}
)
"""The states in which an identity may be on its way to another agent."""


def of_identity(connection: Connection, identity_id: IdentityId) -> PendingAgent | None:
    """Return the agent on its way of an identity."""
    row = connection.execute(select(_pending).where(_pending.c.identity_id == identity_id)).mappings().first()
    return None if row is None else rows.pending_agent_from(row)


def claim(
    tx: WriteTransaction,
    identity_id: IdentityId,
    *,
    generation: int,
    now: float,
    lease_seconds: float,
    new_key: NewKey | None,
    request: CreateRequest | None,
) -> AgentClaim:
    """
    Begin or take over the registration of an agent.

    Raises:
        GenerationChangedError: the identity is not as it must be for this, or no change of its key is under way.
        RequestIdReusedError: the request is remembered with another fingerprint.
    """
    identity = identities.by_id(tx.connection, identity_id)
    is_new = identity is not None and identity.state is IdentityState.REGISTERING
    if (
        identity is None
        or identity.generation != generation
        or identity.mode is not Mode.AGENT
        or not (is_new or identity.state in MAY_CHANGE_KEY)
    ):
        raise GenerationChangedError(note="the identity is gone, of another generation, or gets no agent in its state")
    if request is not None and identities.remembered(tx.connection, request) is not None:
        new_key = None  # what it asked for was begun already, and perhaps undone
    elif request is not None:
        identities.remember(tx, request, identity_id)
    pending = of_identity(tx.connection, identity_id)
    if pending is None:
        if not is_new and new_key is None:
            raise GenerationChangedError(note="no change of the key is under way")
        pending = _begin(tx, identity, None if is_new else new_key, now=now, lease_expire_time=now + lease_seconds)
    elif pending.lease_expire_time is not None and pending.lease_expire_time > now:
        return AgentClaim(pending=pending, identity=identity, is_ours=False)
    else:
        pending = _write(
            tx,
            replace(
                pending,
                fencing_token=pending.fencing_token + 1,
                lease_expire_time=now + lease_seconds,
                update_time=now,
            ),
        )
    if identity.state is IdentityState.ACTIVE:
        identity = identities.rewrite(tx, replace(identity, state=IdentityState.ROTATING, update_time=now))
    return AgentClaim(pending=pending, identity=identity, is_ours=True)


def record(tx: WriteTransaction, held: PendingAgent, *, agent_runtime_id: str, now: float) -> PendingAgent | None:
    """Keep what the backend answered; None when the claim is lost or something else was kept."""
    current = _held(tx, held)
    if current is None or current.agent_runtime_id not in (None, agent_runtime_id):
        return None
    return _write(tx, replace(current, agent_runtime_id=agent_runtime_id, update_time=now))


def adopt(tx: WriteTransaction, held: PendingAgent, *, now: float) -> Identity | None:
    """Make the pending agent the identity's; None when the claim is lost."""
    identity = identities.by_id(tx.connection, held.identity_id)
    current = _held(tx, held)
    if identity is None:
        return None
    if current is None:
        # Asked again, after an error that hid that the first time had worked?
        is_adopted = (IdentityState.ACTIVE, held.generation, held.agent_runtime_id) == (
            identity.state,
            identity.generation,
            identity.agent_runtime_id,
        )
        return identity if is_adopted and of_identity(tx.connection, identity.id) is None else None
    adopted = replace(
        identity,
        state=IdentityState.ACTIVE,
        state_reason="",
        agent_runtime_id=current.agent_runtime_id,
        generation=current.generation,
        update_time=now,
    )
    if current.sealed_private_key is not None:
        adopted = replace(adopted, sealed_private_key=current.sealed_private_key, public_key=current.public_key)
    _delete(tx, identity.id)
    written = identities.rewrite(tx, adopted)
    if current.generation > identity.generation:
        tasks.make_current(tx, identity.id, current.generation, now=now)
    return written


def release(tx: WriteTransaction, held: PendingAgent, *, now: float) -> None:
    """Free a claim for another try."""
    current = _held(tx, held)
    if current is not None:
        _write(tx, replace(current, lease_expire_time=None, update_time=now))


def abandon(tx: WriteTransaction, held: PendingAgent, *, now: float, fingerprint: bytes | None) -> Identity | None:
    """Undo a change of key, and forget who asked for it; None when the claim is lost."""
    identity = identities.by_id(tx.connection, held.identity_id)
    current = _held(tx, held)
    if identity is None:
        return None
    if current is None:
        # Asked again, after an error that hid that the first time had worked? Whatever else ends it, its adoption too,
        # brings a new generation.
        is_undone = identity.generation < held.generation and of_identity(tx.connection, identity.id) is None
        return identity if is_undone else None
    if fingerprint is not None:
        identities.forget_requests(tx, identity.id, fingerprint, since=current.create_time)
    forget(tx, identity.id, former_generation=identity.generation, now=now)
    if identity.state is not IdentityState.ROTATING:
        return identity
    return identities.rewrite(tx, replace(identity, state=IdentityState.ACTIVE, state_reason="", update_time=now))


def forget(tx: WriteTransaction, identity_id: IdentityId, *, former_generation: int, now: float) -> None:
    """
    Remove the agent on its way of an identity, and the tasks that were registered ahead for it.

    Under that generation they may not be found any more: the identity may come to it with its old agent.
    """
    generation = tx.execute(
        select(_pending.c.generation).where(_pending.c.identity_id == identity_id)
    ).scalar_one_or_none()
    if generation is None:
        return
    _delete(tx, identity_id)
    if generation > former_generation:
        tasks.forget_generation(tx, identity_id, generation, now=now)


def _begin(
    tx: WriteTransaction, identity: Identity, new_key: NewKey | None, *, now: float, lease_expire_time: float
) -> PendingAgent:
    change = tx.next_change()
    pending = PendingAgent(
        identity_id=identity.id,
        generation=identity.generation if new_key is None else identity.generation + 1,
        sealed_private_key=None if new_key is None else new_key.sealed_private_key,
        public_key=None if new_key is None else new_key.public_key,
        fencing_token=change,
        lease_expire_time=lease_expire_time,
        version=change,
        create_time=now,
        update_time=now,
    )
    tx.execute(insert(_pending).values(**rows.pending_agent_values(pending)))
    return pending


def _held(tx: WriteTransaction, held: PendingAgent) -> PendingAgent | None:
    """Return the row as it stands while the claim is still the holder's."""
    current = of_identity(tx.connection, held.identity_id)
    if current is None or current.fencing_token != held.fencing_token or current.lease_expire_time is None:
        return None
    return current


def _write(tx: WriteTransaction, pending: PendingAgent) -> PendingAgent:
    """Write a row that was read in this transaction, with its version bumped."""
    tx.next_change()
    written = replace(pending, version=pending.version + 1)
    place = _pending.c.identity_id == pending.identity_id
    tx.execute(update(_pending).where(place).values(**rows.pending_agent_values(written)))
    return written


def _delete(tx: WriteTransaction, identity_id: IdentityId) -> None:
    tx.execute(delete(_pending).where(_pending.c.identity_id == identity_id))
