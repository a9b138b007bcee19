"""Identities, bearers and remembered requests: what the contract says of them."""

from dataclasses import replace

import pytest

from broker.errors import (
    GenerationChangedError,
    IdentityExistsError,
    InternalError,
    RequestIdReusedError,
    RowCorruptError,
)
from broker.model import IdentityId, IdentityName, IdentityState, Mode, Origin, RefreshState, StoredBearer
from broker.store.sql import SqlStore
from tests.support.stores import NOW, add_identity, add_login, agent_identity, bearer_identity, create_request


async def test_a_created_identity_is_read_back_whole(store: SqlStore) -> None:
    """Every field of an identity survives the way to the database and back."""
    full = agent_identity(
        origin=Origin.IMPORTED_RECORD,
        state=IdentityState.REAUTH_REQUIRED,
        state_reason="REAUTH_REQUIRED",
        email="a@example.com",
        plan_type="team",
        fedramp=True,
        assertions_enabled=False,
        bearer_source="login",
        sealed_private_key=bytes(range(256)),
        generation=3,
        create_time=NOW + 0.123456789,
        expire_time=NOW + 1e6,
    )
    created = await store.create_identity(full, create_request())
    assert full == created
    assert full == await store.identity(full.id)
    assert full == await store.identity_named(full.name)


async def test_what_is_not_there_is_none(store: SqlStore) -> None:
    """Asking for what does not exist is an answer, not an error."""
    assert await store.identity(IdentityId("0" * 32)) is None
    assert await store.identity_named(IdentityName("nobody")) is None
    assert await store.bearer(IdentityId("0" * 32)) is None
    assert await store.remembered_identity(create_request()) is None


async def test_the_bearer_is_created_with_its_identity(store: SqlStore) -> None:
    """A sealed bearer that came with a creation is stored in the same transaction."""
    identity = bearer_identity()
    bearer = StoredBearer(identity_id=identity.id, sealed=b"sealed bearer", version=1, expire_time=NOW + 60)
    await store.create_identity(identity, create_request(), bearer=bearer)
    assert bearer == await store.bearer(identity.id)


async def test_a_name_is_taken_while_its_holder_is_undeleted(store: SqlStore) -> None:
    """A second identity of the name is refused, and nothing of the attempt stays."""
    await add_identity(store, agent_identity("one"))
    request = create_request()
    late = bearer_identity("one")
    with pytest.raises(IdentityExistsError):
        await store.create_identity(late, request, bearer=StoredBearer(identity_id=late.id, sealed=b"s", version=1))
    assert await store.identity(late.id) is None
    assert await store.bearer(late.id) is None
    assert await store.remembered_identity(request) is None


async def test_a_name_is_free_again_after_deletion(store: SqlStore) -> None:
    """The deleted identity keeps its row and its id; the name belongs to the new one."""
    old = await add_identity(store, agent_identity("one"))
    deleted = await store.write_identity(replace(old, state=IdentityState.DELETED, sealed_private_key=None))
    new = await add_identity(store, agent_identity("one"))
    assert new == await store.identity_named(IdentityName("one"))
    assert deleted == await store.identity(old.id)


async def test_an_identity_cannot_come_back_under_a_taken_name(store: SqlStore) -> None:
    """A write that gives an identity another one's name is refused like a creation."""
    await add_identity(store, agent_identity("one"))
    other = await add_identity(store, agent_identity("two"))
    with pytest.raises(IdentityExistsError):
        await store.write_identity(replace(other, name=IdentityName("one")))
    assert other == await store.identity(other.id)


async def test_a_repeated_request_returns_what_it_made(store: SqlStore) -> None:
    """The same request with the same content creates once and answers with the row as it is now."""
    request = create_request()
    made = await store.create_identity(agent_identity("one", state=IdentityState.REGISTERING), request)
    moved_on = await store.write_identity(replace(made, state=IdentityState.ACTIVE))
    again = await store.create_identity(agent_identity("one"), request)
    assert moved_on == again
    assert moved_on == await store.remembered_identity(request)
    assert (await store.identities()).rows == (moved_on,)


async def test_a_request_id_with_other_content_is_refused(store: SqlStore) -> None:
    """The fingerprint decides whether a repeated request is a repetition."""
    request = create_request("r")
    await store.create_identity(agent_identity("one"), request)
    other = create_request("r", fingerprint=b"other content")
    with pytest.raises(RequestIdReusedError):
        await store.create_identity(agent_identity("two"), other)
    with pytest.raises(RequestIdReusedError):
        await store.remembered_identity(other)
    assert await store.identity_named(IdentityName("two")) is None


async def test_a_request_is_forgotten_when_its_time_is_over(store: SqlStore) -> None:
    """From `remember_until` on the id may be used for something else, pruned or not."""
    request = create_request("r", remember_until=NOW + 10)
    await store.create_identity(agent_identity("one"), request)
    later = create_request("r", fingerprint=b"other", now=NOW + 10, remember_until=NOW + 20)
    assert await store.remembered_identity(later) is None
    two = await store.create_identity(agent_identity("two"), later)
    assert two == await store.remembered_identity(later)


async def test_a_write_bumps_the_version(store: SqlStore) -> None:
    """What a write returns is what is stored, one version further."""
    identity = await add_identity(store)
    written = await store.write_identity(replace(identity, state=IdentityState.DISABLED, generation=2))
    assert written == replace(identity, state=IdentityState.DISABLED, generation=2, version=identity.version + 1)
    assert written == await store.identity(identity.id)


async def test_of_two_writes_of_one_version_the_second_is_refused(store: SqlStore) -> None:
    """Compare-and-set: who read before somebody else wrote has to read again."""
    identity = await add_identity(store)
    first = await store.write_identity(replace(identity, state=IdentityState.DISABLED))
    with pytest.raises(GenerationChangedError):
        await store.write_identity(replace(identity, state=IdentityState.REJECTED))
    assert first == await store.identity(identity.id)


async def test_a_write_of_what_is_not_there_is_refused(store: SqlStore) -> None:
    """An identity is made by create_identity only."""
    with pytest.raises(GenerationChangedError):
        await store.write_identity(agent_identity())


async def test_the_generation_never_shrinks(store: SqlStore) -> None:
    """A lower generation would make revoked credentials current again."""
    identity = await add_identity(store, agent_identity(generation=2))
    with pytest.raises(GenerationChangedError):
        await store.write_identity(replace(identity, generation=1))


async def test_deletion_takes_the_sealed_bearer_along(store: SqlStore) -> None:
    """A deleted identity leaves no credential behind."""
    identity = await add_identity(store, bearer_identity(), bearer=b"sealed")
    await store.write_identity(replace(identity, state=IdentityState.DISABLED))
    assert await store.bearer(identity.id) is not None
    await store.write_identity(replace(identity, version=identity.version + 1, state=IdentityState.DELETED))
    assert await store.bearer(identity.id) is None


async def test_a_write_is_remembered_by_its_request(store: SqlStore) -> None:
    """Repeated after a cut connection it writes nothing and answers with the row as it is now."""
    identity = await add_identity(store)
    request = create_request("reauthenticate")
    first = await store.write_identity(replace(identity, email="one@example.com"), request=request)
    assert first == await store.remembered_identity(request)
    moved_on = await store.write_identity(replace(first, plan_type="team"))
    at = await store.change_sequence()
    again = await store.write_identity(replace(identity, email="one@example.com"), request=request)
    assert moved_on == again == await store.identity(identity.id)
    assert at == await store.change_sequence()
    with pytest.raises(RequestIdReusedError):
        await store.write_identity(moved_on, request=replace(request, fingerprint=b"other"))


async def test_a_write_that_is_refused_is_not_remembered(store: SqlStore) -> None:
    """Who read too early asks again under the same request."""
    identity = await add_identity(store)
    await store.write_identity(identity)
    request = create_request()
    with pytest.raises(GenerationChangedError):
        await store.write_identity(identity, request=request)
    assert await store.remembered_identity(request) is None


async def test_a_disabled_identity_knows_what_it_was(store: SqlStore) -> None:
    """The state to come back to is kept while it is disabled, and by nothing else."""
    identity = await add_identity(store)
    disabled = replace(identity, state=IdentityState.DISABLED, former_state=IdentityState.REJECTED)
    disabled = await store.write_identity(disabled)
    assert disabled == await store.identity(identity.id)
    with pytest.raises(InternalError):
        await store.write_identity(replace(disabled, state=IdentityState.ACTIVE))


_SENT = {"refresh_state": RefreshState.IN_FLIGHT, "lease_expire_time": NOW}


@pytest.mark.parametrize(
    "broken",
    [
        {"sealed": None, "sealed_refresh_token": None},
        {"source": None},
        {"pair": 0},
        {"lease_expire_time": NOW},
        {"refresh_state": RefreshState.PROBING},
        {"refresh_state": RefreshState.DEAD},
        {"reason": "reused"},
        {"sealed_refresh_token": None, **_SENT},
    ],
    ids=", ".join,
)
async def test_a_bearer_that_cannot_be_is_not_stored(store: SqlStore, broken: dict[str, object]) -> None:
    """The database itself refuses what the model promises never to happen."""
    with pytest.raises(InternalError):
        await add_login(store, **broken)


@pytest.mark.parametrize(
    ("column", "value"),
    [("pair", 0), ("refresh_state", "LOST"), ("lease_expire_time", 1.0), ("refresh_state", "IN_FLIGHT")],
)
async def test_a_damaged_bearer_is_not_guessed_at(
    store: SqlStore, database: object, column: str, value: object
) -> None:
    """Neither read nor claimed: a refresh token is not sent on the word of a damaged row."""
    stored = await add_login(store, sealed_refresh_token=None)
    database.execute(f"UPDATE bearers SET {column} = ?", value)  # noqa: S608 names of this test
    with pytest.raises(RowCorruptError):
        await store.bearer(stored.identity_id)
    with pytest.raises(RowCorruptError):
        await store.claim_refresh(stored.identity_id, pair=1, now=NOW, lease_seconds=1)


@pytest.mark.parametrize(
    "broken",
    [
        agent_identity(sealed_private_key=None),
        agent_identity(public_key=None),
        agent_identity(agent_runtime_id=None),
        bearer_identity(sealed_private_key=b"key"),
        bearer_identity(agent_runtime_id="runtime"),
        agent_identity(generation=0),
        agent_identity(""),
    ],
    ids=[
        "no sealed key",
        "no public key",
        "active, no runtime",
        "bearer with key",
        "bearer with runtime",
        "gen",
        "name",
    ],
)
async def test_an_identity_that_cannot_be_is_not_stored(store: SqlStore, broken: object) -> None:
    """The database itself refuses what the model promises never to happen; that is a fault of ours and loud."""
    request = create_request()
    with pytest.raises(InternalError):
        await store.create_identity(broken, request)
    assert await store.remembered_identity(request) is None


async def test_the_list_is_by_name_and_comes_in_pages(store: SqlStore) -> None:
    """Pages continue where the last one ended, each row once, deleted ones only on request."""
    names = ["b", "a", "d", "c", "B"]
    made = {name: await add_identity(store, agent_identity(name)) for name in names}
    gone = await store.write_identity(replace(made["a"], state=IdentityState.DELETED))
    again = await add_identity(store, agent_identity("a"))
    assert await _names(store, limit=2) == [made["B"].id, again.id, made["b"].id, made["c"].id, made["d"].id]
    with_deleted = await _names(store, limit=1, include_deleted=True)
    assert sorted([*with_deleted[1:3]]) == sorted([gone.id, again.id])
    assert len(with_deleted) == 6


async def test_the_last_page_says_so(store: SqlStore) -> None:
    """A list that fits exactly has no further page."""
    await add_identity(store, agent_identity("a"))
    await add_identity(store, agent_identity("b"))
    assert (await store.identities(limit=2)).next_after is None
    assert (await store.identities(limit=1)).next_after is not None


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("state", "MAYBE"),
        ("mode", "NONE"),
        ("generation", 0),
        ("fedramp", 7),
        ("account_id", b"\xff\xfe"),
        ("update_time", float("inf")),
    ],
)
async def test_a_damaged_row_fails_alone(store: SqlStore, database: object, column: str, value: object) -> None:
    """The damaged identity says so; it is named in the list, and the others are read."""
    bad = await add_identity(store, agent_identity("bad"))
    good = await add_identity(store, agent_identity("good"))
    cast = "CAST(? AS TEXT)" if isinstance(value, bytes) else "?"
    database.execute(f"UPDATE identities SET {column} = {cast} WHERE id = ?", value, bad.id)  # noqa: S608 names of this test
    with pytest.raises(RowCorruptError):
        await store.identity(bad.id)
    page = await store.identities()
    assert (page.rows, page.corrupt) == ((good,), ("bad",))
    assert good == await store.identity(good.id)


async def test_a_damaged_bearer_fails_alone(store: SqlStore, database: object) -> None:
    """A bearer that cannot be read does not hide its identity."""
    identity = await add_identity(store, bearer_identity(), bearer=b"sealed")
    database.execute("UPDATE bearers SET version = 0")
    with pytest.raises(RowCorruptError):
        await store.bearer(identity.id)
    assert identity == await store.identity(identity.id)
    assert identity.mode is Mode.BEARER


async def _names(store: SqlStore, *, limit: int, include_deleted: bool = False) -> list[str]:
    found, after = [], ""
    while True:
        page = await store.identities(after=after, limit=limit, include_deleted=include_deleted)
        assert len(page.rows) <= limit
        found += [identity.id for identity in page.rows]
        if page.next_after is None:
            return found
        after = page.next_after
