"""
A login refreshed by its row: against the emulator's strict issuer over HTTP, on real SQLite files, fault by fault.

The issuer ends a login when a spent refresh token comes again, so that every wrong sending costs the test its login.
"""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import pytest
import structlog

from broker.bearer.oauth import Issuer, Logins, LoginSource
from broker.bearer.refresh_grant import RefreshGrant
from broker.bearer.stored import open_bearer, open_refresh_token
from broker.bearer.turns import Turns
from broker.clock import SystemClock
from broker.emulator import Account, Action, EmulatorServer, FaultRule, Operation
from broker.emulator.accounts import fingerprint
from broker.emulator.backend import default_account
from broker.emulator.exchanges import Exchange
from broker.emulator.settings import TokenFormat
from broker.enrollment import CreateOrder
from broker.errors import IssuerDownError, ReauthRequiredError, StoreDownError
from broker.model import Identity, IdentityName, IdentityState, Mode, RefreshState, Secret, StoredBearer
from broker.origins import parse_origin
from broker.outbound import GuardedHttp
from broker.own_bearers import OwnLogin
from broker.snapshots import Snapshots
from broker.telemetry import Metrics
from tests.support.brokers import running_emulator
from tests.support.clocks import SetClock
from tests.support.stores import NOW, FaultyStore, sqlite_store
from tests.support.workshop import Workshop, workshop

LEASE, TIMEOUT = 45.0, 0.5
SOURCE = "chatgpt"


@dataclass
class Office:
    """A workshop whose identities may have logins at an emulated issuer."""

    shop: Workshop
    emulator: EmulatorServer
    issuer: Issuer

    async def login(self, name: str = "agent", *, account: Account | None = None, **fields: object) -> Identity:
        """Make an identity of mode BEARER that lives on a login."""
        tokens = self.emulator.backend.mint_token(account=account)
        assert tokens.refresh_token is not None
        given = OwnLogin(
            source=SOURCE,
            refresh_token=Secret(tokens.refresh_token),
            access_token=Secret(tokens.access_token),
            expire_time=self.shop.clock.now() + tokens.expires_in,
        )
        order = CreateOrder(
            request_id=f"create-{name}",
            name=IdentityName(name),
            backend="default",
            mode=Mode.BEARER,
            bearer=replace(given, **fields),  # type: ignore[arg-type]
        )
        return await self.shop.enroller.create(order, wait_until=self.shop.clock.monotonic() + 5)

    def source(self, identity: Identity, snapshots: Snapshots | None = None) -> LoginSource:
        """Return the source of an identity's bearers."""
        view = (snapshots or self.shop.snapshots).view(identity.id)
        assert view is not None
        assert isinstance(view.bearers, LoginSource)
        return view.bearers

    async def row(self, identity: Identity) -> StoredBearer:
        """Return what is stored of a login."""
        row = await self.shop.store.bearer(identity.id)
        assert row is not None
        return row

    async def state(self, identity: Identity) -> IdentityState:
        """Return the state of an identity in the store."""
        stored = await self.shop.store.identity(identity.id)
        assert stored is not None
        return stored.state

    def fault(self, action: Action, **fields: object) -> FaultRule:
        """Let the issuer fail."""
        return self.emulator.backend.faults.add(
            FaultRule(action=action, operation=Operation.OAUTH, **fields)  # type: ignore[arg-type]
        )

    def exchanges(self) -> list[Exchange]:
        """Return what the issuer decided of refresh tokens."""
        return list(self.emulator.backend.exchanges.entries(grant="refresh_token"))

    def probes(self, outcome: str) -> float:
        """Return how many probes ended so."""
        return self.shop.tally("credential_broker_refresh_probes_total", outcome=outcome)

    def end_lease(self) -> None:
        """Let so much time pass that no lease and no pause is left."""
        self.shop.clock.pass_(2 * LEASE)


@contextlib.asynccontextmanager
async def opened_office(folder: Path) -> AsyncIterator[Office]:
    """Open an office with a new database and a new issuer."""
    async with running_emulator(token_format=TokenFormat.OPAQUE) as emulator:
        url = f"{emulator.url}/oauth/token"
        clock = SetClock(NOW)
        http = GuardedHttp([parse_origin(url, allow_loopback_http=True)], clock, allow_loopback_http=True)
        grant = RefreshGrant(http, clock, token_url=url, client_id="codex", client_secret_file=None, timeout=TIMEOUT)
        issuer = Issuer(SOURCE, grant, Turns(1000, SystemClock()), lease_seconds=LEASE, patience=5.0)
        async with workshop(folder, issuers={SOURCE: issuer}, clock=clock) as shop:
            await shop.snapshots.warm_up()
            try:
                yield Office(shop, emulator, issuer)
            finally:
                await issuer.close()


@pytest.fixture
async def office(tmp_path: Path) -> AsyncIterator[Office]:
    """An office with a new database and a new issuer."""
    async with opened_office(tmp_path) as office:
        yield office


@contextlib.asynccontextmanager
async def second_process(office: Office, folder: Path) -> AsyncIterator[Snapshots]:
    """See the same database as another process does: with a store, a view and sources of its own."""
    shop = office.shop
    async with sqlite_store(folder) as store:
        logins = Logins(
            {SOURCE: replace(office.issuer, flights=set())},
            store=store,
            keyring=shop.keyring,
            clock=shop.clock,
            metrics=shop.metrics,
            jitter=random.Random(2),
        )
        snapshots = Snapshots(
            store=store,
            keyring=shop.keyring,
            backends={},
            bearer_sources={},
            logins=logins,
            clock=shop.clock,
            metrics=Metrics(),
            cached_threads=100,
        )
        snapshots._backends = shop.snapshots._backends
        await snapshots.warm_up()
        yield snapshots


# --- the way it goes --------------------------------------------------------------------------------------------------


async def test_a_pair_is_written_down_before_it_is_used(office: Office) -> None:
    """While the store has not said that the pair is kept, the old token is what there is."""
    identity = await office.login()
    source, store = office.source(identity), office.shop.store
    old = source.current()
    before = await office.row(identity)
    assert (before.pair, before.refresh_state) == (1, RefreshState.IDLE)
    gate = store.hold("complete_refresh")
    refresh = asyncio.create_task(source.refresh(beyond=old))
    async with asyncio.timeout(5):
        while not store.calls["complete_refresh"]:
            await asyncio.sleep(0.001)
    claimed = await office.row(identity)
    assert (claimed.pair, claimed.refresh_state) == (1, RefreshState.IN_FLIGHT)
    assert source.current() is old
    assert source.standing.in_flight
    gate.set()
    new = await refresh
    row = await office.row(identity)
    assert (row.pair, row.refresh_state, row.lease_expire_time) == (2, RefreshState.IDLE, None)
    assert new.token != (old and old.token)
    assert source.current() == new == open_bearer(office.shop.keyring, row)
    kept = open_refresh_token(office.shop.keyring, row)
    (exchange,) = office.exchanges()
    assert kept is not None
    assert fingerprint(kept.reveal()) == exchange.issued_refresh
    assert new.expire_time == pytest.approx((new.obtain_time or 0) + 3600)


async def test_a_login_goes_on_from_pair_to_pair(office: Office) -> None:
    """Each refresh token is sent once, and the next refresh sends the next one."""
    identity = await office.login()
    source = office.source(identity)
    tokens = [await source.refresh(beyond=source.current()) for _ in range(5)]
    assert len({each.token for each in tokens}) == 5
    sent = [each.presented for each in office.exchanges()]
    assert len(set(sent)) == 5
    assert (await office.row(identity)).pair == 6


async def test_an_issuer_that_does_not_rotate_keeps_its_refresh_token(office: Office) -> None:
    """An answer without a refresh token leaves the old one in force."""
    office.emulator.backend.change(rotate_refresh_tokens=False)
    identity = await office.login()
    source = office.source(identity)
    for _ in range(2):
        await source.refresh(beyond=source.current())
    assert len({each.presented for each in office.exchanges()}) == 1
    assert [each.outcome for each in office.exchanges()] == ["issued", "issued"]


async def test_a_login_without_a_token_is_refreshed_at_once(office: Office) -> None:
    """Whoever brings only a refresh token has a bearer when the answer is there; so has one of unknown end."""
    for name, given in (("none", {"access_token": None}), ("endless", {"expire_time": None})):
        identity = await office.login(name, **given)
        current = office.source(identity).current()
        assert current is not None
        assert current.is_live(office.shop.clock.now())
    assert len(office.exchanges()) == 2


async def test_two_processes_make_one_exchange(office: Office, tmp_path: Path) -> None:
    """Who loses the claim waits for the winner's pair and hands that out."""
    identity = await office.login()
    async with second_process(office, tmp_path) as other:
        here, there = office.source(identity), office.source(identity, other)
        assert here is not there
        got = await asyncio.gather(here.refresh(beyond=here.current()), there.refresh(beyond=there.current()))
        assert got[0] == got[1]
        assert len(office.exchanges()) == 1


async def test_a_pair_that_another_process_brought_is_followed(office: Office, tmp_path: Path) -> None:
    """It is served as soon as the store is followed, with no exchange, and so is the end of a login."""
    identity = await office.login()
    async with second_process(office, tmp_path) as other:
        here, there = office.source(identity), office.source(identity, other)
        for _ in range(2):
            new = await here.refresh(beyond=here.current())
            await other.follow()
            assert there.current() == new
            assert office.source(identity, other) is there
        assert len(office.exchanges()) == 2


# --- what keeps it from going -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [429, 503])
async def test_what_was_turned_away_is_sent_again(office: Office, status: int) -> None:
    """The claim is given back with the time that the issuer asked for, for all processes; then it goes on."""
    office.fault(Action.STATUS, status=status, retry_after="20")
    identity = await office.login()
    source = office.source(identity)
    old = source.current()
    with pytest.raises(IssuerDownError) as caught:
        await source.refresh(beyond=old)
    assert caught.value.retry_after == pytest.approx(30, abs=10)
    row = await office.row(identity)
    assert (row.pair, row.refresh_state, row.retry_time) == (1, RefreshState.IDLE, office.shop.clock.now() + 20)
    source.forget()
    with pytest.raises(IssuerDownError):  # its own pause forgotten, that of the row holds
        await source.refresh(beyond=old)
    assert not office.exchanges()
    office.shop.clock.pass_(31)
    assert (await source.refresh(beyond=old)).token != (old and old.token)
    assert [each.outcome for each in office.exchanges()] == ["issued"]
    assert source.standing.trouble is None


async def test_a_clock_that_was_set_back_makes_no_pause_longer(office: Office) -> None:
    """The end of a pause that was written by a clock an hour ahead is no reason to wait that hour."""
    office.fault(Action.STATUS, status=503, retry_after="20")
    identity = await office.login()
    source = office.source(identity)
    old = source.current()
    with pytest.raises(IssuerDownError):
        await source.refresh(beyond=old)
    office.shop.clock.wall -= 3600
    office.shop.clock.steady += 61
    assert (await source.refresh(beyond=old)).token != (old and old.token)


async def test_who_cannot_be_reached_is_asked_again(office: Office) -> None:
    """Without a connection nothing was processed: the token is as good as before, and the next pauses grow."""
    identity = await office.login()
    source = office.source(identity)
    await office.emulator.__aexit__(None, None, None)
    pauses = []
    for _ in range(8):
        with pytest.raises(IssuerDownError):
            await source.refresh(beyond=source.current())
        row = await office.row(identity)
        assert (row.refresh_state, row.lease_expire_time) == (RefreshState.IDLE, None)
        pauses.append((row.retry_time or 0) - office.shop.clock.now())
        office.shop.clock.pass_(60)
        source.forget()
    assert pauses[0] <= 1
    assert pauses[0] < pauses[3] < pauses[7] <= 60


async def test_nothing_is_sent_while_the_store_is_away(office: Office) -> None:
    """No claim, no request; the token that there is goes on being served."""
    identity = await office.login()
    source = office.source(identity)
    old = source.current()
    office.shop.store.go_down()
    with pytest.raises(StoreDownError):
        await source.refresh(beyond=old)
    assert source.standing.trouble is StoreDownError
    assert await source.refresh() is old
    assert not office.exchanges()
    office.shop.store.come_back()
    office.end_lease()
    assert await source.refresh(beyond=old) != old


async def test_an_answer_waits_for_the_store(office: Office) -> None:
    """What the issuer answered is written down as soon as the store is there, and is shown to nobody before."""
    identity = await office.login()
    source, store = office.source(identity), office.shop.store
    old = source.current()
    store.fail("complete_refresh", times=5)
    seen = []
    refresh = asyncio.create_task(source.refresh(beyond=old))
    while not refresh.done():
        seen.append((source.current(), store.calls["complete_refresh"]))
        await asyncio.sleep(0)
    assert store.calls["complete_refresh"] == 6
    assert all(current is old for current, calls in seen if calls < 6)
    assert await refresh == source.current()
    assert len(office.exchanges()) == 1


async def test_nobody_waits_for_a_store_that_stays_away(office: Office) -> None:
    """What could not be written down within the lease is waited for by nobody any more, and still not lost."""
    identity = await office.login()
    source, store = office.source(identity), office.shop.store
    old = source.current()
    gate = store.hold("complete_refresh")
    refresh = asyncio.create_task(source.refresh(beyond=old))
    async with asyncio.timeout(5):
        while not store.calls["complete_refresh"]:
            await asyncio.sleep(0.001)
    office.end_lease()
    async with asyncio.timeout(5):
        with pytest.raises(StoreDownError):
            await source._login.obtain(rejected=old)
    gate.set()
    assert await refresh != old
    assert (await office.row(identity)).pair == 2
    assert len(office.exchanges()) == 1


async def test_an_error_that_hid_a_success_costs_nothing(office: Office) -> None:
    """The pair was written although the store said that it was away: it is found there, and nothing is lost."""
    identity = await office.login()
    source = office.source(identity)
    office.shop.store.fail("complete_refresh", after=True)
    new = await source.refresh(beyond=source.current())
    assert open_bearer(office.shop.keyring, await office.row(identity)) == new
    await source.refresh(beyond=new)
    assert [each.outcome for each in office.exchanges()] == ["issued", "issued"]


async def test_a_claim_that_hid_its_success_is_waited_for(office: Office) -> None:
    """A store that fails after it took the claim leaves it to its lease; the token, never sent, is found good then."""
    identity = await office.login()
    source = office.source(identity)
    office.shop.store.fail("claim_refresh", after=True)
    with pytest.raises(StoreDownError):
        await source.refresh(beyond=source.current())
    assert not office.exchanges()
    office.end_lease()
    await source.refresh(beyond=source.current())
    assert office.probes("adopted") == 1


# --- answers that are lost --------------------------------------------------------------------------------------------


async def test_a_lost_answer_is_probed_once_and_the_login_given_up(office: Office) -> None:
    """The issuer took the token, its answer never came: one probe after the lease finds it spent, and that is all."""
    identity = await office.login()
    source = office.source(identity)
    old = source.current()
    office.fault(Action.DROP_AFTER)
    with pytest.raises(IssuerDownError) as caught:
        await source.refresh(beyond=old)
    assert caught.value.retry_after == pytest.approx(LEASE, abs=1)
    row = await office.row(identity)
    assert (row.refresh_state, row.pair) == (RefreshState.IN_FLIGHT, 1)
    for _ in range(3):  # nobody sends it while the lease lasts
        source.forget()
        with pytest.raises(IssuerDownError):
            await source.refresh(beyond=old)
    assert len(office.exchanges()) == 1
    assert source.current() is old
    office.end_lease()
    with pytest.raises(ReauthRequiredError):
        await source.refresh(beyond=old)
    assert [(each.outcome, each.reused) for each in office.exchanges()] == [
        ("issued", False),
        ("refresh_token_reused", True),
    ]
    assert office.probes("refused") == 1
    row = await office.row(identity)
    assert (row.refresh_state, row.reason) == (RefreshState.DEAD, "refresh_token_reused")
    assert await office.state(identity) is IdentityState.REAUTH_REQUIRED
    view = office.shop.snapshots.view(identity.id)
    assert view is not None
    assert view.identity.state is IdentityState.REAUTH_REQUIRED
    assert source.current() is old  # which lives on
    for _ in range(3):
        office.end_lease()
        source.forget()
        with pytest.raises(ReauthRequiredError):
            await source.refresh(beyond=old)
    assert len(office.exchanges()) == 2


async def test_a_probe_that_finds_the_token_good_goes_on(office: Office) -> None:
    """A 500 may hide anything; the issuer had not processed it, and the probe brings the pair."""
    identity = await office.login()
    source = office.source(identity)
    office.fault(Action.STATUS, status=500)
    with pytest.raises(IssuerDownError):
        await source.refresh(beyond=source.current())
    office.end_lease()
    await source.refresh(beyond=source.current())
    assert office.probes("adopted") == 1
    assert (await office.row(identity)).pair == 2
    assert await office.state(identity) is IdentityState.ACTIVE


async def test_a_probe_that_is_turned_away_is_made_again(office: Office) -> None:
    """Only a probe that was processed counts."""
    identity = await office.login()
    source = office.source(identity)
    office.fault(Action.STATUS, status=500)
    office.fault(Action.STATUS, status=503, count=2)
    for _ in range(3):
        with pytest.raises(IssuerDownError):
            await source.refresh(beyond=source.current())
        office.end_lease()
        source.forget()
    await source.refresh(beyond=source.current())
    assert (office.probes("released"), office.probes("adopted")) == (2, 1)


async def test_a_probe_whose_answer_is_lost_too_is_the_last(office: Office) -> None:
    """After that nobody will ever know, and nothing is sent any more."""
    identity = await office.login()
    source = office.source(identity)
    old = source.current()
    rule = office.fault(Action.STATUS, status=500, count=None)
    for _ in range(2):
        with pytest.raises(IssuerDownError):
            await source.refresh(beyond=old)
        office.end_lease()
    for _ in range(3):
        with pytest.raises(ReauthRequiredError):
            await source.refresh(beyond=old)
        office.end_lease()
        source.forget()
    assert rule.fired == 2
    assert office.probes("lost") == 1
    assert (await office.row(identity)).reason == "refresh_answer_lost"
    assert await office.state(identity) is IdentityState.REAUTH_REQUIRED


async def test_another_process_probes_what_a_dead_one_sent(office: Office, tmp_path: Path) -> None:
    """It waits no longer than an answer may take, leaves the token alone until the lease is over, and then probes."""
    identity = await office.login()
    office.fault(Action.STATUS, status=500)
    with pytest.raises(IssuerDownError):
        await office.source(identity).refresh(beyond=office.source(identity).current())
    async with second_process(office, tmp_path) as other:
        there = office.source(identity, other)
        waiting = asyncio.create_task(there.refresh(beyond=there.current()))
        await asyncio.sleep(0.05)
        assert there.standing.in_flight
        office.shop.clock.pass_(TIMEOUT + 2)
        with pytest.raises(IssuerDownError) as caught:
            await waiting
        assert (caught.value.retry_after or 0) > LEASE - TIMEOUT - 5
        assert not office.exchanges()
        office.end_lease()
        await there.refresh(beyond=there.current())
        assert office.probes("adopted") == 1


# --- refused for good, and who is right -------------------------------------------------------------------------------


async def test_a_refused_login_is_not_asked_again(office: Office) -> None:
    """Somebody else spent the token: the login is dead, in the row and for every process; its access token lives on."""
    identity = await office.login()
    source = office.source(identity)
    stolen = open_refresh_token(office.shop.keyring, await office.row(identity))
    assert stolen is not None
    await office.issuer.grant.refresh(stolen)
    with pytest.raises(ReauthRequiredError):
        await source.refresh(beyond=source.current())
    asked = len(office.exchanges())
    for _ in range(3):
        office.shop.clock.pass_(600)
        source.forget()
        with pytest.raises(ReauthRequiredError):
            await source.refresh(beyond=source.current())
    assert len(office.exchanges()) == asked
    current = source.current()
    assert current is not None
    assert current.is_live(office.shop.clock.now())


async def test_the_winners_tokens_are_adopted_and_never_wiped(office: Office) -> None:
    """A refusal that comes after another pair was stored touches nothing of it: that pair is what is handed out."""
    identity = await office.login()
    source, store = office.source(identity), office.shop.store
    stolen = open_refresh_token(office.shop.keyring, await office.row(identity))
    assert stolen is not None
    await office.issuer.grant.refresh(stolen)
    gate = store.hold("refuse_refresh")
    refresh = asyncio.create_task(source.refresh(beyond=source.current()))
    async with asyncio.timeout(5):
        while not store.calls["refuse_refresh"]:
            await asyncio.sleep(0.001)
    winner = office.emulator.backend.mint_token()
    assert winner.refresh_token is not None
    given = OwnLogin(
        source=SOURCE,
        refresh_token=Secret(winner.refresh_token),
        access_token=Secret(winner.access_token),
        expire_time=office.shop.clock.now() + 3600,
    )
    stored = await store.identity(identity.id)
    assert stored is not None
    row = office.shop.enroller._own_bearers.sealed(given, identity.id, pair=2)
    await store.write_identity(stored, bearer=row)
    gate.set()
    assert (await refresh).token == Secret(winner.access_token)
    kept = await office.row(identity)
    assert (kept.pair, kept.refresh_state) == (2, RefreshState.IDLE)
    assert await office.state(identity) is IdentityState.ACTIVE
    await source.refresh(beyond=source.current())  # and it can be refreshed
    assert office.exchanges()[-1].outcome == "issued"


async def test_a_new_login_ends_the_memory_of_the_dead_one(office: Office, tmp_path: Path) -> None:
    """Another process follows the new row: the refusal is forgotten and the new token served at once."""
    identity = await office.login()
    stolen = open_refresh_token(office.shop.keyring, await office.row(identity))
    assert stolen is not None
    await office.issuer.grant.refresh(stolen)
    async with second_process(office, tmp_path) as other:
        there = office.source(identity, other)
        with pytest.raises(ReauthRequiredError):
            await there.refresh(beyond=there.current())
        assert there.standing.trouble is ReauthRequiredError
        fresh = office.emulator.backend.mint_token()
        assert fresh.refresh_token is not None
        given = OwnLogin(
            source=SOURCE,
            refresh_token=Secret(fresh.refresh_token),
            access_token=Secret(fresh.access_token),
            expire_time=office.shop.clock.now() + 3600,
        )
        stored = await office.shop.store.identity(identity.id)
        assert stored is not None
        row = office.shop.enroller._own_bearers.sealed(given, identity.id, pair=2)
        await office.shop.store.write_identity(replace(stored, state=IdentityState.ACTIVE, state_reason=""), bearer=row)
        await other.follow()
        there = office.source(identity, other)
        assert there.standing.trouble is None
        current = there.current()
        assert current is not None
        assert current.token == Secret(fresh.access_token)


async def moved_to_another_login(office: Office, identity: Identity) -> tuple[str, str]:
    """Take an identity's login away and give it another, whose pair is the first again; return the new tokens."""
    store = office.shop.store
    fresh = office.emulator.backend.mint_token()
    assert fresh.refresh_token is not None
    given = OwnLogin(
        source=SOURCE,
        refresh_token=Secret(fresh.refresh_token),
        access_token=Secret(fresh.access_token),
        expire_time=office.shop.clock.now() + 3600,
    )
    stored = await store.identity(identity.id)
    assert stored is not None
    without = await store.write_identity(stored, bearer=None)
    row = office.shop.enroller._own_bearers.sealed(given, identity.id, pair=1)
    await store.write_identity(without, bearer=row)
    return fresh.access_token, fresh.refresh_token


async def test_a_login_in_the_place_of_a_removed_one_is_served(office: Office, tmp_path: Path) -> None:
    """A process that learns of both at once serves the new token, though its pair has the number of the old one's."""
    identity = await office.login()
    async with second_process(office, tmp_path) as other:
        access_token, _ = await moved_to_another_login(office, identity)
        await other.follow()
        current = office.source(identity, other).current()
        assert current is not None
        assert current.token == Secret(access_token)


async def test_a_login_in_the_place_of_a_removed_one_is_sent_its_own_refresh_token(office: Office) -> None:
    """Who still knows the old login and claims the refresh of the new one sends nothing of the old."""
    identity = await office.login()
    source = office.source(identity)
    _, refresh_token = await moved_to_another_login(office, identity)
    await source.refresh(beyond=source.current())
    assert [each.presented for each in office.exchanges()] == [fingerprint(refresh_token)]


async def test_tokens_of_somebody_else_are_refused(office: Office) -> None:
    """An issuer that answers with another account's tokens gets the login nowhere: none of them is kept or shown."""
    office.emulator.backend.change(token_format=TokenFormat.JWT)
    theirs = replace(default_account(), account_id="account-of-another")
    tokens = office.emulator.backend.mint_token(account=theirs, lifetime=timedelta(days=400))
    identity = await office.login()
    stored = await office.shop.store.identity(identity.id)
    assert stored is not None
    assert stored.account_id not in (None, theirs.account_id)
    assert tokens.refresh_token is not None
    given = OwnLogin(
        source=SOURCE, refresh_token=Secret(tokens.refresh_token), access_token=Secret("at"), expire_time=9e9
    )
    row = office.shop.enroller._own_bearers.sealed(given, identity.id, pair=2)
    await office.shop.store.write_identity(stored, bearer=row)
    await office.shop.snapshots.follow()
    source = office.source(identity)
    with pytest.raises(ReauthRequiredError):
        await source.refresh(beyond=source.current())
    kept = await office.row(identity)
    assert (kept.pair, kept.refresh_state, kept.reason) == (2, RefreshState.DEAD, "account_mismatch")
    assert source.current() is not None
    assert source.current() == open_bearer(office.shop.keyring, kept)


async def test_whose_the_tokens_must_be_is_what_the_identity_says_now(office: Office) -> None:
    """An identity that learns its account with a new login takes no other account's tokens from then on."""
    identity = await office.login()
    office.emulator.backend.change(token_format=TokenFormat.JWT)
    theirs = office.emulator.backend.mint_token(account=replace(default_account(), account_id="account-of-another"))
    assert theirs.refresh_token is not None
    given = OwnLogin(source=SOURCE, refresh_token=Secret(theirs.refresh_token))
    stored = await office.shop.store.identity(identity.id)
    assert stored is not None
    row = office.shop.enroller._own_bearers.sealed(given, identity.id, pair=2)
    ours = replace(stored, account_id="account-of-ours")
    written = await office.shop.store.write_identity(ours, bearer=row)
    office.shop.snapshots.publish_identity(written, await office.row(identity))
    source = office.source(identity)
    with pytest.raises(ReauthRequiredError):
        await source.refresh(beyond=source.current())
    assert (await office.row(identity)).reason == "account_mismatch"


async def test_a_refresh_token_that_does_not_open_needs_a_person(office: Office) -> None:
    """Nothing is claimed or sent; the token that opens is served to its end."""
    identity = await office.login()
    stored, row = await office.shop.store.identity(identity.id), await office.row(identity)
    assert stored is not None
    given = OwnLogin(source=SOURCE, refresh_token=Secret("rt"), access_token=Secret("at"), expire_time=9e9)
    sealed = office.shop.enroller._own_bearers.sealed(given, identity.id, pair=2)
    broken = replace(sealed, sealed_refresh_token=row.sealed_refresh_token)  # sealed to the pair before
    await office.shop.store.write_identity(stored, bearer=broken)
    await office.shop.snapshots.follow()
    source = office.source(identity)
    with pytest.raises(ReauthRequiredError):
        await source.refresh(beyond=source.current())
    assert (await office.row(identity)).refresh_state is RefreshState.IDLE
    assert not office.exchanges()
    assert (await source.refresh()).token == Secret("at")


# --- stopping and secrecy ---------------------------------------------------------------------------------------------


async def test_a_stop_lets_an_exchange_end_and_begins_none(office: Office) -> None:
    """What the issuer answers while the broker stops is written down; afterwards nothing is sent."""
    identity = await office.login()
    source, store = office.source(identity), office.shop.store
    gate = store.hold("complete_refresh")
    refresh = asyncio.create_task(source.refresh(beyond=source.current()))
    async with asyncio.timeout(5):
        while not store.calls["complete_refresh"]:
            await asyncio.sleep(0.001)
    refresh.cancel()
    closing = asyncio.create_task(office.issuer.close())
    await asyncio.sleep(0.01)
    gate.set()
    await closing
    assert (await office.row(identity)).pair == 2
    source.forget()
    with pytest.raises(IssuerDownError):
        await source.refresh(beyond=source.current())
    assert len(office.exchanges()) == 1


async def test_no_token_shows(office: Office) -> None:
    """Neither an event nor an exception nor the text of an object holds a token, whatever goes wrong."""
    identity = await office.login()
    source = office.source(identity)
    first = await office.row(identity)
    current, refresh_token = source.current(), open_refresh_token(office.shop.keyring, first)
    assert current is not None
    assert refresh_token is not None
    secrets = (current.token.reveal(), refresh_token.reveal())
    shown = []
    with structlog.testing.capture_logs() as events:
        for action in (Action.STATUS, Action.TRUNCATE):
            office.fault(action)
            with pytest.raises(IssuerDownError) as caught:
                await source.refresh(beyond=source.current())
            shown += [repr(caught.value), caught.value.note, repr(caught.value.__cause__)]
            office.end_lease()
            source.forget()
        with pytest.raises(ReauthRequiredError):
            await source.refresh(beyond=source.current())
    shown += [repr(first), repr(await office.row(identity)), repr(source), repr(office.issuer), repr(events)]
    assert events
    assert not [secret for secret in secrets if any(secret in each for each in shown)]


async def test_the_faulty_store_of_these_tests_is_the_real_one(office: Office) -> None:
    """What stands between is a wrapper; the rows are those of SQLite."""
    assert isinstance(office.shop.store, FaultyStore)
