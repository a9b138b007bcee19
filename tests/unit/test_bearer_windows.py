"""Callers and the windows of a bearer: who is served at once, who waits, for what and for how long."""

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from broker.bearer import Bearer, Phase
from broker.bearer.kept import Exchange, KeptBearer, Windows
from broker.bearer.turns import Turns
from broker.bearer_windows import BearerWindows
from broker.errors import BrokerError, IssuerDownError, ReauthRequiredError
from broker.model import Secret
from broker.snapshots import Snapshots
from broker.telemetry import Metrics
from tests.support.clocks import SetClock
from tests.support.workshop import Workshop, workshop

LIFE = 1000.0
LONGEST = 300.0


class Issuer(Exchange):
    """An exchange that a test lets end as it likes."""

    def __init__(self, clock: SetClock) -> None:
        self.asked = 0
        self.outcome: BrokerError | None = None
        self.gate = asyncio.Event()
        self.gate.set()
        self._clock = clock

    async def obtain(self, *, rejected: Bearer | None) -> Bearer:
        """Wait for the gate, then fail as told or bring the next token."""
        self.asked += 1
        sent = self._clock.now()
        await self.gate.wait()
        if self.outcome is not None:
            raise self.outcome
        return Bearer(Secret(f"token-{self.asked}"), sent + LIFE, sent)

    async def close(self) -> None:
        """Nothing is held."""


class Counter:
    """A caller's desk: windows over one kept bearer that ends in LIFE seconds."""

    def __init__(self, snapshots: Snapshots, clock: SetClock, *, rate: float = 1000.0) -> None:
        self.clock = clock
        self.issuer = Issuer(clock)
        self.windows = BearerWindows(snapshots, clock)
        self.turns = Turns(rate, clock)
        self.first = Bearer(Secret("token-0"), clock.now() + LIFE, clock.now())
        self.source = KeptBearer(
            self.issuer,
            name="vault",
            turns=self.turns,
            clock=clock,
            metrics=Metrics(),
            jitter=random.Random(1),
            windows=Windows(advisory=200.0, mandatory=50.0),
            bearer=self.first,
        )

    def at(self, before_end: float) -> None:
        """Let so much time pass that the first bearer has only this left."""
        assert self.first.expire_time is not None
        self.clock.pass_(self.first.expire_time - before_end - self.clock.now())

    async def serve(self, *, wanted: float = 0.0, patience: float = 5.0) -> bool:
        """Do what is done for a caller that a live bearer is handed to; say whether it waited."""
        return await self.windows.freshen(
            self.source, wanted=wanted, longest=LONGEST, wait_until=self.clock.monotonic() + patience
        )

    @property
    def token(self) -> str:
        """What is served now."""
        bearer = self.source.current()
        assert bearer is not None
        return bearer.token.reveal()

    @property
    def is_stale(self) -> bool:
        """What the answer would say."""
        return self.windows.is_stale(self.source, self.clock.now())


@pytest.fixture
async def shop(tmp_path: Path) -> AsyncIterator[Workshop]:
    """A workshop."""
    async with workshop(tmp_path) as opened:
        yield opened


@pytest.fixture
async def counter(shop: Workshop) -> AsyncIterator[Counter]:
    """A counter with a fresh bearer."""
    made = Counter(shop.snapshots, shop.clock)
    yield made
    await made.source.close()


async def turns_pass(times: int = 20) -> None:
    """Let others run."""
    for _ in range(times):
        await asyncio.sleep(0)


async def test_a_fresh_bearer_is_served_and_nobody_asked(counter: Counter) -> None:
    """Outside the windows nothing happens."""
    assert not await counter.serve()
    await turns_pass()
    assert (counter.issuer.asked, counter.token, counter.is_stale) == (0, "token-0", False)


async def test_in_the_advisory_window_all_are_served_and_one_job_refreshes(counter: Counter) -> None:
    """However many ask, one exchange is made, and nobody waits for it although it is under way."""
    counter.at(100)
    assert counter.source.phase(counter.clock.now()) is Phase.ADVISORY
    counter.issuer.gate.clear()
    for _ in range(50):
        assert not await counter.serve()
        await turns_pass(2)
        assert counter.token == "token-0"
    assert counter.source.standing.in_flight
    assert not counter.is_stale
    counter.issuer.gate.set()
    await turns_pass()
    assert (counter.issuer.asked, counter.token) == (1, "token-1")


async def test_in_the_mandatory_window_all_wait_for_the_exchange_under_way(counter: Counter) -> None:
    """Each gets the new one, of one exchange."""
    counter.at(30)
    counter.issuer.gate.clear()
    waiting = [asyncio.create_task(counter.serve()) for _ in range(50)]
    await turns_pass()
    assert not any(task.done() for task in waiting)
    counter.issuer.gate.set()
    assert await asyncio.gather(*waiting) == [True] * 50
    assert (counter.issuer.asked, counter.token, counter.is_stale) == (1, "token-1", False)


async def test_who_waited_in_vain_is_served_the_old_one_and_told(counter: Counter) -> None:
    """At the caller's deadline the live bearer is handed out as stale; the exchange goes on."""
    counter.at(30)
    counter.issuer.gate.clear()
    assert await counter.serve(patience=0.02)
    assert (counter.token, counter.is_stale) == ("token-0", True)
    counter.issuer.gate.set()
    await turns_pass()
    assert (counter.token, counter.is_stale) == ("token-1", False)


async def test_nobody_whose_token_lives_waits_for_a_turn(shop: Workshop) -> None:
    """In the line at the issuer nothing is under way: even in the mandatory window the live one is served."""
    counter = Counter(shop.snapshots, shop.clock, rate=1.0)
    slow = SetClock(shop.clock.now())
    counter.turns._clock = slow
    counter.turns.ask(urgent=True)  # takes the one turn of this second
    slow.sleep = lambda _: asyncio.Event().wait()  # type: ignore[assignment,method-assign,return-value]  # a second that does not end
    counter.at(30)
    for _ in range(10):
        assert not await counter.serve()
        await turns_pass(2)
    assert (counter.issuer.asked, counter.token) == (0, "token-0")
    await counter.source.close()
    await counter.turns.close()


@pytest.mark.parametrize("error", [IssuerDownError, ReauthRequiredError])
async def test_a_refresh_that_failed_makes_answers_stale(counter: Counter, error: type[BrokerError]) -> None:
    """The live bearer goes on being served, and each answer says that a refresh that was due has failed."""
    counter.at(100)
    counter.issuer.outcome = error()
    assert not await counter.serve()
    await turns_pass()
    for _ in range(3):
        assert not await counter.serve()
        assert (counter.token, counter.is_stale, counter.issuer.asked) == ("token-0", True, 1)
    counter.source.forget()
    counter.issuer.outcome = None
    await counter.serve()
    await turns_pass()
    assert (counter.token, counter.is_stale) == ("token-2", False)


async def test_a_wanted_validity_is_worth_one_refresh(counter: Counter) -> None:
    """A bearer that ends too early for what is wanted is refreshed first, whatever its phase."""
    counter.at(250)
    assert counter.source.phase(counter.clock.now()) is Phase.FRESH
    assert not await counter.serve(wanted=244)
    assert await counter.serve(wanted=250)
    assert (counter.issuer.asked, counter.token) == (1, "token-1")
    assert not await counter.serve(wanted=250)
    assert counter.issuer.asked == 1


async def test_what_no_refresh_can_give_is_not_refreshed_for(counter: Counter) -> None:
    """More than any answer may live, and more than a new bearer of this issuer would, costs nothing."""
    counter.at(250)
    assert not await counter.serve(wanted=LONGEST + 1)
    short = Bearer(Secret("short"), counter.clock.now() + 200, counter.clock.now())
    counter.source.adopt(short)
    assert not await counter.serve(wanted=220)
    assert counter.issuer.asked == 0


async def test_an_outcome_is_each_waiters_own(counter: Counter) -> None:
    """All who wait learn of the same failure, by exceptions of their own, and the next one does not ask again."""
    counter.at(-1)
    counter.issuer.outcome = IssuerDownError(retry_after=7.0, note="away")
    counter.issuer.gate.clear()
    until = counter.clock.monotonic() + 5
    waiting = [asyncio.create_task(counter.windows.obtain(counter.source, until)) for _ in range(10)]
    await turns_pass()
    counter.issuer.gate.set()
    errors = await asyncio.gather(*waiting)
    assert {type(error) for error in errors} == {IssuerDownError}
    assert len({id(error) for error in errors}) == 10
    assert counter.issuer.asked == 1
    assert isinstance(await counter.windows.obtain(counter.source, until), IssuerDownError)
    assert counter.issuer.asked == 1


async def test_a_new_bearer_has_answers_worked_out_again(shop: Workshop, counter: Counter) -> None:
    """What was answered with the old one does not outlive its refresh."""
    counter.at(-1)
    before = shop.snapshots.epoch
    assert await counter.windows.obtain(counter.source, counter.clock.monotonic() + 5) is None
    assert shop.snapshots.epoch > before


async def test_an_exchange_that_somebody_else_made_is_not_made_again(counter: Counter) -> None:
    """A bearer that is brought after an exchange was asked for, and before it began, is the one that was asked for."""
    counter.at(100)
    counter.source.refresh_soon()
    brought = Bearer(Secret("brought"), counter.clock.now() + LIFE, counter.clock.now())
    counter.source.adopt(brought)
    await turns_pass()
    waiting = asyncio.create_task(counter.source.refresh(beyond=brought))
    await asyncio.sleep(0)
    again = Bearer(Secret("again"), counter.clock.now() + LIFE, counter.clock.now())
    counter.source.adopt(again)
    assert await waiting == again
    assert (counter.issuer.asked, counter.token) == (0, "again")
