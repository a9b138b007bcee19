"""Refresh tokens: claimed before they are sent, sent once, probed once, and never held by two."""

import asyncio
import json
from dataclasses import replace
from typing import Any

import pytest

from broker.errors import GenerationChangedError
from broker.model import IdentityState, RefreshState, StoredBearer
from broker.store import KeepBearer
from broker.store.sql import SqlStore
from tests.support.stores import NOW, add_identity, add_login, agent_identity, bearer_identity, login

LEASE = 30.0


async def _claim(store: SqlStore, stored: StoredBearer, now: float = NOW) -> StoredBearer:
    claim = await store.claim_refresh(stored.identity_id, pair=stored.pair, now=now, lease_seconds=LEASE)
    assert claim.is_ours
    return claim.bearer


async def _refused(store: SqlStore, stored: StoredBearer, now: float = NOW) -> StoredBearer:
    before = await store.change_sequence()
    claim = await store.claim_refresh(stored.identity_id, pair=stored.pair, now=now, lease_seconds=LEASE)
    assert not claim.is_ours
    assert before == await store.change_sequence()
    return claim.bearer


async def _complete(store: SqlStore, held: StoredBearer, name: str = "2") -> StoredBearer | None:
    return await store.complete_refresh(
        held,
        sealed=f"sealed access token {name}".encode(),
        sealed_refresh_token=f"sealed refresh token {name}".encode(),
        expire_time=NOW + 1000,
        obtain_time=NOW + 1,
    )


async def _identity(store: SqlStore, stored: StoredBearer) -> Any:
    return await store.identity(stored.identity_id)


async def test_a_claim_marks_the_token_as_sent(store: SqlStore) -> None:
    """Whoever comes next reads it in the row, and sends nothing."""
    stored = await add_login(store)
    held = await _claim(store, stored)
    assert held == replace(
        stored,
        version=stored.version + 1,
        refresh_state=RefreshState.IN_FLIGHT,
        fencing_token=stored.fencing_token + 1,
        lease_expire_time=NOW + LEASE,
    )
    assert held == await store.bearer(stored.identity_id)
    assert held == await _refused(store, stored, NOW + LEASE - 0.001)


async def test_the_answer_is_the_next_pair(store: SqlStore) -> None:
    """It replaces both tokens, and repeating it after a hidden success changes nothing."""
    stored = await add_login(store)
    held = await _claim(store, stored)
    done = await _complete(store, held)
    assert done == replace(
        held,
        version=held.version + 1,
        pair=stored.pair + 1,
        sealed=b"sealed access token 2",
        sealed_refresh_token=b"sealed refresh token 2",
        expire_time=NOW + 1000,
        obtain_time=NOW + 1,
        refresh_state=RefreshState.IDLE,
        lease_expire_time=None,
    )
    assert done == await store.bearer(stored.identity_id)
    assert done == await _complete(store, held)
    assert await _complete(store, held, "other") is None
    assert done == await store.bearer(stored.identity_id)


async def test_who_knows_an_older_pair_gets_the_newer_one(store: SqlStore) -> None:
    """A claim names the pair that was seen: what another brought meanwhile is not sent but returned."""
    stored = await add_login(store)
    done = await _complete(store, await _claim(store, stored))
    assert done == await _refused(store, stored, NOW + 1000)
    await _claim(store, done)


async def test_a_lost_answer_is_probed_exactly_once(store: SqlStore) -> None:
    """First sending, one more after its lease, and then nothing is ever sent again."""
    stored = await add_login(store)
    lost = await _claim(store, stored)
    probe = await _claim(store, stored, NOW + LEASE)
    assert (probe.refresh_state, probe.lease_expire_time) == (RefreshState.PROBING, NOW + 2 * LEASE)
    assert probe.fencing_token > lost.fencing_token
    assert probe == await _refused(store, stored, NOW + 2 * LEASE - 0.001)
    claim = await store.claim_refresh(stored.identity_id, pair=1, now=NOW + 2 * LEASE, lease_seconds=LEASE)
    assert not claim.is_ours
    dead = claim.bearer
    assert (dead.refresh_state, dead.reason, dead.lease_expire_time) == (RefreshState.DEAD, "refresh_answer_lost", None)
    assert dead.sealed == stored.sealed
    identity = await _identity(store, stored)
    assert claim.identity == identity
    assert (identity.state, identity.state_reason) == (IdentityState.REAUTH_REQUIRED, "REAUTH_REQUIRED")
    assert dead == await _refused(store, stored, NOW + 100 * LEASE)


async def test_the_answer_of_who_was_overtaken_is_not_kept(store: SqlStore) -> None:
    """Neither an answer, nor a refusal, nor a release of the first sending touches the probe or what it brought."""
    stored = await add_login(store)
    lost = await _claim(store, stored)
    probe = await _claim(store, stored, NOW + LEASE)
    for row in (probe, None):
        row = row or await _complete(store, probe)  # noqa: PLW2901 - the probe, and then what it brought
        assert await _complete(store, lost, "late") is None
        assert row == await store.release_refresh(lost, retry_time=None)
        assert row == (await store.refuse_refresh(lost, reason="refresh_token_reused", now=NOW))[0]
        assert row == await store.bearer(stored.identity_id)
    assert (await _identity(store, stored)).state is IdentityState.ACTIVE


async def test_a_token_that_was_not_processed_is_sent_again_in_time(store: SqlStore) -> None:
    """After a release it is as if it had not been sent, from the retry time on."""
    stored = await add_login(store)
    held = await _claim(store, stored)
    free = await store.release_refresh(held, retry_time=NOW + 5)
    assert (free.refresh_state, free.lease_expire_time, free.retry_time) == (RefreshState.IDLE, None, NOW + 5)
    assert free == await _refused(store, stored, NOW + 4.999)
    again = await _claim(store, stored, NOW + 5)
    assert (again.refresh_state, again.retry_time) == (RefreshState.IN_FLIGHT, None)
    assert again == await store.release_refresh(held, retry_time=None)


async def test_a_probe_that_was_not_processed_is_a_probe_again(store: SqlStore) -> None:
    """That the probe did not get through says nothing of the first sending."""
    stored = await add_login(store)
    await _claim(store, stored)
    probe = await _claim(store, stored, NOW + LEASE)
    free = await store.release_refresh(probe, retry_time=NOW + LEASE + 5)
    assert (free.refresh_state, free.lease_expire_time) == (RefreshState.IN_FLIGHT, None)
    assert free == await _refused(store, stored, NOW + LEASE + 4)
    again = await _claim(store, stored, NOW + LEASE + 5)
    assert again.refresh_state is RefreshState.PROBING
    assert again.fencing_token > probe.fencing_token


async def test_a_refusal_ends_it(store: SqlStore) -> None:
    """The bearer is dead, what is left of the access token stays, and an identity that lives on it needs a login."""
    stored = await add_login(store)
    held = await _claim(store, stored)
    dead, identity = await store.refuse_refresh(held, reason="refresh_token_reused", now=NOW + 2)
    assert dead == replace(
        held,
        version=held.version + 1,
        refresh_state=RefreshState.DEAD,
        lease_expire_time=None,
        reason="refresh_token_reused",
    )
    assert (identity.state, identity.version, identity.update_time) == (IdentityState.REAUTH_REQUIRED, 2, NOW + 2)
    assert (dead, identity) == (await store.bearer(stored.identity_id), await _identity(store, stored))
    assert (dead, identity) == await store.refuse_refresh(held, reason="refresh_token_reused", now=NOW + 3)
    assert dead == await _refused(store, stored, NOW + 1000)
    assert (await store.statistics()).bearers_dead == 1


async def test_an_agent_outlives_its_login(store: SqlStore) -> None:
    """Assertions need no bearer: only what lives on it alone is ended by its end."""
    identity = agent_identity()
    held = await _claim(store, await add_login(store, identity))
    _, stood = await store.refuse_refresh(held, reason="invalid_grant", now=NOW)
    assert identity == stood == await store.identity(identity.id)


async def test_what_is_disabled_stays_so(store: SqlStore) -> None:
    """The end of a login never changes what an operator decided; its answer is kept all the same."""
    stored = await add_login(store)
    held = await _claim(store, stored)
    disabled = await store.write_identity(
        replace(await _identity(store, stored), state=IdentityState.DISABLED, former_state=IdentityState.ACTIVE)
    )
    done = await _complete(store, held)
    assert done.pair == stored.pair + 1
    _, stood = await store.refuse_refresh(await _claim(store, done), reason="invalid_grant", now=NOW)
    assert disabled == stood == await _identity(store, stored)


@pytest.mark.parametrize("state", [RefreshState.IDLE, RefreshState.IN_FLIGHT, RefreshState.PROBING, RefreshState.DEAD])
async def test_a_new_login_wins_over_a_refresh(store: SqlStore, state: RefreshState) -> None:
    """Whatever was under way, the new pair stands and no answer of the old one is kept."""
    stored = held = await add_login(store)
    if state is not RefreshState.IDLE:
        held = await _claim(store, stored)
    if state is RefreshState.PROBING:
        held = await _claim(store, stored, NOW + LEASE)
    if state is RefreshState.DEAD:
        await store.refuse_refresh(held, reason="invalid_grant", now=NOW)
    identity = await _identity(store, stored)
    fresh = login(identity, pair=2, sealed=b"new access", sealed_refresh_token=b"new refresh")
    await store.write_identity(replace(identity, state=IdentityState.ACTIVE, state_reason=""), bearer=fresh)
    stands = await store.bearer(identity.id)
    assert (stands.pair, stands.sealed, stands.refresh_state, stands.reason) == (2, b"new access", "IDLE", "")
    assert stands.version > held.version
    assert await _complete(store, held, "late") is None
    assert stands == await store.release_refresh(held, retry_time=None)
    assert stands == (await store.refuse_refresh(held, reason="late", now=NOW))[0]
    assert stands == await store.bearer(identity.id)
    assert stands == await _refused(store, stored)
    await _claim(store, stands)


async def test_a_login_in_the_place_of_none_cannot_be_mistaken_for_an_earlier_one(store: SqlStore) -> None:
    """Pairs begin at 1 again, versions and fencing tokens do not: the claim of a login long gone completes nothing."""
    stored = await add_login(store)
    held = await _claim(store, stored)
    identity = await store.write_identity(await _identity(store, stored), bearer=None)
    assert await store.bearer(identity.id) is None
    assert await _complete(store, held) is None
    assert await store.release_refresh(held, retry_time=None) is None
    assert await store.refuse_refresh(held, reason="late", now=NOW) is None
    with pytest.raises(GenerationChangedError):
        await store.claim_refresh(identity.id, pair=1, now=NOW, lease_seconds=LEASE)
    identity = await store.write_identity(identity, bearer=login(identity))
    stands = await store.bearer(identity.id)
    assert stands.pair == held.pair
    assert stands.version > held.version
    again = await _claim(store, stands)
    assert again.fencing_token > held.fencing_token
    assert await _complete(store, held, "late") is None
    assert again == await store.bearer(identity.id)


@pytest.mark.parametrize("pair", [1, 3])
async def test_a_login_for_another_place_is_refused(store: SqlStore, pair: int) -> None:
    """A refresh that came first has moved the pair; nothing of the write stays."""
    stored = await add_login(store)
    identity = await _identity(store, stored)
    with pytest.raises(GenerationChangedError):
        await store.write_identity(replace(identity, email="new@example.com"), bearer=login(identity, pair=pair))
    assert stored == await store.bearer(identity.id)
    assert identity == await _identity(store, stored)


async def test_a_write_that_says_nothing_of_the_bearer_keeps_it(store: SqlStore) -> None:
    """The default leaves the bearer, and a claim of it, alone."""
    held = await _claim(store, await add_login(store))
    identity = await store.write_identity(await _identity(store, held))
    await store.write_identity(identity, bearer=KeepBearer.KEEP)
    assert held == await store.bearer(held.identity_id)


async def test_a_token_that_is_never_refreshed_is_never_claimed(store: SqlStore) -> None:
    """A static token has nothing that could be sent."""
    identity = await add_identity(store, bearer_identity(), bearer=b"sealed")
    await _refused(store, await store.bearer(identity.id))


async def test_the_issuers_answer_may_hold_no_refresh_token(store: SqlStore) -> None:
    """Then there is nothing to send any more."""
    held = await _claim(store, await add_login(store))
    done = await store.complete_refresh(held, sealed=b"s", sealed_refresh_token=None, expire_time=None, obtain_time=NOW)
    assert done.sealed_refresh_token is None
    await _refused(store, done)


async def test_of_many_processes_one_sends(store: SqlStore, database: Any) -> None:
    """Three brokers and this one see the same tokens due at once; each token is claimed once."""
    logins = [await add_login(store, bearer_identity(f"i{n}")) for n in range(20)]
    workers = [await database.worker("refresh", *(stored.identity_id for stored in logins)) for _ in range(3)]
    for worker in workers:
        worker.go()
    said = await asyncio.gather(*(worker.rest() for worker in workers))
    won: dict[str, int] = {}
    for line in [line for lines in said for line in lines]:
        identity_id, is_ours = json.loads(line)
        won[identity_id] = won.get(identity_id, 0) + is_ours
    assert {stored.identity_id: 1 for stored in logins} == won
    for stored in logins:
        assert (await store.bearer(stored.identity_id)).pair == stored.pair + 1


@pytest.mark.parametrize(
    ("crash", "state", "pair"),
    [
        ("claimed", RefreshState.IN_FLIGHT, 1),
        ("completed", RefreshState.IDLE, 2),
        ("released", RefreshState.IDLE, 1),
        ("refused", RefreshState.DEAD, 1),
        ("probed", RefreshState.PROBING, 1),
    ],
)
async def test_a_crash_leaves_what_was_written_last(
    store: SqlStore, database: Any, crash: str, state: RefreshState, pair: int
) -> None:
    """After kill -9 at each step the row says what was sent, and the next holder goes on from there."""
    stored = await add_login(store)
    worker = await database.worker("refresh_and_die", stored.identity_id, crash)
    worker.go()
    assert await worker.line() == ""
    assert await worker.process.wait() == -9
    row = await store.bearer(stored.identity_id)
    assert (row.refresh_state, row.pair) == (state, pair)
    claim = await store.claim_refresh(row.identity_id, pair=row.pair, now=NOW + 10 * LEASE, lease_seconds=LEASE)
    went_on = {
        RefreshState.IN_FLIGHT: (True, RefreshState.PROBING),
        RefreshState.IDLE: (True, RefreshState.IN_FLIGHT),
        RefreshState.DEAD: (False, RefreshState.DEAD),
        RefreshState.PROBING: (False, RefreshState.DEAD),
    }
    assert went_on[state] == (claim.is_ours, claim.bearer.refresh_state)
