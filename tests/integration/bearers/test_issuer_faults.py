"""An issuer that fails in every way, over HTTP: what callers get, what is remembered, what is never shown."""

import asyncio
import contextlib
import io
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from broker.bearer import Bearer, Phase
from broker.emulator import EmulatorServer
from broker.emulator.clients import DEFAULT_CLIENT_ID, DEFAULT_CLIENT_SECRET
from broker.emulator.faults import FaultRule
from broker.errors import BrokerError, IssuerDownError, ReauthRequiredError
from broker.telemetry import configure_logging
from tests.support.brokers import running_emulator
from tests.support.clocks import JumpingClock
from tests.support.http_faults import FaultServer, drip, raw, respond
from tests.support.sources import opened, secret_file

GRANT = "client_credentials"
GOOD = b'{"access_token": "sk-good", "token_type": "bearer", "expires_in": 600}'


def section(url: str, folder: Path, **more: Any) -> dict[str, Any]:
    """Return the settings of a source with this token endpoint."""
    return {
        "type": "client_credentials",
        "token_url": url,
        "client_id": DEFAULT_CLIENT_ID,
        "client_secret_file": secret_file(folder / "secret", DEFAULT_CLIENT_SECRET),
        **more,
    }


@contextlib.asynccontextmanager
async def source_at(emulator: EmulatorServer, folder: Path, clock: JumpingClock, **more: Any) -> AsyncIterator[Any]:
    """Open one source at the emulator."""
    async with opened(clock=clock, service=section(f"{emulator.url}/oauth/token", folder, **more)) as sources:
        yield sources["service"]


@pytest.mark.parametrize(
    "rule",
    [
        {"action": "status", "status": 500},
        {"action": "status", "status": 503, "retry_after": 2},
        {"action": "status", "status": 429, "retry_after": 2},
        {"action": "status", "status": 408},
        {"action": "status", "status": 400, "body": '{"error": "temporarily_unavailable"}'},
        {"action": "hang"},
        {"action": "drop_after"},
        {"action": "truncate"},
        {"action": "garbage"},
        {"action": "redirect", "location": "https://evil.example/"},
        {"action": "oversize"},
        {"action": "status", "status": 200, "body": "{}"},
        {"action": "status", "status": 200, "body": '{"access_token": "sk", "token_type": "mac"}'},
        {"action": "status", "status": 200, "body": '{"access_token": "a b", "token_type": "bearer"}'},
        {"action": "status", "status": 200, "body": '{"access_token": 7, "token_type": "bearer"}'},
        {"action": "status", "status": 200, "body": '{"access_token": "sk", "token_type": "bearer", "expires_in": 0}'},
    ],
    ids=lambda rule: f"{rule['action']}-{rule.get('status', '')}-{len(rule.get('body', ''))}",
)
async def test_a_fault_is_over_when_the_issuer_is_well(tmp_path: Path, rule: dict[str, Any]) -> None:
    """
    With a live token a fault changes nothing for callers; without one they are told ISSUER_DOWN, and when to come back.

    Either way one exchange is tried, and the next that is tried after the pause brings a token.
    """
    async with running_emulator() as emulator:
        clock = JumpingClock()
        patience = 0.5 if rule["action"] == "hang" else 30.0
        async with source_at(emulator, tmp_path, clock, timeout_seconds=patience) as source:
            emulator.backend.faults.add(FaultRule.from_json({**rule, "operation": "oauth", "count": 1}))
            with pytest.raises(IssuerDownError) as caught:
                await source.refresh()
            least = float(rule.get("retry_after", 0.5))
            assert caught.value.retry_after is not None
            assert least * 0.9 <= caught.value.retry_after <= max(1.0, least)
            clock.ahead += max(1.0, least)
            first = await source.refresh()
            # Now with a live one.
            clock.ahead += 3600 - 100
            assert source.phase(clock.now()) is Phase.ADVISORY
            emulator.backend.faults.add(FaultRule.from_json({**rule, "operation": "oauth", "count": 1}))
            assert await source.refresh() is first
            assert source.standing.trouble is IssuerDownError
            assert 20 < source.standing.retry_time - clock.now() <= 30
            clock.ahead += 31
            assert (await source.refresh()).token != first.token
            assert source.standing.trouble is None
            assert [one.fired for one in emulator.backend.faults.rules()] == [1, 1]


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 422])
async def test_any_other_4xx_is_for_good(tmp_path: Path, status: int) -> None:
    """Nobody asks again until something is changed."""
    async with running_emulator() as emulator:
        clock = JumpingClock()
        async with source_at(emulator, tmp_path, clock) as source:
            emulator.backend.faults.add(FaultRule.from_json({"action": "status", "status": status, "count": 1}))
            for _ in range(3):
                with pytest.raises(ReauthRequiredError):
                    await source.refresh()
                clock.ahead += 60
            assert emulator.backend.exchanges.count(GRANT) == 0
            source.forget()
            await source.refresh()


@pytest.mark.parametrize(
    "behaviour",
    [
        raw(b"not http at all\r\n\r\n"),
        raw(b"HTTP/1.1 200 OK\r\ncontent-length: 900\r\ncontent-type: application/json\r\n\r\n" + GOOD),
        drip(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n", b" " * 4096),
        respond(body=GOOD, content_type="text/html"),
        respond(body=GOOD + b"x" * 70_000),
        respond(body=GOOD, headers=(("x-large", "a" * 9000),)),
        respond(status=302, headers=(("location", "/elsewhere"),)),
    ],
    ids=["no http", "cut", "endless", "html", "oversize", "headers", "redirect"],
)
async def test_what_is_no_answer_brings_no_token(tmp_path: Path, behaviour: Any) -> None:
    """Bytes that are no answer end in ISSUER_DOWN within the timeout, and nothing is followed."""
    async with FaultServer(behaviour, respond(body=GOOD)) as server:
        clock = JumpingClock()
        one = section(f"{server.url}/token", tmp_path, timeout_seconds=2)
        async with opened(clock=clock, service=one) as sources:
            with pytest.raises(IssuerDownError):
                await sources["service"].refresh()
            clock.ahead += 2
            assert (await sources["service"].refresh()).token.reveal() == "sk-good"
        assert [request.target for request in server.requests] == ["/token", "/token"]


async def test_an_issuer_that_is_not_there(tmp_path: Path) -> None:
    """No connection is ISSUER_DOWN."""
    async with FaultServer() as server:
        url = f"{server.url}/token"
    async with opened(service=section(url, tmp_path)) as sources:
        with pytest.raises(IssuerDownError, match="ISSUER_DOWN") as caught:
            await sources["service"].refresh()
    assert "no connection" in caught.value.note


async def test_a_hundred_callers_of_a_hanging_issuer_are_told_together(tmp_path: Path) -> None:
    """One request, one timeout, a hundred errors of their own."""
    async with running_emulator() as emulator:
        async with source_at(emulator, tmp_path, JumpingClock(), timeout_seconds=0.5) as source:
            emulator.backend.faults.add(FaultRule.from_json({"action": "hang", "operation": "oauth"}))
            begin = time.monotonic()
            errors = await asyncio.gather(*(source.refresh() for _ in range(100)), return_exceptions=True)
            assert time.monotonic() - begin < 30, "one timeout, not a hundred"
            assert {type(error) for error in errors} == {IssuerDownError}
            assert len({id(error) for error in errors}) == 100
        assert sum(rule.fired for rule in emulator.backend.faults.rules()) == 1


async def test_many_sources_keep_to_the_rate_of_their_issuer(tmp_path: Path) -> None:
    """
    A hundred sources of one issuer whose tokens are due at once reach it, over HTTP, at no more than its rate.

    There is a live token to be served all the while.
    """
    count, rate = 100, 40
    async with running_emulator(token_format="opaque") as emulator:
        times: list[float] = []
        append = emulator.backend.exchanges.append

        def noted(exchange: Any, **more: Any) -> None:
            times.append(time.monotonic())
            append(exchange, **more)

        emulator.backend.exchanges.append = noted  # type: ignore[method-assign]
        clock = JumpingClock()
        one = section(f"{emulator.url}/oauth/token", tmp_path, refreshes_per_second=rate, timeout_seconds=60)
        # One of them has the least rate, which is that of all.
        sections = {f"s{number}": {**one, "refreshes_per_second": rate + number} for number in range(count)}
        async with opened(clock=clock, **sections) as sources:
            # The first ones, which also open the connections.
            first = {name: await source.refresh() for name, source in sources.items()}
            clock.ahead += 3600 - 100
            times.clear()
            begin = time.monotonic()
            for source in sources.values():
                assert source.phase(clock.now()) is Phase.ADVISORY
                source.refresh_soon()
            while any(source.current() is first[name] for name, source in sources.items()):
                for source in sources.values():
                    current: Bearer | None = source.current()
                    assert current is not None
                    assert current.is_live(clock.now())
                await asyncio.sleep(0.01)
            took = time.monotonic() - begin
    print(f"{len(times)} refreshes in {took:.2f} s")
    assert len(times) == count
    # Arrivals may be late, as the machine is busy, but none comes before its turn.
    turns = [0.0] * rate + [1.0 + number / rate for number in range(count - rate)]
    early = [turn - (time - begin) for turn, time in zip(turns, times, strict=True) if time - begin < turn - 0.01]
    assert not early


# --- secrets ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def events() -> Iterator[io.StringIO]:
    """Everything that is logged at the level that says most."""
    stream = io.StringIO()
    configure_logging("debug", "json", stream)
    yield stream
    structlog.reset_defaults()


SECRETS = ("canary-client-secret", "canary-token", "Y2FuYXJ5", "canary-platform")


def shown(error: BaseException) -> str:
    """Return all that an exception and its causes say."""
    texts = []
    cause: BaseException | None = error
    while cause is not None:
        texts += [repr(cause), str(cause), str(getattr(cause, "note", "")), repr(cause.args)]
        cause = cause.__cause__ or cause.__context__
    return "\n".join(texts)


@pytest.mark.parametrize("auth", ["basic", "post"])
@pytest.mark.parametrize(
    "behaviour",
    [
        respond(status=400, body=b'{"error": "invalid_client", "hint": "canary-client-secret-0123456789"}'),
        respond(status=401, body=b'{"error": "canary-client-secret-0123456789"}'),
        respond(status=500, body=b"you sent canary-client-secret-0123456789"),
        respond(body=b'{"access_token": "canary-token 0123456789", "token_type": "bearer"}'),
        respond(body=b'{"access_token": "canary-token-0123456789", "token_type": "canary-token-0123456789"}'),
        respond(body=b'{"access_token": "canary-token-0123456789", "token_type": "bearer", "expires_in": 2}'),
        respond(body=b'{"access_token": "canary-token-0123456789", "token_type": "bearer"'),
        respond(body=b'{"access_token": "canary-token-0123456789", "token_type": "bearer", "expires_in": 600}'),
    ],
    ids=["400", "401", "500", "no token", "no bearer", "ended", "cut", "good"],
)
async def test_no_secret_is_shown(tmp_path: Path, events: io.StringIO, auth: str, behaviour: Any) -> None:
    """Neither events, exceptions nor `repr` hold the client's secret or a token, whatever the issuer says back."""
    async with FaultServer(behaviour) as server:
        one = section(f"{server.url}/token", tmp_path, auth=auth)
        secret_file(tmp_path / "secret", "canary-client-secret-0123456789")
        async with opened(service=one) as sources:
            source = sources["service"]
            said = ""
            try:
                await source.refresh()
            except BrokerError as error:
                said = shown(error)
            said += f"{source!r} {source.current()!r} {source.standing!r} {vars(source)!r} {vars(source._exchange)!r}"
    assert server.requests
    assert all(secret not in said + events.getvalue() for secret in SECRETS), said + events.getvalue()
