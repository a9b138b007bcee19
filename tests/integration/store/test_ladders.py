"""What was tried because credentials were rejected: one document an identity, written by compare-and-set."""

from dataclasses import replace

import pytest

from broker.errors import GenerationChangedError
from broker.model import IdentityId, IdentityState, StoredLadder
from broker.store.sql import SqlStore
from tests.support.stores import add_identity


async def test_a_ladder_is_written_and_read_back(store: SqlStore) -> None:
    """The first write makes it, each names the version it read, and whoever follows the changes is told."""
    identity = await add_identity(store)
    assert await store.ladder(identity.id) is None
    at = await store.change_sequence()
    first = await store.write_ladder(StoredLadder(identity_id=identity.id, document="one"))
    assert first == StoredLadder(identity_id=identity.id, version=1, document="one") == await store.ladder(identity.id)
    second = await store.write_ladder(replace(first, document="two"))
    assert (second.version, second.document) == (2, "two")
    assert second == await store.ladder(identity.id)
    assert {identity.id: 2} == (await store.changes(at)).ladders


@pytest.mark.parametrize("version", [0, 1, 3])
async def test_of_two_writes_of_one_version_the_second_is_refused(store: SqlStore, version: int) -> None:
    """Who climbed from an older rung has to look again; the first write included."""
    identity = await add_identity(store)
    written = await store.write_ladder(StoredLadder(identity_id=identity.id, document="one"))
    written = await store.write_ladder(replace(written, document="two"))
    with pytest.raises(GenerationChangedError):
        await store.write_ladder(StoredLadder(identity_id=identity.id, version=version, document="late"))
    assert written == await store.ladder(identity.id)


async def test_a_ladder_goes_with_its_identity(store: SqlStore) -> None:
    """A deleted identity has none, and gets none."""
    identity = await add_identity(store)
    await store.write_ladder(StoredLadder(identity_id=identity.id, document="one"))
    await store.write_identity(replace(identity, state=IdentityState.DELETED))
    assert await store.ladder(identity.id) is None
    for identity_id in (identity.id, IdentityId("0" * 32)):
        with pytest.raises(GenerationChangedError):
            await store.write_ladder(StoredLadder(identity_id=identity_id, document="late"))
