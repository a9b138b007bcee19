"""The reauthenticator: what a refresh token was spent for is kept, whatever happens between spending and writing."""

import asyncio
import base64
import json
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from broker import errors
from broker.bearer.oauth import Issuer
from broker.bearer.refresh_grant import Refreshed, RefreshFailure, Verdict
from broker.bearer.turns import Turns
from broker.clock import SystemClock
from broker.enrollment import CreateOrder
from broker.model import Identity, IdentityName, Mode, Secret, StoredLadder
from broker.own_bearers import OwnBearer, OwnLogin
from tests.support.stores import NOW
from tests.support.workshop import Workshop, workshop

LOGIN = OwnLogin(source="chatgpt", refresh_token=Secret("refresh-1"))
FRESH = Refreshed(
    access_token=Secret("access-1"),
    refresh_token=Secret("refresh-2"),
    id_token=None,
    expire_time=NOW + 3600,
    send_time=NOW,
)
Answer = Refreshed | RefreshFailure | Callable[[], Awaitable[Refreshed]]


class ScriptedGrant:
    """Stands for a `RefreshGrant`: each exchange takes the next answer."""

    timeout = 10.0

    def __init__(self) -> None:
        self.answers: deque[Answer] = deque()
        self.sent: list[str] = []

    async def refresh(self, refresh_token: Secret) -> Refreshed:
        """Take the next answer."""
        self.sent.append(refresh_token.reveal())
        answer = self.answers.popleft()
        if isinstance(answer, RefreshFailure):
            raise answer
        return answer if isinstance(answer, Refreshed) else await answer()


@pytest.fixture
def grant() -> ScriptedGrant:
    """The issuer's side."""
    return ScriptedGrant()


@pytest.fixture
async def shop(tmp_path: Path, grant: ScriptedGrant) -> AsyncIterator[Workshop]:
    """A workshop that knows one issuer of logins, and an identity of mode BEARER."""
    issuer = Issuer("chatgpt", grant, Turns(1000, SystemClock()), lease_seconds=45.0, patience=0.0)  # type: ignore[arg-type]
    async with workshop(tmp_path, issuers={"chatgpt": issuer}) as opened:
        order = CreateOrder(
            request_id="create",
            name=IdentityName("person"),
            backend="default",
            mode=Mode.BEARER,
            account_id="account-1",
            bearer=OwnBearer(Secret("old")),
        )
        await opened.enroller.create(order, wait_until=opened.clock.monotonic() + 5)
        yield opened


async def row(shop: Workshop) -> Identity:
    """Return the identity as it stands in the store."""
    found = await shop.store.store.identity_named(IdentityName("person"))
    assert found is not None
    return found


async def reauthenticated(shop: Workshop, request_id: str = "r1", credential: Any = LOGIN) -> Identity:
    """Give the identity a new login."""
    wait_until = shop.clock.monotonic() + 5
    return await shop.reauthenticator.reauthenticate(await row(shop), request_id, credential, wait_until=wait_until)


def token_in_use(shop: Workshop) -> str:
    """Return what is handed out for the identity."""
    view = shop.snapshots.named(IdentityName("person"))
    assert view is not None
    assert view.bearers is not None
    bearer = view.bearers.current()
    assert bearer is not None
    return bearer.token.reveal()


def says(**claims: str) -> Secret:
    """Return a token that says these things of itself."""
    payload = json.dumps({"https://api.openai.com/auth": claims}).encode()
    middle = base64.urlsafe_b64encode(payload).rstrip(b"=").decode()
    return Secret(f"e30.{middle}.c2ln")


async def test_a_store_that_is_away_when_the_issuer_has_answered(shop: Workshop, grant: ScriptedGrant) -> None:
    """The new pair is written as soon as the store is back; the refresh token was sent once."""
    grant.answers.append(FRESH)
    shop.store.fail("write_identity", times=3)
    await reauthenticated(shop)
    assert token_in_use(shop) == "access-1"
    assert grant.sent == ["refresh-1"]


async def test_an_identity_that_changed_while_the_issuer_was_asked(shop: Workshop, grant: ScriptedGrant) -> None:
    """The login is written over what stands by then: an operator's change in between is kept, and so is the login."""

    async def meanwhile() -> Refreshed:
        current = await row(shop)
        await shop.enroller.update(current, bearer_source=None, assertions_enabled=False, expire_time=None)
        # And once more between reading and writing, as another process would.
        shop.store.fail("write_identity", errors.GenerationChangedError())
        return FRESH

    grant.answers.append(meanwhile)
    after = await reauthenticated(shop)
    assert not after.assertions_enabled
    assert token_in_use(shop) == "access-1"


async def test_an_identity_that_was_deleted_while_the_issuer_was_asked(shop: Workshop, grant: ScriptedGrant) -> None:
    """It stays deleted."""

    async def meanwhile() -> Refreshed:
        await shop.enroller.delete(await row(shop))
        return FRESH

    grant.answers.append(meanwhile)
    with pytest.raises(errors.IdentityNotFoundError):
        await reauthenticated(shop)


async def test_a_caller_who_came_back_waits_for_what_it_began(shop: Workshop, grant: ScriptedGrant) -> None:
    """While the issuer takes its time the call is given up and repeated: the refresh token is not sent again."""
    answered = asyncio.Event()

    async def slow() -> Refreshed:
        await answered.wait()
        return FRESH

    grant.answers.append(slow)
    first = asyncio.create_task(reauthenticated(shop))
    while not grant.sent:
        await asyncio.sleep(0)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    second = asyncio.create_task(reauthenticated(shop))
    for _ in range(20):
        await asyncio.sleep(0)
    answered.set()
    await second
    assert grant.sent == ["refresh-1"]
    assert token_in_use(shop) == "access-1"


async def test_an_issuer_that_is_down_may_be_asked_again(shop: Workshop, grant: ScriptedGrant) -> None:
    """ISSUER_DOWN changes nothing and is not what the request is remembered by."""
    grant.answers += [RefreshFailure(Verdict.NOT_PROCESSED, "issuer_down", note="503"), FRESH]
    before = await row(shop)
    with pytest.raises(errors.IssuerDownError):
        await reauthenticated(shop)
    assert (await row(shop), token_in_use(shop)) == (before, "old")
    await reauthenticated(shop)
    assert token_in_use(shop) == "access-1"


async def test_tokens_of_others_that_the_issuer_answers_with(shop: Workshop, grant: ScriptedGrant) -> None:
    """What comes back is checked too: of another account, nothing of it is kept."""
    grant.answers.append(replace(FRESH, id_token=says(chatgpt_account_id="account-2")))
    before = await row(shop)
    with pytest.raises(errors.AccountMismatchError):
        await reauthenticated(shop)
    assert (await row(shop), token_in_use(shop)) == (before, "old")


async def test_an_access_token_without_an_end_is_refreshed(shop: Workshop, grant: ScriptedGrant) -> None:
    """Nobody says how long it lives, and there is a refresh token: the issuer is asked; one that lives is taken as it is."""
    grant.answers.append(FRESH)
    await reauthenticated(shop, credential=replace(LOGIN, access_token=Secret("opaque")))
    assert grant.sent == ["refresh-1"]
    given = replace(LOGIN, access_token=Secret("opaque"), expire_time=NOW + 600)
    await reauthenticated(shop, "r2", given)
    assert grant.sent == ["refresh-1"]
    assert token_in_use(shop) == "opaque"


async def test_what_was_tried_with_the_old_login_is_forgotten(shop: Workshop) -> None:
    """The ladder begins at its foot, here and in the store."""
    identity = await row(shop)
    ladder = await shop.store.write_ladder(StoredLadder(identity_id=identity.id, document="{}"))
    shop.snapshots.publish_ladder(ladder)
    await reauthenticated(shop, credential=OwnBearer(Secret("new")))
    kept = await shop.store.ladder(identity.id)
    view = shop.snapshots.view(identity.id)
    assert kept is not None
    assert view is not None
    assert kept.document == ""
    assert view.ladder == kept


async def test_stopping_in_the_midst_ends(shop: Workshop, grant: ScriptedGrant) -> None:
    """A broker that stops while an issuer does not answer is not kept from it."""

    async def never() -> Refreshed:
        await asyncio.Event().wait()
        raise AssertionError

    grant.answers.append(never)
    asking = asyncio.create_task(reauthenticated(shop))
    while not grant.sent:
        await asyncio.sleep(0)
    async with asyncio.timeout(5):
        await shop.reauthenticator.close(patience=0.01)
    await asyncio.gather(asking, return_exceptions=True)
    assert token_in_use(shop) == "old"
