"""The refresh-token grant on the wire: what is sent, what each answer means, and that nothing is sent twice."""

import base64
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from broker.bearer.refresh_grant import Refreshed, RefreshFailure, RefreshGrant, Verdict
from broker.model import Secret
from broker.origins import parse_origin
from broker.outbound import GuardedHttp
from tests.support.http_faults import Behaviour, FaultServer, RecordingClock, raw, respond

CANARY = "rt_canary-B7xJq2vN8sK4mW1zLpYd"
SECRET_CANARY = "cs_canary-Zr5tGh9wQe3uI6oPaSd"
DAY = 86400.0


@contextlib.asynccontextmanager
async def grant_at(
    *script: Behaviour, timeout: float = 5.0, secret_file: Path | None = None
) -> AsyncIterator[tuple[RefreshGrant, FaultServer, RecordingClock]]:
    """Open a grant at a server that answers these."""
    clock = RecordingClock()
    async with FaultServer(*script) as server:
        url = f"{server.url}/oauth/token"
        http = GuardedHttp([parse_origin(url, allow_loopback_http=True)], clock, allow_loopback_http=True)
        grant = RefreshGrant(
            http, clock, token_url=url, client_id="client-1", client_secret_file=secret_file, timeout=timeout
        )
        yield grant, server, clock
        await grant.close()


def answer(**members: Any) -> Behaviour:
    """Answer a JSON object."""
    return respond(body=json.dumps(members).encode())


def refusal(status: int, body: bytes = b"{}", **headers: str) -> Behaviour:
    """Answer an error."""
    return respond(status, body, headers=tuple((name.replace("_", "-"), value) for name, value in headers.items()))


def jwt(**claims: Any) -> str:
    """Make an unsigned JWT that says these things."""
    parts = [base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode() for part in ({}, claims)]
    return ".".join([*parts, "sig"])


async def fails(*script: Behaviour, **options: Any) -> tuple[RefreshFailure, FaultServer]:
    """Refresh where it must fail, and check that it was sent at most once and no secret shows."""
    async with grant_at(*script, **options) as (grant, server, _):
        with pytest.raises(RefreshFailure) as caught:
            await grant.refresh(Secret(CANARY))
    failure = caught.value
    assert len(server.requests) <= 1
    shown = f"{failure!r} {failure} {failure.note} {failure.word} {failure.__cause__!r} {failure.__cause__}"
    assert CANARY not in shown
    assert SECRET_CANARY not in shown
    return failure, server


async def test_what_is_sent_is_what_upstream_sends() -> None:
    """One POST with a JSON object of three members; no header says who the login is."""
    async with grant_at(answer(access_token="at")) as (grant, server, _):
        await grant.refresh(Secret(CANARY))
    (request,) = server.requests
    assert (request.method, request.target) == ("POST", "/oauth/token")
    assert request.headers["content-type"] == "application/json"
    assert "authorization" not in request.headers
    assert json.loads(request.body) == {
        "client_id": "client-1",
        "grant_type": "refresh_token",
        "refresh_token": CANARY,
    }


async def test_a_client_secret_is_read_for_each_request(tmp_path: Path) -> None:
    """A secret that was renewed is used at once; one that is missing keeps the token from being sent."""
    file = tmp_path / "secret"
    async with grant_at(answer(access_token="at"), secret_file=file) as (grant, server, _):
        for secret in (SECRET_CANARY, "renewed"):
            file.write_text(secret)
            file.chmod(0o600)
            await grant.refresh(Secret(CANARY))
        file.unlink()
        with pytest.raises(RefreshFailure) as caught:
            await grant.refresh(Secret(CANARY))
    assert [json.loads(request.body)["client_secret"] for request in server.requests] == [SECRET_CANARY, "renewed"]
    assert (caught.value.verdict, caught.value.word) == (Verdict.NOT_PROCESSED, "client_secret_unusable")


# --- answers ----------------------------------------------------------------------------------------------------------


async def refreshed(**members: Any) -> tuple[Refreshed, float]:
    """Return what is read of an answer, and the time of asking."""
    async with grant_at(answer(**members)) as (grant, _, clock):
        before = clock.now()
        got = await grant.refresh(Secret(CANARY))
        assert before <= got.send_time <= clock.now()
    return got, got.send_time


async def test_absent_fields_are_absent() -> None:
    """What the answer leaves out, says null or says empty keeps its old value: it is None here."""
    got, _ = await refreshed(access_token="at", refresh_token=None, id_token="")
    assert (got.access_token, got.refresh_token, got.id_token) == (Secret("at"), None, None)
    got, _ = await refreshed(refresh_token="rt-2", id_token="id-2")
    assert (got.access_token, got.refresh_token, got.id_token) == (None, Secret("rt-2"), Secret("id-2"))
    assert got.expire_time is None


@pytest.mark.parametrize(
    ("members", "life"),
    [
        ({"expires_in": 600}, 600.0),
        ({"expires_in": 600.5}, 600.5),
        ({"expires_in": "600"}, 600.0),
        ({}, 8 * DAY),
        ({"expires_in": 0}, 8 * DAY),
        ({"expires_in": -5}, 8 * DAY),
        ({"expires_in": True}, 8 * DAY),
        ({"expires_in": "soon"}, 8 * DAY),
        ({"expires_in": 1e300}, 10 * 366 * DAY),
    ],
)
async def test_an_opaque_token_ends_when_the_answer_says(members: dict[str, Any], life: float) -> None:
    """Counted from before the request was sent; what nobody says is eight days, as upstream has it."""
    got, sent = await refreshed(access_token="opaque", **members)
    assert got.expire_time == pytest.approx(sent + life)


async def test_a_jwt_ends_at_the_earlier_of_its_two_ends() -> None:
    """Its own claim and the answer's may differ; neither is passed."""
    async with grant_at(
        answer(access_token=jwt(exp=4_000_000_000), expires_in=600),
        answer(access_token=jwt(exp=4_000_000_000)),
        answer(access_token=jwt(exp=1_900_000_000), expires_in=10 * 365 * DAY),
    ) as (grant, _, _):
        ends = [(await grant.refresh(Secret(CANARY))) for _ in range(3)]
    assert ends[0].expire_time == pytest.approx(ends[0].send_time + 600)
    assert [each.expire_time for each in ends[1:]] == [4_000_000_000, 1_900_000_000]


# --- failures ---------------------------------------------------------------------------------------------------------

REUSED, EXPIRED, REVOKED = "refresh_token_reused", "refresh_token_expired", "refresh_token_invalidated"


@pytest.mark.parametrize(
    ("status", "body", "word"),
    [
        (401, b"", "unauthorized"),
        (401, b'{"error":{"code":"whatever"}}', "whatever"),
        (401, b"<html>", "unauthorized"),
        *(
            (status, f'{{"error":{{"code":"{code}"}}}}', code)
            for status in (400, 403)
            for code in (REUSED, EXPIRED, REVOKED)
        ),
        (400, f'{{"error":"{REUSED}"}}', REUSED),
        (400, f'{{"code":"{EXPIRED}"}}', EXPIRED),
        (400, f'{{"error":{{"message":"no"}},"code":"{REVOKED}"}}', REVOKED),
        (400, f'{{"error":{{"code":"{REUSED.upper()}"}}}}', REUSED),
        (400, '{"error":"Refresh_Token_Invalidated"}', REVOKED),
        (400, '{"error":"invalid_grant"}', "invalid_grant"),
        (400, '{"error":{"code":"INVALID_GRANT"}}', "invalid_grant"),
    ],
)
async def test_what_refuses_for_good(status: int, body: bytes | str, word: str) -> None:
    """A 401, a known code in any of its three places and in any case, and 400 with invalid_grant."""
    failure, _ = await fails(refusal(status, body if isinstance(body, bytes) else body.encode()))
    assert (failure.verdict, failure.word) == (Verdict.REFUSED, word)


@pytest.mark.parametrize(
    ("status", "body", "word"),
    [
        (400, b"{}", "issuer_protocol"),
        (400, b'{"error":"invalid_request"}', "invalid_request"),
        (403, b'{"error":"invalid_grant"}', "invalid_grant"),
        (403, b"{}", "issuer_protocol"),
        (404, b"{}", "issuer_protocol"),
        (429, b"{}", "issuer_throttled"),
        (503, b"{}", "issuer_down"),
        (302, b"{}", "issuer_protocol"),
    ],
)
async def test_what_was_turned_away_unseen(status: int, body: bytes, word: str) -> None:
    """Any other 4xx, a 429, a 503 and a redirect say that the token was not exchanged."""
    failure, _ = await fails(refusal(status, body))
    assert (failure.verdict, failure.word) == (Verdict.NOT_PROCESSED, word)


async def test_when_to_come_again_is_handed_on() -> None:
    """`Retry-After` of a 429 and of a 503."""
    for status in (429, 503):
        failure, _ = await fails(refusal(status, retry_after="7"))
        assert failure.retry_after == 7


async def test_who_is_not_reached_has_processed_nothing() -> None:
    """A port where nobody listens."""
    async with grant_at() as (grant, server, _):
        await server.__aexit__()
        with pytest.raises(RefreshFailure) as caught:
            await grant.refresh(Secret(CANARY))
    assert caught.value.verdict is Verdict.NOT_PROCESSED


JSON_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 500\r\n\r\n"


@pytest.mark.parametrize(
    "behaviour",
    [
        pytest.param(refusal(500), id="500"),
        pytest.param(refusal(502), id="502"),
        pytest.param(refusal(504), id="504"),
        pytest.param(raw(b""), id="cut before the answer"),
        pytest.param(raw(JSON_HEAD + b'{"access_token":"at'), id="cut in the answer"),
        pytest.param(raw(b"", close=False), id="silence"),
        pytest.param(raw(JSON_HEAD + b"{", close=False), id="silence in the answer"),
        pytest.param(respond(body=b"<html>", content_type="text/html"), id="HTML"),
        pytest.param(respond(body=b'{"access_token":'), id="half of a JSON"),
        pytest.param(respond(body=b'["at"]'), id="no object"),
        pytest.param(answer(access_token=7), id="a number for a token"),
        pytest.param(answer(access_token="two words"), id="a space in a token"),
        pytest.param(answer(access_token="at", refresh_token="r\u00e4t"), id="no ASCII"),
        pytest.param(answer(access_token="a" * 20_000), id="too long a token"),
        pytest.param(respond(body=b'{"a":"' + b"b" * 70_000 + b'"}'), id="too long an answer"),
        pytest.param(raw(b"SSH-2.0-OpenSSH_9.6\r\n"), id="no HTTP"),
    ],
)
async def test_what_may_have_been_exchanged(behaviour: Behaviour) -> None:
    """Whatever comes between the request and a usable answer: nobody knows whether the token is spent."""
    failure, server = await fails(behaviour, timeout=0.5)
    assert failure.verdict is Verdict.ANSWER_LOST
    assert len(server.requests) == 1


async def test_nothing_is_sent_without_time_for_an_answer() -> None:
    """A claim that came late leaves the token alone; one with some time left gives no more than that."""
    async with grant_at(raw(b"", close=False), timeout=10.0) as (grant, server, _):
        with pytest.raises(RefreshFailure) as caught:
            await grant.refresh(Secret(CANARY), within=4.9)
        assert (caught.value.verdict, server.requests) == (Verdict.NOT_PROCESSED, [])
    async with grant_at(raw(b"", close=False), timeout=1.0) as (grant, server, clock):
        began = clock.monotonic()
        with pytest.raises(RefreshFailure) as caught:
            await grant.refresh(Secret(CANARY), within=0.6)
        assert 0.5 < clock.monotonic() - began < 1.0
        assert caught.value.verdict is Verdict.ANSWER_LOST
