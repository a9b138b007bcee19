"""What all sources with an exchange share: the windows, one exchange at a time, its rate, and what is remembered."""

import asyncio
import itertools
import random
from collections.abc import Callable
from typing import Any

import pytest
from structlog.testing import capture_logs

from broker.bearer import EXPIRY_MARGIN_SECONDS, Bearer, Phase, Standing
from broker.bearer.kept import KeptBearer, Windows
from broker.bearer.turns import Turns
from broker.bearer.workload_identity import WORKLOAD_IDENTITY_WINDOWS
from broker.errors import BrokerError, IssuerDownError, ReauthRequiredError, StoreDownError
from broker.model import Secret
from broker.telemetry import Metrics
from tests.support.clocks import SteppedClock
from tests.unit.bearer.test_turns import most_within

NOW = 1_800_000_000.0
LIFE = 3600.0


class Halves(random.Random):
    """Says the middle of whatever is asked for."""

    def random(self) -> float:
        return 0.5


class Issuer:
    """
    An exchange that answers a script, each answer after the test lets it.

    Attributes:
        answers: what comes next: an error, or how long the token lives; the last is repeated.
        rejected: what each request was told to have been rejected.
        times: when each was sent.
        open: set while answers are given at once.
    """

    def __init__(self, clock: SteppedClock, *answers: float | BaseException | None) -> None:
        self.clock = clock
        self.answers = list(answers) or [LIFE]
        self.rejected: list[Bearer | None] = []
        self.times: list[float] = []
        self.open = asyncio.Event()
        self.open.set()
        self.is_closed = False
        self.numbers = itertools.count(1)

    @property
    def asked(self) -> int:
        return len(self.times)

    async def obtain(self, *, rejected: Bearer | None) -> Bearer:
        send_time = self.clock.now()
        self.rejected.append(rejected)
        self.times.append(self.clock.monotonic())
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        await self.open.wait()
        if isinstance(answer, BaseException):
            raise answer
        end = None if answer is None else send_time + answer
        return Bearer(Secret(f"sk-{next(self.numbers)}"), end, send_time)

    async def close(self) -> None:
        self.is_closed = True


class Bench:
    """One kept bearer with everything around it."""

    def __init__(self, *answers: float | BaseException | None, rate: float = 20.0, **more: Any) -> None:
        self.clock = SteppedClock(NOW)
        self.issuer = Issuer(self.clock, *answers)
        self.metrics = Metrics()
        self.turns = Turns(rate, self.clock)
        self.changes = 0
        self.source = self.kept(self.issuer, **more)

    def kept(self, issuer: Issuer, **more: Any) -> KeptBearer:
        arguments: dict[str, Any] = {
            "name": "vault",
            "turns": self.turns,
            "clock": self.clock,
            "metrics": self.metrics,
            "jitter": Halves(),
            "on_change": self._changed,
        }
        return KeptBearer(issuer, **(arguments | more))

    def count(self, outcome: str) -> float:
        labels = {"source": "vault", "outcome": outcome}
        return self.metrics.registry.get_sample_value("credential_broker_bearer_refreshes_total", labels) or 0.0

    def phase(self) -> Phase:
        return self.source.phase(self.clock.now())

    def token(self) -> str:
        bearer = self.source.current()
        assert bearer is not None
        return bearer.token.reveal()

    def _changed(self) -> None:
        self.changes += 1


async def settled(*tasks: asyncio.Task[Any]) -> None:
    """Give everybody turns."""
    for _ in range(10):
        await asyncio.sleep(0)


# --- the windows ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("windows", "life", "advisory", "mandatory"),
    [
        (Windows(), 3600.0, 900.0, 60.0),
        (Windows(), 86400.0, 900.0, 60.0),
        (Windows(), 600.0, 150.0, 30.0),
        (Windows(), 100.0, 25.0, 10.0),
        (Windows(), 20.0, 10.0, 10.0),
        (Windows(), 8.0, 4.0, 4.0),
        (Windows(), None, 900.0, 60.0),
        (WORKLOAD_IDENTITY_WINDOWS, 3600.0, 120.0, 60.0),
        (WORKLOAD_IDENTITY_WINDOWS, 120.0, 60.0, 10.0),
        (Windows(advisory=300.0), 3600.0, 300.0, 60.0),
        (Windows(mandatory=120.0), 3600.0, 900.0, 120.0),
        (Windows(advisory=7200.0, mandatory=7200.0), 3600.0, 1800.0, 1800.0),
        (Windows(mandatory=1000.0), 3600.0, 1000.0, 1000.0),
    ],
)
def test_how_long_before_its_end_a_bearer_is_due(
    windows: Windows, life: float | None, advisory: float, mandatory: float
) -> None:
    """A share of the life within bounds, what the settings say, and never more than half of a life."""
    bearer = Bearer(Secret("sk"), NOW + (life or 5000.0), None if life is None else NOW)
    assert windows.of(bearer) == pytest.approx((advisory, mandatory))


async def test_a_bearer_goes_through_its_phases() -> None:
    """FRESH, from a jittered moment in the advisory window ADVISORY, then MANDATORY, then ABSENT."""
    bench = Bench()
    assert bench.phase() is Phase.ABSENT
    assert not bench.source.is_empty
    await bench.source.refresh()
    assert bench.phase() is Phase.FRESH
    begin = NOW + LIFE - 900.0 + (900.0 - 60.0) / 2 * 0.5
    assert bench.source.standing == Standing(refresh_time=begin)
    for time, phase in (
        (begin - 0.01, Phase.FRESH),
        (begin, Phase.ADVISORY),
        (NOW + LIFE - 60.01, Phase.ADVISORY),
        (NOW + LIFE - 60.0, Phase.MANDATORY),
        (NOW + LIFE - EXPIRY_MARGIN_SECONDS - 0.01, Phase.MANDATORY),
        (NOW + LIFE - EXPIRY_MARGIN_SECONDS, Phase.ABSENT),
    ):
        assert bench.source.phase(time) is phase


async def test_a_token_without_an_end_is_never_refreshed_ahead() -> None:
    """Nothing says when it would be due."""
    bench = Bench(None)
    await bench.source.refresh()
    await bench.clock.pass_(1e8)
    assert bench.phase() is Phase.FRESH
    assert bench.source.standing == Standing()


def test_equal_ends_are_not_refreshed_together() -> None:
    """A thousand tokens that end in the same second become due all over the first half between the windows."""
    bearer = Bearer(Secret("sk"), NOW + LIFE, NOW)
    jitter = random.Random(7)
    bench = Bench()
    due = sorted(
        bench.kept(bench.issuer, jitter=jitter, bearer=bearer).standing.refresh_time or 0.0 for _ in range(1000)
    )
    first, last = NOW + LIFE - 900.0, NOW + LIFE - 900.0 + 420.0
    assert first <= due[0] < first + 5
    assert last - 5 < due[-1] <= last
    assert most_within(due, 1.0) < 15


async def test_a_life_counts_from_before_the_request() -> None:
    """What an exchange takes is lost from the life, not added to it."""
    bench = Bench()
    bench.issuer.open.clear()
    refresh = asyncio.create_task(bench.source.refresh())
    await bench.clock.pass_(30.0)
    bench.issuer.open.set()
    assert (await refresh).expire_time == NOW + LIFE


# --- one exchange -----------------------------------------------------------------------------------------------------


async def test_all_who_ask_share_one_exchange() -> None:
    """A hundred callers and the upkeep cost one exchange; one who gives up takes it from nobody."""
    bench = Bench()
    bench.issuer.open.clear()
    bench.source.refresh_soon()
    callers = [asyncio.create_task(bench.source.refresh()) for _ in range(100)]
    await settled()
    for caller in callers[::2]:
        caller.cancel()
    await settled()
    bench.issuer.open.set()
    got = await asyncio.gather(*callers[1::2])
    assert {bearer.token.reveal() for bearer in got} == {"sk-1"}
    assert (bench.issuer.asked, bench.count("ok"), bench.changes) == (1, 1, 1)


async def test_an_exchange_outlives_everybody_who_waited() -> None:
    """When all have given up its token is taken in all the same."""
    bench = Bench()
    bench.issuer.open.clear()
    caller = asyncio.create_task(bench.source.refresh())
    await settled()
    caller.cancel()
    await settled()
    assert bench.source.standing.in_flight
    bench.issuer.open.set()
    await settled()
    assert bench.token() == "sk-1"
    assert not bench.source.standing.in_flight


async def test_all_who_waited_through_a_failure_get_it() -> None:
    """One try for all of them, no new one each, and an exception object for each."""
    bench = Bench(IssuerDownError(retry_after=7.0, note="as the script says"))
    bench.issuer.open.clear()
    callers = [asyncio.create_task(bench.source.refresh()) for _ in range(20)]
    await settled()
    bench.issuer.open.set()
    got = await asyncio.gather(*callers, return_exceptions=True)
    assert all(isinstance(error, IssuerDownError) and error.retry_after == 7.0 for error in got)
    assert len({id(error) for error in got}) == 20
    assert (bench.issuer.asked, bench.count("ISSUER_DOWN")) == (1, 1)


async def test_what_is_fresh_costs_no_exchange() -> None:
    """Asking again for what is not due brings the same."""
    bench = Bench()
    first = await bench.source.refresh()
    assert await bench.source.refresh() is first
    assert bench.issuer.asked == 1


async def test_an_exchange_that_crashes_is_a_failure() -> None:
    """A defect in an exchange is told to the log and to who waits, and does not end the source."""
    bench = Bench(ZeroDivisionError(), LIFE)
    with capture_logs() as logs, pytest.raises(IssuerDownError):
        await bench.source.refresh()
    assert "bearer_exchange_crashed" in {event["event"] for event in logs}
    await bench.clock.pass_(1.0)
    assert (await bench.source.refresh()).token.reveal() == "sk-1"


async def test_a_token_that_has_ended_when_it_comes_is_none() -> None:
    """It is never handed out, however often the issuer sends such ones."""
    bench = Bench(EXPIRY_MARGIN_SECONDS)
    with pytest.raises(IssuerDownError, match="ISSUER_DOWN"):
        await bench.source.refresh()
    assert bench.source.current() is None


async def test_closing_cuts_an_exchange_off() -> None:
    """Whoever waits is told, and the exchange lets go of what it holds."""
    bench = Bench()
    bench.issuer.open.clear()
    caller = asyncio.create_task(bench.source.refresh())
    await settled()
    await bench.source.close()
    with pytest.raises(IssuerDownError) as caught:
        await caller
    assert "cut off" in caught.value.note
    assert bench.issuer.is_closed


# --- failures ---------------------------------------------------------------------------------------------------------


async def due(*answers: float | BaseException, **more: Any) -> Bench:
    """Return a bench whose bearer has just entered the mandatory window."""
    bench = Bench(LIFE, *answers, **more)
    await bench.source.refresh()
    await bench.clock.pass_(LIFE - 60.0)
    assert bench.phase() is Phase.MANDATORY
    return bench


async def test_a_failure_leaves_a_live_bearer_where_it_is() -> None:
    """It goes on being handed out, and is tried again after 30 s less some jitter, then after twice that."""
    bench = Bench(LIFE, IssuerDownError(), IssuerDownError(), LIFE)
    await bench.source.refresh()
    await bench.clock.pass_(LIFE - 450.0)
    with capture_logs() as logs:
        for pause in (30.0 * 0.875, 60.0 * 0.875):
            tried = bench.issuer.asked
            assert (await bench.source.refresh()).token.reveal() == "sk-1"
            assert bench.issuer.asked == tried + 1
            assert bench.source.standing.trouble is IssuerDownError
            assert bench.source.standing.retry_time == pytest.approx(bench.clock.now() + pause)
            await bench.clock.pass_(pause - 0.01)
            bench.source.refresh_soon()
            assert (await bench.source.refresh()).token.reveal() == "sk-1"
            assert bench.issuer.asked == tried + 1, "not before its time"
            await bench.clock.pass_(0.02)
        assert (await bench.source.refresh()).token.reveal() == "sk-2"
    assert bench.source.standing.trouble is None
    # Said once when it begins and once when it is over.
    assert [event["event"] for event in logs] == ["bearer_refresh_failed", "bearer_recovered"]


async def test_it_is_tried_again_when_the_bearer_ends() -> None:
    """A pause is never longer than what is left of the bearer's life."""
    bench = await due(IssuerDownError(), LIFE)
    await bench.clock.pass_(40.0)
    await bench.source.refresh()
    assert bench.source.standing.retry_time == pytest.approx(NOW + LIFE - EXPIRY_MARGIN_SECONDS, abs=2.0)
    await bench.clock.pass_(15.0)
    assert bench.phase() is Phase.ABSENT
    assert (await bench.source.refresh()).token.reveal() == "sk-2"


async def test_an_issuer_that_asks_for_time_is_given_it() -> None:
    """`Retry-After` is kept to even when the bearer ends on the way."""
    bench = await due(IssuerDownError(retry_after=300.0), LIFE)
    await bench.source.refresh()
    await bench.clock.pass_(100.0)
    with pytest.raises(IssuerDownError) as caught:
        await bench.source.refresh()
    assert caught.value.retry_after == pytest.approx(200.0)
    assert bench.issuer.asked == 2
    await bench.clock.pass_(200.0)
    assert (await bench.source.refresh()).token.reveal() == "sk-2"


async def test_without_a_bearer_it_is_tried_again_soon_but_not_by_everybody() -> None:
    """Callers within the pause are told at once, with no exchange; the pause grows to half a minute."""
    bench = Bench(IssuerDownError())
    pauses = []
    for _ in range(8):
        with pytest.raises(IssuerDownError):
            await bench.source.refresh()
        tried = bench.issuer.asked
        with pytest.raises(IssuerDownError) as caught:
            await bench.source.refresh()
        assert bench.issuer.asked == tried
        assert caught.value.retry_after is not None
        pauses.append(caught.value.retry_after)
        await bench.clock.pass_(caught.value.retry_after)
    assert pauses == pytest.approx([0.875 * pause for pause in (1, 2, 4, 8, 16, 30, 30, 30)])


async def test_an_outcome_of_another_kind_is_told_as_it_is() -> None:
    """What keeps a refresh from being made, such as the store, is not blamed on the issuer."""
    bench = Bench(StoreDownError())
    with pytest.raises(StoreDownError):
        await bench.source.refresh()
    assert bench.source.standing.trouble is StoreDownError


async def test_a_refusal_for_good_is_remembered() -> None:
    """Later tries fail without asking, however late, until something changes; the live bearer lives on to its end."""
    changed = False

    async def look() -> bool:
        return changed

    bench = await due(ReauthRequiredError(note="dead"), LIFE, changed=look)
    await bench.source.refresh()
    for _ in range(3):
        assert (await bench.source.refresh()).token.reveal() == "sk-1"
        bench.source.refresh_soon()
        await bench.clock.pass_(6.0)
    assert (bench.source.standing.trouble, bench.source.standing.refresh_time) == (ReauthRequiredError, None)
    await bench.clock.pass_(86400.0)
    with pytest.raises(ReauthRequiredError) as caught:
        await bench.source.refresh()
    assert (caught.value.note, caught.value.retry_after) == ("dead", None)
    assert bench.issuer.asked == 2
    changed = True
    await bench.clock.pass_(6.0)
    assert (await bench.source.refresh()).token.reveal() == "sk-2"


async def test_looking_for_a_change_takes_nobodys_turn() -> None:
    """A thousand dead sources do not stand in the way of one that lives."""
    bench = Bench(ReauthRequiredError(), rate=1.0)
    with pytest.raises(ReauthRequiredError):
        await bench.source.refresh()
    await bench.clock.pass_(60.0)
    for _ in range(10):
        with pytest.raises(ReauthRequiredError):
            await bench.source.refresh()
        await bench.clock.pass_(6.0)
    assert bench.turns.ask(urgent=False).has_come


async def test_an_operator_has_it_forgotten() -> None:
    """What somebody mended is tried again by the next who asks."""
    bench = Bench(ReauthRequiredError(), LIFE)
    with pytest.raises(ReauthRequiredError):
        await bench.source.refresh()
    bench.source.forget()
    assert (await bench.source.refresh()).token.reveal() == "sk-1"


async def test_a_bearer_from_elsewhere_is_taken_in() -> None:
    """It ends every trouble, with no exchange."""
    bench = Bench(ReauthRequiredError())
    with pytest.raises(ReauthRequiredError):
        await bench.source.refresh()
    bearer = Bearer(Secret("sk-else"), NOW + LIFE, NOW)
    bench.source.adopt(bearer)
    assert await bench.source.refresh() is bearer
    assert (bench.phase(), bench.changes, bench.issuer.asked) == (Phase.FRESH, 1, 1)


async def test_a_failure_does_not_outlast_what_mended_it() -> None:
    """A refusal that comes after somebody brought a new bearer is older than that, and not remembered."""
    bench = await due(ReauthRequiredError(), LIFE)
    bench.issuer.open.clear()
    rejected = bench.source.current()
    reporter = asyncio.create_task(bench.source.refresh(beyond=rejected))
    await settled()
    newer = Bearer(Secret("sk-else"), bench.clock.now() + LIFE, bench.clock.now())
    bench.source.adopt(newer)
    bench.issuer.open.set()
    assert await reporter is newer
    assert bench.source.standing.trouble is None


# --- what was rejected ------------------------------------------------------------------------------------------------


async def test_a_rejected_bearer_costs_one_exchange() -> None:
    """All who report the same one share it; who reports one that was replaced gets the newer with no exchange."""
    bench = Bench()
    old = await bench.source.refresh()
    reports = await asyncio.gather(*(bench.source.refresh(beyond=old) for _ in range(100)))
    assert {bearer.token.reveal() for bearer in reports} == {"sk-2"}
    assert bench.issuer.rejected == [None, old]
    assert (await bench.source.refresh(beyond=old)).token.reveal() == "sk-2"
    assert bench.issuer.asked == 2


@pytest.mark.parametrize("error", [IssuerDownError(), ReauthRequiredError()], ids=lambda error: error.reason)
async def test_a_rejected_bearer_never_stands_for_a_newer_one(error: BrokerError) -> None:
    """When no other can be had the reporter is told, although everybody else goes on with what there is."""
    bench = Bench(LIFE, error)
    old = await bench.source.refresh()
    for _ in range(2):
        with pytest.raises(type(error)):
            await bench.source.refresh(beyond=old)
    assert bench.issuer.asked == 2
    assert await bench.source.refresh() is old


# --- turns ------------------------------------------------------------------------------------------------------------


async def test_nobody_with_a_live_token_waits_for_a_turn() -> None:
    """In the mandatory window callers wait for an exchange that is under way, but never for its turn."""
    bench = await due(rate=0.01)
    assert bench.turns.ask(urgent=False).has_come, "somebody else took the only turn"
    assert (await asyncio.wait_for(bench.source.refresh(), 5)).token.reveal() == "sk-1"
    assert not bench.source.standing.in_flight, "it stands in line, nothing was sent"
    assert bench.issuer.asked == 1


async def test_callers_wait_for_an_exchange_that_is_under_way() -> None:
    """In the mandatory window the new bearer is waited for once it is being fetched."""
    bench = await due()
    bench.issuer.open.clear()
    caller = asyncio.create_task(bench.source.refresh())
    await settled()
    assert bench.source.standing.in_flight
    assert not caller.done()
    bench.issuer.open.set()
    assert (await caller).token.reveal() == "sk-2"


async def test_a_caller_in_need_goes_before_those_who_refresh_ahead() -> None:
    """Nine hundred refreshes ahead stand in line; the one whose caller waits is next."""
    bench = Bench(rate=1.0)
    others = [bench.kept(Issuer(bench.clock)) for _ in range(900)]
    bench.source.refresh_soon()
    for other in others[:500]:
        other.refresh_soon()
    late = bench.kept(Issuer(bench.clock))
    late.refresh_soon()
    for other in others[500:]:
        other.refresh_soon()
    caller = asyncio.create_task(late.refresh())
    await bench.clock.pass_(1.0)
    assert caller.done()
    assert sum(other.current() is not None for other in others) == 0


@pytest.mark.parametrize(("count", "rate", "in_time"), [(10_000, 20.0, 10_000), (2_000, 2.0, 1_790)])
async def test_many_that_end_together_reach_the_issuer_at_its_rate(count: int, rate: float, in_time: int) -> None:
    """
    Tokens of one issuer end in the same second, and each is asked for every ten seconds all the while.

    The issuer sees no more than the rate within any second and, where that suffices, every token is replaced before its
    end. No caller whose token lives waits even for one turn of the event loop: neither 10,000 with a rate that
    suffices, nor 2,000 with one that does not, of which many come into the mandatory window.
    """
    bench = Bench(rate=rate)
    jitter = random.Random(1)
    bearer = Bearer(Secret("sk"), NOW + LIFE, NOW)
    issuer = Issuer(bench.clock)
    sources = [bench.kept(issuer, jitter=jitter, bearer=bearer) for _ in range(count)]
    await bench.clock.pass_(LIFE - 900.0)
    mandatory = waited = 0
    for second in range(895):
        now = bench.clock.now()
        for source in sources:
            if source.phase(now) is not Phase.FRESH:
                source.refresh_soon()
        for source in sources[second % 10 :: 10]:
            current = source.current()
            assert current is not None
            assert current.is_live(now)
            if source.phase(now) is Phase.MANDATORY:
                mandatory += 1
                waited += not _returns_at_once(source.refresh)
        await bench.clock.pass_(1.0)
    most = most_within_sorted(issuer.times, 1.0 - 1e-6)
    print(f"{issuer.asked} refreshes, at most {most} within a second; {mandatory} callers late, {waited} waited")
    assert issuer.asked == pytest.approx(in_time, rel=0.01)
    assert most <= rate
    assert waited == 0
    assert (mandatory > 0) is (in_time < count)
    for source in sources:
        await source.close()


def _returns_at_once(refresh: Callable[[], Any]) -> bool:
    """Say whether a coroutine ends without waiting for anything."""
    coroutine = refresh()
    try:
        coroutine.send(None)
    except StopIteration:
        return True
    coroutine.close()
    return False


def most_within_sorted(times: list[float], period: float) -> int:
    """Return the most of these ascending times that lie within any stretch of that length."""
    most = first = 0
    for last, time in enumerate(times):
        while times[first] <= time - period:
            first += 1
        most = max(most, last - first + 1)
    return most


# --- secrets ----------------------------------------------------------------------------------------------------------


async def test_no_token_is_shown() -> None:
    """Neither events nor the source's own words hold a token."""
    with capture_logs() as logs:
        bench = Bench(LIFE, IssuerDownError(), LIFE)
        await bench.source.refresh()
        with pytest.raises(IssuerDownError) as caught:
            await bench.source.refresh(beyond=bench.source.current())
    shown = f"{logs} {bench.source!r} {bench.source.current()!r} {bench.source.standing!r} {caught.value!r}"
    assert "sk-1" not in shown
