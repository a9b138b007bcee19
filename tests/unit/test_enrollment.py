"""The enroller: intent before announcement, waits between tries, what failures in between leave, what deleting erases."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from broker import errors
from broker.bearer import Bearer
from broker.bearer.static import StaticSource
from broker.enrollment import CreateOrder, NamedSource
from broker.errors import BrokerError
from broker.keyring import SealBrokenError
from broker.model import Identity, IdentityName, IdentityState, Mode, Secret
from broker.outbound import FailureKind
from broker.own_bearers import OwnBearer
from broker.snapshots import open_private_key, private_key_context
from tests.support.workshop import Workshop, failure, workshop


@pytest.fixture
async def shop(tmp_path: Path) -> AsyncIterator[Workshop]:
    """A workshop on a new database."""
    async with workshop(tmp_path) as opened:
        yield opened


async def row(shop: Workshop, name: str = "agent") -> Identity:
    """Return an identity as it stands in the store."""
    found = await shop.store.store.identity_named(IdentityName(name))
    assert found is not None
    return found


async def refusal(shop: Workshop) -> BrokerError:
    """Create an identity that cannot be had and return why."""
    with pytest.raises(BrokerError) as raised:
        await shop.create()
    return raised.value


async def retry_delay(shop: Workshop) -> float | None:
    """Return in how many seconds the agent is tried again; None when nothing waits."""
    trouble = shop.agents.trouble(await row(shop))
    return None if trouble is None else trouble.until - shop.clock.monotonic()


async def resumed(shop: Workshop) -> None:
    """Let whatever registrations may be tried now come to their end."""
    shop.agents.resume()
    await asyncio.gather(*shop.agents._jobs.values())


async def test_the_key_is_in_the_store_before_it_is_announced(shop: Workshop) -> None:
    """When the backend hears of a key, the store holds it already: sealed, whole, in an identity that is REGISTERING."""
    seen: list[Identity] = []

    async def look() -> str:
        seen.append(await row(shop))
        return "runtime-1"

    shop.api.agents.append(look)
    identity = await shop.create()
    (before,) = seen
    assert (before.state, before.agent_runtime_id) == (IdentityState.REGISTERING, None)
    assert open_private_key(shop.keyring, before).ssh_public_key == before.public_key == identity.public_key
    assert shop.api.asked[0][1]["public_key"] == before.public_key
    assert identity.state is IdentityState.ACTIVE


async def test_every_try_announces_the_same_key(shop: Workshop) -> None:
    """However often it has to be tried, an identity has one key."""
    shop.api.agents += [failure(FailureKind.DOWN), failure(FailureKind.DOWN), "runtime-1"]
    assert isinstance(await refusal(shop), errors.BackendDownError)
    for _ in range(2):
        shop.clock.pass_(60)
        await resumed(shop)
    keys = {request["public_key"] for _, request in shop.api.asked}
    assert len(shop.api.asked) == 3
    assert keys == {(await row(shop)).public_key}
    assert (await row(shop)).state is IdentityState.ACTIVE


@pytest.mark.parametrize(
    ("kind", "seconds"),
    [
        (FailureKind.DOWN, [1, 2, 4, 8, 16, 32, 60, 60]),
        (FailureKind.REFUSED, [300, 300]),
    ],
)
async def test_waits_between_tries(shop: Workshop, kind: FailureKind, seconds: list[int]) -> None:
    """Transient failures double the wait up to a minute, a refusal waits five; before its time nobody is asked."""
    shop.api.agents.append(failure(kind))
    await refusal(shop)
    for number, longest in enumerate(seconds, start=1):
        assert shop.api.count("agent") == number
        delay = await retry_delay(shop)
        assert delay is not None
        assert longest / 2 <= delay <= longest
        shop.clock.pass_(delay - 0.01)
        await resumed(shop)
        assert shop.api.count("agent") == number
        shop.clock.pass_(0.02)
        await resumed(shop)


async def test_retry_after_is_honoured(shop: Workshop) -> None:
    """A wait that the backend names is kept, and shown to operators."""
    shop.api.agents.append(failure(FailureKind.THROTTLED, retry_after=500.0))
    assert (await refusal(shop)).retry_after == 500.0
    assert await retry_delay(shop) == 500.0


async def test_a_defect_is_not_repeated_at_once(shop: Workshop) -> None:
    """An exception nobody foresaw ends the try with INTERNAL, and the next waits like that after any other failure."""
    shop.api.agents.append(ZeroDivisionError())
    assert isinstance(await refusal(shop), errors.InternalError)
    await resumed(shop)
    assert shop.api.count("agent") == 1


async def test_the_store_away_before_the_intent(shop: Workshop) -> None:
    """Where the intent cannot be stored, nothing is announced."""
    shop.api.agents.append("runtime-1")
    shop.store.fail("create_identity")
    assert isinstance(await refusal(shop), errors.StoreDownError)
    assert shop.api.asked == []
    assert (await shop.create()).state is IdentityState.ACTIVE


async def test_a_lost_answer_of_the_store_makes_no_second_identity(shop: Workshop) -> None:
    """When the intent was stored although the store said it was not, the same request finds it again."""
    shop.api.agents.append("runtime-1")
    shop.store.fail("create_identity", after=True)
    assert isinstance(await refusal(shop), errors.StoreDownError)
    stored = await row(shop)
    created = await shop.create()
    assert (created.id, created.public_key) == (stored.id, stored.public_key)
    assert shop.api.count("agent") == 1


async def test_callers_of_one_request_share_its_registration(shop: Workshop) -> None:
    """The same request from many callers at once asks the backend once, and gives all the same identity."""
    shop.api.agents.append("runtime-1")
    created = await asyncio.gather(*(shop.create() for _ in range(5)))
    assert len({one.id for one in created}) == 1
    assert shop.api.count("agent") == 1


async def test_closing_in_the_midst_leaves_what_is_resumed(shop: Workshop) -> None:
    """A registration that the broker's end cuts off stays REGISTERING, and the next start goes on with it."""
    asked = asyncio.Event()

    async def hang() -> str:
        asked.set()
        await asyncio.Event().wait()
        raise AssertionError

    shop.api.agents += [hang, "runtime-1"]
    waiting = asyncio.create_task(shop.create())
    await asked.wait()
    await shop.agents.close()
    await asyncio.gather(waiting, return_exceptions=True)
    assert (await row(shop)).state is IdentityState.REGISTERING
    await resumed(shop)
    assert (await row(shop)).state is IdentityState.ACTIVE


async def test_each_generation_seals_the_key_anew(shop: Workshop) -> None:
    """Disabling binds the same key to the next generation: the sealed key of the last does not open as the new one."""
    view = await shop.agent()
    before = view.identity
    disabled = await shop.enroller.disable(before)
    assert disabled.generation == before.generation + 1
    assert open_private_key(shop.keyring, disabled).ssh_public_key == before.public_key
    with pytest.raises(SealBrokenError):
        shop.keyring.open(before.sealed_private_key or b"", context=private_key_context(before.id, disabled.generation))
    with pytest.raises(errors.RowCorruptError):
        open_private_key(shop.keyring, replace(disabled, sealed_private_key=before.sealed_private_key))
    assert await shop.enroller.disable(disabled) == disabled


async def test_an_identity_whose_key_is_lost_can_still_be_stopped(shop: Workshop) -> None:
    """A sealed key that does not open keeps nobody from disabling and deleting the identity."""
    view = await shop.agent()
    broken = await shop.store.store.write_identity(replace(view.identity, sealed_private_key=b"damaged"))
    disabled = await shop.enroller.disable(broken)
    assert disabled.state is IdentityState.DISABLED
    deleted = await shop.enroller.delete(disabled)
    assert (deleted.state, deleted.sealed_private_key) == (IdentityState.DELETED, None)


async def test_delete_erases_every_secret(shop: Workshop) -> None:
    """Of a deleted identity the store keeps neither key nor bearer, and the snapshots open nothing of it."""
    view = await shop.agent()
    assert await shop.store.store.bearer(view.identity.id) is not None
    deleted = await shop.enroller.delete(view.identity)
    assert deleted.generation == view.identity.generation + 1
    assert deleted.sealed_private_key is None
    assert await shop.store.store.bearer(deleted.id) is None
    seen = shop.snapshots.view(deleted.id)
    assert seen is not None
    assert (seen.key, seen.bearers) == (None, None)
    assert await shop.enroller.delete(deleted) == deleted


async def test_a_source_that_was_taken_away_is_not_used(shop: Workshop) -> None:
    """An identity whose named source an operator removes has no bearer from that moment, in memory too."""
    shop.sources["login"] = StaticSource(Bearer(Secret("token of a source"), None), shop.clock)
    shop.api.agents.append("runtime-1")
    named = await shop.create(bearer=NamedSource("login"))
    seen = shop.snapshots.view(named.id)
    assert seen is not None
    assert seen.bearers is shop.sources["login"]
    bare = await shop.enroller.update(named, bearer_source=None, assertions_enabled=True, expire_time=None)
    seen = shop.snapshots.view(bare.id)
    assert seen is not None
    assert seen.bearers is None


async def test_two_operators_at_once(shop: Workshop) -> None:
    """Of two changes made from one reading, the second is told that it came too late and changes nothing."""
    view = await shop.agent()
    await shop.enroller.update(view.identity, bearer_source=None, assertions_enabled=False, expire_time=None)
    with pytest.raises(errors.GenerationChangedError):
        await shop.enroller.disable(view.identity)
    assert (await row(shop)).state is IdentityState.ACTIVE


async def test_enabling_goes_on_where_disabling_stopped(shop: Workshop) -> None:
    """An identity that was disabled before its agent was registered goes on registering when it is enabled."""
    shop.api.agents += [failure(FailureKind.DOWN), "runtime-1"]
    await refusal(shop)
    disabled = await shop.enroller.disable(await row(shop))
    await resumed(shop)
    assert shop.api.count("agent") == 1
    enabled = await shop.enroller.enable(disabled)
    assert enabled.state is IdentityState.REGISTERING
    await resumed(shop)
    assert (await row(shop)).state is IdentityState.ACTIVE


async def test_the_memory_of_a_request_ends_after_a_day(shop: Workshop) -> None:
    """A request id means the same thing for 24 hours; then, its identity deleted, it may be used anew."""
    view = await shop.agent()
    await shop.enroller.delete(view.identity)
    shop.clock.pass_(24 * 3600 - 1)
    assert (await shop.create()).id == view.identity.id
    shop.clock.pass_(2)
    await shop.store.prune(shop.clock.now(), idle_before=0.0)
    assert (await shop.create()).id != view.identity.id


async def test_a_bearer_that_is_gone_is_said(shop: Workshop) -> None:
    """An agent cannot be registered with a token that has expired: a person must give another, and nothing is announced."""
    order = CreateOrder(
        request_id="r",
        name=IdentityName("agent"),
        backend="default",
        mode=Mode.AGENT,
        bearer=OwnBearer(Secret("token"), expire_time=shop.clock.now() - 1),
    )
    with pytest.raises(errors.ReauthRequiredError):
        await shop.enroller.create(order, wait_until=shop.clock.monotonic() + 5)
    assert shop.api.asked == []
